//! X.509, CSR, JWK, JWS and PEM: encoding, decoding and verification.
//!
//! Everything here is pure: time and random bytes are arguments, and who signs is outside. Building
//! gives the bytes to sign ([`ToBeSigned`]) and assembles the result; verification gives a type that
//! only it can make ([`VerifiedX509Svid`], [`VerifiedCsr`], [`VerifiedJwt`]). The one exception is
//! [`LocalKey`], whose crypto library draws its own entropy.
//!
//! Inputs are bounded before they are parsed: 64 KiB a certificate, request or token, 16 certificates a
//! chain, 8192 bits a key.

pub mod bundle_doc;
pub mod chain;
pub mod jwk;
pub mod jwt;
pub mod pem;
pub mod transparency;

mod algorithm;
mod certificate;
mod constraints;
mod csr;
mod der;
mod extensions;
mod json;
mod jws;
mod key;
mod local_key;
mod name;
mod oid;
mod template;

pub use algorithm::{HashAlgorithm, KeyType, SignatureAlgorithm, UnknownKeyType};
pub use certificate::{Certificate, CertificateError, MAX_CERTIFICATE_BYTES, SvidIdError};
pub use chain::{MAX_CHAIN_LEN, VerifiedX509Svid, VerifyError, X509SvidError};
pub use csr::{CsrError, CsrTemplate, MAX_CSR_BYTES, VerifiedCsr};
pub use der::DerError;
pub use extensions::{BasicConstraints, ExtendedKeyUsage, KeyUsage};
pub use json::{JsonError, json_string};
pub use jws::{JwsError, MAX_TOKEN_BYTES, TokenToBeSigned, UnverifiedJws, VerifiedJws};
pub use jwt::VerifiedJwt;
pub use key::{BadSignature, PublicKey, PublicKeyError, PublicKeyKind, SubjectKeyId};
pub use local_key::{LocalKey, PrivateKeyError};
pub use name::{DistinguishedName, EncodedName, NameAttribute, NameError};
pub use template::{
    CertificateTemplate, Extension, Issuer, NOT_BEFORE_CUSHION, Profile, SerialNumber, TemplateError,
    ToBeSigned, ca_subject, downstream_subject, self_signed, validity,
};

#[cfg(test)]
mod tests;
