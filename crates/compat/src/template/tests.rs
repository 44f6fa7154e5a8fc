//! Against what Go's text/template and sprig 3.3 print: `testdata/go.jsonl` has one recorded template a line, with
//! whether it failed to parse or to execute, and its output or error.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::{Struct, TEXT_MAX, Template, Value};

/// What the recorded templates were executed on.
fn data() -> Value {
    let subject = Struct {
        type_name: "main.Name",
        fields: vec![
            ("Organization", Value::strings(["Org One", "Org Two"])),
            ("CommonName", Value::str("node-1.example.org")),
        ],
        text: Some("CN=node-1.example.org".to_owned()),
        ..Struct::default()
    };
    let serial = Struct { type_name: "*big.Int", text: Some("4660".to_owned()), ..Struct::default() };
    let selectors = [("cluster", "c1"), ("region", "us-east-1")];
    let selectors: BTreeMap<_, _> =
        selectors.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Value::Struct(Rc::new(Struct {
        type_name: "main.Data",
        fields: vec![
            ("PluginName", Value::str("x509pop")),
            ("TrustDomain", Value::str("example.org")),
            ("Fingerprint", Value::str("da39a3ee5e6b4b0d3255bfef95601890afd80709")),
            ("Serial", Value::Struct(Rc::new(serial))),
            ("Subject", Value::Struct(Rc::new(subject))),
            ("URISanSelectors", Value::StringMap(Rc::new(selectors))),
            ("DNSNames", Value::strings(["b.example.org", "a.example.org"])),
            ("Raw", Value::Bytes(b"hi".as_slice().into())),
            ("Version", Value::Int(3)),
            ("Flag", Value::Bool(true)),
        ],
        ..Struct::default()
    }))
}

fn run(text: &str) -> (&'static str, String) {
    match Template::parse(text) {
        Err(error) => ("parse", error.to_string()),
        Ok(template) => match template.execute(&data()) {
            Err(error) => ("exec", error.to_string()),
            Ok(path) => ("ok", path),
        },
    }
}

/// Where ours differs, and says something of its own.
const OTHERWISE: &[(&str, &str)] = &[(
    "{{ call 3 }}",
    "template: agent-path:1:3: executing \"agent-path\" at <call 3>: error calling call: non-function of type int",
)];

