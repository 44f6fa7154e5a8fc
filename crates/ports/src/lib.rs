//! Ports: the traits between the application and the world. Those of the datastore and of key managers have a suite that every
//! adapter must pass.
//!
//! The application (server, agent) sees these traits only; which store, plugin or metrics sink stands
//! behind them is decided in the binaries.

pub mod datastore;
pub mod observe;
pub mod plugins;
pub mod policy;
