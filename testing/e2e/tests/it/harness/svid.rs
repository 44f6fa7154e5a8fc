//! Reads what the programs hand out: tokens, certificates (through `openssl`), JSON.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use spire_testkit::{Error, Result, Run};

/// Header and claims of a JWT, unverified.
pub(crate) fn jwt_parts(token: &str) -> Result<(Value, Value)> {
    let mut parts = token.split('.').map(|part| {
        let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|error| Error::doing("base64", error))?;
        serde_json::from_slice(&bytes).map_err(|error| Error::doing("JSON", error))
    });
    let mut next = || parts.next().unwrap_or_else(|| Err(Error::new(format!("not a JWT: {token}"))));
    Ok((next()?, next()?))
}

/// A JSON text.
pub(crate) fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| Error::doing(format!("JSON {text:?}"), error))
}

/// What `openssl x509 -text` says of the first certificate of a PEM text.
pub(crate) fn x509_text(pem: &str) -> Result<String> {
    Ok(Run::new("openssl").args(&["x509", "-noout", "-text"]).input(pem).success()?.stdout)
}

/// A field of the first certificate of a PEM text, such as `-serial`, `-enddate` or `-subject`, without its name.
pub(crate) fn x509_field(pem: &str, flag: &str) -> Result<String> {
    let text = Run::new("openssl").args(&["x509", "-noout", flag]).input(pem).success()?.stdout;
    Ok(text.split_once('=').map_or(text.as_str(), |(_, value)| value).trim().to_owned())
}

/// How many certificates a PEM text has.
pub(crate) fn certificates(pem: &str) -> usize {
    pem.matches("-----BEGIN CERTIFICATE-----").count()
}

/// Checks that `wanted` appear among `lines` in this order; each is a list of parts of one line.
pub(crate) fn in_order(lines: &[String], wanted: &[&[&str]]) -> Result<()> {
    let mut at = 0;
    for parts in wanted {
        let found = lines[at..].iter().position(|line| parts.iter().all(|part| line.contains(part)));
        match found {
            Some(position) => at += position + 1,
            None => {
                let rest = lines[at..].join("\n  ");
                return Err(Error::new(format!("no line with {parts:?} from line {at} on:\n  {rest}")));
            }
        }
    }
    Ok(())
}
