//! Disks that are full or cannot be written, each in a mount of the test's own.

use spire_testkit::{Run, place};

use crate::harness::site::{answers, attestations, own_uid, text};
use crate::harness::{Case, Need, Outcome, SOON, Site};

pub(crate) fn cases() -> Vec<Case> {
    const NEEDS: &[Need] = &[Need::Namespaces];
    vec![
        Case { name: "disk::a_full_one_fails_writes_and_keeps_what_was", needs: NEEDS, run: full_disk },
        Case { name: "disk::an_agent_outlives_a_full_one", needs: NEEDS, run: full_agent_disk },
        Case {
            name: "disk::a_server_does_not_start_on_a_read_only_one",
            needs: NEEDS,
            run: read_only_server,
        },
        Case { name: "disk::an_agent_does_not_start_on_a_read_only_one", needs: NEEDS, run: read_only_agent },
    ]
}

const AGENT: &str = "spiffe://example.org/node";
const WORKLOAD: &str = "spiffe://example.org/w";

fn mount(folder: &std::path::Path, options: &str) -> Outcome {
    std::fs::create_dir_all(folder)?;
    Run::new("mount").args(&["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder).success()?;
    Ok(())
}

/// Fills what is left of a file system with one file.
fn fill(folder: &std::path::Path) -> Outcome {
    let output = Run::new("dd")
        .args(&["if=/dev/zero", "bs=4096"])
        .arg(format!("of={}/filler", text(folder)))
        .output()?;
    assert!(output.stderr.contains("No space left on device"), "{output}");
    Ok(())
}

fn full_disk() -> Outcome {
    let site = Site::new()?;
    let data = site.server.data();
    mount(&data, "size=8m,mode=0750")?;
    let mut server = site.start_server()?;
    let kept = site.entry(AGENT, WORKLOAD, "unix:uid:1", &[])?;
    let bundle = site.cli(&["bundle", "show"])?.stdout;
    let keys = place::read(&data.join("keys.json"))?;
    fill(&data)?;
    let refused = refused_entry(&site)?;
    assert!(refused.stderr.contains("full"), "{refused}");
    // What can be read is served still.
    assert_eq!(site.entry_ids()?.first(), Some(&kept));
    assert_eq!(place::read(&data.join("keys.json"))?, keys);
    server.kill()?;
    std::fs::remove_file(data.join("filler"))?;
    let _server = site.start_server()?;
    assert!(site.entry_ids()?.contains(&kept));
    assert_eq!(site.cli(&["bundle", "show"])?.stdout, bundle);
    site.entry(AGENT, "spiffe://example.org/later", "unix:uid:1", &[])?;
    Ok(())
}

/// Makes entries until one is refused: the write-ahead log may have had room for some.
fn refused_entry(site: &Site) -> Result<spire_testkit::Output, libtest_mimic::Failed> {
    for number in 0..3000 {
        let id = format!("spiffe://example.org/filling/{number}");
        let create = ["entry", "create", "-parentID", AGENT, "-spiffeID", &id, "-selector", "unix:uid:1"];
        let output = site.command(&create).output()?;
        if output.code != 0 {
            return Ok(output);
        }
    }
    Err("a full disk took all entries".into())
}

/// A running agent goes on. Whether a new one starts or says what is full, its identity survives.
fn full_agent_disk() -> Outcome {
    let site = Site::new()?;
    let data = site.agent.data();
    mount(&data, "size=1m,mode=0750")?;
    let _server = site.start_server()?;
    let mut agent = site.join(AGENT)?;
    site.entry(AGENT, WORKLOAD, &own_uid(), &[])?;
    site.wait_identities(&[WORKLOAD])?;
    fill(&data)?;
    site.entry(AGENT, "spiffe://example.org/later", &own_uid(), &[])?;
    site.wait_identities(&[WORKLOAD, "spiffe://example.org/later"])?;
    let keys = place::read(&data.join("keys.json"))?;
    agent.kill()?;
    let mut crowded = site.spawn_agent(&[])?;
    if answers(&mut crowded, &site.agent.socket()).is_ok() {
        site.wait_identities(&[WORKLOAD, "spiffe://example.org/later"])?;
    } else {
        assert_eq!(crowded.wait_exit(SOON)?.code(), Some(1));
        crowded.wait_for(&["level=error", "no space left on device"], SOON)?;
    }
    drop(crowded);
    assert_eq!(place::read(&data.join("keys.json"))?, keys);
    std::fs::remove_file(data.join("filler"))?;
    let mut agent = site.start_agent(&[])?;
    site.wait_identities(&[WORKLOAD, "spiffe://example.org/later"])?;
    assert_eq!(attestations(&agent), 0);
    assert_eq!(agent.stop()?, 0);
    Ok(())
}

fn read_only_server() -> Outcome {
    let site = Site::new()?;
    mount(&site.server.data(), "ro")?;
    let mut server = site.spawn_server()?;
    let status = server.wait_exit(SOON)?;
    assert_eq!(status.code(), Some(1), "{}", server.error("it ended"));
    server.wait_for(&["level=error"], SOON)?;
    let said = server.lines().join("\n");
    assert!(
        said.contains("read-only") || said.contains("readonly") || said.contains("unable to open"),
        "{said}"
    );
    assert!(!site.server.socket().exists());
    Ok(())
}

fn read_only_agent() -> Outcome {
    let site = Site::new()?;
    let _server = site.start_server()?;
    mount(&site.agent.data(), "ro")?;
    let token = site.token(AGENT)?;
    let mut agent = site.spawn_agent(&["-joinToken", &token])?;
    let status = agent.wait_exit(SOON)?;
    assert_eq!(status.code(), Some(1), "{}", agent.error("it ended"));
    agent.wait_for(&["read-only file system"], SOON)?;
    Ok(())
}
