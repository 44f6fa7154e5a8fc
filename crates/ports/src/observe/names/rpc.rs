//! Names of the per-RPC metrics: `rpc.…` and `rateLimit.…`, found by the method's full name.
//!
//! The reference derives them from the method's path (`pkg/common/api/middleware/names.go`); odd results such as
//! `fetch_jwtsvi_ds` are part of the contract, so they stand in a table.

use super::Name;

/// The call metric of a gRPC method, such as `/spire.api.server.agent.v1.Agent/AttestAgent` (with or without the
/// leading slash); labels: `status`. `None` for a method that neither the reference nor we serve.
pub fn rpc(full_method: &str) -> Option<Name> {
    find(RPC, full_method).or_else(|| find(OURS, full_method))
}

/// The call metric of the wait for a method's rate limit; labels: `status`. `None` for a method without a limit.
pub fn rate_limit(full_method: &str) -> Option<Name> {
    find(RATE_LIMIT, full_method)
}

fn find(table: &[(&str, Name)], full_method: &str) -> Option<Name> {
    let method = full_method.strip_prefix('/').unwrap_or(full_method);
    let index = table.binary_search_by(|(name, _)| (*name).cmp(method)).ok()?;
    table.get(index).map(|(_, name)| *name)
}

/// What the reference has not, sorted by method.
const OURS: &[(&str, Name)] = &[
    ("spire.explain.v1.Caller/Explain", &["rpc", "explain", "v1", "caller", "explain"]),
    ("spire.explain.v1.Process/Explain", &["rpc", "explain", "v1", "process", "explain"]),
];

