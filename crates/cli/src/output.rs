//! `-output pretty|json` (the reference's pkg/common/cliprinter).

use spire_compat::flag::{FlagSet, Parsed};
use spire_compat::quote::quote;

const USAGE: &str = "Desired output format (pretty, json); default: pretty.";

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Pretty,
    Json,
}

/// Adds the flag. It gathers its arguments, since a second one must agree with the first ([`format_of`]).
pub(crate) fn flag(flags: FlagSet) -> FlagSet {
    flags.strings("output", USAGE)
}

/// What was asked for. The error is what the flag package prints.
pub(crate) fn format_of(parsed: &Parsed) -> Result<Format, String> {
    let mut chosen = None;
    let given = ["output", "format"].map(|name| (name, parsed.strings(name)));
    for (name, text) in given.iter().flat_map(|(name, texts)| texts.iter().map(move |text| (name, text))) {
        let refused = |why: String| format!("invalid value {} for flag -{name}: {why}", quote(text));
        if let Some(before) = chosen.map(name_of).filter(|before| before != text) {
            return Err(refused(format!("the output format has already been set to {}", quote(before))));
        }
        chosen = Some(match text.to_lowercase().as_str() {
            "json" => Format::Json,
            "pretty" | "prettyprint" => Format::Pretty,
            _ => return Err(refused(format!("bad formatter flag: unknown format option: {}", quote(text)))),
        });
    }
    Ok(chosen.unwrap_or(Format::Pretty))
}

fn name_of(format: Format) -> &'static str {
    match format {
        Format::Pretty => "pretty",
        Format::Json => "json",
    }
}
