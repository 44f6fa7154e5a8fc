//! Credentials that a program gives: `exec` of a kubeconfig's user (client-go `plugin/pkg/client/auth/exec`).
//!
//! The program is one that the kubeconfig's writer named. It gets our environment and what the kubeconfig adds, nothing to
//! read, a bounded time, and its answer a bounded size.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::json;
use spire_compat::quote::quote;
use spire_net::tls::Identity;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use zeroize::Zeroizing;

use super::access::{bearer, nullable};

/// Time of one run. Those of clouds take a second or two; an agent that attests waits meanwhile.
const TIME_MAX: Duration = Duration::from_secs(20);

/// Size of an answer: a token and a chain of certificates with its key.
const OUTPUT_MAX: u64 = 1 << 20;

/// For how long credentials count that do not say it. client-go asks again when they are refused.
const KEPT: Duration = Duration::from_secs(60);

/// How long before its end a credential is not used any more.
const MARGIN: Duration = Duration::from_secs(5);

/// Different settings whose credentials are kept; there is one a cluster.
const SETTINGS_MAX: usize = 16;

const VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

/// `exec` as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Settings {
    #[serde(deserialize_with = "nullable")]
    api_version: String,
    #[serde(deserialize_with = "nullable")]
    command: String,
    #[serde(deserialize_with = "nullable")]
    args: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    env: Vec<Variable>,
    #[serde(deserialize_with = "nullable")]
    install_hint: String,
    #[serde(deserialize_with = "nullable")]
    provide_cluster_info: bool,
    #[serde(deserialize_with = "nullable")]
    interactive_mode: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Variable {
    name: String,
    value: String,
}

/// A program to ask, and what it is told.
#[derive(Clone, Debug)]
pub(super) struct Exec {
    program: PathBuf,
    settings: Settings,
    /// `KUBERNETES_EXEC_INFO`.
    told: String,
}

/// What a program gave.
#[derive(Clone, Debug)]
pub(super) struct Credential {
    pub(super) identity: Option<Arc<Identity>>,
    /// The value of `Authorization`.
    pub(super) authorization: Option<Zeroizing<String>>,
}

impl Settings {
    /// The program; `user` is whose settings these are, `folder` the kubeconfig's, `cluster` what the program may want to know
    /// of the API server.
    pub(super) fn resolve(
        self,
        user: &str,
        folder: &Path,
        cluster: &serde_json::Value,
    ) -> Result<Exec, String> {
        let missing = |what: &str| {
            format!(
                "invalid configuration: {what} must be specified for {user} to use exec authentication plugin"
            )
        };
        if self.command.is_empty() {
            return Err(missing("command"));
        }
        if self.api_version.is_empty() {
            return Err(missing("apiVersion"));
        }
        if !VERSIONS.contains(&self.api_version.as_str()) {
            return Err(format!("exec plugin: invalid apiVersion {}", quote(&self.api_version)));
        }
        match self.interactive_mode.as_str() {
            "" if self.api_version == VERSIONS[0] => return Err(missing("interactiveMode")),
            "" | "Never" | "IfAvailable" => {}
            "Always" => {
                return Err("exec plugin cannot support interactive mode: standard input is not a terminal"
                    .to_owned());
            }
            other => {
                return Err(format!(
                    "invalid configuration: invalid interactiveMode for {user}: {}",
                    quote(other)
                ));
            }
        }
        // Only what names a folder is meant from the kubeconfig's on.
        let program = match self.command.contains('/') {
            true => folder.join(&self.command),
            false => self.command.clone().into(),
        };
        let mut spec = json!({"interactive": false});
        if self.provide_cluster_info {
            spec["cluster"] = cluster.clone();
        }
        let told =
            json!({"apiVersion": self.api_version, "kind": "ExecCredential", "spec": spec}).to_string();
        Ok(Exec { program, settings: self, told })
    }
}

type Slot = Arc<tokio::sync::Mutex<Option<(Credential, OffsetDateTime)>>>;

/// What programs gave, by how they were asked: access to an API server is read anew for each use, and a program may take
/// seconds.
static KEPT_CREDENTIALS: parking_lot::Mutex<Vec<(String, Slot)>> = parking_lot::Mutex::new(Vec::new());

impl Exec {
    /// A credential that is good for now; of those who ask at once one runs the program.
    ///
    /// # Errors
    /// What is wrong with the program or its answer, in client-go's words where that has some.
    pub(super) async fn credential(&self) -> Result<Credential, String> {
        let slot = self.slot();
        let mut kept = slot.lock().await;
        if let Some((credential, until)) = &*kept
            && OffsetDateTime::now_utc() + MARGIN < *until
        {
            return Ok(credential.clone());
        }
        *kept = None;
        let output = self.run().await?;
        let (credential, until) = self.read(&output)?;
        let until = until.unwrap_or_else(|| OffsetDateTime::now_utc() + KEPT);
        *kept = Some((credential.clone(), until));
        Ok(credential)
    }

