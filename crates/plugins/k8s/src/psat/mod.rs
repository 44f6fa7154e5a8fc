//! `k8s_psat`: an agent shows the token that Kubernetes projects into its pod, and the server asks the API server of that
//! cluster whose it is (pkg/server/plugin/nodeattestor/k8spsat, pkg/agent/plugin/nodeattestor/k8spsat).

pub(crate) mod agent;
pub(crate) mod server;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, ZeroizeOnDrop};

const NAME: &str = "k8s_psat";

/// What the agent sends.
#[derive(Deserialize, Serialize)]
struct Payload {
    #[serde(default)]
    cluster: String,
    #[serde(default)]
    token: String,
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

impl ZeroizeOnDrop for Payload {}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}
