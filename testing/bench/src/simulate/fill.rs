//! Fills a server's database directly: a million entries over the API would take SPIRE an hour.

use std::path::Path;

use anyhow::{Result, ensure};
use rusqlite::{Connection, params};
use spire_wire::api::types;

use crate::api;

/// Entries of one agent.
pub(super) const AGENT_ENTRIES: usize = 10;

/// Rows of one transaction: large enough to be quick, small enough for the write-ahead log.
const ROWS: usize = 50_000;

/// A far expiry, in the forms that tables want.
pub(super) const EXPIRY: i64 = 4_000_000_000;
pub(super) const EXPIRY_TEXT: &str = "2096-10-02 07:06:40+00:00";
const NOW: &str = "2026-01-01 00:00:00.123456789+00:00";

/// The join token of an agent, which its SPIFFE ID is made of.
pub(super) fn token(agent: usize) -> String {
    format!("sim-{agent:07}")
}

fn agent_path(agent: usize) -> String {
    format!("/spire/agent/join_token/{}", token(agent))
}

/// The ID of an entry: as long as a UUID.
pub(super) fn entry_id(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// An entry as the API has it.
pub(super) fn entry(number: usize) -> types::Entry {
    let [uid, own] = selectors(number);
    let mut entry =
        api::new_entry(&agent_path(number / AGENT_ENTRIES), &workload_path(number), &[&uid, &own]);
    entry.id = entry_id(number);
    entry
}

fn workload_path(number: usize) -> String {
    format!("/ns/team-{}/sa/workload-{number}", number % 100)
}

fn selectors(number: usize) -> [String; 2] {
    [format!("uid:{}", 1000 + number % 50), format!("path:/opt/app/workload-{number}")]
}

/// Entries, an agent for each ten of them, and join tokens for the first `clients` agents, which will attest.
pub(super) fn fill(database: &Path, entries: usize, clients: usize) -> Result<()> {
    let mut conn = Connection::open(database)?;
    conn.pragma_update(None, "synchronous", "OFF")?;
    conn.pragma_update(None, "cache_size", -200_000)?;
    let there: i64 = conn.query_row("SELECT COUNT(*) FROM registered_entries", [], |row| row.get(0))?;
    ensure!(there == 0, "the database has entries already");
    for start in (0..entries).step_by(ROWS) {
        let transaction = conn.transaction()?;
        insert_entries(&transaction, start..entries.min(start + ROWS))?;
        transaction.commit()?;
    }
    let agents = entries / AGENT_ENTRIES;
    for start in (clients..agents).step_by(ROWS) {
        let transaction = conn.transaction()?;
        insert_agents(&transaction, start..agents.min(start + ROWS))?;
        transaction.commit()?;
    }
    let transaction = conn.transaction()?;
    for agent in 0..clients {
        transaction
            .prepare_cached(
                "INSERT INTO join_tokens (created_at, updated_at, token, expiry) VALUES (?1, ?1, ?2, ?3)",
            )?
            .execute(params![NOW, token(agent), EXPIRY])?;
    }
    transaction.commit()?;
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(())
}

fn insert_entries(conn: &Connection, numbers: std::ops::Range<usize>) -> Result<()> {
    let mut entry = conn.prepare_cached(
        "INSERT INTO registered_entries (created_at, updated_at, entry_id, spiffe_id, parent_id, ttl, admin, downstream, \
         expiry, revision_number, store_svid, hint, jwt_svid_ttl) VALUES (?1, ?1, ?2, ?3, ?4, 0, 0, 0, 0, 0, 0, '', 0)",
    )?;
    let mut selector = conn.prepare_cached(
        "INSERT INTO selectors (created_at, updated_at, registered_entry_id, type, value) VALUES (?1, ?1, ?2, 'unix', ?3)",
    )?;
    for number in numbers {
        let id = format!("spiffe://example.org{}", workload_path(number));
        let parent = format!("spiffe://example.org{}", agent_path(number / AGENT_ENTRIES));
        entry.execute(params![NOW, entry_id(number), id, parent])?;
        let row = conn.last_insert_rowid();
        for value in selectors(number) {
            selector.execute(params![NOW, row, value])?;
        }
    }
    Ok(())
}

fn insert_agents(conn: &Connection, agents: std::ops::Range<usize>) -> Result<()> {
    let mut node = conn.prepare_cached(
        "INSERT INTO attested_node_entries (created_at, updated_at, spiffe_id, data_type, serial_number, expires_at, \
         new_serial_number, can_reattest) VALUES (?1, ?1, ?2, 'join_token', ?3, ?4, '', 0)",
    )?;
    let mut selector = conn.prepare_cached(
        "INSERT INTO node_resolver_map_entries (created_at, updated_at, spiffe_id, type, value) VALUES (?1, ?1, ?2, 'zone', ?3)",
    )?;
    for agent in agents {
        let id = format!("spiffe://example.org{}", agent_path(agent));
        node.execute(params![NOW, id, (1_000_000_000 + agent).to_string(), EXPIRY_TEXT])?;
        selector.execute(params![NOW, id, format!("rack:{}", agent % 40)])?;
    }
    Ok(())
}
