//! Semantic versions, as far as comparing releases needs them (semver.org, 2.0).

use std::cmp::Ordering;

/// A release: numbers and an optional pre-release, which sorts before its release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) major: u64,
    pub(super) minor: u64,
    patch: u64,
    pre: String,
}

impl Version {
    /// `None` when the text is not a version. Empty is 0.0.0: what databases before 0.9 have.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self { major: 0, minor: 0, patch: 0, pre: String::new() });
        }
        let text = text.split_once('+').map_or(text, |(version, _build)| version);
        let (numbers, pre) = text.split_once('-').unwrap_or((text, ""));
        let mut numbers = numbers.split('.').map(str::parse);
        let mut next = || numbers.next()?.ok();
        let version = Self { major: next()?, minor: next()?, patch: next()?, pre: pre.into() };
        next().is_none().then_some(version)
    }

    /// Whether two releases may share a database whose schema is not altered: same major version,
    /// at most one minor version apart (migration.go: isCompatibleCodeVersion).
    pub(super) fn is_compatible_with(&self, other: &Self) -> bool {
        self.major == other.major && self.minor.abs_diff(other.minor) <= 1
    }

    /// Whether this is the later release.
    pub(super) fn is_later_than(&self, other: &Self) -> bool {
        let numbers = |v: &Self| (v.major, v.minor, v.patch);
        match numbers(self).cmp(&numbers(other)) {
            Ordering::Equal => match (self.pre.is_empty(), other.pre.is_empty()) {
                (true, false) => true,
                (false, false) => self.pre > other.pre,
                _ => false,
            },
            order => order == Ordering::Greater,
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)?;
        if self.pre.is_empty() { Ok(()) } else { write!(f, "-{}", self.pre) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap_or_else(|| panic!("{text} is a version"))
    }

    #[test]
    fn a_release_is_later_than_what_led_to_it() {
        for (later, earlier) in
            [("1.15.3", "1.15.2"), ("1.16.0", "1.15.9"), ("1.16.0", "1.16.0-dev-unk"), ("1.15.3", "")]
        {
            assert!(version(later).is_later_than(&version(earlier)), "{later} > {earlier}");
            assert!(!version(earlier).is_later_than(&version(later)), "{earlier} < {later}");
        }
        assert!(!version("1.15.3").is_later_than(&version("1.15.3")));
    }

    #[test]
    fn one_minor_version_apart_is_compatible() {
        assert!(version("1.15.3").is_compatible_with(&version("1.16.0-dev-unk")));
        assert!(version("1.15.3").is_compatible_with(&version("1.14.0")));
        assert!(!version("1.15.3").is_compatible_with(&version("1.13.9")));
        assert!(!version("1.15.3").is_compatible_with(&version("2.15.3")));
    }

    #[test]
    fn what_is_not_a_version_is_refused() {
        for text in ["1", "1.2", "1.2.3.4", "a.b.c", "v1.2.3"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }
}
