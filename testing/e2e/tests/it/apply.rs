//! `spire apply` and `spire export`: files against a server, ours and the reference's, and a folder that a server follows.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use spire_testkit::{Daemon, Output, Result, Run, place};

use crate::harness::site::text;
use crate::harness::{Case, Need, Outcome, SOON, Sides, Site, programs};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "apply::files_become_entries_and_come_back", needs: &[Need::Ours], run: ours },
        Case {
            name: "apply::files_become_entries_of_the_reference",
            needs: &[Need::Ours, Need::Reference],
            run: theirs,
        },
        Case { name: "apply::a_folder_is_followed", needs: &[Need::Ours], run: followed },
        Case { name: "apply::an_import_is_resumed", needs: &[Need::Ours], run: resumed },
    ]
}

/// `spire` with this command on the site's server.
fn spire(site: &Site, args: &[&str]) -> Run {
    let socket = site.server.socket();
    let run = Run::new(programs::under_test().folder.join("spire")).args(args);
    run.args(&["-socketPath", text(&socket)]).within(site.folder())
}

/// Its output, which must end with this code.
fn ends(site: &Site, args: &[&str], code: i32) -> Result<Output> {
    spire(site, args).output()?.exits_with(code)
}

const FILE: &str = "entries:
- entry_id: team.web
  spiffe_id: spiffe://example.org/web
  parent_id: spiffe://example.org/node
  selectors: [unix:uid:1000, unix:gid:1000]
  x509_svid_ttl: 60
  federates_with: [other.test]
  dns_names: [b.test, a.test]
  hint: 'true'
- spiffe_id: spiffe://example.org/db
  parent_id: spiffe://example.org/node
  selectors: [unix:uid:1001]
  admin: true
  expires_at: 1999999999
  additional_attributes: {jwt_svid_include_jti: true}
