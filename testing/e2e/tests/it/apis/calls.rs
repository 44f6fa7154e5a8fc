//! The calls, service by service. Each builds on what those before it left.

use spire_core::pki::{CsrTemplate, DistinguishedName, KeyType, LocalKey};
use spire_wire::api::server::agent::v1 as agent;
use spire_wire::api::server::bundle::v1 as bundle;
use spire_wire::api::server::debug::v1 as debug;
use spire_wire::api::server::entry::v1 as entry;
use spire_wire::api::server::localauthority::v1 as authority;
use spire_wire::api::server::logger::v1 as logger;
use spire_wire::api::server::svid::v1 as svid;
use spire_wire::api::server::trustdomain::v1 as trust;
use spire_wire::api::types;
use spire_wire::api::types::federation_relationship::BundleEndpointProfile;
use spire_wire::health;

use super::client::Client;

/// Texts of the reference, or of the Go packages that it is made with, by ours for the same: docs/differences.md.
pub(super) const TEXTS: &[(&str, &str)] = &[
    (
        "asn1: structure error: tags don't match (16 vs {class:0 tag:1 length:2 isCompound:false}) \
         {optional:false explicit:false application:false private:false defaultValue:<nil> tag:<nil> stringType:0 \
         timeType:0 set:false omitEmpty:false} certificateRequest @2",
        "malformed certificate request",
    ),
    ("asn1: syntax error: truncated tag or length", "malformed public key"),
    ("refresh_hint: -1", "refresh_hint: 0"),
];

pub(super) const ENTRY: &str = "/spire.api.server.entry.v1.Entry";
const AGENT: &str = "/spire.api.server.agent.v1.Agent";
const BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle";
const TRUST: &str = "/spire.api.server.trustdomain.v1.TrustDomain";
const SVID: &str = "/spire.api.server.svid.v1.SVID";
const AUTHORITY: &str = "/spire.api.server.localauthority.v1.LocalAuthority";

pub(super) async fn all(client: &mut Client) {
    super::entries::entries(client).await;
    super::entries::filters(client).await;
    super::entries::entry_changes(client).await;
    agents(client).await;
    attestations(client).await;
    bundles(client).await;
    relationships(client).await;
    signatures(client).await;
    authorities(client).await;
    others(client).await;
}

pub(super) fn id(path: &str) -> Option<types::Spiffeid> {
    id_of("example.org", path)
}

pub(super) fn id_of(trust_domain: &str, path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: trust_domain.to_owned(), path: path.to_owned() })
}

