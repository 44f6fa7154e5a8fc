//! Connections over TCP are asked to end at an age, and not all at the same one.
//!
//! grpc-go draws an age for each connection, a tenth more or less than what is set (internal/transport/http2_server.go),
//! so that those who came together after a restart do not come back together for ever. tonic has one age a server: here are
//! several servers with an age each, and connections go to one after the other.

use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use futures_util::stream::{self, FuturesUnordered};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tonic::service::Routes;

use super::tcp_server;
use crate::cork::Corked;
use crate::tls::TlsConnection;

/// Ages that connections have: about one a second of the 36 seconds that ages of three minutes differ by.
const AGES: u32 = 32;

/// Serves `incoming` over TCP until `signal`, then waits for open calls as [`serve`](super::serve) does; for
/// [`graceful`](super::graceful), which bounds that. A connection as old as `age`, a tenth more or less, takes no further
/// calls; those that are open go on for as long as they like, as in SPIRE.
///
/// # Errors
/// Those of tonic, where a server ends by itself.
pub async fn serve_aged<I, E>(
    age: Duration,
    routes: Routes,
    incoming: I,
    signal: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error>
where
    I: Stream<Item = Result<TlsConnection, E>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let servers = FuturesUnordered::new();
    let mut queues = Vec::new();
    for age in ages(age) {
        let (queue, mut connections) = mpsc::channel(1);
        let connections = stream::poll_fn(move |cx| connections.poll_recv(cx));
        let server = tcp_server().max_connection_age(age).add_routes(routes.clone());
        // Each stops when its queue ends.
        servers.push(server.serve_with_incoming_shutdown(connections, pending()));
        queues.push(queue);
    }
    let accept = async move {
        let (mut incoming, mut signal) = (pin!(incoming), pin!(signal));
        for queue in queues.iter().cycle() {
            let next = tokio::select! {
                biased;
                () = &mut signal => break,
                next = incoming.next() => next,
            };
            let Some(connection) = next else { break };
            if queue.send(connection.map(Corked::new)).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    tokio::try_join!(servers.try_collect::<()>(), accept).map(drop)
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
