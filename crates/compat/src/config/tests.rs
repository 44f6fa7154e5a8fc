//! What both configuration files share.

use super::*;

fn plugins(text: &str, legacy: LegacyPlugins) -> Result<(Vec<PluginConfig>, Vec<Notice>), ConfigError> {
    let file = ConfigFile::parse("x.conf", text).unwrap();
    let fragment = file.document.body().take_fragment("plugins").0.unwrap();
    plugin_configs(&file, &fragment, legacy)
}

#[test]
fn plugins_keep_their_order_and_data() {
    let text = r#"
plugins {
    NodeAttestor "join_token" { plugin_data {} }
    KeyManager "disk" { plugin_data { keys_path = "k" }, enabled = false }
    NodeAttestor { x509pop { plugin_data = { ca_bundle_path = "c" } } }
    "Notifier" "n" { plugin_cmd = "/bin/n", plugin_args = ["-v"], plugin_checksum = "ab", plugin_data_file = "f" }
}"#;
    let (configs, notices) = plugins(text, LegacyPlugins::Server).unwrap();
    assert!(notices.is_empty());
    let names: Vec<_> = configs.iter().map(|c| format!("{}/{}", c.kind, c.name)).collect();
    assert_eq!(names, ["NodeAttestor/join_token", "KeyManager/disk", "NodeAttestor/x509pop", "Notifier/n"]);
    assert_eq!(configs[0].data, PluginData::None);
    assert!(configs[1].disabled && !configs[0].disabled);
    assert_eq!(configs[2].data.load_text().unwrap(), "ca_bundle_path = \"c\"");
    assert_eq!(configs[3].args, ["-v"]);
    assert_eq!(configs[3].data, PluginData::File("f".to_owned()));
    let json = r#"{"plugins": {"KeyManager": {"memory": {"plugin_data": {}}}, "NodeAttestor": {"j": {}}}}"#;
    let (configs, _) = plugins(json, LegacyPlugins::Agent).unwrap();
    assert_eq!(configs.len(), 2);
}

#[test]
fn plugins_are_refused_with_the_reference_texts() {
    let error = |text: &str| plugins(text, LegacyPlugins::Server).unwrap_err();
    for (text, at) in [
        ("plugins {\n A \"b\" {}\n A \"b\" {}\n}", "x.conf:3:4 (plugins.A.b)"),
        ("plugins {\n A \"b\" { plugin_data {}\n plugin_data_file = \"x\" }\n}", "x.conf:2:4 (plugins.A.b)"),
        (
            "plugins {\n UpstreamAuthority \"d\" {}\n UpstreamCA \"d\" {}\n}",
            "x.conf:3:13 (plugins.UpstreamCA.d)",
        ),
    ] {
        assert_eq!(error(text).detail().as_deref(), Some(at), "{text}");
    }
    assert_eq!(
        error("plugins {\n A \"b\" {}\n A \"b\" {}\n}").to_string(),
        "plugin \"A\"/\"b\" declared more than once"
    );
    assert_eq!(
        error("plugins {\n A \"b\" { plugin_data {}\n plugin_data_file = \"x\" }\n}").to_string(),
        "failed to create plugin config for \"A\"/\"b\": only one of [plugin_data, plugin_data_file] can be used"
    );
    let wrong = error("plugins {\n A \"b\" { plugin_cmd = true }\n}");
    assert_eq!(
        wrong.to_string(),
        "failed to decode plugins config: At 2:23: root[0].A.b.plugin_cmd: unknown type for string *ast.LiteralType"
    );
    assert_eq!(wrong.location.unwrap().pos.line, 2);
    let sat = error("plugins {\n NodeAttestor \"k8s_sat\" {}\n}");
    assert_eq!(sat.to_string(), "no built-in plugin \"k8s_sat\" for type \"NodeAttestor\"");
    assert!(
        sat.detail().unwrap().starts_with("x.conf:2:15 (plugins.NodeAttestor.k8s_sat): "),
        "{:?}",
        sat.detail()
    );
    assert!(plugins("plugins { NodeAttestor \"k8s_sat\" {} }", LegacyPlugins::Agent).is_err());
    assert!(plugins("plugins { UpstreamCA \"x\" { plugin_cmd = \"/x\" } }", LegacyPlugins::Server).is_err());
}

