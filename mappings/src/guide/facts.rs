//! Pairs of a v2 path and a FHIR element that the lineage of tests has.

use super::Kind;
use super::rows::Row;
use super::target::{Aim, aims};
use crate::lineage::{Fate, Lineage, Origin};
use schemas::fhir::r4;
use schemas::hl7v2::definitions::{Version, definitions};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// One pair.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Fact {
    /// Message code and trigger event.
    event: Arc<str>,
    /// The segment's place in the structure.
    place: Arc<str>,
    /// Field, component and subcomponent; zeros where the segment as a whole is the reason.
    at: [u32; 3],
    /// The data types of the field and of the component.
    types: [Option<String>; 2],
    resource: String,
    /// Without indexes, and without the underscore of what stands beside a primitive.
    path: Vec<String>,
    urls: Vec<String>,
}

/// Every pair, by the segment's name.
pub(super) struct Facts {
    by_segment: HashMap<String, Vec<Fact>>,
    /// The types of the elements on the way down a path, by resource type and path.
    types: HashMap<(String, Vec<String>), Vec<Option<&'static str>>>,
}

impl Facts {
    /// The pairs of some messages.
    pub(super) fn of(lineages: &[Lineage]) -> Facts {
        let mut all = HashSet::new();
        for lineage in lineages {
            let event: Arc<str> = Arc::from(&*lineage.event);
            for origin in &lineage.elements {
                let leaves = if origin.sources.is_empty() { &origin.because } else { &origin.sources };
                for leaf in leaves {
                    all.extend(fact(&event, origin, &lineage.fields[*leaf]));
                }
                if let Some(place) = &origin.segment {
                    all.insert(Fact {
                        event: event.clone(),
                        place: place.clone(),
                        at: [0; 3],
                        types: [None, None],
                        resource: origin.resource_type.clone(),
                        path: plain(&origin.path),
                        urls: origin.urls.clone(),
                    });
                }
            }
        }
        let (mut by_segment, mut types) = (HashMap::<String, Vec<Fact>>::new(), HashMap::new());
        for fact in all {
            let key = (fact.resource.clone(), fact.path.clone());
            types.entry(key).or_insert_with_key(|(resource, path)| types_on(resource, path));
            by_segment.entry(segment_of(&fact.place).to_owned()).or_default().push(fact);
        }
        Facts { by_segment, types }
    }

    /// Whether the pair of a row is among them. `reads`: its target.
    pub(super) fn show(&self, row: &Row, reads: &str) -> bool {
        let aims = aims(reads);
        let Some(aim) = aims.last() else { return false };
        let url = if reads == row.target { row.url() } else { None };
        match row.kind {
            Kind::Message => {
                // The first word is the type of a resource.
                let (resource, path) = match &aim.resource {
                    Some(resource) => (resource.as_str(), aim.path.as_str()),
                    None => aim.path.split_once('.').unwrap_or((&aim.path, "")),
                };
                let segment = row.source.rsplit('.').next().unwrap_or_default();
                self.about(segment).any(|fact| {
                    stands(&fact.place, &fact.event, &row.source)
                        && fact.resource == resource
                        && below(&fact.path, path)
                })
            }
            Kind::Segment => {
                let Some((segment, base)) = split(&row.map) else { return false };
                let resource = aim.resource.as_deref().unwrap_or(base);
                let Some(at) = place_in(&row.source, segment, '-') else { return false };
                let path = if aim.path == "$this" { "" } else { &aim.path };
                self.about(segment).any(|fact| {
                    fact.is_at(at)
                        && (fact.resource == resource || (aim.path == "$this" && row.source.contains('-')))
                        && below(&fact.path, path)
                        && has_url(fact, url)
                })
            }
            Kind::DataType => {
                let Some((name, base)) = split(&row.map) else { return false };
                let Some(at) = place_in(&row.source, name, '.') else { return false };
                let all = self.by_segment.values().flatten();
                all.filter(|fact| fact.is_part(name, at))
                    .any(|fact| self.is_target(fact, aim, base) && has_url(fact, url))
            }
            Kind::Table => false,
        }
    }

    fn about(&self, segment: &str) -> impl Iterator<Item = &Fact> {
        self.by_segment.get(segment).into_iter().flatten()
    }

