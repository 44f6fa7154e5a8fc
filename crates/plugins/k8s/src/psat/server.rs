//! The server's side: whose token it is, from which pod, and on which node that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use spire_compat::hcl::{Body, DecodeError};
use spire_compat::quote::quote;
use spire_core::spiffe::{Selector, SpiffeId, TrustDomain};
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{Attestation, Challenger, Error, ErrorKind, NodeAttestor, PluginType, Result};

use super::{NAME, Payload};
use crate::api::Cluster;
use crate::api::objects::{Object, Pod, TokenStatus, TokenUser};

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// A cluster that agents may be in.
#[derive(Debug)]
pub(super) struct Settings {
    service_accounts: BTreeSet<String>,
    audience: Vec<String>,
    pub(super) cluster: Cluster,
    node_labels: BTreeSet<String>,
    pod_labels: BTreeSet<String>,
    by_pod: bool,
}

pub(super) struct Psat {
    pub(super) trust_domain: TrustDomain,
    pub(super) clusters: BTreeMap<String, Settings>,
}

/// The attestor.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn NodeAttestor>> {
    Ok(Arc::new(read(&configuration)?))
}

pub(super) fn read(configuration: &Configuration) -> Result<Psat> {
    let clusters = configuration
        .decode(|data| {
            let mut clusters = BTreeMap::new();
            for (name, mut block) in data.take_labelled("clusters")? {
                clusters.insert(name, settings(&mut block)?);
            }
            Ok(clusters)
        })
        .map_err(|error| configuration.invalid(format!("plugin configuration is malformed: {error}")))?;
    if clusters.is_empty() {
        tracing::warn!(
            external = false,
            plugin_name = NAME,
            plugin_type = "NodeAttestor",
            "No clusters configured, PSAT attestation is effectively disabled"
        );
    }
    for (name, cluster) in &clusters {
        if cluster.service_accounts.is_empty() {
            let name = quote(name);
            return Err(configuration.invalid(format!(
                "cluster {name} configuration must have at least one service account allowed"
            )));
        }
    }
    Ok(Psat { trust_domain: configuration.trust_domain.clone(), clusters })
}

fn settings(block: &mut Body<'_>) -> std::result::Result<Settings, DecodeError> {
    let mut set =
        |key| Ok(block.take_string_list(key)?.unwrap_or_default().into_iter().collect::<BTreeSet<_>>());
    let mut service_accounts = set("service_account_allow_list")?;
    let old = set("service_account_whitelist")?;
    let node_labels = set("allowed_node_label_keys")?;
    let pod_labels = set("allowed_pod_label_keys")?;
    if service_accounts.is_empty() && !old.is_empty() {
        tracing::warn!(
            external = false,
            plugin_name = NAME,
            plugin_type = "NodeAttestor",
            "service_account_whitelist is now called service_account_allow_list"
        );
        service_accounts = old;
    }
    let audience = block.take_string_list("audience")?.unwrap_or_else(|| vec!["spire-server".to_owned()]);
    Ok(Settings {
        service_accounts,
        audience,
        cluster: Cluster::new(&block.take_string("kube_config_file")?.unwrap_or_default()),
        node_labels,
        pod_labels,
        by_pod: block.take_bool("use_pod_uid_for_agent_id")?.unwrap_or_default(),
    })
}

fn failed(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, (PluginType::NodeAttestor, NAME), message)
}

/// Whose token it is.
struct Bearer {
    namespace: String,
    service_account: String,
    pod: String,
    pod_uid: String,
}

#[async_trait]
impl NodeAttestor for Psat {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, payload: Bytes, _challenger: &mut dyn Challenger) -> Result<Attestation> {
        use ErrorKind::{Internal, InvalidArgument, PermissionDenied};
        if payload.is_empty() {
            return Err(failed(InvalidArgument, "missing attestation payload"));
        }
        let payload: Payload = serde_json::from_slice(&payload)
            .map_err(|error| failed(InvalidArgument, format!("failed to unmarshal data payload: {error}")))?;
        if payload.cluster.is_empty() {
            return Err(failed(InvalidArgument, "missing cluster in attestation data"));
        }
        if payload.token.is_empty() {
            return Err(failed(InvalidArgument, "missing token in attestation data"));
        }
        let name = quote(&payload.cluster);
        let settings = self
            .clusters
            .get(&payload.cluster)
            .ok_or_else(|| failed(InvalidArgument, format!("not configured for cluster {name}")))?;
        let unable =
            |what: &str, error: String| failed(Internal, format!("{what} for cluster {name}: {error}"));

