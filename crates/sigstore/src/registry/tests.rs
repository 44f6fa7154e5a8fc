//! Where a registry may lead us, and to whom credentials go.

use super::*;
use crate::settings::Credentials;

#[test]
fn locations_are_resolved() {
    let at: Uri = "https://r.example:5000/v2/a/blobs/b?c=d".parse().unwrap();
    let table = [
        ("/x?y=z", Some("https://r.example:5000/x?y=z")),
        ("https://s.example/x", Some("https://s.example/x")),
        ("http://s.example/x", Some("http://s.example/x")),
        ("//s.example/x", None),
        ("ftp://s.example/x", None),
        ("https://u:p@s.example/x", None),
        ("x", None),
        ("", None),
    ];
    for (location, expected) in table {
        let found = resolve(&at, location).map(|uri| uri.to_string());
        assert_eq!(found.as_deref(), expected, "{location}");
    }
}

#[test]
fn plain_http_is_for_names_of_this_machine_and_private_networks() {
    for (registry, expected) in [
        ("localhost", true),
        ("localhost:5000", true),
        ("127.0.0.1:5000", true),
        ("[::1]:5000", true),
        ("10.1.2.3", true),
        ("192.168.0.1:5000", true),
        ("registry.local:5000", true),
        ("registry.localhost", true),
        ("r.example", false),
        ("8.8.8.8:5000", false),
        ("169.254.169.254", false),
    ] {
        assert_eq!(may_be_plain(&registry.parse().unwrap()), expected, "{registry}");
    }
}

fn session(registry: &str, scheme: Scheme, login: Login) -> Session {
    Session {
        https: Registries::new(None).unwrap().https,
        scheme,
        registry: registry.parse().unwrap(),
        repository: "team/blog".to_owned(),
        is_private: false,
        login,
        challenge: Some(Challenge::Basic),
        authorization: Mutex::new(None),
    }
}

fn login() -> Login {
    Login::Password(Credentials { username: "u".to_owned(), password: "p".to_owned() })
}

#[tokio::test]
async fn a_public_registry_leads_nowhere_private() {
    let registry = session("r.example", Scheme::HTTPS, Login::Anonymous);
    for elsewhere in
        ["https://127.0.0.1:1/", "https://169.254.169.254/", "https://10.0.0.1/", "https://[::1]/"]
    {
        let at = elsewhere.parse().unwrap();
        let error = registry.send(Method::GET, &at, None, Bytes::new(), 1).await.unwrap_err();
        assert!(
            matches!(error, FetchError::Dial { source: DialError::Private { .. }, .. }),
            "{elsewhere}: {error}"
        );
        assert_eq!(super::elsewhere(&error), "redirect from a public registry into a private network");
        let error = registry.token(elsewhere, "", &Login::Anonymous).await.unwrap_err();
        assert!(matches!(error, RegistryError::Fetch(FetchError::Dial { .. })), "{error}");
    }
    let error = registry.token("http://r.example/token", "", &Login::Anonymous).await.unwrap_err();
    assert!(matches!(error, RegistryError::Realm(_)), "{error}");
}

#[tokio::test]
async fn credentials_do_not_travel_in_the_clear() {
    assert!(session("10.0.0.1", Scheme::HTTP, login()).check_credentials().is_err());
    assert!(session("10.0.0.1", Scheme::HTTP, Login::Anonymous).check_credentials().is_ok());
    assert!(session("127.0.0.1", Scheme::HTTP, login()).check_credentials().is_ok());
    assert!(session("10.0.0.1", Scheme::HTTPS, login()).check_credentials().is_ok());
    let local = session("127.0.0.1", Scheme::HTTP, login());
    let error = local.token("http://10.0.0.1/token", "", &local.login).await.unwrap_err();
    assert!(matches!(error, RegistryError::PlainCredentials(_)), "{error}");
}
