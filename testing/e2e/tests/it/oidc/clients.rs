//! Libraries of others verify our tokens by discovery alone.

use libtest_mimic::Failed;
use spire_testkit::{Daemon, Output, Run, place, wait};

use super::provider::Provider;
use crate::harness::http::get_text;
use crate::harness::peer::Peer;
use crate::harness::site::{own_uid, text};
use crate::harness::{Case, Need, Outcome, SOON, Site, programs, svid};

pub(super) fn cases() -> Vec<Case> {
    const NEEDS: &[Need] = &[Need::Oidc, Need::Peer(Peer::PythonOidc), Need::Peer(Peer::NodeOidc)];
    const OURS: &[Need] = &[Need::Ours, Need::Peer(Peer::PythonOidc), Need::Peer(Peer::NodeOidc)];
    vec![
        Case { name: "oidc::clients_believe_our_tokens", needs: NEEDS, run: by_the_provider },
        Case { name: "oidc::clients_believe_tokens_by_the_server_alone", needs: OURS, run: by_the_server },
        Case {
            name: "oidc::fulcio_certifies_our_workloads",
            needs: &[Need::Oidc, Need::Openssl, Need::Fulcio],
            run: fulcio,
        },
    ]
}

const AGENT: &str = "spiffe://example.org/node";
const WORKLOAD: &str = "spiffe://example.org/w";
const AUDIENCE: &str = "the-cloud";

/// A server that says `issuer` in its tokens, with an agent and a workload.
struct Issuing {
    site: Site,
    _programs: (Daemon, Daemon),
}

impl Issuing {
    fn start(issuer: &str, experimental: &str) -> Result<Self, Failed> {
        let mut site = Site::new()?;
        site.server.lines.push(format!("jwt_issuer = \"{issuer}\""));
        if !experimental.is_empty() {
            site.server.lines.push(format!("experimental {{\n{experimental}\n}}"));
        }
        let server = site.start_server()?;
        let agent = site.join(AGENT)?;
        site.entry(AGENT, WORKLOAD, &own_uid(), &[])?;
        site.wait_identities(&[WORKLOAD])?;
        Ok(Self { site, _programs: (server, agent) })
    }

    fn token(&self, audience: &str) -> Result<String, Failed> {
        let fetched = self
            .site
            .workload(&["api", "fetch", "jwt", "-timeout", "20s", "-audience", audience])
            .success()?;
        Ok(fetched.stdout.lines().nth(1).unwrap_or_default().trim().to_owned())
    }
}

fn by_the_provider() -> Outcome {
    let port = place::port()?;
    let issuer = format!("http://localhost:{port}/tenant");
    let issuing = Issuing::start(&issuer, "")?;
    let config = format!(
        "domains = [\"localhost\"]\ninsecure_addr = \"127.0.0.1:{port}\"\nallow_insecure_scheme = true\n\
         server_path_prefix = \"/tenant\"\nserver_api {{ address = \"unix://{}\" poll_interval = \"1s\" }}\n",
        text(&issuing.site.server.socket())
    );
    let provider = Provider::spawn(&programs::under_test().oidc(), issuing.site.folder(), &config)?;
    provider.wait_for(&["Serving HTTP (insecure)"], SOON)?;
    verified(&issuing, &issuer, port, "/tenant")
}

fn by_the_server() -> Outcome {
    let port = place::port()?;
    let issuer = format!("http://localhost:{port}");
    let block = format!(
        " oidc {{\n  domains = [\"localhost\"]\n  insecure_addr = \"127.0.0.1:{port}\"\n  allow_insecure_scheme = true\n }}"
    );
    let issuing = Issuing::start(&issuer, &block)?;
    verified(&issuing, &issuer, port, "")
}

/// Each library believes our token, and none that is not ours or not for it.
fn verified(issuing: &Issuing, issuer: &str, port: u16, prefix: &str) -> Outcome {
    wait::until("keys", SOON, || {
        get_text(port, &format!("{prefix}/keys")).filter(|(status, _)| *status == 200)
    })?;
    let token = issuing.token(AUDIENCE)?;
    assert_eq!(svid::jwt_parts(&token)?.1["iss"], issuer);
    let (head, signature) = token.rsplit_once('.').ok_or("a token")?;
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{head}.{first}{}", &signature[1..]);
    for peer in [Peer::PythonOidc, Peer::NodeOidc] {
        let command = peer.command()?;
        let ask = |audience: &str, token: &str| -> Result<Output, Failed> {
            let run = Run::new(&command[0]).args(&command[1..]);
            Ok(run.args(&[issuer, audience, token]).output()?)
        };
        let good = ask(AUDIENCE, &token)?.success()?;
        assert_eq!(good.stdout, format!("verified {WORKLOAD}\n"), "{peer:?}");
        for (audience, token) in [("another", token.as_str()), (AUDIENCE, &forged)] {
            let refused = ask(audience, token)?.exits_with(1)?;
            assert!(refused.stdout.is_empty() && refused.stderr.contains("refused: "), "{peer:?}: {refused}");
        }
    }
    // A token by a key that is newer than what the libraries saw first.
    let shown = |site: &Site| -> Result<String, Failed> {
        let prepared = site.cli_json(&["localauthority", "jwt", "prepare"])?;
        Ok(prepared["prepared_authority"]["authority_id"].as_str().ok_or("an authority")?.to_owned())
    };
    let newest = shown(&issuing.site)?;
    issuing.site.cli(&["localauthority", "jwt", "activate", "-authorityID", &newest])?;
    let kid = |token: &str| -> Result<String, Failed> {
        Ok(svid::jwt_parts(token)?.0["kid"].as_str().unwrap_or_default().to_owned())
    };
    let renewed = issuing.token("a-later-cloud")?;
    assert_eq!(kid(&renewed)?, newest);
    wait::until("the new key", SOON, || {
        get_text(port, &format!("{prefix}/keys"))?.1.contains(&newest).then_some(())
    })?;
    let command = Peer::NodeOidc.command()?;
    let run = Run::new(&command[0]).args(&command[1..]);
    let output = run.args(&[issuer, "a-later-cloud", &renewed]).success()?;
    assert_eq!(output.stdout, format!("verified {WORKLOAD}\n"));
    Ok(())
}

