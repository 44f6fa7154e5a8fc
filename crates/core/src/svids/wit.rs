//! The cache of WIT-SVIDs: tokens that are bound to a key, by entry.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::schedule::{Jitter, Rotation};
use crate::model::EntryId;
use crate::spiffe::SpiffeId;
use crate::time::Timestamp;

/// A WIT-SVID with its key, as the server signed it (SPIFFE WIT-SVID).
pub struct WitSvid {
    /// Whom the token names.
    pub spiffe_id: SpiffeId,
    /// The token, compact serialisation. Never printed.
    pub token: Box<str>,
    /// The `kid` of its header: which key signed it.
    pub key_id: Box<str>,
    /// The private key that the token is bound to, a JWK in JSON. Wiped when dropped, never printed.
    pub private_jwk: Zeroizing<String>,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
}

impl fmt::Debug for WitSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WitSvid")
            .field("spiffe_id", &self.spiffe_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// A WIT-SVID that is valid, and when to replace it.
#[derive(Clone, Debug)]
pub struct HeldWit {
    /// The SVID.
    pub svid: Arc<WitSvid>,
    /// From then on a new one is due; this one serves while none can be had.
    pub renew_at: Timestamp,
}

/// WIT-SVIDs by entry, each for one revision of it. Expired ones go when others come; when it is full, the one that
/// expires first gives way.
#[derive(Debug)]
pub struct WitCache {
    max_size: usize,
    rotation: Rotation,
    held: HashMap<EntryId, (i64, HeldWit)>,
    /// When expired ones were last looked for; the clock may be behind it now.
    swept: Timestamp,
}

impl WitCache {
    /// An empty cache for `max_size` SVIDs, at least one.
    pub fn new(max_size: usize, rotation: Rotation) -> Self {
        Self { max_size: max_size.max(1), rotation, held: HashMap::new(), swept: Timestamp::EPOCH }
    }

    /// The SVID of that revision of an entry, if it is valid.
    pub fn lookup(&self, id: &EntryId, revision: i64, now: Timestamp) -> Option<HeldWit> {
        let (of, held) = self.held.get(id)?;
        (*of == revision && now < held.svid.expires_at).then(|| held.clone())
    }

    /// Keeps an SVID in place of the entry's last one; says when it is to be replaced, as an X.509-SVID would be.
    pub fn insert(
        &mut self,
        id: EntryId,
        revision: i64,
        svid: Arc<WitSvid>,
        now: Timestamp,
        jitter: Jitter,
    ) -> HeldWit {
        let renew_at = self.rotation.renew_new_x509_at(svid.issued_at, svid.expires_at, now, jitter);
        let held = HeldWit { svid, renew_at };
        self.held.remove(&id);
        if self.held.len() >= self.max_size {
            self.held.retain(|_, (_, held)| now < held.svid.expires_at);
        }
        while self.held.len() >= self.max_size {
            let first = self.held.iter().min_by_key(|(_, (_, held))| held.svid.expires_at);
            let Some(first) = first.map(|(id, _)| id.clone()) else { break };
            self.held.remove(&first);
        }
        self.held.insert(id, (revision, held.clone()));
        held
    }

    /// Forgets what expired, and what belongs to entries of which `exists` is false; and where the clock was set back,
    /// what was signed later than now, since verifiers may refuse it.
    pub fn sweep(&mut self, now: Timestamp, mut exists: impl FnMut(&EntryId) -> bool) {
        let turned_back = now < self.swept;
        self.swept = now;
        self.held.retain(|id, (_, held)| {
            let of_the_future = turned_back && now < held.svid.issued_at;
            now < held.svid.expires_at && !of_the_future && exists(id)
        });
    }

    /// Forgets the SVIDs that the named keys signed; returns how many went.
    pub fn taint(&mut self, key_ids: &HashSet<String>) -> usize {
        let before = self.held.len();
        self.held.retain(|_, (_, held)| !key_ids.contains(&*held.svid.key_id));
        before - self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Jitter = Jitter::from_random(0);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix(seconds)
    }

    fn id(name: &str) -> EntryId {
        EntryId::from_stored(name)
    }

    fn svid(issued: i64, expires: i64, kid: &str) -> Arc<WitSvid> {
        Arc::new(WitSvid {
            spiffe_id: SpiffeId::parse("spiffe://a.org/w").unwrap(),
            token: "secret".into(),
            key_id: kid.into(),
            private_jwk: Zeroizing::new("secret".to_owned()),
            issued_at: at(issued),
            expires_at: at(expires),
        })
    }

    #[test]
    fn an_svid_is_held_for_its_revision_until_it_expires() {
        let mut cache = WitCache::new(10, Rotation::default());
        let held = cache.insert(id("a"), 1, svid(0, 3600, "k"), at(0), FIRST);
        assert!((at(1600)..=at(2000)).contains(&held.renew_at), "{held:?}");
        for (revision, now, found) in [(1, 0, true), (1, 3599, true), (1, 3600, false), (2, 0, false)] {
            assert_eq!(cache.lookup(&id("a"), revision, at(now)).is_some(), found, "{revision} at {now}");
        }
        assert!(!format!("{held:?}").contains("secret"));
        cache.sweep(at(0), |_| false);
        assert!(cache.held.is_empty());
    }

    #[test]
    fn what_is_of_a_time_that_the_clock_has_left_goes() {
        let mut cache = WitCache::new(10, Rotation::default());
        cache.insert(id("a"), 0, svid(0, 9000, "k"), at(0), FIRST);
        cache.insert(id("b"), 0, svid(5000, 9000, "k"), at(5000), FIRST);
        cache.sweep(at(4990), |_| true);
        assert_eq!(cache.held.len(), 2, "the server's clock may be ahead of ours");
        cache.sweep(at(100), |_| true);
        assert!(cache.lookup(&id("a"), 0, at(100)).is_some() && cache.held.len() == 1);
    }

    #[test]
    fn a_full_cache_gives_up_what_expires_first() {
        let mut cache = WitCache::new(2, Rotation::default());
        for (name, expires) in [("a", 200), ("b", 100), ("c", 300)] {
            cache.insert(id(name), 0, svid(0, expires, "k"), at(0), FIRST);
        }
        let held = |cache: &WitCache, now| {
            ["a", "b", "c", "d", "e"].map(|n| cache.lookup(&id(n), 0, at(now)).is_some())
        };
        assert_eq!(held(&cache, 0), [true, false, true, false, false]);
        cache.insert(id("d"), 0, svid(0, 500, "k"), at(250), FIRST);
        assert_eq!(held(&cache, 250), [false, false, true, true, false]);
        cache.insert(id("d"), 0, svid(0, 600, "k"), at(250), FIRST);
        assert_eq!(held(&cache, 250), [false, false, true, true, false]);
    }

    #[test]
    fn tainted_svids_go() {
        let mut cache = WitCache::new(10, Rotation::default());
        for (name, kid) in [("a", "x"), ("b", "y"), ("c", "x")] {
            cache.insert(id(name), 0, svid(0, 300, kid), at(0), FIRST);
        }
        assert_eq!(cache.taint(&HashSet::from(["x".to_owned()])), 2);
        assert!(cache.lookup(&id("b"), 0, at(0)).is_some());
    }
}
