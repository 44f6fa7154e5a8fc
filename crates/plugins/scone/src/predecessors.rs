//! The hashes of the sessions that were posted last, a file each: CAS wants that of the predecessor with an update.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;

use spire_compat::errno::path_error;

use crate::NAME;
use crate::session::is_hash;

/// What stands for a predecessor that there is not.
pub(crate) const NONE: &str = "~";

/// The folder of the files.
#[derive(Clone, Debug)]
pub(crate) struct Predecessors(PathBuf);

impl Predecessors {
    pub(crate) fn create(folder: PathBuf) -> Result<Self, String> {
        if folder.as_os_str().is_empty() {
            // The system's call for an empty path is never made otherwise.
            return Err("mkdir : no such file or directory".to_owned());
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|error| path_error("mkdir", folder.display(), &error))?;
        Ok(Self(folder))
    }

    /// The hash of this session's predecessor, or [`NONE`]. The name was checked.
    pub(crate) fn read(&self, session: &str) -> String {
        let found = std::fs::read_to_string(self.0.join(session));
        let why = match found {
            Ok(text) if is_hash(text.trim()) => return text.trim().to_owned(),
            Ok(_) => "not a hash".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(plugin_name = NAME, session, error = why, "cannot read predecessor for session");
        NONE.to_owned()
    }

    pub(crate) fn remove(&self, session: &str) {
        if let Err(error) = std::fs::remove_file(self.0.join(session))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(plugin_name = NAME, session, error = %error, "unable to delete predecessor file for session");
        }
    }

    /// Keeps a hash. What fails is logged only: the session is posted.
    pub(crate) fn store(&self, session: &str, hash: &str) {
        tracing::info!(
            plugin_name = NAME, hash, session_name = session, dir = %self.0.display(),
            "Saving predecessor"
        );
        if let Err(error) = self.write(session, hash) {
            tracing::error!(plugin_name = NAME, session, error = %error, "cannot write predecessor for session");
        }
    }

    fn write(&self, session: &str, hash: &str) -> io::Result<()> {
        let path = self.0.join(session);
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        // No session has this character in its name.
        let temporary = self.0.join(format!("{session}#"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(hash.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)
    }
}
