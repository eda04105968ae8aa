//! What an expression works on: elements of a resource, and values of FHIRPath's own.

use super::moment::{Kind, Moment};
use super::quantity::{Quantity, Unit};
use crate::fhir::{ElementDef, Kind as TypeKind, TypeDef, TypeRef, r4};
use rust_decimal::Decimal;
use serde_json::Value as Json;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

/// A list of items, in order.
pub type Items<'a> = SmallVec<[Item<'a>; 1]>;

/// One thing that an expression found. What it shows of itself for debugging is its type: the rest may be a patient's.
#[derive(Clone)]
pub enum Item<'a> {
    /// A resource or an element of one.
    Node(Node<'a>),
    /// A value without a place.
    Value(Value<'a>),
}

/// A resource or an element of one.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    /// Its JSON; `None` where a primitive has extensions alone.
    json: Option<&'a Json>,
    /// The JSON of its `_name`: id and extensions of a primitive.
    beside: Option<&'a Json>,
    of: Option<&'static TypeDef>,
}

/// A value of FHIRPath's own types.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// `true`, `false`
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// A number, with the zeros that it was written with.
    Decimal(Decimal),
    /// A text.
    String(Cow<'a, str>),
    /// A date, a time, or both.
    Moment(Moment),
    /// A number with its unit.
    Quantity(Box<Quantity>),
    /// What `type()` tells.
    Type(Type),
}

/// A type that an expression can name.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    /// One of FHIR's.
    Fhir(&'static TypeDef),
    /// One of FHIRPath's own: `Boolean`, `Integer`, ...
    System(&'static str),
}

/// FHIRPath's own types.
pub(super) const SYSTEM: [&str; 8] =
    ["Boolean", "Integer", "Decimal", "String", "Date", "DateTime", "Time", "Quantity"];

impl fmt::Debug for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.type_of() {
            Some(of) => write!(f, "{}.{}", of.namespace(), of.name()),
            None => f.write_str("an untyped element"),
        }
    }
}

impl fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.of.map_or("an untyped element", |of| of.name))
    }
}

impl PartialEq for Type {
    fn eq(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Fhir(a), Type::Fhir(b)) => a.id == b.id,
            (Type::System(a), Type::System(b)) => a == b,
            _ => false,
        }
    }
}

impl Type {
    /// `System` or `FHIR`.
    pub(super) fn namespace(self) -> &'static str {
        match self {
            Type::Fhir(_) => "FHIR",
            Type::System(_) => "System",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Type::Fhir(of) => of.name,
            Type::System(name) => name,
        }
    }
}

impl<'a> Node<'a> {
    /// A resource.
    pub fn resource(json: &'a Json) -> Node<'a> {
        Node { json: Some(json), beside: None, of: type_of_resource(json) }
    }

    /// An element of a known type.
    pub fn element(json: &'a Json, of: &'static TypeDef) -> Node<'a> {
        Node {
            json: Some(json),
            beside: None,
            of: if of.kind == TypeKind::Abstract { type_of_resource(json).or(Some(of)) } else { Some(of) },
        }
    }

    /// Something of which the type alone is known: what a reference points at and is not at hand.
    pub(super) fn of_type(of: &'static TypeDef) -> Node<'a> {
        Node { json: None, beside: None, of: Some(of) }
    }

    /// Its JSON; `None` where a primitive has extensions alone.
    pub fn json(&self) -> Option<&'a Json> {
        self.json
    }

