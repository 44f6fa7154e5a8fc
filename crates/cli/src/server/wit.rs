//! `wit mint`, behind the feature flag `wit-svid` (cmd/spire-server/cli/wit).

use serde::Serialize;
use spire_compat::duration::GoDuration;
use spire_compat::flag::FlagSet;
use spire_core::pki::{KeyType, LocalKey};
use spire_wire::api::server::svid::v1::MintWitsvidRequest;
use spire_wire::api::server::svid::v1::svid_client::SvidClient;
use spire_wire::api::types;

use super::mint::check_token;
use super::private_jwk;
use crate::call::{ApiCommand, Call, running};
use crate::failure::{Doing, Failure, plain};
use crate::files::{join, write_private};
use crate::output::Format;
use crate::pretty::{parse_id, ttl_seconds};
use crate::view;

pub(super) const MINT: ApiCommand = ApiCommand {
    path: "wit mint",
    name: "wit mint",
    synopsis: "Mints a WIT-SVID",
    flags: |flags: FlagSet| {
        flags
            .string("spiffeID", "", "SPIFFE ID of the WIT-SVID")
            .string("keyType", "ec-p256", "Key type of the WIT-SVID")
            .string("signingAlgorithm", "ES256", "Signing algorithm for the workload signing key")
            .duration("ttl", GoDuration::ZERO, "TTL of the WIT-SVID")
            .string("write", "", "Directory to write output to instead of stdout")
    },
    run: running!(run),
};

/// What was minted. The reference's JSON leaves empty fields out here, and has numbers as numbers.
#[derive(Serialize)]
struct Minted<'a> {
    private_key: &'a str,
    svid: Svid<'a>,
}

#[derive(Serialize)]
struct Svid<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Id<'a>>,
    #[serde(skip_serializing_if = "is_zero")]
    expires_at: i64,
    #[serde(skip_serializing_if = "is_zero")]
    issued_at: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    hint: &'a str,
}

#[derive(Serialize)]
struct Id<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    trust_domain: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    path: &'a str,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde calls")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

async fn run(call: &mut Call<'_>) -> Result<(), Failure> {
    if call.flags.string("spiffeID").is_empty() {
        return Err(Failure::new("spiffeID must be specified"));
    }
    let id = parse_id(call.flags.string("spiffeID"))?;
    let wanted = call.flags.duration("ttl");
    let ttl = ttl_seconds(wanted)?;
    let signing_algorithm = call.flags.string("signingAlgorithm").to_owned();
    let key_type = key_type(call.flags.string("keyType"), &signing_algorithm)?;
    let key =
        LocalKey::generate(key_type).map_err(plain).doing("could not generate public/private key pair")?;
    let public_key = key.public_key().spki().clone();
    let response = SvidClient::new(call.channel.clone())
        .mint_witsvid(MintWitsvidRequest { id: Some(id), public_key, ttl, signing_algorithm })
        .await
        .doing("unable to mint SVID")?
        .into_inner();
    let svid = response.svid.unwrap_or_default();
    check_token(call.env, "WIT-SVID", &svid.token, wanted)?;
    let private_key = private_jwk::encode(&key)?;
    let folder = call.flags.string("write").to_owned();
    if folder.is_empty() {
        return print(call, &svid, &private_key);
    }
    let (token_path, key_path) = (join(&folder, "token"), join(&folder, "key"));
    write_private(call.env, &token_path, svid.token.as_bytes()).doing("unable to write token")?;
    call.env.out(format_args!("WIT-SVID written to {token_path}\n"));
    write_private(call.env, &key_path, private_key.as_bytes()).doing("unable to write key")?;
    call.env.out(format_args!("Private key written to {key_path}\n"));
    Ok(())
}

fn print(call: &mut Call<'_>, svid: &types::Witsvid, private_key: &str) -> Result<(), Failure> {
    if call.format == Format::Pretty {
        call.env.out(format_args!("{}\n{private_key}\n", svid.token));
        return Ok(());
    }
    let minted = Minted {
        private_key,
        svid: Svid {
            token: &svid.token,
            id: svid.id.as_ref().map(|id| Id { trust_domain: &id.trust_domain, path: &id.path }),
            expires_at: svid.expires_at,
            issued_at: svid.issued_at,
            hint: &svid.hint,
        },
    };
    let json = serde_json::to_string(&minted).map_err(plain)?;
    call.env.out(format_args!("{}\n", view::escaped(json)));
    Ok(())
}

/// The key for a signing algorithm, if they go together.
fn key_type(key_type: &str, algorithm: &str) -> Result<KeyType, Failure> {
    match (algorithm, key_type) {
        ("RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512", "rsa-2048") => Ok(KeyType::Rsa2048),
        ("RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512", "rsa-4096") => Ok(KeyType::Rsa4096),
        ("RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512", other) => {
            Err(Failure::new(format!("unsupported key type '{other}' for signing algorithm '{algorithm}'")))
        }
        ("ES256", "ec-p256") => Ok(KeyType::EcP256),
        ("ES384", "ec-p384") => Ok(KeyType::EcP384),
        ("ES256" | "ES384", other) => {
            Err(Failure::new(format!("unsupported key type '{other}' for '{algorithm}' signing algorithm")))
        }
        _ => Err(Failure::new(format!("unsupported signing algorithm: {algorithm}"))),
    }
}
