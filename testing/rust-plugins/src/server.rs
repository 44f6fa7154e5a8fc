//! Plugins of servers.

use std::sync::Arc;

use prost_types::value::Kind;
use spire_core::pki::{Certificate, LocalKey};
use spire_plugin_sdk::wire::host::agentstore::GetAgentInfoRequest;
use spire_plugin_sdk::wire::host::identityprovider::FetchX509IdentityRequest;
use spire_plugin_sdk::wire::host::metrics::{IncrCounterRequest, Label};
use spire_plugin_sdk::wire::server::bundlepublisher::v1 as publisher;
use spire_plugin_sdk::wire::server::credentialcomposer::v1 as composer;
use spire_plugin_sdk::wire::server::nodeattestor::v1 as attestor;
use spire_plugin_sdk::wire::server::notifier::v1 as notifier;
use spire_plugin_sdk::wire::types;
use spire_plugin_sdk::{Code, Request, Response, Status, Streaming, async_trait};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::base::Base;

/// Takes the name that an agent gives, if the agent answers its challenge.
pub(crate) struct NodeAttestor(pub(crate) Arc<Base>);

impl NodeAttestor {
    async fn judge(
        base: &Base,
        mut requests: Streaming<attestor::AttestRequest>,
        answers: &mpsc::Sender<Result<attestor::AttestResponse, Status>>,
    ) -> Result<attestor::AgentAttributes, Status> {
        use attestor::attest_request::Request as Told;
        let trust_domain = base.config()?.trust_domain;
        base.obey().await;
        let first = requests.message().await?.and_then(|request| request.request);
        let name = match first {
            Some(Told::Payload(payload)) => {
                String::from_utf8_lossy(&payload).strip_prefix("hello ").map(str::to_owned)
            }
            _ => None,
        };
        let name = name.ok_or_else(|| Status::invalid_argument("no greeting"))?;
        let challenge = attestor::attest_response::Response::Challenge("nonce".into());
        let gone = |_| Status::cancelled("nobody listens");
        answers.send(Ok(attestor::AttestResponse { response: Some(challenge) })).await.map_err(gone)?;
        let answer = match requests.message().await?.and_then(|request| request.request) {
            Some(Told::ChallengeResponse(answer)) => String::from_utf8_lossy(&answer).into_owned(),
            _ => String::new(),
        };
        if answer != format!("nonce {name}") {
            return Err(Status::permission_denied(format!("wrong answer {answer:?}")));
        }
        let spiffe_id = format!("spiffe://{trust_domain}/spire/agent/echo/{name}");
        let asked = GetAgentInfoRequest { agent_id: spiffe_id.clone() };
        let known = match base.host.agent_store()?.get_agent_info(asked).await {
            Ok(_) => "known",
            Err(status) if status.code() == Code::NotFound => "new",
            Err(status) => return Err(status),
        };
        base.note(&format!("agent-{name}"), known);
        let counted = IncrCounterRequest {
            key: vec!["echo".to_owned(), "attested".to_owned()],
            val: 1.0,
            labels: vec![Label { name: "name".to_owned(), value: name.clone() }],
        };
        base.host.metrics()?.incr_counter(counted).await?;
        let selector_values = vec![format!("name:{name}")];
        Ok(attestor::AgentAttributes { spiffe_id, selector_values, can_reattest: true })
    }
}

#[async_trait]
impl attestor::node_attestor_server::NodeAttestor for NodeAttestor {
    type AttestStream = ReceiverStream<Result<attestor::AttestResponse, Status>>;

