//! Getting WIT-SVIDs for workloads that ask for them: keys are made here, tokens that name them by the server.

use std::sync::Arc;

use spire_core::model::Entry;
use spire_core::pki::jwk::Jwk;
use spire_core::pki::{KeyType, LocalKey, UnverifiedJws};
use spire_core::spiffe::SpiffeId;
use spire_core::svids::{HeldWit, Jitter, WitSvid};
use spire_core::time::Timestamp;
use spire_wire::api::server::svid::v1::NewWitsvidParams;
use spire_wire::api::types;
use tonic::{Code, Status};

use super::backoff::random;
use super::client::CallError;
use super::convert;
use super::shared::Core;

/// Requests in one batch: what the server lets one agent sign a second (pkg/common/limits: SignLimitPerIP).
const BATCH_MAX: usize = 500;

const DOING: &str = "failed to fetch WIT-SVID";

/// A request on its way: the key that the token will be bound to.
struct Prepared {
    entry: Arc<Entry>,
    key: LocalKey,
    alg: &'static str,
}

impl Core {
    /// A WIT-SVID for each of these entries: the one that is held until it is due for renewal, then a new one; one
    /// that is still valid serves while no new one can be had. Entries for which the server refuses are left out.
    ///
    /// # Errors
    /// [`CallError`] when an entry has no valid SVID because the server cannot be asked, or none has one.
    pub async fn wit_svids(&self, entries: &[Arc<Entry>]) -> Result<Vec<(Arc<Entry>, HeldWit)>, CallError> {
        let mut found = self.held_wit(entries);
        if self.wit_is_due(&found) {
            let _one_at_a_time = self.wit_fetch.lock().await;
            // Another stream may have fetched them meanwhile.
            found = self.held_wit(entries);
            for batch in self.due_wit(entries, &found).chunks(BATCH_MAX) {
                let fetched = self.fetch_wit(batch).await;
                let Err(error) = fetched.map(|new| replace(&mut found, new)) else { continue };
                tracing::error!(subsystem_name = "manager", error = %error, "Failed to fetch WIT-SVIDs");
                let missing = |e: &Arc<Entry>| found.iter().any(|(of, held)| of.id == e.id && held.is_none());
                if batch.iter().any(missing) {
                    return Err(error);
                }
            }
        }
        let svids: Vec<_> = found.into_iter().filter_map(|(entry, held)| Some((entry, held?))).collect();
        if svids.is_empty() {
            let status = Status::unavailable("the server signs none for these entries");
            return Err(CallError { doing: DOING, status: Box::new(status) });
        }
        Ok(svids)
    }

    /// Forgets WIT-SVIDs of entries that are gone.
    pub(super) fn sweep_wit(&self) {
        if self.options.wit_svids_enabled {
            let now = self.clock.now();
            self.identities().read(|cache| self.wit.lock().sweep(now, |id| cache.entry(id).is_some()));
        }
    }

    fn held_wit(&self, entries: &[Arc<Entry>]) -> Vec<(Arc<Entry>, Option<HeldWit>)> {
        let now = self.clock.now();
        let wit = self.wit.lock();
        entries.iter().map(|e| (Arc::clone(e), wit.lookup(&e.id, e.revision, now))).collect()
    }

    fn wit_is_due(&self, found: &[(Arc<Entry>, Option<HeldWit>)]) -> bool {
        let now = self.clock.now();
        found.iter().any(|(_, held)| held.as_ref().is_none_or(|held| held.renew_at <= now))
    }

    fn due_wit(&self, entries: &[Arc<Entry>], found: &[(Arc<Entry>, Option<HeldWit>)]) -> Vec<Arc<Entry>> {
        let due = |n: &usize| self.wit_is_due(&found[*n..=*n]);
        (0..entries.len().min(found.len())).filter(due).map(|n| Arc::clone(&entries[n])).collect()
    }

    async fn fetch_wit(&self, entries: &[Arc<Entry>]) -> Result<Vec<(Arc<Entry>, HeldWit)>, CallError> {
        for entry in entries {
            let held = self.wit.lock().lookup(&entry.id, entry.revision, self.clock.now());
            let message = if held.is_some() { "Renewing WIT-SVID" } else { "Creating WIT-SVID" };
            tracing::info!(
                subsystem_name = "manager", entry_id = %entry.id, spiffe_id = %entry.spiffe_id, "{message}"
            );
        }
        let prepared = prepare(entries.to_vec(), self.options.workload_key_type).await?;
        let params = prepared
            .iter()
            .map(|p| NewWitsvidParams {
                entry_id: p.entry.id.as_str().to_owned(),
                public_key: p.key.public_key().spki().clone(),
                signing_algorithm: p.alg.to_owned(),
            })
            .collect();
        let mut answers = self.client.new_wit_svids(params).await?.into_iter();
        let now = self.clock.now();
        let mut issued = Vec::with_capacity(prepared.len());
        for prepared in prepared {
            let entry = Arc::clone(&prepared.entry);
            let svid = match answers.next() {
                Some(Ok(svid)) => assemble(svid, &prepared),
                Some(Err(status)) => Err(status),
                None => Err(refusal("response missing SVID")),
            };
            match svid {
                Ok(svid) => {
                    let (id, jitter) = (entry.id.clone(), Jitter::from_random(random()));
                    let held = self.wit.lock().insert(id, entry.revision, Arc::new(svid), now, jitter);
                    issued.push((entry, held));
                }
                Err(status) => tracing::warn!(
                    subsystem_name = "manager", entry_id = %entry.id, status = status.code, error = status.message,
                    "Failed to mint WIT-SVID"
                ),
            }
        }
        Ok(issued)
    }
}

