//! The Bundle service.

use spire_wire::api::server::bundle::v1::*;

use super::*;

#[tokio::test]
async fn anybody_may_see_our_bundle() {
    let world = World::new().await;
    let bundle =
        world.bundles(anonymous()).get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    assert_eq!((&*bundle.trust_domain, bundle.x509_authorities.len()), ("example.org", 1));
    let mask = types::BundleMask { sequence_number: true, ..Default::default() };
    let masked = world.bundles(anonymous()).get_bundle(GetBundleRequest { output_mask: Some(mask) }).await;
    assert!(masked.unwrap().into_inner().x509_authorities.is_empty());
}

#[tokio::test(start_paused = true)]
async fn our_bundle_is_read_once_a_second_and_served_while_the_datastore_is_silent() {
    let world = World::new().await;
    let reads = || world.store.asked.load(std::sync::atomic::Ordering::Relaxed);
    let get = || async { world.bundles(anonymous()).get_bundle(GetBundleRequest::default()).await.unwrap() };
    get().await;
    let before = reads();
    get().await;
    assert_eq!(reads(), before);
    tokio::time::sleep(Duration::from_millis(1001)).await;
    world.store.silent.send_replace(true);
    let asked = tokio::time::Instant::now();
    tokio::join!(get(), get(), get());
    assert_eq!((reads(), asked.elapsed().as_secs()), (before + 1, 3), "all wait for one read");
    get().await;
    assert_eq!(asked.elapsed().as_secs(), 3, "nobody waits again at once");
    world.store.silent.send_replace(false);
    tokio::time::sleep(Duration::from_millis(1001)).await;
    get().await;
    assert_eq!(reads(), before + 2);
}

#[tokio::test]
async fn a_federated_bundle_is_read_again_once_it_was_written() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    let set = async |hint: i64| {
        let bundle =
            types::Bundle { trust_domain: "other.org".into(), refresh_hint: hint, ..Default::default() };
        let request = BatchSetFederatedBundleRequest { bundle: vec![bundle], output_mask: None };
        world.bundles(local()).batch_set_federated_bundle(request).await.unwrap();
    };
    let get = async || {
        let request = GetFederatedBundleRequest { trust_domain: "other.org".into(), output_mask: None };
        world.bundles(agent.clone()).get_federated_bundle(request).await.unwrap().into_inner().refresh_hint
    };
    set(1).await;
    let before = world.store.asked.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((get().await, get().await), (1, 1));
    assert_eq!(world.store.asked.load(std::sync::atomic::Ordering::Relaxed), before + 1);
    set(2).await;
    assert_eq!(get().await, 2);
}

#[tokio::test]
async fn federated_bundles_have_a_life_of_their_own() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    let ours = world.bundles(local()).get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    let foreign = types::Bundle { trust_domain: "other.org".into(), ..ours.clone() };
    let broken = types::Bundle {
        x509_authorities: vec![types::X509Certificate { asn1: Bytes::from_static(b"x"), tainted: false }],
        ..foreign.clone()
    };
    let mut client = world.bundles(local());
    let request = BatchCreateFederatedBundleRequest {
        bundle: vec![foreign.clone(), foreign.clone(), ours, broken],
        output_mask: None,
    };
    let results = client.batch_create_federated_bundle(request).await.unwrap().into_inner().results;
    let told: Vec<_> =
        results.iter().map(|r| r.status.as_ref().unwrap()).map(|s| (s.code, &*s.message)).collect();
    assert_eq!(
        told[..3],
        [
            (0, "OK"),
            (6, "bundle already exists"),
            (3, "creating a federated bundle for the server's own trust domain is not allowed"),
        ]
    );
    assert!(
        told[3].1.starts_with("failed to convert bundle: unable to parse X.509 authority: "),
        "{:?}",
        told[3]
    );
    let get = |name: &str| GetFederatedBundleRequest { trust_domain: name.into(), output_mask: None };
    let seen = world.bundles(agent).get_federated_bundle(get("other.org")).await.unwrap().into_inner();
    assert_eq!(seen.trust_domain, "other.org");
    let text = "getting a federated bundle for the server's own trust domain is not allowed";
    assert_eq!(
        refused(client.get_federated_bundle(get("example.org")).await),
        (Code::InvalidArgument, text.into())
    );
    let listed = client.list_federated_bundles(ListFederatedBundlesRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().bundles.len(), 1, "ours is not among them");
    let delete = BatchDeleteFederatedBundleRequest {
        trust_domains: vec!["other.org".into(), "other.org".into(), "example.org".into()],
        mode: 0,
    };
    let results = client.batch_delete_federated_bundle(delete).await.unwrap().into_inner().results;
    let told: Vec<_> =
        results.iter().map(|r| r.status.as_ref().unwrap()).map(|s| (s.code, &*s.message)).collect();
    let own = "removing the bundle for the server trust domain is not allowed";
    assert_eq!(told, [(0, "OK"), (5, "bundle not found"), (3, own)]);
    let nonsense = BatchDeleteFederatedBundleRequest { trust_domains: vec![], mode: 9 };
    let text = "failed to parse deletion mode: unhandled delete mode \"9\"";
    assert_eq!(
        refused(client.batch_delete_federated_bundle(nonsense).await),
        (Code::InvalidArgument, text.into())
    );
}

#[tokio::test]
async fn appending_needs_something_to_append() {
    let world = World::new().await;
    let mut client = world.bundles(local());
    let nothing = client.append_bundle(AppendBundleRequest::default()).await;
    assert_eq!(refused(nothing), (Code::InvalidArgument, "no authorities to append".into()));
    let key = types::JwtKey {
        public_key: LocalKey::generate(KeyType::EcP256).unwrap().public_key().spki().clone(),
        ..Default::default()
    };
    let request = AppendBundleRequest { jwt_authorities: vec![key.clone()], ..Default::default() };
    let text = "failed to convert JWT authority: missing key ID";
    assert_eq!(refused(client.append_bundle(request).await), (Code::InvalidArgument, text.into()));
    let named = types::JwtKey { key_id: "kid".into(), ..key };
    let mut append = async |expires_at: i64| {
        let key = types::JwtKey { expires_at, ..named.clone() };
        let request = AppendBundleRequest { jwt_authorities: vec![key], ..Default::default() };
        client.append_bundle(request).await.unwrap().into_inner()
    };
    let expiry = |bundle: &types::Bundle| {
        bundle.jwt_authorities.iter().find(|k| k.key_id == "kid").map(|key| key.expires_at)
    };
    let first = append(START + 60).await;
    assert_eq!(expiry(&first), Some(START + 60));
    let bundle = append(START + 120).await;
    assert_eq!((expiry(&bundle), bundle.sequence_number), (Some(START + 120), first.sequence_number + 1));
    assert_eq!(append(START + 90).await, bundle, "what is known to last longer stays");
    let seen = world.bundles(anonymous()).get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    assert_eq!(seen, bundle, "at once");
}
