//! `spiffe.broker.API`: identities of workloads for a broker that refers to them (pkg/agent/broker/api).

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use prost::Message as _;
use spire_core::model::Entry;
use spire_core::spiffe::{Selectors, SpiffeId};
use spire_core::svids::{View, first_of_each_hint};
use spire_core::time::Timestamp;
use spire_net::grpc::plugin_code;
use spire_net::tls::{TlsInfo, TlsUnixInfo, VerifiedPeer};
use spire_ports::observe::names;
use spire_ports::plugins::WorkloadReference;
use spire_wire::broker as wire;
use tonic::{Code, Request, Response, Status};

use super::super::admin::{is_handed_on, no_identity};
use super::super::encode::{concat, jwt_documents, served_identities, x509_documents, x509_roots};
use super::super::follow::{Messages, bundles, follow, views};
use super::super::seconds_left;
use super::super::workload::stopping;
use super::policy::Policy;
use crate::runtime::{Bundles, Clock, Core, WorkloadAttestation, WorkloadError, selector_list};

/// JWT-SVIDs that one call asks the server for at once.
const CONCURRENT: usize = 10;

/// The reference to a process.
const PID_REFERENCE: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";

/// The service.
#[derive(Clone)]
pub(super) struct BrokerApi(Arc<Shared>);

struct Shared {
    core: Arc<Core>,
    attestation: Arc<WorkloadAttestation>,
    policy: Option<Policy>,
}

/// Proof that the caller is a broker that may refer to this workload so, and that the workload was attested; only
/// [`Shared::authorize`] makes one.
struct Authorized {
    broker: VerifiedPeer,
    selectors: Selectors,
}

impl BrokerApi {
    pub(super) fn new(core: Arc<Core>, attestation: Arc<WorkloadAttestation>) -> Self {
        let policy = core.options().broker.as_ref().map(Policy::new);
        Self(Arc::new(Shared { core, attestation, policy }))
    }
}

impl Shared {
    async fn authorize<T>(
        &self,
        request: &Request<T>,
        reference: Option<&wire::WorkloadReference>,
    ) -> Result<Authorized, Status> {
        let broker = caller(request).ok_or_else(|| {
            // TLS let nobody in without a certificate.
            Status::unauthenticated("unable to determine caller identity")
        })?;
        let reference = reference.and_then(|reference| reference.reference.as_ref());
        let type_url = reference.map(|any| any.type_url.as_str()).unwrap_or_default();
        let is_tcp = request.extensions().get::<TlsInfo>().is_some();
        if let Some(policy) = &self.policy {
            policy.check(broker.id(), type_url, is_tcp)?;
        }
        let reference = parse(reference, broker.id())
            .ok_or_else(|| Status::invalid_argument("workload reference must be provided"))?;
        let selectors = self.attestation.attest_reference(&reference).await.map_err(|error| {
            tracing::error!(broker_peer = %broker.id(), error = %error, "Workload attestation failed");
            refusal(error)
        })?;
        Ok(Authorized { broker, selectors })
    }

    /// How a stream of this broker ends that ends by itself.
    fn end(&self, broker: &VerifiedPeer) -> impl FnOnce() -> Status + Send + use<> {
        let (clock, until) = (self.core.clock(), broker.leaf().not_after());
        move || match clock.now() < until {
            true => stopping(),
            false => Status::unauthenticated("broker certificate has expired"),
        }
    }

    fn follow_bundles<M>(
        &self,
        authorized: &Authorized,
        compose: impl FnMut(Bundles) -> Result<M, Status> + Send + 'static,
    ) -> Response<Messages<M>>
    where
        M: PartialEq + Clone + Send + 'static,
    {
        let states = bundles(self.core.identities().bundles());
        let states = while_valid(states, self.core.clock(), &authorized.broker);
        Response::new(follow(states, self.end(&authorized.broker), compose))
    }

