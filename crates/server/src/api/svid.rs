//! `spire.api.server.svid.v1.SVID`: signing (pkg/server/api/svid/v1).
//!
//! What is signed for an agent comes from the entry; of the request only the key is taken. Minting, for
//! administrators, takes ID, names and subject from the request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use spire_core::entries::Index;
use spire_core::model::EntryId;
use spire_core::pki::{CsrError, PublicKey, PublicKeyKind, VerifiedCsr};
use spire_core::spiffe::SpiffeId;
use spire_wire::api::server::svid::v1 as wire;
use spire_wire::api::types;
use tonic::{Code, Status};

use super::audit::Fields;
use super::caller::{AdminCaller, AgentCaller, DownstreamCaller};
use super::convert::{check_workload, hash, id_to_wire, rfc3339, workload_id};
use super::entry::convert::check_dns_name;
use super::limits::Bucket;
use super::route::{Call, Route, unary};
use super::status::{self, Context, fail, fail_with, quoted};
use crate::ca::{SignedToken, SignedX509, WorkloadJwtParams, WorkloadWitParams, WorkloadX509Params};
use crate::entries::{Payload, ViewRecord};

/// Signatures between two chances for other tasks: a signature is about 50 µs of work.
const SIGNATURES_PER_TURN: usize = 16;

const SIGNING_LIMIT: &str = "certificate signing rate limiting";

pub(super) fn routes() -> Vec<Route> {
    vec![
        unary("/spire.api.server.svid.v1.SVID/MintX509SVID", mint_x509),
        unary("/spire.api.server.svid.v1.SVID/MintJWTSVID", mint_jwt),
        unary("/spire.api.server.svid.v1.SVID/MintWITSVID", mint_wit),
        unary("/spire.api.server.svid.v1.SVID/BatchNewX509SVID", batch_new_x509),
        unary("/spire.api.server.svid.v1.SVID/NewJWTSVID", new_jwt),
        unary("/spire.api.server.svid.v1.SVID/BatchNewWITSVID", batch_new_wit),
        unary("/spire.api.server.svid.v1.SVID/NewDownstreamX509CA", new_downstream_ca),
    ]
}

async fn mint_x509(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::MintX509svidRequest,
) -> Result<wire::MintX509svidResponse, Status> {
    call.audit.add("csr", hash(&request.csr));
    call.audit.add("ttl", request.ttl);
    if request.csr.is_empty() {
        return Err(fail(Code::InvalidArgument, "missing CSR"));
    }
    let csr = verified(request.csr, "failed to verify CSR signature", Context::default())?;
    let uri = match csr.uris() {
        [] => return Err(fail(Code::InvalidArgument, "CSR URI SAN is required")),
        [uri] => uri,
        _ => return Err(fail(Code::InvalidArgument, "only one URI SAN is expected")),
    };
    const BAD_URI: &str = "CSR URI SAN is invalid";
    let id = SpiffeId::parse(uri).map_err(|e| fail_with(Code::InvalidArgument, BAD_URI, e))?;
    check_workload(&id, call.api.trust_domain()).map_err(|e| fail_with(Code::InvalidArgument, BAD_URI, e))?;
    for name in csr.dns_names() {
        check_dns_name(name).map_err(|e| fail_with(Code::InvalidArgument, "CSR DNS name is invalid", e))?;
    }
    check_wildcards(csr.dns_names()).map_err(|e| {
        let text = "CSR DNS name contains a wildcard that covers another non-wildcard name";
        fail_with(Code::InvalidArgument, text, e)
    })?;
    let subject = csr.subject();
    let params = WorkloadX509Params {
        public_key: csr.public_key(),
        spiffe_id: &id,
        dns_names: csr.dns_names(),
        ttl: seconds(request.ttl),
        subject: Some(&subject),
    };
    let signed = call
        .api
        .ca()
        .sign_workload_x509(params)
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to sign X509-SVID", e))?;
    let (expires, dns_name) = (rfc3339(signed.not_after), csr.dns_names().join(","));
    tracing::debug!(
        spiffe_id = %id,
        dns_name,
        subject = %subject,
        expiration = expires,
        serial_num = %signed.serial,
        "Signed X509 SVID"
    );
    call.audit.add("spiffe_id", id.to_string());
    call.audit.add("dns_name", dns_name);
    call.audit.add("expires_at", expires);
    call.audit.add("subject", subject.to_string());
    call.audit.success();
    Ok(wire::MintX509svidResponse { svid: Some(x509_to_wire(&id, signed)) })
}

