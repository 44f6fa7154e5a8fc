//! Runs the health checks and keeps what they found, for `/live` and `/ready` (`pkg/common/health` of the reference).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spire_compat::errno::errno_text;
use spire_ports::observe::{Details, HealthChecks, HealthState};
use tracing::Instrument as _;

use crate::health_http;

/// The configuration's `health_checks`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthConfig {
    /// Whether the HTTP listener runs. The checks run anyway: their failures are logged.
    pub listener_enabled: bool,
    /// Host to listen on; empty is `localhost`. An IPv6 address may stand in brackets.
    pub bind_address: String,
    /// Port to listen on; empty is `80`.
    pub bind_port: String,
    /// Path of the liveness probe; empty is `/live`.
    pub live_path: String,
    /// Path of the readiness probe; empty is `/ready`.
    pub ready_path: String,
}

impl HealthConfig {
    /// `host:port` to listen on.
    pub fn address(&self) -> String {
        let host = match self.bind_address.trim_matches(['[', ']']) {
            "" => "localhost",
            host => host,
        };
        let port = or(&self.bind_port, "80");
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    pub(crate) fn probe(&self, path: &str) -> Option<Probe> {
        if path == or(&self.live_path, "/live") {
            Some(Probe::Live)
        } else if path == or(&self.ready_path, "/ready") {
            Some(Probe::Ready)
        } else {
            None
        }
    }
}

/// Which of the two questions is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Should the process stay alive?
    Live,
    /// Can the process do its work?
    Ready,
}

/// Why the health service did not start.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HealthServerError {
    /// Nothing was added to the checks.
    #[error("no health checks defined")]
    NoChecks,
}

/// The health service of a process. Cheap to clone; clones share the results.
#[derive(Clone, Debug)]
pub struct HealthServer {
    config: Arc<HealthConfig>,
    checks: HealthChecks,
    statuses: Arc<Mutex<BTreeMap<&'static str, Status>>>,
}

/// What the last round found out about a check.
#[derive(Clone, Debug, Default)]
struct Status {
    state: HealthState,
    failing: Option<Failing>,
}

#[derive(Clone, Debug)]
struct Failing {
    error: &'static str,
    since: Instant,
    times: u64,
}

impl HealthServer {
    /// A service over these checks; checks that are added later count from the next round.
    pub fn new(config: HealthConfig, checks: HealthChecks) -> Self {
        Self { config: Arc::new(config), checks, statuses: Arc::default() }
    }

    /// Runs the checks, each second until all are live and ready and then each minute, and the listener where it is
    /// enabled, until the future is dropped. A listener that cannot listen is logged, as the reference does.
    ///
    /// # Errors
    /// [`HealthServerError::NoChecks`], at once.
    pub async fn run(&self) -> Result<(), HealthServerError> {
        if self.checks.all().is_empty() {
            return Err(HealthServerError::NoChecks);
        }
        let span = tracing::info_span!("health", subsystem_name = "health");
        let listening = async {
            if self.config.listener_enabled {
                let address = self.config.address();
                tracing::info!(address, "Serving health checks");
                if let Err(error) = health_http::listen(self.clone(), &address).await {
                    tracing::warn!(error = %errno_text(&error), "Error serving health checks");
                }
            }
        };
        async { tokio::join!(listening, self.check_forever()) }.instrument(span).await;
        Ok(())
    }

    /// Runs every check once and keeps and logs what it says.
    pub async fn round(&self) {
        for (name, check) in self.checks.all() {
            let state = check.check_health().await;
            let previous = self.statuses.lock().get(name).cloned().unwrap_or_default();
            let status = judge(name, state, &previous);
            self.statuses.lock().insert(name, status);
        }
    }

    /// The answer to a probe: whether all is well, and each check's details as a JSON object with a line end. A check
    /// that did not run yet is not well, and its details are `null`.
    pub fn answer(&self, probe: Probe) -> (bool, String) {
        let statuses = self.statuses.lock();
        let mut well = true;
        let mut body = serde_json::Map::new();
        for (name, _) in self.checks.all() {
            let state = statuses.get(name).map(|status| &status.state);
            let details = match probe {
                Probe::Live => {
                    well &= state.is_some_and(|state| state.live);
                    state.and_then(|state| state.live_details.as_ref())
                }
                Probe::Ready => {
                    well &= state.is_some_and(|state| state.ready);
                    state.and_then(|state| state.ready_details.as_ref())
                }
            };
            body.insert(name.to_owned(), details.map_or(serde_json::Value::Null, json));
        }
        (well, format!("{}\n", serde_json::Value::Object(body)))
    }

    pub(crate) fn config(&self) -> &HealthConfig {
        &self.config
    }

    async fn check_forever(&self) {
        tracing::debug!("Initializing health checkers");
        let mut interval = UNTIL_READY;
        loop {
            self.round().await;
            if self.answer(Probe::Live).0 && self.answer(Probe::Ready).0 {
                interval = WHEN_READY;
            }
            tokio::time::sleep(interval).await;
        }
    }
}

/// Compares a state with the previous one and logs what changed.
fn judge(name: &str, state: HealthState, previous: &Status) -> Status {
    let now = Instant::now();
    let failing = state.failure().map(|error| {
        if state.started.unwrap_or(true) {
            tracing::error!(check = name, error, "Health check has failed");
        } else if previous.failing.as_ref().is_none_or(|before| before.error != error) {
            tracing::warn!(check = name, error, "Health check has failed. Starting up still.");
        }
        match &previous.failing {
            Some(before) => Failing { error, since: before.since, times: before.times.saturating_add(1) },
            None => Failing { error, since: now, times: 1 },
        }
    });
    match (&previous.failing, &failing) {
        (None, Some(new)) => {
            tracing::warn!(
                check = name,
                details = go_struct(&state),
                error = new.error,
                "Health check failed"
            );
        }
        (Some(old), None) => tracing::info!(
            check = name,
            details = go_struct(&state),
            duration = now.saturating_duration_since(old.since).as_secs_f64(),
            error = old.error,
            failures = old.times,
            "Health check recovered"
        ),
        _ => {}
    }
    Status { state, failing }
}

/// A state as Go prints the reference's struct: `{<nil> false false {boom} {boom}}`.
fn go_struct(state: &HealthState) -> String {
    let started = state.started.map_or("<nil>".to_owned(), |started| started.to_string());
    let details = |details: &Option<Details>| match details {
        Some(details) => {
            let values: Vec<&str> = details.fields().map(|(_, value)| value).collect();
            format!("{{{}}}", values.join(" "))
        }
        None => "<nil>".to_owned(),
    };
    let (live, ready) = (details(&state.live_details), details(&state.ready_details));
    format!("{{{started} {} {} {live} {ready}}}", state.live, state.ready)
}

fn json(details: &Details) -> serde_json::Value {
    details.fields().map(|(name, value)| (name.to_owned(), serde_json::Value::from(value))).collect()
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

/// Between rounds before all checks were well for the first time (the reference's interval).
const UNTIL_READY: Duration = Duration::from_secs(1);

/// Between rounds from then on (the reference's interval).
const WHEN_READY: Duration = Duration::from_secs(60);

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
