//! Command lines and what they print: what SPIRE's program printed to the same ones.

use std::path::Path;

use spire_testkit::{Run, place};

use crate::harness::{Case, Need, Outcome, programs};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case { name: "oidc::commands_are_as_recorded", needs: &[Need::Ours], run: ours },
        Case { name: "oidc::recordings_are_true", needs: &[Need::ReferenceOidc], run: theirs },
    ]
}

/// `{program}` is the program's path.
const USAGE: &str = "Usage of {program}:\n  -config string\n    \tconfiguration file (default \"oidc-discovery-provider.conf\")\n  -expandEnv\n    \texpand environment variables in config file\n  -version\n    \tprint version\n";

/// Arguments, the code, the standard output and error. `-` before the text of an error: more lines may follow it, which say
/// where in the file the trouble is.
const RECORDED: &[(&[&str], i32, &str, &str)] = &[
    (&["-h"], 0, "", "{usage}"),
    (&["-help"], 0, "", "{usage}"),
    (&["--help"], 0, "", "{usage}"),
    (&["-foo"], 2, "", "flag provided but not defined: -foo\n{usage}"),
    (&["-config"], 2, "", "flag needs an argument: -config\n{usage}"),
    (&["-version=x"], 2, "", "invalid boolean value \"x\" for -version: parse error\n{usage}"),
    (&["run"], 1, "", "Error: unexpected arguments: [run]\n{usage}"),
    (&["-expandEnv", "a", "b"], 1, "", "Error: unexpected arguments: [a b]\n{usage}"),
    (
        &[],
        1,
        "",
        "unable to load configuration: open oidc-discovery-provider.conf: no such file or directory\n",
    ),
    (&["-config", "none"], 1, "", "unable to load configuration: open none: no such file or directory\n"),
    (&["-config", "empty.conf"], 1, "", "-at least one domain must be configured\n"),
    (
        &["-config", "broken.conf"],
        1,
        "",
        "-unable to decode configuration: At 2:1: key 'x' expected start of object ('{') or assignment ('=')\n",
    ),
    (
        &["-config", "type.conf"],
        1,
        "",
        "-unable to decode configuration: At 1:11: unknown slice type: *ast.LiteralType\n",
    ),
    (
        &["-config", "listener.conf"],
        1,
        "",
        "-either acme, serving_cert_file, insecure_addr or listen_socket_path must be configured\n",
    ),
    (
        &["-config", "source.conf"],
        1,
        "",
        "-exactly one of the server_api, workload_api, or file sections must be configured\n",
    ),
    (
        &["-config", "expanded.conf"],
        1,
        "",
        "-domain \"$NAME\" is not a valid domain name: idna: disallowed rune U+0024\n",
    ),
    (
        &["-expandEnv", "-config", "expanded.conf"],
        1,
        "",
        "-domain \"A.test\" must already be punycode encoded\n",
    ),
    (&["-config", "address.conf"], 1, "", "-listen tcp: address x: missing port in address\n"),
];

const FILES: &[(&str, &str)] = &[
    ("empty.conf", ""),
    ("broken.conf", "x\n"),
    ("type.conf", "domains = 1\n"),
    ("listener.conf", "domains = [\"a\"]\nfile {}\n"),
    ("source.conf", "domains = [\"a\"]\ninsecure_addr = \"127.0.0.1:0\"\n"),
    (
        "expanded.conf",
        "domains = [\"$NAME\"]\ninsecure_addr = \"127.0.0.1:0\"\nfile { path = \"b\" }\nlog_level = \"error\"\n",
    ),
    (
        "address.conf",
        "domains = [\"a\"]\ninsecure_addr = \"x\"\nfile { path = \"b\" }\nlog_level = \"error\"\n",
    ),
];

fn ours() -> Outcome {
    let program = programs::under_test().oidc();
    compare(&program)?;
    let version = Run::new(&program).args(&["-version", "anything"]).success()?;
    assert_eq!(version.stdout.split('+').next(), Some("1.15.3"), "{version}");
    Ok(())
}

fn theirs() -> Outcome {
    compare(&programs::theirs()?.oidc())
}

fn compare(program: &Path) -> Outcome {
    let folder = place::folder()?;
    for (name, text) in FILES {
        place::write(&folder.path().join(name), text)?;
    }
    for (arguments, code, stdout, stderr) in RECORDED {
        let run = Run::new(program).args(arguments).within(folder.path()).env("NAME", "A.test");
        let output = run.output()?;
        let usage = USAGE.replace("{program}", &program.display().to_string());
        let wanted = stderr.replace("{usage}", &usage);
        assert_eq!((output.code, output.stdout.as_str()), (*code, *stdout), "{arguments:?}: {output}");
        match wanted.strip_prefix('-') {
            Some(start) => assert!(output.stderr.starts_with(start), "{arguments:?}: {output}"),
            None => assert_eq!(output.stderr, wanted, "{arguments:?}"),
        }
    }
    Ok(())
}
