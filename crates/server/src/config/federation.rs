//! The `federation` section: our bundle endpoint and the trust domains that we federate with.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use spire_compat::config::{ConfigError, ConfigFile, Notice};
use spire_compat::hcl::Fragment;
use spire_compat::quote::quote;
use spire_core::spiffe::{SpiffeId, TrustDomain};
use spire_net::https::redacted;

use super::raw::{self, RawAcme, RawBundleEndpoint, RawFederatesWith, RawFederation};

/// Federation with other trust domains.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FederationConfig {
    /// Where we serve our own bundle.
    pub bundle_endpoint: Option<BundleEndpoint>,
    /// The static relationships, in file order.
    pub federates_with: Vec<FederatesWith>,
    /// Whether bundle endpoints of others must have addresses of the public internet.
    pub refuse_private_endpoints: bool,
}

/// Where we serve our own bundle.
#[derive(Debug, Clone, PartialEq)]
pub struct BundleEndpoint {
    /// The address to listen on; `None` is every address.
    pub address: Option<IpAddr>,
    /// The port to listen on.
    pub port: u16,
    /// What others are told about how often to ask.
    pub refresh_hint: Duration,
    /// How others know that it is us.
    pub profile: BundleEndpointProfile,
}

/// How a client authenticates our bundle endpoint.
#[derive(Debug, Clone, PartialEq)]
pub enum BundleEndpointProfile {
    /// By our X.509-SVID (`https_spiffe`).
    HttpsSpiffe,
    /// By a certificate from an ACME authority (`https_web`).
    Acme(AcmeConfig),
    /// By a certificate from files (`https_web`).
    ServingCertFile {
        /// PEM, leaf first.
        cert_file: PathBuf,
        /// PEM.
        key_file: PathBuf,
        /// How often to look for changes.
        file_sync_interval: Duration,
    },
}

/// A certificate by ACME.
#[derive(Debug, Clone, PartialEq)]
pub struct AcmeConfig {
    /// The authority; empty is Let's Encrypt.
    pub directory_url: String,
    /// The name in the certificate.
    pub domain_name: String,
    /// The account's address.
    pub email: String,
    /// Whether the authority's terms are accepted.
    pub tos_accepted: bool,
    /// Where account and certificates are kept.
    pub cache_dir: PathBuf,
}

/// A trust domain that we federate with.
#[derive(Debug, Clone, PartialEq)]
pub struct FederatesWith {
    /// The other trust domain.
    pub trust_domain: TrustDomain,
    /// Where its bundle is.
    pub bundle_endpoint_url: String,
    /// How we know its endpoint.
    pub profile: FederationProfile,
}

/// How we authenticate another trust domain's bundle endpoint.
#[derive(Debug, Clone, PartialEq)]
pub enum FederationProfile {
    /// By the web's authorities.
    HttpsWeb,
    /// By its SPIFFE ID and the bundle that we have.
    HttpsSpiffe {
        /// The endpoint's SPIFFE ID.
        endpoint_spiffe_id: SpiffeId,
    },
}

/// The checks that the reference does before anything else.
pub(super) fn validate(file: &ConfigFile, federation: &RawFederation) -> Result<(), ConfigError> {
    if let Some(acme) = federation.bundle_endpoint.as_ref().and_then(|endpoint| endpoint.acme.as_ref()) {
        for (name, value) in [("domain_name", &acme.domain_name), ("email", &acme.email)] {
            if value.is_empty() {
                let key = format!("federation.bundle_endpoint.acme.{name}");
                let message = format!("{key} must be configured");
                return Err(file.error_at("server.federation.bundle_endpoint.acme", message));
            }
        }
    }
    for (name, relation) in &federation.federates_with {
        if relation.legacy_endpoint.is_some() && relation.bundle_endpoint_url.is_empty() {
            continue;
        }
        let url = &relation.bundle_endpoint_url;
        let problem = if url.is_empty() {
            "must be configured".to_owned()
        } else if !url.to_ascii_lowercase().starts_with("https://") {
            format!("must use the HTTPS protocol; URL found: {}", quote(&redacted(url)))
        } else {
            continue;
        };
        let message = format!("federation.federates_with[\"{name}\"].bundle_endpoint_url {problem}");
        return Err(file.error_at("server.federation.federates_with", message));
    }
    Ok(())
}

