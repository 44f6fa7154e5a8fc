//! A web server that a test writes the answers of: HTTP/1.1 over TLS or without, on a TCP port or a unix socket.
//!
//! It stands in for what a test machine has not: an API server, a kubelet, an engine that hangs.

use std::io::{self, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::authority::{Authority, Pair};
use crate::error::{Error, Result};
use crate::wait;

/// How long a connection may say nothing before its thread looks whether the server has ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a TLS client says first; to one who speaks no TLS it would be the start of an endless line.
const TLS_HANDSHAKE: u8 = 0x16;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET` and so on.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case, with values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// Whether the client showed a certificate that the authority of clients issued.
    pub has_certificate: bool,
}

impl Request {
    /// The first value of a header, given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A status and a JSON body.
    Json(u16, String),
    /// A status, a content type and a body.
    Body(u16, &'static str, Vec<u8>),
    /// Nothing, for as long as the client waits.
    Hang,
    /// These bytes, whatever they are, and the connection ends.
    Raw(Vec<u8>),
}

type Handler = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

/// A running server; it ends with this value.
pub struct Web {
    port: u16,
    shared: Arc<Shared>,
    wake: Box<dyn Fn() + Send + Sync>,
}

struct Shared {
    ended: AtomicBool,
    handler: Handler,
    tls: Option<Arc<ServerConfig>>,
    seen: Mutex<Vec<Request>>,
}

/// Configures TLS with this certificate. Clients may show a certificate of `clients`; without one they may not.
///
/// # Errors
/// The certificate cannot be used.
pub fn tls(pair: &Pair, clients: Option<&Authority>) -> Result<Arc<ServerConfig>> {
    let failed = |error: &dyn std::fmt::Display| Error::doing("TLS of a test server", error);
    let certificate =
        CertificateDer::from_pem_slice(pair.certificate.as_bytes()).map_err(|error| failed(&error))?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).map_err(|error| failed(&error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(clients.der().to_vec().into()).map_err(|error| failed(&error))?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| failed(&error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder.with_single_cert(vec![certificate], key).map_err(|error| failed(&error))?;
    Ok(Arc::new(config))
}

impl Web {
    /// Listens on a port of 127.0.0.1.
    ///
    /// # Errors
    /// No port is free.
    pub fn start(
        tls: Option<Arc<ServerConfig>>,
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Result<Self> {
        let failed = |error| Error::doing("starting a test server", error);
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Shared::new(tls, Arc::new(handler));
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if accepting.ended.load(Ordering::Acquire) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // A connection that breaks is the client's affair.
                thread::spawn(move || drop(shared.tcp(stream)));
            }
        });
        Ok(Self { port: address.port(), shared, wake: Box::new(move || drop(TcpStream::connect(address))) })
    }

    /// Listens on a unix socket.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start_unix(
        path: &Path,
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = UnixListener::bind(path).map_err(|error| Error::doing(path.display(), error))?;
        let shared = Shared::new(None, Arc::new(handler));
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if accepting.ended.load(Ordering::Acquire) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(LOOK_EVERY));
                    drop(shared.converse(stream, false));
                });
            }
        });
        let path = path.to_owned();
        Ok(Self { port: 0, shared, wake: Box::new(move || drop(UnixStream::connect(&path))) })
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Request> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until there were so many requests.
    ///
    /// # Errors
    /// They did not come in that time.
    pub fn wait_seen(&self, count: usize, at_most: Duration) -> Result<Vec<Request>> {
        wait::until(&format!("request number {count}"), at_most, || {
            let seen = self.seen();
            (seen.len() >= count).then_some(seen)
        })
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        (self.wake)();
    }
}

impl Shared {
    fn new(tls: Option<Arc<ServerConfig>>, handler: Handler) -> Arc<Self> {
        Arc::new(Self { ended: AtomicBool::new(false), handler, tls, seen: Mutex::default() })
    }

    fn tcp(&self, stream: TcpStream) -> io::Result<()> {
        let Some(config) = &self.tls else {
            let mut first = [0];
            if stream.peek(&mut first)? == 1 && first == [TLS_HANDSHAKE] {
                return Ok(());
            }
            stream.set_read_timeout(Some(LOOK_EVERY))?;
            return self.converse(stream, false);
        };
        let connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        let has_certificate = stream.conn.peer_certificates().is_some();
        stream.sock.set_read_timeout(Some(LOOK_EVERY))?;
        self.converse(stream, has_certificate)
    }

    /// Answers requests until the client has no more or the server ends.
    fn converse(&self, stream: impl Read + Write, has_certificate: bool) -> io::Result<()> {
        let mut stream = BufReader::new(Patient { stream, ended: &self.ended });
        while let Some(mut request) = read_request(&mut stream)? {
            request.has_certificate = has_certificate;
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
            let (status, kind, body) = match (self.handler)(&request) {
                Answer::Json(status, body) => (status, "application/json", body.into_bytes()),
                Answer::Body(status, kind, body) => (status, kind, body),
                Answer::Raw(bytes) => return stream.get_mut().stream.write_all(&bytes),
                Answer::Hang => {
                    // Until the client goes away.
                    let mut rest = [0; 64];
                    while stream.read(&mut rest)? > 0 {}
                    return Ok(());
                }
            };
            let head = format!(
                "HTTP/1.1 {status} Whatever\r\nContent-Type: {kind}\r\nApi-Version: 1.41\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let out = &mut stream.get_mut().stream;
            out.write_all(head.as_bytes())?;
            out.write_all(&body)?;
            out.flush()?;
        }
        Ok(())
    }
}

/// Reads on after a timeout, unless the server has ended.
struct Patient<'a, S> {
    stream: S,
    ended: &'a AtomicBool,
}

impl<S: Read> Read for Patient<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if self.ended.load(Ordering::Acquire) {
                        return Ok(0);
                    }
                }
                done => return done,
            }
        }
    }
}

fn read_request(stream: &mut impl io::BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.and_then(|(_, value)| value.parse().ok()).unwrap_or_default();
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some(Request { method, target, headers, body, has_certificate: false }))
}
