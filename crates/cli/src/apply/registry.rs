//! What is asked of a server: a trait, so that the same rounds run against a model in tests, and its form over the API.

use spire_wire::api::server::entry::v1 as entries;
use spire_wire::api::server::entry::v1::entry_client::EntryClient;
use spire_wire::api::server::trustdomain::v1 as relationships;
use spire_wire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use spire_wire::api::types;
use spire_wire::api::types::{FederationRelationship, FederationRelationshipMask};
use tonic::Code;
use tonic::transport::Channel;

use crate::failure::{Doing, Failure};

/// Entries of one page: an answer stays below the 4 MiB that gRPC clients take.
const PAGE_SIZE: i32 = 500;

/// What became of an item of a batch.
pub(super) struct Answer {
    pub(super) status: types::Status,
    /// As the server has it now, where it says so.
    pub(super) entry: Option<types::Entry>,
}

/// A server's entries and relationships. A failure is one of the call; items fail by their answers.
pub(super) trait Registry {
    /// A page, and the token of the next one; empty at the end.
    async fn page(&mut self, token: String) -> Result<(Vec<types::Entry>, String), Failure>;
    /// The entry with this ID.
    async fn entry(&mut self, id: &str) -> Result<Option<types::Entry>, Failure>;
    /// The entry with the same SPIFFE ID, parent and selectors.
    async fn similar(&mut self, entry: &types::Entry) -> Result<Option<types::Entry>, Failure>;
    async fn create(&mut self, entries: Vec<types::Entry>) -> Result<Vec<Answer>, Failure>;
    async fn update(&mut self, entries: Vec<types::Entry>) -> Result<Vec<Answer>, Failure>;
    async fn delete(&mut self, ids: Vec<String>) -> Result<Vec<Answer>, Failure>;
    /// All relationships, without bundles.
    async fn relationships(&mut self) -> Result<Vec<FederationRelationship>, Failure>;
    async fn create_relationships(
        &mut self,
        all: Vec<FederationRelationship>,
    ) -> Result<Vec<Answer>, Failure>;
    /// Changes all but bundles.
    async fn update_relationships(
        &mut self,
        all: Vec<FederationRelationship>,
    ) -> Result<Vec<Answer>, Failure>;
    /// Deletes those with these trust domains; the bundles stay.
    async fn delete_relationships(&mut self, trust_domains: Vec<String>) -> Result<Vec<Answer>, Failure>;
}

/// A server by its API.
pub(super) struct Server {
    entries: EntryClient<Channel>,
    relationships: TrustDomainClient<Channel>,
    /// Of listings.
    pub(super) filter: Option<entries::list_entries_request::Filter>,
}

impl Server {
    pub(super) fn new(channel: Channel) -> Self {
        Self {
            entries: EntryClient::new(channel.clone()),
            relationships: TrustDomainClient::new(channel),
            filter: None,
        }
    }
}

/// Without bundles, which are large and which the server renews itself.
const WITHOUT_BUNDLES: FederationRelationshipMask = FederationRelationshipMask {
    bundle_endpoint_url: true,
    bundle_endpoint_profile: true,
    trust_domain_bundle: false,
};

fn answer(status: Option<types::Status>, entry: Option<types::Entry>) -> Answer {
    Answer { status: status.unwrap_or_default(), entry }
}

/// There must be an answer an item, or what became of which could not be told.
fn complete(answers: Vec<Answer>, asked: usize) -> Result<Vec<Answer>, Failure> {
    if answers.len() == asked { Ok(answers) } else { Err(Failure::missing("results")) }
}

impl Registry for Server {
    async fn page(&mut self, page_token: String) -> Result<(Vec<types::Entry>, String), Failure> {
        let request = entries::ListEntriesRequest {
            filter: self.filter.clone(),
            page_size: PAGE_SIZE,
            page_token,
            output_mask: None,
        };
        let page = self.entries.list_entries(request).await.doing("error fetching entries")?.into_inner();
        Ok((page.entries, page.next_page_token))
    }

    async fn entry(&mut self, id: &str) -> Result<Option<types::Entry>, Failure> {
        let request = entries::GetEntryRequest { id: id.to_owned(), output_mask: None };
        match self.entries.get_entry(request).await {
            Ok(entry) => Ok(Some(entry.into_inner())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status).doing(format_args!("error fetching entry ID {id}")),
        }
    }

