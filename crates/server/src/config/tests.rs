//! The server's configuration: tables of files and what they resolve to.

use spire_compat::config::{Level, LogFormat, PluginData, Severity};

use super::*;

/// A minimal file with more keys in `server`.
fn text(server: &str) -> String {
    format!(
        "server {{\n trust_domain = \"example.org\"\n data_dir = \"./data\"\n{server}\n}}\nplugins {{\n KeyManager \"memory\" {{}}\n}}\n"
    )
}

fn resolve(text: &str) -> Result<ServerConfig, ConfigError> {
    ServerConfig::resolve(&ConfigFile::parse("server.conf", text).unwrap(), &ServerFlags::default())
}

fn messages(config: &ServerConfig) -> Vec<&str> {
    config.notices.iter().map(|notice| notice.message.as_str()).collect()
}

#[test]
fn defaults() {
    let config = resolve(&text("")).unwrap();
    assert_eq!(config.bind_address, "0.0.0.0:8081".parse().unwrap());
    assert_eq!(config.socket_path, PathBuf::from(DEFAULT_SOCKET_PATH));
    assert_eq!(config.data_dir, PathBuf::from("./data"));
    assert_eq!(config.trust_domain.name(), "example.org");
    assert_eq!((config.log.level, config.log.format), (Level::Info, LogFormat::Default));
    assert_eq!(config.x509_svid_ttl, Duration::from_secs(3600));
    assert_eq!(config.jwt_svid_ttl, Duration::from_secs(300));
    assert_eq!(config.ca_ttl, Duration::from_secs(86_400));
    assert_eq!(config.agent_ttl, None);
    assert_eq!((config.ca_key_type, config.jwt_key_type), (KeyType::EcP256, KeyType::EcP256));
    assert_eq!(config.ca_subject.organization, ["SPIFFE"]);
    assert!(config.ratelimit_attestation && config.ratelimit_signing);
    assert_eq!(config.experimental.cache_reload_interval, Duration::from_secs(5));
    assert_eq!(config.plugins[0].data, PluginData::None);
    assert!(config.prune_attested_nodes.is_none() && !config.feature_flags.wit_svid);
    assert!(config.notices.is_empty());
}

#[test]
fn flags_come_before_the_file() {
    let file = text(
        "bind_address = \"127.0.0.1\"\nbind_port = \"1234\"\nlog_level = \"debug\"\nsocket_path = \"/a\"",
    );
    let file = ConfigFile::parse("x", file).unwrap();
    let flags = ServerFlags {
        bind_address: Some("[::1]".to_owned()),
        server_port: Some(99),
        log_level: Some("ERROR".to_owned()),
        log_format: Some(String::new()),
        socket_path: Some("/b/../c".to_owned()),
        trust_domain: Some("spiffe://other.org".to_owned()),
        log_source_location: true,
        ..ServerFlags::default()
    };
    let config = ServerConfig::resolve(&file, &flags).unwrap();
    assert_eq!(config.bind_address, "[::1]:99".parse().unwrap());
    assert_eq!(config.log.level, Level::Error);
    assert!(config.log.source_location);
    assert_eq!(config.socket_path, PathBuf::from("/c"));
    assert_eq!(config.trust_domain.name(), "other.org");
}

#[test]
fn agents_that_expired_for_no_time_at_all_are_not_pruned() {
    for off in ["", "0", "0s", "0h0m"] {
        let config = resolve(&text(&format!("prune_attested_nodes_expired_for = \"{off}\"\n"))).unwrap();
        assert_eq!(config.prune_attested_nodes, None, "{off:?}");
    }
}

