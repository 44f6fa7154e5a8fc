//! CredentialComposer `uniqueid`: puts an x500UniqueIdentifier, made from the SPIFFE ID, into the subject
//! of workloads' X.509-SVIDs.

use std::sync::Arc;

use async_trait::async_trait;
use spire_core::pki::{DistinguishedName, PublicKey};
use spire_core::spiffe::SpiffeId;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{CredentialComposer, NameAttribute, Result, X509SvidAttributes};

struct UniqueId;

/// The composer, which takes no settings.
pub(crate) async fn build(_: Configuration) -> Result<Arc<dyn CredentialComposer>> {
    Ok(Arc::new(UniqueId))
}

#[async_trait]
impl CredentialComposer for UniqueId {
    fn name(&self) -> &str {
        "uniqueid"
    }

    async fn workload_x509_svid(
        &self,
        id: &SpiffeId,
        _: &PublicKey,
        mut attributes: X509SvidAttributes,
    ) -> Result<X509SvidAttributes> {
        let mut name = DistinguishedName::default();
        name.push_unique_id(id.as_str());
        for unique in name.extra_names {
            let unique = NameAttribute { oid: unique.oid, value: unique.value };
            match attributes.subject.iter_mut().find(|attribute| attribute.oid == unique.oid) {
                Some(attribute) => *attribute = unique,
                None => attributes.subject.push(unique),
            }
        }
        Ok(attributes)
    }
}
