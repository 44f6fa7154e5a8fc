//! `api fetch x509`, which is `api fetch` too.

use std::time::Instant;

use spire_compat::flag::FlagSet;
use spire_core::pki::{Certificate, pem};
use spire_core::time::Timestamp;
use spire_wire::workload::{X509svidRequest, X509svidResponse};

use super::svids::{self, Federated, Svid};
use super::workload::{bounded, client, first, request};
use crate::call::{ApiCommand, Call, running, timeout};
use crate::env::Env;
use crate::failure::Failure;
use crate::files::{join, write_private, write_public};

pub(super) const FETCH: ApiCommand = ApiCommand {
    path: "api fetch x509",
    name: "fetch x509",
    synopsis: "Fetches X509 SVIDs from the Workload API",
    flags: |flags: FlagSet| {
        flags.bool("silent", false, "Suppress stdout").string(
            "write",
            "",
            "Write SVID data to the specified path (optional; only available for pretty output format)",
        )
    },
    run: running!(run),
};

async fn run(call: &mut Call<'_>) -> Result<(), Failure> {
    let started = Instant::now();
    let mut client = client(call);
    let response: X509svidResponse = bounded(timeout(&call.flags), async {
        first(client.fetch_x509svid(request(X509svidRequest {})).await?.into_inner()).await
    })
    .await??;
    let took = started.elapsed();
    let silent = call.flags.bool("silent");
    let folder = call.flags.string("write").to_owned();
    call.print(&response, |env, response| {
        let (svids, federated) = svids::read(response, Timestamp::from_unix(env.unix_now()))?;
        if !silent {
            env.out(svids::described(&svids, &federated, took));
        }
        if folder.is_empty() { Ok(()) } else { write(env, &folder, &svids, &federated) }
    })
}

/// Writes the files, and says which even when silent, as the reference.
fn write(env: &mut Env, folder: &str, svids: &[Svid], federated: &Federated) -> Result<(), Failure> {
    for (i, svid) in svids.iter().enumerate() {
        let path = |name: String| join(folder, &name);
        let svid_path = path(format!("svid.{i}.pem"));
        env.out(format_args!("Writing SVID #{i} to file {svid_path}.\n"));
        write_public(env, &svid_path, encoded(&svid.chain).as_bytes())?;

        let key_path = path(format!("svid.{i}.key"));
        env.out(format_args!("Writing key #{i} to file {key_path}.\n"));
        write_private(env, &key_path, pem::encode("PRIVATE KEY", &svid.key).as_bytes())?;

        let bundle_path = path(format!("bundle.{i}.pem"));
        env.out(format_args!("Writing bundle #{i} to file {bundle_path}.\n"));
        write_public(env, &bundle_path, encoded(&svid.bundle).as_bytes())?;

        for (j, (domain, bundle)) in federated.iter().enumerate() {
            let path = path(format!("federated_bundle.{i}.{j}.pem"));
            env.out(format_args!(
                "Writing federated bundle #{j} for trust domain {domain} to file {path}.\n"
            ));
            write_public(env, &path, encoded(bundle).as_bytes())?;
        }
    }
    Ok(())
}

fn encoded(certificates: &[Certificate]) -> String {
    pem::encode_certificates(certificates.iter().map(|c| c.der().as_ref()))
}
