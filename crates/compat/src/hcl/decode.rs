//! Values out of a tree, with the reference decoder's rules.
//!
//! - Keys match in any case. Blocks of one name merge, and of attributes the last counts.
//! - Lists of strings grow with each appearance.
//! - `key "label" { … }` is `key { label { … } }`.
//! - Integers may be written as strings and integers may stand where a string is wanted; booleans are only
//!   `true` and `false`.

use std::cell::RefCell;
use std::rc::Rc;

use super::ast::{Item, Literal, Node, Pos, Syntax, Token, TokenKind};
use super::{Content, Fragment};
use crate::quote::quote;

/// Lists of strings by name, in file order.
pub type NamedLists = Vec<(String, Vec<String>)>;

/// A value that is not of the type wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    /// The reference's text.
    pub message: String,
    /// The path of keys, from `root`.
    pub path: String,
    /// Where the value stands.
    pub pos: Option<Pos>,
}

impl DecodeError {
    /// `At line:column: path: what`.
    pub(super) fn new(path: &str, pos: Option<Pos>, what: String) -> Self {
        let message = format!("At {}: {path}: {what}", pos.unwrap_or_default());
        Self { message, path: path.to_owned(), pos }
    }
}

/// A key that nothing asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedKey {
    /// The key as written.
    pub name: String,
    /// Every place where it stands.
    pub positions: Vec<Pos>,
}

/// An item with the keys before `keys` already matched.
#[derive(Clone, Copy)]
struct Entry<'a> {
    keys: &'a [Token],
    item: &'a Item,
}

/// What stands for a key: the entries below it, or a value.
enum Source<'a> {
    Entries(Vec<Entry<'a>>),
    Value(&'a Node),
}

impl<'a> Source<'a> {
    fn of(node: &'a Node) -> Self {
        match node {
            Node::Object(object) => Self::Entries(entries(&object.items)),
            other => Self::Value(other),
        }
    }

    fn pos(&self) -> Option<Pos> {
        match self {
            Self::Entries(entries) => entries.first().and_then(|entry| entry.keys.first()).map(|key| key.pos),
            Self::Value(node) => Some(node.pos()),
        }
    }

    fn type_name(&self) -> &'static str {
        match self {
            Self::Entries(_) => "*ast.ObjectList",
            Self::Value(node) => node.type_name(),
        }
    }

    fn error(&self, path: &str, what: &str) -> DecodeError {
        DecodeError::new(path, self.pos(), format!("{what} {}", self.type_name()))
    }

    fn literal(&self) -> Option<&'a Token> {
        match self {
            Self::Value(Node::Literal(Literal { token, .. })) => Some(token),
            _ => None,
        }
    }

    fn entries_or(self, path: &str, what: &str) -> Result<Vec<Entry<'a>>, DecodeError> {
        match self {
            Self::Entries(entries) => Ok(entries),
            Self::Value(node) => {
                Err(DecodeError::new(path, Some(node.pos()), format!("{what} ({})", node.type_name())))
            }
        }
    }
}

fn entries(items: &[Item]) -> Vec<Entry<'_>> {
    items.iter().map(|item| Entry { keys: &item.keys, item }).collect()
}

/// Whether two keys are equal in any case.
pub(super) fn fold_eq(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
        || (!(a.is_ascii() && b.is_ascii())
            && a.chars().flat_map(char::to_lowercase).eq(b.chars().flat_map(char::to_lowercase)))
}

/// The values of an object. Each `take_` method takes one key out; [`Body::unused`] tells what nothing asked
/// for.
pub struct Body<'a> {
    path: String,
    syntax: Syntax,
    /// One part for each appearance of the block, in file order.
    parts: Vec<Vec<Entry<'a>>>,
    taken: Vec<String>,
    /// Where blocks that are done with tell what nothing asked for.
    unused: Option<UnusedKeys>,
}

/// The keys that nothing asked for in a body and the blocks in it ([`Body::collect_unused`]).
#[derive(Debug, Clone, Default)]
pub struct UnusedKeys(Rc<RefCell<Vec<UnusedKey>>>);

