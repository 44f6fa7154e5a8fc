//! `x509 mint` and `jwt mint` (cmd/spire-server/cli/x509, jwt).

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use spire_compat::duration::GoDuration;
use spire_compat::flag::FlagSet;
use spire_core::pki::{CsrTemplate, DistinguishedName, KeyType, LocalKey, UnverifiedJws, pem};
use spire_core::spiffe::SpiffeId;
use spire_wire::api::server::bundle::v1::GetBundleRequest;
use spire_wire::api::server::bundle::v1::bundle_client::BundleClient;
use spire_wire::api::server::svid::v1::svid_client::SvidClient;
use spire_wire::api::server::svid::v1::{MintJwtsvidRequest, MintX509svidRequest};

use crate::call::{ApiCommand, Call, running};
use crate::dispatch::Command;
use crate::env::Env;
use crate::failure::{Doing, Failure, plain};
use crate::files::{join, write_private, write_public};
use crate::output::Format;
use crate::pretty::{parse_id, ttl_seconds, warn_if_capped};
use crate::view;

pub(super) fn commands<H: 'static>() -> [Command<H>; 2] {
    [X509.server(), JWT.server()]
}

const X509: ApiCommand = ApiCommand {
    path: "x509 mint",
    name: "x509 mint",
    synopsis: "Mints an X509-SVID",
    flags: |flags: FlagSet| {
        flags
            .string("spiffeID", "", "SPIFFE ID of the X509-SVID")
            .duration("ttl", GoDuration::ZERO, "TTL of the X509-SVID")
            .strings("dns", "DNS name that will be included in SVID. Can be used more than once.")
            .string("write", "", "Directory to write output to instead of stdout")
    },
    run: running!(x509),
};

const JWT: ApiCommand = ApiCommand {
    path: "jwt mint",
    name: "jwt mint",
    synopsis: "Mints a JWT-SVID",
    flags: |flags: FlagSet| {
        flags
            .string("spiffeID", "", "SPIFFE ID of the JWT-SVID")
            .duration("ttl", GoDuration::ZERO, "TTL of the JWT-SVID")
            .strings(
                "audience",
                "Audience claim that will be included in the SVID. Can be used more than once.",
            )
            .string("write", "", "File to write token to instead of stdout")
    },
    run: running!(jwt),
};

/// What was minted, in the order of the reference's JSON.
#[derive(Serialize)]
struct Minted {
    x509_svid: Vec<String>,
    private_key: String,
    root_cas: Vec<String>,
}

async fn x509(call: &mut Call<'_>) -> Result<(), Failure> {
    let id = match call.flags.string("spiffeID") {
        "" => return Err(Failure::new("spiffeID must be specified")),
        text => SpiffeId::parse(text).map_err(plain)?,
    };
    let wanted = call.flags.duration("ttl");
    let ttl = ttl_seconds(wanted)?;
    let key = LocalKey::generate(KeyType::EcP256).map_err(plain).doing("unable to generate key")?;
    let csr = request(&key, &id, call.flags.strings("dns")).doing("unable to generate CSR")?;
    let minted = SvidClient::new(call.channel.clone())
        .mint_x509svid(MintX509svidRequest { csr: csr.into(), ttl })
        .await
        .doing("unable to mint SVID")?
        .into_inner();
    let svid = minted.svid.unwrap_or_default();
    if svid.cert_chain.is_empty() {
        return Err(Failure::missing("SVID chain"));
    }
    let bundle = BundleClient::new(call.channel.clone())
        .get_bundle(GetBundleRequest::default())
        .await
        .doing("unable to get bundle")?
        .into_inner();
    if bundle.x509_authorities.is_empty() {
        return Err(Failure::missing("X509 Authorities"));
    }
    warn_if_capped(call.env, "X509-SVID", svid.expires_at, wanted);

    let private_key = key.to_pkcs8().map_err(plain)?;
    let roots = bundle.x509_authorities.iter().map(|a| a.asn1.as_ref());
    if call.format == Format::Json && call.flags.string("write").is_empty() {
        let minted = Minted {
            x509_svid: svid.cert_chain.iter().map(|der| BASE64_STANDARD.encode(der)).collect(),
            private_key: BASE64_STANDARD.encode(&*private_key),
            root_cas: roots.map(|der| BASE64_STANDARD.encode(der)).collect(),
        };
        let json = serde_json::to_string(&minted).map_err(plain)?;
        call.env.out(format_args!("{}\n", view::escaped(json)));
        return Ok(());
    }
    let svid = pem::encode_certificates(svid.cert_chain.iter().map(|der| der.as_ref()));
    let private_key = pem::encode("PRIVATE KEY", &private_key);
    let roots = pem::encode_certificates(roots);
    let folder = call.flags.string("write").to_owned();
    if folder.is_empty() {
        call.env.out(format_args!("X509-SVID:\n{svid}\nPrivate key:\n{private_key}\nRoot CAs:\n{roots}\n"));
        return Ok(());
    }
    let [svid_path, key_path, bundle_path] =
        ["svid.pem", "key.pem", "bundle.pem"].map(|name| join(&folder, name));
    write_public(call.env, &svid_path, svid.as_bytes()).doing("unable to write SVID")?;
    call.env.out(format_args!("X509-SVID written to {svid_path}\n"));
    write_private(call.env, &key_path, private_key.as_bytes()).doing("unable to write key")?;
    call.env.out(format_args!("Private key written to {key_path}\n"));
    write_public(call.env, &bundle_path, roots.as_bytes()).doing("unable to write bundle")?;
    call.env.out(format_args!("Root CAs written to {bundle_path}\n"));
    Ok(())
}

