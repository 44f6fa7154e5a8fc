//! What authorising a call costs. As a test it shows that the ways which it measures let their callers in; with
//! `SPIRE_COST=1000000 cargo test --release -p spire-server cost -- --nocapture` it says how long they take.

use std::hint::black_box;

use super::*;
use crate::api::caller::{
    AdminCaller, AgentCaller, Allowed, AnyCaller, DownstreamCaller, LocalCaller, Proof as _,
};

fn rounds() -> u32 {
    std::env::var("SPIRE_COST").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(100)
}

async fn measured(world: &World, name: &str, peer: &Peer, allowed: Allowed) {
    let rounds = rounds();
    let began = Instant::now();
    for _ in 0..rounds {
        black_box(world.api.authorizer.authorize(black_box(peer), allowed).await).unwrap();
    }
    #[expect(clippy::print_stdout, reason = "what it is for")]
    {
        println!("{name}: {:.0} ns", began.elapsed().as_nanos() as f64 / f64::from(rounds));
    }
}

#[tokio::test]
async fn authorising_a_call() {
    let world = World::with(|deps| deps.node_info_staleness = Duration::from_secs(3600)).await;
    let agent = world.attested(AGENT).await;
    world.entry("down", AGENT, "/down", |e| e.downstream = true).await;
    measured(&world, "anybody", &anonymous(), AnyCaller::ALLOWED).await;
    measured(&world, "local", &local(), LocalCaller::ALLOWED).await;
    measured(&world, "administrator by configuration", &tls("/admin", "1"), AdminCaller::ALLOWED).await;
    measured(&world, "agent whose row was just read", &agent, AgentCaller::ALLOWED).await;
    measured(&world, "downstream, by a datastore in memory", &tls("/down", "1"), DownstreamCaller::ALLOWED)
        .await;
    let fresh = World::new().await;
    let agent = fresh.attested(AGENT).await;
    measured(&fresh, "agent, by a datastore in memory", &agent, AgentCaller::ALLOWED).await;
}
