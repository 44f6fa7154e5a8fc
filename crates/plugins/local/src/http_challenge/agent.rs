//! The agent's side: serves the server's nonce until that has looked (pkg/agent/plugin/nodeattestor/httpchallenge).

use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use spire_compat::errno::errno_text;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{AgentNodeAttestor, AttestationStream, Error, ErrorKind, PluginType, Result};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Challenge, NAME, Payload, path};
use crate::machine::{blocking, read};

/// How long a connection may take for its request and for the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Connections at once: the server's, and whoever else happens to look.
const CONNECTIONS_MAX: usize = 16;

/// Settings as written, and where to listen.
#[derive(Clone, Debug, Default)]
struct Settings {
    hostname: String,
    agentname: String,
    port: u16,
    advertised_port: i64,
}

struct HttpChallenge {
    settings: Settings,
}

/// The attestor.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn AgentNodeAttestor>> {
    let (mut settings, port) = configuration
        .decode(|data| {
            let port = data.take_int("port")?.unwrap_or_default();
            let settings = Settings {
                hostname: data.take_string("hostname")?.unwrap_or_default(),
                agentname: data.take_string("agentname")?.unwrap_or_default(),
                port: 0,
                advertised_port: data.take_int("advertised_port")?.unwrap_or_default(),
            };
            Ok((settings, port))
        })
        .map_err(|error| configuration.invalid(format!("unable to decode configuration: {error}")))?;
    settings.port =
        u16::try_from(port).map_err(|_| configuration.invalid(format!("port {port} is not a port")))?;
    if settings.hostname.is_empty() {
        // What Go's os.Hostname reads first is the kernel's name too.
        let name = blocking(|| read("/proc/sys/kernel/hostname")).await;
        let name =
            name.map_err(|error| configuration.invalid(format!("unable to fetch hostname: {error}")))?;
        settings.hostname = String::from_utf8_lossy(name.trim_ascii()).into_owned();
    }
    if settings.agentname.is_empty() {
        settings.agentname = "default".to_owned();
    }
    if settings.advertised_port == 0 {
        settings.advertised_port = port;
    }
    Ok(Arc::new(HttpChallenge { settings }))
}

fn internal(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Internal, (PluginType::NodeAttestor, NAME), message)
}

#[async_trait]
impl AgentNodeAttestor for HttpChallenge {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, server: &mut dyn AttestationStream) -> Result<()> {
        let Settings { hostname, agentname, port, advertised_port } = self.settings.clone();
        let refused = |error: io::Error| {
            let reason = errno_text(&error);
            internal(format!("could not listen on port {port}: listen tcp :{port}: bind: {reason}"))
        };
        let listener = spire_net::listen_on((Ipv4Addr::UNSPECIFIED, port).into()).await.map_err(refused)?;
        let port = match advertised_port {
            0 => i64::from(listener.local_addr().map_err(refused)?.port()),
            port => port,
        };
        let location = path(&agentname);
        let payload = serde_json::to_vec(&Payload { hostname, agentname, port })
            .map_err(|error| internal(format!("unable to marshal attestation data: {error}")))?;
        let Some(challenge) = server.send_payload(payload.into()).await? else { return Ok(()) };
        let challenge: Challenge = serde_json::from_slice(&challenge)
            .map_err(|error| internal(format!("unable to unmarshal challenge: {error}")))?;
        tracing::debug!(
            external = false,
            plugin_name = NAME,
            plugin_type = "NodeAttestor",
            path = location,
            "Setting up nonce handler"
        );
        // An empty response would count as none.
        let answer = tokio::select! {
            answer = server.respond(Bytes::from_static(b"\n")) => answer?,
            never = serve(listener, location, challenge.nonce) => match never {},
        };
        match answer {
            None => Ok(()),
            Some(_) => Err(internal("the server sent a second challenge")),
        }
    }
}

/// Serves the nonce. Connections end when this is dropped.
async fn serve(listener: TcpListener, location: String, nonce: String) -> Infallible {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (location, nonce): (Arc<str>, Arc<str>) = (location.into(), nonce.into());
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let permit = Arc::clone(&room).acquire_owned().await;
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else {
            // Too many open files, for example; it passes.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (location, nonce) = (Arc::clone(&location), Arc::clone(&nonce));
        connections.spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(request.uri().path() == &*location, &nonce);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(TIMEOUT).keep_alive(false);
            let served = http.serve_connection(TokioIo::new(stream), service);
            // Who breaks off or is too slow gets no answer, and nobody waits for it.
            let _ = tokio::time::timeout(2 * TIMEOUT, served).await;
        });
    }
}

fn answer(found: bool, nonce: &str) -> Response<Full<Bytes>> {
    let (status, text) = match found {
        true => (StatusCode::OK, format!("{nonce}\n")),
        false => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