/// Signs for what of the batch the agent may see. The view is one snapshot for the whole batch.
async fn batch_new_x509(
    call: Arc<Call>,
    caller: AgentCaller,
    request: wire::BatchNewX509svidRequest,
) -> Result<wire::BatchNewX509svidResponse, Status> {
    if request.params.is_empty() {
        return Err(fail(Code::InvalidArgument, "missing parameters"));
    }
    call.limit(Bucket::X509, request.params.len(), SIGNING_LIMIT).await?;
    let view = call.api.deps.live.snapshot();
    let mut results = Vec::with_capacity(request.params.len());
    for (n, params) in request.params.into_iter().enumerate() {
        if n % SIGNATURES_PER_TURN == SIGNATURES_PER_TURN - 1 {
            tokio::task::yield_now().await;
        }
        let (audited_csr, audited_id) = match call.audit.enabled() {
            true => (hash(&params.csr), params.entry_id.clone()),
            false => (String::new(), String::new()),
        };
        let (status, svid) = match new_x509(&call, &view, &caller, params).await {
            Ok(svid) => (status::ok(), Some(svid)),
            Err(status) => (status::item(&status), None),
        };
        call.audit.item(&status, || {
            let mut fields: Fields =
                vec![("csr".into(), audited_csr.into()), ("entry_id".into(), audited_id.into())];
            let id = svid.as_ref().and_then(|svid| super::convert::id(svid.id.as_ref()).ok());
            fields.push(("spiffe_id".into(), id.map(|id| id.to_string()).unwrap_or_default().into()));
            fields.extend(svid.as_ref().map(|svid| ("expires_at".into(), svid.expires_at.into())));
            fields
        });
        results.push(wire::batch_new_x509svid_response::Result { status: Some(status), svid });
    }
    Ok(wire::BatchNewX509svidResponse { results })
}

async fn new_x509(
    call: &Call,
    view: &Index<Payload>,
    caller: &AgentCaller,
    params: wire::NewX509svidParams,
) -> Result<types::X509svid, Status> {
    if params.entry_id.is_empty() {
        return Err(fail(Code::InvalidArgument, "missing entry ID"));
    }
    if params.csr.is_empty() {
        return Err(fail(Code::InvalidArgument, "missing CSR"));
    }
    let context = Context::entry(&params.entry_id);
    let entry = visible(view, caller, &params.entry_id, context)?;
    let csr = verified(params.csr, "invalid CSR signature", context)?;
    let fields = entry.payload.signing_fields();
    let id = &entry.spiffe_id;
    let context = Context { spiffe_id: Some(id.as_str()), ..context };
    let signing = WorkloadX509Params {
        public_key: csr.public_key(),
        spiffe_id: id,
        dns_names: &fields.dns_names,
        ttl: seconds(fields.x509_svid_ttl),
        subject: None,
    };
    let signed = call
        .api
        .ca()
        .sign_workload_x509(signing)
        .await
        .map_err(|e| context.fail_with(Code::Internal, "failed to sign X509-SVID", e))?;
    tracing::debug!(
        entry_id = params.entry_id,
        spiffe_id = %id,
        expiration = rfc3339(signed.not_after),
        serial_num = %signed.serial,
        revision_number = entry.revision,
        "Signed X509 SVID"
    );
    Ok(x509_to_wire(id, signed))
}

async fn mint_jwt(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::MintJwtsvidRequest,
) -> Result<wire::MintJwtsvidResponse, Status> {
    check_jwt_enabled(&call)?;
    call.audit.add("ttl", request.ttl);
    if !request.audience.is_empty() {
        call.audit.add("audience", request.audience.join(","));
    }
    let id = workload_id(request.id.as_ref(), call.api.trust_domain())
        .map_err(|e| fail_with(Code::InvalidArgument, "invalid SPIFFE ID", e))?;
    let svid = sign_jwt(&call, &id, &request.audience, request.ttl, false).await?;
    call.audit.success();
    Ok(wire::MintJwtsvidResponse { svid: Some(svid) })
}

