//! Clocks that are set forward and back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use spire_core::authority::Kind::Jwt;
use spire_core::pki::chain::{Purpose, verify};
use spire_core::pki::{Certificate, KeyType, LocalKey};

use super::world::{World, active_id};
use crate::ca::{Authorities, ServerSvid, WorkloadJwtParams};
use crate::clock::Clock as _;

/// What signs is valid now, and what it signs can be verified.
async fn check(world: &World, authorities: &Authorities, svid: &ServerSvid) {
    let now = world.clock.now();
    let ca = authorities.ca();
    let active = ca.active_x509().unwrap();
    let certificate = active.certificate();
    assert!(certificate.not_before() <= now && now <= certificate.not_after(), "{certificate:?} at {now}");
    assert!(world.stored_bundle().x509_authorities.iter().any(|a| a.der == *certificate.der()));
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let signed = ca.sign_server_x509(key.public_key()).await.unwrap();
    assert!(signed.not_before <= now && now < signed.not_after);
    let workload = super::world::workload();
    let audience = ["a".to_owned()];
    let params = WorkloadJwtParams {
        spiffe_id: &workload,
        audience: &audience,
        ttl: Default::default(),
        include_jti: false,
    };
    assert!(ca.sign_workload_jwt(params).await.unwrap().expires_at > now);
    assert!(ca.active_wit().unwrap().not_after() > now);
    assert!(svid.current().not_before <= now && now <= svid.current().not_after);
}

async fn start(world: &Arc<World>) -> (Arc<Authorities>, Arc<ServerSvid>) {
    let mut config = World::config();
    config.wit_svids_enabled = true;
    let authorities = Authorities::start(config, world.ports()).await.unwrap();
    let svid = ServerSvid::start(Arc::clone(&authorities)).await.unwrap();
    (authorities, svid)
}

/// Who was away while the clock ran ahead trusts the first authority only, so that one must sign again.
#[tokio::test]
async fn a_clock_that_ran_ahead_for_a_while_costs_nothing() {
    for restart in [false, true] {
        let world = World::new();
        let (mut authorities, mut svid) = start(&world).await;
        let (first, kid) =
            (active_id(authorities.ca()), authorities.ca().active_jwt().unwrap().kid().to_owned());
        let wit = authorities.ca().active_wit().unwrap().kid().to_owned();
        world.pass(30_000);
        authorities.rotate().await.unwrap();
        svid.rotate().await.unwrap();
        check(&world, &authorities, &svid).await;
        assert_ne!(active_id(authorities.ca()), first);
        world.pass(-30_000 + 60);
        if restart {
            (authorities, svid) = start(&world).await;
        } else {
            authorities.rotate().await.unwrap();
            svid.rotate().await.unwrap();
        }
        check(&world, &authorities, &svid).await;
        assert_eq!(active_id(authorities.ca()), first, "restart: {restart}");
        assert_eq!(authorities.ca().active_jwt().unwrap().kid(), kid);
        assert_eq!(authorities.ca().active_wit().unwrap().kid(), wit);
        let made = world.generated.load(Ordering::SeqCst);
        authorities.rotate().await.unwrap();
        assert_eq!(world.generated.load(Ordering::SeqCst), made, "idempotent");
    }
}

/// The other way round: who heard nothing while the clock was behind trusts the first authority only.
#[tokio::test]
async fn a_clock_that_was_behind_for_a_while_costs_nothing() {
    for restart in [false, true] {
        let world = World::new();
        let (mut authorities, mut svid) = start(&world).await;
        let (first, kid) =
            (active_id(authorities.ca()), authorities.ca().active_jwt().unwrap().kid().to_owned());
        world.pass(-300);
        authorities.rotate().await.unwrap();
        svid.rotate().await.unwrap();
        check(&world, &authorities, &svid).await;
        assert_ne!(active_id(authorities.ca()), first);
        world.pass(300);
        if restart {
            (authorities, svid) = start(&world).await;
        }
        authorities.rotate().await.unwrap();
        svid.rotate().await.unwrap();
        check(&world, &authorities, &svid).await;
        assert_eq!(active_id(authorities.ca()), first, "restart: {restart}");
        assert_eq!(authorities.ca().active_jwt().unwrap().kid(), kid);
        let parse = |der: &[u8]| Certificate::from_der(der.to_vec()).unwrap();
        let roots = [parse(&world.stored_bundle().x509_authorities[0].der)];
        let chain: Vec<_> = svid.current().chain.iter().map(|der| parse(der)).collect();
        verify(&chain, &roots, Purpose::Any, world.clock.now()).unwrap();
    }
}

#[tokio::test]
async fn a_tainted_authority_never_signs_again() {
    let world = World::new();
    let (authorities, svid) = start(&world).await;
    let (first, kid) = (active_id(authorities.ca()), authorities.ca().active_jwt().unwrap().kid().to_owned());
    world.pass(300);
    let id = authorities.prepare_x509_authority().await.unwrap().authority_id;
    authorities.activate_x509_authority(&id).await.unwrap();
    authorities.taint_x509_authority(&first).await.unwrap();
    let key = authorities.prepare_key_authority(Jwt).await.unwrap().kid;
    authorities.activate_key_authority(Jwt, &key).await.unwrap();
    authorities.taint_key_authority(Jwt, &kid).await.unwrap();
    world.pass(-200);
    authorities.rotate().await.unwrap();
    svid.rotate().await.unwrap();
    check(&world, &authorities, &svid).await;
    let now = active_id(authorities.ca());
    assert!(now != first && now != id, "neither the tainted one nor the one of the future");
    let now = authorities.ca().active_jwt().unwrap().kid().to_owned();
    assert!(now != kid && now != key);
}

/// Any number of jumps, with restarts between.
#[tokio::test]
async fn no_jump_leaves_the_server_without_a_valid_authority() {
    let world = World::new();
    let (mut authorities, mut svid) = start(&world).await;
    let mut random: u64 = 42;
    for n in 0..60 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let by = i64::try_from(random >> 33).unwrap() % 4_000 - 2_000;
        world.pass(by);
        if n % 7 == 0 {
            (authorities, svid) = start(&world).await;
        } else {
            authorities.rotate().await.unwrap();
            svid.rotate().await.unwrap();
        }
        check(&world, &authorities, &svid).await;
    }
}
