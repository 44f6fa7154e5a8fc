//! Authorities that are replaced by hand, under workloads that never stop to use theirs.

use spire_testkit::Result;

use crate::harness::level::{last_signed, never_failed, wait_not_signed_by};
use crate::harness::peer::Peer;
use crate::harness::programs::{self, Programs};
use crate::harness::{Case, Level, Need, Outcome, SOON};

pub(crate) fn cases() -> Vec<Case> {
    const GO: &[Need] = &[Need::Peer(Peer::Go)];
    const MIXED: &[Need] = &[Need::Ours, Need::Reference, Need::Peer(Peer::Go)];
    vec![
        Case { name: "forced_rotation::x509", needs: GO, run: x509 },
        Case { name: "forced_rotation::jwt", needs: GO, run: jwt },
        Case {
            name: "forced_rotation::upstream_on_disk",
            needs: &[Need::Peer(Peer::Go), Need::Openssl],
            run: upstream_on_disk,
        },
        Case { name: "forced_rotation::nested", needs: GO, run: nested },
        Case { name: "forced_rotation::below_the_reference", needs: MIXED, run: below_the_reference },
        Case { name: "forced_rotation::above_the_reference", needs: MIXED, run: above_the_reference },
    ]
}

/// Of one server: its workloads, its agent and itself get certificates of the new authority, and the old one goes.
fn x509() -> Outcome {
    let level = Level::root(programs::under_test(), &[])?;
    let (service, client) = (level.workload("service")?, level.workload("client")?);
    let (_service, address) = service.serve(&client)?;
    let ping = client.spawn("ping", &[&address, &service.id])?;
    let old = level.authority("x509", "active")?;
    ping.wait_for(&["signed ", &old], SOON)?;
    let agent_before = level.site.attested_agent()?;

    let new = level.prepare("x509")?;
    level.wait_roots(2)?;
    let refused = level.site.command(&["localauthority", "x509", "taint", "-authorityID", &new]).output()?;
    assert!(refused.exits_with(1)?.stderr.contains("only Old local authorities can be tainted"));
    wait_trusted(&level, 2)?;
    level.change("x509", "activate", &new)?;
    assert_eq!(level.authority("x509", "old")?, old);
    assert!(last_signed(&ping).contains(&old), "what is signed stays in use");
    level.change("x509", "taint", &old)?;
    wait_not_signed_by(&ping, &old)?;
    assert!(last_signed(&ping).matches(&new).count() == 2, "{}", last_signed(&ping));
    level.server.wait_for(&["Server SVID signed using a tainted authority, forcing rotation"], SOON)?;
    level.agent.wait_for(&["Agent SVID is tainted by a root authority, forcing rotation"], SOON)?;
    let serial = agent_before["x509svid_serial_number"].clone();
    spire_testkit::wait::until("a new SVID of the agent", SOON, || {
        (level.site.attested_agent().ok()?["x509svid_serial_number"] != serial).then_some(())
    })?;

    level.change("x509", "revoke", &old)?;
    wait_trusted(&level, 1)?;
    // New workloads join in, and old ones go on.
    let (other, late) = (level.workload("other")?, level.workload("late")?);
    let (_other, address) = other.serve(&late)?;
    late.call(&address, &other)?;
    never_failed(&ping);
    Ok(())
}

/// Waits until workloads are given so many authorities.
fn wait_trusted(level: &Level, count: usize) -> Result<()> {
    let watcher = level.workload(&format!("watcher-{count}"))?;
    watcher.spawn("watch", &[])?.wait_for(&["x509 ", &format!("roots {count} ")], SOON).map(drop)
}

/// Tokens of a tainted key leave the agent's cache, and are refused once the key is revoked.
fn jwt() -> Outcome {
    let level = Level::root(programs::under_test(), &[])?;
    let workload = level.workload("w")?;
    let tokens = workload.spawn("tokens", &["a"])?;
    let old = level.authority("jwt", "active")?;
    tokens.wait_for(&["signed ", &old], SOON)?;
    let minted = level.site.cli(&["jwt", "mint", "-spiffeID", "spiffe://example.org/m", "-audience", "a"])?;
    let minted = minted.stdout.trim().to_owned();
    let judged =
        || level.site.workload(&["api", "validate", "jwt", "-audience", "a", "-svid", &minted]).output();
    judged()?.exits_with(0)?;

    let new = level.prepare("jwt")?;
    let watcher = level.workload("watcher")?;
    let watch = watcher.spawn("watch", &[])?;
    watch.wait_for(&["jwt example.org keys 2"], SOON)?;
    level.change("jwt", "activate", &new)?;
    assert!(last_signed(&tokens).contains(&old), "kept while it is young");
    level.change("jwt", "taint", &old)?;
    wait_not_signed_by(&tokens, &old)?;
    assert!(last_signed(&tokens).ends_with(&new), "{}", last_signed(&tokens));
    judged()?.exits_with(0)?;
    let mark = watch.mark();
    level.change("jwt", "revoke", &old)?;
    watch.wait_after(mark, &["jwt example.org keys 1"], SOON)?;
    judged()?.exits_with(1)?;
    never_failed(&tokens);
    Ok(())
}

