//! Where every element of a Bundle comes from, and what became of every field of its message.
//!
//! Invariant: an element that is told of stands in the Bundle, at the path that is told.

use crate::catalog::Program;
use crate::given::Given;
use crate::resource::{Contributed, Fragment, SlotWrite, Write};
use crate::run::{State, Trace, Traced, shift};
use schemas::hl7v2::definitions::{Version, definitions};
use schemas::hl7v2::path::Path;
use schemas::hl7v2::{Leaf, Message};
use schemas::records::Records;
use schemas::yaml::Place;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use uuid::Uuid;

/// Where everything of one message came from and went to.
#[derive(Clone, Debug)]
pub struct Lineage {
    /// Message code and trigger event: `ADT_A11`; of a document of records the mapping's name.
    pub event: String,
    /// Every element that a rule wrote, in the order of the Bundle's entries.
    pub elements: Vec<Origin>,
    /// Every leaf of the message, in its order.
    pub fields: Vec<Fate>,
}

/// Where one element comes from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The Bundle's entry, from 0; `None` for the Bundle itself.
    pub entry: Option<usize>,
    /// The resource's type.
    pub resource_type: String,
    /// The element: `name[0].family`, indexes from 0.
    pub path: String,
    /// The URLs of the extensions on the way, the outermost first.
    pub urls: Vec<String>,
    /// The rule that wrote it, such as `pid_patient/name/legal`.
    pub rule: Arc<str>,
    /// The file of the mappings in which the rule stands.
    pub file: String,
    /// Where in that file.
    pub place: Place,
    /// The place in the structure of the segment on which its map stands: `ADT_A01.NEXT_OF_KIN.NK1`.
    pub segment: Option<Arc<str>>,
    /// The leaves whose text it carries, as numbers of [`Lineage::fields`].
    pub sources: Vec<usize>,
    /// The leaves that decided that it is written, where it carries none.
    pub because: Vec<usize>,
}

/// What became of one leaf of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// Where it stands: `PID-3.1`, `records[1].value`.
    pub path: String,
    /// The same of HL7 v2, level by level.
    pub at: Option<Path>,
    /// The place of its segment in the structure: `ORU_R01.PATIENT_RESULT.PATIENT.PID`.
    pub place: Arc<str>,
    /// The data types of its field and of its component, where the definitions or OBX-2 say them.
    pub types: [Option<String>; 2],
    /// `mapped`, `narrowed` (only a part was carried over), `selector` (it chose what to do), `looked-up` (a table has no target
    /// for it), `failed` (an issue says why), `ignored` or `unmapped`.
    pub state: &'static str,
    /// Why, where it is ignored.
    pub reason: Option<Arc<str>>,
}

