//! `bundle …` (cmd/spire-server/cli/bundle), and the old `experimental bundle …`.

use std::time::Duration;

use spire_compat::flag::FlagSet;
use spire_compat::quote::quote;
use spire_core::pki::{Certificate, bundle_doc, pem};
use spire_core::spiffe::{Bundle, JwtAuthority, TrustDomain, X509Authority};
use spire_core::time::Timestamp;
use spire_wire::api::server::bundle::v1::bundle_client::BundleClient;
use spire_wire::api::server::bundle::v1::{
    BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest, CountBundlesRequest, GetBundleRequest,
    GetFederatedBundleRequest, ListFederatedBundlesRequest, batch_delete_federated_bundle_request::Mode,
};
use spire_wire::api::types;

use super::bundle_input::{BundleFormat, parse_bundle};
use crate::call::{ApiCommand, Call, running};
use crate::dispatch::Command;
use crate::env::Env;
use crate::failure::{Doing, Failure, plain};
use crate::files;
use crate::pretty::counted_i32;

/// Certificates in one field of a message.
const CERTIFICATES_MAX: usize = 1024;

pub(super) fn commands<H: 'static>() -> Vec<Command<H>> {
    let mut commands: Vec<Command<H>> = [SHOW, LIST, SET, DELETE, COUNT].map(ApiCommand::server).into();
    let old = [
        ApiCommand { path: "experimental bundle show", run: running!(old_show), ..SHOW },
        ApiCommand { path: "experimental bundle list", run: running!(old_list), ..LIST },
        ApiCommand { path: "experimental bundle set", run: running!(old_set), ..SET },
    ];
    commands.extend(old.map(|command| Command { hidden: true, ..command.server() }));
    commands
}

const SHOW: ApiCommand = ApiCommand {
    path: "bundle show",
    name: "bundle show",
    synopsis: "Prints server CA bundle to stdout",
    flags: |flags| {
        flags.string("format", "pem", "The format to show the bundle (only pretty output format supports this flag). Either \"pem\" or \"spiffe\".")
    },
    run: running!(show),
};

const LIST: ApiCommand = ApiCommand {
    path: "bundle list",
    name: "bundle list",
    synopsis: "Lists federated bundle data",
    flags: |flags| {
        id_flag(flags).string("format", "pem", "The format to list federated bundles (only pretty output format supports this flag). Either \"pem\" or \"spiffe\".")
    },
    run: running!(list),
};

const SET: ApiCommand = ApiCommand {
    path: "bundle set",
    name: "bundle set",
    synopsis: "Creates or updates federated bundle data",
    flags: |flags| {
        id_flag(flags).string("path", "", "Path to the bundle data").string(
            "format",
            "pem",
            "The format of the bundle data. Either \"pem\" or \"spiffe\".",
        )
    },
    run: running!(set),
};

const DELETE: ApiCommand = ApiCommand {
    path: "bundle delete",
    name: "bundle delete",
    synopsis: "Deletes federated bundle data",
    flags: |flags| {
        id_flag(flags).string("mode", "restrict", "Deletion mode: one of restrict, delete, or dissociate")
    },
    run: running!(delete),
};

const COUNT: ApiCommand = ApiCommand {
    path: "bundle count",
    name: "bundle count",
    synopsis: "Count bundles",
    flags: |flags| flags,
    run: running!(count),
};

fn id_flag(flags: FlagSet) -> FlagSet {
    flags.string("id", "", "SPIFFE ID of the trust domain")
}

async fn old_show(call: &mut Call<'_>) -> Result<(), Failure> {
    show_in(call, "spiffe").await
}

async fn show(call: &mut Call<'_>) -> Result<(), Failure> {
    let format = call.flags.string("format").to_owned();
    show_in(call, &format).await
}

async fn show_in(call: &mut Call<'_>, format: &str) -> Result<(), Failure> {
    let bundle =
        BundleClient::new(call.channel.clone()).get_bundle(GetBundleRequest::default()).await?.into_inner();
    call.print(&bundle, |env, bundle| {
        let text = printed(bundle, BundleFormat::parse(format)?)?;
        env.out(text);
        Ok(())
    })
}

async fn old_list(call: &mut Call<'_>) -> Result<(), Failure> {
    list_in(call, "spiffe").await
}

async fn list(call: &mut Call<'_>) -> Result<(), Failure> {
    let format = call.flags.string("format").to_owned();
    list_in(call, &format).await
}

async fn list_in(call: &mut Call<'_>, format: &str) -> Result<(), Failure> {
    let mut client = BundleClient::new(call.channel.clone());
    let id = call.flags.string("id").to_owned();
    if !id.is_empty() {
        let request = GetFederatedBundleRequest { trust_domain: id, ..Default::default() };
        let bundle = client.get_federated_bundle(request).await?.into_inner();
        return call.print(&bundle, |env, bundle| {
            let text = printed(bundle, BundleFormat::parse(format)?)?;
            env.out(text);
            Ok(())
        });
    }
    let response = client.list_federated_bundles(ListFederatedBundlesRequest::default()).await?.into_inner();
    call.print(&response, |env, response| {
        for (i, bundle) in response.bundles.iter().enumerate() {
            if i > 0 {
                env.out("\n");
            }
            let format = BundleFormat::parse(format)?;
            let rule = "*".repeat(40);
            env.out(format_args!("{rule}\n* {}\n{rule}\n", bundle.trust_domain));
            env.out(printed(bundle, format)?);
        }
        Ok(())
    })
}

