//! Figures of the OIDC discovery provider.

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::Set;
use crate::figure::Figure;
use crate::measure::{Names, operations};
use crate::process::Site;

/// Requests for each document.
const REQUESTS: usize = 20_000;
/// Connections that are kept, as a proxy keeps them.
const CONNECTIONS: usize = 8;

/// Both documents over kept connections.
pub(crate) async fn documents(set: Set) -> Result<Vec<Figure>> {
    let site = Site::new(set)?;
    let provider = site.provider().await?;
    let keys = Names { cpu: "OIDC keys", rate: "OIDC keys, rate", latency: "OIDC keys, latency" };
    let discovery =
        Names { cpu: "OIDC discovery", rate: "OIDC discovery, rate", latency: "OIDC discovery, latency" };
    let mut figures = Vec::new();
    for (names, path) in [(keys, "/keys"), (discovery, "/.well-known/openid-configuration")] {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(Mutex::new(TcpStream::connect(("127.0.0.1", site.port)).await?));
        }
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\n\r\n");
        let (connections, request) = (&connections, request.as_bytes());
        figures.extend(
            operations(names, &provider, REQUESTS, 1, CONNECTIONS, |n| async move {
                get(&mut *connections[n % CONNECTIONS].lock().await, request).await
            })
            .await?,
        );
    }
    figures.push(Figure::new("OIDC provider memory", "KiB", provider.memory()?));
    Ok(figures)
}

async fn get(connection: &mut TcpStream, request: &[u8]) -> Result<()> {
    connection.write_all(request).await?;
    // A document with one key and its head.
    let mut answer = [0; 4096];
    let (mut read, mut expected) = (0, None);
    loop {
        let more = connection.read(&mut answer[read..]).await?;
        ensure!(more > 0, "the connection ended");
        read += more;
        if expected.is_none() {
            expected = length(&answer[..read])?;
        }
        if expected.is_some_and(|expected| read >= expected) {
            return Ok(());
        }
    }
}

/// How long an answer is, once its head is there.
fn length(answer: &[u8]) -> Result<Option<usize>> {
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&answer[..end])?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    Ok(Some(end + 4 + length.context("no length")?.parse::<usize>()?))
}