impl Lineage {
    /// Puts together what a run noted.
    pub(crate) fn of(
        program: &Program,
        given: Given<'_>,
        contributions: &[Contributed],
        traced: &Traced,
        bundle: &str,
    ) -> Lineage {
        let bundle: Value = serde_json::from_str(bundle).unwrap_or_default();
        let entries: &[Value] = bundle["entry"].as_array().map_or(&[], Vec::as_slice);
        let ids = entries.iter().enumerate();
        let ids = ids.filter_map(|(entry, value)| Some((value["resource"]["id"].as_str()?, entry)));
        let ids: HashMap<&str, usize> = ids.collect();
        let mut by_slot: HashMap<(Uuid, &str), Vec<&Trace>> = HashMap::new();
        for trace in &traced.traces {
            by_slot.entry((trace.resource, trace.slot)).or_default().push(trace);
        }
        let places: Vec<Arc<str>> = traced.places.iter().map(|place| Arc::from(&**place)).collect();
        let mut elements = Vec::new();
        let of = |resource, slots, id, kind: &str, entry| Written {
            resource,
            slots,
            id,
            kind: kind.to_owned(),
            entry,
        };
        let mut written = vec![of(&bundle, traced.bundle.iter().collect(), Uuid::nil(), "Bundle", None)];
        for contribution in contributions {
            let Some(entry) = ids.get(contribution.id.to_string().as_str()) else { continue };
            let slots = contribution.slots.iter().collect();
            let kind = &contribution.resource_type;
            written.push(of(&entries[*entry]["resource"], slots, contribution.id, kind, Some(*entry)));
        }
        for Written { resource, mut slots, id, kind, entry } in written {
            slots.sort_by(|a, b| (a.order, a.name).cmp(&(b.order, b.name)));
            // How many items each list has before the slot at hand.
            let mut before: HashMap<&str, u32> = HashMap::new();
            // Single elements that are written: the first rule says them.
            let mut said: HashSet<&str> = HashSet::new();
            for slot in slots {
                let Write::Valued(fragments) = &slot.write else { continue };
                for trace in by_slot.get(&(id, slot.name)).into_iter().flatten() {
                    let Some(path) = place(fragments, &before, &said, &trace.path) else { continue };
                    let Some(urls) = urls_on(resource, &path) else { continue };
                    let leaves = |leaves: &[u32]| leaves.iter().map(|leaf| *leaf as usize).collect();
                    elements.push(Origin {
                        entry,
                        resource_type: kind.clone(),
                        path,
                        urls,
                        rule: trace.rule.clone(),
                        file: program.file(trace.at.file).to_owned(),
                        place: trace.at.place,
                        segment: trace.anchor.and_then(|segment| places.get(segment as usize).cloned()),
                        sources: leaves(&trace.leaves),
                        because: if trace.leaves.is_empty() { leaves(&trace.because) } else { Vec::new() },
                    });
                }
                for fragment in fragments.iter() {
                    if fragment.list {
                        *before.entry(&fragment.path).or_default() += fragment.items();
                    } else {
                        said.insert(without_type(&fragment.path));
                    }
                }
            }
        }
        let labels: Vec<Origin> =
            elements.iter().flat_map(|origin| labelled(origin, &bundle, entries)).collect();
        elements.extend(labels);
        elements.sort_by_key(|origin| origin.entry);
        let (event, fields) = match given {
            Given::Message(message) => {
                let header = message.header();
                let event = [header.message_code(), header.trigger()].map(Option::unwrap_or_default);
                (event.join("_"), fates(message, &places, traced))
            }
            Given::Records(records, _) => {
                (program.name().to_owned(), fates_of_records(records, &places, traced))
            }
        };
        Lineage { event, elements, fields }
    }

    /// The lineage as JSON: `elements` with the place of their rule and their sources, `fields` with their fate.
    pub fn to_json(&self) -> Value {
        let path = |leaf: &usize| self.fields[*leaf].path.clone();
        let elements: Vec<Value> = self
            .elements
            .iter()
            .map(|origin| {
                let mut one = json!({
                    "entry": origin.entry,
                    "element": format!("{}.{}", origin.resource_type, origin.path),
                    "rule": &*origin.rule,
                    "at": format!("{}:{}", origin.file, origin.place),
                });
                for (name, leaves) in [("from", &origin.sources), ("because", &origin.because)] {
                    if !leaves.is_empty() {
                        one[name] = leaves.iter().map(path).collect();
                    }
                }
                one
            })
            .collect();
        let fields: Vec<Value> = self
            .fields
            .iter()
            .map(|fate| {
                let mut one = json!({"field": fate.path, "state": fate.state});
                if let Some(reason) = &fate.reason {
                    one["reason"] = json!(&**reason);
                }
                one
            })
            .collect();
        json!({"elements": elements, "fields": fields})
    }
}

