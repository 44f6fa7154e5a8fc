//! `spire-bench simulate`: servers whose databases are filled with entries and agents up to millions, and a fleet of agents
//! against the largest. What it measures and how stands in docs/performance.md.

mod fill;
mod fleet;
mod plot;
mod postgres;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use spire_wire::api::server::entry::v1 as entry;
use spire_wire::api::server::entry::v1::entry_client::EntryClient;
use tonic::transport::Channel;

use crate::api::{self, MESSAGE_MAX};
use crate::figure::median;
use crate::measure::to_f64;
use crate::process::{Process, Site};
use crate::{Set, say};
use fill::AGENT_ENTRIES;
use fleet::Latencies;
use plot::{Plot, Scale, Series};
use postgres::{Postgres, Schema};

/// Entries of a page.
const PAGE: i32 = 500;

/// Most entries that are filled in, and most agents that connect: each takes two file descriptors here.
const ENTRIES_MAX: usize = 10_000_000;
const CLIENTS_MAX: usize = 50_000;

/// What the command line asks for.
struct Options {
    sets: Vec<Set>,
    /// Numbers of entries, ascending.
    sizes: Vec<usize>,
    /// Sets that are not filled further, since they would take hours.
    at_most: Vec<(String, usize)>,
    clients: usize,
    seconds: u64,
    period: Duration,
    idle: Duration,
    changes: usize,
    plots: Option<PathBuf>,
    /// Where the databases are, if not in files.
    postgres: Option<Postgres>,
}

/// What was measured with one number of entries.
struct Point {
    entries: usize,
    ready_cpu: f64,
    ready_wall: f64,
    memory_mib: f64,
    entry_bytes: f64,
    idle_percent: f64,
    change_cpu_us: f64,
    change_ms: f64,
    pages_cpu_us: [f64; 3],
}

struct Measured {
    set: Set,
    points: Vec<Point>,
    fleet: Option<Latencies>,
}

/// Runs the simulation that the arguments describe.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let options = parse(arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut all = Vec::new();
        for set in &options.sets {
            all.push(simulate(&options, set).await.with_context(|| set.name.clone())?);
        }
        if let Some(folder) = &options.plots {
            std::fs::create_dir_all(folder)?;
            for (name, plot) in plots(&all) {
                std::fs::write(folder.join(name), plot.svg())?;
            }
        }
        Ok(())
    })
}

async fn simulate(options: &Options, set: &Set) -> Result<Measured> {
    let limit = options.at_most.iter().find(|(name, _)| *name == set.name).map(|(_, limit)| *limit);
    let sizes: Vec<usize> =
        options.sizes.iter().copied().filter(|size| limit.is_none_or(|limit| *size <= limit)).collect();
    say(&format!(
        "{:<8} {:>9} {:>10} {:>10} {:>9} {:>8} {:>7} {:>10} {:>9} {:>24}",
        set.name,
        "entries",
        "ready CPU",
        "ready",
        "memory",
        "B/entry",
        "idle",
        "change",
        "",
        "page: first, middle, last"
    ));
    let empty = {
        let (site, schema) = site(options, set).await?;
        let server = site.server().await?;
        tokio::time::sleep(options.idle).await;
        let memory = server.memory()?;
        drop(server);
        end(schema).await?;
        memory
    };
    let mut measured = Measured { set: set.clone(), points: Vec::new(), fleet: None };
    for (n, size) in sizes.iter().enumerate() {
        let is_last = n + 1 == sizes.len();
        let clients = if is_last { options.clients.min(size / AGENT_ENTRIES) } else { 0 };
        let (site, schema) = site(options, set).await?;
        // The first start makes the schema and the authorities.
        drop(site.server().await?);
        let filled = *size;
        match &schema {
            Some(schema) => schema.fill(filled, clients).await?,
            None => {
                let database = site.database();
                tokio::task::spawn_blocking(move || fill::fill(&database, filled, clients)).await??;
            }
        }
        let server = site.server().await?;
        let point = point(options, &site, &server, *size, empty).await?;
        say(&row(&point));
        measured.points.push(point);
        if clients > 0 {
            let latencies = fleet::run(&site, &server, clients, options.period, options.seconds).await?;
            say(&latencies.text());
            measured.fleet = Some(latencies);
        }
        drop(server);
        end(schema).await?;
    }
    Ok(measured)
}

