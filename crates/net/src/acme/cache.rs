//! The folder in which account and chain outlive a restart, in the layout of Go's `autocert.DirCache`.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use spire_compat::errno::path_error;
use spire_compat::files::read_bounded;
use spire_core::pki::{Certificate, pem};
use zeroize::Zeroizing;

use super::{AcmeError, blocking};

/// The folder; it is made with the first file. Without one nothing is kept.
#[derive(Debug, Clone)]
pub(super) struct Cache(Option<PathBuf>);

impl Cache {
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self(folder)
    }

    /// The chain for a name, in PEM, if there is one.
    pub(super) async fn chain(&self, domain: &str) -> Option<Zeroizing<Vec<u8>>> {
        self.read(domain).await
    }

    /// Keeps a chain, behind its key where that has no other place (`autocert.Manager.cachePut`).
    pub(super) async fn put_chain(
        &self,
        domain: &str,
        key: Option<&str>,
        chain: &[Certificate],
    ) -> Result<(), AcmeError> {
        let chain = pem::encode_certificates(chain.iter().map(|certificate| &certificate.der()[..]));
        let mut text = Vec::with_capacity(chain.len() + key.map_or(0, str::len));
        text.extend_from_slice(key.unwrap_or_default().as_bytes());
        text.extend_from_slice(chain.as_bytes());
        self.put(domain, text).await
    }

    /// A file, if it is there and of a sensible size. Any other trouble is logged: then there is nothing cached.
    pub(super) async fn read(&self, name: &str) -> Option<Zeroizing<Vec<u8>>> {
        let path = self.path(name).ok()??;
        let read = blocking(move || {
            read_bounded(&path, pem::MAX_PEM_BYTES as u64)
                .map_err(|error| io::Error::new(error.kind(), error))
        });
        match read.await {
            Ok(contents) => Some(contents),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, "Cached ACME data cannot be read");
                None
            }
        }
    }

    /// Writes a file that only its owner can read, whole or not at all.
    pub(super) async fn put(&self, name: &str, contents: Vec<u8>) -> Result<(), AcmeError> {
        let contents = Zeroizing::new(contents);
        let (Some(folder), Some(path)) = (self.0.clone(), self.path(name)?) else { return Ok(()) };
        let shown = path.display().to_string();
        let written = blocking(move || {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            write(&path, &contents)
        });
        written.await.map_err(|error| AcmeError::Cache(path_error("write", shown, &error)))
    }

    /// A domain is a file name here, so it must look like one.
    fn path(&self, name: &str) -> Result<Option<PathBuf>, AcmeError> {
        let fits = !name.is_empty()
            && !name.starts_with('.')
            && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
        if fits {
            Ok(self.0.as_ref().map(|folder| folder.join(name)))
        } else {
            Err(AcmeError::Encoding(format!(
                "{name:?} is not a domain name (internationalised ones are written in ASCII)"
            )))
        }
    }
}

fn write(path: &Path, contents: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}
