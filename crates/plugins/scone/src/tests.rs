//! The plugin against a stand-in for CAS: HTTPS with client certificates, sessions, and the hash chain of each.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use spire_compat::hcl;
use spire_core::pki::{
    Certificate, CertificateTemplate, DistinguishedName, Issuer, KeyType, LocalKey, Profile, SerialNumber,
    pem, self_signed,
};
use spire_core::spiffe::{SpiffeId, TrustDomain};
use spire_core::time::Timestamp;
use spire_net::tls::{Identity, ServerTls, TlsPolicy};
use tempfile::TempDir;

use super::*;

const SVID_TEMPLATE: &str = include_str!("../testdata/svid.yaml");
const BUNDLE_TEMPLATE: &str = include_str!("../testdata/bundle.yaml");
const FEDERATED_TEMPLATE: &str = include_str!("../testdata/federated.yaml");

/// Certificates for CAS and its client.
struct Ca {
    key: LocalKey,
    certificate: Certificate,
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap())
}

impl Ca {
    fn new() -> Self {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let subject = DistinguishedName::default_ca().encode().unwrap();
        let template = CertificateTemplate {
            profile: Profile::Ca,
            serial: SerialNumber::from_random([7; 16]),
            subject: &subject,
            not_before: now() - Duration::from_secs(10),
            not_after: now() + Duration::from_secs(3600),
            public_key: key.public_key(),
            dns_names: &[],
            uri: "spiffe://cas.test",
            policies: &[],
            extra_extensions: &[],
        };
        let unsigned = self_signed(&template).unwrap();
        let signature = key.sign(unsigned.algorithm(), unsigned.bytes()).unwrap();
        let certificate = Certificate::from_der(unsigned.assemble(&signature)).unwrap();
        Self { key, certificate }
    }

    fn leaf(&self, name: &str) -> (Certificate, LocalKey) {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let subject = DistinguishedName::default_svid().encode().unwrap();
        let template = CertificateTemplate {
            profile: Profile::Svid,
            serial: SerialNumber::from_random([9; 16]),
            subject: &subject,
            not_before: now() - Duration::from_secs(10),
            not_after: now() + Duration::from_secs(3600),
            public_key: key.public_key(),
            dns_names: &[name.to_owned()],
            uri: "spiffe://cas.test/x",
            policies: &[],
            extra_extensions: &[],
        };
        let unsigned = Issuer::new(&self.certificate).unwrap().certificate(&template).unwrap();
        let signature = self.key.sign(unsigned.algorithm(), unsigned.bytes()).unwrap();
        (Certificate::from_der(unsigned.assemble(&signature)).unwrap(), key)
    }
}

/// What the stand-in has and was asked.
#[derive(Default)]
struct Sessions {
    by_name: HashMap<String, (String, String)>,
    /// Method, path, type and body of each request.
    requests: Vec<(String, String, String, String)>,
    /// Answers with this instead.
    instead: Option<(StatusCode, &'static str)>,
}

fn line<'a>(text: &'a str, key: &str) -> &'a str {
    text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim()
}

impl Sessions {
    fn post(&mut self, text: String) -> (StatusCode, String) {
        if let Some((status, body)) = self.instead {
            return (status, body.to_owned());
        }
        let (name, predecessor) = (line(&text, "name:").to_owned(), line(&text, "predecessor:"));
        let refused = |status, text: &str| (status, format!("{{\"msg\":[\"{text}\"]}}"));
        match (self.by_name.get(&name), predecessor) {
            (Some(_), "~") => {
                return refused(
                    StatusCode::CONFLICT,
                    "Session already exists, please specify predecessor hash",
                );
            }
            (Some((hash, _)), predecessor) if hash != predecessor => {
                return refused(StatusCode::BAD_REQUEST, "wrong predecessor");
            }
            (None, predecessor) if predecessor != "~" => {
                return refused(StatusCode::NOT_FOUND, "no such session");
            }
            _ => {}
        }
        let digest = digest::digest(&digest::SHA256, text.as_bytes());
        let hash: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        self.by_name.insert(name, (hash.clone(), text));
        (StatusCode::CREATED, format!("{{\"hash\":\"{hash}\"}}"))
    }
}

struct Setup {
    folder: TempDir,
    ca: Ca,
    port: u16,
    cas: Arc<Mutex<Sessions>>,
}

