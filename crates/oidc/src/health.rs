//! Whether the keys are fresh, for probes (support/oidc-discovery-provider/healthchecks_handler.go).

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use spire_net::http_server::{Answer, PlainListener, serve_plain};
use spire_net::listen_on;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::HealthChecks;
use crate::reply::Replies;
use crate::source::Keys;

/// Keys are fresh for at least as long.
const THRESHOLD_MIN: Duration = Duration::from_secs(180);
/// How many polls may be missed.
const POLLS: u32 = 5;

/// Answers probes.
#[derive(Debug)]
pub struct Health {
    config: HealthChecks,
    keys: Arc<Keys>,
    threshold: Duration,
    started: Instant,
    replies: Replies,
}

impl Health {
    /// From now on, for keys that are asked for each `poll_interval`.
    pub fn new(config: HealthChecks, keys: Arc<Keys>, poll_interval: Duration) -> Self {
        let (started, replies) = (Instant::now(), Replies::default());
        Self { config, keys, threshold: threshold(poll_interval), started, replies }
    }

    /// Listens on every address until `stop`. A port that cannot be had is logged: the documents are served without.
    pub async fn serve(self, stop: CancellationToken) {
        let listener = match listen_on((Ipv4Addr::UNSPECIFIED, self.config.bind_port).into()).await {
            Ok(listener) => PlainListener::Tcp(listener),
            Err(error) => {
                let (port, error) = (self.config.bind_port, spire_net::errno_text(&error));
                tracing::error!("listen tcp :{port}: bind: {error}");
                return;
            }
        };
        let this = Arc::new(self);
        serve_plain(listener, move |head, _| this.answer(head), stop.cancelled()).await;
    }

    /// The answer to a probe.
    pub fn answer(&self, head: &Parts) -> Answer {
        let path = head.uri.path();
        let (ready, live) = (path == self.config.ready_path, path == self.config.live_path);
        if !(ready || live) {
            return self.replies.error(StatusCode::NOT_FOUND, "404 page not found");
        }
        if head.method != Method::GET {
            return self.replies.error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
        }
        let well = if ready { self.is_ready() } else { self.is_live() };
        let status = if well { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
        self.replies.sized(status, HeaderMap::with_capacity(2), Bytes::new())
    }

    fn is_ready(&self) -> bool {
        self.keys.last_successful_poll().is_some_and(|polled| polled.elapsed() < self.threshold)
    }

    /// Before the first answer of the source the time since the start counts.
    fn is_live(&self) -> bool {
        self.keys.last_successful_poll().unwrap_or(self.started).elapsed() < self.threshold
    }
}

/// The reference means five intervals, and compares with them, but then takes one.
fn threshold(poll_interval: Duration) -> Duration {
    if poll_interval.saturating_mul(POLLS) < THRESHOLD_MIN { THRESHOLD_MIN } else { poll_interval }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn health(poll_interval: Duration) -> Health {
        let config =
            HealthChecks { bind_port: 0, ready_path: "/ready".to_owned(), live_path: "/live".to_owned() };
        Health::new(config, Arc::default(), poll_interval)
    }

    fn status(health: &Health, method: &str, path: &str) -> u16 {
        let request = Request::builder().method(method).uri(path).body(()).unwrap();
        health.answer(&request.into_parts().0).status().as_u16()
    }

    #[tokio::test(start_paused = true)]
    async fn live_until_the_source_is_away_too_long_and_ready_while_it_is_not() {
        let health = health(Duration::from_secs(10));
        assert_eq!((status(&health, "GET", "/ready"), status(&health, "GET", "/live")), (500, 200));
        tokio::time::advance(Duration::from_secs(180)).await;
        assert_eq!((status(&health, "GET", "/ready"), status(&health, "GET", "/live")), (500, 500));
        health.keys.polled();
        assert_eq!((status(&health, "GET", "/ready?x"), status(&health, "GET", "/live")), (200, 200));
        tokio::time::advance(Duration::from_secs(179)).await;
        assert_eq!((status(&health, "GET", "/ready"), status(&health, "GET", "/live")), (200, 200));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((status(&health, "GET", "/ready"), status(&health, "GET", "/live")), (500, 500));
        assert_eq!((status(&health, "POST", "/ready"), status(&health, "GET", "/")), (405, 404));
    }

    #[test]
    fn long_intervals_are_their_own_threshold() {
        for (interval, expected) in [(10, 180), (35, 180), (36, 36), (600, 600)] {
            assert_eq!(threshold(Duration::from_secs(interval)), Duration::from_secs(expected));
        }
    }
}
