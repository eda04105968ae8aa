//! What the records of a document may hold, as a mapping declares it.

use crate::hl7v2::SegmentName;
use std::collections::HashMap;

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
    /// Its members. The number of a member, from 1, is that of the field in which its value stands.
    pub members: Vec<Member>,
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
    shapes: Vec<Shape>,
    names: HashMap<&'static str, ShapeId>,
    /// The member of a shape that a document names so.
    members: HashMap<(ShapeId, String), u16>,
}

impl Shapes {
    /// Adds a shape without members; `None` if the name is taken, or if there are too many.
    pub fn add(&mut self, name: &'static str) -> Option<ShapeId> {
        let id = ShapeId(u16::try_from(self.shapes.len()).ok().filter(|id| *id < ShapeId::MAX)?);
        if self.names.contains_key(name) {
            return None;
        }
        self.names.insert(name, id);
        self.shapes.push(Shape { name, members: Vec::new() });
        Some(id)
    }

    /// Adds a member to a shape; `false` if there is one of that name already, or too many.
    pub fn add_member(&mut self, id: ShapeId, member: Member) -> bool {
        let shape = &mut self.shapes[usize::from(id.0)];
        let known =
            shape.members.iter().any(|other| other.name == member.name || other.written == member.written);
        let Some(number) =
            u16::try_from(shape.members.len() + 1).ok().filter(|n| *n <= Shape::MEMBERS_MAX && !known)
        else {
            return false;
        };
        self.members.insert((id, member.written.clone()), number);
        shape.members.push(member);
        true
    }

    /// A shape by its name.
    pub fn named(&self, name: &str) -> Option<ShapeId> {
        self.names.get(name).copied()
    }

    /// A shape.
    pub fn get(&self, id: ShapeId) -> &Shape {
        &self.shapes[usize::from(id.0)]
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

    /// Every shape with its number.
    pub fn all(&self) -> impl Iterator<Item = (ShapeId, &Shape)> {
        (0..).map(ShapeId).zip(&self.shapes)
    }

    /// The names of all shapes.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.shapes.iter().map(|shape| shape.name)
    }

    /// The member that a document calls so, with its number.
    pub(super) fn written(&self, id: ShapeId, name: &str) -> Option<(u16, &Member)> {
        // A borrowed pair cannot be looked up without making a text of it; records are short.
        let members = &self.get(id).members;
        if members.len() <= 8 {
            let at = members.iter().position(|member| member.written == name)?;
            return Some((at as u16 + 1, &members[at]));
        }
        let number = *self.members.get(&(id, name.to_owned()))?;
        Some((number, &members[usize::from(number) - 1]))
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

    /// The one member, if it is a list: where the document is a list itself, its items stand there.
    pub fn list(&self) -> Option<(u16, &Member)> {
        match self.members.as_slice() {
            [one] if one.many => Some((1, one)),
            _ => None,
        }
    }
}
