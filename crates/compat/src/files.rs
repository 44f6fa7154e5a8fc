//! Files that are read whole: within a bound, and with the errors of Go's `os.ReadFile`.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::errno::{errno_text, path_error};

/// Room for files that say no size, such as those of `/proc`, in bytes.
const ROOM: u64 = 64 << 10;

/// Why a file was not read. Reads as in Go: `open /etc/x: permission denied`.
#[derive(Debug, thiserror::Error)]
#[error("{}", path_error(operation, path.display(), error))]
pub struct ReadError {
    operation: &'static str,
    path: PathBuf,
    error: io::Error,
}

impl ReadError {
    /// What kind of failure it is.
    pub fn kind(&self) -> io::ErrorKind {
        self.error.kind()
    }

    /// The text without operation and path.
    pub fn reason(&self) -> String {
        errno_text(&self.error)
    }
}

/// The contents of a file of at most `max` bytes, wiped when dropped since they may hold a key.
///
/// # Errors
/// [`ReadError`] when the file cannot be read or is larger.
pub fn read_bounded(path: impl AsRef<Path>, max: u64) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    let path = path.as_ref();
    let failed = |operation| move |error| ReadError { operation, path: path.to_owned(), error };
    let file = File::open(path).map_err(failed("open"))?;
    let size = file.metadata().map_err(failed("stat"))?.len();
    read_open(file, size, max).map_err(failed("read"))
}

/// As [`read_bounded`], of a file that is open already and says that it has `size` bytes. The bound holds whatever it says. Where it
/// is right the buffer never grows, so that no copy of a key stays behind in memory that was given back.
///
/// # Errors
/// What the system says; a text where the file is larger than `max` bytes.
pub fn read_open(file: File, size: u64, max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let too_large = || io::Error::other(format!("larger than {max} bytes"));
    if size > max {
        return Err(too_large());
    }
    let room = usize::try_from(if size == 0 { ROOM.min(max) } else { size }).map_err(|_| too_large())?;
    let mut contents = Zeroizing::new(Vec::with_capacity(room.saturating_add(1)));
    file.take(max.saturating_add(1)).read_to_end(&mut contents)?;
    if contents.len() as u64 > max { Err(too_large()) } else { Ok(contents) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_a_bound_whatever_size_they_say() {
        // Tests run in the package's folder, wherever it was when they were compiled.
        let this = "src/files.rs";
        let whole = std::fs::read(this).unwrap();
        let size = whole.len() as u64;
        assert_eq!(*read_bounded(this, size).unwrap(), whole);
        for (path, max, text) in [
            (this, size - 1, format!("read {this}: larger than {} bytes", size - 1)),
            ("/dev/zero", 5, "read /dev/zero: larger than 5 bytes".to_owned()),
            ("/", 5000, "read /: is a directory".to_owned()),
            ("/nowhere/x", 5, "open /nowhere/x: no such file or directory".to_owned()),
        ] {
            let error = read_bounded(path, max).unwrap_err();
            assert_eq!(error.to_string(), text);
            assert!(text.ends_with(&error.reason()));
        }
        assert_eq!(read_bounded("/nowhere/x", 5).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
