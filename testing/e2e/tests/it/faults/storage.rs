//! The database of a run, of either kind.

use std::fs::File;
use std::path::PathBuf;

use spire_testkit::database::{Mariadb, Options, Postgres, Replica};
use spire_testkit::{Error, Result};

/// The name of the database.
const NAME: &str = "spire";

/// A database server, and its replica where it has one.
pub(super) enum Storage {
    Postgres { server: Box<Postgres>, replica: Box<Replica>, disk: bool },
    Mariadb { server: Box<Mariadb>, disk: bool },
}

/// Small enough to be filled in a moment, and large enough for a run of ten minutes. Disks of a test's own take root.
fn options(settings: &[&str]) -> Options {
    let disk = rustix::process::getuid().is_root().then_some(600 << 20);
    Options { disk, settings: settings.iter().map(|text| (*text).to_owned()).collect(), ..Options::default() }
}

impl Storage {
    pub(super) fn postgres() -> Result<Self> {
        let options = options(&["max_wal_size=64MB", "min_wal_size=32MB"]);
        let server = Postgres::start(&options)?;
        server.database(NAME)?;
        let replica = Box::new(server.replica()?);
        Ok(Self::Postgres { server: Box::new(server), replica, disk: options.disk.is_some() })
    }

    pub(super) fn mariadb() -> Result<Self> {
        let options = options(&[]);
        let server = Mariadb::start(&options)?;
        server.database(NAME)?;
        Ok(Self::Mariadb { server: Box::new(server), disk: options.disk.is_some() })
    }

    /// Where it listens.
    pub(super) fn port(&self) -> u16 {
        match self {
            Self::Postgres { server, .. } => server.port(),
            Self::Mariadb { server, .. } => server.port(),
        }
    }

    /// What a server's configuration says of it, by the port of a proxy.
    pub(super) fn settings(&self, port: u16) -> String {
        match self {
            Self::Postgres { server, replica, .. } => format!(
                "database_type = \"postgres\"\n            connection_string = \"{}\"\n            \
                 ro_connection_string = \"{}\"",
                server.connection_string_by(NAME, port),
                replica.connection_string(NAME)
            ),
            Self::Mariadb { server, .. } => format!(
                "database_type = \"mysql\"\n            connection_string = \"{}\"",
                server.connection_string_by(NAME, port)
            ),
        }
    }

    pub(super) fn kill(&mut self) -> Result<()> {
        match self {
            Self::Postgres { server, .. } => server.kill(),
            Self::Mariadb { server, .. } => server.kill(),
        }
    }

    pub(super) fn stop(&mut self) -> Result<()> {
        match self {
            Self::Postgres { server, .. } => server.stop(),
            Self::Mariadb { server, .. } => server.stop(),
        }
    }

    pub(super) fn restart(&mut self) -> Result<()> {
        match self {
            Self::Postgres { server, .. } => server.restart(),
            Self::Mariadb { server, .. } => server.restart(),
        }
    }

    pub(super) fn pause(&mut self) {
        match self {
            Self::Postgres { server, .. } => server.pause(),
            Self::Mariadb { server, .. } => server.pause(),
        }
    }

    pub(super) fn resume(&mut self) {
        match self {
            Self::Postgres { server, .. } => server.resume(),
            Self::Mariadb { server, .. } => server.resume(),
        }
    }

    /// Fills the disk for as long as `meanwhile` takes. A server that ends itself for it is started again after.
    pub(super) fn fill_disk(&mut self, meanwhile: impl FnOnce()) -> Result<()> {
        let (disk, folder) = match self {
            Self::Postgres { server, disk, .. } => (*disk, server.inside()),
            Self::Mariadb { server, disk } => (*disk, server.inside()),
        };
        if !disk {
            return Ok(());
        }
        let filler = fill(folder)?;
        meanwhile();
        std::fs::remove_file(&filler).map_err(|error| Error::doing(filler.display(), error))?;
        let runs = match self {
            Self::Postgres { server, .. } => server.sql(NAME, "SELECT 1").is_ok(),
            Self::Mariadb { server, .. } => server.is_running(),
        };
        if runs { Ok(()) } else { self.restart() }
    }

    pub(super) fn kill_replica(&mut self) -> Result<()> {
        let Self::Postgres { replica, .. } = self else { return Ok(()) };
        replica.kill()?;
        replica.restart()
    }

    pub(super) fn lag_replica(&mut self, meanwhile: impl FnOnce()) -> Result<()> {
        let Self::Postgres { replica, .. } = self else { return Ok(()) };
        replica.lag(true)?;
        meanwhile();
        replica.lag(false)
    }

    /// The rows of a query, as text.
    pub(super) fn rows(&self, query: &str) -> Result<Vec<Vec<String>>> {
        let (text, between) = match self {
            Self::Postgres { server, .. } => (server.sql(NAME, query)?, '|'),
            Self::Mariadb { server, .. } => (server.sql(NAME, query)?, '\t'),
        };
        Ok(text.lines().map(|line| line.split(between).map(str::to_owned).collect()).collect())
    }
}

fn fill(folder: PathBuf) -> Result<PathBuf> {
    let path = folder.join("filler");
    let mut file = File::create(&path).map_err(|error| Error::doing(path.display(), error))?;
    // It ends with the error that it is there for.
    let _ = std::io::copy(&mut std::io::repeat(0), &mut file);
    Ok(path)
}
