//! Bundle endpoints with certificates of the web: from files that change, from an ACME authority, and for readers that know
//! nothing of SPIFFE's certificates.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use libtest_mimic::Failed;
use spire_testkit::{Daemon, Run, place, wait};

use crate::federation::{ABROAD, Domain, HERE};
use crate::harness::peer::Peer;
use crate::harness::programs;
use crate::harness::site::{answers, own_uid, text};
use crate::harness::{Case, Need, Outcome, SOON, svid};

pub(crate) fn cases() -> Vec<Case> {
    const FILES: &[Need] = &[Need::Openssl];
    const GO: &[Need] = &[Need::Openssl, Need::Peer(Peer::Go)];
    const ACME: &[Need] = &[Need::Namespaces, Need::Openssl, Need::Pebble, Need::Peer(Peer::Go)];
    const BESIDE: &[Need] =
        &[Need::Reference, Need::Namespaces, Need::Openssl, Need::Pebble, Need::Peer(Peer::Go)];
    vec![
        Case { name: "federation_web::servers_federate", needs: FILES, run: servers_federate },
        Case {
            name: "federation_web::files_that_cannot_be_used_stop_the_start",
            needs: FILES,
            run: bad_start,
        },
        Case { name: "federation_web::files_are_looked_at_again", needs: GO, run: files_change },
        Case { name: "federation_web::acme_gets_and_keeps_a_certificate", needs: ACME, run: acme },
        Case { name: "federation_web::acme_does_nothing_without_consent", needs: ACME, run: acme_terms },
        Case {
            name: "federation_web::acme_data_is_taken_over_and_given_back",
            needs: BESIDE,
            run: acme_data,
        },
        Case {
            name: "federation_web::keycloak_takes_our_tokens",
            needs: &[Need::Openssl, Need::Keycloak],
            run: keycloak,
        },
        Case {
            name: "federation_web::with_another_implementation",
            needs: &[Need::Reference, Need::Openssl],
            run: with_another_implementation,
        },
    ]
}

type Result<T> = std::result::Result<T, Failed>;

/// A certificate authority of the web in a folder, by `openssl`.
pub(crate) struct WebCa {
    folder: PathBuf,
}

