//! Sizes of the caches, and an agent without its Workload API.

use spire_core::spiffe::{Selector, Selectors};

use super::*;

fn selectors(value: &str) -> Selectors {
    [Selector::new("test", value).unwrap()].into_iter().collect()
}

#[tokio::test]
async fn svids_are_fetched_ahead_up_to_the_size_and_for_whoever_connects() {
    let server = FakeServer::start().await;
    let mut lazy = entry("a-lazy", "uid:0");
    lazy.additional_attributes =
        Some(types::entry::AdditionalAttributes { disable_x509_svid_prefetch: true, ..Default::default() });
    server.change(|state| {
        state.entries = vec![lazy, entry("b", "uid:1"), entry("c", "uid:1"), entry("d", "uid:1")];
    });
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(&server, folder.path());
    options.x509_svid_cache_max_size = 2;
    let (core, _) = Box::pin(start(Arc::new(options), &deps(&[]))).await.unwrap();
    assert_eq!(core.fetch_svids(10).await.unwrap(), 2, "as many as fit");
    assert_eq!(core.fetch_svids(10).await.unwrap(), 0);
    let held = || core.identities().read(|cache| cache.svid_count());
    assert_eq!(held(), 2);

    // What is not fetched ahead is fetched when it is wanted, and takes the place of another.
    let mut subscription = core.identities().subscribe(&selectors("uid:0"));
    assert!(subscription.current().unwrap().view.is_incomplete());
    assert_eq!(core.fetch_svids(10).await.unwrap(), 1);
    let served = subscription.first().await.unwrap();
    assert_eq!(served.view.identities().next().unwrap().0.spiffe_id.as_str(), "spiffe://test.org/a-lazy");
    assert_eq!(held(), 2);

    // Those of connected workloads are held, however many they are.
    let mut others = core.identities().subscribe(&selectors("uid:1"));
    assert_eq!(core.fetch_svids(10).await.unwrap(), 2);
    assert_eq!(others.first().await.unwrap().view.identities().count(), 3);
    assert_eq!(held(), 4);
}

#[tokio::test]
async fn tokens_are_kept_up_to_the_size() {
    let server = FakeServer::start().await;
    server.change(|state| state.entries = vec![entry("web", "uid:1")]);
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(&server, folder.path());
    options.jwt_svid_cache_max_size = 2;
    let (core, _) = Box::pin(start(Arc::new(options), &deps(&[]))).await.unwrap();
    let entry = core.identities().matching(&selectors("uid:1")).remove(0);
    let fetch =
        async |audience: &str| core.jwt_svid(&entry, &[audience.to_owned()]).await.unwrap().token.clone();
    let first = fetch("a").await;
    assert_eq!(fetch("a").await, first);
    assert_eq!(server.count("NewJWTSVID"), 1);
    for audience in ["b", "a", "c", "a"] {
        fetch(audience).await;
    }
    assert_eq!((server.count("NewJWTSVID"), core.jwt_svid_count()), (3, 2), "\"a\" was used in between");
    fetch("b").await;
    assert_eq!((server.count("NewJWTSVID"), core.jwt_svid_count()), (4, 2));
}

#[tokio::test]
async fn without_the_workload_api_its_socket_still_tells_of_health() {
    let server = FakeServer::start().await;
    server.change(|state| state.entries = vec![entry("web", "uid:1")]);
    let running =
        Running::start(&server, deps(&["uid:1"]), |options| options.disable_workload_api = true).await;
    assert_eq!(running.x509().await.unwrap_err().code(), Code::Unimplemented);
    let socket = running.folder.path().join("public/api.sock");
    let channel = spire_net::grpc::unix_channel(spire_net::tls::UnixConnector::new(socket));
    let health = HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(health.into_inner().status, 1);
    running.stop().await;
}
