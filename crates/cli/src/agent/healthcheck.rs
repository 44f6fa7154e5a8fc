//! `healthcheck` (cmd/spire-agent/cli/healthcheck).

use spire_compat::flag::FlagSet;

use crate::call::{Call, Running, connect_and, parse};
use crate::dispatch::Command;
use crate::failure::Failure;
use crate::output::Format;
use crate::server::{check_health, health_flags};
use crate::socket::Socket;

pub(super) fn command<H: 'static>() -> Command<H> {
    Command {
        path: "healthcheck",
        synopsis: "Determines agent health status",
        hidden: false,
        after_usage: "",
        flags: Socket::Health.flags(health_flags(FlagSet::new("health"))),
        act: Box::new(|env, _, flags, arguments| {
            let Ok((parsed, _)) = parse(env, &flags, arguments) else { return 1 };
            if parsed.bool("verbose") {
                env.out("Checking agent health...\n");
            }
            match connect_and(env, Socket::Health, parsed, Format::Pretty, running) {
                Ok(()) => {
                    env.out("Agent is healthy.\n");
                    0
                }
                Err(failure) => {
                    env.err(format_args!("Agent is unhealthy: {failure}\n"));
                    1
                }
            }
        }),
    }
}

fn running<'a>(call: &'a mut Call<'_>) -> Running<'a> {
    Box::pin(run(call))
}

async fn run(call: &mut Call<'_>) -> Result<(), Failure> {
    check_health(call, "agent").await
}
