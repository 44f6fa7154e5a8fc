//! From an entry to an agent: by its parent, the entries that have that ID, their parents, and so on.
//!
//! An agent is authorised for an entry whose parent is the agent's ID, an ID that a node entry gives the agent by the
//! selectors of its node, or the ID of an entry that it is authorised for (the reference's pkg/server/authorizedentries).

use std::collections::{HashMap, HashSet};

use super::near::{Lack, lacks};
use crate::model::{Entry, EntryId};
use crate::spiffe::{Selectors, SpiffeId};

/// Entries on the way at most: deeper trees exist nowhere, and a circle never ends.
const HOPS_MAX: usize = 16;

/// Entries looked at on the way at most, where many share an ID.
const LOOKS_MAX: usize = 4096;

/// An agent, and what was attested of its node.
#[derive(Clone, Debug)]
pub struct Node {
    /// The agent's ID.
    pub id: SpiffeId,
    /// The selectors of its node.
    pub selectors: Selectors,
}

/// An entry on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The entry whose ID is the parent of the one before.
    pub entry: EntryId,
    /// That ID.
    pub spiffe_id: SpiffeId,
    /// Whether the entry gives that ID to nodes, and not to workloads.
    pub is_node: bool,
}

/// Why a way ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Break {
    /// The parent is another agent's ID.
    OtherAgent(SpiffeId),
    /// No entry has the parent's ID.
    Nobody(SpiffeId),
    /// A node entry has it, and this agent's node lacks some of its selectors.
    LacksNodeSelectors {
        /// The node entry.
        entry: EntryId,
        /// The ID that it gives.
        spiffe_id: SpiffeId,
        /// What the node lacks.
        lacks: Vec<Lack>,
    },
    /// Too many entries on the way, or a circle.
    TooLong,
}

/// How an entry leads to an agent, or where that breaks off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chain {
    /// By these entries, from the entry's parent on; none when the parent is the agent itself.
    Reaches(Vec<Hop>),
    /// These lead nowhere.
    Breaks {
        /// The entries up to there.
        hops: Vec<Hop>,
        /// Why it ends.
        why: Break,
    },
}

/// All entries of a server by their IDs.
#[derive(Debug)]
pub struct Chains<'e> {
    by_id: HashMap<&'e SpiffeId, Vec<&'e Entry>>,
}

impl<'e> Chains<'e> {
    /// Of these entries.
    pub fn new(entries: impl IntoIterator<Item = &'e Entry>) -> Self {
        let mut by_id: HashMap<&SpiffeId, Vec<&Entry>> = HashMap::new();
        for entry in entries {
            by_id.entry(&entry.spiffe_id).or_default().push(entry);
        }
        Self { by_id }
    }

    /// How this entry leads to the agent.
    pub fn of(&self, entry: &Entry, node: &Node) -> Chain {
        let mut walk = Walk { chains: self, node, seen: HashSet::new(), looks: 0 };
        walk.from(&entry.parent_id, &mut Vec::new())
    }
}

struct Walk<'w, 'e> {
    chains: &'w Chains<'e>,
    node: &'w Node,
    seen: HashSet<SpiffeId>,
    looks: usize,
}

impl Walk<'_, '_> {
    fn from(&mut self, parent: &SpiffeId, hops: &mut Vec<Hop>) -> Chain {
        let breaks = |why, hops: &[Hop]| Chain::Breaks { hops: hops.to_vec(), why };
        if *parent == self.node.id {
            return Chain::Reaches(hops.clone());
        }
        if parent.is_agent() {
            return breaks(Break::OtherAgent(parent.clone()), hops);
        }
        if hops.len() >= HOPS_MAX || !self.seen.insert(parent.clone()) {
            return breaks(Break::TooLong, hops);
        }
        let mut best: Option<Chain> = None;
        for entry in self.chains.by_id.get(parent).map_or(&[][..], Vec::as_slice) {
            self.looks += 1;
            if self.looks > LOOKS_MAX {
                return best.unwrap_or_else(|| breaks(Break::TooLong, hops));
            }
            let is_node = entry.parent_id == SpiffeId::server(&entry.parent_id.trust_domain());
            hops.push(Hop { entry: entry.id.clone(), spiffe_id: entry.spiffe_id.clone(), is_node });
            let chain = match is_node {
                true => self.node_entry(entry, hops),
                false => self.from(&entry.parent_id, hops),
            };
            hops.pop();
            if let Chain::Reaches(_) = chain {
                return chain;
            }
            if best.as_ref().is_none_or(|best| promise(&chain) < promise(best)) {
                best = Some(chain);
            }
        }
        best.unwrap_or_else(|| breaks(Break::Nobody(parent.clone()), hops))
    }

