//! Registries with their ways to let one in, and those that mean harm.

use spire_net::tls::{ServerTrust, TlsPolicy};
use spire_testkit::authority::Authority;
use spire_testkit::sigstore::response;
use spire_testkit::web::tls;

use super::*;

fn signed(site: &Site) {
    site.attach("sig", &[site.sign(&site.order())]);
}

fn path(request: &Request) -> &str {
    request.target.split('?').next().unwrap_or_default()
}

/// A registry whose tokens come from itself; the second token is the first that does.
#[tokio::test]
async fn tokens_are_fetched_and_renewed() {
    let site = site_with(|images, request| match (path(request), request.header("authorization")) {
        ("/token", Some("Basic dXNlcjpzZWNyZXQ=")) => {
            assert!(request.target.contains("scope=repository%3Ateam%2Fblog%3Apull"), "{}", request.target);
            assert!(request.target.contains("service=the+registry"), "{}", request.target);
            Answer::Json(200, "{\"access_token\": \"good\"}".to_owned())
        }
        ("/token", None) => Answer::Json(200, "{\"token\": \"anonymous\"}".to_owned()),
        ("/token", Some(_)) => response("403 Forbidden", &[], b""),
        (_, Some("Bearer good")) => images.answer(request),
        _ => {
            let host = request.header("host").unwrap();
            let value = format!("Bearer realm=\"http://{host}/token\",service=\"the registry\"");
            response(
                "401 Unauthorized",
                &[("WWW-Authenticate", "Negotiate"), ("WWW-Authenticate", &value)],
                b"",
            )
        }
    });
    signed(&site);
    let credentials = |user: &str, password: &str| {
        format!(
            "{ONLY_SIGNATURES}\nregistry_credentials {{ \"127.0.0.1:{}\" = {{ username = \"{user}\", password = \
             \"{password}\" }} }}",
            site.web.port()
        )
    };
    assert!(site.verify(&credentials("user", "secret")).await.is_ok());
    let error = site.verify(&credentials("user", "wrong")).await.unwrap_err();
    assert!(error.ends_with("unexpected status code 403 Forbidden"), "{error}");
    assert!(!error.contains("wrong"));
    // The token of nobody does not do.
    let error = site.verify(ONLY_SIGNATURES).await.unwrap_err();
    assert!(error.ends_with(".sig: unexpected status code 401 Unauthorized"), "{error}");
}

#[tokio::test]
async fn passwords_are_shown_where_they_are_asked_for() {
    let site = site_with(|images, request| match request.header("authorization") {
        Some("Basic dXNlcjpzZWNyZXQ=") => images.answer(request),
        _ => response("401 Unauthorized", &[("WWW-Authenticate", "Basic realm=\"x\"")], b""),
    });
    signed(&site);
    // As Docker keeps it, for who has no settings.
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".docker")).unwrap();
    let auths =
        format!("{{\"auths\":{{\"127.0.0.1:{}\":{{\"auth\":\"dXNlcjpzZWNyZXQ=\"}}}}}}", site.web.port());
    std::fs::write(home.path().join(".docker/config.json"), auths).unwrap();
    let mut variables = site.variables.clone();
    variables.push(("HOME", home.path().display().to_string()));
    let find = move |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, v)| v.clone());
    let verifier = Verifier::with("docker", settings(ONLY_SIGNATURES), Arc::new(find), None).unwrap();
    assert!(verifier.verify(&site.name()).await.is_ok());
    let error = site.verify(ONLY_SIGNATURES).await.unwrap_err();
    assert!(error.ends_with("unexpected status code 401 Unauthorized"), "{error}");
}

/// Bytes may lie elsewhere, where the registry's token is not shown.
#[tokio::test]
async fn redirects_lead_to_storage_without_the_token() {
    let elsewhere = Images::default();
    let stored = elsewhere.clone();
    let storage = Web::start(None, move |request| stored.answer(request)).unwrap();
    let port = storage.port();
    let site = site_with(move |images, request| match request.header("authorization") {
        _ if path(request).contains("/blobs/") => {
            let location = format!("http://127.0.0.1:{port}{}?secret=x", request.target);
            response("307 Temporary Redirect", &[("Location", &location)], b"")
        }
        Some("Basic dXNlcjpzZWNyZXQ=") => images.answer(request),
        _ => response("401 Unauthorized", &[("WWW-Authenticate", "Basic")], b""),
    });
    signed(&site);
    let signed = site.sign(&site.order());
    elsewhere.blob("team/blog", &signed.payload);
    site.attach("sig", &[signed]);
    let text = format!(
        "{ONLY_SIGNATURES}\nregistry_credentials {{ \"127.0.0.1:{}\" = {{ username = \"user\", password = \"secret\" }} }}",
        site.web.port()
    );
    site.verify(&text).await.unwrap();
    let seen = storage.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header("authorization"), None);
    // What is gone says nothing of the URL, which may be a secret.
    drop(storage);
    let error = site.verify(&text).await.unwrap_err();
    assert!(error.contains("the host that the registry redirects to does not answer"), "{error}");
    assert!(!error.contains("secret"), "{error}");
}

