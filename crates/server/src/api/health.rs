//! `grpc.health.v1.Health` on the unix socket (pkg/server/api/health/v1).

use std::sync::Arc;

use spire_wire::health as wire;
use spire_wire::health::health_check_response::ServingStatus;
use tonic::{Code, Status};

use super::caller::LocalCaller;
use super::route::{Call, Replies, Route, server_streaming, unary};
use super::status::fail;

pub(super) fn routes() -> Vec<Route> {
    vec![
        unary("/grpc.health.v1.Health/Check", check).unix_only(),
        unary("/grpc.health.v1.Health/List", list).unix_only(),
        server_streaming("/grpc.health.v1.Health/Watch", watch).unix_only(),
    ]
}

/// Healthy is a server whose own bundle can be read.
async fn check(
    call: Arc<Call>,
    _: LocalCaller,
    request: wire::HealthCheckRequest,
) -> Result<wire::HealthCheckResponse, Status> {
    if !request.service.is_empty() {
        return Err(fail(Code::InvalidArgument, "per-service health is not supported"));
    }
    let status = match call.store().bundle_fetch(call.api.trust_domain()).await {
        Ok(Some(_)) => ServingStatus::Serving,
        Ok(None) => {
            tracing::warn!(reason = "bundle is missing", "Health check failed");
            ServingStatus::NotServing
        }
        Err(error) => {
            tracing::warn!(error = %error, reason = "unable to fetch bundle", "Health check failed");
            ServingStatus::NotServing
        }
    };
    Ok(wire::HealthCheckResponse { status: status.into() })
}

async fn list(
    _: Arc<Call>,
    _: LocalCaller,
    _: wire::HealthListRequest,
) -> Result<wire::HealthListResponse, Status> {
    Err(Status::unimplemented("method List not implemented"))
}

async fn watch(
    _: Arc<Call>,
    _: LocalCaller,
    _: wire::HealthCheckRequest,
) -> Result<Replies<wire::HealthCheckResponse>, Status> {
    Err(Status::unimplemented("method Watch not implemented"))
}
