//! Servers on a database server: it goes away and comes back, several share it, and another implementation's servers do.

use std::time::Duration;

use serde_json::Value;
use spire_testkit::database::{Options, Postgres};
use spire_testkit::{Daemon, Result, wait};

use crate::harness::site::{attestations, own_uid};
use crate::harness::turns::{self, Turns};
use crate::harness::{Case, Need, Outcome, SOON, Site, programs};

pub(crate) fn cases() -> Vec<Case> {
    const POSTGRES: &[Need] = &[Need::Postgres];
    const OURS: &[Need] = &[Need::Postgres, Need::Ours];
    const MIXED: &[Need] = &[Need::Postgres, Need::Ours, Need::Reference];
    vec![
        Case { name: "databases::known_agents_are_served_without_postgres", needs: POSTGRES, run: outage },
        Case {
            name: "databases::servers_on_one_postgres_hear_each_other",
            needs: POSTGRES,
            run: two_servers,
        },
        Case { name: "databases::beside_the_reference_on_one_postgres", needs: MIXED, run: beside_theirs },
        Case { name: "databases::postgres_is_taken_over_and_given_back", needs: MIXED, run: take_over },
        Case { name: "databases::statements_are_logged_where_wanted", needs: OURS, run: statements },
        Case { name: "databases::wrong_settings_are_named", needs: &[Need::Ours], run: wrong_settings },
    ]
}

const AGENT: &str = "spiffe://example.org/node";
const WORKLOAD: &str = "spiffe://example.org/w";

/// A renewal's turn comes in this time on a busy machine.
const A_TURN: Duration = Duration::from_secs(90);

fn start() -> Result<Postgres> {
    Postgres::start(&Options { settings: vec!["fsync=off".into()], ..Options::default() })
}

/// `log_sql` shows statements with their values at DEBUG, on a database server and on a file; tokens are no values to show.
fn statements() -> Outcome {
    let database = start()?;
    let mut sites = [Site::on_database("postgres", &database.database("spire")?)?, Site::new()?];
    for site in &mut sites {
        let file = format!("{}/datastore.sqlite3", site.server.data().display());
        let settings = site.server.datastore.get_or_insert_with(|| {
            format!("database_type = \"sqlite3\"\n            connection_string = \"{file}\"")
        });
        settings.push_str("\n            log_sql = true");
        let server = site.start_server()?;
        let id = site.entry(AGENT, WORKLOAD, "unix:uid:4242", &[])?;
        let token = site.token(AGENT)?;
        let shown = ["level=debug", "subsystem_name=gorm", "INSERT INTO registered_entries"];
        server.wait_for(&[&shown[..], &[&id, "1 rows affected or returned]"]].concat(), SOON)?;
        server.wait_for(&["subsystem_name=gorm", "INSERT INTO join_tokens"], SOON)?;
        let lines = server.lines();
        let told = lines.iter().find(|line| line.contains("subsystem_name=gorm") && line.contains(&token));
        assert!(told.is_none(), "{told:?}");
    }
    Ok(())
}

/// While the database is away known agents get SVIDs and writes fail by name; then all goes on by itself.
fn outage() -> Outcome {
    let mut database = start()?;
    let site = Site::on_database("postgres", &database.database("spire")?)?;
    let mut server = site.start_server()?;
    let agent = site.join(AGENT)?;
    let uid = own_uid();
    site.entry(AGENT, WORKLOAD, &uid, &["-x509SVIDTTL", "20"])?;
    let first = site.wait_identities(&[WORKLOAD])?.field("SVID Valid Until")?;
    let stream = site.watch()?;
    stream.wait_for(&["SPIFFE ID:", WORKLOAD], SOON)?;
    database.kill()?;
    // Two renewals: neither the first connection nor what was signed before explains them.
    let renewed_once = renewed(&site, &stream, &renewed(&site, &stream, &first)?)?;
    let refusal = site.command(&["entry", "create", "-parentID", AGENT, "-spiffeID", WORKLOAD]);
    let refusal = refusal.args(&["-selector", "unix:uid:4242"]).output()?;
    assert_ne!(refusal.code, 0);
    assert!(refusal.to_string().contains("cannot connect to the database at 127.0.0.1:"), "{refusal}");
    assert!(site.command(&["token", "generate"]).output()?.code != 0);
    database.restart()?;
    let second = "spiffe://example.org/second";
    // As short-lived as the first: the command names them in any order.
    let short = ["-x509SVIDTTL", "20"];
    wait::until("entry after the outage", SOON, || site.entry(AGENT, second, &uid, &short).ok())?;
    site.wait_identities(&[WORKLOAD, second])?;
    // One that is there and silent is no better, and no worse.
    database.pause();
    renewed(&site, &stream, &renewed(&site, &stream, &renewed_once)?)?;
    database.resume();
    let third = "spiffe://example.org/third";
    wait::until("entry after the silence", A_TURN, || site.entry(AGENT, third, &uid, &[]).ok())?;
    site.wait_identities(&[WORKLOAD, second, third])?;
    assert_eq!(attestations(&agent), 1);
    assert_eq!(server.stop()?, 0);
    Ok(())
}

