//! One plugin over the children that it has in its life.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use spire_ports::plugins::external::Launch;
use spire_ports::plugins::{Error, ErrorKind, PluginType};
use spire_wire::plugin::service::config::config_client::ConfigClient;
use spire_wire::plugin::service::config::{ConfigureRequest, CoreConfiguration, ValidateRequest};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::connection::{Connection, client, timely};
use crate::hclog::{Level, PluginLog};
use crate::limits::{Limits, SILENT_CHECKS_MAX, TIMEOUTS_MAX};
use crate::process::{parse_checksum, program_name};
use crate::status;

const CONFIG_SERVICE: &str = "spire.service.common.config.v1.Config";

/// A plugin that is kept running.
pub(crate) struct Supervised {
    pub(crate) launch: Launch,
    pub(crate) limits: Limits,
    pub(crate) log: PluginLog,
    services: Vec<String>,
    state: watch::Sender<State>,
    /// What it was configured with last; each child gets it again.
    configuration: Mutex<Option<String>>,
    /// Calls in a row that met their deadline, of the present child.
    timeouts: AtomicU32,
    /// Wakes the supervision to look at them. It may be due to calls of a child that is gone.
    hung: Notify,
    /// Counts restarts.
    restarts: watch::Sender<u64>,
    stop: CancellationToken,
    supervision: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone)]
enum State {
    Up(Arc<Connection>),
    /// Why.
    Down(String),
    Closed,
}

impl Supervised {
    /// Starts the first child, which must come up.
    ///
    /// # Errors
    /// Why it did not, as the reference says it.
    pub(crate) async fn start(launch: Launch, limits: Limits) -> Result<Arc<Self>, String> {
        let log = PluginLog::new(launch.kind.as_str(), &launch.name, &program_name(&launch.path));
        if parse_checksum(&launch.checksum).map_err(|error| error.to_string())?.is_none() {
            log.say(Level::Warn, "Plugin checksum not configured", &[]);
        }
        let first = Connection::open(&launch, &limits, &log).await.map_err(|error| error.to_string())?;
        let this = Arc::new(Self {
            launch,
            limits,
            log,
            services: first.services().to_vec(),
            state: watch::Sender::new(State::Up(Arc::new(first))),
            configuration: Mutex::default(),
            timeouts: AtomicU32::new(0),
            hung: Notify::new(),
            restarts: watch::Sender::new(0),
            stop: CancellationToken::new(),
            supervision: Mutex::default(),
        });
        let supervision = tokio::spawn(Arc::clone(&this).supervise());
        *this.supervision.lock().await = Some(supervision);
        Ok(this)
    }

    /// Wakes after each restart.
    pub(crate) fn restarts(&self) -> watch::Receiver<u64> {
        self.restarts.subscribe()
    }

    /// Whether it has that service.
    pub(crate) fn has(&self, service: &str) -> bool {
        self.services.iter().any(|name| name == service)
    }

    /// The services that it says it has.
    pub(crate) fn services(&self) -> &[String] {
        &self.services
    }

    /// Warns of services that nobody will use, once it is known which one is.
    pub(crate) fn warn_of_other_services(&self, used: &str) {
        let mut others: Vec<_> =
            self.services.iter().filter(|s| *s != used && *s != CONFIG_SERVICE).collect();
        others.sort();
        for service in others {
            self.log.say(Level::Warn, "Unsupported plugin service found", &[("plugin_service", service)]);
        }
    }

    pub(crate) fn plugin(&self) -> (PluginType, &str) {
        (self.launch.kind, &self.launch.name)
    }

