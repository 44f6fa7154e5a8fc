//! The OIDC discovery provider: the program, and the same documents from the server.

mod acme;
mod beside;
mod clients;
mod commands;
mod limits;
mod provider;
mod raw;
mod sources;

use crate::harness::Case;

pub(crate) fn cases() -> Vec<Case> {
    [acme::cases(), beside::cases(), clients::cases(), commands::cases(), limits::cases(), sources::cases()]
        .into_iter()
        .flatten()
        .collect()
}
