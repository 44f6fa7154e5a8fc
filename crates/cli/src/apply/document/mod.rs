//! Files of desired state: YAML and JSON as one stream of items, each with its position, however large the file is.

mod chars;
mod fields;
mod json;
mod yaml;

use std::fmt;
use std::io::Read;

pub(super) use fields::Fields;
use json::JsonEvents;
use yaml::YamlEvents;

/// Deepest nesting of an item; a bundle has five levels.
const DEPTH_MAX: usize = 16;

/// Values of one item, and octets of all their texts: far above any entry or bundle.
const VALUES_MAX: usize = 100_000;
const TEXT_MAX: usize = 4 << 20;

/// Where something stands in a file; both numbers start at one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) line: u32,
    pub(super) column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// What is wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) at: Position,
    pub(super) text: String,
}

impl Flaw {
    pub(super) fn new(at: Position, text: impl Into<String>) -> Self {
        Self { at, text: text.into() }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.text)
    }
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    Yaml,
    /// JSON, also several documents behind each other (JSON Lines).
    Json,
}

impl Syntax {
    /// By the end of a file's name.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        match name.rsplit_once('.')?.1.to_ascii_lowercase().as_str() {
            "yaml" | "yml" => Some(Self::Yaml),
            "json" | "jsonl" | "ndjson" => Some(Self::Json),
            _ => None,
        }
    }

    /// By the first character that is no space.
    pub(super) fn of_text(text: &[u8]) -> Self {
        match text.iter().find(|c| !c.is_ascii_whitespace()) {
            Some(b'{' | b'[') => Self::Json,
            _ => Self::Yaml,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Scalar {
        text: String,
        quoted: bool,
    },
    ListStart,
    ListEnd,
    MapStart,
    MapEnd,
    /// Of the file, not of a document in it.
    End,
}

trait Events {
    /// The next event and where it starts. After an error there is none.
    fn next(&mut self) -> Result<(Event, Position), Flaw>;
}

/// A value of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) value: NodeValue,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NodeValue {
    Scalar { text: String, quoted: bool },
    List(Vec<Node>),
    Map(Vec<(String, Position, Node)>),
}

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Entry,
    Relationship,
}

/// The items of a file in their order.
pub(super) struct Items<'r> {
    events: Box<dyn Events + 'r>,
    place: Place,
    /// Names of the members of the document that were seen.
    seen: Vec<String>,
}

#[derive(Clone, Copy)]
enum Place {
    Outside,
    Document,
    List(Kind),
}

impl<'r> Items<'r> {
    pub(super) fn new(input: impl Read + 'r, syntax: Syntax) -> Self {
        let events: Box<dyn Events + 'r> = match syntax {
            Syntax::Yaml => Box::new(YamlEvents::new(input)),
            Syntax::Json => Box::new(JsonEvents::new(input)),
        };
        Self { events, place: Place::Outside, seen: Vec::new() }
    }

    /// The next item; after an error there is none.
    pub(super) fn next(&mut self) -> Result<Option<(Kind, Node)>, Flaw> {
        loop {
            let (event, at) = self.events.next()?;
            match (self.place, event) {
                (Place::Outside, Event::End) => return Ok(None),
                (Place::Outside, Event::MapStart) => {
                    self.seen.clear();
                    self.place = Place::Document;
                }
                (Place::Outside, Event::Scalar { text, quoted: false }) if is_null(&text) => {}
                (Place::Outside, _) => {
                    return Err(Flaw::new(
                        at,
                        "a document is a mapping with \"entries\" or \"federation_relationships\"",
                    ));
                }
                (Place::Document, Event::MapEnd) => self.place = Place::Outside,
                (Place::Document, Event::Scalar { text, .. }) => self.member(text, at)?,
                (Place::Document, _) => return Err(Flaw::new(at, "a key that is no text")),
                (Place::List(_), Event::ListEnd) => self.place = Place::Document,
                (Place::List(kind), first) => {
                    let mut left = Left { values: VALUES_MAX, text: TEXT_MAX };
                    return Ok(Some((kind, self.node(first, at, 0, &mut left)?)));
                }
            }
        }
    }

    /// A member of a document.
    fn member(&mut self, name: String, at: Position) -> Result<(), Flaw> {
        if self.seen.contains(&name) {
            return Err(Flaw::new(at, format!("the key {name:?} stands here a second time")));
        }
        let kind = match name.as_str() {
            "entries" => Some(Kind::Entry),
            // The second is what `spire-server federation create -data` takes.
            "federation_relationships" | "federationRelationships" => Some(Kind::Relationship),
            // Listings of `spire-server` end with it.
            "next_page_token" => None,
            _ => return Err(Flaw::new(at, format!("unknown key {name:?}"))),
        };
        self.seen.push(name);
        let (event, at) = self.events.next()?;
        match (kind, event) {
            (Some(kind), Event::ListStart) => self.place = Place::List(kind),
            (Some(_), Event::Scalar { text, quoted: false }) if is_null(&text) => {}
            (None, Event::Scalar { .. }) => {}
            (Some(_), _) => return Err(Flaw::new(at, "a list is due here")),
            (None, _) => return Err(Flaw::new(at, "a text is due here")),
        }
        Ok(())
    }

    fn node(&mut self, first: Event, at: Position, depth: usize, left: &mut Left) -> Result<Node, Flaw> {
        if depth > DEPTH_MAX {
            return Err(Flaw::new(at, "nested too deeply"));
        }
        left.take(&first, at)?;
        let value = match first {
            Event::Scalar { text, quoted } => NodeValue::Scalar { text, quoted },
            Event::ListStart => {
                let mut items = Vec::new();
                loop {
                    match self.events.next()? {
                        (Event::ListEnd, _) => break NodeValue::List(items),
                        (first, at) => items.push(self.node(first, at, depth + 1, left)?),
                    }
                }
            }
            Event::MapStart => {
                let mut members: Vec<(String, Position, Node)> = Vec::new();
                loop {
                    let (name, at) = match self.events.next()? {
                        (Event::MapEnd, _) => break NodeValue::Map(members),
                        (Event::Scalar { text, .. }, at) => (text, at),
                        (_, at) => return Err(Flaw::new(at, "a key that is no text")),
                    };
                    if members.iter().any(|(known, ..)| *known == name) {
                        return Err(Flaw::new(at, format!("the key {name:?} stands here a second time")));
                    }
                    let (first, value_at) = self.events.next()?;
                    members.push((name, at, self.node(first, value_at, depth + 1, left)?));
                }
            }
            Event::ListEnd | Event::MapEnd | Event::End => {
                return Err(Flaw::new(at, "the file ends within an item"));
            }
        };
        Ok(Node { at, value })
    }
}

/// What one item may still have.
struct Left {
    values: usize,
    text: usize,
}

impl Left {
    fn take(&mut self, event: &Event, at: Position) -> Result<(), Flaw> {
        let text = if let Event::Scalar { text, .. } = event { text.len() } else { 0 };
        match (self.values.checked_sub(1), self.text.checked_sub(text)) {
            (Some(values), Some(text)) => {
                *self = Self { values, text };
                Ok(())
            }
            _ => Err(Flaw::new(at, "the item is too large")),
        }
    }
}

/// Null of YAML's core schema, which JSON's is too.
fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

#[cfg(test)]
mod tests;
