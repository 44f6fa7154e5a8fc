//! The agent: it joins a server, attests the workloads of its machine and gives them their identities.
//!
//! [`config`] resolves what the operator wrote, [`runtime`] does the work, [`api`] answers workloads. Stores and
//! plugins are seen as traits only; which ones stand behind them is decided in the binary.

pub mod api;
pub mod assembly;
pub mod config;
#[cfg(test)]
mod fixture;
mod metered;
mod reload;
pub mod runtime;
#[cfg(test)]
mod tests;
