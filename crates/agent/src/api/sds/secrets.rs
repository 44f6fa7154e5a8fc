//! What a workload sees as Envoy's secrets, each encoded when it is first asked for and shared by all streams.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::OnceLock;

use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use prost::{Message, Name};
use prost_types::Any;
use spire_compat::quote::quote;
use spire_core::pki::pem;
use spire_core::spiffe::Bundle;
use spire_core::svids::{View, X509Svid};
use spire_wire::envoy::config::core::v3::{DataSource, TypedExtensionConfig, data_source::Specifier};
use spire_wire::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain;
use spire_wire::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate, secret::Type,
};
use spire_wire::envoy::service::discovery::v3::DiscoveryResponse;
use tonic::Status;
use zeroize::Zeroizing;

use crate::runtime::SdsOptions;

/// How Envoy verifies peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validator {
    /// By authorities alone, whatever trust domain they are of.
    TrustedCa,
    /// By the authorities of the peer's own trust domain (Envoy 1.18).
    Spiffe,
}

/// The secrets of a view. Each is a whole field of a `DiscoveryResponse`, so that an answer is made by sending them one
/// after the other.
pub(in crate::api) struct Secrets {
    /// In the order of the view's identities, named by their IDs.
    certificates: Box<[OnceLock<Bytes>]>,
    /// The first of them under the name for it.
    default_certificate: OnceLock<Bytes>,
    own: Contexts,
    /// As `own`, under the name for it.
    default_bundle: Contexts,
    all_bundles: OnceLock<Bytes>,
    /// In the order of the view's federated bundles.
    federated: Box<[Contexts]>,
}

/// The validation context of one trust domain.
#[derive(Default)]
struct Contexts {
    trusted_ca: OnceLock<Bytes>,
    spiffe: OnceLock<Bytes>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

impl Secrets {
    /// Those of a view; nothing is encoded yet.
    pub(in crate::api) fn of(view: &View) -> Self {
        Self {
            certificates: view.identities().map(|_| OnceLock::new()).collect(),
            default_certificate: OnceLock::new(),
            own: Contexts::default(),
            default_bundle: Contexts::default(),
            all_bundles: OnceLock::new(),
            federated: view.federated.iter().map(|_| Contexts::default()).collect(),
        }
    }

    /// What was asked for, in the order of the reference's answers: authorities of the own trust domain under one of
    /// the names for them, those of others, and identities. No names ask for everything. `view` must be the one that
    /// these are of.
    ///
    /// # Errors
    /// `InvalidArgument` when a name means nothing that this workload may have; `Internal` when it needs a newer Envoy.
    pub(super) fn select(
        &self,
        view: &View,
        options: &SdsOptions,
        names: &[String],
        validator: Validator,
    ) -> Result<Vec<Bytes>, Status> {
        let mut names: BTreeSet<&str> = names.iter().map(String::as_str).filter(|n| !n.is_empty()).collect();
        let everything = names.is_empty();
        let mut found = Vec::new();
        let own = view.bundle.trust_domain.id_string();
        if names.remove(own.as_str()) || everything {
            found.push(self.own.get(validator, &own, &view.bundle));
        } else if names.remove(options.default_bundle_name.as_str()) {
            found.push(self.default_bundle.get(validator, &options.default_bundle_name, &view.bundle));
        } else if names.remove(options.default_all_bundles_name.as_str()) {
            found.push(self.all(view, validator, &options.default_all_bundles_name)?);
        }
        for (bundle, contexts) in view.federated.iter().zip(&self.federated) {
            let name = bundle.trust_domain.id_string();
            if names.remove(name.as_str()) || everything {
                found.push(contexts.get(validator, &name, bundle));
            }
        }
        for (at, ((_, svid), certificate)) in view.identities().zip(&self.certificates).enumerate() {
            if names.remove(svid.spiffe_id.as_str()) || everything {
                let make = || resource(&certificate_secret(svid.spiffe_id.as_str(), svid));
                found.push(certificate.get_or_init(make).clone());
            } else if at == 0 && names.remove(options.default_svid_name.as_str()) {
                let make = || resource(&certificate_secret(&options.default_svid_name, svid));
                found.push(self.default_certificate.get_or_init(make).clone());
            }
        }
        if names.is_empty() {
            return Ok(found);
        }
        let unknown: Vec<String> = names.into_iter().map(quote).collect();
        Err(Status::invalid_argument(format!(
            "workload is not authorized for the requested identities [{}]",
            unknown.join(" ")
        )))
    }

