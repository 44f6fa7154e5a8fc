//! What Go's flag package was seen to do with the same arguments.

use proptest::prelude::*;

use super::*;

fn set() -> FlagSet {
    FlagSet::new("entry create")
        .string("spiffeID", "", "The SPIFFE ID")
        .string("format", "pem", "One of `kind` of formats")
        .bool("admin", false, "Make it an admin")
        .bool("v", false, "Say more")
        .int("ttl", 0, "Seconds")
        .int("size", 5, "A size")
        .duration("wait", GoDuration::from_nanos(1_500_000_000), "How long\nto wait")
        .strings("selector", "Repeatable")
        .custom("output", "pretty", |s| if s == "xml" { Err("unknown".into()) } else { Ok(()) }, "Output")
}

fn refused(arguments: &[&str]) -> String {
    match set().parse(arguments) {
        Err(FlagError::Refused(message)) => message,
        other => panic!("{arguments:?}: {other:?}"),
    }
}

#[test]
fn spellings() {
    for arguments in [
        &["-spiffeID", "x"][..],
        &["--spiffeID", "x"],
        &["-spiffeID=x"],
        &["--spiffeID=x"],
        &["-spiffeID", "y", "-spiffeID", "x"],
    ] {
        assert_eq!(set().parse(arguments).unwrap().string("spiffeID"), "x", "{arguments:?}");
    }
    let parsed = set().parse(&["-ttl", "-5", "-spiffeID", "-weird", "-spiffeID="]).unwrap();
    assert_eq!((parsed.int("ttl"), parsed.string("spiffeID")), (-5, ""));
    assert!(parsed.is_given("ttl") && !parsed.is_given("admin"));
}

#[test]
fn booleans() {
    assert!(set().parse(&["-admin"]).unwrap().bool("admin"));
    assert!(!set().parse(&["-admin", "-admin=false"]).unwrap().bool("admin"));
    let parsed = set().parse(&["-admin", "true", "-ttl", "1"]).unwrap();
    assert_eq!((parsed.int("ttl"), parsed.rest()), (0, &["true".into(), "-ttl".into(), "1".into()][..]));
    assert_eq!(refused(&["-admin=maybe"]), "invalid boolean value \"maybe\" for -admin: parse error");
}

#[test]
fn switches_take_any_value() {
    let set = FlagSet::new("x").switch("on", "Turn it on");
    for argument in ["-on", "-on=false", "-on=perhaps"] {
        assert!(set.parse(&[argument]).unwrap().bool("on"), "{argument}");
    }
    assert!(!set.parse::<&str>(&[]).unwrap().bool("on"));
    assert_eq!(set.usage(), "Usage of x:\n  -on\n    \tTurn it on\n");
}

#[test]
fn what_follows_the_flags() {
    assert_eq!(set().parse(&["-ttl", "1", "--", "-admin"]).unwrap().rest(), ["-admin"]);
    assert_eq!(set().parse(&["-", "-admin"]).unwrap().rest(), ["-", "-admin"]);
    assert_eq!(
        set().parse(&["-selector", "a:1", "-selector", "b:2"]).unwrap().strings("selector"),
        ["a:1", "b:2"]
    );
}

#[test]
fn refusals() {
    assert_eq!(refused(&["-bogus"]), "flag provided but not defined: -bogus");
    assert_eq!(refused(&["-bogus=1"]), "flag provided but not defined: -bogus");
    assert_eq!(refused(&["-spiffeID"]), "flag needs an argument: -spiffeID");
    assert_eq!(refused(&["---x"]), "bad flag syntax: ---x");
    assert_eq!(refused(&["-=x"]), "bad flag syntax: -=x");
    assert_eq!(refused(&["-ttl", "1h"]), "invalid value \"1h\" for flag -ttl: parse error");
    assert_eq!(
        refused(&["-ttl", "99999999999999999999"]),
        "invalid value \"99999999999999999999\" for flag -ttl: value out of range"
    );
    assert_eq!(refused(&["-wait", "5"]), "invalid value \"5\" for flag -wait: parse error");
    assert_eq!(refused(&["-output", "xml"]), "invalid value \"xml\" for flag -output: unknown");
    assert_eq!(set().parse(&["-h"]), Err(FlagError::Help));
    assert_eq!(set().parse(&["--help"]), Err(FlagError::Help));
}

#[test]
fn integers_in_every_base() {
    for (text, want) in
        [("0x1F", 31), ("010", 8), ("0b11", 3), ("0o17", 15), ("1_000", -1), ("0x_1f", 31), ("-0x10", -16)]
    {
        let got = set().parse(&["-ttl", text]).map(|p| p.int("ttl")).unwrap_or(-1);
        assert_eq!(got, want, "{text}");
    }
}

#[test]
fn usage() {
    let want = "Usage of entry create:\n  -admin\n    \tMake it an admin\n  -format kind\n    \tOne of kind of formats (default \"pem\")\n  \
                -output value\n    \tOutput (default pretty)\n  -selector value\n    \tRepeatable\n  -size int\n    \tA size (default 5)\n  \
                -spiffeID string\n    \tThe SPIFFE ID\n  -ttl int\n    \tSeconds\n  -v\tSay more\n  -wait duration\n    \tHow long\n    \tto wait (default 1.5s)\n";
    assert_eq!(set().usage(), want);
    assert!(!set().hide("ttl").usage().contains("-ttl"));
    assert_eq!(set().hide("ttl").parse(&["-ttl", "3"]).unwrap().int("ttl"), 3);
}

proptest! {
    #[test]
    fn nothing_panics(arguments in prop::collection::vec("(-{0,3}(admin|ttl|wait|x|)(=?)[ -~ä]{0,6})", 0..6)) {
        let _ = set().parse(&arguments);
    }
}
