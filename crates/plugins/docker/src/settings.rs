//! The settings of the `docker` WorkloadAttestor, checked as the reference checks them.

use spire_compat::hcl::Body;
use spire_ports::plugins::Result;
use spire_ports::plugins::catalog::Configuration;

use crate::matchers::Matchers;

/// What the attestor needs of its settings as long as it asks no engine.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// `container_id_cgroup_matchers`, when the new locator is switched off.
    pub(crate) matchers: Option<Matchers>,
}

/// Settings as written.
#[derive(Default)]
struct Raw {
    matchers: Vec<String>,
    use_new_locator: Option<bool>,
    podman_template: String,
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
        let mut settings = Self::default();
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
        if !raw.podman_template.is_empty() {
            check_template(&raw.podman_template).map_err(|error| {
                configuration.invalid(format!("invalid podman_socket_path_template: {error}"))
            })?;
        }
        Ok(settings)
    }
}

fn read(data: &mut Body<'_>) -> std::result::Result<Raw, spire_compat::hcl::DecodeError> {
    // Paths and the version are for talking to an engine; they are read so that a wrong type is told.
    for key in ["docker_socket_path", "docker_version", "podman_socket_path"] {
        data.take_string(key)?;
    }
    data.take_bool("verbose_container_locator_logs")?;
    data.take_fragment("sigstore");
    Ok(Raw {
        matchers: data.take_string_list("container_id_cgroup_matchers")?.unwrap_or_default(),
        use_new_locator: data.take_bool("use_new_container_locator")?,
        podman_template: data.take_string("podman_socket_path_template")?.unwrap_or_default(),
        unknown: data.unused().into_iter().map(|key| key.name).collect(),
    })
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
