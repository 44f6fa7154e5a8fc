//! The end-to-end tests: the programs as users start them, with real peers. docs/testing.md says how to run them.

mod agents;
mod apis;
mod apply;
mod attestors;
mod backup;
mod broker_objects;
mod clock;
mod containers;
mod crash;
mod databases;
mod delegate;
mod dev;
mod explain;
mod faults;
mod federation;
mod federation_web;
mod forced_rotation;
mod harness;
mod hostile;
mod interop;
mod kubernetes;
mod mariadb;
mod namespaces;
mod nested;
mod oidc;
mod peers;
mod plugins;
mod policy;
mod rebootstrap;
mod refusals;
mod reload;
mod rotation;
mod scale;
mod scone;
mod sds;
mod telemetry;
mod tpm;
mod walk_000;
mod walk_001;
mod walk_003;

use std::process::ExitCode;

use harness::case::Case;
use harness::peer;
use libtest_mimic::Arguments;

/// Tests mostly wait for other programs, so more run at once than there are cores.
const THREADS: usize = 4;

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    if args.test_threads.is_none() {
        args.test_threads = Some(THREADS);
    }
    let cases: Vec<Case> = [
        agents::cases(),
        apis::cases(),
        apply::cases(),
        attestors::cases(),
        backup::cases(),
        broker_objects::cases(),
        clock::cases(),
        containers::cases(),
        crash::cases(),
        databases::cases(),
        delegate::cases(),
        dev::cases(),
        explain::cases(),
        faults::cases(),
        federation::cases(),
        federation_web::cases(),
        forced_rotation::cases(),
        hostile::cases(),
        interop::cases(),
        kubernetes::cases(),
        mariadb::cases(),
        namespaces::cases(),
        nested::cases(),
        oidc::cases(),
        peers::cases(),
        policy::cases(),
        rebootstrap::cases(),
        plugins::cases(),
        refusals::cases(),
        reload::cases(),
        rotation::cases(),
        scale::cases(),
        scone::cases(),
        sds::cases(),
        telemetry::cases(),
        tpm::cases(),
        walk_000::cases(),
        walk_001::cases(),
        walk_003::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !args.list {
        peer::prepare_wanted(&cases, &args);
    }
    let trials = cases.into_iter().map(Case::trial).collect();
    libtest_mimic::run(&args, trials).exit_code()
}
