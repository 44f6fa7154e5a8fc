//! Making authorities: key, certificate, bundle, journal, in that order.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use spire_core::authority::{Authority, Kind, jwt_authority, key_id, preparation_due, x509_bundle_addition};
use spire_core::model::{AuthorityStatus, KeyRecord, SlotName, X509CaRecord};
use spire_core::pki::chain::verify_svid;
use spire_core::pki::{
    Certificate, CertificateTemplate, CsrTemplate, Issuer, Profile, PublicKey, SerialNumber, ca_subject,
    self_signed, validity,
};
use spire_core::spiffe::{Bundle, JwtAuthority, SpiffeId};
use spire_core::time::Timestamp;
use spire_ports::observe::names::server as metric;
use spire_ports::observe::{Call, Logged};
use spire_ports::plugins::{ErrorKind, Key};

use super::active::issue;
use super::authorities::{Authorities, Change, Made, SUBSYSTEM, State, parse};
use super::compose::Composed;
use super::error::CaError;
use super::upstream::{Upstream, keys_of};
use super::validate;

/// How long the upstream authority may take to publish a JWT key (pkg/server/ca/manager publishJWKTimeout).
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the upstream authority may take to sign a CA while another one signs. The reference waits without end, and
/// so can block every rotation for good.
const MINT_TIMEOUT: Duration = Duration::from_secs(60);

impl Authorities {
    /// Makes an X.509 CA in the slot.
    pub(super) async fn prepare_x509(&self, state: &mut State, slot: SlotName) -> Result<(), CaError> {
        let call = Call::start(&*self.ports.metrics, metric::CA_MANAGER_X509_CA_PREPARE);
        let result = self.make_and_record_x509(state, slot).await;
        call.done_with(&result);
        result
    }

    /// Makes a JWT or WIT key in the slot.
    pub(super) async fn prepare_key(
        &self,
        state: &mut State,
        kind: Kind,
        slot: SlotName,
    ) -> Result<(), CaError> {
        let name = match kind {
            Kind::Wit => metric::CA_MANAGER_WIT_KEY_PREPARE,
            _ => metric::CA_MANAGER_JWT_KEY_PREPARE,
        };
        let call = Call::start(&*self.ports.metrics, name);
        let result = self.make_and_record_key(state, kind, slot).await;
        call.done_with(&result);
        result
    }

    async fn make_and_record_x509(&self, state: &mut State, slot: SlotName) -> Result<(), CaError> {
        tracing::debug!(subsystem_name = SUBSYSTEM, slot = slot.as_str(), "Preparing X509 CA");
        let now = self.ports.clock.now();
        let made = match state.x509.made.take().filter(|made| is_fresh(&made.authority, slot, now)) {
            Some(made) => made,
            None => {
                state.x509.slots = std::mem::take(&mut state.x509.slots).vacated(slot);
                *state.x509.key_mut(slot) = None;
                self.show(state);
                let id = Kind::X509.key_id(slot);
                let key = self.ports.key_manager.generate_key(id, self.config.ca_key_type).await?;
                let authority = match &self.upstream {
                    None => self.self_sign(key.as_ref(), slot, now).await?,
                    Some(upstream) => {
                        // While something signs, other work waits for us; at the first start nothing does.
                        let at_most = state.x509.slots.active().map_or(Duration::MAX, |_| MINT_TIMEOUT);
                        self.upstream_sign(upstream, key.as_ref(), slot, at_most).await?
                    }
                };
                Made { authority, key }
            }
        };
        // From here on what was made is kept whatever fails.
        let authority = made.authority.clone();
        let key = state.x509.made.insert(made).key.clone();
        if self.upstream.is_none() {
            let addition = x509_bundle_addition(&self.config.trust_domain, authority.certificate.clone());
            self.changes.append(&addition).await?;
        }
        let next = state.x509.slots.prepared(authority.clone())?;
        self.store_journal(state, Change::X509(&next)).await?;
        state.x509.slots = next;
        *state.x509.key_mut(slot) = Some(key);
        state.x509.made = None;
        self.show(state);
        tracing::info!(
            subsystem_name = SUBSYSTEM,
            slot = slot.as_str(),
            issued_at = Logged::Time(authority.issued_at.unix()).value(),
            expiration = Logged::Time(authority.not_after.unix()).value(),
            self_signed = self.upstream.is_none(),
            local_authority_id = authority.id(),
            upstream_authority_id = authority.upstream_authority_id.as_str(),
            "X509 CA prepared"
        );
        Ok(())
    }

