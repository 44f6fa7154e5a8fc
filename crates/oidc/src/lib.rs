//! The OIDC discovery provider: our JWT keys for whatever believes an OpenID Connect issuer.
//!
//! | module | what it does |
//! |---|---|
//! | [`command`] | the command line |
//! | [`config`] | the configuration file, and the block of a server |
//! | [`source`] | where the keys come from, asked again and again |
//! | `document` | the two documents, encoded once |
//! | `answer` | requests and answers, byte for byte as the reference's |
//! | [`health`] | probes |
//! | [`listen`] | HTTPS with a certificate of ACME or from files, HTTP on a port or a unix socket |
//! | [`provider`] | all of it as a program |
//! | [`embedded`] | all of it within a server |
//!
//! Everybody may read what is served; what must not happen is that somebody else chooses the name that it is served under.
//! See [`domains`].

mod answer;
pub mod command;
pub mod config;
mod content;
mod document;
pub mod domains;
pub mod embedded;
#[cfg(test)]
mod fixture;
pub mod health;
pub mod listen;
pub mod provider;
mod reply;
pub mod routes;
pub mod source;

pub use answer::Service;
pub use document::{JwtKey, KeySet};
