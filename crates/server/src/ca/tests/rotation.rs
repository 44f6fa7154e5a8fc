//! Starting, rotating, failing and starting again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use spire_core::authority::{Authority, Kind, OperationError};
use spire_core::model::AuthorityStatus;
use spire_ports::observe::HealthCheck as _;

use super::world::{World, active_id, workload};
use crate::ca::{Authorities, CaError, ServerSvid, WorkloadJwtParams};

/// What must hold at any time, whatever failed.
fn check(world: &World, authorities: &Authorities) {
    let ca = authorities.ca();
    let journal = world.journals.lock().last().cloned();
    if let Some(active) = ca.active_x509() {
        let der = active.certificate().der();
        assert!(
            world.stored_bundle().x509_authorities.iter().any(|a| a.der == *der),
            "active and not in the bundle"
        );
        let journal = journal.expect("active and not recorded");
        let recorded: Vec<_> =
            journal.journal.x509.iter().filter(|a| a.status == AuthorityStatus::Active).collect();
        assert_eq!(recorded.len(), 1);
        assert_eq!(recorded[0].certificate, *der, "what signs is not what is recorded as active");
        assert_eq!(journal.active_x509_authority_id, recorded[0].id());
    }
    if let Some(key) = ca.active_jwt() {
        assert!(world.stored_bundle().jwt_authority(key.kid()).is_some(), "JWT key not in the bundle");
    }
}

#[tokio::test]
async fn the_first_start_prepares_and_activates() {
    let world = World::new();
    let authorities = world.start().await.unwrap();
    check(&world, &authorities);
    assert_eq!(world.generated.load(Ordering::SeqCst), 2, "one CA, one JWT key, no WIT key");
    assert_eq!(world.keys.lock().keys().collect::<Vec<_>>(), ["JWT-Signer-A", "x509-CA-A"]);
    assert!(authorities.ca().active_wit().is_none());
    let bundle = authorities.bundle_changes().current().unwrap();
    assert_eq!(*bundle, world.stored_bundle());
    assert_eq!(authorities.ca().check_health().await.failure(), None);
    assert_eq!(authorities.check_health().await.failure(), None);
}

#[tokio::test]
async fn a_failure_is_counted_by_its_code() {
    let world = World::new();
    let metrics = Arc::new(spire_telemetry::InMem::new());
    let mut ports = world.ports();
    ports.metrics = metrics.clone();
    // The key manager is the first that is asked for something.
    world.allow(0);
    assert!(Authorities::start(World::config(), ports).await.is_err());
    let failed = metrics.series("ca.manager.x509_ca.prepare;status=Unavailable");
    assert_eq!(failed.map(|series| series.count), Some(1));
}

#[tokio::test]
async fn a_restart_finds_the_same_authorities() {
    let world = World::new();
    let first = world.start().await.unwrap();
    let (ca, jwt) = (active_id(first.ca()), first.ca().active_jwt().unwrap().kid().to_owned());
    drop(first);
    let second = world.start().await.unwrap();
    assert_eq!(active_id(second.ca()), ca);
    assert_eq!(second.ca().active_jwt().unwrap().kid(), jwt);
    assert_eq!(world.generated.load(Ordering::SeqCst), 2);
    assert_eq!(world.journals.lock().len(), 1);
}

#[tokio::test]
async fn lost_keys_mean_a_new_authority_and_journal() {
    let world = World::new();
    let before = active_id(world.start().await.unwrap().ca());
    world.keys.lock().clear();
    let authorities = world.start().await.unwrap();
    assert_ne!(active_id(authorities.ca()), before);
    assert_eq!(world.journals.lock().len(), 2);
    assert_eq!(world.stored_bundle().x509_authorities.len(), 2, "the old root stays for what it signed");
}

#[tokio::test]
async fn an_authority_that_the_bundle_lacks_is_not_used() {
    let world = World::new();
    let before = active_id(world.start().await.unwrap().ca());
    world.bundle.lock().as_mut().unwrap().x509_authorities.clear();
    let authorities = world.start().await.unwrap();
    assert_ne!(active_id(authorities.ca()), before);
    check(&world, &authorities);
}

