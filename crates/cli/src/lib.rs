//! The commands of both binaries: flags as tables, thin API clients, printers.
//!
//! | module | what it does |
//! |---|---|
//! | `env` | everything a command may touch: streams, variables, directory, clock |
//! | `dispatch` | finds a command by its words; help texts, as mitchellh/cli prints them |
//! | `call` | parses a command's flags, connects to a socket, prints what went wrong |
//! | `socket` | which socket: flag, instance, environment, default |
//! | `output` | `-output pretty|json`; `view` is JSON as the reference prints messages |
//! | `server`, `agent` | a module for each group of commands |
//! | `explain` | `spire explain`, which asks both sides |
//! | `apply` | `spire apply` and `spire export`: entries and relationships as files |
//!
//! This crate is the only one that prints, and prints through [`Env`] only: every command runs in tests as it does in a
//! terminal. What `run` and `validate` need lies above this crate, so the binaries hand it in as hooks.

mod apply;
mod call;
mod completion;
mod dispatch;
mod env;
mod explain;
mod failure;
mod files;
mod input;
mod invalid;
mod output;
mod pretty;
mod socket;
mod view;
mod zone;

mod agent;
mod server;

pub use agent::{AgentHooks, AgentRunFlags, agent};
pub use apply::{apply, export};
pub use env::Env;
pub use explain::explain;
pub use invalid::Invalid;
pub use server::{ServerHooks, ServerRunFlags, server};
