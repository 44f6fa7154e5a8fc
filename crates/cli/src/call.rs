//! How a command becomes a call: flags, socket, runtime, errors.

use std::pin::Pin;
use std::time::Duration;

use serde_json::Value;
use spire_compat::flag::{FlagError, FlagSet, Parsed};
use spire_net::grpc::unix_channel;
use tonic::transport::Channel;

use crate::dispatch::{Command, HELP_REQUESTED};
use crate::env::Env;
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::socket::Socket;
use crate::view;

/// A command that asks an API.
pub(crate) struct ApiCommand {
    /// Its words.
    pub(crate) path: &'static str,
    /// Its name in the usage text.
    pub(crate) name: &'static str,
    /// One line for the list of its group.
    pub(crate) synopsis: &'static str,
    /// Adds its own flags.
    pub(crate) flags: fn(FlagSet) -> FlagSet,
    /// Runs it.
    pub(crate) run: for<'a> fn(&'a mut Call<'_>) -> Running<'a>,
}

/// A running command.
pub(crate) type Running<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + 'a>>;

/// What a running command has.
pub(crate) struct Call<'e> {
    pub(crate) env: &'e mut Env,
    pub(crate) flags: Parsed,
    pub(crate) format: Format,
    /// Connects when first used.
    pub(crate) channel: Channel,
}

impl Call<'_> {
    /// Prints a message as JSON if that was asked for, otherwise as `pretty` does.
    pub(crate) fn print<M: view::View>(
        &mut self,
        message: &M,
        pretty: impl FnOnce(&mut Env, &M) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Pretty => pretty(self.env, message),
            Format::Json => {
                self.env.out(view::line(&message.view()));
                Ok(())
            }
        }
    }

    /// Prints JSON.
    pub(crate) fn json(&mut self, value: &Value) {
        self.env.out(view::line(value));
    }
}

impl ApiCommand {
    /// A command of a server, in the form that the dispatcher takes.
    pub(crate) fn server<H: 'static>(self) -> Command<H> {
        self.over(Socket::Server)
    }

    /// A command of the agent's admin API.
    pub(crate) fn admin<H: 'static>(self) -> Command<H> {
        self.over(Socket::Admin)
    }

    fn over<H: 'static>(self, socket: Socket) -> Command<H> {
        let flags = output::flag((self.flags)(socket.flags(FlagSet::new(self.name))));
        self.command(socket, flags, HELP_REQUESTED, Errors::Labelled)
    }

    /// A command without `-output`.
    pub(crate) fn plain<H: 'static>(self) -> Command<H> {
        let flags = (self.flags)(Socket::Server.flags(FlagSet::new(self.name)));
        self.command(Socket::Server, flags, HELP_REQUESTED, Errors::Labelled)
    }

    /// A command of the Workload API: it has a timeout, and prints its errors bare (cmd/spire-agent/cli/api/common.go).
    pub(crate) fn workload<H: 'static>(self) -> Command<H> {
        let timed =
            FlagSet::new(self.name).custom("timeout", "5s", check_duration, "Time to wait for a response");
        let flags = output::flag((self.flags)(Socket::Workload.flags(timed)));
        self.command(Socket::Workload, flags, "", Errors::Bare)
    }

    fn command<H: 'static>(
        self,
        socket: Socket,
        flags: FlagSet,
        after_usage: &'static str,
        errors: Errors,
    ) -> Command<H> {
        let run = self.run;
        Command {
            path: self.path,
            synopsis: self.synopsis,
            hidden: false,
            after_usage,
            flags,
            act: Box::new(move |env, _hooks, flags, arguments| match parse(env, &flags, arguments) {
                Ok((parsed, format)) => {
                    let done = connect_and(env, socket, parsed, format, run);
                    report(env, errors, done)
                }
                Err(message) => {
                    // These print the flag package's error a second time.
                    if matches!(errors, Errors::Bare) {
                        env.err(format_args!("{message}\n"));
                    }
                    1
                }
            }),
        }
    }
}

#[derive(Clone, Copy)]
enum Errors {
    Labelled,
    Bare,
}

fn report(env: &mut Env, errors: Errors, done: Result<(), Failure>) -> i32 {
    match (done, errors) {
        (Ok(()), _) => 0,
        (Err(failure), Errors::Labelled) => {
            env.err(format_args!("Error: {failure}\n"));
            1
        }
        (Err(failure), Errors::Bare) => {
            env.err(format_args!("{failure}\n"));
            1
        }
    }
}

/// Parses the flags of a command with `-output`; on failure, prints what Go's flag package prints and gives its error.
pub(crate) fn parse(
    env: &mut Env,
    flags: &FlagSet,
    arguments: &[String],
) -> Result<(Parsed, Format), String> {
    let refused = match flags.parse(arguments) {
        Ok(parsed) => match format_when_shared(flags, &parsed) {
            Ok(format) => return Ok((parsed, format)),
            Err(message) => FlagError::Refused(message),
        },
        Err(error) => error,
    };
    if let FlagError::Refused(message) = &refused {
        env.err(format_args!("{message}\n"));
    }
    env.err(flags.usage());
    Err(refused.to_string())
}

/// Bundle commands have a `-format` of their own, which is not that of the output.
fn format_when_shared(flags: &FlagSet, parsed: &Parsed) -> Result<Format, String> {
    if flags.flags().iter().any(|flag| flag.name == "output") {
        output::format_of(parsed)
    } else {
        Ok(Format::Pretty)
    }
}

/// Starts a runtime on this thread, and runs the command with a channel to its socket.
pub(crate) fn connect_and(
    env: &mut Env,
    socket: Socket,
    flags: Parsed,
    format: Format,
    run: for<'a> fn(&'a mut Call<'_>) -> Running<'a>,
) -> Result<(), Failure> {
    let connector = socket.connector(env, &flags)?;
    env.flush();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("unable to start: {error}")))?;
    runtime.block_on(async {
        let mut call = Call { env, flags, format, channel: unix_channel(connector) };
        run(&mut call).await
    })
}

fn check_duration(text: &str) -> Result<(), String> {
    text.parse::<spire_compat::duration::GoDuration>().map(drop).map_err(|error| error.to_string())
}

/// What `-timeout` allows; `None` for no bound, which is what zero and less mean.
pub(crate) fn timeout(flags: &Parsed) -> Option<Duration> {
    match flags.string("timeout") {
        "" => Some(Duration::from_secs(5)),
        given => given
            .parse::<spire_compat::duration::GoDuration>()
            .ok()
            .and_then(spire_compat::duration::GoDuration::to_std)
            .filter(|timeout| !timeout.is_zero()),
    }
}

/// `Box::pin`, spelled so that tables stay tables.
macro_rules! running {
    ($run:path) => {
        |call| Box::pin($run(call))
    };
}
pub(crate) use running;
