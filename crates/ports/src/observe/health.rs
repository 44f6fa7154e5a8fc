//! Health checks: what a subsystem reports, and the registry that the start-up fills.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

/// Names of the checks, which are the keys of the JSON that `/live` and `/ready` answer.
pub mod check {
    /// The server: its own bundle can be fetched over its socket.
    pub const SERVER: &str = "server";
    /// The server's CA: a workload SVID can be signed.
    pub const SERVER_CA: &str = "server.ca";
    /// The CA's rotation did not fail too often in a row.
    pub const SERVER_CA_ROTATOR: &str = "server.ca.rotator";
    /// The datastore: bundles can be listed.
    pub const CATALOG_DATASTORE: &str = "catalog.datastore";
    /// The agent: its Workload API answers.
    pub const AGENT: &str = "agent";
}

/// One side's details of a check: named texts, printed as a JSON object. The reference prints one field with the
/// error, and an empty object when all is well: `get_bundle_err` (server), `sign_x509_svid_err` (server.ca),
/// `rotation_err` (server.ca.rotator), `list_bundle_err` (catalog.datastore), `make_new_x509_err` (agent).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details(BTreeMap<&'static str, String>);

impl Details {
    /// No fields: all is well.
    pub fn empty() -> Self {
        Self::default()
    }

    /// One field with the error's text, or none when there is no error.
    pub fn error(name: &'static str, error: Option<&dyn std::fmt::Display>) -> Self {
        Self(error.map(|error| (name, error.to_string())).into_iter().collect())
    }

    /// The fields by name.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

/// What a check found (`pkg/common/health/health.go`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthState {
    /// Whether the subsystem finished starting; `None` counts as started. A failure while starting is logged once.
    pub started: Option<bool>,
    /// In a good state, or in one it recovers from while it stays alive.
    pub live: bool,
    /// Able to do its work.
    pub ready: bool,
    /// Details for `/live`; `None` prints as `null`.
    pub live_details: Option<Details>,
    /// Details for `/ready`; `None` prints as `null`.
    pub ready_details: Option<Details>,
}

impl HealthState {
    /// Live and ready exactly when there is no error, and the error under `name` in both details: the form of the
    /// server's four checks.
    pub fn of_error(name: &'static str, error: Option<&dyn std::fmt::Display>) -> Self {
        let well = error.is_none();
        let details = Some(Details::error(name, error));
        Self { started: None, live: well, ready: well, live_details: details.clone(), ready_details: details }
    }

    /// Why this state is a failure, in the reference's words; `None` for one that is live and ready.
    pub fn failure(&self) -> Option<&'static str> {
        match (self.ready, self.live) {
            (true, true) => None,
            (true, false) => Some("subsystem is not live"),
            (false, true) => Some("subsystem is not ready"),
            (false, false) => Some("subsystem is not live or ready"),
        }
    }
}

/// A subsystem that can say how it is. A check bounds its own time.
#[async_trait]
pub trait HealthCheck: Send + Sync {
    /// Looks now. The reference allows a check one minute.
    async fn check_health(&self) -> HealthState;
}

/// Why a check was not added.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HealthError {
    /// There is a check of this name already.
    #[error("check {0:?} has already been added")]
    Duplicate(String),
}

/// The checks by name. Cheap to clone; clones share the checks.
#[derive(Clone, Default)]
pub struct HealthChecks {
    checks: Arc<Mutex<BTreeMap<&'static str, Arc<dyn HealthCheck>>>>,
}

impl HealthChecks {
    /// No checks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check under one of the names in [`check`].
    ///
    /// # Errors
    /// [`HealthError::Duplicate`] when there is one under that name.
    pub fn add(&self, name: &'static str, health: Arc<dyn HealthCheck>) -> Result<(), HealthError> {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        if checks.contains_key(name) {
            return Err(HealthError::Duplicate(name.to_owned()));
        }
        checks.insert(name, health);
        Ok(())
    }

    /// The checks that are there now, in the order of their names.
    pub fn all(&self) -> Vec<(&'static str, Arc<dyn HealthCheck>)> {
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.iter().map(|(name, health)| (*name, Arc::clone(health))).collect()
    }
}

impl std::fmt::Debug for HealthChecks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.all().iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(HealthState);

    #[async_trait]
    impl HealthCheck for Fixed {
        async fn check_health(&self) -> HealthState {
            self.0.clone()
        }
    }

    #[test]
    fn a_name_is_taken_once() {
        let checks = HealthChecks::new();
        let well = Arc::new(Fixed(HealthState::of_error("get_bundle_err", None)));
        checks.add(check::SERVER_CA, well.clone()).unwrap();
        checks.add(check::SERVER, well.clone()).unwrap();
        let error = checks.add(check::SERVER, well).unwrap_err();
        assert_eq!(error.to_string(), r#"check "server" has already been added"#);
        let names: Vec<_> = checks.all().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["server", "server.ca"]);
    }

    #[test]
    fn failures_in_words() {
        for (ready, live, expected) in [
            (true, true, None),
            (true, false, Some("subsystem is not live")),
            (false, true, Some("subsystem is not ready")),
            (false, false, Some("subsystem is not live or ready")),
        ] {
            let state = HealthState { ready, live, ..HealthState::default() };
            assert_eq!(state.failure(), expected);
        }
    }

    #[test]
    fn an_error_fills_both_details() {
        let state = HealthState::of_error("list_bundle_err", Some(&"boom"));
        assert!(!state.live && !state.ready);
        let details = state.live_details.unwrap();
        assert_eq!(details.fields().collect::<Vec<_>>(), [("list_bundle_err", "boom")]);
        assert_eq!(state.ready_details, Some(details));
    }
}
