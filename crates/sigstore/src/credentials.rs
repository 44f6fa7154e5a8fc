//! Who we are to a registry: what the settings say, or else what Docker and Podman keep for their user, in the places and order
//! of go-containerregistry (pkg/authn/keychain.go). Helper programs are not run.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::reference::ImageReference;
use crate::settings::Credentials;

/// Far more than files with a few registries have.
const FILE_MAX: u64 = 1 << 20;

const DOCKER_HUB: &str = "index.docker.io";

/// How to come to a token.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    Anonymous,
    Password(Credentials),
    /// A token that stands for a login (OAuth 2 refresh token).
    Identity(String),
    /// A token for the registry itself.
    Token(String),
}

/// A `config.json` or `auth.json`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// The login for an image's registry of the user whose environment this is.
pub(crate) fn ambient(
    image: &ImageReference,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Login, String> {
    let Some(path) = file(&environment) else { return Ok(Login::Anonymous) };
    let failed = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
    let mut text = Vec::new();
    let file = std::fs::File::open(&path).map_err(|error| failed(&error))?;
    file.take(FILE_MAX).read_to_end(&mut text).map_err(|error| failed(&error))?;
    let config: Config =
        serde_json::from_slice(&text).map_err(|_| failed(&"not a configuration of Docker"))?;
    config.login(image).map_err(|reason| failed(&reason))
}

/// The file that counts, if there is one.
fn file(environment: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let set = |name: &str| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let there = |path: PathBuf| path.is_file().then_some(path);
    let home = set("HOME").map(|home| home.join(".docker/config.json"));
    let docker = set("DOCKER_CONFIG").map(|folder| folder.join("config.json"));
    // A file of either place makes Docker's configuration count, and that is where the variable says if it is set.
    if home.iter().chain(&docker).any(|path| path.is_file()) {
        return docker.or(home).and_then(there);
    }
    let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
    set("REGISTRY_AUTH_FILE")
        .and_then(there)
        .or_else(|| there(set("XDG_RUNTIME_DIR")?.join("containers/auth.json")))
        .or_else(|| there(config?.join("containers/auth.json")))
}

impl Config {
    fn login(&self, image: &ImageReference) -> Result<Login, &'static str> {
        let repository = format!("{}/{}", image.registry, image.repository);
        for key in [&repository, &image.registry] {
            let key = if key == DOCKER_HUB { "https://index.docker.io/v1/" } else { key };
            if let Some(auth) = self.auth(key) {
                return auth.login();
            }
        }
        if !self.creds_store.is_empty() || self.cred_helpers.contains_key(&image.registry) {
            tracing::debug!(
                registry = image.registry,
                "Credential helpers are not run; the registry is asked without credentials"
            );
        }
        Ok(Login::Anonymous)
    }

    /// Under its name, or one that is a URL of it.
    fn auth(&self, key: &str) -> Option<&Auth> {
        let named = |(known, auth): (&String, _)| (host(known) == key).then_some(auth);
        self.auths.get(key).or_else(|| self.auths.iter().find_map(named))
    }
}

/// A URL's host.
fn host(url: &str) -> &str {
    let bare = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or(url);
    bare.split('/').next().unwrap_or_default()
}

impl Auth {
    fn login(&self) -> Result<Login, &'static str> {
        if !self.registrytoken.is_empty() {
            return Ok(Login::Token(self.registrytoken.clone()));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Login::Identity(self.identitytoken.clone()));
        }
        let (mut username, mut password) = (self.username.clone(), self.password.clone());
        if !self.auth.is_empty() {
            let malformed = "malformed auth of a registry";
            let text = STANDARD.decode(&self.auth).map_err(|_| malformed)?;
            let text = String::from_utf8(text).map_err(|_| malformed)?;
            let (user, secret) = text.split_once(':').ok_or(malformed)?;
            (username, password) = (user.to_owned(), secret.trim_end_matches('\0').to_owned());
        }
        if username.is_empty() && password.is_empty() {
            return Ok(Login::Anonymous);
        }
        Ok(Login::Password(Credentials { username, password }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> ImageReference {
        ImageReference::parse(text).unwrap()
    }

    fn password(username: &str, password: &str) -> Login {
        Login::Password(Credentials { username: username.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn logins_are_found_where_docker_and_podman_keep_them() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let at = |name: &str| folder.path().join(name).display().to_string();
        let ask = |variables: &[(&str, String)], text: &str| {
            let find = |name: &str| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
            };
            ambient(&image(text), find)
        };
        let home = [("HOME", at("home"))];
        assert!(ask(&home, "r.example/aa") == Ok(Login::Anonymous));
        write("home/.config/containers/auth.json", r#"{"auths":{"r.example":{"auth":"dTpw"}}}"#);
        assert!(ask(&home, "r.example/aa") == Ok(password("u", "p")));
        write("auth.json", r#"{"auths":{"r.example":{"username":"v","password":"q:r"}}}"#);
        let named = [("HOME", at("home")), ("REGISTRY_AUTH_FILE", at("auth.json"))];
        assert!(ask(&named, "r.example/aa") == Ok(password("v", "q:r")));
        write(
            "home/.docker/config.json",
            r#"{"credsStore":"x","auths":{"https://index.docker.io/v1/":{"identitytoken":"t"},"https://s.example/v2/":
            {"registrytoken":"s"},"r.example/aa":{"auth":"YTpi"},"bad.example":{"auth":"!"}}}"#,
        );
        assert!(ask(&named, "r.example/aa") == Ok(password("a", "b")));
        // As with Docker, what is for one repository is for its registry where nothing else is.
        assert!(ask(&named, "r.example/bb") == Ok(password("a", "b")));
        assert!(ask(&named, "t.example/bb") == Ok(Login::Anonymous));
        assert!(ask(&named, "blog") == Ok(Login::Identity("t".to_owned())));
        assert!(ask(&named, "s.example/aa") == Ok(Login::Token("s".to_owned())));
        assert!(ask(&named, "bad.example/aa").err().unwrap().ends_with("malformed auth of a registry"));
        write("docker/config.json", "{");
        let other = [("HOME", at("home")), ("DOCKER_CONFIG", at("docker"))];
        assert!(ask(&other, "r.example/aa").err().unwrap().ends_with("not a configuration of Docker"));
    }
}