impl UnusedKeys {
    /// What the blocks that were dropped so far have told, in the order in which they stand. Names have the keys above
    /// them: `clusters.main.tokn`.
    pub fn take(&self) -> Vec<UnusedKey> {
        let mut keys = self.0.take();
        keys.sort_by_key(|key| key.positions.first().map(|pos| (pos.line, pos.column)));
        keys
    }
}

impl Drop for Body<'_> {
    fn drop(&mut self) {
        let Some(unused) = self.unused.take() else { return };
        let above = self.path.split_once('.').map_or(String::new(), |(_, path)| format!("{path}."));
        let named = |key: UnusedKey| UnusedKey { name: format!("{above}{}", key.name), ..key };
        unused.0.borrow_mut().extend(self.unused().into_iter().map(named));
    }
}

impl<'a> Body<'a> {
    pub(super) fn new(path: &str, items: &'a [Item], syntax: Syntax) -> Self {
        Self::of(path.to_owned(), syntax, vec![entries(items)])
    }

    fn of(path: String, syntax: Syntax, parts: Vec<Vec<Entry<'a>>>) -> Self {
        Self { path, syntax, parts, taken: Vec::new(), unused: None }
    }

    /// A body within this one.
    fn inner(&self, path: String, parts: Vec<Vec<Entry<'a>>>) -> Self {
        let mut body = Self::of(path, self.syntax, parts);
        body.unused.clone_from(&self.unused);
        body
    }

    /// From now on this body, and each block that is taken from it, tells when it is dropped which of its keys nothing
    /// asked for.
    pub fn collect_unused(&mut self) -> UnusedKeys {
        self.unused.get_or_insert_default().clone()
    }

    /// The path of keys from `root`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where the first entry stands; `None` if there is none.
    pub fn pos(&self) -> Option<Pos> {
        self.parts.iter().flatten().find_map(|entry| entry.keys.first()).map(|key| key.pos)
    }

