//! The agent's configuration: tables of files and what they resolve to.

use spire_compat::config::{Level, PluginData};

use super::*;

/// A minimal file with more keys in `agent`.
fn text(agent: &str) -> String {
    format!("{}{agent}\n}}\nplugins {{\n KeyManager \"memory\" {{}}\n}}\n", HEAD)
}

const HEAD: &str =
    "agent {\n trust_domain = \"example.org\"\n server_address = \"localhost\"\n server_port = 8081\n";

/// Like [`text`] with a bundle file as well.
fn with_bundle(agent: &str) -> String {
    text(&format!("trust_bundle_path = \"b.crt\"\n{agent}"))
}

fn resolve(text: &str) -> Result<AgentConfig, ConfigError> {
    AgentConfig::resolve(&ConfigFile::parse("agent.conf", text).unwrap(), &AgentFlags::default())
}

fn messages(config: &AgentConfig) -> Vec<&str> {
    config.notices.iter().map(|notice| notice.message.as_str()).collect()
}

#[test]
fn defaults() {
    let config = resolve(&with_bundle("")).unwrap();
    assert_eq!(config.data_dir, PathBuf::from("."));
    assert_eq!((config.server_address.as_str(), config.server_port), ("localhost", 8081));
    assert_eq!(config.socket_path.as_deref(), Some(Path::new(DEFAULT_SOCKET_PATH)));
    assert_eq!(config.admin_socket_path, None);
    let file = TrustBundleSource::File { path: "b.crt".to_owned(), format: BundleFormat::Pem };
    assert_eq!(config.trust_bundle, file);
    assert_eq!(config.rebootstrap_mode, RebootstrapMode::Never);
    assert_eq!(config.rebootstrap_delay, Duration::from_secs(600));
    assert_eq!(config.sync_interval, Duration::from_secs(5));
    assert_eq!((config.x509_svid_cache_max_size, config.jwt_svid_cache_max_size), (1000, 1000));
    assert_eq!(config.sds.default_bundle_name, "ROOTCA");
    assert_eq!(config.workload_key_type, KeyType::EcP256);
    assert!(config.use_sync_authorized_entries && config.join_token.is_none());
    assert_eq!(config.ratelimit, RateLimits::default());
    assert!(config.notices.is_empty());
}

#[test]
fn flags_come_before_the_file() {
    let file = ConfigFile::parse("x", with_bundle("join_token = \"a\"\nlog_level = \"debug\"")).unwrap();
    let flags = AgentFlags {
        join_token: Some("b".to_owned()),
        server_port: Some(99),
        server_address: Some("h".to_owned()),
        trust_domain: Some("other.org".to_owned()),
        log_level: Some("warn".to_owned()),
        data_dir: Some("/d".to_owned()),
        disable_workload_api: true,
        disable_sds_api: true,
        trust_bundle_format: Some("spiffe".to_owned()),
        ..AgentFlags::default()
    };
    let config = AgentConfig::resolve(&file, &flags).unwrap();
    assert_eq!(config.join_token.as_deref(), Some("b"));
    assert_eq!((config.server_address.as_str(), config.server_port), ("h", 99));
    assert_eq!(config.trust_domain.name(), "other.org");
    assert_eq!((config.log.level, config.data_dir), (Level::Warn, PathBuf::from("/d")));
    assert_eq!(config.socket_path, None);
    let source = TrustBundleSource::File { path: "b.crt".to_owned(), format: BundleFormat::Spiffe };
    assert_eq!(config.trust_bundle, source);
}

