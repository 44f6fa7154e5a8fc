//! The usage text (flag.FlagSet.PrintDefaults).

use super::{Flag, FlagSet};

impl FlagSet {
    /// `Usage of <name>:` and the flags in alphabetical order, each line ending with a newline.
    pub fn usage(&self) -> String {
        format!("Usage of {}:\n{}", self.name, self.defaults())
    }

    /// The flags in alphabetical order, without a heading.
    pub fn defaults(&self) -> String {
        let mut shown: Vec<&Flag> = self.flags.iter().filter(|f| !f.hidden).collect();
        shown.sort_by_key(|f| f.name);
        shown.into_iter().map(describe).collect()
    }
}

fn describe(flag: &Flag) -> String {
    let (argument, usage) = argument_and_usage(flag);
    let mut text = format!("  -{}", flag.name);
    if !argument.is_empty() {
        text.push(' ');
        text.push_str(argument);
    }
    // A boolean flag of one letter has its usage on the same line.
    text.push_str(if text.len() <= 4 { "\t" } else { "\n    \t" });
    text.push_str(&usage.replace('\n', "\n    \t"));
    if let Some(default) = flag.kind.shown_default() {
        text.push_str(&format!(" (default {default})"));
    }
    text.push('\n');
    text
}

/// The argument's name is the first word in back-quotes, which lose them, or that of the kind.
fn argument_and_usage(flag: &Flag) -> (&str, String) {
    let mut parts = flag.usage.splitn(3, '`');
    if let (Some(before), Some(name), Some(after)) = (parts.next(), parts.next(), parts.next()) {
        return (name, format!("{before}{name}{after}"));
    }
    (flag.kind.argument_name(), flag.usage.to_owned())
}
