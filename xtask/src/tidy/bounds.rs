//! Checks that the bounds which SECURITY.md tells are those of the constants that it names.

use std::path::Path;

use anyhow::{Context, Result};

/// A row of a table: a bound, and where its constant is.
#[derive(Debug, PartialEq, Eq)]
struct Row<'a> {
    /// `1,024`, `64 KiB`, `20 s`.
    bound: &'a str,
    constant: &'a str,
    /// Below `crates`.
    file: &'a str,
}

/// A line for each row whose constant is not there or has another value.
pub(super) fn findings(root: &Path) -> Result<Vec<String>> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).with_context(|| format!("read {path}"));
    let text = read("SECURITY.md")?;
    let mut found = Vec::new();
    for row in text.lines().filter_map(row) {
        let Ok(code) = read(&format!("crates/{}", row.file)) else {
            found.push(format!("SECURITY.md: no file {} for {}", row.file, row.constant));
            continue;
        };
        if value(&code, row.constant).is_none_or(|value| told(row.bound) != Some(value)) {
            found.push(format!("SECURITY.md: {} of {} is not {}", row.constant, row.file, row.bound));
        }
    }
    Ok(found)
}

/// A row of four cells, ``what | bound | for each | `CONSTANT` in `file` ``.
fn row(line: &str) -> Option<Row<'_>> {
    let cells: Vec<&str> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect();
    let [_, bound, _, place] = cells.as_slice() else { return None };
    let (constant, file) = place.strip_prefix('`')?.strip_suffix('`')?.split_once("` in `")?;
    Some(Row { bound, constant, file })
}

/// The number that a text like `64 KiB` tells, in bytes, seconds or pieces.
fn told(bound: &str) -> Option<u64> {
    let (number, unit) = bound.split_once(' ').unwrap_or((bound, ""));
    let unit = match unit {
        "" | "s" | "bits" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return None,
    };
    Some(number.replace(',', "").parse::<u64>().ok()? * unit)
}

/// What the constant is in this file; `None` where it is not there, or is no simple calculation.
fn value(code: &str, constant: &str) -> Option<u64> {
    let (_, rest) = code.split_once(&format!("const {constant}: "))?;
    let (_, expression) = rest.split_once(';')?.0.split_once("= ")?;
    calculate(code, expression)
}

fn calculate(code: &str, expression: &str) -> Option<u64> {
    let text = expression.trim();
    if let Some((_, shipped)) =
        text.strip_prefix("if cfg!(test) {").and_then(|text| text.split_once("else {"))
    {
        return calculate(code, shipped.strip_suffix('}')?);
    }
    if let Some((_, seconds)) = text.split_once("Duration::from_secs(") {
        return calculate(code, seconds.strip_suffix(')')?);
    }
    for sign in ["<<", "*", "/"] {
        let Some((left, right)) = text.split_once(&format!(" {sign} ")) else { continue };
        let (left, right) = (calculate(code, left)?, calculate(code, right)?);
        return match sign {
            "<<" => left.checked_mul(1_u64.checked_shl(u32::try_from(right).ok()?)?),
            "*" => left.checked_mul(right),
            _ => left.checked_div(right),
        };
    }
    text.replace('_', "").parse().ok().or_else(|| value(code, text))
}

#[cfg(test)]
mod tests {
    //! Made-up rows and constants.
    use super::*;

    #[test]
    fn rows_name_a_constant() {
        let found = row("| calls | 64 KiB | address | `CALLS_MAX` in `net/src/a.rs` |");
        assert_eq!(found, Some(Row { bound: "64 KiB", constant: "CALLS_MAX", file: "net/src/a.rs" }));
        for line in ["| calls | many | server | |", "| a | b |", "text `A` in `b`", "|---|---|---|---|"] {
            assert_eq!(row(line), None, "{line}");
        }
    }

    #[test]
    fn bounds_are_compared_with_constants() {
        let code = "const ALL: usize = 1_024;\npub(crate) const SOME: usize = ALL / 4;\nconst SIZE: u32 = 64 << 10;\n\
                    const TIME: std::time::Duration = Duration::from_secs(2 * 60);\n\
                    const PART: usize = if cfg!(test) { 8 << 20 } else { 256 << 20 };\nconst F: usize = f();\n";
        for (constant, bound) in
            [("ALL", "1,024"), ("SOME", "256"), ("SIZE", "64 KiB"), ("TIME", "120 s"), ("PART", "256 MiB")]
        {
            assert_eq!(value(code, constant), told(bound), "{constant}");
            assert!(told(bound).is_some(), "{bound}");
        }
        for constant in ["F", "NONE"] {
            assert_eq!(value(code, constant), None);
        }
        assert_eq!(told("many"), None);
    }
}
