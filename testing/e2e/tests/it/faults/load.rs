//! What goes on meanwhile: entries are made, changed and deleted, tokens used twice, workloads served. Everything is noted
//! by what its answer was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use spire_core::time::Timestamp;
use spire_testkit::{Daemon, Result, config, place, wait};

use super::{Node, last};
use crate::harness::site::{own_uid, text};

/// How long an agent with a token that may be used already tries.
const JOINING: Duration = Duration::from_secs(25);

/// A server that was killed is back before.
const SERVED: Duration = Duration::from_secs(90);

/// How long an identity that comes and goes stays, and stays away.
const FLIP_EVERY: Duration = Duration::from_secs(3);

/// What became of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It was acknowledged.
    There,
    /// Its end was acknowledged.
    Gone,
    /// The last answer was an error, behind which either may be true.
    Unknown,
}

/// An entry that a worker made.
pub(super) struct Known {
    pub(super) fate: Fate,
    /// Those that it may have: the one that was acknowledged last, and later ones without an answer.
    pub(super) hints: BTreeSet<String>,
}

/// All that was done.
#[derive(Default)]
pub(super) struct Load {
    pub(super) stop: AtomicBool,
    pub(super) entries: Mutex<BTreeMap<String, Known>>,
    /// How many agents came in with a token.
    pub(super) tokens: Mutex<BTreeMap<String, usize>>,
    /// The identity that a node's workloads have now and then.
    pub(super) others: Mutex<BTreeMap<usize, Fate>>,
    /// What workloads were told instead of their identity.
    pub(super) refused: Mutex<Vec<String>>,
}

fn with<T, R>(shared: &Mutex<T>, work: impl FnOnce(&mut T) -> R) -> R {
    work(&mut shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

impl Load {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Starts all workers.
    pub(super) fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        nodes: &'scope [Node; 2],
    ) -> Vec<ScopedJoinHandle<'scope, ()>> {
        let mut workers = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            workers.push(scope.spawn(move || self.change_entries(index, node)));
            workers.push(scope.spawn(move || self.serve(node)));
            workers.push(scope.spawn(move || self.come_and_go(index, node)));
        }
        workers.push(scope.spawn(move || self.use_tokens(nodes)));
        workers
    }

    /// Makes, changes and deletes entries of its own, and makes some that the other server is asked for as well.
    fn change_entries(&self, worker: usize, node: &Node) {
        let mut own: Vec<String> = Vec::new();
        for turn in 0_usize.. {
            if self.stopped() {
                return;
            }
            match (turn % 5, own.is_empty()) {
                (0 | 1, _) | (_, true) => {
                    let id = format!("e{worker}-{turn}");
                    if self.create(node, &id) {
                        own.push(id);
                    }
                }
                (2, false) => self.update(node, &own[turn % own.len()], turn),
                (3, false) if own.len() > 3 => self.delete(node, &own.remove(turn % own.len())),
                _ => {
                    // By turns both come to the same; who comes second is told that it exists.
                    let id = format!("spiffe://example.org/shared-{}", turn / 5);
                    let args =
                        ["entry", "create", "-parentID", &node_zero(), "-spiffeID", &id, "-selector", "t:t"];
                    let _ = node.site.command(&args).output();
                }
            }
        }
    }

    fn create(&self, node: &Node, id: &str) -> bool {
        let spiffe_id = format!("spiffe://example.org/{id}");
        let new = Known { fate: Fate::Unknown, hints: BTreeSet::from([String::new()]) };
        with(&self.entries, |entries| entries.insert(id.to_owned(), new));
        let args = ["entry", "create", "-entryID", id, "-parentID", &node.name, "-spiffeID", &spiffe_id];
        let made = node.site.command(&args).args(&["-selector", "t:t"]).output();
        let made = made.is_ok_and(|output| output.code == 0 && output.stdout.contains(id));
        if made {
            self.note(id, |known| known.fate = Fate::There);
        }
        made
    }

    fn update(&self, node: &Node, id: &str, turn: usize) {
        let (spiffe_id, hint) = (format!("spiffe://example.org/{id}"), format!("h{turn}"));
        self.note(id, |known| {
            known.hints.insert(hint.clone());
        });
        let args = ["entry", "update", "-entryID", id, "-parentID", &node.name, "-spiffeID", &spiffe_id];
        let done = node.site.command(&args).args(&["-selector", "t:t", "-hint", &hint]).output();
        if done.is_ok_and(|output| output.code == 0) {
            self.note(id, |known| known.hints = BTreeSet::from([hint]));
        }
    }

    fn note(&self, id: &str, change: impl FnOnce(&mut Known)) {
        with(&self.entries, |entries| {
            if let Some(known) = entries.get_mut(id) {
                change(known);
            }
        });
    }

    fn delete(&self, node: &Node, id: &str) {
        self.note(id, |known| known.fate = Fate::Unknown);
        let done = node.site.command(&["entry", "delete", "-entryID", id]).output();
        if done.is_ok_and(|output| output.code == 0) {
            self.note(id, |known| known.fate = Fate::Gone);
        }
    }

    /// Asks the agent for the identity of this process, over and over: it is there all the time, valid, and nothing is
    /// there that no entry gives. An identity that is new while the server is away keeps who asks waiting until the server is
    /// back, as with the reference.
    fn serve(&self, node: &Node) {
        while !self.stopped() {
            let fetch = node.site.workload(&["api", "fetch", "x509", "-timeout", "90s"]).at_most(SERVED * 2);
            let told = match fetch.output() {
                Ok(output) if output.code == 0 => output,
                Ok(output) => {
                    with(&self.refused, |refused| refused.push(output.to_string()));
                    continue;
                }
                Err(error) => {
                    with(&self.refused, |refused| refused.push(error.to_string()));
                    continue;
                }
            };
            let (expected, other) = (node.identity(), node.other());
            let of = |label: &'static str| {
                let lines = told.stdout.lines().filter_map(move |line| line.strip_prefix(label));
                lines.map(str::trim).map(str::to_owned).collect::<Vec<_>>()
            };
            let ids = of("SPIFFE ID:");
            let strange = ids.iter().any(|id| *id != expected && *id != other);
            let stale = of("SVID Valid Until:").iter().any(|until| *until < now());
            if strange || stale || !ids.contains(&expected) {
                with(&self.refused, |refused| refused.push(told.to_string()));
            }
        }
    }

    /// Gives the workloads of a node another identity and takes it away again. Each time it stays for a while: who asks
    /// for its identities gets them when all are signed.
    fn come_and_go(&self, index: usize, node: &Node) {
        let id = format!("other-{index}");
        let note = |fate: Fate| {
            with(&self.others, |others| others.insert(index, fate));
        };
        let mut there = false;
        while !self.stopped() {
            last(FLIP_EVERY);
            note(Fate::Unknown);
            let run = if there {
                node.site.command(&["entry", "delete", "-entryID", &id])
            } else {
                let args =
                    ["entry", "create", "-entryID", &id, "-parentID", &node.name, "-spiffeID", &node.other()];
                node.site.command(&args).args(&["-selector", &own_uid()])
            };
            if run.output().is_ok_and(|output| output.code == 0) {
                there = !there;
                note(if there { Fate::There } else { Fate::Gone });
                continue;
            }
            // Behind the error either may be true: only the server knows.
            if let Ok(ids) = node.site.entry_ids() {
                there = ids.contains(&id);
                note(if there { Fate::There } else { Fate::Gone });
            }
        }
    }

    /// Makes tokens and lets an agent of either server come with each at the same time.
    fn use_tokens(&self, nodes: &[Node; 2]) {
        for turn in 0_usize.. {
            if self.stopped() {
                return;
            }
            let Ok(output) = nodes[turn % 2].site.command(&["token", "generate"]).output() else { continue };
            let Ok(token) = output.field("Token") else { continue };
            let users = nodes.iter().map(|node| join(node, &token)).collect::<Vec<_>>();
            let came_in =
                users.into_iter().flatten().filter_map(|mut guest| guest.came_in().then_some(())).count();
            with(&self.tokens, |tokens| tokens.insert(token, came_in));
        }
    }
}

