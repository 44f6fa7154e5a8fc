//! Stand-ins of Kubernetes: an API server that knows tokens, pods and nodes, and a kubelet that lists pods. Both speak the
//! real ones' HTTP and TLS, as far as node and workload attestation ask for it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::authority::Authority;
use crate::error::Result;
use crate::place;
use crate::web::{Answer, Request, Web, tls};

/// What a cluster has.
#[derive(Clone, Default)]
pub struct Cluster {
    /// The tokens of service accounts, with what a TokenReview says of each (its `status`).
    pub tokens: Vec<(String, Value)>,
    /// Pods, as the API has them.
    pub pods: Vec<Value>,
    /// Nodes.
    pub nodes: Vec<Value>,
    /// Namespaces.
    pub namespaces: Vec<Value>,
    /// Deployments of `apps/v1`; `apps/v1beta1`, which the group has too, has nothing.
    pub deployments: Vec<Value>,
    /// Users who may `impersonate-via-spire`, each with the plural of what.
    pub impersonators: Vec<(String, String)>,
}

/// The token that our own requests must bear.
pub const OWN_TOKEN: &str = "the-servers-own-token";

impl Cluster {
    /// A cluster with one node, whose agent runs in the pod `spire-agent-x` of `spire:spire-agent` and has the token `token`,
    /// for the audience `spire-server`.
    pub fn with_agent(token: &str) -> Self {
        let agent = pod("spire", "spire-agent-x", "agent-pod-uid", &json!({"app": "spire-agent"}));
        let node = json!({"kind": "Node", "metadata": {
            "name": "node-1", "uid": "node-uid", "labels": {"zone": "a", "secret": "s"}}});
        let status = json!({"authenticated": true, "audiences": ["spire-server"], "user": {
        "username": "system:serviceaccount:spire:spire-agent",
        "extra": {
            "authentication.kubernetes.io/pod-name": ["spire-agent-x"],
            "authentication.kubernetes.io/pod-uid": ["agent-pod-uid"],
        }}});
        Self {
            tokens: vec![(token.to_owned(), status)],
            pods: vec![agent],
            nodes: vec![node],
            namespaces: vec![
                json!({"kind": "Namespace", "metadata": {"name": "default", "labels": {"team": "t"}}}),
            ],
            deployments: Vec::new(),
            impersonators: Vec::new(),
        }
    }
}

/// A pod of the node `node-1`.
pub fn pod(namespace: &str, name: &str, uid: &str, labels: &Value) -> Value {
    json!({
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": uid, "labels": labels},
        "spec": {"nodeName": "node-1", "serviceAccountName": name},
        "status": {"hostIP": "192.0.2.7"},
    })
}

/// An API server on `https://localhost:<port>`.
pub struct ApiServer {
    web: Web,
    authority: Authority,
    cluster: Arc<Mutex<Cluster>>,
}

impl ApiServer {
    /// Starts it.
    ///
    /// # Errors
    /// No port is free.
    pub fn start(cluster: Cluster) -> Result<Self> {
        let authority = Authority::new("kubernetes")?;
        let config = tls(&authority.issue("kube-apiserver", &["localhost"])?, None)?;
        let cluster = Arc::new(Mutex::new(cluster));
        let shared = Arc::clone(&cluster);
        let web = Web::start(Some(config), move |request| {
            answer(&shared.lock().unwrap_or_else(PoisonError::into_inner), request)
        })?;
        Ok(Self { web, authority, cluster })
    }

    /// The requests and the port.
    pub fn web(&self) -> &Web {
        &self.web
    }

    /// Whom its clients trust.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Changes what the cluster has.
    pub fn change(&self, change: impl FnOnce(&mut Cluster)) {
        change(&mut self.cluster.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Writes a kubeconfig that leads here, and the authority beside it.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn write_kubeconfig(&self, path: &Path) -> Result<()> {
        place::write(&path.with_extension("ca.pem"), &self.authority.pem())?;
        let ca = path.with_extension("ca.pem");
        let ca = ca.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let port = self.web.port();
        let text = format!(
            "apiVersion: v1\nkind: Config\npreferences: {{}}\ncurrent-context: here\ncontexts:\n- context:\n    cluster: \
             demo\n    user: server\n  name: here\nclusters:\n- cluster:\n    certificate-authority: {ca}\n    server: \
             https://localhost:{port}\n  name: demo\nusers:\n- name: server\n  user:\n    token: {OWN_TOKEN}\n"
        );
        place::write(path, &text)
    }
}

fn status(code: u16, message: &str) -> Answer {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code});
    Answer::Json(code, status.to_string())
}

