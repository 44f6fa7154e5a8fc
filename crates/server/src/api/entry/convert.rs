//! Entries of requests, checked, as the model's (pkg/server/api/entry.go).

use spire_core::model::{Attributes, Entry, EntryFilter, EntryId, EntryMask, FederatesWithMatch};
use spire_core::spiffe::{SelectorError, Selectors, SpiffeId, TrustDomain};
use spire_core::time::Timestamp;
use spire_ports::datastore;
use spire_wire::api::types;

use crate::api::convert::{self, BadId};

/// Longest hint, in bytes.
const HINT_MAX: usize = 1024;

/// Why an entry of a request is refused; texts are the reference's.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadEntry {
    #[error("invalid parent ID: {0}")]
    Parent(BadId),
    #[error("invalid spiffe ID: {0}")]
    Id(BadId),
    #[error("invalid DNS name: {0}")]
    DnsName(#[from] DnsNameError),
    #[error("invalid federated trust domain: {0}")]
    FederatesWith(spire_core::spiffe::IdError),
    #[error("selector list is empty")]
    NoSelectors,
    #[error(transparent)]
    Selector(#[from] SelectorError),
    #[error("hint is too long, max length is {HINT_MAX} characters")]
    Hint,
}

/// An entry of a request. Fields that the mask does not name are left at their defaults and not looked at; the caller
/// takes only what the mask names. The id is not checked, since the reference tells of a bad one in another way.
pub(super) fn entry(wire: types::Entry, mask: EntryMask, ours: &TrustDomain) -> Result<Entry, BadEntry> {
    let nobody = || SpiffeId::server(ours);
    let parent_id = if mask.parent_id {
        convert::member_id(wire.parent_id.as_ref(), ours).map_err(BadEntry::Parent)?
    } else {
        nobody()
    };
    let spiffe_id = if mask.spiffe_id {
        convert::workload_id(wire.spiffe_id.as_ref(), ours).map_err(BadEntry::Id)?
    } else {
        nobody()
    };
    let mut entry = Entry::new(EntryId::from_stored(wire.id), parent_id, spiffe_id, Selectors::default());
    entry.admin = mask.admin && wire.admin;
    if mask.dns_names {
        wire.dns_names.iter().try_for_each(|name| check_dns_name(name))?;
        entry.dns_names = wire.dns_names.into_iter().map(String::into_boxed_str).collect();
    }
    entry.downstream = mask.downstream && wire.downstream;
    if mask.expires_at {
        entry.expires_at = Timestamp::from_unix(wire.expires_at);
    }
    if mask.federates_with {
        entry.federates_with = wire
            .federates_with
            .iter()
            .map(|name| TrustDomain::parse(name))
            .collect::<Result<_, _>>()
            .map_err(BadEntry::FederatesWith)?;
    }
    if mask.selectors {
        if wire.selectors.is_empty() {
            return Err(BadEntry::NoSelectors);
        }
        entry.selectors = convert::selectors(wire.selectors)?;
    }
    entry.store_svid = mask.store_svid && wire.store_svid;
    if mask.x509_svid_ttl {
        entry.x509_svid_ttl = wire.x509_svid_ttl;
    }
    if mask.jwt_svid_ttl {
        entry.jwt_svid_ttl = wire.jwt_svid_ttl;
    }
    if mask.hint {
        if wire.hint.len() > HINT_MAX {
            return Err(BadEntry::Hint);
        }
        entry.hint = wire.hint.into();
    }
    if mask.attributes {
        entry.attributes = wire.additional_attributes.map(|a| Attributes {
            disable_x509_svid_prefetch: a.disable_x509_svid_prefetch,
            jwt_svid_include_jti: a.jwt_svid_include_jti,
        });
    }
    Ok(entry)
}

/// Whether the id that a caller chose for a new entry is one; empty is none. The reference's datastore says so
/// (pkg/server/datastore/sqlstore, validateRegistrationEntry).
pub(super) fn check_new_id(id: &EntryId) -> Result<(), datastore::Error> {
    if id.as_str().is_empty() {
        return Ok(());
    }
    EntryId::parse(id.as_str())
        .map(drop)
        .map_err(|error| datastore::Error::validation(format_args!("invalid registration entry: {error}")))
}

/// Which fields an update changes.
pub(super) fn input_mask(wire: Option<&types::EntryMask>) -> EntryMask {
    wire.map_or(EntryMask::ALL, |m| EntryMask {
        spiffe_id: m.spiffe_id,
        parent_id: m.parent_id,
        selectors: m.selectors,
        x509_svid_ttl: m.x509_svid_ttl,
        jwt_svid_ttl: m.jwt_svid_ttl,
        federates_with: m.federates_with,
        admin: m.admin,
        downstream: m.downstream,
        expires_at: m.expires_at,
        dns_names: m.dns_names,
        store_svid: m.store_svid,
        hint: m.hint,
        attributes: m.additional_attributes,
    })
}

/// Leaves in an answer what the mask names; the id always stays.
pub(in crate::api) fn apply_mask(entry: &mut types::Entry, mask: Option<&types::EntryMask>) {
    let Some(mask) = mask else { return };
    fn keep<T: Default>(wanted: bool, field: &mut T) {
        if !wanted {
            *field = T::default();
        }
    }
    keep(mask.spiffe_id, &mut entry.spiffe_id);
    keep(mask.parent_id, &mut entry.parent_id);
    keep(mask.selectors, &mut entry.selectors);
    keep(mask.x509_svid_ttl, &mut entry.x509_svid_ttl);
    keep(mask.federates_with, &mut entry.federates_with);
    keep(mask.admin, &mut entry.admin);
    keep(mask.downstream, &mut entry.downstream);
    keep(mask.expires_at, &mut entry.expires_at);
    keep(mask.dns_names, &mut entry.dns_names);
    keep(mask.revision_number, &mut entry.revision_number);
    keep(mask.store_svid, &mut entry.store_svid);
    keep(mask.jwt_svid_ttl, &mut entry.jwt_svid_ttl);
    keep(mask.hint, &mut entry.hint);
    keep(mask.created_at, &mut entry.created_at);
    keep(mask.additional_attributes, &mut entry.additional_attributes);
}

/// The filter of a listing or count, in the fields that both requests have.
pub(super) struct WireFilter {
    pub(super) by_spiffe_id: Option<types::Spiffeid>,
    pub(super) by_parent_id: Option<types::Spiffeid>,
    pub(super) by_selectors: Option<types::SelectorMatch>,
    pub(super) by_federates_with: Option<types::FederatesWithMatch>,
    pub(super) by_hint: Option<String>,
    pub(super) by_downstream: Option<bool>,
}

/// A filter; the error is what is malformed, and why.
pub(super) fn filter(wire: WireFilter, ours: &TrustDomain) -> Result<EntryFilter, (&'static str, String)> {
    let bad = |what: &'static str| move |cause: BadId| (what, cause.to_string());
    let mut filter = EntryFilter {
        // An empty hint is no filter.
        hint: wire.by_hint.filter(|hint| !hint.is_empty()),
        // Nor is "not downstream": the reference's commands send it when they mean all.
        downstream: wire.by_downstream.filter(|only| *only),
        ..EntryFilter::default()
    };
    if let Some(id) = &wire.by_parent_id {
        let id = convert::member_id(Some(id), ours).map_err(bad("malformed parent ID filter"))?;
        filter.parent_id = Some(id);
    }
    if let Some(id) = &wire.by_spiffe_id {
        let id = convert::workload_id(Some(id), ours).map_err(bad("malformed SPIFFE ID filter"))?;
        filter.spiffe_id = Some(id);
    }
    if let Some(selectors) = wire.by_selectors {
        const WHAT: &str = "malformed selectors filter";
        let wanted = convert::selector_match(selectors).map_err(|e| (WHAT, e.to_string()))?;
        if wanted.selectors.is_empty() {
            return Err((WHAT, "empty selector set".to_owned()));
        }
        filter.selectors = Some(wanted);
    }
    if let Some(wanted) = wire.by_federates_with {
        const WHAT: &str = "malformed federates with filter";
        let trust_domains = wanted
            .trust_domains
            .iter()
            .map(|name| TrustDomain::parse(name))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| (WHAT, e.to_string()))?;
        if trust_domains.is_empty() {
            return Err((WHAT, "empty trust domain set".to_owned()));
        }
        filter.federates_with =
            Some(FederatesWithMatch { trust_domains, how: convert::set_match(wanted.r#match) });
    }
    Ok(filter)
}

/// Why a DNS name is refused. Texts as pkg/common/x509util/dns.go and, after `idna error`, as Go's idna package.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::api) enum DnsNameError {
    #[error("name must be ascii")]
    NotAscii,
    #[error("too many wildcards")]
    TooManyWildcards,
    #[error("wildcard must be first label")]
    WildcardNotFirst,
    #[error("empty or only whitespace")]
    Empty,
    #[error("domain ends with dot")]
    EndsWithDot,
    #[error("idna error\nidna: disallowed rune U+{:04X}", u32::from(*.0))]
    Rune(char),
    #[error("idna error\nidna: invalid label {0:?}")]
    Label(String),
}

/// Whether a DNS name may stand in a certificate: ASCII, at most one wildcard as the whole first label, lengths and
/// hyphens as DNS has them. What else stands in a label is not looked at, as in the reference, whose entries have
/// names like `my_service`; only control characters are refused here.
pub(in crate::api) fn check_dns_name(name: &str) -> Result<(), DnsNameError> {
    if !name.is_ascii() {
        return Err(DnsNameError::NotAscii);
    }
    let rest = match name.bytes().filter(|c| *c == b'*').count() {
        0 => name,
        1 => name.strip_prefix("*.").ok_or(DnsNameError::WildcardNotFirst)?,
        _ => return Err(DnsNameError::TooManyWildcards),
    };
    let domain = rest.trim();
    if domain.is_empty() {
        return Err(DnsNameError::Empty);
    }
    if domain.ends_with('.') {
        return Err(DnsNameError::EndsWithDot);
    }
    if let Some(bad) = name.chars().find(char::is_ascii_control) {
        return Err(DnsNameError::Rune(bad));
    }
    if domain.len() > 253 || domain.split('.').any(str::is_empty) {
        // Go's idna shows the whole name here, and for other faults the label.
        return Err(DnsNameError::Label(domain.to_owned()));
    }
    domain.split('.').try_for_each(check_label)
}

fn check_label(label: &str) -> Result<(), DnsNameError> {
    let hyphens_at_3 = label.get(2..4) == Some("--") && !label.starts_with("xn--");
    if label.len() > 63 || label.starts_with('-') || label.ends_with('-') || hyphens_at_3 {
        return Err(DnsNameError::Label(label.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_names() {
        for good in
            ["a", "a.b", "*.a.b", "xn--mller-kva.example", "1.2", "a-b.c", "A_b", "a b", &"a".repeat(63)]
        {
            assert_eq!(check_dns_name(good), Ok(()), "{good}");
        }
        let cases = [
            ("", DnsNameError::Empty),
            (" ", DnsNameError::Empty),
            ("*.", DnsNameError::Empty),
            ("ä", DnsNameError::NotAscii),
            ("*.*.a", DnsNameError::TooManyWildcards),
            ("a.*", DnsNameError::WildcardNotFirst),
            ("*a.b", DnsNameError::WildcardNotFirst),
            ("a.", DnsNameError::EndsWithDot),
            ("a\nb", DnsNameError::Rune('\n')),
            ("-a", DnsNameError::Label("-a".into())),
            ("a..b", DnsNameError::Label("a..b".into())),
            ("ab--c", DnsNameError::Label("ab--c".into())),
        ];
        for (name, error) in cases {
            assert_eq!(check_dns_name(name), Err(error), "{name}");
        }
    }
}
