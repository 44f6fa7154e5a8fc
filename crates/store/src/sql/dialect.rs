//! Where databases differ: the places in canonical statements, written out for each, and what else is not
//! the same.
//!
//! A place is a name and its arguments between braces. `{in_texts ?1}` and `{in_rows ?1}` follow a column that is to
//! be a member of the JSON array in the parameter. `{texts ?1}` and `{pairs ?1}` are tables named `W`, made of a JSON
//! array, with a column `value`, and for pairs `kind` too. `{before COLUMN ?1}` and `{since COLUMN ?1}` compare a
//! time. `{upsert COLUMN}` stands between an INSERT and the assignments that happen instead where the unique column
//! has the value already. `{join}` joins in the order of the text. `{unindexed COLUMN}` keeps the planner from the
//! column's index. `{last_id TABLE}` is the greatest id that the table ever gave out.

use std::borrow::Cow;

/// A kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
    Mysql,
}

impl Dialect {
    /// Whether a statement that fails leaves the transaction unusable, so that what may fail needs a savepoint.
    pub(crate) fn failure_ends_transaction(self) -> bool {
        match self {
            Self::Sqlite => false,
            Self::Postgres => true,
            // It would not end, but what an item wrote before it failed must go: texts have a length here.
            Self::Mysql => true,
        }
    }

    /// Ends the savepoint `item` and begins it anew. On PostgreSQL a second one of that name would hide the first, and
    /// all would pile up.
    pub(crate) fn next_savepoint(self) -> &'static str {
        if self == Self::Postgres { "RELEASE SAVEPOINT item; SAVEPOINT item" } else { "SAVEPOINT item" }
    }

    /// Whether many rows are better inserted by one statement from a set: where a statement is a round trip.
    pub(crate) fn inserts_sets(self) -> bool {
        self == Self::Postgres
    }

    /// Whether rows of several tables are better read by one statement: where that saves round trips.
    pub(crate) fn unites_tables(self) -> bool {
        // MySQL could not lock what such a statement reads.
        self == Self::Postgres
    }

    /// Writes out the places. Borrows what has none.
    pub(crate) fn expand(self, sql: &str) -> Cow<'_, str> {
        let Some(mut from) = sql.find('{') else {
            return Cow::Borrowed(sql);
        };
        let mut text = String::with_capacity(sql.len() * 2);
        let mut rest = sql;
        loop {
            text.push_str(&rest[..from]);
            let place = &rest[from + 1..];
            let end = place.find('}').unwrap_or(place.len());
            self.place(&place[..end], &mut text);
            rest = place.get(end + 1..).unwrap_or_default();
            match rest.find('{') {
                Some(next) => from = next,
                None => break,
            }
        }
        text.push_str(rest);
        Cow::Owned(text)
    }

    /// The whole statement as the database takes it: places written out, placeholders in its form.
    pub(crate) fn translate(self, sql: &str) -> Cow<'_, str> {
        match self {
            Self::Sqlite => self.expand(sql),
            // No statement has a question mark of its own.
            Self::Postgres => Cow::Owned(self.expand(sql).replace('?', "$")),
            // Its adapter does that itself, for the parameters of a call: sets are lists there.
            Self::Mysql => Cow::Borrowed(sql),
        }
    }

    fn place(self, place: &str, out: &mut String) {
        let mut words = place.split(' ');
        let mut next = || words.next().unwrap_or_default();
        let (name, a, b) = (next(), next(), next());
        let text = match self {
            Self::Sqlite => sqlite(name, a, b),
            Self::Postgres => postgres(name, a, b),
            Self::Mysql => return,
        };
        debug_assert!(!text.is_empty(), "no place is called {name:?}");
        out.push_str(&text);
    }
}

