//! The walkthrough of 2020: a join token, a process, an X.509-SVID and a JWT-SVID by hand. It runs as it was typed then,
//! old names and all, and with today's names; what must be seen is the same but for warnings.

use std::time::Duration;

use spire_testkit::{Output, place, redact::redact, wait};

use crate::harness::walk::Walk;
use crate::harness::{Case, Need, Outcome, SOON, svid};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Openssl, Need::Root];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "walk_000::as_typed",
            needs: &[Need::Ours, Need::Namespaces, Need::Openssl, Need::Root],
            run: as_typed,
        },
        Case { name: "walk_000::with_todays_names", needs: NEEDS, run: with_todays_names },
    ]
}

const ID: &str = "spiffe://paasteurizers.iam/workload";

/// What differs between the two forms.
struct Form {
    server_conf: &'static str,
    /// Behind each server command; the old form finds the old default socket.
    server_socket: &'static str,
    agent_socket: &'static str,
    /// Old names that the server warns of.
    warned: &'static [&'static str],
}

fn as_typed() -> Outcome {
    walk(&Form {
        server_conf: "000-server-old.conf",
        server_socket: "",
        agent_socket: "",
        warned: &[
            "registration_uds_path",
            "upstream_bundle",
            "default_svid_ttl",
            "NodeResolver",
            "UpstreamCA",
        ],
    })
}

fn with_todays_names() -> Outcome {
    walk(&Form {
        server_conf: "000-server.conf",
        server_socket: " -socketPath /tmp/spire-registration.sock",
        agent_socket: " -socketPath /tmp/agent.sock",
        warned: &[],
    })
}

fn walk(form: &Form) -> Outcome {
    let walk = Walk::new("bin")?;
    walk.sample(form.server_conf, "etc/server/server.conf")?;
    walk.sample("000-agent.conf", "etc/agent/agent.conf")?;
    walk.sample("upstream-ca.cnf", "etc/server/ca.cnf")?;
    walk.works(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -days 30 -config etc/server/ca.cnf \
         -keyout etc/server/dummy_upstream_ca.key -out etc/server/dummy_upstream_ca.crt && cp \
         etc/server/dummy_upstream_ca.crt etc/agent/dummy_root_ca.crt",
    )?;

    let server = walk.background("server", "./bin/spire-server run --config ./etc/server/server.conf")?;
    server
        .wait_for(&["Starting Server APIs", "address=/tmp/spire-registration.sock", "network=unix"], SOON)?;
    server.wait_for(&["Starting Server APIs", "address=\"127.0.0.1:8081\"", "network=tcp"], SOON)?;
    server_log(&server.lines(), form)?;
    server_files(&walk)?;

    if form.server_socket.is_empty() {
        let old = walk.works("./bin/spire-server healthcheck")?;
        assert_eq!(old.stdout, "Server is healthy.\n");
    } else {
        // Without the flag the default of today is tried, where nothing is.
        let refused =
            walk.typed("./bin/spire-server token generate -socketPath /tmp/none.sock")?.exits_with(1)?;
        assert!(
            refused.stderr.starts_with("Error: rpc error: code = Unavailable desc = connection error"),
            "{refused}"
        );
        assert!(refused.stderr.contains("dial unix"), "{refused}");
    }

    let token_line = format!(
        "./bin/spire-server token generate -spiffeID spiffe://paasteurizers.iam/agent1{}",
        form.server_socket
    );
    let output = walk.works(&token_line)?;
    assert_eq!(redact(&output.stdout), "Token: <uuid>\n");
    let token = output.field("Token")?;

    let agent_line = format!("./bin/spire-agent run -config ./etc/agent/agent.conf -joinToken {token}");
    let mut agent = walk.background("agent", &agent_line)?;
    agent.wait_for(&["Starting agent APIs", "Workload and SDS APIs"], SOON)?;
    let agent_id = format!("spiffe://paasteurizers.iam/spire/agent/join_token/{token}");
    server.wait_for(
        &["Agent attestation request completed", &agent_id, "node_attestor_type=join_token"],
        SOON,
    )?;
    svid::in_order(
        &agent.lines(),
        &[
            &["Starting agent", "data_dir=./.data"],
            &["Plugin loaded", "plugin_name=disk", "plugin_type=KeyManager"],
            &["SVID is not found. Starting node attestation"],
            &["Node attestation was successful", &agent_id],
            &["Starting agent APIs"],
        ],
    )?;
    for plugin in ["k8s", "docker", "unix"] {
        agent.wait_for(
            &["Plugin loaded", &format!("plugin_name={plugin}"), "plugin_type=WorkloadAttestor"],
            SOON,
        )?;
    }
    agent.wait_for(&["Entry created", "spiffe://paasteurizers.iam/agent1"], SOON)?;
    agent.wait_for(&["SVID updated", "spiffe://paasteurizers.iam/agent1"], SOON)?;
    for file in [".data/agent-data.json", ".data/keys.json"] {
        assert_eq!(place::mode(&walk.path(file))?, 0o600, "{file}");
    }
    assert_eq!(place::mode("/tmp/agent.sock".as_ref())?, 0o777);
    token_is_used_up(&walk, &token, &server)?;

    entry_and_x509(&walk, form, &agent)?;
    write_and_read(&walk, form)?;
    jwt(&walk, form)?;
    assert_eq!(agent.stop()?, 0);
    Ok(())
}

