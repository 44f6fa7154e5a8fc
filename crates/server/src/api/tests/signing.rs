//! The SVID service.

use spire_core::pki::Certificate;
use spire_wire::api::server::svid::v1::*;

use super::*;

#[tokio::test]
async fn an_svid_has_what_its_entry_says_and_only_the_key_of_the_request() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    world
        .entry("mine", AGENT, "/mine", |e| {
            e.dns_names = Box::new(["a.test".into(), "b.test".into()]);
            e.x509_svid_ttl = 120;
        })
        .await;
    world.entry("theirs", "/spire/agent/x509pop/b", "/theirs", |_| {}).await;
    let greedy = csr(&["spiffe://example.org/admin"], &["evil.test"]);
    let ask = |entry_id: &str, csr: Bytes| NewX509svidParams { entry_id: entry_id.into(), csr };
    let params = vec![
        ask("mine", greedy.clone()),
        ask("theirs", greedy.clone()),
        ask("", greedy.clone()),
        ask("mine", Bytes::new()),
        ask("mine", Bytes::from_static(b"nonsense")),
    ];
    let request = BatchNewX509svidRequest { params };
    let results = world.svids(agent.clone()).batch_new_x509svid(request).await.unwrap().into_inner().results;
    let told: Vec<(i32, String)> =
        results.iter().map(|r| r.status.clone().unwrap()).map(|s| (s.code, s.message)).collect();
    assert_eq!(
        told[..4],
        [
            (0, "OK".into()),
            (5, "entry not found or not authorized".into()),
            (3, "missing entry ID".into()),
            (3, "missing CSR".into()),
        ]
    );
    assert!(told[4].0 == 3 && told[4].1.starts_with("malformed CSR: "), "{:?}", told[4]);
    let svid = results[0].svid.clone().unwrap();
    let leaf = Certificate::from_der(svid.cert_chain[0].clone()).unwrap();
    assert_eq!(leaf.uris(), ["spiffe://example.org/mine"]);
    assert_eq!(leaf.dns_names(), ["a.test", "b.test"]);
    assert_eq!((leaf.not_after().unix(), svid.expires_at), (START + 120, START + 120));
    let none = world.svids(agent).batch_new_x509svid(BatchNewX509svidRequest::default()).await;
    assert_eq!(refused(none), (Code::InvalidArgument, "missing parameters".into()));
}

#[tokio::test]
async fn a_batch_beyond_the_limit_of_an_address_is_refused() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    let params = vec![NewX509svidParams::default(); 501];
    let answer = world.svids(agent).batch_new_x509svid(BatchNewX509svidRequest { params }).await;
    let text =
        "rejecting request due to certificate signing rate limiting: rate (501) exceeds burst size (500)";
    assert_eq!(refused(answer), (Code::ResourceExhausted, text.into()));
}

#[tokio::test]
async fn minting_takes_identity_and_names_from_the_request() {
    let world = World::new().await;
    let mut client = world.svids(local());
    let good = csr(&["spiffe://example.org/minted"], &["a.test"]);
    let svid =
        client.mint_x509svid(MintX509svidRequest { csr: good, ttl: 60 }).await.unwrap().into_inner().svid;
    let leaf = Certificate::from_der(svid.unwrap().cert_chain[0].clone()).unwrap();
    assert_eq!(
        (leaf.uris(), leaf.dns_names()),
        (&["spiffe://example.org/minted".into()][..], &["a.test".into()][..])
    );
    let two = ["spiffe://example.org/a", "spiffe://example.org/b"];
    let overlap = "CSR DNS name contains a wildcard that covers another non-wildcard name: name \"a.b\" overlaps \
                   with an existing wildcard name in the list: wildcard overlap";
    for (csr, text) in [
        (Bytes::new(), "missing CSR"),
        (csr(&[], &[]), "CSR URI SAN is required"),
        (csr(&two, &[]), "only one URI SAN is expected"),
        (
            csr(&["spiffe://other.org/x"], &[]),
            "CSR URI SAN is invalid: \"spiffe://other.org/x\" is not a member of trust domain \"example.org\"",
        ),
        (csr(&["spiffe://example.org/x"], &["a.b", "*.b"]), overlap),
        (csr(&["spiffe://example.org/x"], &["a*"]), "CSR DNS name is invalid: wildcard must be first label"),
    ] {
        let answer = client.mint_x509svid(MintX509svidRequest { csr, ttl: 0 }).await;
        assert_eq!(refused(answer), (Code::InvalidArgument, text.into()));
    }
}

#[tokio::test]
async fn tokens_are_for_audiences_and_visible_entries() {
    let world = World::new().await;
    let agent = world.attested(AGENT).await;
    world.entry("mine", AGENT, "/mine", |e| e.jwt_svid_ttl = 30).await;
    let mut client = world.svids(agent);
    let ask = |entry_id: &str, audience: &[&str]| NewJwtsvidRequest {
        entry_id: entry_id.into(),
        audience: audience.iter().map(|a| (*a).to_owned()).collect(),
    };
    let svid = client.new_jwtsvid(ask("mine", &["x"])).await.unwrap().into_inner().svid.unwrap();
    assert_eq!((svid.id, svid.issued_at, svid.expires_at), (wire_id("/mine"), START, START + 30));
    assert_eq!(svid.token.split('.').count(), 3);
    let nobody = client.new_jwtsvid(ask("mine", &[])).await;
    assert_eq!(refused(nobody), (Code::InvalidArgument, "at least one audience is required".into()));
    let unknown = client.new_jwtsvid(ask("other", &["x"])).await;
    assert_eq!(refused(unknown), (Code::NotFound, "entry not found or not authorized".into()));
    let mint = MintJwtsvidRequest { id: wire_id("/spire/server"), audience: vec!["x".into()], ttl: 0 };
    let (code, text) = refused(world.svids(local()).mint_jwtsvid(mint).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(text.starts_with("invalid SPIFFE ID: "), "{text}");
    let wit = world.svids(local()).mint_witsvid(MintWitsvidRequest::default()).await;
    assert_eq!(refused(wit), (Code::Unimplemented, "WIT functionality is disabled".into()));
}

#[tokio::test]
async fn a_downstream_server_gets_a_ca_and_the_roots() {
    let world = World::new().await;
    world.entry("down", AGENT, "/down", |e| e.downstream = true).await;
    let request = NewDownstreamX509caRequest { csr: csr(&[], &[]), preferred_ttl: 0 };
    let answer = world.svids(tls("/down", "1")).new_downstream_x509ca(request).await.unwrap().into_inner();
    let ca = Certificate::from_der(answer.ca_cert_chain[0].clone()).unwrap();
    assert!(ca.is_ca());
    assert_eq!(answer.x509_authorities.len(), 1);
}
