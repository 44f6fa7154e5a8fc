//! TODO

pub mod ca;
pub mod clock;
pub mod config;
