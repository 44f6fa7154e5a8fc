//! The demo of SPIRE with SCONE (ufcg-lsd/spire-scone-demo) as far as a machine without enclaves goes: the agent puts SVIDs and
//! bundles into sessions of a CAS, which is a stand-in that speaks mutual TLS, keeps sessions by name and wants the hash of a
//! session's predecessor. What is not shown: attestation of enclaves, and what a real CAS makes of the sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use spire_core::pki::{LocalKey, pem};
use spire_testkit::authority::Authority;
use spire_testkit::web::{Answer, Request, Web, tls};
use spire_testkit::{Error, place, wait};

use crate::harness::{Case, Need, Outcome, SOON, Site};

pub(crate) fn cases() -> Vec<Case> {
    vec![Case { name: "scone::sessions_of_a_demo", needs: &[Need::Ours, Need::Openssl], run: demo }]
}

const NODE: &str = "spiffe://example.org/node";
const SERVICE: &str = "spiffe://example.org/spiffe-service";
const HASH: &str = "8a5edab282632443219e051e4ade2d1d5bbc671c781051bf1437897cbdfea0f1";

const SVID_TEMPLATE: &str = include_str!("../../../../crates/plugins/scone/testdata/svid.yaml");
const BUNDLE_TEMPLATE: &str = include_str!("../../../../crates/plugins/scone/testdata/bundle.yaml");
const FEDERATED_TEMPLATE: &str = include_str!("../../../../crates/plugins/scone/testdata/federated.yaml");

/// The sessions of the stand-in by name: hash and text.
type Sessions = Arc<Mutex<HashMap<String, (String, String)>>>;

fn line<'a>(text: &'a str, key: &str) -> &'a str {
    text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim()
}

/// What openssl makes of a text, so that a hash is one.
fn sha256(text: &str) -> Option<String> {
    let run = spire_testkit::Run::new("openssl").args(&["dgst", "-sha256", "-r"]).input(text);
    let output = run.success().ok()?;
    output.stdout.split_whitespace().next().map(str::to_owned)
}

fn post(sessions: &Sessions, request: &Request) -> Answer {
    let refused = |code, text: &str| Answer::Json(code, format!("{{\"msg\":[\"{text}\"]}}"));
    if !request.has_certificate {
        return refused(401, "no certificate");
    }
    if (request.method.as_str(), request.target.as_str()) != ("POST", "/session") {
        return refused(404, "no such thing");
    }
    let text = String::from_utf8_lossy(&request.body).into_owned();
    let (name, predecessor) = (line(&text, "name:").to_owned(), line(&text, "predecessor:"));
    let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
    match (sessions.get(&name), predecessor) {
        (Some(_), "~") => return refused(409, "Session already exists, please specify predecessor hash"),
        (Some((hash, _)), predecessor) if hash != predecessor => return refused(400, "wrong predecessor"),
        (None, predecessor) if predecessor != "~" => return refused(404, "no such session"),
        _ => {}
    }
    let Some(hash) = sha256(&text) else { return refused(500, "no hash") };
    let answer = format!("{{\"hash\":\"{hash}\"}}");
    sessions.insert(name, (hash, text));
    Answer::Json(201, answer)
}

/// A block that stands below `key`, without its indentation.
fn block(text: &str, key: &str) -> String {
    let lines =
        text.lines().skip_while(|line| !line.contains(key)).skip_while(|line| !line.contains("value: |"));
    let lines = lines.skip(1).take_while(|line| line.starts_with("        "));
    lines.map(|line| format!("{}\n", line.trim())).collect()
}

