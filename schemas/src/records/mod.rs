//! Documents of named members, JSON and CSV, on the same flat index as HL7 v2, so that one engine reads them all.
//!
//! ```text
//! text ─ json, csv ─► records and their values ─► Records: segments, leaves, groups, as of a message
//! ```
//! A record is an object of JSON or a line of CSV. It becomes a segment whose fields are its members that hold values, and it stands in
//! a group of its own, named by the member in which it lies. Numbers come from the [`Shapes`] that a mapping declares; what a document
//! has beyond them is kept, too, and is told by number (`*1`, `*2`), because its name may be a patient's. Invariant: every value that
//! is neither null nor empty is a leaf of exactly one record, or the document is refused as a whole.

mod build;
mod csv;
mod fhir;
mod json;
mod shape;
#[cfg(test)]
mod tests;

pub use csv::{Csv, read_csv};
pub use fhir::{ALL as RESOURCES, read_fhir, shapes as fhir_shapes};
pub use json::read_json;
pub use shape::{Holds, Is, Member, Shape, ShapeId, Shapes, Value};

use crate::hl7v2::grammar::{Groups, InstanceId};
use crate::hl7v2::message::{Leaf, Message, Segment};
use crate::hl7v2::{SegmentName, Separators};
use crate::issue::{Issue, Severity};
use encoding_rs::{Encoding, WINDOWS_1252};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

/// What stands for the name of what no shape declares, before its number: its own is not told.
const UNDECLARED: &str = "*";
/// The segment that a record without a shape is.
const OTHER: SegmentName = SegmentName::of("RZZZ");

/// The text of a document: UTF-8, or UTF-16 with a byte order mark. What is neither is read as Windows-1252, as spreadsheets write it, and
/// an issue says so.
///
/// # Source
/// RFC 8259 section 8.1; WHATWG Encoding Standard, BOM sniff.
pub fn decode(bytes: &[u8]) -> (Cow<'_, str>, Option<Issue>) {
    let doubt = |text: &str| Some(Issue::new(Severity::Warning, "charset-assumed", "", text));
    if let Some((encoding, length)) = Encoding::for_bom(bytes) {
        let (text, wrong) = encoding.decode_without_bom_handling(&bytes[length..]);
        let issue =
            wrong.then(|| doubt("bytes that its byte order mark does not allow are replaced by U+FFFD"));
        return (text, issue.flatten());
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => (Cow::Borrowed(text), None),
        Err(_) => {
            let (text, _) = WINDOWS_1252.decode_without_bom_handling(bytes);
            (text, doubt("not UTF-8: taken as Windows-1252"))
        }
    }
}

/// The bounds within which a document is read. One that exceeds them is refused as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of the text in bytes of UTF-8.
    pub bytes: usize,
    /// Number of records.
    pub records: usize,
    /// Number of values.
    pub values: usize,
    /// How deeply records lie within each other.
    pub depth: usize,
}

impl Limits {
    /// 8 MiB, 200,000 records, 1,000,000 values, 32 levels.
    pub const DEFAULT: Limits = Limits { bytes: 8 << 20, records: 200_000, values: 1_000_000, depth: 32 };
}

impl Default for Limits {
    fn default() -> Self {
        Limits::DEFAULT
    }
}

/// Why a document cannot be read. Places are told, values are not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is not written as JSON or CSV.
    #[error("not {format}: line {line}, column {column}")]
    Syntax {
        /// `JSON` or `CSV`.
        format: &'static str,
        /// Counted from 1.
        line: usize,
        /// Counted from 1; 0 where it is not known.
        column: usize,
    },
    /// It is a value or a list, where a record is expected.
    #[error("the document is no record, and {0} is expected")]
    NoRecord(&'static str),
    /// A record has two members of one name, and which of them counts nobody can know.
    #[error("two members of one name: {0}")]
    Twice(String),
    /// A CSV file without a first line that names its columns.
    #[error("the first line names none of the declared columns")]
    NoHeader,
    /// Over one of the [`Limits`].
    #[error("over the limit of {limit} {unit}")]
    OverLimit {
        /// The limit.
        limit: usize,
        /// What it counts.
        unit: &'static str,
    },
}

/// A document, read.
pub struct Records {
    /// The values, one after the other.
    text: String,
    segments: Vec<Segment>,
    leaves: Vec<Leaf>,
    groups: Groups,
    issues: Vec<Issue>,
    /// Of each record its shape; `None` for one that no shape declares.
    shapes: Vec<Option<ShapeId>>,
    /// Of each record whether it stands in a list.
    listed: Vec<bool>,
    /// What records that no shape declares are told as.
    labels: HashMap<u32, String>,
    links: Links,
    /// The shape of references, and the member that says where they lead.
    reference: Option<(ShapeId, u16)>,
    /// Every shape.
    known: Arc<Shapes>,
}

