//! JSON as records.

use super::build::Builder;
use super::shape::{Holds, Is, Member, ShapeId, Shapes, Value};
use super::{Limits, Records, Unreadable, fhir};
use serde::de::{Deserializer as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// Reads a JSON document whose outermost record has a shape.
///
/// A list where a record is expected gives its items to the record's members, in their order; if the record has one member, and that is a
/// list, to that one: so a document that is a list, and pairs such as `["2026-01-02T03:04:05Z", 5.4]`, have shapes, too. What has another
/// form than its member declares is kept beside it, and an issue says so. Numbers keep every digit.
///
/// # Errors
/// [`Unreadable`] says why, and where.
///
/// # Source
/// RFC 8259.
pub fn read_json(
    text: &str,
    shapes: &Arc<Shapes>,
    root: ShapeId,
    limits: &Limits,
) -> Result<Records, Unreadable> {
    let document = whole(text, limits)?;
    let mut builder = Builder::new(shapes, *limits);
    let record = builder.root(root);
    match form(document) {
        Form::Object => object(&mut builder, record, Some(root), document, 1)?,
        Form::List => list_as_record(&mut builder, record, root, document, 1)?,
        Form::Null | Form::Value(_) => return Err(Unreadable::NoRecord(shapes.get(root).name)),
    }
    Ok(builder.finish())
}

/// A text that is JSON from its first character to its last, without blanks around it.
pub(super) fn whole<'t>(text: &'t str, limits: &Limits) -> Result<&'t str, Unreadable> {
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
    if text.len() > limits.bytes {
        return Err(Unreadable::OverLimit { limit: limits.bytes, unit: "bytes" });
    }
    let document: &RawValue = serde_json::from_str(text).map_err(|error| Unreadable::Syntax {
        format: "JSON",
        line: error.line(),
        column: error.column(),
    })?;
    Ok(document.get())
}

/// What a JSON text is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Object,
    List,
    Null,
    Value(Value),
}

fn form(json: &str) -> Form {
    match json.as_bytes().first() {
        Some(b'{') => Form::Object,
        Some(b'[') => Form::List,
        Some(b'n') => Form::Null,
        Some(b'"') => Form::Value(Value::Text),
        Some(b't' | b'f') => Form::Value(Value::Boolean),
        _ => Form::Value(Value::Number),
    }
}

/// The members of an object.
fn object(
    builder: &mut Builder,
    record: u32,
    shape: Option<ShapeId>,
    json: &str,
    depth: usize,
) -> Result<(), Unreadable> {
    members(builder, record, shape, &members_of(json), depth)
}

