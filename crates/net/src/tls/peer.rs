//! Verification of the other side's certificate, and the proof of it.

use std::cell::{OnceCell, RefCell};
use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DistinguishedName, OtherError};
use spire_core::pki::Certificate;
use spire_core::pki::chain::{VerifiedX509Svid, X509SvidError, parse_and_verify_svid};
use spire_core::spiffe::SpiffeId;
use spire_core::time::Timestamp;

use super::signatures::signatures_by;
use super::{Authorize, TrustSource};

/// A peer that proved, in the handshake of its connection, that it holds the key of a certificate whose
/// chain ends in an authority of its trust domain at that time, and that was authorized to connect. Nothing
/// else can make one.
#[derive(Clone)]
pub struct VerifiedPeer(Arc<VerifiedX509Svid>);

impl VerifiedPeer {
    /// Who it is.
    pub fn id(&self) -> &SpiffeId {
        self.0.id()
    }

    /// Its certificate.
    pub fn leaf(&self) -> &Certificate {
        self.0.leaf()
    }

    /// The verified chain: its certificate first, the authority of the bundle last.
    pub fn chain(&self) -> &[Certificate] {
        self.0.chain()
    }
}

impl fmt::Debug for VerifiedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VerifiedPeer").field(self.id()).finish()
    }
}

/// Why a peer's certificate was refused.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The certificate or its chain is not good.
    #[error(transparent)]
    Svid(#[from] X509SvidError),
    /// It is somebody else than whom we dialled.
    #[error("unexpected ID \"{0}\"")]
    UnexpectedId(SpiffeId),
    /// It is neither a member of our trust domain nor named in the configuration.
    #[error("unexpected trust domain in ID \"{0}\"")]
    UnexpectedTrustDomain(SpiffeId),
    /// Without verification: the certificate does not even claim to be the server's.
    #[error("expected server SPIFFE ID \"{expected}\"; got [{found}]")]
    Unclaimed {
        /// Whom we dialled.
        expected: SpiffeId,
        /// The URIs in the certificate, separated by spaces.
        found: String,
    },
}

impl From<PeerError> for rustls::Error {
    fn from(error: PeerError) -> Self {
        CertificateError::Other(OtherError(Arc::new(error))).into()
    }
}

tokio::task_local! {
    /// Where the verifier leaves its result for the task whose handshake it serves. The library's own
    /// answer to "who is it" is the unverified bytes.
    static VERIFIED: RefCell<Option<VerifiedPeer>>;
}

/// Runs a handshake and gives what it returns with the client that was verified in it.
pub(super) async fn with_peer<T>(handshake: impl Future<Output = T>) -> (T, Option<VerifiedPeer>) {
    VERIFIED
        .scope(RefCell::new(None), async {
            let output = handshake.await;
            (output, VERIFIED.with(RefCell::take))
        })
        .await
}

/// Verifies SPIFFE peers of either side.
#[derive(Debug)]
pub(super) struct SpiffeVerifier {
    trust: Arc<dyn TrustSource>,
    authorize: Authorize,
    signatures: WebPkiSupportedAlgorithms,
    mandatory: bool,
}

impl SpiffeVerifier {
    pub(super) fn new(
        trust: Arc<dyn TrustSource>,
        authorize: Authorize,
        signatures: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self { trust, authorize, signatures, mandatory: false }
    }

    /// Refuses clients that show no certificate.
    pub(super) fn mandatory(self) -> Self {
        Self { mandatory: true, ..self }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<VerifiedPeer, PeerError> {
        let ders: Vec<&[u8]> =
            std::iter::once(leaf).chain(intermediates).map(|certificate| certificate.as_ref()).collect();
        let now = Timestamp::from_unix(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        let roots: OnceCell<Arc<[Certificate]>> = OnceCell::new();
        let svid = parse_and_verify_svid(
            ders.into_iter(),
            |trust_domain| {
                let authorities = self.trust.authorities(trust_domain)?;
                Some(&**roots.get_or_init(|| authorities))
            },
            now,
        )?;
        self.authorize.check(svid.id())?;
        Ok(VerifiedPeer(Arc::new(svid)))
    }
}

impl ClientCertVerifier for SpiffeVerifier {
    /// A client of the API without a certificate may ask to be attested.
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// Go's server names none either when it verifies by itself.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // The reason stays here; the client is told what Go's server tells it, "bad certificate", which no better
        // fitting error of the library would.
        let peer = self.verify(end_entity, intermediates, now).map_err(|error| {
            tracing::debug!(%error, "Client certificate refused");
            CertificateError::NotValidForName
        })?;
        VERIFIED
            .try_with(|verified| verified.replace(Some(peer)))
            .map_err(|_| rustls::Error::General("handshake outside of its task".to_owned()))?;
        Ok(ClientCertVerified::assertion())
    }

    signatures_by!(signatures);
}

impl ServerCertVerifier for SpiffeVerifier {
    /// The name that was dialled says nothing about a SPIFFE server, so it is not looked at.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures_by!(signatures);
}

/// Accepts any server that claims the right SPIFFE ID, without proof: `insecure_bootstrap`. What it claims
/// is checked so that a wrong address is noticed, as the reference does (`pkg/agent/attestor/node/node.go`,
/// serverConn).
#[derive(Debug)]
pub(super) struct UnverifiedServer {
    expected: SpiffeId,
    signatures: WebPkiSupportedAlgorithms,
}

impl UnverifiedServer {
    pub(super) fn new(expected: SpiffeId, signatures: WebPkiSupportedAlgorithms) -> Self {
        Self { expected, signatures }
    }
}

impl ServerCertVerifier for UnverifiedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = Certificate::from_der(end_entity.to_vec())
            .map_err(X509SvidError::from)
            .map_err(PeerError::from)?;
        if leaf.uris() != [self.expected.as_str()] {
            let found = leaf.uris().join(" ");
            return Err(PeerError::Unclaimed { expected: self.expected.clone(), found }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures_by!(signatures);
}
