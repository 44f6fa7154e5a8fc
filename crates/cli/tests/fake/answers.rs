//! What the server answers. A request that names `missing` is not found.

use bytes::Bytes;
use prost::Message;
use spire_core::pki::{LocalKey, pem};
use spire_wire::api::agent::debug::v1 as agent_debug;
use spire_wire::api::server::agent::v1 as agents;
use spire_wire::api::server::bundle::v1 as bundles;
use spire_wire::api::server::debug::v1 as server_debug;
use spire_wire::api::server::entry::v1 as entries;
use spire_wire::api::server::localauthority::v1 as authorities;
use spire_wire::api::server::svid::v1 as svids;
use spire_wire::api::server::trustdomain::v1 as trust_domains;
use spire_wire::api::types;
use spire_wire::api::types::federation_relationship::BundleEndpointProfile;
use spire_wire::{health, workload};

const CA: &[u8] = include_bytes!("../../testdata/files/ca.pem");
const INTERMEDIATE: &[u8] = include_bytes!("../../testdata/files/int.pem");
const LEAF: &[u8] = include_bytes!("../../testdata/files/leaf.pem");
const KEY: &[u8] = include_bytes!("../../testdata/files/leaf.key");
const JWT_KEY: &[u8] = include_bytes!("../../testdata/files/jwt.pub");

/// `{"alg":"ES256","kid":"k1","typ":"JWT"}` and `{"aud":["a"],"exp":2000000000,"iat":1700000000,"sub":"spiffe://example.org/w"}`
/// with a signature of zeros.
const TOKEN: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsxIiwidHlwIjoiSldUIn0.eyJhdWQiOlsiYSJdLCJleHAiOjIwMDAwMDAwMDAsImlhdCI6MTcwMDAwMDAwMCwic3ViIjoic3BpZmZlOi8vZXhhbXBsZS5vcmcvdyJ9.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

const EXPIRY: i64 = 2_000_000_000;

fn der(pem_text: &[u8]) -> Bytes {
    pem::blocks(pem_text).next().expect("a PEM file of ours").contents.into()
}

fn id(trust_domain: &str, path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: trust_domain.into(), path: path.into() })
}

fn selector(kind: &str, value: &str) -> types::Selector {
    types::Selector { r#type: kind.into(), value: value.into() }
}

fn ok() -> Option<types::Status> {
    Some(types::Status { code: 0, message: "OK".into() })
}

fn plain_entry() -> types::Entry {
    types::Entry {
        id: "e-1".into(),
        spiffe_id: id("example.org", "/b<&>"),
        parent_id: id("example.org", "/agent"),
        selectors: vec![selector("unix", "uid:1000"), selector("k8s", "ns:a")],
        created_at: 1_700_000_000,
        ..Default::default()
    }
}

fn full_entry() -> types::Entry {
    types::Entry {
        id: "e-2".into(),
        spiffe_id: id("example.org", "/a"),
        parent_id: id("example.org", "/spire/server"),
        selectors: vec![selector("unix", "uid:0")],
        x509_svid_ttl: 30,
        jwt_svid_ttl: 60,
        federates_with: vec!["other.org".into(), "third.org".into()],
        admin: true,
        downstream: true,
        expires_at: 1_900_000_000,
        dns_names: vec!["a.example".into(), "b.example".into()],
        revision_number: 7,
        store_svid: true,
        hint: "first".into(),
        created_at: 1_700_000_001,
        additional_attributes: Some(types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: true,
            jwt_svid_include_jti: true,
        }),
    }
}

fn agent(banned: bool) -> types::Agent {
    types::Agent {
        id: id("example.org", if banned { "/spire/agent/x509pop/2" } else { "/spire/agent/join_token/1" }),
        attestation_type: if banned { "x509pop".into() } else { "join_token".into() },
        x509svid_serial_number: if banned { String::new() } else { "1234567890".into() },
        x509svid_expires_at: if banned { 1_600_000_000 } else { EXPIRY },
        selectors: vec![selector("x509pop", "cn:a"), selector("x509pop", "ca:b")],
        banned,
        can_reattest: banned,
        agent_version: if banned { "1.15.3".into() } else { String::new() },
    }
}

fn bundle(trust_domain: &str) -> types::Bundle {
    let key =
        types::JwtKey { public_key: der(JWT_KEY), key_id: "k1".into(), expires_at: EXPIRY, tainted: false };
    types::Bundle {
        trust_domain: trust_domain.into(),
        x509_authorities: vec![types::X509Certificate { asn1: der(CA), tainted: false }],
        jwt_authorities: vec![key],
        refresh_hint: 300,
        sequence_number: 5,
        wit_authorities: Vec::new(),
    }
}

