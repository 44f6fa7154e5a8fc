//! `spire apply` and `spire export`: entries and federation relationships as files (docs/apply.md).
//!
//! | module | what it does |
//! |---|---|
//! | `document` | YAML and JSON as a stream of items with positions |
//! | `desired` | items as entries and relationships, strictly |
//! | `sources` | files and folders, read twice |
//! | `content` | what counts of an entry: normal form, difference, digests |
//! | `owner` | who an entry belongs to |
//! | `known` | what the server has, and the verdict on an entry of a file |
//! | `registry` | what is asked of the server |
//! | `round` | one comparison with its changes |
//! | `report` | what the user sees of it |
//! | `watch` | rounds for a folder that changes |
//! | `export` | the other direction |

mod content;
mod desired;
mod document;
mod export;
mod known;
mod owner;
mod registry;
mod report;
mod round;
mod sources;
mod watch;

use std::time::Duration;

use spire_compat::duration::GoDuration;
use spire_compat::flag::{FlagSet, Parsed};
use spire_net::grpc::unix_channel;
use spire_net::tls::UnixConnector;

use self::export::Form;
use self::owner::Owner;
use self::registry::Server;
use self::report::{Report, Tally};
use self::round::{Policy, round};
use self::sources::Sources;
use self::watch::Intervals;
use crate::call;
use crate::env::Env;
use crate::failure::{Failure, plain};
use crate::output::{self, Format};
use crate::socket::Socket;

/// The run could not be made, or broke off.
const BROKEN: i32 = 1;
/// It was made, and items failed.
const ITEMS_FAILED: i32 = 2;
/// A dry run found something to do.
const DIFFERENT: i32 = 3;

/// Runs `spire apply` with these arguments, and gives its exit code: 0 when the server is as the files say, 1 when the run
/// could not be made or broke off, 2 when items failed, 3 when a dry run found differences. `terminal` says that
/// standard error is one and gets a progress bar.
pub fn apply(arguments: &[String], env: &mut Env, terminal: bool) -> i32 {
    let seconds = |seconds: i64| GoDuration::from_nanos(seconds * 1_000_000_000);
    let flags = Socket::Server
        .flags(FlagSet::new("apply"))
        .strings(
            "f",
            "File or folder to apply, in YAML or JSON; \"-\" is standard input. Can be used more than once",
        )
        .string(
            "watch",
            "",
            "Folder to follow: its files are applied whenever they change, until the command is ended",
        )
        .string("owner", "", "Owner of the entries: their IDs begin with this name and a dot")
        .bool("prune", false, "Delete entries of the owner that no file has")
        .bool(
            "prune-federation",
            false,
            "Delete federation relationships that no file has, whoever made them: they have no owner",
        )
        .bool("allow-empty", false, "Prune even where the files have none of what is pruned")
        .bool("dry-run", false, "Only show what would be done; exit code 3 if that is something")
        .bool("quiet", false, "Show only failures and the sum")
        .duration("interval", seconds(2), "How often -watch looks at the folder")
        .duration(
            "resync",
            seconds(300),
            "How often -watch compares with the server although no file changed",
        );
    let Ok((parsed, format)) = call::parse(env, &output::flag(flags), arguments) else { return BROKEN };
    let done = applied(env, &parsed, format, terminal);
    ended(env, done)
}

/// Runs `spire export` with these arguments, and gives its exit code.
pub fn export(arguments: &[String], env: &mut Env) -> i32 {
    let flags = export::filters(Socket::Server.flags(FlagSet::new("export")))
        .string("owner", "", "Only entries of this owner")
        .custom("output", "yaml", |text| Form::parse(text).map(drop), "How it is written: yaml or json");
    let Ok((parsed, _)) = call::parse(env, &flags, arguments) else { return BROKEN };
    let done = exported(env, &parsed);
    ended(env, done.map(|()| 0))
}

fn ended(env: &mut Env, done: Result<i32, Failure>) -> i32 {
    env.flush();
    done.unwrap_or_else(|failure| {
        env.err(format_args!("Error: {failure}\n"));
        BROKEN
    })
}

fn applied(env: &mut Env, flags: &Parsed, format: Format, terminal: bool) -> Result<i32, Failure> {
    if let Some(stray) = flags.rest().first() {
        return Err(Failure::new(format!("{stray:?} is no flag; files are given with -f")));
    }
    let policy = policy(flags)?;
    let folder = flags.string("watch").to_owned();
    let paths = flags.strings("f").to_vec();
    let intervals = intervals(flags)?;
    match (paths.is_empty(), folder.is_empty()) {
        (false, true) => {}
        (true, false) if policy.dry_run => {
            return Err(Failure::new("-dry-run looks once; use it with -f"));
        }
        (true, false) => {}
        _ => return Err(Failure::new("one of -f and -watch is needed")),
    }
    let connector = Socket::Server.connector(env, flags)?;
    let mut report = Report::new(env, format, flags.bool("quiet"), terminal);
    if !folder.is_empty() {
        // Lines of a log, and no bar between them.
        report.terminal = false;
        return runtime()?.block_on(async {
            Err(watch::watch(&mut report, connector, &folder, &policy, intervals).await)
        });
    }
    let sources = Sources::open(report.env, &paths)?;
    let survey = sources.survey(policy.owner.as_ref())?;
    let tally = runtime()?.block_on(async {
        let mut server = server(connector);
        round(&mut server, &sources, &survey, &policy, &mut report).await
    })?;
    report.ended(tally, policy.dry_run);
    Ok(exit_code(tally, policy.dry_run))
}

fn exit_code(tally: Tally, is_dry: bool) -> i32 {
    if tally.failed > 0 {
        ITEMS_FAILED
    } else if is_dry && tally.changes() > 0 {
        DIFFERENT
    } else {
        0
    }
}

fn policy(flags: &Parsed) -> Result<Policy, Failure> {
    let owner = owner(flags)?;
    let prune = flags.bool("prune");
    if prune && owner.is_none() {
        return Err(Failure::new("-prune needs -owner: only entries of an owner are deleted"));
    }
    Ok(Policy {
        owner,
        prune,
        prune_federation: flags.bool("prune-federation"),
        allow_empty: flags.bool("allow-empty"),
        dry_run: flags.bool("dry-run"),
    })
}

fn owner(flags: &Parsed) -> Result<Option<Owner>, Failure> {
    match flags.string("owner") {
        "" => Ok(None),
        name => Owner::parse(name).map(Some).map_err(plain),
    }
}

fn intervals(flags: &Parsed) -> Result<Intervals, Failure> {
    let of = |name: &str| {
        flags
            .duration(name)
            .to_std()
            .filter(|interval| *interval >= Duration::from_millis(10))
            .ok_or_else(|| Failure::new(format!("-{name} is too short")))
    };
    Ok(Intervals { look: of("interval")?, resync: of("resync")? })
}

fn exported(env: &mut Env, flags: &Parsed) -> Result<(), Failure> {
    let form = Form::parse(flags.string("output")).map_err(plain)?;
    let owner = owner(flags)?;
    let filter = export::filter_of(flags)?;
    let connector = Socket::Server.connector(env, flags)?;
    runtime()?.block_on(async {
        let mut server = server(connector);
        server.filter = filter;
        export::export(env, &mut server, form, owner.as_ref()).await
    })
}

fn server(connector: UnixConnector) -> Server {
    Server::new(unix_channel(connector))
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("unable to start: {error}")))
}

#[cfg(test)]
mod tests;
