//! The plugin ports: one trait for each plugin type.
//!
//! Built-in plugins implement these traits directly; external ones stand behind the same traits. A plugin
//! exists only configured: its constructor takes the configuration, and a new configuration makes a new
//! object.
//!
//! # Errors
//! Every call may fail with an [`Error`] of a kind that the plugin chooses; an external plugin's is the status code of
//! its answer. Where callers tell kinds apart, the call says so.

mod agent_node_attestor;
mod bundle_publisher;
pub mod catalog;
#[cfg(feature = "conformance")]
pub mod conformance;
mod credential_composer;
mod error;
pub mod external;
mod host;
mod key_manager;
pub mod load;
mod node_attestor;
mod notifier;
mod reload;
mod svid_store;
mod upstream_authority;
mod workload_attestor;

pub use agent_node_attestor::{AgentNodeAttestor, AttestationStream};
pub use bundle_publisher::BundlePublisher;
pub use credential_composer::{CredentialComposer, JwtSvidAttributes, X509CaAttributes, X509SvidAttributes};
pub use error::{Error, ErrorKind, PluginType, Result};
pub use host::{AgentStore, Host, HostError, IdentityProvider, LateBound, X509Identity};
pub use key_manager::{Key, KeyManager};
pub use node_attestor::{Attestation, Challenger, NodeAttestor};
pub use notifier::Notifier;
pub use svid_store::{StoredSvid, SvidStore};
pub use upstream_authority::{
    JwtAuthorityUpdates, LocalBundle, LocalBundleUpdates, MintedCa, UpstreamAuthority, X509AuthorityUpdates,
};
pub use workload_attestor::{WorkloadAttestor, WorkloadReference};
