//! Workloads in containers of real engines: Docker, and Podman with runc.
//!
//! Images are empty: what the workload needs of the machine is mounted.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use spire_testkit::daemon::Daemon;
use spire_testkit::sigstore::{AttestationEntry, Images, Name, Order, Sigstore};
use spire_testkit::web::Web;
use spire_testkit::{Error, Output, Result, Run, wait};

use crate::harness::site::{answers, text};
use crate::harness::{Case, Need, Outcome, SOON, Site};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "containers::docker", needs: &[Need::Root, Need::Docker], run: docker },
        Case {
            name: "containers::docker_of_signed_images",
            needs: &[Need::Root, Need::Docker],
            run: docker_of_signed_images,
        },
        Case {
            name: "containers::docker_that_hangs",
            needs: &[Need::Root, Need::Docker],
            run: docker_that_hangs,
        },
        Case { name: "containers::podman_of_root", needs: &[Need::Root, Need::Podman], run: || podman(None) },
        Case {
            name: "containers::podman_of_a_user",
            needs: &[Need::Root, Need::Podman],
            run: || podman(Some(4711)),
        },
    ]
}

const PARENT: &str = "spiffe://example.org/node";
const WORKLOAD: &str = "spiffe://example.org/blog";

/// Unmounts what an engine left below a folder, so that the folder can be removed.
struct Mounts(PathBuf);

impl Drop for Mounts {
    fn drop(&mut self) {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = |line: &&str| line.split(' ').nth(1).is_some_and(|at| Path::new(at).starts_with(&self.0));
        for line in mounts.lines().rev().filter(below) {
            let at = line.split(' ').nth(1).unwrap_or_default();
            let _ = Run::new("umount").args(&["-l", at]).output();
        }
    }
}

/// An image of nothing but places to mount to, as an archive.
fn archive(site: &Site) -> Result<PathBuf> {
    let root = site.path("rootfs");
    for folder in ["usr", "tmp", "proc", "sys", "dev", "etc"] {
        std::fs::create_dir_all(root.join(folder)).map_err(|error| Error::doing(root.display(), error))?;
    }
    for folder in ["bin", "lib", "lib64"] {
        let link = std::os::unix::fs::symlink(format!("usr/{folder}"), root.join(folder));
        link.map_err(|error| Error::doing(root.display(), error))?;
    }
    let archive = site.path("rootfs.tar");
    Run::new("tar").args(&["-C", text(&root), "-cf", text(&archive), "."]).success()?;
    Ok(archive)
}

/// The arguments after `run` for a container that fetches its SVIDs.
fn fetch(site: &Site, options: &[&str], image: &str) -> Vec<String> {
    let agent = site.agent_programs.agent();
    let folder = agent.parent().map(text).unwrap_or_default().to_owned();
    let here = text(&site.path("")).trim_end_matches('/').to_owned();
    let mut args = vec!["run", "--rm", "--network", "none", "-v", "/usr:/usr:ro"];
    let mounts = [format!("{folder}:{folder}:ro"), format!("{here}:{here}")];
    for mount in &mounts {
        args.extend(["-v", mount]);
    }
    args.extend(options);
    let socket = site.agent.socket();
    args.extend([
        image,
        text(&agent),
        "api",
        "fetch",
        "x509",
        "-output",
        "json",
        "-timeout",
        "40s",
        "-socketPath",
    ]);
    args.push(text(&socket));
    args.into_iter().map(str::to_owned).collect()
}

/// An agent with the plugin, and an entry for workloads with all of these selectors.
fn attested(site: &mut Site, settings: &str, selectors: &[String]) -> Result<(Daemon, Daemon)> {
    site.agent.plugins =
        format!("    WorkloadAttestor \"docker\" {{\n        plugin_data {{\n{settings}        }}\n    }}\n");
    let server = site.start_server()?;
    let agent = site.join(PARENT)?;
    let mut args = vec!["entry", "create", "-parentID", PARENT, "-spiffeID", WORKLOAD];
    for selector in selectors {
        args.extend(["-selector", selector]);
    }
    site.cli(&args)?;
    Ok((server, agent))
}

