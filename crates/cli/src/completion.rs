//! Shell completion as bash asks for it with `complete -C`: the line comes in `COMP_LINE`, words that fit go to standard
//! output (github.com/posener/complete, which the reference uses).

/// The words of `line` up to `point`, without the binary's, and the one that is being typed; `None` while that is the
/// binary's own.
pub(crate) fn typed<'a>(line: &'a str, point: &str) -> Option<(Vec<&'a str>, &'a str)> {
    let line = point.parse().ok().and_then(|point: usize| line.get(..point)).unwrap_or(line);
    let mut words: Vec<&str> = line.split_whitespace().skip(1).collect();
    let last = if line.ends_with(char::is_whitespace) { Some("") } else { words.pop() };
    Some((words, last?)).filter(|_| line.split_whitespace().next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_into_words() {
        assert_eq!(typed("spire-server", ""), None);
        assert_eq!(typed("", ""), None);
        assert_eq!(typed("spire-server ", ""), Some((vec![], "")));
        assert_eq!(typed("spire-server entry s", ""), Some((vec!["entry"], "s")));
        assert_eq!(typed("spire-server en zzz", "15"), Some((vec![], "en")));
        assert_eq!(typed("spire-server en", "x"), Some((vec![], "en")));
        assert_eq!(typed("spire-server en", "99"), Some((vec![], "en")));
    }
}
