//! Writes fragments as one JSON object: what the slots of a resource say, in the order of their rules.

use crate::compile::target;
use crate::resource::Fragment;
use serde_json::Value;
use smallvec::SmallVec;
use uuid::Uuid;

/// Begins the extension that says why a value is not there; the code and its end follow.
pub(crate) const DATA_ABSENT: &str =
    r#"{"url":"http://hl7.org/fhir/StructureDefinition/data-absent-reason","valueCode":""#;

/// A fragment and its place in the object that is being written.
#[derive(Clone, Copy)]
struct Part<'f> {
    /// The member's name, without the type of a choice.
    name: &'f str,
    /// What follows the name: nothing, the type of a choice after a slash, or the way on after a dot.
    rest: &'f str,
    fragment: &'f Fragment,
}

impl<'f> Part<'f> {
    fn new(path: &'f str, fragment: &'f Fragment) -> Part<'f> {
        let end = memchr::memchr2(b'.', b'/', path.as_bytes()).unwrap_or(path.len());
        let (name, rest) = path.split_at(end);
        Part { name, rest, fragment }
    }

    /// What is left of the path inside this member, if it leads on.
    fn inner(&self) -> Option<Part<'f>> {
        self.rest.strip_prefix('.').map(|path| Part::new(path, self.fragment))
    }
}

/// Writes a resource: `resourceType`, `id`, then the fragments. Answers the first required element that it lacks.
pub(crate) fn resource<'f>(
    resource_type: &str,
    id: Uuid,
    fragments: impl Iterator<Item = &'f Fragment>,
    out: &mut String,
) -> Option<&'static str> {
    out.push_str("{\"resourceType\":\"");
    out.push_str(resource_type);
    out.push_str("\",\"id\":\"");
    let mut buffer = Uuid::encode_buffer();
    out.push_str(id.hyphenated().encode_lower(&mut buffer));
    out.push('"');
    let mut parts: SmallVec<[Part<'f>; 24]> =
        fragments.map(|fragment| Part::new(&fragment.path, fragment)).collect();
    // R4 invariant obs-6: a reason why there is no value stands only where there is none.
    if parts.iter().any(|part| part.name == "value") {
        parts.retain(|part| part.name != "dataAbsentReason");
    }
    members(&parts, true, out);
    out.push('}');
    let says = |part: &Part<'_>, name, choice| {
        if choice { part.name.starts_with(name) } else { part.name == name }
    };
    let lacks = |(name, choice): &&(&'static str, bool)| !parts.iter().any(|part| says(part, *name, *choice));
    target::required_elements(resource_type).iter().find(lacks).map(|(name, _)| *name)
}

/// Writes fragments as the members of an object, without braces.
pub(crate) fn elements<'f>(fragments: impl Iterator<Item = &'f Fragment>, out: &mut String) {
    let parts: SmallVec<[Part<'f>; 24]> =
        fragments.map(|fragment| Part::new(&fragment.path, fragment)).collect();
    members(&parts, false, out);
}

/// Writes the members of an object. Two rules for one single value: the first in order says it.
fn members(parts: &[Part<'_>], mut comma: bool, out: &mut String) {
    // Why there is no value is said only where there is none.
    let excused = |part: &Part<'_>| {
        part.name.strip_prefix('_').is_some_and(|name| {
            part.fragment.json.starts_with(DATA_ABSENT) && parts.iter().any(|other| other.name == name)
        })
    };
    let kept: SmallVec<[Part<'_>; 24]>;
    let parts = if parts.iter().any(excused) {
        kept = parts.iter().copied().filter(|part| !excused(part)).collect();
        &*kept
    } else {
        parts
    };
    for (index, part) in parts.iter().enumerate() {
        let same = |other: &&Part<'_>| other.name == part.name;
        if parts[..index].iter().any(|other| same(&other)) {
            continue; // written with the first of the name
        }
        if comma {
            out.push(',');
        }
        comma = true;
        let all = parts[index..].iter().filter(same);
        let mut leaves = all.clone().filter(|part| !part.rest.starts_with('.'));
        let single = leaves.clone().find(|part| !part.fragment.list);
        out.push('"');
        out.push_str(part.name);
        if let Some(single) = single {
            // `value/Quantity` is `valueQuantity`.
            out.push_str(single.rest.strip_prefix('/').unwrap_or(single.rest));
            out.push_str("\":");
            out.push_str(&single.fragment.json);
        } else if part.fragment.is_beside_items() && part.rest.is_empty() {
            out.push_str("\":[");
            beside_items(parts, part.name, out);
            out.push(']');
        } else if matches!(part.name, "security" | "tag") && leaves.clone().next().is_some() {
            out.push_str("\":[");
            labels(leaves.map(|part| part.fragment), out);
            out.push(']');
        } else if let Some(first) = leaves.next() {
            out.push_str("\":[");
            out.push_str(&first.fragment.json);
            for more in leaves {
                out.push(',');
                out.push_str(&more.fragment.json);
            }
            out.push(']');
        } else {
            out.push_str("\":{");
            let inner: SmallVec<[Part<'_>; 8]> = all.filter_map(Part::inner).collect();
            members(&inner, false, out);
            out.push('}');
        }
    }
}

/// Writes labels of `meta`. They are a set (R4, Meta): one that two rules or two segments give stands once, with its display if one of
/// them has it.
fn labels<'f>(fragments: impl Iterator<Item = &'f Fragment>, out: &mut String) {
    let all = fragments.map(|fragment| fragment.json.as_str()).collect::<Vec<_>>().join(",");
    let Ok(labels) = serde_json::from_str::<Vec<Value>>(&format!("[{all}]")) else {
        out.push_str(&all);
        return;
    };
    let same = |a: &Value, b: &Value| ["system", "version", "code"].iter().all(|name| a[*name] == b[*name]);
    let mut kept: Vec<Value> = Vec::new();
    for label in labels {
        match kept.iter_mut().find(|known| same(known, &label)) {
            Some(known) if known["display"].is_null() => *known = label,
            Some(_) => {}
            None => kept.push(label),
        }
    }
    out.push_str(&kept.iter().map(Value::to_string).collect::<Vec<_>>().join(","));
}

/// Writes what stands beside the items of a list of primitives: `null` for each item that has nothing. A slot's fragments stand
/// together, its items first.
fn beside_items(parts: &[Part<'_>], name: &str, out: &mut String) {
    let items = parts.iter().enumerate().filter(|(_, part)| Some(part.name) == name.strip_prefix('_'));
    for (nth, (index, part)) in items.enumerate() {
        if nth > 0 {
            out.push(',');
        }
        match parts.get(index + 1).filter(|next| next.name == name) {
            Some(beside) => out.push_str(&beside.fragment.json),
            None => out.push_str(&vec!["null"; part.fragment.items() as usize].join(",")),
        }
    }
}