impl Setup {
    async fn start() -> Self {
        let (folder, ca) = (tempfile::tempdir().unwrap(), Ca::new());
        let (certificate, key) = ca.leaf("localhost");
        let identity = Identity::empty();
        identity.replace(&[certificate], &key.to_pkcs8().unwrap()).unwrap();
        let authorities = [ca.certificate.clone()];
        let tls = ServerTls::http_signed_clients(identity, &authorities, TlsPolicy::default()).unwrap();
        let mut incoming = tls.bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let port = incoming.local_addr().unwrap().port();
        let cas: Arc<Mutex<Sessions>> = Arc::default();
        let sessions = Arc::clone(&cas);
        tokio::spawn(async move {
            while let Some(Ok(connection)) = incoming.next().await {
                let sessions = Arc::clone(&sessions);
                let service = service_fn(move |request| answer(Arc::clone(&sessions), request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), service));
            }
        });
        let setup = Self { folder, ca, port, cas };
        let (certificate, key) = setup.ca.leaf("client");
        setup.write("session.crt", &pem::encode("CERTIFICATE", certificate.der()));
        setup.write("session.key", &key.to_pkcs8_pem().unwrap());
        setup.write("anchor.pem", &pem::encode("CERTIFICATE", setup.ca.certificate.der()));
        setup.write("svid.yaml", SVID_TEMPLATE);
        setup.write("bundle.yaml", BUNDLE_TEMPLATE);
        setup.write("federated.yaml", FEDERATED_TEMPLATE);
        setup
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("cas_connection_string", format!("https://localhost:{}", self.port)),
            ("cas_client_certificate", self.path("session.crt")),
            ("cas_client_key", self.path("session.key")),
            ("trust_anchor_certificate", self.path("anchor.pem")),
            ("cas_predecessor_dir", self.path("data/predecessors")),
            ("svid_session_template_file", self.path("svid.yaml")),
            ("bundle_session_template_file", self.path("bundle.yaml")),
            ("federated_bundles_session_template_file", self.path("federated.yaml")),
        ]
    }

    async fn plugin_with(&self, changes: &[(&'static str, &str)]) -> Result<SessionManager> {
        let mut settings: HashMap<&str, String> = self.settings().into_iter().collect();
        for (key, value) in changes {
            settings.insert(key, (*value).to_owned());
        }
        let lines = settings.iter().map(|(key, value)| match value.as_str() {
            "true" => format!("{key} = true\n"),
            value => format!("{key} = {value:?}\n"),
        });
        let data = hcl::parse(lines.collect::<String>()).unwrap().into();
        let domain = TrustDomain::parse("example.org").unwrap();
        let configuration = Configuration::new((PluginType::SvidStore, NAME), domain, Some(data));
        let plugin = SessionManager::new(&configuration).await?;
        Ok(SessionManager { cas: plugin.cas.without_waits(), ..plugin })
    }

    async fn plugin(&self) -> SessionManager {
        self.plugin_with(&[]).await.unwrap()
    }

    fn hash_file(&self, session: &str) -> std::io::Result<String> {
        std::fs::read_to_string(self.folder.path().join("data/predecessors").join(session))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.cas.lock().by_name.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    fn calls(&self) -> usize {
        self.cas.lock().requests.len()
    }
}

async fn answer(
    sessions: Arc<Mutex<Sessions>>,
    request: Request<Incoming>,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let kind = head.headers["content-type"].to_str().unwrap().to_owned();
    let mut sessions = sessions.lock();
    sessions.requests.push((head.method.to_string(), head.uri.path().to_owned(), kind, body.clone()));
    let (status, text) = sessions.post(body);
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    Ok(response)
}

fn svid(ca: &Ca, intermediates: bool, federated: bool) -> StoredSvid {
    let (leaf, key) = ca.leaf("workload");
    let root = ca.certificate.der().clone();
    let mut chain = vec![leaf.der().clone()];
    if intermediates {
        chain.push(root.clone());
    }
    let federated_bundles = match federated {
        true => vec![(TrustDomain::parse("far.org").unwrap(), vec![root.clone()])],
        false => Vec::new(),
    };
    StoredSvid {
        spiffe_id: SpiffeId::parse("spiffe://example.org/service").unwrap(),
        chain,
        private_key: key.to_pkcs8().unwrap().to_vec().into(),
        bundle: vec![root],
        federated_bundles,
        expires_at: leaf.not_after(),
    }
}

const HASH: &str = "session_hash:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn metadata(values: &[&str]) -> Vec<String> {
    [&["session_name:ns/web", HASH], values].concat().iter().map(|value| (*value).to_owned()).collect()
}

#[tokio::test]
async fn sessions_are_created_and_then_updated_by_their_hash() {
    use std::os::unix::fs::PermissionsExt as _;
    let setup = Setup::start().await;
    let plugin = setup.plugin().await;
    let all = metadata(&["trust_bundle_session_name:ns/ca", "fed_bundles_session_name:ns/far"]);
    let first = svid(&setup.ca, true, true);
    plugin.put(&first, &all).await.unwrap();
    assert_eq!(setup.names(), ["ns/ca-injector", "ns/far", "ns/web-injector"]);
    assert_eq!(setup.calls(), 3);
    let (method, path, kind, text) = setup.cas.lock().requests[0].clone();
    assert_eq!((method.as_str(), path.as_str(), kind.as_str()), ("POST", "/session", "application/text"));
    let indented = |der: &[u8], label: &str| pem::encode(label, der).replace('\n', "\n        ");
    for expected in [
        "predecessor: ~\n".to_owned(),
        "      session: ns/web\n".to_owned(),
        format!("      session_hash: {}\n", &HASH["session_hash:".len()..]),
        format!("    value: |\n        {}\n    issuer:", indented(&first.chain[0], "CERTIFICATE")),
        format!("    value: |\n        {}\n  - name: svid_key", indented(&first.chain[1], "CERTIFICATE")),
        format!("    value: |\n        {}\n", indented(&first.private_key, "PRIVATE KEY")),
    ] {
        assert!(text.contains(&expected), "{expected}\n in\n{text}");
    }
    let stored = setup.hash_file("ns/web-injector").unwrap();
    assert_eq!(stored, setup.cas.lock().by_name["ns/web-injector"].0);
    let file = setup.folder.path().join("data/predecessors/ns/web-injector");
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);

    // Renewed, by a plugin that was started anew.
    drop(plugin);
    setup.plugin().await.put(&svid(&setup.ca, false, false), &all).await.unwrap();
    assert_eq!(setup.calls(), 5, "nothing is federated any more");
    assert_eq!(line(&setup.cas.lock().requests[3].3, "predecessor:"), stored);
    assert_ne!(setup.hash_file("ns/web-injector").unwrap(), stored);
    assert_eq!(setup.plugin().await.delete(&all).await, Ok(()));
    assert_eq!(setup.calls(), 5, "CAS deletes nothing");
}

