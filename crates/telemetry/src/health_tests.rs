//! Tests of the health checks' judgement and of their configuration.

use spire_ports::observe::{HealthCheck, check};

use crate::{Capture, Level};

use super::*;

struct Shared(Arc<Mutex<HealthState>>);

#[async_trait::async_trait]
impl HealthCheck for Shared {
    async fn check_health(&self) -> HealthState {
        self.0.lock().clone()
    }
}

fn service(state: HealthState) -> (HealthServer, Arc<Mutex<HealthState>>) {
    let state = Arc::new(Mutex::new(state));
    let checks = HealthChecks::new();
    checks.add(check::SERVER, Arc::new(Shared(Arc::clone(&state)))).unwrap();
    (HealthServer::new(HealthConfig::default(), checks), state)
}

/// Lines without the measured `duration`, which no test may depend on.
fn lines(capture: &Capture) -> Vec<String> {
    let without_duration = |line: String| {
        line.split(' ').filter(|part| !part.starts_with("duration=")).collect::<Vec<_>>().join(" ")
    };
    capture.take().into_iter().map(|captured| without_duration(captured.line)).collect()
}

#[tokio::test]
async fn failures_and_recovery_are_logged_as_the_reference_does() {
    let capture = Capture::new(Level::Debug);
    let _log = capture.install();
    let failed = HealthState::of_error("get_bundle_err", Some(&"boom"));
    let (health, state) = service(failed);
    assert_eq!(health.answer(Probe::Live), (false, "{\"server\":null}\n".to_owned()));

    health.round().await;
    assert_eq!(
        lines(&capture),
        [
            r#"level=error msg="Health check has failed" check=server error="subsystem is not live or ready""#,
            concat!(
                r#"level=warning msg="Health check failed" check=server "#,
                r#"details="{<nil> false false {boom} {boom}}" error="subsystem is not live or ready""#
            ),
        ]
    );
    health.round().await;
    assert_eq!(
        lines(&capture),
        [r#"level=error msg="Health check has failed" check=server error="subsystem is not live or ready""#]
    );

    *state.lock() = HealthState::of_error("get_bundle_err", None);
    health.round().await;
    assert_eq!(
        lines(&capture),
        [concat!(
            r#"level=info msg="Health check recovered" check=server details="{<nil> true true {} {}}" "#,
            r#"error="subsystem is not live or ready" failures=2"#
        )]
    );
    assert_eq!(health.answer(Probe::Ready), (true, "{\"server\":{}}\n".to_owned()));
}

#[tokio::test]
async fn a_subsystem_that_starts_is_a_warning_once() {
    let capture = Capture::new(Level::Info);
    let _log = capture.install();
    let starting = HealthState { started: Some(false), live: true, ..HealthState::default() };
    let (health, _state) = service(starting);
    health.round().await;
    health.round().await;
    let messages: Vec<String> = capture.entries().into_iter().map(|entry| entry.message).collect();
    assert_eq!(messages, ["Health check has failed. Starting up still.", "Health check failed"]);
    assert!(health.answer(Probe::Live).0);
    assert!(!health.answer(Probe::Ready).0);
}

#[tokio::test]
async fn without_checks_there_is_no_service() {
    let health = HealthServer::new(HealthConfig::default(), HealthChecks::new());
    assert_eq!(health.run().await.unwrap_err().to_string(), "no health checks defined");
}

#[test]
fn addresses() {
    for (host, port, expected) in [
        ("", "", "localhost:80"),
        ("0.0.0.0", "8080", "0.0.0.0:8080"),
        ("[::1]", "80", "[::1]:80"),
        ("::", "1", "[::]:1"),
    ] {
        let config =
            HealthConfig { bind_address: host.into(), bind_port: port.into(), ..HealthConfig::default() };
        assert_eq!(config.address(), expected);
    }
}

/// Probes of a pod come by its address, of whichever family.
#[tokio::test]
async fn every_address_is_of_both_families() {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use tokio::net::{TcpListener, TcpStream};

    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let config = HealthConfig {
        listener_enabled: true,
        bind_address: "0.0.0.0".to_owned(),
        bind_port: port.to_string(),
        ..HealthConfig::default()
    };
    let (health, _) = service(HealthState::of_error("get_bundle_err", None));
    let health = HealthServer { config: Arc::new(config), ..health };
    let mut serving = tokio::spawn(async move { health.run().await });
    let reached = async {
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = reached => {}
        ended = &mut serving => panic!("{ended:?}"),
    }
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
        TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
    }
    serving.abort();
}
