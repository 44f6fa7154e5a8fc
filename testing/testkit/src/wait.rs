//! Waiting for a condition of the world outside, with a bound.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How often a condition that nothing announces is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(30);

/// Looks until `look` finds something, for `at_most`.
///
/// # Errors
/// Nothing was found in that time; the text names `what`.
pub fn until<T>(what: &str, at_most: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if start.elapsed() > at_most {
            return Err(Error::new(format!("no {what} within {} s", at_most.as_secs())));
        }
        pause();
    }
}

/// The pause between two looks at something that nothing announces. Not a means to wait for an event.
pub fn pause() {
    std::thread::park_timeout(LOOK_EVERY);
}
