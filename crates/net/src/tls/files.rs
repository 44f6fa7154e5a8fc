//! A serving certificate from files that are looked at again and again.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls::{InconsistentKeys, sign::SigningKey};
use spire_compat::files::read_bounded;
use spire_compat::{duration::GoDuration, errno::path_error};
use spire_core::pki::{Certificate, pem};
use zeroize::Zeroizing;

use super::{Identity, IdentityError};

/// Certificate and key files. What they hold is shown by an [`Identity`]; what cannot be used leaves the old pair there
/// (the reference's pkg/common/diskcertmanager).
#[derive(Debug)]
pub struct CertificateFiles {
    certificate: PathBuf,
    key: PathBuf,
    identity: Arc<Identity>,
    /// What the files looked like when they were last loaded.
    loaded: Mutex<Option<[Stamp; 2]>>,
}

/// Why files give no pair. The texts are those of Go's `tls.LoadX509KeyPair`.
#[derive(Debug, thiserror::Error)]
pub enum CertificateFilesError {
    /// A file cannot be read.
    #[error("{0}")]
    Read(String),
    /// No certificate in the certificate file.
    #[error("tls: failed to find any PEM data in certificate input")]
    NoCertificate,
    /// A certificate that is none.
    #[error("{0}")]
    Certificate(String),
    /// No key in the key file.
    #[error("tls: failed to find any PEM data in key input")]
    NoKey,
    /// A key of a kind that cannot be used.
    #[error("tls: failed to parse private key")]
    Key,
    /// The two do not belong together.
    #[error("tls: private key does not match public key")]
    Mismatch,
}

/// When a file was written, and which file it is: a link may point to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    file: (u64, u64),
    size: u64,
}

impl CertificateFiles {
    /// Reads both files. They are read synchronously: it is for a start, or a thread that may block.
    ///
    /// # Errors
    /// [`CertificateFilesError`] where there is no usable pair.
    pub fn load(
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Result<Self, CertificateFilesError> {
        let files = Self {
            certificate: certificate.into(),
            key: key.into(),
            identity: Identity::empty(),
            loaded: Mutex::new(None),
        };
        // The stamps are taken first: a change between them and the reading is found by the next look.
        let stamps = files.stamps().ok();
        files.read()?;
        *files.loaded.lock() = stamps;
        Ok(files)
    }

    /// Shows the pair that was read last.
    pub fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity)
    }

    /// Looks at the files and takes them where they changed. Idempotent; blocks.
    pub fn sync(&self) {
        let stamps = match self.stamps() {
            Ok(stamps) => stamps,
            Err((path, error)) if error.kind() == io::ErrorKind::NotFound => {
                let path = path.display();
                return tracing::error!(
                    "Failed to get file info, file path \"{path}\" does not exist anymore; please check if the path is correct"
                );
            }
            Err((path, error)) => {
                let error = path_error("stat", path.display(), &error);
                return tracing::error!("Failed to get file info: {error}");
            }
        };
        let mut loaded = self.loaded.lock();
        if *loaded == Some(stamps) {
            return;
        }
        tracing::info!("File change detected, reloading certificate and key...");
        match self.read() {
            Ok(()) => {
                *loaded = Some(stamps);
                tracing::info!("Loaded provided certificate with success");
            }
            Err(error) => tracing::error!("Failed to load certificate: {error}"),
        }
    }

    /// Looks at the files each `interval` for as long as it is polled.
    pub async fn watch(self: Arc<Self>, interval: Duration) {
        tracing::info!(interval = %GoDuration::from(interval), "Started watching certificate files");
        loop {
            tokio::time::sleep(interval).await;
            let files = Arc::clone(&self);
            // Slow file systems must hold up no handshake. A panic there would be logged by the runtime.
            let _ = tokio::task::spawn_blocking(move || files.sync()).await;
        }
    }

    fn stamps(&self) -> Result<[Stamp; 2], (&Path, io::Error)> {
        Ok([stamp(&self.certificate)?, stamp(&self.key)?])
    }

    fn read(&self) -> Result<(), CertificateFilesError> {
        let certificate = read(&self.certificate)?;
        let key = read(&self.key)?;
        if let Ok(metadata) = std::fs::metadata(&self.key)
            && metadata.permissions().mode() & 0o004 != 0
        {
            tracing::warn!(path = %self.key.display(), "Private key file can be read by everybody");
        }
        self.identity.replace_pem(&certificate, &key)
    }
}

impl Identity {
    /// Takes a chain, leaf first, and the leaf's private key, both PEM, as Go's `tls.X509KeyPair` does. The previous pair
    /// stays in use if this one cannot be used.
    ///
    /// # Errors
    /// [`CertificateFilesError`] says what is wrong with the pair.
    pub fn replace_pem(&self, certificate: &[u8], key: &[u8]) -> Result<(), CertificateFilesError> {
        let chain = chain(certificate)?;
        self.replace_signer(&chain, signing_key(key)?).map_err(|error| match error {
            IdentityError::Empty => CertificateFilesError::NoCertificate,
            IdentityError::Key(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                CertificateFilesError::Mismatch
            }
            IdentityError::Key(_) => CertificateFilesError::Key,
        })
    }
}

fn stamp(path: &Path) -> Result<Stamp, (&Path, io::Error)> {
    let metadata = std::fs::metadata(path).map_err(|error| (path, error))?;
    Ok(Stamp {
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        file: (metadata.dev(), metadata.ino()),
        size: metadata.len(),
    })
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, CertificateFilesError> {
    let contents = read_bounded(path, pem::MAX_PEM_BYTES as u64);
    contents.map_err(|error| CertificateFilesError::Read(error.to_string()))
}

/// The certificates of a text, in order; other blocks are passed over, as Go does.
fn chain(text: &[u8]) -> Result<Vec<Certificate>, CertificateFilesError> {
    let mut chain = Vec::new();
    for block in pem::blocks(text).filter(|block| block.label == "CERTIFICATE") {
        let certificate = Certificate::from_der(block.contents)
            .map_err(|error| CertificateFilesError::Certificate(error.to_string()))?;
        chain.push(certificate);
    }
    if chain.is_empty() { Err(CertificateFilesError::NoCertificate) } else { Ok(chain) }
}

/// The first private key of a text, of whatever kind TLS can use.
fn signing_key(text: &[u8]) -> Result<Arc<dyn SigningKey>, CertificateFilesError> {
    let block = pem::blocks(text)
        .find(|block| block.label == "PRIVATE KEY" || block.label.ends_with(" PRIVATE KEY"))
        .ok_or(CertificateFilesError::NoKey)?;
    let contents = Zeroizing::new(block.contents);
    let key = match block.label.as_str() {
        "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(&contents[..])),
        "EC PRIVATE KEY" => PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(&contents[..])),
        _ => PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(&contents[..])),
    };
    any_supported_type(&key).map_err(|_| CertificateFilesError::Key)
}
