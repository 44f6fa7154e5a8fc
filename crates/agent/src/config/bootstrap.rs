//! How the agent comes to trust the server the first time.

use std::net::IpAddr;

use spire_compat::quote::quote;
use spire_net::https::redacted;

/// The format of a bundle in a file or behind a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BundleFormat {
    /// Certificates in PEM.
    Pem,
    /// A SPIFFE bundle in JSON.
    Spiffe,
}

/// Where the first bundle comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustBundleSource {
    /// Nowhere: the first server that answers is trusted.
    Insecure,
    /// `trust_bundle_path`
    File {
        /// The file.
        path: String,
        /// Its format.
        format: BundleFormat,
    },
    /// `trust_bundle_url`
    Url {
        /// `https://…`, or `http://…` with a socket.
        url: String,
        /// Where to connect instead of the URL's host.
        unix_socket: Option<String>,
        /// The format of the answer.
        format: BundleFormat,
    },
    /// `trust_bundle_spiffe_workload_api`
    WorkloadApi {
        /// `unix:///…` or `tcp://ip:port`
        address: String,
    },
}

/// What the flags and the file say, empty where they say nothing.
pub(super) struct RawSources {
    pub(super) insecure: bool,
    pub(super) format: String,
    pub(super) path: String,
    pub(super) url: String,
    pub(super) unix_socket: String,
    pub(super) workload_api: String,
}

impl RawSources {
    /// Exactly one source must be set. Returns the key to blame and the reference's text.
    pub(super) fn resolve(self) -> Result<TrustBundleSource, (&'static str, String)> {
        self.check_combination()?;
        let format = match self.format.as_str() {
            "pem" => BundleFormat::Pem,
            "spiffe" => BundleFormat::Spiffe,
            _ => {
                let message = "invalid value for trust_bundle_format, expected \"pem\" or \"spiffe\"";
                return Err(("trust_bundle_format", message.to_owned()));
            }
        };
        if !self.unix_socket.is_empty() && self.url.is_empty() {
            let message = "if trust_bundle_unix_socket is specified, so must be trust_bundle_url";
            return Err(("trust_bundle_unix_socket", message.to_owned()));
        }
        if !self.url.is_empty() {
            self.check_url().map_err(|message| ("trust_bundle_url", message))?;
        }
        let unix_socket = (!self.unix_socket.is_empty()).then_some(self.unix_socket);
        Ok(if self.insecure {
            TrustBundleSource::Insecure
        } else if !self.workload_api.is_empty() {
            TrustBundleSource::WorkloadApi { address: self.workload_api }
        } else if self.url.is_empty() {
            TrustBundleSource::File { path: self.path, format }
        } else {
            TrustBundleSource::Url { url: self.url, unix_socket, format }
        })
    }

    fn check_combination(&self) -> Result<(), (&'static str, String)> {
        let (url, path) = (!self.url.is_empty(), !self.path.is_empty());
        let api = !self.workload_api.is_empty();
        let refuse = |key, message: &str| Err((key, message.to_owned()));
        let only = |a: &str, b: &str| format!("only one of {a} or {b} can be specified, not both");
        if api {
            const API: &str = "trust_bundle_spiffe_workload_api";
            if self.insecure {
                return refuse(API, &only("insecure_bootstrap", API));
            }
            if url {
                return refuse(API, &only("trust_bundle_url", API));
            }
            if path {
                return refuse(API, &only("trust_bundle_path", API));
            }
            if !self.unix_socket.is_empty() {
                let text = "trust_bundle_unix_socket can not be used with trust_bundle_spiffe_workload_api";
                return refuse("trust_bundle_unix_socket", text);
            }
            check_endpoint(&self.workload_api).map_err(|error| {
                (API, format!("{API} is not a valid SPIFFE Workload API endpoint address: {error}"))
            })?;
        }
        match (self.insecure, url, path) {
            (true, true, true) => refuse(
                "insecure_bootstrap",
                "only one of insecure_bootstrap, trust_bundle_url, or trust_bundle_path can be specified, not the \
                 three options",
            ),
            (true, true, false) => {
                refuse("insecure_bootstrap", &only("insecure_bootstrap", "trust_bundle_url"))
            }
            (true, false, true) => {
                refuse("insecure_bootstrap", &only("insecure_bootstrap", "trust_bundle_path"))
            }
            (false, false, false) if !api => refuse(
                "trust_domain",
                "trust_bundle_path, trust_bundle_url, or trust_bundle_spiffe_workload_api must be configured \
                 unless insecure_bootstrap is set",
            ),
            (false, true, true) => refuse("trust_bundle_url", &only("trust_bundle_url", "trust_bundle_path")),
            _ => Ok(()),
        }
    }

