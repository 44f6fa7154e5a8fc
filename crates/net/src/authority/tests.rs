//! Raw frames as gRPC clients send them, through a real tonic server; cuts at every octet; hostile input.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::AuthorityGuard;
use super::frames::{Progress, Rewriter, Violation};
use crate::fixture;
use crate::hpack::{Decoder, encode_huffman};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PATH: &str = "/test.Echo/Call";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_uint(payload.len() as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
    out.put_slice(payload);
    out.to_vec()
}

fn text(out: &mut Vec<u8>, value: &str) {
    assert!(value.len() < 127);
    out.push(value.len() as u8);
    out.extend(value.as_bytes());
}

/// The header block of a first call by gRPC C-core: everything enters the dynamic table.
fn first_block(authority: &str) -> Vec<u8> {
    let mut block = vec![0x86, 0x83];
    block.push(0x44);
    text(&mut block, PATH);
    block.push(0x41);
    text(&mut block, authority);
    for (name, value) in [("te", "trailers"), ("grpc-accept-encoding", "identity, deflate, gzip")] {
        block.push(0x40);
        text(&mut block, name);
        text(&mut block, value);
    }
    block.push(0x5f);
    text(&mut block, "application/grpc");
    block.push(0x7a);
    text(&mut block, "grpc-c++/1.62.0 grpc-c/39.0.0 (linux; chttp2)");
    block
}

/// The second call names the entries that the first one left: 62 is the newest.
fn second_block() -> Vec<u8> {
    vec![0x86, 0x83, 67, 66, 65, 64, 63, 62].into_iter().map(|i: u8| i | 0x80).collect()
}

fn opening() -> Vec<u8> {
    let mut out = PREFACE.to_vec();
    // SETTINGS as C-core sends them: no push, no streams from us, its window and frame size.
    out.extend(frame(
        4,
        0,
        0,
        &[0, 2, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 4, 0, 0x40, 0, 0, 0, 5, 0, 0x40, 0, 0],
    ));
    out.extend(frame(8, 0, 0, &[0, 0x3e, 0, 1]));
    out
}

/// An empty message, ending the stream.
fn message(stream: u32) -> Vec<u8> {
    frame(0, 1, stream, &[0, 0, 0, 0, 0])
}

fn two_calls(authority: &str) -> Vec<u8> {
    let mut out = opening();
    out.extend(frame(1, 4, 1, &first_block(authority)));
    out.extend(message(1));
    out.extend(frame(1, 4, 3, &second_block()));
    out.extend(message(3));
    out
}

/// What a server answered on one stream.
#[derive(Debug, PartialEq)]
enum Answer {
    Reset(u32),
    Trailers(Vec<(String, String)>),
}

/// Reads frames until each of `streams` has ended.
async fn answers(io: &mut DuplexStream, streams: &[u32]) -> Vec<(u32, Answer)> {
    let mut decoder = Decoder::new();
    let mut answers: Vec<(u32, Answer)> = Vec::new();
    while !streams.iter().all(|stream| answers.iter().any(|(s, _)| s == stream)) {
        let mut head = [0; 9];
        io.read_exact(&mut head).await.expect("frame head");
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        io.read_exact(&mut payload).await.expect("frame payload");
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match head[3] {
            1 => {
                let fields = decoder.decode(&payload, 65_536).expect("server's block");
                if head[4] & 1 != 0 {
                    let text = |b: &Bytes| String::from_utf8(b.to_vec()).expect("text");
                    let fields = fields.iter().map(|f| (text(&f.name), text(&f.value))).collect();
                    answers.push((stream, Answer::Trailers(fields)));
                }
            }
            3 => {
                let code = payload.try_into().map(u32::from_be_bytes).expect("four octets");
                answers.push((stream, Answer::Reset(code)));
            }
            _ => {}
        }
    }
    answers
}

async fn call(guarded: bool, input: &[u8], streams: &[u32]) -> Vec<(u32, Answer)> {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    if guarded {
        fixture::serve(AuthorityGuard::new(server));
    } else {
        fixture::serve(server);
    }
    client.write_all(input).await.expect("server reads");
    answers(&mut client, streams).await
}

fn served(answer: &Answer, authority: &str) {
    let Answer::Trailers(fields) = answer else { panic!("no trailers: {answer:?}") };
    let has = |name: &str, value: &str| fields.contains(&(name.to_owned(), value.to_owned()));
    assert!(has("grpc-status", "0"), "{fields:?}");
    assert!(has("seen-authority", authority), "{fields:?}");
    assert!(has("seen-path", PATH), "{fields:?}");
    assert!(has("seen-user-agent", "grpc-c++/1.62.0 grpc-c/39.0.0 (linux; chttp2)"), "{fields:?}");
}

