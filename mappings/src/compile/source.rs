//! What the HL7 v2 definitions say about a path, over every version: a mapping serves many of them.

use schemas::hl7v2::definitions::{SegmentDef, Version, definitions};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// The data types that may stand somewhere, over the versions; empty where nobody knows (`varies`, Z-segments).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Types(pub(super) Vec<&'static str>);

/// Data types without components.
const PRIMITIVES: [&str; 17] = [
    "DT", "DTM", "FT", "GTS", "ID", "IS", "NM", "SI", "ST", "TM", "TN", "TX", "SNM", "TS", "CM", "varies",
    "VR",
];

/// What was renamed from version to version, each line one family.
const FAMILIES: [&[&str]; 12] = [
    &["CWE", "CE", "CNE", "CF", "IS", "ID", "ST", "CM"],
    &["XPN", "PN", "ST"],
    &["XCN", "CN", "CNN", "PPN", "NDL"],
    &["XAD", "AD", "SAD"],
    &["XTN", "TN", "ST"],
    &["XON", "ST", "CX"],
    &["DTM", "TS", "DT", "DR"],
    &["CX", "CK", "ST", "EI", "SI", "NM"],
    &["EI", "CM", "ST", "EIP", "CX"],
    &["PL", "CM", "ID", "IS"],
    &["OG", "ST"],
    &["FN", "ST"],
];

/// Whether two types are one that was renamed or extended from version to version.
pub(super) fn are_kin(one: &str, other: &str) -> bool {
    FAMILIES.iter().any(|family| family.contains(&one) && family.contains(&other))
}

impl Types {
    /// The types of one name; `None` if there is no such type.
    pub(super) fn named(name: &str) -> Option<Types> {
        if name == "varies" {
            return Some(Types::default());
        }
        let known = types()
            .get_key_value(name)
            .map(|(known, _)| *known)
            .or_else(|| PRIMITIVES.into_iter().find(|known| *known == name))?;
        Some(Types(vec![known]))
    }

    /// Whether a path that begins with this type may be meant.
    pub(super) fn may_be(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.contains(&name)
    }

    /// Whether a map of that type may be called on what stands here: the type itself, one of its family, or a primitive,
    /// which is its own first component.
    pub(super) fn fits(&self, name: &str) -> bool {
        self.may_be(name)
            || PRIMITIVES.contains(&name)
            || self.0.iter().any(|known| PRIMITIVES.contains(known) || are_kin(known, name))
    }

    /// The types of a part, counted from 1. `Err` holds how many parts there are.
    pub(super) fn part(&self, number: u16) -> Result<Types, usize> {
        let mut found = Types::default();
        let mut most = 0;
        let mut primitive = true;
        for name in &self.0 {
            if *name == "varies" || *name == "CM" {
                return Ok(Types::default());
            }
            let Some(parts) = types().get(name) else {
                most = most.max(1);
                continue;
            };
            primitive = false;
            most = most.max(parts.len());
            for name in parts.get(usize::from(number).wrapping_sub(1)).into_iter().flat_map(|types| &types.0)
            {
                found.add(name);
            }
        }
        if self.0.is_empty() || !found.0.is_empty() || (primitive && number == 1) {
            return Ok(found);
        }
        Err(most)
    }

    fn add(&mut self, name: &'static str) {
        if !self.0.contains(&name) {
            self.0.push(name);
        }
    }
}

/// The types of a field over the versions. `Err` holds how many fields there are; 0 if there is no such segment.
pub(super) fn field(segment: &str, number: u16) -> Result<Types, usize> {
    if segment.starts_with('Z') {
        return Ok(Types::default());
    }
    let fields = segments().get(segment).ok_or(0usize)?;
    match fields.get(usize::from(number).wrapping_sub(1)) {
        Some(found) if found.0.contains(&"varies") => Ok(Types::default()),
        Some(found) => Ok(found.clone()),
        None => Err(fields.len()),
    }
}

/// Whether there is a segment of this name in any version, or whether a site may declare it.
pub(super) fn is_segment(name: &str) -> bool {
    name.starts_with('Z') || segments().contains_key(name)
}

/// In order.
pub(super) fn segment_names() -> impl Iterator<Item = &'static str> {
    segments().keys().copied()
}

/// In order, those without components among them.
pub(super) fn type_names() -> impl Iterator<Item = &'static str> {
    let mut names: Vec<_> = types().keys().copied().chain(PRIMITIVES).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter()
}

/// Of each name the types of its fields or components, in their order, over the versions.
type Over = BTreeMap<&'static str, Vec<Types>>;

fn segments() -> &'static Over {
    static SEGMENTS: OnceLock<Over> = OnceLock::new();
    SEGMENTS.get_or_init(|| over(Version::ALL.iter().flat_map(|version| definitions(*version).segments())))
}

/// Those that have components in some version.
fn types() -> &'static Over {
    static TYPES: OnceLock<Over> = OnceLock::new();
    TYPES.get_or_init(|| over(Version::ALL.iter().flat_map(|version| definitions(*version).datatypes())))
}

fn over(defs: impl Iterator<Item = &'static SegmentDef>) -> Over {
    let mut over = Over::new();
    for def in defs {
        let fields = over.entry(def.name).or_default();
        fields.resize(fields.len().max(def.fields.len()), Types::default());
        fields.iter_mut().zip(&def.fields).for_each(|(types, field)| types.add(field.datatype));
    }
    over
}
