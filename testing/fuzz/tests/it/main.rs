//! Fuzz targets: whatever comes in, a parser neither panics nor says what is not so.

mod attestors;
mod dsn;
mod oidc;
mod pki;
mod text;
mod wire;
