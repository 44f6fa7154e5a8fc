//! What operators may do to authorities (pkg/server/api/localauthority/v1/service.go).

use std::fmt;

use crate::model::{AuthorityStatus, KeyRecord, X509CaRecord};

use super::slots::{Authority, Slots};

/// Whose fault a refusal is; API services map it to the gRPC status of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `InvalidArgument`.
    InvalidArgument,
    /// `FailedPrecondition`.
    FailedPrecondition,
    /// `Internal`.
    Internal,
    /// `Unavailable`.
    Unavailable,
}

/// Why an operation on authorities is refused. The texts are those of the reference's statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationError {
    /// No authority is active yet.
    Initializing,
    /// The authority ID is empty.
    NoId,
    /// It is not the ID in the next slot.
    UnexpectedId,
    /// Activating something that is not prepared.
    NotPrepared(AuthorityStatus),
    /// Tainting the authority that signs.
    TaintsCurrent,
    /// Tainting something that still will sign.
    NotOld(AuthorityStatus),
    /// Tainting a local X.509 authority below an upstream authority.
    TaintsBelowUpstream,
    /// Revoking a local X.509 authority below an upstream authority.
    RevokesBelowUpstream,
    /// Revoking with an empty ID.
    RevokesNoId,
    /// Revoking the authority that signs.
    RevokesCurrent,
    /// Revoking an X.509 authority that is not old.
    RevokesNotOld,
    /// Revoking a JWT key that will sign.
    RevokesPrepared,
    /// Revoking a JWT key that the bundle does not have.
    RevokesUnknown,
    /// Tainting or revoking an upstream authority without having one.
    NoUpstream,
    /// An empty subject key ID.
    NoSubjectKeyId,
    /// The upstream authority that signed the authority that signs. (The spelling is the reference's.)
    UpstreamOfCurrent,
    /// An upstream authority that we do not know from the old authority.
    UpstreamOfNone,
    /// The upstream authority that signed the authority that will sign next.
    UpstreamOfPrepared,
    /// The slot holds the authority that signs.
    SlotInUse,
}

impl OperationError {
    /// Its text, and why, which the log has apart.
    pub fn text(self) -> (&'static str, Option<&'static str>) {
        const BAD_ID: &str = "invalid authority ID";
        match self {
            Self::Initializing => ("server is initializing", None),
            Self::NoId => ("no authority ID provided", None),
            Self::UnexpectedId => ("unexpected authority ID", None),
            Self::NotPrepared(status) => {
                ("only Prepared authorities can be activated", Some(unsupported(status)))
            }
            Self::TaintsCurrent => ("unable to taint current local authority", None),
            Self::NotOld(status) => ("only Old local authorities can be tainted", Some(unsupported(status))),
            Self::TaintsBelowUpstream => {
                ("local authority can't be tainted if there is an upstream authority", None)
            }
            Self::RevokesBelowUpstream => {
                ("local authority can't be revoked if there is an upstream authority", None)
            }
            Self::RevokesNoId => (BAD_ID, Some("no authority ID provided")),
            Self::RevokesCurrent => (BAD_ID, Some("unable to use current authority")),
            Self::RevokesNotOld => (BAD_ID, Some("only Old local authority can be revoked")),
            Self::RevokesPrepared => (BAD_ID, Some("unable to use a prepared key")),
            Self::RevokesUnknown => (BAD_ID, Some("no JWT authority found with provided authority ID")),
            Self::NoUpstream => ("upstream authority is not configured", None),
            Self::NoSubjectKeyId => ("no subject key ID provided", None),
            Self::UpstreamOfCurrent => ("unable to use upstream authority singing current authority", None),
            Self::UpstreamOfNone => ("upstream authority didn't sign the old local authority", None),
            Self::UpstreamOfPrepared => {
                ("only upstream authorities signing an old authority can be used", None)
            }
            Self::SlotInUse => ("slot holds the active authority", None),
        }
    }

    /// Whether it is about the subject key ID of an upstream authority.
    pub fn is_about_subject_key_id(self) -> bool {
        use OperationError::{NoSubjectKeyId, UpstreamOfCurrent, UpstreamOfNone, UpstreamOfPrepared};
        matches!(self, NoSubjectKeyId | UpstreamOfCurrent | UpstreamOfNone | UpstreamOfPrepared)
    }

    /// Whose fault it is.
    pub fn fault(self) -> Fault {
        match self {
            Self::Initializing => Fault::Unavailable,
            Self::NotPrepared(_) | Self::SlotInUse => Fault::Internal,
            Self::TaintsBelowUpstream | Self::RevokesBelowUpstream | Self::NoUpstream => {
                Fault::FailedPrecondition
            }
            _ => Fault::InvalidArgument,
        }
    }
}

