//! Calls to the upstream server, as a workload of its agent.

use std::time::Duration;

use spire_core::pki::{Certificate, MAX_CHAIN_LEN, PublicKey};
use spire_core::spiffe::{JwtAuthority, SpiffeId, TrustDomain, X509Authority};
use spire_core::time::Timestamp;
use spire_net::grpc::tcp_channel;
use spire_net::tls::{TlsClient, TlsPolicy, UnixConnector};
use spire_net::workload::X509Source;
use spire_wire::api::server::bundle::v1::bundle_client::BundleClient;
use spire_wire::api::server::bundle::v1::{
    GetBundleRequest, PublishJwtAuthorityRequest, PublishWitAuthorityRequest,
};
use spire_wire::api::server::svid::v1::NewDownstreamX509caRequest;
use spire_wire::api::server::svid::v1::svid_client::SvidClient;
use spire_wire::api::types;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::settings::Settings;

/// The longest that one call may take; an upstream that does not answer must not hold up a rotation for good. The
/// reference has no bound.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Authorities of a bundle that are taken, of each kind: far more than rotation leaves there. A message of the largest
/// size could have tens of thousands.
const AUTHORITIES_MAX: usize = 1024;

/// The bundle of the trust domain at the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpstreamBundle {
    /// The X.509 roots.
    pub(crate) x509_authorities: Vec<X509Authority>,
    /// The keys of JWT-SVIDs.
    pub(crate) jwt_authorities: Vec<JwtAuthority>,
    /// The keys of WIT-SVIDs.
    pub(crate) wit_authorities: Vec<JwtAuthority>,
}

/// A connection to the upstream server with the identity that it needs.
#[derive(Debug)]
pub(crate) struct Client {
    source: X509Source,
    channel: Channel,
    trust_domain: TrustDomain,
}

impl Client {
    /// Starts to follow the Workload API; the server is dialled when it is first called.
    pub(crate) fn new(settings: &Settings, trust_domain: &TrustDomain) -> Result<Self, Status> {
        let source = X509Source::follow(UnixConnector::new(&settings.socket));
        let policy = TlsPolicy { require_pq_kem: settings.require_pq_kem };
        let server = SpiffeId::server(trust_domain);
        let tls = TlsClient::spiffe(source.trust(), server, Some(source.identity()), policy)
            .map_err(|error| Status::internal(format!("error applying TLS policy: {error}")))?;
        let channel = tcp_channel(&settings.host, settings.port, tls)
            .map_err(|error| Status::internal(format!("error dialing: {error}")))?;
        Ok(Self { source, channel, trust_domain: trust_domain.clone() })
    }

    /// Waits for an identity, without end while the agent has none for us.
    pub(crate) async fn ready(&self) -> Result<(), Status> {
        let ready = self.source.ready().await;
        ready.map(drop).map_err(|error| Status::internal(format!("unable to create X509Source: {error}")))
    }

    /// The chain of a new CA, that CA first.
    pub(crate) async fn new_downstream_ca(
        &self,
        csr: &[u8],
        ttl: Duration,
    ) -> Result<Vec<Certificate>, Status> {
        let preferred_ttl = i32::try_from(ttl.as_secs()).unwrap_or(i32::MAX);
        let request = NewDownstreamX509caRequest { csr: csr.to_vec().into(), preferred_ttl };
        let answer =
            SvidClient::new(self.channel.clone()).new_downstream_x509ca(timed(request)).await?.into_inner();
        if answer.ca_cert_chain.len() > MAX_CHAIN_LEN {
            return Err(Status::internal("unable to parse CA cert chain: it is too long"));
        }
        answer
            .ca_cert_chain
            .into_iter()
            .map(Certificate::from_der)
            .collect::<Result<_, _>>()
            .map_err(|error| Status::internal(format!("unable to parse CA cert chain: {error}")))
    }

    /// The bundle of the trust domain at the upstream.
    pub(crate) async fn bundle(&self) -> Result<UpstreamBundle, Status> {
        let wrap = |status: Status| internal("failed to get bundle", &status);
        let answer =
            BundleClient::new(self.channel.clone()).get_bundle(timed(GetBundleRequest::default())).await;
        let bundle = answer.map_err(wrap)?.into_inner();
        let name = TrustDomain::parse(&bundle.trust_domain);
        if name.ok().as_ref() != Some(&self.trust_domain) {
            return Err(Status::internal("upstream server has another trust domain"));
        }
        Ok(UpstreamBundle {
            x509_authorities: x509_authorities(bundle.x509_authorities)?,
            jwt_authorities: keys(bundle.jwt_authorities, jwt_key)?,
            wit_authorities: keys(bundle.wit_authorities, wit_key)?,
        })
    }

