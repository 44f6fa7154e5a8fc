//! The datastore suite on a real PostgreSQL server, and what only a server across a network can do to a store. Where
//! PostgreSQL is missing the tests are ignored, and fail with `CI=true`.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use spire_core::model::{Entry, EntryFilter, EntryId, JoinToken};
use spire_core::spiffe::{Selector, SpiffeId};
use spire_core::time::Timestamp;
use spire_ports::datastore::{
    Bundles, Consistency, Creation, DataStore, Entries, Error, Events, JoinTokens, Nodes, conformance,
};
use spire_store::{SqlConfig, SqlStore};
use spire_testkit::database::{Options, Postgres};
use spire_testkit::proxy::Proxy;

type Outcome = Result<(), Failed>;

/// A test by name.
type Case = (&'static str, fn() -> Outcome);

const SOON: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let due = std::env::var("CI").is_ok_and(|value| value == "true");
    if let Some(why) = Postgres::missing() {
        let trial = Trial::test("postgres", move || Err(why.into())).with_ignored_flag(!due);
        return libtest_mimic::run(&args, vec![trial]).exit_code();
    }
    // Started by the first case that needs it; dropped before the exit.
    let server = Arc::new(std::sync::OnceLock::new());
    let mut trials = conformance(&server);
    let own: [Case; 11] = [
        ("aws_databases_are_given_tokens", aws_token),
        ("certificates_decide", certificates_decide),
        ("a_stopped_server_is_unavailable_until_it_is_back", outage),
        ("idle_connections_that_died_are_replaced", idle_connections),
        ("servers_do_not_make_one_entry_twice", no_duplicates),
        ("a_token_goes_to_one_of_two_servers", one_token),
        ("another_server_is_heard_at_once", hints),
        ("stale_reads_come_from_the_replica_while_it_answers", replica),
        ("the_pool_is_bounded", bounded_pool),
        ("older_schemas_are_upgraded_unless_that_is_disabled", older_schemas),
        ("servers_that_start_together_make_one_schema", one_schema),
    ];
    trials.extend(own.map(|(name, run)| Trial::test(name, run)));
    let code = libtest_mimic::run(&args, trials).exit_code();
    drop(server);
    code
}

type Shared = Arc<std::sync::OnceLock<Postgres>>;

