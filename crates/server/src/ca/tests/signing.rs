//! What is signed, with and without credential composers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use spire_core::pki::chain::verify_svid;
use spire_core::pki::jwk::Jwk;
use spire_core::pki::{Certificate, DistinguishedName, KeyType, LocalKey, NameAttribute, PublicKey, jwt};
use spire_core::spiffe::SpiffeId;
use spire_core::time::Timestamp;
use spire_ports::plugins::{
    self, CredentialComposer, JwtSvidAttributes, X509CaAttributes, X509SvidAttributes,
};

use super::world::{START, World, trust_domain, workload};
use crate::ca::{Authorities, SignedX509, WorkloadJwtParams, WorkloadWitParams, WorkloadX509Params};

const NOW: Timestamp = Timestamp::from_unix(START);

fn key() -> LocalKey {
    LocalKey::generate(KeyType::EcP256).unwrap()
}

fn params<'a>(public_key: &'a PublicKey, spiffe_id: &'a SpiffeId) -> WorkloadX509Params<'a> {
    WorkloadX509Params { public_key, spiffe_id, dns_names: &[], ttl: Duration::ZERO, subject: None }
}

fn leaf(signed: &SignedX509) -> Certificate {
    Certificate::from_der(signed.chain[0].clone()).unwrap()
}

/// Verifies with the stored bundle.
fn verified(world: &World, signed: &SignedX509) -> SpiffeId {
    let chain: Vec<_> = signed.chain.iter().map(|c| Certificate::from_der(c.clone()).unwrap()).collect();
    let roots: Vec<_> = world
        .stored_bundle()
        .x509_authorities
        .iter()
        .map(|a| Certificate::from_der(a.der.clone()).unwrap())
        .collect();
    verify_svid(&chain, |_| Some(&roots), NOW).unwrap().id().clone()
}

#[tokio::test]
async fn a_workloads_svid() {
    let world = World::new();
    let authorities = world.start().await.unwrap();
    let (key, id) = (key(), workload());
    let signed = authorities.ca().sign_workload_x509(params(key.public_key(), &id)).await.unwrap();
    assert_eq!(verified(&world, &signed), id);
    assert_eq!(signed.chain.len(), 1, "self-signed: the leaf alone");
    let leaf = leaf(&signed);
    assert_eq!(leaf.subject().to_string(), "O=SPIRE,C=US");
    assert_eq!(leaf.public_key().unwrap(), key.public_key());
    assert_eq!(leaf.serial(), signed.serial.to_string());
    assert_eq!((leaf.not_before().unix(), leaf.not_after().unix()), (START - 10, START + 60));
    assert_eq!((leaf.not_before(), leaf.not_after()), (signed.not_before, signed.not_after));
}

#[tokio::test]
async fn dns_names_subjects_and_ttls() {
    let world = World::new();
    let authorities = world.start().await.unwrap();
    let (key, id) = (key(), workload());
    let dns = ["a.test".to_owned(), "b.test".to_owned()];
    let subject = DistinguishedName { organization: vec!["Mine".into()], ..DistinguishedName::default() };
    let signed = authorities
        .ca()
        .sign_workload_x509(WorkloadX509Params {
            dns_names: &dns,
            ttl: Duration::from_secs(9000),
            subject: Some(&subject),
            ..params(key.public_key(), &id)
        })
        .await
        .unwrap();
    let leaf = leaf(&signed);
    assert_eq!(leaf.subject().to_string(), "CN=a.test,O=Mine");
    assert_eq!(leaf.dns_names(), dns);
    assert_eq!(leaf.not_after().unix(), START + 600, "capped by its issuer");
}

