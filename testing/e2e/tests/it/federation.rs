//! Two trust domains that federate: relationships from file and from commands, workloads of one that trust those of the
//! other, administrators from abroad.

use std::path::{Path, PathBuf};

use libtest_mimic::Failed;
use spire_testkit::{Daemon, Run, place, wait};

use crate::harness::peer::Peer;
use crate::harness::site::{own_uid, text};
use crate::harness::{Case, Need, Outcome, SOON, Site, programs};

pub(crate) fn cases() -> Vec<Case> {
    const GO: &[Need] = &[Need::Peer(Peer::Go)];
    vec![
        Case { name: "federation::relationships_are_made_used_and_ended", needs: &[], run: whole_life },
        Case {
            name: "federation::a_new_authority_reaches_workloads_abroad",
            needs: &[],
            run: rotation_abroad,
        },
        Case {
            name: "federation::the_old_form_of_a_relationship_works",
            needs: &[Need::Ours],
            run: old_form,
        },
        Case { name: "federation::go_workloads_trust_each_other", needs: GO, run: go_mtls },
        Case { name: "federation::go_validates_tokens_from_abroad", needs: GO, run: go_tokens },
        Case { name: "federation::administrators_may_come_from_abroad", needs: GO, run: foreign_admin },
        Case { name: "federation::go_reads_our_endpoint", needs: GO, run: go_reads },
        Case {
            name: "federation::with_another_implementation",
            needs: &[Need::Reference],
            run: with_another_implementation,
        },
    ]
}

pub(crate) const HERE: &str = "example.org";
pub(crate) const ABROAD: &str = "abroad.test";
const NODE: &str = "node";

type Result<T> = std::result::Result<T, Failed>;

/// A trust domain with a bundle endpoint.
pub(crate) struct Domain {
    pub(crate) site: Site,
    pub(crate) name: &'static str,
    pub(crate) endpoint: u16,
}

impl Domain {
    /// With its own programs, nothing started. Its endpoint shows the server's SVID.
    pub(crate) fn new(name: &'static str) -> Result<Self> {
        let domain = Self::without_endpoint(name)?;
        Ok(domain.endpoint("profile \"https_spiffe\" {}"))
    }

    pub(crate) fn without_endpoint(name: &'static str) -> Result<Self> {
        let mut site = Site::new()?;
        name.clone_into(&mut site.server.trust_domain);
        name.clone_into(&mut site.agent.trust_domain);
        Ok(Self { site, name, endpoint: place::port()? })
    }

    /// Serves its bundle with this profile.
    pub(crate) fn endpoint(self, profile: &str) -> Self {
        let endpoint = format!(
            "bundle_endpoint {{ address = \"127.0.0.1\" port = {} refresh_hint = \"60s\" {profile} }}",
            self.endpoint
        );
        self.federation(&endpoint)
    }

    /// Adds lines to the federation section.
    pub(crate) fn federation(mut self, lines: &str) -> Self {
        let old = self.site.server.lines.iter_mut().find(|line| line.starts_with("federation {"));
        match old {
            Some(section) => {
                section.truncate(section.len() - 1);
                section.push_str(&format!("\n{lines}\n}}"));
            }
            None => self.site.server.lines.push(format!("federation {{\n{lines}\n}}")),
        }
        self
    }

