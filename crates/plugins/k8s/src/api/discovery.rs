//! Objects of any kind: which kinds an API server has, and their metadata (client-go `restmapper`, `metadata`).

use super::objects::{AccessStatus, CoreVersions, Group, Object, Page, Resource, Resources, ReviewedAccess};
use super::{ApiError, ApiServer, segment};
use http::StatusCode;
use serde_json::json;

/// Objects of one answer. Metadata of an object has 1 to 10 KiB, most of it about who changed which field.
const PAGE: usize = 250;

/// Answers that are read when an object is looked for by its UID: more objects than the largest clusters have of a kind, which
/// end at 150,000 pods.
const PAGES_MAX: usize = 800;

/// Versions of a group that are looked into; groups have three at most.
const VERSIONS_MAX: usize = 8;

/// A kind of objects, as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Empty for the core.
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) kind: String,
    pub(crate) namespaced: bool,
}

impl Kind {
    /// Pods, which every cluster has.
    pub(crate) fn pods() -> Self {
        Self {
            group: String::new(),
            version: "v1".to_owned(),
            plural: "pods".to_owned(),
            kind: "Pod".to_owned(),
            namespaced: true,
        }
    }

    /// `<group>/<version>`, or the version alone of the core.
    pub(crate) fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// Where an object, or with an empty name where all are.
    pub(crate) fn path(&self, namespace: &str, name: &str) -> Result<String, ApiError> {
        let mut path = version_path(&self.group, &self.version)?;
        if !namespace.is_empty() {
            path.extend(["/namespaces/", segment(namespace)?]);
        }
        path.extend(["/", segment(&self.plural)?]);
        if !name.is_empty() {
            path.extend(["/", segment(name)?]);
        }
        Ok(path)
    }
}

fn version_path(group: &str, version: &str) -> Result<String, ApiError> {
    Ok(match group {
        "" => format!("/api/{}", segment(version)?),
        group => format!("/apis/{}/{}", segment(group)?, segment(version)?),
    })
}

impl ApiServer {
    /// The kind with that plural, in the group's preferred version if that has it; nothing where no version has.
    ///
    /// # Errors
    /// The API server does not say.
    pub(crate) async fn kind(&self, group: &str, plural: &str) -> Result<Option<Kind>, ApiError> {
        let versions: Vec<String> = match group {
            "" => self.get::<CoreVersions>("/api").await?.versions,
            group => match self.get::<Group>(&format!("/apis/{}", segment(group)?)).await {
                Ok(found) => {
                    let preferred = found.preferred_version.version;
                    let others = found.versions.into_iter().map(|one| one.version);
                    let others = others.filter(|version| *version != preferred).collect::<Vec<_>>();
                    std::iter::once(preferred).filter(|version| !version.is_empty()).chain(others).collect()
                }
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        for version in versions.into_iter().take(VERSIONS_MAX) {
            let resources: Resources = self.get(&version_path(group, &version)?).await?;
            let found = resources.resources.into_iter().find(|resource| resource.name == plural);
            if let Some(Resource { kind, namespaced, .. }) = found {
                let (group, plural) = (group.to_owned(), plural.to_owned());
                return Ok(Some(Kind { group, version, plural, kind, namespaced }));
            }
        }
        Ok(None)
    }

    /// The metadata of an object by its name; `namespace` is empty for kinds without.
    ///
    /// # Errors
    /// [`ApiError`] says why there is none.
    pub(crate) async fn object(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Object, ApiError> {
        self.metadata(&kind.path(namespace, name)?, false).await
    }

    /// The metadata of the object with that UID, in whatever namespace. Kubernetes selects by no UID, so that all are read.
    ///
    /// # Errors
    /// The API server does not list them.
    pub(crate) async fn object_by_uid(&self, kind: &Kind, uid: &str) -> Result<Option<Object>, ApiError> {
        let path = kind.path("", "")?;
        let mut more = String::new();
        for _ in 0..PAGES_MAX {
            let page: Page = self.metadata(&format!("{path}?limit={PAGE}{more}"), true).await?;
            if let Some(found) = page.items.into_iter().find(|object| object.metadata.uid == uid) {
                return Ok(Some(found));
            }
            if page.metadata.next.is_empty() {
                return Ok(None);
            }
            more = format!("&continue={}", escaped(&page.metadata.next));
        }
        Ok(None)
    }

    /// Whether Kubernetes lets that user do this to an object (`authorization.k8s.io/v1` SubjectAccessReview).
    ///
    /// # Errors
    /// It does not say.
    pub(crate) async fn may(
        &self,
        user: &str,
        verb: &str,
        (group, plural): (&str, &str),
        (namespace, name): (&str, &str),
    ) -> Result<bool, ApiError> {
        // What is empty is left out, as Go's clients do.
        let attributes = [
            ("namespace", namespace),
            ("verb", verb),
            ("group", group),
            ("resource", plural),
            ("name", name),
        ];
        let attributes = attributes.into_iter().filter(|(_, value)| !value.is_empty());
        let attributes = attributes.map(|(key, value)| (key.to_owned(), json!(value)));
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": attributes.collect::<serde_json::Map<_, _>>()},
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let ReviewedAccess { status: AccessStatus { allowed } } = self.create(path, &review).await?;
        Ok(allowed)
    }
}

impl ApiError {
    /// Whether the server has no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { code, .. } if *code == StatusCode::NOT_FOUND)
    }
}

/// A text as the value of a query.
fn escaped(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
