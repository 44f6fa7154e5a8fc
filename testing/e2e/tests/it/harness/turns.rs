//! A server's data under two implementations by turns: each finds what the other left, and goes on with it.

use serde_json::Value;
use spire_testkit::{Daemon, Result};

use crate::harness::site::{attestations, own_uid};
use crate::harness::{Outcome, SOON, Site, programs};

const NODE: &str = "spiffe://example.org/node";
const WORKLOAD: &str = "spiffe://example.org/w";

/// A site whose server the reference started, with an agent and entries. The agent is of the programs under test throughout.
pub(crate) struct Turns<'a> {
    pub(crate) site: &'a mut Site,
    server: Daemon,
    agent: Daemon,
}

impl<'a> Turns<'a> {
    pub(crate) fn begin(site: &'a mut Site) -> Result<Self> {
        site.server_programs = programs::theirs()?;
        let server = site.start_server()?;
        let agent = site.join(NODE)?;
        let more = ["-dns", "b.test", "-dns", "a.test", "-hint", "h"];
        site.entry(NODE, WORKLOAD, &own_uid(), &more)?;
        let more = ["-admin", "-jwtSVIDTTL", "70"];
        site.entry(NODE, "spiffe://example.org/other", "unix:uid:4242", &more)?;
        site.wait_identities(&[WORKLOAD])?;
        Ok(Self { site, server, agent })
    }

    /// Hands the data over and back twice. The server that is left running is the reference's.
    pub(crate) fn take(&mut self) -> Outcome {
        let Self { site, server, agent } = self;
        let turns = [programs::under_test(), programs::theirs()?];
        let mut before = state(site)?;
        for (round, programs) in turns.into_iter().cycle().take(4).enumerate() {
            assert_eq!(server.stop()?, 0);
            site.server_programs = programs;
            *server = site.start_server()?;
            server.wait_for(&["Journal loaded", "jwt_keys=1", "x509_cas=1"], SOON)?;
            assert_eq!(state(site)?, before, "round {round}");
            // It does not only remember: it goes on.
            let new = format!("spiffe://example.org/round-{round}");
            let entry = site.entry(NODE, &new, &own_uid(), &[])?;
            site.wait_identities(&[WORKLOAD, &new])?;
            site.cli(&["entry", "delete", "-entryID", &entry])?;
            site.wait_identities(&[WORKLOAD])?;
            before = state(site)?;
        }
        assert_eq!(attestations(agent), 1);
        Ok(())
    }
}

/// What must be the same under any server on the same data.
fn state(site: &Site) -> Result<[Value; 3]> {
    let mut agent = site.attested_agent()?;
    // An agent renews its SVID and reports its version whenever it likes.
    for changing in ["x509svid_serial_number", "x509svid_expires_at", "agent_version"] {
        agent[changing] = Value::Null;
    }
    Ok([site.cli_json(&["entry", "show"])?, site.cli_json(&["bundle", "show"])?, agent])
}

/// A schema that the programs under test made, and that `look` may look at, serves the reference's.
pub(crate) fn made_by_ours(site: &mut Site, look: impl FnOnce() -> Outcome) -> Outcome {
    site.server_programs = programs::under_test();
    drop(site.start_server()?);
    look()?;
    site.server_programs = programs::theirs()?;
    site.start_server()?.wait_for(&["Journal loaded", "x509_cas=1"], SOON)?;
    Ok(())
}
