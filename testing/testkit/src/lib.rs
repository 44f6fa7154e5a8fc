//! What tests of whole programs need: processes that end with the value that owns them, their logs as they are
//! written, one-shot commands, folders and ports of a test's own, configuration files, and a redactor that makes
//! outputs comparable. It knows the programs' names and arguments from outside only.
//!
//! Nothing here waits for a time to pass: every wait is for a condition and has a bound after which it is an error.

pub mod authority;
pub mod command;
pub mod config;
pub mod daemon;
pub mod database;
pub mod error;
pub mod kubernetes;
pub mod place;
pub mod proxy;
pub mod redact;
pub mod sigstore;
pub mod swtpm;
pub mod wait;
pub mod web;

pub use command::{Output, Run};
pub use daemon::Daemon;
pub use error::{Error, Result};
