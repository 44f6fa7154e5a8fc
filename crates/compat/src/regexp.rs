//! Imitates Go's `regexp` (RE2) on the `regex` crate, which matches alike and in linear time.
//!
//! The syntax differs in places: Go's classes `\d`, `\s`, `\w` and the boundary `\b` are ASCII, `\Q…\E` quotes, and
//! what Rust adds (set operations, `x` and `R` flags, other boundaries) is literal or an error in Go.

use std::fmt::Write as _;
use std::ops::Range;

/// How large a compiled expression may get, in bytes: Rust's default, in which a few Unicode classes fit. Go bounds
/// repetitions at 1,000 and is about as strict.
const SIZE_MAX: usize = 10 * 1024 * 1024;

/// The longest expression.
const PATTERN_MAX: usize = 16 * 1024;

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Regexp(regex::Regex);

/// Why a text is no regular expression, as Go begins it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("error parsing regexp: {0}")]
pub struct RegexpError(String);

impl Regexp {
    /// Compiles an expression in Go's syntax.
    ///
    /// # Errors
    /// [`RegexpError`] where Go has one, and where the expression is too large.
    pub fn new(pattern: &str) -> Result<Self, RegexpError> {
        if pattern.len() > PATTERN_MAX {
            return Err(RegexpError("expression too large".to_owned()));
        }
        let translated = Translation { rest: pattern, out: String::new() }.run().map_err(RegexpError)?;
        let built =
            regex::RegexBuilder::new(&translated).size_limit(SIZE_MAX).octal(true).nest_limit(250).build();
        built.map(Self).map_err(|error| {
            // The last line of Rust's message says what is wrong; the others show where.
            let text = error.to_string();
            let line = text.lines().last().unwrap_or_default();
            RegexpError(line.trim_start_matches("error: ").to_owned())
        })
    }

    /// Whether it matches somewhere in the text.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// Where it matches, one after the other.
    pub fn matches<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Range<usize>> + 'a {
        self.0.find_iter(text).map(|found| found.range())
    }

    /// The text with all matches replaced (`ReplaceAllString`: `$1` and `${name}` stand for groups); nothing where
    /// that is longer than `max` bytes.
    pub fn replace_all(&self, text: &str, replacement: &str, max: usize) -> Option<String> {
        let mut out = String::new();
        let mut last = 0;
        for captures in self.0.captures_iter(text) {
            let found = captures.get(0)?;
            out.push_str(&text[last..found.start()]);
            captures.expand(replacement, &mut out);
            last = found.end();
            if out.len() > max {
                return None;
            }
        }
        out.push_str(&text[last..]);
        (out.len() <= max).then_some(out)
    }
}

/// `text` as an expression that matches it alone.
pub fn quote_meta(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// What stands before: Go takes one repetition, and a question mark that makes it lazy.
#[derive(Clone, Copy)]
enum Repeated {
    Not,
    Once,
    Lazily,
}

struct Translation<'a> {
    rest: &'a str,
    out: String,
}

