//! Node attestation by a TPM: `tpm_devid` with a TPM in software, on both sides.

use std::path::PathBuf;

use spire_testkit::swtpm::{DEVID, Manufacturer, Swtpm};
use spire_testkit::{Daemon, Result, Run};

use crate::harness::site::{attestations, own_uid, text};
use crate::harness::{Case, Need, Outcome, SOON, Site, programs};

pub(crate) fn cases() -> Vec<Case> {
    const NEEDS: &[Need] = &[Need::Swtpm, Need::Openssl];
    const MIXED: &[Need] = &[Need::Swtpm, Need::Openssl, Need::Reference];
    vec![
        Case { name: "tpm::an_agent_attests_and_serves", needs: NEEDS, run: attests },
        Case { name: "tpm::a_tpm_of_another_maker_is_refused", needs: NEEDS, run: other_maker },
        Case { name: "tpm::a_certificate_for_a_key_elsewhere_is_refused", needs: NEEDS, run: key_elsewhere },
        Case { name: "tpm::their_agent_attests_to_our_server", needs: MIXED, run: their_agent },
        Case { name: "tpm::our_agent_attests_to_their_server", needs: MIXED, run: their_server },
    ]
}

const WORKLOAD: &str = "spiffe://example.org/w";
const NODE: &str = "spiffe://example.org/node";

/// A site whose agent has a TPM with a DevID.
struct Station {
    site: Site,
    /// Ends when the test does.
    _tpm: Swtpm,
}

impl Station {
    fn new(rsa: bool) -> Result<Self> {
        let mut site = Site::new()?;
        let maker = Manufacturer::new(&site.path("maker"))?;
        maker.make(&site.path("state"), true)?;
        let tpm = Swtpm::start(&site.path(""))?;
        let key = tpm.make_devid(rsa, "", "", DEVID)?;
        let openssl = |args: &[&str]| Run::new("openssl").args(args).within(&site.path("")).success();
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-subj",
            "/CN=DevID CA",
            "-days",
            "1",
        ])?;
        let key_file = text(&key.pem);
        openssl(&[
            "x509",
            "-new",
            "-force_pubkey",
            key_file,
            "-subj",
            "/CN=device-1",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-days",
            "1",
            "-out",
            "devid.pem",
        ])?;
        // Keys as SPIRE's agent wants them, without their size.
        for (file, raw) in [(&key.public, "raw.pub"), (&key.private, "raw.priv")] {
            let bytes = std::fs::read(file).unwrap_or_default();
            std::fs::write(site.path(raw), bytes.get(2..).unwrap_or_default())
                .map_err(|error| spire_testkit::Error::doing(raw, error))?;
        }
        site.server.plugins = server_plugin(&site.path("ca.pem"), &maker.certificate());
        let settings = format!(
            "devid_cert_path = \"{}\"\ndevid_pub_path = \"{}\"\ndevid_priv_path = \"{}\"\ntpm_device_path = \"{}\"\n",
            site.path("devid.pem").display(),
            site.path("raw.pub").display(),
            site.path("raw.priv").display(),
            tpm.socket().display(),
        );
        site.agent.attestor = ("tpm_devid", settings);
        Ok(Self { site, _tpm: tpm })
    }
}

fn server_plugin(devid: &std::path::Path, endorsement: &std::path::Path) -> String {
    format!(
        "    NodeAttestor \"tpm_devid\" {{ plugin_data {{\n        devid_ca_path = \"{}\"\n        \
         endorsement_ca_path = \"{}\"\n    }} }}\n",
        devid.display(),
        endorsement.display(),
    )
}

fn attests() -> Outcome {
    for rsa in [true, false] {
        let station = Station::new(rsa)?;
        walk(&station.site)?;
    }
    Ok(())
}

/// An agent attests, a workload gets an identity by the node's selectors, and the agent attests again from nothing.
fn walk(site: &Site) -> Outcome {
    let server = site.start_server()?;
    let mut agent = site.start_agent(&[])?;
    agent.wait_for(&["Node attestation was successful"], SOON)?;
    let attested = site.attested_agent()?;
    assert_eq!(attested["attestation_type"], "tpm_devid");
    assert_eq!(attested["can_reattest"], true);
    let path = attested["id"]["path"].as_str().unwrap_or_default().to_owned();
    assert!(path.starts_with("/spire/agent/tpm_devid/") && path.len() == 23 + 40, "{path}");
    let shown = attested["selectors"].to_string();
    for selector in ["subject:cn:device-1", "issuer:cn:DevID CA", "ca:fingerprint:"] {
        assert!(shown.contains(selector), "{shown}");
    }
    let selectors = ["-node", "-selector", "tpm_devid:issuer:cn:DevID CA"];
    let node = ["entry", "create", "-spiffeID", NODE, "-selector", "tpm_devid:subject:cn:device-1"];
    site.cli(&[&node[..], &selectors].concat())?;
    site.entry(NODE, WORKLOAD, &own_uid(), &[])?;
    site.wait_identities(&[WORKLOAD])?;

    agent.stop()?;
    let data: PathBuf = site.agent.data();
    std::fs::remove_dir_all(&data)?;
    let agent = site.start_agent(&[])?;
    agent.wait_for(&["Node attestation was successful"], SOON)?;
    assert_eq!(site.attested_agent()?["id"]["path"], path);
    site.wait_identities(&[WORKLOAD])?;
    drop(server);
    Ok(())
}

/// The server says why, and so does the agent.
fn refused(server: &Daemon, agent: &Daemon, why: &str) -> Outcome {
    server.wait_for(&["level=error", why], SOON)?;
    agent.wait_for(&["code = InvalidArgument", why], SOON)?;
    assert_eq!(attestations(agent), 0);
    Ok(())
}

fn other_maker() -> Outcome {
    let mut station = Station::new(true)?;
    let other = Manufacturer::new(&station.site.path("other"))?;
    other.make(&station.site.path("unused"), true)?;
    station.site.server.plugins = server_plugin(&station.site.path("ca.pem"), &other.certificate());
    let server = station.site.start_server()?;
    let agent = station.site.spawn_agent(&[])?;
    refused(&server, &agent, "nodeattestor(tpm_devid): cannot verify EK signature: ")?;
    assert_eq!(station.site.cli(&["agent", "list"])?.stdout, "No attested agents found\n");
    Ok(())
}

/// A key in software, signed for by the right authority, beside a TPM of the right maker.
fn key_elsewhere() -> Outcome {
    let station = Station::new(true)?;
    let openssl = |args: &[&str]| Run::new("openssl").args(args).within(&station.site.path("")).success();
    openssl(&["genrsa", "-out", "soft.key", "2048"])?;
    openssl(&["rsa", "-in", "soft.key", "-pubout", "-out", "soft.pub"])?;
    openssl(&[
        "x509",
        "-new",
        "-force_pubkey",
        "soft.pub",
        "-subj",
        "/CN=device-1",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-days",
        "1",
        "-out",
        "devid.pem",
    ])?;
    let server = station.site.start_server()?;
    let agent = station.site.spawn_agent(&[])?;
    let ours = programs::under_test().ours;
    // SPIRE sees only that the key did not sign.
    let why = if ours {
        "DevID key is not the key of the DevID certificate"
    } else {
        "devID challenge verification failed"
    };
    refused(&server, &agent, why)
}

fn their_agent() -> Outcome {
    let mut station = Station::new(true)?;
    station.site.agent_programs = programs::theirs()?;
    walk(&station.site)
}

fn their_server() -> Outcome {
    let mut station = Station::new(false)?;
    station.site.server_programs = programs::theirs()?;
    walk(&station.site)
}
