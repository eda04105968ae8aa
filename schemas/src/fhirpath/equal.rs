//! When two items are the same: `=`, `~`, and the sets that are made of them.

use super::item::{Item, Items, Node, Value};
use super::quantity;
use rust_decimal::Decimal;
use serde_json::Value as Json;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashSet;

/// Whether two items are equal; `None` where it is not known, as with dates of unlike precision.
pub(super) fn equal(a: &Item<'_>, b: &Item<'_>) -> Option<bool> {
    if let Some((a, b)) = both_complex(a, b) {
        return Some(same_json(a, b));
    }
    let (Some(a), Some(b)) = (a.value(), b.value()) else {
        return Some(false);
    };
    match (&*a, &*b) {
        (Value::Boolean(a), Value::Boolean(b)) => Some(a == b),
        (Value::Type(a), Value::Type(b)) => Some(a == b),
        (a, b) => match a.compare(b) {
            Ok(found) => found.map(|found| found == Ordering::Equal),
            Err(()) => Some(false),
        },
    }
}

/// Whether two items mean the same: texts without regard to case and spaces, numbers as far as both go.
pub(super) fn equivalent(a: &Item<'_>, b: &Item<'_>) -> bool {
    if let Some((a, b)) = both_complex(a, b) {
        return like_json(a, b);
    }
    let (Some(a), Some(b)) = (a.value(), b.value()) else { return false };
    match (&*a, &*b) {
        (Value::Boolean(a), Value::Boolean(b)) => a == b,
        (Value::Type(a), Value::Type(b)) => a == b,
        (Value::String(a), Value::String(b)) => like_text(a, b),
        (Value::Quantity(a), Value::Quantity(b)) => a.equivalent(b),
        (a, b) => match (a.number(), b.number()) {
            (Some(a), Some(b)) => quantity::equivalent(a, b),
            _ => a.compare(b) == Ok(Some(Ordering::Equal)),
        },
    }
}

/// Two elements with elements of their own; amounts that can be brought to one unit are compared as values.
fn both_complex<'a>(a: &Item<'a>, b: &Item<'a>) -> Option<(&'a Json, &'a Json)> {
    if let (Some(Cow::Owned(Value::Quantity(a))), Some(Cow::Owned(Value::Quantity(b)))) =
        (a.value(), b.value())
        && a.comparable(&b)
    {
        return None;
    }
    let complex = |item: &Item<'a>| item.node().and_then(Node::json).filter(|json| json.is_object());
    Some((complex(a)?, complex(b)?))
}

/// Whether two elements are the same in JSON, numbers by their value.
fn same_json(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same_json(a, b)))
        }
        (Json::Array(a), Json::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_json(a, b))
        }
        (Json::Number(_), Json::Number(_)) => match (number(a), number(b)) {
            (Some(a), Some(b)) => a == b,
            _ => a == b,
        },
        _ => a == b,
    }
}

fn like_json(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| like_json(a, b)))
        }
        (Json::Array(a), Json::Array(b)) => in_any_order(a, b, like_json),
        (Json::String(a), Json::String(b)) => like_text(a, b),
        (Json::Number(_), Json::Number(_)) => match (number(a), number(b)) {
            (Some(a), Some(b)) => quantity::equivalent(a, b),
            _ => a == b,
        },
        _ => a == b,
    }
}

fn number(json: &Json) -> Option<Decimal> {
    super::item::decimal(json.as_number()?.as_str())
}

/// Whether each of one list has its like in the other.
pub(super) fn in_any_order<T>(a: &[T], b: &[T], like: impl Fn(&T, &T) -> bool) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut free: Vec<&T> = b.iter().collect();
    a.iter().all(|a| match free.iter().position(|b| like(a, b)) {
        Some(index) => {
            free.swap_remove(index);
            true
        }
        None => false,
    })
}

fn like_text(a: &str, b: &str) -> bool {
    let words = |text: &str| text.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>();
    a == b || words(a) == words(b)
}

/// How many values a comparison of two items looks at.
pub(super) fn cost(a: &Item<'_>, b: &Item<'_>) -> usize {
    let weight = |item: &Item<'_>| item.node().and_then(Node::json).map_or(1, weight);
    weight(a).min(weight(b))
}

/// How many values an element holds.
pub(super) fn weight(json: &Json) -> usize {
    match json {
        Json::Array(items) => 1 + items.iter().map(weight).sum::<usize>(),
        Json::Object(members) => 1 + members.values().map(weight).sum::<usize>(),
        _ => 1,
    }
}

/// Items of which each is there once, in the order in which they came.
#[derive(Default)]
pub(super) struct Set<'a> {
    items: Items<'a>,
    texts: HashSet<Cow<'a, str>>,
    /// Where those stand that are no texts: they are compared one by one.
    others: Vec<usize>,
}

impl<'a> Set<'a> {
    /// Adds an item that is not there yet; how many items it was compared with.
    pub(super) fn add(&mut self, item: Item<'a>) -> usize {
        if let Some(text) = plain_text(&item) {
            if self.texts.insert(text) {
                self.items.push(item);
            }
            return 1;
        }
        // A date is read anew for each comparison, an element is walked through.
        let compared = self.others.len().saturating_mul(8 + cost(&item, &item));
        let known = self.others.iter().any(|index| equal(&self.items[*index], &item) == Some(true));
        if !known {
            self.others.push(self.items.len());
            self.items.push(item);
        }
        compared
    }

    /// Whether an item is there.
    pub(super) fn has(&self, item: &Item<'a>) -> bool {
        match plain_text(item) {
            Some(text) => self.texts.contains(&text),
            None => self.others.iter().any(|index| equal(&self.items[*index], item) == Some(true)),
        }
    }

    /// How many it is compared with to find one.
    pub(super) fn cost(&self) -> usize {
        1 + self.others.len()
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn into_items(self) -> Items<'a> {
        self.items
    }
}

/// The text of an item that is one: what is a date is compared as a date.
fn plain_text<'a>(item: &Item<'a>) -> Option<Cow<'a, str>> {
    match item {
        Item::Value(Value::String(text)) => Some(text.clone()),
        Item::Value(_) => None,
        Item::Node(node) => match node.value()? {
            Value::String(text) => Some(text),
            _ => None,
        },
    }
}
