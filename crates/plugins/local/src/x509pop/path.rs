//! What `agent_path_template` may name: the fields of pkg/common/plugin/x509pop and of Go's x509.Certificate.

use std::collections::BTreeMap;
use std::rc::Rc;

use spire_compat::gotime;
use spire_compat::template::{Elem, List, Struct, Value};
use spire_core::pki::{Certificate, DistinguishedName};
use spire_core::time::Timestamp;

use super::{NAME, fingerprint};

/// Fields and methods of Go's certificates, names and times that are not here.
pub(super) const NOT_BUILT: &[&str] = &[
    "RawTBSCertificate",
    "RawSubjectPublicKeyInfo",
    "RawSubject",
    "RawIssuer",
    "RawSignatureAlgorithm",
    "Signature",
    "SignatureAlgorithm",
    "PublicKeyAlgorithm",
    "PublicKey",
    "Extensions",
    "ExtraExtensions",
    "UnhandledCriticalExtensions",
    "ExtKeyUsage",
    "UnknownExtKeyUsage",
    "BasicConstraintsValid",
    "MaxPathLen",
    "MaxPathLenZero",
    "OCSPServer",
    "IssuingCertificateURL",
    "EmailAddresses",
    "PermittedDNSDomains",
    "ExcludedDNSDomains",
    "CRLDistributionPoints",
    "PolicyIdentifiers",
    "Policies",
    "Names",
    "ExtraNames",
    "ToRDNSequence",
    "Format",
    "Year",
    "Month",
    "Day",
    "YearDay",
    "Weekday",
    "Hour",
    "Minute",
    "Second",
    "UTC",
];

/// What a path is made of.
pub(super) struct Fields<'a> {
    pub(super) leaf: &'a Certificate,
    pub(super) trust_domain: &'a str,
    /// The path of the leaf's SPIFFE ID behind the prefix; empty but in mode `spiffe`.
    pub(super) svid_path: &'a str,
    pub(super) san_selectors: &'a BTreeMap<String, String>,
}

impl Fields<'_> {
    /// As the template sees them.
    pub(super) fn value(&self) -> Value {
        let certificate = certificate(self.leaf);
        let mut fields = vec![
            ("SerialNumberHex", Value::str(serial_hex(self.leaf))),
            ("Fingerprint", Value::str(fingerprint(self.leaf))),
            ("PluginName", Value::str(NAME)),
            ("TrustDomain", Value::str(self.trust_domain)),
            ("SVIDPathTrimmed", Value::str(self.svid_path)),
            ("URISanSelectors", Value::StringMap(Rc::new(self.san_selectors.clone()))),
        ];
        // The certificate is embedded: its fields are the data's own.
        fields.extend(certificate.clone());
        let certificate = structure("*x509.Certificate", certificate, None);
        fields.push(("Certificate", certificate));
        structure("x509pop.agentPathTemplateData", fields, None)
    }
}

/// Lower-case hex with an even number of digits.
pub(super) fn serial_hex(certificate: &Certificate) -> String {
    match certificate.serial_bytes() {
        [] => "00".to_owned(),
        bytes => hex::encode(bytes),
    }
}

fn structure(type_name: &'static str, fields: Vec<(&'static str, Value)>, text: Option<String>) -> Value {
    Value::Struct(Rc::new(Struct { type_name, fields, methods: Vec::new(), text }))
}

fn certificate(leaf: &Certificate) -> Vec<(&'static str, Value)> {
    let bytes = |bytes: &[u8]| Value::Bytes(bytes.into());
    let addresses = leaf.ip_addresses().iter().map(|address| {
        let text = address.to_canonical().to_string();
        structure("net.IP", Vec::new(), Some(text))
    });
    let uris = leaf.uris().iter().map(|uri| structure("*url.URL", Vec::new(), Some(uri.clone())));
    vec![
        ("Raw", bytes(leaf.der())),
        ("Version", Value::Int(3)),
        ("SerialNumber", structure("*big.Int", Vec::new(), Some(leaf.serial()))),
        ("Issuer", name(&leaf.issuer())),
        ("Subject", name(&leaf.subject())),
        ("NotBefore", time(leaf.not_before())),
        ("NotAfter", time(leaf.not_after())),
        ("KeyUsage", Value::Int(i64::from(leaf.key_usage().0))),
        ("IsCA", Value::Bool(leaf.is_ca())),
        ("SubjectKeyId", bytes(leaf.subject_key_id().unwrap_or_default())),
        ("AuthorityKeyId", bytes(leaf.authority_key_id().unwrap_or_default())),
        ("DNSNames", Value::strings(leaf.dns_names())),
        ("IPAddresses", Value::List(List { elem: Elem::Other("net.IP"), items: addresses.collect() })),
        ("URIs", Value::List(List { elem: Elem::Other("*url.URL"), items: uris.collect() })),
    ]
}

fn name(name: &DistinguishedName) -> Value {
    let fields = vec![
        ("Country", Value::strings(&name.country)),
        ("Organization", Value::strings(&name.organization)),
        ("OrganizationalUnit", Value::strings(&name.organizational_unit)),
        ("Locality", Value::strings(&name.locality)),
        ("Province", Value::strings(&name.province)),
        ("StreetAddress", Value::strings(&name.street_address)),
        ("PostalCode", Value::strings(&name.postal_code)),
        ("SerialNumber", Value::str(&name.serial_number)),
        ("CommonName", Value::str(&name.common_name)),
    ];
    structure("pkix.Name", fields, Some(name.to_string()))
}

fn time(time: Timestamp) -> Value {
    Value::Struct(Rc::new(Struct {
        type_name: "time.Time",
        fields: Vec::new(),
        methods: vec![("Unix", Value::Int(time.unix()))],
        text: Some(gotime::string(time.unix())),
    }))
}
