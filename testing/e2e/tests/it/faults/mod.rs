//! Two servers on one database under load, while everything below them fails: servers and database are killed, paused and
//! started again, the network between them is cut, held and slow, the disk fills up. What was acknowledged must be there
//! in the end, and nothing else.
//!
//! The run makes every fault once, in an order that its seed says (`SPIRE_E2E_FAULT_SEED`), and goes on for as long as
//! `SPIRE_E2E_FAULT_SECONDS` wants.

mod load;
mod storage;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::Failed;
use spire_testkit::proxy::Proxy;
use spire_testkit::{Daemon, Result, place, wait};

use crate::harness::site::{attestations, own_uid};
use crate::harness::{Case, Need, Outcome, Site};
use load::{Fate, Load};
use storage::Storage;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "faults::on_postgres", needs: &[Need::Ours, Need::Postgres], run: on_postgres },
        Case { name: "faults::on_mariadb", needs: &[Need::Ours, Need::Mariadb], run: on_mariadb },
    ]
}

/// A server that was killed on a busy machine is back in this time, and so is one that waited for its database.
const BACK: Duration = Duration::from_secs(120);

/// What can go wrong. Each is over before the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillServer(usize),
    KillDatabase,
    StopDatabase,
    PauseDatabase,
    FillDisk,
    Cut(usize),
    Hold(usize),
    Delay(usize),
    KillReplica,
    LagReplica,
}

const FAULTS: [Fault; 13] = [
    Fault::KillServer(0),
    Fault::KillServer(1),
    Fault::KillDatabase,
    Fault::StopDatabase,
    Fault::PauseDatabase,
    Fault::FillDisk,
    Fault::Cut(0),
    Fault::Cut(1),
    Fault::Hold(0),
    Fault::Hold(1),
    Fault::Delay(1),
    Fault::KillReplica,
    Fault::LagReplica,
];

fn on_postgres() -> Outcome {
    run(Storage::postgres()?)
}

fn on_mariadb() -> Outcome {
    run(Storage::mariadb()?)
}

/// A server, its way to the database, and an agent of its own.
struct Node {
    site: Site,
    proxy: Proxy,
    name: String,
}

impl Node {
    fn new(index: usize, storage: &Storage) -> Result<Self> {
        let proxy = Proxy::start(storage.port())?;
        let mut site = Site::new()?;
        site.server.datastore = Some(storage.settings(proxy.port()));
        Ok(Self { site, proxy, name: format!("spiffe://example.org/node-{index}") })
    }

    /// The one identity that workloads of this node always have.
    fn identity(&self) -> String {
        format!("{}/w", self.name)
    }

    /// One that they have now and then.
    fn other(&self) -> String {
        format!("{}/other", self.name)
    }
}

