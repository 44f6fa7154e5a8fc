//! CredentialComposer `uniqueid`: puts an x500UniqueIdentifier, made from the SPIFFE ID, into the subject
//! of workloads' X.509-SVIDs.

use std::sync::Arc;

use async_trait::async_trait;
use spire_core::pki::{DistinguishedName, PublicKey};
use spire_core::spiffe::SpiffeId;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{CredentialComposer, Result, X509SvidAttributes};

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
            let extra = &mut attributes.subject.extra_names;
            match extra.iter_mut().find(|attribute| attribute.oid == unique.oid) {
                Some(attribute) => *attribute = unique,
                None => extra.push(unique),
            }
        }
        Ok(attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::{DistinguishedName, SpiffeId, X509SvidAttributes, build};
    use crate::test_ca::configuration;
    use spire_core::pki::{KeyType, LocalKey, NameAttribute};
    use spire_ports::plugins::PluginType;

    /// The value is `printf spiffe://example.org/foo | sha256sum`, its first half.
    #[tokio::test]
    async fn workloads_get_one_and_only_one() {
        let composer = build(configuration(PluginType::CredentialComposer, "uniqueid", "")).await.unwrap();
        let id = SpiffeId::parse("spiffe://example.org/foo").unwrap();
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let attribute =
            |oid: &str, value: &str| NameAttribute { oid: oid.to_owned(), value: value.to_owned() };
        let given = |extra_names| X509SvidAttributes {
            subject: DistinguishedName { extra_names, ..DistinguishedName::default_svid() },
            dns_names: vec![],
            extra_extensions: vec![],
        };
        let unique = attribute("2.5.4.45", UNIQUE_ID);
        let other = attribute("2.5.4.41", "name");
        for (before, after) in [
            (vec![], vec![unique.clone()]),
            (vec![other.clone()], vec![other.clone(), unique.clone()]),
            (vec![attribute("2.5.4.45", "x"), other.clone()], vec![unique.clone(), other.clone()]),
        ] {
            let found = composer.workload_x509_svid(&id, key.public_key(), given(before)).await.unwrap();
            assert_eq!(found, given(after));
        }
        let agent = composer.agent_x509_svid(&id, key.public_key(), given(vec![])).await.unwrap();
        assert_eq!(agent, given(vec![]));
    }

    const UNIQUE_ID: &str = "c3406f9b12ceb4f9c948318c579b905b";
}
