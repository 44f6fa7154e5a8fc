//! Golden lines: what logrus v1.9.4 printed for the same entries.

use std::time::Duration;

use super::*;

/// 2026-11-22T10:54:18.12034+05:30.
const AT: Duration = Duration::new(1_795_325_058, 120_340_000);

fn formatter(format: LogFormat, terminal: bool) -> Formatter {
    let start = SystemTime::UNIX_EPOCH + AT - Duration::from_secs(7);
    Formatter { format, terminal, start, zone: Cow::Owned(Zone::fixed("IST", 19_800)) }
}

fn entry(level: Level, message: &str, fields: Vec<(&'static str, Value)>) -> Entry {
    Entry {
        level,
        at: SystemTime::UNIX_EPOCH + AT,
        message: message.to_owned(),
        fields: fields.into_iter().map(|(name, value)| (name.into(), value)).collect(),
    }
}

#[test]
fn a_number_with_a_name() {
    let line = |format| {
        let entry = entry(Level::Info, "m", vec![("status_code", Value::Named(3, "InvalidArgument"))]);
        let mut out = Vec::new();
        formatter(format, false).line(&mut out, &entry);
        String::from_utf8(out).unwrap()
    };
    assert!(line(LogFormat::Json).contains(r#""status_code":3,"#));
    assert!(line(LogFormat::Default).contains(" status_code=InvalidArgument"));
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

fn entries() -> [Entry; 5] {
    let list = Logged::list(["a", "b"]);
    [
        entry(
            Level::Info,
            "Entry created",
            vec![
                ("a", Value::Signed(1)),
                ("b", text("x y")),
                ("c", text("")),
                ("e", text("boom: \"q\"")),
                ("f", Value::Float(1.5)),
                ("spiffe_id", text("spiffe://d.test/a")),
                ("t", Value::Bool(true)),
            ],
        ),
        entry(
            Level::Warn,
            "",
            vec![
                ("fields.level", Value::Signed(1)),
                ("fields.msg", text("m")),
                ("fields.time", text("T")),
                ("file", text("fi.go:3")),
                ("func", text("fn")),
            ],
        ),
        entry(Level::Error, "line\n", vec![("u", text("é\u{a0}\0<&>"))]),
        entry(
            Level::Debug,
            "a msg that is longer than forty-four columns, indeed it is",
            vec![
                ("big", Value::Float(1e21)),
                ("dur", Value::Special(Logged::Duration(Duration::from_secs(3)))),
                ("f2", Value::Float(1e8)),
                ("l", Value::Special(list)),
                ("neg", Value::Signed(-3)),
                ("small", Value::Float(1e-7)),
            ],
        ),
        entry(Level::Trace, "x/y@z^+_.-", vec![("nil", Value::Special(Logged::Nil))]),
    ]
}

fn check(format: LogFormat, terminal: bool, expected: &[&str]) {
    let formatter = formatter(format, terminal);
    for (entry, expected) in entries().iter().zip(expected) {
        let mut line = Vec::new();
        formatter.line(&mut line, entry);
        assert_eq!(String::from_utf8(line).unwrap(), format!("{expected}\n"));
    }
    assert_eq!(expected.len(), entries().len());
}

#[test]
fn text_lines() {
    check(
        LogFormat::Default,
        false,
        &[
            r#"time="2026-11-22T10:54:18+05:30" level=info msg="Entry created" a=1 b="x y" c= e="boom: \"q\"" f=1.5 spiffe_id="spiffe://d.test/a" t=true"#,
            r#"time="2026-11-22T10:54:18+05:30" level=warning fields.level=1 fields.msg=m fields.time=T file="fi.go:3" func=fn"#,
            r#"time="2026-11-22T10:54:18+05:30" level=error msg="line\n" u="é\u00a0\x00<&>""#,
            r#"time="2026-11-22T10:54:18+05:30" level=debug msg="a msg that is longer than forty-four columns, indeed it is" big=1e+21 dur=3s f2=1e+08 l="[a b]" neg=-3 small=1e-07"#,
            r#"time="2026-11-22T10:54:18+05:30" level=trace msg=x/y@z^+_.- nil="<nil>""#,
        ],
    );
}

#[test]
fn explicit_text_has_fractions() {
    let mut line = Vec::new();
    formatter(LogFormat::Text, false).line(&mut line, &entry(Level::Info, "m", Vec::new()));
    assert_eq!(
        String::from_utf8(line).unwrap(),
        "time=\"2026-11-22T10:54:18.12034+05:30\" level=info msg=m\n"
    );
}

#[test]
fn json_lines() {
    check(
        LogFormat::Json,
        false,
        &[
            r#"{"a":1,"b":"x y","c":"","e":"boom: \"q\"","f":1.5,"level":"info","msg":"Entry created","spiffe_id":"spiffe://d.test/a","t":true,"time":"2026-11-22T10:54:18.12034+05:30"}"#,
            r#"{"fields.level":1,"fields.msg":"m","fields.time":"T","file":"fi.go:3","func":"fn","level":"warning","msg":"","time":"2026-11-22T10:54:18.12034+05:30"}"#,
            "{\"level\":\"error\",\"msg\":\"line\\n\",\"time\":\"2026-11-22T10:54:18.12034+05:30\",\"u\":\"é\u{a0}\\u0000\\u003c\\u0026\\u003e\"}",
            r#"{"big":1e+21,"dur":3000000000,"f2":100000000,"l":["a","b"],"level":"debug","msg":"a msg that is longer than forty-four columns, indeed it is","neg":-3,"small":1e-7,"time":"2026-11-22T10:54:18.12034+05:30"}"#,
            r#"{"level":"trace","msg":"x/y@z^+_.-","nil":null,"time":"2026-11-22T10:54:18.12034+05:30"}"#,
        ],
    );
}

#[test]
fn terminal_lines() {
    check(
        LogFormat::Default,
        true,
        &[
            "\x1b[36mINFO\x1b[0m[0007] Entry created                                 \x1b[36ma\x1b[0m=1 \x1b[36mb\x1b[0m=\"x y\" \x1b[36mc\x1b[0m= \x1b[36me\x1b[0m=\"boom: \\\"q\\\"\" \x1b[36mf\x1b[0m=1.5 \x1b[36mspiffe_id\x1b[0m=\"spiffe://d.test/a\" \x1b[36mt\x1b[0m=true",
            "\x1b[33mWARN\x1b[0m[0007]                                               \x1b[33mfields.level\x1b[0m=1 \x1b[33mfields.msg\x1b[0m=m \x1b[33mfields.time\x1b[0m=T \x1b[33mfile\x1b[0m=\"fi.go:3\" \x1b[33mfunc\x1b[0m=fn",
            "\x1b[31mERRO\x1b[0m[0007] line                                          \x1b[31mu\x1b[0m=\"é\\u00a0\\x00<&>\"",
            "\x1b[37mDEBU\x1b[0m[0007] a msg that is longer than forty-four columns, indeed it is  \x1b[37mbig\x1b[0m=1e+21 \x1b[37mdur\x1b[0m=3s \x1b[37mf2\x1b[0m=1e+08 \x1b[37ml\x1b[0m=\"[a b]\" \x1b[37mneg\x1b[0m=-3 \x1b[37msmall\x1b[0m=1e-07",
            "\x1b[37mTRAC\x1b[0m[0007] x/y@z^+_.-                                    \x1b[37mnil\x1b[0m=\"<nil>\"",
        ],
    );
}

#[test]
fn times_as_fields_are_local() {
    let at = vec![("expiration", Value::Special(Logged::Time(1_795_325_058)))];
    let mut line = Vec::new();
    formatter(LogFormat::Default, false).line(&mut line, &entry(Level::Info, "", at.clone()));
    formatter(LogFormat::Json, false).line(&mut line, &entry(Level::Info, "", at));
    assert_eq!(
        String::from_utf8(line).unwrap(),
        concat!(
            "time=\"2026-11-22T10:54:18+05:30\" level=info expiration=\"2026-11-22 10:54:18 +0530 IST\"\n",
            "{\"expiration\":\"2026-11-22T10:54:18+05:30\",\"level\":\"info\",\"msg\":\"\",",
            "\"time\":\"2026-11-22T10:54:18.12034+05:30\"}\n"
        )
    );
}
