//! Characters of a file as they are read, so that a file of any size takes little memory.

use std::cell::{Cell, RefCell};
use std::io::Read;
use std::rc::Rc;

/// Octets read at once.
const CHUNK: usize = 64 << 10;

/// Longest text that may be read for one event: above any bundle, below what would hurt.
const TOKEN_MAX: usize = 4 << 20;

/// What the reader of events asks about the characters that a parser took from under it.
#[derive(Clone, Default)]
pub(super) struct Meter(Rc<State>);

#[derive(Default)]
struct State {
    taken: Cell<usize>,
    failure: RefCell<Option<String>>,
}

impl Meter {
    /// Why the characters ended, if not because the file did.
    pub(super) fn failure(&self) -> Option<String> {
        self.0.failure.borrow().clone()
    }

    /// One event is done; the next may be as long again.
    pub(super) fn reset(&self) {
        self.0.taken.set(0);
    }

    fn fail(&self, text: impl Into<String>) {
        self.0.failure.borrow_mut().get_or_insert(text.into());
    }
}

/// The characters of UTF-8. They end where the file does, and where something is wrong, which the meter tells apart.
pub(super) struct Chars<R> {
    input: R,
    buffer: Vec<u8>,
    at: usize,
    started: bool,
    meter: Meter,
}

impl<R: Read> Chars<R> {
    pub(super) fn new(input: R, meter: Meter) -> Self {
        Self { input, buffer: Vec::new(), at: 0, started: false, meter }
    }

    /// Reads more, unless the file ended; what is left in the buffer moves to its front.
    fn fill(&mut self) -> bool {
        self.buffer.drain(..self.at);
        self.at = 0;
        let kept = self.buffer.len();
        self.buffer.resize(kept + CHUNK, 0);
        loop {
            match self.input.read(&mut self.buffer[kept..]) {
                Ok(count) => {
                    self.buffer.truncate(kept + count);
                    return count > 0;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.buffer.truncate(kept);
                    self.meter.fail(format!("cannot be read: {error}"));
                    return false;
                }
            }
        }
    }

    fn read(&mut self) -> Option<char> {
        if self.at == self.buffer.len() && !self.fill() {
            return None;
        }
        let first = *self.buffer.get(self.at)?;
        if first.is_ascii() {
            self.at += 1;
            return Some(char::from(first));
        }
        let length = match first {
            0xC0..=0xDF => 2,
            0xE0..=0xEF => 3,
            _ => 4,
        };
        while self.buffer.len() - self.at < length && self.fill() {}
        let octets = self.buffer.get(self.at..self.at + length);
        match octets.and_then(|octets| std::str::from_utf8(octets).ok()).and_then(|text| text.chars().next())
        {
            Some(c) => {
                self.at += length;
                Some(c)
            }
            None => {
                self.meter.fail("is not UTF-8");
                None
            }
        }
    }
}

impl<R: Read> Iterator for Chars<R> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        if self.meter.0.failure.borrow().is_some() {
            return None;
        }
        let mut next = self.read()?;
        if !self.started {
            self.started = true;
            // A byte order mark says nothing about UTF-8.
            if next == '\u{feff}' {
                next = self.read()?;
            }
        }
        // The YAML scanner takes this for the end, and the rest would be passed over in silence.
        if next == '\0' {
            self.meter.fail("has a NUL character");
            return None;
        }
        let taken = &self.meter.0.taken;
        taken.set(taken.get() + 1);
        if taken.get() > TOKEN_MAX {
            self.meter.fail(format!("a value is longer than {TOKEN_MAX} characters"));
            return None;
        }
        Some(next)
    }
}
