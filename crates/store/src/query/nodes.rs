//! Attested nodes and their selectors.

use std::sync::LazyLock;

use async_trait::async_trait;
use spire_core::model::{Node, NodeFilter, NodeUpdate, Page, Paging};
use spire_core::spiffe::{Selector, Selectors, SpiffeId};
use spire_core::time::Timestamp;
use spire_ports::datastore::{Consistency, Error, EventId, Nodes, Result, Written};
use tracing::info;

use super::entries::by_rows;
use super::entry_writes::delete_row;
use super::{borrowed, count, each_row, filter, node_event, page, readable, tokens};
use crate::convert::{Interner, flag, integer, json_texts, now, spiffe_id, text_or_empty, time_or_none};
use crate::fault::Sql;
use crate::sql::{Isolation, Param, Row, Session, params};
use crate::store::SqlStore;

const TABLE: &str = "attested_node_entries";

const SELECT: &str = "SELECT N.id, N.spiffe_id, N.data_type, N.serial_number, N.expires_at, N.new_serial_number, \
                      N.new_expires_at, N.can_reattest, N.agent_version FROM attested_node_entries N";

/// Made once: a row is read at each call of an agent.
static ROW_BY_ID: LazyLock<String> = LazyLock::new(|| format!("{SELECT} WHERE N.spiffe_id = ?1"));

#[async_trait]
impl Nodes for SqlStore {
    async fn node_attest(&self, node: &Node) -> Result<Written<Node>> {
        let node = node.clone();
        self.write(Isolation::Statement, move |conn| attest(conn, &node)).await
    }

    async fn node_attest_by_token(&self, node: &Node, token: &str) -> Result<Option<Written<Node>>> {
        let (node, token) = (node.clone(), token.to_owned());
        self.write(Isolation::Statement, move |conn| {
            let is_there = tokens::delete(conn, &token)?;
            is_there.then(|| attest(conn, &node)).transpose()
        })
        .await
    }

    async fn node_fetch(&self, id: &SpiffeId) -> Result<Option<Node>> {
        let id = id.clone();
        self.read_item(move |conn| by_id(conn, &id)).await
    }

    async fn node_row(&self, id: &SpiffeId) -> Result<Option<Node>> {
        let id = id.clone();
        self.read_row(move |conn| row_by_id(conn, &id)).await
    }

    async fn nodes_fetch(&self, ids: &[SpiffeId]) -> Result<Vec<Node>> {
        let ids = json_texts(ids.iter().map(SpiffeId::as_str));
        self.read(move |conn| {
            let sql = format!("{SELECT} WHERE N.spiffe_id {{in_texts ?1}} ORDER BY N.id");
            Ok(load(conn, &sql, params![&ids], true)?.into_iter().filter_map(|(_, node)| node).collect())
        })
        .await
    }

    async fn node_list(&self, filter: &NodeFilter, paging: Option<&Paging>) -> Result<Page<Node>> {
        let conditions = filter::nodes(filter, 3).map_err(|fault| fault.0)?;
        let (paging, with_selectors) = (paging.cloned(), filter.fetch_selectors);
        self.read(move |conn| {
            let sql = format!("{SELECT} WHERE N.id > ?1{} ORDER BY N.id LIMIT ?2", conditions.sql);
            page(paging.as_ref(), |after, limit| {
                let values = borrowed(&[after, limit], &conditions.values);
                load(conn, &sql, &values, with_selectors)
            })
        })
        .await
    }

    async fn node_count(&self, filter: &NodeFilter) -> Result<u32> {
        let conditions = filter::nodes(filter, 1).map_err(|fault| fault.0)?;
        self.read(move |conn| {
            let sql = format!("SELECT COUNT(*) FROM attested_node_entries N WHERE TRUE{}", conditions.sql);
            count(conn, &sql, &borrowed(&[], &conditions.values))
        })
        .await
    }

    async fn node_update(&self, id: &SpiffeId, update: &NodeUpdate) -> Result<Written<Node>> {
        let (id, change) = (id.clone(), update.clone());
        self.write(Isolation::Rows, move |conn| update_one(conn, &id, &change)).await
    }

    async fn node_delete(&self, id: &SpiffeId) -> Result<Written<Node>> {
        let id = id.clone();
        self.write(Isolation::Rows, move |conn| {
            let node = by_id(conn, &id)?.ok_or(Error::NotFound)?;
            let event = delete(conn, &node)?;
            Ok(Written { value: node, event })
        })
        .await
    }

    async fn nodes_prune(
        &self,
        expired_before: Timestamp,
        include_non_reattestable: bool,
        limit: u32,
    ) -> Result<Vec<Written<SpiffeId>>> {
        self.write(Isolation::Rows, move |conn| prune(conn, expired_before, include_non_reattestable, limit))
            .await
    }

    async fn node_selectors(&self, id: &SpiffeId, consistency: Consistency) -> Result<Selectors> {
        let id = id.clone();
        self.read_from(consistency, move |conn| selectors_of(conn, &id)).await
    }

