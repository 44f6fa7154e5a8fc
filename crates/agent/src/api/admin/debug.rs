//! `spire.agent.debug.v1.Debug`: what the agent is and holds (pkg/agent/api/debug/v1).

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use spire_core::pki::Certificate;
use spire_core::pki::chain::parse_and_verify_svid;
use spire_wire::api::agent::debug::v1::get_info_response::Cert;
use spire_wire::api::agent::debug::v1::{GetInfoRequest, GetInfoResponse, debug_server};
use tonic::{Request, Response, Status};

use super::delegated::id_to_wire;
use crate::runtime::Core;

/// How long an answer is given again (debug/v1/service.go: cacheExpiry).
const FRESH: Duration = Duration::from_secs(5);

/// The service.
pub(super) struct Debug {
    core: Arc<Core>,
    started: Instant,
    last: tokio::sync::Mutex<Option<(Instant, GetInfoResponse)>>,
}

impl Debug {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { core, started: Instant::now(), last: tokio::sync::Mutex::default() }
    }

    fn info(&self) -> Result<GetInfoResponse, Status> {
        let core = &self.core;
        let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let cached_x509_svids_count = count(core.identities().read(|cache| cache.svid_count()));
        #[expect(deprecated, reason = "older clients read the field")]
        Ok(GetInfoResponse {
            svid_chain: self.svid_chain()?,
            uptime: i32::try_from(self.started.elapsed().as_secs()).unwrap_or(i32::MAX),
            svids_count: cached_x509_svids_count,
            last_sync_success: core.last_sync().unix(),
            cached_x509_svids_count,
            cached_jwt_svids_count: count(core.jwt_svid_count()),
            cached_svidstore_x509_svids_count: count(core.stored_svid_count()),
        })
    }

    /// The agent's SVID up to the authority of the bundle that it ends in.
    fn svid_chain(&self) -> Result<Vec<Cert>, Status> {
        let (svid, bundle) = (self.core.svid(), self.core.identities().read(|cache| cache.own_bundle()));
        let roots: Vec<Certificate> = bundle
            .x509_authorities
            .iter()
            .filter_map(|authority| Certificate::from_der(authority.der.clone()).ok())
            .collect();
        let chain = svid.chain.iter().map(|certificate| &certificate.der()[..]);
        let now = self.core.clock().now();
        let verified = parse_and_verify_svid(chain, |_| Some(&roots[..]), now).map_err(|error| {
            tracing::error!(subsystem_name = "debug_api", error = %error, "Failed to verify agent SVID");
            Status::internal(format!("failed to verify agent SVID: {error}"))
        })?;
        let certs = verified.chain().iter().map(|certificate| Cert {
            id: certificate.spiffe_id().ok().as_ref().map(id_to_wire),
            expires_at: certificate.not_after().unix(),
            subject: certificate.subject().to_string(),
        });
        Ok(certs.collect())
    }
}

#[async_trait]
impl debug_server::Debug for Debug {
    async fn get_info(&self, _: Request<GetInfoRequest>) -> Result<Response<GetInfoResponse>, Status> {
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = &*last
            && at.elapsed() < FRESH
        {
            return Ok(Response::new(answer.clone()));
        }
        let answer = self.info()?;
        *last = Some((Instant::now(), answer.clone()));
        Ok(Response::new(answer))
    }
}
