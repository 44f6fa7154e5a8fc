//! JSON (RFC 8259) as events: one document, or several behind each other as in JSON Lines. The usual libraries give no
//! positions of values, and read a document as a whole.

use std::io::Read;
use std::iter::Peekable;

use super::chars::{Chars, Meter};
use super::{DEPTH_MAX, Event, Events, Flaw, Position};

/// Events of JSON.
pub(super) struct JsonEvents<R: Read> {
    input: Peekable<Chars<R>>,
    meter: Meter,
    /// Of the character that comes next.
    at: Position,
    open: Vec<Open>,
}

/// What is open, and what may come next in it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    NewList,
    List,
    NewMap,
    Map,
    /// Behind a key.
    Member,
}

impl<R: Read> JsonEvents<R> {
    pub(super) fn new(input: R) -> Self {
        let meter = Meter::default();
        let chars = Chars::new(input, meter.clone());
        Self { input: chars.peekable(), meter, at: Position { line: 1, column: 1 }, open: Vec::new() }
    }

    fn take(&mut self) -> Option<char> {
        let taken = self.input.next()?;
        if taken == '\n' {
            self.at = Position { line: self.at.line.saturating_add(1), column: 1 };
        } else {
            self.at.column = self.at.column.saturating_add(1);
        }
        Some(taken)
    }

    fn space(&mut self) -> Option<char> {
        while self.input.peek().is_some_and(|c| matches!(c, ' ' | '\t' | '\n' | '\r')) {
            self.take();
        }
        self.input.peek().copied()
    }

    fn flaw<T>(&self, at: Position, text: &str) -> Result<T, Flaw> {
        Err(Flaw::new(at, self.meter.failure().unwrap_or_else(|| text.to_owned())))
    }

    fn expected<T>(&mut self, what: &str) -> Result<T, Flaw> {
        let at = self.at;
        match self.input.peek().copied() {
            None => self.flaw(at, &format!("the JSON ends where {what} is due")),
            Some(other) => self.flaw(at, &format!("found {other:?} where {what} is due")),
        }
    }

    fn value(&mut self) -> Result<Event, Flaw> {
        match self.space() {
            Some('{') => self.descend(Open::NewMap, Event::MapStart),
            Some('[') => self.descend(Open::NewList, Event::ListStart),
            Some('"') => Ok(Event::Scalar { text: self.text()?, quoted: true }),
            Some('-' | '0'..='9' | 'a'..='z') => self.word(),
            _ => self.expected("a value"),
        }
    }

    fn descend(&mut self, open: Open, event: Event) -> Result<Event, Flaw> {
        if self.open.len() > DEPTH_MAX {
            return self.flaw(self.at, "nested too deeply");
        }
        self.take();
        self.open.push(open);
        Ok(event)
    }

    fn ascend(&mut self, event: Event) -> Event {
        self.take();
        self.open.pop();
        event
    }

    /// A number or one of the three names.
    fn word(&mut self) -> Result<Event, Flaw> {
        let (at, mut text) = (self.at, String::new());
        while let Some(c) =
            self.input.peek().copied().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'))
        {
            text.push(c);
            self.take();
        }
        let known = matches!(text.as_str(), "true" | "false" | "null");
        if known || serde_json::from_str::<serde_json::Number>(&text).is_ok() {
            return Ok(Event::Scalar { text, quoted: false });
        }
        self.flaw(at, &format!("{text:?} is no JSON value"))
    }

    fn text(&mut self) -> Result<String, Flaw> {
        let start = self.at;
        self.take();
        let mut text = String::new();
        loop {
            let at = self.at;
            match self.take() {
                None => return self.flaw(start, "a text does not end"),
                Some('"') => return Ok(text),
                Some('\\') => text.push(self.escaped(at)?),
                Some(c) if c < ' ' => {
                    return self.flaw(at, "a control character in a text; it has to be escaped");
                }
                Some(c) => text.push(c),
            }
        }
    }

    fn escaped(&mut self, at: Position) -> Result<char, Flaw> {
        Ok(match self.take() {
            Some(c @ ('"' | '\\' | '/')) => c,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let high = self.unit(at)?;
                let code = if (0xD800..0xDC00).contains(&high) {
                    let low = if self.take() == Some('\\') && self.take() == Some('u') {
                        self.unit(at)?
                    } else {
                        0
                    };
                    if !(0xDC00..0xE000).contains(&low) {
                        return self.flaw(at, "half a surrogate pair");
                    }
                    0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00)
                } else {
                    high
                };
                match char::from_u32(code) {
                    Some(c) => c,
                    None => return self.flaw(at, "half a surrogate pair"),
                }
            }
            _ => return self.flaw(at, "an escape that JSON does not have"),
        })
    }

    fn unit(&mut self, at: Position) -> Result<u32, Flaw> {
        let mut unit = 0;
        for _ in 0..4 {
            match self.take().and_then(|c| c.to_digit(16)) {
                Some(digit) => unit = unit << 4 | digit,
                None => return self.flaw(at, "an escape that JSON does not have"),
            }
        }
        Ok(unit)
    }

    fn key(&mut self) -> Result<Event, Flaw> {
        if self.space() != Some('"') {
            return self.expected("a name in quotes");
        }
        self.enter(Open::Member);
        Ok(Event::Scalar { text: self.text()?, quoted: true })
    }

    /// Says what is due next in what is open.
    fn enter(&mut self, state: Open) {
        if let Some(last) = self.open.last_mut() {
            *last = state;
        }
    }
}

impl<R: Read> Events for JsonEvents<R> {
    fn next(&mut self) -> Result<(Event, Position), Flaw> {
        self.meter.reset();
        let next = self.space();
        let mut at = self.at;
        let event = match (self.open.last().copied(), next) {
            (None, None) => match self.meter.failure() {
                Some(failure) => return self.flaw(at, &failure),
                None => Event::End,
            },
            (None, Some(_)) => self.value()?,
            (Some(Open::NewList | Open::List), Some(']')) => self.ascend(Event::ListEnd),
            (Some(Open::NewMap | Open::Map), Some('}')) => self.ascend(Event::MapEnd),
            (Some(Open::NewList), _) => {
                self.enter(Open::List);
                self.value()?
            }
            (Some(Open::List), Some(',')) => {
                self.take();
                self.space();
                at = self.at;
                self.value()?
            }
            (Some(Open::List), _) => return self.expected("\",\" or \"]\""),
            (Some(Open::NewMap), _) => self.key()?,
            (Some(Open::Map), Some(',')) => {
                self.take();
                self.space();
                at = self.at;
                self.key()?
            }
            (Some(Open::Map), _) => return self.expected("\",\" or \"}\""),
            (Some(Open::Member), Some(':')) => {
                self.take();
                self.space();
                at = self.at;
                self.enter(Open::Map);
                self.value()?
            }
            (Some(Open::Member), _) => return self.expected("\":\""),
        };
        Ok((event, at))
    }
}