async fn new_jwt(
    call: Arc<Call>,
    caller: AgentCaller,
    request: wire::NewJwtsvidRequest,
) -> Result<wire::NewJwtsvidResponse, Status> {
    call.audit.add("entry_id", request.entry_id.clone());
    call.audit.add("audience", request.audience.join(","));
    call.limit(Bucket::Jwt, 1, "JWT signing request rate limiting").await?;
    check_jwt_enabled(&call)?;
    let view = call.api.deps.live.snapshot();
    let entry = visible(&view, &caller, &request.entry_id, Context::default())?;
    check_workload(&entry.spiffe_id, call.api.trust_domain())
        .map_err(|e| fail_with(Code::InvalidArgument, "invalid SPIFFE ID", e))?;
    let fields = entry.payload.signing_fields();
    let (ttl, jti) = (fields.jwt_svid_ttl, fields.include_jti());
    let svid = sign_jwt(&call, &entry.spiffe_id, &request.audience, ttl, jti).await?;
    call.audit.add("ttl", ttl);
    call.audit.success();
    Ok(wire::NewJwtsvidResponse { svid: Some(svid) })
}

fn check_jwt_enabled(call: &Call) -> Result<(), Status> {
    if call.api.ca().config().jwt_svids_disabled {
        return Err(fail(Code::Unimplemented, "JWT functionality is disabled"));
    }
    Ok(())
}

async fn sign_jwt(
    call: &Call,
    id: &SpiffeId,
    audience: &[String],
    ttl: i32,
    include_jti: bool,
) -> Result<types::Jwtsvid, Status> {
    let context = Context::id(id.as_str());
    call.audit.add("spiffe_id", id.to_string());
    if audience.is_empty() {
        return Err(context.fail(Code::InvalidArgument, "at least one audience is required"));
    }
    let params = WorkloadJwtParams { spiffe_id: id, audience, ttl: seconds(ttl), include_jti };
    let SignedToken { token, issued_at, expires_at } = call
        .api
        .ca()
        .sign_workload_jwt(params)
        .await
        .map_err(|e| context.fail_with(Code::Internal, "failed to sign JWT-SVID", e))?;
    tracing::debug!(
        spiffe_id = %id,
        audience = spire_ports::observe::Logged::list(audience).value(),
        expiration = rfc3339(expires_at),
        "Server CA successfully signed JWT SVID"
    );
    Ok(types::Jwtsvid {
        token,
        id: Some(id_to_wire(id)),
        expires_at: expires_at.unix(),
        issued_at: issued_at.unix(),
        hint: String::new(),
    })
}

async fn mint_wit(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::MintWitsvidRequest,
) -> Result<wire::MintWitsvidResponse, Status> {
    if !call.api.ca().config().wit_svids_enabled {
        return Err(fail(Code::Unimplemented, "WIT functionality is disabled"));
    }
    call.audit.add("ttl", request.ttl);
    let id = workload_id(request.id.as_ref(), call.api.trust_domain())
        .map_err(|e| fail_with(Code::InvalidArgument, "invalid SPIFFE ID", e))?;
    call.audit.add("spiffe_id", id.to_string());
    let context = Context::id(id.as_str());
    let key = PublicKey::from_spki(request.public_key)
        .map_err(|e| context.fail_with(Code::InvalidArgument, "invalid public key", e))?;
    let svid = sign_wit(&call, &id, key, request.signing_algorithm, request.ttl, context).await?;
    call.audit.success();
    Ok(wire::MintWitsvidResponse { svid: Some(svid) })
}