/// The authority in files that signed the server's is replaced, tainted and revoked.
fn upstream_on_disk() -> Outcome {
    let level = Level::on_disk(programs::under_test())?;
    let (service, client) = (level.workload("service")?, level.workload("client")?);
    let (_service, address) = service.serve(&client)?;
    let ping = client.spawn("ping", &[&address, &service.id])?;
    let upstream = || -> Result<String> {
        let shown = level.site.cli_json(&["localauthority", "x509", "show"])?;
        Ok(shown["active"]["upstream_authority_subject_key_id"].as_str().unwrap_or_default().to_owned())
    };
    let old = upstream()?;
    ping.wait_for(&["signed ", &old], SOON)?;

    level.new_upstream()?;
    let prepared = level.prepare("x509")?;
    level.wait_roots(2)?;
    wait_trusted(&level, 2)?;
    level.change("x509", "activate", &prepared)?;
    let new = upstream()?;
    assert_ne!(new, old);
    level.site.command(&["upstreamauthority", "taint", "-subjectKeyID", &new]).output()?.exits_with(1)?;
    level.site.cli(&["upstreamauthority", "taint", "-subjectKeyID", &old])?;
    wait_not_signed_by(&ping, &old)?;
    level.site.cli(&["upstreamauthority", "revoke", "-subjectKeyID", &old])?;
    wait_trusted(&level, 1)?;
    never_failed(&ping);
    Ok(())
}

fn nested() -> Outcome {
    let ours = programs::under_test();
    down_three_levels(ours, ours, ours)
}

fn below_the_reference() -> Outcome {
    let (ours, theirs) = both()?;
    down_three_levels(theirs, ours, theirs)
}

fn above_the_reference() -> Outcome {
    let (ours, theirs) = both()?;
    down_three_levels(ours, theirs, ours)
}

fn both() -> Result<(&'static Programs, &'static Programs)> {
    Ok((programs::under_test(), programs::theirs()?))
}

/// The root's authority is replaced under two servers and workloads at either end.
fn down_three_levels(root: &'static Programs, middle: &'static Programs, leaf: &'static Programs) -> Outcome {
    let root = Level::root(root, &[])?;
    let middle = Level::below(&root, "middle", middle, &[])?;
    let leaf = Level::below(&middle, "leaf", leaf, &[])?;
    let (top, bottom) = (root.workload("top")?, leaf.workload("bottom")?);
    let (_top, top_address) = top.serve(&bottom)?;
    let (_bottom, bottom_address) = bottom.serve(&top)?;
    let up = bottom.spawn("ping", &[&top_address, &top.id])?;
    let down = top.spawn("ping", &[&bottom_address, &bottom.id])?;
    let old = root.authority("x509", "active")?;
    up.wait_for(&["signed ", &old], SOON)?;
    down.wait_for(&["signed ", &old], SOON)?;

    let new = root.prepare("x509")?;
    for level in [&root, &middle, &leaf] {
        level.wait_roots(2)?;
        wait_trusted(level, 2)?;
    }
    root.change("x509", "activate", &new)?;
    root.change("x509", "taint", &old)?;
    // Level by level: each leaves the tainted root before it tells those below.
    for level in [&middle, &leaf] {
        level.server.wait_for(&["Current root CA is signed by a tainted upstream authority"], SOON)?;
        level.server.wait_for(&["X509 CA activated", "slot=B"], SOON)?;
    }
    for ping in [&up, &down] {
        wait_not_signed_by(ping, &old)?;
    }
    root.change("x509", "revoke", &old)?;
    for level in [&root, &middle, &leaf] {
        level.wait_roots(1)?;
        wait_trusted(level, 1)?;
    }
    let (other, late) = (leaf.workload("other")?, middle.workload("late")?);
    let (_other, address) = other.serve(&late)?;
    late.call(&address, &other)?;
    never_failed(&up);
    never_failed(&down);
    Ok(())
}
