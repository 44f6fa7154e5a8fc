//! The container of a process as old versions told it: by two patterns of cgroup paths (`use_new_container_locator = false`;
//! pkg/agent/plugin/workloadattestor/k8s/k8s_posix.go).

use std::sync::LazyLock;

use regex::Regex;

/// A container and its pod; the pod's UID may be unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) pod_uid: Option<String>,
    pub(super) container_id: String,
}

/// A pod's UID, with punctuation of any kind between its groups.
const UID: &str = "[[:xdigit:]]{8}[[:punct:]]?[[:xdigit:]]{4}[[:punct:]]?[[:xdigit:]]{4}[[:punct:]]?[[:xdigit:]]{4}\
                   [[:punct:]]?[[:xdigit:]]{12}";

/// `…pod<UID>…<container>`, with words between them such as `docker-`.
static WITH_POD: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(&format!("[[:punct:]]pod({UID})[[:punct:]](?:[[:^punct:]]+[[:punct:]])*([[:xdigit:]]{{64}})$"))
        .ok()
});

/// `…crio-<container>` of runtimes that leave the pod out.
static WITHOUT_POD: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let pattern = format!("(pod{UID}[[:punct:]])?(?:[[:^punct:]]*/*)*crio[[:punct:]]([[:xdigit:]]{{64}})$");
    Regex::new(&pattern).ok()
});

/// The one container that the paths name, if any does.
///
/// # Errors
/// They name several.
pub(super) fn locate(paths: &[String]) -> Result<Option<Place>, String> {
    let mut found: Option<Place> = None;
    for place in paths.iter().filter_map(|path| place(path)) {
        match &found {
            None => found = Some(place),
            Some(known) if known.container_id != place.container_id => {
                let (known, other) = (&known.container_id, &place.container_id);
                return Err(format!("multiple container IDs found in cgroups ({known}, {other})"));
            }
            Some(known) if known.pod_uid != place.pod_uid => {
                let uid = |place: &Place| place.pod_uid.clone().unwrap_or_default();
                return Err(format!("multiple pod UIDs found in cgroups ({}, {})", uid(known), uid(&place)));
            }
            Some(_) => {}
        }
    }
    Ok(found)
}

fn place(path: &str) -> Option<Place> {
    let path = path.strip_suffix(".scope").unwrap_or(path);
    let with_pod = WITH_POD.as_ref()?.captures(path);
    let without_pod = WITHOUT_POD.as_ref()?.captures(path).filter(|found| found.get(1).is_none());
    match (with_pod, without_pod) {
        (Some(found), None) => {
            let dash = |char: char| if char.is_ascii_punctuation() { '-' } else { char };
            let pod_uid = Some(found[1].chars().map(dash).collect());
            Some(Place { pod_uid, container_id: found[2].to_owned() })
        }
        (None, Some(found)) => Some(Place { pod_uid: None, container_id: found[2].to_owned() }),
        // Both fit, and which of them is right cannot be told.
        (Some(_), Some(_)) | (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961";
    const B: &str = "8d461fa5765781bcf5f7eb192f101bc3103d4b932e26236f43feecfa20664f96";
    const POD: &str = "2c48913c-b29f-11e7-9350-020968147796";

    #[test]
    fn paths_of_many_runtimes() {
        let pod_ = POD.replace('-', "_");
        let in_pod = Some((Some(POD), A));
        let table = [
            ("/".to_owned(), None),
            (format!("/docker/{A}"), None),
            (format!("/kubepods/burstable/pod{POD}/{A}"), in_pod),
            (format!("/docker/{B}/kubepods/besteffort/pod{POD}/{A}"), in_pod),
            (format!("/kubepods.slice/kubepods-burstable-pod{pod_}.slice/docker-{A}.scope"), in_pod),
            (format!("/kubepods-besteffort-pod{pod_}.slice:cri-containerd:{A}"), in_pod),
            (format!("/../../pod{POD}/{A}"), in_pod),
            (format!("/../crio-{A}.scope"), Some((None, A))),
            (format!("/kubepods/pod{POD}/{}", &A[1..]), None),
        ];
        for (path, expected) in table {
            let found = locate(std::slice::from_ref(&path)).unwrap();
            let found = found.as_ref().map(|place| (place.pod_uid.as_deref(), place.container_id.as_str()));
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn paths_that_contradict_each_other_are_refused() {
        let other = POD.replace('2', "3");
        let both = |one: String, two: String| locate(&["/x".to_owned(), one, two]);
        let error = both(format!("/pod{POD}/{A}"), format!("/pod{POD}/{B}")).unwrap_err();
        assert_eq!(error, format!("multiple container IDs found in cgroups ({A}, {B})"));
        let error = both(format!("/pod{POD}/{A}"), format!("/pod{other}/{A}")).unwrap_err();
        assert_eq!(error, format!("multiple pod UIDs found in cgroups ({POD}, {other})"));
        assert!(both(format!("/pod{POD}/{A}"), format!("/a/pod{POD}/{A}")).unwrap().is_some());
    }
}
