//! `debug getinfo` (cmd/spire-server/cli/debug).

use spire_compat::duration::GoDuration;
use spire_wire::api::server::debug::v1::debug_client::DebugClient;
use spire_wire::api::server::debug::v1::{GetInfoRequest, GetInfoResponse};

use crate::call::{ApiCommand, Call, running};
use crate::env::Env;
use crate::failure::Failure;
use crate::pretty::chain_line;

pub(super) const GET_INFO: ApiCommand = ApiCommand {
    path: "debug getinfo",
    name: "debug getinfo",
    synopsis: "Prints debug information about the server",
    flags: |flags| flags,
    run: running!(run),
};

async fn run(call: &mut Call<'_>) -> Result<(), Failure> {
    let info = DebugClient::new(call.channel.clone()).get_info(GetInfoRequest {}).await?.into_inner();
    call.print(&info, print)
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of a printer")]
fn print(env: &mut Env, info: &GetInfoResponse) -> Result<(), Failure> {
    let uptime = GoDuration::from_secs(i64::from(info.uptime));
    env.out("Server Debug Info:\n");
    env.out(format_args!("  Uptime:                  {uptime}\n"));
    env.out(format_args!("  Registered Agents:       {}\n", info.agents_count));
    env.out(format_args!("  Registration Entries:    {}\n", info.entries_count));
    env.out(format_args!("  Federated Bundles:       {}\n", info.federated_bundles_count));
    if !info.svid_chain.is_empty() {
        env.out("  SVID Chain:\n");
    }
    for (i, cert) in info.svid_chain.iter().enumerate() {
        chain_line(env, i, cert.id.as_ref(), &cert.subject, cert.expires_at);
    }
    Ok(())
}
