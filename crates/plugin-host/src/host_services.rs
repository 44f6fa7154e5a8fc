//! What a plugin may call, over the socket that the broker tells it (pkg/server/hostservice,
//! pkg/common/hostservice/metricsservice).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use spire_core::spiffe::{Bundle, JwtAuthority, SpiffeId};
use spire_ports::observe::Label;
use spire_ports::plugins::Host;
use spire_ports::plugins::external::Side;
use spire_wire::plugin::host::agentstore::agent_store_server::{AgentStore, AgentStoreServer};
use spire_wire::plugin::host::agentstore::{AgentInfo, GetAgentInfoRequest, GetAgentInfoResponse};
use spire_wire::plugin::host::identityprovider::identity_provider_server::{
    IdentityProvider, IdentityProviderServer,
};
use spire_wire::plugin::host::identityprovider::{
    FetchX509IdentityRequest, FetchX509IdentityResponse, X509Identity,
};
use spire_wire::plugin::host::metrics as pb;
use spire_wire::plugin::host::metrics::metrics_server::{Metrics, MetricsServer};
use spire_wire::plugin::types;
use tonic::server::NamedService;
use tonic::service::{Routes, RoutesBuilder};
use tonic::{Request, Response, Status};

use crate::status;

/// Parts of a metric's name, and labels, of one call; more are no metric but a mistake or an attack.
const PARTS_MAX: usize = 32;
/// Longest part of a name or a label.
const PART_LENGTH_MAX: usize = 256;

/// The services that a plugin of that side may call.
pub(crate) fn names(side: Side) -> Vec<String> {
    let metrics = <MetricsServer<Services> as NamedService>::NAME;
    let server = [
        <AgentStoreServer<Services> as NamedService>::NAME,
        <IdentityProviderServer<Services> as NamedService>::NAME,
    ];
    match side {
        Side::Agent => vec![metrics.to_owned()],
        Side::Server => [metrics].into_iter().chain(server).map(str::to_owned).collect(),
    }
}

/// Their routes.
pub(crate) fn routes(side: Side, host: Host) -> Routes {
    let mut routes = RoutesBuilder::default();
    let services = Services(host);
    routes.add_service(MetricsServer::new(services.clone()));
    if side == Side::Server {
        routes
            .add_service(AgentStoreServer::new(services.clone()))
            .add_service(IdentityProviderServer::new(services));
    }
    routes.routes()
}

#[derive(Clone)]
struct Services(Host);

#[tonic::async_trait]
impl AgentStore for Services {
    async fn get_agent_info(
        &self,
        request: Request<GetAgentInfoRequest>,
    ) -> Result<Response<GetAgentInfoResponse>, Status> {
        let agent_id = request.into_inner().agent_id;
        let unknown = || Status::not_found("no such agent");
        // What is no SPIFFE ID is nobody's.
        let id = SpiffeId::parse(&agent_id).map_err(|_| unknown())?;
        match self.0.agents.is_attested(&id).await {
            Ok(true) => Ok(Response::new(GetAgentInfoResponse { info: Some(AgentInfo { agent_id }) })),
            Ok(false) => Err(unknown()),
            Err(error) => Err(status::of_host(&error)),
        }
    }
}

#[tonic::async_trait]
impl IdentityProvider for Services {
    async fn fetch_x509_identity(
        &self,
        _: Request<FetchX509IdentityRequest>,
    ) -> Result<Response<FetchX509IdentityResponse>, Status> {
        let own = self.0.identity.x509_identity().await.map_err(|error| status::of_host(&error))?;
        Ok(Response::new(FetchX509IdentityResponse {
            identity: Some(X509Identity { cert_chain: own.chain, private_key: own.private_key }),
            bundle: Some(bundle(&own.bundle)),
        }))
    }
}

/// A bundle as plugins see it.
pub(crate) fn bundle(bundle: &Bundle) -> types::Bundle {
    let jwt = |key: &JwtAuthority| types::JwtKey {
        public_key: key.public_key.clone(),
        key_id: key.kid.clone(),
        expires_at: key.not_after.unix(),
        tainted: key.tainted,
    };
    let wit = |key: &JwtAuthority| types::WitKey {
        public_key: key.public_key.clone(),
        key_id: key.kid.clone(),
        expires_at: key.not_after.unix(),
        tainted: key.tainted,
    };
    types::Bundle {
        trust_domain: bundle.trust_domain.name().to_owned(),
        x509_authorities: bundle
            .x509_authorities
            .iter()
            .map(|root| types::X509Certificate { asn1: root.der.clone(), tainted: root.tainted })
            .collect(),
        jwt_authorities: bundle.jwt_authorities.iter().map(jwt).collect(),
        refresh_hint: i64::try_from(bundle.refresh_hint.as_secs()).unwrap_or(i64::MAX),
        sequence_number: bundle.sequence_number,
        wit_authorities: bundle.wit_authorities.iter().map(wit).collect(),
    }
}

/// The name and the labels of a metric, if they are sane.
fn metric<'a>(key: &'a [String], labels: &'a [pb::Label]) -> Result<(Vec<&'a str>, Vec<Label<'a>>), Status> {
    let texts = labels.iter().flat_map(|label| [&label.name, &label.value]);
    let too_long = key.iter().chain(texts).any(|text| text.len() > PART_LENGTH_MAX);
    if key.is_empty() || key.len() > PARTS_MAX || labels.len() > PARTS_MAX || too_long {
        return Err(Status::invalid_argument("a metric with too long a name or too many labels"));
    }
    let labels = labels.iter().map(|label| Label::new(&label.name, &label.value)).collect();
    Ok((key.iter().map(String::as_str).collect(), labels))
}

#[tonic::async_trait]
impl Metrics for Services {
    async fn set_gauge(&self, request: Request<pb::SetGaugeRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let (key, labels) = metric(&request.key, &request.labels)?;
        self.0.metrics.set_gauge(&key, f64::from(request.val), &labels);
        Ok(Response::new(()))
    }

    /// None of our sinks has such values; SPIRE's Prometheus, StatsD and M3 sinks drop them or make a gauge.
    async fn emit_key(&self, request: Request<pb::EmitKeyRequest>) -> Result<Response<()>, Status> {
        metric(&request.into_inner().key, &[])?;
        Ok(Response::new(()))
    }

    async fn incr_counter(&self, request: Request<pb::IncrCounterRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let (key, labels) = metric(&request.key, &request.labels)?;
        self.0.metrics.incr_counter(&key, request.val, &labels);
        Ok(Response::new(()))
    }

    async fn add_sample(&self, request: Request<pb::AddSampleRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let (key, labels) = metric(&request.key, &request.labels)?;
        self.0.metrics.add_sample(&key, request.val, &labels);
        Ok(Response::new(()))
    }

    async fn measure_since(&self, request: Request<pb::MeasureSinceRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let (key, labels) = metric(&request.key, &request.labels)?;
        let since = Duration::from_nanos(u64::try_from(request.time).unwrap_or(0));
        let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(since);
        let start = Instant::now().checked_sub(passed);
        let start = start.ok_or_else(|| Status::invalid_argument("a start before this machine's"))?;
        self.0.metrics.measure_since(&key, start, &labels);
        Ok(Response::new(()))
    }
}
