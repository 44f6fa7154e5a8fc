//! From the server's messages to the model.

use std::time::Duration;

use spire_core::model::{Attributes, Entry, EntryId};
use spire_core::pki::{Certificate, MAX_CHAIN_LEN};
use spire_core::spiffe::{
    Bundle, IdError, JwtAuthority, Selector, SelectorError, SpiffeId, TrustDomain, X509Authority,
};
use spire_core::time::Timestamp;
use spire_wire::api::types;

/// Why a message of the server cannot be used. Texts as the reference's pkg/server/api and bundleutil.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The entry has no ID.
    #[error("missing entry ID")]
    MissingEntryId,
    /// A SPIFFE ID is absent.
    #[error("invalid SPIFFE ID: request must specify SPIFFE ID")]
    MissingId,
    /// A SPIFFE ID is not valid.
    #[error("invalid SPIFFE ID: {0}")]
    Id(IdError),
    /// There is no selector.
    #[error("selector list is empty")]
    NoSelectors,
    /// A selector is not valid.
    #[error("invalid selector: {0}")]
    Selector(#[from] SelectorError),
    /// A trust domain is not valid.
    #[error("invalid trust domain {0:?}: {1}")]
    TrustDomain(String, IdError),
    /// A certificate cannot be read.
    #[error("invalid certificate: {0}")]
    Certificate(String),
    /// There is no certificate where one must be.
    #[error("empty SVID cert chain")]
    EmptyChain,
    /// More certificates than any chain needs.
    #[error("SVID cert chain is too long")]
    LongChain,
}

/// A SPIFFE ID.
pub(super) fn spiffe_id(id: Option<&types::Spiffeid>) -> Result<SpiffeId, ConvertError> {
    let id = id.ok_or(ConvertError::MissingId)?;
    let trust_domain = TrustDomain::parse(&id.trust_domain).map_err(ConvertError::Id)?;
    SpiffeId::from_path(&trust_domain, &id.path).map_err(ConvertError::Id)
}

