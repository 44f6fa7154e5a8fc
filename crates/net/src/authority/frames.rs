//! The frames of a client's side of an HTTP/2 connection (RFC 9113), as far as header blocks need.

use bytes::{BufMut, Bytes, BytesMut};

use crate::hpack::{self, Decoder, Field, HpackError, Piece};

/// What a client sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEAD_SIZE: usize = 9;
const TYPE_HEADERS: u8 = 1;
const TYPE_CONTINUATION: u8 = 9;
const FLAG_END_STREAM: u8 = 0x1;
const FLAG_END_HEADERS: u8 = 0x4;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
const PRIORITY_SIZE: usize = 5;

/// The initial SETTINGS_MAX_FRAME_SIZE (RFC 9113 section 6.5.2), which our servers announce.
const FRAME_SIZE_MAX: usize = 16_384;

/// Bound on a header block, coded and decoded. gRPC clients refuse more than 8 KiB of metadata unless told
/// otherwise, so this leaves room for tokens in metadata and still costs an attacker's connection little
/// memory.
const BLOCK_SIZE_MAX: usize = 65_536;

/// Bound on the frames of one header block, since empty ones add no size (CVE-2024-27316 and its relatives).
const BLOCK_FRAMES_MAX: u32 = 64;

/// What the HTTP/2 library sees instead of a value that it refuses. grpc-go sends the same on unix sockets.
const REPLACEMENT: &[u8] = b"localhost";

/// Why a connection that needs rewriting cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Violation {
    #[error("HTTP/2 frame of {0} octets is larger than announced")]
    FrameSize(usize),
    #[error("HTTP/2 header block is larger than {BLOCK_SIZE_MAX} octets")]
    BlockSize,
    #[error("HTTP/2 header block has more than {BLOCK_FRAMES_MAX} frames")]
    BlockFrames,
    #[error("HTTP/2 header frame on stream 0")]
    StreamZero,
    #[error("HTTP/2 header block is not contiguous")]
    Interleaved,
    #[error("HTTP/2 header frame is shorter than its padding and priority")]
    Padding,
    #[error(transparent)]
    Hpack(#[from] HpackError),
}

/// What [`Rewriter::push`] wants next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All input was taken.
    More,
    /// Nothing of this connection needs rewriting: what follows `consumed` octets of the input, and all later
    /// input, goes to the reader as it is.
    StepAside {
        /// Octets of this input that the output accounts for.
        consumed: usize,
    },
}

/// Follows the frames of a connection and rewrites its header blocks. Input may be cut anywhere.
#[derive(Debug)]
pub(super) struct Rewriter {
    state: State,
    decoder: Decoder,
    block: Option<Block>,
    /// The raw frames of the first header block, until it is judged; `None` once the connection is being
    /// rewritten.
    held: Option<BytesMut>,
}

#[derive(Debug)]
enum State {
    Preface {
        seen: usize,
    },
    Head {
        head: [u8; HEAD_SIZE],
        seen: usize,
    },
    /// The payload of a frame that is none of ours.
    Copy {
        left: usize,
    },
    Fragment {
        frame: Frame,
        payload: BytesMut,
    },
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

/// A header block of which not all frames are here.
#[derive(Debug)]
struct Block {
    stream: u32,
    end_stream: bool,
    frames: u32,
    fragments: BytesMut,
}

const AT_FRAME: State = State::Head { head: [0; HEAD_SIZE], seen: 0 };

impl Rewriter {
    pub(super) fn new() -> Self {
        Self {
            state: State::Preface { seen: 0 },
            decoder: Decoder::new(),
            block: None,
            held: Some(BytesMut::new()),
        }
    }

