//! The settings of the `docker` WorkloadAttestor, checked as the reference checks them.

use spire_compat::hcl::Body;
use spire_ports::plugins::Result;
use spire_ports::plugins::catalog::Configuration;

use crate::matchers::Matchers;

const DOCKER_SOCKET: &str = "unix:///var/run/docker.sock";
const PODMAN_SOCKET: &str = "unix:///run/podman/podman.sock";
const PODMAN_TEMPLATE: &str = "unix:///run/user/%d/podman/podman.sock";

/// What the attestor goes by.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// `container_id_cgroup_matchers`, when the new locator is switched off.
    pub(crate) matchers: Option<Matchers>,
    /// `unix://<path>` or `tcp://<host>:<port>`.
    pub(crate) docker_socket: String,
    /// The API's version, where it is not to be negotiated.
    pub(crate) version: Option<String>,
    pub(crate) podman_socket: String,
    /// With one `%d` for the user.
    pub(crate) podman_template: String,
    pub(crate) verbose_locator: bool,
    /// What counts as a good signature of an image, where images must have one.
    pub(crate) sigstore: Option<spire_sigstore::Settings>,
}

/// Settings as written.
#[derive(Default)]
struct Raw {
    matchers: Vec<String>,
    use_new_locator: Option<bool>,
    docker_socket: String,
    version: String,
    podman_socket: String,
    podman_template: String,
    verbose_locator: bool,
    sigstore: Option<spire_sigstore::Settings>,
    unknown: Vec<String>,
}

impl Settings {
    pub(crate) fn read(configuration: &Configuration) -> Result<Self> {
        let raw = configuration
            .decode(read)
            .map_err(|error| configuration.invalid(format!("unable to decode configuration: {error}")))?;
        if !raw.unknown.is_empty() {
            let unknown = raw.unknown.join(",");
            return Err(configuration.invalid(format!("unknown configurations detected: {unknown}")));
        }
        let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        let mut settings = Self {
            matchers: None,
            docker_socket: or(raw.docker_socket, DOCKER_SOCKET),
            version: Some(raw.version).filter(|version| !version.is_empty()),
            podman_socket: or(raw.podman_socket, PODMAN_SOCKET),
            podman_template: or(raw.podman_template, PODMAN_TEMPLATE),
            verbose_locator: raw.verbose_locator,
            sigstore: raw.sigstore,
        };
        if !raw.matchers.is_empty() {
            if raw.use_new_locator.unwrap_or(true) {
                return Err(configuration.invalid(
                    "the new container locator and custom cgroup matchers cannot both be used; please open \
                     an issue if the new container locator fails to locate workload containers in your \
                     environment; to continue using custom matchers set use_new_container_locator=false",
                ));
            }
            settings.matchers =
                Some(Matchers::parse(&raw.matchers).map_err(|error| configuration.invalid(error))?);
        }
        check_template(&settings.podman_template).map_err(|error| {
            configuration.invalid(format!("invalid podman_socket_path_template: {error}"))
        })?;
        Ok(settings)
    }
}

fn read(data: &mut Body<'_>) -> std::result::Result<Raw, spire_compat::hcl::DecodeError> {
    let mut sigstore = spire_sigstore::Settings::take(data)?;
    let mut former = Vec::new();
    if let Some(mut experimental) = data.take_block("experimental")? {
        match spire_sigstore::Settings::take_former(&mut experimental)? {
            Some(settings) => sigstore = sigstore.or(Some(settings)),
            // Nothing else was ever in it.
            None => former.push("experimental".to_owned()),
        }
        former.extend(experimental.unused().into_iter().map(|key| key.name));
    }
    let mut raw = Raw {
        docker_socket: data.take_string("docker_socket_path")?.unwrap_or_default(),
        version: data.take_string("docker_version")?.unwrap_or_default(),
        podman_socket: data.take_string("podman_socket_path")?.unwrap_or_default(),
        verbose_locator: data.take_bool("verbose_container_locator_logs")?.unwrap_or_default(),
        sigstore,
        matchers: data.take_string_list("container_id_cgroup_matchers")?.unwrap_or_default(),
        use_new_locator: data.take_bool("use_new_container_locator")?,
        podman_template: data.take_string("podman_socket_path_template")?.unwrap_or_default(),
        unknown: former,
    };
    raw.unknown.extend(data.unused().into_iter().map(|key| key.name));
    raw.unknown.sort();
    Ok(raw)
}

/// One `%d`, which stands for a user ID, and otherwise only `%%`.
fn check_template(template: &str) -> std::result::Result<(), &'static str> {
    let mut users = 0;
    let mut chars = template.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            continue;
        }
        match chars.next() {
            Some('%') => {}
            Some('d') => users += 1,
            Some(_) => return Err("template only supports escaped %% or the %d UID placeholder"),
            None => return Err("trailing % at end of template"),
        }
    }
    if users == 1 { Ok(()) } else { Err("template must contain exactly one %d UID placeholder") }
}
