//! The LocalAuthority service, and keys that downstream servers publish.

use spire_core::pki::UnverifiedJws;
use spire_wire::api::server::bundle::v1::*;
use spire_wire::api::server::localauthority::v1::*;
use spire_wire::api::server::svid::v1::*;

use super::*;

async fn with_wit() -> World {
    let mut ca = CaConfig::new(td());
    ca.wit_svids_enabled = true;
    World::with_ca(ca, |_| {}).await
}

fn public_key() -> Bytes {
    LocalKey::generate(KeyType::EcP256).unwrap().public_key().spki().clone()
}

async fn bundle(world: &World) -> types::Bundle {
    world.bundles(local()).get_bundle(GetBundleRequest::default()).await.unwrap().into_inner()
}

async fn wit_kid(world: &World) -> String {
    let request = MintWitsvidRequest {
        id: wire_id("/w"),
        public_key: public_key(),
        signing_algorithm: "ES256".into(),
        ttl: 0,
    };
    let minted = world.svids(local()).mint_witsvid(request).await.unwrap().into_inner().svid.unwrap();
    UnverifiedJws::parse(&minted.token).unwrap().kid().to_owned()
}

#[tokio::test]
async fn without_the_flag_wit_authorities_are_not_there() {
    let world = World::new().await;
    let mut client = world.authorities(local());
    let id = || "x".to_owned();
    let text = (Code::Unimplemented, "WIT-SVID functionality is not yet implemented".to_owned());
    assert_eq!(refused(client.get_wit_authority_state(GetWitAuthorityStateRequest {}).await), text);
    assert_eq!(refused(client.prepare_wit_authority(PrepareWitAuthorityRequest {}).await), text);
    let request = ActivateWitAuthorityRequest { authority_id: id() };
    assert_eq!(refused(client.activate_wit_authority(request).await), text);
    assert_eq!(
        refused(client.taint_wit_authority(TaintWitAuthorityRequest { authority_id: id() }).await),
        text
    );
    let request = RevokeWitAuthorityRequest { authority_id: id() };
    assert_eq!(refused(client.revoke_wit_authority(request).await), text);
    let agent = world.attested(AGENT).await;
    world.entry("down", AGENT, "/down", |e| e.downstream = true).await;
    drop(agent);
    let request = PublishWitAuthorityRequest { wit_authority: None };
    assert_eq!(refused(world.bundles(tls("/down", "9")).publish_wit_authority(request).await), text);
}

#[tokio::test]
async fn with_the_flag_wit_authorities_are_prepared_activated_tainted_and_revoked() {
    let world = with_wit().await;
    let mut client = world.authorities(local());
    let state = |client: &mut LocalAuthorityClient<Connection>| {
        let mut client = client.clone();
        async move { client.get_wit_authority_state(GetWitAuthorityStateRequest {}).await.unwrap().into_inner() }
    };
    let first = state(&mut client).await;
    assert!(first.prepared.is_none() && first.old.is_none());
    let first = first.active.unwrap().authority_id;
    assert_eq!(wit_kid(&world).await, first);

    let prepared = client.prepare_wit_authority(PrepareWitAuthorityRequest {}).await.unwrap().into_inner();
    let second = prepared.prepared_authority.unwrap().authority_id;
    assert_eq!(bundle(&world).await.wit_authorities.len(), 2, "trusted before it signs");
    assert_eq!(wit_kid(&world).await, first);
    let taint = |id: &str| TaintWitAuthorityRequest { authority_id: id.into() };
    let revoke = |id: &str| RevokeWitAuthorityRequest { authority_id: id.into() };
    let text = "unable to taint current local authority";
    assert_eq!(
        refused(client.taint_wit_authority(taint(&first)).await),
        (Code::InvalidArgument, text.into())
    );
    let text = "invalid authority ID: unable to use a prepared key";
    assert_eq!(
        refused(client.revoke_wit_authority(revoke(&second)).await),
        (Code::InvalidArgument, text.into())
    );

    let request = ActivateWitAuthorityRequest { authority_id: second.clone() };
    client.activate_wit_authority(request).await.unwrap();
    assert_eq!(wit_kid(&world).await, second);
    let now = state(&mut client).await;
    assert_eq!((now.active.unwrap().authority_id, now.old.unwrap().authority_id), (second, first.clone()));
    assert!(
        refused(client.revoke_wit_authority(revoke(&first)).await).0 == Code::Internal,
        "not tainted yet"
    );
    client.taint_wit_authority(taint(&first)).await.unwrap();
    let tainted: Vec<_> = bundle(&world).await.wit_authorities.iter().map(|key| key.tainted).collect();
    assert_eq!(tainted, [true, false]);
    client.revoke_wit_authority(revoke(&first)).await.unwrap();
    assert_eq!(bundle(&world).await.wit_authorities.len(), 1);
}

