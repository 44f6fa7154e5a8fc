//! CredentialComposer. A method that the plugin does not have leaves everything as it is, and so does an answer
//! without attributes.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as ProtoValue};
use serde_json::{Map, Number, Value};
use spire_core::pki::{DistinguishedName, NameAttribute, PublicKey};
use spire_core::spiffe::SpiffeId;
use spire_ports::plugins::{
    CredentialComposer, Error, ErrorKind, JwtSvidAttributes, Result, X509CaAttributes, X509SvidAttributes,
};
use spire_wire::plugin::server::credentialcomposer::v1 as pb;
use spire_wire::plugin::server::credentialcomposer::v1::credential_composer_client::CredentialComposerClient;

use crate::connection::client;
use crate::supervise::Supervised;

/// Depth of claims, both ways; protobuf messages end at 100.
const CLAIMS_DEPTH_MAX: usize = 32;

pub(super) struct External(pub(super) Arc<Supervised>);

impl External {
    fn invalid(&self, what: &str, reason: &str) -> Error {
        self.0.error(ErrorKind::Internal, format!("plugin returned invalid {what} attributes: {reason}"))
    }

    fn x509_svid(
        &self,
        given: X509SvidAttributes,
        told: Result<Option<pb::X509svidAttributes>>,
    ) -> Result<X509SvidAttributes> {
        let Some(told) = unless_unimplemented(told)? else { return Ok(given) };
        let subject = told.subject.ok_or_else(|| self.invalid("X509SVID", "subject: cannot be empty"))?;
        Ok(X509SvidAttributes {
            subject: from_name(subject),
            dns_names: told.dns_sans,
            extra_extensions: from_extensions(told.extra_extensions),
        })
    }
}

/// What the plugin answered, if it has the method.
fn unless_unimplemented<T>(told: Result<Option<T>>) -> Result<Option<T>> {
    match told {
        Err(error) if error.kind == ErrorKind::Unimplemented => Ok(None),
        other => other,
    }
}

#[async_trait]
impl CredentialComposer for External {
    fn name(&self) -> &str {
        self.0.plugin().1
    }

    async fn server_x509_ca(&self, given: X509CaAttributes) -> Result<X509CaAttributes> {
        let attributes = Some(pb::X509caAttributes {
            subject: Some(to_name(&given.subject)),
            policy_identifiers: given.policy_identifiers.clone(),
            extra_extensions: to_extensions(&given.extra_extensions),
        });
        let mut client = client!(CredentialComposerClient, self.0.channel()?);
        let request = pb::ComposeServerX509caRequest { attributes };
        let told = self.0.call(self.0.limits.call, client.compose_server_x509ca(request)).await;
        let Some(told) = unless_unimplemented(told.map(|t| t.attributes))? else { return Ok(given) };
        let subject = told.subject.ok_or_else(|| self.invalid("X509CA", "subject: cannot be empty"))?;
        Ok(X509CaAttributes {
            subject: from_name(subject),
            policy_identifiers: told.policy_identifiers,
            extra_extensions: from_extensions(told.extra_extensions),
        })
    }

    async fn server_x509_svid(&self, given: X509SvidAttributes) -> Result<X509SvidAttributes> {
        let mut client = client!(CredentialComposerClient, self.0.channel()?);
        let request = pb::ComposeServerX509svidRequest { attributes: Some(to_x509_svid(&given)) };
        let told = self.0.call(self.0.limits.call, client.compose_server_x509svid(request)).await;
        self.x509_svid(given, told.map(|t| t.attributes))
    }

    async fn agent_x509_svid(
        &self,
        id: &SpiffeId,
        public_key: &PublicKey,
        given: X509SvidAttributes,
    ) -> Result<X509SvidAttributes> {
        let mut client = client!(CredentialComposerClient, self.0.channel()?);
        let request = pb::ComposeAgentX509svidRequest {
            attributes: Some(to_x509_svid(&given)),
            spiffe_id: id.to_string(),
            public_key: public_key.spki().clone(),
        };
        let told = self.0.call(self.0.limits.call, client.compose_agent_x509svid(request)).await;
        self.x509_svid(given, told.map(|t| t.attributes))
    }

