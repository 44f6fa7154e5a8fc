//! Why the CA cannot sign, and why authorities cannot be changed.

use spire_core::authority::{Kind, OperationError};
use spire_core::pki::{CertificateError, JwsError, NameError, PublicKeyError, TemplateError};
use spire_core::spiffe::{SpiffeId, TrustDomain};
use spire_ports::observe::GrpcCode;
use spire_ports::{datastore, plugins};

use super::validate::CredentialError;

/// Why a credential was not signed. Texts are the reference's (pkg/server/ca/ca.go,
/// pkg/server/credtemplate).
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// No authority of that kind is active.
    #[error("{} is not available for signing", authority_name(*.0))]
    NotAvailable(Kind),
    /// `disable_jwt_svids`, or WIT without the feature flag. API services answer Unimplemented.
    #[error("{} functionality is disabled", match .0 { Kind::X509 => "X.509", Kind::Jwt => "JWT", Kind::Wit => "WIT" })]
    Disabled(Kind),
    /// An SVID for another trust domain.
    #[error("invalid {what} ID: {:?} is not a member of trust domain {:?}", .id.as_str(), .trust_domain.name())]
    NotMember {
        /// Such as `X509-SVID`.
        what: &'static str,
        /// For whom.
        id: SpiffeId,
        /// Ours.
        trust_domain: TrustDomain,
    },
    /// An SVID for a trust domain itself.
    #[error("invalid {what} ID: {:?} is not a member of trust domain {:?}; path is empty", .id.as_str(), .trust_domain.name())]
    NoPath {
        /// Such as `X509-SVID`.
        what: &'static str,
        /// For whom.
        id: SpiffeId,
        /// Ours.
        trust_domain: TrustDomain,
    },
    /// A JWT-SVID for nobody.
    #[error("invalid JWT-SVID audience: cannot be empty")]
    NoAudience,
    /// A credential composer failed.
    #[error(transparent)]
    Composer(plugins::Error),
    /// A credential composer returned what cannot be encoded.
    #[error("credential composer returned invalid attributes: {0}")]
    Attributes(String),
    /// The KeyManager did not sign.
    #[error("{what}: {source}")]
    Key {
        /// What failed, in the reference's words.
        what: &'static str,
        /// Why.
        source: plugins::Error,
    },
    /// A certificate that cannot be encoded.
    #[error("failed to sign X509 SVID: {0}")]
    Template(#[from] TemplateError),
    /// A name that cannot be encoded.
    #[error(transparent)]
    Name(#[from] NameError),
    /// What was signed is not what it must be; only credential composers or clocks can cause it.
    #[error("invalid {what}: {reason}")]
    Invalid {
        /// Such as `workload X509-SVID`.
        what: &'static str,
        /// What is wrong with it.
        reason: CredentialError,
    },
    /// A token that is not what it must be.
    #[error(transparent)]
    InvalidToken(CredentialError),
    /// The certificate that was made cannot be read back.
    #[error("failed to sign X509 SVID: {0}")]
    Unreadable(#[from] CertificateError),
    /// A token that cannot be made.
    #[error("unable to sign {} SVID: {error}", match .kind { Kind::Wit => "WIT", _ => "JWT" })]
    Token {
        /// JWT or WIT.
        kind: Kind,
        /// Why.
        error: JwsError,
    },
    /// A key that cannot be in a token.
    #[error("public key must have algorithm set")]
    TokenKey,
    /// The system's random source failed.
    #[error("failed to get new serial number: no entropy")]
    Entropy,
}

/// Why authorities could not be loaded, prepared, activated, tainted or revoked.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The operation is not allowed now; see [`OperationError::fault`].
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// KeyManager or UpstreamAuthority failed.
    #[error(transparent)]
    Plugin(#[from] plugins::Error),
    /// The datastore failed.
    #[error(transparent)]
    Store(#[from] datastore::Error),
    /// Looking for the journal failed.
    #[error("failed to load journal from datastore: failed to find CA journal record: {0}")]
    Journal(String),
    /// The journal was not stored, so what it would have recorded did not happen.
    #[error("could not save CA journal in the datastore: {0}")]
    JournalWrite(datastore::Error),
    /// A recorded certificate cannot be read.
    #[error("unable to parse {what}: {error}")]
    Recorded {
        /// `CA certificate` or `upstream chain certificate`.
        what: &'static str,
        /// Why.
        error: CertificateError,
    },
    /// A CA certificate that we made or were given is of no use.
    #[error("{0}")]
    BadCa(String),
    /// A key of a kind that cannot sign.
    #[error(transparent)]
    KeyKind(#[from] PublicKeyError),
    /// Making the CA certificate failed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The upstream authority did not answer in time.
    #[error("upstream authority did not answer within {0} seconds")]
    UpstreamTimeout(u64),
    /// No such tainted root.
    #[error("no tainted root CA found with authority ID: {0:?}")]
    NotTainted(String),
    /// The bundle of our own trust domain is not stored.
    #[error("trust domain bundle is missing")]
    NoBundle,
    /// There are no authorities of that kind here.
    #[error("{} functionality is disabled", match .0 { Kind::X509 => "X.509", Kind::Jwt => "JWT", Kind::Wit => "WIT" })]
    Disabled(Kind),
    /// A step of an upstream rotation.
    #[error("{what}: {source}")]
    Step {
        /// What failed.
        what: &'static str,
        /// Why.
        source: Box<CaError>,
    },
}

impl GrpcCode for SignError {
    fn grpc_code(&self) -> &'static str {
        match self {
            Self::Composer(error) | Self::Key { source: error, .. } => error.grpc_code(),
            _ => "Unknown",
        }
    }
}

impl GrpcCode for CaError {
    fn grpc_code(&self) -> &'static str {
        match self {
            Self::Plugin(error) => error.grpc_code(),
            Self::Store(error) | Self::JournalWrite(error) => error.grpc_code(),
            Self::Sign(error) => error.grpc_code(),
            Self::Step { source, .. } => source.grpc_code(),
            // Of the datastore's errors `Journal` has the text only.
            _ => "Unknown",
        }
    }
}

fn authority_name(kind: Kind) -> &'static str {
    match kind {
        Kind::X509 => "X509 CA",
        Kind::Jwt => "JWT key",
        Kind::Wit => "WIT key",
    }
}
