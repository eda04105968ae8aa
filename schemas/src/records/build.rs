//! Puts a document together, record by record.

use super::shape::{Is, ShapeId, Shapes};
use super::{Limits, Links, Records, Unreadable};
use crate::hl7v2::definitions::Structure;
use crate::hl7v2::grammar::Groups;
use crate::hl7v2::message::{Leaf, Segment};
use crate::issue::{Issue, Severity};
use std::collections::HashMap;
use std::sync::Arc;

/// How many members beyond its declared ones a shape may be seen with; all further ones are one.
const OTHERS_MAX: usize = 1000;

/// The most unexpected forms that are told one by one.
const ISSUES_MAX: usize = 1000;

/// A record, as far as it is known.
struct Record {
    shape: Option<ShapeId>,
    /// Its kind: which member of which kind of record it lies in.
    kind: u16,
    around: u32,
    /// Which of its kind in the record around it, from 1.
    ordinal: u32,
    listed: bool,
}

/// A kind of record: those that lie in the same member of the same kind.
struct Kind {
    name: &'static str,
    around: u16,
}

pub(super) struct Builder {
    shapes: Arc<Shapes>,
    limits: Limits,
    text: String,
    records: Vec<Record>,
    kinds: Vec<Kind>,
    kind_of: HashMap<(u16, &'static str), u16>,
    /// How many records of a kind there are in one.
    counts: HashMap<(u32, u16), u32>,
    leaves: Vec<(u32, Leaf)>,
    /// What records that no shape declares are told as.
    labels: HashMap<u32, String>,
    others: HashMap<(Option<ShapeId>, String), u16>,
    others_of: HashMap<Option<ShapeId>, usize>,
    issues: Vec<Issue>,
    links: Links,
}

impl Builder {
    pub(super) fn new(shapes: &Arc<Shapes>, limits: Limits) -> Self {
        Builder {
            shapes: Arc::clone(shapes),
            limits,
            text: String::new(),
            records: Vec::new(),
            kinds: Vec::new(),
            kind_of: HashMap::new(),
            counts: HashMap::new(),
            leaves: Vec::new(),
            labels: HashMap::new(),
            others: HashMap::new(),
            others_of: HashMap::new(),
            issues: Vec::new(),
            links: Links::default(),
        }
    }

    /// Where a resource stands on its server: relative references of its own mean resources there.
    pub(super) fn based(&mut self, record: u32, base: String) {
        self.links.bases.insert(record, base);
    }

    /// References of this text lead to a record.
    pub(super) fn named(&mut self, name: String, record: u32) {
        self.links
            .names
            .entry(name)
            .and_modify(|known| *known = known.filter(|known| *known == record))
            .or_insert(Some(record));
    }

    /// The same, within the resource around another record.
    pub(super) fn named_inside(&mut self, record: u32, name: String, inner: u32) {
        let around = self.links.around(record, |at| self.records[at as usize].around);
        self.links.inside.insert((around, name), inner);
    }

    pub(super) fn shapes(&self) -> &Arc<Shapes> {
        &self.shapes
    }

    pub(super) fn depth_max(&self) -> usize {
        self.limits.depth
    }

    pub(super) fn too_deep(&self) -> Unreadable {
        Unreadable::OverLimit { limit: self.limits.depth, unit: "records within each other" }
    }

    /// The document itself, its first record.
    pub(super) fn root(&mut self, shape: ShapeId) -> u32 {
        self.kinds.push(Kind { name: self.shapes.get(shape).name, around: 0 });
        self.records.push(Record { shape: Some(shape), kind: 0, around: 0, ordinal: 1, listed: false });
        0
    }

    /// A record in a member of another one.
    pub(super) fn record(
        &mut self,
        around: u32,
        shape: Option<ShapeId>,
        member: &'static str,
        listed: bool,
        depth: usize,
    ) -> Result<u32, Unreadable> {
        if depth >= self.limits.depth {
            return Err(self.too_deep());
        }
        if self.records.len() >= self.limits.records {
            return Err(Unreadable::OverLimit { limit: self.limits.records, unit: "records" });
        }
        let outer = self.records[around as usize].kind;
        let kind = match self.kind_of.get(&(outer, member)) {
            Some(kind) => *kind,
            None => {
                // The one after the last has to have a number, too.
                let next = u16::try_from(self.kinds.len()).ok().filter(|next| *next < u16::MAX);
                let next =
                    next.ok_or(Unreadable::OverLimit { limit: u16::MAX.into(), unit: "kinds of records" })?;
                self.kinds.push(Kind { name: member, around: outer });
                self.kind_of.insert((outer, member), next);
                next
            }
        };
        let count = self.counts.entry((around, kind)).or_default();
        *count += 1;
        let ordinal = *count;
        // Within the limit, which fits u32.
        let id = self.records.len() as u32;
        self.records.push(Record { shape, kind, around, ordinal, listed });
        Ok(id)
    }

    /// A record that no shape declares, and what the document calls it.
    pub(super) fn other_record(
        &mut self,
        around: u32,
        name: &str,
        listed: bool,
        depth: usize,
    ) -> Result<u32, Unreadable> {
        let id = self.record(around, None, super::UNDECLARED, listed, depth)?;
        let shape = self.records[around as usize].shape;
        let label = self.member_told(shape, name);
        self.labels.insert(id, label.1);
        Ok(id)
    }

