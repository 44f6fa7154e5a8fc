//! Serving TCP, where each connection is asked to end at an age, and not all at the same one.
//!
//! grpc-go draws an age for each connection, a tenth more or less than what is set (internal/transport/http2_server.go),
//! so that those who came together after a restart do not come back together for ever.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use http::{Request, Response};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::transport::server::Connected as _;
use tower_service::Service;

use super::TCP_STREAMS_MAX;
use super::conversation::{Calls, Conversation, Stop, http2};
use crate::cork::Corked;
use crate::tls::TlsConnection;

/// Ages that connections have, one after the other: about one a second of the 36 seconds that ages of three minutes differ by.
const AGES: u32 = 32;

/// Serves `incoming` over TCP until `signal`, then waits for open calls, which [`graceful`](super::graceful) bounds. A connection
/// as old as `age`, a tenth more or less, takes no further calls; those that are open go on for as long as they like, as in
/// SPIRE. Handlers find the caller's [`TlsInfo`](crate::tls::TlsInfo) in the request's extensions.
pub async fn serve_tcp<S, I, E>(age: Duration, service: S, incoming: I, signal: impl Future<Output = ()>)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>,
    S: Clone + Send + 'static,
    I: Stream<Item = Result<TlsConnection, E>>,
{
    let server = http2(TCP_STREAMS_MAX);
    let stop = Stop::default();
    // Nothing is sent: each connection has a sender for as long as it lives.
    let (open, mut all_ended) = mpsc::channel::<Infallible>(1);
    let ages: Vec<Duration> = ages(age).collect();
    let (mut incoming, mut signal) = (pin!(incoming), pin!(signal));
    for age in ages.into_iter().cycle() {
        let next = tokio::select! {
            biased;
            () = &mut signal => break,
            next = incoming.next() => next,
        };
        let Some(accepted) = next else { break };
        let Ok(io) = accepted else { continue };
        let calls = Calls { service: service.clone(), peer: io.connect_info() };
        tokio::spawn(Conversation::new(&server, Corked::new(io), calls, &stop, Some(age), open.clone()));
    }
    stop.tell();
    drop(open);
    all_ended.recv().await;
}

/// From nine tenths of this age to eleven tenths, evenly.
fn ages(age: Duration) -> impl Iterator<Item = Duration> {
    let step = age / 5 / (AGES - 1);
    (0..AGES).map(move |n| age - age / 10 + step * n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::CONNECTION_AGE_MAX;

    #[test]
    fn ages_differ_by_a_tenth_either_way() {
        let all: Vec<Duration> = ages(CONNECTION_AGE_MAX).collect();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((all.len(), all[0].as_secs(), all[31].as_secs_f64().round()), (32, 162, 198.0));
    }
}
