//! Requests and answers. What SPIRE's provider answered to the same requests is in `testing/e2e`; here are the rules.

use http::Request;
use http_body_util::BodyExt;
use spire_compat::url::Url;
use spire_core::time::Timestamp;

use super::*;
use crate::fixture;

const PLAIN_CLIENT: Client = Client { address: None, is_tls: false };
const DISCOVERY: &str = "/.well-known/openid-configuration";
const MODIFIED: Timestamp = Timestamp::from_unix(784_111_777);

fn service(change: impl FnOnce(&mut Documents)) -> Service {
    let mut documents = fixture::documents(&["a.test", "b.test"]);
    change(&mut documents);
    let keys = Arc::<Keys>::default();
    keys.publish(KeySet::encode(&[fixture::key("one", fixture::EC_KEY)], false, MODIFIED));
    Service::new(documents, keys, true)
}

fn ask(service: &Service, method: &str, uri: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    service.answer(&request.body(()).unwrap().into_parts().0, PLAIN_CLIENT)
}

async fn body(answer: Answer) -> String {
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn issuer(service: &Service, headers: &[(&str, &str)]) -> Result<String, String> {
    let answer = ask(service, "GET", DISCOVERY, headers);
    let status = answer.status();
    let body = body(answer).await;
    if !status.is_success() {
        return Err(format!("{} {}", status.as_u16(), body.trim_end()));
    }
    let line = body.lines().find(|line| line.contains("issuer")).unwrap_or_default();
    Ok(line.trim().trim_start_matches("\"issuer\": ").trim_end_matches(',').trim_matches('"').to_owned())
}

/// SPIRE 1.11.1 left out the look at the domain where an issuer was configured, and so served under any name.
#[tokio::test]
async fn no_setting_takes_away_the_look_at_the_domain() {
    let url = |text: &str| Some(Url::parse(text).unwrap());
    let settings: [fn(&mut Documents, Option<Url>); 5] = [
        |_, _| {},
        |documents, url| documents.jwt_issuer = url,
        |documents, url| documents.jwks_uri = url,
        |documents, url| (documents.jwt_issuer, documents.jwks_uri) = (url.clone(), url),
        |documents, url| (documents.jwt_issuer, documents.allow_insecure_scheme) = (url, true),
    ];
    for setting in settings {
        let service = service(|documents| setting(documents, url("https://issuer.test")));
        for headers in [
            &[("host", "evil.test")][..],
            &[("host", "a.test"), ("x-forwarded-host", "evil.test")],
            // What the documents will say is no name of ours either.
            &[("host", "issuer.test")],
        ] {
            let refused = issuer(&service, headers).await.unwrap_err();
            let host = headers.last().unwrap().1;
            assert_eq!(refused, format!("400 domain \"{host}\" is not allowed"));
        }
        issuer(&service, &[("host", "a.test")]).await.unwrap();
    }
}

#[tokio::test]
async fn the_issuer_is_the_host_that_was_asked() {
    let service = service(|_| {});
    for (headers, expected) in [
        (&[("host", "a.test")][..], Ok("https://a.test")),
        (&[("host", "b.test:8443")], Ok("https://b.test:8443")),
        (&[("host", "evil.test"), ("x-forwarded-host", "a.test")], Ok("https://a.test")),
        (&[("host", "a.test"), ("x-forwarded-host", "")], Ok("https://a.test")),
        (
            &[("host", "a.test"), ("x-forwarded-host", "b.test"), ("x-forwarded-host", "evil.test")],
            Ok("https://b.test"),
        ),
        (&[("host", "a.test"), ("x-forwarded-proto", "http")], Ok("https://a.test")),
        (&[], Err("400 400 Bad Request: missing required Host header")),
        (&[("host", "a b")], Err("400 400 Bad Request: malformed Host header")),
        (&[("host", "a.test"), ("host", "b.test")], Err("400 400 Bad Request")),
        (&[("host", "A.test")], Err("400 domain \"A.test\" must already be punycode encoded")),
    ] {
        let found = issuer(&service, headers).await;
        assert_eq!(found.as_deref().map_err(String::as_str), expected, "{headers:?}");
    }
    let absolute = ask(&service, "GET", &format!("http://a.test{DISCOVERY}"), &[("host", "evil.test")]);
    assert_eq!(absolute.status(), 200, "the request line counts");
    let other = ask(&service, "GET", &format!("http://evil.test{DISCOVERY}"), &[("host", "a.test")]);
    assert_eq!(other.status(), 400);
}

#[tokio::test]
async fn plain_urls_are_for_plain_clients_of_who_allows_them() {
    let service = service(|documents| documents.allow_insecure_scheme = true);
    for (headers, expected) in [
        (&[("host", "a.test")][..], "http://a.test"),
        (&[("host", "a.test"), ("x-forwarded-proto", "HTTPS")], "https://a.test"),
        (&[("host", "a.test"), ("x-forwarded-scheme", "https")], "https://a.test"),
        (&[("host", "a.test"), ("forwarded", "for=1.2.3.4;Proto=HTTPS")], "https://a.test"),
        (&[("host", "a.test"), ("forwarded", "for=1.2.3.4;proto=ftp")], "http://a.test"),
        (&[("host", "a.test"), ("forwarded", "host=evil.test")], "http://a.test"),
    ] {
        assert_eq!(issuer(&service, headers).await.as_deref(), Ok(expected), "{headers:?}");
    }
    let request = Request::builder().uri(DISCOVERY).header("host", "a.test").body(()).unwrap();
    let answer = service.answer(&request.into_parts().0, Client { address: None, is_tls: true });
    assert!(body(answer).await.contains("\"https://a.test\""));
}

#[tokio::test]
async fn keys_are_the_same_for_every_host() {
    let service = service(|_| {});
    let answer = ask(&service, "GET", "/keys", &[("host", "evil.test")]);
    let names: Vec<&str> = answer.headers().keys().map(HeaderName::as_str).collect();
    assert_eq!(
        names,
        [
            "accept-ranges",
            "access-control-allow-origin",
            "cache-control",
            "content-length",
            "content-type",
            "expires",
            "last-modified",
            "pragma",
            "date"
        ]
    );
    assert_eq!(answer.headers()["last-modified"], "Sun, 06 Nov 1994 08:49:37 GMT");
    assert_eq!(answer.headers()["content-length"], fixture::EC_JWKS.len().to_string().as_str());
    assert_eq!(body(answer).await, fixture::EC_JWKS);
}

#[tokio::test]
async fn before_there_are_keys_and_where_there_are_none() {
    let service = Service::new(fixture::documents(&["a.test"]), Arc::default(), false);
    let answer = ask(&service, "GET", "/keys", &[("host", "a.test")]);
    assert_eq!(answer.status(), 500);
    assert_eq!(body(answer).await, "document not available\n");
    service.keys.publish(KeySet::encode(&[], false, MODIFIED));
    let answer = ask(&service, "GET", "/keys", &[("host", "a.test")]);
    assert_eq!(answer.status(), 501);
    assert_eq!(body(answer).await, "jwt not supported/enabled in this service\n");
}

#[tokio::test]
async fn other_methods_and_paths() {
    let service = service(|_| {});
    let host = [("host", "a.test")];
    for (method, path, status, text) in [
        ("POST", "/keys", 405, "method not allowed\n"),
        ("HEAD", "/keys", 405, "method not allowed\n"),
        ("get", "/keys", 405, "method not allowed\n"),
        ("DELETE", DISCOVERY, 405, "method not allowed\n"),
        ("GET", "/", 404, "404 page not found\n"),
        ("POST", "/keys/", 404, "404 page not found\n"),
        ("OPTIONS", "*", 200, ""),
        ("GET", "*", 400, ""),
        ("GET", "//keys?a='b'&c", 307, "<a href=\"/keys?a=&#39;b&#39;&amp;c\">Temporary Redirect</a>.\n\n"),
        ("POST", "/x/../keys", 307, ""),
    ] {
        let answer = ask(&service, method, path, &host);
        assert_eq!(answer.status().as_u16(), status, "{method} {path}");
        if status == 307 {
            assert!(answer.headers()["location"].to_str().unwrap().starts_with("/keys"));
        }
        assert_eq!(body(answer).await, text, "{method} {path}");
    }
}

#[tokio::test]
async fn parts_of_the_keys() {
    let service = service(|_| {});
    let ranged = |range: &str| ask(&service, "GET", "/keys", &[("host", "a.test"), ("range", range)]);
    let answer = ranged("bytes=4-9");
    assert_eq!((answer.status().as_u16(), answer.headers()["content-length"].as_bytes()), (206, &b"6"[..]));
    let size = fixture::EC_JWKS.len();
    assert_eq!(answer.headers()["content-range"], format!("bytes 4-9/{size}").as_str());
    assert_eq!(body(answer).await, &fixture::EC_JWKS[4..10]);
    let answer = ranged("bytes=0-0,5-6");
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap().to_owned();
    assert_eq!(boundary.len(), 60);
    let length: usize = answer.headers()["content-length"].to_str().unwrap().parse().unwrap();
    let text = body(answer).await;
    assert_eq!(text.len(), length);
    let part = |range: &str, content: &str| {
        format!(
            "--{boundary}\r\nContent-Range: bytes {range}/{size}\r\nContent-Type: application/json\r\n\r\n{content}\r\n"
        )
    };
    let parts = format!("{}{}--{boundary}--\r\n", part("0-0", "{"), part("5-6", &fixture::EC_JWKS[5..7]));
    assert_eq!(text, parts);
    let answer = ranged(&format!("bytes={size}-"));
    assert_eq!(answer.status(), 416);
    assert_eq!(answer.headers()["content-range"], format!("bytes */{size}").as_str());
    assert_eq!(body(answer).await, "invalid range: failed to overlap\n");
    let known = ask(
        &service,
        "GET",
        "/keys",
        &[("host", "a.test"), ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")],
    );
    assert_eq!(known.status(), 304);
    assert!(!known.headers().contains_key("content-type") && !known.headers().contains_key("content-length"));
    assert_eq!(ask(&service, "GET", "/keys", &[("host", "a.test"), ("if-match", "\"x\"")]).status(), 412);
}