    async fn make_and_record_key(
        &self,
        state: &mut State,
        kind: Kind,
        slot: SlotName,
    ) -> Result<(), CaError> {
        let (preparing, prepared, key_type) = match kind {
            Kind::Wit => ("Preparing WIT key", "WIT key prepared", self.config.wit_key_type),
            _ => ("Preparing JWT key", "JWT key prepared", self.config.jwt_key_type),
        };
        tracing::debug!(subsystem_name = SUBSYSTEM, slot = slot.as_str(), "{preparing}");
        let now = self.ports.clock.now();
        let lane = state.keys_mut(kind);
        let made = match lane.made.take().filter(|made| is_fresh(&made.authority, slot, now)) {
            Some(made) => made,
            None => {
                lane.slots = std::mem::take(&mut lane.slots).vacated(slot);
                *lane.key_mut(slot) = None;
                let key = self.ports.key_manager.generate_key(kind.key_id(slot), key_type).await?;
                let kid = key_id(&self.ca.random_bytes()?);
                let authority = KeyRecord {
                    slot,
                    issued_at: now,
                    not_after: now + self.config.ca_ttl,
                    authority_id: kid.clone(),
                    kid,
                    public_key: key.public_key().spki().clone(),
                    status: AuthorityStatus::Prepared,
                };
                Made { authority, key }
            }
        };
        let authority = made.authority.clone();
        let key = lane.made.insert(made).key.clone();
        self.publish_key(kind, jwt_authority(&authority)).await?;
        let next = state.keys(kind).slots.prepared(authority.clone())?;
        self.store_journal(state, Change::Key(kind, &next)).await?;
        let lane = state.keys_mut(kind);
        lane.slots = next;
        *lane.key_mut(slot) = Some(key);
        lane.made = None;
        self.show(state);
        tracing::info!(
            subsystem_name = SUBSYSTEM,
            slot = slot.as_str(),
            issued_at = Logged::Time(authority.issued_at.unix()).value(),
            expiration = Logged::Time(authority.not_after.unix()).value(),
            local_authority_id = authority.id(),
            "{prepared}"
        );
        Ok(())
    }

    /// Publishes a JWT or WIT key, ours or a downstream server's: upstream where that is supported, and in any case in
    /// our bundle. Returns all keys of that kind in the bundle.
    ///
    /// # Errors
    /// The upstream authority's, if it is another than "not implemented", and the datastore's.
    pub async fn publish_key(&self, kind: Kind, key: JwtAuthority) -> Result<Vec<JwtAuthority>, CaError> {
        if let Some(upstream) = &self.upstream {
            let published = tokio::time::timeout(PUBLISH_TIMEOUT, upstream.publish_key(kind, &key))
                .await
                .map_err(|_| CaError::UpstreamTimeout(PUBLISH_TIMEOUT.as_secs()))?;
            match published {
                Ok(keys) => upstream.roots.sync_keys(kind, &keys).await?,
                Err(error) if error.kind == ErrorKind::Unimplemented => self.warn_once(kind, upstream.name()),
                Err(error) => return Err(error.into()),
            }
        }
        // The key must be in our bundle before it signs, whatever the upstream says it has.
        let mut addition = Bundle::empty(self.config.trust_domain.clone());
        *keys_of(&mut addition, kind) = vec![key];
        let mut bundle = Bundle::clone(&*self.changes.append(&addition).await?);
        Ok(std::mem::take(keys_of(&mut bundle, kind)))
    }