    fn slot(&self) -> Slot {
        let key = format!("{:?} {:?} {}", self.program, self.settings, self.told);
        let mut slots = KEPT_CREDENTIALS.lock();
        if let Some((_, slot)) = slots.iter().find(|(known, _)| *known == key) {
            return Arc::clone(slot);
        }
        if slots.len() >= SETTINGS_MAX {
            slots.remove(0);
        }
        let slot = Slot::default();
        slots.push((key, Arc::clone(&slot)));
        slot
    }

    async fn run(&self) -> Result<Zeroizing<Vec<u8>>, String> {
        let program = self.program.display();
        let mut command = Command::new(&self.program);
        command.args(&self.settings.args);
        command.envs(self.settings.env.iter().map(|one| (&one.name, &one.value)));
        command.env("KUBERNETES_EXEC_INFO", &self.told);
        // Its errors are for whoever reads ours; its output holds secrets. A process group of its own, so that a timeout can
        // end what it started too.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).process_group(0);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                let hint = self.settings.install_hint.as_str();
                let name = self.program.file_name().unwrap_or_default().to_string_lossy();
                let text = format!("getting credentials: exec: executable {name} not found");
                if hint.is_empty() { text } else { format!("{text}\n\n{hint}") }
            }
            _ => format!("getting credentials: exec: {program}: {error}"),
        })?;
        let group = child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
        let ended = tokio::time::timeout(TIME_MAX, async {
            let mut output = Zeroizing::new(Vec::new());
            if let Some(stdout) = child.stdout.take() {
                stdout.take(OUTPUT_MAX + 1).read_to_end(&mut output).await?;
            }
            // Who says too much may wait for a reader for ever.
            if output.len() as u64 > OUTPUT_MAX {
                return Ok((None, output));
            }
            Ok::<_, std::io::Error>((Some(child.wait().await?), output))
        })
        .await;
        let end = || {
            if let Some(group) = group {
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
        };
        match ended {
            Ok(Ok((Some(status), output))) if status.success() => Ok(output),
            Ok(Ok((Some(status), _))) => {
                let code = status.code().unwrap_or(-1);
                Err(format!("getting credentials: exec: executable {program} failed with exit code {code}"))
            }
            Ok(Ok((None, _))) => {
                end();
                Err(format!("getting credentials: exec: {program}: more than {OUTPUT_MAX} bytes of output"))
            }
            Ok(Err(error)) => {
                end();
                Err(format!("getting credentials: exec: {program}: {error}"))
            }
            Err(_) => {
                end();
                Err(format!("getting credentials: exec: {program}: took longer than {TIME_MAX:?}"))
            }
        }
    }

    fn read(&self, output: &[u8]) -> Result<(Credential, Option<OffsetDateTime>), String> {
        // What was read stands in no error: it holds secrets.
        let answer: Answer = serde_json::from_slice(output).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            format!(
                "getting credentials: decoding stdout: not an ExecCredential (line {line}, column {column})"
            )
        })?;
        let version = &self.settings.api_version;
        if answer.kind != "ExecCredential" || answer.api_version != *version {
            return Err(format!(
                "getting credentials: exec plugin is configured to use API version {version}, plugin returned version {}",
                answer.api_version.chars().filter(char::is_ascii_graphic).take(100).collect::<String>()
            ));
        }
        let status = answer.status.ok_or("getting credentials: exec plugin didn't return a status field")?;
        let (certificate, key) = (&status.client_certificate_data, &status.client_key_data);
        if status.token.is_empty() && certificate.is_empty() && key.is_empty() {
            return Err("getting credentials: exec plugin didn't return a token or cert/key pair".to_owned());
        }
        if certificate.is_empty() != key.is_empty() {
            return Err(
                "getting credentials: exec plugin returned only certificate or key, not both".to_owned()
            );
        }
        let identity = match certificate.as_str() {
            "" => None,
            certificate => {
                let identity = Identity::empty();
                let replaced = identity.replace_pem(certificate.as_bytes(), key.as_bytes());
                replaced.map_err(|error| {
                    format!("getting credentials: failed parsing client key/certificate: {error}")
                })?;
                Some(identity)
            }
        };
        let until = match status.expiration_timestamp.as_str() {
            "" => None,
            text => Some(OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
                "getting credentials: decoding stdout: expirationTimestamp is no time".to_owned()
            })?),
        };
        Ok((Credential { identity, authorization: bearer(&status.token) }, until))
    }
}

/// `ExecCredential`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Answer {
    #[serde(deserialize_with = "nullable")]
    kind: String,
    #[serde(deserialize_with = "nullable")]
    api_version: String,
    status: Option<AnswerStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AnswerStatus {
    #[serde(deserialize_with = "nullable")]
    expiration_timestamp: String,
    #[serde(deserialize_with = "secret")]
    token: Zeroizing<String>,
    #[serde(deserialize_with = "nullable")]
    client_certificate_data: String,
    #[serde(deserialize_with = "secret")]
    client_key_data: Zeroizing<String>,
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Zeroizing<String>, D::Error> {
    nullable(deserializer).map(Zeroizing::new)
}
