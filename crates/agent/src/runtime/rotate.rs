//! Replacing the agent's own SVID in time (the reference's `pkg/agent/svid/rotator.go`).

use std::sync::atomic::Ordering;
use std::time::Duration;

use spire_ports::observe::{Call, Logged, names};

use super::attest::{AgentSvid, attest_with};
use super::backoff::{Backoff, random};
use super::client::ServerClient;
use super::error::AgentError;
use super::keys::agent_csr;
use super::shared::Core;
use super::status::Verdict;

/// First wait after a failure (pkg/agent/svid: DefaultRotatorInterval).
const RETRY: Duration = Duration::from_secs(5);

/// An agent that was told to attest again tries this long to reach its server, with waits that start so.
const UNREACHABLE_LIMIT: Duration = Duration::from_secs(60);
const UNREACHABLE_RETRY: Duration = Duration::from_secs(1);

impl Core {
    /// Replaces the agent's SVID whenever it is due, until that fails for good.
    pub(super) async fn rotation_loop(&self) -> Result<(), AgentError> {
        let mut backoff = Backoff::new(RETRY);
        let (mut latest, mut of_the_future) = (self.clock.now(), false);
        loop {
            let now = self.clock.now();
            // Where the clock was set back, an SVID that is not valid yet is of a time that it has left again.
            of_the_future |= now < latest && now < self.svid().leaf().not_before();
            latest = now;
            let due = now >= self.renew_at() || of_the_future || self.tainted.load(Ordering::Relaxed);
            if !due {
                tokio::select! {
                    () = self.clock.sleep_until(self.renew_at()) => {}
                    () = self.rotate_now.notified() => {}
                }
                continue;
            }
            let doing = if self.svid().reattestable { "reattest agent" } else { "rotate agent SVID" };
            match self.rotate().await {
                Ok(()) => {
                    backoff.reset();
                    of_the_future = false;
                }
                Err(error) => {
                    tracing::error!(subsystem_name = "manager", error = %error, "Could not {doing}");
                    if self.clock.now() > self.svid().leaf().not_after() {
                        return Err(AgentError::SvidExpired { doing, cause: Box::new(error) });
                    }
                    if error.verdict() != Verdict::Retry {
                        return Err(error);
                    }
                    tokio::time::sleep(backoff.next(random()).unwrap_or(RETRY)).await;
                }
            }
        }
    }

    /// Replaces the agent's SVID now: by attesting again where the server allows it, else by renewal.
    ///
    /// # Errors
    /// [`AgentError`]; the old SVID stays.
    pub async fn rotate(&self) -> Result<(), AgentError> {
        if self.svid().reattestable { self.reattest().await } else { self.renew().await }
    }

    /// Attests again.
    ///
    /// # Errors
    /// [`AgentError`]; the old SVID stays.
    pub(super) async fn reattest(&self) -> Result<(), AgentError> {
        let current = self.svid();
        if !current.reattestable {
            return Err(AgentError::NotReattestable);
        }
        let call = Call::start(&*self.metrics, names::agent::NODE_ATTEST);
        tracing::debug!(subsystem_name = "manager", "Reattesting node");
        let result = async {
            let key = self.keys.next(Some(&*current.key)).await?;
            let client = ServerClient::new(&self.options, self.trust.clone(), None)?;
            let svid = attest_with(&client, &*self.attestor, key, &self.options).await?;
            tracing::info!(subsystem_name = "manager", spiffe_id = %svid.id(), "Successfully reattested node");
            self.replace_svid(svid)
        }
        .await;
        call.done_with(&result);
        result
    }

    /// Attests again, where the server said that this is needed. A server that starts again, or is about to replace
    /// an SVID of its own that is over, is no reason to lose the agent's identity.
    async fn reattest_patiently(&self) -> Result<(), AgentError> {
        let mut backoff = Backoff::new(UNREACHABLE_RETRY).max_elapsed(UNREACHABLE_LIMIT);
        loop {
            let error = match self.reattest().await {
                Err(error) if error.is_unreachable() => error,
                ended => return ended,
            };
            let Some(wait) = backoff.next(random()) else { return Err(error) };
            let interval = Logged::Duration(wait);
            tracing::warn!(
                subsystem_name = "manager", error = %error, retry_interval = interval.value(),
                "Could not reach the server to re-attest; will try again"
            );
            tokio::time::sleep(wait).await;
        }
    }

    async fn renew(&self) -> Result<(), AgentError> {
        let current = self.svid();
        let call = Call::start(&*self.metrics, names::agent::AGENT_SVID_ROTATE);
        tracing::debug!(subsystem_name = "manager", "Rotating agent SVID");
        let result = async {
            let key = self.keys.next(Some(&*current.key)).await?;
            let csr = agent_csr(&*key).await.map_err(super::attest::AttestError::Csr)?;
            let chain = self.client.renew_agent(csr).await?;
            let svid = AgentSvid::new(chain, key, false, &self.options)?;
            tracing::info!(subsystem_name = "manager", spiffe_id = %svid.id(), "Successfully rotated agent SVID");
            self.replace_svid(svid)
        }
        .await;
        call.done_with(&result);
        result
    }

    /// Runs the agent's tasks until one fails for good. They have no state of their own that matters, so they
    /// start afresh after a re-attestation (pkg/agent/manager: Run).
    ///
    /// # Errors
    /// [`AgentError`] says why the agent must stop.
    pub async fn run(&self) -> Result<(), AgentError> {
        loop {
            let ended = tokio::try_join!(
                self.sync_loop(),
                self.svid_loop(),
                self.store_loop(),
                self.rotation_loop(),
                self.push_loop()
            );
            let Err(error) = ended else { return Ok(()) };
            match error.verdict() {
                Verdict::Reattest => {
                    tracing::warn!(subsystem_name = "manager", error = %error, "Agent needs to re-attest; will attempt to re-attest");
                    if let Err(again) = self.reattest_patiently().await {
                        tracing::error!(
                            subsystem_name = "manager", error = %again,
                            "Agent failed re-attestation; removing SVID and shutting down"
                        );
                        self.delete_svid();
                        return Err(error);
                    }
                }
                Verdict::Banned => {
                    tracing::warn!(subsystem_name = "manager", error = %error, "Agent is banned: removing SVID and shutting down");
                    self.delete_svid();
                    return Err(error);
                }
                Verdict::Retry => {
                    tracing::error!(subsystem_name = "manager", error = %error, "Cache manager crashed");
                    return Err(error);
                }
            }
        }
    }
}
