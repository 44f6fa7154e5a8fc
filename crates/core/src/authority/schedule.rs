//! When authorities are prepared and activated, and how that bounds TTLs.

use std::time::Duration;

use crate::time::Timestamp;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const PREPARATION_CAP: Duration = DAY.saturating_mul(30);
const PREPARATION_DIVISOR: u32 = 2;
const ACTIVATION_DIVISOR: u32 = 6;
const REMAKING_DIVISOR: u32 = 4;

/// An authority stops signing at most this long before it expires. No default TTL of SVIDs should be
/// longer, or rotation cuts SVIDs short.
pub const ACTIVATION_CAP: Duration = DAY.saturating_mul(7);

/// Whether the next authority should exist: less than half the lifetime, at most 30 days, is left.
pub fn preparation_due(issued_at: Timestamp, not_after: Timestamp, now: Timestamp) -> bool {
    now > not_after - preparation_margin(not_after.since(issued_at))
}

/// Whether the next authority should sign: less than a sixth of the lifetime, at most 7 days, is left.
pub fn activation_due(issued_at: Timestamp, not_after: Timestamp, now: Timestamp) -> bool {
    now > not_after - activation_margin(not_after.since(issued_at))
}

/// Whether the next authority, made then and useless, should be made again: four times while it could be activated.
pub(super) fn remaking_due(
    issued_at: Timestamp,
    not_after: Timestamp,
    made_at: Timestamp,
    now: Timestamp,
) -> bool {
    now >= made_at + activation_margin(not_after.since(issued_at)) / REMAKING_DIVISOR
}

fn preparation_margin(lifetime: Duration) -> Duration {
    (lifetime / PREPARATION_DIVISOR).min(PREPARATION_CAP)
}

fn activation_margin(lifetime: Duration) -> Duration {
    (lifetime / ACTIVATION_DIVISOR).min(ACTIVATION_CAP)
}

/// The longest SVID TTL that rotation of CAs with this TTL never cuts short.
pub fn svid_ttl_max(ca_ttl: Duration) -> Duration {
    activation_margin(ca_ttl)
}

/// The shortest CA TTL with which rotation never cuts short SVIDs of this TTL.
pub fn ca_ttl_min(svid_ttl: Duration) -> Duration {
    svid_ttl.saturating_mul(ACTIVATION_DIVISOR)
}
