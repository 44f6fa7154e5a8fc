//! Streams of answers that follow what the agent has: a message now, and another whenever it would be another.

use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::watch;
use tonic::Status;

use crate::runtime::{Bundles, Served, Subscription};

/// The answers of a streaming call.
pub(super) type Messages<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// What workloads of a selector set get, until the agent stops.
pub(super) fn views(
    subscription: Subscription,
    first: Arc<Served>,
) -> impl Stream<Item = Arc<Served>> + Send {
    stream::unfold((subscription, Some(first)), |(mut subscription, first)| async move {
        let served = match first {
            Some(first) => first,
            None => subscription.changed().await?,
        };
        Some((served, (subscription, None)))
    })
}

/// All bundles that are known, until the agent stops.
pub(super) fn bundles(changes: watch::Receiver<Option<Bundles>>) -> impl Stream<Item = Bundles> + Send {
    stream::unfold((changes, true), |(mut changes, is_first)| async move {
        if !is_first {
            changes.changed().await.ok()?;
        }
        let current = changes.borrow_and_update().clone()?;
        Some((current, (changes, false)))
    })
}

/// A message of each state that makes another one than the state before. Ends with the first error, or where the
/// states end with `end`. What is logged meanwhile has the fields of this call.
pub(super) fn follow<S, M>(
    states: impl Stream<Item = S> + Send + 'static,
    end: impl FnOnce() -> Status + Send + 'static,
    mut compose: impl FnMut(S) -> Result<M, Status> + Send + 'static,
) -> Messages<M>
where
    S: Send + 'static,
    M: PartialEq + Clone + Send + 'static,
{
    let span = tracing::Span::current();
    let mut last: Option<M> = None;
    let messages = states.map(move |state| span.in_scope(|| compose(state))).filter_map(move |message| {
        let is_repeated = message.as_ref().is_ok_and(|message| last.as_ref() == Some(message));
        if let Ok(message) = &message
            && !is_repeated
        {
            last = Some(message.clone());
        }
        ready((!is_repeated).then_some(message))
    });
    // tonic ends the call with the first error.
    Box::pin(messages.chain(stream::once(async move { Err(end()) })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn repeated_messages_are_left_out_and_the_end_has_a_status() {
        let states = stream::iter([1, 2, 3, 11]);
        let messages = follow(states, || Status::unavailable("over"), |n| Ok::<i32, Status>(n / 2));
        let all: Vec<_> = messages.map(|m| m.map_err(|status| status.message().to_owned())).collect().await;
        assert_eq!(all, [Ok(0), Ok(1), Ok(5), Err("over".to_owned())]);
    }
}
