//! One pass over the text of a message that fills its index.
//!
//! The text is taken in blocks of 64 bytes; each block becomes a mask of the bytes that are separators or control
//! characters (a form that the compiler turns into vector instructions), and only those are looked at one by one.

use super::continuation;
use super::escape::{self, Oddity};
use super::findings::Findings;
use super::header;
use super::message::{Leaf, Limits, Message, Segment, Unreadable};
use super::path::{Path, SegmentName};
use super::separators::Separators;
use crate::issue::Severity;
use smallvec::SmallVec;
use std::collections::HashMap;

const MSH: SegmentName = SegmentName::of("MSH");

const SMALL_LETTERS: &str = "a segment name in small letters is read as capitals";

/// A separator of the message or a control character is looked at one by one, at most this many in a block.
const BLOCK: usize = 64;

pub(crate) fn message<'t>(text: &'t str, limits: &Limits) -> Result<Message<'t>, Unreadable> {
    let bytes = text.as_bytes();
    let bytes_max = limits.bytes.min(u32::MAX as usize - 1);
    if bytes.len() > bytes_max {
        return Err(Unreadable::OverLimit { limit: bytes_max, unit: "bytes" });
    }
    let mut findings = Findings::default();
    let start = begin(text, &mut findings)?;
    let field = bytes[start + 3];
    let rest = &bytes[start + 4..];
    let encoding_end =
        rest.iter().position(|b| *b == field || matches!(b, b'\r' | b'\n')).unwrap_or(rest.len());
    let (separators, issue) = Separators::read(field, &rest[..encoding_end])?;
    findings.extend(issue);
    if &bytes[start..start + 3] != b"MSH" {
        findings.note(Severity::Warning, "segment-name", Path::segment(MSH, 1), SMALL_LETTERS);
    }
    let mut scan = Scan {
        bytes,
        separators,
        limits,
        line_feed_ends: None,
        both_end: false,
        // Guesses for short messages; longer ones grow as they need.
        segments: Vec::with_capacity((bytes.len() / 64 + 8).min(256)),
        leaves: Vec::with_capacity((bytes.len() / 6 + 16).min(4096)),
        names: Names::default(),
        findings,
        looked_ahead: (0, false),
        line: start,
        at: start + 4 + encoding_end,
        field: 2,
        repetition: 1,
        component: 1,
        subcomponent: 1,
    };
    scan.open(MSH, start)?;
    let one = |start: usize, end: usize, field: u16| Leaf {
        start: start as u32,
        end: end as u32,
        repetition: 1,
        component: 1,
        field,
        subcomponent: 1,
    };
    scan.leaves.push(one(start + 3, start + 4, 1));
    scan.leaves.push(one(start + 4, start + 4 + encoding_end, 2));
    scan.run()?;
    let Scan { segments, leaves, mut findings, .. } = scan;
    let mut message = Message { text, separators, segments, leaves, issues: Vec::new() };
    required(&message, &mut findings);
    parts(&message, &mut findings);
    escapes(&message, start + 4 + encoding_end, &mut findings);
    message.issues = findings.into_issues();
    Ok(message)
}

/// Where MSH begins. What may stand before it is blank.
fn begin(text: &str, findings: &mut Findings) -> Result<usize, Unreadable> {
    let bytes = text.as_bytes();
    let mut start = 0;
    let mut lines = 0;
    let mut odd = false;
    loop {
        let blanks = header::blanks(&bytes[start..]);
        odd |= blanks > 0;
        start += blanks;
        match bytes.get(start) {
            Some(b'\r' | b'\n') => {
                start += 1;
                lines += 1;
            }
            _ => break,
        }
    }
    if !header::is_header(&bytes[start..]) {
        let later = header::Header::peek(text).is_some();
        return Err(if later { Unreadable::BeforeHeader } else { Unreadable::NoHeader });
    }
    if lines > 0 {
        findings.note(
            Severity::Information,
            "blank-line",
            Path::segment(MSH, 1),
            "blank lines before MSH are left out",
        );
    }
    if odd {
        let text = "blanks, control characters or a byte order mark before MSH are left out";
        findings.note(Severity::Information, "leading-blanks", Path::segment(MSH, 1), text);
    }
    Ok(start)
}

/// Reports what MSH must have in every version; whether the message is taken without it is for others to say.
fn required(message: &Message<'_>, findings: &mut Findings) {
    for field in [9, 10, 11, 12] {
        if message.field(0, field).first_leaf(message).is_none_or(|leaf| message.is_null(leaf)) {
            let text = "required in every version of the standard, but empty";
            findings.note(Severity::Warning, "required-field", Path::field(MSH, 1, field), text);
        }
    }
}

