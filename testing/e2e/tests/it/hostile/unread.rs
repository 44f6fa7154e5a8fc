//! Streams of X.509-SVIDs that nobody reads, while everything rotates.

use std::collections::HashSet;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use spire_net::grpc::unix_channel;
use spire_net::tls::UnixConnector;
use spire_testkit::{Daemon, Error, wait};
use spire_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spire_wire::workload::{X509svidRequest, X509svidResponse};
use tokio::sync::watch;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use super::streams::{memory, site};
use super::{HOST, everything_works, unix};
use crate::harness::site::own_uid;
use crate::harness::{Outcome, SOON, Site};

/// Streams of each kind: of clients whose connection is read and whose streams are not, and of clients that read nothing.
const UNREAD: usize = 200;
const READ: usize = 20;
/// Of one connection.
const OF_CONNECTION: usize = 100;

/// Entries that are made, one after the other.
const CHANGES: usize = 12;

/// Less than the shortest message: a stream that is not read has room for none.
const WINDOW: u32 = 1024;

/// What the agent may need for all of it, which is a build without optimisation. With a copy of each message for each stream
/// it would be twice as much.
const MEMORY_MAX: usize = 32 << 20;

/// Messages that were on their way when the client stopped to read: one that the connection has begun to send, and one that
/// waits for it.
const UNDER_WAY: usize = 2;

async fn open(channel: &Channel) -> Result<Streaming<X509svidResponse>, Status> {
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    Ok(SpiffeWorkloadApiClient::new(channel.clone()).fetch_x509svid(request).await?.into_inner())
}

/// Leaf certificates and octets of authorities, in which states differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    svids: HashSet<Vec<u8>>,
    roots: usize,
}

fn state(message: &X509svidResponse) -> State {
    State {
        svids: message.svids.iter().map(|svid| svid.x509_svid.to_vec()).collect(),
        roots: message.svids.first().map_or(0, |svid| svid.bundle.len()),
    }
}

/// A stream that is read all the time: all that it was told.
struct Reader(watch::Receiver<Vec<State>>);

impl Reader {
    fn start(runtime: &tokio::runtime::Runtime, mut messages: Streaming<X509svidResponse>) -> Self {
        let (told, states) = watch::channel(Vec::new());
        runtime.spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                told.send_modify(|states: &mut Vec<State>| states.push(state(&message)));
            }
        });
        Self(states)
    }

    /// The newest state, once it is so.
    async fn wait(&mut self, what: &str, is_so: impl Fn(&State) -> bool) -> Result<State, Error> {
        let newest = self.0.wait_for(|states| states.last().is_some_and(&is_so));
        let newest = tokio::time::timeout(SOON, newest).await;
        let newest = newest.map_err(|_| Error::new(format!("{what}: a stream was not told")))?;
        let newest = newest.map_err(|_| Error::new(format!("{what}: a stream ended")))?;
        Ok(newest.last().cloned().unwrap_or_default())
    }
}

async fn all(readers: &mut [Reader], what: &str, is_so: impl Fn(&State) -> bool) -> Result<State, Error> {
    let mut newest = State::default();
    for reader in readers {
        newest = reader.wait(what, &is_so).await?;
    }
    Ok(newest)
}

