//! Requests to the OIDC discovery provider: whatever a stranger sends, an answer is about a domain that is configured.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Request};
use spire_core::time::Timestamp;
use spire_fuzz::input_or_changed;
use spire_net::http_server::Client;
use spire_oidc::config::OidcConfig;
use spire_oidc::source::Keys;
use spire_oidc::{KeySet, Service};

const CONFIG: &str =
    "domains = [\"a.test\"]\ninsecure_addr = \":1\"\nfile {}\nallow_insecure_scheme = true\n";
/// Lines of a request without its end: method, target, then headers.
const REQUESTS: [&[u8]; 3] = [
    b"GET\n/.well-known/openid-configuration?q\nhost: a.test:80\nx-forwarded-host: a.test\nforwarded: proto=https",
    b"GET\n/keys\nhost: a.test\nrange: bytes=0-3,5-6,-2\nif-range: Sun, 06 Nov 1994 08:49:37 GMT\nif-none-match: W/\"x\", *",
    b"HEAD\nhttp://a.test//x/../%41<b>?a\nhost: [::1]:80\nx-forwarded-proto: HTTPS\nif-modified-since: Sunday, 06-Nov-94 08:49:37 GMT",
];

#[test]
fn requests() {
    let config = OidcConfig::parse("fuzz", CONFIG).expect("a configuration");
    let keys = Arc::<Keys>::default();
    // One that is empty is not served; this one is a document like any other to ranges and conditions.
    keys.publish(KeySet {
        body: vec![b'x'; 300].into(),
        modified: Timestamp::from_unix(784_111_777),
        len: 1,
    });
    // A panic ends the run, so nothing is seen of what it leaves.
    let service = AssertUnwindSafe(Service::new(config.serving.documents, keys, false));
    let client = Client { address: None, is_tls: false };
    bolero::check!().for_each(|input: &[u8]| {
        let text = input_or_changed(&REQUESTS, input);
        let mut lines = text.split(|byte| *byte == b'\n');
        let method = lines.next().unwrap_or_default();
        let target = lines.next().unwrap_or_default();
        let mut request = Request::builder().method(method).uri(target);
        for line in lines {
            let mut parts = line.splitn(2, |byte| *byte == b':');
            let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let name = HeaderName::from_bytes(name);
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.trim_ascii())) {
                request = request.header(name, value);
            }
        }
        let Ok(request) = request.body(()) else { return };
        let head = request.into_parts().0;
        let answer = service.answer(&head, client);
        let is_document = answer.headers().get("content-type").is_some_and(|kind| kind == "application/json");
        if answer.status() == 200 && is_document && answer.headers().get("last-modified").is_none() {
            let named = [head.headers.get("x-forwarded-host"), head.headers.get("host")];
            let of_line = head.uri.authority().map(|authority| authority.as_str().as_bytes());
            let named = named.into_iter().flatten().map(HeaderValue::as_bytes).chain(of_line);
            assert!(named.into_iter().any(|name| name.windows(6).any(|bytes| bytes == b"a.test")));
        }
    });
}
