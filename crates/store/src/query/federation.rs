//! Dynamic federation relationships. Their trust domains are stored without scheme, unlike those of bundles.

use async_trait::async_trait;
use spire_core::model::{BundleEndpoint, FederationRelationship, FederationUpdate, Page, Paging};
use spire_core::spiffe::TrustDomain;
use spire_ports::datastore::{Error, Federation, Result};

use super::{bundles, each_row, first_row, page, readable};
use crate::convert::{blob, bundle_from_blob, integer, now, spiffe_id, text_or_empty, trust_domain};
use crate::fault::{Fault, Sql};
use crate::sql::{Isolation, Row, Session, params};
use crate::store::SqlStore;

/// Relationships with their bundles: one statement, no lookup a row.
macro_rules! select {
    ($tail:literal) => {
        concat!(
            "SELECT F.id, F.trust_domain, F.bundle_endpoint_url, F.bundle_endpoint_profile, ",
            "F.endpoint_spiffe_id, B.data FROM federated_trust_domains F ",
            "LEFT JOIN bundles B ON B.trust_domain = CONCAT('spiffe://', F.trust_domain) ",
            $tail
        )
    };
}

const HTTPS_WEB: &str = "https_web";
const HTTPS_SPIFFE: &str = "https_spiffe";

#[async_trait]
impl Federation for SqlStore {
    async fn federation_create(
        &self,
        relationship: &FederationRelationship,
    ) -> Result<FederationRelationship> {
        let relationship = relationship.clone();
        self.write(Isolation::Rows, move |conn| {
            check_bundle(&relationship.trust_domain, relationship.bundle.as_ref())?;
            if let Some(bundle) = &relationship.bundle {
                bundles::set(conn, bundle)?;
            }
            let (profile, endpoint_id) = endpoint_to_stored(&relationship.endpoint);
            conn.execute(
                "INSERT INTO federated_trust_domains (created_at, updated_at, trust_domain, bundle_endpoint_url, \
                 bundle_endpoint_profile, endpoint_spiffe_id, implicit) VALUES (?1, ?1, ?2, ?3, ?4, ?5, FALSE)",
                params![
                    now(),
                    relationship.trust_domain.name(),
                    &relationship.endpoint_url,
                    profile,
                    endpoint_id
                ],
            )?;
            Ok(relationship.clone())
        })
        .await
    }

    async fn federation_fetch(&self, trust_domain: &TrustDomain) -> Result<Option<FederationRelationship>> {
        let domain = trust_domain.clone();
        self.read(move |conn| fetch(conn, &domain)).await
    }

    async fn federation_list(&self, paging: Option<&Paging>) -> Result<Page<FederationRelationship>> {
        let paging = paging.cloned();
        self.read(move |conn| {
            page(paging.as_ref(), |after, limit| {
                let mut rows = Vec::new();
                each_row(
                    conn,
                    select!("WHERE F.id > ?1 ORDER BY F.id LIMIT ?2"),
                    params![after, limit],
                    |row| {
                        let id: i64 = integer(row, 0)?;
                        rows.push((id, readable("federated_trust_domains", id, from_row(row))));
                        Ok(())
                    },
                )?;
                Ok(rows)
            })
        })
        .await
    }

    async fn federation_update(
        &self,
        trust_domain: &TrustDomain,
        update: &FederationUpdate,
    ) -> Result<FederationRelationship> {
        let (domain, update) = (trust_domain.clone(), update.clone());
        self.write(Isolation::Rows, move |conn| {
            let mut relationship = fetch(conn, &domain)?.ok_or(Error::NotFound)?;
            if let Some(url) = &update.endpoint_url {
                relationship.endpoint_url.clone_from(url);
            }
            if let Some(endpoint) = &update.endpoint {
                relationship.endpoint = endpoint.clone();
            }
            if let Some(bundle) = &update.bundle {
                check_bundle(&domain, Some(bundle))?;
                bundles::set(conn, bundle)?;
                relationship.bundle = Some(bundle.clone());
            }
            let (profile, endpoint_id) = endpoint_to_stored(&relationship.endpoint);
            conn.execute(
                "UPDATE federated_trust_domains SET updated_at = ?1, bundle_endpoint_url = ?2, \
                 bundle_endpoint_profile = ?3, endpoint_spiffe_id = ?4 WHERE trust_domain = ?5",
                params![now(), &relationship.endpoint_url, profile, endpoint_id, domain.name()],
            )?;
            Ok(relationship)
        })
        .await
    }

    async fn federation_delete(&self, trust_domain: &TrustDomain) -> Result<()> {
        let domain = trust_domain.clone();
        self.write(Isolation::Rows, move |conn| {
            let sql = "DELETE FROM federated_trust_domains WHERE trust_domain = ?1";
            match conn.execute(sql, params![domain.name()])? {
                0 => Err(Error::NotFound.into()),
                _ => Ok(()),
            }
        })
        .await
    }
}

/// A relationship brings the bundle of its own trust domain; another's must not be overwritten through it.
fn check_bundle(domain: &TrustDomain, bundle: Option<&spire_core::spiffe::Bundle>) -> Sql<()> {
    match bundle {
        Some(bundle) if bundle.trust_domain != *domain => Err(Error::Invalid(format!(
            "trust domain bundle ({}) must match the trust domain of the federation relationship ({domain})",
            bundle.trust_domain
        ))
        .into()),
        _ => Ok(()),
    }
}

fn fetch(conn: &mut dyn Session, domain: &TrustDomain) -> Sql<Option<FederationRelationship>> {
    first_row(conn, select!("WHERE F.trust_domain = ?1"), params![domain.name()], from_row)
}

fn endpoint_to_stored(endpoint: &BundleEndpoint) -> (&'static str, &str) {
    match endpoint {
        BundleEndpoint::HttpsWeb => (HTTPS_WEB, ""),
        BundleEndpoint::HttpsSpiffe(id) => (HTTPS_SPIFFE, id.as_str()),
    }
}

fn from_row(row: &dyn Row) -> Sql<FederationRelationship> {
    let domain = trust_domain(&text_or_empty(row, 1)?)?;
    let endpoint = match &*text_or_empty(row, 3)? {
        HTTPS_WEB => BundleEndpoint::HttpsWeb,
        HTTPS_SPIFFE => BundleEndpoint::HttpsSpiffe(spiffe_id(&text_or_empty(row, 4)?)?),
        other => return Err(Fault::unreadable(format!("unknown bundle endpoint profile type: {other:?}"))),
    };
    let bundle = match blob(row, 5)? {
        Some(blob) => Some(bundle_from_blob(domain.clone(), blob)?),
        None => None,
    };
    Ok(FederationRelationship {
        trust_domain: domain,
        endpoint_url: text_or_empty(row, 2)?.into_owned(),
        endpoint,
        bundle,
    })
}
