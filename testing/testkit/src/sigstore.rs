//! Stand-ins for what signs images and keeps signatures: an authority for code signing (Fulcio), its certificate
//! transparency log, a transparency log (Rekor), and a registry.
//!
//! Written from the formats' specifications, with encoders of its own, so that a verifier that reads a format wrongly does
//! not agree with it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use spire_core::pki::{
    Certificate, CertificateTemplate, DistinguishedName, EncodedName, Extension, Issuer, KeyType, LocalKey,
    Profile, SerialNumber, SignatureAlgorithm, pem, self_signed,
};
use spire_core::time::Timestamp;

use crate::error::{Error, Result};
use crate::web::{Answer, Request, Web};

const DAY: Duration = Duration::from_secs(86_400);
const MINUTE: Duration = Duration::from_secs(60);

fn failed(error: impl std::fmt::Display) -> Error {
    Error::doing("signing an image", error)
}

/// `sha256:<hex>` of bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex_of(bytes))
}

fn hex_of(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}

/// A key that signs logs or certificates.
pub struct Signer(LocalKey);

impl Signer {
    fn new() -> Result<Self> {
        LocalKey::generate(KeyType::EcP256).map(Self).map_err(failed)
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        self.0.sign(SignatureAlgorithm::EcdsaSha256, message).map_err(failed)
    }

    fn spki(&self) -> &[u8] {
        self.0.public_key().spki()
    }

    fn pem(&self) -> String {
        pem::encode("PUBLIC KEY", self.spki())
    }

    /// The hex of the hash of the key.
    pub fn log_id(&self) -> String {
        hex_of(self.spki())
    }
}

/// All that signs.
pub struct Sigstore {
    root: Certificate,
    intermediate: Certificate,
    intermediate_key: Signer,
    /// The transparency log's key.
    pub rekor: Signer,
    /// The certificate transparency log's key.
    pub ct: Signer,
}

