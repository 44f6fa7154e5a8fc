//! The cache of JWT-SVIDs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;

use super::schedule::{Jitter, Rotation};
use crate::spiffe::SpiffeId;
use crate::time::Timestamp;

/// A JWT-SVID as the server signed it.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtSvid {
    /// The token, compact serialisation. Never printed.
    pub token: Arc<str>,
    /// The `kid` of its header: which key signed it.
    pub key_id: Box<str>,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
}

impl JwtSvid {
    /// Whether it has expired.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now >= self.expires_at
    }
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvid").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// What a token is cached under: the SPIFFE ID and the audiences, whose order does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JwtKey([u8; 32]);

impl JwtKey {
    /// The key of an ID and audiences. Lengths are part of it, so no choice of strings collides.
    pub fn new(spiffe_id: &SpiffeId, audiences: &[String]) -> Self {
        let mut sorted: Vec<&str> = audiences.iter().map(String::as_str).collect();
        sorted.sort_unstable();
        let mut context = digest::Context::new(&digest::SHA256);
        for part in std::iter::once(spiffe_id.as_str()).chain(sorted) {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let mut key = [0; 32];
        key.copy_from_slice(context.finish().as_ref());
        Self(key)
    }
}

/// What the cache knows of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwtLookup {
    /// A token that need not be renewed yet.
    Fresh(Arc<JwtSvid>),
    /// A token past its half-life: renew it, and serve it if that fails.
    Renew(Arc<JwtSvid>),
    /// A token that is of no use any more.
    Expired,
    /// Nothing.
    Absent,
}

/// JWT-SVIDs by SPIFFE ID and audience; the least recently used one gives way when it is full. Tokens with a
/// `jti` are unique by purpose and must not be put here.
#[derive(Debug)]
pub struct JwtCache {
    max_size: usize,
    rotation: Rotation,
    tokens: HashMap<JwtKey, Cached>,
    /// By last use; the smallest goes first.
    order: BTreeMap<u64, JwtKey>,
    uses: u64,
    /// The last time that was heard of; the clock may be behind it now.
    latest: Timestamp,
}

#[derive(Debug)]
struct Cached {
    svid: Arc<JwtSvid>,
    renew_at: Timestamp,
    last_use: u64,
}

impl JwtCache {
    /// An empty cache for `max_size` tokens, at least one.
    pub fn new(max_size: usize) -> Self {
        Self {
            max_size: max_size.max(1),
            rotation: Rotation::default(),
            tokens: HashMap::new(),
            order: BTreeMap::new(),
            uses: 0,
            latest: Timestamp::EPOCH,
        }
    }

    /// How many tokens are cached.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether no token is cached.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Looks a token up, which counts as a use.
    pub fn lookup(&mut self, key: &JwtKey, now: Timestamp) -> JwtLookup {
        if now < self.latest {
            self.turn_back(now);
        }
        self.latest = now;
        let Some(cached) = self.tokens.get_mut(key) else { return JwtLookup::Absent };
        self.order.remove(&cached.last_use);
        self.uses += 1;
        cached.last_use = self.uses;
        self.order.insert(self.uses, *key);
        if cached.svid.is_expired(now) {
            JwtLookup::Expired
        } else if now >= cached.renew_at {
            JwtLookup::Renew(Arc::clone(&cached.svid))
        } else {
            JwtLookup::Fresh(Arc::clone(&cached.svid))
        }
    }

    /// Keeps a token, in place of the one that is there.
    pub fn insert(&mut self, key: JwtKey, svid: Arc<JwtSvid>, jitter: Jitter) {
        self.remove(&key);
        while self.tokens.len() >= self.max_size {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.tokens.remove(&oldest);
        }
        self.uses += 1;
        let renew_at = self.rotation.renew_jwt_at(svid.issued_at, svid.expires_at, jitter);
        self.tokens.insert(key, Cached { svid, renew_at, last_use: self.uses });
        self.order.insert(self.uses, key);
    }

    /// Forgets the tokens that the named keys signed; returns how many went, by key ID.
    pub fn taint(&mut self, key_ids: &HashSet<String>) -> BTreeMap<String, usize> {
        let tainted: Vec<(JwtKey, String)> = self
            .tokens
            .iter()
            .filter(|(_, cached)| key_ids.contains(&*cached.svid.key_id))
            .map(|(key, cached)| (*key, cached.svid.key_id.to_string()))
            .collect();
        let mut removed = BTreeMap::new();
        for (key, key_id) in tainted {
            self.remove(&key);
            *removed.entry(key_id).or_default() += 1;
        }
        removed
    }