fn server_log(lines: &[String], form: &Form) -> Outcome {
    svid::in_order(
        lines,
        &[
            &["level=info", "msg=Configured", "data_dir=./.data"],
            &["Opening SQL database", "db_type=sqlite3", "subsystem_name=sql"],
            &["Initializing new database", "subsystem_name=sql"],
            &["Connected to SQL database", "type=sqlite3"],
            &["Plugin loaded", "external=false", "plugin_name=join_token", "plugin_type=NodeAttestor"],
            &["Loading journal from datastore", "subsystem_name=ca_manager"],
            &["Journal loaded", "jwt_keys=0", "x509_cas=0"],
            &["X509 CA prepared", "self_signed=false", "slot=A"],
            &["X509 CA activated", "slot=A"],
            &["Successfully rotated X.509 CA", "trust_domain_id=\"spiffe://paasteurizers.iam\"", "ttl=86"],
            &["JWT key prepared", "slot=A"],
            &["JWT key activated", "slot=A"],
            &[
                "Signed X509 SVID",
                "spiffe_id=\"spiffe://paasteurizers.iam/spire/server\"",
                "subsystem_name=svid_rotator",
            ],
        ],
    )?;
    for (name, kind) in [("memory", "KeyManager"), ("disk", "UpstreamAuthority")] {
        let parts: &[&str] =
            &["Plugin loaded", &format!("plugin_name={name}"), &format!("plugin_type={kind}")];
        svid::in_order(lines, &[parts])?;
    }
    svid::in_order(lines, &[&["level=warning", "Current umask 0022 is too permissive; setting umask 0027"]])?;
    svid::in_order(lines, &[&["level=warning", "JWT-SVIDs"]])?;
    for name in form.warned {
        svid::in_order(lines, &[&["level=warning", name]])?;
    }
    Ok(())
}

fn server_files(walk: &Walk) -> Outcome {
    assert_eq!(place::mode(&walk.path(".data"))?, 0o750);
    for file in ["datastore.sqlite3", "datastore.sqlite3-wal", "datastore.sqlite3-shm"] {
        assert_eq!(place::mode(&walk.path(".data").join(file))?, 0o640, "{file}");
    }
    assert!(!walk.path(".data/journal.pem").exists());
    assert_eq!(place::mode("/tmp/spire-registration.sock".as_ref())?, 0o770);
    Ok(())
}

