//! Ten thousand streams of one agent, all of which change at once.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::stream::{self, StreamExt as _};
use spire_wire::api::server::localauthority::v1 as authority;
use spire_wire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use spire_wire::workload::X509svidResponse;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::agent::{self, IDENTITIES, Pair};
use crate::figure::Figure;
use crate::measure::to_f64;
use crate::{Set, api, say};

const STREAMS: usize = 10_000;

/// The fewest connections that are tried: what one connection carries, our agent bounds (4,096 streams).
const CONNECTIONS_MIN: usize = 100;

/// Descriptors of either side that are no connections of the crowd.
const OTHER_FILES: u64 = 400;

/// Streams that are being opened at once.
const OPENING: usize = 32;

/// For an update to reach all; the reference asks its server every five seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// Time from an entry, and from a tainted authority, to the first and the last of all streams, and what that takes of the agent.
pub(crate) async fn rotation(set: Set) -> Result<Vec<Figure>> {
    let name = set.name.clone();
    let pair = agent::pair(set).await?;
    let before = pair.agent.memory()?;
    let (connections, streams) = spread(&name, &pair).await?;
    let mut crowd = Crowd::start(streams);
    crowd.all(Instant::now(), |seen| seen.svids.len() == IDENTITIES).await.context("first messages")?;
    let with = pair.agent.memory()?;

    let event = Instant::now();
    let cpu = pair.agent.cpu()?;
    pair.one_more("/one-more").await?;
    let entry = crowd.all(event, |seen| seen.svids.len() > IDENTITIES).await.context("entry")?;
    let entry_cpu = pair.agent.cpu()?.saturating_sub(cpu);

    let old: HashSet<u64> = crowd.newest.iter().flat_map(|seen| seen.svids.iter().copied()).collect();
    let mut authorities = LocalAuthorityClient::new(pair.socket.clone());
    let roots = crowd.newest.iter().map(|seen| seen.roots).max().unwrap_or(0);
    let tainted = next_authority(&mut authorities).await?;
    // Those who rotate are to trust the new authority first.
    crowd.all(Instant::now(), |seen| seen.roots > roots).await.context("new authority")?;
    let event = Instant::now();
    let cpu = pair.agent.cpu()?;
    let request = authority::TaintX509AuthorityRequest { authority_id: tainted };
    authorities.taint_x509_authority(request).await?;
    let is_rotated = |seen: &Seen| seen.svids.iter().all(|svid| !old.contains(svid));
    let rotated = crowd.all(event, is_rotated).await.context("tainted authority")?;
    let rotated_cpu = pair.agent.cpu()?.saturating_sub(cpu);

    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / to_f64(STREAMS);
    Ok(vec![
        Figure::new("crowd: connections of 10,000 streams", "", to_f64(connections)),
        Figure::new("crowd: entry to the first stream", "ms", entry.first),
        Figure::new("crowd: entry to the last stream", "ms", entry.last),
        Figure::new("crowd: CPU a stream, new entry", "CPU µs", each(entry_cpu)),
        Figure::new("crowd: tainted key to the first stream", "ms", rotated.first),
        Figure::new("crowd: tainted key to the last stream", "ms", rotated.last),
        Figure::new("crowd: from the first to the last", "ms", rotated.last - rotated.first),
        Figure::new("crowd: CPU a stream, rotation", "CPU µs", each(rotated_cpu)),
        Figure::new("crowd: agent memory before", "MiB", before / 1024.0),
        Figure::new("crowd: agent memory with streams", "MiB", with / 1024.0),
        Figure::new("crowd: agent memory afterwards", "MiB", pair.agent.memory()? / 1024.0),
        Figure::new("crowd: agent memory, peak", "MiB", pair.agent.memory_peak()? / 1024.0),
    ])
}

/// Prepares and activates an authority, and says which is to be tainted.
async fn next_authority(client: &mut LocalAuthorityClient<Channel>) -> Result<String> {
    let state = client.get_x509_authority_state(authority::GetX509AuthorityStateRequest {}).await?;
    let old = state.into_inner().active.context("no active authority")?.authority_id;
    let prepared = client.prepare_x509_authority(authority::PrepareX509AuthorityRequest {}).await?;
    let new = prepared.into_inner().prepared_authority.context("no prepared authority")?.authority_id;
    client.activate_x509_authority(authority::ActivateX509AuthorityRequest { authority_id: new }).await?;
    Ok(old)
}

