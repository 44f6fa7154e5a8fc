//! Plugins for servers and agents of SPIRE, this project's and the original ones, in Rust.
//!
//! A plugin is a program that implements one of the generated service traits of [`wire`], says so to a
//! [`Plugin`], and runs it:
//!
//! ```no_run
//! use spire_plugin_sdk::wire::agent::workloadattestor::v1::workload_attestor_server::{
//!     WorkloadAttestor, WorkloadAttestorServer,
//! };
//! use spire_plugin_sdk::wire::agent::workloadattestor::v1::{
//!     AttestReferenceRequest, AttestReferenceResponse, AttestRequest, AttestResponse,
//! };
//! use spire_plugin_sdk::{Kind, Plugin, Request, Response, Status, async_trait};
//!
//! struct Everyone;
//!
//! #[async_trait]
//! impl WorkloadAttestor for Everyone {
//!     async fn attest(&self, _: Request<AttestRequest>) -> Result<Response<AttestResponse>, Status> {
//!         Ok(Response::new(AttestResponse { selector_values: vec!["everyone".into()] }))
//!     }
//!
//!     async fn attest_reference(
//!         &self,
//!         _: Request<AttestReferenceRequest>,
//!     ) -> Result<Response<AttestReferenceResponse>, Status> {
//!         Err(Status::unimplemented("by process ID only"))
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     Plugin::new(Kind::WorkloadAttestor).service(WorkloadAttestorServer::new(Everyone)).run()
//! }
//! ```
//!
//! [`Configure`] takes the plugin's configuration, [`Host`] reaches what the host offers, and events of `tracing`
//! go to the host's log with their fields. The protocol is that of hashicorp/go-plugin over a unix socket, without TLS.

mod broker;
mod configure;
mod handshake;
mod host;
mod log;
mod plugin;

pub use configure::{Configure, CoreConfiguration, Validation};
pub use host::Host;
pub use plugin::{Kind, Plugin, ServeError};
pub use spire_compat::hcl;
/// Messages and service traits of all plugin types.
pub use spire_wire::plugin as wire;
pub use tonic::{Code, Request, Response, Status, Streaming, async_trait};