    async fn workload_x509_svid(
        &self,
        id: &SpiffeId,
        public_key: &PublicKey,
        given: X509SvidAttributes,
    ) -> Result<X509SvidAttributes> {
        let mut client = client!(CredentialComposerClient, self.0.channel()?);
        let request = pb::ComposeWorkloadX509svidRequest {
            attributes: Some(to_x509_svid(&given)),
            spiffe_id: id.to_string(),
            public_key: public_key.spki().clone(),
        };
        let told = self.0.call(self.0.limits.call, client.compose_workload_x509svid(request)).await;
        self.x509_svid(given, told.map(|t| t.attributes))
    }

    async fn workload_jwt_svid(&self, id: &SpiffeId, given: JwtSvidAttributes) -> Result<JwtSvidAttributes> {
        let invalid = |reason: String| {
            self.0.error(ErrorKind::Internal, format!("invalid workload JWTSVID attributes: {reason}"))
        };
        if given.claims.is_empty() {
            return Err(invalid("invalid claims: cannot be empty".to_owned()));
        }
        let mut fields = BTreeMap::new();
        for (name, json) in &given.claims {
            let value = serde_json::from_str(json)
                .map_err(|error| invalid(format!("failed to encode claims: {error}")))?;
            fields.insert(name.clone(), to_value(value));
        }
        let attributes = Some(pb::JwtsvidAttributes { claims: Some(Struct { fields }) });
        let mut client = client!(CredentialComposerClient, self.0.channel()?);
        let request = pb::ComposeWorkloadJwtsvidRequest { attributes, spiffe_id: id.to_string() };
        let told = self.0.call(self.0.limits.call, client.compose_workload_jwtsvid(request)).await;
        let Some(told) = unless_unimplemented(told.map(|t| t.attributes))? else { return Ok(given) };
        let mut claims = BTreeMap::new();
        for (name, value) in told.claims.unwrap_or_default().fields {
            let value = from_value(value, CLAIMS_DEPTH_MAX).ok_or_else(|| {
                self.invalid("JWTSVID", &format!("claim {name:?} cannot be written as JSON"))
            })?;
            claims.insert(name, value.to_string());
        }
        Ok(JwtSvidAttributes { claims, expires_at: given.expires_at })
    }
}

fn to_x509_svid(given: &X509SvidAttributes) -> pb::X509svidAttributes {
    pb::X509svidAttributes {
        subject: Some(to_name(&given.subject)),
        dns_sans: given.dns_names.clone(),
        extra_extensions: to_extensions(&given.extra_extensions),
    }
}

fn to_extensions(given: &[(String, Vec<u8>, bool)]) -> Vec<pb::X509Extension> {
    let extension = |(oid, value, critical): &(String, Vec<u8>, bool)| pb::X509Extension {
        oid: oid.clone(),
        value: Bytes::copy_from_slice(value),
        critical: *critical,
    };
    given.iter().map(extension).collect()
}

fn from_extensions(told: Vec<pb::X509Extension>) -> Vec<(String, Vec<u8>, bool)> {
    told.into_iter().map(|e| (e.oid, e.value.to_vec(), e.critical)).collect()
}

fn to_name(name: &DistinguishedName) -> pb::DistinguishedName {
    let name = name.clone();
    pb::DistinguishedName {
        country: name.country,
        organization: name.organization,
        organizational_unit: name.organizational_unit,
        locality: name.locality,
        province: name.province,
        street_address: name.street_address,
        postal_code: name.postal_code,
        serial_number: name.serial_number,
        common_name: name.common_name,
        extra_names: name
            .extra_names
            .into_iter()
            .map(|e| pb::AttributeTypeAndValue { oid: e.oid, string_value: e.value })
            .collect(),
    }
}

fn from_name(name: pb::DistinguishedName) -> DistinguishedName {
    DistinguishedName {
        country: name.country,
        organization: name.organization,
        organizational_unit: name.organizational_unit,
        locality: name.locality,
        province: name.province,
        street_address: name.street_address,
        postal_code: name.postal_code,
        serial_number: name.serial_number,
        common_name: name.common_name,
        names: Vec::new(),
        extra_names: name
            .extra_names
            .into_iter()
            .map(|e| NameAttribute { oid: e.oid, value: e.string_value })
            .collect(),
    }
}