fn replace(found: &mut [(Arc<Entry>, Option<HeldWit>)], new: Vec<(Arc<Entry>, HeldWit)>) {
    let mut new = new.into_iter().peekable();
    // Both are in the order of the entries.
    for (entry, held) in found {
        if let Some((_, fetched)) = new.next_if(|(of, _)| of.id == entry.id) {
            *held = Some(fetched);
        }
    }
}

/// Makes keys off the threads that serve workloads: an RSA key takes long.
async fn prepare(entries: Vec<Arc<Entry>>, key_type: KeyType) -> Result<Vec<Prepared>, CallError> {
    let work = tokio::task::spawn_blocking(move || {
        let one = |entry| {
            let key = LocalKey::generate(key_type).map_err(|e| e.to_string())?;
            let alg = key.public_key().signature_algorithm().jose();
            Ok(Prepared { entry, alg: alg.ok_or("keys of this type sign no tokens")?, key })
        };
        entries.into_iter().map(one).collect::<Result<Vec<_>, String>>()
    });
    let failed = |reason: String| CallError {
        doing: "failed to make keys",
        status: Box::new(Status::internal(reason)),
    };
    work.await.map_err(|e| failed(e.to_string()))?.map_err(failed)
}

/// The SVID, when the token is for this entry's identity and key.
fn assemble(svid: types::Witsvid, prepared: &Prepared) -> Result<WitSvid, types::Status> {
    let (issued_at, expires_at) = (svid.issued_at, svid.expires_at);
    if issued_at == 0 || expires_at == 0 || issued_at > expires_at {
        return Err(refusal("WIT-SVID has no lifetime"));
    }
    let spiffe_id = convert::spiffe_id(svid.id.as_ref()).map_err(|e| refusal(&e.to_string()))?;
    let token = UnverifiedJws::parse(&svid.token).map_err(|e| refusal(&e.to_string()))?;
    let claims = serde_json::from_slice(token.unverified_payload()).map_err(|e| refusal(&e.to_string()))?;
    if token.typ() != Some("wit+jwt") || !is_bound_to(&claims, &spiffe_id, prepared) {
        return Err(refusal("server signed another token than the one that was asked for"));
    }
    let private_jwk = prepared.key.to_jwk(prepared.alg).map_err(|e| refusal(&e.to_string()))?;
    Ok(WitSvid {
        spiffe_id,
        key_id: token.kid().into(),
        private_jwk,
        issued_at: Timestamp::from_unix(issued_at),
        expires_at: Timestamp::from_unix(expires_at),
        token: svid.token.into(),
    })
}

/// Whether `sub` and `cnf` name the identity and the key.
fn is_bound_to(claims: &serde_json::Value, spiffe_id: &SpiffeId, prepared: &Prepared) -> bool {
    let key = Jwk::from_value(&claims["cnf"]["jwk"]);
    claims["sub"] == spiffe_id.as_str()
        && *spiffe_id == prepared.entry.spiffe_id
        && key.is_ok_and(|jwk| jwk.key == *prepared.key.public_key())
}

fn refusal(message: &str) -> types::Status {
    types::Status { code: Code::Internal.into(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use zeroize::Zeroizing;

    use super::*;
    use crate::fixture::{FakeServer, deps, entry, options};
    use crate::runtime::start;

    #[tokio::test]
    async fn a_held_svid_serves_until_it_expires_while_none_can_be_had() {
        let server = FakeServer::start().await;
        server.change(|state| {
            state.entries = vec![entry("web", "uid:1")];
            state.failures.push(("BatchNewWITSVID", Status::unavailable("down")));
        });
        let folder = tempfile::tempdir().unwrap();
        let (core, _) =
            Box::pin(start(Arc::new(options(&server, folder.path())), &deps(&["uid:1"]))).await.unwrap();
        let entries: Vec<_> = core.identities().read(|cache| cache.entries().cloned().collect());
        let now = core.clock.now();
        let hold = |issued_ago: u64, lifetime: u64| {
            let issued_at = now - Duration::from_secs(issued_ago);
            let svid = Arc::new(WitSvid {
                spiffe_id: entries[0].spiffe_id.clone(),
                token: "token".into(),
                key_id: "kid".into(),
                private_jwk: Zeroizing::new("key".to_owned()),
                issued_at,
                expires_at: issued_at + Duration::from_secs(lifetime),
            });
            let (id, jitter) = (entries[0].id.clone(), Jitter::from_random(0));
            core.wit.lock().insert(id, 0, Arc::clone(&svid), issued_at, jitter);
            svid
        };

        let svid = hold(0, 3600);
        let held = core.wit_svids(&entries).await.unwrap().remove(0).1.svid;
        assert!(Arc::ptr_eq(&held, &svid));
        assert_eq!(server.count("BatchNewWITSVID"), 0, "it is not due");
        let svid = hold(3000, 3600);
        let held = core.wit_svids(&entries).await.unwrap().remove(0).1.svid;
        assert!(Arc::ptr_eq(&held, &svid));
        assert_eq!(server.count("BatchNewWITSVID"), 1, "it is due");
        hold(3600, 3600);
        assert_eq!(
            core.wit_svids(&entries).await.unwrap_err().to_string(),
            "failed to batch new WIT-SVID(s): rpc error: code = Unavailable desc = down"
        );
        server.change(|state| state.failures.clear());
        let svid = hold(3000, 3600);
        let renewed = core.wit_svids(&entries).await.unwrap().remove(0).1.svid;
        assert!(!Arc::ptr_eq(&renewed, &svid) && renewed.expires_at > svid.expires_at);
    }
}
