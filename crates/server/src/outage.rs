//! What is served while the datastore is away.

use std::time::Duration;

use spire_ports::datastore::{Error, Result};

/// How long a datastore may be silent where what is known without it will do. Agents wait for their answers.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the datastore answers. Where something is known without it, its silence is as good as its absence.
///
/// # Errors
/// The datastore's; [`Error::Unavailable`] if it is silent and something is known.
pub(crate) async fn patiently<T>(known: bool, asked: impl Future<Output = Result<T>>) -> Result<T> {
    if !known {
        return asked.await;
    }
    let silent = |_| Err(Error::Unavailable("the datastore does not answer".into()));
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(silent)
}
