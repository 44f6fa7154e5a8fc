//! What of a discovery request matters to us.

use prost_types::value::Kind;
use spire_wire::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use spire_wire::envoy::service::discovery::v3::DiscoveryRequest;
use tonic::Status;

use super::secrets::Validator;
use crate::runtime::SdsOptions;

/// Octets of a request that are kept for as long as its stream is open: names and type. A SPIFFE ID has at most 2 KiB.
const KEPT_MAX: usize = 64 << 10;

/// A request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// What is asked for; nothing means everything.
    pub(super) names: Vec<String>,
    /// To be repeated in the answer.
    pub(super) type_url: String,
    /// The version that Envoy uses.
    pub(super) version: String,
    /// Of the answer that this answers.
    pub(super) nonce: String,
    /// Why Envoy refuses that answer.
    pub(super) error: Option<String>,
    /// Who asks, where the request says.
    pub(super) node: Option<EnvoyNode>,
}

/// What matters of the Envoy that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EnvoyNode {
    /// What its metadata says of the SPIFFE validator.
    disables_validator: Option<bool>,
    /// Whether its version has the SPIFFE validator.
    has_validator: bool,
}

/// An Envoy that says nothing is a new one.
impl Default for EnvoyNode {
    fn default() -> Self {
        Self { disables_validator: None, has_validator: true }
    }
}

impl Asked {
    /// # Errors
    /// `InvalidArgument` for more names than a stream may hold.
    pub(super) fn new(request: DiscoveryRequest) -> Result<Self, Status> {
        let kept = request.resource_names.iter().map(|name| name.len() + size_of::<String>()).sum::<usize>();
        if kept + request.type_url.len() > KEPT_MAX {
            return Err(Status::invalid_argument("too many resource names"));
        }
        Ok(Self {
            names: request.resource_names,
            type_url: request.type_url,
            version: request.version_info,
            nonce: request.response_nonce,
            error: request.error_detail.map(|status| status.message),
            node: request.node.as_ref().map(EnvoyNode::new),
        })
    }

    /// The names as Go prints a list.
    pub(super) fn names_text(&self) -> String {
        format!("[{}]", self.names.join(" "))
    }
}

impl EnvoyNode {
    fn new(node: &Node) -> Self {
        let metadata = node.metadata.as_ref();
        let value = metadata.and_then(|metadata| metadata.fields.get("disable_spiffe_cert_validation"));
        // What is neither is as if it were not there.
        let disables_validator = match value.and_then(|value| value.kind.as_ref()) {
            Some(Kind::BoolValue(value)) => Some(*value),
            Some(Kind::StringValue(text)) => parse_bool(text),
            _ => None,
        };
        let has_validator = match &node.user_agent_version_type {
            Some(UserAgentVersionType::UserAgentBuildVersion(build)) => {
                let version = build.version.unwrap_or_default();
                (version.major_number, version.minor_number) > (1, 17)
            }
            _ => true,
        };
        Self { disables_validator, has_validator }
    }

    /// One before 1.18.
    #[cfg(test)]
    pub(super) fn without_validator() -> Self {
        Self { disables_validator: None, has_validator: false }
    }

    /// How this Envoy is to verify peers.
    pub(super) fn validator(self, options: &SdsOptions) -> Validator {
        let disabled = self.disables_validator.unwrap_or(options.disable_spiffe_cert_validation);
        if !disabled && self.has_validator { Validator::Spiffe } else { Validator::TrustedCa }
    }
}

/// Imitates Go's `strconv.ParseBool`.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use prost_types::{Struct, Value};
    use spire_wire::envoy::config::core::v3::BuildVersion;
    use spire_wire::envoy::r#type::v3::SemanticVersion;

    use super::*;

    fn node(value: Option<Kind>, version: Option<(u32, u32)>) -> EnvoyNode {
        let metadata = value.map(|kind| Struct {
            fields: [("disable_spiffe_cert_validation".to_owned(), Value { kind: Some(kind) })].into(),
        });
        let build = version.map(|(major_number, minor_number)| {
            UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
                version: Some(SemanticVersion { major_number, minor_number, patch: 0 }),
                metadata: None,
            })
        });
        EnvoyNode::new(&Node { metadata, user_agent_version_type: build, ..Node::default() })
    }

    #[test]
    fn node_metadata_and_version_choose_the_validator() {
        let text = |text: &str| Some(Kind::StringValue(text.to_owned()));
        let on = SdsOptions::default();
        let off = SdsOptions { disable_spiffe_cert_validation: true, ..SdsOptions::default() };
        let (spiffe, ca) = (Validator::Spiffe, Validator::TrustedCa);
        for (value, version, with_on, with_off) in [
            (None, None, spiffe, ca),
            (None, Some((1, 17)), ca, ca),
            (None, Some((1, 18)), spiffe, ca),
            (None, Some((2, 0)), spiffe, ca),
            (None, Some((0, 99)), ca, ca),
            (Some(Kind::BoolValue(true)), Some((1, 40)), ca, ca),
            (Some(Kind::BoolValue(false)), Some((1, 40)), spiffe, spiffe),
            (Some(Kind::BoolValue(false)), Some((1, 17)), ca, ca),
            (text("T"), None, ca, ca),
            (text("0"), None, spiffe, spiffe),
            (text("yes"), None, spiffe, ca),
            (Some(Kind::NumberValue(1.0)), None, spiffe, ca),
        ] {
            let node = node(value.clone(), version);
            assert_eq!(node.validator(&on), with_on, "{value:?} {version:?}");
            assert_eq!(node.validator(&off), with_off, "{value:?} {version:?}");
        }
        assert_eq!(EnvoyNode::default().validator(&on), spiffe);
    }

    #[test]
    fn a_stream_holds_no_endless_names() {
        let request = |count| DiscoveryRequest {
            resource_names: vec!["x".repeat(100); count],
            ..DiscoveryRequest::default()
        };
        assert_eq!(Asked::new(request(500)).unwrap().names.len(), 500);
        assert_eq!(Asked::new(request(1000)).unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
