//! SVIDStore.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use spire_ports::plugins::{Result, StoredSvid, SvidStore};
use spire_wire::plugin::agent::svidstore::v1::svid_store_client::SvidStoreClient;
use spire_wire::plugin::agent::svidstore::v1::{DeleteX509svidRequest, PutX509svidRequest, X509svid};

use crate::connection::client;
use crate::supervise::Supervised;

pub(super) struct External(pub(super) Arc<Supervised>);

#[async_trait]
impl SvidStore for External {
    fn name(&self) -> &str {
        self.0.plugin().1
    }

    async fn put(&self, svid: &StoredSvid, metadata: &[String]) -> Result<()> {
        let federated = svid.federated_bundles.iter();
        let request = PutX509svidRequest {
            svid: Some(X509svid {
                spiffe_id: svid.spiffe_id.to_string(),
                cert_chain: svid.chain.clone(),
                private_key: svid.private_key.clone(),
                bundle: svid.bundle.clone(),
                expires_at: svid.expires_at.unix(),
            }),
            metadata: metadata.to_vec(),
            // By ID as the entry has it, not by name.
            federated_bundles: federated
                .map(|(trust_domain, roots)| (trust_domain.id_string(), Bytes::from(roots.concat())))
                .collect(),
        };
        let mut client = client!(SvidStoreClient, self.0.channel()?);
        self.0.call(self.0.limits.call, client.put_x509svid(request)).await?;
        Ok(())
    }

    async fn delete(&self, metadata: &[String]) -> Result<()> {
        let request = DeleteX509svidRequest { metadata: metadata.to_vec() };
        let mut client = client!(SvidStoreClient, self.0.channel()?);
        self.0.call(self.0.limits.call, client.delete_x509svid(request)).await?;
        Ok(())
    }
}
