//! What a run says: the difference item by item, failures, a sum at the end, and how far it is.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use spire_wire::api::types;

use super::content::Change;
use crate::env::Env;
use crate::failure::code_name;
use crate::output::Format;
use crate::view;

/// Between two drawings of the bar.
const REDRAW: Duration = Duration::from_millis(100);

/// Columns of the bar.
const BAR: usize = 30;

/// What is done with an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Create,
    Update,
    Replace,
    Delete,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Replace => "replace",
            Self::Delete => "delete",
        }
    }

    fn mark(self) -> &'static str {
        match self {
            Self::Create => "+",
            Self::Update => "~",
            Self::Replace => "-/+",
            Self::Delete => "-",
        }
    }
}

/// An item as a report names it.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// `entry` or `federation_relationship`.
    pub(super) kind: &'static str,
    /// An entry's ID, or its SPIFFE ID where the server will choose one; a relationship's trust domain.
    pub(super) name: String,
    /// `file:line:column`; nothing for what no file has.
    pub(super) place: Option<String>,
}

/// How many items came to which end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) created: u64,
    pub(super) updated: u64,
    pub(super) deleted: u64,
    pub(super) unchanged: u64,
    pub(super) failed: u64,
}

impl Tally {
    pub(super) fn changes(self) -> u64 {
        self.created + self.updated + self.deleted
    }
}

/// Where a run says things.
pub(super) struct Report<'e> {
    pub(super) env: &'e mut Env,
    pub(super) format: Format,
    /// Without the items that succeed.
    pub(super) quiet: bool,
    /// Whether standard error is a terminal, which gets a bar.
    pub(super) terminal: bool,
    drawn: Option<Instant>,
}

impl<'e> Report<'e> {
    pub(super) fn new(env: &'e mut Env, format: Format, quiet: bool, terminal: bool) -> Self {
        Self { env, format, quiet, terminal, drawn: None }
    }

    /// Something is to be done. Values of a creation are those that differ from an entry without any.
    pub(super) fn planned(&mut self, action: Action, subject: &Subject, changes: &[Change]) {
        if self.quiet {
            return;
        }
        self.clear();
        let text = match self.format {
            Format::Json => view::line(&planned_json(action, subject, changes)),
            Format::Pretty => planned_text(action, subject, changes),
        };
        self.env.out(text);
    }

    /// Something could not be done.
    pub(super) fn failed(&mut self, action: Action, subject: &Subject, status: &types::Status) {
        self.clear();
        let Subject { kind, name, place } = subject;
        let code = code_name(status.code);
        match self.format {
            Format::Json => {
                let line = json!({
                    "failed": action.name(), "kind": kind, "name": name, "source": place, "code": code,
                    "message": status.message,
                });
                self.env.out(view::line(&line));
            }
            Format::Pretty => {
                let place = place.as_ref().map_or_else(String::new, |place| format!("{place}: "));
                let (action, message) = (action.name(), &status.message);
                self.env.err(format_args!(
                    "{place}failed to {action} {kind} {name} (code: {code}, msg: {message:?})\n"
                ));
            }
        }
    }

    /// The sum.
    pub(super) fn ended(&mut self, tally: Tally, is_dry: bool) {
        self.clear();
        let Tally { created, updated, deleted, unchanged, failed } = tally;
        match self.format {
            Format::Json => {
                let summary = json!({
                    "dry_run": is_dry, "created": created, "updated": updated, "deleted": deleted,
                    "unchanged": unchanged, "failed": failed,
                });
                self.env.out(view::line(&json!({ "summary": summary })));
            }
            Format::Pretty if is_dry => self.env.out(format_args!(
                "{created} to create, {updated} to update, {deleted} to delete, {unchanged} unchanged, {failed} in \
                 conflict; nothing was changed\n"
            )),
            Format::Pretty => self.env.out(format_args!(
                "{created} created, {updated} updated, {deleted} deleted, {unchanged} unchanged, {failed} failed\n"
            )),
        }
        self.env.flush();
    }

    /// How far it is: `done` of `total`, where the total is known.
    pub(super) fn progress(&mut self, what: &str, done: u64, total: Option<u64>) {
        if !self.terminal || self.drawn.is_some_and(|at| at.elapsed() < REDRAW) {
            return;
        }
        self.drawn = Some(Instant::now());
        let line = match total.filter(|total| *total > 0) {
            Some(total) => {
                let percent = done.min(total) * 100 / total;
                let full = usize::try_from(percent).unwrap_or(0) * BAR / 100;
                let (full, rest) = ("#".repeat(full), " ".repeat(BAR - full));
                format!("\r\u{1b}[K{what} [{full}{rest}] {percent:3} % {done}/{total}")
            }
            None => format!("\r\u{1b}[K{what} {done}"),
        };
        self.env.err(line);
    }

    /// Takes the bar away before something else is said.
    fn clear(&mut self) {
        if self.drawn.take().is_some() {
            self.env.err("\r\u{1b}[K");
        }
    }
}

fn planned_json(action: Action, subject: &Subject, changes: &[Change]) -> Value {
    let change = |change: &Change| {
        let value = match action {
            Action::Update => json!({ "from": change.from, "to": change.to }),
            _ => change.to.clone(),
        };
        (change.field.to_owned(), value)
    };
    let fields: Map<String, Value> = changes.iter().map(change).collect();
    let Subject { kind, name, place } = subject;
    json!({ "action": action.name(), "kind": kind, "name": name, "source": place, "fields": fields })
}

fn planned_text(action: Action, subject: &Subject, changes: &[Change]) -> String {
    let Subject { kind, name, place } = subject;
    let place = place.as_ref().map_or_else(String::new, |place| format!("  # {place}"));
    let mut text = format!("{} {kind} {name}{place}\n", action.mark());
    for Change { field, from, to } in changes {
        // Writing to a text cannot fail.
        let _ = match action {
            Action::Update => writeln!(text, "      {field}: {}", changed(from, to)),
            _ => writeln!(text, "      {field}: {to}"),
        };
    }
    text
}

/// Lists by what came and went, unless only their order changed.
fn changed(from: &Value, to: &Value) -> String {
    if let (Some(old), Some(new)) = (from.as_array(), to.as_array()) {
        let gone = old.iter().filter(|item| !new.contains(item)).map(|item| format!("-{item}"));
        let come = new.iter().filter(|item| !old.contains(item)).map(|item| format!("+{item}"));
        let parts: Vec<String> = gone.chain(come).collect();
        if !parts.is_empty() {
            return parts.join(" ");
        }
    }
    format!("{from} -> {to}")
}
