//! Plugins that misbehave, from their start to their end. Started with `plugin` as argument, this program is the
//! plugin, made with the SDK; shell scripts play those that are none.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use spire_core::spiffe::{SpiffeId, TrustDomain};
use spire_plugin_host::{Limits, PluginHost};
use spire_plugin_sdk::wire::agent::workloadattestor::v1::workload_attestor_server::{
    WorkloadAttestor as Service, WorkloadAttestorServer,
};
use spire_plugin_sdk::wire::agent::workloadattestor::v1::{
    AttestReferenceRequest, AttestReferenceResponse, AttestRequest, AttestResponse,
};
use spire_plugin_sdk::{
    Configure, CoreConfiguration, Kind, Plugin, Request, Response, Status, Validation, async_trait,
};
use spire_ports::plugins::external::{ExternalPlugin, ExternalPlugins, Launch, Side};
use spire_ports::plugins::{Error, ErrorKind, Host, PluginType, WorkloadAttestor, WorkloadReference};

fn main() -> ExitCode {
    if let Some(code) = spire_plugin_host::run_if_launcher() {
        return code;
    }
    if std::env::args().nth(1).as_deref() == Some("plugin") {
        if let Some(starts) = std::env::args().nth(2) {
            // A file with as many bytes as there were starts.
            let file = std::fs::OpenOptions::new().append(true).open(starts);
            file.and_then(|mut file| file.write_all(b".")).expect("a count");
        }
        let attestor = Arc::new(Attestor::default());
        let service = WorkloadAttestorServer::from_arc(attestor.clone());
        return Plugin::new(Kind::WorkloadAttestor).configure(attestor).service(service).run();
    }
    let trial = |name, test: fn() -> Result<(), Failed>| Trial::test(name, test);
    let trials = vec![
        trial("programs_that_are_no_plugins", || run(programs_that_are_no_plugins())),
        trial("a_child_that_is_slow_is_killed", || run(a_child_that_is_slow_is_killed())),
        trial("checksums", || run(checksums())),
        trial("another_type_is_not_bound", || run(another_type_is_not_bound())),
        trial("configuration_and_validation", || run(configuration_and_validation())),
        trial("references", || run(references())),
        trial("a_crash_in_a_call", || run(a_crash_in_a_call())),
        trial("a_kill", || run(a_kill())),
        trial("calls_that_hang", || run(calls_that_hang())),
        trial("calls_that_hang_together", || run(calls_that_hang_together())),
        trial("a_child_that_is_stopped", || run(a_child_that_is_stopped())),
        trial("closing_ends_the_child", || run(closing_ends_the_child())),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn run(test: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(test)
}

/// Answers with its process ID and its configuration. The process ID that it is asked of says what it does.
#[derive(Default)]
struct Attestor(RwLock<String>);

const CRASH: i32 = -2;
const HANG: i32 = -3;
const FAIL: i32 = -4;

#[async_trait]
impl Service for Attestor {
    async fn attest(&self, request: Request<AttestRequest>) -> Result<Response<AttestResponse>, Status> {
        match request.into_inner().pid {
            CRASH => std::process::exit(3),
            HANG => std::future::pending::<()>().await,
            FAIL => return Err(Status::resource_exhausted("probe: too much")),
            _ => {}
        }
        let value = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let selector_values = vec![std::process::id().to_string(), format!("configured {value}")];
        Ok(Response::new(AttestResponse { selector_values }))
    }

    async fn attest_reference(
        &self,
        request: Request<AttestReferenceRequest>,
    ) -> Result<Response<AttestReferenceResponse>, Status> {
        let broker = request.metadata().get("spire-agent-broker-caller-id");
        let broker = broker.map(|id| id.to_str().unwrap_or_default().to_owned());
        let reference = request.into_inner().reference.unwrap_or_default();
        if reference.type_url != "t/named" {
            return Err(Status::unimplemented("no"));
        }
        let named = String::from_utf8_lossy(&reference.value).into_owned();
        let selector_values = vec![named, broker.unwrap_or_default()];
        Ok(Response::new(AttestReferenceResponse { selector_values }))
    }
}

#[async_trait]
impl Configure for Attestor {
    async fn configure(&self, core: CoreConfiguration, hcl: &str) -> Result<(), Status> {
        if hcl == "bad" {
            return Err(Status::invalid_argument("that is bad"));
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = format!("{hcl} for {}", core.trust_domain);
        Ok(())
    }

    async fn validate(&self, _: CoreConfiguration, hcl: &str) -> Result<Validation, Status> {
        match hcl {
            "bad" => Err(Status::invalid_argument("that is bad")),
            "odd" => Ok(Validation { valid: true, notes: vec!["that is odd".to_owned()] }),
            _ => Ok(Validation { valid: true, notes: Vec::new() }),
        }
    }
}

fn limits() -> Limits {
    Limits {
        call: Duration::from_secs(2),
        health_interval: Duration::from_millis(200),
        health: Duration::from_secs(1),
        restart_min: Duration::from_millis(50),
        ..Limits::default()
    }
}

fn launch(path: &str, args: &[&str]) -> Launch {
    Launch {
        side: Side::Agent,
        kind: PluginType::WorkloadAttestor,
        name: "probe".to_owned(),
        path: path.to_owned(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        checksum: String::new(),
        trust_domain: TrustDomain::parse("example.org").expect("a trust domain"),
        host: Host::none(),
    }
}

/// This program as a plugin.
fn probe() -> Result<Launch, Failed> {
    let this = std::env::current_exe()?;
    Ok(launch(this.to_str().ok_or("a path that is no text")?, &["plugin"]))
}

async fn started(limits: Limits) -> Result<(Arc<dyn ExternalPlugin>, Arc<dyn WorkloadAttestor>), Failed> {
    started_from(probe()?, limits).await
}

async fn started_from(
    launch: Launch,
    limits: Limits,
) -> Result<(Arc<dyn ExternalPlugin>, Arc<dyn WorkloadAttestor>), Failed> {
    let plugin = PluginHost::new(limits).launch(launch).await?;
    plugin.configure("one".to_owned()).await?;
    let attestor = plugin.clone().workload_attestor().ok_or("it is no workload attestor")?;
    Ok((plugin, attestor))
}

async fn refusal(launch: Launch, limits: Limits) -> Result<String, Failed> {
    match PluginHost::new(limits).launch(launch).await {
        Ok(_) => Err("it was started".into()),
        Err(text) => Ok(text),
    }
}

/// The child's process ID and what it was configured with.
async fn ask(attestor: &dyn WorkloadAttestor) -> Result<(String, String), Error> {
    let answer = attestor.attest(1).await?;
    Ok((answer[0].value().to_owned(), answer[1].value().to_owned()))
}

/// Asks until there is an answer of another child than `old`. Each failure until then must be said clearly.
async fn recovered(attestor: &dyn WorkloadAttestor, old: &str) -> Result<String, Failed> {
    for _ in 0..2000 {
        match ask(attestor).await {
            Ok((pid, configured)) if pid != old => {
                assert_eq!(configured, "configured one for example.org");
                return Ok(pid);
            }
            Ok(_) => {}
            Err(error) => assert!(
                matches!(error.kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded),
                "{error:?}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err("no other child answers".into())
}

async fn programs_that_are_no_plugins() -> Result<(), Failed> {
    let script = |text| launch("/bin/sh", &["-c", text]);
    for (launch, expected) in [
        (
            launch("/nonexistent/plugin", &[]),
            "failed to launch plugin: fork/exec /nonexistent/plugin: no such file or directory",
        ),
        (script("echo hello"), "failed to launch plugin: Unrecognized remote plugin message: hello"),
        (
            script("exit 1"),
            "failed to launch plugin: Unrecognized remote plugin message: \nFailed to read any lines from plugin's stdout",
        ),
        (
            script("echo '1|2|unix|/x|grpc'; sleep 100"),
            "failed to launch plugin: incompatible API version with plugin. Plugin version: 2, Client versions: [1]",
        ),
        (
            script("head -c 100000 /dev/zero | tr '\\0' x; sleep 100"),
            "failed to launch plugin: Unrecognized remote plugin message: xxx",
        ),
        (
            script("echo '1|1|unix|/nonexistent/socket|grpc'; sleep 100"),
            "failed to launch plugin: transport error",
        ),
    ] {
        let text = refusal(launch, limits()).await?;
        assert!(text.starts_with(expected), "{text}");
    }
    Ok(())
}

async fn a_child_that_is_slow_is_killed() -> Result<(), Failed> {
    let folder = std::env::temp_dir().join(format!("spire-slow-{}", std::process::id()));
    let script = format!("echo $$ > {}; exec sleep 1000", folder.display());
    let short = Limits { start: Duration::from_millis(500), ..limits() };
    let text = refusal(launch("/bin/sh", &["-c", &script]), short).await?;
    assert_eq!(text, "failed to launch plugin: timeout while waiting for plugin to start");
    let pid = std::fs::read_to_string(&folder)?;
    std::fs::remove_file(&folder)?;
    gone(pid.trim()).await
}

/// Waits until there is no such process.
async fn gone(pid: &str) -> Result<(), Failed> {
    for _ in 0..2000 {
        if !std::path::Path::new(&format!("/proc/{pid}")).exists() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(format!("process {pid} is still there").into())
}

async fn checksums() -> Result<(), Failed> {
    for (checksum, expected) in [
        ("no hex".to_owned(), "checksum is not a valid hex string"),
        ("00ff".to_owned(), "expected checksum of length 64; got 4"),
        ("0".repeat(64), "failed to launch plugin: checksums did not match"),
    ] {
        assert_eq!(refusal(Launch { checksum, ..probe()? }, limits()).await?, expected);
    }
    let program = std::fs::read(std::env::current_exe()?)?;
    let digest = spire_core::pki::HashAlgorithm::Sha256.digest(&program);
    let checksum = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let plugin = PluginHost::new(limits()).launch(Launch { checksum, ..probe()? }).await?;
    plugin.close().await;
    Ok(())
}

async fn another_type_is_not_bound() -> Result<(), Failed> {
    let (plugin, _) = started(limits()).await?;
    assert!(plugin.clone().svid_store().is_none());
    let expected =
        ["spire.service.common.config.v1.Config", "spire.plugin.agent.workloadattestor.v1.WorkloadAttestor"];
    assert_eq!(plugin.services(), expected);
    plugin.close().await;
    Ok(())
}

async fn configuration_and_validation() -> Result<(), Failed> {
    let (plugin, attestor) = started(limits()).await?;
    let refused = plugin.configure("bad".to_owned()).await;
    assert_eq!(refused, Err("rpc error: code = InvalidArgument desc = that is bad".to_owned()));
    assert_eq!(ask(&*attestor).await?.1, "configured one for example.org");
    plugin.configure("two".to_owned()).await?;
    assert_eq!(ask(&*attestor).await?.1, "configured two for example.org");
    for (data, notes) in [
        ("good", Vec::new()),
        ("odd", vec!["that is odd".to_owned()]),
        ("bad", vec!["rpc error: code = InvalidArgument desc = that is bad".to_owned()]),
    ] {
        assert_eq!(plugin.validate(data.to_owned()).await, notes);
    }
    assert_eq!(ask(&*attestor).await?.1, "configured two for example.org");
    let failed = attestor.attest(FAIL).await.expect_err("a failure");
    assert_eq!(failed.kind, ErrorKind::ResourceExhausted);
    assert_eq!(failed.to_string(), "workloadattestor(probe): too much");
    plugin.close().await;
    Ok(())
}

/// What a plugin knows itself it answers, with the broker that asks; a process it is asked for by its ID.
async fn references() -> Result<(), Failed> {
    let (plugin, attestor) = started(limits()).await?;
    let ask = async |type_url: &str, pid| {
        let broker = SpiffeId::parse("spiffe://example.org/broker").ok();
        let (type_url, value) = (type_url.to_owned(), "pod".into());
        attestor.attest_reference(&WorkloadReference { type_url, value, pid, broker }).await
    };
    let named: Vec<String> = ask("t/named", None).await?.iter().map(ToString::to_string).collect();
    assert_eq!(named, ["probe:pod", "probe:spiffe://example.org/broker"]);
    assert_eq!(ask("t/pid", Some(1)).await?[1].value(), "configured one for example.org");
    assert_eq!(ask("t/other", None).await.expect_err("a failure").kind, ErrorKind::Unimplemented);
    plugin.close().await;
    Ok(())
}

async fn a_crash_in_a_call() -> Result<(), Failed> {
    let (plugin, attestor) = started(limits()).await?;
    let mut old = ask(&*attestor).await?.0;
    for _ in 0..2 {
        let failed = attestor.attest(CRASH).await.expect_err("a failure");
        assert_eq!(failed.kind, ErrorKind::Unavailable, "{failed}");
        old = recovered(&*attestor, &old).await?;
    }
    plugin.close().await;
    Ok(())
}

async fn a_kill() -> Result<(), Failed> {
    let (plugin, attestor) = started(limits()).await?;
    let old = ask(&*attestor).await?.0;
    signal(&old, rustix::process::Signal::KILL)?;
    recovered(&*attestor, &old).await?;
    plugin.close().await;
    Ok(())
}

async fn calls_that_hang() -> Result<(), Failed> {
    let short = Limits { call: Duration::from_millis(300), ..limits() };
    let (plugin, attestor) = started(short).await?;
    let old = ask(&*attestor).await?.0;
    for _ in 0..3 {
        let failed = attestor.attest(HANG).await.expect_err("a failure");
        assert_eq!(failed.kind, ErrorKind::DeadlineExceeded, "{failed}");
    }
    recovered(&*attestor, &old).await?;
    plugin.close().await;
    Ok(())
}

/// More calls than it takes to give a child up end together. Those beyond are no fault of the next child.
async fn calls_that_hang_together() -> Result<(), Failed> {
    let short = Limits { call: Duration::from_millis(300), ..limits() };
    let starts = tempfile::NamedTempFile::new()?;
    let mut launch = probe()?;
    launch.args.push(starts.path().display().to_string());
    let (plugin, attestor) = started_from(launch, short).await?;
    let old = ask(&*attestor).await?.0;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let attestor = attestor.clone();
        calls.spawn(async move { attestor.attest(HANG).await });
    }
    for call in calls.join_all().await {
        let failed = call.expect_err("a failure");
        assert!(matches!(failed.kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded), "{failed}");
    }
    let next = recovered(&*attestor, &old).await?;
    // A child that was given up would be gone before it answers so often.
    for _ in 0..50 {
        assert_eq!(ask(&*attestor).await?.0, next);
    }
    assert_eq!(std::fs::read(starts.path())?.len(), 2);
    plugin.close().await;
    Ok(())
}

async fn a_child_that_is_stopped() -> Result<(), Failed> {
    let (plugin, attestor) = started(limits()).await?;
    let old = ask(&*attestor).await?.0;
    signal(&old, rustix::process::Signal::STOP)?;
    recovered(&*attestor, &old).await?;
    gone(&old).await?;
    plugin.close().await;
    Ok(())
}

async fn closing_ends_the_child() -> Result<(), Failed> {
    let (plugin, attestor) = started(limits()).await?;
    let pid = ask(&*attestor).await?.0;
    plugin.close().await;
    gone(&pid).await?;
    let failed = attestor.attest(1).await.expect_err("a failure");
    assert_eq!(failed.to_string(), "workloadattestor(probe): the plugin was unloaded");
    Ok(())
}

fn signal(pid: &str, signal: rustix::process::Signal) -> Result<(), Failed> {
    let pid = rustix::process::Pid::from_raw(pid.parse()?).ok_or("no process ID")?;
    Ok(rustix::process::kill_process(pid, signal)?)
}