const REFUSED: [&str; 5] =
    ["%2Ftmp%2Fagent.sock", "/tmp/agent.sock", "", "unix:/tmp/a.sock", "/run/spire agent/a.sock"];

#[tokio::test]
async fn refused_authorities_are_served_as_localhost() {
    for authority in REFUSED {
        let answers = call(true, &two_calls(authority), &[1, 3]).await;
        assert_eq!(answers.len(), 2, "{authority}");
        for (_, answer) in &answers {
            served(answer, "localhost");
        }
    }
}

/// The reason for this module: the day this fails, the module can go.
#[tokio::test]
async fn the_library_alone_refuses_them() {
    const PROTOCOL_ERROR: u32 = 1;
    for authority in REFUSED {
        let answers = call(false, &two_calls(authority), &[1]).await;
        assert_eq!(answers[0], (1, Answer::Reset(PROTOCOL_ERROR)), "{authority}");
    }
}

#[tokio::test]
async fn valid_authorities_arrive_unchanged() {
    for authority in ["localhost", "spire_agent", "unused", "127.0.0.1:8081", "@abstract"] {
        for (_, answer) in call(true, &two_calls(authority), &[1, 3]).await {
            served(&answer, authority);
        }
    }
}

/// As [`first_block`], Huffman-coded as h2 and grpc-go send it.
fn coded_block(authority: &str) -> Vec<u8> {
    let mut block = vec![0x86, 0x83];
    let mut put = |index: &[u8], texts: &[&str]| {
        block.extend(index);
        for value in texts {
            let coded = encode_huffman(value.as_bytes());
            assert!(coded.len() < 127);
            block.push(0x80 | coded.len() as u8);
            block.extend(coded);
        }
    };
    put(&[0x44], &[PATH]);
    put(&[0x41], &[authority]);
    put(&[0x40], &["te", "trailers"]);
    put(&[0x40], &["grpc-accept-encoding", "identity, deflate, gzip"]);
    put(&[0x5f], &["application/grpc"]);
    put(&[0x7a], &["grpc-c++/1.62.0 grpc-c/39.0.0 (linux; chttp2)"]);
    block
}

#[tokio::test]
async fn a_first_block_is_spelt_out_and_later_ones_name_its_entries() {
    let after = [message(1), frame(1, 4, 3, &second_block()), message(3)].concat();
    for authority in ["localhost", "127.0.0.1:8081"] {
        let input = [opening(), frame(1, 4, 1, &coded_block(authority)), after.clone()].concat();
        assert_eq!(rewritten([&input[..]]).expect("well-formed"), two_calls(authority));
        // Padded and in pieces it is the same.
        let block = coded_block(authority);
        let (a, b) = block.split_at(10);
        let mut padded = vec![2];
        padded.extend(a);
        padded.extend([0; 2]);
        let frames = [frame(1, 8, 1, &padded), frame(9, 4, 1, b)].concat();
        let pieces = [opening(), frames, after.clone()].concat();
        for size in [1, 7, pieces.len()] {
            assert_eq!(rewritten(pieces.chunks(size)).expect("well-formed"), two_calls(authority));
        }
        for (_, answer) in call(true, &input, &[1, 3]).await {
            served(&answer, authority);
        }
    }
    // An authority that is refused is replaced as ever.
    let input = [opening(), frame(1, 4, 1, &coded_block("/tmp/agent.sock")), after].concat();
    assert_eq!(
        rewritten([&input[..]]).expect("well-formed"),
        rewritten([&two_calls("/tmp/agent.sock")[..]]).expect("well-formed")
    );
}

#[test]
fn a_block_that_needs_more_than_a_frame_leaves_as_it_came() {
    let mut block = coded_block("localhost");
    let value = vec![b'e'; 12_000];
    for _ in 0..2 {
        block.extend([0, 1, b'n']);
        let coded = encode_huffman(&value);
        let rest = coded.len() - 127;
        block.extend([0xff, (rest & 0x7f) as u8 | 0x80, (rest >> 7) as u8]);
        block.extend(coded);
    }
    assert!(block.len() < 16_384 && 2 * value.len() > 16_384);
    let input = [opening(), frame(1, 4, 1, &block), message(1)].concat();
    assert_eq!(rewritten([&input[..]]).expect("well-formed"), input);
}

