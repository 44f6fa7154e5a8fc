//! The server's side: which authorities make hosts' certificates, and what an agent is called after its own
//! (pkg/server/plugin/nodeattestor/sshpop).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use spire_compat::quote::quote;
use spire_compat::template::{Struct, Value};
use spire_core::spiffe::{Selectors, TrustDomain};
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{Attestation, Challenger, Error, ErrorKind, NodeAttestor, PluginType, Result};

use super::authorized::first_key;
use super::certificate::Certificate;
use super::key::Purpose;
use super::{Challenge, NAME, NONCE_LEN, Payload, Response, combine};
use crate::agent_path::AgentPath;
use crate::json::Base64;
use crate::machine::{blocking, now, random, read};

/// Fields and methods of Go's certificates that templates do not have here.
const NOT_BUILT: &[&str] = &["Key", "SignatureKey", "Signature", "ExtraData", "Verify", "SignCert"];

/// Settings as written.
#[derive(Default)]
struct Raw {
    authorities: Option<Vec<String>>,
    authorities_path: String,
    canonical_domain: String,
    template: String,
}

struct SshPop {
    trust_domain: TrustDomain,
    /// Public keys as SSH has them on the wire.
    authorities: Vec<Vec<u8>>,
    canonical_domain: String,
    path: AgentPath,
}

/// The attestor, with its authorities read.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn NodeAttestor>> {
    let raw = configuration
        .decode(|data| {
            Ok(Raw {
                authorities: data.take_string_list("cert_authorities")?,
                authorities_path: data.take_string("cert_authorities_path")?.unwrap_or_default(),
                canonical_domain: data.take_string("canonical_domain")?.unwrap_or_default(),
                template: data.take_string("agent_path_template")?.unwrap_or_default(),
            })
        })
        .map_err(|error| configuration.invalid(format!("failed to decode configuration: {error}")))?;
    if raw.authorities.is_none() && raw.authorities_path.is_empty() {
        let text = "missing required config value for \"cert_authorities\" or \"cert_authorities_path\"";
        return Err(configuration.invalid(text));
    }
    let mut lines = raw.authorities.unwrap_or_default();
    if !raw.authorities_path.is_empty() {
        let path = raw.authorities_path;
        let more = blocking(move || from_file(&path)).await;
        let failed =
            |error| configuration.invalid(format!("failed to get cert authorities from file: {error}"));
        lines.extend(more.map_err(failed)?);
    }
    let authorities = authorities(&lines)
        .map_err(|error| configuration.invalid(format!("failed to create cert checker: {error}")))?;
    let path = match raw.template.as_str() {
        "" => "/{{ .PluginName}}/{{ .Fingerprint }}",
        template => template,
    };
    let path = AgentPath::parse(path, NOT_BUILT).map_err(|error| configuration.invalid(error))?;
    let canonical_domain = raw.canonical_domain;
    let trust_domain = configuration.trust_domain;
    Ok(Arc::new(SshPop { trust_domain, authorities, canonical_domain, path }))
}

/// The lines of a file, one key each.
fn from_file(path: &str) -> std::result::Result<Vec<String>, String> {
    let text = read(path)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<String> = text.split('\n').filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if lines.is_empty() { Err(format!("no data found in file: {}", quote(path))) } else { Ok(lines) }
}

fn authorities(lines: &[String]) -> std::result::Result<Vec<Vec<u8>>, String> {
    if lines.is_empty() {
        return Err("must provide at least one cert authority".to_owned());
    }
    lines
        .iter()
        .map(|line| {
            let key = first_key(line).and_then(|key| {
                super::key::PublicKey::parse(&key)?;
                Ok(key)
            });
            key.map_err(|error| format!("failed to parse public key {}: {error}", quote(line)))
        })
        .collect()
}

fn failed(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, (PluginType::NodeAttestor, NAME), message)
}

fn internal(message: impl Into<String>) -> Error {
    failed(ErrorKind::Internal, message)
}

