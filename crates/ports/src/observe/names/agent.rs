//! Metrics that the agent emits (the reference's `pkg/common/telemetry/agent`).

use super::Name;

/// Call (counter and `elapsed_time`) `cache_manager.workload.process_tainted_jwt_svids`; labels: `status`.
pub const CACHE_MANAGER_WORKLOAD_PROCESS_TAINTED_JWT_SVIDS: Name =
    &["cache_manager", "workload", "process_tainted_jwt_svids"];
/// Call (counter and `elapsed_time`) `cache_manager.workload.process_tainted_x509_svids`; labels: `status`.
pub const CACHE_MANAGER_WORKLOAD_PROCESS_TAINTED_X509_SVIDS: Name =
    &["cache_manager", "workload", "process_tainted_x509_svids"];
/// Call (counter and `elapsed_time`) `cache_manager.svid_store.process_tainted_x509_svids`; labels: `status`.
pub const CACHE_MANAGER_SVID_STORE_PROCESS_TAINTED_X509_SVIDS: Name =
    &["cache_manager", "svid_store", "process_tainted_x509_svids"];
/// Gauge `bootstrapped`.
pub const BOOTSTRAPPED: Name = &["bootstrapped"];
/// Gauge `bootstrap_seconds`; labels: `mode`.
pub const BOOTSTRAP_SECONDS: Name = &["bootstrap_seconds"];
/// Gauge `bootstrap_attempts`; labels: `mode`.
pub const BOOTSTRAP_ATTEMPTS: Name = &["bootstrap_attempts"];
/// Counter `debug_api.connection`.
pub const DEBUG_API_CONNECTION: Name = &["debug_api", "connection"];
/// Gauge `debug_api.connections`.
pub const DEBUG_API_CONNECTIONS: Name = &["debug_api", "connections"];
/// Sample in milliseconds `delegated_identity_api.subscribe_x509_svids.first_update.elapsed_time`.
pub const DELEGATED_IDENTITY_API_SUBSCRIBE_X509_SVIDS_FIRST_UPDATE_ELAPSED_TIME: Name =
    &["delegated_identity_api", "subscribe_x509_svids", "first_update", "elapsed_time"];