/// Clients whose connections are read, and whose streams have no room.
async fn lazy(site: &Site) -> Result<Vec<Streaming<X509svidResponse>>, Status> {
    let connect = || {
        let endpoint = Endpoint::from_static("http://localhost").initial_stream_window_size(WINDOW);
        endpoint.connect_with_connector_lazy(UnixConnector::new(site.agent.socket()))
    };
    let channels: Vec<Channel> = (0..UNREAD / OF_CONNECTION).map(|_| connect()).collect();
    let mut streams = Vec::new();
    for n in 0..UNREAD {
        streams.push(open(&channels[n % channels.len()]).await?);
    }
    Ok(streams)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A client that has room for everything, asks, and reads nothing, not even from its socket.
fn deaf(site: &Site) -> Result<UnixStream, Error> {
    let mut header = vec![0x83, 0x86];
    for (name, value) in [
        (":path", "/SpiffeWorkloadAPI/FetchX509SVID"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("workload.spiffe.io", "true"),
    ] {
        header.push(0);
        for text in [name, value] {
            header.push(u8::try_from(text.len()).unwrap_or(0));
            header.extend(text.as_bytes());
        }
    }
    let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // The largest windows that there are.
    said.extend(frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
    said.extend(frame(8, 0, 0, &[0x7f, 0xff, 0, 0]));
    for stream in (0..OF_CONNECTION).map(|n| u32::try_from(2 * n + 1).unwrap_or(1)) {
        said.extend(frame(1, 4, stream, &header));
        said.extend(frame(0, 1, stream, &[0; 5]));
    }
    let mut client = unix(&site.agent.socket())?;
    client.write_all(&said).map_err(|error| Error::doing("requests", error))?;
    // The agent answers them all by the time that this much is there to be read, which it stays.
    let expected = OF_CONNECTION * WINDOW as usize;
    let mut space = vec![0; expected];
    wait::until("answers to a client that does not read", SOON, || {
        let (there, _) = recv(&client, &mut space[..], RecvFlags::PEEK | RecvFlags::DONTWAIT).ok()?;
        (there == expected).then_some(())
    })?;
    Ok(client)
}

/// A new authority signs what the old one did, which is tainted.
async fn force(site: &Site, readers: &mut [Reader], before: State) -> Result<State, Error> {
    let authority = |state: &serde_json::Value, which: &str| {
        state[which]["authority_id"].as_str().unwrap_or_default().to_owned()
    };
    let old = authority(&site.cli_json(&["localauthority", "x509", "show"])?, "active");
    let prepared = site.cli_json(&["localauthority", "x509", "prepare"])?;
    all(readers, "the next authority", |state| state.roots > before.roots).await?;
    let new = authority(&prepared, "prepared_authority");
    site.cli(&["localauthority", "x509", "activate", "-authorityID", &new])?;
    site.cli(&["localauthority", "x509", "taint", "-authorityID", &old])?;
    let newest = all(readers, "new SVIDs", |state| state.svids.is_disjoint(&before.svids)).await?;
    // All SVIDs of a workload are renewed in one message.
    for reader in readers {
        let states = reader.0.borrow().clone();
        let mixed = states.iter().find(|state| {
            state.svids.len() > CHANGES
                && !state.svids.is_disjoint(&before.svids)
                && !state.svids.is_subset(&before.svids)
        });
        if let Some(mixed) = mixed {
            return Err(Error::new(format!("old and new SVIDs, {}", mixed.svids.len())));
        }
    }
    Ok(newest)
}

pub(super) fn rotations() -> Outcome {
    let site = site()?;
    let _server = site.start_server()?;
    let mut agent = everything_works(&site)?;
    let before = memory(&agent, "VmRSS:")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let lazy = runtime.block_on(lazy(&site))?;
    let deaf =
        (0..UNREAD / OF_CONNECTION).map(|_| deaf(&site)).collect::<Result<Vec<UnixStream>, Error>>()?;
    let mut readers = runtime.block_on(async {
        let mut readers = Vec::new();
        for _ in 0..READ {
            let channel = unix_channel(UnixConnector::new(site.agent.socket()));
            readers.push(Reader::start(&runtime, open(&channel).await?));
        }
        Ok::<_, Status>(readers)
    })?;
    for n in 1..=CHANGES {
        site.entry(HOST, &format!("spiffe://example.org/more/{n}"), &own_uid(), &[])?;
        let what = format!("entry {n}");
        runtime.block_on(all(&mut readers, &what, |state| state.svids.len() == n + 1))?;
    }
    let newest = runtime.block_on(async {
        let before = all(&mut readers, "all entries", |state| state.svids.len() > CHANGES).await?;
        force(&site, &mut readers, before).await
    })?;
    let more = memory(&agent, "VmHWM:")?.saturating_sub(before);
    if more > MEMORY_MAX {
        return Err(Error::new(format!("streams that are not read hold {more} octets")).into());
    }
    // Who reads again gets what was under way, and then what holds now.
    runtime.block_on(resumed(lazy, &newest, &agent))?;
    drop(deaf);
    let [reader, ..] = &readers[..] else { return Err(Error::new("no reader").into()) };
    assert!(reader.0.borrow().len() > CHANGES, "each change was told");
    assert!(agent.is_running());
    Ok(())
}

async fn resumed(
    streams: Vec<Streaming<X509svidResponse>>,
    newest: &State,
    agent: &Daemon,
) -> Result<(), Error> {
    for mut messages in streams {
        let mut told = 0;
        loop {
            let message = tokio::time::timeout(Duration::from_secs(60), messages.message()).await;
            let message = message.map_err(|_| agent.error("a stream that is read again was told nothing"))?;
            let message = message.map_err(|status| Error::new(status.to_string()))?;
            told += 1;
            match message {
                Some(message) if state(&message) == *newest => break,
                Some(_) if told <= UNDER_WAY => {}
                Some(_) => return Err(Error::new(format!("{told} messages, and not the newest"))),
                None => return Err(Error::new("a stream that was not read has ended")),
            }
        }
    }
    Ok(())
}
