//! The files of a target. They stand in a folder of their own, made in full before the link that is the target's
//! directory is turned to it by one rename: a reader finds all the old files or all the new ones.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, symlink,
};
use std::path::{Path, PathBuf};

use spire_compat::errno::path_error;
use spire_core::pki::pem;
use spire_ports::plugins::StoredSvid;
use zeroize::Zeroizing;

use super::settings::Target;
use crate::machine::random;

/// Writes the files and turns the link. When this fails, what was there before still is.
pub(super) fn put(target: &Target, svid: &StoredSvid) -> Result<(), String> {
    let place = Place::of(target)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&place.parent)
        .map_err(|error| path_error("mkdir", place.parent.display(), &error))?;
    place.check()?;
    let suffix = random::<8>()?.map(|byte| format!("{byte:02x}")).concat();
    let version = place.parent.join(format!("{}{suffix}", place.prefix));
    let done = write_version(target, &version, svid).and_then(|()| place.turn(&version));
    // Before: what an interrupted put left, and the last version. After a failure: what was begun.
    place.sweep(done.is_ok().then_some(&version));
    done
}

/// Removes the link and the files.
pub(super) fn delete(target: &Target) -> Result<(), String> {
    let place = Place::of(target)?;
    place.check()?;
    match std::fs::remove_file(&target.directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(path_error("remove", target.directory.display(), &error));
        }
        _ => {}
    }
    place.remove_versions(None);
    Ok(())
}

/// Where the link and the versions of a target are.
struct Place<'a> {
    link: &'a Path,
    parent: PathBuf,
    /// How names of versions begin.
    prefix: String,
}

impl<'a> Place<'a> {
    fn of(target: &'a Target) -> Result<Self, String> {
        let link = target.directory.as_path();
        let (Some(parent), Some(name)) = (link.parent(), link.file_name().and_then(|name| name.to_str()))
        else {
            return Err(format!("{} has no name", link.display()));
        };
        Ok(Self { link, parent: parent.to_owned(), prefix: format!(".{name}.spire-") })
    }

    /// Who can replace the link can have programs read other keys; and what is not our link is not ours to replace.
    fn check(&self) -> Result<(), String> {
        match std::fs::metadata(&self.parent) {
            Ok(parent) if parent.mode() & 0o002 != 0 => {
                return Err(format!("{} can be written by everybody", self.parent.display()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(path_error("stat", self.parent.display(), &error)),
        }
        match std::fs::read_link(self.link) {
            Ok(to) if self.is_version(&to) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            _ => Err(format!("{} is there and was not made by this plugin", self.link.display())),
        }
    }

    fn is_version(&self, name: &Path) -> bool {
        name.parent() == Some(Path::new(""))
            && name.to_str().is_some_and(|name| name.starts_with(&self.prefix))
    }

    fn turn(&self, version: &Path) -> Result<(), String> {
        let name = version.file_name().unwrap_or_default();
        let temporary = self.parent.join(format!("{}link", self.prefix));
        let failed = |what, error: io::Error| path_error(what, temporary.display(), &error);
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", error)),
            _ => {}
        }
        symlink(name, &temporary).map_err(|error| failed("symlink", error))?;
        std::fs::rename(&temporary, self.link).map_err(|error| failed("rename", error))?;
        // Without this the rename may be lost with the power.
        File::open(&self.parent)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| path_error("sync", self.parent.display(), &error))
    }

    fn sweep(&self, current: Option<&PathBuf>) {
        let linked = std::fs::read_link(self.link).ok();
        let kept = current.and_then(|version| version.file_name()).map(PathBuf::from).or(linked);
        self.remove_versions(kept.as_deref());
    }

    /// Removes all versions but this one. What cannot be removed now is tried again with the next change.
    fn remove_versions(&self, kept: Option<&Path>) {
        let Ok(entries) = std::fs::read_dir(&self.parent) else { return };
        for entry in entries.flatten() {
            let name = PathBuf::from(entry.file_name());
            if self.is_version(&name) && Some(name.as_path()) != kept {
                let removed = match entry.file_type() {
                    Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(entry.path()),
                    _ => std::fs::remove_file(entry.path()),
                };
                if let Err(error) = removed {
                    let path = entry.path();
                    tracing::warn!(plugin_name = super::NAME, path = %path.display(), error = %error, "Could not remove old files");
                }
            }
        }
    }
}

/// A folder that nobody else can enter until all is in it.
fn write_version(target: &Target, version: &Path, svid: &StoredSvid) -> Result<(), String> {
    let failed = |what, error: io::Error| path_error(what, version.display(), &error);
    DirBuilder::new().mode(0o700).create(version).map_err(|error| failed("mkdir", error))?;
    let certificates = |ders: &[bytes::Bytes]| pem::encode_certificates(ders.iter().map(|der| &der[..]));
    let key = Zeroizing::new(pem::encode("PRIVATE KEY", &svid.private_key));
    let write = |name: &str, text: &str, mode| write_file(target, &version.join(name), text.as_bytes(), mode);
    write(&target.certificates, &certificates(&svid.chain), target.file_mode)?;
    write(&target.key, &key, target.key_mode)?;
    write(&target.bundle, &certificates(&svid.bundle), target.file_mode)?;
    for (domain, roots) in &svid.federated_bundles {
        write(&format!("federated.{}.pem", domain.name()), &certificates(roots), target.file_mode)?;
    }
    File::open(version).and_then(|folder| folder.sync_all()).map_err(|error| failed("sync", error))?;
    chown(version, target.owner, target.group).map_err(|error| failed("chown", error))?;
    let mode = Permissions::from_mode(target.directory_mode);
    std::fs::set_permissions(version, mode).map_err(|error| failed("chmod", error))
}

fn write_file(target: &Target, path: &Path, text: &[u8], mode: u32) -> Result<(), String> {
    let failed = |what, error: io::Error| path_error(what, path.display(), &error);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| failed("open", error))?;
    file.write_all(text).map_err(|error| failed("write", error))?;
    // The owner first: a change of it takes bits of the mode away.
    chown(path, target.owner, target.group).map_err(|error| failed("chown", error))?;
    file.set_permissions(Permissions::from_mode(mode)).map_err(|error| failed("chmod", error))?;
    file.sync_all().map_err(|error| failed("sync", error))
}
