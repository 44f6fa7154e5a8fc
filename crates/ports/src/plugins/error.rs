//! The error that every plugin call may return.

use std::fmt;

use crate::observe::GrpcCode;

/// Result of a plugin call.
pub type Result<T> = std::result::Result<T, Error>;

/// A plugin type, spelt as in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the plugin type of that name")]
pub enum PluginType {
    BundlePublisher,
    CredentialComposer,
    DataStore,
    KeyManager,
    NodeAttestor,
    Notifier,
    SvidStore,
    UpstreamAuthority,
    WorkloadAttestor,
}

impl PluginType {
    /// The name in configuration and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BundlePublisher => "BundlePublisher",
            Self::CredentialComposer => "CredentialComposer",
            Self::DataStore => "DataStore",
            Self::KeyManager => "KeyManager",
            Self::NodeAttestor => "NodeAttestor",
            Self::Notifier => "Notifier",
            Self::SvidStore => "SVIDStore",
            Self::UpstreamAuthority => "UpstreamAuthority",
            Self::WorkloadAttestor => "WorkloadAttestor",
        }
    }
}

impl fmt::Display for PluginType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What kind of failure it is; the edges map it to a gRPC status code of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the gRPC status code of that name")]
pub enum ErrorKind {
    Canceled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

/// A failed plugin call. Displays as `type(name): message`, which is what API callers see, whether the
/// plugin is built in or external (pkg/common/plugin/facade.go).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The kind of failure.
    pub kind: ErrorKind,
    /// Which plugin: its type and name.
    pub plugin: (PluginType, String),
    /// What went wrong.
    pub message: String,
}

impl ErrorKind {
    /// The name of the gRPC status code, as Go prints it.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Canceled => "Canceled",
            Self::Unknown => "Unknown",
            Self::InvalidArgument => "InvalidArgument",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::PermissionDenied => "PermissionDenied",
            Self::ResourceExhausted => "ResourceExhausted",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::Aborted => "Aborted",
            Self::OutOfRange => "OutOfRange",
            Self::Unimplemented => "Unimplemented",
            Self::Internal => "Internal",
            Self::Unavailable => "Unavailable",
            Self::DataLoss => "DataLoss",
            Self::Unauthenticated => "Unauthenticated",
        }
    }
}

impl Error {
    /// A failure of the named plugin.
    pub fn new(kind: ErrorKind, plugin: (PluginType, &str), message: impl Into<String>) -> Self {
        Self { kind, plugin: (plugin.0, plugin.1.to_owned()), message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = &self.plugin;
        write!(f, "{}({name}): {}", kind.as_str().to_ascii_lowercase(), self.message)
    }
}

impl std::error::Error for Error {}

impl GrpcCode for Error {
    fn grpc_code(&self) -> &'static str {
        self.kind.code()
    }
}
