//! A user's authorisation policy in Rego, evaluated for every call (`experimental.auth_opa_policy_engine`).
//!
//! The policy is one module in package `spire` with a rule `result`, an object of five booleans; its data is one JSON
//! object. The input of an evaluation is `{caller, caller_file_path, full_method, req}`, where `req` is the request as
//! Go's `encoding/json` writes the reference's message types ([`request`](mod@request)), or null for methods with streams.
//! All of this is the reference's (pkg/server/authpolicy/policy.go).
//!
//! The policy that a server has without such a setting is compiled into `spire-server` and needs nothing of this crate.

mod request;
#[cfg(test)]
mod tests;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value};
use spire_ports::policy::{Decision, Policy, Question, Undecided};

use request::Requests;

/// Largest policy or data file. A policy that names every SPIFFE ID of a large trust domain is some megabytes.
const FILE_SIZE_MAX: u64 = 64 << 20;

/// What one evaluation may take. The reference has no limit but the caller's patience; a worker of ours is held as long.
const EVALUATION_MAX: ExecutionTimerConfig = ExecutionTimerConfig {
    limit: Duration::from_secs(1),
    check_interval: NonZeroU32::MIN.saturating_add(99),
};

/// What is evaluated.
const RESULT: &str = "data.spire.result";

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A file cannot be read.
    #[error("open {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The module is not Rego.
    #[error("{0}")]
    Rego(String),
    /// The data is not a JSON object.
    #[error("error decoding JSON databindings: {path}: {reason}", path = path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// It is Rego, but gives no decision.
    #[error("authpolicy engine failed to validate on sample test inputs: policy is misconfigured: {0}")]
    Unusable(#[from] Undecided),
}

/// A policy that is loaded and checked.
pub struct RegoPolicy {
    /// Prepared; a clone shares the policy and has its own evaluation.
    engine: Engine,
    requests: Requests,
}

impl RegoPolicy {
    /// Loads a policy and its data; an empty data path is no data.
    ///
    /// # Errors
    /// [`PolicyError`], with file, line and column where the text is at fault.
    pub fn load(rego: &Path, data: Option<&Path>) -> Result<Self, PolicyError> {
        let module = read(rego)?;
        let data = match data {
            None => Value::new_object(),
            Some(path) => {
                let bad = |reason: String| PolicyError::Data { path: path.to_owned(), reason };
                let data = Value::from_json_str(&read(path)?).map_err(|error| bad(error.to_string()))?;
                if data.as_object().is_err() {
                    return Err(bad("not an object".to_owned()));
                }
                data
            }
        };
        Self::new(&rego.display().to_string(), module, data)
    }

    /// `name` is what errors call the module.
    fn new(name: &str, module: String, data: Value) -> Result<Self, PolicyError> {
        let refused = |error: &dyn std::fmt::Display| PolicyError::Rego(told(&error.to_string()));
        let mut engine = Engine::new();
        engine.set_execution_timer_config(EVALUATION_MAX);
        engine.set_strict_builtin_errors(false);
        let package = engine.add_policy(name.to_owned(), module).map_err(|error| refused(&error))?;
        engine.add_data(data).map_err(|error| refused(&error))?;
        let has_result =
            engine.has_declared_rule_rooted_at(name, "result").map_err(|error| refused(&error))?;
        if package != "data.spire" || !has_result {
            return Err(Undecided::Policy("policy: no matching policies found".to_owned()).into());
        }
        // The first evaluation prepares the engine for all later ones.
        engine.set_input(Value::new_object());
        engine.eval_rule(RESULT.to_owned()).map_err(|error| refused(&error))?;
        let policy = Self { engine, requests: Requests::of_server() };
        policy.check()?;
        Ok(policy)
    }

    /// Tries calls of each sort, as the reference does at start (validate.go).
    fn check(&self) -> Result<(), Undecided> {
        for (full_method, has_message) in [
            ("/spire.api.server.bundle.v1.Bundle/GetBundle", true),
            ("/grpc.health.v1.Health/Check", true),
            ("/spire.api.server.agent.v1.Agent/CreateJoinToken", true),
            ("/spire.api.server.agent.v1.Agent/AttestAgent", false),
            ("/spire.api.server.entry.v1.Entry/BatchCreateEntry", true),
            ("/spire.api.server.entry.v1.Entry/ListEntries", true),
        ] {
            for caller in ["", "spiffe://example.org/someid"] {
                let request = has_message.then_some(&[][..]);
                self.decide(&Question { caller, caller_file_path: "", full_method, request })?;
            }
        }
        Ok(())
    }

    fn input(&self, question: &Question<'_>) -> Result<Value, Undecided> {
        let request = match question.request {
            None => Value::Null,
            Some(message) => self.requests.value(question.full_method, message)?,
        };
        Ok(request::object([
            ("caller", question.caller.into()),
            ("caller_file_path", question.caller_file_path.into()),
            ("full_method", question.full_method.into()),
            ("req", request),
        ]))
    }
}

impl Policy for RegoPolicy {
    fn decide(&self, question: &Question<'_>) -> Result<Decision, Undecided> {
        let mut engine = self.engine.clone();
        engine.set_input(self.input(question)?);
        let result = engine
            .eval_rule(RESULT.to_owned())
            .map_err(|error| Undecided::Policy(told(&error.to_string())))?;
        let fault = |text: &str| Undecided::Policy(text.to_owned());
        if result == Value::Undefined {
            return Err(fault("policy: no matching policies found"));
        }
        let result = result
            .as_object()
            .map_err(|_| fault("unexpected type in evaluating policy result expression"))?;
        let flag = |name: &str| match result.get(&Value::from(name)) {
            Some(Value::Bool(flag)) => Ok(*flag),
            _ => Err(Undecided::Policy(format!("policy: result did not contain \"{name}\" bool value"))),
        };
        Ok(Decision {
            allow: flag("allow")?,
            allow_if_admin: flag("allow_if_admin")?,
            allow_if_local: flag("allow_if_local")?,
            allow_if_downstream: flag("allow_if_downstream")?,
            allow_if_agent: flag("allow_if_agent")?,
        })
    }
}

impl std::fmt::Debug for RegoPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegoPolicy")
    }
}

fn read(path: &Path) -> Result<String, PolicyError> {
    use std::io::Read as _;
    let failed = |reason: String| PolicyError::File { path: path.to_owned(), reason };
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut text = String::new();
    let size = file.take(FILE_SIZE_MAX + 1).read_to_string(&mut text);
    if size.map_err(|error| failed(error.to_string()))? as u64 > FILE_SIZE_MAX {
        return Err(failed(format!("larger than {FILE_SIZE_MAX} octets")));
    }
    Ok(text)
}

/// The engine shows an excerpt over several lines, with the place above and the fault below; a log line or a status has
/// room for `file:line:column: fault`.
fn told(error: &str) -> String {
    let place = error.lines().find_map(|line| line.trim().strip_prefix("--> "));
    let fault = error.rsplit_once("error: ").map_or(error, |(_, fault)| fault).trim();
    let fault = fault.lines().next().unwrap_or_default();
    match place {
        Some(place) => format!("{}: {fault}", place.trim()),
        None => fault.to_owned(),
    }
}
