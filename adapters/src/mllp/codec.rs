//! The MLLP frame, `<VT> message <FS><CR>`, without any socket: bytes go in, frames and refused bytes come out.
//!
//! Invariant: what comes out depends on the bytes and on where the stream ends, never on how they were split into reads.
//! Every byte that goes in comes out in a frame, is counted in a refused piece, or is white space or framing.
//!
//! Source: HL7 v2 Implementation Guide, appendix C (minimal lower layer protocol); HL7 MLLP release 1. What is
//! taken beyond it is what senders are seen to do: no CR after the end byte, no start byte, line ends between frames.

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr2};

/// How much of refused bytes is kept for the operator.
pub const HEAD_MAX: usize = 64 * 1024;

/// Frames up to this size are copied out, so that the read buffer is used again; larger ones take the buffer along.
const COPIED_MAX: usize = 16 * 1024;

/// The bytes around a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// Before the message: 0x0B, VT.
    pub start: u8,
    /// After the message: 0x1C, FS.
    pub end: u8,
    /// After the end byte: 0x0D, CR.
    pub trailer: u8,
}

impl Default for Framing {
    fn default() -> Self {
        Framing { start: 0x0B, end: 0x1C, trailer: 0x0D }
    }
}

impl Framing {
    /// Appends `message` in its frame.
    pub fn frame(self, message: &[u8], out: &mut BytesMut) {
        out.reserve(message.len() + 3);
        out.extend_from_slice(&[self.start]);
        out.extend_from_slice(message);
        out.extend_from_slice(&[self.end, self.trailer]);
    }

    /// Whether `message` can travel in a frame: a frame would end early at an end byte with its trailer.
    pub fn can_carry(self, message: &[u8]) -> bool {
        !ends(self, message) && message.last() != Some(&self.end)
    }
}

fn ends(framing: Framing, message: &[u8]) -> bool {
    let mut rest = message;
    while let Some(at) = memchr(framing.end, rest) {
        match rest.get(at + 1) {
            Some(next) if *next == framing.trailer || *next == framing.start => return true,
            _ => rest = &rest[at + 1..],
        }
    }
    false
}

/// What a [`Decoder`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The content of one frame.
    Frame(Bytes),
    /// Bytes that belong to no frame, or a frame that never ended. Somebody should see them.
    Refused {
        /// The first of them, at most [`HEAD_MAX`].
        head: Bytes,
        /// How many there were.
        total: u64,
        /// Why they are no message.
        why: Why,
    },
    /// A frame over the limit. Nothing comes after it: where the next frame begins is anybody's guess.
    TooLarge {
        /// The first [`HEAD_MAX`] bytes of its content.
        head: Bytes,
    },
}

/// Why bytes were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// They stand outside of any frame.
    OutsideFrame,
    /// A frame began and did not end before the next began or the stream ended.
    Unfinished,
}

/// Whether more bytes may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// The next read may bring more: decide only what no further byte can change.
    More,
    /// The sender has paused, and waits perhaps for an answer: an end byte alone is an end.
    Pause,
    /// The stream has ended.
    End,
}

/// Takes a stream apart. Feed [`Decoder::buffer`], then call [`Decoder::next`] until it gives `None`.
///
/// Memory: the buffer holds at most one frame of the limit and one read; refused bytes at most [`HEAD_MAX`].
#[derive(Debug)]
pub struct Decoder {
    framing: Framing,
    limit: usize,
    buffer: BytesMut,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Between frames; what is refused here so far.
    Outside { head: BytesMut, total: u64 },
    /// Within a frame. `scanned` bytes of the buffer hold no decision any more. `started` is false for a message
    /// that came without a start byte.
    Inside { started: bool, scanned: usize },
    /// After a frame over the limit.
    Dead,
}

impl State {
    fn outside() -> Self {
        State::Outside { head: BytesMut::new(), total: 0 }
    }
}