#[test]
fn values_are_parsed() {
    let config = resolve(&text(
        r#"
admin_ids = ["spiffe://example.org/admin"]
agent_ttl = "2h"
ca_ttl = "72h"
ca_key_type = "RSA-2048"
jwt_key_type = "ec-p384"
ca_subject { country = ["DE"], common_name = "cn" }
prune_attested_nodes_expired_for = "24h"
prune_tofu_nodes = true
proxy_protocol_trusted_cidrs = ["10.0.0.0/8"]
ratelimit { signing = false }
max_attested_node_info_staleness = "5s"
disable_jwt_svids = true
profiling_names = ["cpu"]
experimental {
    feature_flags = ["wit-svid"]
    events_based_cache = true
    event_timeout = "1m"
    require_pq_kem = true
    auth_opa_policy_engine { local { rego_path = "p.rego" } }
}
"#,
    ))
    .unwrap();
    assert_eq!(config.admin_ids[0].path(), "/admin");
    assert_eq!(config.agent_ttl, Some(Duration::from_secs(7200)));
    assert_eq!(
        (config.ca_key_type, config.jwt_key_type, config.wit_key_type),
        (KeyType::Rsa2048, KeyType::EcP384, KeyType::Rsa2048)
    );
    assert_eq!((config.ca_subject.country[0].as_str(), config.ca_subject.common_name.as_str()), ("DE", "cn"));
    assert!(config.ca_subject.organization.is_empty());
    let pruning = config.prune_attested_nodes.as_ref().unwrap();
    assert_eq!((pruning.batch_size, pruning.include_non_reattestable), (1000, true));
    assert!(config.ratelimit_attestation && !config.ratelimit_signing);
    assert!(config.feature_flags.wit_svid);
    assert_eq!(config.experimental.event_timeout, Duration::from_secs(60));
    assert_eq!(config.experimental.policy.as_ref().unwrap().rego_path, "p.rego");
    let expected = [
        (Severity::Debug, "Experimental option 'require_pq_kem' is enabled; all TLS"),
        (Severity::Info, "JWT-SVID profile is disabled"),
        (Severity::Warn, "Experimental features have been enabled. Please see doc/upgrading.md"),
        (Severity::Info, "Using events based cache"),
        (Severity::Warn, "Developer feature flag \"wit-svid\" has been enabled"),
    ];
    assert_eq!(config.notices.len(), expected.len(), "{:?}", messages(&config));
    for (notice, (severity, start)) in config.notices.iter().zip(expected) {
        assert_eq!(notice.severity, severity, "{}", notice.message);
        assert!(notice.message.starts_with(start), "{}", notice.message);
    }
}

#[test]
fn refused_with_the_reference_texts() {
    let cases = [
        ("agent_ttl = \"x\"", "could not parse agent ttl \"x\": time: invalid duration \"x\"", "4:1"),
        (
            "ca_ttl = \"5\"",
            "could not parse default CA ttl \"5\": time: missing unit in duration \"5\"",
            "4:1",
        ),
        (
            "default_x509_svid_ttl = \"a\"",
            "could not parse default X509 SVID ttl \"a\": time: invalid duration \"a\"",
            "4:1",
        ),
        (
            "default_jwt_svid_ttl = \"a\"",
            "could not parse default JWT SVID ttl \"a\": time: invalid duration \"a\"",
            "4:1",
        ),
        (
            "ca_key_type = \"x\"",
            "error parsing ca_key_type: key type \"x\" is unknown; must be one of [rsa-2048, rsa-4096, ec-p256, ec-p384]",
            "4:1",
        ),
        ("admin_ids = [\"x\"]", "could not parse admin ID \"x\": scheme is missing or invalid", "4:1"),
        (
            "proxy_protocol_trusted_cidrs = [\"10\"]",
            "invalid proxy_protocol_trusted_cidrs value \"10\": invalid CIDR address: 10",
            "4:1",
        ),
        ("log_level = \"loud\"", "could not start logger: not a valid logrus Level: \"loud\"", "4:1"),
        ("log_format = \"xml\"", "could not start logger: unknown logger format: \"xml\"", "4:1"),
        (
            "bind_port = 99999",
            "could not resolve bind address \"0.0.0.0:99999\": address 99999: invalid port",
            "4:1",
        ),
        (
            "prune_attested_nodes_expired_for = \"x\"",
            "could not parse prune_attested_nodes_expired_for: time: invalid duration \"x\"",
            "4:1",
        ),
        (
            "max_attested_node_info_staleness = \"\"",
            "could not parse max attested node staleness \"\": time: invalid duration \"\"",
            "4:1",
        ),
        (
            "experimental { event_timeout = \"1s\", sql_transaction_timeout = \"1s\" }",
            "both experimental sql_transaction_timeout and event_timeout set, only set event_timeout",
            "4:38",
        ),
        (
            "experimental {\n cache_reload_interval = \"b\" }",
            "could not parse cache reload interval: time: invalid duration \"b\"",
            "5:2",
        ),
        (
            "experimental { named_pipe_name = \"x\" }",
            "invalid configuration: named_pipe_name is not supported in this platform; please use socket_path instead",
            "4:16",
        ),
        (
            "experimental { feature_flags = [\"x\"] }",
            "error loading feature flags: unknown feature flag(s): [x]",
            "4:16",
        ),
        (
            "bind_port = \"80x\"",
            "unable to decode configuration at \"server.conf\": strconv.ParseInt: parsing \"80x\": invalid syntax",
            "4:13",
        ),
        (
            "audit_log_enabled = 1",
            "unable to decode configuration at \"server.conf\": At 4:21: root.server.audit_log_enabled: unknown type *ast.LiteralType",
            "4:21",
        ),
    ];
    for (server, message, position) in cases {
        let error = resolve(&text(server)).expect_err(server);
        assert_eq!(error.to_string(), message);
        let found = error.location.map(|location| location.pos.to_string()).unwrap_or_default();
        assert_eq!(found, position, "{server}");
    }
}