    async fn jwt_svid(&self, entry: Arc<Entry>, audience: &[String]) -> Result<wire::Jwtsvid, Status> {
        let spiffe_id = &entry.spiffe_id;
        let svid = self.core.jwt_svid(&entry, audience).await.map_err(|error| {
            tracing::error!(spiffe_id = %spiffe_id, error = %error, "Could not fetch JWT-SVID");
            Status::unavailable(format!("could not fetch JWT-SVID: {error}"))
        })?;
        let ttl = seconds_left(svid.expires_at, self.core.clock().now());
        tracing::debug!(spiffe_id = %spiffe_id, ttl, "Fetched JWT SVID");
        let (spiffe_id, hint) = (spiffe_id.as_str().to_owned(), entry.hint.to_string());
        Ok(wire::Jwtsvid { spiffe_id, svid: svid.token.to_string(), hint })
    }

    fn log_svids(&self, broker: &SpiffeId, view: &View) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let now = self.core.clock().now();
        let given: Vec<_> = view.identities().filter(|(entry, _)| is_handed_on(entry)).collect();
        for (_, svid) in &given {
            tracing::debug!(
                broker_peer = %broker, count = given.len(), spiffe_id = %svid.spiffe_id,
                ttl = seconds_left(svid.not_after, now), "Fetched X.509 SVID for broker"
            );
        }
    }
}

/// Ends when the certificate of the connection does.
fn while_valid<S: Send, T: Stream<Item = S> + Send>(
    states: T,
    clock: Clock,
    broker: &VerifiedPeer,
) -> impl Stream<Item = S> + Send + use<S, T> {
    let until: Timestamp = broker.leaf().not_after();
    states.take_until(async move {
        while clock.now() < until {
            clock.sleep_until(until).await;
        }
    })
}

#[async_trait]
impl wire::api_server::Api for BrokerApi {
    type SubscribeToX509SVIDStream = Messages<wire::SubscribeToX509svidResponse>;
    type SubscribeToX509BundlesStream = Messages<wire::SubscribeToX509BundlesResponse>;
    type SubscribeToJWTBundlesStream = Messages<wire::SubscribeToJwtBundlesResponse>;

