//! What operators do to authorities, and what a tainted upstream root makes necessary.
//!
//! Rules and texts: [`OperationError`]. When one of these returns, it is stored.

use spire_core::authority::{Authority, Kind, OperationError, check_key_revocation, check_upstream};
use spire_core::model::{AuthorityStatus, KeyRecord, X509CaRecord};
use spire_core::pki::Certificate;
use spire_core::pki::chain::{Purpose, verify};
use spire_core::spiffe::{Bundle, JwtAuthority};
use spire_core::time::Timestamp;

use super::authorities::{Authorities, SUBSYSTEM, State};
use super::error::CaError;
use super::prepare::parse_all;

impl Authorities {
    /// Makes the X.509 authority that will sign next, replacing one that was prepared before.
    ///
    /// # Errors
    /// [`OperationError::Initializing`], or what failed.
    pub async fn prepare_x509_authority(&self) -> Result<X509CaRecord, CaError> {
        let mut state = self.state.lock().await;
        state.x509.slots.check_initialized()?;
        let slot = state.x509.slots.slot_to_prepare();
        self.prepare_x509(&mut state, slot).await?;
        Ok(prepared(state.x509.slots.next().authority())?)
    }

    /// Lets the prepared X.509 authority sign.
    ///
    /// # Errors
    /// [`OperationError`], or what failed.
    pub async fn activate_x509_authority(&self, id: &str) -> Result<X509CaRecord, CaError> {
        let mut state = self.state.lock().await;
        state.x509.slots.check_activation(id)?;
        let slot = state.x509.slots.next().name();
        self.activate_x509(&mut state, slot).await?;
        Ok(prepared(state.x509.slots.active())?)
    }

    /// Taints the old X.509 authority: what it signed is replaced.
    ///
    /// # Errors
    /// [`OperationError`], or what failed.
    pub async fn taint_x509_authority(&self, id: &str) -> Result<X509CaRecord, CaError> {
        if self.has_upstream() {
            return Err(OperationError::TaintsBelowUpstream.into());
        }
        let state = self.state.lock().await;
        state.x509.slots.check_taint(id)?;
        self.taint_root(id).await?;
        Ok(prepared(state.x509.slots.next().authority())?)
    }

    /// Removes the old X.509 authority from the bundle.
    ///
    /// # Errors
    /// [`OperationError`], or what failed.
    pub async fn revoke_x509_authority(&self, id: &str) -> Result<(), CaError> {
        if self.has_upstream() {
            return Err(OperationError::RevokesBelowUpstream.into());
        }
        let state = self.state.lock().await;
        state.x509.slots.check_revocation(id)?;
        self.revoke_root(id).await
    }

    /// Taints the upstream authority that signed our old authority. The ID is a subject key ID in hex, in
    /// any case; returned in lower case.
    ///
    /// # Errors
    /// [`OperationError`], or what failed.
    pub async fn taint_x509_upstream_authority(&self, subject_key_id: &str) -> Result<String, CaError> {
        let id = self.checked_upstream(subject_key_id).await?;
        self.taint_root(&id).await?;
        Ok(id)
    }

    /// Removes the upstream authority that signed our old authority from the bundle.
    ///
    /// # Errors
    /// [`OperationError`], or what failed.
    pub async fn revoke_x509_upstream_authority(&self, subject_key_id: &str) -> Result<String, CaError> {
        let id = self.checked_upstream(subject_key_id).await?;
        self.revoke_root(&id).await?;
        Ok(id)
    }

    /// Makes the JWT or WIT authority that will sign next, replacing one that was prepared before.
    ///
    /// # Errors
    /// [`OperationError::Initializing`], or what failed.
    pub async fn prepare_key_authority(&self, kind: Kind) -> Result<KeyRecord, CaError> {
        let mut state = self.key_state(kind).await?;
        state.keys(kind).slots.check_initialized()?;
        let slot = state.keys(kind).slots.slot_to_prepare();
        self.prepare_key(&mut state, kind, slot).await?;
        Ok(prepared(state.keys(kind).slots.next().authority())?)
    }

    /// Lets the prepared JWT or WIT authority sign.
    ///
    /// # Errors
    /// [`OperationError`], or what failed.
    pub async fn activate_key_authority(&self, kind: Kind, id: &str) -> Result<KeyRecord, CaError> {
        let mut state = self.key_state(kind).await?;
        state.keys(kind).slots.check_activation(id)?;
        let slot = state.keys(kind).slots.next().name();
        self.activate_key(&mut state, kind, slot).await?;
        Ok(prepared(state.keys(kind).slots.active())?)
    }

    /// Taints the old JWT or WIT authority: agents drop the tokens that it signed.
    ///
    /// # Errors
    /// [`OperationError`], or what failed.
    pub async fn taint_key_authority(&self, kind: Kind, id: &str) -> Result<JwtAuthority, CaError> {
        let state = self.key_state(kind).await?;
        state.keys(kind).slots.check_taint(id)?;
        let (bundles, trust_domain) = (&self.ports.bundles, &self.config.trust_domain);
        let tainted = match kind {
            Kind::Wit => bundles.wit_authority_taint(trust_domain, id).await?,
            _ => bundles.jwt_authority_taint(trust_domain, id).await?,
        };
        self.changes.refresh().await?;
        Ok(tainted)
    }

