//! UpstreamAuthority `disk`: signs this server's CA with a key in a file.
//!
//! The files are read again for each CA, so that an authority can be replaced while the server runs; when
//! they cannot be used then, the ones read last are (pkg/server/plugin/upstreamauthority/disk).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use spire_compat::quote::quote;
use spire_core::pki::chain::{self, Purpose};
use spire_core::pki::{
    Certificate, CertificateTemplate, CsrError, Issuer, LocalKey, PrivateKeyError, Profile, SerialNumber,
    VerifiedCsr, pem, validity,
};
use spire_core::spiffe::{JwtAuthority, SpiffeId, TrustDomain, X509Authority};
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{
    Error, ErrorKind, JwtAuthorityUpdates, MintedCa, PluginType, Result, UpstreamAuthority,
};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::machine::{blocking, now, random, read};

#[cfg(test)]
mod tests;

const NAME: &str = "disk";

/// How long a CA lives for which no lifetime was asked (x509svid.DefaultUpstreamCATTL).
const DEFAULT_TTL: Duration = Duration::from_secs(3600);

/// `cert_file_path`, `key_file_path`, `bundle_file_path`.
#[derive(Default)]
struct Settings {
    certificate: String,
    key: String,
    bundle: String,
    /// Of SPIRE up to 0.10; lifetimes come from the server now.
    has_ttl: bool,
}

/// An authority that was read and found to fit together.
struct Authority {
    issuer: Issuer,
    key: LocalKey,
    /// What follows a signed CA: the authority and its intermediates, unless it is itself the root.
    chain: Vec<Bytes>,
    roots: Vec<X509Authority>,
}

struct Disk {
    settings: Settings,
    trust_domain: TrustDomain,
    /// The authority that was read last.
    authority: Mutex<Arc<Authority>>,
}

struct Upstream(Arc<Disk>);

/// The authority, whose files must be good at start.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn UpstreamAuthority>> {
    let settings = configuration
        .decode(|data| {
            Ok(Settings {
                certificate: data.take_string("cert_file_path")?.unwrap_or_default(),
                key: data.take_string("key_file_path")?.unwrap_or_default(),
                bundle: data.take_string("bundle_file_path")?.unwrap_or_default(),
                has_ttl: data.take_fragment("ttl").0.is_some(),
            })
        })
        .map_err(|_| configuration.invalid("plugin configuration is malformed"))?;
    if settings.certificate.is_empty() || settings.key.is_empty() {
        return Err(configuration.invalid("'cert_file_path' and 'key_file_path' must be set and not empty"));
    }
    if settings.has_ttl {
        tracing::warn!(
            external = false,
            plugin_name = NAME,
            plugin_type = "UpstreamAuthority",
            "Setting \"ttl\" is ignored; set \"ca_ttl\" in the server section instead"
        );
    }
    let (settings, loaded) = blocking(move || {
        let loaded = settings.load();
        (settings, loaded)
    })
    .await;
    let authority = loaded.map_err(|error| configuration.invalid(error))?;
    let authority = Mutex::new(Arc::new(authority));
    Ok(Arc::new(Upstream(Arc::new(Disk { settings, trust_domain: configuration.trust_domain, authority }))))
}

impl Settings {
    /// Reads the files and checks that they fit together.
    fn load(&self) -> std::result::Result<Authority, String> {
        let key = read(&self.key)
            .and_then(|text| private_key(&text))
            .map_err(|error| format!("unable to load upstream CA key: {error}"))?;
        let certificates = certificates(&self.certificate)
            .map_err(|error| format!("unable to load upstream CA cert: {error}"))?;
        let authority = certificates.first().ok_or("unable to load upstream CA cert: no PEM blocks")?;
        let (chain, roots) = if self.bundle.is_empty() {
            // Then it is its own root, and a chain would have nowhere to end.
            if certificates.len() != 1 {
                return Err(
                    "with no bundle_file_path configured only self-signed CAs are supported".to_owned()
                );
            }
            (Vec::new(), certificates.clone())
        } else {
            let roots = self::certificates(&self.bundle)
                .map_err(|error| format!("unable to load upstream CA bundle: {error}"))?;
            (certificates.clone(), roots)
        };
        if authority.spki_der() != &key.public_key().spki()[..] {
            return Err("unable to load upstream CA: certificate and private key do not match".to_owned());
        }
        chain::verify(&certificates, &roots, Purpose::ServerAuth, now()).map_err(|_| {
            "unable to load upstream CA: certificate cannot be validated with the provided bundle or is not \
             self-signed"
                .to_owned()
        })?;
        let issuer =
            Issuer::new(authority).map_err(|error| format!("unable to load upstream CA: {error}"))?;
        let root = |root: &Certificate| X509Authority { der: root.der().clone(), tainted: false };
        Ok(Authority {
            issuer,
            key,
            chain: chain.iter().map(|certificate| certificate.der().clone()).collect(),
            roots: roots.iter().map(root).collect(),
        })
    }
}

