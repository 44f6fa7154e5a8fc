//! When an SVID is renewed.

use std::time::Duration;

use crate::time::Timestamp;

/// The availability target applies only when this much of the lifetime lies before it
/// (pkg/common/rotationutil: gracePeriodThreshold).
const GRACE_PERIOD: Duration = Duration::from_secs(12 * 60 * 60);

/// Renewals for an availability target are spread over this long before it.
const TARGET_SPREAD: Duration = Duration::from_secs(10 * 60);

/// A random number that spreads renewals of many agents over time. The caller draws it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jitter(u64);

impl Jitter {
    /// From any evenly distributed random number.
    pub const fn from_random(random: u64) -> Self {
        Self(random)
    }

    /// A point within the span, in proportion to the random number.
    fn of(self, span: Duration) -> Duration {
        let nanos = (span.as_nanos() * u128::from(self.0)) >> 64;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// The schedule of renewals (pkg/common/rotationutil).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    availability_target: Option<Duration>,
}

impl Rotation {
    /// With an availability target, when one is configured: how long an SVID must stay valid if the server
    /// cannot be reached.
    pub const fn new(availability_target: Option<Duration>) -> Self {
        Self { availability_target }
    }

    /// Whether an SVID lives too briefly for the availability target, so that only its half-life counts.
    /// Worth a warning to the operator.
    pub fn misses_target(&self, lifetime: Duration) -> bool {
        self.availability_target.is_some_and(|target| lifetime.saturating_sub(target) <= GRACE_PERIOD)
    }

    /// When to renew an X.509-SVID: at its half-life ±10 %, or when no more than the availability target and
    /// up to ten minutes remain, whichever comes first.
    pub fn renew_x509_at(&self, not_before: Timestamp, not_after: Timestamp, jitter: Jitter) -> Timestamp {
        let lifetime = not_after.since(not_before);
        let by_half = before(not_after, half_life(lifetime, jitter));
        match self.availability_target {
            Some(target) if !self.misses_target(lifetime) => {
                by_half.min(before(not_after, target + jitter.of(TARGET_SPREAD)))
            }
            _ => by_half,
        }
    }

    /// [`Rotation::renew_x509_at`] for an SVID that came just `now`. One whose half-life has passed already (what it
    /// lives is not much more than the ten seconds of its backdating) is renewed after a quarter of what is left, and
    /// after a second at the soonest: not again and again as fast as the server answers.
    pub fn renew_new_x509_at(
        &self,
        not_before: Timestamp,
        not_after: Timestamp,
        now: Timestamp,
        jitter: Jitter,
    ) -> Timestamp {
        let soonest = now + (not_after.since(now) / 4).max(Duration::from_secs(1));
        self.renew_x509_at(not_before, not_after, jitter).max(soonest)
    }

    /// When to renew a JWT-SVID: at its half-life ±10 %.
    pub fn renew_jwt_at(&self, issued_at: Timestamp, expires_at: Timestamp, jitter: Jitter) -> Timestamp {
        before(expires_at, half_life(expires_at.since(issued_at), jitter))
    }
}

/// Half of the lifetime ±10 %: what may remain before a renewal.
fn half_life(lifetime: Duration, jitter: Jitter) -> Duration {
    let half = lifetime / 2;
    let delta = half / 10;
    half - delta + jitter.of(delta * 2)
}

/// `remaining`, rounded up to seconds, before `end`: renewing a moment early is safe, late is not.
fn before(end: Timestamp, remaining: Duration) -> Timestamp {
    end - Duration::from_secs(remaining.as_secs() + u64::from(remaining.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix(seconds)
    }

    #[test]
    fn half_life_with_ten_percent_either_way() {
        let rotation = Rotation::default();
        let end = at(1000);
        for (jitter, expected) in [(0, 1000 - 450), (u64::MAX / 2, 1000 - 500), (u64::MAX, 1000 - 550)] {
            assert_eq!(rotation.renew_x509_at(at(0), end, Jitter::from_random(jitter)), at(expected));
            assert_eq!(rotation.renew_jwt_at(at(0), end, Jitter::from_random(jitter)), at(expected));
        }
    }

    #[test]
    fn the_availability_target_comes_first_when_it_is_earlier() {
        let rotation = Rotation::new(Some(Duration::from_secs(24 * HOUR)));
        let lifetime = 37 * HOUR;
        assert!(!rotation.misses_target(Duration::from_secs(lifetime)));
        let end = at(i64::try_from(lifetime).unwrap());
        // Half-life would be at 18.5 h ± 1.85 h; the target asks for 13 h.
        let renew = rotation.renew_x509_at(at(0), end, Jitter::from_random(0));
        assert_eq!(renew, end - Duration::from_secs(24 * HOUR));
        let renew = rotation.renew_x509_at(at(0), end, Jitter::from_random(u64::MAX));
        assert_eq!(renew, end - Duration::from_secs(24 * HOUR + 600));
    }

    #[test]
    fn a_short_life_falls_back_to_its_half() {
        let rotation = Rotation::new(Some(Duration::from_secs(24 * HOUR)));
        let lifetime = Duration::from_secs(36 * HOUR);
        assert!(rotation.misses_target(lifetime));
        let end = at(0) + lifetime;
        let renew = rotation.renew_x509_at(at(0), end, Jitter::from_random(u64::MAX / 2));
        assert_eq!(renew, at(0) + lifetime / 2);
        assert!(!Rotation::default().misses_target(lifetime));
    }

    #[test]
    fn a_life_of_nothing_is_renewed_at_once() {
        let jitter = Jitter::from_random(7);
        assert_eq!(Rotation::default().renew_x509_at(at(5), at(5), jitter), at(5));
        assert_eq!(Rotation::default().renew_jwt_at(at(9), at(5), jitter), at(5));
    }
}
