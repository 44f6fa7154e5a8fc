//! Calls of the Workload API: the header that it demands, a bound on their time, the first message of a stream.

use std::time::Duration;

use spire_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::call::Call;
use crate::failure::Failure;

/// What proves that a request was not made by a browser or a proxy on somebody's behalf (SPIFFE Workload Endpoint
/// specification, section 6).
const SECURITY_HEADER: &str = "workload.spiffe.io";

/// A client for the socket of the call.
pub(super) fn client(call: &Call<'_>) -> SpiffeWorkloadApiClient<Channel> {
    SpiffeWorkloadApiClient::new(call.channel.clone())
}

/// A request with the security header.
pub(crate) fn request<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(SECURITY_HEADER, AsciiMetadataValue::from_static("true"));
    request
}

/// Waits no longer than `timeout`.
pub(super) async fn bounded<T>(
    timeout: Option<Duration>,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match timeout {
        None => work.await,
        Some(timeout) => match tokio::time::timeout(timeout, work).await {
            Ok(done) => done,
            Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
        },
    }
}

/// The first message; Go calls the end of a stream `EOF`.
pub(super) async fn first<M>(mut stream: Streaming<M>) -> Result<Result<M, Failure>, Status> {
    Ok(stream.message().await?.ok_or_else(|| Failure::new("EOF")))
}