    pub(crate) fn id(&self, path: &str) -> String {
        format!("spiffe://{}/{path}", self.name)
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}/", self.endpoint)
    }

    /// Its bundle in a file.
    pub(crate) fn bundle_file(&self) -> Result<PathBuf> {
        let path = self.site.path("bundle.json");
        place::write(&path, &self.site.cli(&["bundle", "show", "-format", "spiffe"])?.stdout)?;
        Ok(path)
    }

    /// Sets the bundle of another trust domain, as an operator who carried it over.
    pub(crate) fn learn(&self, other: &Self) -> Outcome {
        let path = other.bundle_file()?;
        let id = format!("spiffe://{}", other.name);
        let set = ["bundle", "set", "-format", "spiffe", "-id", &id, "-path", text(&path)];
        let output = self.site.cli(&set)?;
        assert_eq!(output.stdout, "bundle set.\n");
        Ok(())
    }

    /// How many X.509 authorities of `other` are known here.
    pub(crate) fn authorities_of(&self, other: &Self) -> Result<usize> {
        let id = format!("spiffe://{}", other.name);
        Ok(self.site.cli(&["bundle", "list", "-id", &id])?.stdout.matches("BEGIN CERTIFICATE").count())
    }

    /// An entry for this user's processes that federates with `other`.
    pub(crate) fn federated_entry(&self, path: &str, selector: &str, other: &Self) -> Result<String> {
        let with = format!("spiffe://{}", other.name);
        Ok(self.site.entry(&self.id(NODE), &self.id(path), selector, &["-federatesWith", &with])?)
    }

    pub(crate) fn join(&self) -> Result<Daemon> {
        Ok(self.site.join(&self.id(NODE))?)
    }

    /// Waits until a workload's X.509 fetch says all of these.
    pub(crate) fn wait_fetched(&self, parts: &[&str]) -> Outcome {
        let mut last = String::new();
        let found = wait::until(&format!("fetch with {parts:?}"), SOON, || {
            let output = self.site.workload(&["api", "fetch", "x509"]).output().ok()?;
            last = output.to_string();
            parts.iter().all(|part| output.stdout.contains(part)).then_some(())
        });
        found.map_err(|error| Failed::from(format!("{error}: {last}")))
    }
}

/// Relates `here` to `abroad` by its command line, with the bundle to begin with.
fn relate(here: &Domain, abroad: &Domain) -> Outcome {
    relate_by(&here.site, abroad, &abroad.bundle_file()?)
}

/// As [`relate`], by this file.
pub(crate) fn relate_by(here: &Site, abroad: &Domain, bundle: &Path) -> Outcome {
    let (url, id) = (abroad.url(), abroad.id("spire/server"));
    let create = [
        "federation",
        "create",
        "-trustDomain",
        abroad.name,
        "-bundleEndpointURL",
        &url,
        "-bundleEndpointProfile",
        "https_spiffe",
        "-endpointSpiffeID",
        &id,
        "-trustDomainBundleFormat",
        "spiffe",
        "-trustDomainBundlePath",
        text(bundle),
    ];
    let output = here.cli(&create)?;
    assert!(output.stdout.contains(&format!("Trust domain              : {}", abroad.name)), "{output}");
    Ok(())
}

fn refresh(here: &Domain, abroad: &Domain) -> Result<spire_testkit::Output> {
    let id = format!("spiffe://{}", abroad.name);
    Ok(here.site.command(&["federation", "refresh", "-id", &id]).output()?)
}

/// From the first bundle to the last command, with what a workload sees of it.
fn whole_life() -> Outcome {
    let here = Domain::new(HERE)?;
    // The other side has its relationship in its file, and needs a first bundle.
    let abroad = Domain::new(ABROAD)?.federation(&format!(
        "federates_with \"{HERE}\" {{ bundle_endpoint_url = \"{}\" bundle_endpoint_profile \"https_spiffe\" {{ \
         endpoint_spiffe_id = \"{}\" }} }}",
        here.url(),
        here.id("spire/server"),
    ));
    let abroad_server = abroad.site.start_server()?;
    abroad_server
        .wait_for(&["level=info", "Trust domain is now managed", "trust_domain=example.org"], SOON)?;
    abroad_server.wait_for(
        &[
            "level=error",
            "Error updating bundle",
            "can't perform SPIFFE Authentication: local copy of bundle not found",
        ],
        SOON,
    )?;
    let here_server = here.site.start_server()?;
    here_server.wait_for(&["level=info", "Serving bundle endpoint", "refresh_hint=1m0s"], SOON)?;
    let unknown = refresh(&here, &abroad)?.exits_with(1)?;
    assert_eq!(
        unknown.stderr,
        format!("Error: there is no federation relationship with trust domain \"spiffe://{ABROAD}\"\n")
    );
    relate(&here, &abroad)?;
    here_server
        .wait_for(&["Trust domain is now managed", "trust_domain=abroad.test", "https_spiffe"], SOON)?;
    // The follower that had no bundle looks as soon as there is one.
    let mark = abroad_server.mark();
    abroad.learn(&here)?;
    abroad_server.wait_after(mark, &["Scheduling next bundle refresh"], SOON)?;
    for (one, other) in [(&here, &abroad), (&abroad, &here)] {
        assert_eq!(refresh(one, other)?.success()?.stdout, "Bundle refreshed\n");
        assert_eq!(one.authorities_of(other)?, 1);
    }
    let listed = here.site.cli(&["federation", "list"])?;
    assert!(listed.stdout.starts_with("Found 1 federation relationship\n"), "{listed}");

    workloads_federate(&here, &abroad)?;

    // The endpoint goes away, and then is somebody else: the bundle stays.
    drop(abroad_server);
    let down = refresh(&here, &abroad)?.exits_with(1)?;
    let text = format!(
        "failed to fetch federated bundle from endpoint: failed to fetch bundle: Get \"{}\": dial tcp ",
        abroad.url()
    );
    assert!(down.stderr.contains(&text) && down.stderr.contains("connect: connection refused"), "{down}");
    let _abroad_server = abroad.site.start_server()?;
    let wrong = abroad.id("other");
    let update = ["federation", "update", "-trustDomain", ABROAD, "-bundleEndpointURL", &abroad.url()];
    let update = here.site.command(&update).args(&["-bundleEndpointProfile", "https_spiffe"]);
    update.args(&["-endpointSpiffeID", &wrong]).success()?;
    let other = refresh(&here, &abroad)?.exits_with(1)?;
    let unexpected = format!("unexpected ID \"{}\"", abroad.id("spire/server"));
    assert!(other.stderr.contains(&unexpected), "{other}");
    assert_eq!(here.authorities_of(&abroad)?, 1);

    ends(&here, &abroad)
}

