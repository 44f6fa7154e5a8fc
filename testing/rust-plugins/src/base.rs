//! What all plugins here have: configuration, and files for the test.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use spire_plugin_sdk::{Configure, CoreConfiguration, Host, Status, Validation, async_trait, hcl};

/// The settings of all plugins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) dir: String,
    pub(crate) value: String,
    refuse: String,
    pub(crate) trust_domain: String,
}

/// A plugin's configuration and host.
pub(crate) struct Base {
    pub(crate) host: Host,
    settings: RwLock<Option<Settings>>,
}

fn read(text: &str) -> Result<Settings, Status> {
    let invalid = |error: &dyn std::fmt::Display| {
        Status::invalid_argument(format!("unable to decode configuration: {error}"))
    };
    let document = hcl::Fragment::from(hcl::parse(text).map_err(|error| invalid(&error))?);
    let mut body = document.body().map_err(|error| invalid(&error))?;
    let mut take =
        |name| body.take_string(name).map(Option::unwrap_or_default).map_err(|error| invalid(&error));
    Ok(Settings {
        dir: take("dir")?,
        value: take("value")?,
        refuse: take("refuse")?,
        trust_domain: String::new(),
    })
}

#[async_trait]
impl Configure for Base {
    async fn configure(&self, core: CoreConfiguration, hcl: &str) -> Result<(), Status> {
        let settings = Settings { trust_domain: core.trust_domain, ..read(hcl)? };
        if !settings.refuse.is_empty() {
            return Err(Status::invalid_argument(settings.refuse));
        }
        let value = settings.value.clone();
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Some(settings);
        self.note("configured", hcl);
        self.note("pid", std::process::id().to_string());
        tracing::info!(value, answer = 42, "Plugin was configured");
        tracing::debug!("Only for those who look closely");
        Ok(())
    }

    async fn validate(&self, _: CoreConfiguration, hcl: &str) -> Result<Validation, Status> {
        let settings = read(hcl)?;
        if settings.refuse.is_empty() {
            return Ok(Validation { valid: true, notes: Vec::new() });
        }
        Ok(Validation { valid: false, notes: vec![settings.refuse, "second note".to_owned()] })
    }
}

impl Base {
    pub(crate) fn new(host: Host) -> Self {
        Self { host, settings: RwLock::new(None) }
    }

    pub(crate) fn config(&self) -> Result<Settings, Status> {
        let settings = self.settings.read().unwrap_or_else(PoisonError::into_inner).clone();
        settings.ok_or_else(|| Status::failed_precondition("not configured"))
    }

    /// A file of the plugin's folder.
    pub(crate) fn path(&self, name: &str) -> Result<PathBuf, Status> {
        match self.config()?.dir.as_str() {
            "" => Err(Status::failed_precondition("no folder")),
            dir => Ok(Path::new(dir).join(name)),
        }
    }

    /// Writes a file for the test, whole or not at all.
    pub(crate) fn note(&self, name: &str, content: impl AsRef<[u8]>) {
        let Ok(path) = self.path(name) else { return };
        let new = path.with_extension("new");
        if std::fs::write(&new, content).is_ok() {
            let _ = std::fs::rename(new, path);
        }
    }

    /// Does what the test asks by files: `crash` ends the plugin, `hang` makes this call never return.
    pub(crate) async fn obey(&self) {
        let Ok(crash) = self.path("crash") else { return };
        if std::fs::remove_file(&crash).is_ok() {
            tracing::error!("crashed as asked");
            std::process::exit(2);
        }
        if crash.with_file_name("hang").exists() {
            std::future::pending::<()>().await;
        }
    }
}

/// An error of the machine.
pub(crate) fn io(error: std::io::Error) -> Status {
    Status::unknown(error.to_string())
}
