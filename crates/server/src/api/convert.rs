//! Wire forms of what several services speak of, and the checks with which they become the model's.

use std::time::Duration;

use spire_core::model::{Node, Paging, SelectorMatch, SetMatch};
use spire_core::pki::{Certificate, PublicKey};
use spire_core::spiffe::{Bundle, IdError, JwtAuthority, Selectors, SpiffeId, TrustDomain, X509Authority};
use spire_core::spiffe::{Selector, SelectorError};
use spire_core::time::Timestamp;
use spire_ports::datastore::BundleMask;
use spire_ports::observe::Scalar;
use spire_wire::api::types;

use super::audit::Fields;
use super::status::quoted;
pub(super) use crate::entries::{id_to_wire, selectors_to_wire};

/// Why an ID of a request is refused. Texts as pkg/server/api/id.go.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadId {
    #[error("request must specify SPIFFE ID")]
    Missing,
    #[error(transparent)]
    Malformed(#[from] IdError),
    #[error("{} is not {what} trust domain {}{detail}", quoted(.id.as_str()), quoted(.trust_domain.name()))]
    Wrong { id: SpiffeId, trust_domain: TrustDomain, what: &'static str, detail: &'static str },
}

/// An ID, whatever it is of.
pub(super) fn id(wire: Option<&types::Spiffeid>) -> Result<SpiffeId, BadId> {
    let wire = wire.ok_or(BadId::Missing)?;
    let trust_domain = TrustDomain::parse(&wire.trust_domain)?;
    Ok(SpiffeId::from_path(&trust_domain, &wire.path)?)
}

/// A member of the trust domain.
pub(super) fn member_id(wire: Option<&types::Spiffeid>, ours: &TrustDomain) -> Result<SpiffeId, BadId> {
    let id = id(wire)?;
    check(&id, ours, "a member of", |_| None)?;
    Ok(id)
}

/// A workload of the trust domain.
pub(super) fn workload_id(wire: Option<&types::Spiffeid>, ours: &TrustDomain) -> Result<SpiffeId, BadId> {
    let id = id(wire)?;
    check_workload(&id, ours)?;
    Ok(id)
}

/// Whether an ID is a workload's of the trust domain.
pub(super) fn check_workload(id: &SpiffeId, ours: &TrustDomain) -> Result<(), BadId> {
    check(id, ours, "a workload in", |id| id.is_reserved().then_some("; path is in the reserved namespace"))
}

/// An agent of the trust domain.
pub(super) fn agent_id(wire: Option<&types::Spiffeid>, ours: &TrustDomain) -> Result<SpiffeId, BadId> {
    let id = id(wire)?;
    check(&id, ours, "an agent in", |id| (!id.is_agent()).then_some("; path is not in the agent namespace"))?;
    Ok(id)
}

fn check(
    id: &SpiffeId,
    ours: &TrustDomain,
    what: &'static str,
    problem: impl Fn(&SpiffeId) -> Option<&'static str>,
) -> Result<(), BadId> {
    let wrong = |what, detail| Err(BadId::Wrong { id: id.clone(), trust_domain: ours.clone(), what, detail });
    if !id.is_member_of(ours) {
        return wrong("a member of", "");
    }
    if id.path().is_empty() {
        return wrong(what, "; path is empty");
    }
    problem(id).map_or(Ok(()), |detail| wrong(what, detail))
}