#[tokio::test]
async fn rotation_follows_the_schedule() {
    let world = World::new();
    let authorities = world.start().await.unwrap();
    let first = active_id(authorities.ca());
    world.pass(300);
    authorities.rotate().await.unwrap();
    assert_eq!(world.stored_bundle().x509_authorities.len(), 1);
    world.pass(1);
    authorities.rotate().await.unwrap();
    assert_eq!(world.stored_bundle().x509_authorities.len(), 2, "prepared at half of its life");
    assert_eq!(world.stored_bundle().jwt_authorities.len(), 2);
    assert_eq!(active_id(authorities.ca()), first);
    world.pass(199);
    authorities.rotate().await.unwrap();
    assert_eq!(active_id(authorities.ca()), first);
    world.pass(1);
    authorities.rotate().await.unwrap();
    assert_ne!(active_id(authorities.ca()), first, "activated when a sixth is left");
    check(&world, &authorities);
    let generated = world.generated.load(Ordering::SeqCst);
    authorities.rotate().await.unwrap();
    assert_eq!(world.generated.load(Ordering::SeqCst), generated, "idempotent");
}

#[tokio::test]
async fn wit_keys_need_the_flag_and_jwt_keys_can_be_disabled() {
    let world = World::new();
    let mut config = World::config();
    config.wit_svids_enabled = true;
    config.jwt_svids_disabled = true;
    let authorities = Authorities::start(config, world.ports()).await.unwrap();
    assert!(authorities.ca().active_wit().is_some());
    assert!(authorities.ca().active_jwt().is_none());
    assert_eq!(world.stored_bundle().wit_authorities.len(), 1);
    assert_eq!(world.stored_bundle().jwt_authorities.len(), 0);
    let refused = authorities.prepare_key_authority(Kind::Jwt).await.unwrap_err();
    assert_eq!(refused.to_string(), "JWT functionality is disabled");
    let params = WorkloadJwtParams {
        spiffe_id: &workload(),
        audience: &["a".into()],
        ttl: Default::default(),
        include_jti: false,
    };
    let refused = authorities.ca().sign_workload_jwt(params).await.unwrap_err();
    assert_eq!(refused.to_string(), "JWT functionality is disabled");
}

/// Every effect of a first start fails once; the start then succeeds, as does one after a crash there.
#[tokio::test]
async fn a_first_start_may_fail_at_any_effect() {
    for effects in 0..9 {
        let world = World::new();
        world.allow(effects);
        let started = world.start().await;
        // Key, bundle and journal make the X.509 CA; without it there is no server.
        assert_eq!(started.is_err(), effects < 3, "{effects}");
        if let Ok(authorities) = &started {
            check(&world, authorities);
        }
        let before = started.as_ref().map(|a| active_id(a.ca())).ok();
        drop(started);
        world.heal();
        let authorities = world.start().await.unwrap();
        check(&world, &authorities);
        assert!(authorities.ca().active_jwt().is_some(), "{effects}");
        if let Some(before) = before {
            assert_eq!(active_id(authorities.ca()), before, "{effects}: a second CA");
        }
        assert_eq!(world.journals.lock().len(), 1, "{effects}");
    }
}

/// Every effect of a rotation fails once. With and without a crash at that point the old or the new
/// authority signs, never a third, and the rotation completes afterwards.
#[tokio::test]
async fn a_rotation_may_fail_at_any_effect() {
    for crash in [false, true] {
        for effects in 0..9 {
            let world = World::new();
            let mut authorities = world.start().await.unwrap();
            let old = active_id(authorities.ca());
            world.pass(501);
            world.allow(effects);
            let result = authorities.rotate().await;
            assert_eq!(result.is_err(), effects < 8, "{effects}");
            check(&world, &authorities);
            let after_failure = active_id(authorities.ca());
            world.heal();
            if crash {
                authorities = world.start().await.unwrap();
                assert!(
                    active_id(authorities.ca()) == after_failure || after_failure == old,
                    "{effects}: a crash brought back an old authority"
                );
            } else {
                authorities.rotate().await.unwrap();
            }
            check(&world, &authorities);
            assert_ne!(active_id(authorities.ca()), old, "{effects} {crash}");
            // A crash may cost an authority that was not recorded; a mere failure may not.
            let roots = world.stored_bundle().x509_authorities.len();
            assert!(roots == 2 || (crash && roots == 3), "{effects} {crash}: {roots} roots");
        }
    }
}

