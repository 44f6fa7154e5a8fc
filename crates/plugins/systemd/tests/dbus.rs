//! The attestor on a real D-Bus daemon, with a systemd of the test's own behind it. Where the daemon is missing the
//! tests are ignored, and fail with `CI=true`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use spire_core::spiffe::TrustDomain;
use spire_ports::plugins::catalog::{AgentCatalog, Configuration};
use spire_ports::plugins::{PluginType, WorkloadAttestor};
use spire_testkit::{Daemon, place};
use zbus::{Connection, ObjectPath, OwnedObjectPath};

/// How a test ends.
type Outcome = Result<(), Failed>;
/// A test by name.
type Case = (&'static str, fn() -> Outcome);

/// Set in the process that runs the tests: where their bus listens.
const BUS: &str = "SPIRE_TEST_BUS";
const SOON: Duration = Duration::from_secs(40);

const CASES: &[Case] = &[
    ("units_are_named", units_are_named),
    ("processes_without_a_unit_are_told", without_unit),
    ("properties_must_be_text", not_text),
    ("a_bus_without_systemd_is_told", without_systemd),
    ("a_bus_that_is_absent_or_begins_anew_is_borne", restarts),
];

/// The plugin finds the bus by an environment variable, which a process cannot change safely: the tests run in a child.
fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    if std::env::var_os(BUS).is_some() {
        // They share one address.
        args.test_threads = Some(1);
        return libtest_mimic::run(&args, trials()).exit_code();
    }
    let child = || -> spire_testkit::Result<bool> {
        let folder = place::folder()?;
        let bus = folder.path().join("bus");
        let this = std::env::current_exe().map_err(|error| spire_testkit::Error::doing("exe", error))?;
        let status = Command::new(this)
            .args(std::env::args_os().skip(1))
            .env(BUS, &bus)
            .env("DBUS_SYSTEM_BUS_ADDRESS", address(&bus))
            .status()
            .map_err(|error| spire_testkit::Error::doing("tests", error))?;
        Ok(status.success())
    };
    if child().unwrap() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn trials() -> Vec<Trial> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = !std::env::split_paths(&path).any(|folder| folder.join("dbus-daemon").is_file());
    let due = std::env::var("CI").is_ok_and(|value| value == "true");
    let trial = |(name, run): &Case| match missing {
        false => Trial::test(*name, *run),
        true => {
            let why = "no dbus-daemon in PATH; the Debian package is dbus";
            Trial::test(*name, move || Err(why.into())).with_ignored_flag(!due)
        }
    };
    CASES.iter().map(trial).collect()
}

fn address(path: &Path) -> String {
    format!("unix:path={}", path.display())
}

fn bus_path() -> PathBuf {
    std::env::var_os(BUS).unwrap_or_default().into()
}

/// A bus, until the value is dropped. It starts no services by itself, as the session's would.
fn start_bus() -> spire_testkit::Result<Daemon> {
    let path = bus_path();
    let file = path.with_extension("conf");
    let policy =
        "<allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/>";
    let text = format!(
        "<busconfig><listen>{}</listen><auth>EXTERNAL</auth><policy context=\"default\">{policy}</policy></busconfig>\n",
        address(&path)
    );
    place::write(&file, &text)?;
    let file = format!("--config-file={}", file.display());
    let args = [&file, "--nofork", "--nopidfile", "--print-address=1"];
    let daemon = Daemon::start("dbus-daemon", Path::new("dbus-daemon"), &args, Path::new("/"))?;
    daemon.wait_for(&["unix:path="], SOON)?;
    Ok(daemon)
}

/// What systemd says of processes.
struct Manager;

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum SystemdError {
    #[zbus(error)]
    ZBus(zbus::Error),
    #[zbus(name = "NoUnitForPID")]
    NoUnitForPid(String),
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    #[zbus(name = "GetUnitByPID")]
    fn unit_by_pid(&self, pid: u32) -> Result<OwnedObjectPath, SystemdError> {
        let name = match pid {
            11 => "web_2eservice",
            12 => "odd_2eservice",
            _ => {
                let text = format!("PID {pid} does not belong to any loaded unit.");
                return Err(SystemdError::NoUnitForPid(text));
            }
        };
        let path = format!("/org/freedesktop/systemd1/unit/{name}");
        Ok(ObjectPath::try_from(path)?.into())
    }
}

