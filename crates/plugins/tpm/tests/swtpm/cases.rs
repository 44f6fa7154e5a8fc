//! Who attests, and who does not.

use serde_json::Value;
use spire_ports::plugins::{AttestationStream, Result};

use crate::station::{Model, Node, Provision, factory, run, server, setting};
use crate::test_ca::{Ca, Wanted};
use crate::wire::{Honest, Meddler, attest};
use crate::{Case, Outcome};

pub(crate) const CASES: &[Case] = &[
    ("an_rsa_devid_attests_again_and_again", rsa),
    ("an_ecc_devid_with_passwords_attests", ecc),
    ("wrong_passwords_are_told", wrong_passwords),
    ("a_tpm_of_another_maker_is_refused", other_maker),
    ("a_devid_of_another_tpm_does_not_load", devid_of_another_tpm),
    ("a_devid_of_another_tpm_is_refused", devid_beside_another_tpm),
    ("an_attestation_key_of_another_session_is_refused", swapped_attestation_key),
    ("an_endorsement_key_of_another_tpm_is_refused", borrowed_endorsement_key),
    ("a_challenge_of_another_session_is_not_solved", replayed_challenge),
    ("responses_cannot_be_replayed", replayed_response),
    ("an_expired_chain_is_refused", expired),
    ("a_devid_that_may_leave_its_tpm_is_refused", duplicable),
    ("a_tpm_without_certificate_is_told", without_certificate),
    ("what_follows_the_certificate_is_cut_off", padded_certificate),
    ("an_attestation_that_breaks_off_leaves_nothing_loaded", broken_off),
];

fn rsa() -> Outcome {
    run(async {
        let ca = Ca::root("DevID CA");
        let middle = ca.intermediate(Wanted::authority("middle"));
        let node = Node::with_chain(Provision::PLAIN, |key| {
            vec![middle.issue(Wanted::leaf("device-1"), key), middle.certificate.clone()]
        })?;
        let server = server(&ca, &factory().maker).await?;
        let agent = node.agent(&[]).await?;
        for _ in 0..2 {
            let attested = attest(&*server, agent.clone(), &mut Honest).await;
            attested.agent?;
            let attestation = attested.server?;
            let values: Vec<String> = attestation.selectors.iter().map(ToString::to_string).collect();
            assert_eq!(values.len(), 4, "{values:?}");
            assert!(values.contains(&"tpm_devid:subject:cn:device-1".to_owned()), "{values:?}");
            assert!(values.contains(&"tpm_devid:issuer:cn:middle".to_owned()), "{values:?}");
            assert!(
                attestation.agent_id.to_string().starts_with("spiffe://example.org/spire/agent/tpm_devid/")
            );
            node.check_unloaded()?;
        }
        Ok(())
    })
}

const LOCKED: Provision<'static> = Provision {
    model: Model::Second,
    rsa: false,
    owner: "owner secret",
    endorsement: "endorsement secret",
    password: "key secret",
    ..Provision::PLAIN
};

fn ecc() -> Outcome {
    run(async {
        let ca = Ca::root("DevID CA");
        let node = Node::new(LOCKED, &ca)?;
        // Keys as the reference's tools write them, without their size.
        for (path, name) in [(&node.key.public, "raw.pub"), (&node.key.private, "raw.priv")] {
            std::fs::write(node.path(name), &std::fs::read(path)?[2..])?;
        }
        let raw = [
            setting("devid_pub_path", &node.path("raw.pub")),
            setting("devid_priv_path", &node.path("raw.priv")),
        ];
        let server = server(&ca, &factory().maker).await?;
        for more in [&[][..], &raw] {
            let attested = attest(&*server, node.agent(more).await?, &mut Honest).await;
            attested.agent?;
            attested.server?;
        }
        node.check_unloaded()
    })
}

fn wrong_passwords() -> Outcome {
    run(async {
        let ca = Ca::root("DevID CA");
        let node = Node::new(LOCKED, &ca)?;
        let server = server(&ca, &factory().maker).await?;
        let table = [
            (
                "owner_hierarchy_password",
                "unable to start a new TPM session: cannot load DevID key on TPM: tpm2.CreatePrimaryEx failed: session \
                 1, error code 0x22 : authorization failure without DA implications",
            ),
            (
                "endorsement_hierarchy_password",
                "unable to start a new TPM session: cannot create endorsement key: session 1, error code 0x22 : \
                 authorization failure without DA implications",
            ),
            (
                "devid_password",
                "unable to certify DevID key: tpm2.Certify failed: session 1, error code 0xe : the authorization HMAC \
                 check failed and DA counter incremented",
            ),
        ];
        for (key, message) in table {
            let agent = node.agent(&[format!("{key} = \"wrong\"")]).await?;
            let attested = attest(&*server, agent, &mut Honest).await;
            assert_eq!(attested.failure(), message);
            node.check_unloaded()?;
        }
        Ok(())
    })
}