/// A name in a certificate for code signing.
#[derive(Clone, Debug)]
pub enum Name {
    /// An email address.
    Email(&'static str),
    /// A URI.
    Uri(&'static str),
    /// Neither; Fulcio's own kind.
    Other(&'static str),
    /// Several of them.
    Both(&'static str, &'static str),
}

/// In which form the log has an attestation.
#[derive(Clone, Copy, Debug)]
pub enum AttestationEntry {
    /// `dsse`.
    Dsse,
    /// The first version of `intoto`.
    Intoto1,
    /// The second version of `intoto`.
    Intoto2,
}

/// How something is signed. The default is as it should be.
#[derive(Clone)]
pub struct Order<'a> {
    /// Whose certificate it is.
    pub name: Name,
    /// The issuer of the signer's token.
    pub issuer: Option<&'static str>,
    /// The image that the signed text is about.
    pub claim: String,
    /// `critical.type` of the signed text.
    pub claim_type: &'static str,
    /// From when the certificate is valid, for ten minutes.
    pub issued: SystemTime,
    /// When the log took the signature.
    pub integrated: SystemTime,
    /// Whether the certificate is for code signing rather than servers.
    pub code_signing: bool,
    /// The key that made the timestamp in the certificate, and the ID that it says.
    pub timestamp: Option<(&'a Signer, String)>,
    /// The key that made the log's promise, and the ID that it says.
    pub log: (&'a Signer, String),
    /// The index in the log.
    pub log_index: i64,
    /// Whether the log's entry comes with the signature.
    pub bundle: bool,
    /// Nothing for a signature; a statement's form for an attestation.
    pub attestation: Option<AttestationEntry>,
}

/// A layer of an image of signatures.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The signed text, or the envelope of a statement.
    pub payload: Vec<u8>,
    /// What is written on the layer.
    pub annotations: BTreeMap<String, String>,
    /// The log's answer to who asks for the signature.
    pub found: Value,
}

/// DER of one element.
fn tlv(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match contents.len() {
        short @ 0..=127 => out.push(short as u8),
        long @ 128..=255 => out.extend([0x81, long as u8]),
        longer => out.extend([0x82, (longer >> 8) as u8, longer as u8]),
    }
    out.extend_from_slice(contents);
    out
}

fn unix(at: SystemTime) -> Timestamp {
    Timestamp::EPOCH + at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn named(name: &str) -> Result<EncodedName> {
    let name = DistinguishedName { common_name: name.to_owned(), ..DistinguishedName::default() };
    name.encode().map_err(failed)
}

fn serial() -> Result<SerialNumber> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(failed)?;
    Ok(SerialNumber::from_random(serial))
}

fn authority(name: &str, key: &Signer, parent: Option<(&Certificate, &Signer)>) -> Result<Certificate> {
    let subject = named(name)?;
    let now = SystemTime::now();
    let template = CertificateTemplate {
        profile: Profile::Ca,
        serial: serial()?,
        subject: &subject,
        not_before: unix(now - 10 * DAY),
        not_after: unix(now + DAY),
        public_key: key.0.public_key(),
        dns_names: &[],
        uri: "",
        policies: &[],
        extra_extensions: &[],
    };
    let (signed, signer) = match parent {
        None => (self_signed(&template).map_err(failed)?, key),
        Some((parent, signer)) => {
            (Issuer::new(parent).map_err(failed)?.certificate(&template).map_err(failed)?, signer)
        }
    };
    let signature = signer.sign(signed.bytes())?;
    Certificate::from_der(signed.assemble(&signature)).map_err(failed)
}

impl Sigstore {
    /// New keys for everybody.
    ///
    /// # Errors
    /// The crypto library failed.
    pub fn new() -> Result<Self> {
        let root_key = Signer::new()?;
        let root = authority("sigstore", &root_key, None)?;
        let intermediate_key = Signer::new()?;
        let intermediate = authority("sigstore-intermediate", &intermediate_key, Some((&root, &root_key)))?;
        Ok(Self { root, intermediate, intermediate_key, rekor: Signer::new()?, ct: Signer::new()? })
    }

    /// Root and intermediate, PEM.
    pub fn roots(&self) -> String {
        pem::encode_certificates([&self.intermediate.der()[..], &self.root.der()[..]])
    }

    /// The root alone, PEM.
    pub fn root(&self) -> String {
        pem::encode("CERTIFICATE", self.root.der())
    }

    /// Writes who is to be believed into files, and gives the environment variables that name them.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn trust(&self, folder: &Path) -> Result<Vec<(&'static str, String)>> {
        let files = [
            ("SIGSTORE_ROOT_FILE", "fulcio.pem", self.roots()),
            ("SIGSTORE_REKOR_PUBLIC_KEY", "rekor.pub", self.rekor.pem()),
            ("SIGSTORE_CT_LOG_PUBLIC_KEY_FILE", "ctfe.pub", self.ct.pem()),
        ];
        let mut variables = Vec::new();
        for (variable, name, text) in files {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|error| Error::doing(path.display(), error))?;
            variables.push((variable, path.display().to_string()));
        }
        Ok(variables)
    }

    /// An order as it should be, for the image with this digest: signed an hour ago, so that the certificate has expired
    /// meanwhile.
    pub fn order(&self, image: &str) -> Order<'_> {
        let issued = SystemTime::now() - 60 * MINUTE;
        Order {
            name: Name::Email("signer@example.org"),
            issuer: Some("https://issuer.example.org"),
            claim: image.to_owned(),
            claim_type: "cosign container image signature",
            issued,
            integrated: issued + MINUTE,
            code_signing: true,
            timestamp: Some((&self.ct, self.ct.log_id())),
            log: (&self.rekor, self.rekor.log_id()),
            log_index: 4711,
            bundle: true,
            attestation: None,
        }
    }

    /// Signs.
    ///
    /// # Errors
    /// The crypto library failed.
    pub fn sign(&self, order: &Order<'_>) -> Result<Signed> {
        let key = Signer::new()?;
        let certificate = self.certificate(order, &key)?;
        let certificate_pem = pem::encode("CERTIFICATE", certificate.der());
        let (payload, signature) = match order.attestation {
            None => {
                let payload = claim(order).to_string().into_bytes();
                let signature = STANDARD.encode(key.sign(&payload)?);
                (payload, signature)
            }
            Some(_) => (envelope(order, &key)?, String::new()),
        };
        let entry = entry(order, &payload, &signature, &certificate_pem);
        let body = STANDARD.encode(entry.to_string());
        let integrated = unix(order.integrated).unix();
        let (log, log_id) = &order.log;
        // RFC 8785, and its order of members.
        let signed = format!(
            "{{\"body\":\"{body}\",\"integratedTime\":{integrated},\"logID\":\"{log_id}\",\"logIndex\":{}}}",
            order.log_index
        );
        let promise = STANDARD.encode(log.sign(signed.as_bytes())?);
        let bundle = json!({
            "SignedEntryTimestamp": promise,
            "Payload": {"body": body, "integratedTime": integrated, "logIndex": order.log_index, "logID": log_id},
        });
        let mut annotations = BTreeMap::from([
            ("dev.cosignproject.cosign/signature".to_owned(), signature),
            ("dev.sigstore.cosign/certificate".to_owned(), certificate_pem),
            ("dev.sigstore.cosign/chain".to_owned(), self.roots()),
        ]);
        if order.bundle {
            annotations.insert("dev.sigstore.cosign/bundle".to_owned(), bundle.to_string());
        }
        let leaf = entry.to_string().into_bytes();
        let found = found(&leaf, &json!([body, integrated, log_id, order.log_index, promise]));
        Ok(Signed { payload, annotations, found })
    }