/// Feeds `pieces` as a socket would and gives what the reader sees.
fn rewritten<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<u8>, Violation> {
    let mut rewriter = Some(Rewriter::new());
    let mut out = BytesMut::new();
    for piece in pieces {
        match rewriter.as_mut().map(|r| r.push(piece, &mut out)).transpose()? {
            None => out.extend_from_slice(piece),
            Some(Progress::More) => {}
            Some(Progress::StepAside { consumed }) => {
                out.extend_from_slice(&piece[consumed..]);
                rewriter = None;
            }
        }
    }
    Ok(out.to_vec())
}

#[test]
fn a_cut_at_any_octet_changes_nothing() {
    for authority in ["localhost", "/tmp/agent.sock"] {
        let input = two_calls(authority);
        let whole = rewritten([&input[..]]).expect("well-formed");
        assert_eq!(authority == "localhost", whole == input);
        for cut in 0..input.len() {
            let (a, b) = input.split_at(cut);
            assert_eq!(rewritten([a, b]).expect("well-formed"), whole, "cut at {cut}");
        }
        assert_eq!(rewritten(input.chunks(1)).expect("well-formed"), whole);
    }
}

#[tokio::test]
async fn a_guarded_stream_read_in_crumbs_is_the_same() {
    let input = two_calls("/tmp/agent.sock");
    let whole = rewritten([&input[..]]).expect("well-formed");
    let (mut client, server) = tokio::io::duplex(7);
    let sender = tokio::spawn(async move { client.write_all(&input).await });
    let mut guard = AuthorityGuard::new(server);
    let mut seen = vec![0; whole.len()];
    for octet in &mut seen {
        guard.read_exact(std::slice::from_mut(octet)).await.expect("octet");
    }
    sender.await.expect("task").expect("written");
    assert_eq!(seen, whole);
}

#[tokio::test]
async fn padding_priority_and_continuation_are_understood() {
    let block = first_block("/tmp/agent.sock");
    let (a, rest) = block.split_at(9);
    let (b, c) = rest.split_at(20);
    let mut padded = vec![4];
    padded.extend([0, 0, 0, 0, 15]);
    padded.extend(a);
    padded.extend([0; 4]);
    let mut input = opening();
    input.extend(frame(1, 0x28, 1, &padded));
    input.extend(frame(9, 0, 1, b));
    input.extend(frame(9, 0, 1, &[]));
    input.extend(frame(9, 4, 1, c));
    input.extend(message(1));
    let answers = call(true, &input, &[1]).await;
    served(&answers[0].1, "localhost");
}

#[tokio::test]
async fn a_large_block_leaves_in_several_frames() {
    let mut block = first_block("/tmp/agent.sock");
    // 20 fields of 1 KiB, so more than one frame once written again.
    for index in 0..20 {
        block.push(0);
        text(&mut block, &format!("x-filler-{index}"));
        block.extend([0x7f, 0x81, 0x07]);
        block.extend([b'v'; 0x7f + 0x381]);
    }
    let (a, b) = block.split_at(12_000);
    let mut input = opening();
    input.extend(frame(1, 0, 1, a));
    input.extend(frame(9, 4, 1, b));
    input.extend(message(1));
    let seen = rewritten([&input[..]]).expect("within bounds");
    let continuation = [9, 4, 0, 0, 0, 1];
    assert!(seen.windows(6).any(|w| w == continuation), "one CONTINUATION that ends the block");
    served(&call(true, &input, &[1]).await[0].1, "localhost");
}

#[test]
fn trailers_of_a_client_are_rewritten_without_an_authority() {
    let mut input = opening();
    input.extend(frame(1, 4, 1, &first_block("")));
    let before = rewritten([&input[..]]).expect("well-formed").len();
    // 62 is the user agent that the first block left in the table.
    input.extend(frame(1, 5, 1, &[0xbe]));
    let seen = rewritten([&input[..]]).expect("well-formed");
    let trailers = &seen[before..];
    assert_eq!(&trailers[3..9], &[1, 5, 0, 0, 0, 1]);
    let fields = Decoder::new().decode(&trailers[9..], 4096).expect("our block");
    assert_eq!(fields.len(), 1);
    assert_eq!(fields[0].name.as_ref(), b"user-agent");
}

/// What comes after a connection is known to need rewriting.
fn after(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut input = opening();
    input.extend(frame(1, 4, 1, &first_block("/tmp/agent.sock")));
    input.extend(frames.concat());
    input
}