/// Says a sequence of numbers that only the seed decides (Knuth's MMIX).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % bound.max(1)
    }

    fn shuffled(&mut self) -> Vec<Fault> {
        let mut faults = FAULTS.to_vec();
        for at in (1..faults.len()).rev() {
            faults.swap(at, self.below(at + 1));
        }
        faults
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn run(mut storage: Storage) -> Outcome {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed = number("SPIRE_E2E_FAULT_SEED").unwrap_or(clock.as_secs());
    let nodes = [Node::new(0, &storage)?, Node::new(1, &storage)?];
    let mut servers: Vec<Daemon> = Vec::new();
    let mut agents = Vec::new();
    for node in &nodes {
        servers.push(node.site.start_server()?);
        agents.push(node.site.join(&node.name)?);
        node.site.entry(&node.name, &node.identity(), &own_uid(), &["-x509SVIDTTL", "120"])?;
        node.site.wait_identities(&[&node.identity()])?;
    }
    let load = Load::default();
    let mut done = Vec::new();
    let outcome = std::thread::scope(|scope| {
        let workers = load.start(scope, &nodes);
        let outcome = disturb(&nodes, &mut servers, &mut storage, seed, &mut done);
        load.stop.store(true, Ordering::Relaxed);
        let failed =
            workers.into_iter().map(|worker| worker.join().is_err()).fold(false, |any, one| any | one);
        match failed {
            true => Err("a worker panicked".into()),
            false => outcome,
        }
    });
    let told = |error: Failed| {
        let text = error.message().unwrap_or_default().to_owned();
        Failed::from(format!("{text}\nseed {seed}, after {done:?}"))
    };
    let judged = outcome.and_then(|()| settled(&nodes, &load)).and_then(|()| verdict(&storage, &load));
    if judged.is_err() {
        keep_logs(seed, servers.iter().chain(&agents))?;
    }
    let sum = judged.map_err(told)?;
    say(&format!("seed {seed}, {} faults: {sum}", done.len()));
    for (node, agent) in nodes.iter().zip(&agents) {
        assert_eq!(attestations(agent), 1, "{} kept its identity; seed {seed}", node.name);
    }
    Ok(())
}

/// Lets things last: a fault takes time to be one.
fn last(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// Makes the faults, one after the other.
fn disturb(
    nodes: &[Node; 2],
    servers: &mut [Daemon],
    storage: &mut Storage,
    seed: u64,
    done: &mut Vec<Fault>,
) -> Outcome {
    let seconds = Duration::from_secs(number("SPIRE_E2E_FAULT_SECONDS").unwrap_or(0));
    let start = Instant::now();
    let mut dice = Dice(seed);
    loop {
        for fault in dice.shuffled() {
            done.push(fault);
            make(fault, nodes, servers, storage)?;
            // Some work gets through in between.
            last(Duration::from_millis(500 + u64::try_from(dice.below(1000)).unwrap_or(0)));
        }
        if start.elapsed() >= seconds {
            return Ok(());
        }
    }
}

fn make(fault: Fault, nodes: &[Node; 2], servers: &mut [Daemon], storage: &mut Storage) -> Result<()> {
    match fault {
        Fault::KillServer(which) => {
            servers[which].kill()?;
            let site = &nodes[which].site;
            servers[which] = site.spawn_server()?;
            wait::until("server that is back", BACK, || {
                site.command(&["healthcheck"]).output().ok().filter(|output| output.code == 0)
            })?;
        }
        Fault::KillDatabase => {
            storage.kill()?;
            last(Duration::from_secs(1));
            storage.restart()?;
        }
        Fault::StopDatabase => {
            storage.stop()?;
            storage.restart()?;
        }
        Fault::PauseDatabase => {
            storage.pause();
            last(Duration::from_secs(3));
            storage.resume();
        }
        Fault::FillDisk => storage.fill_disk(|| last(Duration::from_secs(3)))?,
        Fault::Cut(which) => {
            nodes[which].proxy.cut();
            last(Duration::from_secs(2));
            nodes[which].proxy.mend();
        }
        Fault::Hold(which) => {
            nodes[which].proxy.hold();
            last(Duration::from_secs(3));
            // What was held is lost: the line was cut after all.
            nodes[which].proxy.reset();
            nodes[which].proxy.mend();
        }
        Fault::Delay(which) => {
            nodes[which].proxy.delay(Duration::from_millis(50));
            last(Duration::from_secs(3));
            nodes[which].proxy.mend();
        }
        Fault::KillReplica => storage.kill_replica()?,
        Fault::LagReplica => storage.lag_replica(|| last(Duration::from_secs(2)))?,
    }
    Ok(())
}

/// Waits until both servers work again, and workloads have what the last acknowledged change says.
fn settled(nodes: &[Node; 2], load: &Load) -> Outcome {
    for (index, node) in nodes.iter().enumerate() {
        wait::until("server that works again", BACK, || node.site.entry_ids().ok())?;
        let others = load.others.lock().map_err(|_| "poisoned")?;
        let mut wanted = vec![node.identity()];
        match others.get(&index) {
            Some(Fate::There) => wanted.push(node.other()),
            Some(Fate::Gone) | None => {}
            // Whichever it is, it may stay.
            Some(Fate::Unknown) => continue,
        }
        drop(others);
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        // It says what was there instead.
        let wait = || node.site.wait_identities(&wanted);
        wait().or_else(|_| wait()).or_else(|_| wait())?;
    }
    let refused = load.refused.lock().map_err(|_| "poisoned")?;
    if refused.is_empty() { Ok(()) } else { Err(format!("workloads were not served: {refused:#?}").into()) }
}

/// Writes the logs of a run that failed where they outlive it.
fn keep_logs<'a>(seed: u64, daemons: impl Iterator<Item = &'a Daemon>) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("spire-faults-{seed}"));
    for (number, daemon) in daemons.enumerate() {
        place::write(&folder.join(format!("{number}.log")), &daemon.lines().join("\n"))?;
    }
    say(&format!("logs are in {}", folder.display()));
    Ok(())
}

