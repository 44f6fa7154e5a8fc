//! Imitates Go's `os.Expand`, which `-expandEnv` applies to the whole text of a configuration file.

/// Replaces `$name` and `${name}` in `text` by what `lookup` returns for the name.
///
/// A name is a run of letters, digits and `_`, or one of `*#$@!?-0123456789` alone; in braces anything up to
/// the closing brace. `${}` disappears, an opening `${` without end disappears, and a `$` before anything
/// else stays.
pub fn expand(text: &str, mut lookup: impl FnMut(&str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (name, used) = name(rest);
        match (name, used) {
            ("", 0) => out.push('$'),
            ("", _) => {}
            (name, _) => out.push_str(&lookup(name)),
        }
        rest = &rest[used..];
    }
    out.push_str(rest);
    out
}

/// [`expand`] with environment variables as SPIRE does it: `$$` is a dollar sign, what is not set is empty.
pub fn expand_environment(text: &str, mut variable: impl FnMut(&str) -> Option<String>) -> String {
    expand(text, |name| if name == "$" { "$".to_owned() } else { variable(name).unwrap_or_default() })
}

/// The name that follows a `$` and the length of what it takes.
fn name(text: &str) -> (&str, usize) {
    let special = |byte: u8| b"*#$@!?-".contains(&byte) || byte.is_ascii_digit();
    match text.as_bytes() {
        [b'{', first, b'}', ..] if special(*first) => (&text[1..2], 3),
        [b'{', ..] => match text.find('}') {
            Some(1) => ("", 2),
            Some(end) => (&text[1..end], end + 1),
            None => ("", 1),
        },
        [first, ..] if special(*first) => (&text[..1], 1),
        bytes => {
            let word = |byte: &u8| !(byte.is_ascii_alphanumeric() || *byte == b'_');
            let end = bytes.iter().position(word).unwrap_or(bytes.len());
            (&text[..end], end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_as_go_does() {
        let lookup = |name: &str| match name {
            "HOME" => "/home/x".to_owned(),
            "H" => "(h)".to_owned(),
            "*" => "all".to_owned(),
            "1" => "one".to_owned(),
            _ => String::new(),
        };
        let cases = [
            ("", ""),
            ("$HOME/a ${HOME}b $HOMEX.", "/home/x/a /home/xb ."),
            ("$H$H", "(h)(h)"),
            ("$*x ${*}x $12", "allx allx one2"),
            ("${}x ${ y", "x  y"),
            ("$ $. $", "$ $. $"),
            ("${HOME", "HOME"),
            ("é$é", "é$é"),
            ("${a b}!", "!"),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    #[test]
    fn two_dollars_are_one() {
        let variable = |name: &str| (name == "A").then(|| "1".to_owned());
        assert_eq!(expand_environment("$$A ${A} $B # $A", variable), "$A 1  # 1");
    }
}