/// An entry as the agent asks for it. The parent is not asked for; the entry's own ID stands in its place.
pub(super) fn entry(entry: types::Entry) -> Result<Entry, ConvertError> {
    if entry.id.is_empty() {
        return Err(ConvertError::MissingEntryId);
    }
    let id = spiffe_id(entry.spiffe_id.as_ref())?;
    let selectors: Vec<Selector> =
        entry.selectors.into_iter().map(|s| Selector::new(s.r#type, s.value)).collect::<Result<_, _>>()?;
    if selectors.is_empty() {
        return Err(ConvertError::NoSelectors);
    }
    let mut converted =
        Entry::new(EntryId::from_stored(entry.id), id.clone(), id, selectors.into_iter().collect());
    converted.federates_with = entry
        .federates_with
        .into_iter()
        .map(|name| TrustDomain::parse(&name).map_err(|e| ConvertError::TrustDomain(name, e)))
        .collect::<Result<_, _>>()?;
    converted.admin = entry.admin;
    converted.downstream = entry.downstream;
    converted.revision = entry.revision_number;
    converted.store_svid = entry.store_svid;
    converted.hint = entry.hint.into();
    converted.created_at = Timestamp::from_unix(entry.created_at);
    converted.attributes = entry.additional_attributes.map(|a| Attributes {
        disable_x509_svid_prefetch: a.disable_x509_svid_prefetch,
        jwt_svid_include_jti: a.jwt_svid_include_jti,
    });
    Ok(converted)
}

/// A bundle. Its certificates are parsed, so that what is served later is known to be good.
pub(super) fn bundle(bundle: types::Bundle) -> Result<Bundle, ConvertError> {
    let trust_domain = TrustDomain::parse(&bundle.trust_domain)
        .map_err(|e| ConvertError::TrustDomain(bundle.trust_domain.clone(), e))?;
    let mut converted = Bundle::empty(trust_domain);
    for authority in bundle.x509_authorities {
        // An authority may come as several certificates in a row (pkg/common/bundleutil: CommonBundleFromProto).
        let certificates = Certificate::many_from_der(authority.asn1, MAX_CHAIN_LEN)
            .map_err(|e| ConvertError::Certificate(e.to_string()))?;
        converted.x509_authorities.extend(
            certificates
                .into_iter()
                .map(|c| X509Authority { der: c.der().clone(), tainted: authority.tainted }),
        );
    }
    let jwt = bundle.jwt_authorities.into_iter();
    converted.jwt_authorities = jwt.map(|k| key(k.key_id, k.public_key, k.expires_at, k.tainted)).collect();
    let wit = bundle.wit_authorities.into_iter();
    converted.wit_authorities = wit.map(|k| key(k.key_id, k.public_key, k.expires_at, k.tainted)).collect();
    converted.refresh_hint = Duration::from_secs(u64::try_from(bundle.refresh_hint).unwrap_or_default());
    converted.sequence_number = bundle.sequence_number;
    Ok(converted)
}

fn key(kid: String, public_key: bytes::Bytes, expires_at: i64, tainted: bool) -> JwtAuthority {
    JwtAuthority { kid, public_key, not_after: Timestamp::from_unix(expires_at), tainted }
}

/// The chain of an SVID: parsed, never empty.
pub(super) fn chain(ders: Vec<bytes::Bytes>) -> Result<Vec<Certificate>, ConvertError> {
    if ders.len() > MAX_CHAIN_LEN {
        return Err(ConvertError::LongChain);
    }
    let chain: Vec<Certificate> = ders
        .into_iter()
        .map(|der| Certificate::from_der(der).map_err(|e| ConvertError::Certificate(e.to_string())))
        .collect::<Result<_, _>>()?;
    if chain.is_empty() { Err(ConvertError::EmptyChain) } else { Ok(chain) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> types::Entry {
        types::Entry {
            id: "e".to_owned(),
            spiffe_id: Some(types::Spiffeid { trust_domain: "a.org".to_owned(), path: "/w".to_owned() }),
            selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
            federates_with: vec!["b.org".to_owned()],
            revision_number: 3,
            ..types::Entry::default()
        }
    }

    #[test]
    fn an_entry_is_taken_over() {
        let entry = entry(message()).unwrap();
        assert_eq!((entry.id.as_str(), entry.revision), ("e", 3));
        assert_eq!(entry.spiffe_id.as_str(), "spiffe://a.org/w");
        assert_eq!(entry.federates_with.len(), 1);
        assert_eq!(entry.attributes, None);
    }

    #[test]
    fn a_malformed_entry_is_refused() {
        type Spoil = fn(&mut types::Entry);
        let cases: [(Spoil, &str); 6] = [
            (|e| e.id.clear(), "missing entry ID"),
            (|e| e.spiffe_id = None, "invalid SPIFFE ID: request must specify SPIFFE ID"),
            (
                |e| e.spiffe_id.as_mut().unwrap().path = "w".to_owned(),
                "invalid SPIFFE ID: path must have a leading slash",
            ),
            (|e| e.selectors.clear(), "selector list is empty"),
            (|e| e.selectors[0].value.clear(), "invalid selector: missing selector value"),
            (
                |e| e.federates_with[0] = "B".to_owned(),
                "invalid trust domain \"B\": trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
            ),
        ];
        for (spoil, expected) in cases {
            let mut message = message();
            spoil(&mut message);
            assert_eq!(entry(message).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn bad_certificates_are_refused() {
        let broken = types::X509Certificate { asn1: vec![1, 2].into(), tainted: false };
        let message = types::Bundle {
            trust_domain: "a.org".to_owned(),
            x509_authorities: vec![broken],
            ..types::Bundle::default()
        };
        assert!(matches!(bundle(message), Err(ConvertError::Certificate(_))));
        assert!(matches!(chain(Vec::new()), Err(ConvertError::EmptyChain)));
        assert!(matches!(chain(vec![vec![0].into(); 17]), Err(ConvertError::LongChain)));
    }
}
