//! FHIRPath: compiled once, run over FHIR R4 as JSON, bounded in steps.
//!
//! One engine for all that asks something of a resource: topics, filters, invariants, search parameters. An expression is
//! checked when it is compiled, against the type that it will be run on: an element that the type does not have is a
//! fault, with the nearest right spelling. Numbers are decimals as they were written, never floating point; dates are as
//! precise as they were written, and what cannot be known is empty.
//!
//! Invariant: a fault tells a place in the expression and what was expected, never a value of the resource.

mod arithmetic;
mod boundary;
mod check;
mod collections;
mod convert;
mod equal;
mod evaluate;
mod functions;
mod item;
mod moment;
mod parse;
mod quantity;
mod strings;
mod syntax;
#[cfg(test)]
mod tests;
mod token;

pub use item::{Item, Items, Node, Type, Value};
pub use moment::Moment;
pub use quantity::Quantity;

use crate::fhir::r4;
use jiff::Timestamp;
use serde_json::Value as Json;
use std::fmt;

/// The steps that an expression may take unless [`Scope::steps_max`] says otherwise: a step is a part of the expression
/// evaluated, an item found, or 64 bytes of a text made.
pub const STEPS_MAX: u64 = 1_000_000;

/// What is wrong with an expression, or why it could not be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at {at}: {what}")]
pub struct Fault {
    /// Where in the expression, in bytes from 0.
    pub at: usize,
    /// What was found and what was expected.
    pub what: String,
}

impl Fault {
    fn new(at: usize, what: String) -> Fault {
        Fault { at, what }
    }
}

/// Which FHIRPath an expression is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// As the specification says: `as` takes one item at most, and what has no order (`children()`) is not counted.
    Standard,
    /// R4's own search parameters and invariants, which were written before that: `as` keeps the items of the type.
    R4,
}

/// A compiled expression.
#[derive(Debug)]
pub struct Path {
    text: String,
    root: syntax::Expr,
    dialect: Dialect,
}

/// Finds the resource that a reference points at.
pub type Resolve<'a> = dyn Fn(&str) -> Option<&'a Json> + 'a;

/// What an expression is run on, and what it may look at beside it.
#[derive(Clone)]
pub struct Scope<'a> {
    /// What the expression begins at: `%context`.
    pub item: Item<'a>,
    /// The resource that it is in, or is: `%resource`.
    pub resource: Node<'a>,
    /// The resource that contains that one, or that one itself: `%rootResource`.
    pub root: Node<'a>,
    /// Further variables by their names without `%`; one without an item is empty.
    pub variables: &'a [(&'a str, Option<Item<'a>>)],
    /// Finds what a reference points at. What it does not find is known by its type alone (`Patient/1`).
    pub resolve: Option<&'a Resolve<'a>>,
    /// What `now()` is.
    pub now: Timestamp,
    /// See [`STEPS_MAX`].
    pub steps_max: u64,
}

impl<'a> Scope<'a> {
    /// A resource by itself.
    pub fn of(resource: &'a Json, now: Timestamp) -> Scope<'a> {
        let node = Node::resource(resource);
        Scope {
            item: Item::Node(node),
            resource: node,
            root: node,
            variables: &[],
            resolve: None,
            now,
            steps_max: STEPS_MAX,
        }
    }

    /// The same for an element of the resource, of the type `of` (`HumanName`, `Patient.contact`).
    ///
    /// # Errors
    /// There is no such type.
    pub fn at(&self, element: &'a Json, of: &str) -> Result<Scope<'a>, Fault> {
        let of = r4().type_def(of).ok_or_else(|| Fault::new(0, "no such type of an element".to_owned()))?;
        Ok(Scope { item: Item::Node(Node::element(element, of)), ..self.clone() })
    }
}

impl Path {
    /// Reads an expression and checks it against the type that it will be run on: `Patient`, `Patient.contact`, or
    /// `Resource` for any.
    ///
    /// # Errors
    /// The first fault: what does not read, functions and types that do not exist, elements that the type does not have.
    pub fn compile(text: &str, on: &str, dialect: Dialect) -> Result<Path, Fault> {
        let root = parse::read(text)?;
        let on = r4()
            .type_def(on)
            .ok_or_else(|| Fault::new(0, "no such type to run an expression on".to_owned()))?;
        check::check(&root, on, dialect)?;
        Ok(Path { text: text.to_owned(), root, dialect })
    }

    /// The text that it was compiled from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it finds.
    ///
    /// # Errors
    /// Several items where one belongs, a value of a type that a function does not take, too many steps.
    pub fn run<'a>(&'a self, scope: &Scope<'a>) -> Result<Items<'a>, Fault> {
        evaluate::run(&self.root, scope, self.dialect)
    }

    /// Whether it is so: `true`, or one item that is not `false`. Nothing found is not so.
    ///
    /// # Errors
    /// As [`Path::run`]; also if several items were found.
    pub fn holds<'a>(&'a self, scope: &Scope<'a>) -> Result<bool, Fault> {
        let found = self.run(scope)?;
        Ok(evaluate::truth(&found, 0)?.unwrap_or(false))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// ` (did you mean x?)`, if a known name is near.
pub(crate) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> String {
    known
        .map(|known| (strsim::osa_distance(name, known), known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .min()
        .map_or(String::new(), |(_, known)| format!(" (did you mean {known}?)"))
}
