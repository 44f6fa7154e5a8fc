//! The slot machine: two slots, a history, and what is due.

use crate::model::{AuthorityStatus, SlotName};
use crate::pki::NOT_BEFORE_CUSHION;
use crate::time::Timestamp;

use super::operations::OperationError;
use super::schedule::{activation_due, preparation_due, remaking_due};

/// How many authorities of a kind the journal keeps (pkg/server/ca/manager journalCap).
pub const HISTORY_MAX: usize = 10;

/// An authority as the journal records it.
pub trait Authority: Clone + PartialEq + std::fmt::Debug {
    /// Its slot.
    fn slot(&self) -> SlotName;
    /// When it was made.
    fn issued_at(&self) -> Timestamp;
    /// When it expires.
    fn not_after(&self) -> Timestamp;
    /// Its state.
    fn status(&self) -> AuthorityStatus;
    /// Changes its state.
    fn set_status(&mut self, status: AuthorityStatus);
    /// Its authority ID.
    fn id(&self) -> &str;
    /// Whether another authority signed it, so that it cannot outlive that one.
    fn is_intermediate(&self) -> bool {
        false
    }
}

/// One of the two slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot<A> {
    name: SlotName,
    authority: Option<A>,
}

impl<A: Authority> Slot<A> {
    /// `A` or `B`.
    pub fn name(&self) -> SlotName {
        self.name
    }

    /// What is or was last in it; an old authority stays visible until the slot is prepared again.
    pub fn authority(&self) -> Option<&A> {
        self.authority.as_ref()
    }

    /// The authority in it that signs or will sign.
    pub fn live(&self) -> Option<&A> {
        self.authority.as_ref().filter(|a| a.status() != AuthorityStatus::Old)
    }

    /// The state of what is in it.
    pub fn status(&self) -> Option<AuthorityStatus> {
        self.authority.as_ref().map(Authority::status)
    }

    /// The authority ID of what is or was last in it; empty when nothing ever was.
    pub fn authority_id(&self) -> &str {
        self.authority.as_ref().map_or("", Authority::id)
    }

    fn empty(name: SlotName) -> Self {
        Self { name, authority: None }
    }
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make an authority in this slot.
    Prepare(SlotName),
    /// Let the authority in this slot sign.
    Activate(SlotName),
    /// Let the old authority in this slot sign again: the clock was set, and it is the only one of the two that is valid now,
    /// or the one that was made before the clock was set back. Whoever trusts the trust domain knows it already. Where it
    /// was tainted or its key is gone, prepare instead.
    Restore(SlotName),
}

/// Why a recorded authority cannot be used after a restart. The texts are those of the reference's logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It expired.
    #[error("slot expired")]
    Expired,
    /// The KeyManager has no key for its slot.
    #[error("no key manager key")]
    NoKey,
    /// The KeyManager's key for its slot is another one.
    #[error("public key does not match key manager key")]
    OtherKey,
    /// The stored bundle lacks it: whoever relies on the bundle could not verify what it signs.
    #[error("authority is not in the bundle")]
    NotInBundle,
    /// A newer authority is in its slot.
    #[error("slot is taken")]
    SlotTaken,
}

/// Whether a recorded authority can be used: neither expired nor without its key. Keys are
/// SubjectPublicKeyInfo, DER.
///
/// # Errors
/// [`Unusable`] says why not.
pub fn check_usable(
    not_after: Timestamp,
    recorded_key: &[u8],
    kept_key: Option<&[u8]>,
    now: Timestamp,
) -> Result<(), Unusable> {
    if not_after < now {
        return Err(Unusable::Expired);
    }
    match kept_key {
        None => Err(Unusable::NoKey),
        Some(key) if key != recorded_key => Err(Unusable::OtherKey),
        Some(_) => Ok(()),
    }
}

/// Whether an authority can sign now: neither expired nor of the future. What it signs is dated back, and so may it be.
fn is_valid(authority: &impl Authority, now: Timestamp) -> bool {
    authority.issued_at() <= now + NOT_BEFORE_CUSHION && now <= authority.not_after()
}

/// The machine of one kind of authority. A value: operations return the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots<A> {
    current: Slot<A>,
    next: Slot<A>,
    history: Vec<A>,
}

/// A machine as it comes out of a journal, and what of the journal could not be used.
#[derive(Clone, Debug)]
pub struct Loaded<A> {
    /// The machine.
    pub slots: Slots<A>,
    /// Recorded authorities that were looked at and passed over, newest first.
    pub passed_over: Vec<(A, Unusable)>,
}

