//! Writing messages: one that was read, in good form; or a new one, from values.
//!
//! Invariant: whatever the values are, what is written reads back as the same values in the same places.

use super::escape;
use super::message::Message;
use super::path::SegmentName;
use super::separators::Separators;
use std::ops::Range;

/// The message in good form: every segment as it stands, ended by CR; names in capitals, without blanks before them,
/// no blank lines, control characters inside of values escaped. A message that was well-formed comes out as it was.
pub fn emit(message: &Message<'_>) -> String {
    let mut text = String::with_capacity(message.text().len() + 1);
    for segment in message.segments() {
        text.push_str(segment.name().as_str());
        let range = segment.text();
        let source = &message.text()[range.clone()];
        if let Some(fields) = source.find(char::from(message.separators().field)) {
            let mut copied = range.start + fields;
            // What stands between the leaves is separators.
            for leaf in segment.leaves() {
                let (raw, place) = (message.raw(leaf), message.leaves()[leaf]);
                if raw.bytes().all(|b| b >= b' ') {
                    continue;
                }
                text.push_str(&message.text()[copied..place.start as usize]);
                match leaf {
                    // MSH-1 and MSH-2 are not escaped; what is odd there is blanks at the end.
                    0 | 1 => text.push_str(raw.trim_end()),
                    _ => text.push_str(&escape::encode(&message.value(leaf), message.separators())),
                }
                copied = place.end as usize;
            }
            text.push_str(&message.text()[copied..range.end]);
        }
        text.push('\r');
    }
    text
}

/// Where in a segment a value goes, all counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Field.
    pub field: u16,
    /// Repetition.
    pub repetition: u16,
    /// Component.
    pub component: u16,
    /// Subcomponent.
    pub subcomponent: u16,
}

/// Writes a message value by value, in any order within a segment. Values are escaped by construction: no value can end
/// its field, its segment or the message.
///
/// ```
/// use schemas::hl7v2::{SegmentName, Separators, emit::Writer};
/// let mut ack = Writer::new(&Separators::default());
/// ack.segment(SegmentName::of("MSH")).component(9, 1, "ACK").component(9, 2, "A01").field(10, "1");
/// ack.segment(SegmentName::of("MSA")).field(1, "AA").field(2, "TEST|1");
/// assert_eq!(ack.finish(), "MSH|^~\\&|||||||ACK^A01|1\rMSA|AA|TEST\\F\\1\r");
/// ```
#[derive(Clone)]
pub struct Writer {
    separators: Separators,
    text: String,
    is_header: bool,
    values: String,
    places: Vec<(Position, Range<usize>)>,
}

impl Writer {
    /// Begins a message with these separators. What is missing of them is filled in ([`Separators::complete`]), and so
    /// written to MSH-2.
    pub fn new(separators: &Separators) -> Writer {
        Writer {
            separators: separators.complete(),
            text: String::with_capacity(256),
            is_header: false,
            values: String::with_capacity(128),
            places: Vec::with_capacity(16),
        }
    }

    /// The separators that are written.
    pub fn separators(&self) -> &Separators {
        &self.separators
    }

    /// Ends the segment before and begins one. In MSH, FHS and BHS the first two fields are written by themselves.
    pub fn segment(&mut self, name: SegmentName) -> &mut Self {
        self.end_segment();
        self.text.push_str(name.as_str());
        self.is_header = ["MSH", "FHS", "BHS"].contains(&name.as_str());
        self
    }

    /// Sets a field that has one component. Nothing is written for an empty value.
    pub fn field(&mut self, field: u16, value: &str) -> &mut Self {
        self.component(field, 1, value)
    }

    /// Sets a component of the first repetition of a field.
    pub fn component(&mut self, field: u16, component: u16, value: &str) -> &mut Self {
        self.value(Position { field, repetition: 1, component, subcomponent: 1 }, value)
    }

    /// Sets a value anywhere. The last one set at a position stays.
    pub fn value(&mut self, at: Position, value: &str) -> &mut Self {
        let encoded = escape::encode(value, &self.separators);
        self.put(at, &encoded);
        self
    }

    /// Sets HL7's null `""`, which tells the receiver to delete the value.
    pub fn null(&mut self, at: Position) -> &mut Self {
        self.put(at, "\"\"");
        self
    }