/// All streams, over as many connections as the limit of open files carries here and in the agent. Where an agent takes fewer,
/// which is said, over half of them.
async fn spread(name: &str, pair: &Pair) -> Result<(usize, Vec<Streaming<X509svidResponse>>)> {
    // Our agent lets half of its files be connections, and a quarter of those be one user's who is not root.
    let files = spire_net::uds::raise_open_file_limit();
    let share = usize::try_from(files.saturating_sub(OTHER_FILES) / 2).unwrap_or(STREAMS);
    let share = if agent::own_uid()? == "uid:0" { share } else { (share / 4).min(4000) };
    let mut connections = share.clamp(CONNECTIONS_MIN, STREAMS);
    loop {
        match open(pair, connections).await {
            Ok(streams) => return Ok((connections, streams)),
            Err(error) if connections / 2 >= CONNECTIONS_MIN => {
                say(&format!("{name}: not over {connections} connections ({error:#})"));
                connections /= 2;
                // What was open is closed by now, and the agent is to have noticed.
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            Err(error) => return Err(error.context(format!("{connections} connections"))),
        }
    }
}

async fn open(pair: &Pair, connections: usize) -> Result<Vec<Streaming<X509svidResponse>>> {
    let socket = pair.site.agent_socket();
    let channels: Vec<Channel> = (0..connections).map(|_| api::unix(&socket)).collect();
    let opening = stream::iter(0..STREAMS).map(|n| {
        let channel = &channels[n % connections];
        async move { tokio::time::timeout(PATIENCE, agent::open(channel)).await? }
    });
    let mut opening = opening.buffer_unordered(OPENING);
    let mut open = Vec::with_capacity(STREAMS);
    while let Some(stream) = opening.next().await {
        open.push(stream?);
    }
    Ok(open)
}

/// What a stream said last.
#[derive(Clone, Default)]
struct Seen {
    /// A number for each SVID.
    svids: Vec<u64>,
    /// Octets of the trust domain's authorities.
    roots: usize,
}

struct Report {
    stream: usize,
    at: Instant,
    seen: Seen,
}

/// Streams that are read all the time.
struct Crowd {
    reports: mpsc::Receiver<Report>,
    newest: Vec<Seen>,
    /// End with this value.
    _readers: JoinSet<()>,
}

/// Milliseconds since an event.
struct Reached {
    first: f64,
    last: f64,
}

impl Crowd {
    fn start(streams: Vec<Streaming<X509svidResponse>>) -> Self {
        let (sender, reports) = mpsc::channel(STREAMS);
        let newest = vec![Seen::default(); streams.len()];
        let mut readers = JoinSet::new();
        for (stream, mut messages) in streams.into_iter().enumerate() {
            let sender = sender.clone();
            readers.spawn(async move {
                while let Ok(Some(message)) = messages.message().await {
                    let report = Report { stream, at: Instant::now(), seen: seen(&message) };
                    if sender.send(report).await.is_err() {
                        return;
                    }
                }
            });
        }
        Self { reports, newest, _readers: readers }
    }

    /// Waits until the newest message of each stream is so, and says how long after `event` the first and the last one were.
    async fn all(&mut self, event: Instant, is_so: impl Fn(&Seen) -> bool) -> Result<Reached> {
        let mut reached: Vec<bool> = self.newest.iter().map(&is_so).collect();
        let mut left = reached.iter().filter(|reached| !**reached).count();
        let (mut first, mut last) = (None, event);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while left > 0 {
            let report = tokio::time::timeout_at(deadline, self.reports.recv()).await;
            let Report { stream, at, seen } = report
                .with_context(|| format!("{left} streams were not updated"))?
                .context("streams ended")?;
            if is_so(&seen) && !std::mem::replace(&mut reached[stream], true) {
                first = Some(first.map_or(at, |first: Instant| first.min(at)));
                last = last.max(at);
                left -= 1;
            }
            self.newest[stream] = seen;
        }
        ensure!(reached.len() == STREAMS, "{} streams", reached.len());
        let since = |at: Instant| at.saturating_duration_since(event).as_secs_f64() * 1e3;
        Ok(Reached { first: since(first.unwrap_or(last)), last: since(last) })
    }
}

fn seen(message: &X509svidResponse) -> Seen {
    let number = |octets: &[u8]| {
        let mut hasher = DefaultHasher::new();
        octets.hash(&mut hasher);
        hasher.finish()
    };
    Seen {
        svids: message.svids.iter().map(|svid| number(&svid.x509_svid)).collect(),
        roots: message.svids.first().map_or(0, |svid| svid.bundle.len()),
    }
}
