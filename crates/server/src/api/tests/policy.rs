//! Calls under policies of users.

use std::path::{Path, PathBuf};

use spire_policy::RegoPolicy;
use spire_ports::policy::{Policy, Question};
use spire_wire::api::server::agent::v1::{CountAgentsRequest, PostStatusRequest};
use spire_wire::api::server::bundle::v1::{GetBundleRequest, PublishJwtAuthorityRequest};
use spire_wire::api::server::entry::v1::{
    BatchDeleteEntryRequest, CountEntriesRequest, GetAuthorizedEntriesRequest,
};
use spire_wire::api::server::svid::v1::NewDownstreamX509caRequest;

use super::callers::{everyone_is_judged_rightly, golden};
use super::*;
use crate::api::caller::Allowed;

/// Folders with a policy that decides as the server does by itself: ours, and the reference's where there is one.
fn defaults() -> Vec<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conf/policy");
    let reference = std::env::var_os("SPIRE_REFERENCE_POLICY").map(PathBuf::from);
    std::iter::once(ours).chain(reference).collect()
}

fn load(folder: &Path) -> RegoPolicy {
    RegoPolicy::load(&folder.join("policy.rego"), Some(&folder.join("policy_data.json"))).unwrap()
}

#[test]
fn the_default_policy_as_files_decides_as_the_one_compiled_in() {
    for folder in defaults() {
        let policy = load(&folder);
        let is_ours = folder.ends_with("conf/policy");
        for listed in golden() {
            // The reference does not know our own service, so it lets nobody in.
            if !is_ours && listed.path.starts_with("/spire.push.") {
                continue;
            }
            let question =
                Question { caller: "", caller_file_path: "", full_method: listed.path, request: Some(&[]) };
            let decision = policy.decide(&question).unwrap();
            let allowed = Allowed {
                any: decision.allow,
                local: decision.allow_if_local,
                admin: decision.allow_if_admin,
                downstream: decision.allow_if_downstream,
                agent: decision.allow_if_agent,
            };
            assert_eq!(allowed, listed.allowed, "{} in {}", listed.path, folder.display());
        }
    }
}

async fn world_under(policy: RegoPolicy) -> World {
    World::with(|deps| {
        deps.rate_limits = RateLimits { attestation: false, signing: false };
        deps.policy = Some(Arc::new(policy));
    })
    .await
}

#[tokio::test]
async fn every_caller_is_judged_alike_under_the_default_policy_as_files() {
    everyone_is_judged_rightly(&world_under(load(&defaults()[0])).await).await;
}

/// A world under a policy whose fields are these expressions.
async fn under(fields: [(&str, &str); 5], more: &str) -> World {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    let module = format!("package spire\nresult := {{{}}}\n{more}\n", fields.join(", "));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.rego");
    std::fs::write(&path, module).unwrap();
    world_under(RegoPolicy::load(&path, None).unwrap()).await
}

const NOBODY: [(&str, &str); 5] = [
    ("allow", "false"),
    ("allow_if_local", "false"),
    ("allow_if_admin", "false"),
    ("allow_if_downstream", "false"),
    ("allow_if_agent", "false"),
];

#[tokio::test]
async fn a_policy_may_let_nobody_in_and_anybody() {
    let nobody = under(NOBODY, "").await;
    for peer in [local(), anonymous(), tls("/admin", "1")] {
        let (code, text) = refused(nobody.bundles(peer).get_bundle(GetBundleRequest::default()).await);
        let method = "/spire.api.server.bundle.v1.Bundle/GetBundle";
        assert_eq!(
            (code, text),
            (Code::PermissionDenied, format!("authorization denied for method {method}"))
        );
    }

    let mut all = NOBODY;
    all[0].1 = "true";
    let anybody = under(all, "").await;
    anybody.agents(anonymous()).count_agents(CountAgentsRequest::default()).await.unwrap();
    anybody.entries(tls("/w", "1")).count_entries(CountEntriesRequest::default()).await.unwrap();
    // What needs to know more of the caller says so.
    let entries = anybody.entries(anonymous());
    let answer = { entries }.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await;
    assert_eq!(refused(answer), (Code::Internal, "caller ID missing from request context".to_owned()));
    let known = anybody.entries(tls("/w", "1"));
    { known }.get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.unwrap();
    let request = NewDownstreamX509caRequest { csr: csr(&[], &[]), ..Default::default() };
    let answer = anybody.svids(tls("/w", "1")).new_downstream_x509ca(request).await;
    assert_eq!(refused(answer), (Code::Internal, "caller is not a downstream workload".to_owned()));
    // A key may be published by whom the policy says; here the key is missing.
    let answer =
        anybody.bundles(anonymous()).publish_jwt_authority(PublishJwtAuthorityRequest::default()).await;
    assert_eq!(refused(answer), (Code::InvalidArgument, "missing JWT authority".to_owned()));
}

#[tokio::test]
async fn a_policy_may_let_agents_read_and_look_into_requests() {
    let mut fields = NOBODY;
    fields[1].1 = "may_delete";
    fields[4].1 = "true";
    let more =
        "default may_delete := false\nmay_delete if every id in input.req.ids { startswith(id, \"tmp-\") }";
    let world = under(fields, more).await;
    let agent = world.attested(AGENT).await;
    world.agents(agent.clone()).count_agents(CountAgentsRequest::default()).await.unwrap();
    world.agents(agent).post_status(PostStatusRequest::default()).await.unwrap();
    let (code, _) = refused(world.agents(tls(AGENT, "8")).count_agents(CountAgentsRequest::default()).await);
    assert_eq!(code, Code::PermissionDenied, "not with another SVID");

    let delete =
        |ids: &[&str]| BatchDeleteEntryRequest { ids: ids.iter().map(|id| (*id).to_owned()).collect() };
    world.entries(local()).batch_delete_entry(delete(&["tmp-1", "tmp-2"])).await.unwrap();
    let (code, _) = refused(world.entries(local()).batch_delete_entry(delete(&["tmp-1", "x"])).await);
    assert_eq!(code, Code::PermissionDenied);
}

#[tokio::test]
async fn a_policy_that_fails_lets_nobody_in() {
    let mut fields = NOBODY;
    fields[0].1 = "allow";
    // Two values at once for one method; the others are judged.
    let more = "allow := true\nallow := false if input.full_method == \"/spire.api.server.agent.v1.Agent/CountAgents\"";
    let world = under(fields, more).await;
    world.entries(local()).count_entries(CountEntriesRequest::default()).await.unwrap();
    let (code, text) = refused(world.agents(local()).count_agents(CountAgentsRequest::default()).await);
    assert_eq!(code, Code::Unknown, "{text}");
    assert!(text.contains("policy.rego:"), "{text}");
}

/// An encoded request as one gRPC message.
pub(super) fn framed(message: &impl prost::Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    frame
}