fn other_maker() -> Outcome {
    run(async {
        let ca = Ca::root("DevID CA");
        let node = Node::new(Provision::PLAIN, &ca)?;
        let server = server(&ca, &factory().other_maker).await?;
        let attested = attest(&*server, node.agent(&[]).await?, &mut Honest).await;
        let refusal = attested.refusal();
        let expected = "cannot verify EK signature: endorsement certificate verification failed: x509: certificate signed \
                        by unknown authority";
        assert!(refusal.starts_with(expected), "{refusal}");
        node.check_unloaded()
    })
}

const SECOND: Provision<'static> = Provision { model: Model::Second, ..Provision::PLAIN };

fn devid_of_another_tpm() -> Outcome {
    run(async {
        let ca = Ca::root("DevID CA");
        let (node, thief) = (Node::new(Provision::PLAIN, &ca)?, Node::new(SECOND, &ca)?);
        let server = server(&ca, &factory().maker).await?;
        let agent = node.agent(&[setting("tpm_device_path", &thief.tpm.socket())]).await?;
        let attested = attest(&*server, agent, &mut Honest).await;
        assert_eq!(
            attested.failure(),
            "unable to start a new TPM session: cannot load DevID key on TPM: tpm2.Load failed: parameter 1, error code \
             0x1f : integrity check failed"
        );
        thief.check_unloaded()
    })
}

/// Puts members of an earlier payload into this one.
struct Swap {
    from: Value,
    members: &'static [&'static str],
}

impl Meddler for Swap {
    fn payload(&mut self, payload: &mut Value) {
        for member in self.members {
            payload[member] = self.from[member].clone();
        }
    }
}

/// Keeps what passes.
#[derive(Default)]
struct Recorder {
    payload: Value,
    challenge: Value,
    response: Value,
}

impl Meddler for Recorder {
    fn payload(&mut self, payload: &mut Value) {
        self.payload = payload.clone();
    }
    fn challenge(&mut self, challenge: &mut Value) {
        self.challenge = challenge.clone();
    }
    fn response(&mut self, response: &mut Value) {
        self.response = response.clone();
    }
}

fn devid_beside_another_tpm() -> Outcome {
    run(async {
        let ca = Ca::root("DevID CA");
        let (node, thief) = (Node::new(Provision::PLAIN, &ca)?, Node::new(SECOND, &ca)?);
        let server = server(&ca, &factory().maker).await?;
        let mut seen = Recorder::default();
        attest(&*server, node.agent(&[]).await?, &mut seen).await.server?;
        // The name certified by the thief's TPM is that of its own DevID.
        let members = &["DevIDCert", "DevIDPub"][..];
        let mut swap = Swap { from: seen.payload.clone(), members };
        let attested = attest(&*server, thief.agent(&[]).await?, &mut swap).await;
        let same_tpm = "cannot verify that DevID is in the same TPM than AK: ";
        assert_eq!(attested.refusal(), format!("{same_tpm}certify failed"));
        // What the other TPM certified was signed by its attestation key.
        let members = &["DevIDCert", "DevIDPub", "CertifiedDevID", "CertificationSignature"][..];
        let mut swap = Swap { from: seen.payload.clone(), members };
        let attested = attest(&*server, thief.agent(&[]).await?, &mut swap).await;
        assert_eq!(attested.refusal(), format!("{same_tpm}crypto/rsa: verification error"));
        // A certificate alone is of no use, since another key was certified.
        let mut swap = Swap { from: seen.payload, members: &["DevIDCert"] };
        let attested = attest(&*server, thief.agent(&[]).await?, &mut swap).await;
        assert_eq!(
            attested.refusal(),
            format!("{same_tpm}DevID key is not the key of the DevID certificate")
        );
        Ok(())
    })
}

