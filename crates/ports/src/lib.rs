//! Ports: the traits between the application and the world, each with the suite that every adapter of it
//! must pass.
//!
//! The application (server, agent) sees these traits only; which store, plugin or metrics sink stands
//! behind them is decided in the binaries.

pub mod datastore;
pub mod observe;
pub mod plugins;
pub mod policy;
