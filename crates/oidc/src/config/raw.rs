//! The file as it is written: keys with their types, old names with what they are called now.

use std::fmt::Display;

use spire_compat::config::{ConfigError, Location, Notice};
use spire_compat::hcl::{Body, DecodeError, Pos};

/// Where in which file the keys stand, for messages.
pub(super) struct Place<'a> {
    pub(super) file: &'a str,
    /// What stands before the keys: nothing, or the dotted name of the block.
    pub(super) prefix: &'a str,
    pub(super) locate: &'a dyn Fn(&str) -> Option<Pos>,
}

impl Place<'_> {
    /// An error at a dotted key.
    pub(super) fn error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        let mut error = ConfigError::new(message);
        // What is not there stands where its block stands.
        let mut known = key;
        let mut pos = (self.locate)(known);
        while let (None, Some((block, _))) = (pos, known.rsplit_once('.')) {
            known = block;
            pos = (self.locate)(known);
        }
        error.location = pos.map(|pos| {
            let key = if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) };
            Box::new(Location { file: self.file.to_owned(), pos, key })
        });
        error
    }

    fn position(&self, key: &str) -> Option<String> {
        (self.locate)(key).map(|pos| format!("{}:{pos}", self.file))
    }

    fn undecodable(&self, cause: &DecodeError) -> ConfigError {
        undecodable(self.file, cause, cause.pos.unwrap_or_default())
    }
}

/// The reference's words for a file that is no HCL, or a value of the wrong type.
pub(super) fn undecodable(file: &str, cause: &dyn Display, pos: Pos) -> ConfigError {
    let mut error = ConfigError::new(format!("unable to decode configuration: {cause}"));
    error.location = Some(Box::new(Location { file: file.to_owned(), pos, key: String::new() }));
    error
}

/// All keys. Empty stands for absent, as in the reference.
#[derive(Debug, Default)]
pub(super) struct Raw {
    pub(super) log_format: String,
    pub(super) log_level: String,
    pub(super) log_path: String,
    pub(super) log_requests: bool,
    pub(super) domains: Vec<String>,
    pub(super) set_key_use: bool,
    pub(super) allow_insecure_scheme: bool,
    pub(super) insecure_addr: String,
    pub(super) listen_socket_path: String,
    pub(super) acme: Option<RawAcme>,
    pub(super) serving_cert_file: Option<RawServingCertFile>,
    pub(super) server_api: Option<RawServerApi>,
    pub(super) workload_api: Option<RawWorkloadApi>,
    pub(super) file: Option<RawFile>,
    pub(super) health_checks: Option<RawHealthChecks>,
    pub(super) jwt_issuer: String,
    pub(super) jwks_uri: String,
    pub(super) server_path_prefix: String,
    pub(super) notices: Vec<Notice>,
}

#[derive(Debug)]
pub(super) struct RawAcme {
    pub(super) directory_url: String,
    pub(super) email: String,
    pub(super) tos_accepted: bool,
    /// Absent is the default, empty is no cache.
    pub(super) cache_dir: Option<String>,
}

#[derive(Debug)]
pub(super) struct RawServingCertFile {
    pub(super) cert_file_path: String,
    pub(super) key_file_path: String,
    pub(super) addr: String,
    pub(super) file_sync_interval: String,
}

#[derive(Debug)]
pub(super) struct RawServerApi {
    pub(super) address: String,
    pub(super) poll_interval: String,
}

#[derive(Debug)]
pub(super) struct RawWorkloadApi {
    pub(super) socket_path: String,
    pub(super) trust_domain: String,
    pub(super) poll_interval: String,
}

#[derive(Debug)]
pub(super) struct RawFile {
    pub(super) path: String,
    pub(super) poll_interval: String,
}

#[derive(Debug)]
pub(super) struct RawHealthChecks {
    pub(super) bind_port: i64,
    pub(super) ready_path: String,
    pub(super) live_path: String,
}

