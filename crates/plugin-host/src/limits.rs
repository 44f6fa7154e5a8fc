//! How long a plugin may take for what, and how much it may send.

use std::time::Duration;

/// Largest message of a plugin, either way. SPIRE has no bound; the largest that it makes are bundles and lists of
/// keys, which stay far below.
pub(crate) const MESSAGE_SIZE_MAX: usize = 16 << 20;

/// Calls in a row that met their deadline after which the plugin counts as hung.
pub(crate) const TIMEOUTS_MAX: u32 = 3;

/// Health checks in a row without an answer after which the plugin counts as hung.
pub(crate) const SILENT_CHECKS_MAX: u32 = 2;

/// Time limits. SPIRE has those of the start and the stop, and the one of key managers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the start of the program to its first line, and again to the answer to `Init` (go-plugin:
    /// `StartTimeout`).
    pub start: Duration,
    /// For `Configure` and `Validate`: a plugin may reach for a cloud.
    pub configure: Duration,
    /// For a call of a key manager (pkg/server/plugin/keymanager: `rpcTimeout`).
    pub key_manager: Duration,
    /// For any other call, and for each step of an attestation.
    pub call: Duration,
    /// For the first answer of an upstream authority, which may have to wait for a person or a cloud.
    pub upstream: Duration,
    /// For `Deinit` (pkg/common/catalog: `deinitTimeout`).
    pub deinit: Duration,
    /// For the program to exit after it was told to (go-plugin: 2 s).
    pub exit: Duration,
    /// Time between health checks.
    pub health_interval: Duration,
    /// For the answer to a health check.
    pub health: Duration,
    /// Wait before the first restart. It doubles with each start that fails.
    pub restart_min: Duration,
    /// Longest wait before a restart; a child that ran this long begins with the shortest again.
    pub restart_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(60),
            configure: Duration::from_secs(2 * 60),
            key_manager: Duration::from_secs(30),
            call: Duration::from_secs(60),
            upstream: Duration::from_secs(2 * 60),
            deinit: Duration::from_secs(10),
            exit: Duration::from_secs(2),
            health_interval: Duration::from_secs(10),
            health: Duration::from_secs(5),
            restart_min: Duration::from_secs(1),
            restart_max: Duration::from_secs(60),
        }
    }
}
