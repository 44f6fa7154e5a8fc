//! Conditions and ranges of a request for a document, as Go's `http.ServeContent` judges them (Go 1.26
//! src/net/http/fs.go). The document has a time and no entity tag.

use http::HeaderMap;
use http::header::{
    HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE,
};
use spire_compat::gotime::parse_http_date;
use spire_core::time::Timestamp;

/// What to send of a document.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// These bytes: start and length.
    Range(usize, usize),
    /// Several ranges, in one answer of many parts.
    Ranges(Vec<(usize, usize)>),
    /// The client has it already.
    NotModified,
    /// The client wants another version of it.
    PreconditionFailed,
    /// A range that is none.
    InvalidRange,
    /// A range behind the end.
    NoOverlap,
}

/// Judges a GET for a document of `size` bytes.
pub(crate) fn part(headers: &HeaderMap, modified: Timestamp, size: usize) -> Part {
    if is_plain(headers) {
        return Part::Whole;
    }
    let since = |name: HeaderName| text(headers, &name).and_then(parse_http_date);
    let matches = match text(headers, &IF_MATCH) {
        Some(tags) => names_any(tags),
        None => since(IF_UNMODIFIED_SINCE).is_none_or(|time| modified.unix() <= time),
    };
    if !matches {
        return Part::PreconditionFailed;
    }
    match text(headers, &IF_NONE_MATCH) {
        Some(tags) if names_any(tags) => return Part::NotModified,
        Some(_) => {}
        None if since(IF_MODIFIED_SINCE).is_some_and(|time| modified.unix() <= time) => {
            return Part::NotModified;
        }
        None => {}
    }
    let Some(range) = text(headers, &RANGE) else { return Part::Whole };
    // With no tag of our own only the time can be the one that the client knows.
    if text(headers, &IF_RANGE).is_some_and(|known| parse_http_date(known) != Some(modified.unix())) {
        return Part::Whole;
    }
    match ranges(range, size) {
        Err(part) => part,
        // Together larger than the document: an attack, or a mistake.
        Ok(ranges) if ranges.iter().map(|(_, length)| length).sum::<usize>() > size => Part::Whole,
        Ok(ranges) => match ranges[..] {
            [] => Part::Whole,
            [(start, length)] => Part::Range(start, length),
            _ => Part::Ranges(ranges),
        },
    }
}

/// Most requests have none of these.
fn is_plain(headers: &HeaderMap) -> bool {
    let names = [IF_MATCH, IF_UNMODIFIED_SINCE, IF_NONE_MATCH, IF_MODIFIED_SINCE, RANGE];
    !names.iter().any(|name| headers.contains_key(name))
}

/// The first value; an empty one is none.
fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().filter(|text| !text.is_empty())
}

/// Whether a list of entity tags has `*` in a place where it counts. No tag is ours.
fn names_any(tags: &str) -> bool {
    let mut rest = tags;
    loop {
        rest = rest.trim_matches([' ', '\t']);
        match rest.as_bytes().first() {
            None => return false,
            Some(b',') => rest = &rest[1..],
            Some(b'*') => return true,
            Some(_) => match after_tag(rest) {
                Some(after) => rest = after,
                None => return false,
            },
        }
    }
}

/// What follows the entity tag at the start.
fn after_tag(text: &str) -> Option<&str> {
    let quoted = text.strip_prefix("W/").unwrap_or(text).strip_prefix('"')?;
    let end = quoted.find('"')?;
    quoted[..end].bytes().all(|byte| byte == 0x21 || byte >= 0x23 && byte != 0x7f).then(|| &quoted[end + 1..])
}

