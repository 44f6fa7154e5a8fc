//! Rate limits with the semantics of Go's `golang.org/x/time/rate`, which SPIRE's limits are made of: a
//! call that exceeds the rate waits its turn.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Buckets that were not used for one to two of these are forgotten (SPIRE
/// `pkg/common/ratelimit/perkeylimiter.go`).
const GENERATION: Duration = Duration::from_secs(60);

/// Buckets in a generation. About 100 B each, so 13 MiB for both generations when somebody comes from
/// everywhere; more keys than that end the generation early, which gives those forgotten a full bucket.
const KEYS_MAX: usize = 65_536;

/// Why a call may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// It counts for more than can ever be had at once; becomes ResourceExhausted.
    #[error("rate ({count}) exceeds burst size ({burst})")]
    ExceedsBurst {
        /// What was asked for.
        count: u32,
        /// The most there can be.
        burst: u32,
    },
    /// Its turn comes after its deadline; becomes ResourceExhausted.
    #[error("rate: Wait(n={count}) would exceed context deadline")]
    ExceedsDeadline {
        /// What was asked for.
        count: u32,
    },
}

/// A bucket that holds at most `burst` tokens and gains `rate` of them a second; full at first.
#[derive(Debug)]
pub struct TokenBucket {
    rate: f64,
    burst: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Negative while calls wait.
    tokens: f64,
    /// When `tokens` was right; `None` before the first call, when the bucket is full.
    updated: Option<Instant>,
    /// When the last call that was let in may go on.
    last_turn: Option<Instant>,
}

/// A place in the queue: the call may go on at [`turn`](Self::turn).
#[derive(Debug, Clone, Copy)]
pub struct Reservation {
    count: u32,
    turn: Instant,
}

impl Reservation {
    /// When the call may go on; not after the time of the reservation if there were tokens enough.
    pub fn turn(&self) -> Instant {
        self.turn
    }
}

impl TokenBucket {
    /// `per_second` calls a second, and as many at once, as all of SPIRE's limits are.
    pub fn per_second(per_second: u32) -> Self {
        Self::new(f64::from(per_second), per_second)
    }

    /// `rate` tokens a second, at most `burst` at once.
    pub fn new(rate: f64, burst: u32) -> Self {
        let state = State { tokens: f64::from(burst), updated: None, last_turn: None };
        Self { rate: rate.max(0.0), burst, state: Mutex::new(state) }
    }

    /// Takes `count` tokens if they are there at `now`.
    pub fn allow(&self, count: u32, now: Instant) -> bool {
        self.reserve(count, now, Some(now)).is_ok()
    }

    /// Takes `count` tokens, if need be ahead of time. Nothing is taken where the turn would come after
    /// `deadline`.
    pub fn reserve(
        &self,
        count: u32,
        now: Instant,
        deadline: Option<Instant>,
    ) -> Result<Reservation, RateError> {
        if count > self.burst {
            return Err(RateError::ExceedsBurst { count, burst: self.burst });
        }
        let mut state = self.state.lock();
        let tokens = self.tokens_at(&state, now) - f64::from(count);
        let late = RateError::ExceedsDeadline { count };
        let wait = if tokens < 0.0 { self.time_for(-tokens).ok_or(late)? } else { Duration::ZERO };
        let turn = now.checked_add(wait).ok_or(late)?;
        if deadline.is_some_and(|deadline| turn > deadline) {
            return Err(late);
        }
        *state = State { tokens, updated: Some(now), last_turn: Some(turn) };
        Ok(Reservation { count, turn })
    }

