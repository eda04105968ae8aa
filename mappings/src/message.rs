//! A message of HL7 v2, put together from the segments that a mapping has written.

use crate::catalog::Program;
use crate::given::Given;
use crate::run::{Context, Quarantined, WrittenSegment};
use schemas::hl7v2::Separators;
use schemas::hl7v2::emit::{Position, Writer};
use schemas::issue::Issue;
use serde_json::Value;
use std::fmt;

/// A message of HL7 v2 that was written.
#[derive(Clone)]
pub struct Message {
    /// Its text: segments ended by CR, in the recommended separators.
    pub text: String,
    /// What could not be taken as it stood, and what the message has no place for (`unmapped-field`).
    pub issues: Vec<Issue>,
}

/// Shows the length of the text; what it holds is a patient's.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message").field("length", &self.text.len()).field("issues", &self.issues).finish()
    }
}

impl Program {
    /// Writes what is given as a message of HL7 v2; `None` if this mapping writes resources.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn write<'g>(
        &self,
        given: impl Into<Given<'g>>,
        context: &Context<'_>,
    ) -> Option<Result<Message, Quarantined>> {
        self.writes_messages().then(|| {
            let mapped = self.run(given, context)?;
            match text_of(&mapped.segments) {
                Some(text) => Ok(Message { text, issues: mapped.issues }),
                None => Err(Quarantined {
                    reason: "a field has more repetitions than a message can hold".to_owned(),
                    issues: mapped.issues,
                    unmapped_codes: mapped.unmapped_codes,
                }),
            }
        })
    }
}

/// The segments that are numbered in their first field, and behind which others each begins anew; any other, if none is named.
const NUMBERED: [(&str, &[&str]); 7] = [
    ("PID", &["MSH"]),
    ("NK1", &["PID"]),
    ("AL1", &["PID"]),
    ("DG1", &["PID", "OBR"]),
    ("OBR", &["PID"]),
    ("OBX", &["PID", "OBR"]),
    ("NTE", &[]),
];

/// `None` if a field has too many repetitions.
fn text_of(segments: &[WrittenSegment]) -> Option<String> {
    let mut writer = Writer::new(&Separators::default());
    let mut counts = [0_u32; NUMBERED.len()];
    for segment in segments {
        writer.segment(segment.name);
        let name = segment.name.as_str();
        for ((numbered, anew), count) in NUMBERED.iter().zip(&mut counts) {
            if *numbered == name {
                *count += 1;
                writer.field(1, &count.to_string());
            } else if anew.is_empty() || anew.contains(&name) {
                *count = 0;
            }
        }
        let fields: Value = serde_json::from_str(&segment.fields).expect("what a rule writes is JSON");
        for (name, field) in fields.as_object().into_iter().flatten() {
            let Some(number) = number(name) else { continue };
            let whole = Position { field: number, repetition: 1, component: 1, subcomponent: 1 };
            let repetitions = field.as_array().map_or(std::slice::from_ref(field), Vec::as_slice);
            for (index, value) in repetitions.iter().enumerate() {
                let repetition = u16::try_from(index + 1).ok()?;
                put(&mut writer, Position { repetition, ..whole }, value, 0);
            }
        }
    }
    Some(writer.finish())
}

/// Puts a value at a position, or its parts a level further down.
fn put(writer: &mut Writer, at: Position, value: &Value, depth: u8) {
    match value {
        Value::Object(parts) => {
            for (name, part) in parts {
                let Some(number) = number(name) else { continue };
                let at = match depth {
                    0 => Position { component: number, ..at },
                    _ => Position { subcomponent: number, ..at },
                };
                put(writer, at, part, depth + 1);
            }
        }
        Value::String(text) => {
            writer.value(at, text);
        }
        other => {
            writer.value(at, &other.to_string());
        }
    }
}

/// The number at the end of `PID-3` or `CX.4`.
fn number(name: &str) -> Option<u16> {
    name.rsplit(['-', '.']).next()?.parse().ok()
}
