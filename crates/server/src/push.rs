//! `spire.push.v1.AgentPush`: telling agents at once that something changed (see `push.proto`).
//!
//! An update is a hint: the agent answers it with the sync that it would have made anyway.

use std::sync::Arc;

use spire_wire::push as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::Instrument as _;

use crate::api::caller::AgentCaller;
use crate::api::{Call, Replies, Route, Session, server_streaming};
use crate::entries::Wake;

pub(crate) fn routes() -> Vec<Route> {
    vec![server_streaming("/spire.push.v1.AgentPush/Subscribe", subscribe).tcp_only()]
}

/// Updates until the agent goes away or loses its right to a stream. A slow agent makes its own updates merge: the
/// next one is only taken once the last was.
async fn subscribe(
    call: Arc<Call>,
    caller: AgentCaller,
    request: wire::SubscribeRequest,
) -> Result<Replies<wire::Update>, Status> {
    let session = call.api.session(&caller)?;
    // A ban between the check of the caller and the opening of the session would have found no stream to end.
    call.api.recheck(&call.peer, &caller).await?;
    let mut own_bundle = call.api.deps.authorities.bundle_changes().subscribe();
    own_bundle.mark_unchanged();
    let now = call.api.deps.live.changes().sequence();
    let (updates, receiver) = mpsc::channel(1);
    call.audit.success();
    let serve = async move {
        if request.last_seen != Some(now) {
            let missed = changed(true, true, now);
            if updates.send(Ok(missed)).await.is_err() {
                return;
            }
        }
        loop {
            let update = tokio::select! {
                wake = session.stream.woken() => match wake {
                    Wake::Changed { entries, bundles, sequence } => Ok(changed(entries, bundles, sequence)),
                    Wake::Ended => Err(Session::ban()),
                },
                Ok(()) = own_bundle.changed() => {
                    Ok(changed(false, true, call.api.deps.live.changes().sequence()))
                }
                status = session.over() => Err(status),
                () = updates.closed() => return,
            };
            let last = update.is_err();
            if updates.send(update).await.is_err() || last {
                return;
            }
        }
    };
    tokio::spawn(serve.in_current_span());
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

fn changed(entries_changed: bool, bundle_changed: bool, sequence: u64) -> wire::Update {
    let changed = wire::Changed { entries_changed, bundle_changed, sequence };
    wire::Update { update: Some(wire::update::Update::Changed(changed)) }
}
