//! Which broker may refer to workloads by what (pkg/agent/broker/api: ReferenceTypePolicy).

use std::collections::HashMap;

use spire_compat::quote::quote;
use spire_core::spiffe::SpiffeId;
use tonic::Status;

use crate::config::{BrokerConfig, ReferenceType};

/// The type that stands for all.
const ANY: &str = "*";

/// The allowed references of each broker.
pub(super) struct Policy(HashMap<SpiffeId, Vec<ReferenceType>>);

impl Policy {
    pub(super) fn new(config: &BrokerConfig) -> Self {
        let allowed =
            config.brokers.iter().map(|broker| (broker.id.clone(), broker.allowed_reference_types.clone()));
        Self(allowed.collect())
    }

    /// Whether the broker may refer by this type on this kind of connection.
    ///
    /// # Errors
    /// The status with the reference's text.
    pub(super) fn check(&self, broker: &SpiffeId, type_url: &str, is_tcp: bool) -> Result<(), Status> {
        if type_url.is_empty() {
            return Err(Status::invalid_argument("workload reference must be provided"));
        }
        let (broker_text, type_text) = (quote(broker.as_str()), quote(type_url));
        let types = self.0.get(broker).map(Vec::as_slice).unwrap_or_default();
        let allowed = types.iter().find(|allowed| allowed.type_url == ANY || allowed.type_url == type_url);
        match allowed {
            None => Err(Status::permission_denied(format!(
                "broker {broker_text} is not allowed to use reference type {type_text}"
            ))),
            Some(allowed) if is_tcp && !allowed.allow_over_tcp => Err(Status::permission_denied(format!(
                "reference type {type_text} is not allowed over TCP for broker {broker_text}"
            ))),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::config::Broker;

    fn broker(name: &str, types: &[(&str, bool)]) -> Broker {
        let allowed_reference_types = types
            .iter()
            .map(|(url, tcp)| ReferenceType { type_url: (*url).to_owned(), allow_over_tcp: *tcp })
            .collect();
        Broker { id: SpiffeId::parse(name).unwrap(), allowed_reference_types }
    }

    #[test]
    fn types_and_tcp_are_allowed_one_by_one() {
        let brokers = vec![
            broker("spiffe://a/one", &[("t/pid", false), ("t/pod", true)]),
            broker("spiffe://a/any", &[("*", false)]),
            broker("spiffe://b/far", &[("*", true)]),
        ];
        let policy = Policy::new(&BrokerConfig { socket_path: None, bind_address: None, brokers });
        let check = |id: &str, url: &str, tcp| {
            let answer = policy.check(&SpiffeId::parse(id).unwrap(), url, tcp);
            answer.map_err(|status| (status.code(), status.message().to_owned()))
        };
        let denied = |text: &str| Err((Code::PermissionDenied, text.to_owned()));
        assert_eq!(check("spiffe://a/one", "t/pid", false), Ok(()));
        assert_eq!(check("spiffe://a/one", "t/pod", true), Ok(()));
        assert_eq!(
            check("spiffe://a/one", "t/pid", true),
            denied("reference type \"t/pid\" is not allowed over TCP for broker \"spiffe://a/one\"")
        );
        assert_eq!(
            check("spiffe://a/one", "t/x", false),
            denied("broker \"spiffe://a/one\" is not allowed to use reference type \"t/x\"")
        );
        assert_eq!(check("spiffe://a/any", "t/x", false), Ok(()));
        assert!(check("spiffe://a/any", "t/x", true).is_err());
        assert_eq!(check("spiffe://b/far", "t/x", true), Ok(()));
        assert!(check("spiffe://a/other", "t/x", false).is_err(), "nobody else");
        assert_eq!(
            check("spiffe://b/far", "", true),
            Err((Code::InvalidArgument, "workload reference must be provided".to_owned()))
        );
    }
}