    fn warn_once(&self, kind: Kind, plugin: &str) {
        let (warned, svids) = match kind {
            Kind::Wit => (&self.publishing_warned[1], "WIT-SVIDs"),
            _ => (&self.publishing_warned[0], "JWT-SVIDs"),
        };
        if !warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                subsystem_name = SUBSYSTEM,
                plugin_name = plugin,
                "UpstreamAuthority plugin does not support {svids}. Workloads managed by this server may have \
                 trouble communicating with workloads outside this cluster when using {svids}."
            );
        }
    }

    async fn self_sign(
        &self,
        key: &dyn Key,
        slot: SlotName,
        now: Timestamp,
    ) -> Result<X509CaRecord, CaError> {
        let serial = self.ca.serial()?;
        let composed = self.composed_ca(serial).await?;
        let (not_before, not_after) = validity(now, self.config.ca_ttl, None);
        let id = self.config.trust_domain.id();
        let subject = composed.subject.encode().map_err(super::SignError::from)?;
        let template = CertificateTemplate {
            profile: Profile::Ca,
            serial,
            subject: &subject,
            not_before,
            not_after,
            public_key: key.public_key(),
            dns_names: &[],
            uri: id.as_str(),
            policies: &composed.policies,
            extra_extensions: &composed.extra_extensions,
        };
        let to_be_signed = self_signed(&template).map_err(super::SignError::from)?;
        let der = issue(key, to_be_signed, "unable to create X509 CA").await?;
        let certificate = parse(der, "CA certificate")?;
        validate::x509_ca(&certificate, &id, now)
            .map_err(|e| CaError::BadCa(format!("invalid downstream X509 CA: {e}")))?;
        Ok(record(slot, now, &certificate, Vec::new()))
    }

    async fn upstream_sign(
        &self,
        upstream: &Upstream,
        key: &dyn Key,
        slot: SlotName,
        at_most: Duration,
    ) -> Result<X509CaRecord, CaError> {
        let composed = self.composed_ca(self.ca.serial()?).await?;
        let id = self.config.trust_domain.id();
        let subject = composed.subject.encode().map_err(super::SignError::from)?;
        let template = CsrTemplate {
            subject: &subject,
            public_key: key.public_key(),
            dns_names: &[],
            uris: &[id.as_str()],
            extra_extensions: &composed.extra_extensions,
        };
        let to_be_signed = template.to_be_signed().map_err(super::SignError::from)?;
        let csr = issue(key, to_be_signed, "unable to create CSR for X509 CA").await?;
        let minted = tokio::time::timeout(at_most, upstream.mint_x509_ca(&csr, &id, self.config.ca_ttl))
            .await
            .map_err(|_| CaError::UpstreamTimeout(at_most.as_secs()))??;
        // It may have taken long.
        let now = self.ports.clock.now();
        let chain = parse_all(&minted.chain, "upstream chain certificate")?;
        let roots: Vec<Bytes> = minted.roots.iter().map(|root| root.der.clone()).collect();
        let roots = parse_all(&roots, "root certificate")?;
        self.check_upstream_ca(key, &chain, &roots, now)
            .await
            .map_err(|e| CaError::BadCa(format!("X509 CA minted by upstream authority is invalid: {e}")))?;
        let record = chain.first().map(|ca| record(slot, now, ca, minted.chain.clone()));
        upstream.follow_x509(minted).await?;
        record.ok_or_else(|| CaError::BadCa("upstream authority returned no X509 CA".to_owned()))
    }

    async fn composed_ca(&self, serial: SerialNumber) -> Result<Composed, CaError> {
        let subject = ca_subject(&self.config.ca_subject, serial);
        Ok(self.ca.compose_ca(Composed { subject, ..Composed::default() }).await?)
    }

    /// Whether SVIDs that this CA signs can be verified with the upstream's roots: signs one and verifies
    /// it (pkg/server/ca/validation.go).
    async fn check_upstream_ca(
        &self,
        key: &dyn Key,
        chain: &[Certificate],
        roots: &[Certificate],
        now: Timestamp,
    ) -> Result<(), String> {
        let ca = chain.first().ok_or("no certificates")?;
        let td = self.config.trust_domain.id();
        validate::x509_ca(ca, &td, now).map_err(|e| format!("invalid upstream-signed X509 CA: {e}"))?;
        if ca.public_key().ok() != Some(key.public_key()) {
            return Err("the certificate is not for the requested key".to_owned());
        }
        let issuer = Issuer::new(ca).map_err(|e| e.to_string())?;
        let id =
            SpiffeId::from_path(&self.config.trust_domain, "/spire/throwaway").map_err(|e| e.to_string())?;
        let leaf = throwaway(&issuer, key, key.public_key(), &id, ca)
            .await
            .map_err(|e| format!("failed to sign validation certificate: {e}"))?;
        let mut svid = vec![leaf];
        svid.extend_from_slice(chain);
        verify_svid(&svid, |_| Some(roots), now)
            .map(|_| ())
            .map_err(|e| format!("X509 CA produced an invalid X509-SVID chain: {e}"))
    }
}

async fn throwaway(
    issuer: &Issuer,
    key: &dyn Key,
    public_key: &PublicKey,
    id: &SpiffeId,
    ca: &Certificate,
) -> Result<Certificate, super::SignError> {
    let subject = spire_core::pki::DistinguishedName::default_svid().encode()?;
    let template = CertificateTemplate {
        profile: Profile::Svid,
        serial: SerialNumber::from_random([0; 16]),
        subject: &subject,
        not_before: ca.not_before(),
        not_after: ca.not_after(),
        public_key,
        dns_names: &[],
        uri: id.as_str(),
        policies: &[],
        extra_extensions: &[],
    };
    let der = issue(key, issuer.certificate(&template)?, "failed to sign X509 SVID").await?;
    Ok(Certificate::from_der(der)?)
}

/// What was made earlier and not recorded may be used if it is for this slot and still young.
fn is_fresh<A: Authority>(made: &A, slot: SlotName, now: Timestamp) -> bool {
    // Where the clock was set back, what was made is of the future.
    made.slot() == slot
        && made.issued_at() <= now
        && !preparation_due(made.issued_at(), made.not_after(), now)
}

fn record(slot: SlotName, now: Timestamp, ca: &Certificate, upstream_chain: Vec<Bytes>) -> X509CaRecord {
    X509CaRecord {
        slot,
        issued_at: now,
        not_after: ca.not_after(),
        certificate: ca.der().clone(),
        upstream_chain,
        status: AuthorityStatus::Prepared,
        authority_id: ca.authority_id(),
        upstream_authority_id: hex::encode(ca.authority_key_id().unwrap_or_default()),
    }
}

pub(super) fn parse_all(ders: &[Bytes], what: &'static str) -> Result<Vec<Certificate>, CaError> {
    ders.iter().map(|der| parse(der.clone(), what)).collect()
}
