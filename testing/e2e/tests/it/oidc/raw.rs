//! Bytes to a server and back, without an HTTP library that would mend them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use spire_testkit::{Error, Result};

/// How long an answer may take.
const AT_MOST: Duration = Duration::from_secs(20);

/// What a server says to `request` until it ends the connection, which `Connection: close` asks it to.
pub(super) fn tcp(port: u16, request: &[u8]) -> Result<String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| Error::doing("connecting", e))?;
    stream.set_read_timeout(Some(AT_MOST)).map_err(|e| Error::doing("a timeout", e))?;
    exchange(stream, request)
}

/// The same through a unix socket.
pub(super) fn unix(path: &Path, request: &[u8]) -> Result<String> {
    let stream = UnixStream::connect(path).map_err(|e| Error::doing("connecting", e))?;
    stream.set_read_timeout(Some(AT_MOST)).map_err(|e| Error::doing("a timeout", e))?;
    exchange(stream, request)
}

fn exchange(mut stream: impl Read + Write, request: &[u8]) -> Result<String> {
    // A server may answer, and end the connection, before it has read all of a request that is too large.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => return Err(Error::doing("reading the answer", error)),
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A GET without a body whose answer ends the connection.
pub(super) fn get(path: &str, headers: &[&str]) -> String {
    let mut request = format!("GET {path} HTTP/1.1\r\n");
    for header in headers {
        request.push_str(header);
        request.push_str("\r\n");
    }
    request.push_str("Connection: close\r\n\r\n");
    request
}
