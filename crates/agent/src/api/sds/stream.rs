//! StreamSecrets: requests in, responses out whenever what they hold changes.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::{Stream, stream};
use spire_wire::envoy::service::discovery::v3::DiscoveryRequest;
use tonic::{Code, Status};

use super::super::grpc::Framed;
use super::super::measured::Measured;
use super::super::requests::Requests;
use super::conversation::{Conversation, Taken};
use super::request::Asked;
use super::{Caller, GoError, Shared, stopping};
use crate::runtime::{Event, Served, Subscription};

struct Follower {
    shared: Arc<Shared>,
    caller: Caller,
    subscription: Subscription,
    served: Arc<Served>,
    requests: Requests<DiscoveryRequest>,
    conversation: Conversation,
    /// What remains to be sent of a response. Nothing is read before that is done, so that a client which reads nothing
    /// makes us hold one response.
    sending: VecDeque<Framed>,
    reported: bool,
    /// None once the stream has ended.
    measured: Option<Measured>,
}

/// What happened on a stream.
enum Step {
    Request(Result<Option<Box<DiscoveryRequest>>, Status>),
    Changed(Option<Arc<Served>>),
}

/// Answers requests until the client leaves, a request cannot be answered, or the agent stops.
pub(super) fn follow(
    shared: Arc<Shared>,
    caller: Caller,
    subscription: Subscription,
    served: Arc<Served>,
    requests: Requests<DiscoveryRequest>,
    measured: Measured,
) -> impl Stream<Item = Result<Framed, Status>> + Send + 'static {
    let follower = Follower {
        shared,
        caller,
        subscription,
        served,
        requests,
        conversation: Conversation::new(),
        sending: VecDeque::new(),
        reported: false,
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
            if let Some(part) = self.sending.pop_front() {
                return Some(Ok(part));
            }
            self.measured.as_ref()?;
            let step = tokio::select! {
                biased;
                request = self.requests.next() => Step::Request(request.map(|request| request.map(Box::new))),
                changed = self.subscription.changed() => Step::Changed(changed),
            };
            if let Err(status) = self.step(step) {
                let measured = self.measured.take();
                return Some(Err(match measured {
                    Some(measured) => measured.fail(status),
                    None => status,
                }));
            }
        }
    }

    /// Takes what happened; the error is the status that ends the stream, which may be OK.
    fn step(&mut self, step: Step) -> Result<(), Status> {
        match step {
            Step::Request(Ok(Some(request))) => {
                let question = self.request(Asked::new(*request)?);
                if question { self.respond(true) } else { Ok(()) }
            }
            // The client has said all, or is gone.
            Step::Request(Ok(None)) => Err(Status::ok("")),
            Step::Request(Err(status)) if status.code() == Code::Cancelled => Err(Status::ok("")),
            Step::Request(Err(status)) => {
                self.caller.error(&GoError(&status), "Received error from stream secrets server");
                Err(status)
            }
            Step::Changed(Some(served)) => {
                self.served = served;
                self.respond(false)
            }
            Step::Changed(None) => Err(stopping()),
        }
    }

    /// Takes a request; says whether it is to be answered.
    fn request(&mut self, asked: Asked) -> bool {
        let Caller { rpc, pid, .. } = self.caller;
        let method = rpc.name();
        if tracing::enabled!(tracing::Level::DEBUG) {
            tracing::debug!(
                subsystem_name = "endpoints",
                service = "SDS.v3",
                method,
                pid,
                resource_names = asked.names_text(),
                version_info = asked.version,
                nonce = asked.nonce,
                "Received StreamSecrets request"
            );
        }
        if let Some(error) = &asked.error {
            tracing::error!(
                subsystem_name = "endpoints",
                service = "SDS.v3",
                method,
                pid,
                resource_names = asked.names_text(),
                error,
                "Envoy reported errors applying secrets"
            );
        }
        let (version, nonce) = (asked.version.clone(), asked.nonce.clone());
        match self.conversation.take(asked) {
            Taken::Question => true,
            Taken::Acknowledged => false,
            Taken::Late { expected } => {
                tracing::warn!(
                    subsystem_name = "endpoints",
                    service = "SDS.v3",
                    method,
                    pid,
                    nonce,
                    expect = expected,
                    "Received unexpected nonce; ignoring request"
                );
                false
            }
            Taken::Refused { expected, question } => {
                tracing::error!(
                    subsystem_name = "endpoints",
                    service = "SDS.v3",
                    method,
                    pid,
                    version_info = version,
                    expect = expected,
                    "Client rejected expected version and rolled back"
                );
                question
            }
        }
    }

    fn respond(&mut self, question: bool) -> Result<(), Status> {
        let served = &self.served;
        let secrets = served.encoded.secrets(&served.view);
        let options = &self.shared.core.options().sds;
        let answer = self.conversation.answer((&served.view, secrets), options, question, nonce);
        let selectors = self.subscription.selectors();
        let reply = answer.map_err(|status| {
            let message = "Error building stream secrets response";
            self.shared.refused(self.caller, selectors, served, status, message)
        })?;
        let Some(reply) = reply else { return Ok(()) };
        let Caller { rpc, pid, .. } = self.caller;
        tracing::debug!(
            subsystem_name = "endpoints",
            service = "SDS.v3",
            method = rpc.name(),
            pid,
            version_info = reply.version,
            nonce = reply.nonce,
            count = reply.count,
            "Sending StreamSecrets response"
        );
        self.sending = Framed::parts(reply.message)?.into();
        self.report();
        Ok(())
    }

    /// Tells, once, whoever watches the agent which workload was served.
    fn report(&mut self) {
        if std::mem::replace(&mut self.reported, true) || self.caller.is_agent {
            return;
        }
        let view = &self.served.view;
        self.shared.core.emit(|| Event::WorkloadAttested {
            pid: self.caller.pid,
            identities: view.identities().map(|(entry, _)| entry.spiffe_id.clone()).collect(),
        });
    }
}

/// Eight hexadecimal digits that cannot be guessed.
fn nonce() -> Result<String, Status> {
    let mut bytes = [0; 4];
    let filled = aws_lc_rs::rand::fill(&mut bytes);
    filled.map_err(|_| Status::unknown("no random bytes")).map(|()| hex::encode(bytes))
}
