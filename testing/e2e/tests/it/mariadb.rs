//! Servers on MariaDB: taken over from another implementation and given back, and beside its servers.

use serde_json::Value;
use spire_testkit::Result;
use spire_testkit::database::{Mariadb, Options};

use crate::databases::{share, state};
use crate::harness::site::own_uid;
use crate::harness::{Case, Need, Outcome, SOON, Site, programs};

pub(crate) fn cases() -> Vec<Case> {
    const MIXED: &[Need] = &[Need::Mariadb, Need::Ours, Need::Reference];
    vec![
        Case {
            name: "mariadb::servers_share_a_database",
            needs: &[Need::Mariadb, Need::Ours],
            run: two_servers,
        },
        Case { name: "mariadb::beside_the_reference", needs: MIXED, run: beside_theirs },
        Case { name: "mariadb::is_taken_over_and_given_back", needs: MIXED, run: take_over },
    ]
}

const AGENT: &str = "spiffe://example.org/node";
const WORKLOAD: &str = "spiffe://example.org/w";

/// A site whose server keeps its data there.
fn site_on(connection_string: &str) -> Result<Site> {
    let mut site = Site::new()?;
    site.server.datastore =
        Some(format!("database_type = \"mysql\"\n            connection_string = \"{connection_string}\""));
    Ok(site)
}

fn two_servers() -> Outcome {
    let database = Mariadb::start(&Options::default())?;
    let string = database.database("spire")?;
    share(&site_on(&string)?, &site_on(&string)?)
}

fn beside_theirs() -> Outcome {
    let database = Mariadb::start(&Options::default())?;
    let string = database.database("spire")?;
    let (one, mut two) = (site_on(&string)?, site_on(&string)?);
    two.server_programs = programs::reference().ok_or("SPIRE_REFERENCE_BIN")?.clone();
    share(&one, &two)
}

fn take_over() -> Outcome {
    let database = Mariadb::start(&Options::default())?;
    let mut site = site_on(&database.database("spire")?)?;
    let ours = programs::under_test().clone();
    let theirs = programs::reference().ok_or("SPIRE_REFERENCE_BIN")?.clone();
    site.server_programs = theirs.clone();
    let mut server = site.start_server()?;
    let agent = site.join(AGENT)?;
    site.entry(AGENT, WORKLOAD, &own_uid(), &["-dns", "b.test", "-dns", "a.test", "-hint", "h"])?;
    site.entry(AGENT, "spiffe://example.org/other", "unix:uid:4242", &["-admin", "-jwtSVIDTTL", "70"])?;
    site.wait_identities(&[WORKLOAD])?;
    let mut before: [Value; 3] = state(&site)?;
    for (round, programs) in [&ours, &theirs, &ours, &theirs].into_iter().enumerate() {
        assert_eq!(server.stop()?, 0);
        site.server_programs = programs.clone();
        server = site.start_server()?;
        server.wait_for(&["Journal loaded", "jwt_keys=1", "x509_cas=1"], SOON)?;
        assert_eq!(state(&site)?, before, "round {round}");
        let new = format!("spiffe://example.org/round-{round}");
        let entry = site.entry(AGENT, &new, &own_uid(), &[])?;
        site.wait_identities(&[WORKLOAD, &new])?;
        site.cli(&["entry", "delete", "-entryID", &entry])?;
        site.wait_identities(&[WORKLOAD])?;
        before = state(&site)?;
    }
    let attested =
        agent.lines().iter().filter(|line| line.contains("Node attestation was successful")).count();
    assert_eq!(attested, 1);
    // Theirs goes on with a schema that ours makes.
    let mut new = site_on(&database.database("new")?)?;
    new.server_programs = ours;
    drop(new.start_server()?);
    new.server_programs = theirs;
    let their_server = new.start_server()?;
    their_server.wait_for(&["Journal loaded", "x509_cas=1"], SOON)?;
    Ok(())
}