/// Fulcio takes the token for a proof of who asks, and certifies the key of our X.509-SVID for signing code.
fn fulcio() -> Outcome {
    let (port, http, grpc) = (place::port()?, place::port()?, place::port()?);
    let issuer = format!("http://localhost:{port}");
    let issuing = Issuing::start(&issuer, "")?;
    let folder = issuing.site.folder();
    let config = format!(
        "domains = [\"localhost\"]\ninsecure_addr = \"127.0.0.1:{port}\"\nallow_insecure_scheme = true\n\
         jwt_issuer = \"{issuer}\"\nserver_api {{ address = \"unix://{}\" poll_interval = \"1s\" }}\n",
        text(&issuing.site.server.socket())
    );
    let provider = Provider::spawn(&programs::under_test().oidc(), folder, &config)?;
    provider.wait_for(&["Serving HTTP (insecure)"], SOON)?;
    wait::until("keys", SOON, || get_text(port, "/keys").filter(|(status, _)| *status == 200))?;
    let file = folder.join("fulcio.json");
    place::write(
        &file,
        &format!(
            r#"{{"OIDCIssuers": {{"{issuer}": {{"IssuerURL": "{issuer}", "ClientID": "sigstore", "Type": "spiffe", "SPIFFETrustDomain": "example.org"}}}}}}"#
        ),
    )?;
    let program = std::env::var_os("SPIRE_E2E_FULCIO").ok_or("SPIRE_E2E_FULCIO")?;
    let mut command = std::process::Command::new(program);
    command.args([
        "serve",
        "--ca",
        "ephemeralca",
        "--ct-log-url=",
        "--host=127.0.0.1",
        "--grpc-host=127.0.0.1",
    ]);
    command.args([
        format!("--port={http}"),
        format!("--grpc-port={grpc}"),
        format!("--config-path={}", text(&file)),
    ]);
    command.args(["--metrics-port", &place::port()?.to_string()]).current_dir(folder);
    let _fulcio = Daemon::spawn("fulcio", command)?;
    wait::until("fulcio", SOON, || get_text(http, "/healthz").filter(|(status, _)| *status == 200))?;
    issuing.site.workload(&["api", "fetch", "x509", "-timeout", "20s", "-write", text(folder)]).success()?;
    let key = folder.join("svid.0.key");
    let request =
        Run::new("openssl").args(&["req", "-new", "-subj", "/", "-key", text(&key)]).success()?.stdout;
    let body = serde_json::json!({
        "credentials": { "oidcIdentityToken": issuing.token("sigstore")? },
        "certificateSigningRequest": base64::Engine::encode(&base64::prelude::BASE64_STANDARD, request),
    });
    let answer = Run::new("curl")
        .args(&["--silent", "--header", "Content-Type: application/json", "--data", &body.to_string()])
        .arg(format!("http://127.0.0.1:{http}/api/v2/signingCert"))
        .success()?;
    let answer = svid::json(&answer.stdout)?;
    let chain = &answer["signedCertificateDetachedSct"]["chain"]["certificates"];
    let chain = chain.as_array().ok_or_else(|| format!("no certificates: {answer}"))?;
    assert_eq!(chain.len(), 2);
    let leaf = chain[0].as_str().unwrap_or_default();
    let shown = svid::x509_text(leaf)?;
    assert!(shown.contains(&format!("URI:{WORKLOAD}\n")) && shown.contains("Code Signing"), "{shown}");
    let of_certificate =
        Run::new("openssl").args(&["x509", "-noout", "-pubkey"]).input(leaf).success()?.stdout;
    let of_key = Run::new("openssl").args(&["pkey", "-pubout", "-in", text(&key)]).success()?.stdout;
    assert_eq!(of_certificate, of_key);
    Ok(())
}
