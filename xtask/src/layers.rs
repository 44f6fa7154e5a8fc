//! The layering rule: the folder of a crate decides what it may depend on, and arrows point down only.
//!
//! ARCHITECTURE.md draws it; this is its table. A folder without a row is an error, so that a new crate
//! cannot come in without a place.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Where a crate stands, read from its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    /// core (which is pure), compat, wire: below everything.
    Base,
    /// Traits over the model; they see core alone.
    Ports,
    /// TLS and sockets, which other adapters use.
    Net,
    /// What the plugins of container engines share: where a process is, and who signed its image.
    Containers,
    /// Log formats and metric sinks.
    Telemetry,
    /// The datastore, and external plugins behind the ports.
    Adapter,
    /// Built-in plugins of one technology.
    Plugin,
    /// The list of all built-in plugins.
    Builtins,
    /// Server, agent, oidc, cli.
    Application,
    /// What assembles a process.
    Binary,
    /// `bin/spire`, whose `dev` must build without every cloud.
    DevBinary,
    Testing,
    Xtask,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "base",
            Self::Ports => "ports",
            Self::Net | Self::Containers | Self::Telemetry | Self::Adapter => "adapter",
            Self::Plugin => "plugin",
            Self::Builtins => "builtins",
            Self::Application => "application",
            Self::Binary | Self::DevBinary => "binary",
            Self::Testing => "testing",
            Self::Xtask => "xtask",
        })
    }
}

impl Layer {
    /// The layer of a crate's folder, given below the workspace with forward slashes.
    pub(crate) fn of(folder: &str) -> Option<Self> {
        let parts: Vec<&str> = folder.split('/').collect();
        Some(match parts.as_slice() {
            ["crates", "core" | "compat" | "wire"] => Self::Base,
            ["crates", "ports"] => Self::Ports,
            ["crates", "net"] => Self::Net,
            ["crates", "containers" | "sigstore"] => Self::Containers,
            ["crates", "telemetry"] => Self::Telemetry,
            ["crates", "store" | "policy" | "plugin-host" | "plugin-sdk"] => Self::Adapter,
            ["crates", "plugins", "builtins"] => Self::Builtins,
            ["crates", "plugins", _] => Self::Plugin,
            ["crates", "server" | "agent" | "oidc" | "cli"] => Self::Application,
            ["bin", "spire"] => Self::DevBinary,
            ["bin", _] => Self::Binary,
            ["testing", _] => Self::Testing,
            ["xtask"] | ["xtask", _] => Self::Xtask,
            _ => return None,
        })
    }

    /// Whether a crate of this layer may have the other one in its `[dependencies]`.
    fn may_use(self, other: &Crate) -> bool {
        use Layer as L;
        match self {
            L::Base | L::Xtask => false,
            // Wire types stay at the edges, and ports are not one.
            L::Ports => other.layer == L::Base && !other.name.ends_with("wire"),
            L::Net => matches!(other.layer, L::Base | L::Ports),
            L::Containers | L::Telemetry | L::Adapter => {
                matches!(other.layer, L::Base | L::Ports | L::Net)
            }
            L::Plugin => matches!(other.layer, L::Base | L::Ports | L::Net | L::Containers),
            L::Builtins => matches!(other.layer, L::Base | L::Ports | L::Net | L::Plugin),
            L::Application => matches!(other.layer, L::Base | L::Ports | L::Net | L::Telemetry),
            L::Binary => !matches!(other.layer, L::Binary | L::DevBinary | L::Testing | L::Xtask),
            L::DevBinary => {
                !matches!(other.layer, L::Builtins | L::Binary | L::DevBinary | L::Testing | L::Xtask)
            }
            L::Testing => other.layer != L::Xtask,
        }
    }

    /// Whether a crate of this layer may have the other one in its `[dev-dependencies]`. Tests may look
    /// sideways and up, except that the base crates stay testable without the application.
    fn may_test_with(self, other: &Crate) -> bool {
        use Layer as L;
        self != L::Base || !matches!(other.layer, L::Application | L::Binary | L::DevBinary)
    }
}

/// A crate of the workspace.
#[derive(Debug)]
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) layer: Layer,
    /// Names of other crates in its tables, those that are not ours included.
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line of a dependency table.
#[derive(Debug)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) dev: bool,
}

/// The crates in the output of `cargo metadata --no-deps`, for a workspace at `root`.
///
/// # Errors
/// The output lacks a field, or a crate's folder has no layer.
pub(crate) fn crates(metadata: &Value, root: &Path) -> Result<Vec<Crate>> {
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    packages.iter().map(|package| parse_crate(package, root)).collect()
}

fn parse_crate(package: &Value, root: &Path) -> Result<Crate> {
    let name = package["name"].as_str().context("a package without a name")?.to_owned();
    let manifest = package["manifest_path"].as_str().context("a package without a manifest")?;
    let folder = Path::new(manifest)
        .parent()
        .and_then(|folder| folder.strip_prefix(root).ok())
        .with_context(|| format!("crate {name} is outside the workspace"))?
        .to_string_lossy()
        .replace('\\', "/");
    let Some(layer) = Layer::of(&folder) else {
        bail!("crate {name}: the folder {folder} has no layer (xtask/src/layers.rs)")
    };
    let mut dependencies = Vec::new();
    for dependency in package["dependencies"].as_array().into_iter().flatten() {
        dependencies.push(Dependency {
            name: dependency["name"].as_str().context("a dependency without a name")?.to_owned(),
            dev: dependency["kind"].as_str() == Some("dev"),
        });
    }
    Ok(Crate { name, layer, dependencies })
}

