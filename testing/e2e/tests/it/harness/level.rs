//! Servers on top of each other, each with an agent of its own, as nested SPIRE has them.

use spire_testkit::{Daemon, Output, Result, Run, wait};

use crate::harness::peer::Peer;
use crate::harness::programs::Programs;
use crate::harness::site::text;
use crate::harness::{SOON, Site, svid};

/// A server with its agent. Below another level its authority comes from there.
pub(crate) struct Level {
    pub(crate) name: &'static str,
    pub(crate) site: Site,
    pub(crate) server: Daemon,
    pub(crate) agent: Daemon,
}

impl Level {
    /// A server that signs its own authority. `lines` go to its configuration.
    pub(crate) fn root(programs: &'static Programs, lines: &[&str]) -> Result<Self> {
        Self::start("root", None, programs, lines)
    }

    /// A server that is a workload of the upper level's agent and gets its authority from the upper level's server.
    pub(crate) fn below(
        upper: &Self,
        name: &'static str,
        programs: &'static Programs,
        lines: &[&str],
    ) -> Result<Self> {
        Self::start(name, Some(upper), programs, lines)
    }

    /// A server whose authority is signed by one in files, which [`Self::new_upstream`] replaces.
    pub(crate) fn on_disk(programs: &'static Programs) -> Result<Self> {
        let mut site = Self::site(programs, &[])?;
        new_upstream(&site)?;
        site.server.plugins = format!(
            "    UpstreamAuthority \"disk\" {{\n        plugin_data {{\n            cert_file_path = \"{}\"\n            \
             key_file_path = \"{}\"\n        }}\n    }}\n",
            site.path("upstream.pem").display(),
            site.path("upstream.key").display()
        );
        Self::run("disk", site)
    }

    /// Another authority in the files.
    pub(crate) fn new_upstream(&self) -> Result<()> {
        new_upstream(&self.site)
    }

    fn site(programs: &'static Programs, lines: &[&str]) -> Result<Site> {
        let mut site = Site::new()?;
        site.server.lines.extend(lines.iter().map(|line| (*line).to_owned()));
        // Programs are told apart by their paths; digests of large ones take seconds on a busy machine.
        site.agent.unix.push_str("\n            workload_size_limit = -1");
        site.server_programs = programs;
        site.agent_programs = programs;
        Ok(site)
    }

    fn start(
        name: &'static str,
        upper: Option<&Self>,
        programs: &'static Programs,
        lines: &[&str],
    ) -> Result<Self> {
        let mut site = Self::site(programs, lines)?;
        if let Some(upper) = upper {
            let selector = format!("unix:path:{}", text(&programs.server()));
            let id = format!("spiffe://example.org/{name}-server");
            upper.site.entry(&upper.agent_id(), &id, &selector, &["-downstream"])?;
            site.server.plugins = format!(
                "    UpstreamAuthority \"spire\" {{\n        plugin_data {{\n            server_address = \
                 \"127.0.0.1\"\n            server_port = {}\n            workload_api_socket = \"{}\"\n        }}\n    \
                 }}\n",
                upper.site.server.port,
                upper.site.agent.socket().display()
            );
        }
        Self::run(name, site)
    }

    fn run(name: &'static str, site: Site) -> Result<Self> {
        let server = site.start_server()?;
        let agent = site.join(&format!("spiffe://example.org/{name}-node"))?;
        Ok(Self { name, site, server, agent })
    }

    /// The ID that the agent is known by.
    pub(crate) fn agent_id(&self) -> String {
        format!("spiffe://example.org/{}-node", self.name)
    }

