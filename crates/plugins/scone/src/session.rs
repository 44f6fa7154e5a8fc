//! What a session of CAS is made of: the selectors of an entry, the SVID, and a template.

use spire_core::pki::pem;
use spire_ports::plugins::{ErrorKind, Result, StoredSvid};
use zeroize::Zeroizing;

use crate::failure;
use crate::template::{Template, indented};

/// Characters of one segment of a session's name (CAS: `[A-Za-z0-9_\-.~]{1,128}`).
const SEGMENT_MAX: usize = 128;

/// The sessions of one workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The SVID with its chain and key.
    Svid,
    /// The authorities of its trust domain.
    Bundle,
    /// The authorities of the trust domains that it federates with.
    FederatedBundles,
}

impl Part {
    /// What the session's template may have as its name, and the selector that gives it.
    fn name_placeholder(self) -> (&'static str, &'static str) {
        match self {
            Self::Svid => ("<\\session-name-selector>", "session_name"),
            Self::Bundle => ("<\\trust-bundle-session-name>", "trust_bundle_session_name"),
            Self::FederatedBundles => ("<\\fed-bundles-session-name>", "fed_bundles_session_name"),
        }
    }

    pub(crate) fn name_selector(self) -> &'static str {
        self.name_placeholder().1
    }

    /// What a refusal by CAS is logged as.
    pub(crate) fn refused_text(self) -> &'static str {
        match self {
            Self::Svid => "cannot post SVID into CAS. Response status code =",
            Self::Bundle | Self::FederatedBundles => "cannot post bundles into CAS. Response status code =",
        }
    }

    /// What it is when CAS goes on refusing.
    pub(crate) fn given_up_text(self) -> &'static str {
        match self {
            Self::Svid => "Cannot post SVID and its key into CAS",
            Self::Bundle => "Cannot post bundle CA into CAS",
            Self::FederatedBundles => "Cannot post federated bundles into CAS",
        }
    }
}

/// What the selectors of an entry say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Workload {
    name: String,
    hash: String,
    trust_bundle_name: String,
    federated_bundles_name: String,
}

