//! Access from within a cluster, and by the settings that kubeconfigs have.

use base64::Engine as _;
use spire_testkit::kubernetes::{ApiServer, Cluster as Objects, OWN_TOKEN};
use spire_testkit::{place, web};

use super::access::InCluster;
use super::*;

#[tokio::test]
async fn a_pod_uses_what_kubernetes_gives_it() {
    let api = ApiServer::start(Objects::with_agent("t")).unwrap();
    let folder = place::folder().unwrap();
    let within = InCluster {
        host: "localhost".to_owned(),
        port: api.web().port().to_string(),
        folder: folder.path().to_owned(),
    };
    let missing = Cluster::InCluster(within.clone()).connect().await.unwrap_err().to_string();
    assert!(missing.ends_with("token: no such file or directory"), "{missing}");
    std::fs::write(folder.path().join("token"), format!("{OWN_TOKEN}\n")).unwrap();
    std::fs::write(folder.path().join("ca.crt"), api.authority().pem()).unwrap();
    let server = Cluster::InCluster(within.clone()).connect().await.unwrap();
    assert_eq!(server.namespace("default").await.unwrap().metadata.labels["team"], "t");
    let error = server.namespace("none").await.unwrap_err();
    assert_eq!(error.to_string(), "namespaces \"none\" not found");
    let nowhere = Cluster::InCluster(InCluster { host: String::new(), ..within });
    let error = nowhere.connect().await.unwrap_err().to_string();
    assert!(
        error.contains("unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and"),
        "{error}"
    );
}

#[tokio::test]
async fn kubeconfigs_carry_certificates_passwords_and_token_files() {
    let authority = spire_testkit::authority::Authority::new("k").unwrap();
    let config = web::tls(&authority.issue("s", &["localhost"]).unwrap(), Some(&authority)).unwrap();
    let server = web::Web::start(Some(config), |_| web::Answer::Json(200, "{}".to_owned())).unwrap();
    let plain = web::Web::start(None, |_| web::Answer::Json(500, "{}".to_owned())).unwrap();
    let client = authority.issue("admin", &[]).unwrap();
    let folder = place::folder().unwrap();
    let path = folder.path().join("config");
    std::fs::write(folder.path().join("key.pem"), &client.key).unwrap();
    std::fs::write(folder.path().join("token"), "from-a-file\n").unwrap();
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let ca = format!("\"certificate-authority-data\": \"{}\"", base64(&authority.pem()));
    let certificate = format!(
        "\"client-certificate-data\": \"{}\", \"client-key\": \"key.pem\"",
        base64(&client.certificate)
    );
    let https = format!("https://localhost:{}/prefix/", server.port());
    let http = format!("http://127.0.0.1:{}", plain.port());
    let insecure = "\"insecure-skip-tls-verify\": true";
    let table = [
        (&https, ca.as_str(), certificate.as_str(), Ok((true, None))),
        (&https, insecure, "\"username\": \"u\", \"password\": \"p\"", Ok((false, Some("Basic dTpw")))),
        (&https, ca.as_str(), "\"tokenFile\": \"token\"", Ok((false, Some("Bearer from-a-file")))),
        (
            &http,
            insecure,
            "\"token\": \"t\"",
            Err("the server answered with status 500 Internal Server Error"),
        ),
        (
            &https,
            "\"tls-server-name\": \"x\"",
            "\"token\": \"t\"",
            Err("\"tls-server-name\" of a kubeconfig"),
        ),
        (&https, "\"proxy-url\": \"x\"", "\"token\": \"t\"", Err("\"proxy-url\" of a kubeconfig")),
        (&https, ca.as_str(), "\"auth-provider\": {}", Err("\"auth-provider\" of a kubeconfig")),
        (&https, ca.as_str(), "\"as\": \"x\"", Err("\"as\" of a kubeconfig")),
        (
            &https,
            ca.as_str(),
            "\"client-key\": \"key.pem\"",
            Err("failed to find any PEM data in certificate"),
        ),
    ];
    for (url, cluster, user, expected) in table {
        // JSON is YAML.
        let text = format!(
            "{{\"current-context\": \"x\", \"contexts\": [{{\"name\": \"x\", \"context\": {{\"cluster\": \"c\", \
             \"user\": \"u\"}}}}], \"clusters\": [{{\"name\": \"c\", \"cluster\": {{\"server\": \"{url}\", {cluster}}}}}], \
             \"users\": [{{\"name\": \"u\", \"user\": {{{user}}}}}]}}"
        );
        std::fs::write(&path, &text).unwrap();
        let asked = async { Cluster::Kubeconfig(path.clone()).connect().await?.namespace("n").await };
        match (asked.await, expected) {
            (Ok(_), Ok((has_certificate, authorization))) => {
                let seen = server.seen().pop().unwrap();
                assert_eq!(seen.target, "/prefix/api/v1/namespaces/n");
                assert_eq!(seen.has_certificate, has_certificate, "{user}");
                assert_eq!(seen.header("authorization"), authorization, "{user}");
            }
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
            (found, _) => panic!("{user}: {found:?}"),
        }
    }
}

/// A kubeconfig whose user has this `exec`, as JSON, which is YAML.
fn with_exec(server: &str, exec: &serde_json::Value) -> String {
    serde_json::json!({
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"exec": exec}}],
    })
    .to_string()
}

const V1: &str = "client.authentication.k8s.io/v1";

fn answer(status: &serde_json::Value) -> String {
    serde_json::json!({"apiVersion": V1, "kind": "ExecCredential", "status": status}).to_string()
}