    /// Its type, if it has one of R4's.
    pub fn type_def(&self) -> Option<&'static TypeDef> {
        self.of
    }

    fn is_primitive(&self) -> bool {
        self.of.is_some_and(|of| of.kind == TypeKind::Primitive)
    }

    /// Its elements of a name; `value` finds `valueQuantity`.
    pub(super) fn children(&self, name: &str, into: &mut Items<'a>) {
        let Some(of) = self.of else {
            self.untyped_child(name, into);
            return;
        };
        let Some(element) = r4().elements(of).find(|element| element.name == name) else { return };
        self.element_children(element, into);
    }

    /// All its elements, in the order of the standard.
    pub(super) fn all_children(&self, into: &mut Items<'a>) {
        let Some(of) = self.of else {
            if let Some(Json::Object(object)) = self.json {
                for name in object.keys() {
                    self.untyped_child(name, into);
                }
            }
            return;
        };
        for element in r4().elements(of) {
            self.element_children(element, into);
        }
    }

    fn element_children(&self, element: &'static ElementDef, into: &mut Items<'a>) {
        let object = if self.is_primitive() { self.beside } else { self.json };
        let Some(Json::Object(object)) = object else { return };
        if !element.choice {
            if let Some(of) = element.types.first() {
                let beside =
                    if self.is_primitive() { None } else { beside(object, element, element.name, of) };
                push(object.get(element.name), beside, of, into);
            }
            return;
        }
        for key in object.keys() {
            let name = key.strip_prefix('_').unwrap_or(key);
            let Some(of) = element.type_of_json_name(name) else { continue };
            if name.len() < key.len() && object.contains_key(name) {
                // Told with its value.
                continue;
            }
            push(object.get(name), beside(object, element, name, of), of, into);
        }
    }

    fn untyped_child(&self, name: &str, into: &mut Items<'a>) {
        let Some(found) = self.json.and_then(|json| json.get(name)) else { return };
        let node = |json| Item::Node(Node { json: Some(json), beside: None, of: type_of_resource(json) });
        match found {
            Json::Array(items) => into.extend(items.iter().map(node)),
            one => into.push(node(one)),
        }
    }

    /// Its value, if it is a primitive that has one, or a Quantity.
    pub(super) fn value(&self) -> Option<Value<'a>> {
        let of = self.of?;
        if of.kind != TypeKind::Primitive {
            return if of.is_a(r4().type_def("Quantity")?) { self.quantity() } else { None };
        }
        match self.json? {
            Json::Bool(value) => Some(Value::Boolean(*value)),
            Json::Number(number) => {
                let text = number.as_str();
                match of.name {
                    "decimal" => decimal(text).map(Value::Decimal),
                    _ => text.parse().ok().map(Value::Integer).or_else(|| decimal(text).map(Value::Decimal)),
                }
            }
            Json::String(text) => {
                let moment = match of.name {
                    "date" => Moment::date(text),
                    "dateTime" | "instant" => Moment::date_time(text).map(Moment::to_date_time),
                    "time" => Moment::time(text),
                    _ => None,
                };
                // What claims to be a date and is none is a text.
                Some(moment.map_or(Value::String(Cow::Borrowed(text)), Value::Moment))
            }
            _ => None,
        }
    }

    fn quantity(&self) -> Option<Value<'a>> {
        let json = self.json?;
        let value = decimal(json.get("value")?.as_number()?.as_str())?;
        let text = |name: &str| json.get(name).and_then(Json::as_str);
        let unit = match (text("system"), text("code"), text("unit")) {
            (Some("http://unitsofmeasure.org"), Some(code), _) => Unit::Ucum(code.to_owned()),
            (None, None, None) => Unit::Ucum("1".to_owned()),
            (_, code, unit) => Unit::Other(code.or(unit).unwrap_or_default().to_owned()),
        };
        Some(Value::Quantity(Box::new(Quantity { value, unit })))
    }

    /// Whether it is a primitive with a value.
    pub(super) fn has_value(&self) -> bool {
        self.is_primitive() && self.json.is_some()
    }
}

/// The resource type that an object tells.
fn type_of_resource(json: &Json) -> Option<&'static TypeDef> {
    r4().type_def(json.get("resourceType")?.as_str()?).filter(|of| of.kind == TypeKind::Resource)
}

/// The `_name` of a primitive.
fn beside<'a>(
    object: &'a serde_json::Map<String, Json>,
    element: &ElementDef,
    name: &str,
    of: &TypeRef,
) -> Option<&'a Json> {
    if r4().get(of.id).kind != TypeKind::Primitive {
        return None;
    }
    debug_assert!(name.starts_with(element.name), "a name of its element");
    let mut key: SmallVec<[u8; 64]> = SmallVec::with_capacity(name.len() + 1);
    key.push(b'_');
    key.extend_from_slice(name.as_bytes());
    object.get(std::str::from_utf8(&key).ok()?)
}

/// The items of an element: one, or each of a list beside its `_name`.
fn push<'a>(json: Option<&'a Json>, beside: Option<&'a Json>, of: &TypeRef, into: &mut Items<'a>) {
    let of = r4().get(of.id);
    let node = |json: Option<&'a Json>, beside: Option<&'a Json>| {
        let json = json.filter(|json| !json.is_null());
        let beside = beside.filter(|json| !json.is_null());
        let of = if of.kind == TypeKind::Abstract {
            json.and_then(type_of_resource).or(Some(of))
        } else {
            Some(of)
        };
        (json.is_some() || beside.is_some()).then_some(Item::Node(Node { json, beside, of }))
    };
    match (json, beside) {
        (None, None) => {}
        (Some(Json::Array(items)), beside) => {
            let beside = beside.and_then(Json::as_array);
            let of_item = |index: usize| beside.and_then(|items| items.get(index));
            into.extend(
                items.iter().enumerate().filter_map(|(index, json)| node(Some(json), of_item(index))),
            );
        }
        (None, Some(Json::Array(items))) => {
            into.extend(items.iter().filter_map(|item| node(None, Some(item))))
        }
        (json, beside) => into.extend(node(json, beside)),
    }
}

/// A decimal as it is written in JSON, exponents included; `None` beyond 28 digits.
pub(super) fn decimal(text: &str) -> Option<Decimal> {
    Decimal::from_str_exact(text).ok().or_else(|| Decimal::from_scientific(text).ok())
}

