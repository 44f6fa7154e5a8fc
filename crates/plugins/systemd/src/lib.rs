//! WorkloadAttestor `systemd`: which unit a process belongs to, as systemd says over D-Bus
//! (pkg/agent/plugin/workloadattestor/systemd).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use spire_core::spiffe::Selector;
use spire_ports::plugins::catalog::AgentCatalog;
use spire_ports::plugins::{Error, ErrorKind, PluginType, Result, WorkloadAttestor};
use tokio::sync::Mutex;
use zbus::connection::Builder;
use zbus::{Connection, DBusError as _, OwnedObjectPath, OwnedVariant};

const NAME: &str = "systemd";
/// systemd's names on the bus.
const DESTINATION: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// How long the bus or systemd may take for one answer. They take milliseconds; a workload waits for this.
const ANSWER_AT_MOST: Duration = Duration::from_secs(10);

/// Adds the plugins of the agent.
pub fn register_agent(catalog: &mut AgentCatalog) {
    catalog.workload_attestors.add_fixed(NAME, |_| async {
        let systemd: Arc<dyn WorkloadAttestor> = Arc::new(Systemd::default());
        Ok(systemd)
    });
}

/// Why systemd said nothing of a process. Texts are the reference's.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("invalid value for PID: {0}")]
    Pid(i32),
    #[error("failed to open dbus connection: {}", text(.0))]
    Open(zbus::Error),
    #[error("failed to open dbus connection: no answer")]
    Silent,
    #[error("failed to get unit by pid {pid}: {}", text(.error))]
    Unit { pid: u32, error: zbus::Error },
    #[error("error getting value for {name}: {}", text(.error))]
    Property { name: &'static str, error: zbus::Error },
    #[error("Returned value for {0} was not a string: {1}")]
    NotText(&'static str, String),
}

/// What the other side said, without the name of the error, as the reference shows it.
fn text(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(_, Some(description), _) => description.clone(),
        zbus::Error::FDO(error) => error.description().map_or_else(|| error.to_string(), str::to_owned),
        error => error.to_string(),
    }
}

/// The attestor, with its connection to the system's bus, which is made when it is needed first.
#[derive(Default)]
struct Systemd {
    connection: Mutex<Option<Connection>>,
}

#[async_trait]
impl WorkloadAttestor for Systemd {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, pid: i32) -> Result<Vec<Selector>> {
        let failed = |message| Error::new(ErrorKind::Internal, (PluginType::WorkloadAttestor, NAME), message);
        let (id, fragment_path) = self.unit_of(pid).await.map_err(|error| failed(error.to_string()))?;
        [format!("id:{id}"), format!("fragment_path:{fragment_path}")]
            .into_iter()
            .map(|value| Selector::new(NAME, value).map_err(|error| failed(error.to_string())))
            .collect()
    }
}

impl Systemd {
    /// The unit's name and the file that it was read from; the latter is empty for units that have none.
    async fn unit_of(&self, pid: i32) -> std::result::Result<(String, String), Failure> {
        let pid = u32::try_from(pid).map_err(|_| Failure::Pid(pid))?;
        let connection = self.connection().await?;
        let unit: OwnedObjectPath = async {
            let reply =
                connection.call_method(Some(DESTINATION), MANAGER_PATH, Some(MANAGER), "GetUnitByPID", &pid);
            reply.await?.body().deserialize()
        }
        .await
        .map_err(|error| Failure::Unit { pid, error })?;
        Ok((property(&connection, &unit, "Id").await?, property(&connection, &unit, "FragmentPath").await?))
    }

    /// The connection, made anew where the bus ended the last.
    async fn connection(&self) -> std::result::Result<Connection, Failure> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = kept.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        // A bus that takes connections and says nothing must not hold up those who come later.
        let connecting = Builder::system().method_timeout(ANSWER_AT_MOST).build();
        let connection = tokio::time::timeout(ANSWER_AT_MOST, connecting)
            .await
            .map_err(|_| Failure::Silent)?
            .map_err(Failure::Open)?;
        Ok(kept.insert(connection).clone())
    }
}

/// A property of a unit, which must be text.
async fn property(
    connection: &Connection,
    unit: &OwnedObjectPath,
    name: &'static str,
) -> std::result::Result<String, Failure> {
    let value: OwnedVariant = async {
        let asked = (UNIT, name);
        let reply = connection.call_method(Some(DESTINATION), unit, Some(PROPERTIES), "Get", &asked);
        reply.await?.body().deserialize()
    }
    .await
    .map_err(|error| Failure::Property { name, error })?;
    let shown = format!("{value:?}");
    String::try_from(value).map_err(|_| Failure::NotText(name, shown))
}
