//! External plugins: programs made with SPIRE's plugin SDK for Go, and with ours for Rust, which do the same. With SPIRE's
//! own programs under test the same tests show that the Rust plugins run there.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use spire_testkit::{Daemon, Error, Result, place, wait};

use crate::harness::peer::Peer;
use crate::harness::programs::{Programs, reference, rust_plugins};
use crate::harness::site::text;
use crate::harness::svid;
use crate::harness::{Case, Need, Outcome, SOON, Site};
use crate::telemetry::{names, prometheus_section};

pub(crate) fn cases() -> Vec<Case> {
    const GO: &[Need] = &[Need::Peer(Peer::GoPlugins), Need::Openssl];
    const RUST: &[Need] = &[Need::RustPlugins, Need::Openssl];
    const RUST_THERE: &[Need] = &[Need::RustPlugins, Need::Openssl, Need::Reference];
    const OURS: &[Need] = &[Need::Ours, Need::Peer(Peer::GoPlugins)];
    vec![
        Case { name: "plugins::of_go", needs: GO, run: || whole(Language::Go, None) },
        Case { name: "plugins::of_rust", needs: RUST, run: || whole(Language::Rust, None) },
        Case {
            name: "plugins::of_rust_under_spire",
            needs: RUST_THERE,
            run: || whole(Language::Rust, reference()),
        },
        Case {
            name: "plugins::upstream_authority_of_go",
            needs: GO,
            run: || upstream_authority(Language::Go, None),
        },
        Case {
            name: "plugins::upstream_authority_of_rust",
            needs: RUST,
            run: || upstream_authority(Language::Rust, None),
        },
        Case {
            name: "plugins::upstream_authority_of_rust_under_spire",
            needs: RUST_THERE,
            run: || upstream_authority(Language::Rust, reference()),
        },
        Case { name: "plugins::data_file", needs: GO, run: data_file },
        Case { name: "plugins::crashes", needs: OURS, run: crashes },
        Case { name: "plugins::die_with_their_server", needs: OURS, run: die_with_their_server },
        Case { name: "plugins::refused", needs: GO, run: refused },
        Case { name: "plugins::validated", needs: GO, run: validated },
        Case { name: "plugins::by_reference", needs: GO, run: by_reference },
    ]
}

const AGENT: &str = "spiffe://example.org/spire/agent/echo/node1";
const WORKLOAD: &str = "spiffe://example.org/w";

#[derive(Clone, Copy, Debug)]
enum Language {
    Go,
    Rust,
}

/// Plugins of one language with folders in a site.
struct Plugins {
    program: PathBuf,
    folder: PathBuf,
}

impl Plugins {
    fn of(language: Language, site: &Site) -> Result<Self> {
        let program = match language {
            Language::Go => PathBuf::from(&Peer::GoPlugins.command()?[0]),
            Language::Rust => rust_plugins(),
        };
        Ok(Self { program, folder: site.path("plugins") })
    }

    /// A block for the configuration, with `dir` and these further lines as data. `name` is the folder, too.
    fn block(&self, kind: &str, name: &str, which: &str, data: &str) -> Result<String> {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder).map_err(|error| Error::doing(folder.display(), error))?;
        Ok(format!(
            "    {kind} \"{name}\" {{\n        plugin_cmd = \"{}\"\n        plugin_args = [\"{which}\"]\n        \
             plugin_data {{\n            dir = \"{}\"\n{data}\n        }}\n    }}\n",
            self.program.display(),
            folder.display(),
        ))
    }

    fn path(&self, plugin: &str, file: &str) -> PathBuf {
        self.folder.join(plugin).join(file)
    }

    /// What a plugin wrote into a file, once it did.
    fn written(&self, plugin: &str, file: &str) -> Result<String> {
        let path = self.path(plugin, file);
        wait::until(&format!("{}", path.display()), SOON, || read(&path))
    }

    /// Waits until a file of a plugin says something else.
    fn changed(&self, plugin: &str, file: &str, from: &str) -> Result<String> {
        let path = self.path(plugin, file);
        let other = || read(&path).filter(|now| now != from);
        wait::until(&format!("another {}", path.display()), SOON, other)
    }
}

