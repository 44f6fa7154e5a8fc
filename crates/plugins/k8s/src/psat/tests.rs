//! Tokens that are good and such that are not, with an API server that is asked over TLS.

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use spire_compat::hcl;
use spire_core::spiffe::TrustDomain;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{
    Attestation, AttestationStream, Challenger, Error, ErrorKind, PluginType, Result,
};
use spire_testkit::kubernetes::{ApiServer, Cluster, pod};
use spire_testkit::place;

use super::{agent, server};

fn configuration(data: &str) -> Configuration {
    let data = Some(hcl::parse(data).unwrap().into());
    let plugin = (PluginType::NodeAttestor, "k8s_psat");
    Configuration::new(plugin, TrustDomain::parse("example.org").unwrap(), data)
}

fn refusal<T>(result: std::result::Result<T, Error>) -> (ErrorKind, String) {
    match result {
        Ok(_) => panic!("must be refused"),
        Err(error) => (error.kind, error.message),
    }
}

struct NoChallenge;

#[async_trait]
impl Challenger for NoChallenge {
    async fn challenge(&mut self, _: Bytes) -> Result<Bytes> {
        panic!("there is no challenge");
    }
}

struct Site {
    folder: tempfile::TempDir,
    api: ApiServer,
}

impl Site {
    fn new() -> Self {
        let folder = place::folder().unwrap();
        let api = ApiServer::start(Cluster::with_agent("good")).unwrap();
        api.write_kubeconfig(&folder.path().join("kubeconfig")).unwrap();
        Self { folder, api }
    }

    fn settings(&self, more: &str) -> String {
        let path = self.folder.path().join("kubeconfig");
        format!("clusters = {{ \"demo\" = {{ kube_config_file = \"{}\"\n {more} }} }}", path.display())
    }

    async fn attest(&self, more: &str, token: &str) -> Result<Attestation> {
        let payload = json!({"cluster": "demo", "token": token}).to_string();
        let server = server::build(configuration(&self.settings(more))).await?;
        server.attest(payload.into(), &mut NoChallenge).await
    }
}

const ALLOWED: &str = "service_account_allow_list = [\"spire:spire-agent\"]";

fn values(attestation: &Attestation) -> Vec<String> {
    attestation.selectors.iter().map(|selector| selector.value().to_owned()).collect()
}

#[tokio::test]
async fn a_good_token_names_the_node() {
    let site = Site::new();
    let labels = "allowed_node_label_keys = [\"zone\", \"none\"]\nallowed_pod_label_keys = [\"app\"]";
    let found = site.attest(&format!("{ALLOWED}\n{labels}"), "good").await.unwrap();
    assert_eq!(found.agent_id.as_str(), "spiffe://example.org/spire/agent/k8s_psat/demo/node-uid");
    assert!(found.can_reattest);
    let mut expected = [
        "cluster:demo",
        "agent_ns:spire",
        "agent_sa:spire-agent",
        "agent_pod_name:spire-agent-x",
        "agent_pod_uid:agent-pod-uid",
        "agent_node_ip:192.0.2.7",
        "agent_node_name:node-1",
        "agent_node_uid:node-uid",
        "agent_node_label:zone:a",
        "agent_pod_label:app:spire-agent",
    ];
    expected.sort_unstable();
    assert_eq!(values(&found), expected);
    let asked: Vec<String> =
        site.api.web().seen().iter().map(|seen| format!("{} {}", seen.method, seen.target)).collect();
    assert_eq!(
        asked,
        [
            "POST /apis/authentication.k8s.io/v1/tokenreviews",
            "GET /api/v1/namespaces/spire/pods/spire-agent-x",
            "GET /api/v1/nodes/node-1"
        ]
    );
    let review: Value = serde_json::from_slice(&site.api.web().seen()[0].body).unwrap();
    assert_eq!(review["spec"], json!({"token": "good", "audiences": ["spire-server"]}));

    let found = site.attest(&format!("{ALLOWED}\nuse_pod_uid_for_agent_id = true"), "good").await.unwrap();
    assert_eq!(found.agent_id.path(), "/spire/agent/k8s_psat/demo/pod/agent-pod-uid");
    assert_eq!(values(&found).len(), 8);
    // The name of before 1.0, as old walkthroughs have it.
    site.attest("service_account_whitelist = [\"spire:spire-agent\"]", "good").await.unwrap();
    // Of the API server itself, which says nothing of audiences.
    site.api.change(|cluster| cluster.tokens[0].1["audiences"] = Value::Null);
    site.attest(&format!("{ALLOWED}\naudience = []"), "good").await.unwrap();
    let last = site.api.web().seen();
    let review: Value = serde_json::from_slice(&last[last.len() - 3].body).unwrap();
    assert_eq!(review["spec"], json!({"token": "good"}));
}

