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

/// As [`get_text`] of a server that speaks HTTP/1.1 only and answers in chunks; `None` for any status but 200.
pub(crate) fn get_chunked(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(AT_MOST)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, mut rest) = answer.strip_prefix("HTTP/1.1 200 ")?.split_once("\r\n\r\n")?;
    if !head.to_lowercase().contains("transfer-encoding: chunked") {
        return Some(rest.to_owned());
    }
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}
