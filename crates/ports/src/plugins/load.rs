//! Making the configured plugins, in the order of the file and with the reference's texts
//! (pkg/common/catalog).

use std::collections::BTreeMap;
use std::sync::Arc;

use spire_compat::config::{PluginConfig, PluginData};
use spire_compat::hcl::{self, Fragment};
use spire_core::spiffe::TrustDomain;

use tokio::sync::Mutex;

use super::catalog::{Builtins, Configuration};
use super::external::{ExternalPlugin, ExternalPlugins, Launch, Port, Side};
use super::reload::{Current, FromFile, data_hash};
pub use super::reload::{Reconfiguration, Reconfigured};
use super::{Host, PluginType};

/// Why the plugins could not be loaded. Each is logged where it happens; the text is the reference's.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A type that neither side has, or the other side only.
    #[error("unsupported plugin type {0:?}")]
    UnsupportedType(String),
    /// A name that is not built in, without a program.
    #[error("failed to load plugin {name:?}: {}", self.cause())]
    NoBuiltin {
        /// Its name.
        name: String,
        /// Its type.
        kind: String,
        /// The names that are.
        known: Vec<&'static str>,
    },
    /// A program that could not be started as a plugin.
    #[error("failed to load plugin {name:?}: {reason}")]
    Launch {
        /// Its name.
        name: String,
        /// What happened.
        reason: String,
    },
    /// A program that is a plugin of another type.
    #[error("failed to bind plugin {name:?}: {reason}")]
    Bind {
        /// Its name.
        name: String,
        /// What it is.
        reason: String,
    },
    /// The plugin refused its configuration.
    #[error("failed to configure plugin {name:?}: {reason}")]
    Configure {
        /// Its name.
        name: String,
        /// What it said.
        reason: String,
    },
    /// A program in the place of the node attestor `join_token`, whose tokens the server itself looks up.
    #[error("the built-in join_token node attestor cannot be overridden by an external plugin")]
    JoinToken,
    /// Too few or too many of a type.
    #[error("plugin type {kind:?} constraint not satisfied: {reason}")]
    Constraint {
        /// The type.
        kind: &'static str,
        /// What was expected.
        reason: String,
    },
}

impl LoadError {
    /// The text without saying which plugin, which the fields of a log line do (pkg/common/catalog).
    fn cause(&self) -> String {
        match self {
            Self::NoBuiltin { name, kind, known } => {
                // After the reference's words: SPIRE has plugins that are not built here yet.
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                format!("no built-in plugin {name:?} for type {kind:?} (built in: {known})")
            }
            Self::Launch { reason, .. } | Self::Bind { reason, .. } | Self::Configure { reason, .. } => {
                reason.clone()
            }
            _ => self.to_string(),
        }
    }
}

/// The node attestor that is always ours (pkg/server/catalog, pkg/agent/catalog).
const JOIN_TOKEN: &str = "join_token";

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
pub struct Loader {
    trust_domain: TrustDomain,
    host: Host,
    external: Option<(Side, Arc<dyn ExternalPlugins>)>,
    counts: BTreeMap<&'static str, usize>,
    loaded: Vec<LoadedPlugin>,
    from_file: Vec<FromFile>,
    /// What plugins said, where they are only asked and not configured.
    notes: Option<Vec<String>>,
}

impl Loader {
    /// A loader for the plugins of a server or agent of the trust domain, which may ask this of it. It loads built-in
    /// plugins only.
    pub fn new(trust_domain: TrustDomain, host: Host) -> Self {
        Self {
            trust_domain,
            host,
            external: None,
            counts: BTreeMap::new(),
            loaded: Vec::new(),
            from_file: Vec::new(),
            notes: None,
        }
    }

    /// Loads external plugins too, if there is somebody to run them.
    #[must_use]
    pub fn with_external(mut self, side: Side, external: Option<Arc<dyn ExternalPlugins>>) -> Self {
        self.external = external.map(|external| (side, external));
        self
    }

    /// Asks external plugins what they say of their configuration, and configures none of them.
    #[must_use]
    pub fn validating(mut self) -> Self {
        self.notes = Some(Vec::new());
        self
    }

