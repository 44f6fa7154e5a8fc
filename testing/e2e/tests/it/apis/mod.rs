//! The same calls to our server and to the reference's: answers, codes, messages and audit lines must be the same.

/// Calls a method and writes down the answer, which is of this type.
macro_rules! call {
    ($client:expr, $name:expr, $service:expr, $method:literal, $request:expr => $answer:ty) => {
        $client.call::<_, $answer>($name, &format!("{}/{}", $service, $method), $request).await
    };
}

mod calls;
mod client;
mod entries;

use spire_testkit::Daemon;

use crate::harness::programs::{self, Programs};
use crate::harness::{Case, Need, Outcome, Site};
use client::{Client, redacted};

pub(crate) fn cases() -> Vec<Case> {
    vec![Case { name: "apis::answer_as_the_reference_does", needs: &[Need::Reference], run: answer_alike }]
}

/// What one server said to one sequence of calls.
struct Said {
    answers: Vec<(String, String)>,
    audit: Vec<String>,
}

fn answer_alike() -> Outcome {
    let theirs = said_by(programs::theirs()?)?;
    let ours = said_by(programs::under_test())?;
    let mut wrong = Vec::new();
    for ((name, ours), (_, theirs)) in ours.answers.iter().zip(&theirs.answers) {
        if *ours != with_our_texts(theirs) {
            wrong.push(format!("{name}\n   ours: {ours}\n theirs: {theirs}"));
        }
    }
    assert_eq!(ours.answers.len(), theirs.answers.len());
    let (mut our_lines, mut their_lines) = (ours.audit.into_iter(), theirs.audit.into_iter());
    loop {
        match (our_lines.next(), their_lines.next()) {
            (None, None) => break,
            (ours, theirs) if ours == theirs.as_deref().map(with_our_texts) => {}
            (ours, theirs) => wrong.push(format!(
                "audit\n   ours: {}\n theirs: {}",
                ours.unwrap_or_default(),
                theirs.unwrap_or_default()
            )),
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("{} differ:\n{}", wrong.len(), wrong.join("\n")).into())
    }
}

fn said_by(programs: &'static Programs) -> Result<Said, libtest_mimic::Failed> {
    let mut site = Site::with_default_intervals()?;
    site.server_programs = programs;
    site.server.lines.push("audit_log_enabled = true".to_owned());
    let server = site.start_server()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answers = runtime.block_on(async {
        let mut client = Client::new(&site.server.socket());
        calls::all(&mut client).await;
        client.answers
    });
    Ok(Said { answers, audit: audit_lines(&server) })
}

fn with_our_texts(theirs: &str) -> String {
    calls::TEXTS.iter().fold(theirs.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
}

/// The audit lines without what differs from run to run, and without those of the server's own looks at its health.
fn audit_lines(server: &Daemon) -> Vec<String> {
    let own = |line: &str| line.contains("authorized_as=nobody") && line.contains("method=GetBundle");
    let lines = server.lines().into_iter().filter(|line| line.contains("type=audit") && !own(line));
    lines
        .map(|line| redacted(line.split_once(" level=").map_or(line.as_str(), |(_, rest)| rest)))
        .map(|line| line.split(' ').map(without_run).collect::<Vec<_>>().join(" "))
        .collect()
}

/// A field without its value where that differs from run to run. The reference logs the address of a filter's
/// `downstream`, not its value.
fn without_run(field: &str) -> &str {
    let running = |name: &&str| field.split_once('=').is_some_and(|(found, _)| found == *name);
    let time = field.starts_with("expires_at=\"");
    if time {
        "expires_at="
    } else {
        ["caller_path", "downstream"].into_iter().find(running).unwrap_or(field)
    }
}
