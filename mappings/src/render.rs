//! Writes fragments as one JSON object: what the slots of a resource say, in the order of their rules.

use crate::resource::Fragment;
use smallvec::SmallVec;
use uuid::Uuid;

/// A fragment and what is left of its path.
type Part<'f> = (&'f str, &'f Fragment);

/// Writes a resource: `resourceType`, `id`, then the fragments.
pub(crate) fn resource<'f>(
    resource_type: &str,
    id: Uuid,
    fragments: impl Iterator<Item = &'f Fragment>,
    out: &mut String,
) {
    out.push_str("{\"resourceType\":\"");
    out.push_str(resource_type);
    out.push_str("\",\"id\":\"");
    let mut buffer = Uuid::encode_buffer();
    out.push_str(id.hyphenated().encode_lower(&mut buffer));
    out.push('"');
    let mut parts: SmallVec<[Part<'f>; 24]> = fragments.map(|fragment| (&*fragment.path, fragment)).collect();
    // R4 invariant obs-6: a reason why there is no value stands only where there is none.
    if parts.iter().any(|(path, _)| name(path) == "value") {
        parts.retain(|(path, _)| name(path) != "dataAbsentReason");
    }
    members(&parts, true, out);
    out.push('}');
}

/// Writes the members of an object. Two rules for one single value: the first in order says it.
fn members(parts: &[Part<'_>], mut comma: bool, out: &mut String) {
    for (index, (path, fragment)) in parts.iter().enumerate() {
        let name = name(path);
        let same = |part: &&Part<'_>| self::name(part.0) == name;
        if parts[..index].iter().any(|part| same(&part)) {
            continue;
        }
        if comma {
            out.push(',');
        }
        comma = true;
        let mut leaves = parts[index..].iter().filter(same).filter(|(path, _)| !path.contains('.'));
        let single = leaves.clone().find(|(_, fragment)| !fragment.list);
        out.push('"');
        if let Some((path, fragment)) = single {
            // `value/Quantity` is `valueQuantity`.
            let (name, of) = path.split_once('/').unwrap_or((path, ""));
            out.push_str(name);
            out.push_str(of);
            out.push_str("\":");
            out.push_str(&fragment.json);
        } else if let Some((_, first)) = leaves.next() {
            out.push_str(name);
            out.push_str("\":[");
            out.push_str(&first.json);
            for (_, more) in leaves {
                out.push(',');
                out.push_str(&more.json);
            }
            out.push(']');
        } else {
            debug_assert!(fragment.path.contains('.'), "a path is a name or leads on");
            out.push_str(name);
            out.push_str("\":{");
            let inner: SmallVec<[Part<'_>; 8]> = parts[index..]
                .iter()
                .filter(same)
                .filter_map(|(path, fragment)| Some((path.split_once('.')?.1, *fragment)))
                .collect();
            members(&inner, false, out);
            out.push('}');
        }
    }
}

/// The first element of a path, without the type of a choice.
fn name(path: &str) -> &str {
    let end = path.bytes().position(|byte| matches!(byte, b'.' | b'/')).unwrap_or(path.len());
    &path[..end]
}
