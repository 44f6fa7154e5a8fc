//! The measured processes: a server and an agent in a folder of their own.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use crate::Set;
use crate::measure::{to_f64, until};

/// How long a start may take before the run is given up.
const START_MAX: Duration = Duration::from_secs(120);

/// A process that ends with this value.
pub(crate) struct Process {
    child: Child,
    /// From spawning until it answered.
    pub(crate) started_in: Duration,
}

impl Process {
    /// CPU time so far, user and system, all threads, to the nanosecond (its CPU-time clock, `clock_getcpuclockid(3)`).
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        Ok(Duration::from(clock_getcpuclockid(pid)?.now()?))
    }

    /// Resident memory, pages of the binary included, in KiB.
    pub(crate) fn memory(&self) -> Result<f64> {
        self.status("VmRSS:")
    }

    /// The most that it ever was.
    pub(crate) fn memory_peak(&self) -> Result<f64> {
        self.status("VmHWM:")
    }

    fn status(&self, name: &'static str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field =
            status.lines().find_map(|l| l.strip_prefix(name)?.trim_end_matches("kB").trim().parse().ok());
        Ok(to_f64(field.context(name)?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Asked to stop, as an operator would; killed where it does not.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(15) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder with a server, and perhaps an agent.
pub(crate) struct Site {
    set: Set,
    folder: tempfile::TempDir,
    pub(crate) port: u16,
    /// How to connect to PostgreSQL; without, the data is in a file of the folder.
    postgres: Option<String>,
}

impl Site {
    /// An empty folder and a free port.
    pub(crate) fn new(set: Set) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("spire-bench-").tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Self { set, folder, port, postgres: None })
    }

    /// As [`Site::new`], with the server's data on PostgreSQL.
    pub(crate) fn on_postgres(set: Set, connection_string: String) -> Result<Self> {
        Ok(Self { postgres: Some(connection_string), ..Self::new(set)? })
    }

    /// The binaries that it runs.
    pub(crate) fn set(&self) -> Set {
        self.set.clone()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The server's API socket.
    pub(crate) fn server_socket(&self) -> PathBuf {
        self.path("server/api.sock")
    }

    /// The server's database, where it is a file.
    pub(crate) fn database(&self) -> PathBuf {
        self.path("server-data/datastore.sqlite3")
    }

    /// The agent's workload socket.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.path("agent/api.sock")
    }

    /// Starts the server and waits until it answers.
    pub(crate) async fn server(&self) -> Result<Process> {
        let data = self.path("server-data");
        fs::create_dir_all(&data)?;
        let (kind, connection) = match &self.postgres {
            Some(connection) => ("postgres", connection.clone()),
            None => ("sqlite3", self.database().display().to_string()),
        };
        let connection = connection.replace('\\', "\\\\").replace('"', "\\\"");
        let config = format!(
            r#"server {{
    bind_address = "127.0.0.1"
    bind_port = {port}
    trust_domain = "example.org"
    data_dir = "{data}"
    socket_path = "{socket}"
    log_level = "WARN"
    ratelimit {{
        attestation = false
        signing = false
    }}
}}
plugins {{
    DataStore "sql" {{
        plugin_data {{
            database_type = "{kind}"
            connection_string = "{connection}"
        }}
    }}
    KeyManager "disk" {{
        plugin_data {{
            keys_path = "{data}/keys.json"
        }}
    }}
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
}}
"#,
            port = self.port,
            data = data.display(),
            socket = self.server_socket().display(),
        );
        self.start("spire-server", &config, &[], &self.server_socket()).await
    }

    /// Starts the agent with a join token and waits until its socket answers.
    pub(crate) async fn agent(&self, token: &str) -> Result<Process> {
        let data = self.path("agent-data");
        fs::create_dir_all(&data)?;
        let config = format!(
            r#"agent {{
    data_dir = "{data}"
    log_level = "WARN"
    server_address = "127.0.0.1"
    server_port = {port}
    socket_path = "{socket}"
    trust_domain = "example.org"
    insecure_bootstrap = true
}}
plugins {{
    KeyManager "memory" {{
        plugin_data {{}}
    }}
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
    WorkloadAttestor "unix" {{
        plugin_data {{}}
    }}
}}
"#,
            port = self.port,
            data = data.display(),
            socket = self.agent_socket().display(),
        );
        self.start("spire-agent", &config, &["-joinToken", token], &self.agent_socket()).await
    }

    /// Starts the OIDC discovery provider on a key in a file, and waits until it has it.
    pub(crate) async fn provider(&self) -> Result<Process> {
        let bundle = self.path("bundle.json");
        fs::write(&bundle, OIDC_BUNDLE)?;
        let file = self.path("provider.conf");
        let config = format!(
            "log_level = \"warn\"\ndomains = [\"localhost\"]\ninsecure_addr = \"127.0.0.1:{}\"\nfile {{ path = \"{}\" }}\n",
            self.port,
            bundle.display()
        );
        fs::write(&file, config)?;
        let binary = "oidc-discovery-provider";
        let program = fs::canonicalize(self.set.folder.join(binary))
            .with_context(|| format!("{}/{binary}", self.set.folder.display()))?;
        let log = fs::File::create(self.path("provider.log"))?;
        let spawned = Instant::now();
        let child = Command::new(program)
            .arg("-config")
            .arg(&file)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context(binary)?;
        let mut process = Process { child, started_in: Duration::ZERO };
        until(binary, START_MAX, || async { has_keys(self.port) }).await?;
        process.started_in = spawned.elapsed();
        Ok(process)
    }

    async fn start(&self, binary: &str, config: &str, more: &[&str], socket: &Path) -> Result<Process> {
        let file = self.path(&format!("{binary}.conf"));
        fs::write(&file, config)?;
        let program = fs::canonicalize(self.set.folder.join(binary))
            .with_context(|| format!("{}/{binary}", self.set.folder.display()))?;
        let log = fs::File::create(self.path(&format!("{binary}.log")))?;
        let spawned = Instant::now();
        let child = Command::new(program)
            .arg("run")
            .arg("-config")
            .arg(&file)
            .args(more)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| binary.to_owned())?;
        let mut process = Process { child, started_in: Duration::ZERO };
        let waited = until(binary, START_MAX, || crate::api::is_serving(socket)).await;
        if waited.is_err() {
            let log = fs::read_to_string(self.path(&format!("{binary}.log"))).unwrap_or_default();
            bail!("{binary} did not start:\n{log}");
        }
        process.started_in = spawned.elapsed();
        Ok(process)
    }
}

/// A bundle with one key of JWT-SVIDs.
const OIDC_BUNDLE: &str = r#"{"keys":[{"use":"jwt-svid","kty":"EC","kid":"C6vs25welZOx6WksNYfbMfiw9l96pMnD","crv":"P-256","x":"ngLYQnlfF6GsojUwqtcEE3WgTNG2RUlsGhK73RNEl5k","y":"tKbiDSUSsQ3F1P7wteeHNXIcU-cx6CgSbroeQrQHTLM"}]}"#;

/// Whether a provider serves its keys.
fn has_keys(port: u16) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET /keys HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.contains(" 200 OK"))
    };
    ask().unwrap_or(false)
}
