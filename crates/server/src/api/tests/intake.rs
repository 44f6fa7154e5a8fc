//! What callers may send.

use futures_util::stream;
use spire_wire::api::server::bundle::v1::GetBundleRequest;
use spire_wire::api::server::entry::v1::BatchDeleteEntryRequest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::HeaderMap;

use super::policy::framed;
use super::*;

const DELETE: &str = "/spire.api.server.entry.v1.Entry/BatchDeleteEntry";
const BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/GetBundle";

/// A body in these pieces.
fn body(pieces: Vec<Vec<u8>>) -> Body {
    let frames =
        pieces.into_iter().map(|piece| Ok::<_, Status>(hyper::body::Frame::data(Bytes::from(piece))));
    Body::new(http_body_util::StreamBody::new(stream::iter(frames)))
}

/// The status of a call with this body.
async fn status_of(world: &World, peer: Peer, path: &str, body: Body) -> (String, String) {
    let request = Request::builder().method("POST").uri(path).header("content-type", "application/grpc");
    let response = world.connection(peer).call(request.body(body).unwrap()).await.unwrap();
    let text = |headers: &HeaderMap, name: &str| {
        headers.get(name).map(|v| v.to_str().unwrap().replace("%20", " ")).unwrap_or_default()
    };
    let mut found = response.headers().clone();
    if !found.contains_key("grpc-status") {
        use http_body_util::BodyExt as _;
        found = response.into_body().collect().await.unwrap().trailers().cloned().unwrap_or_default();
    }
    (text(&found, "grpc-status"), text(&found, "grpc-message"))
}

fn announced(length: u32) -> Vec<u8> {
    [&[0][..], &length.to_be_bytes()].concat()
}

#[tokio::test]
async fn requests_may_come_in_any_pieces() {
    let world = World::new().await;
    let request = framed(&BatchDeleteEntryRequest { ids: vec!["a".to_owned(), "b".repeat(50_000)] });
    for size in [1, 4, 5, 6, 1000, request.len()] {
        let pieces = request.chunks(size).map(<[u8]>::to_vec).collect();
        let status = status_of(&world, local(), DELETE, body(pieces)).await;
        assert_eq!(status, ("0".to_owned(), String::new()), "pieces of {size}");
    }
    assert_eq!(world.api.unfinished_size(), 0);
}

#[tokio::test]
async fn messages_above_the_limit_are_refused_by_their_heads() {
    let world = World::new().await;
    let four = 4 << 20;
    for (peer, path, max) in
        [(local(), DELETE, four), (tls("/admin", "1"), DELETE, four), (anonymous(), BUNDLE, 64 << 10)]
    {
        let refused = status_of(&world, peer.clone(), path, body(vec![announced(max + 1)])).await;
        let text = format!("grpc: received message larger than max ({} vs. {max})", max + 1);
        assert_eq!(refused, ("8".to_owned(), text));
        let cut = status_of(&world, peer, path, body(vec![announced(max), vec![0; 100]])).await;
        assert_eq!(cut.0, "13", "{cut:?}");
    }
    let largest = BatchDeleteEntryRequest { ids: vec!["b".repeat(four as usize - 5)] };
    let status = status_of(&world, local(), DELETE, body(vec![framed(&largest)])).await;
    assert_eq!(status.0, "0", "{status:?}");
}

#[tokio::test]
async fn unfinished_messages_of_all_calls_are_bounded_together_and_given_back() {
    let world = World::new().await;
    let mut waiting = Vec::new();
    let mut senders = Vec::new();
    // 7 of 8 MiB wait for their ends.
    for _ in 0..7 {
        let (sender, receiver) = mpsc::channel(2);
        let frame = |piece: Vec<u8>| Ok::<_, Status>(hyper::body::Frame::data(Bytes::from(piece)));
        sender.send(frame(announced(2 << 20))).await.unwrap();
        sender.send(frame(vec![0; 1 << 20])).await.unwrap();
        senders.push(sender);
        let body = Body::new(http_body_util::StreamBody::new(ReceiverStream::new(receiver)));
        let request =
            Request::builder().method("POST").uri(DELETE).header("content-type", "application/grpc");
        let mut connection = world.connection(local());
        let mut call = connection.call(request.body(body).unwrap());
        let pending = std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending())).await;
        assert!(pending);
        waiting.push(call);
    }
    let held = world.api.unfinished_size();
    assert!(held > 6 << 20, "{held}");
    let four = framed(&BatchDeleteEntryRequest { ids: vec!["b".repeat((4 << 20) - 5)] });
    let (first, rest) = four.split_at(1 << 20);
    let status = status_of(&world, local(), DELETE, body(vec![first.to_vec(), rest.to_vec()])).await;
    assert_eq!(status.0, "0", "once it is whole it is not counted: {status:?}");
    let (first, rest) = four.split_at(3 << 20);
    let status = status_of(&world, local(), DELETE, body(vec![first.to_vec(), rest.to_vec()])).await;
    assert_eq!(status, ("8".to_owned(), "the server is receiving too much at once".to_owned()));
    let small =
        status_of(&world, anonymous(), BUNDLE, body(vec![framed(&GetBundleRequest::default())])).await;
    assert_eq!(small.0, "0", "who asks for little is served");
    drop(waiting);
    assert_eq!(world.api.unfinished_size(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_come_is_not_waited_for() {
    let world = World::new().await;
    for pieces in [vec![], vec![announced(10)], vec![announced(10), vec![0; 9]]] {
        let frames = pieces.into_iter().map(|p| Ok::<_, Status>(hyper::body::Frame::data(Bytes::from(p))));
        let silent = stream::StreamExt::chain(stream::iter(frames), stream::pending());
        let body = Body::new(http_body_util::StreamBody::new(silent));
        let status = status_of(&world, anonymous(), BUNDLE, body).await;
        assert_eq!(status, ("4".to_owned(), "the request was not sent in time".to_owned()));
    }
}
