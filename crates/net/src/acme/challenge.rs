//! What the listener shows: the certificate, or to the authority the proof of `tls-alpn-01` (RFC 8737).

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use spire_core::pki::{
    CertificateTemplate, DistinguishedName, Extension, KeyType, LocalKey, Profile, SerialNumber, self_signed,
};

use tokio::sync::Notify;

use super::{AcmeError, now};
use crate::tls::{ALPN_ACME, Identity};

/// The extension that carries the proof (RFC 8737, section 3).
const ACME_IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";
/// How long a proof is valid: longer than an order takes.
const PROOF_LIFETIME: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// Chooses what is shown by the name and the protocol that a client asks for.
#[derive(Debug)]
pub(super) struct Resolver {
    domain: String,
    identity: Arc<Identity>,
    proof: ArcSwapOption<CertifiedKey>,
    /// Told when a client asks for our name.
    asked: Notify,
}

impl Resolver {
    pub(super) fn new(domain: &str, identity: Arc<Identity>) -> Self {
        Self { domain: domain.to_owned(), identity, proof: ArcSwapOption::empty(), asked: Notify::new() }
    }

    /// A client asks for the name. One permit at most is kept.
    pub(super) fn ask(&self) {
        self.asked.notify_one();
    }

    /// Waits until a client asks for the name.
    pub(super) async fn wanted(&self) {
        self.asked.notified().await;
    }

    /// Shows this proof from now on.
    pub(super) fn answer(&self, digest: &[u8]) -> Result<(), AcmeError> {
        self.proof.store(Some(Arc::new(self.proof_of(digest)?)));
        Ok(())
    }

    /// Shows no proof any more.
    pub(super) fn forget(&self) {
        self.proof.store(None);
    }

    fn proof_of(&self, digest: &[u8]) -> Result<CertifiedKey, AcmeError> {
        let encoding = |error: &dyn std::fmt::Display| AcmeError::Encoding(error.to_string());
        let key = LocalKey::generate(KeyType::EcP256).map_err(|e| encoding(&e))?;
        // An OCTET STRING within the extension's.
        let mut value = vec![4, u8::try_from(digest.len()).map_err(|e| encoding(&e))?];
        value.extend_from_slice(digest);
        let extension =
            Extension::new(ACME_IDENTIFIER, true, value).ok_or_else(|| encoding(&ACME_IDENTIFIER))?;
        let mut serial = [0; 16];
        default_provider().secure_random.fill(&mut serial).map_err(|_| encoding(&"no random numbers"))?;
        let subject = DistinguishedName::default().encode().map_err(|e| encoding(&e))?;
        let template = CertificateTemplate {
            profile: Profile::Svid,
            serial: SerialNumber::from_random(serial),
            subject: &subject,
            not_before: now() - PROOF_LIFETIME,
            not_after: now() + PROOF_LIFETIME,
            public_key: key.public_key(),
            dns_names: std::slice::from_ref(&self.domain),
            uri: "",
            policies: &[],
            extra_extensions: std::slice::from_ref(&extension),
        };
        let unsigned = self_signed(&template).map_err(|e| encoding(&e))?;
        let signature = key.sign(unsigned.algorithm(), unsigned.bytes()).map_err(|e| encoding(&e))?;
        let pkcs8 = key.to_pkcs8().map_err(|e| encoding(&e))?;
        let key = any_supported_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(&pkcs8[..])))
            .map_err(|e| encoding(&e))?;
        Ok(CertifiedKey::new(vec![CertificateDer::from(unsigned.assemble(&signature))], key))
    }
}

impl ResolvesServerCert for Resolver {
    /// Who does not say our name gets nothing, as the reference's host policy has it.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if !hello.server_name()?.eq_ignore_ascii_case(&self.domain) {
            return None;
        }
        let mut protocols = hello.alpn().into_iter().flatten();
        if protocols.next() == Some(ALPN_ACME) && protocols.next().is_none() {
            return self.proof.load_full();
        }
        self.ask();
        self.identity.resolve(hello)
    }
}

/// Those of several names.
#[derive(Debug)]
pub(super) struct Resolvers(HashMap<String, Arc<Resolver>>);

impl Resolvers {
    pub(super) fn new(resolvers: impl Iterator<Item = Arc<Resolver>>) -> Self {
        Self(resolvers.map(|resolver| (resolver.domain.clone(), resolver)).collect())
    }
}

impl ResolvesServerCert for Resolvers {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.to_ascii_lowercase();
        self.0.get(&name)?.resolve(hello)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spire_core::pki::Certificate;

    #[test]
    fn the_proof_is_a_certificate_for_the_name_with_the_digest() {
        let resolver = Resolver::new("a.test", Identity::empty());
        let proof = resolver.proof_of(&[7; 32]).expect("a proof");
        let certificate = Certificate::from_der(proof.cert[0].to_vec()).expect("a certificate");
        assert_eq!(certificate.dns_names(), ["a.test"]);
        let extension =
            certificate.extensions().iter().find(|e| e.oid() == ACME_IDENTIFIER).expect("the proof");
        assert!(extension.critical);
        assert_eq!(extension.value, [&[4, 32][..], &[7; 32]].concat());
        let key = proof.key.public_key().expect("a public key");
        assert_eq!(&key[..], certificate.spki_der());
    }
}
