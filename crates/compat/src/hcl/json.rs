//! JSON to the same tree, with the reference's tolerance: what follows a value that ends early is ignored,
//! lists lose their booleans, and nested objects become labels (`{"a": {"b": {…}}}` is `a "b" {…}`).

use super::ast::{Item, List, Literal, Node, Object, Pos, Syntax, Token, TokenKind};
use super::scanner::Scanner;
use super::{MAX_DEPTH, ParseError};

enum Stop {
    Eof,
    Failed(ParseError),
}

impl From<ParseError> for Stop {
    fn from(error: ParseError) -> Self {
        Self::Failed(error)
    }
}

struct Parser<'a> {
    scanner: Scanner<'a>,
    token: Token,
    depth: usize,
}

/// Parses a JSON object.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Item>, ParseError> {
    let start = Token { kind: TokenKind::Illegal, pos: Pos::default(), text: String::new(), decoded: None };
    let mut parser = Parser { scanner: Scanner::new(text, Syntax::Json), token: start, depth: 0 };
    let result = parser.root();
    if let Some((pos, message)) = parser.scanner.take_error() {
        return Err(ParseError { pos, message: format!("{pos}: {message}") });
    }
    let mut items = match result {
        Ok(object) => object.items,
        Err(Stop::Failed(error)) => return Err(error),
        Err(Stop::Eof) => return Err(parser.fail("EOF token found".to_owned())),
    };
    flatten(&mut items);
    Ok(items)
}

impl Parser<'_> {
    fn scan(&mut self) -> TokenKind {
        self.token = self.scanner.scan();
        self.token.kind
    }

    fn fail(&self, message: String) -> ParseError {
        ParseError { pos: self.token.pos, message }
    }

    fn root(&mut self) -> Result<Object, Stop> {
        match self.scan() {
            TokenKind::LeftBrace => self.object(),
            TokenKind::Eof => Err(Stop::Eof),
            _ => Err(self.fail(format!("Expected object, got unknown token: {}", self.token)).into()),
        }
    }

    fn object(&mut self) -> Result<Object, Stop> {
        let open = self.token.pos;
        self.enter()?;
        let mut items = Vec::new();
        loop {
            match self.item() {
                Ok(item) => items.push(item),
                Err(Stop::Eof) => break,
                // A `}` ends the object even where something else was due, after a last comma for example.
                Err(Stop::Failed(_)) if self.token.kind == TokenKind::RightBrace => break,
                Err(Stop::Failed(error)) => return Err(error.into()),
            }
            if self.scan() != TokenKind::Comma {
                break;
            }
        }
        self.depth -= 1;
        Ok(Object { open, items })
    }

    fn item(&mut self) -> Result<Item, Stop> {
        let mut keys = Vec::new();
        loop {
            match self.scan() {
                TokenKind::Eof => return Err(Stop::Eof),
                TokenKind::String => keys.push(self.token.clone()),
                TokenKind::Colon if !keys.is_empty() => break,
                TokenKind::Illegal => return Err(self.fail("illegal".to_owned()).into()),
                other => return Err(self.fail(format!("expected: STRING got: {}", other.name())).into()),
            }
        }
        let assign = Some(self.token.pos);
        let value = match self.scan() {
            TokenKind::LeftBrace => Node::Object(self.object()?),
            TokenKind::LeftBracket => Node::List(self.list()?),
            TokenKind::Eof => return Err(Stop::Eof),
            kind if is_literal(kind) => self.literal(),
            _ => {
                let message = format!("Expected object value, got unknown token: {}", self.token);
                return Err(self.fail(message).into());
            }
        };
        Ok(Item { keys, assign, value, lead_comment: Vec::new(), line_comment: Vec::new() })
    }

    fn literal(&self) -> Node {
        let mut token = self.token.clone();
        if token.kind == TokenKind::Null {
            // `null` is an empty string, and prints as nothing.
            token = Token { kind: TokenKind::String, text: String::new(), decoded: None, ..token };
        }
        Node::Literal(Literal { token, lead_comment: Vec::new(), line_comment: Vec::new() })
    }

    fn list(&mut self) -> Result<List, Stop> {
        let mut list = List { open: self.token.pos, items: Vec::new() };
        loop {
            match self.scan() {
                TokenKind::Number | TokenKind::Float | TokenKind::String => list.items.push(self.literal()),
                TokenKind::Comma | TokenKind::Bool | TokenKind::LeftBracket => {}
                TokenKind::LeftBrace => list.items.push(Node::Object(self.object()?)),
                TokenKind::RightBracket => return Ok(list),
                other => {
                    let message = format!("unexpected token while parsing list: {}", other.name());
                    return Err(self.fail(message).into());
                }
            }
        }
    }

    fn enter(&mut self) -> Result<(), ParseError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.fail(format!("nested more than {MAX_DEPTH} levels deep")));
        }
        Ok(())
    }
}

fn is_literal(kind: TokenKind) -> bool {
    matches!(
        kind,
        TokenKind::Number | TokenKind::Float | TokenKind::Bool | TokenKind::String | TokenKind::Null
    )
}

/// Turns objects that hold only objects into labels, and lists of objects into repeated entries.
fn flatten(items: &mut Vec<Item>) {
    let mut out = Vec::with_capacity(items.len());
    for item in items.drain(..) {
        flatten_item(item, &mut out);
    }
    for item in &mut out {
        flatten_node(&mut item.value);
    }
    *items = out;
}

fn flatten_node(node: &mut Node) {
    match node {
        Node::Object(object) => flatten(&mut object.items),
        Node::List(list) => list.items.iter_mut().for_each(flatten_node),
        Node::Literal(_) => {}
    }
}

fn flatten_item(item: Item, out: &mut Vec<Item>) {
    match item.value {
        Node::Object(object)
            if !object.items.is_empty()
                && object.items.iter().all(|inner| matches!(inner.value, Node::Object(_))) =>
        {
            for inner in object.items {
                let keys = item.keys.iter().cloned().chain(inner.keys).collect();
                flatten_item(Item { keys, assign: item.assign, ..inner }, out);
            }
        }
        Node::List(list)
            if !list.items.is_empty() && list.items.iter().all(|inner| matches!(inner, Node::Object(_))) =>
        {
            for value in list.items {
                let (lead_comment, line_comment) = (Vec::new(), Vec::new());
                flatten_item(
                    Item { keys: item.keys.clone(), assign: item.assign, value, lead_comment, line_comment },
                    out,
                );
            }
        }
        value => out.push(Item { value, ..item }),
    }
}
