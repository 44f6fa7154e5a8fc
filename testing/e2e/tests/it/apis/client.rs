//! Calls by path and message, and answers as text.

use std::fmt::Debug;
use std::path::Path;

use prost::Message;
use spire_net::grpc::unix_channel;
use spire_net::tls::UnixConnector;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// A client that writes down what it hears.
pub(super) struct Client {
    grpc: Grpc<Channel>,
    pub(super) answers: Vec<(String, String)>,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        Self { grpc: Grpc::new(unix_channel(UnixConnector::new(socket))), answers: Vec::new() }
    }

    /// Makes a unary call and writes down the answer under `name`.
    pub(super) async fn call<Q, A>(&mut self, name: &str, method: &str, request: Q) -> Option<A>
    where
        Q: Message + Default + Send + Sync + 'static,
        A: Message + Default + Send + Sync + Debug + 'static,
    {
        let answer = self.unary(method, request).await;
        self.write_down(name, method, answer.as_ref());
        answer.ok()
    }

    async fn unary<Q, A>(&mut self, method: &str, request: Q) -> Result<A, Status>
    where
        Q: Message + Default + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        self.grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::try_from(method).map_err(|error| Status::internal(error.to_string()))?;
        let codec = ProstCodec::<Q, A>::default();
        Ok(self.grpc.unary(Request::new(request), path, codec).await?.into_inner())
    }

    /// Makes a call with a stream of requests and writes down all answers.
    pub(super) async fn stream<Q, A>(&mut self, name: &str, method: &str, requests: Vec<Q>)
    where
        Q: Message + Default + Send + Sync + 'static,
        A: Message + Default + Send + Sync + Debug + 'static,
    {
        let mut answers: Vec<A> = Vec::new();
        let answered: Result<(), Status> = async {
            self.grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let path = PathAndQuery::try_from(method).map_err(|error| Status::internal(error.to_string()))?;
            let requests = Request::new(tokio_stream::iter(requests));
            let mut stream =
                self.grpc.streaming(requests, path, ProstCodec::<Q, A>::default()).await?.into_inner();
            while let Some(answer) = stream.message().await? {
                answers.push(answer);
            }
            Ok(())
        }
        .await;
        self.write_down(name, method, answered.as_ref().map(|()| &answers));
    }

    fn write_down<A: Debug>(&mut self, name: &str, method: &str, answer: Result<&A, &Status>) {
        let text = match answer {
            Ok(answer) => format!("{answer:?}"),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        let method = method.rsplit_once('.').map_or(method, |(_, method)| method);
        self.answers.push((format!("{method} {name}"), redacted(&text)));
    }
}

/// Replaces what differs from run to run: octets, times, UUIDs, key IDs, caller and place.
pub(super) fn redacted(text: &str) -> String {
    let mut words = Vec::new();
    for word in text.split_inclusive(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')) {
        let (word, end) = match word.char_indices().next_back() {
            Some((at, last)) if !(last.is_ascii_alphanumeric() || last == '-' || last == '_') => {
                word.split_at(at)
            }
            _ => (word, ""),
        };
        let digits = word.chars().all(|c| c.is_ascii_digit());
        let hex = word.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        let named = word.len() == 32 && word.chars().all(|c| c.is_ascii_alphanumeric());
        let replaced = match word.len() {
            9..20 if digits => "<number>",
            20.. if hex || named => "<id>",
            _ => word,
        };
        words.push(format!("{replaced}{end}"));
    }
    without_octets(&words.concat())
}

/// `b"…"` of `Debug` becomes `<octets>`.
fn without_octets(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = [" b\"", "[b\"", "(b\""].iter().filter_map(|start| rest.find(start)).min() {
        let (before, after) = (&rest[..=at], &rest[at + 3..]);
        out.push_str(before);
        let mut escaped = false;
        let end = after.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some(end) = end else { break };
        out.push_str(if end == 0 { "<nothing>" } else { "<octets>" });
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    out
}
