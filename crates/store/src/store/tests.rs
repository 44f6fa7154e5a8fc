//! The store as a whole.

use std::sync::Arc;
use std::sync::mpsc::channel;

use spire_core::model::JoinToken;
use spire_core::time::Timestamp;
use spire_ports::datastore::{Bundles, Error, JoinTokens};

use super::SqlStore;
use crate::config::SqlConfig;
use crate::convert::text_or_empty;
use crate::fault::{Fault, Sql};
use crate::sql::{Isolation, Session, params};

fn on_file() -> (Arc<SqlStore>, tempfile::TempDir, SqlConfig) {
    let dir = tempfile::tempdir().unwrap();
    let config = SqlConfig::sqlite(dir.path().join("store.db").to_str().unwrap());
    (Arc::new(SqlStore::open(&config).unwrap()), dir, config)
}

const ROWS: Isolation = Isolation::Rows;

fn insert(conn: &mut dyn Session, token: &str) -> Sql<()> {
    conn.execute("INSERT INTO join_tokens (token, expiry) VALUES (?1, 1)", params![token])?;
    Ok(())
}

async fn tokens(store: &SqlStore) -> Vec<String> {
    let read = |conn: &mut dyn Session| -> Sql<Vec<String>> {
        let mut tokens = Vec::new();
        conn.query("SELECT token FROM join_tokens ORDER BY id", &[], &mut |row| {
            tokens.push(text_or_empty(row, 0)?.into_owned());
            Ok(true)
        })?;
        Ok(tokens)
    };
    store.read(read).await.unwrap()
}

/// Jobs that wait while the writer is busy share a transaction; each keeps or loses its own effects only.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_one_transaction_do_not_disturb_each_other() {
    let (store, _dir, _) = on_file();
    let (started, has_started) = channel();
    let (release, released) = channel();
    let first = tokio::spawn({
        let store = store.clone();
        async move {
            let work = move |conn: &mut dyn Session| {
                started.send(()).unwrap();
                released.recv().unwrap();
                insert(conn, "first")
            };
            store.write(ROWS, work).await
        }
    });
    has_started.recv().unwrap();
    let mut jobs = tokio::task::JoinSet::new();
    for i in 0..200 {
        let store = store.clone();
        jobs.spawn(async move {
            let work = move |conn: &mut dyn Session| {
                insert(conn, &format!("t{i}"))?;
                match i % 4 {
                    0 => Err(Fault(Error::NotFound)),
                    _ if i == 1 => panic!("a job that panics is on its own"),
                    _ => Ok(()),
                }
            };
            (i, store.write(ROWS, work).await)
        });
    }
    // A caller that gave up before its turn: nothing is written for it.
    let gone = tokio::spawn({
        let store = store.clone();
        async move { store.write(ROWS, |conn| insert(conn, "gone")).await }
    });
    gone.abort();
    assert!(gone.await.is_err());
    release.send(()).unwrap();
    first.await.unwrap().unwrap();
    let mut expected = vec!["first".to_owned()];
    while let Some(job) = jobs.join_next().await {
        let (i, outcome) = job.unwrap();
        match i % 4 {
            0 => assert_eq!(outcome, Err(Error::NotFound)),
            _ if i == 1 => assert!(matches!(outcome, Err(Error::Internal(_))), "{outcome:?}"),
            _ => {
                outcome.unwrap();
                expected.push(format!("t{i}"));
            }
        }
    }
    let mut found = tokens(&store).await;
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

/// The bound on pages stands for the end of a disk: SQLite reports both the same way.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_an_error_and_not_a_loss() {
    let (store, _dir, config) = on_file();
    store.write(ROWS, |conn| insert(conn, "before")).await.unwrap();
    let bound = |pages: u32| {
        move |conn: &mut dyn Session| -> Sql<()> {
            conn.query(&format!("PRAGMA max_page_count = {pages}"), &[], &mut |_| Ok(true))
        }
    };
    store.write(ROWS, bound(1)).await.unwrap();
    let large = |conn: &mut dyn Session| insert(conn, &"x".repeat(1 << 20));
    let refusal = store.write(ROWS, large).await;
    assert!(matches!(&refusal, Err(Error::Unavailable(text)) if text.contains("full")), "{refusal:?}");
    store.write(ROWS, bound(1 << 20)).await.unwrap();
    store.write(ROWS, |conn| insert(conn, "after")).await.unwrap();
    assert_eq!(tokens(&store).await, ["before", "after"]);
    store.close().await;
    assert_eq!(tokens(&SqlStore::open(&config).unwrap()).await, ["before", "after"]);
}

