//! `spire.api.server.localauthority.v1.LocalAuthority`: the authorities by hand (pkg/server/api/localauthority/v1).
//!
//! Rules and texts of what is allowed when are the slot machine's; this translates.

use std::sync::Arc;

use spire_core::authority::{Authority, Fault, Kind, Slots};
use spire_core::model::{AuthorityStatus, KeyRecord, X509CaRecord};
use spire_wire::api::server::localauthority::v1 as wire;
use tonic::{Code, Status};

use super::caller::AdminCaller;
use super::route::{Call, Route, unary};
use super::status::{Context, fail};
use crate::ca::CaError;

macro_rules! path {
    ($method:literal) => {
        concat!("/spire.api.server.localauthority.v1.LocalAuthority/", $method)
    };
}

pub(super) fn routes() -> Vec<Route> {
    vec![
        unary(path!("GetJWTAuthorityState"), jwt_state),
        unary(path!("PrepareJWTAuthority"), prepare_jwt),
        unary(path!("ActivateJWTAuthority"), activate_jwt),
        unary(path!("TaintJWTAuthority"), taint_jwt),
        unary(path!("RevokeJWTAuthority"), revoke_jwt),
        unary(path!("GetX509AuthorityState"), x509_state),
        unary(path!("PrepareX509Authority"), prepare_x509),
        unary(path!("ActivateX509Authority"), activate_x509),
        unary(path!("TaintX509Authority"), taint_x509),
        unary(path!("TaintX509UpstreamAuthority"), taint_upstream),
        unary(path!("RevokeX509Authority"), revoke_x509),
        unary(path!("RevokeX509UpstreamAuthority"), revoke_upstream),
        unary(path!("GetWITAuthorityState"), wit_state),
        unary(path!("PrepareWITAuthority"), prepare_wit),
        unary(path!("ActivateWITAuthority"), activate_wit),
        unary(path!("TaintWITAuthority"), taint_wit),
        unary(path!("RevokeWITAuthority"), revoke_wit),
    ]
}

async fn jwt_state(
    call: Arc<Call>,
    _: AdminCaller,
    _: wire::GetJwtAuthorityStateRequest,
) -> Result<wire::GetJwtAuthorityStateResponse, Status> {
    check_jwt(&call)?;
    let slots = call.api.deps.authorities.jwt_slots();
    let (active, prepared, old) = states(&slots, key_state)?;
    call.audit.success();
    Ok(wire::GetJwtAuthorityStateResponse { active, prepared, old })
}

async fn prepare_jwt(
    call: Arc<Call>,
    _: AdminCaller,
    _: wire::PrepareJwtAuthorityRequest,
) -> Result<wire::PrepareJwtAuthorityResponse, Status> {
    check_jwt(&call)?;
    let prepared = call.api.deps.authorities.prepare_key_authority(Kind::Jwt).await;
    let prepared = prepared.map_err(|e| refused(e, Context::default(), "failed to prepare JWT authority"))?;
    call.audit.success();
    Ok(wire::PrepareJwtAuthorityResponse { prepared_authority: Some(key_state(&prepared)) })
}

async fn activate_jwt(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::ActivateJwtAuthorityRequest,
) -> Result<wire::ActivateJwtAuthorityResponse, Status> {
    audit_authority(&call, &request.authority_id);
    check_jwt(&call)?;
    let activated = call.api.deps.authorities.activate_key_authority(Kind::Jwt, &request.authority_id).await;
    let activated = activated
        .map_err(|e| refused(e, of_authority(&request.authority_id), "failed to activate JWT authority"))?;
    call.audit.success();
    Ok(wire::ActivateJwtAuthorityResponse { activated_authority: Some(key_state(&activated)) })
}

async fn taint_jwt(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::TaintJwtAuthorityRequest,
) -> Result<wire::TaintJwtAuthorityResponse, Status> {
    audit_authority(&call, &request.authority_id);
    check_jwt(&call)?;
    let tainted = call.api.deps.authorities.taint_key_authority(Kind::Jwt, &request.authority_id).await;
    tainted.map_err(|e| refused(e, of_authority(&request.authority_id), "failed to taint JWT authority"))?;
    tracing::info!(local_authority_id = request.authority_id, "JWT authority tainted successfully");
    call.audit.success();
    Ok(wire::TaintJwtAuthorityResponse { tainted_authority: Some(named(request.authority_id)) })
}