    /// Puts what a plugin said of its configuration into `notes`, under its name as the reference writes it
    /// (`KeyManager "disk"`), after it was `loaded` or refused its configuration.
    ///
    /// # Errors
    /// Another reason for which it was not loaded.
    pub fn note(
        &mut self,
        notes: &mut BTreeMap<String, Vec<String>>,
        config: &PluginConfig,
        loaded: Result<(), LoadError>,
    ) -> Result<(), LoadError> {
        let said = match loaded {
            Err(LoadError::Configure { reason, .. }) => vec![reason],
            other => {
                other?;
                self.notes.as_mut().map(std::mem::take).unwrap_or_default()
            }
        };
        if !said.is_empty() {
            notes.entry(format!("{} \"{}\"", config.kind, config.name)).or_default().extend(said);
        }
        Ok(())
    }

    /// Makes one plugin of the type; `None` if it is disabled.
    ///
    /// # Errors
    /// [`LoadError`] when it is unknown or refuses its configuration; logged already. What was loaded before must
    /// still be closed ([`Loader::into_parts`]).
    pub async fn load<T: ?Sized + Port>(
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
        let plugin = if config.is_external() {
            self.load_external::<T>(kind, config).await?
        } else {
            self.load_builtin(kind, config, builtins).await?
        };
        log.info("Plugin loaded");
        *self.counts.entry(kind.as_str()).or_default() += 1;
        Ok(Some(plugin))
    }

    async fn load_builtin<T: ?Sized + Port>(
        &mut self,
        kind: PluginType,
        config: &PluginConfig,
        builtins: &Builtins<T>,
    ) -> Result<Arc<T>, LoadError> {
        let log = Line { kind: kind.as_str(), config };
        let Some(builtin) = builtins.find(&config.name) else {
            let (name, kind) = (config.name.clone(), kind.as_str().to_owned());
            let error = LoadError::NoBuiltin { name, kind, known: builtins.names().collect() };
            return Err(log.failed("Failed to load plugin", error));
        };
        self.loaded.push(LoadedPlugin::new(kind, config, None));
        let refused = |reason: String| {
            let error = LoadError::Configure { name: config.name.clone(), reason };
            log.failed("Failed to configure plugin", error)
        };
        let text = read_text(config).map_err(refused)?;
        let new_configuration = {
            let (trust_domain, host) = (self.trust_domain.clone(), self.host.clone());
            let plugin = (kind, config.name.clone());
            move |data| Configuration {
                plugin: plugin.clone(),
                trust_domain: trust_domain.clone(),
                data,
                host: host.clone(),
            }
        };
        let data = read_data(&config.data, text.as_deref()).map_err(refused)?;
        // As the reference, which configures what has a configuration (pkg/common/catalog/configure.go).
        if !builtin.configurable && (text.is_some() || data.is_some()) {
            return Err(refused("no supported configuration interface found".to_owned()));
        }
        let plugin =
            (builtin.make)(new_configuration(data)).await.map_err(|error| refused(rpc_text(&error)))?;
        if !builtin.configurable {
            return Ok(plugin);
        }
        let Some(text) = text else {
            log.configured(None);
            return Ok(plugin);
        };
        let hash = data_hash(&text);
        log.configured(Some(&hash));
        let current = Arc::new(Current::new(config.name.clone(), plugin));
        let (replaced, make) = (Arc::clone(&current), Arc::clone(&builtin.make));
        let new_configuration = Arc::new(new_configuration);
        self.from_file.push(FromFile {
            kind: kind.as_str(),
            config: without_secrets(config, true),
            hash: Mutex::new(hash),
            apply: Box::new(move |text| {
                let (replaced, make) = (Arc::clone(&replaced), Arc::clone(&make));
                let new_configuration = Arc::clone(&new_configuration);
                Box::pin(async move {
                    let configuration = new_configuration(parse_text(&text)?);
                    if let Some(taken) = replaced.plugin().reconfigure(&configuration).await {
                        return taken.map_err(|e| rpc_text(&e));
                    }
                    replaced.replace(make(configuration).await.map_err(|e| rpc_text(&e))?);
                    Ok(())
                })
            }),
        });
        Ok(T::reloadable(current))
    }

