//! How the events of a subscription are written as HL7 v2: `write:` and what goes with it.

use super::{hint, systems};
use mappings::{Catalog, Parties};
use schemas::yaml::{Fields, Node, Value};

/// How the events of a subscription are written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Writes {
    /// By which mapping an event of a topic is written; without a topic, any that is not named.
    pub mappings: Vec<(Option<String>, String)>,
    /// What the subscriber calls assigning authorities: name and URI.
    pub systems: Vec<(String, String)>,
    /// Who sends to whom, as the subscriber knows them: MSH-3 to MSH-6.
    pub parties: Parties,
}

impl Writes {
    /// By which mapping the events of a topic are written.
    pub fn mapping_for(&self, topic: &str) -> Option<&str> {
        let of = |wanted: Option<&str>| {
            self.mappings
                .iter()
                .find(|(known, _)| known.as_deref() == wanted)
                .map(|(_, mapping)| mapping.as_str())
        };
        of(Some(topic)).or_else(|| of(None))
    }

    /// The mappings that the catalog does not have, or that write no messages.
    pub fn missing<'w>(&'w self, catalog: &Catalog) -> Vec<&'w str> {
        let writes = |name: &str| catalog.program("", name).is_some_and(|program| program.writes_messages());
        self.mappings.iter().map(|(_, name)| name.as_str()).filter(|name| !writes(name)).collect()
    }
}

/// `write:` and what goes with it. A map must name each of the topics if `every` topic is to be written.
pub(super) fn read(fields: &mut Fields<'_, '_>, node: &Node, topics: &[&str], every: bool) -> Option<Writes> {
    let systems = systems(fields);
    let mut text = |key: &'static str| fields.take_text(key).map(str::to_owned);
    let parties = Parties {
        sending_application: text("sending_application"),
        sending_facility: text("sending_facility"),
        receiving_application: text("receiving_application"),
        receiving_facility: text("receiving_facility"),
    };
    let Some(write) = fields.take("write") else {
        if !systems.is_empty() || parties != Parties::default() {
            let text = "is missing: without it messages go as they came, and nothing is written into them";
            fields.wrong(node.place, "write", text);
        }
        return None;
    };
    let mut mappings = Vec::new();
    match &write.value {
        Value::Map(entries) => {
            for (key, value) in entries {
                if !topics.contains(&key.name.as_str()) {
                    let text = format!("is none of its topics; {}", hint(&key.name, topics));
                    fields.wrong(key.place, &format!("write.{}", key.name), text);
                }
                match value.text() {
                    Some(name) => mappings.push((Some(key.name.clone()), name.to_owned())),
                    None => fields.wrong(value.place, "write", "expected the name of a mapping"),
                }
            }
            for topic in topics.iter().filter(|topic| every && write.get(topic).is_none()) {
                fields.wrong(write.place, "write", format!("says nothing of its topic {topic}"));
            }
        }
        _ => match write.text() {
            Some(name) => mappings.push((None, name.to_owned())),
            None => fields.wrong(
                write.place,
                "write",
                "expected the name of a mapping, or a map from topics to mappings",
            ),
        },
    }
    Some(Writes { mappings, systems, parties })
}
