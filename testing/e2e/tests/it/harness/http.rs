//! A GET of a test, over TCP without TLS.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// How long an answer may take.
const AT_MOST: Duration = Duration::from_secs(20);

/// The status and body of an answer; `None` where nothing answers.
pub(crate) fn get(port: u16, path: &str) -> Option<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(AT_MOST)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let status = std::str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()?;
    Some((status, answer.split_off(end + 4)))
}

/// As [`get`], the body as text.
pub(crate) fn get_text(port: u16, path: &str) -> Option<(u16, String)> {
    get(port, path).map(|(status, body)| (status, String::from_utf8_lossy(&body).into_owned()))
}
