//! The functions: those of lists here, the rest by the kind of value that they work on.

use super::evaluate::{Frame, Run, answer, integer, one, single, text, truth};
use super::functions::{self, Function};
use super::item::{Item, Items, Node, Value};
use super::moment::{Key as MomentKey, Kind};
use super::syntax::{Expr, What};
use super::{Fault, arithmetic, boundary, convert, equal, strings};
use crate::fhir::{self, r4};
use octofhir_ucum::Number;
use regex::Regex;
use rust_decimal::Decimal;
use serde_json::Value as Json;
use std::cmp::Ordering;

/// A call of a function.
pub(super) struct Call<'a> {
    pub(super) at: usize,
    pub(super) function: Function,
    pub(super) arguments: &'a [Expr],
    pub(super) pattern: Option<&'a Regex>,
}

impl Call<'_> {
    pub(super) fn fault(&self, what: &str) -> Fault {
        Fault::new(self.at, format!("{}(): {what}", functions::name_of(self.function)))
    }
}

impl<'a> Run<'_, 'a> {
    pub(super) fn call(
        &mut self,
        call: &Call<'a>,
        input: Items<'a>,
        frame: &Frame<'a>,
    ) -> Result<Items<'a>, Fault> {
        let at = call.at;
        match call.function {
            Function::Empty => Ok(one(input.is_empty())),
            Function::Exists => match call.arguments.first() {
                None => Ok(one(!input.is_empty())),
                Some(criteria) => Ok(one(self.first_that(&input, criteria, frame, true)?)),
            },
            Function::All => match call.arguments.first() {
                None => Ok(one(true)),
                Some(criteria) => Ok(one(!self.first_that(&input, criteria, frame, false)?)),
            },
            Function::AllTrue => Ok(one(booleans(&input, call)?.all(|value| value))),
            Function::AllFalse => Ok(one(booleans(&input, call)?.all(|value| !value))),
            Function::AnyTrue => Ok(one(booleans(&input, call)?.any(|value| value))),
            Function::AnyFalse => Ok(one(booleans(&input, call)?.any(|value| !value))),
            Function::Not => Ok(answer(truth(&input, at)?.map(|value| !value))),
            Function::Count => Ok(one(i64::try_from(input.len()).unwrap_or(i64::MAX))),
            Function::Distinct => self.union(input, Items::new(), at),
            Function::IsDistinct => {
                let count = input.len();
                Ok(one(self.union(input, Items::new(), at)?.len() == count))
            }
            Function::SubsetOf => {
                let other = self.argument(call, 0, frame)?;
                self.within(&input, other, at)
            }
            Function::SupersetOf => {
                let other = self.argument(call, 0, frame)?;
                self.within(&other, input, at)
            }
            Function::Single => Ok(single(&input, at)?.cloned().into_iter().collect()),
            Function::First => Ok(input.into_iter().take(1).collect()),
            Function::Last => Ok(input.into_iter().next_back().into_iter().collect()),
            Function::Tail => Ok(input.into_iter().skip(1).collect()),
            Function::Skip => {
                let count = self.count(call, frame)?;
                Ok(count.map(|count| input.into_iter().skip(count).collect()).unwrap_or_default())
            }
            Function::Take => {
                let count = self.count(call, frame)?;
                Ok(count.map(|count| input.into_iter().take(count).collect()).unwrap_or_default())
            }
            Function::Union => {
                let other = self.argument(call, 0, frame)?;
                self.union(input, other, at)
            }
            Function::Combine => {
                let other = self.argument(call, 0, frame)?;
                self.step(at, other.len())?;
                Ok(input.into_iter().chain(other).collect())
            }
            Function::Intersect => {
                let other = self.argument(call, 0, frame)?;
                let both = self.those_in(input, other, true, at)?;
                self.union(both, Items::new(), at)
            }
            Function::Exclude => {
                let other = self.argument(call, 0, frame)?;
                self.those_in(input, other, false, at)
            }
            Function::Where => self.filter(call, input, frame),
            Function::Select => {
                let mut found = Items::new();
                for (index, item) in input.iter().enumerate() {
                    for projection in call.arguments {
                        found.extend(self.eval(projection, &frame.of(item, index))?);
                    }
                }
                Ok(found)
            }
            Function::Repeat => self.repeat(call, input, frame),
            Function::Aggregate => self.aggregate(call, &input, frame),
            Function::Sort => self.sort(call, input, frame),
            Function::Iif => self.iif(call, input, frame),
            // What is traced may be a patient's: nothing is shown.
            Function::Trace => Ok(input),
            Function::Children => {
                let mut found = Items::new();
                self.children(&input, &mut found, at)?;
                Ok(found)
            }
            Function::Descendants => self.descendants(&input, at),
            Function::Type => {
                Ok(input.iter().filter_map(Item::type_of).map(|of| Item::Value(Value::Type(of))).collect())
            }
            Function::Extension => {
                let url = self.argument(call, 0, frame)?;
                let Some(url) = text(&url, at)? else { return Ok(Items::new()) };
                let mut found = Items::new();
                for node in input.iter().filter_map(Item::node) {
                    node.children("extension", &mut found);
                }
                self.step(at, found.len())?;
                let of_url = |item: &Item<'_>| {
                    let json = item.node().and_then(Node::json);
                    json.and_then(|json| json.get("url")).and_then(Json::as_str) == Some(&*url)
                };
                Ok(found.into_iter().filter(of_url).collect())
            }
            Function::HasValue => Ok(one(match single(&input, at)? {
                Some(Item::Node(node)) => node.has_value(),
                Some(Item::Value(_)) => true,
                None => false,
            })),
            Function::GetValue => Ok(input
                .iter()
                .filter_map(Item::value)
                .map(|value| Item::Value(value.into_owned()))
                .collect()),
            Function::Resolve => self.resolve(&input, at),
            Function::ConformsTo => self.conforms_to(call, &input, frame),
            Function::HtmlChecks => {
                let narrative = single(&input, at)?.and_then(Item::node).and_then(Node::json);
                Ok(answer(narrative.map(fhir::is_xhtml)))
            }
            Function::Now => Ok(one(Value::Moment(super::Moment::at(self.scope.now)))),
            Function::Today => Ok(one(Value::Moment(super::Moment::at(self.scope.now).to_date()))),
            Function::TimeOfDay => Ok(one(Value::Moment(super::Moment::at(self.scope.now).to_time()))),
            Function::To(target) => {
                let unit = self.optional_text(call, 0, frame)?;
                let Some(item) = single(&input, at)? else { return Ok(Items::new()) };
                let found = convert::to(target, item, unit.as_deref());
                self.step(at, found.as_ref().and_then(Item::text).map_or(0, |text| text.len() / 64))?;
                Ok(found.into_iter().collect())
            }
            Function::ConvertsTo(target) => {
                let unit = self.optional_text(call, 0, frame)?;
                let Some(item) = single(&input, at)? else { return Ok(Items::new()) };
                Ok(one(convert::to(target, item, unit.as_deref()).is_some()))
            }
            Function::LowBoundary | Function::HighBoundary | Function::Precision | Function::Comparable => {
                boundary::call(self, call, &input, frame)
            }
            Function::Abs
            | Function::Ceiling
            | Function::Exp
            | Function::Floor
            | Function::Ln
            | Function::Log
            | Function::Power
            | Function::Round
            | Function::Sqrt
            | Function::Truncate => arithmetic::call(self, call, &input, frame),
            Function::Contains
            | Function::Decode
            | Function::Encode
            | Function::EndsWith
            | Function::Escape
            | Function::IndexOf
            | Function::Join
            | Function::LastIndexOf
            | Function::Length
            | Function::Lower
            | Function::Matches
            | Function::MatchesFull
            | Function::Replace
            | Function::ReplaceMatches
            | Function::Split
            | Function::StartsWith
            | Function::Substring
            | Function::ToChars
            | Function::Trim
            | Function::Unescape
            | Function::Upper => strings::call(self, call, &input, frame),
        }
    }

    /// An argument that is evaluated once, where the call stands; nothing if it was left out.
    pub(super) fn argument(
        &mut self,
        call: &Call<'a>,
        index: usize,
        frame: &Frame<'a>,
    ) -> Result<Items<'a>, Fault> {
        match call.arguments.get(index) {
            Some(argument) => self.eval(argument, frame),
            None => Ok(Items::new()),
        }
    }

    fn optional_text(
        &mut self,
        call: &Call<'a>,
        index: usize,
        frame: &Frame<'a>,
    ) -> Result<Option<String>, Fault> {
        let found = self.argument(call, index, frame)?;
        Ok(text(&found, call.at)?.map(std::borrow::Cow::into_owned))
    }

    fn count(&mut self, call: &Call<'a>, frame: &Frame<'a>) -> Result<Option<usize>, Fault> {
        let count = self.argument(call, 0, frame)?;
        Ok(integer(&count, call.at)?.map(|count| usize::try_from(count).unwrap_or(0)))
    }

    /// Whether there is an item for which the criteria is `wanted`; what is empty is `false`.
    fn first_that(
        &mut self,
        input: &Items<'a>,
        criteria: &'a Expr,
        frame: &Frame<'a>,
        wanted: bool,
    ) -> Result<bool, Fault> {
        for (index, item) in input.iter().enumerate() {
            let found = self.eval(criteria, &frame.of(item, index))?;
            if truth(&found, criteria.at)?.unwrap_or(false) == wanted {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn filter(&mut self, call: &Call<'a>, input: Items<'a>, frame: &Frame<'a>) -> Result<Items<'a>, Fault> {
        let Some(criteria) = call.arguments.first() else { return Ok(input) };
        let mut found = Items::new();
        for (index, item) in input.into_iter().enumerate() {
            let is = self.eval(criteria, &frame.of(&item, index))?;
            if truth(&is, criteria.at)?.unwrap_or(false) {
                found.push(item);
            }
        }
        Ok(found)
    }

    /// Applies an expression to what it found before, until it finds nothing new.
    fn repeat(&mut self, call: &Call<'a>, input: Items<'a>, frame: &Frame<'a>) -> Result<Items<'a>, Fault> {
        let Some(projection) = call.arguments.first() else { return Ok(input) };
        let mut found = equal::Set::default();
        let mut open = input;
        while !open.is_empty() {
            let mut next = Items::new();
            for (index, item) in open.iter().enumerate() {
                for child in self.eval(projection, &frame.of(item, index))? {
                    let before = found.len();
                    let compared = found.add(child.clone());
                    self.step(call.at, compared)?;
                    if found.len() > before {
                        next.push(child);
                    }
                }
            }
            open = next;
        }
        Ok(found.into_items())
    }

    fn aggregate(
        &mut self,
        call: &Call<'a>,
        input: &Items<'a>,
        frame: &Frame<'a>,
    ) -> Result<Items<'a>, Fault> {
        let Some(step) = call.arguments.first() else { return Ok(Items::new()) };
        let mut total = self.argument(call, 1, frame)?;
        for (index, item) in input.iter().enumerate() {
            let inner = Frame { total: Some(total), ..frame.of(item, index) };
            total = self.eval(step, &inner)?;
        }
        Ok(total)
    }

    /// By each key in turn; a key with a minus before it counts downwards. What has no key comes first either way.
    fn sort(&mut self, call: &Call<'a>, input: Items<'a>, frame: &Frame<'a>) -> Result<Items<'a>, Fault> {
        let mut keyed = Vec::with_capacity(input.len());
        for (index, item) in input.into_iter().enumerate() {
            let inner = frame.of(&item, index);
            let mut keys = Vec::with_capacity(call.arguments.len());
            for argument in call.arguments {
                let key = match &argument.what {
                    What::Negative(key) => self.eval(key, &inner)?,
                    _ => self.eval(argument, &inner)?,
                };
                keys.push(
                    Key::of(single(&key, argument.at)?)
                        .ok_or_else(|| call.fault("a key that has no order"))?,
                );
            }
            if call.arguments.is_empty() {
                keys.push(Key::of(Some(&item)).ok_or_else(|| call.fault("an item that has no order"))?);
            }
            keyed.push((keys, item));
        }
        let work = keyed.len().checked_ilog2().unwrap_or(0) as usize;
        self.step(call.at, keyed.len().saturating_mul(work))?;
        for place in 0..call.arguments.len().max(1) {
            let mut present = keyed.iter().map(|(keys, _)| &keys[place]).filter(|key| **key != Key::None);
            let first = present.next();
            if present.any(|key| first.is_some_and(|first| !first.is_like(key))) {
                return Err(call.fault("keys that cannot be compared"));
            }
        }
        let downwards =
            |place: usize| matches!(call.arguments.get(place), Some(Expr { what: What::Negative(_), .. }));
        keyed.sort_by(|(a, _), (b, _)| {
            let orders = a.iter().zip(b).enumerate().map(|(place, (a, b))| match (a, b) {
                (Key::None, _) | (_, Key::None) => a.cmp(b),
                _ if downwards(place) => b.cmp(a),
                _ => a.cmp(b),
            });
            orders.into_iter().find(|found| *found != Ordering::Equal).unwrap_or(Ordering::Equal)
        });
        Ok(keyed.into_iter().map(|(_, item)| item).collect())
    }

    fn iif(&mut self, call: &Call<'a>, input: Items<'a>, frame: &Frame<'a>) -> Result<Items<'a>, Fault> {
        let [criterion, then, otherwise @ ..] = call.arguments else { return Ok(Items::new()) };
        single(&input, call.at)?;
        let inner = Frame { this: input, ..frame.clone() };
        let found = self.eval(criterion, &inner)?;
        let is = match single(&found, criterion.at)? {
            None => false,
            Some(item) => match item.value().as_deref() {
                Some(Value::Boolean(value)) => *value,
                _ => return Err(Fault::new(criterion.at, "iif() wants true or false first".to_owned())),
            },
        };
        match (is, otherwise.first()) {
            (true, _) => self.eval(then, &inner),
            (false, Some(otherwise)) => self.eval(otherwise, &inner),
            (false, None) => Ok(Items::new()),
        }
    }

    fn within(&mut self, items: &Items<'a>, list: Items<'a>, at: usize) -> Result<Items<'a>, Fault> {
        let count = items.len();
        Ok(one(self.those_in(items.clone(), list, true, at)?.len() == count))
    }

    /// Those of a list that are in another one, or that are not.
    fn those_in(
        &mut self,
        items: Items<'a>,
        list: Items<'a>,
        wanted: bool,
        at: usize,
    ) -> Result<Items<'a>, Fault> {
        let mut set = equal::Set::default();
        for item in list {
            let compared = set.add(item);
            self.step(at, compared)?;
        }
        self.step(at, items.len().saturating_mul(set.cost()))?;
        Ok(items.into_iter().filter(|item| set.has(item) == wanted).collect())
    }

    fn children(&mut self, input: &[Item<'a>], into: &mut Items<'a>, at: usize) -> Result<(), Fault> {
        let before = into.len();
        for node in input.iter().filter_map(Item::node) {
            node.all_children(into);
        }
        self.step(at, into.len() - before)
    }

    /// Every element below, level by level.
    fn descendants(&mut self, input: &Items<'a>, at: usize) -> Result<Items<'a>, Fault> {
        let mut found = Items::new();
        self.children(input, &mut found, at)?;
        let mut from = 0;
        while from < found.len() {
            let level: Items<'a> = found[from..].iter().cloned().collect();
            from = found.len();
            self.children(&level, &mut found, at)?;
        }
        Ok(found)
    }

    fn resolve(&mut self, input: &Items<'a>, at: usize) -> Result<Items<'a>, Fault> {
        let mut found = Items::new();
        for item in input {
            self.step(at, 1)?;
            let reference = match (item.text(), item.node().and_then(Node::json)) {
                (Some(text), _) => Some(text),
                (None, Some(json)) => {
                    json.get("reference").and_then(Json::as_str).map(std::borrow::Cow::Borrowed)
                }
                (None, None) => None,
            };
            let Some(reference) = reference else {
                // An identifier instead of an address: the type may be told beside it.
                let named =
                    item.node().and_then(Node::json).and_then(|json| json.get("type")).and_then(Json::as_str);
                let of =
                    named.and_then(|name| r4().type_def(name)).filter(|of| of.kind == fhir::Kind::Resource);
                found.extend(of.map(|of| Item::Node(Node::of_type(of))));
                continue;
            };
            if let Some(id) = reference.strip_prefix('#') {
                found.extend(contained(&self.scope.root, id).map(Item::Node));
                continue;
            }
            if let Some(resource) = self.scope.resolve.and_then(|resolve| resolve(&reference)) {
                found.push(Item::Node(Node::resource(resource)));
                continue;
            }
            // `Patient/1`, `http://example.org/fhir/Patient/1`, `Patient/1/_history/2`.
            let path = reference.split_once("/_history/").map_or(&*reference, |(path, _)| path);
            let of = path.rsplit('/').nth(1).and_then(|name| r4().type_def(name));
            found.extend(
                of.filter(|of| of.kind == fhir::Kind::Resource).map(|of| Item::Node(Node::of_type(of))),
            );
        }
        Ok(found)
    }

    fn conforms_to(
        &mut self,
        call: &Call<'a>,
        input: &Items<'a>,
        frame: &Frame<'a>,
    ) -> Result<Items<'a>, Fault> {
        let url = self.argument(call, 0, frame)?;
        let (Some(url), Some(item)) = (text(&url, call.at)?, single(input, call.at)?) else {
            return Ok(Items::new());
        };
        let name = url.strip_prefix("http://hl7.org/fhir/StructureDefinition/");
        let Some(profile) =
            name.and_then(|name| r4().type_def(name)).filter(|of| of.kind == fhir::Kind::Resource)
        else {
            return Err(call.fault("only the base resources of R4 are known"));
        };
        let Some(node) = item.node() else { return Ok(one(false)) };
        let is = node.type_def().is_some_and(|of| of.is_a(profile));
        Ok(one(is && node.json().is_some_and(|json| fhir::validate(json).is_empty())))
    }
}

/// The resource of an id within another; the other itself for `#` alone.
fn contained<'a>(root: &Node<'a>, id: &str) -> Option<Node<'a>> {
    if id.is_empty() {
        return Some(*root);
    }
    let contained = root.json()?.get("contained")?.as_array()?;
    contained
        .iter()
        .find(|resource| resource.get("id").and_then(Json::as_str) == Some(id))
        .map(Node::resource)
}

fn booleans(input: &Items<'_>, call: &Call<'_>) -> Result<impl Iterator<Item = bool> + use<>, Fault> {
    let values: Option<Vec<bool>> = input
        .iter()
        .map(|item| match item.value().as_deref() {
            Some(Value::Boolean(value)) => Some(*value),
            _ => None,
        })
        .collect();
    values.map(Vec::into_iter).ok_or_else(|| call.fault("every item must be true or false"))
}

/// What items are sorted by: each kind in a total order, and none first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    None,
    Boolean(bool),
    Number(Decimal),
    Text(String),
    Date(MomentKey),
    Time(MomentKey),
    /// The unit that it was brought to, and the number in it.
    Amount(String, Number),
}

impl Key {
    /// The key of an item; `None` if it has no order, as an element with elements.
    fn of(item: Option<&Item<'_>>) -> Option<Key> {
        let Some(item) = item else { return Some(Key::None) };
        // A primitive with extensions alone.
        if item.node().is_some_and(|node| node.json().is_none()) {
            return Some(Key::None);
        }
        match &*item.value()? {
            Value::Boolean(value) => Some(Key::Boolean(*value)),
            Value::String(text) => Some(Key::Text(text.to_string())),
            Value::Moment(moment) if moment.kind() == Kind::Time => Some(Key::Time(moment.key())),
            Value::Moment(moment) => Some(Key::Date(moment.key())),
            Value::Quantity(amount) => amount.key().map(|(number, unit)| Key::Amount(unit, number)),
            Value::Type(_) => None,
            other => other.number().map(Key::Number),
        }
    }

    /// Whether both are of one kind, and of one unit.
    fn is_like(&self, other: &Key) -> bool {
        match (self, other) {
            (Key::Amount(a, _), Key::Amount(b, _)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}
