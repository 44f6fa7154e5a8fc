//! Whole agents against a server in this process, over the sockets that real ones use.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use spire_core::pki::{Certificate, LocalKey};
use spire_core::spiffe::TrustDomain;
use spire_wire::api::types;
use spire_wire::api::types::permission_denied_details::Reason;
use spire_wire::health::{HealthCheckRequest, health_client::HealthClient};
use spire_wire::reflection::v1::ServerReflectionRequest;
use spire_wire::reflection::v1::server_reflection_client::ServerReflectionClient;
use spire_wire::reflection::v1::server_reflection_request::MessageRequest;
use spire_wire::reflection::v1::server_reflection_response::MessageResponse;
use spire_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spire_wire::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, WitsvidRequest, X509BundlesRequest,
    X509svidRequest, X509svidResponse,
};
use tempfile::TempDir;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use crate::fixture::{
    FakeServer, FixedAttestor, WorkloadClient, deps, entry, now, options, refusal, workload_client,
};
use crate::runtime::{AgentError, Clock, Deps, Event, Options, TrustBundle, Verdict, run, start};

mod admin;
mod cache;
mod explain;
mod sds;
mod stores;
mod wit;

/// An agent that serves.
struct Running {
    folder: TempDir,
    events: broadcast::Receiver<Event>,
    shutdown: CancellationToken,
    ended: JoinHandle<Result<(), AgentError>>,
}

impl Running {
    async fn start(server: &FakeServer, deps: Deps, adjust: impl FnOnce(&mut Options)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), server, deps, adjust).await
    }

    async fn start_in(
        folder: TempDir,
        server: &FakeServer,
        deps: Deps,
        adjust: impl FnOnce(&mut Options),
    ) -> Self {
        let mut options = options(server, folder.path());
        adjust(&mut options);
        let events = deps.events.watch();
        let shutdown = CancellationToken::new();
        let ended = tokio::spawn(run(options, deps, shutdown.clone()));
        let mut running = Self { folder, events, shutdown, ended };
        running.until(|event| matches!(event, Event::Listening { .. })).await;
        running
    }

    async fn until(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            match self.events.recv().await {
                Ok(event) if wanted(&event) => return event,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => panic!("the agent ended"),
            }
        }
    }

    fn client(&self) -> WorkloadClient {
        workload_client(&self.folder.path().join("public/api.sock"))
    }

    async fn x509(&self) -> Result<(X509svidResponse, Streaming<X509svidResponse>), Status> {
        let mut stream = self.client().fetch_x509svid(X509svidRequest {}).await?.into_inner();
        let first = stream.message().await?.unwrap();
        Ok((first, stream))
    }

    async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        self.ended.await.unwrap().unwrap();
        self.folder
    }
}

fn ids(answer: &X509svidResponse) -> Vec<&str> {
    answer.svids.iter().map(|s| s.spiffe_id.as_str()).collect()
}

