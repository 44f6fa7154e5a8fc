//! When a bundle is fetched again (pkg/server/bundle/client/manager.go, pkg/common/bundleutil/refreshhint.go).

use std::time::Duration;

use spire_core::pki::Certificate;
use spire_core::spiffe::Bundle;

/// Looks within the time of a refresh hint, so that one failure or another is of no consequence.
const LOOKS_PER_HINT: u32 = 4;
/// The shortest hint that is followed, and the time to the next look while there is no bundle at all.
pub(super) const HINT_MIN: Duration = Duration::from_secs(60);
/// The longest time between two looks. The reference has none; an endpoint must not be able to silence itself for good.
const LOOK_MAX: Duration = Duration::from_secs(24 * 3600);
/// Without a hint: this part of the shortest life of an authority.
const LIFETIME_PART: u32 = 10;

/// The time from a look to the next, by the bundle that is in use.
pub(super) fn next_look(bundle: Option<&Bundle>) -> Duration {
    let Some(bundle) = bundle else { return HINT_MIN };
    let hint = match bundle.refresh_hint {
        Duration::ZERO => shortest_lifetime(bundle) / LIFETIME_PART,
        hint => hint,
    };
    (hint.max(HINT_MIN) / LOOKS_PER_HINT).min(LOOK_MAX)
}

fn shortest_lifetime(bundle: &Bundle) -> Duration {
    let lives = bundle.x509_authorities.iter().filter_map(|authority| {
        let certificate = Certificate::from_der(authority.der.clone()).ok()?;
        Some(certificate.not_after().since(certificate.not_before()))
    });
    lives.min().unwrap_or_default()
}
