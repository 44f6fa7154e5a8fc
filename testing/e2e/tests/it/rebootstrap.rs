//! Agents of a server whose authorities were all replaced, as after a disaster: what they do by `rebootstrap_mode`.

use std::path::Path;

use spire_testkit::{Daemon, Error, Result, place};

use crate::harness::site::{attestations, own_uid, text};
use crate::harness::{Case, Outcome, SOON, Site};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "rebootstrap::never_ends_the_agent", needs: &[], run: never },
        Case { name: "rebootstrap::auto_finds_new_trust_while_running", needs: &[], run: running },
        Case { name: "rebootstrap::auto_finds_new_trust_at_start", needs: &[], run: at_start },
        Case { name: "rebootstrap::always_needs_an_attestor_that_can_attest_again", needs: &[], run: always },
        Case { name: "rebootstrap::insecure_bootstrap_excludes_it", needs: &[], run: insecure },
    ]
}

pub(crate) const ID: &str = "spiffe://example.org/spire/agent/x509pop/node";

/// A site whose agent proves itself by an SVID that was minted once, and trusts a file.
pub(crate) struct Scene {
    pub(crate) site: Site,
    pub(crate) server: Daemon,
}

impl Scene {
    pub(crate) fn new(mode: &str) -> Result<Self> {
        let mut site = Site::new()?;
        site.server.plugins = format!(
            "    NodeAttestor \"x509pop\" {{\n        plugin_data {{\n            ca_bundle_path = \"{}\"\n            \
             agent_path_template = \"/x509pop/node\"\n        }}\n    }}\n",
            site.path("nodes.pem").display()
        );
        site.agent.attestor = (
            "x509pop",
            format!(
                "private_key_path = \"{0}/key.pem\"\ncertificate_path = \"{0}/svid.pem\"\n",
                site.path("node").display()
            ),
        );
        site.agent.lines[0] = format!(
            "trust_bundle_path = \"{}\"\n    rebootstrap_mode = \"{mode}\"\n    rebootstrap_delay = \"1s\"",
            site.path("bootstrap.pem").display()
        );
        node_certificate(&site)?;
        let server = site.start_server()?;
        let scene = Self { site, server };
        scene.publish()?;
        Ok(scene)
    }

    /// Puts the server's bundle where the agent looks for its first trust.
    fn publish(&self) -> Result<()> {
        let bundle = self.site.cli(&["bundle", "show"])?.stdout;
        place::write(&self.site.path("bootstrap.pem"), &bundle)
    }

    /// The same server with nothing of what it had.
    fn replace_server(&mut self) -> Result<()> {
        self.server.stop()?;
        remove(&self.site.server.data())?;
        self.server = self.site.start_server()?;
        Ok(())
    }

    pub(crate) fn attested(&self) -> Result<Daemon> {
        let agent = self.site.start_agent(&[])?;
        agent.wait_for(&["Node attestation was successful", ID], SOON)?;
        Ok(agent)
    }

    /// Whether the agent serves what the server says.
    pub(crate) fn works(&self) -> Outcome {
        self.site.entry(ID, "spiffe://example.org/w", &own_uid(), &[])?;
        self.site.wait_identities(&["spiffe://example.org/w"])?;
        Ok(())
    }
}

fn remove(folder: &Path) -> Result<()> {
    std::fs::remove_dir_all(folder).map_err(|error| Error::doing(folder.display(), error))
}

/// A certificate of an authority that outlives the server: another server mints it.
fn node_certificate(site: &Site) -> Result<()> {
    let other = Site::new()?;
    let _server = other.start_server()?;
    let folder = site.path("node");
    std::fs::create_dir_all(&folder).map_err(|error| Error::doing(folder.display(), error))?;
    other.cli(&["x509", "mint", "-spiffeID", "spiffe://example.org/n", "-write", text(&folder)])?;
    place::write(&site.path("nodes.pem"), &other.cli(&["bundle", "show"])?.stdout)
}

