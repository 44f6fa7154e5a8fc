//! Calls a second for each attested selector set (`experimental.ratelimit`; pkg/agent/endpoints/ratelimit.go).

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use spire_core::spiffe::Selectors;
use spire_net::ratelimit::PerKeyLimiter;
use spire_ports::observe::{Label, names};
use tonic::Status;

use crate::runtime::{Core, RateLimits};

/// The limits that are in force, shared by the services of the socket.
pub(super) struct CallLimits {
    core: Arc<Core>,
    current: ArcSwap<Limits>,
}

/// A limiter for each method that has a limit.
struct Limits {
    made_for: RateLimits,
    by_method: Vec<(&'static str, PerKeyLimiter<Selectors>)>,
}

impl Limits {
    fn new(limits: RateLimits) -> Self {
        let methods = [
            ("/SpiffeWorkloadAPI/FetchX509SVID", limits.fetch_x509_svid),
            ("/SpiffeWorkloadAPI/FetchJWTSVID", limits.fetch_jwt_svid),
            ("/SpiffeWorkloadAPI/FetchX509Bundles", limits.fetch_x509_bundles),
            ("/SpiffeWorkloadAPI/FetchJWTBundles", limits.fetch_jwt_bundles),
            ("/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets", limits.stream_secrets),
            ("/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets", limits.fetch_secrets),
        ];
        let limited = methods.into_iter().filter(|(_, limit)| *limit > 0);
        let by_method = limited
            .map(|(method, limit)| {
                tracing::info!(
                    subsystem_name = "endpoints",
                    method,
                    limit,
                    "Workload API/SDS rate limiting enabled"
                );
                (method, PerKeyLimiter::per_second(limit))
            })
            .collect();
        Self { made_for: limits, by_method }
    }
}

impl CallLimits {
    /// The limits of this agent, which follow its configuration.
    pub(super) fn new(core: Arc<Core>) -> Self {
        let current = ArcSwap::from_pointee(Limits::new(core.rate_limits()));
        Self { core, current }
    }

    /// Counts a call of this method by workloads with these selectors.
    ///
    /// # Errors
    /// The status for the caller, when there were too many.
    pub(super) fn check(&self, full_method: &'static str, selectors: &Selectors) -> Result<(), Status> {
        let mut limits = self.current.load_full();
        let wanted = self.core.rate_limits();
        if limits.made_for != wanted {
            limits = Arc::new(Limits::new(wanted));
            self.current.store(Arc::clone(&limits));
        }
        let Some((_, limiter)) = limits.by_method.iter().find(|(method, _)| *method == full_method) else {
            return Ok(());
        };
        let now = Instant::now();
        if limiter.bucket(selectors.clone(), now).allow(1, now) {
            return Ok(());
        }
        self.core.metrics().incr_counter(
            names::agent::WORKLOAD_API_RATE_LIMIT_EXCEEDED,
            1.0,
            &[Label::new(names::label::METHOD, full_method)],
        );
        Err(Status::unavailable(format!("rate limit exceeded for {full_method}")))
    }
}

#[cfg(test)]
mod tests {
    use spire_core::spiffe::Selector;

    use super::*;
    use crate::fixture::{FakeServer, deps, options};
    use crate::runtime::start;

    #[tokio::test]
    async fn each_selector_set_has_its_own_limit() {
        let server = FakeServer::start().await;
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(&server, folder.path());
        options.rate_limits.fetch_x509_svid = 2;
        options.rate_limits.stream_secrets = 1;
        let (core, _) = Box::pin(start(Arc::new(options), &deps(&[]))).await.unwrap();
        let limits = CallLimits::new(core);
        let call = |method, value: &str| {
            let selectors = [Selector::new("t", value).unwrap()].into_iter().collect();
            limits.check(method, &selectors).map_err(|status| (status.code(), status.message().to_owned()))
        };
        let refused =
            |method: &str| Err((tonic::Code::Unavailable, format!("rate limit exceeded for {method}")));
        let x509 = "/SpiffeWorkloadAPI/FetchX509SVID";
        for _ in 0..2 {
            assert_eq!(call(x509, "a"), Ok(()));
        }
        assert_eq!(call(x509, "a"), refused(x509));
        assert_eq!(call(x509, "b"), Ok(()));
        assert_eq!(call("/SpiffeWorkloadAPI/FetchJWTSVID", "a"), Ok(()));
        let stream = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
        assert_eq!(call(stream, "a"), Ok(()));
        assert_eq!(call(stream, "a"), refused(stream));
    }
}
