//! Attestors that answer, fail and hang.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use spire_net::uds::UnixEndpoint;
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

#[tokio::test]
async fn a_failure_is_counted_by_its_code() {
    let metrics = Arc::new(spire_telemetry::InMem::new());
    let fails: Arc<dyn WorkloadAttestor> = Arc::new(FixedAttestor::failing("x"));
    let attestation = WorkloadAttestation::new(vec![fails], metrics.clone());
    // This process there is.
    let pid = i32::try_from(std::process::id()).unwrap();
    attestation.attest_pid(pid).await.unwrap_err();
    for name in [
        "workload_api.workload_attestor;attestor=x;status=Internal",
        "workload_api.workload_attestation;status=Internal",
    ] {
        assert_eq!(metrics.series(name).map(|series| series.count), Some(1), "{name}");
    }
}

/// Where the process of the next test connects to.
const CALLER_SOCKET: &str = "SPIRE_TEST_CALLER_SOCKET";

/// What that process runs; alone it only checks that it is not it.
#[test]
fn connects_where_told() {
    let Some(socket) = std::env::var_os(CALLER_SOCKET) else {
        assert!(std::env::var(CALLER_SOCKET).is_err());
        return;
    };
    let _connection = std::os::unix::net::UnixStream::connect(socket).unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Ends the caller before it answers.
struct Deadly(Mutex<Child>);

#[async_trait]
impl WorkloadAttestor for Deadly {
    fn name(&self) -> &'static str {
        "deadly"
    }

    async fn attest(&self, _: i32) -> plugins::Result<Vec<Selector>> {
        let mut caller = self.0.lock();
        caller.kill().unwrap();
        caller.wait().unwrap();
        Ok(vec![Selector::new("test", "a").unwrap()])
    }
}

#[tokio::test]
async fn a_caller_that_exits_meanwhile_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let mut incoming = UnixEndpoint::workload(&path).bind().unwrap();
    let caller = Command::new(std::env::current_exe().unwrap())
        .args(["runtime::workload::tests::connects_where_told", "--exact", "--nocapture"])
        .env(CALLER_SOCKET, &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let connection = incoming.next().await.unwrap().unwrap();
    let attests = WorkloadAttestation::new(vec![Arc::new(FixedAttestor::new(&["a"]))], Arc::new(NoMetrics));
    assert_eq!(attests.attest(connection.peer()).await.unwrap().len(), 1);
    let kills = WorkloadAttestation::new(vec![Arc::new(Deadly(Mutex::new(caller)))], Arc::new(NoMetrics));
    let error = kills.attest(connection.peer()).await.unwrap_err();
    assert_eq!(error.to_string(), "could not verify existence of the original caller: caller exited");
}