/// A bundle as PEM (certificates only) or in SPIFFE's format.
fn printed(bundle: &types::Bundle, format: BundleFormat) -> Result<String, Failure> {
    match format {
        BundleFormat::Pem => {
            let mut text = String::new();
            for authority in &bundle.x509_authorities {
                let certificates = Certificate::many_from_der(authority.asn1.clone(), CERTIFICATES_MAX)
                    .map_err(plain)
                    .doing("unable to parse certificates ASN.1 DER data")?;
                certificates.iter().for_each(|c| pem::encode_to(&mut text, "CERTIFICATE", c.der()));
            }
            Ok(text)
        }
        BundleFormat::Spiffe => {
            let bundle = to_model(bundle)?;
            let wanted = bundle_doc::Format { wit: false, ..bundle_doc::Format::SPIFFE };
            Ok(format!("{}\n", bundle_doc::marshal(&bundle, wanted).map_err(plain)?))
        }
    }
}

fn to_model(bundle: &types::Bundle) -> Result<Bundle, Failure> {
    let mut model = Bundle::empty(TrustDomain::parse(&bundle.trust_domain).map_err(plain)?);
    let x509 = bundle.x509_authorities.iter();
    model.x509_authorities =
        x509.map(|a| X509Authority { der: a.asn1.clone(), tainted: a.tainted }).collect();
    let jwt = bundle.jwt_authorities.iter();
    model.jwt_authorities = jwt
        .map(|key| JwtAuthority {
            kid: key.key_id.clone(),
            public_key: key.public_key.clone(),
            not_after: Timestamp::from_unix(key.expires_at),
            tainted: key.tainted,
        })
        .collect();
    model.refresh_hint = u64::try_from(bundle.refresh_hint).map_or(Duration::ZERO, Duration::from_secs);
    model.sequence_number = bundle.sequence_number;
    Ok(model)
}

async fn old_set(call: &mut Call<'_>) -> Result<(), Failure> {
    set_in(call, "spiffe").await
}

async fn set(call: &mut Call<'_>) -> Result<(), Failure> {
    let format = call.flags.string("format").to_owned();
    set_in(call, &format).await
}

async fn set_in(call: &mut Call<'_>, format: &str) -> Result<(), Failure> {
    let id = call.flags.string("id").to_owned();
    if id.is_empty() {
        return Err(Failure::new("id flag is required"));
    }
    let format = BundleFormat::parse(format)?;
    let path = call.flags.string("path").to_owned();
    let contents = if path.is_empty() { files::read_stdin(call.env) } else { files::read(call.env, &path) };
    let bundle = parse_bundle(&contents.doing("unable to load bundle data")?, format, &id)?;
    let request = BatchSetFederatedBundleRequest { bundle: vec![bundle], ..Default::default() };
    let response = BundleClient::new(call.channel.clone())
        .batch_set_federated_bundle(request)
        .await
        .doing("failed to set federated bundle")?
        .into_inner();
    call.print(&response, |env, response| {
        let result = response.results.first().ok_or_else(|| Failure::missing("result"))?;
        let status = result.status.clone().unwrap_or_default();
        if status.code != 0 {
            return Err(Failure::new(format!("failed to set federated bundle: {}", status.message)));
        }
        env.out("bundle set.\n");
        Ok(())
    })
}

async fn delete(call: &mut Call<'_>) -> Result<(), Failure> {
    let id = call.flags.string("id").to_owned();
    if id.is_empty() {
        return Err(Failure::new("id is required"));
    }
    let mode = match call.flags.string("mode") {
        "" | "restrict" => Mode::Restrict,
        "dissociate" => Mode::Dissociate,
        "delete" => Mode::Delete,
        other => return Err(Failure::new(format!("unsupported mode {}", quote(other)))),
    };
    let request = BatchDeleteFederatedBundleRequest { trust_domains: vec![id], mode: mode as i32 };
    let response = BundleClient::new(call.channel.clone())
        .batch_delete_federated_bundle(request)
        .await
        .doing("failed to delete federated bundle")?
        .into_inner();
    call.print(&response, |env: &mut Env, response| {
        let result = response.results.first().ok_or_else(|| Failure::missing("result"))?;
        let status = result.status.clone().unwrap_or_default();
        if status.code != 0 {
            let shown = quote(&result.trust_domain);
            return Err(Failure::new(format!(
                "failed to delete federated bundle {shown}: {}",
                status.message
            )));
        }
        env.out("bundle deleted.\n");
        Ok(())
    })
}

async fn count(call: &mut Call<'_>) -> Result<(), Failure> {
    let response =
        BundleClient::new(call.channel.clone()).count_bundles(CountBundlesRequest {}).await?.into_inner();
    call.print(&response, |env, response| {
        env.out(format_args!("{} {}\n", response.count, counted_i32(response.count, "bundle", "bundles")));
        Ok(())
    })
}
