//! Items of files as entries and relationships. Besides our own shape this takes what `spire-server entry create -data`
//! and `federation create -data` take, and what `entry show` and `federation list` print with `-output json`.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use spire_core::model::EntryId;
use spire_core::spiffe::{Selector, SpiffeId, TrustDomain};
use spire_wire::api::types;
use spire_wire::api::types::entry::AdditionalAttributes;
use spire_wire::api::types::federation_relationship::BundleEndpointProfile;

use super::content::normalize;
use super::document::{Fields, Flaw, Node, NodeValue};
use crate::server::{BundleFormat, parse_bundle};

/// An entry, in the form that [`normalize`] gives; its ID is empty where the file gives none.
pub(super) fn entry(node: Node) -> Result<types::Entry, Flaw> {
    let mut fields = node.fields("an entry")?;
    let id = match fields.take(&["entry_id", "id"])? {
        None => String::new(),
        Some(node) => {
            let (text, at) = node.text()?;
            // An empty one is none, as everywhere in the API.
            if !text.is_empty() {
                EntryId::parse(&text).map_err(|error| Flaw::new(at, error.to_string()))?;
            }
            text
        }
    };
    let spiffe_id = spiffe_id(fields.required(&["spiffe_id"])?)?;
    let parent_id = self::spiffe_id(fields.required(&["parent_id"])?)?;
    let selectors = fields.required(&["selectors"])?;
    let selectors_at = selectors.at;
    let selectors = selectors.list()?.into_iter().map(selector).collect::<Result<Vec<_>, _>>()?;
    if selectors.is_empty() {
        return Err(Flaw::new(selectors_at, "an entry needs a selector"));
    }
    let old_ttl = ttl(&mut fields, "ttl")?;
    let or_old = |ttl: i32| if ttl == 0 { old_ttl } else { ttl };
    let mut entry = types::Entry {
        id,
        spiffe_id: Some(spiffe_id),
        parent_id: Some(parent_id),
        selectors,
        x509_svid_ttl: or_old(ttl(&mut fields, "x509_svid_ttl")?),
        jwt_svid_ttl: or_old(ttl(&mut fields, "jwt_svid_ttl")?),
        federates_with: texts(&mut fields, "federates_with", |text| {
            TrustDomain::parse(text).map(|td| td.name().to_owned()).map_err(|error| error.to_string())
        })?,
        admin: fields.flag(&["admin"])?,
        downstream: fields.flag(&["downstream"])?,
        // The second is what `-data` takes.
        expires_at: fields.number(&["expires_at", "entryExpiry"])?,
        dns_names: texts(&mut fields, "dns_names", |text| Ok(text.to_owned()))?,
        store_svid: fields.flag(&["store_svid"])?,
        hint: fields.text(&["hint"])?,
        additional_attributes: attributes(&mut fields)?,
        ..Default::default()
    };
    // What the server counts itself; files that it printed have them.
    fields.number::<i64>(&["revision_number"])?;
    fields.number::<i64>(&["created_at"])?;
    fields.finish()?;
    normalize(&mut entry);
    Ok(entry)
}

fn ttl(fields: &mut Fields, name: &str) -> Result<i32, Flaw> {
    let Some(node) = fields.take(&[name])? else { return Ok(0) };
    let at = node.at;
    node.number().and_then(|ttl: i32| match ttl {
        0.. => Ok(ttl),
        _ => Err(Flaw::new(at, format!("{name} is negative"))),
    })
}

fn texts(
    fields: &mut Fields,
    name: &str,
    read: impl Fn(&str) -> Result<String, String>,
) -> Result<Vec<String>, Flaw> {
    let read = |node: Node| {
        let (text, at) = node.text()?;
        read(&text).map_err(|error| Flaw::new(at, error))
    };
    fields.list(&[name])?.into_iter().map(read).collect()
}

