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
