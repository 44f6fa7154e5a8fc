//! Letting an old authority sign again after the clock was set.
//!
//! A clock that runs ahead makes authorities that are not valid yet once it is set right. The one before is in its slot
//! still, and everybody trusts it. A clock that is set back does the same to the authority that everybody trusts; once
//! the clock is right again, that one takes over from the one which stood in for it.

use std::sync::Arc;

use spire_core::authority::Kind;
use spire_core::model::{SlotName, X509CaRecord};
use spire_core::pki::chain::{Purpose, verify};
use spire_core::spiffe::Bundle;
use spire_core::time::Timestamp;

use super::authorities::{Authorities, Change, SUBSYSTEM, State};
use super::error::CaError;
use super::prepare::parse_all;
use super::upstream::keys_of;

impl Authorities {
    /// Lets the old X.509 authority in the slot sign again, if its key is there and the bundle has its root, untainted;
    /// makes a new one in its place otherwise.
    pub(super) async fn restore_x509(&self, state: &mut State, slot: SlotName) -> Result<(), CaError> {
        let bundle = self.changes.refresh().await?;
        let now = self.ports.clock.now();
        let trusted =
            state.x509.slots.next().authority().is_some_and(|ca| is_trusted(ca, bundle.as_ref(), now));
        if !trusted || state.x509.key_mut(slot).is_none() {
            return self.prepare_x509(state, slot).await;
        }
        let next = state.x509.slots.restored(slot)?;
        self.store_journal(state, Change::X509(&next)).await?;
        state.x509.slots = next;
        log(Kind::X509);
        self.serve_x509(state, true)
    }

    /// The same for a JWT or WIT authority.
    pub(super) async fn restore_key(
        &self,
        state: &mut State,
        kind: Kind,
        slot: SlotName,
    ) -> Result<(), CaError> {
        let bundle = self.changes.refresh().await?;
        let kid = state.keys(kind).slots.next().authority_id().to_owned();
        let mut bundle = bundle.map(|b| Bundle::clone(&b));
        let trusted = bundle
            .as_mut()
            .is_some_and(|b| keys_of(b, kind).iter().any(|key| key.kid == kid && !key.tainted));
        if !trusted || state.keys_mut(kind).key_mut(slot).is_none() {
            return self.prepare_key(state, kind, slot).await;
        }
        let next = state.keys(kind).slots.restored(slot)?;
        self.store_journal(state, Change::Key(kind, &next)).await?;
        state.keys_mut(kind).slots = next;
        log(kind);
        self.serve_key(state, kind, true);
        Ok(())
    }
}

fn log(kind: Kind) {
    tracing::warn!(
        subsystem_name = SUBSYSTEM,
        kind = ?kind,
        "Was the clock set? The authority that was active before signs again"
    );
}

/// Whether the bundle has, untainted, the CA itself or the root above it.
fn is_trusted(ca: &X509CaRecord, bundle: Option<&Arc<Bundle>>, now: Timestamp) -> bool {
    let roots: Vec<_> = bundle
        .into_iter()
        .flat_map(|b| &b.x509_authorities)
        .filter(|authority| !authority.tainted)
        .map(|authority| authority.der.clone())
        .collect();
    if ca.upstream_chain.is_empty() {
        return roots.contains(&ca.certificate);
    }
    let parsed =
        (parse_all(&ca.upstream_chain, "upstream chain certificate"), parse_all(&roots, "root certificate"));
    matches!(parsed, (Ok(chain), Ok(roots)) if verify(&chain, &roots, Purpose::Any, now).is_ok())
}