    /// Adds a JWT key to the upstream's bundle, and gives the keys that are in it then.
    pub(crate) async fn publish_jwt(&self, key: &JwtAuthority) -> Result<Vec<JwtAuthority>, Status> {
        let key = types::JwtKey {
            public_key: key.public_key.clone(),
            key_id: key.kid.clone(),
            expires_at: key.not_after.unix(),
            tainted: key.tainted,
        };
        let request = PublishJwtAuthorityRequest { jwt_authority: Some(key) };
        let answer = BundleClient::new(self.channel.clone()).publish_jwt_authority(timed(request)).await;
        let answer = answer.map_err(|status| internal("failed to push JWT authority", &status))?;
        keys(answer.into_inner().jwt_authorities, jwt_key)
    }

    /// Adds a WIT key to the upstream's bundle. An upstream without WIT-SVIDs answers Unimplemented.
    pub(crate) async fn publish_wit(&self, key: &JwtAuthority) -> Result<Vec<JwtAuthority>, Status> {
        let key = types::WitKey {
            public_key: key.public_key.clone(),
            key_id: key.kid.clone(),
            expires_at: key.not_after.unix(),
            tainted: key.tainted,
        };
        let request = PublishWitAuthorityRequest { wit_authority: Some(key) };
        let answer = BundleClient::new(self.channel.clone()).publish_wit_authority(timed(request)).await;
        let answer = answer.map_err(|status| match status.code() {
            Code::Unimplemented => status,
            _ => internal("failed to push WIT authority", &status),
        })?;
        keys(answer.into_inner().wit_authorities, wit_key)
    }
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

fn x509_authorities(authorities: Vec<types::X509Certificate>) -> Result<Vec<X509Authority>, Status> {
    let mut converted = Vec::new();
    for authority in bounded(authorities)? {
        // An authority may come as several certificates in a row.
        let certificates = Certificate::many_from_der(authority.asn1, MAX_CHAIN_LEN)
            .map_err(|error| Status::internal(format!("failed to parse X.509 authorities: {error}")))?;
        let tainted = authority.tainted;
        converted.extend(certificates.into_iter().map(|c| X509Authority { der: c.der().clone(), tainted }));
    }
    Ok(converted)
}

fn jwt_key(key: types::JwtKey) -> JwtAuthority {
    let not_after = Timestamp::from_unix(key.expires_at);
    JwtAuthority { kid: key.key_id, public_key: key.public_key, not_after, tainted: key.tainted }
}

fn wit_key(key: types::WitKey) -> JwtAuthority {
    let not_after = Timestamp::from_unix(key.expires_at);
    JwtAuthority { kid: key.key_id, public_key: key.public_key, not_after, tainted: key.tainted }
}

/// Keys that have an ID and can be read (pkg/common/coretypes/jwtkey).
fn keys<T>(keys: Vec<T>, convert: fn(T) -> JwtAuthority) -> Result<Vec<JwtAuthority>, Status> {
    let checked = |key: JwtAuthority| {
        if key.kid.is_empty() {
            return Err(Status::internal("missing key ID for JWT key"));
        }
        match PublicKey::from_spki(key.public_key.clone()) {
            Ok(_) => Ok(key),
            Err(error) => Err(Status::internal(format!("failed to unmarshal public key: {error}"))),
        }
    };
    bounded(keys)?.into_iter().map(|key| checked(convert(key))).collect()
}

fn bounded<T>(authorities: Vec<T>) -> Result<Vec<T>, Status> {
    if authorities.len() > AUTHORITIES_MAX {
        return Err(Status::internal("the upstream's bundle has too many authorities"));
    }
    Ok(authorities)
}

/// A status as Go prints it.
pub(crate) fn go_text(status: &Status) -> String {
    let code = match status.code() {
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}

/// What failed, with its cause.
pub(crate) fn internal(what: &str, cause: &Status) -> Status {
    Status::internal(format!("{what}: {}", go_text(cause)))
}
