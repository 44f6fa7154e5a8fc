//! The two key managers against the port's suite, and the file against crashes and other people.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use spire_compat::hcl;
use spire_core::pki::KeyType;
use spire_core::spiffe::TrustDomain;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{Error, ErrorKind, KeyManager, PluginType, conformance};

use super::{agent_disk, memory, server_disk};

fn configuration(name: &str, data: &str) -> Configuration {
    let data = Some(hcl::parse(data).unwrap().into());
    Configuration::new((PluginType::KeyManager, name), TrustDomain::parse("example.org").unwrap(), data)
}

async fn server(path: &Path) -> Result<Arc<dyn KeyManager>, Error> {
    server_disk(configuration("disk", &format!("keys_path = \"{}\"", path.display()))).await
}

async fn agent(directory: &Path) -> Result<Arc<dyn KeyManager>, Error> {
    agent_disk(configuration("disk", &format!("directory = \"{}\"", directory.display()))).await
}

/// The code and the text of a refusal.
fn refusal<T>(result: Result<T, Error>) -> (ErrorKind, String) {
    match result {
        Ok(_) => panic!("must be refused"),
        Err(error) => (error.kind, error.to_string()),
    }
}

#[tokio::test]
async fn memory_conforms() {
    conformance::key_manager(|| async { memory(configuration("memory", "")).await.unwrap() }, false).await;
}

#[tokio::test]
async fn server_disk_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    conformance::key_manager(|| async { server(&path).await.unwrap() }, true).await;
}

#[tokio::test]
async fn agent_disk_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("a/b");
    conformance::key_manager(|| async { agent(&data).await.unwrap() }, true).await;
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(!data.join(".probe").exists());
}

#[tokio::test]
async fn the_file_is_private_and_reads_as_the_reference_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    let keys = server(&path).await.unwrap();
    // What an interrupted write left is not written into.
    let left = dir.path().join("keys.json.tmp");
    std::fs::write(&left, "old").unwrap();
    std::fs::set_permissions(&left, std::fs::Permissions::from_mode(0o666)).unwrap();
    keys.generate_key("b", KeyType::EcP256).await.unwrap();
    keys.generate_key("a\"", KeyType::EcP384).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(!left.exists());

    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split('\n').collect();
    assert_eq!(lines[..2], ["{", "\t\"keys\": {"]);
    assert!(lines[2].starts_with("\t\t\"a\\\"\": \"MI") && lines[2].ends_with("\","), "{text}");
    assert!(lines[3].starts_with("\t\t\"b\": \"MI") && lines[3].ends_with('"'), "{text}");
    assert_eq!(lines[4..], ["\t}", "}"]);
}