#[tokio::test]
async fn a_failed_rotation_keeps_what_it_made() {
    let world = World::new();
    let authorities = world.start().await.unwrap();
    world.pass(301);
    // The key is made, the bundle cannot be written.
    world.allow(1);
    assert!(authorities.rotate().await.is_err());
    let generated = world.generated.load(Ordering::SeqCst);
    world.heal();
    authorities.rotate().await.unwrap();
    // Only the JWT key, which was not tried yet, or had failed to get a key, is new.
    assert_eq!(world.generated.load(Ordering::SeqCst), generated + 1);
}

#[tokio::test]
async fn a_start_with_a_dying_authority_and_no_database_still_serves() {
    let world = World::new();
    let old = active_id(world.start().await.unwrap().ca());
    world.pass(550);
    world.allow(0);
    let authorities = world.start().await.unwrap();
    assert_eq!(active_id(authorities.ca()), old);
}

#[tokio::test]
async fn operators_prepare_activate_taint_and_revoke() {
    let world = World::new();
    let authorities = world.start().await.unwrap();
    let svid = ServerSvid::start(Arc::clone(&authorities)).await.unwrap();
    let old = active_id(authorities.ca());

    let refused = authorities.activate_x509_authority("x").await.unwrap_err();
    assert!(matches!(refused, CaError::Operation(OperationError::UnexpectedId)), "{refused}");
    let prepared = authorities.prepare_x509_authority().await.unwrap();
    assert_eq!(authorities.x509_slots().next().authority_id(), prepared.id());
    let activated = authorities.activate_x509_authority(prepared.id()).await.unwrap();
    assert_eq!(active_id(authorities.ca()), activated.id());
    check(&world, &authorities);

    svid.rotate().await.unwrap();
    let before = svid.current();
    let refused = authorities.taint_x509_authority(activated.id()).await.unwrap_err();
    assert_eq!(refused.to_string(), "unable to taint current local authority");
    authorities.taint_x509_authority(&old).await.unwrap();
    assert!(authorities.bundle_changes().current().unwrap().x509_authorities[0].tainted);
    svid.rotate().await.unwrap();
    assert!(!Arc::ptr_eq(&svid.current(), &before), "its authority was tainted");
    let before = svid.current();
    svid.rotate().await.unwrap();
    assert!(Arc::ptr_eq(&svid.current(), &before), "the new one is good");

    authorities.revoke_x509_authority(&old).await.unwrap();
    assert_eq!(world.stored_bundle().x509_authorities.len(), 1);

    let old = authorities.jwt_slots().active().unwrap().kid.clone();
    let prepared = authorities.prepare_key_authority(Kind::Jwt).await.unwrap();
    authorities.activate_key_authority(Kind::Jwt, &prepared.kid).await.unwrap();
    assert_eq!(authorities.ca().active_jwt().unwrap().kid(), prepared.kid);
    assert!(authorities.taint_key_authority(Kind::Jwt, &old).await.unwrap().tainted);
    assert_eq!(authorities.revoke_key_authority(Kind::Jwt, &old).await.unwrap().kid, old);
    assert!(world.stored_bundle().jwt_authority(&old).is_none());
    let refused = authorities.taint_x509_upstream_authority("AB").await.unwrap_err();
    assert_eq!(refused.to_string(), "upstream authority is not configured");
}

