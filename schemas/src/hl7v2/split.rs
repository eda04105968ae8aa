//! From a file or a stream to single messages: MLLP frames, FHS/BHS batches, several MSH in a row.
//!
//! Invariant: every byte that is not blank is in a piece, in a batch segment, or an issue counts it. A piece that is no
//! message stays a piece, so that its reader refuses it by name and the others are not lost.

use super::charset::Wide;
use super::findings::Findings;
use super::header;
use super::path::{Path, SegmentName};
use crate::issue::{Issue, Severity};
use memchr::{memchr, memchr2};
use std::ops::Range;

/// Where MLLP begins a frame.
const START: u8 = 0x0b;
/// Where MLLP ends the content of a frame; 0x0D follows.
const END: u8 = 0x1c;

/// How far behind 0x0B a header may begin: blank lines and a byte order mark, in characters of up to four bytes.
const BEFORE_HEADER_MAX: usize = 64;

/// What [`split`] finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// The single messages, in order.
    pub pieces: Vec<Piece>,
    /// What was not as frames and batches should be.
    pub issues: Vec<Issue>,
}

/// What should be one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it stands in the bytes that were split.
    pub range: Range<usize>,
    /// Whether it has an MSH. One without holds lines that belong to no message.
    pub has_header: bool,
}

/// Splits bytes into messages, in whatever character set they are.
///
/// Frames are looked for if the first byte that is not blank is 0x0B, or if 0x0B stands right before MSH, FHS or BHS. A
/// frame ends at 0x1C 0x0D, or, reported, at 0x1C before the next frame or the end, or where the next frame begins. Bytes
/// between frames are counted in an issue. Within a frame, or without frames, a line that begins with MSH begins a
/// message; FHS, BHS, BTS and FTS are taken out, their counts checked.
///
/// # Source
/// HL7 v2.5.1 section 2.10.3 (batch protocol); MLLP release 1.
pub fn split(bytes: &[u8]) -> Split {
    let mut splitter = Splitter {
        bytes,
        pieces: Vec::new(),
        findings: Findings::default(),
        batches: Batches::default(),
        header_frame: None,
    };
    match first_frame(bytes) {
        Some(start) => splitter.frames(start),
        None => splitter.lines(0..bytes.len()),
    }
    splitter.batches.end(&mut splitter.findings);
    Split { pieces: splitter.pieces, issues: splitter.findings.into_issues() }
}

/// Where the first frame begins, if there are frames.
fn first_frame(bytes: &[u8]) -> Option<usize> {
    let first = bytes.iter().position(|b| !b.is_ascii_whitespace())?;
    if bytes[first] == START {
        return Some(first);
    }
    frame_before_header(bytes, 0)
}

/// The next 0x0B that stands right before a header segment.
fn frame_before_header(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += memchr(START, &bytes[at..])?;
        let window = &bytes[at + 1..bytes.len().min(at + 1 + BEFORE_HEADER_MAX)];
        let window = memchr2(START, END, window).unwrap_or(window.len());
        let lines = Lines::of(bytes, at + 1..at + 1 + window);
        if lines
            .first_kind()
            .is_some_and(|kind| matches!(kind, Kind::Message | Kind::FileHeader | Kind::BatchHeader))
        {
            return Some(at);
        }
        at += 1;
    }
}

struct Splitter<'b> {
    bytes: &'b [u8],
    pieces: Vec<Piece>,
    findings: Findings,
    batches: Batches,
    /// The answer of [`frame_before_header`] that was found last, so that it is looked for once.
    header_frame: Option<usize>,
}

