//! Which socket a command dials: the flag, the instance's, the environment's or the default one.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use spire_compat::flag::{FlagSet, Parsed};
use spire_net::tls::UnixConnector;

use crate::env::Env;
use crate::failure::Failure;

const SERVER_DEFAULT: &str = "/tmp/spire-server/private/api.sock";
const AGENT_DEFAULT: &str = "/tmp/spire-agent/public/api.sock";
pub(crate) const ADMIN_DEFAULT: &str = "/tmp/spire-agent/private/admin.sock";
/// Defaults of SPIRE before 1.0.
const SERVER_OLD_DEFAULT: &str = "/tmp/spire-registration.sock";
const AGENT_OLD_DEFAULT: &str = "/tmp/agent.sock";

/// The socket that a command talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Socket {
    /// The server's API (cmd/spire-server/util/util_posix.go).
    Server,
    /// The Workload API (cmd/spire-agent/cli/common).
    Workload,
    /// The same socket for `healthcheck`, which describes the flag in other words.
    Health,
    /// The agent's admin API (cmd/spire-agent/util); without instance and environment.
    Admin,
}

impl Socket {
    /// Adds its flags.
    pub(crate) fn flags(self, flags: FlagSet) -> FlagSet {
        let (default, usage) = match self {
            Self::Server => (SERVER_DEFAULT, "Path to the SPIRE Server API socket"),
            Self::Workload => (AGENT_DEFAULT, "Path to the SPIRE Agent API Unix domain socket"),
            Self::Health => (AGENT_DEFAULT, "Path to the SPIRE Agent API socket"),
            Self::Admin => (ADMIN_DEFAULT, "Path to the SPIRE Agent admin API socket"),
        };
        let flags = flags.string("socketPath", default, usage);
        match self {
            Self::Server => flags
                .string(
                    "instance",
                    "",
                    "Instance name to substitute into socket templates (env SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE).",
                )
                .string("registrationUDSPath", "", "Old name of -socketPath")
                .hide("registrationUDSPath"),
            Self::Workload | Self::Health => flags.string(
                "instance",
                "",
                "Instance name to substitute into socket templates (env SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE).",
            ),
            Self::Admin => flags,
        }
    }

    /// What dials it.
    pub(crate) fn connector(self, env: &mut Env, flags: &Parsed) -> Result<UnixConnector, Failure> {
        let path = match self {
            Self::Server => server_path(env, flags)?,
            Self::Workload | Self::Health => {
                let path = agent_path(env, flags)?;
                // Go makes these absolute, and shows them so.
                return Ok(UnixConnector::new(clean(&env.locate(path))));
            }
            Self::Admin => match flags.string("socketPath") {
                "" => ADMIN_DEFAULT.to_owned(),
                path => path.to_owned(),
            },
        };
        Ok(UnixConnector::command_line(path))
    }
}

fn server_path(env: &mut Env, flags: &Parsed) -> Result<String, Failure> {
    const TEMPLATE: &str = "SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE";
    let mut given = flags.string("socketPath").to_owned();
    if let Some(old) = flags.given_string("registrationUDSPath").map(ToOwned::to_owned) {
        env.err("Warning: -registrationUDSPath is an old name; use -socketPath\n");
        if !flags.is_given("socketPath") {
            given = old;
        }
    }
    let instance = flags.string("instance");
    let template = env.variable(TEMPLATE).to_owned();
    if !instance.is_empty() && template.is_empty() {
        return Err(Failure::new(format!("you must define {TEMPLATE} to use the instance flag")));
    }
    let from_variable = env.variable("SPIRE_SERVER_PRIVATE_SOCKET").to_owned();
    let defaults = (SERVER_DEFAULT, SERVER_OLD_DEFAULT);
    resolve(env, flags, &given, instance, (TEMPLATE, &template), &from_variable, defaults)
}

