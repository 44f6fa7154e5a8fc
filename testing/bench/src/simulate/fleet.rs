//! Agents by the thousand: each has an address, an SVID and a connection of its own, syncs in a period and renews SVIDs. They join
//! a few at a time, so that what is measured is their work and not ten thousand handshakes at once.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use spire_core::pki::{Certificate, LocalKey};
use spire_net::tls::Identity;
use spire_wire::api::server::svid::v1 as svid;
use spire_wire::api::server::svid::v1::svid_client::SvidClient;
use tonic::transport::Channel;

use super::fill::{self, AGENT_ENTRIES};
use crate::api::{self, AgentSide, AttestedAgent};
use crate::measure::to_f64;
use crate::process::{Process, Site};

/// Agents that attest at once.
const ATTESTING: usize = 32;

/// One sync in so many is followed by the renewal of an SVID.
const RENEWAL: usize = 6;

/// How long calls took, in milliseconds, sorted.
pub(super) struct Latencies {
    clients: usize,
    joined_in: Duration,
    seconds: f64,
    server_cpu: f64,
    memory_mib: f64,
    syncs: Vec<f64>,
    renewals: Vec<f64>,
    failed: usize,
}

/// Lets `clients` agents join, then work for `seconds`.
pub(super) async fn run(
    site: &Site,
    server: &Process,
    clients: usize,
    period: Duration,
    seconds: u64,
) -> Result<Latencies> {
    raise_open_files();
    let socket = api::unix(&site.server_socket());
    let side = Arc::new(AgentSide::new(&socket, site.port).await?);
    // One key for all: the server cannot tell, and keys would cost this side more than anything.
    let (key, csr) = api::csr(None)?;
    let key = Arc::new(key);
    let start = Instant::now();
    let agents: Vec<AttestedAgent> = stream::iter(0..clients)
        .map(|agent| join(side.clone(), agent, key.clone(), csr.clone()))
        .buffered(ATTESTING)
        .try_collect()
        .await?;
    let joined_in = start.elapsed();
    let before = server.cpu()?;
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    let work = agents.into_iter().enumerate().map(|(n, agent)| {
        // Spread over the period.
        let delay = period.mul_f64(to_f64(n) / to_f64(clients));
        tokio::spawn(one(agent, n, csr.clone(), begun + delay, period, end))
    });
    let mut latencies = Latencies {
        clients,
        joined_in,
        seconds: 0.0,
        server_cpu: 0.0,
        memory_mib: 0.0,
        syncs: Vec::new(),
        renewals: Vec::new(),
        failed: 0,
    };
    let mut first_failure = None;
    for task in work.collect::<Vec<_>>() {
        let done = task.await?;
        latencies.syncs.extend(done.syncs);
        latencies.renewals.extend(done.renewals);
        latencies.failed += done.failed;
        first_failure = first_failure.or(done.failure);
    }
    latencies.seconds = begun.elapsed().as_secs_f64();
    latencies.server_cpu = server.cpu()?.saturating_sub(before).as_secs_f64();
    latencies.memory_mib = server.memory()? / 1024.0;
    latencies.syncs.sort_by(f64::total_cmp);
    latencies.renewals.sort_by(f64::total_cmp);
    if let Some(failure) = first_failure {
        crate::say(&format!("the first of {} failures: {failure:#}", latencies.failed));
    }
    ensure!(!latencies.syncs.is_empty(), "no agent could sync");
    Ok(latencies)
}

/// 127.1.0.1 and on: all of 127/8 is this machine.
fn address(agent: usize) -> Ipv4Addr {
    let number = u32::try_from(agent).unwrap_or(0);
    Ipv4Addr::from_bits(0x7F01_0001 + number)
}

