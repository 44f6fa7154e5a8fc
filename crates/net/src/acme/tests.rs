//! An authority that is away. The whole exchange is in `testing/e2e`, with a real one.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::*;
use crate::fixture::TestCa;

const NAME: &str = "a.test";

/// Takes connections and says nothing good: an authority that is down behind its load balancer.
struct Down {
    port: u16,
    tries: Arc<AtomicUsize>,
    tried: Arc<Notify>,
}

impl Down {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let tries = Arc::<AtomicUsize>::default();
        let tried = Arc::<Notify>::default();
        let (counted, told) = (Arc::clone(&tries), Arc::clone(&tried));
        // It ends with the test's process.
        std::thread::spawn(move || {
            for _connection in listener.incoming() {
                counted.fetch_add(1, Ordering::SeqCst);
                told.notify_one();
            }
        });
        Self { port, tries, tried }
    }

    fn acme(&self, cache_dir: Option<PathBuf>, on_demand: bool) -> Acme {
        let config = AcmeConfig {
            directory_url: format!("https://127.0.0.1:{}/dir", self.port),
            domain_name: NAME.to_owned(),
            email: String::new(),
            tos_accepted: true,
            cache_dir,
            key_prefix: "",
            subsystem: "",
            on_demand,
        };
        Acme::new(config, None, TlsPolicy::default()).expect("a configuration")
    }

    /// How often it was tried. They are taken in order, so when this one was, all before were.
    fn tries(&self) -> usize {
        let mut last = std::net::TcpStream::connect(("127.0.0.1", self.port)).expect("connects");
        let _ = std::io::Read::read(&mut last, &mut [0]);
        self.tries.fetch_sub(1, Ordering::SeqCst) - 1
    }
}

/// A certificate that is due, in the file that Go's autocert would have written.
fn cached() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let soon = now() + Duration::from_secs(24 * 3600);
    let (certificate, key) = TestCa::new("").issue_until("", &[NAME.to_owned()], soon);
    let text = [pem::encode("PRIVATE KEY", &key), pem::encode("CERTIFICATE", certificate.der())].concat();
    std::fs::write(folder.path().join(NAME), text).expect("written");
    folder
}

#[tokio::test(start_paused = true)]
async fn the_old_certificate_is_shown_while_the_authority_is_away() {
    let (down, folder) = (Down::start(), cached());
    let acme = down.acme(Some(folder.path().to_owned()), false);
    let identity = Arc::clone(&acme.identity);
    let before = std::fs::read(folder.path().join(NAME)).expect("read");
    let hours = 24;
    let ran = tokio::time::timeout(Duration::from_secs(hours * 3600), acme.run()).await;
    assert!(ran.is_err(), "it tries for ever");
    // More often in the first hour than later, and then about every three quarters of an hour.
    let tries = down.tries();
    assert!((10..60).contains(&tries), "{tries}");
    assert!(!identity.is_empty());
    assert_eq!(std::fs::read(folder.path().join(NAME)).expect("read"), before);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_nobody_asks_for_is_not_ordered() {
    let down = Down::start();
    let acme = down.acme(None, true);
    let resolver = Arc::clone(&acme.resolver);
    let run = acme.run();
    tokio::pin!(run);
    assert!(tokio::time::timeout(Duration::from_secs(3600), &mut run).await.is_err());
    assert_eq!(down.tries(), 0);
    resolver.ask();
    tokio::select! {
        () = &mut run => panic!("it tries for ever"),
        () = down.tried.notified() => {}
    }
}

#[test]
fn pauses_grow_and_have_an_end() {
    let pauses: Vec<u64> = std::iter::successors(Some(RETRY_WITHOUT), |pause| Some(longer(*pause)))
        .take(8)
        .map(|p| p.as_secs())
        .collect();
    assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 2700, 2700]);
}
