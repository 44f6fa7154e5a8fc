//! System errors in Go's words: what `syscall.Errno.Error` and `os.PathError` print.

use std::fmt::Display;
use std::io;

/// The text that Go prints for a system error: the C library's, in lower case and without the number.
/// Operators and scripts search for `no such file or directory`.
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

/// `open /etc/x: permission denied`: an `os.PathError` with its operation and path.
pub fn path_error(operation: &str, path: impl Display, error: &io::Error) -> String {
    format!("{operation} {path}: {}", errno_text(error))
}

#[cfg(test)]
mod tests {
    use super::{errno_text, path_error};
    use std::io;

    #[test]
    fn system_errors_read_as_in_go() {
        for (number, text) in
            [(2, "no such file or directory"), (13, "permission denied"), (28, "no space left on device")]
        {
            assert_eq!(errno_text(&io::Error::from_raw_os_error(number)), text);
        }
        assert_eq!(errno_text(&io::Error::other("As it is (os error 2)")), "As it is (os error 2)");
        let missing = io::Error::from_raw_os_error(2);
        assert_eq!(path_error("open", "/x/y", &missing), "open /x/y: no such file or directory");
    }
}
