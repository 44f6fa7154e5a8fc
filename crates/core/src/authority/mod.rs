//! One slot machine for X.509, JWT and WIT authorities.
//!
//! A server has two slots for each kind of authority, A and B. One holds the authority that signs; the
//! other is empty, holds the one that will sign next, or the one that signed before:
//!
//! ```text
//! empty ──prepare──▶ prepared ──activate──▶ active ──(the other is activated)──▶ old ──prepare──▶ …
//! ```
//!
//! Nothing here makes keys, writes or signs. [`Slots::step`] says what is due, the shell carries it out in
//! the order *key, certificate, bundle, journal*, and only then takes the machine's next value
//! ([`Slots::prepared`], [`Slots::activated`]). So memory is never ahead of what is stored, a failure at
//! any point leaves a state from which the same step follows again, and a restart goes the same way as a
//! rotation.
//!
//! Sources: the reference's pkg/server/ca/manager (slots, journal), pkg/server/ca/rotator (schedule),
//! pkg/server/api/localauthority/v1 (operator's rules).

mod operations;
mod schedule;
mod slots;

pub use operations::{Fault, OperationError, check_key_revocation, check_upstream};
pub use schedule::{ACTIVATION_CAP, activation_due, ca_ttl_min, preparation_due, svid_ttl_max};
pub use slots::{Authority, HISTORY_MAX, Loaded, Slot, Slots, Step, Unusable, check_usable};

use bytes::Bytes;

use crate::model::{AuthorityStatus, KeyRecord, SlotName, X509CaRecord};
use crate::spiffe::{Bundle, JwtAuthority, TrustDomain, X509Authority};
use crate::time::Timestamp;

/// The three kinds of authorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// CAs that sign X.509-SVIDs.
    X509,
    /// Keys that sign JWT-SVIDs.
    Jwt,
    /// Keys that sign WIT-SVIDs.
    Wit,
}

impl Kind {
    /// The KeyManager's id of the key in a slot.
    pub const fn key_id(self, slot: SlotName) -> &'static str {
        match (self, slot) {
            (Self::X509, SlotName::A) => "x509-CA-A",
            (Self::X509, SlotName::B) => "x509-CA-B",
            (Self::Jwt, SlotName::A) => "JWT-Signer-A",
            (Self::Jwt, SlotName::B) => "JWT-Signer-B",
            (Self::Wit, SlotName::A) => "WIT-Signer-A",
            (Self::Wit, SlotName::B) => "WIT-Signer-B",
        }
    }
}

impl Authority for X509CaRecord {
    fn slot(&self) -> SlotName {
        self.slot
    }

    fn issued_at(&self) -> Timestamp {
        self.issued_at
    }

    fn not_after(&self) -> Timestamp {
        self.not_after
    }

    fn status(&self) -> AuthorityStatus {
        self.status
    }

    fn set_status(&mut self, status: AuthorityStatus) {
        self.status = status;
    }

    fn id(&self) -> &str {
        &self.authority_id
    }

    fn is_intermediate(&self) -> bool {
        !self.upstream_chain.is_empty()
    }
}

impl Authority for KeyRecord {
    fn slot(&self) -> SlotName {
        self.slot
    }

    fn issued_at(&self) -> Timestamp {
        self.issued_at
    }

    fn not_after(&self) -> Timestamp {
        self.not_after
    }

    fn status(&self) -> AuthorityStatus {
        self.status
    }

    fn set_status(&mut self, status: AuthorityStatus) {
        self.status = status;
    }

    fn id(&self) -> &str {
        &self.authority_id
    }
}

/// What preparing a self-signed CA adds to the bundle of the trust domain.
pub fn x509_bundle_addition(trust_domain: &TrustDomain, certificate: Bytes) -> Bundle {
    let mut bundle = Bundle::empty(trust_domain.clone());
    bundle.x509_authorities.push(X509Authority { der: certificate, tainted: false });
    bundle
}

/// A key as the bundle has it.
pub fn jwt_authority(record: &KeyRecord) -> JwtAuthority {
    JwtAuthority {
        kid: record.kid.clone(),
        public_key: record.public_key.clone(),
        not_after: record.not_after,
        tainted: false,
    }
}

/// A key ID of 32 letters and digits from random bytes (pkg/server/ca/manager newKeyID). The slight bias
/// towards the first letters does not matter: the ID must be unique, not secret.
pub fn key_id(random: &[u8; 32]) -> String {
    const ALPHABET: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    random.iter().map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests;