#[tokio::test]
async fn agents_servers_and_downstream_cas() {
    let world = World::new();
    let mut config = World::config();
    config.agent_ttl = Some(Duration::from_secs(100));
    let authorities = Authorities::start(config, world.ports()).await.unwrap();
    let key = key();
    let agent = SpiffeId::parse("spiffe://example.org/spire/agent/x/y").unwrap();
    let signed = authorities.ca().sign_agent_x509(&agent, key.public_key()).await.unwrap();
    assert_eq!(verified(&world, &signed), agent);
    assert_eq!(signed.not_after.unix(), START + 100);
    let signed = authorities.ca().sign_server_x509(key.public_key()).await.unwrap();
    assert_eq!(verified(&world, &signed).as_str(), "spiffe://example.org/spire/server");

    let signed = authorities.ca().sign_downstream_ca(key.public_key(), Duration::from_secs(5)).await.unwrap();
    let ca = leaf(&signed);
    assert!(ca.is_ca());
    assert_eq!(ca.uris(), ["spiffe://example.org"]);
    assert_eq!(ca.subject().organizational_unit, ["DOWNSTREAM-1"]);
    assert_eq!(ca.not_after().unix(), START + 5);
}

#[tokio::test]
async fn ids_that_are_not_ours_are_refused() {
    let world = World::new();
    let authorities = world.start().await.unwrap();
    let key = key();
    for (id, text) in [
        (
            "spiffe://other.org/x",
            "invalid X509-SVID ID: \"spiffe://other.org/x\" is not a member of trust domain \"example.org\"",
        ),
        (
            "spiffe://example.org",
            "invalid X509-SVID ID: \"spiffe://example.org\" is not a member of trust domain \"example.org\"; path is empty",
        ),
    ] {
        let id = SpiffeId::parse(id).unwrap();
        let error = authorities.ca().sign_workload_x509(params(key.public_key(), &id)).await.unwrap_err();
        assert_eq!(error.to_string(), text);
    }
}

#[tokio::test]
async fn an_expired_authority_signs_nothing() {
    let world = World::new();
    let authorities = world.start().await.unwrap();
    world.pass(601);
    let (key, id) = (key(), workload());
    let error = authorities.ca().sign_workload_x509(params(key.public_key(), &id)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid workload X509-SVID: invalid X509-SVID: already expired as of 2023-11-14T22:23:20Z"
    );
    let audience = ["a".to_owned()];
    let jwt =
        WorkloadJwtParams { spiffe_id: &id, audience: &audience, ttl: Duration::ZERO, include_jti: false };
    let error = authorities.ca().sign_workload_jwt(jwt).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid JWT-SVID \"exp\" claim: already expired as of 2023-11-14T22:23:20Z"
    );
}

/// Verifies with the stored bundle.
fn verified_jwt(world: &World, token: &str) -> jwt::VerifiedJwt {
    let bundle = world.stored_bundle();
    jwt::verify_svid(token, &["mobile".to_owned()], NOW, |_, kid| {
        let key = bundle.jwt_authority(kid).ok_or(jwt::KeyNotFound::Key)?;
        PublicKey::from_spki(key.public_key.clone()).map_err(|_| jwt::KeyNotFound::Key)
    })
    .unwrap()
}

#[tokio::test]
async fn jwt_svids() {
    for key_type in KeyType::ALL {
        let world = World::new();
        let mut config = World::config();
        config.jwt_issuer = "https://issuer.test".into();
        config.jwt_key_type = key_type;
        let authorities = Authorities::start(config, world.ports()).await.unwrap();
        let id = workload();
        let audience = ["mobile".to_owned(), String::new()];
        let params =
            WorkloadJwtParams { spiffe_id: &id, audience: &audience, ttl: Duration::ZERO, include_jti: true };
        let signed = authorities.ca().sign_workload_jwt(params).await.unwrap();
        assert_eq!((signed.issued_at.unix(), signed.expires_at.unix()), (START, START + 30));
        let jwt = verified_jwt(&world, &signed.token);
        assert_eq!((jwt.id(), jwt.audience()), (&id, &["mobile".to_owned()][..]));
        assert_eq!(jwt.claims()["iss"], "https://issuer.test");
        let again = authorities.ca().sign_workload_jwt(params).await.unwrap();
        assert_ne!(verified_jwt(&world, &again.token).claims()["jti"], jwt.claims()["jti"]);
        let nobody = WorkloadJwtParams { audience: &[String::new()], ..params };
        let error = authorities.ca().sign_workload_jwt(nobody).await.unwrap_err();
        assert_eq!(error.to_string(), "invalid JWT-SVID audience: cannot be empty");
    }
}

