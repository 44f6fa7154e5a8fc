//! A clock that goes fast, for programs that take it from the C library (libfaketime).

use std::path::Path;

use spire_testkit::{Error, Result};

/// Where Debian puts it.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
];

fn library() -> Option<&'static str> {
    LIBRARIES.into_iter().find(|path| Path::new(path).is_file())
}

/// What is missing of it.
pub(crate) fn missing() -> Option<String> {
    library().is_none().then(|| "libfaketime is not installed".to_owned())
}

type Variables = Vec<(&'static str, String)>;

fn preload() -> Result<(&'static str, String)> {
    let library = library().ok_or_else(|| Error::new("libfaketime"))?;
    Ok(("LD_PRELOAD", library.to_owned()))
}

/// A clock that goes `factor` times as fast as ours, for a program that starts now. Its timers do so too.
pub(crate) fn fast(factor: u32) -> Result<Variables> {
    Ok(vec![preload()?, ("FAKETIME", format!("+0 x{factor}"))])
}