fn certificates(path: &str) -> std::result::Result<Vec<Certificate>, String> {
    pem::certificates(&read(path)?).map_err(|error| error.to_string())
}

/// The key of a file that holds one block and nothing else (pemutil.LoadPrivateKey).
fn private_key(text: &[u8]) -> std::result::Result<LocalKey, String> {
    let mut count = 0;
    for block in pem::blocks(text) {
        let _contents = Zeroizing::new(block.contents);
        count += 1;
        if !matches!(block.label.as_str(), "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY") {
            return Err(format!(
                "expected block type [\"PRIVATE KEY\" \"RSA PRIVATE KEY\" \"EC PRIVATE KEY\"]; got {}",
                quote(&block.label)
            ));
        }
    }
    match count {
        0 => Err("no PEM blocks".to_owned()),
        1 => LocalKey::from_pem(text).map_err(|error: PrivateKeyError| error.to_string()),
        count => Err(format!("expected 1 PEM blocks; got {count}")),
    }
}

impl Disk {
    /// What the files hold now, or what they held when they were good.
    fn current(&self) -> Arc<Authority> {
        match self.settings.load() {
            Ok(fresh) => {
                let fresh = Arc::new(fresh);
                *self.authority.lock() = Arc::clone(&fresh);
                fresh
            }
            Err(error) => {
                tracing::warn!(
                    external = false,
                    plugin_name = NAME,
                    plugin_type = "UpstreamAuthority",
                    error,
                    "Failed to reload upstream CA; the one loaded before is used"
                );
                Arc::clone(&self.authority.lock())
            }
        }
    }

    fn mint(&self, csr: Vec<u8>, ttl: Duration) -> std::result::Result<MintedCa, String> {
        let authority = self.current();
        let csr = checked_csr(csr, &self.trust_domain)?;
        let id = self.trust_domain.id_string();
        let ttl = if ttl.is_zero() { DEFAULT_TTL } else { ttl };
        let (not_before, not_after) = validity(now(), ttl, Some(authority.issuer.not_after()));
        let to_be_signed = authority
            .issuer
            .certificate(&CertificateTemplate {
                profile: Profile::Ca,
                serial: SerialNumber::from_random(random()?),
                subject: csr.subject_name(),
                not_before,
                not_after,
                public_key: csr.public_key(),
                dns_names: &[],
                uri: &id,
                policies: &[],
                extra_extensions: csr.extensions(),
            })
            .map_err(|error| error.to_string())?;
        let signature = authority
            .key
            .sign(to_be_signed.algorithm(), to_be_signed.bytes())
            .map_err(|error| error.to_string())?;
        let mut chain = vec![Bytes::from(to_be_signed.assemble(&signature))];
        chain.extend(authority.chain.iter().cloned());
        // The sender is dropped: there is nothing to say later, since a changed file counts from the next
        // CA on.
        let (_, updates) = mpsc::channel(1);
        Ok(MintedCa { chain, roots: authority.roots.clone(), updates })
    }
}

/// A request of this trust domain's CA, with the texts of x509svid.ParseAndValidateCSR.
fn checked_csr(csr: Vec<u8>, trust_domain: &TrustDomain) -> std::result::Result<VerifiedCsr, String> {
    let csr = VerifiedCsr::from_der(csr).map_err(|error| match error {
        CsrError::Signature(_) | CsrError::Algorithm => format!("CSR signature check failed: {error}"),
        error => format!("unable to parse CSR: {error}"),
    })?;
    let [uri] = csr.uris() else { return Err("CSR must have exactly one URI SAN".to_owned()) };
    let invalid = |why: String| format!("CSR with SPIFFE ID {} is invalid: {why}", quote(uri));
    let id = SpiffeId::parse(uri).map_err(|error| invalid(error.to_string()))?;
    if id != trust_domain.id() {
        let name = quote(trust_domain.name());
        return Err(invalid(format!("must use the trust domain ID for trust domain {name}")));
    }
    Ok(csr)
}

#[async_trait]
impl UpstreamAuthority for Upstream {
    fn name(&self) -> &str {
        NAME
    }

    async fn mint_x509_ca(&self, csr: &[u8], _: &SpiffeId, ttl: Duration) -> Result<MintedCa> {
        let (disk, csr) = (Arc::clone(&self.0), csr.to_vec());
        blocking(move || disk.mint(csr, ttl)).await.map_err(|error| {
            let message = format!("unable to sign CSR: {error}");
            Error::new(ErrorKind::Internal, (PluginType::UpstreamAuthority, NAME), message)
        })
    }

    async fn publish_jwt_key(&self, _: &JwtAuthority) -> Result<(Vec<JwtAuthority>, JwtAuthorityUpdates)> {
        let message = "publishing upstream is unsupported";
        Err(Error::new(ErrorKind::Unimplemented, (PluginType::UpstreamAuthority, NAME), message))
    }
}
