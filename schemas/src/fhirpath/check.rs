//! Checks an expression against the type that it will be run on.
//!
//! What is known of a part is the types that its items may have. Where that is not known (`descendants()`,
//! `contained`), anything may follow; where it is, an element that none of them has is a fault.

use super::functions::Function;
use super::item::Type;
use super::syntax::{Expr, Operator, TypedBy, What};
use super::{Dialect, Fault};
use crate::fhir::{Element, Kind, TypeDef, r4};
use smallvec::{SmallVec, smallvec};

/// What is known of a part.
#[derive(Clone)]
struct Shape {
    /// The types of its items; `None` if that is not known.
    types: Option<SmallVec<[&'static TypeDef; 2]>>,
    /// Whether its items stand in an order.
    ordered: bool,
}

impl Shape {
    fn of(of: &'static TypeDef) -> Shape {
        Shape { types: Some(smallvec![of]), ordered: true }
    }

    fn unknown() -> Shape {
        Shape { types: None, ordered: true }
    }

    fn with(self, other: Shape) -> Shape {
        let types = self.types.zip(other.types).map(|(mut types, others)| {
            types.extend(others);
            types
        });
        Shape { types, ordered: self.ordered && other.ordered }
    }
}

/// Checks an expression that is run on items of a type.
///
/// # Errors
/// An element that the type does not have; in the standard dialect also a place in a list that has no order.
pub(super) fn check(expr: &Expr, on: &'static TypeDef, dialect: Dialect) -> Result<(), Fault> {
    Check { dialect }.shape(expr, &Shape::of(on)).map(|_| ())
}

struct Check {
    dialect: Dialect,
}

impl Check {
    fn shape(&self, expr: &Expr, this: &Shape) -> Result<Shape, Fault> {
        let mut left = None;
        for part in expr.spine().into_iter().rev() {
            left = Some(self.part(part, left.unwrap_or_else(|| this.clone()), this)?);
        }
        Ok(left.unwrap_or_else(Shape::unknown))
    }

    /// One part, with what is known of its left side; where it has none, of `$this`.
    fn part(&self, expr: &Expr, of: Shape, this: &Shape) -> Result<Shape, Fault> {
        match &expr.what {
            What::This => Ok(of),
            What::Empty => Ok(Shape { types: Some(SmallVec::new()), ordered: true }),
            What::Literal(_)
            | What::Index
            | What::Total
            | What::Variable(_)
            | What::Negative(_)
            | What::Positive(_) => Ok(Shape::unknown()),
            What::Start(name) => match started(this, name) {
                Some(shape) => Ok(shape),
                None => member(this, name, expr.at),
            },
            What::Member(_, name) => member(&of, name, expr.at),
            What::At(_, index) => {
                self.shape(index, this)?;
                self.wants_order(&of, expr.at)?;
                Ok(of)
            }
            What::Typed { by, name, .. } => Ok(match (by, name) {
                (TypedBy::As | TypedBy::OfType, Type::Fhir(name)) => {
                    Shape { types: Some(smallvec![*name]), ordered: of.ordered }
                }
                _ => Shape::unknown(),
            }),
            What::Binary(operator, _, right) => {
                let right = self.shape(right, this)?;
                Ok(if *operator == Operator::Union { of.with(right) } else { Shape::unknown() })
            }
            What::Call { function, arguments, .. } => self.call(expr.at, *function, &of, arguments, this),
        }
    }