#[test]
fn agrees_with_go() {
    let recorded = include_str!("testdata/go.jsonl");
    let mut wrong = Vec::new();
    for line in recorded.lines() {
        let (text, state, expected): (String, String, String) = serde_json::from_str(line).unwrap();
        let expected = match OTHERWISE.iter().find(|(template, _)| *template == text) {
            Some((_, ours)) => (*ours).to_owned(),
            None => expected,
        };
        let (found_state, found) = run(&text);
        if (found_state, &found) != (state.as_str(), &expected) {
            wrong.push(format!("{text}\n  Go:   {state}: {expected}\n  ours: {found_state}: {found}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), recorded.lines().count(), wrong.join("\n"));
}

#[test]
fn what_is_not_built_is_refused_when_it_is_configured() {
    let refused = [
        (
            "/{{ uuidv4 }}",
            "function \"uuidv4\" is not built: an agent would get another SPIFFE ID at each attestation",
        ),
        ("{{ 1i }}", "complex numbers are not built: \"1i\""),
        ("{{ 0x1p4 }}", "hexadecimal floats are not built: \"0x1p4\""),
        // Functions of sprig that the reference leaves out.
        ("{{ env \"HOME\" }}", "function \"env\" not defined"),
    ];
    for (text, reason) in refused {
        assert_eq!(run(text), ("parse", format!("template: agent-path:1: {reason}")), "{text}");
    }
}

#[test]
fn every_function_that_the_reference_allows_is_known() {
    let allowed = include_str!("testdata/functions.txt");
    let unknown: Vec<_> = allowed
        .lines()
        .filter(|name| super::sprig::find(name).is_none() && super::sprig::refused(name).is_none())
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(allowed.lines().count() > 100);
}

#[test]
fn an_execution_is_bounded() {
    let endless = [
        "{{ range 1000000000 }}{{ end }}",
        "{{ range 100 }}{{ range 1000 }}{{ upper \"x\" }}{{ end }}{{ end }}",
        "{{ repeat 1000000000 \"x\" }}",
        "{{ repeat 9000000000000000000 \"xx\" }}",
        "{{ indent 100000 \"x\" }}",
        "{{ printf \"%1000000d\" 1 }}",
        "{{ printf \"%*d\" 999999 1 }}",
        "{{ seq 1000000000 }}",
        "{{ $x := \"xxxxxxxxxxxxxxxx\" }}{{ range 64 }}{{ $x = printf \"%s%s\" $x $x }}{{ end }}",
        "{{ $x := \"xx\" }}{{ range 64 }}{{ $x = replace \"x\" \"xxxx\" $x }}{{ end }}",
        "{{ $x := \"xx\" }}{{ range 64 }}{{ $x = regexReplaceAll \"x\" $x \"$0$0$0$0\" }}{{ end }}",
        "{{ $x := list 1 2 }}{{ range 64 }}{{ $x = concat $x $x }}{{ end }}",
        "{{ $x := list 1 }}{{ range 5000 }}{{ $x = list $x }}{{ end }}",
        "{{ $d := dict }}{{ $_ := set $d \"d\" $d }}{{ $d }}",
        "{{ $d := dict \"x\" 1 }}{{ $_ := merge $d (dict \"d\" $d) }}{{ $d }}",
        "{{ define \"r\" }}{{ template \"r\" . }}{{ end }}{{ template \"r\" . }}",
        "{{ range 9999 }}xxxxxxxxxxxxxxxx{{ end }}",
    ];
    for text in endless {
        assert_eq!(run(text).0, "exec", "{text}");
    }
    let deep = format!("{}1{}", "(".repeat(5_000), ")".repeat(5_000));
    assert_eq!(run(&format!("{{{{ {deep} }}}}")).0, "parse");
    let deep = format!("{}{}", "{{ if true }}".repeat(5_000), "{{ end }}".repeat(5_000));
    assert_eq!(run(&deep).0, "parse");
    let deep = format!("{{{{ if true }}}}{}{{{{ end }}}}", "{{ else if true }}".repeat(5_000));
    assert_eq!(run(&deep).0, "parse");
    assert_eq!(run(&format!("{{{{ repeat {TEXT_MAX} \"x\" | trunc 1 }}}}")), ("ok", "x".to_owned()));
}

#[test]
fn names_are_told() {
    let text =
        "{{ .A.B }}{{ $.C }}{{ (index .D 0).E }}{{ range $x := .F }}{{ $x.G }}{{ end }}{{ upper \"x.H\" }}";
    let template = Template::parse(text).unwrap();
    assert_eq!(template.names().collect::<String>(), "ABCDEFG");
}

proptest::proptest! {
    /// Whatever an operator writes, and however a node fills it, there is an answer.
    #[test]
    fn nothing_panics(pieces in proptest::collection::vec(piece(), 0..12)) {
        run(&pieces.concat());
    }
}

/// Pieces of templates, right and wrong.
fn piece() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::{Just, Strategy, prop_oneof};
    let fixed = vec![
        "{{",
        "}}",
        "{{- ",
        " -}}",
        "{{ if ",
        "{{ range ",
        "{{ with ",
        "{{ else }}",
        "{{ end }}",
        "{{ define \"x\" }}",
        "{{ template \"x\" . }}",
        "(",
        ")",
        "|",
        " := ",
        "$x",
        ".",
        ".Subject",
        ".CommonName",
        ".DNSNames",
        "nil",
        "\"a b\"",
        "`r`",
        "'c'",
        "3",
        "-1",
        "1.5",
        " ",
        "\n",
        "printf \"%v %5.1f %q\" ",
        "substr 1 3 ",
        "trunc -2 ",
        "wrap 3 ",
        "abbrevboth 6 8 ",
        "slice ",
        "index ",
        "list 1 2 ",
        "dict \"a\" 1 ",
        "set ",
        "merge ",
        "chunk 2 ",
        "regexFindAll \"a|é*\" ",
        "regexSplit \"\" ",
        "urlParse ",
        "b64dec ",
        "snakecase ",
        "initials ",
        "é",
        "/*",
        "*/",
    ];
    prop_oneof![
        8 => proptest::sample::select(fixed).prop_map(str::to_owned),
        1 => "\\PC{0,4}",
        1 => Just("{{ . }}".to_owned()),
    ]
}