/// The labels of the Bundle are those of every resource in it, too.
fn labelled(origin: &Origin, bundle: &Value, entries: &[Value]) -> Vec<Origin> {
    let label = ["tag", "security"].into_iter().find_map(|name| {
        let (index, below) = origin.path.strip_prefix(&format!("meta.{name}["))?.split_once(']')?;
        Some((name, &bundle["meta"][name][index.parse::<usize>().ok()?], below))
    });
    let Some((name, coding, below)) = label.filter(|_| origin.entry.is_none()) else { return Vec::new() };
    let of_entry = |(entry, value): (usize, &Value)| {
        let resource = &value["resource"];
        let at = resource["meta"][name].as_array()?.iter().position(|own| own == coding)?;
        Some(Origin {
            entry: Some(entry),
            resource_type: resource["resourceType"].as_str()?.to_owned(),
            path: format!("meta.{name}[{at}]{below}"),
            ..origin.clone()
        })
    };
    entries.iter().enumerate().filter_map(of_entry).collect()
}

/// A resource of the Bundle, or the Bundle itself, with what was said of it.
struct Written<'w> {
    resource: &'w Value,
    slots: Vec<&'w SlotWrite>,
    id: Uuid,
    kind: String,
    entry: Option<usize>,
}

/// The path of an element in its resource; `None` if its slot did not come to be written there.
fn place(
    fragments: &[Fragment],
    before: &HashMap<&str, u32>,
    said: &HashSet<&str>,
    path: &str,
) -> Option<String> {
    let beside = path.strip_prefix("_.extension");
    let own =
        |fragment: &&Fragment| beside.is_some() == (is_beside(&fragment.path) || fragment.is_beside_items());
    // A slot whose own element is an extension list has one fragment, which is not beside anything.
    let fragment = fragments.iter().find(own)?;
    if !fragment.list && said.contains(without_type(&fragment.path)) {
        return None;
    }
    if fragment.is_beside_items()
        && let Some(beside) = beside
    {
        // Its items stand where those of the list do.
        let (parent, name) = fragment.path.rsplit_once('_')?;
        let at = before.get(&*[parent, name].concat()).copied().unwrap_or(0);
        return Some(format!("{}[{at}].extension{beside}", fragment.path));
    }
    let mut below = beside.unwrap_or(path).to_owned();
    if fragment.list {
        shift(&mut below, before.get(&*fragment.path).copied().unwrap_or(0));
    }
    // The type of a choice stands after a slash.
    Some(fragment.path.replace('/', "") + &below)
}

/// `value/Quantity` is one of `value`.
fn without_type(path: &str) -> &str {
    path.split_once('/').map_or(path, |(path, _)| path)
}

/// Whether a fragment holds the extensions beside a primitive: `_birthDate.extension`.
fn is_beside(path: &str) -> bool {
    path.strip_suffix(".extension")
        .is_some_and(|parent| parent.rsplit('.').next().is_some_and(|name| name.starts_with('_')))
}

/// The URLs of the extensions on the way down a path; `None` if the path leads nowhere.
fn urls_on(resource: &Value, path: &str) -> Option<Vec<String>> {
    let mut urls = Vec::new();
    let mut at = resource;
    for step in path.split('.') {
        let (name, mut indexes) = step.split_once('[').map_or((step, ""), |(name, rest)| (name, rest));
        at = at.get(name)?;
        while let Some((index, rest)) = indexes.split_once(']') {
            at = at.get(index.parse::<usize>().ok()?)?;
            indexes = rest.strip_prefix('[').unwrap_or("");
        }
        if name == "extension"
            && let Some(url) = at["url"].as_str()
        {
            urls.push(url.to_owned());
        }
    }
    Some(urls)
}

/// The data types of a leaf's field and component.
fn types(message: &Message<'_>, leaf: usize) -> [Option<String>; 2] {
    let version = Version::nearest(&message.header().version().unwrap_or_default());
    let path = message.path_of(leaf);
    let definitions = definitions(version);
    let def = definitions.segment(path.segment.as_str()).and_then(|def| def.field(path.field));
    let of_field = match def.map(|def| def.datatype) {
        // OBX-5 and its kin: the second field says it.
        Some("varies") => {
            message.field(message.segment_of(leaf), 2).text(message).map(|text| text.into_owned())
        }
        other => other.map(str::to_owned),
    };
    let component = u16::try_from(path.component.max(1)).unwrap_or(u16::MAX);
    let of_component = of_field.as_deref().and_then(|name| definitions.datatype(name));
    let of_component = of_component.and_then(|def| def.field(component)).map(|def| def.datatype.to_owned());
    [of_field, of_component]
}