#[tokio::test]
async fn a_workload_gets_its_identity_and_every_change() {
    let server = FakeServer::start().await;
    server.change(|state| state.entries = vec![entry("web", "uid:1"), entry("other", "uid:2")]);
    let mut running = Running::start(&server, deps(&["uid:1", "path:/x"]), |_| {}).await;
    running.until(|event| *event == Event::PushConnected).await;
    assert_eq!(server.count("PostStatus"), 1);

    let (answer, mut stream) = running.x509().await.unwrap();
    assert_eq!(ids(&answer), ["spiffe://test.org/web"]);
    let svid = &answer.svids[0];
    assert_eq!(svid.bundle, server.ca.certificate().der());
    let key = LocalKey::from_pkcs8(&svid.x509_svid_key).unwrap();
    let leaf = Certificate::from_der(svid.x509_svid.clone()).unwrap();
    assert_eq!(leaf.spki_der(), &key.public_key().spki()[..]);

    // Another identity comes by push, into the stream that is open.
    server.change(|state| state.entries.push(entry("api", "path:/x")));
    let answer = stream.message().await.unwrap().unwrap();
    assert_eq!(ids(&answer), ["spiffe://test.org/api", "spiffe://test.org/web"]);

    // A new revision brings a new SVID of the same entry.
    server.change(|state| state.entries[0].revision_number = 1);
    let renewed = stream.message().await.unwrap().unwrap();
    assert_eq!(ids(&renewed), ids(&answer));
    assert_ne!(renewed.svids[1].x509_svid, answer.svids[1].x509_svid);
    assert_eq!(renewed.svids[0], answer.svids[0]);

    // Without identities the stream ends.
    server.change(|state| state.entries.clear());
    let mut status = None;
    while status.is_none() {
        status = stream.message().await.err();
    }
    let status = status.unwrap();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no identity issued"));
    assert_eq!(running.x509().await.unwrap_err().code(), Code::PermissionDenied);
    running.stop().await;
}

#[tokio::test]
async fn jwt_svids_are_cached_and_validated() {
    let server = FakeServer::start().await;
    let mut unique = entry("unique", "uid:1");
    unique.additional_attributes =
        Some(types::entry::AdditionalAttributes { jwt_svid_include_jti: true, ..Default::default() });
    server.change(|state| state.entries = vec![entry("web", "uid:1"), unique]);
    let running = Running::start(&server, deps(&["uid:1"]), |_| {}).await;
    let mut client = running.client();
    let request = |audience: &[&str], id: &str| JwtsvidRequest {
        audience: audience.iter().map(|a| (*a).to_owned()).collect(),
        spiffe_id: id.to_owned(),
    };

    let web = "spiffe://test.org/web";
    let first = client.fetch_jwtsvid(request(&["a", "b"], web)).await.unwrap().into_inner();
    let second = client.fetch_jwtsvid(request(&["b", "a"], web)).await.unwrap().into_inner();
    assert_eq!((first.svids.len(), &first), (1, &second));
    assert_eq!(server.count("NewJWTSVID"), 1);
    for _ in 0..2 {
        client.fetch_jwtsvid(request(&["a"], "spiffe://test.org/unique")).await.unwrap();
    }
    assert_eq!(server.count("NewJWTSVID"), 3, "a token with a jti is never cached");
    let all = client.fetch_jwtsvid(request(&["a", "b"], "")).await.unwrap().into_inner();
    let all: Vec<_> = all.svids.iter().map(|s| s.spiffe_id.as_str()).collect();
    assert_eq!(all, ["spiffe://test.org/unique", web], "by entry ID");

    for (bad, code, text) in [
        (request(&[], web), Code::InvalidArgument, "audience must be specified"),
        (
            request(&["a"], "x"),
            Code::InvalidArgument,
            "invalid requested SPIFFE ID: scheme is missing or invalid",
        ),
        (request(&["a"], "spiffe://test.org/no"), Code::PermissionDenied, "no identity issued"),
    ] {
        let status = client.fetch_jwtsvid(bad).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, text));
    }

    let validate = |audience: &str, svid: &str| ValidateJwtsvidRequest {
        audience: audience.to_owned(),
        svid: svid.to_owned(),
    };
    let token = first.svids[0].svid.clone();
    let valid = client.validate_jwtsvid(validate("b", &token)).await.unwrap().into_inner();
    assert_eq!(valid.spiffe_id, web);
    let claims = valid.claims.unwrap().fields;
    assert!(matches!(claims["aud"].kind, Some(prost_types::value::Kind::ListValue(_))));
    let status = client.validate_jwtsvid(validate("c", &token)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("expected audience in [\"c\"]"), "{}", status.message());
    for (bad, text) in
        [(validate("", &token), "audience must be specified"), (validate("a", ""), "svid must be specified")]
    {
        assert_eq!(client.validate_jwtsvid(bad).await.unwrap_err().message(), text);
    }

    let mut bundles = client.fetch_jwt_bundles(JwtBundlesRequest {}).await.unwrap().into_inner();
    let bundles = bundles.message().await.unwrap().unwrap().bundles;
    let document = String::from_utf8(bundles["spiffe://test.org"].to_vec()).unwrap();
    assert!(document.contains("\"kid\": \"kid-1\"") && !document.contains("\"use\""), "{document}");
    running.stop().await;
}