#[test]
fn what_must_be_there() {
    let whole = [
        ("", "trust_domain must be configured"),
        ("server { trust_domain = \"a.org\" }", "data_dir must be configured"),
        ("server { trust_domain = \"a.org\", data_dir = \"d\" }", "plugins section must be configured"),
        (
            "server { trust_domain = \"A b\", data_dir = \"d\" }\nplugins {}",
            "could not parse trust_domain \"A b\": trust domain characters are limited to lowercase letters, \
             numbers, dots, dashes, and underscores",
        ),
    ];
    for (file, message) in whole {
        assert_eq!(resolve(file).expect_err(file).to_string(), message);
    }
}

#[test]
fn ttls_that_cannot_be_kept() {
    let config = resolve(&text("default_x509_svid_ttl = \"8h\"\nagent_ttl = \"240h\"")).unwrap();
    assert_eq!(
        messages(&config),
        [
            "default_x509_svid_ttl is too high for the configured ca_ttl value. SVIDs with shorter lifetimes may be \
             issued. Please set default_x509_svid_ttl to 4h or less, or the ca_ttl to 48h or more, to guarantee the \
             full default_x509_svid_ttl lifetime when CA rotations are scheduled.",
            "agent_ttl is too high and the ca_ttl is too low. SVIDs with shorter lifetimes may be issued. Please set \
             agent_ttl to 168h or less, and the ca_ttl to 1008h or more, to guarantee the full agent_ttl lifetime \
             when CA rotations are scheduled.",
        ]
    );
    let config = resolve(&text("ca_ttl = \"2000h\"\ndefault_jwt_svid_ttl = \"169h\"")).unwrap();
    assert_eq!(
        messages(&config),
        ["default_jwt_svid_ttl is too high. SVIDs with shorter lifetimes may be issued. Please set \
             default_jwt_svid_ttl to 168h or less to guarantee the full default_jwt_svid_ttl lifetime when CA \
             rotations are scheduled."]
    );
    assert!(resolve(&text("default_x509_svid_ttl = \"4h\"")).unwrap().notices.is_empty());
}

#[test]
fn unknown_keys_are_reported_by_section() {
    let file = r#"
server {
    trust_domain = "example.org"
    data_dir = "d"
    zeta = 1
    alpha = 2
    ca_subject { coutry = ["x"] }
    ratelimit { sign = true }
    federation { typo = 1, bundle_endpoint { adress = "x", acme { domain_name = "d", email = "e", mail = "f" } } }
    experimental { unknown_is_fine = true }
}
plugins {}
telemetry { InMem { x = 1 } }
health_checks { y = 1 }
extra = 1
"#;
    let error = resolve(file).unwrap_err();
    assert_eq!(error.to_string(), "unknown configuration detected");
    let found: Vec<_> = error.unknown.iter().map(|u| format!("{}: {}", u.section, u.joined())).collect();
    assert_eq!(
        found,
        [
            "top-level: extra",
            "server: alpha,zeta",
            "ca_subject: coutry",
            "ratelimit: sign",
            "bundle endpoint: adress",
            "bundle endpoint ACME: mail",
            "InMem: x",
            "health check: y",
        ]
    );
    assert!(error.detail().unwrap().contains("alpha at 6:5, zeta at 5:5"));
    let ignored: Vec<_> =
        error.notices.iter().filter(|n| n.message == "Unknown configuration ignored").collect();
    assert_eq!(ignored.len(), 2, "{ignored:?}");
}

