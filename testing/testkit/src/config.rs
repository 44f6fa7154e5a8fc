//! Configuration files of a server and an agent for a test, written as an operator would.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A server's configuration. Everything lies below one folder.
#[derive(Clone, Debug)]
pub struct Server {
    /// Folder of `server/` (data) and `server.sock`.
    pub folder: PathBuf,
    /// TCP port on 127.0.0.1.
    pub port: u16,
    /// Trust domain name.
    pub trust_domain: String,
    /// Further lines of the `server` block, such as `ca_ttl = "60s"`.
    pub lines: Vec<String>,
    /// `disk` or `memory`.
    pub key_manager: &'static str,
    /// The data of the datastore, one setting a line; SQLite in the data folder unless it is said.
    pub datastore: Option<String>,
    /// Further plugins, as text.
    pub plugins: String,
    /// Further sections, such as `telemetry { … }`, as text.
    pub sections: String,
}

impl Server {
    /// A server in `folder` with keys on disk, which may sign and attest as fast as it can.
    #[must_use]
    pub fn new(folder: &Path, port: u16, trust_domain: &str) -> Self {
        Self {
            folder: folder.to_owned(),
            port,
            trust_domain: trust_domain.to_owned(),
            lines: vec!["ratelimit { attestation = false }".to_owned()],
            key_manager: "disk",
            datastore: None,
            plugins: String::new(),
            sections: String::new(),
        }
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.join("server")
    }

    /// The socket of the server's API.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("server.sock")
    }

    /// The file's text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "server {{\n    bind_address = \"127.0.0.1\"\n    bind_port = {}\n    trust_domain = \"{}\"\n    \
             data_dir = \"{data}\"\n    socket_path = \"{}\"\n    log_level = \"DEBUG\"\n",
            self.port,
            self.trust_domain,
            self.socket().display(),
            data = self.data().display(),
        );
        for line in &self.lines {
            let _ = writeln!(text, "    {line}");
        }
        let keys = match self.key_manager {
            "disk" => format!("keys_path = \"{}/keys.json\"", self.data().display()),
            _ => String::new(),
        };
        let datastore = self.datastore.clone().unwrap_or_else(|| {
            format!(
                "database_type = \"sqlite3\"\n            connection_string = \"{}/datastore.sqlite3\"",
                self.data().display()
            )
        });
        let _ = write!(
            text,
            "}}\n\nplugins {{\n    DataStore \"sql\" {{\n        plugin_data {{\n            {datastore}\n        }}\n    }}\n    \
             KeyManager \"{kind}\" {{\n        plugin_data {{\n            {keys}\n        }}\n    }}\n    \
             NodeAttestor \"join_token\" {{\n        plugin_data {{\n        }}\n    }}\n{more}}}\n{sections}",
            kind = self.key_manager,
            more = self.plugins,
            sections = self.sections,
        );
        text
    }
}

/// An agent's configuration. Everything lies below one folder.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Folder of `agent/` (data) and `agent.sock`.
    pub folder: PathBuf,
    /// The server's TCP port on 127.0.0.1.
    pub server_port: u16,
    /// Trust domain name.
    pub trust_domain: String,
    /// Further lines of the `agent` block.
    pub lines: Vec<String>,
    /// Lines of the unix attestor's data.
    pub unix: String,
    /// The node attestor's name, and its settings.
    pub attestor: (&'static str, String),
    /// Further plugins, as text.
    pub plugins: String,
    /// Further sections, such as `telemetry { … }`, as text.
    pub sections: String,
}

impl Agent {
    /// An agent in `folder` that trusts whatever server it meets first, with keys on disk.
    #[must_use]
    pub fn new(folder: &Path, server_port: u16, trust_domain: &str) -> Self {
        Self {
            folder: folder.to_owned(),
            server_port,
            trust_domain: trust_domain.to_owned(),
            lines: vec!["insecure_bootstrap = true".to_owned()],
            unix: "discover_workload_path = true".to_owned(),
            attestor: ("join_token", String::new()),
            plugins: String::new(),
            sections: String::new(),
        }
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.join("agent")
    }

    /// The socket of the Workload API.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// The file's text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "agent {{\n    data_dir = \"{data}\"\n    server_address = \"127.0.0.1\"\n    server_port = {}\n    \
             trust_domain = \"{}\"\n    socket_path = \"{}\"\n    log_level = \"DEBUG\"\n",
            self.server_port,
            self.trust_domain,
            self.socket().display(),
            data = self.data().display(),
        );
        for line in &self.lines {
            let _ = writeln!(text, "    {line}");
        }
        let _ = write!(
            text,
            "}}\n\nplugins {{\n    KeyManager \"disk\" {{\n        plugin_data {{\n            directory = \
             \"{data}\"\n        }}\n    }}\n    NodeAttestor \"{attestor}\" {{\n        plugin_data {{\n{settings}        \
             }}\n    }}\n    WorkloadAttestor \"unix\" {{\n        plugin_data {{\n            {unix}\n        }}\n    \
             }}\n{plugins}}}\n{sections}",
            data = self.data().display(),
            unix = self.unix,
            attestor = self.attestor.0,
            settings = self.attestor.1,
            plugins = self.plugins,
            sections = self.sections,
        );
        text
    }
}