---
federation_relationships:
- trust_domain: other.test
  bundle_endpoint_url: https://127.0.0.1:1/bundle
  https_spiffe: {endpoint_spiffe_id: spiffe://other.test/server}
  trust_domain_bundle: {keys: [], spiffe_sequence: 1}
";

fn ours() -> Outcome {
    life(&Site::new()?)
}

fn theirs() -> Outcome {
    life(&Site::of(Sides::TheirServer)?)
}

fn life(site: &Site) -> Outcome {
    let _server = site.start_server()?;
    place::write(&site.path("a.yaml"), FILE)?;
    let others = site.entry("spiffe://example.org/node", "spiffe://example.org/other", "unix:uid:5", &[])?;
    let apply = ["apply", "-f", "a.yaml", "-owner", "team", "-prune"];

    let dry = ends(site, &[&apply[..], &["-dry-run"]].concat(), 3)?;
    assert!(
        dry.stdout.ends_with(
            "3 to create, 0 to update, 0 to delete, 0 unchanged, 0 in conflict; nothing was changed\n"
        ),
        "{dry}"
    );
    assert_eq!(site.entry_ids()?.as_slice(), std::slice::from_ref(&others));
    let done = ends(site, &apply, 0)?;
    assert!(done.stdout.contains("+ entry team.web  # a.yaml:2:3\n"), "{done}");
    assert!(done.stdout.ends_with("3 created, 0 updated, 0 deleted, 0 unchanged, 0 failed\n"), "{done}");
    let again = ends(site, &apply, 0)?;
    assert_eq!(again.stdout, "0 created, 0 updated, 0 deleted, 3 unchanged, 0 failed\n", "{again}");
    let web = site.cli_json(&["entry", "show", "-entryID", "team.web"])?;
    let web = &web["entries"][0];
    assert_eq!((&web["hint"], web["x509_svid_ttl"].as_i64()), (&"true".into(), Some(60)), "{web}");
    assert_eq!(web["dns_names"][0], "b.test", "{web}");

    // What the server gives is what the files say: by export in both forms, and by the commands that print JSON.
    for form in ["yaml", "json"] {
        let exported = spire(site, &["export", "-output", form]).success()?.stdout;
        let name = format!("export.{form}");
        place::write(&site.path(&name), &exported)?;
        let same = ends(site, &["apply", "-dry-run", "-f", &name], 0)?;
        assert!(
            same.stdout.starts_with("0 to create, 0 to update, 0 to delete, 4 unchanged"),
            "{exported}{same}"
        );
    }
    place::write(&site.path("e.json"), &site.cli_json(&["entry", "show"])?.to_string())?;
    place::write(&site.path("f.json"), &site.cli_json(&["federation", "list"])?.to_string())?;
    let same = ends(site, &["apply", "-dry-run", "-f", "e.json", "-f", "f.json"], 0)?;
    assert!(same.stdout.starts_with("0 to create, 0 to update, 0 to delete, 4 unchanged"), "{same}");
    let only = spire(site, &["export", "-owner", "team"]).success()?.stdout;
    assert!(only.matches("entry_id: team.").count() == 2 && !only.contains("federation"), "{only}");

    // A change, something that goes, and what others own stays.
    let changed = FILE
        .replace("unix:gid:1000", "unix:gid:7")
        .replace("spiffe://example.org/db", "spiffe://example.org/db2");
    place::write(&site.path("a.yaml"), &changed)?;
    let done = ends(site, &apply, 0)?;
    assert!(done.stdout.contains("      selectors: -\"unix:gid:1000\" +\"unix:gid:7\"\n"), "{done}");
    assert!(done.stdout.ends_with("1 created, 1 updated, 1 deleted, 1 unchanged, 0 failed\n"), "{done}");
    assert!(site.entry_ids()?.contains(&others));

    // An item that fails has its place; a mistake changes nothing.
    let bad = changed.replace("federates_with: [other.test]", "federates_with: [unknown.test]");
    place::write(&site.path("a.yaml"), &bad)?;
    let failed = ends(site, &apply, 2)?;
    assert!(failed.stderr.starts_with("a.yaml:2:3: failed to update entry team.web (code: "), "{failed}");
    assert!(failed.stderr.contains("unknown.test"), "{failed}");
    place::write(&site.path("a.yaml"), &changed.replace("x509_svid_ttl", "x509_ttl"))?;
    let refused = ends(site, &apply, 1)?;
    assert_eq!(
        refused.stderr, "Error: nothing was changed:\na.yaml:6:3: unknown key \"x509_ttl\" of an entry\n",
        "{refused}"
    );

    // The JSON form says the same to programs.
    place::write(&site.path("a.yaml"), &changed.replace("x509_svid_ttl: 60", "x509_svid_ttl: 61"))?;
    let json = ends(site, &[&apply[..], &["-output", "json"]].concat(), 0)?;
    let lines: Vec<&str> = json.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{json}");
    assert!(lines[0].contains("\"x509_svid_ttl\":{\"from\":60,\"to\":61}"), "{json}");
    assert!(lines[1].contains("\"summary\":{") && lines[1].contains("\"updated\":1"), "{json}");
    relationships_go(site)
}

/// Relationships that no file has go where that is asked for.
fn relationships_go(site: &Site) -> Outcome {
    let third = FILE.split_once("---\n").map_or("", |(_, text)| text).replace("other.test", "third.test");
    place::write(&site.path("third.yaml"), &third)?;
    ends(site, &["apply", "-f", "third.yaml"], 0)?;
    let pruned = ends(site, &["apply", "-f", "a.yaml", "-owner", "team", "-prune", "-prune-federation"], 0)?;
    assert!(pruned.stdout.contains("- federation_relationship third.test\n"), "{pruned}");
    assert!(pruned.stdout.ends_with("0 created, 0 updated, 1 deleted, 3 unchanged, 0 failed\n"), "{pruned}");
    let left = site.cli_json(&["federation", "list"])?;
    let left: Vec<&str> = left["federation_relationships"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|relationship| relationship["trust_domain"].as_str())
        .collect();
    assert_eq!(left, ["other.test"]);
    Ok(())
}

fn entry_file(name: &str) -> String {
    format!(
        "entries:\n- spiffe_id: spiffe://example.org/{name}\n  parent_id: spiffe://example.org/node\n  \
         selectors: [unix:uid:1]\n"
    )
}

/// As the kubelet exchanges a ConfigMap: files are links into `..data`, which is a link to a folder.
fn exchange(volume: &Path, version: &str, files: &[(&str, &str)]) -> Result<()> {
    let folder = format!("..{version}");
    for (name, contents) in files {
        place::write(&volume.join(&folder).join(name), contents)?;
        let link = volume.join(name);
        if !link.is_symlink() {
            symlink(Path::new("..data").join(name), link).map_err(io)?;
        }
    }
    symlink(&folder, volume.join("..data_tmp")).map_err(io)?;
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).map_err(io)
}

