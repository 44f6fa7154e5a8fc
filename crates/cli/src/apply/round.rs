//! One round: compares the files with the server and makes the server as the files say.
//!
//! It keeps digests of what the server has and of which IDs the files have, nothing else: files and listings are read
//! item by item. Work goes out in batches of bounded size; what was done already is found to be done, so a run that was cut
//! off goes on where it was when it is started again.

use std::collections::BTreeMap;

use prost::Message;
use spire_wire::api::types;
use spire_wire::api::types::FederationRelationship;
use tonic::Code;

use super::content::{content, entry_changes, normalize, relationship_changes};
use super::known::{Known, Verdict};
use super::owner::Owner;
use super::registry::{Answer, Registry};
use super::report::{Action, Report, Subject, Tally};
use super::sources::{Item, Place, Sources, Survey, Trouble, own};
use crate::failure::Failure;
use crate::pretty::id_text;

/// Items of one call, and about how many octets: a quarter of what a gRPC server takes.
const BATCH_ITEMS: usize = 500;
const BATCH_OCTETS: usize = 1 << 20;

/// What a run may do.
#[derive(Clone, Debug, Default)]
pub(super) struct Policy {
    pub(super) owner: Option<Owner>,
    /// Delete entries of the owner that no file has.
    pub(super) prune: bool,
    /// Delete relationships that no file has. The files are all that the server is to federate with then: a relationship
    /// has no ID that could carry an owner.
    pub(super) prune_federation: bool,
    /// Do so even where the files have none of them.
    pub(super) allow_empty: bool,
    pub(super) dry_run: bool,
}

/// Runs a round.
///
/// # Errors
/// A file or a call as a whole; what was done before stays done. Items that fail are told and counted.
pub(super) async fn round<R: Registry>(
    registry: &mut R,
    sources: &Sources,
    survey: &Survey,
    policy: &Policy,
    report: &mut Report<'_>,
) -> Result<Tally, Failure> {
    if policy.prune && survey.entries == 0 && !policy.allow_empty {
        return Err(Failure::new(
            "the files have no entry, so pruning would delete all of the owner's; -allow-empty says that this is meant",
        ));
    }
    if policy.prune_federation && survey.relationships.is_empty() && !policy.allow_empty {
        return Err(Failure::new(
            "the files have no federation relationship, so pruning would delete all of the server's; -allow-empty says that \
             this is meant",
        ));
    }
    let mut round = Round {
        registry,
        sources,
        survey,
        policy,
        report,
        known: Known::default(),
        batch: Batch::default(),
        unwanted: Vec::new(),
        tally: Tally::default(),
    };
    // Entries may federate with trust domains that come into being here.
    round.relationships().await?;
    round.learn().await?;
    round.entries().await?;
    if policy.prune {
        round.prune().await?;
    }
    round.prune_relationships().await?;
    Ok(round.tally)
}

struct Round<'r, 'e, R> {
    registry: &'r mut R,
    sources: &'r Sources,
    survey: &'r Survey,
    policy: &'r Policy,
    report: &'r mut Report<'e>,
    known: Known,
    batch: Batch,
    /// Relationships that are to go.
    unwanted: Vec<FederationRelationship>,
    tally: Tally,
}

/// Work that was not sent yet.
#[derive(Default)]
struct Batch {
    creates: Vec<Job>,
    updates: Vec<Job>,
    /// Entries that make way for creations.
    doomed: Vec<String>,
    octets: usize,
}

struct Job {
    action: Action,
    entry: types::Entry,
    place: Place,
}

