//! Sockets and their modes, and peers that live, die and share a pin.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use futures_util::StreamExt;
use tokio::net::UnixStream;

use super::peer::{PeerTable, Stat, parse_stat};
use super::{BindError, ConnectionLimits, PeerError, PeerTracking, UnixEndpoint};

const CHILD_SOCKET: &str = "SPIRE_NET_TEST_SOCKET";

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("exists").permissions().mode() & 0o7777
}

#[tokio::test]
async fn socket_and_directory_have_their_modes() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("deep/private/api.sock");
    let incoming = UnixEndpoint::server(&path, PeerTracking::Pinned).bind().expect("bound");
    assert_eq!(mode(&path), 0o770);
    assert_eq!(mode(path.parent().expect("parent")) & !0o750, 0);
    assert_eq!(incoming.path(), path);
    drop(incoming);
    assert!(!path.exists());
    let _workload = UnixEndpoint::workload(&path).bind().expect("bound");
    assert_eq!(mode(&path), 0o777);
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_other_files_are_not() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("an earlier process"));
    assert!(path.exists());
    let endpoint = UnixEndpoint::workload(&path);
    let first = endpoint.bind().expect("stale socket");
    let second = endpoint.bind().expect("a successor may take over");
    drop(first);
    assert!(path.exists(), "the successor's socket stays");
    drop(second);

    fs::write(&path, "keep").expect("a file");
    let error = endpoint.bind().expect_err("not a socket");
    assert!(matches!(error, BindError::Bind { .. }));
    assert_eq!(error.to_string(), format!("listen unix {}: bind: address already in use", path.display()));
    assert_eq!(fs::read_to_string(&path).expect("still there"), "keep");
    let below = UnixEndpoint::workload(path.join("x/api.sock")).bind().expect_err("a file is no directory");
    assert!(below.to_string().starts_with("mkdir "), "{below}");
}

#[tokio::test]
async fn a_peer_is_known_and_shared_within_its_process() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("api.sock");
    let mut incoming = UnixEndpoint::workload(&path).bind().expect("bound");
    let _a = UnixStream::connect(&path).await.expect("connects");
    let a = incoming.next().await.expect("endless").expect("no errors");
    assert_eq!(a.peer().pid(), std::process::id());
    assert_eq!(a.peer().uid(), rustix::process::geteuid().as_raw());
    assert_eq!(a.peer().gid(), rustix::process::getegid().as_raw());
    a.peer().check_alive().expect("we run");
    let exe = std::env::current_exe().expect("our path");
    assert_eq!(a.peer().executable().expect("readable"), exe);
}

#[test]
fn pins_are_shared_and_swept() {
    let mut table = PeerTable::new(PeerTracking::Pinned);
    let (a, _a) = StdUnixStream::pair().expect("pair");
    let (b, _b) = StdUnixStream::pair().expect("pair");
    let first = table.identify(a.as_fd()).expect("ourselves");
    let second = table.identify(b.as_fd()).expect("ourselves");
    assert!(first.shares_pin_with(&second));
    assert_eq!(table.len(), 1);
    drop((first, second));
    table.identify(a.as_fd()).expect("a new pin").check_alive().expect("we run");
}

#[test]
fn credentials_alone_are_no_proof_of_life() {
    let (a, _b) = StdUnixStream::pair().expect("pair");
    let peer = PeerTable::new(PeerTracking::CredentialsOnly).identify(a.as_fd()).expect("credentials");
    assert_eq!(peer.pid(), std::process::id());
    assert!(matches!(peer.check_alive(), Err(PeerError::NotPinned)));
    assert!(matches!(peer.executable(), Err(PeerError::NotPinned)));
}

/// A process of its own that connects to `socket` and stays until its input ends.
fn child(socket: &Path) -> Child {
    Command::new(std::env::current_exe().expect("our path"))
        .args(["uds::tests::connects_where_told", "--exact", "--nocapture"])
        .env(CHILD_SOCKET, socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("runs")
}

/// What the processes of the next test run; alone it only checks that it is not one of them.
#[test]
fn connects_where_told() {
    let Some(socket) = std::env::var_os(CHILD_SOCKET) else {
        assert!(std::env::var(CHILD_SOCKET).is_err());
        return;
    };
    let mut stream = StdUnixStream::connect(socket).expect("connects");
    stream.write_all(b"x").expect("writes");
    std::io::stdin().read_to_end(&mut Vec::new()).expect("input ends");
}

#[tokio::test]
async fn a_peer_that_exits_is_noticed() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("api.sock");
    let mut incoming = UnixEndpoint::workload(&path).bind().expect("bound");
    let mut child = child(&path);
    let connection = incoming.next().await.expect("endless").expect("no errors");
    let peer = connection.peer().clone();
    assert_eq!(peer.pid(), child.id());
    peer.check_alive().expect("it waits for its input");
    child.kill().expect("killed");
    // Not reaped yet: a zombie keeps its id and directory, and is dead all the same.
    let pidfd = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(child.id() as i32).expect("an id"),
        rustix::process::PidfdFlags::empty(),
    )
    .expect("a zombie has one");
    rustix::event::poll(&mut [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)], None)
        .expect("exit");
    assert!(matches!(peer.check_alive(), Err(PeerError::Exited)));
    child.wait().expect("reaped");
    assert!(matches!(peer.check_alive(), Err(PeerError::Exited)));
    assert!(peer.executable().is_err());
}

#[tokio::test]
async fn a_connection_beyond_the_limit_is_closed() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("api.sock");
    let limits = ConnectionLimits { total: 1, per_user: 1 };
    let mut incoming = UnixEndpoint { limits, ..UnixEndpoint::workload(&path) }.bind().expect("bound");
    let _first = UnixStream::connect(&path).await.expect("connects");
    let accepted = incoming.next().await.expect("endless").expect("no errors");
    let mut refused = UnixStream::connect(&path).await.expect("the backlog takes it");
    let mut seen = Vec::new();
    let closed = tokio::io::AsyncReadExt::read_to_end(&mut refused, &mut seen);
    tokio::select! {
        biased;
        _ = incoming.next() => panic!("the limit is one"),
        read = closed => assert_eq!(read.expect("end of stream"), 0),
    }
    drop(accepted);
    let _again = UnixStream::connect(&path).await.expect("connects");
    incoming.next().await.expect("endless").expect("a place came back");
}

#[test]
fn start_times_are_found_after_any_name() {
    let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
    for name in ["cat", "a b", ") 1 2 (", "x) S 1 (", "line\nend"] {
        let found = parse_stat(format!("7 ({name}) {tail}").as_bytes());
        assert_eq!(found, Some(Stat { start_time: 4242, is_dead: false }), "{name}");
    }
    for bad in
        ["", "7 (cat", "7 (cat) S 1", "7 cat S", "7 (cat) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x"]
    {
        assert_eq!(parse_stat(bad.as_bytes()), None, "{bad}");
    }
}
