//! `spire.api.agent.delegatedidentity.v1.DelegatedIdentity`: identities of other workloads for a workload that the
//! operator trusts to hand them on (pkg/agent/api/delegatedidentity/v1).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use spire_core::model::Entry;
use spire_core::spiffe::{Selector, SelectorError, Selectors, SpiffeId};
use spire_core::svids::{View, X509Svid};
use spire_net::uds::PeerInfo;
use spire_ports::observe::names;
use spire_wire::api::agent::delegatedidentity::v1 as wire;
use spire_wire::api::types;
use tonic::{Request, Response, Status};

use super::super::encode::{jwt_documents, x509_documents};
use super::super::follow::{Messages, bundles, follow, views};
use super::super::seconds_left;
use super::super::workload::stopping;
use crate::runtime::{Bundles, Core, WorkloadAttestation, selector_list};

/// JWT-SVIDs that one call asks the server for at once.
const CONCURRENT: usize = 10;

/// The service.
pub(super) struct Delegated(Arc<Shared>);

struct Shared {
    core: Arc<Core>,
    attestation: Arc<WorkloadAttestation>,
    delegates: HashSet<SpiffeId>,
}

/// Proof that the caller was attested and has the identity of a delegate; only [`Shared::authorize`] makes one.
struct Delegate {
    selectors: Selectors,
}

impl Delegated {
    pub(super) fn new(core: Arc<Core>, attestation: Arc<WorkloadAttestation>) -> Self {
        let delegates = core.options().authorized_delegates.iter().cloned().collect();
        Self(Arc::new(Shared { core, attestation, delegates }))
    }
}

impl Shared {
    async fn authorize<T>(&self, request: &Request<T>) -> Result<Delegate, Status> {
        let peer = request.extensions().get::<PeerInfo>();
        let peer = peer.ok_or_else(|| Status::internal("peer tracker watcher missing from context"))?;
        let selectors = self.attestation.attest(peer).await.map_err(attestation_failed)?;
        let delegate = Delegate { selectors };
        self.check(&delegate)?;
        Ok(delegate)
    }

    /// Whether the caller still has the identity of a delegate.
    fn check(&self, delegate: &Delegate) -> Result<(), Status> {
        let entries = self.core.identities().matching(&delegate.selectors);
        let Some(first) = entries.first() else {
            tracing::error!("No identity issued");
            return Err(no_identity());
        };
        match entries.iter().find(|entry| self.delegates.contains(&entry.spiffe_id)) {
            Some(entry) => {
                tracing::debug!(
                    delegate_selectors = selector_list(&delegate.selectors),
                    delegate_id = %entry.spiffe_id,
                    "Caller authorized as delegate"
                );
                Ok(())
            }
            None => {
                tracing::error!(
                    num_registered_entries = entries.len(),
                    default_id = %first.spiffe_id,
                    "Permission denied; caller not configured as an authorized delegate."
                );
                Err(Status::permission_denied("caller not configured as an authorized delegate"))
            }
        }
    }