    /// A go-spiffe program of its own identity, `spiffe://example.org/<level>-<name>`.
    pub(crate) fn workload(&self, name: &str) -> Result<Workload<'_>> {
        let path = self.site.path(name);
        std::fs::copy(&Peer::Go.command()?[0], &path)
            .map_err(|error| spire_testkit::Error::doing("copying the peer", error))?;
        let id = format!("spiffe://example.org/{}-{name}", self.name);
        self.site.entry(&self.agent_id(), &id, &format!("unix:path:{}", text(&path)), &[])?;
        Ok(Workload { level: self, name: name.to_owned(), id, program: text(&path).to_owned() })
    }

    /// How many X.509 authorities the bundle has.
    pub(crate) fn root_count(&self) -> Result<usize> {
        Ok(svid::certificates(&self.site.cli(&["bundle", "show"])?.stdout))
    }

    /// Waits until the bundle has so many X.509 authorities.
    pub(crate) fn wait_roots(&self, count: usize) -> Result<()> {
        wait::until(&format!("{count} roots at {}", self.name), SOON, || {
            (self.root_count().ok()? == count).then_some(())
        })
    }

    /// The ID of this server's authority of the kind (`x509`, `jwt`) and state (`active`, `prepared`, `old`); empty for
    /// none.
    pub(crate) fn authority(&self, kind: &str, state: &str) -> Result<String> {
        let shown = self.site.cli_json(&["localauthority", kind, "show"])?;
        Ok(shown[state]["authority_id"].as_str().unwrap_or_default().to_owned())
    }

    /// Prepares an authority of the kind; its ID.
    pub(crate) fn prepare(&self, kind: &str) -> Result<String> {
        self.site.cli(&["localauthority", kind, "prepare"])?;
        self.authority(kind, "prepared")
    }

    /// Activates, taints or revokes an authority.
    pub(crate) fn change(&self, kind: &str, doing: &str, id: &str) -> Result<Output> {
        self.site.cli(&["localauthority", kind, doing, "-authorityID", id])
    }
}

fn new_upstream(site: &Site) -> Result<()> {
    const ARGS: &[&str] = &[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=upstream",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
        "-keyout",
        "upstream.key",
        "-out",
        "upstream.pem",
    ];
    Run::new("openssl").args(ARGS).within(&site.path("")).success().map(drop)
}

/// A workload of a level.
pub(crate) struct Workload<'l> {
    level: &'l Level,
    name: String,
    pub(crate) id: String,
    program: String,
}

impl Workload<'_> {
    fn socket(&self) -> String {
        self.level.site.agent.socket().display().to_string()
    }

    /// Starts the program with a command of its own.
    pub(crate) fn spawn(&self, command: &str, args: &[&str]) -> Result<Daemon> {
        let socket = self.socket();
        let all: Vec<&str> = [command, &socket].into_iter().chain(args.iter().copied()).collect();
        self.level.site.spawn(&self.name, std::slice::from_ref(&self.program), &all)
    }

    /// Starts a service that lets in `client`, and says its address.
    pub(crate) fn serve(&self, client: &Workload<'_>) -> Result<(Daemon, String)> {
        let service = self.spawn("serve", &[&client.id])?;
        let line = service.wait_for(&["listening "], SOON)?;
        let address = line.trim_start_matches("listening ").to_owned();
        Ok((service, address))
    }

    /// Calls `service` at its address once.
    pub(crate) fn call(&self, address: &str, service: &Workload<'_>) -> Result<Output> {
        let socket = self.socket();
        Run::new(&self.program).args(&["call", &socket, address, &service.id]).success()
    }
}

/// Of a `ping` or `tokens`: the last line that says who signs.
pub(crate) fn last_signed(peer: &Daemon) -> String {
    peer.lines().into_iter().rfind(|line| line.starts_with("signed ")).unwrap_or_default()
}

/// Waits until a `ping` or `tokens` shows nothing that `id` signed.
pub(crate) fn wait_not_signed_by(peer: &Daemon, id: &str) -> Result<()> {
    wait::until(&format!("a signature that is not by {id}"), SOON * 2, || {
        let last = last_signed(peer);
        (!last.is_empty() && !last.contains(id)).then_some(())
    })
    .map_err(|error| peer.error(&error.to_string()))
}

/// Checks that a `ping` or `tokens` never failed.
pub(crate) fn never_failed(peer: &Daemon) {
    let failed: Vec<String> = peer.lines().into_iter().filter(|line| !line.starts_with("signed ")).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}
