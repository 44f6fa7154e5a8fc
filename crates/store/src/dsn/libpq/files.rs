//! Files that a connection string refers to: services and passwords.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use spire_compat::quote::quote;

use super::settings::Draft;
use super::{Host, Surroundings};
use crate::dsn::{DsnError, Password, Result};

/// The settings of the service that the draft names (pgservice.go).
pub(super) fn service(
    draft: &Draft,
    around: &Surroundings,
    read: impl FnOnce(&str) -> std::io::Result<String>,
) -> Result<BTreeMap<String, String>> {
    let fail = |reason: String| Err(DsnError::new(format!("pq: {reason}")));
    let in_home = || around.in_home(".pg_service.conf").unwrap_or_default();
    let path = draft.value("PGSERVICEFILE").map_or_else(in_home, str::to_owned);
    let text = match read(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return fail(format!("service file {} not found", quote(&path)));
        }
        Err(error) => return fail(format!("open {path}: {error}")),
    };
    let title = |line: &str| {
        let name = line.strip_prefix('[')?.strip_suffix(']')?;
        Some(name.trim().to_owned())
    };
    let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    if !lines.any(|(_, line)| title(line).is_some_and(|name| name == draft.service)) {
        return fail(format!("definition of service {} not found", quote(&draft.service)));
    }
    let mut options = BTreeMap::new();
    for (number, line) in lines.take_while(|(_, line)| title(line).is_none()) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The driver shows the line, which may be a password.
        let Some((key, value)) = line.split_once('=') else {
            return fail(format!("line {number}: missing '='"));
        };
        if key.trim().is_empty() {
            return fail(format!("line {number}: no value before '='"));
        }
        options.insert(key.trim().to_owned(), value.trim().to_owned());
    }
    Ok(options)
}

/// The password for a server in the text of a password file, whose lines are `host:port:database:user:password`, with
/// `*` for any and backslashes before what is to be an ordinary character (pgpass.go).
pub fn password_of(text: &str, host: &Host, database: &str, user: &str) -> Option<Password> {
    let port = host.port.to_string();
    let on_socket = host.socket().is_some();
    let is = |field: &str, wanted: &str| field == "*" || field == wanted;
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).find_map(|line| {
        match fields(line).as_slice() {
            [name, at, base, who, password] => {
                let here = is(name, &host.name) || (on_socket && name == "localhost");
                let matches = here && is(at, &port) && is(base, database) && is(who, user);
                matches.then(|| Password::from(password.clone()))
            }
            _ => None,
        }
    })
}

fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        let c = match c {
            ':' => {
                fields.push(String::new());
                continue;
            }
            '\\' => match characters.next() {
                Some(escaped) => escaped,
                None => break,
            },
            c => c,
        };
        if let Some(field) = fields.last_mut() {
            field.push(c);
        }
    }
    fields
}
