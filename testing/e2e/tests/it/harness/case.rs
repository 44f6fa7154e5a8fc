//! A test, what it needs to run, and what happens where that is absent.

use libtest_mimic::{Failed, Trial};
use spire_testkit::{database, swtpm};

use crate::harness::{cgroup, clock, inside, peer, programs};

/// How a test ends.
pub(crate) type Outcome = Result<(), Failed>;

/// Something outside the project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// What only our programs have: the test says nothing about the reference.
    Ours,
    /// The OIDC discovery provider among the programs under test.
    Oidc,
    /// Another implementation's OIDC discovery provider.
    ReferenceOidc,
    /// A certificate authority for those who sign code (`SPIRE_E2E_FULCIO`).
    Fulcio,
    /// A second set of programs to be mixed with (`SPIRE_REFERENCE_BIN`).
    Reference,
    /// Mount and network namespaces, which take root.
    Namespaces,
    /// Other users for workloads, which takes root.
    Root,
    /// Control groups that the test may make, which takes root.
    Cgroups,
    /// The Docker engine and its command.
    Docker,
    /// Podman with runc.
    Podman,
    /// A MariaDB server of the test's own.
    Mariadb,
    /// A PostgreSQL server of the test's own.
    Postgres,
    /// The `openssl` command.
    Openssl,
    /// An ACME authority.
    Pebble,
    /// The `go` command.
    Go,
    /// The Prometheus server.
    Prometheus,
    /// A TPM in software, and tools for it.
    Swtpm,
    /// The `ssh-keygen` command.
    SshKeygen,
    /// The library that moves a program's clock.
    Faketime,
    /// The plugins made with the Rust SDK, which `cargo build --workspace` builds.
    RustPlugins,
    /// The benchmark, which `cargo build --workspace` builds.
    Bench,
    /// An authorisation server that takes JWT-SVIDs, unpacked (`SPIRE_E2E_KEYCLOAK`).
    Keycloak,
    /// A client of the Workload API.
    Peer(peer::Peer),
}

impl Need {
    /// Why it is not there; `None` where it is.
    fn missing(self) -> Option<String> {
        match self {
            Self::Ours => (!programs::under_test().ours).then(|| "not one of ours".to_owned()),
            Self::Reference => {
                programs::reference().is_none().then(|| "SPIRE_REFERENCE_BIN is not set".to_owned())
            }
            Self::Oidc => {
                (!programs::under_test().oidc().is_file()).then(|| "no oidc-discovery-provider".to_owned())
            }
            Self::ReferenceOidc => (!programs::reference().is_some_and(|programs| programs.oidc().is_file()))
                .then(|| "SPIRE_REFERENCE_BIN has no oidc-discovery-provider".to_owned()),
            Self::Fulcio => match std::env::var_os("SPIRE_E2E_FULCIO") {
                None => Some("SPIRE_E2E_FULCIO is not set (docs/testing.md says how to get it)".to_owned()),
                Some(_) => peer::missing_program("curl"),
            },
            Self::Namespaces => inside::missing(),
            Self::Root => (!rustix::process::getuid().is_root()).then(|| "not root".to_owned()),
            Self::Cgroups => cgroup::missing(),
            Self::Docker => ["dockerd", "docker"].into_iter().find_map(peer::missing_program),
            Self::Podman => ["podman", "runc"].into_iter().find_map(peer::missing_program),
            Self::Mariadb => database::Mariadb::missing(),
            Self::Postgres => database::Postgres::missing(),
            Self::Openssl => peer::missing_program("openssl"),
            Self::Pebble => peer::missing_program("pebble"),
            Self::Go => peer::missing_program("go"),
            Self::Prometheus => peer::missing_program("prometheus"),
            Self::Swtpm => swtpm::PROGRAMS.into_iter().find_map(peer::missing_program),
            Self::SshKeygen => peer::missing_program("ssh-keygen"),
            Self::Faketime => clock::missing(),
            Self::RustPlugins => (!programs::rust_plugins().is_file())
                .then(|| "spire-rust-plugins is not built; `cargo build -p spire-rust-plugins`".to_owned()),
            Self::Bench => (!programs::bench().is_file())
                .then(|| "spire-bench is not built; `cargo build -p spire-bench`".to_owned()),
            Self::Keycloak => match std::env::var_os("SPIRE_E2E_KEYCLOAK") {
                None => Some("SPIRE_E2E_KEYCLOAK is not set (docs/testing.md says how to get it)".to_owned()),
                Some(_) => ["java", "curl"].into_iter().find_map(peer::missing_program),
            },
            Self::Peer(peer) => peer.missing(),
        }
    }

    /// Whether a continuous integration run must have it. Other sets of programs are an extra everywhere, and so is what
    /// takes minutes to get and to start.
    fn is_due_in_ci(self) -> bool {
        !matches!(
            self,
            Self::Ours | Self::Oidc | Self::Reference | Self::ReferenceOidc | Self::Keycloak | Self::Fulcio
        )
    }
}

/// A test by name.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) needs: &'static [Need],
    pub(crate) run: fn() -> Outcome,
}

impl Case {
    /// What the runner gets: ignored where a need is absent, and failing for it in continuous integration.
    pub(crate) fn trial(self) -> Trial {
        let Self { name, needs, run } = self;
        let Some((need, why)) = needs.iter().find_map(|need| Some((*need, need.missing()?))) else {
            return match needs.contains(&Need::Namespaces) {
                true => Trial::test(name, move || inside::run(name, run)),
                false => Trial::test(name, run),
            };
        };
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        let fails = ci && need.is_due_in_ci();
        let text = format!("{need:?} is missing: {why}");
        Trial::test(name, move || Err(text.into())).with_ignored_flag(!fails)
    }
}