#[test]
fn hostile_frames_end_a_rewritten_connection() {
    let large = vec![0; 16_385];
    let filler = vec![0; 16_000];
    let many = std::iter::once(frame(1, 0, 3, &[0x86]))
        .chain((0..5).map(|_| frame(9, 0, 3, &filler)))
        .collect::<Vec<_>>();
    let empty = std::iter::once(frame(1, 0, 3, &[0x86]))
        .chain((0..80).map(|_| frame(9, 0, 3, &[])))
        .collect::<Vec<_>>();
    let cases: [(&str, Vec<Vec<u8>>, &str); 8] = [
        ("frame size", vec![frame(1, 4, 3, &large)], "larger than announced"),
        ("block size", many, "larger than 65536"),
        ("empty continuations", empty, "more than 64 frames"),
        ("stream 0", vec![frame(1, 4, 0, &[0x86])], "stream 0"),
        ("stray continuation", vec![frame(9, 4, 3, &[0x86])], "not contiguous"),
        ("data inside a block", vec![frame(1, 0, 3, &[0x86]), message(1)], "not contiguous"),
        ("padding", vec![frame(1, 0xc, 3, &[9, 0x86])], "shorter than its padding"),
        ("table index", vec![frame(1, 4, 3, &[0xff, 0x30])], "not in the table"),
    ];
    for (name, frames, text) in cases {
        let error = rewritten([&after(&frames)[..]]).expect_err(name).to_string();
        assert!(error.contains(text), "{name}: {error}");
    }
}

#[test]
fn what_is_no_http2_passes() {
    for input in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b""] {
        assert_eq!(rewritten(input.chunks(1)).expect("not ours"), input);
    }
    let mut broken = opening();
    broken.extend(frame(1, 4, 1, &[0xff, 0x30]));
    broken.extend(message(1));
    assert_eq!(rewritten([&broken[..]]).expect("left to the library"), broken);
}

#[tokio::test]
async fn the_inspection_is_dropped_with_the_first_valid_request() {
    let input = two_calls("localhost");
    let (mut client, server) = tokio::io::duplex(1 << 16);
    client.write_all(&input).await.expect("room");
    let mut guard = AuthorityGuard::new(server);
    let mut seen = vec![0; input.len()];
    guard.read_exact(&mut seen).await.expect("all of it");
    assert_eq!(seen, input);
    assert!(guard.inspection.is_none());
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..80),
        prop::sample::select(REFUSED.to_vec()).prop_map(first_block),
        prop::sample::select(vec!["localhost", "/tmp/agent.sock"]).prop_map(coded_block),
        Just(second_block()),
    ];
    let kind = prop_oneof![Just(1_u8), Just(9), Just(0), any::<u8>()];
    let flags = prop_oneof![Just(4_u8), Just(0), any::<u8>()];
    (kind, flags, 0_u32..4, payload)
        .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload))
}

proptest! {
    #[test]
    fn no_input_panics_and_no_cut_matters(
        frames in prop::collection::vec(any_frame(), 0..12),
        tail in prop::collection::vec(any::<u8>(), 0..30),
        size in 1_usize..40,
    ) {
        let mut input = opening();
        input.extend(frames.concat());
        input.extend(tail);
        let whole = rewritten([&input[..]]);
        let pieces = rewritten(input.chunks(size));
        match (whole, pieces) {
            (Ok(a), Ok(b)) => prop_assert_eq!(a, b),
            (a, b) => prop_assert_eq!(a.map_err(|e| e.to_string()), b.map_err(|e| e.to_string())),
        }
    }

    #[test]
    fn any_octets_are_taken(input in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut rewriter = Rewriter::new();
        let _ = rewriter.push(&input, &mut BytesMut::new());
        let mut rewriter = Rewriter::new();
        let mut out = BytesMut::new();
        let _ = rewriter.push(&after(&[]), &mut out);
        let _ = rewriter.push(&input, &mut out);
    }
}

#[test]
fn a_rewritten_block_never_names_a_table() {
    let seen = rewritten([&two_calls("/tmp/agent.sock")[..]]).expect("well-formed");
    let mut decoder = Decoder::new();
    let mut rest = &seen[PREFACE.len()..];
    let mut blocks = 0;
    while let [l0, l1, l2, kind, _, _, _, _, _, after @ ..] = rest {
        let (payload, next) = after.split_at(u32::from_be_bytes([0, *l0, *l1, *l2]) as usize);
        if *kind == 1 {
            let fields = decoder.decode(payload, 65_536).expect("our block");
            assert!(
                fields.iter().any(|f| f.name.as_ref() == b":authority" && f.value.as_ref() == b"localhost")
            );
            assert!(Decoder::new().decode(payload, 65_536).is_ok());
            blocks += 1;
        }
        rest = next;
    }
    assert_eq!(blocks, 2);
}
