//! The drill of docs/backup.md: the server's database and keys are lost and come back from a backup that is older than its
//! authorities, and what was issued since goes on to be trusted.

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use spire_testkit::{Error, Result, Run, place, wait};

use crate::harness::level::{never_failed, wait_not_signed_by};
use crate::harness::peer::Peer;
use crate::harness::programs;
use crate::harness::site::text;
use crate::harness::{Case, Level, Need, Outcome, SOON, Site, svid};
use crate::rebootstrap::Scene;

pub(crate) fn cases() -> Vec<Case> {
    const GO: &[Need] = &[Need::Ours, Need::Peer(Peer::Go)];
    vec![
        Case { name: "backup::workloads_carry_on", needs: GO, run: workloads },
        Case { name: "backup::agents_attest_again", needs: &[Need::Ours], run: agents },
        Case { name: "backup::what_is_no_bundle_is_refused", needs: &[Need::Ours], run: refused },
    ]
}

/// A copy of the keys and, from a server that runs, of the database.
struct Backup {
    keys: PathBuf,
    database: PathBuf,
}

impl Backup {
    fn take(site: &Site) -> Result<Self> {
        let backup = Self { keys: site.path("backup.json"), database: site.path("backup.sqlite3") };
        copy(&keys(site), &backup.keys)?;
        let live = Connection::open(database(site)).map_err(sql)?;
        live.execute("VACUUM INTO ?1", [text(&backup.database)]).map_err(sql)?;
        Ok(backup)
    }

    /// Puts it in the place of what the server had, as `spire restore` expects it.
    fn put_back(&self, site: &Site) -> Result<()> {
        for end in ["", "-wal", "-shm"] {
            let path = PathBuf::from(format!("{}{end}", text(&database(site))));
            if path.exists() {
                std::fs::remove_file(&path).map_err(|error| Error::doing(path.display(), error))?;
            }
        }
        copy(&self.database, &database(site))?;
        copy(&self.keys, &keys(site))
    }
}

fn database(site: &Site) -> PathBuf {
    site.server.data().join("datastore.sqlite3")
}

fn keys(site: &Site) -> PathBuf {
    site.server.data().join("keys.json")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).map(drop).map_err(|error| Error::doing(from.display(), error))
}

fn sql(error: rusqlite::Error) -> Error {
    Error::doing("the database", error)
}

/// `spire restore` with these bundles.
fn restore(site: &Site, bundles: &[&str]) -> Run {
    let file = site.path("server.conf");
    let mut run =
        Run::new(programs::under_test().folder.join("spire")).args(&["restore", "-config", text(&file)]);
    for bundle in bundles {
        run = run.args(&["-bundle", bundle]);
    }
    run.within(site.folder())
}

fn rotate(level: &Level, kind: &str) -> Result<String> {
    let new = level.prepare(kind)?;
    level.change(kind, "activate", &new)?;
    Ok(new)
}

