//! `api watch`: prints each update until it is interrupted, as go-spiffe's WatchX509Context reports them
//! (workloadapi/client.go of go-spiffe v2).

use std::time::{Duration, Instant};

use spire_compat::flag::FlagSet;
use spire_core::time::Timestamp;
use spire_wire::workload::{X509svidRequest, X509svidResponse};
use tonic::{Code, Status};

use super::svids;
use super::workload::{client, request};
use crate::call::{Call, Running, connect_and, parse};
use crate::dispatch::{Command, HELP_REQUESTED};
use crate::failure::{Failure, rpc_text};
use crate::output::Format;
use crate::socket::Socket;

/// go-spiffe waits this long after the first failure, twice after the second, and so on.
const RETRY_STEP: Duration = Duration::from_secs(1);
const RETRY_MAX: u32 = 30;

pub(super) fn command<H: 'static>() -> Command<H> {
    Command {
        path: "api watch",
        synopsis: "Attaches to the Workload API and prints updates as they're received",
        hidden: false,
        after_usage: HELP_REQUESTED,
        flags: Socket::Workload.flags(FlagSet::new("watch")),
        act: Box::new(|env, _, flags, arguments| {
            let watched = parse(env, &flags, arguments)
                .map_err(Failure::new)
                .and_then(|(parsed, _)| connect_and(env, Socket::Workload, parsed, Format::Pretty, running));
            match watched {
                Ok(()) => 0,
                Err(failure) => {
                    env.err(format_args!("{failure}\n"));
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
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    let mut last_update = Instant::now();
    let mut failures: u32 = 0;
    loop {
        let ended = tokio::select! {
            _ = &mut interrupt => Ended::With(Status::cancelled("context canceled")),
            ended = attempt(call, &mut last_update, &mut failures) => ended,
        };
        let (code, text) = match ended {
            Ended::With(status) => (status.code(), rpc_text(&status)),
            Ended::Stream => (Code::Unknown, "EOF".to_owned()),
            Ended::Bad(failure) => (Code::Unknown, failure.to_string()),
        };
        call.env.err(format_args!("{text}\n"));
        if matches!(code, Code::Cancelled | Code::InvalidArgument) {
            return Err(Failure::new(text));
        }
        failures = (failures + 1).min(RETRY_MAX);
        tokio::select! {
            _ = &mut interrupt => return Err(Failure::new("context canceled")),
            () = tokio::time::sleep(RETRY_STEP * failures) => {}
        }
    }
}

/// How an attempt came to its end.
enum Ended {
    With(Status),
    Stream,
    Bad(Failure),
}

async fn attempt(call: &mut Call<'_>, last_update: &mut Instant, failures: &mut u32) -> Ended {
    let mut stream = match client(call).fetch_x509svid(request(X509svidRequest {})).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Ended::With(status),
    };
    loop {
        let response: X509svidResponse = match stream.message().await {
            Ok(Some(response)) => response,
            Ok(None) => return Ended::Stream,
            Err(status) => return Ended::With(status),
        };
        *failures = 0;
        match svids::read(&response, Timestamp::from_unix(call.env.unix_now())) {
            Ok((mut svids, federated)) => {
                // go-spiffe hands neither hints nor the scheme of trust domains to its watchers.
                svids.iter_mut().for_each(|svid| svid.hint.clear());
                let name = |domain: String| domain.strip_prefix("spiffe://").unwrap_or(&domain).to_owned();
                let federated =
                    federated.into_iter().map(|(domain, bundle)| (name(domain), bundle)).collect();
                call.env.out(svids::described(&svids, &federated, last_update.elapsed()));
                call.env.flush();
                *last_update = Instant::now();
            }
            Err(failure) => return Ended::Bad(failure),
        }
    }
}
