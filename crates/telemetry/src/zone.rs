//! The machine's time zone as Go finds it (`TZ`, then `/etc/localtime`), read from TZif files (RFC 9636).
//!
//! Log times are local, as the reference's. The `time` crate can tell the local offset only through the C library
//! and only while a process has one thread, so the little that is needed stands here: one offset for one instant.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use time::{OffsetDateTime, UtcOffset, Weekday};

/// Local time types by instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Zone {
    /// From this Unix second on the type of this index holds; ascending.
    transitions: Vec<(i64, u8)>,
    types: Vec<LocalType>,
    /// What holds after the last transition.
    rule: Option<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct LocalType {
    offset: i32,
    daylight: bool,
    name: String,
}

/// A POSIX `TZ` text such as `EST5EDT,M3.2.0,M11.1.0`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    standard: LocalType,
    daylight: Option<(LocalType, Change, Change)>,
}

/// A day of the year and the local second of it at which the clock changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    day: Day,
    second: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Day {
    /// `Jn`: 1 to 365, February 29 is never counted.
    Julian(u16),
    /// `n`: 0 to 365.
    Zero(u16),
    /// `Mm.w.d`: weekday `d` (0 is Sunday) of week `w` (5 is the last) of month `m`.
    Month { month: u8, week: u8, weekday: u8 },
}

impl Zone {
    /// UTC.
    pub(crate) const fn utc() -> Self {
        Self { transitions: Vec::new(), types: Vec::new(), rule: None }
    }

    /// The zone that Go would use with this value of `TZ`; UTC where it cannot be read.
    pub(crate) fn local(tz: Option<&OsStr>) -> Self {
        let Some(tz) = tz else { return Self::read(Path::new("/etc/localtime")).unwrap_or_default() };
        let Some(name) = tz.to_str().map(|name| name.strip_prefix(':').unwrap_or(name)) else {
            return Self::utc();
        };
        if name.is_empty() || name == "UTC" {
            return Self::utc();
        }
        if name.starts_with('/') {
            return Self::read(Path::new(name)).unwrap_or_default();
        }
        if name.split('/').any(|part| part == "..") {
            return Self::utc();
        }
        let folders =
            ["/usr/share/zoneinfo", "/usr/share/lib/zoneinfo", "/usr/lib/locale/TZ", "/etc/zoneinfo"];
        folders.iter().find_map(|folder| Self::read(&PathBuf::from(folder).join(name))).unwrap_or_default()
    }

    fn read(path: &Path) -> Option<Self> {
        let length = std::fs::metadata(path).ok()?.len();
        if length > MAX_FILE {
            return None;
        }
        Self::parse(&std::fs::read(path).ok()?)
    }

    /// Reads a TZif file of version 1 to 4. `None` for anything else.
    fn parse(file: &[u8]) -> Option<Self> {
        let version = *file.get(4)?;
        let first = Block::parse(file, 4)?;
        if version < b'2' {
            return first.zone();
        }
        let second = Block::parse(file.get(first.length..)?, 8)?;
        let mut zone = second.zone()?;
        let footer = file.get(first.length + second.length..)?;
        let footer = footer.strip_prefix(b"\n").and_then(|rest| rest.split(|byte| *byte == b'\n').next());
        zone.rule = footer.and_then(|text| std::str::from_utf8(text).ok()).and_then(Rule::parse);
        Some(zone)
    }

    /// The offset from UTC in seconds, and the abbreviation, at a Unix second.
    fn at(&self, seconds: i64) -> (i32, &str) {
        let after = self.transitions.partition_point(|(start, _)| *start <= seconds);
        let local = match (after, &self.rule) {
            (after, Some(rule)) if after == self.transitions.len() => Some(rule.at(seconds)),
            // Before the first transition the first standard type holds (RFC 9636 says type 0; Go prefers standard).
            (0, _) => self.types.iter().find(|local| !local.daylight).or(self.types.first()),
            (after, _) => self.types.get(usize::from(self.transitions[after - 1].1)),
        };
        local.map_or((0, "UTC"), |local| (local.offset, &local.name))
    }

    /// As Go's `time.RFC3339Nano`: the fraction without its trailing zeros, `Z` for no offset.
    pub(crate) fn rfc3339(&self, seconds: i64, nanos: u32) -> String {
        let (offset, _) = self.at(seconds);
        let mut out = calendar(seconds, offset, 'T');
        if nanos != 0 {
            let digits = format!("{nanos:09}");
            let _ = write!(out, ".{}", digits.trim_end_matches('0'));
        }
        // Go shows minutes only, and cuts off the seconds that zones of old had.
        if offset == 0 {
            out.push('Z');
        } else {
            push_offset(&mut out, offset, ":");
        }
        out
    }