/// Reports a message that is not whole: it goes on in another, or goes on with one sent before.
fn parts(message: &Message<'_>, findings: &mut Findings) {
    if continuation::goes_on(message).is_some() {
        let text = "the message goes on in another one: this is only a part of it";
        findings.note(Severity::Error, "part-of-message", "DSC-1", text);
    }
    if message.field(0, 14).first_leaf(message).is_some() {
        // A pointer alone may be a habit of the sender; the rest of a broken segment is none.
        let broken = message.segments.get(1).is_some_and(|segment| segment.name == SegmentName::of("ADD"));
        let severity = if broken { Severity::Error } else { Severity::Warning };
        let text = "the message says that it goes on with one sent before";
        findings.note(severity, "part-of-message", "MSH-14", text);
    }
}

/// Reports escape sequences that are kept as text. `from` is where MSH-2 ends.
fn escapes(message: &Message<'_>, from: usize, findings: &mut Findings) {
    let Some(escape) = message.separators.escape else { return };
    if memchr::memchr(escape, &message.text.as_bytes()[from..]).is_none() {
        return;
    }
    for leaf in 2..message.leaves.len() {
        match escape::oddity(message.raw(leaf), &message.separators) {
            None => {}
            Some(Oddity::Unknown) => {
                let text = "an escape sequence that is not known is kept as text";
                findings.note(Severity::Information, "escape-unknown", message.path_of(leaf), text);
            }
            Some(Oddity::Unterminated) => {
                let text = "an escape character that does not begin an escape sequence is kept as text";
                findings.note(Severity::Information, "escape-unterminated", message.path_of(leaf), text);
            }
        }
    }
}

struct Scan<'t, 'l> {
    bytes: &'t [u8],
    separators: Separators,
    limits: &'l Limits,
    /// Whether a line feed of its own ends a segment, known once MSH has ended.
    line_feed_ends: Option<bool>,
    /// Whether CR and LF together ended one.
    both_end: bool,
    segments: Vec<Segment>,
    leaves: Vec<Leaf>,
    names: Names,
    findings: Findings,
    /// Up to where the last look ahead saw blanks only, and its answer.
    looked_ahead: (usize, bool),
    /// Where the current line begins.
    line: usize,
    /// Where the current subcomponent begins.
    at: usize,
    /// The current field; 0 while the name of the segment is being read.
    field: u32,
    repetition: u32,
    component: u32,
    subcomponent: u32,
}

impl Scan<'_, '_> {
    fn run(&mut self) -> Result<(), Unreadable> {
        let bytes = self.bytes;
        let needles = Needles::new(&self.separators);
        let mut base = self.at;
        let mut delimiters = 0;
        let (blocks, tail) = bytes[base..].as_chunks::<BLOCK>();
        // Blanks are neither separators nor control characters.
        let mut last = [b' '; BLOCK];
        last[..tail.len()].copy_from_slice(tail);
        for block in blocks.iter().chain([&last]) {
            let mut mask = needles.mask(block);
            delimiters += mask.count_ones() as usize;
            if delimiters > self.limits.delimiters {
                return Err(Unreadable::OverLimit { limit: self.limits.delimiters, unit: "separators" });
            }
            while mask != 0 {
                let at = base + mask.trailing_zeros() as usize;
                mask &= mask - 1;
                self.separator(at, bytes[at])?;
            }
            base += BLOCK;
        }
        let ends = match self.line_feed_ends {
            Some(true) => Some("segments end with a line feed, a carriage return was expected"),
            _ if self.both_end => {
                Some("segments end with a carriage return and a line feed, a carriage return was expected")
            }
            _ => None,
        };
        if let Some(text) = ends {
            self.findings.note(Severity::Information, "line-ends", "MSH", text);
        }
        if self.line < bytes.len() {
            let opened = self.segments.len();
            let in_segment = self.field > 0;
            self.end_line(bytes.len())?;
            if in_segment || self.segments.len() > opened {
                let path = self.last_path();
                let text = "the last segment has no line end: the message may have been cut off";
                self.findings.note(Severity::Information, "no-final-line-end", path, text);
            }
        }
        Ok(())
    }

    #[inline]
    fn separator(&mut self, at: usize, byte: u8) -> Result<(), Unreadable> {
        if byte == self.separators.field {
            if self.field == 0 {
                self.name(at)?;
            } else {
                self.leaf(at)?;
            }
            self.field += 1;
            (self.repetition, self.component, self.subcomponent) = (1, 1, 1);
        } else if byte < b' ' {
            return self.control(at, byte);
        } else {
            if self.field == 0 {
                return Err(self.no_segment());
            }
            self.leaf(at)?;
            if byte == self.separators.component {
                self.component += 1;
                self.subcomponent = 1;
            } else if Some(byte) == self.separators.subcomponent {
                self.subcomponent += 1;
            } else {
                self.repetition += 1;
                (self.component, self.subcomponent) = (1, 1);
            }
        }
        self.at = at + 1;
        Ok(())
    }