fn swapped_attestation_key() -> Outcome {
    run(async {
        let ca = Ca::root("DevID CA");
        let node = Node::new(Provision::PLAIN, &ca)?;
        let server = server(&ca, &factory().maker).await?;
        let agent = node.agent(&[]).await?;
        let mut seen = Recorder::default();
        attest(&*server, agent.clone(), &mut seen).await.server?;
        let mut swap = Swap { from: seen.payload.clone(), members: &["AKPub"] };
        let attested = attest(&*server, agent.clone(), &mut swap).await;
        assert_eq!(
            attested.refusal(),
            "cannot verify that DevID is in the same TPM than AK: crypto/rsa: verification error"
        );
        // With all that the key said it is right in itself, but the TPM has another one now.
        let members = &["AKPub", "CertifiedDevID", "CertificationSignature"][..];
        let mut swap = Swap { from: seen.payload, members };
        let attested = attest(&*server, agent, &mut swap).await;
        assert_eq!(
            attested.failure(),
            "unable to solve proof of residency challenge: failed to activate credential: parameter 1, error code 0x1f : \
             integrity check failed"
        );
        assert!(attested.server.is_err());
        node.check_unloaded()
    })
}

fn borrowed_endorsement_key() -> Outcome {
    run(async {
        let ca = Ca::root("DevID CA");
        let (node, thief) = (Node::new(Provision::PLAIN, &ca)?, Node::new(SECOND, &ca)?);
        let server = server(&ca, &factory().maker).await?;
        let mut seen = Recorder::default();
        attest(&*server, node.agent(&[]).await?, &mut seen).await.server?;
        let mut swap = Swap { from: seen.payload.clone(), members: &["EKCert"] };
        let attested = attest(&*server, thief.agent(&[]).await?, &mut swap).await;
        assert_eq!(
            attested.refusal(),
            "public key in EK certificate differs from public key created via EK template: modulus mismatch"
        );
        let mut swap = Swap { from: seen.payload, members: &["EKCert", "EKPub"] };
        let attested = attest(&*server, thief.agent(&[]).await?, &mut swap).await;
        assert!(attested.failure().starts_with("unable to solve proof of residency challenge"));
        assert!(attested.server.is_err());
        thief.check_unloaded()
    })
}

fn replayed_challenge() -> Outcome {
    /// Asks what was asked before.
    struct Replay(Value);
    impl Meddler for Replay {
        fn challenge(&mut self, challenge: &mut Value) {
            *challenge = self.0.take();
        }
    }

    run(async {
        let ca = Ca::root("DevID CA");
        let node = Node::new(Provision::PLAIN, &ca)?;
        let server = server(&ca, &factory().maker).await?;
        let mut seen = Recorder::default();
        attest(&*server, node.agent(&[]).await?, &mut seen).await.server?;
        let attested = attest(&*server, node.agent(&[]).await?, &mut Replay(seen.challenge)).await;
        assert_eq!(
            attested.failure(),
            "unable to solve proof of residency challenge: failed to activate credential: parameter 1, error code 0x1f : \
             integrity check failed"
        );
        node.check_unloaded()
    })
}

fn replayed_response() -> Outcome {
    /// Answers as was answered before, with these members.
    struct Replay(Value, &'static [&'static str]);
    impl Meddler for Replay {
        fn response(&mut self, response: &mut Value) {
            for member in self.1 {
                response[member] = self.0[member].clone();
            }
        }
    }

    run(async {
        let ca = Ca::root("DevID CA");
        let node = Node::new(Provision::PLAIN, &ca)?;
        let server = server(&ca, &factory().maker).await?;
        let mut seen = Recorder::default();
        attest(&*server, node.agent(&[]).await?, &mut seen).await.server?;
        let table = [
            (
                &["DevID", "CredActivation"][..],
                "devID challenge verification failed: crypto/rsa: verification error",
            ),
            (&["DevID"], "devID challenge verification failed: crypto/rsa: verification error"),
            (&["CredActivation"], "credential activation failed: nonces are different"),
        ];
        for (members, refusal) in table {
            let mut replay = Replay(seen.response.clone(), members);
            let attested = attest(&*server, node.agent(&[]).await?, &mut replay).await;
            assert_eq!(attested.refusal(), refusal);
        }
        Ok(())
    })
}

