//! Data of new servers, made once and copied.

use std::fs;
use std::path::{Path, PathBuf};

use crate::command::Run;
use crate::error::{Error, Result};

/// Where what takes long to make is kept.
fn cache() -> PathBuf {
    if let Some(folder) = std::env::var_os("SPIRE_TEST_DATABASES") {
        return folder.into();
    }
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    home.join(".cache/spire/databases")
}

/// The template of that name. Where there is none yet `make` makes it, in a folder that it is given; what two test
/// processes make at once is equal, and the first one counts.
pub(super) fn folder(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let wanted = cache().join(name);
    if wanted.is_dir() {
        return Ok(wanted);
    }
    let fail = |error: std::io::Error| Error::doing(format!("keeping {}", wanted.display()), error);
    fs::create_dir_all(cache()).map_err(fail)?;
    // Made where the server's user may enter, and copied over.
    let workshop = crate::place::folder()?;
    let made = workshop.path().join("data");
    make(&made)?;
    let draft = tempfile::Builder::new().prefix(".draft-").tempdir_in(cache()).map_err(fail)?;
    copy(&made, &draft.path().join("data"))?;
    match fs::rename(draft.path().join("data"), &wanted) {
        // Somebody else was faster.
        Err(error) if !wanted.is_dir() => Err(fail(error)),
        _ => Ok(wanted),
    }
}

/// Copies a folder with owners and modes.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    Run::new("cp").args(&["-a", "--reflink=auto"]).arg(from).arg(to).success().map(drop)
}