/// Where the references of a FHIR document lead.
#[derive(Debug, Default)]
struct Links {
    /// By `fullUrl`, and by type and id; nowhere, if two resources have the same name.
    names: HashMap<String, Option<u32>>,
    /// By `#` and id, within one resource of the document.
    inside: HashMap<(u32, String), u32>,
    /// Of a resource with the URL of a server, what stands before its type and id.
    bases: HashMap<u32, String>,
}

impl Links {
    /// The resource of the document in which a record lies: the document is the first record.
    fn around(&self, record: u32, around: impl Fn(u32) -> u32) -> u32 {
        let mut at = record;
        while around(at) != 0 {
            at = around(at);
        }
        at
    }
}

impl Records {
    /// The index of the document, as that of a message without separators. It has no header: nothing may ask it for one.
    pub fn index(&self) -> Message<'_> {
        let separators =
            Separators { repetition: None, escape: None, subcomponent: None, ..Separators::default() };
        Message {
            text: &self.text,
            separators,
            segments: self.segments.clone(),
            leaves: self.leaves.clone(),
            issues: self.issues.clone(),
        }
    }

    /// The groups in which the records stand. A record has the number of its group's instance.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// What was not as its shape declares it.
    pub fn issues(&self) -> &[Issue] {
        &self.issues
    }

    /// The resource to which a reference leads, if it is in the document.
    ///
    /// An absolute reference means the resource of this `fullUrl`, whatever its version; a relative one that of this type and id on the server on
    /// which the resource that refers stands, and among resources that stand on none, the one of that type and id.
    pub fn target_of(&self, reference: u32) -> Option<u32> {
        let (shape, field) = self.reference?;
        if self.shapes[reference as usize] != Some(shape) {
            return None;
        }
        let leaf = self.leaves[self.segments[reference as usize].leaves()]
            .iter()
            .find(|leaf| leaf.field == field)?;
        let text = &self.text[leaf.start as usize..leaf.end as usize];
        let around = |at| self.groups.parent(InstanceId(at)).map_or(0, |id| id.0);
        let around = self.links.around(reference, around);
        if text.starts_with('#') {
            return self.links.inside.get(&(around, text.to_owned())).copied();
        }
        let text = text.split_once("/_history/").map_or(text, |(resource, _)| resource);
        let named = |name: &str| self.links.names.get(name).copied().flatten();
        match self.links.bases.get(&around) {
            Some(base) if !text.contains(':') => named(&format!("{base}{text}")),
            _ => named(text),
        }
    }

    /// Where a value stands: `records[1].value`. Lists count from 0, as JSON does.
    pub fn place_of(&self, leaf: usize) -> String {
        let record =
            self.segments.partition_point(|segment| segment.first as usize <= leaf).saturating_sub(1);
        let mut place = self.place_of_record(record);
        let Some(leaf) = self.leaves.get(leaf) else { return place };
        if !place.is_empty() {
            place.push('.');
        }
        let shape = self.shapes[record];
        let declared = shape.and_then(|shape| self.known.get(shape).members.get(usize::from(leaf.field) - 1));
        let count = shape.map_or(0, |shape| self.known.get(shape).members.len());
        let (name, listed) = match declared {
            Some(member) => (member.name.to_owned(), member.many),
            // As many as there are of them before it: their own names may be a patient's.
            None => (format!("{UNDECLARED}{}", usize::from(leaf.field) - count), leaf.repetition > 1),
        };
        match listed {
            true => place + &step(&name, true, leaf.repetition),
            false => place + &name,
        }
    }

    /// Where a record stands: `records[1]`; nothing for the document itself.
    pub fn place_of_record(&self, record: usize) -> String {
        let mut steps = Vec::new();
        // A record is the one of its group's instance, and records are counted in u32.
        let mut at = InstanceId(record as u32);
        while let Some(around) = self.groups.parent(at) {
            let label = self.labels.get(&at.0).map(String::as_str);
            let name = label.unwrap_or(self.groups.structure().node(self.groups.group(at)).name);
            steps.push(step(name, self.listed[at.0 as usize], self.groups.ordinal(at)));
            at = around;
        }
        steps.reverse();
        steps.join(".")
    }
}

/// A step of a place: `records[1]`. Lists count from 0, `ordinal` from 1.
fn step(name: &str, listed: bool, ordinal: u32) -> String {
    if listed { format!("{name}[{}]", ordinal - 1) } else { name.to_owned() }
}

/// Shows sizes only: everything else is a patient's.
impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records")
            .field("records", &self.segments.len())
            .field("values", &self.leaves.len())
            .field("issues", &self.issues.len())
            .finish_non_exhaustive()
    }
}
