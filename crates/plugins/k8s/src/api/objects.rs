//! Objects of the Kubernetes API, with the fields that we look at.
//!
//! What Go leaves out and what it writes as null are the same here: nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// `metadata` of any object.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metadata {
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) namespace: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) uid: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) owner_references: Vec<Owner>,
}

/// Who owns an object.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Owner {
    /// Group and version, or the version alone of those of the core.
    #[serde(deserialize_with = "nullable")]
    pub(crate) api_version: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) kind: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) uid: String,
    /// Whether it is the one that manages the object.
    #[serde(deserialize_with = "nullable")]
    pub(crate) controller: bool,
}

/// An object of which only `metadata` counts: a node, a namespace.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct Object {
    #[serde(deserialize_with = "nullable")]
    pub(crate) metadata: Metadata,
}

/// A pod.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct Pod {
    #[serde(deserialize_with = "nullable")]
    pub(crate) metadata: Metadata,
    #[serde(deserialize_with = "nullable")]
    pub(crate) spec: PodSpec,
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: PodStatus,
}

/// What a pod shall be.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PodSpec {
    #[serde(deserialize_with = "nullable")]
    pub(crate) node_name: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) service_account_name: String,
}

/// What a pod is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PodStatus {
    #[serde(rename = "hostIP", deserialize_with = "nullable")]
    pub(crate) host_ip: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) init_container_statuses: Vec<ContainerStatus>,
}

/// A container of a pod.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct ContainerStatus {
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) image: String,
    #[serde(rename = "imageID", deserialize_with = "nullable")]
    pub(crate) image_id: String,
    /// `<runtime>://<id>`; empty as long as the container has not started.
    #[serde(rename = "containerID", deserialize_with = "nullable")]
    pub(crate) container_id: String,
}

/// Several pods, as a kubelet lists them. Whatever else is in `items` has no UID and is left out.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PodList {
    pub(crate) items: Option<Vec<Pod>>,
}

/// A part of a long list of objects of which only `metadata` counts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Page {
    #[serde(deserialize_with = "nullable")]
    pub(crate) metadata: PageMetadata,
    #[serde(deserialize_with = "nullable")]
    pub(crate) items: Vec<Object>,
}

/// Where a list goes on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PageMetadata {
    /// Empty at the end.
    #[serde(rename = "continue", deserialize_with = "nullable")]
    pub(crate) next: String,
}

/// The versions of the core (`meta/v1 APIVersions`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CoreVersions {
    #[serde(deserialize_with = "nullable")]
    pub(crate) versions: Vec<String>,
}

/// The versions of a group (`meta/v1 APIGroup`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Group {
    #[serde(deserialize_with = "nullable")]
    pub(crate) versions: Vec<GroupVersion>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) preferred_version: GroupVersion,
}

/// A version of a group.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct GroupVersion {
    #[serde(deserialize_with = "nullable")]
    pub(crate) version: String,
}

/// What a version of a group has (`meta/v1 APIResourceList`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Resources {
    #[serde(deserialize_with = "nullable")]
    pub(crate) resources: Vec<Resource>,
}

/// A kind of objects.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Resource {
    /// The plural, as in paths.
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) kind: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) namespaced: bool,
}

/// The answer to a `SubjectAccessReview` (`authorization.k8s.io/v1`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ReviewedAccess {
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: AccessStatus,
}

/// Whether somebody may do something.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AccessStatus {
    #[serde(deserialize_with = "nullable")]
    pub(crate) allowed: bool,
}

/// A question whether a token is good (`authentication.k8s.io/v1`).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TokenReview<'a> {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) spec: TokenReviewSpec<'a>,
}

/// The token, and whom it should be for.
#[derive(Debug, Serialize)]
pub(crate) struct TokenReviewSpec<'a> {
    pub(crate) token: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub(crate) audiences: &'a [String],
}

/// The answer to a [`TokenReview`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ReviewedToken {
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: TokenStatus,
}

/// What the API server says of a token.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TokenStatus {
    #[serde(deserialize_with = "nullable")]
    pub(crate) authenticated: bool,
    #[serde(deserialize_with = "nullable")]
    pub(crate) error: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) audiences: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) user: TokenUser,
}

/// Whose token it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TokenUser {
    #[serde(deserialize_with = "nullable")]
    pub(crate) username: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) extra: BTreeMap<String, Vec<String>>,
}

/// What the API server answers instead of an object (`meta/v1 Status`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    #[serde(deserialize_with = "nullable")]
    pub(crate) kind: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) message: String,
}