/// Turns the section into values.
pub(super) fn resolve(
    file: &ConfigFile,
    federation: &RawFederation,
    data_dir: &Path,
    notices: &mut Vec<Notice>,
) -> Result<FederationConfig, ConfigError> {
    let mut out = FederationConfig {
        refuse_private_endpoints: federation.refuse_private_endpoints,
        ..FederationConfig::default()
    };
    if let Some(endpoint) = &federation.bundle_endpoint {
        out.bundle_endpoint = Some(bundle_endpoint(file, endpoint, data_dir, notices)?);
    }
    let at = |message: String| file.error_at("server.federation.federates_with", message);
    for (name, relation) in &federation.federates_with {
        let trust_domain = TrustDomain::parse(name).map_err(|error| at(error.to_string()))?;
        if out.federates_with.iter().any(|other| other.trust_domain == trust_domain) {
            // Two spellings of one trust domain; which of them counts is chance in the reference.
            return Err(at(format!(
                "federation configuration for trust domain {} is there twice",
                quote(name)
            )));
        }
        let relation = match (&relation.bundle_endpoint_profile, &relation.legacy_endpoint) {
            (Some(profile), _) => FederatesWith {
                profile: federation_profile(profile).map_err(|error| {
                    let name = quote(name);
                    at(format!("error parsing federation relationship for trust domain {name}: {error}"))
                })?,
                bundle_endpoint_url: relation.bundle_endpoint_url.clone(),
                trust_domain,
            },
            (None, Some(_)) => legacy_relation(file, trust_domain, relation, notices)?,
            (None, None) => {
                let name = quote(name);
                return Err(at(format!(
                    "federation configuration for trust domain {name}: missing bundle endpoint configuration"
                )));
            }
        };
        out.federates_with.push(relation);
    }
    Ok(out)
}

fn bundle_endpoint(
    file: &ConfigFile,
    endpoint: &RawBundleEndpoint,
    data_dir: &Path,
    notices: &mut Vec<Notice>,
) -> Result<BundleEndpoint, ConfigError> {
    const SECTION: &str = "server.federation.bundle_endpoint";
    let address_text = endpoint.address.as_deref().unwrap_or_default();
    let address: Option<IpAddr> = address_text.parse().ok();
    if address.is_none() && !address_text.is_empty() {
        notices.push(
            Notice::warn("The bundle endpoint's address is not an IP address; listening on every address")
                .with("address", address_text),
        );
    }
    let port = endpoint.port.unwrap_or_default();
    let port = u16::try_from(port)
        .map_err(|_| file.error_at(&format!("{SECTION}.port"), format!("address {port}: invalid port")))?;
    let refresh_hint = match endpoint.refresh_hint.as_deref() {
        None | Some("") => Duration::from_secs(5 * 60),
        Some(text) => super::parse_key(file, &format!("{SECTION}.refresh_hint"), text, "refresh_hint")?,
    };
    if refresh_hint >= Duration::from_secs(24 * 3600) {
        notices.push(Notice::warn(
            "Bundle endpoint refresh hint set to a high value. To cover the case of unscheduled trust bundle \
             updates, it's recommended to have a smaller value, e.g. 5m",
        ));
    }
    if refresh_hint < Duration::from_secs(60) {
        notices.push(Notice::warn(
            "Bundle endpoint refresh hint set too low. SPIRE will not refresh more often than 1 minute",
        ));
    }
    let profile = match (&endpoint.acme, &endpoint.profile) {
        (Some(_), Some(_)) => {
            let message = "either bundle endpoint 'acme' or 'profile' can be set, but not both";
            return Err(file.error_at(SECTION, message));
        }
        (Some(acme), None) => {
            notices.push(Notice::deprecated(
                "ACME configuration within the bundle_endpoint is deprecated. Please use ACME configuration as \
                 part of the https_web profile instead.",
            ));
            BundleEndpointProfile::Acme(acme_config(acme, data_dir))
        }
        (None, None) => {
            notices.push(Notice::deprecated(
                "Bundle endpoint is configured but has no profile set, using https_spiffe as default; please \
                 configure a profile explicitly. This will be fatal in a future release.",
            ));
            BundleEndpointProfile::HttpsSpiffe
        }
        (None, Some(profile)) => endpoint_profile(profile, data_dir)
            .map_err(|message| file.error_at(&format!("{SECTION}.profile"), message))?,
    };
    Ok(BundleEndpoint { address, port, refresh_hint, profile })
}

fn acme_config(acme: &RawAcme, data_dir: &Path) -> AcmeConfig {
    AcmeConfig {
        directory_url: acme.directory_url.clone(),
        domain_name: acme.domain_name.clone(),
        email: acme.email.clone(),
        tos_accepted: acme.tos_accepted,
        cache_dir: data_dir.join("bundle-acme"),
    }
}

/// A profile section must have exactly one profile in it.
fn check_one_profile(profile: &Fragment) -> Result<(), String> {
    match profile.items() {
        None => Err("malformed configuration".to_owned()),
        Some([_]) => Ok(()),
        Some(_) => Err("exactly one bundle endpoint profile is expected".to_owned()),
    }
}

