//! The server's certificate authority.
//!
//! Two planes. [`ServerCa`] signs: it reads the active authorities behind atomic pointers, takes no lock
//! and writes nothing. [`Authorities`] decides which authorities are active: it drives the slot machines
//! of [`spire_core::authority`] over KeyManager, UpstreamAuthority and datastore, one effect after the
//! other, and hands each newly active authority to the signing plane. [`ServerSvid`] keeps the server's
//! own X.509-SVID fresh, and [`BundleChanges`] tells everybody who shows the bundle to others.
//!
//! Starting, recovering and rotating are the same path: load what the journal and the keys allow, then do
//! what the machine says is due. Everything the background tasks do is idempotent and takes no input.

mod active;
mod authorities;
mod bundle;
mod compose;
mod config;
mod error;
mod load;
mod operations;
mod prepare;
mod restore;
mod server_svid;
mod sign;
mod tasks;
mod tokens;
mod upstream;
mod validate;

pub use active::{ActiveKey, ActiveX509};
pub use authorities::{Authorities, CaPorts};
pub use bundle::BundleChanges;
pub use config::CaConfig;
pub use error::{CaError, SignError};
pub use server_svid::{ServerSvid, ServerX509Svid};
pub use sign::{ServerCa, SignedX509, WorkloadX509Params};
pub use tasks::run;
pub use tokens::{SignedToken, WorkloadJwtParams, WorkloadWitParams};
pub use validate::CredentialError;

#[cfg(test)]
mod tests;
