//! The targets of the configuration.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use spire_compat::config::parse_duration;
use spire_compat::hcl::{Body, DecodeError};
use spire_ports::plugins::Result;
use spire_ports::plugins::catalog::Configuration;

use crate::machine;

/// How long a command may take if nothing else is said.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest that may be said: other entries' commands wait for no more than a few of these.
const COMMAND_TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// Where one SVID goes.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The folder, absolute and without `..`. It is a link that each change replaces.
    pub(super) directory: PathBuf,
    /// Names of the files in it.
    pub(super) certificates: String,
    pub(super) key: String,
    pub(super) bundle: String,
    pub(super) directory_mode: u32,
    pub(super) file_mode: u32,
    pub(super) key_mode: u32,
    /// Owner and group; the agent's where none is set.
    pub(super) owner: Option<u32>,
    pub(super) group: Option<u32>,
    pub(super) command: Vec<String>,
    pub(super) command_timeout: Duration,
    /// A file with a process ID, and what the process is sent.
    pub(super) signal: Option<(PathBuf, Signal)>,
}

/// As written.
#[derive(Default)]
struct Written {
    directory: String,
    certificates: Option<String>,
    key: Option<String>,
    bundle: Option<String>,
    modes: [Option<String>; 3],
    owner: Option<String>,
    group: Option<String>,
    command: Vec<String>,
    command_timeout: Option<String>,
    pid_file: Option<String>,
    signal: Option<String>,
}

pub(super) fn read(configuration: &Configuration) -> Result<BTreeMap<String, Arc<Target>>> {
    let written = configuration.decode(|data| {
        let mut targets = Vec::new();
        for (name, mut body) in data.take_labelled("target")? {
            targets.push((name, Written::read(&mut body)?));
        }
        Ok(targets)
    });
    let written =
        written.map_err(|error| configuration.invalid(format!("unable to decode configuration: {error}")))?;
    if written.is_empty() {
        return Err(configuration.invalid("at least one target is required"));
    }
    let mut targets: BTreeMap<String, Arc<Target>> = BTreeMap::new();
    for (name, written) in written {
        let refuse = |reason: String| configuration.invalid(format!("target {name:?}: {reason}"));
        let target = written.resolve().map_err(refuse)?;
        if targets.values().any(|other| other.directory == target.directory) {
            return Err(refuse(format!("directory {} is another target's", target.directory.display())));
        }
        if targets.insert(name.clone(), Arc::new(target)).is_some() {
            return Err(refuse("is there twice".to_owned()));
        }
    }
    Ok(targets)
}

impl Written {
    fn read(body: &mut Body<'_>) -> std::result::Result<Self, DecodeError> {
        Ok(Self {
            directory: body.take_string("directory")?.unwrap_or_default(),
            certificates: body.take_string("certificate_file")?,
            key: body.take_string("key_file")?,
            bundle: body.take_string("bundle_file")?,
            modes: [
                body.take_string("directory_mode")?,
                body.take_string("file_mode")?,
                body.take_string("key_file_mode")?,
            ],
            owner: body.take_string("owner")?,
            group: body.take_string("group")?,
            command: body.take_string_list("command")?.unwrap_or_default(),
            command_timeout: body.take_string("command_timeout")?,
            pid_file: body.take_string("pid_file")?,
            signal: body.take_string("signal")?,
        })
    }

    fn resolve(self) -> std::result::Result<Target, String> {
        let name = |key: &str, written: Option<String>, default: &str| {
            let name = written.unwrap_or_else(|| default.to_owned());
            match is_file_name(&name) {
                true => Ok(name),
                false => Err(format!("{key} {name:?} is not the name of a file")),
            }
        };
        let [directory_mode, file_mode, key_mode] = self.modes;
        let target = Target {
            directory: directory(&self.directory)?,
            certificates: name("certificate_file", self.certificates, "svid.pem")?,
            key: name("key_file", self.key, "svid_key.pem")?,
            bundle: name("bundle_file", self.bundle, "bundle.pem")?,
            directory_mode: mode("directory_mode", directory_mode, 0o755)?,
            file_mode: mode("file_mode", file_mode, 0o644)?,
            key_mode: mode("key_file_mode", key_mode, 0o600)?,
            owner: self.owner.map(|owner| account("owner", &owner, "/etc/passwd")).transpose()?,
            group: self.group.map(|group| account("group", &group, "/etc/group")).transpose()?,
            command: command(self.command)?,
            command_timeout: timeout(self.command_timeout)?,
            signal: signal(self.pid_file, self.signal)?,
        };
        if target.key_mode & 0o007 != 0 {
            return Err("key_file_mode must not let everybody in".to_owned());
        }
        let names = [&target.certificates, &target.key, &target.bundle];
        if names[0] == names[1] || names[0] == names[2] || names[1] == names[2] {
            return Err("certificate_file, key_file and bundle_file must differ".to_owned());
        }
        Ok(target)
    }
}

fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(only)), None) if only == name)
}

fn directory(path: &str) -> std::result::Result<PathBuf, String> {
    let path = PathBuf::from(path.trim_end_matches('/'));
    let mut parts = path.components();
    let is_whole = parts.next() == Some(Component::RootDir)
        && path.file_name().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_)));
    if is_whole { Ok(path) } else { Err("directory must be an absolute path without \"..\"".to_owned()) }
}

fn mode(key: &str, written: Option<String>, default: u32) -> std::result::Result<u32, String> {
    let Some(text) = written else { return Ok(default) };
    match u32::from_str_radix(&text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("{key} {text:?} is not a mode such as \"0640\"")),
    }
}

/// A number, or a name of the machine's own files; names of a directory service are numbers in the configuration.
fn account(key: &str, name: &str, file: &str) -> std::result::Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let text = machine::read(file)?;
    let text = String::from_utf8_lossy(&text);
    let number = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    number.ok_or_else(|| format!("{key} {name:?} is not in {file}"))
}

fn command(command: Vec<String>) -> std::result::Result<Vec<String>, String> {
    match command.first() {
        Some(program) if !Path::new(program).is_absolute() => {
            Err(format!("command: {program:?} is not an absolute path"))
        }
        _ => Ok(command),
    }
}

fn timeout(written: Option<String>) -> std::result::Result<Duration, String> {
    let Some(text) = written else { return Ok(COMMAND_TIMEOUT) };
    let timeout = parse_duration(&text).map_err(|error| format!("command_timeout: {error}"))?;
    match timeout.is_zero() || timeout > COMMAND_TIMEOUT_MAX {
        true => {
            Err(format!("command_timeout must be more than 0 and at most {}s", COMMAND_TIMEOUT_MAX.as_secs()))
        }
        false => Ok(timeout),
    }
}

fn signal(
    pid_file: Option<String>,
    name: Option<String>,
) -> std::result::Result<Option<(PathBuf, Signal)>, String> {
    let Some(pid_file) = pid_file else {
        return if name.is_some() { Err("signal needs pid_file".to_owned()) } else { Ok(None) };
    };
    let signal = match name.as_deref().unwrap_or("SIGHUP") {
        "SIGHUP" => Signal::HUP,
        "SIGUSR1" => Signal::USR1,
        "SIGUSR2" => Signal::USR2,
        "SIGTERM" => Signal::TERM,
        "SIGINT" => Signal::INT,
        other => {
            return Err(format!("signal {other:?} is none of SIGHUP, SIGUSR1, SIGUSR2, SIGTERM, SIGINT"));
        }
    };
    if !Path::new(&pid_file).is_absolute() {
        return Err("pid_file must be an absolute path".to_owned());
    }
    Ok(Some((pid_file.into(), signal)))
}
