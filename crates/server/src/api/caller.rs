//! Who calls, proven.
//!
//! A handler takes one of the proof types below as a parameter, and the type says who may call it: the routes
//! ([`super::route`]) derive the allowed callers from it. The types have private fields and one maker,
//! [`Authorizer::authorize`], so no handler can run without the check having been made.
//!
//! Callers are tried in the order of their cost, as the reference does (pkg/server/api/middleware
//! authorization_opa.go): anybody, local, admin by configuration, admin by entry, downstream by entry, agent.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spire_core::model::{EntryFilter, Node, NodeUpdate};
use spire_core::spiffe::SpiffeId;
use spire_core::time::Timestamp;
use spire_net::tls::{TlsInfo, VerifiedPeer};
use spire_net::uds::PeerInfo;
use spire_ports::datastore::{self, Consistency};
use spire_wire::api::types::permission_denied_details::Reason;
use tonic::codegen::http;
use tonic::{Code, Status};

use super::status::{denied, go_error};
use crate::clock::Clock;
use crate::entries::LiveEntries;
use crate::outage::patiently;

/// Agents in one generation of [`Proven`]. About 200 B each.
const GENERATION_MAX: usize = 50_000;

/// The other end of a connection, as the transport proved it.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A process on this machine, through the unix socket.
    Local(Option<PeerInfo>),
    /// A TLS client, which may have shown an SVID.
    Tls {
        /// Its address.
        address: SocketAddr,
        /// Its verified SVID.
        svid: Option<CallerSvid>,
    },
}

/// The SVID that a caller proved in the handshake of its connection.
#[derive(Clone, Debug)]
pub struct CallerSvid(Svid);

#[derive(Clone, Debug)]
enum Svid {
    Verified(VerifiedPeer),
    /// Tests of handlers need no handshake.
    #[cfg(test)]
    Given {
        id: SpiffeId,
        serial: String,
        expires_at: Timestamp,
    },
}

impl CallerSvid {
    #[cfg(test)]
    pub(crate) fn given(id: SpiffeId, serial: &str, expires_at: Timestamp) -> Self {
        Self(Svid::Given { id, serial: serial.to_owned(), expires_at })
    }

    fn id(&self) -> &SpiffeId {
        match &self.0 {
            Svid::Verified(peer) => peer.id(),
            #[cfg(test)]
            Svid::Given { id, .. } => id,
        }
    }

    /// Decimal.
    fn serial(&self) -> String {
        match &self.0 {
            Svid::Verified(peer) => peer.leaf().serial(),
            #[cfg(test)]
            Svid::Given { serial, .. } => serial.clone(),
        }
    }

    fn expires_at(&self) -> Timestamp {
        match &self.0 {
            Svid::Verified(peer) => peer.leaf().not_after(),
            #[cfg(test)]
            Svid::Given { expires_at, .. } => *expires_at,
        }
    }
}

impl Peer {
    /// What the listener left in the request. `None` for a request that came through neither of our listeners.
    pub(super) fn of<B>(request: &http::Request<B>) -> Option<Self> {
        let extensions = request.extensions();
        if let Some(tls) = extensions.get::<TlsInfo>() {
            return Some(Self::Tls {
                address: tls.remote_addr(),
                svid: tls.peer().cloned().map(|peer| CallerSvid(Svid::Verified(peer))),
            });
        }
        if let Some(process) = extensions.get::<PeerInfo>() {
            return Some(Self::Local(Some(process.clone())));
        }
        extensions.get::<Self>().cloned()
    }

    /// The SPIFFE ID that the caller proved.
    pub fn id(&self) -> Option<&SpiffeId> {
        match self {
            Self::Tls { svid: Some(svid), .. } => Some(svid.id()),
            _ => None,
        }
    }

    /// Whether it is a TLS client that showed no SVID.
    pub fn is_anonymous(&self) -> bool {
        matches!(self, Self::Tls { svid: None, .. })
    }