impl Decoder {
    /// A decoder that takes frames of at most `limit` bytes.
    pub fn new(framing: Framing, limit: usize) -> Self {
        Decoder { framing, limit, buffer: BytesMut::new(), state: State::outside() }
    }

    /// Where bytes that were read are appended.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Whether a frame or refused bytes have begun and not ended.
    pub fn is_within(&self) -> bool {
        match &self.state {
            State::Outside { total, .. } => *total > 0 || !self.buffer.is_empty(),
            State::Inside { .. } => true,
            State::Dead => false,
        }
    }

    /// Whether the bytes at hand would make a whole frame if the sender paused here, as one does that leaves out the trailer.
    pub fn may_end_here(&self) -> bool {
        matches!(self.state, State::Inside { .. }) && self.paused_end().is_some()
    }

    /// The next piece, or `None` when more bytes are needed (at [`Edge::End`]: when there is nothing left).
    pub fn next(&mut self, edge: Edge) -> Option<Piece> {
        loop {
            match &mut self.state {
                State::Dead => {
                    self.buffer.clear();
                    return None;
                }
                State::Outside { .. } => {
                    if let Step::Done(piece) = self.outside(edge) {
                        return piece;
                    }
                }
                State::Inside { .. } => {
                    if let Step::Done(piece) = self.inside(edge) {
                        return piece;
                    }
                }
            }
        }
    }

    /// Looks for the beginning of a frame, and gathers what stands before it.
    fn outside(&mut self, edge: Edge) -> Step {
        let State::Outside { head, total } = &mut self.state else { unreachable!("called between frames") };
        if *total == 0 {
            // Line ends, blanks and the trailer of a frame that seemed to end without it are nobody's loss.
            let blank = self.buffer.iter().take_while(|byte| is_blank(self.framing, **byte)).count();
            self.buffer.advance(blank);
            match starts_with_header(&self.buffer, edge) {
                Some(true) => {
                    self.state = State::Inside { started: false, scanned: 0 };
                    return Step::On;
                }
                Some(false) => {}
                None => return Step::Done(None),
            }
        }
        let found = memchr(self.framing.start, &self.buffer);
        let junk = found.unwrap_or(self.buffer.len());
        let kept = junk.min(HEAD_MAX.saturating_sub(head.len()));
        head.extend_from_slice(&self.buffer[..kept]);
        *total += junk as u64;
        self.buffer.advance(junk);
        if found.is_none() && edge != Edge::End {
            return Step::Done(None);
        }
        let refused = (*total > 0).then(|| Piece::Refused {
            head: std::mem::take(head).freeze(),
            total: *total,
            why: Why::OutsideFrame,
        });
        self.state = if found.is_some() {
            self.buffer.advance(1);
            State::Inside { started: true, scanned: 0 }
        } else {
            State::outside()
        };
        match (refused, found) {
            (None, Some(_)) => Step::On,
            (refused, _) => Step::Done(refused),
        }
    }

    /// Looks for the end of the frame.
    fn inside(&mut self, edge: Edge) -> Step {
        let State::Inside { started, scanned } = &mut self.state else {
            unreachable!("called within a frame")
        };
        let started = *started;
        loop {
            let found = memchr2(self.framing.end, self.framing.start, &self.buffer[*scanned..]);
            let at = found.map_or(self.buffer.len(), |found| *scanned + found);
            if at > self.limit {
                return Step::Done(Some(self.too_large()));
            }
            *scanned = at;
            if found.is_none() {
                break;
            }
            let after = &self.buffer[at + 1..];
            if self.buffer[at] == self.framing.start {
                // A start byte is content (a vertical tab in a text), unless a message begins behind it.
                match if started { starts_with_header(after, edge) } else { Some(true) } {
                    Some(true) => return Step::Done(Some(self.restart(at))),
                    Some(false) => *scanned = at + 1,
                    None => break,
                }
                continue;
            }
            match after.first() {
                Some(next) if *next == self.framing.trailer => return Step::Done(Some(self.complete(at, 2))),
                Some(next) if *next == self.framing.start => return Step::Done(Some(self.complete(at, 1))),
                Some(_) => *scanned = at + 1,
                None => break,
            }
        }
        if edge != Edge::More
            && let Some(at) = self.paused_end()
        {
            return Step::Done(Some(self.complete(at, self.buffer.len() - at)));
        }
        if edge == Edge::End {
            let total = self.buffer.len() as u64;
            let head = self.buffer.split_to(HEAD_MAX.min(self.buffer.len())).freeze();
            self.buffer.clear();
            self.state = State::outside();
            return Step::Done((total > 0).then_some(Piece::Refused { head, total, why: Why::Unfinished }));
        }
        Step::Done(None)
    }