pub(super) fn members(
    builder: &mut Builder,
    record: u32,
    shape: Option<ShapeId>,
    members: &[(Cow<'_, str>, &str)],
    depth: usize,
) -> Result<(), Unreadable> {
    let shapes = Arc::clone(builder.shapes());
    let mut seen = HashSet::with_capacity(members.len());
    for (name, value) in members {
        if !seen.insert(&**name) {
            return Err(Unreadable::Twice(builder.place_of_member(record, name)));
        }
        let known = shape.and_then(|shape| shapes.get(shape).written(name));
        match known {
            Some((number, known)) => declared(builder, record, number, known, value, depth)?,
            None => other(builder, record, name, value, depth)?,
        }
    }
    Ok(())
}

/// A member that the record's shape declares.
fn declared(
    builder: &mut Builder,
    record: u32,
    number: u16,
    member: &Member,
    json: &str,
    depth: usize,
) -> Result<(), Unreadable> {
    match (form(json), member.many) {
        (Form::List, true) => {
            let items = items_of(json).into_iter().zip(1..);
            items
                .into_iter()
                .try_for_each(|(item, nth)| one(builder, record, number, member, item, nth, depth))
        }
        // One where there may be several is a list of one.
        _ => one(builder, record, number, member, json, 1, depth),
    }
}

/// One item of a declared member.
fn one(
    builder: &mut Builder,
    record: u32,
    number: u16,
    member: &Member,
    json: &str,
    nth: u32,
    depth: usize,
) -> Result<(), Unreadable> {
    match (form(json), member.holds) {
        (Form::Null, _) => Ok(()),
        (Form::Object, Holds::Record(shape)) if builder.shapes().get(shape).is == Is::AnyResource => {
            let (shape, name) = fhir::contained(builder.shapes(), json);
            let inner = builder.record(record, shape, member.name, member.many, depth)?;
            if let Some(name) = name {
                builder.named_inside(record, name, inner);
            }
            object(builder, inner, shape, json, depth + 1)
        }
        (Form::Object, Holds::Record(shape)) => {
            let inner = builder.record(record, Some(shape), member.name, member.many, depth)?;
            object(builder, inner, Some(shape), json, depth + 1)
        }
        (Form::List, Holds::Record(shape)) => {
            let inner = builder.record(record, Some(shape), member.name, member.many, depth)?;
            list_as_record(builder, inner, shape, json, depth + 1)
        }
        (Form::Value(kind), Holds::Value(expected)) => {
            if kind != expected {
                builder.unexpected(record, member.name, name_of(kind));
            }
            builder.value(record, number, nth, &plain(json))
        }
        (found, _) => {
            let found = match found {
                Form::Object => "an object",
                Form::List => "a list",
                Form::Null | Form::Value(_) => "a single value",
            };
            builder.unexpected(record, member.name, found);
            other(builder, record, &member.written, json, depth)
        }
    }
}

/// A member that no shape declares, whatever it holds: it is kept, so that it can be told.
fn other(builder: &mut Builder, record: u32, name: &str, json: &str, depth: usize) -> Result<(), Unreadable> {
    let mut open = vec![(json, 1)];
    // Lists within lists are one list.
    let mut nth = 0;
    while let Some((json, level)) = open.pop() {
        match form(json) {
            Form::List if level > builder.depth_max() => return Err(builder.too_deep()),
            Form::List => open.extend(items_of(json).into_iter().rev().map(|item| (item, level + 1))),
            Form::Null => nth += 1,
            Form::Object => {
                nth += 1;
                let inner = builder.other_record(record, name, level > 1, depth)?;
                object(builder, inner, None, json, depth + 1)?;
            }
            Form::Value(_) => {
                nth += 1;
                builder.other(record, name, nth, &plain(json))?;
            }
        }
    }
    Ok(())
}

/// A list where a record is expected.
fn list_as_record(
    builder: &mut Builder,
    record: u32,
    shape: ShapeId,
    json: &str,
    depth: usize,
) -> Result<(), Unreadable> {
    let shapes = Arc::clone(builder.shapes());
    if let Some((number, member)) = shapes.get(shape).list() {
        return declared(builder, record, number, member, json, depth);
    }
    let members = &shapes.get(shape).members;
    for (at, item) in items_of(json).into_iter().enumerate() {
        // A shape has far fewer members than a number has room for.
        match members.get(at).zip(u16::try_from(at + 1).ok()) {
            Some((member, number)) => declared(builder, record, number, member, item, depth)?,
            None => other(builder, record, super::UNDECLARED, item, depth)?,
        }
    }
    Ok(())
}

fn name_of(kind: Value) -> &'static str {
    match kind {
        Value::Text => "a text",
        Value::Number => "a number",
        Value::Boolean => "true or false",
    }
}

/// A value as text: of a text what it means, of all others how it is written.
fn plain(json: &str) -> Cow<'_, str> {
    match json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) if !inner.contains('\\') => Cow::Borrowed(inner),
        // A half of a surrogate pair, which JSON's grammar lets pass, means nothing.
        Some(_) => Cow::Owned(serde_json::from_str(json).unwrap_or_else(|_| "\u{FFFD}".to_owned())),
        None => Cow::Borrowed(json),
    }
}

/// The members of an object in their order, each as it is written; the same name may come twice.
pub(super) fn members_of(json: &str) -> Vec<(Cow<'_, str>, &str)> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(Cow<'de, str>, &'de str)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some((name, value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                members.push((name.0, value.get()));
            }
            Ok(members)
        }
    }
    let mut reader = serde_json::Deserializer::from_str(json);
    reader.deserialize_map(Members).expect("the document was read as a whole, so its parts can be")
}

/// The text of a member, if it is one.
pub(super) fn text_of(members: &[(Cow<'_, str>, &str)], name: &str) -> Option<String> {
    let (_, json) =
        members.iter().find(|(known, json)| known == name && form(json) == Form::Value(Value::Text))?;
    Some(plain(json).into_owned())
}

/// The objects of a list.
pub(super) fn objects_of(json: &str) -> Vec<&str> {
    let items = if form(json) == Form::List { items_of(json) } else { Vec::new() };
    items.into_iter().filter(|item| is_object(item)).collect()
}

pub(super) fn is_object(json: &str) -> bool {
    form(json) == Form::Object
}

/// A name, borrowed where it can be.
#[derive(serde::Deserialize)]
struct Name<'t>(#[serde(borrow)] Cow<'t, str>);

/// The items of a list, each as it is written.
fn items_of(json: &str) -> Vec<&str> {
    struct Items;
    impl<'de> Visitor<'de> for Items {
        type Value = Vec<&'de str>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = list.next_element::<&'de RawValue>()? {
                items.push(item.get());
            }
            Ok(items)
        }
    }
    let mut reader = serde_json::Deserializer::from_str(json);
    reader.deserialize_seq(Items).expect("the document was read as a whole, so its parts can be")
}
