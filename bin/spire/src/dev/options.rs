//! The command line of `spire dev`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use spire_compat::flag::{FlagError, FlagSet, Parsed};
use spire_core::spiffe::{Selector, SpiffeId, TrustDomain, segment_error};
use spire_telemetry::Level;

use super::TRUST_DOMAIN;

const HELP: &str = "Usage: spire dev [flags] [-- COMMAND ...]

Runs a server and an agent in one process and registers the calling user as
spiffe://dev.test/user/<name>. With a command, runs it with SPIFFE_ENDPOINT_SOCKET set and
exits with its code; without one, stays and shows what happens until it is interrupted.

Flags:
";

/// What the command line asks for.
pub(super) enum Asked {
    Run(Options),
    Help(String),
}

/// How to run.
pub(super) struct Options {
    pub(super) data: Option<PathBuf>,
    pub(super) reset: bool,
    pub(super) log_level: Level,
    pub(super) command: Vec<String>,
    more: Vec<(SpiffeId, Selector)>,
}

/// An identity and the one selector that gives it.
pub(super) type Workload = (SpiffeId, Selector);

fn flags() -> FlagSet {
    FlagSet::new("dev")
        .string("data", "", "The `folder` that is kept between runs (default ~/.local/share/spire-dev)")
        .bool("reset", false, "Empty the folder first")
        .string("logLevel", "info", "The `level` of the log, which is in the folder")
        .strings(
            "workload",
            "More identities, as `id=selector`: a SPIFFE ID or path and a selector such as unix:uid:33",
        )
}

impl Options {
    /// Reads the arguments after `dev`.
    pub(super) fn parse(arguments: &[String]) -> Result<Asked, String> {
        let parsed = match flags().parse(arguments) {
            Ok(parsed) => parsed,
            Err(FlagError::Help) => return Ok(Asked::Help(format!("{HELP}{}", flags().defaults()))),
            Err(FlagError::Refused(why)) => return Err(format!("{why}\n{HELP}{}", flags().defaults())),
        };
        Self::resolve(&parsed).map(Asked::Run).map_err(|error| format!("spire dev: {error:#}"))
    }

    fn resolve(parsed: &Parsed) -> Result<Self> {
        let more = parsed
            .strings("workload")
            .iter()
            .map(|text| workload(text).with_context(|| format!("-workload {text}")))
            .collect::<Result<_>>()?;
        let data = parsed.string("data");
        Ok(Self {
            data: (!data.is_empty()).then(|| data.into()),
            reset: parsed.bool("reset"),
            log_level: parsed
                .string("logLevel")
                .parse()
                .map_err(|error| anyhow::anyhow!("-logLevel: {error}"))?,
            command: parsed.rest().to_vec(),
            more,
        })
    }

    /// Everything to register: the calling user first.
    pub(super) fn workloads(&self) -> Result<Vec<Workload>> {
        let uid = rustix::process::getuid().as_raw();
        let id = SpiffeId::from_path(&trust_domain()?, &format!("/user/{}", user_name(uid)))?;
        let mut all = vec![(id, Selector::new("unix", format!("uid:{uid}"))?)];
        all.extend(self.more.iter().cloned());
        Ok(all)
    }
}

/// The trust domain of `spire dev`.
pub(super) fn trust_domain() -> Result<TrustDomain> {
    Ok(TrustDomain::parse(TRUST_DOMAIN)?)
}

/// `id=selector`; the ID may be a path alone.
fn workload(text: &str) -> Result<Workload> {
    let (id, selector) = text.split_once('=').context("expected id=selector")?;
    let id =
        if id.starts_with('/') { SpiffeId::from_path(&trust_domain()?, id) } else { SpiffeId::parse(id) }
            .with_context(|| format!("{id:?} is not a SPIFFE ID"))?;
    if !id.is_member_of(&trust_domain()?) || id.path().is_empty() || id.is_reserved() {
        bail!("{id} is not an identity for workloads of {TRUST_DOMAIN}");
    }
    let (kind, value) = selector.split_once(':').context("a selector is type:value")?;
    Ok((id, Selector::new(kind, value)?))
}

/// The user's name where it can stand in a SPIFFE ID, else the number.
fn user_name(uid: u32) -> String {
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    accounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        })
        .filter(|name| segment_error(name).is_none())
        .unwrap_or_else(|| uid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_read() {
        let (id, selector) = workload("/web=unix:uid:33").unwrap();
        assert_eq!((id.as_str(), selector.to_string().as_str()), ("spiffe://dev.test/web", "unix:uid:33"));
        assert!(workload("spiffe://dev.test/web=unix:path:/usr/bin/x").is_ok());
        for wrong in [
            "web",
            "/web=unix",
            "spiffe://other/web=unix:uid:1",
            "/spire/server=unix:uid:1",
            "/a//b=unix:uid:1",
        ] {
            assert!(workload(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_command_follows_two_dashes() {
        let arguments = ["-reset", "--", "env", "-i"].map(str::to_owned);
        let Ok(Asked::Run(options)) = Options::parse(&arguments) else { panic!("refused") };
        assert!(options.reset);
        assert_eq!(options.command, ["env", "-i"]);
    }
}
