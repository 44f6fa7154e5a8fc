//! The machine under any order of time steps, failures, restarts and operators' commands.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const A: SlotName = SlotName::A;
const B: SlotName = SlotName::B;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix(seconds)
}

fn key(slot: SlotName, id: &str, issued: i64, ttl: i64, status: AuthorityStatus) -> KeyRecord {
    KeyRecord {
        slot,
        issued_at: at(issued),
        not_after: at(issued + ttl),
        kid: id.to_owned(),
        public_key: Bytes::copy_from_slice(id.as_bytes()),
        status,
        authority_id: id.to_owned(),
    }
}

fn all_usable(_: &KeyRecord) -> Result<(), Unusable> {
    Ok(())
}

#[test]
fn thresholds_are_those_of_the_reference() {
    const DAY: i64 = 86_400;
    for (lifetime, prepare, activate) in [
        (90, 45, 75),
        (DAY, DAY / 2, DAY / 6 * 5),
        (365 * DAY, 335 * DAY, 358 * DAY),
        (60 * DAY, 30 * DAY, 53 * DAY),
    ] {
        let due = |now| {
            (preparation_due(at(0), at(lifetime), at(now)), activation_due(at(0), at(lifetime), at(now)))
        };
        assert_eq!(due(prepare), (false, false), "{lifetime}");
        assert_eq!(due(prepare + 1), (true, false), "{lifetime}");
        assert_eq!(due(activate), (true, false), "{lifetime}");
        assert_eq!(due(activate + 1), (true, true), "{lifetime}");
    }
}

#[test]
fn ttls_that_rotation_never_cuts_short() {
    let hour = Duration::from_secs(3600);
    assert_eq!(svid_ttl_max(hour * 24), hour * 4);
    assert_eq!(svid_ttl_max(hour * 24 * 365), hour * 24 * 7);
    assert_eq!(ca_ttl_min(hour * 48), hour * 288);
}

#[test]
fn a_life_from_start_to_second_rotation() {
    let mut slots = Slots::<KeyRecord>::default();
    assert_eq!(slots.step(at(0)), Some(Step::Prepare(A)));
    slots = slots.prepared(key(A, "one", 0, 90, AuthorityStatus::Unknown)).unwrap();
    assert_eq!(slots.step(at(0)), Some(Step::Activate(A)));
    assert!(slots.active().is_none());
    slots = slots.activated(A).unwrap();
    assert_eq!(slots.active().unwrap().id(), "one");
    assert_eq!(slots.step(at(45)), None);
    assert_eq!(slots.step(at(46)), Some(Step::Prepare(B)));
    slots = slots.prepared(key(B, "two", 46, 90, AuthorityStatus::Unknown)).unwrap();
    assert_eq!(slots.step(at(75)), None);
    assert_eq!(slots.step(at(76)), Some(Step::Activate(B)));
    slots = slots.activated(B).unwrap();
    assert_eq!(slots.active().unwrap().id(), "two");
    assert_eq!((slots.next().name(), slots.next().authority_id()), (A, "one"));
    assert_eq!(slots.next().status(), Some(AuthorityStatus::Old));
    assert_eq!(slots.step(at(92)), Some(Step::Prepare(A)));
}

#[test]
fn a_prepared_authority_that_expired_unused_is_made_again() {
    let slots = Slots::default()
        .prepared(key(A, "one", 0, 90, AuthorityStatus::Unknown))
        .and_then(|s| s.activated(A))
        .and_then(|s| s.prepared(key(B, "two", 46, 90, AuthorityStatus::Unknown)))
        .unwrap();
    assert_eq!(slots.step(at(136)), Some(Step::Activate(B)));
    assert_eq!(slots.step(at(137)), Some(Step::Prepare(B)));
}

