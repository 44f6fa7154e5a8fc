//! HCL version 1 (HashiCorp's configuration language before 2018), the language of SPIRE configuration
//! files and of `plugin_data`; JSON is accepted wherever HCL is.
//!
//! ```
//! use spire_compat::hcl;
//!
//! let document = hcl::parse_config(r#"server { bind_port = "8081", log_level = "DEBUG" }"#)?;
//! let mut root = document.body();
//! let mut server = root.take_block("server")?.ok_or("no server section")?;
//! assert_eq!(server.take_int("bind_port")?, Some(8081));
//! assert_eq!(server.unused()[0].name, "log_level");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The behaviour is that of `github.com/hashicorp/hcl` v1.0.1 as SPIRE uses it: the same texts are
//! accepted, the same error texts come back, and a part of a file prints as the same text. Two bounds are
//! ours: [`MAX_INPUT`] and [`MAX_DEPTH`].

pub mod ast;
mod decode;
mod json;
mod parser;
mod printer;
mod scanner;
mod unquote;

#[cfg(test)]
mod tests;

pub use ast::{Pos, Syntax};
pub use decode::{Body, DecodeError, NamedLists, UnusedKey, UnusedKeys};

use ast::{Item, Node};

/// The longest text that is parsed, in bytes.
pub const MAX_INPUT: usize = 4 << 20;

/// The deepest nesting of objects and lists.
pub const MAX_DEPTH: usize = 100;

/// A text that is neither HCL nor JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParseError {
    /// Where parsing stopped.
    pub pos: Pos,
    /// The reference's text, which mostly begins with the position.
    pub message: String,
}

impl ParseError {
    fn at(pos: Pos, message: &str) -> Self {
        Self { pos, message: format!("At {pos}: {message}") }
    }
}

/// Why a text could not be turned into values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is malformed.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// A value has the wrong type.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// An attribute that stands twice in one body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicate {
    /// The attribute's name.
    pub name: String,
    /// Where it stands the second time.
    pub pos: Pos,
}

/// A parsed text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    items: Vec<Item>,
    syntax: Syntax,
    /// Attributes that stand twice in one body, in the order of the text; the later one counts.
    pub duplicates: Vec<Duplicate>,
}

/// Parses HCL or JSON and refuses an attribute that stands twice in one body, as the reference's
/// `hcl.Parse` does.
///
/// # Errors
/// [`ParseError`] when it is neither, has such an attribute, or is longer than [`MAX_INPUT`] or nested
/// deeper than [`MAX_DEPTH`].
pub fn parse(text: impl AsRef<[u8]>) -> Result<Document, ParseError> {
    parse_text(text.as_ref(), false)
}

/// Parses HCL or JSON as SPIRE reads its files (the reference's `hcl.Decode`): an attribute that stands
/// twice in one body is no error there, the later one counts. [`Document::duplicates`] lists them.
///
/// # Errors
/// [`ParseError`] as [`parse`], but for attributes that stand twice.
pub fn parse_config(text: impl AsRef<[u8]>) -> Result<Document, ParseError> {
    parse_text(text.as_ref(), true)
}

fn parse_text(text: &[u8], keep_duplicates: bool) -> Result<Document, ParseError> {
    if text.len() > MAX_INPUT {
        let message = format!("text of {} bytes is longer than {MAX_INPUT} bytes", text.len());
        return Err(ParseError { pos: Pos::default(), message });
    }
    match syntax_of(text) {
        Syntax::Hcl => {
            let (items, duplicates) = parser::parse(text, keep_duplicates)?;
            Ok(Document { items, syntax: Syntax::Hcl, duplicates })
        }
        Syntax::Json => {
            Ok(Document { items: json::parse(text)?, syntax: Syntax::Json, duplicates: Vec::new() })
        }
    }
}

/// JSON is what begins with `{` after white space.
fn syntax_of(text: &[u8]) -> Syntax {
    let text = match std::str::from_utf8(text) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&text[..error.valid_up_to()]).unwrap_or_default(),
    };
    if text.trim_start().starts_with('{') { Syntax::Json } else { Syntax::Hcl }
}

impl Document {
    /// The values of the whole text.
    pub fn body(&self) -> Body<'_> {
        Body::new("root", &self.items, self.syntax)
    }

    /// The syntax that the text was written in.
    pub fn syntax(&self) -> Syntax {
        self.syntax
    }

    /// The tree.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// Where the value at a dotted path of keys (`server.ca_ttl`) stands; of several, the last.
    pub fn locate(&self, path: &str) -> Option<Pos> {
        let parts: Vec<&str> = path.split('.').collect();
        locate(&self.items, &parts)
    }
}

fn locate(items: &[Item], path: &[&str]) -> Option<Pos> {
    items.iter().rev().find_map(|item| {
        let matching =
            item.keys.iter().zip(path).take_while(|(key, part)| decode::fold_eq(key.value(), part)).count();
        if matching < item.keys.len().min(path.len()) {
            return None;
        }
        match (&item.value, path.get(matching..)) {
            (Node::Object(object), Some(rest)) if !rest.is_empty() => locate(&object.items, rest),
            (_, Some([])) => item.keys.get(path.len() - 1).map(|key| key.pos),
            _ => None,
        }
    })
}

/// A part of a document, kept to be decoded later or printed as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    content: Content,
    syntax: Syntax,
    path: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Items(Vec<Item>),
    Value(Node),
}

impl Fragment {
    /// The part as HCL text, as the reference prints it for plugins. Empty where there is nothing in it.
    pub fn print(&self) -> String {
        match &self.content {
            Content::Items(items) => printer::print_items(items, self.syntax),
            Content::Value(node) => printer::print_node(node, self.syntax),
        }
    }

    /// Whether nothing stands in it; the reference treats that like no data at all.
    pub fn is_empty(&self) -> bool {
        matches!(&self.content, Content::Items(items) if items.is_empty())
    }

    /// The entries, or `None` if the part is a single value.
    pub fn items(&self) -> Option<&[Item]> {
        match &self.content {
            Content::Items(items) => Some(items),
            Content::Value(_) => None,
        }
    }

    /// The part's values. Their errors say where in the file they are, and name the path from the root
    /// `root`, as if the part were a file of its own.
    ///
    /// # Errors
    /// [`DecodeError`] when the part is a single value.
    pub fn body(&self) -> Result<Body<'_>, DecodeError> {
        match &self.content {
            Content::Items(items) => Ok(Body::new("root", items, self.syntax)),
            Content::Value(node) => Err(DecodeError::new(
                "root",
                Some(node.pos()),
                format!("not an object type for struct ({})", node.type_name()),
            )),
        }
    }

    /// Where the part begins.
    pub fn pos(&self) -> Pos {
        match &self.content {
            Content::Items(items) => {
                items.first().and_then(|item| item.keys.first()).map(|key| key.pos).unwrap_or_default()
            }
            Content::Value(node) => node.pos(),
        }
    }

    /// The path of keys in the document, `root.plugins` for example.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl From<Document> for Fragment {
    fn from(document: Document) -> Self {
        Self { content: Content::Items(document.items), syntax: document.syntax, path: "root".to_owned() }
    }
}
