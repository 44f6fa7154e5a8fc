//! The services that go-plugin expects beside a plugin's own: broker, controller, standard streams, health.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use spire_wire::health::health_check_response::ServingStatus;
use spire_wire::health::health_server::Health;
use spire_wire::health::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};
use spire_wire::plugin::go_plugin::grpc_broker_server::GrpcBroker;
use spire_wire::plugin::go_plugin::grpc_controller_server::GrpcController;
use spire_wire::plugin::go_plugin::grpc_stdio_server::GrpcStdio;
use spire_wire::plugin::go_plugin::{ConnInfo, Empty, StdioData};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// The number under which the host offers its services (spire-plugin-sdk: `HostServiceProviderID`).
const HOST_SERVICES: u32 = 1;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the host and the plugin tell each other beside the plugin's own calls.
#[derive(Clone)]
pub(crate) struct Control {
    /// Where the host services are, once the host said so: network and address.
    pub(crate) host: Arc<watch::Sender<Option<(String, String)>>>,
    /// Ends the plugin.
    pub(crate) stop: CancellationToken,
}

impl Control {
    pub(crate) fn new() -> Self {
        Self { host: Arc::new(watch::Sender::new(None)), stop: CancellationToken::new() }
    }

    async fn listen(self, mut told: Streaming<ConnInfo>) {
        while let Ok(Some(info)) = told.message().await {
            if info.service_id == HOST_SERVICES && info.knock.is_none() {
                self.host.send_replace(Some((info.network, info.address)));
            }
        }
        // The host keeps this stream as long as it lives. Without it there is nobody to work for.
        self.stop.cancel();
    }
}

#[tonic::async_trait]
impl GrpcBroker for Control {
    type StartStreamStream = Answers<ConnInfo>;

    async fn start_stream(
        &self,
        request: Request<Streaming<ConnInfo>>,
    ) -> Result<Response<Self::StartStreamStream>, Status> {
        tokio::spawn(self.clone().listen(request.into_inner()));
        // There is nothing here for the host to dial.
        Ok(Response::new(Box::pin(futures_util::stream::pending())))
    }
}

#[tonic::async_trait]
impl GrpcController for Control {
    async fn shutdown(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        self.stop.cancel();
        Ok(Response::new(Empty {}))
    }
}

#[tonic::async_trait]
impl GrpcStdio for Control {
    type StreamStdioStream = Answers<StdioData>;

    /// What is printed goes to the real standard streams, which the host reads.
    async fn stream_stdio(&self, _: Request<()>) -> Result<Response<Self::StreamStdioStream>, Status> {
        Ok(Response::new(Box::pin(futures_util::stream::pending())))
    }
}

#[tonic::async_trait]
impl Health for Control {
    type WatchStream = Answers<HealthCheckResponse>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match request.into_inner().service.as_str() {
            "" | "plugin" => Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() })),
            _ => Err(Status::not_found("unknown service")),
        }
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("ask for one service"))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("ask instead"))
    }
}
