//! Attestors that answer, fail and hang.

use async_trait::async_trait;
use spire_ports::observe::NoMetrics;

use super::*;
use crate::fixture::FixedAttestor;

/// Never answers.
struct Stuck;

#[async_trait]
impl WorkloadAttestor for Stuck {
    fn name(&self) -> &'static str {
        "stuck"
    }

    async fn attest(&self, _: i32) -> plugins::Result<Vec<Selector>> {
        std::future::pending().await
    }
}

async fn ask(attestors: Vec<Arc<dyn WorkloadAttestor>>) -> Result<Vec<String>, String> {
    let found = WorkloadAttestation::new(attestors, Arc::new(NoMetrics)).selectors(1).await;
    found.map(|s| s.iter().map(ToString::to_string).collect()).map_err(|e| e.to_string())
}

#[tokio::test]
async fn selectors_of_all_attestors_are_one_set() {
    let attestors: Vec<Arc<dyn WorkloadAttestor>> =
        vec![Arc::new(FixedAttestor::new(&["b", "a"])), Arc::new(FixedAttestor::new(&["c", "a"]))];
    assert_eq!(ask(attestors).await.unwrap(), ["test:a", "test:b", "test:c"]);
}

#[tokio::test]
async fn one_failure_is_survived_and_all_failing_is_a_failure() {
    let works: Arc<dyn WorkloadAttestor> = Arc::new(FixedAttestor::new(&["a"]));
    let fails: Arc<dyn WorkloadAttestor> = Arc::new(FixedAttestor::failing("x"));
    assert_eq!(ask(vec![works, Arc::clone(&fails)]).await.unwrap(), ["test:a"]);
    assert_eq!(
        ask(vec![fails]).await.unwrap_err(),
        "workload attestor \"x\" failed: workloadattestor(x): boom"
    );
}

#[tokio::test(start_paused = true)]
async fn attestors_that_hang_are_not_waited_for() {
    let attestors: Vec<Arc<dyn WorkloadAttestor>> =
        vec![Arc::new(Stuck), Arc::new(FixedAttestor::new(&["a"]))];
    assert_eq!(ask(attestors).await.unwrap_err(), "context deadline exceeded");
}
