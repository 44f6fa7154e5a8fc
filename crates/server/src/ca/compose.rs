//! Credential composers: turning templates into attributes and back.
//!
//! Only servers with composers come here; the others sign straight from the template.

use spire_core::pki::{DistinguishedName, Extension, NameAttribute as CoreAttribute};
use spire_ports::plugins::{NameAttribute, X509CaAttributes, X509SvidAttributes};

use super::error::SignError;

/// Dotted form of the attribute types that have a field in a distinguished name.
mod oid {
    pub(super) const COMMON_NAME: &str = "2.5.4.3";
    pub(super) const SERIAL_NUMBER: &str = "2.5.4.5";
    pub(super) const COUNTRY: &str = "2.5.4.6";
    pub(super) const LOCALITY: &str = "2.5.4.7";
    pub(super) const PROVINCE: &str = "2.5.4.8";
    pub(super) const STREET_ADDRESS: &str = "2.5.4.9";
    pub(super) const ORGANIZATION: &str = "2.5.4.10";
    pub(super) const ORGANIZATIONAL_UNIT: &str = "2.5.4.11";
    pub(super) const POSTAL_CODE: &str = "2.5.4.17";
}

/// The part of a certificate that composers may change.
#[derive(Clone, Debug, Default)]
pub(super) struct Composed {
    pub(super) subject: DistinguishedName,
    pub(super) dns_names: Vec<String>,
    pub(super) policies: Vec<String>,
    pub(super) extra_extensions: Vec<Extension>,
}

impl Composed {
    pub(super) fn ca_attributes(&self) -> X509CaAttributes {
        X509CaAttributes {
            subject: attributes(&self.subject),
            policy_identifiers: self.policies.clone(),
            extra_extensions: plain_extensions(&self.extra_extensions),
        }
    }

    pub(super) fn from_ca(composed: X509CaAttributes) -> Result<Self, SignError> {
        Ok(Self {
            subject: distinguished_name(composed.subject),
            dns_names: Vec::new(),
            policies: composed.policy_identifiers,
            extra_extensions: extensions(composed.extra_extensions)?,
        })
    }

    pub(super) fn svid_attributes(&self) -> X509SvidAttributes {
        X509SvidAttributes {
            subject: attributes(&self.subject),
            dns_names: self.dns_names.clone(),
            extra_extensions: plain_extensions(&self.extra_extensions),
        }
    }

    pub(super) fn from_svid(composed: X509SvidAttributes) -> Result<Self, SignError> {
        Ok(Self {
            subject: distinguished_name(composed.subject),
            dns_names: composed.dns_names,
            policies: Vec::new(),
            extra_extensions: extensions(composed.extra_extensions)?,
        })
    }
}

/// The attributes of a name in the order in which they are encoded.
fn attributes(name: &DistinguishedName) -> Vec<NameAttribute> {
    let one = |text: &String| if text.is_empty() { Vec::new() } else { vec![text.clone()] };
    let fields = [
        (oid::COUNTRY, name.country.clone()),
        (oid::PROVINCE, name.province.clone()),
        (oid::LOCALITY, name.locality.clone()),
        (oid::STREET_ADDRESS, name.street_address.clone()),
        (oid::POSTAL_CODE, name.postal_code.clone()),
        (oid::ORGANIZATION, name.organization.clone()),
        (oid::ORGANIZATIONAL_UNIT, name.organizational_unit.clone()),
        (oid::COMMON_NAME, one(&name.common_name)),
        (oid::SERIAL_NUMBER, one(&name.serial_number)),
    ];
    let known = fields.into_iter().flat_map(|(oid, values)| {
        values.into_iter().map(|value| NameAttribute { oid: oid.to_owned(), value })
    });
    let extra = name.extra_names.iter().map(|e| NameAttribute { oid: e.oid.clone(), value: e.value.clone() });
    known.chain(extra).collect()
}

/// A name of attributes: those that have a field go there, the others are written after them.
fn distinguished_name(attributes: Vec<NameAttribute>) -> DistinguishedName {
    let mut name = DistinguishedName::default();
    for NameAttribute { oid, value } in attributes {
        let list = match oid.as_str() {
            oid::COUNTRY => &mut name.country,
            oid::PROVINCE => &mut name.province,
            oid::LOCALITY => &mut name.locality,
            oid::STREET_ADDRESS => &mut name.street_address,
            oid::POSTAL_CODE => &mut name.postal_code,
            oid::ORGANIZATION => &mut name.organization,
            oid::ORGANIZATIONAL_UNIT => &mut name.organizational_unit,
            oid::COMMON_NAME if name.common_name.is_empty() => {
                name.common_name = value;
                continue;
            }
            oid::SERIAL_NUMBER if name.serial_number.is_empty() => {
                name.serial_number = value;
                continue;
            }
            _ => {
                name.extra_names.push(CoreAttribute { oid, value });
                continue;
            }
        };
        list.push(value);
    }
    name
}

fn plain_extensions(extensions: &[Extension]) -> Vec<(String, Vec<u8>, bool)> {
    extensions.iter().map(|e| (e.oid(), e.value.to_vec(), e.critical)).collect()
}

fn extensions(plain: Vec<(String, Vec<u8>, bool)>) -> Result<Vec<Extension>, SignError> {
    plain
        .into_iter()
        .map(|(oid, value, critical)| {
            Extension::new(&oid, critical, value).ok_or_else(|| {
                SignError::Attributes(format!("extension has an invalid object identifier {oid:?}"))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_round_trip() {
        let mut name = DistinguishedName::default_svid();
        name.organization.push("Second".into());
        name.organizational_unit.push("OU".into());
        name.common_name = "cn.test".into();
        name.serial_number = "17".into();
        name.push_unique_id("spiffe://example.org/x");
        let again = distinguished_name(attributes(&name));
        assert_eq!(again.encode().unwrap(), name.encode().unwrap());
    }

    #[test]
    fn an_attribute_that_a_composer_appends_is_written_last() {
        let mut list = attributes(&DistinguishedName::default_svid());
        list.push(NameAttribute { oid: "2.5.4.45".into(), value: "ab".into() });
        let mut expected = DistinguishedName::default_svid();
        expected.extra_names.push(CoreAttribute { oid: "2.5.4.45".into(), value: "ab".into() });
        assert_eq!(distinguished_name(list), expected);
    }

    #[test]
    fn an_extension_needs_an_object_identifier() {
        let error = extensions(vec![("nonsense".into(), vec![], false)]).unwrap_err();
        assert!(matches!(error, SignError::Attributes(_)), "{error}");
    }
}
