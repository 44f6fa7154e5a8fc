//! `healthcheck` (cmd/spire-server/cli/healthcheck).

use spire_compat::flag::FlagSet;
use spire_wire::health::HealthCheckRequest;
use spire_wire::health::health_check_response::ServingStatus;
use spire_wire::health::health_client::HealthClient;

use crate::call::{ApiCommand, Call, running};
use crate::failure::{Failure, rpc_text};

pub(super) const COMMAND: ApiCommand = ApiCommand {
    path: "healthcheck",
    name: "healthcheck",
    synopsis: "Determines server health status",
    flags,
    run: running!(run),
};

/// The flags of both health checks.
pub(crate) fn flags(flags: FlagSet) -> FlagSet {
    flags.bool("shallow", false, "Perform a less stringent health check").bool(
        "verbose",
        false,
        "Print verbose information",
    )
}

async fn run(call: &mut Call<'_>) -> Result<(), Failure> {
    if call.flags.bool("verbose") {
        call.env.out("Checking server health...\n");
        call.env.flush();
    }
    check(call, "server").await.map_err(|failure| failure.context("server is unhealthy"))?;
    call.env.out("Server is healthy.\n");
    Ok(())
}

/// Asks the health service; `who` stands in the error.
pub(crate) async fn check(call: &mut Call<'_>, who: &str) -> Result<(), Failure> {
    let answer = HealthClient::new(call.channel.clone()).check(HealthCheckRequest::default()).await;
    let status = match answer {
        Ok(answer) => answer.into_inner().status,
        Err(status) => {
            if call.flags.bool("verbose") {
                call.env.err(format_args!("Failed to check health: {}\n", rpc_text(&status)));
            }
            return Err(Failure::new("unable to determine health"));
        }
    };
    if status == ServingStatus::Serving as i32 {
        return Ok(());
    }
    let shown =
        ServingStatus::try_from(status).map_or_else(|_| status.to_string(), |s| s.as_str_name().to_owned());
    Err(Failure::new(format!("{who} returned status \"{shown}\"")))
}
