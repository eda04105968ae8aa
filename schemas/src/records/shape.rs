//! What the records of a document may hold, as a mapping declares it.

use crate::hl7v2::SegmentName;
use std::collections::HashMap;
use std::sync::Arc;

/// The shape of a record, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShapeId(pub u16);

impl ShapeId {
    /// How many shapes there may be: as many as have a segment's name, and one is for records without a shape.
    pub const MAX: u16 = 36 * 36 * 36 - 1;

    /// The name under which records of this shape are segments: no segment of the standard has four characters.
    pub fn segment(self) -> SegmentName {
        let digit = |number: u16| char::from_digit(u32::from(number % 36), 36).unwrap_or('0');
        let name = ['R', digit(self.0 / 1296), digit(self.0 / 36), digit(self.0)];
        SegmentName::of(&String::from_iter(name))
    }
}

/// What a record may hold.
#[derive(Clone, Debug)]
pub struct Shape {
    /// What mappings call it: `CgmReading`.
    pub name: &'static str,
    /// What it is to FHIR.
    pub is: Is,
    /// Its members. The number of a member, from 1, is that of the field in which its value stands.
    pub members: Vec<Member>,
    /// Which member a document names so.
    written: HashMap<String, u16>,
}

/// What a record is to FHIR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Is {
    /// Nothing of its own.
    #[default]
    Plain,
    /// A resource, of the type that its shape is called.
    Resource,
    /// A resource whose type it says itself.
    AnyResource,
    /// A reference to a resource.
    Reference,
}

/// A member of a record.
#[derive(Clone, Debug)]
pub struct Member {
    /// What mappings call it.
    pub name: &'static str,
    /// What the document calls it.
    pub written: String,
    /// What stands there.
    pub holds: Holds,
    /// Whether there may be several, as a list.
    pub many: bool,
}

/// What a member holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// A value.
    Value(Value),
    /// Another record.
    Record(ShapeId),
}

/// The kinds of values that JSON tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text,
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
}

/// Every shape that is known, by number and by name.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    /// What was known before; the numbers of these go on from there.
    base: Option<Arc<Shapes>>,
    shapes: Vec<Shape>,
    names: HashMap<&'static str, ShapeId>,
}

impl Shapes {
    /// No shapes beside others.
    pub fn beside(base: Arc<Shapes>) -> Shapes {
        Shapes { base: Some(base), ..Shapes::default() }
    }

    /// Adds a shape without members; `None` if the name is taken, or if there are too many.
    pub fn add(&mut self, name: &'static str) -> Option<ShapeId> {
        let next = self.first() + self.shapes.len();
        let id = ShapeId(u16::try_from(next).ok().filter(|id| *id < ShapeId::MAX)?);
        if self.named(name).is_some() {
            return None;
        }
        self.names.insert(name, id);
        self.shapes.push(Shape { name, is: Is::Plain, members: Vec::new(), written: HashMap::new() });
        Some(id)
    }

    /// Adds a member to a shape; `false` if there is one of that name already, or too many, or if the shape was known before.
    pub fn add_member(&mut self, id: ShapeId, member: Member) -> bool {
        let Some(shape) = self.own(id) else { return false };
        let number = u16::try_from(shape.members.len() + 1).unwrap_or(u16::MAX);
        let known = shape.members.iter().any(|other| other.name == member.name);
        if known || number > Shape::MEMBERS_MAX || shape.written.contains_key(&member.written) {
            return false;
        }
        shape.written.insert(member.written.clone(), number);
        shape.members.push(member);
        true
    }

    /// Says what a shape is to FHIR.
    pub(super) fn be(&mut self, id: ShapeId, is: Is) {
        if let Some(shape) = self.own(id) {
            shape.is = is;
        }
    }

    fn own(&mut self, id: ShapeId) -> Option<&mut Shape> {
        let at = usize::from(id.0).checked_sub(self.first())?;
        self.shapes.get_mut(at)
    }

    /// The number of the first that is not of the base.
    fn first(&self) -> usize {
        self.base.as_ref().map_or(0, |base| base.first() + base.shapes.len())
    }

    /// A shape by its name.
    pub fn named(&self, name: &str) -> Option<ShapeId> {
        self.names.get(name).copied().or_else(|| self.base.as_ref()?.named(name))
    }

    /// A shape.
    pub fn get(&self, id: ShapeId) -> &Shape {
        match (usize::from(id.0).checked_sub(self.first()), &self.base) {
            (None, Some(base)) => base.get(id),
            (at, _) => &self.shapes[at.unwrap_or_default()],
        }
    }

    /// Of a shape that is a list of records which hold values alone, such as a CSV file: the name of the list, and what its records are.
    pub fn lines(&self, id: ShapeId) -> Option<(&'static str, ShapeId)> {
        let (_, list) = self.get(id).list()?;
        let Holds::Record(line) = list.holds else { return None };
        let plain = self
            .get(line)
            .members
            .iter()
            .all(|member| matches!(member.holds, Holds::Value(_)) && !member.many);
        plain.then_some((list.name, line))
    }

    /// The names of all shapes.
    pub fn names(&self) -> Vec<&'static str> {
        let mut names = self.base.as_ref().map(|base| base.names()).unwrap_or_default();
        names.extend(self.shapes.iter().map(|shape| shape.name));
        names
    }
}

impl Shape {
    /// The most members of one shape.
    pub const MEMBERS_MAX: u16 = 1000;

    /// A member by the name that mappings give it, with its number.
    pub fn member(&self, name: &str) -> Option<(u16, &Member)> {
        let at = self.members.iter().position(|member| member.name == name)?;
        Some((u16::try_from(at).ok()? + 1, &self.members[at]))
    }

    /// The member that a document calls so, with its number.
    pub(super) fn written(&self, name: &str) -> Option<(u16, &Member)> {
        let number = *self.written.get(name)?;
        Some((number, &self.members[usize::from(number) - 1]))
    }

    /// The one member, if it is a list: where the document is a list itself, its items stand there.
    pub fn list(&self) -> Option<(u16, &Member)> {
        match self.members.as_slice() {
            [one] if one.many => Some((1, one)),
            _ => None,
        }
    }
}
