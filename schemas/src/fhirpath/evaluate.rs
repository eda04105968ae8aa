//! Runs an expression.

use super::collections::Call;
use super::item::{Item, Items, Node, Type, Value};
use super::syntax::{Expr, Operator, TypedBy, What};
use super::{Dialect, Fault, Scope, arithmetic, equal};
use crate::fhir::r4;
use smallvec::smallvec;
use std::borrow::Cow;
use std::cmp::Ordering;

/// Runs an expression on what the scope says.
pub(super) fn run<'a>(root: &'a Expr, scope: &Scope<'a>, dialect: Dialect) -> Result<Items<'a>, Fault> {
    let mut run = Run { scope, dialect, steps: 0 };
    let frame = Frame { this: smallvec![scope.item.clone()], index: None, total: None };
    run.eval(root, &frame)
}

/// One run.
pub(super) struct Run<'s, 'a> {
    pub(super) scope: &'s Scope<'a>,
    pub(super) dialect: Dialect,
    steps: u64,
}

/// What `$this`, `$index` and `$total` are.
#[derive(Clone)]
pub(super) struct Frame<'a> {
    pub(super) this: Items<'a>,
    pub(super) index: Option<usize>,
    pub(super) total: Option<Items<'a>>,
}

impl<'a> Frame<'a> {
    /// The same for one item of a list.
    pub(super) fn of(&self, item: &Item<'a>, index: usize) -> Frame<'a> {
        Frame { this: smallvec![item.clone()], index: Some(index), total: self.total.clone() }
    }
}

impl<'a> Run<'_, 'a> {
    /// Counts steps.
    pub(super) fn step(&mut self, at: usize, count: usize) -> Result<(), Fault> {
        self.steps = self.steps.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        if self.steps > self.scope.steps_max {
            return Err(Fault::new(at, format!("more than {} steps", self.scope.steps_max)));
        }
        Ok(())
    }

