//! Metrics that the server emits (the reference's `pkg/common/telemetry/server`).

use super::Name;

/// Counter `bundle_manager.update.federated_bundle`; labels: `trust_domain_id`.
pub const BUNDLE_MANAGER_UPDATE_FEDERATED_BUNDLE: Name = &["bundle_manager", "update", "federated_bundle"];
/// Call (counter and `elapsed_time`) `bundle_manager.fetch.federated_bundle`; labels: `trust_domain_id`, `status`.
pub const BUNDLE_MANAGER_FETCH_FEDERATED_BUNDLE: Name = &["bundle_manager", "fetch", "federated_bundle"];
/// Call (counter and `elapsed_time`) `ca.manager.bundle.prune`; labels: `status`.
pub const CA_MANAGER_BUNDLE_PRUNE: Name = &["ca", "manager", "bundle", "prune"];
/// Call (counter and `elapsed_time`) `ca.manager.jwt_key.prepare`; labels: `status`.
pub const CA_MANAGER_JWT_KEY_PREPARE: Name = &["ca", "manager", "jwt_key", "prepare"];
/// Call (counter and `elapsed_time`) `ca.manager.wit_key.prepare`; labels: `status`.
pub const CA_MANAGER_WIT_KEY_PREPARE: Name = &["ca", "manager", "wit_key", "prepare"];
/// Call (counter and `elapsed_time`) `ca.manager.x509_ca.prepare`; labels: `status`.
pub const CA_MANAGER_X509_CA_PREPARE: Name = &["ca", "manager", "x509_ca", "prepare"];
/// Gauge `manager.x509_ca.rotate.expiration`; labels: `trust_domain_id`.
pub const MANAGER_X509_CA_ROTATE_EXPIRATION: Name = &["manager", "x509_ca", "rotate", "expiration"];
/// Gauge `manager.x509_ca.rotate.ttl`; labels: `trust_domain_id`.
pub const MANAGER_X509_CA_ROTATE_TTL: Name = &["manager", "x509_ca", "rotate", "ttl"];
/// Counter `manager.jwt_key.activate`.
pub const MANAGER_JWT_KEY_ACTIVATE: Name = &["manager", "jwt_key", "activate"];
/// Counter `ca.manager.x509_ca.activate`.
pub const CA_MANAGER_X509_CA_ACTIVATE: Name = &["ca", "manager", "x509_ca", "activate"];
/// Counter `manager.wit_key.activate`.
pub const MANAGER_WIT_KEY_ACTIVATE: Name = &["manager", "wit_key", "activate"];
/// Counter `ca.manager.bundle.pruned`.
pub const CA_MANAGER_BUNDLE_PRUNED: Name = &["ca", "manager", "bundle", "pruned"];
/// Counter `server_ca.sign.jwt_svid`.
pub const SERVER_CA_SIGN_JWT_SVID: Name = &["server_ca", "sign", "jwt_svid"];
/// Counter `server_ca.sign.x509_ca_svid`.
pub const SERVER_CA_SIGN_X509_CA_SVID: Name = &["server_ca", "sign", "x509_ca_svid"];
/// Counter `server_ca.sign.x509_svid`.
pub const SERVER_CA_SIGN_X509_SVID: Name = &["server_ca", "sign", "x509_svid"];
/// Call (counter and `elapsed_time`) `datastore.bundle.count`; labels: `status`.
pub const DATASTORE_BUNDLE_COUNT: Name = &["datastore", "bundle", "count"];
/// Call (counter and `elapsed_time`) `datastore.bundle.append`; labels: `status`.
pub const DATASTORE_BUNDLE_APPEND: Name = &["datastore", "bundle", "append"];
/// Call (counter and `elapsed_time`) `datastore.bundle.create`; labels: `status`.
pub const DATASTORE_BUNDLE_CREATE: Name = &["datastore", "bundle", "create"];
/// Call (counter and `elapsed_time`) `datastore.bundle.delete`; labels: `status`.
pub const DATASTORE_BUNDLE_DELETE: Name = &["datastore", "bundle", "delete"];
/// Call (counter and `elapsed_time`) `datastore.bundle.fetch`; labels: `status`.
pub const DATASTORE_BUNDLE_FETCH: Name = &["datastore", "bundle", "fetch"];
/// Call (counter and `elapsed_time`) `datastore.bundle.list`; labels: `status`.
pub const DATASTORE_BUNDLE_LIST: Name = &["datastore", "bundle", "list"];
/// Call (counter and `elapsed_time`) `datastore.bundle.prune`; labels: `status`.
pub const DATASTORE_BUNDLE_PRUNE: Name = &["datastore", "bundle", "prune"];
/// Call (counter and `elapsed_time`) `datastore.bundle.set`; labels: `status`.
pub const DATASTORE_BUNDLE_SET: Name = &["datastore", "bundle", "set"];
/// Call (counter and `elapsed_time`) `datastore.bundle.update`; labels: `status`.
pub const DATASTORE_BUNDLE_UPDATE: Name = &["datastore", "bundle", "update"];
/// Call (counter and `elapsed_time`) `datastore.bundle.x509.taint`; labels: `status`.
pub const DATASTORE_BUNDLE_X509_TAINT: Name = &["datastore", "bundle", "x509", "taint"];
/// Call (counter and `elapsed_time`) `datastore.bundle.jwt.taint`; labels: `status`.
pub const DATASTORE_BUNDLE_JWT_TAINT: Name = &["datastore", "bundle", "jwt", "taint"];
/// Call (counter and `elapsed_time`) `datastore.bundle.x509.revoke`; labels: `status`.
pub const DATASTORE_BUNDLE_X509_REVOKE: Name = &["datastore", "bundle", "x509", "revoke"];
/// Call (counter and `elapsed_time`) `datastore.bundle.jwt.revoke`; labels: `status`.
pub const DATASTORE_BUNDLE_JWT_REVOKE: Name = &["datastore", "bundle", "jwt", "revoke"];
/// Call (counter and `elapsed_time`) `datastore.ca_journal.set`; labels: `status`.
pub const DATASTORE_CA_JOURNAL_SET: Name = &["datastore", "ca_journal", "set"];
/// Call (counter and `elapsed_time`) `datastore.ca_journal.fetch`; labels: `status`.
pub const DATASTORE_CA_JOURNAL_FETCH: Name = &["datastore", "ca_journal", "fetch"];
/// Call (counter and `elapsed_time`) `datastore.ca_journal.prune`; labels: `status`.
pub const DATASTORE_CA_JOURNAL_PRUNE: Name = &["datastore", "ca_journal", "prune"];
/// Call (counter and `elapsed_time`) `datastore.registration_entry_event.list`; labels: `status`.
pub const DATASTORE_REGISTRATION_ENTRY_EVENT_LIST: Name = &["datastore", "registration_entry_event", "list"];
/// Call (counter and `elapsed_time`) `datastore.registration_entry_event.prune`; labels: `status`.
pub const DATASTORE_REGISTRATION_ENTRY_EVENT_PRUNE: Name =
    &["datastore", "registration_entry_event", "prune"];