    /// Path of the program of a local caller; empty where callers are not tracked, as the reference tells a policy.
    pub(super) fn executable(&self) -> String {
        let Self::Local(Some(process)) = self else { return String::new() };
        process.executable().map(|path| path.display().to_string()).unwrap_or_default()
    }

    /// The caller's address; `None` on the unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tls { address, .. } => Some(*address),
            Self::Local(_) => None,
        }
    }
}

/// Anybody at all.
#[derive(Debug)]
pub struct AnyCaller(());

/// A process that reached the unix socket.
#[derive(Debug)]
pub struct LocalCaller(());

/// A local process, or an administrator by configuration or entry.
#[derive(Debug)]
pub struct AdminCaller(());

/// A downstream server.
#[derive(Debug)]
pub struct DownstreamCaller {
    id: SpiffeId,
}

/// A downstream server that publishes a key, for which nothing of it is needed.
#[derive(Debug)]
pub struct DownstreamPublisher(());

impl DownstreamCaller {
    /// Who it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }
}

/// An agent that is attested, not banned, and uses its active SVID.
#[derive(Debug)]
pub struct AgentCaller {
    id: SpiffeId,
    expires_at: Timestamp,
}

impl AgentCaller {
    /// Which agent it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// When the SVID that it called with expires: streams end then.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }
}

/// An [`AdminCaller`] or an [`AgentCaller`].
#[derive(Debug)]
pub struct AdminOrAgentCaller(());

/// Who may call a method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the kind of caller of that name")]
pub struct Allowed {
    pub any: bool,
    pub local: bool,
    pub admin: bool,
    pub downstream: bool,
    pub agent: bool,
}

impl Allowed {
    const NOBODY: Self = Self { any: false, local: false, admin: false, downstream: false, agent: false };
}

/// A type that proves who calls. Sealed: its constructor is for [`Authorizer::authorize`]'s result only.
pub trait Proof: Sized + Send + 'static + sealed::Sealed {
    /// The callers that the type stands for.
    const ALLOWED: Allowed;
    /// The proof of what was granted; the error is the answer to a caller that a user's policy lets in and of whom
    /// not enough is known.
    #[doc(hidden)]
    fn from_granted(granted: Granted) -> Result<Self, &'static str>;
}

mod sealed {
    /// Only this module names callers.
    pub trait Sealed {}
}

/// As what a call was let in. Made by [`Authorizer::authorize`] and [`Authorizer::authorize_by_policy`] only.
#[derive(Debug)]
pub struct Granted {
    who: As,
    by_policy: Option<ByPolicy>,
}

/// A user's policy may let any caller in to any method; what a proof says of it comes from its SVID.
#[derive(Debug)]
struct ByPolicy {
    /// ID and expiry of the caller's SVID.
    svid: Option<(SpiffeId, Timestamp)>,
}

#[derive(Debug)]
enum As {
    Nobody,
    Local,
    Admin { by_entry: bool },
    Downstream(DownstreamCaller),
    Agent(AgentCaller),
}

impl Granted {
    /// `authorized_as` and `authorized_via` of the log.
    pub fn log_fields(&self) -> (&'static str, &'static str) {
        match &self.who {
            As::Nobody => ("nobody", ""),
            As::Local => ("local", "transport"),
            As::Admin { by_entry: false } => ("admin", "config"),
            As::Admin { by_entry: true } => ("admin", "entries"),
            As::Downstream(_) => ("downstream", "entries"),
            As::Agent(_) => ("agent", "datastore"),
        }
    }
}

macro_rules! proofs {
    ($($proof:ident { $($field:ident),* } $from:expr;)*) => {$(
        impl sealed::Sealed for $proof {}
        impl Proof for $proof {
            const ALLOWED: Allowed = Allowed { $($field: true,)* ..Allowed::NOBODY };
            fn from_granted(granted: Granted) -> Result<Self, &'static str> {
                let from: fn(As, Option<ByPolicy>) -> Result<Self, &'static str> = $from;
                from(granted.who, granted.by_policy)
            }
        }
    )*};
}

