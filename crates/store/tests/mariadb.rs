//! The datastore suite on a real MariaDB server, and what only a server across a network, or MySQL's ways with texts, can
//! do to a store. Where MariaDB is missing the tests are ignored, and fail with `CI=true`.

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Failed, Trial};
use spire_core::model::{Entry, EntryFilter, EntryId, EntryMask, JoinToken, Node, SelectorMatch, SetMatch};
use spire_core::spiffe::{Selector, Selectors, SpiffeId};
use spire_core::time::Timestamp;
use spire_ports::datastore::{
    Bundles, Consistency, Creation, DataStore, Entries, Error, JoinTokens, Nodes, conformance,
};
use spire_store::{SqlConfig, SqlStore};
use spire_testkit::database::{Mariadb, Options};
use spire_testkit::proxy::Proxy;

type Outcome = Result<(), Failed>;
type Shared = Arc<OnceLock<Mariadb>>;
/// A test by name, on the server that most share.
type Case = (&'static str, fn(&Mariadb) -> Outcome);

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let due = std::env::var("CI").is_ok_and(|value| value == "true");
    if let Some(why) = Mariadb::missing() {
        let trial = Trial::test("mariadb", move || Err(why.into())).with_ignored_flag(!due);
        return libtest_mimic::run(&args, vec![trial]).exit_code();
    }
    // Started by the first case that needs it; dropped before the exit.
    let server = Shared::default();
    let mut trials = conformance(&server);
    let own: [Case; 9] = [
        ("the_schema_is_that_of_the_reference", schema),
        ("older_schemas_are_brought_up_to_date", migration),
        ("names_that_differ_in_case_are_different", letter_case),
        ("texts_that_do_not_fit_spare_the_others", long_texts),
        ("servers_do_not_make_one_entry_twice", no_duplicates),
        ("updates_on_two_servers_are_not_lost", no_lost_updates),
        ("a_token_goes_to_one_of_two_servers", one_token),
        ("idle_connections_that_died_are_replaced", idle_connections),
        ("stale_reads_come_from_the_replica_while_it_answers", replica),
    ];
    trials.extend(own.map(|(name, run)| {
        let server = Arc::clone(&server);
        Trial::test(name, move || run(shared(&server)))
    }));
    trials.push(Trial::test("certificates_decide", certificates_decide));
    trials.push(Trial::test("a_stopped_server_is_unavailable_until_it_is_back", outage));
    let code = libtest_mimic::run(&args, trials).exit_code();
    drop(server);
    code
}

