//! Settings, matchers, and what engines answer.

use serde_json::json;
use spire_compat::hcl;
use spire_core::spiffe::TrustDomain;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{ErrorKind, PluginType, WorkloadAttestor as _};
use spire_testkit::sigstore::SignedImage;
use spire_testkit::web::{Answer, Request, Web};
use tokio::time::Instant;

use super::matchers::Matchers;
use super::settings::Settings;
use super::{Docker, Locator, Verifier, build};

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
    ] {
        assert!(build(configuration(data)).await.is_ok(), "{data}");
    }
    let table = [
        (
            "sigstore { ignore_sct = true }",
            "error initializing sigstore verifier: failed to get fulcio root certificates: ",
        ),
        (
            "experimental { sigstore { ignore_tlog = true } }",
            "error initializing sigstore verifier: failed to get fulcio root certificates: ",
        ),
        ("experimental { other = 1\n sigstore {} }", "unknown configurations detected: other"),
        (
            "docker_socket_path = \"/var/run/docker.sock\"",
            "unable to parse docker host `/var/run/docker.sock`",
        ),
        (
            "experimental {}\ncgroup_prefix = \"x\"",
            "unknown configurations detected: cgroup_prefix,experimental",
        ),
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

const ID: &str = "09bc3d7ade839efec32b6bec4ec79d099027a668ddba043083ec21d3c3b8f1e6";

fn container(request: &Request) -> Answer {
    match request.target.as_str() {
        "/_ping" => Answer::Body(200, "text/plain", b"OK".to_vec()),
        path if path.ends_with(&format!("/containers/{ID}/json")) => {
            let config =
                json!({"Labels": {"app": "blog", "a:b": "c"}, "Env": ["A=b", "C="], "Image": "blog/x:1"});
            Answer::Json(200, json!({"Id": ID, "Config": config}).to_string())
        }
        path if path.ends_with("/images/blog/x:1/json") => {
            Answer::Json(200, json!({"Id": "sha256:1", "RepoDigests": []}).to_string())
        }
        path => Answer::Json(404, json!({"message": format!("No such container: {path}")}).to_string()),
    }
}

/// An attestor whose process 7 is in that cgroup, with sockets in that folder.
fn attestor(folder: &std::path::Path, data: &str, cgroup: &str) -> Docker {
    let folder_text = folder.display();
    let data = format!(
        "{data}\ndocker_socket_path = \"unix://{folder_text}/docker.sock\"\npodman_socket_path = \
         \"unix://{folder_text}/podman.sock\"\npodman_socket_path_template = \"unix://{folder_text}/podman-%d.sock\""
    );
    let mut docker = Docker::new(Settings::read(&configuration(&data)).unwrap()).unwrap();
    std::fs::create_dir_all(folder.join("7")).unwrap();
    std::fs::write(folder.join("7/cgroup"), format!("0::{cgroup}\n")).unwrap();
    docker.locator = Locator::new("docker", false, true).at(folder);
    docker
}

async fn attest(docker: &Docker) -> Result<Vec<String>, (ErrorKind, String)> {
    let found = docker.attest(7).await.map_err(|error| (error.kind, error.message))?;
    Ok(found.iter().map(|selector| selector.value().to_owned()).collect())
}

const SELECTORS: [&str; 6] = [
    "label:a:b:c",
    "label:app:blog",
    "env:A=b",
    "env:C=",
    "image_id:blog/x:1",
    "image_config_digest:sha256:1",
];

#[tokio::test]
async fn the_engine_of_a_container_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let web = |name: &str| Web::start_unix(&folder.path().join(name), container).unwrap();
    let (engine, rootful, rootless) = (web("docker.sock"), web("podman.sock"), web("podman-1000.sock"));
    let matchers = "use_new_container_locator = false\ncontainer_id_cgroup_matchers = [\"/mine/<id>\"]";
    let table = [
        ("", format!("/docker/{ID}"), Some((&engine, "/v1.41"))),
        ("docker_version = \"1.24\"", format!("/docker/{ID}"), Some((&engine, "/v1.24"))),
        (matchers, format!("/mine/{ID}"), Some((&engine, "/v1.41"))),
        // Custom matchers look at nothing else.
        (matchers, format!("/docker/{ID}"), None),
        ("", format!("/libpod_parent/libpod-{ID}"), Some((&rootful, "/v1.41"))),
        ("", format!("/user-1000.slice/user@1000.service/libpod-{ID}.scope"), Some((&rootless, "/v1.41"))),
        ("", "/user.slice".to_owned(), None),
    ];
    for (data, cgroup, expected) in table {
        let before = [&engine, &rootful, &rootless].map(|web| web.seen().len()).iter().sum::<usize>();
        let found = attest(&attestor(folder.path(), data, &cgroup)).await.unwrap();
        match expected {
            None => {
                assert!(found.is_empty(), "{found:?}");
                assert_eq!(
                    [&engine, &rootful, &rootless].map(|web| web.seen().len()).iter().sum::<usize>(),
                    before
                );
            }
            Some((web, version)) => {
                assert_eq!(found, SELECTORS, "{cgroup}");
                let seen = web.seen();
                assert_eq!(seen[seen.len() - 2].target, format!("{version}/containers/{ID}/json"));
                assert_eq!(seen[seen.len() - 1].target, format!("{version}/images/blog/x:1/json"));
                assert_eq!(seen[seen.len() - 1].header("host"), Some("api.moby.localhost"));
            }
        }
    }
    // A process that is gone is in no container.
    assert_eq!(attestor(folder.path(), "", "/").attest(8).await, Ok(vec![]));
}