#[test]
fn values_are_parsed() {
    let config = resolve(&with_bundle(
        r#"
admin_socket_path = "/tmp/other/admin.sock"
authorized_delegates = ["spiffe://example.org/d"]
availability_target = "48h"
workload_x509_svid_key_type = "ec-p384"
rebootstrap_mode = "auto"
sds { default_svid_name = "s", default_bundle_name = "ALL" }
experimental {
    sync_interval = "7s"
    jwt_svid_cache_hit_timeout = "6s"
    use_sync_authorized_entries = false
    ratelimit { fetch_jwt_svid = 5 }
    broker {
        bind_address = "127.0.0.1:8443"
        brokers = [{ id = "spiffe://b.org/x", allowed_reference_types = [{ type_url = "*", allow_over_tcp = true }] }]
    }
}
"#,
    ))
    .unwrap();
    assert_eq!(config.admin_socket_path.as_deref(), Some(Path::new("/tmp/other/admin.sock")));
    assert_eq!(config.authorized_delegates[0].path(), "/d");
    assert_eq!(config.availability_target, Some(Duration::from_secs(48 * 3600)));
    assert_eq!(config.workload_key_type, KeyType::EcP384);
    assert_eq!(config.rebootstrap_mode, RebootstrapMode::Auto);
    assert_eq!(config.sync_interval, Duration::from_secs(7));
    assert_eq!(config.jwt_svid_cache_hit_timeout, Some(Duration::from_secs(6)));
    assert!(!config.use_sync_authorized_entries);
    assert_eq!(config.ratelimit.fetch_jwt_svid, 5);
    let broker = config.broker.as_ref().unwrap();
    assert_eq!(broker.bind_address, Some("127.0.0.1:8443".parse().unwrap()));
    assert!(broker.brokers[0].allowed_reference_types[0].allow_over_tcp);
    let starts = [
        "The use of 'jwt_svid_cache_hit_timeout' is experimental",
        "The 'use_sync_authorized_entries' configuration is deprecated.",
        "The \"default_bundle_name\" and \"default_all_bundles_name\" configurables have the same value.",
        "Experimental features have been enabled.",
    ];
    assert_eq!(config.notices.len(), starts.len(), "{:?}", messages(&config));
    for (message, start) in messages(&config).into_iter().zip(starts) {
        assert!(message.starts_with(start), "{message}");
    }
}

#[test]
fn bootstrap_sources() {
    let source =
        |keys: &str| resolve(&text(keys)).map(|config| config.trust_bundle).map_err(|e| e.to_string());
    assert_eq!(source("insecure_bootstrap = true"), Ok(TrustBundleSource::Insecure));
    assert_eq!(
        source("trust_bundle_url = \"https://x/b\"\ntrust_bundle_format = \"spiffe\""),
        Ok(TrustBundleSource::Url {
            url: "https://x/b".to_owned(),
            unix_socket: None,
            format: BundleFormat::Spiffe
        })
    );
    assert_eq!(
        source("trust_bundle_url = \"http://x/b?a=1\"\ntrust_bundle_unix_socket = \"/s\""),
        Ok(TrustBundleSource::Url {
            url: "http://x/b?a=1".to_owned(),
            unix_socket: Some("/s".to_owned()),
            format: BundleFormat::Pem
        })
    );
    let api = |address: &str| source(&format!("trust_bundle_spiffe_workload_api = \"{address}\""));
    for address in ["unix:///run/a.sock", "tcp://127.0.0.1:8000", "tcp://[::1]:8000"] {
        assert_eq!(api(address), Ok(TrustBundleSource::WorkloadApi { address: address.to_owned() }));
    }
    let prefix = "trust_bundle_spiffe_workload_api is not a valid SPIFFE Workload API endpoint address: ";
    for (address, message) in [
        ("unix:a.sock", "workload endpoint unix socket URI must not be opaque"),
        ("unix://", "workload endpoint unix socket URI must include a path"),
        ("unix:///a?b", "workload endpoint unix socket URI must not include query values"),
        ("tcp://localhost:1", "workload endpoint tcp socket URI host component must be an IP:port"),
        ("tcp://127.0.0.1", "workload endpoint tcp socket URI host component must include a port"),
        ("tcp://u@127.0.0.1:1", "workload endpoint tcp socket URI must not include user info"),
        ("tcp://127.0.0.1:1/x", "workload endpoint tcp socket URI must not include a path"),
        ("/a.sock", "workload endpoint socket URI must have a \"tcp\" or \"unix\" scheme"),
    ] {
        assert_eq!(api(address), Err(format!("{prefix}{message}")), "{address}");
    }
    for (keys, message) in [
        (
            "",
            "trust_bundle_path, trust_bundle_url, or trust_bundle_spiffe_workload_api must be configured unless \
             insecure_bootstrap is set",
        ),
        (
            "insecure_bootstrap = true\ntrust_bundle_path = \"x\"\ntrust_bundle_url = \"https://x\"",
            "only one of insecure_bootstrap, trust_bundle_url, or trust_bundle_path can be specified, not the three \
             options",
        ),
        (
            "insecure_bootstrap = true\ntrust_bundle_path = \"x\"",
            "only one of insecure_bootstrap or trust_bundle_path can be specified, not both",
        ),
        (
            "trust_bundle_url = \"https://x\"\ntrust_bundle_path = \"x\"",
            "only one of trust_bundle_url or trust_bundle_path can be specified, not both",
        ),
        ("trust_bundle_url = \"http://x\"", "trust bundle URL must start with https://"),
        (
            "trust_bundle_url = \"https://x\"\ntrust_bundle_unix_socket = \"/s\"",
            "trust bundle URL must start with http:// when used with trust bundle unix socket",
        ),
        (
            "trust_bundle_url = \"http://x?a=1&spiffe%2Dx=1\"\ntrust_bundle_unix_socket = \"/s\"",
            "trust_bundle_url query params can not start with spiffe-",
        ),
        (
            "insecure_bootstrap = true\ntrust_bundle_unix_socket = \"/s\"",
            "if trust_bundle_unix_socket is specified, so must be trust_bundle_url",
        ),
        (
            "trust_bundle_path = \"x\"\ntrust_bundle_format = \"der\"",
            "invalid value for trust_bundle_format, expected \"pem\" or \"spiffe\"",
        ),
        (
            "insecure_bootstrap = true\nrebootstrap_mode = \"always\"",
            "insecure_bootstrap option can not be used with rebootstrapping",
        ),
    ] {
        assert_eq!(source(keys), Err(message.to_owned()), "{keys}");
    }
}

