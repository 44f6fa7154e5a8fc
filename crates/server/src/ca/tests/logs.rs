//! The lines that readers of the reference's logs look for, with their fields.

use std::cell::RefCell;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Once};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::world::{World, active_id};
use crate::ca::ServerSvid;

thread_local! {
    /// What was logged on this thread since it began to listen.
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Keeps events as `LEVEL message name=value …`, names sorted, for threads that listen. It is the default of
/// all threads, since a subscriber of one thread misses call sites that other threads met first.
struct Lines;

/// Begins to listen on this thread, where a test's whole runtime runs.
fn listen() {
    static INSTALLED: Once = Once::new();
    INSTALLED
        .call_once(|| tracing::subscriber::set_global_default(Lines).expect("the first in this process"));
    LINES.set(Some(Vec::new()));
}

/// What was logged since this was last asked.
fn heard() -> Vec<String> {
    LINES.with_borrow_mut(|lines| lines.as_mut().map(std::mem::take).unwrap_or_default())
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<String>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.others.push(format!("{}={value:?}", field.name()));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.others.push(format!("{}={value}", field.name()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.others.push(format!("{}={value}", field.name()));
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("spire_server")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        LINES.with_borrow_mut(|lines| {
            let Some(lines) = lines else { return };
            let mut fields = Fields::default();
            event.record(&mut fields);
            fields.others.sort();
            let line = format!("{} {} {}", event.metadata().level(), fields.message, fields.others.join(" "));
            lines.push(line.trim_end().to_owned());
        });
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn a_first_start_and_a_restart() {
    listen();
    let world = World::new();
    let authorities = world.start().await.unwrap();
    let _svid = ServerSvid::start(Arc::clone(&authorities)).await.unwrap();
    let ca = active_id(authorities.ca());
    let jwt = authorities.ca().active_jwt().unwrap().kid().to_owned();
    let m = "subsystem_name=ca_manager";
    let times = "expiration=1700000600 issued_at=1700000000";
    let journal = "Successfully stored CA journal entry in datastore ca_journal_id=1";
    let prepared =
        format!("{times} local_authority_id={ca} self_signed=true slot=A {m} upstream_authority_id=");
    assert_eq!(heard(), [
        format!("DEBUG Loading journal from datastore {m}"),
        format!("INFO There is not a CA journal record that matches any of the local X509 authority IDs {m}"),
        format!("INFO Journal loaded jwt_keys=0 {m} wit_keys=0 x509_cas=0"),
        format!("DEBUG Preparing X509 CA slot=A {m}"),
        format!("DEBUG There is no active X.509 authority yet. Can't save CA journal in the datastore {m}"),
        format!("INFO X509 CA prepared {prepared}"),
        format!("INFO Creating a new CA journal entry {m}"),
        format!("DEBUG {journal} local_authority_id={ca} {m}"),
        format!("INFO X509 CA activated {times} local_authority_id={ca} slot=A {m} upstream_authority_id="),
        format!("DEBUG Successfully rotated X.509 CA {m} trust_domain_id=spiffe://example.org ttl=600.0"),
        format!("DEBUG Preparing JWT key slot=A {m}"),
        format!("DEBUG {journal} local_authority_id={ca} {m}"),
        format!("INFO JWT key prepared {times} local_authority_id={jwt} slot=A {m}"),
        format!("DEBUG {journal} local_authority_id={ca} {m}"),
        format!("INFO JWT key activated {times} local_authority_id={jwt} slot=A {m}"),
        "DEBUG Rotating server SVID subsystem_name=svid_rotator".to_owned(),
        "DEBUG Signed X509 SVID expiration=2023-11-14T22:14:20Z spiffe_id=spiffe://example.org/spire/server \
         subsystem_name=svid_rotator"
            .to_owned(),
    ]);

    let _restarted = world.start().await.unwrap();
    assert_eq!(
        heard(),
        [
            format!("DEBUG Loading journal from datastore {m}"),
            format!(
                "DEBUG Found a CA journal record that matches with a local X509 authority ID ca_journal_id=1 \
             local_authority_id={ca} {m}"
            ),
            format!("INFO Journal loaded jwt_keys=1 {m} wit_keys=0 x509_cas=1"),
            format!(
                "INFO X509 CA activated {times} local_authority_id={ca} slot=A {m} upstream_authority_id="
            ),
            format!("DEBUG Successfully rotated X.509 CA {m} trust_domain_id=spiffe://example.org ttl=600.0"),
            format!("INFO JWT key activated {times} local_authority_id={jwt} slot=A {m}"),
        ]
    );
}

#[tokio::test]
async fn a_slot_without_its_key() {
    let world = World::new();
    let authorities = world.start().await.unwrap();
    let kid = authorities.ca().active_jwt().unwrap().kid().to_owned();
    world.keys.lock().remove("JWT-Signer-A");
    listen();
    world.start().await.unwrap();
    let expected = format!(
        "WARN JWT key slot unusable error=no key manager key issued_at=1700000000 local_authority_id={kid} slot=A \
         status=ACTIVE subsystem_name=ca_manager"
    );
    let heard = heard();
    assert!(heard.contains(&expected), "{heard:?}");
}
