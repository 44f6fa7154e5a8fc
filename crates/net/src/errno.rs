//! System errors in Go's words.

use std::io;

/// The text that Go prints for a system error: the C library's, in lower case and without the number. Operators and
/// scripts search for `connect: no such file or directory`.
pub fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    if error.raw_os_error().is_none() {
        return text;
    }
    let words = text.rsplit_once(" (os error").map_or(text.as_str(), |(words, _)| words);
    let mut chars = words.chars();
    match chars.next() {
        // "RFS specific error" and the like keep their capitals.
        Some(first) if !chars.as_str().starts_with(|c: char| c.is_ascii_uppercase()) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => words.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::errno_text;
    use std::io;

    #[test]
    fn system_errors_read_as_in_go() {
        for (number, text) in [
            (2, "no such file or directory"),
            (13, "permission denied"),
            (98, "address already in use"),
            (111, "connection refused"),
        ] {
            assert_eq!(errno_text(&io::Error::from_raw_os_error(number)), text);
        }
        assert_eq!(errno_text(&io::Error::other("As it is (os error 2)")), "As it is (os error 2)");
    }
}