impl<R: Registry> Round<'_, '_, R> {
    async fn relationships(&mut self) -> Result<(), Failure> {
        if self.survey.relationships.is_empty() && !self.policy.prune_federation {
            return Ok(());
        }
        let mut there: BTreeMap<String, FederationRelationship> = self
            .registry
            .relationships()
            .await?
            .into_iter()
            .map(|relationship| (relationship.trust_domain.clone(), relationship))
            .collect();
        let (mut creates, mut updates) = (Vec::new(), Vec::new());
        for (wanted, place) in &self.survey.relationships {
            let subject = self.relationship_subject(wanted, *place);
            match there.remove(&wanted.trust_domain).as_ref() {
                None => {
                    let nothing = FederationRelationship::default();
                    self.report.planned(Action::Create, &subject, &relationship_changes(&nothing, wanted));
                    creates.push((wanted.clone(), subject));
                }
                Some(found) => match relationship_changes(found, wanted) {
                    changes if changes.is_empty() => self.tally.unchanged += 1,
                    changes => {
                        self.report.planned(Action::Update, &subject, &changes);
                        updates.push((wanted.clone(), subject));
                    }
                },
            }
        }
        if self.policy.prune_federation {
            self.unwanted = there.into_values().collect();
        }
        for (action, all) in [(Action::Create, creates), (Action::Update, updates)] {
            let mut all = all.into_iter();
            loop {
                let (batch, subjects) = relationship_batch(&mut all);
                if batch.is_empty() {
                    break;
                }
                let answers = match action {
                    _ if self.policy.dry_run => done(batch.len()),
                    Action::Create => self.registry.create_relationships(batch).await?,
                    _ => self.registry.update_relationships(batch).await?,
                };
                for (answer, subject) in answers.iter().zip(subjects) {
                    self.count(action, &subject, &answer.status);
                }
            }
        }
        Ok(())
    }

    /// Reads what the server has.
    async fn learn(&mut self) -> Result<(), Failure> {
        let (mut token, mut count) = (String::new(), 0);
        loop {
            let (page, next) = self.registry.page(token).await?;
            for mut entry in page {
                normalize(&mut entry);
                self.known.add(&entry, self.policy.owner.as_ref());
                count += 1;
            }
            self.report.progress("Reading the server's entries:", count, None);
            if next.is_empty() {
                break;
            }
            token = next;
        }
        self.known.sort();
        Ok(())
    }

    async fn entries(&mut self) -> Result<(), Failure> {
        let mut items = self.sources.items();
        let mut count = 0;
        loop {
            match items.next() {
                Ok(None) => break,
                Ok(Some((_, Item::Relationship(_)))) => {}
                Ok(Some((place, Item::Entry(entry)))) => {
                    self.entry(*entry, place).await?;
                    count += 1;
                    self.report.progress("Applying", count, Some(self.survey.entries));
                }
                Err(Trouble::Fatal(failure)) => return Err(failure),
                // The survey found none, so the file is another one now.
                Err(Trouble::Flaw(text)) => return Err(Failure::new(text)),
            }
        }
        self.flush().await
    }

    async fn entry(&mut self, mut entry: types::Entry, place: Place) -> Result<(), Failure> {
        let owner = self.policy.owner.as_ref();
        let is_explicit = own(&mut entry, owner).map_err(Failure::new)?;
        match self.known.judge(&entry, is_explicit, &self.survey.ids, owner, self.policy.prune) {
            Verdict::Same => {
                self.tally.unchanged += 1;
                Ok(())
            }
            Verdict::Create => self.schedule(Action::Create, None, entry, place).await,
            Verdict::UpdateById => {
                let found = self.registry.entry(&entry.id).await?;
                self.schedule(Action::Update, found, entry, place).await
            }
            Verdict::UpdateByKey => {
                let found = self.registry.similar(&entry).await?;
                if let Some(found) = &found {
                    entry.id.clone_from(&found.id);
                }
                self.schedule(Action::Update, found, entry, place).await
            }
            Verdict::Replace => {
                if let Some(found) = self.registry.similar(&entry).await? {
                    self.known.settle(&found.id);
                    self.batch.doomed.push(found.id);
                }
                self.schedule(Action::Replace, None, entry, place).await
            }
            Verdict::Conflict => {
                let id = self.registry.similar(&entry).await?.map(|found| found.id).unwrap_or_default();
                let whose = match owner {
                    Some(owner) if !owner.owns(&id) => {
                        format!(", which does not belong to owner {:?}", owner.name())
                    }
                    Some(_) => "; -prune would replace it".to_owned(),
                    None => String::new(),
                };
                let message = format!(
                    "the same SPIFFE ID, parent and selectors are those of the entry with the ID {id}{whose}"
                );
                let status = types::Status { code: i32::from(Code::AlreadyExists), message };
                let subject = self.entry_subject(&entry, Some(place));
                self.count(Action::Create, &subject, &status);
                Ok(())
            }
        }
    }