async fn revoke_jwt(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::RevokeJwtAuthorityRequest,
) -> Result<wire::RevokeJwtAuthorityResponse, Status> {
    audit_authority(&call, &request.authority_id);
    check_jwt(&call)?;
    let revoked = call.api.deps.authorities.revoke_key_authority(Kind::Jwt, &request.authority_id).await;
    revoked.map_err(|e| refused(e, of_authority(&request.authority_id), "failed to revoke JWT authority"))?;
    tracing::info!(local_authority_id = request.authority_id, "JWT authority revoked successfully");
    call.audit.success();
    Ok(wire::RevokeJwtAuthorityResponse { revoked_authority: Some(named(request.authority_id)) })
}

async fn x509_state(
    call: Arc<Call>,
    _: AdminCaller,
    _: wire::GetX509AuthorityStateRequest,
) -> Result<wire::GetX509AuthorityStateResponse, Status> {
    let slots = call.api.deps.authorities.x509_slots();
    let (active, prepared, old) = states(&slots, x509_authority)?;
    call.audit.success();
    Ok(wire::GetX509AuthorityStateResponse { active, prepared, old })
}

async fn prepare_x509(
    call: Arc<Call>,
    _: AdminCaller,
    _: wire::PrepareX509AuthorityRequest,
) -> Result<wire::PrepareX509AuthorityResponse, Status> {
    let prepared = call.api.deps.authorities.prepare_x509_authority().await;
    let prepared =
        prepared.map_err(|e| refused(e, Context::default(), "failed to prepare X.509 authority"))?;
    call.audit.success();
    Ok(wire::PrepareX509AuthorityResponse { prepared_authority: Some(x509_authority(&prepared)) })
}

async fn activate_x509(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::ActivateX509AuthorityRequest,
) -> Result<wire::ActivateX509AuthorityResponse, Status> {
    audit_authority(&call, &request.authority_id);
    let activated = call.api.deps.authorities.activate_x509_authority(&request.authority_id).await;
    let activated = activated
        .map_err(|e| refused(e, of_authority(&request.authority_id), "failed to activate X.509 authority"))?;
    call.audit.success();
    Ok(wire::ActivateX509AuthorityResponse { activated_authority: Some(x509_authority(&activated)) })
}

async fn taint_x509(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::TaintX509AuthorityRequest,
) -> Result<wire::TaintX509AuthorityResponse, Status> {
    audit_authority(&call, &request.authority_id);
    let tainted = call.api.deps.authorities.taint_x509_authority(&request.authority_id).await;
    let tainted = tainted
        .map_err(|e| refused(e, of_authority(&request.authority_id), "failed to taint X.509 authority"))?;
    tracing::info!(local_authority_id = request.authority_id, "X.509 authority tainted successfully");
    call.audit.success();
    Ok(wire::TaintX509AuthorityResponse { tainted_authority: Some(x509_authority(&tainted)) })
}

async fn revoke_x509(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::RevokeX509AuthorityRequest,
) -> Result<wire::RevokeX509AuthorityResponse, Status> {
    audit_authority(&call, &request.authority_id);
    let revoked = call.api.deps.authorities.revoke_x509_authority(&request.authority_id).await;
    revoked
        .map_err(|e| refused(e, of_authority(&request.authority_id), "failed to revoke X.509 authority"))?;
    tracing::info!(local_authority_id = request.authority_id, "X.509 authority revoked successfully");
    call.audit.success();
    Ok(wire::RevokeX509AuthorityResponse { revoked_authority: Some(named(request.authority_id)) })
}

async fn taint_upstream(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::TaintX509UpstreamAuthorityRequest,
) -> Result<wire::TaintX509UpstreamAuthorityResponse, Status> {
    if !request.subject_key_id.is_empty() {
        call.audit.add("subject_key_id", request.subject_key_id.clone());
    }
    let tainted = call.api.deps.authorities.taint_x509_upstream_authority(&request.subject_key_id).await;
    let id = tainted.map_err(|e| {
        let invalid = "provided subject key id is not valid";
        refused_upstream(e, &request.subject_key_id, invalid, "failed to taint upstream authority")
    })?;
    tracing::info!(subject_key_id = request.subject_key_id, "X.509 upstream authority tainted successfully");
    call.audit.success();
    Ok(wire::TaintX509UpstreamAuthorityResponse { upstream_authority_subject_key_id: id })
}