impl WebCa {
    pub(crate) fn new(folder: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let ca = Self { folder };
        let request =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"];
        let request = Run::new("openssl").args(&request).args(&["-subj", "/CN=test authority", "-out"]);
        request.arg(ca.root()).arg("-keyout").arg(ca.folder.join("ca.key")).success()?;
        Ok(ca)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A certificate and key for a name, written to these files as one change each.
    pub(crate) fn issue(&self, name: &str, certificate: &Path, key: &Path) -> Outcome {
        let (new_certificate, new_key) = (certificate.with_extension("new"), key.with_extension("newkey"));
        let (csr, names) = (self.folder.join("csr"), self.folder.join("names"));
        place::write(&names, &format!("subjectAltName=DNS:{name}\n"))?;
        let request =
            ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj"];
        // Java refuses an empty subject beside a SAN that is not critical.
        let request = Run::new("openssl").args(&request).arg(format!("/CN={name}")).arg("-out").arg(&csr);
        request.arg("-keyout").arg(&new_key).success()?;
        let sign = Run::new("openssl").args(&["x509", "-req", "-days", "1", "-in"]).arg(&csr);
        let sign = sign.arg("-CA").arg(self.root()).arg("-CAkey").arg(self.folder.join("ca.key"));
        sign.arg("-extfile").arg(&names).arg("-out").arg(&new_certificate).success()?;
        std::fs::rename(new_certificate, certificate)?;
        std::fs::rename(new_key, key)?;
        Ok(())
    }
}

/// A trust domain whose endpoint has a certificate from files, for `localhost`.
struct Files {
    domain: Domain,
    ca: WebCa,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new(name: &'static str) -> Result<Self> {
        let domain = Domain::without_endpoint(name)?;
        let ca = WebCa::new(domain.site.path("web"))?;
        let (certificate, key) = (domain.site.path("web/tls.pem"), domain.site.path("web/tls.key"));
        ca.issue("localhost", &certificate, &key)?;
        let domain = domain.endpoint(&format!(
            "profile \"https_web\" {{ serving_cert_file {{ cert_file_path = \"{}\" key_file_path = \"{}\" \
             file_sync_interval = \"1s\" }} }}",
            text(&certificate),
            text(&key)
        ));
        Ok(Self { domain, ca, certificate, key })
    }
}

/// Starts a domain's server with these authorities of the web.
fn start_trusting(domain: &Domain, roots: &Path) -> Result<Daemon> {
    let file = domain.site.path("server.conf");
    place::write(&file, &domain.site.server.text())?;
    let mut command = Command::new(domain.site.server_programs.server());
    command
        .args(["run", "-config", text(&file)])
        .current_dir(domain.site.path(""))
        .env("SSL_CERT_FILE", roots);
    let mut server = Daemon::spawn("server", command)?;
    answers(&mut server, &domain.site.server.socket())?;
    Ok(server)
}

fn federates_with(abroad: &Domain, url: &str) -> String {
    format!(
        "federates_with \"{}\" {{ bundle_endpoint_url = \"{url}\" bundle_endpoint_profile \"https_web\" {{}} }}",
        abroad.name
    )
}

/// Nothing is carried over by hand: the web's authorities vouch for the first bundle.
fn servers_federate() -> Outcome {
    let abroad = Files::new(ABROAD)?;
    let here =
        Domain::without_endpoint(HERE)?.federation(&federates_with(&abroad.domain, &abroad.domain.url()));
    let server = start_trusting(&here, &abroad.ca.root())?;
    let text = "failed to fetch federated bundle from endpoint: failed to fetch bundle: Get";
    server.wait_for(&["level=error", "Error updating bundle", text, "connection refused"], SOON)?;
    let _abroad = abroad.domain.site.start_server()?;
    let refreshed = here.site.cli(&["federation", "refresh", "-id", &format!("spiffe://{ABROAD}")])?;
    assert_eq!(refreshed.stdout, "Bundle refreshed\n");
    assert_eq!(here.authorities_of(&abroad.domain)?, 1);
    drop(server);

    // With a server that does not know the authority nothing comes, and nothing is lost.
    let _server = here.site.start_server()?;
    let refused = here.site.command(&["federation", "refresh", "-id", &format!("spiffe://{ABROAD}")]);
    let refused = refused.output()?.exits_with(1)?;
    let unknown = "tls: failed to verify certificate: x509: certificate signed by unknown authority";
    assert!(refused.stderr.contains(unknown), "{refused}");
    assert_eq!(here.authorities_of(&abroad.domain)?, 1);
    Ok(())
}

fn bad_start() -> Outcome {
    let files = Files::new(ABROAD)?;
    std::fs::remove_file(&files.key)?;
    let mut server = files.domain.site.spawn_server()?;
    let status = server.wait_exit(SOON)?;
    assert_eq!(status.code(), Some(1));
    let text = format!("failed to load certificate: open {}: no such file or directory", text(&files.key));
    assert!(server.lines().iter().any(|line| line.contains(&text)), "{}", server.error("no reason"));
    Ok(())
}

/// A new pair is shown, one that cannot be used is not.
fn files_change() -> Outcome {
    let files = Files::new(ABROAD)?;
    let server = files.domain.site.start_server()?;
    server.wait_for(&["level=info", "Started watching certificate files", "interval=1s"], SOON)?;
    let other = WebCa::new(files.domain.site.path("other"))?;
    let peer = Peer::Go.command()?;
    let reads = |roots: &Path| -> Result<bool> {
        let url = files.domain.url();
        let output = Run::new(&peer[0]).args(&["bundle", &url, ABROAD, text(roots)]).output()?;
        Ok(output.stdout == format!("bundle {ABROAD} x509 1 jwt 1 hint 1m0s sequenced true\n"))
    };
    assert!(reads(&files.ca.root())?);
    let mark = server.mark();
    place::write(&files.certificate, "no certificate")?;
    server.wait_after(
        mark,
        &["level=error", "Failed to load certificate: tls: failed to find any PEM data in certificate input"],
        SOON,
    )?;
    assert!(reads(&files.ca.root())?, "the old pair is shown");
    let mark = server.mark();
    other.issue("localhost", &files.certificate, &files.key)?;
    server.wait_after(mark, &["level=info", "Loaded provided certificate with success"], SOON)?;
    assert!(reads(&other.root())? && !reads(&files.ca.root())?);
    let mark = server.mark();
    std::fs::remove_file(&files.key)?;
    server.wait_after(
        mark,
        &["level=error", "does not exist anymore; please check if the path is correct"],
        SOON,
    )?;
    assert!(reads(&other.root())?);
    Ok(())
}

const NAME: &str = "bundle.abroad.test";

/// An ACME authority, in a network namespace where it finds the names that it certifies on this machine.
pub(crate) struct Pebble {
    _process: Daemon,
    pub(crate) directory: String,
    management: String,
    /// Whom its own TLS is to be believed by.
    pub(crate) root: PathBuf,
    issuer: PathBuf,
}

impl Pebble {
    fn start(domain: &Domain) -> Result<Self> {
        Self::start_in(domain.site.path("pebble"), domain.endpoint, &[NAME])
    }