impl Workload {
    /// Reads selector values; those with unknown keys are for others.
    pub(crate) fn parse(metadata: &[String]) -> Result<Self> {
        let refuse = |reason: String| {
            let text = format!("cannot extract workload info from selectors: {reason}");
            failure(ErrorKind::InvalidArgument, text)
        };
        let mut workload = Self::default();
        for value in metadata {
            let (key, value) = value
                .split_once(':')
                .ok_or_else(|| refuse(format!("metadata does not contain a colon: {value:?}")))?;
            let field = match key {
                "session_name" => &mut workload.name,
                "session_hash" => &mut workload.hash,
                "trust_bundle_session_name" => &mut workload.trust_bundle_name,
                "fed_bundles_session_name" => &mut workload.federated_bundles_name,
                _ => continue,
            };
            value.clone_into(field);
        }
        if workload.name.is_empty() || workload.hash.is_empty() {
            return Err(refuse("selectors session_name and session_hash required".to_owned()));
        }
        // They go into YAML as they are.
        if !is_hash(&workload.hash) {
            return Err(refuse("session_hash must have 64 hexadecimal digits".to_owned()));
        }
        for name in [&workload.name, &workload.trust_bundle_name, &workload.federated_bundles_name] {
            if !name.is_empty() && !is_session_name(name) {
                return Err(refuse(format!("{name:?} is not the name of a session")));
            }
        }
        Ok(workload)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn name_of(&self, part: Part) -> &str {
        match part {
            Part::Svid => &self.name,
            Part::Bundle => &self.trust_bundle_name,
            Part::FederatedBundles => &self.federated_bundles_name,
        }
    }

    /// Whether the name of this session is known: it is given, or the template does not ask for it.
    pub(crate) fn has_name_for(&self, part: Part, template: &Template) -> bool {
        !self.name_of(part).is_empty() || !template.is_named_by(part.name_placeholder().0)
    }

    /// The name of a session, which is also the path of its file.
    pub(crate) fn session_name(&self, part: Part, template: &Template) -> Result<String> {
        let name = template.name(&[(part.name_placeholder().0, self.name_of(part))]);
        if is_session_name(&name) {
            return Ok(name);
        }
        Err(failure(ErrorKind::InvalidArgument, format!("{name:?} is not the name of a session")))
    }

    /// The text of a session, which may hold a private key.
    pub(crate) fn compose(
        &self,
        part: Part,
        template: &Template,
        svid: &StoredSvid,
        predecessor: &str,
    ) -> Zeroizing<String> {
        let certificates =
            |ders: &[bytes::Bytes]| indented(&pem::encode_certificates(ders.iter().map(|der| &der[..])));
        let mut values =
            vec![("<\\predecessor>", predecessor), (part.name_placeholder().0, self.name_of(part))];
        let (first, second);
        let key;
        match part {
            Part::Svid => {
                let (leaf, intermediates) = svid.chain.split_at(svid.chain.len().min(1));
                (first, second) = (certificates(leaf), certificates(intermediates));
                let pem = Zeroizing::new(pem::encode("PRIVATE KEY", &svid.private_key));
                key = Zeroizing::new(indented(&pem));
                values.extend([
                    ("<\\svid>", first.as_str()),
                    ("<\\svid-intermediates>", second.as_str()),
                    ("<\\svid-key>", key.as_str()),
                    ("<\\session-hash-selector>", self.hash.as_str()),
                ]);
            }
            Part::Bundle => {
                first = certificates(&svid.bundle);
                values.push(("<\\trust-bundle>", &first));
            }
            Part::FederatedBundles => {
                let all: Vec<_> =
                    svid.federated_bundles.iter().flat_map(|(_, roots)| roots.clone()).collect();
                first = certificates(&all);
                values.push(("<\\federated-bundles>", &first));
            }
        }
        Zeroizing::new(template.fill(&values))
    }
}

/// A hash as CAS gives it.
pub(crate) fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A name as CAS takes it; it is a path below the predecessors' folder, so none leads out of that.
fn is_session_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.~".contains(&byte);
    name.split('/').all(|segment| {
        (1..=SEGMENT_MAX).contains(&segment.len())
            && segment.bytes().all(fits)
            && segment != "."
            && segment != ".."
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> std::result::Result<Workload, String> {
        let metadata: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        Workload::parse(&metadata).map_err(|error| {
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            error.message
        })
    }

    #[test]
    fn selectors_say_which_sessions() {
        let hash = "0123456789abcdefABCDEF0123456789".repeat(2);
        let hash_selector = format!("session_hash:{hash}");
        let found =
            parse(&[&hash_selector, "session_name:ns/web", "other:x", "session_name:ns/last"]).unwrap();
        assert_eq!((found.name.as_str(), found.hash.as_str()), ("ns/last", hash.as_str()));
        let before = "cannot extract workload info from selectors: ";
        for (values, text) in [
            (vec!["session_name:ns/web"], "selectors session_name and session_hash required"),
            (vec!["session_name:", &hash_selector], "selectors session_name and session_hash required"),
            (vec!["session_name"], "metadata does not contain a colon: \"session_name\""),
            (vec!["session_name:a", "session_hash:12"], "session_hash must have 64 hexadecimal digits"),
            (
                vec!["session_name:../../etc/x", &hash_selector],
                "\"../../etc/x\" is not the name of a session",
            ),
            (vec!["session_name:/a", &hash_selector], "\"/a\" is not the name of a session"),
            (vec!["session_name:a\nb: c", &hash_selector], "\"a\\nb: c\" is not the name of a session"),
        ] {
            assert_eq!(parse(&values), Err(format!("{before}{text}")));
        }
    }
}