/// A container with the label gets the identity, and one without does not.
fn check(site: &Site, agent: &Daemon, run: impl Fn(&[&str]) -> Result<Output>) -> Outcome {
    let good = ["-l", "app=blog", "-e", "A=b=c"];
    let found = wait::until("an identity of a container", SOON, || {
        let output = run(&good).ok().filter(|output| output.code == 0)?;
        serde_json::from_str::<Value>(&output.stdout).ok()
    });
    let found = found.map_err(|error| agent.error(&format!("{error}: {:?}", run(&good))))?;
    assert_eq!(found["svids"][0]["spiffe_id"], WORKLOAD);
    for bad in [&["-l", "app=other", "-e", "A=b=c"][..], &["-l", "app=blog", "-e", "A=b"]] {
        let output = run(bad)?;
        assert_ne!(output.code, 0, "{output}");
        assert!(output.to_string().contains("no identity issued"), "{output}");
    }
    // Whoever is in no container is attested by the other plugins only.
    site.entry(PARENT, "spiffe://example.org/host", &crate::harness::site::own_uid(), &[])?;
    site.wait_identities(&["spiffe://example.org/host"])?;
    Ok(())
}

fn selectors(image: &str, digest: &str) -> Vec<String> {
    let digest = digest.trim().trim_start_matches("sha256:");
    vec![
        "docker:label:app:blog".to_owned(),
        "docker:env:A=b=c".to_owned(),
        format!("docker:image_id:{image}"),
        format!("docker:image_config_digest:sha256:{digest}"),
    ]
}

/// A Docker engine in the site's folder, and its address.
fn docker_engine(site: &Site) -> Result<(Daemon, String)> {
    let path = |name: &str| text(&site.path("docker").join(name)).to_owned();
    let socket = format!("unix://{}", path("socket"));
    let (data, exec, pid) = (path("data"), path("exec"), path("pid"));
    std::fs::create_dir_all(site.path("docker")).map_err(|error| Error::doing("a folder", error))?;
    let mut args = vec!["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"];
    args.extend(["--ip-masq=false", "--storage-driver=overlay2", "--data-root", &data, "--exec-root", &exec]);
    args.extend(["-H", &socket, "--pidfile", &pid]);
    let mut engine = Daemon::start("dockerd", Path::new("dockerd"), &args, &site.path(""))?;
    answers(&mut engine, &site.path("docker").join("socket"))?;
    Ok((engine, socket))
}

fn docker() -> Outcome {
    let mut site = Site::new()?;
    let archive = archive(&site)?;
    let _mounts = Mounts(site.path("docker"));
    let (mut engine, socket) = docker_engine(&site)?;
    let docker = |args: &[&str]| Run::new("docker").args(&["-H", &socket]).args(args).at_most(SOON);
    docker(&["import", text(&archive), "blog:1"]).success()?;
    let digest = docker(&["image", "inspect", "-f", "{{.Id}}", "blog:1"]).success()?.stdout;
    let settings = format!("docker_socket_path = \"{socket}\"\nverbose_container_locator_logs = true\n");
    let (_server, agent) = attested(&mut site, &settings, &selectors("blog:1", &digest))?;
    check(&site, &agent, |options| {
        let args = fetch(&site, options, "blog:1");
        docker(&args.iter().map(String::as_str).collect::<Vec<_>>()).output()
    })?;
    agent.wait_for(&["PID cgroup enumerated", "path=/docker/"], SOON)?;
    engine.stop()?;
    Ok(())
}

