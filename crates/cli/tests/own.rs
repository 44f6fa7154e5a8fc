//! What SPIRE's binaries do not do any more or never did, so that there is no recording: old names, the hooks, old sockets,
//! `api watch`.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use prost::Message;
use spire_cli::{AgentHooks, AgentRunFlags, Env, Invalid, ServerHooks, ServerRunFlags};
use spire_wire::api::server::entry::v1::BatchCreateEntryRequest;

mod fake;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Exit code, standard output, standard error.
type Done = (i32, String, String);

fn in_env(folder: &Path, run: impl FnOnce(&mut Env) -> i32) -> Done {
    let (stdout, stderr) = (Captured::default(), Captured::default());
    let mut env = Env {
        stdin: Box::new(std::io::empty()),
        stdout: Box::new(stdout.clone()),
        stderr: Box::new(stderr.clone()),
        variables: [("TZ".to_owned(), "UTC".to_owned())].into(),
        directory: folder.to_owned(),
        clock: SystemTime::now,
    };
    let code = run(&mut env);
    (code, stdout.text(), stderr.text())
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(ToOwned::to_owned).collect()
}

fn server_hooks() -> ServerHooks {
    ServerHooks { version: "v".into(), run: Box::new(|_| 0), validate: Box::new(|_| Ok(())) }
}

fn server(line: &str) -> Done {
    in_env(Path::new("/"), |env| spire_cli::server(&words(line), env, server_hooks()))
}

/// A server on a socket, and what it was asked.
struct Running {
    folder: tempfile::TempDir,
    log: fake::Log,
    _runtime: tokio::runtime::Runtime,
}

impl Running {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let log = fake::Log::default();
        {
            let _entered = runtime.enter();
            fake::start(&folder.path().join("s"), log.clone());
        }
        Self { folder, log, _runtime: runtime }
    }

    fn socket(&self) -> String {
        self.folder.path().join("s").display().to_string()
    }
}

#[test]
fn old_flags_are_translated() {
    let running = Running::start();
    let socket = running.socket();
    let base = "-parentID spiffe://a/p -spiffeID spiffe://a/w -selector a:b";
    for (flags, want) in
        [("-ttl 30", (30, 30)), ("-ttl 30 -jwtSVIDTTL 5", (30, 5)), ("-x509SVIDTTL 7 -ttl 30", (7, 30))]
    {
        let (code, out, err) = server(&format!("entry create {base} {flags} -registrationUDSPath {socket}"));
        assert_eq!(code, 0, "{err}");
        assert_eq!(
            err,
            "Warning: -registrationUDSPath is an old name; use -socketPath\n\
             Warning: -ttl is an old name; use -x509SVIDTTL and -jwtSVIDTTL\n"
        );
        assert!(out.contains(&format!("X509-SVID TTL           : {}\n", want.0)), "{out}");
        let (_, message) = running.log.take().pop().unwrap();
        let entry = BatchCreateEntryRequest::decode(message).unwrap().entries.remove(0);
        assert_eq!((entry.x509_svid_ttl, entry.jwt_svid_ttl), want, "{flags}");
    }
    let (code, _, err) = server(&format!("entry create {base} -ttl -1 -socketPath {socket}"));
    assert_eq!((code, err.as_str()), (1, "Error: a positive x509-SVID TTL is required\n"));
}

#[test]
fn old_commands_work_and_are_not_listed() {
    let running = Running::start();
    let socket = running.socket();
    let (code, old, _) = server(&format!("experimental bundle show -socketPath {socket}"));
    let (_, new, _) = server(&format!("bundle show -format spiffe -socketPath {socket}"));
    assert_eq!((code, &old), (0, &new));
    assert!(old.starts_with("{\n    \"keys\": ["), "{old}");
    assert!(!server("-h").2.contains("experimental"));
    assert!(!server("entry create -h").2.contains("-ttl"));
}