fn relationship(spiffe: bool) -> types::FederationRelationship {
    types::FederationRelationship {
        trust_domain: if spiffe { "b.org".into() } else { "a.org".into() },
        bundle_endpoint_url: "https://a.org/bundle".into(),
        bundle_endpoint_profile: Some(if spiffe {
            let endpoint_spiffe_id = "spiffe://b.org/endpoint".into();
            BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile { endpoint_spiffe_id })
        } else {
            BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {})
        }),
        trust_domain_bundle: spiffe.then(|| bundle("b.org")),
    }
}

fn state(name: &str) -> Option<authorities::AuthorityState> {
    Some(authorities::AuthorityState {
        authority_id: name.into(),
        expires_at: EXPIRY,
        upstream_authority_subject_key_id: if name == "upstream" { "abcd".into() } else { String::new() },
    })
}

fn logger() -> types::Logger {
    types::Logger { current_level: types::LogLevel::Warn as i32, launch_level: types::LogLevel::Info as i32 }
}

/// Statuses of a batch: items that name `bad` fail.
fn status_of(text: &str) -> Option<types::Status> {
    if text.contains("bad") {
        Some(types::Status { code: 6, message: "it is \"there\"".into() })
    } else {
        ok()
    }
}

/// The answer to a call, or its status.
pub(super) fn answer(path: &str, request: &Bytes) -> Result<Vec<u8>, (i32, String)> {
    if request.windows(7).any(|w| w == b"missing") {
        return Err((5, "it is missing".into()));
    }
    if request.windows(7).any(|w| w == b"invalid") {
        return Err((3, "it is invalid".into()));
    }
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let found = match service {
        "spire.api.server.entry.v1.Entry" => entry_answer(method, request),
        "spire.api.server.agent.v1.Agent" => agent_answer(method),
        "spire.api.server.bundle.v1.Bundle" => bundle_answer(method, request),
        "spire.api.server.svid.v1.SVID" => svid_answer(method),
        "spire.api.server.trustdomain.v1.TrustDomain" => federation_answer(method, request),
        "spire.api.server.localauthority.v1.LocalAuthority" => authority_answer(method),
        "spire.api.server.logger.v1.Logger" | "spire.api.agent.logger.v1.Logger" => {
            Some(logger().encode_to_vec())
        }
        "spire.api.server.debug.v1.Debug" => Some(server_info().encode_to_vec()),
        "spire.agent.debug.v1.Debug" => Some(agent_info().encode_to_vec()),
        "grpc.health.v1.Health" => Some(health::HealthCheckResponse { status: 1 }.encode_to_vec()),
        "SpiffeWorkloadAPI" => workload_answer(method),
        _ => None,
    };
    found.ok_or_else(|| (12, format!("unknown method {method} for service {service}")))
}

fn entry_answer(method: &str, request: &Bytes) -> Option<Vec<u8>> {
    Some(match method {
        "ListEntries" => {
            // Two pages, to see that the second is asked for.
            let second = entries::ListEntriesRequest::decode(request.clone()).ok()?.page_token == "more";
            let (entry, next) = if second { (full_entry(), "") } else { (plain_entry(), "more") };
            entries::ListEntriesResponse { entries: vec![entry], next_page_token: next.into() }
                .encode_to_vec()
        }
        "CountEntries" => entries::CountEntriesResponse { count: 1 }.encode_to_vec(),
        "GetEntry" => full_entry().encode_to_vec(),
        "BatchCreateEntry" => {
            let asked = entries::BatchCreateEntryRequest::decode(request.clone()).ok()?.entries;
            let result = |asked: types::Entry| {
                let status = status_of(&asked.hint);
                let entry = status
                    .as_ref()
                    .filter(|s| s.code == 0)
                    .map(|_| types::Entry { id: "new".into(), ..asked });
                entries::batch_create_entry_response::Result { status, entry }
            };
            let results = asked.into_iter().map(result).collect();
            entries::BatchCreateEntryResponse { results }.encode_to_vec()
        }
        "BatchUpdateEntry" => {
            let asked = entries::BatchUpdateEntryRequest::decode(request.clone()).ok()?.entries;
            let result = |asked: types::Entry| {
                let status = status_of(&asked.hint);
                let entry = status
                    .as_ref()
                    .filter(|s| s.code == 0)
                    .map(|_| types::Entry { revision_number: 1, ..asked });
                entries::batch_update_entry_response::Result { status, entry }
            };
            let results = asked.into_iter().map(result).collect();
            entries::BatchUpdateEntryResponse { results }.encode_to_vec()
        }
        "BatchDeleteEntry" => {
            let ids = entries::BatchDeleteEntryRequest::decode(request.clone()).ok()?.ids;
            let result =
                |id: String| entries::batch_delete_entry_response::Result { status: status_of(&id), id };
            let results = ids.into_iter().map(result).collect();
            entries::BatchDeleteEntryResponse { results }.encode_to_vec()
        }
        _ => return None,
    })
}