#[tokio::test]
async fn a_failed_write_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    let keys = server(&path).await.unwrap();
    let old = keys.generate_key("a", KeyType::EcP256).await.unwrap();
    let text = std::fs::read(&path).unwrap();
    let temporary = dir.path().join("keys.json.tmp");

    // The temporary file cannot be made.
    std::fs::create_dir(&temporary).unwrap();
    for id in ["a", "b"] {
        let (kind, message) = refusal(keys.generate_key(id, KeyType::EcP256).await);
        assert_eq!(kind, ErrorKind::Internal);
        let expected = format!(
            "keymanager(disk): failed to generate key: unable to write entries: remove {}: ",
            temporary.display()
        );
        assert!(message.starts_with(&expected), "{message}");
    }
    assert_eq!(keys.key("a").await.unwrap().unwrap().public_key(), old.public_key());
    assert!(keys.key("b").await.unwrap().is_none());
    assert_eq!(std::fs::read(&path).unwrap(), text);

    // It can be made but not renamed.
    std::fs::remove_dir(&temporary).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir_all(path.join("x")).unwrap();
    let (_, message) = refusal(keys.generate_key("b", KeyType::EcP256).await);
    assert!(message.contains(&format!("rename {} {}: ", temporary.display(), path.display())), "{message}");
    assert!(keys.key("b").await.unwrap().is_none());
    assert!(!temporary.exists(), "keys are left behind");

    // The directory is gone altogether.
    let gone = dir.path().join("gone");
    std::fs::create_dir(&gone).unwrap();
    let keys = server(&gone.join("k")).await.unwrap();
    std::fs::remove_dir(&gone).unwrap();
    let (_, message) = refusal(keys.generate_key("a", KeyType::EcP256).await);
    let expected = format!("open {}/k.tmp: no such file or directory", gone.display());
    assert!(message.ends_with(&expected), "{message}");
    assert!(keys.keys().await.unwrap().is_empty());
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "says that it could not test: mounting takes a right that CI has")]
async fn a_full_disk_is_named_and_the_old_file_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| {
        Command::new("mount").args(arguments).arg(dir.path()).status().is_ok_and(|status| status.success())
    };
    if !mount(&["-t", "tmpfs", "-o", "size=16k", "tmpfs"]) {
        eprintln!("not tested: no right to mount a small file system");
        return;
    }
    let path = dir.path().join("keys.json");
    let keys = server(&path).await.unwrap();
    keys.generate_key("a", KeyType::EcP256).await.unwrap();
    let text = std::fs::read(&path).unwrap();
    let room = std::fs::OpenOptions::new().append(true).create(true).open(dir.path().join("fill"));
    let mut room = room.unwrap();
    while std::io::Write::write_all(&mut room, &[0; 512]).is_ok() {}
    let failed = refusal(keys.generate_key("b", KeyType::Rsa2048).await).1;
    let after = std::fs::read(&path).unwrap();
    let listed = keys.keys().await.unwrap().len();
    drop((keys, room));
    assert!(Command::new("umount").arg(dir.path()).status().unwrap().success());
    assert!(failed.contains("no space left on device") && failed.contains("keys.json.tmp"), "{failed}");
    assert_eq!(after, text);
    assert_eq!(listed, 1);
}

#[tokio::test]
async fn files_that_others_can_read_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    server(&path).await.unwrap().generate_key("a", KeyType::EcP256).await.unwrap();
    for (mode, accepted) in [(0o400, true), (0o600, true), (0o640, true), (0o604, false), (0o644, false)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let opened = server(&path).await;
        if accepted {
            assert_eq!(opened.unwrap().keys().await.unwrap().len(), 1);
        } else {
            let (kind, message) = refusal(opened);
            assert_eq!(kind, ErrorKind::FailedPrecondition);
            assert!(message.contains(&format!("{mode:04o}")) && message.contains("keys.json"), "{message}");
        }
    }
}

