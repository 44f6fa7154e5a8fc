//! The network edge.

mod authority;
mod errno;
#[cfg(test)]
mod fixture;
mod hpack;
pub mod tls;
pub mod uds;

pub use authority::AuthorityGuard;
pub use errno::errno_text;