    /// Takes all of `input` and appends to `out` what the reader may see.
    ///
    /// Before the first header block is judged nothing is an error: the HTTP/2 library sees the original
    /// octets and answers as it would without us.
    pub(super) fn push(&mut self, input: &[u8], out: &mut BytesMut) -> Result<Progress, Violation> {
        let mut rest = input;
        while !rest.is_empty() {
            let aside = match self.step(&mut rest, out) {
                Ok(aside) => aside,
                Err(_) if self.held.is_some() => true,
                Err(violation) => return Err(violation),
            };
            if aside {
                out.extend_from_slice(&self.held.take().unwrap_or_default());
                return Ok(Progress::StepAside { consumed: input.len() - rest.len() });
            }
        }
        Ok(Progress::More)
    }

    /// Takes the next piece of `rest`; true means that the connection needs no rewriting.
    fn step(&mut self, rest: &mut &[u8], out: &mut BytesMut) -> Result<bool, Violation> {
        match &mut self.state {
            State::Preface { seen } => {
                let expected = PREFACE.get(*seen..).unwrap_or_default();
                let same = rest.iter().zip(expected).take_while(|(a, b)| a == b).count();
                let piece = take(rest, same);
                out.extend_from_slice(piece);
                if same == expected.len() {
                    self.state = AT_FRAME;
                } else if !rest.is_empty() {
                    // Not HTTP/2, which is not ours to answer.
                    return Ok(true);
                } else {
                    *seen += same;
                }
            }
            State::Head { head, seen } => {
                let piece = take(rest, HEAD_SIZE - *seen);
                for (slot, octet) in head.iter_mut().skip(*seen).zip(piece) {
                    *slot = *octet;
                }
                *seen += piece.len();
                if *seen == HEAD_SIZE {
                    let head = *head;
                    return self.begin(head, out);
                }
            }
            State::Copy { left } => {
                let piece = take(rest, *left);
                out.extend_from_slice(piece);
                *left -= piece.len();
                if *left == 0 {
                    self.state = AT_FRAME;
                }
            }
            State::Fragment { frame, payload } => {
                let piece = take(rest, frame.length - payload.len());
                payload.extend_from_slice(piece);
                if let Some(held) = &mut self.held {
                    held.extend_from_slice(piece);
                }
                if payload.len() == frame.length {
                    let (frame, payload) = (*frame, payload.split().freeze());
                    return self.fragment(frame, payload, out);
                }
            }
        }
        Ok(false)
    }