#[tokio::test]
async fn what_is_not_a_keys_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    let p521 = "MC4CAQAwBQYDK2VwBCIEIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let table = [
        ("", "unable to decode keys JSON: "),
        ("[]", "unable to decode keys JSON: "),
        (r#"{"keys":{"a":"*"}}"#, "unable to decode keys JSON: "),
        (r#"{"keys":{"a":null}}"#, "unable to parse key \"a\": malformed private key"),
        (r#"{"keys":{"a":"MA=="}}"#, "unable to parse key \"a\": malformed private key"),
        (
            &format!(r#"{{"keys":{{"a":"{p521}"}}}}"#),
            "unable to parse key \"a\": unsupported private key type",
        ),
    ];
    for (text, message) in table {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let (kind, found) = refusal(server(&path).await);
        assert_eq!(kind, ErrorKind::Internal, "{text}");
        assert!(found.starts_with(&format!("keymanager(disk): {message}")), "{text}: {found}");
    }
    for text in ["{}", r#"{"keys":null}"#, r#"{"keys":{},"more":1}"#] {
        std::fs::write(&path, text).unwrap();
        assert!(server(&path).await.unwrap().keys().await.unwrap().is_empty(), "{text}");
    }
    // A directory in place of the file.
    let (kind, message) = refusal(server(dir.path()).await);
    assert_eq!(kind, ErrorKind::Unknown);
    assert!(message.ends_with(&format!("read {}: is a directory", dir.path().display())), "{message}");
}

/// A file that SPIRE 1.15.3 wrote, with an RSA and a P-384 key that were made for this. What we write of it
/// is read again, and has the same shape.
#[tokio::test]
async fn keys_that_the_reference_wrote_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    let text = include_str!("../../testdata/reference_keys.json");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let keys = server(&path).await.unwrap();
    let types = async |keys: &dyn KeyManager| {
        let keys = keys.keys().await.unwrap();
        keys.iter().map(|key| (key.id().to_owned(), key.public_key().clone())).collect::<Vec<_>>()
    };
    let found = types(&*keys).await;
    let expected = [("JWT-Signer-A", KeyType::EcP384), ("x509-CA-A", KeyType::Rsa2048)];
    assert_eq!(found.len(), expected.len());
    for ((id, key), (expected, key_type)) in found.iter().zip(expected) {
        assert_eq!((id.as_str(), key.key_type()), (expected, Some(key_type)));
    }

    keys.generate_key("z-new", KeyType::EcP256).await.unwrap();
    let again = server(&path).await.unwrap();
    assert_eq!(types(&*again).await[..2], found);
    let shape = |text: &str| -> Vec<String> {
        text.split('\n').map(|line| line.split(": \"").next().unwrap_or_default().to_owned()).collect()
    };
    let mut written = shape(&std::fs::read_to_string(&path).unwrap());
    written.retain(|line| line != "\t\t\"z-new\"");
    assert_eq!(written, shape(text));
}

/// For the key manager of either side: `setting` puts `keys.json` into a folder.
async fn reconfigures(first: Arc<dyn KeyManager>, setting: impl Fn(&Path) -> String) {
    let dir = tempfile::tempdir().unwrap();
    let moved = dir.path().join("moved");
    std::fs::create_dir(&moved).unwrap();
    let old = first.generate_key("old", KeyType::EcP256).await.unwrap();

    // What is there already is not what signs.
    let other = dir.path().join("other.json");
    server(&other).await.unwrap().generate_key("other", KeyType::EcP256).await.unwrap();
    std::fs::rename(&other, moved.join("keys.json")).unwrap();
    let configure = async |text: &str| first.reconfigure(&configuration("disk", text)).await.unwrap();
    configure(&setting(&moved)).await.unwrap();
    assert_eq!(first.key("old").await.unwrap().unwrap().public_key(), old.public_key());
    let ids = async |keys: &dyn KeyManager| {
        keys.keys().await.unwrap().iter().map(|key| key.id().to_owned()).collect::<Vec<_>>()
    };
    let path = moved.join("keys.json");
    assert_eq!(ids(&*server(&path).await.unwrap()).await, ["old"], "a restart finds them");
    first.generate_key("new", KeyType::EcP256).await.unwrap();
    assert_eq!(ids(&*server(&path).await.unwrap()).await, ["new", "old"]);

    // The same again writes nothing.
    std::fs::remove_file(&path).unwrap();
    configure(&setting(&moved)).await.unwrap();
    assert!(!path.exists());

    // A place that cannot be written is refused, and the one before stays.
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(configure(&setting(&file)).await.is_err());
    assert!(configure("").await.is_err());
    first.generate_key("newer", KeyType::EcP256).await.unwrap();
    assert_eq!(ids(&*server(&path).await.unwrap()).await, ["new", "newer", "old"]);
}

#[tokio::test]
async fn keys_in_use_outlive_a_new_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let keys = server(&dir.path().join("keys.json")).await.unwrap();
    reconfigures(keys, |folder| format!("keys_path = \"{}/keys.json\"", folder.display())).await;
    let keys = agent(&dir.path().join("agent")).await.unwrap();
    reconfigures(keys, |folder| format!("directory = \"{}\"", folder.display())).await;
    let keys = memory(configuration("memory", "")).await.unwrap();
    assert!(keys.reconfigure(&configuration("memory", "")).await.is_none());
}

#[tokio::test]
async fn settings_are_checked() {
    let (kind, message) = refusal(server_disk(configuration("disk", "")).await);
    assert_eq!((kind, &*message), (ErrorKind::InvalidArgument, "keymanager(disk): keys_path is required"));
    let (_, message) = refusal(server_disk(configuration("disk", "keys_path = [1]")).await);
    assert!(message.starts_with("keymanager(disk): unable to decode configuration: "), "{message}");
    let (_, message) = refusal(agent_disk(configuration("disk", "directory = \"\"")).await);
    assert_eq!(message, "keymanager(disk): directory must be configured");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (kind, message) = refusal(agent(&file).await);
    assert_eq!(kind, ErrorKind::FailedPrecondition);
    let expected = format!("keymanager(disk): directory validation failed: mkdir {}: ", file.display());
    assert!(message.starts_with(&expected), "{message}");
}
