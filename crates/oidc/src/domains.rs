//! The names that the service goes by. A request for another name gets no document: the name of the request becomes the
//! issuer, and whoever could choose it freely could have us vouch for an issuer that is not ours.
//!
//! Imitates support/oidc-discovery-provider/domain_policy.go with golang.org/x/net/idna's `Lookup` profile. Of names that
//! are not ASCII it is enough to know that they are refused, since only their punycode form may be configured.

use std::collections::HashSet;

use spire_compat::quote::quote;

/// The configured names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domains {
    names: Vec<String>,
    set: HashSet<String>,
}

/// Why a name is refused. The texts are the reference's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// No domain name.
    #[error("domain {} is not a valid domain name: {reason}", quote(name))]
    Invalid {
        /// The name.
        name: String,
        /// What idna says.
        reason: String,
    },
    /// It would be written in another way.
    #[error("domain {} must already be punycode encoded", quote(.0))]
    NotCanonical(String),
    /// A good name that is not ours.
    #[error("domain {} is not allowed", quote(.0))]
    NotAllowed(String),
}

impl Domains {
    /// Takes the configured names, each once.
    ///
    /// # Errors
    /// [`DomainError`] for the first that is not the canonical form of a domain name.
    pub fn new(names: &[String]) -> Result<Self, DomainError> {
        let (mut kept, mut set) = (Vec::new(), HashSet::new());
        for name in names {
            check(name)?;
            if set.insert(name.clone()) {
                kept.push(name.clone());
            }
        }
        Ok(Self { names: kept, set })
    }

    /// The names, in the order in which they are configured.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether a request for `host`, or `host:port`, is for us.
    ///
    /// # Errors
    /// [`DomainError`] says why not.
    pub fn verify(&self, host: &str) -> Result<(), DomainError> {
        let domain = split_host_port(host).map_or(host, |(domain, _)| domain);
        if self.set.contains(domain) {
            return Ok(());
        }
        check(domain)?;
        Err(DomainError::NotAllowed(domain.to_owned()))
    }
}

/// Whether a name is the canonical form of a domain name.
fn check(name: &str) -> Result<(), DomainError> {
    let lower = name.to_ascii_lowercase();
    if let Some(reason) = lower.split('.').filter(|label| !label.is_empty()).find_map(bad_label) {
        return Err(DomainError::Invalid { name: name.to_owned(), reason });
    }
    // What is not ASCII has another form in ASCII; an empty punycode label would vanish.
    let vanishes = lower.split('.').any(|label| label == "xn--");
    if name != lower || !name.is_ascii() || vanishes {
        return Err(DomainError::NotCanonical(name.to_owned()));
    }
    Ok(())
}

fn bad_label(label: &str) -> Option<String> {
    let invalid = |label: &str| Some(format!("idna: invalid label {}", quote(label)));
    if let Some(encoded) = label.strip_prefix("xn--") {
        return match encoded {
            "" => None,
            // Nothing but ASCII is encoded.
            encoded if encoded.ends_with('-') => invalid(encoded),
            _ => None,
        };
    }
    let bytes = label.as_bytes();
    if bytes.len() > 4 && &bytes[2..4] == b"--" {
        return invalid(label);
    }
    if label.starts_with('-') || label.ends_with('-') {
        return invalid(label);
    }
    let rune = label.chars().find(|c| c.is_ascii() && !(c.is_ascii_alphanumeric() || *c == '-'))?;
    Some(format!("idna: disallowed rune U+{:04X}", u32::from(rune)))
}