/// `authorize` grants only what was allowed, which is what the proof stands for.
const OTHER_KIND: &str = "caller is of another kind";

proofs! {
    AnyCaller { any } |_, _| Ok(Self(()));
    LocalCaller { local } |who, policy| {
        (policy.is_some() || matches!(who, As::Local)).then_some(Self(())).ok_or(OTHER_KIND)
    };
    AdminCaller { local, admin } |who, policy| {
        (policy.is_some() || matches!(who, As::Local | As::Admin { .. })).then_some(Self(())).ok_or(OTHER_KIND)
    };
    DownstreamCaller { downstream } |who, _| match who {
        As::Downstream(caller) => Ok(caller),
        _ => Err("caller is not a downstream workload"),
    };
    DownstreamPublisher { downstream } |who, policy| {
        (policy.is_some() || matches!(who, As::Downstream(_))).then_some(Self(())).ok_or(OTHER_KIND)
    };
    AgentCaller { agent } |who, policy| match (who, policy) {
        (As::Agent(caller), _) => Ok(caller),
        (_, Some(ByPolicy { svid: Some((id, expires_at)) })) => Ok(Self { id, expires_at }),
        _ => Err("caller ID missing from request context"),
    };
    AdminOrAgentCaller { local, admin, agent } |who, policy| {
        let known = matches!(who, As::Local | As::Admin { .. } | As::Agent(_));
        (policy.is_some() || known).then_some(Self(())).ok_or(OTHER_KIND)
    };
}

/// Why a call is not let in.
#[derive(Debug)]
pub enum Denial {
    /// The caller may not; the reason is for agents only.
    Denied(Option<Reason>),
    /// It could not be found out; the status is the answer.
    Failed(Box<Status>),
}

/// Decides who may call.
pub struct Authorizer {
    live: Arc<LiveEntries>,
    clock: Arc<dyn Clock>,
    admin_ids: HashSet<SpiffeId>,
    /// Zero remembers nobody.
    staleness: Duration,
    proven: Mutex<Proven>,
}

/// The serial numbers of agents' SVIDs as they were last read, for `max_attested_node_info_staleness`. There are two
/// generations, of which the older is dropped as a whole, so that those who come no more need not be looked for.
#[derive(Default)]
struct Proven {
    young: HashMap<SpiffeId, (Box<str>, Instant)>,
    old: HashMap<SpiffeId, (Box<str>, Instant)>,
    /// When the young generation began.
    since: Option<Instant>,
}

impl Proven {
    fn get(&self, id: &SpiffeId) -> Option<&(Box<str>, Instant)> {
        self.young.get(id).or_else(|| self.old.get(id))
    }

    fn remove(&mut self, id: &SpiffeId) {
        self.young.remove(id);
        self.old.remove(id);
    }

    fn insert(&mut self, id: &SpiffeId, serial: &str, staleness: Duration) {
        let now = Instant::now();
        let full = self.young.len() >= GENERATION_MAX && !self.young.contains_key(id);
        if full || now.duration_since(*self.since.get_or_insert(now)) >= staleness {
            self.old = std::mem::take(&mut self.young);
            self.since = Some(now);
        }
        self.young.insert(id.clone(), (serial.into(), now));
    }
}

impl Authorizer {
    /// `admin_ids` and `max_attested_node_info_staleness` as configured.
    pub fn new(
        live: Arc<LiveEntries>,
        clock: Arc<dyn Clock>,
        admin_ids: HashSet<SpiffeId>,
        staleness: Duration,
    ) -> Self {
        Self { live, clock, admin_ids, staleness, proven: Mutex::default() }
    }

    /// Whether a caller is one of those allowed, and as which.
    ///
    /// # Errors
    /// [`Denial`].
    pub async fn authorize(&self, peer: &Peer, allowed: Allowed) -> Result<Granted, Denial> {
        Ok(Granted { who: self.judge(peer, allowed).await?, by_policy: None })
    }

