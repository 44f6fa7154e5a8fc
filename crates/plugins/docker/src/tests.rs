//! Settings, matchers and processes outside containers.

use spire_compat::hcl;
use spire_core::spiffe::TrustDomain;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{ErrorKind, PluginType, WorkloadAttestor as _};

use super::matchers::Matchers;
use super::settings::Settings;
use super::{Docker, build};

fn configuration(data: &str) -> Configuration {
    let data = Some(hcl::parse(data).unwrap().into());
    Configuration::new(
        (PluginType::WorkloadAttestor, "docker"),
        TrustDomain::parse("example.org").unwrap(),
        data,
    )
}

#[tokio::test]
async fn settings_are_checked() {
    for data in [
        "",
        "docker_socket_path = \"unix:///x\"\ndocker_version = \"1.41\"",
        "podman_socket_path_template = \"unix:///run/%%/%d\"",
        "use_new_container_locator = false\ncontainer_id_cgroup_matchers = [\"/docker/<id>\"]",
        "use_new_container_locator = false",
        "sigstore { ignore_sct = true }",
    ] {
        assert!(build(configuration(data)).await.is_ok(), "{data}");
    }
    let table = [
        ("b = 1\na = 2", "unknown configurations detected: a,b"),
        ("docker_version = true", "unable to decode configuration: "),
        ("container_id_cgroup_matchers = [\"/docker/<id>\"]", "the new container locator and custom cgroup"),
        (
            "use_new_container_locator = false\ncontainer_id_cgroup_matchers = [\"/docker\"]",
            "pattern \"/docker\" must contain the container id token \"<id>\" exactly once",
        ),
        (
            "use_new_container_locator = false\ncontainer_id_cgroup_matchers = [\"/*/<id>\", \"/a/<id>\"]",
            "dockerfinder: patterns must not be ambiguous: [\"/*/<id>\" \"/a/<id>\"]",
        ),
        (
            "podman_socket_path_template = \"unix:///x\"",
            "invalid podman_socket_path_template: template must contain exactly one %d UID placeholder",
        ),
        (
            "podman_socket_path_template = \"%d%\"",
            "invalid podman_socket_path_template: trailing % at end of template",
        ),
        (
            "podman_socket_path_template = \"%s\"",
            "invalid podman_socket_path_template: template only supports escaped %% or the %d UID placeholder",
        ),
    ];
    for (data, message) in table {
        let error = build(configuration(data)).await.err().expect(data);
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.message.starts_with(message), "{data}: {}", error.message);
    }
}

#[test]
fn matchers_find_containers() {
    let matchers = Matchers::parse(&["/docker/<id>".to_owned(), "/my.slice/*/<id>/*".to_owned()]).unwrap();
    type Found = Result<Option<&'static str>, &'static str>;
    let table: [(&[&str], Found); 6] = [
        (&["/", "/user.slice"], Ok(None)),
        (&["/docker/abc"], Ok(Some("abc"))),
        (&["/docker/abc", "/my.slice/x/abc/y", "/"], Ok(Some("abc"))),
        (&["/docker/abc/d"], Ok(None)),
        (
            &["/docker/a", "/docker/b"],
            Err("workloadattestor/docker: multiple container IDs found in cgroups (a, b)"),
        ),
        (&["/docker/"], Err("workloadattestor/docker: a pattern matched, but no container id was found")),
    ];
    for (paths, expected) in table {
        let found = matchers.find(paths);
        assert_eq!(found, expected.map(|id| id.map(str::to_owned)).map_err(str::to_owned), "{paths:?}");
    }
}

#[tokio::test]
async fn only_processes_in_containers_are_refused() {
    let id = "09bc3d7ade839efec32b6bec4ec79d099027a668ddba043083ec21d3c3b8f1e6";
    let in_container = format!("0::/docker/{id}\n");
    let mounted = format!("1 2 0:68 /docker/{id} /sys/fs/cgroup rw - cgroup2 cgroup rw\n");
    let matchers = || Some(Matchers::parse(&["/mine/<id>".to_owned()]).unwrap());
    let table = [
        ("0::/user.slice\n", "", None, None),
        (&in_container, "", None, Some(id)),
        ("0::/\n", &mounted, None, Some(id)),
        // Custom matchers look at nothing else.
        (&in_container, &mounted, matchers(), None),
        ("0::/mine/abc\n", "", matchers(), Some("abc")),
    ];
    let proc = tempfile::tempdir().unwrap();
    std::fs::create_dir(proc.path().join("7")).unwrap();
    for (cgroup, mountinfo, matchers, container) in table {
        std::fs::write(proc.path().join("7/cgroup"), cgroup).unwrap();
        std::fs::write(proc.path().join("7/mountinfo"), mountinfo).unwrap();
        let docker = Docker { settings: Settings { matchers }, proc: proc.path().to_owned() };
        let result = docker.attest(7).await.map_err(|error| (error.kind, error.message));
        let expected = container.map_or(Ok(vec![]), |id| {
            let message = format!("attestation of containers is not built yet (container {id})");
            Err((ErrorKind::Unimplemented, message))
        });
        assert_eq!(result, expected, "{cgroup}");
        // As in the reference, a process that is gone is in no container.
        assert_eq!(docker.attest(8).await, Ok(vec![]));
    }
}
