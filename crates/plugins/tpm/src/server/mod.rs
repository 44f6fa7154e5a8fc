//! The server's side: whom the certificates of DevIDs and of TPMs must come from, and what an agent is called after
//! its own (pkg/server/plugin/nodeattestor/tpmdevid).

mod residency;

use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::{constant_time, digest};
use bytes::Bytes;
use spire_core::pki::{Certificate, MAX_CHAIN_LEN, PublicKeyKind, SignatureAlgorithm, chain};
use spire_core::spiffe::{Selector, SpiffeId, TrustDomain};
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{Attestation, Challenger, Error, ErrorKind, NodeAttestor, PluginType, Result};

use crate::NAME;
use crate::machine::{blocking, now, random, read};
use crate::messages::{AttestationRequest, Base64, ChallengeRequest, ChallengeResponse, certificates};

/// The length of what the DevID key signs.
const NONCE_BYTES: usize = 32;

/// Settings as written.
#[derive(Default)]
struct Raw {
    devid_ca: String,
    endorsement_ca: String,
}

struct TpmDevid {
    trust_domain: TrustDomain,
    devid_roots: Vec<Certificate>,
    endorsement_roots: Vec<Certificate>,
}

/// The attestor, with its bundles read.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn NodeAttestor>> {
    let raw = configuration
        .decode(|data| {
            Ok(Raw {
                devid_ca: data.take_string("devid_ca_path")?.unwrap_or_default(),
                endorsement_ca: data.take_string("endorsement_ca_path")?.unwrap_or_default(),
            })
        })
        .map_err(|error| configuration.invalid(format!("plugin configuration is malformed: {error}")))?;
    for (value, key) in [(&raw.devid_ca, "devid_ca_path"), (&raw.endorsement_ca, "endorsement_ca_path")] {
        if value.is_empty() {
            return Err(configuration.invalid(format!("{key} is required")));
        }
    }
    let load = |path: String, what: &'static str| async move {
        blocking(move || read(&path).and_then(|text| certificates(&text)))
            .await
            .map_err(|error| format!("unable to load {what} trust bundle: {error}"))
    };
    let devid_roots = load(raw.devid_ca, "DevID").await.map_err(|error| configuration.invalid(error))?;
    let endorsement_roots =
        load(raw.endorsement_ca, "endorsement").await.map_err(|error| configuration.invalid(error))?;
    Ok(Arc::new(TpmDevid { trust_domain: configuration.trust_domain, devid_roots, endorsement_roots }))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, (PluginType::NodeAttestor, NAME), message)
}

fn internal(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Internal, (PluginType::NodeAttestor, NAME), message)
}

#[async_trait]
impl NodeAttestor for TpmDevid {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, payload: Bytes, challenger: &mut dyn Challenger) -> Result<Attestation> {
        let request = parse(&payload)?;
        let now = now();
        let chain = chain(&request)?;
        let authorities = chain::authorities(&chain, &self.devid_roots, now).map_err(|error| {
            invalid(format!("unable to verify DevID signature: verification failed: {error}"))
        })?;
        let leaf = &chain[0];
        let nonce = random::<NONCE_BYTES>()
            .map_err(|error| internal(format!("unable to generate challenge: {error}")))?;
        let resident = residency::verify(&request, leaf, &self.endorsement_roots, now)?;
        let challenge = ChallengeRequest {
            devid: Base64(nonce.to_vec()),
            credential_activation: Some(resident.challenge),
        };
        let challenge = serde_json::to_vec(&challenge)
            .map_err(|error| internal(format!("unable to marshal challenges data: {error}")))?;

        let response = challenger.challenge(challenge.into()).await?;
        let response: ChallengeResponse = serde_json::from_slice(&response)
            .map_err(|error| invalid(format!("unable to unmarshall challenges response: {error}")))?;
        check_possession(leaf, &nonce, &response.devid.0)
            .map_err(|error| invalid(format!("devID challenge verification failed: {error}")))?;
        // Only the TPM with the endorsement key and the attestation key could decrypt it.
        constant_time::verify_slices_are_equal(&resident.secret, &response.credential_activation.0)
            .map_err(|_| invalid("credential activation failed: nonces are different"))?;
        self.attestation(leaf, &authorities)
    }
}

fn parse(payload: &[u8]) -> Result<AttestationRequest> {
    if payload.is_empty() {
        return Err(invalid("missing attestation payload"));
    }
    serde_json::from_slice(payload)
        .map_err(|error| invalid(format!("unable to unmarshall attestation data: {error}")))
}

/// The chain of the DevID, leaf first. Counted before it is parsed, and never empty.
fn chain(request: &AttestationRequest) -> Result<Vec<Certificate>> {
    let ders = request.devid_certificates.as_deref().unwrap_or_default();
    if ders.is_empty() {
        return Err(invalid("no DevID certificate to attest"));
    }
    if ders.len() > MAX_CHAIN_LEN {
        return Err(invalid("too many DevID intermediate certificates"));
    }
    let mut chain = Vec::with_capacity(ders.len());
    for (index, der) in ders.iter().enumerate() {
        let certificate = Certificate::from_der(der.0.clone()).map_err(|error| match index {
            0 => invalid(format!("unable to parse DevID certificate: {error}")),
            _ => invalid(format!("unable to parse DevID intermediate certificate {}: {error}", index - 1)),
        })?;
        chain.push(certificate);
    }
    Ok(chain)
}

/// Whether the key of the certificate signed the nonce.
fn check_possession(
    certificate: &Certificate,
    nonce: &[u8],
    signature: &[u8],
) -> std::result::Result<(), String> {
    let key = certificate.public_key().map_err(|error| error.to_string())?;
    let (algorithm, failed) = match key.kind() {
        PublicKeyKind::Rsa { .. } => (SignatureAlgorithm::RsaPkcs1Sha256, "crypto/rsa: verification error"),
        PublicKeyKind::EcP256 | PublicKeyKind::EcP384 | PublicKeyKind::EcP521 => {
            (SignatureAlgorithm::EcdsaSha256, "x509: ECDSA verification failure")
        }
        PublicKeyKind::Ed25519 => return Err("unsupported private key type ed25519.PublicKey".to_owned()),
    };
    key.verify(algorithm, nonce, signature).map_err(|_| failed.to_owned())
}

impl TpmDevid {
    fn attestation(&self, leaf: &Certificate, authorities: &[Certificate]) -> Result<Attestation> {
        let agent_id = SpiffeId::agent(&self.trust_domain, &format!("/{NAME}/{}", fingerprint(leaf)))
            .map_err(|error| internal(format!("failed to create agent ID: {error}")))?;
        let (subject, issuer) = (leaf.subject().common_name, leaf.issuer().common_name);
        let mut values = Vec::with_capacity(2 + authorities.len());
        values.extend((!subject.is_empty()).then(|| format!("subject:cn:{subject}")));
        values.extend((!issuer.is_empty()).then(|| format!("issuer:cn:{issuer}")));
        values
            .extend(authorities.iter().map(|authority| format!("ca:fingerprint:{}", fingerprint(authority))));
        let selectors = values.into_iter().filter_map(|value| Selector::new(NAME, value).ok()).collect();
        Ok(Attestation { agent_id, selectors, can_reattest: true })
    }
}

/// The SHA-1 of a certificate in hex, by which agents are named.
fn fingerprint(certificate: &Certificate) -> String {
    hex::encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, certificate.der()))
}

#[cfg(test)]
mod tests;
