//! The settings of the `k8s` WorkloadAttestor, checked as the reference checks them
//! (pkg/agent/plugin/workloadattestor/k8s buildConfig): the first thing that is wrong is the answer.

use std::path::PathBuf;
use std::time::Duration;

use spire_compat::duration::GoDuration;
use spire_compat::hcl::{Body, DecodeError};
use spire_compat::quote::quote;
use spire_core::spiffe::SpiffeId;
use spire_ports::plugins::Result;
use spire_ports::plugins::catalog::Configuration;

use super::reference::{Brokers, Scope};

const MAX_POLL_ATTEMPTS: u32 = 60;
const POLL_RETRY_INTERVAL: Duration = Duration::from_millis(500);
const RELOAD_INTERVAL: Duration = Duration::from_secs(60);
const SECURE_PORT: i64 = 10_250;
const CA_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const NODE_NAME_ENV: &str = "MY_NODE_NAME";

/// What the attestor goes by.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// `use_new_container_locator`, which is true by default.
    pub(crate) use_new_locator: bool,
    pub(crate) verbose_locator: bool,
    pub(crate) max_poll_attempts: u32,
    pub(crate) container_selectors: bool,
    pub(crate) namespace_labels: bool,
    /// Whether namespaces may come from a cache.
    pub(crate) api_cache: bool,
    /// How to ask the kubelet; nothing where `disable_kubelet_client` is set.
    pub(crate) kubelet: Option<Kubelet>,
    /// What brokers may refer to; nothing where they may not at all.
    pub(crate) brokers: Option<Brokers>,
    /// What counts as a good signature of an image, where images must have one.
    pub(crate) sigstore: Option<spire_sigstore::Settings>,
}

/// How to ask the kubelet.
#[derive(Clone, Debug)]
pub(crate) struct Kubelet {
    pub(crate) poll_retry_interval: Duration,
    pub(crate) reload_interval: Duration,
    pub(crate) port: u16,
    /// TLS, its authority and who we are; nothing for the port that everybody may read.
    pub(crate) secure: Option<Secure>,
}

/// TLS with the kubelet.
#[derive(Clone, Debug)]
pub(crate) struct Secure {
    /// The host that is dialled and verified; the node's own without any.
    pub(crate) node_name: Option<String>,
    /// The authorities' file; nothing where the kubelet's certificate is not verified.
    pub(crate) ca_path: Option<PathBuf>,
    pub(crate) credentials: Credentials,
}

/// Who we are to the kubelet.
#[derive(Clone, Debug)]
pub(crate) enum Credentials {
    Anonymous,
    Certificate {
        certificate: PathBuf,
        key: PathBuf,
    },
    Token(PathBuf),
    /// One of the pair's two paths is missing.
    Half(&'static str),
}

/// Settings as written, and the keys of each block that nobody knows.
#[derive(Default)]
struct Raw {
    read_only_port: i64,
    secure_port: i64,
    poll_retry_interval: String,
    reload_interval: String,
    use_new_locator: Option<bool>,
    verbose_locator: bool,
    disable_kubelet_client: bool,
    disable_container_selectors: bool,
    namespace_labels: bool,
    api_cache: bool,
    max_poll_attempts: i64,
    skip_verification: bool,
    anonymous: bool,
    ca_path: String,
    token_path: String,
    certificate_path: String,
    private_key_path: String,
    node_name_env: String,
    node_name: String,
    sigstore: Option<spire_sigstore::Settings>,
    /// Settings of the kubelet client that are set, in the reference's order.
    kubelet: Vec<&'static str>,
    broker: Option<Broker>,
    unknown: Vec<Vec<String>>,
}

/// `experimental.broker`.
#[derive(Default)]
struct Broker {
    access_policy: String,
    brokers: Vec<Entry>,
    unknown: Vec<String>,
}

impl Broker {
    /// After the check, so that every ID is one.
    fn resolve(self) -> Brokers {
        let scope = |entry: Entry| {
            let scope = if entry.scope == "cluster" { Scope::Cluster } else { Scope::AgentNode };
            Some((SpiffeId::parse(&entry.id).ok()?, scope))
        };
        let scopes = self.brokers.into_iter().filter_map(scope).collect();
        Brokers { enforced: self.access_policy != "permissive", scopes }
    }
}

#[derive(Default)]
struct Entry {
    id: String,
    scope: String,
    unknown: Vec<String>,
}

pub(crate) fn read(configuration: &Configuration) -> Result<Settings> {
    let raw = configuration
        .decode(decode)
        .map_err(|error| configuration.invalid(format!("unable to decode configuration: {error}")))?;
    check(&raw).map_err(|error| configuration.invalid(error))?;
    raw.resolve().map_err(|error| configuration.invalid(error))
}

impl Raw {
    fn resolve(self) -> std::result::Result<Settings, String> {
        let kubelet = if self.disable_kubelet_client { None } else { Some(self.kubelet()?) };
        Ok(Settings {
            use_new_locator: self.use_new_locator.unwrap_or(true),
            verbose_locator: self.verbose_locator,
            max_poll_attempts: match u32::try_from(self.max_poll_attempts) {
                Ok(0) | Err(_) => MAX_POLL_ATTEMPTS,
                Ok(attempts) => attempts,
            },
            container_selectors: !self.disable_container_selectors,
            namespace_labels: self.namespace_labels,
            api_cache: self.api_cache,
            kubelet,
            brokers: self.broker.map(Broker::resolve),
            sigstore: self.sigstore,
        })
    }

