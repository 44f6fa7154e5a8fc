//! What the server knows: all entries, and the agents that they lead to.

use spire_core::explain::{Chain, Chains, Near, Node, nearest};
use spire_core::model::{Entry, EntryId};
use spire_core::spiffe::{Selector, Selectors, SpiffeId, TrustDomain};
use spire_wire::api::server::agent::v1::agent_client::AgentClient;
use spire_wire::api::server::agent::v1::{GetAgentRequest, ListAgentsRequest};
use spire_wire::api::server::entry::v1::ListEntriesRequest;
use spire_wire::api::server::entry::v1::entry_client::EntryClient;
use spire_wire::api::types;
use tonic::transport::Channel;

use crate::failure::{Doing, Failure};

/// Entries of one page: an answer stays below the 4 MiB that gRPC clients take.
const PAGE_SIZE: i32 = 500;

/// Agents to look at where the agent does not say which one it is.
const AGENTS_MAX: i32 = 200;

/// Entries to show.
const NEAR_MAX: usize = 5;

/// All entries and the agents that matter.
pub(super) struct Registry {
    entries: Vec<Entry>,
    nodes: Vec<Node>,
    /// Whether `nodes` is the agent that explained, and not every agent.
    is_known_agent: bool,
}

/// How an entry leads to an agent.
pub(super) struct Way {
    pub(super) agent: SpiffeId,
    pub(super) chain: Chain,
}

impl Registry {
    /// Asks the server.
    pub(super) async fn load(channel: Channel, agent: Option<&types::Spiffeid>) -> Result<Self, Failure> {
        let entries = entries(channel.clone()).await?;
        let mut agents = AgentClient::new(channel);
        let found = match agent {
            Some(id) => {
                let request = GetAgentRequest { id: Some(id.clone()), output_mask: None };
                vec![agents.get_agent(request).await.doing("error fetching the agent")?.into_inner()]
            }
            None => {
                let request = ListAgentsRequest { page_size: AGENTS_MAX, ..Default::default() };
                agents.list_agents(request).await.doing("error fetching agents")?.into_inner().agents
            }
        };
        let node = |agent: types::Agent| {
            Some(Node { id: spiffe_id(agent.id.as_ref())?, selectors: selectors(&agent.selectors) })
        };
        let nodes = found.into_iter().filter_map(node).collect();
        Ok(Self { entries, nodes, is_known_agent: agent.is_some() })
    }

    /// What a server would have said.
    #[cfg(test)]
    pub(super) fn of(entries: Vec<Entry>, nodes: Vec<Node>, is_known_agent: bool) -> Self {
        Self { entries, nodes, is_known_agent }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Entries that match these selectors and are none of `known`.
    pub(super) fn matching<'r>(
        &'r self,
        workload: &'r Selectors,
        known: &'r [EntryId],
    ) -> impl Iterator<Item = &'r Entry> {
        let matches = |entry: &Entry| {
            !entry.selectors.is_empty() && entry.selectors.is_subset_of(workload) && !entry.store_svid
        };
        self.for_workloads().filter(move |entry| matches(entry) && !known.contains(&entry.id)).take(NEAR_MAX)
    }

    /// The entries that come nearest to matching.
    pub(super) fn nearest(&self, workload: &Selectors) -> Vec<Near<&Entry>> {
        nearest(self.for_workloads().filter(|entry| !entry.store_svid), workload, NEAR_MAX)
    }

    fn for_workloads(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|e| e.parent_id != SpiffeId::server(&e.parent_id.trust_domain()))
    }

    /// How an entry leads to the agent; to any agent where it is not known which one explained.
    pub(super) fn ways(&self, entry: &Entry) -> Vec<Way> {
        let chains = Chains::new(&self.entries);
        let ways =
            self.nodes.iter().map(|node| Way { agent: node.id.clone(), chain: chains.of(entry, node) });
        let mut ways: Vec<Way> = ways.collect();
        if !self.is_known_agent && ways.iter().any(|way| matches!(way.chain, Chain::Reaches(_))) {
            ways.retain(|way| matches!(way.chain, Chain::Reaches(_)));
        }
        ways.truncate(NEAR_MAX);
        ways
    }
}

async fn entries(channel: Channel) -> Result<Vec<Entry>, Failure> {
    let mut client = EntryClient::new(channel);
    let mut entries = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListEntriesRequest { page_size: PAGE_SIZE, page_token, ..Default::default() };
        let page = client.list_entries(request).await.doing("error fetching entries")?.into_inner();
        entries.extend(page.entries.iter().filter_map(entry));
        if page.next_page_token.is_empty() {
            return Ok(entries);
        }
        page_token = page.next_page_token;
    }
}

/// What matters of an entry. One with an invalid ID leads nowhere.
fn entry(entry: &types::Entry) -> Option<Entry> {
    let (id, parent) = (spiffe_id(entry.spiffe_id.as_ref())?, spiffe_id(entry.parent_id.as_ref())?);
    let mut found =
        Entry::new(EntryId::from_stored(entry.id.clone()), parent, id, selectors(&entry.selectors));
    found.store_svid = entry.store_svid;
    Some(found)
}

pub(super) fn spiffe_id(id: Option<&types::Spiffeid>) -> Option<SpiffeId> {
    let id = id?;
    SpiffeId::from_path(&TrustDomain::parse(&id.trust_domain).ok()?, &id.path).ok()
}

pub(super) fn selectors(all: &[types::Selector]) -> Selectors {
    all.iter().map(|s| Selector::from_stored(s.r#type.clone(), s.value.clone())).collect()
}
