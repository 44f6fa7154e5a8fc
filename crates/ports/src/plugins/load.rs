//! Making the configured plugins, in the order of the file and with the reference's texts
//! (pkg/common/catalog).

use std::collections::BTreeMap;
use std::sync::Arc;

use spire_compat::config::{PluginConfig, PluginData};
use spire_compat::hcl::{self, Fragment};
use spire_core::spiffe::TrustDomain;

use super::catalog::{Builtins, Configuration};
use super::{Host, PluginType};

/// Why the plugins could not be loaded. Each is logged where it happens; the text is the reference's.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A type that neither side has, or the other side only.
    #[error("unsupported plugin type {0:?}")]
    UnsupportedType(String),
    /// A name that is not built in, without a program.
    #[error("failed to load plugin {name:?}: no built-in plugin {name:?} for type {kind:?}")]
    NoBuiltin {
        /// Its name.
        name: String,
        /// Its type.
        kind: String,
    },
    /// A program.
    #[error("failed to load plugin {0:?}: external plugins are not built yet")]
    External(String),
    /// The plugin refused its configuration.
    #[error("failed to configure plugin {name:?}: {reason}")]
    Configure {
        /// Its name.
        name: String,
        /// What it said.
        reason: String,
    },
    /// Too few or too many of a type.
    #[error("plugin type {kind:?} constraint not satisfied: {reason}")]
    Constraint {
        /// The type.
        kind: &'static str,
        /// What was expected.
        reason: String,
    },
}

/// How many plugins of a type there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each says it")]
pub enum Count {
    ExactlyOne,
    AtLeastOne,
    AtMostOne,
    Any,
}

/// Loads plugins one by one and counts them by type.
#[derive(Debug)]
pub struct Loader {
    trust_domain: TrustDomain,
    host: Host,
    counts: BTreeMap<&'static str, usize>,
    loaded: Vec<(&'static str, PluginConfig)>,
}

impl Loader {
    /// A loader for the plugins of a server or agent of the trust domain, which may ask this of it.
    pub fn new(trust_domain: TrustDomain, host: Host) -> Self {
        Self { trust_domain, host, counts: BTreeMap::new(), loaded: Vec::new() }
    }

    /// Makes one plugin of the type; `None` if it is disabled.
    ///
    /// # Errors
    /// [`LoadError`] when it is unknown or refuses its configuration; logged already.
    pub async fn load<T: ?Sized>(
        &mut self,
        kind: PluginType,
        config: &PluginConfig,
        builtins: &Builtins<T>,
    ) -> Result<Option<Arc<T>>, LoadError> {
        let log = Line { kind: kind.as_str(), config };
        if config.disabled {
            log.debug("Not loading plugin; disabled");
            return Ok(None);
        }
        if config.is_external() {
            return Err(log.failed("Failed to load plugin", LoadError::External(config.name.clone())));
        }
        let Some(builtin) = builtins.find(&config.name) else {
            let error = LoadError::NoBuiltin { name: config.name.clone(), kind: kind.as_str().to_owned() };
            return Err(log.failed("Failed to load plugin", error));
        };
        let refused = |reason: String| {
            let error = LoadError::Configure { name: config.name.clone(), reason };
            log.failed("Failed to configure plugin", error)
        };
        let configuration = Configuration {
            plugin: (kind, config.name.clone()),
            trust_domain: self.trust_domain.clone(),
            data: read_data(&config.data).map_err(refused)?,
            host: self.host.clone(),
        };
        let plugin = (builtin.make)(configuration).await.map_err(|error| {
            // The reference configures built-in plugins over gRPC too, and shows that error as it is.
            refused(format!("rpc error: code = {:?} desc = {}", error.kind, error.message))
        })?;
        if builtin.configurable {
            log.configured();
        }
        log.info("Plugin loaded");
        *self.counts.entry(kind.as_str()).or_default() += 1;
        // Its data may hold secrets, and nobody needs it any more.
        self.loaded.push((kind.as_str(), PluginConfig { data: PluginData::None, ..config.clone() }));
        Ok(Some(plugin))
    }

    /// What [`Unloading`] says when the process stops and the plugins go.
    pub fn into_unloading(self) -> Unloading {
        Unloading(self.loaded)
    }

    /// Refuses a plugin of a type that this side does not have.
    pub fn unsupported(&self, config: &PluginConfig) -> LoadError {
        let error = LoadError::UnsupportedType(config.kind.clone());
        Line { kind: &config.kind, config }.failed("Unsupported plugin type", error)
    }

    /// Checks how many plugins of a type were loaded.
    ///
    /// # Errors
    /// [`LoadError::Constraint`] when there are too few or too many.
    pub fn check(&self, kind: PluginType, count: Count) -> Result<(), LoadError> {
        let got = self.counts.get(kind.as_str()).copied().unwrap_or(0);
        let reason = match count {
            Count::ExactlyOne if got != 1 => format!("expected exactly 1 but got {got}"),
            Count::AtLeastOne if got < 1 => format!("expected at least 1 but got {got}"),
            Count::AtMostOne if got > 1 => format!("expected at most 1 but got {got}"),
            _ => return Ok(()),
        };
        Err(LoadError::Constraint { kind: kind.as_str(), reason })
    }
}

/// The plugins that were loaded, in that order.
#[derive(Debug, Default)]
pub struct Unloading(Vec<(&'static str, PluginConfig)>);

impl Unloading {
    /// Logs that the plugins are gone, the last one first (pkg/common/catalog: closers). Built-in plugins have nothing
    /// to end; dropping them is all.
    pub fn log(&self) {
        tracing::debug!(subsystem_name = "catalog", "Closing catalog");
        for (kind, config) in self.0.iter().rev() {
            let log = Line { kind, config };
            log.debug("Unloading plugin");
            log.debug("Plugin deinitialized");
            log.info("Plugin unloaded");
        }
        tracing::info!(subsystem_name = "catalog", "Catalog closed");
    }
}

fn read_data(data: &PluginData) -> Result<Option<Fragment>, String> {
    match data {
        PluginData::None => Ok(None),
        PluginData::Fixed(fragment) => Ok(Some(fragment.clone())),
        PluginData::File(_) => {
            let text = data.load_text().map_err(|e| format!("failed to load plugin data: {e}"))?;
            let document = hcl::parse(text).map_err(|e| format!("failed to load plugin data: {e}"))?;
            Ok(Some(document.into()))
        }
    }
}

/// Log lines about one plugin.
struct Line<'a> {
    kind: &'a str,
    config: &'a PluginConfig,
}

impl Line<'_> {
    fn debug(&self, message: &str) {
        tracing::debug!(
            external = self.config.is_external(),
            plugin_name = self.config.name,
            plugin_type = self.kind,
            subsystem_name = "catalog",
            "{message}"
        );
    }

    fn info(&self, message: &str) {
        tracing::info!(
            external = self.config.is_external(),
            plugin_name = self.config.name,
            plugin_type = self.kind,
            subsystem_name = "catalog",
            "{message}"
        );
    }

    fn configured(&self) {
        tracing::info!(
            external = self.config.is_external(),
            plugin_name = self.config.name,
            plugin_type = self.kind,
            reconfigurable = self.config.data.is_dynamic(),
            subsystem_name = "catalog",
            "Configured plugin"
        );
    }

    fn failed(&self, message: &str, error: LoadError) -> LoadError {
        tracing::error!(
            external = self.config.is_external(),
            plugin_name = self.config.name,
            plugin_type = self.kind,
            subsystem_name = "catalog",
            error = %error,
            "{message}"
        );
        error
    }
}