fn workloads_federate(here: &Domain, abroad: &Domain) -> Outcome {
    let _agents = (here.join()?, abroad.join()?);
    here.federated_entry("w", &own_uid(), abroad)?;
    abroad.federated_entry("w", &own_uid(), here)?;
    here.wait_fetched(&[&here.id("w"), &format!("[spiffe://{ABROAD}] CA #1 Valid After:")])?;
    abroad.wait_fetched(&[&abroad.id("w"), &format!("[spiffe://{HERE}] CA #1 Valid After:")])?;
    let token = abroad.site.workload(&["api", "fetch", "jwt", "-audience", "a"]).success()?;
    let token = token.stdout.lines().nth(1).unwrap_or_default().trim().to_owned();
    let verdict =
        here.site.workload(&["api", "validate", "jwt", "-audience", "a", "-svid", &token]).success()?;
    assert!(verdict.stdout.starts_with("SVID is valid.\n"), "{verdict}");
    assert!(verdict.stdout.contains(&abroad.id("w")), "{verdict}");
    Ok(())
}

/// The relationship and then the bundle are deleted.
fn ends(here: &Domain, abroad: &Domain) -> Outcome {
    let id = format!("spiffe://{}", abroad.name);
    let deleted = here.site.cli(&["federation", "delete", "-id", &id])?;
    assert!(deleted.stdout.contains("federation relationship deleted."), "{deleted}");
    refresh(here, abroad)?.exits_with(1)?;
    assert_eq!(here.authorities_of(abroad)?, 1, "the bundle outlives the relationship");
    let _agent = here.join()?;
    here.wait_fetched(&[&format!("[{id}] CA #1")])?;
    let restricted = here.site.command(&["bundle", "delete", "-id", &id]).output()?.exits_with(1)?;
    assert!(
        restricted.stderr.contains("cannot delete bundle; federated with 1 registration entries"),
        "{restricted}"
    );
    let dissociated = here.site.cli(&["bundle", "delete", "-id", &id, "-mode", "dissociate"])?;
    assert_eq!(dissociated.stdout, "bundle deleted.\n");
    wait::until("workload without the bundle", SOON, || {
        let output = here.site.workload(&["api", "fetch", "x509"]).output().ok()?;
        (output.code == 0 && !output.stdout.contains(&id)).then_some(())
    })?;
    Ok(())
}

