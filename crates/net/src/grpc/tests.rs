//! Channels and servers over unix sockets, and how servers end.

use std::convert::Infallible;
use std::future::{pending, ready};

use tokio::sync::oneshot;
use tonic::Code;
use tonic::service::Routes;

use super::{Stopped, graceful, serve, serve_unix, unix_channel, unix_server};
use crate::fixture::{Echo, call};
use crate::tls::UnixConnector;
use crate::uds::UnixEndpoint;

#[tokio::test]
async fn a_call_over_a_unix_socket_knows_its_peer() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("api.sock");
    let incoming = UnixEndpoint::workload(&path).bind().expect("bound");
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(unix_server().add_service(Echo), incoming, async {
        let _ = stopped.await;
    }));
    let channel = unix_channel(UnixConnector::new(&path));
    let trailers = call(&channel).await.expect("served");
    assert_eq!(trailers["seen-pid"], std::process::id().to_string());
    assert_eq!(trailers["seen-authority"], "localhost");
    drop(channel);
    stop.send(()).expect("it runs");
    assert_eq!(server.await.expect("task").expect("served"), Stopped::Gracefully);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_call_over_a_small_connection_knows_its_peer() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("api.sock");
    let incoming = UnixEndpoint::workload(&path).bind().expect("bound");
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve_unix(
        Routes::new(Echo),
        &[<Echo as tonic::server::NamedService>::NAME],
        incoming,
        async {
            let _ = stopped.await;
        },
    ));
    let channel = unix_channel(UnixConnector::new(&path));
    for _ in 0..2 {
        let trailers = call(&channel).await.expect("served");
        assert_eq!(trailers["seen-pid"], std::process::id().to_string());
        assert_eq!(trailers["seen-authority"], "localhost");
    }
    // The connection is open still; it has no calls, so it ends.
    stop.send(()).expect("it runs");
    assert_eq!(server.await.expect("task"), Stopped::Gracefully);
    assert!(!path.exists());
    drop(channel);
}

#[tokio::test]
async fn a_missing_socket_is_told_in_the_words_of_go() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("no.sock");
    let status = call(&unix_channel(UnixConnector::new(&path))).await.expect_err("nobody listens");
    assert_eq!(status.code(), Code::Unavailable);
    let path = path.display();
    assert_eq!(
        status.message(),
        format!(
            r#"connection error: desc = "transport: Error while dialing: dial unix {path}: connect: no such file or directory""#
        ),
    );
    let status = call(&unix_channel(UnixConnector::command_line(dir.path().join("no.sock")))).await;
    let message = status.expect_err("nobody listens").message().to_owned();
    assert!(message.contains(&format!("dial unix //{path}: connect:")), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_does_not_end_is_not_waited_for_longer_than_the_limit() {
    let started = tokio::time::Instant::now();
    let stopped = graceful(ready(()), |signal| async {
        signal.await;
        pending::<Result<(), Infallible>>().await
    });
    assert_eq!(stopped.await.expect("no error"), Stopped::Forced);
    assert!(started.elapsed() >= super::GRACEFUL_STOP_TIMEOUT);
}