    /// Gives back the tokens of a call that was abandoned before its turn, less those that later calls
    /// already count on.
    pub fn cancel(&self, reservation: Reservation, now: Instant) {
        let mut state = self.state.lock();
        if reservation.turn <= now {
            return;
        }
        let later =
            state.last_turn.map_or(Duration::ZERO, |last| last.saturating_duration_since(reservation.turn));
        let restored = f64::from(reservation.count) - later.as_secs_f64() * self.rate;
        if restored <= 0.0 {
            return;
        }
        let tokens = (self.tokens_at(&state, now) + restored).min(f64::from(self.burst));
        if state.last_turn == Some(reservation.turn) {
            let back = self.time_for(f64::from(reservation.count)).unwrap_or(Duration::ZERO);
            state.last_turn = reservation.turn.checked_sub(back).filter(|turn| *turn > now).or(Some(now));
        }
        state.tokens = tokens;
        state.updated = Some(now);
    }

    /// Waits for `count` tokens. Dropping the future before its turn gives them back.
    pub async fn wait(&self, count: u32, deadline: Option<Instant>) -> Result<(), RateError> {
        let now = tokio::time::Instant::now();
        let reservation = self.reserve(count, now.into_std(), deadline)?;
        if reservation.turn <= now.into_std() {
            return Ok(());
        }
        let mut abandoned = CancelOnDrop { bucket: self, reservation: Some(reservation) };
        tokio::time::sleep_until(reservation.turn.into()).await;
        abandoned.reservation = None;
        Ok(())
    }

    fn tokens_at(&self, state: &State, now: Instant) -> f64 {
        let elapsed = state.updated.map_or(Duration::ZERO, |updated| now.saturating_duration_since(updated));
        (state.tokens + elapsed.as_secs_f64() * self.rate).min(f64::from(self.burst))
    }

    /// How long `tokens` take to come; `None` for ever.
    fn time_for(&self, tokens: f64) -> Option<Duration> {
        Duration::try_from_secs_f64(tokens / self.rate).ok()
    }
}

struct CancelOnDrop<'a> {
    bucket: &'a TokenBucket,
    reservation: Option<Reservation>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(reservation) = self.reservation {
            self.bucket.cancel(reservation, tokio::time::Instant::now().into_std());
        }
    }
}

/// A bucket for each key, such as a caller's address. Bounded; forgets keys that are not used.
#[derive(Debug)]
pub struct PerKeyLimiter<K> {
    per_second: u32,
    keys_max: usize,
    generations: Mutex<Generations<K>>,
}

#[derive(Debug)]
struct Generations<K> {
    current: HashMap<K, Arc<TokenBucket>>,
    previous: HashMap<K, Arc<TokenBucket>>,
    began: Option<Instant>,
}

impl<K: Eq + Hash> PerKeyLimiter<K> {
    /// Each key has `per_second` calls a second, and as many at once.
    pub fn per_second(per_second: u32) -> Self {
        let generations = Generations { current: HashMap::new(), previous: HashMap::new(), began: None };
        Self { per_second, keys_max: KEYS_MAX, generations: Mutex::new(generations) }
    }

    /// The key's bucket at `now`, which decides what is forgotten.
    pub fn bucket(&self, key: K, now: Instant) -> Arc<TokenBucket> {
        let mut generations = self.generations.lock();
        if let Some(bucket) = generations.current.get(&key) {
            return Arc::clone(bucket);
        }
        let known = generations.previous.remove(&key);
        let began = *generations.began.get_or_insert(now);
        let is_over = known.is_none() && now.saturating_duration_since(began) >= GENERATION;
        if is_over || generations.current.len() >= self.keys_max {
            generations.previous = std::mem::take(&mut generations.current);
            generations.began = Some(now);
        }
        let bucket = known.unwrap_or_else(|| Arc::new(TokenBucket::per_second(self.per_second)));
        generations.current.insert(key, Arc::clone(&bucket));
        bucket
    }

    /// Waits until the key may make `count` calls.
    pub async fn wait(&self, key: K, count: u32, deadline: Option<Instant>) -> Result<(), RateError> {
        self.bucket(key, tokio::time::Instant::now().into_std()).wait(count, deadline).await
    }
}

#[cfg(test)]
mod tests;
