//! `profiling_enabled`: CPU profiles in pprof's form and heap statistics, on localhost and as files (the reference's
//! `pkg/common/profiling`, and Go's `net/http/pprof`).
//!
//! | name | here |
//! |---|---|
//! | `cpu` | sampled stacks, a gzipped `profile.proto` |
//! | `heap` | the allocator's statistics, as text |
//! | `goroutine`, `threadcreate`, `block`, `mutex`, `trace` | nothing: they are of Go's runtime; asked for, they are warned of |

mod encode;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::Full;
use hyper::{Response, StatusCode};
use spire_compat::config::Profiling;
use spire_compat::errno::errno_text;
use spire_compat::gotime;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::http;

/// Says how the heap is used; `None` where the allocator cannot say.
pub type HeapReport = fn() -> Option<String>;

/// Where profiles are written, in the working folder as the reference does.
const FOLDER: &str = ".profiles";

/// Samples a second. Not a round number, so that work on a timer is not always or never seen; Go takes 100.
const FREQUENCY: i32 = 99;

/// How long a profile takes without `seconds`, as in Go.
const SECONDS: u64 = 30;

/// The longest profile: more than this fills memory for what a series of shorter ones shows better.
const SECONDS_MAX: u64 = 600;

/// Libraries whose unwinding from a signal may wait for a lock that the interrupted thread holds.
const BLOCKED: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// Serves and writes profiles until cancelled, as the configuration says; `tag` is `server` or `agent`.
pub async fn run(config: Profiling, tag: &'static str, heap: HeapReport, stop: CancellationToken) {
    if !config.enabled {
        return;
    }
    let profiler = Profiler { heap, cpu: Arc::new(Semaphore::new(1)) };
    let serving = async {
        if config.port > 0
            && let Err(error) = profiler.clone().serve(config.port).await
        {
            tracing::warn!(error = %errno_text(&error), "Unable to serve profiling server");
        }
    };
    let writing = async {
        if let Ok(seconds) = u64::try_from(config.frequency)
            && seconds > 0
        {
            profiler.clone().write(&config.names, seconds, tag).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        ((), ()) = async { tokio::join!(serving, writing) } => {}
    }
}

#[derive(Clone)]
struct Profiler {
    heap: HeapReport,
    /// One CPU profile at a time, since there is one signal.
    cpu: Arc<Semaphore>,
}

/// Why there is no CPU profile.
#[derive(Debug, thiserror::Error)]
enum CpuError {
    #[error("Could not enable CPU profiling: cpu profiling already in use")]
    InUse,
    #[error("Could not enable CPU profiling: {0}")]
    Sampler(#[from] pprof::Error),
    #[error("{0}")]
    Encode(#[from] std::io::Error),
}

impl Profiler {
    async fn serve(self, port: i64) -> std::io::Result<()> {
        let listener =
            spire_net::listen(&format!("localhost:{port}")).await.map_err(std::io::Error::other)?;
        let respond: http::Respond = Arc::new(move |request| {
            let profiler = self.clone();
            let path = request.uri().path().to_owned();
            let query = request.uri().query().unwrap_or_default().to_owned();
            Box::pin(async move { profiler.respond(&path, &query).await })
        });
        http::serve(listener, None, respond).await
    }

    async fn respond(&self, path: &str, query: &str) -> Response<Full<bytes::Bytes>> {
        let text = |status, body: String| http::response(status, "text/plain; charset=utf-8", body);
        match path.strip_prefix("/debug/pprof/") {
            Some("") => {
                text(StatusCode::OK, "Profiles: profile (CPU, ?seconds=30), heap, cmdline\n".to_owned())
            }
            Some("profile") => {
                let asked = query.split('&').find_map(|pair| pair.strip_prefix("seconds=")?.parse().ok());
                let seconds = asked.unwrap_or(SECONDS).clamp(1, SECONDS_MAX);
                match self.cpu_profile(Duration::from_secs(seconds)).await {
                    Ok(profile) => http::response(StatusCode::OK, "application/octet-stream", profile),
                    Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
                }
            }
            Some("heap") => match (self.heap)() {
                Some(report) => text(StatusCode::OK, report),
                None => text(StatusCode::NOT_FOUND, "the allocator has no statistics\n".to_owned()),
            },
            Some("cmdline") => {
                let arguments: Vec<String> =
                    std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
                text(StatusCode::OK, arguments.join("\0"))
            }
            Some(_) => text(StatusCode::NOT_FOUND, "Unknown profile\n".to_owned()),
            None => http::not_found(),
        }
    }

    async fn cpu_profile(&self, duration: Duration) -> Result<Vec<u8>, CpuError> {
        let _only = self.cpu.try_acquire().map_err(|_| CpuError::InUse)?;
        let start = SystemTime::now();
        let sampler =
            pprof::ProfilerGuardBuilder::default().frequency(FREQUENCY).blocklist(&BLOCKED).build()?;
        tokio::time::sleep(duration).await;
        // Finding names reads the program's debug information.
        let encoded = tokio::task::spawn_blocking(move || {
            let report = sampler.report().build()?;
            Ok(encode::gzipped(&report, start, duration, FREQUENCY)?)
        });
        encoded.await.map_err(|error| CpuError::Encode(std::io::Error::other(error)))?
    }

    /// Writes the named profiles every so many seconds, for ever.
    async fn write(self, names: &[String], seconds: u64, tag: &str) {
        let (known, other): (Vec<&str>, Vec<&str>) =
            names.iter().map(String::as_str).partition(|name| matches!(*name, "cpu" | "heap"));
        if !other.is_empty() {
            tracing::warn!(
                names = other.join(","),
                "profiling_names has profiles of Go's runtime, which are not written; cpu and heap are"
            );
        }
        if known.is_empty() {
            tracing::warn!(error = "there are no dumpers active", "Failed to run profiling");
            return;
        }
        let period = Duration::from_secs(seconds);
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            // A CPU profile is of the time until the next dump.
            let cpu = if known.contains(&"cpu") { Some(self.cpu_profile(period).await) } else { None };
            if cpu.is_none() {
                ticks.tick().await;
            }
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let stamp = timestamp(i64::try_from(now).unwrap_or(i64::MAX));
            let mut files = Vec::new();
            match cpu {
                Some(Ok(profile)) => files.push((file(&stamp, tag, "cpu", "pb.gz"), profile)),
                Some(Err(error)) => {
                    tracing::warn!(error = %error, "Could not write a CPU profile");
                    ticks.reset();
                    ticks.tick().await;
                }
                None => {}
            }
            if known.contains(&"heap")
                && let Some(report) = (self.heap)()
            {
                files.push((file(&stamp, tag, "heap", "txt"), report.into_bytes()));
            }
            for (path, content) in files {
                if let Err(error) = save(&path, &content).await {
                    let (error, path) = (errno_text(&error), path.display());
                    tracing::warn!(error, path = %path, "Could not write a profile");
                }
            }
        }
    }
}

/// `2006-01-02_150405`.
fn timestamp(unix_seconds: i64) -> String {
    let text = gotime::string(unix_seconds);
    let (date, time) = text.split_once(' ').unwrap_or((&text, ""));
    format!("{date}_{}", time.get(..8).unwrap_or_default().replace(':', ""))
}

fn file(stamp: &str, tag: &str, name: &str, extension: &str) -> PathBuf {
    Path::new(FOLDER).join(format!("{stamp}_{tag}_{name}.{extension}"))
}

async fn save(path: &Path, content: &[u8]) -> std::io::Result<()> {
    tokio::fs::create_dir_all(FOLDER).await?;
    tokio::fs::write(path, content).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profiler() -> Profiler {
        Profiler { heap: || Some("much".to_owned()), cpu: Arc::new(Semaphore::new(1)) }
    }

    #[tokio::test]
    async fn paths() {
        let profiler = profiler();
        for (path, status) in [
            ("/debug/pprof/", 200),
            ("/debug/pprof/heap", 200),
            ("/debug/pprof/cmdline", 200),
            ("/debug/pprof/goroutine", 404),
            ("/", 404),
        ] {
            assert_eq!(profiler.respond(path, "").await.status().as_u16(), status, "{path}");
        }
    }

    #[tokio::test]
    async fn one_cpu_profile_at_a_time() {
        let profiler = profiler();
        let _running = profiler.cpu.acquire().await.unwrap();
        let error = profiler.cpu_profile(Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(error.to_string(), "Could not enable CPU profiling: cpu profiling already in use");
        assert_eq!(profiler.respond("/debug/pprof/profile", "seconds=1").await.status().as_u16(), 500);
    }

    #[test]
    fn names_of_files() {
        assert_eq!(timestamp(1_000_000_000), "2001-09-09_014640");
        let path = file("2001-09-09_014640", "server", "cpu", "pb.gz");
        assert_eq!(path, Path::new(".profiles/2001-09-09_014640_server_cpu.pb.gz"));
    }
}