#[tokio::test]
async fn without_its_server_an_agent_gives_the_cached_token_at_once() {
    let server = FakeServer::start().await;
    server.change(|state| {
        state.entries = vec![entry("web", "uid:1")];
        state.ttl = Duration::from_secs(300);
    });
    let audience = ["a".to_owned()];
    // The agent's clock is ahead of the server's: its tokens are past their half-life, or over.
    for (ahead, expired) in [(200, false), (400, true)] {
        let mut deps = deps(&["uid:1"]);
        deps.clock = Clock::Since { base: now() + Duration::from_secs(ahead), start: Instant::now() };
        let folder = tempfile::tempdir().unwrap();
        let (core, _) = start(Arc::new(options(&server, folder.path())), &deps).await.unwrap();
        let entry = core.identities().read(|cache| cache.entries().next().cloned()).unwrap();
        let first = core.jwt_svid(&entry, &audience).await.unwrap();
        server.change(|state| state.failures.push(("NewJWTSVID", Status::unavailable("down"))));
        let (asked, since) = (server.count("NewJWTSVID"), Instant::now());
        let again = core.jwt_svid(&entry, &audience).await;
        let failed = "failed to fetch JWT SVID: rpc error: code = Unavailable desc = down";
        if expired {
            let text = format!("unable to renew JWT for \"spiffe://test.org/web\" (err={failed})");
            assert_eq!(again.unwrap_err().to_string(), text);
        } else {
            assert_eq!(again.unwrap(), first);
        }
        let other = core.jwt_svid(&entry, &["b".to_owned()]).await.unwrap_err();
        assert_eq!(other.to_string(), failed);
        assert_eq!(server.count("NewJWTSVID"), asked + 2, "once for each");
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        server.change(|state| state.failures.clear());
    }
}

#[tokio::test]
async fn an_older_server_is_polled_for_all_entries() {
    let server = FakeServer::start().await;
    server.change(|state| {
        state.entries = vec![entry("web", "uid:1")];
        for method in ["SyncAuthorizedEntries", "Subscribe"] {
            state.failures.push((method, Status::unimplemented("unknown method")));
        }
    });
    let mut running =
        Running::start(&server, deps(&["uid:1"]), |o| o.sync_interval = Duration::from_millis(20)).await;
    let (answer, mut stream) = running.x509().await.unwrap();
    assert_eq!(ids(&answer), ["spiffe://test.org/web"]);
    server.state.lock().entries.push(entry("api", "uid:1"));
    let answer = stream.message().await.unwrap().unwrap();
    assert_eq!(ids(&answer), ["spiffe://test.org/api", "spiffe://test.org/web"]);
    running.until(|event| matches!(event, Event::Synced { .. })).await;
    assert_eq!(
        (server.count("SyncAuthorizedEntries"), server.count("Subscribe")),
        (1, 1),
        "asked once, then never again"
    );
    running.stop().await;
}

