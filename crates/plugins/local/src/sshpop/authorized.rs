//! Lines of `authorized_keys`: options, a type, a key in base64, a comment (sshd(8)).

use crate::json::base64_decoded;

use super::certificate::CERTIFICATE_MAX;
use super::wire::Reader;

/// The first key of a text, as SSH has it on the wire. Lines that have none are passed over, as in the reference.
///
/// # Errors
/// The text of x/crypto/ssh.
pub(super) fn first_key(text: &str) -> Result<Vec<u8>, String> {
    let mut last = None;
    for line in text.lines() {
        let line = line.split('\r').next().unwrap_or_default().trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match key(line) {
            Ok(key) => return Ok(key),
            Err(error) => last = Some(error),
        }
        // Before the type there may be options.
        if let Some(rest) = behind_options(line) {
            match key(rest) {
                Ok(key) => return Ok(key),
                Err(error) => last = Some(error),
            }
        }
    }
    Err(match last {
        Some(error) => format!("ssh: no key found; last parsing error for ignored line: {error}"),
        None => "ssh: no key found".to_owned(),
    })
}

/// A type and a key of that type.
fn key(line: &str) -> Result<Vec<u8>, String> {
    let (declared, rest) = line.split_once([' ', '\t']).ok_or("ssh: no key found")?;
    let encoded = rest.trim().split([' ', '\t']).next().unwrap_or_default();
    if encoded.len() > 2 * CERTIFICATE_MAX {
        return Err("ssh: key is too large".to_owned());
    }
    let blob = base64_decoded(encoded).map_err(|error| error.to_string())?;
    let key_type = Reader(&blob).text()?;
    if key_type != declared {
        return Err(format!(
            "ssh: authorized keys key type mismatch: human-readable type {declared:?}, encoded type {key_type:?}"
        ));
    }
    Ok(blob)
}

/// What follows the first space that is in no quotes.
fn behind_options(line: &str) -> Option<&str> {
    let mut quoted = false;
    let mut before = ' ';
    for (index, c) in line.char_indices() {
        match c {
            ' ' | '\t' if !quoted => return Some(line[index..].trim_start()),
            '"' if before != '\\' => quoted = !quoted,
            _ => {}
        }
        before = c;
    }
    None
}
