//! The flat index of one message: its segments and its non-empty subcomponents, borrowed from its text.
//!
//! Invariant: every byte of the text is in a leaf, is a separator, a segment name, a blank before one, or an issue says
//! what it is; a message that cannot be read so is [`Unreadable`].

use super::element::{Element, Level};
use super::escape;
use super::header::{self, Header};
use super::path::{Path, SegmentName};
use super::scan;
use super::separators::{Separators, SeparatorsError};
use crate::issue::Issue;
use std::borrow::Cow;
use std::fmt;

/// The bounds within which a message is read. One that exceeds them is refused as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of the text in bytes of UTF-8.
    pub bytes: usize,
    /// Number of segments.
    pub segments: usize,
    /// Number of separators and control characters. Bounds the memory of the index: 20 bytes each, twice that while
    /// it grows. An hour of ECG at 250 Hz, sample by sample, is 900,000.
    pub delimiters: usize,
}

impl Limits {
    /// 8 MiB, 20,000 segments, 1,000,000 delimiters.
    pub const DEFAULT: Limits = Limits { bytes: 8 << 20, segments: 20_000, delimiters: 1_000_000 };
}

impl Default for Limits {
    fn default() -> Self {
        Limits::DEFAULT
    }
}

/// One segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub(crate) name: SegmentName,
    pub(crate) occurrence: u32,
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) first: u32,
    pub(crate) last: u32,
}

impl Segment {
    /// Its name, in capitals.
    pub fn name(&self) -> SegmentName {
        self.name
    }

    /// Which of the segments of its name it is, from 1.
    pub fn occurrence(&self) -> u32 {
        self.occurrence
    }

    /// Where it stands in the text, name included, line end excluded.
    pub fn text(&self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }

    /// The indexes of its leaves.
    pub fn leaves(&self) -> std::ops::Range<usize> {
        self.first as usize..self.last as usize
    }

    /// Its path.
    pub fn path(&self) -> Path {
        Path::segment(self.name, self.occurrence)
    }
}

/// One non-empty subcomponent. All positions are counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Where it begins in the text.
    pub start: u32,
    /// Where it ends in the text.
    pub end: u32,
    /// Which repetition of its field.
    pub repetition: u32,
    /// Which component of its repetition.
    pub component: u32,
    /// Which field of its segment.
    pub field: u16,
    /// Which subcomponent of its component.
    pub subcomponent: u16,
}

/// A message, read. It borrows its text; values are decoded when they are asked for.
#[derive(Clone)]
pub struct Message<'t> {
    pub(crate) text: &'t str,
    pub(crate) separators: Separators,
    pub(crate) segments: Vec<Segment>,
    pub(crate) leaves: Vec<Leaf>,
    pub(crate) issues: Vec<Issue>,
}

impl<'t> Message<'t> {
    /// Reads one message. `text` is one message without its frame ([`super::split`]), its bytes decoded
    /// ([`super::charset`]).
    ///
    /// Lenient: CR, LF and CRLF end a segment; blank lines, blanks and a byte order mark before a segment, a missing
    /// last line end, segments without fields, names in small letters or of two or four characters, control
    /// characters and line feeds inside a value are all taken and reported in [`Message::issues`].
    ///
    /// # Errors
    /// [`Unreadable`] says why, and which answer is due.
    ///
    /// # Source
    /// HL7 v2.5.1 sections 2.5 and 2.6 (message construction and its rules).
    pub fn parse(text: &'t str, limits: &Limits) -> Result<Message<'t>, Unreadable> {
        scan::message(text, limits)
    }

    /// What was not taken as it stood.
    pub fn issues(&self) -> &[Issue] {
        &self.issues
    }

    /// MSH-1 and MSH-2.
    pub fn separators(&self) -> &Separators {
        &self.separators
    }

    /// The text that was read.
    pub fn text(&self) -> &'t str {
        self.text
    }

