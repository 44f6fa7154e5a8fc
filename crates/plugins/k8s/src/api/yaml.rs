//! YAML as far as kubeconfig files need it, turned into JSON values.
//!
//! Plain scalars are null, a boolean, or text: numbers stay text, since no setting of a kubeconfig is one. Aliases are
//! refused, so that a small file stays a small value.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Deepest nesting; a kubeconfig has six levels.
const DEPTH_MAX: usize = 32;

/// The first document of a text.
///
/// # Errors
/// What is wrong with it, and where.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader(Parser::new_from_str(text));
    loop {
        match reader.next()? {
            Event::StreamEnd => return Ok(Value::Null),
            Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd => {}
            first => return reader.value(first, 0),
        }
    }
}

struct Reader<'a>(Parser<'a, saphyr_parser::StrInput<'a>>);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Event<'a>, String> {
        match self.0.next_event() {
            Some(Ok((event, _))) => Ok(event),
            Some(Err(error)) => Err(format!("yaml: {error}")),
            None => Ok(Event::StreamEnd),
        }
    }

    fn value(&mut self, first: Event<'a>, depth: usize) -> Result<Value, String> {
        if depth > DEPTH_MAX {
            return Err("yaml: nested too deeply".to_owned());
        }
        match first {
            Event::Scalar(text, ScalarStyle::Plain, ..) => Ok(plain(&text)),
            Event::Scalar(text, ..) => Ok(Value::String(text.into_owned())),
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => return Ok(Value::Array(items)),
                        first => items.push(self.value(first, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(..) => {
                let mut entries = Map::new();
                loop {
                    let key = match self.next()? {
                        Event::MappingEnd => return Ok(Value::Object(entries)),
                        Event::Scalar(key, ..) => key.into_owned(),
                        _ => return Err("yaml: a key that is no text".to_owned()),
                    };
                    let first = self.next()?;
                    let value = self.value(first, depth + 1)?;
                    if entries.insert(key.clone(), value).is_some() {
                        return Err(format!("yaml: key {key:?} already set in map"));
                    }
                }
            }
            Event::Alias(_) => Err("yaml: aliases are not supported".to_owned()),
            _ => Err("yaml: unexpected end".to_owned()),
        }
    }
}

fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        text => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_kubeconfigs_are_written_in() {
        let table = [
            ("", Ok(Value::Null)),
            (
                "---\na: 1\nb:\n- c: \"x\"\n  d:\n- ~\n",
                Ok(json!({"a": "1", "b": [{"c": "x", "d": null}, null]})),
            ),
            ("{\"a\": {\"b\": [true, 'false']}} # JSON is YAML", Ok(json!({"a": {"b": [true, "false"]}}))),
            ("a: |\n  one\n  two\n", Ok(json!({"a": "one\ntwo\n"}))),
            ("a: https://h:1/p # c\n", Ok(json!({"a": "https://h:1/p"}))),
            ("a: &x 1\nb: *x\n", Err("yaml: aliases are not supported")),
            ("a: 1\na: 2\n", Err("yaml: key \"a\" already set in map")),
            ("? [a]\n: b\n", Err("yaml: a key that is no text")),
            ("a: [1\n", Err("yaml: ")),
            ("\ta: b: c", Err("yaml: ")),
        ];
        for (text, expected) in table {
            match (parse(text), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(found), Err(expected)) => assert!(found.starts_with(expected), "{text}: {found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
        let deep = "[".repeat(10_000);
        assert!(parse(&deep).is_err());
    }
}