fn node_zero() -> String {
    "spiffe://example.org/node-0".to_owned()
}

/// The time as the command prints it.
fn now() -> String {
    let since =
        std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    let at = (Timestamp::EPOCH + since).to_utc();
    let (date, month) = (at.date(), u8::from(at.month()));
    format!(
        "{:04}-{month:02}-{:02} {:02}:{:02}:{:02}",
        date.year(),
        date.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

/// An agent that is there for its token only.
struct Guest {
    agent: Daemon,
    _folder: tempfile::TempDir,
}

fn join(node: &Node, token: &str) -> Result<Guest> {
    let folder = place::folder()?;
    let settings = config::Agent::new(folder.path(), node.site.server.port, &node.site.server.trust_domain);
    let file = folder.path().join("agent.conf");
    place::write(&file, &settings.text())?;
    let args = ["run", "-config", text(&file), "-joinToken", token];
    let agent = Daemon::start("guest", &node.site.agent_programs.agent(), &args, folder.path())?;
    Ok(Guest { agent, _folder: folder })
}

impl Guest {
    /// Whether it was let in, before it ended or its time was up.
    fn came_in(&mut self) -> bool {
        let found = wait::until("end of the attempt", JOINING, || {
            let let_in =
                self.agent.lines().iter().any(|line| line.contains("Node attestation was successful"));
            if let_in {
                return Some(true);
            }
            (!self.agent.is_running()).then_some(false)
        });
        // It may be let in while it is being ended.
        let _ = self.agent.stop();
        found.unwrap_or(false)
            || self.agent.lines().iter().any(|line| line.contains("Node attestation was successful"))
    }
}