    async fn load_external<T: ?Sized + Port>(
        &mut self,
        kind: PluginType,
        config: &PluginConfig,
    ) -> Result<Arc<T>, LoadError> {
        let log = Line { kind: kind.as_str(), config };
        let not_loaded = |reason: String| {
            let error = LoadError::Launch { name: config.name.clone(), reason };
            log.failed("Failed to load plugin", error)
        };
        if kind == PluginType::NodeAttestor && config.name == JOIN_TOKEN {
            return Err(log.failed("Failed to load plugin", LoadError::JoinToken));
        }
        let Some((side, external)) = &self.external else {
            return Err(not_loaded("external plugins cannot be run here".to_owned()));
        };
        let launch = Launch {
            side: *side,
            kind,
            name: config.name.clone(),
            path: config.path.clone(),
            args: config.args.clone(),
            checksum: config.checksum.clone(),
            trust_domain: self.trust_domain.clone(),
            host: self.host.clone(),
        };
        let running = external.launch(launch).await.map_err(not_loaded)?;
        self.loaded.push(LoadedPlugin::new(kind, config, Some(Arc::clone(&running))));
        let Some(plugin) = T::bind(Arc::clone(&running)) else {
            let services: Vec<String> = running.services().iter().map(|s| format!("{s:?}")).collect();
            let reason = format!("no supported plugin interface found in: [{}]", services.join(" "));
            let error = LoadError::Bind { name: config.name.clone(), reason };
            return Err(log.failed("Failed to bind plugin", error));
        };
        self.configure(kind, config, running).await?;
        Ok(plugin)
    }

    async fn configure(
        &mut self,
        kind: PluginType,
        config: &PluginConfig,
        running: Arc<dyn ExternalPlugin>,
    ) -> Result<(), LoadError> {
        let log = Line { kind: kind.as_str(), config };
        if let Some(notes) = &mut self.notes {
            match config.data.load_text() {
                Ok(_) if !running.is_configurable() => {}
                Ok(text) => notes.extend(running.validate(text).await),
                Err(error) => notes.push(format!("failed to read plugin configuration: {error}")),
            }
            return Ok(());
        }
        let refused = |reason: String| {
            let error = LoadError::Configure { name: config.name.clone(), reason };
            log.failed("Failed to configure plugin", error)
        };
        if !running.is_configurable() {
            return match config.data {
                PluginData::None => Ok(()),
                _ => Err(refused("no supported configuration interface found".to_owned())),
            };
        }
        let text =
            config.data.load_text().map_err(|e| refused(format!("failed to load plugin data: {e}")))?;
        let hash = data_hash(&text);
        running.configure(text).await.map_err(refused)?;
        if !config.data.is_dynamic() {
            log.configured(None);
            return Ok(());
        }
        log.configured(Some(&hash));
        self.from_file.push(FromFile {
            kind: kind.as_str(),
            config: without_secrets(config, true),
            hash: Mutex::new(hash),
            apply: Box::new(move |text| {
                let running = Arc::clone(&running);
                Box::pin(async move { running.configure(text).await })
            }),
        });
        Ok(())
    }

