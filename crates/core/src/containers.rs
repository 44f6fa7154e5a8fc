//! Which container a process is in, judged from the texts of `/proc/<pid>/cgroup` and
//! `/proc/<pid>/mountinfo`. Rules and error texts are the reference's (pkg/common/containerinfo).
//!
//! The kernel writes the first file and a workload cannot forge it. The second one tells of the workload's
//! own mounts, so a caller asks it only when the first has no container ID at all.

/// A container, and the Kubernetes pod that it belongs to if it was asked for and is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// 64 hexadecimal digits; empty while none was found.
    id: String,
    /// A UUID with dashes; empty when there is none.
    pod_uid: String,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocateError {
    /// Entries name different pods. Choosing one could give a workload another's identity.
    #[error("multiple pod UIDs found ({0:?}, {1:?})")]
    PodUids(String, String),
    /// Entries name different containers.
    #[error("multiple container IDs found ({0:?}, {1:?})")]
    ContainerIds(String, String),
    /// A line of the cgroup file without its three fields.
    #[error(
        "unable to obtain cgroups: invalid cgroup entry, contains {fields} colon separated fields but \
         expected at least 3: {line:?}"
    )]
    Cgroup {
        /// How many fields it has.
        fields: usize,
        /// The line.
        line: String,
    },
    /// A line of the mountinfo file without separator or file system.
    #[error("missing separator in mountinfo line: {0}")]
    MountInfo(String),
}

impl Container {
    /// 64 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The UID of the pod, if there is one.
    pub fn pod_uid(&self) -> Option<&str> {
        (!self.pod_uid.is_empty()).then_some(&self.pod_uid)
    }

    /// From the text of `/proc/<pid>/cgroup`; `None` when the process is in no container.
    ///
    /// # Errors
    /// [`LocateError::Cgroup`] as [`cgroup_paths`]; [`LocateError::PodUids`] when entries name different
    /// pods, and [`LocateError::ContainerIds`] when those that count name different containers, or a later
    /// one none where an earlier one does.
    pub fn from_cgroups(text: &str, with_pod: bool) -> Result<Option<Self>, LocateError> {
        locate(cgroup_paths(text)?.into_iter(), with_pod)
    }

    /// From the text of `/proc/<pid>/mountinfo`, of which only the cgroup mounts count.
    ///
    /// # Errors
    /// [`LocateError::MountInfo`] as [`mounts`]; [`LocateError::PodUids`] and [`LocateError::ContainerIds`]
    /// as [`Container::from_cgroups`].
    pub fn from_mountinfo(text: &str, with_pod: bool) -> Result<Option<Self>, LocateError> {
        let mounts = mounts(text)?;
        // Who mounts all of /sys/fs/cgroup has the root "/", which tells nothing.
        let roots = mounts
            .into_iter()
            .filter(|mount| matches!(mount.kind, "cgroup" | "cgroup2") && mount.root != "/")
            .map(|mount| mount.root);
        locate(roots, with_pod)
    }
}

/// A mount of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// What of its file system is mounted.
    pub root: &'a str,
    /// The type of its file system.
    pub kind: &'a str,
}

/// The lines of `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)).
///
/// # Errors
/// [`LocateError::MountInfo`] with the first line that has no ` - ` after its first six fields, or no file
/// system type after that.
pub fn mounts(text: &str) -> Result<Vec<Mount<'_>>, LocateError> {
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| mount(line).ok_or_else(|| LocateError::MountInfo(line.to_owned())))
        .collect()
}

fn mount(line: &str) -> Option<Mount<'_>> {
    // Fields are split at single spaces, since the mount source may be empty.
    let fields: Vec<&str> = line.split(' ').collect();
    let separator = fields.iter().position(|field| *field == "-").filter(|at| *at >= 6)?;
    Some(Mount { root: fields[3], kind: fields.get(separator + 1)? })
}

