//! `-data`: entries as JSON, in the shape of `spire.common.RegistrationEntries`.

use spire_core::spiffe::{SpiffeId, TrustDomain};
use spire_wire::api::types;
use spire_wire::api::types::entry::AdditionalAttributes;

use super::create::warn_old_ttl;
use crate::env::Env;
use crate::failure::{Doing, Failure, plain};
use crate::files::read_or_stdin;
use crate::input::{self, Object};

/// The entries of a file, or of standard input for `-`.
pub(super) fn entries(env: &mut Env, path: &str) -> Result<Vec<types::Entry>, Failure> {
    let value = input::parse(&read_or_stdin(env, path)?)?;
    let root = Object::root(&value, "common.RegistrationEntries")?;
    let items = root.objects("entries", "common.RegistrationEntry")?;
    items
        .into_iter()
        .map(|item| {
            item.ok_or_else(|| Failure::new("missing registration entry")).and_then(|item| entry(env, &item))
        })
        .collect()
}

fn entry(env: &mut Env, item: &Object<'_>) -> Result<types::Entry, Failure> {
    let mut x509_svid_ttl = item.int32("x509_svid_ttl")?;
    let mut jwt_svid_ttl = item.int32("jwt_svid_ttl")?;
    let old_ttl = item.int32("ttl")?;
    if old_ttl != 0 {
        warn_old_ttl(env, "\"ttl\"", "\"x509_svid_ttl\" and \"jwt_svid_ttl\"");
        x509_svid_ttl = if x509_svid_ttl == 0 { old_ttl } else { x509_svid_ttl };
        jwt_svid_ttl = if jwt_svid_ttl == 0 { old_ttl } else { jwt_svid_ttl };
    }
    let selectors = item.objects("selectors", "common.Selector")?;
    let entry = types::Entry {
        id: item.text("entry_id")?,
        selectors: selectors.iter().flatten().map(selector).collect::<Result<_, _>>()?,
        x509_svid_ttl,
        jwt_svid_ttl,
        admin: item.flag("admin")?,
        downstream: item.flag("downstream")?,
        expires_at: item.int64("entryExpiry")?,
        dns_names: item.texts("dns_names")?,
        revision_number: item.int64("revision_number")?,
        store_svid: item.flag("store_svid")?,
        hint: item.text("hint")?,
        created_at: item.int64("created_at")?,
        additional_attributes: match item
            .object("additional_attributes", "common.RegistrationEntry_AdditionalAttributes")?
        {
            None => None,
            Some(attributes) => Some(AdditionalAttributes {
                disable_x509_svid_prefetch: attributes.flag("disable_x509_svid_prefetch")?,
                jwt_svid_include_jti: attributes.flag("jwt_svid_include_jti")?,
            }),
        },
        ..Default::default()
    };
    let (spiffe_id, parent_id, federates_with) =
        (item.text("spiffe_id")?, item.text("parent_id")?, item.texts("federates_with")?);
    let trust_domain = |text: &String| {
        TrustDomain::parse(text)
            .map(|td| td.name().to_owned())
            .map_err(plain)
            .doing("invalid federated trust domain")
    };
    Ok(types::Entry {
        spiffe_id: Some(id(&spiffe_id).doing("invalid SPIFFE ID")?),
        parent_id: Some(id(&parent_id).doing("invalid parent ID")?),
        federates_with: federates_with.iter().map(trust_domain).collect::<Result<_, _>>()?,
        ..entry
    })
}

fn id(text: &str) -> Result<types::Spiffeid, Failure> {
    let id = SpiffeId::parse(text).map_err(plain)?;
    Ok(types::Spiffeid { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() })
}

fn selector(item: &Object<'_>) -> Result<types::Selector, Failure> {
    Ok(types::Selector { r#type: item.text("type")?, value: item.text("value")? })
}