    /// For `names` that are served on `tls_port`.
    pub(crate) fn start_in(folder: PathBuf, tls_port: u16, names: &[&str]) -> Result<Self> {
        let ca = WebCa::new(folder.clone())?;
        let (certificate, key) = (folder.join("tls.pem"), folder.join("tls.key"));
        ca.issue("localhost", &certificate, &key)?;
        let hosts = folder.join("hosts");
        place::write(&hosts, &format!("127.0.0.1 localhost {}\n", names.join(" ")))?;
        Run::new("mount").args(&["--bind", text(&hosts), "/etc/hosts"]).success()?;
        let (port, management) = (place::port()?, place::port()?);
        let config = folder.join("pebble.json");
        place::write(
            &config,
            &format!(
                "{{\"pebble\": {{\"listenAddress\": \"127.0.0.1:{port}\", \"managementListenAddress\": \
                 \"127.0.0.1:{management}\", \"certificate\": \"{}\", \"privateKey\": \"{}\", \"httpPort\": {}, \
                 \"tlsPort\": {}}}}}",
                text(&certificate),
                text(&key),
                place::port()?,
                tls_port,
            ),
        )?;
        let mut command = Command::new("pebble");
        command.args(["-config", text(&config)]).env("PEBBLE_VA_NOSLEEP", "1").current_dir(&folder);
        // It refuses so many good nonces of a hundred: each costs a repeated request, and a few of them a repeated order.
        command.env("PEBBLE_WFE_NONCEREJECT", if programs::under_test().ours { "20" } else { "0" });
        let process = Daemon::spawn("pebble", command)?;
        process.wait_for(&["ACME directory available at"], SOON)?;
        let pebble = Self {
            _process: process,
            directory: format!("https://localhost:{port}/dir"),
            management: format!("https://localhost:{management}"),
            root: ca.root(),
            issuer: folder.join("issuer.pem"),
        };
        Ok(pebble)
    }

    /// The authority above what it issues; a new one at each start.
    pub(crate) fn issuer(&self) -> Result<&Path> {
        let get = ["get", &format!("{}/roots/0", self.management), text(&self.root)];
        let peer = Peer::Go.command()?;
        let pem = wait::until("the authority's root", SOON, || {
            let output = Run::new(&peer[0]).args(&get).output().ok()?;
            (output.code == 0 && output.stdout.contains("BEGIN CERTIFICATE")).then_some(output.stdout)
        })?;
        place::write(&self.issuer, &pem)?;
        Ok(&self.issuer)
    }

