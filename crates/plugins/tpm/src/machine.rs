//! What the plugins take from this machine: configured files, bounded and with Go's error texts; the time; random
//! bytes; threads that may wait.

use std::time::SystemTime;

use spire_compat::files::read_bounded;
use spire_core::time::Timestamp;

/// More than any bundle of manufacturers' certificates needs; what is larger was not meant for us.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// The contents of a file. The error reads like Go's os.ReadFile.
pub(crate) fn read(path: &str) -> Result<Vec<u8>, String> {
    // What a TPM wrote for itself, and certificates: nothing that must be wiped.
    read_bounded(path, MAX_FILE_BYTES).map(|contents| contents.to_vec()).map_err(|error| error.to_string())
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