    /// Decides by its head where a frame's payload goes.
    fn begin(&mut self, head: [u8; HEAD_SIZE], out: &mut BytesMut) -> Result<bool, Violation> {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = head;
        let frame = Frame {
            length: u32::from_be_bytes([0, l0, l1, l2]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff,
        };
        let ours = matches!(frame.kind, TYPE_HEADERS | TYPE_CONTINUATION);
        if !ours && self.block.is_none() {
            out.extend_from_slice(&head);
            self.state = if frame.length == 0 { AT_FRAME } else { State::Copy { left: frame.length } };
            return Ok(false);
        }
        if let Some(held) = &mut self.held {
            held.extend_from_slice(&head);
        }
        let contiguous = match &self.block {
            None => frame.kind == TYPE_HEADERS,
            Some(block) => frame.kind == TYPE_CONTINUATION && frame.stream == block.stream,
        };
        if !contiguous {
            return Err(Violation::Interleaved);
        }
        if frame.stream == 0 {
            return Err(Violation::StreamZero);
        }
        if frame.length > FRAME_SIZE_MAX {
            return Err(Violation::FrameSize(frame.length));
        }
        if frame.length == 0 {
            return self.fragment(frame, Bytes::new(), out);
        }
        self.state = State::Fragment { frame, payload: BytesMut::new() };
        Ok(false)
    }

    /// Takes one whole HEADERS or CONTINUATION frame.
    fn fragment(&mut self, frame: Frame, payload: Bytes, out: &mut BytesMut) -> Result<bool, Violation> {
        self.state = AT_FRAME;
        let mut block = self.block.take().unwrap_or(Block {
            stream: frame.stream,
            end_stream: frame.kind == TYPE_HEADERS && frame.flags & FLAG_END_STREAM != 0,
            frames: 0,
            fragments: BytesMut::new(),
        });
        let fragment = if frame.kind == TYPE_HEADERS { unpadded(&payload, frame.flags)? } else { &payload };
        block.frames += 1;
        if block.frames > BLOCK_FRAMES_MAX {
            return Err(Violation::BlockFrames);
        }
        if block.fragments.len() + fragment.len() > BLOCK_SIZE_MAX {
            return Err(Violation::BlockSize);
        }
        block.fragments.extend_from_slice(fragment);
        if frame.flags & FLAG_END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(false);
        }
        let Some(held) = &mut self.held else {
            let fields = self.decoder.decode(&block.fragments, BLOCK_SIZE_MAX)?;
            emit_fields(&block, fields, out);
            return Ok(false);
        };
        let mut spelt = BytesMut::with_capacity(block.fragments.len() * 2);
        let fields =
            self.decoder.decode_spelling(&block.fragments, BLOCK_SIZE_MAX, &mut |piece| match piece {
                Piece::Coded(octets) => spelt.extend_from_slice(octets),
                Piece::Text(text) => hpack::encode_text(text, &mut spelt),
            })?;
        if fields.iter().all(|field| !is_authority(field) || is_accepted(&field.value)) {
            // What needs more than a frame leaves as it came; so does what has nothing to spell out.
            if spelt.len() <= FRAME_SIZE_MAX && spelt != block.fragments {
                held.clear();
                emit(&block, spelt, held);
            }
            return Ok(true);
        }
        self.held = None;
        emit_fields(&block, fields, out);
        Ok(false)
    }
}

/// The fragment within a HEADERS payload (RFC 9113 section 6.2). Priority is dropped with the padding,
/// since it is deprecated and nobody reads it.
fn unpadded(payload: &[u8], flags: u8) -> Result<&[u8], Violation> {
    let mut rest = payload;
    let mut padding = 0;
    if flags & FLAG_PADDED != 0 {
        let (&length, after) = rest.split_first().ok_or(Violation::Padding)?;
        (padding, rest) = (usize::from(length), after);
    }
    let skipped = if flags & FLAG_PRIORITY != 0 { PRIORITY_SIZE } else { 0 };
    let end = rest.len().checked_sub(padding).ok_or(Violation::Padding)?;
    rest.get(skipped..end).ok_or(Violation::Padding)
}

fn is_authority(field: &Field) -> bool {
    field.name.as_ref() == b":authority"
}

/// Whether the HTTP/2 library takes the value: the same parse that it does.
fn is_accepted(value: &Bytes) -> bool {
    http::uri::Authority::from_maybe_shared(value.clone()).is_ok()
}

/// Writes a block of these fields, with an authority that the HTTP/2 library takes.
fn emit_fields(block: &Block, fields: Vec<Field>, out: &mut BytesMut) {
    let mut coded = BytesMut::with_capacity(block.fragments.len() * 2);
    for mut field in fields {
        if is_authority(&field) {
            field.value = Bytes::from_static(REPLACEMENT);
        }
        hpack::encode(&field, &mut coded);
    }
    emit(block, coded, out);
}

/// Writes a block as HEADERS and, beyond one frame, CONTINUATION frames.
fn emit(block: &Block, mut coded: BytesMut, out: &mut BytesMut) {
    let mut kind = TYPE_HEADERS;
    let mut flags = if block.end_stream { FLAG_END_STREAM } else { 0 };
    loop {
        let fragment = coded.split_to(coded.len().min(FRAME_SIZE_MAX));
        if coded.is_empty() {
            flags |= FLAG_END_HEADERS;
        }
        out.put_uint(fragment.len() as u64, 3);
        out.put_u8(kind);
        out.put_u8(flags);
        out.put_u32(block.stream);
        out.extend_from_slice(&fragment);
        if coded.is_empty() {
            return;
        }
        (kind, flags) = (TYPE_CONTINUATION, 0);
    }
}

fn take<'a>(rest: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (piece, after) = rest.split_at(rest.len().min(most));
    *rest = after;
    piece
}