    async fn node_selectors_set(&self, id: &SpiffeId, selectors: &Selectors) -> Result<EventId> {
        let (id, selectors) = (id.clone(), selectors.clone());
        self.write(Isolation::Rows, move |conn| {
            set_selectors(conn, &id, &selectors)?;
            node_event(conn, id.as_str())
        })
        .await
    }
}

/// What pruning asks for: the conditions of a listing.
fn prune(
    conn: &mut dyn Session,
    expired_before: Timestamp,
    include_non_reattestable: bool,
    limit: u32,
) -> Sql<Vec<Written<SpiffeId>>> {
    let wanted = NodeFilter {
        banned: Some(false),
        can_reattest: (!include_non_reattestable).then_some(true),
        expires_before: Some(expired_before),
        ..NodeFilter::default()
    };
    let conditions = filter::nodes(&wanted, 2)?;
    let sql = format!("{SELECT} WHERE TRUE{} ORDER BY N.id LIMIT ?1", conditions.sql);
    let values = borrowed(&[limit.into()], &conditions.values);
    let mut pruned = Vec::new();
    for (_, node) in load(conn, &sql, &values, false)? {
        if let Some(node) = node {
            let event = delete(conn, &node)?;
            pruned.push(Written { value: node.spiffe_id, event });
        }
    }
    info!(subsystem_name = "sql", count = pruned.len(), "Pruned expired agents");
    Ok(pruned)
}

/// A node that is known keeps the type of its first attestation, as in the reference.
fn attest(conn: &mut dyn Session, node: &Node) -> Sql<Written<Node>> {
    conn.execute(
        "INSERT INTO attested_node_entries (created_at, updated_at, spiffe_id, data_type, serial_number, \
         expires_at, new_serial_number, new_expires_at, can_reattest, agent_version) \
         VALUES (?1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) \
         {upsert spiffe_id} updated_at = ?1, serial_number = ?4, \
         expires_at = ?5, new_serial_number = ?6, new_expires_at = ?7, can_reattest = ?8, agent_version = ?9",
        params![
            now(),
            node.spiffe_id.as_str(),
            &*node.attestation_type,
            &*node.serial_number,
            node.expires_at,
            &*node.new_serial_number,
            node.new_expires_at,
            node.can_reattest,
            &*node.agent_version,
        ],
    )?;
    set_selectors(conn, &node.spiffe_id, &node.selectors)?;
    let event = node_event(conn, node.spiffe_id.as_str())?;
    Ok(Written { value: node.clone(), event })
}

fn update_one(conn: &mut dyn Session, id: &SpiffeId, change: &NodeUpdate) -> Sql<Written<Node>> {
    let mut node = by_id(conn, id)?.ok_or(Error::NotFound)?;
    if let Some(serial_number) = &change.serial_number {
        node.serial_number = serial_number.clone();
    }
    if let Some(expires_at) = change.expires_at {
        node.expires_at = expires_at;
    }
    if let Some(serial_number) = &change.new_serial_number {
        node.new_serial_number = serial_number.clone();
    }
    if let Some(expires_at) = change.new_expires_at {
        node.new_expires_at = expires_at;
    }
    if let Some(can_reattest) = change.can_reattest {
        node.can_reattest = can_reattest;
    }
    if let Some(version) = &change.agent_version {
        node.agent_version = version.clone();
    }
    conn.execute("UPDATE attested_node_entries SET updated_at = ?1, serial_number = ?2, expires_at = ?3, \
         new_serial_number = ?4, new_expires_at = ?5, can_reattest = ?6, agent_version = ?7 WHERE spiffe_id = ?8",
        params![
            now(),
            &*node.serial_number,
            node.expires_at,
            &*node.new_serial_number,
            node.new_expires_at,
            node.can_reattest,
            &*node.agent_version,
            id.as_str(),
        ],
    )?;
    let event = node_event(conn, id.as_str())?;
    Ok(Written { value: node, event })
}

/// Removes a node with what belongs to it: its selectors and, for one that came with a join token, the entry
/// that stood for the token's agent ID (one selector, `spiffe_id` with the parent's ID).
fn delete(conn: &mut dyn Session, node: &Node) -> Sql<EventId> {
    let id = node.spiffe_id.as_str();
    if &*node.attestation_type == "join_token" {
        let mut aliases = Vec::new();
        each_row(
            conn,
            "SELECT E.id FROM registered_entries E JOIN selectors S ON S.registered_entry_id = E.id \
             WHERE E.parent_id = ?1 GROUP BY E.id \
             HAVING COUNT(*) = 1 AND MAX(S.type) = 'spiffe_id' AND MAX(S.value) = ?1",
            params![id],
            |row| {
                aliases.push(integer(row, 0)?);
                Ok(())
            },
        )?;
        for (row, entry) in by_rows(conn, &aliases)? {
            let deleted = delete_row(conn, row, entry)?.value;
            info!(
                subsystem_name = "sql",
                spiffe_id = %deleted.spiffe_id,
                parent_id = %deleted.parent_id,
                entry_id = %deleted.id,
                "Cascade-deleted registration entry on attested node deletion"
            );
        }
    }
    conn.execute("DELETE FROM node_resolver_map_entries WHERE spiffe_id = ?1", params![id])?;
    conn.execute("DELETE FROM attested_node_entries WHERE spiffe_id = ?1", params![id])?;
    node_event(conn, id)
}

