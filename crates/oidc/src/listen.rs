//! The listener of the documents, whichever it is.

use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use http::request::Parts;
use spire_net::acme::{Acme, AcmeConfig};
use spire_net::http_server::{Client, PlainListener, serve_plain, serve_tls, tls_incoming};
use spire_net::tls::{
    CertificateFiles, CertificateFilesError, ServerTls, TlsIncoming, TlsPolicy, TlsSetupError,
};
use spire_net::uds::BindError;
use spire_net::{ListenError as TcpError, listen};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::answer::Service;
use crate::config::{ListenerConfig, Serving};

/// What ACME certificates are served on (main.go: newACMEListener).
const ACME_ADDRESS: &str = ":443";
/// Mode of the socket: whoever reaches it may ask (main_posix.go: listenLocal).
const SOCKET_MODE: u32 = 0o777;

/// Why nothing listens. The texts are the reference's.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// `insecure_addr`
    #[error(transparent)]
    Insecure(TcpError),
    /// `listen_socket_path`
    #[error(transparent)]
    Socket(#[from] BindError),
    /// The certificate files.
    #[error("failed to load certificate: {0}")]
    Files(#[from] CertificateFilesError),
    /// The port of `serving_cert_file`.
    #[error("failed to create listener using certificate from disk: {0}")]
    FilesAddress(TcpError),
    /// The port of ACME.
    #[error("failed to create an ACME listener: {0}")]
    AcmeAddress(TcpError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
}

/// A listener that is there.
pub struct Endpoint {
    listener: Listener,
    /// What keeps certificates fresh; they end never.
    certificates: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

enum Listener {
    Plain(PlainListener, Option<SocketFile>),
    Tls(Box<TlsIncoming>),
}

/// A socket's file, which goes with the listener.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Endpoint {
    /// Listens, and says so in the log.
    ///
    /// # Errors
    /// [`ListenError`].
    pub async fn bind(serving: &Serving, policy: TlsPolicy) -> Result<Self, ListenError> {
        if serving.log_requests {
            tracing::info!("Logging all requests");
        }
        match &serving.listener {
            ListenerConfig::Insecure(address) => {
                let listener = listen(address).await.map_err(ListenError::Insecure)?;
                tracing::warn!(address, "Serving HTTP (insecure)");
                let listener = Listener::Plain(PlainListener::Tcp(listener), None);
                Ok(Self { listener, certificates: Vec::new() })
            }
            ListenerConfig::Unix(path) => {
                let listener = bind_socket(path)?;
                tracing::info!(address = %path.display(), network = "unix", "Serving HTTP");
                let file = Some(SocketFile(path.clone()));
                let listener = Listener::Plain(PlainListener::Unix(listener), file);
                Ok(Self { listener, certificates: Vec::new() })
            }
            ListenerConfig::Files { certificate, key, address, sync_interval } => {
                let files = Arc::new(CertificateFiles::load(certificate, key)?);
                let tls = ServerTls::https(files.identity(), policy)?;
                let listener = listen(address).await.map_err(ListenError::FilesAddress)?;
                // The reference says the key's path where the address belongs.
                tracing::info!(
                    address = %key.display(),
                    cert_file_path = %certificate.display(),
                    "Serving HTTPS using certificate loaded from disk"
                );
                let listener = Listener::Tls(Box::new(tls_incoming(&tls, listener)));
                Ok(Self { listener, certificates: vec![Box::pin(files.watch(*sync_interval))] })
            }
            ListenerConfig::Acme { directory_url, email, cache_dir } => {
                let names = serving.documents.domains.names();
                let name = |name: &String| AcmeConfig {
                    directory_url: directory_url.clone(),
                    domain_name: name.clone(),
                    email: email.clone(),
                    tos_accepted: true,
                    cache_dir: cache_dir.clone(),
                    key_prefix: "",
                    subsystem: "",
                    // Of one name there is no doubt that it is the one that the authority reaches.
                    on_demand: names.len() > 1,
                };
                let acmes =
                    names.iter().map(|n| Acme::new(name(n), None, policy)).collect::<Result<Vec<_>, _>>()?;
                let tls = Acme::server_tls_of(&acmes, policy)?;
                let listener = listen(ACME_ADDRESS).await.map_err(ListenError::AcmeAddress)?;
                tracing::info!("Serving HTTPS via ACME");
                let certificates = acmes.into_iter().map(|acme| Box::pin(acme.run()) as _).collect();
                Ok(Self { listener: Listener::Tls(Box::new(tls_incoming(&tls, listener))), certificates })
            }
        }
    }

    /// Answers until `stop`.
    pub async fn serve(self, service: Arc<Service>, stop: CancellationToken) {
        let mut certificates = tokio::task::JoinSet::new();
        for certificate in self.certificates {
            certificates.spawn(certificate);
        }
        let handler = move |head: &Parts, client: Client| service.answer(head, client);
        match self.listener {
            Listener::Plain(listener, file) => {
                serve_plain(listener, handler, stop.cancelled()).await;
                drop(file);
            }
            Listener::Tls(incoming) => serve_tls(*incoming, handler, stop.cancelled()).await,
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").finish_non_exhaustive()
    }
}

/// Whatever has the name before is removed.
fn bind_socket(path: &PathBuf) -> Result<UnixListener, BindError> {
    let _ = std::fs::remove_file(path);
    let failed = |source: io::Error| BindError::Bind { path: path.clone(), source };
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))
        .map_err(|source| BindError::Mode { path: path.clone(), source })?;
    Ok(listener)
}
