//! Finding this server's journal and what of it can be used.

use std::sync::Arc;

use spire_core::authority::{Authority, Kind, Loaded, Slots, Unusable, activation_due, check_usable};
use spire_core::model::{AuthorityStatus, CaJournal, KeyRecord, SlotName, X509CaRecord};
use spire_core::pki::Certificate;
use spire_core::spiffe::Bundle;
use spire_core::time::Timestamp;
use spire_ports::observe::Logged;
use spire_ports::plugins::Key;

use super::authorities::{Authorities, Lane, SUBSYSTEM};
use super::error::CaError;

impl Authorities {
    /// Loads what can be used of the journal, and lets its active authorities sign.
    pub(super) async fn load(&self) -> Result<(), CaError> {
        tracing::debug!(subsystem_name = SUBSYSTEM, "Loading journal from datastore");
        let (row, journal) = self.find_journal().await?;
        tracing::info!(
            subsystem_name = SUBSYSTEM,
            x509_cas = journal.x509.len(),
            jwt_keys = journal.jwt.len(),
            wit_keys = journal.wit.len(),
            "Journal loaded"
        );
        let bundle = self.ports.bundles.bundle_fetch(&self.config.trust_domain).await?;
        let now = self.ports.clock.now();
        let mut state = self.state.lock().await;
        state.journal_row = row;
        state.x509 = self.load_x509(journal.x509, bundle.as_ref(), now).await?;
        state.jwt = self.load_keys(Kind::Jwt, journal.jwt, bundle.as_ref(), now).await?;
        state.wit = self.load_keys(Kind::Wit, journal.wit, bundle.as_ref(), now).await?;
        // One that is about to be replaced signs until it is, silently, as the reference does not say so.
        let fresh =
            |a: Option<(Timestamp, Timestamp)>| a.is_some_and(|(from, to)| !activation_due(from, to, now));
        let x509 = state.x509.slots.active().map(|a| (a.issued_at, a.not_after));
        self.serve_x509(&state, fresh(x509))?;
        if !self.config.jwt_svids_disabled {
            let jwt = state.jwt.slots.active().map(|a| (a.issued_at, a.not_after));
            self.serve_key(&state, Kind::Jwt, fresh(jwt));
        }
        if self.config.wit_svids_enabled {
            let wit = state.wit.slots.active().map(|a| (a.issued_at, a.not_after));
            self.serve_key(&state, Kind::Wit, fresh(wit));
        }
        Ok(())
    }

    /// The journal whose active X.509 authority has one of our keys.
    async fn find_journal(&self) -> Result<(Option<u64>, CaJournal), CaError> {
        let keys = self
            .ports
            .key_manager
            .keys()
            .await
            .map_err(|e| CaError::Journal(format!("failed to get keys from key manager: {e}")))?;
        for key in keys {
            let id = key.public_key().subject_key_id().to_string();
            let found =
                self.ports.journals.journal_fetch(&id).await.map_err(|e| {
                    CaError::Journal(format!("failed to fetch CA journal from datastore: {e}"))
                })?;
            if let Some(stored) = found {
                tracing::debug!(
                    subsystem_name = SUBSYSTEM,
                    ca_journal_id = stored.id,
                    local_authority_id = id.as_str(),
                    "Found a CA journal record that matches with a local X509 authority ID"
                );
                return Ok((Some(stored.id), stored.journal));
            }
        }
        tracing::info!(
            subsystem_name = SUBSYSTEM,
            "There is not a CA journal record that matches any of the local X509 authority IDs"
        );
        Ok((None, CaJournal::default()))
    }