    fn kubelet(&self) -> std::result::Result<Kubelet, String> {
        let or =
            |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
        let secure = self.read_only_port <= 0;
        let port = match (secure, self.secure_port) {
            (false, _) => self.read_only_port,
            (true, port) if port > 0 => port,
            (true, _) => SECURE_PORT,
        };
        let port = u16::try_from(port).map_err(|_| format!("kubelet port {port} is not a port"))?;
        let node_name = match (self.node_name.as_str(), self.node_name_env.as_str()) {
            ("", "") => std::env::var(NODE_NAME_ENV).unwrap_or_default(),
            ("", name) => std::env::var(name).unwrap_or_default(),
            (name, _) => name.to_owned(),
        };
        let credentials = match (self.certificate_path.as_str(), self.private_key_path.as_str()) {
            _ if self.anonymous => Credentials::Anonymous,
            ("", "") => Credentials::Token(or(&self.token_path, TOKEN_PATH).into()),
            (_, "") => Credentials::Half("the private key path is required with the certificate path"),
            ("", _) => Credentials::Half("the certificate path is required with the private key path"),
            (certificate, key) => {
                Credentials::Certificate { certificate: certificate.into(), key: key.into() }
            }
        };
        Ok(Kubelet {
            poll_retry_interval: interval(&self.poll_retry_interval, POLL_RETRY_INTERVAL),
            reload_interval: interval(&self.reload_interval, RELOAD_INTERVAL),
            port,
            secure: secure.then(|| Secure {
                node_name: (!node_name.is_empty()).then_some(node_name),
                ca_path: (!self.skip_verification).then(|| or(&self.ca_path, CA_PATH).into()),
                credentials,
            }),
        })
    }
}

/// A duration that was checked before; the default where it is none or not positive.
fn interval(text: &str, default: Duration) -> Duration {
    let parsed = text.parse::<GoDuration>().ok().and_then(GoDuration::to_std);
    parsed.filter(|duration| !duration.is_zero()).unwrap_or(default)
}

fn decode(data: &mut Body<'_>) -> std::result::Result<Raw, DecodeError> {
    let mut raw = Raw {
        read_only_port: data.take_int("kubelet_read_only_port")?.unwrap_or_default(),
        secure_port: data.take_int("kubelet_secure_port")?.unwrap_or_default(),
        poll_retry_interval: data.take_string("poll_retry_interval")?.unwrap_or_default(),
        reload_interval: data.take_string("reload_interval")?.unwrap_or_default(),
        use_new_locator: data.take_bool("use_new_container_locator")?,
        disable_kubelet_client: data.take_bool("disable_kubelet_client")?.unwrap_or_default(),
        ..Raw::default()
    };
    raw.max_poll_attempts = data.take_int("max_poll_attempts")?.unwrap_or_default();
    raw.disable_container_selectors = data.take_bool("disable_container_selectors")?.unwrap_or_default();
    raw.verbose_locator = data.take_bool("verbose_container_locator_logs")?.unwrap_or_default();
    raw.namespace_labels = data.take_bool("enable_namespace_labels")?.unwrap_or_default();
    raw.sigstore = spire_sigstore::Settings::take(data)?;
    for (key, target) in [
        ("kubelet_ca_path", &mut raw.ca_path),
        ("token_path", &mut raw.token_path),
        ("certificate_path", &mut raw.certificate_path),
        ("private_key_path", &mut raw.private_key_path),
        ("node_name_env", &mut raw.node_name_env),
        ("node_name", &mut raw.node_name),
    ] {
        *target = data.take_string(key)?.unwrap_or_default();
    }
    raw.skip_verification = data.take_bool("skip_kubelet_verification")?.unwrap_or_default();
    raw.anonymous = data.take_bool("use_anonymous_authentication")?.unwrap_or_default();
    let mut set = |key, is_set: bool| raw.kubelet.extend(is_set.then_some(key));
    set("kubelet_read_only_port", raw.read_only_port > 0);
    set("kubelet_secure_port", raw.secure_port > 0);
    set("kubelet_ca_path", !raw.ca_path.is_empty());
    set("skip_kubelet_verification", raw.skip_verification);
    set("token_path", !raw.token_path.is_empty());
    set("certificate_path", !raw.certificate_path.is_empty());
    set("private_key_path", !raw.private_key_path.is_empty());
    set("use_anonymous_authentication", raw.anonymous);
    set("node_name_env", !raw.node_name_env.is_empty());
    set("node_name", !raw.node_name.is_empty());
    set("reload_interval", !raw.reload_interval.is_empty());

    let experimental = data.take_block("experimental")?;
    raw.unknown.push(unknown(data));
    if let Some(mut experimental) = experimental {
        let api_server = experimental.take_block("api_server")?;
        let broker = experimental.take_block("broker")?;
        let former = spire_sigstore::Settings::take_former(&mut experimental)?;
        raw.sigstore = raw.sigstore.or(former);
        raw.unknown.push(unknown(&experimental));
        if let Some(mut api_server) = api_server {
            let cache = api_server.take_block("cache")?;
            raw.unknown.push(unknown(&api_server));
            if let Some(mut cache) = cache {
                raw.api_cache = cache.take_bool("enabled")?.unwrap_or_default();
                raw.unknown.push(unknown(&cache));
            }
        }
        raw.broker = broker.map(|mut broker| decode_broker(&mut broker)).transpose()?;
    }
    Ok(raw)
}

fn decode_broker(data: &mut Body<'_>) -> std::result::Result<Broker, DecodeError> {
    let access_policy = data.take_string("access_policy")?.unwrap_or_default();
    let mut brokers = Vec::new();
    for mut entry in data.take_block_list("brokers")? {
        brokers.push(Entry {
            id: entry.take_string("id")?.unwrap_or_default(),
            scope: entry.take_string("pod_reference_scope")?.unwrap_or_default(),
            unknown: unknown(&entry),
        });
    }
    Ok(Broker { access_policy, brokers, unknown: unknown(data) })
}

fn unknown(data: &Body<'_>) -> Vec<String> {
    data.unused().into_iter().map(|key| key.name).collect()
}

fn check(raw: &Raw) -> std::result::Result<(), String> {
    for unknown in &raw.unknown {
        check_unknown(unknown)?;
    }
    if let Some(broker) = &raw.broker {
        check_broker(broker)?;
    }
    if raw.disable_kubelet_client {
        if let Some(key) = raw.kubelet.first() {
            return Err(format!("disable_kubelet_client cannot be used with {key}"));
        }
        let entries = raw.broker.iter().flat_map(|broker| &broker.brokers);
        if let Some(entry) = entries.into_iter().find(|entry| entry.scope != "cluster") {
            return Err(format!(
                "experimental.broker.brokers[{}].pod_reference_scope must be \"cluster\" when \
                 disable_kubelet_client is true",
                entry.id
            ));
        }
    }
    for (text, what) in [(&raw.poll_retry_interval, "poll retry"), (&raw.reload_interval, "reload")] {
        if !text.is_empty() {
            text.parse::<GoDuration>()
                .map_err(|error| format!("unable to parse {what} interval: {error}"))?;
        }
    }
    if raw.secure_port > 0 && raw.read_only_port > 0 {
        return Err("cannot use both the read-only and secure port".to_owned());
    }
    Ok(())
}

fn check_unknown(unknown: &[String]) -> std::result::Result<(), String> {
    if unknown.is_empty() {
        return Ok(());
    }
    Err(format!("unknown configurations detected: {}", unknown.join(",")))
}

fn check_broker(broker: &Broker) -> std::result::Result<(), String> {
    const PATH: &str = "experimental.broker";
    check_unknown(&broker.unknown)?;
    match broker.access_policy.as_str() {
        "permissive" | "enforced" => {}
        "" => {
            return Err(format!("{PATH}.access_policy: must be specified as one of [permissive, enforced]"));
        }
        other => {
            let other = quote(other);
            return Err(format!(
                "{PATH}.access_policy: unsupported value {other}; must be one of [permissive, enforced]"
            ));
        }
    }
    if broker.brokers.is_empty() {
        return Err(format!("{PATH}.brokers: at least one broker is required"));
    }
    for (index, entry) in broker.brokers.iter().enumerate() {
        check_unknown(&entry.unknown)?;
        let id = &entry.id;
        if id.is_empty() {
            return Err(format!("{PATH}.brokers[{index}].id: must be specified"));
        }
        if broker.brokers[..index].iter().any(|earlier| earlier.id == *id) {
            return Err(format!("{PATH}.brokers[{id}].id: duplicate broker id"));
        }
        SpiffeId::parse(id).map_err(|error| format!("{PATH}.brokers[{id}].id: {error}"))?;
        if !matches!(entry.scope.as_str(), "" | "agent_node" | "cluster") {
            let scope = quote(&entry.scope);
            return Err(format!(
                "{PATH}.brokers[{id}].pod_reference_scope: unsupported value {scope}; must be one of \
                 [agent_node, cluster]"
            ));
        }
    }
    Ok(())
}