#[test]
fn old_plugin_names_are_translated_or_ignored() {
    let text = "plugins { UpstreamCA \"disk\" { plugin_data { a = 1 } }\n NodeResolver \"noop\" {} }";
    let (configs, notices) = plugins(text, LegacyPlugins::Server).unwrap();
    assert_eq!(configs.len(), 1);
    assert_eq!(configs[0].kind, "UpstreamAuthority");
    assert_eq!(notices.len(), 2);
    let both = "plugins { UpstreamCA \"disk\" {}\n UpstreamAuthority \"disk\" {} }";
    assert!(plugins(both, LegacyPlugins::Server).is_err());
}

#[test]
fn telemetry_and_health_checks() {
    let text = r#"
telemetry {
    Prometheus { host = "h", port = 9988, typo = 1, tls { use_spire_svid = true } }
    DogStatsd = [ { address = "a:1" }, { adress = "b:1" } ]
    M3 = [ { address = "c:1", env = "e" } ]
    InMem { enabled = false }
    MetricPrefix = "p"
    nothing = 1
}
health_checks { bind_port = 8080, bind_address = "[::1]", extra = 1 }
"#;
    let file = ConfigFile::parse("x.conf", text).unwrap();
    let mut root = file.document.body();
    let mut notices = Vec::new();
    let (telemetry, unknown) = take_telemetry(&file, &mut root, &mut notices).unwrap();
    let found: Vec<_> = unknown.iter().map(|u| (u.section.as_str(), u.joined())).collect();
    assert_eq!(found, [("Prometheus", "typo".to_owned()), ("DogStatsd", "adress".to_owned())]);
    assert!(telemetry.prometheus.unwrap().tls.unwrap().use_spire_svid);
    assert!(!telemetry.in_mem);
    assert_eq!(telemetry.m3[0].env, "e");
    assert_eq!(notices.len(), 2);
    assert_eq!(notices[1].fields[1], ("positions", "nothing at 8:5".to_owned()));
    let (health, unknown) = take_health_checks(&mut root).unwrap();
    assert_eq!(health.address(), "[::1]:8080");
    assert_eq!((health.ready_path(), health.live_path()), ("/ready", "/live"));
    assert_eq!(unknown[0].section, "health check");
    assert_eq!(HealthChecks::default().address(), "localhost:80");
}

#[test]
fn files_are_read_with_the_reference_texts() {
    let missing = ConfigFile::read("/nonexistent/../x.conf", false).unwrap_err();
    assert_eq!(missing.to_string(), "could not find config file /x.conf: please use the -config flag");
    let folder = ConfigFile::read("/", false).unwrap_err();
    assert_eq!(folder.to_string(), "unable to read configuration at \"/\": read /: is a directory");
    let broken = ConfigFile::parse("a.conf", "a = b").unwrap_err();
    assert_eq!(
        broken.to_string(),
        "unable to decode configuration at \"a.conf\": At 1:5: Unknown token: 1:5 IDENT b"
    );
    assert_eq!(broken.detail().unwrap(), "a.conf:1:5");
}

#[test]
fn logs_and_flags() {
    let settings = LogSettings::parse("", "Warning", "json", false).unwrap();
    assert_eq!((settings.level, settings.format), (Level::Warn, LogFormat::Json));
    assert_eq!(
        LogSettings::parse("", "loud", "", false).unwrap_err().to_string(),
        "not a valid logrus Level: \"loud\""
    );
    assert_eq!(
        LogSettings::parse("", "info", "xml", false).unwrap_err().to_string(),
        "unknown logger format: \"xml\""
    );
    assert!(FeatureFlags::parse(&["wit-svid".to_owned()]).unwrap().wit_svid);
    assert_eq!(
        FeatureFlags::parse(&["b".to_owned(), "a".to_owned()]).unwrap_err(),
        "error loading feature flags: unknown feature flag(s): [a b]"
    );
}
