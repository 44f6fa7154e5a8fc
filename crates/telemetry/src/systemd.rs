//! Tells systemd that the service is ready (`Type=notify`; `sd_notify(3)`). The reference does not.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The service has started.
pub const READY: &str = "READY=1";

/// The service is about to end.
pub const STOPPING: &str = "STOPPING=1";

/// The service reads its configuration again; `READY=1` follows.
pub const RELOADING: &str = "RELOADING=1";

/// [`RELOADING`] with the time that `Type=notify-reload` wants to see.
pub fn reloading() -> String {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
    format!("{RELOADING}\nMONOTONIC_USEC={micros}")
}

/// Sends `state` to the service manager that `NOTIFY_SOCKET` names; `Ok(false)` where there is none.
///
/// # Errors
/// As [`notify_at`].
pub fn notify(state: &str) -> io::Result<bool> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(socket) if !socket.is_empty() => notify_at(&socket, state).map(|()| true),
        _ => Ok(false),
    }
}

/// Sends `state` to this socket: an absolute path, or `@` and an abstract name. Never blocks.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a socket that is neither; otherwise that of the system,
/// [`io::ErrorKind::WouldBlock`] when the receiver's queue is full.
pub fn notify_at(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "NOTIFY_SOCKET is neither a path nor abstract",
            ));
        }
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_gets_the_state() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        notify_at(path.as_os_str(), READY).unwrap();
        let mut buffer = [0; 64];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
    }

    #[test]
    fn an_abstract_name_gets_the_state() {
        let name = format!("spire-telemetry-test-{}", std::process::id());
        let receiver = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        notify_at(OsStr::new(&format!("@{name}")), STOPPING).unwrap();
        let mut buffer = [0; 64];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"STOPPING=1");
    }

    #[test]
    fn other_names_are_refused() {
        assert_eq!(
            notify_at(OsStr::new("vsock:2:1"), READY).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
