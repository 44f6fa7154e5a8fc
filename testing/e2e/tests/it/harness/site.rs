//! A folder with a server and an agent, and the commands that an operator gives them.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use spire_testkit::{Daemon, Error, Output, Result, Run, config, place, wait};
use tempfile::TempDir;

use crate::harness::programs::{self, Programs};
use crate::harness::{SOON, svid};

/// The trust domain of all sites that need no other.
pub(crate) const TRUST_DOMAIN: &str = "example.org";

/// One server and one agent. The programs of either can be replaced between starts.
pub(crate) struct Site {
    folder: TempDir,
    pub(crate) server: config::Server,
    pub(crate) agent: config::Agent,
    pub(crate) server_programs: &'static Programs,
    pub(crate) agent_programs: &'static Programs,
    /// What the server finds in its environment besides ours.
    pub(crate) server_variables: Vec<(&'static str, String)>,
    /// The same of the agent.
    pub(crate) agent_variables: Vec<(&'static str, String)>,
}

/// Whose programs a site has.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Sides {
    Ours,
    TheirServer,
    TheirAgent,
}

impl Site {
    /// A site with the programs under test, nothing started. Both sides look for changes each second.
    pub(crate) fn new() -> Result<Self> {
        let mut site = Self::with_default_intervals()?;
        site.server.lines.push("experimental { cache_reload_interval = \"1s\" }".to_owned());
        site.agent.lines.push("experimental { sync_interval = \"1s\" }".to_owned());
        Ok(site)
    }

    /// A site with the reference's program on one side.
    pub(crate) fn of(sides: Sides) -> Result<Self> {
        let mut site = Self::new()?;
        match sides {
            Sides::Ours => {}
            Sides::TheirServer => site.server_programs = programs::theirs()?,
            Sides::TheirAgent => site.agent_programs = programs::theirs()?,
        }
        Ok(site)
    }

    /// A site whose server keeps its data on a database server.
    pub(crate) fn on_database(database_type: &str, connection_string: &str) -> Result<Self> {
        let mut site = Self::new()?;
        site.server.datastore = Some(format!(
            "database_type = \"{database_type}\"\n            connection_string = \"{connection_string}\""
        ));
        Ok(site)
    }

