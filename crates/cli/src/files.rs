//! Files that commands read and write.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use spire_compat::errno::path_error;

use crate::env::Env;
use crate::failure::Failure;
use crate::socket::clean;

/// Largest file or input that is read: far above any bundle or list of entries.
const INPUT_MAX: u64 = 256 << 20;

/// `path`'s contents, or standard input for `-`.
pub(crate) fn read_or_stdin(env: &mut Env, path: &str) -> Result<Vec<u8>, Failure> {
    if path == "-" { read_stdin(env) } else { read(env, path) }
}

/// A file's contents.
pub(crate) fn read(env: &Env, path: &str) -> Result<Vec<u8>, Failure> {
    let failed = |operation| move |error: io::Error| Failure::new(path_error(operation, path, &error));
    let file = File::open(env.locate(path)).map_err(failed("open"))?;
    bounded(file, path)?.map_err(failed("read"))
}

/// Standard input up to its end.
pub(crate) fn read_stdin(env: &mut Env) -> Result<Vec<u8>, Failure> {
    bounded(&mut env.stdin, "standard input")?
        .map_err(|error| Failure::new(path_error("read", "/dev/stdin", &error)))
}

fn bounded(from: impl Read, name: &str) -> Result<io::Result<Vec<u8>>, Failure> {
    let mut bytes = Vec::new();
    match from.take(INPUT_MAX + 1).read_to_end(&mut bytes) {
        Err(error) => Ok(Err(error)),
        Ok(_) if bytes.len() as u64 > INPUT_MAX => {
            Err(Failure::new(format!("{name} is larger than {INPUT_MAX} bytes")))
        }
        Ok(_) => Ok(Ok(bytes)),
    }
}

/// Go's `filepath.Join` of a folder and a file's name.
pub(crate) fn join(folder: &str, name: &str) -> String {
    clean(&Path::new(folder).join(name)).display().to_string()
}

/// Writes a file for all to read.
pub(crate) fn write_public(env: &Env, path: &str, contents: &[u8]) -> Result<(), Failure> {
    let target = env.locate(path);
    put(OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&target), path, contents)
}

/// Writes a file for its owner only. A regular file is replaced as a whole, so that what is in it is never open to
/// others, not even where an older file of that name was; a device or a pipe is written to as it is.
pub(crate) fn write_private(env: &Env, path: &str, contents: &[u8]) -> Result<(), Failure> {
    let target = env.locate(path);
    if fs::metadata(&target).is_ok_and(|found| !found.is_file()) {
        return put(OpenOptions::new().write(true).open(&target), path, contents);
    }
    // A link keeps pointing where it did: what it points to is replaced.
    let target = fs::canonicalize(&target).unwrap_or(target);
    let mut beside = target.clone().into_os_string();
    beside.push(format!(".{}.tmp", std::process::id()));
    let _ = fs::remove_file(&beside);
    put(OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside), path, contents)?;
    fs::rename(&beside, &target).map_err(|error| {
        let _ = fs::remove_file(&beside);
        Failure::new(path_error("rename", path, &error))
    })
}

fn put(opened: io::Result<File>, path: &str, contents: &[u8]) -> Result<(), Failure> {
    let mut file = opened.map_err(|error| Failure::new(path_error("open", path, &error)))?;
    file.write_all(contents).map_err(|error| Failure::new(path_error("write", path, &error)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn private_files_are_private_from_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let mut env = Env::process();
        env.directory = folder.path().to_owned();
        fs::write(folder.path().join("key"), "old").unwrap();
        fs::set_permissions(folder.path().join("key"), fs::Permissions::from_mode(0o666)).unwrap();
        write_private(&env, "key", b"new").unwrap();
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((fs::read(folder.path().join("key")).unwrap(), mode("key")), (b"new".to_vec(), 0o600));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let missing = write_private(&env, "none/key", b"x").unwrap_err();
        assert_eq!(missing.to_string(), "open none/key: no such file or directory");
        write_private(&env, "/dev/null", b"x").unwrap();
    }
}
