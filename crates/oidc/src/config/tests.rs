//! Every key, every refusal with its text, and where it stands.

use super::*;

const SOURCE: &str = "server_api {\n address = \"unix:///s\"\n}\n";
const BASE: &str = "domains = [\"a.test\"]\ninsecure_addr = \":80\"\n";

fn parsed(text: &str) -> OidcConfig {
    OidcConfig::parse("o.conf", text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn defaults() {
    let config = parsed(&format!("{BASE}{SOURCE}"));
    assert_eq!(config.log, LogSettings::parse("", "info", "", false).unwrap());
    assert_eq!(config.serving.listener, ListenerConfig::Insecure(":80".to_owned()));
    let poll_interval = Duration::from_secs(10);
    let address = "unix:///s".to_owned();
    assert_eq!(config.source, SourceConfig::ServerApi { address, poll_interval });
    assert_eq!(config.health, None);
    assert!(!config.serving.log_requests && config.notices.is_empty());
    let documents = &config.serving.documents;
    assert!(!documents.set_key_use && !documents.allow_insecure_scheme);
    assert!(documents.jwt_issuer.is_none() && documents.jwks_uri.is_none());
    assert_eq!(documents.routes.prefix(), "/");
}

#[test]
fn every_key() {
    let config = parsed(
        r#"
        log_format = "JSON"
        log_level = "debug"
        log_path = "/l"
        log_requests = true
        domains = ["a.test", "b.test", "a.test"]
        set_key_use = true
        allow_insecure_scheme = true
        listen_socket_path = "/run/o.sock"
        workload_api {
            socket_path = "/run/w.sock"
            trust_domain = "domain.test"
            poll_interval = "1m"
            experimental { named_pipe_name = "" }
        }
        health_checks {
            bind_port = "8009"
            ready_path = "/r"
            live_path = "/l"
        }
        jwt_issuer = "https://issuer.test/p"
        jwks_uri = "https://keys.test/k"
        server_path_prefix = "/foo"
        "#,
    );
    assert_eq!(config.log, LogSettings::parse("/l", "DEBUG", "json", false).unwrap());
    assert_eq!(config.serving.listener, ListenerConfig::Unix("/run/o.sock".into()));
    let source = SourceConfig::WorkloadApi {
        socket_path: "/run/w.sock".into(),
        trust_domain: TrustDomain::parse("domain.test").unwrap(),
        poll_interval: Duration::from_secs(60),
    };
    assert_eq!(config.source, source);
    let health = HealthChecks { bind_port: 8009, ready_path: "/r".into(), live_path: "/l".into() };
    assert_eq!(config.health, Some(health));
    let documents = &config.serving.documents;
    assert_eq!(documents.domains.names(), ["a.test", "b.test"]);
    assert!(documents.set_key_use && documents.allow_insecure_scheme && config.serving.log_requests);
    assert_eq!(documents.jwt_issuer.as_ref().unwrap().to_text(), "https://issuer.test/p");
    assert_eq!(documents.jwks_uri.as_ref().unwrap().to_text(), "https://keys.test/k");
    assert_eq!(documents.routes.prefix(), "/foo");
    // Of the insecure scheme alone: jwks_uri is set.
    assert_eq!(config.notices.len(), 1);
}

#[test]
fn listeners_with_certificates() {
    let domains = "domains = [\"a.test\"]\nfile { path = \"/b\", poll_interval = \"0s\" }\n";
    let files = parsed(&format!(
        "{domains}serving_cert_file {{\n cert_file_path = \"c\"\n key_file_path = \"k\"\n}}"
    ));
    let listener = ListenerConfig::Files {
        certificate: "c".into(),
        key: "k".into(),
        address: ":443".to_owned(),
        sync_interval: Duration::from_secs(60),
    };
    assert_eq!(files.serving.listener, listener);
    // Zero is the default too.
    assert_eq!(
        files.source,
        SourceConfig::File { path: "/b".into(), poll_interval: Duration::from_secs(10) }
    );
    let more = "addr = \"127.0.0.1:8443\"\n file_sync_interval = \"5s\"";
    let files = parsed(&format!(
        "{domains}serving_cert_file {{\n cert_file_path = \"c\"\n key_file_path = \"k\"\n {more}\n}}"
    ));
    let ListenerConfig::Files { address, sync_interval, .. } = files.serving.listener else { panic!() };
    assert_eq!((address.as_str(), sync_interval), ("127.0.0.1:8443", Duration::from_secs(5)));
    for (cache, expected) in
        [("", Some("./.acme-cache")), ("cache_dir = \"\"", None), ("cache_dir = \"/c\"", Some("/c"))]
    {
        let acme = parsed(&format!(
            "{domains}acme {{\n email = \"e\"\n tos_accepted = true\n directory_url = \"https://d\"\n {cache}\n}}"
        ));
        let listener = ListenerConfig::Acme {
            directory_url: "https://d".to_owned(),
            email: "e".to_owned(),
            cache_dir: expected.map(PathBuf::from),
        };
        assert_eq!(acme.serving.listener, listener);
    }
}

/// A configuration, the error's text, and where it stands (empty: nowhere in particular). `<base>` and the like stand for
/// what most have in common.
const REFUSALS: &[(&str, &str, &str)] = &[
    (
        "domains = 1",
        "unable to decode configuration: At 1:11: unknown slice type: *ast.LiteralType",
        "o.conf:1:11",
    ),
    (
        "domains = [",
        "unable to decode configuration: At 1:12: unexpected token while parsing list: EOF",
        "o.conf:1:12",
    ),
    ("", "at least one domain must be configured", ""),
    (
        "<base>acme {}",
        "insecure_addr and the acme section are mutually exclusive",
        "o.conf:2:1 (insecure_addr)",
    ),
    (
        "domains = [\"a\"]\nacme { email = \"e\" }",
        "tos_accepted must be set to true in the acme configuration section",
        "o.conf:2:1",
    ),
    (
        "domains = [\"a\"]\nacme { tos_accepted = true }",
        "email must be configured in the acme configuration section",
        "o.conf:2:1",
    ),
    (
        "domains = [\"a\"]\nserving_cert_file { key_file_path = \"k\" }",
        "cert_file_path must be configured in the serving_cert_file configuration section",
        "o.conf:2:1",
    ),
    (
        "domains = [\"a\"]\nserving_cert_file { cert_file_path = \"k\" }",
        "key_file_path must be configured in the serving_cert_file configuration section",
        "o.conf:2:1",
    ),
    (
        "domains = [\"a\"]\nserving_cert_file {\n cert_file_path = \"c\"\n key_file_path = \"k\"\n addr = \"x\"\n}\n",
        "invalid addr in the serving_cert_file configuration section: address x: missing port in address",
        "o.conf:5:2 (serving_cert_file.addr)",
    ),
    (
        "domains = [\"a\"]\nserving_cert_file {\n cert_file_path = \"c\"\n key_file_path = \"k\"\n file_sync_interval = \"x\"\n}\n",
        "invalid file_sync_interval in the serving_cert_file configuration section: time: invalid duration \"x\"",
        "o.conf:5:2 (serving_cert_file.file_sync_interval)",
    ),
    (
        "<base>server_api {\n poll_interval = \"x\"\n}",
        "invalid poll_interval in the server_api configuration section: time: invalid duration \"x\"",
        "o.conf:4:2 (server_api.poll_interval)",
    ),
    (
        "<base>workload_api {}",
        "trust_domain must be configured in the workload_api configuration section",
        "o.conf:3:1",
    ),
    (
        "<base>workload_api {\n trust_domain = \"a\"\n poll_interval = \"x\"\n}",
        "invalid poll_interval in the workload_api configuration section: time: invalid duration \"x\"",
        "o.conf:5:2 (workload_api.poll_interval)",
    ),
    (
        "<base>file {\n poll_interval = \"x\"\n}",
        "invalid poll_interval in the file configuration section: time: invalid duration \"x\"",
        "o.conf:4:2 (file.poll_interval)",
    ),
    (
        "domains = [\"a\"]\n<source>",
        "either acme, serving_cert_file, insecure_addr or listen_socket_path must be configured",
        "",
    ),
    (
        "<acme>serving_cert_file {\n cert_file_path = \"c\"\n key_file_path = \"k\"\n}\n",
        "acme and serving_cert_file are mutually exclusive",
        "o.conf:2:1 (acme)",
    ),
    (
        "<acme>listen_socket_path = \"x\"",
        "listen_socket_path and the acme section are mutually exclusive",
        "o.conf:6:1 (listen_socket_path)",
    ),
    (
        "<files>insecure_addr = \"x\"",
        "serving_cert_file and insecure_addr are mutually exclusive",
        "o.conf:2:1 (serving_cert_file)",
    ),
    (
        "<files>listen_socket_path = \"x\"",
        "serving_cert_file and listen_socket_path are mutually exclusive",
        "o.conf:2:1 (serving_cert_file)",
    ),
    (
        "<base>listen_socket_path = \"x\"",
        "insecure_addr and listen_socket_path are mutually exclusive",
        "o.conf:2:1 (insecure_addr)",
    ),
    (
        "<base>server_api {}",
        "address must be configured in the server_api configuration section",
        "o.conf:3:1",
    ),
    (
        "<base>server_api { address = \"dns:x\" }",
        "address must use the unix name system in the server_api configuration section",
        "o.conf:3:14 (server_api.address)",
    ),
    (
        "<base>workload_api { trust_domain = \"a\" }",
        "socket_path must be configured in the workload_api configuration section",
        "o.conf:3:1",
    ),
    ("<base>", "exactly one of the server_api, workload_api, or file sections must be configured", ""),
    ("<base><source>file {}", "the server_api, workload_api, and file sections are mutually exclusive", ""),
    (
        "<base><source>jwt_issuer = \"https://a/%zz\"",
        "the jwt_issuer url could not be parsed: parse \"https://a/%zz\": invalid URL escape \"%zz\"",
        "o.conf:6:1 (jwt_issuer)",
    ),
    (
        "<base><source>jwt_issuer = \"a.test\"",
        "the jwt_issuer url must contain a scheme",
        "o.conf:6:1 (jwt_issuer)",
    ),
    (
        "<base><source>jwt_issuer = \"https:/x\"",
        "the jwt_issuer url must contain a host",
        "o.conf:6:1 (jwt_issuer)",
    ),
    (
        "<base><source>jwks_uri = \"/keys\"",
        "the jwks_uri setting could not be parsed",
        "o.conf:6:1 (jwks_uri): it needs a scheme and a host",
    ),
    (
        "<base><source>jwks_uri = \":\"",
        "the jwks_uri setting could not be parsed: parse \":\": missing protocol scheme",
        "o.conf:6:1 (jwks_uri)",
    ),
    (
        "domains = [\"A.test\"]\ninsecure_addr = \"x\"\n<source>",
        "domain \"A.test\" must already be punycode encoded",
        "o.conf:1:1 (domains)",
    ),
    ("<base><source>log_level = \"loud\"", "not a valid logrus Level: \"loud\"", "o.conf:6:1 (log_level)"),
    ("<base><source>log_format = \"xml\"", "unknown logger format: \"xml\"", "o.conf:6:1 (log_format)"),
    (
        "<base><source>server_path_prefix = \"/%zz\"",
        "parse \"/%zz\": invalid URL escape \"%zz\"",
        "o.conf:6:1 (server_path_prefix)",
    ),
    (
        "<base><source>health_checks {\n bind_port = 70000\n}",
        "listen tcp: address 70000: invalid port",
        "o.conf:7:2 (health_checks.bind_port)",
    ),
    (
        "<base><source>health_checks {\n ready_path = \"r\"\n}",
        "ready_path must begin with a slash in the health_checks configuration section",
        "o.conf:7:2 (health_checks.ready_path)",
    ),
];

#[test]
fn refusals() {
    let acme = "domains = [\"a\"]\nacme {\n email = \"e\"\n tos_accepted = true\n}\n";
    let files =
        "domains = [\"a\"]\nserving_cert_file {\n cert_file_path = \"c\"\n key_file_path = \"k\"\n}\n";
    for (text, message, detail) in REFUSALS {
        let text = text.replace("<base>", BASE).replace("<source>", SOURCE);
        let text = text.replace("<acme>", acme).replace("<files>", files);
        let error = OidcConfig::parse("o.conf", &text).expect_err(&text);
        assert_eq!(error.to_string(), *message, "{text}");
        let found = error.detail().unwrap_or_default();
        assert!(found.starts_with(detail) && found.is_empty() == detail.is_empty(), "{found}\n{text}");
    }
}

#[test]
fn files_that_cannot_be_read() {
    let error = OidcConfig::load("/nonexistent/o.conf", false).unwrap_err();
    let text = "unable to load configuration: open /nonexistent/o.conf: no such file or directory";
    assert_eq!(error.to_string(), text);
    assert!(OidcConfig::load("/", false).unwrap_err().to_string().ends_with("read /: is a directory"));
}

#[test]
fn old_names_and_unknown_keys_are_told() {
    let config = parsed(
        "domain = \"a.test\"\ninsecure_addr = \":80\"\nregistration_api {\n socket_path = \"/s\"\n poll_interval = \"1s\"\n}\nlog_levl = \"x\"\n",
    );
    let poll_interval = Duration::from_secs(1);
    assert_eq!(config.source, SourceConfig::ServerApi { address: "unix:/s".to_owned(), poll_interval });
    assert_eq!(config.serving.documents.domains.names(), ["a.test"]);
    let messages: Vec<&str> = config.notices.iter().map(|notice| notice.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "domain is the old name of domains",
            "registration_api is the old name of server_api",
            "Unknown configuration ignored"
        ]
    );
    assert!(config.notices[2].fields.contains(&("positions", "o.conf:7:1".to_owned())));
}

#[test]
fn the_block_of_a_server() {
    let block = |text: &str| {
        let document = hcl::parse_config(format!("experimental {{\n oidc {{\n{text}\n}}\n}}")).unwrap();
        let mut body = document.body();
        let mut experimental = body.take_block("experimental").unwrap().unwrap();
        let fragment = experimental.take_fragment("oidc").0.unwrap();
        Serving::of_block("s.conf", "server.experimental.oidc", &fragment)
    };
    let (serving, notices) =
        block("domains = [\"a.test\"]\nlisten_socket_path = \"/s\"\nset_key_use = true").unwrap();
    assert_eq!(serving.listener, ListenerConfig::Unix("/s".into()));
    assert!(serving.documents.set_key_use && notices.is_empty());
    for (text, message, detail) in [
        (
            "domains = [\"a.test\"]\nlog_level = \"x\"",
            "log_level cannot be configured here",
            "s.conf:4:1 (server.experimental.oidc.log_level): the server",
        ),
        ("insecure_addr = \":80\"", "at least one domain must be configured", "s.conf:"),
        (
            "domains = [\"a_b\"]\ninsecure_addr = \":80\"",
            "domain \"a_b\" is not a valid",
            "s.conf:3:1 (server.experimental.oidc.domains)",
        ),
    ] {
        let error = block(text).unwrap_err();
        assert!(error.to_string().starts_with(message), "{error}");
        assert!(error.detail().unwrap_or_default().starts_with(detail), "{:?}", error.detail());
    }
}