    /// A site whose intervals are what users have.
    pub(crate) fn with_default_intervals() -> Result<Self> {
        let folder = place::folder()?;
        let port = place::port()?;
        let programs = programs::under_test();
        Ok(Self {
            server: config::Server::new(folder.path(), port, TRUST_DOMAIN),
            agent: config::Agent::new(folder.path(), port, TRUST_DOMAIN),
            folder,
            server_programs: programs,
            agent_programs: programs,
            server_variables: Vec::new(),
            agent_variables: Vec::new(),
        })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the server and waits until its socket answers.
    pub(crate) fn start_server(&self) -> Result<Daemon> {
        let mut server = self.spawn_server()?;
        answers(&mut server, &self.server.socket())?;
        Ok(server)
    }

    /// Starts the server, whatever becomes of it.
    pub(crate) fn spawn_server(&self) -> Result<Daemon> {
        let file = self.path("server.conf");
        place::write(&file, &self.server.text())?;
        let mut command = Command::new(self.server_programs.server());
        command.args(["run", "-config", text(&file)]).current_dir(self.folder.path());
        command.envs(self.server_variables.iter().map(|(name, value)| (name, value)));
        Daemon::spawn("server", command)
    }

    /// Starts the agent with a new token and waits until its socket answers.
    pub(crate) fn join(&self, agent_id: &str) -> Result<Daemon> {
        let token = self.token(agent_id)?;
        self.start_agent(&["-joinToken", &token])
    }

    /// Starts the agent and waits until its socket answers.
    pub(crate) fn start_agent(&self, more: &[&str]) -> Result<Daemon> {
        let mut agent = self.spawn_agent(more)?;
        answers(&mut agent, &self.agent.socket())?;
        Ok(agent)
    }

    /// Starts the agent, whatever becomes of it.
    pub(crate) fn spawn_agent(&self, more: &[&str]) -> Result<Daemon> {
        let file = self.path("agent.conf");
        place::write(&file, &self.agent.text())?;
        let mut command = Command::new(self.agent_programs.agent());
        command.args(["run", "-config", text(&file)]).args(more).current_dir(self.folder.path());
        command.envs(self.agent_variables.iter().map(|(name, value)| (name, value)));
        Daemon::spawn("agent", command)
    }

    /// A `spire-server` command on this server's socket.
    pub(crate) fn command(&self, args: &[&str]) -> Run {
        let socket = self.server.socket();
        let run = Run::new(self.server_programs.server()).args(args);
        run.args(&["-socketPath", text(&socket)]).within(self.folder.path())
    }

    /// Its output, which must be a success.
    pub(crate) fn cli(&self, args: &[&str]) -> Result<Output> {
        self.command(args).success()
    }

    /// The JSON form of its output.
    pub(crate) fn cli_json(&self, args: &[&str]) -> Result<Value> {
        svid::json(&self.command(args).args(&["-output", "json"]).success()?.stdout)
    }

    /// A `spire-agent` command on this agent's socket.
    pub(crate) fn workload(&self, args: &[&str]) -> Run {
        let socket = self.agent.socket();
        let run = Run::new(self.agent_programs.agent()).args(args);
        let run = run.args(&["-socketPath", text(&socket)]).within(self.folder.path());
        // It is on the agent's machine.
        self.agent_variables.iter().fold(run, |run, (name, value)| run.env(name, value))
    }

    /// A workload that prints each update of its X.509 stream.
    pub(crate) fn watch(&self) -> Result<Daemon> {
        let socket = self.agent.socket();
        let args = ["api", "watch", "-socketPath", text(&socket)];
        Daemon::start("api watch", &self.agent_programs.agent(), &args, self.folder.path())
    }

    /// A peer's program as a workload of this site.
    pub(crate) fn spawn(&self, name: &str, command: &[String], args: &[&str]) -> Result<Daemon> {
        let mut process = Command::new(&command[0]);
        process.args(&command[1..]).args(args).current_dir(self.folder.path());
        Daemon::spawn(name, process)
    }

    /// A join token for an agent that shall also be known as `agent_id`.
    pub(crate) fn token(&self, agent_id: &str) -> Result<String> {
        self.cli(&["token", "generate", "-spiffeID", agent_id])?.field("Token")
    }

    /// Creates an entry and says its ID.
    pub(crate) fn entry(&self, parent: &str, id: &str, selector: &str, more: &[&str]) -> Result<String> {
        let mut args = vec!["entry", "create", "-parentID", parent, "-spiffeID", id, "-selector", selector];
        args.extend(more);
        self.cli(&args)?.field("Entry ID")
    }

    /// The IDs of all entries.
    pub(crate) fn entry_ids(&self) -> Result<Vec<String>> {
        let shown = self.cli_json(&["entry", "show"])?;
        let entries = shown["entries"].as_array().cloned().unwrap_or_default();
        Ok(entries.iter().filter_map(|entry| Some(entry["id"].as_str()?.to_owned())).collect())
    }

    /// The ID of the one entry for `spiffe_id`.
    pub(crate) fn entry_of(&self, spiffe_id: &str) -> Result<String> {
        self.cli(&["entry", "show", "-spiffeID", spiffe_id])?.field("Entry ID")
    }

    /// The one attested agent, as JSON.
    pub(crate) fn attested_agent(&self) -> Result<Value> {
        let agents = self.cli_json(&["agent", "list"])?;
        match agents["agents"].as_array().map(Vec::as_slice) {
            Some([agent]) => Ok(agent.clone()),
            _ => Err(Error::new(format!("not one agent: {agents}"))),
        }
    }

    /// Waits until a workload of this user gets exactly the identities `ids`, and says the output.
    pub(crate) fn wait_identities(&self, ids: &[&str]) -> Result<Output> {
        let mut last = String::new();
        let found = wait::until(&format!("fetch of {ids:?}"), SOON, || {
            // The command's own 5 s are short where many tests share a few cores.
            let output = self.workload(&["api", "fetch", "x509", "-timeout", "20s"]).output().ok()?;
            last = output.to_string();
            let all = ids.iter().all(|id| output.stdout.lines().any(|line| ends_in(line, id)));
            let count = output.stdout.matches("SPIFFE ID:").count();
            (output.code == 0 && all && count == ids.len()).then_some(output)
        });
        found.map_err(|error| Error::doing(error, last))
    }
}

fn ends_in(line: &str, id: &str) -> bool {
    line.strip_prefix("SPIFFE ID:").is_some_and(|rest| rest.trim() == id)
}

/// The selector of whoever runs the tests.
pub(crate) fn own_uid() -> String {
    format!("unix:uid:{}", rustix::process::getuid().as_raw())
}

/// How often an agent says that it attested its node.
pub(crate) fn attestations(agent: &Daemon) -> usize {
    agent.lines().iter().filter(|line| line.contains("Node attestation was successful")).count()
}

/// Waits until `socket` takes connections while `program` runs.
pub(crate) fn answers(program: &mut Daemon, socket: &Path) -> Result<()> {
    let found = wait::until("socket that answers", SOON, || {
        if !program.is_running() {
            return Some(false);
        }
        UnixStream::connect(socket).is_ok().then_some(true)
    });
    match found {
        Ok(true) => Ok(()),
        Ok(false) => Err(program.error("it ended")),
        Err(error) => Err(program.error(&error.to_string())),
    }
}

/// A path as an argument. Test folders have plain names.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}
