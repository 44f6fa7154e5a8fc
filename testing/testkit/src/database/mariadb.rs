//! MariaDB servers.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use super::postgres::{disk, inside, whose};
use super::process::{Disk, Owner, Process, command_as, give, write_secret};
use super::{Certificates, Options, PASSWORD, USER, process, template};
use crate::command::Run;
use crate::error::{Error, Result};
use crate::place;

/// A running server. It ends with the value.
pub struct Mariadb {
    process: Option<Process>,
    program: PathBuf,
    owner: Option<Owner>,
    data: PathBuf,
    port: u16,
    settings: Vec<String>,
    disk: Option<Disk>,
    /// The certificates, if the server has TLS.
    pub certificates: Option<Certificates>,
    /// Dropped last.
    folder: TempDir,
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/bin")]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

impl Mariadb {
    /// What is missing for it, or `None`.
    #[must_use]
    pub fn missing() -> Option<String> {
        let needed = ["mariadbd", "mariadb-install-db", "mariadb"];
        if let Some(name) = needed.into_iter().find(|name| program(name).is_none()) {
            return Some(format!("{name} is not installed"));
        }
        Owner::of("mysql").err().map(|error| error.to_string())
    }

    /// Starts a new server.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub fn start(options: &Options) -> Result<Self> {
        let program = program("mariadbd").ok_or_else(|| Error::new("MariaDB is not installed"))?;
        let owner = Owner::of("mysql")?;
        let folder = place::folder()?;
        give(folder.path(), owner)?;
        let data = folder.path().join("data");
        template::copy(&made(&program, owner)?, &data)?;
        let tls = options.tls || options.client_certificate;
        let mut settings = options.settings.clone();
        let certificates = if tls { Some(Certificates::make(folder.path())?) } else { None };
        if let Some(certificates) = &certificates {
            let file = |name: &str| folder.path().join(name);
            write_secret(&file("server.key"), &certificates.server.key, owner)?;
            write_secret(&file("server.pem"), &certificates.server.certificate, owner)?;
            settings.push(format!("ssl-ca={}", certificates.root.display()));
            settings.push(format!("ssl-cert={}", file("server.pem").display()));
            settings.push(format!("ssl-key={}", file("server.key").display()));
        }
        let asks = match (tls, options.client_certificate) {
            (_, true) => " REQUIRE X509",
            (true, false) => " REQUIRE SSL",
            (false, false) => "",
        };
        // Read at every start, before anybody may connect.
        let first = folder.path().join("first.sql");
        let mut statements = String::new();
        for host in ["localhost", "127.0.0.1", "::1"] {
            let asks = if host == "localhost" { "" } else { asks };
            statements.push_str(&format!(
                "CREATE OR REPLACE USER '{USER}'@'{host}' IDENTIFIED BY '{PASSWORD}'{asks};\n\
                 GRANT ALL ON *.* TO '{USER}'@'{host}' WITH GRANT OPTION;\n"
            ));
        }
        write_secret(&first, &statements, owner)?;
        settings.push(format!("init-file={}", first.display()));
        let disk = disk(options, &data)?;
        let port = options.port.map_or_else(place::port, Ok)?;
        let mut server =
            Self { process: None, program, owner, data, port, settings, disk, certificates, folder };
        server.restart()?;
        Ok(server)
    }

    /// Starts it again after [`Mariadb::stop`] or [`Mariadb::kill`].
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.process = None;
        let mut command = command_as(self.owner, &self.program);
        command.arg("--no-defaults").arg(format!("--datadir={}", self.data.display()));
        command.arg(format!("--socket={}", self.socket().display()));
        command.arg(format!("--port={}", self.port));
        command.arg(format!("--pid-file={}", self.folder.path().join("server.pid").display()));
        // What the system has in memory outlives the process, and nobody cuts the power.
        command.args(["--bind-address=127.0.0.1", "--skip-name-resolve", "--skip-log-bin"]);
        command.args(["--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=32M"]);
        command.args(["--innodb-log-file-size=16M", "--performance-schema=OFF", "--max-connections=300"]);
        command.args(self.settings.iter().map(|setting| format!("--{setting}")));
        command.current_dir(self.folder.path());
        let command = match &self.disk {
            Some(disk) => disk.below(&command),
            None => command,
        };
        let process = Process::start("MariaDB", command, Signal::TERM, || self.sql("", "SELECT 1").is_ok())?;
        self.process = Some(process);
        Ok(())
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("db.sock")
    }

    /// The folder of its data as this process can reach it.
    #[must_use]
    pub fn inside(&self) -> PathBuf {
        inside(self.disk.as_ref(), &self.data)
    }

    /// The server process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.daemon.pid())
    }

    /// Makes a database and says how to connect to it.
    ///
    /// # Errors
    /// There is one of that name.
    pub fn database(&self, name: &str) -> Result<String> {
        self.sql("", &format!("CREATE DATABASE {name}"))?;
        Ok(self.connection_string(name))
    }

    /// How to connect to a database over TCP. Whoever wants TLS says which, by files or by `&tls=…`.
    #[must_use]
    pub fn connection_string(&self, database: &str) -> String {
        self.connection_string_by(database, self.port)
    }

    /// As [`Mariadb::connection_string`], by another port: that of a proxy.
    #[must_use]
    pub fn connection_string_by(&self, database: &str, port: u16) -> String {
        let host = if self.certificates.is_some() { "localhost" } else { "127.0.0.1" };
        format!("{USER}:{PASSWORD}@tcp({host}:{port})/{database}?parseTime=true")
    }

    /// Runs statements; the result is their rows, with tabs between columns.
    ///
    /// # Errors
    /// The server refuses.
    pub fn sql(&self, database: &str, statements: &str) -> Result<String> {
        let client = program("mariadb").ok_or_else(|| Error::new("mariadb is not installed"))?;
        let run = Run::new(client).args(&["--no-defaults", "--batch", "--skip-column-names", "--raw"]);
        let run = run.arg(format!("--socket={}", self.socket().display()));
        let run = run.args(&[format!("--user={USER}"), format!("--password={PASSWORD}")]);
        let run = run.arg(format!("--database={database}"));
        Ok(run.arg(format!("--execute={statements}")).success()?.stdout)
    }

    /// Ends it cleanly, whoever is connected.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.stop())
    }

    /// Kills it.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Whether it still runs: it ends itself when its disk is full.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.daemon.is_running())
    }

    /// Stops it where it is, until [`Mariadb::resume`].
    pub fn pause(&mut self) {
        if let Some(process) = &mut self.process {
            process.signal_all(Signal::STOP);
        }
    }

    /// Lets it go on.
    pub fn resume(&mut self) {
        if let Some(process) = &mut self.process {
            process.signal_all(Signal::CONT);
        }
    }

    /// The folder of everything.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// The data of a new server.
fn made(server: &Path, owner: Option<Owner>) -> Result<PathBuf> {
    let version = Run::new(server).arg("--version").success()?.stdout;
    let number = version.split_whitespace().skip_while(|word| *word != "Ver").nth(1).unwrap_or("unknown");
    template::folder(&format!("mariadb-{number}-{}", whose(owner)), |data| {
        let workshop = data.parent().unwrap_or(data);
        give(workshop, owner)?;
        let install =
            program("mariadb-install-db").ok_or_else(|| Error::new("mariadb-install-db is missing"))?;
        let mut init: Command = command_as(owner, &install);
        init.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        init.arg(format!("--datadir={}", data.display()))
            .arg("--innodb-log-file-size=16M")
            .current_dir(workshop);
        Run::of(init).at_most(process::SOON).success().map(drop)
    })
}
