//! CAs below an upstream authority: roots, JWT keys, taints.

use std::sync::Arc;

use spire_core::authority::{Kind, OperationError};
use spire_core::pki::{Certificate, KeyType, LocalKey};
use spire_core::spiffe::JwtAuthority;
use spire_core::time::Timestamp;

use super::world::{FakeUpstream, START, World, active_id};
use crate::ca::{Authorities, CaError, ServerSvid};

async fn start(world: &Arc<World>, upstream: &Arc<FakeUpstream>) -> Arc<Authorities> {
    let mut ports = world.ports();
    ports.upstream = Some(Arc::clone(upstream) as _);
    Authorities::start(World::config(), ports).await.unwrap()
}

/// Waits until the bundle is as wanted; the stream's task runs beside us.
async fn until(authorities: &Authorities, wanted: impl Fn(&spire_core::spiffe::Bundle) -> bool) {
    let mut changes = authorities.bundle_changes().subscribe();
    changes.wait_for(|b| b.as_ref().is_some_and(|b| wanted(b))).await.unwrap();
}

#[tokio::test]
async fn the_upstreams_root_is_in_the_bundle_and_our_ca_in_the_chain() {
    let world = World::new();
    let upstream = FakeUpstream::new(&world.clock, false);
    let authorities = start(&world, &upstream).await;
    let bundle = world.stored_bundle();
    assert_eq!(bundle.x509_authorities, *upstream.roots.lock());
    assert_eq!(bundle.jwt_authorities.len(), 1, "not implemented upstream: our own bundle");
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let signed = authorities.ca().sign_server_x509(key.public_key()).await.unwrap();
    assert_eq!(signed.chain.len(), 2);
    let slots = authorities.x509_slots();
    let record = slots.active().unwrap();
    let root = Certificate::from_der(bundle.x509_authorities[0].der.clone()).unwrap();
    assert_eq!(record.upstream_authority_id, root.authority_id());
    assert_eq!(record.upstream_chain, signed.chain[1..]);
    // A restart finds it although the bundle does not have it.
    let before = active_id(authorities.ca());
    assert_eq!(active_id(start(&world, &upstream).await.ca()), before);
    let refused = authorities.taint_x509_authority(&before).await.unwrap_err();
    assert!(matches!(refused, CaError::Operation(OperationError::TaintsBelowUpstream)));
}

#[tokio::test]
async fn jwt_keys_are_published_upstream() {
    let world = World::new();
    let upstream = FakeUpstream::new(&world.clock, true);
    let authorities = start(&world, &upstream).await;
    let bundle = world.stored_bundle();
    assert!(bundle.jwt_authority("upstream-key").is_some());
    assert!(bundle.jwt_authority(authorities.ca().active_jwt().unwrap().kid()).is_some());
}

#[tokio::test]
async fn a_tainted_root_makes_a_new_ca_before_it_is_marked() {
    let world = World::new();
    let upstream = FakeUpstream::new(&world.clock, false);
    let authorities = start(&world, &upstream).await;
    let svid = ServerSvid::start(Arc::clone(&authorities)).await.unwrap();
    let (first_ca, first_svid) = (active_id(authorities.ca()), svid.current());
    let tainted = upstream.taint_root().await;
    until(&authorities, |b| b.x509_authorities.len() == 2).await;
    assert!(world.stored_bundle().x509_authorities.iter().all(|a| !a.tainted), "marked only afterwards");

    // The key for the new CA cannot be made: nothing is marked, and it stays to be done.
    world.allow(0);
    assert!(authorities.process_tainted_upstream().await.is_err());
    assert_eq!(active_id(authorities.ca()), first_ca);
    world.heal();
    authorities.process_tainted_upstream().await.unwrap();
    assert_ne!(active_id(authorities.ca()), first_ca);
    let marked: Vec<_> = world.stored_bundle().x509_authorities.iter().map(|a| a.tainted).collect();
    assert_eq!(marked, [true, false]);
    svid.rotate().await.unwrap();
    assert!(!Arc::ptr_eq(&svid.current(), &first_svid));

    // Once more has nothing to do.
    let second_ca = active_id(authorities.ca());
    authorities.process_tainted_upstream().await.unwrap();
    assert_eq!(active_id(authorities.ca()), second_ca);

    upstream.revoke_tainted().await;
    until(&authorities, |b| b.x509_authorities.len() == 1).await;
    let left = Certificate::from_der(world.stored_bundle().x509_authorities[0].der.clone()).unwrap();
    assert_ne!(left.authority_id(), tainted);
}

