//! What the HL7 v2 definitions say about a path, over every version: a mapping serves many of them.

use schemas::hl7v2::definitions::{SegmentDef, Version, definitions};
use std::collections::HashMap;
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
        type_names().find(|known| *known == name).map(|name| Types(vec![name]))
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
        for name in &self.0 {
            if *name == "varies" || *name == "CM" {
                return Ok(Types::default());
            }
            for version in Version::ALL {
                match definitions(version).datatype(name) {
                    Some(def) => {
                        most = most.max(def.fields.len());
                        found.add(def, number);
                    }
                    None => most = most.max(1),
                }
            }
        }
        let primitive = self.0.iter().all(|name| type_of(name).is_none());
        if self.0.is_empty() || !found.0.is_empty() || (primitive && number == 1) {
            return Ok(found);
        }
        Err(most)
    }

    fn add(&mut self, def: &'static SegmentDef, number: u16) {
        if let Some(field) = def.field(number)
            && !self.0.contains(&field.datatype)
        {
            self.0.push(field.datatype);
        }
    }
}

/// The types of a field over the versions. `Err` holds how many fields there are; 0 if there is no such segment.
pub(super) fn field(segment: &str, number: u16) -> Result<Types, usize> {
    if segment.starts_with('Z') {
        return Ok(Types::default());
    }
    let mut found = Types::default();
    let mut most = 0;
    for version in Version::ALL {
        if let Some(def) = definitions(version).segment(segment) {
            most = most.max(def.fields.len());
            found.add(def, number);
        }
    }
    if found.0.contains(&"varies") {
        return Ok(Types::default());
    }
    if found.0.is_empty() { Err(most) } else { Ok(found) }
}

/// Whether there is a segment of this name in any version, or whether a site may declare it.
pub(super) fn is_segment(name: &str) -> bool {
    name.starts_with('Z') || segments().contains_key(name)
}

pub(super) fn segment_names() -> impl Iterator<Item = &'static str> {
    let mut names: Vec<_> = segments().keys().copied().collect();
    names.sort_unstable();
    names.into_iter()
}

pub(super) fn type_names() -> impl Iterator<Item = &'static str> {
    let mut names: Vec<_> = types().keys().copied().chain(PRIMITIVES).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter()
}

fn type_of(name: &str) -> Option<()> {
    types().get(name).copied()
}

fn segments() -> &'static HashMap<&'static str, ()> {
    static NAMES: OnceLock<HashMap<&'static str, ()>> = OnceLock::new();
    NAMES.get_or_init(|| {
        Version::ALL
            .iter()
            .flat_map(|version| definitions(*version).segments().map(|def| (def.name, ())))
            .collect()
    })
}

fn types() -> &'static HashMap<&'static str, ()> {
    static NAMES: OnceLock<HashMap<&'static str, ()>> = OnceLock::new();
    NAMES.get_or_init(|| {
        Version::ALL
            .iter()
            .flat_map(|version| definitions(*version).datatypes().map(|def| (def.name, ())))
            .collect()
    })
}