/// Selectors of a request; sorted, without duplicates.
pub(super) fn selectors(wire: Vec<types::Selector>) -> Result<Selectors, SelectorError> {
    wire.into_iter().map(|s| Selector::new(s.r#type, s.value)).collect()
}

/// A selector filter; the caller refuses an empty set where the reference does.
pub(super) fn selector_match(wire: types::SelectorMatch) -> Result<SelectorMatch, SelectorError> {
    Ok(SelectorMatch { how: set_match(wire.r#match), selectors: selectors(wire.selectors)? })
}

/// How sets compare. Unknown numbers are the first, as the reference's cast has them fall through to an error only in
/// the datastore.
pub(super) fn set_match(wire: i32) -> SetMatch {
    match wire {
        1 => SetMatch::Subset,
        2 => SetMatch::Superset,
        3 => SetMatch::Any,
        _ => SetMatch::Exact,
    }
}

/// The name of a match behaviour, as the audit log shows it.
pub(super) fn match_name(wire: i32) -> String {
    let known = types::selector_match::MatchBehavior::try_from(wire);
    known.map_or_else(|_| wire.to_string(), |how| how.as_str_name().to_owned())
}

/// What the audit log says of a bundle of a request (api.FieldsFromBundleProto).
pub(super) fn bundle_fields(wire: &types::Bundle, mask: Option<&types::BundleMask>) -> Fields {
    let wants = |part: fn(&types::BundleMask) -> bool| mask.is_none_or(part);
    let mut fields: Fields = vec![("trust_domain_id".into(), wire.trust_domain.clone().into())];
    if wants(|m| m.refresh_hint) {
        fields.push(("refresh_hint".into(), wire.refresh_hint.into()));
    }
    if wants(|m| m.sequence_number) {
        // Go prints an unsigned number; nobody counts bundles beyond the signed ones.
        let number = i64::try_from(wire.sequence_number).unwrap_or(i64::MAX);
        fields.push(("sequence_number".into(), number.into()));
    }
    if wants(|m| m.jwt_authorities) {
        fields.extend(jwt_authority_fields(&wire.jwt_authorities));
    }
    if wants(|m| m.x509_authorities) {
        fields.extend(x509_authority_fields(&wire.x509_authorities));
    }
    fields
}

/// What the audit log says of JWT authorities.
pub(super) fn jwt_authority_fields(keys: &[types::JwtKey]) -> Fields {
    let fields = keys.iter().enumerate().flat_map(|(n, key)| -> [(_, Scalar); 3] {
        [
            (format!("jwt_authority_expires_at.{n}").into(), key.expires_at.into()),
            (format!("jwt_authority_key_id.{n}").into(), key.key_id.clone().into()),
            (format!("jwt_authority_public_key_sha256.{n}").into(), hash(&key.public_key).into()),
        ]
    });
    fields.collect()
}

/// What the audit log says of X.509 authorities.
pub(super) fn x509_authority_fields(certificates: &[types::X509Certificate]) -> Fields {
    let fields = certificates.iter().enumerate().map(|(n, certificate)| {
        (format!("x509_authorities_asn1_sha256.{n}").into(), hash(&certificate.asn1).into())
    });
    fields.collect()
}

/// Paging of a request; none without a size.
pub(super) fn paging(size: i32, token: String) -> Option<Paging> {
    u32::try_from(size).ok().filter(|size| *size > 0).map(|size| Paging { token, size })
}

/// `type:value`, separated by commas, for the audit log.
pub(super) fn selectors_text(wire: &[types::Selector]) -> String {
    wire.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect::<Vec<_>>().join(",")
}

/// A node as an agent of the API.
pub(super) fn agent_to_wire(node: &Node) -> types::Agent {
    types::Agent {
        id: Some(id_to_wire(&node.spiffe_id)),
        attestation_type: node.attestation_type.to_string(),
        x509svid_serial_number: node.serial_number.to_string(),
        x509svid_expires_at: node.expires_at.unix(),
        selectors: selectors_to_wire(&node.selectors),
        banned: node.serial_number.is_empty(),
        can_reattest: node.can_reattest,
        agent_version: node.agent_version.to_string(),
    }
}

/// A bundle with the parts that the mask names.
pub(super) fn bundle_to_wire(bundle: &Bundle, mask: Option<&types::BundleMask>) -> types::Bundle {
    let wants = |part: fn(&types::BundleMask) -> bool| mask.is_none_or(part);
    let mut wire =
        types::Bundle { trust_domain: bundle.trust_domain.name().to_owned(), ..types::Bundle::default() };
    if wants(|m| m.x509_authorities) {
        wire.x509_authorities = bundle
            .x509_authorities
            .iter()
            .map(|a| types::X509Certificate { asn1: a.der.clone(), tainted: a.tainted })
            .collect();
    }
    if wants(|m| m.jwt_authorities) {
        wire.jwt_authorities = bundle.jwt_authorities.iter().map(jwt_key_to_wire).collect();
    }
    if wants(|m| m.wit_authorities) {
        wire.wit_authorities = bundle.wit_authorities.iter().map(wit_key_to_wire).collect();
    }
    if wants(|m| m.refresh_hint) {
        wire.refresh_hint = i64::try_from(bundle.refresh_hint.as_secs()).unwrap_or(i64::MAX);
    }
    if wants(|m| m.sequence_number) {
        wire.sequence_number = bundle.sequence_number;
    }
    wire
}

/// A WIT authority.
pub(super) fn wit_key_to_wire(key: &JwtAuthority) -> types::WitKey {
    types::WitKey {
        public_key: key.public_key.clone(),
        key_id: key.kid.clone(),
        expires_at: key.not_after.unix(),
        tainted: key.tainted,
    }
}

/// A JWT authority.
pub(super) fn jwt_key_to_wire(key: &JwtAuthority) -> types::JwtKey {
    types::JwtKey {
        public_key: key.public_key.clone(),
        key_id: key.kid.clone(),
        expires_at: key.not_after.unix(),
        tainted: key.tainted,
    }
}

/// Which parts an update replaces; WIT authorities never, as in the reference.
pub(super) fn bundle_mask(wire: Option<&types::BundleMask>) -> BundleMask {
    wire.map_or(BundleMask::ALL, |m| BundleMask {
        x509_authorities: m.x509_authorities,
        jwt_authorities: m.jwt_authorities,
        wit_authorities: false,
        refresh_hint: m.refresh_hint,
        sequence_number: m.sequence_number,
    })
}

/// A bundle of a request.
pub(super) fn bundle(wire: types::Bundle) -> Result<Bundle, String> {
    let trust_domain =
        TrustDomain::parse(&wire.trust_domain).map_err(|e| format!("invalid trust domain: {e}"))?;
    Ok(Bundle {
        trust_domain,
        x509_authorities: x509_authorities(wire.x509_authorities)
            .map_err(|e| format!("unable to parse X.509 authority: {e}"))?,
        jwt_authorities: jwt_authorities(wire.jwt_authorities)
            .map_err(|e| format!("unable to parse JWT authority: {e}"))?,
        wit_authorities: Vec::new(),
        refresh_hint: Duration::from_secs(u64::try_from(wire.refresh_hint).unwrap_or(0)),
        sequence_number: wire.sequence_number,
    })
}

/// X.509 authorities of a request.
pub(super) fn x509_authorities(wire: Vec<types::X509Certificate>) -> Result<Vec<X509Authority>, String> {
    wire.into_iter()
        .map(|certificate| {
            Certificate::many_from_der(certificate.asn1.clone(), X509Authority::CERTIFICATES_MAX)
                .map_err(|e| e.to_string())?;
            Ok(X509Authority { der: certificate.asn1, tainted: false })
        })
        .collect()
}

/// JWT authorities of a request.
pub(super) fn jwt_authorities(wire: Vec<types::JwtKey>) -> Result<Vec<JwtAuthority>, String> {
    wire.into_iter()
        .map(|key| {
            PublicKey::from_spki(key.public_key.clone()).map_err(|e| e.to_string())?;
            if key.key_id.is_empty() {
                return Err("missing key ID".to_owned());
            }
            Ok(JwtAuthority {
                kid: key.key_id,
                public_key: key.public_key,
                not_after: Timestamp::from_unix(key.expires_at),
                tainted: false,
            })
        })
        .collect()
}

/// WIT authorities of a request.
pub(super) fn wit_authorities(wire: Vec<types::WitKey>) -> Result<Vec<JwtAuthority>, String> {
    let same = |key: types::WitKey| types::JwtKey {
        public_key: key.public_key,
        key_id: key.key_id,
        expires_at: key.expires_at,
        tainted: key.tainted,
    };
    jwt_authorities(wire.into_iter().map(same).collect())
}

/// Hex SHA-256 of bytes, as the audit log shows what it must not show whole; empty for nothing.
pub(super) fn hash(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return String::new();
    }
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

/// RFC 3339, as the log shows expiries.
pub(super) fn rfc3339(at: Timestamp) -> String {
    at.to_utc().format(&time::format_description::well_known::Rfc3339).unwrap_or_else(|_| at.to_string())
}