impl Translation<'_> {
    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next()?;
        self.rest = chars.as_str();
        Some(c)
    }

    fn literal(&mut self, c: char) {
        // Not of all punctuation: `\<` is a boundary in Rust.
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            self.out.push('\\');
        }
        self.out.push(c);
    }

    fn run(mut self) -> Result<String, String> {
        let mut repeated = Repeated::Not;
        while let Some(c) = self.next() {
            repeated = match (c, repeated) {
                ('*' | '+' | '?', Repeated::Not) => Repeated::Once,
                ('{', Repeated::Not) if is_repetition(self.rest) => Repeated::Once,
                ('?', Repeated::Once) => Repeated::Lazily,
                ('*' | '+' | '?', _) => return Err(format!("invalid nested repetition operator: `{c}`")),
                ('{', _) if is_repetition(self.rest) => {
                    return Err("invalid nested repetition operator".to_owned());
                }
                _ => Repeated::Not,
            };
            match c {
                '\\' => self.escape(false)?,
                '[' => self.class()?,
                '(' if self.rest.starts_with('?') => self.group()?,
                '{' if !is_repetition(self.rest) => self.literal('{'),
                '}' => self.out.push_str("\\}"),
                '{' => {
                    let (count, after) = self.rest.split_once('}').unwrap_or((self.rest, ""));
                    if count.split(',').any(|number| number.parse::<u32>().is_ok_and(|number| number > 1000))
                    {
                        return Err(format!("invalid repeat count: `{{{count}}}`"));
                    }
                    let _ = write!(self.out, "{{{count}}}");
                    self.rest = after;
                }
                // Rust has these as literals too, but says so of no others.
                ']' => self.out.push_str("\\]"),
                c => self.out.push(c),
            }
        }
        Ok(self.out)
    }

    /// Behind a backslash.
    fn escape(&mut self, in_class: bool) -> Result<(), String> {
        let Some(c) = self.next() else {
            return Err("trailing backslash at end of expression: ``".to_owned());
        };
        let open = if in_class { "" } else { "[" };
        let close = if in_class { "" } else { "]" };
        match c {
            'd' => self.out.push_str(&format!("{open}0-9{close}")),
            's' => self.out.push_str(&format!("{open}\\t\\n\\x0c\\r\\x20{close}")),
            'w' => self.out.push_str(&format!("{open}0-9A-Za-z_{close}")),
            'D' => self.out.push_str("[^0-9]"),
            'S' => self.out.push_str("[^\\t\\n\\x0c\\r\\x20]"),
            'W' => self.out.push_str("[^0-9A-Za-z_]"),
            'b' | 'B' if !in_class => {
                let _ = write!(self.out, "(?-u:\\{c})");
            }
            'A' | 'z' if !in_class => self.out.extend(['\\', c]),
            'Q' if !in_class => {
                let (quoted, after) = self.rest.split_once("\\E").unwrap_or((self.rest, ""));
                self.rest = after;
                quoted.chars().for_each(|c| self.literal(c));
            }
            'a' => self.out.push_str("\\x07"),
            'f' => self.out.push_str("\\x0c"),
            'v' => self.out.push_str("\\x0b"),
            't' | 'n' | 'r' => self.out.extend(['\\', c]),
            'x' if self.rest.starts_with('{') => {
                let (digits, after) =
                    self.rest[1..].split_once('}').ok_or("invalid escape sequence: `\\x{`")?;
                let _ = write!(self.out, "\\x{{{digits}}}");
                self.rest = after;
            }
            'x' => self.out.push_str("\\x"),
            'p' | 'P' => self.property(c == 'P')?,
            // An octal number; a single digit but zero is a backreference, which there is not.
            '0' => self.octal(c),
            '1'..='7' if self.rest.starts_with(|c: char| ('0'..='7').contains(&c)) => self.octal(c),
            c if c.is_ascii_punctuation() => self.literal(c),
            c if !c.is_ascii() => self.out.push(c),
            c => return Err(format!("invalid escape sequence: `\\{c}`")),
        }
        Ok(())
    }

    fn octal(&mut self, first: char) {
        let mut value = first.to_digit(8).unwrap_or(0);
        for _ in 0..2 {
            let Some(digit) = self.rest.chars().next().and_then(|c| c.to_digit(8)) else { break };
            value = value * 8 + digit;
            self.next();
        }
        let _ = write!(self.out, "\\x{{{value:x}}}");
    }

    /// `\pN`, `\p{Greek}`, `\p{^Greek}`
    fn property(&mut self, negated: bool) -> Result<(), String> {
        let invalid = || "invalid character class range".to_owned();
        let name = if let Some(inner) = self.rest.strip_prefix('{') {
            let (name, after) = inner.split_once('}').ok_or_else(invalid)?;
            self.rest = after;
            name.to_owned()
        } else {
            self.next().ok_or_else(invalid)?.to_string()
        };
        let (name, negated) = match name.strip_prefix('^') {
            Some(name) => (name, !negated),
            None => (name.as_str(), negated),
        };
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(invalid());
        }
        let _ = write!(self.out, "\\{}{{{name}}}", if negated { 'P' } else { 'p' });
        Ok(())
    }

    /// Behind `[`.
    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if let Some(after) = self.rest.strip_prefix('^') {
            self.rest = after;
            self.out.push('^');
        }
        let mut first = true;
        loop {
            let c = self.next().ok_or("missing closing ]")?;
            match c {
                ']' if !first => break,
                '\\' => self.escape(true)?,
                '[' if self.rest.starts_with(':') => match self.rest.find(":]") {
                    Some(end) => {
                        let _ = write!(self.out, "[{}", &self.rest[..end + 2]);
                        self.rest = &self.rest[end + 2..];
                    }
                    None => self.literal('['),
                },
                '-' => self.out.push_str(if self.is_range(first) { "-" } else { "\\-" }),
                c => self.literal(c),
            }
            first = false;
        }
        self.out.push(']');
        Ok(())
    }

    /// Whether a dash in a class stands between two characters.
    fn is_range(&self, first: bool) -> bool {
        !first && !self.rest.starts_with(']')
    }

    /// Behind `(`, at `?`: flags that Go has, or a name.
    fn group(&mut self) -> Result<(), String> {
        self.out.push('(');
        let inner = &self.rest[1..];
        if let Some(named) = inner.strip_prefix("P<").or_else(|| inner.strip_prefix('<')) {
            let (name, after) = named.split_once('>').ok_or("invalid named capture")?;
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return Err(format!("invalid named capture: `(?P<{name}>`"));
            }
            let _ = write!(self.out, "?P<{name}>");
            self.rest = after;
            return Ok(());
        }
        let end = inner.find([':', ')']).ok_or("missing closing )")?;
        if !inner[..end].chars().all(|c| "imsU-".contains(c)) {
            return Err(format!("invalid or unsupported Perl syntax: `(?{}`", &inner[..end.min(1)]));
        }
        let _ = write!(self.out, "?{}", &inner[..=end]);
        self.rest = &inner[end + 1..];
        Ok(())
    }
}