    /// Removes a JWT or WIT authority from the bundle: the old one, or one that is in no slot.
    ///
    /// # Errors
    /// [`OperationError`], or what failed.
    pub async fn revoke_key_authority(&self, kind: Kind, id: &str) -> Result<JwtAuthority, CaError> {
        let state = self.key_state(kind).await?;
        let bundle = self.changes.refresh().await?;
        let in_bundle = || {
            let keys = |b: &Bundle| match kind {
                Kind::Wit => b.wit_authorities.iter().any(|key| key.kid == id),
                _ => b.jwt_authority(id).is_some(),
            };
            bundle.is_some_and(|b| keys(&b))
        };
        check_key_revocation(&state.keys(kind).slots, id, in_bundle)?;
        let (bundles, trust_domain) = (&self.ports.bundles, &self.config.trust_domain);
        let revoked = match kind {
            Kind::Wit => bundles.wit_authority_revoke(trust_domain, id).await?,
            _ => bundles.jwt_authority_revoke(trust_domain, id).await?,
        };
        if let Some(upstream) = &self.upstream {
            upstream.roots.forget_key(kind, id);
        }
        self.changes.refresh().await?;
        Ok(revoked)
    }

    /// Moves our CA away from upstream roots that were tainted, then marks them in the bundle. What cannot
    /// be done now stays pending, so calling again goes on. Nothing to do without an upstream authority.
    ///
    /// # Errors
    /// What failed first; it is logged already.
    pub async fn process_tainted_upstream(&self) -> Result<(), CaError> {
        let Some(upstream) = &self.upstream else { return Ok(()) };
        let tainted = upstream.roots.pending();
        if tainted.is_empty() {
            return Ok(());
        }
        tracing::debug!(subsystem_name = SUBSYSTEM, "Processing tainted keys on upstream authority");
        let mut state = self.state.lock().await;
        let result = self.leave_tainted(&mut state, &tainted).await;
        match &result {
            Ok(()) => upstream.roots.processed(&tainted),
            Err(error) => tracing::warn!(
                subsystem_name = SUBSYSTEM,
                error = %error,
                "Failed to process tainted keys on upstream authority"
            ),
        }
        result
    }

    async fn leave_tainted(&self, state: &mut State, tainted: &[Certificate]) -> Result<(), CaError> {
        let now = self.ports.clock.now();
        let below = |ca: Option<&X509CaRecord>| ca.is_some_and(|ca| is_below(ca, tainted, now));
        if below(state.x509.made.as_ref().map(|made| &made.authority)) {
            // Made before the taint and not recorded: it must not be taken up below.
            state.x509.made = None;
        }
        if below(state.x509.slots.active()) {
            tracing::info!(
                subsystem_name = SUBSYSTEM,
                "Current root CA is signed by a tainted upstream authority, preparing rotation"
            );
            let next = state.x509.slots.next();
            let next_tainted = below(next.live());
            if next_tainted {
                tracing::info!(
                    subsystem_name = SUBSYSTEM,
                    "Next authority is tainted, prepare new X.509 authority"
                );
            }
            let slot = next.name();
            if next_tainted || next.live().is_none() {
                self.prepare_x509(state, slot).await.map_err(|source| CaError::Step {
                    what: "failed to prepare x509 authority",
                    source: Box::new(source),
                })?;
            }
            self.activate_x509(state, slot).await?;
        }
        for root in tainted {
            self.taint_root(&root.authority_id()).await.map_err(|source| CaError::Step {
                what: "could not taint X509 CA in datastore",
                source: Box::new(source),
            })?;
        }
        Ok(())
    }

    async fn checked_upstream(&self, subject_key_id: &str) -> Result<String, CaError> {
        if !self.has_upstream() {
            return Err(OperationError::NoUpstream.into());
        }
        let id = subject_key_id.to_ascii_lowercase();
        check_upstream(&self.state.lock().await.x509.slots, &id)?;
        Ok(id)
    }

    async fn taint_root(&self, id: &str) -> Result<(), CaError> {
        self.ports.bundles.x509_authority_taint(&self.config.trust_domain, id).await?;
        self.changes.refresh().await?;
        Ok(())
    }

    async fn revoke_root(&self, id: &str) -> Result<(), CaError> {
        self.ports.bundles.x509_authority_revoke(&self.config.trust_domain, id).await?;
        self.changes.refresh().await?;
        Ok(())
    }

    async fn key_state(&self, kind: Kind) -> Result<tokio::sync::MutexGuard<'_, State>, CaError> {
        if !self.config.has_keys(kind) {
            return Err(CaError::Disabled(kind));
        }
        Ok(self.state.lock().await)
    }
}

/// The authority that an operation has just left in a slot.
fn prepared<A: Authority>(authority: Option<&A>) -> Result<A, OperationError> {
    authority.cloned().ok_or(OperationError::NotPrepared(AuthorityStatus::Unknown))
}

/// Whether the CA's chain leads to one of the roots.
fn is_below(ca: &X509CaRecord, roots: &[Certificate], now: Timestamp) -> bool {
    parse_all(&ca.upstream_chain, "upstream chain certificate")
        .is_ok_and(|chain| verify(&chain, roots, Purpose::Any, now).is_ok())
}
