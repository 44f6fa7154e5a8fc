//! The answer in words and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};
use spire_core::explain::{Break, Chain, Hop, Lack};
use spire_core::model::{Entry, EntryId};
use spire_core::spiffe::{Selector, Selectors};
use spire_wire::explain::Explanation;

use super::registry::{Registry, Way, selectors, spiffe_id};

/// What is known, put together.
pub(super) struct Report<'a> {
    explanation: &'a Explanation,
    attested: Selectors,
    /// The server's number of entries, where it was asked.
    server_entries: Option<usize>,
    /// Entries that match and that the agent does not have.
    withheld: Vec<Candidate>,
    near: Vec<Candidate>,
}

/// An entry that the process does not get.
struct Candidate {
    id: String,
    spiffe_id: String,
    lacks: Vec<Lack>,
    /// Where the server was asked.
    parent: Option<String>,
    ways: Vec<Way>,
}

impl Candidate {
    fn of(entry: &Entry, lacks: Vec<Lack>, registry: &Registry) -> Self {
        Self {
            id: entry.id.as_str().to_owned(),
            spiffe_id: entry.spiffe_id.to_string(),
            lacks,
            parent: Some(entry.parent_id.to_string()),
            ways: registry.ways(entry),
        }
    }
}

impl<'a> Report<'a> {
    pub(super) fn new(explanation: &'a Explanation, registry: Option<&Registry>) -> Self {
        let attested = selectors(&explanation.selectors);
        let mut report =
            Self { explanation, attested, server_entries: None, withheld: Vec::new(), near: Vec::new() };
        match registry {
            Some(registry) => {
                report.server_entries = Some(registry.len());
                let known: Vec<EntryId> =
                    explanation.identities.iter().map(|i| EntryId::from_stored(i.entry_id.clone())).collect();
                let withheld = registry.matching(&report.attested, &known);
                report.withheld = withheld.map(|e| Candidate::of(e, Vec::new(), registry)).collect();
                let near = registry.nearest(&report.attested).into_iter();
                report.near = near.map(|near| Candidate::of(near.entry, near.lacks, registry)).collect();
            }
            None => {
                let near = explanation.near.iter().map(|near| Candidate {
                    id: near.entry_id.clone(),
                    spiffe_id: id_text(near.spiffe_id.as_ref()),
                    lacks: near.lacks.iter().filter_map(lack).collect(),
                    parent: None,
                    ways: Vec::new(),
                });
                report.near = near.collect();
            }
        }
        report
    }

    /// The answer in one sentence.
    fn verdict(&self) -> String {
        let explanation = self.explanation;
        let waiting = explanation.identities.iter().filter(|i| i.x509_svid_expires_at == 0).count();
        match explanation.identities.len() {
            _ if !explanation.attestation_error.is_empty() => {
                format!("No identity: the process could not be attested: {}", explanation.attestation_error)
            }
            0 if !self.withheld.is_empty() => {
                "No identity: an entry matches, but this agent does not have it".to_owned()
            }
            0 if explanation.entry_count == 0 && explanation.agent_id.is_some() => {
                "No identity: this agent has no entries".to_owned()
            }
            0 => "No identity: no entry matches, for each wants a selector that the process lacks".to_owned(),
            all if waiting == 0 => format!("The process has {all} {}", plural(all, "identity", "identities")),
            all => {
                format!("{waiting} of {all} identities {} no X.509-SVID yet", plural(waiting, "has", "have"))
            }
        }
    }