async fn batch_new_wit(
    call: Arc<Call>,
    caller: AgentCaller,
    request: wire::BatchNewWitsvidRequest,
) -> Result<wire::BatchNewWitsvidResponse, Status> {
    if request.params.is_empty() {
        return Err(fail(Code::InvalidArgument, "missing parameters"));
    }
    call.limit(Bucket::Wit, request.params.len(), SIGNING_LIMIT).await?;
    if !call.api.ca().config().wit_svids_enabled {
        return Err(fail(Code::Unimplemented, "WIT functionality is disabled"));
    }
    let view = call.api.deps.live.snapshot();
    let mut results = Vec::with_capacity(request.params.len());
    for (n, params) in request.params.into_iter().enumerate() {
        if n % SIGNATURES_PER_TURN == SIGNATURES_PER_TURN - 1 {
            tokio::task::yield_now().await;
        }
        let entry_id = params.entry_id.clone();
        let (status, svid) = match new_wit(&call, &view, &caller, params).await {
            Ok(svid) => (status::ok(), Some(svid)),
            Err(status) => (status::item(&status), None),
        };
        call.audit.item(&status, || {
            let mut fields: Fields = vec![("entry_id".into(), entry_id.into())];
            let id = svid.as_ref().and_then(|svid| super::convert::id(svid.id.as_ref()).ok());
            fields.push(("spiffe_id".into(), id.map(|id| id.to_string()).unwrap_or_default().into()));
            fields.extend(svid.as_ref().map(|svid| ("expires_at".into(), svid.expires_at.into())));
            fields
        });
        results.push(wire::batch_new_witsvid_response::Result { status: Some(status), svid });
    }
    Ok(wire::BatchNewWitsvidResponse { results })
}

async fn new_wit(
    call: &Call,
    view: &Index<Payload>,
    caller: &AgentCaller,
    params: wire::NewWitsvidParams,
) -> Result<types::Witsvid, Status> {
    if params.entry_id.is_empty() {
        return Err(fail(Code::InvalidArgument, "missing entry ID"));
    }
    if params.public_key.is_empty() {
        return Err(fail(Code::InvalidArgument, "missing public key"));
    }
    let context = Context::entry(&params.entry_id);
    let entry = visible(view, caller, &params.entry_id, context)?;
    let key = PublicKey::from_spki(params.public_key)
        .map_err(|e| context.fail_with(Code::InvalidArgument, "malformed public key", e))?;
    // As in the reference, WIT-SVIDs of an entry live as long as its X.509-SVIDs.
    let ttl = entry.payload.signing_fields().x509_svid_ttl;
    sign_wit(call, &entry.spiffe_id, key, params.signing_algorithm, ttl, context).await
}

async fn sign_wit(
    call: &Call,
    id: &SpiffeId,
    key: PublicKey,
    algorithm: String,
    ttl: i32,
    context: Context<'_>,
) -> Result<types::Witsvid, Status> {
    check_wit_algorithm(key.kind(), &algorithm)
        .map_err(|e| context.fail_with(Code::InvalidArgument, "invalid signing algorithm or key type", e))?;
    let mut jwk = spire_core::pki::jwk::Jwk::new(key);
    jwk.alg = algorithm;
    let SignedToken { token, issued_at, expires_at } = call
        .api
        .ca()
        .sign_workload_wit(WorkloadWitParams { spiffe_id: id, key: &jwk, ttl: seconds(ttl) })
        .await
        .map_err(|e| context.fail_with(Code::Internal, "failed to sign WIT-SVID", e))?;
    tracing::debug!(
        spiffe_id = %id,
        expiration = rfc3339(expires_at),
        "Server CA successfully signed WIT-SVID"
    );
    Ok(types::Witsvid {
        token,
        id: Some(id_to_wire(id)),
        expires_at: expires_at.unix(),
        issued_at: issued_at.unix(),
        hint: String::new(),
    })
}

async fn new_downstream_ca(
    call: Arc<Call>,
    caller: DownstreamCaller,
    request: wire::NewDownstreamX509caRequest,
) -> Result<wire::NewDownstreamX509caResponse, Status> {
    let ours = call.api.trust_domain();
    call.audit.add("csr", hash(&request.csr));
    call.audit.add("trust_domain_id", ours.id_string());
    call.limit(Bucket::X509, 1, "downstream CA signing rate limit").await?;
    let csr = verified(request.csr, "invalid CSR signature", Context::default())?;
    let signed = call
        .api
        .ca()
        .sign_downstream_ca(csr.public_key(), seconds(request.preferred_ttl))
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to sign downstream X.509 CA", e))?;
    tracing::debug!(
        spiffe_id = ours.id_string(),
        expiration = rfc3339(signed.not_after),
        downstream = %caller.id(),
        "Signed X509 CA SVID"
    );
    let bundle = call
        .store()
        .bundle_fetch(ours)
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to fetch bundle", e))?
        .ok_or_else(|| fail(Code::NotFound, "bundle not found"))?;
    call.audit.add("expires_at", signed.not_after.unix());
    call.audit.success();
    Ok(wire::NewDownstreamX509caResponse {
        ca_cert_chain: signed.chain,
        x509_authorities: bundle.x509_authorities.into_iter().map(|authority| authority.der).collect(),
    })
}