/// A second agent cannot join with the token.
fn token_is_used_up(walk: &Walk, token: &str, server: &spire_testkit::Daemon) -> Outcome {
    walk.works("mkdir second && sed -e 's,./.data,./second,' -e 's,/tmp/agent.sock,/tmp/second.sock,' etc/agent/agent.conf > second.conf")?;
    let line = format!("./bin/spire-agent run -config ./second.conf -joinToken {token}");
    let second = walk.background("second agent", &line)?;
    server.wait_for(
        &[
            "level=error",
            "Invalid argument: failed to attest: join token does not exist or has already been used",
        ],
        SOON,
    )?;
    second.wait_for(&["join token does not exist or has already been used"], SOON)?;
    Ok(())
}

fn entry_and_x509(walk: &Walk, form: &Form, agent: &spire_testkit::Daemon) -> Outcome {
    let fetch = format!("./bin/spire-agent api fetch x509{}", form.agent_socket);
    let before = walk.typed_by_workload(&fetch)?.exits_with(1)?;
    let warning = match form.agent_socket {
        "" => "Warning: using the old default socket /tmp/agent.sock\n",
        _ => "",
    };
    let refused = format!("{warning}rpc error: code = PermissionDenied desc = no identity issued\n");
    assert_eq!((before.stdout.as_str(), before.stderr), ("", refused));

    let created = walk.works(&format!(
        "./bin/spire-server entry create -parentID spiffe://paasteurizers.iam/agent1 -spiffeID {ID} -selector \
         unix:uid:1000{}",
        form.server_socket
    ))?;
    let block = format!(
        "Entry ID                : <uuid>\n\
         SPIFFE ID               : {ID}\n\
         Parent ID               : spiffe://paasteurizers.iam/agent1\n\
         Revision                : 0\n\
         X509-SVID TTL           : default\n\
         JWT-SVID TTL            : default\n\
         Selector                : unix:uid:1000\n\n"
    );
    assert_eq!(redact(&created.stdout), block);

    let fetched = wait::until("SVID of the workload", SOON, || {
        walk.typed_by_workload(&fetch).ok().filter(|output| output.code == 0)
    })?;
    assert_eq!(redact(&fetched.stdout), x509_block());
    let attested = agent.wait_for(&["PID attested to have selectors", "uid:1000", "gid:1000"], SOON)?;
    assert!(attested.contains("level=debug"), "{attested}");
    agent.wait_for(&["Fetched X.509 SVID", "count=1", "registered=true", ID], SOON)?;
    agent.wait_for(&["level=error", "No identity issued", "registered=false"], SOON)?;
    let root = walk.typed(&fetch)?.exits_with(1)?;
    assert!(root.stderr.contains("no identity issued"), "{root}");
    Ok(())
}

fn x509_block() -> String {
    format!(
        "Received 1 svid after <duration>\n\nSPIFFE ID:\t\t{ID}\nSVID Valid After:\t<time>\nSVID Valid \
         Until:\t<time>\nIntermediate #1 Valid After:\t<time>\nIntermediate #1 Valid Until:\t<time>\nCA #1 Valid \
         After:\t<time>\nCA #1 Valid Until:\t<time>\n\n"
    )
}