/// Go's `net.SplitHostPort`: host and port, or what is wrong.
pub(crate) fn split_host_port(text: &str) -> Result<(&str, &str), &'static str> {
    const MISSING: &str = "missing port in address";
    const TOO_MANY: &str = "too many colons in address";
    let colon = text.rfind(':').ok_or(MISSING)?;
    let (host, after) = if text.starts_with('[') {
        let end = text.find(']').ok_or("missing ']' in address")?;
        match end + 1 {
            after if after == text.len() => return Err(MISSING),
            after if after == colon => {}
            after if text.as_bytes()[after] == b':' => return Err(TOO_MANY),
            _ => return Err(MISSING),
        }
        (&text[1..end], end)
    } else {
        let host = &text[..colon];
        if host.contains(':') {
            return Err(TOO_MANY);
        }
        (host, 0)
    };
    if text[usize::from(text.starts_with('['))..].contains('[') {
        return Err("unexpected '[' in address");
    }
    if text[after + usize::from(after > 0)..].contains(']') {
        return Err("unexpected ']' in address");
    }
    Ok((host, &text[colon + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains() -> Domains {
        let names = ["localhost", "example.org", "xn--bcher-kva.de", "localhost"].map(str::to_owned);
        Domains::new(&names).unwrap()
    }

    /// The texts are what SPIRE's provider answered to the same hosts.
    #[test]
    fn hosts_are_judged_as_the_reference_judges_them() {
        for host in
            ["localhost", "localhost:80", "localhost:", "[localhost]:80", "example.org:x", "xn--bcher-kva.de"]
        {
            assert_eq!(domains().verify(host), Ok(()), "{host}");
        }
        for (host, text) in [
            ("", r#"domain "" is not allowed"#),
            ("evil.org", r#"domain "evil.org" is not allowed"#),
            ("EXAMPLE.org", r#"domain "EXAMPLE.org" must already be punycode encoded"#),
            ("example.org.", r#"domain "example.org." is not allowed"#),
            (".", r#"domain "." is not allowed"#),
            ("a..b", r#"domain "a..b" is not allowed"#),
            ("1.2.3.4", r#"domain "1.2.3.4" is not allowed"#),
            ("[::1]:80", r#"domain "::1" is not a valid domain name: idna: disallowed rune U+003A"#),
            ("a:b:c", r#"domain "a:b:c" is not a valid domain name: idna: disallowed rune U+003A"#),
            (
                "localhost:80:90",
                r#"domain "localhost:80:90" is not a valid domain name: idna: disallowed rune U+003A"#,
            ),
            (
                "[localhost]",
                r#"domain "[localhost]" is not a valid domain name: idna: disallowed rune U+005B"#,
            ),
            ("a_b.org", r#"domain "a_b.org" is not a valid domain name: idna: disallowed rune U+005F"#),
            ("a b", r#"domain "a b" is not a valid domain name: idna: disallowed rune U+0020"#),
            (
                "localhost, example.org",
                r#"domain "localhost, example.org" is not a valid domain name: idna: disallowed rune U+002C"#,
            ),
            ("-a.org", r#"domain "-a.org" is not a valid domain name: idna: invalid label "-a""#),
            ("a-.org", r#"domain "a-.org" is not a valid domain name: idna: invalid label "a-""#),
            ("ab--c.org", r#"domain "ab--c.org" is not a valid domain name: idna: invalid label "ab--c""#),
            ("xn--", r#"domain "xn--" must already be punycode encoded"#),
            (
                "xn--foo-.org",
                r#"domain "xn--foo-.org" is not a valid domain name: idna: invalid label "foo-""#,
            ),
            ("bücher.de", r#"domain "bücher.de" must already be punycode encoded"#),
            ("example.org\u{ad}", r#"domain "example.org\u00ad" must already be punycode encoded"#),
        ] {
            assert_eq!(domains().verify(host).unwrap_err().to_string(), text, "{host}");
        }
    }

    #[test]
    fn only_canonical_names_can_be_configured() {
        assert_eq!(domains().names().len(), 3);
        for name in ["Example.org", "bücher.de", "a_b", "a b", "[::1]"] {
            assert!(Domains::new(&[name.to_owned()]).is_err(), "{name}");
        }
    }

    #[test]
    fn addresses_are_split_as_go_does() {
        for (text, split) in [
            ("a:1", Ok(("a", "1"))),
            (":1", Ok(("", "1"))),
            ("[::1]:1", Ok(("::1", "1"))),
            ("a", Err("missing port in address")),
            ("[a]", Err("missing port in address")),
            ("[a", Err("missing port in address")),
            ("[a:1", Err("missing ']' in address")),
            ("::1", Err("too many colons in address")),
            ("[a]:1:2", Err("too many colons in address")),
            ("[a]b:1", Err("missing port in address")),
            ("a[b:1", Err("unexpected '[' in address")),
            ("a]b:1", Err("unexpected ']' in address")),
            ("[[a]:1", Err("unexpected '[' in address")),
        ] {
            assert_eq!(split_host_port(text), split, "{text}");
        }
    }
}