/// What a run was worth, for the records of whoever made it longer.
fn say(text: &str) {
    // Nobody to hear it is no failure.
    let _ = writeln!(std::io::stderr(), "faults: {text}");
}

/// Compares what is stored with what was acknowledged; the result says how much that was.
fn verdict(storage: &Storage, load: &Load) -> std::result::Result<String, Failed> {
    let mut stored: BTreeMap<String, (String, String)> = BTreeMap::new();
    for row in storage.rows("SELECT entry_id, spiffe_id, hint FROM registered_entries")? {
        let [id, spiffe_id, hint] = row.as_slice() else { return Err(format!("{row:?}").into()) };
        stored.insert(id.clone(), (spiffe_id.clone(), hint.clone()));
    }
    let known = load.entries.lock().map_err(|_| "poisoned")?;
    let mut wrong = Vec::new();
    let (mut made, mut deleted) = (0, 0);
    for (id, entry) in known.iter() {
        match (entry.fate, stored.get(id)) {
            (Fate::There, None) => wrong.push(format!("lost: {id}")),
            (Fate::Gone, Some(_)) => wrong.push(format!("came back: {id}")),
            (_, Some((_, hint))) if !entry.hints.contains(hint) => {
                wrong.push(format!("{id} has the hint {hint:?}, not one of {:?}", entry.hints));
            }
            (fate, _) => {
                made += usize::from(fate == Fate::There);
                deleted += usize::from(fate == Fate::Gone);
            }
        }
    }
    let mut twice: BTreeMap<&str, usize> = BTreeMap::new();
    for (spiffe_id, _) in stored.values().filter(|(spiffe_id, _)| spiffe_id.contains("/shared-")) {
        *twice.entry(spiffe_id).or_default() += 1;
    }
    wrong.extend(
        twice.iter().filter(|(_, count)| **count > 1).map(|(id, count)| format!("{count} times {id}")),
    );
    for (token, users) in load.tokens.lock().map_err(|_| "poisoned")?.iter().filter(|(_, users)| **users > 1)
    {
        wrong.push(format!("token {token} let in {users} agents"));
    }
    // Each entry with its selectors, and no selector without its entry.
    let halves =
        "SELECT COUNT(*) FROM registered_entries WHERE id NOT IN (SELECT registered_entry_id FROM selectors)";
    let strays =
        "SELECT COUNT(*) FROM selectors WHERE registered_entry_id NOT IN (SELECT id FROM registered_entries)";
    for question in [halves, strays] {
        let answer = storage.rows(question)?;
        if answer != [["0"]] {
            wrong.push(format!("{question}: {answer:?}"));
        }
    }
    if !wrong.is_empty() {
        return Err(wrong.join("\n").into());
    }
    // A run in which nothing worked shows nothing.
    if made < 10 || deleted == 0 || twice.is_empty() {
        return Err(
            format!("too little happened: {made} made, {deleted} deleted, {} shared", twice.len()).into()
        );
    }
    let tokens = load.tokens.lock().map_err(|_| "poisoned")?.len();
    Ok(format!(
        "{made} entries there, {deleted} deleted, {} of both servers, {tokens} tokens, nothing wrong",
        twice.len()
    ))
}