    /// Whether a pair's element is the one of a data type's map.
    fn is_target(&self, fact: &Fact, aim: &Aim, base: &str) -> bool {
        if let Some(resource) = &aim.resource {
            return fact.resource == *resource && below(&fact.path, &aim.path);
        }
        let path = aim.path.strip_prefix(base).map_or(&*aim.path, |path| path.trim_start_matches('.'));
        let path = if path.starts_with('$') { "" } else { path };
        if r4().is_resource(base) {
            return fact.resource == base && below(&fact.path, path);
        }
        let types = self.types.get(&(fact.resource.clone(), fact.path.clone()));
        let types = types.into_iter().flatten().zip(1..);
        types.filter(|(of, _)| of.is_some_and(|of| of.eq_ignore_ascii_case(base))).any(|(_, depth)| {
            let rest = &fact.path[depth..];
            if path.is_empty() { rest.is_empty() || !aim.path.starts_with('$') } else { below(rest, path) }
        })
    }
}

impl Fact {
    /// Whether it is about this field, or a part of it; zeros stand for anything.
    fn is_at(&self, at: [u32; 3]) -> bool {
        at.iter().zip(self.at).all(|(wanted, found)| *wanted == 0 || *wanted == found)
    }

    /// Whether it is about this part of a data type.
    fn is_part(&self, name: &str, [part, inner, _]: [u32; 3]) -> bool {
        let is = |of: &Option<String>| of.as_deref().is_some_and(|of| same_type(of, name));
        let [_, component, subcomponent] = self.at;
        let fits = |wanted: u32, found: u32| wanted == 0 || wanted == found;
        (is(&self.types[0]) && fits(part, component.max(1)) && fits(inner, subcomponent.max(1)))
            || (is(&self.types[1]) && fits(part, subcomponent.max(1)))
    }
}

/// `None` for what is no HL7 v2.
fn fact(event: &Arc<str>, origin: &Origin, fate: &Fate) -> Option<Fact> {
    let at = fate.at?;
    Some(Fact {
        event: event.clone(),
        place: fate.place.clone(),
        at: [at.field.into(), at.component.max(1), at.subcomponent.max(1).into()],
        types: fate.types.clone(),
        resource: origin.resource_type.clone(),
        path: plain(&origin.path),
        urls: origin.urls.clone(),
    })
}

/// The steps of a path without indexes and underscores.
fn plain(path: &str) -> Vec<String> {
    let name = |step: &str| step.split('[').next().unwrap_or_default().trim_start_matches('_').to_owned();
    path.split('.').map(name).collect()
}

/// The types of the elements on the way down.
fn types_on(resource: &str, path: &[String]) -> Vec<Option<&'static str>> {
    (1..=path.len())
        .map(|depth| {
            let path = format!("{resource}.{}", path[..depth].join("."));
            r4().element(&path).and_then(|element| element.only_type()).map(|of| of.name)
        })
        .collect()
}

/// `XPN[HumanName]` is of XPN and HumanName; what follows a hyphen only tells maps apart.
fn split(map: &str) -> Option<(&str, &str)> {
    let (name, rest) = map.split_once('[')?;
    let base = rest.split(']').next()?;
    Some((name.trim(), base.split('-').next()?))
}

/// `PID-5.1` after `PID` and `-`; zeros for what is not said.
fn place_in(source: &str, name: &str, separator: char) -> Option<[u32; 3]> {
    let mut at = [0; 3];
    // The maps of CF name the components after CWE.
    // One map writes FT-1 for FT.1.
    let split = source.split_once(separator).or_else(|| source.split_once(['-', '.']));
    let rest = match split {
        Some((_, rest)) => rest,
        None if source.is_empty() || source == name => return Some(at),
        None => return None,
    };
    for (at, number) in at.iter_mut().zip(rest.split('.')) {
        *at = number.trim().parse().ok()?;
    }
    Some(at)
}

/// Whether a path begins so. The last step may leave the type of a choice open.
fn below(path: &[String], beginning: &str) -> bool {
    if beginning.is_empty() {
        return true;
    }
    let wanted: Vec<&str> = beginning.split('.').collect();
    path.len() >= wanted.len()
        && path.iter().zip(&wanted).enumerate().all(|(index, (step, name))| {
            step == name
                || (index + 1 == wanted.len()
                    && step.strip_prefix(name).is_some_and(|of| of.starts_with(char::is_uppercase)))
        })
}

