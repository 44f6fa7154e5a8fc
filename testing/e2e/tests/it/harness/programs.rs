//! Which programs are tested.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use spire_testkit::{Error, Result};

/// A folder with `spire-server` and `spire-agent`.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) folder: PathBuf,
    /// Whether `spire`, which only this project has, is among them.
    pub(crate) ours: bool,
}

impl Programs {
    fn of(folder: PathBuf) -> Self {
        Self { ours: folder.join("spire").is_file(), folder }
    }

    pub(crate) fn server(&self) -> PathBuf {
        self.folder.join("spire-server")
    }

    pub(crate) fn agent(&self) -> PathBuf {
        self.folder.join("spire-agent")
    }

    pub(crate) fn oidc(&self) -> PathBuf {
        self.folder.join("oidc-discovery-provider")
    }
}

/// The programs of `SPIRE_E2E_BIN`, else those that `cargo build --bins` left beside this test.
pub(crate) fn under_test() -> &'static Programs {
    static FOUND: OnceLock<Programs> = OnceLock::new();
    FOUND.get_or_init(|| match from_environment("SPIRE_E2E_BIN") {
        Some(programs) => programs,
        None => Programs { ours: true, ..Programs::of(beside_this_test()) },
    })
}

/// The plugins made with the Rust SDK, which are no program that is tested but a peer of those.
pub(crate) fn rust_plugins() -> PathBuf {
    beside_this_test().join("spire-rust-plugins")
}

/// The benchmark, which is no program that is tested but measures those.
pub(crate) fn bench() -> PathBuf {
    beside_this_test().join("spire-bench")
}

/// The programs of `SPIRE_REFERENCE_BIN`: another implementation, to be mixed with those under test.
pub(crate) fn reference() -> Option<&'static Programs> {
    static FOUND: OnceLock<Option<Programs>> = OnceLock::new();
    FOUND.get_or_init(|| from_environment("SPIRE_REFERENCE_BIN")).as_ref()
}

/// The same for tests that have [`Need::Reference`](crate::harness::Need::Reference).
pub(crate) fn theirs() -> Result<&'static Programs> {
    reference().ok_or_else(|| Error::new("SPIRE_REFERENCE_BIN is not set"))
}

fn from_environment(name: &str) -> Option<Programs> {
    let folder = std::env::var_os(name)?;
    let folder = PathBuf::from(folder);
    Some(Programs::of(std::fs::canonicalize(&folder).unwrap_or(folder)))
}

/// Tests lie in `deps` of the folder with the binaries.
fn beside_this_test() -> PathBuf {
    let test = std::env::current_exe().unwrap_or_default();
    test.parent().and_then(Path::parent).map(Path::to_owned).unwrap_or_default()
}