#[tokio::test]
async fn wit_svids() {
    let world = World::new();
    let id = workload();
    let mut jwk = Jwk::new(key().public_key().clone());
    jwk.alg = "ES256".into();
    let authorities = world.start().await.unwrap();
    let params = WorkloadWitParams { spiffe_id: &id, key: &jwk, ttl: Duration::ZERO };
    let error = authorities.ca().sign_workload_wit(params).await.unwrap_err();
    assert_eq!(error.to_string(), "WIT functionality is disabled");

    let mut config = World::config();
    config.wit_svids_enabled = true;
    let authorities = Authorities::start(config, world.ports()).await.unwrap();
    let signed = authorities.ca().sign_workload_wit(params).await.unwrap();
    assert_eq!(signed.expires_at.unix(), START + 600, "an hour, capped by the key");
    assert_eq!(signed.token.split('.').count(), 3);
    let unnamed = Jwk { alg: String::new(), ..jwk.clone() };
    let error =
        authorities.ca().sign_workload_wit(WorkloadWitParams { key: &unnamed, ..params }).await.unwrap_err();
    assert_eq!(error.to_string(), "public key must have algorithm set");
}

/// Adds to everything what composers add; can be told to do harm.
struct Meddler {
    subject: Option<&'static str>,
}

#[async_trait]
impl CredentialComposer for Meddler {
    fn name(&self) -> &str {
        "meddler"
    }

    async fn server_x509_ca(&self, mut attributes: X509CaAttributes) -> plugins::Result<X509CaAttributes> {
        attributes.policy_identifiers.push("1.2.3.4".into());
        Ok(attributes)
    }

    async fn workload_x509_svid(
        &self,
        _: &SpiffeId,
        _: &PublicKey,
        mut attributes: X509SvidAttributes,
    ) -> plugins::Result<X509SvidAttributes> {
        let unique = NameAttribute { oid: "2.5.4.45".into(), value: "unique".into() };
        attributes.subject.extra_names.push(unique);
        attributes.dns_names.push("added.test".into());
        if self.subject.is_some() {
            // A second SPIFFE ID by the back door: a SAN of its own.
            let san = b"\x30\x0d\x86\x0bspiffe://x/";
            attributes.extra_extensions.push(("2.5.29.17".into(), san.to_vec(), false));
        }
        Ok(attributes)
    }

    async fn workload_jwt_svid(
        &self,
        _: &SpiffeId,
        mut attributes: JwtSvidAttributes,
    ) -> plugins::Result<JwtSvidAttributes> {
        attributes.claims.insert("extra".into(), "\"yes\"".into());
        // As protobuf brings numbers back.
        let exp = format!("{:?}", attributes.claims["exp"].parse::<f64>().unwrap());
        attributes.claims.insert("exp".into(), exp);
        if let Some(subject) = self.subject {
            attributes.claims.insert("sub".into(), format!("{subject:?}"));
        }
        Ok(attributes)
    }
}

#[tokio::test]
async fn composers_change_what_they_may() {
    let world = World::new();
    let authorities = world.start_composed(Arc::new(Meddler { subject: None })).await;
    let (key, id) = (key(), workload());
    let signed = authorities.ca().sign_workload_x509(params(key.public_key(), &id)).await.unwrap();
    assert_eq!(verified(&world, &signed), id);
    let leaf = leaf(&signed);
    assert_eq!(leaf.dns_names(), ["added.test"]);
    assert!(leaf.subject().names.iter().any(|n| n.oid == "2.5.4.45" && n.value == "unique"));
    let ca = authorities.ca().active_x509().unwrap();
    assert!(ca.certificate().extensions().iter().any(|e| e.oid() == "2.5.29.32"), "policies");
    let audience = ["mobile".to_owned()];
    let jwt =
        WorkloadJwtParams { spiffe_id: &id, audience: &audience, ttl: Duration::ZERO, include_jti: false };
    let signed = authorities.ca().sign_workload_jwt(jwt).await.unwrap();
    let jwt = verified_jwt(&world, &signed.token);
    assert_eq!(jwt.claims()["extra"], "yes");
    assert_eq!(jwt.claims()["exp"].as_i64(), Some(START + 30), "an integer again");
    assert_eq!(signed.expires_at.unix(), START + 30);
}

