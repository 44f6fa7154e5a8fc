//! Files, modes, swaps and what is run, in folders of the tests.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bytes::Bytes;
use spire_core::pki::pem;
use spire_core::spiffe::{SpiffeId, TrustDomain};
use tempfile::TempDir;

use super::*;
use crate::machine::now;
use crate::test_ca::{configuration, refusal};

fn svid(text: &str, federated: &[&str]) -> StoredSvid {
    let der = |part: &str| Bytes::from(format!("{text} {part}"));
    StoredSvid {
        spiffe_id: SpiffeId::parse("spiffe://example.org/web").unwrap(),
        chain: vec![der("leaf"), der("intermediate")],
        private_key: der("key"),
        bundle: vec![der("root")],
        federated_bundles: federated
            .iter()
            .map(|name| (TrustDomain::parse(name).unwrap(), vec![der(name)]))
            .collect(),
        expires_at: now(),
    }
}

fn target(name: &str) -> Vec<String> {
    vec![format!("target:{name}")]
}

async fn store(folder: &Path, more: &str) -> Arc<dyn SvidStore> {
    let folder = folder.display();
    let data = format!("target \"web\" {{\n directory = \"{folder}/tls/web\"\n{more}\n}}");
    build(configuration(PluginType::SvidStore, NAME, &data)).await.unwrap()
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("tls")).unwrap();
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn files_come_and_go_as_a_whole() {
    let folder = folder();
    let (tls, web) = (folder.path().join("tls"), folder.path().join("tls/web"));
    let store = store(folder.path(), "").await;
    store.put(&svid("one", &["far.org"]), &target("web")).await.unwrap();
    let read = |name: &str| std::fs::read_to_string(web.join(name)).unwrap();
    let pems = |parts: &[&str]| {
        parts.iter().map(|part| pem::encode("CERTIFICATE", part.as_bytes())).collect::<String>()
    };
    assert_eq!(names(&web), ["bundle.pem", "federated.far.org.pem", "svid.pem", "svid_key.pem"]);
    assert_eq!(read("svid.pem"), pems(&["one leaf", "one intermediate"]));
    assert_eq!(read("svid_key.pem"), pem::encode("PRIVATE KEY", b"one key"));
    assert_eq!(read("bundle.pem"), pems(&["one root"]));
    assert_eq!(read("federated.far.org.pem"), pems(&["one far.org"]));
    assert_eq!(
        (mode(&web), mode(&web.join("svid.pem")), mode(&web.join("svid_key.pem"))),
        (0o755, 0o644, 0o600)
    );

    // Whoever has the old folder open still finds the old files in it, until that is gone.
    let old = std::fs::read_link(&web).unwrap();
    store.put(&svid("two", &[]), &target("web")).await.unwrap();
    assert_eq!(names(&web), ["bundle.pem", "svid.pem", "svid_key.pem"]);
    assert_eq!(read("svid_key.pem"), pem::encode("PRIVATE KEY", b"two key"));
    assert_ne!(std::fs::read_link(&web).unwrap(), old);
    assert_eq!(names(&tls).len(), 2, "the link and one folder: {:?}", names(&tls));

    // What an interrupted put left goes with the next; what others put beside it stays.
    std::fs::create_dir(tls.join(".web.spire-00")).unwrap();
    std::fs::write(tls.join("other"), "").unwrap();
    store.put(&svid("three", &[]), &target("web")).await.unwrap();
    assert_eq!(names(&tls).len(), 3, "{:?}", names(&tls));
    store.delete(&target("web")).await.unwrap();
    assert_eq!(names(&tls), ["other"]);
    store.delete(&target("web")).await.unwrap();
}

#[tokio::test]
async fn names_modes_and_owners_are_as_configured() {
    let folder = folder();
    let group = rustix::process::getgid().as_raw();
    let more = format!(
        "certificate_file = \"tls.crt\"\nkey_file = \"tls.key\"\nbundle_file = \"ca.crt\"\ndirectory_mode = \"0750\"\n\
         file_mode = \"0640\"\nkey_file_mode = \"0440\"\ngroup = \"{group}\"\nowner = \"root\""
    );
    let web = folder.path().join("tls/web");
    let store = store(folder.path(), &more).await;
    let stored = store.put(&svid("one", &[]), &target("web")).await;
    if !rustix::process::getuid().is_root() {
        // Only root gives files away, and then nothing is there.
        assert!(stored.unwrap_err().message.starts_with("chown "));
        assert_eq!(names(&folder.path().join("tls")), [""; 0]);
        return;
    }
    stored.unwrap();
    assert_eq!(names(&web), ["ca.crt", "tls.crt", "tls.key"]);
    assert_eq!((mode(&web), mode(&web.join("ca.crt")), mode(&web.join("tls.key"))), (0o750, 0o640, 0o440));
}

