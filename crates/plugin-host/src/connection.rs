//! One child of a plugin that runs: connected, its log followed, its host services served, initialised.

use std::time::Duration;

use spire_ports::plugins::external::{Launch, Side};
use spire_wire::health::HealthCheckRequest;
use spire_wire::health::health_client::HealthClient;
use spire_wire::plugin::go_plugin::grpc_broker_client::GrpcBrokerClient;
use spire_wire::plugin::go_plugin::grpc_controller_client::GrpcControllerClient;
use spire_wire::plugin::go_plugin::grpc_stdio_client::GrpcStdioClient;
use spire_wire::plugin::go_plugin::{ConnInfo, Empty};
use spire_wire::plugin::service::init::init_client::InitClient;
use spire_wire::plugin::service::init::{DeinitRequest, InitRequest};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};

use crate::handshake::Address;
use crate::hclog::{Level, Lines, PluginLog};
use crate::host_services;
use crate::limits::{Limits, MESSAGE_SIZE_MAX};
use crate::process::{self, Process, StartError};
use crate::status::{go_text, is_broken};

/// The number under which the broker knows the host services (spire-plugin-sdk: `HostServiceProviderID`).
const HOST_SERVICES: u32 = 1;
/// The service whose health go-plugin tells.
const HEALTH_SERVICE: &str = "plugin";
/// Services that a plugin may say it has; a real one has two or three.
const SERVICES_MAX: usize = 64;
/// HTTP/2 windows: one connection carries every call, and standard streams come in small frames.
const CONNECTION_WINDOW: u32 = 4 << 20;

/// A child that runs and can be called.
pub(crate) struct Connection {
    channel: Channel,
    services: Vec<String>,
    process: Process,
    /// The broker, the host services and the standard streams; they end with this.
    _tasks: JoinSet<()>,
    /// Keeps the broker's stream open.
    _broker: mpsc::Sender<ConnInfo>,
}

/// Why a child could not be used; none is left.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("failed to launch plugin: {0}")]
    Connect(String),
    #[error("failed to launch plugin: host services: {0}")]
    HostServices(String),
    #[error("{0}")]
    Init(String),
}

impl Connection {
    /// Starts the program, connects and initialises.
    pub(crate) async fn open(
        launch: &Launch,
        limits: &Limits,
        log: &PluginLog,
    ) -> Result<Self, ConnectError> {
        let process = process::start(launch, limits, log).await?;
        let channel = connect(&process.address, limits).await?;
        let mut tasks = JoinSet::new();
        let (broker, broker_out) = mpsc::channel(4);
        tasks.spawn(follow_broker(channel.clone(), broker_out));
        tasks.spawn(follow_stdio(channel.clone(), log.clone()));
        serve_host(launch, &process, &broker, &mut tasks, log.clone()).await?;
        let services = init(channel.clone(), launch.side, limits.start).await?;
        Ok(Self { channel, services, process, _tasks: tasks, _broker: broker })
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The services that the plugin says it has.
    pub(crate) fn services(&self) -> &[String] {
        &self.services
    }

    /// Ends when the child ended; says how.
    pub(crate) async fn exited(&self) -> String {
        self.process.exited().await
    }

    /// Whether it answers at all; what it says of its health is its own business (go-plugin: Ping).
    pub(crate) async fn answers(&self, limit: Duration) -> bool {
        let mut health = HealthClient::new(self.channel());
        let check = health.check(HealthCheckRequest { service: HEALTH_SERVICE.to_owned() });
        match tokio::time::timeout(limit, check).await {
            Ok(Ok(_)) => true,
            Ok(Err(status)) => !is_broken(&status),
            Err(_) => false,
        }
    }

    /// Tells the plugin that no more calls come, then its server to stop, and kills what is left after that.
    pub(crate) async fn close(&self, limits: &Limits, log: &PluginLog) {
        let mut init = InitClient::new(self.channel());
        match timely(limits.deinit, init.deinit(DeinitRequest {})).await {
            Err(status) if status.code() != Code::Unimplemented => {
                let text = go_text(&status);
                log.say(Level::Error, "Failed to deinitialize plugin", &[("error", &text)]);
            }
            _ => log.say(Level::Debug, "Plugin deinitialized", &[]),
        }
        let mut controller = GrpcControllerClient::new(self.channel());
        // It stops before it answers, more often than not.
        let _ = timely(limits.exit, controller.shutdown(Empty {})).await;
        match tokio::time::timeout(limits.exit, self.exited()).await {
            Ok(_) => log.say(Level::Debug, "plugin exited", &[]),
            Err(_) => log.say(Level::Warn, "plugin failed to exit gracefully", &[]),
        }
    }

    /// Kills the child and waits until it is gone.
    pub(crate) async fn kill(self) {
        self.process.kill().await;
    }
}

/// The call's result, or `DeadlineExceeded` once the limit has passed.
pub(crate) async fn timely<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result,
        Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
    }
}