#[tokio::test]
async fn a_prepared_authority_whose_key_was_replaced_cannot_be_activated() {
    let world = World::new();
    let authorities = world.start().await.unwrap();
    let prepared = authorities.prepare_x509_authority().await.unwrap();
    // Preparing again replaces the key and then fails.
    world.allow(1);
    assert!(authorities.prepare_x509_authority().await.is_err());
    world.heal();
    assert!(authorities.activate_x509_authority(prepared.id()).await.is_err());
    check(&world, &authorities);
}

#[tokio::test]
async fn pruning_drops_what_expired_over_a_day_ago() {
    let world = World::new();
    let authorities = world.start().await.unwrap();
    world.pass(501);
    authorities.rotate().await.unwrap();
    world.pass(100 + 86_400 - 10);
    authorities.prune_bundle().await.unwrap();
    assert_eq!(world.stored_bundle().x509_authorities.len(), 2);
    world.pass(20);
    authorities.prune_bundle().await.unwrap();
    assert_eq!(world.stored_bundle().x509_authorities.len(), 1);
    assert_eq!(authorities.bundle_changes().current().unwrap().x509_authorities.len(), 1);
    world.pass(20 * 86_400);
    authorities.prune_journals().await.unwrap();
    assert!(world.journals.lock().is_empty());
}

#[tokio::test]
async fn the_servers_svid_is_renewed_at_half_its_life() {
    let world = World::new();
    let authorities = world.start().await.unwrap();
    let svid = ServerSvid::start(authorities).await.unwrap();
    let first = svid.current();
    assert_eq!((first.not_after - std::time::Duration::from_secs(70)), first.not_before);
    world.pass(25);
    svid.rotate().await.unwrap();
    assert!(Arc::ptr_eq(&svid.current(), &first));
    world.pass(1);
    let mut changes = svid.subscribe();
    svid.rotate().await.unwrap();
    assert!(changes.has_changed().unwrap());
    assert!(!Arc::ptr_eq(&changes.borrow_and_update(), &first));
}

#[tokio::test]
async fn too_many_failures_show_in_health() {
    let world = World::new();
    let authorities = world.start().await.unwrap();
    world.pass(501);
    world.allow(0);
    for _ in 0..10 {
        assert!(authorities.rotate().await.is_err());
    }
    assert_eq!(authorities.check_health().await.failure(), Some("subsystem is not live or ready"));
}

#[tokio::test(start_paused = true)]
async fn the_tasks_rotate_by_themselves_until_cancelled() {
    let world = World::new();
    let authorities = world.start().await.unwrap();
    let svid = ServerSvid::start(Arc::clone(&authorities)).await.unwrap();
    let old = active_id(authorities.ca());
    let mut bundles = authorities.bundle_changes().subscribe();
    let mut svids = svid.subscribe();
    svids.mark_unchanged();
    bundles.mark_unchanged();
    let cancel = tokio_util::sync::CancellationToken::new();
    let tasks = tokio::spawn(crate::ca::run(Arc::clone(&authorities), Arc::clone(&svid), cancel.clone()));
    world.pass(501);
    bundles.changed().await.unwrap();
    svids.changed().await.unwrap();
    // The paused clock moves on only when nothing else can, so the rotation has run by its second tick.
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    assert_ne!(active_id(authorities.ca()), old);
    cancel.cancel();
    tasks.await.unwrap();
}

#[tokio::test]
async fn the_newest_bundle_wins_and_a_restored_backup_counts() {
    let world = World::new();
    let authorities = world.start().await.unwrap();
    let changes = authorities.bundle_changes();
    let newest = world.stored_bundle();
    let mut older = newest.clone();
    older.sequence_number -= 1;
    older.jwt_authorities.clear();
    changes.publish(older.clone());
    assert_eq!(*changes.current().unwrap(), newest, "a late writer changes nothing");
    *world.bundle.lock() = Some(older.clone());
    let mut receiver = changes.subscribe();
    assert_eq!(*changes.refresh().await.unwrap().unwrap(), older, "what is stored counts");
    assert!(receiver.has_changed().unwrap());
    receiver.mark_unchanged();
    changes.refresh().await.unwrap();
    assert!(!receiver.has_changed().unwrap(), "nobody wakes for nothing");
}
