//! Tests of the log as applications see it: levels, spans, files.

use spire_ports::observe::{FATAL, Logged, PANIC};
use tracing::subscriber::with_default;

use super::*;

#[derive(Debug, thiserror::Error)]
#[error("outer")]
struct Outer(#[source] std::fmt::Error);

#[test]
fn fields_of_spans_are_merged_and_the_event_wins() {
    let capture = Capture::new(Level::Info);
    with_default(capture.subscriber(), || {
        let outer = tracing::info_span!(
            "rpc",
            request_id = "r1",
            method = "Old",
            authorized_as = tracing::field::Empty
        );
        let _outer = outer.enter();
        let inner = tracing::info_span!("inner", method = "New", subsystem_name = "api");
        let _inner = inner.enter();
        outer.record("authorized_as", "nobody");
        outer.record("authorized_as", "local");
        tracing::info!(request_id = "r2", r#type = "x", level = 3, "Entry created");
        tracing::warn!(error = &Outer(std::fmt::Error) as &dyn std::error::Error);
    });
    assert_eq!(
        capture.lines(),
        [
            r#"level=info msg="Entry created" authorized_as=local fields.level=3 method=New request_id=r2 subsystem_name=api type=x"#,
            r#"level=warning authorized_as=local error="outer: an error occurred when formatting an argument" method=New request_id=r1 subsystem_name=api"#,
        ]
    );
}

#[test]
fn context_is_there_at_every_level() {
    let capture = Capture::new(Level::Error);
    with_default(capture.subscriber(), || {
        let _span = tracing::info_span!("rpc", request_id = "r1").entered();
        tracing::warn!("dropped");
        tracing::error!("kept");
    });
    assert_eq!(capture.lines(), ["level=error msg=kept request_id=r1"]);
}

#[test]
fn the_level_changes_at_run_time() {
    fn log() {
        tracing::trace!("t");
        tracing::debug!("d");
        tracing::info!("i");
        tracing::error!("e");
        tracing::error!(target: FATAL, "f");
        tracing::error!(target: PANIC, "p");
    }
    let capture = Capture::new(Level::Info);
    let level = capture.level().clone();
    let logged = || {
        log();
        capture.take().into_iter().map(|entry| entry.message).collect::<String>()
    };
    with_default(capture.subscriber(), || {
        for (set, expected) in [
            (Level::Trace, "tdiefp"),
            (Level::Debug, "diefp"),
            (Level::Info, "iefp"),
            (Level::Warn, "efp"),
            (Level::Error, "efp"),
            (Level::Fatal, "fp"),
            (Level::Panic, "p"),
        ] {
            level.set(set);
            assert_eq!(level.current(), set);
            assert_eq!(logged(), expected, "{set}");
        }
        level.reset();
        assert_eq!((level.current(), level.launch()), (Level::Info, Level::Info));
        assert_eq!(logged(), "iefp");
        log();
        let printed: String = capture.lines().join(",");
        assert_eq!(printed, "level=info msg=i,level=error msg=e,level=fatal msg=f,level=panic msg=p");
    });
}

#[test]
fn libraries_are_quiet_below_warn() {
    let capture = Capture::new(Level::Trace);
    with_default(capture.subscriber(), || {
        let _span = tracing::info_span!(target: "h2::codec", "frame", stream = 1).entered();
        tracing::info!(target: "h2::codec", "no");
        tracing::warn!(target: "rustls::conn", "yes");
        tracing::trace!(target: "spire_server::api", "ours");
        capture.level().set(Level::Error);
        tracing::warn!(target: "rustls::conn", "no longer");
    });
    assert_eq!(capture.lines(), ["level=warning msg=yes", "level=trace msg=ours"]);
}

#[test]
fn values_of_special_kinds() {
    let capture = Capture::new(Level::Info);
    with_default(capture.subscriber(), || {
        tracing::info!(
            admin_ids = Logged::list(["a", "b"]).value(),
            retry_interval = Logged::Duration(std::time::Duration::from_secs(90)).value(),
            expiration = Logged::Time(0).value(),
            big = u64::MAX,
            absent = None::<&str>,
            "m"
        );
    });
    assert_eq!(
        capture.lines(),
        [
            r#"level=info msg=m admin_ids="[a b]" big=18446744073709551615 expiration="1970-01-01 00:00:00 +0000 UTC" retry_interval=1m30s"#
        ]
    );
    assert_eq!(capture.entries()[0].field("retry_interval"), Some("1m30s"));
}

#[test]
fn numbers_with_names() {
    let code = || Logged::Fields(vec![("status_code".into(), spire_ports::observe::Scalar::Named(3, "Bad"))]);
    let capture = Capture::new(Level::Info);
    with_default(capture.subscriber(), || tracing::info!(fields = code().value(), "m"));
    assert_eq!(capture.lines(), ["level=info msg=m status_code=Bad"]);
}

#[test]
fn source_location() {
    let capture = Capture::new(Level::Info).with_source_location();
    with_default(capture.subscriber(), || tracing::info!(file = "mine", "m"));
    let entry = capture.take().remove(0);
    assert!(entry.field("file").unwrap().starts_with("tests.rs:"), "{}", entry.line);
    assert_eq!(entry.field("func"), Some("spire_telemetry::tests"));
}

#[test]
fn a_file_is_appended_to_and_opened_again() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.log");
    let moved = folder.path().join("server.log.1");
    let config = LogSettings { file: Some(path.clone()), format: LogFormat::Json, ..LogSettings::default() };
    let (log, handle) = subscriber(config.clone()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o137, 0);
    with_default(log, || {
        tracing::info!("one");
        std::fs::rename(&path, &moved).unwrap();
        tracing::info!("two");
        handle.reopen.as_ref().unwrap().reopen().unwrap();
        tracing::info!("three");
    });
    let (log, _) = subscriber(config).unwrap();
    with_default(log, || tracing::info!("four"));
    let messages = |path: &std::path::Path| -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        let message =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["msg"].to_string();
        text.lines().map(message).collect()
    };
    assert_eq!(messages(&moved), [r#""one""#, r#""two""#]);
    assert_eq!(messages(&path), [r#""three""#, r#""four""#]);
}

#[test]
fn a_file_that_cannot_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing").join("x.log");
    let config = LogSettings { file: Some(path.clone()), ..LogSettings::default() };
    let error = subscriber(config).err().unwrap().to_string();
    assert_eq!(error, format!("open {}: no such file or directory", path.display()));

    let inside = folder.path().join("logs");
    std::fs::create_dir(&inside).unwrap();
    let path = inside.join("x.log");
    let (log, handle) =
        subscriber(LogSettings { file: Some(path.clone()), ..LogSettings::default() }).unwrap();
    std::fs::remove_dir_all(&inside).unwrap();
    let error = handle.reopen.unwrap().reopen().unwrap_err().to_string();
    let path = path.display();
    assert_eq!(error, format!("unable to reopen {path}: open {path}: no such file or directory"));
    with_default(log, || tracing::info!("the old file takes it"));
}

#[test]
fn a_full_disk_does_not_matter() {
    let config = LogSettings { file: Some("/dev/full".into()), ..LogSettings::default() };
    let (log, _) = subscriber(config).unwrap();
    with_default(log, || tracing::info!("lost"));
}

#[test]
fn lines_of_many_threads_stay_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.log");
    let (log, _) = subscriber(LogSettings { file: Some(path.clone()), ..LogSettings::default() }).unwrap();
    let dispatch = tracing::Dispatch::new(log);
    let long = "x".repeat(10_000);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                tracing::dispatcher::with_default(&dispatch, || {
                    for _ in 0..50 {
                        tracing::info!(long, "m");
                    }
                });
            });
        }
    });
    let text = std::fs::read_to_string(path).unwrap();
    let end = format!("level=info msg=m long={long}");
    assert_eq!(text.lines().filter(|line| line.starts_with("time=") && line.ends_with(&end)).count(), 200);
    assert_eq!(text.lines().count(), 200);
}
