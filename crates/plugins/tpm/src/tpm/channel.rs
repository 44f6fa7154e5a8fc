//! The way to a TPM: a character device, or the socket of one in software; and which device a machine has.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use spire_compat::errno::{errno_text, path_error};

use super::buffer::{DecodeError, Reader};
use super::response_code::ResponseCode;

/// The longest command and response; TPMs have 4096 (TPM_PT_MAX_COMMAND_SIZE, TPM_PT_MAX_RESPONSE_SIZE), and drivers
/// want a response to be read in one go.
pub(crate) const MAX_MESSAGE_BYTES: usize = 4096;
/// Tag, size and code.
const HEADER_BYTES: usize = 10;
/// How long one command may take. Making an RSA key takes slow TPMs about a minute.
const COMMAND_AT_MOST: Duration = Duration::from_secs(180);
/// How often a TPM that is busy is asked again, after 1, 2, 4 … 1024 ms, as the reference's library does.
const RETRIES: u32 = 11;

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TpmError {
    /// The device or socket failed.
    #[error("{0}")]
    Io(String),
    /// The TPM refused.
    #[error("{0}")]
    Refused(#[from] ResponseCode),
    /// The TPM answered something that is not a response.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// Longer than TPMs take.
    #[error("TPM command is too large")]
    TooLarge,
}

/// An open TPM. One command at a time.
#[derive(Debug)]
pub(crate) enum Channel {
    /// A character device.
    Device(File, PathBuf),
    /// The unix socket of a TPM in software, which gets a connection for each command: many such TPMs end it
    /// after the response.
    Socket(PathBuf),
}

impl Channel {
    /// Opens the device or socket at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, TpmError> {
        let failed = |operation, error| TpmError::Io(path_error(operation, path.display(), &error));
        let kind = std::fs::metadata(path).map_err(|error| failed("stat", error))?.file_type();
        if kind.is_socket() {
            return Ok(Self::Socket(path.to_owned()));
        }
        if !kind.is_char_device() && !kind.is_block_device() {
            let mode = std::fs::metadata(path).map(|metadata| mode_text(&metadata)).unwrap_or_default();
            return Err(TpmError::Io(format!("unsupported TPM file mode {mode}")));
        }
        let file = OpenOptions::new().read(true).write(true).open(path);
        Ok(Self::Device(file.map_err(|error| failed("open", error))?, path.to_owned()))
    }

    /// Sends a command and returns the whole response, success or not. A TPM that is busy is asked again.
    pub(crate) fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmError> {
        if command.len() > MAX_MESSAGE_BYTES {
            return Err(TpmError::TooLarge);
        }
        for retry in 0..RETRIES {
            let response = self.exchange_once(command)?;
            let mut header = Reader::new(&response);
            let code = header
                .u16()
                .and_then(|_| header.u32())
                .and_then(|_| header.u32())
                .map_err(|_| DecodeError::Response)?;
            if !ResponseCode(code).is_retry() || retry + 1 == RETRIES {
                return Ok(response);
            }
            pause(Duration::from_millis(1 << retry));
        }
        Err(DecodeError::Response.into())
    }

    fn exchange_once(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmError> {
        match self {
            Self::Device(file, path) => {
                let failed =
                    |operation, error: io::Error| TpmError::Io(path_error(operation, path.display(), &error));
                file.write_all(command).map_err(|error| failed("write", error))?;
                wait_readable(file).map_err(|error| failed("poll", error))?;
                let mut response = vec![0; MAX_MESSAGE_BYTES];
                let len = file.read(&mut response).map_err(|error| failed("read", error))?;
                response.truncate(len);
                Ok(response)
            }
            Self::Socket(path) => over_socket(path, command).map_err(|error| {
                TpmError::Io(format!("unix socket {}: {}", path.display(), errno_text(&error)))
            }),
        }
    }
}

fn over_socket(path: &Path, command: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(COMMAND_AT_MOST))?;
    stream.set_write_timeout(Some(COMMAND_AT_MOST))?;
    stream.write_all(command)?;
    let mut response = vec![0; HEADER_BYTES];
    stream.read_exact(&mut response)?;
    let size = u32::from_be_bytes([response[2], response[3], response[4], response[5]]);
    let rest = usize::try_from(size)
        .ok()
        .filter(|size| (HEADER_BYTES..=MAX_MESSAGE_BYTES).contains(size))
        .ok_or_else(|| io::Error::other("the TPM announced a response of a size that none has"))?;
    response.resize(rest, 0);
    stream.read_exact(&mut response[HEADER_BYTES..])?;
    Ok(response)
}

fn wait_readable(file: &File) -> io::Result<()> {
    let timeout = Timespec { tv_sec: COMMAND_AT_MOST.as_secs().cast_signed(), tv_nsec: 0 };
    let mut descriptors = [PollFd::new(file, PollFlags::IN)];
    loop {
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the TPM does not answer")),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "only threads that may wait speak to a TPM")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// A file's type and mode as Go prints them: `-rw-r--r--`, `drwxr-xr-x`, `prw-r--r--`.
fn mode_text(metadata: &Metadata) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let kind = metadata.file_type();
    let letter = match () {
        () if kind.is_dir() => 'd',
        () if kind.is_fifo() => 'p',
        () => '-',
    };
    let mode = metadata.permissions().mode();
    let bits = "rwxrwxrwx".chars().enumerate();
    std::iter::once(letter)
        .chain(bits.map(|(place, letter)| if mode & (0o400 >> place) == 0 { '-' } else { letter }))
        .collect()
}

/// Why no device was found. Texts are the reference's (pkg/agent/plugin/nodeattestor/tpmdevid/tpmutil).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DetectError {
    /// None.
    #[error("not found")]
    NotFound,
    /// Several.
    #[error("more than one possible TPM device was found")]
    Several,
    /// The folder cannot be read.
    #[error("{0}")]
    Folder(String),
}

/// The only TPM device of a folder (`/dev`). One behind the kernel's resource manager goes before one without.
pub(crate) fn detect(folder: &Path) -> Result<PathBuf, DetectError> {
    let failed = |operation, error| DetectError::Folder(path_error(operation, folder.display(), &error));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| failed("open", error))? {
        names.push(entry.map_err(|error| failed("readdirent", error))?.file_name());
    }
    for kind in ["tpmrm", "tpm"] {
        let mut found =
            names.iter().filter(|name| name.to_str().is_some_and(|name| ends_numbered(name, kind)));
        match (found.next(), found.next()) {
            (Some(name), None) => return Ok(folder.join(name)),
            (Some(_), Some(_)) => return Err(DetectError::Several),
            (None, _) => {}
        }
    }
    Err(DetectError::NotFound)
}

/// Whether the end of a name is `kind` and a number.
fn ends_numbered(name: &str, kind: &str) -> bool {
    let stem = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
    stem.len() < name.len() && stem.ends_with(kind)
}