/// An engine that does not answer keeps its containers waiting, and nobody else.
fn docker_that_hangs() -> Outcome {
    const HOST: &str = "spiffe://example.org/host";

    let mut site = Site::new()?;
    // The digest of a large program takes long.
    site.agent.unix.push_str("\n            workload_size_limit = -1");
    let archive = archive(&site)?;
    let _mounts = Mounts(site.path("docker"));
    let (mut engine, socket) = docker_engine(&site)?;
    Run::new("docker").args(&["-H", &socket, "import", text(&archive), "blog:1"]).at_most(SOON).success()?;
    let settings = format!("docker_socket_path = \"{socket}\"\n");
    let (_server, mut agent) = attested(&mut site, &settings, &["docker:label:app:blog".to_owned()])?;
    site.entry(PARENT, HOST, &crate::harness::site::own_uid(), &["-selector", "unix:gid:0"])?;
    site.wait_identities(&[HOST])?;

    // A container that asks when it is told to, until it is answered.
    let mut args = vec!["-H".to_owned(), socket];
    args.extend(fetch(&site, &["-l", "app=blog"], "blog:1"));
    let image = args.iter().position(|arg| arg == "blog:1").ok_or("no image")?;
    let ask = args.split_off(image + 1).join(" ").replace("40s", "5s");
    let [started, go, got] = ["started", "go", "got"].map(|name| text(&site.path(name)).to_owned());
    let wait = format!(
        "touch {started}; until [ -e {go} ]; do sleep 0.1; done; until {ask} > {got}.new; do sleep 0.1; done; mv {got}.new {got}"
    );
    args.extend(["/bin/sh".to_owned(), "-c".to_owned(), wait]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let _container = Daemon::start("docker", Path::new("docker"), &args, site.folder())?;
    wait::until("a container", SOON, || site.path("started").exists().then_some(()))?;
    engine.signal(Signal::STOP);
    std::fs::write(site.path("go"), "")?;
    // Others are served while it waits, and it gets nothing.
    wait::until("a question", SOON, || site.path("got.new").exists().then_some(()))?;
    site.wait_identities(&[HOST])?;
    assert!(!site.path("got").exists());
    engine.signal(Signal::CONT);
    wait::until("an identity of the container", SOON, || {
        let got = std::fs::read_to_string(site.path("got")).ok()?;
        got.contains(WORKLOAD).then_some(())
    })
    .map_err(|error| agent.error(&error.to_string()))?;
    assert!(agent.is_running());
    engine.stop()?;
    Ok(())
}

/// Images that Docker pulled from a registry, of which one is signed, one by somebody else, and one by nobody.
fn docker_of_signed_images() -> Outcome {
    const ISSUER: &str = "https://issuer.example.org";
    const SUBJECT: &str = "https://ci.example.org/blog/release";

    let mut site = Site::new()?;
    let _mounts = Mounts(site.path("docker"));
    let (sigstore, images) = (Sigstore::new()?, Images::default());
    let mut digests = Vec::new();
    for (tag, subject) in
        [("signed", Some(SUBJECT)), ("foreign", Some("https://ci.example.org/x")), ("plain", None)]
    {
        // Images differ in a file only.
        let archive = archive(&site)?;
        std::fs::write(site.path("rootfs/etc/tag"), tag)?;
        Run::new("tar").args(&["-C", text(&site.path("rootfs")), "-cf", text(&archive), "."]).success()?;
        std::fs::remove_dir_all(site.path("rootfs"))?;
        let image = images.image("blog", tag, &std::fs::read(&archive)?);
        if let Some(subject) = subject {
            let order = Order { name: Name::Uri(subject), issuer: Some(ISSUER), ..sigstore.order(&image) };
            images.attach("blog", &image, "sig", &[sigstore.sign(&order)?]);
            let attested = Order { attestation: Some(AttestationEntry::Dsse), ..order };
            images.attach("blog", &image, "att", &[sigstore.sign(&attested)?]);
        }
        digests.push(image);
    }
    let served = images.clone();
    let registry = Web::start(None, move |request| served.answer(request))?;
    let (mut engine, socket) = docker_engine(&site)?;
    let docker = |args: &[&str]| Run::new("docker").args(&["-H", &socket]).args(args).at_most(SOON);
    let name = |tag: &str| format!("127.0.0.1:{}/blog:{tag}", registry.port());
    for tag in ["signed", "foreign", "plain"] {
        docker(&["pull", "-q", &name(tag)]).success()?;
    }
    site.agent_variables = sigstore.trust(site.folder())?;
    let settings = format!(
        "docker_socket_path = \"{socket}\"\nsigstore {{ allowed_identities {{ \"{ISSUER}\" = [\"^https://ci.example.org/blog/.+$\"] }} }}\n"
    );
    let selectors = [
        "docker:image-signature:verified".to_owned(),
        "docker:image-attestations:verified".to_owned(),
        format!("docker:image-signature-subject:{SUBJECT}"),
        format!("docker:image-signature-issuer:{ISSUER}"),
        format!("docker:image-signature-log-id:{}", sigstore.rekor.log_id()),
        "docker:image-signature-log-index:4711".to_owned(),
    ];
    let (_server, agent) = attested(&mut site, &settings, &selectors)?;
    let run = |tag: &str| {
        let args = fetch(&site, &[], &name(tag));
        docker(&args.iter().map(String::as_str).collect::<Vec<_>>()).output()
    };
    let found = wait::until("an identity of a signed image", SOON, || {
        let output = run("signed").ok().filter(|output| output.code == 0)?;
        serde_json::from_str::<Value>(&output.stdout).ok()
    });
    let found = found.map_err(|error| agent.error(&format!("{error}: {:?}", run("signed"))))?;
    assert_eq!(found["svids"][0]["spiffe_id"], WORKLOAD);
    for (tag, digest, reason) in [
        ("foreign", &digests[1], "none of the expected identities matched"),
        ("plain", &digests[2], "no signatures found"),
    ] {
        let output = run(tag)?;
        assert_ne!(output.code, 0, "{output}");
        assert!(output.to_string().contains("no identity issued"), "{output}");
        agent.wait_for(&["Error verifying sigstore image signature", digest, reason], SOON)?;
    }
    engine.stop()?;
    Ok(())
}

/// A rootless Podman is told by the slice of its user, which a container of root's is put into here.
fn podman(user: Option<u32>) -> Outcome {
    let mut site = Site::new()?;
    let archive = archive(&site)?;
    let _mounts = Mounts(site.path("podman"));
    let path = |name: &str| text(&site.path("podman").join(name)).to_owned();
    let (root, runroot, tmp) = (path("root"), path("run"), path("tmp"));
    std::fs::create_dir_all(site.path("podman"))?;
    let global = [
        "--root",
        &root,
        "--runroot",
        &runroot,
        "--tmpdir",
        &tmp,
        "--cgroup-manager",
        "cgroupfs",
        "--runtime",
        "runc",
    ];
    let podman = |args: &[&str]| {
        Run::new("podman").args(&global).args(&["--events-backend", "file"]).args(args).at_most(SOON)
    };
    podman(&["import", text(&archive), "localhost/blog:1"]).success()?;
    let digest = podman(&["image", "inspect", "-f", "{{.Id}}", "localhost/blog:1"]).success()?.stdout;
    let name = user.map_or_else(|| "socket".to_owned(), |user| format!("socket-{user}"));
    let socket = format!("unix://{}", path(&name));
    let mut args = global.to_vec();
    args.extend(["--events-backend", "file", "system", "service", "-t", "0", &socket]);
    let mut engine = Daemon::start("podman", Path::new("podman"), &args, &site.path(""))?;
    answers(&mut engine, &site.path("podman").join(&name))?;
    let settings = match user {
        None => format!("podman_socket_path = \"{socket}\"\n"),
        Some(_) => format!("podman_socket_path_template = \"unix://{}\"\n", path("socket-%d")),
    };
    let (_server, agent) = attested(&mut site, &settings, &selectors("localhost/blog:1", &digest))?;
    let parent = user.map(|user| format!("/user.slice/user-{user}.slice/{}", std::process::id()));
    check(&site, &agent, |options| {
        // The machine may allow no more than these.
        let mut all = vec!["--ulimit", "nofile=1024:4096", "--ulimit", "nproc=1000:1000"];
        if let Some(parent) = &parent {
            all.extend(["--cgroup-parent", parent]);
        }
        all.extend(options);
        let args = fetch(&site, &all, "localhost/blog:1");
        podman(&args.iter().map(String::as_str).collect::<Vec<_>>()).output()
    })?;
    engine.stop()?;
    Ok(())
}