#[tokio::test]
async fn operators_taint_the_upstream_of_the_old_authority() {
    let world = World::new();
    let upstream = FakeUpstream::new(&world.clock, false);
    let authorities = start(&world, &upstream).await;
    let old = upstream.taint_root().await;
    until(&authorities, |b| b.x509_authorities.len() == 2).await;
    let refused = authorities.taint_x509_upstream_authority(&old).await.unwrap_err();
    assert_eq!(refused.to_string(), "unable to use upstream authority singing current authority");
    let prepared = authorities.prepare_x509_authority().await.unwrap();
    authorities.activate_x509_authority(&prepared.authority_id).await.unwrap();
    let id = authorities.taint_x509_upstream_authority(&old.to_ascii_uppercase()).await.unwrap();
    assert_eq!(id, old);
    assert!(world.stored_bundle().x509_authorities[0].tainted);
    authorities.revoke_x509_upstream_authority(&old).await.unwrap();
    assert_eq!(world.stored_bundle().x509_authorities.len(), 1);
}

fn jwt_key(kid: &str) -> JwtAuthority {
    let public_key = LocalKey::generate(KeyType::EcP256).unwrap().public_key().spki().clone();
    JwtAuthority {
        kid: kid.into(),
        public_key,
        not_after: Timestamp::from_unix(START + 99_999),
        tainted: false,
    }
}

/// The tasks follow the upstream's bundle: keys of others come, are tainted and go, and what the operator revoked here
/// stays away although the upstream has it.
#[tokio::test(start_paused = true)]
async fn the_upstreams_bundle_is_followed() {
    let world = World::new();
    let upstream = FakeUpstream::new(&world.clock, true);
    let mut ports = world.ports();
    ports.upstream = Some(Arc::clone(&upstream) as _);
    let mut config = World::config();
    config.wit_svids_enabled = true;
    let authorities = Authorities::start(config, ports).await.unwrap();
    let svid = ServerSvid::start(Arc::clone(&authorities)).await.unwrap();
    assert_eq!(upstream.keys.lock().wit_authorities.len(), 1, "our WIT key was published");
    let cancel = tokio_util::sync::CancellationToken::new();
    let tasks = tokio::spawn(crate::ca::run(Arc::clone(&authorities), Arc::clone(&svid), cancel.clone()));
    upstream.keys.lock().wit_authorities.push(jwt_key("wit-other"));
    until(&authorities, |b| b.wit_authorities.len() == 2).await;
    assert_eq!(upstream.followers(), 1);

    // The upstream never had this one, so that it is not there means nothing.
    let ours = JwtAuthority { tainted: true, ..jwt_key("ours") };
    world.bundle.lock().as_mut().unwrap().jwt_authorities.push(ours);
    upstream.keys.lock().jwt_authorities.push(jwt_key("other"));
    upstream.announce_bundle().await;
    until(&authorities, |b| b.jwt_authority("other").is_some()).await;
    upstream.keys.lock().jwt_authorities.iter_mut().find(|k| k.kid == "other").unwrap().tainted = true;
    upstream.announce_bundle().await;
    until(&authorities, |b| b.jwt_authority("other").is_some_and(|key| key.tainted)).await;
    upstream.keys.lock().jwt_authorities.retain(|k| k.kid != "other");
    upstream.announce_bundle().await;
    until(&authorities, |b| b.jwt_authority("other").is_none()).await;
    assert!(world.stored_bundle().jwt_authority("ours").is_some());

    let old = authorities.ca().active_jwt().unwrap().kid().to_owned();
    let new = authorities.prepare_key_authority(Kind::Jwt).await.unwrap().kid;
    authorities.activate_key_authority(Kind::Jwt, &new).await.unwrap();
    authorities.taint_key_authority(Kind::Jwt, &old).await.unwrap();
    authorities.revoke_key_authority(Kind::Jwt, &old).await.unwrap();
    assert!(upstream.keys.lock().jwt_authorities.iter().any(|k| k.kid == old), "it cannot be told");
    upstream.keys.lock().jwt_authorities.push(jwt_key("another"));
    upstream.announce_bundle().await;
    until(&authorities, |b| b.jwt_authority("another").is_some()).await;
    assert!(world.stored_bundle().jwt_authority(&old).is_none());

    // A tainted root is left by itself.
    let ca = active_id(authorities.ca());
    upstream.taint_root().await;
    upstream.announce_bundle().await;
    until(&authorities, |b| b.x509_authorities.iter().any(|a| a.tainted)).await;
    assert_ne!(active_id(authorities.ca()), ca);

    // The stream breaks and a write fails: it is followed anew, and the write made up for.
    upstream.break_streams();
    world.allow(0);
    upstream.keys.lock().jwt_authorities.push(jwt_key("late"));
    tokio::time::sleep(std::time::Duration::from_secs(100)).await;
    assert!(world.stored_bundle().jwt_authority("late").is_none());
    world.heal();
    until(&authorities, |b| b.jwt_authority("late").is_some()).await;
    cancel.cancel();
    tasks.await.unwrap();
}