#[tokio::test]
async fn what_cas_forgot_is_created_again_and_what_we_lost_is_not_found() {
    let setup = Setup::start().await;
    let plugin = setup.plugin().await;
    let values = metadata(&[]);
    plugin.put(&svid(&setup.ca, true, false), &values).await.unwrap();
    assert_eq!(setup.names(), ["ns/web-injector"], "without a name the bundle's session is left out");
    setup.cas.lock().by_name.clear();
    plugin.put(&svid(&setup.ca, true, false), &values).await.unwrap();
    assert_eq!(setup.calls(), 3, "once refused, once created");

    std::fs::remove_dir_all(setup.folder.path().join("data")).unwrap();
    let error = plugin.put(&svid(&setup.ca, true, false), &values).await.unwrap_err();
    assert_eq!(setup.calls(), 8, "five tries");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert_eq!(
        error.message,
        "unable to post svid into cas: max retries exceeded! Cannot post SVID and its key into CAS unknown \
         predecessor hash needed for the session=ns/web-injector Reconfigure your CAS"
    );
}

#[tokio::test]
async fn refusals_and_odd_answers_are_told() {
    let setup = Setup::start().await;
    let plugin = setup.plugin().await;
    let put = async |values: &[&str]| {
        plugin.put(&svid(&setup.ca, true, true), &metadata(values)).await.unwrap_err()
    };
    let before = "unable to post svid into cas: max retries exceeded! Cannot post SVID and its key into CAS ";
    let not_json = "cannot decode JSON response from CAS";
    for (status, body, told) in [
        (500, "{\"msg\":[\"no\"]}", "error={\"msg\":[\"no\"]}"),
        (201, "Created Session[id=1]", not_json),
        (201, "{\"hash\":\"../../x\"}", not_json),
        (200, "{\"hash\":\"00\"}", "error={\"hash\":\"00\"}"),
    ] {
        setup.cas.lock().instead = Some((StatusCode::from_u16(status).unwrap(), body));
        let error = put(&[]).await;
        assert_eq!((error.kind, error.message), (ErrorKind::Unavailable, format!("{before}{told}")));
    }
    setup.cas.lock().instead = None;
    let error = put(&["trust_bundle_session_name:a b"]).await;
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    let calls = setup.calls();
    let error =
        plugin.put(&svid(&setup.ca, true, false), &["session_name:ns/web".to_owned()]).await.unwrap_err();
    assert_eq!(
        error.message,
        "cannot extract workload info from selectors: selectors session_name and session_hash required"
    );
    assert_eq!(setup.calls(), calls);
}

