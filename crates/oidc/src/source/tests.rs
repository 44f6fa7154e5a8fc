//! Polling with a source that a test writes the answers of, and the source that needs nobody else. The other two are in
//! `testing/e2e`, with servers and agents.

use std::collections::VecDeque;

use parking_lot::Mutex;
use spire_telemetry::{Capture, Level};

use super::*;
use crate::fixture;

const OTHER_KEY: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;

/// The next answer, and `None` for ever after the last.
struct Script(Mutex<VecDeque<Option<Vec<JwtKey>>>>);

#[async_trait]
impl Source for Script {
    async fn keys(&self) -> Option<Vec<JwtKey>> {
        self.0.lock().pop_front().flatten()
    }
}

fn script(answers: impl IntoIterator<Item = Option<Vec<JwtKey>>>) -> Script {
    Script(Mutex::new(answers.into_iter().collect()))
}

#[tokio::test(start_paused = true)]
async fn keys_stay_while_the_source_is_away() {
    let one = vec![fixture::key("one", fixture::EC_KEY)];
    let source = script([None, Some(one.clone()), Some(one.clone()), None, Some(Vec::new())]);
    let (keys, mut known) = (Keys::default(), None);
    poll_once(&source, false, &keys, &mut known).await;
    assert!(keys.load().is_none() && keys.last_successful_poll().is_none());
    poll_once(&source, false, &keys, &mut known).await;
    let first = keys.load().unwrap();
    assert_eq!(first.set.len, 1);
    let polled = keys.last_successful_poll().unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    poll_once(&source, false, &keys, &mut known).await;
    assert!(Arc::ptr_eq(&first, &keys.load().unwrap()), "what did not change is not encoded again");
    assert!(keys.last_successful_poll().unwrap() > polled);
    let polled = keys.last_successful_poll();
    tokio::time::advance(Duration::from_secs(1)).await;
    poll_once(&source, false, &keys, &mut known).await;
    assert!(Arc::ptr_eq(&first, &keys.load().unwrap()));
    assert_eq!(keys.last_successful_poll(), polled, "probes see that it is away");
    poll_once(&source, false, &keys, &mut known).await;
    assert_eq!(keys.load().unwrap().set.len, 0, "an answer without keys is an answer");
}

/// A source that does not answer.
struct Silent;

#[async_trait]
impl Source for Silent {
    async fn keys(&self) -> Option<Vec<JwtKey>> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_source_is_asked_again() {
    let capture = Capture::new(Level::Debug);
    let _guard = capture.install();
    let (keys, stop) = (Keys::default(), CancellationToken::new());
    let polling = poll(&Silent, Duration::from_secs(10), false, &keys, stop.clone());
    let stopping = async {
        tokio::time::sleep(Duration::from_secs(75)).await;
        stop.cancel();
    };
    tokio::join!(polling, stopping);
    let messages: Vec<String> = capture.entries().into_iter().map(|entry| entry.message).collect();
    let silent = "The source of the keys did not answer in time";
    assert_eq!(messages, ["Polling started", silent, silent, "Polling done"]);
}

#[tokio::test]
async fn too_many_keys_are_not_all_served() {
    let many = (0..=KEYS_MAX).map(|i| fixture::key(&i.to_string(), fixture::EC_KEY)).collect();
    let (keys, mut known) = (Keys::default(), None);
    poll_once(&script([Some(many)]), false, &keys, &mut known).await;
    assert_eq!(keys.load().unwrap().set.len, KEYS_MAX);
}

#[tokio::test]
async fn keys_that_no_algorithm_is_known_for_are_served_and_told() {
    let capture = Capture::new(Level::Error);
    let _guard = capture.install();
    let set = KeySet::encode(&[fixture::key("ed", OTHER_KEY)], false, now());
    assert!(!String::from_utf8_lossy(&set.body).contains("\"alg\""));
    let line = &capture.entries()[0];
    assert_eq!(line.message, "Failed to get public key algorithm");
    assert!(format!("{:?}", line.fields).contains("ed25519.PublicKey"), "{:?}", line.fields);
}

#[tokio::test]
async fn a_file_is_read_each_time() {
    let capture = Capture::new(Level::Warn);
    let _guard = capture.install();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle.json");
    let source = FileSource::new(path.clone());
    assert_eq!(source.keys().await, None);
    let jwk = |kid: &str, key: &str, key_use: &str| {
        format!("{},\"kid\":\"{kid}\",\"use\":\"{key_use}\"}}", key.trim_end_matches('}'))
    };
    let one = jwk("one", fixture::EC_KEY, "jwt-svid");
    std::fs::write(&path, format!("{{\"keys\":[{one},{}]}}", jwk("wit", OTHER_KEY, "wit-svid"))).unwrap();
    assert_eq!(source.keys().await, Some(vec![fixture::key("one", fixture::EC_KEY)]));
    std::fs::write(&path, format!("{{\"keys\":[{}]}}", jwk("two", OTHER_KEY, "jwt-svid"))).unwrap();
    assert_eq!(source.keys().await, Some(vec![fixture::key("two", OTHER_KEY)]));
    for broken in ["", "{}", "{\"keys\":[{\"use\":\"jwt-svid\"}]}"] {
        std::fs::write(&path, broken).unwrap();
        assert_eq!(source.keys().await, None, "{broken}");
    }
    let texts: Vec<String> = capture.entries().iter().map(|entry| format!("{:?}", entry.fields)).collect();
    assert_eq!(texts.len(), 4);
    let missing = format!(
        "spiffebundle: unable to read SPIFFE bundle: open {}: no such file or directory",
        path.display()
    );
    assert!(texts[0].contains(&missing), "{texts:?}");
    assert!(texts[2].contains("spiffebundle: no authorities found"), "{texts:?}");
}
