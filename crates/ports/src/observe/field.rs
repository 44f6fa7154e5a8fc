//! Names of log fields, as the reference's logs have them (`pkg/common/telemetry/names.go`).
//!
//! `tracing`'s macros take a name literally (`spiffe_id = %id`) or as a constant (`{ field::SPIFFE_ID } = %id`);
//! the constants are also for code that builds or looks for fields, and tests.

/// `address`
pub const ADDRESS: &str = "address";
/// `admin_ids`
pub const ADMIN_IDS: &str = "admin_ids";
/// `agent_id`
pub const AGENT_ID: &str = "agent_id";
/// `agent_version`
pub const AGENT_VERSION: &str = "agent_version";
/// `attempt`
pub const ATTEMPT: &str = "attempt";
/// `audience`
pub const AUDIENCE: &str = "audience";
/// `authorized_as`
pub const AUTHORIZED_AS: &str = "authorized_as";
/// `authorized_via`
pub const AUTHORIZED_VIA: &str = "authorized_via";
/// `bundle_endpoint_profile`
pub const BUNDLE_ENDPOINT_PROFILE: &str = "bundle_endpoint_profile";
/// `bundle_endpoint_url`
pub const BUNDLE_ENDPOINT_URL: &str = "bundle_endpoint_url";
/// `cache_type`
pub const CACHE_TYPE: &str = "cache_type";
/// `caller_addr`
pub const CALLER_ADDR: &str = "caller_addr";
/// `caller_gid`
pub const CALLER_GID: &str = "caller_gid";
/// `caller_id`
pub const CALLER_ID: &str = "caller_id";
/// `caller_path`
pub const CALLER_PATH: &str = "caller_path";
/// `caller_uid`
pub const CALLER_UID: &str = "caller_uid";
/// `check`
pub const CHECK: &str = "check";
/// `count`
pub const COUNT: &str = "count";
/// `csr_spiffe_id`
pub const CSR_SPIFFE_ID: &str = "csr_spiffe_id";
/// `data_dir`
pub const DATA_DIR: &str = "data_dir";
/// `db_type`
pub const DB_TYPE: &str = "db_type";
/// `details`
pub const DETAILS: &str = "details";
/// `duration`
pub const DURATION: &str = "duration";
/// `elapsed_time`
pub const ELAPSED_TIME: &str = "elapsed_time";
/// `endpoint_spiffe_id`
pub const ENDPOINT_SPIFFE_ID: &str = "endpoint_spiffe_id";
/// `entry_id`
pub const ENTRY_ID: &str = "entry_id";
/// `error`
pub const ERROR: &str = "error";
/// `event_id`
pub const EVENT_ID: &str = "event_id";
/// `expiration`
pub const EXPIRATION: &str = "expiration";
/// `expires_at`
pub const EXPIRES_AT: &str = "expires_at";
/// `external`
pub const EXTERNAL: &str = "external";
/// `failures`
pub const FAILURES: &str = "failures";
/// `federates_with`
pub const FEDERATES_WITH: &str = "federates_with";
/// `file`
pub const FILE: &str = "file";
/// `func`
pub const FUNC: &str = "func";
/// `hint`
pub const HINT: &str = "hint";
/// `issued_at`
pub const ISSUED_AT: &str = "issued_at";
/// `jwt_keys`
pub const JWT_KEYS: &str = "jwt_keys";
/// `kid`
pub const KID: &str = "kid";
/// `launch_log_level`
pub const LAUNCH_LOG_LEVEL: &str = "launch_log_level";
/// `limit`
pub const LIMIT: &str = "limit";
/// `local_authority_id`
pub const LOCAL_AUTHORITY_ID: &str = "local_authority_id";
/// `method`
pub const METHOD: &str = "method";
/// `network`
pub const NETWORK: &str = "network";
/// `new_log_level`
pub const NEW_LOG_LEVEL: &str = "new_log_level";
/// `node_attestor_type`
pub const NODE_ATTESTOR_TYPE: &str = "node_attestor_type";
/// `parent_id`
pub const PARENT_ID: &str = "parent_id";
/// `path`
pub const PATH: &str = "path";
/// `peer_id`
pub const PEER_ID: &str = "peer_id";
/// `pid`
pub const PID: &str = "pid";
/// `plugin_name`
pub const PLUGIN_NAME: &str = "plugin_name";
/// `plugin_service`
pub const PLUGIN_SERVICE: &str = "plugin_service";
/// `plugin_type`
pub const PLUGIN_TYPE: &str = "plugin_type";
/// `pruned`
pub const PRUNED: &str = "pruned";
/// `read_only`
pub const READ_ONLY: &str = "read_only";
/// `reason`
pub const REASON: &str = "reason";
/// `reattestable`
pub const REATTESTABLE: &str = "reattestable";
/// `reconfigurable`
pub const RECONFIGURABLE: &str = "reconfigurable";
/// `refresh_hint`
pub const REFRESH_HINT: &str = "refresh_hint";
/// `request_id`
pub const REQUEST_ID: &str = "request_id";
/// `retry_interval`
pub const RETRY_INTERVAL: &str = "retry_interval";
/// `revision_number`
pub const REVISION_NUMBER: &str = "revision_number";
/// `schema`
pub const SCHEMA: &str = "schema";
/// `seconds`
pub const SECONDS: &str = "seconds";
/// `selector`
pub const SELECTOR: &str = "selector";
/// `selectors`
pub const SELECTORS: &str = "selectors";
/// `selectors_added`
pub const SELECTORS_ADDED: &str = "selectors_added";
/// `sequence_number`
pub const SEQUENCE_NUMBER: &str = "sequence_number";
/// `serial_num`
pub const SERIAL_NUM: &str = "serial_num";
/// `service`
pub const SERVICE: &str = "service";
/// `slot`
pub const SLOT: &str = "slot";
/// `spiffe_id`
pub const SPIFFE_ID: &str = "spiffe_id";
/// `status`
pub const STATUS: &str = "status";
/// `status_code`
pub const STATUS_CODE: &str = "status_code";
/// `status_message`
pub const STATUS_MESSAGE: &str = "status_message";
/// `store_svid`
pub const STORE_SVID: &str = "store_svid";
/// `subject_key_id`
pub const SUBJECT_KEY_ID: &str = "subject_key_id";
/// `subsystem_name`
pub const SUBSYSTEM_NAME: &str = "subsystem_name";
/// `svid_type`
pub const SVID_TYPE: &str = "svid_type";
/// `trust_domain`
pub const TRUST_DOMAIN: &str = "trust_domain";
/// `trust_domain_id`
pub const TRUST_DOMAIN_ID: &str = "trust_domain_id";
/// `ttl`
pub const TTL: &str = "ttl";
/// `type`
pub const TYPE: &str = "type";
/// `upstream_authority_id`
pub const UPSTREAM_AUTHORITY_ID: &str = "upstream_authority_id";
/// `version`
pub const VERSION: &str = "version";
/// `wit_keys`
pub const WIT_KEYS: &str = "wit_keys";
/// `workload_attestor`
pub const WORKLOAD_ATTESTOR: &str = "workload_attestor";
/// `x509_cas`
pub const X509_CAS: &str = "x509_cas";
