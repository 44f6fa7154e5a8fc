//! `Debug` of messages that hold a secret: a log line or a failed assertion must never print a key, a
//! token or an attestation payload (a join token is one). The fields that name the identity stay.

use std::fmt;

use crate::api::agent::delegatedidentity::v1 as delegated;
use crate::api::server::agent::v1 as agent;
use crate::api::types;
use crate::{broker, plugin, stored, workload};

/// Stands where a secret would be; an empty field shows as empty, which helps when debugging.
struct Redacted(usize);

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { f.write_str("empty") } else { write!(f, "redacted ({} bytes)", self.0) }
    }
}

/// Implements `Debug` with the fields before the bar as they are and those after it redacted.
macro_rules! redact {
    ($($message:ty : $name:literal { $($shown:ident),* | $($secret:ident),+ })*) => {$(
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct($name)
                    $(.field(stringify!($shown), &self.$shown))*
                    $(.field(stringify!($secret), &Redacted(self.$secret.len())))+
                    .finish()
            }
        }
    )*};
}

redact! {
    workload::X509svid: "X509svid" { spiffe_id, x509_svid, bundle, hint | x509_svid_key }
    workload::Jwtsvid: "Jwtsvid" { spiffe_id, hint | svid }
    workload::Witsvid: "Witsvid" { spiffe_id, hint | wit_svid, wit_svid_key }
    workload::ValidateJwtsvidRequest: "ValidateJwtsvidRequest" { audience | svid }
    broker::X509svid: "X509svid" { spiffe_id, x509_svid, bundle, hint | x509_svid_key }
    broker::Jwtsvid: "Jwtsvid" { spiffe_id, hint | svid }
    types::AttestationData: "AttestationData" { r#type | payload }
    types::Jwtsvid: "Jwtsvid" { id, expires_at, issued_at, hint | token }
    types::JoinToken: "JoinToken" { expires_at | value }
    types::Witsvid: "Witsvid" { id, expires_at, issued_at, hint | token }
    delegated::X509svidWithKey: "X509svidWithKey" { x509_svid | x509_svid_key }
    agent::CreateJoinTokenRequest: "CreateJoinTokenRequest" { ttl, agent_id | token }
    stored::common::AttestationData: "AttestationData" { r#type | data }
    plugin::host::identityprovider::X509Identity: "X509Identity" { cert_chain | private_key }
    plugin::agent::svidstore::v1::X509svid: "X509svid" { spiffe_id, expires_at | private_key }
    plugin::service::config::ConfigureRequest: "ConfigureRequest" { core_configuration | hcl_configuration }
    plugin::service::config::ValidateRequest: "ValidateRequest" { core_configuration | hcl_configuration }
}

/// Implements `Debug` of a message whose one field is a proof: nothing of it is shown.
macro_rules! redact_whole {
    ($($message:ty : $name:literal)*) => {$(
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct($name).finish_non_exhaustive()
            }
        }
    )*};
}

redact_whole! {
    crate::envoy::config::core::v3::DataSource: "DataSource"
    plugin::server::nodeattestor::v1::AttestRequest: "AttestRequest"
    plugin::agent::nodeattestor::v1::PayloadOrChallengeResponse: "PayloadOrChallengeResponse"
}