#[test]
fn refused_with_the_reference_texts() {
    let cases = [
        ("availability_target = \"1h\"", "availability_target must be at least 24h0m0s"),
        ("availability_target = \"x\"", "unable to parse availability_target: time: invalid duration \"x\""),
        ("rebootstrap_mode = \"x\"", "unknown rebootstrap mode specified: x"),
        (
            "rebootstrap_delay = \"x\"",
            "error parsing rebootstrap delay duration: time: invalid duration \"x\"",
        ),
        ("x509_svid_cache_max_size = -1", "x509_svid_cache_max_size should not be negative"),
        ("jwt_svid_cache_max_size = -1", "jwt_svid_cache_max_size should not be negative"),
        (
            "workload_x509_svid_key_type = \"rsa-4096\"",
            "key type \"rsa-4096\" is unknown; must be one of [rsa-2048, ec-p256, ec-p384]",
        ),
        (
            "authorized_delegates = [\"spiffe://x.org/a\"]",
            "error validating authorized delegate: SPIFFE ID \"spiffe://x.org/a\" is not a member of trust domain \
             \"example.org\"",
        ),
        (
            "admin_socket_path = \"/tmp/spire-agent/public/x/../admin.sock\"",
            "admin socket cannot be in the same directory or a subdirectory as that containing the Workload API socket",
        ),
        (
            "join_token = \"a\"\njoin_token_file = \"b\"",
            "only one of join_token or join_token_file can be specified, not both",
        ),
        (
            "join_token_file = \"/nonexistent\"",
            "unable to read join token file \"/nonexistent\": open /nonexistent: no such file or directory",
        ),
        (
            "experimental { jwt_svid_cache_hit_timeout = \"4s\" }",
            "jwt_svid_cache_hit_timeout (4s) must be greater than 5s",
        ),
        (
            "experimental { jwt_svid_cache_hit_timeout = \"30s\" }",
            "jwt_svid_cache_hit_timeout (30s) must be less than 30s",
        ),
        (
            "experimental { sync_interval = \"x\" }",
            "could not parse synchronization interval: time: invalid duration \"x\"",
        ),
        (
            "experimental { ratelimit { fetch_secrets = -1 } }",
            "experimental.ratelimit.fetch_secrets must not be negative",
        ),
        ("experimental { broker {} }", "experimental.broker requires socket_path, bind_address, or both"),
        (
            "experimental { broker { socket_path = \"/tmp/spire-agent/public/b.sock\" } }",
            "broker socket cannot be in the same directory or a subdirectory as that containing the Workload API socket",
        ),
        (
            "experimental { broker { bind_address = \":1\", brokers = [{}] } }",
            "experimental.broker.brokers[0].id: must be specified",
        ),
        (
            "experimental { broker { bind_address = \":1\", brokers = [{ id = \"spiffe://a/b\" }] } }",
            "experimental.broker.brokers[spiffe://a/b].allowed_reference_types: must list at least one reference type URL",
        ),
        (
            "experimental { admin_named_pipe_name = \"x\" }",
            "invalid configuration: admin_named_pipe_name is not supported in this platform; please use \
             admin_socket_path instead",
        ),
        (
            "server_port = \"x\"",
            "unable to decode configuration at \"agent.conf\": strconv.ParseInt: parsing \"x\": invalid syntax",
        ),
    ];
    for (agent, message) in cases {
        let error = resolve(&with_bundle(agent)).expect_err(agent);
        assert_eq!(error.to_string(), message);
        assert!(error.location.is_some(), "{agent}");
    }
    let whole = [
        ("agent {}", "plugins section must be configured"),
        ("plugins {}", "server_address must be configured"),
        ("agent { server_address = \"x\" }\nplugins {}", "server_port must be configured"),
        ("agent { server_address = \"x\", server_port = 1 }\nplugins {}", "trust_domain must be configured"),
    ];
    for (file, message) in whole {
        assert_eq!(resolve(file).expect_err(file).to_string(), message);
    }
}

