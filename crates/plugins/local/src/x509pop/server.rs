//! The server's side: which certificates are trusted, and what an agent is called after them
//! (pkg/server/plugin/nodeattestor/x509pop).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use spire_compat::hcl::{Body, DecodeError};
use spire_compat::quote::quote;
use spire_core::pki::chain;
use spire_core::pki::{Certificate, PublicKeyError, PublicKeyKind, pem};
use spire_core::spiffe::{Selector, SpiffeId, TrustDomain};
use spire_core::time::Timestamp;
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{
    Attestation, Challenger, Error, ErrorKind, Host, NodeAttestor, PluginType, Result,
};

use super::path::{Fields, NOT_BUILT, serial_hex};
use super::{Challenge, NAME, Received, Response, fingerprint};
use crate::agent_path::AgentPath;
use crate::json::base64_decoded;
use crate::machine::{blocking, now, read};

const DEFAULT_MAX_INTERMEDIATES: i64 = 4;
const DEFAULT_MAX_RSA_BITS: i64 = 8192;

/// The path of SVIDs that may attest in mode `spiffe`, where nothing else is configured.
const DEFAULT_SPIFFE_PREFIX: &str = "/spire-exchange/";

/// Settings as written.
#[derive(Default)]
struct Raw {
    mode: String,
    spiffe_prefix: Option<String>,
    svid_prefix: bool,
    bundle_path: String,
    bundle_paths: Vec<String>,
    template: String,
    max_intermediates: Option<i64>,
    max_rsa_bits: Option<i64>,
    verify_client_ip: bool,
}

/// Whose certificates attest.
enum Mode {
    /// Those of these authorities.
    ExternalPki(Vec<Certificate>),
    /// Those of the server's own bundle, with a SPIFFE ID whose path begins so.
    Spiffe { prefix: String },
}

struct X509Pop {
    trust_domain: TrustDomain,
    host: Host,
    mode: Mode,
    path: AgentPath,
    max_intermediates: usize,
    max_rsa_bits: usize,
    verify_client_ip: bool,
}

/// The attestor, with its bundles read.
pub(crate) async fn build(configuration: Configuration) -> Result<Arc<dyn NodeAttestor>> {
    let raw = configuration
        .decode(decode)
        .map_err(|error| configuration.invalid(format!("unable to decode configuration: {error}")))?;
    let path = match (raw.template.as_str(), raw.mode.as_str()) {
        ("", "spiffe") => "/{{ .PluginName }}/{{ .SVIDPathTrimmed }}",
        ("", _) => "/{{ .PluginName }}/{{ .Fingerprint }}",
        (template, _) => template,
    };
    let path = AgentPath::parse(path, NOT_BUILT);
    let bound = |value: Option<i64>, default, key| {
        usize::try_from(value.unwrap_or(default))
            .ok()
            .filter(|value| *value > 0)
            .ok_or_else(|| configuration.invalid(format!("{key} must be greater than 0")))
    };
    let max_intermediates = bound(raw.max_intermediates, DEFAULT_MAX_INTERMEDIATES, "max_intermediates");
    let max_rsa_bits = bound(raw.max_rsa_bits, DEFAULT_MAX_RSA_BITS, "max_rsa_key_size");
    let verify_client_ip = raw.verify_client_ip;
    if raw.svid_prefix {
        tracing::warn!(
            external = false,
            plugin_name = NAME,
            plugin_type = "NodeAttestor",
            "svid_prefix is not read, as in SPIRE; the setting is called spiffe_prefix"
        );
    }
    let mode = mode(&configuration, raw).await?;
    let path = path.map_err(|error| configuration.invalid(error))?;
    let (max_intermediates, max_rsa_bits) = (max_intermediates?, max_rsa_bits?);
    let Configuration { trust_domain, host, .. } = configuration;
    let attestor =
        X509Pop { trust_domain, host, mode, path, max_intermediates, max_rsa_bits, verify_client_ip };
    Ok(Arc::new(attestor))
}

async fn mode(configuration: &Configuration, raw: Raw) -> Result<Mode> {
    let has_bundle = !raw.bundle_path.is_empty() || !raw.bundle_paths.is_empty();
    match raw.mode.as_str() {
        "" | "external_pki" => {}
        "spiffe" if has_bundle => {
            let text = "you can not use ca_bundle_path or ca_bundle_paths in spiffe mode";
            return Err(configuration.invalid(text));
        }
        "spiffe" => {
            let mut prefix = raw.spiffe_prefix.unwrap_or_else(|| DEFAULT_SPIFFE_PREFIX.to_owned());
            if !prefix.ends_with('/') {
                prefix.push('/');
            }
            return Ok(Mode::Spiffe { prefix });
        }
        _ => return Err(configuration.invalid("mode can only be either spiffe or external_pki")),
    }
    if !raw.bundle_path.is_empty() && !raw.bundle_paths.is_empty() {
        let text = "only one of ca_bundle_path or ca_bundle_paths can be configured, not both";
        return Err(configuration.invalid(text));
    }
    if !has_bundle {
        return Err(configuration.invalid("one of ca_bundle_path or ca_bundle_paths must be configured"));
    }
    let paths = if raw.bundle_path.is_empty() { raw.bundle_paths } else { vec![raw.bundle_path] };
    let roots = blocking(move || load_roots(&paths)).await.map_err(|error| configuration.invalid(error))?;
    Ok(Mode::ExternalPki(roots))
}

