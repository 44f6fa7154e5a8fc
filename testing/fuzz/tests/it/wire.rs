//! What connections bring: PROXY headers, HTTP/2 frames, requests before a policy.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use prost::Message as _;
use spire_fuzz::input_or_changed;
use spire_net::{AuthorityGuard, proxy};
use spire_policy::RegoPolicy;
use spire_ports::policy::{Policy as _, Question, Undecided};
use spire_wire::api::server::entry::v1::BatchCreateEntryRequest;
use spire_wire::api::types::{Entry, Selector, Spiffeid};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\x01\x02\x03\x7f\0\0\x01\x30\x39\x1f\x91rest";

#[test]
fn proxy_header() {
    bolero::check!().for_each(|input: &[u8]| {
        let header = input_or_changed(&[b"PROXY TCP4 10.1.2.3 127.0.0.1 12345 8081\r\nrest", V2], input);
        let mut rest = &header[..];
        let read = proxy::read(&mut rest).now_or_never().expect("all input is here");
        if read.is_ok() {
            assert!(header.len() - rest.len() <= 16 + 4096, "no more than a header is taken");
        }
    });
}

/// Gives its octets in pieces of a size.
struct Pieces<'a> {
    rest: &'a [u8],
    size: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let size = self.size.min(self.rest.len()).min(buf.remaining());
        let (piece, rest) = self.rest.split_at(size);
        buf.put_slice(piece);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

/// The preface, SETTINGS, and HEADERS whose authority is a path.
fn first_request() -> Vec<u8> {
    let mut octets = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let block = b"\x83\x86\x44\x05/S/M_\x41\x0a/tmp/a.sck\x5f\x10application/grpc";
    octets.extend([0, 0, u8::try_from(block.len()).expect("short"), 1, 4, 0, 0, 0, 1]);
    octets.extend_from_slice(block);
    octets.extend(*b"\0\0\x05\0\x01\0\0\0\x01\0\0\0\0\0");
    octets
}

#[test]
fn authority_rewriter() {
    let sample = first_request();
    bolero::check!().for_each(|input: &[u8]| {
        let octets = input_or_changed(&[&sample], input);
        let mut outputs = [1, 7, 4096].map(|size| {
            let mut guard = AuthorityGuard::new(Pieces { rest: &octets, size });
            let mut out = Vec::new();
            let read = guard.read_to_end(&mut out).now_or_never().expect("all input is here");
            // Literals take more room than indexes, but a block is bounded.
            assert!(out.len() <= octets.len() + 64 * 65_536);
            read.map(|_| out).map_err(|error| error.to_string())
        });
        outputs.sort();
        if outputs.iter().all(Result::is_ok) {
            assert_eq!(outputs[0], outputs[2], "how input is cut changes nothing");
        }
    });
}

#[test]
fn requests_before_a_policy() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("policy.rego");
    let module = "package spire\nresult := {\"allow\": true, \"allow_if_local\": false, \"allow_if_admin\": false, \
        \"allow_if_downstream\": false, \"allow_if_agent\": false}\n";
    std::fs::write(&path, module).expect("written");
    let policy = std::panic::AssertUnwindSafe(RegoPolicy::load(&path, None).expect("loads"));
    let id = |path: &str| Some(Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() });
    let entry = Entry {
        spiffe_id: id("/w"),
        parent_id: id("/p"),
        selectors: vec![Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
        dns_names: vec!["a".to_owned()],
        x509_svid_ttl: -1,
        ..Entry::default()
    };
    let sample = BatchCreateEntryRequest { entries: vec![entry], output_mask: None }.encode_to_vec();
    bolero::check!().for_each(|input: &[u8]| {
        let message = input_or_changed(&[&sample], input);
        let full_method = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";
        let question = Question { caller: "", caller_file_path: "", full_method, request: Some(&message) };
        match policy.decide(&question) {
            Ok(decision) => assert!(decision.allow),
            Err(Undecided::Policy(text)) => panic!("{text}"),
            Err(Undecided::Malformed(_) | Undecided::TooLarge { .. }) => {}
        }
    });
}
