//! Certificates for tests.

use std::time::Duration;

use spire_compat::hcl;
use spire_core::pki::{
    Certificate, CertificateTemplate, DistinguishedName, EncodedName, Extension, Issuer, KeyType, LocalKey,
    Profile, PublicKey, SerialNumber, pem, self_signed, validity,
};
use spire_core::spiffe::TrustDomain;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{Error, ErrorKind, PluginType};

use crate::machine::{now, random};

/// An authority with its key.
pub(crate) struct Ca {
    pub(crate) key: LocalKey,
    pub(crate) certificate: Certificate,
}

pub(crate) fn name(common_name: &str) -> EncodedName {
    DistinguishedName { common_name: common_name.to_owned(), ..DistinguishedName::default() }
        .encode()
        .unwrap()
}

impl Ca {
    /// A root that lives for an hour.
    pub(crate) fn root(common_name: &str) -> Self {
        Self::root_with(common_name, KeyType::EcP256)
    }

    /// As [`Self::root`], with a key of the type.
    pub(crate) fn root_with(common_name: &str, key_type: KeyType) -> Self {
        let key = LocalKey::generate(key_type).unwrap();
        let subject = name(common_name);
        let signed = self_signed(&template(Profile::Ca, &subject, key.public_key(), "")).unwrap();
        let signature = key.sign(signed.algorithm(), signed.bytes()).unwrap();
        Self { certificate: Certificate::from_der(signed.assemble(&signature)).unwrap(), key }
    }

    /// An authority below this one.
    pub(crate) fn intermediate(&self, common_name: &str) -> Self {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let certificate = self.issue(Profile::Ca, common_name, key.public_key(), "");
        Self { key, certificate }
    }

    /// A certificate for a key.
    pub(crate) fn issue(
        &self,
        profile: Profile,
        common_name: &str,
        key: &PublicKey,
        uri: &str,
    ) -> Certificate {
        self.issue_with(profile, common_name, key, uri, &[])
    }

    /// As [`Ca::issue`], with further extensions.
    pub(crate) fn issue_with(
        &self,
        profile: Profile,
        common_name: &str,
        key: &PublicKey,
        uri: &str,
        extra_extensions: &[Extension],
    ) -> Certificate {
        let subject = name(common_name);
        let template = CertificateTemplate { extra_extensions, ..template(profile, &subject, key, uri) };
        let signed = Issuer::new(&self.certificate).unwrap().certificate(&template).unwrap();
        let signature = self.key.sign(signed.algorithm(), signed.bytes()).unwrap();
        Certificate::from_der(signed.assemble(&signature)).unwrap()
    }
}

fn template<'a>(
    profile: Profile,
    subject: &'a EncodedName,
    public_key: &'a PublicKey,
    uri: &'a str,
) -> CertificateTemplate<'a> {
    let (not_before, not_after) = validity(now(), Duration::from_secs(3600), None);
    CertificateTemplate {
        profile,
        serial: SerialNumber::from_random(random().unwrap()),
        subject,
        not_before,
        not_after,
        public_key,
        dns_names: &[],
        uri,
        policies: &[],
        extra_extensions: &[],
    }
}

pub(crate) fn pem_of(certificates: &[&Certificate]) -> String {
    pem::encode_certificates(certificates.iter().map(|certificate| &certificate.der()[..]))
}

pub(crate) fn configuration(plugin_type: PluginType, name: &str, data: &str) -> Configuration {
    let data = Some(hcl::parse(data).unwrap().into());
    Configuration::new((plugin_type, name), TrustDomain::parse("example.org").unwrap(), data)
}

/// The code and the text of a refusal.
pub(crate) fn refusal<T>(result: Result<T, Error>) -> (ErrorKind, String) {
    match result {
        Ok(_) => panic!("must be refused"),
        Err(error) => (error.kind, error.message),
    }
}
