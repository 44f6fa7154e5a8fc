//! Calls of the Workload API: their names, their metrics, and streams that follow a view.

use std::sync::Arc;

use futures_util::{Stream, stream};
use spire_core::time::Timestamp;
use tonic::Status;

use super::super::encode::served_identities;
use super::super::grpc::Framed;
use super::super::measured::Measured;
use super::{Caller, Shared, stopping};
use crate::runtime::{Event, Served, Subscription};

/// The methods of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rpc {
    FetchX509Svid,
    FetchX509Bundles,
    FetchJwtSvid,
    FetchJwtBundles,
    ValidateJwtSvid,
    FetchWitSvid,
    FetchWitBundles,
}

impl Rpc {
    const ALL: [Self; 7] = [
        Self::FetchX509Svid,
        Self::FetchX509Bundles,
        Self::FetchJwtSvid,
        Self::FetchJwtBundles,
        Self::ValidateJwtSvid,
        Self::FetchWitSvid,
        Self::FetchWitBundles,
    ];

    pub(super) fn from_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rpc| rpc.full_method() == path)
    }

    pub(super) fn full_method(self) -> &'static str {
        match self {
            Self::FetchX509Svid => "/SpiffeWorkloadAPI/FetchX509SVID",
            Self::FetchX509Bundles => "/SpiffeWorkloadAPI/FetchX509Bundles",
            Self::FetchJwtSvid => "/SpiffeWorkloadAPI/FetchJWTSVID",
            Self::FetchJwtBundles => "/SpiffeWorkloadAPI/FetchJWTBundles",
            Self::ValidateJwtSvid => "/SpiffeWorkloadAPI/ValidateJWTSVID",
            Self::FetchWitSvid => "/SpiffeWorkloadAPI/FetchWITSVID",
            Self::FetchWitBundles => "/SpiffeWorkloadAPI/FetchWITBundles",
        }
    }

    pub(super) fn name(self) -> &'static str {
        self.full_method().rsplit('/').next().unwrap_or_default()
    }
}

/// Where a stream is.
enum Step {
    /// This view is to be sent.
    Send(Arc<Served>),
    /// Waiting for the next one.
    Wait,
    /// The status was sent.
    Done,
}

struct Follower {
    shared: Arc<Shared>,
    caller: Caller,
    subscription: Subscription,
    step: Step,
    last: Option<Framed>,
    measured: Option<Measured>,
}

/// Sends what the view gives, now and whenever that is something else than before.
pub(super) fn follow(
    shared: Arc<Shared>,
    caller: Caller,
    subscription: Subscription,
    first: Arc<Served>,
    measured: Measured,
) -> impl Stream<Item = Result<Framed, Status>> + Send + 'static {
    let follower = Follower {
        shared,
        caller,
        subscription,
        step: Step::Send(first),
        last: None,
        measured: Some(measured),
    };
    stream::unfold(follower, |mut follower| async move {
        let item = follower.next().await?;
        Some((item, follower))
    })
}

impl Follower {
    async fn next(&mut self) -> Option<Result<Framed, Status>> {
        loop {
            let served = match std::mem::replace(&mut self.step, Step::Wait) {
                Step::Send(served) => served,
                Step::Wait => match self.subscription.changed().await {
                    Some(served) => served,
                    None => return Some(Err(self.end(stopping()))),
                },
                Step::Done => return None,
            };
            match self.answer(&served) {
                Ok(Some(message)) => return Some(Ok(message)),
                Ok(None) => {}
                Err(status) => return Some(Err(self.end(status))),
            }
        }
    }

    /// The message to send; none when it is the one that was sent last.
    fn answer(&mut self, served: &Served) -> Result<Option<Framed>, Status> {
        self.shared.check_identity(self.caller, self.subscription.selectors(), served)?;
        let message = match self.caller.rpc {
            Rpc::FetchX509Svid => served.encoded.x509_svids(&served.view).clone(),
            Rpc::FetchX509Bundles => served.encoded.x509_bundles(&served.view).clone(),
            rpc => {
                let (encoded, kind) = match rpc {
                    Rpc::FetchWitBundles => (served.encoded.wit_bundles(&served.view), "WIT"),
                    _ => (served.encoded.jwt_bundles(&served.view), "JWT"),
                };
                let encoded = encoded.map_err(|error| {
                    let message = format!("Could not serialize {kind} bundle response");
                    self.caller.error(Some(&error), &message);
                    Status::unavailable(format!("could not serialize response: {error}"))
                })?;
                encoded.clone()
            }
        };
        if self.last.as_ref() == Some(&message) {
            return Ok(None);
        }
        if self.caller.rpc == Rpc::FetchX509Svid && !self.caller.is_agent {
            self.report(served);
        }
        self.last = Some(message.clone());
        Ok(Some(message))
    }

    fn end(&mut self, status: Status) -> Status {
        self.step = Step::Done;
        match self.measured.take() {
            Some(measured) => measured.fail(status),
            None => status,
        }
    }

    fn report(&self, served: &Served) {
        let core = &self.shared.core;
        core.emit(|| Event::WorkloadAttested {
            pid: self.caller.pid,
            identities: served.view.identities().map(|(entry, _)| entry.spiffe_id.clone()).collect(),
        });
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let now = core.clock().now();
        let identities = served_identities(&served.view);
        for (entry, svid) in &identities {
            tracing::debug!(
                subsystem_name = "endpoints", service = "WorkloadAPI", method = self.caller.rpc.name(),
                pid = self.caller.pid, registered = true, count = identities.len(), spiffe_id = %entry.spiffe_id,
                ttl = seconds_left(svid.not_after, now), "Fetched X.509 SVID"
            );
        }
    }
}

/// Seconds until then; negative when it has passed.
#[expect(clippy::cast_precision_loss, reason = "seconds of a lifetime are exact in f64")]
pub(in crate::api) fn seconds_left(at: Timestamp, now: Timestamp) -> f64 {
    at.unix().saturating_sub(now.unix()) as f64
}