    fn check_url(&self) -> Result<(), String> {
        let url =
            Url::parse(&self.url).map_err(|error| format!("unable to parse trust bundle URL: {error}"))?;
        if self.unix_socket.is_empty() {
            if url.scheme != "https" {
                return Err("trust bundle URL must start with https://".to_owned());
            }
            return Ok(());
        }
        if url.scheme != "http" {
            let text = "trust bundle URL must start with http:// when used with trust bundle unix socket";
            return Err(text.to_owned());
        }
        for parameter in url.query.unwrap_or_default().split('&') {
            let name = percent_decoded(parameter.split('=').next().unwrap_or_default());
            // The agent adds parameters of these names itself.
            for prefix in ["spiffe-", "spire-"] {
                if name.starts_with(prefix) {
                    return Err(format!("trust_bundle_url query params can not start with {prefix}"));
                }
            }
        }
        Ok(())
    }
}

fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        let hex = tail.get(..2).filter(|_| *byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                rest = &tail[2..];
            }
            None => {
                out.push(if *byte == b'+' { b' ' } else { *byte });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The parts of a URL that the checks here need.
struct Url<'a> {
    scheme: String,
    opaque: bool,
    user: bool,
    host: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    fragment: Option<&'a str>,
}

impl<'a> Url<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let fail = |what: &str| Err(format!("parse {}: {what}", quote(&redacted(text))));
        if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            return fail("net/url: invalid control character in URL");
        }
        let (rest, fragment) = split_off(text, '#');
        let (scheme, rest) = match rest.split_once(':') {
            Some(("", _)) => return fail("missing protocol scheme"),
            Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
            _ => (String::new(), rest),
        };
        let (rest, query) = split_off(rest, '?');
        let opaque = !scheme.is_empty() && !rest.starts_with('/');
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", rest),
        };
        let (user, host) = match authority.rsplit_once('@') {
            Some((_, host)) => (true, host),
            None => (false, authority),
        };
        let path = if opaque { "" } else { path };
        Ok(Self { scheme, opaque: opaque && !rest.is_empty(), user, host, path, query, fragment })
    }
}

fn split_off(text: &str, at: char) -> (&str, Option<&str>) {
    match text.split_once(at) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// Checks a Workload API address, with go-spiffe's texts (workloadapi/addr.go).
fn check_endpoint(address: &str) -> Result<(), String> {
    let url = Url::parse(address)
        .map_err(|error| format!("workload endpoint socket is not a valid URI: {error}"))?;
    let kind = match url.scheme.as_str() {
        "tcp" | "unix" => url.scheme.as_str(),
        _ => return Err("workload endpoint socket URI must have a \"tcp\" or \"unix\" scheme".to_owned()),
    };
    let fail = |what: &str| Err(format!("workload endpoint {kind} socket URI {what}"));
    if url.opaque {
        return fail("must not be opaque");
    }
    if url.user {
        return fail("must not include user info");
    }
    match kind {
        "unix" if url.host.is_empty() && url.path.is_empty() => return fail("must include a path"),
        "tcp" if url.host.is_empty() => return fail("must include a host"),
        "tcp" if !url.path.is_empty() => return fail("must not include a path"),
        _ => {}
    }
    if url.query.is_some_and(|query| !query.is_empty()) {
        return fail("must not include query values");
    }
    if url.fragment.is_some_and(|fragment| !fragment.is_empty()) {
        return fail("must not include a fragment");
    }
    if kind == "tcp" {
        let (host, port) = match url.host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None => match url.host.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (url.host, None),
            },
        };
        if host.parse::<IpAddr>().is_err() {
            return fail("host component must be an IP:port");
        }
        if port.is_none_or(str::is_empty) {
            return fail("host component must include a port");
        }
    }
    Ok(())
}