/// What was handed in before is written; what comes later is refused.
#[tokio::test(flavor = "multi_thread")]
async fn closing_finishes_what_was_handed_in() {
    let (store, dir, config) = on_file();
    let (release, released) = channel::<()>();
    let mut jobs = tokio::task::JoinSet::new();
    let handed_in = Arc::new(tokio::sync::Barrier::new(21));
    for i in 0..20 {
        let (store, handed_in) = (store.clone(), handed_in.clone());
        jobs.spawn(async move {
            let mut write = Box::pin(store.write(ROWS, move |conn| insert(conn, &format!("t{i}"))));
            // The first poll hands the job in: the queue has room for all of them.
            let first = std::future::poll_fn(|cx| std::task::Poll::Ready(write.as_mut().poll(cx))).await;
            handed_in.wait().await;
            match first {
                std::task::Poll::Ready(outcome) => outcome,
                std::task::Poll::Pending => write.await,
            }
        });
    }
    handed_in.wait().await;
    drop((release, released));
    store.close().await;
    while let Some(job) = jobs.join_next().await {
        job.unwrap().unwrap();
    }
    let closed = Error::Unavailable("the datastore is closed".into());
    assert_eq!(store.bundle_count().await, Err(closed.clone()));
    let token = JoinToken { token: "late".into(), expires_at: Timestamp::EPOCH };
    assert_eq!(store.join_token_create(&token).await, Err(closed));
    assert!(!dir.path().join("store.db-wal").exists(), "the last connection tidies up");
    assert_eq!(tokens(&SqlStore::open(&config).unwrap()).await.len(), 20);
}

#[test]
fn what_cannot_be_opened_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path| {
        SqlStore::open(&SqlConfig::sqlite(path.to_str().unwrap())).map(drop).unwrap_err()
    };
    for path in [dir.path().join("no/such/folder.db"), dir.path().to_owned()] {
        let refusal = open(&path);
        assert!(
            matches!(&refusal, Error::Unavailable(text) if text.contains(path.to_str().unwrap())),
            "{refusal:?}"
        );
    }
    let other = dir.path().join("other.db");
    let content = "this is a text of more than a hundred characters, and not at all a database, ".repeat(20);
    std::fs::write(&other, &content).unwrap();
    let refusal = open(&other);
    assert!(
        matches!(&refusal, Error::Internal(text) if text.contains(other.to_str().unwrap())),
        "{refusal:?}"
    );
    assert_eq!(std::fs::read_to_string(&other).unwrap(), content);
}

#[test]
fn settings_are_checked() {
    let config = |kind: &str, connection: &str| SqlConfig {
        database_type: kind.into(),
        ..SqlConfig::sqlite(connection)
    };
    for (config, text) in [
        (config("", "x"), "database_type must be set"),
        (config("sqlite3", ""), "connection_string must be set"),
        (
            config("postgres", "host=project:region:instance"),
            "dialing the Cloud SQL instance \"project:region:instance\" is not supported yet; run the Cloud SQL Auth \
             Proxy and connect to it",
        ),
        (config("mysql", "x"), "invalid DSN: missing the slash separating the database name"),
        (config("mysql", "u@/db"), "invalid mysql config: missing parseTime=true param in connection_string"),
        (
            config("postgres", "host=h sslmode=some"),
            "pq: wrong value for \"sslmode\": \"some\" is not supported; supported values are disable, allow, prefer, require, verify-full, or verify-ca",
        ),
        (config("oracle", "x"), "unsupported database_type: oracle"),
        (config("sqlite3", "http://x"), "unsupported scheme \"http\""),
    ] {
        let refusal = SqlStore::open(&config).map(drop).unwrap_err();
        assert_eq!(refusal.to_string(), format!("datastore-sql: {text}"));
    }
}
