//! Valid inputs: certificates, requests and tokens of an authority made for the occasion.

use std::sync::LazyLock;
use std::time::Duration;

use spire_core::pki::{
    Certificate, CertificateTemplate, CsrTemplate, DistinguishedName, EncodedName, Issuer, KeyType, LocalKey,
    Profile, PublicKey, SerialNumber, jwt, pem, self_signed, validity,
};
use spire_core::spiffe::{Bundle, JwtAuthority, SpiffeId, TrustDomain, X509Authority};
use spire_core::time::Timestamp;

/// The identity of the samples.
pub const ID: &str = "spiffe://example.org/workload";

/// When the samples are valid.
pub const NOW: Timestamp = Timestamp::from_unix(1_700_000_000);

/// All samples; made once, since making keys takes time.
pub static SAMPLES: LazyLock<Samples> = LazyLock::new(Samples::new);

/// Valid inputs.
pub struct Samples {
    /// A self-signed authority.
    pub authority: Certificate,
    /// An authority below it.
    pub intermediate: Certificate,
    /// An SVID of the intermediate.
    pub leaf: Certificate,
    /// The leaf's key, PKCS #8.
    pub leaf_key: Vec<u8>,
    /// A certificate signing request, DER.
    pub csr: Vec<u8>,
    /// A JWT-SVID for the audience `a`.
    pub token: String,
    /// Its key.
    pub token_key: PublicKey,
    /// The bundle of all of these.
    pub bundle: Bundle,
}

/// The trust domain of the samples.
#[expect(clippy::missing_panics_doc, reason = "the name is constant and valid")]
pub fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").expect("valid")
}

impl Samples {
    fn new() -> Self {
        let keys: [LocalKey; 4] =
            std::array::from_fn(|_| LocalKey::generate(KeyType::EcP256).expect("a key"));
        let [root_key, intermediate_key, leaf_key, token_key] = &keys;
        let authority =
            signed_by(None, root_key, root_key.public_key(), Profile::Ca, "spiffe://example.org", 1);
        let intermediate = signed_by(
            Some(&authority),
            root_key,
            intermediate_key.public_key(),
            Profile::Ca,
            "spiffe://example.org",
            2,
        );
        let leaf =
            signed_by(Some(&intermediate), intermediate_key, leaf_key.public_key(), Profile::Svid, ID, 3);
        let mut bundle = Bundle::empty(trust_domain());
        bundle.x509_authorities = vec![X509Authority { der: authority.der().clone(), tainted: false }];
        bundle.jwt_authorities = vec![JwtAuthority {
            kid: "kid".to_owned(),
            public_key: token_key.public_key().spki().clone(),
            not_after: NOW + Duration::from_secs(3600),
            tainted: false,
        }];
        bundle.refresh_hint = Duration::from_secs(300);
        bundle.sequence_number = 7;
        Self {
            csr: csr(leaf_key),
            token: token(token_key),
            token_key: token_key.public_key().clone(),
            leaf_key: leaf_key.to_pkcs8().expect("PKCS #8").to_vec(),
            authority,
            intermediate,
            leaf,
            bundle,
        }
    }

    /// The certificates of an SVID as PEM.
    pub fn chain_pem(&self) -> String {
        pem::encode_certificates([&self.leaf, &self.intermediate].map(|certificate| &certificate.der()[..]))
    }
}

fn name(common_name: &str) -> EncodedName {
    DistinguishedName { common_name: common_name.to_owned(), ..DistinguishedName::default() }
        .encode()
        .expect("a name")
}

fn signed_by(
    issuer: Option<&Certificate>,
    issuer_key: &LocalKey,
    key: &PublicKey,
    profile: Profile,
    uri: &str,
    serial: u8,
) -> Certificate {
    let (not_before, not_after) = validity(NOW, Duration::from_secs(3600), None);
    let subject = name("fuzz");
    let template = CertificateTemplate {
        profile,
        serial: SerialNumber::from_random([serial; 16]),
        subject: &subject,
        not_before,
        not_after,
        public_key: key,
        dns_names: &[],
        uri,
        policies: &[],
        extra_extensions: &[],
    };
    let signed = match issuer {
        Some(issuer) => Issuer::new(issuer).expect("an issuer").certificate(&template),
        None => self_signed(&template),
    };
    let signed = signed.expect("a template");
    let signature = issuer_key.sign(signed.algorithm(), signed.bytes()).expect("signed");
    Certificate::from_der(signed.assemble(&signature)).expect("a certificate")
}

fn csr(key: &LocalKey) -> Vec<u8> {
    let subject = name("fuzz");
    let template = CsrTemplate {
        subject: &subject,
        public_key: key.public_key(),
        dns_names: &["a.example.org".to_owned()],
        uris: &[ID],
        extra_extensions: &[],
    };
    let signed = template.to_be_signed().expect("a template");
    let signature = key.sign(signed.algorithm(), signed.bytes()).expect("signed");
    signed.assemble(&signature)
}

fn token(key: &LocalKey) -> String {
    let claims = jwt::JwtSvidClaims {
        subject: &SpiffeId::parse(ID).expect("valid"),
        audience: &["a".to_owned()],
        issued_at: NOW,
        expires_at: NOW + Duration::from_secs(300),
        issuer: "",
        jti: None,
    };
    let signed = claims.to_be_signed(key.public_key(), "kid").expect("claims");
    let signature = key.sign(signed.algorithm(), signed.bytes()).expect("signed");
    signed.assemble(&signature).expect("a token")
}
