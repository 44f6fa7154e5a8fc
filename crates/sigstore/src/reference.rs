//! Names of images, as github.com/google/go-containerregistry reads them (pkg/name), without strictness.

use std::fmt;

use spire_core::pki::HashAlgorithm;

const DEFAULT_REGISTRY: &str = "index.docker.io";

/// A SHA-256 digest. Prints as `sha256:<hex>`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    /// Of bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut digest = [0; 32];
        digest.copy_from_slice(HashAlgorithm::Sha256.digest(bytes).as_ref());
        Self(digest)
    }

    /// From `sha256:` and 64 hexadecimal digits in lower case.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?;
        let mut digest = [0; 32];
        hex::decode_to_slice(digits, &mut digest).ok()?;
        (!digits.bytes().any(|byte| byte.is_ascii_uppercase())).then_some(Self(digest))
    }

    /// The digits alone.
    pub(crate) fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What of a repository is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Digest(Digest),
    Tag(String),
}

/// An image in a registry. Prints in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageReference {
    /// The registry's authority: a host, and perhaps a port.
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) target: Target,
}

/// A text that names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not parse reference: {0}")]
pub(crate) struct ReferenceError(String);

impl ImageReference {
    pub(crate) fn parse(text: &str) -> Result<Self, ReferenceError> {
        Self::read(text).ok_or_else(|| ReferenceError(text.to_owned()))
    }

    fn read(text: &str) -> Option<Self> {
        let (base, target) = match text.split_once('@') {
            Some((base, digest)) => (untagged(base).0, Target::Digest(Digest::parse(digest)?)),
            None => match untagged(text) {
                (base, None) => (base, Target::Tag("latest".to_owned())),
                (base, Some(tag)) => (base, Target::Tag(tag.to_owned())),
            },
        };
        if let Target::Tag(tag) = &target {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
            if tag.is_empty() || tag.len() > 128 || !tag.bytes().all(plain) {
                return None;
            }
        }
        let is_registry = |first: &str| first == "localhost" || first.contains(['.', ':']);
        let (registry, repository) = match base.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (DEFAULT_REGISTRY, base),
        };
        let registry = if registry == "docker.io" { DEFAULT_REGISTRY } else { registry };
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-./".contains(&byte);
        if !(2..=255).contains(&repository.len()) || !repository.bytes().all(plain) {
            return None;
        }
        // `..` would leave the repository in a URL that somebody on the way normalises.
        if repository.split('/').any(|part| part.is_empty() || part.chars().all(|c| c == '.')) {
            return None;
        }
        let authority: http::uri::Authority = registry.parse().ok()?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        Some(Self { registry: registry.to_owned(), repository, target })
    }
}

/// The name without its tag, and the tag. A colon before a slash belongs to the registry's port.
fn untagged(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((base, tag)) if !tag.contains('/') => (base, Some(tag)),
        _ => (name, None),
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.target {
            Target::Digest(digest) => write!(f, "@{digest}"),
            Target::Tag(tag) => write!(f, ":{tag}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_by_the_reference() {
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        let table = [
            ("blog", Some("index.docker.io/library/blog:latest")),
            ("blog:1", Some("index.docker.io/library/blog:1")),
            ("a/blog", Some("index.docker.io/a/blog:latest")),
            ("docker.io/library/blog:1", Some("index.docker.io/library/blog:1")),
            ("localhost/blog", Some("localhost/blog:latest")),
            ("localhost:5000/blog:1.2-x_Y", Some("localhost:5000/blog:1.2-x_Y")),
            ("r.example:5000/a/b", Some("r.example:5000/a/b:latest")),
            ("r.example/aa@DIGEST", Some("r.example/aa@DIGEST")),
            ("r.example/aa:1@DIGEST", Some("r.example/aa@DIGEST")),
            ("sha256:DIGITS", Some("index.docker.io/library/sha256:DIGITS")),
            ("docker-pullable://r.example/aa@DIGEST", None),
            ("r.example/aa@sha256:12", None),
            ("r.example/aa@sha512:12", None),
            ("r.example/aa@DIGEST@DIGEST", None),
            ("r.example/AA", None),
            ("r.example/../aa", None),
            ("r.example/aa//b", None),
            ("r.example/aa:", None),
            ("u@r.example/aa", None),
            ("r.example/aa?b", None),
            ("r.exa mple/aa", None),
            ("", None),
            ("b", None),
        ];
        for (text, expected) in table {
            let fill = |text: &str| text.replace("DIGEST", &digest).replace("DIGITS", &digest[7..]);
            let found = ImageReference::parse(&fill(text)).ok().map(|found| found.to_string());
            assert_eq!(found, expected.map(fill), "{text}");
        }
        assert_eq!(Digest::parse(&digest.to_uppercase()), None);
        assert_eq!(
            Digest::of(b"").to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
