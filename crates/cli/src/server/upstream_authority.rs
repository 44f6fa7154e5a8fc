//! `upstreamauthority …` (cmd/spire-server/cli/upstreamauthority).

use spire_wire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use spire_wire::api::server::localauthority::v1::{
    RevokeX509UpstreamAuthorityRequest, TaintX509UpstreamAuthorityRequest,
};

use crate::call::{ApiCommand, Call, running};
use crate::dispatch::Command;
use crate::env::Env;
use crate::failure::{Doing, Failure};

pub(super) fn commands<H: 'static>() -> [Command<H>; 2] {
    [TAINT.server(), REVOKE.server()]
}

const TAINT: ApiCommand = ApiCommand {
    path: "upstreamauthority taint",
    name: "upstreamauthority taint",
    synopsis: "Marks the provided X.509 upstream authority as being tainted",
    flags: |flags| {
        flags.string("subjectKeyID", "", "The X.509 Subject Key Identifier (or SKID) of the authority's CA certificate of the upstream X.509 authority to taint")
    },
    run: running!(taint),
};

const REVOKE: ApiCommand = ApiCommand {
    path: "upstreamauthority revoke",
    name: "upstreamauthority revoke",
    synopsis: "Revokes the previously active X.509 upstream authority by removing it from the bundle and propagating this update throughout the cluster",
    flags: |flags| {
        flags.string("subjectKeyID", "", "The X.509 Subject Key Identifier (or SKID) of the authority's CA certificate of the X.509 upstream authority to revoke")
    },
    run: running!(revoke),
};

fn subject_key_id(call: &Call<'_>) -> Result<String, Failure> {
    match call.flags.string("subjectKeyID") {
        "" => Err(Failure::new("the Subject Key ID of the X.509 upstream authority is required")),
        id => Ok(id.to_owned()),
    }
}

fn print(env: &mut Env, done: &str, id: &str) -> Result<(), Failure> {
    env.out(format_args!("{done} X.509 upstream authority:\n  Subject Key ID: {id}\n"));
    Ok(())
}

async fn taint(call: &mut Call<'_>) -> Result<(), Failure> {
    let request = TaintX509UpstreamAuthorityRequest { subject_key_id: subject_key_id(call)? };
    let response = LocalAuthorityClient::new(call.channel.clone())
        .taint_x509_upstream_authority(request)
        .await
        .doing("could not taint X.509 upstream authority")?
        .into_inner();
    call.print(&response, |env, r| print(env, "Tainted", &r.upstream_authority_subject_key_id))
}

async fn revoke(call: &mut Call<'_>) -> Result<(), Failure> {
    let request = RevokeX509UpstreamAuthorityRequest { subject_key_id: subject_key_id(call)? };
    let response = LocalAuthorityClient::new(call.channel.clone())
        .revoke_x509_upstream_authority(request)
        .await
        .doing("could not revoke X.509 upstream authority")?
        .into_inner();
    call.print(&response, |env, r| print(env, "Revoked", &r.upstream_authority_subject_key_id))
}