fn never() -> Outcome {
    let mut scene = Scene::new("never")?;
    let mut agent = scene.attested()?;
    scene.replace_server()?;
    let status = agent.wait_exit(SOON)?;
    assert_eq!(status.code(), Some(1), "{}", agent.error("replaced"));
    agent.wait_for(&["Agent crashed", "failed to sync with SPIRE Server: "], SOON)?;
    // Its own data keep it from trusting the new server, whatever the file says now.
    scene.publish()?;
    let agent = scene.site.spawn_agent(&[])?;
    agent.wait_for(&["x509: certificate signed by unknown authority"], SOON)?;
    assert_eq!(attestations(&agent), 0);
    Ok(())
}

fn running() -> Outcome {
    let mut scene = Scene::new("auto")?;
    let mut agent = scene.attested()?;
    scene.replace_server()?;
    agent.wait_for(&["Trust Bundle and Server don't agree, ignoring for now", "time_left="], SOON)?;
    agent.wait_for(&["Trust Bundle and Server don't agree, rebootstrapping"], SOON)?;
    assert_eq!(agent.wait_exit(SOON)?.code(), Some(1), "{}", agent.error("replaced"));
    agent.wait_for(&["Agent crashed", "shutting down for rebootstrapping"], SOON)?;
    let stored = std::fs::read_to_string(scene.site.agent.data().join("agent-data.json"))?;
    assert!(stored.contains("\"bootstrap_use\":2"), "{stored}");
    // Started again, it keeps asking until the file has what the server has.
    let agent = scene.site.spawn_agent(&[])?;
    agent.wait_for(
        &["Failed to retrieve attestation result", "x509: certificate signed by unknown authority"],
        SOON,
    )?;
    scene.publish()?;
    agent.wait_for(&["Node attestation was successful", ID], SOON)?;
    scene.works()
}

fn at_start() -> Outcome {
    let mut scene = Scene::new("auto")?;
    let mut agent = scene.attested()?;
    agent.stop()?;
    scene.replace_server()?;
    scene.publish()?;
    let mut agent = scene.site.spawn_agent(&[])?;
    agent.wait_for(&["Trust Bundle and Server don't agree, rebootstrapping"], SOON)?;
    assert_eq!(agent.wait_exit(SOON)?.code(), Some(1), "{}", agent.error("replaced"));
    agent.wait_for(&["Agent needs to rebootstrap. shutting down"], SOON)?;
    let _agent = scene.attested()?;
    scene.works()
}

fn always() -> Outcome {
    let mut site = Site::new()?;
    let _server = site.start_server()?;
    let bundle = site.cli(&["bundle", "show"])?.stdout;
    let file = site.path("bootstrap.pem");
    place::write(&file, &bundle)?;
    site.agent.lines[0] =
        format!("trust_bundle_path = \"{}\"\n    rebootstrap_mode = \"always\"", file.display());
    let token = site.token("spiffe://example.org/node")?;
    let mut agent = site.spawn_agent(&["-joinToken", &token])?;
    let why = "you have requested rebootstrap support but the NodeAttestor plugin or the spire server configuration is not \
               allowing it";
    agent.wait_for(&["Agent crashed", why], SOON)?;
    assert_eq!(agent.wait_exit(SOON)?.code(), Some(1));
    // With auto it goes on without.
    site.agent.lines[0] = site.agent.lines[0].replace("always", "auto");
    let agent = site.start_agent(&[])?;
    agent.wait_for(&[why, "Disabling"], SOON)?;
    Ok(())
}

fn insecure() -> Outcome {
    let mut site = Site::new()?;
    site.agent.lines.push("rebootstrap_mode = \"auto\"".to_owned());
    let mut agent = site.spawn_agent(&[])?;
    assert_eq!(agent.wait_exit(SOON)?.code(), Some(1));
    agent.wait_for(&["insecure_bootstrap option can not be used with rebootstrapping"], SOON)?;
    Ok(())
}
