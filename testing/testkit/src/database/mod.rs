//! Real database servers of a test's own: PostgreSQL and MariaDB, from the packages of the distribution. Each has its
//! data in a folder of its own, listens on 127.0.0.1 and a unix socket, and ends with its value.
//!
//! Making the data of a new server takes seconds, so that it is done once and kept in `~/.cache/spire/databases`
//! (`SPIRE_TEST_DATABASES` names another folder); servers start on copies.

mod mariadb;
mod postgres;
mod process;
mod template;

pub use mariadb::Mariadb;
pub use postgres::{Postgres, Replica};

use std::path::PathBuf;

use crate::authority::{Authority, Pair};
use crate::error::Result;
use crate::place;

/// The user of the servers, who may do everything.
pub const USER: &str = "spire";
/// The user's password over TCP. The unix socket takes the user without.
pub const PASSWORD: &str = "pass word";

/// How a server is to be started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Takes only TLS over TCP, with certificates of an authority made for it.
    pub tls: bool,
    /// Asks clients for a certificate of the same authority; implies `tls`.
    pub client_certificate: bool,
    /// Keeps its data on a file system of so many octets. Needs root.
    pub disk: Option<u64>,
    /// Its TCP port; a free one if it is not said.
    pub port: Option<u16>,
    /// Further settings, as its command line takes them: `name=value`.
    pub settings: Vec<String>,
}

/// The certificates of a server with TLS, as files that anybody may read.
pub struct Certificates {
    /// The authority that signed both.
    pub root: PathBuf,
    /// The certificate of a client, for the user [`USER`].
    pub client_certificate: PathBuf,
    /// Its key, which only its owner may read.
    pub client_key: PathBuf,
    server: Pair,
}

impl Certificates {
    /// New ones, in a folder.
    fn make(folder: &std::path::Path) -> Result<Self> {
        let authority = Authority::new("database authority")?;
        let client = authority.issue(USER, &[])?;
        let file = |name: &str, text: &str| -> Result<PathBuf> {
            let path = folder.join(name);
            place::write(&path, text)?;
            Ok(path)
        };
        let client_key = file("client.key", &client.key)?;
        process::restrict(&client_key)?;
        Ok(Self {
            root: file("root.pem", &authority.pem())?,
            client_certificate: file("client.pem", &client.certificate)?,
            client_key,
            server: authority.issue("localhost", &["localhost"])?,
        })
    }
}