struct Unit;

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    fn id(&self) -> String {
        "web.service".to_owned()
    }
    #[zbus(property)]
    fn fragment_path(&self) -> String {
        "/lib/systemd/system/web.service".to_owned()
    }
}

/// A unit as systemd never has one.
struct OddUnit;

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl OddUnit {
    #[zbus(property)]
    fn id(&self) -> u32 {
        7
    }
}

async fn start_systemd() -> zbus::Result<Connection> {
    let path = |name: &str| format!("/org/freedesktop/systemd1{name}");
    zbus::connection::Builder::system()
        .serve_at(path(""), Manager)
        .serve_at(path("/unit/web_2eservice"), Unit)
        .serve_at(path("/unit/odd_2eservice"), OddUnit)
        .name("org.freedesktop.systemd1")
        .build()
        .await
}

async fn attestor() -> Arc<dyn WorkloadAttestor> {
    let mut catalog = AgentCatalog::default();
    spire_plugins_systemd::register_agent(&mut catalog);
    let builtin = catalog.workload_attestors.find("systemd").unwrap();
    assert!(!builtin.configurable);
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let configuration = Configuration::new((PluginType::WorkloadAttestor, "systemd"), trust_domain, None);
    (builtin.make)(configuration).await.unwrap()
}

async fn selectors(attestor: &dyn WorkloadAttestor, pid: i32) -> Result<Vec<String>, String> {
    match attestor.attest(pid).await {
        Ok(selectors) => Ok(selectors.iter().map(ToString::to_string).collect()),
        Err(error) => Err(error.to_string()),
    }
}

/// Runs an asynchronous test. Its bound is far above what it takes.
fn run(test: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(120), test).await.map_err(|_| "the test does not end")?
    })
}

const WEB: [&str; 2] = ["systemd:id:web.service", "systemd:fragment_path:/lib/systemd/system/web.service"];

fn units_are_named() -> Outcome {
    run(async {
        let _bus = start_bus()?;
        let _systemd = start_systemd().await?;
        let attestor = attestor().await;
        assert_eq!(selectors(&*attestor, 11).await?, WEB);
        // Many at once share the connection.
        let all: Vec<_> = (0..50)
            .map(|_| {
                let attestor = Arc::clone(&attestor);
                tokio::spawn(async move { selectors(&*attestor, 11).await })
            })
            .collect();
        for one in all {
            assert_eq!(one.await??, WEB);
        }
        Ok(())
    })
}

fn without_unit() -> Outcome {
    run(async {
        let _bus = start_bus()?;
        let _systemd = start_systemd().await?;
        let attestor = attestor().await;
        assert_eq!(
            selectors(&*attestor, 1234).await.unwrap_err(),
            "workloadattestor(systemd): failed to get unit by pid 1234: PID 1234 does not belong to any loaded unit."
        );
        assert_eq!(
            selectors(&*attestor, -1).await.unwrap_err(),
            "workloadattestor(systemd): invalid value for PID: -1"
        );
        Ok(())
    })
}

fn not_text() -> Outcome {
    run(async {
        let _bus = start_bus()?;
        let _systemd = start_systemd().await?;
        let error = selectors(&*attestor().await, 12).await.unwrap_err();
        let expected = "workloadattestor(systemd): Returned value for Id was not a string: ";
        assert!(error.starts_with(expected), "{error}");
        Ok(())
    })
}

fn without_systemd() -> Outcome {
    run(async {
        let _bus = start_bus()?;
        let error = selectors(&*attestor().await, 11).await.unwrap_err();
        let expected = "workloadattestor(systemd): failed to get unit by pid 11: The name org.freedesktop.systemd1 was not \
                        provided by any .service files";
        assert_eq!(error, expected);
        Ok(())
    })
}

fn restarts() -> Outcome {
    run(async {
        let attestor = attestor().await;
        let error = selectors(&*attestor, 11).await.unwrap_err();
        assert!(error.starts_with("workloadattestor(systemd): failed to open dbus connection: "), "{error}");
        for _ in 0..2 {
            let mut bus = start_bus()?;
            let systemd = start_systemd().await?;
            assert_eq!(selectors(&*attestor, 11).await?, WEB);
            bus.kill()?;
            systemd.closed().await;
        }
        Ok(())
    })
}
