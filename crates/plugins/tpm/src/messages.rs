//! The JSON between agent and server, with Go's field names and its base64 (pkg/common/plugin/tpmdevid).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use spire_core::pki::{Certificate, pem};

/// Bytes as Go's JSON has them: standard base64, or null for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Base64(pub(crate) Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<std::borrow::Cow<'de, str>>::deserialize(deserializer)?.unwrap_or_default();
        STANDARD.decode(text.as_bytes()).map(Self).map_err(serde::de::Error::custom)
    }
}

/// What the agent sends first. Public areas are TPMT_PUBLIC, certificates DER.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct AttestationRequest {
    /// The DevID certificate, then its intermediates.
    #[serde(rename = "DevIDCert", default)]
    pub(crate) devid_certificates: Option<Vec<Base64>>,
    #[serde(rename = "DevIDPub", default)]
    pub(crate) devid_public: Base64,
    #[serde(rename = "EKCert", default)]
    pub(crate) ek_certificate: Base64,
    #[serde(rename = "EKPub", default)]
    pub(crate) ek_public: Base64,
    #[serde(rename = "AKPub", default)]
    pub(crate) ak_public: Base64,
    /// TPMS_ATTEST: what the AK certified.
    #[serde(rename = "CertifiedDevID", default)]
    pub(crate) certified_devid: Base64,
    /// TPMT_SIGNATURE by the AK over it.
    #[serde(rename = "CertificationSignature", default)]
    pub(crate) certification_signature: Base64,
}

/// What the server asks.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ChallengeRequest {
    /// To be signed with the DevID key.
    #[serde(rename = "DevID", default)]
    pub(crate) devid: Base64,
    #[serde(rename = "CredActivation", default)]
    pub(crate) credential_activation: Option<CredentialActivation>,
}

/// A secret for the TPM that has both EK and AK: the contents of a TPM2B_ID_OBJECT and of a
/// TPM2B_ENCRYPTED_SECRET.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct CredentialActivation {
    #[serde(rename = "Credential", default)]
    pub(crate) credential: Base64,
    #[serde(rename = "Secret", default)]
    pub(crate) secret: Base64,
}

/// What the agent answers: a signature as X.509 has it, and the secret.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ChallengeResponse {
    #[serde(rename = "DevID", default)]
    pub(crate) devid: Base64,
    #[serde(rename = "CredActivation", default)]
    pub(crate) credential_activation: Base64,
}

/// The certificates of a PEM text; other blocks are passed over (pkg/common/util LoadCertificates).
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<Certificate>, String> {
    let mut certificates = Vec::new();
    for (number, block) in pem::blocks(text).enumerate() {
        if block.label == "CERTIFICATE" {
            let certificate = Certificate::from_der(block.contents)
                .map_err(|error| format!("unable to parse certificate in block {number}: {error}"))?;
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() { Err("no certificates found in file".to_owned()) } else { Ok(certificates) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_named_as_in_the_reference() {
        let request = AttestationRequest {
            devid_certificates: Some(vec![Base64(vec![1])]),
            devid_public: Base64(vec![2]),
            ek_certificate: Base64(vec![3]),
            ek_public: Base64(vec![4]),
            ak_public: Base64(vec![5]),
            certified_devid: Base64(vec![6]),
            certification_signature: Base64(vec![7]),
        };
        let text = r#"{"DevIDCert":["AQ=="],"DevIDPub":"Ag==","EKCert":"Aw==","EKPub":"BA==","AKPub":"BQ==","CertifiedDevID":"Bg==","CertificationSignature":"Bw=="}"#;
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        let none: AttestationRequest =
            serde_json::from_str(r#"{"DevIDCert":null,"AKPub":null,"X":1}"#).unwrap();
        assert!(none.devid_certificates.is_none() && none.ak_public.0.is_empty());

        let activation = CredentialActivation { credential: Base64(vec![1]), secret: Base64(vec![2]) };
        let challenge = ChallengeRequest { devid: Base64(vec![3]), credential_activation: Some(activation) };
        assert_eq!(
            serde_json::to_string(&challenge).unwrap(),
            r#"{"DevID":"Aw==","CredActivation":{"Credential":"AQ==","Secret":"Ag=="}}"#
        );
        let response = ChallengeResponse { devid: Base64(vec![1]), credential_activation: Base64(vec![2]) };
        assert_eq!(serde_json::to_string(&response).unwrap(), r#"{"DevID":"AQ==","CredActivation":"Ag=="}"#);
    }
}
