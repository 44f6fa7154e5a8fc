//! Cases of [`Federation`](crate::datastore::Federation).

use std::sync::Arc;

use spire_core::model::{BundleEndpoint, FederationRelationship, FederationUpdate};

use super::{FIRST, SECOND, bundle, domain, id, paging};
use crate::datastore::{DataStore, Error};

fn relationship(name: &str) -> FederationRelationship {
    FederationRelationship {
        trust_domain: domain(name),
        endpoint_url: format!("https://{name}/bundle"),
        endpoint: BundleEndpoint::HttpsWeb,
        bundle: None,
    }
}

/// With either profile; a trust domain has one relationship.
pub async fn a_relationship_reads_back(store: Arc<dyn DataStore>) {
    let web = relationship("web.test");
    let mut spiffe = relationship("spiffe.test");
    spiffe.endpoint = BundleEndpoint::HttpsSpiffe(id("/endpoint"));
    for wanted in [web, spiffe] {
        assert_eq!(store.federation_fetch(&wanted.trust_domain).await, Ok(None));
        assert_eq!(store.federation_create(&wanted).await, Ok(wanted.clone()));
        let again = store.federation_create(&wanted).await;
        assert!(matches!(again, Err(Error::AlreadyExists(_))), "{again:?}");
        assert_eq!(store.federation_fetch(&wanted.trust_domain).await, Ok(Some(wanted)));
    }
}

/// In one transaction, and never another trust domain's.
pub async fn its_bundle_is_stored_with_it(store: Arc<dyn DataStore>) {
    let mut wanted = relationship("a.test");
    wanted.bundle = Some(bundle("b.test", &[FIRST]));
    let refusal = store.federation_create(&wanted).await;
    assert!(matches!(refusal, Err(Error::Invalid(_))), "{refusal:?}");
    wanted.bundle = Some(bundle("a.test", &[FIRST]));
    store.federation_create(&wanted).await.unwrap();
    assert_eq!(store.bundle_fetch(&domain("a.test")).await.unwrap(), wanted.bundle);
    assert_eq!(store.federation_fetch(&domain("a.test")).await, Ok(Some(wanted.clone())));
    // A second creation fails, and so does not replace the bundle.
    let mut second = wanted.clone();
    second.bundle = Some(bundle("a.test", &[SECOND]));
    store.federation_create(&second).await.unwrap_err();
    assert_eq!(store.bundle_fetch(&domain("a.test")).await.unwrap(), wanted.bundle);
    // A bundle that came otherwise is shown too.
    store.bundle_set(&bundle("a.test", &[SECOND])).await.unwrap();
    assert_eq!(store.federation_fetch(&domain("a.test")).await.unwrap().unwrap().bundle, second.bundle);
}

/// `None` leaves a field as it is.
pub async fn updates_set_named_fields(store: Arc<dyn DataStore>) {
    let mut wanted = relationship("a.test");
    let nothing = FederationUpdate::default();
    assert_eq!(store.federation_update(&wanted.trust_domain, &nothing).await, Err(Error::NotFound));
    store.federation_create(&wanted).await.unwrap();
    assert_eq!(store.federation_update(&wanted.trust_domain, &nothing).await, Ok(wanted.clone()));
    let url =
        FederationUpdate { endpoint_url: Some("https://other.test".into()), ..FederationUpdate::default() };
    wanted.endpoint_url = "https://other.test".into();
    assert_eq!(store.federation_update(&wanted.trust_domain, &url).await, Ok(wanted.clone()));
    let rest = FederationUpdate {
        endpoint: Some(BundleEndpoint::HttpsSpiffe(id("/endpoint"))),
        bundle: Some(bundle("a.test", &[FIRST])),
        ..FederationUpdate::default()
    };
    wanted.endpoint = BundleEndpoint::HttpsSpiffe(id("/endpoint"));
    wanted.bundle = rest.bundle.clone();
    assert_eq!(store.federation_update(&wanted.trust_domain, &rest).await, Ok(wanted.clone()));
    assert_eq!(store.federation_fetch(&wanted.trust_domain).await, Ok(Some(wanted)));
}

/// The relationship goes alone.
pub async fn deletion_keeps_the_bundle(store: Arc<dyn DataStore>) {
    let mut wanted = relationship("a.test");
    wanted.bundle = Some(bundle("a.test", &[FIRST]));
    assert_eq!(store.federation_delete(&wanted.trust_domain).await, Err(Error::NotFound));
    store.federation_create(&wanted).await.unwrap();
    store.federation_delete(&wanted.trust_domain).await.unwrap();
    assert_eq!(store.federation_fetch(&wanted.trust_domain).await, Ok(None));
    assert_eq!(store.bundle_fetch(&wanted.trust_domain).await.unwrap(), wanted.bundle);
}

/// All, and page by page.
pub async fn list_pages_in_row_order(store: Arc<dyn DataStore>) {
    let mut all = Vec::new();
    for name in ["c.test", "a.test", "b.test"] {
        let mut wanted = relationship(name);
        wanted.bundle = (name != "a.test").then(|| bundle(name, &[FIRST]));
        all.push(store.federation_create(&wanted).await.unwrap());
    }
    assert_eq!(store.federation_list(None).await.unwrap().items, all);
    let first = store.federation_list(Some(&paging(2, &String::new()))).await.unwrap();
    assert_eq!(first.items, all[..2]);
    let second = store.federation_list(Some(&paging(2, &first.next))).await.unwrap();
    assert_eq!(second.items, all[2..]);
    let last = store.federation_list(Some(&paging(2, &second.next))).await.unwrap();
    assert!(last.items.is_empty() && last.next.is_empty());
}
