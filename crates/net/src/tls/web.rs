//! Verification of servers by the web's authorities, with Go's words for what is wrong with a certificate.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, OtherError, RootCertStore};
use spire_compat::gotime;
use spire_core::pki::Certificate;
use spire_core::spiffe::SpiffeId;

use super::signatures::signatures_by;

/// Names of a certificate that an error shows, Go's number.
const NAMES_SHOWN: usize = 100;

/// Verifies servers by the web's authorities.
#[derive(Debug)]
pub(super) struct WebVerifier {
    /// Absent where there are no authorities; then nobody is trusted.
    inner: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl WebVerifier {
    pub(super) fn new(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Self {
        let inner =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().ok();
        Self { inner, provider }
    }
}

/// Verifies servers by authorities, but not their names.
#[derive(Debug)]
pub(super) struct AnyNameVerifier {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl AnyNameVerifier {
    pub(super) fn new(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Self {
        Self { roots, provider }
    }
}

impl ServerCertVerifier for AnyNameVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let verified = ParsedCertificate::try_from(end_entity).and_then(|leaf| {
            verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, algorithms)
        });
        match verified {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(error) => Err(said(error, Certificate::from_der(end_entity.to_vec()).ok(), None, now)),
        }
    }

    signatures_by!(provider.signature_verification_algorithms);
}

/// Believes any server that has the key of the certificate that it shows (Go's `InsecureSkipVerify`).
#[derive(Debug)]
pub(super) struct Unverified {
    provider: Arc<CryptoProvider>,
}

impl Unverified {
    pub(super) fn new(provider: Arc<CryptoProvider>) -> Self {
        Self { provider }
    }
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    signatures_by!(provider.signature_verification_algorithms);
}

/// Why a web server's certificate was refused.
#[derive(Debug)]
pub(super) struct WebError {
    text: String,
    /// The SPIFFE ID in a certificate that is not for the name that was dialled: somebody mistook a server with
    /// an SVID for a web server.
    pub(super) spiffe_id: Option<SpiffeId>,
}

impl fmt::Display for WebError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tls: failed to verify certificate: {}", self.text)
    }
}

impl std::error::Error for WebError {}

impl ServerCertVerifier for WebVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = match &self.inner {
            Some(inner) => inner.verify_server_cert(end_entity, intermediates, name, ocsp, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        verified.map_err(|error| explain(error, end_entity, name, now))
    }

    signatures_by!(provider.signature_verification_algorithms);
}

/// Go looks at the name before anything else (crypto/x509 Certificate.Verify), so a wrong name is what it reports even
/// where the issuer is unknown too.
fn explain(
    error: rustls::Error,
    leaf: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: UnixTime,
) -> rustls::Error {
    let leaf = Certificate::from_der(leaf.to_vec()).ok();
    let mismatch = leaf.as_ref().and_then(|leaf| mismatch(leaf, name));
    said(error, leaf, mismatch, now)
}

/// The error in Go's words.
fn said(
    error: rustls::Error,
    leaf: Option<Certificate>,
    mismatch: Option<String>,
    now: UnixTime,
) -> rustls::Error {
    let rustls::Error::InvalidCertificate(kind) = &error else { return error };
    let wrong_name = mismatch.is_some();
    let text = match (mismatch, kind, &leaf) {
        (Some(text), _, _) => text,
        (None, CertificateError::UnknownIssuer | CertificateError::BadSignature, _) => {
            "x509: certificate signed by unknown authority".to_owned()
        }
        (
            None,
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
            Some(leaf),
        ) => validity(leaf, now),
        (None, CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. }, _) => {
            "x509: certificate specifies an incompatible key usage".to_owned()
        }
        _ => format!("x509: {kind}"),
    };
    let spiffe_id = leaf.filter(|_| wrong_name).and_then(|leaf| SpiffeId::parse(leaf.uris().first()?).ok());
    CertificateError::Other(OtherError(Arc::new(WebError { text, spiffe_id }))).into()
}

fn validity(leaf: &Certificate, now: UnixTime) -> String {
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let (relation, limit) = if seconds < leaf.not_before().unix() {
        ("before", leaf.not_before())
    } else {
        ("after", leaf.not_after())
    };
    format!(
        "x509: certificate has expired or is not yet valid: current time {} is {relation} {}",
        gotime::rfc3339(seconds),
        gotime::rfc3339(limit.unix())
    )
}

/// Go's HostnameError, if the certificate is not for this name.
fn mismatch(leaf: &Certificate, name: &ServerName<'_>) -> Option<String> {
    let (host, names) = match name {
        ServerName::IpAddress(ip) => {
            let ip = IpAddr::from(*ip);
            if leaf.ip_addresses().contains(&ip) {
                return None;
            }
            if leaf.ip_addresses().is_empty() {
                return Some(format!(
                    "x509: cannot validate certificate for {ip} because it doesn't contain any IP SANs"
                ));
            }
            (ip.to_string(), leaf.ip_addresses().iter().map(ToString::to_string).collect::<Vec<_>>())
        }
        ServerName::DnsName(host) => {
            let host = host.as_ref();
            if leaf.dns_names().iter().any(|pattern| covers(pattern, host)) {
                return None;
            }
            (host.to_owned(), leaf.dns_names().to_vec())
        }
        _ => return None,
    };
    if names.is_empty() {
        return Some(format!("x509: certificate is not valid for any names, but wanted to match {host}"));
    }
    let shown = names.len().min(NAMES_SHOWN);
    Some(format!("x509: certificate is valid for {}, not {host}", names[..shown].join(", ")))
}

/// Whether a name of a certificate covers a host; a wildcard stands for one whole label, the first.
fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(rest) => host.split_once('.').is_some_and(|(_, domain)| domain.eq_ignore_ascii_case(rest)),
        None => pattern.eq_ignore_ascii_case(host),
    }
}
