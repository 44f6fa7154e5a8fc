//! The benchmark: starts any pair of `spire-server` and `spire-agent` binaries and prints what an operation costs.
//!
//! ```text
//! spire-bench ours=target/release spire=/opt/spire/bin [-only mint,list] [-rounds 3]
//! spire-bench simulate ours=target/release spire=/opt/spire/bin -at-most spire=100000
//! ```
//!
//! Each argument `name=folder` is a set of binaries. All sets run one after the other in one run, figure by figure, so that
//! a machine that is slower for a while is slower for all of them; the ratios are of the first set over each other.
//! The main figure is CPU time of the measured process (user and system) over operations, which other
//! load on the machine disturbs least. Everything talks over loopback and unix sockets, and every loop is bounded.

mod agent;
mod api;
mod crowd;
mod figure;
mod measure;
mod oidc;
mod process;
mod scale;
mod server;
mod simulate;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use figure::{Figure, Table};

/// One set of binaries.
#[derive(Clone, Debug)]
struct Set {
    name: String,
    folder: PathBuf,
}

/// What the command line asks for.
struct Options {
    sets: Vec<Set>,
    only: Vec<String>,
    rounds: usize,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("spire-bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    if let Some((command, rest)) = arguments.split_first()
        && command == "simulate"
    {
        return simulate::run(rest);
    }
    let options = parse(arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut table = Table::new(options.sets.iter().map(|s| s.name.clone()).collect());
    runtime.block_on(async {
        for (group, figures) in GROUPS {
            if !options.only.is_empty() && !options.only.iter().any(|only| only == group) {
                continue;
            }
            for _ in 0..options.rounds {
                for (column, set) in options.sets.iter().enumerate() {
                    let measured: Vec<Figure> =
                        figures(set.clone()).await.with_context(|| format!("{group} of {}", set.name))?;
                    table.add(column, measured);
                }
            }
            say(&table.take_printed());
        }
        Ok(())
    })
}

/// A group of figures that share a set-up, measured on one set of binaries.
type Measure = fn(Set) -> std::pin::Pin<Box<dyn Future<Output = Result<Vec<Figure>>>>>;

const GROUPS: &[(&str, Measure)] = &[
    ("start", |set| Box::pin(start(set))),
    ("mint", |set| Box::pin(server::mint(set))),
    ("entries", |set| Box::pin(server::entries(set))),
    ("attest", |set| Box::pin(server::attest(set))),
    ("sync", |set| Box::pin(server::sync_and_sign(set))),
    ("workload", |set| Box::pin(agent::workload(set))),
    ("streams", |set| Box::pin(agent::streams(set))),
    ("crowd", |set| Box::pin(crowd::rotation(set))),
    ("delay", |set| Box::pin(agent::delay(set))),
    ("oidc", |set| Box::pin(oidc::documents(set))),
    ("scale", |set| Box::pin(scale::fifty_thousand(set))),
];

async fn start(set: Set) -> Result<Vec<Figure>> {
    let mut figures = server::start(set.clone()).await?;
    figures.extend(agent::start(set).await?);
    Ok(figures)
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options { sets: Vec::new(), only: Vec::new(), rounds: 1 };
    let mut left = arguments.iter();
    while let Some(argument) = left.next() {
        let mut value = || left.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "-only" => options.only = value()?.split(',').map(str::to_owned).collect(),
            "-rounds" => options.rounds = value()?.parse().context("-rounds")?,
            set => {
                let Some((name, folder)) = set.split_once('=') else { bail!("{}", usage()) };
                options.sets.push(Set { name: name.to_owned(), folder: folder.into() });
            }
        }
    }
    for only in &options.only {
        if !GROUPS.iter().any(|(group, _)| group == only) {
            bail!("no group {only:?}\n{}", usage());
        }
    }
    if options.sets.is_empty() || options.rounds == 0 || options.rounds > 20 {
        bail!("{}", usage());
    }
    Ok(options)
}

fn usage() -> String {
    let groups: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).collect();
    format!("usage: spire-bench NAME=FOLDER… [-only GROUP,…] [-rounds 1..20]\ngroups: {}", groups.join(", "))
}

/// Prints to the person who runs the benchmark.
#[expect(clippy::print_stdout, reason = "the table is the output")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
