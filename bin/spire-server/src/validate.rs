//! `validate`: the configuration is read and every plugin is asked, nothing is started.

use std::collections::BTreeMap;

use spire_cli::Invalid;
use spire_server::config::{ServerConfig, ServerFlags};
use spire_server::runtime;

use crate::daemon::{load, store_config};

/// Checks a configuration.
pub(crate) fn validate(flags: &ServerFlags) -> Result<(), Invalid> {
    let (config, _) = load(flags).map_err(|error| {
        let detail = error.detail().map(|detail| format!("\n{detail}")).unwrap_or_default();
        Invalid::Configuration(format!("{error}{detail}"))
    })?;
    let mut notes = datastore_notes(&config);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Invalid::Unchecked(error.to_string()))?;
    let plugins = runtime
        .block_on(runtime::validate(
            &config,
            &spire_plugins_builtins::server(),
            Some(spire_plugin_host::external_plugins()),
        ))
        .map_err(|error| Invalid::Unchecked(error.to_string()))?;
    notes.extend(plugins);
    if notes.is_empty() { Ok(()) } else { Err(Invalid::Plugins(notes)) }
}

fn datastore_notes(config: &ServerConfig) -> BTreeMap<String, Vec<String>> {
    let note = match config.plugins.iter().find(|plugin| plugin.kind == "DataStore") {
        None => Some("'datastore' must be configured".to_owned()),
        Some(plugin) => {
            store_config(plugin).and_then(|store| store.validate().map_err(|error| error.to_string())).err()
        }
    };
    note.map(|note| ("DataStore \"sql\"".to_owned(), vec![note])).into_iter().collect()
}