type Change = Box<dyn FnOnce(&mut Cluster)>;

/// What a cluster may say, and what becomes of it.
fn refusals() -> Vec<(Change, ErrorKind, String)> {
    use ErrorKind::{Internal, PermissionDenied};
    let change = |pointer: &'static str, value: Value| {
        move |cluster: &mut Cluster| *cluster.tokens[0].1.pointer_mut(pointer).unwrap() = value
    };
    let user = "failed to parse username from token review status for cluster \"demo\": ";
    let pod_name = "/user/extra/authentication.kubernetes.io~1pod-name";
    let pod_uid = "/user/extra/authentication.kubernetes.io~1pod-uid";
    vec![
        (
            Box::new(|cluster| cluster.tokens.clear()),
            Internal,
            "unable to validate token with TokenReview API for cluster \"demo\": token review API response contains \
             an error: invalid bearer token"
                .to_owned(),
        ),
        (
            Box::new(change("/authenticated", json!(false))),
            PermissionDenied,
            "token not authenticated according to TokenReview API for cluster \"demo\"".to_owned(),
        ),
        (
            Box::new(change("/audiences", json!(["https://kubernetes.default.svc"]))),
            Internal,
            "unable to validate token with TokenReview API for cluster \"demo\": token review API did not validate \
             audience: wanted one of [\"spire-server\"] but got [\"https://kubernetes.default.svc\"]"
                .to_owned(),
        ),
        (Box::new(change("/user/username", json!(""))), Internal, format!("{user}empty username")),
        (
            Box::new(change("/user/username", json!("jane"))),
            Internal,
            format!("{user}unexpected username format: jane"),
        ),
        (
            Box::new(change("/user/username", json!("system:serviceaccount::x"))),
            Internal,
            format!("{user}missing namespace"),
        ),
        (
            Box::new(change("/user/username", json!("system:serviceaccount:spire:other"))),
            PermissionDenied,
            "\"spire:other\" is not an allowed service account for cluster \"demo\"".to_owned(),
        ),
        (
            Box::new(change(pod_name, json!(["a", "b"]))),
            Internal,
            "failed to get pod name from token review status for cluster \"demo\": expected 1 name but got: 2"
                .to_owned(),
        ),
        (
            Box::new(change(pod_uid, json!([""]))),
            Internal,
            "failed to get pod UID from token review status for cluster \"demo\": pod UID is empty".to_owned(),
        ),
        (
            Box::new(change(pod_name, json!(["../../nodes"]))),
            Internal,
            "failed to get pod from k8s API server for cluster \"demo\": unable to query pods API: invalid resource \
             name \"../../nodes\""
                .to_owned(),
        ),
        (
            Box::new(|cluster| cluster.pods.clear()),
            Internal,
            "failed to get pod from k8s API server for cluster \"demo\": unable to query pods API: pods \
             \"spire-agent-x\" not found"
                .to_owned(),
        ),
        (
            Box::new(|cluster| cluster.pods = vec![pod("spire", "spire-agent-x", "another", &json!({}))]),
            PermissionDenied,
            "pod UID mismatch for pod \"spire-agent-x\" in cluster \"demo\": token bound to pod UID \
             \"agent-pod-uid\""
                .to_owned(),
        ),
        (
            Box::new(|cluster| cluster.nodes.clear()),
            Internal,
            "failed to get node from k8s API server for cluster \"demo\": unable to query nodes API: nodes \"node-1\" \
             not found"
                .to_owned(),
        ),
        (
            Box::new(|cluster| cluster.nodes[0]["metadata"]["uid"] = Value::Null),
            Internal,
            "node UID is empty for cluster \"demo\"".to_owned(),
        ),
    ]
}

#[tokio::test]
async fn tokens_that_are_not_good_are_refused() {
    let site = Site::new();
    for (change, kind, message) in refusals() {
        site.api.change(|cluster| *cluster = Cluster::with_agent("good"));
        site.api.change(change);
        assert_eq!(refusal(site.attest(ALLOWED, "good").await), (kind, message));
    }
}