/// A trust domain prepares an authority; abroad, an open stream of a workload has it before anything is signed by it.
fn rotation_abroad() -> Outcome {
    let (here, abroad) = (Domain::new(HERE)?, Domain::new(ABROAD)?);
    let (_here_server, _abroad_server) = (here.site.start_server()?, abroad.site.start_server()?);
    relate(&here, &abroad)?;
    let _agent = here.join()?;
    here.federated_entry("w", &own_uid(), &abroad)?;
    here.wait_fetched(&[&format!("[spiffe://{ABROAD}] CA #1")])?;
    let stream = here.site.watch()?;
    stream.wait_for(&[&format!("[{ABROAD}] CA #1")], SOON)?;
    abroad.site.cli(&["localauthority", "x509", "prepare"])?;
    let mark = stream.mark();
    assert_eq!(refresh(&here, &abroad)?.success()?.stdout, "Bundle refreshed\n");
    assert_eq!(here.authorities_of(&abroad)?, 2);
    stream.wait_after(mark, &[&format!("[{ABROAD}] CA #2")], SOON)?;
    Ok(())
}

/// A copy of the peer's program, which an entry's selector can tell from others by its path.
fn program(domain: &Domain, name: &str) -> Result<(Vec<String>, String)> {
    let path = domain.site.path(name);
    std::fs::copy(&Peer::Go.command()?[0], &path)?;
    Ok((vec![text(&path).to_owned()], format!("unix:path:{}", text(&path))))
}

/// A service here and a client abroad, each knowing the other's SPIFFE ID; and a client whose entry does not federate.
fn go_mtls() -> Outcome {
    let (here, abroad) = (Domain::new(HERE)?, Domain::new(ABROAD)?);
    let (_here_server, _abroad_server) = (here.site.start_server()?, abroad.site.start_server()?);
    relate(&here, &abroad)?;
    relate(&abroad, &here)?;
    let _agents = (here.join()?, abroad.join()?);
    let (service, selector) = program(&here, "service")?;
    here.federated_entry("service", &selector, &abroad)?;
    let (client, selector) = program(&abroad, "client")?;
    abroad.federated_entry("client", &selector, &here)?;
    let (lonely, selector) = program(&abroad, "lonely")?;
    abroad.site.entry(&abroad.id(NODE), &abroad.id("client"), &selector, &[])?;

    let socket = here.site.agent.socket();
    let service = here.site.spawn("service", &service, &["serve", text(&socket), &abroad.id("client")])?;
    let line = service.wait_for(&["listening "], SOON)?;
    let address = line.trim_start_matches("listening ").to_owned();
    let socket = abroad.site.agent.socket();
    let call = |command: &[String], expected: &str| {
        Run::new(&command[0]).args(&["call", text(&socket), &address, expected]).output()
    };
    let reply = call(&client, &here.id("service"))?.success()?;
    assert_eq!(reply.stdout, format!("reply hello to {}\n", abroad.id("client")));
    let wrong = call(&client, &here.id("other"))?.exits_with(1)?;
    assert!(wrong.stderr.contains("unexpected ID"), "{wrong}");
    let without = call(&lonely, &here.id("service"))?.exits_with(1)?;
    assert!(without.stderr.contains("no X.509 bundle for trust domain"), "{without}");
    Ok(())
}

fn go_tokens() -> Outcome {
    let (here, abroad) = (Domain::new(HERE)?, Domain::new(ABROAD)?);
    let (_here_server, _abroad_server) = (here.site.start_server()?, abroad.site.start_server()?);
    relate(&here, &abroad)?;
    let _agents = (here.join()?, abroad.join()?);
    here.federated_entry("w", &own_uid(), &abroad)?;
    abroad.site.entry(&abroad.id(NODE), &abroad.id("w"), &own_uid(), &[])?;
    here.wait_fetched(&[&format!("[spiffe://{ABROAD}] CA #1")])?;
    abroad.wait_fetched(&[&abroad.id("w")])?;
    let token = abroad.site.workload(&["api", "fetch", "jwt", "-audience", "a"]).success()?;
    let token = token.stdout.lines().nth(1).unwrap_or_default().trim().to_owned();
    let socket = here.site.agent.socket();
    let peer = Peer::Go.command()?;
    let output = Run::new(&peer[0]).args(&["validate", text(&socket), "a", &token]).success()?;
    let id = abroad.id("w");
    assert_eq!(output.stdout, format!("validated here {id}\nvalidated there {id}\n"));
    Ok(())
}