async fn revoke_upstream(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::RevokeX509UpstreamAuthorityRequest,
) -> Result<wire::RevokeX509UpstreamAuthorityResponse, Status> {
    if !request.subject_key_id.is_empty() {
        call.audit.add("subject_key_id", request.subject_key_id.clone());
    }
    let revoked = call.api.deps.authorities.revoke_x509_upstream_authority(&request.subject_key_id).await;
    let id = revoked.map_err(|e| {
        let what = "failed to revoke X.509 upstream authority";
        refused_upstream(e, &request.subject_key_id, "invalid subject key ID", what)
    })?;
    tracing::info!(subject_key_id = request.subject_key_id, "X.509 upstream authority successfully revoked");
    call.audit.success();
    Ok(wire::RevokeX509UpstreamAuthorityResponse { upstream_authority_subject_key_id: id })
}

fn audit_authority(call: &Call, authority_id: &str) {
    if !authority_id.is_empty() {
        call.audit.add("local_authority_id", authority_id.to_owned());
    }
}

async fn wit_state(
    call: Arc<Call>,
    _: AdminCaller,
    _: wire::GetWitAuthorityStateRequest,
) -> Result<wire::GetWitAuthorityStateResponse, Status> {
    check_wit(&call)?;
    let slots = call.api.deps.authorities.wit_slots();
    let (active, prepared, old) = states(&slots, key_state)?;
    call.audit.success();
    Ok(wire::GetWitAuthorityStateResponse { active, prepared, old })
}

async fn prepare_wit(
    call: Arc<Call>,
    _: AdminCaller,
    _: wire::PrepareWitAuthorityRequest,
) -> Result<wire::PrepareWitAuthorityResponse, Status> {
    check_wit(&call)?;
    let prepared = call.api.deps.authorities.prepare_key_authority(Kind::Wit).await;
    let prepared = prepared.map_err(|e| refused(e, Context::default(), "failed to prepare WIT authority"))?;
    call.audit.success();
    Ok(wire::PrepareWitAuthorityResponse { prepared_authority: Some(key_state(&prepared)) })
}

async fn activate_wit(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::ActivateWitAuthorityRequest,
) -> Result<wire::ActivateWitAuthorityResponse, Status> {
    audit_authority(&call, &request.authority_id);
    check_wit(&call)?;
    let activated = call.api.deps.authorities.activate_key_authority(Kind::Wit, &request.authority_id).await;
    let activated = activated
        .map_err(|e| refused(e, of_authority(&request.authority_id), "failed to activate WIT authority"))?;
    call.audit.success();
    Ok(wire::ActivateWitAuthorityResponse { activated_authority: Some(key_state(&activated)) })
}

async fn taint_wit(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::TaintWitAuthorityRequest,
) -> Result<wire::TaintWitAuthorityResponse, Status> {
    audit_authority(&call, &request.authority_id);
    check_wit(&call)?;
    let tainted = call.api.deps.authorities.taint_key_authority(Kind::Wit, &request.authority_id).await;
    tainted.map_err(|e| refused(e, of_authority(&request.authority_id), "failed to taint WIT authority"))?;
    tracing::info!(local_authority_id = request.authority_id, "WIT authority tainted successfully");
    call.audit.success();
    Ok(wire::TaintWitAuthorityResponse { tainted_authority: Some(named(request.authority_id)) })
}

async fn revoke_wit(
    call: Arc<Call>,
    _: AdminCaller,
    request: wire::RevokeWitAuthorityRequest,
) -> Result<wire::RevokeWitAuthorityResponse, Status> {
    audit_authority(&call, &request.authority_id);
    check_wit(&call)?;
    let revoked = call.api.deps.authorities.revoke_key_authority(Kind::Wit, &request.authority_id).await;
    revoked.map_err(|e| refused(e, of_authority(&request.authority_id), "failed to revoke WIT authority"))?;
    tracing::info!(local_authority_id = request.authority_id, "WIT authority revoked successfully");
    call.audit.success();
    Ok(wire::RevokeWitAuthorityResponse { revoked_authority: Some(named(request.authority_id)) })
}

/// The reference has none of the WIT methods, whatever its feature flag says; without the flag this answers as it does.
fn check_wit(call: &Call) -> Result<(), Status> {
    if call.api.ca().config().wit_svids_enabled {
        return Ok(());
    }
    Err(fail(Code::Unimplemented, "WIT-SVID functionality is not yet implemented"))
}

