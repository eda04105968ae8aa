//! Code tables: FHIR ConceptMaps, read once into sorted lists.

use schemas::yaml::{Mistake, Place};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::HashMap;

/// One ConceptMap, ready to look codes up in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// The canonical name of the map, or of its file.
    pub(crate) name: String,
    /// The table of HL7 v2 that it translates, such as `HL70203`.
    pub(crate) of_v2: Option<String>,
    targets: HashMap<String, Option<Target>>,
    fallback: Option<Fallback>,
}

/// What HL7 calls the tables of HL7 v2, before their numbers.
const V2_TABLE: &str = "http://terminology.hl7.org/CodeSystem/v2-";

/// A code of the target system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) system: String,
    pub(crate) code: String,
    pub(crate) display: Option<String>,
}

#[derive(Clone, Debug)]
enum Fallback {
    Fixed(Target),
    /// The source code passes under the target's system.
    Provided(String),
}

/// What a table says about a code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer<'t> {
    /// The code has a target.
    Mapped(Cow<'t, Target>),
    /// The table knows the code and says that it has no target.
    Unmatched,
    /// The table does not know the code.
    Unmapped,
}

impl Table {
    /// What the table says about a code.
    pub(crate) fn look_up(&self, code: &str) -> Answer<'_> {
        match self.targets.get(code.trim()) {
            Some(Some(target)) => Answer::Mapped(Cow::Borrowed(target)),
            Some(None) => Answer::Unmatched,
            None => match &self.fallback {
                Some(Fallback::Fixed(target)) => Answer::Mapped(Cow::Borrowed(target)),
                Some(Fallback::Provided(system)) => Answer::Mapped(Cow::Owned(Target {
                    system: system.clone(),
                    code: code.trim().to_owned(),
                    display: None,
                })),
                None => Answer::Unmapped,
            },
        }
    }

    /// Its name without the sender whose own it is.
    pub(crate) fn short_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }

    /// Every target code, to check them against a binding.
    pub(crate) fn target_codes(&self) -> impl Iterator<Item = &Target> {
        self.targets.values().flatten()
    }

    /// Whether a code that the table does not know passes as it is.
    pub(crate) fn passes_unknown_codes(&self) -> bool {
        matches!(self.fallback, Some(Fallback::Provided(_)))
    }

    /// Reads a ConceptMap.
    ///
    /// # Errors
    /// The place where the JSON is no ConceptMap, or what it uses that the engine does not take.
    pub(crate) fn read(name: &str, json: &str) -> Result<Table, Mistake> {
        let wrong =
            |line, column, text: String| Mistake { place: Place { line, column }, key: String::new(), text };
        let map: ConceptMap = serde_json::from_str(json)
            .map_err(|error| wrong(error.line(), error.column(), format!("no FHIR ConceptMap: {error}")))?;
        if map.resource_type != "ConceptMap" {
            return Err(wrong(1, 1, format!("expected a ConceptMap, found a {}", map.resource_type)));
        }
        let mut table = Table { name: name.to_owned(), ..Table::default() };
        for group in map.group {
            let v2 = group.source.as_deref().and_then(|source| source.strip_prefix(V2_TABLE));
            table.of_v2 = table.of_v2.or_else(|| v2.map(|number| format!("HL7{number}")));
            let system = group.target.unwrap_or_default();
            for element in group.element {
                let Some(code) = element.code else { continue };
                let target = element.target.into_iter().find_map(|target| {
                    let none = matches!(target.equivalence.as_deref(), Some("unmatched" | "disjoint"));
                    let code = target.code.filter(|_| !none)?;
                    Some(Target { system: system.clone(), code, display: target.display })
                });
                table.targets.entry(code).or_insert(target);
            }
            match group.unmapped {
                None => {}
                Some(Unmapped { mode, code: Some(code), display }) if mode == "fixed" => {
                    table.fallback = Some(Fallback::Fixed(Target { system, code, display }));
                }
                Some(Unmapped { mode, .. }) if mode == "provided" => {
                    table.fallback = Some(Fallback::Provided(system));
                }
                Some(_) => {
                    return Err(wrong(
                        1,
                        1,
                        "group.unmapped: expected mode `fixed` with a code, or `provided`".into(),
                    ));
                }
            }
        }
        Ok(table)
    }
}

#[derive(Deserialize)]
struct ConceptMap {
    #[serde(rename = "resourceType")]
    resource_type: String,
    #[serde(default)]
    group: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    source: Option<String>,
    target: Option<String>,
    #[serde(default)]
    element: Vec<Source>,
    unmapped: Option<Unmapped>,
}

#[derive(Deserialize)]
struct Source {
    code: Option<String>,
    #[serde(default)]
    target: Vec<Destination>,
}

#[derive(Deserialize)]
struct Destination {
    code: Option<String>,
    display: Option<String>,
    equivalence: Option<String>,
}

#[derive(Deserialize)]
struct Unmapped {
    mode: String,
    code: Option<String>,
    display: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEX: &str = r#"{"resourceType": "ConceptMap", "status": "active", "group": [{
        "source": "http://terminology.hl7.org/CodeSystem/v2-0001", "target": "http://hl7.org/fhir/administrative-gender",
        "element": [
            {"code": "F", "target": [{"code": "female", "equivalence": "equivalent"}]},
            {"code": "N", "target": [{"equivalence": "unmatched"}]},
            {"code": "A"}]}]}"#;

    #[test]
    fn a_table_tells_no_target_from_an_unknown_code() {
        let table = Table::read("sex", SEX).expect("a table");
        assert!(matches!(table.look_up(" F "), Answer::Mapped(target) if target.code == "female"));
        assert_eq!(table.look_up("N"), Answer::Unmatched);
        assert_eq!(table.look_up("A"), Answer::Unmatched);
        assert_eq!(table.look_up("Z"), Answer::Unmapped);
        assert_eq!(table.look_up("f"), Answer::Unmapped);
    }

    #[test]
    fn what_is_no_table_is_refused_with_its_place() {
        assert_eq!(Table::read("x", "{\n\"group\": 1}").expect_err("no table").place.line, 2);
        assert!(Table::read("x", r#"{"resourceType": "Patient"}"#).is_err());
        let other = SEX.replace("]}]}", r#"], "unmapped": {"mode": "other-map", "url": "x"}}]}"#);
        assert!(Table::read("x", &other).is_err());
    }
}