fn fates(message: &Message<'_>, places: &[Arc<str>], traced: &Traced) -> Vec<Fate> {
    let fate = |(leaf, _): (usize, &Leaf)| {
        let (state, reason) = traced.states.get(leaf).cloned().unwrap_or((State::Unmapped, None));
        // MSH-1 and MSH-2 are the separators themselves.
        let state = if leaf < 2 { "mapped" } else { word(state) };
        let path = message.path_of(leaf);
        Fate {
            path: path.to_string(),
            at: Some(path),
            types: types(message, leaf),
            place: places.get(message.segment_of(leaf)).cloned().unwrap_or_default(),
            state,
            reason,
        }
    };
    message.leaves().iter().enumerate().map(fate).collect()
}

fn fates_of_records(records: &Records, places: &[Arc<str>], traced: &Traced) -> Vec<Fate> {
    let index = records.index();
    let fate = |(leaf, (state, reason)): (usize, &(State, Option<Arc<str>>))| Fate {
        path: records.place_of(leaf),
        at: None,
        types: [None, None],
        place: places.get(index.segment_of(leaf)).cloned().unwrap_or_default(),
        state: word(*state),
        reason: reason.clone(),
    };
    traced.states.iter().enumerate().map(fate).collect()
}

fn word(state: State) -> &'static str {
    match state {
        State::Unmapped => "unmapped",
        State::Failed => "failed",
        State::LookedUp => "looked-up",
        State::Ignored => "ignored",
        State::Selector => "selector",
        State::Narrowed => "narrowed",
        State::Mapped => "mapped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use crate::{explain_by, map_by};

    /// The paths of everything in a resource that is not made of parts, but for what every resource has.
    fn elements(resource: &Value) -> Vec<String> {
        let mut paths = Vec::new();
        crate::run::leaf_paths(resource, &mut String::new(), &mut paths);
        paths.iter_mut().for_each(|path| *path = path.trim_start_matches('.').to_owned());
        paths.retain(|path| path != "resourceType" && path != "id");
        paths
    }

    #[test]
    fn every_element_of_every_test_s_bundle_has_an_origin_and_asking_changes_nothing() {
        let catalog = Catalog::builtin();
        let mut told = 0;
        for (file, test) in &catalog.tests {
            let context = crate::testing::context(test);
            let subject = crate::testing::Subject::of(&catalog, test).expect("a test's message can be read");
            let Some(program) = subject.program else { continue };
            let Ok((alone, lineage)) = explain_by(program, subject.given(), &context) else { continue };
            let plain =
                map_by(program, subject.given(), &context).expect("it was mapped when it was explained");
            assert_eq!(alone.bundle, plain.bundle, "{file}: {}", test.name);
            assert_eq!(alone.issues, plain.issues, "{file}: {}", test.name);
            let bundle: Value = serde_json::from_str(&alone.bundle).expect("a Bundle is JSON");
            // An ACK may say nothing about anybody.
            let Some(entries) = bundle["entry"].as_array() else { continue };
            // The last one is the Provenance that every Bundle has.
            for (entry, value) in entries.iter().enumerate().take(entries.len() - 1) {
                let origins = lineage.elements.iter().filter(|origin| origin.entry == Some(entry));
                let known: HashSet<&str> = origins.map(|origin| &*origin.path).collect();
                for path in elements(&value["resource"]) {
                    let kind = &value["resource"]["resourceType"];
                    assert!(known.contains(&*path), "{file}: {}: {kind}.{path} has no origin", test.name);
                    told += 1;
                }
            }
            let leaves = match subject.given() {
                Given::Message(message) => message.leaves().len(),
                Given::Records(records, _) => records.index().leaves().len(),
            };
            assert_eq!(lineage.fields.len(), leaves);
        }
        assert!(told > 1000, "only {told} elements were looked at");
    }
}
