//! `api validate jwt`.

use spire_compat::flag::FlagSet;
use spire_wire::workload::ValidateJwtsvidRequest;
use tonic::Code;

use super::workload::{bounded, client, request};
use crate::call::{ApiCommand, Call, running, timeout};
use crate::failure::Failure;
use crate::view::structure;

pub(super) const VALIDATE: ApiCommand = ApiCommand {
    path: "api validate jwt",
    name: "validate jwt",
    synopsis: "Validates a JWT SVID",
    flags: |flags: FlagSet| {
        flags.string("audience", "", "expected audience value").string("svid", "", "JWT SVID")
    },
    run: running!(run),
};

async fn run(call: &mut Call<'_>) -> Result<(), Failure> {
    let [audience, svid] = ["audience", "svid"].map(|name| call.flags.string(name).to_owned());
    if audience.is_empty() {
        return Err(Failure::new("audience must be specified"));
    }
    if svid.is_empty() {
        return Err(Failure::new("svid must be specified"));
    }
    let mut client = client(call);
    let asked = client.validate_jwtsvid(request(ValidateJwtsvidRequest { audience, svid }));
    let valid = bounded(timeout(&call.flags), asked).await.map_err(|status| {
        if status.code() == Code::InvalidArgument {
            return Failure::new(format!("SVID is not valid: {}", status.message()));
        }
        Failure::from(status).context("unable to validate JWT SVID")
    })?;
    call.print(&valid.into_inner(), |env, valid| {
        let claims =
            valid.claims.as_ref().map_or_else(|| "{}".to_owned(), |claims| structure(claims).to_string());
        env.out(format_args!("SVID is valid.\nSPIFFE ID : {}\nClaims    : {claims}\n", valid.spiffe_id));
        Ok(())
    })
}
