//! SPIRE server: the application behind its binaries.
//!
//! | module | what it does |
//! |---|---|
//! | [`config`] | configuration: as written, then resolved |
//! | [`ca`] | authorities, signing, the server's own SVID |
//! | [`entries`] | the live view of entries and agents, and the writes that change it |
//! | [`attest`] | node attestation |
//! | [`federation`] | our bundle for other trust domains, and theirs for us |
//! | [`runtime`] | a whole server, from a configuration to listeners |
//! | [`api`] | SPIRE's services, a module for each; callers are proven by types |
//! | `push` | our service that tells agents at once that something changed |
//!
//! It sees ports only: which store and plugins stand behind them is decided in the binaries.

pub mod api;
pub mod attest;
pub mod ca;
pub mod clock;
pub mod config;
pub mod entries;
pub mod federation;
mod outage;
pub(crate) mod push;
pub mod runtime;

#[cfg(test)]
mod testing;