    fn certificate(&self, order: &Order<'_>, key: &Signer) -> Result<Certificate> {
        let extension = |oid: &str, critical: bool, value: Vec<u8>| {
            Extension::new(oid, critical, value).ok_or_else(|| failed("an object identifier"))
        };
        let usage: &[u8] = match order.code_signing {
            true => b"\x30\x0a\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x03",
            false => b"\x30\x0a\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01",
        };
        let email = |text: &str| tlv(0x81, text.as_bytes());
        let uri = |text: &str| tlv(0x86, text.as_bytes());
        let names = match order.name {
            Name::Email(text) => email(text),
            Name::Uri(text) => uri(text),
            Name::Both(first, second) => [uri(second), email(first)].concat(),
            Name::Other(text) => {
                let id = b"\x06\x0a\x2b\x06\x01\x04\x01\x83\xbf\x30\x01\x07".to_vec();
                tlv(0xa0, &[id, tlv(0xa0, &tlv(0x0c, text.as_bytes()))].concat())
            }
        };
        let mut extensions = vec![
            extension("2.5.29.15", true, b"\x03\x02\x07\x80".to_vec())?,
            extension("2.5.29.37", false, usage.to_vec())?,
            extension("2.5.29.17", true, tlv(0x30, &names))?,
        ];
        if let Some(issuer) = order.issuer {
            extensions.push(extension("1.3.6.1.4.1.57264.1.1", false, issuer.as_bytes().to_vec())?);
        }
        let subject = DistinguishedName::default().encode().map_err(failed)?;
        let template = CertificateTemplate {
            profile: Profile::Svid,
            serial: serial()?,
            subject: &subject,
            not_before: unix(order.issued),
            not_after: unix(order.issued + 10 * MINUTE),
            public_key: key.0.public_key(),
            dns_names: &[],
            uri: "",
            policies: &[],
            extra_extensions: &extensions,
        };
        let issuer = Issuer::new(&self.intermediate).map_err(failed)?;
        let without = issuer.certificate(&template).map_err(failed)?;
        let mut extensions = extensions.clone();
        if let Some((log, id)) = &order.timestamp {
            let list = timestamps(log, id, self.intermediate_key.spki(), without.bytes())?;
            extensions.push(extension("1.3.6.1.4.1.11129.2.4.2", false, tlv(0x04, &list))?);
        }
        let template = CertificateTemplate { extra_extensions: &extensions, ..template };
        let signed = issuer.certificate(&template).map_err(failed)?;
        let signature = self.intermediate_key.sign(signed.bytes())?;
        Certificate::from_der(signed.assemble(&signature)).map_err(failed)
    }
}

/// A list of one signed certificate timestamp (RFC 6962, sections 3.2 and 3.3).
fn timestamps(log: &Signer, id: &str, issuer: &[u8], tbs: &[u8]) -> Result<Vec<u8>> {
    let milliseconds = 1_700_000_000_000_u64.to_be_bytes();
    let mut signed = vec![0, 0];
    signed.extend(milliseconds);
    signed.extend([0, 1]);
    signed.extend(digest(&SHA256, issuer).as_ref());
    signed.extend([(tbs.len() >> 16) as u8, (tbs.len() >> 8) as u8, tbs.len() as u8]);
    signed.extend(tbs);
    signed.extend([0, 0]);
    let signature = log.sign(&signed)?;
    let mut timestamp = vec![0];
    timestamp.extend(hex::decode(id).map_err(failed)?);
    timestamp.extend(milliseconds);
    timestamp.extend([0, 0, 4, 3, (signature.len() >> 8) as u8, signature.len() as u8]);
    timestamp.extend(signature);
    let of_two = |length: usize| [(length >> 8) as u8, length as u8];
    let mut list = of_two(timestamp.len() + 2).to_vec();
    list.extend(of_two(timestamp.len()));
    list.extend(timestamp);
    Ok(list)
}

fn claim(order: &Order<'_>) -> Value {
    json!({
        "critical": {
            "identity": {"docker-reference": "registry/blog"},
            "image": {"docker-manifest-digest": order.claim},
            "type": order.claim_type,
        },
        "optional": null,
    })
}