impl Raw {
    /// Takes every key.
    pub(super) fn take(body: &mut Body<'_>, place: &Place<'_>) -> Result<Self, ConfigError> {
        let mut reader = Reader { place, notices: Vec::new() };
        let raw = reader.all(body).map_err(|error| place.undecodable(&error))?;
        Ok(Self { notices: reader.notices, ..raw })
    }

    /// The first key that only a program of its own has.
    pub(super) fn standalone_key(&self) -> Option<&'static str> {
        let keys = [
            (self.server_api.is_some(), "server_api"),
            (self.workload_api.is_some(), "workload_api"),
            (self.file.is_some(), "file"),
            (self.health_checks.is_some(), "health_checks"),
            (!self.log_format.is_empty(), "log_format"),
            (!self.log_level.is_empty(), "log_level"),
            (!self.log_path.is_empty(), "log_path"),
        ];
        keys.into_iter().find_map(|(set, key)| set.then_some(key))
    }
}

type Decoded<T> = Result<T, DecodeError>;

struct Reader<'p> {
    place: &'p Place<'p>,
    notices: Vec<Notice>,
}

impl Reader<'_> {
    fn all(&mut self, body: &mut Body<'_>) -> Decoded<Raw> {
        let mut raw = Raw {
            log_format: text(body, "log_format")?,
            log_level: text(body, "log_level")?,
            log_path: text(body, "log_path")?,
            log_requests: flag(body, "log_requests")?,
            domains: body.take_string_list("domains")?.unwrap_or_default(),
            set_key_use: flag(body, "set_key_use")?,
            allow_insecure_scheme: flag(body, "allow_insecure_scheme")?,
            insecure_addr: text(body, "insecure_addr")?,
            listen_socket_path: text(body, "listen_socket_path")?,
            acme: self.acme(body)?,
            serving_cert_file: self.serving_cert_file(body)?,
            server_api: self.server_api(body)?,
            workload_api: self.workload_api(body)?,
            file: self.file(body)?,
            health_checks: self.health_checks(body)?,
            jwt_issuer: text(body, "jwt_issuer")?,
            jwks_uri: text(body, "jwks_uri")?,
            server_path_prefix: text(body, "server_path_prefix")?,
            notices: Vec::new(),
        };
        self.experimental("", body, "listen_named_pipe_name")?;
        self.old_names(body, &mut raw)?;
        self.unknown("top-level", body);
        Ok(raw)
    }

    fn acme(&mut self, body: &mut Body<'_>) -> Decoded<Option<RawAcme>> {
        let Some(mut body) = body.take_block("acme")? else { return Ok(None) };
        let acme = RawAcme {
            directory_url: text(&mut body, "directory_url")?,
            email: text(&mut body, "email")?,
            tos_accepted: flag(&mut body, "tos_accepted")?,
            cache_dir: body.take_string("cache_dir")?,
        };
        self.unknown("acme", &body);
        Ok(Some(acme))
    }

    fn serving_cert_file(&mut self, body: &mut Body<'_>) -> Decoded<Option<RawServingCertFile>> {
        let Some(mut body) = body.take_block("serving_cert_file")? else { return Ok(None) };
        let files = RawServingCertFile {
            cert_file_path: text(&mut body, "cert_file_path")?,
            key_file_path: text(&mut body, "key_file_path")?,
            addr: text(&mut body, "addr")?,
            file_sync_interval: text(&mut body, "file_sync_interval")?,
        };
        self.unknown("serving_cert_file", &body);
        Ok(Some(files))
    }

    fn server_api(&mut self, body: &mut Body<'_>) -> Decoded<Option<RawServerApi>> {
        let Some(mut body) = body.take_block("server_api")? else { return Ok(None) };
        let api = RawServerApi {
            address: text(&mut body, "address")?,
            poll_interval: text(&mut body, "poll_interval")?,
        };
        self.experimental("server_api.", &mut body, "named_pipe_name")?;
        self.unknown("server_api", &body);
        Ok(Some(api))
    }

    fn workload_api(&mut self, body: &mut Body<'_>) -> Decoded<Option<RawWorkloadApi>> {
        let Some(mut body) = body.take_block("workload_api")? else { return Ok(None) };
        let api = RawWorkloadApi {
            socket_path: text(&mut body, "socket_path")?,
            trust_domain: text(&mut body, "trust_domain")?,
            poll_interval: text(&mut body, "poll_interval")?,
        };
        self.experimental("workload_api.", &mut body, "named_pipe_name")?;
        self.unknown("workload_api", &body);
        Ok(Some(api))
    }

    fn file(&mut self, body: &mut Body<'_>) -> Decoded<Option<RawFile>> {
        let Some(mut body) = body.take_block("file")? else { return Ok(None) };
        let file =
            RawFile { path: text(&mut body, "path")?, poll_interval: text(&mut body, "poll_interval")? };
        self.unknown("file", &body);
        Ok(Some(file))
    }

    fn health_checks(&mut self, body: &mut Body<'_>) -> Decoded<Option<RawHealthChecks>> {
        let Some(mut body) = body.take_block("health_checks")? else { return Ok(None) };
        let health = RawHealthChecks {
            bind_port: body.take_int("bind_port")?.unwrap_or_default(),
            ready_path: text(&mut body, "ready_path")?,
            live_path: text(&mut body, "live_path")?,
        };
        self.unknown("health_checks", &body);
        Ok(Some(health))
    }

    /// Named pipes are Windows'; the reference passes over them elsewhere.
    fn experimental(&mut self, section: &str, body: &mut Body<'_>, pipe: &str) -> Decoded<()> {
        let Some(mut body) = body.take_block("experimental")? else { return Ok(()) };
        if !text(&mut body, pipe)?.is_empty() {
            let key = format!("{section}experimental.{pipe}");
            self.notice(&key, "Named pipes are for Windows only; the setting is ignored");
        }
        self.unknown(&format!("{section}experimental"), &body);
        Ok(())
    }

    /// `domain` (before 1.2) and `registration_api` (before 1.0).
    fn old_names(&mut self, body: &mut Body<'_>, raw: &mut Raw) -> Decoded<()> {
        if let Some(domain) = body.take_string("domain")? {
            self.notice("domain", "domain is the old name of domains");
            raw.domains.push(domain);
        }
        if let Some(mut old) = body.take_block("registration_api")? {
            self.notice("registration_api", "registration_api is the old name of server_api");
            let path = text(&mut old, "socket_path")?;
            let poll_interval = text(&mut old, "poll_interval")?;
            let address = if path.is_empty() { path } else { format!("unix:{path}") };
            self.unknown("registration_api", &old);
            raw.server_api.get_or_insert(RawServerApi { address, poll_interval });
        }
        Ok(())
    }

    fn notice(&mut self, key: &str, message: &str) {
        let mut notice = Notice::deprecated(message).with("key", key);
        if let Some(position) = self.place.position(key) {
            notice = notice.with("position", position);
        }
        self.notices.push(notice);
    }

    /// The reference passes over what it does not know without a word.
    fn unknown(&mut self, section: &str, body: &Body<'_>) {
        let unused = body.unused();
        if unused.is_empty() {
            return;
        }
        let keys: Vec<&str> = unused.iter().map(|key| key.name.as_str()).collect();
        let positions: Vec<String> = unused
            .iter()
            .flat_map(|key| &key.positions)
            .map(|pos| format!("{}:{pos}", self.place.file))
            .collect();
        self.notices.push(
            Notice::warn("Unknown configuration ignored")
                .with("keys", keys.join(","))
                .with("positions", positions.join(", "))
                .with("section", section),
        );
    }
}

fn text(body: &mut Body<'_>, key: &str) -> Decoded<String> {
    Ok(body.take_string(key)?.unwrap_or_default())
}

fn flag(body: &mut Body<'_>, key: &str) -> Decoded<bool> {
    Ok(body.take_bool(key)?.unwrap_or_default())
}
