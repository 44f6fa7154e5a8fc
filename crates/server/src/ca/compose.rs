//! Credential composers: turning templates into attributes and back.
//!
//! Only servers with composers come here; the others sign straight from the template.

use spire_core::pki::{DistinguishedName, Extension};
use spire_ports::plugins::{X509CaAttributes, X509SvidAttributes};

use super::error::SignError;

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
            subject: self.subject.clone(),
            policy_identifiers: self.policies.clone(),
            extra_extensions: plain_extensions(&self.extra_extensions),
        }
    }

    pub(super) fn from_ca(composed: X509CaAttributes) -> Result<Self, SignError> {
        Ok(Self {
            subject: composed.subject,
            dns_names: Vec::new(),
            policies: composed.policy_identifiers,
            extra_extensions: extensions(composed.extra_extensions)?,
        })
    }

    pub(super) fn svid_attributes(&self) -> X509SvidAttributes {
        X509SvidAttributes {
            subject: self.subject.clone(),
            dns_names: self.dns_names.clone(),
            extra_extensions: plain_extensions(&self.extra_extensions),
        }
    }

    pub(super) fn from_svid(composed: X509SvidAttributes) -> Result<Self, SignError> {
        Ok(Self {
            subject: composed.subject,
            dns_names: composed.dns_names,
            policies: Vec::new(),
            extra_extensions: extensions(composed.extra_extensions)?,
        })
    }
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
    fn an_extension_needs_an_object_identifier() {
        let error = extensions(vec![("nonsense".into(), vec![], false)]).unwrap_err();
        assert!(matches!(error, SignError::Attributes(_)), "{error}");
    }
}
