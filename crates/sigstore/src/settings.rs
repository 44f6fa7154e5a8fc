//! The `sigstore` block of a workload attestor (pkg/agent/common/sigstore/config.go).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use regex::Regex;
use spire_compat::hcl::{Body, DecodeError};
use spire_core::pki::{Certificate, transparency};

/// The public log, where `rekor_url` names none.
const PUBLIC_REKOR: &str = "https://rekor.sigstore.dev";

/// Fulcio's object identifier of the issuer of the token that a certificate was issued for, and of a name that is neither
/// an email address nor a URI.
const ISSUER: &str = "1.3.6.1.4.1.57264.1.1";
const OTHER_NAME: &str = "1.3.6.1.4.1.57264.1.7";

/// What makes a pattern a regular expression rather than a text.
const REGEX_CHARS: &str = "*+?^${}[]|()";

/// What counts as a good signature.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) identities: Vec<Identity>,
    pub(crate) skipped_images: BTreeSet<String>,
    pub(crate) rekor_url: String,
    pub(crate) ignore_sct: bool,
    pub(crate) ignore_tlog: bool,
    pub(crate) ignore_attestations: bool,
    /// By registry.
    pub(crate) credentials: BTreeMap<String, Credentials>,
    /// What the log should be told at the start.
    pub(crate) warnings: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            identities: Vec::new(),
            skipped_images: BTreeSet::new(),
            rekor_url: PUBLIC_REKOR.to_owned(),
            ignore_sct: false,
            ignore_tlog: false,
            ignore_attestations: false,
            credentials: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }
}

/// A user of a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) username: String,
    pub(crate) password: String,
}

/// Without the password.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Who may have signed.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    issuer: Pattern,
    subject: Pattern,
}

#[derive(Clone, Debug)]
enum Pattern {
    Any,
    Text(String),
    Regex(String, Result<Regex, regex::Error>),
}

/// Who a certificate says signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signer {
    /// Its names, in the order of cosign: DNS names, email addresses, IP addresses, URIs, an other name.
    pub(crate) subjects: Vec<String>,
    /// The issuer of its token; empty without one.
    pub(crate) issuer: String,
}

/// Why a signer is not one of those who may sign. The texts are cosign's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error(
        "none of the expected identities matched what was in the certificate, got subjects [{subjects}] with \
         issuer {issuer}"
    )]
    NoMatch { subjects: String, issuer: String },
    #[error("malformed {what} in identity: {pattern} : {reason}")]
    Pattern { what: &'static str, pattern: String, reason: String },
}

impl Settings {
    /// Takes the block `sigstore` out of a plugin's configuration, if it is there. Keys in it that nobody knows are passed
    /// over, as in the reference, but not in silence.
    ///
    /// # Errors
    /// A value of a wrong type.
    pub fn take(data: &mut Body<'_>) -> Result<Option<Self>, DecodeError> {
        data.take_block("sigstore")?.map(|mut block| Self::decode(&mut block)).transpose()
    }

    /// Takes it out of the block `experimental`, where SPIRE had it until 1.14. Keys that it had before 1.10 meant
    /// something else and are refused.
    ///
    /// # Errors
    /// A value of a wrong type, and a key that nobody knows.
    pub fn take_former(experimental: &mut Body<'_>) -> Result<Option<Self>, DecodeError> {
        let Some(mut block) = experimental.take_block("sigstore")? else { return Ok(None) };
        let mut settings = Self::decode(&mut block)?;
        if let Some(key) = block.unused().into_iter().next() {
            return Err(DecodeError {
                message: format!("{}: not a key of sigstore any more; see docs/sigstore.md", key.name),
                path: block.path().to_owned(),
                pos: block.pos(),
            });
        }
        settings.warnings.push("experimental.sigstore: the block is called sigstore now".to_owned());
        Ok(Some(settings))
    }

