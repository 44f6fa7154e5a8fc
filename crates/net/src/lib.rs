//! The network edge: who is at the other end of a connection, and how much they may take.
//!
//! | module | what it does |
//! |---|---|
//! | [`uds`] | unix sockets with SPIRE's modes; peers pinned at accept; bounds for each user |
//! | [`AuthorityGuard`] | lets in gRPC clients whose `:authority` our HTTP/2 library refuses |
//! | [`tls`] | mutual TLS with SPIFFE verification, both sides; identities that change while running |
//! | [`grpc`] | tonic servers and channels with grpc-go's settings; graceful stop |
//! | [`listen`](fn@listen) | TCP listeners as Go's: both families, IPv4 first of a name's addresses |
//! | [`lanes`] | threads that each serve connections of their own |
//! | [`https`] | bounded requests, a GET for bundles |
//! | [`http_server`] | a few documents over HTTPS for anybody |
//! | [`acme`] | a serving certificate from an ACME authority |
//! | [`proxy`] | the PROXY protocol: who the client of a load balancer is |
//! | [`ratelimit`] | Go's token buckets, by caller |
//! | [`workload`] | an identity and trust that follow a Workload API |
//!
//! Handlers learn of their connection through request extensions:
//! `request.extensions().get::<uds::PeerInfo>()` on a unix socket, `get::<tls::TlsInfo>()` on TCP.
//! [`tls::VerifiedPeer`] exists only for a peer whose chain was verified and whose key signed the
//! handshake; what it may do is decided elsewhere.
//!
//! Limits hold from the first octet: connections, handshakes, header blocks and waits all have bounds, each
//! a constant that says why.

pub mod acme;
mod address;
mod authority;
mod cork;
#[cfg(test)]
mod fixture;
mod forward;
pub mod grpc;
mod hpack;
pub mod http_server;
pub mod https;
pub mod lanes;
mod listen;
mod places;
mod preface;
pub mod proxy;
pub mod ratelimit;
pub mod tls;
pub mod uds;
pub mod umask;
pub mod workload;

pub use authority::AuthorityGuard;
pub use listen::{ListenError, listen, listen_on};
pub use spire_compat::errno::errno_text;