fn check_jwt(call: &Call) -> Result<(), Status> {
    if call.api.ca().config().jwt_svids_disabled {
        return Err(fail(Code::Unimplemented, "JWT functionality is disabled"));
    }
    Ok(())
}

/// What log lines of errors say of an authority.
fn of_authority(authority_id: &str) -> Context<'_> {
    Context { local_authority_id: Some(authority_id).filter(|id| !id.is_empty()), ..Context::default() }
}

/// What log lines of errors say of an upstream authority.
fn of_upstream(subject_key_id: &str) -> Context<'_> {
    Context { subject_key_id: Some(subject_key_id).filter(|id| !id.is_empty()), ..Context::default() }
}

/// A refusal of the slot machine has its own text; what failed otherwise is told with `what`.
fn refused(error: CaError, context: Context<'_>, what: &str) -> Status {
    let refusal = match error {
        CaError::Operation(refusal) => refusal,
        other => return context.fail_with(Code::Internal, what, other),
    };
    let code = match refusal.fault() {
        Fault::InvalidArgument => Code::InvalidArgument,
        Fault::FailedPrecondition => Code::FailedPrecondition,
        Fault::Internal => Code::Internal,
        Fault::Unavailable => Code::Unavailable,
    };
    match refusal.text() {
        (text, None) => context.fail(code, text),
        (text, Some(cause)) => context.fail_with(code, text, cause),
    }
}

/// As [`refused`], for upstream authorities: `invalid` says what the matter with the subject key ID concerns.
fn refused_upstream(error: CaError, subject_key_id: &str, invalid: &str, what: &str) -> Status {
    let context = of_upstream(subject_key_id);
    match error {
        CaError::Operation(refusal) if refusal.is_about_subject_key_id() => {
            context.fail_with(Code::InvalidArgument, invalid, refusal)
        }
        other => refused(other, context, what),
    }
}

type States = (Option<wire::AuthorityState>, Option<wire::AuthorityState>, Option<wire::AuthorityState>);

/// The active, prepared and old authority.
fn states<A: Authority>(slots: &Slots<A>, show: fn(&A) -> wire::AuthorityState) -> Result<States, Status> {
    slots.check_initialized().map_err(|e| refused(e.into(), Context::default(), ""))?;
    let next = slots.next();
    let as_status = |status| next.authority().filter(|_| next.status() == Some(status)).map(show);
    Ok((slots.active().map(show), as_status(AuthorityStatus::Prepared), as_status(AuthorityStatus::Old)))
}

fn x509_authority(record: &X509CaRecord) -> wire::AuthorityState {
    wire::AuthorityState {
        authority_id: record.authority_id.clone(),
        expires_at: record.not_after.unix(),
        upstream_authority_subject_key_id: record.upstream_authority_id.clone(),
    }
}

fn key_state(record: &KeyRecord) -> wire::AuthorityState {
    wire::AuthorityState {
        authority_id: record.authority_id.clone(),
        expires_at: record.not_after.unix(),
        upstream_authority_subject_key_id: String::new(),
    }
}

fn named(authority_id: String) -> wire::AuthorityState {
    wire::AuthorityState { authority_id, ..wire::AuthorityState::default() }
}

#[cfg(test)]
mod tests {
    use spire_core::authority::OperationError;
    use spire_telemetry::{Capture, Level};

    use super::*;

    #[test]
    fn refusals_are_told_and_logged_as_in_the_reference() {
        let log = Capture::new(Level::Info);
        let _installed = log.install();
        let error = CaError::Operation(OperationError::UpstreamOfNone);
        let status = refused_upstream(error, "ab", "provided subject key id is not valid", "");
        let text =
            "provided subject key id is not valid: upstream authority didn't sign the old local authority";
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
        let error = CaError::Operation(OperationError::NotOld(AuthorityStatus::Prepared));
        let status = refused(error, of_authority("cd"), "");
        let text = "only Old local authorities can be tainted: unsupported local authority status: PREPARED";
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
        assert_eq!(
            log.lines(),
            [
                "level=error msg=\"Invalid argument: provided subject key id is not valid\" \
                 error=\"upstream authority didn't sign the old local authority\" subject_key_id=ab",
                "level=error msg=\"Invalid argument: only Old local authorities can be tainted\" \
                 error=\"unsupported local authority status: PREPARED\" local_authority_id=cd",
            ]
        );
    }
}