/// Sorted by method, for the binary search.
const RPC: &[(&str, Name)] = &[
    ("SpiffeWorkloadAPI/FetchJWTBundles", &["rpc", "workload_api", "fetch_jwt_bundles"]),
    ("SpiffeWorkloadAPI/FetchJWTSVID", &["rpc", "workload_api", "fetch_jwtsvid"]),
    ("SpiffeWorkloadAPI/FetchWITBundles", &["rpc", "workload_api", "fetch_wit_bundles"]),
    ("SpiffeWorkloadAPI/FetchWITSVID", &["rpc", "workload_api", "fetch_witsvid"]),
    ("SpiffeWorkloadAPI/FetchX509Bundles", &["rpc", "workload_api", "fetch_x509_bundles"]),
    ("SpiffeWorkloadAPI/FetchX509SVID", &["rpc", "workload_api", "fetch_x509svid"]),
    ("SpiffeWorkloadAPI/ValidateJWTSVID", &["rpc", "workload_api", "validate_jwtsvid"]),
    ("envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets", &["rpc", "sds", "v3", "delta_secrets"]),
    ("envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets", &["rpc", "sds", "v3", "fetch_secrets"]),
    ("envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets", &["rpc", "sds", "v3", "stream_secrets"]),
    ("grpc.health.v1.Health/Check", &["rpc", "health", "check"]),
    ("grpc.health.v1.Health/List", &["rpc", "health", "list"]),
    ("grpc.health.v1.Health/Watch", &["rpc", "health", "watch"]),
    ("spiffe.broker.API/FetchJWTSVID", &["rpc", "spiffe", "broker", "api", "fetch_jwtsvid"]),
    (
        "spiffe.broker.API/SubscribeToJWTBundles",
        &["rpc", "spiffe", "broker", "api", "subscribe_to_jwt_bundles"],
    ),
    (
        "spiffe.broker.API/SubscribeToX509Bundles",
        &["rpc", "spiffe", "broker", "api", "subscribe_to_x509_bundles"],
    ),
    ("spiffe.broker.API/SubscribeToX509SVID", &["rpc", "spiffe", "broker", "api", "subscribe_to_x509svid"]),
    ("spire.agent.debug.v1.Debug/GetInfo", &["rpc", "debug", "get_info"]),
    (
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity/FetchJWTSVIDs",
        &["rpc", "delegated_identity", "fetch_jwtsvi_ds"],
    ),
    (
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity/SubscribeToJWTBundles",
        &["rpc", "delegated_identity", "subscribe_to_jwt_bundles"],
    ),
    (
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity/SubscribeToX509Bundles",
        &["rpc", "delegated_identity", "subscribe_to_x509_bundles"],
    ),
    (
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity/SubscribeToX509SVIDs",
        &["rpc", "delegated_identity", "subscribe_to_x509_svids"],
    ),
    ("spire.api.agent.logger.v1.Logger/GetLogger", &["rpc", "logger", "get_logger"]),
    ("spire.api.agent.logger.v1.Logger/ResetLogLevel", &["rpc", "logger", "reset_log_level"]),
    ("spire.api.agent.logger.v1.Logger/SetLogLevel", &["rpc", "logger", "set_log_level"]),
    ("spire.api.server.agent.v1.Agent/AttestAgent", &["rpc", "agent", "v1", "agent", "attest_agent"]),
    ("spire.api.server.agent.v1.Agent/BanAgent", &["rpc", "agent", "v1", "agent", "ban_agent"]),
    ("spire.api.server.agent.v1.Agent/CountAgents", &["rpc", "agent", "v1", "agent", "count_agents"]),
    (
        "spire.api.server.agent.v1.Agent/CreateJoinToken",
        &["rpc", "agent", "v1", "agent", "create_join_token"],
    ),
    ("spire.api.server.agent.v1.Agent/DeleteAgent", &["rpc", "agent", "v1", "agent", "delete_agent"]),
    ("spire.api.server.agent.v1.Agent/GetAgent", &["rpc", "agent", "v1", "agent", "get_agent"]),
    ("spire.api.server.agent.v1.Agent/ListAgents", &["rpc", "agent", "v1", "agent", "list_agents"]),
    ("spire.api.server.agent.v1.Agent/PostStatus", &["rpc", "agent", "v1", "agent", "post_status"]),
    ("spire.api.server.agent.v1.Agent/RenewAgent", &["rpc", "agent", "v1", "agent", "renew_agent"]),
    ("spire.api.server.bundle.v1.Bundle/AppendBundle", &["rpc", "bundle", "v1", "bundle", "append_bundle"]),
    (
        "spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle",
        &["rpc", "bundle", "v1", "bundle", "batch_create_federated_bundle"],
    ),
    (
        "spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle",
        &["rpc", "bundle", "v1", "bundle", "batch_delete_federated_bundle"],
    ),
    (
        "spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle",
        &["rpc", "bundle", "v1", "bundle", "batch_set_federated_bundle"],
    ),
    (
        "spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle",
        &["rpc", "bundle", "v1", "bundle", "batch_update_federated_bundle"],
    ),
    ("spire.api.server.bundle.v1.Bundle/CountBundles", &["rpc", "bundle", "v1", "bundle", "count_bundles"]),
    ("spire.api.server.bundle.v1.Bundle/GetBundle", &["rpc", "bundle", "v1", "bundle", "get_bundle"]),
    (
        "spire.api.server.bundle.v1.Bundle/GetFederatedBundle",
        &["rpc", "bundle", "v1", "bundle", "get_federated_bundle"],
    ),
    (
        "spire.api.server.bundle.v1.Bundle/ListFederatedBundles",
        &["rpc", "bundle", "v1", "bundle", "list_federated_bundles"],
    ),
    (
        "spire.api.server.bundle.v1.Bundle/PublishJWTAuthority",
        &["rpc", "bundle", "v1", "bundle", "publish_jwt_authority"],
    ),
    (
        "spire.api.server.bundle.v1.Bundle/PublishWITAuthority",
        &["rpc", "bundle", "v1", "bundle", "publish_wit_authority"],
    ),
    ("spire.api.server.debug.v1.Debug/GetInfo", &["rpc", "debug", "v1", "debug", "get_info"]),
    (
        "spire.api.server.entry.v1.Entry/BatchCreateEntry",
        &["rpc", "entry", "v1", "entry", "batch_create_entry"],
    ),
    (
        "spire.api.server.entry.v1.Entry/BatchDeleteEntry",
        &["rpc", "entry", "v1", "entry", "batch_delete_entry"],
    ),
    (
        "spire.api.server.entry.v1.Entry/BatchUpdateEntry",
        &["rpc", "entry", "v1", "entry", "batch_update_entry"],
    ),
    ("spire.api.server.entry.v1.Entry/CountEntries", &["rpc", "entry", "v1", "entry", "count_entries"]),
    (
        "spire.api.server.entry.v1.Entry/GetAuthorizedEntries",
        &["rpc", "entry", "v1", "entry", "get_authorized_entries"],
    ),
    ("spire.api.server.entry.v1.Entry/GetEntry", &["rpc", "entry", "v1", "entry", "get_entry"]),
    ("spire.api.server.entry.v1.Entry/ListEntries", &["rpc", "entry", "v1", "entry", "list_entries"]),
    (
        "spire.api.server.entry.v1.Entry/SyncAuthorizedEntries",
        &["rpc", "entry", "v1", "entry", "sync_authorized_entries"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority",
        &["rpc", "localauthority", "v1", "local_authority", "activate_jwt_authority"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/ActivateWITAuthority",
        &["rpc", "localauthority", "v1", "local_authority", "activate_wit_authority"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority",
        &["rpc", "localauthority", "v1", "local_authority", "activate_x509_authority"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState",
        &["rpc", "localauthority", "v1", "local_authority", "get_jwt_authority_state"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/GetWITAuthorityState",
        &["rpc", "localauthority", "v1", "local_authority", "get_wit_authority_state"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/GetX509AuthorityState",
        &["rpc", "localauthority", "v1", "local_authority", "get_x509_authority_state"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority",
        &["rpc", "localauthority", "v1", "local_authority", "prepare_jwt_authority"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/PrepareWITAuthority",
        &["rpc", "localauthority", "v1", "local_authority", "prepare_wit_authority"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority",
        &["rpc", "localauthority", "v1", "local_authority", "prepare_x509_authority"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority",
        &["rpc", "localauthority", "v1", "local_authority", "revoke_jwt_authority"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/RevokeWITAuthority",
        &["rpc", "localauthority", "v1", "local_authority", "revoke_wit_authority"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority",
        &["rpc", "localauthority", "v1", "local_authority", "revoke_x509_authority"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/RevokeX509UpstreamAuthority",
        &["rpc", "localauthority", "v1", "local_authority", "revoke_x509_upstream_authority"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority",
        &["rpc", "localauthority", "v1", "local_authority", "taint_jwt_authority"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/TaintWITAuthority",
        &["rpc", "localauthority", "v1", "local_authority", "taint_wit_authority"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority",
        &["rpc", "localauthority", "v1", "local_authority", "taint_x509_authority"],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority",
        &["rpc", "localauthority", "v1", "local_authority", "taint_x509_upstream_authority"],
    ),
    ("spire.api.server.logger.v1.Logger/GetLogger", &["rpc", "logger", "get_logger"]),
    ("spire.api.server.logger.v1.Logger/ResetLogLevel", &["rpc", "logger", "reset_log_level"]),
    ("spire.api.server.logger.v1.Logger/SetLogLevel", &["rpc", "logger", "set_log_level"]),
    ("spire.api.server.svid.v1.SVID/BatchNewWITSVID", &["rpc", "svid", "v1", "svid", "batch_new_witsvid"]),
    ("spire.api.server.svid.v1.SVID/BatchNewX509SVID", &["rpc", "svid", "v1", "svid", "batch_new_x509svid"]),
    ("spire.api.server.svid.v1.SVID/MintJWTSVID", &["rpc", "svid", "v1", "svid", "mint_jwtsvid"]),
    ("spire.api.server.svid.v1.SVID/MintWITSVID", &["rpc", "svid", "v1", "svid", "mint_witsvid"]),
    ("spire.api.server.svid.v1.SVID/MintX509SVID", &["rpc", "svid", "v1", "svid", "mint_x509svid"]),
    (
        "spire.api.server.svid.v1.SVID/NewDownstreamX509CA",
        &["rpc", "svid", "v1", "svid", "new_downstream_x509ca"],
    ),
    ("spire.api.server.svid.v1.SVID/NewJWTSVID", &["rpc", "svid", "v1", "svid", "new_jwtsvid"]),
    (
        "spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship",
        &["rpc", "trustdomain", "v1", "trust_domain", "batch_create_federation_relationship"],
    ),
    (
        "spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship",
        &["rpc", "trustdomain", "v1", "trust_domain", "batch_delete_federation_relationship"],
    ),
    (
        "spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship",
        &["rpc", "trustdomain", "v1", "trust_domain", "batch_update_federation_relationship"],
    ),
    (
        "spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship",
        &["rpc", "trustdomain", "v1", "trust_domain", "get_federation_relationship"],
    ),
    (
        "spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships",
        &["rpc", "trustdomain", "v1", "trust_domain", "list_federation_relationships"],
    ),
    (
        "spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle",
        &["rpc", "trustdomain", "v1", "trust_domain", "refresh_bundle"],
    ),
];

/// Sorted by method, for the binary search.
const RATE_LIMIT: &[(&str, Name)] = &[
    ("spire.api.server.agent.v1.Agent/AttestAgent", &["rateLimit", "agent", "v1", "agent", "attest_agent"]),
    ("spire.api.server.agent.v1.Agent/PostStatus", &["rateLimit", "agent", "v1", "agent", "post_status"]),
    ("spire.api.server.agent.v1.Agent/RenewAgent", &["rateLimit", "agent", "v1", "agent", "renew_agent"]),
    (
        "spire.api.server.bundle.v1.Bundle/PublishJWTAuthority",
        &["rateLimit", "bundle", "v1", "bundle", "publish_jwt_authority"],
    ),
    (
        "spire.api.server.bundle.v1.Bundle/PublishWITAuthority",
        &["rateLimit", "bundle", "v1", "bundle", "publish_wit_authority"],
    ),
    (
        "spire.api.server.svid.v1.SVID/BatchNewWITSVID",
        &["rateLimit", "svid", "v1", "svid", "batch_new_witsvid"],
    ),
    (
        "spire.api.server.svid.v1.SVID/BatchNewX509SVID",
        &["rateLimit", "svid", "v1", "svid", "batch_new_x509svid"],
    ),
    (
        "spire.api.server.svid.v1.SVID/NewDownstreamX509CA",
        &["rateLimit", "svid", "v1", "svid", "new_downstream_x509ca"],
    ),
    ("spire.api.server.svid.v1.SVID/NewJWTSVID", &["rateLimit", "svid", "v1", "svid", "new_jwtsvid"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted() {
        for table in [RPC, RATE_LIMIT] {
            assert!(table.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
    }

    #[test]
    fn methods_are_found_with_and_without_the_slash() {
        let attest: Name = &["rpc", "agent", "v1", "agent", "attest_agent"];
        assert_eq!(rpc("/spire.api.server.agent.v1.Agent/AttestAgent"), Some(attest));
        assert_eq!(rpc("spire.api.server.agent.v1.Agent/AttestAgent"), Some(attest));
        let odd: Name = &["rpc", "delegated_identity", "fetch_jwtsvi_ds"];
        assert_eq!(rpc("/spire.api.agent.delegatedidentity.v1.DelegatedIdentity/FetchJWTSVIDs"), Some(odd));
        assert_eq!(rpc("/spire.api.server.agent.v1.Agent/NoSuch"), None);
        let limited: Name = &["rateLimit", "svid", "v1", "svid", "new_jwtsvid"];
        assert_eq!(rate_limit("/spire.api.server.svid.v1.SVID/NewJWTSVID"), Some(limited));
        assert_eq!(rate_limit("/spire.api.server.agent.v1.Agent/ListAgents"), None);
    }
}
