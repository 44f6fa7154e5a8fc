//! `token generate` (cmd/spire-server/cli/token).

use spire_compat::flag::FlagSet;
use spire_wire::api::server::agent::v1::CreateJoinTokenRequest;
use spire_wire::api::server::agent::v1::agent_client::AgentClient;

use crate::call::{ApiCommand, Call, running};
use crate::failure::{Doing, Failure};
use crate::pretty::{parse_id, to_i32};

pub(super) const GENERATE: ApiCommand = ApiCommand {
    path: "token generate",
    name: "generate",
    synopsis: "Generates a join token",
    flags,
    run: running!(run),
};

fn flags(flags: FlagSet) -> FlagSet {
    flags.int("ttl", 600, "Token TTL in seconds").string(
        "spiffeID",
        "",
        "Additional SPIFFE ID to assign the token owner (optional)",
    )
}

async fn run(call: &mut Call<'_>) -> Result<(), Failure> {
    let id = call.flags.string("spiffeID").to_owned();
    let agent_id = if id.is_empty() { None } else { Some(parse_id(&id)?) };
    let ttl = to_i32(call.flags.int("ttl")).doing("invalid value for TTL")?;
    let request = CreateJoinTokenRequest { ttl, agent_id, ..Default::default() };
    let token = AgentClient::new(call.channel.clone()).create_join_token(request).await?.into_inner();
    call.print(&token, |env, token| {
        env.out(format_args!("Token: {}\n", token.value));
        if id.is_empty() {
            env.out("Warning: Missing SPIFFE ID.\n");
        }
        Ok(())
    })
}