    /// Whether there is no entry at all.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(Vec::is_empty)
    }

    /// Where a key stands; of several, the last. Does not take it.
    pub fn locate(&self, key: &str) -> Option<Pos> {
        let mut keys = self.parts.iter().flatten().filter_map(|entry| entry.keys.first());
        keys.rfind(|token| fold_eq(token.value(), key)).map(|token| token.pos)
    }

    fn child(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }

    /// Everything that stands for `key`, in the order in which the reference decodes it: per part first
    /// what has a label, then the rest.
    fn take(&mut self, key: &str) -> Vec<Source<'a>> {
        let mut sources = Vec::new();
        for part in &self.parts {
            let matching = part.iter().filter_map(|entry| match entry.keys.split_first() {
                Some((first, rest)) if fold_eq(first.value(), key) => Some(Entry { keys: rest, ..*entry }),
                _ => None,
            });
            let (labelled, plain): (Vec<_>, Vec<_>) = matching.partition(|entry| !entry.keys.is_empty());
            if !labelled.is_empty() {
                sources.push(Source::Entries(labelled));
            }
            sources.extend(plain.iter().map(|entry| Source::of(&entry.item.value)));
        }
        if !sources.is_empty() {
            self.taken.push(key.to_owned());
        }
        sources
    }

    fn take_last<T>(
        &mut self,
        key: &str,
        decode: impl Fn(&str, &Source<'a>) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        let path = self.child(key);
        let mut value = None;
        for source in self.take(key) {
            value = Some(decode(&path, &source)?);
        }
        Ok(value)
    }

    /// A string, or an integer as text.
    ///
    /// # Errors
    /// [`DecodeError`] when it is neither.
    pub fn take_string(&mut self, key: &str) -> Result<Option<String>, DecodeError> {
        self.take_last(key, string)
    }

    /// An integer, also one written as a string: decimal, or with Go's prefixes `0x`, `0o`, `0`, `0b`.
    ///
    /// # Errors
    /// [`DecodeError`] when it is neither, or does not fit 64 bits (with the text of Go's
    /// `strconv.ParseInt`).
    pub fn take_int(&mut self, key: &str) -> Result<Option<i64>, DecodeError> {
        self.take_last(key, int)
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// [`DecodeError`] when it is neither, also for such a text in quotes.
    pub fn take_bool(&mut self, key: &str) -> Result<Option<bool>, DecodeError> {
        self.take_last(key, |path, source| match source.literal() {
            Some(token) if token.kind == TokenKind::Bool => Ok(token.text == "true"),
            _ => Err(source.error(path, "unknown type")),
        })
    }

    /// A list of strings. Several appearances are joined.
    ///
    /// # Errors
    /// [`DecodeError`] when it is no list, or one of its elements is neither a string nor an integer.
    pub fn take_string_list(&mut self, key: &str) -> Result<Option<Vec<String>>, DecodeError> {
        let path = self.child(key);
        let sources = self.take(key);
        if sources.is_empty() {
            return Ok(None);
        }
        let mut out = Vec::new();
        for source in sources {
            match source {
                Source::Value(Node::List(list)) => {
                    for (index, node) in list.items.iter().enumerate() {
                        out.push(string(&format!("{path}[{index}]"), &Source::Value(node))?);
                    }
                }
                Source::Entries(entries) => {
                    if let Some(entry) = entries.first() {
                        let pos = entry.keys.first().map(|key| key.pos);
                        let what = "unknown type for string *ast.ObjectItem".to_owned();
                        return Err(DecodeError::new(&format!("{path}[0]"), pos, what));
                    }
                }
                Source::Value(node) => return Err(unknown_slice(&path, node)),
            }
        }
        Ok(Some(out))
    }

    /// A block, all its appearances merged.
    ///
    /// # Errors
    /// [`DecodeError`] when an appearance is a value.
    pub fn take_block(&mut self, key: &str) -> Result<Option<Body<'a>>, DecodeError> {
        let path = self.child(key);
        let sources = self.take(key);
        if sources.is_empty() {
            return Ok(None);
        }
        let mut parts = Vec::new();
        for source in sources {
            parts.push(source.entries_or(&path, "not an object type for struct")?);
        }
        Ok(Some(self.inner(path, parts)))
    }

    /// Blocks by label: `key "a" { … }`, or `key { a { … } }`, or `key = { a = { … } }`. One element a
    /// label, in the order in which the labels appear; blocks of one label are merged.
    ///
    /// # Errors
    /// [`DecodeError`] when an appearance, or what a label stands before, is no block.
    pub fn take_labelled(&mut self, key: &str) -> Result<Vec<(String, Body<'a>)>, DecodeError> {
        let path = self.child(key);
        let mut out = Vec::new();
        for source in self.take(key) {
            let what = "not an object type for map";
            for (label, value) in map_entries(source.entries_or(&path, what)?) {
                let path = format!("{path}.{label}");
                let part = value.entries_or(&path, "not an object type for struct")?;
                merge(&mut out, label, path, self, part);
            }
        }
        Ok(out)
    }

    /// Blocks by two labels, in the reference's terms `[]map[string]map[string]struct`: the element's index,
    /// both labels and the block, in file order.
    ///
    /// # Errors
    /// [`DecodeError`] when what the first or the second label stands before is no block.
    pub fn twice_labelled(&self) -> Result<Vec<(usize, String, String, Body<'a>)>, DecodeError> {
        let mut out = Vec::new();
        for (index, entry) in self.parts.iter().flatten().enumerate() {
            let path = format!("{}[{index}]", self.path);
            for (first, value) in map_entries(vec![*entry]) {
                let path = format!("{path}.{first}");
                let mut inner = Vec::new();
                for (second, value) in map_entries(value.entries_or(&path, "not an object type for map")?) {
                    let path = format!("{path}.{second}");
                    let part = value.entries_or(&path, "not an object type for struct")?;
                    merge(&mut inner, second, path, self, part);
                }
                out.extend(inner.into_iter().map(|(second, body)| (index, first.clone(), second, body)));
            }
        }
        Ok(out)
    }

    /// A list of objects, `key = [{ … }, { … }]`. As in the reference a block `key { a = 1, b = 2 }` is a
    /// list too: one object for each of its entries.
    ///
    /// # Errors
    /// [`DecodeError`] when it is neither a list nor a block, or one of its elements is no object.
    pub fn take_block_list(&mut self, key: &str) -> Result<Vec<Body<'a>>, DecodeError> {
        let path = self.child(key);
        let mut out = Vec::new();
        for source in self.take(key) {
            match source {
                Source::Value(Node::List(list)) => {
                    for (index, node) in list.items.iter().enumerate() {
                        let path = format!("{path}[{index}]");
                        let part = Source::of(node).entries_or(&path, "not an object type for struct")?;
                        out.push(self.inner(path, vec![part]));
                    }
                }
                Source::Entries(entries) => {
                    for (index, entry) in entries.into_iter().enumerate() {
                        let path = format!("{path}[{index}]");
                        let part = match (&entry.item.value, entry.keys) {
                            // JSON's flattening made a label out of the object's only entry.
                            (_, [_, _]) => vec![Entry { keys: &entry.keys[1..], ..entry }],
                            (Node::Literal(_), _) => vec![entry],
                            (value, _) => {
                                Source::of(value).entries_or(&path, "not an object type for struct")?
                            }
                        };
                        out.push(self.inner(path, vec![part]));
                    }
                }
                Source::Value(node) => return Err(unknown_slice(&path, node)),
            }
        }
        Ok(out)
    }

    /// A map of lists of strings. A name that appears twice has the strings of its last appearance, and one that is
    /// not a list is refused.
    ///
    /// # Errors
    /// [`DecodeError`] when it is no block, one of its values no list, or an element of that neither a
    /// string nor an integer.
    pub fn take_string_list_map(&mut self, key: &str) -> Result<Option<NamedLists>, DecodeError> {
        let path = self.child(key);
        let sources = self.take(key);
        if sources.is_empty() {
            return Ok(None);
        }
        let mut out = NamedLists::new();
        for source in sources {
            for (name, value) in map_entries(source.entries_or(&path, "not an object type for map")?) {
                let path = format!("{path}.{name}");
                let Source::Value(Node::List(list)) = value else {
                    return Err(value.error(&path, "unknown slice type"));
                };
                let mut strings = Vec::with_capacity(list.items.len());
                for (index, node) in list.items.iter().enumerate() {
                    strings.push(string(&format!("{path}[{index}]"), &Source::Value(node))?);
                }
                match out.iter_mut().find(|(known, _)| *known == name) {
                    Some(entry) => entry.1 = strings,
                    None => out.push((name, strings)),
                }
            }
        }
        Ok(Some(out))
    }

    /// A part kept for later. As in the reference the first appearance counts and later ones are ignored;
    /// the second value says how many were.
    pub fn take_fragment(&mut self, key: &str) -> (Option<Fragment>, usize) {
        let path = self.child(key);
        let mut sources = self.take(key).into_iter();
        let fragment = sources.next().map(|source| {
            let content = match source {
                Source::Entries(entries) => Content::Items(
                    entries
                        .into_iter()
                        .map(|entry| Item { keys: entry.keys.to_vec(), ..entry.item.clone() })
                        .collect(),
                ),
                Source::Value(node) => Content::Value(node.clone()),
            };
            Fragment { content, syntax: self.syntax, path }
        });
        (fragment, sources.count())
    }

    /// The keys that nothing asked for, sorted by name. As in the reference, HCL keys in quotes are not
    /// looked at, nor entries with labels that are not the first of their body.
    pub fn unused(&self) -> Vec<UnusedKey> {
        let mut unused = std::collections::BTreeMap::<&str, Vec<Pos>>::new();
        for part in &self.parts {
            for (index, entry) in part.iter().enumerate() {
                if index > 0 && entry.keys.len() > 1 {
                    continue;
                }
                let keys = match self.syntax {
                    Syntax::Hcl => entry.keys,
                    // The reference also counts labels that it made itself, of the first entry only; that
                    // refuses correct files, so we do not.
                    Syntax::Json => entry.keys.get(..1).unwrap_or_default(),
                };
                for key in keys {
                    let bare = key.kind == TokenKind::Ident || self.syntax == Syntax::Json;
                    if bare && !self.taken.iter().any(|taken| fold_eq(taken, key.value())) {
                        unused.entry(key.value()).or_default().push(key.pos);
                    }
                }
            }
        }
        unused.into_iter().map(|(name, positions)| UnusedKey { name: name.to_owned(), positions }).collect()
    }
}

