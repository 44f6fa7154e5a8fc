//! `spire apply -watch`: a folder whose files the server follows.
//!
//! The folder is looked at in intervals. A ConfigMap is exchanged by a link two folders above its files, and network file
//! systems do not notify, so watching by inotify would need the looks as well.

use std::time::{Duration, Instant};

use spire_compat::gotime;
use spire_net::tls::UnixConnector;

use super::content::Digest;
use super::registry::Server;
use super::report::{Report, Tally};
use super::round::{Policy, round};
use super::sources::Sources;
use crate::failure::Failure;

/// The first wait after a round that failed; it doubles up to the last.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_LAST: Duration = Duration::from_secs(300);

/// How often the folder is looked at, and how often the server is compared although nothing changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Intervals {
    pub(super) look: Duration,
    pub(super) resync: Duration,
}

/// Decides at each look whether a round is due.
#[derive(Debug)]
struct Rhythm {
    resync: Duration,
    seen: Option<Digest>,
    tried: Option<Tried>,
}

#[derive(Debug)]
struct Tried {
    content: Digest,
    /// When the same content is tried again.
    again: Duration,
    failures: u32,
}

impl Rhythm {
    fn new(resync: Duration) -> Self {
        Self { resync, seen: None, tried: None }
    }

    /// Whether a round is due for a folder that has this content at `now`. Content counts once two looks in a row saw it, so that
    /// what is being written is left alone.
    fn is_due(&mut self, content: Digest, now: Duration) -> bool {
        if self.seen.replace(content) != Some(content) {
            return false;
        }
        match &self.tried {
            Some(tried) if tried.content == content => now >= tried.again,
            _ => true,
        }
    }

    /// A round for this content ended.
    fn ended(&mut self, content: Digest, well: bool, now: Duration) {
        let before = self.tried.as_ref().filter(|tried| tried.content == content).map_or(0, |t| t.failures);
        let failures = if well { 0 } else { before.saturating_add(1) };
        let wait = match failures {
            0 => self.resync,
            n => BACKOFF_FIRST.saturating_mul(1 << (n - 1).min(16)).min(BACKOFF_LAST),
        };
        self.tried = Some(Tried { content, again: now + wait, failures });
    }
}

/// Follows the folder until the process is ended.
pub(super) async fn watch(
    report: &mut Report<'_>,
    connector: UnixConnector,
    folder: &str,
    policy: &Policy,
    intervals: Intervals,
) -> Failure {
    let mut server = Server::new(spire_net::grpc::unix_channel(connector));
    let start = Instant::now();
    let mut rhythm = Rhythm::new(intervals.resync);
    let mut told = String::new();
    let paths = [folder.to_owned()];
    log(report, "info", "Watching", &[("folder", folder.to_owned())]);
    loop {
        let looked = Sources::open(report.env, &paths).and_then(|s| s.fingerprint().map(|print| (s, print)));
        match looked {
            Err(failure) => {
                let text = failure.to_string();
                if told != text {
                    log(report, "error", "Cannot read the folder", &[("error", text.clone())]);
                    told = text;
                }
            }
            Ok((sources, content)) => {
                told.clear();
                if rhythm.is_due(content, start.elapsed()) {
                    let begun = Instant::now();
                    let ended = match sources.survey(policy.owner.as_ref()) {
                        Ok(survey) => round(&mut server, &sources, &survey, policy, report).await,
                        Err(failure) => Err(failure),
                    };
                    let well = matches!(&ended, Ok(tally) if tally.failed == 0);
                    rhythm.ended(content, well, start.elapsed());
                    tell(report, &ended, begun.elapsed(), content);
                }
            }
        }
        tokio::time::sleep(intervals.look).await;
    }
}

fn tell(report: &mut Report<'_>, ended: &Result<Tally, Failure>, took: Duration, content: Digest) {
    let mut fields =
        vec![("content", format!("{:016x}", content >> 64)), ("duration_ms", took.as_millis().to_string())];
    match ended {
        Ok(tally) => {
            fields.extend([
                ("created", tally.created.to_string()),
                ("updated", tally.updated.to_string()),
                ("deleted", tally.deleted.to_string()),
                ("unchanged", tally.unchanged.to_string()),
                ("failed", tally.failed.to_string()),
            ]);
            let level = if tally.failed == 0 { "info" } else { "error" };
            log(report, level, "Applied", &fields);
        }
        Err(failure) => {
            fields.push(("error", failure.to_string()));
            log(report, "error", "Not applied; the server keeps what it has", &fields);
        }
    }
}

/// A line as the daemons log it.
fn log(report: &mut Report<'_>, level: &str, message: &str, fields: &[(&str, String)]) {
    let mut line =
        format!("time=\"{}\" level={level} msg={message:?}", gotime::rfc3339(report.env.unix_now()));
    for (name, value) in fields {
        let plain = value.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._/@^+".contains(&c));
        match plain && !value.is_empty() {
            true => line.push_str(&format!(" {name}={value}")),
            false => line.push_str(&format!(" {name}={value:?}")),
        }
    }
    line.push('\n');
    report.env.err(line);
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn content_settles_before_it_counts() {
        let mut rhythm = Rhythm::new(at(300));
        assert!(!rhythm.is_due(1, at(0)));
        assert!(!rhythm.is_due(2, at(1)), "another content starts anew");
        assert!(rhythm.is_due(2, at(2)));
        rhythm.ended(2, true, at(2));
        assert!(!rhythm.is_due(2, at(3)));
        assert!(!rhythm.is_due(1, at(4)));
        assert!(!rhythm.is_due(2, at(5)));
        assert!(!rhythm.is_due(2, at(6)), "a change that was taken back is none");
        assert!(rhythm.is_due(2, at(302)), "the server may have changed");
    }

    #[test]
    fn failures_wait_longer_each_time_and_a_change_does_not_wait() {
        let mut rhythm = Rhythm::new(at(300));
        rhythm.is_due(1, at(0));
        let mut now = at(0);
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert!(rhythm.is_due(1, now));
            rhythm.ended(1, false, now);
            let mut wait = Duration::ZERO;
            while !rhythm.is_due(1, now + wait) {
                wait += at(1);
            }
            waits.push(wait.as_secs());
            now += wait;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        rhythm.ended(1, false, now);
        rhythm.is_due(2, now + at(1));
        assert!(rhythm.is_due(2, now + at(2)));
        rhythm.ended(2, false, now + at(2));
        assert!(rhythm.is_due(2, now + at(3)), "its failures are counted anew");
    }
}
