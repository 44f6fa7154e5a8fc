//! What the plugins take from this machine: configured files, bounded and with Go's error texts; the time; random
//! bytes; threads that may wait.

use std::io::Read as _;
use std::time::SystemTime;

use spire_compat::errno::path_error;
use spire_core::time::Timestamp;

/// More than any bundle of manufacturers' certificates needs; what is larger was not meant for us.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// The contents of a file. The error reads like Go's os.ReadFile.
pub(crate) fn read(path: &str) -> Result<Vec<u8>, String> {
    let file = std::fs::File::open(path).map_err(|error| path_error("open", path, &error))?;
    let mut contents = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut contents)
        .map_err(|error| path_error("read", path, &error))?;
    if contents.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("read {path}: larger than {MAX_FILE_BYTES} bytes"));
    }
    Ok(contents)
}

/// Runs `work`, which waits for files or a TPM, where waiting harms nobody.
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