fn merge<'a>(
    out: &mut Vec<(String, Body<'a>)>,
    label: String,
    path: String,
    outer: &Body<'a>,
    part: Vec<Entry<'a>>,
) {
    match out.iter_mut().find(|(known, _)| *known == label) {
        Some((_, body)) => body.parts.push(part),
        None => out.push((label, outer.inner(path, vec![part]))),
    }
}

/// The entries of a map: the name and what stands for it. Entries with further labels are gathered by name.
fn map_entries(entries: Vec<Entry<'_>>) -> Vec<(String, Source<'_>)> {
    let mut done: Vec<&str> = Vec::new();
    let mut out = Vec::new();
    for entry in &entries {
        let Some((first, rest)) = entry.keys.split_first() else { continue };
        if done.contains(&first.value()) {
            continue;
        }
        if rest.is_empty() {
            out.push((first.value().to_owned(), Source::of(&entry.item.value)));
            continue;
        }
        done.push(first.value());
        let gathered = entries.iter().filter_map(|other| match other.keys.split_first() {
            Some((key, rest)) if fold_eq(key.value(), first.value()) => Some(Entry { keys: rest, ..*other }),
            _ => None,
        });
        out.push((first.value().to_owned(), Source::Entries(gathered.collect())));
    }
    out
}

