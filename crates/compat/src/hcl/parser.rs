//! Tokens to a tree, for HCL's own syntax.

use super::ast::{Item, List, Literal, Node, Object, Pos, Syntax, Token, TokenKind};
use super::scanner::Scanner;
use super::{Duplicate, MAX_DEPTH, ParseError};

/// Why parsing of a part stopped.
enum Stop {
    /// The text ended where an entry or a value could begin.
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
    /// The token in `token` is still to be handed out.
    pending: bool,
    lead_comment: Option<Vec<String>>,
    line_comment: Option<Vec<String>>,
    depth: usize,
    /// Attributes written twice in one body; collected instead of refused where this is `Some`.
    duplicates: Option<Vec<Duplicate>>,
}

/// Parses HCL. Attributes that stand twice in one body are refused, or returned if `keep_duplicates`.
pub(super) fn parse(text: &[u8], keep_duplicates: bool) -> Result<(Vec<Item>, Vec<Duplicate>), ParseError> {
    let text = without_carriage_returns(text);
    let start = Token { kind: TokenKind::Illegal, pos: Pos::default(), text: String::new(), decoded: None };
    let mut parser = Parser {
        scanner: Scanner::new(&text, Syntax::Hcl),
        token: start,
        pending: false,
        lead_comment: None,
        line_comment: None,
        depth: 0,
        duplicates: keep_duplicates.then(Vec::new),
    };
    let result = parser.items(false);
    if let Some((pos, message)) = parser.scanner.take_error() {
        return Err(ParseError::at(pos, &message));
    }
    Ok((result?, parser.duplicates.unwrap_or_default()))
}

/// Windows line ends become newlines before anything is read.
fn without_carriage_returns(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for (index, byte) in text.iter().enumerate() {
        if *byte != b'\r' || text.get(index + 1) != Some(&b'\n') {
            out.push(*byte);
        }
    }
    out
}

