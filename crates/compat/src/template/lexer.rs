//! Cuts a template into items (text/template/parse/lex.go).

use super::ast::Pos;
use crate::quote::quote;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Text,
    Left,
    Right,
    Space,
    Assign,
    Declare,
    Pipe,
    Comma,
    OtherChar,
    LeftParen,
    RightParen,
    Bool,
    Character,
    Number,
    Str,
    Field,
    Variable,
    Identifier,
    Keyword,
    Dot,
    Nil,
    Eof,
    Error,
}

#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) token: Token,
    pub(super) pos: Pos,
    pub(super) line: usize,
    /// The text of it; of an error what it says.
    pub(super) text: String,
}

impl Item {
    /// How Go prints it in errors.
    pub(super) fn show(&self) -> String {
        match self.token {
            Token::Eof => "EOF".to_owned(),
            Token::Error => self.text.clone(),
            Token::Keyword | Token::Nil | Token::Dot => format!("<{}>", self.text),
            _ if self.text.len() > 10 => {
                let end = self.text.char_indices().nth(10).map_or(self.text.len(), |(index, _)| index);
                format!("{}...", quote(&self.text[..end]))
            }
            _ => quote(&self.text),
        }
    }

    pub(super) fn is_keyword(&self, word: &str) -> bool {
        self.token == Token::Keyword && self.text == word
    }
}

const KEYWORDS: [&str; 10] =
    ["block", "break", "continue", "define", "else", "end", "if", "range", "template", "with"];

/// All items of a template; the last is [`Token::Eof`] or [`Token::Error`].
pub(super) fn lex(text: &str) -> Vec<Item> {
    let mut lexer = Lexer { text, pos: 0, start: 0, line: 1, paren_depth: 0, items: Vec::new() };
    if let Err(reason) = lexer.run() {
        let (pos, line) = (lexer.start, lexer.line);
        lexer.items.push(Item { token: Token::Error, pos, line, text: reason });
    }
    lexer.items
}