fn attributes(fields: &mut Fields) -> Result<Option<AdditionalAttributes>, Flaw> {
    let Some(node) = fields.take(&["additional_attributes"])? else { return Ok(None) };
    let mut fields = node.fields("\"additional_attributes\"")?;
    let attributes = AdditionalAttributes {
        disable_x509_svid_prefetch: fields.flag(&["disable_x509_svid_prefetch"])?,
        jwt_svid_include_jti: fields.flag(&["jwt_svid_include_jti"])?,
    };
    fields.finish()?;
    Ok(Some(attributes))
}

/// A SPIFFE ID as text, or in the two parts that the API has.
fn spiffe_id(node: Node) -> Result<types::Spiffeid, Flaw> {
    let at = node.at;
    let text = match node.value {
        NodeValue::Map(_) => {
            let mut fields = node.fields("a SPIFFE ID")?;
            let text = format!("spiffe://{}{}", fields.text(&["trust_domain"])?, fields.text(&["path"])?);
            fields.finish()?;
            text
        }
        _ => node.text()?.0,
    };
    let id = SpiffeId::parse(&text).map_err(|error| Flaw::new(at, error.to_string()))?;
    Ok(types::Spiffeid { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() })
}

/// A selector as `type:value`, or in its two parts.
fn selector(node: Node) -> Result<types::Selector, Flaw> {
    let at = node.at;
    let (kind, value) = match node.value {
        NodeValue::Map(_) => {
            let mut fields = node.fields("a selector")?;
            let parts = (fields.text(&["type"])?, fields.text(&["value"])?);
            fields.finish()?;
            parts
        }
        _ => {
            let (text, at) = node.text()?;
            let (kind, value) = text
                .split_once(':')
                .ok_or_else(|| Flaw::new(at, format!("selector {text:?} must be formatted as type:value")))?;
            (kind.to_owned(), value.to_owned())
        }
    };
    Selector::new(kind.as_str(), value.as_str()).map_err(|error| Flaw::new(at, error.to_string()))?;
    Ok(types::Selector { r#type: kind, value })
}

/// A relationship.
pub(super) fn relationship(node: Node) -> Result<types::FederationRelationship, Flaw> {
    let mut fields = node.fields("a federation relationship")?;
    let at = fields.at;
    let (name, name_at) = fields.required(&["trust_domain", "trustDomain"])?.text()?;
    let trust_domain = TrustDomain::parse(&name).map_err(|error| Flaw::new(name_at, error.to_string()))?;
    let (url, _) = fields.required(&["bundle_endpoint_url", "bundleEndpointURL"])?.text()?;
    let profile = profile(&mut fields)?;
    // The reference takes a bundle for that of the endpoint's trust domain where that has one.
    let bundle_of = match &profile {
        BundleEndpointProfile::HttpsSpiffe(profile) => SpiffeId::parse(&profile.endpoint_spiffe_id)
            .map_err(|error| Flaw::new(at, format!("cannot parse bundle endpoint SPIFFE ID: {error}")))?
            .trust_domain(),
        BundleEndpointProfile::HttpsWeb(_) => trust_domain.clone(),
    };
    let format = fields.text(&["trustDomainBundleFormat"])?;
    let bundle = fields.take(&["trust_domain_bundle", "trustDomainBundle"])?;
    fields.finish()?;
    Ok(types::FederationRelationship {
        trust_domain: trust_domain.name().to_owned(),
        bundle_endpoint_url: url,
        bundle_endpoint_profile: Some(profile),
        trust_domain_bundle: bundle.map(|node| bundle_from(node, &format, &bundle_of)).transpose()?,
    })
}

/// `https_web: {}` or `https_spiffe: {endpoint_spiffe_id: …}`; or as words, as `-data` has it.
fn profile(fields: &mut Fields) -> Result<BundleEndpointProfile, Flaw> {
    let at = fields.at;
    let web = fields.take(&["https_web"])?;
    let spiffe = fields.take(&["https_spiffe"])?;
    let word = fields.take(&["bundleEndpointProfile"])?;
    let endpoint_id = fields.text(&["endpointSPIFFEID"])?;
    let spiffe_profile = |id: String| match id.as_str() {
        "" => Err(Flaw::new(at, "https_spiffe needs an endpoint SPIFFE ID")),
        _ => Ok(BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile { endpoint_spiffe_id: id })),
    };
    match (web, spiffe, word) {
        (Some(web), None, None) => {
            web.fields("\"https_web\"")?.finish()?;
            Ok(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}))
        }
        (None, Some(spiffe), None) => {
            let mut fields = spiffe.fields("\"https_spiffe\"")?;
            let id = fields.text(&["endpoint_spiffe_id"])?;
            fields.finish()?;
            spiffe_profile(id)
        }
        (None, None, Some(word)) => {
            let (word, at) = word.text()?;
            match word.as_str() {
                "https_web" => Ok(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {})),
                "https_spiffe" => spiffe_profile(endpoint_id),
                _ => Err(Flaw::new(at, format!("unknown bundle endpoint profile type: {word:?}"))),
            }
        }
        _ => Err(Flaw::new(at, "a relationship needs one of \"https_web\" and \"https_spiffe\"")),
    }
}

