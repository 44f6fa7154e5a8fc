//! Wrong input, by tables: configuration files and command lines, with the texts and exit codes that scripts rely on.

use spire_testkit::{Error, Run, place};

use crate::harness::programs;
use crate::harness::site::text;
use crate::harness::{Case, Need, Outcome, SOON, Site};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "refusals::server_configuration", needs: &[], run: server_configuration },
        Case { name: "refusals::agent_configuration", needs: &[], run: agent_configuration },
        Case { name: "refusals::agent_plugins", needs: &[Need::Ours], run: agent_plugins },
        Case { name: "refusals::misspelt_settings", needs: &[Need::Ours], run: misspelt_settings },
        Case { name: "refusals::servers_that_do_not_start", needs: &[], run: servers_that_do_not_start },
        Case { name: "refusals::server_commands", needs: &[], run: server_commands },
        Case { name: "refusals::commands_without_a_server", needs: &[], run: commands_without_a_server },
        Case { name: "refusals::nothing_half_done", needs: &[], run: nothing_half_done },
    ]
}

/// A line of the configuration, and what is said of it: nothing where it is valid.
struct Row {
    line: &'static str,
    /// The reference's text after `is invalid: `, or where the file begins.
    said: &'static str,
    /// What our programs add: line number and key, in this order.
    place: Option<(u32, &'static str)>,
}

const fn row(line: &'static str, said: &'static str, place: Option<(u32, &'static str)>) -> Row {
    Row { line, said, place }
}

/// The line stands in the third line of the file.
const SERVER_ROWS: &[Row] = &[
    row("", "", None),
    row("log_level = \"INFO\"", "", None),
    row("bind_port = \"8081\"", "", None),
    row("BIND_PORT = 8081", "", None),
    row(
        "log_level = \"loud\"",
        "could not start logger: not a valid logrus Level: \"loud\"",
        Some((3, "server.log_level")),
    ),
    row("bogus = 1", "unknown configuration detected", Some((3, "bogus"))),
    row("ca_subject { city = \"x\" }", "unknown configuration detected", Some((3, "city"))),
    row(
        "trust_domain = \"two words\"",
        "could not parse trust_domain \"two words\": trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
        Some((3, "trust_domain")),
    ),
    row(
        "bind_port = \"80x\"",
        "unable to decode configuration at \"FILE\": strconv.ParseInt: parsing \"80x\": invalid syntax",
        Some((3, "bind_port")),
    ),
    row(
        "ca_ttl = \"1x\"",
        "could not parse default CA ttl \"1x\": time: unknown unit \"x\" in duration \"1x\"",
        Some((3, "ca_ttl")),
    ),
    row(
        "ca_key_type = \"dsa\"",
        "error parsing ca_key_type: key type \"dsa\" is unknown; must be one of [rsa-2048, rsa-4096, ec-p256, ec-p384]",
        Some((3, "ca_key_type")),
    ),
    row(
        "admin_ids = [\"x\"]",
        "could not parse admin ID \"x\": scheme is missing or invalid",
        Some((3, "admin_ids")),
    ),
    row(
        "experimental { feature_flags = [\"x\"] }",
        "error loading feature flags: unknown feature flag(s): [x]",
        Some((3, "feature_flags")),
    ),
    row("data_dir = ", "unable to decode configuration at \"FILE\": At ", Some((4, ""))),
];

const AGENT_ROWS: &[Row] = &[
    row("insecure_bootstrap = true", "", None),
    row("trust_bundle_path = \"/nonexistent\"", "", None),
    row(
        "",
        "trust_bundle_path, trust_bundle_url, or trust_bundle_spiffe_workload_api must be configured unless insecure_bootstrap is set",
        None,
    ),
    row("insecure_bootstrap = true bogus = 1", "unknown configuration detected", Some((3, "bogus"))),
    row(
        "insecure_bootstrap = true trust_bundle_path = \"x\"",
        "only one of insecure_bootstrap or trust_bundle_path can be specified, not both",
        Some((3, "trust_bundle_path")),
    ),
    row(
        "insecure_bootstrap = true\nx509_svid_cache_max_size = -1",
        "x509_svid_cache_max_size should not be negative",
        Some((4, "x509_svid_cache_max_size")),
    ),
    row(
        "insecure_bootstrap = \"yes\"",
        "unable to decode configuration at \"FILE\": At 3:22: root.agent.insecure_bootstrap: unknown type",
        Some((3, "insecure_bootstrap")),
    ),
];

fn server_configuration() -> Outcome {
    let file = |line: &str| {
        format!(
            "server {{\n trust_domain = \"example.org\" data_dir = \"d\"\n{line}\n}}\nplugins {{\n DataStore \"sql\" \
             {{ plugin_data {{\n  database_type = \"sqlite3\"\n  connection_string = \"d/x\"\n }} }}\n KeyManager \
             \"memory\" {{}}\n}}\n"
        )
    };
    check_rows("server", SERVER_ROWS, file)
}

fn agent_configuration() -> Outcome {
    let file = |line: &str| {
        format!(
            "agent {{\n trust_domain = \"example.org\" data_dir = \"d\" server_address = \"a\" server_port = \
             1\n{line}\n}}\nplugins {{\n KeyManager \"memory\" {{}}\n NodeAttestor \"join_token\" {{}}\n \
             WorkloadAttestor \"unix\" {{}}\n}}\n"
        )
    };
    check_rows("agent", AGENT_ROWS, file)
}

/// All rows, so that a failure shows every one that is wrong.
fn check_rows(side: &str, rows: &[Row], file: impl Fn(&str) -> String) -> Outcome {
    let folder = place::folder()?;
    let path = folder.path().join("test.conf");
    let program = programs::under_test();
    let binary = if side == "server" { program.server() } else { program.agent() };
    let mut wrong = Vec::new();
    for row in rows {
        place::write(&path, &file(row.line))?;
        let validate = Run::new(&binary).args(&["validate", "-config", text(&path)]);
        let output = validate.within(folder.path()).output()?;
        let said = row.said.replace("FILE", text(&path));
        let place = row.place.filter(|_| program.ours);
        let right = if said.is_empty() {
            output.code == 0 && output.stdout == format!("SPIRE {side} configuration file is valid.\n")
        } else {
            let head = format!("SPIRE {side} configuration file is invalid: {said}");
            let placed = place.is_none_or(|(line, key)| {
                output.stderr.contains(&format!("test.conf:{line}:")) && output.stderr.contains(key)
                    || key == "bogus" && output.stderr.contains("bogus at 3:")
                    || key == "city" && output.stderr.contains("city at 3:")
            });
            output.code == 1 && output.stderr.contains(&head) && placed
        };
        if !right {
            wrong.push(format!("{:?}: want {said:?} at {place:?}, got {output}", row.line));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// `validate` of the agent asks the plugins; SPIRE's does not.
fn agent_plugins() -> Outcome {
    let site = Site::new()?;
    let path = site.path("agent.conf");
    let validate = |from: &str, to: &str| -> Result<(i32, String), Error> {
        let good = "agent {\n trust_domain = \"example.org\" data_dir = \"d\" server_address = \"a\" server_port = 1\n \
                    insecure_bootstrap = true\n}\nplugins {\n KeyManager \"memory\" {}\n NodeAttestor \"join_token\" {}\n \
                    WorkloadAttestor \"unix\" {}\n}\n";
        assert!(good.contains(from), "{from}");
        place::write(&path, &good.replace(from, to))?;
        let args = ["validate", "-config", text(&path)];
        let output = Run::new(site.agent_programs.agent()).args(&args).output()?;
        Ok((output.code, output.stderr))
    };
    let (code, said) = validate("\"memory\"", "\"memory\"")?;
    assert_eq!(code, 0, "{said}");
    for (from, to, said) in [
        (
            "\"unix\"",
            "\"unics\"",
            "Could not validate configuration file: failed to load plugin \"unics\": no built-in",
        ),
        (" WorkloadAttestor \"unix\" {}\n", "", "plugin type \"WorkloadAttestor\" constraint not satisfied"),
        (
            "KeyManager \"memory\" {}",
            "KeyManager \"disk\" {}",
            "KeyManager \"disk\":\n\t\trpc error: code = InvalidArgument",
        ),
        (
            "KeyManager \"memory\" {}",
            "KeyManager \"memory\" { plugin_data { keys_path = \"x\" } }",
            "KeyManager \"memory\":\n\t\tno supported configuration interface found\n",
        ),
    ] {
        let (code, found) = validate(from, to)?;
        assert!(code == 1 && found.contains(said), "{to}: {found}");
    }
    Ok(())
}

/// A key that no plugin knows is ignored as in SPIRE, and named; what a plugin refuses says where it stands.
fn misspelt_settings() -> Outcome {
    let mut site = Site::new()?;
    let store =
        format!("database_type = \"sqlite3\"\nconnection_string = \"{}\"", text(&site.path("db.sqlite3")));
    site.server.datastore = Some(format!("{store}\nmax_open_con = 5"));
    site.server.plugins = "NodeAttestor \"http_challenge\" { plugin_data {\n tofo = true\n} }\n".to_owned();
    let server = site.start_server()?;
    let lines = server.lines();
    for (key, plugin) in [("max_open_con", "sql"), ("tofo", "http_challenge")] {
        let parts = [
            "level=warning",
            "Unknown key in plugin_data",
            &format!("key={key}"),
            &format!("plugin_name={plugin}"),
            "position=",
        ];
        assert!(lines.iter().any(|line| parts.iter().all(|part| line.contains(part))), "{key}: {lines:?}");
    }
    drop(server);
    site.server.key_manager = "memory";
    site.server.plugins = "CredentialComposer \"uniqueid\" { plugin_data { a = 1 } }\n".to_owned();
    let server = site.spawn_server()?;
    let line = server.wait_after(0, &["Failed to configure plugin", "uniqueid"], SOON)?;
    for part in
        ["no supported configuration interface found", "server.conf:", "plugins.CredentialComposer.uniqueid"]
    {
        assert!(line.contains(part), "{line}");
    }
    Ok(())
}

fn servers_that_do_not_start() -> Outcome {
    let rows = [
        (
            "KeyManager \"disk\"",
            "KeyManager \"nope\"",
            "failed to load plugin \\\"nope\\\": no built-in plugin \\\"nope\\\" for type \\\"KeyManager\\\" (built in: disk, memory)",
        ),
        (
            "KeyManager \"disk\"",
            "Notifier \"disk\"",
            "no built-in plugin \\\"disk\\\" for type \\\"Notifier\\\"",
        ),
        (
            "keys_path =",
            "other =",
            "failed to configure plugin \\\"disk\\\": rpc error: code = InvalidArgument desc = ",
        ),
        ("\"sqlite3\"", "\"oracle\"", "datastore-sql: unsupported database_type: oracle"),
        ("NodeAttestor \"join_token\"", "NodeFoo \"x\"", "unsupported plugin type \\\"NodeFoo\\\""),
    ];
    let mut wrong = Vec::new();
    for (from, to, said) in rows {
        let site = Site::new()?;
        let file = site.path("server.conf");
        place::write(&file, &site.server.text().replace(from, to))?;
        let args = ["run", "-config", text(&file)];
        let run = Run::new(site.server_programs.server()).args(&args).at_most(SOON).output()?;
        let crashed =
            |line: &str| line.contains("level=error msg=\"Server crashed\" error=") && line.contains(said);
        let all = format!("{}{}", run.stdout, run.stderr);
        if run.code != 1 || !all.lines().any(crashed) {
            wrong.push(format!("{to}: want {said:?}, got {run}"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// Arguments behind `spire-server`, the exit code, and how standard error begins.
const COMMANDS: &[(&[&str], i32, &str)] = &[
    (
        &["entry", "create", "-spiffeID", "spiffe://example.org/a", "-parentID", "spiffe://example.org/b"],
        1,
        "Error: at least one selector is required\n",
    ),
    (
        &["entry", "create", "-spiffeID", "spiffe://example.org/a", "-selector", "a:b"],
        1,
        "Error: a parent ID is required if the node flag is not set\n",
    ),
    (
        &[
            "entry",
            "create",
            "-parentID",
            "spiffe://example.org/b",
            "-selector",
            "ab",
            "-spiffeID",
            "spiffe://example.org/a",
        ],
        1,
        "Error: selector \"ab\" must be formatted as type:value\n",
    ),
    (
        &[
            "entry",
            "create",
            "-parentID",
            "spiffe://example.org/b",
            "-selector",
            "a:b",
            "-spiffeID",
            "spiffe://Example.org/a",
        ],
        1,
        "Error: trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores\n",
    ),
    (
        &[
            "entry",
            "create",
            "-parentID",
            "spiffe://example.org/b",
            "-selector",
            "a:b",
            "-spiffeID",
            "spiffe://example.org/a/",
        ],
        1,
        "Error: path cannot have a trailing slash\n",
    ),
    (
        &[
            "entry",
            "create",
            "-parentID",
            "spiffe://example.org/b",
            "-selector",
            "a:b",
            "-spiffeID",
            "spiffe://other.org/a",
        ],
        1,
        "Failed to create the following entry (code: InvalidArgument, msg: \"failed to convert entry: invalid spiffe ID: \\\"spiffe://other.org/a\\\" is not a member of trust domain \\\"example.org\\\"\"):\nEntry ID                : (none)\n",
    ),
    (
        &[
            "entry",
            "create",
            "-parentID",
            "spiffe://example.org/b",
            "-selector",
            "a:b",
            "-spiffeID",
            "spiffe://example.org/a",
            "-x509SVIDTTL",
            "-5",
        ],
        1,
        "Error: a positive x509-SVID TTL is required\n",
    ),
    (
        &[
            "entry",
            "create",
            "-parentID",
            "spiffe://example.org/b",
            "-selector",
            "a:b",
            "-spiffeID",
            "spiffe://example.org/a",
            "-federatesWith",
            "spiffe://nowhere.org",
        ],
        1,
        "Failed to create the following entry (code: Internal, msg: \"failed to create entry: unable to find federated bundle \\\"spiffe://nowhere.org\\\"\"):\n",
    ),
    (
        &[
            "entry",
            "create",
            "-parentID",
            "spiffe://example.org/b",
            "-selector",
            "a:b",
            "-spiffeID",
            "spiffe://example.org/a",
            "-dns",
            "a..b",
        ],
        1,
        "Failed to create the following entry (code: InvalidArgument, msg: \"failed to convert entry: invalid DNS name: idna error\\nidna: invalid label \\\"a..b\\\"\"):\n",
    ),
    (
        &[
            "entry",
            "create",
            "-parentID",
            "spiffe://example.org/b",
            "-selector",
            "a:b",
            "-spiffeID",
            "spiffe://example.org/a",
            "-entryID",
            "a b",
        ],
        1,
        "Failed to create the following entry (code: InvalidArgument, msg: \"failed to create entry: datastore-validation: invalid registration entry: entry ID contains invalid characters\"):\n",
    ),
    (&["entry", "create", "-spiffeID"], 1, "flag needs an argument: -spiffeID\nUsage of entry create:\n"),
    (
        &["entry", "create", "-bogus", "x"],
        1,
        "flag provided but not defined: -bogus\nUsage of entry create:\n",
    ),
    (
        &["entry", "create", "-data", "/nonexistent"],
        1,
        "Error: open /nonexistent: no such file or directory\n",
    ),
    (
        &[
            "entry",
            "update",
            "-entryID",
            "nope",
            "-parentID",
            "spiffe://example.org/b",
            "-selector",
            "a:b",
            "-spiffeID",
            "spiffe://example.org/a",
        ],
        1,
        "Failed to update the following entry (code: NotFound, msg: \"failed to update entry\"):\n",
    ),
    (
        &["entry", "delete", "-entryID", "nope"],
        1,
        "Failed to delete entry with ID nope (code: NotFound, msg: \"entry not found\")\n",
    ),
    (
        &["entry", "show", "-entryID", "nope"],
        1,
        "Error: error fetching entry ID nope: rpc error: code = NotFound desc = entry not found\n",
    ),
    (
        &["entry", "show", "-output", "x"],
        1,
        "invalid value \"x\" for flag -output: bad formatter flag: unknown format option: \"x\"\nUsage of entry show:\n",
    ),
    (
        &["token", "generate", "-ttl", "0"],
        1,
        "Error: rpc error: code = InvalidArgument desc = ttl is required, you must provide one\n",
    ),
    (
        &["token", "generate", "-ttl", "x"],
        1,
        "invalid value \"x\" for flag -ttl: parse error\nUsage of generate:\n",
    ),
    (
        &["agent", "show", "-spiffeID", "spiffe://example.org/spire/agent/x"],
        1,
        "Error: rpc error: code = NotFound desc = agent not found\n",
    ),
    (
        &["agent", "evict", "-spiffeID", "spiffe://example.org/spire/agent/x"],
        1,
        "Error: rpc error: code = NotFound desc = agent not found\n",
    ),
    (&["agent", "ban"], 1, "Error: a SPIFFE ID is required\n"),
    (
        &["bundle", "delete", "-id", "spiffe://example.org"],
        1,
        "Error: failed to delete federated bundle \"spiffe://example.org\": removing the bundle for the server trust domain is not allowed\n",
    ),
    (
        &["bundle", "set", "-id", "spiffe://a.org", "-path", "/nonexistent"],
        1,
        "Error: unable to load bundle data: open /nonexistent: no such file or directory\n",
    ),
    (
        &["bundle", "set", "-id", "spiffe://a.org", "-path", "/dev/null"],
        1,
        "Error: unable to parse bundle data: no PEM blocks\n",
    ),
    (&["bundle", "show", "-format", "x"], 1, "Error: invalid format: \"x\"\n"),
    (&["x509", "mint"], 1, "Error: spiffeID must be specified\n"),
    (
        &["x509", "mint", "-spiffeID", "spiffe://other.org/x"],
        1,
        "Error: unable to mint SVID: rpc error: code = InvalidArgument desc = CSR URI SAN is invalid: \"spiffe://other.org/x\" is not a member of trust domain \"example.org\"\n",
    ),
    (
        &["x509", "mint", "-spiffeID", "spiffe://example.org/x", "-write", "/nonexistent"],
        1,
        "Error: unable to write SVID: open /nonexistent/svid.pem: no such file or directory\n",
    ),
    (
        &["jwt", "mint", "-spiffeID", "spiffe://example.org/x"],
        1,
        "Error: at least one audience must be specified\n",
    ),
];

fn server_commands() -> Outcome {
    let site = Site::new()?;
    let _server = site.start_server()?;
    let mut wrong = Vec::new();
    for (args, code, said) in COMMANDS {
        let (head, tail) = args.split_at(2);
        let socket = site.server.socket();
        // The socket comes first: some rows end in a flag without its value.
        let run = Run::new(site.server_programs.server())
            .args(head)
            .args(&["-socketPath", text(&socket)])
            .args(tail);
        let output = run.output()?;
        if output.code != *code || !output.stderr.starts_with(said) {
            wrong.push(format!("{args:?}: want {code} {said:?}, got {output}"));
        }
    }
    let unknown = Run::new(site.server_programs.server()).args(&["bogus"]).output()?;
    if unknown.code != 127
        || !unknown.stderr.starts_with("Usage: spire-server [--version] [--help] <command> [<args>]\n")
    {
        wrong.push(format!("unknown command: {unknown}"));
    }
    // Nothing of all this left a trace.
    assert_eq!(site.cli(&["entry", "show"])?.stdout, "Found 0 entries\n");
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

fn commands_without_a_server() -> Outcome {
    let programs = programs::under_test();
    let server =
        Run::new(programs.server()).args(&["entry", "show", "-socketPath", "/nonexistent"]).output()?;
    let said = "rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while dialing: dial \
                unix ///nonexistent: connect: no such file or directory\"\n";
    assert_eq!((server.code, server.stderr), (1, format!("Error: error fetching entries: {said}")));
    let agent = Run::new(programs.agent())
        .args(&["api", "fetch", "x509", "-socketPath", "/nonexistent", "-timeout", "1s"])
        .output()?;
    assert_eq!(agent.code, 1, "{agent}");
    assert_eq!(agent.stdout, "");
    let healthy =
        Run::new(programs.agent()).args(&["healthcheck", "-socketPath", "/nonexistent"]).output()?;
    assert_eq!(healthy.code, 1, "{healthy}");
    assert!(healthy.stderr.contains("Agent is unhealthy: unable to determine health\n"), "{healthy}");
    let absent =
        Run::new(programs.server()).args(&["run", "-config", "/nonexistent"]).output()?.exits_with(1)?;
    let want = "could not find config file /nonexistent: please use the -config flag\n";
    assert_eq!(format!("{}{}", absent.stdout, absent.stderr), want);
    Ok(())
}

/// A batch with one bad entry makes the good ones and says which is which.
fn nothing_half_done() -> Outcome {
    let site = Site::new()?;
    let _server = site.start_server()?;
    let entry = |id: &str| {
        format!(
            "{{\"spiffe_id\":\"{id}\",\"parent_id\":\"spiffe://example.org/p\",\"selectors\":[{{\"type\":\"a\",\
             \"value\":\"b\"}}]}}"
        )
    };
    let batch = format!(
        "{{\"entries\":[{},{}]}}",
        entry("spiffe://example.org/good"),
        entry("spiffe://other.org/bad")
    );
    let output = site.command(&["entry", "create", "-data", "-"]).input(batch).output()?.exits_with(1)?;
    assert!(output.stdout.contains("SPIFFE ID               : spiffe://example.org/good\n"), "{output}");
    assert!(output.stderr.contains("SPIFFE ID               : spiffe://other.org/bad\n"), "{output}");
    let shown = site.cli(&["entry", "show"])?;
    assert!(shown.stdout.starts_with("Found 1 entry\n"), "{shown}");
    // A text that is no JSON changes nothing.
    let broken = site.command(&["entry", "create", "-data", "-"]).input("{").output()?.exits_with(1)?;
    assert_eq!(broken.stderr, "Error: unexpected end of JSON input\n");
    assert_eq!(site.entry_ids()?.len(), 1);
    site.entry_of("spiffe://example.org/good").map_err(|error| Error::doing("the good entry", error))?;
    Ok(())
}