#[async_trait]
impl NodeAttestor for SshPop {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, payload: Bytes, challenger: &mut dyn Challenger) -> Result<Attestation> {
        let certificate = parse(&payload)?;
        let hostname = self.hostname(&certificate)?;
        let nonce =
            random::<NONCE_LEN>().map_err(|error| internal(format!("failed to generate nonce: {error}")))?;
        let challenge = serde_json::to_vec(&Challenge { nonce: Base64(nonce.to_vec()) })
            .map_err(|error| internal(format!("failed to marshal challenge request: {error}")))?;
        let response = challenger.challenge(challenge.into()).await?;
        let response: Response = serde_json::from_slice(&response)
            .map_err(|error| internal(format!("failed to unmarshal challenge response: {error}")))?;
        let message = combine(&nonce, &response.nonce.0)
            .map_err(|error| internal(format!("failed to combine nonces: {error}")))?;
        let verified = match &response.signature {
            Some(signature) => certificate.key.verify(message.as_ref(), signature, Purpose::Challenge),
            None => Err("there is none".to_owned()),
        };
        verified.map_err(|error| internal(format!("failed to verify signature: {error}")))?;
        let agent_id = self
            .path
            .agent_id(&self.trust_domain, &fields(&certificate, &hostname))
            .map_err(|error| internal(format!("failed to create AgentID: {error}")))?;
        Ok(Attestation { agent_id, selectors: Selectors::default(), can_reattest: true })
    }
}

/// The certificate of a payload.
fn parse(payload: &[u8]) -> Result<Certificate> {
    if payload.is_empty() {
        return Err(failed(ErrorKind::InvalidArgument, "missing attestation payload"));
    }
    let payload: Payload = serde_json::from_slice(payload)
        .map_err(|error| internal(format!("failed to unmarshal data: {error}")))?;
    if payload.certificate.0.is_empty() {
        return Err(internal("no certificate in response"));
    }
    let certificate = Certificate::parse(&payload.certificate.0)
        .map_err(|error| internal(format!("failed to parse public key: {error}")))?
        .ok_or_else(|| internal("pubkey in response is not a certificate"))?;
    if certificate.principals.is_empty() {
        return Err(internal("cert has no valid principals"));
    }
    Ok(certificate)
}

impl SshPop {
    /// The host's name, of a certificate that one of the authorities made for it.
    fn hostname(&self, certificate: &Certificate) -> Result<String> {
        let name = certificate
            .check_host(&self.authorities, now().unix())
            .map_err(|error| internal(format!("failed to check host key: {error}")))?;
        if self.canonical_domain.is_empty() {
            return Ok(name.to_owned());
        }
        let suffix = format!(".{}", self.canonical_domain);
        name.strip_suffix(&suffix).map(str::to_owned).ok_or_else(|| {
            let suffix = quote(&suffix);
            internal(format!("failed to decanonicalize hostname: cert principal is not in domain {suffix}"))
        })
    }
}

/// What templates see: the fields of pkg/common/plugin/sshpop and of Go's ssh.Certificate.
fn fields(certificate: &Certificate, hostname: &str) -> Value {
    let structure = |type_name, fields, methods| {
        Value::Struct(Rc::new(Struct { type_name, fields, methods, text: None }))
    };
    let map = |map: &BTreeMap<String, String>| Value::StringMap(Rc::new(map.clone()));
    let permissions = vec![
        ("CriticalOptions", map(&certificate.critical_options)),
        ("Extensions", map(&certificate.extensions)),
    ];
    let mut own = vec![
        ("Nonce", Value::Bytes(certificate.nonce.as_slice().into())),
        ("Serial", Value::Uint(certificate.serial)),
        ("CertType", Value::Uint(u64::from(certificate.cert_type))),
        ("KeyId", Value::str(&certificate.key_id)),
        ("ValidPrincipals", Value::strings(&certificate.principals)),
        ("ValidAfter", Value::Uint(certificate.valid_after)),
        ("ValidBefore", Value::Uint(certificate.valid_before)),
        ("Reserved", Value::Bytes(certificate.reserved.as_slice().into())),
    ];
    own.extend(permissions.clone());
    own.push(("Permissions", structure("ssh.Permissions", permissions, Vec::new())));
    let methods = vec![
        ("Type", Value::str(certificate.type_name)),
        ("Marshal", Value::Bytes(certificate.blob().into())),
    ];
    let mut fields = vec![
        ("PluginName", Value::str(NAME)),
        ("Fingerprint", Value::str(URL_SAFE_NO_PAD.encode(certificate.fingerprint()))),
        ("Hostname", Value::str(hostname)),
    ];
    // The certificate is embedded: its fields and methods are the data's own.
    fields.extend(own.clone());
    fields.push(("Certificate", structure("*ssh.Certificate", own, methods.clone())));
    structure("sshpop.agentPathTemplateData", fields, methods)
}