impl fmt::Display for OperationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            (text, None) => f.write_str(text),
            (text, Some(cause)) => write!(f, "{text}: {cause}"),
        }
    }
}

impl std::error::Error for OperationError {}

/// With the names in proto/private/server/journal/journal.proto, which statuses print.
fn unsupported(status: AuthorityStatus) -> &'static str {
    match status {
        AuthorityStatus::Unknown => "unsupported local authority status: UNKNOWN",
        AuthorityStatus::Prepared => "unsupported local authority status: PREPARED",
        AuthorityStatus::Active => "unsupported local authority status: ACTIVE",
        AuthorityStatus::Old => "unsupported local authority status: OLD",
    }
}

impl<A: Authority> Slots<A> {
    /// Whether an operator may look at or prepare authorities now.
    ///
    /// # Errors
    /// [`OperationError::Initializing`] while none is active.
    pub fn check_initialized(&self) -> Result<(), OperationError> {
        self.active().map(|_| ()).ok_or(OperationError::Initializing)
    }

    /// Whether the operator may activate this authority: only the one in the next slot, and prepared.
    ///
    /// # Errors
    /// [`OperationError`] says why not.
    pub fn check_activation(&self, id: &str) -> Result<(), OperationError> {
        if id.is_empty() {
            return Err(OperationError::NoId);
        }
        if id != self.next().authority_id() {
            return Err(OperationError::UnexpectedId);
        }
        match self.next().status() {
            Some(AuthorityStatus::Prepared) => Ok(()),
            status => Err(OperationError::NotPrepared(status.unwrap_or(AuthorityStatus::Unknown))),
        }
    }

    /// Whether the operator may taint this authority: only the one in the next slot, and old.
    ///
    /// # Errors
    /// [`OperationError`] says why not.
    pub fn check_taint(&self, id: &str) -> Result<(), OperationError> {
        if id.is_empty() {
            return Err(OperationError::NoId);
        }
        if id == self.current().authority_id() {
            return Err(OperationError::TaintsCurrent);
        }
        if id != self.next().authority_id() {
            return Err(OperationError::UnexpectedId);
        }
        match self.next().status() {
            Some(AuthorityStatus::Old) => Ok(()),
            status => Err(OperationError::NotOld(status.unwrap_or(AuthorityStatus::Unknown))),
        }
    }

    /// Whether the operator may revoke this X.509 authority: only the one in the next slot, and old.
    ///
    /// # Errors
    /// [`OperationError`] says why not.
    pub fn check_revocation(&self, id: &str) -> Result<(), OperationError> {
        if id.is_empty() {
            return Err(OperationError::RevokesNoId);
        }
        if id == self.current().authority_id() {
            return Err(OperationError::RevokesCurrent);
        }
        if id != self.next().authority_id() || self.next().status() != Some(AuthorityStatus::Old) {
            return Err(OperationError::RevokesNotOld);
        }
        Ok(())
    }
}

/// Whether the operator may revoke this JWT or WIT key: the old one in the next slot, or one of the bundle that
/// is in neither slot (another server's, or older ones). `in_bundle` is asked only for those.
///
/// # Errors
/// [`OperationError`] says why not.
pub fn check_key_revocation(
    slots: &Slots<KeyRecord>,
    id: &str,
    in_bundle: impl FnOnce() -> bool,
) -> Result<(), OperationError> {
    if id.is_empty() {
        return Err(OperationError::RevokesNoId);
    }
    if id == slots.next().authority_id() {
        return match slots.next().status() {
            Some(AuthorityStatus::Prepared) => Err(OperationError::RevokesPrepared),
            _ => Ok(()),
        };
    }
    if id == slots.current().authority_id() {
        return Err(OperationError::RevokesCurrent);
    }
    if in_bundle() { Ok(()) } else { Err(OperationError::RevokesUnknown) }
}

/// Whether the operator may taint or revoke the upstream authority with this subject key ID (lower-case
/// hex): only one that signed the old authority and not the active one.
///
/// # Errors
/// [`OperationError`] says why not.
pub fn check_upstream(slots: &Slots<X509CaRecord>, subject_key_id: &str) -> Result<(), OperationError> {
    let upstream_of =
        |a: Option<&X509CaRecord>| a.map_or("", |a| a.upstream_authority_id.as_str()).to_owned();
    if subject_key_id.is_empty() {
        return Err(OperationError::NoSubjectKeyId);
    }
    if subject_key_id == upstream_of(slots.current().authority()) {
        return Err(OperationError::UpstreamOfCurrent);
    }
    if subject_key_id != upstream_of(slots.next().authority()) {
        return Err(OperationError::UpstreamOfNone);
    }
    if slots.next().status() == Some(AuthorityStatus::Prepared) {
        return Err(OperationError::UpstreamOfPrepared);
    }
    Ok(())
}