fn answer(cluster: &Cluster, request: &Request) -> Answer {
    if request.header("authorization") != Some(&format!("Bearer {OWN_TOKEN}")) {
        return status(401, "Unauthorized");
    }
    let found = |objects: &[Value], namespace: Option<&str>, name: &str, what: &str| {
        let fits = |object: &&Value| {
            let metadata = &object["metadata"];
            metadata["name"] == name && namespace.is_none_or(|namespace| metadata["namespace"] == namespace)
        };
        match objects.iter().find(fits) {
            Some(object) => Answer::Json(200, object.to_string()),
            None => status(404, &format!("{what} \"{name}\" not found")),
        }
    };
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (request.method.as_str(), parts.as_slice()) {
        ("POST", ["apis", "authentication.k8s.io", "v1", "tokenreviews"]) => review(cluster, request),
        ("GET", ["api", "v1", "namespaces", namespace, "pods", name]) => {
            found(&cluster.pods, Some(namespace), name, "pods")
        }
        ("POST", ["apis", "authorization.k8s.io", "v1", "subjectaccessreviews"]) => access(cluster, request),
        ("GET", ["apis", "apps", "v1", "namespaces", namespace, "deployments", name]) => {
            found(&cluster.deployments, Some(namespace), name, "deployments.apps")
        }
        ("GET", ["api", "v1", "pods"]) => page(&cluster.pods, "PodList", query),
        ("GET", ["api", "v1", "nodes"]) => page(&cluster.nodes, "NodeList", query),
        ("GET", ["apis", "apps", "v1", "deployments"]) => page(&cluster.deployments, "DeploymentList", query),
        ("GET", ["api" | "apis", ..]) if parts.len() < 4 => discovery(&parts),
        ("GET", ["api", "v1", "nodes", name]) => found(&cluster.nodes, None, name, "nodes"),
        ("GET", ["api", "v1", "namespaces", name]) => found(&cluster.namespaces, None, name, "namespaces"),
        _ => status(404, "the server could not find the requested resource"),
    }
}

/// Knows a token by its text. Go's clients send the review in Kubernetes' protobuf and take JSON back.
fn review(cluster: &Cluster, request: &Request) -> Answer {
    let sent: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let is_sent = |token: &str| match request.body.starts_with(b"k8s\0") {
        true => request.body.windows(token.len()).any(|bytes| bytes == token.as_bytes()),
        false => sent["spec"]["token"] == token,
    };
    let status = match cluster.tokens.iter().find(|(token, _)| is_sent(token)) {
        Some((_, status)) => status.clone(),
        None => json!({"user": {}, "error": "invalid bearer token"}),
    };
    let review = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "status": status});
    Answer::Json(201, review.to_string())
}

/// Which kinds there are.
fn discovery(parts: &[&str]) -> Answer {
    let resource = |plural: &str, kind: &str, namespaced: bool| {
        json!({"name": plural, "singularName": kind.to_lowercase(), "kind": kind, "namespaced": namespaced,
               "verbs": ["get", "list"]})
    };
    let version = |version: &str| json!({"groupVersion": format!("apps/{version}"), "version": version});
    let apps = json!({"kind": "APIGroup", "apiVersion": "v1", "name": "apps",
        "versions": [version("v1beta1"), version("v1")], "preferredVersion": version("v1beta1")});
    let version_1 = json!({"groupVersion": "authorization.k8s.io/v1", "version": "v1"});
    let authorization = json!({"kind": "APIGroup", "apiVersion": "v1", "name": "authorization.k8s.io",
        "versions": [version_1], "preferredVersion": version_1});
    let list = |version: &str, resources: Vec<Value>| json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources});
    let found = match parts {
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"]}),
        ["api", "v1"] => list(
            "v1",
            vec![
                resource("pods", "Pod", true),
                resource("namespaces", "Namespace", false),
                resource("nodes", "Node", false),
            ],
        ),
        ["apis"] => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [apps, authorization]}),
        ["apis", "authorization.k8s.io"] => authorization,
        ["apis", "authorization.k8s.io", "v1"] => list(
            "authorization.k8s.io/v1",
            vec![resource("subjectaccessreviews", "SubjectAccessReview", false)],
        ),
        ["apis", "apps"] => apps,
        ["apis", "apps", "v1"] => list("apps/v1", vec![resource("deployments", "Deployment", true)]),
        ["apis", "apps", "v1beta1"] => list("apps/v1beta1", Vec::new()),
        _ => return status(404, "the server could not find the requested resource"),
    };
    Answer::Json(200, found.to_string())
}

/// Knows who may speak for what. Go's clients send the review in Kubernetes' protobuf and take JSON back.
fn access(cluster: &Cluster, request: &Request) -> Answer {
    let is_sent = |text: &str| request.body.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    let allowed = is_sent("impersonate-via-spire")
        && cluster.impersonators.iter().any(|(user, plural)| is_sent(user) && is_sent(plural));
    let review = json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
        "spec": {}, "status": {"allowed": allowed}});
    Answer::Json(201, review.to_string())
}

/// One object a page to whoever asks for pages, however long those may be.
fn page(objects: &[Value], kind: &str, query: &str) -> Answer {
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let at: usize =
        value("continue").and_then(|at| at.strip_prefix("at%20")?.parse().ok()).unwrap_or_default();
    let (items, next) = match value("limit") {
        None => (objects, String::new()),
        Some(_) => {
            let end = objects.len().min(at + 1);
            let next = if end < objects.len() { format!("at {end}") } else { String::new() };
            (&objects[at.min(end)..end], next)
        }
    };
    let list = json!({"kind": kind, "apiVersion": "v1", "metadata": {"continue": next}, "items": items});
    Answer::Json(200, list.to_string())
}
