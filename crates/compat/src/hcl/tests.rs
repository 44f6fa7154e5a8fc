//! HCL1 against samples of our own, and against the shared corpus where it is there.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::ast::{Literal, TokenKind};
use super::*;

const SERVER: &str = r#"
server {
    bind_address = "0.0.0.0" # all of them
    bind_port = "8081"
    trust_domain = "example.org"
    ca_subject { country = ["US"], organization = ["SPIFFE"] }
    federation {
        federates_with "b.test" { bundle_endpoint_url = "https://b" }
        federates_with "a.test" { bundle_endpoint_url = "https://a" }
        federates_with "b.test" { port = 3 }
    }
}

plugins {
    DataStore "sql" {
        plugin_data {
            database_type = "sqlite3"
            connection_string = "./data/datastore.sqlite3"
        }
    }
    NodeAttestor "join_token" { plugin_data {} }
    "KeyManager" "disk" plugin_data { keys_path = "keys.json" }
    UpstreamAuthority { "disk" { plugin_cmd = "/bin/x", plugin_args = ["-a", 1] } }
}
"#;

#[test]
fn what_nothing_asked_for_is_told_of_all_blocks() {
    let text = "a = 1\nb = 2\nblock {\n c = 3\n d = 4\n inner \"x\" { e = 5 }\n inner \"y\" { f = 6 }\n}\nlist = [{ g = 7, h = 8 }]";
    let document = parse(text).unwrap();
    let mut root = document.body();
    let unused = root.collect_unused();
    root.take_int("a").unwrap();
    let mut block = root.take_block("block").unwrap().unwrap();
    block.take_int("D").unwrap();
    for (_, mut inner) in block.take_labelled("inner").unwrap() {
        inner.take_int("e").unwrap();
    }
    for mut item in root.take_block_list("list").unwrap() {
        item.take_int("g").unwrap();
    }
    drop((root, block));
    let told = |key: UnusedKey| (key.name, key.positions[0].line);
    let told: Vec<_> = unused.take().into_iter().map(told).collect();
    let expected = [("b", 2), ("block.c", 4), ("block.inner.y.f", 7), ("list[0].h", 9)];
    assert_eq!(told, expected.map(|(name, line)| (name.to_owned(), line)));
}

#[test]
fn decodes_a_server_file() {
    let document = parse(SERVER).unwrap();
    let mut root = document.body();
    let mut server = root.take_block("SERVER").unwrap().unwrap();
    assert_eq!(server.take_string("bind_address").unwrap().as_deref(), Some("0.0.0.0"));
    assert_eq!(server.take_int("Bind_Port").unwrap(), Some(8081));
    assert_eq!(server.take_string("bind_port").unwrap().as_deref(), Some("8081"));
    assert_eq!(server.take_bool("missing").unwrap(), None);
    let mut subject = server.take_block("ca_subject").unwrap().unwrap();
    assert_eq!(subject.take_string_list("country").unwrap(), Some(vec!["US".to_owned()]));
    let unused: Vec<_> = subject.unused().into_iter().map(|key| (key.name, key.positions[0])).collect();
    assert_eq!(unused, [("organization".to_owned(), Pos { offset: 144, line: 6, column: 36 })]);
    let mut federation = server.take_block("federation").unwrap().unwrap();
    let mut federates = federation.take_labelled("federates_with").unwrap();
    let names: Vec<_> = federates.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["b.test", "a.test"]);
    assert_eq!(federates[0].1.take_int("port").unwrap(), Some(3));
    assert_eq!(federates[0].1.take_string("bundle_endpoint_url").unwrap().as_deref(), Some("https://b"));
    assert_eq!(document.locate("server.federation.federates_with.a.test"), None);
    assert_eq!(document.locate("server.bind_port").map(|pos| pos.line), Some(4));

    let (plugins, ignored) = root.take_fragment("plugins");
    assert_eq!(ignored, 0);
    let plugins = plugins.unwrap();
    let plugins = plugins.body().unwrap();
    let mut found = Vec::new();
    for (index, kind, name, mut body) in plugins.twice_labelled().unwrap() {
        let data = body.take_fragment("plugin_data").0.map(|data| data.print());
        let args = body.take_string_list("plugin_args").unwrap();
        found.push((index, kind, name, data, args));
    }
    let text = |text: &str| text.to_owned();
    let sql = "database_type = \"sqlite3\"\n\nconnection_string = \"./data/datastore.sqlite3\"";
    assert_eq!(
        found,
        [
            (0, text("DataStore"), text("sql"), Some(text(sql)), None),
            (1, text("NodeAttestor"), text("join_token"), Some(text("")), None),
            (2, text("KeyManager"), text("disk"), Some(text("keys_path = \"keys.json\"")), None),
            (3, text("UpstreamAuthority"), text("disk"), None, Some(vec![text("-a"), text("1")])),
        ]
    );
    assert!(root.unused().is_empty());
}

