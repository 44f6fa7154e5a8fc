//! Waiting longer after each failure, as the reference's `pkg/common/backoff`.

use std::time::Duration;

use tokio::time::Instant;

/// Growth of the wait per failure, and how far a wait strays from its plan either way.
const MULTIPLIER: f64 = 1.5;
const JITTER: f64 = 0.1;

/// Without another limit a wait grows to this many times the first one.
const MAX_MULTIPLE: u32 = 24;

/// Waits that grow by half each time, up to a limit, with 10 % of jitter.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    initial: Duration,
    max: Duration,
    max_elapsed: Option<Duration>,
    next: Duration,
    started: Instant,
}

impl Backoff {
    /// Starts with waits of about `initial`, which grow to 24 times that.
    pub(super) fn new(initial: Duration) -> Self {
        Self {
            initial,
            max: initial * MAX_MULTIPLE,
            max_elapsed: None,
            next: initial,
            started: Instant::now(),
        }
    }

    /// With another limit for one wait.
    #[must_use]
    pub(super) fn max(self, max: Duration) -> Self {
        Self { max, ..self }
    }

    /// Gives up when this has passed since the last reset.
    #[must_use]
    pub(super) fn max_elapsed(self, max_elapsed: Duration) -> Self {
        Self { max_elapsed: Some(max_elapsed), ..self }
    }

    /// Forgets the failures.
    pub(super) fn reset(&mut self) {
        self.next = self.initial;
        self.started = Instant::now();
    }

    /// How long to wait now; `None` when it is time to give up. `random` is evenly distributed.
    pub(super) fn next(&mut self, random: u64) -> Option<Duration> {
        let planned = self.next;
        self.next = planned.mul_f64(MULTIPLIER).min(self.max);
        let wait = spread(planned, random);
        let late = |limit| self.started.elapsed() + wait > limit;
        if self.max_elapsed.is_some_and(late) { None } else { Some(wait) }
    }
}

/// The duration ±10 %.
pub(super) fn spread(planned: Duration, random: u64) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "a jitter needs no precision")]
    let fraction = random as f64 / u64::MAX as f64;
    planned.mul_f64(1.0 - JITTER + 2.0 * JITTER * fraction)
}

/// A batch size that is halved by each failure and doubled by each success
/// (pkg/common/backoff/size_backoff.go).
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchSize {
    max: usize,
    current: usize,
}

impl BatchSize {
    /// Starts at the largest size.
    pub(super) fn new(max: usize) -> Self {
        Self { max, current: max }
    }

    /// How many items the next batch may have.
    pub(super) fn get(self) -> usize {
        self.current
    }

    /// A batch failed.
    pub(super) fn failed(&mut self) {
        self.current = (self.current / 2).max(1);
    }

    /// A batch succeeded.
    pub(super) fn succeeded(&mut self) {
        self.current = self.current.saturating_mul(2).min(self.max);
    }
}

/// A random number for jitter, from the process's secure source.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    // Jitter of zero is fine when the source fails; nothing secret is made from it.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_grow_by_half_up_to_the_limit_and_stop() {
        let mut backoff = Backoff::new(Duration::from_secs(4)).max(Duration::from_secs(8));
        let middle = u64::MAX / 2;
        let waits: Vec<_> = (0..4).map(|_| backoff.next(middle).unwrap().as_secs_f64().round()).collect();
        assert_eq!(waits, [4.0, 6.0, 8.0, 8.0]);
        backoff.reset();
        assert!(backoff.next(0).unwrap() >= Duration::from_millis(3600));
        let mut limited = Backoff::new(Duration::from_secs(5)).max_elapsed(Duration::from_secs(60));
        assert!(limited.next(middle).is_some());
        tokio::time::advance(Duration::from_secs(56)).await;
        assert_eq!(limited.next(middle), None);
    }

    #[test]
    fn a_batch_is_halved_down_to_one_and_doubled_up_to_the_limit() {
        let mut size = BatchSize::new(500);
        size.failed();
        assert_eq!(size.get(), 250);
        for _ in 0..20 {
            size.failed();
        }
        assert_eq!(size.get(), 1);
        size.succeeded();
        assert_eq!(size.get(), 2);
        for _ in 0..20 {
            size.succeeded();
        }
        assert_eq!(size.get(), 500);
    }
}