    pub(super) fn text(&self) -> String {
        let mut out = format!("{}\n\n", self.verdict());
        let explanation = self.explanation;
        row(&mut out, "Process", &explanation.pid.to_string());
        if explanation.agent_id.is_some() {
            row(&mut out, "Agent", &id_text(explanation.agent_id.as_ref()));
        }
        row(&mut out, "Synced", &self.sync_text());
        let all: Vec<String> = self.attested.iter().map(ToString::to_string).collect();
        rows(&mut out, "Attested", &all);
        let failed = explanation.failures.iter().map(|failure| match failure.error.as_str() {
            "" => failure.name.clone(),
            error => error.to_owned(),
        });
        rows(&mut out, "Failed", &failed.collect::<Vec<_>>());
        let identities = explanation.identities.iter().map(|identity| {
            let svid = match identity.x509_svid_expires_at {
                0 => ", no X.509-SVID yet".to_owned(),
                at => format!(", X.509-SVID expires in {} s", at.saturating_sub(self.now())),
            };
            let missing = match identity.missing_bundles.as_slice() {
                [] => String::new(),
                domains => format!(", no bundle of {}", domains.join(", ")),
            };
            format!("{} (entry {}){svid}{missing}", id_text(identity.spiffe_id.as_ref()), identity.entry_id)
        });
        rows(&mut out, "Identities", &identities.collect::<Vec<_>>());
        candidates(&mut out, "Entries that match and that the agent does not have:", &self.withheld);
        if explanation.identities.is_empty() {
            candidates(&mut out, "Nearest entries:", &self.near);
        }
        out
    }

    fn now(&self) -> i64 {
        self.explanation.sync.as_ref().map_or(0, |sync| sync.now)
    }

    fn sync_text(&self) -> String {
        let Some(sync) = &self.explanation.sync else { return "unknown".to_owned() };
        let age = |at: i64| sync.now.saturating_sub(at).max(0);
        let mut text = match sync.last_success {
            0 => "never".to_owned(),
            at => format!("{} s ago", age(at)),
        };
        text.push_str(if sync.pushed {
            ", the server tells of changes"
        } else {
            ", the agent asks from time to time"
        });
        if self.explanation.agent_id.is_some() {
            let count = self.explanation.entry_count as usize;
            let _ = write!(text, ", {count} {}", plural(count, "entry", "entries"));
        }
        if let Some(count) = self.server_entries {
            let _ = match self.explanation.agent_id {
                Some(_) => write!(text, " of the server's {count}"),
                None => write!(text, ", the server has {count} {}", plural(count, "entry", "entries")),
            };
        }
        if sync.failing {
            let _ = write!(text, "; failed {} s ago", age(sync.failed_at));
            if !sync.error.is_empty() {
                let _ = write!(text, ": {}", sync.error);
            }
        }
        text
    }

    pub(super) fn json(&self) -> Value {
        let explanation = self.explanation;
        let sync = explanation.sync.clone().unwrap_or_default();
        json!({
            "verdict": self.verdict(),
            "pid": explanation.pid,
            "agent_id": explanation.agent_id.as_ref().map(|id| id_text(Some(id))),
            "attestation_error": explanation.attestation_error,
            "selectors": texts(self.attested.iter()),
            "failed_attestors": (explanation.failures.iter())
                .map(|failure| json!({"name": failure.name, "error": failure.error}))
                .collect::<Vec<_>>(),
            "sync": {
                "seconds_ago": (sync.last_success != 0).then(|| sync.now - sync.last_success),
                "pushed": sync.pushed,
                "failing": sync.failing,
                "error": sync.error,
            },
            "identities": (explanation.identities.iter())
                .map(|identity| json!({
                    "spiffe_id": id_text(identity.spiffe_id.as_ref()),
                    "entry_id": identity.entry_id,
                    "x509_svid_expires_at": identity.x509_svid_expires_at,
                    "missing_bundles": identity.missing_bundles,
                }))
                .collect::<Vec<_>>(),
            "withheld": self.withheld.iter().map(candidate_json).collect::<Vec<_>>(),
            "near": self.near.iter().map(candidate_json).collect::<Vec<_>>(),
        })
    }
}

