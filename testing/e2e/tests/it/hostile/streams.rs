//! Streams of the agent's socket that say nothing, or nonsense, for as long as they live.

use std::path::Path;
use std::pin::pin;

use spire_net::grpc::unix_channel;
use spire_net::tls::UnixConnector;
use spire_testkit::{Daemon, Error};
use spire_wire::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use spire_wire::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use spire_wire::workload::{JwtsvidRequest, JwtsvidResponse, X509svidRequest, X509svidResponse};
use tokio_stream::{self as stream, StreamExt as _};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::{WORKLOAD, everything_works};
use crate::harness::{Outcome, Site};

/// Streams in all, and of one connection.
const STREAMS: usize = 10_000;
const OF_CONNECTION: usize = 2_500;

/// What a stream may make the agent hold, this program's debug information apart: a task, a place in its connection's
/// tables, a subscription.
const STREAM_MAX: usize = 32 << 10;

/// A site whose agent does not hash what calls it, which takes long.
pub(super) fn site() -> Result<Site, Error> {
    let mut site = Site::new()?;
    site.agent.unix.push_str("\n            workload_size_limit = -1");
    Ok(site)
}

fn resident(daemon: &Daemon) -> Result<usize, Error> {
    memory(daemon, "VmRSS:")
}

/// A line of a program's status that says octets.
pub(super) fn memory(daemon: &Daemon, name: &str) -> Result<usize, Error> {
    let path = format!("/proc/{}/status", daemon.pid());
    let status = std::fs::read_to_string(&path).map_err(|error| Error::doing(&path, error))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
    Ok(kib.ok_or_else(|| Error::new(format!("no {name}")))? << 10)
}

fn channels(socket: &Path, count: usize) -> Vec<Channel> {
    (0..count).map(|_| unix_channel(UnixConnector::new(socket))).collect()
}

/// A call whose request never comes.
async fn silent_call<M, R>(channel: Channel, path: &'static str) -> Result<(), Status>
where
    M: prost::Message + Send + Sync + 'static,
    R: prost::Message + Default + Send + Sync + 'static,
{
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(stream::pending::<M>());
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let codec = tonic_prost::ProstCodec::<M, R>::default();
    let path = PathAndQuery::from_static(path);
    let mut answers = client.streaming(request, path, codec).await?.into_inner();
    while answers.message().await?.is_some() {}
    Ok(())
}

pub(super) fn silent() -> Outcome {
    let site = site()?;
    let _server = site.start_server()?;
    let mut agent = everything_works(&site)?;
    let before = resident(&agent)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let channels = {
        let _within = runtime.enter();
        channels(&site.agent.socket(), STREAMS / OF_CONNECTION)
    };
    let held: Vec<_> = (0..STREAMS)
        .map(|n| {
            let channel = channels[n % channels.len()].clone();
            runtime.spawn(async move {
                match n % 3 {
                    0 => {
                        let path = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
                        silent_call::<DiscoveryRequest, DiscoveryResponse>(channel, path).await
                    }
                    1 => {
                        let path = "/SpiffeWorkloadAPI/FetchX509SVID";
                        silent_call::<X509svidRequest, X509svidResponse>(channel, path).await
                    }
                    _ => {
                        let path = "/SpiffeWorkloadAPI/FetchJWTSVID";
                        silent_call::<JwtsvidRequest, JwtsvidResponse>(channel, path).await
                    }
                }
            })
        })
        .collect();
    // Others are served as if nothing were.
    site.wait_identities(&[WORKLOAD])?;
    site.workload(&["api", "fetch", "jwt", "-audience", "a", "-timeout", "20s"]).success()?;
    let more = resident(&agent)?.saturating_sub(before);
    if more > STREAMS * STREAM_MAX {
        return Err(Error::new(format!("{STREAMS} silent streams hold {more} octets")).into());
    }
    // Calls whose one request does not come end; streams may wait for as long as they like.
    let mut ended = [0_usize; 2];
    runtime.block_on(async {
        let (calls, streams): (Vec<_>, Vec<_>) = held.into_iter().enumerate().partition(|(n, _)| n % 3 != 0);
        for (_, call) in calls {
            let status = call.await.map_err(|error| Error::new(error.to_string()))?.err();
            let late = (Code::DeadlineExceeded, "the request did not come in time".to_owned());
            if status.map(|status| (status.code(), status.message().to_owned())) == Some(late) {
                ended[0] += 1;
            }
        }
        ended[1] = streams.into_iter().filter(|(_, stream)| stream.is_finished()).count();
        Ok::<_, Error>(())
    })?;
    assert_eq!(ended, [STREAMS - STREAMS.div_ceil(3), 0]);
    site.wait_identities(&[WORKLOAD])?;
    assert!(agent.is_running());
    Ok(())
}

/// Requests without an end, for names that are nobody's, of any size; and nobody reads what comes back.
pub(super) fn nonsense() -> Outcome {
    let site = site()?;
    let _server = site.start_server()?;
    let mut agent = everything_works(&site)?;
    let before = resident(&agent)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let socket = site.agent.socket();
    let ask = |names: Vec<String>, nonce: String| DiscoveryRequest {
        resource_names: names,
        response_nonce: nonce,
        ..DiscoveryRequest::default()
    };
    // A name that nobody has, more names than may be, and a request that is too long.
    let refused = [
        (ask(vec!["spiffe://example.org/nobody".to_owned()], String::new()), Code::InvalidArgument),
        (ask(vec!["x".repeat(2000); 40], String::new()), Code::InvalidArgument),
        (ask(vec!["x".repeat(2 << 20)], String::new()), Code::ResourceExhausted),
    ];
    runtime.block_on(async {
        for (request, code) in refused {
            let mut client = SecretDiscoveryServiceClient::new(unix_channel(UnixConnector::new(&socket)));
            let requests = stream::iter([request]).chain(stream::pending());
            let mut answers = client.stream_secrets(requests).await?.into_inner();
            let status = answers.message().await.err().ok_or_else(|| Error::new("it was answered"))?;
            assert_eq!(status.code(), code, "{status}");
        }
        Ok::<_, libtest_mimic::Failed>(())
    })?;
    // Each stream asks for everything again and again, late ones among it, as fast as it is let; none of it is read.
    let flood = runtime.spawn(async move {
        let mut held = Vec::new();
        for channel in channels(&socket, 4) {
            for _ in 0..25 {
                let mut client = SecretDiscoveryServiceClient::new(channel.clone());
                let requests = stream::iter(0_u64..).map(move |n| match n % 3 {
                    0 => ask(Vec::new(), String::new()),
                    1 => ask(vec!["ROOTCA".to_owned()], n.to_string()),
                    _ => ask(vec!["y".repeat(30_000)], "late".to_owned()),
                });
                held.push(client.stream_secrets(requests).await);
            }
        }
        held
    });
    site.wait_identities(&[WORKLOAD])?;
    let held =
        runtime.block_on(async { pin!(flood).await }).map_err(|error| Error::new(error.to_string()))?;
    assert!(held.iter().all(Result::is_ok), "100 streams are no crime");
    for _ in 0..5 {
        site.wait_identities(&[WORKLOAD])?;
    }
    let more = resident(&agent)?.saturating_sub(before);
    if more > 128 << 20 {
        return Err(Error::new(format!("100 streams of nonsense hold {more} octets")).into());
    }
    drop(held);
    assert!(agent.is_running());
    Ok(())
}