    /// As [`authorize`](Self::authorize), where a user's policy said who is allowed.
    ///
    /// # Errors
    /// [`Denial`].
    pub async fn authorize_by_policy(&self, peer: &Peer, allowed: Allowed) -> Result<Granted, Denial> {
        let who = self.judge(peer, allowed).await?;
        let svid = match peer {
            Peer::Tls { svid: Some(svid), .. } => Some((svid.id().clone(), svid.expires_at())),
            _ => None,
        };
        Ok(Granted { who, by_policy: Some(ByPolicy { svid }) })
    }

    async fn judge(&self, peer: &Peer, allowed: Allowed) -> Result<As, Denial> {
        if allowed.any {
            return Ok(As::Nobody);
        }
        let svid = match peer {
            Peer::Local(_) if allowed.local => return Ok(As::Local),
            Peer::Local(_) | Peer::Tls { svid: None, .. } => return Err(Denial::Denied(None)),
            Peer::Tls { svid: Some(svid), .. } => svid,
        };
        let id = svid.id();
        if allowed.admin && self.admin_ids.contains(id) {
            return Ok(As::Admin { by_entry: false });
        }
        if (allowed.admin || allowed.downstream)
            && let Some(granted) = self.by_entries(id, allowed).await?
        {
            return Ok(granted);
        }
        if !allowed.agent {
            return Err(Denial::Denied(None));
        }
        let expires_at = svid.expires_at();
        self.agent(id, &svid.serial(), expires_at).await?;
        Ok(As::Agent(AgentCaller { id: id.clone(), expires_at }))
    }

    /// An agent was banned or evicted here: what is remembered of it counts no more.
    pub fn forget(&self, agent: &SpiffeId) {
        self.proven.lock().remove(agent);
    }

    /// What the entries of the caller's identity allow. They are read from the datastore, since another server may have
    /// taken a right away a moment ago; but a caller that may also be an agent, as which it is checked against the
    /// datastore, is spared that where the view knows of no right.
    async fn by_entries(&self, id: &SpiffeId, allowed: Allowed) -> Result<Option<As>, Denial> {
        if allowed.agent {
            let rights = self.live.view().rights(id);
            if !rights.admin && !rights.downstream {
                return Ok(None);
            }
        }
        let filter = EntryFilter { spiffe_id: Some(id.clone()), ..EntryFilter::default() };
        let found =
            self.live.store().entry_list(&filter, None, Consistency::Current).await.map_err(|error| {
                tracing::error!(error = %error, "Failed to fetch caller entries");
                failed(Code::Internal, format!("failed to fetch caller entries: {error}"))
            })?;
        if allowed.admin && found.items.iter().any(|entry| entry.admin) {
            return Ok(Some(As::Admin { by_entry: true }));
        }
        if allowed.downstream && found.items.iter().any(|entry| entry.downstream) {
            return Ok(Some(As::Downstream(DownstreamCaller { id: id.clone() })));
        }
        Ok(None)
    }

    /// The checks of an agent (pkg/server/endpoints/middleware.go, AgentAuthorizer). A new SVID that is used for the first
    /// time becomes the current one.
    async fn agent(&self, id: &SpiffeId, serial: &str, expires_at: Timestamp) -> Result<(), Denial> {
        if self.clock.now() > expires_at {
            tracing::error!("Agent SVID is expired");
            return Err(Denial::Denied(Some(Reason::AgentExpired)));
        }
        if self.remembers(id, serial) {
            return Ok(());
        }
        let known = self.knows(id, serial);
        let node = match patiently(known, self.live.store().node_row(id)).await {
            Ok(node) => node,
            // Nobody can attest, renew or ban while the database is away: what was true of an agent still is.
            Err(error @ datastore::Error::Unavailable(_)) if known && self.knows(id, serial) => {
                tracing::warn!(
                    error = %error,
                    agent_id = %id,
                    "The datastore is not available; the agent is served as it was known last"
                );
                return Ok(());
            }
            Err(error) => {
                tracing::error!(error = %error, "Unable to look up agent information");
                let message = format!("unable to look up agent information: {error}");
                return Err(failed(Code::Internal, message));
            }
        };
        let Some(node) = node else {
            tracing::error!("Agent is not attested");
            return Err(Denial::Denied(Some(Reason::AgentNotAttested)));
        };
        if node.serial_number.is_empty() {
            tracing::error!("Agent is banned");
            return Err(Denial::Denied(Some(Reason::AgentBanned)));
        }
        if *node.serial_number == *serial {
            self.remember(id, serial);
            return Ok(());
        }
        if *node.new_serial_number == *serial {
            return self.promote(node, serial).await;
        }
        tracing::error!(
            svid_serial_num = serial,
            serial_num = &*node.serial_number,
            "Agent SVID is not active"
        );
        Err(Denial::Denied(Some(Reason::AgentNotActive)))
    }