fn to_value(json: Value) -> ProtoValue {
    let kind = match json {
        Value::Null => Kind::NullValue(0),
        Value::Bool(yes) => Kind::BoolValue(yes),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(items) => {
            Kind::ListValue(ListValue { values: items.into_iter().map(to_value).collect() })
        }
        Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields.into_iter().map(|(name, value)| (name, to_value(value))).collect(),
        }),
    };
    ProtoValue { kind: Some(kind) }
}

/// The value as JSON. Numbers that are whole stay so, as in Go's encoding of a float64: dates are whole numbers.
fn from_value(value: ProtoValue, depth: usize) -> Option<Value> {
    let depth = depth.checked_sub(1)?;
    Some(match value.kind? {
        Kind::NullValue(_) => Value::Null,
        Kind::BoolValue(yes) => Value::Bool(yes),
        Kind::NumberValue(number) => Value::Number(
            whole(number).map_or_else(|| Number::from_f64(number), |whole| Some(Number::from(whole)))?,
        ),
        Kind::StringValue(text) => Value::String(text),
        Kind::ListValue(list) => Value::Array(
            list.values.into_iter().map(|value| from_value(value, depth)).collect::<Option<_>>()?,
        ),
        Kind::StructValue(fields) => {
            let fields = fields.fields.into_iter();
            Value::Object(
                fields
                    .map(|(name, value)| Some((name, from_value(value, depth)?)))
                    .collect::<Option<Map<_, _>>>()?,
            )
        }
    })
}

/// The number as an integer where it is one that a float holds exactly.
fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "within the range that was just checked")]
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Go's pkix.Name writes them: an extra name takes the place of the field of its type, and two of a type are two sets.
    #[test]
    fn extra_names_stay_extra() {
        let extra = |oid: &str, value: &str| pb::AttributeTypeAndValue {
            oid: oid.into(),
            string_value: value.into(),
        };
        let told = pb::DistinguishedName {
            country: vec!["US".to_owned()],
            organization: vec!["SPIRE".to_owned()],
            serial_number: "17".to_owned(),
            extra_names: vec![
                extra("2.5.4.10", "Acme"),
                extra("2.5.4.11", "a"),
                extra("2.5.4.11", "b"),
                extra("2.5.4.45", "x"),
                extra("2.5.4.3", "cn"),
            ],
            ..pb::DistinguishedName::default()
        };
        let name = from_name(told.clone());
        assert_eq!(name.to_string(), "CN=cn,2.5.4.45=#130178,OU=b,OU=a,O=Acme,SERIALNUMBER=17,C=US");
        let written = DistinguishedName::from_der(name.encode().expect("a name").as_der()).expect("a name");
        let values: Vec<_> = written.names.iter().map(|name| name.value.as_str()).collect();
        assert_eq!(values, ["US", "17", "Acme", "a", "b", "x", "cn"]);
        assert_eq!(to_name(&name), told);
    }

    #[test]
    fn claims_survive_the_round_trip() {
        for json in [
            "1700000000",
            "1.5",
            "-3",
            r#""x""#,
            "null",
            "true",
            r#"["a",1]"#,
            r#"{"a":{"b":[1,2,{"c":null}]}}"#,
            "9007199254740992",
        ] {
            let value = to_value(serde_json::from_str(json).expect("JSON"));
            assert_eq!(from_value(value, CLAIMS_DEPTH_MAX).expect("a value").to_string(), json);
        }
    }

    #[test]
    fn claims_that_are_no_json_are_refused() {
        let number = |number| ProtoValue { kind: Some(Kind::NumberValue(number)) };
        assert_eq!(from_value(number(f64::NAN), CLAIMS_DEPTH_MAX), None);
        assert_eq!(from_value(number(f64::INFINITY), CLAIMS_DEPTH_MAX), None);
        assert_eq!(from_value(ProtoValue { kind: None }, CLAIMS_DEPTH_MAX), None);
        let deep = (0..CLAIMS_DEPTH_MAX).fold(number(1.0), |inner, _| ProtoValue {
            kind: Some(Kind::ListValue(ListValue { values: vec![inner] })),
        });
        assert_eq!(from_value(deep, CLAIMS_DEPTH_MAX), None);
    }
}