#[tokio::test]
async fn an_api_server_that_cannot_be_asked_is_an_error() {
    let site = Site::new();
    let path = site.folder.path().join("kubeconfig");
    let good = std::fs::read_to_string(&path).unwrap();
    let other = ApiServer::start(Cluster::default()).unwrap();
    let port = format!(":{}", site.api.web().port());
    let table = [
        (
            good.replace("token: the", "token: not-the"),
            "unable to query token review API: Unauthorized".to_owned(),
        ),
        (
            good.replace(&port, &format!(":{}", other.web().port())),
            "tls: failed to verify certificate: x509: certificate signed by unknown authority".to_owned(),
        ),
        (
            good.replace("localhost", "127.0.0.1"),
            "x509: cannot validate certificate for 127.0.0.1 because it doesn't contain any IP SANs"
                .to_owned(),
        ),
        (good.replace("localhost", "[::1]"), "connect: connection refused".to_owned()),
        (good.replace("user: server", "user: nobody"), "user \"nobody\" does not exist".to_owned()),
        (good.replace("current-context: here", ""), "context \"\" does not exist".to_owned()),
        (good.replace("token:", "exec:"), "a value that is of another kind than it should be".to_owned()),
        (
            good.replace("token:", "auth-provider:"),
            "\"auth-provider\" of a kubeconfig is not supported".to_owned(),
        ),
        (good.replace("kubeconfig.ca.pem", "none.pem"), "none.pem: no such file or directory".to_owned()),
        (String::new(), "no configuration has been provided".to_owned()),
    ];
    for (text, message) in table {
        std::fs::write(&path, &text).unwrap();
        let (kind, found) = refusal(site.attest(ALLOWED, "good").await);
        assert_eq!(kind, ErrorKind::Internal);
        let start = "unable to validate token with TokenReview API for cluster \"demo\": ";
        assert!(found.starts_with(start) && found.contains(&message), "{message}: {found}");
        assert!(!found.contains("good"), "{found}");
    }
    std::fs::remove_file(&path).unwrap();
    let (_, found) = refusal(site.attest(ALLOWED, "good").await);
    assert!(found.ends_with("kubeconfig: no such file or directory"), "{found}");
}

#[tokio::test]
async fn payloads_and_settings_are_checked() {
    use ErrorKind::InvalidArgument;
    let server = server::build(configuration(&Site::new().settings(ALLOWED))).await.unwrap();
    let table = [
        ("", "missing attestation payload"),
        ("x", "failed to unmarshal data payload: "),
        ("{\"token\": \"t\"}", "missing cluster in attestation data"),
        ("{\"cluster\": \"demo\"}", "missing token in attestation data"),
        ("{\"cluster\": \"other\", \"token\": \"t\"}", "not configured for cluster \"other\""),
    ];
    for (payload, message) in table {
        let (kind, found) = refusal(server.attest(payload.into(), &mut NoChallenge).await);
        assert!(kind == InvalidArgument && found.starts_with(message), "{found}");
    }
    let none = "cluster \"a\" configuration must have at least one service account allowed";
    for (data, message) in [
        ("clusters = { \"a\" = {} }", none),
        ("clusters { a { service_account_allow_list = [] } }", none),
        ("clusters = 3", "plugin configuration is malformed: "),
    ] {
        let (kind, found) = refusal(server::build(configuration(data)).await);
        assert!(kind == InvalidArgument && found.starts_with(message), "{data}: {found}");
    }
    assert!(server::build(configuration("")).await.is_ok());
}

/// What the agent sends.
struct Sent(Vec<u8>);

#[async_trait]
impl AttestationStream for Sent {
    async fn send_payload(&mut self, payload: Bytes) -> Result<Option<Bytes>> {
        self.0 = payload.to_vec();
        Ok(None)
    }
    async fn respond(&mut self, _: Bytes) -> Result<Option<Bytes>> {
        panic!("there is no challenge");
    }
}

#[tokio::test]
async fn the_agent_brings_the_token_of_now() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let data = format!("cluster = \"demo\"\ntoken_path = \"{}\"", path.display());
    let agent = agent::build(configuration(&data)).await.unwrap();
    for token in ["one", "two"] {
        std::fs::write(&path, token).unwrap();
        let mut sent = Sent(Vec::new());
        agent.attest(&mut sent).await.unwrap();
        let sent: Value = serde_json::from_slice(&sent.0).unwrap();
        assert_eq!(sent, json!({"cluster": "demo", "token": token}));
    }
    std::fs::write(&path, "").unwrap();
    let shown = path.display();
    let found = refusal(agent.attest(&mut Sent(Vec::new())).await);
    let message = format!("unable to load token from {shown}: \"{shown}\" is empty");
    assert_eq!(found, (ErrorKind::InvalidArgument, message));
    std::fs::remove_file(&path).unwrap();
    let found = refusal(agent.attest(&mut Sent(Vec::new())).await);
    assert!(found.1.ends_with("token: no such file or directory"), "{found:?}");
    let found = refusal(agent::build(configuration("")).await);
    assert_eq!(found, (ErrorKind::InvalidArgument, "missing required cluster block".to_owned()));
}
