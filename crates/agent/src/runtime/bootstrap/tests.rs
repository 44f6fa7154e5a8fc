//! Where bundles come from, and what survives a restart.

use std::net::Shutdown;

use spire_ports::observe::NoMetrics;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::*;
use crate::fixture::{TestCa, domain};

fn sources(folder: &TempDir, source: TrustBundle) -> TrustSources {
    let mut options = Options::new(domain(), folder.path().to_owned(), source);
    options.server_host = "server.test".to_owned();
    options.server_port = 8081;
    let storage = Arc::new(Storage::open(folder.path()).unwrap());
    TrustSources::new(Arc::new(options), storage, Arc::new(NoMetrics), Clock::System)
}

fn file(folder: &TempDir, text: &str, format: BundleFormat) -> TrustBundle {
    let path = folder.path().join("bundle");
    std::fs::write(&path, text).unwrap();
    TrustBundle::Path { path, format }
}

async fn authorities(sources: &mut TrustSources) -> Result<usize, String> {
    match sources.fetch().await {
        Ok(FirstTrust::Authorities(found)) => Ok(found.len()),
        Ok(FirstTrust::Insecure) => Err("insecure".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[tokio::test]
async fn bundles_come_from_files_in_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (TestCa::new(), TestCa::new());
    // A terminal may have written the file: carriage returns do not matter.
    let pem = format!("{}{}", one.pem(), two.pem()).replace('\n', "\r\n");
    let mut pem = sources(&folder, file(&folder, &pem, BundleFormat::Pem));
    assert_eq!(authorities(&mut pem).await, Ok(2));
    let mut bundle = spire_core::spiffe::Bundle::empty(domain());
    let authority =
        spire_core::spiffe::X509Authority { der: one.certificate().der().clone(), tainted: false };
    bundle.x509_authorities.push(authority);
    let document = bundle_doc::marshal(&bundle, bundle_doc::Format::SPIFFE).unwrap();
    let mut spiffe = sources(&folder, file(&folder, &document, BundleFormat::Spiffe));
    assert_eq!(authorities(&mut spiffe).await, Ok(1));
    let mut empty = sources(&folder, file(&folder, "{\"keys\":[]}", BundleFormat::Spiffe));
    assert_eq!(authorities(&mut empty).await.unwrap_err(), "no certificates found in trust bundle");
    let mut wrong = sources(&folder, file(&folder, "{", BundleFormat::Spiffe));
    assert!(authorities(&mut wrong).await.unwrap_err().starts_with("unable to parse SPIFFE trust bundle: "));
    let missing = TrustBundle::Path { path: folder.path().join("no"), format: BundleFormat::Pem };
    let error = authorities(&mut sources(&folder, missing)).await.unwrap_err();
    assert!(error.ends_with("no: no such file or directory"), "{error}");
    assert_eq!(authorities(&mut sources(&folder, TrustBundle::Insecure)).await.unwrap_err(), "insecure");
}

/// Answers one request on a unix socket and gives its first line.
fn answer_once(folder: &TempDir, status: &str, body: &str) -> (PathBuf, JoinHandle<String>) {
    let path = folder.path().join("http.sock");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.into_std().unwrap().shutdown(Shutdown::Write).unwrap();
        String::from_utf8(request).unwrap().lines().next().unwrap().to_owned()
    });
    (path, task)
}

#[tokio::test]
async fn a_service_behind_a_unix_socket_is_told_what_the_bundle_is_for() {
    let folder = tempfile::tempdir().unwrap();
    let (path, request) = answer_once(&folder, "200 OK", &TestCa::new().pem());
    let url = "http://localhost/bundle?z=1&spire-server-port=7".to_owned();
    let source = |path: PathBuf| TrustBundle::Url {
        url: url.clone(),
        unix_socket: Some(path),
        format: BundleFormat::Pem,
    };
    let mut sources = sources(&folder, source(path));
    assert_eq!(authorities(&mut sources).await, Ok(1));
    let started = sources.started_text().replace(':', "%3A");
    assert_eq!(
        request.await.unwrap(),
        format!(
            "GET /bundle?spiffe-trust-domain=test.org&spire-attest-mode=bootstrap&spire-attest-start-time={started}\
             &spire-connection-attempts=1&spire-server-address=server.test&spire-server-port=8081&z=1 HTTP/1.1"
        )
    );
    sources.succeeded().unwrap();
    let (_, request) = answer_once(&folder, "404 Not Found", "");
    assert_eq!(authorities(&mut sources).await.unwrap_err(), "error downloading trust bundle: 404 Not Found");
    assert!(request.await.unwrap().contains("spire-attest-mode=rebootstrap&"));
}

#[tokio::test]
async fn progress_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = sources(&folder, TrustBundle::Insecure);
    assert!(first.is_bootstrap());
    first.fetch().await.unwrap();
    first.fetch().await.unwrap();
    let state = Storage::open(folder.path()).unwrap().bootstrap();
    assert_eq!((state.purpose, state.attempts), (BootstrapUse::Bootstrap, 2));
    assert!(state.started.is_some());
    let mut again = sources(&folder, TrustBundle::Insecure);
    assert!(again.is_bootstrap());
    again.succeeded().unwrap();
    assert!(!sources(&folder, TrustBundle::Insecure).is_bootstrap());
    assert_eq!(again.disagreeing_for().unwrap(), Duration::ZERO);
    again.force_rebootstrap().unwrap();
    assert!(Storage::open(folder.path()).unwrap().bundle().is_none());
}