#[test]
fn unknown_keys_are_reported_by_section() {
    let file = format!(
        "{HEAD}trust_bundle_path = \"x\"\nb = 1\na = 1\nsds {{ typo = 1 }}\nexperimental {{ odd = 1, ratelimit {{ r = 1 }}, \
         broker {{ socket_path = \"/b\", s = 1, brokers = [{{ id = \"spiffe://a/b\", t = 1, \
         allowed_reference_types = [{{ type_url = \"*\", u = 1 }}] }}] }} }}\n}}\nplugins {{}}\ntop = 1\n\
         telemetry {{ Statsd = [{{ x = 1 }}] }}\nhealth_checks {{ y = 1 }}"
    );
    let error = resolve(&file).unwrap_err();
    assert_eq!(error.to_string(), "unknown configuration detected");
    let found: Vec<_> = error.unknown.iter().map(|u| format!("{}: {}", u.section, u.joined())).collect();
    assert_eq!(
        found,
        [
            "top-level: top",
            "agent: a,b",
            "experimental.broker: s",
            "experimental.broker.brokers[0]: t",
            "experimental.broker.brokers[0].allowed_reference_types[0]: u",
            "Statsd: x",
            "health check: y",
            "ratelimit: r",
        ]
    );
    assert_eq!(error.notices.len(), 2, "sds and experimental are not checked: {:?}", error.notices);
}

#[test]
fn old_keys() {
    let config = resolve(&with_bundle(
        "enable_sds = true\nretry_bootstrap = true\numask = \"0077\"\nsds { enable_deprecated_v2_api = true }\n\
         experimental { x509_svid_cache_max_size = 7, disable_lru_cache = true }",
    ))
    .unwrap();
    assert_eq!(config.x509_svid_cache_max_size, 7);
    assert_eq!(config.notices.len(), 6, "{:?}", messages(&config));
}

/// The agent's file of the first tutorial that SPIRE's users met, as written then.
#[test]
fn a_file_of_2020_starts() {
    let file = r#"
agent {
    data_dir = "./.data"
    log_level = "DEBUG"
    server_address = "127.0.0.1"
    server_port = "8081"
    socket_path = "/tmp/agent.sock"
    trust_bundle_path = "./conf/agent/dummy_root_ca.crt"
    trust_domain = "example.org"
}
plugins {
    NodeAttestor "join_token" {
        plugin_data {
        }
    }
    KeyManager "disk" {
        plugin_data {
            directory = "./.data"
        }
    }
    WorkloadAttestor "k8s" {
        plugin_data {
            kubelet_read_only_port = "10255"
        }
    }
    WorkloadAttestor "unix" {
        plugin_data {
        }
    }
    WorkloadAttestor "docker" {
        plugin_data {
        }
    }
}
"#;
    let config = resolve(file).unwrap();
    assert!(config.notices.is_empty());
    assert_eq!(config.socket_path.as_deref(), Some(Path::new("/tmp/agent.sock")));
    assert_eq!(config.server_port, 8081);
    let PluginData::Fixed(data) = &config.plugins[2].data else { panic!() };
    assert_eq!(data.body().unwrap().take_int("kubelet_read_only_port").unwrap(), Some(10255));
    assert_eq!(config.plugins[3].data, PluginData::None);
}

#[test]
fn a_file_of_2022_starts() {
    let config = resolve(&text(
        "data_dir = \"./data/agent\"\nlog_level = \"DEBUG\"\nsocket_path = \"/tmp/spire-agent/public/api.sock\"\n\
         insecure_bootstrap = true",
    ))
    .unwrap();
    assert_eq!(config.trust_bundle, TrustBundleSource::Insecure);
}

#[test]
fn a_join_token_file_is_trimmed() {
    let folder = std::env::temp_dir().join(format!("agent-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("token");
    let key = format!("join_token_file = \"{}\"", file.display());
    std::fs::write(&file, " abc\n").unwrap();
    assert_eq!(resolve(&with_bundle(&key)).unwrap().join_token.as_deref(), Some("abc"));
    std::fs::write(&file, " \n").unwrap();
    let error = resolve(&with_bundle(&key)).unwrap_err();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(error.to_string(), "join token file is empty");
    // An agent that runs does not need it any more.
    let file = ConfigFile::parse("agent.conf", with_bundle(&key)).unwrap();
    let again = AgentConfig::resolve_with(&file, &AgentFlags::default(), Token::Ignored).unwrap();
    assert_eq!(again.join_token, None);
}