/// `admin_ids` may name workloads of another trust domain. They are known by its bundle, as soon as it is there.
fn foreign_admin() -> Outcome {
    const COUNT: &str = "/spire.api.server.bundle.v1.Bundle/CountBundles";
    let (mut here, abroad) = (Domain::new(HERE)?, Domain::new(ABROAD)?);
    here.site.server.lines.push(format!("admin_ids = [\"{}\"]", abroad.id("admin")));
    let (here_server, _abroad_server) = (here.site.start_server()?, abroad.site.start_server()?);
    relate(&abroad, &here)?;
    let _agent = abroad.join()?;
    let (admin, selector) = program(&abroad, "admin")?;
    abroad.federated_entry("admin", &selector, &here)?;
    let (nobody, selector) = program(&abroad, "nobody")?;
    abroad.federated_entry("nobody", &selector, &here)?;
    let (socket, server) = (abroad.site.agent.socket(), here.id("spire/server"));
    let address = format!("127.0.0.1:{}", here.site.server.port);
    let ask = |command: &[String]| -> Result<String> {
        let args = ["admin", text(&socket), &address, &server, COUNT];
        Ok(Run::new(&command[0]).args(&args).success()?.stdout)
    };
    let early = ask(&admin)?;
    assert!(early.starts_with("answered Unavailable "), "{early}");
    here_server.wait_for(
        &["level=warning", "No bundle found for foreign admin trust domain;", "trust_domain=abroad.test"],
        SOON,
    )?;
    here.learn(&abroad)?;
    wait::until("administrator from abroad", SOON, || (ask(&admin).ok()? == "answered OK \n").then_some(()))?;
    let refused = ask(&nobody)?;
    assert!(refused.starts_with("answered Unavailable "), "{refused}");
    Ok(())
}

/// A relationship as it was written up to 1.0.
fn old_form() -> Outcome {
    let abroad = Domain::new(ABROAD)?;
    let _abroad_server = abroad.site.start_server()?;
    let here = Domain::without_endpoint(HERE)?.federation(&format!(
        "federates_with \"{ABROAD}\" {{ bundle_endpoint {{ address = \"localhost\" port = {} }} }}",
        abroad.endpoint
    ));
    let server = here.site.start_server()?;
    server.wait_for(&["level=warning", "Old configuration key bundle_endpoint is read as"], SOON)?;
    here.learn(&abroad)?;
    assert_eq!(refresh(&here, &abroad)?.success()?.stdout, "Bundle refreshed\n");
    Ok(())
}

fn go_reads() -> Outcome {
    let here = Domain::new(HERE)?;
    let _server = here.site.start_server()?;
    let (file, peer) = (here.bundle_file()?, Peer::Go.command()?);
    let fetch = |domain: &str, id: &str| {
        Run::new(&peer[0]).args(&["bundle", &here.url(), domain, text(&file), id]).output()
    };
    let read = fetch(HERE, &here.id("spire/server"))?.success()?;
    assert_eq!(read.stdout, format!("bundle {HERE} x509 1 jwt 1 hint 1m0s sequenced true\n"));
    let wrong = fetch(HERE, &here.id("other"))?.exits_with(1)?;
    assert!(wrong.stderr.contains("unexpected ID"), "{wrong}");
    Ok(())
}

/// Each side fetches from the other, whoever wrote it.
fn with_another_implementation() -> Outcome {
    let theirs = programs::theirs()?;
    let (here, mut abroad) = (Domain::new(HERE)?, Domain::new(ABROAD)?);
    abroad.site.server_programs = theirs;
    abroad.site.agent_programs = theirs;
    let (_here_server, _abroad_server) = (here.site.start_server()?, abroad.site.start_server()?);
    relate(&here, &abroad)?;
    relate(&abroad, &here)?;
    workloads_federate(&here, &abroad)?;
    for (one, other) in [(&here, &abroad), (&abroad, &here)] {
        other.site.cli(&["localauthority", "x509", "prepare"])?;
        other.site.cli(&["localauthority", "jwt", "prepare"])?;
        assert_eq!(refresh(one, other)?.success()?.stdout, "Bundle refreshed\n");
        assert_eq!(one.authorities_of(other)?, 2);
    }
    Ok(())
}