#[tokio::test]
async fn changes_come_page_by_page() {
    let server = FakeServer::start().await;
    server.change(|state| {
        state.page_size = 2;
        state.entries = (0..5).map(|n| entry(&format!("w{n}"), "uid:1")).collect();
    });
    let folder = tempfile::tempdir().unwrap();
    let (core, _) = start(Arc::new(options(&server, folder.path())), &deps(&["uid:1"])).await.unwrap();
    let known = || -> HashSet<(String, i64)> {
        core.identities().read(|c| c.entries().map(|e| (e.id.to_string(), e.revision)).collect())
    };
    assert_eq!(known().len(), 5);
    server.change(|state| {
        state.entries.remove(4);
        state.entries[1].revision_number = 7;
        // The same ID and revision of another creation is another entry.
        state.entries[2].created_at = 9;
    });
    core.synchronize().await.unwrap();
    assert_eq!(
        known(),
        [("w0", 0), ("w1", 7), ("w2", 0), ("w3", 0)].map(|(id, r)| (id.to_owned(), r)).into()
    );
    let created = core.identities().read(|c| c.entries().map(|e| e.created_at.unix()).max());
    assert_eq!(created, Some(9));
}

#[tokio::test]
async fn federated_bundles_are_fetched_for_those_who_federate() {
    let server = FakeServer::start().await;
    let other = crate::fixture::TestCa::new();
    server.change(|state| {
        let mut web = entry("web", "uid:1");
        web.federates_with = vec!["b.org".to_owned(), "unknown.org".to_owned()];
        state.entries = vec![web];
        state.federated = vec![types::Bundle {
            trust_domain: "b.org".to_owned(),
            x509_authorities: vec![types::X509Certificate {
                asn1: other.certificate().der().clone(),
                tainted: false,
            }],
            ..types::Bundle::default()
        }];
    });
    let running = Running::start(&server, deps(&["uid:1"]), |_| {}).await;
    let (answer, _stream) = running.x509().await.unwrap();
    assert_eq!(answer.federated_bundles.keys().collect::<Vec<_>>(), ["spiffe://b.org"]);
    let mut bundles = running.client().fetch_x509_bundles(X509BundlesRequest {}).await.unwrap().into_inner();
    let bundles = bundles.message().await.unwrap().unwrap().bundles;
    assert_eq!(bundles.keys().collect::<Vec<_>>(), ["spiffe://b.org", "spiffe://test.org"]);
    running.stop().await;
}

