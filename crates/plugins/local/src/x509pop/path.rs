//! `agent_path_template`: the path of an agent's ID, made of fields of its certificate.
//!
//! Of Go's templates this knows fields only, `{{ .SerialNumberHex }}` for example. What needs functions,
//! pipes or conditions is refused at start.

use std::collections::BTreeMap;

use spire_compat::quote::quote;
use spire_core::pki::Certificate;

use super::{NAME, fingerprint};

/// What stands between literal texts.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Fingerprint,
    SerialNumberHex,
    PluginName,
    TrustDomain,
    CommonName,
    Selector(String),
}

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathTemplate(Vec<Part>);

/// What a path is made of.
pub(super) struct Fields<'a> {
    pub(super) leaf: &'a Certificate,
    pub(super) trust_domain: &'a str,
    pub(super) san_selectors: &'a BTreeMap<String, String>,
}

impl PathTemplate {
    /// The default: `/x509pop/<SHA-1 of the certificate>`.
    pub(super) fn by_fingerprint() -> Self {
        Self(vec![Part::Text(format!("/{NAME}/")), Part::Fingerprint])
    }

    /// Refuses what is no template, and what we cannot execute.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let malformed = || format!("failed to parse agent svid template: {}", quote(text));
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, after) = after.split_once("}}").ok_or_else(malformed)?;
            let (before, action) = match action.strip_prefix("- ") {
                Some(action) => (before.trim_end(), action),
                None => (before, action),
            };
            let (action, after) = match action.strip_suffix(" -") {
                Some(action) => (action, after.trim_start()),
                None => (action, after),
            };
            parts.extend((!before.is_empty()).then(|| Part::Text(before.to_owned())));
            parts.push(match action.trim() {
                "" => return Err(malformed()),
                ".Fingerprint" => Part::Fingerprint,
                ".SerialNumberHex" => Part::SerialNumberHex,
                ".PluginName" => Part::PluginName,
                ".TrustDomain" => Part::TrustDomain,
                ".Subject.CommonName" => Part::CommonName,
                action => match action.strip_prefix(".URISanSelectors.") {
                    Some(key) if key.chars().all(|c| c.is_alphanumeric() || c == '_') && !key.is_empty() => {
                        Part::Selector(key.to_owned())
                    }
                    _ => {
                        return Err(format!(
                            "agent_path_template uses {}, which is not built yet; what is: .Fingerprint, \
                             .SerialNumberHex, .PluginName, .TrustDomain, .Subject.CommonName and \
                             .URISanSelectors.<key>",
                            quote(action)
                        ));
                    }
                },
            });
            rest = after;
        }
        parts.extend((!rest.is_empty()).then(|| Part::Text(rest.to_owned())));
        Ok(Self(parts))
    }

    /// The path for a certificate. Fails when it lacks a selector that the template names.
    pub(super) fn execute(&self, fields: &Fields<'_>) -> Result<String, String> {
        let mut path = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => path.push_str(text),
                Part::Fingerprint => path.push_str(&fingerprint(fields.leaf)),
                Part::SerialNumberHex => path.push_str(&serial_hex(fields.leaf)),
                Part::PluginName => path.push_str(NAME),
                Part::TrustDomain => path.push_str(fields.trust_domain),
                Part::CommonName => path.push_str(&fields.leaf.subject().common_name),
                Part::Selector(key) => {
                    let value = fields.san_selectors.get(key);
                    path.push_str(value.ok_or_else(|| format!("map has no entry for key {}", quote(key)))?);
                }
            }
        }
        Ok(path)
    }
}

/// Lower-case hex with an even number of digits.
pub(super) fn serial_hex(certificate: &Certificate) -> String {
    match certificate.serial_bytes() {
        [] => "00".to_owned(),
        bytes => hex::encode(bytes),
    }
}