/// A downstream server's keys become ours; nobody but downstream servers may publish.
#[tokio::test]
async fn downstream_servers_publish_keys() {
    let world = with_wit().await;
    world.attested(AGENT).await;
    world.entry("down", AGENT, "/down", |e| e.downstream = true).await;
    world.entry("plain", AGENT, "/plain", |_| {}).await;
    let key = |kid: &str| types::WitKey {
        public_key: public_key(),
        key_id: kid.into(),
        expires_at: START + 60,
        tainted: true,
    };
    let request = |key| PublishWitAuthorityRequest { wit_authority: Some(key) };
    let denied = world.bundles(tls("/plain", "9")).publish_wit_authority(request(key("k"))).await;
    assert_eq!(refused(denied).0, Code::PermissionDenied);
    let mut client = world.bundles(tls("/down", "9"));
    let text = "invalid WIT authority: missing key ID";
    let refusal = refused(client.publish_wit_authority(request(key(""))).await);
    assert_eq!(refusal, (Code::InvalidArgument, text.into()));
    let published =
        client.publish_wit_authority(request(key("k"))).await.unwrap().into_inner().wit_authorities;
    let named: Vec<_> = published.iter().map(|key| (&*key.key_id == "k", key.tainted)).collect();
    assert_eq!(named, [(false, false), (true, false)], "a downstream server taints nothing here");
    assert_eq!(bundle(&world).await.wit_authorities, published);
}

#[tokio::test]
async fn x509_authorities_are_rotated_by_force() {
    let world = World::new().await;
    let mut client = world.authorities(local());
    let first = client.get_x509_authority_state(GetX509AuthorityStateRequest {}).await.unwrap().into_inner();
    let first = first.active.unwrap().authority_id;
    let prepared = client.prepare_x509_authority(PrepareX509AuthorityRequest {}).await.unwrap().into_inner();
    let second = prepared.prepared_authority.unwrap().authority_id;
    let request = ActivateX509AuthorityRequest { authority_id: second.clone() };
    client.activate_x509_authority(request).await.unwrap();
    client.taint_x509_authority(TaintX509AuthorityRequest { authority_id: first.clone() }).await.unwrap();
    assert!(bundle(&world).await.x509_authorities[0].tainted);
    client.revoke_x509_authority(RevokeX509AuthorityRequest { authority_id: first }).await.unwrap();
    assert_eq!(bundle(&world).await.x509_authorities.len(), 1);
    let text = "upstream authority is not configured";
    let request = TaintX509UpstreamAuthorityRequest { subject_key_id: "ab".into() };
    let refusal = refused(client.taint_x509_upstream_authority(request).await);
    assert_eq!(refusal, (Code::FailedPrecondition, text.into()));
}

#[tokio::test]
async fn disabled_jwt_svids_have_no_authorities() {
    let mut ca = CaConfig::new(td());
    ca.jwt_svids_disabled = true;
    let world = World::with_ca(ca, |_| {}).await;
    let text = (Code::Unimplemented, "JWT functionality is disabled".to_owned());
    let mut client = world.authorities(local());
    assert_eq!(refused(client.get_jwt_authority_state(GetJwtAuthorityStateRequest {}).await), text);
    assert_eq!(refused(client.prepare_jwt_authority(PrepareJwtAuthorityRequest {}).await), text);
    let request = MintJwtsvidRequest { id: wire_id("/w"), audience: vec!["a".into()], ttl: 0 };
    assert_eq!(refused(world.svids(local()).mint_jwtsvid(request).await), text);
    assert!(bundle(&world).await.jwt_authorities.is_empty());
}