struct Lexer<'a> {
    text: &'a str,
    pos: Pos,
    /// Where the item begins that is being read.
    start: Pos,
    /// The line of `start`.
    line: usize,
    paren_depth: usize,
    items: Vec<Item>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.pos..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.pos += c.len_utf8();
        Some(c)
    }

    fn emit(&mut self, token: Token) {
        let text = self.text[self.start..self.pos].to_owned();
        self.items.push(Item { token, pos: self.start, line: self.line, text });
        self.ignore();
    }

    fn ignore(&mut self) {
        self.line += self.text[self.start..self.pos].matches('\n').count();
        self.start = self.pos;
    }

    fn run(&mut self) -> Result<(), String> {
        loop {
            let Some(at) = self.rest().find("{{") else {
                self.pos = self.text.len();
                if self.pos > self.start {
                    self.emit(Token::Text);
                }
                self.items.push(Item {
                    token: Token::Eof,
                    pos: self.pos,
                    line: self.line,
                    text: String::new(),
                });
                return Ok(());
            };
            let end = self.pos + at;
            let trim = has_left_trim(&self.text[end + 2..]);
            let text = &self.text[self.pos..end];
            self.pos += if trim { text.trim_end_matches(is_space).len() } else { text.len() };
            if self.pos > self.start {
                self.emit(Token::Text);
            }
            self.pos = end;
            self.ignore();
            self.left_delimiter(trim)?;
        }
    }

    fn left_delimiter(&mut self, trim: bool) -> Result<(), String> {
        self.pos += 2;
        let after = if trim { 2 } else { 0 };
        if self.text[self.pos + after..].starts_with("/*") {
            self.pos += after;
            self.ignore();
            return self.comment();
        }
        self.emit(Token::Left);
        self.pos += after;
        self.ignore();
        self.paren_depth = 0;
        while self.inside()? {}
        Ok(())
    }

    fn comment(&mut self) -> Result<(), String> {
        let end = self.text[self.pos + 2..].find("*/").ok_or("unclosed comment")?;
        self.pos += 2 + end + 2;
        let trim = self.at_right().ok_or("comment ends before closing delimiter")?;
        self.pos += if trim { 4 } else { 2 };
        self.trim_after(trim);
        self.ignore();
        Ok(())
    }

    fn trim_after(&mut self, trim: bool) {
        if trim {
            let rest = self.rest();
            self.pos += rest.len() - rest.trim_start_matches(is_space).len();
        }
    }

    /// Whether a right delimiter stands here, and whether it trims what follows.
    fn at_right(&self) -> Option<bool> {
        let rest = self.rest();
        if has_right_trim(rest) && rest[2..].starts_with("}}") {
            return Some(true);
        }
        rest.starts_with("}}").then_some(false)
    }

    fn right_delimiter(&mut self, trim: bool) {
        if trim {
            self.pos += 2;
            self.ignore();
        }
        self.pos += 2;
        self.emit(Token::Right);
        self.trim_after(trim);
        self.ignore();
    }

    /// Reads one item of an action; false behind the right delimiter.
    fn inside(&mut self) -> Result<bool, String> {
        if let Some(trim) = self.at_right() {
            if self.paren_depth > 0 {
                return Err("unclosed left paren".to_owned());
            }
            self.right_delimiter(trim);
            return Ok(false);
        }
        let Some(c) = self.next() else { return Err("unclosed action".to_owned()) };
        match c {
            c if is_space(c) => return Ok(self.space()),
            '=' => self.emit(Token::Assign),
            ':' => match self.next() {
                Some('=') => self.emit(Token::Declare),
                _ => return Err("expected :=".to_owned()),
            },
            '|' => self.emit(Token::Pipe),
            ',' => self.emit(Token::Comma),
            '"' => self.quoted('"', "unterminated quoted string", Token::Str)?,
            '\'' => self.quoted('\'', "unterminated character constant", Token::Character)?,
            '`' => {
                let end = self.rest().find('`').ok_or("unterminated raw quoted string")?;
                self.pos += end + 1;
                self.emit(Token::Str);
            }
            '$' => self.name(Token::Variable, Token::Variable)?,
            '.' if !self.peek().is_some_and(|c| c.is_ascii_digit()) => self.name(Token::Field, Token::Dot)?,
            '.' | '+' | '-' | '0'..='9' => {
                self.pos = self.start;
                self.number()?;
            }
            c if is_alphanumeric(c) => self.word()?,
            '(' => {
                self.paren_depth += 1;
                self.emit(Token::LeftParen);
            }
            ')' => {
                self.paren_depth = self.paren_depth.checked_sub(1).ok_or("unexpected right paren")?;
                self.emit(Token::RightParen);
            }
            c if c.is_ascii_graphic() => self.emit(Token::OtherChar),
            c => return Err(format!("unrecognized character in action: {}", show_char(c))),
        }
        Ok(true)
    }

    /// Spaces, of which the last may belong to the right delimiter.
    fn space(&mut self) -> bool {
        while self.peek().is_some_and(is_space) {
            self.next();
        }
        let last = &self.text[self.pos - 1..];
        if has_right_trim(last) && last[2..].starts_with("}}") {
            self.pos -= 1;
            if self.pos == self.start {
                if self.paren_depth == 0 {
                    self.right_delimiter(true);
                    return false;
                }
                // The next call says what is wrong with it.
                return true;
            }
        }
        self.emit(Token::Space);
        true
    }

    fn quoted(&mut self, quote: char, unterminated: &str, token: Token) -> Result<(), String> {
        loop {
            match self.next() {
                Some('\\') if !matches!(self.next(), None | Some('\n')) => {}
                None | Some('\\' | '\n') => return Err(unterminated.to_owned()),
                Some(c) if c == quote => break,
                Some(_) => {}
            }
        }
        self.emit(token);
        Ok(())
    }

    /// A field or variable, or the sign alone that one begins with.
    fn name(&mut self, token: Token, alone: Token) -> Result<(), String> {
        if self.at_terminator() {
            self.emit(alone);
            return Ok(());
        }
        self.alphanumerics()?;
        self.emit(token);
        Ok(())
    }

    fn word(&mut self) -> Result<(), String> {
        self.alphanumerics()?;
        let token = match &self.text[self.start..self.pos] {
            "true" | "false" => Token::Bool,
            "nil" => Token::Nil,
            word if KEYWORDS.contains(&word) => Token::Keyword,
            _ => Token::Identifier,
        };
        self.emit(token);
        Ok(())
    }

    fn alphanumerics(&mut self) -> Result<(), String> {
        while self.peek().is_some_and(is_alphanumeric) {
            self.next();
        }
        match self.peek() {
            Some(c) if !self.at_terminator() => Err(format!("bad character {}", show_char(c))),
            _ => Ok(()),
        }
    }

    fn at_terminator(&self) -> bool {
        match self.peek() {
            None | Some('.' | ',' | '|' | ':' | ')' | '(') => true,
            Some(c) => is_space(c) || self.rest().starts_with("}}"),
        }
    }

    fn number(&mut self) -> Result<(), String> {
        let bad =
            |lexer: &Self| Err(format!("bad number syntax: {}", quote(&lexer.text[lexer.start..lexer.pos])));
        if !self.scan_number() {
            return bad(self);
        }
        if matches!(self.peek(), Some('+' | '-')) {
            self.scan_number();
            return bad(self);
        }
        self.emit(Token::Number);
        Ok(())
    }

    fn scan_number(&mut self) -> bool {
        self.accept("+-");
        let mut digits = "0123456789_";
        if self.accept("0") {
            if self.accept("xX") {
                digits = "0123456789abcdefABCDEF_";
            } else if self.accept("oO") {
                digits = "01234567_";
            } else if self.accept("bB") {
                digits = "01_";
            }
        }
        while self.accept(digits) {}
        if self.accept(".") {
            while self.accept(digits) {}
        }
        let exponent = if digits.len() == 11 { "eE" } else { "pP" };
        if matches!(digits.len(), 11 | 23) && self.accept(exponent) {
            self.accept("+-");
            while self.accept("0123456789_") {}
        }
        self.accept("i");
        if self.peek().is_some_and(is_alphanumeric) {
            self.next();
            return false;
        }
        true
    }

    fn accept(&mut self, valid: &str) -> bool {
        let accepted = self.peek().is_some_and(|c| valid.contains(c));
        if accepted {
            self.next();
        }
        accepted
    }
}

fn has_left_trim(text: &str) -> bool {
    matches!(text.as_bytes(), [b'-', b' ' | b'\t' | b'\r' | b'\n', ..])
}

fn has_right_trim(text: &str) -> bool {
    matches!(text.as_bytes(), [b' ' | b'\t' | b'\r' | b'\n', b'-', ..])
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn is_alphanumeric(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Go's `%#U`.
fn show_char(c: char) -> String {
    format!("U+{:04X} '{c}'", u32::from(c))
}
