//! Our reader beside the crate hl7-parser, on the messages that both read rightly: well-formed ones, CR at the end of each
//! segment, the recommended separators. (What hl7-parser reads wrongly is in the table of odd cases.)

use proptest::prelude::*;
use schemas::hl7v2::{Limits, Message};

/// Segment, field, repetition, component, subcomponent, text as it stands.
type Place = (usize, usize, usize, usize, usize, String);

/// Every non-empty subcomponent as hl7-parser finds it, MSH-1 and MSH-2 left out.
fn theirs(text: &str) -> Vec<Place> {
    let message = hl7_parser::Message::parse(text).expect("a well-formed message");
    let mut found = Vec::new();
    for (s, segment) in message.segments().enumerate() {
        for (f, field) in segment.fields().enumerate().filter(|(f, _)| s > 0 || *f > 1) {
            for (r, repeat) in field.repeats().enumerate() {
                for (c, component) in repeat.components().enumerate() {
                    for (sub, subcomponent) in component.subcomponents().enumerate() {
                        let raw = subcomponent.raw_value();
                        if !raw.is_empty() {
                            found.push((s, f + 1, r + 1, c + 1, sub + 1, raw.to_owned()));
                        }
                    }
                }
            }
        }
    }
    found
}

fn ours(text: &str) -> Vec<Place> {
    let message = Message::parse(text, &Limits::default()).expect("a well-formed message");
    let places = message.leaves().iter().enumerate().skip(2).map(|(n, leaf)| {
        let (repetition, component) = (leaf.repetition as usize, leaf.component as usize);
        let (field, subcomponent) = (usize::from(leaf.field), usize::from(leaf.subcomponent));
        (message.segment_of(n), field, repetition, component, subcomponent, message.raw(n).to_owned())
    });
    places.collect()
}

fn names(text: &str) -> (Vec<String>, Vec<String>) {
    let theirs = hl7_parser::Message::parse(text).expect("a well-formed message");
    let ours = Message::parse(text, &Limits::default()).expect("a well-formed message");
    (
        theirs.segments().map(|segment| segment.name.to_owned()).collect(),
        ours.segments().iter().map(|segment| segment.name().to_string()).collect(),
    )
}

/// Fields of words, separators in any number and order, and escape sequences.
fn well_formed() -> impl Strategy<Value = String> {
    let field = proptest::collection::vec(
        prop_oneof![
            4 => "[A-Za-z0-9 .:/_+-]{1,6}",
            1 => Just("Zoë 山".to_owned()),
            1 => Just("\\F\\".to_owned()),
            1 => Just("\"\"".to_owned()),
            3 => "[~^&]{1,3}",
        ],
        0..6,
    )
    .prop_map(|parts| parts.concat());
    let fields = proptest::collection::vec(field, 1..9);
    let segment =
        ("[A-Z][A-Z0-9]{2}", fields).prop_map(|(name, fields)| format!("{name}|{}\r", fields.join("|")));
    let segments = proptest::collection::vec(segment, 0..8);
    let header = proptest::collection::vec("[A-Za-z0-9^&]{0,6}", 1..10);
    (header, segments).prop_map(|(header, segments)| {
        let segments: Vec<String> =
            segments.into_iter().filter(|segment| !segment.starts_with("MSH")).collect();
        format!("MSH|^~\\&|{}\r{}", header.join("|"), segments.concat())
    })
}

proptest! {
    #[test]
    fn both_find_the_same_in_the_same_places(text in well_formed()) {
        prop_assert_eq!(ours(&text), theirs(&text));
        let (theirs, ours) = names(&text);
        prop_assert_eq!(ours, theirs);
        let message = Message::parse(&text, &Limits::default()).expect("a well-formed message");
        prop_assert!(message.issues().iter().all(|issue| issue.code == "required-field"));
    }
}
