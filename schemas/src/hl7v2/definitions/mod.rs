//! The HL7 v2 definitions of every version from 2.1 to 2.8.2: segments, data types, message structures.
//!
//! Generated data under `schemas/hl7v2/` (see SOURCE.md there), read once per version and kept for the life of the
//! process: [`definitions`] answers `&'static`. Nothing here judges a message; it says what the standard says.

mod fields;
mod structure;

pub use fields::{FieldDef, SegmentDef, Usage};
pub use structure::{Node, NodeId, Structure};

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

/// A version of HL7 v2, in the order of publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 2.1, 1990.
    V2_1,
    /// 2.2, 1994.
    V2_2,
    /// 2.3, 1997.
    V2_3,
    /// 2.3.1, 1999.
    V2_3_1,
    /// 2.4, 2000.
    V2_4,
    /// 2.5, 2003.
    V2_5,
    /// 2.5.1, 2007.
    V2_5_1,
    /// 2.6, 2007.
    V2_6,
    /// 2.7, 2011.
    V2_7,
    /// 2.7.1, 2012.
    V2_7_1,
    /// 2.8, 2014.
    V2_8,
    /// 2.8.1, 2014.
    V2_8_1,
    /// 2.8.2, 2015.
    V2_8_2,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Version; 13] = [
        Version::V2_1,
        Version::V2_2,
        Version::V2_3,
        Version::V2_3_1,
        Version::V2_4,
        Version::V2_5,
        Version::V2_5_1,
        Version::V2_6,
        Version::V2_7,
        Version::V2_7_1,
        Version::V2_8,
        Version::V2_8_1,
        Version::V2_8_2,
    ];

    /// As MSH-12.1 writes it, such as `2.5.1`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Version::V2_1 => "2.1",
            Version::V2_2 => "2.2",
            Version::V2_3 => "2.3",
            Version::V2_3_1 => "2.3.1",
            Version::V2_4 => "2.4",
            Version::V2_5 => "2.5",
            Version::V2_5_1 => "2.5.1",
            Version::V2_6 => "2.6",
            Version::V2_7 => "2.7",
            Version::V2_7_1 => "2.7.1",
            Version::V2_8 => "2.8",
            Version::V2_8_1 => "2.8.1",
            Version::V2_8_2 => "2.8.2",
        }
    }

    /// Reads MSH-12.1 exactly; `None` for a version that is not one of these.
    pub fn parse(text: &str) -> Option<Version> {
        Version::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// The version by which to read a message whose MSH-12.1 is this text: itself, else the newest published one that
    /// does not come after it (`2.3.2` reads as 2.3.1, `2.9` as 2.8.2), else 2.5.1, which most senders mean.
    pub fn nearest(text: &str) -> Version {
        let text = text.trim();
        if let Some(version) = Version::parse(text) {
            return version;
        }
        let numbers = |text: &str| text.split('.').map(str::parse::<u32>).collect::<Result<Vec<_>, _>>().ok();
        let Some(wanted) = numbers(text).filter(|numbers| numbers.first() == Some(&2)) else {
            return Version::V2_5_1;
        };
        let published = |version: &Version| numbers(version.as_str()).is_some_and(|known| known <= wanted);
        Version::ALL.into_iter().rev().find(published).unwrap_or(Version::V2_1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A span of versions in the data, such as `2.3-2.5.1` or `2.4`.
fn spans(span: &str, version: Version) -> bool {
    let (first, last) = span.split_once('-').unwrap_or((span, span));
    let at = |text| Version::parse(text).expect("generate.py writes published versions");
    (at(first)..=at(last)).contains(&version)
}

/// What one version of the standard defines.
#[derive(Debug)]
pub struct Definitions {
    /// The version.
    pub version: Version,
    segments: HashMap<&'static str, SegmentDef>,
    datatypes: HashMap<&'static str, SegmentDef>,
    structures: structure::Index,
}

/// The definitions of a version. The first call for a version reads them (about a millisecond).
pub fn definitions(version: Version) -> &'static Definitions {
    static READ: [OnceLock<Definitions>; Version::ALL.len()] =
        [const { OnceLock::new() }; Version::ALL.len()];
    READ[version as usize].get_or_init(|| Definitions {
        version,
        segments: fields::read(include_str!("../../../hl7v2/segments.txt"), version),
        datatypes: fields::read(include_str!("../../../hl7v2/datatypes.txt"), version),
        structures: structure::Index::read(include_str!("../../../hl7v2/structures.txt"), version),
    })
}

impl Definitions {
    /// A segment such as `PID`; `None` when this version has none of that name (a Z segment, say).
    pub fn segment(&self, name: &str) -> Option<&SegmentDef> {
        self.segments.get(name)
    }

    /// Every segment, in no order.
    pub fn segments(&self) -> impl Iterator<Item = &SegmentDef> {
        self.segments.values()
    }

    /// The components of a data type such as `CX`; `None` for a primitive one (`ST`), for `varies`, and for a name
    /// that this version does not know.
    pub fn datatype(&self, name: &str) -> Option<&SegmentDef> {
        self.datatypes.get(name)
    }

    /// Every data type with components, in no order.
    pub fn datatypes(&self) -> impl Iterator<Item = &SegmentDef> {
        self.datatypes.values()
    }

    /// A message structure by the name in MSH-9.3, such as `ORU_R01`.
    pub fn structure(&self, name: &str) -> Option<&Structure> {
        self.structures.get(name)
    }

    /// The names of all structures of this version, sorted.
    pub fn structure_names(&self) -> impl Iterator<Item = &'static str> {
        self.structures.names()
    }

    /// The structure of a message type and trigger event, such as (`ADT`, `A08`), which is `ADT_A01`.
    ///
    /// An empty trigger is allowed where the type leaves no doubt (`ORU`, `ACK`, `SIU`): versions 2.1 and 2.2 wrote
    /// MSH-9 so. Where this version has no such event (`ORM^O01` in 2.8, `OML^O21` in 2.3), the nearest older version
    /// that has it answers, else the nearest newer one, because senders often run ahead of the version they name.
    pub fn structure_for(&self, code: &str, trigger: &str) -> Option<&'static Structure> {
        let at = self.version as usize;
        let older = Version::ALL[..=at].iter().rev();
        let newer = Version::ALL[at + 1..].iter();
        older.chain(newer).find_map(|version| definitions(*version).structures.of_event(code, trigger))
    }

    /// The structure of a message by its header: MSH-9.3 if it names one that this version knows, else by
    /// [`structure_for`](Self::structure_for), else MSH-9.3 as another version knows it.
    pub fn structure_of(&self, code: &str, trigger: &str, structure: &str) -> Option<&'static Structure> {
        definitions(self.version).structure(structure).or_else(|| self.structure_for(code, trigger)).or_else(
            || Version::ALL.iter().rev().find_map(|version| definitions(*version).structure(structure)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_names_itself() {
        for version in Version::ALL {
            assert_eq!(Version::parse(version.as_str()), Some(version));
            assert_eq!(Version::nearest(version.as_str()), version);
        }
    }

    #[test]
    fn an_unpublished_version_reads_as_the_one_before_it() {
        for (text, version) in [
            ("2.9", Version::V2_8_2),
            ("2.3.2", Version::V2_3_1),
            (" 2.4 ", Version::V2_4),
            ("2.0", Version::V2_1),
            ("2.5.2", Version::V2_5_1),
            ("2.10", Version::V2_8_2),
            ("2", Version::V2_1),
            ("", Version::V2_5_1),
            ("3.0", Version::V2_5_1),
            ("two", Version::V2_5_1),
        ] {
            assert_eq!(Version::nearest(text), version, "{text:?}");
        }
    }

    /// Spot checks of what the standard's own tables say, over the versions where it changed.
    #[test]
    fn fields_are_what_the_standard_says() {
        let check = |version, path: &str, expected: &str| {
            let (segment, number) = path.split_once('-').expect("a path with a field");
            let field = definitions(version)
                .segment(segment)
                .and_then(|segment| segment.field(number.parse().expect("a number")))
                .map(|f| {
                    format!("{} {:?} {:?} {:?} {:?}", f.datatype, f.usage, f.repetitions, f.table, f.name)
                });
            assert_eq!(field.as_deref(), Some(expected), "{path} in {version}");
        };
        check(Version::V2_5_1, "PID-3", r#"CX Required None None "Patient identifier list""#);
        check(Version::V2_5_1, "PID-8", r#"IS Optional Some(1) Some(1) "Administrative sex""#);
        check(Version::V2_7, "PID-8", r#"CWE Optional Some(1) Some(1) "Administrative sex""#);
        check(Version::V2_1, "PID-5", r#"PN Required Some(1) None "Patient name""#);
        check(Version::V2_4, "PID-7", r#"TS Optional Some(1) None "Date time of birth""#);
        check(Version::V2_6, "PID-7", r#"DTM Optional Some(1) None "Date time of birth""#);
        check(Version::V2_8, "PID-2", r#"CX Withdrawn Some(1) None "Patient id""#);
        check(Version::V2_5, "OBX-5", r#"varies Optional None None "Observation value""#);
        check(Version::V2_5_1, "OBX-23", r#"XON Optional None None "Performing organization name""#);
        check(Version::V2_5_1, "MSH-9", r#"MSG Required Some(1) None "Message type""#);
        check(Version::V2_6, "DG1-7", r#"CE Withdrawn Some(1) Some(118) "Major diagnostic category""#);
        check(Version::V2_8_2, "OBX-4", r#"OG Optional Some(1) None "Observation sub id""#);
    }

    #[test]
    fn fields_are_numbered_without_gaps() {
        for version in Version::ALL {
            let known = definitions(version);
            assert!(known.segments().count() > 35, "{version}");
            for segment in known.segments().chain(known.datatypes()) {
                for (index, field) in segment.fields.iter().enumerate() {
                    assert_eq!(usize::from(field.number), index + 1, "{} in {version}", segment.name);
                    assert!(!field.datatype.is_empty() && !field.name.is_empty());
                }
            }
        }
    }

    /// A type that is not defined is a primitive one; a typo in the data would show here.
    #[test]
    fn every_type_is_defined_or_primitive() {
        let primitive = [
            "CM", "DT", "DTM", "FT", "GTS", "ID", "IS", "NM", "SI", "ST", "TM", "TN", "TS", "TX", "varies",
            "SNM",
        ];
        for version in Version::ALL {
            let known = definitions(version);
            for (owner, field) in known
                .segments()
                .chain(known.datatypes())
                .flat_map(|s| s.fields.iter().map(move |f| (s.name, f)))
            {
                // A withdrawn field keeps a type that its own version may have withdrawn too.
                let settled = field.usage == Usage::Withdrawn
                    || primitive.contains(&field.datatype)
                    || known.datatype(field.datatype).is_some();
                assert!(settled, "{owner}-{} in {version}: {}", field.number, field.datatype);
            }
        }
    }

    #[test]
    fn events_have_their_structures() {
        let check = |version: Version, event: &str, expected: &str| {
            let (code, trigger) = event.split_once('^').unwrap_or((event, ""));
            let found = definitions(version).structure_for(code, trigger).map(|s| s.name);
            assert_eq!(found, (!expected.is_empty()).then_some(expected), "{event} in {version}");
        };
        for version in Version::ALL {
            for event in ["A01", "A04", "A08", "A13"] {
                check(version, &format!("ADT^{event}"), "ADT_A01");
            }
            check(version, "ADT^A02", "ADT_A02");
            check(version, "ADT^A03", "ADT_A03");
            check(version, "ADT^A11", "ADT_A09");
            check(version, "ADT^A40", "ADT_A39");
            check(version, "ADT^A34", "ADT_A30");
            check(version, "ORU^R01", "ORU_R01");
            check(version, "ORU", "ORU_R01");
            check(version, "ORM^O01", "ORM_O01");
            check(version, "OML^O21", "OML_O21");
            check(version, "SIU^S15", "SIU_S12");
            check(version, "SIU", "SIU_S12");
            check(version, "MDM^T08", "MDM_T02");
            check(version, "ACK", "ACK");
            check(version, "ACK^A01", "ACK");
            check(version, "ADT", "");
            check(version, "ADT^Z99", "");
            check(version, "ZZZ^Z01", "");
            check(version, "", "");
        }
        check(Version::V2_3, "ADT^A31", "ADT_A01");
        check(Version::V2_5_1, "ADT^A31", "ADT_A05");
        check(Version::V2_5_1, "ADT^A28", "ADT_A05");
        check(Version::V2_5_1, "ADT^A23", "ADT_A21");
        check(Version::V2_5_1, "QBP^Q22", "QBP_Q21");
    }

    #[test]
    fn the_named_structure_wins_and_an_unknown_one_does_not_hurt() {
        let known = definitions(Version::V2_5_1);
        let name = |code, trigger, structure| known.structure_of(code, trigger, structure).map(|s| s.name);
        assert_eq!(name("ADT", "A31", "ADT_A05"), Some("ADT_A05"));
        assert_eq!(name("ADT", "A08", "ADT_A08"), Some("ADT_A01"));
        assert_eq!(name("ADT", "A08", ""), Some("ADT_A01"));
        assert_eq!(name("ZZZ", "Z01", "ORU_R01"), Some("ORU_R01"));
        assert_eq!(name("ZZZ", "Z01", "ZZZ_Z01"), None);
    }
}
