//! An X.509-SVID and bundles that follow a SPIFFE Workload API, for programs that are workloads of an agent
//! themselves (go-spiffe's `workloadapi.X509Source`).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use spire_core::pki::{Certificate, CertificateError, MAX_CHAIN_LEN};
use spire_core::spiffe::{SpiffeId, TrustDomain};
use spire_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spire_wire::workload::{X509svid, X509svidRequest, X509svidResponse};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::grpc::unix_channel;
use crate::tls::{Identity, TrustSource, UnixConnector};

#[cfg(test)]
mod tests;

/// Waits between attempts grow by the first to the second (go-spiffe: `workloadapi/backoff.go`).
const RETRY_STEP: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Authorities of one trust domain that are read: far more than rotation leaves in a bundle.
const AUTHORITIES_MAX: usize = 256;

/// Without this field an agent refuses a call (SPIFFE Workload API, section 4.1), so that no browser can be tricked
/// into one.
const SECURITY_HEADER: &str = "workload.spiffe.io";

/// Our X.509-SVID and whom we trust, as an agent says. It starts to follow at once, goes on while the agent is away,
/// and ends when dropped.
pub struct X509Source {
    identity: Arc<Identity>,
    trust: Arc<Bundles>,
    state: watch::Receiver<State>,
    follower: JoinHandle<()>,
}

#[derive(Clone, Debug)]
enum State {
    /// Nothing came yet.
    Waiting,
    /// Who we are.
    Known(SpiffeId),
    /// The agent says that asking is of no use.
    Refused(Status),
}

/// Why there is no identity. Asking the same agent again in the same way is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message())]
pub struct RefusedError(Status);

/// Why an update cannot be used; the last one stays.
#[derive(Debug, thiserror::Error)]
enum UpdateError {
    #[error("there were no SVIDs in the response")]
    Empty,
    #[error("certificate: {0}")]
    Certificate(#[from] CertificateError),
    #[error("SPIFFE ID: {0}")]
    Id(#[from] spire_core::spiffe::IdError),
    #[error(transparent)]
    Identity(#[from] crate::tls::IdentityError),
}

impl X509Source {
    /// Follows the Workload API on that socket. Needs a tokio runtime.
    pub fn follow(socket: UnixConnector) -> Self {
        let (identity, trust) = (Identity::empty(), Arc::<Bundles>::default());
        let (sender, state) = watch::channel(State::Waiting);
        let follower = Follower { identity: Arc::clone(&identity), trust: Arc::clone(&trust), state: sender };
        let follower = tokio::spawn(follower.run(unix_channel(socket)));
        Self { identity, trust, state, follower }
    }

    /// Waits until there is an identity; who that is.
    ///
    /// # Errors
    /// [`RefusedError`] when the agent refuses for good. While it cannot be reached or knows no identity for us, this
    /// waits: give it a deadline.
    pub async fn ready(&self) -> Result<SpiffeId, RefusedError> {
        let mut state = self.state.clone();
        let known = state.wait_for(|state| !matches!(state, State::Waiting)).await;
        match known.map(|state| state.clone()) {
            Ok(State::Known(id)) => Ok(id),
            Ok(State::Refused(status)) => Err(RefusedError(status)),
            Ok(State::Waiting) | Err(_) => Err(RefusedError(Status::cancelled("the source was closed"))),
        }
    }

    /// What we show to peers; it changes with the SVID.
    pub fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity)
    }

    /// Whom we trust; it changes with the bundles.
    pub fn trust(&self) -> Arc<dyn TrustSource> {
        Arc::clone(&self.trust) as Arc<dyn TrustSource>
    }
}

impl Drop for X509Source {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl fmt::Debug for X509Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Source").field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}

/// X.509 authorities by trust domain.
#[derive(Debug, Default)]
struct Bundles(ArcSwap<HashMap<TrustDomain, Arc<[Certificate]>>>);

impl TrustSource for Bundles {
    fn authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>> {
        self.0.load().get(trust_domain).cloned()
    }
}

struct Follower {
    identity: Arc<Identity>,
    trust: Arc<Bundles>,
    state: watch::Sender<State>,
}

impl Follower {
    async fn run(self, channel: Channel) {
        let mut wait = Duration::ZERO;
        loop {
            let status = self.stream(channel.clone(), &mut wait).await;
            if status.code() == Code::InvalidArgument {
                tracing::error!(error = status.message(), "The Workload API refused to give an X.509-SVID");
                self.state.send_replace(State::Refused(status));
                return;
            }
            wait = (wait + RETRY_STEP).min(RETRY_MAX);
            tracing::warn!(
                code = ?status.code(),
                error = status.message(),
                retry_interval_seconds = wait.as_secs(),
                "Failed to watch the Workload API; trying again"
            );
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes updates until the stream ends, and says why it did.
    async fn stream(&self, channel: Channel, wait: &mut Duration) -> Status {
        let mut request = Request::new(X509svidRequest {});
        request.metadata_mut().insert(SECURITY_HEADER, MetadataValue::from_static("true"));
        let mut updates = match SpiffeWorkloadApiClient::new(channel).fetch_x509svid(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return status,
        };
        loop {
            match updates.message().await {
                Ok(Some(update)) => {
                    *wait = Duration::ZERO;
                    match self.take(update) {
                        Ok(id) => drop(self.state.send_replace(State::Known(id))),
                        Err(error) => tracing::error!(error = %error, "Invalid update of the Workload API"),
                    }
                }
                Ok(None) => return Status::unavailable("the stream ended"),
                Err(status) => return status,
            }
        }
    }

    /// Takes the first SVID, which is the default one, with its bundle and the federated ones.
    fn take(&self, update: X509svidResponse) -> Result<SpiffeId, UpdateError> {
        let X509svid { spiffe_id, x509_svid, x509_svid_key, bundle, .. } =
            update.svids.into_iter().next().ok_or(UpdateError::Empty)?;
        let id = SpiffeId::parse(&spiffe_id)?;
        let chain = Certificate::many_from_der(x509_svid, MAX_CHAIN_LEN)?;
        let own = Certificate::many_from_der(bundle, AUTHORITIES_MAX)?;
        let mut bundles = HashMap::from([(id.trust_domain().clone(), Arc::from(own))]);
        for (name, bundle) in update.federated_bundles {
            let name = name.strip_prefix("spiffe://").unwrap_or(&name);
            let authorities = Certificate::many_from_der(bundle, AUTHORITIES_MAX)?;
            bundles.entry(TrustDomain::parse(name)?).or_insert_with(|| Arc::from(authorities));
        }
        self.identity.replace(&chain, &x509_svid_key)?;
        self.trust.0.store(Arc::new(bundles));
        Ok(id)
    }
}
