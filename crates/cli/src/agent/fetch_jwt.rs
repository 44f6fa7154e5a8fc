//! `api fetch jwt`.

use serde_json::Value;
use spire_compat::flag::FlagSet;
use spire_wire::workload::{JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest};

use super::workload::{bounded, client, first, request};
use crate::call::{ApiCommand, Call, running, timeout};
use crate::failure::{Failure, is_dial_error};
use crate::output::Format;
use crate::view::View;

pub(super) const FETCH: ApiCommand = ApiCommand {
    path: "api fetch jwt",
    name: "fetch jwt",
    synopsis: "Fetches a JWT SVID from the Workload API",
    flags: |flags: FlagSet| {
        flags
            .custom("audience", "", |_| Ok(()), "comma separated list of audience values")
            .string("spiffeID", "", "SPIFFE ID subject (optional)")
            .strings("format", "deprecated; use -output")
    },
    run: running!(run),
};

async fn run(call: &mut Call<'_>) -> Result<(), Failure> {
    if !call.flags.is_given("audience") {
        return Err(Failure::new("audience must be specified"));
    }
    let audience: Vec<String> = call.flags.string("audience").split(',').map(ToOwned::to_owned).collect();
    let spiffe_id = call.flags.string("spiffeID").to_owned();
    let timeout = timeout(&call.flags);
    let mut client = client(call);
    let bundles: JwtBundlesResponse = bounded(timeout, async {
        first(client.fetch_jwt_bundles(request(JwtBundlesRequest {})).await?.into_inner()).await
    })
    .await
    .map_err(|status| {
        let unreachable = is_dial_error(&status);
        let failure = Failure::from(status);
        // grpc-go tells opening a stream from reading it; only a connection fails the first.
        if unreachable { failure.context("failed to receive JWT bundles") } else { failure }
    })??;
    let svids = bounded(timeout, client.fetch_jwtsvid(request(JwtsvidRequest { audience, spiffe_id })))
        .await?
        .into_inner();
    if call.format == Format::Json {
        call.json(&Value::Array(vec![svids.view(), bundles.view()]));
        return Ok(());
    }
    for svid in &svids.svids {
        call.env.out(format_args!("token({}):\n\t{}\n", svid.spiffe_id, svid.svid));
        if !svid.hint.is_empty() {
            call.env.out(format_args!("hint({}):\n\t{}\n", svid.spiffe_id, svid.hint));
        }
    }
    for (domain, jwks) in &bundles.bundles {
        call.env.out(format_args!("bundle({domain}):\n\t{}\n", String::from_utf8_lossy(jwks)));
    }
    Ok(())
}
