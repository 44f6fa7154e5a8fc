//! The settings of the plugin, checked as the reference checks them: the first thing that is wrong is the answer.

use std::path::PathBuf;

use spire_compat::config::absolute_path;
use spire_compat::hcl::{Body, DecodeError};
use spire_compat::quote::quote;
use spire_ports::plugins::Result;
use spire_ports::plugins::catalog::Configuration;

/// Where the upstream server and the Workload API are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// `server_address`: a name or an IP address.
    pub(crate) host: String,
    /// `server_port`.
    pub(crate) port: u16,
    /// `workload_api_socket`, absolute.
    pub(crate) socket: PathBuf,
    /// `experimental.require_pq_kem`.
    pub(crate) require_pq_kem: bool,
}

/// Settings as written.
#[derive(Default)]
struct Raw {
    host: String,
    port: String,
    socket: String,
    named_pipe: String,
    require_pq_kem: bool,
}

pub(crate) fn read(configuration: &Configuration) -> Result<Settings> {
    let raw = configuration
        .decode(decode)
        .map_err(|_| configuration.invalid("plugin configuration is malformed"))?;
    let required = [(&raw.host, "server_address is required"), (&raw.port, "server_port is required")];
    if let Some((_, message)) = required.into_iter().find(|(value, _)| value.is_empty()) {
        return Err(configuration.invalid(message));
    }
    if !raw.named_pipe.is_empty() {
        return Err(configuration.invalid(
            "configuration: workload_api_named_pipe_name is not supported on this platform; please use \
             workload_api_socket instead",
        ));
    }
    if raw.socket.is_empty() {
        return Err(configuration.invalid("workload_api_socket is required"));
    }
    let port = raw.port.parse().map_err(|_| {
        configuration.invalid(format!("server_port must be a port number, not {}", quote(&raw.port)))
    })?;
    let socket = absolute_path(&raw.socket);
    Ok(Settings { host: raw.host, port, socket, require_pq_kem: raw.require_pq_kem })
}

fn decode(data: &mut Body<'_>) -> std::result::Result<Raw, DecodeError> {
    let mut raw = Raw {
        host: data.take_string("server_address")?.unwrap_or_default(),
        port: data.take_string("server_port")?.unwrap_or_default(),
        socket: data.take_string("workload_api_socket")?.unwrap_or_default(),
        ..Raw::default()
    };
    if let Some(mut experimental) = data.take_block("experimental")? {
        raw.named_pipe = experimental.take_string("workload_api_named_pipe_name")?.unwrap_or_default();
        raw.require_pq_kem = experimental.take_bool("require_pq_kem")?.unwrap_or_default();
    }
    Ok(raw)
}