    async fn load_x509(
        &self,
        history: Vec<X509CaRecord>,
        bundle: Option<&Bundle>,
        now: Timestamp,
    ) -> Result<Lane<X509CaRecord>, CaError> {
        let keys = self.kept_keys(Kind::X509).await?;
        let history = history.into_iter().map(with_id).collect();
        let mut broken = None;
        let Loaded { slots, passed_over } = Slots::load(history, |ca: &X509CaRecord| {
            // Below an upstream authority the bundle has the upstream's roots and not our CAs.
            let known = |b: &Bundle| b.x509_authorities.iter().any(|a| a.der == ca.certificate);
            if self.upstream.is_none() && bundle.is_some_and(|b| !known(b)) {
                return Err(Unusable::NotInBundle);
            }
            if ca.not_after < now {
                return Err(Unusable::Expired);
            }
            let certificate = match Certificate::from_der(ca.certificate.clone()) {
                Ok(certificate) => certificate,
                Err(error) => {
                    broken = Some(CaError::Recorded { what: "CA certificate", error });
                    return Err(Unusable::OtherKey);
                }
            };
            check_usable(ca.not_after, certificate.spki_der(), spki(&keys, ca.slot), now)
        });
        for (ca, reason) in &passed_over {
            // What the bundle lacks is passed over without a word, as in the reference.
            if *reason == Unusable::NotInBundle {
                continue;
            }
            tracing::warn!(
                subsystem_name = SUBSYSTEM,
                error = %reason,
                slot = ca.slot.as_str(),
                issued_at = Logged::Time(ca.issued_at.unix()).value(),
                status = status_name(ca.status),
                local_authority_id = ca.id(),
                upstream_authority_id = ca.upstream_authority_id.as_str(),
                "X509CA slot unusable"
            );
        }
        if let Some(error) = broken {
            tracing::error!(subsystem_name = SUBSYSTEM, error = %error, "X509CA slot failed to load");
            return Err(error);
        }
        Ok(Lane { keys: in_slots(&slots, keys), slots, made: None })
    }

    async fn load_keys(
        &self,
        kind: Kind,
        history: Vec<KeyRecord>,
        bundle: Option<&Bundle>,
        now: Timestamp,
    ) -> Result<Lane<KeyRecord>, CaError> {
        let keys = self.kept_keys(kind).await?;
        let history = history
            .into_iter()
            .map(|mut key| {
                if key.authority_id.is_empty() {
                    key.authority_id.clone_from(&key.kid);
                }
                key
            })
            .collect();
        let Loaded { slots, passed_over } = Slots::load(history, |key: &KeyRecord| {
            let known = |b: &Bundle| {
                let all = if kind == Kind::Wit { &b.wit_authorities } else { &b.jwt_authorities };
                all.iter().any(|a| a.kid == key.kid)
            };
            if bundle.is_some_and(|b| !known(b)) {
                return Err(Unusable::NotInBundle);
            }
            check_usable(key.not_after, &key.public_key, spki(&keys, key.slot), now)
        });
        for (key, reason) in &passed_over {
            if *reason == Unusable::NotInBundle {
                continue;
            }
            let message = if kind == Kind::Wit { "WIT key slot unusable" } else { "JWT key slot unusable" };
            tracing::warn!(
                subsystem_name = SUBSYSTEM,
                error = %reason,
                slot = key.slot.as_str(),
                issued_at = Logged::Time(key.issued_at.unix()).value(),
                status = status_name(key.status),
                local_authority_id = key.id(),
                "{message}"
            );
        }
        Ok(Lane { keys: in_slots(&slots, keys), slots, made: None })
    }

    /// The KeyManager's keys of a kind, for the slots A and B.
    async fn kept_keys(&self, kind: Kind) -> Result<[Option<Arc<dyn Key>>; 2], CaError> {
        let manager = &self.ports.key_manager;
        Ok([manager.key(kind.key_id(SlotName::A)).await?, manager.key(kind.key_id(SlotName::B)).await?])
    }
}

/// Journals from before authority IDs were kept have none.
fn with_id(mut ca: X509CaRecord) -> X509CaRecord {
    if ca.authority_id.is_empty()
        && let Ok(certificate) = Certificate::from_der(ca.certificate.clone())
    {
        ca.authority_id = certificate.authority_id();
    }
    ca
}

fn spki(keys: &[Option<Arc<dyn Key>>; 2], slot: SlotName) -> Option<&[u8]> {
    keys[usize::from(slot == SlotName::B)].as_ref().map(|k| k.public_key().spki().as_ref())
}

/// Of the kept keys only those whose slots were loaded: others may not sign. An old authority may have to sign again.
fn in_slots<A: Authority>(slots: &Slots<A>, keys: [Option<Arc<dyn Key>>; 2]) -> [Option<Arc<dyn Key>>; 2] {
    let loaded = |name| {
        [slots.current(), slots.next()]
            .into_iter()
            .any(|slot| slot.name() == name && slot.authority().is_some())
    };
    let [a, b] = keys;
    [a.filter(|_| loaded(SlotName::A)), b.filter(|_| loaded(SlotName::B))]
}

/// The name in proto/private/server/journal/journal.proto, which logs print.
fn status_name(status: AuthorityStatus) -> &'static str {
    match status {
        AuthorityStatus::Unknown => "UNKNOWN",
        AuthorityStatus::Prepared => "PREPARED",
        AuthorityStatus::Active => "ACTIVE",
        AuthorityStatus::Old => "OLD",
    }
}