async fn join(side: Arc<AgentSide>, agent: usize, key: Arc<LocalKey>, csr: Bytes) -> Result<AttestedAgent> {
    let from = Some(address(agent).into());
    let svid = side.attest_from(from, fill::token(agent), csr).await.with_context(|| fill::token(agent))?;
    let chain =
        svid.cert_chain.into_iter().map(|der| Ok(Certificate::from_der(der)?)).collect::<Result<Vec<_>>>()?;
    let identity = Identity::empty();
    identity.replace(&chain, &key.to_pkcs8()?)?;
    let id = chain.first().context("empty chain")?.spiffe_id()?;
    let agent = AttestedAgent { id, channel: side.connect_from(from, Some(identity))? };
    // The connection is there when the work begins, and what the figures are of is right.
    let seen = crate::server::sync(&agent, true).await?;
    ensure!(seen == AGENT_ENTRIES, "{}: {seen} entries", agent.id);
    Ok(agent)
}

#[derive(Default)]
struct Done {
    syncs: Vec<f64>,
    renewals: Vec<f64>,
    failed: usize,
    failure: Option<anyhow::Error>,
}

/// One agent at work. A call is timed from when it was due, so that one that has to wait for the one before counts in full.
async fn one(
    agent: AttestedAgent,
    number: usize,
    csr: Bytes,
    first: Instant,
    period: Duration,
    end: Instant,
) -> Done {
    let mut done = Done::default();
    let mut due = first;
    let mut round = number;
    while due < end {
        tokio::time::sleep_until(due.into()).await;
        match crate::server::sync(&agent, false).await {
            Ok(_) => done.syncs.push(due.elapsed().as_secs_f64() * 1e3),
            Err(error) => {
                done.failed += 1;
                done.failure.get_or_insert(error);
            }
        }
        round += 1;
        if round.is_multiple_of(RENEWAL) {
            let start = Instant::now();
            match renew(&agent.channel, number, csr.clone()).await {
                Ok(()) => done.renewals.push(start.elapsed().as_secs_f64() * 1e3),
                Err(error) => {
                    done.failed += 1;
                    done.failure.get_or_insert(error);
                }
            }
        }
        due += period;
    }
    done
}

async fn renew(channel: &Channel, agent: usize, csr: Bytes) -> Result<()> {
    let entry_id = fill::entry_id(agent * AGENT_ENTRIES);
    let params = vec![svid::NewX509svidParams { entry_id, csr }];
    let request = svid::BatchNewX509svidRequest { params };
    let answer = SvidClient::new(channel.clone()).batch_new_x509svid(request).await?.into_inner();
    ensure!(answer.results.iter().all(|r| r.svid.is_some()), "not signed: {:?}", answer.results);
    Ok(())
}

/// The value below which so many of a thousand are.
fn of_thousand(sorted: &[f64], share: usize) -> f64 {
    let at = (sorted.len() * share / 1000).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

impl Latencies {
    pub(super) fn text(&self) -> String {
        let rate = |calls: &[f64]| to_f64(calls.len()) / self.seconds;
        let mut text = format!(
            "{} agents joined within {:.1} s; {:.0} s of work took {:.1} s of the server's CPU, its memory is {:.0} MiB",
            self.clients,
            self.joined_in.as_secs_f64(),
            self.seconds,
            self.server_cpu,
            self.memory_mib
        );
        for (name, calls) in [("syncs", &self.syncs), ("renewals", &self.renewals)] {
            let _ = write!(
                text,
                "\n{name:<9} {:>7.0}/s  p50 {:>8.1} ms  p99 {:>8.1} ms  p99.9 {:>8.1} ms  max {:>8.1} ms",
                rate(calls),
                of_thousand(calls, 500),
                of_thousand(calls, 990),
                of_thousand(calls, 999),
                of_thousand(calls, 1000)
            );
        }
        let _ = write!(text, "\nfailed: {}", self.failed);
        text
    }

    /// How many of a thousand syncs take longer than so many milliseconds.
    pub(super) fn distribution(&self) -> Vec<(f64, f64)> {
        [1, 5, 10, 50, 100, 200, 500, 900]
            .into_iter()
            .map(|longer| (of_thousand(&self.syncs, 1000 - longer).max(0.01), to_f64(longer)))
            .collect()
    }
}

/// As many connections as the system allows; a failure shows when they run out.
fn raise_open_files() {
    spire_net::uds::raise_open_file_limit();
}