/// PEM as a text, SPIFFE's format as a mapping with `keys`, or the message that `federation list` prints.
fn bundle_from(node: Node, format: &str, trust_domain: &TrustDomain) -> Result<types::Bundle, Flaw> {
    let at = node.at;
    let name = trust_domain.name();
    let bad = |error: crate::failure::Failure| Flaw::new(at, error.to_string());
    match &node.value {
        NodeValue::Scalar { .. } if matches!(format, "" | "pem") => {
            parse_bundle(node.text()?.0.as_bytes(), BundleFormat::Pem, name).map_err(bad)
        }
        NodeValue::Map(members) if members.iter().any(|(name, ..)| name == "keys") && format != "pem" => {
            let text = node.into_json().to_string();
            parse_bundle(text.as_bytes(), BundleFormat::Spiffe, name).map_err(bad)
        }
        NodeValue::Map(_) if format.is_empty() => bundle_message(node),
        _ => Err(Flaw::new(at, "a bundle is PEM as a text, or SPIFFE's format as a mapping")),
    }
}

fn bundle_message(node: Node) -> Result<types::Bundle, Flaw> {
    let mut fields = node.fields("a bundle")?;
    let certificate = |node: Node| {
        let mut fields = node.fields("a certificate")?;
        let certificate = types::X509Certificate {
            asn1: octets(&mut fields, "asn1")?,
            tainted: fields.flag(&["tainted"])?,
        };
        fields.finish()?;
        Ok(certificate)
    };
    let key = |node: Node| {
        let mut fields = node.fields("a key")?;
        let key = types::JwtKey {
            public_key: octets(&mut fields, "public_key")?,
            key_id: fields.text(&["key_id"])?,
            expires_at: fields.number(&["expires_at"])?,
            tainted: fields.flag(&["tainted"])?,
        };
        fields.finish()?;
        Ok(key)
    };
    let wit_key = |node: Node| {
        key(node).map(|types::JwtKey { public_key, key_id, expires_at, tainted }| types::WitKey {
            public_key,
            key_id,
            expires_at,
            tainted,
        })
    };
    let all = |nodes: Vec<Node>| nodes.into_iter();
    let bundle = types::Bundle {
        trust_domain: fields.text(&["trust_domain"])?,
        x509_authorities: all(fields.list(&["x509_authorities"])?)
            .map(certificate)
            .collect::<Result<_, Flaw>>()?,
        jwt_authorities: all(fields.list(&["jwt_authorities"])?).map(key).collect::<Result<_, Flaw>>()?,
        wit_authorities: all(fields.list(&["wit_authorities"])?).map(wit_key).collect::<Result<_, _>>()?,
        refresh_hint: fields.number(&["refresh_hint"])?,
        sequence_number: fields.number(&["sequence_number"])?,
    };
    fields.finish()?;
    Ok(bundle)
}

fn octets(fields: &mut Fields, name: &str) -> Result<Bytes, Flaw> {
    let (text, at) = fields.required(&[name])?.text()?;
    BASE64_STANDARD.decode(text).map(Bytes::from).map_err(|_| Flaw::new(at, format!("{name} is not base64")))
}
