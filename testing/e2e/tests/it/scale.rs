//! The simulator of docs/performance.md in short: its figures mean nothing here, but everything it does has to work.

use std::time::Duration;

use spire_testkit::database::{Options, Postgres};
use spire_testkit::{Run, place};

use crate::harness::site::text;
use crate::harness::{Case, Need, Outcome, programs};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "scale::the_simulator_in_short", needs: &[Need::Bench], run: on_sqlite },
        Case {
            name: "scale::the_simulator_on_postgres",
            needs: &[Need::Bench, Need::Postgres],
            run: on_postgres,
        },
    ]
}

fn on_sqlite() -> Outcome {
    simulated(&[])
}

fn on_postgres() -> Outcome {
    let database = Postgres::start(&Options::default())?;
    let connection_string = database.database("simulated")?;
    simulated(&["-postgres", &connection_string])?;
    let left =
        database.sql("simulated", "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'spire_bench%'")?;
    assert_eq!(left.trim(), "0", "schemas are dropped");
    Ok(())
}

fn simulated(store: &[&str]) -> Outcome {
    let folder = place::folder()?;
    let (plots, set) =
        (folder.path().join("plots"), format!("ours={}", programs::under_test().folder.display()));
    let sizes = ["-entries", "100,1000", "-clients", "10", "-seconds", "3", "-period", "1", "-idle", "1"];
    let done = Run::new(programs::bench())
        .args(&["simulate", &set, "-changes", "8", "-plots", text(&plots)])
        .args(&sizes)
        .args(store)
        .within(folder.path())
        .at_most(Duration::from_secs(400))
        .success()?;
    for shown in ["    100 ", "   1000 ", "10 agents joined", "syncs ", "renewals ", "failed: 0"] {
        assert!(done.stdout.contains(shown), "no {shown:?}: {done}");
    }
    for plot in ["ready.svg", "memory.svg", "change.svg", "page.svg", "idle.svg", "fleet.svg"] {
        let svg = place::read(&plots.join(plot))?;
        assert!(
            svg.starts_with("<svg ") && svg.contains("<polyline") && !svg.contains("NaN"),
            "{plot}: {svg}"
        );
    }
    // What it does not understand it says, before anything is started.
    let refused = Run::new(programs::bench()).args(&["simulate", &set, "-entries", "1000,100"]).output()?;
    assert!(refused.exits_with(1)?.stdout.contains("usage: spire-bench simulate"));
    Ok(())
}
