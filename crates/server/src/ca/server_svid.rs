//! The server's own X.509-SVID: signed at start, again at half its life, and when its authority is tainted
//! (pkg/server/svid/rotator.go).

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use spire_core::pki::chain::{Purpose, verify};
use spire_core::pki::{Certificate, LocalKey};
use spire_core::spiffe::Bundle;
use spire_core::time::Timestamp;
use spire_ports::observe::Call;
use spire_ports::observe::names::server as metric;
use tokio::sync::{Mutex, watch};

use super::authorities::Authorities;
use super::error::{CaError, SignError};
use super::prepare::parse_all;
use super::validate::rfc3339;

const SUBSYSTEM: &str = "svid_rotator";

/// The server's X.509-SVID with its key, which lives in memory only and is new with each SVID.
pub struct ServerX509Svid {
    /// The SVID first, then what leads to the root; DER.
    pub chain: Vec<Bytes>,
    /// Its private key.
    pub key: LocalKey,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
    parsed: Vec<Certificate>,
}

impl fmt::Debug for ServerX509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerX509Svid").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// Keeps the server's X.509-SVID fresh.
pub struct ServerSvid {
    authorities: Arc<Authorities>,
    current: watch::Sender<Arc<ServerX509Svid>>,
    /// The bundle that the current SVID was last held against, so that signatures are verified only when
    /// the bundle has changed.
    checked: Mutex<Option<Arc<Bundle>>>,
}

impl ServerSvid {
    /// Signs the first SVID.
    ///
    /// # Errors
    /// [`CaError`] when it cannot be signed.
    pub async fn start(authorities: Arc<Authorities>) -> Result<Arc<Self>, CaError> {
        let first = sign(&authorities).await?;
        Ok(Arc::new(Self {
            authorities,
            current: watch::Sender::new(Arc::new(first)),
            checked: Mutex::default(),
        }))
    }

    /// The SVID of now.
    pub fn current(&self) -> Arc<ServerX509Svid> {
        Arc::clone(&self.current.borrow())
    }

    /// A receiver that wakes when there is a new one.
    pub fn subscribe(&self) -> watch::Receiver<Arc<ServerX509Svid>> {
        self.current.subscribe()
    }

    /// Signs a new SVID if it is time. Idempotent.
    ///
    /// # Errors
    /// [`CaError`] when it cannot be signed; logged already, and the old one stays.
    pub async fn rotate(&self) -> Result<(), CaError> {
        let mut checked = self.checked.lock().await;
        let current = self.current();
        let now = self.authorities.ports.clock.now();
        let half_life = current.not_before + current.not_after.since(current.not_before) / 2;
        // One that is not valid yet is of a time that the clock has left again.
        let is_young = current.not_before <= now && now <= half_life;
        if is_young && !self.newly_tainted(&current, &mut checked, now) {
            return Ok(());
        }
        match sign(&self.authorities).await {
            Ok(svid) => {
                self.current.send_replace(Arc::new(svid));
                Ok(())
            }
            Err(error) => {
                // What the bundle said must be looked at again.
                *checked = None;
                tracing::error!(subsystem_name = SUBSYSTEM, error = %error, "Could not rotate server SVID");
                Err(error)
            }
        }
    }

    /// Whether the bundle changed so that the SVID's authority is tainted now, while the CA that signs is
    /// below another one (a new SVID would be no better otherwise).
    fn newly_tainted(
        &self,
        current: &ServerX509Svid,
        checked: &mut Option<Arc<Bundle>>,
        now: Timestamp,
    ) -> bool {
        let bundle = self.authorities.changes.current();
        let same = match (&bundle, &*checked) {
            (Some(new), Some(old)) => Arc::ptr_eq(new, old),
            (None, None) => true,
            _ => false,
        };
        if same {
            return false;
        }
        let ders: Vec<Bytes> = bundle
            .iter()
            .flat_map(|b| &b.x509_authorities)
            .filter(|a| a.tainted)
            .map(|a| a.der.clone())
            .collect();
        *checked = bundle;
        let Ok(roots) = parse_all(&ders, "root certificate") else { return false };
        if roots.is_empty() || verify(&current.parsed, &roots, Purpose::Any, now).is_err() {
            return false;
        }
        if self.authorities.ca.active_x509().is_none_or(|ca| below(&ca, &roots, now)) {
            // Not better now; look again when the next authority signs.
            *checked = None;
            return false;
        }
        tracing::info!(
            subsystem_name = SUBSYSTEM,
            "Server SVID signed using a tainted authority, forcing rotation of the Server SVID"
        );
        true
    }
}

fn below(ca: &super::ActiveX509, roots: &[Certificate], now: Timestamp) -> bool {
    let own = [ca.certificate().der().clone()];
    let chain = if ca.upstream_chain().is_empty() { &own[..] } else { ca.upstream_chain() };
    parse_all(chain, "CA certificate").is_ok_and(|chain| verify(&chain, roots, Purpose::Any, now).is_ok())
}

async fn sign(authorities: &Authorities) -> Result<ServerX509Svid, CaError> {
    let call = Call::start(&*authorities.ports.metrics, metric::SVID_ROTATE);
    let result = sign_new(authorities).await;
    call.done_with(&result);
    result
}

async fn sign_new(authorities: &Authorities) -> Result<ServerX509Svid, CaError> {
    tracing::debug!(subsystem_name = SUBSYSTEM, "Rotating server SVID");
    let key_type = authorities.config.ca_key_type;
    // An RSA key takes up to seconds.
    let key = tokio::task::spawn_blocking(move || LocalKey::generate(key_type))
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or(SignError::Entropy)?;
    let signed = authorities.ca.sign_server_x509(key.public_key()).await?;
    let parsed = parse_all(&signed.chain, "server SVID")?;
    tracing::debug!(
        subsystem_name = SUBSYSTEM,
        spiffe_id = parsed.first().and_then(|c| c.uris().first()).map_or("", String::as_str),
        expiration = rfc3339(signed.not_after),
        "Signed X509 SVID"
    );
    Ok(ServerX509Svid {
        chain: signed.chain,
        key,
        not_before: signed.not_before,
        not_after: signed.not_after,
        parsed,
    })
}
