//! The `plugins` section.

use super::{ConfigError, ConfigFile, Location, Notice};
use crate::hcl::ast::{Item, Node};
use crate::hcl::{DecodeError, Fragment};
use crate::quote::quote;

/// Where a plugin's own configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PluginData {
    /// Nothing was configured, or an empty block.
    None,
    /// `plugin_data`. Built-in plugins decode the fragment; external ones get it as text.
    Fixed(Fragment),
    /// `plugin_data_file`: read again at each reload.
    File(String),
}

impl PluginData {
    /// The text that an external plugin is configured with, as the reference prints it. Reads the file, if
    /// it is one.
    ///
    /// # Errors
    /// That of reading the file; [`std::io::ErrorKind::InvalidData`] when it is not UTF-8.
    pub fn load_text(&self) -> std::io::Result<String> {
        match self {
            Self::None => Ok(String::new()),
            Self::Fixed(fragment) => Ok(fragment.print()),
            Self::File(path) => std::fs::read_to_string(path),
        }
    }

    /// Whether a reload can change it.
    pub fn is_dynamic(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

/// One plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginConfig {
    /// `KeyManager`, `NodeAttestor` and so on; not checked here.
    pub kind: String,
    /// Which plugin of that type.
    pub name: String,
    /// `plugin_cmd`, the program of an external plugin; empty for built-in ones.
    pub path: String,
    /// `plugin_args`.
    pub args: Vec<String>,
    /// `plugin_checksum`: SHA-256 of the program in hex, or empty.
    pub checksum: String,
    /// Its own configuration.
    pub data: PluginData,
    /// `enabled = false` was set.
    pub disabled: bool,
    /// Where its block stands.
    pub location: Option<Location>,
}

impl PluginConfig {
    /// Whether it is a program of its own.
    pub fn is_external(&self) -> bool {
        !self.path.is_empty()
    }

    fn is_like(&self, other: &Self) -> bool {
        let data = |data: &PluginData| match data {
            PluginData::None => None,
            PluginData::Fixed(fragment) => Some((true, fragment.print())),
            PluginData::File(path) => Some((false, path.clone())),
        };
        let Self { kind, name, path, args, checksum, data: own, disabled, location: _ } = self;
        (kind, name, path, args, checksum, disabled)
            == (&other.kind, &other.name, &other.path, &other.args, &other.checksum, &other.disabled)
            && data(own) == data(&other.data)
    }
}

/// The plugins whose blocks differ between two configurations, as `plugins.Type "name"`, in the order of the new one
/// and then the removed ones. The content of a `plugin_data_file` does not count, the layout of a block neither.
pub fn changed_plugins(old: &[PluginConfig], new: &[PluginConfig]) -> Vec<String> {
    fn find<'a>(list: &'a [PluginConfig], one: &PluginConfig) -> Option<&'a PluginConfig> {
        list.iter().find(|other| other.kind == one.kind && other.name == one.name)
    }
    let name = |plugin: &PluginConfig| format!("plugins.{} {}", plugin.kind, quote(&plugin.name));
    let added_or_other =
        new.iter().filter(|plugin| find(old, plugin).is_none_or(|known| !known.is_like(plugin)));
    let removed = old.iter().filter(|plugin| find(new, plugin).is_none());
    added_or_other.chain(removed).map(name).collect()
}

/// Which old plugin types and names to translate, ignore or refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegacyPlugins {
    /// `UpstreamCA` is `UpstreamAuthority`, `NodeResolver` is nothing, `k8s_sat` is refused.
    Server,
    /// `k8s_sat` is refused.
    Agent,
}