/// Whether what follows a brace is a count: `2}`, `2,}` or `2,3}`.
fn is_repetition(rest: &str) -> bool {
    let Some((count, _)) = rest.split_once('}') else { return false };
    let (from, to) = count.split_once(',').unwrap_or((count, ""));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number(from) && (to.is_empty() || is_number(to))
}

#[cfg(test)]
mod tests {
    use super::{Regexp, quote_meta};

    #[test]
    fn what_go_refuses_is_refused() {
        let refused = [
            "(",
            ")",
            "[",
            "a**",
            "a{1001}",
            "(?x)a",
            "(?=a)",
            "(?P<a-b>c)",
            r"\1",
            r"\Z",
            r"\p{Nope}",
            r"\",
            r"[\b]",
            "[z-a]",
            "*",
            "(?",
            r"\C",
        ];
        for pattern in refused {
            assert!(Regexp::new(pattern).is_err(), "{pattern}");
        }
        let error = Regexp::new("a(").unwrap_err().to_string();
        assert!(error.starts_with("error parsing regexp: "), "{error}");
    }

    #[test]
    fn what_go_matches_matches() {
        let matching = [
            (r"^\p{Greek}\pL\P{L}$", "αa1"),
            (r"^\pN\PN$", "1a"),
            (r"^\p{^Greek}$", "a"),
            (r"^[^\d]$", "x"),
            (r"^[\D]$", "x"),
            ("^[[:^alpha:]]$", "1"),
            (r"^\Q[a\E]$", "[a]"),
            ("^(?U)a+", "aaa"),
            ("^a{0}b$", "b"),
            (r"^\012$", "\n"),
            // Not a kind of boundary, as in Rust: braces that count nothing are text.
            (r"\b{start}", "a{start}"),
        ];
        for (pattern, text) in matching {
            assert!(Regexp::new(pattern).unwrap().is_match(text), "{pattern}");
        }
        let hostile = "a".repeat(10_000);
        assert!(!Regexp::new("^(a+)+$").unwrap().is_match(&(hostile + "!")));
        assert!(Regexp::new(&format!("^{}$", quote_meta(r"a.b*[c]\d"))).unwrap().is_match(r"a.b*[c]\d"));
    }
}
