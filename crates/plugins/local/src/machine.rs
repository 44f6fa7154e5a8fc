//! What plugins take from this machine: configured files, bounded and with Go's error texts; the time;
//! random bytes.

use std::io::{self, Read as _};
use std::time::SystemTime;

use spire_compat::errno::path_error;
use spire_core::time::Timestamp;
use zeroize::Zeroizing;

/// More than any bundle or key file needs; what is larger was not meant for us.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// The contents of a file, wiped when dropped since they may hold a key. The error reads like Go's.
pub(crate) fn read(path: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let file = std::fs::File::open(path).map_err(|error| path_error("open", path, &error))?;
    let len = file.metadata().map_err(|error| path_error("stat", path, &error))?.len();
    read_open(file, len).map_err(|error| path_error("read", path, &error))
}

/// As [`read`], of a file that is open already and has this size. The buffer never grows, so that no copy
/// of a key stays behind in memory that was given back.
pub(crate) fn read_open(file: std::fs::File, len: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let too_large = || io::Error::other(format!("larger than {MAX_FILE_BYTES} bytes"));
    if len > MAX_FILE_BYTES {
        return Err(too_large());
    }
    // Files that are not regular have no size to go by.
    let room = usize::try_from(if len == 0 { 64 << 10 } else { len }).map_err(|_| too_large())?;
    let mut text = Zeroizing::new(Vec::with_capacity(room + 1));
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES { Err(too_large()) } else { Ok(text) }
}

/// Runs `work`, which reads or writes files, where waiting harms nobody.
pub(crate) async fn blocking<T, F>(work: F) -> T
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going away and so is who waits for this.
            Err(_) => std::future::pending().await,
        },
    }
}

/// The time of this machine's clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::EPOCH + since
}

/// Random bytes of the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], &'static str> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "no random bytes")?;
    Ok(bytes)
}