    async fn similar(&mut self, entry: &types::Entry) -> Result<Option<types::Entry>, Failure> {
        let request = entries::ListEntriesRequest {
            filter: Some(entries::list_entries_request::Filter {
                by_spiffe_id: entry.spiffe_id.clone(),
                by_parent_id: entry.parent_id.clone(),
                by_selectors: Some(types::SelectorMatch {
                    selectors: entry.selectors.clone(),
                    r#match: types::selector_match::MatchBehavior::MatchExact as i32,
                }),
                ..Default::default()
            }),
            page_size: 1,
            ..Default::default()
        };
        let page = self.entries.list_entries(request).await.doing("error fetching entries")?.into_inner();
        Ok(page.entries.into_iter().next())
    }

    async fn create(&mut self, entries: Vec<types::Entry>) -> Result<Vec<Answer>, Failure> {
        let asked = entries.len();
        let request = entries::BatchCreateEntryRequest { entries, output_mask: None };
        let response = self.entries.batch_create_entry(request).await.doing("error creating entries")?;
        complete(
            response.into_inner().results.into_iter().map(|r| answer(r.status, r.entry)).collect(),
            asked,
        )
    }

    async fn update(&mut self, entries: Vec<types::Entry>) -> Result<Vec<Answer>, Failure> {
        let asked = entries.len();
        let request = entries::BatchUpdateEntryRequest {
            entries,
            output_mask: Some(Default::default()),
            input_mask: None,
        };
        let response = self.entries.batch_update_entry(request).await.doing("error updating entries")?;
        complete(response.into_inner().results.into_iter().map(|r| answer(r.status, None)).collect(), asked)
    }

    async fn delete(&mut self, ids: Vec<String>) -> Result<Vec<Answer>, Failure> {
        let asked = ids.len();
        let request = entries::BatchDeleteEntryRequest { ids };
        let response = self.entries.batch_delete_entry(request).await.doing("error deleting entries")?;
        complete(response.into_inner().results.into_iter().map(|r| answer(r.status, None)).collect(), asked)
    }

    async fn relationships(&mut self) -> Result<Vec<FederationRelationship>, Failure> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = relationships::ListFederationRelationshipsRequest {
                output_mask: Some(WITHOUT_BUNDLES),
                page_size: PAGE_SIZE,
                page_token,
            };
            let page = self.relationships.list_federation_relationships(request).await;
            let page = page.doing("error listing federation relationships")?.into_inner();
            all.extend(page.federation_relationships);
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            page_token = page.next_page_token;
        }
    }

    async fn create_relationships(
        &mut self,
        all: Vec<FederationRelationship>,
    ) -> Result<Vec<Answer>, Failure> {
        let asked = all.len();
        let request = relationships::BatchCreateFederationRelationshipRequest {
            federation_relationships: all,
            output_mask: Some(WITHOUT_BUNDLES),
        };
        let response = self.relationships.batch_create_federation_relationship(request).await;
        let results = response.doing("error creating federation relationships")?.into_inner().results;
        complete(results.into_iter().map(|r| answer(r.status, None)).collect(), asked)
    }

    async fn update_relationships(
        &mut self,
        all: Vec<FederationRelationship>,
    ) -> Result<Vec<Answer>, Failure> {
        let asked = all.len();
        let request = relationships::BatchUpdateFederationRelationshipRequest {
            federation_relationships: all,
            input_mask: Some(WITHOUT_BUNDLES),
            output_mask: Some(WITHOUT_BUNDLES),
        };
        let response = self.relationships.batch_update_federation_relationship(request).await;
        let results = response.doing("error updating federation relationships")?.into_inner().results;
        complete(results.into_iter().map(|r| answer(r.status, None)).collect(), asked)
    }

    async fn delete_relationships(&mut self, trust_domains: Vec<String>) -> Result<Vec<Answer>, Failure> {
        let asked = trust_domains.len();
        let request = relationships::BatchDeleteFederationRelationshipRequest { trust_domains };
        let response = self.relationships.batch_delete_federation_relationship(request).await;
        let results = response.doing("error deleting federation relationships")?.into_inner().results;
        complete(results.into_iter().map(|r| answer(r.status, None)).collect(), asked)
    }
}
