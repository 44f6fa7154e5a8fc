//! Statements in the log, for operators who ask for them by `log_sql` (sqlstore.go: gormLogger). As the reference, they
//! are logged at DEBUG with the subsystem `gorm`, with their values, what they took, and how many rows they touched or
//! found; in one line and without colours. Join tokens are secrets and are not shown, also where an agent's ID will be made of one.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Instant;

use tracing::{Level, debug, enabled};

use super::{Dialect, Param, Row, Session};
use crate::fault::Sql;

/// Characters of a text that are shown: sets of a thousand rows are one text.
const SHOWN: usize = 400;

/// A session that logs what it is asked for.
pub(crate) struct Logged<'a>(pub(crate) &'a mut dyn Session);

impl Logged<'_> {
    fn log(&self, sql: &str, params: &[Param<'_>], start: Instant, outcome: Result<u64, String>) {
        if !enabled!(Level::DEBUG) {
            return;
        }
        // Hundredths of a millisecond, as gorm has them.
        let took = start.elapsed().as_micros() / 10;
        let took = format!("{}.{:02}", took / 100, took % 100);
        let text = filled(self.0.dialect(), sql, params);
        let rows = outcome.as_ref().copied().unwrap_or(0);
        debug!(
            subsystem_name = "gorm",
            error = outcome.err(),
            "[{took}ms] {text} [{rows} rows affected or returned]"
        );
    }
}

/// A statement with its values, as a reader wants to see it and not for a database to run.
fn filled(dialect: Dialect, sql: &str, params: &[Param<'_>]) -> String {
    let sql: Cow<'_, str> = match dialect {
        // What it makes of places depends on their values.
        Dialect::Mysql => sql.into(),
        Dialect::Sqlite | Dialect::Postgres => dialect.expand(sql),
    };
    let secret = sql.contains("join_tokens");
    let mut pieces = sql.split('?');
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| !c.is_ascii_digit()).unwrap_or(piece.len());
        let (number, rest) = piece.split_at(end);
        let param = number.parse::<usize>().ok().and_then(|number| params.get(number.checked_sub(1)?));
        match param {
            Some(param) => push(&mut out, param, secret),
            // No placeholder.
            None => {
                out.push('?');
                out.push_str(number);
            }
        }
        out.push_str(rest);
    }
    out
}

fn push(out: &mut String, param: &Param<'_>, secret: bool) {
    // Writing to a text does not fail.
    let _ = match param {
        Param::Int(number) => write!(out, "{number}"),
        Param::Bool(truth) => write!(out, "{truth}"),
        Param::Text(_) if secret => write!(out, "'<secret>'"),
        Param::Text(text) => {
            let text = without_tokens(text);
            match text.char_indices().nth(SHOWN) {
                Some((end, _)) => write!(out, "'{}…'", &text[..end]),
                None => write!(out, "'{text}'"),
            }
        }
        Param::Blob(Some(_)) => write!(out, "'<binary>'"),
        Param::Time(Some(at)) => {
            let (date, clock) = (at.date(), at.time());
            write!(out, "'{date} {:02}:{:02}:{:02}'", clock.hour(), clock.minute(), clock.second())
        }
        Param::Blob(None) | Param::Time(None) => write!(out, "NULL"),
    };
}

/// A text whose agent IDs of join tokens are cut: the rest of one tells agents apart, and lets nobody in.
fn without_tokens(text: &str) -> Cow<'_, str> {
    const BEFORE: &str = "/spire/agent/join_token/";
    if !text.contains(BEFORE) {
        return text.into();
    }
    let mut pieces = text.split(BEFORE);
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        // In a set it ends with its quotes.
        let (token, rest) = piece.split_at(piece.find('"').unwrap_or(piece.len()));
        let shown: String = token.chars().take((token.len() / 4).min(8)).collect();
        out.extend([BEFORE, &shown, "<secret>", rest]);
    }
    out.into()
}

fn text_of<T>(outcome: &Sql<T>) -> Result<&T, String> {
    outcome.as_ref().map_err(|fault| fault.0.to_string())
}

impl Session for Logged<'_> {
    fn dialect(&self) -> Dialect {
        self.0.dialect()
    }

    fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Sql<u64> {
        let start = Instant::now();
        let outcome = self.0.execute(sql, params);
        self.log(sql, params, start, text_of(&outcome).copied());
        outcome
    }

    fn insert(&mut self, sql: &str, params: &[Param<'_>]) -> Sql<i64> {
        let start = Instant::now();
        let outcome = self.0.insert(sql, params);
        self.log(sql, params, start, text_of(&outcome).map(|_| 1));
        outcome
    }

    fn query(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        each: &mut dyn FnMut(&dyn Row) -> Sql<bool>,
    ) -> Sql<()> {
        let start = Instant::now();
        let mut rows = 0;
        let outcome = self.0.query(sql, params, &mut |row| {
            rows += 1;
            each(row)
        });
        self.log(sql, params, start, text_of(&outcome).map(|()| rows));
        outcome
    }

    fn changes(&self) -> u64 {
        self.0.changes()
    }

    fn announce(&mut self) {
        self.0.announce();
    }

    fn batch(&mut self, sql: &str) -> Sql<()> {
        let start = Instant::now();
        let outcome = self.0.batch(sql);
        self.log(sql, &[], start, text_of(&outcome).map(|()| 0));
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::params;

    #[test]
    fn statements_are_shown_with_their_values() {
        let shown = |sql: &str, values: &[Param<'_>]| filled(Dialect::Postgres, sql, values);
        assert_eq!(shown("SELECT 1", &[]), "SELECT 1");
        assert_eq!(
            shown("UPDATE t SET a = ?2, b = ?1 WHERE c = ?12", params![7, "it"]),
            "UPDATE t SET a = 'it', b = 7 WHERE c = ?12"
        );
        assert_eq!(
            shown("VALUES (?1, ?2, ?3)", params![true, None::<&[u8]>, &b"x"[..]]),
            "VALUES (true, NULL, '<binary>')"
        );
        let at = time::OffsetDateTime::UNIX_EPOCH;
        assert_eq!(shown("SELECT ?1", params![at]), "SELECT '1970-01-01 00:00:00'");
        assert_eq!(shown("WHERE {before t.at ?1}", params![at]), "WHERE t.at < '1970-01-01 00:00:00'");
        let long = "ä".repeat(SHOWN + 1);
        assert_eq!(shown("?1", params![&long]), format!("'{}…'", "ä".repeat(SHOWN)));
        // What stands in a value is no placeholder.
        assert_eq!(shown("SELECT ?1, ?2", params!["?2", "b"]), "SELECT '?2', 'b'");
    }

    #[test]
    fn tokens_are_not_shown() {
        let text = filled(Dialect::Sqlite, "DELETE FROM join_tokens WHERE token = ?1", params!["t0p"]);
        assert_eq!(text, "DELETE FROM join_tokens WHERE token = '<secret>'");
        let agent = "spiffe://a.org/spire/agent/join_token/";
        for (text, shown) in [
            (format!("{agent}bb6ac4ac-9517-473a-b570-2add2eb2bbf1"), format!("{agent}bb6ac4ac<secret>")),
            (
                format!("[\"{agent}abcd\",\"{agent}\",\"b\"]"),
                format!("[\"{agent}a<secret>\",\"{agent}<secret>\",\"b\"]"),
            ),
            ("spiffe://a.org/spire/agent/x509pop/1".into(), "spiffe://a.org/spire/agent/x509pop/1".into()),
        ] {
            assert_eq!(without_tokens(&text), shown);
        }
    }
}
