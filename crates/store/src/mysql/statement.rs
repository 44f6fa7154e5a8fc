//! Canonical statements in MySQL's words.
//!
//! Placeholders have no numbers, so that a parameter that stands twice is sent twice. A set is a list of its members: the
//! tables' own indexes serve a list on every version, and the functions that unpack JSON are young. Texts compare without
//! case in the reference's tables, whose collation is the default of `utf8`; identities have case, so that each comparison
//! of a text is made a second time on its octets. The first uses the index.

use spire_ports::datastore::Error;
use time::{Duration, OffsetDateTime, UtcOffset};

use crate::fault::Sql;
use crate::sql::Param;

use super::client::{Moment, Value};

/// Columns that hold texts.
const TEXTS: &[&str] =
    &["spiffe_id", "parent_id", "entry_id", "hint", "trust_domain", "token", "data_type", "type", "value"];

/// The longest list whose members are parameters. Longer ones are written into the text, which is not kept prepared.
const LISTED_MAX: usize = 64;

/// A canonical statement, taken apart once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pieces: Vec<Piece>,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// A placeholder, by the index of its parameter.
    One(usize),
    /// The members of a set: a list in parentheses.
    List(usize, Kind),
    /// The members of a set: a table.
    Table(usize, Kind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Texts,
    Rows,
    Pairs,
}

/// A statement for the parameters of one call.
pub(super) struct Rendered {
    pub(super) text: String,
    pub(super) values: Vec<Value>,
    /// Whether the text will come again.
    pub(super) recurs: bool,
}

impl Statement {
    /// Takes a canonical statement apart.
    pub(super) fn parse(canonical: &str) -> Self {
        let mut parser = Parser { text: String::new(), seen: String::new(), pieces: Vec::new() };
        let mut rest = canonical;
        while let Some(at) = rest.find(['{', '?']) {
            parser.push(&rest[..at]);
            let after = &rest[at + 1..];
            let (inside, next) = if rest[at..].starts_with('{') {
                after.split_once('}').unwrap_or((after, ""))
            } else {
                let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
                after.split_at(end)
            };
            match rest[at..].starts_with('{') {
                true => parser.place(inside),
                false => parser.placeholder(index(inside)),
            }
            rest = next;
        }
        parser.push(rest);
        parser.flush();
        Self { pieces: parser.pieces }
    }

    /// Writes it out for its parameters. `texts` is the type of the tables' texts: `utf8mb3) COLLATE utf8mb3_general_ci`.
    pub(super) fn render(&self, params: &[Param<'_>], texts: &str, tail: &str) -> Sql<Rendered> {
        let mut out = Rendered { text: String::new(), values: Vec::new(), recurs: true };
        let param = |index: usize| {
            params.get(index).ok_or_else(|| Error::Internal("a statement lacks a parameter".into()))
        };
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.text.push_str(text),
                Piece::One(index) => {
                    out.text.push('?');
                    out.values.push(value(param(*index)?)?);
                }
                Piece::List(index, kind) => out.list(&members(param(*index)?, *kind)?),
                Piece::Table(index, kind) => out.table(&members(param(*index)?, *kind)?, *kind, texts),
            }
        }
        out.text.push_str(tail);
        Ok(out)
    }
}

impl Rendered {
    /// `IN` and a list; in a power of two, so that there are few texts.
    fn list(&mut self, members: &[Vec<Member>]) {
        let count = members.len();
        self.text.push_str("IN (");
        let size = if count <= LISTED_MAX { count.next_power_of_two() } else { count };
        for at in 0..size {
            if at > 0 {
                self.text.push(',');
            }
            match members.get(at).or(members.last()).and_then(|member| member.first()) {
                Some(member) => self.member(member, count),
                None => self.text.push_str("NULL"),
            }
        }
        self.text.push(')');
    }