/// A new server, and its schema where it is on PostgreSQL.
async fn site(options: &Options, set: &Set) -> Result<(Site, Option<Schema>)> {
    let Some(postgres) = &options.postgres else { return Ok((Site::new(set.clone())?, None)) };
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("spire_bench_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let schema = postgres.schema(&name).await?;
    Ok((Site::on_postgres(set.clone(), schema.connection_string.clone())?, Some(schema)))
}

async fn end(schema: Option<Schema>) -> Result<()> {
    match schema {
        Some(schema) => schema.end().await,
        None => Ok(()),
    }
}

async fn point(
    options: &Options,
    site: &Site,
    server: &Process,
    entries: usize,
    empty: f64,
) -> Result<Point> {
    let ready_cpu = server.cpu()?.as_secs_f64();
    let channel = api::unix(&site.server_socket());
    // What the start left to be done is not idleness; the allocator gives memory back meanwhile.
    tokio::time::sleep(options.idle).await;
    let before = server.cpu()?;
    tokio::time::sleep(options.idle).await;
    let idle = server.cpu()?.saturating_sub(before).as_secs_f64() / options.idle.as_secs_f64();
    let memory = server.memory()?;
    let (change_cpu_us, change_ms) = changes(&channel, server, entries, options.changes).await?;
    let mut pages_cpu_us = [0.0; 3];
    for (cost, start) in pages_cpu_us.iter_mut().zip([0, entries / 2, entries.saturating_sub(500)]) {
        *cost = pages(&channel, server, start, options.changes / 4).await?;
    }
    Ok(Point {
        entries,
        ready_cpu,
        ready_wall: server.started_in.as_secs_f64(),
        memory_mib: memory / 1024.0,
        entry_bytes: (memory - empty) * 1024.0 / to_f64(entries),
        idle_percent: idle * 100.0,
        change_cpu_us,
        change_ms,
        pages_cpu_us,
    })
}

/// Changes one entry a call; CPU of the server and the median latency.
async fn changes(channel: &Channel, server: &Process, entries: usize, count: usize) -> Result<(f64, f64)> {
    let mut client = EntryClient::new(channel.clone());
    let mut latencies = Vec::new();
    let mut before = server.cpu()?;
    let warm = count / 10;
    for n in 0..count + warm {
        if n == warm {
            before = server.cpu()?;
            latencies.clear();
        }
        // Far from each other, as changes are.
        let number = n * 7919 % entries;
        let mut changed = fill::entry(number);
        changed.x509_svid_ttl = 60 + i32::try_from(n % 1000)?;
        let start = std::time::Instant::now();
        let request = entry::BatchUpdateEntryRequest { entries: vec![changed], ..Default::default() };
        let results = client.batch_update_entry(request).await?.into_inner().results;
        ensure!(
            results.iter().all(|r| r.status.as_ref().is_some_and(|s| s.code == 0)),
            "not changed: {results:?}"
        );
        latencies.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let cpu = server.cpu()?.saturating_sub(before);
    Ok((cpu.as_secs_f64() * 1e6 / to_f64(count), median(&latencies)))
}

/// Lists the page behind the row `start`, whose number is a page token of both implementations; CPU of the server a page.
async fn pages(channel: &Channel, server: &Process, start: usize, count: usize) -> Result<f64> {
    let mut client = EntryClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX);
    let page_token = if start == 0 { String::new() } else { start.to_string() };
    let mut before = server.cpu()?;
    let (count, warm) = (count.max(1), count / 10);
    for n in 0..count + warm {
        if n == warm {
            before = server.cpu()?;
        }
        let request = entry::ListEntriesRequest {
            page_size: PAGE,
            page_token: page_token.clone(),
            ..Default::default()
        };
        let page = client.list_entries(request).await?.into_inner();
        ensure!(!page.entries.is_empty(), "an empty page behind {start}");
    }
    Ok(server.cpu()?.saturating_sub(before).as_secs_f64() * 1e6 / to_f64(count))
}

fn row(point: &Point) -> String {
    let [first, middle, last] = point.pages_cpu_us;
    let mut row = String::new();
    let _ = write!(
        row,
        "{:<8} {:>9} {:>8.2} s {:>8.2} s {:>5.1} MiB {:>8.0} {:>6.2}% {:>7.0} µs {:>6.2} ms {first:>8.0} {middle:>6.0} \
         {last:>6.0} µs",
        "",
        point.entries,
        point.ready_cpu,
        point.ready_wall,
        point.memory_mib,
        point.entry_bytes,
        point.idle_percent,
        point.change_cpu_us,
        point.change_ms
    );
    row
}

/// The growth curves.
fn plots(all: &[Measured]) -> Vec<(&'static str, Plot)> {
    let curve = |of: fn(&Point) -> f64| -> Vec<Series> {
        all.iter()
            .map(|measured| Series {
                name: measured.set.name.clone(),
                points: measured.points.iter().map(|p| (to_f64(p.entries), of(p))).collect(),
            })
            .collect()
    };
    let plot = |title, y, scale, series| Plot { title, x: "entries", y, scale, series };
    let mut plots = vec![
        ("ready.svg", plot("Start until ready", "CPU seconds", Scale::Log, curve(|p| p.ready_cpu.max(0.01)))),
        ("memory.svg", plot("Memory of the server", "MiB", Scale::Log, curve(|p| p.memory_mib))),
        (
            "change.svg",
            plot("Change of one entry", "CPU µs", Scale::Log, curve(|p| p.change_cpu_us.max(1.0))),
        ),
        (
            "page.svg",
            plot("Page of 500 in the middle", "CPU µs", Scale::Log, curve(|p| p.pages_cpu_us[1].max(1.0))),
        ),
        (
            "idle.svg",
            plot("While nobody asks", "% of a core", Scale::Log, curve(|p| p.idle_percent.max(0.01))),
        ),
    ];
    let fleets: Vec<Series> = all
        .iter()
        .filter_map(|measured| {
            let fleet = measured.fleet.as_ref()?;
            Some(Series { name: measured.set.name.clone(), points: fleet.distribution() })
        })
        .collect();
    if !fleets.is_empty() {
        let title = "Agents: how many calls of a thousand take longer";
        plots.push(("fleet.svg", Plot { title, x: "ms", y: "of 1,000", scale: Scale::Log, series: fleets }));
    }
    plots
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options {
        sets: Vec::new(),
        sizes: vec![1_000, 10_000, 100_000, 1_000_000],
        at_most: Vec::new(),
        clients: 10_000,
        seconds: 60,
        period: Duration::from_secs(10),
        idle: Duration::from_secs(20),
        changes: 400,
        plots: None,
        postgres: None,
    };
    let mut left = arguments.iter();
    while let Some(argument) = left.next() {
        let mut value = || left.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "-entries" => {
                let sizes = value()?
                    .split(',')
                    .map(|n| n.parse().context("-entries"))
                    .collect::<Result<Vec<usize>>>();
                options.sizes = sizes?;
            }
            "-at-most" => {
                let (name, limit) = value()?.split_once('=').context("-at-most NAME=ENTRIES")?;
                options.at_most.push((name.to_owned(), limit.parse().context("-at-most")?));
            }
            "-clients" => options.clients = value()?.parse().context("-clients")?,
            "-seconds" => options.seconds = value()?.parse().context("-seconds")?,
            "-period" => options.period = Duration::from_secs(value()?.parse().context("-period")?),
            "-idle" => options.idle = Duration::from_secs(value()?.parse().context("-idle")?),
            "-changes" => options.changes = value()?.parse().context("-changes")?,
            "-postgres" => options.postgres = Some(Postgres::new(value()?)?),
            "-plots" => options.plots = Some(value()?.into()),
            set => {
                let Some((name, folder)) = set.split_once('=') else { bail!("{USAGE}") };
                options.sets.push(Set { name: name.to_owned(), folder: folder.into() });
            }
        }
    }
    let bounded = options.sizes.iter().all(|size| (AGENT_ENTRIES..=ENTRIES_MAX).contains(size))
        && options.sizes.is_sorted()
        && options.clients <= CLIENTS_MAX
        && (1..=100_000).contains(&options.changes)
        && !options.idle.is_zero()
        && !options.period.is_zero();
    if options.sets.is_empty() || !bounded {
        bail!("{USAGE}");
    }
    Ok(options)
}

const USAGE: &str = "usage: spire-bench simulate NAME=FOLDER… [-entries 1000,10000,100000,1000000] [-at-most NAME=ENTRIES] \
                     [-clients 10000] [-seconds 60] [-period 10] [-idle 20] [-changes 400] [-plots FOLDER] \
                     [-postgres 'host=… user=…']
-entries: ascending, from 10 on; there is an agent for every ten of them
-clients: agents that connect at the last size; each syncs once in -period seconds and renews an SVID every sixth time
-postgres: connection string (key=value pairs, no TLS) of a database in which schemas can be made, instead of SQLite";