/// A signed request without a subject.
fn request(key: &LocalKey, id: &SpiffeId, dns_names: &[String]) -> Result<Vec<u8>, Failure> {
    let subject = DistinguishedName::default().encode().map_err(plain)?;
    let template = CsrTemplate {
        subject: &subject,
        public_key: key.public_key(),
        dns_names,
        uris: &[id.as_str()],
        extra_extensions: &[],
    };
    let unsigned = template.to_be_signed().map_err(plain)?;
    let signature = key.sign(unsigned.algorithm(), unsigned.bytes()).map_err(plain)?;
    Ok(unsigned.assemble(&signature))
}

async fn jwt(call: &mut Call<'_>) -> Result<(), Failure> {
    if call.flags.string("spiffeID").is_empty() {
        return Err(Failure::new("spiffeID must be specified"));
    }
    let audience = call.flags.strings("audience").to_vec();
    if audience.is_empty() {
        return Err(Failure::new("at least one audience must be specified"));
    }
    let id = parse_id(call.flags.string("spiffeID"))?;
    let wanted = call.flags.duration("ttl");
    let ttl = ttl_seconds(wanted)?;
    let response = SvidClient::new(call.channel.clone())
        .mint_jwtsvid(MintJwtsvidRequest { id: Some(id), audience, ttl })
        .await
        .doing("unable to mint SVID")?
        .into_inner();
    let token = response.svid.as_ref().map_or("", |svid| svid.token.as_str()).to_owned();
    check_token(call.env, "JWT-SVID", &token, wanted)?;
    let path = call.flags.string("write").to_owned();
    if path.is_empty() {
        return call.print(&response, |env, _| {
            env.out(format_args!("{token}\n"));
            Ok(())
        });
    }
    let path = join("", &path);
    write_private(call.env, &path, token.as_bytes()).doing("unable to write token")?;
    call.env.out(format_args!("JWT-SVID written to {path}\n"));
    Ok(())
}

/// There must be a token; a warning when it lives shorter than was asked for.
pub(super) fn check_token(env: &mut Env, kind: &str, token: &str, wanted: GoDuration) -> Result<(), Failure> {
    if token.is_empty() {
        return Err(Failure::missing("token"));
    }
    match expiry(token) {
        Ok(expires_at) => warn_if_capped(env, kind, expires_at, wanted),
        Err(why) => env.err(format_args!("Unable to determine {kind} lifetime: {why}\n")),
    }
    Ok(())
}

/// The `exp` claim of a token that our own server made; its signature is not looked at.
fn expiry(token: &str) -> Result<i64, Failure> {
    let jws = UnverifiedJws::parse(token).map_err(plain)?;
    let claims: serde_json::Value = serde_json::from_slice(jws.unverified_payload()).map_err(plain)?;
    let expiry = claims.get("exp").ok_or_else(|| Failure::new("no expiry claim"))?;
    #[allow(clippy::cast_possible_truncation, reason = "saturates, and tokens have whole seconds")]
    let seconds = expiry.as_i64().or_else(|| expiry.as_f64().map(|seconds| seconds as i64));
    seconds.ok_or_else(|| Failure::new("no expiry claim"))
}
