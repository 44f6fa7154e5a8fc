//! Files that are right, and where those that are not are wrong.

use proptest::prelude::*;

use super::*;

/// Items as one line each, or the flaw.
fn read(text: &str, syntax: Syntax) -> Result<Vec<String>, String> {
    let mut items = Items::new(text.as_bytes(), syntax);
    let mut found = Vec::new();
    loop {
        match items.next() {
            Ok(None) => return Ok(found),
            Ok(Some((kind, node))) => {
                let kind = if kind == Kind::Entry { "e" } else { "r" };
                let at = node.at;
                found.push(format!("{kind} {at} {}", node.into_json()));
            }
            Err(flaw) => return Err(flaw.to_string()),
        }
    }
}

#[test]
fn yaml() {
    let table: [(&str, Result<&[&str], &str>); 22] = [
        ("", Ok(&[])),
        ("---\n# nothing\n---\n", Ok(&[])),
        ("entries: []\n", Ok(&[])),
        ("entries:\n", Ok(&[])),
        ("entries:\n- a: 1\n  b: [x, 'y']\n", Ok(&["e 2:3 {\"a\":1,\"b\":[\"x\",\"y\"]}"])),
        (
            "entries: [{a: true}]\nfederation_relationships:\n  - b: ~\n",
            Ok(&["e 1:11 {\"a\":true}", "r 3:5 {\"b\":null}"]),
        ),
        (
            "entries:\n- a: x\n---\nentries:\n- a: |\n    y\n    z\n",
            Ok(&["e 2:3 {\"a\":\"x\"}", "e 5:3 {\"a\":\"y\\nz\\n\"}"]),
        ),
        ("{\"entries\": [{\"a\": \"b\"}]}", Ok(&["e 1:14 {\"a\":\"b\"}"])),
        ("\u{feff}entries:\n- {}\n", Ok(&["e 2:3 {}"])),
        ("- a\n", Err("1:1: a document is a mapping with \"entries\" or \"federation_relationships\"")),
        ("entry:\n- a: 1\n", Err("1:1: unknown key \"entry\"")),
        ("entries: []\nentries: []\n", Err("2:1: the key \"entries\" stands here a second time")),
        ("entries: 5\n", Err("1:10: a list is due here")),
        ("entries:\n- a: 1\n  a: 2\n", Err("3:3: the key \"a\" stands here a second time")),
        ("entries:\n- &x {a: 1}\n- *x\n", Err("2:3: anchors are not supported")),
        ("entries:\n- *x\n", Err("2:3: ")),
        ("entries:\n- !!str a\n", Err("2:3: tags are not supported")),
        ("entries:\n- ? [a]\n  : b\n", Err("2:5: a key that is no text")),
        ("entries:\n- a: [1\n", Err("3:1: ")),
        ("entries:\n\t- a\n", Err("2:")),
        ("entries:\n- a: b: c\n", Err("2:")),
        ("entries:\n- a: \0\n", Err("1:1: has a NUL character")),
    ];
    for (text, want) in table {
        match (read(text, Syntax::Yaml), want) {
            (Ok(found), Ok(want)) => assert_eq!(found, want, "{text}"),
            (Err(found), Err(want)) => assert!(found.starts_with(want), "{text}: {found}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }
}

#[test]
fn json() {
    let table: [(&str, Result<&[&str], &str>); 26] = [
        ("", Ok(&[])),
        (" \n", Ok(&[])),
        ("null", Ok(&[])),
        ("{}", Ok(&[])),
        ("{\"entries\":[\n {\"a\": -1.5e3, \"b\":[]}]}", Ok(&["e 2:2 {\"a\":-1500.0,\"b\":[]}"])),
        (
            "{\"entries\":[{\"a\":1}]}\n{\"federationRelationships\":[{}],\"next_page_token\":\"\"}\n",
            Ok(&["e 1:13 {\"a\":1}", "r 2:29 {}"]),
        ),
        (
            r#"{"entries":[{"a":"\"\\\/\b\f\n\r\t\u00e4\ud83d\ude00ä"}]}"#,
            Ok(&[r#"e 1:13 {"a":"\"\\/\b\f\n\r\tä😀ä"}"#]),
        ),
        ("[]", Err("1:1: a document is a mapping")),
        ("{\"entries\":[{}]", Err("1:16: the JSON ends where \",\" or \"}\" is due")),
        ("{\"entries\":[{},]}", Err("1:16: found ']' where a value is due")),
        ("{\"entries\":[{\"a\":1,}]}", Err("1:20: found '}' where a name in quotes is due")),
        ("{\"entries\":[{\"a\" 1}]}", Err("1:18: found '1' where \":\" is due")),
        ("{\"entries\":[{\"a\":1 \"b\":2}]}", Err("1:20: found '\"' where \",\" or \"}\" is due")),
        ("{\"entries\":[1 2]}", Err("1:15: found '2' where \",\" or \"]\" is due")),
        ("{entries:[]}", Err("1:2: found 'e' where a name in quotes is due")),
        ("{\"entries\":[01]}", Err("1:13: \"01\" is no JSON value")),
        ("{\"entries\":[nul]}", Err("1:13: \"nul\" is no JSON value")),
        ("{\"entries\":[NaN]}", Err("1:13: found 'N' where a value is due")),
        ("{\"entries\":[\"a\nb\"]}", Err("1:15: a control character in a text; it has to be escaped")),
        ("{\"entries\":[\"a]}", Err("1:13: a text does not end")),
        (r#"{"entries":["\x"]}"#, Err("1:14: an escape that JSON does not have")),
        (r#"{"entries":["\u12g4"]}"#, Err("1:14: an escape that JSON does not have")),
        (r#"{"entries":["\ud800"]}"#, Err("1:14: half a surrogate pair")),
        (r#"{"entries":["\udc00"]}"#, Err("1:14: half a surrogate pair")),
        ("{\"a\":[],\"a\":[]}", Err("1:2: unknown key \"a\"")),
        ("{\"entries\":[{\"a\":1,\"a\":2}]}", Err("1:20: the key \"a\" stands here a second time")),
    ];
    for (text, want) in table {
        match (read(text, Syntax::Json), want) {
            (Ok(found), Ok(want)) => assert_eq!(found, want, "{text}"),
            (Err(found), Err(want)) => assert!(found.starts_with(want), "{text}: {found}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }
}

#[test]
fn sizes_are_bounded() {
    for syntax in [Syntax::Yaml, Syntax::Json] {
        let deep = |depth: usize| format!("{{\"entries\":[{}", "[".repeat(depth));
        assert!(read(&deep(10_000), syntax).is_err());
        let told = read(&deep(100), syntax).unwrap_err();
        assert!(told.ends_with(": nested too deeply"), "{syntax:?}: {told}");
        let long = format!("{{\"entries\":[\"{}\"]}}", "x".repeat(5 << 20));
        assert!(read(&long, syntax).unwrap_err().contains("a value is longer than"));
        let wide = format!("{{\"entries\":[[{}1]]}}", "1,".repeat(200_000));
        assert!(read(&wide, syntax).unwrap_err().ends_with(": the item is too large"));
    }
}

#[test]
fn what_is_not_text_is_said() {
    for syntax in [Syntax::Yaml, Syntax::Json] {
        let mut items = Items::new(&b"{\"entries\":[\"\xff\"]}"[..], syntax);
        assert!(items.next().unwrap_err().text.contains("is not UTF-8"));
        let mut items = Items::new(&b"{\"entries\":[\"\xe2\x82"[..], syntax);
        assert!(items.next().unwrap_err().text.contains("is not UTF-8"), "cut off within a character");
    }
}

/// Gives its bytes in small pieces, as a pipe does.
struct Pieces<'t>(&'t [u8]);

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let take = self.0.len().min(3).min(into.len());
        let (now, later) = self.0.split_at(take);
        into[..take].copy_from_slice(now);
        self.0 = later;
        Ok(take)
    }
}

fn words() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "entries", ":", "- ", "\n", "  ", "{", "}", "[", "]", ",", "\"", "'", "a", "1", "null", "|", ">",
        "&", "*", "!", "---", "#", "?", "%", "@", "\\", "\t", "ä", "\u{feff}", "\r", "...", "\\u",
    ]);
    prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn no_input_is_too_much(text in prop_oneof![any::<String>(), words()]) {
        for syntax in [Syntax::Yaml, Syntax::Json] {
            let whole = read(&text, syntax);
            let mut pieces = Items::new(Pieces(text.as_bytes()), syntax);
            let mut count = 0;
            while let Ok(Some(_)) = pieces.next() {
                count += 1;
            }
            if let Ok(items) = whole {
                prop_assert_eq!(count, items.len());
            }
        }
    }

    #[test]
    fn json_is_read_as_by_the_usual_library(text in any::<String>(), number in any::<i64>()) {
        let item = serde_json::json!({ "t": text, "n": [number, null, true] });
        let document = serde_json::json!({ "entries": [item] }).to_string();
        let mut items = Items::new(document.as_bytes(), Syntax::Json);
        match items.next() {
            Ok(Some((Kind::Entry, node))) => prop_assert_eq!(node.into_json(), item),
            Err(flaw) => prop_assert!(text.contains('\0'), "{}", flaw),
            other => prop_assert!(false, "{:?}", other.is_ok()),
        }
    }
}
