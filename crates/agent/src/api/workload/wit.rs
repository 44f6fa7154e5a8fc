//! FetchWITSVID: a stream of WIT-SVIDs with their keys (SPIFFE Workload API, section 7; the feature flag `wit-svid`).

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use spire_core::model::Entry;
use spire_core::spiffe::SpiffeId;
use spire_core::svids::{HeldWit, first_of_each_hint};
use spire_core::time::Timestamp;
use spire_net::uds::PeerInfo;
use spire_wire::workload::{Witsvid, WitsvidRequest, WitsvidResponse};
use tonic::body::Body;
use tonic::{Code, Status};

use super::super::grpc::Framed;
use super::super::measured::Measured;
use super::calls::seconds_left;
use super::{Caller, Shared, stopping};
use crate::runtime::{Event, Served, Subscription};

/// Time until the next attempt when a renewal failed or an entry was refused.
const RETRY: Duration = Duration::from_secs(10);

/// What a stream begins with.
pub(super) struct Opened {
    subscription: Subscription,
    served: Arc<Served>,
    wanted: Option<SpiffeId>,
    answer: Answer,
}

/// A message, and when to look for another.
struct Answer {
    message: Framed,
    next: Timestamp,
    /// Each SVID's identity and end, for the log.
    lifetimes: Vec<(SpiffeId, Timestamp)>,
}

impl Shared {
    pub(super) async fn open_wit(
        &self,
        caller: Caller,
        peer: &PeerInfo,
        body: Body,
    ) -> Result<Opened, Status> {
        let request: WitsvidRequest = self.read(caller, body).await?;
        let wanted = match request.spiffe_id.as_str() {
            "" => None,
            id => Some(SpiffeId::parse(id).map_err(|error| {
                caller.error(Some(&error), "Invalid requested SPIFFE ID");
                Status::invalid_argument(format!("invalid requested SPIFFE ID: {error}"))
            })?),
        };
        let selectors = self.attest(caller, peer).await?;
        let mut subscription = self.core.identities().subscribe(&selectors);
        let served = subscription.current().ok_or_else(stopping)?;
        let answer = self.wit_answer(caller, &subscription, &served, wanted.as_ref()).await?;
        Ok(Opened { subscription, served, wanted, answer })
    }

    async fn wit_answer(
        &self,
        caller: Caller,
        subscription: &Subscription,
        served: &Served,
        wanted: Option<&SpiffeId>,
    ) -> Result<Answer, Status> {
        let all = served.view.matches.iter().map(|m| Arc::clone(&m.entry)).collect();
        let (mut entries, dropped) = first_of_each_hint(all, |entry: &Arc<Entry>| entry);
        for (id, hint) in dropped {
            tracing::warn!(subsystem_name = "endpoints", entry_id = %id, hint = &*hint, "Ignoring entry with duplicate hint");
        }
        entries.retain(|e| wanted.is_none_or(|id| *id == e.spiffe_id));
        if entries.is_empty() {
            self.log_no_identity(caller, subscription.selectors());
            return Err(self.no_identity(subscription.selectors()));
        }
        let svids = self.core.wit_svids(&entries).await.map_err(|error| {
            caller.error(Some(&error), "Could not fetch WIT-SVID");
            // A server that knows no WIT-SVIDs is an endpoint that does not, which a client need not ask again.
            let code = match error.status.code() {
                Code::Unimplemented => Code::Unimplemented,
                _ => Code::Unavailable,
            };
            Status::new(code, format!("could not fetch WIT-SVID: {error}"))
        })?;
        let now = self.core.clock().now();
        let due = svids.iter().map(|(_, held)| held.renew_at).min().unwrap_or(now);
        let retry = now + RETRY;
        // What is overdue could not be had just now; what was refused is asked for again.
        let next = match due <= now {
            true => retry,
            false if svids.len() < entries.len() => due.min(retry),
            false => due,
        };
        let lifetimes = svids.iter().map(|(_, h)| (h.svid.spiffe_id.clone(), h.svid.expires_at)).collect();
        Ok(Answer { message: Framed::new(&response(&svids)), next, lifetimes })
    }
}

fn response(svids: &[(Arc<Entry>, HeldWit)]) -> WitsvidResponse {
    let one = |(entry, held): &(Arc<Entry>, HeldWit)| Witsvid {
        spiffe_id: held.svid.spiffe_id.as_str().to_owned(),
        wit_svid: held.svid.token.to_string(),
        wit_svid_key: held.svid.private_jwk.to_string(),
        hint: entry.hint.to_string(),
    };
    WitsvidResponse { svids: svids.iter().map(one).collect() }
}

struct Follower {
    shared: Arc<Shared>,
    caller: Caller,
    opened: Opened,
    last: Option<Framed>,
    /// None once the stream has ended.
    measured: Option<Measured>,
}

/// The first answer, then one whenever the workload's identities change or an SVID is renewed.
pub(super) fn follow(
    shared: Arc<Shared>,
    caller: Caller,
    opened: Opened,
    measured: Measured,
) -> impl Stream<Item = Result<Framed, Status>> {
    let follower = Follower { shared, caller, opened, last: None, measured: Some(measured) };
    stream::unfold(follower, |mut follower| async move {
        let item = follower.next().await?;
        Some((item, follower))
    })
}

impl Follower {
    async fn next(&mut self) -> Option<Result<Framed, Status>> {
        self.measured.as_ref()?;
        loop {
            let message = &self.opened.answer.message;
            if self.last.as_ref() != Some(message) {
                self.last = Some(message.clone());
                self.report();
                return self.last.clone().map(Ok);
            }
            let clock = self.shared.core.clock();
            tokio::select! {
                changed = self.opened.subscription.changed() => match changed {
                    Some(served) => self.opened.served = served,
                    None => return Some(Err(self.end(stopping()))),
                },
                () = clock.sleep_until(self.opened.answer.next) => {}
            }
            let Opened { subscription, served, wanted, .. } = &self.opened;
            match self.shared.wit_answer(self.caller, subscription, served, wanted.as_ref()).await {
                Ok(answer) => self.opened.answer = answer,
                Err(status) => return Some(Err(self.end(status))),
            }
        }
    }

    fn report(&self) {
        let core = &self.shared.core;
        let lifetimes = &self.opened.answer.lifetimes;
        core.emit(|| Event::WorkloadAttested {
            pid: self.caller.pid,
            identities: lifetimes.iter().map(|(id, _)| id.clone()).collect(),
        });
        let now = core.clock().now();
        for (spiffe_id, expires_at) in lifetimes {
            tracing::debug!(
                subsystem_name = "endpoints", service = "WorkloadAPI", method = self.caller.rpc.name(),
                pid = self.caller.pid, registered = true, count = lifetimes.len(), %spiffe_id,
                ttl = seconds_left(*expires_at, now), "Fetched WIT SVID"
            );
        }
    }

    fn end(&mut self, status: Status) -> Status {
        match self.measured.take() {
            Some(measured) => measured.fail(status),
            None => status,
        }
    }
}
