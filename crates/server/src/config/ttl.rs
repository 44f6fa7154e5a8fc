//! Lifetimes, and warnings where one cannot be kept because an authority is replaced before.

use std::time::Duration;

use spire_compat::config::Notice;
use spire_compat::duration::GoDuration;

/// One hour.
pub(super) const DEFAULT_X509_SVID: Duration = Duration::from_secs(3600);
/// Five minutes.
pub(super) const DEFAULT_JWT_SVID: Duration = Duration::from_secs(300);
/// One day.
pub(super) const DEFAULT_CA: Duration = Duration::from_secs(24 * 3600);

/// An authority stops signing when a sixth of its life is left, but not more than a week.
const ACTIVATION_DIVISOR: u32 = 6;
const ACTIVATION_CAP: Duration = Duration::from_secs(7 * 24 * 3600);

pub(super) struct Ttls {
    pub(super) agent: Option<Duration>,
    pub(super) x509_svid: Duration,
    pub(super) jwt_svid: Duration,
    pub(super) ca: Duration,
}

impl Ttls {
    /// A warning for each lifetime that is longer than what is left of an authority when it stops signing.
    pub(super) fn notices(&self) -> Vec<Notice> {
        let longest = (self.ca / ACTIVATION_DIVISOR).min(ACTIVATION_CAP);
        let checks = [
            ("default_x509_svid_ttl", Some(self.x509_svid)),
            ("default_jwt_svid_ttl", Some(self.jwt_svid)),
            ("agent_ttl", self.agent),
        ];
        let mut notices = Vec::new();
        for (name, ttl) in checks {
            let Some(ttl) = ttl.filter(|ttl| *ttl > longest) else { continue };
            let limit = short(longest);
            let message = if ttl < ACTIVATION_CAP {
                let needed = short(ttl * ACTIVATION_DIVISOR);
                format!(
                    "{name} is too high for the configured ca_ttl value. SVIDs with shorter lifetimes may be \
                     issued. Please set {name} to {limit} or less, or the ca_ttl to {needed} or more, to \
                     guarantee the full {name} lifetime when CA rotations are scheduled."
                )
            } else if self.ca < ACTIVATION_CAP * ACTIVATION_DIVISOR {
                let (limit, needed) = (short(ACTIVATION_CAP), short(ACTIVATION_CAP * ACTIVATION_DIVISOR));
                format!(
                    "{name} is too high and the ca_ttl is too low. SVIDs with shorter lifetimes may be issued. \
                     Please set {name} to {limit} or less, and the ca_ttl to {needed} or more, to guarantee the \
                     full {name} lifetime when CA rotations are scheduled."
                )
            } else {
                format!(
                    "{name} is too high. SVIDs with shorter lifetimes may be issued. Please set {name} to \
                     {limit} or less to guarantee the full {name} lifetime when CA rotations are scheduled."
                )
            };
            notices.push(Notice::warn(message));
        }
        notices
    }
}

/// A duration in whole seconds without trailing zero units: `1h`, `1h30m`.
fn short(duration: Duration) -> String {
    let mut text = GoDuration::from(duration).truncate(GoDuration::from_secs(1)).to_string();
    for ending in ["m0s", "h0m"] {
        if text.ends_with(ending) {
            text.truncate(text.len() - 2);
        }
    }
    text
}