    /// Plans to make `found` into `entry`; one that is gone meanwhile is created.
    async fn schedule(
        &mut self,
        action: Action,
        found: Option<types::Entry>,
        entry: types::Entry,
        place: Place,
    ) -> Result<(), Failure> {
        let action = if action == Action::Update && found.is_none() { Action::Create } else { action };
        let mut from = found.unwrap_or_default();
        normalize(&mut from);
        let changes = entry_changes(&from, &entry);
        if action == Action::Update && changes.is_empty() {
            self.tally.unchanged += 1;
            return Ok(());
        }
        let subject = self.entry_subject(&entry, Some(place));
        self.report.planned(action, &subject, &changes);
        self.batch.octets += entry.encoded_len();
        let job = Job { action, entry, place };
        if action == Action::Update {
            self.batch.updates.push(job);
        } else {
            self.batch.creates.push(job);
        }
        let Batch { creates, updates, octets, .. } = &self.batch;
        if creates.len() >= BATCH_ITEMS || updates.len() >= BATCH_ITEMS || *octets >= BATCH_OCTETS {
            self.flush().await?;
        }
        Ok(())
    }

    /// Sends what is planned: updates first, which may leave what creations take.
    async fn flush(&mut self) -> Result<(), Failure> {
        let Batch { creates, updates, doomed, .. } = std::mem::take(&mut self.batch);
        if !updates.is_empty() {
            let entries = updates.iter().map(|job| job.entry.clone()).collect();
            let answers = match self.policy.dry_run {
                true => done(updates.len()),
                false => self.registry.update(entries).await?,
            };
            self.account(updates, answers);
        }
        if !doomed.is_empty() && !self.policy.dry_run {
            for (answer, name) in self.registry.delete(doomed.clone()).await?.iter().zip(doomed) {
                // One that is gone already is as good; for others the creation fails too, and says more.
                if ![0, i32::from(Code::NotFound)].contains(&answer.status.code) {
                    let subject = Subject { kind: ENTRY, name, place: None };
                    self.report.failed(Action::Delete, &subject, &answer.status);
                }
            }
        }
        if !creates.is_empty() {
            let entries = creates.iter().map(|job| job.entry.clone()).collect();
            let answers = match self.policy.dry_run {
                true => done(creates.len()),
                false => self.registry.create(entries).await?,
            };
            self.account(creates, answers);
        }
        Ok(())
    }

    fn account(&mut self, jobs: Vec<Job>, answers: Vec<Answer>) {
        for (Job { action, entry, place }, answer) in jobs.into_iter().zip(answers) {
            let exists = i32::from(Code::AlreadyExists);
            if let (true, Some(mut there)) = (answer.status.code == exists, answer.entry) {
                normalize(&mut there);
                if (entry.id.is_empty() || entry.id == there.id) && content(&there) == content(&entry) {
                    // Somebody else made the same between our look and now.
                    self.tally.unchanged += 1;
                    continue;
                }
            }
            let subject = self.entry_subject(&entry, Some(place));
            self.count(action, &subject, &answer.status);
        }
    }

