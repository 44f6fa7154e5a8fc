//! The wire as clients see it: names of services and files, stable bytes, no secrets in `Debug`.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{Message, Name};
use prost_types::FileDescriptorSet;
use tonic::server::NamedService;

use crate::{FILE_DESCRIPTOR_SET, api, broker, envoy, health, push, reflection, stored, workload};

#[test]
fn services_have_the_names_of_the_reference() {
    use api::agent as a;
    use api::server as s;
    let cases = [
        (<workload::spiffe_workload_api_server::SpiffeWorkloadApiServer<()> as NamedService>::NAME, "SpiffeWorkloadAPI"),
        (<s::agent::v1::agent_server::AgentServer<()> as NamedService>::NAME, "spire.api.server.agent.v1.Agent"),
        (<s::bundle::v1::bundle_server::BundleServer<()> as NamedService>::NAME, "spire.api.server.bundle.v1.Bundle"),
        (<s::debug::v1::debug_server::DebugServer<()> as NamedService>::NAME, "spire.api.server.debug.v1.Debug"),
        (<s::entry::v1::entry_server::EntryServer<()> as NamedService>::NAME, "spire.api.server.entry.v1.Entry"),
        (
            <s::localauthority::v1::local_authority_server::LocalAuthorityServer<()> as NamedService>::NAME,
            "spire.api.server.localauthority.v1.LocalAuthority",
        ),
        (<s::logger::v1::logger_server::LoggerServer<()> as NamedService>::NAME, "spire.api.server.logger.v1.Logger"),
        (<s::svid::v1::svid_server::SvidServer<()> as NamedService>::NAME, "spire.api.server.svid.v1.SVID"),
        (
            <s::trustdomain::v1::trust_domain_server::TrustDomainServer<()> as NamedService>::NAME,
            "spire.api.server.trustdomain.v1.TrustDomain",
        ),
        (<a::debug::v1::debug_server::DebugServer<()> as NamedService>::NAME, "spire.agent.debug.v1.Debug"),
        (
            <a::delegatedidentity::v1::delegated_identity_server::DelegatedIdentityServer<()> as NamedService>::NAME,
            "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
        ),
        (<a::logger::v1::logger_server::LoggerServer<()> as NamedService>::NAME, "spire.api.agent.logger.v1.Logger"),
        (<broker::api_server::ApiServer<()> as NamedService>::NAME, "spiffe.broker.API"),
        (<health::health_server::HealthServer<()> as NamedService>::NAME, "grpc.health.v1.Health"),
        (
            <reflection::v1::server_reflection_server::ServerReflectionServer<()> as NamedService>::NAME,
            "grpc.reflection.v1.ServerReflection",
        ),
        (
            <reflection::v1alpha::server_reflection_server::ServerReflectionServer<()> as NamedService>::NAME,
            "grpc.reflection.v1alpha.ServerReflection",
        ),
        (
            <envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer<()> as NamedService>::NAME,
            "envoy.service.secret.v3.SecretDiscoveryService",
        ),
        (<push::agent_push_server::AgentPushServer<()> as NamedService>::NAME, "spire.push.v1.AgentPush"),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
}

#[test]
fn descriptors_list_the_workload_socket_with_dependencies_first() {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("a descriptor set");
    let names: Vec<&str> = set.file.iter().map(|file| file.name()).collect();
    for name in [
        "workload.proto",
        "google/protobuf/struct.proto",
        "envoy/service/secret/v3/sds.proto",
        "grpc/health/v1/health.proto",
        "grpc/reflection/v1/reflection.proto",
        "grpc/reflection/v1alpha/reflection.proto",
    ] {
        assert!(names.contains(&name), "{name} is missing from {names:?}");
    }
    for (at, file) in set.file.iter().enumerate() {
        assert!(file.source_code_info.is_none(), "{} carries comments", file.name());
        for dependency in &file.dependency {
            assert!(names[..at].contains(&dependency.as_str()), "{dependency} comes after {}", file.name());
        }
    }
}

/// Bytes that SPIRE's Go code makes for these values, written by the rules of the protobuf encoding.
#[test]
fn stored_messages_have_the_bytes_of_the_reference() {
    let bundle = stored::common::Bundle {
        trust_domain_id: "spiffe://a".into(),
        root_cas: vec![stored::common::Certificate {
            der_bytes: Bytes::from_static(&[1, 2]),
            tainted_key: true,
        }],
        refresh_hint: 300,
        sequence_number: 7,
        ..Default::default()
    };
    let expected = b"\x0a\x0aspiffe://a\x12\x06\x0a\x02\x01\x02\x10\x01\x20\xac\x02\x28\x07";
    assert_eq!(bundle.encode_to_vec(), expected);

    let journal = stored::journal::Entries {
        x509_cas: vec![stored::journal::X509caEntry {
            slot_id: "A".into(),
            status: stored::journal::Status::Active.into(),
            ..Default::default()
        }],
        wit_keys: vec![stored::journal::WitKeyEntry { authority_id: "k".into(), ..Default::default() }],
        ..Default::default()
    };
    assert_eq!(journal.encode_to_vec(), b"\x0a\x05\x0a\x01A\x28\x03\x1a\x03\x3a\x01k");
}

#[test]
fn maps_encode_in_one_order() {
    let bundles = |names: &[&str]| workload::X509BundlesResponse {
        crl: Vec::new(),
        bundles: names
            .iter()
            .map(|name| ((*name).to_owned(), Bytes::from_static(b"x")))
            .collect::<BTreeMap<_, _>>(),
    };
    assert_eq!(bundles(&["b", "a", "c"]).encode_to_vec(), bundles(&["c", "b", "a"]).encode_to_vec());
}

#[test]
fn refusal_details_have_the_type_url_that_agents_look_for() {
    assert_eq!(
        api::types::PermissionDeniedDetails::type_url(),
        "type.googleapis.com/spire.api.types.PermissionDeniedDetails"
    );
}

#[test]
fn debug_prints_no_secret() {
    const SECRET: &str = "hush";
    let bytes = Bytes::from_static(SECRET.as_bytes());
    let attest = api::server::agent::v1::AttestAgentRequest {
        step: Some(api::server::agent::v1::attest_agent_request::Step::Params(
            api::server::agent::v1::attest_agent_request::Params {
                data: Some(api::types::AttestationData {
                    r#type: "join_token".into(),
                    payload: bytes.clone(),
                }),
                params: None,
            },
        )),
    };
    let svids = workload::X509svidResponse {
        svids: vec![workload::X509svid {
            spiffe_id: "spiffe://a/b".into(),
            x509_svid_key: bytes.clone(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let texts = [
        format!("{attest:?}"),
        format!("{svids:?}"),
        format!("{:?}", workload::Jwtsvid { svid: SECRET.into(), ..Default::default() }),
        format!(
            "{:?}",
            workload::Witsvid { wit_svid: SECRET.into(), wit_svid_key: SECRET.into(), ..Default::default() }
        ),
        format!("{:?}", workload::ValidateJwtsvidRequest { audience: "x".into(), svid: SECRET.into() }),
        format!("{:?}", api::types::Jwtsvid { token: SECRET.into(), ..Default::default() }),
        format!("{:?}", api::types::Witsvid { token: SECRET.into(), ..Default::default() }),
        format!("{:?}", api::types::JoinToken { value: SECRET.into(), expires_at: 1 }),
        format!(
            "{:?}",
            api::server::agent::v1::CreateJoinTokenRequest { token: SECRET.into(), ..Default::default() }
        ),
        format!(
            "{:?}",
            api::agent::delegatedidentity::v1::X509svidWithKey {
                x509_svid: None,
                x509_svid_key: bytes.clone()
            }
        ),
        format!("{:?}", stored::common::AttestationData { r#type: "join_token".into(), data: bytes }),
    ];
    for text in texts {
        assert!(text.contains("redacted (4 bytes)"), "nothing redacted in {text}");
        // A byte string prints as b"…" or as a list of numbers.
        assert!(!text.contains(SECRET) && !text.contains("104, 117"), "a secret in {text}");
    }
}