/// The plugins of a `plugins` section in file order, and warnings about old names.
///
/// # Errors
/// [`ConfigError`], with the texts of the reference (pkg/common/catalog/config.go): the section is no
/// object, a value has another type, a plugin stands twice or has both `plugin_data` and
/// `plugin_data_file`. Ours are those for plugins that can no longer be used (see [`LegacyPlugins`]).
pub fn plugin_configs(
    file: &ConfigFile,
    plugins: &Fragment,
    legacy: LegacyPlugins,
) -> Result<(Vec<PluginConfig>, Vec<Notice>), ConfigError> {
    let Some(items) = plugins.items() else {
        let message = "expected plugins node type *ast.ObjectList but got *ast.LiteralType";
        return Err(file.error_at("plugins", message));
    };
    let mut order = Vec::new();
    plugin_order(items, &mut Vec::new(), &mut order);
    let at = |cause: DecodeError| {
        let mut error = file.undecodable(cause.clone());
        error.message = format!("failed to decode plugins config: {cause}");
        error
    };
    let decoded = plugins.body().and_then(|body| body.twice_labelled()).map_err(at)?;
    let mut notices = Vec::new();
    let mut configs: Vec<PluginConfig> = Vec::new();
    let mut seen: Vec<(String, String)> = Vec::new();
    let known = order.len() == decoded.len();
    for (_, kind, name, mut body) in decoded {
        let ident = (kind, name);
        let key = format!("plugins.{}.{}", ident.0, ident.1);
        let twice = |kind: &str, name: &str| {
            let (kind, name) = (quote(kind), quote(name));
            file.error_at(&key, format!("plugin {kind}/{name} declared more than once"))
        };
        if !known || seen.contains(&ident) {
            return Err(twice(&ident.0, &ident.1));
        }
        let mut plugin = plugin_config(&ident.0, &ident.1, &mut body).map_err(|error| match error {
            PluginError::Decode(cause) => at(cause),
            PluginError::TwoSources => {
                let (kind, name) = (quote(&ident.0), quote(&ident.1));
                let message = format!(
                    "failed to create plugin config for {kind}/{name}: only one of [plugin_data, plugin_data_file] can \
                     be used"
                );
                file.error_at(&key, message)
            }
        })?;
        plugin.location = file.location(&key);
        seen.push(ident);
        let Some(plugin) = modern(file, plugin, legacy, &mut notices)? else { continue };
        if configs.iter().any(|other| other.kind == plugin.kind && other.name == plugin.name) {
            return Err(twice(&plugin.kind, &plugin.name));
        }
        configs.push(plugin);
    }
    Ok((configs, notices))
}

enum PluginError {
    Decode(DecodeError),
    TwoSources,
}

impl From<DecodeError> for PluginError {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

fn plugin_config(
    kind: &str,
    name: &str,
    body: &mut crate::hcl::Body<'_>,
) -> Result<PluginConfig, PluginError> {
    let path = body.take_string("plugin_cmd")?.unwrap_or_default();
    let args = body.take_string_list("plugin_args")?.unwrap_or_default();
    let checksum = body.take_string("plugin_checksum")?.unwrap_or_default();
    let (data, _) = body.take_fragment("plugin_data");
    let data_file = body.take_string("plugin_data_file")?;
    let disabled = body.take_bool("enabled")? == Some(false);
    let data = match (data, data_file) {
        (Some(_), Some(_)) => return Err(PluginError::TwoSources),
        (None, Some(path)) => PluginData::File(path),
        (Some(data), None) if !data.is_empty() => PluginData::Fixed(data),
        (_, None) => PluginData::None,
    };
    let (kind, name) = (kind.to_owned(), name.to_owned());
    Ok(PluginConfig { kind, name, path, args, checksum, data, disabled, location: None })
}

/// Every pair of a type and a name, by going down until two keys have been passed.
fn plugin_order(items: &[Item], keys: &mut Vec<String>, order: &mut Vec<(String, String)>) {
    for item in items {
        let depth = keys.len();
        keys.extend(item.keys.iter().map(|key| key.value().to_owned()));
        match (keys.as_slice(), &item.value) {
            ([kind, name, ..], _) => order.push((kind.clone(), name.clone())),
            (_, Node::Object(object)) => plugin_order(&object.items, keys, order),
            _ => {}
        }
        keys.truncate(depth);
    }
}

/// What an old plugin means today: the plugin to load, or `None` to load nothing.
fn modern(
    file: &ConfigFile,
    mut plugin: PluginConfig,
    legacy: LegacyPlugins,
    notices: &mut Vec<Notice>,
) -> Result<Option<PluginConfig>, ConfigError> {
    let key = format!("plugins.{}.{}", plugin.kind, plugin.name);
    if plugin.kind == "NodeAttestor" && plugin.name == "k8s_sat" && !plugin.is_external() {
        let message = "no built-in plugin \"k8s_sat\" for type \"NodeAttestor\"";
        let hint = "k8s_sat was removed because it cannot tell nodes apart; use k8s_psat";
        return Err(file.error_at(&key, message).with_hint(hint));
    }
    if legacy == LegacyPlugins::Agent {
        return Ok(Some(plugin));
    }
    match plugin.kind.as_str() {
        "UpstreamCA" if plugin.is_external() => {
            let hint = "external UpstreamCA plugins speak a protocol that is gone; \
                        rebuild the plugin as an UpstreamAuthority";
            Err(file.error_at(&key, "unsupported plugin type \"UpstreamCA\"").with_hint(hint))
        }
        "UpstreamCA" => {
            notices.push(file.legacy_notice(
                &key,
                "Plugin type UpstreamCA is read as UpstreamAuthority; please rename it",
            ));
            plugin.kind = "UpstreamAuthority".to_owned();
            Ok(Some(plugin))
        }
        "NodeResolver" if !plugin.is_external() => {
            notices.push(file.legacy_notice(
                &key,
                "Plugin type NodeResolver no longer does anything, node attestors resolve selectors themselves; \
                 please delete it",
            ));
            Ok(None)
        }
        _ => Ok(Some(plugin)),
    }
}