/// Call (counter and `elapsed_time`) `datastore.registration_entry_event.fetch`; labels: `status`.
pub const DATASTORE_REGISTRATION_ENTRY_EVENT_FETCH: Name =
    &["datastore", "registration_entry_event", "fetch"];
/// Call (counter and `elapsed_time`) `datastore.node_event.list`; labels: `status`.
pub const DATASTORE_NODE_EVENT_LIST: Name = &["datastore", "node_event", "list"];
/// Call (counter and `elapsed_time`) `datastore.node_event.prune`; labels: `status`.
pub const DATASTORE_NODE_EVENT_PRUNE: Name = &["datastore", "node_event", "prune"];
/// Call (counter and `elapsed_time`) `datastore.node_event.fetch`; labels: `status`.
pub const DATASTORE_NODE_EVENT_FETCH: Name = &["datastore", "node_event", "fetch"];
/// Call (counter and `elapsed_time`) `datastore.federation_relationship.create`; labels: `status`.
pub const DATASTORE_FEDERATION_RELATIONSHIP_CREATE: Name =
    &["datastore", "federation_relationship", "create"];
/// Call (counter and `elapsed_time`) `datastore.federation_relationship.delete`; labels: `status`.
pub const DATASTORE_FEDERATION_RELATIONSHIP_DELETE: Name =
    &["datastore", "federation_relationship", "delete"];