#[test]
fn federation_is_resolved() {
    let config = resolve(&text(
        r#"
federation {
    refuse_private_endpoints = true
    bundle_endpoint {
        address = "127.0.0.1"
        port = 8443
        refresh_hint = "10s"
        profile "https_web" { serving_cert_file { cert_file_path = "c", key_file_path = "k" } }
    }
    federates_with "b.test" {
        bundle_endpoint_url = "https://b.test/bundle"
        bundle_endpoint_profile "https_spiffe" { endpoint_spiffe_id = "spiffe://b.test/server" }
    }
    federates_with "a.test" {
        bundle_endpoint_url = "HTTPS://a.test"
        bundle_endpoint_profile "https_web" {}
    }
    federates_with "old.test" { bundle_endpoint { address = "1.2.3.4", port = 8443 } }
}"#,
    ))
    .unwrap();
    let endpoint = config.federation.bundle_endpoint.as_ref().unwrap();
    assert_eq!((endpoint.port, endpoint.refresh_hint), (8443, Duration::from_secs(10)));
    let files = BundleEndpointProfile::ServingCertFile {
        cert_file: "c".into(),
        key_file: "k".into(),
        file_sync_interval: Duration::from_secs(3600),
    };
    assert_eq!(endpoint.profile, files);
    assert!(config.federation.refuse_private_endpoints);
    let relations = &config.federation.federates_with;
    assert_eq!(
        relations.iter().map(|r| r.trust_domain.name()).collect::<Vec<_>>(),
        ["b.test", "a.test", "old.test"]
    );
    assert_eq!(relations[1].profile, FederationProfile::HttpsWeb);
    assert_eq!(relations[2].bundle_endpoint_url, "https://1.2.3.4:8443");
    let FederationProfile::HttpsSpiffe { endpoint_spiffe_id } = &relations[2].profile else { panic!() };
    assert_eq!(endpoint_spiffe_id.as_str(), "spiffe://old.test/spire/server");
    assert!(messages(&config)[0].starts_with("Bundle endpoint refresh hint set too low."));
}

