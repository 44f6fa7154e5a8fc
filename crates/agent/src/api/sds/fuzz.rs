//! Fuzz target: whatever a process sends on a stream of SDS, it gets answers of its own secrets only, or a status.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{FutureExt as _, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use prost::Message as _;
use prost_types::{Struct, Value, value::Kind};
use spire_core::spiffe::{Bundle, TrustDomain};
use spire_core::svids::View;
use spire_fuzz::changed;
use spire_wire::envoy::config::core::v3::Node;
use spire_wire::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use tonic::Status;
use tonic::body::Body;

use super::conversation::{Conversation, Taken};
use super::request::Asked;
use super::secrets::Secrets;
use crate::api::requests::{Requests, STREAMED_MAX};
use crate::runtime::SdsOptions;

fn framed(request: &DiscoveryRequest) -> Vec<u8> {
    let mut octets = BytesMut::new();
    octets.put_u8(0);
    octets.put_u32(u32::try_from(request.encoded_len()).expect("short"));
    request.encode(&mut octets).expect("room enough");
    octets.to_vec()
}

/// A question, its acknowledgement, and another question.
fn sample() -> Vec<u8> {
    let flag = Value { kind: Some(Kind::BoolValue(true)) };
    let metadata = Struct { fields: [("disable_spiffe_cert_validation".to_owned(), flag)].into() };
    let ask = |names: &[&str], version: &str| DiscoveryRequest {
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        type_url: "t".to_owned(),
        version_info: version.to_owned(),
        response_nonce: if version.is_empty() { String::new() } else { "n".to_owned() },
        node: Some(Node { metadata: Some(metadata.clone()), ..Node::default() }),
        ..DiscoveryRequest::default()
    };
    let requests =
        [ask(&["ROOTCA"], ""), ask(&["ROOTCA"], "1"), ask(&["spiffe://a.org", "spiffe://b.org"], "1")];
    requests.iter().flat_map(framed).collect()
}

fn view() -> View {
    let bundle = |name: &str| Arc::new(Bundle::empty(TrustDomain::parse(name).expect("a name")));
    View {
        matches: [].into(),
        bundle: bundle("a.org"),
        federated: [bundle("b.org")].into(),
        missing_bundles: [].into(),
    }
}

#[test]
fn conversation() {
    let (sample, view) = (sample(), view());
    let secrets = Secrets::of(&view);
    let options = SdsOptions::default();
    let known = ["ROOTCA", "ALL", "spiffe://a.org", "spiffe://b.org"];
    let mut answered = 0_u64;
    bolero::check!().for_each(|input: &[u8]| {
        // The first octet says in which pieces the rest comes.
        let (size, changes) =
            input.split_first().map_or((1, input), |(size, rest)| (usize::from(*size).max(1), rest));
        let octets = changed(&sample, changes);
        let frames: Vec<_> = octets
            .chunks(size)
            .map(|piece| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        let body = Body::new(StreamBody::new(stream::iter(frames)));
        let mut requests = Requests::<DiscoveryRequest>::new(body, STREAMED_MAX, 7, Arc::default());
        let mut conversation = Conversation::new();
        let mut version = 0_u64;
        while let Some(request) = requests.next().now_or_never().expect("all input is here").ok().flatten() {
            let Ok(asked) = Asked::new(request) else { break };
            let names = asked.names.clone();
            let question = match conversation.take(asked) {
                Taken::Question => true,
                Taken::Refused { question, .. } => question,
                Taken::Acknowledged | Taken::Late { .. } => false,
            };
            let answer = conversation.answer((&view, &secrets), &options, question, || Ok("n".to_owned()));
            let Ok(reply) = answer else { break };
            assert!(!question || reply.is_some(), "a question has an answer");
            let Some(reply) = reply else { continue };
            let response = DiscoveryResponse::decode(reply.message.concat().as_slice()).expect("a response");
            let found = super::secrets::names(&reply.message);
            assert_eq!(found.len(), reply.count);
            assert!(found.iter().all(|name| known.contains(&name.as_str())), "{names:?}: {found:?}");
            let now = response.version_info.parse().expect("versions are numbers");
            assert!(version <= now, "versions grow");
            version = now;
            answered += 1;
        }
    });
    assert!(answered > 0, "no input got past the first check");
}