    /// The value of a declared member. `nth` counts from 1.
    pub(super) fn value(
        &mut self,
        record: u32,
        number: u16,
        nth: u32,
        value: &str,
    ) -> Result<(), Unreadable> {
        if value.is_empty() {
            return Ok(());
        }
        if self.leaves.len() >= self.limits.values {
            return Err(Unreadable::OverLimit { limit: self.limits.values, unit: "values" });
        }
        // The values are no longer than the text, whose length fits u32.
        let start = self.text.len() as u32;
        self.text.push_str(value);
        let end = self.text.len() as u32;
        let leaf = Leaf { start, end, repetition: nth, component: 1, field: number, subcomponent: 1 };
        self.leaves.push((record, leaf));
        Ok(())
    }

    /// A value that no shape declares.
    pub(super) fn other(&mut self, record: u32, name: &str, nth: u32, value: &str) -> Result<(), Unreadable> {
        let shape = self.records[record as usize].shape;
        let (number, _) = self.member_told(shape, name);
        self.value(record, number, nth, value)
    }

    /// The number of a member that a shape does not declare, or not in this form, and what it is told as: its name if it is
    /// declared, else `*1`, `*2`, in the order in which they are met. Never another name: what is named by data may name a
    /// patient.
    fn member_told(&mut self, shape: Option<ShapeId>, name: &str) -> (u16, String) {
        let members = shape.map_or(&[][..], |shape| &self.shapes.get(shape).members);
        if let Some(at) = members.iter().position(|member| member.name == name || member.written == name) {
            return (at as u16 + 1, members[at].name.to_owned());
        }
        let declared = members.len();
        let known = self.others.get(&(shape, name.to_owned())).copied();
        let number = known.unwrap_or_else(|| {
            let count = self.others_of.entry(shape).or_default();
            let place = (*count).min(OTHERS_MAX);
            *count += 1;
            // Declared members and others are a few thousand at most.
            let number = (declared + place + 1) as u16;
            if place < OTHERS_MAX {
                self.others.insert((shape, name.to_owned()), number);
            }
            number
        });
        (number, format!("{}{}", super::UNDECLARED, usize::from(number) - declared))
    }

    /// What a member holds is not what its shape declares.
    pub(super) fn unexpected(&mut self, record: u32, member: &str, found: &str) {
        if self.issues.len() > ISSUES_MAX {
            return;
        }
        let (place, text) = match self.issues.len() {
            ISSUES_MAX => (String::new(), "more members have another form than is declared".to_owned()),
            _ => {
                let text = format!("the shape of the record declares something else here than {found}");
                (self.place_of_member(record, member), text)
            }
        };
        self.issues.push(Issue::new(Severity::Warning, "unexpected-shape", place, text));
    }

    /// Where a member stands.
    pub(super) fn place_of_member(&mut self, record: u32, member: &str) -> String {
        let (_, name) = self.member_told(self.records[record as usize].shape, member);
        let mut names = vec![name];
        let mut at = record;
        while at > 0 {
            let record = &self.records[at as usize];
            let label = self.labels.get(&at).map(String::as_str);
            let name = label.unwrap_or(self.kinds[usize::from(record.kind)].name);
            names.push(super::step(name, record.listed, record.ordinal));
            at = record.around;
        }
        names.reverse();
        names.join(".")
    }

    pub(super) fn finish(mut self) -> Records {
        // A record's values may stand among those of the records inside it.
        self.leaves.sort_by_key(|(record, leaf)| (*record, leaf.field, leaf.repetition));
        let mut segments = Vec::with_capacity(self.records.len());
        let mut counts: HashMap<Option<ShapeId>, u32> = HashMap::new();
        let mut first = 0;
        for (number, record) in (0..).zip(&self.records) {
            let count =
                self.leaves[first as usize..].iter().take_while(|(of, _)| *of == number).count() as u32;
            let occurrence = counts.entry(record.shape).or_default();
            *occurrence += 1;
            segments.push(Segment {
                name: record.shape.map_or(super::OTHER, ShapeId::segment),
                occurrence: *occurrence,
                start: 0,
                end: 0,
                first,
                last: first + count,
            });
            first += count;
        }
        let kinds: Vec<(&'static str, u16)> =
            self.kinds.iter().map(|kind| (kind.name, kind.around)).collect();
        let (structure, nodes) = Structure::of_kinds(&kinds);
        let place = |record: &Record| (nodes[usize::from(record.kind)], record.around, record.ordinal);
        let places = self.records.iter().map(place);
        let groups = Groups::of_records(structure, places);
        let reference = self.shapes.named("Reference").filter(|id| self.shapes.get(*id).is == Is::Reference);
        let reference = reference.and_then(|id| Some((id, self.shapes.get(id).member("reference")?.0)));
        Records {
            text: self.text,
            segments,
            leaves: self.leaves.into_iter().map(|(_, leaf)| leaf).collect(),
            groups,
            issues: self.issues,
            shapes: self.records.iter().map(|record| record.shape).collect(),
            listed: self.records.iter().map(|record| record.listed).collect(),
            labels: self.labels,
            links: self.links,
            reference,
            known: self.shapes,
        }
    }
}