impl<A: Authority> Default for Slots<A> {
    fn default() -> Self {
        Self { current: Slot::empty(SlotName::A), next: Slot::empty(SlotName::B), history: Vec::new() }
    }
}

impl<A: Authority> Slots<A> {
    /// From a journal, oldest authority first. The newest usable active authority becomes the current
    /// one, the newest usable other one the next. Without an active one the newest usable takes its
    /// place (journals from before states were kept have none, nor has one whose server died between the
    /// two writes with which the reference activates).
    pub fn load(history: Vec<A>, mut usable: impl FnMut(&A) -> Result<(), Unusable>) -> Loaded<A> {
        let mut passed_over = Vec::new();
        let mut current: Option<A> = None;
        let mut next: Option<A> = None;
        for authority in history.iter().rev() {
            if current.is_some() && next.is_some() {
                break;
            }
            if let Err(reason) = usable(authority) {
                passed_over.push((authority.clone(), reason));
                continue;
            }
            let place = match authority.status() {
                AuthorityStatus::Active if current.is_none() => &mut current,
                _ => &mut next,
            };
            if place.is_none() {
                *place = Some(authority.clone());
            }
        }
        if let (Some(active), Some(other)) = (&current, &next)
            && active.slot() == other.slot()
        {
            passed_over.extend(next.take().map(|other| (other, Unusable::SlotTaken)));
        }
        let current = current.or_else(|| next.take());
        let mut slots = match current {
            None => Self { history, ..Self::default() },
            Some(current) => Self {
                next: Slot { name: current.slot().other(), authority: next },
                current: Slot { name: current.slot(), authority: Some(current) },
                history,
            },
        };
        slots.retire_others();
        Loaded { slots, passed_over }
    }

    /// The slot of the authority that signs, or will as soon as possible.
    pub fn current(&self) -> &Slot<A> {
        &self.current
    }

    /// The other slot.
    pub fn next(&self) -> &Slot<A> {
        &self.next
    }

    /// The authority that signs.
    pub fn active(&self) -> Option<&A> {
        self.current.authority().filter(|a| a.status() == AuthorityStatus::Active)
    }

    /// All that is recorded, oldest first; at most [`HISTORY_MAX`] after the machine has added one.
    pub fn history(&self) -> &[A] {
        &self.history
    }

    /// What is due now, if anything. Asking again without having done it gives the same answer.
    pub fn step(&self, now: Timestamp) -> Option<Step> {
        let Some(current) = self.current.live() else {
            return Some(Step::Prepare(self.current.name));
        };
        if current.status() != AuthorityStatus::Active {
            // One that expired before it ever signed is made again.
            return Some(if is_valid(current, now) {
                Step::Activate(self.current.name)
            } else {
                Step::Prepare(self.current.name)
            });
        }
        let span = (current.issued_at(), current.not_after());
        let next = self.next.authority().filter(|next| is_valid(*next, now));
        if !is_valid(current, now) {
            // It expired without having been replaced in time, or is of a time that the clock has left again.
            return Some(match next.map(Authority::status) {
                None => Step::Prepare(self.next.name),
                Some(AuthorityStatus::Old) => Step::Restore(self.next.name),
                Some(_) => Step::Activate(self.next.name),
            });
        }
        if next.is_some_and(|next| next.status() == AuthorityStatus::Old && next.issued_at() > span.0) {
            // It gave way because it was of the future. Now that its time has come (back), it signs again: those who heard
            // nothing meanwhile know no other.
            return Some(Step::Restore(self.next.name));
        }
        match next.filter(|next| next.status() != AuthorityStatus::Old) {
            None => preparation_due(span.0, span.1, now).then_some(Step::Prepare(self.next.name)),
            Some(_) if !activation_due(span.0, span.1, now) => None,
            // The one above had not been replaced when it signed this one. It has its turn before us, so by now, or
            // soon, it signs one that lives longer. (The reference activates what it has, and what it signs may then
            // live for seconds.)
            Some(next) if next.is_intermediate() && next.not_after() <= current.not_after() => {
                remaking_due(span.0, span.1, next.issued_at(), now).then_some(Step::Prepare(self.next.name))
            }
            Some(_) => Some(Step::Activate(self.next.name)),
        }
    }

    /// Where an authority is prepared now: the current slot while nothing is in it, else the next.
    pub fn slot_to_prepare(&self) -> SlotName {
        if self.current.live().is_none() { self.current.name } else { self.next.name }
    }

