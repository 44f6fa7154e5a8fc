//! Both sides over HTTP, and hosts that cheat.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use spire_core::spiffe::SpiffeId;
use spire_ports::plugins::{
    AgentNodeAttestor, AgentStore, AttestationStream, Challenger, ErrorKind, HostError, NodeAttestor,
    PluginType, Result,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{Challenge, NAME, Payload, agent, server};
use crate::test_ca::{configuration, refusal};
use crate::test_wire::attest;

/// Knows one agent, or fails.
struct Known(std::result::Result<&'static str, HostError>);

#[async_trait]
impl AgentStore for Known {
    async fn is_attested(&self, id: &SpiffeId) -> std::result::Result<bool, HostError> {
        self.0.clone().map(|known| id.path() == known)
    }
}

async fn server_knowing(data: &str, known: Known) -> Result<Arc<dyn NodeAttestor>> {
    let mut configuration = configuration(PluginType::NodeAttestor, NAME, data);
    configuration.host.agents = Arc::new(known);
    server::build(configuration).await
}

async fn server(data: &str) -> Result<Arc<dyn NodeAttestor>> {
    server_knowing(data, Known(Ok("nobody"))).await
}

async fn agent(data: &str) -> Result<Arc<dyn AgentNodeAttestor>> {
    agent::build(configuration(PluginType::NodeAttestor, NAME, data)).await
}

#[tokio::test]
async fn a_host_that_answers_under_its_name_attests() {
    let agent = agent("hostname = \"127.0.0.1\"\nagentname = \"own-1\"").await.unwrap();
    let attested = attest(server("").await.unwrap(), Arc::clone(&agent)).await.unwrap();
    assert_eq!(attested.agent_id.as_str(), "spiffe://example.org/spire/agent/http_challenge/127.0.0.1");
    let selectors: Vec<String> = attested.selectors.iter().map(ToString::to_string).collect();
    assert_eq!(selectors, ["http_challenge:hostname:127.0.0.1"]);
    assert!(!attested.can_reattest);
    let allowed = "allowed_dns_patterns = [\"^nope$\", \"0\\\\.0\"]";
    attest(server(allowed).await.unwrap(), Arc::clone(&agent)).await.unwrap();

    // Trust on first use: once.
    let known = Known(Ok("/spire/agent/http_challenge/127.0.0.1"));
    let found = refusal(attest(server_knowing("", known).await.unwrap(), Arc::clone(&agent)).await);
    let used = "attestation data has already been used to attest an agent";
    assert_eq!(found, (ErrorKind::PermissionDenied, used.to_owned()));
    let broken = Known(Err(HostError::new(ErrorKind::Unavailable, "ohno")));
    let found = refusal(attest(server_knowing("", broken).await.unwrap(), Arc::clone(&agent)).await);
    assert_eq!(found, (ErrorKind::Unavailable, "unable to get agent info: ohno".to_owned()));

    let found = refusal(attest(server("refuse_private_targets = true").await.unwrap(), agent).await);
    assert!(found.1.ends_with("the address is private, and refuse_private_targets is set"), "{found:?}");
}

#[tokio::test]
async fn a_configured_port_is_used_and_another_can_be_advertised() {
    /// Takes the payload and goes.
    struct Taken(Option<Payload>);
    #[async_trait]
    impl AttestationStream for Taken {
        async fn send_payload(&mut self, payload: Bytes) -> Result<Option<Bytes>> {
            self.0 = Some(serde_json::from_slice(&payload).unwrap());
            Ok(None)
        }
        async fn respond(&mut self, _: Bytes) -> Result<Option<Bytes>> {
            panic!("nothing was asked")
        }
    }
    let payload = |data: String| async move {
        let mut taken = Taken(None);
        agent(&data).await.unwrap().attest(&mut taken).await.map(|()| taken.0.unwrap())
    };
    let free = TcpListener::bind("[::]:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    let found = refusal(payload(format!("port = {port}")).await);
    let message =
        format!("could not listen on port {port}: listen tcp :{port}: bind: address already in use");
    assert_eq!(found, (ErrorKind::Internal, message));
    let found = payload("hostname = \"h\"\nadvertised_port = 80".to_owned()).await.unwrap();
    assert_eq!(found, Payload { hostname: "h".to_owned(), agentname: "default".to_owned(), port: 80 });
    let found = payload(String::new()).await.unwrap();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(found.hostname == kernel.trim() && found.port > 0, "{found:?}");
    let found = refusal(agent("port = 65536").await);
    assert_eq!(found, (ErrorKind::InvalidArgument, "port 65536 is not a port".to_owned()));
}

/// Answers each challenge by starting what serves it.
struct Cheat {
    listener: Option<TcpListener>,
    /// What stands where the nonce is looked for; `%` is the nonce.
    answer: &'static str,
}

#[async_trait]
impl Challenger for Cheat {
    async fn challenge(&mut self, challenge: Bytes) -> Result<Bytes> {
        let Challenge { nonce } = serde_json::from_slice(&challenge).unwrap();
        let answer = self.answer.replace('%', &nonce);
        if let Some(listener) = self.listener.take() {
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                assert!(head.starts_with(
                    "GET /.well-known/spiffe/nodeattestor/http_challenge/a/challenge HTTP/1.1\r\n"
                ));
                // Who sends too much is cut off.
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
        Ok(Bytes::from_static(b"\n"))
    }
}

#[tokio::test]
async fn what_stands_elsewhere_is_no_proof() {
    const OK: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
    let verdict = |answer: &'static str| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let payload = format!("{{\"hostname\":\"127.0.0.1\",\"agentname\":\"a\",\"port\":{port}}}");
        let mut cheat = Cheat { listener: Some(listener), answer };
        server("").await.unwrap().attest(payload.into(), &mut cheat).await
    };
    let leak = |text: String| -> &'static str { text.leak() };
    verdict(leak(format!("{OK}  %\r\n"))).await.expect("white space around it");
    // As in the reference, the status does not count.
    verdict("HTTP/1.1 404 Not Found\r\nContent-Length: 44\r\n\r\n%").await.expect("the nonce");
    let secret = "internal secret";
    let table = [
        (leak(format!("{OK}{secret}")), "expected nonce was not found in HTTP response"),
        (leak(format!("{OK}%x")), "expected nonce was not found in HTTP response"),
        (leak(format!("{OK}{}%", " ".repeat(30))), "expected nonce was not found in HTTP response"),
        (leak(format!("{OK}{}", "x".repeat(1 << 20))), "expected nonce was not found in HTTP response"),
        (
            leak(format!(
                "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/{secret}\r\nContent-Length: 44\r\n\r\n%"
            )),
            "http redirects are disabled",
        ),
        (leak(format!("{secret}\r\n\r\n")), "malformed HTTP response"),
        (leak(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n%", "y".repeat(1 << 20))), "malformed HTTP response"),
        ("", "EOF"),
    ];
    for (answer, message) in table {
        let found = refusal(verdict(answer).await);
        assert_eq!(found.0, ErrorKind::PermissionDenied);
        let text = &found.1;
        assert!(text.starts_with("challenge verification failed: ") && text.ends_with(message), "{text}");
        assert!(!text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_without_a_connection() {
    use ErrorKind::{InvalidArgument, PermissionDenied};
    let payload = |hostname: &str, agentname: &str, port: i64| {
        format!("{{\"hostname\":\"{hostname}\",\"agentname\":\"{agentname}\",\"port\":{port}}}")
    };
    let long = "a".repeat(33);
    let failed = |what: &str| format!("challenge verification failed: {what}");
    let table = [
        ("", String::new(), InvalidArgument, "missing attestation payload".to_owned()),
        ("", "x".to_owned(), InvalidArgument, "failed to unmarshal data: ".to_owned()),
        ("", payload("h", "", 80), InvalidArgument, "agent name is not valid".to_owned()),
        ("", payload("h", "a.b", 80), InvalidArgument, "agent name is not valid".to_owned()),
        ("", payload("h", "1a", 80), InvalidArgument, "agent name is not valid".to_owned()),
        ("", payload("h", &long, 80), InvalidArgument, "agent name is not valid".to_owned()),
        ("", payload("h", "../a", 80), InvalidArgument, "agent name is not valid".to_owned()),
        (
            "",
            payload("localhost", "a", 80),
            PermissionDenied,
            "you can not use localhost as a hostname".to_owned(),
        ),
        (
            "allowed_dns_patterns = [\"^p[0-9]\\\\.example\\\\.org$\"]",
            payload("p1.example.org.evil", "a", 80),
            PermissionDenied,
            "the requested hostname is not allowed to connect".to_owned(),
        ),
        (
            "required_port = 80",
            payload("h", "a", 81),
            InvalidArgument,
            "port 81 is not allowed to be used by this server".to_owned(),
        ),
        (
            "allow_non_root_ports = false",
            payload("h", "a", 1024),
            InvalidArgument,
            "port 1024 is not allowed to be >= 1024".to_owned(),
        ),
        ("", payload("", "a", 80), PermissionDenied, failed("hostname must be set")),
        ("", payload("h", "a", 0), PermissionDenied, failed("port is invalid")),
        ("", payload("h", "a", -1), PermissionDenied, failed("port is invalid")),
        (
            "",
            payload("h", "a", 65_536),
            PermissionDenied,
            failed(
                "Get \"http://h:65536/.well-known/spiffe/nodeattestor/http_challenge/a/challenge\": dial tcp: address 65536: \
                 invalid port",
            ),
        ),
        ("", payload("h/x", "a", 80), PermissionDenied, failed("hostname can not contain a slash")),
        ("", payload("h:1", "a", 80), PermissionDenied, failed("hostname can not contain a colon")),
        ("", payload("u@h", "a", 80), PermissionDenied, failed("hostname can only have letters")),
        ("", payload("h?x", "a", 80), PermissionDenied, failed("hostname can only have letters")),
        ("", payload("h\\r\\nX: y", "a", 80), PermissionDenied, failed("hostname can not contain a colon")),
    ];
    for (data, payload, kind, message) in table {
        let mut cheat = Cheat { listener: None, answer: "" };
        let found = refusal(server(data).await.unwrap().attest(payload.clone().into(), &mut cheat).await);
        assert!(found.0 == kind && found.1.starts_with(&message), "{payload}: {found:?}");
    }
}

#[tokio::test]
async fn settings_are_checked() {
    let refused = |data: &'static str| async move { refusal(server(data).await) };
    let tofu = "you can not turn off trust on first use (TOFU) when non-root ports are allowed";
    for data in [
        "tofu = false",
        "tofu = false\nallow_non_root_ports = true",
        "tofu = false\nrequired_port = 1024",
        "tofu = false\nrequired_port = 8080\nallow_non_root_ports = false",
    ] {
        assert_eq!(refused(data).await, (ErrorKind::InvalidArgument, tofu.to_owned()), "{data}");
    }
    for data in [
        "",
        "tofu = true",
        "tofu = false\nrequired_port = 80",
        "tofu = false\nallow_non_root_ports = false",
        "tofu = false\nrequired_port = 80\nallow_non_root_ports = true",
    ] {
        server(data).await.map(|_| ()).expect(data);
    }
    let found = refused("allowed_dns_patterns = [\"(\"]").await;
    let message = "cannot compile allowed_dns_pattern: \"(\", error parsing regexp: ";
    assert!(found.0 == ErrorKind::InvalidArgument && found.1.starts_with(message), "{found:?}");
    let found = refused("tofu = 3").await;
    assert!(found.1.starts_with("unable to decode configuration: "), "{found:?}");
}

#[tokio::test]
async fn the_agent_serves_the_nonce_and_nothing_else() {
    /// Looks at what the agent serves while it waits.
    struct Looking(u16);
    #[async_trait]
    impl AttestationStream for Looking {
        async fn send_payload(&mut self, payload: Bytes) -> Result<Option<Bytes>> {
            let payload: Payload = serde_json::from_slice(&payload).unwrap();
            self.0 = u16::try_from(payload.port).unwrap();
            Ok(Some(Bytes::from_static(b"{\"nonce\":\"the nonce\"}")))
        }
        async fn respond(&mut self, response: Bytes) -> Result<Option<Bytes>> {
            assert_eq!(&response[..], b"\n");
            let ask = |path: &'static str| {
                let port = self.0;
                async move {
                    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
                    stream.write_all(request.as_bytes()).await.unwrap();
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).await.unwrap();
                    answer
                }
            };
            // Connections that say nothing keep nobody from the nonce.
            let mut silent = Vec::new();
            for _ in 0..8 {
                silent.push(TcpStream::connect(("127.0.0.1", self.0)).await.unwrap());
            }
            let answer = ask("/.well-known/spiffe/nodeattestor/http_challenge/default/challenge").await;
            assert!(
                answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nthe nonce\n"),
                "{answer}"
            );
            for other in ["/", "/.well-known/spiffe/nodeattestor/http_challenge/other/challenge"] {
                let answer = ask(other).await;
                assert!(answer.starts_with("HTTP/1.1 404 ") && !answer.contains("the nonce"), "{answer}");
            }
            Ok(None)
        }
    }
    let mut looking = Looking(0);
    agent("").await.unwrap().attest(&mut looking).await.unwrap();
    // It is over.
    assert!(TcpStream::connect(("127.0.0.1", looking.0)).await.is_err());
}