async fn connect(address: &Address, limits: &Limits) -> Result<Channel, ConnectError> {
    // What go-plugin's host says; the address counts for nothing.
    let endpoint = Endpoint::from_static("http://unused")
        .connect_timeout(limits.start)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let connected = match address {
        Address::Unix(path) => {
            endpoint.connect_with_connector(spire_net::tls::UnixConnector::new(path)).await
        }
        Address::Tcp(address) => {
            let address = *address;
            let dial = tower::service_fn(move |_| async move {
                TcpStream::connect(address).await.map(hyper_util::rt::TokioIo::new)
            });
            endpoint.connect_with_connector(dial).await
        }
    };
    connected.map_err(|error| {
        let source =
            std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        ConnectError::Connect(format!("{error}{source}"))
    })
}

async fn init(channel: Channel, side: Side, limit: Duration) -> Result<Vec<String>, ConnectError> {
    let mut client = InitClient::new(channel);
    let request = InitRequest { host_service_names: host_services::names(side) };
    let answer = timely(limit, client.init(request)).await;
    let services =
        answer.map_err(|status| ConnectError::Init(go_text(&status)))?.into_inner().plugin_service_names;
    if services.len() > SERVICES_MAX {
        return Err(ConnectError::Init(format!("the plugin says that it has {} services", services.len())));
    }
    Ok(services)
}

/// Serves what the plugin may call on a socket of its own, and tells it where.
async fn serve_host(
    launch: &Launch,
    process: &Process,
    broker: &mpsc::Sender<ConnInfo>,
    tasks: &mut JoinSet<()>,
    log: PluginLog,
) -> Result<(), ConnectError> {
    let path = process.folder.path().join("host");
    let listener =
        UnixListener::bind(&path).map_err(|e| ConnectError::HostServices(spire_net::errno_text(&e)))?;
    let server = Server::builder().add_routes(host_services::routes(launch.side, launch.host.clone()));
    tasks.spawn(async move {
        if let Err(error) = server.serve_with_incoming(UnixListenerStream::new(listener)).await {
            log.say(Level::Error, "Host services server failed", &[("error", &error)]);
        }
    });
    let here = ConnInfo {
        service_id: HOST_SERVICES,
        network: "unix".to_owned(),
        address: path.display().to_string(),
        knock: None,
    };
    // There is room, and the other end lives in a task of ours.
    let _ = broker.send(here).await;
    Ok(())
}

/// Sends the plugin what we tell it. It opens no connections of its own for us to dial, in SPIRE either.
async fn follow_broker(channel: Channel, ours: mpsc::Receiver<ConnInfo>) {
    let mut broker = GrpcBrokerClient::new(channel);
    // The answer's head comes with its first message, which may be never.
    let Ok(theirs) = broker.start_stream(ReceiverStream::new(ours)).await else { return };
    let mut theirs = theirs.into_inner();
    while let Ok(Some(_)) = theirs.message().await {}
}

/// Logs what the plugin prints after its handshake. SPIRE drops it.
async fn follow_stdio(channel: Channel, log: PluginLog) {
    let mut stdio = GrpcStdioClient::new(channel);
    // A plugin that does not have it prints to where nobody looks.
    let Ok(stream) = stdio.stream_stdio(()).await else { return };
    let mut stream = stream.into_inner();
    let mut lines = Lines::default();
    while let Ok(Some(chunk)) = stream.message().await {
        for line in String::from_utf8_lossy(&chunk.data).lines().filter(|line| !line.is_empty()) {
            log.line(&lines.read(line));
        }
    }
}

/// Gives a generated client our bounds.
macro_rules! client {
    ($client:ident, $channel:expr) => {
        $client::new($channel)
            .max_decoding_message_size($crate::limits::MESSAGE_SIZE_MAX)
            .max_encoding_message_size($crate::limits::MESSAGE_SIZE_MAX)
    };
}
pub(crate) use client;

const _: () = assert!(MESSAGE_SIZE_MAX > 4 << 20, "Go's default must fit");
