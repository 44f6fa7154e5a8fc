//! The authorities that sign, as the signing plane sees them.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use spire_core::authority::Kind;
use spire_core::pki::{Certificate, Issuer, PublicKeyError, TemplateError, ToBeSigned};
use spire_core::time::Timestamp;
use spire_ports::plugins::{self, Key};

use super::error::SignError;

/// The X.509 CA that signs, with everything precomputed that each certificate repeats.
pub struct ActiveX509 {
    key: Arc<dyn Key>,
    certificate: Certificate,
    issuer: Issuer,
    upstream_chain: Vec<Bytes>,
}

impl ActiveX509 {
    /// `upstream_chain` is the CA certificate and what leads from it to the upstream root, without the
    /// root; empty for a self-signed CA.
    ///
    /// # Errors
    /// The CA's key is of a kind that does not sign.
    pub fn new(
        key: Arc<dyn Key>,
        certificate: Certificate,
        upstream_chain: Vec<Bytes>,
    ) -> Result<Self, PublicKeyError> {
        let issuer = Issuer::new(&certificate)?;
        Ok(Self { key, certificate, issuer, upstream_chain })
    }

    /// The CA certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// As issuer of certificates.
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// What follows a leaf in its chain, DER.
    pub fn upstream_chain(&self) -> &[Bytes] {
        &self.upstream_chain
    }

    /// How many certificates there are between a leaf and the root's side, the CA's own included.
    pub fn chain_len(&self) -> usize {
        self.upstream_chain.len().max(1)
    }

    /// Signs and assembles.
    pub(super) async fn issue(
        &self,
        to_be_signed: Result<ToBeSigned, TemplateError>,
        what: &'static str,
    ) -> Result<Bytes, SignError> {
        issue(self.key.as_ref(), to_be_signed?, what).await
    }

    /// The chain of a leaf.
    pub(super) fn chain_of(&self, leaf: Bytes) -> Vec<Bytes> {
        let mut chain = Vec::with_capacity(1 + self.upstream_chain.len());
        chain.push(leaf);
        chain.extend_from_slice(&self.upstream_chain);
        chain
    }
}

/// Lets a key sign a certificate or request, and puts it together.
pub(super) async fn issue(
    key: &dyn Key,
    to_be_signed: ToBeSigned,
    what: &'static str,
) -> Result<Bytes, SignError> {
    let signature = key
        .sign(to_be_signed.algorithm(), to_be_signed.bytes())
        .await
        .map_err(|source: plugins::Error| SignError::Key { what, source })?;
    Ok(to_be_signed.assemble(&signature).into())
}

impl fmt::Debug for ActiveX509 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActiveX509")
            .field("authority_id", &self.certificate.authority_id())
            .finish_non_exhaustive()
    }
}

/// The JWT or WIT key that signs.
pub struct ActiveKey {
    pub(super) key: Arc<dyn Key>,
    /// JWT or WIT.
    pub(super) kind: Kind,
    /// The key ID in the header of tokens.
    pub(super) kid: String,
    /// Tokens must not outlive it.
    pub(super) not_after: Timestamp,
}

impl ActiveKey {
    /// The key ID.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// When the key stops signing.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

impl fmt::Debug for ActiveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActiveKey").field("kind", &self.kind).field("kid", &self.kid).finish_non_exhaustive()
    }
}
