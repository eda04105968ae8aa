//! FHIR resources as records, by the definitions of R4.

use super::build::Builder;
use super::shape::{Holds, Is, Member, ShapeId, Shapes, Value};
use super::{Limits, Records, Unreadable, json};
use crate::fhir::{Kind, TypeDef, r4};
use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

/// What mappings call all resources of a document, each in the member of its type.
pub const ALL: &str = "Resources";
/// What a document is, and what may stand inside of another resource: a resource of whatever type.
const ANY: &str = "Resource";

/// The shapes of everything that R4 defines. Parts of resources have the names of their paths: `PatientContact`.
///
/// A choice has a member for each of its types, as JSON has: `valueQuantity`. What stands beside a primitive is a record: `_birthDate`.
pub fn shapes() -> &'static Arc<Shapes> {
    static SHAPES: OnceLock<Arc<Shapes>> = OnceLock::new();
    SHAPES.get_or_init(|| {
        let mut shapes = Shapes::default();
        let kept = || r4().types().filter(|of| of.kind != Kind::Primitive);
        for of in kept() {
            let added = shapes.add(name_of(of));
            debug_assert!(added.is_some(), "{} stands there twice", of.name);
        }
        for of in kept() {
            let Some(id) = shapes.named(name_of(of)) else { continue };
            match (of.kind, of.name) {
                (Kind::Resource, _) => {
                    add(&mut shapes, id, "resourceType", Holds::Value(Value::Text), false);
                    shapes.be(id, Is::Resource);
                }
                (_, "Reference") => shapes.be(id, Is::Reference),
                (_, ANY) => shapes.be(id, Is::AnyResource),
                _ => {}
            }
            for element in r4().elements(of) {
                for ty in &element.types {
                    let target = r4().get(ty.id);
                    let name = leaked(element.json_name(ty));
                    if target.kind != Kind::Primitive {
                        let inner = shapes.named(name_of(target)).expect("every type has a shape");
                        add(&mut shapes, id, name, Holds::Record(inner), element.repeats);
                        continue;
                    }
                    add(&mut shapes, id, name, Holds::Value(value_of(target.name)), element.repeats);
                    let beside = shapes.named("Element").expect("every type has a shape");
                    add(&mut shapes, id, leaked(format!("_{name}")), Holds::Record(beside), element.repeats);
                }
            }
        }
        let all = shapes.add(ALL).expect("no type of FHIR has this name");
        for of in r4().types().filter(|of| of.kind == Kind::Resource) {
            let inner = shapes.named(of.name).expect("every type has a shape");
            add(&mut shapes, all, of.name, Holds::Record(inner), true);
        }
        Arc::new(shapes)
    })
}

fn add(shapes: &mut Shapes, id: ShapeId, name: &'static str, holds: Holds, many: bool) {
    let added = shapes.add_member(id, Member { name, written: name.to_owned(), holds, many });
    debug_assert!(added, "{name} stands in {} twice", shapes.get(id).name);
}

/// `Patient.contact` is `PatientContact`.
fn name_of(of: &'static TypeDef) -> &'static str {
    if of.kind != Kind::Part {
        return of.name;
    }
    let mut name = String::with_capacity(of.name.len());
    for step in of.name.split('.') {
        let (head, tail) = step.split_at(1);
        name.push_str(&head.to_ascii_uppercase());
        name.push_str(tail);
    }
    leaked(name)
}

/// A name for the life of the process: there are some thousand in the definitions, and they are asked for once.
fn leaked(name: String) -> &'static str {
    Box::leak(name.into_boxed_str())
}

fn value_of(primitive: &str) -> Value {
    match primitive {
        "boolean" => Value::Boolean,
        "decimal" | "integer" | "positiveInt" | "unsignedInt" => Value::Number,
        _ => Value::Text,
    }
}

/// Reads FHIR in JSON: a Bundle, whose resources stand beside each other in the members of their types and know each other by `fullUrl` and
/// by type and id; or one resource. The Bundle itself is among them, without its entries.
///
/// # Errors
/// [`Unreadable`] says why, and where.
///
/// # Source
/// FHIR R4, "JSON representation of resources"; "Bundle", resolving references in Bundles.
pub fn read_fhir(text: &str, limits: &Limits) -> Result<Records, Unreadable> {
    let shapes = shapes();
    let text = json::whole(text, limits)?;
    let all = shapes.named(ALL).expect("it is added with the others");
    let mut builder = Builder::new(shapes, *limits);
    let document = builder.root(all);
    if !json::is_object(text) {
        return Err(Unreadable::NoRecord(ANY));
    }
    let members = json::members_of(text);
    if json::text_of(&members, "resourceType").as_deref() != Some("Bundle") {
        record_of(&mut builder, document, &members)?;
        return Ok(builder.finish());
    }
    let (entries, own): (Vec<_>, Vec<_>) = members.into_iter().partition(|(name, _)| name == "entry");
    record_of(&mut builder, document, &own)?;
    for entry in entries.iter().flat_map(|(_, json)| json::objects_of(json)) {
        let entry = json::members_of(entry);
        let Some((_, inner)) = entry.iter().find(|(name, json)| name == "resource" && json::is_object(json))
        else {
            continue;
        };
        let members = json::members_of(inner);
        let record = record_of(&mut builder, document, &members)?;
        let local = local_name(&members);
        let url = json::text_of(&entry, "fullUrl");
        let base = url.as_deref().zip(local.as_deref()).and_then(|(url, local)| url.strip_suffix(local));
        match base.filter(|base| base.ends_with('/')) {
            Some(base) => builder.based(record, base.to_owned()),
            None => local.into_iter().for_each(|local| builder.named(local, record)),
        }
        if let Some(url) = url {
            builder.named(url, record);
        }
    }
    Ok(builder.finish())
}

/// The type and the id of a resource, as relative references have them.
fn local_name(members: &[(Cow<'_, str>, &str)]) -> Option<String> {
    Some(format!("{}/{}", json::text_of(members, "resourceType")?, json::text_of(members, "id")?))
}

/// A resource of the document.
fn record_of(
    builder: &mut Builder,
    document: u32,
    members: &[(Cow<'_, str>, &str)],
) -> Result<u32, Unreadable> {
    let kind = json::text_of(members, "resourceType").unwrap_or_default();
    let shapes = Arc::clone(builder.shapes());
    let all = shapes.named(ALL).expect("it is added with the others");
    let record = match shapes.get(all).written(&kind) {
        Some((_, Member { holds: Holds::Record(shape), name, .. })) => {
            let record = builder.record(document, Some(*shape), name, true, 1)?;
            json::members(builder, record, Some(*shape), members, 2)?;
            record
        }
        _ => {
            let record = builder.other_record(document, &kind, true, 1)?;
            json::members(builder, record, None, members, 2)?;
            record
        }
    };
    Ok(record)
}

/// A resource inside of another: its own shape, and the name by which the one around it refers to it.
pub(super) fn contained(shapes: &Shapes, json: &str) -> (Option<ShapeId>, Option<String>) {
    let members = json::members_of(json);
    let kind = json::text_of(&members, "resourceType").and_then(|kind| shapes.named(&kind));
    let kind = kind.filter(|shape| shapes.get(*shape).is == Is::Resource);
    (kind, json::text_of(&members, "id").map(|id| format!("#{id}")))
}