    async fn attest(
        &self,
        request: Request<Streaming<attestor::AttestRequest>>,
    ) -> Result<Response<Self::AttestStream>, Status> {
        let (answers, stream) = mpsc::channel(1);
        let base = self.0.clone();
        let from = request.metadata().get("x-forwarded-client-ip").map(|from| from.as_bytes().to_vec());
        base.note("from", from.unwrap_or_default());
        tokio::spawn(async move {
            let judged = Self::judge(&base, request.into_inner(), &answers).await;
            let answer = judged.map(|attributes| attestor::AttestResponse {
                response: Some(attestor::attest_response::Response::AgentAttributes(attributes)),
            });
            // The host may have given up.
            let _ = answers.send(answer).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Adds its value to what is signed for workloads, and says what it saw of the others.
pub(crate) struct CredentialComposer(pub(crate) Arc<Base>);

#[async_trait]
impl composer::credential_composer_server::CredentialComposer for CredentialComposer {
    async fn compose_server_x509ca(
        &self,
        request: Request<composer::ComposeServerX509caRequest>,
    ) -> Result<Response<composer::ComposeServerX509caResponse>, Status> {
        let subject = request.into_inner().attributes.and_then(|a| a.subject).unwrap_or_default();
        self.0.note("ca", subject.organization.join(","));
        Ok(Response::new(Default::default()))
    }

    async fn compose_server_x509svid(
        &self,
        _: Request<composer::ComposeServerX509svidRequest>,
    ) -> Result<Response<composer::ComposeServerX509svidResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn compose_agent_x509svid(
        &self,
        _: Request<composer::ComposeAgentX509svidRequest>,
    ) -> Result<Response<composer::ComposeAgentX509svidResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn compose_workload_x509svid(
        &self,
        request: Request<composer::ComposeWorkloadX509svidRequest>,
    ) -> Result<Response<composer::ComposeWorkloadX509svidResponse>, Status> {
        let settings = self.0.config()?;
        if settings.value == "fail" {
            return Err(Status::resource_exhausted("no more of these"));
        }
        let mut attributes = request.into_inner().attributes.unwrap_or_default();
        attributes.subject.get_or_insert_default().organizational_unit.push(settings.value);
        attributes.dns_sans.push("composed.test".to_owned());
        Ok(Response::new(composer::ComposeWorkloadX509svidResponse { attributes: Some(attributes) }))
    }

    async fn compose_workload_jwtsvid(
        &self,
        request: Request<composer::ComposeWorkloadJwtsvidRequest>,
    ) -> Result<Response<composer::ComposeWorkloadJwtsvidResponse>, Status> {
        let value = self.0.config()?.value;
        let mut attributes = request.into_inner().attributes.unwrap_or_default();
        let claim = prost_types::Value { kind: Some(Kind::StringValue(value)) };
        attributes.claims.get_or_insert_default().fields.insert("composed".to_owned(), claim);
        Ok(Response::new(composer::ComposeWorkloadJwtsvidResponse { attributes: Some(attributes) }))
    }
}

/// Writes down each bundle, with the identity that its server had then.
pub(crate) struct Notifier(pub(crate) Arc<Base>);

impl Notifier {
    async fn write(&self, name: &str, bundle: Option<types::Bundle>) -> Result<(), Status> {
        let bundle = bundle.unwrap_or_default();
        let own = self.0.host.identity_provider()?.fetch_x509_identity(FetchX509IdentityRequest {}).await?;
        let own = own.into_inner();
        let identity = own.identity.unwrap_or_default();
        let broken = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
        let leaf = identity.cert_chain.first().cloned().unwrap_or_default();
        let certificate = Certificate::from_der(leaf).map_err(|error| broken(&error))?;
        LocalKey::from_pkcs8(&identity.private_key).map_err(|error| broken(&error))?;
        let text = format!(
            "{} {} {} as {} of {}",
            bundle.trust_domain,
            bundle.x509_authorities.len(),
            bundle.jwt_authorities.len(),
            certificate.uris().first().map_or("", String::as_str),
            own.bundle.unwrap_or_default().trust_domain,
        );
        self.0.note(name, text);
        Ok(())
    }
}

#[async_trait]
impl notifier::notifier_server::Notifier for Notifier {
    async fn notify(
        &self,
        request: Request<notifier::NotifyRequest>,
    ) -> Result<Response<notifier::NotifyResponse>, Status> {
        let notifier::notify_request::Event::BundleUpdated(event) =
            request.into_inner().event.ok_or_else(|| Status::invalid_argument("no event"))?;
        self.write("updated", event.bundle).await?;
        Ok(Response::new(Default::default()))
    }

    async fn notify_and_advise(
        &self,
        request: Request<notifier::NotifyAndAdviseRequest>,
    ) -> Result<Response<notifier::NotifyAndAdviseResponse>, Status> {
        let notifier::notify_and_advise_request::Event::BundleLoaded(event) =
            request.into_inner().event.ok_or_else(|| Status::invalid_argument("no event"))?;
        self.write("loaded", event.bundle).await?;
        Ok(Response::new(Default::default()))
    }
}

/// Writes the bundle.
pub(crate) struct BundlePublisher(pub(crate) Arc<Base>);

#[async_trait]
impl publisher::bundle_publisher_server::BundlePublisher for BundlePublisher {
    async fn publish_bundle(
        &self,
        request: Request<publisher::PublishBundleRequest>,
    ) -> Result<Response<publisher::PublishBundleResponse>, Status> {
        let bundle = request.into_inner().bundle.unwrap_or_default();
        self.0.note("published", format!("{} {}", bundle.trust_domain, bundle.x509_authorities.len()));
        Ok(Response::new(Default::default()))
    }
}
