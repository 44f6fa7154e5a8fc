//! What hears strangers' bytes, for fuzz targets.

pub use crate::mysql::client::fuzzing::{Heard, PASSWORD, converse};