/// Adds its name to what the composer before it left.
struct Named(&'static str);

#[async_trait]
impl CredentialComposer for Named {
    fn name(&self) -> &str {
        self.0
    }

    async fn workload_x509_svid(
        &self,
        _: &SpiffeId,
        _: &PublicKey,
        mut attributes: X509SvidAttributes,
    ) -> plugins::Result<X509SvidAttributes> {
        let before = attributes.dns_names.pop().unwrap_or_default();
        attributes.dns_names.push(format!("{}.{before}", self.0));
        Ok(attributes)
    }

    async fn workload_jwt_svid(
        &self,
        _: &SpiffeId,
        mut attributes: JwtSvidAttributes,
    ) -> plugins::Result<JwtSvidAttributes> {
        let before = attributes.claims.get("by").and_then(|by| serde_json::from_str::<String>(by).ok());
        let by = format!("{}.{}", self.0, before.unwrap_or_default());
        attributes.claims.insert("by".into(), serde_json::json!(by).to_string());
        Ok(attributes)
    }
}

#[tokio::test]
async fn composers_follow_each_other_in_order() {
    let world = World::new();
    let authorities =
        world.start_with_composers(vec![Arc::new(Named("first")), Arc::new(Named("second"))]).await;
    let (key, id) = (key(), workload());
    let dns_names = ["start".to_owned()];
    let wanted = WorkloadX509Params { dns_names: &dns_names, ..params(key.public_key(), &id) };
    let signed = authorities.ca().sign_workload_x509(wanted).await.unwrap();
    assert_eq!(leaf(&signed).dns_names(), ["second.first.start"]);
    let audience = ["mobile".to_owned()];
    let jwt =
        WorkloadJwtParams { spiffe_id: &id, audience: &audience, ttl: Duration::ZERO, include_jti: false };
    let signed = authorities.ca().sign_workload_jwt(jwt).await.unwrap();
    assert_eq!(verified_jwt(&world, &signed.token).claims()["by"], "second.first.");
}

#[tokio::test]
async fn composers_cannot_change_who_it_is() {
    let world = World::new();
    let authorities =
        world.start_composed(Arc::new(Meddler { subject: Some("spiffe://example.org/admin") })).await;
    let (key, id) = (key(), workload());
    let error = authorities.ca().sign_workload_x509(params(key.public_key(), &id)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid workload X509-SVID: invalid X509-SVID: expected URI SAN \"spiffe://example.org/workload\" \
         but got \"spiffe://x/\""
    );
    let audience = ["mobile".to_owned()];
    let jwt =
        WorkloadJwtParams { spiffe_id: &id, audience: &audience, ttl: Duration::ZERO, include_jti: false };
    let error = authorities.ca().sign_workload_jwt(jwt).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid JWT-SVID \"sub\" claim: expected \"spiffe://example.org/workload\" but got \"spiffe://example.org/admin\""
    );
}

#[tokio::test]
async fn every_key_type_signs_certificates() {
    for key_type in KeyType::ALL {
        let world = World::new();
        let mut config = World::config();
        config.ca_key_type = key_type;
        config.jwt_svids_disabled = true;
        let authorities = Authorities::start(config, world.ports()).await.unwrap();
        let (key, id) = (key(), workload());
        let signed = authorities.ca().sign_workload_x509(params(key.public_key(), &id)).await.unwrap();
        assert_eq!(verified(&world, &signed).trust_domain(), trust_domain());
    }
}
