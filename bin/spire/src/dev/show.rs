//! What `spire dev` shows.

use std::path::Path;

use spire_agent::runtime::Event;
use spire_core::time::Timestamp;

use super::api::Fetched;
use crate::note;

/// The sockets, and the identities that were fetched over the Workload API.
pub(super) fn banner(agent: &Path, server: &Path, fetched: &[Fetched]) -> String {
    let mut text =
        format!("Workload API: unix://{}\nServer API:   unix://{}", agent.display(), server.display());
    for one in fetched {
        text.push_str(&format!("\nFetched X.509-SVID: {} (valid until {})", one.id, one.expires_at));
    }
    text
}

/// Prints one event, or how many were missed.
pub(super) fn line(event: Result<&Event, u64>) {
    match event {
        Ok(event) => {
            if let Some(text) = text(event) {
                note(&text);
            }
        }
        Err(missed) => note(&format!("({missed} events not shown)")),
    }
}

fn text(event: &Event) -> Option<String> {
    let until = |at: &Timestamp| format!("until {at}");
    Some(match event {
        Event::Attested { spiffe_id, fresh } => {
            format!("attested  agent {spiffe_id}{}", if *fresh { "" } else { " (joined before)" })
        }
        Event::AgentRotated { spiffe_id, expires_at } => {
            format!("rotated   agent {spiffe_id}, {}", until(expires_at))
        }
        Event::X509Issued { spiffe_id, expires_at, renewed, .. } => {
            let what = if *renewed { "rotated " } else { "issued  " };
            format!("{what}  X.509-SVID {spiffe_id}, {}", until(expires_at))
        }
        Event::JwtIssued { spiffe_id, expires_at } => {
            format!("issued    JWT-SVID {spiffe_id}, {}", until(expires_at))
        }
        Event::WorkloadAttested { pid, identities } if identities.is_empty() => {
            format!("attested  process {pid}: no identity")
        }
        Event::WorkloadAttested { pid, identities } => {
            let ids: Vec<&str> = identities.iter().map(spire_core::spiffe::SpiffeId::as_str).collect();
            format!("attested  process {pid}: {}", ids.join(", "))
        }
        Event::BundleChanged(trust_domain) => format!("changed   bundle of {trust_domain}"),
        Event::Starting
        | Event::Synced { .. }
        | Event::PushConnected
        | Event::Listening { .. }
        | Event::Started => {
            return None;
        }
    })
}
