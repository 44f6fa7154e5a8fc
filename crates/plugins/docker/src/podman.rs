//! Which engine runs a container: Podman says so in the cgroup paths, and whose Podman it is.

/// The socket of the Podman that runs the process; nothing where it is Docker's. `template` has one `%d`, which is the user of a
/// rootless Podman.
pub(crate) fn socket(cgroups: &[String], rootful: &str, template: &str) -> Option<String> {
    let path = cgroups.iter().find(|path| path.contains("libpod-") || path.contains("/libpod/"))?;
    Some(match user(path) {
        Some(uid) => expand(template, uid),
        None => rootful.to_owned(),
    })
}

/// The user in `/user-<uid>.slice/`.
fn user(path: &str) -> Option<u32> {
    let mut rest = path;
    while let Some((_, after)) = rest.split_once("/user-") {
        let (slice, _) = after.split_once('/')?;
        if let Some(digits) = slice.strip_suffix(".slice")
            && !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
        {
            return match digits.parse() {
                Ok(uid) => Some(uid),
                Err(_) => {
                    tracing::warn!(
                        external = false,
                        plugin_name = "docker",
                        plugin_type = "WorkloadAttestor",
                        uid = digits,
                        cgroup_path = path,
                        "Failed to parse rootless Podman UID from cgroup path, falling back to rootful Podman socket"
                    );
                    None
                }
            };
        }
        rest = after;
    }
    None
}

fn expand(template: &str, uid: u32) -> String {
    template.split("%%").map(|part| part.replace("%d", &uid.to_string())).collect::<Vec<_>>().join("%")
}

#[cfg(test)]
mod tests {
    use super::socket;

    #[test]
    fn podman_is_told_by_cgroups() {
        let table = [
            ("/docker/abc", None),
            ("/machine.slice/libpod-abc.scope/container", Some("unix:///root")),
            ("/libpod_parent/libpod-abc", Some("unix:///root")),
            ("/x/libpod/abc", Some("unix:///root")),
            ("/user.slice/user-1000.slice/user@1000.service/libpod-abc.scope", Some("unix:///%/1000")),
            ("/user-x.slice/user-7.slice/libpod-abc", Some("unix:///%/7")),
            ("/user.slice/user-99999999999.slice/libpod-abc", Some("unix:///root")),
        ];
        for (path, expected) in table {
            let cgroups = ["/".to_owned(), path.to_owned()];
            assert_eq!(socket(&cgroups, "unix:///root", "unix:///%%/%d").as_deref(), expected, "{path}");
        }
    }
}