/// A user's `exec` whose program gives this answer and ends with this code.
fn exec(answer: &str, code: &str) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": V1, "command": "bin/credentials", "args": ["one"], "interactiveMode": "IfAvailable",
        "provideClusterInfo": true,
        "env": [{"name": "ANSWER", "value": answer}, {"name": "CODE", "value": code}],
    })
}

#[tokio::test]
async fn programs_of_kubeconfigs_give_credentials() {
    use serde_json::json;
    let server = web::Web::start(None, |_| web::Answer::Json(200, "{}".to_owned())).unwrap();
    let url = format!("http://127.0.0.1:{}", server.port());
    let folder = place::folder().unwrap();
    let (path, runs, told) =
        (folder.path().join("config"), folder.path().join("runs"), folder.path().join("told"));
    // The answer comes from the environment that the kubeconfig gives; what was told is kept.
    let script = format!(
        "#!/bin/sh\necho \"$1\" >> {}\necho \"$KUBERNETES_EXEC_INFO\" > {}\necho \"$ANSWER\"\nexit $CODE\n",
        runs.display(),
        told.display()
    );
    let program = folder.path().join("bin/credentials");
    std::fs::create_dir(folder.path().join("bin")).unwrap();
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let with = |mut value: serde_json::Value, key: &str, new: serde_json::Value| {
        value[key] = new;
        value
    };
    let good = answer(&json!({"token": "from-a-program", "expirationTimestamp": "2999-01-01T00:00:00Z"}));
    let short = answer(&json!({"token": "short", "expirationTimestamp": "2001-01-01T00:00:00Z"}));
    let table = [
        (exec(&good, "0"), Ok("Bearer from-a-program"), 1),
        (exec(&short, "0"), Ok("Bearer short"), 2),
        (exec(&good, "3"), Err("credentials failed with exit code 3"), 2),
        (exec("secret", "0"), Err("decoding stdout: not an ExecCredential (line 1, column 1)"), 2),
        (exec("{}", "0"), Err("plugin returned version "), 2),
        (
            exec(&good.replace("/v1", "/v1beta1"), "0"),
            Err("configured to use API version client.authentication.k8s.io/v1, plugin returned version"),
            2,
        ),
        (
            exec(&json!({"apiVersion": V1, "kind": "ExecCredential"}).to_string(), "0"),
            Err("exec plugin didn't return a status field"),
            2,
        ),
        (exec(&answer(&json!({})), "0"), Err("exec plugin didn't return a token or cert/key pair"), 2),
        (
            exec(&answer(&json!({"token": "t", "clientKeyData": "k"})), "0"),
            Err("exec plugin returned only certificate or key, not both"),
            2,
        ),
        (
            exec(&answer(&json!({"token": "t", "expirationTimestamp": "soon"})), "0"),
            Err("expirationTimestamp is no time"),
            2,
        ),
        (
            with(with(exec("", "0"), "command", json!("no-such-program")), "installHint", json!("get it")),
            Err("exec: executable no-such-program not found\n\nget it"),
            0,
        ),
        (with(exec("", "0"), "command", json!("")), Err("command must be specified for u to use exec"), 0),
        (with(exec("", "0"), "apiVersion", json!("")), Err("apiVersion must be specified for u to"), 0),
        (with(exec("", "0"), "apiVersion", json!("v0")), Err("exec plugin: invalid apiVersion \"v0\""), 0),
        (with(exec("", "0"), "interactiveMode", json!(null)), Err("interactiveMode must be specified"), 0),
        (with(exec("", "0"), "interactiveMode", json!("Always")), Err("cannot support interactive mode"), 0),
    ];
    for (exec, expected, ran) in table {
        std::fs::write(&path, with_exec(&url, &exec)).unwrap();
        let _ = std::fs::remove_file(&runs);
        // Twice: what is good is kept.
        for _ in 0..2 {
            let asked = async { Cluster::Kubeconfig(path.clone()).connect().await?.namespace("n").await };
            match (asked.await, expected) {
                (Ok(_), Ok(header)) => {
                    assert_eq!(server.seen().pop().unwrap().header("authorization"), Some(header));
                }
                (Err(error), Err(text)) => {
                    let error = error.to_string();
                    assert!(error.contains(text) && !error.contains("secret"), "{error} is not {text}");
                }
                (found, _) => panic!("{exec}: {found:?}"),
            }
        }
        let count = std::fs::read_to_string(&runs).unwrap_or_default().matches("one\n").count();
        assert_eq!(count, ran, "{exec}");
    }
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(told).unwrap()).unwrap();
    assert_eq!((&told["kind"], &told["spec"]["interactive"]), (&json!("ExecCredential"), &json!(false)));
    assert_eq!(told["spec"]["cluster"]["server"], json!(url));
}

#[tokio::test]
async fn a_program_that_says_too_much_is_ended() {
    let folder = place::folder().unwrap();
    let path = folder.path().join("config");
    let exec = serde_json::json!({"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "/bin/cat",
        "args": ["/dev/zero"]});
    std::fs::write(&path, with_exec("https://localhost:1", &exec)).unwrap();
    let error = Cluster::Kubeconfig(path).connect().await.unwrap_err().to_string();
    assert!(error.contains("/bin/cat: more than 1048576 bytes of output"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_program_that_hangs_is_ended() {
    let folder = place::folder().unwrap();
    let path = folder.path().join("config");
    let exec = serde_json::json!({"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "/bin/sleep",
        "args": ["600"]});
    std::fs::write(&path, with_exec("https://localhost:1", &exec)).unwrap();
    let error = Cluster::Kubeconfig(path).connect().await.unwrap_err().to_string();
    assert!(error.contains("/bin/sleep: took longer than 20s"), "{error}");
}
