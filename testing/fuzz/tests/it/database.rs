//! What a database server says to the client of MySQL, packet by packet.

use spire_fuzz::{changed, input_or_changed};
use spire_store::fuzzing::{PASSWORD, converse};
use tokio::runtime::Builder;

const OK: &[u8] = b"\x00\x00\x00\x02\x00\x00\x00";
const END: &[u8] = b"\xfe\x00\x00\x02\x00";
const PREPARED: &[u8] = b"\x00\x01\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00";
const COLUMN: &[u8] = b"\x03def\x01d\x01t\x01t\x01c\x01c\x0c\x2d\x00\xff\x00\x00\x00\xfd\x00\x00\x00\x00\x00";
const NUMBER: &[u8] = b"\x03def\x01d\x01t\x01t\x01n\x01n\x0c\x3f\x00\x0b\x00\x00\x00\x08\x20\x00\x00\x00\x00";
const MOMENT: &[u8] = b"\x03def\x01d\x01t\x01t\x01m\x01m\x0c\x3f\x00\x0b\x00\x00\x00\x0c\x00\x00\x00\x00\x00";
const ROW: &[u8] = b"\x00\x00\x02hi\x07\x00\x00\x00\x00\x00\x00\x00\x07\xea\x07\x0b\x16\x15\x05\x06";

/// A conversation: sequence numbers and payloads.
fn conversation(method: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut hello = b"\x0a10.11.6-MariaDB\0\x01\0\0\0AAAAAAAA\0\xfe\xf7\x2d\x02\0\xff\x81\x15".to_vec();
    hello.extend_from_slice(&[0; 10]);
    hello.extend_from_slice(b"BBBBBBBBBBBB\0");
    hello.extend_from_slice(method);
    hello.push(0);
    let mut packets = vec![(0, hello), (2, OK.to_vec()), (1, OK.to_vec())];
    for _ in 0..2 {
        let prepared = [PREPARED, COLUMN, END, COLUMN, END];
        let answered = [b"\x03", COLUMN, NUMBER, MOMENT, END, ROW, ROW, END];
        for answer in [&prepared[..], &answered[..]] {
            packets.extend((1..).zip(answer.iter().map(|payload| payload.to_vec())));
        }
    }
    packets
}

fn framed(packets: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let one = |(sequence, payload): &(u8, Vec<u8>)| {
        let length = u32::try_from(payload.len()).expect("short").to_le_bytes();
        [&length[..3], &[*sequence], payload].concat()
    };
    packets.iter().flat_map(one).collect()
}

/// Whatever the server says: no panic, no more heard than was said, and the password is never sent as it is.
fn check(said: &[u8]) -> bool {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let heard = runtime.block_on(converse(said));
    assert!(heard.octets <= said.len() && heard.rows <= said.len());
    assert!(!heard.sent.windows(PASSWORD.len()).any(|sent| sent == PASSWORD.as_bytes()));
    heard.answers == 3
}

#[test]
fn samples_are_understood() {
    assert!(check(&framed(&conversation(b"mysql_native_password"))));
}

/// Packets whose lengths are right, with payloads that are not.
#[test]
fn mysql_payloads() {
    let samples: Vec<_> = [&b"mysql_native_password"[..], b"caching_sha2_password", b"sha256_password"]
        .map(conversation)
        .into();
    bolero::check!().for_each(|input: &[u8]| {
        let Some((which, mut rest)) = input.split_first() else { return };
        let mut packets = samples[usize::from(*which) % samples.len()].clone();
        // A packet, a number of changes, and the changes.
        while let [at, count, changes @ ..] = rest {
            let (mine, others) = changes.split_at(changes.len().min(4 * (1 + usize::from(*count) % 4)));
            let at = usize::from(*at) % packets.len();
            packets[at].1 = changed(&packets[at].1, mine);
            rest = others;
        }
        check(&framed(&packets));
    });
}

/// Octets that need not be packets.
#[test]
fn mysql_octets() {
    let sample = framed(&conversation(b"caching_sha2_password"));
    bolero::check!().for_each(|input: &[u8]| {
        check(&input_or_changed(&[&sample], input));
    });
}
