//! What the definitions say about an element that is written: of FHIR R4, or of HL7 v2 where that is written back.

use schemas::fhir::{Kind, r4};
use schemas::hl7v2::definitions::{FieldDef, SegmentDef, Version, definitions};
use std::collections::HashMap;
use std::sync::LazyLock;

/// An element of a type.
#[derive(Clone, Debug)]
pub(crate) struct Element {
    /// `Patient.name`, for messages.
    pub(crate) path: String,
    pub(crate) types: Vec<&'static str>,
    pub(crate) many: bool,
    pub(crate) required: bool,
    pub(crate) choice: bool,
}

/// By which version HL7 v2 is written: what is said of the fields that senders use differs little from one to the next.
const WRITTEN: Version = Version::V2_5_1;

/// A segment or a data type of HL7 v2, and what stands between its name and the number of a part.
fn hl7v2(name: &str) -> Option<(&'static SegmentDef, char)> {
    let written = definitions(WRITTEN);
    written.segment(name).map(|def| (def, '-')).or_else(|| Some((written.datatype(name)?, '.')))
}

/// The part of a segment or a data type that a name such as `PID-3` or `CX.4` means.
fn hl7v2_part(parent: &str, name: &str) -> Option<(&'static FieldDef, char)> {
    let (def, sign) = hl7v2(parent)?;
    let number = name.strip_prefix(parent)?.strip_prefix(sign)?.parse().ok()?;
    Some((def.field(number)?, sign))
}

/// A segment that can be written.
pub(crate) fn segment(name: &str) -> Option<&'static str> {
    definitions(WRITTEN).segment(name).map(|def| def.name)
}

/// Every segment that can be written.
pub(crate) fn segment_names() -> impl Iterator<Item = &'static str> {
    definitions(WRITTEN).segments().map(|def| def.name)
}

/// The segments of a message structure; `None` if there is no such structure.
pub(crate) fn segments_of(structure: &str) -> Option<Vec<&'static str>> {
    let structure = definitions(WRITTEN).structure(structure)?;
    Some(structure.nodes.iter().map(|node| node.segment).filter(|segment| !segment.is_empty()).collect())
}

/// The names of all message structures that can be written.
pub(crate) fn structure_names() -> impl Iterator<Item = &'static str> {
    definitions(WRITTEN).structure_names()
}

/// The element of a type or part (`Encounter.participant`) that a name means; a choice stands with its `[x]`. Of HL7 v2 `PID-3` or `CX.4`.
pub(crate) fn element(parent: &str, name: &str) -> Option<Element> {
    if let Some((field, sign)) = hl7v2_part(parent, name) {
        return Some(Element {
            path: name.to_owned(),
            types: vec![field.datatype],
            many: sign == '-' && field.repetitions != Some(1),
            required: false,
            choice: false,
        });
    }
    let def = r4().children(parent).find(|def| def.is_path_name(name))?;
    Some(Element {
        path: format!("{parent}.{name}"),
        types: def.types.iter().map(|of| of.name).collect(),
        many: def.repeats,
        required: def.required,
        choice: def.choice,
    })
}

/// The names of the elements of a type.
pub(crate) fn names(parent: &str) -> Vec<String> {
    match hl7v2(parent) {
        Some((def, sign)) => {
            def.fields.iter().map(|field| format!("{parent}{sign}{}", field.number)).collect()
        }
        None => r4().children(parent).map(|def| def.path_name()).collect(),
    }
}

/// The elements without which a type is not valid.
pub(crate) fn required(parent: &str) -> Vec<String> {
    r4().children(parent).filter(|def| def.required).map(|def| def.path_name()).collect()
}

/// The same, as name and whether it is a choice.
pub(crate) fn required_elements(resource: &str) -> &'static [(&'static str, bool)] {
    static REQUIRED: LazyLock<HashMap<&str, Vec<(&str, bool)>>> = LazyLock::new(|| {
        let of = |name| {
            let required = r4().children(name).filter(|def| def.required);
            (name, required.map(|def| (def.name, def.choice)).collect())
        };
        resource_names().map(of).collect()
    });
    REQUIRED.get(resource).map_or(&[], Vec::as_slice)
}

/// The codes of a required binding.
pub(crate) fn required_codes(path: &str) -> Option<Vec<&'static str>> {
    let element = r4().element(path)?;
    Some(r4().codes(element.def)?.codes().collect())
}

/// The name of a resource type.
pub(crate) fn resource(name: &str) -> Option<&'static str> {
    r4().type_def(name).filter(|of| of.kind == Kind::Resource).map(|of| of.name)
}

/// Every resource type.
pub(crate) fn resource_names() -> impl Iterator<Item = &'static str> {
    r4().types().filter(|of| of.kind == Kind::Resource).map(|of| of.name)
}

/// Every data type.
pub(crate) fn type_names() -> impl Iterator<Item = &'static str> {
    r4().types().filter(|of| matches!(of.kind, Kind::DataType | Kind::Primitive)).map(|of| of.name)
}

/// The name of a data type, or of a segment of HL7 v2.
pub(crate) fn data_type(name: &str) -> Option<&'static str> {
    if let Some((def, _)) = hl7v2(name) {
        return Some(def.name);
    }
    r4().type_def(name).filter(|of| matches!(of.kind, Kind::DataType | Kind::Primitive)).map(|of| of.name)
}

/// The types of the value of an extension: all that FHIR has.
pub(crate) fn extension_types() -> Vec<&'static str> {
    element("Extension", "value[x]").map_or_else(Vec::new, |element| element.types)
}

/// The type in the JSON name of a choice element: `String` for `string`.
pub(crate) fn suffix(ty: &'static str) -> &'static str {
    match ty {
        "base64Binary" => "Base64Binary",
        "boolean" => "Boolean",
        "canonical" => "Canonical",
        "code" => "Code",
        "date" => "Date",
        "dateTime" => "DateTime",
        "decimal" => "Decimal",
        "id" => "Id",
        "instant" => "Instant",
        "integer" => "Integer",
        "markdown" => "Markdown",
        "oid" => "Oid",
        "positiveInt" => "PositiveInt",
        "string" => "String",
        "time" => "Time",
        "unsignedInt" => "UnsignedInt",
        "uri" => "Uri",
        "url" => "Url",
        "uuid" => "Uuid",
        _ => ty,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_a_choice_has_its_name_in_json() {
        for ty in extension_types() {
            let def = r4().element("Extension.value[x]").expect("an element");
            let of = def.types.iter().find(|of| of.name == ty).expect("one of its types");
            assert_eq!(format!("value{}", suffix(ty)), def.def.json_name(of));
        }
    }

    #[test]
    fn parts_of_a_resource_are_types_of_their_own() {
        let participant = element("Encounter", "participant").expect("an element");
        assert_eq!(
            (participant.types.as_slice(), participant.many),
            (["Encounter.participant"].as_slice(), true)
        );
        assert!(element("Encounter.participant", "individual").is_some());
        assert!(element("Observation", "value").is_none() && element("Observation", "value[x]").is_some());
        assert_eq!(required("Encounter"), ["status", "class"]);
    }
}