    /// A table `W` with a row a member.
    fn table(&mut self, members: &[Vec<Member>], kind: Kind, texts: &str) {
        let names: &[&str] = if kind == Kind::Pairs { &["kind", "value"] } else { &["value"] };
        self.text.push('(');
        for (at, member) in members.iter().enumerate() {
            self.text.push_str(if at > 0 { " UNION ALL SELECT " } else { "SELECT " });
            for (at, (name, part)) in names.iter().zip(member).enumerate() {
                if at > 0 {
                    self.text.push(',');
                }
                // Of the same type as the column, whose index is not used otherwise.
                self.text.push_str("CONVERT(");
                self.member(part, members.len());
                self.text.push_str(" USING ");
                self.text.push_str(texts);
                self.text.push_str(" AS ");
                self.text.push_str(name);
            }
        }
        if members.is_empty() {
            let columns: Vec<String> = names.iter().map(|name| format!("NULL AS {name}")).collect();
            self.text.push_str(&format!("SELECT {} FROM migrations WHERE FALSE", columns.join(",")));
        }
        self.text.push_str(") W");
    }

    fn member(&mut self, member: &Member, count: usize) {
        if count <= LISTED_MAX {
            self.text.push('?');
            self.values.push(match member {
                Member::Text(text) => Value::Text(text.as_bytes().to_vec()),
                Member::Row(row) => Value::Int(*row),
            });
            return;
        }
        self.recurs = false;
        match member {
            // In hexadecimal there is nothing to quote.
            Member::Text(text) if text.is_empty() => self.text.push_str("''"),
            Member::Text(text) => {
                self.text.push_str("_utf8mb4 0x");
                for byte in text.bytes() {
                    for digit in [byte >> 4, byte & 15] {
                        self.text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
                    }
                }
            }
            Member::Row(row) => self.text.push_str(&row.to_string()),
        }
    }
}

/// A part of a member of a set.
enum Member {
    Text(String),
    Row(i64),
}

/// The members of a set, which travels as JSON.
fn members(param: &Param<'_>, kind: Kind) -> Sql<Vec<Vec<Member>>> {
    let unreadable = |error: serde_json::Error| Error::Internal(format!("a set in a statement: {error}"));
    let Param::Text(json) = param else {
        return Err(Error::Internal("a set in a statement is not JSON".into()).into());
    };
    Ok(match kind {
        Kind::Texts => {
            let found: Vec<String> = serde_json::from_str(json).map_err(unreadable)?;
            found.into_iter().map(|text| vec![Member::Text(text)]).collect()
        }
        Kind::Rows => {
            let found: Vec<i64> = serde_json::from_str(json).map_err(unreadable)?;
            found.into_iter().map(|row| vec![Member::Row(row)]).collect()
        }
        Kind::Pairs => {
            let found: Vec<(String, String)> = serde_json::from_str(json).map_err(unreadable)?;
            found.into_iter().map(|(a, b)| vec![Member::Text(a), Member::Text(b)]).collect()
        }
    })
}

/// A parameter as the driver sends it.
fn value(param: &Param<'_>) -> Sql<Value> {
    Ok(match *param {
        Param::Int(number) => Value::Int(number),
        Param::Bool(truth) => Value::Int(truth.into()),
        Param::Text(text) => Value::Text(text.as_bytes().to_vec()),
        Param::Blob(Some(blob)) => Value::Blob(blob.to_vec()),
        Param::Time(Some(at)) => time(at)?,
        Param::Blob(None) | Param::Time(None) => Value::Null,
    })
}

/// A time in UTC, rounded to the seconds that columns keep: some servers would round it, others cut it.
fn time(at: OffsetDateTime) -> Sql<Value> {
    let at = at.to_offset(UtcOffset::UTC);
    let out_of_range = || Error::Invalid(format!("the year {} cannot be stored", at.year()));
    let at = at.checked_add(Duration::milliseconds(500)).ok_or_else(out_of_range)?;
    let year = u16::try_from(at.year()).map_err(|_| out_of_range())?;
    let (date, clock) = ((year, u8::from(at.month()), at.day()), (at.hour(), at.minute(), at.second()));
    Ok(Value::Time(Moment { date, clock, micros: 0 }))
}

/// The index of a parameter, by its number.
fn index(number: &str) -> usize {
    number.trim_start_matches('?').parse::<usize>().map_or(usize::MAX, |number| number.wrapping_sub(1))
}

struct Parser {
    /// Of the piece that is being put together.
    text: String,
    /// Everything so far, by which one can tell a condition from an assignment.
    seen: String,
    pieces: Vec<Piece>,
}

