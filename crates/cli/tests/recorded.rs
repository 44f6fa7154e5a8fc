//! Runs every recorded command line, and compares output, exit code, requests and files with the recording, which was made
//! with SPIRE's own binaries against the same server. Format of a recording: a title behind `##`, then
//! `$` arguments as JSON, `env` a variable, `in` standard input as JSON, `exit` the code, `~` a call (path and message in
//! base64, or `*` where the message holds something random), `>` and `!` lines of standard output and error (`\` at
//! the end: no newline), `file` name, mode and length (`*`: random).

use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use prost::Message;
use spire_cli::{AgentHooks, Env, ServerHooks};
use spire_wire::api::server::trustdomain::v1::BatchCreateFederationRelationshipRequest;

mod fake;

const RECORDINGS: [(&str, &str); 4] = [
    ("help", include_str!("../testdata/help.txt")),
    ("flags", include_str!("../testdata/flags.txt")),
    ("server", include_str!("../testdata/server.txt")),
    ("agent", include_str!("../testdata/agent.txt")),
];

/// A command line with what is known of it.
#[derive(Default, Debug, Clone, PartialEq, Eq)]
struct Case {
    title: String,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    input: String,
    result: Vec<String>,
}

fn cases(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            cases.push(Case { title: title.to_owned(), ..Case::default() });
            continue;
        }
        let Some(case) = cases.last_mut() else { continue };
        match line.split_once(' ').unwrap_or((line, "")) {
            ("", _) => {}
            ("$", arguments) => case.arguments = serde_json::from_str(arguments).unwrap(),
            ("env", variable) => {
                let (name, value) = variable.split_once('=').unwrap();
                case.variables.push((name.to_owned(), value.to_owned()));
            }
            ("in", input) => case.input = serde_json::from_str(input).unwrap(),
            _ => case.result.push(line.to_owned()),
        }
    }
    cases
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Captured {
    /// As lines of a recording, without what differs from run to run.
    fn lines(&self, mark: char, folder: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap().replace(folder, "$DIR");
        let mut lines: Vec<String> =
            text.split_inclusive('\n').map(|line| format!("{mark} {}", redacted(line))).collect();
        for line in &mut lines {
            match line.strip_suffix('\n') {
                Some(whole) => *line = whole.to_owned(),
                None => line.push('\\'),
            }
        }
        lines
    }
}

/// Durations are not repeatable.
fn redacted(line: &str) -> String {
    match line.split_once(" after ") {
        Some((received, _)) if received.starts_with("Received ") => format!("{received} after TIME\n"),
        _ => line.to_owned(),
    }
}

/// Requests whose message holds a fresh key.
fn is_random(path: &str) -> bool {
    path.ends_with("/MintX509SVID") || path.ends_with("/MintWITSVID")
}

fn files(folder: &Path) -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.metadata().unwrap().is_file())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            let metadata = entry.metadata().unwrap();
            let len = if name == "key" { "*".to_owned() } else { metadata.len().to_string() };
            format!("file {name} {:o} {len}", metadata.permissions().mode() & 0o777)
        })
        .collect();
    found.sort();
    found
}

/// A recorded line, with a request as our encoder writes it: Go puts fields of a oneof last.
fn normalised(line: &str) -> String {
    let line = line.trim_end();
    let mut words = line.splitn(3, ' ');
    match (words.next(), words.next(), words.next()) {
        (Some("~"), Some(path), Some(message)) if path.ends_with("ateFederationRelationship") => {
            let bytes = BASE64_STANDARD.decode(message).unwrap();
            let request = BatchCreateFederationRelationshipRequest::decode(&bytes[..]).unwrap();
            format!("~ {path} {}", BASE64_STANDARD.encode(request.encode_to_vec()))
        }
        _ => line.to_owned(),
    }
}

/// Runs a case in a folder of its own.
fn run(case: &Case, log: &fake::Log, socket: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    let (stdout, stderr) = (Captured::default(), Captured::default());
    let place = |text: &str| {
        text.replace("$SOCKET", socket)
            .replace("$FILES", &std::path::absolute("testdata/files").unwrap().display().to_string())
            .replace("$DIR", &folder.path().display().to_string())
    };
    let mut env = Env {
        stdin: Box::new(Cursor::new(place(&case.input).into_bytes())),
        stdout: Box::new(stdout.clone()),
        stderr: Box::new(stderr.clone()),
        variables: [("TZ".to_owned(), "UTC".to_owned())].into(),
        directory: folder.path().to_owned(),
        clock: SystemTime::now,
    };
    env.variables.extend(case.variables.iter().map(|(name, value)| (name.clone(), place(value))));
    let arguments: Vec<String> = case.arguments.iter().map(|a| place(a)).collect();
    let version = "1.16.0-dev-unk".to_owned();
    let code = match arguments[0].as_str() {
        "spire-server" => spire_cli::server(
            &arguments[1..],
            &mut env,
            ServerHooks { version, run: Box::new(|_| 0), validate: Box::new(|_| Ok(())) },
        ),
        _ => spire_cli::agent(
            &arguments[1..],
            &mut env,
            AgentHooks { version, run: Box::new(|_| 0), validate: Box::new(|_| Ok(())) },
        ),
    };
    let mut result = vec![format!("exit {code}")];
    result.extend(log.take().into_iter().map(|(path, message)| {
        let message = if is_random(&path) { "*".to_owned() } else { BASE64_STANDARD.encode(message) };
        format!("~ {path} {message}").trim_end().to_owned()
    }));
    let folder = folder.path().display().to_string();
    result.extend(stdout.lines('>', &folder));
    result.extend(stderr.lines('!', &folder));
    result.extend(files(&out));
    result.iter().map(|line| line.replace(socket, "$SOCKET").trim_end().to_owned()).collect()
}

#[test]
fn commands_do_what_spire_s_do() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let log = fake::Log::default();
    {
        let _entered = runtime.enter();
        fake::start(&socket, log.clone());
    }
    let socket = socket.display().to_string();
    let mut differing = Vec::new();
    let mut count = 0;
    for (name, text) in RECORDINGS {
        for case in cases(text) {
            count += 1;
            let got = run(&case, &log, &socket);
            let want: Vec<String> = case.result.iter().map(|line| normalised(line)).collect();
            if got != want {
                differing.push(format!("{name}: {}\n  want {want:#?}\n   got {got:#?}", case.title));
            }
        }
    }
    assert!(count > 100, "only {count} cases were read");
    assert!(differing.is_empty(), "{} of {count} differ:\n{}", differing.len(), differing.join("\n"));
}