fn unknown_slice(path: &str, node: &Node) -> DecodeError {
    let pos = node.pos();
    let message = format!("At {pos}: unknown slice type: {}", node.type_name());
    DecodeError { message, path: path.to_owned(), pos: Some(pos) }
}

fn string(path: &str, source: &Source<'_>) -> Result<String, DecodeError> {
    match source.literal() {
        Some(token) if matches!(token.kind, TokenKind::Number | TokenKind::String | TokenKind::Heredoc) => {
            Ok(token.value().to_owned())
        }
        _ => Err(source.error(path, "unknown type for string")),
    }
}

fn int(path: &str, source: &Source<'_>) -> Result<i64, DecodeError> {
    match source.literal() {
        Some(token) if matches!(token.kind, TokenKind::Number | TokenKind::String) => {
            parse_int(token.value()).map_err(|reason| DecodeError {
                message: format!("strconv.ParseInt: parsing {}: {reason}", quote(token.value())),
                path: path.to_owned(),
                pos: Some(token.pos),
            })
        }
        _ => Err(source.error(path, "unknown type")),
    }
}

/// Go's `strconv.ParseInt(text, 0, 64)`: the base comes from the prefix, and underscores may stand between
/// digits.
fn parse_int(text: &str) -> Result<i64, &'static str> {
    const SYNTAX: &str = "invalid syntax";
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let (base, body, prefixed) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..], true),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..], true),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..], true),
        [b'0', _, ..] => (8, &digits[1..], true),
        _ => (10, digits, false),
    };
    if body.is_empty() {
        return Err(SYNTAX);
    }
    // An underscore must stand between digits, or between the prefix and the first digit.
    let mut after_digit = prefixed;
    let mut value: Option<i128> = Some(0);
    for c in body.chars() {
        if c == '_' {
            if !after_digit {
                return Err(SYNTAX);
            }
            after_digit = false;
            continue;
        }
        let digit = c.to_digit(base).ok_or(SYNTAX)?;
        after_digit = true;
        value = value
            .and_then(|value| value.checked_mul(i128::from(base)))
            .and_then(|value| value.checked_add(i128::from(digit)));
    }
    if !after_digit {
        return Err(SYNTAX);
    }
    value
        .map(|value| if negative { -value } else { value })
        .and_then(|value| i64::try_from(value).ok())
        .ok_or("value out of range")
}