#[tokio::test]
async fn a_banned_agent_drops_its_svid_and_stops() {
    let server = FakeServer::start().await;
    let mut running = Running::start(&server, deps(&["uid:1"]), |_| {}).await;
    running.until(|event| *event == Event::PushConnected).await;
    server.change(|state| state.failures.push(("SyncAuthorizedEntries", refusal(Reason::AgentBanned))));
    let error = running.ended.await.unwrap().unwrap_err();
    assert_eq!(error.verdict(), Verdict::Banned);
    let data = std::fs::read_to_string(running.folder.path().join("data/agent-data.json")).unwrap();
    assert!(data.starts_with(r#"{"svid":null,"bundle":["#), "{data}");
}

#[tokio::test]
async fn an_evicted_agent_attests_again_where_it_may() {
    let server = FakeServer::start().await;
    server.change(|state| state.reattestable = true);
    let mut running = Running::start(&server, deps(&["uid:1"]), |_| {}).await;
    running.until(|event| *event == Event::PushConnected).await;
    server.change(|state| state.failures.push(("SyncAuthorizedEntries", refusal(Reason::AgentNotAttested))));
    running.until(|event| matches!(event, Event::AgentRotated { .. })).await;
    server.change(|state| state.failures.clear());
    running.until(|event| matches!(event, Event::Synced { .. })).await;
    assert!(server.count("AttestAgent") >= 2);
    running.stop().await;

    let server = FakeServer::start().await;
    let mut running = Running::start(&server, deps(&["uid:1"]), |_| {}).await;
    running.until(|event| *event == Event::PushConnected).await;
    server.change(|state| state.failures.push(("SyncAuthorizedEntries", refusal(Reason::AgentNotAttested))));
    assert_eq!(running.ended.await.unwrap().unwrap_err().verdict(), Verdict::Reattest);
    let data = std::fs::read_to_string(running.folder.path().join("data/agent-data.json")).unwrap();
    assert!(data.starts_with(r#"{"svid":null,"#), "{data}");
}

#[tokio::test]
async fn an_agent_that_cannot_reach_its_server_to_attest_again_keeps_its_svid() {
    let server = FakeServer::start().await;
    server.change(|state| state.reattestable = true);
    let mut running = Running::start(&server, deps(&["uid:1"]), |_| {}).await;
    running.until(|event| *event == Event::PushConnected).await;
    let attested = server.count("AttestAgent");
    server.change(|state| {
        state.failures = vec![
            ("SyncAuthorizedEntries", refusal(Reason::AgentExpired)),
            ("AttestAgent", Status::unavailable("down")),
        ];
    });
    while server.count("AttestAgent") < attested + 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!running.ended.is_finished());
    server.change(|state| state.failures.clear());
    running.until(|event| matches!(event, Event::AgentRotated { .. })).await;
    running.until(|event| matches!(event, Event::Synced { .. })).await;
    running.stop().await;
}

#[tokio::test]
async fn a_restart_uses_the_stored_svid() {
    let server = FakeServer::start().await;
    let first = deps(&["uid:1"]);
    let keys = Arc::clone(&first.key_manager);
    let running = Running::start(&server, first, |_| {}).await;
    let folder = running.stop().await;
    let mut again = deps(&["uid:1"]);
    again.key_manager = keys;
    let mut events = again.events.watch();
    let running = Running::start_in(folder, &server, again, |_| {}).await;
    assert_eq!(events.recv().await.unwrap(), Event::Starting);
    assert!(matches!(events.recv().await.unwrap(), Event::Attested { fresh: false, .. }));
    assert_eq!(server.count("AttestAgent"), 1);
    let folder = running.stop().await;
    // Without its key the SVID is of no use.
    let running = Running::start_in(folder, &server, deps(&["uid:1"]), |_| {}).await;
    assert_eq!(server.count("AttestAgent"), 2);
    running.stop().await;
}

#[tokio::test]
async fn a_stored_svid_past_its_half_life_is_renewed_at_the_start() {
    let server = FakeServer::start().await;
    let first = deps(&["uid:1"]);
    let keys = Arc::clone(&first.key_manager);
    let folder = Running::start(&server, first, |_| {}).await.stop().await;
    let mut again = deps(&["uid:1"]);
    again.key_manager = keys;
    // Of its hour, ten minutes are left.
    again.clock = Clock::Since { base: now() + Duration::from_secs(3000), start: Instant::now() };
    let mut running = Running::start_in(folder, &server, again, |_| {}).await;
    let rotated = running.until(|event| matches!(event, Event::AgentRotated { .. }));
    tokio::time::timeout(Duration::from_secs(10), rotated).await.expect("renewed at once");
    assert_eq!((server.count("AttestAgent"), server.count("RenewAgent")), (1, 1));
    running.stop().await;
}

#[tokio::test]
async fn a_refused_attestation_is_final() {
    let server = FakeServer::start().await;
    server.change(|state| {
        state.failures.push(("AttestAgent", Status::permission_denied("failed to attest: agent is banned")))
    });
    let folder = tempfile::tempdir().unwrap();
    let ended = run(options(&server, folder.path()), deps(&[]), CancellationToken::new()).await;
    assert_eq!(
        ended.unwrap_err().to_string(),
        "failed to receive attestation response: rpc error: code = PermissionDenied desc = failed to attest: agent is banned"
    );
}

#[tokio::test]
async fn rotation_takes_the_other_key_and_stores_the_svid() {
    let server = FakeServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (core, _) = start(Arc::new(options(&server, folder.path())), &deps(&["uid:1"])).await.unwrap();
    let before = core.svid();
    assert_eq!(before.key.id(), "agent-svid-A");
    core.rotate().await.unwrap();
    let after = core.svid();
    assert_eq!(after.key.id(), "agent-svid-B");
    assert_eq!(after.id(), before.id());
    assert_ne!(after.leaf(), before.leaf());
    assert_eq!((server.count("RenewAgent"), server.count("AttestAgent")), (1, 1));
    core.synchronize().await.unwrap();
    server.change(|state| state.failures.push(("RenewAgent", Status::unavailable("down"))));
    let error = core.rotate().await.unwrap_err();
    assert_eq!(error.to_string(), "failed to renew agent: rpc error: code = Unavailable desc = down");
    assert_eq!(core.svid().leaf(), after.leaf());
}

#[tokio::test]
async fn workloads_are_served_while_the_server_is_away_and_streams_end_with_the_agent() {
    let server = FakeServer::start().await;
    server.change(|state| state.entries = vec![entry("web", "uid:1")]);
    let running = Running::start(&server, deps(&["uid:1"]), |_| {}).await;
    let (_, mut stream) = running.x509().await.unwrap();
    drop(server);
    let (answer, _) = running.x509().await.unwrap();
    assert_eq!(ids(&answer), ["spiffe://test.org/web"]);
    let folder = running.stop().await;
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Unavailable);
    assert!(!folder.path().join("public/api.sock").exists());
}

#[tokio::test]
async fn callers_without_header_or_identity_are_refused() {
    let server = FakeServer::start().await;
    let socket = |running: &Running| running.folder.path().join("public/api.sock");
    let running = Running::start(&server, deps(&["uid:1"]), |_| {}).await;
    let channel = spire_net::grpc::unix_channel(spire_net::tls::UnixConnector::new(socket(&running)));
    let mut bare = SpiffeWorkloadApiClient::new(channel.clone());
    let missing = "security header missing from request";
    assert_eq!(bare.fetch_x509svid(X509svidRequest {}).await.unwrap_err().message(), missing);
    assert_eq!(
        bare.fetch_jwtsvid(JwtsvidRequest::default()).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let mut client = running.client();
    for status in [
        client.fetch_x509svid(X509svidRequest {}).await.unwrap_err(),
        client.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap_err(),
        client.fetch_jwt_bundles(JwtBundlesRequest {}).await.unwrap_err(),
    ] {
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no identity issued"));
    }
    let status = client.fetch_witsvid(WitsvidRequest::default()).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unimplemented, "fetching WIT-SVIDs is not implemented")
    );

    // Health and reflection ask for neither.
    let mut health = HealthClient::new(channel.clone());
    assert_eq!(health.check(HealthCheckRequest::default()).await.unwrap().into_inner().status, 1);
    let named = HealthCheckRequest { service: "x".to_owned() };
    assert_eq!(health.check(named).await.unwrap_err().code(), Code::InvalidArgument);
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::iter([question]))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list");
    };
    for name in ["SpiffeWorkloadAPI", "envoy.service.secret.v3.SecretDiscoveryService"] {
        assert!(list.service.iter().any(|s| s.name == name), "{name}");
    }
    running.stop().await;

    // Verifiers may be let in without an identity; SVIDs are never given.
    let running =
        Running::start(&server, deps(&["uid:1"]), |o| o.allow_unauthenticated_verifiers = true).await;
    let mut client = running.client();
    let mut bundles = client.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap().into_inner();
    assert_eq!(bundles.message().await.unwrap().unwrap().bundles.len(), 1);
    assert_eq!(client.fetch_x509svid(X509svidRequest {}).await.unwrap_err().code(), Code::PermissionDenied);
    running.stop().await;
}