    /// The segments in message order; the first is MSH.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Every non-empty subcomponent, in message order. MSH-1 and MSH-2 are the first two.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// A leaf as it stands; `""` is HL7's null.
    pub fn raw(&self, leaf: usize) -> &'t str {
        self.leaves.get(leaf).map_or("", |leaf| self.slice(leaf.start, leaf.end))
    }

    /// A leaf with its escape sequences decoded. MSH-1 and MSH-2 are never decoded. HL7's null stays `""`:
    /// ask [`Message::is_null`].
    pub fn value(&self, leaf: usize) -> Cow<'t, str> {
        match leaf {
            0 | 1 => Cow::Borrowed(self.raw(leaf)),
            _ => escape::decode(self.raw(leaf), &self.separators),
        }
    }

    /// Whether a leaf is HL7's null `""`, which says that the value is to be deleted.
    pub fn is_null(&self, leaf: usize) -> bool {
        self.raw(leaf) == "\"\""
    }

    /// A field of a segment with all its repetitions. `segment` is an index into [`Message::segments`], `field` is
    /// counted from 1.
    pub fn field(&self, segment: usize, field: u16) -> Element {
        let Some(segment) = self.segments.get(segment) else { return Element::absent(Level::Field) };
        let leaves = &self.leaves[segment.leaves()];
        let first = leaves.partition_point(|leaf| leaf.field < field);
        let length = leaves[first..].partition_point(|leaf| leaf.field == field);
        // Within the leaves of the message, whose number fits u32.
        let first = segment.first + first as u32;
        Element { first, end: first + length as u32, level: Level::Field }
    }

    /// The fields of a segment that are not empty, each with its number.
    pub fn fields(&self, segment: usize) -> impl Iterator<Item = (u16, Element)> {
        let range = self.segments.get(segment).map_or(0..0, Segment::leaves);
        let mut first = range.start;
        std::iter::from_fn(move || {
            let field = self.leaves[first..range.end].first()?.field;
            let length = self.leaves[first..range.end].iter().take_while(|leaf| leaf.field == field).count();
            // Within the leaves of the message, whose number fits u32.
            let element = Element { first: first as u32, end: (first + length) as u32, level: Level::Field };
            first += length;
            Some((field, element))
        })
    }

    /// The first segment of a name.
    pub fn find(&self, name: SegmentName) -> Option<usize> {
        self.find_all(name).next()
    }

    /// The segments of a name, in message order.
    pub fn find_all(&self, name: SegmentName) -> impl Iterator<Item = usize> {
        self.segments.iter().enumerate().filter(move |(_, segment)| segment.name == name).map(|(n, _)| n)
    }

    /// What a path names. Absent for a path that names a whole segment: that is no element.
    pub fn at(&self, path: &Path) -> Element {
        let segment =
            self.segments.iter().position(|s| s.name == path.segment && s.occurrence == path.occurrence);
        let Some(segment) = segment else { return Element::absent(Level::Field) };
        let mut element = self.field(segment, path.field);
        if path.repetition > 0 {
            element = element.repetition(self, path.repetition);
        }
        if path.component > 0 {
            element = element.component(self, path.component);
        }
        if path.subcomponent > 0 {
            element = element.subcomponent(self, path.subcomponent);
        }
        element
    }

    /// The segment in which a leaf lies, an index into [`Message::segments`].
    pub fn segment_of(&self, leaf: usize) -> usize {
        self.segments.partition_point(|segment| segment.first as usize <= leaf).saturating_sub(1)
    }

    /// The shortest path that names this leaf alone: `PID-8`, `PID-3.1`, `PID-3[2].4.2`.
    pub fn path_of(&self, leaf: usize) -> Path {
        let segment = &self.segments[self.segment_of(leaf)];
        let Some(at) = self.leaves.get(leaf) else { return segment.path() };
        let near = &self.leaves[segment.leaves()];
        let here = leaf - segment.first as usize;
        let neighbours = [here.checked_sub(1).and_then(|n| near.get(n)), near.get(here + 1)];
        let beside = |same: &dyn Fn(&Leaf) -> bool| neighbours.iter().flatten().any(|leaf| same(leaf));
        let in_repetition = |leaf: &Leaf| leaf.field == at.field && leaf.repetition == at.repetition;
        let in_component = |leaf: &Leaf| in_repetition(leaf) && leaf.component == at.component;
        let subcomponent = at.subcomponent > 1 || beside(&in_component);
        let component = subcomponent || at.component > 1 || beside(&in_repetition);
        Path {
            segment: segment.name,
            occurrence: segment.occurrence,
            field: at.field,
            repetition: at.repetition,
            component: if component { at.component } else { 0 },
            subcomponent: if subcomponent { at.subcomponent } else { 0 },
        }
    }

    /// The path of an element; `None` if it is absent.
    pub fn path_of_element(&self, element: &Element) -> Option<Path> {
        let leaf = element.leaves(self).first()?;
        let segment = &self.segments[self.segment_of(element.first as usize)];
        let reaches = |level: Level| element.level >= level;
        Some(Path {
            segment: segment.name,
            occurrence: segment.occurrence,
            field: leaf.field,
            repetition: if reaches(Level::Repetition) { leaf.repetition } else { 0 },
            component: if reaches(Level::Component) { leaf.component } else { 0 },
            subcomponent: if reaches(Level::Subcomponent) { leaf.subcomponent } else { 0 },
        })
    }

    /// MSH, for intake and acknowledgement.
    pub fn header(&self) -> Header<'t> {
        header::Header::at(self.text, self.segments[0].start as usize)
            .and_then(Result::ok)
            .expect("the message was read, so its first segment is an MSH with usable separators")
    }

    pub(crate) fn slice(&self, start: u32, end: u32) -> &'t str {
        &self.text[start as usize..end as usize]
    }
}

