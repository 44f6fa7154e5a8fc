//! PEM (RFC 7468) as Go's encoding/pem reads and writes it: text between blocks is passed over, lines may
//! end in CR LF, headers are skipped, and a block that is not well-formed does not hide the next one.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::certificate::{Certificate, CertificateError};

/// Input above this is not looked at. Bundles of system roots are near 250 KiB.
pub const MAX_PEM_BYTES: usize = 4 * 1024 * 1024;

const ENGINE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    // Go's decoder does not insist on zero trailing bits either.
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical)
        .with_decode_allow_trailing_bits(true),
);

/// One block.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    /// What stands between `-----BEGIN ` and the dashes: `CERTIFICATE`, `PRIVATE KEY`, …
    pub label: String,
    /// The decoded bytes.
    pub contents: Vec<u8>,
}

/// Contents may be a private key, so only their length is shown.
impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block {{ label: {:?}, contents: {} bytes }}", self.label, self.contents.len())
    }
}

/// Why PEM does not hold what was asked for. Texts are those of the reference's pkg/common/pemutil.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// Nothing that looks like a block.
    #[error("no PEM blocks")]
    NoBlocks,
    /// A block of another kind.
    #[error("expected block type {expected:?}; got {got:?}")]
    WrongLabel {
        /// The label that was asked for.
        expected: &'static str,
        /// The label that was found.
        got: String,
    },
    /// More blocks than one.
    #[error("expected 1 PEM blocks; got {0}")]
    Count(usize),
    /// The contents are not what the label says; `block` counts from one.
    #[error("unable to parse \"CERTIFICATE\" PEM block {block}: {error}")]
    Certificate {
        /// Which block, from one.
        block: usize,
        /// What is wrong with it.
        error: CertificateError,
    },
}

/// The blocks of `text`, in order.
pub fn blocks(text: &[u8]) -> Blocks<'_> {
    Blocks { rest: if text.len() > MAX_PEM_BYTES { &[] } else { text } }
}

/// Iterates over the blocks of a text.
#[derive(Clone, Debug)]
pub struct Blocks<'a> {
    rest: &'a [u8],
}

impl Iterator for Blocks<'_> {
    type Item = Block;

    fn next(&mut self) -> Option<Block> {
        loop {
            // The first END line, and the last BEGIN before it: an unfinished block is passed over.
            let end = find(self.rest, b"\n-----END ")?;
            let (before, after) = self.rest.split_at(end + 1);
            let (end_line, rest) = line(after);
            self.rest = rest;
            let Some(begin) = rfind_begin(before) else { continue };
            let (begin_line, body) = line(&before[begin..]);
            let label = begin_line
                .strip_prefix(b"-----BEGIN ")
                .and_then(|l| l.strip_suffix(b"-----"))
                .and_then(|l| std::str::from_utf8(l).ok());
            let Some(label) = label else { continue };
            let closes = end_line
                .strip_prefix(b"-----END ")
                .and_then(|l| l.strip_suffix(b"-----"))
                .is_some_and(|l| l == label.as_bytes());
            if !closes {
                continue;
            }
            let mut body = body;
            loop {
                let (header, next) = line(body);
                if !header.contains(&b':') {
                    break;
                }
                body = next;
            }
            let encoded: Vec<u8> =
                body.iter().copied().filter(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n')).collect();
            if let Ok(contents) = ENGINE.decode(&encoded) {
                return Some(Block { label: label.to_owned(), contents });
            }
        }
    }
}

/// The certificates of a PEM text that holds nothing else (pemutil.ParseCertificates).
///
/// # Errors
/// [`PemError::WrongLabel`] or [`PemError::Certificate`] for the first block that is not a certificate;
/// [`PemError::NoBlocks`] when there is none, or the text is longer than [`MAX_PEM_BYTES`].
pub fn certificates(text: &[u8]) -> Result<Vec<Certificate>, PemError> {
    let mut certificates = Vec::new();
    for (i, block) in blocks(text).enumerate() {
        if block.label != "CERTIFICATE" {
            return Err(PemError::WrongLabel { expected: "CERTIFICATE", got: block.label });
        }
        let certificate = Certificate::from_der(block.contents)
            .map_err(|error| PemError::Certificate { block: i + 1, error })?;
        certificates.push(certificate);
    }
    if certificates.is_empty() { Err(PemError::NoBlocks) } else { Ok(certificates) }
}

