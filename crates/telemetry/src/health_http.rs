//! The health checks over HTTP: two paths.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode};
use tokio::net::TcpListener;

use crate::health::HealthServer;
use crate::http;

/// Listens on `host:port` and serves until the future is dropped; open connections end with it.
pub(crate) async fn listen(health: HealthServer, address: &str) -> io::Result<()> {
    serve(health, spire_net::listen(address).await.map_err(io::Error::other)?).await
}

async fn serve(health: HealthServer, listener: TcpListener) -> io::Result<()> {
    let respond: http::Respond = Arc::new(move |request| {
        let response = respond(&health, request.uri().path());
        Box::pin(async move { response })
    });
    http::serve(listener, None, respond).await
}

fn respond(health: &HealthServer, path: &str) -> Response<Full<Bytes>> {
    let Some(probe) = health.config().probe(path) else { return http::not_found() };
    let (well, body) = health.answer(probe);
    let status = if well { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    http::response(status, "application/json", body)
}

#[cfg(test)]
mod tests {
    use spire_ports::observe::{HealthCheck, HealthChecks, HealthState, check};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::task::JoinSet;

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
