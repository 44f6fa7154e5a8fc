//! CredentialComposer: changes what is about to be signed.

use std::collections::BTreeMap;

use async_trait::async_trait;
use spire_core::pki::{DistinguishedName, PublicKey};
use spire_core::spiffe::SpiffeId;
use spire_core::time::Timestamp;

use super::Result;

/// What of a CA certificate a composer may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509CaAttributes {
    /// The subject. Its extra names stand after its fields, each on its own, and take the place of a field of their type;
    /// what was read of it does not count.
    pub subject: DistinguishedName,
    /// Certificate policies, dotted OIDs.
    pub policy_identifiers: Vec<String>,
    /// More extensions: OID, DER value, critical.
    pub extra_extensions: Vec<(String, Vec<u8>, bool)>,
}

/// What of an X.509-SVID a composer may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509SvidAttributes {
    /// The subject. Its extra names stand after its fields, each on its own, and take the place of a field of their type;
    /// what was read of it does not count.
    pub subject: DistinguishedName,
    /// DNS names.
    pub dns_names: Vec<String>,
    /// More extensions: OID, DER value, critical.
    pub extra_extensions: Vec<(String, Vec<u8>, bool)>,
}

/// What of a JWT-SVID a composer may change: its claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtSvidAttributes {
    /// Claims by name, as JSON text each.
    pub claims: BTreeMap<String, String>,
    /// When the token expires, as the claims say.
    pub expires_at: Timestamp,
}

/// Hooks on credentials before they are signed, called in configured order. Each returns what it was
/// given, changed or not.
#[async_trait]
pub trait CredentialComposer: Send + Sync {
    /// The plugin's name.
    fn name(&self) -> &str;
    /// A CA of this server.
    async fn server_x509_ca(&self, attributes: X509CaAttributes) -> Result<X509CaAttributes> {
        Ok(attributes)
    }
    /// This server's own SVID.
    async fn server_x509_svid(&self, attributes: X509SvidAttributes) -> Result<X509SvidAttributes> {
        Ok(attributes)
    }
    /// An agent's SVID.
    async fn agent_x509_svid(
        &self,
        _id: &SpiffeId,
        _public_key: &PublicKey,
        attributes: X509SvidAttributes,
    ) -> Result<X509SvidAttributes> {
        Ok(attributes)
    }
    /// A workload's X.509-SVID.
    async fn workload_x509_svid(
        &self,
        _id: &SpiffeId,
        _public_key: &PublicKey,
        attributes: X509SvidAttributes,
    ) -> Result<X509SvidAttributes> {
        Ok(attributes)
    }
    /// A workload's JWT-SVID.
    async fn workload_jwt_svid(
        &self,
        _id: &SpiffeId,
        attributes: JwtSvidAttributes,
    ) -> Result<JwtSvidAttributes> {
        Ok(attributes)
    }
}
