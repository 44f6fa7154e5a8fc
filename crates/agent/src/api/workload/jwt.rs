//! JWT-SVIDs for workloads: fetching and validating.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::Value as Json;
use spire_core::model::Entry;
use spire_core::pki::PublicKey;
use spire_core::pki::jwt::{JwtError, KeyNotFound, VerifiedJwt, verify_svid};
use spire_core::spiffe::SpiffeId;
use spire_core::svids::{View, first_of_each_hint};
use spire_net::uds::PeerInfo;
use spire_wire::workload::{Jwtsvid, JwtsvidResponse, ValidateJwtsvidResponse};
use tonic::Status;
use tonic::body::Body;

use super::super::encode::visible;
use super::super::grpc::Framed;
use super::calls::seconds_left;
use super::{Caller, FetchRequest, Shared, ValidateRequest, stopping};
use crate::runtime::Event;

/// JWT-SVIDs that one call asks the server for at once.
const CONCURRENT: usize = 10;

/// Claims of any token that are always returned (pkg/agent/endpoints/workload: isClaimAllowed).
const STANDARD_CLAIMS: [&str; 3] = ["sub", "exp", "aud"];

impl Shared {
    pub(super) async fn fetch_jwt_svid(
        &self,
        caller: Caller,
        peer: &PeerInfo,
        body: Body,
    ) -> Result<Framed, Status> {
        let request: FetchRequest = self.read(caller, body).await?;
        if request.audience.is_empty() {
            caller.error(None, "Missing required audience parameter");
            return Err(Status::invalid_argument("audience must be specified"));
        }
        let wanted = match request.spiffe_id.as_str() {
            "" => None,
            id => Some(SpiffeId::parse(id).map_err(|error| {
                caller.error(Some(&error), "Invalid requested SPIFFE ID");
                Status::invalid_argument(format!("invalid requested SPIFFE ID: {error}"))
            })?),
        };
        let selectors = self.attest(caller, peer).await?;
        let served = self.core.identities().look(&selectors).ok_or_else(stopping)?;
        let all = served.view.matches.iter().map(|m| Arc::clone(&m.entry)).collect();
        let (entries, dropped) = first_of_each_hint(all, |entry: &Arc<Entry>| entry);
        for (id, hint) in dropped {
            tracing::warn!(subsystem_name = "endpoints", entry_id = %id, hint = &*hint, "Ignoring entry with duplicate hint");
        }
        let entries: Vec<Arc<Entry>> =
            entries.into_iter().filter(|e| wanted.as_ref().is_none_or(|id| *id == e.spiffe_id)).collect();
        if entries.is_empty() {
            self.log_no_identity(caller, &selectors);
            return Err(self.no_identity(&selectors));
        }
        self.core.emit(|| Event::WorkloadAttested {
            pid: caller.pid,
            identities: entries.iter().map(|e| e.spiffe_id.clone()).collect(),
        });
        let fetches = stream::iter(entries).map(|entry| self.one_jwt_svid(caller, entry, &request.audience));
        let svids: Vec<Jwtsvid> = fetches.buffered(CONCURRENT).try_collect().await?;
        Ok(Framed::new(&JwtsvidResponse { svids }))
    }

    async fn one_jwt_svid(
        &self,
        caller: Caller,
        entry: Arc<Entry>,
        audience: &[String],
    ) -> Result<Jwtsvid, Status> {
        let svid = self.core.jwt_svid(&entry, audience).await.map_err(|error| {
            caller.error(Some(&error), "Could not fetch JWT-SVID");
            Status::unavailable(format!("could not fetch JWT-SVID: {error}"))
        })?;
        tracing::debug!(
            subsystem_name = "endpoints", service = "WorkloadAPI", method = caller.rpc.name(), pid = caller.pid,
            registered = true, spiffe_id = %entry.spiffe_id,
            ttl = seconds_left(svid.expires_at, self.core.clock().now()), "Fetched JWT SVID"
        );
        Ok(Jwtsvid {
            spiffe_id: entry.spiffe_id.as_str().to_owned(),
            svid: svid.token.to_string(),
            hint: entry.hint.to_string(),
        })
    }

    pub(super) async fn validate_jwt_svid(
        &self,
        caller: Caller,
        peer: &PeerInfo,
        body: Body,
    ) -> Result<Framed, Status> {
        let request: ValidateRequest = self.read(caller, body).await?;
        for (value, name) in [(&request.audience, "audience"), (&request.svid, "svid")] {
            if value.is_empty() {
                caller.error(None, &format!("Missing required {name} parameter"));
                return Err(Status::invalid_argument(format!("{name} must be specified")));
            }
        }
        let selectors = self.attest(caller, peer).await?;
        let served = self.core.identities().look(&selectors).ok_or_else(stopping)?;
        let now = self.core.clock().now();
        let audience = [request.audience];
        let find_key = |domain: &_, kid: &str| find_key(&served.view, domain, kid);
        let verified = verify_svid(&request.svid, &audience, now, find_key).map_err(|error: JwtError| {
            tracing::warn!(
                subsystem_name = "endpoints", service = "WorkloadAPI", method = caller.rpc.name(),
                pid = caller.pid, audience = audience[0], error = %error, "Failed to validate JWT"
            );
            Status::invalid_argument(error.to_string())
        })?;
        tracing::debug!(
            subsystem_name = "endpoints", service = "WorkloadAPI", method = caller.rpc.name(), pid = caller.pid,
            spiffe_id = %verified.id(), "Successfully validated JWT"
        );
        Ok(Framed::new(&ValidateJwtsvidResponse {
            spiffe_id: verified.id().as_str().to_owned(),
            claims: Some(self.claims(&verified)),
        }))
    }

    /// The claims that the caller may see: all of one's own trust domain, of others the standard ones and those
    /// that are allowed. The audience is always a list.
    fn claims(&self, verified: &VerifiedJwt) -> Struct {
        let options = self.core.options();
        let own = verified.id().is_member_of(&options.trust_domain);
        let allowed = |claim: &str| {
            own || STANDARD_CLAIMS.contains(&claim)
                || options.allowed_foreign_jwt_claims.iter().any(|name| name == claim)
        };
        let fields: BTreeMap<String, Value> = verified
            .claims()
            .iter()
            .filter(|(claim, _)| allowed(claim))
            .map(|(claim, value)| {
                let value = match value {
                    Json::String(_) if claim == "aud" => list(std::slice::from_ref(value)),
                    value => protobuf(value),
                };
                (claim.clone(), value)
            })
            .collect();
        Struct { fields }
    }
}

fn find_key(
    view: &View,
    domain: &spire_core::spiffe::TrustDomain,
    kid: &str,
) -> Result<PublicKey, KeyNotFound> {
    let bundle = visible(view).find(|b| b.trust_domain == *domain).ok_or(KeyNotFound::TrustDomain)?;
    let authority = bundle.jwt_authority(kid).ok_or(KeyNotFound::Key)?;
    PublicKey::from_spki(authority.public_key.clone()).map_err(|_| KeyNotFound::Key)
}

fn list(items: &[Json]) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values: items.iter().map(protobuf).collect() })) }
}

/// JSON as a protobuf value. The parser bounds how deep it nests.
fn protobuf(json: &Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(items) => return list(items),
        Json::Object(members) => Kind::StructValue(Struct {
            fields: members.iter().map(|(name, value)| (name.clone(), protobuf(value))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}
