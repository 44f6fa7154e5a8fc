//! Checks on the text of one Rust file: module docs, size, unfinished code, purity of `crates/core`.

/// A file longer than this is to be split.
const MAX_LINES: usize = 800;
/// What must not stand in code. Split, so that this file does not find itself.
const UNFINISHED: &[&str] =
    &[concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!("), concat!("#[", "ignore")];
/// What reads the world. In `crates/core` it is an argument, or stands outside. Of `std::net` the
/// addresses are plain values; only what opens or resolves is listed.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::env",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "ToSocketAddrs",
    "SystemTime::now",
    "Instant::now",
    "OsRng",
    "SystemRandom",
    "tokio",
];
/// The exceptions to it, by file.
const IMPURE_EXCEPT: &[(&str, &str)] = &[
    // The crypto library draws its own entropy to make keys and to salt signatures, whatever it is given.
    ("crates/core/src/pki/local_key.rs", "SystemRandom"),
];

/// A line `path:line: what` for each finding. `path` is below the workspace, with forward slashes.
pub(super) fn findings(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !text.lines().next().is_some_and(|line| line.starts_with("//!")) {
        found.push(format!("{path}:1: the file does not start with a //! line"));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        found.push(format!("{path}: {lines} lines, more than {MAX_LINES}"));
    }
    let pure = path.starts_with("crates/core/src/") && !is_test_file(path);
    let test_lines = if pure { test_items(text) } else { Vec::new() };
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        for word in UNFINISHED.iter().filter(|word| line.contains(**word)) {
            found.push(format!("{path}:{}: unfinished or switched off: {word}", at + 1));
        }
        if pure && !test_lines[at] {
            for word in IMPURE.iter().filter(|word| has_word(line, word) && !excepted(path, word)) {
                found.push(format!("{path}:{}: core reads no clock and does no IO: {word}", at + 1));
            }
        }
    }
    found
}

fn excepted(path: &str, word: &str) -> bool {
    IMPURE_EXCEPT.contains(&(path, word))
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// Whether `word` stands in `line` and is not a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(inside)
            && !line[at + word.len()..].chars().next().is_some_and(inside)
    })
}

/// For each line, whether it belongs to an item under `#[cfg(test)]`. Items are found by their indent,
/// which rustfmt keeps: one ends at its line with `;`, or at the closing brace below its attribute.
fn test_items(text: &str) -> Vec<bool> {
    let mut inside: Option<usize> = None;
    text.lines()
        .map(|line| {
            let indent = line.len() - line.trim_start().len();
            let code = line.trim();
            match inside {
                None if code.starts_with("#[cfg(test)]") => {
                    inside = Some(indent);
                    true
                }
                None => false,
                Some(start) => {
                    let closes = code.starts_with('}')
                        || code.ends_with(';')
                        || code.ends_with("{}")
                        || code.ends_with('}');
                    if indent == start && closes && !code.starts_with('#') {
                        inside = None;
                    }
                    true
                }
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    //! Made-up files, each with the findings that it must give.
    use super::*;

    const CORE: &str = "crates/core/src/pki/mod.rs";

    fn check(path: &str, text: &str, expected: &[&str]) {
        assert_eq!(findings(path, text), expected, "{text}");
    }

    #[test]
    fn files_start_with_their_purpose() {
        check("xtask/src/a.rs", "//! Reads.\n", &[]);
        check("xtask/src/a.rs", "use x;\n", &["xtask/src/a.rs:1: the file does not start with a //! line"]);
        check("xtask/src/a.rs", "", &["xtask/src/a.rs:1: the file does not start with a //! line"]);
    }

    #[test]
    fn long_files_are_found() {
        let fits = "//! Long.\n".to_owned() + &"\n".repeat(MAX_LINES - 1);
        check("xtask/src/a.rs", &fits, &[]);
        check("xtask/src/a.rs", &(fits + "\n"), &["xtask/src/a.rs: 801 lines, more than 800"]);
    }

    #[test]
    fn unfinished_code_is_found_outside_comments() {
        for word in UNFINISHED {
            let finding = format!("xtask/src/a.rs:2: unfinished or switched off: {word}");
            check("xtask/src/a.rs", &format!("//! A.\n    {word})\n"), &[&finding]);
            check("xtask/src/a.rs", &format!("//! A.\n    // {word})\n"), &[]);
        }
    }

    #[test]
    fn core_is_pure() {
        for word in IMPURE {
            let finding = format!("{CORE}:2: core reads no clock and does no IO: {word}");
            check(CORE, &format!("//! A.\nuse {word};\n"), &[&finding]);
            check("crates/net/src/lib.rs", &format!("//! A.\nuse {word};\n"), &[]);
            check("crates/core/src/pki/tests.rs", &format!("//! A.\nuse {word};\n"), &[]);
        }
        check(
            CORE,
            "//! No tokio.\n/// Neither std::fs.\nlet my_tokio = std::net::Ipv4Addr::LOCALHOST;\n",
            &[],
        );
    }

    #[test]
    fn core_is_pure_before_and_after_its_tests() {
        let text = "//! A.\n#[cfg(test)]\nmod tests;\nuse std::fs;\n#[cfg(test)]\nmod more {\n    use std::fs;\n\n    \
                    fn f() {}\n}\nuse std::env;\n";
        check(
            CORE,
            text,
            &[
                "crates/core/src/pki/mod.rs:4: core reads no clock and does no IO: std::fs",
                "crates/core/src/pki/mod.rs:11: core reads no clock and does no IO: std::env",
            ],
        );
    }
}
