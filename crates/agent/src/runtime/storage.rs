//! What the agent keeps between runs: `agent-data.json`, exactly as the reference writes it
//! (`pkg/agent/storage/storage.go`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use spire_core::pki::{Certificate, pem};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const FILE_NAME: &str = "agent-data.json";

/// The file holds a few certificates; a larger one is not ours.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// How Go prints a time that was never set.
const GO_ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Why the data could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The file could not be read.
    #[error("failed to read data: open {}: {}", path.display(), spire_net::errno_text(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Everybody can read the file.
    #[error("refusing to use {}: it is readable by others (mode {mode:04o}); chmod it to 0600", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file is not what we write.
    #[error("failed to unmarshal data: {0}")]
    Malformed(String),
    /// The file could not be written; the old one is intact.
    #[error("failed to write data file: {}: {}", path.display(), spire_net::errno_text(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What a trust bundle is fetched for. The numbers are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BootstrapUse {
    /// Never recorded.
    #[default]
    Unspecified,
    /// The agent has never been attested.
    Bootstrap,
    /// The agent was attested, and trust is to be found anew.
    Rebootstrap,
}

/// How far bootstrapping has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootstrapState {
    /// What for.
    pub purpose: BootstrapUse,
    /// Since when; none when it succeeded or never started.
    pub started: Option<OffsetDateTime>,
    /// How often a bundle was fetched.
    pub attempts: u32,
}

/// The agent's SVID as stored.
#[derive(Clone, Debug)]
pub struct StoredSvid {
    /// Leaf and intermediates; never empty.
    pub chain: Vec<Certificate>,
    /// Whether the server lets this agent attest again.
    pub reattestable: bool,
}

/// The data file, read once and rewritten at each change.
#[derive(Debug)]
pub struct Storage {
    path: PathBuf,
    data: Mutex<Data>,
}

#[derive(Clone, Debug, Default)]
struct Data {
    svid: Vec<Certificate>,
    bundle: Vec<Certificate>,
    reattestable: bool,
    bootstrap: BootstrapState,
}

#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Json {
    svid: Option<Vec<String>>,
    bundle: Option<Vec<String>>,
    reattestable: bool,
    bootstrap_use: i64,
    bootstrap_start_time: String,
    connection_attempts: i64,
}

impl Default for Json {
    fn default() -> Self {
        Self {
            svid: None,
            bundle: None,
            reattestable: false,
            bootstrap_use: 0,
            bootstrap_start_time: GO_ZERO_TIME.to_owned(),
            connection_attempts: 0,
        }
    }
}

impl Storage {
    /// Reads the data of a folder; a file that is not there is no data yet.
    ///
    /// # Errors
    /// [`StorageError`] when the file is there and cannot be used.
    pub fn open(directory: &Path) -> Result<Self, StorageError> {
        let path = directory.join(FILE_NAME);
        let data = match read(&path)? {
            Some(text) => Data::parse(&text)?,
            None => Data::default(),
        };
        Ok(Self { path, data: Mutex::new(data) })
    }

    /// The agent's SVID, when one is stored.
    pub fn svid(&self) -> Option<StoredSvid> {
        let data = self.data.lock();
        let found = || StoredSvid { chain: data.svid.clone(), reattestable: data.reattestable };
        (!data.svid.is_empty()).then(found)
    }

    /// The X.509 authorities of the trust domain, when they are stored; never empty.
    pub fn bundle(&self) -> Option<Vec<Certificate>> {
        let data = self.data.lock();
        (!data.bundle.is_empty()).then(|| data.bundle.clone())
    }

    /// How far bootstrapping has come.
    pub fn bootstrap(&self) -> BootstrapState {
        self.data.lock().bootstrap
    }

    /// Stores the agent's SVID.
    ///
    /// # Errors
    /// [`StorageError::Write`]; memory and disk stay as they were. So for the other methods that store.
    pub fn store_svid(&self, chain: &[Certificate], reattestable: bool) -> Result<(), StorageError> {
        self.update(|data| {
            data.svid = chain.to_vec();
            data.reattestable = reattestable;
        })
    }

    /// Forgets the agent's SVID.
    pub fn delete_svid(&self) -> Result<(), StorageError> {
        self.store_svid(&[], false)
    }

    /// Stores the X.509 authorities of the trust domain; none forgets them.
    pub fn store_bundle(&self, authorities: &[Certificate]) -> Result<(), StorageError> {
        self.update(|data| data.bundle = authorities.to_vec())
    }

    /// Stores how far bootstrapping has come.
    pub fn store_bootstrap(&self, state: BootstrapState) -> Result<(), StorageError> {
        self.update(|data| data.bootstrap = state)
    }

    fn update(&self, change: impl FnOnce(&mut Data)) -> Result<(), StorageError> {
        let mut data = self.data.lock();
        let mut changed = data.clone();
        change(&mut changed);
        let text = changed.to_json()?;
        if data.to_json().is_ok_and(|before| before == text) && self.path.exists() {
            return Ok(());
        }
        write(&self.path, &text).map_err(|source| StorageError::Write { path: self.path.clone(), source })?;
        *data = changed;
        Ok(())
    }
}

