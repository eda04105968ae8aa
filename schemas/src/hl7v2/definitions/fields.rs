//! Segments and data types: both are a numbered list of typed parts.

use super::{Version, spans};
use std::collections::HashMap;

/// A segment with its fields, or a data type with its components.
#[derive(Debug)]
pub struct SegmentDef {
    /// The code, such as `PID` or `CX`.
    pub name: &'static str,
    /// What it is called, such as `Patient identification`; empty for a data type.
    pub title: &'static str,
    /// Fields or components: the one numbered n stands at index n - 1.
    pub fields: Vec<FieldDef>,
}

impl SegmentDef {
    /// The field or component with this number, counted from 1.
    pub fn field(&self, number: u16) -> Option<&FieldDef> {
        self.fields.get(usize::from(number).checked_sub(1)?)
    }
}

/// One field of a segment or one component of a data type.
#[derive(Clone, Copy, Debug)]
pub struct FieldDef {
    /// Counted from 1.
    pub number: u16,
    /// What it is called, such as `Patient identifier list`.
    pub name: &'static str,
    /// The data type, such as `CX`; `varies` where another field names it (OBX-5).
    pub datatype: &'static str,
    /// Whether it has to be there.
    pub usage: Usage,
    /// How often it may stand; `None` without a bound.
    pub repetitions: Option<u16>,
    /// The longest value in characters, where the version gives one.
    pub length: Option<u32>,
    /// The HL7 table of its codes, such as 1 for table 0001.
    pub table: Option<u16>,
}

/// Whether a field has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// May be absent; also what the standard calls conditional.
    Optional,
    /// Must be valued.
    Required,
    /// Taken out of this version or not yet in use; its type is the one that it had, because senders go on filling it.
    Withdrawn,
}

/// Reads `segments.txt` or `datatypes.txt` for one version. The format is described at the head of the file.
pub(super) fn read(text: &'static str, version: Version) -> HashMap<&'static str, SegmentDef> {
    let mut read = HashMap::with_capacity(256);
    let mut current = SegmentDef { name: "", title: "", fields: Vec::new() };
    let mut name = "";
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(head) = line.strip_prefix("= ") {
            let (code, title) = head.split_once(' ').unwrap_or((head, ""));
            let done = std::mem::replace(&mut current, SegmentDef { name: code, title, fields: Vec::new() });
            keep(&mut read, done);
            continue;
        }
        let mut parts = line.splitn(7, ' ');
        let mut next = || parts.next().unwrap_or_default();
        let (number, span, datatype, card, length, table) = (next(), next(), next(), next(), next(), next());
        if let Some(given) = parts.next() {
            name = given;
        }
        if spans(span, version) {
            let (usage, repetitions) = card.split_at(1);
            current.fields.push(FieldDef {
                number: number.parse().expect("generate.py writes numbers"),
                name,
                datatype,
                usage: match usage {
                    "r" => Usage::Required,
                    "w" => Usage::Withdrawn,
                    _ => Usage::Optional,
                },
                repetitions: repetitions.parse().ok(),
                length: length.parse().ok(),
                table: table.parse().ok(),
            });
        }
    }
    keep(&mut read, current);
    read
}

fn keep(read: &mut HashMap<&'static str, SegmentDef>, mut done: SegmentDef) {
    if !done.fields.is_empty() {
        done.fields.shrink_to_fit();
        read.insert(done.name, done);
    }
}