    /// Gives up on a frame whose content is longer than the limit.
    fn too_large(&mut self) -> Piece {
        let head = Bytes::copy_from_slice(&self.buffer[..HEAD_MAX.min(self.limit)]);
        self.state = State::Dead;
        self.buffer = BytesMut::new();
        Piece::TooLarge { head }
    }

    /// Where the content ends if nothing more comes: at an end byte with only blanks behind it.
    fn paused_end(&self) -> Option<usize> {
        let blanks = self.buffer.iter().rev().take_while(|byte| is_blank(self.framing, **byte)).count();
        let at = (self.buffer.len() - blanks).checked_sub(1)?;
        (self.buffer[at] == self.framing.end).then_some(at)
    }

    /// Cuts the frame whose content ends before `at`; `closing` bytes close it.
    fn complete(&mut self, at: usize, closing: usize) -> Piece {
        self.state = State::outside();
        let content = if at <= COPIED_MAX {
            let content = Bytes::copy_from_slice(&self.buffer[..at]);
            self.buffer.advance(at + closing);
            content
        } else {
            // The rest moves, so that the large allocation goes when the message does.
            let rest = BytesMut::from(&self.buffer[at + closing..]);
            let mut content = std::mem::replace(&mut self.buffer, rest);
            content.truncate(at);
            content.freeze()
        };
        Piece::Frame(content)
    }

    /// Refuses the frame that did not end before the start byte at `at`, where the next begins.
    fn restart(&mut self, at: usize) -> Piece {
        let head = Bytes::copy_from_slice(&self.buffer[..at.min(HEAD_MAX)]);
        self.buffer.advance(at + 1);
        self.state = State::Inside { started: true, scanned: 0 };
        Piece::Refused { head, total: at as u64, why: Why::Unfinished }
    }
}

/// What a look at the buffer came to: a result for the caller, or a change of state to go on with.
enum Step {
    Done(Option<Piece>),
    On,
}

fn is_blank(framing: Framing, byte: u8) -> bool {
    byte != framing.start && byte != framing.end && (byte == framing.trailer || byte.is_ascii_whitespace())
}

