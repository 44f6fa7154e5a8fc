//! Figures of the agent: what workloads ask of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use spire_wire::workload as wl;
use spire_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::Set;
use crate::api;
use crate::figure::{Figure, median};
use crate::measure::{Names, operations, to_f64, until};
use crate::process::{Process, Site};

/// Identities that the calling user has in these figures.
pub(crate) const IDENTITIES: usize = 2;

/// A server and an agent that serves the calling user.
pub(crate) struct Pair {
    pub(crate) site: Site,
    _server: Process,
    pub(crate) agent: Process,
    parent: String,
    /// The server's API.
    pub(crate) socket: Channel,
}

impl Pair {
    /// One more entry for the calling user.
    pub(crate) async fn one_more(&self, path: &str) -> Result<()> {
        let entry = api::new_entry(&self.parent, path, &[&own_uid()?]);
        api::create_entries(&self.socket, vec![entry]).await.map(drop)
    }
}

/// Starts both, with [`IDENTITIES`] for the calling user.
pub(crate) async fn pair(set: Set) -> Result<Pair> {
    let site = Site::new(set)?;
    let server = site.server().await?;
    let socket = api::unix(&site.server_socket());
    let token = api::join_token(&socket).await?;
    let parent = format!("/spire/agent/join_token/{token}");
    let agent = site.agent(&token).await?;
    let uid = own_uid()?;
    let entries = (0..IDENTITIES).map(|n| api::new_entry(&parent, &format!("/mine/{n}"), &[&uid])).collect();
    api::create_entries(&socket, entries).await?;
    let agent_socket = site.agent_socket();
    until("the first SVID", Duration::from_secs(60), || async {
        first_svids(&api::unix(&agent_socket)).await.is_ok_and(|n| n == IDENTITIES)
    })
    .await?;
    Ok(Pair { site, _server: server, agent, parent, socket })
}

/// The selector of the calling user.
pub(crate) fn own_uid() -> Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let uid = status.lines().find_map(|l| l.strip_prefix("Uid:")?.split_whitespace().next());
    Ok(format!("uid:{}", uid.context("Uid")?))
}

/// A request with the header that every Workload API client sends.
fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

/// Opens a stream of X.509-SVIDs.
pub(crate) async fn open(channel: &Channel) -> Result<Streaming<wl::X509svidResponse>> {
    let mut client = SpiffeWorkloadApiClient::new(channel.clone());
    Ok(client.fetch_x509svid(request(wl::X509svidRequest {})).await?.into_inner())
}

async fn first_svids(channel: &Channel) -> Result<usize> {
    Ok(open(channel).await?.message().await?.context("stream ended")?.svids.len())
}

/// Start to ready and memory of an idle agent.
pub(crate) async fn start(set: Set) -> Result<Vec<Figure>> {
    let pair = pair(set).await?;
    Ok(vec![
        Figure::new("agent start to ready", "ms", pair.agent.started_in.as_secs_f64() * 1e3),
        Figure::new("agent memory, idle", "KiB", pair.agent.memory()?),
    ])
}

/// Fetches on new and on kept connections, and JWT-SVIDs from the cache.
pub(crate) async fn workload(set: Set) -> Result<Vec<Figure>> {
    let pair = pair(set).await?;
    let socket = pair.site.agent_socket();
    let names = Names {
        cpu: "fetch X.509, new connection",
        rate: "fetch X.509, new, rate",
        latency: "fetch X.509, new, latency",
    };
    let mut figures = operations(names, &pair.agent, 1500, 1, 2, |_| async {
        first_svids(&api::unix(&socket)).await.map(|_| ())
    })
    .await?;
    let kept = api::unix(&socket);
    let names = Names {
        cpu: "fetch X.509, kept connection",
        rate: "fetch X.509, kept, rate",
        latency: "fetch X.509, kept, latency",
    };
    figures.extend(
        operations(names, &pair.agent, 4000, 1, 2, |_| async { first_svids(&kept).await.map(|_| ()) })
            .await?,
    );
    let names =
        Names { cpu: "fetch JWT from the cache", rate: "fetch JWT, rate", latency: "fetch JWT, latency" };
    figures
        .extend(operations(names, &pair.agent, 4000, 1, 2, |_| async { jwt(&kept).await.map(drop) }).await?);
    let token = jwt(&kept).await?;
    let names =
        Names { cpu: "validate a JWT-SVID", rate: "validate JWT, rate", latency: "validate JWT, latency" };
    figures.extend(
        operations(names, &pair.agent, 4000, 1, 2, |_| {
            let (mut client, svid) = (SpiffeWorkloadApiClient::new(kept.clone()), token.clone());
            async move {
                let message = wl::ValidateJwtsvidRequest { audience: "bench".into(), svid };
                client.validate_jwtsvid(request(message)).await?;
                Ok(())
            }
        })
        .await?,
    );
    Ok(figures)
}

/// A JWT-SVID of the first identity.
async fn jwt(channel: &Channel) -> Result<String> {
    let message = wl::JwtsvidRequest {
        audience: vec!["bench".into()],
        spiffe_id: "spiffe://example.org/mine/0".into(),
    };
    let mut client = SpiffeWorkloadApiClient::new(channel.clone());
    let answer = client.fetch_jwtsvid(request(message)).await?.into_inner();
    Ok(answer.svids.into_iter().next().context("no JWT-SVID")?.svid)
}

/// Memory of 1,000 open streams, each on a connection of its own, and all on ten connections.
pub(crate) async fn streams(set: Set) -> Result<Vec<Figure>> {
    const STREAMS: usize = 1000;
    let mut figures = Vec::new();
    for (name, connections) in
        [("open stream on its own connection", STREAMS), ("open stream, 100 a connection", 10)]
    {
        let pair = pair(set.clone()).await?;
        let before = pair.agent.memory()?;
        let channels: Vec<Channel> = (0..connections).map(|_| api::unix(&pair.site.agent_socket())).collect();
        let mut streams = Vec::new();
        for n in 0..STREAMS {
            let mut stream = open(&channels[n % connections]).await?;
            stream.message().await?.context("stream ended")?;
            streams.push(stream);
        }
        figures.push(Figure::new(name, "KiB", (pair.agent.memory()? - before) / to_f64(STREAMS)));
        drop(streams);
    }
    Ok(figures)
}

/// From creating an entry to the update on a workload's open stream.
pub(crate) async fn delay(set: Set) -> Result<Vec<Figure>> {
    const TIMES: usize = 9;
    let pair = pair(set).await?;
    let channel = api::unix(&pair.site.agent_socket());
    let mut stream = open(&channel).await?;
    let mut seen = stream.message().await?.context("stream ended")?.svids.len();
    let mut delays = Vec::new();
    for n in 0..TIMES {
        let start = Instant::now();
        pair.one_more(&format!("/later/{n}")).await?;
        while stream.message().await?.context("stream ended")?.svids.len() <= seen {}
        seen += 1;
        delays.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(vec![Figure::new("entry to workload, median", "ms", median(&delays))])
}
