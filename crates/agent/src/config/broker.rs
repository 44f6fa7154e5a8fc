//! `experimental.broker`: the SPIFFE Broker API.

use std::collections::HashSet;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use spire_compat::config;
use spire_compat::quote::quote;
use spire_core::spiffe::SpiffeId;

use super::raw::{RawBroker, RawBrokerEntry};

/// The broker API's listeners and callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// The unix socket, absolute.
    pub socket_path: Option<PathBuf>,
    /// The TCP address.
    pub bind_address: Option<SocketAddr>,
    /// Who may call.
    pub brokers: Vec<Broker>,
}

/// A caller of the broker API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Its SPIFFE ID, of any trust domain.
    pub id: SpiffeId,
    /// What it may refer to workloads by.
    pub allowed_reference_types: Vec<ReferenceType>,
}

/// A kind of reference to a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferenceType {
    /// The protobuf type URL, or `*` for all.
    pub type_url: String,
    /// Whether it may come over TCP.
    pub allow_over_tcp: bool,
}

/// Turns the section into values; errors have the reference's texts.
pub(super) fn resolve(raw: &RawBroker, workload_socket: Option<&Path>) -> Result<BrokerConfig, String> {
    let socket = raw.socket_path.as_deref().unwrap_or_default();
    let address = raw.bind_address.as_deref().unwrap_or_default();
    if socket.is_empty() && address.is_empty() {
        return Err("experimental.broker requires socket_path, bind_address, or both".to_owned());
    }
    let socket_path = (!socket.is_empty()).then(|| config::absolute_path(socket));
    if socket_path.as_deref().is_some_and(|path| super::is_below(path, workload_socket)) {
        let text = "broker socket cannot be in the same directory or a subdirectory as that containing the \
                    Workload API socket";
        return Err(text.to_owned());
    }
    let bind_address = if address.is_empty() { None } else { Some(tcp_address(address)?) };
    let mut seen = HashSet::new();
    for (index, broker) in raw.brokers.iter().enumerate() {
        if broker.id.is_empty() {
            return Err(format!("experimental.broker.brokers[{index}].id: must be specified"));
        }
        if !seen.insert(&broker.id) {
            return Err(format!("experimental.broker.brokers[{}].id: duplicate broker id", broker.id));
        }
    }
    let brokers = raw.brokers.iter().map(broker).collect::<Result<_, _>>()?;
    Ok(BrokerConfig { socket_path, bind_address, brokers })
}

fn tcp_address(address: &str) -> Result<SocketAddr, String> {
    let fail =
        |cause: String| format!("invalid experimental.broker.bind_address {}: {cause}", quote(address));
    // A port alone, `:8443`, is every address.
    let whole = if address.starts_with(':') { format!("[::]{address}") } else { address.to_owned() };
    let found: Vec<SocketAddr> =
        whole.to_socket_addrs().map_err(|error| fail(format!("address {address}: {error}")))?.collect();
    let chosen = found.iter().find(|address| address.is_ipv4()).or(found.first());
    chosen.copied().ok_or_else(|| fail(format!("address {address}: no such host")))
}

fn broker(raw: &RawBrokerEntry) -> Result<Broker, String> {
    let section = format!("experimental.broker.brokers[{}]", raw.id);
    let id = SpiffeId::parse(&raw.id).map_err(|error| format!("{section}.id: {error}"))?;
    let types = &raw.allowed_reference_types;
    if types.is_empty() {
        return Err(format!("{section}.allowed_reference_types: must list at least one reference type URL"));
    }
    let mut allowed_reference_types = Vec::with_capacity(types.len());
    for (index, allowed) in types.iter().enumerate() {
        if allowed.type_url.is_empty() {
            return Err(format!("{section}.allowed_reference_types[{index}].type_url: must be specified"));
        }
        if allowed.type_url == "*" && types.len() != 1 {
            return Err(format!(
                "{section}.allowed_reference_types: wildcard \"*\" must be the only allowed reference type"
            ));
        }
        let (type_url, allow_over_tcp) = (allowed.type_url.clone(), allowed.allow_over_tcp);
        allowed_reference_types.push(ReferenceType { type_url, allow_over_tcp });
    }
    Ok(Broker { id, allowed_reference_types })
}
