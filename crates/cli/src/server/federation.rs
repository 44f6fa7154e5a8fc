//! `federation …` (cmd/spire-server/cli/federation).

use spire_compat::flag::FlagSet;
use spire_compat::quote::quote;
use spire_core::spiffe::SpiffeId;
use spire_wire::api::server::trustdomain::v1 as api;
use spire_wire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use spire_wire::api::types;
use spire_wire::api::types::FederationRelationship;
use spire_wire::api::types::federation_relationship::BundleEndpointProfile;
use tonic::Code;

use super::bundle_input::{BundleFormat, parse_bundle};
use crate::call::{ApiCommand, Call, running};
use crate::dispatch::Command;
use crate::env::Env;
use crate::failure::{Doing, Failure, code_name, plain};
use crate::files;
use crate::input::{self, Object};
use crate::pretty::counted;

pub(super) fn commands<H: 'static>() -> [Command<H>; 6] {
    let command = |path, synopsis, flags, run| ApiCommand { path, name: path, synopsis, flags, run };
    [
        command(
            "federation create",
            "Creates a dynamic federation relationship with a foreign trust domain",
            relationship_flags,
            running!(create),
        )
        .server(),
        command(
            "federation update",
            "Updates a dynamic federation relationship with a foreign trust domain",
            relationship_flags,
            running!(update),
        )
        .server(),
        command("federation delete", "Deletes a dynamic federation relationship", id_flag, running!(delete))
            .server(),
        command(
            "federation list",
            "Lists all dynamic federation relationships",
            |flags| flags,
            running!(list),
        )
        .server(),
        command(
            "federation show",
            "Shows a dynamic federation relationship",
            |flags| {
                flags.string(
                    "trustDomain",
                    "",
                    "The trust domain name of the federation relationship to show",
                )
            },
            running!(show),
        )
        .server(),
        command(
            "federation refresh",
            "Refreshes the bundle from the specified federated trust domain",
            id_flag,
            running!(refresh),
        )
        .server(),
    ]
}

fn id_flag(flags: FlagSet) -> FlagSet {
    flags.string("id", "", "SPIFFE ID of the trust domain")
}

fn relationship_flags(flags: FlagSet) -> FlagSet {
    flags
        .string("data", "", "Path to a file containing federation relationships in JSON format (optional). If set to '-', read the JSON from stdin.")
        .string("trustDomain", "", "Name of the trust domain to federate with (e.g., example.org)")
        .string("bundleEndpointURL", "", "URL of the SPIFFE bundle endpoint that provides the trust bundle (must use the HTTPS protocol)")
        .string(
            "bundleEndpointProfile",
            "",
            "Endpoint profile type (either \"https_web\" or \"https_spiffe\")",
        )
        .string(
            "endpointSpiffeID",
            "",
            "SPIFFE ID of the SPIFFE bundle endpoint server. Only used for 'spiffe' profile.",
        )
        .string("trustDomainBundlePath", "", "Path to the trust domain bundle data (optional).")
        .string(
            "trustDomainBundleFormat",
            "pem",
            "The format of the bundle data (optional). Either \"pem\" or \"spiffe\".",
        )
}

/// A relationship as the user describes it.
#[derive(Clone, Default)]
struct Described {
    trust_domain: String,
    url: String,
    profile: String,
    endpoint_id: String,
    bundle: Option<(Vec<u8>, BundleFormat)>,
}

impl Described {
    fn into_message(self) -> Result<FederationRelationship, Failure> {
        if self.trust_domain.is_empty() {
            return Err(Failure::new("trust domain is required"));
        }
        if self.url.is_empty() {
            return Err(Failure::new("bundle endpoint URL is required"));
        }
        let mut bundle_of = self.trust_domain.clone();
        let profile = match self.profile.as_str() {
            "https_web" => BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}),
            "https_spiffe" if self.endpoint_id.is_empty() => {
                return Err(Failure::new(
                    "endpoint SPIFFE ID is required if 'https_spiffe' endpoint profile is set",
                ));
            }
            "https_spiffe" => {
                let id = SpiffeId::parse(&self.endpoint_id)
                    .map_err(plain)
                    .doing("cannot parse bundle endpoint SPIFFE ID")?;
                // The reference takes the bundle for that of the endpoint's trust domain.
                id.trust_domain_name().clone_into(&mut bundle_of);
                BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
                    endpoint_spiffe_id: self.endpoint_id,
                })
            }
            other => {
                return Err(Failure::new(format!("unknown bundle endpoint profile type: {}", quote(other))));
            }
        };
        let bundle =
            self.bundle.map(|(contents, format)| parse_bundle(&contents, format, &bundle_of)).transpose()?;
        Ok(FederationRelationship {
            trust_domain: self.trust_domain,
            bundle_endpoint_url: self.url,
            bundle_endpoint_profile: Some(profile),
            trust_domain_bundle: bundle,
        })
    }
}