fn workloads() -> Outcome {
    // SVIDs of workloads are renewed within the test, and outlive the time without a server; the agent's is as old as the backup.
    let mut level = Level::root(
        programs::under_test(),
        &["default_x509_svid_ttl = \"80s\"", "default_jwt_svid_ttl = \"10m\"", "agent_ttl = \"1h\""],
    )?;
    let fetcher = format!("unix:path:{}", text(&level.site.agent_programs.agent()));
    level.site.entry(&level.agent_id(), "spiffe://example.org/fetcher", &fetcher, &[])?;
    let (ping, old) = {
        let (service, client) = (level.workload("service")?, level.workload("client")?);
        let (running, address) = service.serve(&client)?;
        let ping = client.spawn("ping", &[&address, &service.id])?;
        let old = level.authority("x509", "active")?;
        ping.wait_for(&["signed ", &old], SOON)?;
        ((ping, running), old)
    };
    let unused = level.site.token("spiffe://example.org/never")?;
    let backup = Backup::take(&level.site)?;

    // Life goes on: other authorities sign, and what they signed is all that is in use.
    let new = rotate(&level, "x509")?;
    rotate(&level, "jwt")?;
    wait_not_signed_by(&ping.0, &old)?;
    let late = level.site.entry(&level.agent_id(), "spiffe://example.org/late", "unix:uid:4242", &[])?;
    let minted =
        level.site.cli(&["jwt", "mint", "-spiffeID", "spiffe://example.org/m", "-audience", "a"])?.stdout;
    level.site.workload(&["api", "fetch", "x509", "-write", text(level.site.folder())]).success()?;
    let published = level.site.cli(&["bundle", "show", "-format", "spiffe"])?.stdout;
    place::write(&level.site.path("published.json"), &published)?;

    level.server.kill()?;
    backup.put_back(&level.site)?;
    // One from an agent, one from where the bundle was published: the second has the keys of tokens too.
    let done = restore(&level.site, &["bundle.0.pem", "published.json"]).success()?;
    assert!(done.stderr.contains(&format!("Added X.509 authority {new}\n")), "{done}");
    assert!(done.stderr.contains("1 more X.509 authorities and 1 more keys"), "{done}");
    let again = restore(&level.site, &["bundle.0.pem", "published.json"]).success()?;
    assert!(again.stderr.contains("0 more X.509 authorities and 0 more keys"), "{again}");
    let tokens: i64 = Connection::open(database(&level.site))
        .and_then(|conn| conn.query_row("SELECT COUNT(*) FROM join_tokens", [], |row| row.get(0)))
        .map_err(sql)?;
    assert_eq!(tokens, 0, "{unused} may have been used");

    level.server = level.site.start_server()?;
    assert_eq!(level.authority("x509", "active")?, old, "the old authority signs again");
    // The agent goes on as it is: it hears of new entries and gets SVIDs for them.
    let (other, another) = (level.workload("other")?, level.workload("another")?);
    let (_other, address) = other.serve(&another)?;
    another.call(&address, &other)?;
    assert!(!level.agent.lines().iter().skip(1).any(|line| line.contains("Agent crashed")));
    // What the lost authority signed is trusted until everything is renewed.
    let validate = ["api", "validate", "jwt", "-audience", "a", "-svid", minted.trim()];
    level.site.workload(&validate).success()?;
    wait_not_signed_by(&ping.0, &new)?;
    never_failed(&ping.0);
    let bundle = svid::json(&level.site.cli(&["bundle", "show", "-format", "spiffe"])?.stdout)?;
    let before = svid::json(&published)?;
    assert!(bundle["spiffe_sequence"].as_u64() > before["spiffe_sequence"].as_u64(), "{bundle}");
    let kids = |bundle: &serde_json::Value| -> Vec<String> {
        let keys = bundle["keys"].as_array().cloned().unwrap_or_default();
        keys.iter().map(|key| format!("{}{}", key["kid"], key["x5c"])).collect()
    };
    let all = kids(&bundle);
    assert!(kids(&before).iter().all(|kid| all.contains(kid)), "{before}{bundle}");
    // What came after the backup is gone, and files bring it back.
    level.site.command(&["entry", "show", "-entryID", &late]).output()?.exits_with(1)?;
    Ok(())
}

/// An agent that got its SVID after the backup attests again, and its workloads with it.
fn agents() -> Outcome {
    let mut scene = Scene::new("never")?;
    // Digests of large programs take seconds on a busy machine.
    scene.site.agent.unix.push_str("\n            workload_size_limit = -1");
    let agent = scene.attested()?;
    scene.works()?;
    let backup = Backup::take(&scene.site)?;
    let before = scene.site.attested_agent()?["x509svid_serial_number"].clone();
    let mark = agent.mark();
    scene.site.cli(&["agent", "evict", "-spiffeID", crate::rebootstrap::ID])?;
    agent.wait_after(mark, &["Successfully reattested node"], SOON)?;
    let between = scene.site.attested_agent()?["x509svid_serial_number"].clone();
    assert_ne!(before, between);

    scene.server.kill()?;
    backup.put_back(&scene.site)?;
    restore(&scene.site, &[]).success()?;
    let mark = agent.mark();
    scene.server = scene.site.start_server()?;
    scene.server.wait_for(&["Agent SVID is not active"], SOON)?;
    agent.wait_after(mark, &["Successfully reattested node"], SOON)?;
    scene.site.wait_identities(&["spiffe://example.org/w"])?;
    wait::until("the new SVID of the agent", SOON, || {
        let now = scene.site.attested_agent().ok()?["x509svid_serial_number"].clone();
        (now != before && now != between).then_some(())
    })?;
    Ok(())
}

fn refused() -> Outcome {
    let site = Site::new()?;
    let mut server = site.start_server()?;
    site.cli(&["x509", "mint", "-spiffeID", "spiffe://example.org/x", "-write", text(site.folder())])?;
    server.stop()?;
    let cases =
        [("svid.pem", "is no authority"), ("key.pem", "key.pem: "), ("none.pem", "cannot read none.pem")];
    for (file, why) in cases {
        let told = restore(&site, &[file]).output()?.exits_with(1)?;
        assert!(told.stderr.starts_with("Error: ") && told.stderr.contains(why), "{told}");
    }
    let other = Site::new()?;
    place::write(&other.path("server.conf"), &other.server.text())?;
    std::fs::create_dir_all(other.server.data())?;
    let told = restore(&other, &[]).output()?.exits_with(1)?;
    assert!(
        told.stderr.contains("the database has no bundle of example.org: is it the right one?"),
        "{told}"
    );
    Ok(())
}