    fn decode(block: &mut Body<'_>) -> Result<Self, DecodeError> {
        let mut settings = Self::default();
        let identities = block.take_string_list_map("allowed_identities")?.unwrap_or_default();
        for (issuer, subjects) in &identities {
            if subjects.is_empty() {
                let warning =
                    format!("allowed_identities: issuer {issuer:?} has no subjects and allows nobody");
                settings.warnings.push(warning);
            }
            let identity =
                |subject: &String| Identity { issuer: Pattern::of(issuer), subject: Pattern::of(subject) };
            settings.identities.extend(subjects.iter().map(identity));
        }
        if settings.identities.is_empty() && !identities.is_empty() {
            // Without a single identity everybody would be allowed, which nobody who wrote an issuer down wants.
            settings.identities.push(Identity { issuer: Pattern::nothing(), subject: Pattern::nothing() });
        } else if settings.identities.is_empty() {
            let warning =
                "allowed_identities is not set: signatures of anybody with a certificate are accepted";
            settings.warnings.push(warning.to_owned());
        }
        for identity in &settings.identities {
            for (what, pattern) in [("issuer", &identity.issuer), ("subject", &identity.subject)] {
                settings.warnings.extend(pattern.check(what).err().map(|error| error.to_string()));
            }
        }
        settings.skipped_images =
            block.take_string_list("skipped_images")?.unwrap_or_default().into_iter().collect();
        if let Some(url) = block.take_string("rekor_url")?.filter(|url| !url.is_empty()) {
            settings.rekor_url = url;
        }
        settings.ignore_sct = block.take_bool("ignore_sct")?.unwrap_or_default();
        settings.ignore_tlog = block.take_bool("ignore_tlog")?.unwrap_or_default();
        settings.ignore_attestations = block.take_bool("ignore_attestations")?.unwrap_or_default();
        for (registry, mut block) in block.take_labelled("registry_credentials")? {
            let username = block.take_string("username")?.unwrap_or_default();
            let password = block.take_string("password")?.unwrap_or_default();
            if username.is_empty() != password.is_empty() {
                settings.warnings.push(format!(
                    "Incomplete credentials for registry {registry:?}. Both username and password must be provided."
                ));
            } else if !username.is_empty() {
                settings.credentials.insert(registry, Credentials { username, password });
            }
        }
        let unknown = block.unused().into_iter().map(|key| format!("sigstore: unknown key {:?}", key.name));
        settings.warnings.extend(unknown);
        Ok(settings)
    }

    /// Whether one of the identities is this signer's; any is where there are none.
    pub(crate) fn allow(&self, signer: &Signer) -> Result<(), PolicyError> {
        if self.identities.is_empty() {
            return Ok(());
        }
        for identity in &self.identities {
            identity.issuer.check("issuer")?;
            identity.subject.check("subject")?;
            let subject_matches = match &identity.subject {
                Pattern::Any => true,
                pattern => signer.subjects.iter().any(|subject| pattern.matches(subject)),
            };
            if subject_matches && identity.issuer.matches(&signer.issuer) {
                return Ok(());
            }
        }
        Err(PolicyError::NoMatch { subjects: signer.subjects.join(", "), issuer: signer.issuer.clone() })
    }
}

impl Pattern {
    fn of(text: &str) -> Self {
        if text.is_empty() {
            Self::Any
        } else if text.contains(|c| REGEX_CHARS.contains(c)) {
            Self::Regex(text.to_owned(), Regex::new(text))
        } else {
            Self::Text(text.to_owned())
        }
    }

    /// What no certificate can have: SANs and issuers of certificates are never empty when they are looked at.
    fn nothing() -> Self {
        Self::Text(String::new())
    }

    fn check(&self, what: &'static str) -> Result<(), PolicyError> {
        match self {
            Self::Regex(pattern, Err(error)) => {
                let reason = error.to_string();
                Err(PolicyError::Pattern { what, pattern: pattern.clone(), reason })
            }
            _ => Ok(()),
        }
    }

    /// Regular expressions need not match the whole text, as in Go.
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Text(wanted) => !wanted.is_empty() && wanted == text,
            Self::Regex(_, Ok(regex)) => regex.is_match(text),
            Self::Regex(_, Err(_)) => false,
        }
    }
}