    /// What ends the plugins when the process stops, and what gives them new configurations.
    pub fn into_parts(self) -> (Unloading, Reconfiguration) {
        (Unloading(self.loaded), Reconfiguration(self.from_file))
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

/// A plugin that was loaded, for its end.
struct LoadedPlugin {
    kind: &'static str,
    config: PluginConfig,
    external: Option<Arc<dyn ExternalPlugin>>,
}

impl LoadedPlugin {
    fn new(kind: PluginType, config: &PluginConfig, external: Option<Arc<dyn ExternalPlugin>>) -> Self {
        Self { kind: kind.as_str(), config: without_secrets(config, false), external }
    }
}

/// The configuration without data, which may hold secrets and which nobody needs any more. The name of a file
/// may stay.
fn without_secrets(config: &PluginConfig, keep_file: bool) -> PluginConfig {
    let data = match &config.data {
        PluginData::File(path) if keep_file => PluginData::File(path.clone()),
        _ => PluginData::None,
    };
    PluginConfig { data, ..config.clone() }
}

/// The plugins that were loaded, in that order.
#[derive(Default)]
pub struct Unloading(Vec<LoadedPlugin>);

impl Unloading {
    /// Ends the plugins, the last one first, and says so (pkg/common/catalog: closers). Built-in plugins have nothing
    /// to end; dropping them is all.
    pub async fn close(&self) {
        tracing::debug!(subsystem_name = "catalog", "Closing catalog");
        self.unload().await;
        tracing::info!(subsystem_name = "catalog", "Catalog closed");
    }

    /// Ends the plugins of a catalog that could not be loaded whole.
    pub async fn unload(&self) {
        for LoadedPlugin { kind, config, external } in self.0.iter().rev() {
            let log = Line { kind, config };
            log.debug("Unloading plugin");
            match external {
                Some(external) => external.close().await,
                None => log.debug("Plugin deinitialized"),
            }
            log.info("Plugin unloaded");
        }
    }
}

/// The text of a `plugin_data_file`.
fn read_text(config: &PluginConfig) -> Result<Option<String>, String> {
    if !config.data.is_dynamic() {
        return Ok(None);
    }
    config.data.load_text().map(Some).map_err(|e| format!("failed to load plugin data: {e}"))
}

fn read_data(data: &PluginData, text: Option<&str>) -> Result<Option<Fragment>, String> {
    match (data, text) {
        (PluginData::Fixed(fragment), _) => Ok(Some(fragment.clone())),
        (_, Some(text)) => parse_text(text),
        _ => Ok(None),
    }
}

fn parse_text(text: &str) -> Result<Option<Fragment>, String> {
    let document = hcl::parse(text).map_err(|e| format!("failed to load plugin data: {e}"))?;
    Ok(Some(document.into()))
}

/// The reference configures built-in plugins over gRPC too, and shows that error as it is.
fn rpc_text(error: &super::Error) -> String {
    format!("rpc error: code = {:?} desc = {}", error.kind, error.message)
}

/// Log lines about one plugin.
pub(super) struct Line<'a> {
    pub(super) kind: &'a str,
    pub(super) config: &'a PluginConfig,
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

    fn configured(&self, hash: Option<&str>) {
        tracing::info!(
            external = self.config.is_external(),
            plugin_name = self.config.name,
            plugin_type = self.kind,
            reconfigurable = hash.is_some(),
            hash,
            subsystem_name = "catalog",
            "Configured plugin"
        );
    }

    pub(super) fn unchanged(&self, hash: &str) {
        tracing::info!(
            external = self.config.is_external(),
            plugin_name = self.config.name,
            plugin_type = self.kind,
            hash,
            subsystem_name = "catalog",
            "Plugin not reconfigured since the config is unchanged"
        );
    }

    pub(super) fn reconfigured(&self, old_hash: &str, new_hash: &str) {
        tracing::info!(
            external = self.config.is_external(),
            plugin_name = self.config.name,
            plugin_type = self.kind,
            old_hash,
            new_hash,
            subsystem_name = "catalog",
            "Plugin reconfigured"
        );
    }

    pub(super) fn not_reconfigured(&self, reason: &str) {
        tracing::error!(
            external = self.config.is_external(),
            plugin_name = self.config.name,
            plugin_type = self.kind,
            subsystem_name = "catalog",
            error = reason,
            "Failed to reconfigure plugin"
        );
    }

    fn failed(&self, message: &str, error: LoadError) -> LoadError {
        tracing::error!(
            external = self.config.is_external(),
            plugin_name = self.config.name,
            plugin_type = self.kind,
            subsystem_name = "catalog",
            position = self.config.location.as_ref().map(ToString::to_string),
            error = error.cause(),
            "{message}"
        );
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::{AgentNodeAttestor, NodeAttestor, WorkloadAttestor};

    fn program(disabled: bool) -> PluginConfig {
        PluginConfig {
            kind: String::new(),
            name: "join_token".to_owned(),
            path: "/does/not/exist".to_owned(),
            args: Vec::new(),
            checksum: String::new(),
            data: PluginData::None,
            disabled,
            location: None,
        }
    }

    async fn said<T: ?Sized + Port>(loader: &mut Loader, kind: PluginType, config: &PluginConfig) -> String {
        let loaded = loader.load::<T>(kind, config, &Builtins::default()).await;
        loaded.err().map_or_else(String::new, |error| error.to_string())
    }

    /// On either side, and when plugins are only asked; one that is switched off is not looked at.
    #[tokio::test]
    async fn join_token_is_not_overridden() {
        let trust_domain = TrustDomain::parse("example.org").expect("valid");
        let refused = "the built-in join_token node attestor cannot be overridden by an external plugin";
        let loader = || Loader::new(trust_domain.clone(), Host::none());
        for mut loader in [loader(), loader().validating()] {
            let kind = PluginType::NodeAttestor;
            assert_eq!(said::<dyn NodeAttestor>(&mut loader, kind, &program(false)).await, refused);
            assert_eq!(said::<dyn AgentNodeAttestor>(&mut loader, kind, &program(false)).await, refused);
            assert_eq!(said::<dyn NodeAttestor>(&mut loader, kind, &program(true)).await, "");
            let kind = PluginType::WorkloadAttestor;
            assert_ne!(said::<dyn WorkloadAttestor>(&mut loader, kind, &program(false)).await, refused);
        }
    }
}