/// The paths of `/proc/<pid>/cgroup`, a line of which is `id:controllers:path` (cgroups(7)).
///
/// # Errors
/// [`LocateError::Cgroup`] with the first line of fewer than three fields.
pub fn cgroup_paths(text: &str) -> Result<Vec<&str>, LocateError> {
    text.lines()
        .map(|line| {
            line.splitn(3, ':')
                .nth(2)
                .ok_or_else(|| LocateError::Cgroup { fields: line.split(':').count(), line: line.to_owned() })
        })
        .collect()
}

fn locate<'a>(
    paths: impl Iterator<Item = &'a str>,
    with_pod: bool,
) -> Result<Option<Container>, LocateError> {
    let mut found = Container::default();
    for path in paths {
        let (pod_uid, id) = extract(path, with_pod);
        // An entry with a pod wins over those without: in a cluster whose nodes are containers themselves,
        // some entries name the node's container only.
        if !found.pod_uid.is_empty() && pod_uid.is_empty() {
            continue;
        }
        if found.pod_uid.is_empty() && !pod_uid.is_empty() {
            found = Container { id: id.to_owned(), pod_uid };
            continue;
        }
        if found.pod_uid != pod_uid {
            return Err(LocateError::PodUids(found.pod_uid, pod_uid));
        }
        if !found.id.is_empty() && found.id != id {
            return Err(LocateError::ContainerIds(found.id, id.to_owned()));
        }
        id.clone_into(&mut found.id);
    }
    Ok((!found.id.is_empty()).then_some(found))
}

/// Pod UID and container ID of one path, looked for from its end; what is not there is empty.
fn extract(path: &str, with_pod: bool) -> (String, &str) {
    let mut rest = path;
    while let Some((before, segment)) = pop_segment(rest) {
        rest = before;
        let Some(at) = container_id_at(segment) else { continue };
        let id = &segment[at..at + 64];
        if !with_pod {
            return (String::new(), id);
        }
        // Runtimes that separate by colons have the pod in the same segment.
        let mut segment = &segment[..at];
        loop {
            if let Some(uid) = pod_uid(segment) {
                return (uid, id);
            }
            match pop_segment(rest) {
                Some((before, next)) => (rest, segment) = (before, next),
                None => return (String::new(), id),
            }
        }
    }
    (String::new(), "")
}

/// The last segment of a path and what is before it; nothing at the start or at an empty segment.
fn pop_segment(path: &str) -> Option<(&str, &str)> {
    let (before, segment) = path.rsplit_once('/').unwrap_or(("", path));
    (!segment.is_empty()).then_some((before, segment))
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Where the first word of 64 hexadecimal digits begins.
fn container_id_at(segment: &str) -> Option<usize> {
    let mut at = 0;
    for word in segment.as_bytes().split(|byte| !is_word(*byte)) {
        if word.len() == 64 && word.iter().all(u8::is_ascii_hexdigit) {
            return Some(at);
        }
        at += word.len() + 1;
    }
    None
}

/// The first `pod<UUID>` that stands as a word of its own. The systemd driver writes dashes as underscores.
fn pod_uid(segment: &str) -> Option<String> {
    let bytes = segment.as_bytes();
    (0..bytes.len()).find_map(|at| {
        let uid = bytes[at..].strip_prefix(b"pod")?.get(..36)?;
        let end = at + 3 + 36;
        let alone = (at == 0 || !is_word(bytes[at - 1])) && bytes.get(end).is_none_or(|b| !is_word(*b));
        let shaped = uid.iter().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => matches!(byte, b'-' | b'_'),
            _ => byte.is_ascii_hexdigit(),
        });
        (alone && shaped).then(|| segment[at + 3..end].replace('_', "-"))
    })
}

#[cfg(test)]
mod tests {
    use super::{Container, LocateError};

    const A: &str = "09bc3d7ade839efec32b6bec4ec79d099027a668ddba043083ec21d3c3b8f1e6";
    const B: &str = "93529524695bb00d91c1f6dba692ea8d3550c3b94fb2463af7bc9ec82f992d26";
    const POD: &str = "2c48913c-b29f-11e7-9350-020968147796";

    fn cgroups(text: &str) -> Result<Option<(String, Option<String>)>, LocateError> {
        let found = Container::from_cgroups(text, true)?;
        Ok(found.map(|c| (c.id().to_owned(), c.pod_uid().map(str::to_owned))))
    }

