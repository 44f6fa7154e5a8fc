//! Points in time as whole Unix seconds, the resolution of certificates, tokens and the store.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use time::OffsetDateTime;

/// A point in time: whole seconds since the Unix epoch. Negative before 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The epoch; stored expiries use it for "never".
    pub const EPOCH: Self = Self(0);

    /// From seconds since the epoch.
    pub const fn from_unix(seconds: i64) -> Self {
        Self(seconds)
    }

    /// Seconds since the epoch.
    pub const fn unix(self) -> i64 {
        self.0
    }

    /// The time that passes from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        u64::try_from(self.0.saturating_sub(earlier.0)).map_or(Duration::ZERO, Duration::from_secs)
    }

    /// As a calendar date and time in UTC. Years outside ±9999 saturate.
    pub fn to_utc(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(self.0).unwrap_or(if self.0 < 0 {
            time::Date::MIN.midnight().assume_utc()
        } else {
            time::Date::MAX.midnight().assume_utc()
        })
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(at: OffsetDateTime) -> Self {
        Self(at.unix_timestamp())
    }
}

/// Whole seconds of the duration are added, saturating.
impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_secs()).unwrap_or(i64::MAX)))
    }
}

/// Whole seconds of the duration are subtracted, saturating.
impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(by.as_secs()).unwrap_or(i64::MAX)))
    }
}

/// As Go's `time.Time.String` prints a UTC time of whole seconds: `2006-01-02 15:04:05 +0000 UTC`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = self.to_utc();
        write!(
            f,
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02} +0000 UTC",
            t.year(),
            u8::from(t.month()),
            t.day(),
            t.hour(),
            t.minute(),
            t.second()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_as_go_does() {
        assert_eq!(Timestamp::from_unix(1_700_000_000).to_string(), "2023-11-14 22:13:20 +0000 UTC");
        assert_eq!(Timestamp::EPOCH.to_string(), "1970-01-01 00:00:00 +0000 UTC");
    }

    #[test]
    fn arithmetic_saturates() {
        let now = Timestamp::from_unix(100);
        assert_eq!(now.since(Timestamp::from_unix(40)), Duration::from_secs(60));
        assert_eq!(now.since(Timestamp::from_unix(140)), Duration::ZERO);
        assert_eq!(Timestamp::from_unix(i64::MAX) + Duration::from_secs(1), Timestamp::from_unix(i64::MAX));
        assert_eq!((now - Duration::from_secs(10)).unix(), 90);
    }
}
