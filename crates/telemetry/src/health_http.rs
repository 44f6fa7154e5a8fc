//! The HTTP listener of the health checks: two paths, a bounded number of connections, ten seconds for a header.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::health::HealthServer;

/// Listens on `host:port` and serves until the future is dropped; open connections end with it.
pub(crate) async fn listen(health: HealthServer, address: &str) -> io::Result<()> {
    serve(health, TcpListener::bind(address).await?).await
}

async fn serve(health: HealthServer, listener: TcpListener) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // A peer that is gone again, or no descriptor left: neither ends the listener.
                tracing::debug!(%error, "Health check connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let health = health.clone();
        connections.spawn(async move {
            let _slot = slot;
            let served = tokio::time::timeout(MAX_CONNECTION_AGE, connection(health, stream)).await;
            if let Ok(Err(error)) = served {
                tracing::debug!(target: "spire_telemetry::health", %error, "Health check connection failed");
            }
        });
    }
}

async fn connection(health: HealthServer, stream: TcpStream) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&health, request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn respond(health: &HealthServer, path: &str) -> Response<Full<Bytes>> {
    let (status, content_type, body) = match health.config().probe(path) {
        Some(probe) => {
            let (well, body) = health.answer(probe);
            let status = if well { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
            (status, "application/json", body)
        }
        None => (StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Probes are few; more than these at once are someone else.
const MAX_CONNECTIONS: usize = 64;

/// The reference's `ReadHeaderTimeout`.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that is kept open gives its slot back in the end.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(300);

/// Room for a request line and headers; hyper's least is 8 KiB.
const MAX_HEADER: usize = 16 << 10;

/// Keeps the listener from spinning while the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use spire_ports::observe::{HealthCheck, HealthChecks, HealthState, check};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use crate::health::HealthConfig;

    use super::*;

    struct Fixed(Option<&'static str>);

    #[async_trait::async_trait]
    impl HealthCheck for Fixed {
        async fn check_health(&self) -> HealthState {
            HealthState::of_error(
                "get_bundle_err",
                self.0.as_ref().map(|error| error as &dyn std::fmt::Display),
            )
        }
    }

    async fn get(address: std::net::SocketAddr, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    async fn start(error: Option<&'static str>) -> (std::net::SocketAddr, JoinSet<io::Result<()>>) {
        let checks = HealthChecks::new();
        checks.add(check::SERVER, Arc::new(Fixed(error))).unwrap();
        let config = HealthConfig { live_path: "/alive".into(), ..HealthConfig::default() };
        let health = HealthServer::new(config, checks);
        health.round().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(health, listener));
        (address, tasks)
    }

    #[tokio::test]
    async fn a_healthy_process() {
        let (address, _tasks) = start(None).await;
        let (head, body) = get(address, "/ready?verbose").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.to_lowercase().contains("content-type: application/json"), "{head}");
        assert_eq!(body, "{\"server\":{}}\n");
        assert_eq!(get(address, "/alive").await.1, "{\"server\":{}}\n");
        let (head, body) = get(address, "/live").await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
        assert_eq!(body, "404 page not found\n");
    }

    #[tokio::test]
    async fn a_failing_check_is_500_with_its_details() {
        let (address, _tasks) = start(Some("boom")).await;
        let (head, body) = get(address, "/ready").await;
        assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
        assert_eq!(body, "{\"server\":{\"get_bundle_err\":\"boom\"}}\n");
    }
}