/// The outcome of one `take_` call as text.
fn outcome<T: std::fmt::Debug>(result: Result<Option<T>, DecodeError>) -> String {
    match result {
        Ok(Some(value)) => format!("{value:?}"),
        Ok(None) => "none".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn decodes_by_the_reference_rules() {
    let int = |text: &str| outcome(parse_config(text).unwrap().body().take_int("p"));
    let cases = [
        ("p = 8081", "8081"),
        ("p = \"8081\"", "8081"),
        ("p = \"0x1F\"", "31"),
        ("p = \"010\"", "8"),
        ("p = 010", "8"),
        ("p = -0x10", "-16"),
        ("p = 1\np = 2", "2"),
        ("p = \"1_000\"", "1000"),
        ("p = \"80x\"", "strconv.ParseInt: parsing \"80x\": invalid syntax"),
        ("p = \"\"", "strconv.ParseInt: parsing \"\": invalid syntax"),
        ("p = 9223372036854775808", "strconv.ParseInt: parsing \"9223372036854775808\": value out of range"),
        ("p = 1.5", "At 1:5: root.p: unknown type *ast.LiteralType"),
        ("p = true", "At 1:5: root.p: unknown type *ast.LiteralType"),
        ("p = [1]", "At 1:5: root.p: unknown type *ast.ListType"),
        ("p {}", "At -: root.p: unknown type *ast.ObjectList"),
        ("p \"x\" {}", "At 1:3: root.p: unknown type *ast.ObjectList"),
        ("q = 1", "none"),
    ];
    for (text, expected) in cases {
        assert_eq!(int(text), expected, "{text}");
    }
    let boolean = |text: &str| outcome(parse_config(text).unwrap().body().take_bool("on"));
    assert_eq!(boolean("on = true"), "true");
    for text in ["on = \"true\"", "on = 1", "on = \"\""] {
        assert_eq!(boolean(text), "At 1:6: root.on: unknown type *ast.LiteralType", "{text}");
    }
    let string = |text: &str| outcome(parse_config(text).unwrap().body().take_string("s"));
    assert_eq!(string("s = 10"), "\"10\"");
    assert_eq!(string("s = 0x1F"), "\"0x1F\"");
    assert_eq!(string("s = 1.50"), "At 1:5: root.s: unknown type for string *ast.LiteralType");
    assert_eq!(string("s = [\"x\"]"), "At 1:5: root.s: unknown type for string *ast.ListType");
    assert_eq!(string("s = {}"), "At -: root.s: unknown type for string *ast.ObjectList");
    let list = |text: &str| outcome(parse_config(text).unwrap().body().take_string_list("l"));
    assert_eq!(list("l = [1, \"b\"]"), "[\"1\", \"b\"]");
    assert_eq!(list("l = [\"a\"]\nl = [\"b\"]"), "[\"a\", \"b\"]");
    assert_eq!(list("l = \"x\""), "At 1:5: unknown slice type: *ast.LiteralType");
    assert_eq!(list("l = [true]"), "At 1:6: root.l[0]: unknown type for string *ast.LiteralType");
    let block = |text: &str| match parse_config(text).unwrap().body().take_block("b") {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.to_string(),
    };
    assert_eq!(block("b = 1"), "At 1:5: root.b: not an object type for struct (*ast.LiteralType)");
    assert_eq!(block("b = [{}]"), "At 1:5: root.b: not an object type for struct (*ast.ListType)");
}

#[test]
fn blocks_merge_and_labels_hide() {
    let document = parse("server { a = 1, b = 2 }\nserver { b = 3 }\nother \"x\" { port = 1 }").unwrap();
    let mut root = document.body();
    let mut server = root.take_block("server").unwrap().unwrap();
    assert_eq!(server.take_int("a").unwrap(), Some(1));
    assert_eq!(server.take_int("b").unwrap(), Some(3));
    let mut other = root.take_block("other").unwrap().unwrap();
    assert_eq!(other.take_int("port").unwrap(), None);
    assert!(other.unused().is_empty(), "labels in quotes are not keys");
}

#[test]
fn the_first_of_two_fragments_counts() {
    let document = parse("d { a = 1 }\nd = { b = 2 }").unwrap();
    let (fragment, ignored) = document.body().take_fragment("d");
    assert_eq!(fragment.unwrap().print(), "a = 1");
    assert_eq!(ignored, 1);
    let document = parse("d = \"x\"").unwrap();
    let fragment = document.body().take_fragment("d").0.unwrap();
    assert_eq!(fragment.print(), "\"x\"");
    let error = fragment.body().err().unwrap();
    assert_eq!(error.to_string(), "At 1:5: root: not an object type for struct (*ast.LiteralType)");
}

#[test]
fn a_block_is_a_list_of_its_entries() {
    let addresses = |text: &str| {
        let document = parse_config(text).unwrap();
        let mut bodies = document.body().take_block_list("M3").unwrap();
        bodies.iter_mut().map(|body| outcome(body.take_string("address"))).collect::<Vec<_>>()
    };
    assert_eq!(addresses("M3 = [{ address = \"a\" }, { address = \"b\" }]"), ["\"a\"", "\"b\""]);
    assert_eq!(addresses("M3 { address = \"a\", env = \"e\" }"), ["\"a\"", "none"]);
    assert_eq!(addresses("{\"M3\": [{\"address\": \"a\"}, {\"address\": \"b\"}]}"), ["\"a\"", "\"b\""]);
    assert_eq!(addresses("x = 1"), Vec::<String>::new());
}

#[test]
fn unused_keys_follow_the_reference() {
    let unused = |text: &str| {
        let document = parse(text).unwrap();
        document.body().unused().into_iter().map(|key| key.name).collect::<Vec<_>>().join(",")
    };
    assert_eq!(unused("b = 1\na {}\n\"quoted\" = 2"), "a,b");
    assert_eq!(unused("first label {}\nsecond \"x\" {}\nthird = 1"), "first,label,third");
    assert_eq!(unused("{\"b\": 1, \"a\": \"x\"}"), "a,b");
}

#[test]
fn attributes_written_twice() {
    let error = parse("a {\n b = 1\n b = 2\n}").unwrap_err();
    let expected = "The argument \"b\" at 3:2 was already set. Each argument can only be defined once";
    assert_eq!(error.to_string(), expected);
    assert_eq!((error.pos.line, error.pos.column), (3, 2));
    let document = parse_config("a {\n b = 1\n b = 2\n}").unwrap();
    assert_eq!(document.duplicates.len(), 1);
    assert_eq!(document.body().take_block("a").unwrap().unwrap().take_int("b").unwrap(), Some(2));
}

#[test]
fn bounds_hold() {
    let deep = "a = ".to_owned() + &"[".repeat(MAX_DEPTH + 1);
    assert!(parse(&deep).unwrap_err().to_string().contains("nested more than 100 levels deep"));
    let deep = "{\"a\":".repeat(MAX_DEPTH + 1);
    assert!(parse(&deep).unwrap_err().to_string().contains("nested more than 100 levels deep"));
    let long = vec![b' '; MAX_INPUT + 1];
    assert!(parse(long).unwrap_err().to_string().contains("longer than"));
}

/// Texts, and what the reference's printer makes of them.
const PRINTED: &[(&str, &str)] = &[
    ("", ""),
    ("a=1\nb = 2", "a = 1\n\nb = 2"),
    ("a {}\nb {}\n\nc {}", "a {}\nb {}\n\nc {}"),
    ("x { a=1\n bcd = \"e\" # f\n}", "x {\n  a   = 1\n  bcd = \"e\" # f\n}"),
    ("x {\n a = 1\n\n b = 2\n}", "x {\n  a = 1\n\n  b = 2\n}"),
    ("l = [ \"a\",\"b\" ]", "l = [\"a\", \"b\"]"),
    ("l = [\n\"a\", # one\n\"bb\" ]", "l = [\n  \"a\",  # one\n  \"bb\",\n]"),
    // Theirs is without the last newline, and cannot be read.
    ("h = <<EOF\n  x\nEOF\n", "h = <<EOF\n  x\nEOF\n"),
    ("a \"b\" c { d = {} }", "a \"b\" c {\n  d = {}\n}"),
    ("# lead\na = 1", "# lead\na = 1"),
    ("x {\n# alone\n\n a = 1 }", "x {\n  a = 1\n}"),
    ("{\"a\": {\"b\": [\"c\", 1], \"d\": null}}", "a = {\n  \"b\" = [\"c\", 1]\n\n  \"d\" = \n}"),
];

#[test]
fn prints_as_the_reference() {
    for (text, expected) in PRINTED {
        let fragment = Fragment::from(parse_config(text).unwrap());
        // JSON keys keep their quotes.
        let expected =
            if text.starts_with('{') { expected.replacen('a', "\"a\"", 1) } else { (*expected).to_owned() };
        assert_eq!(fragment.print(), expected, "{text:?}");
    }
}

/// What Go's decoder makes of a tree when it may choose the types: objects become lists of maps.
mod generic {
    use super::*;

    #[derive(Clone)]
    struct Entry<'a> {
        keys: &'a [ast::Token],
        value: &'a Node,
    }

    enum Source<'a> {
        Entries(Vec<Entry<'a>>),
        Node(&'a Node),
    }

    pub(super) fn decode(items: &[Item]) -> Result<Value, String> {
        let mut out = Map::new();
        fill("root", &entries(items), &mut out)?;
        Ok(Value::Object(out))
    }

    fn entries(items: &[Item]) -> Vec<Entry<'_>> {
        items.iter().map(|item| Entry { keys: &item.keys, value: &item.value }).collect()
    }

    fn fill(path: &str, entries: &[Entry<'_>], out: &mut Map<String, Value>) -> Result<(), String> {
        let mut done = Vec::new();
        for entry in entries {
            let key = entry.keys[0].value();
            if done.contains(&key) {
                continue;
            }
            let source = if entry.keys.len() == 1 {
                Source::Node(entry.value)
            } else {
                done.push(key);
                let same = entries.iter().filter(|other| other.keys[0].value().eq_ignore_ascii_case(key));
                Source::Entries(same.map(|other| Entry { keys: &other.keys[1..], ..other.clone() }).collect())
            };
            let old = out.remove(key);
            let value = value(&format!("{path}.{key}"), source, old, false)?;
            out.insert(key.to_owned(), value);
        }
        Ok(())
    }

    fn value(path: &str, source: Source<'_>, old: Option<Value>, in_list: bool) -> Result<Value, String> {
        match (source, old) {
            (Source::Node(Node::Literal(literal)), _) => Ok(basic(literal)),
            (Source::Node(node), Some(Value::Bool(_) | Value::Number(_) | Value::String(_))) => {
                Err(format!("At {}: {path}: unknown type {}", node.pos(), node.type_name()))
            }
            (Source::Node(Node::List(list)), old) => {
                let mut out = as_list(old);
                for node in &list.items {
                    out.push(value(path, Source::Node(node), None, true)?);
                }
                Ok(Value::Array(out))
            }
            (Source::Node(Node::Object(object)), old) => {
                let mut map = Map::new();
                fill(path, &entries(&object.items), &mut map)?;
                if in_list {
                    return Ok(Value::Object(map));
                }
                let mut out = as_list(old);
                out.push(Value::Object(map));
                Ok(Value::Array(out))
            }
            (Source::Entries(entries), old) => {
                let mut out = as_list(old);
                for entry in entries {
                    let mut map = Map::new();
                    fill(path, &[entry], &mut map)?;
                    out.push(Value::Object(map));
                }
                Ok(Value::Array(out))
            }
        }
    }

    fn as_list(old: Option<Value>) -> Vec<Value> {
        if let Some(Value::Array(old)) = old { old } else { Vec::new() }
    }

    fn basic(literal: &Literal) -> Value {
        let token = &literal.token;
        match token.kind {
            TokenKind::Bool => json!(token.text == "true"),
            TokenKind::Float => json!(token.text.parse::<f64>().unwrap()),
            TokenKind::Number => {
                let (negative, digits) = match token.text.strip_prefix('-') {
                    Some(digits) => (-1, digits),
                    None => (1, token.text.as_str()),
                };
                let value = match digits.strip_prefix("0x") {
                    Some(hex) => i64::from_str_radix(hex, 16),
                    None if digits.starts_with('0') => i64::from_str_radix(digits, 8),
                    None => digits.parse(),
                };
                json!(negative * value.unwrap())
            }
            _ => json!(token.value()),
        }
    }
}

/// Numbers compare by value: the oracle was written by a program that prints 1.0 as 1.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

/// Compares one text with what is expected of it: `value`, `parse_err` or `decode_err`.
fn check(name: &str, text: &[u8], expected: &Value) -> Result<(), String> {
    let found = match parse(text) {
        Err(error) => json!({ "parse_err": error.to_string() }),
        Ok(document) => match generic::decode(document.items()) {
            Err(error) => json!({ "decode_err": error }),
            Ok(value) => json!({ "value": value }),
        },
    };
    for key in ["parse_err", "decode_err", "value"] {
        let matching = match (expected.get(key), found.get(key)) {
            (Some(a), Some(b)) => same(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        if !matching {
            return Err(format!("{name}: expected {expected}, found {found}"));
        }
    }
    Ok(())
}

#[test]
fn accepts_and_refuses_our_samples() {
    let samples = [
        ("a = 1 b = 2", json!({"value": {"a": 1, "b": 2}})),
        ("a = 1, b { c = [1,2,] },", json!({"value": {"a": 1, "b": [{"c": [1, 2]}]}})),
        ("\"a\" b \"c\" { }", json!({"value": {"a": [{"b": [{"c": [{}]}]}]}})),
        (
            "k \"x\" { n = 1 }\nk \"x\" { m = 2 }",
            json!({"value": {"k": [{"x": [{"n": 1}]}, {"x": [{"m": 2}]}]}}),
        ),
        ("a = <<-X\n   y\n  z\n  X\n", json!({"value": {"a": " y\nz\n"}})),
        ("a = <<X\ny\nX\nb = 1", json!({"value": {"a": "y\n", "b": 1}})),
        ("a = \"${b(\"c\")} \\\" \\u00e9\"", json!({"value": {"a": "${b(\"c\")} \" é"}})),
        ("// c\n/* d */ a = /* e */ 1 # f", json!({"value": {"a": 1}})),
        ("a =", json!({"value": {}})),
        ("{\"a\": {\"b\": {\"c\": true}}}", json!({"value": {"a": [{"b": [{"c": true}]}]}})),
        ("{\"a\": 1,}", json!({"value": {"a": 1}})),
        ("a = hello", json!({"parse_err": "At 1:5: Unknown token: 1:5 IDENT hello"})),
        ("a = \"x\ny\"", json!({"parse_err": "At 2:3: literal not terminated"})),
        ("a = 1;", json!({"parse_err": "At 1:6: illegal char"})),
        ("a \"b\" = {}", json!({"parse_err": "At 1:7: nested object expected: LBRACE got: ASSIGN"})),
        (
            "a {\n b\n}",
            json!({"parse_err": "At 3:1: key 'b' expected start of object ('{') or assignment ('=')"}),
        ),
        (
            "a = [1 2]",
            json!({"parse_err": "At 1:8: error parsing list, expected comma or list end, got: NUMBER"}),
        ),
        ("a = 0x", json!({"parse_err": "At 1:7: illegal hexadecimal number"})),
        ("a = 0189", json!({"parse_err": "At 1:9: illegal octal number"})),
        ("/* x", json!({"parse_err": "At 1:5: comment not terminated"})),
        ("a = <<X\nb\n", json!({"parse_err": "At 3:1: heredoc not terminated"})),
        ("{\"a\": nil}", json!({"parse_err": "1:9: illegal char"})),
        ("a = 1\na {}", json!({"decode_err": "At 2:3: root.a: unknown type *ast.ObjectType"})),
    ];
    let failures: Vec<_> =
        samples.iter().filter_map(|(text, expected)| check(text, text.as_bytes(), expected).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Files that the reference's parser was run on, where they stand beside the project.
#[test]
fn agrees_with_the_reference_on_shared_files() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/hcl");
    let Ok(oracle) = std::fs::read_to_string(format!("{folder}/expected.json")) else {
        return;
    };
    let oracle: Map<String, Value> = serde_json::from_str(&oracle).unwrap();
    let failures: Vec<_> = oracle
        .iter()
        .filter_map(|(name, expected)| {
            check(name, &std::fs::read(format!("{folder}/{name}")).unwrap(), expected).err()
        })
        .collect();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), oracle.len(), failures.join("\n"));
}

/// Everything that can be done with a text; none of it may panic.
fn exercise(text: &[u8]) {
    let _ = parse(text);
    let Ok(document) = parse_config(text) else { return };
    let mut body = document.body();
    // Labels too: those of a body's first entry are keys that nothing asked for, as in the reference.
    let names: Vec<String> =
        document.items().iter().flat_map(|item| &item.keys).map(|key| key.value().to_owned()).collect();
    for name in &names {
        let _ = body.take_string(name);
        let _ = body.take_int(name);
        let _ = body.take_bool(name);
        let _ = body.take_string_list(name);
        let _ = body.take_string_list_map(name);
        let _ = body.take_block(name).map(|block| block.map(|block| block.unused()));
        let _ = body.take_labelled(name);
        let _ = body.take_block_list(name);
        let _ = document.locate(name);
        if let Some(fragment) = body.take_fragment(name).0 {
            let _ = fragment.print();
            let _ = fragment.body().map(|body| body.twice_labelled().map(|all| all.len()));
        }
    }
    assert!(body.unused().is_empty());
    drop(body);
    let _ = Fragment::from(document).print();
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes: Vec<u8>) {
        exercise(&bytes);
    }

    #[test]
    fn any_tokens_are_parsed_or_refused(
        tokens in prop::collection::vec(
            prop::sample::select(vec![
                "a", "b", "{", "}", "[", "]", "=", ",", "\n", " ", "\"x\"", "\"", "1", "0", "0x", ".5", "1e", "-",
                "true", "null", "#c\n", "/*c*/", "//", "/", "<<E\n", "<<-E\n", "E\n", "\\", "${", ":", "\r\n", "\u{e123}",
                "é",
            ]),
            0..40,
        ),
        json: bool,
    ) {
        let text = tokens.concat();
        exercise(if json { format!("{{{text}") } else { text }.as_bytes());
    }

    #[test]
    fn changed_samples_are_parsed_or_refused(at in 0..SERVER.len(), byte: u8, cut in 0..SERVER.len()) {
        let mut text = SERVER.as_bytes().to_vec();
        text[at] = byte;
        exercise(&text);
        exercise(&text[..cut]);
    }
}
