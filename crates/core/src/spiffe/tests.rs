//! Tables of what is and is not a SPIFFE ID, trust domain or selector.

use proptest::prelude::*;

use super::*;

/// A text, and what it parses to: trust domain and path.
type Case = (&'static str, Result<(&'static str, &'static str), IdError>);

#[test]
fn ids() {
    let cases: &[Case] = &[
        ("spiffe://example.org", Ok(("example.org", ""))),
        ("spiffe://example.org/a/B-c_d.e/0", Ok(("example.org", "/a/B-c_d.e/0"))),
        ("spiffe://example.org/...", Ok(("example.org", "/..."))),
        ("", Err(IdError::Empty)),
        ("example.org", Err(IdError::WrongScheme)),
        ("SPIFFE://example.org", Err(IdError::WrongScheme)),
        ("spiffe:/example.org", Err(IdError::WrongScheme)),
        ("spiffe://", Err(IdError::MissingTrustDomain)),
        ("spiffe:///path", Err(IdError::MissingTrustDomain)),
        ("spiffe://Example.org", Err(IdError::BadTrustDomainChar)),
        ("spiffe://example.org:80/x", Err(IdError::BadTrustDomainChar)),
        ("spiffe://user@example.org", Err(IdError::BadTrustDomainChar)),
        ("spiffe://example.org?q", Err(IdError::BadTrustDomainChar)),
        ("spiffe://example.org/a%20b", Err(IdError::BadPathSegmentChar)),
        ("spiffe://example.org/a?b", Err(IdError::BadPathSegmentChar)),
        ("spiffe://example.org/ä", Err(IdError::BadPathSegmentChar)),
        ("spiffe://example.org/./a", Err(IdError::DotSegment)),
        ("spiffe://example.org/a/..", Err(IdError::DotSegment)),
        ("spiffe://example.org//a", Err(IdError::EmptySegment)),
        ("spiffe://example.org/", Err(IdError::TrailingSlash)),
        ("spiffe://example.org/a/", Err(IdError::TrailingSlash)),
    ];
    for (text, want) in cases {
        let got = SpiffeId::parse(text);
        match want {
            Ok((domain, path)) => {
                let id = got.unwrap_or_else(|e| panic!("{text}: {e}"));
                assert_eq!((id.trust_domain_name(), id.path()), (*domain, *path), "{text}");
                assert_eq!(id.to_string(), *text);
            }
            Err(e) => assert_eq!(got.unwrap_err(), *e, "{text}"),
        }
    }
}

#[test]
fn ids_are_bounded() {
    let td = TrustDomain::parse("example.org").unwrap();
    assert!(SpiffeId::from_path(&td, &format!("/{}", "a".repeat(2000))).is_ok());
    assert_eq!(SpiffeId::from_path(&td, &format!("/{}", "a".repeat(2048))), Err(IdError::TooLong));
    assert_eq!(SpiffeId::parse(&format!("spiffe://{}", "a".repeat(256))), Err(IdError::TooLong));
}

#[test]
fn trust_domains() {
    assert_eq!(TrustDomain::parse("example.org").unwrap().name(), "example.org");
    assert_eq!(TrustDomain::parse("spiffe://example.org/x").unwrap().name(), "example.org");
    assert_eq!(TrustDomain::parse(""), Err(IdError::MissingTrustDomain));
    assert_eq!(TrustDomain::parse("spiffe:/example.org"), Err(IdError::WrongScheme));
    assert_eq!(TrustDomain::parse("Example.org"), Err(IdError::BadTrustDomainChar));
}

#[test]
fn spire_paths() {
    let td = TrustDomain::parse("example.org").unwrap();
    assert_eq!(SpiffeId::server(&td).as_str(), "spiffe://example.org/spire/server");
    let agent = SpiffeId::agent(&td, "/join_token/abc").unwrap();
    assert!(agent.is_agent() && agent.is_reserved() && agent.is_agent_of("join_token"));
    assert!(!agent.is_agent_of("join"));
    assert!(!SpiffeId::parse("spiffe://example.org/spired").unwrap().is_reserved());
    assert_eq!(SpiffeId::agent(&td, "no-slash"), Err(IdError::NoLeadingSlash));
}

#[test]
fn selectors() {
    let s = |k: &str, v: &str| Selector::new(k, v);
    assert_eq!(s("", "v"), Err(SelectorError::MissingType));
    assert_eq!(s("a:b", "v"), Err(SelectorError::ColonInType));
    assert_eq!(s("a", ""), Err(SelectorError::MissingValue));
    let all: Selectors =
        [s("unix", "uid:1"), s("a", "z"), s("unix", "gid:1"), s("a", "z")].into_iter().flatten().collect();
    let text: Vec<_> = all.iter().map(ToString::to_string).collect();
    assert_eq!(text, ["a:z", "unix:gid:1", "unix:uid:1"]);
    let some: Selectors = s("a", "z").into_iter().collect();
    assert!(some.is_subset_of(&all) && !all.is_subset_of(&some));
    assert!(Selectors::default().is_subset_of(&some));
}

proptest! {
    #[test]
    fn what_parses_prints_back(text in "spiffe://[a-z.]{0,6}(/[a-zA-Z.%]{0,3}){0,4}") {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.as_str(), &text);
            let again = SpiffeId::from_path(&id.trust_domain(), id.path()).unwrap();
            prop_assert_eq!(again, id);
        }
    }

    #[test]
    fn nothing_panics(text in "\\PC*") {
        let _ = SpiffeId::parse(&text);
        let _ = TrustDomain::parse(&text);
    }
}