fn decode(data: &mut Body<'_>) -> std::result::Result<Raw, DecodeError> {
    Ok(Raw {
        mode: data.take_string("mode")?.unwrap_or_default(),
        spiffe_prefix: data.take_string("spiffe_prefix")?,
        svid_prefix: data.take_string("svid_prefix")?.is_some(),
        bundle_path: data.take_string("ca_bundle_path")?.unwrap_or_default(),
        bundle_paths: data.take_string_list("ca_bundle_paths")?.unwrap_or_default(),
        template: data.take_string("agent_path_template")?.unwrap_or_default(),
        max_intermediates: data.take_int("max_intermediates")?,
        max_rsa_bits: data.take_int("max_rsa_key_size")?,
        verify_client_ip: data.take_bool("verify_client_ip")?.unwrap_or_default(),
    })
}

fn load_roots(paths: &[String]) -> std::result::Result<Vec<Certificate>, String> {
    let mut roots = Vec::new();
    for path in paths {
        let certificates = read(path)
            .and_then(|text| certificates(&text))
            .map_err(|error| format!("unable to load trust bundle {}: {error}", quote(path)))?;
        roots.extend(certificates);
    }
    Ok(roots)
}

/// The certificates of a PEM text; other blocks are passed over (pkg/common/util LoadCertificates).
pub(super) fn certificates(text: &[u8]) -> std::result::Result<Vec<Certificate>, String> {
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

fn failed(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, (PluginType::NodeAttestor, NAME), message)
}

#[async_trait]
impl NodeAttestor for X509Pop {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, payload: Bytes, challenger: &mut dyn Challenger) -> Result<Attestation> {
        let chain = self.parse(&payload)?;
        let authorities = match &self.mode {
            Mode::ExternalPki(roots) => authorities(&chain, roots, now())?,
            Mode::Spiffe { .. } => authorities(&chain, &self.own_roots().await?, now())?,
        };
        let leaf = &chain[0];
        if self.verify_client_ip {
            verify_client_ip(leaf, challenger.client_ip())?;
        }
        // The leaf is trusted; now the agent proves that it has its key.
        let challenge = Challenge::new(leaf)
            .map_err(|error| failed(ErrorKind::Internal, format!("unable to generate challenge: {error}")))?;
        let text = serde_json::to_vec(&challenge)
            .map_err(|error| failed(ErrorKind::Internal, format!("unable to marshal challenge: {error}")))?;
        let response = challenger.challenge(text.into()).await?;
        let response: Response = serde_json::from_slice(&response).map_err(|error| {
            failed(ErrorKind::InvalidArgument, format!("unable to unmarshal challenge response: {error}"))
        })?;
        leaf.public_key()
            .map_err(|error| error.to_string())
            .and_then(|key| challenge.verify(key, &response))
            .map_err(|error| {
                let message = format!("challenge response verification failed: {error}");
                failed(ErrorKind::PermissionDenied, message)
            })?;
        self.attestation(leaf, &authorities)
    }
}

impl X509Pop {
    /// The chain of a payload, leaf first. Counted before it is parsed, and never empty.
    fn parse(&self, payload: &[u8]) -> Result<Vec<Certificate>> {
        let invalid = |message: String| failed(ErrorKind::InvalidArgument, message);
        if payload.is_empty() {
            return Err(invalid("missing attestation payload".to_owned()));
        }
        let payload: Received = serde_json::from_slice(payload)
            .map_err(|error| invalid(format!("failed to unmarshal data: {error}")))?;
        let certificates = payload.certificates.unwrap_or_default();
        if certificates.is_empty() {
            return Err(invalid("no certificate to attest".to_owned()));
        }
        if certificates.len() - 1 > self.max_intermediates {
            return Err(invalid("too many intermediate certificates".to_owned()));
        }
        let mut chain = Vec::with_capacity(certificates.len());
        for (index, text) in certificates.into_iter().enumerate() {
            let which = if index == 0 {
                "leaf certificate".to_owned()
            } else {
                format!("intermediate certificate {}", index - 1)
            };
            let der = base64_decoded(text.as_deref().unwrap_or_default())
                .map_err(|error| invalid(format!("failed to unmarshal data: {error}")))?;
            let certificate = Certificate::from_der(der)
                .map_err(|error| invalid(format!("unable to parse {which}: {error}")))?;
            let bits = match certificate.public_key().map(|key| key.kind()) {
                Ok(PublicKeyKind::Rsa { bits }) | Err(PublicKeyError::RsaBits(bits)) => bits,
                // Larger than any key that is parsed.
                Err(PublicKeyError::TooLarge) => usize::MAX,
                _ => 0,
            };
            if bits > self.max_rsa_bits {
                return Err(invalid(format!("{which} key size too large")));
            }
            chain.push(certificate);
        }
        Ok(chain)
    }

