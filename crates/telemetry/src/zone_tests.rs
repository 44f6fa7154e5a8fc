//! Zones from footers and from a file that is built here; the machine's own files are an extra.

use super::*;

impl Zone {
    /// A zone of one offset.
    pub(crate) fn fixed(name: &str, offset: i32) -> Self {
        let standard = LocalType { offset, daylight: false, name: name.to_owned() };
        Self { rule: Some(Rule { standard, daylight: None }), ..Self::utc() }
    }
}

fn rule(text: &str) -> Zone {
    Zone { rule: Some(Rule::parse(text).unwrap()), ..Zone::utc() }
}

#[test]
fn rules_follow_the_year() {
    // Expected by Go's time package.
    for (zone, seconds, expected) in [
        ("EST5EDT,M3.2.0,M11.1.0", 1_767_225_600, "2025-12-31 19:00:00 -0500 EST"),
        ("EST5EDT,M3.2.0,M11.1.0", 1_772_953_199, "2026-03-08 01:59:59 -0500 EST"),
        ("EST5EDT,M3.2.0,M11.1.0", 1_772_953_200, "2026-03-08 03:00:00 -0400 EDT"),
        ("EST5EDT,M3.2.0,M11.1.0", 1_793_512_799, "2026-11-01 01:59:59 -0400 EDT"),
        ("EST5EDT,M3.2.0,M11.1.0", 1_793_512_800, "2026-11-01 01:00:00 -0500 EST"),
        ("AEST-10AEDT,M10.1.0,M4.1.0/3", 1_767_225_600, "2026-01-01 11:00:00 +1100 AEDT"),
        ("AEST-10AEDT,M10.1.0,M4.1.0/3", 1_782_864_000, "2026-07-01 10:00:00 +1000 AEST"),
        ("CET-1CEST,M3.5.0,M10.5.0/3", 1_774_745_999, "2026-03-29 01:59:59 +0100 CET"),
        ("CET-1CEST,M3.5.0,M10.5.0/3", 1_774_746_000, "2026-03-29 03:00:00 +0200 CEST"),
        ("<+0530>-5:30", 0, "1970-01-01 05:30:00 +0530 +0530"),
        ("<-03>3", 0, "1969-12-31 21:00:00 -0300 -03"),
    ] {
        assert_eq!(rule(zone).go_string(seconds), expected, "{zone} {seconds}");
    }
}

#[test]
fn rfc3339_as_go() {
    let utc = Zone::utc();
    for (nanos, expected) in [
        (0, "2026-01-02T03:04:05Z"),
        (100, "2026-01-02T03:04:05.0000001Z"),
        (120_340_000, "2026-01-02T03:04:05.12034Z"),
        (999_999_999, "2026-01-02T03:04:05.999999999Z"),
    ] {
        assert_eq!(utc.rfc3339(1_767_323_045, nanos), expected);
    }
    assert_eq!(Zone::fixed("X", -12_600).rfc3339(0, 0), "1969-12-31T20:30:00-03:30");
}

#[test]
fn broken_rules_are_refused() {
    for text in
        ["", "E5", "EST", "EST5EDT,", "EST5EDT,M13.1.0,M1.1.0", "EST5EDT,M1.1.0", "EST5EDT,M3.2.0,M11.1.0x"]
    {
        assert!(Rule::parse(text).is_none(), "{text}");
    }
}

/// A version 2 file: an empty first block, one change at 1000 from AAA (+1h) to BBB (+2h, daylight), a footer.
fn file(footer: &str) -> Vec<u8> {
    fn header(times: u32, types: u32, names: u32) -> Vec<u8> {
        let mut header = b"TZif2".to_vec();
        header.extend_from_slice(&[0; 15]);
        for count in [0, 0, 0, times, types, names] {
            header.extend_from_slice(&count.to_be_bytes());
        }
        header
    }
    let mut file = header(0, 1, 1);
    file.extend_from_slice(&[0; 7]);
    file.extend(header(1, 2, 8));
    file.extend_from_slice(&1000_i64.to_be_bytes());
    file.push(1);
    file.extend_from_slice(&3600_i32.to_be_bytes());
    file.extend_from_slice(&[0, 0]);
    file.extend_from_slice(&7200_i32.to_be_bytes());
    file.extend_from_slice(&[1, 4]);
    file.extend_from_slice(b"AAA\0BBB\0\n");
    file.extend_from_slice(footer.as_bytes());
    file.push(b'\n');
    file
}

#[test]
fn files_have_transitions_and_a_rule() {
    let zone = Zone::parse(&file("")).unwrap();
    assert_eq!(zone.at(999), (3600, "AAA"));
    assert_eq!(zone.at(1000), (7200, "BBB"));
    let zone = Zone::parse(&file("CCC-3")).unwrap();
    assert_eq!(zone.at(999), (3600, "AAA"));
    assert_eq!(zone.at(1000), (10_800, "CCC"));
}

#[test]
fn broken_files_are_refused_and_never_panic() {
    let whole = file("CCC-3");
    for length in 0..whole.len() - 7 {
        assert_eq!(Zone::parse(&whole[..length]), None, "{length}");
    }
    for index in 0..whole.len() {
        for flip in [0xff, 0x01, 0x80] {
            let mut broken = whole.clone();
            broken[index] ^= flip;
            if let Some(zone) = Zone::parse(&broken) {
                zone.go_string(2000);
                zone.go_string(i64::MIN);
                zone.rfc3339(i64::MAX, 1);
            }
        }
    }
}

#[test]
fn names_that_lead_nowhere_are_utc() {
    for name in ["", "UTC", ":UTC", "No/Such_Zone", "../../etc/localtime", "/no/such/file"] {
        assert_eq!(Zone::local(Some(OsStr::new(name))).at(0), (0, "UTC"), "{name}");
    }
    if Path::new("/usr/share/zoneinfo/Asia/Tokyo").exists() {
        assert_eq!(Zone::local(Some(OsStr::new("Asia/Tokyo"))).at(1_767_225_600), (32_400, "JST"));
        let new_york = Zone::local(Some(OsStr::new(":America/New_York")));
        assert_eq!(new_york.at(1_767_225_600), (-18_000, "EST"));
        assert_eq!(new_york.at(1_782_864_000), (-14_400, "EDT"));
    }
}