fn undecodable(error: spire_compat::hcl::DecodeError) -> String {
    format!("failed to decode configuration: {error}")
}

fn endpoint_profile(profile: &Fragment, data_dir: &Path) -> Result<BundleEndpointProfile, String> {
    check_one_profile(profile)?;
    let mut body = profile.body().map_err(undecodable)?;
    if let Some(mut web) = body.take_block("https_web").map_err(undecodable)? {
        if let Some(mut acme) = web.take_block("acme").map_err(undecodable)? {
            let acme = raw::acme(&mut acme).map_err(undecodable)?;
            return Ok(BundleEndpointProfile::Acme(acme_config(&acme, data_dir)));
        }
        if let Some(mut files) = web.take_block("serving_cert_file").map_err(undecodable)? {
            let mut text =
                |key: &str| files.take_string(key).map_err(undecodable).map(Option::unwrap_or_default);
            let (cert_file, key_file) = (text("cert_file_path")?, text("key_file_path")?);
            let interval = text("file_sync_interval")?;
            // The documentation promises an hour where nothing is set.
            let hour = Duration::from_secs(3600);
            let file_sync_interval = match interval.as_str() {
                "" => hour,
                text => match spire_compat::config::parse_duration(text)? {
                    Duration::ZERO => hour,
                    interval => interval,
                },
            };
            return Ok(BundleEndpointProfile::ServingCertFile {
                cert_file: cert_file.into(),
                key_file: key_file.into(),
                file_sync_interval,
            });
        }
        return Err(
            "malformed https_web profile configuration: 'acme' or 'serving_cert_file' is required".into()
        );
    }
    if body.take_block("https_spiffe").map_err(undecodable)?.is_some() {
        return Ok(BundleEndpointProfile::HttpsSpiffe);
    }
    Err("unknown bundle endpoint profile configured; current supported profiles are \"https_spiffe\" and 'https_web\""
        .to_owned())
}

fn federation_profile(profile: &Fragment) -> Result<FederationProfile, String> {
    check_one_profile(profile)?;
    let mut body = profile.body().map_err(undecodable)?;
    if body.take_block("https_web").map_err(undecodable)?.is_some() {
        return Ok(FederationProfile::HttpsWeb);
    }
    if let Some(mut spiffe) = body.take_block("https_spiffe").map_err(undecodable)? {
        let id = spiffe.take_string("endpoint_spiffe_id").map_err(undecodable)?.unwrap_or_default();
        let endpoint_spiffe_id =
            SpiffeId::parse(&id).map_err(|error| format!("could not get endpoint SPIFFE ID: {error}"))?;
        return Ok(FederationProfile::HttpsSpiffe { endpoint_spiffe_id });
    }
    Err("no bundle endpoint profile defined; current supported profiles are \"https_spiffe\" and 'https_web\""
        .to_owned())
}

/// The form up to 1.0: a block with address and port instead of a URL and a profile.
fn legacy_relation(
    file: &ConfigFile,
    trust_domain: TrustDomain,
    relation: &RawFederatesWith,
    notices: &mut Vec<Notice>,
) -> Result<FederatesWith, ConfigError> {
    let key = format!("server.federation.federates_with.{}.bundle_endpoint", trust_domain.name());
    let old = relation.legacy_endpoint.clone().unwrap_or_default();
    if old.address.is_empty() {
        let name = trust_domain.name();
        let message =
            format!("federation.federates_with[\"{name}\"].bundle_endpoint.address must be configured");
        return Err(file.error_at("server.federation.federates_with", message));
    }
    notices.push(file.legacy_notice(
        &key,
        "Old configuration key bundle_endpoint is read as bundle_endpoint_url and bundle_endpoint_profile; \
         please rewrite it",
    ));
    let host = old.address.trim_matches(['[', ']']);
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let profile = if old.use_web_pki {
        FederationProfile::HttpsWeb
    } else {
        let endpoint_spiffe_id = match old.spiffe_id.as_deref() {
            None | Some("") => SpiffeId::server(&trust_domain),
            Some(id) => SpiffeId::parse(id).map_err(|error| {
                file.error_at(
                    "server.federation.federates_with",
                    format!("could not get endpoint SPIFFE ID: {error}"),
                )
            })?,
        };
        FederationProfile::HttpsSpiffe { endpoint_spiffe_id }
    };
    let bundle_endpoint_url = format!("https://{host}:{}", old.port.unwrap_or(443));
    Ok(FederatesWith { trust_domain, bundle_endpoint_url, profile })
}
