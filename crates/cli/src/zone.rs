//! Local time as Go prints it. Go reads the zone from `TZ` and the system's zone files (time/zoneinfo_unix.go,
//! RFC 9636); what comes after the last change that a file lists is not computed, the last offset stays.

use std::path::{Path, PathBuf};

use spire_compat::gotime;

use crate::env::Env;

/// Zone files are some kilobytes.
const ZONE_FILE_MAX: u64 = 1 << 20;

/// `2006-01-02 15:04:05 +0100 CET`: an instant as Go's `Time.String` prints it in local time.
pub(crate) fn local(env: &Env, unix: i64) -> String {
    let (offset, name) =
        zone_file(env).and_then(|file| offset_at(&file, unix)).unwrap_or((0, "UTC".to_owned()));
    let in_utc = gotime::string(unix.saturating_add(i64::from(offset)));
    let clock = in_utc.strip_suffix(" +0000 UTC").unwrap_or(&in_utc);
    let (sign, minutes) = (if offset < 0 { '-' } else { '+' }, offset.unsigned_abs() / 60);
    format!("{clock} {sign}{:02}{:02} {name}", minutes / 60, minutes % 60)
}

/// The file that describes local time; `None` for UTC.
fn zone_file(env: &Env) -> Option<Vec<u8>> {
    let path = match env.variables.get("TZ").map(|zone| zone.strip_prefix(':').unwrap_or(zone)) {
        None => PathBuf::from("/etc/localtime"),
        Some("" | "UTC") => return None,
        Some(absolute) if absolute.starts_with('/') => PathBuf::from(absolute),
        Some(name) if name.contains("..") => return None,
        Some(name) => Path::new("/usr/share/zoneinfo").join(name),
    };
    let size = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?.len();
    (size <= ZONE_FILE_MAX).then(|| std::fs::read(path).ok()).flatten()
}

/// Offset from UTC in seconds, and the abbreviation, from a TZif file of version 2 or later.
fn offset_at(file: &[u8], unix: i64) -> Option<(i32, String)> {
    let first = Header::read(file)?;
    let second = file.get(first.size(4)..)?;
    let header = Header::read(second)?;
    let body = second.get(Header::LEN..)?;
    let (times, body) = body.split_at_checked(header.times * 8)?;
    let (kinds, body) = body.split_at_checked(header.times)?;
    let (types, names) = body.split_at_checked(header.types * 6)?;
    let changes = times.chunks_exact(8).filter_map(|t| Some(i64::from_be_bytes(t.try_into().ok()?)));
    let passed = changes.take_while(|change| *change <= unix).count();
    let kind = match passed.checked_sub(1) {
        Some(last) => usize::from(*kinds.get(last)?),
        // Before the first change: the first type that is standard time, else the first.
        None => types.chunks_exact(6).position(|t| t[4] == 0).unwrap_or(0),
    };
    let kind = types.get(kind * 6..kind * 6 + 6)?;
    let offset = i32::from_be_bytes(kind[..4].try_into().ok()?);
    let name = names.get(..header.names)?.get(usize::from(kind[5])..)?;
    let name = name.split(|b| *b == 0).next()?;
    Some((offset, String::from_utf8(name.to_vec()).ok()?))
}

/// The counts at the start of each part of a file.
struct Header {
    utc: usize,
    standard: usize,
    leaps: usize,
    times: usize,
    types: usize,
    names: usize,
}

impl Header {
    const LEN: usize = 44;

    fn read(file: &[u8]) -> Option<Self> {
        let header = file.get(..Self::LEN).filter(|h| h.starts_with(b"TZif") && h[4] >= b'2')?;
        let count = |i: usize| {
            let bytes = header[20 + 4 * i..24 + 4 * i].try_into().ok()?;
            usize::try_from(u32::from_be_bytes(bytes)).ok().filter(|n| *n <= 1 << 20)
        };
        Some(Self {
            utc: count(0)?,
            standard: count(1)?,
            leaps: count(2)?,
            times: count(3)?,
            types: count(4)?,
            names: count(5)?,
        })
    }

    /// Length of a part with times of `width` bytes, header included.
    fn size(&self, width: usize) -> usize {
        Self::LEN
            + self.times * (width + 1)
            + self.types * 6
            + self.names
            + self.leaps * (width + 4)
            + self.standard
            + self.utc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one change at 1000 from LMT (+0:53) to CET (+1:00).
    fn file() -> Vec<u8> {
        let mut header = b"TZif2".to_vec();
        header.resize(20, 0);
        let counts = |counts: [u32; 6]| counts.into_iter().flat_map(u32::to_be_bytes).collect::<Vec<u8>>();
        let mut file = [header.clone(), counts([0; 6]), header, counts([0, 0, 0, 1, 2, 8])].concat();
        file.extend(1000i64.to_be_bytes());
        file.push(1);
        file.extend(3208i32.to_be_bytes());
        file.extend([0, 0]);
        file.extend(3600i32.to_be_bytes());
        file.extend([0, 4]);
        file.extend(b"LMT\0CET\0");
        file
    }

    #[test]
    fn zone_files_give_offsets() {
        assert_eq!(offset_at(&file(), 999), Some((3208, "LMT".to_owned())));
        assert_eq!(offset_at(&file(), 1000), Some((3600, "CET".to_owned())));
        for cut in 0..file().len() {
            assert_eq!(offset_at(&file()[..cut], 1000), None, "{cut}");
        }
    }

    #[test]
    fn local_time_is_printed_as_go_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zone");
        std::fs::write(&path, file()).unwrap();
        let mut env = Env::process();
        env.variables.insert("TZ".into(), path.display().to_string());
        assert_eq!(local(&env, 1_600_000_000), "2020-09-13 13:26:40 +0100 CET");
        env.variables.insert("TZ".into(), "UTC".into());
        assert_eq!(local(&env, 1_600_000_000), "2020-09-13 12:26:40 +0000 UTC");
    }
}