#[test]
fn an_instance_is_filled_in() {
    let running = Running::start();
    let folder = running.folder.path().to_owned();
    let (code, out, err) = in_env(&folder, |env| {
        let template = folder.join("%i").display().to_string();
        env.variables.insert("SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE".into(), template);
        spire_cli::server(&words("healthcheck -instance s"), env, server_hooks())
    });
    assert_eq!((code, out.as_str(), err.as_str()), (0, "Server is healthy.\n", ""));
}

#[test]
fn the_server_s_hooks_get_their_flags() {
    let seen = Arc::new(Mutex::new(None));
    let keep = seen.clone();
    let line =
        "run -config c -serverPort 8081 -logSourceLocation -expandEnv=false -registrationUDSPath /s stray";
    let (code, ..) = in_env(Path::new("/"), |env| {
        let run = Box::new(move |flags| {
            *keep.lock().unwrap() = Some(flags);
            7
        });
        spire_cli::server(&words(line), env, ServerHooks { run, ..server_hooks() })
    });
    let want = ServerRunFlags {
        config: Some("c".into()),
        server_port: Some(8081),
        log_source_location: true,
        socket_path: Some("/s".into()),
        ..Default::default()
    };
    assert_eq!((code, seen.lock().unwrap().take()), (7, Some(want)));
}

#[test]
fn validation_is_reported() {
    let validated = |result: Result<(), Invalid>| {
        in_env(Path::new("/"), |env| {
            let validate = Box::new(move |_| result);
            spire_cli::server(&words("validate"), env, ServerHooks { validate, ..server_hooks() })
        })
    };
    let valid = "SPIRE server configuration file is valid.\n";
    assert_eq!(validated(Ok(())), (0, valid.into(), String::new()));
    let (code, _, err) = validated(Err(Invalid::Configuration("no".into())));
    assert_eq!((code, err.as_str()), (1, "SPIRE server configuration file is invalid: no\n"));
    let (_, _, err) = validated(Err(Invalid::Unchecked("no".into())));
    assert_eq!(err, "Could not validate configuration file: no");
    let notes = [("a".to_owned(), vec!["x".to_owned(), "y".to_owned()]), ("b".to_owned(), vec![])];
    let (code, _, err) = validated(Err(Invalid::Plugins(notes.into())));
    let want = "SPIRE server configuration file is invalid.\nValidation errors:\n\ta:\n\t\tx\n\t\ty\n";
    assert_eq!((code, err.as_str()), (1, want));
}

#[test]
fn the_agent_s_hooks_get_their_flags() {
    let seen = Arc::new(Mutex::new(None));
    let keep = seen.clone();
    let hooks = |run: Box<dyn FnOnce(AgentRunFlags) -> i32>| AgentHooks {
        version: "v".into(),
        run,
        validate: Box::new(|_| Err(Invalid::Configuration("no".into()))),
    };
    let run = Box::new(move |flags| {
        *keep.lock().unwrap() = Some(flags);
        0
    });
    let line = "run -joinToken t -serverAddress a -serverPort 1 -insecureBootstrap -retryBootstrap";
    let (_, _, err) = in_env(Path::new("/"), |env| spire_cli::agent(&words(line), env, hooks(run)));
    assert!(err.starts_with("Warning: -retryBootstrap is an old switch"), "{err}");
    let want = AgentRunFlags {
        join_token: Some("t".into()),
        server_address: Some("a".into()),
        server_port: Some(1),
        insecure_bootstrap: true,
        retry_bootstrap: true,
        ..Default::default()
    };
    assert_eq!(seen.lock().unwrap().take(), Some(want));
    let validate = |env: &mut Env| spire_cli::agent(&words("validate"), env, hooks(Box::new(|_| 0)));
    let (code, _, err) = in_env(Path::new("/"), validate);
    assert_eq!((code, err.as_str()), (1, "SPIRE agent configuration file is invalid: no\n"));
}