/// The one certificate of a PEM text (pemutil.ParseCertificate).
///
/// # Errors
/// As [`certificates`], and [`PemError::Count`] when there are several.
pub fn certificate(text: &[u8]) -> Result<Certificate, PemError> {
    let mut all = certificates(text)?;
    match (all.len(), all.pop()) {
        (1, Some(certificate)) => Ok(certificate),
        (count, _) => Err(PemError::Count(count)),
    }
}

/// One block with lines of 64 characters, as Go and OpenSSL write it.
pub fn encode(label: &str, contents: &[u8]) -> String {
    let mut out = String::with_capacity(contents.len() * 4 / 3 + contents.len() / 48 + 2 * label.len() + 40);
    encode_to(&mut out, label, contents);
    out
}

/// Appends one block.
pub fn encode_to(out: &mut String, label: &str, contents: &[u8]) {
    out.push_str("-----BEGIN ");
    out.push_str(label);
    out.push_str("-----\n");
    for chunk in contents.chunks(48) {
        base64::engine::general_purpose::STANDARD.encode_string(chunk, out);
        out.push('\n');
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
}

/// The certificates as PEM, one after the other.
pub fn encode_certificates<'a>(ders: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut out = String::new();
    for der in ders {
        encode_to(&mut out, "CERTIFICATE", der);
    }
    out
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|w| w == what)
}

/// Where the last line that starts a block begins.
fn rfind_begin(text: &[u8]) -> Option<usize> {
    let what = b"-----BEGIN ";
    let at = text.windows(what.len()).rposition(|w| w == what)?;
    (at == 0 || text.get(at - 1) == Some(&b'\n')).then_some(at)
}

/// The first line without its end and trailing blanks, and what follows it.
fn line(text: &[u8]) -> (&[u8], &[u8]) {
    let (line, rest) = match text.iter().position(|b| *b == b'\n') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[][..]),
    };
    (line.trim_ascii_end(), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Vec<(String, usize)> {
        blocks(text.as_bytes()).map(|b| (b.label, b.contents.len())).collect()
    }

    #[test]
    fn round_trips_with_lines_of_64() {
        for len in [0usize, 1, 47, 48, 49, 1000] {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let text = encode("X", &bytes);
            assert!(text.lines().all(|l| l.len() <= 64));
            let parsed: Vec<Block> = blocks(text.as_bytes()).collect();
            assert_eq!(parsed, [Block { label: "X".into(), contents: bytes }]);
        }
    }

    #[test]
    fn reads_as_go_does() {
        let one = "-----BEGIN A-----\nAAAA\n-----END A-----\n";
        assert_eq!(labels(&format!("text\n{one}more\n{one}")), [("A".into(), 3), ("A".into(), 3)]);
        assert_eq!(labels(&one.replace('\n', "\r\n")), [("A".into(), 3)]);
        assert_eq!(labels(one.trim_end()), [("A".into(), 3)]);
        assert_eq!(labels("-----BEGIN A-----\nk: v\n\nAAAA\n-----END A-----\n"), [("A".into(), 3)]);
        // Broken blocks do not hide the next one.
        assert_eq!(labels(&format!("-----BEGIN B-----\n{one}")), [("A".into(), 3)]);
        assert_eq!(labels(&format!("-----BEGIN B-----\n!!!!\n-----END B-----\n{one}")), [("A".into(), 3)]);
        assert_eq!(labels(&format!("-----BEGIN B-----\nAAAA\n-----END C-----\n{one}")), [("A".into(), 3)]);
        assert_eq!(labels("x-----BEGIN A-----\nAAAA\n-----END A-----\n"), []);
        assert_eq!(labels(""), []);
    }
}
