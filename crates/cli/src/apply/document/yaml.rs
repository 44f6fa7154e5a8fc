//! YAML as events. Anchors, aliases and tags are refused: a small file shall be a small value, and a plain one.

use std::io::Read;

use saphyr_parser::{BufferedInput, Event as Yaml, Marker, Parser, ScalarStyle};

use super::chars::{Chars, Meter};
use super::{Event, Events, Flaw, Position};

/// Events of all documents of a YAML stream.
pub(super) struct YamlEvents<'r, R: Read + 'r> {
    parser: Parser<'r, BufferedInput<Chars<R>>>,
    meter: Meter,
}

impl<R: Read> YamlEvents<'_, R> {
    pub(super) fn new(input: R) -> Self {
        let meter = Meter::default();
        Self { parser: Parser::new_from_iter(Chars::new(input, meter.clone())), meter }
    }
}

impl<R: Read> Events for YamlEvents<'_, R> {
    fn next(&mut self) -> Result<(Event, Position), Flaw> {
        loop {
            let parsed = self.parser.next_event();
            let at = match &parsed {
                Some(Ok((_, span))) => position(&span.start),
                Some(Err(error)) => position(error.marker()),
                None => Position::default(),
            };
            let flaw = |text: &str| Err(Flaw::new(at, text));
            if let Some(failure) = self.meter.failure() {
                return flaw(&failure);
            }
            self.meter.reset();
            let event = match parsed {
                None => return Ok((Event::End, at)),
                Some(Err(error)) => return flaw(error.info()),
                Some(Ok((event, _))) => event,
            };
            let (anchor, tagged) = match &event {
                Yaml::Scalar(_, _, anchor, tag)
                | Yaml::SequenceStart(anchor, tag)
                | Yaml::MappingStart(anchor, tag) => (*anchor, tag.is_some()),
                _ => (0, false),
            };
            if anchor != 0 {
                return flaw("anchors are not supported");
            }
            if tagged {
                return flaw("tags are not supported");
            }
            let event = match event {
                Yaml::Nothing | Yaml::StreamStart | Yaml::DocumentStart(_) | Yaml::DocumentEnd => continue,
                Yaml::StreamEnd => Event::End,
                Yaml::Alias(_) => return flaw("aliases are not supported"),
                Yaml::Scalar(text, style, ..) => {
                    Event::Scalar { text: text.into_owned(), quoted: style != ScalarStyle::Plain }
                }
                Yaml::SequenceStart(..) => Event::ListStart,
                Yaml::SequenceEnd => Event::ListEnd,
                Yaml::MappingStart(..) => Event::MapStart,
                Yaml::MappingEnd => Event::MapEnd,
            };
            return Ok((event, at));
        }
    }
}

/// The parser counts lines from one and columns from zero.
fn position(marker: &Marker) -> Position {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Position { line: number(marker.line()), column: number(marker.col()).saturating_add(1) }
}
