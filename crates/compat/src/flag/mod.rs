//! Go's `flag` package: syntax, errors and usage text of the commands.
//!
//! Imitates Go 1.26 src/flag/flag.go. A command declares its flags as a [`FlagSet`]; parsing gives
//! [`Parsed`], which the command reads by name. `-x v`, `--x v`, `-x=v` and `-b=false` are the same as
//! there; parsing stops at the first argument that is not a flag, or after `--`.

mod parse;
mod usage;
mod value;

use crate::duration::GoDuration;

pub use parse::{FlagError, Parsed};
pub use value::{Kind, Value};

/// One flag of a command.
#[derive(Clone, Debug)]
pub struct Flag {
    /// Its name without dashes.
    pub name: &'static str,
    /// What it takes, and its value when it is not given.
    pub kind: Kind,
    /// What the usage text says of it; a word in back-quotes names its argument.
    pub usage: &'static str,
    /// Left out of the usage text: an old name that still works.
    pub hidden: bool,
}

/// The flags of one command.
#[derive(Clone, Debug)]
pub struct FlagSet {
    name: &'static str,
    flags: Vec<Flag>,
}

impl FlagSet {
    /// A command without flags yet. The name stands in the usage text.
    pub fn new(name: &'static str) -> Self {
        Self { name, flags: Vec::new() }
    }

    /// Adds a flag of any kind. A name that is there is replaced.
    pub fn flag(mut self, name: &'static str, kind: Kind, usage: &'static str) -> Self {
        self.flags.retain(|f| f.name != name);
        self.flags.push(Flag { name, kind, usage, hidden: false });
        self
    }

    /// Adds a boolean flag.
    pub fn bool(self, name: &'static str, default: bool, usage: &'static str) -> Self {
        self.flag(name, Kind::Bool(default), usage)
    }

    /// Adds a boolean flag that is true when given, whatever its value.
    pub fn switch(self, name: &'static str, usage: &'static str) -> Self {
        self.flag(name, Kind::Switch, usage)
    }

    /// Adds an integer flag (64 bits, any base that Go reads).
    pub fn int(self, name: &'static str, default: i64, usage: &'static str) -> Self {
        self.flag(name, Kind::Int(default), usage)
    }

    /// Adds a text flag.
    pub fn string(self, name: &'static str, default: &str, usage: &'static str) -> Self {
        self.flag(name, Kind::String(default.to_owned()), usage)
    }

    /// Adds a duration flag.
    pub fn duration(self, name: &'static str, default: GoDuration, usage: &'static str) -> Self {
        self.flag(name, Kind::Duration(default), usage)
    }

    /// Adds a flag that may be given several times and gathers its arguments.
    pub fn strings(self, name: &'static str, usage: &'static str) -> Self {
        self.flag(name, Kind::Strings, usage)
    }

    /// Adds a flag with a reader of its own. `shown` is its default in the usage text, empty for none.
    pub fn custom(
        self,
        name: &'static str,
        shown: &'static str,
        check: fn(&str) -> Result<(), String>,
        usage: &'static str,
    ) -> Self {
        self.flag(name, Kind::Custom { shown, check }, usage)
    }

    /// Keeps a flag out of the usage text: an old name that still works.
    pub fn hide(mut self, name: &str) -> Self {
        for flag in self.flags.iter_mut().filter(|f| f.name == name) {
            flag.hidden = true;
        }
        self
    }

    /// The flags as declared.
    pub fn flags(&self) -> &[Flag] {
        &self.flags
    }

    /// The command's name in the usage text.
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn find(&self, name: &str) -> Option<&Flag> {
        self.flags.iter().find(|f| f.name == name)
    }
}

#[cfg(test)]
mod tests;