#[tokio::test]
async fn nothing_is_replaced_that_is_not_ours() {
    let folder = folder();
    let store = store(folder.path(), "").await;
    let (tls, web) = (folder.path().join("tls"), folder.path().join("tls/web"));
    std::fs::create_dir(&web).unwrap();
    std::fs::write(web.join("precious"), "x").unwrap();
    for _ in 0..2 {
        let error = store.put(&svid("one", &[]), &target("web")).await.unwrap_err();
        assert_eq!(error.message, format!("{} is there and was not made by this plugin", web.display()));
        store.delete(&target("web")).await.unwrap_err();
    }
    assert_eq!(names(&web), ["precious"]);
    std::fs::remove_dir_all(&web).unwrap();
    std::os::unix::fs::symlink("/etc", &web).unwrap();
    store.put(&svid("one", &[]), &target("web")).await.unwrap_err();
    std::fs::remove_file(&web).unwrap();
    std::fs::set_permissions(&tls, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = store.put(&svid("one", &[]), &target("web")).await.unwrap_err();
    assert_eq!(error.message, format!("{} can be written by everybody", tls.display()));
}

#[tokio::test]
async fn programs_are_told() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let script = "echo $1 $SPIFFE_ID >> $2; cat $SVID_DIRECTORY/svid_key.pem >> $2; test ! -e $2.fail || { echo no >&2; exit 3; }";
    let log = path("log").display().to_string();
    let more = format!("command = [\"/bin/sh\", \"-c\", {script:?}, \"sh\", \"told\", \"{log}\"]");
    let store = store(folder.path(), &more).await;
    store.put(&svid("one", &[]), &target("web")).await.unwrap();
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.starts_with("told spiffe://example.org/web\n-----BEGIN PRIVATE KEY"), "{said}");
    std::fs::write(path("log.fail"), "").unwrap();
    let error = store.put(&svid("two", &[]), &target("web")).await.unwrap_err();
    assert_eq!(error.message, "command /bin/sh: exit status: 3: no");
    let key = std::fs::read_to_string(path("tls/web/svid_key.pem")).unwrap();
    assert_eq!(key, pem::encode("PRIVATE KEY", b"two key"), "the files are in place");
}

#[tokio::test]
async fn a_command_that_hangs_is_ended_and_a_process_gets_its_signal() {
    let folder = folder();
    let more = "command = [\"/bin/sleep\", \"600\"]\ncommand_timeout = \"10ms\"";
    let disk = store(folder.path(), more).await;
    let error = disk.put(&svid("one", &[]), &target("web")).await.unwrap_err();
    assert_eq!(error.message, "command /bin/sleep: took longer than 10ms");

    let pid_file = folder.path().join("pid");
    let more = format!("pid_file = \"{}\"\nsignal = \"SIGTERM\"", pid_file.display());
    let disk = store(folder.path(), &more).await;
    disk.put(&svid("one", &[]), &target("web")).await.unwrap_err();
    for wrong in ["", "0", "1", "-1", "x"] {
        std::fs::write(&pid_file, wrong).unwrap();
        let error = disk.put(&svid("one", &[]), &target("web")).await.unwrap_err();
        assert_eq!(error.message, format!("{}: not a process ID", pid_file.display()), "{wrong}");
    }
    let mut child = tokio::process::Command::new("/bin/sleep").arg("600").kill_on_drop(true).spawn().unwrap();
    std::fs::write(&pid_file, format!("{}\n", child.id().unwrap())).unwrap();
    disk.put(&svid("one", &[]), &target("web")).await.unwrap();
    let status = child.wait().await.unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
}

#[tokio::test]
async fn selectors_name_a_target_of_the_configuration_and_nothing_else() {
    let folder = folder();
    let store = store(folder.path(), "").await;
    for (metadata, text) in [
        (vec![], "a selector target:<name> is required"),
        (target("../x"), "there is no target \"../x\" in the agent's configuration"),
        ([target("web"), target("b")].concat(), "only one selector target:<name> is allowed"),
        (vec!["directory:/etc".to_owned()], "a selector target:<name> is required"),
    ] {
        let error = store.put(&svid("one", &[]), &metadata).await.unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::InvalidArgument, text));
    }
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused() {
    let cases = [
        ("", "at least one target is required"),
        ("target \"a\" {}", "target \"a\": directory must be an absolute path without \"..\""),
        (
            "target \"a\" { directory = \"/x/../y\" }",
            "target \"a\": directory must be an absolute path without \"..\"",
        ),
        (
            "target \"a\" { directory = \"/x/y\", key_file = \"../k\" }",
            "target \"a\": key_file \"../k\" is not the name of a file",
        ),
        (
            "target \"a\" { directory = \"/x/y\", key_file = \"svid.pem\" }",
            "target \"a\": certificate_file, key_file and bundle_file must differ",
        ),
        (
            "target \"a\" { directory = \"/x/y\", file_mode = \"0888\" }",
            "target \"a\": file_mode \"0888\" is not a mode such as \"0640\"",
        ),
        (
            "target \"a\" { directory = \"/x/y\", key_file_mode = \"0644\" }",
            "target \"a\": key_file_mode must not let everybody in",
        ),
        (
            "target \"a\" { directory = \"/x/y\", owner = \"nobody-of-that-name\" }",
            "target \"a\": owner \"nobody-of-that-name\" is not in /etc/passwd",
        ),
        (
            "target \"a\" { directory = \"/x/y\", command = [\"systemctl\"] }",
            "target \"a\": command: \"systemctl\" is not an absolute path",
        ),
        ("target \"a\" { directory = \"/x/y\", signal = \"SIGHUP\" }", "target \"a\": signal needs pid_file"),
        (
            "target \"a\" { directory = \"/x/y\", pid_file = \"/p\", signal = \"SIGKILL\" }",
            "target \"a\": signal \"SIGKILL\" is none of SIGHUP, SIGUSR1, SIGUSR2, SIGTERM, SIGINT",
        ),
        (
            "target \"a\" { directory = \"/x/y\" }\ntarget \"b\" { directory = \"/x/y/\" }",
            "target \"b\": directory /x/y is another target's",
        ),
    ];
    for (data, text) in cases {
        let found = refusal(build(configuration(PluginType::SvidStore, NAME, data)).await);
        assert_eq!(found, (ErrorKind::InvalidArgument, text.to_owned()), "{data}");
    }
}