fn envelope(order: &Order<'_>, key: &Signer) -> Result<Vec<u8>> {
    let digits = order.claim.trim_start_matches("sha256:");
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": "https://cosign.sigstore.dev/attestation/v1",
        "subject": [{"name": "registry/blog", "digest": {"sha256": digits}}],
        "predicate": {"Data": "x", "Timestamp": "2024-01-01T00:00:00Z"},
    });
    let statement = statement.to_string();
    let kind = "application/vnd.in-toto+json";
    let message = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
    let signature = STANDARD.encode(key.sign(message.as_bytes())?);
    let envelope = json!({
        "payloadType": kind,
        "payload": STANDARD.encode(&statement),
        "signatures": [{"keyid": "", "sig": signature}],
    });
    Ok(envelope.to_string().into_bytes())
}

/// What the log keeps.
fn entry(order: &Order<'_>, payload: &[u8], signature: &str, certificate: &str) -> Value {
    let hash = json!({"algorithm": "sha256", "value": hex_of(payload)});
    let key = STANDARD.encode(certificate);
    let (kind, version, spec) = match order.attestation {
        None => {
            let signature = json!({"content": signature, "publicKey": {"content": key}});
            ("hashedrekord", "0.0.1", json!({"data": {"hash": hash}, "signature": signature}))
        }
        Some(AttestationEntry::Dsse) => {
            let signatures = json!([{"signature": "c2ln", "verifier": key}]);
            ("dsse", "0.0.1", json!({"envelopeHash": hash, "payloadHash": hash, "signatures": signatures}))
        }
        Some(AttestationEntry::Intoto1) => {
            ("intoto", "0.0.1", json!({"content": {"hash": hash, "payloadHash": hash}, "publicKey": key}))
        }
        Some(AttestationEntry::Intoto2) => {
            let envelope = json!({
                "payloadType": "application/vnd.in-toto+json",
                "signatures": [{"publicKey": key, "sig": "c2ln"}],
            });
            ("intoto", "0.0.2", json!({"content": {"envelope": envelope, "hash": hash, "payloadHash": hash}}))
        }
    };
    json!({"apiVersion": version, "kind": kind, "spec": spec})
}

/// The answer to who looks for an entry: it is leaf 3 of a tree of 7.
fn found(leaf: &[u8], parts: &Value) -> Value {
    let mut leaves: Vec<Vec<u8>> = (0..7_u8).map(|number| vec![number]).collect();
    leaves[3] = leaf.to_vec();
    let hashes: Vec<String> = path(3, &leaves).iter().map(hex::encode).collect();
    let uuid = format!("{:016x}{}", 1, hex::encode(tree(&leaves[3..4])));
    json!([{
        uuid: {
            "body": parts[0], "integratedTime": parts[1], "logID": parts[2], "logIndex": parts[3],
            "verification": {
                "inclusionProof": {
                    "checkpoint": "", "hashes": hashes, "logIndex": 3, "rootHash": hex::encode(tree(&leaves)), "treeSize": 7,
                },
                "signedEntryTimestamp": parts[4],
            },
        },
    }])
}

/// A Merkle tree's root as it is defined (RFC 6962, section 2.1).
fn tree(leaves: &[Vec<u8>]) -> Vec<u8> {
    match leaves {
        [leaf] => digest(&SHA256, &[&[0], &leaf[..]].concat()).as_ref().to_vec(),
        leaves => {
            let (left, right) = leaves.split_at(half(leaves.len()));
            digest(&SHA256, &[&[1], &tree(left)[..], &tree(right)[..]].concat()).as_ref().to_vec()
        }
    }
}

/// The path of a leaf (RFC 6962, section 2.1.1).
fn path(leaf: usize, leaves: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if leaves.len() == 1 {
        return Vec::new();
    }
    let middle = half(leaves.len());
    let (left, right) = leaves.split_at(middle);
    let (mut below, sibling) = if leaf < middle {
        (path(leaf, left), tree(right))
    } else {
        (path(leaf - middle, right), tree(left))
    };
    below.push(sibling);
    below
}

/// The largest power of two below a number.
fn half(number: usize) -> usize {
    number.next_power_of_two() / 2
}

/// What a registry has, by path. Cheap to clone.
#[derive(Clone, Default)]
pub struct Images(Arc<Mutex<Documents>>);