    fn domain(domain: Domain, directory: &str, consent: bool) -> Domain {
        domain.endpoint(&format!(
            "profile \"https_web\" {{ acme {{ directory_url = \"{directory}\" domain_name = \"{NAME}\" email = \
             \"admin@abroad.test\" tos_accepted = {consent} }} }}"
        ))
    }
}

/// The certificate is asked for, proven, shown, and found again after a restart.
fn acme() -> Outcome {
    let abroad = Domain::without_endpoint(ABROAD)?;
    let pebble = Pebble::start(&abroad)?;
    let abroad = Pebble::domain(abroad, &pebble.directory, true);
    let server = start_trusting(&abroad, &pebble.root)?;
    server.wait_for(
        &[
            "level=info",
            "ACME Terms of Service accepted",
            "subsystem_name=bundle_acme",
            "email=admin@abroad.test",
        ],
        SOON,
    )?;
    if programs::under_test().ours {
        server.wait_for(&["level=info", "Obtained a certificate", NAME], SOON)?;
    }
    let issuer = pebble.issuer()?;
    let url = format!("https://{NAME}:{}/", abroad.endpoint);
    let here = Domain::without_endpoint(HERE)?.federation(&federates_with(&abroad, &url));
    let _here_server = start_trusting(&here, issuer)?;
    wait::until("bundle over the certificate", SOON, || {
        (here.authorities_of(&abroad).ok()? == 1).then_some(())
    })?;
    // Who asks for another name gets nothing.
    let refresh = |id: &str| here.site.command(&["federation", "refresh", "-id", id]).output();
    let update =
        ["federation", "create", "-trustDomain", "other.test", "-bundleEndpointProfile", "https_web"];
    let other = format!("https://localhost:{}/", abroad.endpoint);
    here.site.command(&update).args(&["-bundleEndpointURL", &other]).success()?;
    let refused = refresh("spiffe://other.test")?.exits_with(1)?;
    assert!(refused.stderr.contains("remote error: tls: "), "{refused}");

    let cached = place::read(&abroad.site.server.data().join("bundle-acme").join(NAME))?;
    assert!(cached.starts_with("-----BEGIN CERTIFICATE-----") && !cached.contains("PRIVATE KEY"));
    assert_eq!(place::mode(&abroad.site.server.data().join("bundle-acme"))?, 0o700);
    drop(server);
    let server = start_trusting(&abroad, &pebble.root)?;
    assert_eq!(refresh(&format!("spiffe://{ABROAD}"))?.success()?.stdout, "Bundle refreshed\n");
    assert_eq!(place::read(&abroad.site.server.data().join("bundle-acme").join(NAME))?, cached);
    let again = ["Obtained a certificate", "Generated new key", "Terms of Service accepted"];
    assert!(!server.lines().iter().any(|line| again.iter().any(|text| line.contains(text))));
    Ok(())
}

/// A certificate that one implementation obtained is shown by the other, with its key from the KeyManager.
fn acme_data() -> Outcome {
    let theirs = programs::theirs()?;
    let abroad = Domain::without_endpoint(ABROAD)?;
    let pebble = Pebble::start(&abroad)?;
    let mut abroad = Pebble::domain(abroad, &pebble.directory, true);
    let issuer = pebble.issuer()?;
    let (peer, url) = (Peer::Go.command()?, format!("https://{NAME}:{}/", abroad.endpoint));
    let cached = abroad.site.server.data().join("bundle-acme").join(NAME);
    let mut first = None;
    for programs in [programs::under_test(), theirs, programs::under_test()] {
        abroad.site.server_programs = programs;
        let server = start_trusting(&abroad, &pebble.root)?;
        let mut last = String::new();
        let read = wait::until("bundle over the certificate", SOON, || {
            let output = Run::new(&peer[0]).args(&["bundle", &url, ABROAD, text(issuer)]).output().ok()?;
            last = output.to_string();
            (output.code == 0).then_some(())
        });
        read.map_err(|error| server.error(&format!("{error}: {last}")))?;
        let shown = place::read(&cached)?;
        assert_eq!(*first.get_or_insert_with(|| shown.clone()), shown);
        drop(server);
    }
    Ok(())
}

/// Without consent to the authority's terms there is no account, no certificate and no bundle, but a server.
fn acme_terms() -> Outcome {
    let abroad = Domain::without_endpoint(ABROAD)?;
    let pebble = Pebble::start(&abroad)?;
    let abroad = Pebble::domain(abroad, &pebble.directory, false);
    let server = start_trusting(&abroad, &pebble.root)?;
    let refusal = "ACME Terms of Service have not been accepted. See the `tos_accepted` configurable";
    server.wait_for(&["level=warning", refusal], SOON)?;
    server.wait_for(&["level=warning", refusal, "tos_url="], SOON)?;
    server.wait_for(
        &["level=error", "Failed to obtain a certificate", "terms of service were not accepted"],
        SOON,
    )?;
    assert!(!abroad.site.server.data().join("bundle-acme").exists());
    abroad.site.cli(&["healthcheck"])?;
    Ok(())
}

/// A virtual machine with an application server in it, beside other work.
const KEYCLOAK_AT_MOST: Duration = Duration::from_secs(400);

/// Its administration by plain requests.
struct Keycloak {
    _process: Daemon,
    base: String,
}

impl Keycloak {
    fn start(folder: &Path, roots: &Path) -> Result<Self> {
        let built = std::env::var("SPIRE_E2E_KEYCLOAK").map_err(|error| error.to_string())?;
        // It writes into its own folder when it starts, so each run has a copy.
        let home = folder.join("keycloak");
        Run::new("cp").args(&["-a", &built, text(&home)]).success()?;
        let port = place::port()?;
        let mut start = Command::new(home.join("bin/kc.sh"));
        start.args(["start-dev", "--http-host=127.0.0.1", "--features=spiffe,client-auth-federated"]);
        start.arg(format!("--http-port={port}")).arg(format!("--truststore-paths={}", text(roots)));
        // Why it refuses a token is said at this level only.
        start.arg("--log-level=INFO,org.keycloak.authentication:DEBUG,org.keycloak.keys:DEBUG");
        start.env("KC_BOOTSTRAP_ADMIN_USERNAME", "admin").env("KC_BOOTSTRAP_ADMIN_PASSWORD", "admin");
        let process = Daemon::spawn("keycloak", start)?;
        process.wait_for(&["Listening on:"], KEYCLOAK_AT_MOST)?;
        Ok(Self { _process: process, base: format!("http://127.0.0.1:{port}") })
    }