    async fn promote(&self, node: Node, serial: &str) -> Result<(), Denial> {
        let update = NodeUpdate {
            serial_number: Some(node.new_serial_number.clone()),
            expires_at: Some(node.new_expires_at.unwrap_or(Timestamp::EPOCH)),
            new_serial_number: Some(Box::default()),
            new_expires_at: Some(None),
            can_reattest: Some(node.can_reattest),
            agent_version: None,
        };
        self.live.update_node(&node.spiffe_id, &update).await.map_err(|error| {
            tracing::warn!(
                svid_serial_num = serial,
                serial_num = &*node.serial_number,
                new_serial_num = &*node.new_serial_number,
                error = %error,
                "Unable to activate the new agent SVID"
            );
            failed(Code::Internal, format!("unable to activate the new agent SVID: {error}"))
        })?;
        self.remember(&node.spiffe_id, serial);
        Ok(())
    }

    fn remembers(&self, id: &SpiffeId, serial: &str) -> bool {
        if self.staleness.is_zero() {
            return false;
        }
        let proven = self.proven.lock();
        proven.get(id).is_some_and(|(known, at)| **known == *serial && at.elapsed() < self.staleness)
    }

    /// Whether the agent has this SVID as far as the view was told, which hears of bans and evictions.
    fn knows(&self, id: &SpiffeId, serial: &str) -> bool {
        self.live.view().agent(id).is_some_and(|agent| *agent.serial_number == *serial)
    }

    fn remember(&self, id: &SpiffeId, serial: &str) {
        if !self.staleness.is_zero() {
            self.proven.lock().insert(id, serial, self.staleness);
        }
    }
}

impl std::fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorizer").field("admin_ids", &self.admin_ids).finish_non_exhaustive()
    }
}

impl Denial {
    /// The answer to the caller, logged.
    pub(super) fn into_status(self, full_method: &str) -> Status {
        match self {
            Self::Denied(reason) => {
                let message = format!("authorization denied for method {full_method}");
                let status = match reason {
                    Some(reason) => denied(reason, message),
                    None => Status::permission_denied(message),
                };
                tracing::error!(error = %go_error(&status), "Failed to authenticate caller");
                status
            }
            Self::Failed(status) => {
                tracing::error!(error = %go_error(&status), "Authorization failure from OPA auth");
                *status
            }
        }
    }
}

fn failed(code: Code, message: String) -> Denial {
    Denial::Failed(Box::new(Status::new(code, message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembered_agents_are_bounded_and_the_latest_stay() {
        let agent = |n: usize| SpiffeId::parse(&format!("spiffe://example.org/a{n}")).unwrap();
        let mut proven = Proven::default();
        for n in 0..3 * GENERATION_MAX {
            proven.insert(&agent(n), "1", Duration::from_secs(3600));
        }
        assert!(proven.young.len() + proven.old.len() <= 2 * GENERATION_MAX);
        assert!(proven.get(&agent(0)).is_none());
        assert!(proven.get(&agent(2 * GENERATION_MAX)).is_some());
        proven.remove(&agent(2 * GENERATION_MAX));
        assert!(proven.get(&agent(2 * GENERATION_MAX)).is_none());
    }
}
