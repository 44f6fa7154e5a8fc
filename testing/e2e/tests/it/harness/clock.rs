//! A clock that tests set, for programs that take it from the C library (libfaketime).

use std::path::{Path, PathBuf};

use spire_testkit::{Error, Result, place};

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

/// A clock of which the time of day is set while programs run; what measures time goes on as ours.
pub(crate) struct WallClock(PathBuf);

impl WallClock {
    /// The time of now, kept in a file of this folder.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let clock = Self(folder.join("clock"));
        clock.set(0)?;
        Ok(clock)
    }

    /// Sets it to so many minutes from now.
    pub(crate) fn set(&self, minutes: i32) -> Result<()> {
        // Replaced as a whole: it is read at each look at the clock.
        let new = self.0.with_extension("new");
        place::write(&new, &format!("{minutes:+}m\n"))?;
        std::fs::rename(&new, &self.0).map_err(|error| Error::doing(new.display(), error))
    }

    /// What a program needs to go by it.
    pub(crate) fn variables(&self) -> Result<Variables> {
        Ok(vec![
            preload()?,
            ("FAKETIME_TIMESTAMP_FILE", self.0.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ])
    }
}