/// Shows sizes only: everything else is a patient's.
impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("bytes", &self.text.len())
            .field("segments", &self.segments.len())
            .field("leaves", &self.leaves.len())
            .field("issues", &self.issues.len())
            .finish_non_exhaustive()
    }
}

/// What a sender is owed for a message that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No answer can be addressed: close the connection.
    Close,
    /// `AE`, in enhanced mode `CE`: the content is at fault.
    Error,
    /// `AR`, in enhanced mode `CR`: it is not taken here.
    Reject,
}

/// Why a message cannot be read. Where an answer is due, [`Header::peek`] reads what is needed to address it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// There is no MSH.
    #[error("no MSH segment: not an HL7 v2 message")]
    NoHeader,
    /// MSH-1 or MSH-2 cannot be used.
    #[error("{0}")]
    Separators(#[from] SeparatorsError),
    /// Something other than blanks stands before MSH.
    #[error("the message does not begin with MSH")]
    BeforeHeader,
    /// A second MSH: two messages where one was expected.
    #[error("a second MSH follows {after}: more than one message")]
    SecondHeader {
        /// The segment before it.
        after: Path,
    },
    /// A line without a segment name.
    #[error("the line after {after} does not begin with a segment name and belongs to no segment")]
    NoSegment {
        /// The segment before it.
        after: Path,
    },
    /// Over one of the [`Limits`], or a field or subcomponent beyond the 65,535th.
    #[error("over the limit of {limit} {unit}")]
    OverLimit {
        /// The limit.
        limit: usize,
        /// What it counts.
        unit: &'static str,
    },
}

impl Unreadable {
    /// Which answer is due.
    pub fn answer(&self) -> Answer {
        match self {
            Unreadable::NoHeader | Unreadable::Separators(_) => Answer::Close,
            Unreadable::BeforeHeader | Unreadable::SecondHeader { .. } | Unreadable::NoSegment { .. } => {
                Answer::Error
            }
            Unreadable::OverLimit { .. } => Answer::Reject,
        }
    }

    /// ERR-3, a code of table 0357: 100 segment sequence error, 207 application internal error.
    pub fn code(&self) -> u16 {
        match self {
            Unreadable::OverLimit { .. } => 207,
            Unreadable::NoHeader
            | Unreadable::Separators(_)
            | Unreadable::BeforeHeader
            | Unreadable::SecondHeader { .. }
            | Unreadable::NoSegment { .. } => 100,
        }
    }