    /// Counts a text that was made.
    pub(super) fn made(&mut self, at: usize, text: String) -> Result<Items<'a>, Fault> {
        self.step(at, text.len() / 64)?;
        Ok(one(text))
    }

    pub(super) fn eval(&mut self, expr: &'a Expr, frame: &Frame<'a>) -> Result<Items<'a>, Fault> {
        let mut left = None;
        for part in expr.spine().into_iter().rev() {
            self.step(part.at, 1)?;
            let found = self.part(part, left, frame)?;
            self.step(part.at, found.len() / 8)?;
            left = Some(found);
        }
        Ok(left.unwrap_or_default())
    }

    /// One part, with what its left side came to; `None` where it has none.
    fn part(
        &mut self,
        expr: &'a Expr,
        left: Option<Items<'a>>,
        frame: &Frame<'a>,
    ) -> Result<Items<'a>, Fault> {
        let at = expr.at;
        let of = || left.unwrap_or_else(|| frame.this.clone());
        match &expr.what {
            What::Empty => Ok(Items::new()),
            What::Literal(value) => Ok(smallvec![Item::Value(borrowed(value))]),
            What::This => Ok(of()),
            What::Index => Ok(frame
                .index
                .and_then(|index| i64::try_from(index).ok())
                .map(Item::from)
                .into_iter()
                .collect()),
            What::Total => Ok(frame.total.clone().unwrap_or_default()),
            What::Variable(name) => self.variable(name, at),
            What::Start(name) => {
                let mut found = Items::new();
                for item in of() {
                    if starts_with_type(&item, name) {
                        found.push(item);
                    } else {
                        member(&item, name, &mut found);
                    }
                }
                self.step(at, found.len())?;
                Ok(found)
            }
            What::Member(_, name) => {
                let mut found = Items::new();
                for item in &of() {
                    member(item, name, &mut found);
                }
                self.step(at, found.len())?;
                Ok(found)
            }
            What::At(_, index) => {
                let index = self.eval(index, frame)?;
                let index = integer(&index, at)?.and_then(|index| usize::try_from(index).ok());
                Ok(index.and_then(|index| of().get(index).cloned()).into_iter().collect())
            }
            What::Call { function, arguments, pattern, .. } => {
                let call = Call { at, function: *function, arguments, pattern: pattern.as_deref() };
                self.call(&call, of(), frame)
            }
            What::Typed { by, name, .. } => self.typed(of(), *by, *name, at),
            What::Negative(_) => arithmetic::negative(&of(), at),
            What::Positive(_) => {
                let of = of();
                arithmetic::negative(&of, at)?;
                Ok(of)
            }
            What::Binary(operator, _, right) => self.binary(*operator, &of(), right, frame, at),
        }
    }

    fn variable(&mut self, name: &str, at: usize) -> Result<Items<'a>, Fault> {
        if let Some((_, item)) = self.scope.variables.iter().find(|(known, _)| *known == name) {
            return Ok(item.iter().cloned().collect());
        }
        let url = match name {
            "resource" => return Ok(smallvec![Item::Node(self.scope.resource)]),
            "rootResource" => return Ok(smallvec![Item::Node(self.scope.root)]),
            "context" => return Ok(smallvec![self.scope.item.clone()]),
            "ucum" => "http://unitsofmeasure.org".to_owned(),
            "sct" => "http://snomed.info/sct".to_owned(),
            "loinc" => "http://loinc.org".to_owned(),
            _ => match (name.strip_prefix("vs-"), name.strip_prefix("ext-")) {
                (Some(name), _) => format!("http://hl7.org/fhir/ValueSet/{name}"),
                (_, Some(name)) => format!("http://hl7.org/fhir/StructureDefinition/{name}"),
                _ => return Err(Fault::new(at, "no such variable".to_owned())),
            },
        };
        Ok(one(url))
    }

    fn typed(&mut self, of: Items<'a>, by: TypedBy, name: Type, at: usize) -> Result<Items<'a>, Fault> {
        match by {
            TypedBy::Is => Ok(single(&of, at)?.map(|item| Item::from(item.is(name))).into_iter().collect()),
            TypedBy::As if of.len() > 1 && self.dialect == Dialect::Standard => {
                Err(Fault::new(at, "as wants one item, not several; ofType keeps those of a type".to_owned()))
            }
            TypedBy::As | TypedBy::OfType => {
                Ok(of.into_iter().filter(|item| item.is_exactly(name)).collect())
            }
        }
    }

    fn binary(
        &mut self,
        operator: Operator,
        a: &Items<'a>,
        right: &'a Expr,
        frame: &Frame<'a>,
        at: usize,
    ) -> Result<Items<'a>, Fault> {
        if let Operator::And | Operator::Or | Operator::Xor | Operator::Implies = operator {
            return self.logic(operator, a, right, frame, at);
        }
        let b = self.eval(right, frame)?;
        match operator {
            Operator::Union => self.union(a.clone(), b, at),
            Operator::Equal => Ok(answer(self.equal(a, &b, at)?)),
            Operator::NotEqual => Ok(answer(self.equal(a, &b, at)?.map(|same| !same))),
            Operator::Equivalent => Ok(answer(Some(self.equivalent(a, &b, at)?))),
            Operator::NotEquivalent => Ok(answer(Some(!self.equivalent(a, &b, at)?))),
            Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual => {
                compare(operator, a, &b, at)
            }
            Operator::In => self.is_in(a, &b, at),
            Operator::Contains => self.is_in(&b, a, at),
            Operator::Join => {
                let (a, b) = (text(a, at)?.unwrap_or_default(), text(&b, at)?.unwrap_or_default());
                self.made(at, format!("{a}{b}"))
            }
            _ => {
                let (Some(a), Some(b)) = (single(a, at)?, single(&b, at)?) else { return Ok(Items::new()) };
                let found = arithmetic::binary(operator, a, b, at)?;
                self.step(at, found.as_ref().and_then(Item::text).map_or(0, |text| text.len() / 64))?;
                Ok(found.into_iter().collect())
            }
        }
    }

    /// Three-valued: what is empty is not known.
    fn logic(
        &mut self,
        operator: Operator,
        a: &Items<'a>,
        right: &'a Expr,
        frame: &Frame<'a>,
        at: usize,
    ) -> Result<Items<'a>, Fault> {
        let a = truth(a, at)?;
        // The right side is not looked at where the left one decides.
        match (operator, a) {
            (Operator::And, Some(false)) => return Ok(answer(Some(false))),
            (Operator::Or, Some(true)) | (Operator::Implies, Some(false)) => return Ok(answer(Some(true))),
            _ => {}
        }
        let b = self.eval(right, frame)?;
        let b = truth(&b, at)?;
        let found = match operator {
            Operator::And => match (a, b) {
                (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            Operator::Or => match (a, b) {
                (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
            Operator::Xor => a.zip(b).map(|(a, b)| a != b),
            _ => match (a, b) {
                (_, Some(true)) => Some(true),
                (Some(true), b) => b,
                _ => None,
            },
        };
        Ok(answer(found))
    }

    /// Lists are equal if they have the same items in the same order.
    fn equal(&mut self, a: &Items<'a>, b: &Items<'a>, at: usize) -> Result<Option<bool>, Fault> {
        self.step(at, a.len())?;
        if a.is_empty() || b.is_empty() {
            return Ok(None);
        }
        if a.len() != b.len() {
            return Ok(Some(false));
        }
        let mut known = true;
        for (a, b) in a.iter().zip(b) {
            self.step(at, equal::cost(a, b))?;
            match equal::equal(a, b) {
                Some(true) => {}
                Some(false) => return Ok(Some(false)),
                None => known = false,
            }
        }
        Ok(known.then_some(true))
    }

    /// Lists are equivalent if each has its like in the other, in whatever order.
    fn equivalent(&mut self, a: &Items<'a>, b: &Items<'a>, at: usize) -> Result<bool, Fault> {
        if a.len() != b.len() {
            return Ok(false);
        }
        // Each of one list may be compared with each of the other, and so may the lists within them.
        let weight = |items: &Items<'a>| items.iter().map(|item| equal::cost(item, item)).sum::<usize>();
        self.step(at, weight(a).saturating_mul(weight(b)) / 4)?;
        Ok(equal::in_any_order(a, b, equal::equivalent))
    }

    fn is_in(&mut self, item: &Items<'a>, list: &Items<'a>, at: usize) -> Result<Items<'a>, Fault> {
        let Some(item) = single(item, at)? else { return Ok(Items::new()) };
        self.step(at, list.len())?;
        Ok(answer(Some(list.iter().any(|other| equal::equal(item, other) == Some(true)))))
    }

    pub(super) fn union(&mut self, a: Items<'a>, b: Items<'a>, at: usize) -> Result<Items<'a>, Fault> {
        let mut set = equal::Set::default();
        for item in a.into_iter().chain(b) {
            let compared = set.add(item);
            self.step(at, compared)?;
        }
        Ok(set.into_items())
    }
}