    /// As Go's `time.Time.String`: `2026-11-23 03:44:55 +0000 UTC`.
    pub(crate) fn go_string(&self, seconds: i64) -> String {
        let (offset, name) = self.at(seconds);
        let mut out = calendar(seconds, offset, ' ');
        out.push(' ');
        push_offset(&mut out, offset, "");
        let _ = write!(out, " {name}");
        out
    }
}

/// The counts of a TZif block, and its data.
struct Block<'f> {
    data: &'f [u8],
    /// Header and data, in bytes.
    length: usize,
    time_size: usize,
    times: usize,
    types: usize,
    names: usize,
}

impl<'f> Block<'f> {
    fn parse(file: &'f [u8], time_size: usize) -> Option<Self> {
        let header = file.get(..44)?;
        if !header.starts_with(b"TZif") {
            return None;
        }
        let count = |index: usize| -> Option<usize> {
            let bytes = header.get(20 + index * 4..24 + index * 4)?;
            usize::try_from(u32::from_be_bytes(bytes.try_into().ok()?))
                .ok()
                .filter(|count| *count <= MAX_COUNT)
        };
        let (ut, std, leaps, times, types, names) =
            (count(0)?, count(1)?, count(2)?, count(3)?, count(4)?, count(5)?);
        let size = times * (time_size + 1) + types * 6 + names + leaps * (time_size + 4) + std + ut;
        let data = file.get(44..44 + size)?;
        Some(Self { data, length: 44 + size, time_size, times, types, names })
    }

    fn zone(&self) -> Option<Zone> {
        let (times, rest) = self.data.split_at_checked(self.times * self.time_size)?;
        let (indices, rest) = rest.split_at_checked(self.times)?;
        let (types, rest) = rest.split_at_checked(self.types * 6)?;
        let names = rest.get(..self.names)?;
        let types: Vec<LocalType> =
            types.chunks_exact(6).map(|entry| local_type(entry, names)).collect::<Option<_>>()?;
        let times = times.chunks_exact(self.time_size).map(|bytes| match bytes.try_into() {
            Ok(wide) => i64::from_be_bytes(wide),
            Err(_) => bytes.try_into().map_or(0, |narrow| i64::from(i32::from_be_bytes(narrow))),
        });
        let transitions: Vec<(i64, u8)> = times.zip(indices.iter().copied()).collect();
        let sound = transitions.iter().all(|(_, index)| usize::from(*index) < types.len())
            && transitions.windows(2).all(|pair| pair[0].0 < pair[1].0);
        sound.then_some(Zone { transitions, types, rule: None })
    }
}

fn local_type(entry: &[u8], names: &[u8]) -> Option<LocalType> {
    let offset = i32::from_be_bytes(entry.get(..4)?.try_into().ok()?);
    let name = names.get(usize::from(*entry.get(5)?)..)?;
    let name = name.split(|byte| *byte == 0).next()?;
    let sound = offset.unsigned_abs() < MAX_OFFSET;
    sound.then(|| LocalType {
        offset,
        daylight: entry.get(4) == Some(&1),
        name: String::from_utf8_lossy(name).into_owned(),
    })
}

impl Rule {
    fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let standard = LocalType { name: name(&mut rest)?, offset: -clock(&mut rest)?, daylight: false };
        if rest.is_empty() {
            return Some(Self { standard, daylight: None });
        }
        let daylight = name(&mut rest)?;
        let offset = if rest.starts_with(',') { standard.offset + 3600 } else { -clock(&mut rest)? };
        let start = Change::parse(rest.strip_prefix(',')?)?;
        let end = Change::parse(start.1.strip_prefix(',')?)?;
        let daylight = LocalType { name: daylight, offset, daylight: true };
        end.1.is_empty().then_some(Self { standard, daylight: Some((daylight, start.0, end.0)) })
    }

    fn at(&self, seconds: i64) -> &LocalType {
        let Some((daylight, start, end)) = &self.daylight else { return &self.standard };
        let year =
            OffsetDateTime::from_unix_timestamp(seconds.saturating_add(i64::from(self.standard.offset)))
                .map_or(1970, OffsetDateTime::year);
        let start = start.in_year(year).map(|at| at - i64::from(self.standard.offset));
        let end = end.in_year(year).map(|at| at - i64::from(daylight.offset));
        let (Some(start), Some(end)) = (start, end) else { return &self.standard };
        let summer =
            if start < end { (start..end).contains(&seconds) } else { !(end..start).contains(&seconds) };
        if summer { daylight } else { &self.standard }
    }
}