#[test]
fn federation_is_refused_with_the_reference_texts() {
    let cases = [
        (
            "federates_with \"a\" {}",
            "federation.federates_with[\"a\"].bundle_endpoint_url must be configured",
        ),
        (
            "federates_with \"a\" { bundle_endpoint_url = \"http://a\" }",
            "federation.federates_with[\"a\"].bundle_endpoint_url must use the HTTPS protocol; URL found: \"http://a\"",
        ),
        (
            "federates_with \"a\" { bundle_endpoint_url = \"https://a\" }",
            "federation configuration for trust domain \"a\": missing bundle endpoint configuration",
        ),
        (
            "federates_with \"a\" { bundle_endpoint_url = \"https://a\", bundle_endpoint_profile \"x\" {} }",
            "error parsing federation relationship for trust domain \"a\": no bundle endpoint profile defined; current \
             supported profiles are \"https_spiffe\" and 'https_web\"",
        ),
        ("bundle_endpoint { acme {} }", "federation.bundle_endpoint.acme.domain_name must be configured"),
        (
            "bundle_endpoint { profile \"https_web\" {} }",
            "malformed https_web profile configuration: 'acme' or 'serving_cert_file' is required",
        ),
        (
            "bundle_endpoint { profile \"https_web\" {}\n profile \"https_spiffe\" {} }",
            "exactly one bundle endpoint profile is expected",
        ),
        (
            "bundle_endpoint { refresh_hint = \"x\" }",
            "could not parse refresh_hint \"x\": time: invalid duration \"x\"",
        ),
    ];
    for (federation, message) in cases {
        let error = resolve(&text(&format!("federation {{ {federation} }}"))).expect_err(federation);
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn old_keys() {
    let config = resolve(&text(
        "registration_uds_path = \"/old\"\ndefault_svid_ttl = \"2h\"\nupstream_bundle = true\numask = \"0077\"\n\
         allow_unsafe_ids = false\nexperimental { bundle_endpoint_enabled = true, bundle_endpoint_port = 443 }",
    ))
    .unwrap();
    assert_eq!(config.socket_path, PathBuf::from("/old"));
    assert_eq!(config.x509_svid_ttl, Duration::from_secs(7200));
    assert_eq!(config.jwt_svid_ttl, Duration::from_secs(300));
    let old: Vec<_> = config
        .notices
        .iter()
        .filter(|notice| notice.message.starts_with("Old configuration key"))
        .map(|notice| notice.fields.iter().find(|(name, _)| *name == "key").unwrap().1.as_str())
        .collect();
    assert_eq!(
        old,
        [
            "server.experimental.bundle_endpoint_enabled",
            "server.experimental.bundle_endpoint_port",
            "server.registration_uds_path",
            "server.default_svid_ttl",
            "server.upstream_bundle",
            "server.umask",
            "server.allow_unsafe_ids",
        ]
    );
    let new_wins = resolve(&text("registration_uds_path = \"/old\"\nsocket_path = \"/new\"")).unwrap();
    assert_eq!(new_wins.socket_path, PathBuf::from("/new"));
    for refused in ["upstream_bundle = false", "experimental { allow_agentless_node_attestors = true }"] {
        let error = resolve(&text(refused)).expect_err(refused);
        assert!(error.detail().unwrap().starts_with("server.conf:4:"), "{error}");
    }
}

/// The first tutorial that SPIRE's users met, as written then.
#[test]
fn a_file_of_2020_starts() {
    let file = r#"
server {
    bind_address = "127.0.0.1"
    bind_port = "8081"
    registration_uds_path = "/tmp/spire-registration.sock"
    trust_domain = "example.org"
    data_dir = "./.data"
    log_level = "DEBUG"
    upstream_bundle = true
    default_svid_ttl = "1h"
    ca_subject = {
        country = ["US"],
        organization = ["SPIFFE"],
        common_name = "",
    }
}
plugins {
    DataStore "sql" {
        plugin_data {
            database_type = "sqlite3"
            connection_string = "./.data/datastore.sqlite3"
        }
    }
    NodeAttestor "join_token" {
        plugin_data {
        }
    }
    NodeResolver "noop" {
        plugin_data {}
    }
    KeyManager "memory" {
        plugin_data = {}
    }
    UpstreamCA "disk" {
        plugin_data {
            key_file_path = "./conf/server/dummy_upstream_ca.key"
            cert_file_path = "./conf/server/dummy_upstream_ca.crt"
        }
    }
}
"#;
    let config = resolve(file).unwrap();
    assert_eq!(config.bind_address, "127.0.0.1:8081".parse().unwrap());
    let plugins: Vec<_> = config.plugins.iter().map(|p| (p.kind.as_str(), p.name.as_str())).collect();
    assert_eq!(
        plugins,
        [
            ("DataStore", "sql"),
            ("NodeAttestor", "join_token"),
            ("KeyManager", "memory"),
            ("UpstreamAuthority", "disk")
        ]
    );
    let PluginData::Fixed(data) = &config.plugins[3].data else { panic!() };
    assert_eq!(
        data.body().unwrap().take_string("key_file_path").unwrap().as_deref(),
        Some("./conf/server/dummy_upstream_ca.key")
    );
    assert_eq!(config.notices.len(), 5);
}

#[test]
fn a_file_of_2022_starts() {
    let file = text("ca_ttl = \"168h\"\ndefault_svid_ttl = \"48h\"");
    let config = resolve(&file).unwrap();
    assert_eq!(config.x509_svid_ttl, Duration::from_secs(48 * 3600));
    assert!(
        messages(&config)[1]
            .starts_with("default_x509_svid_ttl is too high for the configured ca_ttl value.")
    );
    let today = resolve(&text("ca_ttl = \"168h\"\ndefault_x509_svid_ttl = \"48h\"")).unwrap();
    assert_eq!(today.notices.len(), 1);
}

#[test]
fn json_is_a_configuration_too() {
    let file = r#"{"server": {"trust_domain": "example.org", "data_dir": "d", "bind_port": 8082,
        "federation": {"federates_with": {"b.test": {"bundle_endpoint_url": "https://b.test",
            "bundle_endpoint_profile": {"https_web": {}}}}}},
      "plugins": {"KeyManager": {"memory": {"plugin_data": {}}}, "NodeAttestor": {"join_token": {}}}}"#;
    let config = resolve(file).unwrap();
    assert_eq!(config.bind_address.port(), 8082);
    assert_eq!(config.plugins.len(), 2);
    assert_eq!(config.federation.federates_with.len(), 1);
}
