//! What fuzz targets share: inputs that begin as valid ones, since random octets do not get past the first check of a
//! parser.
//!
//! The targets are tests in `tests/it`. `cargo test -p spire-fuzz` runs each for a moment; `cargo bolero test -p spire-fuzz
//! NAME` runs one for as long as wanted, with coverage (docs/testing.md).

pub mod samples;

/// A change of a sample: where, and what.
#[derive(Clone, Copy)]
enum Change {
    Set,
    Insert,
    Remove,
    Repeat,
    Cut,
}

const CHANGES: [Change; 5] = [Change::Set, Change::Insert, Change::Remove, Change::Repeat, Change::Cut];

/// Most of a sample that one change repeats, so that inputs stay short.
const REPEATED_MAX: usize = 64;

/// `sample` with the changes that `input` says, four octets each: which change, where (two) and a value. Fewer than four
/// octets change nothing.
pub fn changed(sample: &[u8], input: &[u8]) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    let (changes, _) = input.as_chunks::<4>();
    for [change, high, low, value] in changes {
        if bytes.is_empty() {
            break;
        }
        let at = usize::from(u16::from_be_bytes([*high, *low])) % bytes.len();
        match CHANGES[usize::from(*change) % CHANGES.len()] {
            Change::Set => bytes[at] = *value,
            Change::Insert => bytes.insert(at, *value),
            Change::Remove => drop(bytes.remove(at)),
            Change::Repeat => {
                let end = bytes.len().min(at + 1 + usize::from(*value) % REPEATED_MAX);
                bytes.extend_from_within(at..end);
            }
            Change::Cut if *value < 32 => bytes.truncate(at),
            Change::Cut => {}
        }
    }
    bytes
}

/// One of `samples`, chosen and changed by `input`; or `input` itself.
pub fn input_or_changed<'a>(samples: &[&'a [u8]], input: &'a [u8]) -> Vec<u8> {
    let Some((first, changes)) = input.split_first() else { return Vec::new() };
    match samples.get(usize::from(*first) % (samples.len() + 1)) {
        Some(sample) => changed(sample, changes),
        None => changes.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_what_the_input_says() {
        assert_eq!(changed(b"abc", &[]), b"abc");
        assert_eq!(changed(b"abc", &[0, 0, 1, b'x']), b"axc");
        assert_eq!(changed(b"abc", &[1, 0, 1, b'x']), b"axbc");
        assert_eq!(changed(b"abc", &[2, 0, 0, 0]), b"bc");
        assert_eq!(changed(b"abc", &[3, 0, 1, 1]), b"abcbc");
        assert_eq!(changed(b"abc", &[4, 0, 1, 0]), b"a");
        assert_eq!(changed(b"abc", &[4, 0, 0, 0, 0, 0, 0, 0]), b"");
        assert_eq!(input_or_changed(&[b"s"], &[0]), b"s");
        assert_eq!(input_or_changed(&[b"s"], &[1, 7]), [7]);
    }
}