/// Counter `delegated_identity_api.connection`.
pub const DELEGATED_IDENTITY_API_CONNECTION: Name = &["delegated_identity_api", "connection"];
/// Gauge `delegated_identity_api.connections`.
pub const DELEGATED_IDENTITY_API_CONNECTIONS: Name = &["delegated_identity_api", "connections"];
/// Counter `logger_api.connection`.
pub const LOGGER_API_CONNECTION: Name = &["logger_api", "connection"];
/// Gauge `logger_api.connections`.
pub const LOGGER_API_CONNECTIONS: Name = &["logger_api", "connections"];
/// Call (counter and `elapsed_time`) `agent_key_manager.generate_key`; labels: `status`.
pub const AGENT_KEY_MANAGER_GENERATE_KEY: Name = &["agent_key_manager", "generate_key"];
/// Call (counter and `elapsed_time`) `agent_key_manager.get_key`; labels: `status`.
pub const AGENT_KEY_MANAGER_GET_KEY: Name = &["agent_key_manager", "get_key"];
/// Call (counter and `elapsed_time`) `agent_key_manager.get_keys`; labels: `status`.
pub const AGENT_KEY_MANAGER_GET_KEYS: Name = &["agent_key_manager", "get_keys"];
/// Counter `lru_cache_entry_add`.
pub const LRU_CACHE_ENTRY_ADD: Name = &["lru_cache_entry_add"];
/// Counter `lru_cache_entry_update`.
pub const LRU_CACHE_ENTRY_UPDATE: Name = &["lru_cache_entry_update"];
/// Counter `lru_cache_entry_remove`.
pub const LRU_CACHE_ENTRY_REMOVE: Name = &["lru_cache_entry_remove"];
/// Gauge `lru_cache_record_map_size`; labels: `svid_type`.
pub const LRU_CACHE_RECORD_MAP_SIZE: Name = &["lru_cache_record_map_size"];
/// Gauge `lru_cache_svid_map_size`; labels: `svid_type`.
pub const LRU_CACHE_SVID_MAP_SIZE: Name = &["lru_cache_svid_map_size"];
/// Gauge `jwt_svid_cache_size`.
pub const JWT_SVID_CACHE_SIZE: Name = &["jwt_svid_cache_size"];
/// Call (counter and `elapsed_time`) `manager.sync.fetch_entries_updates`; labels: `status`.
pub const MANAGER_SYNC_FETCH_ENTRIES_UPDATES: Name = &["manager", "sync", "fetch_entries_updates"];
/// Call (counter and `elapsed_time`) `manager.sync.fetch_svids_updates`; labels: `status`.
pub const MANAGER_SYNC_FETCH_SVIDS_UPDATES: Name = &["manager", "sync", "fetch_svids_updates"];
/// Gauge `sync_bundles_total`.
pub const SYNC_BUNDLES_TOTAL: Name = &["sync_bundles_total"];
/// Gauge `sync_entries_total`.
pub const SYNC_ENTRIES_TOTAL: Name = &["sync_entries_total"];
/// Gauge `sync_entries_missing`.
pub const SYNC_ENTRIES_MISSING: Name = &["sync_entries_missing"];
/// Gauge `sync_entries_stale`.
pub const SYNC_ENTRIES_STALE: Name = &["sync_entries_stale"];
/// Gauge `sync_entries_dropped`.
pub const SYNC_ENTRIES_DROPPED: Name = &["sync_entries_dropped"];
/// Call (counter and `elapsed_time`) `node.attestor.new_svid`; labels: `attestor`, `status`.
pub const NODE_ATTESTOR_NEW_SVID: Name = &["node", "attestor", "new_svid"];
/// Call (counter and `elapsed_time`) `agent_svid.rotate`; labels: `status`.
pub const AGENT_SVID_ROTATE: Name = &["agent_svid", "rotate"];
/// Call (counter and `elapsed_time`) `node.attest`; labels: `status`.
pub const NODE_ATTEST: Name = &["node", "attest"];
/// Counter `sds_api.connection`.
pub const SDS_API_CONNECTION: Name = &["sds_api", "connection"];
/// Gauge `sds_api.connections`.
pub const SDS_API_CONNECTIONS: Name = &["sds_api", "connections"];
/// Call (counter and `elapsed_time`) `store.store_svid_updates`; labels: `status`.
pub const STORE_STORE_SVID_UPDATES: Name = &["store", "store_svid_updates"];
/// Call (counter and `elapsed_time`) `workload_api.workload_attestation`; labels: `status`.
pub const WORKLOAD_API_WORKLOAD_ATTESTATION: Name = &["workload_api", "workload_attestation"];
/// Call (counter and `elapsed_time`) `workload_api.workload_attestor`; labels: `attestor`, `status`.
pub const WORKLOAD_API_WORKLOAD_ATTESTOR: Name = &["workload_api", "workload_attestor"];
/// Counter `workload_api.connection`.
pub const WORKLOAD_API_CONNECTION: Name = &["workload_api", "connection"];
/// Gauge `workload_api.connections`.
pub const WORKLOAD_API_CONNECTIONS: Name = &["workload_api", "connections"];
/// Counter `workload_api.rate_limit_exceeded`; labels: `method`.
pub const WORKLOAD_API_RATE_LIMIT_EXCEEDED: Name = &["workload_api", "rate_limit_exceeded"];
/// Sample `workload_api.discovered_selectors`.
pub const WORKLOAD_API_DISCOVERED_SELECTORS: Name = &["workload_api", "discovered_selectors"];
/// Sample `cache_manager.expiring_svids`; a cache type may follow as one more part.
pub const CACHE_MANAGER_EXPIRING_SVIDS: Name = &["cache_manager", "expiring_svids"];
/// Sample `cache_manager.expiring_svids.svid_store`; a cache type may follow as one more part.
pub const CACHE_MANAGER_EXPIRING_SVIDS_SVID_STORE: Name = &["cache_manager", "expiring_svids", "svid_store"];
/// Sample `cache_manager.outdated_svids`; a cache type may follow as one more part.
pub const CACHE_MANAGER_OUTDATED_SVIDS: Name = &["cache_manager", "outdated_svids"];
/// Sample `cache_manager.outdated_svids.svid_store`; a cache type may follow as one more part.
pub const CACHE_MANAGER_OUTDATED_SVIDS_SVID_STORE: Name = &["cache_manager", "outdated_svids", "svid_store"];
/// Sample `cache_manager.tainted_x509_svids.workload`; a cache type may follow as one more part.
pub const CACHE_MANAGER_TAINTED_X509_SVIDS_WORKLOAD: Name =
    &["cache_manager", "tainted_x509_svids", "workload"];
/// Sample `cache_manager.tainted_x509_svids.svid_store`; a cache type may follow as one more part.
pub const CACHE_MANAGER_TAINTED_X509_SVIDS_SVID_STORE: Name =
    &["cache_manager", "tainted_x509_svids", "svid_store"];
/// Sample `cache_manager.tainted_jwt_svids.workload`; a cache type may follow as one more part.
pub const CACHE_MANAGER_TAINTED_JWT_SVIDS_WORKLOAD: Name =
    &["cache_manager", "tainted_jwt_svids", "workload"];
