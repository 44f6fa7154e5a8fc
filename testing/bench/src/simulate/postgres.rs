//! Fills a server's database on PostgreSQL. Each server of a run has a schema of its own, which is dropped after it; the rows are made
//! where they are stored.

use anyhow::{Context, Result, bail, ensure};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config, NoTls};

use super::fill::{AGENT_ENTRIES, EXPIRY, EXPIRY_TEXT};

/// Rows of one statement: enough to be quick, and progress for whoever watches the server.
const ROWS: usize = 100_000;

/// A database in which the simulator may make schemas.
#[derive(Clone, Debug)]
pub(super) struct Postgres {
    /// `key=value` pairs, as the server under test gets them too.
    connection_string: String,
}

impl Postgres {
    /// Checks what the command line says.
    pub(super) fn new(connection_string: &str) -> Result<Self> {
        if connection_string.contains("://") {
            bail!("-postgres takes key=value pairs: a schema is added to them");
        }
        connection_string.parse::<Config>().context("-postgres")?;
        Ok(Self { connection_string: connection_string.to_owned() })
    }

    async fn connect(&self) -> Result<Client> {
        let config: Config = self.connection_string.parse()?;
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let client = match config.get_hosts().first().context("-postgres names no host")? {
            Host::Tcp(host) => {
                let (client, connection) =
                    config.connect_raw(TcpStream::connect((host.as_str(), port)).await?, NoTls).await?;
                tokio::spawn(connection);
                client
            }
            Host::Unix(folder) => {
                let socket = folder.join(format!(".s.PGSQL.{port}"));
                let (client, connection) =
                    config.connect_raw(UnixStream::connect(socket).await?, NoTls).await?;
                tokio::spawn(connection);
                client
            }
        };
        Ok(client)
    }

    /// Makes a schema that is empty, and says how a server connects to it.
    pub(super) async fn schema(&self, name: &str) -> Result<Schema> {
        let client = self.connect().await?;
        client.batch_execute(&format!("CREATE SCHEMA {name}; SET search_path = {name}")).await?;
        Ok(Schema {
            client,
            name: name.to_owned(),
            connection_string: format!("{} search_path={name}", self.connection_string),
        })
    }
}

/// A schema of one server.
pub(super) struct Schema {
    client: Client,
    name: String,
    pub(super) connection_string: String,
}

impl Schema {
    /// Entries, an agent for each ten of them, and join tokens for the first `clients` agents: what
    /// [`super::fill::fill`] makes.
    pub(super) async fn fill(&self, entries: usize, clients: usize) -> Result<()> {
        let there = self.client.query_one("SELECT COUNT(*) FROM registered_entries", &[]).await?;
        ensure!(there.get::<_, i64>(0) == 0, "the database has entries already");
        for start in (0..entries).step_by(ROWS) {
            self.client.batch_execute(&insert_entries(start, entries.min(start + ROWS))).await?;
        }
        let agents = entries / AGENT_ENTRIES;
        for start in (clients..agents).step_by(ROWS) {
            self.client.batch_execute(&insert_agents(start, agents.min(start + ROWS))).await?;
        }
        let tokens = format!(
            "INSERT INTO join_tokens (created_at, updated_at, token, expiry) \
             SELECT now(), now(), {TOKEN}, {EXPIRY} FROM generate_series(0, {clients} - 1) AS agent; ANALYZE",
        );
        self.client.batch_execute(&tokens).await?;
        Ok(())
    }

    /// Drops it.
    pub(super) async fn end(self) -> Result<()> {
        Ok(self.client.batch_execute(&format!("DROP SCHEMA {} CASCADE", self.name)).await?)
    }
}

/// The token of an agent, whose number is in the column `agent`.
const TOKEN: &str = "'sim-' || lpad(agent::text, 7, '0')";

/// Rows are numbered from one, as pages are asked for by row.
fn insert_entries(start: usize, end: usize) -> String {
    let last = end - 1;
    format!(
        "INSERT INTO registered_entries (id, created_at, updated_at, entry_id, spiffe_id, parent_id, ttl, admin, downstream, \
         expiry, revision_number, store_svid, hint, jwt_svid_ttl) \
         SELECT n + 1, now(), now(), '00000000-0000-4000-8000-' || lpad(n::text, 12, '0'), \
         'spiffe://example.org/ns/team-' || n % 100 || '/sa/workload-' || n, \
         'spiffe://example.org/spire/agent/join_token/sim-' || lpad((n / {AGENT_ENTRIES})::text, 7, '0'), \
         0, false, false, 0, 0, false, '', 0 FROM generate_series({start}, {last}) AS n; \
         INSERT INTO selectors (created_at, updated_at, registered_entry_id, type, value) \
         SELECT now(), now(), n + 1, 'unix', 'uid:' || 1000 + n % 50 FROM generate_series({start}, {last}) AS n; \
         INSERT INTO selectors (created_at, updated_at, registered_entry_id, type, value) \
         SELECT now(), now(), n + 1, 'unix', 'path:/opt/app/workload-' || n FROM generate_series({start}, {last}) AS n; \
         SELECT setval(pg_get_serial_sequence('registered_entries', 'id'), {end})"
    )
}

fn insert_agents(start: usize, end: usize) -> String {
    let last = end - 1;
    let id = format!("'spiffe://example.org/spire/agent/join_token/' || {TOKEN}");
    format!(
        "INSERT INTO attested_node_entries (created_at, updated_at, spiffe_id, data_type, serial_number, expires_at, \
         new_serial_number, can_reattest) SELECT now(), now(), {id}, 'join_token', (1000000000 + agent)::text, \
         '{EXPIRY_TEXT}', '', false FROM generate_series({start}, {last}) AS agent; \
         INSERT INTO node_resolver_map_entries (created_at, updated_at, spiffe_id, type, value) \
         SELECT now(), now(), {id}, 'zone', 'rack:' || agent % 40 FROM generate_series({start}, {last}) AS agent"
    )
}
