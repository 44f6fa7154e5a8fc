//! Serving a unix socket with little memory a connection.
//!
//! Workloads keep a connection each, with a stream that says something twice an hour: a tenth less a connection shows. And a
//! client that does not read gets the newest update, not 400 KiB of stale ones.

use std::convert::Infallible;
use std::future::ready;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::StreamExt as _;
use http::{Request, Response};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower_service::Service;

use super::conversation::{Calls, Conversation, Stop, http2};
use super::{GRACEFUL_STOP_TIMEOUT, STREAMS_MAX, Stopped};
use crate::uds::UnixIncoming;

/// What a stream has in messages that its client does not take; one more than that many octets. The next message is made when
/// these are on their way, so that it is the newest.
const UNREAD_MAX: usize = 16 << 10;

/// Serves `incoming` until `shutdown` ends, then lets calls finish for at most [`GRACEFUL_STOP_TIMEOUT`], as
/// [`serve`](super::serve) does. The socket's file is gone when this returns. Handlers find the caller's [`PeerInfo`] in
/// the request's extensions. `services` are the names of all that `routes` has: calls of others are refused in grpc-go's
/// words.
pub async fn serve_unix(
    routes: Routes,
    services: &[&'static str],
    incoming: UnixIncoming,
    shutdown: impl Future<Output = ()>,
) -> Stopped {
    let service = Known { routes: routes.prepare(), services: Arc::from(services) };
    let mut server = http2(STREAMS_MAX);
    server.max_send_buf_size(UNREAD_MAX);
    let stop = Stop::default();
    // Nothing is sent: each connection has a sender for as long as it lives.
    let (open, mut all_ended) = mpsc::channel::<Infallible>(1);
    {
        let (mut incoming, mut shutdown) = (incoming, pin!(shutdown));
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => break,
                accepted = incoming.next() => accepted,
            };
            let Some(accepted) = accepted else { break };
            let Ok(io) = accepted else { continue };
            let calls = Calls { service: service.clone(), peer: io.peer().clone() };
            tokio::spawn(Conversation::new(&server, io, calls, &stop, None, open.clone()));
        }
    }
    stop.tell();
    drop(open);
    match timeout(GRACEFUL_STOP_TIMEOUT, all_ended.recv()).await {
        Ok(_) => Stopped::Gracefully,
        Err(_) => Stopped::Forced,
    }
}

/// Routes, with grpc-go's answer to calls of other services.
#[derive(Clone)]
struct Known {
    routes: Routes,
    services: Arc<[&'static str]>,
}

impl Service<Request<Body>> for Known {
    type Response = Response<Body>;
    type Error = Infallible;
    /// In a box: each stream would keep the room of the routes' future for its life.
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.routes, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service =
            request.uri().path().trim_start_matches('/').rsplit_once('/').map(|(service, _)| service);
        match service.filter(|name| !self.services.contains(name)) {
            Some(unknown) => {
                let status = Status::unimplemented(format!("unknown service {unknown}"));
                Box::pin(ready(Ok(status.into_http())))
            }
            None => Box::pin(self.routes.call(request)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uds::{PeerInfo, UnixConnection};

    /// A connection lives in a task of its own, which is to fit into 1,792 octets, head and all: the allocator's next size is 2,048.
    #[test]
    fn a_connection_is_small() {
        let size = size_of::<Conversation<UnixConnection, Known, PeerInfo, mpsc::Sender<Infallible>>>();
        assert!(size <= 1664, "{size}");
    }
}
