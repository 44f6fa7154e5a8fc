//! All sinks behind one port, each with a listener of its own where it sends.

use std::sync::Arc;
use std::time::Instant;

use spire_compat::config::{M3Config, PrometheusConfig, StatsdConfig, TelemetryConfig};
use spire_net::tls::{Identity, LateTrust, TlsPolicy};
use spire_ports::observe::{Label, Metrics as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use super::{OwnTls, Telemetry, TelemetryOptions};

fn telemetry(config: TelemetryConfig) -> Arc<Telemetry> {
    let own_tls = OwnTls { svid: Identity::empty(), trust: LateTrust::empty(), policy: TlsPolicy::default() };
    Telemetry::new(TelemetryOptions {
        config,
        service: "spire_server",
        trust_domain: "example.org".to_owned(),
        own_tls,
        heap: || None,
    })
    .unwrap()
}

fn without_host() -> TelemetryConfig {
    TelemetryConfig { enable_hostname_label: Some(false), ..TelemetryConfig::default() }
}

fn prometheus() -> TelemetryConfig {
    TelemetryConfig { prometheus: Some(PrometheusConfig::default()), ..without_host() }
}

/// Our lines of a scrape, without comments.
fn ours(telemetry: &Telemetry, prefix: &str) -> Vec<String> {
    let text = telemetry.scrape().unwrap();
    text.lines().filter(|line| line.starts_with(prefix)).map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn every_datagram_sink_gets_its_form() {
    let listeners = [
        UdpSocket::bind("127.0.0.1:0").await.unwrap(),
        UdpSocket::bind("127.0.0.1:0").await.unwrap(),
        UdpSocket::bind("127.0.0.1:0").await.unwrap(),
    ];
    let address = |index: usize| listeners[index].local_addr().unwrap().to_string();
    let telemetry = telemetry(TelemetryConfig {
        statsd: vec![StatsdConfig { address: address(0) }],
        dog_statsd: vec![StatsdConfig { address: address(1) }],
        m3: vec![M3Config { address: address(2), env: "test".to_owned() }],
        metric_prefix: Some("mine".to_owned()),
        ..without_host()
    });
    telemetry.incr_counter(&["rpc", "x"], 1.0, &[Label::new("status", "OK")]);
    let stop = CancellationToken::new();
    let running = tokio::spawn(telemetry.run(stop.clone()));
    for (listener, expected) in
        listeners.iter().zip(["mine.rpc.x.OK:1.000000|c\n", "mine.rpc.x:1|c|#status:OK\n", "rpc_x"])
    {
        let mut buffer = vec![0; 65_536];
        let mut seen = String::new();
        while !seen.contains(expected) {
            let length = listener.recv(&mut buffer).await.unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        // Tags of every M3 batch.
        assert_eq!(seen.contains("spire_server") && seen.contains("env"), expected == "rpc_x", "{seen}");
    }
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn what_is_blocked_is_not_emitted_and_a_reload_changes_that() {
    let telemetry = telemetry(TelemetryConfig {
        blocked_prefixes: Some(vec!["spire_server.datastore".to_owned()]),
        ..prometheus()
    });
    let emit = || {
        telemetry.incr_counter(&["datastore", "x"], 1.0, &[]);
        telemetry.measure_since(&["rpc", "x"], Instant::now(), &[Label::new("status", "OK")]);
    };
    emit();
    assert_eq!(ours(&telemetry, "spire_server_rpc_x_count"), ["spire_server_rpc_x_count{status=\"OK\"} 1"]);
    assert!(ours(&telemetry, "spire_server_datastore").is_empty());
    let new = TelemetryConfig {
        enable_trust_domain_label: Some(true),
        metric_prefix: Some("new".to_owned()),
        ..prometheus()
    };
    assert_eq!(telemetry.reload(&new).unwrap(), ["telemetry"]);
    assert!(telemetry.reload(&new).unwrap().is_empty());
    emit();
    assert!(ours(&telemetry, "spire_server_").is_empty());
    assert_eq!(ours(&telemetry, "new_datastore_x"), ["new_datastore_x{trust_domain=\"example_org\"} 1"]);
}

#[tokio::test]
async fn scraping_while_loaded() {
    let telemetry = telemetry(prometheus());
    let emitting: Vec<_> = (0..2)
        .map(|_| {
            let telemetry = telemetry.clone();
            tokio::task::spawn_blocking(move || {
                for index in 0..2000 {
                    let label = (index % 50).to_string();
                    telemetry.incr_counter(&["x"], 1.0, &[Label::new("l", &label)]);
                    telemetry.add_sample(&["y"], 1.0, &[]);
                }
            })
        })
        .collect();
    let mut last = 0.0;
    for _ in 0..20 {
        let count: f64 = ours(&telemetry, "spire_server_y_count")
            .first()
            .and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or(0.0);
        assert!(count >= last);
        last = count;
    }
    for emitting in emitting {
        emitting.await.unwrap();
    }
    assert_eq!(ours(&telemetry, "spire_server_y_count"), ["spire_server_y_count 4000"]);
    let sum: f64 = ours(&telemetry, "spire_server_x{")
        .iter()
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    assert_eq!(sum, 4000.0);
}

/// What an endpoint answers, if it does.
async fn scrape(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn the_endpoint_answers() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let telemetry = telemetry(TelemetryConfig {
        prometheus: Some(PrometheusConfig { host: "127.0.0.1".into(), port: port.into(), tls: None }),
        ..TelemetryConfig::default()
    });
    let stop = CancellationToken::new();
    let running = tokio::spawn(telemetry.run(stop.clone()));
    // The gauges come with the first tick of a clock.
    let answer = loop {
        let answer = scrape(port).await.unwrap_or_default();
        if answer.contains("spire_server_uptime_in_ms") {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("\n# TYPE process_open_fds gauge\nprocess_open_fds "), "{answer}");
    assert!(answer.contains("\nspire_server_uptime_in_ms{host=\""), "{answer}");
    stop.cancel();
    running.await.unwrap();
}

#[test]
fn what_cannot_be_a_sink_is_refused() {
    let own_tls = OwnTls { svid: Identity::empty(), trust: LateTrust::empty(), policy: TlsPolicy::default() };
    let refused = |config: TelemetryConfig| {
        let options = TelemetryOptions {
            config,
            service: "spire_agent",
            trust_domain: "example.org".to_owned(),
            own_tls: own_tls.clone(),
            heap: || None,
        };
        Telemetry::new(options).unwrap_err().to_string()
    };
    let statsd = vec![StatsdConfig { address: "nowhere".into() }];
    assert_eq!(
        refused(TelemetryConfig { statsd, ..TelemetryConfig::default() }),
        "address nowhere: missing port in address"
    );
    let m3 = vec![M3Config { address: "h:1".into(), env: String::new() }];
    assert_eq!(refused(TelemetryConfig { m3, ..TelemetryConfig::default() }), "env common tag is required");
}