impl Parser<'_> {
    /// The entries of an object, up to its `}` (left unread), or of the file.
    fn items(&mut self, in_object: bool) -> Result<Vec<Item>, ParseError> {
        let mut items: Vec<Item> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        loop {
            if in_object {
                let closes = self.scan() == TokenKind::RightBrace;
                self.pending = true;
                if closes {
                    return Ok(items);
                }
            }
            let item = match self.item() {
                Ok(item) => item,
                Err(Stop::Eof) => return Ok(items),
                Err(Stop::Failed(error)) => return Err(error),
            };
            if item.assign.is_some() {
                self.check_duplicate(&mut seen, &item)?;
            }
            items.push(item);
            if self.scan() != TokenKind::Comma {
                self.pending = true;
            }
        }
    }

    fn check_duplicate(
        &mut self,
        seen: &mut std::collections::HashSet<String>,
        item: &Item,
    ) -> Result<(), ParseError> {
        for key in &item.keys {
            if seen.insert(key.text.clone()) {
                continue;
            }
            match &mut self.duplicates {
                Some(found) => found.push(Duplicate { name: key.value().to_owned(), pos: key.pos }),
                None => {
                    return Err(ParseError {
                        pos: key.pos,
                        message: format!(
                            "The argument {} at {} was already set. Each argument can only be defined once",
                            crate::quote::quote(&key.text),
                            key.pos
                        ),
                    });
                }
            }
        }
        Ok(())
    }

    fn item(&mut self) -> Result<Item, Stop> {
        let keys = self.keys()?;
        let lead_comment = self.lead_comment.take().unwrap_or_default();
        let (assign, value) = match self.token.kind {
            TokenKind::Assign => {
                let assign = self.token.pos;
                (Some(assign), self.value()?)
            }
            TokenKind::LeftBrace => (None, Node::Object(self.object()?)),
            _ => {
                let names: Vec<&str> = keys.iter().map(|key| key.text.as_str()).collect();
                let message =
                    format!("key '{}' expected start of object ('{{') or assignment ('=')", names.join(" "));
                return Err(ParseError::at(self.token.pos, &message).into());
            }
        };
        // A comment between `=` and a value on a later line.
        let mut line_comment = self.line_comment.take().unwrap_or_default();
        // The comment behind the value is seen when the token after it is read.
        self.scan();
        self.pending = true;
        let same_line = keys.first().is_some_and(|key| key.pos.line == value.pos().line);
        if same_line && let Some(comment) = self.line_comment.take() {
            line_comment = comment;
        }
        Ok(Item { keys, assign, value, lead_comment, line_comment })
    }

    /// Keys and labels; afterwards the current token is the one that follows them.
    fn keys(&mut self) -> Result<Vec<Token>, Stop> {
        let mut keys: Vec<Token> = Vec::new();
        loop {
            match self.scan() {
                TokenKind::Ident | TokenKind::String => keys.push(self.token.clone()),
                TokenKind::Eof if keys.is_empty() => return Err(Stop::Eof),
                // The caller reports what is missing after the keys.
                TokenKind::Eof => return Ok(keys),
                TokenKind::RightBrace if !keys.is_empty() => {
                    self.token.kind = TokenKind::Eof;
                    return Ok(keys);
                }
                TokenKind::Assign => {
                    return match keys.len() {
                        0 => Err(self.fail("no object keys found!").into()),
                        1 => Ok(keys),
                        _ => Err(self.fail("nested object expected: LBRACE got: ASSIGN").into()),
                    };
                }
                TokenKind::LeftBrace if keys.is_empty() => {
                    return Err(self.fail("expected: IDENT | STRING got: LBRACE").into());
                }
                TokenKind::LeftBrace => return Ok(keys),
                TokenKind::Illegal => return Err(self.fail("illegal character").into()),
                other => {
                    let message = format!("expected: IDENT | STRING | ASSIGN | LBRACE got: {}", other.name());
                    return Err(self.fail(&message).into());
                }
            }
        }
    }

    fn value(&mut self) -> Result<Node, Stop> {
        match self.scan() {
            kind if is_literal(kind) => Ok(Node::Literal(self.literal())),
            TokenKind::LeftBrace => Ok(Node::Object(self.object()?)),
            TokenKind::LeftBracket => Ok(Node::List(self.list()?)),
            TokenKind::Eof => Err(Stop::Eof),
            _ => {
                let message = format!("Unknown token: {}", self.token);
                Err(self.fail(&message).into())
            }
        }
    }

    fn literal(&self) -> Literal {
        Literal { token: self.token.clone(), lead_comment: Vec::new(), line_comment: Vec::new() }
    }

    /// An object whose `{` is the current token.
    fn object(&mut self) -> Result<Object, ParseError> {
        let open = self.token.pos;
        self.enter()?;
        let items = self.items(true)?;
        let kind = self.scan();
        if kind != TokenKind::RightBrace {
            return Err(self.fail(&format!("object expected closing RBRACE got: {}", kind.name())));
        }
        self.depth -= 1;
        Ok(Object { open, items })
    }

    /// A list whose `[` is the current token.
    fn list(&mut self) -> Result<List, ParseError> {
        let mut list = List { open: self.token.pos, items: Vec::new() };
        self.enter()?;
        let mut need_comma = false;
        loop {
            let kind = self.scan();
            let pos = self.token.pos;
            if need_comma && !matches!(kind, TokenKind::Comma | TokenKind::RightBracket) {
                let name = kind.name();
                return Err(
                    self.fail(&format!("error parsing list, expected comma or list end, got: {name}"))
                );
            }
            match kind {
                kind if is_literal(kind) => {
                    let mut literal = self.literal();
                    literal.lead_comment = self.lead_comment.take().unwrap_or_default();
                    list.items.push(Node::Literal(literal));
                    need_comma = true;
                }
                TokenKind::Comma => {
                    self.scan();
                    self.pending = true;
                    if self.line_comment.is_some()
                        && let Some(Node::Literal(literal)) = list.items.last_mut()
                    {
                        literal.line_comment = self.line_comment.take().unwrap_or_default();
                    }
                    need_comma = false;
                }
                TokenKind::LeftBrace => {
                    let object = self.object().map_err(|error| {
                        let text = format!("error while trying to parse object within list: {error}");
                        ParseError::at(pos, &text)
                    })?;
                    list.items.push(Node::Object(object));
                    need_comma = true;
                }
                TokenKind::LeftBracket => {
                    let inner = self.list().map_err(|error| {
                        let text = format!("error while trying to parse list within list: {error}");
                        ParseError::at(pos, &text)
                    })?;
                    list.items.push(Node::List(inner));
                }
                TokenKind::RightBracket => {
                    self.depth -= 1;
                    return Ok(list);
                }
                other => {
                    return Err(self.fail(&format!("unexpected token while parsing list: {}", other.name())));
                }
            }
        }
    }

    fn enter(&mut self) -> Result<(), ParseError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.fail(&format!("nested more than {MAX_DEPTH} levels deep")));
        }
        Ok(())
    }

    fn fail(&self, message: &str) -> ParseError {
        ParseError::at(self.token.pos, message)
    }

    /// Moves to the next token that is no comment, and remembers the comments passed: one that ends its
    /// line belongs to what stands before it, a group directly above a token to what follows.
    fn scan(&mut self) -> TokenKind {
        if self.pending {
            self.pending = false;
            return self.token.kind;
        }
        let previous_line = self.token.pos.line;
        self.token = self.scanner.scan();
        if self.token.kind == TokenKind::Comment {
            let mut group = Vec::new();
            if self.token.pos.line == previous_line {
                let end;
                (group, end) = self.comments(0);
                if self.token.pos.line != end {
                    self.line_comment = Some(group.clone());
                }
            }
            let mut end = None;
            while self.token.kind == TokenKind::Comment {
                let line;
                (group, line) = self.comments(1);
                end = Some(line);
            }
            let adjacent = end.is_some_and(|end| end + 1 == self.token.pos.line);
            if adjacent && !matches!(self.token.kind, TokenKind::RightBrace | TokenKind::RightBracket) {
                self.lead_comment = Some(group);
            }
        }
        self.token.kind
    }

    /// A group of comments with at most `gap` line ends between them, and the line on which it ends.
    fn comments(&mut self, gap: u32) -> (Vec<String>, u32) {
        let mut group = Vec::new();
        let mut end = self.token.pos.line;
        while self.token.kind == TokenKind::Comment && self.token.pos.line <= end + gap {
            end = self.token.pos.line;
            if self.token.text.starts_with("/*") {
                let lines = self.token.text.bytes().filter(|byte| *byte == b'\n').count();
                end = end.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
            }
            let next = self.scanner.scan();
            group.push(std::mem::replace(&mut self.token, next).text);
        }
        (group, end)
    }
}

fn is_literal(kind: TokenKind) -> bool {
    matches!(
        kind,
        TokenKind::Number | TokenKind::Float | TokenKind::Bool | TokenKind::String | TokenKind::Heredoc
    )
}