/// Content types and bytes, by path.
type Documents = BTreeMap<String, (String, Vec<u8>)>;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Images {
    /// Adds bytes; gives their digest.
    pub fn blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = digest_of(bytes);
        self.put(format!("/v2/{repository}/blobs/{digest}"), "application/octet-stream", bytes);
        digest
    }

    /// Adds a manifest under a tag and its digest, which it gives.
    pub fn manifest(&self, repository: &str, tag: &str, manifest: &Value) -> String {
        let bytes = manifest.to_string().into_bytes();
        let digest = digest_of(&bytes);
        for reference in [tag, &digest] {
            self.put(format!("/v2/{repository}/manifests/{reference}"), MANIFEST, &bytes);
        }
        digest
    }

    /// Adds an image of one layer, an archive, under a tag; gives its digest.
    pub fn image(&self, repository: &str, tag: &str, archive: &[u8]) -> String {
        let layer = self.blob(repository, archive);
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer]},
        });
        let config = config.to_string().into_bytes();
        let digest = self.blob(repository, &config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": archive.len(),
            }],
        });
        self.manifest(repository, tag, &manifest)
    }

    /// Adds signatures (`sig`) or attestations (`att`) of the image with this digest.
    pub fn attach(&self, repository: &str, image: &str, suffix: &str, layers: &[Signed]) {
        let config = self.blob(repository, b"{}");
        let kind = match suffix {
            "sig" => "application/vnd.dev.cosign.simplesigning.v1+json",
            _ => "application/vnd.dsse.envelope.v1+json",
        };
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|layer| {
                json!({
                    "mediaType": kind, "digest": self.blob(repository, &layer.payload), "size": layer.payload.len(),
                    "annotations": layer.annotations,
                })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
            "layers": descriptors,
        });
        let tag = format!("{}.{suffix}", image.replace(':', "-"));
        self.manifest(repository, &tag, &manifest);
    }

    /// Adds anything.
    pub fn put(&self, path: String, kind: &str, bytes: &[u8]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(path, (kind.to_owned(), bytes.to_vec()));
    }

    /// The answer of a registry that lets everybody read.
    pub fn answer(&self, request: &Request) -> Answer {
        let target = request.target.split('?').next().unwrap_or_default();
        if target == "/v2/" {
            return Answer::Json(200, "{}".to_owned());
        }
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((kind, bytes)) = all.get(target) else {
            return response("404 Not Found", &[], b"{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\"}]}");
        };
        let digest = digest_of(bytes);
        let length = bytes.len().to_string();
        let headers = [("Content-Type", kind.as_str()), ("Docker-Content-Digest", &digest)];
        if request.method == "HEAD" {
            let headers = [&headers[..], &[("Content-Length", length.as_str())]].concat();
            return head("200 OK", &headers);
        }
        response("200 OK", &headers, bytes)
    }
}

fn head(status: &str, headers: &[(&str, &str)]) -> Answer {
    let mut text = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    Answer::Raw(text.into_bytes())
}

/// An answer with any headers, after which the connection ends.
pub fn response(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let length = body.len().to_string();
    let headers = [headers, &[("Content-Length", length.as_str())]].concat();
    match head(status, &headers) {
        Answer::Raw(mut bytes) => {
            bytes.extend_from_slice(body);
            Answer::Raw(bytes)
        }
        other => other,
    }
}

/// A registry with an image that is signed and one that is not, and files that say whom to believe.
pub struct SignedImage {
    /// `127.0.0.1:<port>/blog@sha256:<hex>`, signed.
    pub name: String,
    /// Another image, of which there is no signature.
    pub unsigned: String,
    variables: Vec<(&'static str, String)>,
    _folder: tempfile::TempDir,
    _web: Web,
}

impl SignedImage {
    /// Signed by somebody with this email address and a token of this issuer.
    ///
    /// # Errors
    /// No port is free, or the crypto library failed.
    pub fn new(issuer: &'static str, email: &'static str) -> Result<Self> {
        let sigstore = Sigstore::new()?;
        let folder = tempfile::tempdir().map_err(|error| Error::doing("a folder", error))?;
        let variables = sigstore.trust(folder.path())?;
        let images = Images::default();
        let [signed, unsigned] = ["1", "2"].map(|tag| images.image("blog", tag, tag.as_bytes()));
        let order = Order { name: Name::Email(email), issuer: Some(issuer), ..sigstore.order(&signed) };
        images.attach("blog", &signed, "sig", &[sigstore.sign(&order)?]);
        let web = Web::start(None, move |request| images.answer(request))?;
        let name = |digest: String| format!("127.0.0.1:{}/blog@{digest}", web.port());
        Ok(Self { name: name(signed), unsigned: name(unsigned), variables, _folder: folder, _web: web })
    }

    /// Whom to believe, as environment variables; the others of this process have no part.
    pub fn environment(&self) -> impl Fn(&str) -> Option<String> + Send + Sync + 'static {
        let variables = self.variables.clone();
        move |name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
    }
}
