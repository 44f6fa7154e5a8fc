//! `plugin_data`, and the files that it names, which are read once.

use std::path::PathBuf;

use spire_compat::files::read_bounded;
use spire_core::pki::{LocalKey, pem};
use spire_net::https::HttpsClient;
use spire_net::tls::{Identity, ServerTrust, TlsClient, TlsPolicy};
use spire_ports::plugins::catalog::Configuration;
use spire_ports::plugins::{ErrorKind, Result};
use zeroize::Zeroizing;

use crate::NAME;
use crate::cas::Cas;
use crate::predecessors::Predecessors;
use crate::session::Part;
use crate::template::Template;

/// More than any template, certificate or key needs.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// As written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    connection: String,
    client_certificate: String,
    client_key: String,
    trust_anchor: String,
    insecure_skip_verify: bool,
    predecessors: PathBuf,
    svid_template: String,
    bundle_template: String,
    federated_bundles_template: String,
}

/// The templates of the sessions.
pub(crate) struct Templates {
    svid: Template,
    bundle: Template,
    federated_bundles: Template,
}

impl Templates {
    pub(crate) fn of(&self, part: Part) -> &Template {
        match part {
            Part::Svid => &self.svid,
            Part::Bundle => &self.bundle,
            Part::FederatedBundles => &self.federated_bundles,
        }
    }
}

/// Why a configuration cannot be used. Texts as the original's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("unable to parse {0} session template: {1}")]
    Template(&'static str, String),
    #[error("unable to {0} from template: cannot find session name in template")]
    Name(&'static str),
    #[error("cannot create predecessors directory: {0}")]
    Predecessors(String),
    #[error("cannot append append trust anchor certificate to CA pool")]
    TrustAnchor,
    #[error("{0}")]
    Client(String),
}

impl Failure {
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Template(..) | Self::Name(_) => ErrorKind::InvalidArgument,
            Self::Predecessors(_) => ErrorKind::Internal,
            Self::TrustAnchor | Self::Client(_) => ErrorKind::Unknown,
        }
    }
}

impl Settings {
    pub(crate) fn read(configuration: &Configuration) -> Result<Self> {
        let decoded = configuration.decode(|data| {
            let mut text = |key| Ok(data.take_string(key)?.unwrap_or_default());
            Ok(Self {
                connection: text("cas_connection_string")?,
                client_certificate: text("cas_client_certificate")?,
                client_key: text("cas_client_key")?,
                trust_anchor: text("trust_anchor_certificate")?,
                predecessors: text("cas_predecessor_dir")?.into(),
                svid_template: text("svid_session_template_file")?,
                bundle_template: text("bundle_session_template_file")?,
                federated_bundles_template: text("federated_bundles_session_template_file")?,
                insecure_skip_verify: data.take_bool("insecure_skip_verify_tls")?.unwrap_or_default(),
            })
        });
        decoded.map_err(|error| configuration.invalid(format!("unable to decode configuration: {error}")))
    }

    /// Reads the files, in the order of the original, whose first error is the one that is seen.
    pub(crate) fn load(self) -> std::result::Result<(Templates, Cas), Failure> {
        let template = |what, path: &str| {
            let text = read(path).map_err(|error| Failure::Template(what, error))?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        };
        let bundle = template("bundle", &self.bundle_template)?;
        let federated = template("federated bundles", &self.federated_bundles_template)?;
        let svid = template("svid", &self.svid_template)?;
        let named = |what, text| Template::new(text).ok_or(Failure::Name(what));
        let templates = Templates {
            bundle: named("get ca session name", bundle)?,
            federated_bundles: named("get federated bundles session name", federated)?,
            svid: named("svid session prefix name", svid)?,
        };
        let predecessors = Predecessors::create(self.predecessors.clone()).map_err(Failure::Predecessors)?;
        if self.insecure_skip_verify {
            tracing::warn!(
                plugin_name = NAME,
                "insecure_skip_verify_tls enabled. The plugin sconecas_sessionmanager will trust any CAS. Do not use \
                 this config in production!"
            );
        }
        let client = self.client()?;
        Ok((templates, Cas::new(client, &self.connection, predecessors)))
    }

    /// The anchor must be good even where it is not looked at, as in the original.
    fn client(&self) -> std::result::Result<HttpsClient, Failure> {
        let anchor = read(&self.trust_anchor).map_err(|error| {
            tracing::error!(plugin_name = NAME, error, "cannot read CAS trust anchor certificate");
            Failure::TrustAnchor
        })?;
        let authorities = pem::certificates(&anchor).map_err(|_| Failure::TrustAnchor)?;
        let chain = read(&self.client_certificate).map_err(Failure::Client)?;
        let chain = pem::certificates(&chain).map_err(|error| {
            Failure::Client(format!("tls: client certificate {}: {error}", self.client_certificate))
        })?;
        let key = read(&self.client_key).map_err(Failure::Client)?;
        let key = LocalKey::from_pem(&key).and_then(|key| key.to_pkcs8());
        let key =
            key.map_err(|error| Failure::Client(format!("tls: client key {}: {error}", self.client_key)))?;
        let identity = Identity::empty();
        identity.replace(&chain, &key).map_err(|error| Failure::Client(format!("tls: {error}")))?;
        let trusted = match self.insecure_skip_verify {
            true => ServerTrust::Anybody,
            false => ServerTrust::Authorities(authorities),
        };
        let tls = TlsClient::private(trusted, Some(identity), TlsPolicy::default());
        Ok(HttpsClient::new(tls.map_err(|error| Failure::Client(error.to_string()))?))
    }
}

fn read(path: &str) -> std::result::Result<Zeroizing<Vec<u8>>, String> {
    read_bounded(path, FILE_BYTES_MAX).map_err(|error| error.to_string())
}
