//! Servers below servers: what one level signs is good at every other, through rotations and outages.

use std::time::Duration;

use spire_testkit::{Result, place, wait};

use crate::harness::level::never_failed;
use crate::harness::peer::Peer;
use crate::harness::programs::{self, Programs};
use crate::harness::site::own_uid;
use crate::harness::{Case, Level, Need, Outcome, SOON, svid};

pub(crate) fn cases() -> Vec<Case> {
    const GO: &[Need] = &[Need::Peer(Peer::Go), Need::Openssl];
    const MIXED: &[Need] = &[Need::Ours, Need::Reference, Need::Peer(Peer::Go), Need::Openssl];
    vec![
        Case { name: "nested::three_levels", needs: GO, run: three_levels },
        Case { name: "nested::intermediates_rotate", needs: GO, run: intermediates_rotate },
        Case { name: "nested::an_outage_upstream", needs: GO, run: outage },
        Case { name: "nested::around_the_reference", needs: MIXED, run: around_the_reference },
        Case { name: "nested::between_the_reference", needs: MIXED, run: between_the_reference },
    ]
}

/// A rotation's turn comes in this time on a busy machine.
const A_TURN: Duration = Duration::from_secs(200);

fn three_levels() -> Outcome {
    let ours = programs::under_test();
    everything_is_good_everywhere(ours, ours, ours)
}

fn around_the_reference() -> Outcome {
    let theirs = programs::theirs()?;
    everything_is_good_everywhere(programs::under_test(), theirs, programs::under_test())
}

fn between_the_reference() -> Outcome {
    let theirs = programs::theirs()?;
    everything_is_good_everywhere(theirs, programs::under_test(), theirs)
}

fn everything_is_good_everywhere(
    root: &'static Programs,
    middle: &'static Programs,
    leaf: &'static Programs,
) -> Outcome {
    let root = Level::root(root, &[])?;
    let middle = Level::below(&root, "middle", middle, &[])?;
    let leaf = Level::below(&middle, "leaf", leaf, &[])?;
    let levels = [&root, &middle, &leaf];
    let roots: Vec<String> =
        levels.iter().map(|l| Ok(l.site.cli(&["bundle", "show"])?.stdout)).collect::<Result<_>>()?;
    assert!(roots.iter().all(|bundle| *bundle == roots[0]), "{roots:#?}");

    // Any workload with any other, both ways.
    for (upper, lower) in [(&root, &leaf), (&root, &middle), (&middle, &leaf)] {
        for (serving, calling) in [(upper, lower), (lower, upper)] {
            let service = serving.workload(&format!("to-{}", calling.name))?;
            let client = calling.workload(&format!("of-{}", serving.name))?;
            let (_service, address) = service.serve(&client)?;
            let reply = client.call(&address, &service)?;
            assert_eq!(reply.stdout, format!("reply hello to {}\n", client.id));
        }
    }
    // The chain says how it came about.
    std::fs::create_dir(leaf.site.path("out"))?;
    leaf.site.cli(&["x509", "mint", "-spiffeID", "spiffe://example.org/minted", "-write", "out"])?;
    let chain = place::read(&leaf.site.path("out/svid.pem"))?;
    assert_eq!(svid::certificates(&chain), 3, "the SVID, the leaf's authority, the middle's");
    let (_, authority) = chain.split_at(chain.find("-----END").unwrap_or_default() + 25);
    let subject = svid::x509_field(authority, "-subject")?;
    assert!(subject.contains("DOWNSTREAM-"), "{subject}");

    // Tokens of each level are good at each other, once the poll has brought the keys down.
    for signing in levels {
        let id = format!("spiffe://example.org/{}-token", signing.name);
        let minted = signing.site.cli(&["jwt", "mint", "-spiffeID", &id, "-audience", "a"])?.stdout;
        for judging in levels {
            let validate = ["api", "validate", "jwt", "-audience", "a", "-svid", minted.trim()];
            wait::until(&format!("{} accepts {id}", judging.name), SOON, || {
                let verdict = judging.site.workload(&validate).output().ok()?;
                verdict.stdout.contains(&id).then_some(())
            })?;
        }
    }
    Ok(())
}

/// The authorities of two levels are replaced on schedule; workloads that hold theirs go on.
fn intermediates_rotate() -> Outcome {
    let ours = programs::under_test();
    let root = Level::root(ours, &[])?;
    // Looked at each ten seconds. The leaf's turn may come up to that much before the middle's, and it asks again at the
    // next look, which must come before the end: so a sixth must be longer than twice that.
    let middle = Level::below(&root, "middle", ours, &["ca_ttl = \"180s\""])?;
    let leaf = Level::below(&middle, "leaf", ours, &["ca_ttl = \"180s\""])?;
    let (top, bottom) = (root.workload("top")?, leaf.workload("bottom")?);
    let (_top, address) = top.serve(&bottom)?;
    let ping = bottom.spawn("ping", &[&address, &top.id])?;
    let (first_middle, first_leaf) = (middle.authority("x509", "active")?, leaf.authority("x509", "active")?);
    ping.wait_for(&["signed ", &first_leaf, &first_middle], SOON)?;
    for level in [&middle, &leaf] {
        level.server.wait_for(&["X509 CA prepared", "slot=B"], A_TURN)?;
        level.server.wait_for(&["X509 CA activated", "slot=B"], A_TURN)?;
    }
    assert_ne!(middle.authority("x509", "active")?, first_middle);
    // The workload's certificate follows, through both.
    wait::until("a chain of new authorities only", A_TURN, || {
        let signed = crate::harness::level::last_signed(&ping);
        (!signed.contains(&first_leaf) && !signed.contains(&first_middle)).then_some(())
    })
    .map_err(|error| ping.error(&error.to_string()))?;
    for level in [&root, &middle, &leaf] {
        assert_eq!(level.root_count()?, 1, "intermediates are in no bundle");
    }
    never_failed(&ping);
    Ok(())
}

/// The root server is away for a while: those below go on, and take up with it when it is back.
fn outage() -> Outcome {
    let ours = programs::under_test();
    let mut root = Level::root(ours, &[])?;
    let middle = Level::below(&root, "middle", ours, &[])?;
    middle.server.wait_for(&["Following the bundle of the upstream authority"], SOON)?;
    root.server.stop()?;
    let mark = middle.server.mark();
    middle.server.wait_after(mark, &["Failed to fetch bundle while polling"], SOON)?;
    // All that the middle can do by itself it does.
    let id = "spiffe://example.org/during";
    middle.site.entry(&middle.agent_id(), id, &own_uid(), &[])?;
    middle.site.wait_identities(&[id])?;
    let refused = middle.site.command(&["localauthority", "x509", "prepare"]).output()?.exits_with(1)?;
    assert!(refused.stderr.contains("upstreamauthority(spire)"), "{refused}");
    root.server = root.site.start_server()?;
    let prepared = root.prepare("x509")?;
    middle.wait_roots(2)?;
    let upstream = root.authority("x509", "active")?;
    assert_ne!(prepared, upstream);
    // The connection comes back by itself, also for authorities.
    wait::until("an authority from above", SOON, || {
        let output = middle.site.command(&["localauthority", "x509", "prepare"]).output().ok()?;
        (output.code == 0).then_some(())
    })?;
    let shown = middle.site.cli_json(&["localauthority", "x509", "show"])?;
    assert_eq!(shown["prepared"]["upstream_authority_subject_key_id"], upstream.as_str());
    Ok(())
}