impl Change {
    fn parse(text: &str) -> Option<(Self, &str)> {
        let mut rest = text;
        let day = if let Some(after) = rest.strip_prefix('J') {
            rest = after;
            Day::Julian(u16::try_from(number(&mut rest)?).ok().filter(|day| (1..=365).contains(day))?)
        } else if let Some(after) = rest.strip_prefix('M') {
            rest = after;
            let month = u8::try_from(number(&mut rest)?).ok().filter(|month| (1..=12).contains(month))?;
            rest = rest.strip_prefix('.')?;
            let week = u8::try_from(number(&mut rest)?).ok().filter(|week| (1..=5).contains(week))?;
            rest = rest.strip_prefix('.')?;
            let weekday = u8::try_from(number(&mut rest)?).ok().filter(|day| *day <= 6)?;
            Day::Month { month, week, weekday }
        } else {
            Day::Zero(u16::try_from(number(&mut rest)?).ok().filter(|day| *day <= 365)?)
        };
        let second = match rest.strip_prefix('/') {
            Some(after) => {
                rest = after;
                i64::from(clock(&mut rest)?)
            }
            None => 2 * 3600,
        };
        Some((Self { day, second }, rest))
    }

    /// The change in this year, in seconds as if the clock's offset were none.
    fn in_year(self, year: i32) -> Option<i64> {
        let new_year = time::Date::from_calendar_date(year, time::Month::January, 1).ok()?;
        let date = match self.day {
            Day::Julian(day) => {
                let leap = u16::from(time::util::is_leap_year(year) && day >= 60);
                new_year.checked_add(time::Duration::days(i64::from(day - 1 + leap)))?
            }
            Day::Zero(day) => new_year.checked_add(time::Duration::days(i64::from(day)))?,
            Day::Month { month, week, weekday } => {
                let month = time::Month::try_from(month).ok()?;
                let first = time::Date::from_calendar_date(year, month, 1).ok()?;
                let ahead = (i64::from(weekday) - i64::from(days_from_sunday(first.weekday()))).rem_euclid(7);
                let day = 1 + ahead + 7 * i64::from(week - 1);
                let length = i64::from(month.length(year));
                let day = if day > length { day - 7 } else { day };
                first.checked_add(time::Duration::days(day - 1))?
            }
        };
        Some(date.midnight().assume_utc().unix_timestamp() + self.second)
    }
}

fn days_from_sunday(day: Weekday) -> u8 {
    day.number_days_from_sunday()
}

/// A zone's name: letters, or anything in `<>`.
fn name(rest: &mut &str) -> Option<String> {
    if let Some(after) = rest.strip_prefix('<') {
        let (name, after) = after.split_once('>')?;
        *rest = after;
        return Some(name.to_owned());
    }
    let end = rest.find(|ch: char| !ch.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (name, after) = rest.split_at(end);
    *rest = after;
    (name.len() >= 3).then(|| name.to_owned())
}

/// `[+-]hh[:mm[:ss]]` in seconds; hours up to 167 as RFC 9636 allows.
fn clock(rest: &mut &str) -> Option<i32> {
    let negative = rest.starts_with('-');
    *rest = rest.strip_prefix(['+', '-']).unwrap_or(rest);
    let mut seconds = number(rest)?.min(167) * 3600;
    for unit in [60, 1] {
        let Some(after) = rest.strip_prefix(':') else { break };
        *rest = after;
        seconds += number(rest)?.min(59) * unit;
    }
    Some(if negative { -seconds } else { seconds })
}

fn number(rest: &mut &str) -> Option<i32> {
    let end = rest.find(|ch: char| !ch.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, after) = rest.split_at(end);
    *rest = after;
    if digits.len() > 3 { None } else { digits.parse().ok() }
}

fn calendar(seconds: i64, offset: i32, separator: char) -> String {
    let offset = UtcOffset::from_whole_seconds(offset).unwrap_or(UtcOffset::UTC);
    let local = OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|utc| utc.checked_to_offset(offset))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (date, time) = (local.date(), local.time());
    format!(
        "{:04}-{:02}-{:02}{separator}{:02}:{:02}:{:02}",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

fn push_offset(out: &mut String, offset: i32, colon: &str) {
    let sign = if offset < 0 { '-' } else { '+' };
    let minutes = offset.unsigned_abs() / 60;
    let _ = write!(out, "{sign}{:02}{colon}{:02}", minutes / 60, minutes % 60);
}

/// Zone files have a few KiB; the largest of the 2026 database has less than 4.
const MAX_FILE: u64 = 1 << 20;

/// More transitions or name bytes than any zone has; keeps sums small.
const MAX_COUNT: usize = 1 << 16;

/// RFC 9636 bounds offsets by about a day.
const MAX_OFFSET: u32 = 26 * 3600;

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