impl Signer {
    pub(crate) fn of(certificate: &Certificate) -> Self {
        let mut subjects = certificate.dns_names().to_vec();
        subjects.extend_from_slice(certificate.emails());
        subjects.extend(certificate.ip_addresses().iter().map(ToString::to_string));
        subjects.extend_from_slice(certificate.uris());
        subjects.extend(transparency::other_name(certificate, OTHER_NAME).filter(|name| !name.is_empty()));
        let issuer = certificate.extensions().iter().find(|extension| extension.oid() == ISSUER);
        let issuer = issuer.and_then(|extension| std::str::from_utf8(&extension.value).ok());
        Self { subjects, issuer: issuer.unwrap_or_default().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use spire_compat::hcl;

    use super::*;

    fn read(text: &str) -> Result<Settings, DecodeError> {
        Settings::decode(&mut hcl::parse(text).unwrap().body())
    }

    #[test]
    fn the_block_is_read() {
        let settings = read(
            r#"allowed_identities { "https://issuer" = ["a@b", ".*@c"], "x" = ["y"] }
            skipped_images = ["r/a@sha256:1"]
            rekor_url = "http://rekor"
            ignore_sct = true
            ignore_tlog = true
            ignore_attestations = true
            registry_credentials { "r:1" = { username = "u", password = "p" }, "q" = { username = "u" } }"#,
        );
        let settings = settings.unwrap();
        assert_eq!(settings.identities.len(), 3);
        assert!(settings.skipped_images.contains("r/a@sha256:1"));
        assert_eq!(settings.rekor_url, "http://rekor");
        assert!(settings.ignore_sct && settings.ignore_tlog && settings.ignore_attestations);
        assert_eq!(settings.credentials.keys().collect::<Vec<_>>(), ["r:1"]);
        assert_eq!(settings.warnings.len(), 1, "{:?}", settings.warnings);
        let plain = read("").unwrap();
        assert_eq!(plain.rekor_url, PUBLIC_REKOR);
        assert!(plain.warnings[0].contains("of anybody"), "{:?}", plain.warnings);
        assert!(read("allowed_identities { \"a\" = \"b\" }").is_err());
        assert!(read("ignore_sct = \"yes\"").is_err());
        assert!(read("typo = 1").unwrap().warnings.iter().any(|warning| warning.contains("typo")));
    }

    #[test]
    fn the_former_place_is_read() {
        let take = |text: &str| {
            let document = hcl::parse(text).unwrap();
            Settings::take_former(&mut document.body())
        };
        let settings = take("sigstore { ignore_tlog = true }").unwrap().unwrap();
        assert!(settings.ignore_tlog && settings.warnings.iter().any(|w| w.contains("called sigstore now")));
        assert!(take("").unwrap().is_none());
        let error = take("sigstore { allowed_subjects_list = [\"a\"] }").err().unwrap().to_string();
        assert!(error.starts_with("allowed_subjects_list: not a key"), "{error}");
    }

    #[test]
    fn identities_match_as_in_cosign() {
        let signer = |issuer: &str, subjects: &[&str]| Signer {
            issuer: issuer.to_owned(),
            subjects: subjects.iter().map(|subject| (*subject).to_owned()).collect(),
        };
        let table = [
            ("", signer("i", &["s"]), true),
            ("allowed_identities { \"i\" = [\"s\"] }", signer("i", &["x", "s"]), true),
            ("allowed_identities { \"i\" = [\"s\"] }", signer("i2", &["s"]), false),
            ("allowed_identities { \"i\" = [\"s\"] }", signer("i", &["s2"]), false),
            ("allowed_identities { \"i\" = [\"s\"] }", signer("", &[]), false),
            // An empty text is no constraint.
            ("allowed_identities { \"\" = [\"\"] }", signer("", &[]), true),
            ("allowed_identities { \"i\" = [\"\"] }", signer("i", &[]), true),
            // An issuer without subjects allows nobody.
            ("allowed_identities { \"i\" = [] }", signer("i", &["s"]), false),
            ("allowed_identities { \"i\" = [] }", signer("", &[""]), false),
            ("allowed_identities { \"i\" = [], \"j\" = [\"s\"] }", signer("j", &["s"]), true),
            // A point alone is a point; with another sign of the kind it is any character. Patterns are not anchored.
            ("allowed_identities { \"i.i\" = [\"s\"] }", signer("ixi", &["s"]), false),
            ("allowed_identities { \"i.+\" = [\"s\"] }", signer("xiix", &["s"]), true),
            ("allowed_identities { \"^i.$\" = [\"s\"] }", signer("xiix", &["s"]), false),
            ("allowed_identities { \"i\" = [\"[a-c]@d\"] }", signer("i", &["xb@d"]), true),
        ];
        for (text, signer, allowed) in table {
            assert_eq!(read(text).unwrap().allow(&signer).is_ok(), allowed, "{text} {signer:?}");
        }
        let malformed = read("allowed_identities { \"(\" = [\"s\"] }").unwrap();
        let error = malformed.allow(&signer("i", &["s"])).unwrap_err().to_string();
        assert!(error.starts_with("malformed issuer in identity: ( : "), "{error}");
        let error = read("allowed_identities { \"i\" = [\"s\"] }").unwrap().allow(&signer("j", &["a", "b"]));
        assert_eq!(
            error.unwrap_err().to_string(),
            "none of the expected identities matched what was in the certificate, got subjects [a, b] with issuer j"
        );
    }
}
