//! Endorsement certificates of TPMs, and chains to several roots.

use std::time::Duration;

use super::*;

struct Authority {
    key: LocalKey,
    certificate: Certificate,
}

fn subject(name: &str) -> EncodedName {
    DistinguishedName { common_name: name.to_owned(), ..DistinguishedName::default() }.encode().unwrap()
}

fn template<'a>(
    profile: Profile,
    subject: &'a EncodedName,
    public_key: &'a PublicKey,
    extra_extensions: &'a [Extension],
) -> CertificateTemplate<'a> {
    let (not_before, not_after) = validity(now(), Duration::from_secs(60), None);
    let serial = SerialNumber::from_random([7; 16]);
    let (dns_names, policies): (&[String], &[String]) = (&[], &[]);
    CertificateTemplate {
        profile,
        serial,
        subject,
        not_before,
        not_after,
        public_key,
        dns_names,
        uri: "",
        policies,
        extra_extensions,
    }
}

fn root(name: &str) -> Authority {
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let signed = self_signed(&template(Profile::Ca, &subject(name), key.public_key(), &[])).unwrap();
    let signature = key.sign(signed.algorithm(), signed.bytes()).unwrap();
    Authority { certificate: Certificate::from_der(signed.assemble(&signature)).unwrap(), key }
}

fn issue(
    by: &Authority,
    profile: Profile,
    name: &str,
    key: &PublicKey,
    extensions: &[Extension],
) -> Certificate {
    let name = subject(name);
    let template = template(profile, &name, key, extensions);
    let signed = Issuer::new(&by.certificate).unwrap().certificate(&template).unwrap();
    let signature = by.key.sign(signed.algorithm(), signed.bytes()).unwrap();
    Certificate::from_der(signed.assemble(&signature)).unwrap()
}

/// A critical subjectAltName with a directoryName only.
fn names() -> Extension {
    let value = b"\x30\x1a\xa4\x18\x30\x16\x31\x14\x30\x12\x06\x05\x67\x81\x05\x02\x01\x0c\x09id:000001";
    Extension::new("2.5.29.17", true, &value[..]).unwrap()
}

#[test]
fn critical_directory_names_are_borne_of_endorsement_leaves_only() {
    let root = root("maker");
    let roots = [root.certificate.clone()];
    let key = root.key.public_key();
    let check = |chain: &[Certificate], purpose| chain::verify(chain, &roots, purpose, now()).map(|_| ());
    let refused = Err(VerifyError::UnhandledCriticalExtension);

    let leaf = [issue(&root, Profile::Svid, "tpm", key, &[names()])];
    assert_eq!(check(&leaf, Purpose::Any), refused);
    assert_eq!(check(&leaf, Purpose::Endorsement), Ok(()));
    let unknown = Extension::new("1.3.6.1.4.1.99999.1", true, &b"\x05\x00"[..]).unwrap();
    let leaf = [issue(&root, Profile::Svid, "tpm", key, &[names(), unknown])];
    assert_eq!(check(&leaf, Purpose::Endorsement), refused);

    // An intermediate with such names is none.
    let middle_key = LocalKey::generate(KeyType::EcP256).unwrap();
    let with_names = issue(&root, Profile::Ca, "middle", middle_key.public_key(), &[names()]);
    let middle = Authority { key: middle_key, certificate: with_names };
    let chain = [issue(&middle, Profile::Svid, "tpm", key, &[]), middle.certificate.clone()];
    for purpose in [Purpose::Any, Purpose::Endorsement] {
        assert_eq!(check(&chain, purpose), refused);
    }
}

#[test]
fn authorities_are_those_of_every_chain() {
    let (one, other, stranger) = (root("one"), root("other"), root("stranger"));
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    // The same authority below both roots.
    let crossed = [&one, &other].map(|by| issue(by, Profile::Ca, "middle", key.public_key(), &[]));
    let middle = Authority { key, certificate: crossed[0].clone() };
    let leaf = issue(&middle, Profile::Svid, "leaf", one.key.public_key(), &[]);
    let chain = [&[leaf.clone()][..], &crossed].concat();
    let roots = [one.certificate.clone(), stranger.certificate.clone(), other.certificate.clone()];
    let found = chain::authorities(&chain, &roots, now()).unwrap();
    assert_eq!(found, [&crossed[0], &roots[0], &crossed[1], &roots[2]].map(Clone::clone));
    assert_eq!(chain::authorities(&chain, &roots[..1], now()).unwrap(), found[..2]);
    assert!(chain::authorities(&chain, &roots[1..2], now()).is_err());
    // A leaf that is trusted itself has none above it.
    assert_eq!(
        chain::authorities(std::slice::from_ref(&leaf), std::slice::from_ref(&leaf), now()).unwrap(),
        []
    );
}

/// As an agent sends while its authority is renewed: both certificates have the same name and key.
#[test]
fn authorities_are_those_of_every_chain_to_one_root() {
    let root = root("one");
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let both = [1, 2].map(|_| issue(&root, Profile::Ca, "middle", key.public_key(), &[]));
    assert_ne!(both[0], both[1]);
    let middle = Authority { key, certificate: both[0].clone() };
    let leaf = issue(&middle, Profile::Svid, "leaf", root.key.public_key(), &[]);
    let chain = [&[leaf][..], &both].concat();
    let found = chain::authorities(&chain, std::slice::from_ref(&root.certificate), now()).unwrap();
    assert_eq!(found, [&both[0], &root.certificate, &both[1]].map(Clone::clone));
}