    fn all(&self, view: &View, validator: Validator, name: &str) -> Result<Bytes, Status> {
        if validator == Validator::TrustedCa {
            return Err(Status::internal("unable to use \"SPIFFE validator\" on Envoy below 1.17"));
        }
        let make = || {
            let mut bundles: Vec<&Bundle> =
                std::iter::once(&view.bundle).chain(&view.federated).map(|b| &**b).collect();
            bundles.sort_by_key(|bundle| bundle.trust_domain.name());
            resource(&context_secret(name, spiffe_validator(&bundles)))
        };
        Ok(self.all_bundles.get_or_init(make).clone())
    }
}

impl Contexts {
    fn get(&self, validator: Validator, name: &str, bundle: &Bundle) -> Bytes {
        let (cell, context): (_, fn(&Bundle) -> CertificateValidationContext) = match validator {
            Validator::TrustedCa => (&self.trusted_ca, |bundle| CertificateValidationContext {
                trusted_ca: Some(authorities(bundle)),
                custom_validator_config: None,
            }),
            Validator::Spiffe => (&self.spiffe, |bundle| spiffe_validator(&[bundle])),
        };
        cell.get_or_init(|| resource(&context_secret(name, context(bundle)))).clone()
    }
}

fn spiffe_validator(bundles: &[&Bundle]) -> CertificateValidationContext {
    let trust_domains = bundles
        .iter()
        .map(|bundle| TrustDomain {
            name: bundle.trust_domain.name().to_owned(),
            trust_bundle: Some(authorities(bundle)),
        })
        .collect();
    let config = SpiffeCertValidatorConfig { trust_domains };
    CertificateValidationContext {
        trusted_ca: None,
        custom_validator_config: Some(TypedExtensionConfig {
            name: "envoy.tls.cert_validator.spiffe".to_owned(),
            typed_config: Some(Any {
                type_url: SpiffeCertValidatorConfig::type_url(),
                value: config.encode_to_vec(),
            }),
        }),
    }
}

fn context_secret(name: &str, context: CertificateValidationContext) -> Secret {
    Secret { name: name.to_owned(), r#type: Some(Type::ValidationContext(context)) }
}

fn authorities(bundle: &Bundle) -> DataSource {
    let text = pem::encode_certificates(bundle.x509_authorities.iter().map(|a| &a.der[..]));
    inline(Bytes::from(text))
}

fn certificate_secret(name: &str, svid: &X509Svid) -> Secret {
    let chain = pem::encode_certificates(svid.chain.iter().map(|der| &der[..]));
    let key = Zeroizing::new(pem::encode("PRIVATE KEY", &svid.private_key));
    let certificate = TlsCertificate {
        certificate_chain: Some(inline(Bytes::from(chain))),
        private_key: Some(inline(Bytes::from_owner(key))),
    };
    Secret { name: name.to_owned(), r#type: Some(Type::TlsCertificate(certificate)) }
}

fn inline(bytes: Bytes) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes)) }
}

/// `DiscoveryResponse.resources` and the fields of an `Any`.
const RESOURCES: u32 = 2;
const TYPE_URL: u32 = 1;
const VALUE: u32 = 2;

/// A secret as a field of a `DiscoveryResponse`: an `Any` with its key and length. Written by hand into one buffer that
/// is wiped, since it may hold a private key.
fn resource(secret: &Secret) -> Bytes {
    let type_url = Secret::type_url();
    let len = secret.encoded_len();
    let field = |len: usize| 1 + encoded_len_varint(len as u64) + len;
    let any = field(type_url.len()) + field(len);
    let mut buffer = Zeroizing::new(Vec::with_capacity(field(any)));
    let start = |number, len: usize, buffer: &mut Vec<u8>| {
        encode_key(number, WireType::LengthDelimited, buffer);
        encode_varint(len as u64, buffer);
    };
    start(RESOURCES, any, &mut buffer);
    start(TYPE_URL, type_url.len(), &mut buffer);
    buffer.extend_from_slice(type_url.as_bytes());
    start(VALUE, len, &mut buffer);
    // A vector grows, so that this cannot fail; it need not, and so leaves no copy behind.
    let _ = secret.encode(&mut *buffer);
    Bytes::from_owner(buffer)
}

/// A response in parts: what comes before the resources, the resources, and what comes after.
pub(super) fn response(version: &str, resources: Vec<Bytes>, type_url: &str, nonce: &str) -> Vec<Bytes> {
    let head = DiscoveryResponse { version_info: version.to_owned(), ..DiscoveryResponse::default() };
    let tail = DiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        ..DiscoveryResponse::default()
    };
    let mut parts = Vec::with_capacity(resources.len() + 2);
    parts.push(head.encode_to_vec().into());
    parts.extend(resources);
    parts.push(tail.encode_to_vec().into());
    parts
}

/// The names of encoded resources.
#[cfg(test)]
pub(super) fn names(resources: &[Bytes]) -> Vec<String> {
    let response = DiscoveryResponse::decode(resources.concat().as_slice()).unwrap();
    let name = |any: &Any| Secret::decode(&any.value[..]).unwrap().name;
    response.resources.iter().map(name).collect()
}