    /// A failure of ours in the plugin's name.
    pub(crate) fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, self.plugin(), message)
    }

    /// The way to the child of now.
    ///
    /// # Errors
    /// `Unavailable` while there is none.
    pub(crate) fn channel(&self) -> Result<Channel, Error> {
        match &*self.state.borrow() {
            State::Up(connection) => Ok(connection.channel()),
            State::Down(why) => {
                let text = format!("the plugin is not running ({why}) and will be started again");
                Err(self.error(ErrorKind::Unavailable, text))
            }
            State::Closed => Err(self.error(ErrorKind::Unavailable, "the plugin was unloaded")),
        }
    }

    /// Makes a call within the limit; counts calls that did not come back in time.
    ///
    /// # Errors
    /// The plugin's, in its name.
    pub(crate) async fn call<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Error> {
        self.step(limit, call).await.map(tonic::Response::into_inner)
    }

    /// As [`Supervised::call`], for a part of a call.
    pub(crate) async fn step<T>(
        &self,
        limit: Duration,
        step: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(limit, step).await {
            Ok(result) => {
                self.timeouts.store(0, Ordering::Relaxed);
                result.map_err(|status| status::error(self.plugin(), &status))
            }
            Err(_) => {
                if self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= TIMEOUTS_MAX {
                    self.hung.notify_one();
                }
                let text = format!("the plugin did not answer within {limit:?}");
                Err(self.error(ErrorKind::DeadlineExceeded, text))
            }
        }
    }

    pub(crate) fn is_configurable(&self) -> bool {
        self.has(CONFIG_SERVICE)
    }

    /// Configures the child of now, and all that follow if it accepts.
    ///
    /// # Errors
    /// As Go prints it.
    pub(crate) async fn configure(&self, data: String) -> Result<(), String> {
        // The lock keeps a restart from using the old data after this returned.
        let mut configuration = self.configuration.lock().await;
        let channel = self.channel().map_err(|error| error.to_string())?;
        self.configure_child(channel, &data).await.map_err(|status| status::go_text(&status))?;
        *configuration = Some(data);
        Ok(())
    }

    async fn configure_child(&self, channel: Channel, data: &str) -> Result<(), Status> {
        let request =
            ConfigureRequest { core_configuration: self.core(), hcl_configuration: data.to_owned() };
        let mut config = client!(ConfigClient, channel);
        timely(self.limits.configure, config.configure(request)).await.map(|_| ())
    }

    fn core(&self) -> Option<CoreConfiguration> {
        Some(CoreConfiguration { trust_domain: self.launch.trust_domain.name().to_owned() })
    }

    /// What it says of the data; a plugin that cannot be asked says nothing.
    pub(crate) async fn validate(&self, data: String) -> Vec<String> {
        let channel = match self.channel() {
            Ok(channel) => channel,
            Err(error) => return vec![error.to_string()],
        };
        let request = ValidateRequest { core_configuration: self.core(), hcl_configuration: data };
        let mut config = client!(ConfigClient, channel);
        match timely(self.limits.configure, config.validate(request)).await {
            Ok(response) => response.into_inner().notes,
            Err(status) if status.code() == Code::Unimplemented => Vec::new(),
            Err(status) => vec![status::go_text(&status)],
        }
    }

    /// Ends it for good.
    pub(crate) async fn close(&self) {
        self.stop.cancel();
        if let Some(supervision) = self.supervision.lock().await.take() {
            // A panic in it was reported by the runtime; the child goes with the state.
            let _ = supervision.await;
        }
        if let State::Up(connection) = self.state.send_replace(State::Closed) {
            connection.close(&self.limits, &self.log).await;
            kill(connection).await;
        }
    }

    /// Keeps a child running until told to stop.
    async fn supervise(self: Arc<Self>) {
        let mut wait = self.limits.restart_min;
        loop {
            let State::Up(connection) = self.state.borrow().clone() else { return };
            let since = Instant::now();
            let why = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                how = connection.exited() => format!("it ended: {how}"),
                () = self.hangs(&connection) => "it does not answer any more".to_owned(),
            };
            self.state.send_replace(State::Down(why.clone()));
            kill(connection).await;
            if since.elapsed() > self.limits.restart_max {
                wait = self.limits.restart_min;
            }
            let seconds = format!("{wait:?}");
            self.log.say(
                Level::Error,
                "Plugin is down; starting it again",
                &[("reason", &why), ("retry_interval", &seconds)],
            );
            if !self.restart(&mut wait).await {
                return;
            }
        }
    }

    /// Starts children until one is up. `false` if it was told to stop.
    async fn restart(&self, wait: &mut Duration) -> bool {
        loop {
            if self.stop.run_until_cancelled(tokio::time::sleep(*wait)).await.is_none() {
                return false;
            }
            *wait = (*wait * 2).min(self.limits.restart_max);
            let Some(started) = self.stop.run_until_cancelled(self.start_again()).await else { return false };
            match started {
                Ok(()) => {
                    self.timeouts.store(0, Ordering::Relaxed);
                    self.log.say(Level::Info, "Plugin was started again", &[]);
                    self.restarts.send_modify(|count| *count += 1);
                    return true;
                }
                Err(error) => {
                    let seconds = format!("{wait:?}");
                    self.log.say(
                        Level::Error,
                        "Failed to start plugin again",
                        &[("error", &error), ("retry_interval", &seconds)],
                    );
                    self.state.send_replace(State::Down(error));
                }
            }
        }
    }

    async fn start_again(&self) -> Result<(), String> {
        let opened = Connection::open(&self.launch, &self.limits, &self.log).await;
        let connection = opened.map_err(|error| error.to_string())?;
        if let Some(lost) = self.services.iter().find(|service| !connection.services().contains(service)) {
            return Err(format!("it does not have {lost} any more"));
        }
        let configuration = self.configuration.lock().await;
        if let Some(data) = &*configuration {
            let configured = self.configure_child(connection.channel(), data).await;
            configured
                .map_err(|status| format!("failed to configure plugin: {}", status::go_text(&status)))?;
        }
        self.state.send_replace(State::Up(Arc::new(connection)));
        Ok(())
    }

    /// Ends when the child hangs: it answers no health check, or too many calls came back too late.
    async fn hangs(&self, connection: &Connection) {
        let mut silent = 0;
        loop {
            tokio::select! {
                () = self.hung.notified() => {
                    if self.timeouts.load(Ordering::Relaxed) >= TIMEOUTS_MAX {
                        return;
                    }
                    continue;
                }
                () = tokio::time::sleep(self.limits.health_interval) => {}
            }
            silent = if connection.answers(self.limits.health).await { 0 } else { silent + 1 };
            if silent >= SILENT_CHECKS_MAX {
                return;
            }
        }
    }
}

/// Kills the child now, or with the last call that is in progress.
async fn kill(connection: Arc<Connection>) {
    if let Some(connection) = Arc::into_inner(connection) {
        connection.kill().await;
    }
}