impl Data {
    fn parse(text: &[u8]) -> Result<Self, StorageError> {
        let malformed = |what: String| StorageError::Malformed(what);
        // serde would take a list for the object.
        if !text.trim_ascii_start().starts_with(b"{") {
            return Err(malformed("not a JSON object".to_owned()));
        }
        let json: Json = serde_json::from_slice(text).map_err(|e| malformed(e.to_string()))?;
        let started = match json.bootstrap_start_time.as_str() {
            "" | GO_ZERO_TIME => None,
            time => Some(OffsetDateTime::parse(time, &Rfc3339).map_err(|e| malformed(e.to_string()))?),
        };
        let purpose = match json.bootstrap_use {
            1 => BootstrapUse::Bootstrap,
            2 => BootstrapUse::Rebootstrap,
            _ => BootstrapUse::Unspecified,
        };
        let attempts = u32::try_from(json.connection_attempts).unwrap_or_default();
        Ok(Self {
            svid: certificates(json.svid).map_err(|e| malformed(format!("failed to parse SVID: {e}")))?,
            bundle: certificates(json.bundle)
                .map_err(|e| malformed(format!("failed to parse bundle: {e}")))?,
            reattestable: json.reattestable,
            bootstrap: BootstrapState { purpose, started, attempts },
        })
    }

    fn to_json(&self) -> Result<Vec<u8>, StorageError> {
        let started = match self.bootstrap.started {
            Some(time) => time.format(&Rfc3339).map_err(|e| StorageError::Malformed(e.to_string()))?,
            None => GO_ZERO_TIME.to_owned(),
        };
        let json = Json {
            svid: encoded(&self.svid),
            bundle: encoded(&self.bundle),
            reattestable: self.reattestable,
            bootstrap_use: match self.bootstrap.purpose {
                BootstrapUse::Unspecified => 0,
                BootstrapUse::Bootstrap => 1,
                BootstrapUse::Rebootstrap => 2,
            },
            bootstrap_start_time: started,
            connection_attempts: i64::from(self.bootstrap.attempts),
        };
        serde_json::to_vec(&json).map_err(|e| StorageError::Malformed(e.to_string()))
    }
}

/// Each certificate is the base64 of its PEM: a Go byte slice in JSON.
fn certificates(encoded: Option<Vec<String>>) -> Result<Vec<Certificate>, String> {
    let decode = |text: &String| {
        let pem = STANDARD.decode(text).map_err(|e| e.to_string())?;
        pem::certificate(&pem).map_err(|e| e.to_string())
    };
    encoded.unwrap_or_default().iter().map(decode).collect()
}

fn encoded(certificates: &[Certificate]) -> Option<Vec<String>> {
    let encode = |c: &Certificate| STANDARD.encode(pem::encode("CERTIFICATE", c.der()));
    (!certificates.is_empty()).then(|| certificates.iter().map(encode).collect())
}

fn read(path: &Path) -> Result<Option<Bytes>, StorageError> {
    let failed = |source| StorageError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(StorageError::Exposed { path: path.to_owned(), mode });
    }
    if mode & 0o070 != 0 {
        tracing::warn!(path = %path.display(), "Agent data file is accessible by its group; it should have mode 0600");
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text).map_err(failed)?;
    Ok(Some(text.into()))
}

/// Writes a temporary file with mode 0600, makes it durable and puts it in the place of the old one
/// (pkg/common/diskutil: AtomicWritePrivateFile).
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("json.tmp");
    // A file that an interrupted run left may have another mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::TestCa;

    #[test]
    fn what_is_stored_is_read_again_and_has_the_references_shape() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(folder.path()).unwrap();
        assert!(storage.svid().is_none() && storage.bundle().is_none());
        let ca = TestCa::new();
        storage
            .store_bootstrap(BootstrapState {
                purpose: BootstrapUse::Rebootstrap,
                started: None,
                attempts: 0,
            })
            .unwrap();
        let text = fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
        assert_eq!(
            text,
            r#"{"svid":null,"bundle":null,"reattestable":false,"bootstrap_use":2,"bootstrap_start_time":"0001-01-01T00:00:00Z","connection_attempts":0}"#
        );
        storage.store_svid(&[ca.certificate().clone()], true).unwrap();
        storage.store_bundle(&[ca.certificate().clone()]).unwrap();
        let mode = fs::metadata(folder.path().join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Storage::open(folder.path()).unwrap();
        let svid = again.svid().unwrap();
        assert_eq!((svid.chain, svid.reattestable), (vec![ca.certificate().clone()], true));
        assert_eq!(again.bundle().unwrap(), [ca.certificate().clone()]);
        assert_eq!(again.bootstrap().purpose, BootstrapUse::Rebootstrap);
        again.delete_svid().unwrap();
        assert!(Storage::open(folder.path()).unwrap().svid().is_none());
    }

    #[test]
    fn a_bootstrap_time_survives() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(folder.path()).unwrap();
        let state = BootstrapState {
            purpose: BootstrapUse::Bootstrap,
            started: Some(OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap()),
            attempts: 3,
        };
        storage.store_bootstrap(state).unwrap();
        assert_eq!(Storage::open(folder.path()).unwrap().bootstrap(), state);
    }

    #[test]
    fn a_file_that_others_can_read_or_that_is_broken_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        fs::write(&path, "{}").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Storage::open(folder.path()), Err(StorageError::Exposed { mode: 0o644, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Storage::open(folder.path()).is_ok());
        for broken in
            ["", "[]", r#"{"svid":["!"]}"#, r#"{"bundle":["AAAA"]}"#, r#"{"bootstrap_start_time":"x"}"#]
        {
            fs::write(&path, broken).unwrap();
            assert!(matches!(Storage::open(folder.path()), Err(StorageError::Malformed(_))), "{broken}");
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(folder.path()).unwrap();
        storage.store_bootstrap(BootstrapState::default()).unwrap();
        // A directory in the place of the temporary file makes every write fail, for root too.
        fs::create_dir(folder.path().join("agent-data.json.tmp")).unwrap();
        let ca = TestCa::new();
        assert!(matches!(storage.store_bundle(&[ca.certificate().clone()]), Err(StorageError::Write { .. })));
        assert!(storage.bundle().is_none());
        assert!(Storage::open(folder.path()).unwrap().bundle().is_none());
    }
}