#[tokio::test]
async fn nothing_is_given_to_whom_nobody_can_attest() {
    let server = FakeServer::start().await;
    server.change(|state| state.entries = vec![entry("web", "uid:1")]);
    let mut failing = deps(&[]);
    failing.workload_attestors =
        vec![Arc::new(FixedAttestor::failing("a")), Arc::new(FixedAttestor::failing("b"))];
    let running = Running::start(&server, failing, |o| o.allow_unauthenticated_verifiers = true).await;
    let mut client = running.client();
    for status in [
        client.fetch_x509svid(X509svidRequest {}).await.unwrap_err(),
        client.fetch_x509_bundles(X509BundlesRequest {}).await.unwrap_err(),
    ] {
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "workload attestation failed"));
    }
    let channel = spire_net::grpc::unix_channel(spire_net::tls::UnixConnector::new(
        running.folder.path().join("public/api.sock"),
    ));
    let health = HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(health.into_inner().status, 2, "not serving");
    running.stop().await;
}

#[tokio::test]
async fn claims_of_foreign_tokens_are_limited() {
    let server = FakeServer::start().await;
    let token = server.ca.jwt("spiffe://b.org/w", &["a".to_owned()], Duration::from_secs(60));
    server.change(|state| {
        let mut web = entry("web", "uid:1");
        web.federates_with = vec!["b.org".to_owned()];
        state.entries = vec![web];
        state.federated = vec![types::Bundle {
            trust_domain: TrustDomain::parse("b.org").unwrap().name().to_owned(),
            jwt_authorities: vec![types::JwtKey {
                public_key: server.ca.jwt_key.public_key().spki().clone(),
                key_id: "kid-1".to_owned(),
                ..types::JwtKey::default()
            }],
            ..types::Bundle::default()
        }];
    });
    let request = ValidateJwtsvidRequest { audience: "a".to_owned(), svid: token };
    for (allowed, expected) in
        [(vec![], vec!["aud", "exp", "sub"]), (vec!["iat"], vec!["aud", "exp", "iat", "sub"])]
    {
        let running = Running::start(&server, deps(&["uid:1"]), |o| {
            o.allowed_foreign_jwt_claims = allowed.into_iter().map(ToOwned::to_owned).collect();
        })
        .await;
        // The foreign bundle is for those who have an identity.
        let _held = running.x509().await.unwrap();
        let valid = running.client().validate_jwtsvid(request.clone()).await.unwrap().into_inner();
        assert_eq!(valid.claims.unwrap().fields.into_keys().collect::<Vec<_>>(), expected);
        running.stop().await;
    }
}

