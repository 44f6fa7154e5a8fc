//! Envoys that get certificate, key and authorities from an agent over SDS: one that serves, others that call it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use spire_testkit::{Daemon, Error, Result, place, wait};

use crate::harness::http;
use crate::harness::peer::Peer;
use crate::harness::site::text;
use crate::harness::{SOON, Site, svid};

/// What an Envoy is.
pub(crate) struct Plan<'a> {
    /// Its name, and that of its program, by which an entry knows it.
    pub(crate) name: &'a str,
    /// The SDS name of its certificate.
    pub(crate) certificate: &'a str,
    /// The SDS name of the authorities that it trusts.
    pub(crate) authorities: &'a str,
    /// The SPIFFE ID that its peers must have.
    pub(crate) peer: &'a str,
    /// The port that it calls over TLS; one without answers `ok` over TLS itself.
    pub(crate) calls: Option<u16>,
    /// What it says of itself.
    pub(crate) metadata: Value,
}

/// A running one.
pub(crate) struct Envoy {
    pub(crate) daemon: Daemon,
    /// Where it listens: over TLS if it serves, else in plain HTTP.
    pub(crate) port: u16,
    admin: u16,
}

/// A copy of the program whose path tells it from others.
pub(crate) fn program(site: &Site, name: &str) -> Result<PathBuf> {
    let built = PathBuf::from(&Peer::Envoy.command()?[0]);
    let path = site.path(name);
    // It has 100 MB; a link has a path of its own as well, where both are on one file system.
    std::fs::hard_link(&built, &path)
        .or_else(|_| std::fs::copy(&built, &path).map(drop))
        .map_err(|error| Error::doing("copying Envoy", error))?;
    Ok(path)
}

impl Envoy {
    /// Starts one, whatever it gets from the agent.
    pub(crate) fn start(site: &Site, program: &Path, plan: &Plan<'_>) -> Result<Self> {
        Self::start_by(site, &[text(program).to_owned()], plan)
    }

    /// Starts one by a command that takes its arguments.
    pub(crate) fn start_by(site: &Site, command: &[String], plan: &Plan<'_>) -> Result<Self> {
        let (port, admin) = (place::port()?, place::port()?);
        let file = site.path(&format!("{}.json", plan.name));
        place::write(&file, &config(plan, &site.agent.socket(), port, admin).to_string())?;
        let args = ["-c", text(&file), "--concurrency", "1", "--disable-hot-restart", "-l", "info"];
        let daemon = site.spawn(plan.name, command, &args)?;
        Ok(Self { daemon, port, admin })
    }

    /// Status and body of a request to it.
    pub(crate) fn get(&self) -> Option<(u16, String)> {
        http::get_text(self.port, "/")
    }

    /// Waits for an answer of this status with this in its body, and says the body.
    pub(crate) fn wait_answer(&self, status: u16, part: &str) -> Result<String> {
        let mut last = None;
        let found = wait::until(&format!("answer {status} with {part:?}"), SOON * 2, || {
            last = self.get();
            last.as_ref()
                .filter(|(found, body)| *found == status && body.contains(part))
                .map(|(_, body)| body.clone())
        });
        found.map_err(|error| self.daemon.error(&format!("{error}; last {last:?}")))
    }

    /// What its administration interface says, which speaks HTTP/1.1 only.
    pub(crate) fn admin(&self, path: &str) -> Result<String> {
        wait::until("answer of Envoy's administration", SOON, || http::get_chunked(self.admin, path))
            .map_err(|error| self.daemon.error(&format!("{path}: {error}")))
    }

    /// The serial number and the URI of the certificate that it shows.
    pub(crate) fn certificate(&self) -> Result<(String, String)> {
        let certs = svid::json(&self.admin("/certs")?)?;
        let all = certs["certificates"].as_array().cloned().unwrap_or_default();
        let own = all.iter().find_map(|one| one["cert_chain"].as_array()?.first().cloned());
        let own = own.ok_or_else(|| self.daemon.error(&format!("no certificate: {certs}")))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok((text(&own["serial_number"]), text(&own["subject_alt_names"][0]["uri"])))
    }
}

fn config(plan: &Plan<'_>, agent: &Path, port: u16, admin: u16) -> Value {
    let local = |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let mut chain = json!({"filters": [{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": http_manager(plan),
    }]});
    let h2 = json!({"explicit_http_config": {"http2_protocol_options": {}}});
    let agent = json!({"pipe": {"path": text(agent)}});
    let mut clusters = vec![cluster("spire_agent", &agent, h2)];
    match plan.calls {
        None => {
            chain["transport_socket"] = json!({
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": tls("DownstreamTlsContext"),
                    "require_client_certificate": true,
                    "common_tls_context": tls_context(plan),
                },
            });
        }
        Some(called) => {
            // Each request has a connection, and so a handshake, of its own.
            let once = json!({
                "common_http_protocol_options": {"max_requests_per_connection": 1},
                "explicit_http_config": {"http_protocol_options": {}},
            });
            let mut api = cluster("api", &local(called), once);
            api["transport_socket"] = json!({
                "name": "envoy.transport_sockets.tls",
                "typed_config": {"@type": tls("UpstreamTlsContext"), "common_tls_context": tls_context(plan)},
            });
            clusters.push(api);
        }
    }
    json!({
        "node": {"id": plan.name, "cluster": "test", "metadata": plan.metadata},
        "admin": {"address": local(admin)},
        "static_resources": {
            "listeners": [{"name": "in", "address": local(port), "filter_chains": [chain]}],
            "clusters": clusters,
        },
    })
}

fn http_manager(plan: &Plan<'_>) -> Value {
    let action = match plan.calls {
        None => {
            json!({"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "ok\n"}}})
        }
        Some(_) => json!({"match": {"prefix": "/"}, "route": {"cluster": "api"}}),
    };
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "http_protocol_options": {"accept_http_10": true},
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"uri": true},
        "access_log": [{"name": "envoy.access_loggers.stdout", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {"text_format_source": {
                "inline_string": "answered %RESPONSE_CODE% %REQ(x-forwarded-client-cert)% %UPSTREAM_TRANSPORT_FAILURE_REASON%\n",
            }},
        }}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [action]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        }}],
    })
}

fn cluster(name: &str, address: &Value, protocol: Value) -> Value {
    let mut options = protocol;
    options["@type"] = json!("type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions");
    json!({
        "name": name,
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    })
}

fn tls_context(plan: &Plan<'_>) -> Value {
    json!({
        "tls_certificate_sds_secret_configs": [sds(plan.certificate)],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": plan.peer}}],
            },
            "validation_context_sds_secret_config": sds(plan.authorities),
        },
    })
}

fn sds(name: &str) -> Value {
    json!({"name": name, "sds_config": {"resource_api_version": "V3", "api_config_source": {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "spire_agent"}}],
    }}})
}

fn tls(name: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{name}")
}