/// Call (counter and `elapsed_time`) `datastore.federation_relationship.fetch`; labels: `status`.
pub const DATASTORE_FEDERATION_RELATIONSHIP_FETCH: Name = &["datastore", "federation_relationship", "fetch"];
/// Call (counter and `elapsed_time`) `datastore.federation_relationship.list`; labels: `status`.
pub const DATASTORE_FEDERATION_RELATIONSHIP_LIST: Name = &["datastore", "federation_relationship", "list"];
/// Call (counter and `elapsed_time`) `datastore.federation_relationship.update`; labels: `status`.
pub const DATASTORE_FEDERATION_RELATIONSHIP_UPDATE: Name =
    &["datastore", "federation_relationship", "update"];
/// Call (counter and `elapsed_time`) `datastore.join_token.create`; labels: `status`.
pub const DATASTORE_JOIN_TOKEN_CREATE: Name = &["datastore", "join_token", "create"];
/// Call (counter and `elapsed_time`) `datastore.join_token.delete`; labels: `status`.
pub const DATASTORE_JOIN_TOKEN_DELETE: Name = &["datastore", "join_token", "delete"];
/// Call (counter and `elapsed_time`) `datastore.join_token.fetch`; labels: `status`.
pub const DATASTORE_JOIN_TOKEN_FETCH: Name = &["datastore", "join_token", "fetch"];
/// Call (counter and `elapsed_time`) `datastore.join_token.prune`; labels: `status`.
pub const DATASTORE_JOIN_TOKEN_PRUNE: Name = &["datastore", "join_token", "prune"];
/// Call (counter and `elapsed_time`) `datastore.node.count`; labels: `status`.
pub const DATASTORE_NODE_COUNT: Name = &["datastore", "node", "count"];
/// Call (counter and `elapsed_time`) `datastore.node.create`; labels: `status`.
pub const DATASTORE_NODE_CREATE: Name = &["datastore", "node", "create"];
/// Call (counter and `elapsed_time`) `datastore.node.delete`; labels: `status`.
pub const DATASTORE_NODE_DELETE: Name = &["datastore", "node", "delete"];
/// Call (counter and `elapsed_time`) `datastore.node.prune`; labels: `status`.
pub const DATASTORE_NODE_PRUNE: Name = &["datastore", "node", "prune"];
/// Call (counter and `elapsed_time`) `datastore.node.fetch`; labels: `status`.
pub const DATASTORE_NODE_FETCH: Name = &["datastore", "node", "fetch"];
/// Call (counter and `elapsed_time`) `datastore.node.list`; labels: `status`.
pub const DATASTORE_NODE_LIST: Name = &["datastore", "node", "list"];
/// Call (counter and `elapsed_time`) `datastore.node.selectors.fetch`; labels: `status`.
pub const DATASTORE_NODE_SELECTORS_FETCH: Name = &["datastore", "node", "selectors", "fetch"];
/// Call (counter and `elapsed_time`) `datastore.node.selectors.set`; labels: `status`.
pub const DATASTORE_NODE_SELECTORS_SET: Name = &["datastore", "node", "selectors", "set"];
/// Call (counter and `elapsed_time`) `datastore.node.update`; labels: `status`.
pub const DATASTORE_NODE_UPDATE: Name = &["datastore", "node", "update"];
/// Call (counter and `elapsed_time`) `datastore.registration_entry.count`; labels: `status`.
pub const DATASTORE_REGISTRATION_ENTRY_COUNT: Name = &["datastore", "registration_entry", "count"];
/// Call (counter and `elapsed_time`) `datastore.registration_entry.create`; labels: `status`.
pub const DATASTORE_REGISTRATION_ENTRY_CREATE: Name = &["datastore", "registration_entry", "create"];
/// Call (counter and `elapsed_time`) `datastore.registration_entry.delete`; labels: `status`.
pub const DATASTORE_REGISTRATION_ENTRY_DELETE: Name = &["datastore", "registration_entry", "delete"];
/// Call (counter and `elapsed_time`) `datastore.registration_entry.fetch`; labels: `status`.
pub const DATASTORE_REGISTRATION_ENTRY_FETCH: Name = &["datastore", "registration_entry", "fetch"];
/// Call (counter and `elapsed_time`) `datastore.registration_entry.list`; labels: `status`.
pub const DATASTORE_REGISTRATION_ENTRY_LIST: Name = &["datastore", "registration_entry", "list"];
/// Call (counter and `elapsed_time`) `datastore.registration_entry.prune`; labels: `status`.
pub const DATASTORE_REGISTRATION_ENTRY_PRUNE: Name = &["datastore", "registration_entry", "prune"];
/// Call (counter and `elapsed_time`) `datastore.registration_entry.update`; labels: `status`.
pub const DATASTORE_REGISTRATION_ENTRY_UPDATE: Name = &["datastore", "registration_entry", "update"];
/// Call (counter and `elapsed_time`) `server_key_manager.generate_key`; labels: `status`.
pub const SERVER_KEY_MANAGER_GENERATE_KEY: Name = &["server_key_manager", "generate_key"];
/// Call (counter and `elapsed_time`) `server_key_manager.get_public_key`; labels: `status`.
pub const SERVER_KEY_MANAGER_GET_PUBLIC_KEY: Name = &["server_key_manager", "get_public_key"];
/// Call (counter and `elapsed_time`) `server_key_manager.get_public_keys`; labels: `status`.
pub const SERVER_KEY_MANAGER_GET_PUBLIC_KEYS: Name = &["server_key_manager", "get_public_keys"];
/// Call (counter and `elapsed_time`) `server_key_manager.sign_data`; labels: `status`.
pub const SERVER_KEY_MANAGER_SIGN_DATA: Name = &["server_key_manager", "sign_data"];
/// Call (counter and `elapsed_time`) `node.manager.prune`; labels: `status`.
pub const NODE_MANAGER_PRUNE: Name = &["node", "manager", "prune"];
/// Call (counter and `elapsed_time`) `registration_entry.manager.prune`; labels: `status`.
pub const REGISTRATION_ENTRY_MANAGER_PRUNE: Name = &["registration_entry", "manager", "prune"];
/// Call (counter and `elapsed_time`) `svid.rotate`; labels: `status`.
pub const SVID_ROTATE: Name = &["svid", "rotate"];
/// Gauge `node.agents_by_id_cache.count`.
pub const NODE_AGENTS_BY_ID_CACHE_COUNT: Name = &["node", "agents_by_id_cache", "count"];
/// Gauge `node.agents_by_expiresat_cache.count`.
pub const NODE_AGENTS_BY_EXPIRESAT_CACHE_COUNT: Name = &["node", "agents_by_expiresat_cache", "count"];
/// Gauge `node.skipped_node_event_ids.count`.
pub const NODE_SKIPPED_NODE_EVENT_IDS_COUNT: Name = &["node", "skipped_node_event_ids", "count"];
/// Gauge `entry.nodealiases_by_entryid_cache.count`.
pub const ENTRY_NODEALIASES_BY_ENTRYID_CACHE_COUNT: Name =
    &["entry", "nodealiases_by_entryid_cache", "count"];
/// Gauge `entry.nodealiases_by_selector_cache.count`.
pub const ENTRY_NODEALIASES_BY_SELECTOR_CACHE_COUNT: Name =
    &["entry", "nodealiases_by_selector_cache", "count"];
/// Gauge `entry.entries_by_entryid_cache.count`.
pub const ENTRY_ENTRIES_BY_ENTRYID_CACHE_COUNT: Name = &["entry", "entries_by_entryid_cache", "count"];
/// Gauge `entry.skipped_entry_event_ids.count`.
pub const ENTRY_SKIPPED_ENTRY_EVENT_IDS_COUNT: Name = &["entry", "skipped_entry_event_ids", "count"];
/// Call (counter and `elapsed_time`) `entry.cache.reload`; labels: `status`.
pub const ENTRY_CACHE_RELOAD: Name = &["entry", "cache", "reload"];
