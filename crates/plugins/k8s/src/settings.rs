//! The settings of the `k8s` WorkloadAttestor, checked as the reference checks them
//! (pkg/agent/plugin/workloadattestor/k8s buildConfig): the first thing that is wrong is the answer.

use spire_compat::duration::GoDuration;
use spire_compat::hcl::{Body, DecodeError};
use spire_compat::quote::quote;
use spire_core::spiffe::SpiffeId;
use spire_ports::plugins::Result;
use spire_ports::plugins::catalog::Configuration;

/// What the attestor needs of its settings as long as it asks no kubelet.
#[derive(Debug)]
pub(crate) struct Settings {
    /// `use_new_container_locator`, which is true by default.
    pub(crate) use_new_locator: bool,
}

/// Settings as written, and the keys of each block that nobody knows.
#[derive(Default)]
struct Raw {
    read_only_port: i64,
    secure_port: i64,
    poll_retry_interval: String,
    reload_interval: String,
    use_new_locator: Option<bool>,
    disable_kubelet_client: bool,
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
    Ok(Settings { use_new_locator: raw.use_new_locator.unwrap_or(true) })
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
    data.take_int("max_poll_attempts")?;
    for key in ["disable_container_selectors", "verbose_container_locator_logs", "enable_namespace_labels"] {
        data.take_bool(key)?;
    }
    data.take_fragment("sigstore");

    let mut set = |key, is_set: bool| raw.kubelet.extend(is_set.then_some(key));
    set("kubelet_read_only_port", raw.read_only_port > 0);
    set("kubelet_secure_port", raw.secure_port > 0);
    for (key, is_string) in [
        ("kubelet_ca_path", true),
        ("skip_kubelet_verification", false),
        ("token_path", true),
        ("certificate_path", true),
        ("private_key_path", true),
        ("use_anonymous_authentication", false),
        ("node_name_env", true),
        ("node_name", true),
    ] {
        let is_set = if is_string {
            data.take_string(key)?.is_some_and(|text| !text.is_empty())
        } else {
            data.take_bool(key)?.unwrap_or_default()
        };
        set(key, is_set);
    }
    set("reload_interval", !raw.reload_interval.is_empty());

    let experimental = data.take_block("experimental")?;
    raw.unknown.push(unknown(data));
    if let Some(mut experimental) = experimental {
        let api_server = experimental.take_block("api_server")?;
        let broker = experimental.take_block("broker")?;
        raw.unknown.push(unknown(&experimental));
        if let Some(mut api_server) = api_server {
            let cache = api_server.take_block("cache")?;
            raw.unknown.push(unknown(&api_server));
            if let Some(mut cache) = cache {
                cache.take_bool("enabled")?;
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