    /// The clock was set back: verifiers may refuse tokens that were signed later than now.
    fn turn_back(&mut self, now: Timestamp) {
        let later = |cached: &Cached| now < cached.svid.issued_at;
        let of_the_future: Vec<JwtKey> =
            self.tokens.iter().filter(|(_, cached)| later(cached)).map(|(key, _)| *key).collect();
        for key in of_the_future {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &JwtKey) {
        if let Some(cached) = self.tokens.remove(key) {
            self.order.remove(&cached.last_use);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> JwtKey {
        JwtKey::new(&SpiffeId::parse(&format!("spiffe://a.org/{n}")).unwrap(), &["x".to_owned()])
    }

    fn svid(issued: i64, expires: i64, kid: &str) -> Arc<JwtSvid> {
        Arc::new(JwtSvid {
            token: "secret".into(),
            key_id: kid.into(),
            issued_at: Timestamp::from_unix(issued),
            expires_at: Timestamp::from_unix(expires),
        })
    }

    #[test]
    fn the_key_ignores_the_order_of_audiences_and_nothing_else() {
        let id = SpiffeId::parse("spiffe://a.org/w").unwrap();
        let of = |audiences: &[&str]| {
            JwtKey::new(&id, &audiences.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(of(&["a", "b"]), of(&["b", "a"]));
        assert_ne!(of(&["a", "b"]), of(&["a\0b"]));
        assert_ne!(of(&["ab"]), of(&["a", "b"]));
        assert_ne!(of(&["a", "a"]), of(&["a"]));
    }

    #[test]
    fn a_token_is_fresh_then_to_be_renewed_then_gone() {
        let mut cache = JwtCache::new(10);
        let token = svid(0, 300, "k");
        cache.insert(key(1), Arc::clone(&token), Jitter::from_random(u64::MAX / 2));
        for (now, expected) in [
            (0, JwtLookup::Fresh(Arc::clone(&token))),
            (149, JwtLookup::Fresh(Arc::clone(&token))),
            (150, JwtLookup::Renew(Arc::clone(&token))),
            (299, JwtLookup::Renew(Arc::clone(&token))),
            (300, JwtLookup::Expired),
        ] {
            assert_eq!(cache.lookup(&key(1), Timestamp::from_unix(now)), expected, "at {now}");
        }
        assert!(!format!("{token:?}").contains("secret"));
    }

    #[test]
    fn tokens_of_a_time_that_the_clock_has_left_go() {
        let mut cache = JwtCache::new(10);
        let at = Timestamp::from_unix;
        cache.insert(key(1), svid(100, 400, "k"), Jitter::from_random(0));
        cache.insert(key(2), svid(5000, 5300, "k"), Jitter::from_random(0));
        // A server whose clock is ahead of ours signs tokens that are good all the same.
        assert!(matches!(cache.lookup(&key(2), at(4900)), JwtLookup::Fresh(_)));
        assert!(matches!(cache.lookup(&key(1), at(200)), JwtLookup::Fresh(_)));
        assert_eq!(cache.lookup(&key(2), at(201)), JwtLookup::Absent);
        assert_eq!((cache.len(), cache.order.len()), (1, 1));
    }

    #[test]
    fn tainted_tokens_go() {
        let mut cache = JwtCache::new(10);
        for (n, kid) in [(1, "a"), (2, "b"), (3, "a")] {
            cache.insert(key(n), svid(0, 300, kid), Jitter::from_random(0));
        }
        let removed = cache.taint(&HashSet::from(["a".to_owned()]));
        assert_eq!(removed, BTreeMap::from([("a".to_owned(), 2)]));
        assert_eq!((cache.len(), cache.order.len()), (1, 1));
        assert_ne!(cache.lookup(&key(2), Timestamp::EPOCH), JwtLookup::Absent);
    }

    proptest! {
        #[test]
        fn the_least_recently_used_gives_way(ops in prop::collection::vec((any::<bool>(), 0u8..8), 0..80)) {
            let mut cache = JwtCache::new(3);
            let mut model: Vec<u8> = Vec::new();
            for (insert, n) in ops {
                let known = model.contains(&n);
                if insert {
                    cache.insert(key(n), svid(0, 300, "k"), Jitter::from_random(0));
                    model.retain(|m| *m != n);
                    model.push(n);
                    if model.len() > 3 {
                        model.remove(0);
                    }
                } else {
                    let found = cache.lookup(&key(n), Timestamp::EPOCH) != JwtLookup::Absent;
                    prop_assert_eq!(found, known);
                    if known {
                        model.retain(|m| *m != n);
                        model.push(n);
                    }
                }
                prop_assert_eq!(cache.len(), model.len());
                prop_assert_eq!(cache.order.len(), model.len());
            }
        }
    }
}
