//! A plugin from its parts to its end.

use std::convert::Infallible;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use spire_wire::health::health_server::HealthServer;
use spire_wire::plugin::go_plugin::grpc_broker_server::GrpcBrokerServer;
use spire_wire::plugin::go_plugin::grpc_controller_server::GrpcControllerServer;
use spire_wire::plugin::go_plugin::grpc_stdio_server::GrpcStdioServer;
use spire_wire::plugin::service::config::config_server::ConfigServer;
use spire_wire::plugin::service::init::init_server::{Init, InitServer};
use spire_wire::plugin::service::init::{DeinitRequest, DeinitResponse, InitRequest, InitResponse};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::NamedService;
use tonic::service::RoutesBuilder;
use tonic::transport::Server;
use tonic::{Request, Response, Status, async_trait};
use tower::Service;

use crate::broker::Control;
use crate::configure::{Adapter, Configure};
use crate::handshake::{self, HandshakeError};
use crate::host::Host;
use crate::log;

/// The type of a plugin, as configuration files have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the plugin type of that name")]
pub enum Kind {
    BundlePublisher,
    CredentialComposer,
    KeyManager,
    NodeAttestor,
    Notifier,
    SvidStore,
    UpstreamAuthority,
    WorkloadAttestor,
}

impl Kind {
    /// The name, which is also the cookie by which a plugin knows its host.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BundlePublisher => "BundlePublisher",
            Self::CredentialComposer => "CredentialComposer",
            Self::KeyManager => "KeyManager",
            Self::NodeAttestor => "NodeAttestor",
            Self::Notifier => "Notifier",
            Self::SvidStore => "SVIDStore",
            Self::UpstreamAuthority => "UpstreamAuthority",
            Self::WorkloadAttestor => "WorkloadAttestor",
        }
    }
}

/// Why a plugin could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Nobody is there to serve, or not in a way that we can.
    #[error("{0}")]
    Handshake(String),
    /// The runtime or the listener failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server failed.
    #[error("{0}")]
    Serve(#[from] tonic::transport::Error),
}

impl From<HandshakeError> for ServeError {
    fn from(error: HandshakeError) -> Self {
        Self::Handshake(error.to_string())
    }
}

type Hook = Arc<dyn Fn() + Send + Sync>;

/// A plugin that is being put together.
pub struct Plugin {
    kind: Kind,
    routes: RoutesBuilder,
    names: Vec<String>,
    host: Host,
    close: Vec<Hook>,
}

impl Plugin {
    /// A plugin of that type, which serves nothing yet.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            routes: RoutesBuilder::default(),
            names: Vec::new(),
            host: Host::new(),
            close: Vec::new(),
        }
    }

    /// What the host offers. Give it to those who need it; it works once the plugin is served.
    pub fn host(&self) -> Host {
        self.host.clone()
    }

    /// Serves this service: that of the plugin's type.
    #[must_use]
    pub fn service<S>(mut self, service: S) -> Self
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME.to_owned());
        self.routes.add_service(service);
        self
    }

    /// Takes configurations. Without this the plugin has none, and a host refuses `plugin_data` for it.
    #[must_use]
    pub fn configure(self, configure: Arc<dyn Configure>) -> Self {
        self.service(ConfigServer::new(Adapter(configure)))
    }

    /// Calls this when the host unloads the plugin.
    #[must_use]
    pub fn on_close(mut self, close: impl Fn() + Send + Sync + 'static) -> Self {
        self.close.push(Arc::new(close));
        self
    }

    /// Serves until the host ends it, on a runtime of its own. The exit code is for `main`.
    pub fn run(self) -> ExitCode {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let served = match runtime {
            Ok(runtime) => runtime.block_on(self.serve()),
            Err(error) => Err(error.into()),
        };
        match served {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&error);
                ExitCode::FAILURE
            }
        }
    }

    /// Serves until the host ends it. Events of `tracing` go to the host unless there is a subscriber.
    ///
    /// # Errors
    /// [`ServeError`] where no host started this program, or serving fails.
    pub async fn serve(self) -> Result<(), ServeError> {
        let Self { kind, mut routes, names, host, close } = self;
        handshake::refuse_tls()?;
        let control = Control::new();
        let initialiser = Initialiser { names, host, control: control.clone(), close };
        routes
            .add_service(InitServer::new(initialiser))
            .add_service(GrpcBrokerServer::new(control.clone()))
            .add_service(GrpcControllerServer::new(control.clone()))
            .add_service(GrpcStdioServer::new(control.clone()))
            .add_service(HealthServer::new(control.clone()));
        log::install();
        // Who presses Ctrl-C means the host, which ends us in its order.
        let mut interrupts = signal(SignalKind::interrupt())?;
        tokio::spawn(async move { while interrupts.recv().await.is_some() {} });
        let mut socket = handshake::shake(kind.as_str())?;
        let Some(listener) = socket.listener.take() else { return Ok(()) };
        let serving = Server::builder()
            .add_routes(routes.routes())
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::select! {
            served = serving => served?,
            // Calls that are still going on are the host's to give up; the answer to its last one goes out.
            () = stopped(&control) => {}
        }
        Ok(())
    }
}

/// Ends shortly after the plugin was told to stop.
async fn stopped(control: &Control) {
    const LAST_ANSWER: std::time::Duration = std::time::Duration::from_millis(100);
    control.stop.cancelled().await;
    tokio::time::sleep(LAST_ANSWER).await;
}

#[expect(clippy::print_stderr, reason = "a person or the host's log reads it")]
fn complain(error: &ServeError) {
    eprintln!("{error}");
}

/// The first call and the last.
struct Initialiser {
    names: Vec<String>,
    host: Host,
    control: Control,
    close: Vec<Hook>,
}

#[async_trait]
impl Init for Initialiser {
    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        let offered = request.into_inner().host_service_names;
        self.host.offered(offered, self.control.host.subscribe()).await?;
        Ok(Response::new(InitResponse { plugin_service_names: self.names.clone() }))
    }

    async fn deinit(&self, _: Request<DeinitRequest>) -> Result<Response<DeinitResponse>, Status> {
        for close in &self.close {
            close();
        }
        Ok(Response::new(DeinitResponse {}))
    }
}
