//! The server against a TPM that is forged in software, so that each thing it checks can be wrong on its own. Against
//! a real TPM see tests/swtpm.

use std::sync::OnceLock;

use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use spire_compat::hcl;
use spire_core::pki::{HashAlgorithm, KeyType, LocalKey, PublicKey};

use super::*;
use crate::messages::CredentialActivation;
use crate::test_ca::{Ca, Wanted, endorsement_names, pem_of, unknown_critical};
use crate::tpm::alg;
use crate::tpm::buffer::{Reader, Writer};
use crate::tpm::credential::derive;

/// What attributes AK and DevID key have.
const AK: u32 = 0x0005_0072;
const DEVID: u32 = 0x0004_0072;
const EK: u32 = 0x0003_00b2;

/// RSA keys are slow to make, and which they are does not matter.
fn key(number: usize) -> &'static LocalKey {
    static KEYS: [OnceLock<LocalKey>; 4] = [const { OnceLock::new() }; 4];
    KEYS[number].get_or_init(|| LocalKey::generate(KeyType::Rsa2048).unwrap())
}

/// The public area of an RSA key, which ends with its modulus.
fn area(key: &PublicKey, attributes: u32, name_algorithm: u16, scheme: u16) -> Vec<u8> {
    let spki = key.spki();
    // The exponent, 65537, takes the last five bytes.
    let modulus = &spki[spki.len() - 5 - 256..spki.len() - 5];
    let mut writer = Writer::default().u16(alg::RSA).u16(name_algorithm).u32(attributes).sized(&[]);
    writer = if scheme == alg::NULL {
        writer.u16(alg::AES).u16(128).u16(alg::CFB).u16(alg::NULL)
    } else {
        writer.u16(alg::NULL).u16(scheme).u16(alg::SHA256)
    };
    writer.u16(2048).u32(0).sized(modulus).finish().unwrap().to_vec()
}

/// A node whose TPM does not exist. What it says can be changed before it is sent.
struct Forgery {
    ek: &'static LocalKey,
    ak: &'static LocalKey,
    devid: &'static LocalKey,
    chain: Vec<Certificate>,
    ek_certificate: Certificate,
    ak_attributes: u32,
    ak_name_algorithm: u16,
    ak_scheme: u16,
    devid_public: Vec<u8>,
    ek_public: Vec<u8>,
    magic: u32,
    attested: u16,
}

/// Both authorities with a server that trusts them.
struct World {
    devid_ca: Ca,
    maker: Ca,
    server: Arc<dyn NodeAttestor>,
}

fn configuration(data: &str) -> Configuration {
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    Configuration::new((PluginType::NodeAttestor, NAME), trust_domain, Some(hcl::parse(data).unwrap().into()))
}

async fn world() -> World {
    let (devid_ca, maker) = (Ca::root("DevID CA"), Ca::root("TPM maker"));
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, ca: &Ca| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem_of(&[&ca.certificate])).unwrap();
        path.display().to_string()
    };
    let (devid, endorsement) = (write("devid.pem", &devid_ca), write("ek.pem", &maker));
    let data = format!("devid_ca_path = \"{devid}\"\nendorsement_ca_path = \"{endorsement}\"");
    let server = build(configuration(&data)).await.unwrap();
    World { devid_ca, maker, server }
}

impl World {
    fn forgery(&self) -> Forgery {
        let (ek, ak, devid) = (key(0), key(1), key(2));
        Forgery {
            chain: vec![self.devid_ca.issue(Wanted::leaf("device-1"), devid.public_key())],
            ek_certificate: self.endorsement(&[endorsement_names()]),
            ek,
            ak,
            devid,
            ak_attributes: AK,
            ak_name_algorithm: alg::SHA256,
            ak_scheme: alg::RSASSA,
            devid_public: area(devid.public_key(), DEVID, alg::SHA256, alg::RSASSA),
            ek_public: area(ek.public_key(), EK, alg::SHA256, alg::NULL),
            magic: 0xff54_4347,
            attested: 0x8017,
        }
    }

