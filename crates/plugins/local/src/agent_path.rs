//! `agent_path_template`: the path of an agent's ID (pkg/common/agentpathtemplate, pkg/common/idutil).

use spire_compat::quote::quote;
use spire_compat::template::{Template, Value};
use spire_core::spiffe::{SpiffeId, TrustDomain};

/// A template for agents' paths.
#[derive(Debug)]
pub(crate) struct AgentPath(Template);

impl AgentPath {
    /// Parses what is configured. `not_built` are names that the reference's data has and ours has not; they are refused
    /// here rather than at the first attestation.
    ///
    /// # Errors
    /// The reference's text, and behind it what is wrong.
    pub(crate) fn parse(text: &str, not_built: &[&str]) -> Result<Self, String> {
        let template = Template::parse(text)
            .map_err(|error| format!("failed to parse agent svid template: {}: {error}", quote(text)))?;
        if let Some(name) = template.names().find(|name| not_built.contains(name)) {
            return Err(format!("agent_path_template uses .{name}, which is not built"));
        }
        Ok(Self(template))
    }

    /// The ID of an agent.
    ///
    /// # Errors
    /// Why the template failed, or why its result is no path of a SPIFFE ID.
    pub(crate) fn agent_id(&self, trust_domain: &TrustDomain, data: &Value) -> Result<SpiffeId, String> {
        let path = self.0.execute(data).map_err(|error| error.to_string())?;
        SpiffeId::agent(trust_domain, &path)
            .map_err(|error| format!("invalid agent path suffix {}: {error}", quote(&path)))
    }
}
