//! The configuration of a plugin.

use std::sync::Arc;

use spire_wire::plugin::service::config::config_server::Config;
use spire_wire::plugin::service::config::{
    ConfigureRequest, ConfigureResponse, ValidateRequest, ValidateResponse,
};
use tonic::{Request, Response, Status, async_trait};

/// What the host says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreConfiguration {
    /// The trust domain's name, without scheme.
    pub trust_domain: String,
}

/// What a plugin says of a configuration that it is asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validation {
    /// Whether it would take it.
    pub valid: bool,
    /// What a person should know of it. SPIRE's `validate` commands fail where there are any.
    pub notes: Vec<String>,
}

/// Takes the configuration of a plugin.
#[async_trait]
pub trait Configure: Send + Sync + 'static {
    /// Takes `plugin_data`, as HCL text ([`crate::hcl`] reads it): once before all other calls, and again whenever
    /// it changed. Where it is refused, the one before must stay.
    ///
    /// # Errors
    /// [`Status::invalid_argument`] and the like; the host does not start, or keeps what it had.
    async fn configure(&self, core: CoreConfiguration, hcl: &str) -> Result<(), Status>;

    /// Judges a configuration and takes nothing of it.
    ///
    /// # Errors
    /// `Unimplemented` where the plugin cannot tell, which is the default.
    async fn validate(&self, _core: CoreConfiguration, _hcl: &str) -> Result<Validation, Status> {
        Err(Status::unimplemented("this plugin cannot tell whether a configuration is valid"))
    }
}

/// A configuration service on top of who takes configurations.
pub(crate) struct Adapter(pub(crate) Arc<dyn Configure>);

fn core(
    told: Option<spire_wire::plugin::service::config::CoreConfiguration>,
) -> Result<CoreConfiguration, Status> {
    let told =
        told.ok_or_else(|| Status::invalid_argument("server core configuration must contain trust_domain"))?;
    Ok(CoreConfiguration { trust_domain: told.trust_domain })
}

#[async_trait]
impl Config for Adapter {
    async fn configure(
        &self,
        request: Request<ConfigureRequest>,
    ) -> Result<Response<ConfigureResponse>, Status> {
        let request = request.into_inner();
        self.0.configure(core(request.core_configuration)?, &request.hcl_configuration).await?;
        Ok(Response::new(ConfigureResponse {}))
    }

    async fn validate(
        &self,
        request: Request<ValidateRequest>,
    ) -> Result<Response<ValidateResponse>, Status> {
        let request = request.into_inner();
        let Validation { valid, notes } =
            self.0.validate(core(request.core_configuration)?, &request.hcl_configuration).await?;
        Ok(Response::new(ValidateResponse { valid, notes }))
    }
}