#[tokio::test]
async fn registries_that_mean_harm() {
    type Answers = Box<dyn Fn(&Images, &Request) -> Answer + Send + Sync>;
    let redirect = |location: &'static str| -> Answers {
        Box::new(move |images, request| match path(request) {
            "/v2/" => images.answer(request),
            _ => response("302 Found", &[("Location", location)], b""),
        })
    };
    let challenge = |value: &'static str| -> Answers {
        Box::new(move |_, _| response("401 Unauthorized", &[("WWW-Authenticate", value)], b""))
    };
    let manifest = |bytes: fn() -> Vec<u8>| -> Answers {
        Box::new(move |images, request| match path(request).contains(".sig") {
            true => Answer::Body(200, "application/vnd.oci.image.manifest.v1+json", bytes()),
            false => images.answer(request),
        })
    };
    let many = || {
        let layer = format!("{{\"digest\":\"sha256:{}\",\"size\":1}},", "0".repeat(64));
        let layers = layer.repeat(1001);
        format!("{{\"schemaVersion\":2,\"layers\":[{}]}}", layers.trim_end_matches(',')).into_bytes()
    };
    let table: Vec<(Answers, &str)> = vec![
        (redirect("/v2/again"), "too many redirects"),
        (redirect("file:///etc/passwd"), "redirect to no URL"),
        (redirect("//x"), "redirect to no URL"),
        (redirect("http://user@127.0.0.1/"), "redirect to no URL"),
        (redirect("http://127.0.0.1:1/"), "the host that the registry redirects to does not answer"),
        (
            Box::new(|images, request| match path(request) {
                "/v2/" => images.answer(request),
                _ => response("302 Found", &[], b""),
            }),
            "redirect without a location",
        ),
        (challenge("Digest x"), "unrecognized challenge: neither Basic nor Bearer"),
        (challenge("Bearer service=x"), "unrecognized challenge: malformed www-authenticate, missing realm"),
        (challenge("Bearer realm=\"file:///x\""), "invalid realm in www-authenticate: "),
        (challenge("Bearer realm=\"\""), "invalid realm in www-authenticate: "),
        (
            Box::new(|_, _| Answer::Json(500, "{}".to_owned())),
            "unexpected status code 500 Internal Server Error",
        ),
        (manifest(|| vec![b'['; (4 << 20) + 1]), "response is larger than 4194304 bytes"),
        (manifest(|| vec![b'['; 1 << 20]), "malformed manifest: not one of an image"),
        (manifest(many), "number of layers (1001) exceeded the limit (1000)"),
        (
            manifest(|| b"{\"schemaVersion\":2,\"manifests\":[]}".to_vec()),
            "the manifest is one of several images",
        ),
        (manifest(|| b"{\"schemaVersion\":2}".to_vec()), "no signatures found"),
        (
            Box::new(|images, request| match path(request).contains("/blobs/") {
                true => Answer::Json(200, "other".to_owned()),
                false => images.answer(request),
            }),
            "error verifying sha256 checksum of sha256:",
        ),
        (
            Box::new(|images, request| match path(request).contains("/blobs/") {
                true => Answer::Body(200, "x", vec![0; (1 << 20) + 1]),
                false => images.answer(request),
            }),
            "response is larger than 1048576 bytes",
        ),
        (Box::new(|_, _| Answer::Raw(b"nonsense".to_vec())), "Get \"http"),
    ];
    for (answers, expected) in table {
        let site = site_with(answers);
        signed(&site);
        let error = site.verify(ONLY_SIGNATURES).await.unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
        // Nobody is asked for ever.
        assert!(site.web.seen().len() < 12);
    }
    let gone = format!("127.0.0.1:{}/team/blog@{}", 1, site().image);
    let error = site().verifier(ONLY_SIGNATURES).verify(&gone).await.unwrap_err().to_string();
    assert!(error.starts_with("failed to verify signatures: Get \"https://127.0.0.1:1/v2/\": "), "{error}");
}

/// Over TLS, by an authority of ours; a realm or a storage without TLS is none for it.
#[tokio::test]
async fn registries_over_tls() {
    let authority = Authority::new("registries").unwrap();
    let pair = authority.issue("registry", &["localhost"]).unwrap();
    let site = site();
    signed(&site);
    let images = site.images.clone();
    let plain = site.web.port();
    let web = Web::start(Some(tls(&pair, None).unwrap()), move |request| match path(request) {
        path if path.starts_with("/v2/moved/") => {
            let location = format!("http://127.0.0.1:{plain}/v2/");
            response("302 Found", &[("Location", &location)], b"")
        }
        _ => images.answer(request),
    });
    let web = web.unwrap();
    let certificate = spire_core::pki::pem::certificate(authority.pem().as_bytes()).unwrap();
    let trust = ServerTrust::Authorities(vec![certificate]);
    let client = TlsClient::private(trust, None, TlsPolicy::default()).unwrap();
    let variables = site.variables.clone();
    let find = move |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, v)| v.clone());
    let verifier = Verifier::with("docker", settings(ONLY_SIGNATURES), Arc::new(find), Some(client)).unwrap();
    let name = |repository: &str| format!("localhost:{}/{repository}@{}", web.port(), site.image);
    verifier.verify(&name("team/blog")).await.unwrap();
    let asked = site.web.seen().len();
    let error = verifier.verify(&name("moved/blog")).await.unwrap_err().to_string();
    assert!(error.contains("redirect from https to another protocol"), "{error}");
    assert_eq!(site.web.seen().len(), asked);
    // With the web's authorities it is nobody, and there is no plain HTTP on that port.
    let error = site.verifier(ONLY_SIGNATURES).verify(&name("team/blog")).await.unwrap_err().to_string();
    assert!(error.contains("x509: certificate signed by unknown authority"), "{error}");
}