fn relationships(call: &mut Call<'_>) -> Result<Vec<FederationRelationship>, Failure> {
    let flags = &call.flags;
    let [trust_domain, url, profile, endpoint_id, bundle_path] = [
        "trustDomain",
        "bundleEndpointURL",
        "bundleEndpointProfile",
        "endpointSpiffeID",
        "trustDomainBundlePath",
    ]
    .map(|name| flags.string(name).to_owned());
    let format = flags.string("trustDomainBundleFormat").to_owned();
    let data = flags.string("data").to_owned();
    if !data.is_empty() {
        let fields = [&trust_domain, &url, &profile, &endpoint_id, &bundle_path];
        if fields.iter().any(|field| !field.is_empty()) || format != "pem" {
            return Err(Failure::new(
                "cannot use other flags to specify relationship fields when 'data' flag is set",
            ));
        }
        return from_file(call.env, &data);
    }
    // Only the words of the flag's text are known; all else is SPIFFE's format, as in the reference.
    let format = if format == "pem" { BundleFormat::Pem } else { BundleFormat::Spiffe };
    let mut described = Described { trust_domain, url, profile, endpoint_id, bundle: None };
    if bundle_path.is_empty() {
        return Ok(vec![described.into_message()?]);
    }
    // Complaints about the other flags come before those about the file.
    described.clone().into_message()?;
    described.bundle = Some((files::read(call.env, &bundle_path).doing("cannot read bundle file")?, format));
    Ok(vec![described.into_message().doing("cannot parse bundle file")?])
}

fn from_file(env: &mut Env, path: &str) -> Result<Vec<FederationRelationship>, Failure> {
    let contents = files::read_or_stdin(env, path)?;
    let value = input::parse(&contents).doing("failed to parse JSON")?;
    let root = Object::root(&value, "federation.federationRelationships").doing("failed to parse JSON")?;
    let items = root
        .objects("federationRelationships", "federation.federationRelationshipConfig")
        .doing("failed to parse JSON")?;
    items
        .iter()
        .enumerate()
        .map(|(i, item)| {
            let item = item.as_ref().ok_or_else(|| Failure::new("relationship is null"));
            item.and_then(from_item).doing(format_args!("could not parse item {i}"))
        })
        .collect()
}

fn from_item(item: &Object<'_>) -> Result<FederationRelationship, Failure> {
    let mut described = Described {
        trust_domain: item.text("trustDomain")?,
        url: item.text("bundleEndpointURL")?,
        profile: item.text("bundleEndpointProfile")?,
        endpoint_id: item.text("endpointSPIFFEID")?,
        bundle: None,
    };
    let Some(bundle) = item.raw("trustDomainBundle") else { return described.into_message() };
    described.clone().into_message()?;
    let bad = |failure: Failure| failure.context("cannot parse bundle raw message");
    described.bundle = Some(match item.text("trustDomainBundleFormat")?.as_str() {
        "pem" => (item.text("trustDomainBundle").map_err(bad)?.into_bytes(), BundleFormat::Pem),
        "spiffe" => (bundle.to_string().into_bytes(), BundleFormat::Spiffe),
        other => return Err(bad(Failure::new(format!("bundle format {} is unsupported", quote(other))))),
    });
    described.into_message().map_err(bad)
}

fn block(relationship: &FederationRelationship) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| text.push_str(&format!("{label:26}: {value}\n"));
    line("Trust domain", &relationship.trust_domain);
    line("Bundle endpoint URL", &relationship.bundle_endpoint_url);
    match &relationship.bundle_endpoint_profile {
        Some(BundleEndpointProfile::HttpsWeb(_)) => line("Bundle endpoint profile", "https_web"),
        Some(BundleEndpointProfile::HttpsSpiffe(profile)) => {
            line("Bundle endpoint profile", "https_spiffe");
            line("Endpoint SPIFFE ID", &profile.endpoint_spiffe_id);
        }
        None => {}
    }
    text
}

/// One result of `create` or `update`.
type Outcome = (types::Status, FederationRelationship);

/// Prints what was done, then what was not and why.
fn print_results(env: &mut Env, verb: &str, results: &[Outcome]) -> Result<(), Failure> {
    let (done, failed): (Vec<_>, Vec<_>) = results.iter().partition(|(status, _)| status.code == 0);
    for (_, relationship) in done {
        env.out(format_args!("\n{}", block(relationship)));
    }
    for (status, relationship) in &failed {
        env.out("\n");
        let (code, message) = (code_name(status.code), quote(&status.message));
        env.err(format_args!(
            "Failed to {verb} the following federation relationship (code: {code}, msg: {message}):\n"
        ));
        env.err(block(relationship));
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("failed to {verb} one or more federation relationships")))
}

