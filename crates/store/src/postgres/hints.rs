//! Hearing at once that another server wrote: `NOTIFY` in the transaction that appends to an events table, `LISTEN` on a
//! connection of its own. A hint makes a poll come sooner and nothing rests on it: an engine that lacks it, or a pooler
//! that swallows it, costs the delay of a poll.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tracing::debug;

use super::connect::Connector;
use super::session::PgSession;
use crate::sql::Session;

/// The channel that servers share.
const CHANNEL: &str = "spire_events";

/// The wait before the channel is listened on again, first and at most.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// How often the connection is looked at, so that one that was cut does not go unnoticed.
const CHECK: Duration = Duration::from_secs(30);

/// What is heard on the channel.
pub(super) struct Hints {
    heard: Arc<Notify>,
    task: Option<AbortHandle>,
}

/// Whether the database knows notifications. Asked outside of a transaction, so that a refusal does no harm.
pub(super) fn are_supported(session: &mut PgSession) -> bool {
    let supported = session.batch(&format!("LISTEN {CHANNEL}; UNLISTEN {CHANNEL}; NOTIFY {CHANNEL}")).is_ok();
    session.forget();
    supported
}

/// The statement that tells the others when the transaction commits.
pub(super) fn announcement(own: &str) -> String {
    format!("NOTIFY {CHANNEL}, '{own}'")
}

impl Hints {
    pub(super) fn start(connector: Arc<Connector>, supported: bool, runtime: &Handle) -> Self {
        let heard = Arc::new(Notify::new());
        if !supported {
            debug!(subsystem_name = "sql", "The database has no notifications; changes are polled for");
            return Self { heard, task: None };
        }
        let own = own_name();
        connector.announce_as(Arc::clone(&own));
        let task = runtime.spawn(listen(connector, Arc::clone(&heard), own));
        Self { heard, task: Some(task.abort_handle()) }
    }

    /// Resolves when something was heard since the last time.
    pub(super) async fn heard(&self) {
        self.heard.notified().await;
    }

    pub(super) fn stop(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A name that no other server has: we do not listen to ourselves.
fn own_name() -> Arc<str> {
    use std::hash::{BuildHasher, RandomState};
    let random = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", random(), random()).into()
}

/// Listens, again and again.
async fn listen(connector: Arc<Connector>, heard: Arc<Notify>, own: Arc<str>) {
    let mut wait = AGAIN;
    loop {
        let listener = {
            let (heard, own) = (Arc::clone(&heard), Arc::clone(&own));
            Arc::new(move |payload: &str| {
                if payload != &*own {
                    heard.notify_one();
                }
            })
        };
        match connector.client(Some(listener)).await {
            Ok(client) => {
                if client.batch_execute(&format!("LISTEN {CHANNEL}")).await.is_ok() {
                    wait = AGAIN;
                    // What was said before we listened may concern us.
                    heard.notify_one();
                    while let Ok(Ok(())) = tokio::time::timeout(CHECK, client.batch_execute("SELECT 1")).await
                    {
                        let _ = tokio::time::timeout(CHECK, closed(&client)).await;
                    }
                }
            }
            Err(error) => debug!(subsystem_name = "sql", error = %error, "Not listening for changes"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN_MAX);
    }
}

/// Resolves soon after the connection ended.
async fn closed(client: &tokio_postgres::Client) {
    while !client.is_closed() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