    /// ERR-2, a path; empty when it is about the whole message. For a stray line, the segment before it.
    pub fn location(&self) -> String {
        match self {
            Unreadable::SecondHeader { after } | Unreadable::NoSegment { after } => after.to_string(),
            Unreadable::Separators(_) => "MSH-2".to_owned(),
            Unreadable::BeforeHeader => "MSH".to_owned(),
            Unreadable::NoHeader | Unreadable::OverLimit { .. } => String::new(),
        }
    }

    /// Whether the connection should be closed after the answer.
    pub fn closes(&self) -> bool {
        self.answer() != Answer::Error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADT: &str = "MSH|^~\\&|SND|FAC|RCV|RFAC|20240301||ADT^A01|1|P|2.5.1\r\
                       PID|1||TEST1^^^HOSP&1.2.3&ISO^MR~TEST2^^^NAT||TEST^JANE~^J||19700101|\"\"\r\
                       OBX|1|ST|a^b||x&y~z\rOBX|2|ST|a||\"\"^b\r";

    fn read(text: &str) -> Message<'_> {
        Message::parse(text, &Limits::default()).unwrap()
    }

    fn at(message: &Message<'_>, path: &str) -> Element {
        message.at(&path.parse().unwrap())
    }

    #[track_caller]
    fn check(path: &str, expected: Option<&str>) {
        let message = read(ADT);
        assert_eq!(at(&message, path).text(&message).as_deref(), expected, "{path}");
    }

    #[test]
    fn every_level_is_reached() {
        check("PID-3", Some("TEST1"));
        check("PID-3.1", Some("TEST1"));
        check("PID-3.1.1", Some("TEST1"));
        check("PID-3.4", Some("HOSP"));
        check("PID-3.4.2", Some("1.2.3"));
        check("PID-3[2]", Some("TEST2"));
        check("PID-3[2].4", Some("NAT"));
        check("PID-5.2", Some("JANE"));
        check("OBX[2]-3", Some("a"));
        check("OBX[2]-5.2", Some("b"));
        check("MSH-1", Some("|"));
        check("MSH-2", Some("^~\\&"));
        check("MSH-9.2", Some("A01"));
    }

    #[test]
    fn an_empty_place_does_not_answer_with_its_neighbour() {
        check("PID-5[2]", None);
        check("PID-5[2].1", None);
        check("PID-5[2].2", Some("J"));
        check("PID-3[3]", None);
        check("PID-2", None);
        check("PID-99", None);
        check("NK1-1", None);
        check("OBX[3]-1", None);
        check("PID-3.4.4", None);
        check("PID-7.1.1", Some("19700101"));
        check("PID-7.2", None);
        check("PID", None);
    }

    #[test]
    fn null_is_neither_a_value_nor_absent() {
        let message = read(ADT);
        let sex = at(&message, "PID-8");
        assert!(sex.is_null(&message) && !sex.is_absent());
        assert_eq!((sex.text(&message), sex.raw(&message)), (None, "\"\""));
        let partly = at(&message, "OBX[2]-5");
        assert!(!partly.is_null(&message), "only its first component is null");
        assert!(partly.component(&message, 1).is_null(&message));
        assert!(!at(&message, "PID-9").is_null(&message) && at(&message, "PID-9").is_absent());
    }

    #[test]
    fn parts_and_repetitions_are_those_that_are_valued() {
        let message = read(ADT);
        let texts =
            |parts: crate::hl7v2::element::Parts<'_, '_>| parts.map(|p| p.raw(&message)).collect::<Vec<_>>();
        let ids = at(&message, "PID-3");
        assert_eq!(texts(ids.repetitions(&message)), ["TEST1^^^HOSP&1.2.3&ISO^MR", "TEST2^^^NAT"]);
        let first = ids.repetition(&message, 1);
        assert_eq!(texts(first.repetitions(&message)), ["TEST1^^^HOSP&1.2.3&ISO^MR"]);
        assert_eq!(texts(first.parts(&message)), ["TEST1", "HOSP&1.2.3&ISO", "MR"]);
        let assigner = first.part(&message, 4);
        assert_eq!(texts(assigner.parts(&message)), ["HOSP", "1.2.3", "ISO"]);
        assert_eq!(assigner.part(&message, 2).raw(&message), "1.2.3");
        assert_eq!(texts(assigner.part(&message, 2).parts(&message)), ["1.2.3"]);
        assert_eq!(texts(at(&message, "PID-2").parts(&message)), Vec::<&str>::new());
        let second = at(&message, "PID-3[2]");
        assert_eq!(second.repetition_number(&message), 2);
        let fields: Vec<u16> = message.fields(1).map(|(field, _)| field).collect();
        assert_eq!(fields, [1, 3, 5, 7, 8]);
    }

