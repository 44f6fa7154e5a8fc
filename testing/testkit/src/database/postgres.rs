//! PostgreSQL servers, and replicas of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use super::process::{Disk, Owner, Process, command_as, give, write_secret};
use super::{Certificates, Options, PASSWORD, USER, process, template};
use crate::command::Run;
use crate::error::{Error, Result};
use crate::place;

/// The newest version that is installed as Debian does it, or the one on the path.
fn programs() -> Option<PathBuf> {
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = installed
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
        })
        .max();
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|folder| folder.join("initdb").is_file())
    };
    newest.map(|(_, folder)| folder).or_else(on_path).filter(|folder| {
        ["initdb", "postgres", "psql", "pg_basebackup"].iter().all(|name| folder.join(name).is_file())
    })
}

/// A running server. It ends with the value.
pub struct Postgres {
    process: Option<Process>,
    place: Place,
    /// The certificates, if the server has TLS.
    pub certificates: Option<Certificates>,
    /// Dropped last.
    folder: TempDir,
}

/// Where a server is and how it is started.
struct Place {
    programs: PathBuf,
    owner: Option<Owner>,
    data: PathBuf,
    sockets: PathBuf,
    port: u16,
    settings: Vec<String>,
    disk: Option<Disk>,
}

impl Postgres {
    /// What is missing for it, or `None`.
    #[must_use]
    pub fn missing() -> Option<String> {
        if programs().is_none() {
            return Some("PostgreSQL is not installed".to_owned());
        }
        Owner::of("postgres").err().map(|error| error.to_string())
    }