/// A line for each dependency that the layers forbid.
pub(crate) fn violations(crates: &[Crate]) -> Vec<String> {
    let mut lines = Vec::new();
    for from in crates {
        for dependency in &from.dependencies {
            let Some(to) = crates.iter().find(|other| other.name == dependency.name) else { continue };
            let (allowed, how) = if dependency.dev {
                (from.layer.may_test_with(to), "dev-depend")
            } else {
                (from.layer.may_use(to), "depend")
            };
            if !allowed {
                lines.push(format!(
                    "crate {} ({}) may not {how} on {} ({})",
                    from.name, from.layer, to.name, to.layer
                ));
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    //! The check on made-up workspaces, most of which must fail.
    use serde_json::json;

    use super::*;

    /// A workspace where `from` has the one dependency `to` of the given kind.
    fn check(from: &str, to: &str, kind: Option<&str>) -> Vec<String> {
        let root = Path::new("/w");
        let package = |folder: &str, dependencies: Value| json!({"name": folder, "manifest_path": format!("/w/{folder}/Cargo.toml"), "dependencies": dependencies});
        let metadata = json!({"packages": [
            package(from, json!([{"name": to, "kind": kind}, {"name": "tokio", "kind": null}])),
            package(to, json!([])),
        ]});
        violations(&crates(&metadata, root).expect("folders with layers"))
    }

    #[test]
    fn arrows_down_pass() {
        for (from, to) in [
            ("crates/ports", "crates/core"),
            ("crates/net", "crates/ports"),
            ("crates/store", "crates/wire"),
            ("crates/store", "crates/net"),
            ("crates/plugins/local", "crates/net"),
            ("crates/plugins/docker", "crates/containers"),
            ("crates/plugins/builtins", "crates/plugins/local"),
            ("crates/server", "crates/telemetry"),
            ("crates/cli", "crates/net"),
            ("bin/spire-server", "crates/plugins/builtins"),
            ("bin/spire-server", "crates/store"),
            ("bin/spire", "crates/plugins/local"),
            ("testing/e2e", "crates/plugins/builtins"),
            ("testing/e2e", "testing/testkit"),
        ] {
            assert_eq!(check(from, to, None), Vec::<String>::new(), "{from} -> {to}");
        }
    }

    #[test]
    fn arrows_up_and_sideways_fail() {
        for (from, to) in [
            ("crates/core", "crates/wire"),
            ("crates/wire", "crates/core"),
            ("crates/ports", "crates/wire"),
            ("crates/ports", "crates/net"),
            ("crates/net", "crates/telemetry"),
            ("crates/store", "crates/telemetry"),
            ("crates/plugins/local", "crates/plugins/host"),
            ("crates/plugins/local", "crates/store"),
            ("crates/server", "crates/store"),
            ("crates/server", "crates/plugins/local"),
            ("crates/agent", "crates/containers"),
            ("crates/server", "crates/plugins/builtins"),
            ("crates/agent", "crates/plugins/builtins"),
            ("crates/agent", "crates/server"),
            ("crates/cli", "crates/store"),
            ("crates/cli", "crates/plugins/local"),
            ("crates/core", "testing/testkit"),
            ("bin/spire", "crates/plugins/builtins"),
            ("bin/spire", "bin/spire-server"),
            ("bin/spire-server", "testing/testkit"),
            ("testing/testkit", "xtask"),
            ("xtask", "crates/core"),
        ] {
            assert_eq!(check(from, to, None).len(), 1, "{from} -> {to}");
            assert_eq!(check(from, to, Some("build")).len(), 1, "{from} -> {to} for a build script");
        }
    }

    #[test]
    fn the_message_names_both_ends_and_their_layers() {
        assert_eq!(
            check("crates/server", "crates/plugins/local", None),
            ["crate crates/server (application) may not depend on crates/plugins/local (plugin)"]
        );
    }

    #[test]
    fn tests_may_look_up_but_base_crates_stay_apart_from_the_application() {
        assert_eq!(check("crates/core", "testing/testkit", Some("dev")), Vec::<String>::new());
        assert_eq!(check("crates/server", "crates/store", Some("dev")), Vec::<String>::new());
        for to in ["crates/server", "crates/agent", "crates/cli", "bin/spire"] {
            assert_eq!(check("crates/wire", to, Some("dev")).len(), 1, "crates/wire may not test with {to}");
        }
    }

    #[test]
    fn a_folder_without_a_layer_is_an_error() {
        let metadata = json!({"packages": [{"name": "x", "manifest_path": "/w/crates/helpers/Cargo.toml", "dependencies": []}]});
        let error = crates(&metadata, Path::new("/w")).expect_err("no layer");
        assert!(error.to_string().contains("crates/helpers has no layer"), "{error}");
    }
}