fn agent_answer(method: &str) -> Option<Vec<u8>> {
    Some(match method {
        "ListAgents" => {
            let agents = vec![agent(false), agent(true)];
            agents::ListAgentsResponse { agents, next_page_token: String::new() }.encode_to_vec()
        }
        "CountAgents" => agents::CountAgentsResponse { count: 2 }.encode_to_vec(),
        "GetAgent" => agent(true).encode_to_vec(),
        "DeleteAgent" | "BanAgent" => Vec::new(),
        "CreateJoinToken" => {
            types::JoinToken { value: "t-o-k-e-n".into(), expires_at: EXPIRY }.encode_to_vec()
        }
        _ => return None,
    })
}

fn bundle_answer(method: &str, request: &Bytes) -> Option<Vec<u8>> {
    Some(match method {
        "GetBundle" => bundle("example.org").encode_to_vec(),
        "GetFederatedBundle" => bundle("other.org").encode_to_vec(),
        "CountBundles" => bundles::CountBundlesResponse { count: 1 }.encode_to_vec(),
        "ListFederatedBundles" => {
            let bundles = vec![bundle("other.org"), bundle("third.org")];
            bundles::ListFederatedBundlesResponse { bundles, next_page_token: String::new() }.encode_to_vec()
        }
        "BatchSetFederatedBundle" => {
            let bundle =
                bundles::BatchSetFederatedBundleRequest::decode(request.clone()).ok()?.bundle.pop()?;
            let result = bundles::batch_set_federated_bundle_response::Result {
                status: status_of(&bundle.trust_domain),
                bundle: Some(bundle),
            };
            bundles::BatchSetFederatedBundleResponse { results: vec![result] }.encode_to_vec()
        }
        "BatchDeleteFederatedBundle" => {
            let trust_domain = bundles::BatchDeleteFederatedBundleRequest::decode(request.clone())
                .ok()?
                .trust_domains
                .pop()?;
            let result = bundles::batch_delete_federated_bundle_response::Result {
                status: status_of(&trust_domain),
                trust_domain,
            };
            bundles::BatchDeleteFederatedBundleResponse { results: vec![result] }.encode_to_vec()
        }
        _ => return None,
    })
}

fn svid_answer(method: &str) -> Option<Vec<u8>> {
    let id = id("example.org", "/w");
    Some(match method {
        "MintX509SVID" => {
            let cert_chain = vec![der(LEAF), der(INTERMEDIATE)];
            let svid = types::X509svid { cert_chain, id, expires_at: EXPIRY, hint: String::new() };
            svids::MintX509svidResponse { svid: Some(svid) }.encode_to_vec()
        }
        "MintJWTSVID" => {
            let token = TOKEN.into();
            let svid = types::Jwtsvid { token, id, expires_at: EXPIRY, issued_at: 1, hint: String::new() };
            svids::MintJwtsvidResponse { svid: Some(svid) }.encode_to_vec()
        }
        "MintWITSVID" => {
            let token = TOKEN.into();
            let svid = types::Witsvid { token, id, expires_at: EXPIRY, issued_at: 1, hint: String::new() };
            svids::MintWitsvidResponse { svid: Some(svid) }.encode_to_vec()
        }
        _ => return None,
    })
}

fn federation_answer(method: &str, request: &Bytes) -> Option<Vec<u8>> {
    Some(match method {
        "ListFederationRelationships" => {
            let federation_relationships = vec![relationship(false), relationship(true)];
            trust_domains::ListFederationRelationshipsResponse {
                federation_relationships,
                next_page_token: String::new(),
            }
            .encode_to_vec()
        }
        "GetFederationRelationship" => relationship(true).encode_to_vec(),
        "BatchCreateFederationRelationship" | "BatchUpdateFederationRelationship" => {
            // Requests and responses of both have the same fields.
            let asked =
                trust_domains::BatchCreateFederationRelationshipRequest::decode(request.clone()).ok()?;
            let result = |asked: types::FederationRelationship| {
                let status = status_of(&asked.trust_domain);
                let done = status.as_ref().is_some_and(|s| s.code == 0).then_some(asked);
                trust_domains::batch_create_federation_relationship_response::Result {
                    status,
                    federation_relationship: done,
                }
            };
            let results = asked.federation_relationships.into_iter().map(result).collect();
            trust_domains::BatchCreateFederationRelationshipResponse { results }.encode_to_vec()
        }
        "BatchDeleteFederationRelationship" => {
            let trust_domain =
                trust_domains::BatchDeleteFederationRelationshipRequest::decode(request.clone())
                    .ok()?
                    .trust_domains
                    .pop()?;
            let result = trust_domains::batch_delete_federation_relationship_response::Result {
                status: status_of(&trust_domain),
                trust_domain,
            };
            trust_domains::BatchDeleteFederationRelationshipResponse { results: vec![result] }.encode_to_vec()
        }
        "RefreshBundle" => Vec::new(),
        _ => return None,
    })
}