/// The entry, if the agent may see it; whether it exists otherwise is not told.
fn visible<'v>(
    view: &'v Index<Payload>,
    caller: &AgentCaller,
    entry_id: &str,
    context: Context<'_>,
) -> Result<&'v Arc<ViewRecord>, Status> {
    view.authorized(caller.id(), &EntryId::from_stored(entry_id))
        .ok_or_else(|| context.fail(Code::NotFound, "entry not found or not authorized"))
}

fn verified(csr: Bytes, bad_signature: &str, context: Context<'_>) -> Result<VerifiedCsr, Status> {
    VerifiedCsr::from_der(csr).map_err(|error| {
        let text = match error {
            CsrError::Signature(_) | CsrError::Algorithm => bad_signature,
            _ => "malformed CSR",
        };
        context.fail_with(Code::InvalidArgument, text, error)
    })
}

/// Zero is the default; below zero there is nothing to sign, so that is the default, too.
fn seconds(ttl: i32) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

fn x509_to_wire(id: &SpiffeId, signed: SignedX509) -> types::X509svid {
    types::X509svid {
        id: Some(id_to_wire(id)),
        expires_at: signed.not_after.unix(),
        cert_chain: signed.chain,
        hint: String::new(),
    }
}

/// A name whose first label a wildcard of the same list covers is refused (pkg/common/x509util/dns.go).
fn check_wildcards(names: &[String]) -> Result<(), String> {
    for name in names.iter().filter(|name| !name.starts_with('*')) {
        let rest = name.split_once('.').map_or("", |(_, rest)| rest);
        if names.iter().any(|other| other.strip_prefix("*.") == Some(rest)) {
            let name = quoted(name);
            return Err(format!(
                "name {name} overlaps with an existing wildcard name in the list: wildcard overlap"
            ));
        }
    }
    Ok(())
}

/// The algorithm with which the holder of a WIT-SVID will sign must fit its key.
fn check_wit_algorithm(kind: PublicKeyKind, algorithm: &str) -> Result<(), String> {
    let (fits, name) = match kind {
        PublicKeyKind::Rsa { .. } => {
            (matches!(algorithm, "RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512"), "RSA")
        }
        PublicKeyKind::EcP256 => (algorithm == "ES256", "ec-p256"),
        PublicKeyKind::EcP384 => (algorithm == "ES384", "ec-p384"),
        PublicKeyKind::EcP521 => (algorithm == "ES512", "ec-p521"),
        PublicKeyKind::Ed25519 => return Err("unsupported key type 'ed25519.PublicKey'".to_owned()),
    };
    if fits { Ok(()) } else { Err(format!("unsupported signing algorithm for {name} key: {algorithm}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_must_not_cover_other_names() {
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(check_wildcards(&names(&["a.b", "*.c", "d.e.c"])), Ok(()));
        let error = check_wildcards(&names(&["*.b.c", "a.b.c"])).unwrap_err();
        assert_eq!(
            error,
            "name \"a.b.c\" overlaps with an existing wildcard name in the list: wildcard overlap"
        );
    }

    #[test]
    fn wit_algorithms_fit_keys() {
        assert_eq!(check_wit_algorithm(PublicKeyKind::EcP256, "ES256"), Ok(()));
        assert_eq!(check_wit_algorithm(PublicKeyKind::Rsa { bits: 2048 }, "PS384"), Ok(()));
        assert_eq!(
            check_wit_algorithm(PublicKeyKind::EcP384, "ES256").unwrap_err(),
            "unsupported signing algorithm for ec-p384 key: ES256"
        );
    }
}