impl Splitter<'_> {
    fn frames(&mut self, first: usize) {
        let bytes = self.bytes;
        self.outside(0..first);
        let mut start = first;
        loop {
            let (content, next) = self.frame(start + 1);
            self.lines(content);
            let Some(more) = memchr(START, &bytes[next..]) else {
                self.outside(next..bytes.len());
                return;
            };
            self.outside(next..next + more);
            start = next + more;
        }
    }

    /// The content of the frame whose content begins at `from`, and where what follows the frame begins.
    fn frame(&mut self, from: usize) -> (Range<usize>, usize) {
        let bytes = self.bytes;
        let known = self.header_frame.filter(|known| *known >= from);
        let next = known.unwrap_or_else(|| frame_before_header(bytes, from).unwrap_or(bytes.len()));
        self.header_frame = Some(next);
        let mut at = from;
        // What ends this frame stands before the next one.
        while let Some(n) = memchr(END, &bytes[at.min(next)..next]) {
            at += n;
            let after = &bytes[at + 1..];
            if after.first() == Some(&b'\r') {
                return (from..at, at + 2);
            }
            let blank = after.iter().take_while(|b| b.is_ascii_whitespace()).count();
            if matches!(after.get(blank), None | Some(&START)) {
                let text = "a frame ends with 0x1C alone, 0x0D was expected after it";
                self.findings.note(Severity::Warning, "frame-end", "", text);
                return (from..at, at + 1);
            }
            at += 1;
        }
        let text = "a frame does not end with 0x1C 0x0D: the message may have been cut off";
        self.findings.note(Severity::Warning, "frame-end", "", text);
        (from..next, next)
    }

    /// Bytes between frames.
    fn outside(&mut self, range: Range<usize>) {
        let noise = self.bytes[range.clone()].iter().filter(|b| !b.is_ascii_whitespace()).count();
        if noise == 0 {
            return;
        }
        let has_header = Lines::of(self.bytes, range.clone()).any(|line| line.kind == Kind::Message);
        if has_header {
            self.findings.note(
                Severity::Warning,
                "outside-frame",
                "",
                "a message outside of any frame is taken",
            );
            self.lines(range);
        } else {
            let text = format_args!("{noise} bytes outside of any frame are left out");
            self.findings.note(Severity::Warning, "outside-frame", "", text);
        }
    }

    /// Lines without frames.
    fn lines(&mut self, range: Range<usize>) {
        let end = range.end;
        // Where the piece that is being read begins; blank lines before it belong to it.
        let mut start = range.start;
        let mut open: Option<bool> = None;
        for line in Lines::of(self.bytes, range) {
            match line.kind {
                Kind::Blank => {}
                Kind::Other => {
                    open.get_or_insert(false);
                }
                Kind::Message => {
                    self.piece(start..line.start, open);
                    if open.is_some() {
                        start = line.start;
                    }
                    open = Some(true);
                }
                Kind::FileHeader | Kind::BatchHeader | Kind::BatchTrailer | Kind::FileTrailer => {
                    self.piece(start..line.start, open);
                    (start, open) = (line.next, None);
                    self.batches.segment(line.kind, line.count, &mut self.findings);
                }
            }
        }
        self.piece(start..end, open);
    }

    fn piece(&mut self, range: Range<usize>, open: Option<bool>) {
        if let Some(has_header) = open {
            if has_header {
                self.batches.messages += 1;
            }
            self.pieces.push(Piece { range, has_header });
        }
    }
}

/// What a line begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Blank,
    Message,
    FileHeader,
    BatchHeader,
    BatchTrailer,
    FileTrailer,
    Other,
}

struct Line {
    kind: Kind,
    start: usize,
    next: usize,
    /// BTS-1 or FTS-1, if it is a number.
    count: Option<u64>,
}

/// The lines of some bytes; each character has `width` bytes.
struct Lines<'b> {
    bytes: &'b [u8],
    at: usize,
    end: usize,
    wide: Wide,
}

impl<'b> Lines<'b> {
    fn of(bytes: &'b [u8], range: Range<usize>) -> Lines<'b> {
        let wide = Wide::of(&bytes[range.clone()]).unwrap_or(Wide { width: 1, big: true, mark: 0 });
        Lines { bytes, at: range.start, end: range.end, wide }
    }

    fn first_kind(mut self) -> Option<Kind> {
        self.find(|line| line.kind != Kind::Blank).map(|line| line.kind)
    }

    /// Where the line that begins at `from` ends.
    fn line_end(&self, from: usize) -> usize {
        if self.wide.width == 1 {
            return memchr2(b'\r', b'\n', &self.bytes[from..self.end]).map_or(self.end, |n| from + n);
        }
        let is_end = |unit: &[u8]| matches!(self.wide.unit(unit), 0x0d | 0x0a);
        let units = self.bytes[from..self.end].chunks(self.wide.width).position(is_end);
        units.map_or(self.end, |n| from + n * self.wide.width)
    }

    /// The first characters of a line that are not blank, those beyond ASCII as 0xFF.
    fn head(&self, start: usize, end: usize) -> Head {
        let mut head = Head { bytes: [0; 32], length: 0 };
        let start =
            if self.wide.width == 1 { start + header::blanks(&self.bytes[start..end]) } else { start };
        for unit in self.bytes[start..end].chunks(self.wide.width) {
            let byte = u8::try_from(self.wide.unit(unit)).unwrap_or(0xff);
            let mark = self.wide.unit(unit) == 0xfeff;
            if head.length == 0 && (byte <= b' ' || mark) {
                continue;
            }
            if head.length == head.bytes.len() {
                break;
            }
            head.bytes[head.length] = byte;
            head.length += 1;
        }
        head
    }
}

impl Iterator for Lines<'_> {
    type Item = Line;