    fn call(
        &self,
        at: usize,
        function: Function,
        input: &Shape,
        arguments: &[Expr],
        this: &Shape,
    ) -> Result<Shape, Fault> {
        // What these take is evaluated for each item; what the others take, where the call stands.
        let each = matches!(
            function,
            Function::All
                | Function::Aggregate
                | Function::Exists
                | Function::Iif
                | Function::Repeat
                | Function::Select
                | Function::Sort
                | Function::Trace
                | Function::Where
        );
        // What is repeated is also run on what it found itself.
        let repeated = Shape::unknown();
        let inner = match (each, function) {
            (_, Function::Repeat) => &repeated,
            (true, _) => input,
            (false, _) => this,
        };
        let shapes: Vec<Shape> =
            arguments.iter().map(|argument| self.shape(argument, inner)).collect::<Result<_, _>>()?;
        match function {
            Function::First | Function::Last | Function::Tail | Function::Skip | Function::Take => {
                self.wants_order(input, at)?;
                Ok(input.clone())
            }
            Function::Where
            | Function::Single
            | Function::Distinct
            | Function::Trace
            | Function::Exclude
            | Function::Intersect => Ok(input.clone()),
            Function::Sort => Ok(Shape { ordered: true, ..input.clone() }),
            Function::Union | Function::Combine => Ok(shapes.into_iter().fold(input.clone(), Shape::with)),
            Function::Select => Ok(shapes.into_iter().next().unwrap_or_else(Shape::unknown)),
            Function::Extension => Ok(r4().type_def("Extension").map_or_else(Shape::unknown, Shape::of)),
            Function::Children | Function::Descendants => Ok(Shape { types: None, ordered: false }),
            _ => Ok(Shape::unknown()),
        }
    }

    fn wants_order(&self, of: &Shape, at: usize) -> Result<(), Fault> {
        if of.ordered || self.dialect == Dialect::R4 {
            return Ok(());
        }
        Err(Fault::new(at, "what children() and descendants() find has no order to count in".to_owned()))
    }
}

/// What a path that begins with the name of a type begins with: the items of that type.
fn started(this: &Shape, name: &str) -> Option<Shape> {
    if !name.starts_with(|c: char| c.is_ascii_uppercase()) {
        return None;
    }
    let named = r4().type_def(name)?;
    let Some(types) = &this.types else { return Some(Shape::unknown()) };
    let mut kept: SmallVec<[&'static TypeDef; 2]> = SmallVec::new();
    for of in types {
        if of.is_a(named) {
            kept.push(of);
        } else if named.is_a(of) {
            kept.push(named);
        }
    }
    (!kept.is_empty()).then_some(Shape { types: Some(kept), ordered: this.ordered })
}

fn member(of: &Shape, name: &str, at: usize) -> Result<Shape, Fault> {
    let Some(types) = &of.types else { return Ok(Shape { types: None, ordered: of.ordered }) };
    let mut found: SmallVec<[&'static TypeDef; 2]> = SmallVec::new();
    let mut open = types.is_empty();
    for of in types {
        match r4().elements(of).find(|element| element.name == name) {
            Some(element) => found.extend(element.types.iter().map(|of| r4().get(of.id))),
            // What it is will be known when it is there.
            None => open |= of.kind == Kind::Abstract,
        }
    }
    if open {
        return Ok(Shape { types: None, ordered: of.ordered });
    }
    if found.is_empty() {
        return Err(unknown(types, name, at));
    }
    Ok(Shape { types: Some(found), ordered: of.ordered })
}

fn unknown(types: &[&'static TypeDef], name: &str, at: usize) -> Fault {
    let names: Vec<&str> = types.iter().map(|of| of.name).collect();
    let chosen = types.iter().find_map(|of| {
        let path = format!("{}.{name}", of.name);
        r4().element(&path)
            .filter(|Element { def, .. }| def.choice)
            .map(|Element { def, types, .. }| (def, types))
    });
    let hint = match chosen {
        Some((def, types)) => match types.first() {
            Some(of) => format!(" (FHIRPath writes {}.ofType({}))", def.name, of.name),
            None => String::new(),
        },
        None => {
            let known = types.iter().flat_map(|of| r4().elements(of)).map(|element| element.name);
            super::nearest(name, known)
        }
    };
    Fault::new(at, format!("{} has no such element{hint}", names.join(" or ")))
}