fn ranges(text: &str, size: usize) -> Result<Vec<(usize, usize)>, Part> {
    let list = text.strip_prefix("bytes=").ok_or(Part::InvalidRange)?;
    let number = |text: &str| -> Result<usize, Part> {
        let digits = text.strip_prefix('+').unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Part::InvalidRange);
        }
        // What an i64 cannot hold is no number to the reference.
        digits.parse::<i64>().ok().and_then(|n| usize::try_from(n).ok()).ok_or(Part::InvalidRange)
    };
    let (mut ranges, mut beyond) = (Vec::new(), false);
    for range in
        list.split(',').map(|range| range.trim_matches([' ', '\t'])).filter(|range| !range.is_empty())
    {
        let (start, end) = range.split_once('-').ok_or(Part::InvalidRange)?;
        let (start, end) = (start.trim_matches([' ', '\t']), end.trim_matches([' ', '\t']));
        if start.is_empty() {
            if end.starts_with('-') {
                return Err(Part::InvalidRange);
            }
            let length = number(end)?.min(size);
            ranges.push((size - length, length));
            continue;
        }
        let start = number(start)?;
        if start >= size {
            beyond = true;
            continue;
        }
        let end = if end.is_empty() { size - 1 } else { number(end)? };
        if start > end {
            return Err(Part::InvalidRange);
        }
        ranges.push((start, end.min(size - 1) - start + 1));
    }
    if beyond && ranges.is_empty() { Err(Part::NoOverlap) } else { Ok(ranges) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODIFIED: Timestamp = Timestamp::from_unix(784_111_777);
    const SAME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";

    fn judged(headers: &[(HeaderName, &str)]) -> Part {
        let map = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        part(&map, MODIFIED, 100)
    }

    #[test]
    fn conditions() {
        assert_eq!(judged(&[]), Part::Whole);
        for (name, value, expected) in [
            (IF_MODIFIED_SINCE, SAME, Part::NotModified),
            (IF_MODIFIED_SINCE, BEFORE, Part::Whole),
            (IF_MODIFIED_SINCE, "x", Part::Whole),
            (IF_UNMODIFIED_SINCE, SAME, Part::Whole),
            (IF_UNMODIFIED_SINCE, BEFORE, Part::PreconditionFailed),
            (IF_MATCH, "\"x\"", Part::PreconditionFailed),
            (IF_MATCH, "\"x\", *", Part::Whole),
            (IF_MATCH, "x, *", Part::PreconditionFailed),
            (IF_NONE_MATCH, "*", Part::NotModified),
            (IF_NONE_MATCH, "W/\"x\"", Part::Whole),
        ] {
            assert_eq!(judged(&[(name.clone(), value)]), expected, "{name}: {value}");
        }
        // A tag counts more than a time.
        assert_eq!(judged(&[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, SAME)]), Part::Whole);
        assert_eq!(judged(&[(RANGE, "bytes=0-1"), (IF_RANGE, "\"x\"")]), Part::Whole);
        assert_eq!(judged(&[(RANGE, "bytes=0-1"), (IF_RANGE, BEFORE)]), Part::Whole);
        assert_eq!(judged(&[(RANGE, "bytes=0-1"), (IF_RANGE, SAME)]), Part::Range(0, 2));
    }

    #[test]
    fn parts() {
        for (range, expected) in [
            ("bytes=0-3", Part::Range(0, 4)),
            ("bytes=90-", Part::Range(90, 10)),
            ("bytes=-5", Part::Range(95, 5)),
            ("bytes=-500", Part::Range(0, 100)),
            ("bytes=98-500", Part::Range(98, 2)),
            ("bytes=0-3, 5-6", Part::Ranges(vec![(0, 4), (5, 2)])),
            ("bytes=0-3, 500-", Part::Range(0, 4)),
            ("bytes=", Part::Whole),
            ("bytes=0-,0-", Part::Whole),
            ("bytes=100-", Part::NoOverlap),
            ("bytes=x", Part::InvalidRange),
            ("bytes=5-3", Part::InvalidRange),
            ("bytes=--5", Part::InvalidRange),
            ("bytes=-", Part::InvalidRange),
            ("bytes=99999999999999999999-", Part::InvalidRange),
            ("items=0-3", Part::InvalidRange),
        ] {
            assert_eq!(judged(&[(RANGE, range)]), expected, "{range}");
        }
    }
}