    fn next(&mut self) -> Option<Line> {
        if self.at >= self.end {
            return None;
        }
        let start = self.at;
        let end = self.line_end(start);
        let next = (end + self.wide.width).min(self.end);
        self.at = next;
        let head = self.head(start, end);
        let (kind, count) = head.kind();
        Some(Line { kind, start, next, count })
    }
}

struct Head {
    bytes: [u8; 32],
    length: usize,
}

impl Head {
    fn kind(&self) -> (Kind, Option<u64>) {
        let bytes = &self.bytes[..self.length];
        let Some((name, rest)) = bytes.split_at_checked(3) else {
            return (if bytes.is_empty() { Kind::Blank } else { Kind::Other }, None);
        };
        let separator = rest.first().copied();
        let is_segment = separator.is_none_or(|b| b.is_ascii_punctuation());
        let name = [name[0], name[1], name[2]].map(|b| b.to_ascii_uppercase());
        let kind = match &name {
            b"MSH" if separator.is_some() && is_segment => Kind::Message,
            b"FHS" if is_segment => Kind::FileHeader,
            b"BHS" if is_segment => Kind::BatchHeader,
            b"BTS" if is_segment => Kind::BatchTrailer,
            b"FTS" if is_segment => Kind::FileTrailer,
            _ => Kind::Other,
        };
        let count = rest.get(1..).and_then(|field| {
            let digits = field.iter().take_while(|b| b.is_ascii_digit()).count();
            std::str::from_utf8(&field[..digits]).ok()?.parse().ok()
        });
        (kind, count)
    }
}

/// What batch segments promise, against what came.
#[derive(Default)]
struct Batches {
    /// Messages since the last batch segment that counts them.
    messages: u64,
    in_batch: bool,
    in_file: bool,
    /// Batches of the file.
    batches: u64,
    /// How many BTS and FTS were met, for their paths.
    trailers: [u32; 2],
}

impl Batches {
    fn segment(&mut self, kind: Kind, count: Option<u64>, findings: &mut Findings) {
        match kind {
            Kind::FileHeader => {
                self.end_batch(findings);
                self.end_file(findings);
                (self.in_file, self.batches) = (true, 0);
            }
            Kind::BatchHeader => {
                self.end_batch(findings);
                (self.in_batch, self.messages) = (true, 0);
                self.batches += 1;
            }
            Kind::BatchTrailer => {
                self.trailers[0] += 1;
                let path = trailer("BTS", self.trailers[0]);
                if !self.in_batch {
                    findings.note(Severity::Warning, "batch", path, "a BTS without a BHS before it");
                    self.batches += 1;
                }
                self.check(path, count, self.messages, "messages", findings);
                (self.in_batch, self.messages) = (false, 0);
            }
            Kind::FileTrailer => {
                self.end_batch(findings);
                self.trailers[1] += 1;
                let path = trailer("FTS", self.trailers[1]);
                if !self.in_file {
                    findings.note(Severity::Warning, "batch", path, "an FTS without an FHS before it");
                }
                // A file whose messages stand in no batch counts as one.
                let batches = self.batches.max(u64::from(self.messages > 0));
                self.check(path, count, batches, "batches", findings);
                (self.in_file, self.batches, self.messages) = (false, 0, 0);
            }
            Kind::Blank | Kind::Message | Kind::Other => {}
        }
    }

    /// BTS-1 and FTS-1 may be left out.
    fn check(&self, path: Path, stated: Option<u64>, found: u64, what: &str, findings: &mut Findings) {
        if let Some(stated) = stated.filter(|stated| *stated != found) {
            let text = format_args!("{stated} {what} announced, {found} found");
            findings.note(Severity::Warning, "batch-count", path, text);
        }
    }

    fn end_batch(&mut self, findings: &mut Findings) {
        if std::mem::take(&mut self.in_batch) {
            let text = "a batch without BTS at its end: it may have been cut off";
            findings.note(Severity::Warning, "batch", "", text);
        }
    }

    fn end_file(&mut self, findings: &mut Findings) {
        if std::mem::take(&mut self.in_file) {
            let text = "a file without FTS at its end: it may have been cut off";
            findings.note(Severity::Warning, "batch", "", text);
        }
    }

    fn end(&mut self, findings: &mut Findings) {
        self.end_batch(findings);
        self.end_file(findings);
    }
}

