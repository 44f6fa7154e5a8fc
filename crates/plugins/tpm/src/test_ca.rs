//! Certificates for tests: authorities, DevIDs, and endorsement certificates as TPMs have them.

#![allow(dead_code, reason = "two test programs share this, and neither uses all of it")]

use std::time::{Duration, SystemTime};

use spire_core::pki::{
    Certificate, CertificateTemplate, DistinguishedName, EncodedName, Extension, Issuer, KeyType, LocalKey,
    Profile, PublicKey, SerialNumber, pem, self_signed, validity,
};
use spire_core::time::Timestamp;

/// An authority with its key.
pub(crate) struct Ca {
    pub(crate) key: LocalKey,
    pub(crate) certificate: Certificate,
}

/// What a certificate for a test says.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) profile: Profile,
    pub(crate) name: &'a str,
    pub(crate) extensions: &'a [Extension],
    /// How long ago its hour began.
    pub(crate) age: Duration,
}

impl<'a> Wanted<'a> {
    pub(crate) fn leaf(name: &'a str) -> Self {
        Self { profile: Profile::Svid, name, extensions: &[], age: Duration::ZERO }
    }

    pub(crate) fn authority(name: &'a str) -> Self {
        Self { profile: Profile::Ca, ..Self::leaf(name) }
    }

    /// One that ended an hour ago.
    pub(crate) fn expired(self) -> Self {
        Self { age: Duration::from_secs(7200), ..self }
    }
}

impl Ca {
    pub(crate) fn root(common_name: &str) -> Self {
        Self::root_of(Wanted::authority(common_name))
    }

    pub(crate) fn root_of(wanted: Wanted<'_>) -> Self {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let subject = name(wanted.name);
        let signed = self_signed(&template(wanted, &subject, key.public_key())).unwrap();
        let signature = key.sign(signed.algorithm(), signed.bytes()).unwrap();
        Self { certificate: Certificate::from_der(signed.assemble(&signature)).unwrap(), key }
    }

    /// An authority below this one.
    pub(crate) fn intermediate(&self, wanted: Wanted<'_>) -> Self {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let certificate = self.issue(wanted, key.public_key());
        Self { key, certificate }
    }

    /// A certificate for a key.
    pub(crate) fn issue(&self, wanted: Wanted<'_>, key: &PublicKey) -> Certificate {
        let subject = name(wanted.name);
        let template = template(wanted, &subject, key);
        let signed = Issuer::new(&self.certificate).unwrap().certificate(&template).unwrap();
        let signature = self.key.sign(signed.algorithm(), signed.bytes()).unwrap();
        Certificate::from_der(signed.assemble(&signature)).unwrap()
    }
}

/// The subjectAltName of an endorsement certificate: critical, with nothing but a directoryName that has a TPM's
/// manufacturer (2.23.133.2.1).
pub(crate) fn endorsement_names() -> Extension {
    let value = b"\x30\x1a\xa4\x18\x30\x16\x31\x14\x30\x12\x06\x05\x67\x81\x05\x02\x01\x0c\x09id:000001";
    Extension::new("2.5.29.17", true, &value[..]).unwrap()
}

/// An extension that nobody knows.
pub(crate) fn unknown_critical() -> Extension {
    Extension::new("1.3.6.1.4.1.99999.1", true, &b"\x05\x00"[..]).unwrap()
}

pub(crate) fn pem_of(certificates: &[&Certificate]) -> String {
    pem::encode_certificates(certificates.iter().map(|certificate| &certificate.der()[..]))
}

fn name(common_name: &str) -> EncodedName {
    DistinguishedName { common_name: common_name.to_owned(), ..DistinguishedName::default() }
        .encode()
        .unwrap()
}

fn template<'a>(
    wanted: Wanted<'a>,
    subject: &'a EncodedName,
    public_key: &'a PublicKey,
) -> CertificateTemplate<'a> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let begin = Timestamp::EPOCH + (since - wanted.age);
    let (not_before, not_after) = validity(begin, Duration::from_secs(3600), None);
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).unwrap();
    CertificateTemplate {
        profile: wanted.profile,
        serial: SerialNumber::from_random(serial),
        subject,
        not_before,
        not_after,
        public_key,
        dns_names: &[],
        uri: "",
        policies: &[],
        extra_extensions: wanted.extensions,
    }
}