fn set_selectors(conn: &mut dyn Session, id: &SpiffeId, selectors: &Selectors) -> Sql<()> {
    conn.execute("DELETE FROM node_resolver_map_entries WHERE spiffe_id = ?1", params![id.as_str()])?;
    let now = now();
    for selector in selectors {
        conn.execute(
            "INSERT INTO node_resolver_map_entries (created_at, updated_at, spiffe_id, type, value) \
             VALUES (?1, ?1, ?2, ?3, ?4)",
            params![now, id.as_str(), selector.kind(), selector.value()],
        )?;
    }
    Ok(())
}

fn selectors_of(conn: &mut dyn Session, id: &SpiffeId) -> Sql<Selectors> {
    let mut interner = Interner::default();
    let mut selectors = Vec::new();
    each_row(
        conn,
        "SELECT type, value FROM node_resolver_map_entries WHERE spiffe_id = ?1",
        params![id.as_str()],
        |row| {
            selectors.push(interner.selector(&text_or_empty(row, 0)?, &text_or_empty(row, 1)?));
            Ok(())
        },
    )?;
    Ok(selectors.into_iter().collect())
}

fn by_id(conn: &mut dyn Session, id: &SpiffeId) -> Sql<Option<Node>> {
    let Some(mut node) = row_by_id(conn, id)? else { return Ok(None) };
    node.selectors = selectors_of(conn, id)?;
    Ok(Some(node))
}

fn row_by_id(conn: &mut dyn Session, id: &SpiffeId) -> Sql<Option<Node>> {
    Ok(load(conn, &ROW_BY_ID, params![id.as_str()], false)?.pop().and_then(|(_, node)| node))
}

/// Nodes of a query that starts with [`SELECT`], with their selectors if wanted. Those that cannot be read
/// are `None`.
fn load(
    conn: &mut dyn Session,
    sql: &str,
    values: &[Param<'_>],
    with_selectors: bool,
) -> Sql<Vec<(i64, Option<Node>)>> {
    let mut nodes: Vec<(i64, Option<Node>)> = Vec::new();
    each_row(conn, sql, values, |row| {
        let id: i64 = integer(row, 0)?;
        nodes.push((id, readable(TABLE, id, from_row(row))));
        Ok(())
    })?;
    if with_selectors {
        attach_selectors(conn, nodes.iter_mut().filter_map(|(_, node)| node.as_mut()).collect())?;
    }
    Ok(nodes)
}

/// Completes nodes with one statement. Databases may sort texts by the rules of a language, so that the order of
/// its rows tells nothing; those of one node mostly come together, though.
fn attach_selectors(conn: &mut dyn Session, mut nodes: Vec<&mut Node>) -> Sql<()> {
    if nodes.is_empty() {
        return Ok(());
    }
    nodes.sort_unstable_by(|a, b| a.spiffe_id.cmp(&b.spiffe_id));
    let ids = json_texts(nodes.iter().map(|node| node.spiffe_id.as_str()));
    let mut interner = Interner::default();
    let mut own: Vec<Vec<Selector>> = vec![Vec::new(); nodes.len()];
    let mut owner = 0;
    each_row(
        conn,
        "SELECT spiffe_id, type, value FROM node_resolver_map_entries WHERE spiffe_id {in_texts ?1}",
        params![&ids],
        |row| {
            let id = text_or_empty(row, 0)?;
            if nodes[owner].spiffe_id.as_str() != &*id {
                match nodes.binary_search_by(|node| node.spiffe_id.as_str().cmp(&id)) {
                    Ok(index) => owner = index,
                    // A database that compares without regard to case finds what was not asked for.
                    Err(_) => return Ok(()),
                }
            }
            own[owner].push(interner.selector(&text_or_empty(row, 1)?, &text_or_empty(row, 2)?));
            Ok(())
        },
    )?;
    for (node, selectors) in nodes.into_iter().zip(own) {
        node.selectors = selectors.into_iter().collect();
    }
    Ok(())
}

fn from_row(row: &dyn Row) -> Sql<Node> {
    Ok(Node {
        spiffe_id: spiffe_id(&text_or_empty(row, 1)?)?,
        attestation_type: text_or_empty(row, 2)?.into(),
        serial_number: text_or_empty(row, 3)?.into(),
        expires_at: time_or_none(row, 4)?.map_or(Timestamp::EPOCH, Timestamp::from),
        new_serial_number: text_or_empty(row, 5)?.into(),
        new_expires_at: time_or_none(row, 6)?.map(Timestamp::from),
        can_reattest: flag(row, 7)?,
        agent_version: text_or_empty(row, 8)?.into(),
        selectors: Selectors::default(),
    })
}