    /// With the slot given up: its key is about to be replaced, so what was prepared there must not be
    /// activated any more. The slot of the active authority is left alone.
    #[must_use]
    pub fn vacated(mut self, name: SlotName) -> Self {
        if self.active().is_none_or(|active| active.slot() != name) {
            let id = self.slot_mut(name).authority.as_mut().map(|a| {
                a.set_status(AuthorityStatus::Old);
                a.id().to_owned()
            });
            if let Some(id) = id {
                self.record_status(&id, AuthorityStatus::Old);
            }
        }
        self
    }

    /// With the authority in its slot, prepared. Its key exists and the bundle has it.
    ///
    /// # Errors
    /// [`OperationError::SlotInUse`] when the active authority is in that slot.
    pub fn prepared(&self, mut authority: A) -> Result<Self, OperationError> {
        let name = authority.slot();
        if self.active().is_some_and(|active| active.slot() == name) {
            return Err(OperationError::SlotInUse);
        }
        authority.set_status(AuthorityStatus::Prepared);
        let mut slots = self.clone().vacated(name);
        slots.history.push(authority.clone());
        slots.slot_mut(name).authority = Some(authority);
        slots.trim_history();
        Ok(slots)
    }

    /// With the old authority of the next slot signing again, see [`Step::Restore`].
    ///
    /// # Errors
    /// [`OperationError::NotPrepared`] when nothing in the slot is old.
    pub fn restored(&self, name: SlotName) -> Result<Self, OperationError> {
        let mut slots = self.clone();
        let slot = slots.slot_mut(name);
        match slot.authority.as_mut().filter(|a| a.status() == AuthorityStatus::Old) {
            Some(authority) => authority.set_status(AuthorityStatus::Prepared),
            None => {
                let status = slot.status().unwrap_or(AuthorityStatus::Unknown);
                return Err(OperationError::NotPrepared(status));
            }
        }
        slots.activated(name)
    }

    /// With the authority in the slot signing; the one that signed before becomes old and the next slot's.
    ///
    /// # Errors
    /// [`OperationError::NotPrepared`] when nothing in the slot can be activated. An authority that is
    /// active already stays so.
    pub fn activated(&self, name: SlotName) -> Result<Self, OperationError> {
        let mut slots = self.clone();
        let slot = slots.slot_mut(name);
        let Some(authority) = slot.authority.as_mut().filter(|a| a.status() != AuthorityStatus::Old) else {
            return Err(OperationError::NotPrepared(slot.status().unwrap_or(AuthorityStatus::Unknown)));
        };
        authority.set_status(AuthorityStatus::Active);
        let id = authority.id().to_owned();
        if name != slots.current.name {
            std::mem::swap(&mut slots.current, &mut slots.next);
        }
        slots.record_status(&id, AuthorityStatus::Active);
        let replaced = slots.next.authority.as_mut().filter(|a| a.status() == AuthorityStatus::Active);
        if let Some(replaced) = replaced {
            replaced.set_status(AuthorityStatus::Old);
        }
        slots.retire_others();
        Ok(slots)
    }

    /// Every recorded authority but the current one that claims to be active becomes old.
    fn retire_others(&mut self) {
        let active = self.active().map(|a| a.id().to_owned());
        // Two records may share an ID only if a journal was damaged; the newest of them counts.
        let mut kept = false;
        for record in self.history.iter_mut().rev() {
            if record.status() != AuthorityStatus::Active {
                continue;
            }
            if !kept && active.as_deref() == Some(record.id()) {
                kept = true;
            } else {
                record.set_status(AuthorityStatus::Old);
            }
        }
        if let Some(next) = self.next.authority.as_mut().filter(|a| a.status() == AuthorityStatus::Active) {
            next.set_status(AuthorityStatus::Old);
        }
    }

    fn record_status(&mut self, id: &str, status: AuthorityStatus) {
        if let Some(record) = self.history.iter_mut().rev().find(|a| a.id() == id) {
            record.set_status(status);
        }
    }

    /// Drops the oldest records that are in no slot. (The reference drops the oldest whatever it is, and
    /// so can forget the authority that signs.)
    fn trim_history(&mut self) {
        while self.history.len() > HISTORY_MAX {
            let in_slot = |a: &A| a.id() == self.current.authority_id() || a.id() == self.next.authority_id();
            let Some(oldest) = self.history.iter().position(|a| !in_slot(a)) else { break };
            self.history.remove(oldest);
        }
    }

    fn slot_mut(&mut self, name: SlotName) -> &mut Slot<A> {
        if self.current.name == name { &mut self.current } else { &mut self.next }
    }
}
