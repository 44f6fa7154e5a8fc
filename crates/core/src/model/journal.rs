//! The CA journal: what a server remembers of its authorities across restarts. Private keys stay in the
//! KeyManager; this has their public sides and states only.

use bytes::Bytes;

use crate::time::Timestamp;

/// One server's journal: a row of `ca_journals` (proto/private/server/journal/journal.proto).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaJournal {
    /// X.509 CAs, oldest first.
    pub x509: Vec<X509CaRecord>,
    /// JWT keys, oldest first.
    pub jwt: Vec<KeyRecord>,
    /// WIT keys, oldest first.
    pub wit: Vec<KeyRecord>,
}

/// The two places that authorities of a kind alternate between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotName {
    /// `A`.
    A,
    /// `B`.
    B,
}

impl SlotName {
    /// The letter, as in KeyManager key IDs, the journal and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// Where an authority is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorityStatus {
    /// Written by a version before states were kept.
    Unknown,
    /// In the bundle, not signing yet.
    Prepared,
    /// Signing.
    Active,
    /// No longer signing; what it signed may still be valid.
    Old,
}

/// An X.509 CA in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509CaRecord {
    /// Its slot.
    pub slot: SlotName,
    /// When it was made.
    pub issued_at: Timestamp,
    /// When it expires.
    pub not_after: Timestamp,
    /// The CA certificate, DER.
    pub certificate: Bytes,
    /// The chain up to the upstream root, DER, the CA's own certificate first; empty when self-signed.
    pub upstream_chain: Vec<Bytes>,
    /// Its state.
    pub status: AuthorityStatus,
    /// Subject key ID of the certificate, hex.
    pub authority_id: String,
    /// Subject key ID of the upstream authority that signed it, hex; empty when self-signed.
    pub upstream_authority_id: String,
}

/// A JWT or WIT key in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// Its slot.
    pub slot: SlotName,
    /// When it was made.
    pub issued_at: Timestamp,
    /// When it stops signing.
    pub not_after: Timestamp,
    /// The key ID.
    pub kid: String,
    /// The public key: SubjectPublicKeyInfo, DER.
    pub public_key: Bytes,
    /// Its state.
    pub status: AuthorityStatus,
    /// The authority ID; the key ID for these.
    pub authority_id: String,
}
