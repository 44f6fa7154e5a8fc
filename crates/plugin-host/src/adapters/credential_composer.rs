//! CredentialComposer. A method that the plugin does not have leaves everything as it is, and so does an answer
//! without attributes.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as ProtoValue};
use serde_json::{Map, Number, Value};
use spire_core::pki::PublicKey;
use spire_core::spiffe::SpiffeId;
use spire_ports::plugins::{
    CredentialComposer, Error, ErrorKind, JwtSvidAttributes, NameAttribute, Result, X509CaAttributes,
    X509SvidAttributes,
};
use spire_wire::plugin::server::credentialcomposer::v1 as pb;
use spire_wire::plugin::server::credentialcomposer::v1::credential_composer_client::CredentialComposerClient;

use crate::connection::client;
use crate::supervise::Supervised;

/// Depth of claims, both ways; protobuf messages end at 100.
const CLAIMS_DEPTH_MAX: usize = 32;

/// The attribute types that have a field of their own in a name.
mod oid {
    pub(super) const COMMON_NAME: &str = "2.5.4.3";
    pub(super) const SERIAL_NUMBER: &str = "2.5.4.5";
    pub(super) const COUNTRY: &str = "2.5.4.6";
    pub(super) const LOCALITY: &str = "2.5.4.7";
    pub(super) const PROVINCE: &str = "2.5.4.8";
    pub(super) const STREET_ADDRESS: &str = "2.5.4.9";
    pub(super) const ORGANIZATION: &str = "2.5.4.10";
    pub(super) const ORGANIZATIONAL_UNIT: &str = "2.5.4.11";
    pub(super) const POSTAL_CODE: &str = "2.5.4.17";
}

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

fn to_name(attributes: &[NameAttribute]) -> pb::DistinguishedName {
    let mut name = pb::DistinguishedName::default();
    for NameAttribute { oid, value } in attributes {
        let value = value.clone();
        match oid.as_str() {
            oid::COUNTRY => name.country.push(value),
            oid::ORGANIZATION => name.organization.push(value),
            oid::ORGANIZATIONAL_UNIT => name.organizational_unit.push(value),
            oid::LOCALITY => name.locality.push(value),
            oid::PROVINCE => name.province.push(value),
            oid::STREET_ADDRESS => name.street_address.push(value),
            oid::POSTAL_CODE => name.postal_code.push(value),
            oid::SERIAL_NUMBER if name.serial_number.is_empty() => name.serial_number = value,
            oid::COMMON_NAME if name.common_name.is_empty() => name.common_name = value,
            _ => name.extra_names.push(pb::AttributeTypeAndValue { oid: oid.clone(), string_value: value }),
        }
    }
    name
}

/// The attributes in the order in which Go encodes a name (crypto/x509/pkix: ToRDNSequence).
fn from_name(name: pb::DistinguishedName) -> Vec<NameAttribute> {
    let one = |text: String| if text.is_empty() { Vec::new() } else { vec![text] };
    let fields = [
        (oid::COUNTRY, name.country),
        (oid::ORGANIZATION, name.organization),
        (oid::ORGANIZATIONAL_UNIT, name.organizational_unit),
        (oid::LOCALITY, name.locality),
        (oid::PROVINCE, name.province),
        (oid::STREET_ADDRESS, name.street_address),
        (oid::POSTAL_CODE, name.postal_code),
        (oid::COMMON_NAME, one(name.common_name)),
        (oid::SERIAL_NUMBER, one(name.serial_number)),
    ];
    let known = fields.into_iter().flat_map(|(oid, values)| {
        values.into_iter().map(|value| NameAttribute { oid: oid.to_owned(), value })
    });
    let extra = name.extra_names.into_iter().map(|e| NameAttribute { oid: e.oid, value: e.string_value });
    known.chain(extra).collect()
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

    #[test]
    fn names_survive_the_round_trip() {
        let attribute =
            |oid: &str, value: &str| NameAttribute { oid: oid.to_owned(), value: value.to_owned() };
        let name = vec![
            attribute(oid::COUNTRY, "US"),
            attribute(oid::ORGANIZATION, "SPIRE"),
            attribute(oid::ORGANIZATION, "Second"),
            attribute(oid::COMMON_NAME, "cn"),
            attribute(oid::SERIAL_NUMBER, "17"),
            attribute("2.5.4.45", "ab"),
            attribute(oid::COMMON_NAME, "another"),
        ];
        assert_eq!(from_name(to_name(&name)), name);
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