/// A server that nothing needs to survive.
fn fast() -> Options {
    Options { settings: vec!["fsync=off".into()], ..Options::default() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn config(connection_string: &str) -> SqlConfig {
    SqlConfig {
        database_type: "postgres".into(),
        connection_string: connection_string.into(),
        ..SqlConfig::default()
    }
}

async fn open(config: SqlConfig) -> Result<SqlStore, Error> {
    tokio::task::spawn_blocking(move || SqlStore::open(&config)).await.unwrap()
}

fn new_database(server: &Postgres) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    server.database(&format!("d{}", NEXT.fetch_add(1, Ordering::Relaxed))).unwrap()
}

macro_rules! suite {
    ($server:ident, $trials:ident; $($module:ident: [$($case:ident),* $(,)?];)*) => {
        $($({
            let server = Arc::clone($server);
            let name = concat!(stringify!($module), "::", stringify!($case));
            $trials.push(Trial::test(name, move || {
                let server = server.get_or_init(|| Postgres::start(&fast()).unwrap());
                let database = new_database(server);
                runtime().block_on(async {
                    let store = Arc::new(open(config(&database)).await.unwrap());
                    let port: Arc<dyn DataStore> = store.clone();
                    spire_ports::datastore::conformance::$module::$case(port).await;
                    store.close().await;
                });
                Ok(())
            }));
        })*)*
    };
}

fn conformance(server: &Shared) -> Vec<Trial> {
    let mut trials = Vec::new();
    spire_ports::datastore_cases!([suite] [server, trials;]);
    trials
}

fn entry(name: &str, path: &str) -> Entry {
    let id = |path: &str| SpiffeId::parse(&format!("spiffe://example.org/{path}")).unwrap();
    let selectors = [Selector::new("unix", "uid:0").unwrap()].into_iter().collect();
    Entry::new(EntryId::parse(name).unwrap(), id("parent"), id(path), selectors)
}

fn token(name: &str) -> JoinToken {
    JoinToken { token: name.into(), expires_at: Timestamp::from_unix(4_000_000_000) }
}

/// A server with TLS is reached with the right authority and client certificate only.
fn certificates_decide() -> Outcome {
    let options = Options { client_certificate: true, ..fast() };
    let server = Postgres::start(&options)?;
    let good = new_database(&server);
    let certificates = server.certificates.as_ref().ok_or("no certificates")?;
    let shown = format!(
        "{good} sslcert={} sslkey={}",
        certificates.client_certificate.display(),
        certificates.client_key.display()
    );
    runtime().block_on(async {
        let store = open(config(&shown)).await.unwrap();
        store.join_token_create(&token("t")).await.unwrap();
        store.close().await;
        for (text, reason) in [
            (good.clone(), "certificate"),
            (good.replace("sslmode=verify-full", "sslmode=disable"), "no encryption"),
            (format!("{shown} password=wrong"), "28P01"),
            (
                shown.replace("host=localhost", "host=127.0.0.1"),
                "x509: cannot validate certificate for 127.0.0.1",
            ),
            (
                shown.replace(&certificates.root.display().to_string(), "/etc/hostname"),
                "couldn't parse pem from sslrootcert",
            ),
        ] {
            let refusal = open(config(&text)).await.map(drop).unwrap_err().to_string();
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
        // Weaker modes take the server whatever it shows, or whatever its name is.
        for text in [
            shown.replace("host=localhost", "host=127.0.0.1").replace("verify-full", "verify-ca"),
            shown.replace("host=localhost", "host=127.0.0.1").replace("verify-full", "require"),
            shown.replace("verify-full", "prefer"),
            shown.replace("verify-full", "allow"),
        ] {
            open(config(&text)).await.unwrap().close().await;
        }
    });
    Ok(())
}

/// While the server is away operations fail by name; when it is back they go on, without a new store.
fn outage() -> Outcome {
    let mut server = Postgres::start(&fast())?;
    let database = new_database(&server);
    let runtime = runtime();
    let store = runtime.block_on(open(config(&database)))?;
    runtime.block_on(store.join_token_create(&token("before")))?;
    server.kill()?;
    let refusal = runtime.block_on(store.join_token_create(&token("during"))).unwrap_err();
    assert!(
        matches!(&refusal, Error::Unavailable(text) if text.contains("cannot connect to the database at 127.0.0.1")),
        "{refusal:?}"
    );
    assert!(matches!(runtime.block_on(store.bundle_count()), Err(Error::Unavailable(_))));
    server.restart()?;
    runtime.block_on(store.join_token_create(&token("after")))?;
    for (name, is_there) in [("before", true), ("during", false), ("after", true)] {
        let found = runtime.block_on(store.join_token_fetch(name))?;
        assert_eq!(found.is_some(), is_there, "{name}");
    }
    runtime.block_on(store.close());
    Ok(())
}

/// Connections that a firewall or a restart cut while they were idle are noticed, and cost no failed operation.
fn idle_connections() -> Outcome {
    let server = Postgres::start(&fast())?;
    new_database(&server);
    server.database("cut")?;
    let proxy = Proxy::start(server.port())?;
    let runtime = runtime();
    let store = runtime.block_on(open(config(&server.connection_string_by("cut", proxy.port()))))?;
    runtime.block_on(async {
        // Several at once, so that several are idle after.
        let all = (0..8).map(|i| {
            let name = format!("t{i}");
            let store = &store;
            async move { store.join_token_create(&token(&name)).await }
        });
        for outcome in futures_util::future::join_all(all).await {
            outcome.unwrap();
        }
    });
    server.sql(
        "cut",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'cut' AND pid <> pg_backend_pid()",
    )?;
    runtime.block_on(async {
        for i in 0..8 {
            assert!(store.join_token_delete(&format!("t{i}")).await.unwrap());
        }
    });
    runtime.block_on(store.close());
    Ok(())
}

/// Two servers that are asked for the same entry at the same time make one.
fn no_duplicates() -> Outcome {
    let server = Postgres::start(&fast())?;
    let database = new_database(&server);
    runtime().block_on(async {
        let (one, two) = (open(config(&database)).await.unwrap(), open(config(&database)).await.unwrap());
        let stores = [Arc::new(one), Arc::new(two)];
        let mut jobs = tokio::task::JoinSet::new();
        for i in 0..60_usize {
            for (which, store) in stores.iter().enumerate() {
                let store = Arc::clone(store);
                jobs.spawn(async move {
                    let wanted = entry(&format!("e{i}-{which}"), &format!("w{i}"));
                    store.entries_create(vec![wanted]).await.unwrap().remove(0).unwrap()
                });
            }
        }
        let mut created = 0;
        while let Some(outcome) = jobs.join_next().await {
            created += usize::from(matches!(outcome.unwrap(), Creation::Created(_)));
        }
        assert_eq!(created, 60);
        assert_eq!(stores[0].entry_count(&EntryFilter::default()).await, Ok(60));
        for store in stores {
            store.close().await;
        }
    });
    Ok(())
}

/// Of all who come with a token at once, on two servers, one gets it.
fn one_token() -> Outcome {
    let server = Postgres::start(&fast())?;
    let database = new_database(&server);
    runtime().block_on(async {
        let (one, two) = (open(config(&database)).await.unwrap(), open(config(&database)).await.unwrap());
        let stores = [Arc::new(one), Arc::new(two)];
        for round in 0..20 {
            let name = format!("token{round}");
            stores[0].join_token_create(&token(&name)).await.unwrap();
            let mut jobs = tokio::task::JoinSet::new();
            for i in 0..16 {
                let (store, name) = (Arc::clone(&stores[i % 2]), name.clone());
                jobs.spawn(async move {
                    let agent = conformance::node(&format!("/join_token/{name}"));
                    store.node_attest_by_token(&agent, &name).await.unwrap().is_some()
                });
            }
            assert_eq!(jobs.join_all().await.into_iter().filter(|got| *got).count(), 1, "{name}");
        }
        for store in stores {
            store.close().await;
        }
    });
    Ok(())
}

/// What one server writes the other is told of, and nobody is told of what he wrote himself.
fn hints() -> Outcome {
    let server = Postgres::start(&fast())?;
    let database = new_database(&server);
    runtime().block_on(async {
        let (one, two) = (open(config(&database)).await.unwrap(), open(config(&database)).await.unwrap());
        // Both are told once that they listen.
        for store in [&one, &two] {
            tokio::time::timeout(SOON, store.changed_elsewhere()).await.unwrap();
        }
        for round in 0..3 {
            one.entries_create(vec![entry(&format!("e{round}"), &format!("w{round}"))]).await.unwrap();
            tokio::time::timeout(SOON, Events::changed_elsewhere(&two)).await.unwrap();
            assert_eq!(two.entry_events(round, 10).await.unwrap().len(), 1);
        }
        // An answer to `two` comes after whatever `one` was told before.
        two.node_selectors_set(&entry("x", "x").spiffe_id, &entry("x", "x").selectors).await.unwrap();
        tokio::time::timeout(SOON, one.changed_elsewhere()).await.unwrap();
        assert!(futures_util::FutureExt::now_or_never(one.changed_elsewhere()).is_none(), "told of its own");
        one.close().await;
        two.close().await;
    });
    Ok(())
}

/// Reads that tolerate it come from the replica; the others, and all while it is away, from the primary.
fn replica() -> Outcome {
    let server = Postgres::start(&fast())?;
    let database = new_database(&server);
    let name = database.split(' ').next().unwrap().trim_start_matches("dbname=").to_owned();
    runtime().block_on(open(config(&database)))?;
    let mut copy = server.replica()?;
    let runtime = runtime();
    let both = SqlConfig { ro_connection_string: copy.connection_string(&name), ..config(&database) };
    let store = runtime.block_on(open(both.clone()))?;
    // Frozen on this side, the replica shows where a read comes from.
    copy.sql(&name, "SELECT pg_wal_replay_pause()")?;
    runtime.block_on(async {
        store.entries_create(vec![entry("e", "w")]).await.unwrap();
        let list = async |consistency| {
            store.entry_list(&EntryFilter::default(), None, consistency).await.unwrap().items.len()
        };
        assert_eq!(list(Consistency::Current).await, 1);
        assert_eq!(list(Consistency::TolerateStale).await, 0);
        // It has not seen the event, so that it is not asked.
        assert_eq!(list(Consistency::Seen(1)).await, 1);
    });
    // Deleted on the primary alone, the entry tells that an event that both have seen lets the replica answer.
    copy.sql(&name, "SELECT pg_wal_replay_resume()")?;
    spire_testkit::wait::until("the event on the replica", SOON, || {
        copy.sql(&name, "SELECT id FROM registered_entries_events").ok().filter(|ids| ids == "1\n")
    })?;
    copy.sql(&name, "SELECT pg_wal_replay_pause()")?;
    runtime.block_on(async {
        store.entries_delete(&[EntryId::parse("e").unwrap()]).await.unwrap().remove(0).unwrap();
        let list = async |consistency| {
            store.entry_list(&EntryFilter::default(), None, consistency).await.unwrap().items.len()
        };
        assert_eq!(list(Consistency::Seen(1)).await, 1);
        assert_eq!(list(Consistency::Seen(2)).await, 0);
        store.entries_create(vec![entry("e", "w")]).await.unwrap();
    });
    copy.kill()?;
    runtime.block_on(async {
        let list = store.entry_list(&EntryFilter::default(), None, Consistency::TolerateStale).await;
        assert_eq!(list.unwrap().items.len(), 1, "from the primary");
        store.close().await;
        // A replica that is away keeps nobody from starting.
        open(both).await.unwrap().close().await;
    });
    Ok(())
}

/// A database of an older release gets the columns that are missing; without leave it is refused and left alone.
fn older_schemas() -> Outcome {
    let server = Postgres::start(&fast())?;
    let runtime = runtime();
    for (version, code, more) in
        [(23, "1.13.0", "ALTER TABLE attested_node_entries DROP COLUMN agent_version;"), (24, "1.14.3", "")]
    {
        let name = format!("older{version}");
        let database = server.database(&name)?;
        runtime.block_on(async { open(config(&database)).await.unwrap().close().await });
        server.sql(
            &name,
            &format!(
                "{more} ALTER TABLE registered_entries DROP COLUMN additional_attributes; \
                 UPDATE migrations SET version = {version}, code_version = '{code}'"
            ),
        )?;
        let versions = || server.sql(&name, "SELECT version, code_version FROM migrations");
        if version == 23 {
            let as_it_is = SqlConfig { disable_migration: true, ..config(&database) };
            let refusal = runtime.block_on(open(as_it_is)).map(drop).unwrap_err();
            assert_eq!(refusal.to_string(), "datastore-sql: auto-migration must be enabled for current DB");
            assert_eq!(versions()?, format!("{version}|{code}\n"));
        }
        runtime.block_on(async {
            let store = open(config(&database)).await.unwrap();
            store.entries_create(vec![entry("e", "w")]).await.unwrap().remove(0).unwrap();
            assert_eq!(store.entry_count(&EntryFilter::default()).await, Ok(1));
            store.close().await;
        });
        assert_eq!(versions()?, "25|1.15.3\n");
    }
    server.sql("older24", "UPDATE migrations SET version = 22, code_version = '1.7.2'")?;
    let refusal = runtime.block_on(open(config(&server.connection_string("older24")))).map(drop).unwrap_err();
    assert!(
        refusal.to_string().contains("migrating from schema version 22 requires a previous"),
        "{refusal}"
    );
    Ok(())
}

/// Servers that find an empty database at the same time do not fail over each other.
fn one_schema() -> Outcome {
    let server = Postgres::start(&fast())?;
    let database = new_database(&server);
    runtime().block_on(async {
        let mut jobs = tokio::task::JoinSet::new();
        for _ in 0..4 {
            jobs.spawn(open(config(&database)));
        }
        for store in jobs.join_all().await {
            store.unwrap().close().await;
        }
    });
    Ok(())
}

/// With one connection everything still works, one after the other.
fn bounded_pool() -> Outcome {
    let server = Postgres::start(&fast())?;
    let database = new_database(&server);
    runtime().block_on(async {
        let settings = SqlConfig {
            max_open_conns: Some(1),
            max_idle_conns: Some(0),
            conn_max_lifetime: Some(Duration::from_secs(1)),
            ..config(&database)
        };
        let store = Arc::new(open(settings).await.unwrap());
        let mut jobs = tokio::task::JoinSet::new();
        for i in 0..30 {
            let store = Arc::clone(&store);
            jobs.spawn(async move { store.join_token_create(&token(&format!("t{i}"))).await.unwrap() });
        }
        jobs.join_all().await;
        store.close().await;
        assert_eq!(
            store.join_token_fetch("t1").await,
            Err(Error::Unavailable("the datastore is closed".into()))
        );
    });
    Ok(())
}

/// What a database of AWS RDS would be told for a password: a token for its user and address, over TLS that was asked
/// for. A server of our own takes the place of it, speaking as much of the protocol as it needs.
fn aws_token() -> Outcome {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let server = std::thread::spawn(move || -> std::io::Result<Vec<u8>> {
        let (mut client, _) = listener.accept()?;
        let message = |with_kind: bool, client: &mut std::net::TcpStream| -> std::io::Result<Vec<u8>> {
            let mut head = vec![0; if with_kind { 5 } else { 4 }];
            client.read_exact(&mut head)?;
            let size = u32::from_be_bytes(head[head.len() - 4..].try_into().unwrap_or_default());
            let mut body = vec![0; usize::try_from(size).unwrap_or(4) - 4];
            client.read_exact(&mut body)?;
            Ok(body)
        };
        message(false, &mut client)?;
        // AuthenticationCleartextPassword
        client.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3])?;
        let password = message(true, &mut client)?;
        let refusal = b"SFATAL\0C28P01\0Mthat is all\0\0";
        client.write_all(&[b'E', 0, 0, 0, 4 + u8::try_from(refusal.len()).unwrap_or(0)])?;
        client.write_all(refusal)?;
        Ok(password)
    });
    let settings = SqlConfig {
        database_type: "aws_postgres".into(),
        aws: Some(spire_store::AwsConfig {
            region: "eu-north-1".into(),
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: "secret".into(),
        }),
        ..config(&format!("host=127.0.0.1 port={port} user=iam_user dbname=spire sslmode=disable"))
    };
    let refusal = runtime().block_on(open(settings.clone())).map(drop).unwrap_err().to_string();
    assert!(refusal.contains("pq: that is all (28P01)"), "{refusal}");
    let password = String::from_utf8(server.join().map_err(|_| "the server panicked")??)?;
    let start = format!(
        "127.0.0.1:{port}/?Action=connect&DBUser=iam_user&X-Amz-Algorithm=AWS4-HMAC-SHA256\
         &X-Amz-Credential=AKIDEXAMPLE%2F"
    );
    assert!(password.starts_with(&start), "{password}");
    assert!(password.contains("%2Feu-north-1%2Frds-db%2Faws4_request&"), "{password}");
    let with_password =
        SqlConfig { connection_string: format!("{} password=x", settings.connection_string), ..settings };
    let refusal = runtime().block_on(open(with_password)).map(drop).unwrap_err().to_string();
    assert!(refusal.contains("password should not be set when using IAM authentication"), "{refusal}");
    Ok(())
}