fn trailer(name: &str, occurrence: u32) -> Path {
    Path::field(SegmentName::new(name).expect("BTS or FTS"), occurrence, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use memchr::memmem;
    use proptest::prelude::*;

    const ONE: &str = "MSH|^~\\&|A|||||ADT^A01|1\rPID|1\r";
    const TWO: &str = "MSH|^~\\&|A|||||ADT^A01|2\rPID|2\r";

    /// Splits and compares pieces and issue codes; line ends and what stands before a message are left out of account.
    #[track_caller]
    fn check(bytes: &[u8], expected: &[&str], issues: &[&str]) {
        let split = split(bytes);
        let pieces: Vec<String> = split
            .pieces
            .iter()
            .map(|piece| String::from_utf8_lossy(&bytes[piece.range.clone()]).into_owned())
            .collect();
        let trimmed: Vec<&str> = pieces.iter().map(|piece| piece.trim()).collect();
        let expected: Vec<&str> = expected.iter().map(|piece| piece.trim()).collect();
        let codes: Vec<&str> = split.issues.iter().map(|issue| issue.code.as_str()).collect();
        assert_eq!((trimmed, &*codes), (expected, issues), "{:?}", String::from_utf8_lossy(bytes));
    }

    fn joined(parts: &[&str]) -> Vec<u8> {
        parts.concat().into_bytes()
    }

    #[test]
    fn one_message_is_one_piece() {
        check(ONE.as_bytes(), &[ONE], &[]);
        check(&joined(&["\r\n  \n", ONE]), &[ONE], &[]);
        check(ONE.replace('\r', "\n").as_bytes(), &[&ONE.replace('\r', "\n")], &[]);
        check(b"", &[], &[]);
        check(b"\r\n \t\r", &[], &[]);
    }

    #[test]
    fn several_messages_in_a_row() {
        check(&joined(&[ONE, TWO, ONE]), &[ONE, TWO, ONE], &[]);
        check(&joined(&[ONE, "\r\n\r\n", TWO]), &[ONE, TWO], &[]);
        let lines =
            joined(&[ONE, TWO]).iter().map(|b| if *b == b'\r' { b'\n' } else { *b }).collect::<Vec<u8>>();
        check(&lines, &[&ONE.replace('\r', "\n"), &TWO.replace('\r', "\n")], &[]);
    }

    #[test]
    fn batches_are_taken_apart_and_counted() {
        let file = |counts: [&str; 2], second: &str| {
            joined(&["FHS|^~\\&|S\rBHS|^~\\&|S\r", ONE, second, "BTS", counts[0], "\rFTS", counts[1], "\r"])
        };
        check(&file(["|2", "|1"], TWO), &[ONE, TWO], &[]);
        check(&file(["|2|comment", "|1"], TWO), &[ONE, TWO], &[]);
        check(&file(["", ""], TWO), &[ONE, TWO], &[]);
        check(&file(["|3", "|1"], TWO), &[ONE, TWO], &["batch-count"]);
        check(&file(["|2", "|7"], TWO), &[ONE, TWO], &["batch-count"]);
        check(&file(["|2", "|1"], "MSH|garbage\rXXX\r"), &[ONE, "MSH|garbage\rXXX"], &[]);
        check(&joined(&["BHS|^~\\&\r", ONE]), &[ONE], &["batch"]);
        check(&joined(&["FHS|^~\\&\r", ONE]), &[ONE], &["batch"]);
        check(&joined(&[ONE, "BTS|1\r"]), &[ONE], &["batch"]);
        check(&joined(&["FHS|^~\\&\r", ONE, "FTS|1\r"]), &[ONE], &[]);
        check(&joined(&["BHS|^~\\&\r", ONE, "BTS|1\rBHS|^~\\&\r", TWO, "BTS|1\r"]), &[ONE, TWO], &[]);
        let issues = split(&joined(&["BHS|^~\\&\r", ONE, "BTS|1\rBHS|^~\\&\r", TWO, "BTS|5\r"])).issues;
        assert_eq!(
            (issues[0].path.as_str(), issues[0].text.as_str()),
            ("BTS[2]-1", "5 messages announced, 1 found")
        );
    }

    #[test]
    fn lines_before_any_message_are_a_piece_of_their_own() {
        let bytes = joined(&["PID|1||1\r", ONE]);
        check(&bytes, &["PID|1||1", ONE], &[]);
        let has_header: Vec<bool> = split(&bytes).pieces.iter().map(|piece| piece.has_header).collect();
        assert_eq!(has_header, [false, true]);
        check(b"{\"resourceType\":\"Patient\"}", &["{\"resourceType\":\"Patient\"}"], &[]);
        check(&joined(&["BHS|^~\\&\rEVN|A01\r", ONE, "BTS|1\r"]), &["EVN|A01", ONE], &[]);
    }

    #[test]
    fn frames() {
        check(&joined(&["\x0b", ONE, "\x1c\r"]), &[ONE], &[]);
        check(&joined(&["\x0b", ONE, "\x1c\r\x0b", TWO, "\x1c\r"]), &[ONE, TWO], &[]);
        check(&joined(&["\r\n\x0b", ONE, "\x1c\r\r\n\r\n\x0b", TWO, "\x1c\r\n"]), &[ONE, TWO], &[]);
        check(&joined(&["\x0b", ONE, "\x1c\rxx\x0b", TWO, "\x1c\r"]), &[ONE, TWO], &["outside-frame"]);
        check(&joined(&["xx\x0b", ONE, "\x1c\r"]), &[ONE], &["outside-frame"]);
        check(&joined(&["\x0b", ONE, "\x1c\x0b", TWO, "\x1c"]), &[ONE, TWO], &["frame-end", "frame-end"]);
        check(&joined(&["\x0b", ONE, "\x1c\n\x0b", TWO, "\x1c\n"]), &[ONE, TWO], &["frame-end", "frame-end"]);
        check(&joined(&["\x0b", ONE, "\x0b", TWO, "\x1c\r"]), &[ONE, TWO], &["frame-end"]);
        check(&joined(&["\x0b", ONE]), &[ONE], &["frame-end"]);
        check(&joined(&["\x0b", ONE, "\x1c\r", TWO]), &[ONE, TWO], &["outside-frame"]);
        check(&joined(&["\x0bBHS|^~\\&\r", ONE, TWO, "BTS|2\r\x1c\r"]), &[ONE, TWO], &[]);
        check(b"\x0b\x1c\r", &[], &[]);
    }

    #[test]
    fn frame_characters_inside_of_a_message_do_not_end_it() {
        let odd = ONE.replace("PID|1", "PID|a\x1cb\x0bc");
        check(&joined(&["\x0b", &odd, "\x1c\r"]), &[&odd], &[]);
        check(odd.as_bytes(), &[&odd], &[]);
    }

    #[test]
    fn bytes_outside_of_frames_are_counted_not_shown() {
        let issues = split(b"\x0bMSH|^~\\&|\r\x1c\rJANE\r").issues;
        assert_eq!(issues[0].text, "4 bytes outside of any frame are left out");
    }

    #[test]
    fn two_and_four_byte_characters_are_split_too() {
        let text = joined(&["BHS|^~\\&\r", ONE, TWO, "BTS|2\r"]);
        let text = String::from_utf8(text).unwrap();
        for big in [false, true] {
            let bytes: Vec<u8> = text
                .encode_utf16()
                .flat_map(|u| if big { u.to_be_bytes() } else { u.to_le_bytes() })
                .collect();
            let split = split(&bytes);
            assert_eq!((split.pieces.len(), split.issues.len()), (2, 0));
            let second = crate::hl7v2::charset::decode(&bytes[split.pieces[1].range.clone()], None);
            assert_eq!(second.text, TWO);
        }
        let bytes: Vec<u8> = text.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
        assert_eq!(split(&bytes).pieces.len(), 2);
    }

    #[test]
    fn a_byte_order_mark_stays_with_its_message() {
        let bytes = joined(&["\u{feff}", ONE, TWO]);
        let split = split(&bytes);
        assert_eq!((split.pieces.len(), split.pieces[0].range.start), (2, 0));
        check(&joined(&["\u{feff}FHS|^~\\&\r", ONE, "FTS\r"]), &[ONE], &[]);
    }

    proptest! {
        #[test]
        fn every_byte_is_in_a_piece_or_accounted_for(
            parts in proptest::collection::vec(prop_oneof![
                Just("\x0b"), Just("\x1c\r"), Just("\x1c"), Just(ONE), Just("MSH|"), Just("BHS|^~\\&\r"), Just("BTS|1\r"),
                Just("FHS|^~\\&\r"), Just("FTS\r"), Just("x\r"), Just("\r"), Just("\n"), Just(" "), Just("\u{feff}"), Just("\0"),
            ], 0..20),
        ) {
            let bytes = joined(&parts);
            let split = split(&bytes);
            let mut end = 0;
            for piece in &split.pieces {
                prop_assert!(piece.range.start >= end && piece.range.end <= bytes.len());
                end = piece.range.end;
            }
            let messages = parts.iter().filter(|part| **part == ONE).count();
            let inside: usize = split.pieces.iter().map(|p| memmem::find_iter(&bytes[p.range.clone()], ONE).count()).sum();
            prop_assert_eq!(inside, messages, "no message is lost");
        }

        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = split(&bytes);
        }
    }
}