    fn endorsement(&self, extensions: &[spire_core::pki::Extension]) -> Certificate {
        self.maker.issue(Wanted { extensions, ..Wanted::leaf("") }, key(0).public_key())
    }
}

impl Forgery {
    fn ak_public(&self) -> Vec<u8> {
        area(self.ak.public_key(), self.ak_attributes, self.ak_name_algorithm, self.ak_scheme)
    }

    fn name_of(public: &[u8]) -> Vec<u8> {
        [&public[2..4], HashAlgorithm::Sha256.digest(public).as_ref()].concat()
    }

    fn request(&self) -> AttestationRequest {
        let name = Self::name_of(&self.devid_public);
        let attested =
            Writer::default().u32(self.magic).u16(self.attested).sized(b"").sized(b"").raw(&[0; 25]);
        let attested = attested.sized(&name).sized(b"").finish().unwrap();
        let signature = self.ak.sign(SignatureAlgorithm::RsaPkcs1Sha256, &attested).unwrap();
        let signature =
            Writer::default().u16(alg::RSASSA).u16(alg::SHA256).sized(&signature).finish().unwrap();
        let der = |certificate: &Certificate| Base64(certificate.der().to_vec());
        AttestationRequest {
            devid_certificates: Some(self.chain.iter().map(der).collect()),
            devid_public: Base64(self.devid_public.clone()),
            ek_certificate: der(&self.ek_certificate),
            ek_public: Base64(self.ek_public.clone()),
            ak_public: Base64(self.ak_public()),
            certified_devid: Base64(attested.to_vec()),
            certification_signature: Base64(signature.to_vec()),
        }
    }

    /// TPM2_ActivateCredential, by whoever has the endorsement key in software.
    fn activate(&self, activation: &CredentialActivation) -> Vec<u8> {
        let ek = PrivateDecryptingKey::from_pkcs8(&self.ek.to_pkcs8().unwrap()).unwrap();
        let ek = OaepPrivateDecryptingKey::new(ek).unwrap();
        let mut secret = Reader::new(&activation.secret.0);
        let mut seed = [0; 256];
        let encrypted = secret.take(256).unwrap();
        let seed = ek.decrypt(&OAEP_SHA256_MGF1SHA256, encrypted, &mut seed, Some(b"IDENTITY\0")).unwrap();
        assert_eq!(seed.len(), 16);
        let name = Self::name_of(&self.ak_public());
        let mut object = Reader::new(&activation.credential.0);
        let mac = object.sized().unwrap();
        let identity = object.rest();
        let mac_key = derive(HashAlgorithm::Sha256, seed, b"INTEGRITY", &[], 32);
        let mac_key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &mac_key);
        aws_lc_rs::hmac::verify(&mac_key, &[identity, &name].concat(), mac).unwrap();
        let storage = derive(HashAlgorithm::Sha256, seed, b"STORAGE", &name, 16);
        let storage = DecryptingKey::cfb128(UnboundCipherKey::new(&AES_128, &storage).unwrap()).unwrap();
        let mut text = identity.to_vec();
        let start = DecryptionContext::Iv128(FixedLength::from([0; 16]));
        storage.decrypt(&mut text, start).unwrap();
        Reader::new(&text).sized().unwrap().to_vec()
    }

    fn respond(&self, challenge: &[u8]) -> ChallengeResponse {
        let challenge: ChallengeRequest = serde_json::from_slice(challenge).unwrap();
        let devid = self.devid.sign(SignatureAlgorithm::RsaPkcs1Sha256, &challenge.devid.0).unwrap();
        let activated = self.activate(&challenge.credential_activation.unwrap());
        ChallengeResponse { devid: Base64(devid), credential_activation: Base64(activated) }
    }
}

/// Answers as the forgery does, or as `instead` says.
struct Node<'a>(&'a Forgery, Option<Instead>);

type Instead = fn(ChallengeResponse) -> Bytes;

#[async_trait]
impl Challenger for Node<'_> {
    async fn challenge(&mut self, challenge: Bytes) -> Result<Bytes> {
        let response = self.0.respond(&challenge);
        Ok(match self.1 {
            Some(instead) => instead(response),
            None => serde_json::to_vec(&response).unwrap().into(),
        })
    }
}