/// A file's content, some of which are keys.
fn read(path: &Path) -> Option<String> {
    std::fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The text between two lines of a configuration is replaced, both included.
fn without(text: &str, from: &str, to: &str) -> String {
    let Some((head, rest)) = text.split_once(from) else { return text.to_owned() };
    let tail = rest.split_once(to).map_or("", |(_, tail)| tail);
    format!("{head}{tail}")
}

/// The server's file with an external key manager and node attestor instead of its own.
fn server_text(site: &Site, blocks: &str) -> String {
    let text = without(&site.server.text(), "    KeyManager \"disk\" {", "        }\n    }\n");
    text.trim_end().trim_end_matches('}').to_owned() + blocks + "}\n"
}

fn agent_text(site: &Site, blocks: &str) -> String {
    let mut text = site.agent.text();
    for kind in ["KeyManager \"disk\"", "NodeAttestor \"join_token\"", "WorkloadAttestor \"unix\""] {
        text = without(&text, &format!("    {kind} {{"), "        }\n    }\n");
    }
    text.trim_end().trim_end_matches('}').to_owned() + blocks + "}\n"
}

fn start(site: &Site, side: &str, file_text: &str) -> Result<Daemon> {
    let file = site.path(&format!("{side}.conf"));
    place::write(&file, file_text)?;
    let (program, socket) = match side {
        "server" => (site.server_programs.server(), site.server.socket()),
        _ => (site.agent_programs.agent(), site.agent.socket()),
    };
    let mut daemon = Daemon::start(side, &program, &["run", "-config", text(&file)], &site.path(""))?;
    crate::harness::site::answers(&mut daemon, &socket)?;
    Ok(daemon)
}

fn is_alive(pid: &str) -> bool {
    // One that nobody has waited for is no process any more.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn wait_gone(pid: &str) -> Result<()> {
    wait::until(&format!("end of {pid}"), SOON, || (!is_alive(pid)).then_some(()))
}

/// A server and an agent all of whose plugins are external, from their start to their end.
fn whole(language: Language, programs: Option<&'static Programs>) -> Outcome {
    let mut site = Site::new()?;
    if let Some(programs) = programs {
        site.server_programs = programs;
        site.agent_programs = programs;
    }
    let plugins = Plugins::of(language, &site)?;
    let port = place::port()?;
    let server_file = server_text(&site, &server_blocks(&plugins)?) + &prometheus_section(port, "");
    let mut server = start(&site, "server", &server_file)?;
    on_the_server(&plugins, &server)?;
    let agent_blocks = [
        plugins.block("KeyManager", "agentkeys", "agent-keymanager", "")?,
        plugins.block("NodeAttestor", "echo", "agent-nodeattestor", "value = \"node1\"")?,
        plugins.block("WorkloadAttestor", "probe", "workloadattestor", "value = \"blue,green\"")?,
        plugins.block("SVIDStore", "box", "svidstore", "")?,
    ]
    .concat();
    let mut agent = start(&site, "agent", &agent_text(&site, &agent_blocks))?;
    assert_eq!(site.attested_agent()?["attestation_type"], Value::from("echo"));
    plugins.written("agentkeys", "key-agent-svid-A")?;
    wait::until("the plugin's metric", SOON, || {
        names(port)?.contains("spire_server_echo_attested{host,name}").then_some(())
    })
    .map_err(|error| Error::doing(error, format!("{:?}", names(port))))?;

    let selectors = ["-selector", "probe:exe:spire-agent"];
    let entry = site.entry(AGENT, WORKLOAD, "probe:value:green", &selectors)?;
    site.wait_identities(&[WORKLOAD])?;
    composed(&site)?;
    stored(&site, &plugins)?;
    site.cli(&["entry", "delete", "-entryID", &entry])?;

    // What the plugins keep outlives the server's process; the CA is the same.
    let before = site.cli(&["bundle", "show"])?.stdout;
    let pid = plugins.written("serverkeys", "pid")?;
    assert_eq!(server.stop()?, 0);
    wait_gone(&pid)?;
    assert_eq!(plugins.written("serverkeys", "closed")?, "yes");
    for part in ["Unloading plugin", "Plugin deinitialized", "Plugin unloaded"] {
        server.wait_for(&[part, "external=true", "plugin_name=serverkeys"], SOON)?;
    }
    let mut server = start(&site, "server", &server_file)?;
    assert_eq!(site.cli(&["bundle", "show"])?.stdout, before);

    let pid = plugins.written("box", "pid")?;
    assert_eq!(agent.stop()?, 0);
    wait_gone(&pid)?;
    // The agent is known now, which its attestor hears from the server.
    std::fs::remove_dir_all(site.agent.data()).map_err(|error| Error::doing("agent data", error))?;
    let _agent = start(&site, "agent", &agent_text(&site, &agent_blocks))?;
    assert_eq!(plugins.written("echo", "agent-node1")?, "known");
    assert_eq!(plugins.written("echo", "from")?, "127.0.0.1");
    assert_eq!(server.stop()?, 0);
    Ok(())
}

fn server_blocks(plugins: &Plugins) -> Result<String> {
    Ok([
        plugins.block("KeyManager", "serverkeys", "server-keymanager", "")?,
        plugins.block("NodeAttestor", "echo", "server-nodeattestor", "")?,
        // As nobody would write it: a plugin gets it as SPIRE prints it.
        plugins.block(
            "CredentialComposer",
            "composer",
            "credentialcomposer",
            "# which unit\nvalue=\"unit\"   unused { list=[1,\n2] }",
        )?,
        plugins.block("Notifier", "notifier", "notifier", "")?,
        plugins.block("BundlePublisher", "publisher", "bundlepublisher", "")?,
    ]
    .concat())
}

/// What each of the server's plugins saw, and what the log says of them.
fn on_the_server(plugins: &Plugins, server: &Daemon) -> Outcome {
    for kind in ["KeyManager", "NodeAttestor", "CredentialComposer", "Notifier", "BundlePublisher"] {
        let kind = format!("plugin_type={kind}");
        server.wait_for(
            &["level=warning msg=\"Plugin checksum not configured\"", "external=true", &kind],
            SOON,
        )?;
        server
            .wait_for(&["msg=\"Configured plugin\"", "external=true", &kind, "reconfigurable=false"], SOON)?;
        server.wait_for(&["msg=\"Plugin loaded\"", "external=true", &kind], SOON)?;
    }
    let program = plugins.program.file_name().unwrap_or_default().to_string_lossy();
    let said = server.wait_for(&["level=info msg=\"Plugin was configured\"", "value=unit"], SOON)?;
    for part in [
        "answer=42".to_owned(),
        "external=true".to_owned(),
        "plugin_name=composer".to_owned(),
        "plugin_type=CredentialComposer".to_owned(),
        format!("subsystem_name=composer.{program}"),
        "timestamp=".to_owned(),
    ] {
        assert!(said.contains(&part), "{part}: {said}");
    }
    server.wait_for(&["level=debug msg=\"Only for those who look closely\""], SOON)?;
    let expected = format!(
        "dir = \"{}\"\n\n# which unit\nvalue = \"unit\"\n\nunused {{\n  list = [\n    1,\n    2,\n  ]\n}}",
        plugins.folder.join("composer").display()
    );
    assert_eq!(plugins.written("composer", "configured")?, expected);
    assert_eq!(plugins.written("composer", "ca")?, "SPIFFE");
    let loaded = plugins.written("notifier", "loaded")?;
    assert!(loaded.ends_with("as spiffe://example.org/spire/server of example.org"), "{loaded}");
    assert_eq!(plugins.written("publisher", "published")?, "example.org 1");
    plugins.written("serverkeys", "key-x509-CA-A")?;
    Ok(())
}

/// What the composer added to both kinds of SVIDs.
fn composed(site: &Site) -> Outcome {
    let folder = site.path("svids");
    std::fs::create_dir_all(&folder)?;
    site.workload(&["api", "fetch", "x509", "-write", text(&folder)]).success()?;
    let pem = place::read(&folder.join("svid.0.pem"))?;
    let shown = svid::x509_text(&pem)?;
    for part in ["OU = unit", "DNS:composed.test", "URI:spiffe://example.org/w"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let fetched = site.workload(&["api", "fetch", "jwt", "-audience", "test"]).success()?;
    let token = fetched.stdout.lines().map(str::trim).find(|line| line.starts_with("ey"));
    let (_, claims) = svid::jwt_parts(token.ok_or("no token")?)?;
    assert_eq!(claims["composed"], Value::from("unit"));
    assert!(claims["exp"].is_u64(), "{claims}");
    Ok(())
}

/// SVIDs of entries for stores: put, moved, deleted.
fn stored(site: &Site, plugins: &Plugins) -> Outcome {
    let id = "spiffe://example.org/stored";
    let entry = site.entry(AGENT, id, "box:one", &["-storeSVID"])?;
    let parsed = |file: &str| -> Result<Value> { svid::json(&plugins.written("box", file)?) };
    let first = parsed("svid-one")?;
    assert_eq!((&first["ID"], &first["Metadata"][0]), (&Value::from(id), &Value::from("one")));
    assert!(first["ExpiresAt"].as_i64().is_some_and(|at| at > 1_700_000_000), "{first}");
    let base = ["entry", "update", "-entryID", &entry, "-parentID", AGENT, "-spiffeID", id, "-storeSVID"];
    site.cli(&[&base[..], &["-selector", "box:two"]].concat())?;
    assert_eq!(parsed("svid-two")?["ID"], Value::from(id));
    let gone = |file: &'static str| {
        let path = plugins.path("box", file);
        wait::until(&format!("end of {file}"), SOON, || (!path.exists()).then_some(()))
    };
    gone("svid-one")?;
    site.cli(&["entry", "delete", "-entryID", &entry])?;
    gone("svid-two")?;
    Ok(())
}

/// A CA that an external authority signs.
/// It signs the server's authority, takes its keys, and tells what changes in its bundle.
fn upstream_authority(language: Language, programs: Option<&'static Programs>) -> Outcome {
    let mut site = Site::new()?;
    if let Some(programs) = programs {
        site.server_programs = programs;
    }
    let plugins = Plugins::of(language, &site)?;
    let block = plugins.block("UpstreamAuthority", "root", "upstreamauthority", "")?;
    let (key, ca) = (plugins.path("root", "ca.key"), plugins.path("root", "ca.der"));
    let openssl = |args: &[&str]| spire_testkit::Run::new("openssl").args(args).success();
    let pem = plugins.path("root", "key.pem");
    openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", text(&pem)])?;
    openssl(&["pkcs8", "-topk8", "-nocrypt", "-in", text(&pem), "-outform", "DER", "-out", text(&key)])?;
    for (name, path) in [("/CN=external root", &ca), ("/CN=another root", &plugins.path("root", "other.der"))]
    {
        let subject = ["-subj", name, "-days", "2", "-outform", "DER", "-out", text(path)];
        openssl(&[&["req", "-x509", "-new", "-key", text(&pem)][..], &subject].concat())?;
    }
    let spki = plugins.path("root", "key.spki");
    openssl(&["pkey", "-in", text(&pem), "-pubout", "-outform", "DER", "-out", text(&spki)])?;
    let file = site.server.text().trim_end().trim_end_matches('}').to_owned() + &block + "}\n";
    let mut server = start(&site, "server", &file)?;
    let bundle = site.cli(&["bundle", "show"])?.stdout;
    assert_eq!(svid::certificates(&bundle), 1);
    assert_eq!(svid::x509_field(&bundle, "-subject")?, "CN = external root");
    let minted = site.cli(&["x509", "mint", "-spiffeID", WORKLOAD])?.stdout;
    assert!(minted.contains("BEGIN CERTIFICATE"), "{minted}");

    // Certificates, and the IDs of keys for JWT-SVIDs.
    let bundle = || -> Result<(usize, Vec<String>)> {
        let shown = site.cli_json(&["bundle", "show"])?;
        let count = |name: &str| shown[name].as_array().map_or(0, Vec::len);
        let keys = shown["jwt_authorities"].as_array().cloned().unwrap_or_default();
        let ids = keys.iter().filter_map(|key| key["key_id"].as_str().map(str::to_owned));
        Ok((count("x509_authorities"), ids.collect()))
    };
    let has = |ids: &[&str]| {
        wait::until(&format!("keys {ids:?}"), SOON * 2, || {
            let found = bundle().ok()?;
            ids.iter().all(|id| found.1.iter().any(|known| known == id)).then_some(found.0)
        })
        .map_err(|error| server.error(&error.to_string()))
    };
    let own = plugins.written("root", "published")?;
    assert_eq!(has(&[&own, "upstream"])?, 1);
    place::write(&plugins.path("root", "publish-later"), "")?;
    assert_eq!(has(&[&own, "upstream", "published-later"])?, 1);
    plugins.written("root", "subscribed")?;
    place::write(&plugins.path("root", "bundle-later"), "")?;
    has(&["bundle-later"])?;
    wait::until("the other root", SOON, || (bundle().ok()?.0 == 2).then_some(()))?;
    assert_eq!(server.stop()?, 0);
    Ok(())
}

/// Data in a file of its own is read again on SIGUSR1.
fn data_file() -> Outcome {
    let site = Site::new()?;
    let plugins = Plugins::of(Language::Go, &site)?;
    let block = plugins.block("CredentialComposer", "composer", "credentialcomposer", "")?;
    let data = site.path("composer.hcl");
    let folder = plugins.folder.join("composer");
    let write = |value: &str| place::write(&data, &format!("dir = \"{}\"\n{value}\n", folder.display()));
    write("value = \"one\"")?;
    let block = without(&block, "        plugin_data {", "        }\n");
    let block = block
        .replace("plugin_args", &format!("plugin_data_file = \"{}\"\n        plugin_args", data.display()));
    let file = site.server.text().trim_end().trim_end_matches('}').to_owned() + &block + "}\n";
    let mut server = start(&site, "server", &file)?;
    server.wait_for(
        &["msg=\"Configured plugin\"", "plugin_name=composer", "reconfigurable=true", " hash="],
        SOON,
    )?;
    let configured = plugins.written("composer", "configured")?;

    server.signal(Signal::USR1);
    server.wait_for(&["msg=\"Plugin not reconfigured since the config is unchanged\"", " hash="], SOON)?;
    write("value = \"two\"")?;
    server.signal(Signal::USR1);
    server.wait_for(&["msg=\"Plugin reconfigured\"", "new_hash=", "old_hash="], SOON)?;
    assert!(plugins.changed("composer", "configured", &configured)?.contains("two"));
    let configured = plugins.written("composer", "configured")?;
    write("refuse = \"not that\"")?;
    server.signal(Signal::USR1);
    server.wait_for(&["level=error msg=\"Failed to reconfigure plugin\"", "not that"], SOON)?;
    assert_eq!(plugins.written("composer", "configured")?, configured);
    assert_eq!(server.stop()?, 0);
    Ok(())
}

/// A key manager that is killed, and one that crashes in a call: calls fail meanwhile and then work again, with the
/// same keys.
fn crashes() -> Outcome {
    let site = Site::new()?;
    let plugins = Plugins::of(Language::Go, &site)?;
    let block = plugins.block("KeyManager", "serverkeys", "server-keymanager", "value = \"kept\"")?;
    let mut server = start(&site, "server", &server_text(&site, &block))?;
    let bundle = site.cli(&["bundle", "show"])?.stdout;
    let mint = || site.command(&["x509", "mint", "-spiffeID", WORKLOAD]).output();
    let recovered = || {
        wait::until("an SVID", SOON, || mint().ok().filter(|output| output.code == 0))
            .map(|output| output.stdout)
    };
    recovered()?;

    let pid = plugins.written("serverkeys", "pid")?;
    spire_testkit::Run::new("kill").args(&["-9", &pid]).success()?;
    server.wait_for(&["level=error msg=\"Plugin is down; starting it again\"", "signal: killed"], SOON)?;
    plugins.changed("serverkeys", "pid", &pid)?;
    server.wait_for(&["msg=\"Plugin was started again\"", "plugin_name=serverkeys"], SOON)?;
    server.wait_for(&["msg=\"Keys were read after a restart\"", "count=2"], SOON)?;
    recovered()?;

    place::write(&plugins.path("serverkeys", "crash"), "now")?;
    let failed = mint()?.exits_with(1)?;
    assert!(failed.stderr.contains("keymanager(serverkeys): "), "{failed}");
    server.wait_for(&["level=error msg=\"panic: crashed as asked\"", "plugin_name=serverkeys"], SOON)?;
    recovered()?;
    assert_eq!(site.cli(&["bundle", "show"])?.stdout, bundle);
    let configured = plugins.written("serverkeys", "configured")?;
    assert!(configured.ends_with("value = \"kept\""), "{configured}");
    assert_eq!(server.stop()?, 0);
    Ok(())
}

/// No plugin outlives a server that was killed.
fn die_with_their_server() -> Outcome {
    let site = Site::new()?;
    let plugins = Plugins::of(Language::Go, &site)?;
    let block = plugins.block("KeyManager", "serverkeys", "server-keymanager", "")?;
    let mut server = start(&site, "server", &server_text(&site, &block))?;
    let pid = plugins.written("serverkeys", "pid")?;
    assert!(is_alive(&pid));
    server.kill()?;
    wait_gone(&pid)?;
    Ok(())
}

/// Plugins that keep a server from starting, with what is said of them.
fn refused() -> Outcome {
    let site = Site::new()?;
    let plugins = Plugins::of(Language::Go, &site)?;
    let block = plugins.block("CredentialComposer", "composer", "credentialcomposer", "")?;
    let program = format!("plugin_cmd = \"{}\"", plugins.program.display());
    let args = "plugin_args = [\"credentialcomposer\"]";
    let script = |text: &str| (args, format!("plugin_args = [\"-c\", \"{text}\"]"));
    let checksum = |sum: &str| (program.as_str(), format!("{program}\n        plugin_checksum = \"{sum}\""));
    let shell = block.replace(&program, "plugin_cmd = \"/bin/sh\"");
    let wrong = "0".repeat(64);
    let rows: Vec<(String, &str)> = vec![
        (
            block.replace(&program, "plugin_cmd = \"/nonexistent/plugin\""),
            "failed to load plugin \\\"composer\\\": failed to launch plugin: fork/exec /nonexistent/plugin: no such file or directory",
        ),
        (
            block.replace(checksum(&wrong).0, &checksum(&wrong).1),
            "failed to load plugin \\\"composer\\\": failed to launch plugin: checksums did not match",
        ),
        (
            block.replace(checksum("xyz").0, &checksum("xyz").1),
            "failed to load plugin \\\"composer\\\": checksum is not a valid hex string",
        ),
        (
            shell.replace(script("echo hello").0, &script("echo hello").1),
            "failed to load plugin \\\"composer\\\": failed to launch plugin: Unrecognized remote plugin message: hello",
        ),
        (
            block.replace(args, "plugin_args = [\"notifier\"]"),
            // It does not see its own cookie.
            "failed to load plugin \\\"composer\\\": failed to launch plugin: Unrecognized remote plugin message: ",
        ),
        (
            block.replace("dir =", "refuse = \"not like this\"\n dir ="),
            "failed to configure plugin \\\"composer\\\": rpc error: code = InvalidArgument desc = not like this",
        ),
    ];
    let mut failures = Vec::new();
    for (block, said) in rows {
        let file = site.path("server.conf");
        place::write(
            &file,
            &(site.server.text().trim_end().trim_end_matches('}').to_owned() + &block + "}\n"),
        )?;
        let args = ["run", "-config", text(&file)];
        let run =
            spire_testkit::Run::new(site.server_programs.server()).args(&args).at_most(SOON).output()?;
        let all = format!("{}{}", run.stdout, run.stderr);
        if run.code != 1 || !all.lines().any(|line| line.contains("Server crashed") && line.contains(said)) {
            failures.push(format!("want {said}, got {run}"));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
}

/// `validate` asks plugins and configures none.
fn validated() -> Outcome {
    let site = Site::new()?;
    let plugins = Plugins::of(Language::Go, &site)?;
    let block = plugins.block("CredentialComposer", "composer", "credentialcomposer", "")?;
    let file = site.path("server.conf");
    let validate = |block: &str| {
        place::write(
            &file,
            &(site.server.text().trim_end().trim_end_matches('}').to_owned() + block + "}\n"),
        )?;
        let args = ["validate", "-config", text(&file)];
        spire_testkit::Run::new(site.server_programs.server()).args(&args).within(&site.path("")).output()
    };
    std::fs::create_dir_all(site.server.data())?;
    let good = validate(&block)?.exits_with(0)?;
    assert!(good.stdout.contains("SPIRE server configuration file is valid."), "{good}");
    let bad = validate(&block.replace("dir =", "refuse = \"rather not\"\n dir ="))?.exits_with(1)?;
    let all = format!("{}{}", bad.stdout, bad.stderr);
    for part in ["CredentialComposer \"composer\"", "rather not", "second note"] {
        assert!(all.contains(part), "{part}: {bad}");
    }
    assert!(!plugins.path("composer", "configured").exists());
    Ok(())
}

/// A workload attestor that only knows references, and takes no configuration.
fn by_reference() -> Outcome {
    let site = Site::new()?;
    let plugins = Plugins::of(Language::Go, &site)?;
    let block = plugins.block("WorkloadAttestor", "newer", "workloadattestor-by-reference", "")?;
    let block = without(&block, "        plugin_data {", "        }\n");
    let _server = site.start_server()?;
    let token = site.token("spiffe://example.org/node")?;
    let file = site.path("agent.conf");
    place::write(&file, &(site.agent.text().trim_end().trim_end_matches('}').to_owned() + &block + "}\n"))?;
    let args = ["run", "-config", text(&file), "-joinToken", &token];
    let mut agent = Daemon::start("agent", &site.agent_programs.agent(), &args, &site.path(""))?;
    crate::harness::site::answers(&mut agent, &site.agent.socket())?;
    let selector = "newer:type:type.googleapis.com/spiffe.broker.WorkloadPIDReference";
    site.entry("spiffe://example.org/node", WORKLOAD, selector, &[])?;
    site.wait_identities(&[WORKLOAD])?;
    assert_eq!(agent.stop()?, 0);
    Ok(())
}