fn sqlite(name: &str, a: &str, b: &str) -> String {
    match name {
        "in_texts" | "in_rows" => format!("IN (SELECT value FROM json_each({a}))"),
        "texts" => format!("json_each({a}) W"),
        "pairs" => format!(
            "(SELECT json_extract(value, '$[0]') AS kind, json_extract(value, '$[1]') AS value FROM json_each({a})) W"
        ),
        // Times are text in the time zone of whoever wrote it. The text decides within a margin of two days,
        // which an index can use; what is inside the margin is compared as a time.
        "before" => {
            format!("({a} < datetime({b}, '+2 days') AND unixepoch({a}) < unixepoch({b}))")
        }
        "since" => {
            format!("({a} >= datetime({b}, '-2 days') AND unixepoch({a}) >= unixepoch({b}))")
        }
        "upsert" => format!("ON CONFLICT ({a}) DO UPDATE SET"),
        "join" => "CROSS JOIN".into(),
        "unindexed" => format!("+{a}"),
        // Pruning may have emptied the table; the sequence remembers what was given out.
        "last_id" => format!(
            "MAX(COALESCE((SELECT MAX(id) FROM {a}), 0), \
             COALESCE((SELECT seq FROM sqlite_sequence WHERE name = '{a}'), 0))"
        ),
        _ => String::new(),
    }
}

fn postgres(name: &str, a: &str, b: &str) -> String {
    match name {
        // An array that is made once: the planner uses the index of the column for its members.
        "in_texts" => format!("= ANY(ARRAY(SELECT jsonb_array_elements_text({a}::jsonb)))"),
        "in_rows" => format!("= ANY(ARRAY(SELECT jsonb_array_elements_text({a}::jsonb)::bigint))"),
        "texts" => format!("jsonb_array_elements_text({a}::jsonb) AS W(value)"),
        "pairs" => format!(
            "(SELECT P.pair->>0 AS kind, P.pair->>1 AS value FROM jsonb_array_elements({a}::jsonb) AS P(pair)) W"
        ),
        "before" => format!("{a} < {b}"),
        "since" => format!("{a} >= {b}"),
        "upsert" => format!("ON CONFLICT ({a}) DO UPDATE SET"),
        "join" => "JOIN".into(),
        "unindexed" => a.into(),
        // Engines whose ids are no sequence have no row there.
        "last_id" => format!(
            "GREATEST(COALESCE((SELECT MAX(id) FROM {a}), 0), COALESCE((SELECT MAX(last_value) FROM pg_sequences \
             WHERE sequencename = '{a}_id_seq' AND schemaname = ANY(current_schemas(false))), 0))"
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_out() {
        for (canonical, sqlite) in [
            ("SELECT 1 WHERE a = ?1", "SELECT 1 WHERE a = ?1"),
            (
                "SELECT 1 FROM t WHERE id {in_rows ?2} AND {unindexed b} = ?1",
                "SELECT 1 FROM t WHERE id IN (SELECT value FROM json_each(?2)) AND +b = ?1",
            ),
            (
                "DELETE FROM t WHERE {before t.at ?1}",
                "DELETE FROM t WHERE (t.at < datetime(?1, '+2 days') AND unixepoch(t.at) < unixepoch(?1))",
            ),
            ("{upsert a} b = ?1", "ON CONFLICT (a) DO UPDATE SET b = ?1"),
            ("SELECT 1 FROM {texts ?1} {join} t", "SELECT 1 FROM json_each(?1) W CROSS JOIN t"),
        ] {
            assert_eq!(Dialect::Sqlite.translate(canonical), sqlite);
        }
        for (canonical, postgres) in [
            ("SELECT 1 WHERE a = ?1 AND b = ?12", "SELECT 1 WHERE a = $1 AND b = $12"),
            (
                "SELECT 1 FROM t WHERE id {in_rows ?2} AND {unindexed b} = ?1",
                "SELECT 1 FROM t WHERE id = ANY(ARRAY(SELECT jsonb_array_elements_text($2::jsonb)::bigint)) AND b = $1",
            ),
            ("DELETE FROM t WHERE {before t.at ?1}", "DELETE FROM t WHERE t.at < $1"),
            ("{upsert a} b = ?1", "ON CONFLICT (a) DO UPDATE SET b = $1"),
        ] {
            assert_eq!(Dialect::Postgres.translate(canonical), postgres);
        }
    }
}
