//! Why an agent stops.

use spire_net::uds::BindError;
use spire_ports::observe::GrpcCode;
use spire_ports::plugins;
use tonic::{Code, Status};

use super::attest::AttestError;
use super::bootstrap::BootstrapError;
use super::client::{CallError, ClientSetupError};
use super::status::{Verdict, is_unknown_authority, verdict};
use super::storage::StorageError;

/// A failure that the agent cannot get over. Its text is what the reference logs with `Agent crashed`.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The data folder cannot be made.
    #[error("unable to create data directory: mkdir {path}: {reason}")]
    DataDir {
        /// The folder.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// The stored data cannot be used.
    #[error("failed to open storage: {0}")]
    OpenStorage(StorageError),
    /// The data cannot be stored.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// There is no trust to start with.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The server did not attest the agent.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The connection cannot be set up.
    #[error(transparent)]
    Setup(#[from] ClientSetupError),
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The server's certificate is of an authority that the bundle does not have.
    #[error("failed to sync with SPIRE Server: {0}")]
    UnknownAuthority(CallError),
    /// The agent's SVID expired before a new one could be had.
    #[error("current SVID has already expired and {doing} failed: {cause}")]
    SvidExpired {
        /// `rotate agent SVID` or `reattest agent`.
        doing: &'static str,
        /// Why there is no new one.
        cause: Box<AgentError>,
    },
    /// The key manager failed.
    #[error(transparent)]
    KeyManager(#[from] plugins::Error),
    /// The agent's certificate and key do not go together.
    #[error("agent SVID cannot be used: {0}")]
    Identity(String),
    /// The socket cannot be made.
    #[error("create UDS listener: {0}")]
    Bind(#[from] BindError),
    /// The admin socket cannot be made.
    #[error("error creating UDS listener: {0}")]
    AdminBind(#[source] BindError),
    /// The Broker API is asked for and nobody may call it.
    #[error("at least one broker is required")]
    NoBrokers,
    /// A socket of the Broker API cannot be made.
    #[error("failed to listen on broker address {address}: {reason}")]
    BrokerBind {
        /// The address, quoted.
        address: String,
        /// Why.
        reason: String,
    },
    /// The APIs stopped by themselves.
    #[error("{0}")]
    Serve(String),
    /// Re-bootstrapping is asked for and cannot be had.
    #[error(
        "you have requested rebootstrap support but the NodeAttestor plugin or the spire server configuration is not allowing it"
    )]
    RebootstrapNotAllowed,
    /// The agent must start again to find new trust.
    #[error("Agent needs to rebootstrap. shutting down")]
    Rebootstrap,
    /// The same, found out while it was running (pkg/agent/manager).
    #[error("shutting down for rebootstrapping")]
    Rebootstrapping,
    /// The agent was told to attest again and its node attestor does not allow it.
    #[error("attestation method is not re-attestable")]
    NotReattestable,
}

impl AgentError {
    /// What the server's answer means for the agent, when there is one.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Call(error) | Self::UnknownAuthority(error) => verdict(&error.status),
            Self::Attest(error) => error.status().map_or(Verdict::Retry, verdict),
            Self::SvidExpired { cause, .. } => cause.verdict(),
            _ => Verdict::Retry,
        }
    }

    /// Whether an attestation failed on its way to the server, so that nothing was decided about the agent.
    pub(super) fn is_unreachable(&self) -> bool {
        let Self::Attest(error) = self else { return false };
        let lost = |status: &Status| matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
        error.status().is_some_and(lost) && !self.is_unknown_authority()
    }

    /// Whether the server's certificate leads to no authority that we know.
    pub fn is_unknown_authority(&self) -> bool {
        match self {
            Self::Call(_) | Self::UnknownAuthority(_) | Self::Attest(_) => is_unknown_authority(self),
            _ => false,
        }
    }
}

impl GrpcCode for AgentError {
    fn grpc_code(&self) -> &'static str {
        match self {
            Self::Call(error) | Self::UnknownAuthority(error) => error.grpc_code(),
            Self::Attest(error) => error.grpc_code(),
            Self::KeyManager(error) => error.grpc_code(),
            Self::SvidExpired { cause, .. } => cause.grpc_code(),
            _ => "Unknown",
        }
    }
}