pub(super) fn selector(kind: &str, value: &str) -> types::Selector {
    types::Selector { r#type: kind.to_owned(), value: value.to_owned() }
}

pub(super) fn new_entry(path: &str, change: impl FnOnce(&mut types::Entry)) -> types::Entry {
    let mut entry = types::Entry {
        spiffe_id: id(path),
        parent_id: id("/host"),
        selectors: vec![selector("unix", "uid:1")],
        ..types::Entry::default()
    };
    change(&mut entry);
    entry
}

pub(super) fn create(entries: Vec<types::Entry>) -> entry::BatchCreateEntryRequest {
    entry::BatchCreateEntryRequest { entries, output_mask: None }
}

async fn agents(client: &mut Client) {
    use agent::list_agents_request::Filter;
    let selectors = |list: &[(&str, &str)]| {
        let selectors = list.iter().map(|(kind, value)| selector(kind, value)).collect();
        Some(types::SelectorMatch { selectors, r#match: 1 })
    };
    let filters = [
        ("none", Filter::default()),
        ("type", Filter { by_attestation_type: "join_token".into(), ..Default::default() }),
        ("banned", Filter { by_banned: Some(true), ..Default::default() }),
        ("not banned", Filter { by_banned: Some(false), by_can_reattest: Some(false), ..Default::default() }),
        ("selectors", Filter { by_selector_match: selectors(&[("a", "b")]), ..Default::default() }),
        ("bad selector", Filter { by_selector_match: selectors(&[("", "b")]), ..Default::default() }),
        ("no selectors", Filter { by_selector_match: selectors(&[]), ..Default::default() }),
        (
            "expiry",
            Filter { by_expires_before: "2030-01-02 15:04:05 +0000 +00".into(), ..Default::default() },
        ),
        ("bad expiry", Filter { by_expires_before: "tomorrow".into(), ..Default::default() }),
    ];
    for (name, filter) in filters {
        let count = agent::CountAgentsRequest {
            filter: Some(agent::count_agents_request::Filter {
                by_attestation_type: filter.by_attestation_type.clone(),
                by_selector_match: filter.by_selector_match.clone(),
                by_banned: filter.by_banned,
                by_can_reattest: filter.by_can_reattest,
                by_expires_before: filter.by_expires_before.clone(),
            }),
        };
        call!(client, name, AGENT, "CountAgents", count => agent::CountAgentsResponse);
        let list = agent::ListAgentsRequest { filter: Some(filter), ..Default::default() };
        call!(client, name, AGENT, "ListAgents", list => agent::ListAgentsResponse);
    }
    for (name, id) in [
        ("none", None),
        ("workload", id("/w")),
        ("server", id("/spire/server")),
        ("other", id_of("other.test", "/spire/agent/a/b")),
        ("empty", id("")),
        ("unknown", id("/spire/agent/a/b")),
        ("agents", id("/spire/agent")),
    ] {
        call!(client, name, AGENT, "GetAgent", agent::GetAgentRequest { id: id.clone(), output_mask: None } => types::Agent);
        call!(client, name, AGENT, "DeleteAgent", agent::DeleteAgentRequest { id: id.clone() } => ());
        call!(client, name, AGENT, "BanAgent", agent::BanAgentRequest { id } => ());
    }
    for (name, ttl, token, agent_id) in [
        ("no ttl", 0, "", None),
        ("negative ttl", -1, "", None),
        ("plain", 60, "", None),
        ("given", 60, "my-token", None),
        ("given again", 60, "my-token", None),
        ("with alias", 60, "aliased", id("/alias")),
        ("bad alias", 60, "", id("/spire/agent/x")),
        ("other alias", 60, "", id_of("other.test", "/x")),
        ("odd token", 60, "a b", id("/alias2")),
        ("slash token", 60, "a/b", None),
    ] {
        let request = agent::CreateJoinTokenRequest { ttl, token: token.into(), agent_id };
        // The token's Debug hides it, and its time differs.
        call!(client, name, AGENT, "CreateJoinToken", request => types::JoinToken);
    }
    call!(client, "local", AGENT, "RenewAgent", agent::RenewAgentRequest::default() => agent::RenewAgentResponse);
    call!(client, "local", AGENT, "PostStatus", agent::PostStatusRequest::default() => agent::PostStatusResponse);
}

fn csr(uris: &[&str], dns_names: &[&str]) -> Vec<u8> {
    let made = || -> Option<Vec<u8>> {
        let key = LocalKey::generate(KeyType::EcP256).ok()?;
        let dns_names: Vec<String> = dns_names.iter().map(|name| (*name).to_owned()).collect();
        let template = CsrTemplate {
            subject: &DistinguishedName::default().encode().ok()?,
            public_key: key.public_key(),
            dns_names: &dns_names,
            uris,
            extra_extensions: &[],
        };
        let signed = template.to_be_signed().ok()?;
        let signature = key.sign(signed.algorithm(), signed.bytes()).ok()?;
        Some(signed.assemble(&signature))
    };
    made().unwrap_or_default()
}

async fn attestations(client: &mut Client) {
    use agent::attest_agent_request::{Params, Step};
    let data = |kind: &str, payload: &str| {
        Some(types::AttestationData { r#type: kind.into(), payload: payload.to_owned().into() })
    };
    let params = |csr: Vec<u8>| Some(agent::AgentX509svidParams { csr: csr.into() });
    let good = || params(csr(&[], &[]));
    let cases: Vec<(&str, Option<Step>)> = vec![
        ("nothing", None),
        ("response first", Some(Step::ChallengeResponse(vec![1].into()))),
        ("empty", Some(Step::Params(Params::default()))),
        ("no data", Some(Step::Params(Params { data: None, params: good() }))),
        ("no params", Some(Step::Params(Params { data: data("join_token", "x"), params: None }))),
        ("no csr", Some(Step::Params(Params { data: data("join_token", "x"), params: params(vec![]) }))),
        ("no type", Some(Step::Params(Params { data: data("", "x"), params: good() }))),
        ("no payload", Some(Step::Params(Params { data: data("join_token", ""), params: good() }))),
        ("unknown type", Some(Step::Params(Params { data: data("magic", "x"), params: good() }))),
        ("unknown token", Some(Step::Params(Params { data: data("join_token", "x"), params: good() }))),
        ("used token", Some(Step::Params(Params { data: data("join_token", "my-token"), params: good() }))),
        (
            "used token again",
            Some(Step::Params(Params { data: data("join_token", "my-token"), params: good() })),
        ),
        (
            "bad csr",
            Some(Step::Params(Params { data: data("join_token", "aliased"), params: params(vec![1, 2]) })),
        ),
    ];
    for (name, step) in cases {
        let requests = vec![agent::AttestAgentRequest { step }];
        client.stream::<_, agent::AttestAgentResponse>(name, &format!("{AGENT}/AttestAgent"), requests).await;
    }
    client
        .stream::<agent::AttestAgentRequest, agent::AttestAgentResponse>(
            "no message",
            &format!("{AGENT}/AttestAgent"),
            vec![],
        )
        .await;
    let attested = id("/spire/agent/join_token/my-token");
    let mask = types::AgentMask { attestation_type: true, can_reattest: true, ..Default::default() };
    for mask in [None, Some(mask), Some(types::AgentMask::default())] {
        let get = agent::GetAgentRequest { id: attested.clone(), output_mask: mask };
        call!(client, "attested", AGENT, "GetAgent", get => types::Agent);
        let list = agent::ListAgentsRequest { output_mask: mask, page_size: 1, ..Default::default() };
        call!(client, "attested", AGENT, "ListAgents", list => agent::ListAgentsResponse);
    }
    call!(client, "attested", AGENT, "BanAgent", agent::BanAgentRequest { id: attested.clone() } => ());
    let get = agent::GetAgentRequest { id: attested.clone(), output_mask: None };
    call!(client, "banned", AGENT, "GetAgent", get => types::Agent);
    call!(client, "banned", AGENT, "DeleteAgent", agent::DeleteAgentRequest { id: attested } => ());
}

fn foreign(name: &str, own: Option<&types::Bundle>) -> types::Bundle {
    types::Bundle {
        trust_domain: name.into(),
        x509_authorities: own.map(|own| own.x509_authorities.clone()).unwrap_or_default(),
        jwt_authorities: own.map(|own| own.jwt_authorities.clone()).unwrap_or_default(),
        refresh_hint: 60,
        sequence_number: 3,
        ..Default::default()
    }
}

fn key(kid: &str, spki: &[u8]) -> types::JwtKey {
    types::JwtKey {
        key_id: kid.into(),
        public_key: spki.to_vec().into(),
        expires_at: 4_000_000_000,
        tainted: false,
    }
}

async fn append_bundles(client: &mut Client, spki: &[u8], junk: &types::X509Certificate) {
    let appends: Vec<(&str, Vec<types::X509Certificate>, Vec<types::JwtKey>)> = vec![
        ("nothing", vec![], vec![]),
        ("junk", vec![junk.clone()], vec![]),
        ("junk key", vec![], vec![key("kid", b"x")]),
        ("no key id", vec![], vec![key("", spki)]),
        ("key", vec![], vec![key("appended", spki)]),
    ];
    for (name, x509_authorities, jwt_authorities) in appends {
        let request = bundle::AppendBundleRequest {
            x509_authorities,
            jwt_authorities,
            output_mask: Some(types::BundleMask { jwt_authorities: true, ..Default::default() }),
            ..Default::default()
        };
        call!(client, name, BUNDLE, "AppendBundle", request => types::Bundle);
    }
}

async fn bundles(client: &mut Client) {
    let own =
        call!(client, "whole", BUNDLE, "GetBundle", bundle::GetBundleRequest::default() => types::Bundle);
    let own = own.unwrap_or_default();
    let mask = types::BundleMask { refresh_hint: true, ..Default::default() };
    call!(client, "masked", BUNDLE, "GetBundle", bundle::GetBundleRequest { output_mask: Some(mask) } => types::Bundle);
    call!(client, "before", BUNDLE, "CountBundles", bundle::CountBundlesRequest::default() => bundle::CountBundlesResponse);
    let junk = types::X509Certificate { asn1: vec![1, 2, 3].into(), tainted: false };
    let spki = own.jwt_authorities.first().map(|key| key.public_key.to_vec()).unwrap_or_default();
    append_bundles(client, &spki, &junk).await;
    let publish = bundle::PublishJwtAuthorityRequest { jwt_authority: Some(key("p", &spki)) };
    call!(client, "local", BUNDLE, "PublishJWTAuthority", publish => bundle::PublishJwtAuthorityResponse);
    let cases: Vec<(&str, types::Bundle)> = vec![
        ("own", foreign("example.org", Some(&own))),
        ("bad name", foreign("B ad", Some(&own))),
        ("no name", foreign("", None)),
        ("empty", foreign("empty.test", None)),
        ("good", foreign("other.test", Some(&own))),
        ("again", foreign("other.test", Some(&own))),
        ("id", foreign("spiffe://ided.test", Some(&own))),
        ("junk", types::Bundle { x509_authorities: vec![junk], ..foreign("junk.test", None) }),
        ("junk key", types::Bundle { jwt_authorities: vec![key("k", b"y")], ..foreign("junk.test", None) }),
        ("negative hint", types::Bundle { refresh_hint: -1, ..foreign("hint.test", None) }),
    ];
    for (name, one) in cases {
        let bundle_of = vec![one.clone()];
        let request =
            bundle::BatchCreateFederatedBundleRequest { bundle: bundle_of.clone(), output_mask: None };
        call!(client, name, BUNDLE, "BatchCreateFederatedBundle", request => bundle::BatchCreateFederatedBundleResponse);
        let request = bundle::BatchUpdateFederatedBundleRequest {
            bundle: bundle_of.clone(),
            input_mask: Some(types::BundleMask { refresh_hint: true, ..Default::default() }),
            output_mask: None,
        };
        call!(client, name, BUNDLE, "BatchUpdateFederatedBundle", request => bundle::BatchUpdateFederatedBundleResponse);
        let request = bundle::BatchSetFederatedBundleRequest { bundle: bundle_of, output_mask: None };
        call!(client, name, BUNDLE, "BatchSetFederatedBundle", request => bundle::BatchSetFederatedBundleResponse);
        let request = bundle::GetFederatedBundleRequest { trust_domain: one.trust_domain, output_mask: None };
        call!(client, name, BUNDLE, "GetFederatedBundle", request => types::Bundle);
    }
    let unknown = bundle::BatchUpdateFederatedBundleRequest {
        bundle: vec![foreign("nobody.test", None)],
        ..Default::default()
    };
    call!(client, "unknown", BUNDLE, "BatchUpdateFederatedBundle", unknown => bundle::BatchUpdateFederatedBundleResponse);
    for (size, token) in [(0, ""), (1, ""), (2, ""), (2, "x")] {
        let request = bundle::ListFederatedBundlesRequest {
            page_size: size,
            page_token: token.into(),
            ..Default::default()
        };
        call!(client, &format!("{size} {token}"), BUNDLE, "ListFederatedBundles", request => bundle::ListFederatedBundlesResponse);
    }
    call!(client, "after", BUNDLE, "CountBundles", bundle::CountBundlesRequest::default() => bundle::CountBundlesResponse);
    let federated = new_entry("/federated", |e| e.federates_with = vec!["other.test".into()]);
    call!(client, "federated", ENTRY, "BatchCreateEntry", create(vec![federated]) => entry::BatchCreateEntryResponse);
    for (mode, names) in [
        (0, &["other.test"][..]),
        (9, &["other.test"]),
        (2, &["other.test", "example.org", "B ad", "nobody.test"]),
        (1, &["empty.test"]),
    ] {
        let trust_domains = names.iter().map(|name| (*name).to_owned()).collect();
        let request = bundle::BatchDeleteFederatedBundleRequest { trust_domains, mode };
        call!(client, &format!("mode {mode}"), BUNDLE, "BatchDeleteFederatedBundle", request => bundle::BatchDeleteFederatedBundleResponse);
    }
}

async fn relationships(client: &mut Client) {
    let web = || Some(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}));
    let spiffe = |id: &str| {
        Some(BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile { endpoint_spiffe_id: id.into() }))
    };
    let one = |name: &str, url: &str, profile| types::FederationRelationship {
        trust_domain: name.into(),
        bundle_endpoint_url: url.into(),
        bundle_endpoint_profile: profile,
        trust_domain_bundle: None,
    };
    let cases = vec![
        ("web", one("a.test", "https://127.0.0.1:1/b", web())),
        ("again", one("a.test", "https://127.0.0.1:1/b", web())),
        ("spiffe", one("b.test", "https://127.0.0.1:1", spiffe("spiffe://b.test/server"))),
        ("own", one("example.org", "https://127.0.0.1:1", web())),
        ("bad name", one("B ad", "https://127.0.0.1:1", web())),
        ("no name", one("", "https://127.0.0.1:1", web())),
        ("no profile", one("c.test", "https://127.0.0.1:1", None)),
        ("bad endpoint id", one("c.test", "https://127.0.0.1:1", spiffe("x"))),
        ("http", one("c.test", "http://127.0.0.1:1", web())),
        ("no url", one("c.test", "", web())),
        ("user", one("c.test", "https://me@127.0.0.1:1", web())),
        ("no host", one("c.test", "https:///x", web())),
        (
            "bundle",
            types::FederationRelationship {
                trust_domain_bundle: Some(foreign("d.test", None)),
                ..one("d.test", "https://127.0.0.1:1", web())
            },
        ),
        (
            "other's bundle",
            types::FederationRelationship {
                trust_domain_bundle: Some(foreign("e.test", None)),
                ..one("c.test", "https://127.0.0.1:1", web())
            },
        ),
    ];
    for (name, relationship) in cases {
        let request = trust::BatchCreateFederationRelationshipRequest {
            federation_relationships: vec![relationship.clone()],
            output_mask: None,
        };
        call!(client, name, TRUST, "BatchCreateFederationRelationship", request => trust::BatchCreateFederationRelationshipResponse);
        let request = trust::BatchUpdateFederationRelationshipRequest {
            federation_relationships: vec![relationship.clone()],
            input_mask: Some(types::FederationRelationshipMask {
                bundle_endpoint_url: true,
                ..Default::default()
            }),
            output_mask: None,
        };
        call!(client, name, TRUST, "BatchUpdateFederationRelationship", request => trust::BatchUpdateFederationRelationshipResponse);
        let request = trust::GetFederationRelationshipRequest {
            trust_domain: relationship.trust_domain,
            output_mask: None,
        };
        call!(client, name, TRUST, "GetFederationRelationship", request => types::FederationRelationship);
    }
    for (size, token) in [(0, ""), (1, ""), (1, "x")] {
        let request = trust::ListFederationRelationshipsRequest {
            page_size: size,
            page_token: token.into(),
            output_mask: None,
        };
        call!(client, &format!("{size} {token}"), TRUST, "ListFederationRelationships", request => trust::ListFederationRelationshipsResponse);
    }
    for name in ["", "B ad", "nobody.test"] {
        call!(client, name, TRUST, "RefreshBundle", trust::RefreshBundleRequest { trust_domain: name.into() } => ());
    }
    let trust_domains = ["", "B ad", "nobody.test", "a.test", "spiffe://b.test"].map(str::to_owned).to_vec();
    let request = trust::BatchDeleteFederationRelationshipRequest { trust_domains };
    call!(client, "many", TRUST, "BatchDeleteFederationRelationship", request => trust::BatchDeleteFederationRelationshipResponse);
}

async fn signatures(client: &mut Client) {
    let good = "spiffe://example.org/minted";
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("junk", vec![1, 2, 3]),
        ("no uri", csr(&[], &[])),
        ("two uris", csr(&[good, "spiffe://example.org/b"], &[])),
        ("not spiffe", csr(&["https://example.org/x"], &[])),
        ("other", csr(&["spiffe://other.test/x"], &[])),
        ("reserved", csr(&["spiffe://example.org/spire/agent/x"], &[])),
        ("empty path", csr(&["spiffe://example.org"], &[])),
        ("bad dns", csr(&[good], &["a_b"])),
        ("wildcard", csr(&[good], &["*.a.test", "b.a.test"])),
        ("good", csr(&[good], &["a.test", "*.b.test"])),
    ];
    for (name, csr) in cases {
        let request = svid::MintX509svidRequest { csr: csr.into(), ttl: 60 };
        call!(client, name, SVID, "MintX509SVID", request => svid::MintX509svidResponse);
    }
    let mut bent = csr(&[good], &[]);
    if let Some(last) = bent.last_mut() {
        *last ^= 1;
    }
    call!(client, "bad signature", SVID, "MintX509SVID", svid::MintX509svidRequest { csr: bent.into(), ttl: 0 } => svid::MintX509svidResponse);
    for (name, id, audience) in [
        ("no id", None, &["a"][..]),
        ("no audience", id("/w"), &[]),
        ("empty audience", id("/w"), &[""]),
        ("reserved", id("/spire/agent/x"), &["a"]),
        ("other", id_of("other.test", "/x"), &["a"]),
        ("good", id("/w"), &["a", "", "b"]),
    ] {
        let audience = audience.iter().map(|a| (*a).to_owned()).collect();
        let request = svid::MintJwtsvidRequest { id, audience, ttl: 60 };
        call!(client, name, SVID, "MintJWTSVID", request => svid::MintJwtsvidResponse);
    }
    call!(client, "off", SVID, "MintWITSVID", svid::MintWitsvidRequest { id: id("/w"), ..Default::default() } => svid::MintWitsvidResponse);
    call!(client, "local", SVID, "BatchNewX509SVID", svid::BatchNewX509svidRequest::default() => svid::BatchNewX509svidResponse);
    call!(client, "local", SVID, "NewJWTSVID", svid::NewJwtsvidRequest::default() => svid::NewJwtsvidResponse);
    call!(client, "local", SVID, "BatchNewWITSVID", svid::BatchNewWitsvidRequest::default() => svid::BatchNewWitsvidResponse);
    call!(client, "local", SVID, "NewDownstreamX509CA", svid::NewDownstreamX509caRequest::default() => svid::NewDownstreamX509caResponse);
}

async fn authorities(client: &mut Client) {
    let x509 = call!(client, "before", AUTHORITY, "GetX509AuthorityState", authority::GetX509AuthorityStateRequest::default() => authority::GetX509AuthorityStateResponse);
    let jwt = call!(client, "before", AUTHORITY, "GetJWTAuthorityState", authority::GetJwtAuthorityStateRequest::default() => authority::GetJwtAuthorityStateResponse);
    let active =
        |state: Option<authority::AuthorityState>| state.map(|state| state.authority_id).unwrap_or_default();
    let (x509, jwt) = (active(x509.and_then(|s| s.active)), active(jwt.and_then(|s| s.active)));
    for round in ["empty", "prepared", "activated"] {
        if round != "empty" {
            if round == "prepared" {
                call!(client, round, AUTHORITY, "PrepareX509Authority", authority::PrepareX509AuthorityRequest::default() => authority::PrepareX509AuthorityResponse);
                call!(client, round, AUTHORITY, "PrepareJWTAuthority", authority::PrepareJwtAuthorityRequest::default() => authority::PrepareJwtAuthorityResponse);
            } else {
                activate_prepared(client).await;
            }
        }
        for (name, x509, jwt) in
            [("", "", ""), ("unknown", "0123", "kid"), ("first", x509.as_str(), jwt.as_str())]
        {
            let name = format!("{round} {name}");
            let own = |id: &str| id.to_owned();
            if round != "activated" {
                call!(client, &name, AUTHORITY, "ActivateX509Authority", authority::ActivateX509AuthorityRequest { authority_id: own(x509) } => authority::ActivateX509AuthorityResponse);
                call!(client, &name, AUTHORITY, "ActivateJWTAuthority", authority::ActivateJwtAuthorityRequest { authority_id: own(jwt) } => authority::ActivateJwtAuthorityResponse);
                call!(client, &name, AUTHORITY, "RevokeX509Authority", authority::RevokeX509AuthorityRequest { authority_id: own(x509) } => authority::RevokeX509AuthorityResponse);
                call!(client, &name, AUTHORITY, "RevokeJWTAuthority", authority::RevokeJwtAuthorityRequest { authority_id: own(jwt) } => authority::RevokeJwtAuthorityResponse);
            }
            call!(client, &name, AUTHORITY, "TaintX509Authority", authority::TaintX509AuthorityRequest { authority_id: own(x509) } => authority::TaintX509AuthorityResponse);
            call!(client, &name, AUTHORITY, "TaintJWTAuthority", authority::TaintJwtAuthorityRequest { authority_id: own(jwt) } => authority::TaintJwtAuthorityResponse);
            call!(client, &name, AUTHORITY, "TaintX509UpstreamAuthority", authority::TaintX509UpstreamAuthorityRequest { subject_key_id: own(x509) } => authority::TaintX509UpstreamAuthorityResponse);
            call!(client, &name, AUTHORITY, "RevokeX509UpstreamAuthority", authority::RevokeX509UpstreamAuthorityRequest { subject_key_id: own(x509) } => authority::RevokeX509UpstreamAuthorityResponse);
        }
    }
    // What was first is old and tainted now.
    call!(client, "tainted again", AUTHORITY, "TaintX509Authority", authority::TaintX509AuthorityRequest { authority_id: x509.clone() } => authority::TaintX509AuthorityResponse);
    call!(client, "old", AUTHORITY, "ActivateX509Authority", authority::ActivateX509AuthorityRequest { authority_id: x509.clone() } => authority::ActivateX509AuthorityResponse);
    call!(client, "after", AUTHORITY, "GetX509AuthorityState", authority::GetX509AuthorityStateRequest::default() => authority::GetX509AuthorityStateResponse);
    for round in ["old", "again"] {
        call!(client, round, AUTHORITY, "RevokeX509Authority", authority::RevokeX509AuthorityRequest { authority_id: x509.clone() } => authority::RevokeX509AuthorityResponse);
        call!(client, round, AUTHORITY, "RevokeJWTAuthority", authority::RevokeJwtAuthorityRequest { authority_id: jwt.clone() } => authority::RevokeJwtAuthorityResponse);
    }
    call!(client, "wit", AUTHORITY, "GetWITAuthorityState", authority::GetWitAuthorityStateRequest::default() => authority::GetWitAuthorityStateResponse);
    call!(client, "wit", AUTHORITY, "PrepareWITAuthority", authority::PrepareWitAuthorityRequest::default() => authority::PrepareWitAuthorityResponse);
}

async fn activate_prepared(client: &mut Client) {
    let x509 = call!(client, "prepared", AUTHORITY, "GetX509AuthorityState", authority::GetX509AuthorityStateRequest::default() => authority::GetX509AuthorityStateResponse);
    let jwt = call!(client, "prepared", AUTHORITY, "GetJWTAuthorityState", authority::GetJwtAuthorityStateRequest::default() => authority::GetJwtAuthorityStateResponse);
    let prepared =
        |state: Option<authority::AuthorityState>| state.map(|state| state.authority_id).unwrap_or_default();
    let (x509, jwt) = (prepared(x509.and_then(|s| s.prepared)), prepared(jwt.and_then(|s| s.prepared)));
    call!(client, "prepared", AUTHORITY, "ActivateX509Authority", authority::ActivateX509AuthorityRequest { authority_id: x509 } => authority::ActivateX509AuthorityResponse);
    call!(client, "prepared", AUTHORITY, "ActivateJWTAuthority", authority::ActivateJwtAuthorityRequest { authority_id: jwt } => authority::ActivateJwtAuthorityResponse);
}

async fn others(client: &mut Client) {
    const LOGGER: &str = "/spire.api.server.logger.v1.Logger";
    const HEALTH: &str = "/grpc.health.v1.Health";
    call!(client, "", LOGGER, "GetLogger", logger::GetLoggerRequest::default() => types::Logger);
    for level in [0, 5, 99, -1, 7] {
        call!(client, &format!("{level}"), LOGGER, "SetLogLevel", logger::SetLogLevelRequest { new_level: level } => types::Logger);
    }
    call!(client, "", LOGGER, "ResetLogLevel", logger::ResetLogLevelRequest::default() => types::Logger);
    let info = call!(client, "", "/spire.api.server.debug.v1.Debug", "GetInfo", debug::GetInfoRequest::default() => debug::GetInfoResponse);
    client.answers.pop(); // its uptime differs
    let info = info.unwrap_or_default();
    let counts = (info.agents_count, info.entries_count, info.federated_bundles_count, info.svid_chain.len());
    client.answers.push(("counts".to_owned(), format!("{counts:?}")));
    for service in ["", "spire", "grpc.health.v1.Health"] {
        let request = health::HealthCheckRequest { service: service.into() };
        call!(client, service, HEALTH, "Check", request.clone() => health::HealthCheckResponse);
        client
            .stream::<_, health::HealthCheckResponse>(service, &format!("{HEALTH}/Watch"), vec![request])
            .await;
    }
    call!(client, "", HEALTH, "List", () => ());
    for method in ["/spire.api.server.entry.v1.Entry/Nonsense", "/no.Such/Method", "/x"] {
        client.call::<(), ()>("unknown", method, ()).await;
    }
}