#[tokio::test]
async fn a_tainted_authority_has_everything_replaced() {
    let server = FakeServer::start().await;
    server.change(|state| state.entries = vec![entry("web", "uid:1")]);
    let running = Running::start(&server, deps(&["uid:1"]), |_| {}).await;
    let (before, mut stream) = running.x509().await.unwrap();
    server.change(|state| state.tainted = true);
    let after = stream.message().await.unwrap().unwrap();
    assert_eq!(ids(&after), ids(&before));
    assert_ne!(after.svids[0].x509_svid, before.svids[0].x509_svid);
    // The agent's own SVID too, which needs the server.
    let mut running = running;
    running.until(|event| matches!(event, Event::AgentRotated { .. })).await;
    assert_eq!(server.count("RenewAgent"), 1);
    running.stop().await;
}

#[tokio::test]
async fn insecure_bootstrap_trusts_whoever_answers_once() {
    let server = FakeServer::start().await;
    let first = deps(&["uid:1"]);
    let keys = Arc::clone(&first.key_manager);
    let running = Running::start(&server, first, |o| o.trust_bundle = TrustBundle::Insecure).await;
    let folder = running.stop().await;
    let data = std::fs::read_to_string(folder.path().join("data/agent-data.json")).unwrap();
    assert!(!data.contains(r#""bundle":null"#), "what the server said is trusted from then on: {data}");
    let mut again = deps(&["uid:1"]);
    again.key_manager = keys;
    let running = Running::start_in(folder, &server, again, |o| o.trust_bundle = TrustBundle::Insecure).await;
    assert_eq!(server.count("AttestAgent"), 1);
    running.stop().await;
}