#[tokio::test]
async fn only_the_cas_of_the_anchor_is_trusted_unless_asked() {
    let setup = Setup::start().await;
    let others = Ca::new();
    setup.write("other.pem", &pem::encode("CERTIFICATE", others.certificate.der()));
    let other = setup.path("other.pem");
    let plugin = setup.plugin_with(&[("trust_anchor_certificate", other.as_str())]).await.unwrap();
    let error = plugin.put(&svid(&setup.ca, true, false), &metadata(&[])).await.unwrap_err();
    let wanted = format!(
        "Post \"https://localhost:{}/session\": tls: failed to verify certificate: x509: certificate signed by unknown \
         authority",
        setup.port
    );
    assert!(error.message.ends_with(&wanted), "{error}");
    assert_eq!(setup.calls(), 0);
    let changes = [("trust_anchor_certificate", other.as_str()), ("insecure_skip_verify_tls", "true")];
    setup
        .plugin_with(&changes)
        .await
        .unwrap()
        .put(&svid(&setup.ca, true, false), &metadata(&[]))
        .await
        .unwrap();
    assert_eq!(setup.names(), ["ns/web-injector"]);

    // And CAS trusts its own clients only.
    let (certificate, key) = others.leaf("client");
    setup.write("session.crt", &pem::encode("CERTIFICATE", certificate.der()));
    setup.write("session.key", &key.to_pkcs8_pem().unwrap());
    let calls = setup.calls();
    setup.plugin().await.put(&svid(&setup.ca, true, false), &metadata(&[])).await.unwrap_err();
    assert_eq!(setup.calls(), calls);
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused() {
    let setup = Setup::start().await;
    setup.write("nameless.yaml", "version: \"0.3\"\n");
    setup.write("junk", "junk");
    let (nameless, junk) = (setup.path("nameless.yaml"), setup.path("junk"));
    let gone = "/nowhere/x";
    let cases = [
        (
            "bundle_session_template_file",
            gone,
            ErrorKind::InvalidArgument,
            "unable to parse bundle session template: open /nowhere/x: no such file or directory",
        ),
        (
            "federated_bundles_session_template_file",
            gone,
            ErrorKind::InvalidArgument,
            "unable to parse federated bundles session template: open /nowhere/x: no such file or directory",
        ),
        (
            "svid_session_template_file",
            gone,
            ErrorKind::InvalidArgument,
            "unable to parse svid session template: open /nowhere/x: no such file or directory",
        ),
        (
            "bundle_session_template_file",
            &nameless,
            ErrorKind::InvalidArgument,
            "unable to get ca session name from template: cannot find session name in template",
        ),
        (
            "federated_bundles_session_template_file",
            &nameless,
            ErrorKind::InvalidArgument,
            "unable to get federated bundles session name from template: cannot find session name in template",
        ),
        (
            "svid_session_template_file",
            &nameless,
            ErrorKind::InvalidArgument,
            "unable to svid session prefix name from template: cannot find session name in template",
        ),
        (
            "trust_anchor_certificate",
            gone,
            ErrorKind::Unknown,
            "cannot append append trust anchor certificate to CA pool",
        ),
        (
            "trust_anchor_certificate",
            &junk,
            ErrorKind::Unknown,
            "cannot append append trust anchor certificate to CA pool",
        ),
        ("cas_client_certificate", gone, ErrorKind::Unknown, "open /nowhere/x: no such file or directory"),
    ];
    for (key, value, kind, message) in cases {
        let error = setup.plugin_with(&[(key, value)]).await.err().unwrap();
        assert_eq!((error.kind, error.message.as_str()), (kind, message), "{key}");
    }
    for (key, value, kind) in [
        ("cas_predecessor_dir", "", ErrorKind::Internal),
        ("cas_client_key", junk.as_str(), ErrorKind::Unknown),
    ] {
        assert_eq!(setup.plugin_with(&[(key, value)]).await.err().unwrap().kind, kind, "{key}");
    }
    assert!(Path::new(&setup.path("data/predecessors")).is_dir());
}