fn shared(server: &Shared) -> &Mariadb {
    server.get_or_init(|| Mariadb::start(&Options::default()).unwrap())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn config(connection_string: &str) -> SqlConfig {
    SqlConfig {
        database_type: "mysql".into(),
        connection_string: connection_string.into(),
        ..SqlConfig::default()
    }
}

async fn open(config: SqlConfig) -> Result<SqlStore, Error> {
    tokio::task::spawn_blocking(move || SqlStore::open(&config)).await.unwrap()
}

/// A new database: its name, and how to connect to it.
fn database(server: &Mariadb) -> (String, String) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("d{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let string = server.database(&name).unwrap();
    (name, string)
}

macro_rules! suite {
    ($server:ident, $trials:ident; $($module:ident: [$($case:ident),* $(,)?];)*) => {
        $($({
            let server = Arc::clone($server);
            let name = concat!(stringify!($module), "::", stringify!($case));
            $trials.push(Trial::test(name, move || {
                let (_, database) = database(shared(&server));
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

fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://example.org/{path}")).unwrap()
}

fn selectors(value: &str) -> Selectors {
    [Selector::new("unix", value).unwrap()].into_iter().collect()
}

fn entry(name: &str, path: &str) -> Entry {
    Entry::new(EntryId::parse(name).unwrap(), id("parent"), id(path), selectors("uid:0"))
}

/// An agent as an attestation stores it.
fn node(path: &str, serial_number: &str) -> Node {
    Node { serial_number: serial_number.into(), ..conformance::node(path) }
}

fn token(name: &str) -> JoinToken {
    JoinToken { token: name.into(), expires_at: Timestamp::from_unix(4_000_000_000) }
}

/// What the server says of tables, columns and indexes, without counters.
fn description(server: &Mariadb, database: &str) -> String {
    let statements = format!(
        "SELECT TABLE_NAME, ENGINE, ROW_FORMAT, TABLE_COLLATION FROM information_schema.TABLES \
         WHERE TABLE_SCHEMA = '{database}' ORDER BY 1; \
         SELECT TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, IS_NULLABLE, COLUMN_DEFAULT, COLLATION_NAME, EXTRA FROM \
         information_schema.COLUMNS WHERE TABLE_SCHEMA = '{database}' ORDER BY 1, ORDINAL_POSITION; \
         SELECT TABLE_NAME, INDEX_NAME, NON_UNIQUE, SEQ_IN_INDEX, COLUMN_NAME FROM information_schema.STATISTICS \
         WHERE TABLE_SCHEMA = '{database}' ORDER BY 1, 2, 4"
    );
    server.sql(database, &statements).unwrap()
}

fn schema(server: &Mariadb) -> Outcome {
    let (name, string) = database(server);
    runtime().block_on(async { open(config(&string)).await.unwrap().close().await });
    let expected = include_str!("fixtures/mariadb-schema.txt");
    assert_eq!(description(server, &name), expected);
    assert_eq!(server.sql(&name, "SELECT version, code_version FROM migrations")?, "25\t1.15.3\n");
    Ok(())
}

fn migration(server: &Mariadb) -> Outcome {
    let (name, string) = database(server);
    let runtime = runtime();
    runtime.block_on(async { open(config(&string)).await.unwrap().close().await });
    let new = description(server, &name);
    let age = |version: u32| {
        let more =
            if version == 23 { "ALTER TABLE attested_node_entries DROP COLUMN agent_version;" } else { "" };
        server.sql(
            &name,
            &format!(
                "{more} ALTER TABLE registered_entries DROP COLUMN additional_attributes; \
                 UPDATE migrations SET version = {version}, code_version = '1.14.0'"
            ),
        )
    };
    for version in [24, 23] {
        age(version)?;
        let stays = SqlConfig { disable_migration: true, ..config(&string) };
        assert!(runtime.block_on(open(stays)).is_ok(), "a release apart");
        runtime.block_on(async { open(config(&string)).await.unwrap().close().await });
        assert_eq!(description(server, &name), new, "from {version}");
        assert_eq!(server.sql(&name, "SELECT version, code_version FROM migrations")?, "25\t1.15.3\n");
    }
    server.sql(&name, "UPDATE migrations SET version = 22")?;
    let refusal = runtime.block_on(open(config(&string))).map(drop).unwrap_err().to_string();
    assert!(
        refusal.contains("migrating from schema version 22 requires a previous SPIRE release"),
        "{refusal}"
    );
    // A server that was killed while it made the schema has left a part of it.
    server.sql(
        &name,
        "DROP TABLE migrations; DROP TABLE selectors; DROP INDEX uix_bundles_trust_domain ON bundles",
    )?;
    runtime.block_on(async { open(config(&string)).await.unwrap().close().await });
    assert_eq!(description(server, &name), new);
    Ok(())
}

/// The tables' collation takes `A` for `a`; identities must not be found by another's name.
fn letter_case(server: &Mariadb) -> Outcome {
    let (_, string) = database(server);
    runtime().block_on(async {
        let store = open(config(&string)).await.unwrap();
        store.entries_create(vec![entry("abc", "Work")]).await.unwrap().remove(0).unwrap();
        assert_eq!(store.entry_fetch(&EntryId::parse("ABC").unwrap()).await, Ok(None));
        assert!(store.entries_fetch(&[EntryId::parse("Abc").unwrap()]).await.unwrap().is_empty());
        let list = async |filter: EntryFilter| {
            store.entry_list(&filter, None, Consistency::Current).await.unwrap().items.len()
        };
        let by_id = |path: &str| EntryFilter { spiffe_id: Some(id(path)), ..EntryFilter::default() };
        assert_eq!((list(by_id("Work")).await, list(by_id("work")).await), (1, 0));
        let by_selector = |value: &str| EntryFilter {
            selectors: Some(SelectorMatch { selectors: selectors(value), how: SetMatch::Exact }),
            ..EntryFilter::default()
        };
        assert_eq!((list(by_selector("uid:0")).await, list(by_selector("UID:0")).await), (1, 0));
        // Another identity with the same selectors is another entry.
        let other = store.entries_create(vec![entry("def", "work")]).await.unwrap().remove(0).unwrap();
        assert!(matches!(other, Creation::Created(_)), "{other:?}");
        store.join_token_create(&token("token")).await.unwrap();
        assert_eq!(store.join_token_fetch("TOKEN").await, Ok(None));
        assert_eq!(store.join_token_delete("TOKEN").await, Ok(false));
        assert_eq!(store.join_token_delete("token").await, Ok(true));
        // A node's name is unique without case, so that the other cannot be stored; it must not become the first.
        store.node_attest(&node("/Agent", "1")).await.unwrap();
        assert!(store.node_attest(&node("/agent", "2")).await.is_err());
        assert_eq!(&*store.node_fetch(&id("Agent")).await.unwrap().unwrap().serial_number, "1");
        assert_eq!(store.node_fetch(&id("agent")).await, Ok(None));
        store.close().await;
    });
    Ok(())
}

/// Columns have 255 characters, of three octets at most.
fn long_texts(server: &Mariadb) -> Outcome {
    let (name, string) = database(server);
    runtime().block_on(async {
        let store = open(config(&string)).await.unwrap();
        let mut long = entry("long", "long");
        long.selectors = selectors(&"x".repeat(256));
        let mut wide = entry("wide", "wide");
        wide.selectors = selectors("\u{1f980}");
        let outcomes =
            store.entries_create(vec![entry("a", "a"), long, wide, entry("b", "b")]).await.unwrap();
        let texts: Vec<String> = outcomes
            .iter()
            .map(|outcome| outcome.as_ref().map_or_else(ToString::to_string, |_| "made".to_owned()))
            .collect();
        assert_eq!((texts[0].as_str(), texts[3].as_str()), ("made", "made"));
        assert!(texts[1].contains("Error 1406 (22001): Data too long for column 'value'"), "{texts:?}");
        assert!(texts[2].contains("Incorrect string value"), "{texts:?}");
        assert_eq!(store.entry_count(&EntryFilter::default()).await, Ok(2));
        store.close().await;
    });
    // Nothing is left of what failed.
    assert_eq!(server.sql(&name, "SELECT COUNT(*) FROM selectors")?, "2\n");
    assert_eq!(server.sql(&name, "SELECT COUNT(*) FROM registered_entries_events")?, "2\n");
    Ok(())
}

async fn two(database: &str) -> [Arc<SqlStore>; 2] {
    let (one, other) = (open(config(database)).await.unwrap(), open(config(database)).await.unwrap());
    [Arc::new(one), Arc::new(other)]
}

/// Two servers that are asked for the same entry at the same time make one.
fn no_duplicates(server: &Mariadb) -> Outcome {
    let (_, string) = database(server);
    runtime().block_on(async {
        let stores = two(&string).await;
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
        let made =
            jobs.join_all().await.into_iter().filter(|made| matches!(made, Creation::Created(_))).count();
        assert_eq!(made, 60);
        assert_eq!(stores[0].entry_count(&EntryFilter::default()).await, Ok(60));
        for store in stores {
            store.close().await;
        }
    });
    Ok(())
}

/// Each update reads the entry and writes it back one revision later.
fn no_lost_updates(server: &Mariadb) -> Outcome {
    let (_, string) = database(server);
    runtime().block_on(async {
        let stores = two(&string).await;
        stores[0].entries_create(vec![entry("e", "w")]).await.unwrap().remove(0).unwrap();
        let mut jobs = tokio::task::JoinSet::new();
        for i in 0..40_u32 {
            let store = Arc::clone(&stores[usize::try_from(i % 2).unwrap()]);
            jobs.spawn(async move {
                let mut update = entry("e", "w");
                update.hint = i.to_string().into();
                let mask = EntryMask { hint: true, ..EntryMask::NONE };
                store.entries_update(vec![(update, mask)]).await.unwrap().remove(0).unwrap();
            });
        }
        jobs.join_all().await;
        let last = stores[0].entry_fetch(&EntryId::parse("e").unwrap()).await.unwrap().unwrap();
        assert_eq!(last.revision, 40);
        for store in stores {
            store.close().await;
        }
    });
    Ok(())
}

/// Of all who come with a token at once, on two servers, one gets it.
fn one_token(server: &Mariadb) -> Outcome {
    let (_, string) = database(server);
    runtime().block_on(async {
        let stores = two(&string).await;
        for round in 0..20 {
            let name = format!("token{round}");
            stores[0].join_token_create(&token(&name)).await.unwrap();
            let mut jobs = tokio::task::JoinSet::new();
            for i in 0..16 {
                let (store, name) = (Arc::clone(&stores[i % 2]), name.clone());
                jobs.spawn(async move {
                    let agent = node(&format!("/join_token/{name}"), &i.to_string());
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

/// Connections that a firewall or a restart cut while they were idle are noticed, and cost no failed operation.
fn idle_connections(server: &Mariadb) -> Outcome {
    let (name, _) = database(server);
    let proxy = Proxy::start(server.port())?;
    runtime().block_on(async {
        let store = open(config(&server.connection_string_by(&name, proxy.port()))).await.unwrap();
        // Several at once, so that several are idle after.
        let tokens: Vec<JoinToken> = (0..8).map(|i| token(&format!("t{i}"))).collect();
        let all = tokens.iter().map(|token| store.join_token_create(token));
        for outcome in futures_util::future::join_all(all).await {
            outcome.unwrap();
        }
        proxy.reset();
        for token in &tokens {
            assert!(store.join_token_delete(&token.token).await.unwrap());
        }
        store.close().await;
    });
    Ok(())
}

/// Reads that tolerate it come from the replica; the others, and all while it is away, from the primary. The replica of
/// this test is another database, which shows where a read comes from.
fn replica(server: &Mariadb) -> Outcome {
    let (_, string) = database(server);
    let (copy, copied) = database(server);
    let proxy = Proxy::start(server.port())?;
    runtime().block_on(async {
        open(config(&copied)).await.unwrap().close().await;
        let both = SqlConfig {
            ro_connection_string: server.connection_string_by(&copy, proxy.port()),
            ..config(&string)
        };
        let store = open(both.clone()).await.unwrap();
        store.entries_create(vec![entry("e", "w")]).await.unwrap().remove(0).unwrap();
        let list = async |consistency| {
            store.entry_list(&EntryFilter::default(), None, consistency).await.unwrap().items.len()
        };
        assert_eq!((list(Consistency::Current).await, list(Consistency::TolerateStale).await), (1, 0));
        proxy.cut();
        assert_eq!(list(Consistency::TolerateStale).await, 1, "from the primary");
        store.close().await;
        // A replica that is away keeps nobody from starting.
        open(both).await.unwrap().close().await;
    });
    Ok(())
}

/// A server with TLS is reached with the right authority and client certificate only.
fn certificates_decide() -> Outcome {
    let server = Mariadb::start(&Options { client_certificate: true, ..Options::default() })?;
    let (name, string) = database(&server);
    let certificates = server.certificates.as_ref().ok_or("no certificates")?;
    let path = |path: &std::path::Path| path.display().to_string();
    let good = SqlConfig {
        root_ca_path: path(&certificates.root),
        client_cert_path: path(&certificates.client_certificate),
        client_key_path: path(&certificates.client_key),
        ..config(&string)
    };
    let by_address = string.replace("localhost", "127.0.0.1");
    runtime().block_on(async {
        let store = open(good.clone()).await.unwrap();
        assert_eq!(store.bundle_count().await, Ok(0));
        store.close().await;
        for (config, reason) in [
            (config(&string), "Access denied"),
            (config(&format!("{string}&tls=true")), "certificate"),
            (config(&format!("{string}&tls=skip-verify")), "Access denied"),
            (SqlConfig { connection_string: by_address, ..good.clone() }, "certificate"),
            (SqlConfig { client_key_path: String::new(), ..good.clone() }, "Access denied"),
            (SqlConfig { root_ca_path: "/nowhere".into(), ..good.clone() },
                "invalid mysql config: cannot find Root CA defined in root_ca_path"),
            (SqlConfig { root_ca_path: "/etc/hostname".into(), ..good.clone() },
                "invalid mysql config: failed to parse Root CA defined in root_ca_path"),
            (SqlConfig { client_cert_path: "/nowhere".into(), ..good.clone() },
                "invalid mysql config: failed to load client certificate defined in client_cert_path and client_key_path"),
        ] {
            let refusal = open(config.clone()).await.map(drop).unwrap_err().to_string();
            assert!(refusal.contains(reason), "{config:?}: {refusal}");
        }
    });
    assert_eq!(server.sql(&name, "SELECT COUNT(*) FROM bundles")?, "0\n");
    // A server without TLS serves those who would rather have it, and nobody who insists.
    let plain = Mariadb::start(&Options { settings: vec!["skip-ssl".to_owned()], ..Options::default() })?;
    let (_, string) = database(&plain);
    runtime().block_on(async {
        open(config(&format!("{string}&tls=preferred"))).await.unwrap().close().await;
        assert!(open(config(&format!("{string}&tls=skip-verify"))).await.is_err());
    });
    Ok(())
}

/// While the server is away operations fail by name; when it is back they go on, without a new store.
fn outage() -> Outcome {
    let mut server = Mariadb::start(&Options::default())?;
    let (_, string) = database(&server);
    let runtime = runtime();
    let store = runtime.block_on(open(config(&string)))?;
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