impl<'a> Item<'a> {
    /// The element, if it is one.
    pub fn node(&self) -> Option<&Node<'a>> {
        match self {
            Item::Node(node) => Some(node),
            Item::Value(_) => None,
        }
    }

    /// Its value: its own, or the one of a primitive or of a Quantity.
    pub fn value(&self) -> Option<Cow<'_, Value<'a>>> {
        match self {
            Item::Node(node) => node.value().map(Cow::Owned),
            Item::Value(value) => Some(Cow::Borrowed(value)),
        }
    }

    /// Its text, if it has one: of a string, of a code, of a URL.
    pub fn text(&self) -> Option<Cow<'a, str>> {
        match self {
            Item::Node(node) if node.is_primitive() => Some(Cow::Borrowed(node.json?.as_str()?)),
            Item::Value(Value::String(text)) => Some(text.clone()),
            _ => None,
        }
    }

    /// Its type.
    pub(super) fn type_of(&self) -> Option<Type> {
        match self {
            Item::Node(node) => node.of.map(Type::Fhir),
            Item::Value(value) => Some(Type::System(value.type_name())),
        }
    }

    /// Whether it is of a type or of one based on it.
    pub(super) fn is(&self, other: Type) -> bool {
        match (self.type_of(), other) {
            (Some(Type::Fhir(of)), Type::Fhir(other)) => of.is_a(other),
            (Some(Type::System(of)), Type::System(other)) => of == other,
            // FHIR's Quantity stands for FHIRPath's where no namespace tells them apart.
            (Some(Type::System("Quantity")), Type::Fhir(other)) => other.name == "Quantity",
            _ => false,
        }
    }

    /// Whether `as` keeps it: a primitive must be of the very type.
    pub(super) fn is_exactly(&self, other: Type) -> bool {
        match (self.type_of(), other) {
            (Some(Type::Fhir(of)), Type::Fhir(other)) if of.kind == TypeKind::Primitive => of.id == other.id,
            _ => self.is(other),
        }
    }
}

impl Value<'_> {
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Value::Boolean(_) => "Boolean",
            Value::Integer(_) => "Integer",
            Value::Decimal(_) => "Decimal",
            Value::String(_) => "String",
            Value::Moment(moment) => match moment.kind() {
                Kind::Date => "Date",
                Kind::DateTime => "DateTime",
                Kind::Time => "Time",
            },
            Value::Quantity(_) => "Quantity",
            Value::Type(_) => "TypeInfo",
        }
    }

    /// A number as a decimal.
    pub fn number(&self) -> Option<Decimal> {
        match self {
            Value::Integer(value) => Some(Decimal::from(*value)),
            Value::Decimal(value) => Some(*value),
            _ => None,
        }
    }

    /// How two values stand to each other: `Err` if their types are never compared, `Ok(None)` if it is not known.
    pub(super) fn compare(&self, other: &Value<'_>) -> Result<Option<Ordering>, ()> {
        match (self, other) {
            (Value::String(a), Value::String(b)) => Ok(Some(a.cmp(b))),
            (Value::Moment(a), Value::Moment(b)) if (a.kind() == Kind::Time) == (b.kind() == Kind::Time) => {
                Ok(a.compare(b))
            }
            (Value::Quantity(a), Value::Quantity(b)) => Ok(a.compare(b)),
            (Value::Quantity(a), b) => b.number().map(|b| a.compare(&Quantity::of_number(b))).ok_or(()),
            (a, Value::Quantity(b)) => a.number().map(|a| Quantity::of_number(a).compare(b)).ok_or(()),
            (a, b) => match (a.number(), b.number()) {
                (Some(a), Some(b)) => Ok(Some(a.cmp(&b))),
                _ => Err(()),
            },
        }
    }
}

impl fmt::Display for Value<'_> {
    /// As `toString()` tells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Boolean(value) => write!(f, "{value}"),
            Value::Integer(value) => write!(f, "{value}"),
            Value::Decimal(value) => write!(f, "{value}"),
            Value::String(value) => f.write_str(value),
            Value::Moment(value) => write!(f, "{value}"),
            Value::Quantity(value) => write!(f, "{value}"),
            Value::Type(value) => write!(f, "{}.{}", value.namespace(), value.name()),
        }
    }
}

impl<'a> From<bool> for Item<'a> {
    fn from(value: bool) -> Item<'a> {
        Item::Value(Value::Boolean(value))
    }
}

impl<'a> From<i64> for Item<'a> {
    fn from(value: i64) -> Item<'a> {
        Item::Value(Value::Integer(value))
    }
}

impl<'a> From<String> for Item<'a> {
    fn from(value: String) -> Item<'a> {
        Item::Value(Value::String(Cow::Owned(value)))
    }
}

impl<'a> From<&'a str> for Item<'a> {
    fn from(value: &'a str) -> Item<'a> {
        Item::Value(Value::String(Cow::Borrowed(value)))
    }
}

impl<'a> From<Node<'a>> for Item<'a> {
    fn from(node: Node<'a>) -> Item<'a> {
        Item::Node(node)
    }
}

impl<'a> From<Value<'a>> for Item<'a> {
    fn from(value: Value<'a>) -> Item<'a> {
        Item::Value(value)
    }
}