#[test]
fn minted_files_hold_what_was_minted() {
    let running = Running::start();
    let (code, out, err) = in_env(running.folder.path(), |env| {
        let line =
            format!("x509 mint -spiffeID spiffe://example.org/w -write . -socketPath {}", running.socket());
        spire_cli::server(&words(&line), env, server_hooks())
    });
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        out,
        "X509-SVID written to svid.pem\nPrivate key written to key.pem\nRoot CAs written to bundle.pem\n"
    );
    let file = |name: &str| std::fs::read_to_string(running.folder.path().join(name)).unwrap();
    let sample = |name: &str| std::fs::read_to_string(Path::new("testdata/files").join(name)).unwrap();
    assert_eq!(file("svid.pem"), sample("leaf.pem") + &sample("int.pem"));
    assert_eq!(file("bundle.pem"), sample("ca.pem"));
    // The request asks for the ID and is signed with the key that was written.
    let (_, message) = running.log.take().remove(0);
    let request = spire_wire::api::server::svid::v1::MintX509svidRequest::decode(message).unwrap();
    let csr = spire_core::pki::VerifiedCsr::from_der(request.csr).unwrap();
    let key = spire_core::pki::LocalKey::from_pem(file("key.pem").as_bytes()).unwrap();
    assert_eq!(csr.uris(), ["spiffe://example.org/w"]);
    assert_eq!(csr.public_key(), key.public_key());
}

#[test]
fn minted_svids_can_be_printed_as_json() {
    let running = Running::start();
    let id = "-spiffeID spiffe://example.org/w -output json";
    let (_, out, _) = server(&format!("x509 mint {id} -socketPath {}", running.socket()));
    assert!(out.starts_with("{\"x509_svid\":[\"MII") && out.ends_with("\"]}\n"), "{out}");
    let positions: Vec<_> = ["x509_svid", "private_key", "root_cas"].map(|name| out.find(name)).into();
    assert!(positions.is_sorted() && positions[0].is_some(), "{out}");
    let (_, out, _) = in_env(Path::new("/"), |env| {
        env.variables.insert("SPIRE_SERVER_FFLAGS".into(), "wit-svid".into());
        let line = format!("wit mint {id} -socketPath {}", running.socket());
        spire_cli::server(&words(&line), env, server_hooks())
    });
    let want = "\"svid\":{\"token\":\"eyJhbGciOiJFUzI1NiIsImtpZCI6ImsxIiwidHlwIjoiSldUIn0.";
    assert!(out.starts_with("{\"private_key\":\"{\\\"kty\\\":\\\"EC\\\"") && out.contains(want), "{out}");
    let end = "\"id\":{\"trust_domain\":\"example.org\",\"path\":\"/w\"},\"expires_at\":2000000000,\"issued_at\":1}}\n";
    assert!(out.ends_with(end), "{out}");
}

#[test]
fn watching_ends_when_the_agent_says_that_it_is_pointless() {
    let running = Running::start();
    running.log.refuse();
    let hooks = AgentHooks { version: "v".into(), run: Box::new(|_| 0), validate: Box::new(|_| Ok(())) };
    let line = format!("api watch -socketPath {}", running.socket());
    let (code, out, err) = in_env(Path::new("/"), |env| spire_cli::agent(&words(&line), env, hooks));
    let text = "rpc error: code = InvalidArgument desc = refused\n";
    assert_eq!((code, out.as_str(), err), (1, "", text.repeat(2)));
}

#[test]
fn shells_are_told_what_fits() {
    let completed = |line: &str| {
        let (code, out, err) = in_env(Path::new("/"), |env| {
            env.variables.insert("COMP_LINE".into(), line.into());
            spire_cli::server(&words("spire-server en x"), env, server_hooks())
        });
        assert_eq!((code, err.as_str()), (0, ""));
        out
    };
    assert_eq!(completed("spire-server en"), "entry\n");
    assert_eq!(completed("spire-server entry "), "count\ncreate\ndelete\nshow\nupdate\n");
    assert_eq!(completed("spire-server -v entry s"), "show\n");
    assert_eq!(completed("spire-server ex"), "");
    assert_eq!(completed("spire-server -"), "-help\n-version\n");
    assert_eq!(completed("spire-server entry show -"), "");
    let (code, _, err) = server("-autocomplete-install");
    assert!(code == 1 && err.contains("complete -C"), "{err}");
}