    /// Starts a new server.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub fn start(options: &Options) -> Result<Self> {
        let programs = programs().ok_or_else(|| Error::new("PostgreSQL is not installed"))?;
        let owner = Owner::of("postgres")?;
        let folder = place::folder()?;
        let data = folder.path().join("data");
        template::copy(&made(&programs, owner)?, &data)?;
        let tls = options.tls || options.client_certificate;
        let mut settings = options.settings.clone();
        let certificates = if tls { Some(Certificates::make(folder.path())?) } else { None };
        if let Some(certificates) = &certificates {
            write_secret(&data.join("server.key"), &certificates.server.key, owner)?;
            write_secret(&data.join("server.crt"), &certificates.server.certificate, owner)?;
            write_secret(&data.join("root.crt"), &place::read(&certificates.root)?, owner)?;
            settings.extend(["ssl=on".to_owned(), "ssl_ca_file=root.crt".to_owned()]);
        }
        let (kind, more) = match (tls, options.client_certificate) {
            (_, true) => ("hostssl", " clientcert=verify-ca"),
            (true, false) => ("hostssl", ""),
            (false, false) => ("host", ""),
        };
        let access = format!(
            "local all all trust\nlocal replication all trust\n{kind} all all 127.0.0.1/32 scram-sha-256{more}\n\
             {kind} all all ::1/128 scram-sha-256{more}\n"
        );
        write_secret(&data.join("pg_hba.conf"), &access, owner)?;
        let sockets = sockets(folder.path(), owner)?;
        let disk = disk(options, &data)?;
        let port = options.port.map_or_else(place::port, Ok)?;
        let place = Place { programs, owner, data, sockets, port, settings, disk };
        let mut server = Self { process: None, place, certificates, folder };
        server.restart()?;
        Ok(server)
    }

    /// Starts it again after [`Postgres::stop`] or [`Postgres::kill`].
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.process = None;
        self.process = Some(self.place.run("PostgreSQL")?);
        Ok(())
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.place.port
    }

    /// The folder of its unix socket.
    #[must_use]
    pub fn sockets(&self) -> &Path {
        &self.place.sockets
    }

    /// The folder of its data, which is another on a disk of its own: [`Postgres::inside`].
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.place.data
    }

    /// The folder of its data as this process can reach it.
    #[must_use]
    pub fn inside(&self) -> PathBuf {
        inside(self.place.disk.as_ref(), &self.place.data)
    }

    /// The server process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.daemon.pid())
    }

    /// Makes a database and says how to connect to it, without a word on TLS where the server has none.
    ///
    /// # Errors
    /// There is one of that name.
    pub fn database(&self, name: &str) -> Result<String> {
        self.sql("postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(self.connection_string(name))
    }

    /// How to connect to a database over TCP, verifying the certificate if there is one.
    #[must_use]
    pub fn connection_string(&self, database: &str) -> String {
        self.connection_string_by(database, self.place.port)
    }

    /// As [`Postgres::connection_string`], by another port: that of a proxy.
    #[must_use]
    pub fn connection_string_by(&self, database: &str, port: u16) -> String {
        let tls = match &self.certificates {
            Some(certificates) => {
                format!("host=localhost sslmode=verify-full sslrootcert={}", certificates.root.display())
            }
            None => "host=127.0.0.1 sslmode=disable".to_owned(),
        };
        format!("dbname={database} user={USER} password='{PASSWORD}' port={port} {tls}")
    }

    /// Runs statements as the superuser; the result is its rows, with `|` between columns.
    ///
    /// # Errors
    /// The server refuses.
    pub fn sql(&self, database: &str, statements: &str) -> Result<String> {
        self.place.sql(database, statements)
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

    /// Stops all its processes where they are, until [`Postgres::resume`].
    pub fn pause(&mut self) {
        if let Some(process) = &mut self.process {
            process.signal_all(Signal::STOP);
        }
    }

    /// Lets them go on.
    pub fn resume(&mut self) {
        if let Some(process) = &mut self.process {
            process.signal_all(Signal::CONT);
        }
    }

    /// Starts a streaming replica of it, which answers reads.
    ///
    /// # Errors
    /// It cannot be copied or does not start.
    pub fn replica(&self) -> Result<Replica> {
        let folder = place::folder()?;
        let data = folder.path().join("data");
        let owner = self.place.owner;
        give(folder.path(), owner)?;
        let mut copy = command_as(owner, &self.place.programs.join("pg_basebackup"));
        copy.arg("-D").arg(&data).arg("-h").arg(&self.place.sockets);
        copy.args([
            "-p",
            &self.place.port.to_string(),
            "-U",
            USER,
            "-X",
            "stream",
            "-c",
            "fast",
            "-R",
            "--no-sync",
        ]);
        Run::of(copy).success()?;
        let place = Place {
            programs: self.place.programs.clone(),
            owner,
            data,
            sockets: sockets(folder.path(), owner)?,
            port: place::port()?,
            settings: self.place.settings.clone(),
            disk: None,
        };
        let process = place.run("PostgreSQL replica")?;
        Ok(Replica(Self { process: Some(process), place, certificates: None, folder }))
    }

    /// The folder of everything.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// A replica of a server: a server that takes no writes.
pub struct Replica(Postgres);

impl Replica {
    /// Stops or continues applying what the primary writes, which makes it lag.
    ///
    /// # Errors
    /// The server refuses.
    pub fn lag(&self, yes: bool) -> Result<()> {
        let function = if yes { "pg_wal_replay_pause" } else { "pg_wal_replay_resume" };
        self.0.sql("postgres", &format!("SELECT {function}()")).map(drop)
    }
}

impl std::ops::Deref for Replica {
    type Target = Postgres;

    fn deref(&self) -> &Postgres {
        &self.0
    }
}

impl std::ops::DerefMut for Replica {
    fn deref_mut(&mut self) -> &mut Postgres {
        &mut self.0
    }
}

impl Place {
    fn run(&self, name: &str) -> Result<Process> {
        let mut command = command_as(self.owner, &self.programs.join("postgres"));
        command.arg("-D").arg(&self.data).arg("-k").arg(&self.sockets);
        let port = self.port.to_string();
        command.args(["-p", &port, "-c", "listen_addresses=127.0.0.1,::1"]);
        // What the system has in memory outlives the process, and nobody cuts the power.
        let fixed =
            ["fsync=off", "shared_buffers=16MB", "max_connections=200", "timezone=UTC", "log_timezone=UTC"];
        for setting in fixed.into_iter().chain(self.settings.iter().map(String::as_str)) {
            command.args(["-c", setting]);
        }
        command.current_dir(&self.data);
        let command = self.disk.as_ref().map_or_else(|| clone(&command), |disk| disk.below(&command));
        Process::start(name, command, Signal::INT, || self.sql("postgres", "SELECT 1").is_ok())
    }

    fn sql(&self, database: &str, statements: &str) -> Result<String> {
        let run =
            Run::new(self.programs.join("psql")).args(&["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
        let run = run.arg("-h").arg(&self.sockets).args(&[
            "-p",
            &self.port.to_string(),
            "-U",
            USER,
            "-d",
            database,
        ]);
        Ok(run.args(&["-c", statements]).success()?.stdout)
    }
}

fn clone(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        copy.current_dir(folder);
    }
    copy
}

/// The folder of the unix sockets, which anybody may enter.
fn sockets(folder: &Path, owner: Option<Owner>) -> Result<PathBuf> {
    let sockets = folder.join("run");
    fs::create_dir(&sockets).map_err(|error| Error::doing(sockets.display(), error))?;
    give(&sockets, owner)?;
    Ok(sockets)
}

/// The disk that the options ask for.
pub(super) fn disk(options: &Options, data: &Path) -> Result<Option<Disk>> {
    options.disk.map(|size| Disk::over(data, size)).transpose()
}

/// The folder of the data as this process can reach it.
pub(super) fn inside(disk: Option<&Disk>, data: &Path) -> PathBuf {
    disk.map_or_else(|| data.to_owned(), Disk::inside)
}

/// The data of a new server whose superuser is [`USER`].
fn made(programs: &Path, owner: Option<Owner>) -> Result<PathBuf> {
    let version = Run::new(programs.join("postgres")).arg("--version").success()?.stdout;
    let version = version.split_whitespace().nth(2).unwrap_or("unknown").to_owned();
    template::folder(&format!("postgresql-{version}-{}", whose(owner)), |data| {
        let workshop = data.parent().unwrap_or(data);
        give(workshop, owner)?;
        let password = workshop.join("password");
        write_secret(&password, PASSWORD, owner)?;
        let mut init = command_as(owner, &programs.join("initdb"));
        init.arg("-D").arg(data).args([
            "-U",
            USER,
            "-A",
            "scram-sha-256",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        init.arg(format!("--pwfile={}", password.display())).current_dir(workshop);
        Run::of(init).at_most(process::SOON).success().map(drop)
    })
}

/// A part of a template's name: files belong to whoever makes them.
pub(super) fn whose(owner: Option<Owner>) -> String {
    match owner {
        Some(_) => "server".to_owned(),
        None => rustix::process::getuid().as_raw().to_string(),
    }
}