    /// Sets a field to what stands in a field of another message with the same separators, components and repetitions
    /// included. Field separators and control characters, which cannot be part of a field, are escaped.
    pub fn raw(&mut self, field: u16, raw: &str) -> &mut Self {
        let Separators { field: end, component, repetition, subcomponent, .. } = self.separators;
        let inner = |c: char| [Some(component), repetition, subcomponent].contains(&u8::try_from(c).ok());
        let mut text = String::with_capacity(raw.len());
        for part in raw.split_inclusive(inner) {
            let (value, separator) = part.split_at(part.len() - usize::from(part.ends_with(inner)));
            if value.bytes().any(|b| b < b' ' || b == end) {
                let value = escape::decode(value, &self.separators);
                text.push_str(&escape::encode(&value, &self.separators));
            } else {
                text.push_str(value);
            }
            text.push_str(separator);
        }
        self.put(Position { field, repetition: 1, component: 1, subcomponent: 1 }, &text);
        self
    }

    /// The message: its segments, each ended by CR.
    pub fn finish(mut self) -> String {
        self.end_segment();
        self.text
    }

    fn put(&mut self, at: Position, text: &str) {
        let start = self.values.len();
        self.values.push_str(text);
        self.places.push((at, start..self.values.len()));
    }

    fn end_segment(&mut self) {
        if self.text.is_empty() {
            return;
        }
        // Stable, so the last of the equal ones was set last.
        self.places.sort_by_key(|(at, _)| *at);
        let separator = |byte: Option<u8>| char::from(byte.expect("the separators were completed"));
        let mut here = Position { field: 0, repetition: 1, component: 1, subcomponent: 1 };
        if self.is_header {
            self.text.push(char::from(self.separators.field));
            self.text.push_str(&self.separators.encoding_characters());
            here.field = 2;
        }
        for (n, (at, range)) in self.places.iter().enumerate() {
            let replaced = self.places.get(n + 1).is_some_and(|(next, _)| next == at);
            let own = self.is_header && at.field <= 2;
            if range.is_empty() || replaced || own || at.field == 0 {
                continue;
            }
            if at.field > here.field {
                let field = char::from(self.separators.field);
                self.text.extend(std::iter::repeat_n(field, usize::from(at.field - here.field)));
                here = Position { field: at.field, repetition: 1, component: 1, subcomponent: 1 };
            }
            if at.repetition > here.repetition {
                let repetition = separator(self.separators.repetition);
                self.text
                    .extend(std::iter::repeat_n(repetition, usize::from(at.repetition - here.repetition)));
                here = Position { repetition: at.repetition, component: 1, subcomponent: 1, ..here };
            }
            if at.component > here.component {
                let component = char::from(self.separators.component);
                self.text.extend(std::iter::repeat_n(component, usize::from(at.component - here.component)));
                here = Position { component: at.component, subcomponent: 1, ..here };
            }
            if at.subcomponent > here.subcomponent {
                let subcomponent = separator(self.separators.subcomponent);
                self.text.extend(std::iter::repeat_n(
                    subcomponent,
                    usize::from(at.subcomponent - here.subcomponent),
                ));
                here.subcomponent = at.subcomponent;
            }
            self.text.push_str(&self.values[range.clone()]);
        }
        self.text.push('\r');
        self.places.clear();
        self.values.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hl7v2::{Limits, Path};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn at(field: u16, repetition: u16, component: u16, subcomponent: u16) -> Position {
        Position { field, repetition, component, subcomponent }
    }

    #[test]
    fn values_go_where_they_belong_in_any_order() {
        let mut writer = Writer::new(&Separators::default());
        writer.segment(SegmentName::of("MSH")).field(1, "no").field(2, "no").field(12, "2.5.1").field(3, "A");
        writer.segment(SegmentName::of("PID"));
        writer.value(at(3, 2, 4, 2), "1.2.3").value(at(3, 1, 1, 1), "TEST1").value(at(3, 2, 1, 1), "old");
        writer.value(at(3, 2, 1, 1), "TEST2").null(at(8, 1, 1, 1)).field(7, "").raw(5, "TEST^JANE~J|\r");
        writer.segment(SegmentName::of("NTE"));
        assert_eq!(
            writer.finish(),
            "MSH|^~\\&|A|||||||||2.5.1\rPID|||TEST1~TEST2^^^&1.2.3||TEST^JANE~J\\F\\\\X0D\\|||\"\"\rNTE\r"
        );
    }

    #[test]
    fn separators_that_are_missing_are_written_too() {
        let separators = Separators::read(b'|', b"^").unwrap().0;
        let mut writer = Writer::new(&separators);
        writer.segment(SegmentName::of("MSH")).field(3, "a|b");
        assert_eq!(writer.finish(), "MSH|^~\\&|a\\F\\b\r");
    }

    #[test]
    fn what_was_read_leniently_is_written_in_good_form() {
        let odd = "\r\n msh|^~\\& \t|A\r\n\r\npid|1|a\tb|\r\n OBX|1|TX|||line\nline\r\nEVN";
        let message = Message::parse(odd, &Limits::default()).unwrap();
        assert_eq!(emit(&message), "MSH|^~\\&|A\rPID|1|a\\X09\\b|\rOBX|1|TX|||line\\X0A\\line\rEVN\r");
    }

    /// Well-formed messages, separators at the ends of segments and fields included.
    fn well_formed() -> impl Strategy<Value = String> {
        let segment = ("(PID|OBX|ZX1|NTE)", r"(\|[a-zü \\F.~^&0-9]{0,12}){0,6}");
        let segments =
            proptest::collection::vec(segment.prop_map(|(name, fields)| name + &fields + "\r"), 0..6);
        segments.prop_map(|segments| format!("MSH|^~\\&|A|B\r{}", segments.concat()))
    }

    proptest! {
        #[test]
        fn a_well_formed_message_comes_out_as_it_was(text in well_formed()) {
            let message = Message::parse(&text, &Limits::default()).unwrap();
            prop_assert_eq!(emit(&message), text.as_str());
        }

        #[test]
        fn any_values_come_back_from_their_places(
            values in proptest::collection::btree_map((3u16..9, 1u16..4, 1u16..5, 1u16..4), ".{1,8}", 0..12),
            encoding in prop_oneof![Just("^~\\&"), Just("^~\\&#"), Just("@*/%"), Just("^")],
        ) {
            let mut writer = Writer::new(&Separators::read(b'|', encoding.as_bytes()).unwrap().0);
            writer.segment(SegmentName::of("MSH")).segment(SegmentName::of("ZZZ"));
            for (&(field, repetition, component, subcomponent), value) in &values {
                writer.value(at(field, repetition, component, subcomponent), value);
            }
            let text = writer.finish();
            let message = Message::parse(&text, &Limits::default()).unwrap();
            prop_assert_eq!(message.segments().len(), 2);
            let found: BTreeMap<_, _> = message.segments()[1].leaves().map(|n| {
                let leaf = message.leaves()[n];
                let place = (leaf.field, leaf.repetition as u16, leaf.component as u16, leaf.subcomponent);
                (place, message.value(n).into_owned())
            }).collect();
            prop_assert_eq!(&found, &values);
            for (&(field, repetition, component, subcomponent), value) in &values {
                let path = Path { field, repetition: repetition.into(), component: component.into(), subcomponent,
                    ..Path::segment(SegmentName::of("ZZZ"), 1) };
                let element = message.at(&path);
                prop_assert_eq!(element.text(&message), Some(value.into()));
            }
        }

        #[test]
        fn nothing_raw_breaks_a_message(raw in r"([|~^&\\XF0-9a\t\r\n]){0,12}") {
            let mut writer = Writer::new(&Separators::default());
            writer.segment(SegmentName::of("MSH")).segment(SegmentName::of("ZZZ")).raw(1, &raw).field(2, "end");
            let text = writer.finish();
            let message = Message::parse(&text, &Limits::default()).unwrap();
            let end = message.field(1, 2).text(&message);
            prop_assert_eq!(end.as_deref(), Some("end"));
            prop_assert_eq!(message.segments().len(), 2);
            let expected = |code: &str| code.starts_with("escape-") || code == "required-field";
            prop_assert!(message.issues().iter().all(|issue| expected(&issue.code)));
        }

        #[test]
        fn what_is_emitted_reads_as_the_same_values(text in "MSH\\|\\^~\\\\&\\|A(\\||~|\\^|&|[a-c\\\\\\t\n]|\r|\r\n|PID\\||[a-z]{2}\\|){0,40}") {
            if let Ok(message) = Message::parse(&text, &Limits::default()) {
                let emitted = emit(&message);
                let again = Message::parse(&emitted, &Limits::default()).unwrap();
                let values = |m: &Message<'_>| (0..m.leaves().len()).map(|n| (m.path_of(n), m.value(n).into_owned())).collect::<Vec<_>>();
                prop_assert_eq!(values(&message), values(&again));
                // Good form brings nothing odd of its own. By code alone: of many findings of a kind, the first are listed.
                for issue in again.issues() {
                    prop_assert!(message.issues().iter().any(|of| of.code == issue.code), "{}", issue);
                }
            }
        }
    }
}
