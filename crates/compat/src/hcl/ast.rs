//! The syntax tree that HCL and JSON configurations share.

use std::fmt;

/// A place in the source. `line` and `column` start at 1 and count characters; `offset` counts bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Pos {
    /// Byte offset from the start of the text.
    pub offset: usize,
    /// Line, from 1; 0 where there is no position.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl fmt::Display for Pos {
    /// `line:column`, or `-` where there is no position, as the reference prints positions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 { f.write_str("-") } else { write!(f, "{}:{}", self.line, self.column) }
    }
}

/// Which of the two syntaxes a text was written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// HashiCorp configuration language, version 1.
    Hcl,
    /// JSON, read as HCL's structure.
    Json,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// A character that begins no token.
    Illegal,
    /// The end of the text.
    Eof,
    /// `#`, `//` or `/* */`.
    Comment,
    /// A bare word.
    Ident,
    /// An integer: decimal, octal with a leading 0, or hexadecimal.
    Number,
    /// A number with a fraction or an exponent.
    Float,
    /// `true` or `false`.
    Bool,
    /// A quoted string. JSON's `null` is one whose text is empty.
    String,
    /// `<<EOF` … `EOF`.
    Heredoc,
    /// `[`
    LeftBracket,
    /// `]`
    RightBracket,
    /// `{`
    LeftBrace,
    /// `}`
    RightBrace,
    /// `,`
    Comma,
    /// `.`
    Period,
    /// `=`
    Assign,
    /// `:`, in JSON only.
    Colon,
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `null`, in JSON only.
    Null,
}

impl TokenKind {
    /// The name that error messages use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Illegal => "ILLEGAL",
            Self::Eof => "EOF",
            Self::Comment => "COMMENT",
            Self::Ident => "IDENT",
            Self::Number => "NUMBER",
            Self::Float => "FLOAT",
            Self::Bool => "BOOL",
            Self::String => "STRING",
            Self::Heredoc => "HEREDOC",
            Self::LeftBracket => "LBRACK",
            Self::RightBracket => "RBRACK",
            Self::LeftBrace => "LBRACE",
            Self::RightBrace => "RBRACE",
            Self::Comma => "COMMA",
            Self::Period => "PERIOD",
            Self::Assign => "ASSIGN",
            Self::Colon => "COLON",
            Self::Add => "ADD",
            Self::Sub => "SUB",
            Self::Null => "NULL",
        }
    }
}

/// A token with its text as written and, for strings, the text it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// Where it begins.
    pub pos: Pos,
    /// The source text, quotes and escapes included.
    pub text: String,
    /// The decoded text of strings and heredocs; `None` where it is `text` itself.
    pub(super) decoded: Option<String>,
}

impl Token {
    /// The text that the token stands for: unquoted, unescaped, unindented.
    pub fn value(&self) -> &str {
        self.decoded.as_deref().unwrap_or(&self.text)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.pos, self.kind.name(), self.text)
    }
}

/// One entry of an object: `key = value`, `key { … }` or `key "label" { … }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The key and its labels, at least one from a parser.
    pub keys: Vec<Token>,
    /// Where `=` stands, if it does.
    pub assign: Option<Pos>,
    /// The value.
    pub value: Node,
    /// Comment lines directly above.
    pub lead_comment: Vec<String>,
    /// Comments at the end of the same line.
    pub line_comment: Vec<String>,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A number, a boolean, a string or a heredoc.
    Literal(Literal),
    /// `[ … ]`
    List(List),
    /// `{ … }`
    Object(Object),
}

impl Node {
    /// Where the value begins.
    pub fn pos(&self) -> Pos {
        match self {
            Self::Literal(literal) => literal.token.pos,
            Self::List(list) => list.open,
            Self::Object(object) => object.open,
        }
    }

    /// The name of the node's type in the reference, which its error messages show.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Literal(_) => "*ast.LiteralType",
            Self::List(_) => "*ast.ListType",
            Self::Object(_) => "*ast.ObjectType",
        }
    }
}

/// A basic value with the comments around it (kept in lists only).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Literal {
    /// The value's token.
    pub token: Token,
    /// Comment lines directly above.
    pub lead_comment: Vec<String>,
    /// Comments at the end of the same line.
    pub line_comment: Vec<String>,
}

/// A list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// Where `[` stands.
    pub open: Pos,
    /// The elements.
    pub items: Vec<Node>,
}

/// An object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Where `{` stands.
    pub open: Pos,
    /// The entries, in file order.
    pub items: Vec<Item>,
}
