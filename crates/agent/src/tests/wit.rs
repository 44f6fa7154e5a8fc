//! WIT-SVIDs with the feature flag on.

use spire_core::pki::jwk::Jwk;
use spire_core::pki::jwt::verify_wit;
use spire_core::time::Timestamp;
use spire_wire::workload::{WitBundlesRequest, Witsvid, WitsvidResponse};

use super::*;

const WEB: &str = "spiffe://test.org/web";

async fn serving(server: &FakeServer) -> Running {
    Running::start(server, deps(&["uid:1"]), |options| options.wit_svids_enabled = true).await
}

async fn fetch(
    running: &Running,
    spiffe_id: &str,
) -> Result<(WitsvidResponse, Streaming<WitsvidResponse>), Status> {
    let request = WitsvidRequest { spiffe_id: spiffe_id.to_owned() };
    let mut stream = running.client().fetch_witsvid(request).await?.into_inner();
    let first = stream.message().await?.unwrap();
    Ok((first, stream))
}

fn wit_ids(answer: &WitsvidResponse) -> Vec<&str> {
    answer.svids.iter().map(|s| s.spiffe_id.as_str()).collect()
}

/// The token is valid and bound to the key that came with it.
fn check(server: &FakeServer, svid: &Witsvid) {
    let now = Timestamp::from_unix(time::OffsetDateTime::now_utc().unix_timestamp());
    let key = server.ca.jwt_key.public_key().clone();
    let token = verify_wit(&svid.wit_svid, now, |_, kid| {
        assert_eq!(kid, "kid-1");
        Ok(key)
    })
    .unwrap();
    assert_eq!(token.id().as_str(), svid.spiffe_id);
    let mut held: serde_json::Value = serde_json::from_str(&svid.wit_svid_key).unwrap();
    assert!(held.as_object_mut().unwrap().remove("d").is_some());
    assert_eq!(held["alg"], "ES256");
    let bound = Jwk::from_value(&token.claims()["cnf"]["jwk"]).unwrap();
    assert_eq!(bound, Jwk::from_value(&held).unwrap());
}

#[tokio::test]
async fn a_workload_gets_its_wit_svids_and_every_change() {
    let server = FakeServer::start().await;
    server.change(|state| state.entries = vec![entry("web", "uid:1"), entry("other", "uid:2")]);
    let mut running = serving(&server).await;
    running.until(|event| *event == Event::PushConnected).await;
    let (answer, mut stream) = fetch(&running, "").await.unwrap();
    assert_eq!(wit_ids(&answer), [WEB]);
    check(&server, &answer.svids[0]);
    assert_eq!(fetch(&running, WEB).await.unwrap().0, answer, "one key for an identity");
    assert_eq!(server.count("BatchNewWITSVID"), 1);

    server.change(|state| state.entries.push(entry("api", "uid:1")));
    let more = stream.message().await.unwrap().unwrap();
    assert_eq!(wit_ids(&more), ["spiffe://test.org/api", WEB]);
    assert_eq!(more.svids[1], answer.svids[0]);
    check(&server, &more.svids[0]);
    assert_eq!(wit_ids(&fetch(&running, WEB).await.unwrap().0), [WEB]);

    server.change(|state| state.entries[0].revision_number = 1);
    let renewed = stream.message().await.unwrap().unwrap();
    assert_eq!(renewed.svids[0], more.svids[0]);
    assert_ne!(renewed.svids[1].wit_svid_key, more.svids[1].wit_svid_key);
    check(&server, &renewed.svids[1]);

    server.change(|state| state.entries.clear());
    let status = stream.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no identity issued"));
    for (id, code, text) in [
        ("", Code::PermissionDenied, "no identity issued"),
        ("x", Code::InvalidArgument, "invalid requested SPIFFE ID: scheme is missing or invalid"),
    ] {
        let status = fetch(&running, id).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, text));
    }
    running.stop().await;
}

#[tokio::test]
async fn what_the_server_refuses_or_signs_wrongly_is_left_out() {
    let server = FakeServer::start().await;
    let hinted = |id: &str, hint: &str| {
        let mut entry = entry(id, "uid:1");
        entry.hint = hint.to_owned();
        entry
    };
    server.change(|state| {
        state.entries = vec![hinted("a", "refused"), hinted("b", "other key"), hinted("web", "web")];
    });
    let running = serving(&server).await;
    let (answer, _stream) = fetch(&running, "").await.unwrap();
    assert_eq!((wit_ids(&answer), answer.svids[0].hint.as_str()), (vec![WEB], "web"));
    for id in ["spiffe://test.org/a", "spiffe://test.org/b"] {
        assert_eq!(fetch(&running, id).await.unwrap_err().code(), Code::Unavailable);
    }
    running.stop().await;

    // A server without WIT-SVIDs makes an endpoint without them.
    let disabled = Status::unimplemented("WIT functionality is disabled");
    server.change(|state| state.failures.push(("BatchNewWITSVID", disabled)));
    let running = serving(&server).await;
    let status = fetch(&running, "").await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().ends_with("desc = WIT functionality is disabled"), "{}", status.message());
    running.stop().await;
}

#[tokio::test]
async fn wit_bundles_name_their_use() {
    let server = FakeServer::start().await;
    server.change(|state| state.entries = vec![entry("web", "uid:1")]);
    let running = serving(&server).await;
    let mut stream = running.client().fetch_wit_bundles(WitBundlesRequest {}).await.unwrap().into_inner();
    let bundles = stream.message().await.unwrap().unwrap().bundles;
    assert_eq!(bundles.keys().collect::<Vec<_>>(), ["spiffe://test.org"]);
    let document: serde_json::Value = serde_json::from_str(&bundles["spiffe://test.org"]).unwrap();
    assert_eq!(document["keys"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&document["keys"][0]["kid"], &document["keys"][0]["use"]),
        (&"kid-1".into(), &"wit-svid".into())
    );
    running.stop().await;
}
