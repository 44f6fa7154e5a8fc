//! Limits by the caller's address (pkg/server/api/limits).

use std::net::IpAddr;

use spire_net::ratelimit::PerKeyLimiter;

/// Attestations a second.
const ATTEST: u32 = 1;
/// Signatures a second, of each kind.
const SIGN: u32 = 500;
/// Published keys a second.
const PUSH_KEY: u32 = 500;
/// Status posts a second.
const POST_STATUS: u32 = 10;

/// `ratelimit {}` of the configuration: what is limited at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// Attestations.
    pub attestation: bool,
    /// Signatures.
    pub signing: bool,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self { attestation: true, signing: true }
    }
}

/// What shares a limit.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bucket {
    Attestation,
    /// X.509 of workloads, agents and downstream CAs.
    X509,
    Jwt,
    Wit,
    JwtKey,
    WitKey,
    PostStatus,
}

#[derive(Debug)]
pub(super) struct Limits {
    attestation: Option<PerKeyLimiter<IpAddr>>,
    x509: Option<PerKeyLimiter<IpAddr>>,
    jwt: Option<PerKeyLimiter<IpAddr>>,
    wit: Option<PerKeyLimiter<IpAddr>>,
    push_key: PerKeyLimiter<IpAddr>,
    post_status: PerKeyLimiter<IpAddr>,
}

impl Limits {
    pub(super) fn new(config: RateLimits) -> Self {
        let signing = || config.signing.then(|| PerKeyLimiter::per_second(SIGN));
        Self {
            attestation: config.attestation.then(|| PerKeyLimiter::per_second(ATTEST)),
            x509: signing(),
            jwt: signing(),
            wit: signing(),
            push_key: PerKeyLimiter::per_second(PUSH_KEY),
            post_status: PerKeyLimiter::per_second(POST_STATUS),
        }
    }

    pub(super) fn of(&self, bucket: Bucket) -> Option<&PerKeyLimiter<IpAddr>> {
        match bucket {
            Bucket::Attestation => self.attestation.as_ref(),
            Bucket::X509 => self.x509.as_ref(),
            Bucket::Jwt => self.jwt.as_ref(),
            Bucket::Wit => self.wit.as_ref(),
            Bucket::JwtKey | Bucket::WitKey => Some(&self.push_key),
            Bucket::PostStatus => Some(&self.post_status),
        }
    }
}
