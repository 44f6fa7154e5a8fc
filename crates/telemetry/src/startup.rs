//! From a configuration file to the log: what both daemons do before anything else.

use spire_compat::config::{ConfigError, Notice, Severity, UnknownKeys};

/// Logs what reading a configuration found, in order.
pub fn log_notices(notices: &[Notice]) {
    for notice in notices {
        // `tracing` wants field names when it compiles; these are all that notices have.
        let field =
            |name: &str| notice.fields.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str());
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    address = field("address"),
                    alert = field("alert"),
                    alert_type = field("alert_type"),
                    ignored = field("ignored"),
                    key = field("key"),
                    keys = field("keys"),
                    position = field("position"),
                    positions = field("positions"),
                    section = field("section"),
                    "{}",
                    notice.message
                )
            };
        }
        match notice.severity {
            Severity::Debug => log!(debug),
            Severity::Info => log!(info),
            Severity::Warn => log!(warn),
        }
    }
}

/// Logs what a refused configuration asks to be logged before its error is printed.
pub fn log_refusal(error: &ConfigError) {
    log_notices(&error.notices);
    for unknown in &error.unknown {
        tracing::error!(keys = unknown.joined(), section = unknown.section, "{}", UnknownKeys::MESSAGE);
    }
}
