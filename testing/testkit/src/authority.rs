//! Certificates for servers and clients that stand in for others in tests.

use std::time::{Duration, SystemTime};

use spire_core::pki::{
    Certificate, CertificateTemplate, DistinguishedName, EncodedName, Issuer, KeyType, LocalKey, Profile,
    PublicKey, SerialNumber, pem, self_signed, validity,
};
use spire_core::time::Timestamp;

use crate::error::{Error, Result};

/// An authority that lives for an hour.
pub struct Authority {
    key: LocalKey,
    certificate: Certificate,
}

/// A certificate with its key, both PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its private key, PKCS#8.
    pub key: String,
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::doing("making a certificate", error)
}

impl Authority {
    /// A new one of that name.
    ///
    /// # Errors
    /// The crypto library failed.
    pub fn new(name: &str) -> Result<Self> {
        let key = LocalKey::generate(KeyType::EcP256).map_err(failed)?;
        let subject = subject(name)?;
        let signed = self_signed(&template(Profile::Ca, &subject, key.public_key(), &[])?).map_err(failed)?;
        let signature = key.sign(signed.algorithm(), signed.bytes()).map_err(failed)?;
        let certificate = Certificate::from_der(signed.assemble(&signature)).map_err(failed)?;
        Ok(Self { key, certificate })
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        pem::encode("CERTIFICATE", self.certificate.der())
    }

    /// Its certificate, DER.
    pub fn der(&self) -> &[u8] {
        self.certificate.der()
    }

    /// A certificate for servers of these names, or a client's without any.
    ///
    /// # Errors
    /// The crypto library failed.
    pub fn issue(&self, common_name: &str, dns_names: &[&str]) -> Result<Pair> {
        let key = LocalKey::generate(KeyType::EcP256).map_err(failed)?;
        let subject = subject(common_name)?;
        let names: Vec<String> = dns_names.iter().map(|name| (*name).to_owned()).collect();
        let template = template(Profile::Svid, &subject, key.public_key(), &names)?;
        let signed =
            Issuer::new(&self.certificate).map_err(failed)?.certificate(&template).map_err(failed)?;
        let signature = self.key.sign(signed.algorithm(), signed.bytes()).map_err(failed)?;
        let certificate = pem::encode("CERTIFICATE", &signed.assemble(&signature));
        Ok(Pair { certificate, key: key.to_pkcs8_pem().map_err(failed)?.to_string() })
    }
}

fn subject(common_name: &str) -> Result<EncodedName> {
    let name = DistinguishedName { common_name: common_name.to_owned(), ..DistinguishedName::default() };
    name.encode().map_err(failed)
}

fn template<'a>(
    profile: Profile,
    subject: &'a EncodedName,
    public_key: &'a PublicKey,
    dns_names: &'a [String],
) -> Result<CertificateTemplate<'a>> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(failed)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (not_before, not_after) = validity(Timestamp::EPOCH + now, Duration::from_secs(3600), None);
    Ok(CertificateTemplate {
        profile,
        serial: SerialNumber::from_random(serial),
        subject,
        not_before,
        not_after,
        public_key,
        dns_names,
        uri: "",
        policies: &[],
        extra_extensions: &[],
    })
}
