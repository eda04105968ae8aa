//! A field, repetition, component or subcomponent of a message, as a range of its leaves.

use super::message::{Leaf, Message};
use std::borrow::Cow;

/// The levels below a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// A field with all its repetitions.
    Field,
    /// One repetition of a field.
    Repetition,
    /// One component of a repetition.
    Component,
    /// One subcomponent of a component.
    Subcomponent,
}

/// A part of a message: the leaves `first..end`, which are its non-empty subcomponents. An empty range is an element
/// that is absent; asking an absent one for its parts answers absent ones.
///
/// A primitive is its own first component: `component(1)` of `PID-8` is `PID-8`, whether it has more components or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    /// The first leaf, an index into [`Message::leaves`].
    pub first: u32,
    /// One past the last leaf.
    pub end: u32,
    /// What kind of part it is.
    pub level: Level,
}

impl Element {
    /// An element that is not there.
    pub const fn absent(level: Level) -> Self {
        Element { first: 0, end: 0, level }
    }

    /// Whether nothing stands here. HL7's null `""` does stand here.
    pub const fn is_absent(&self) -> bool {
        self.first >= self.end
    }

    /// The leaves of this element.
    pub fn leaves<'m>(&self, message: &'m Message<'_>) -> &'m [Leaf] {
        message.leaves().get(self.range()).unwrap_or_default()
    }

    /// The indexes of its leaves.
    pub const fn range(&self) -> std::ops::Range<usize> {
        self.first as usize..self.end as usize
    }

    /// One repetition of a field, counted from 1. Of anything below a field, the first is itself.
    #[must_use]
    pub fn repetition(&self, message: &Message<'_>, n: u32) -> Element {
        match self.level {
            Level::Field => self.narrow(message, Level::Repetition, |leaf| leaf.repetition.cmp(&n)),
            _ if n == 1 => *self,
            level => Element::absent(level),
        }
    }

    /// The repetitions of a field that are not empty, in order. [`Element::repetition_number`] tells which each is.
    pub fn repetitions<'m, 't>(&self, message: &'m Message<'t>) -> Parts<'m, 't> {
        let level = if self.level == Level::Field { Level::Repetition } else { self.level };
        Parts { message, rest: *self, level }
    }

    /// One component, counted from 1; of a field, one of its first repetition. Of a component or subcomponent, the
    /// first is itself.
    #[must_use]
    pub fn component(&self, message: &Message<'_>, n: u32) -> Element {
        match self.level {
            Level::Field => self.repetition(message, 1).component(message, n),
            Level::Repetition => self.narrow(message, Level::Component, |leaf| leaf.component.cmp(&n)),
            _ if n == 1 => *self,
            level => Element::absent(level),
        }
    }

    /// One subcomponent, counted from 1; of anything larger, one of its first component.
    #[must_use]
    pub fn subcomponent(&self, message: &Message<'_>, n: u16) -> Element {
        match self.level {
            Level::Field | Level::Repetition => self.component(message, 1).subcomponent(message, n),
            Level::Component => self.narrow(message, Level::Subcomponent, |leaf| leaf.subcomponent.cmp(&n)),
            Level::Subcomponent if n == 1 => *self,
            Level::Subcomponent => Element::absent(Level::Subcomponent),
        }
    }

    /// The n-th part of the data type that stands here, one level down: a component of a field or repetition, a
    /// subcomponent of a component. So `HD.2` is found whether the HD is a field (`MSH-3`) or a component (`PID-3.4`).
    #[must_use]
    pub fn part(&self, message: &Message<'_>, n: u16) -> Element {
        match self.level {
            Level::Field | Level::Repetition => self.component(message, u32::from(n)),
            Level::Component | Level::Subcomponent => self.subcomponent(message, n),
        }
    }

    /// The parts one level down that are not empty, in order: repetitions of a field, components of a repetition,
    /// subcomponents of a component.
    pub fn parts<'m, 't>(&self, message: &'m Message<'t>) -> Parts<'m, 't> {
        let level = match self.level {
            Level::Field => Level::Repetition,
            Level::Repetition => Level::Component,
            Level::Component | Level::Subcomponent => Level::Subcomponent,
        };
        Parts { message, rest: *self, level }
    }

    /// Which repetition of its field it lies in, from 1; 0 if absent.
    pub fn repetition_number(&self, message: &Message<'_>) -> u32 {
        self.leaves(message).first().map_or(0, |leaf| leaf.repetition)
    }

    /// The leaf that holds its value as a primitive: the first subcomponent of the first component of the first
    /// repetition. `None` if that place is empty, even if others are not.
    pub fn first_leaf(&self, message: &Message<'_>) -> Option<usize> {
        let leaf = self.leaves(message).first()?;
        let at_first = (self.level > Level::Field || leaf.repetition == 1)
            && (self.level > Level::Repetition || leaf.component == 1)
            && (self.level > Level::Component || leaf.subcomponent == 1);
        at_first.then_some(self.first as usize)
    }

    /// Its value as a primitive, escapes decoded. `None` if that place is empty or holds HL7's null.
    pub fn text<'t>(&self, message: &Message<'t>) -> Option<Cow<'t, str>> {
        let leaf = self.first_leaf(message)?;
        if message.is_null(leaf) { None } else { Some(message.value(leaf)) }
    }

    /// Whether HL7's null `""` stands here: the sender says that the value is to be deleted. True when every part that
    /// is valued is `""` and the first one is.
    pub fn is_null(&self, message: &Message<'_>) -> bool {
        self.first_leaf(message).is_some() && self.range().all(|leaf| message.is_null(leaf))
    }

    /// What stands here as it stands, separators and all, from its first non-empty subcomponent to its last. Empty if
    /// absent.
    pub fn raw<'t>(&self, message: &Message<'t>) -> &'t str {
        match self.leaves(message) {
            [] => "",
            [one] => message.slice(one.start, one.end),
            [first, .., last] => message.slice(first.start, last.end),
        }
    }

    fn narrow(
        &self,
        message: &Message<'_>,
        level: Level,
        order: impl Fn(&Leaf) -> std::cmp::Ordering,
    ) -> Element {
        let leaves = self.leaves(message);
        let first = leaves.partition_point(|leaf| order(leaf).is_lt());
        let length = leaves[first..].partition_point(|leaf| order(leaf).is_eq());
        // Within the leaves of the message, whose number fits u32.
        let first = self.first + first as u32;
        Element { first, end: first + length as u32, level }
    }
}

/// The parts of an element that are not empty; see [`Element::repetitions`] and [`Element::parts`].
#[derive(Clone, Debug)]
pub struct Parts<'m, 't> {
    message: &'m Message<'t>,
    rest: Element,
    level: Level,
}

impl Iterator for Parts<'_, '_> {
    type Item = Element;

    fn next(&mut self) -> Option<Element> {
        let leaves = self.rest.leaves(self.message);
        let first = leaves.first()?;
        let same = |leaf: &Leaf| {
            leaf.repetition == first.repetition
                && (self.level < Level::Component || leaf.component == first.component)
                && (self.level < Level::Subcomponent || leaf.subcomponent == first.subcomponent)
        };
        let length = if self.level == self.rest.level && self.level != Level::Subcomponent {
            leaves.len()
        } else {
            leaves.iter().take_while(|leaf| same(leaf)).count()
        };
        let part =
            Element { first: self.rest.first, end: self.rest.first + length as u32, level: self.level };
        self.rest.first = part.end;
        Some(part)
    }
}
