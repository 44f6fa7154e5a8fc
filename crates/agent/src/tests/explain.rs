//! What workloads and operators are told of identities that are not there.

use prost::Message;
use spire_wire::explain::ExplainCallerRequest;
use spire_wire::explain::caller_client::CallerClient;
use spire_wire::rpc::ErrorInfo;

use super::*;

#[tokio::test]
async fn a_refusal_says_what_the_workload_may_know() {
    let server = FakeServer::start().await;
    server.change(|state| state.entries = vec![entry("web", "uid:2")]);
    let mut mixed = deps(&[]);
    mixed.workload_attestors =
        vec![Arc::new(FixedAttestor::new(&["uid:1"])), Arc::new(FixedAttestor::failing("broken"))];
    let running = Running::start(&server, mixed, |_| {}).await;

    let refused = running.x509().await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "no identity issued"));
    let status = spire_wire::rpc::Status::decode(refused.details()).unwrap();
    assert_eq!((status.code, status.message.as_str()), (7, "no identity issued"));
    assert_eq!(status.details[0].type_url, "type.googleapis.com/google.rpc.ErrorInfo");
    let info = ErrorInfo::decode(&status.details[0].value[..]).unwrap();
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("NO_MATCHING_ENTRY", "spire-agent"));
    assert_eq!(info.metadata["attested_selectors"], "test:uid:1");
    assert_eq!(info.metadata["sync_failing"], "false");
    assert!(!format!("{info:?}").contains("uid:2"), "another entry's selectors");

    let socket = running.folder.path().join("public/api.sock");
    let channel = spire_net::grpc::unix_channel(spire_net::tls::UnixConnector::new(socket));
    let mut client = CallerClient::new(channel);
    let refused = client.explain(ExplainCallerRequest {}).await.unwrap_err();
    assert_eq!(refused.message(), "security header missing from request");
    let mut request = tonic::Request::new(ExplainCallerRequest {});
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    let explanation = client.explain(request).await.unwrap().into_inner();
    assert_eq!(explanation.selectors.len(), 1);
    assert_eq!(explanation.failures[0].name, "broken");
    assert!(explanation.failures[0].error.is_empty() && explanation.near.is_empty());
    assert!(explanation.agent_id.is_none() && explanation.identities.is_empty());
    assert!(explanation.sync.unwrap().last_success > 0);
    running.stop().await;
}