/// Whether a name at the start of a path is the type of what stands there.
fn starts_with_type(item: &Item<'_>, name: &str) -> bool {
    if !name.starts_with(|c: char| c.is_ascii_uppercase()) {
        return false;
    }
    let (of, named) = (item.node().and_then(Node::type_def), r4().type_def(name));
    of.zip(named).is_some_and(|(of, named)| of.is_a(named))
}

fn member<'a>(item: &Item<'a>, name: &str, into: &mut Items<'a>) {
    match item {
        Item::Node(node) => node.children(name, into),
        Item::Value(Value::Type(of)) => {
            let text = match name {
                "namespace" => of.namespace(),
                "name" => of.name(),
                _ => return,
            };
            into.push(Item::Value(Value::String(Cow::Borrowed(text))));
        }
        Item::Value(_) => {}
    }
}

fn compare<'a>(operator: Operator, a: &Items<'a>, b: &Items<'a>, at: usize) -> Result<Items<'a>, Fault> {
    let (Some(a), Some(b)) = (single(a, at)?, single(b, at)?) else { return Ok(Items::new()) };
    let cannot = || Fault::new(at, "two values that cannot be compared".to_owned());
    let (a, b) = (a.value().ok_or_else(cannot)?, b.value().ok_or_else(cannot)?);
    let found = a.compare(&b).map_err(|()| cannot())?;
    Ok(answer(found.map(|found| match operator {
        Operator::Less => found == Ordering::Less,
        Operator::LessOrEqual => found != Ordering::Greater,
        Operator::Greater => found == Ordering::Greater,
        _ => found != Ordering::Less,
    })))
}

/// A list of one.
pub(super) fn one<'a>(item: impl Into<Item<'a>>) -> Items<'a> {
    smallvec![item.into()]
}

/// A list of an answer, empty if it is not known.
pub(super) fn answer<'a>(found: Option<bool>) -> Items<'a> {
    found.map(Item::from).into_iter().collect()
}

/// A value of the expression itself, without copying its text.
fn borrowed<'a>(value: &'a Value<'static>) -> Value<'a> {
    match value {
        Value::String(text) => Value::String(Cow::Borrowed(text)),
        other => other.clone(),
    }
}

/// The only item; `None` if there is none.
pub(super) fn single<'i, 'a>(items: &'i [Item<'a>], at: usize) -> Result<Option<&'i Item<'a>>, Fault> {
    match items {
        [] => Ok(None),
        [only] => Ok(Some(only)),
        _ => Err(Fault::new(at, format!("one item is wanted here, not {}", items.len()))),
    }
}

/// Whether the only item is so: what is no boolean is so by being there.
pub(super) fn truth(items: &[Item<'_>], at: usize) -> Result<Option<bool>, Fault> {
    Ok(single(items, at)?.map(|item| match item.value().as_deref() {
        Some(Value::Boolean(value)) => *value,
        _ => true,
    }))
}

/// The text of the only item.
pub(super) fn text<'a>(items: &[Item<'a>], at: usize) -> Result<Option<Cow<'a, str>>, Fault> {
    let Some(item) = single(items, at)? else { return Ok(None) };
    item.text().map(Some).ok_or_else(|| Fault::new(at, "a text is wanted here".to_owned()))
}

/// The whole number of the only item.
pub(super) fn integer(items: &[Item<'_>], at: usize) -> Result<Option<i64>, Fault> {
    let Some(item) = single(items, at)? else { return Ok(None) };
    match item.value().as_deref() {
        Some(Value::Integer(value)) => Ok(Some(*value)),
        _ => Err(Fault::new(at, "a whole number is wanted here".to_owned())),
    }
}