impl Parser {
    fn push(&mut self, text: &str) {
        // The one join on two texts.
        let exact = text.replace(
            "S.type = W.kind AND S.value = W.value",
            "S.type = W.kind AND S.value = W.value AND BINARY S.type = BINARY W.kind AND BINARY S.value = BINARY W.value",
        );
        self.text.push_str(&exact);
        self.seen.push_str(text);
    }

    fn flush(&mut self) {
        if !self.text.is_empty() {
            self.pieces.push(Piece::Text(std::mem::take(&mut self.text)));
        }
    }

    fn piece(&mut self, piece: Piece) {
        self.flush();
        self.pieces.push(piece);
    }

    /// The column of texts before what comes now, where that is a condition on it.
    fn column(&self, before: &str) -> Option<String> {
        let text = self.seen.strip_suffix(before)?;
        let begin =
            text.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.').map_or(0, |at| at + 1);
        let column = &text[begin..];
        let is_text = TEXTS.contains(&column.rsplit('.').next().unwrap_or_default());
        let latest = |word: &str| self.seen.rfind(word);
        let condition = latest(" WHERE ").max(latest(" ON "));
        (is_text && condition > latest(" SET ")).then(|| column.to_owned())
    }

    fn placeholder(&mut self, index: usize) {
        let column = self.column(" = ");
        self.piece(Piece::One(index));
        if let Some(column) = column {
            self.text.push_str(&format!(" AND BINARY {column} = "));
            self.piece(Piece::One(index));
        }
        self.seen.push('?');
    }

