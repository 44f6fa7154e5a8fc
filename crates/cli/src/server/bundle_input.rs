//! Bundles that the user gives, as PEM or in SPIFFE's format (cmd/spire-server/util, ParseBundle).

use spire_compat::quote::quote;
use spire_core::pki::bundle_doc::{self, Reading};
use spire_core::pki::pem;
use spire_core::spiffe::TrustDomain;
use spire_wire::api::types;

use crate::failure::{Doing, Failure, plain};

/// How a bundle is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BundleFormat {
    Pem,
    Spiffe,
}

impl BundleFormat {
    /// In any case; nothing is PEM.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        match text.to_lowercase().as_str() {
            "" | "pem" => Ok(Self::Pem),
            "spiffe" => Ok(Self::Spiffe),
            other => Err(Failure::new(format!("invalid format: {}", quote(other)))),
        }
    }
}

/// A bundle of the trust domain `id`, which goes out as the user wrote it when the bundle is PEM.
pub(crate) fn parse_bundle(
    contents: &[u8],
    format: BundleFormat,
    id: &str,
) -> Result<types::Bundle, Failure> {
    let certificate = |asn1| types::X509Certificate { asn1, tainted: false };
    match format {
        BundleFormat::Pem => {
            let certificates =
                pem::certificates(contents).map_err(plain).doing("unable to parse bundle data")?;
            let x509_authorities = certificates.iter().map(|c| certificate(c.der().clone())).collect();
            Ok(types::Bundle { trust_domain: id.to_owned(), x509_authorities, ..Default::default() })
        }
        BundleFormat::Spiffe => {
            let trust_domain = TrustDomain::parse(id).map_err(plain)?;
            let bundle = bundle_doc::parse(&trust_domain, contents, Reading::GoSpiffe)
                .map_err(plain)
                .doing("unable to parse to spiffe bundle")?;
            let key = |key: &spire_core::spiffe::JwtAuthority| types::JwtKey {
                public_key: key.public_key.clone(),
                key_id: key.kid.clone(),
                ..Default::default()
            };
            Ok(types::Bundle {
                trust_domain: trust_domain.name().to_owned(),
                x509_authorities: bundle
                    .x509_authorities
                    .iter()
                    .map(|a| certificate(a.der.clone()))
                    .collect(),
                jwt_authorities: bundle.jwt_authorities.iter().map(key).collect(),
                refresh_hint: i64::try_from(bundle.refresh_hint.as_secs()).unwrap_or(i64::MAX),
                sequence_number: bundle.sequence_number,
                ..Default::default()
            })
        }
    }
}
