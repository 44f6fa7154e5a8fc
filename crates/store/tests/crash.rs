//! A server that is killed in the midst of writes loses nothing that it acknowledged.
//!
//! The test starts itself as the process that is killed: it writes, and says on its standard output what has
//! been acknowledged. Not a libtest target, since the writing process must have an entry point of its own.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use rusqlite::Connection;
use spire_core::model::{Entry, EntryId, JoinToken};
use spire_core::spiffe::{Selector, SpiffeId};
use spire_core::time::Timestamp;
use spire_ports::datastore::{Creation, Entries, JoinTokens};
use spire_store::{SqlConfig, SqlStore};

const ROUNDS: usize = 8;

fn main() {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (Some("write-until-killed"), Some(path), Some(round)) => write_until_killed(&path, &round),
        // What libtest would be asked; there is one test, and it has no name to filter by.
        (Some("--list"), ..) => {}
        _ => nothing_acknowledged_is_lost(),
    }
}

#[tokio::main]
async fn write_until_killed(path: &str, round: &str) {
    let store = SqlStore::open(&SqlConfig::sqlite(path)).unwrap();
    let mut writers = tokio::task::JoinSet::new();
    let store = std::sync::Arc::new(store);
    for writer in 0..4 {
        let (store, round) = (store.clone(), round.to_owned());
        writers.spawn(async move {
            for i in 0.. {
                let name = format!("{round}-{writer}-{i}");
                let batch = (0..5).map(|item| entry(&format!("{name}-{item}"))).collect();
                let outcomes = store.entries_create(batch).await.unwrap();
                assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(Creation::Created(_)))));
                acknowledge(&format!("entries {name}"));
                let token = JoinToken { token: name.clone(), expires_at: Timestamp::EPOCH };
                store.join_token_create(&token).await.unwrap();
                assert!(store.join_token_delete(&name).await.unwrap());
                acknowledge(&format!("consumed {name}"));
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
}

fn entry(name: &str) -> Entry {
    let id = |path: &str| SpiffeId::parse(&format!("spiffe://example.org/{path}")).unwrap();
    let selectors = [Selector::new("unix", "uid:0").unwrap(), Selector::new("test", name).unwrap()];
    Entry::new(EntryId::parse(name).unwrap(), id("parent"), id(name), selectors.into_iter().collect())
}

/// One line, in one write, so that lines of several threads do not mix.
fn acknowledge(what: &str) {
    let line = format!("{what}\n");
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).unwrap();
}

fn nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("datastore.sqlite3");
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        acknowledged.extend(kill_a_writer(&path, round));
        check(&path, &acknowledged);
    }
    assert!(acknowledged.len() > ROUNDS * 5, "too little was written: {}", acknowledged.len());
}

/// Starts a writer, kills it after some acknowledgements, and returns all that it had given by then.
fn kill_a_writer(path: &Path, round: usize) -> Vec<String> {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .arg("write-until-killed")
        .arg(path)
        .arg(round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let mut seen: Vec<String> = lines.by_ref().take(5 + round * 13).map(Result::unwrap).collect();
    // SIGKILL: no handler, no flush, no goodbye.
    writer.kill().unwrap();
    seen.extend(lines.map(Result::unwrap));
    writer.wait().unwrap();
    seen
}

fn check(path: &Path, acknowledged: &[String]) {
    let conn = Connection::open(path).unwrap();
    let health: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(health, "ok");
    let count = |sql: &str, key: &str| conn.query_row(sql, [key], |row| row.get::<_, i64>(0)).unwrap();
    for line in acknowledged {
        match line.split_once(' ').unwrap() {
            ("entries", name) => {
                let prefix = format!("{name}-");
                let entries = "SELECT COUNT(*) FROM registered_entries WHERE entry_id LIKE ?1 || '_'";
                assert_eq!(count(entries, &prefix), 5, "{line}");
                let events = "SELECT COUNT(*) FROM registered_entries_events WHERE entry_id LIKE ?1 || '_'";
                assert_eq!(count(events, &prefix), 5, "{line}");
            }
            (_, name) => {
                assert_eq!(count("SELECT COUNT(*) FROM join_tokens WHERE token = ?1", name), 0, "{line}")
            }
        }
    }
    // A batch is there as a whole or not at all, selectors included.
    let torn: i64 = conn
        .query_row(
            "SELECT (SELECT COUNT(*) FROM registered_entries) % 5 + \
             (SELECT COUNT(*) FROM selectors) - 2 * (SELECT COUNT(*) FROM registered_entries)",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(torn, 0);
}