    fn node_entry(&self, entry: &Entry, hops: &[Hop]) -> Chain {
        let lacks = lacks(&entry.selectors, &self.node.selectors);
        if lacks.is_empty() && !entry.selectors.is_empty() {
            return Chain::Reaches(hops.to_vec());
        }
        let (before, _) = hops.split_at(hops.len().saturating_sub(1));
        let why =
            Break::LacksNodeSelectors { entry: entry.id.clone(), spiffe_id: entry.spiffe_id.clone(), lacks };
        Chain::Breaks { hops: before.to_vec(), why }
    }
}

/// Of several ways that break off, the one where least is missing is shown.
fn promise(chain: &Chain) -> (u8, usize) {
    match chain {
        Chain::Reaches(_) => (0, 0),
        Chain::Breaks { why: Break::LacksNodeSelectors { lacks, .. }, .. } => (1, lacks.len()),
        Chain::Breaks { why: Break::OtherAgent(_), .. } => (2, 0),
        Chain::Breaks { why: Break::Nobody(_), hops } => (3, hops.len()),
        Chain::Breaks { why: Break::TooLong, .. } => (4, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spiffe::Selector;

    fn id(path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://a.org/{path}")).unwrap()
    }

    fn set(values: &[&str]) -> Selectors {
        values.iter().map(|value| Selector::new("n", *value).unwrap()).collect()
    }

    fn entry(name: &str, path: &str, parent: &str, selectors: &[&str]) -> Entry {
        Entry::new(EntryId::from_stored(name), id(parent), id(path), set(selectors))
    }

    const SERVER: &str = "spire/server";
    const AGENT: &str = "spire/agent/x/1";

    fn chain(entries: &[Entry], name: &str) -> String {
        let node = Node { id: id(AGENT), selectors: set(&["a", "b"]) };
        let entry = entries.iter().find(|entry| entry.id.as_str() == name).unwrap();
        let path = |hops: &[Hop]| {
            let hop = |hop: &Hop| format!("{}{}", hop.entry, if hop.is_node { "*" } else { "" });
            hops.iter().map(hop).collect::<Vec<_>>().join(" ")
        };
        match Chains::new(entries).of(entry, &node) {
            Chain::Reaches(hops) => format!("reaches {}", path(&hops)),
            Chain::Breaks { hops, why } => {
                let why = match why {
                    Break::OtherAgent(id) => format!("other {}", id.path()),
                    Break::Nobody(id) => format!("nobody {}", id.path()),
                    Break::LacksNodeSelectors { entry, lacks, .. } => {
                        format!("{entry} lacks {}", lacks.len())
                    }
                    Break::TooLong => "too long".to_owned(),
                };
                format!("breaks {}: {why}", path(&hops))
            }
        }
    }

    #[test]
    fn parents_lead_to_the_agent_or_say_where_they_do_not() {
        let entries = [
            entry("direct", "w", AGENT, &["x"]),
            entry("alias", "node", SERVER, &["a"]),
            entry("no-alias", "node", SERVER, &["a", "c", "d"]),
            entry("by-alias", "w", "node", &["x"]),
            entry("nested", "v", "w", &["x"]),
            entry("far-alias", "far", SERVER, &["c", "d"]),
            entry("near-alias", "far", SERVER, &["a", "c"]),
            entry("by-far", "w2", "far", &["x"]),
            entry("by-by-far", "w3", "w2", &["x"]),
            entry("elsewhere", "w4", "spire/agent/x/2", &["x"]),
            entry("lost", "w5", "none", &["x"]),
            entry("circle", "c1", "c2", &["x"]),
            entry("circle2", "c2", "c1", &["x"]),
            entry("empty-alias", "empty", SERVER, &[]),
            entry("by-empty", "w6", "empty", &["x"]),
        ];
        for (name, expected) in [
            ("direct", "reaches "),
            ("by-alias", "reaches alias*"),
            ("nested", "reaches direct"),
            ("by-far", "breaks : near-alias lacks 1"),
            ("by-by-far", "breaks by-far: near-alias lacks 1"),
            ("elsewhere", "breaks : other /spire/agent/x/2"),
            ("lost", "breaks : nobody /none"),
            ("circle", "breaks circle2 circle: too long"),
            ("by-empty", "breaks : empty-alias lacks 0"),
        ] {
            assert_eq!(chain(&entries, name), expected, "{name}");
        }
    }
}