fn write_and_read(walk: &Walk, form: &Form) -> Outcome {
    walk.works("mkdir tmp && chown 1000:1000 tmp")?;
    let fetch = |folder: &str| {
        walk.typed_by_workload(&format!(
            "./bin/spire-agent api fetch x509 --write {folder}{}",
            form.agent_socket
        ))
    };
    let written = fetch("./tmp")?.success()?;
    let lines = "Writing SVID #0 to file tmp/svid.0.pem.\nWriting key #0 to file tmp/svid.0.key.\nWriting bundle #0 \
                 to file tmp/bundle.0.pem.\n";
    assert_eq!(redact(&written.stdout), format!("{}{lines}", x509_block()));
    for (file, mode) in [("svid.0.pem", 0o644), ("svid.0.key", 0o600), ("bundle.0.pem", 0o644)] {
        assert_eq!(place::mode(&walk.path("tmp").join(file))?, mode, "{file}");
    }
    let nowhere = fetch("nodir")?.exits_with(1)?;
    assert!(nowhere.stderr.contains("open nodir/svid.0.pem: no such file or directory"), "{nowhere}");

    let chain = place::read(&walk.path("tmp/svid.0.pem"))?;
    let bundle = place::read(&walk.path("tmp/bundle.0.pem"))?;
    assert_eq!((svid::certificates(&chain), svid::certificates(&bundle)), (2, 1));
    let same_root = bundle.trim() == place::read(&walk.path("etc/server/dummy_upstream_ca.crt"))?.trim();
    assert!(same_root, "the bundle is the upstream's root alone");
    assert!(place::read(&walk.path("tmp/svid.0.key"))?.starts_with("-----BEGIN PRIVATE KEY-----"));
    walk.works("openssl verify -CAfile tmp/bundle.0.pem -untrusted tmp/svid.0.pem tmp/svid.0.pem")?;
    certificate(&walk.works("openssl x509 -in ./tmp/svid.0.pem -text -noout")?)?;
    let pair = walk.works(
        "openssl x509 -in tmp/svid.0.pem -noout -pubkey > a && openssl pkey -in tmp/svid.0.key -pubout > b && cmp a b",
    )?;
    assert_eq!(pair.stdout, "");
    Ok(())
}

fn certificate(text: &Output) -> Outcome {
    let text = &text.stdout;
    for part in [
        "Version: 3 (0x2)",
        "Issuer: C = US, O = SPIFFE",
        "Subject: C = US, O = SPIRE\n",
        "Signature Algorithm: ecdsa-with-SHA256",
        "NIST CURVE: P-256",
        "X509v3 Key Usage: critical\n                Digital Signature, Key Encipherment, Key Agreement\n",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "X509v3 Basic Constraints: critical\n                CA:FALSE\n",
        "X509v3 Subject Key Identifier:",
        "X509v3 Authority Key Identifier:",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    assert_eq!(text.matches("URI:").count(), 1, "{text}");
    assert!(text.contains(&format!("URI:{ID}\n")), "{text}");
    Ok(())
}

fn jwt(walk: &Walk, form: &Form) -> Outcome {
    let line = format!("./bin/spire-agent api fetch jwt --audience Mobile{}", form.agent_socket);
    let output = walk.typed_by_workload(&line)?.success()?;
    let (head, rest) = output.stdout.split_once('\n').ok_or("no line")?;
    assert_eq!(head, format!("token({ID}):"));
    let (token, keys) =
        rest.split_once("\nbundle(spiffe://paasteurizers.iam):\n\t").ok_or_else(|| output.to_string())?;
    let (header, claims) = svid::jwt_parts(token.trim())?;
    let jwks = svid::json(keys)?;
    // Indented by four blanks.
    assert!(keys.starts_with("{\n    \"keys\": [\n        {\n            \"kty\": \"EC\""), "{keys}");
    assert_eq!((header["alg"].as_str(), header["typ"].as_str()), (Some("ES256"), Some("JWT")));
    assert_eq!(header["kid"], jwks["keys"][0]["kid"]);
    assert!(header["kid"].is_string());
    assert_eq!(claims["sub"], ID);
    assert_eq!(claims["aud"], serde_json::json!(["Mobile"]));
    let lifetime = claims["exp"].as_i64().zip(claims["iat"].as_i64()).map(|(exp, iat)| exp - iat);
    assert_eq!(lifetime, i64::try_from(Duration::from_secs(300).as_secs()).ok());
    assert!(claims.get("iss").is_none() && jwks["keys"][0].get("use").is_none());
    Ok(())
}
