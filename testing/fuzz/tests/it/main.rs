//! Fuzz targets: whatever comes in, a parser neither panics nor says what is not so.

mod attestors;
mod database;
mod dsn;
mod oidc;
mod pki;
mod sigstore;
mod text;
mod wire;