    /// The X.509 authorities of the server's trust domain, as they are now.
    async fn own_roots(&self) -> Result<Vec<Certificate>> {
        let failed =
            |error: String| failed(ErrorKind::Internal, format!("failed to get trust bundle: {error}"));
        let identity = self.host.identity.x509_identity().await.map_err(|error| failed(error.to_string()))?;
        let authorities = &identity.bundle.x509_authorities;
        if authorities.is_empty() {
            tracing::warn!(
                external = false,
                plugin_name = NAME,
                plugin_type = "NodeAttestor",
                "No trust bundle retrieved from SPIRE"
            );
        }
        authorities
            .iter()
            .map(|authority| Certificate::from_der(authority.der.clone()).map_err(|e| failed(e.to_string())))
            .collect()
    }

    /// The path of the leaf's SPIFFE ID behind the prefix, in mode `spiffe`.
    fn svid_path(&self, leaf: &Certificate) -> Result<String> {
        let Mode::Spiffe { prefix } = &self.mode else { return Ok(String::new()) };
        let denied = |message: &str| failed(ErrorKind::PermissionDenied, message);
        let id = leaf
            .uris()
            .iter()
            .find(|uri| uri.starts_with("spiffe:"))
            .and_then(|uri| SpiffeId::parse(uri).ok())
            .filter(|id| id.is_member_of(&self.trust_domain))
            .ok_or_else(|| denied("valid SVID x509 cert not found"))?;
        let path = id.path().strip_prefix(prefix.as_str());
        path.map(str::to_owned).ok_or_else(|| denied("x509 cert doesnt match SVID prefix"))
    }

    fn attestation(&self, leaf: &Certificate, authorities: &[Certificate]) -> Result<Attestation> {
        let san_selectors = san_selectors(leaf, self.trust_domain.name());
        let fields = Fields {
            leaf,
            trust_domain: self.trust_domain.name(),
            svid_path: &self.svid_path(leaf)?,
            san_selectors: &san_selectors,
        };
        let agent_id = self
            .path
            .agent_id(&self.trust_domain, &fields.value())
            .map_err(|error| failed(ErrorKind::Internal, format!("failed to make spiffe id: {error}")))?;

        let common_name = leaf.subject().common_name;
        let mut values = Vec::new();
        values.extend((!common_name.is_empty()).then(|| format!("subject:cn:{common_name}")));
        values
            .extend(authorities.iter().map(|authority| format!("ca:fingerprint:{}", fingerprint(authority))));
        values.push(format!("serialnumber:{}", serial_hex(leaf)));
        values.extend(san_selectors.iter().map(|(key, value)| format!("san:{key}:{value}")));
        let selectors = values.into_iter().filter_map(|value| Selector::new(NAME, value).ok()).collect();
        Ok(Attestation { agent_id, selectors, can_reattest: true })
    }
}

/// Verifies the chain and returns the authorities above the leaf, without duplicates.
fn authorities(chain: &[Certificate], roots: &[Certificate], now: Timestamp) -> Result<Vec<Certificate>> {
    let denied =
        |error| failed(ErrorKind::PermissionDenied, format!("certificate verification failed: {error}"));
    chain::authorities(chain, roots, now).map_err(denied)
}

/// Refuses a leaf that does not name the address that its agent comes from.
fn verify_client_ip(leaf: &Certificate, client: Option<IpAddr>) -> Result<()> {
    let Some(client) = client.map(|client| client.to_canonical()) else {
        return Err(failed(ErrorKind::Internal, "client IP not available for verification"));
    };
    if leaf.ip_addresses().iter().any(|address| address.to_canonical() == client) {
        return Ok(());
    }
    let message = format!("client IP {client} does not match any certificate IP SAN");
    Err(failed(ErrorKind::PermissionDenied, message))
}

/// What URIs `x509pop://<trust domain>/<key>/<value>` say; of one key the last.
fn san_selectors(leaf: &Certificate, trust_domain: &str) -> BTreeMap<String, String> {
    let prefix = format!("x509pop://{trust_domain}/");
    let mut selectors = BTreeMap::new();
    for uri in leaf.uris() {
        let Some(path) = uri.strip_prefix(&prefix) else { continue };
        let path = path.split(['?', '#']).next().and_then(unescape);
        match path.as_deref().and_then(|path| path.trim_matches('/').split_once('/')) {
            Some((key, value)) => {
                selectors.insert(key.to_owned(), value.to_owned());
            }
            None => tracing::warn!(
                external = false,
                plugin_name = NAME,
                plugin_type = "NodeAttestor",
                "cannot extract x509pop san selectors from {uri}"
            ),
        }
    }
    selectors
}

/// A URI's path without its percent-encoding; nothing where that is malformed.
fn unescape(path: &str) -> Option<String> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            out.push(*byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let mut decoded = [0];
        hex::decode_to_slice(digits, &mut decoded).ok()?;
        out.push(decoded[0]);
        rest = after;
    }
    String::from_utf8(out).ok()
}
