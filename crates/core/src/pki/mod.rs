//! X.509, CSR, JWK, JWS and PEM: encoding, decoding and verification.
//!
//! Everything here is pure: time and random bytes are arguments, and who signs is outside. Building
//! gives the bytes to sign ([`ToBeSigned`]) and assembles the result. The one exception is
//! [`LocalKey`], whose crypto library draws its own entropy.

pub mod pem;

mod algorithm;
mod certificate;
mod constraints;
mod der;
mod key;
mod local_key;
mod name;
mod oid;
mod template;

pub use algorithm::{HashAlgorithm, KeyType, SignatureAlgorithm, UnknownKeyType};
pub use certificate::{
    BasicConstraints, Certificate, CertificateError, ExtendedKeyUsage, KeyUsage, MAX_CERTIFICATE_BYTES,
    SvidIdError,
};
pub use der::DerError;
pub use key::{BadSignature, PublicKey, PublicKeyError, PublicKeyKind, SubjectKeyId};
pub use local_key::{LocalKey, PrivateKeyError};
pub use name::{DistinguishedName, EncodedName, NameAttribute, NameError};
pub use template::{
    CertificateTemplate, Extension, Issuer, NOT_BEFORE_CUSHION, Profile, SerialNumber, TemplateError,
    ToBeSigned, ca_subject, downstream_subject, self_signed, validity,
};