fn demo() -> Outcome {
    let authority = Authority::new("cas")?;
    let sessions = Sessions::default();
    let config = tls(&authority.issue("cas", &["localhost"])?, Some(&authority))?;
    let shared = Arc::clone(&sessions);
    let cas = Web::start(Some(config), move |request| post(&shared, request))?;
    let client = authority.issue("agent", &[])?;
    let mut site = Site::new()?;
    for (name, text) in [
        ("session.crt", client.certificate.as_str()),
        ("session.key", &client.key),
        ("trustanchor.pem", &authority.pem()),
        ("svid_session_template.yaml", SVID_TEMPLATE),
        ("ca_session_template.yaml", BUNDLE_TEMPLATE),
        ("fed_bundles_session_template.yaml", FEDERATED_TEMPLATE),
    ] {
        place::write(&site.path(name), text)?;
    }
    let path = |name: &str| site.path(name).display().to_string();
    site.agent.plugins = format!(
        "    SVIDStore \"sconecas_sessionmanager\" {{\n        plugin_data {{\n            cas_connection_string = \
         \"https://localhost:{}\"\n            cas_client_certificate = \"{}\"\n            cas_client_key = \"{}\"\n            \
         trust_anchor_certificate = \"{}\"\n            cas_predecessor_dir = \"{}\"\n            svid_session_template_file = \
         \"{}\"\n            bundle_session_template_file = \"{}\"\n            federated_bundles_session_template_file = \
         \"{}\"\n        }}\n    }}\n",
        cas.port(),
        path("session.crt"),
        path("session.key"),
        path("trustanchor.pem"),
        path("predecessors"),
        path("svid_session_template.yaml"),
        path("ca_session_template.yaml"),
        path("fed_bundles_session_template.yaml"),
    );
    let _server = site.start_server()?;
    let agent = site.join(NODE)?;
    agent
        .wait_for(&["Plugin loaded", "plugin_name=sconecas_sessionmanager", "plugin_type=SVIDStore"], SOON)?;
    agent.wait_for(&["Starting agent APIs"], SOON)?;

    // As typed in the demo, but for the DNS name, which is that of its third service.
    let selector = |rest: &str| format!("sconecas_sessionmanager:{rest}");
    let (hash, name, bundle) = (
        selector(&format!("session_hash:{HASH}")),
        selector("session_name:demo/spiffe-service"),
        selector("trust_bundle_session_name:demo/spire-ca"),
    );
    let create = ["entry", "create", "-parentID", NODE, "-spiffeID", SERVICE, "-selector", &hash];
    let more = [
        "-selector",
        &name,
        "-selector",
        &bundle,
        "-dns",
        "secret-service",
        "-x509SVIDTTL",
        "60",
        "-storeSVID",
    ];
    let created = site.cli(&[&create[..], &more].concat())?;
    assert_eq!(created.field("StoreSvid")?, "true");
    assert_eq!(created.field("DNS name")?, "secret-service");
    let entry = created.field("Entry ID")?;
    agent.wait_for(&["SVID stored successfully", "svid_store=sconecas_sessionmanager"], SOON)?;

    let session = |name: &str| -> Result<(String, String), Error> {
        let sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(name).cloned().ok_or_else(|| Error::new(format!("no {name} in {:?}", sessions.keys())))
    };
    let (first, text) = session("demo/spiffe-service-injector")?;
    assert!(text.contains("session: demo/spiffe-service\n"), "{text}");
    assert!(text.contains(&format!("session_hash: {HASH}\n")), "{text}");
    let chain = pem::certificates(block(&text, "name: svid").as_bytes())?;
    let leaf = chain.first().ok_or("no certificate")?;
    assert_eq!(leaf.spiffe_id()?.as_str(), SERVICE);
    let key = LocalKey::from_pem(block(&text, "name: svid_key").as_bytes())?;
    assert_eq!(leaf.spki_der(), &key.public_key().spki()[..]);
    let (_, bundle) = session("demo/spire-ca-injector")?;
    assert_eq!(pem::certificates(block(&bundle, "name:").as_bytes())?.len(), 1);

    // Renewed at half of its life, as a successor of the session that was there.
    wait::until("a session with another hash", SOON * 3, || {
        let (hash, text) = session("demo/spiffe-service-injector").ok()?;
        (hash != first && line(&text, "predecessor:") == first).then_some(())
    })
    .map_err(|error| agent.error(&error.to_string()))?;
    assert!(cas.seen().iter().all(|request| request.has_certificate));
    // No key of a workload is in the log.
    assert!(!agent.lines().iter().any(|line| line.contains("PRIVATE KEY")));
    site.cli(&["entry", "delete", "-entryID", &entry])?;
    Ok(())
}