fn candidates(out: &mut String, title: &str, all: &[Candidate]) {
    if all.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{title}");
    for candidate in all {
        let _ = writeln!(out, "  {} (entry {})", candidate.spiffe_id, candidate.id);
        for lack in &candidate.lacks {
            let instead = match lack.instead.as_slice() {
                [] => String::new(),
                instead => format!(" (the process has {})", texts(instead.iter()).join(", ")),
            };
            let _ = writeln!(out, "    lacks {}{instead}", lack.selector);
        }
        if let Some(parent) = &candidate.parent {
            let _ = writeln!(out, "    parent {parent}");
        }
        for way in &candidate.ways {
            let _ = writeln!(out, "    {}", way_text(way));
        }
    }
}

fn way_text(way: &Way) -> String {
    let by = |hops: &[Hop]| {
        let hop = |hop: &Hop| {
            let kind = if hop.is_node { "node entry" } else { "entry" };
            format!("{kind} {} ({})", hop.entry, hop.spiffe_id)
        };
        hops.iter().map(hop).collect::<Vec<_>>().join(", ")
    };
    let agent = &way.agent;
    match &way.chain {
        Chain::Reaches(hops) if hops.is_empty() => format!("leads to agent {agent}"),
        Chain::Reaches(hops) => format!("leads to agent {agent} by {}", by(hops)),
        Chain::Breaks { hops, why } => {
            let after = if hops.is_empty() { String::new() } else { format!(" behind {}", by(hops)) };
            format!("does not lead to agent {agent}{after}: {}", break_text(why))
        }
    }
}

fn break_text(why: &Break) -> String {
    match why {
        Break::OtherAgent(id) => format!("{id} is another agent"),
        Break::Nobody(id) => format!("no agent and no entry has the ID {id}"),
        Break::LacksNodeSelectors { entry, spiffe_id, lacks } if lacks.is_empty() => {
            format!("node entry {entry} ({spiffe_id}) has no selectors")
        }
        Break::LacksNodeSelectors { entry, spiffe_id, lacks } => {
            let lacking = texts(lacks.iter().map(|lack| &lack.selector)).join(", ");
            format!("node entry {entry} ({spiffe_id}) wants {lacking}, which the agent's node lacks")
        }
        Break::TooLong => "its parents go round in a circle, or on for too long".to_owned(),
    }
}

fn candidate_json(candidate: &Candidate) -> Value {
    let lacks = candidate
        .lacks
        .iter()
        .map(|lack| json!({"selector": lack.selector.to_string(), "instead": texts(lack.instead.iter())}));
    let ways = candidate.ways.iter().map(|way| {
        let reaches = matches!(way.chain, Chain::Reaches(_));
        json!({"agent_id": way.agent.to_string(), "reaches": reaches, "text": way_text(way)})
    });
    json!({
        "entry_id": candidate.id,
        "spiffe_id": candidate.spiffe_id,
        "parent_id": candidate.parent,
        "lacks": lacks.collect::<Vec<_>>(),
        "parents": ways.collect::<Vec<_>>(),
    })
}

fn lack(lack: &spire_wire::explain::Lack) -> Option<Lack> {
    let wanted = lack.selector.as_ref()?;
    let selector = Selector::from_stored(wanted.r#type.clone(), wanted.value.clone());
    Some(Lack { selector, instead: selectors(&lack.instead).iter().cloned().collect() })
}

fn texts<'s>(selectors: impl Iterator<Item = &'s Selector>) -> Vec<String> {
    selectors.map(ToString::to_string).collect()
}

fn id_text(id: Option<&spire_wire::api::types::Spiffeid>) -> String {
    spiffe_id(id).map(|id| id.to_string()).unwrap_or_default()
}

fn plural(count: usize, one: &'static str, many: &'static str) -> &'static str {
    if count == 1 { one } else { many }
}

fn row(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "{name:<12}{value}");
}

/// Values below each other, the name before the first; nothing for none.
fn rows(out: &mut String, name: &str, values: &[String]) {
    for (at, value) in values.iter().enumerate() {
        row(out, if at == 0 { name } else { "" }, value);
    }
}