/// Whether an HL7 v2 message begins here; `None` when a further byte may tell.
fn starts_with_header(bytes: &[u8], edge: Edge) -> Option<bool> {
    const HEADER: &[u8] = b"MSH";
    match bytes.get(..HEADER.len()) {
        Some(head) => Some(head == HEADER),
        None if edge == Edge::More && HEADER.starts_with(bytes) => None,
        None => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Decodes a stream that arrives in the given chunks.
    fn decode(chunks: &[&[u8]], limit: usize) -> Vec<Piece> {
        let mut decoder = Decoder::new(Framing::default(), limit);
        let mut pieces = Vec::new();
        for chunk in chunks {
            decoder.buffer().extend_from_slice(chunk);
            while let Some(piece) = decoder.next(Edge::More) {
                pieces.push(piece);
            }
            assert!(decoder.buffer.len() <= limit + chunk.len() + 3, "the buffer is bounded");
        }
        while let Some(piece) = decoder.next(Edge::End) {
            pieces.push(piece);
        }
        pieces
    }

    /// One line a piece: `[frame]`, `outside(n):head`, `unfinished(n):head`, `large:head`.
    fn told(pieces: &[Piece]) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).escape_debug().to_string();
        let lines: Vec<String> = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Frame(content) => format!("[{}]", text(content)),
                Piece::Refused { head, total, why: Why::OutsideFrame } => {
                    format!("outside({total}):{}", text(head))
                }
                Piece::Refused { head, total, why: Why::Unfinished } => {
                    format!("unfinished({total}):{}", text(head))
                }
                Piece::TooLarge { head } => format!("large:{}", text(head)),
            })
            .collect();
        lines.join(" ")
    }

    #[track_caller]
    fn check(stream: &str, expected: &str) {
        let stream = stream.replace('<', "\x0B").replace('>', "\x1C");
        assert_eq!(told(&decode(&[stream.as_bytes()], 20)), expected, "{stream:?}");
        let single: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(told(&decode(&single, 20)), expected, "{stream:?}, byte by byte");
    }

    #[test]
    fn frames_are_taken_apart() {
        check("", "");
        check("<MSH|a>\r", "[MSH|a]");
        check("<MSH|a>\r<MSH|b>\r", "[MSH|a] [MSH|b]");
        check("<>\r", "[]");
        check("\r\n <MSH|a>\r\n\t<MSH|b>\r\n", "[MSH|a] [MSH|b]");
    }

    #[test]
    fn a_missing_trailer_is_forgiven() {
        check("<MSH|a><MSH|b>\r", "[MSH|a] [MSH|b]");
        check("<MSH|a>", "[MSH|a]");
        check("<MSH|a>\n", "[MSH|a]");
    }

    #[test]
    fn framing_bytes_within_a_message_are_content() {
        check("<MSH|a>b|c<d>\r", r"[MSH|a\u{1c}b|c\u{b}d]");
        check("<MSH|>>\r", r"[MSH|\u{1c}]");
        check("<MSH|a<MS>\r", r"[MSH|a\u{b}MS]");
    }

    #[test]
    fn what_stands_outside_is_refused_and_the_next_frame_taken() {
        check("GET /<MSH|a>\r", "outside(5):GET / [MSH|a]");
        check("<MSH|a>\rjunk\r\n<MSH|b>\r", "[MSH|a] outside(6):junk\\r\\n [MSH|b]");
        check("junk>\r", r"outside(6):junk\u{1c}\r");
        check("MS", "outside(2):MS");
    }

    #[test]
    fn a_message_without_a_start_byte_is_taken() {
        check("MSH|a>\r<MSH|b>\r", "[MSH|a] [MSH|b]");
        check("<MSH|a>\rMSH|b>\r", "[MSH|a] [MSH|b]");
        check("MSH|a\r<MSH|b>\r", "unfinished(6):MSH|a\\r [MSH|b]");
    }

    #[test]
    fn a_frame_that_never_ends_is_refused() {
        check("<MSH|a", "unfinished(5):MSH|a");
        check("<MSH|a<MSH|b>\r", "unfinished(5):MSH|a [MSH|b]");
        check("<", "");
    }

    #[test]
    fn a_frame_over_the_limit_ends_the_stream() {
        check("<MSH|567890123456789>\r", "[MSH|567890123456789]");
        check("<MSH|5678901234567890>\r", "[MSH|5678901234567890]");
        check("<MSH|56789012345678901>\r<MSH|b>\r", "large:MSH|5678901234567890");
        check("<MSH|567890123456>>>>>>>>>x", r"large:MSH|567890123456\u{1c}\u{1c}\u{1c}\u{1c}");
    }

    #[test]
    fn a_pause_after_an_end_byte_ends_the_frame() {
        let mut decoder = Decoder::new(Framing::default(), 20);
        decoder.buffer().extend_from_slice(b"\x0BMSH|a");
        assert!(!decoder.may_end_here() && decoder.is_within());
        assert_eq!(decoder.next(Edge::Pause), None);
        decoder.buffer().extend_from_slice(b"\x1C");
        assert_eq!(decoder.next(Edge::More), None);
        assert!(decoder.may_end_here());
        assert_eq!(decoder.next(Edge::Pause), Some(Piece::Frame(Bytes::from_static(b"MSH|a"))));
        assert!(!decoder.is_within());
        decoder.buffer().extend_from_slice(b"\r\x0BMSH|b\x1C\r");
        assert_eq!(decoder.next(Edge::More), Some(Piece::Frame(Bytes::from_static(b"MSH|b"))));
    }

    #[test]
    fn other_framing_bytes_are_obeyed() {
        let framing = Framing { start: 0x02, end: 0x03, trailer: 0x0A };
        let mut decoder = Decoder::new(framing, 20);
        framing.frame(b"MSH|a", decoder.buffer());
        assert_eq!(&decoder.buffer[..], b"\x02MSH|a\x03\x0A");
        assert_eq!(decoder.next(Edge::More), Some(Piece::Frame(Bytes::from_static(b"MSH|a"))));
    }

    #[test]
    fn a_flood_without_a_frame_takes_no_memory() {
        let mut decoder = Decoder::new(Framing::default(), 1 << 20);
        for _ in 0..1_000 {
            decoder.buffer().extend_from_slice(&[b'x'; 10_000]);
            assert_eq!(decoder.next(Edge::More), None);
            assert!(decoder.buffer.is_empty());
        }
        let Some(Piece::Refused { head, total, .. }) = decoder.next(Edge::End) else {
            panic!("it is refused")
        };
        assert_eq!((head.len(), total), (HEAD_MAX, 10_000_000));
    }

    #[test]
    fn what_would_end_a_frame_early_cannot_be_carried() {
        for (message, can) in [
            ("MSH|a", true),
            ("MSH|a>b<c", true),
            ("MSH|a>\rb", false),
            ("MSH|a><b", false),
            ("MSH|a>", false),
        ] {
            let message = message.replace('<', "\x0B").replace('>', "\x1C");
            assert_eq!(Framing::default().can_carry(message.as_bytes()), can, "{message:?}");
        }
    }

    /// Streams in which everything that matters is likely: framing bytes, headers, blanks, other bytes.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            Just(vec![0x0B]),
            Just(vec![0x1C, 0x0D]),
            Just(vec![0x1C]),
            Just(vec![0x0D]),
            Just(vec![0x0A]),
            Just(b"MSH|".to_vec()),
            Just(b"M".to_vec()),
            Just(b"MS".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..6),
        ];
        proptest::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn chunks_make_no_difference(
            stream in stream(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
            limit in 1_usize..40,
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([stream.len()]) {
                chunks.push(&stream[from..cut]);
                from = cut;
            }
            prop_assert_eq!(told(&decode(&chunks, limit)), told(&decode(&[&stream], limit)));
        }

        #[test]
        fn what_was_framed_comes_back(messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..5)) {
            let framing = Framing::default();
            // A start byte followed by a header restarts a frame, which random bytes do not do; the rest is `can_carry`.
            let messages: Vec<Vec<u8>> = messages.into_iter().filter(|message| framing.can_carry(message)).collect();
            let mut stream = BytesMut::new();
            for message in &messages {
                framing.frame(message, &mut stream);
            }
            let expected: Vec<Piece> = messages.into_iter().map(|message| Piece::Frame(message.into())).collect();
            prop_assert_eq!(decode(&[&stream], 1_000), expected);
        }

        #[test]
        fn no_byte_is_lost(stream in stream()) {
            let content = |byte: &u8| !is_blank(Framing::default(), *byte) && *byte != 0x0B && *byte != 0x1C;
            let all = stream.iter().filter(|byte| content(byte)).count();
            let out: usize = decode(&[&stream], 1_000).iter().map(|piece| match piece {
                Piece::Frame(bytes) | Piece::Refused { head: bytes, .. } | Piece::TooLarge { head: bytes } => {
                    bytes.iter().filter(|byte| content(byte)).count()
                }
            }).sum();
            prop_assert_eq!(out, all);
        }
    }
}