    /// Ends the current subcomponent.
    #[inline]
    fn leaf(&mut self, end: usize) -> Result<(), Unreadable> {
        if end > self.at {
            let (Ok(field), Ok(subcomponent)) = (u16::try_from(self.field), u16::try_from(self.subcomponent))
            else {
                return Err(Unreadable::OverLimit {
                    limit: usize::from(u16::MAX),
                    unit: "fields of a segment or subcomponents of a component",
                });
            };
            self.leaves.push(Leaf {
                start: self.at as u32,
                end: end as u32,
                repetition: self.repetition,
                component: self.component,
                field,
                subcomponent,
            });
        }
        Ok(())
    }

    fn control(&mut self, at: usize, byte: u8) -> Result<(), Unreadable> {
        match byte {
            b'\r' => {
                self.line_feed_ends.get_or_insert(false);
                self.end_line(at)
            }
            b'\n' if at == self.line && at > 0 && self.bytes[at - 1] == b'\r' => {
                // The second half of CRLF.
                self.both_end = true;
                (self.line, self.at) = (at + 1, at + 1);
                Ok(())
            }
            b'\n' => {
                if self.field == 0 || *self.line_feed_ends.get_or_insert(true) {
                    return self.end_line(at);
                }
                if self.a_line_begins(at + 1) {
                    let path = self.last_path();
                    let text = "ends with a line feed where others end with a carriage return";
                    self.findings.note(Severity::Information, "mixed-line-ends", path, text);
                    return self.end_line(at);
                }
                // The standard ends segments with CR alone, so this line feed is part of the value.
                let path = self.here();
                let text = "a line feed inside of the value, where \\.br\\ or \\X0A\\ was expected, is kept";
                self.findings.note(Severity::Warning, "line-feed-in-value", path, text);
                Ok(())
            }
            _ if self.field == 0 => Ok(()),
            _ => {
                let path = self.here();
                let text = "a control character inside of the value is kept";
                self.findings.note(Severity::Information, "control-character", path, text);
                Ok(())
            }
        }
    }

    /// Whether what follows a line feed, blanks and other line feeds left out, is the end, a carriage return, or a
    /// segment name with a field separator.
    fn a_line_begins(&mut self, at: usize) -> bool {
        let (until, answer) = self.looked_ahead;
        if at <= until {
            return answer;
        }
        let rest = &self.bytes[at..];
        let blanks = rest.iter().take_while(|b| **b <= b' ' && **b != b'\r').count();
        let answer = match rest[blanks..] {
            [] | [b'\r', ..] => true,
            [a, b, c, separator, ..] => {
                a.is_ascii_uppercase()
                    && [b, c].iter().all(|x| x.is_ascii_uppercase() || x.is_ascii_digit())
                    && separator == self.separators.field
            }
            _ => false,
        };
        self.looked_ahead = (at + blanks, answer);
        answer
    }

    /// A line has ended before `end`.
    fn end_line(&mut self, end: usize) -> Result<(), Unreadable> {
        if self.field > 0 {
            self.leaf(end)?;
            self.close(end);
        } else {
            let line = &self.bytes[self.line..end];
            let blanks = header::blanks(line);
            let content = line[blanks..].trim_ascii_end();
            if content.iter().all(|b| *b <= b' ') {
                let path = self.last_path();
                let text = "blank lines after this segment are left out";
                self.findings.note(Severity::Information, "blank-line", path, text);
            } else {
                let Some(name) = SegmentName::from_bytes(content) else { return Err(self.no_segment()) };
                if !name.is_standard() || name.as_str().as_bytes() != content {
                    return Err(self.no_segment());
                }
                self.odd_begin(blanks, name);
                self.open(name, self.line + blanks)?;
                self.close(end);
                let path = self.last_path();
                let text = "a segment without fields";
                self.findings.note(Severity::Information, "no-fields", path, text);
            }
        }
        (self.line, self.at, self.field) = (end + 1, end + 1, 0);
        Ok(())
    }

    /// The name of a segment ends before the field separator at `end`.
    #[inline]
    fn name(&mut self, end: usize) -> Result<(), Unreadable> {
        if let [a, b, c] = self.bytes[self.line..end]
            && a.is_ascii_uppercase()
            && (b.is_ascii_uppercase() || b.is_ascii_digit())
            && (c.is_ascii_uppercase() || c.is_ascii_digit())
        {
            let name = SegmentName::from_bytes(&[a, b, c]).expect("three letters and digits");
            return self.open(name, self.line);
        }
        self.odd_name(end)
    }