    async fn subscribe_to_x509svid(
        &self,
        request: Request<wire::SubscribeToX509svidRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDStream>, Status> {
        let start = Instant::now();
        let shared = Arc::clone(&self.0);
        let authorized = shared.authorize(&request, request.get_ref().reference.as_ref()).await?;
        let broker = authorized.broker;
        tracing::debug!(
            broker_peer = %broker.id(),
            selectors = selector_list(&authorized.selectors),
            "Subscribing to cache changes"
        );
        let mut subscription = shared.core.identities().subscribe(&authorized.selectors);
        let first = subscription.first().await.ok_or_else(stopping)?;
        let states = while_valid(views(subscription, first), shared.core.clock(), &broker);
        let end = shared.end(&broker);
        let mut is_measured = false;
        let messages = follow(states, end, move |served| {
            if served.view.has_identity() && !std::mem::replace(&mut is_measured, true) {
                let name =
                    names::agent::DELEGATED_IDENTITY_API_SUBSCRIBE_X509_SVIDS_FIRST_UPDATE_ELAPSED_TIME;
                shared.core.metrics().measure_since(name, start, &[]);
            }
            shared.log_svids(broker.id(), &served.view);
            Ok(x509_svids(&served.view))
        });
        Ok(Response::new(messages))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        request: Request<wire::SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        let authorized = self.0.authorize(&request, request.get_ref().reference.as_ref()).await?;
        Ok(self.0.follow_bundles(&authorized, |bundles| {
            let bundles = x509_documents(&bundles);
            Ok(wire::SubscribeToX509BundlesResponse { crl: Vec::new(), bundles })
        }))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<wire::FetchJwtsvidRequest>,
    ) -> Result<Response<wire::FetchJwtsvidResponse>, Status> {
        if request.get_ref().audience.is_empty() {
            tracing::error!("Missing required audience parameter");
            return Err(Status::invalid_argument("audience must be specified"));
        }
        let authorized = self.0.authorize(&request, request.get_ref().reference.as_ref()).await?;
        let request = request.into_inner();
        let wanted = match request.spiffe_id.as_str() {
            "" => None,
            id => Some(SpiffeId::parse(id).map_err(|error| {
                tracing::error!(error = %error, "Invalid requested SPIFFE ID");
                Status::invalid_argument(format!("invalid requested SPIFFE ID: {error}"))
            })?),
        };
        let all = self.0.core.identities().matching(&authorized.selectors);
        let (mut entries, dropped) = first_of_each_hint(all, |entry: &Arc<Entry>| entry);
        for (id, hint) in dropped {
            tracing::warn!(entry_id = %id, hint = &*hint, "Ignoring entry with duplicate hint");
        }
        entries.retain(|entry| wanted.as_ref().is_none_or(|id| *id == entry.spiffe_id));
        let fetches = stream::iter(entries).map(|entry| self.0.jwt_svid(entry, &request.audience));
        let svids: Vec<wire::Jwtsvid> = fetches.buffered(CONCURRENT).try_collect().await?;
        if svids.is_empty() {
            tracing::error!(broker_peer = %authorized.broker.id(), "No identity issued");
            return Err(no_identity());
        }
        Ok(Response::new(wire::FetchJwtsvidResponse { svids }))
    }

    async fn subscribe_to_jwt_bundles(
        &self,
        request: Request<wire::SubscribeToJwtBundlesRequest>,
    ) -> Result<Response<Self::SubscribeToJWTBundlesStream>, Status> {
        let authorized = self.0.authorize(&request, request.get_ref().reference.as_ref()).await?;
        Ok(self.0.follow_bundles(&authorized, |bundles| {
            Ok(wire::SubscribeToJwtBundlesResponse { bundles: jwt_documents(&bundles)? })
        }))
    }
}

/// Who calls, as TLS verified it.
fn caller<T>(request: &Request<T>) -> Option<VerifiedPeer> {
    let extensions = request.extensions();
    let unix = extensions.get::<TlsUnixInfo>().and_then(TlsUnixInfo::peer);
    unix.or_else(|| extensions.get::<TlsInfo>().and_then(TlsInfo::peer)).cloned()
}

/// The reference as plugins get it.
fn parse(reference: Option<&prost_types::Any>, broker: &SpiffeId) -> Option<WorkloadReference> {
    let any = reference?;
    let pid = (any.type_url == PID_REFERENCE)
        .then(|| wire::WorkloadPidReference::decode(&any.value[..]).ok())
        .flatten()
        .map(|reference| reference.pid);
    Some(WorkloadReference {
        type_url: any.type_url.clone(),
        value: any.value.clone().into(),
        pid,
        broker: Some(broker.clone()),
    })
}

/// What a failed attestation means for the broker: the plugin's own status where there is one.
fn refusal(error: WorkloadError) -> Status {
    match error {
        WorkloadError::UnknownReference => Status::unimplemented(error.to_string()),
        WorkloadError::Failed(failures) => {
            let code = failures.first().map_or(Code::Unknown, |failure| plugin_code(failure.kind()));
            let texts: Vec<String> = failures.iter().map(|failure| failure.status_text()).collect();
            Status::new(code, texts.join("\n"))
        }
        error => Status::unauthenticated(format!("workload attestation failed: {error}")),
    }
}

fn x509_svids(view: &View) -> wire::SubscribeToX509svidResponse {
    let bundle = x509_roots(&view.bundle);
    let identities = served_identities(view).into_iter().filter(|(entry, _)| is_handed_on(entry));
    let svids = identities
        .map(|(entry, svid)| wire::X509svid {
            spiffe_id: svid.spiffe_id.as_str().to_owned(),
            x509_svid: concat(&svid.chain),
            x509_svid_key: bytes::Bytes::copy_from_slice(&svid.private_key),
            bundle: bundle.clone(),
            hint: entry.hint.to_string(),
        })
        .collect();
    let federated_bundles =
        view.federated.iter().map(|bundle| (bundle.trust_domain.id_string(), x509_roots(bundle))).collect();
    wire::SubscribeToX509svidResponse { svids, crl: Vec::new(), federated_bundles }
}
