//! What happens before the first call (go-plugin: server.go, Serve): the cookie, the socket, the line.

use std::io::{self, Write as _};
use std::path::PathBuf;

use tokio::net::UnixListener;

/// Why a plugin cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error(
        "This program is a plugin of type {0} and not meant to be started by hand: a SPIRE server or agent starts it \
         by its `plugin_cmd`."
    )]
    NotAHost(&'static str),
    #[error("the host asks for TLS between it and its plugins, which this SDK does not have")]
    Tls,
    #[error("cannot listen: {0}")]
    Listen(io::Error),
    #[error("cannot tell the host where this listens: {0}")]
    Tell(io::Error),
}

/// A socket that is removed when this is dropped.
pub(crate) struct Socket {
    pub(crate) listener: Option<UnixListener>,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Whoever has cleaned up already is right.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Checks that a host started us, listens, and tells it where.
pub(crate) fn shake(kind: &'static str) -> Result<Socket, HandshakeError> {
    if std::env::var(kind).is_ok_and(|cookie| cookie == kind) {
        let socket = listen().map_err(HandshakeError::Listen)?;
        tell(&socket).map_err(HandshakeError::Tell)?;
        return Ok(socket);
    }
    Err(HandshakeError::NotAHost(kind))
}

fn listen() -> io::Result<Socket> {
    let folder = std::env::var_os("PLUGIN_UNIX_SOCKET_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let made = tempfile::Builder::new().prefix("plugin").make_in(folder, |path| UnixListener::bind(path))?;
    let (listener, path) = made.into_parts();
    // It is removed with the socket, and not before.
    let path = path.keep().map_err(io::Error::other)?;
    Ok(Socket { listener: Some(listener), path })
}

#[expect(clippy::print_stdout, reason = "this line is the handshake")]
fn tell(socket: &Socket) -> io::Result<()> {
    // A host that shares one connection among all wants to know whether we do.
    let multiplexing = if std::env::var_os("PLUGIN_MULTIPLEX_GRPC").is_some() { "|false" } else { "" };
    println!("1|1|unix|{}|grpc|{multiplexing}", socket.path.display());
    io::stdout().flush()
}

/// Whether the host wants TLS (go-plugin: AutoMTLS). SPIRE never does.
pub(crate) fn refuse_tls() -> Result<(), HandshakeError> {
    match std::env::var_os("PLUGIN_CLIENT_CERT") {
        Some(certificate) if !certificate.is_empty() => Err(HandshakeError::Tls),
        _ => Ok(()),
    }
}