    /// Posts, and gives the status with the body.
    fn post(&self, path: &str, args: &[&str]) -> Result<(String, String)> {
        let run = Run::new("curl").args(&["--silent", "--write-out", "\n%{http_code}"]).args(args);
        let output = run.arg(format!("{}{path}", self.base)).success()?;
        let (body, status) = output.stdout.rsplit_once('\n').ok_or("a status")?;
        Ok((status.to_owned(), body.to_owned()))
    }

    fn token(&self, fields: &[&str]) -> Result<(String, String)> {
        let fields: Vec<&str> = fields.iter().flat_map(|field| ["--data-urlencode", field]).collect();
        self.post("/realms/master/protocol/openid-connect/token", &fields)
    }

    fn create(&self, what: &str, token: &str, json: &str) -> Outcome {
        let bearer = format!("Authorization: Bearer {token}");
        let args = ["--header", &bearer, "--header", "Content-Type: application/json", "--data", json];
        let (status, body) = self.post(&format!("/admin/realms/master/{what}"), &args)?;
        assert_eq!(status, "201", "{what}: {body}");
        Ok(())
    }
}

fn access_token(body: &str) -> Result<String> {
    let answer = svid::json(body)?;
    Ok(answer["access_token"].as_str().ok_or_else(|| format!("no access token: {answer}"))?.to_owned())
}

/// It reads our bundle endpoint and believes the tokens of our workloads, each for its own client.
fn keycloak() -> Outcome {
    let files = Files::new(HERE)?;
    let (site, url) = (&files.domain.site, files.domain.url());
    let _server = site.start_server()?;
    let _agent = files.domain.join()?;
    site.entry(&files.domain.id("node"), &files.domain.id("w"), &own_uid(), &["-hint", "w"])?;
    site.wait_identities(&[&files.domain.id("w")])?;
    let keycloak = Keycloak::start(&site.path(""), &files.ca.root())?;
    let login = ["grant_type=password", "client_id=admin-cli", "username=admin", "password=admin"];
    let admin = access_token(&keycloak.token(&login)?.1)?;
    let provider = format!(
        r#"{{"alias": "spiffe", "providerId": "spiffe", "enabled": true, "config": {{"trustDomain": "spiffe://{HERE}",
            "bundleEndpoint": "{url}"}}}}"#
    );
    keycloak.create("identity-provider/instances", &admin, &provider)?;
    for client in ["w", "other"] {
        let id = files.domain.id(client);
        let json = format!(
            r#"{{"clientId": "{client}", "enabled": true, "serviceAccountsEnabled": true, "standardFlowEnabled": false,
                "clientAuthenticatorType": "federated-jwt",
                "attributes": {{"jwt.credential.issuer": "spiffe", "jwt.credential.sub": "{id}"}}}}"#
        );
        keycloak.create("clients", &admin, &json)?;
    }
    let audience = format!("{}/realms/master", keycloak.base);
    let fetched = site.workload(&["api", "fetch", "jwt", "-audience", &audience]).success()?;
    let token = fetched.stdout.lines().nth(1).unwrap_or_default().trim().to_owned();
    let ask = |token: &str, more: &[&str]| {
        let assertion = format!("client_assertion={token}");
        let kind = "client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-spiffe";
        let fields: Vec<&str> = ["grant_type=client_credentials", kind, &assertion]
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        keycloak.token(&fields)
    };
    let (status, body) = ask(&token, &[])?;
    assert_eq!(status, "200", "{body}");
    let (_, claims) = svid::jwt_parts(&access_token(&body)?)?;
    assert_eq!(claims["azp"], "w");
    let (status, body) = ask(&token, &["client_id=other"])?;
    assert!(status.starts_with('4'), "another's client: {status} {body}");
    let (head, signature) = token.rsplit_once('.').ok_or("a token")?;
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let (status, body) = ask(&format!("{head}.{first}{}", &signature[1..]), &[])?;
    assert!(status.starts_with('4'), "another's signature: {status} {body}");
    Ok(())
}

fn with_another_implementation() -> Outcome {
    let theirs = programs::theirs()?;
    for (server, client) in [(programs::under_test(), theirs), (theirs, programs::under_test())] {
        let mut abroad = Files::new(ABROAD)?;
        abroad.domain.site.server_programs = server;
        let mut here =
            Domain::without_endpoint(HERE)?.federation(&federates_with(&abroad.domain, &abroad.domain.url()));
        here.site.server_programs = client;
        let _abroad = abroad.domain.site.start_server()?;
        let _here = start_trusting(&here, &abroad.ca.root())?;
        wait::until("the bundle", SOON, || (here.authorities_of(&abroad.domain).ok()? == 1).then_some(()))?;
    }
    Ok(())
}