#[tokio::test]
async fn an_engine_over_tcp_and_one_without_images() {
    let web = Web::start(None, |request| match request.target.contains("/images/") {
        true => Answer::Json(500, "{}".to_owned()),
        false => container(request),
    });
    let web = web.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut docker = attestor(folder.path(), "", &format!("/docker/{ID}"));
    docker.engine = super::Engine::new(&format!("tcp://127.0.0.1:{}", web.port()), None).unwrap();
    assert_eq!(attest(&docker).await.unwrap(), SELECTORS[..5]);
}

#[tokio::test]
async fn an_engine_that_does_not_know_is_asked_four_times() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let docker = attestor(folder.path(), "docker_version = \"1.41\"", "/x");
    let unknown = ID.replace('0', "1");
    std::fs::write(folder.path().join("7/cgroup"), format!("0::/docker/{unknown}\n")).unwrap();
    let shown = format!("unix://{}", socket.display());
    let (kind, found) = attest(&docker).await.unwrap_err();
    let missing = format!(
        "failed to connect to the docker API at {shown}; check if the path is correct and if the daemon is running: dial \
         unix {}: connect: no such file or directory",
        socket.display()
    );
    assert_eq!((kind, found), (ErrorKind::Unknown, missing));
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let (_, found) = attest(&docker).await.unwrap_err();
    assert_eq!(
        found,
        format!("Cannot connect to the Docker daemon at {shown}. Is the docker daemon running?")
    );
    std::fs::remove_file(&socket).unwrap();
    let web = Web::start_unix(&socket, container).unwrap();
    let (_, found) = attest(&docker).await.unwrap_err();
    assert_eq!(
        found,
        format!("Error response from daemon: No such container: /v1.41/containers/{unknown}/json")
    );
    assert_eq!(web.seen().len(), 4);
}

