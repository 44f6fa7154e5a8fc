//! `validate`: the configuration is read and every plugin is asked, nothing is started.

use spire_agent::assembly;
use spire_agent::config::{AgentConfig, AgentFlags};
use spire_cli::Invalid;

use crate::daemon::log_refusal;

/// Checks a configuration.
pub(crate) fn validate(flags: &AgentFlags) -> Result<(), Invalid> {
    let config = AgentConfig::load(flags).map_err(|error| {
        log_refusal(&error);
        let detail = error.detail().map(|detail| format!("\n{detail}")).unwrap_or_default();
        Invalid::Configuration(format!("{error}{detail}"))
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Invalid::Unchecked(error.to_string()))?;
    let notes = runtime
        .block_on(assembly::validate(
            &config,
            &spire_plugins_builtins::agent(),
            Some(spire_plugin_host::external_plugins()),
        ))
        .map_err(|error| Invalid::Unchecked(error.to_string()))?;
    if notes.is_empty() { Ok(()) } else { Err(Invalid::Plugins(notes)) }
}
