//! Parsing of arguments (flag.FlagSet.Parse).

use std::collections::BTreeMap;

use super::{FlagSet, Kind, Value};
use crate::duration::GoDuration;
use crate::quote;

/// Why arguments were not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// `-h` or `-help`, where the command has no flag of that name. The usage text is wanted.
    #[error("flag: help requested")]
    Help,
    /// Anything else, in Go's words. Go prints this and then the usage text.
    #[error("{0}")]
    Refused(String),
}

/// The values of a command's flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    values: BTreeMap<&'static str, Value>,
    given: Vec<&'static str>,
    rest: Vec<String>,
}

impl FlagSet {
    /// Reads the arguments after the command's name.
    ///
    /// # Errors
    /// [`FlagError`], in Go's words.
    pub fn parse<S: AsRef<str>>(&self, arguments: &[S]) -> Result<Parsed, FlagError> {
        let mut parsed = Parsed {
            values: self.flags.iter().map(|f| (f.name, f.kind.initial())).collect(),
            given: Vec::new(),
            rest: Vec::new(),
        };
        let mut left = arguments.iter().map(AsRef::as_ref);
        while let Some(argument) = left.next() {
            if argument.len() < 2 || !argument.starts_with('-') {
                parsed.rest.push(argument.to_owned());
                break;
            }
            if argument == "--" {
                break;
            }
            self.one(argument, &mut left, &mut parsed)?;
        }
        parsed.rest.extend(left.map(ToOwned::to_owned));
        Ok(parsed)
    }

    fn one<'a>(
        &self,
        argument: &str,
        left: &mut impl Iterator<Item = &'a str>,
        parsed: &mut Parsed,
    ) -> Result<(), FlagError> {
        let body = argument.strip_prefix("--").unwrap_or(&argument[1..]);
        if body.is_empty() || body.starts_with(['-', '=']) {
            return Err(FlagError::Refused(format!("bad flag syntax: {argument}")));
        }
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        let Some(flag) = self.find(name) else {
            return Err(if matches!(name, "help" | "h") {
                FlagError::Help
            } else {
                FlagError::Refused(format!("flag provided but not defined: -{name}"))
            });
        };
        let value = match (&flag.kind, inline) {
            (_, Some(value)) => value,
            (Kind::Bool(_) | Kind::Switch, None) => "true",
            (_, None) => {
                left.next().ok_or_else(|| FlagError::Refused(format!("flag needs an argument: -{name}")))?
            }
        };
        let slot = parsed.values.entry(flag.name).or_insert_with(|| flag.kind.initial());
        slot.set(&flag.kind, value).map_err(|why| {
            let what = if matches!(flag.kind, Kind::Bool(_)) { "boolean value" } else { "value" };
            let of = if matches!(flag.kind, Kind::Bool(_)) { "" } else { "flag " };
            FlagError::Refused(format!("invalid {what} {} for {of}-{name}: {why}", quote::quote(value)))
        })?;
        parsed.given.push(flag.name);
        Ok(())
    }
}

impl Parsed {
    /// Whether the flag was given, even with its default value.
    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains(&name)
    }

    /// A boolean flag; false for a name that the command does not have.
    pub fn bool(&self, name: &str) -> bool {
        matches!(self.values.get(name), Some(Value::Bool(true)))
    }

    /// An integer flag.
    pub fn int(&self, name: &str) -> i64 {
        if let Some(Value::Int(n)) = self.values.get(name) { *n } else { 0 }
    }

    /// A text flag, or a custom one that was given.
    pub fn string(&self, name: &str) -> &str {
        match self.values.get(name) {
            Some(Value::String(s) | Value::Custom(Some(s))) => s,
            _ => "",
        }
    }

    /// A text flag, only if it was given.
    pub fn given_string(&self, name: &str) -> Option<&str> {
        self.is_given(name).then(|| self.string(name))
    }

    /// A duration flag.
    pub fn duration(&self, name: &str) -> GoDuration {
        if let Some(Value::Duration(d)) = self.values.get(name) { *d } else { GoDuration::ZERO }
    }

    /// All arguments of a flag that may be repeated.
    pub fn strings(&self, name: &str) -> &[String] {
        if let Some(Value::Strings(all)) = self.values.get(name) { all } else { &[] }
    }

    /// What stands after the flags.
    pub fn rest(&self) -> &[String] {
        &self.rest
    }
}