    /// Deletes the owner's entries that were there at the start and that no file has.
    async fn prune(&mut self) -> Result<(), Failure> {
        let Some(owner) = self.policy.owner.clone() else { return Ok(()) };
        let mut token = String::new();
        loop {
            let (page, next) = self.registry.page(token).await?;
            let mut doomed = Vec::new();
            for mut entry in page {
                if !owner.owns(&entry.id) || !self.known.is_unclaimed(&entry.id) {
                    continue;
                }
                normalize(&mut entry);
                let subject = self.entry_subject(&entry, None);
                let changes = entry_changes(&types::Entry::default(), &entry);
                self.report.planned(Action::Delete, &subject, &changes);
                doomed.push(subject);
            }
            for batch in doomed.chunks(BATCH_ITEMS) {
                let ids = batch.iter().map(|subject| subject.name.clone()).collect();
                let answers = match self.policy.dry_run {
                    true => done(batch.len()),
                    false => self.registry.delete(ids).await?,
                };
                for (answer, subject) in answers.iter().zip(batch) {
                    self.count(Action::Delete, subject, &answer.status);
                }
            }
            if next.is_empty() {
                return Ok(());
            }
            token = next;
        }
    }

    /// Deletes what was found unwanted at the start.
    async fn prune_relationships(&mut self) -> Result<(), Failure> {
        let unwanted = std::mem::take(&mut self.unwanted);
        for batch in unwanted.chunks(BATCH_ITEMS) {
            let names: Vec<String> =
                batch.iter().map(|relationship| relationship.trust_domain.clone()).collect();
            let subject = |name: &String| Subject { kind: RELATIONSHIP, name: name.clone(), place: None };
            for (name, relationship) in names.iter().zip(batch) {
                let changes = relationship_changes(&FederationRelationship::default(), relationship);
                self.report.planned(Action::Delete, &subject(name), &changes);
            }
            let answers = match self.policy.dry_run {
                true => done(names.len()),
                false => self.registry.delete_relationships(names.clone()).await?,
            };
            for (answer, name) in answers.iter().zip(&names) {
                self.count(Action::Delete, &subject(name), &answer.status);
            }
        }
        Ok(())
    }

    fn count(&mut self, action: Action, subject: &Subject, status: &types::Status) {
        let tally = &mut self.tally;
        let not_found = i32::from(Code::NotFound);
        match (action, status.code) {
            (Action::Create, 0) => tally.created += 1,
            (Action::Update, 0) => tally.updated += 1,
            (Action::Replace, 0) => {
                tally.created += 1;
                tally.deleted += 1;
            }
            (Action::Delete, 0) => tally.deleted += 1,
            (Action::Delete, code) if code == not_found => tally.unchanged += 1,
            _ => {
                tally.failed += 1;
                self.report.failed(action, subject, status);
            }
        }
    }

    fn entry_subject(&self, entry: &types::Entry, place: Option<Place>) -> Subject {
        let name = match entry.id.as_str() {
            "" => id_text(entry.spiffe_id.as_ref()),
            id => id.to_owned(),
        };
        Subject { kind: ENTRY, name, place: place.map(|place| self.sources.place(place)) }
    }

    fn relationship_subject(&self, relationship: &FederationRelationship, place: Place) -> Subject {
        Subject {
            kind: RELATIONSHIP,
            name: relationship.trust_domain.clone(),
            place: Some(self.sources.place(place)),
        }
    }
}

const ENTRY: &str = "entry";
const RELATIONSHIP: &str = "federation_relationship";

/// What a dry run is answered.
fn done(count: usize) -> Vec<Answer> {
    std::iter::repeat_with(|| Answer { status: types::Status::default(), entry: None }).take(count).collect()
}

/// As many as one call takes: bundles may be large.
fn relationship_batch(
    from: &mut std::vec::IntoIter<(FederationRelationship, Subject)>,
) -> (Vec<FederationRelationship>, Vec<Subject>) {
    let mut octets = 0;
    let mut batch = (Vec::new(), Vec::new());
    while batch.0.len() < BATCH_ITEMS && octets < BATCH_OCTETS {
        let Some((relationship, subject)) = from.next() else { break };
        octets += relationship.encoded_len();
        batch.0.push(relationship);
        batch.1.push(subject);
    }
    batch
}