    #[cold]
    fn odd_name(&mut self, end: usize) -> Result<(), Unreadable> {
        let line = &self.bytes[self.line..end];
        let blanks = header::blanks(line);
        let content = line[blanks..].trim_ascii_end();
        let Some(name) = SegmentName::from_bytes(content) else { return Err(self.no_segment()) };
        self.odd_begin(blanks, name);
        self.open(name, self.line + blanks)?;
        let path = self.last_path();
        if content.iter().any(u8::is_ascii_lowercase) {
            self.findings.note(Severity::Warning, "segment-name", path, SMALL_LETTERS);
        }
        if !name.is_standard() {
            let text = "a segment name of three characters that begins with a letter was expected";
            self.findings.note(Severity::Warning, "segment-name", path, text);
        }
        if line.len() > blanks + content.len() {
            let text = "blanks after the segment name are left out";
            self.findings.note(Severity::Information, "leading-blanks", path, text);
        }
        Ok(())
    }

    fn odd_begin(&mut self, blanks: usize, name: SegmentName) {
        if blanks > 0 {
            let path = Path::segment(name, self.names.next(name, false));
            let text = "blanks before the segment name are left out";
            self.findings.note(Severity::Information, "leading-blanks", path, text);
        }
    }

    fn open(&mut self, name: SegmentName, start: usize) -> Result<(), Unreadable> {
        if self.segments.len() >= self.limits.segments {
            return Err(Unreadable::OverLimit { limit: self.limits.segments, unit: "segments" });
        }
        if name == MSH && !self.segments.is_empty() {
            return Err(Unreadable::SecondHeader { after: self.last_path() });
        }
        let first = self.leaves.len() as u32;
        let occurrence = self.names.next(name, true);
        self.segments.push(Segment {
            name,
            occurrence,
            start: start as u32,
            end: start as u32,
            first,
            last: first,
        });
        Ok(())
    }

    /// Ends the current segment before `end`.
    fn close(&mut self, end: usize) {
        let last = self.leaves.len() as u32;
        let segment = self.segments.last_mut().expect("MSH was opened before the scan began");
        segment.end = end as u32;
        segment.last = last;
    }

    #[cold]
    fn no_segment(&self) -> Unreadable {
        Unreadable::NoSegment { after: self.last_path() }
    }

    fn last_path(&self) -> Path {
        self.segments.last().expect("MSH was opened before the scan began").path()
    }

    /// The path of the value that is being read, as far as it is known now.
    fn here(&self) -> Path {
        let mut path = self.last_path();
        path.field = u16::try_from(self.field).unwrap_or(u16::MAX);
        path.repetition = self.repetition;
        if self.component > 1 || self.subcomponent > 1 {
            path.component = self.component;
        }
        if self.subcomponent > 1 {
            path.subcomponent = u16::try_from(self.subcomponent).unwrap_or(u16::MAX);
        }
        path
    }
}

/// The bytes to look for in a block.
struct Needles([u8; 4]);

impl Needles {
    fn new(separators: &Separators) -> Self {
        let or_field = |separator: Option<u8>| separator.unwrap_or(separators.field);
        Needles([
            separators.field,
            separators.component,
            or_field(separators.repetition),
            or_field(separators.subcomponent),
        ])
    }

    /// One bit for each byte of the block that is a needle or a control character.
    #[inline]
    fn mask(&self, block: &[u8; BLOCK]) -> u64 {
        let [field, component, repetition, subcomponent] = self.0;
        let mut hits = [0u8; BLOCK];
        for (hit, &b) in hits.iter_mut().zip(block) {
            *hit = u8::from(b == field)
                | u8::from(b == component)
                | u8::from(b == repetition)
                | u8::from(b == subcomponent)
                | u8::from(b < b' ');
        }
        if hits.iter().fold(0, |any, hit| any | hit) == 0 {
            return 0;
        }
        let mut mask = 0;
        for (n, eight) in hits.as_chunks::<8>().0.iter().enumerate() {
            // Each byte is 0 or 1; the product gathers the eight of them in its highest byte.
            let gathered = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
            mask |= gathered << (n * 8);
        }
        mask
    }
}

/// How often each segment name was seen. Messages have few names, so a short list is searched before a map is made.
#[derive(Default)]
struct Names {
    few: SmallVec<[(SegmentName, u32); FEW]>,
    many: HashMap<SegmentName, u32>,
}

/// How many names are searched one by one.
const FEW: usize = 32;

impl Names {
    /// The number of the next segment of this name; it is counted if `take` is set.
    fn next(&mut self, name: SegmentName, take: bool) -> u32 {
        let add = u32::from(take);
        if let Some((_, count)) = self.few.iter_mut().rev().find(|(known, _)| *known == name) {
            *count += add;
            return *count + 1 - add;
        }
        if self.few.len() < FEW {
            if take {
                self.few.push((name, 1));
            }
            return 1;
        }
        let count = self.many.entry(name).or_insert(0);
        *count += add;
        *count + 1 - add
    }
}