fn io(error: std::io::Error) -> spire_testkit::Error {
    spire_testkit::Error::doing("exchanging a folder", error)
}

fn followed() -> Outcome {
    let site = Site::new()?;
    let volume = site.path("volume");
    exchange(&volume, "1", &[("a.yaml", &entry_file("one"))])?;
    let mut command = Command::new(programs::under_test().folder.join("spire"));
    let socket = site.server.socket();
    command.args(["apply", "-watch", text(&volume), "-owner", "gitops", "-prune", "-interval", "50ms"]);
    command.args(["-resync", "1s", "-socketPath", text(&socket)]).current_dir(site.folder());
    let follower = Daemon::spawn("spire apply -watch", command)?;

    // The server may come later.
    follower.wait_for(&["level=error", "msg=\"Not applied; the server keeps what it has\""], SOON)?;
    let _server = site.start_server()?;
    follower.wait_for(&["level=info", "msg=\"Applied\"", "created=1"], SOON)?;
    let shown = site.cli(&["entry", "show"])?.stdout;
    assert!(shown.contains("spiffe://example.org/one"), "{shown}");

    exchange(&volume, "2", &[("a.yaml", &entry_file("two"))])?;
    follower.wait_for(&["msg=\"Applied\"", "created=1", "deleted=1"], SOON)?;
    let shown = site.cli(&["entry", "show"])?.stdout;
    assert!(shown.contains("spiffe://example.org/two") && !shown.contains("/one"), "{shown}");

    // A broken file leaves what is; when it is whole again, work goes on.
    let mark = follower.mark();
    exchange(&volume, "3", &[("a.yaml", "entries:\n- spiffe_id: [\n")])?;
    follower.wait_after(mark, &["level=error", "msg=\"Not applied", "volume/a.yaml:3:1: "], SOON)?;
    let mark = follower.mark();
    exchange(&volume, "4", &[("a.yaml", &entry_file("two")), ("b.yaml", &entry_file("three"))])?;
    follower.wait_after(mark, &["msg=\"Applied\"", "created=1", "deleted=0", "unchanged=1"], SOON)?;

    // What somebody takes away comes back without a change of the files.
    let mark = follower.mark();
    let id = site.entry_of("spiffe://example.org/three")?;
    site.cli(&["entry", "delete", "-entryID", &id])?;
    follower.wait_after(mark, &["msg=\"Applied\"", "created=1", "unchanged=1"], SOON)?;
    Ok(())
}

/// Entries of the import that is cut off. More of them take longer than they show.
const IMPORTED: usize = 4_000;

fn resumed() -> Outcome {
    let site = Site::new()?;
    let mut server = site.start_server()?;
    let mut lines = String::new();
    for n in 0..IMPORTED {
        lines.push_str(&format!(
            "{{\"entries\":[{{\"spiffe_id\":\"spiffe://example.org/w/{n}\",\"parent_id\":\"spiffe://example.org/node\",\
             \"selectors\":[\"unix:uid:{n}\"]}}]}}\n"
        ));
    }
    place::write(&site.path("all.jsonl"), &lines)?;
    let mut command = Command::new(programs::under_test().folder.join("spire"));
    let socket = site.server.socket();
    command.args(["apply", "-f", "all.jsonl", "-socketPath", text(&socket)]).current_dir(site.folder());
    let mut import = Daemon::spawn("spire apply", command)?;
    // The server dies within the import, which says so; what it acknowledged is there.
    import.wait_for(&["+ entry spiffe://example.org/w/600"], SOON)?;
    server.kill()?;
    let status = import.wait_exit(SOON)?;
    let _server = site.start_server()?;
    let before = site.entry_ids()?.len();
    assert!(before >= 500, "{before}");
    // A machine that is quick enough has done it all.
    if before < IMPORTED {
        assert_eq!(status.code(), Some(1), "{}", import.error("cut off"));
        import.wait_for(&["Error: error creating entries: "], SOON)?;
    }
    let done = ends(&site, &["apply", "-quiet", "-f", "all.jsonl"], 0)?;
    let want = format!("{} created, 0 updated, 0 deleted, {before} unchanged, 0 failed\n", IMPORTED - before);
    assert_eq!(done.stdout, want, "{done}");
    let again = ends(&site, &["apply", "-quiet", "-f", "all.jsonl"], 0)?;
    assert_eq!(again.stdout, format!("0 created, 0 updated, 0 deleted, {IMPORTED} unchanged, 0 failed\n"));
    Ok(())
}
