//! `spire.api.server.debug.v1.Debug`: what the server is and has (pkg/server/api/debug/v1).

use std::sync::Arc;
use std::time::{Duration, Instant};

use spire_core::model::{EntryFilter, NodeFilter};
use spire_core::pki::Certificate;
use spire_core::pki::chain::parse_and_verify_svid;
use spire_wire::api::server::debug::v1 as wire;
use tonic::{Code, Status};

use super::caller::LocalCaller;
use super::convert::id_to_wire;
use super::route::{Call, Route, unary};
use super::status::{fail, fail_with};

/// How long an answer is given again.
const FRESH: Duration = Duration::from_secs(5);

/// The last answer and when it was made.
pub(super) type Cached = tokio::sync::Mutex<Option<(Instant, wire::GetInfoResponse)>>;

pub(super) fn routes() -> Vec<Route> {
    vec![unary("/spire.api.server.debug.v1.Debug/GetInfo", info).unix_only()]
}

async fn info(
    call: Arc<Call>,
    _: LocalCaller,
    _: wire::GetInfoRequest,
) -> Result<wire::GetInfoResponse, Status> {
    let mut cached = call.api.debug_info.lock().await;
    if let Some((at, answer)) = &*cached
        && at.elapsed() < FRESH
    {
        return Ok(answer.clone());
    }
    let store = call.store();
    let count = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let agents = store
        .node_count(&NodeFilter::default())
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to count agents", e))?;
    let entries = store
        .entry_count(&EntryFilter::default())
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to count entries", e))?;
    let bundles =
        store.bundle_count().await.map_err(|e| fail_with(Code::Internal, "failed to count bundles", e))?;
    let answer = wire::GetInfoResponse {
        svid_chain: svid_chain(&call).await?,
        uptime: i32::try_from(call.api.started.elapsed().as_secs()).unwrap_or(i32::MAX),
        agents_count: count(agents),
        federated_bundles_count: count(bundles),
        entries_count: count(entries),
    };
    *cached = Some((Instant::now(), answer.clone()));
    Ok(answer)
}

/// The server's SVID up to the authority of the bundle that it ends in.
async fn svid_chain(call: &Call) -> Result<Vec<wire::get_info_response::Cert>, Status> {
    let bundle = call
        .store()
        .bundle_fetch(call.api.trust_domain())
        .await
        .map_err(|e| fail_with(Code::Internal, "failed to fetch trust domain bundle", e))?
        .ok_or_else(|| fail(Code::NotFound, "trust domain bundle not found"))?;
    let roots = bundle
        .x509_authorities
        .iter()
        .map(|authority| Certificate::from_der(authority.der.clone()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| fail_with(Code::Internal, "failed to parse bundle", e))?;
    let svid = call.api.deps.server_svid.current();
    let chain: Vec<&[u8]> = svid.chain.iter().map(|der| &**der).collect();
    let verified = parse_and_verify_svid(chain.into_iter(), |_| Some(&roots[..]), call.api.now())
        .map_err(|e| fail_with(Code::Internal, "failed verification against bundle", e))?;
    let certs = verified.chain().iter().map(|certificate| wire::get_info_response::Cert {
        id: certificate.spiffe_id().ok().as_ref().map(id_to_wire),
        expires_at: certificate.not_after().unix(),
        subject: certificate.subject().to_string(),
    });
    Ok(certs.collect())
}
