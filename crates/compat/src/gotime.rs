//! Imitates the text forms of Go's `time.Time`, always in UTC.

use std::fmt::Write as _;

/// `2006-01-02 15:04:05 +0000 UTC`, what `Time.String` prints for whole seconds since 1970.
pub fn string(unix_seconds: i64) -> String {
    string_nanos(unix_seconds, 0)
}

/// `Time.String` with nanoseconds (below 1,000,000,000): as many decimals as needed.
pub fn string_nanos(unix_seconds: i64, nanos: u32) -> String {
    let mut out = date_time(unix_seconds, ' ');
    push_fraction(&mut out, nanos);
    out.push_str(" +0000 UTC");
    out
}

/// RFC 3339 in whole seconds: `2006-01-02T15:04:05Z`.
pub fn rfc3339(unix_seconds: i64) -> String {
    let mut out = date_time(unix_seconds, 'T');
    out.push('Z');
    out
}

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The date of HTTP headers, `Mon, 02 Jan 2006 15:04:05 GMT` (net/http: TimeFormat).
pub fn http_date(unix_seconds: i64) -> String {
    let (days, second) = (unix_seconds.div_euclid(86_400), unix_seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    // 1970-01-01 was a Thursday.
    let weekday = usize::try_from((days + 3).rem_euclid(7)).unwrap_or_default();
    let name = MONTHS[usize::try_from(month - 1).unwrap_or_default()];
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{}, {day:02} {name} {year:04} {hour:02}:{minute:02}:{second:02} GMT", DAYS[weekday])
}

/// Reads the three forms of dates that HTTP headers have (net/http: ParseTime): seconds since 1970.
pub fn parse_http_date(text: &str) -> Option<i64> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let (day, month, year, time) = match words[..] {
        [weekday, day, month, year, time, "GMT"] if weekday.len() == 4 && weekday.ends_with(',') => {
            (day, month, year.parse::<i64>().ok().filter(|_| year.len() == 4)?, time)
        }
        [weekday, date, time, zone] if weekday.ends_with("day,") && zone.len() == 3 => {
            let mut parts = date.split('-');
            let (day, month, year) = (parts.next()?, parts.next()?, parts.next()?);
            let year: i64 = year.parse().ok().filter(|_| year.len() == 2 && parts.next().is_none())?;
            (day, month, if year >= 69 { 1900 + year } else { 2000 + year }, time)
        }
        [_, month, day, time, year] => {
            (day, month, year.parse::<i64>().ok().filter(|_| year.len() == 4)?, time)
        }
        _ => return None,
    };
    let month = MONTHS.iter().position(|name| *name == month)?;
    let day: i64 = day.parse().ok().filter(|day| (1..=31).contains(day))?;
    let mut clock = time.split(':').map(|part| part.parse::<i64>().ok().filter(|_| part.len() == 2));
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if clock.next().is_some()
        || !(0..24).contains(&hour)
        || !(0..60).contains(&minute)
        || !(0..60).contains(&second)
    {
        return None;
    }
    let days = days_before(year, i64::try_from(month).ok()? + 1) + day - 1;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Days from 1970-01-01 to the first of a month, the inverse of [`date`].
fn days_before(year: i64, month: i64) -> i64 {
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * month + 2) / 5
        - DAYS_TO_1970
}

fn push_fraction(out: &mut String, nanos: u32) {
    if nanos > 0 {
        let digits = format!("{nanos:09}");
        out.push('.');
        out.push_str(digits.trim_end_matches('0'));
    }
}

fn date_time(unix_seconds: i64, separator: char) -> String {
    let (days, second) = (unix_seconds.div_euclid(86_400), unix_seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut out = String::with_capacity(32);
    if year < 0 {
        out.push('-');
    }
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "{:04}-{month:02}-{day:02}{separator}{hour:02}:{minute:02}:{second:02}",
        year.unsigned_abs()
    );
    out
}

/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: i64 = 719_468;

/// The Gregorian date of a day counted from 1970-01-01. The count moves to 0000-03-01, so that the leap day
/// ends a year, and goes down through cycles of 400 years.
fn date(days: i64) -> (i64, i64, i64) {
    const CYCLE: i64 = 146_097;
    let days = days + DAYS_TO_1970;
    let (cycle, day) = (days.div_euclid(CYCLE), days.rem_euclid(CYCLE));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + cycle * 400 + i64::from(month <= 2), month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_go_does() {
        assert_eq!(string(0), "1970-01-01 00:00:00 +0000 UTC");
        assert_eq!(string(1_700_000_000), "2023-11-14 22:13:20 +0000 UTC");
        assert_eq!(string(-62_135_596_800), "0001-01-01 00:00:00 +0000 UTC");
        assert_eq!(string(-1), "1969-12-31 23:59:59 +0000 UTC");
        assert_eq!(string_nanos(1, 500_000_000), "1970-01-01 00:00:01.5 +0000 UTC");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(string_nanos(0, 1), "1970-01-01 00:00:00.000000001 +0000 UTC");
        assert_eq!(rfc3339(253_402_300_800), "10000-01-01T00:00:00Z");
        // The ends of the range must not overflow.
        assert!(string(i64::MAX).ends_with("UTC"));
        assert!(string(i64::MIN).starts_with('-'));
    }

    #[test]
    fn dates_of_http_headers() {
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        for text in
            ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
        {
            assert_eq!(parse_http_date(text), Some(784_111_777), "{text}");
        }
        for text in [
            "",
            "x",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 25:00:00 GMT",
        ] {
            assert_eq!(parse_http_date(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn http_dates_come_back(seconds in -62_000_000_000i64..250_000_000_000) {
            proptest::prop_assert_eq!(parse_http_date(&http_date(seconds)), Some(seconds));
        }

        #[test]
        fn agrees_with_the_time_crate(seconds in -62_000_000_000i64..250_000_000_000) {
            let time = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap();
            let expected = format!(
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
                time.year(), u8::from(time.month()), time.day(), time.hour(), time.minute(), time.second()
            );
            proptest::prop_assert_eq!(rfc3339(seconds), expected);
        }
    }
}
