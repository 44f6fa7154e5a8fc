//! Clients that mean harm, frame by frame over a unix socket: each is stopped, and others are served meanwhile.

use std::future::pending;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use tonic::service::Routes;

use super::serve_unix;
use crate::fixture::{Echo, call};
use crate::grpc::unix_channel;
use crate::tls::UnixConnector;
use crate::uds::{PeerTracking, UnixEndpoint};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM_AND_HEADERS: u8 = 5;
const END_HEADERS: u8 = 4;

/// `POST http:///test.Echo/Call` with the authority `localhost`, as literals.
const REQUEST: &[u8] = b"\x83\x86\x04\x0f/test.Echo/Call\x01\x09localhost";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

struct Hostile(UnixStream);

impl Hostile {
    /// A connection that has said hello.
    async fn connect(path: &Path) -> Self {
        let mut stream = UnixStream::connect(path).await.expect("connects");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("written");
        Self(stream)
    }

    /// Sends frames until the server takes no more.
    async fn send(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) {
        for frame in frames {
            if self.0.write_all(&frame).await.is_err() {
                return;
            }
        }
    }

    /// Type and first eight octets of the payload of each frame until the server ends the connection.
    async fn rest(mut self) -> Vec<(u8, Vec<u8>)> {
        let mut octets = Vec::new();
        // A reset connection has said what it has said.
        let _ = self.0.read_to_end(&mut octets).await;
        let mut frames = Vec::new();
        let mut rest = &octets[..];
        while let [a, b, c, kind, _, _, _, _, _, after @ ..] = rest {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let Some((payload, next)) = after.split_at_checked(length) else { break };
            frames.push((*kind, payload[..payload.len().min(8)].to_vec()));
            rest = next;
        }
        frames
    }
}

/// The error code of the GOAWAY among these frames.
fn goaway(frames: &[(u8, Vec<u8>)]) -> Option<u32> {
    let (_, payload) = frames.iter().rfind(|(kind, _)| *kind == GOAWAY)?;
    Some(u32::from_be_bytes(payload.get(4..8)?.try_into().ok()?))
}

/// A served socket, and a check that it serves.
struct Served(tempfile::TempDir);

impl Served {
    fn start() -> Self {
        let served = Self(tempfile::tempdir().expect("a folder"));
        let endpoint = UnixEndpoint::server(served.path(), PeerTracking::CredentialsOnly);
        let incoming = endpoint.bind().expect("bound");
        tokio::spawn(serve_unix(
            Routes::new(Echo),
            &[<Echo as tonic::server::NamedService>::NAME],
            incoming,
            pending(),
        ));
        served
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("api.sock")
    }

    async fn still_serves(&self) {
        call(&unix_channel(UnixConnector::new(self.path()))).await.expect("served");
    }
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let served = Served::start();
    let mut hostile = Hostile::connect(&served.path()).await;
    let burst: Vec<u8> = (0..2000)
        .flat_map(|n| {
            let stream = 2 * n + 1;
            let request = frame(HEADERS, END_HEADERS, stream, REQUEST);
            [request, frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
        })
        .collect();
    hostile.send([burst]).await;
    let frames = hostile.rest().await;
    assert_eq!(goaway(&frames), Some(11), "ENHANCE_YOUR_CALM: {frames:?}");
    served.still_serves().await;
}

#[tokio::test]
async fn a_header_block_without_end_ends_the_connection() {
    let served = Served::start();
    let mut hostile = Hostile::connect(&served.path()).await;
    hostile.send([frame(HEADERS, 0, 1, REQUEST)]).await;
    // A field of which each frame brings a piece.
    let piece = [&b"\0\x01a\x7f\x81\x7e"[..], &[b'x'; 16_253]].concat();
    hostile.send((0..1000).map(|_| frame(CONTINUATION, 0, 1, &piece))).await;
    let frames = hostile.rest().await;
    assert!(!frames.iter().any(|(kind, _)| *kind == HEADERS), "no answer: {frames:?}");
    served.still_serves().await;
}

#[tokio::test]
async fn empty_continuations_without_end_end_the_connection() {
    let served = Served::start();
    let mut hostile = Hostile::connect(&served.path()).await;
    hostile.send([frame(HEADERS, 0, 1, REQUEST)]).await;
    let empty = frame(CONTINUATION, 0, 1, &[]);
    hostile.send((0..100).map(|_| empty.repeat(1000))).await;
    let frames = hostile.rest().await;
    assert!(!frames.iter().any(|(kind, _)| *kind == HEADERS), "no answer: {frames:?}");
    served.still_serves().await;
}

#[tokio::test]
async fn streams_that_break_the_protocol_end_the_connection() {
    let served = Served::start();
    let mut hostile = Hostile::connect(&served.path()).await;
    // A request that names its path twice is one that the library resets.
    let twice = [REQUEST, b"\x04\x01/"].concat();
    let requests = (0..5000).map(|n| frame(HEADERS, END_STREAM_AND_HEADERS, 2 * n + 1, &twice));
    hostile.send([requests.collect::<Vec<_>>().concat()]).await;
    let frames = hostile.rest().await;
    let resets = frames.iter().filter(|(kind, _)| *kind == RST_STREAM).count();
    assert!(goaway(&frames).is_some() && resets <= 1100, "{resets} resets: {:?}", goaway(&frames));
    served.still_serves().await;
}