    #[test]
    fn containers_and_pods_of_cgroups() {
        let pod_ = POD.replace('-', "_");
        let none = Ok(None);
        let alone = |id: &str| Ok(Some((id.to_owned(), None)));
        let in_pod = |id: &str| Ok(Some((id.to_owned(), Some(POD.to_owned()))));
        let table = [
            (String::new(), none.clone()),
            ("0::/user.slice/user-1000.slice/session-1.scope".to_owned(), none.clone()),
            // 63 and 65 digits, digits glued to a word, and upper case.
            (format!("0::/docker/{}", &A[1..]), none.clone()),
            (format!("0::/docker/{A}0"), none.clone()),
            (format!("0::/docker/x_{A}"), none.clone()),
            (format!("0::/docker/{}", A.to_uppercase()), alone(&A.to_uppercase())),
            (format!("0::/docker/{A}"), alone(A)),
            (format!("0::/machine.slice/libpod-{A}.scope/container"), alone(A)),
            (format!("1:cpuset:/docker/{B}/docker/{A}"), alone(A)),
            (format!("0::/kubepods/burstable/pod{POD}/{A}"), in_pod(A)),
            (format!("0::/kubepods.slice/kubepods-pod{pod_}.slice/cri-containerd-{A}.scope"), in_pod(A)),
            (format!("0::/kubepods-pod{pod_}.slice:cri-containerd:{A}"), in_pod(A)),
            (format!("0::/../../pod{POD}/{A}"), in_pod(A)),
            (format!("0::/xpod{POD}/{A}"), alone(A)),
            // The entry with a pod wins, whichever comes first.
            (format!("1:x:/docker/{B}/kubepods/pod{POD}/{A}\n0::/docker/{B}/system.slice"), in_pod(A)),
            (format!("1:x:/docker/{B}\n0::/docker/{B}/kubepods/pod{POD}/{A}"), in_pod(A)),
            (
                format!("1:x:/docker/{A}\n0::/docker/{B}"),
                Err(LocateError::ContainerIds(A.to_owned(), B.to_owned())),
            ),
            (format!("1:x:/docker/{A}\n0::/"), Err(LocateError::ContainerIds(A.to_owned(), String::new()))),
            (
                format!("1:x:/pod{POD}/{A}\n0::/pod{}/{A}", POD.replace('2', "3")),
                Err(LocateError::PodUids(POD.to_owned(), POD.replace('2', "3"))),
            ),
            ("0:".to_owned(), Err(LocateError::Cgroup { fields: 2, line: "0:".to_owned() })),
        ];
        for (text, expected) in table {
            assert_eq!(cgroups(&text), expected, "{text}");
        }
        let without_pod = Container::from_cgroups(&format!("0::/pod{POD}/{A}"), false).unwrap().unwrap();
        assert_eq!((without_pod.id(), without_pod.pod_uid()), (A, None));
    }

    #[test]
    fn containers_of_mounts() {
        let mount = |root: &str, kind: &str| format!("1 2 0:68 {root} /sys rw,relatime - {kind}  rw\n");
        let id = |text: &str| {
            Ok::<_, LocateError>(Container::from_mountinfo(text, false)?.map(|c| c.id().to_owned()))
        };
        let container = format!("/docker/{A}");
        assert_eq!(id(""), Ok(None));
        assert_eq!(id(&mount(&container, "tmpfs")), Ok(None));
        assert_eq!(id(&mount(&container, "cgroup2")), Ok(Some(A.to_owned())));
        assert_eq!(id(&(mount(&container, "cgroup") + &mount("/", "cgroup2"))), Ok(Some(A.to_owned())));
        let text = mount(&container, "cgroup") + &mount(&format!("/docker/{B}"), "cgroup");
        assert_eq!(id(&text), Err(LocateError::ContainerIds(A.to_owned(), B.to_owned())));
        for line in ["1 2 0:68 / /sys rw", "1 2 0:68 / - tmpfs", "1 2 0:68 / /sys rw -"] {
            assert_eq!(id(line), Err(LocateError::MountInfo(line.to_owned())));
        }
    }
}
