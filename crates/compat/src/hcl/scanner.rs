//! Characters to tokens, for both syntaxes.
//!
//! The scanner goes on after an error and the last error is the one reported, because that is the
//! position and text that users of HCL1 know.

use super::ast::{Pos, Syntax, Token, TokenKind};
use super::unquote;

/// Stands for the end of the text, and for a NUL character, which HCL treats alike.
const END: char = '\0';

/// What [`printer`](super::printer) uses as a mark; HCL reserves it.
pub(super) const RESERVED: char = '\u{E123}';

#[derive(Clone, Copy)]
struct Cursor {
    offset: usize,
    line: u32,
    column: u32,
    /// The width in bytes of the character read last, 0 at the end of the text.
    width: usize,
    /// The column of the newline that ended the line before.
    newline_column: u32,
}

pub(super) struct Scanner<'a> {
    source: &'a [u8],
    syntax: Syntax,
    at: Cursor,
    error: Option<(Pos, String)>,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(source: &'a [u8], syntax: Syntax) -> Self {
        let at = Cursor { offset: 0, line: 1, column: 0, width: 0, newline_column: 0 };
        Self { source, syntax, at, error: None }
    }

    /// The last error, if there was one.
    pub(super) fn take_error(&mut self) -> Option<(Pos, String)> {
        self.error.take()
    }

    fn peek(&self) -> char {
        decode(&self.source[self.at.offset..]).map_or(END, |(c, _)| c)
    }

    fn next(&mut self) -> char {
        let Some((c, width)) = decode(&self.source[self.at.offset..]) else {
            self.at.column += 1;
            self.at.width = 0;
            return END;
        };
        self.at.offset += width;
        self.at.width = width;
        self.at.column += 1;
        if c == char::REPLACEMENT_CHARACTER && width == 1 {
            self.fail("illegal UTF-8 encoding");
            return c;
        }
        if c == '\n' {
            self.at.line += 1;
            self.at.newline_column = self.at.column;
            self.at.column = 0;
        }
        if self.syntax == Syntax::Hcl {
            if c == '\0' {
                self.fail("unexpected null character (0x00)");
                return END;
            }
            if c == RESERVED {
                self.fail("unicode code point U+E123 reserved for internal use");
                return char::REPLACEMENT_CHARACTER;
            }
        }
        c
    }

    /// Reads while `wanted` holds and leaves the first other character unread; returns how many were read.
    fn skip_while(&mut self, wanted: impl Fn(char) -> bool) -> usize {
        let mut count = 0;
        loop {
            let before = self.at;
            let c = self.next();
            if c == END || !wanted(c) {
                if c != END {
                    self.at = before;
                }
                return count;
            }
            count += 1;
        }
    }

    /// The position of the character read last.
    fn last(&self) -> Pos {
        let offset = self.at.offset - self.at.width;
        if self.at.column > 0 {
            Pos { offset, line: self.at.line, column: self.at.column }
        } else {
            Pos { offset, line: self.at.line - 1, column: self.at.newline_column }
        }
    }

    fn fail(&mut self, message: &str) {
        self.error = Some((self.last(), message.to_owned()));
    }

    pub(super) fn scan(&mut self) -> Token {
        let mut c = self.next();
        while matches!(c, ' ' | '\t' | '\n' | '\r') {
            c = self.next();
        }
        let pos = self.last();
        let kind = match self.syntax {
            Syntax::Hcl => self.hcl_token(c),
            Syntax::Json => self.json_token(c),
        };
        let text = String::from_utf8_lossy(&self.source[pos.offset..self.at.offset]).into_owned();
        let kind = match (kind, text.as_str()) {
            (TokenKind::Ident, "true" | "false") => TokenKind::Bool,
            (TokenKind::Ident, "null") if self.syntax == Syntax::Json => TokenKind::Null,
            (kind, _) => kind,
        };
        if kind == TokenKind::Ident && self.syntax == Syntax::Json {
            self.fail("illegal char");
        }
        let decoded = match kind {
            TokenKind::String => self.decoded(&pos, unquote::unquote(&text, self.syntax == Syntax::Hcl)),
            TokenKind::Heredoc => self.decoded(&pos, unquote::heredoc(&text)),
            _ => None,
        };
        Token { kind, pos, text, decoded }
    }

    /// A literal that cannot be decoded is an error, unless a more precise one is already known.
    fn decoded(&mut self, pos: &Pos, value: Option<String>) -> Option<String> {
        if value.is_none() && self.error.is_none() {
            self.error = Some((*pos, "invalid string literal".to_owned()));
        }
        value
    }

    fn hcl_token(&mut self, c: char) -> TokenKind {
        match c {
            END => TokenKind::Eof,
            c if is_letter(c) => {
                self.skip_while(|c| is_letter(c) || is_digit(c) || c == '-' || c == '.');
                TokenKind::Ident
            }
            '0'..='9' => self.hcl_number(c),
            '"' => self.string(),
            '#' | '/' => self.comment(c),
            '.' => self.period(),
            '<' => self.heredoc(),
            '=' => TokenKind::Assign,
            '+' => TokenKind::Add,
            '-' if self.peek().is_ascii_digit() => {
                let first = self.next();
                self.hcl_number(first)
            }
            '-' => TokenKind::Sub,
            c => self.punctuation(c, "illegal char"),
        }
    }

    fn json_token(&mut self, c: char) -> TokenKind {
        match c {
            END if self.at.width == 0 => TokenKind::Eof,
            c if is_letter(c) => {
                self.skip_while(|c| is_letter(c) || is_digit(c) || c == '-');
                TokenKind::Ident
            }
            '0'..='9' => self.json_number(c),
            '"' => self.string(),
            '.' => self.period(),
            ':' => TokenKind::Colon,
            '-' if self.peek().is_ascii_digit() => {
                let first = self.next();
                self.json_number(first)
            }
            '-' => {
                self.fail("illegal char");
                TokenKind::Illegal
            }
            c => {
                let message = format!("illegal char: {c}");
                self.punctuation(c, &message)
            }
        }
    }

    fn punctuation(&mut self, c: char, otherwise: &str) -> TokenKind {
        match c {
            '[' => TokenKind::LeftBracket,
            ']' => TokenKind::RightBracket,
            '{' => TokenKind::LeftBrace,
            '}' => TokenKind::RightBrace,
            ',' => TokenKind::Comma,
            _ => {
                self.fail(otherwise);
                TokenKind::Illegal
            }
        }
    }

    fn period(&mut self) -> TokenKind {
        if !self.peek().is_ascii_digit() {
            return TokenKind::Period;
        }
        self.skip_while(|c| c.is_ascii_digit());
        if matches!(self.peek(), 'e' | 'E') {
            self.next();
            self.exponent();
        }
        TokenKind::Float
    }

    /// The exponent's sign and digits, after `e`.
    fn exponent(&mut self) {
        if matches!(self.peek(), '+' | '-') {
            self.next();
        }
        self.skip_while(|c| c.is_ascii_digit());
    }

    /// The fraction or exponent of a number whose integer part has been read.
    fn number_tail(&mut self) -> TokenKind {
        match self.peek() {
            'e' | 'E' => {
                self.next();
                self.exponent();
                TokenKind::Float
            }
            '.' => {
                self.next();
                self.skip_while(|c| c.is_ascii_digit());
                if matches!(self.peek(), 'e' | 'E') {
                    self.next();
                    self.exponent();
                }
                TokenKind::Float
            }
            _ => TokenKind::Number,
        }
    }

    fn hcl_number(&mut self, first: char) -> TokenKind {
        if first == '0' && matches!(self.peek(), 'x' | 'X') {
            self.next();
            if self.skip_while(|c| c.is_ascii_hexdigit()) == 0 {
                self.fail_at_next("illegal hexadecimal number");
            }
            return TokenKind::Number;
        }
        let start = self.at.offset;
        self.skip_while(|c| c.is_ascii_digit());
        // The first digit after the 0 is not looked at: "08" passes here and fails as a number later.
        let digits = &self.source[start..self.at.offset];
        let octal_error = first == '0' && digits.iter().skip(1).any(|digit| *digit >= b'8');
        let kind = self.number_tail();
        if kind == TokenKind::Number && octal_error {
            self.fail_at_next("illegal octal number");
        }
        kind
    }

    fn json_number(&mut self, first: char) -> TokenKind {
        let start = self.at.offset;
        self.skip_while(|c| c.is_ascii_digit());
        let more = self.at.offset != start;
        let kind = self.number_tail();
        if kind == TokenKind::Number && first == '0' && more {
            self.fail("numbers cannot start with 0");
        }
        kind
    }

    /// An error at the character after the last; the end of the text may already have been read as one.
    fn fail_at_next(&mut self, message: &str) {
        let before = self.at;
        if self.at.width > 0 {
            self.next();
        }
        self.fail(message);
        self.at = before;
    }

    fn comment(&mut self, first: char) -> TokenKind {
        if first == '/' && self.peek() == '*' {
            self.next();
            let mut previous = self.next();
            loop {
                if previous == END {
                    self.fail("comment not terminated");
                    break;
                }
                let c = self.next();
                if previous == '*' && c == '/' {
                    break;
                }
                previous = c;
            }
            return TokenKind::Comment;
        }
        if first == '/' && self.peek() != '/' {
            self.fail("expected '/' for comment");
            return TokenKind::Comment;
        }
        self.skip_while(|c| c != '\n');
        TokenKind::Comment
    }

    /// A quoted string whose opening quote has been read. Inside `${ }` HCL ignores quotes and newlines;
    /// the JSON form does not.
    fn string(&mut self) -> TokenKind {
        let hcl = self.syntax == Syntax::Hcl;
        let mut braces = 0usize;
        loop {
            let c = self.next();
            let outside = braces == 0 || !hcl;
            if (c == '\n' && outside) || c == END {
                self.fail("literal not terminated");
                break;
            }
            if c == '"' && outside {
                break;
            }
            if braces == 0 && c == '$' && self.peek() == '{' {
                braces = 1;
                self.next();
            } else if braces > 0 && c == '{' {
                braces += 1;
            }
            if braces > 0 && c == '}' {
                braces -= 1;
            }
            if c == '\\' {
                self.escape();
            }
        }
        TokenKind::String
    }

    fn escape(&mut self) {
        let (base, wanted, read) = match self.next() {
            'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\' | '"' => return,
            '0'..='7' => (8, 3, 1),
            'x' => (16, 2, 0),
            'u' => (16, 4, 0),
            'U' => (16, 8, 0),
            _ => {
                self.fail("illegal char escape");
                return;
            }
        };
        for _ in read..wanted {
            if !self.peek().is_digit(base) {
                self.fail_at_next("illegal char escape");
                return;
            }
            self.next();
        }
    }

    fn heredoc(&mut self) -> TokenKind {
        if self.next() != '<' {
            self.fail("heredoc expected second '<', didn't see it");
            return TokenKind::Heredoc;
        }
        let anchor_start = self.at.offset;
        if self.peek() == '-' {
            self.next();
        }
        self.skip_while(|c| is_letter(c) || is_digit(c));
        let mut c = self.next();
        if c == END {
            self.fail("heredoc not terminated");
            return TokenKind::Heredoc;
        }
        if c == '\r' && self.peek() == '\n' {
            c = self.next();
        }
        if c != '\n' {
            self.fail("invalid characters in heredoc anchor");
            return TokenKind::Heredoc;
        }
        let source = self.source;
        let anchor = &source[anchor_start..self.at.offset - 1];
        let word = anchor.strip_prefix(b"-").unwrap_or(anchor);
        if word.is_empty() {
            self.fail("zero-length heredoc anchor");
            return TokenKind::Heredoc;
        }
        let mut line_start = self.at.offset;
        loop {
            match self.next() {
                '\n' => {
                    let line = &source[line_start..self.at.offset - 1];
                    // The length counts the dash of `<<-` too, so its anchor cannot close unindented.
                    if line.len() >= anchor.len() && closes_heredoc(line, word) {
                        return TokenKind::Heredoc;
                    }
                    line_start = self.at.offset;
                }
                END => {
                    self.fail("heredoc not terminated");
                    return TokenKind::Heredoc;
                }
                _ => {}
            }
        }
    }
}

/// White space, the anchor, then nothing but carriage returns.
fn closes_heredoc(line: &[u8], word: &[u8]) -> bool {
    let start =
        line.iter().position(|b| !matches!(b, b' ' | b'\t' | b'\r' | 0x0b | 0x0c)).unwrap_or(line.len());
    line[start..].strip_prefix(word).is_some_and(|rest| rest.iter().all(|b| *b == b'\r'))
}

/// The first character and its width; an invalid byte is the replacement character of width 1.
fn decode(bytes: &[u8]) -> Option<(char, usize)> {
    let first = *bytes.first()?;
    let width = match first {
        0x00..=0x7f => return Some((char::from(first), 1)),
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return Some((char::REPLACEMENT_CHARACTER, 1)),
    };
    let c = bytes.get(..width).and_then(|b| std::str::from_utf8(b).ok()).and_then(|s| s.chars().next());
    Some(c.map_or((char::REPLACEMENT_CHARACTER, 1), |c| (c, width)))
}

/// The reference asks Unicode for letters (L); "alphabetic" adds letter-like marks and numbers, so a few
/// exotic keys are accepted that it refuses.
fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || (!c.is_ascii() && c.is_alphabetic())
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit() || (!c.is_ascii() && c.is_numeric())
}
