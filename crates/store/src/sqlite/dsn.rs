//! SQLite connection strings: a path, or a `file:` URI with parameters of SQLite and of the reference's
//! driver (pkg/server/datastore/sqlcommon/sqlite_connstring.go, github.com/mattn/go-sqlite3).

use std::time::Duration;

use spire_ports::datastore::{Error, Result};

use super::{BUSY_TIMEOUT, CACHE_SIZE};

/// When SQLite waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Off,
    Normal,
    Full,
    Extra,
}

impl Level {
    /// The statement that sets it.
    pub(crate) fn pragma(self) -> &'static str {
        match self {
            Self::Off => "PRAGMA synchronous = OFF",
            Self::Normal => "PRAGMA synchronous = NORMAL",
            Self::Full => "PRAGMA synchronous = FULL",
            Self::Extra => "PRAGMA synchronous = EXTRA",
        }
    }
}

/// A parsed connection string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dsn {
    target: String,
    display: String,
    level: Level,
    busy_timeout: Duration,
    cache_size: i64,
    in_memory: bool,
}

impl Dsn {
    /// Parses what the operator wrote.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let invalid = |reason: String| Error::Invalid(format!("datastore-sql: {reason}"));
        let scheme = scheme(text).map_err(|reason| invalid(format!("parse {text:?}: {reason}")))?;
        let (before, query) = split_query(text);
        let (target, display) = match scheme {
            // A path; the reference's URL parser decodes escapes in it.
            None => {
                let path =
                    unescape(before).ok_or_else(|| invalid(format!("parse {text:?}: invalid URL escape")))?;
                let target = match sqlite_parameters(query) {
                    parameters if parameters.is_empty() => path.clone(),
                    parameters => format!("file:{}?{parameters}", escape(&path)),
                };
                (target, path)
            }
            Some("file") => {
                let parameters = sqlite_parameters(query);
                let target =
                    if parameters.is_empty() { before.to_owned() } else { format!("{before}?{parameters}") };
                (target, before.to_owned())
            }
            Some(other) => return Err(invalid(format!("unsupported scheme {other:?}"))),
        };
        let in_memory = before.starts_with("file::memory:") || parameter(query, &["mode"]) == Some("memory");
        Ok(Self {
            target,
            display,
            level: level(query).map_err(invalid)?,
            busy_timeout: busy_timeout(query).map_err(invalid)?,
            cache_size: cache_size(query).map_err(invalid)?,
            in_memory,
        })
    }

    /// What SQLite opens.
    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// What messages call it.
    pub(crate) fn display(&self) -> &str {
        &self.display
    }

    /// When SQLite waits for the disk. FULL unless the operator chose otherwise: a commit is on disk when
    /// it returns. (The reference's driver has NORMAL, by which a power cut may undo the last commits,
    /// and with them the consumption of a join token whose SVID is out.)
    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// How long to wait for another writer.
    pub(crate) fn busy_timeout(&self) -> Duration {
        self.busy_timeout
    }

    /// Page cache of a connection, as SQLite's `cache_size`: pages, or KiB when negative.
    pub(crate) fn cache_size(&self) -> i64 {
        self.cache_size
    }

    /// Whether the database is private to its connection, so that nothing else can read it.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.in_memory
    }
}

/// The scheme of a URL by the rules of Go's `net/url`: letters, then letters, digits and `+-.`, up to a
/// colon.
fn scheme(text: &str) -> std::result::Result<Option<&str>, &'static str> {
    for (i, c) in text.bytes().enumerate() {
        match c {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if i > 0 => {}
            b':' if i == 0 => return Err("missing protocol scheme"),
            b':' => return Ok(Some(&text[..i])),
            _ => return Ok(None),
        }
    }
    Ok(None)
}

fn split_query(text: &str) -> (&str, &str) {
    let text = text.split_once('#').map_or(text, |(before, _fragment)| before);
    text.split_once('?').unwrap_or((text, ""))
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn parameter<'a>(query: &'a str, names: &[&str]) -> Option<&'a str> {
    pairs(query).find(|(name, _)| names.contains(name)).map(|(_, value)| value)
}