    #[test]
    fn a_leaf_has_the_shortest_path_that_names_it_alone() {
        let message = read(ADT);
        let paths: Vec<String> =
            (0..message.leaves().len()).map(|n| message.path_of(n).to_string()).collect();
        let expected = [
            "MSH-1",
            "MSH-2",
            "MSH-3",
            "MSH-4",
            "MSH-5",
            "MSH-6",
            "MSH-7",
            "MSH-9.1",
            "MSH-9.2",
            "MSH-10",
            "MSH-11",
            "MSH-12",
            "PID-1",
            "PID-3.1",
            "PID-3.4.1",
            "PID-3.4.2",
            "PID-3.4.3",
            "PID-3.5",
            "PID-3[2].1",
            "PID-3[2].4",
            "PID-5.1",
            "PID-5.2",
            "PID-5[2].2",
            "PID-7",
            "PID-8",
            "OBX-1",
            "OBX-2",
            "OBX-3.1",
            "OBX-3.2",
            "OBX-5.1.1",
            "OBX-5.1.2",
            "OBX-5[2]",
            "OBX[2]-1",
            "OBX[2]-2",
            "OBX[2]-3",
            "OBX[2]-5.1",
            "OBX[2]-5.2",
        ];
        assert_eq!(paths, expected);
        for leaf in 0..paths.len() {
            assert_eq!(message.at(&message.path_of(leaf)).first_leaf(&message).unwrap_or(leaf), leaf);
        }
    }

    #[test]
    fn debug_and_errors_show_no_value() {
        let message = read(ADT);
        assert!(!format!("{message:?}").contains("TEST"));
        let stray = ADT.replace("OBX|2", "JANE TEST|2");
        let error = Message::parse(&stray, &Limits::default()).unwrap_err();
        assert!(!format!("{error:?} {error}").contains("JANE"), "{error}");
        assert_eq!(error.location(), "OBX");
    }

    #[test]
    fn limits_hold() {
        let limits = |bytes, segments, delimiters| Limits { bytes, segments, delimiters };
        let count = ADT.bytes().filter(|b| b"|^~&\r".contains(b)).count() - 4;
        assert!(Message::parse(ADT, &limits(ADT.len(), 4, count)).is_ok());
        for (limits, unit) in [
            (limits(ADT.len() - 1, 4, count), "bytes"),
            (limits(ADT.len(), 3, count), "segments"),
            (limits(ADT.len(), 4, count - 1), "separators"),
        ] {
            let error = Message::parse(ADT, &limits).unwrap_err();
            assert!(matches!(error, Unreadable::OverLimit { unit: found, .. } if found == unit), "{error}");
            assert_eq!((error.answer(), error.code()), (Answer::Reject, 207));
        }
        let many = format!("MSH|^~\\&|\rOBX{}x", "|".repeat(70_000));
        assert!(matches!(
            Message::parse(&many, &Limits::default()),
            Err(Unreadable::OverLimit { limit: 65_535, .. })
        ));
    }

    #[test]
    fn more_repetitions_than_sixteen_bits_are_kept() {
        let samples = format!("MSH|^~\\&|\rOBX|1|NA|||{}7^{}8", "1~".repeat(70_000), "2^".repeat(70_000));
        let message = read(&samples);
        assert_eq!(at(&message, "OBX-5[70001].1").text(&message).as_deref(), Some("7"));
        assert_eq!(at(&message, "OBX-5[70001].70002").text(&message).as_deref(), Some("8"));
    }
}
