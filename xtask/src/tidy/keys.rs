//! Checks that each key of a configuration file that a program reads stands on a page of `docs`, and that a page names
//! no other key.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

/// A page of `docs` and the code that reads what it describes.
struct Page {
    path: &'static str,
    /// Rust files, or folders of them.
    readers: &'static [&'static str],
    /// Whether its tables have keys and nothing else, so that a key which nobody reads is a mistake.
    only_keys: bool,
}

const PAGES: [Page; 4] = [
    Page { path: "docs/server.md", readers: &["crates/server/src/config"], only_keys: true },
    Page { path: "docs/agent.md", readers: &["crates/agent/src/config"], only_keys: true },
    Page { path: "docs/telemetry.md", readers: &[SECTIONS], only_keys: false },
    Page {
        path: "docs/plugins/external.md",
        readers: &["crates/compat/src/config/plugins.rs"],
        only_keys: false,
    },
];

/// Reads the sections that server and agent share. Their names stand on every page, their keys on one.
const SECTIONS: &str = "crates/compat/src/config/sections.rs";

/// A line for each key that is read and not on its page, and for each that is on a page and not read.
pub(super) fn findings(root: &Path, rust_files: &[String]) -> Result<Vec<String>> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).with_context(|| format!("read {path}"));
    let shared = keys_read(&read(SECTIONS)?);
    let mut found = Vec::new();
    for page in &PAGES {
        let mut keys = BTreeSet::new();
        for file in rust_files.iter().filter(|file| is_reader(page, file)) {
            keys.extend(keys_read(&read(file)?));
        }
        let named = keys_named(&read(page.path)?);
        found.extend(keys.difference(&named).map(|key| format!("{}: no row for the key {key}", page.path)));
        if page.only_keys {
            let unread = named.iter().filter(|key| !keys.contains(*key) && !shared.contains(*key));
            found.extend(unread.map(|key| format!("{}: nothing reads the key {key}", page.path)));
        }
    }
    Ok(found)
}

fn is_reader(page: &Page, file: &str) -> bool {
    let below =
        |reader: &str| file.strip_prefix(reader).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    page.readers.iter().any(|reader| below(reader)) && !file.ends_with("/tests.rs")
}

/// The keys that the text of a Rust file takes out of a configuration: those of `.take_…("key")`, of a closure
/// `|key: &str|` that calls it, and of loops over lists of keys.
fn keys_read(text: &str) -> BTreeSet<String> {
    let mut keys: BTreeSet<String> = text
        .match_indices(".take_")
        .filter_map(|(at, _)| {
            let call = &text[at + ".take_".len()..];
            let argument = call.trim_start_matches(|c: char| c.is_ascii_lowercase() || c == '_');
            literal(argument.strip_prefix('(')?)
        })
        .collect();
    for (at, closure) in text.match_indices("|key: &str| ") {
        let body = text[at + closure.len()..].lines().next().unwrap_or_default();
        let Some(name) = body.contains(".take_").then(|| assigned(&text[..at])).flatten() else { continue };
        let call = format!("{name}(");
        let whole = |at: usize| !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let calls = text.match_indices(&call).filter(|(at, _)| whole(*at));
        keys.extend(calls.filter_map(|(at, _)| literal(&text[at + call.len()..])));
    }
    for (start, every) in [("for key in [", true), ("for (key, ", false)] {
        for (at, _) in text.match_indices(start) {
            let Some((head, list)) = text[at..].split_once('[') else { continue };
            let Some((list, _)) = list.split_once(']').filter(|_| head.ends_with(" in ")) else { continue };
            let opening = if every { "\"" } else { "(\"" };
            let texts = list.split('"').skip(1).step_by(2);
            keys.extend(
                texts.filter(|key| list.contains(&format!("{opening}{key}\""))).map(ToOwned::to_owned),
            );
        }
    }
    keys
}

/// The text that a string literal at the start has.
fn literal(text: &str) -> Option<String> {
    let (key, _) = text.trim_start().strip_prefix('"')?.split_once('"')?;
    Some(key.to_owned())
}

/// The name of what is assigned at the end of the text: `let mut name = `.
fn assigned(text: &str) -> Option<&str> {
    text.trim_end().strip_suffix('=')?.trim_end().rsplit([' ', '\n']).next()
}

/// What the headings and the first cells of the tables of a page name in backticks; of `a.b` both parts.
fn keys_named(page: &str) -> BTreeSet<String> {
    let cells = page.lines().filter_map(|line| {
        if line.starts_with('#') { Some(line) } else { line.strip_prefix("| ")?.split(" |").next() }
    });
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .flat_map(|name| name.split('.'))
        .map(ToOwned::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    //! Made-up readers and pages.
    use super::*;

    fn set(keys: &[&str]) -> BTreeSet<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    #[test]
    fn every_way_to_read_a_key_is_known() {
        for (text, expected) in [
            (r#"body.take_string("a")?"#, &["a"][..]),
            ("body\n    .take_string_list(\"a\")?;\nroot.take_block(\"b\")?", &["a", "b"]),
            (
                "let mut text =\n    |key: &str| body.take_string(key);\nlet (x, y) = (text(\"a\")?, text(\"b\")?);",
                &["a", "b"],
            ),
            ("let fail = |key: &str| file.error(key);\nfail(\"a\")", &[]),
            ("for key in [\"a\", \"b\"] {\n    body.take_bool(key)?;\n}", &["a", "b"]),
            (
                "for (key, reason) in [\n    (\"a\", \"gone, see b\"),\n    (\"b\", \"gone\"),\n] {}",
                &["a", "b"],
            ),
            ("for (key, value) in map { list[\"a\"] = (\"b\", value); }", &[]),
            ("take(\"a\"); untake_b(\"b\")", &[]),
        ] {
            assert_eq!(keys_read(text), set(expected), "{text}");
        }
    }

    #[test]
    fn headings_and_first_cells_name_keys() {
        let page = "# Of `a`\n`b` in a text\n| key | meaning |\n|---|---|\n| `c`, `d` in `e.f` | not `g` |\n";
        assert_eq!(keys_named(page), set(&["a", "c", "d", "e", "f"]));
    }

    #[test]
    fn readers_are_files_or_folders_without_tests() {
        let is_server = |file| is_reader(&PAGES[0], file);
        assert!(is_server("crates/server/src/config/raw.rs"));
        assert!(!is_server("crates/server/src/config/tests.rs"));
        assert!(!is_server("crates/server/src/config_of_others.rs"));
        assert!(is_reader(&PAGES[2], SECTIONS));
    }
}