fn authority_answer(method: &str) -> Option<Vec<u8>> {
    Some(match method {
        "GetX509AuthorityState" | "GetJWTAuthorityState" => authorities::GetX509AuthorityStateResponse {
            active: state("upstream"),
            prepared: state("own"),
            old: None,
        }
        .encode_to_vec(),
        "TaintX509UpstreamAuthority" | "RevokeX509UpstreamAuthority" => {
            authorities::TaintX509UpstreamAuthorityResponse {
                upstream_authority_subject_key_id: "abcd".into(),
            }
            .encode_to_vec()
        }
        // These responses have one field each, with the same number.
        _ => authorities::TaintX509AuthorityResponse { tainted_authority: state("upstream") }.encode_to_vec(),
    })
}

fn server_info() -> server_debug::GetInfoResponse {
    let cert = |id, subject: &str| server_debug::get_info_response::Cert {
        id,
        expires_at: EXPIRY,
        subject: subject.into(),
    };
    server_debug::GetInfoResponse {
        svid_chain: vec![
            cert(id("example.org", "/spire/server"), "O=SPIRE,C=US"),
            cert(None, "O=SPIFFE,C=US"),
        ],
        uptime: 3725,
        agents_count: 2,
        federated_bundles_count: 1,
        entries_count: 3,
    }
}

fn agent_info() -> agent_debug::GetInfoResponse {
    let cert = agent_debug::get_info_response::Cert {
        id: id("example.org", "/spire/agent/x"),
        expires_at: EXPIRY,
        subject: "O=SPIRE,C=US".into(),
    };
    #[allow(deprecated, reason = "the reference prints this field still")]
    agent_debug::GetInfoResponse {
        svid_chain: vec![cert],
        uptime: 59,
        svids_count: 4,
        last_sync_success: 1_700_000_000,
        cached_x509_svids_count: 4,
        cached_jwt_svids_count: 5,
        cached_svidstore_x509_svids_count: 6,
    }
}

fn workload_answer(method: &str) -> Option<Vec<u8>> {
    Some(match method {
        "FetchX509SVID" => {
            let chain = [der(LEAF), der(INTERMEDIATE)].concat();
            // Through our own key type, so that the octets are those of PKCS#8 with the public key in it.
            let key = LocalKey::from_pem(KEY).and_then(|key| key.to_pkcs8()).expect("a key of ours");
            let svid = workload::X509svid {
                spiffe_id: "spiffe://example.org/workload".into(),
                x509_svid: chain.into(),
                x509_svid_key: key.to_vec().into(),
                bundle: der(CA),
                hint: "inner".into(),
            };
            let federated_bundles = [("spiffe://other.org".to_owned(), der(CA))].into();
            workload::X509svidResponse { svids: vec![svid], crl: Vec::new(), federated_bundles }
                .encode_to_vec()
        }
        "FetchJWTSVID" => {
            let spiffe_id = "spiffe://example.org/w".into();
            let svid = workload::Jwtsvid { spiffe_id, svid: TOKEN.into(), hint: "h".into() };
            workload::JwtsvidResponse { svids: vec![svid] }.encode_to_vec()
        }
        "FetchJWTBundles" => {
            let jwks = Bytes::from_static(b"{\n    \"keys\": []\n}");
            let bundles = [("spiffe://example.org".to_owned(), jwks)].into();
            workload::JwtBundlesResponse { bundles }.encode_to_vec()
        }
        "ValidateJWTSVID" => {
            use prost_types::value::Kind;
            let value = |kind| prost_types::Value { kind: Some(kind) };
            let aud = prost_types::ListValue { values: vec![value(Kind::StringValue("a".into()))] };
            let fields = [
                ("aud".to_owned(), value(Kind::ListValue(aud))),
                ("exp".to_owned(), value(Kind::NumberValue(2e9))),
                ("part".to_owned(), value(Kind::NumberValue(0.5))),
                ("none".to_owned(), value(Kind::NullValue(0))),
            ];
            let claims = prost_types::Struct { fields: fields.into() };
            workload::ValidateJwtsvidResponse {
                spiffe_id: "spiffe://example.org/w".into(),
                claims: Some(claims),
            }
            .encode_to_vec()
        }
        _ => return None,
    })
}