#[tokio::test]
async fn nonsense_of_an_engine_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let docker = attestor(folder.path(), "docker_version = \"1.41\"", &format!("/docker/{ID}"));
    let table = [
        (Answer::Json(200, "x".to_owned()), "error reading JSON: "),
        (Answer::Json(200, "{}".to_owned()), "error reading JSON: missing field `Config`"),
        (
            Answer::Json(500, "x".to_owned()),
            "Error response from daemon: API returned a 500 (Internal Server Error)",
        ),
        (Answer::Raw(b"nonsense\r\n\r\n".to_vec()), "error during connect: "),
        (Answer::Raw(Vec::new()), "error during connect: "),
    ];
    for (answer, message) in table {
        let socket = folder.path().join("docker.sock");
        let _ = std::fs::remove_file(&socket);
        let _web = Web::start_unix(&socket, move |_| answer.clone()).unwrap();
        let (_, found) = attest(&docker).await.unwrap_err();
        assert!(found.starts_with(message), "{found}");
    }
    let mut matched = attestor(
        folder.path(),
        "use_new_container_locator = false\ncontainer_id_cgroup_matchers = [\"/mine/<id>\"]",
        "/mine/..",
    );
    matched.settings.version = None;
    let (_, found) = attest(&matched).await.unwrap_err();
    assert_eq!(found, "invalid container name or ID: \"..\"");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_hangs_delays_only_who_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    // Nobody accepts; what is sent stays in the socket.
    let _listener = std::os::unix::net::UnixListener::bind(folder.path().join("docker.sock")).unwrap();
    let docker = attestor(folder.path(), "", "/user.slice");
    let start = Instant::now();
    assert_eq!(attest(&docker).await, Ok(vec![]));
    std::fs::write(folder.path().join("7/cgroup"), format!("0::/docker/{ID}\n")).unwrap();
    let late = (ErrorKind::DeadlineExceeded, "context deadline exceeded".to_owned());
    assert_eq!(attest(&docker).await, Err(late));
    // The agent waits for 60 s in all.
    assert!(start.elapsed().as_secs() < 60);
}

/// The first name that has a good signature counts; where none has, the workload gets nothing.
#[tokio::test]
async fn images_are_verified_where_that_is_wanted() {
    let stand_in = SignedImage::new("https://issuer.example.org", "signer@example.org").unwrap();
    let (signed, unsigned) = (stand_in.name.clone(), stand_in.unsigned.clone());
    let failed = "sigstore signature verification failed";
    let table = [
        (json!([signed]), None),
        (json!([unsigned, signed]), None),
        (
            json!([unsigned]),
            Some(format!("{failed} for image blog/x:1: errors: image_id {unsigned}: failed to verify")),
        ),
        (json!(null), Some(format!("{failed}: no repo digest found for image blog/x:1"))),
        (json!(3), Some("failed to inspect image \"blog/x:1\": ".to_owned())),
    ];
    for (digests, expected) in table {
        let folder = tempfile::tempdir().unwrap();
        let mut docker =
            attestor(folder.path(), "sigstore { ignore_attestations = true }", &format!("/docker/{ID}"));
        let settings = docker.settings.sigstore.take().unwrap();
        let environment = std::sync::Arc::new(stand_in.environment());
        docker.verifier = Some(Verifier::with("docker", settings, environment, None).unwrap());
        let answered = digests.clone();
        let _web = Web::start_unix(&folder.path().join("docker.sock"), move |request| {
            match request.target.contains("/images/") {
                true => Answer::Json(200, json!({"Id": "sha256:1", "RepoDigests": answered}).to_string()),
                false => container(request),
            }
        });
        match (attest(&docker).await, expected) {
            (Ok(found), None) => {
                assert_eq!(found[..6], SELECTORS);
                assert_eq!(found[6], "image-signature:verified");
                assert_eq!(found[7], "image-signature-subject:signer@example.org");
                assert_eq!(found[8], "image-signature-issuer:https://issuer.example.org");
            }
            (Err((kind, message)), Some(expected)) => {
                assert!(kind == ErrorKind::Unknown && message.starts_with(&expected), "{message}");
            }
            (found, expected) => panic!("{digests}: {found:?} {expected:?}"),
        }
    }
}