        let validate = |error| unable("unable to validate token with TokenReview API", error);
        let api = settings.cluster.connect().await.map_err(|error| validate(error.to_string()))?;
        let status = api.review(&payload.token, &settings.audience).await.map_err(validate)?;
        let bearer = bearer(&name, settings, status)?;
        let pod = api
            .pod(&bearer.namespace, &bearer.pod)
            .await
            .map_err(|error| unable("failed to get pod from k8s API server", error))?;
        if pod.metadata.uid != bearer.pod_uid {
            let (pod, uid) = (quote(&bearer.pod), quote(&bearer.pod_uid));
            return Err(failed(
                PermissionDenied,
                format!("pod UID mismatch for pod {pod} in cluster {name}: token bound to pod UID {uid}"),
            ));
        }
        let node = api
            .node(&pod.spec.node_name)
            .await
            .map_err(|error| unable("failed to get node from k8s API server", error))?;
        if node.metadata.uid.is_empty() {
            return Err(failed(Internal, format!("node UID is empty for cluster {name}")));
        }
        self.attestation(&payload.cluster, settings, &bearer, &pod, &node)
            .map_err(|error| unable("failed to describe the node", error))
    }
}

/// Whose token it is, if that service account may be an agent's.
fn bearer(name: &str, settings: &Settings, status: TokenStatus) -> Result<Bearer> {
    use ErrorKind::{Internal, PermissionDenied};
    if !status.authenticated {
        let message = format!("token not authenticated according to TokenReview API for cluster {name}");
        return Err(failed(PermissionDenied, message));
    }
    let unable = |what: &str, error: String| failed(Internal, format!("{what} for cluster {name}: {error}"));
    let (namespace, service_account) = service_account(&status.user.username)
        .map_err(|error| unable("failed to parse username from token review status", error))?;
    let account = format!("{namespace}:{service_account}");
    if !settings.service_accounts.contains(&account) {
        let account = quote(&account);
        let message = format!("{account} is not an allowed service account for cluster {name}");
        return Err(failed(PermissionDenied, message));
    }
    let pod = only(&status.user, POD_NAME, "name", "pod name")
        .map_err(|error| unable("failed to get pod name from token review status", error))?;
    let pod_uid = only(&status.user, POD_UID, "UID", "pod UID")
        .map_err(|error| unable("failed to get pod UID from token review status", error))?;
    Ok(Bearer { namespace: namespace.to_owned(), service_account: service_account.to_owned(), pod, pod_uid })
}

/// Namespace and name of `system:serviceaccount:<namespace>:<name>`.
fn service_account(username: &str) -> std::result::Result<(&str, &str), String> {
    if username.is_empty() {
        return Err("empty username".to_owned());
    }
    match username.split(':').collect::<Vec<_>>()[..] {
        [_, _, "", _] => Err("missing namespace".to_owned()),
        [_, _, _, ""] => Err("missing service account name".to_owned()),
        [_, _, namespace, name] => Ok((namespace, name)),
        _ => Err(format!("unexpected username format: {username}")),
    }
}

/// The one value that a token's user must have under a key.
fn only(user: &TokenUser, key: &str, short: &str, what: &str) -> std::result::Result<String, String> {
    match user.extra.get(key).map(Vec::as_slice) {
        None => Err(format!("missing {what}")),
        Some([value]) if value.is_empty() => Err(format!("{what} is empty")),
        Some([value]) => Ok(value.clone()),
        Some(values) => Err(format!("expected 1 {short} but got: {}", values.len())),
    }
}

impl Psat {
    fn attestation(
        &self,
        cluster: &str,
        settings: &Settings,
        bearer: &Bearer,
        pod: &Pod,
        node: &Object,
    ) -> std::result::Result<Attestation, String> {
        let node_uid = &node.metadata.uid;
        let mut values = vec![
            format!("cluster:{cluster}"),
            format!("agent_ns:{}", bearer.namespace),
            format!("agent_sa:{}", bearer.service_account),
            format!("agent_pod_name:{}", bearer.pod),
            format!("agent_pod_uid:{}", bearer.pod_uid),
            format!("agent_node_ip:{}", pod.status.host_ip),
            format!("agent_node_name:{}", pod.spec.node_name),
            format!("agent_node_uid:{node_uid}"),
        ];
        for (key, value) in node.metadata.labels.iter().filter(|(key, _)| settings.node_labels.contains(*key))
        {
            values.push(format!("agent_node_label:{key}:{value}"));
        }
        for (key, value) in pod.metadata.labels.iter().filter(|(key, _)| settings.pod_labels.contains(*key)) {
            values.push(format!("agent_pod_label:{key}:{value}"));
        }
        let path = match settings.by_pod {
            true => format!("/{NAME}/{cluster}/pod/{}", bearer.pod_uid),
            false => format!("/{NAME}/{cluster}/{node_uid}"),
        };
        let agent_id = SpiffeId::agent(&self.trust_domain, &path).map_err(|error| error.to_string())?;
        let selectors =
            values.into_iter().map(|value| Selector::new(NAME, value).map_err(|error| error.to_string()));
        let selectors = selectors.collect::<std::result::Result<_, _>>()?;
        Ok(Attestation { agent_id, selectors, can_reattest: true })
    }
}
