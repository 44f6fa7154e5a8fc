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

#[tokio::test]
async fn a_user_cannot_have_everything_explained_all_the_time() {
    let server = FakeServer::start().await;
    let attestor = Arc::new(FixedAttestor::new(&["uid:1"]));
    let mut deps = deps(&[]);
    deps.workload_attestors = vec![attestor];
    let metrics = Arc::new(Counted::default());
    deps.metrics = metrics.clone();
    let running = Running::start(&server, deps, |_| {}).await;
    let socket = running.folder.path().join("public/api.sock");
    let channel = spire_net::grpc::unix_channel(spire_net::tls::UnixConnector::new(socket));
    let client = CallerClient::new(channel);
    let calls = (0..200).map(|_| {
        let mut client = client.clone();
        async move {
            let mut request = tonic::Request::new(ExplainCallerRequest {});
            request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
            client
                .explain(request)
                .await
                .map(drop)
                .map_err(|status| (status.code(), status.message().to_owned()))
        }
    });
    let answers = futures_util::future::join_all(calls).await;
    let method = "/spire.explain.v1.Caller/Explain";
    let refused = answers.iter().filter_map(|answer| answer.as_ref().err()).collect::<Vec<_>>();
    let expected = (Code::Unavailable, format!("rate limit exceeded for {method}"));
    assert!(refused.iter().all(|status| **status == expected), "{refused:?}");
    assert!((1..=190).contains(&refused.len()), "{}", refused.len());
    let count = |name: &str, label: &str| metrics.count(name, label);
    assert_eq!(count("workload_api.rate_limit_exceeded", method), refused.len());
    assert_eq!(count("rpc.explain.v1.caller.explain", "Unavailable"), refused.len());
    assert_eq!(count("rpc.explain.v1.caller.explain", "OK"), 200 - refused.len());
    running.stop().await;
}

/// Counters by name and value of their only label.
#[derive(Default)]
struct Counted(parking_lot::Mutex<std::collections::HashMap<(String, String), usize>>);

impl Counted {
    fn count(&self, name: &str, label: &str) -> usize {
        self.0.lock().get(&(name.to_owned(), label.to_owned())).copied().unwrap_or_default()
    }
}

impl spire_ports::observe::Metrics for Counted {
    fn incr_counter(&self, key: &[&str], _: f32, labels: &[spire_ports::observe::Label<'_>]) {
        let [label] = labels else { return };
        *self.0.lock().entry((key.join("."), label.value.to_owned())).or_default() += 1;
    }

    fn set_gauge(&self, _: &[&str], _: f64, _: &[spire_ports::observe::Label<'_>]) {}

    fn add_sample(&self, _: &[&str], _: f32, _: &[spire_ports::observe::Label<'_>]) {}
}