    fn place(&mut self, place: &str) {
        let mut words = place.split(' ');
        let mut next = || words.next().unwrap_or_default();
        let (name, a, b) = (next(), next(), next());
        match name {
            "in_rows" => self.piece(Piece::List(index(a), Kind::Rows)),
            "in_texts" => {
                let column = self.column(" ");
                self.piece(Piece::List(index(a), Kind::Texts));
                if let Some(column) = column {
                    self.text.push_str(&format!(" AND BINARY {column} "));
                    self.piece(Piece::List(index(a), Kind::Texts));
                }
            }
            "texts" => self.piece(Piece::Table(index(a), Kind::Texts)),
            "pairs" => self.piece(Piece::Table(index(a), Kind::Pairs)),
            "before" | "since" => {
                self.push(&format!("{a} {} ", if name == "before" { "<" } else { ">=" }));
                self.piece(Piece::One(index(b)));
            }
            // The row that is there already may be of another key, which differs in case only. That it is replaced
            // is prevented by a text that no column takes.
            "upsert" => {
                self.push(&format!(
                    "ON DUPLICATE KEY UPDATE {a} = IF(BINARY {a} = BINARY VALUES({a}), {a}, REPEAT('x', 1000)),"
                ));
                // What follows are assignments.
                self.seen.push_str(" SET ");
            }
            "join" => self.push("STRAIGHT_JOIN"),
            "unindexed" => self.push(&format!("BINARY {a}")),
            // The counter is ahead of transactions that have not committed, so that it counts only where nothing is left.
            "last_id" => self.push(&format!(
                "COALESCE((SELECT MAX(id) FROM {a}), (SELECT AUTO_INCREMENT - 1 FROM information_schema.TABLES WHERE \
                 TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{a}'), 0)"
            )),
            other => debug_assert!(false, "no place is called {other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(canonical: &str, params: &[Param<'_>]) -> (String, usize) {
        let rendered =
            Statement::parse(canonical).render(params, "utf8) COLLATE utf8_general_ci", "").unwrap();
        (rendered.text, rendered.values.len())
    }

    #[test]
    fn statements_are_written_as_mysql_takes_them() {
        for (canonical, params, text, values) in [
            ("SELECT 1", &[] as &[Param<'_>], "SELECT 1", 0),
            (
                "INSERT INTO t (a, b, value) VALUES (?1, ?1, ?2)",
                &[Param::Int(1), Param::Text("x")],
                "INSERT INTO t (a, b, value) VALUES (?, ?, ?)",
                3,
            ),
            (
                "UPDATE t SET spiffe_id = ?1 WHERE id = ?2",
                &[Param::Text("x"), Param::Int(1)],
                "UPDATE t SET spiffe_id = ? WHERE id = ?",
                2,
            ),
            (
                "DELETE FROM t WHERE token = ?1",
                &[Param::Text("x")],
                "DELETE FROM t WHERE token = ? AND BINARY token = ?",
                2,
            ),
            (
                "SELECT 1 FROM t E WHERE E.id {in_rows ?1} ORDER BY E.id",
                &[Param::Text("[7,8,9]")],
                "SELECT 1 FROM t E WHERE E.id IN (?,?,?,?) ORDER BY E.id",
                4,
            ),
            (
                "SELECT 1 FROM t E WHERE E.id {in_rows ?1}",
                &[Param::Text("[]")],
                "SELECT 1 FROM t E WHERE E.id IN (NULL)",
                0,
            ),
            (
                "SELECT 1 FROM t E WHERE E.entry_id {in_texts ?1}",
                &[Param::Text("[\"a\"]")],
                "SELECT 1 FROM t E WHERE E.entry_id IN (?) AND BINARY E.entry_id IN (?)",
                2,
            ),
            (
                "SELECT id FROM t WHERE parent_id = ?2 AND {unindexed spiffe_id} = ?1",
                &[Param::Text("x"), Param::Text("y")],
                "SELECT id FROM t WHERE parent_id = ? AND BINARY parent_id = ? AND BINARY spiffe_id = ? AND BINARY spiffe_id = ?",
                4,
            ),
            (
                "DELETE FROM t WHERE TRUE AND {before created_at ?1}",
                &[Param::Time(None)],
                "DELETE FROM t WHERE TRUE AND created_at < ?",
                1,
            ),
            (
                "INSERT INTO t (k) VALUES (?1) {upsert k} value = ?1",
                &[Param::Text("x")],
                "INSERT INTO t (k) VALUES (?) ON DUPLICATE KEY UPDATE k = IF(BINARY k = BINARY VALUES(k), k, REPEAT('x', 1000)), value = ?",
                2,
            ),
            (
                "SELECT B.id FROM {texts ?1} {join} bundles B ON B.trust_domain = W.value",
                &[Param::Text("[\"a\"]")],
                "SELECT B.id FROM (SELECT CONVERT(? USING utf8) COLLATE utf8_general_ci AS value) W STRAIGHT_JOIN bundles B ON B.trust_domain = W.value",
                1,
            ),
            (
                "FROM {pairs ?1}",
                &[Param::Text("[[\"a\",\"b\"],[\"c\",\"d\"]]")],
                "FROM (SELECT CONVERT(? USING utf8) COLLATE utf8_general_ci AS kind,CONVERT(? USING utf8) COLLATE utf8_general_ci AS value \
                 UNION ALL SELECT CONVERT(? USING utf8) COLLATE utf8_general_ci AS kind,CONVERT(? USING utf8) COLLATE utf8_general_ci AS value) W",
                4,
            ),
        ] {
            assert_eq!(render(canonical, params), (text.to_owned(), values), "{canonical}");
        }
    }

    #[test]
    fn long_lists_are_written_out() {
        let ids: Vec<String> = (0..65).map(|n| format!("\"{n}'\"")).collect();
        let json = format!("[{}]", ids.join(","));
        let params = [Param::Text(&json)];
        let rendered =
            Statement::parse("SELECT 1 FROM t WHERE id {in_texts ?1}").render(&params, "", "").unwrap();
        assert!(!rendered.recurs && rendered.values.is_empty());
        assert!(rendered.text.starts_with("SELECT 1 FROM t WHERE id IN (_utf8mb4 0x3027,_utf8mb4 0x3127,"));
    }

    #[test]
    fn what_cannot_be_sent_is_an_error() {
        let statement = Statement::parse("SELECT ?1 FROM t WHERE a {in_rows ?2}");
        assert!(statement.render(&[], "", "").is_err());
        assert!(statement.render(&[Param::Int(1), Param::Text("[\"x\"]")], "", "").is_err());
        assert!(statement.render(&[Param::Int(1), Param::Int(1)], "", "").is_err());
    }
}