/// The parameters that SQLite itself understands; those with an underscore are the driver's.
fn sqlite_parameters(query: &str) -> String {
    let kept: Vec<_> = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with('_')).collect();
    kept.join("&")
}

fn level(query: &str) -> std::result::Result<Level, String> {
    match parameter(query, &["_synchronous", "_sync"]).map(str::to_ascii_uppercase).as_deref() {
        None | Some("2" | "FULL") => Ok(Level::Full),
        Some("0" | "OFF") => Ok(Level::Off),
        Some("1" | "NORMAL") => Ok(Level::Normal),
        Some("3" | "EXTRA") => Ok(Level::Extra),
        Some(other) => {
            Err(format!("Invalid _synchronous: {other}, expecting value of '0 OFF 1 NORMAL 2 FULL 3 EXTRA'"))
        }
    }
}

fn busy_timeout(query: &str) -> std::result::Result<Duration, String> {
    match parameter(query, &["_busy_timeout", "_timeout"]) {
        None => Ok(BUSY_TIMEOUT),
        Some(millis) => millis
            .parse::<u32>()
            .map(|millis| Duration::from_millis(millis.into()))
            .map_err(|_| format!("Invalid _busy_timeout: {millis}")),
    }
}

fn cache_size(query: &str) -> std::result::Result<i64, String> {
    match parameter(query, &["_cache_size"]) {
        None => Ok(CACHE_SIZE),
        Some(size) => size.parse().map_err(|_| format!("Invalid _cache_size: {size}")),
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let value = digit()? * 16 + digit()?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

fn escape(path: &str) -> String {
    path.replace('%', "%25").replace('?', "%3f").replace('#', "%23")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_file_uris_are_accepted() {
        for (text, target) in [
            ("data.db", "data.db"),
            ("./data.db", "./data.db"),
            ("/home/fred/data.db", "/home/fred/data.db"),
            ("/a%20b.db", "/a b.db"),
            ("file:data.db", "file:data.db"),
            ("file:///home/fred/data.db", "file:///home/fred/data.db"),
            ("file:data.db?mode=ro", "file:data.db?mode=ro"),
            ("file:/d.db?vfs=unix-dotfile&_journal_mode=DELETE", "file:/d.db?vfs=unix-dotfile"),
            ("data.db?_foreign_keys=OFF", "data.db"),
        ] {
            assert_eq!(Dsn::parse(text).unwrap().target(), target, "{text}");
        }
    }

    #[test]
    fn other_schemes_are_refused() {
        for (text, reason) in [
            ("mysql://data.db", "datastore-sql: unsupported scheme \"mysql\""),
            (":memory:", "datastore-sql: parse \":memory:\": missing protocol scheme"),
            (
                "x.db?_sync=7",
                "datastore-sql: Invalid _synchronous: 7, expecting value of '0 OFF 1 NORMAL 2 FULL 3 EXTRA'",
            ),
        ] {
            assert_eq!(Dsn::parse(text).unwrap_err().to_string(), reason);
        }
    }

    #[test]
    fn durability_is_full_unless_the_operator_says() {
        assert_eq!(Dsn::parse("x.db").unwrap().level(), Level::Full);
        assert_eq!(Dsn::parse("x.db?_sync=1").unwrap().level(), Level::Normal);
        assert_eq!(Dsn::parse("x.db?_timeout=10").unwrap().busy_timeout(), Duration::from_millis(10));
    }

    #[test]
    fn databases_in_memory_are_known() {
        assert!(Dsn::parse("file::memory:").unwrap().is_in_memory());
        assert!(Dsn::parse("file:x?mode=memory&cache=shared").unwrap().is_in_memory());
        assert!(!Dsn::parse("file:memory.db").unwrap().is_in_memory());
    }
}