/// The relationship of a result; that which was asked for where it failed, since the API does not repeat it.
fn outcome(
    status: Option<&types::Status>,
    done: Option<&FederationRelationship>,
    asked: &FederationRelationship,
) -> Outcome {
    let status = status.cloned().unwrap_or_default();
    let shown = if status.code == 0 { done.cloned().unwrap_or_default() } else { asked.clone() };
    (status, shown)
}

fn client(call: &Call<'_>) -> TrustDomainClient<tonic::transport::Channel> {
    TrustDomainClient::new(call.channel.clone())
}

async fn create(call: &mut Call<'_>) -> Result<(), Failure> {
    let asked = relationships(call)?;
    let request = api::BatchCreateFederationRelationshipRequest {
        federation_relationships: asked.clone(),
        ..Default::default()
    };
    let response = client(call)
        .batch_create_federation_relationship(request)
        .await
        .doing("request failed")?
        .into_inner();
    call.print(&response, |env, response| {
        let pairs = response.results.iter().zip(&asked);
        let results: Vec<_> = pairs
            .map(|(r, asked)| outcome(r.status.as_ref(), r.federation_relationship.as_ref(), asked))
            .collect();
        print_results(env, "create", &results)
    })
}

async fn update(call: &mut Call<'_>) -> Result<(), Failure> {
    let asked = relationships(call)?;
    let request = api::BatchUpdateFederationRelationshipRequest {
        federation_relationships: asked.clone(),
        ..Default::default()
    };
    let response = client(call)
        .batch_update_federation_relationship(request)
        .await
        .doing("request failed")?
        .into_inner();
    call.print(&response, |env, response| {
        let pairs = response.results.iter().zip(&asked);
        let results: Vec<_> = pairs
            .map(|(r, asked)| outcome(r.status.as_ref(), r.federation_relationship.as_ref(), asked))
            .collect();
        print_results(env, "update", &results)
    })
}

fn required_id(call: &Call<'_>) -> Result<String, Failure> {
    match call.flags.string("id") {
        "" => Err(Failure::new("id is required")),
        id => Ok(id.to_owned()),
    }
}

async fn delete(call: &mut Call<'_>) -> Result<(), Failure> {
    let request = api::BatchDeleteFederationRelationshipRequest { trust_domains: vec![required_id(call)?] };
    let response = client(call)
        .batch_delete_federation_relationship(request)
        .await
        .doing("failed to delete federation relationship")?
        .into_inner();
    call.print(&response, |env, response| {
        let result = response.results.first().ok_or_else(|| Failure::missing("result"))?;
        let status = result.status.clone().unwrap_or_default();
        if status.code != 0 {
            let shown = quote(&result.trust_domain);
            return Err(Failure::new(format!(
                "failed to delete federation relationship {shown}: {}",
                status.message
            )));
        }
        env.out("federation relationship deleted.\n");
        Ok(())
    })
}

async fn list(call: &mut Call<'_>) -> Result<(), Failure> {
    let request = api::ListFederationRelationshipsRequest::default();
    let response = client(call)
        .list_federation_relationships(request)
        .await
        .doing("error listing federation relationship")?
        .into_inner();
    call.print(&response, |env, response| {
        let found = response.federation_relationships.len();
        let noun = counted(found, "federation relationship", "federation relationships");
        env.out(format_args!("Found {found} {noun}\n"));
        for relationship in &response.federation_relationships {
            env.out(format_args!("\n{}", block(relationship)));
        }
        Ok(())
    })
}

async fn show(call: &mut Call<'_>) -> Result<(), Failure> {
    let trust_domain = call.flags.string("trustDomain").to_owned();
    if trust_domain.is_empty() {
        return Err(Failure::new("a trust domain name is required"));
    }
    let request =
        api::GetFederationRelationshipRequest { trust_domain: trust_domain.clone(), ..Default::default() };
    let relationship = client(call)
        .get_federation_relationship(request)
        .await
        .doing("error showing federation relationship")?
        .into_inner();
    call.print(&relationship, |env, relationship| {
        env.out(format_args!("Found a federation relationship with trust domain {trust_domain}:\n\n"));
        env.out(block(relationship));
        Ok(())
    })
}

async fn refresh(call: &mut Call<'_>) -> Result<(), Failure> {
    let id = required_id(call)?;
    match client(call).refresh_bundle(api::RefreshBundleRequest { trust_domain: id.clone() }).await {
        Ok(_) => call.print(&types::Status { code: 0, message: "OK".to_owned() }, |env, _| {
            env.out("Bundle refreshed\n");
            Ok(())
        }),
        Err(status) if status.code() == Code::NotFound => {
            Err(Failure::new(format!("there is no federation relationship with trust domain {}", quote(&id))))
        }
        Err(status) => Err(Failure::from(status).context("failed to refresh bundle")),
    }
}
