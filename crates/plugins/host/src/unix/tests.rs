//! The attestor against this process, a child of other users, and files made for it.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use spire_compat::hcl;
use spire_core::spiffe::TrustDomain;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{ErrorKind, PluginType, WorkloadAttestor};

use super::accounts::{Names, parse};
use super::process::{Process, Status, parse_status};
use super::{Attestor, Settings, Unix, build};

fn configuration(data: &str) -> Configuration {
    let data = Some(hcl::parse(data).unwrap().into());
    Configuration::new(
        (PluginType::WorkloadAttestor, "unix"),
        TrustDomain::parse("example.org").unwrap(),
        data,
    )
}

async fn attest(attestor: &dyn WorkloadAttestor, pid: u32) -> Vec<String> {
    let selectors = attestor.attest(i32::try_from(pid).unwrap()).await.unwrap();
    selectors.iter().map(ToString::to_string).collect()
}

async fn failure(attestor: &dyn WorkloadAttestor, pid: i32) -> String {
    let error = attestor.attest(pid).await.expect_err("must fail");
    assert_eq!(error.kind, ErrorKind::Internal);
    error.to_string()
}

/// A child that has started when this returns; it ends with its standard input.
struct Workload(Child);

impl Workload {
    /// `command` is given a script as its last arguments.
    fn start(command: &mut Command) -> Self {
        command.args(["-c", "echo ready; read line"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn this_process_is_attested() {
    let attestor = build(configuration("")).await.unwrap();
    let found = attest(&*attestor, std::process::id()).await;
    assert_eq!(found[0], format!("unix:uid:{}", rustix::process::geteuid().as_raw()));
    let gid = format!("unix:gid:{}", rustix::process::getegid().as_raw());
    assert!(found.contains(&gid), "{found:?}");
    assert!(!found.iter().any(|s| s.starts_with("unix:path:") || s.starts_with("unix:sha256:")), "{found:?}");
}

#[tokio::test]
async fn path_and_digest_of_the_executable() {
    let workload = Workload::start(&mut Command::new("/bin/sh"));
    let pid = workload.0.id();
    let path = std::fs::canonicalize("/bin/sh").unwrap();
    let content = std::fs::read(&path).unwrap();
    let path = format!("unix:path:{}", path.display());
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &content);
    let hash = format!("unix:sha256:{}", hex::encode(hash));

    let len = content.len();
    for (data, expected) in [
        ("discover_workload_path = true".to_owned(), vec![&path, &hash]),
        (format!("discover_workload_path = true\nworkload_size_limit = {len}"), vec![&path, &hash]),
        ("discover_workload_path = true\nworkload_size_limit = -1".to_owned(), vec![&path]),
        ("workload_size_limit = 1".to_owned(), vec![]),
    ] {
        let attestor = build(configuration(&data)).await.unwrap();
        let found = attest(&*attestor, pid).await;
        let found: Vec<&String> =
            found.iter().filter(|s| s.starts_with("unix:path:") || s.starts_with("unix:sha256:")).collect();
        assert_eq!(found, expected, "{data}");
    }

    let attestor =
        build(configuration("discover_workload_path = true\nworkload_size_limit = 1")).await.unwrap();
    assert_eq!(
        failure(&*attestor, i32::try_from(pid).unwrap()).await,
        format!(
            "workloadattestor(unix): SHA256 digest: workload /proc/{pid}/exe exceeds size limit ({len} > 1)"
        )
    );
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "says that it could not test: other users take a right that CI has")]
async fn users_and_groups_of_another_process() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not tested: only root can start processes of other users");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (passwd, group) = (dir.path().join("passwd"), dir.path().join("group"));
    std::fs::write(&passwd, "root:x:0:0:root:/root:/bin/sh\nalice:x:64901:64902::/:/bin/sh\n").unwrap();
    std::fs::write(&group, "staff:x:64902:\naudit:x:64903:alice\n").unwrap();
    let attestor = Attestor(Arc::new(Unix {
        settings: Settings::default(),
        proc: "/proc".into(),
        users: Names::users(&passwd),
        groups: Names::groups(&group),
    }));
    // `setpriv` sets supplementary groups, which std's Command cannot on a stable compiler.
    let workload = Workload::start(Command::new("setpriv").args(["--groups", "64903,64904", "/bin/sh"]));
    let found = attest(&attestor, workload.0.id()).await;
    assert_eq!(
        found,
        [
            "unix:uid:0",
            "unix:user:root",
            "unix:gid:0",
            "unix:supplementary_gid:64903",
            "unix:supplementary_group:audit",
            "unix:supplementary_gid:64904",
        ]
    );
    drop(workload);

    let workload = Workload::start(Command::new("/bin/sh").uid(64901).gid(64902));
    let pid = workload.0.id();
    let expected = ["unix:uid:64901", "unix:user:alice", "unix:gid:64902", "unix:group:staff"];
    assert_eq!(attest(&attestor, pid).await[..4], expected);

    // A changed file counts at once, and a missing one means that there are no names.
    std::fs::write(&passwd, "bob:x:64901:64902::/:/bin/sh\n").unwrap();
    std::fs::remove_file(&group).unwrap();
    assert_eq!(attest(&attestor, pid).await[..3], ["unix:uid:64901", "unix:user:bob", "unix:gid:64902"]);
}

#[tokio::test]
async fn processes_that_are_gone_are_errors() {
    let attestor = build(configuration("")).await.unwrap();
    let expected = "workloadattestor(unix): failed to get process: process does not exist";
    for pid in [-1, i32::MAX] {
        assert_eq!(failure(&*attestor, pid).await, expected);
    }

    // One that ends after it was opened does not become another.
    let workload = Workload::start(&mut Command::new("/bin/sh"));
    let pid = i32::try_from(workload.0.id()).unwrap();
    let process = Process::open("/proc".as_ref(), pid).unwrap();
    drop(workload);
    let error = process.status().expect_err("it is gone");
    assert_eq!(error, format!("UIDs lookup: open /proc/{pid}/status: no such process"));
}

#[tokio::test]
async fn settings_are_checked() {
    let error = build(configuration("discover_workload_path = 1")).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    assert!(error.message.starts_with("failed to decode configuration: "), "{}", error.message);
}

#[test]
fn status_lines() {
    let status = |uid, gid, groups: &[u32]| Ok(Status { uid, gid, groups: groups.to_vec() });
    let error = |text: &str| Err(text.to_owned());
    let table = [
        ("Name:\tUid: 7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n", status(2, 6, &[9, 10])),
        ("Uid:\t1\nGid:\t5\nGroups:\t\n", status(1, 5, &[])),
        ("Uid:\t1\t2\nGid:\t5\t4294967295\n", status(2, u32::MAX, &[])),
        ("", error("UIDs lookup: no UIDs for process")),
        ("Uid:\t1\n", error("GIDs lookup: no GIDs for process")),
        ("Uid:\tx\n", error("UIDs lookup: malformed Uid")),
        ("Uid:\t1\nGid:\t1\nGroups:\t-1\n", error("supplementary GIDs lookup: malformed Groups")),
    ];
    for (text, expected) in table {
        assert_eq!(parse_status(text), expected, "{text:?}");
    }
}

#[test]
fn account_lines() {
    let users =
        "# c:x:1:1:::\n+nis:x:2:2:::\n\n:x:3:3:::\nshort:x:4\na:x:5:5::/:\nb:x:5:5::/:\nc:x:no:5::/:\n";
    let names = parse(users, 6);
    assert_eq!(names.into_iter().collect::<Vec<_>>(), [(5, "a".to_owned())]);
    let names = parse("wheel:x:10:a,b\nbad:x:11\n", 4);
    assert_eq!(names.into_iter().collect::<Vec<_>>(), [(10, "wheel".to_owned())]);
}