/// Older versions have other names for some types.
fn same_type(a: &str, b: &str) -> bool {
    let newer = |name: &str| if name == "TS" { "DTM".to_owned() } else { name.to_ascii_uppercase() };
    newer(a) == newer(b)
}

/// Whether a pair stands in the extension that a row names.
fn has_url(fact: &Fact, url: Option<&str>) -> bool {
    url.is_none_or(|url| fact.urls.iter().any(|known| known == url))
}

/// The name of the segment at a place: `ADT_A01.ROL_PID` is a ROL.
fn segment_of(place: &str) -> &str {
    let name = place.rsplit('.').next().unwrap_or_default();
    name.split('_').next().unwrap_or_default()
}

/// Whether a place in our structures is the one that the guide names: the same structure and segment, and the guide's groups on
/// the way. `ADT_A01:follow:PID.ROL` is the ROL after the PID. A structure that HL7 does not have (ADT_A11) is named after its event.
fn stands(place: &str, event: &str, guide: &str) -> bool {
    let mut own: Vec<&str> = place.split('.').collect();
    let mut names: Vec<&str> = guide.split('.').collect();
    let (Some(own_last), Some(last)) = (own.pop(), names.pop()) else { return false };
    let (structure, follows) = match names.first().and_then(|first| first.split_once(":follow:")) {
        Some((structure, follows)) => (structure, Some(follows)),
        None => (names.first().copied().unwrap_or_default(), None),
    };
    let (own_name, own_rest) =
        own_last.split_once('_').map_or((own_last, None), |(name, rest)| (name, Some(rest)));
    let position = match (follows, own_rest) {
        (Some(follows), Some(rest)) => rest == follows,
        (Some(_), None) => true,
        (None, _) => true,
    };
    if own_name != last
        || !position
        || (own.first() != Some(&structure) && (known(structure) || event != structure))
    {
        return false;
    }
    let mut own = own.iter().skip(1);
    // Groups that the guide draws and HL7's structure has not (NEXT_OF_KIN of ADT_A01) are no places.
    let named = names.iter().skip(1).filter(|name| has_group(structure, name));
    named.into_iter().all(|name| own.any(|known| known == name))
}

/// Whether a structure has a group of this name, in any version.
fn has_group(structure: &str, name: &str) -> bool {
    Version::ALL
        .iter()
        .filter_map(|version| definitions(*version).structure(structure))
        .any(|structure| structure.groups().any(|(path, _)| path.rsplit('.').next() == Some(name)))
}

/// Whether HL7 has a message structure of this name.
fn known(structure: &str) -> bool {
    Version::ALL.iter().any(|version| definitions(*version).structure(structure).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_found_by_the_guide_s_name() {
        for (place, guide, expected) in [
            ("ADT_A01.PID", "ADT_A01.PID", true),
            ("ADT_A02.PID", "ADT_A01.PID", false),
            ("ADT_A09.PID", "ADT_A11.PID", true),
            ("ADT_A09.PID", "ADT_A01.PID", false),
            ("ADT_A01.ROL_PID", "ADT_A01:follow:PID.ROL", true),
            ("ADT_A01.ROL_PV1", "ADT_A01:follow:PID.ROL", false),
            ("ADT_A17.PID_2", "ADT_A17.PID", true),
            (
                "ORU_R01.PATIENT_RESULT.ORDER_OBSERVATION.ORC",
                "ORU_R01.PATIENT_RESULT.ORDER_OBSERVATION.COMMON_ORDER.ORC",
                false,
            ),
            ("ORU_R01.PATIENT_RESULT.PATIENT.PID", "ORU_R01.PATIENT_RESULT.PATIENT.PID", true),
            ("ORM_O01.ORDER.ORDER_DETAIL.OBR", "ORM_O01.ORDER_DETAIL.CHOICE.OBR", true),
        ] {
            assert_eq!(stands(place, "ADT_A11", guide), expected, "{place} {guide}");
        }
    }

    #[test]
    fn a_path_begins_with_another() {
        let path = plain("name[0].given[1]");
        assert!(below(&path, "name") && below(&path, "name.given") && !below(&path, "name.family"));
        assert!(
            below(&plain("valueQuantity.unit"), "value") && !below(&plain("valueQuantity.unit"), "val.unit")
        );
        assert!(!below(&plain("status"), "stat"));
        assert_eq!(plain("_birthDate.extension[0].url"), ["birthDate", "extension", "url"]);
    }
}