/// Waits for an SVID that is newer than one, and says how long it is valid.
fn renewed(site: &Site, stream: &Daemon, last: &str) -> Result<String> {
    stream.wait_line(stream.mark(), "renewed SVID", A_TURN, |line| {
        line.strip_prefix("SVID Valid Until:").is_some_and(|until| until.trim() > last)
    })?;
    site.workload(&["api", "fetch", "x509", "-timeout", "20s"]).success()?.field("SVID Valid Until")
}

/// How many X.509 authorities a server's bundle has.
fn roots(site: &Site) -> Result<usize> {
    let shown: Value = site.cli_json(&["bundle", "show"])?;
    Ok(shown["x509_authorities"].as_array().map_or(0, Vec::len))
}

fn two_servers() -> Outcome {
    let database = start()?;
    let string = database.database("spire")?;
    let (mut one, mut two) =
        (Site::on_database("postgres", &string)?, Site::on_database("postgres", &string)?);
    // So seldom do they look at the database by themselves that what arrives was announced.
    for site in [&mut one, &mut two] {
        site.server.lines.retain(|line| !line.contains("cache_reload_interval"));
        if programs::under_test().ours {
            site.server.lines.push("experimental { cache_reload_interval = \"30m\" }".to_owned());
        }
    }
    share(&one, &two)
}

fn beside_theirs() -> Outcome {
    let database = start()?;
    let string = database.database("spire")?;
    let (one, mut two) = (Site::on_database("postgres", &string)?, Site::on_database("postgres", &string)?);
    two.server_programs = programs::theirs()?;
    share(&one, &two)
}

/// What one server is told reaches the agents of the other, and workloads of either trust both.
pub(crate) fn share(one: &Site, two: &Site) -> Outcome {
    let mut first = one.start_server()?;
    let mut second = two.start_server()?;
    for site in [one, two] {
        wait::until("both authorities", SOON, || roots(site).ok().filter(|count| *count == 2))?;
    }
    let (node1, node2) = ("spiffe://example.org/node1", "spiffe://example.org/node2");
    let (agent1, agent2) = (one.join(node1)?, two.join(node2)?);
    let uid = own_uid();
    // Each is told by the server that the agent does not know.
    let (here, there) = ("spiffe://example.org/by-two", "spiffe://example.org/by-one");
    let by_two = two.entry(node1, here, &uid, &[])?;
    let by_one = one.entry(node2, there, &uid, &[])?;
    one.wait_identities(&[here])?;
    two.wait_identities(&[there])?;
    for site in [one, two] {
        wait::until("trust in both servers", SOON, || {
            let bundle = site.path("bundle");
            std::fs::create_dir_all(&bundle).ok()?;
            let args = ["api", "fetch", "x509", "-timeout", "20s", "-write", bundle.to_str()?];
            site.workload(&args).success().ok()?;
            let pem = std::fs::read_to_string(bundle.join("bundle.0.pem")).ok()?;
            (crate::harness::svid::certificates(&pem) == 2).then_some(())
        })?;
    }
    // A change and a deletion go the same way.
    one.cli(&["entry", "delete", "-entryID", &by_two])?;
    two.cli(&["entry", "delete", "-entryID", &by_one])?;
    one.entry(node2, here, &uid, &[])?;
    two.entry(node1, there, &uid, &[])?;
    one.wait_identities(&[there])?;
    two.wait_identities(&[here])?;
    // Either may go away.
    assert_eq!(first.stop()?, 0);
    two.entry(node2, "spiffe://example.org/alone", &uid, &[])?;
    two.wait_identities(&[here, "spiffe://example.org/alone"])?;
    assert_eq!(second.stop()?, 0);
    drop((agent1, agent2));
    Ok(())
}

fn take_over() -> Outcome {
    let database = start()?;
    let mut site = Site::on_database("postgres", &database.database("spire")?)?;
    let mut turns = Turns::begin(&mut site)?;
    let columns = "SELECT table_name, column_name, data_type, column_default FROM information_schema.columns \
                   WHERE table_schema = 'public' ORDER BY 1, ordinal_position";
    let indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1";
    let schema = |name| -> Result<_> { Ok((database.sql(name, columns)?, database.sql(name, indexes)?)) };
    let theirs_made = schema("spire")?;
    turns.take()?;
    let mut new = Site::on_database("postgres", &database.database("new")?)?;
    turns::made_by_ours(&mut new, || {
        assert_eq!(schema("new")?, theirs_made);
        Ok(())
    })
}

/// A server that cannot have its database does not start, and says why.
fn wrong_settings() -> Outcome {
    for (datastore, reason) in [
        ("database_type = \"oracle\"\nconnection_string = \"x\"", "unsupported database_type: oracle"),
        ("database_type = \"postgres\"", "connection_string must be set"),
        (
            "database_type = \"postgres\"\nconnection_string = \"host=127.0.0.1 port=1 sslmode=disable\"",
            "cannot connect to the database at 127.0.0.1:1/",
        ),
        ("database_type = \"postgres\"\nconnection_string = \"port=x\"", "wrong value for"),
        (
            "database_type \"aws_postgres\" {\n}\nconnection_string = \"host=127.0.0.1\"",
            "region must be specified",
        ),
    ] {
        let mut site = Site::new()?;
        site.server.datastore = Some(datastore.to_owned());
        let mut server = site.spawn_server()?;
        server.wait_for(&[reason], SOON)?;
        assert!(!server.wait_exit(SOON)?.success(), "{datastore}");
    }
    Ok(())
}