/// A clock that ran ahead for a while: the authority that was made meanwhile gives way to the one before.
#[test]
fn a_clock_that_is_set_back_restores_the_old_authority() {
    let ahead = Slots::default()
        .prepared(key(A, "one", 0, 90, AuthorityStatus::Unknown))
        .and_then(|s| s.activated(A))
        .and_then(|s| s.prepared(key(B, "two", 500, 90, AuthorityStatus::Unknown)))
        .and_then(|s| s.activated(B))
        .unwrap();
    assert_eq!(ahead.step(at(490)), None, "its certificate is dated back");
    assert_eq!(ahead.step(at(489)), Some(Step::Prepare(A)), "the old one has expired by then");
    assert_eq!(ahead.step(at(20)), Some(Step::Restore(A)));
    let restored = ahead.restored(A).unwrap();
    assert_eq!(restored.active().unwrap().id(), "one");
    assert_eq!(
        (restored.next().authority_id(), restored.next().status()),
        ("two", Some(AuthorityStatus::Old))
    );
    assert_eq!(restored.step(at(20)), None);
    // From here on it is as ever.
    assert_eq!(restored.step(at(46)), Some(Step::Prepare(B)));
    let error = restored.restored(A).unwrap_err();
    assert_eq!(error, OperationError::NotPrepared(AuthorityStatus::Active));
    // A prepared one that is valid signs before anything else is made.
    let waiting = ahead.prepared(key(A, "three", 15, 90, AuthorityStatus::Unknown)).unwrap();
    assert_eq!(waiting.step(at(20)), Some(Step::Activate(A)));
}

/// A clock that was set back for a while: the authority that was made meanwhile gives way to the one that all know.
#[test]
fn a_clock_that_is_set_right_again_restores_the_authority_of_before() {
    let back = Slots::default()
        .prepared(key(A, "one", 500, 90, AuthorityStatus::Unknown))
        .and_then(|s| s.activated(A))
        .and_then(|s| s.prepared(key(B, "two", 460, 90, AuthorityStatus::Unknown)))
        .and_then(|s| s.activated(B))
        .unwrap();
    assert_eq!(back.step(at(470)), None);
    assert_eq!(back.step(at(490)), Some(Step::Restore(A)), "its certificate is dated back");
    let restored = back.restored(A).unwrap();
    assert_eq!(restored.active().unwrap().id(), "one");
    assert_eq!(restored.step(at(510)), None);
    assert_eq!(restored.step(at(546)), Some(Step::Prepare(B)));
    // One that is prepared in its place was wanted by somebody.
    let prepared = back.prepared(key(A, "three", 470, 90, AuthorityStatus::Unknown)).unwrap();
    assert_eq!(prepared.step(at(500)), None);
}

/// Two levels that were made at the same time: the lower one's successor would die with it, so it waits for one that the
/// upper one's successor signs.
#[test]
fn an_intermediate_that_would_not_live_longer_is_made_again() {
    let ca = |slot, id: &str, issued, not_after| X509CaRecord {
        slot,
        issued_at: at(issued),
        not_after: at(not_after),
        certificate: Bytes::new(),
        upstream_chain: vec![Bytes::from_static(b"upstream")],
        status: AuthorityStatus::Unknown,
        authority_id: id.to_owned(),
        upstream_authority_id: String::new(),
    };
    let first = Slots::default().prepared(ca(A, "one", 0, 240)).and_then(|s| s.activated(A)).unwrap();
    let capped = first.prepared(ca(B, "two", 121, 240)).unwrap();
    assert_eq!(capped.step(at(200)), None);
    assert_eq!(capped.step(at(201)), Some(Step::Prepare(B)));
    // The one above has not changed yet; asking at once again would be of no use.
    let again = capped.prepared(ca(B, "three", 201, 240)).unwrap();
    assert_eq!((again.step(at(210)), again.step(at(211))), (None, Some(Step::Prepare(B))));
    let longer = again.prepared(ca(B, "four", 211, 400)).unwrap();
    assert_eq!(longer.step(at(211)), Some(Step::Activate(B)));
    // One that expires unused has nothing before it to wait for.
    assert_eq!(again.step(at(241)), Some(Step::Prepare(B)));
}

#[test]
fn a_vacated_slot_cannot_be_activated() {
    let slots = Slots::default()
        .prepared(key(A, "one", 0, 90, AuthorityStatus::Unknown))
        .and_then(|s| s.activated(A))
        .and_then(|s| s.prepared(key(B, "two", 46, 90, AuthorityStatus::Unknown)))
        .unwrap();
    let vacated = slots.clone().vacated(B);
    assert_eq!(vacated.activated(B).unwrap_err(), OperationError::NotPrepared(AuthorityStatus::Old));
    // The active authority's slot is never given up.
    assert_eq!(slots.clone().vacated(A), slots);
    assert_eq!(
        slots.prepared(key(A, "x", 50, 90, AuthorityStatus::Unknown)).unwrap_err(),
        OperationError::SlotInUse
    );
}

