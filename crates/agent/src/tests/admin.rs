//! The admin socket of whole agents: who may call what, and what they get.

use std::path::Path;
use std::sync::Arc;

use spire_core::spiffe::SpiffeId;
use spire_net::tls::UnixConnector;
use spire_telemetry::{Level, LogLevel};
use spire_wire::api::agent::debug::v1::{GetInfoRequest, debug_client::DebugClient};
use spire_wire::api::agent::delegatedidentity::v1::delegated_identity_client::DelegatedIdentityClient;
use spire_wire::api::agent::delegatedidentity::v1::{
    FetchJwtsviDsRequest, SubscribeToJwtBundlesRequest, SubscribeToX509BundlesRequest,
    SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse,
};
use spire_wire::api::agent::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest, logger_client::LoggerClient,
};
use tonic::transport::Channel;

use super::*;

fn channel(folder: &Path) -> Channel {
    spire_net::grpc::unix_channel(UnixConnector::new(folder.join("private/admin.sock")))
}

fn selector(value: &str) -> types::Selector {
    types::Selector { r#type: "test".to_owned(), value: value.to_owned() }
}

fn ask(values: &[&str]) -> SubscribeToX509sviDsRequest {
    SubscribeToX509sviDsRequest { selectors: values.iter().map(|value| selector(value)).collect(), pid: 0 }
}

fn paths(answer: &SubscribeToX509sviDsResponse) -> Vec<&str> {
    answer
        .x509_svids
        .iter()
        .map(|s| s.x509_svid.as_ref().unwrap().id.as_ref().unwrap().path.as_str())
        .collect()
}

fn told(status: &Status) -> (Code, &str) {
    (status.code(), status.message())
}

/// An agent whose callers all are `delegate`, and which trusts that one.
async fn start(server: &FakeServer, callers: &[&str]) -> Running {
    Running::start(server, deps(callers), |options| {
        let folder = options.data_dir.parent().unwrap().to_owned();
        options.admin_socket_path = Some(folder.join("private/admin.sock"));
        options.authorized_delegates = vec![SpiffeId::parse("spiffe://test.org/delegate").unwrap()];
    })
    .await
}

async fn server() -> FakeServer {
    let server = FakeServer::start().await;
    let mut admin = entry("admin", "uid:7");
    admin.admin = true;
    let entries = vec![entry("delegate", "delegate"), entry("web", "uid:7"), entry("other", "uid:8"), admin];
    server.change(|state| state.entries = entries);
    server
}

#[tokio::test]
async fn a_service_of_another_socket_is_named() {
    let server = server().await;
    let running = start(&server, &["uid:7"]).await;
    let public = UnixConnector::new(running.folder.path().join("public/api.sock"));
    let status = DebugClient::new(spire_net::grpc::unix_channel(public))
        .get_info(GetInfoRequest::default())
        .await
        .unwrap_err();
    assert_eq!(told(&status), (Code::Unimplemented, "unknown service spire.agent.debug.v1.Debug"));
    let status = HealthClient::new(channel(running.folder.path())).check(HealthCheckRequest::default()).await;
    status.unwrap();
    let status = SpiffeWorkloadApiClient::new(channel(running.folder.path()))
        .fetch_x509svid(X509svidRequest {})
        .await
        .unwrap_err();
    assert_eq!(told(&status), (Code::Unimplemented, "unknown service SpiffeWorkloadAPI"));
    running.stop().await;
}

#[tokio::test]
async fn a_delegate_gets_the_identities_of_others_and_every_change() {
    let server = server().await;
    let mut running = start(&server, &["delegate"]).await;
    running.until(|event| *event == Event::PushConnected).await;
    let mut client = DelegatedIdentityClient::new(channel(running.folder.path()));

    let mut stream = client.subscribe_to_x509svi_ds(ask(&["uid:7"])).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(paths(&first), ["/web"], "an identity with rights at the server is not handed on");
    let svid = &first.x509_svids[0];
    let key = LocalKey::from_pkcs8(&svid.x509_svid_key).unwrap();
    let wire = svid.x509_svid.as_ref().unwrap();
    let leaf = Certificate::from_der(wire.cert_chain[0].clone()).unwrap();
    assert_eq!(leaf.spki_der(), &key.public_key().spki()[..]);
    assert_eq!(wire.expires_at, leaf.not_after().unix());

    server.change(|state| state.entries.push(entry("api", "uid:7")));
    let second = stream.message().await.unwrap().unwrap();
    assert_eq!(paths(&second), ["/api", "/web"]);

    // Nobody has these selectors: that is no failure.
    let mut nobody = client.subscribe_to_x509svi_ds(ask(&["uid:9"])).await.unwrap().into_inner();
    assert_eq!(paths(&nobody.message().await.unwrap().unwrap()), [""; 0]);

    // By process: the fixture's attestor says the same of all.
    let pid = i32::try_from(std::process::id()).unwrap();
    let by_pid = SubscribeToX509sviDsRequest { selectors: Vec::new(), pid };
    let mut own = client.subscribe_to_x509svi_ds(by_pid).await.unwrap().into_inner();
    assert_eq!(paths(&own.message().await.unwrap().unwrap()), ["/delegate"]);

    // The caller is a delegate no longer: its streams end.
    server.change(|state| state.entries.retain(|entry| entry.id != "delegate"));
    server.change(|state| state.entries.retain(|entry| entry.id != "api"));
    let mut status = None;
    while status.is_none() {
        status = stream.message().await.err();
    }
    assert_eq!(told(&status.unwrap()), (Code::PermissionDenied, "no identity issued"));
    running.stop().await;
}

#[tokio::test]
async fn who_is_no_delegate_gets_nothing() {
    let server = server().await;
    for (callers, text) in
        [(["uid:8"], "caller not configured as an authorized delegate"), (["uid:9"], "no identity issued")]
    {
        let running = start(&server, &callers).await;
        let mut client = DelegatedIdentityClient::new(channel(running.folder.path()));
        let denied = (Code::PermissionDenied, text);
        let status = client.subscribe_to_x509svi_ds(ask(&["uid:7"])).await.unwrap_err();
        assert_eq!(told(&status), denied);
        let status = client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await.unwrap_err();
        assert_eq!(told(&status), denied);
        let status = client.subscribe_to_jwt_bundles(SubscribeToJwtBundlesRequest {}).await.unwrap_err();
        assert_eq!(told(&status), denied);
        let (audience, selectors) = (vec!["x".to_owned()], vec![selector("uid:7")]);
        let request = FetchJwtsviDsRequest { audience, selectors, pid: 0 };
        let status = client.fetch_jwtsvi_ds(request).await.unwrap_err();
        assert_eq!(told(&status), denied);
        running.stop().await;
    }
}

#[tokio::test]
async fn a_delegate_asks_for_selectors_or_a_process_and_not_both() {
    let server = server().await;
    let running = start(&server, &["delegate"]).await;
    let mut client = DelegatedIdentityClient::new(channel(running.folder.path()));
    let both_or_none = "must provide either selectors or non-zero PID, but not both";
    let request = SubscribeToX509sviDsRequest { selectors: vec![selector("uid:7")], pid: 1 };
    let cases = [
        (ask(&[]), Code::InvalidArgument, both_or_none),
        (request, Code::InvalidArgument, both_or_none),
        (ask(&[""]), Code::InvalidArgument, "could not parse provided selectors"),
        // No process has this ID.
        (
            SubscribeToX509sviDsRequest { selectors: Vec::new(), pid: i32::MAX },
            Code::Unavailable,
            "workload attestation failed",
        ),
    ];
    for (request, code, text) in cases {
        let status = client.subscribe_to_x509svi_ds(request).await.unwrap_err();
        assert_eq!(told(&status), (code, text));
    }

    let fetch = |audience: &[&str], value: &str| FetchJwtsviDsRequest {
        audience: audience.iter().map(|text| (*text).to_owned()).collect(),
        selectors: vec![selector(value)],
        pid: 0,
    };
    let status = client.fetch_jwtsvi_ds(fetch(&[], "uid:7")).await.unwrap_err();
    assert_eq!(told(&status), (Code::InvalidArgument, "audience must be specified"));
    let status = client.fetch_jwtsvi_ds(fetch(&["a"], "uid:9")).await.unwrap_err();
    assert_eq!(told(&status), (Code::PermissionDenied, "no identity issued"));
    let svids = client.fetch_jwtsvi_ds(fetch(&["a"], "uid:7")).await.unwrap().into_inner().svids;
    assert_eq!(svids.len(), 1, "not that of the administrator");
    assert_eq!(svids[0].id.as_ref().unwrap().path, "/web");
    assert!(svids[0].expires_at > svids[0].issued_at && !svids[0].token.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn a_delegate_follows_all_bundles() {
    let server = server().await;
    let mut running = start(&server, &["delegate"]).await;
    running.until(|event| *event == Event::PushConnected).await;
    let mut client = DelegatedIdentityClient::new(channel(running.folder.path()));
    let x509 = client.subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await;
    let mut x509 = x509.unwrap().into_inner();
    let first = x509.message().await.unwrap().unwrap().ca_certificates;
    assert_eq!(first.keys().collect::<Vec<_>>(), ["spiffe://test.org"]);
    assert_eq!(&first["spiffe://test.org"], server.ca.certificate().der());
    let jwt = client.subscribe_to_jwt_bundles(SubscribeToJwtBundlesRequest {}).await;
    let mut jwt = jwt.unwrap().into_inner();
    let first = jwt.message().await.unwrap().unwrap().bundles;
    let document: serde_json::Value = serde_json::from_slice(&first["spiffe://test.org"]).unwrap();
    assert_eq!(document["keys"][0]["kid"], "kid-1");

    // A federated bundle comes with an entry that needs it, and goes with it.
    server.change(|state| {
        let authority =
            types::X509Certificate { asn1: server.ca.certificate().der().clone(), tainted: false };
        state.federated.push(types::Bundle {
            trust_domain: "far.org".to_owned(),
            x509_authorities: vec![authority],
            ..types::Bundle::default()
        });
        state.entries[1].federates_with = vec!["far.org".to_owned()];
        state.entries[1].revision_number += 1;
    });
    let second = x509.message().await.unwrap().unwrap().ca_certificates;
    assert_eq!(second.keys().collect::<Vec<_>>(), ["spiffe://far.org", "spiffe://test.org"]);
    assert_eq!(jwt.message().await.unwrap().unwrap().bundles.len(), 2);
    server.change(|state| {
        state.entries[1].federates_with.clear();
        state.entries[1].revision_number += 1;
    });
    assert_eq!(x509.message().await.unwrap().unwrap().ca_certificates.len(), 1);

    // The agent stops.
    running.shutdown.cancel();
    let status = x509.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    drop((jwt, client));
    running.ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn administrators_see_the_agent_and_change_its_log() {
    let server = server().await;
    let level = LogLevel::new(Level::Info);
    let mut deps = deps(&["uid:8"]);
    deps.live.log = Some(level.clone());
    let metrics = Arc::new(spire_telemetry::InMem::new());
    deps.metrics = metrics.clone();
    let running = Running::start(&server, deps, |options| {
        options.admin_socket_path = Some(options.data_dir.parent().unwrap().join("private/admin.sock"));
    })
    .await;
    let socket = channel(running.folder.path());
    running.x509().await.unwrap();

    let info = DebugClient::new(socket.clone()).get_info(GetInfoRequest {}).await.unwrap().into_inner();
    let ids: Vec<_> = info.svid_chain.iter().map(|cert| cert.id.as_ref().unwrap().path.as_str()).collect();
    assert_eq!(ids, ["/spire/agent/join_token/a-token", ""], "the agent's SVID and its authority");
    assert!(info.last_sync_success > 0 && info.cached_x509_svids_count > 0);
    assert_eq!((info.cached_jwt_svids_count, info.cached_svidstore_x509_svids_count), (0, 0));

    let mut logger = LoggerClient::new(socket.clone());
    let set = |new_level| SetLogLevelRequest { new_level };
    let state = logger.set_log_level(set(6)).await.unwrap().into_inner();
    assert_eq!((state.current_level, state.launch_level), (6, 5));
    assert_eq!(level.current(), Level::Debug);
    let state = logger.get_logger(GetLoggerRequest {}).await.unwrap().into_inner();
    assert_eq!((state.current_level, state.launch_level), (6, 5));
    for (wrong, text) in [(0, "newLevel value cannot be LogLevel_UNSPECIFIED"), (99, "unsupported log level")]
    {
        let status = logger.set_log_level(set(wrong)).await.unwrap_err();
        assert_eq!(told(&status), (Code::InvalidArgument, text));
    }
    logger.reset_log_level(ResetLogLevelRequest {}).await.unwrap();
    assert_eq!(level.current(), Level::Info);

    let health = HealthClient::new(socket.clone()).check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(health.into_inner().status, 1);
    let mut reflection = ServerReflectionClient::new(socket);
    let list = MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut answers =
        reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list");
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "spire.agent.debug.v1.Debug",
            "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
            "spire.api.agent.logger.v1.Logger",
            "spire.explain.v1.Process",
        ]
    );
    drop((answers, reflection, logger));
    let counted = metrics.all();
    for key in [
        "rpc.debug.get_info;status=OK",
        "rpc.logger.set_log_level;status=OK",
        "rpc.logger.set_log_level;status=InvalidArgument",
        "debug_api.connection",
        "logger_api.connection",
    ] {
        assert!(counted.iter().any(|(name, series)| name == key && series.count > 0), "{key}: {counted:?}");
    }
    running.stop().await;
}

#[tokio::test]
async fn the_socket_is_for_its_group_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = server().await;
    let running = start(&server, &["delegate"]).await;
    let socket = running.folder.path().join("private/admin.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o770);
    let folder = running.stop().await;
    assert!(!folder.path().join("private/admin.sock").exists());
}