fn expired() -> Outcome {
    run(async {
        let ca = Ca::root("DevID CA");
        let server = server(&ca, &factory().maker).await?;
        let expected = "unable to verify DevID signature: verification failed: x509: certificate has expired or is not yet valid";
        for (leaf, middle) in [
            (Wanted::leaf("device-1").expired(), Wanted::authority("middle")),
            (Wanted::leaf("device-1"), Wanted::authority("middle").expired()),
        ] {
            let middle = ca.intermediate(middle);
            let issue = |key: &_| vec![middle.issue(leaf, key), middle.certificate.clone()];
            let node = Node::with_chain(Provision::PLAIN, issue)?;
            let attested = attest(&*server, node.agent(&[]).await?, &mut Honest).await;
            let refusal = attested.refusal();
            // With an expired intermediate, that is a hint to why there is no authority.
            assert!(
                refusal.contains("certificate has expired") && refusal.starts_with(&expected[..60]),
                "{refusal}"
            );
        }
        Ok(())
    })
}

fn duplicable() -> Outcome {
    run(async {
        let ca = Ca::root("DevID CA");
        let attributes = "sign|sensitivedataorigin|userwithauth";
        let node = Node::new(Provision { attributes, ..Provision::PLAIN }, &ca)?;
        let server = server(&ca, &factory().maker).await?;
        let attested = attest(&*server, node.agent(&[]).await?, &mut Honest).await;
        assert_eq!(
            attested.refusal(),
            "cannot verify that DevID is in the same TPM than AK: DevID key is not bound to its TPM: attributes 0x40060"
        );
        Ok(())
    })
}

fn without_certificate() -> Outcome {
    run(async {
        let ca = Ca::root("DevID CA");
        let node = Node::new(Provision { model: Model::Bare, ..Provision::PLAIN }, &ca)?;
        let server = server(&ca, &factory().maker).await?;
        let attested = attest(&*server, node.agent(&[]).await?, &mut Honest).await;
        assert_eq!(
            attested.failure(),
            "unable to get endorsement certificate: failed to read NV index 01c00002: decoding NV_ReadPublic response: \
             handle 1, error code 0xb : the handle is not correct for the use"
        );
        node.check_unloaded()
    })
}

/// Some TPMs keep the certificate in an index that is larger, here one that takes several reads.
fn padded_certificate() -> Outcome {
    const INDEX: &str = "0x1c00002";
    run(async {
        let ca = Ca::root("DevID CA");
        let node = Node::new(Provision::PLAIN, &ca)?;
        node.tpm.tool("nvread", &[INDEX, "-o", "ek.der"])?;
        let mut padded = std::fs::read(node.path("ek.der"))?;
        padded.resize(1900, 0xff);
        std::fs::write(node.path("padded"), &padded)?;
        node.tpm.tool("nvundefine", &["-C", "p", INDEX])?;
        let attributes = "ownerwrite|ownerread|authread|authwrite";
        node.tpm.tool("nvdefine", &[INDEX, "-C", "o", "-s", "1900", "-a", attributes])?;
        node.tpm.tool("nvwrite", &[INDEX, "-C", "o", "-i", "padded"])?;
        let server = server(&ca, &factory().maker).await?;
        attest(&*server, node.agent(&[]).await?, &mut Honest).await.server?;
        Ok(())
    })
}

fn broken_off() -> Outcome {
    /// A server that goes away when it has the payload, or does not answer.
    struct Gone {
        fails: bool,
        seen: Option<tokio::sync::oneshot::Sender<()>>,
    }
    #[async_trait::async_trait]
    impl AttestationStream for Gone {
        async fn send_payload(&mut self, _: bytes::Bytes) -> Result<Option<bytes::Bytes>> {
            if let Some(seen) = self.seen.take() {
                let _ = seen.send(());
            }
            if self.fails { Ok(None) } else { std::future::pending().await }
        }
        async fn respond(&mut self, _: bytes::Bytes) -> Result<Option<bytes::Bytes>> {
            std::future::pending().await
        }
    }

    run(async {
        let ca = Ca::root("DevID CA");
        let node = Node::new(Provision::PLAIN, &ca)?;
        let agent = node.agent(&[]).await?;
        agent.attest(&mut Gone { fails: true, seen: None }).await?;
        node.check_unloaded()?;
        // Here nobody waits for the TPM's thread any more.
        let (seen, payload) = tokio::sync::oneshot::channel();
        let attesting =
            tokio::spawn(async move { agent.attest(&mut Gone { fails: false, seen: Some(seen) }).await });
        payload.await?;
        attesting.abort();
        let unloaded = || node.check_unloaded().ok();
        spire_testkit::wait::until("TPM with nothing loaded", std::time::Duration::from_secs(40), unloaded)?;
        Ok(())
    })
}