    /// The workload that a delegate asks for: its selectors, which are believed, or those of a process.
    async fn workload(
        &self,
        _: &Delegate,
        pid: i32,
        selectors: Vec<types::Selector>,
    ) -> Result<Selectors, Status> {
        if selectors.is_empty() == (pid == 0) {
            let text = "must provide either selectors or non-zero PID, but not both";
            tracing::error!("Invalid argument; {text}");
            return Err(Status::invalid_argument(text));
        }
        if pid != 0 {
            return self.attestation.attest_pid(pid).await.map_err(attestation_failed);
        }
        let parsed: Result<Selectors, SelectorError> =
            selectors.into_iter().map(|s| Selector::new(s.r#type, s.value)).collect();
        parsed.map_err(|error| {
            tracing::error!(error = %error, "Invalid argument; could not parse provided selectors");
            Status::invalid_argument("could not parse provided selectors")
        })
    }

    async fn jwt_svid(&self, entry: Arc<Entry>, audience: &[String]) -> Result<types::Jwtsvid, Status> {
        let spiffe_id = &entry.spiffe_id;
        let svid = self.core.jwt_svid(&entry, audience).await.map_err(|error| {
            tracing::error!(spiffe_id = %spiffe_id, error = %error, "Could not fetch JWT-SVID");
            Status::unavailable(format!("could not fetch JWT-SVID: {error}"))
        })?;
        let ttl = seconds_left(svid.expires_at, self.core.clock().now());
        tracing::debug!(spiffe_id = %spiffe_id, ttl, "Fetched JWT SVID");
        Ok(types::Jwtsvid {
            token: svid.token.to_string(),
            id: Some(id_to_wire(spiffe_id)),
            expires_at: svid.expires_at.unix(),
            issued_at: svid.issued_at.unix(),
            hint: entry.hint.to_string(),
        })
    }

    /// A message of all bundles now and whenever they change, as long as the caller is a delegate.
    fn follow_bundles<M>(
        self: &Arc<Self>,
        delegate: Delegate,
        compose: impl Fn(&Bundles) -> Result<M, Status> + Send + 'static,
    ) -> Response<Messages<M>>
    where
        M: PartialEq + Clone + Send + 'static,
    {
        let shared = Arc::clone(self);
        let states = bundles(self.core.identities().bundles());
        Response::new(follow(states, stopping, move |bundles| {
            shared.check(&delegate)?;
            compose(&bundles)
        }))
    }
}

#[async_trait]
impl wire::delegated_identity_server::DelegatedIdentity for Delegated {
    type SubscribeToX509SVIDsStream = Messages<wire::SubscribeToX509sviDsResponse>;
    type SubscribeToX509BundlesStream = Messages<wire::SubscribeToX509BundlesResponse>;
    type SubscribeToJWTBundlesStream = Messages<wire::SubscribeToJwtBundlesResponse>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<wire::SubscribeToX509sviDsRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDsStream>, Status> {
        let start = Instant::now();
        let shared = Arc::clone(&self.0);
        let delegate = shared.authorize(&request).await?;
        let request = request.into_inner();
        let selectors = shared.workload(&delegate, request.pid, request.selectors).await?;
        tracing::debug!(
            delegate_selectors = selector_list(&delegate.selectors),
            request_selectors = selector_list(&selectors),
            "Subscribing to cache changes"
        );
        let mut subscription = shared.core.identities().subscribe(&selectors);
        let first = subscription.first().await.ok_or_else(stopping)?;
        let mut is_measured = false;
        let messages = follow(views(subscription, first), stopping, move |served| {
            shared.check(&delegate)?;
            if served.view.has_identity() && !std::mem::replace(&mut is_measured, true) {
                let name =
                    names::agent::DELEGATED_IDENTITY_API_SUBSCRIBE_X509_SVIDS_FIRST_UPDATE_ELAPSED_TIME;
                shared.core.metrics().measure_since(name, start, &[]);
            }
            let message = x509_svids(&served.view);
            shared.log_svids(&message);
            Ok(message)
        });
        Ok(Response::new(messages))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        request: Request<wire::SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        let delegate = self.0.authorize(&request).await?;
        Ok(self.0.follow_bundles(delegate, |bundles| {
            Ok(wire::SubscribeToX509BundlesResponse { ca_certificates: x509_documents(bundles) })
        }))
    }

    async fn fetch_jwtsvi_ds(
        &self,
        request: Request<wire::FetchJwtsviDsRequest>,
    ) -> Result<Response<wire::FetchJwtsviDsResponse>, Status> {
        if request.get_ref().audience.is_empty() {
            tracing::error!("Missing required audience parameter");
            return Err(Status::invalid_argument("audience must be specified"));
        }
        let delegate = self.0.authorize(&request).await?;
        let request = request.into_inner();
        let selectors = self.0.workload(&delegate, request.pid, request.selectors).await?;
        let mut entries = self.0.core.identities().matching(&selectors);
        entries.retain(|entry| is_handed_on(entry));
        let fetches = stream::iter(entries).map(|entry| self.0.jwt_svid(entry, &request.audience));
        let svids: Vec<types::Jwtsvid> = fetches.buffered(CONCURRENT).try_collect().await?;
        if svids.is_empty() {
            tracing::error!("No identity issued");
            return Err(no_identity());
        }
        Ok(Response::new(wire::FetchJwtsviDsResponse { svids }))
    }

    async fn subscribe_to_jwt_bundles(
        &self,
        request: Request<wire::SubscribeToJwtBundlesRequest>,
    ) -> Result<Response<Self::SubscribeToJWTBundlesStream>, Status> {
        let delegate = self.0.authorize(&request).await?;
        Ok(self.0.follow_bundles(delegate, |bundles| {
            let bundles: BTreeMap<String, Bytes> = jwt_documents(bundles)?;
            Ok(wire::SubscribeToJwtBundlesResponse { bundles })
        }))
    }
}

impl Shared {
    fn log_svids(&self, message: &wire::SubscribeToX509sviDsResponse) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let (now, count) = (self.core.clock().now(), message.x509_svids.len());
        for svid in message.x509_svids.iter().filter_map(|svid| svid.x509_svid.as_ref()) {
            let spiffe_id = svid.id.as_ref().map(|id| format!("spiffe://{}{}", id.trust_domain, id.path));
            let expires_at = spire_core::time::Timestamp::from_unix(svid.expires_at);
            let ttl = seconds_left(expires_at, now);
            tracing::debug!(count, spiffe_id, ttl, "Fetched X.509 SVID for delegated identity");
        }
    }
}

fn x509_svids(view: &View) -> wire::SubscribeToX509sviDsResponse {
    let one = |(entry, svid): (&Arc<Entry>, &Arc<X509Svid>)| wire::X509svidWithKey {
        x509_svid: Some(types::X509svid {
            cert_chain: svid.chain.clone(),
            id: Some(id_to_wire(&svid.spiffe_id)),
            expires_at: svid.not_after.unix(),
            hint: entry.hint.to_string(),
        }),
        x509_svid_key: Bytes::copy_from_slice(&svid.private_key),
    };
    let x509_svids = view.identities().filter(|(entry, _)| is_handed_on(entry)).map(one).collect();
    let federates_with = view.federated.iter().map(|bundle| bundle.trust_domain.id_string()).collect();
    wire::SubscribeToX509sviDsResponse { x509_svids, federates_with }
}

/// Identities with rights at the server are for the workloads themselves.
pub(in crate::api) fn is_handed_on(entry: &Entry) -> bool {
    !entry.admin && !entry.downstream
}

pub(in crate::api) fn no_identity() -> Status {
    Status::permission_denied("no identity issued")
}

fn attestation_failed(error: impl std::fmt::Display) -> Status {
    tracing::error!(error = %error, "Workload attestation failed");
    Status::unavailable("workload attestation failed")
}

pub(super) fn id_to_wire(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid { trust_domain: id.trust_domain().name().to_owned(), path: id.path().to_owned() }
}