#[test]
fn history_never_forgets_the_active_authority() {
    let mut slots = Slots::default()
        .prepared(key(A, "active", 0, 900, AuthorityStatus::Unknown))
        .and_then(|s| s.activated(A))
        .unwrap();
    for n in 0..30 {
        slots = slots.prepared(key(B, &format!("n{n}"), n, 900, AuthorityStatus::Unknown)).unwrap();
    }
    assert_eq!(slots.history().len(), HISTORY_MAX);
    assert_eq!(slots.history()[0].id(), "active");
    assert_eq!(slots.history().last().unwrap().id(), "n29");
    let prepared = slots.history().iter().filter(|a| a.status == AuthorityStatus::Prepared).count();
    assert_eq!(prepared, 1, "keys of the others are gone");
}

#[test]
fn loading_journals() {
    use AuthorityStatus::{Active, Old, Prepared, Unknown};
    type Case<'a> = (&'a [(SlotName, &'a str, AuthorityStatus)], (SlotName, &'a str), (SlotName, &'a str));
    let cases: [Case<'_>; 9] = [
        (&[], (A, ""), (B, "")),
        (&[(A, "a", Active)], (A, "a"), (B, "")),
        (&[(B, "b", Active)], (B, "b"), (A, "")),
        (&[(A, "a", Active), (B, "b", Prepared)], (A, "a"), (B, "b")),
        (&[(A, "a", Old), (B, "b", Active)], (B, "b"), (A, "a")),
        // The reference died between its two writes of an activation.
        (&[(A, "a", Old), (B, "b", Prepared)], (B, "b"), (A, "")),
        // From before states were kept.
        (&[(A, "a", Unknown), (B, "b", Unknown)], (B, "b"), (A, "")),
        // Two claim to be active: the newest wins.
        (&[(A, "a", Active), (B, "b", Active)], (B, "b"), (A, "a")),
        // Two in one slot: the active one keeps it.
        (&[(A, "a", Active), (A, "b", Prepared)], (A, "a"), (B, "")),
    ];
    for (records, current, next) in cases {
        let history = records.iter().map(|(slot, id, status)| key(*slot, id, 0, 90, *status)).collect();
        let slots = Slots::load(history, all_usable).slots;
        assert_eq!((slots.current().name(), slots.current().authority_id()), current, "{records:?}");
        assert_eq!((slots.next().name(), slots.next().authority_id()), next, "{records:?}");
        assert!(slots.history().iter().filter(|a| a.status == Active).count() <= 1, "{records:?}");
    }
}

#[test]
fn loading_passes_over_what_cannot_be_used() {
    let history = vec![
        key(A, "a", 0, 90, AuthorityStatus::Active),
        key(B, "b", 45, 90, AuthorityStatus::Prepared),
        key(A, "c", 60, 90, AuthorityStatus::Prepared),
    ];
    let loaded = Slots::load(history, |a| {
        let kept = match a.slot {
            A => Some(b"c".as_slice()),
            B => None,
        };
        check_usable(a.not_after, &a.public_key, kept, at(100))
    });
    assert_eq!(loaded.slots.current().authority_id(), "c");
    let reasons: Vec<_> = loaded.passed_over.iter().map(|(a, why)| (a.id(), *why)).collect();
    assert_eq!(reasons, [("b", Unusable::NoKey), ("a", Unusable::Expired)]);
    assert_eq!(check_usable(at(5), b"a", Some(b"b"), at(5)), Err(Unusable::OtherKey));
}

#[test]
fn operators_rules() {
    let empty = Slots::<KeyRecord>::default();
    assert_eq!(empty.check_initialized().unwrap_err().to_string(), "server is initializing");
    let one =
        empty.prepared(key(A, "one", 0, 90, AuthorityStatus::Unknown)).and_then(|s| s.activated(A)).unwrap();
    let prepared = one.prepared(key(B, "two", 0, 90, AuthorityStatus::Unknown)).unwrap();
    let rotated = prepared.activated(B).unwrap();

    assert_eq!(prepared.check_activation(""), Err(OperationError::NoId));
    assert_eq!(prepared.check_activation("one"), Err(OperationError::UnexpectedId));
    assert_eq!(prepared.check_activation("two"), Ok(()));
    let error = rotated.check_activation("one").unwrap_err();
    assert_eq!(
        error.to_string(),
        "only Prepared authorities can be activated: unsupported local authority status: OLD"
    );
    assert_eq!(error.fault(), Fault::Internal);

    assert_eq!(prepared.check_taint("one"), Err(OperationError::TaintsCurrent));
    assert_eq!(prepared.check_taint("two"), Err(OperationError::NotOld(AuthorityStatus::Prepared)));
    assert_eq!(rotated.check_taint("one"), Ok(()));
    assert_eq!(rotated.check_taint("three"), Err(OperationError::UnexpectedId));

    assert_eq!(rotated.check_revocation("two"), Err(OperationError::RevokesCurrent));
    assert_eq!(rotated.check_revocation("one"), Ok(()));
    assert_eq!(prepared.check_revocation("two"), Err(OperationError::RevokesNotOld));

    assert_eq!(check_key_revocation(&prepared, "two", || true), Err(OperationError::RevokesPrepared));
    assert_eq!(check_key_revocation(&prepared, "one", || true), Err(OperationError::RevokesCurrent));
    assert_eq!(check_key_revocation(&rotated, "one", || false), Ok(()));
    assert_eq!(check_key_revocation(&rotated, "other", || true), Ok(()));
    assert_eq!(check_key_revocation(&rotated, "other", || false), Err(OperationError::RevokesUnknown));
}

#[test]
fn upstream_rules() {
    let ca = |slot, id: &str, upstream: &str| X509CaRecord {
        slot,
        issued_at: at(0),
        not_after: at(90),
        certificate: Bytes::new(),
        upstream_chain: Vec::new(),
        status: AuthorityStatus::Unknown,
        authority_id: id.to_owned(),
        upstream_authority_id: upstream.to_owned(),
    };
    let prepared = Slots::default()
        .prepared(ca(A, "one", "u1"))
        .and_then(|s| s.activated(A))
        .and_then(|s| s.prepared(ca(B, "two", "u2")))
        .unwrap();
    let rotated = prepared.activated(B).unwrap();
    assert_eq!(check_upstream(&rotated, ""), Err(OperationError::NoSubjectKeyId));
    assert_eq!(check_upstream(&rotated, "u2"), Err(OperationError::UpstreamOfCurrent));
    assert_eq!(check_upstream(&rotated, "u3"), Err(OperationError::UpstreamOfNone));
    assert_eq!(check_upstream(&rotated, "u1"), Ok(()));
    assert_eq!(check_upstream(&prepared, "u2"), Err(OperationError::UpstreamOfPrepared));
}

#[test]
fn key_ids_are_letters_and_digits() {
    let mut random = [0; 32];
    for (n, byte) in (0u8..).zip(random.iter_mut()) {
        *byte = n.wrapping_mul(61);
    }
    let id = key_id(&random);
    assert_eq!(id.len(), 32);
    assert!(id.bytes().all(|b| b.is_ascii_alphanumeric()));
    assert_eq!(Kind::Wit.key_id(B), "WIT-Signer-B");
}

/// What happens to a server.
#[derive(Clone, Debug)]
enum Happening {
    /// Seconds pass, then the rotation runs; its effects stop working after so many.
    Rotate { wait: u32, effects: u8 },
    /// The clock is set, forward or back, and the rotation runs.
    Clock { by: i32, effects: u8 },
    /// The process ends at once and starts again.
    Restart,
    /// The operator prepares; effects stop working after so many.
    Prepare { effects: u8 },
    /// The operator activates what is prepared.
    Activate,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        5 => (0u32..60, prop_oneof![2 => Just(9u8), 1 => 0u8..5])
            .prop_map(|(wait, effects)| Happening::Rotate { wait, effects }),
        1 => (-300i32..300, prop_oneof![2 => Just(9u8), 1 => 0u8..5])
            .prop_map(|(by, effects)| Happening::Clock { by, effects }),
        2 => Just(Happening::Restart),
        1 => prop_oneof![Just(9u8), 0u8..4].prop_map(|effects| Happening::Prepare { effects }),
        1 => Just(Happening::Activate),
    ]
}

/// A server as the shell drives it, with a world that can fail after any effect.
#[derive(Default)]
struct Server {
    now: i64,
    made: u32,
    slots: Slots<KeyRecord>,
    // The world: what survives a restart.
    keys: [Option<Bytes>; 2],
    bundle: HashSet<String>,
    journal: Vec<KeyRecord>,
    // What was seen.
    ever_active: Vec<String>,
    ever_old: HashSet<String>,
}

impl Server {
    fn place(name: SlotName) -> usize {
        usize::from(name == B)
    }

    /// Spends one working effect; whether there was one.
    fn works(effects: &mut u8) -> bool {
        let works = *effects > 0;
        *effects = effects.saturating_sub(1);
        works
    }

    fn prepare(&mut self, name: SlotName, effects: &mut u8) -> bool {
        self.slots = self.slots.clone().vacated(name);
        if !Self::works(effects) {
            return false;
        }
        self.made += 1;
        let id = format!("k{}", self.made);
        self.keys[Self::place(name)] = Some(Bytes::copy_from_slice(id.as_bytes()));
        if !Self::works(effects) {
            return false;
        }
        self.bundle.insert(id.clone());
        let next = self.slots.prepared(key(name, &id, self.now, 90, AuthorityStatus::Unknown)).unwrap();
        self.store(next, effects)
    }

    fn store(&mut self, next: Slots<KeyRecord>, effects: &mut u8) -> bool {
        if !Self::works(effects) {
            return false;
        }
        self.journal = next.history().to_vec();
        self.slots = next;
        true
    }

    fn rotate(&mut self, mut effects: u8) {
        for _ in 0..6 {
            let done = match self.slots.step(at(self.now)) {
                None => return,
                Some(Step::Prepare(name)) => self.prepare(name, &mut effects),
                Some(Step::Activate(name)) => {
                    let next = self.slots.activated(name).unwrap();
                    self.store(next, &mut effects)
                }
                // One that was given up has another's key, or none.
                Some(Step::Restore(name))
                    if self.keys[Self::place(name)].as_deref()
                        != Some(self.slots.next().authority_id().as_bytes()) =>
                {
                    self.prepare(name, &mut effects)
                }
                Some(Step::Restore(name)) => {
                    let next = self.slots.restored(name).unwrap();
                    let stored = self.store(next, &mut effects);
                    if stored {
                        self.ever_old.remove(self.slots.active().unwrap().id());
                    }
                    stored
                }
            };
            if !done {
                return;
            }
        }
    }

    fn restart(&mut self) {
        self.slots = Slots::load(self.journal.clone(), |a| {
            if !self.bundle.contains(a.id()) {
                return Err(Unusable::NotInBundle);
            }
            let kept = self.keys[Self::place(a.slot)].as_deref();
            check_usable(a.not_after, &a.public_key, kept, at(self.now))
        })
        .slots;
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let active: Vec<_> =
            self.slots.history().iter().filter(|a| a.status == AuthorityStatus::Active).collect();
        prop_assert!(active.len() <= 1, "two are active: {active:?}");
        prop_assert!(self.slots.history().len() <= HISTORY_MAX);
        if let Some(active) = self.slots.active() {
            let id = active.id().to_owned();
            prop_assert!(self.bundle.contains(&id), "active before in the bundle");
            prop_assert_eq!(
                self.keys[Self::place(active.slot)].as_deref(),
                Some(id.as_bytes()),
                "the key of the active authority was replaced"
            );
            prop_assert!(!self.ever_old.contains(&id), "an old authority came back");
            if self.ever_active.last() != Some(&id) {
                self.ever_old.extend(self.ever_active.last().cloned());
                self.ever_active.push(id);
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn no_order_of_events_breaks_the_machine(happenings in prop::collection::vec(happening(), 1..60)) {
        let mut server = Server::default();
        for happening in happenings {
            match happening {
                Happening::Rotate { wait, effects } => {
                    server.now += i64::from(wait);
                    server.rotate(effects);
                }
                Happening::Clock { by, effects } => {
                    server.now += i64::from(by);
                    server.rotate(effects);
                }
                Happening::Restart => {
                    let before = server.slots.active().cloned().filter(|a| a.not_after >= at(server.now));
                    server.restart();
                    if let Some(before) = before {
                        // The keys are still there, so the same authority signs: no second one.
                        prop_assert_eq!(server.slots.active().map(Authority::id), Some(before.id()));
                    }
                }
                Happening::Prepare { mut effects } => {
                    if server.slots.check_initialized().is_ok() {
                        let name = server.slots.slot_to_prepare();
                        server.prepare(name, &mut effects);
                    }
                }
                Happening::Activate => {
                    let id = server.slots.next().authority_id().to_owned();
                    if server.slots.check_activation(&id).is_ok() {
                        let next = server.slots.activated(server.slots.next().name()).unwrap();
                        server.store(next, &mut 1);
                    }
                }
            }
            server.check()?;
        }
        // When everything works again, one rotation is enough to have a live authority.
        server.rotate(9);
        let active = server.slots.active().unwrap();
        prop_assert!(active.not_after >= at(server.now), "{active:?}");
        prop_assert!(active.issued_at <= at(server.now + 10), "{active:?} at {}", server.now);
        prop_assert_eq!(server.slots.step(at(server.now)), None);
    }
}