async fn attest(
    world: &World,
    forgery: &Forgery,
    request: &AttestationRequest,
    instead: Option<Instead>,
) -> std::result::Result<Attestation, (ErrorKind, String)> {
    let payload = serde_json::to_vec(request).unwrap();
    let result = world.server.attest(payload.into(), &mut Node(forgery, instead)).await;
    result.map_err(|error| (error.kind, error.message))
}

#[tokio::test]
async fn a_node_is_named_after_its_certificate() {
    let world = world().await;
    let mut forgery = world.forgery();
    let middle = world.devid_ca.intermediate(Wanted::authority("middle"));
    let leaf = middle.issue(Wanted::leaf("device-1"), forgery.devid.public_key());
    forgery.chain = vec![leaf.clone(), middle.certificate.clone()];
    let attestation = attest(&world, &forgery, &forgery.request(), None).await.unwrap();
    assert!(attestation.can_reattest);
    assert_eq!(
        attestation.agent_id.to_string(),
        format!("spiffe://example.org/spire/agent/tpm_devid/{}", fingerprint(&leaf))
    );
    let values: Vec<String> = attestation.selectors.iter().map(|selector| selector.to_string()).collect();
    let mut expected = vec![
        "tpm_devid:subject:cn:device-1".to_owned(),
        "tpm_devid:issuer:cn:middle".to_owned(),
        format!("tpm_devid:ca:fingerprint:{}", fingerprint(&middle.certificate)),
        format!("tpm_devid:ca:fingerprint:{}", fingerprint(&world.devid_ca.certificate)),
    ];
    let mut found = values;
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn every_step_is_checked() {
    let world = world().await;
    const SAME_TPM: &str = "cannot verify that DevID is in the same TPM than AK: ";
    type Change = fn(&World, &mut Forgery);
    let table: Vec<(&str, Change)> = vec![
        (
            "unable to verify DevID signature: verification failed: x509: certificate signed by unknown authority",
            |_, f| {
                f.chain = vec![Ca::root("DevID CA").issue(Wanted::leaf("device-1"), f.devid.public_key())];
            },
        ),
        ("unable to verify DevID signature: verification failed: x509: certificate has expired", |w, f| {
            f.chain = vec![w.devid_ca.issue(Wanted::leaf("device-1").expired(), f.devid.public_key())];
        }),
        ("too many DevID intermediate certificates", |_, f| f.chain = vec![f.chain[0].clone(); 17]),
        (
            "cannot verify EK signature: endorsement certificate verification failed: x509: certificate signed by \
             unknown authority",
            |_, f| {
                let names = [endorsement_names()];
                let wanted = Wanted { extensions: &names, ..Wanted::leaf("") };
                f.ek_certificate = Ca::root("TPM maker").issue(wanted, f.ek.public_key());
            },
        ),
        (
            "cannot verify EK signature: endorsement certificate verification failed: x509: unhandled critical extension",
            |w, f| f.ek_certificate = w.endorsement(&[endorsement_names(), unknown_critical()]),
        ),
        (
            "cannot verify EK signature: endorsement certificate verification failed: x509: certificate has expired",
            |w, f| {
                let names = [endorsement_names()];
                let wanted = Wanted { extensions: &names, ..Wanted::leaf("") };
                f.ek_certificate = w.maker.issue(wanted.expired(), f.ek.public_key());
            },
        ),
        (
            "public key in EK certificate differs from public key created via EK template: modulus mismatch",
            |_, f| f.ek_public = area(key(3).public_key(), EK, alg::SHA256, alg::NULL),
        ),
        (
            "public key in EK certificate differs from public key created via EK template: exponent mismatch",
            |_, f| {
                // The exponent stands before the modulus and its length.
                let at = f.ek_public.len() - 256 - 2 - 4;
                f.ek_public[at..at + 4].copy_from_slice(&[0, 1, 0, 3]);
            },
        ),
        (
            "public key in EK certificate differs from public key created via EK template: key from certificate is not \
             an RSA key",
            |w, f| f.ek_certificate = w.maker.issue(Wanted::leaf(""), w.maker.key.public_key()),
        ),
        ("{SAME}not a signing key", |_, f| f.ak_attributes = AK & !0x4_0000),
        // One that was imported, one that may leave, one that signs what it is given, one that decrypts as well.
        ("{SAME}attestation key is not bound to its TPM: attributes 0x50052", |_, f| {
            f.ak_attributes = AK & !0x20
        }),
        ("{SAME}attestation key is not bound to its TPM: attributes 0x50070", |_, f| {
            f.ak_attributes = AK & !0x2
        }),
        ("{SAME}attestation key is not bound to its TPM: attributes 0x40072", |_, f| {
            f.ak_attributes = AK & !0x1_0000;
        }),
        ("{SAME}attestation key is not bound to its TPM: attributes 0x70072", |_, f| {
            f.ak_attributes = AK | 0x2_0000;
        }),
        ("{SAME}signature scheme of the attestation key is not RSASSA", |_, f| f.ak_scheme = alg::RSAPSS),
        ("{SAME}incorrect magic value: 0", |_, f| f.magic = 0),
        // TPM_ST_ATTEST_QUOTE
        ("{SAME}missing certify info", |_, f| f.attested = 0x8018),
        ("{SAME}DevID key is not bound to its TPM: attributes 0x40070", |_, f| {
            f.devid_public = area(f.devid.public_key(), DEVID & !0x2, alg::SHA256, alg::RSASSA);
        }),
        // The certificate's key is in software; another is in the TPM.
        ("{SAME}DevID key is not the key of the DevID certificate", |_, f| {
            f.devid_public = area(key(3).public_key(), DEVID, alg::SHA256, alg::RSASSA);
        }),
    ];
    for (message, change) in table {
        let message = message.replace("{SAME}", SAME_TPM);
        let mut forgery = world.forgery();
        change(&world, &mut forgery);
        let found = attest(&world, &forgery, &forgery.request(), None).await.unwrap_err();
        assert!(
            found.0 == ErrorKind::InvalidArgument && found.1.starts_with(&message),
            "{message}: {found:?}"
        );
    }
    // What the table changes is right as it was.
    let forgery = world.forgery();
    attest(&world, &forgery, &forgery.request(), None).await.unwrap();
}

#[tokio::test]
async fn no_challenge_is_made_for_unknown_hashes_and_ciphers() {
    let world = world().await;
    let mut forgery = world.forgery();
    forgery.ak_name_algorithm = alg::NULL;
    let found = attest(&world, &forgery, &forgery.request(), None).await.unwrap_err();
    let text = "cannot generate credential activation challenge: cannot extract name from AK public: hash algorithm \
                not supported: 0x10";
    assert_eq!(found, (ErrorKind::Internal, text.to_owned()));

    let mut forgery = world.forgery();
    // 64 bits instead of 128, after type, name algorithm, attributes, no policy and AES.
    forgery.ek_public[12..14].copy_from_slice(&64_u16.to_be_bytes());
    let found = attest(&world, &forgery, &forgery.request(), None).await.unwrap_err();
    let text = "cannot generate credential activation challenge: symmetric cipher setup: unsupported cipher";
    assert_eq!(found, (ErrorKind::Internal, text.to_owned()));
}

#[tokio::test]
async fn parts_of_payloads_are_required() {
    use ErrorKind::InvalidArgument;

    let world = world().await;
    let forgery = world.forgery();
    let junk = || Base64(b"not-a-tpm-public-blob".to_vec());
    type Change = fn(&mut AttestationRequest, Base64);
    let table: [(&str, Change); 12] = [
        ("no DevID certificate to attest", |r, _| r.devid_certificates = None),
        ("unable to parse DevID certificate: ", |r, junk| r.devid_certificates = Some(vec![junk])),
        ("unable to parse DevID intermediate certificate 0: ", |r, junk| {
            r.devid_certificates.as_mut().unwrap().push(junk);
        }),
        ("missing attestation key public blob", |r, _| r.ak_public = Base64::default()),
        ("missing DevID key public blob", |r, _| r.devid_public = Base64::default()),
        ("missing endorsement certificate", |r, _| r.ek_certificate = Base64::default()),
        ("missing endorsement key public blob", |r, _| r.ek_public = Base64::default()),
        ("cannot parse endorsement certificate: ", |r, junk| r.ek_certificate = junk),
        ("cannot decode DevID key public blob: decoding TPMT_PUBLIC: ", |r, junk| r.devid_public = junk),
        ("cannot decode attestation key public blob: decoding TPMT_PUBLIC: ", |r, junk| r.ak_public = junk),
        ("cannot decode endorsement key public blob: decoding TPMT_PUBLIC: ", |r, junk| r.ek_public = junk),
        ("cannot verify that DevID is in the same TPM than AK: decoding Alg: EOF", |r, _| {
            r.certification_signature = Base64::default();
        }),
    ];
    for (message, change) in table {
        let mut request = forgery.request();
        change(&mut request, junk());
        let found = attest(&world, &forgery, &request, None).await.unwrap_err();
        assert!(found.0 == InvalidArgument && found.1.starts_with(message), "{message}: {found:?}");
    }
    for (payload, message) in
        [("", "missing attestation payload"), ("not a payload", "unable to unmarshall attestation data: ")]
    {
        let payload = Bytes::from_static(payload.as_bytes());
        let error = world.server.attest(payload, &mut Node(&forgery, None)).await.unwrap_err();
        assert!(error.kind == InvalidArgument && error.message.starts_with(message), "{error:?}");
    }
}

#[tokio::test]
async fn both_challenges_must_be_solved() {
    let world = world().await;
    let forgery = world.forgery();
    let table: [(&str, Instead); 5] = [
        ("unable to unmarshall challenges response: ", |_| Bytes::from_static(b"[")),
        ("devID challenge verification failed: crypto/rsa: verification error", |_| {
            Bytes::from_static(b"{}")
        }),
        ("devID challenge verification failed: crypto/rsa: verification error", |mut response| {
            response.devid.0[7] ^= 1;
            serde_json::to_vec(&response).unwrap().into()
        }),
        ("credential activation failed: nonces are different", |mut response| {
            response.credential_activation.0[7] ^= 1;
            serde_json::to_vec(&response).unwrap().into()
        }),
        ("credential activation failed: nonces are different", |mut response| {
            response.credential_activation.0.clear();
            serde_json::to_vec(&response).unwrap().into()
        }),
    ];
    for (message, instead) in table {
        let found = attest(&world, &forgery, &forgery.request(), Some(instead)).await.unwrap_err();
        assert!(
            found.0 == ErrorKind::InvalidArgument && found.1.starts_with(message),
            "{message}: {found:?}"
        );
    }
}

#[tokio::test]
async fn settings_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good.pem");
    std::fs::write(&good, pem_of(&[&Ca::root("root").certificate])).unwrap();
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "nothing").unwrap();
    let (good, empty) = (good.display(), empty.display());
    let both = |devid: &dyn std::fmt::Display, endorsement: &dyn std::fmt::Display| {
        format!("devid_ca_path = \"{devid}\"\nendorsement_ca_path = \"{endorsement}\"")
    };
    let table = [
        ("devid_ca_path = []".to_owned(), "plugin configuration is malformed"),
        (String::new(), "devid_ca_path is required"),
        (format!("devid_ca_path = \"{good}\""), "endorsement_ca_path is required"),
        (
            both(&"/no/such/file", &good),
            "unable to load DevID trust bundle: open /no/such/file: no such file or directory",
        ),
        (
            both(&good, &"/no/such/file"),
            "unable to load endorsement trust bundle: open /no/such/file: no such file or directory",
        ),
        (both(&empty, &good), "unable to load DevID trust bundle: no certificates found in file"),
    ];
    for (data, message) in table {
        match build(configuration(&data)).await {
            Ok(_) => panic!("must be refused: {data}"),
            Err(error) => {
                assert!(error.kind == ErrorKind::InvalidArgument, "{data}: {error:?}");
                assert!(error.message.starts_with(message), "{data}: {error:?}");
            }
        }
    }
    build(configuration(&both(&good, &good))).await.unwrap();
}