fn agent_path(env: &mut Env, flags: &Parsed) -> Result<String, Failure> {
    const TEMPLATE: &str = "SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE";
    let instance = flags.string("instance");
    let template = env.variable(TEMPLATE).to_owned();
    if !instance.is_empty() && template.is_empty() {
        // The blank in front is the reference's.
        return Err(Failure::new(format!(
            " {TEMPLATE} environment variable must be defined when using the instance flag"
        )));
    }
    let given = flags.string("socketPath");
    let from_variable = env.variable("SPIRE_AGENT_PUBLIC_SOCKET").to_owned();
    let defaults = (AGENT_DEFAULT, AGENT_OLD_DEFAULT);
    resolve(env, flags, given, instance, (TEMPLATE, &template), &from_variable, defaults)
}

/// The flag (unless it says the default), the instance, the variable, the default.
fn resolve(
    env: &mut Env,
    flags: &Parsed,
    given: &str,
    instance: &str,
    (template_name, template): (&str, &str),
    from_variable: &str,
    (default, old_default): (&str, &str),
) -> Result<String, Failure> {
    if !instance.is_empty() && !template.contains("%i") {
        return Err(Failure::new(format!("failed to find %i in {template_name}")));
    }
    if given != default {
        return Ok(given.to_owned());
    }
    if !instance.is_empty() {
        return Ok(template.replace("%i", instance));
    }
    if !from_variable.is_empty() {
        return Ok(from_variable.to_owned());
    }
    if !flags.is_given("socketPath") && is_absent(Path::new(default)) && is_ours(Path::new(old_default)) {
        env.err(format_args!("Warning: using the old default socket {old_default}\n"));
        return Ok(old_default.to_owned());
    }
    Ok(default.to_owned())
}

fn is_absent(path: &Path) -> bool {
    matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// A socket (no link to one) of root or of the caller. `/tmp` is open to all, so one of anybody else could be a trap.
fn is_ours(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| {
        found.file_type().is_socket() && [0, rustix::process::geteuid().as_raw()].contains(&found.uid())
    })
}

/// Go's `filepath.Clean`: `.` and `..` taken out by their text alone.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => match cleaned.components().next_back() {
                Some(Component::Normal(_)) => {
                    cleaned.pop();
                }
                Some(Component::RootDir) => {}
                _ => cleaned.push(".."),
            },
            other => cleaned.push(other),
        }
    }
    if cleaned.as_os_str().is_empty() { PathBuf::from(".") } else { cleaned }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn paths_are_cleaned_as_go_does() {
        for (path, want) in [
            ("./tmp/x", "tmp/x"),
            ("a/../b", "b"),
            ("../a", "../a"),
            ("/../a//b/", "/a/b"),
            (".", "."),
            ("a/..", "."),
        ] {
            assert_eq!(clean(Path::new(path)), Path::new(want), "{path}");
        }
    }

    #[test]
    fn an_old_default_is_the_last_resort() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name).display().to_string();
        let (new, old) = (place("new"), place("old"));
        let _listener = UnixListener::bind(&old).unwrap();
        let resolved = |given: &str, instance: &str, variable: &str, arguments: &[&str]| {
            let flags = FlagSet::new("x").string("socketPath", "", "").parse(arguments).unwrap();
            let mut env = Env::process();
            env.stderr = Box::new(io::sink());
            resolve(&mut env, &flags, given, instance, ("T", "/%i"), variable, (&new, &old)).unwrap()
        };
        assert_eq!(resolved(&new, "", "", &[]), old);
        assert_eq!(resolved(&new, "", "", &["-socketPath", "x"]), new);
        assert_eq!(resolved(&new, "i", "", &[]), "/i");
        assert_eq!(resolved(&new, "", "/v", &[]), "/v");
        assert_eq!(resolved("/g", "i", "/v", &[]), "/g");
        std::fs::write(&new, "").unwrap();
        assert_eq!(resolved(&new, "", "", &[]), new);
    }

    #[test]
    fn an_old_socket_must_be_a_socket_and_ours() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let _listener = UnixListener::bind(&socket).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(is_ours(&socket));
        assert!(!is_ours(&link) && !is_ours(&file) && !is_ours(&folder.path().join("none")));
        assert!(is_absent(&folder.path().join("none")) && !is_absent(&link));
    }
}
