//! A provider in a folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use spire_testkit::{Daemon, Result, place};

use crate::harness::SOON;
use crate::harness::site::text;

/// A key set in SPIFFE's format with one key of JWT-SVIDs.
pub(super) const BUNDLE: &str = r#"{"keys":[{"use":"jwt-svid","kty":"EC","kid":"C6vs25welZOx6WksNYfbMfiw9l96pMnD","crv":"P-256","x":"ngLYQnlfF6GsojUwqtcEE3WgTNG2RUlsGhK73RNEl5k","y":"tKbiDSUSsQ3F1P7wteeHNXIcU-cx6CgSbroeQrQHTLM"}],"spiffe_sequence":1}"#;

/// A provider that listens.
pub(super) struct Provider {
    pub(super) process: Daemon,
    /// Where it listens, if on a port.
    pub(super) port: u16,
}

impl Provider {
    /// Starts `program` in `folder` with this configuration.
    pub(super) fn spawn(program: &Path, folder: &Path, config: &str) -> Result<Daemon> {
        Self::spawn_with(program, folder, config, &[])
    }

    /// As [`Provider::spawn`], with variables of the environment.
    pub(super) fn spawn_with(
        program: &Path,
        folder: &Path,
        config: &str,
        variables: &[(&str, &Path)],
    ) -> Result<Daemon> {
        let file: PathBuf = folder.join(format!("provider-{}.conf", place::port()?));
        place::write(&file, config)?;
        let mut command = Command::new(program);
        command.args(["-config", text(&file)]).current_dir(folder);
        for (name, value) in variables {
            command.env(name, value);
        }
        Daemon::spawn("provider", command)
    }

    /// Starts one that listens on a free port without TLS; `more` is the rest of its configuration.
    pub(super) fn start(program: &Path, folder: &Path, more: &str) -> Result<Self> {
        let port = place::port()?;
        let config = format!(
            "log_level = \"debug\"\nlog_requests = true\ninsecure_addr = \"127.0.0.1:{port}\"\n{more}\n"
        );
        let process = Self::spawn(program, folder, &config)?;
        process.wait_for(&["level=warning", "Serving HTTP (insecure)"], SOON)?;
        Ok(Self { process, port })
    }
}

/// The IDs of the keys in a document.
pub(super) fn key_ids(document: &str) -> Vec<String> {
    let document: serde_json::Value = serde_json::from_str(document).unwrap_or_default();
    let keys = document["keys"].as_array().cloned().unwrap_or_default();
    keys.iter().filter_map(|key| Some(key["kid"].as_str()?.to_owned())).collect()
}
