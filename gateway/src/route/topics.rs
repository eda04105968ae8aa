//! Topics: which event on which resource, read from the SubscriptionTopic files under `schemas/topics/`.
//!
//! For an HL7 v2 message a topic with `eventTrigger`s goes by the trigger event alone (an A01 is an encounter's start even if
//! an earlier result had made the encounter known); every other message and topic goes by `resourceTrigger`.
//! Criteria are read as `element=value,value` and `element:not=value` over the top-level elements of a resource,
//! joined by `&`; anything else in a topic file is refused at load.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

include!(concat!(env!("OUT_DIR"), "/topics.rs"));

static TOPICS: LazyLock<Vec<Topic>> = LazyLock::new(|| {
    FILES
        .iter()
        .map(|(name, text)| Topic::read(name, text).expect("the shipped topics are valid: a test reads each"))
        .collect()
});

/// The names of all topics.
pub fn names() -> Vec<&'static str> {
    FILES.iter().map(|(name, _)| *name).collect()
}

/// The topics that what a message did matches, by name.
pub fn matching(happening: &Happening<'_>) -> Vec<&'static str> {
    TOPICS.iter().filter(|topic| topic.matches(happening)).map(|topic| topic.name.as_str()).collect()
}

/// Whether any topic looks at resources of a type.
pub fn watches(resource_type: &str) -> bool {
    TOPICS.iter().any(|topic| {
        topic.events.iter().any(|(_, resource)| resource == resource_type)
            || topic.resources.iter().any(|trigger| trigger.resource == resource_type)
    })
}

/// What one message did to the store.
#[derive(Clone, Debug)]
pub struct Happening<'h> {
    /// The HL7 v2 trigger event (MSH-9.2), if there was one.
    pub event: Option<&'h str>,
    /// Each resource that it made or touched.
    pub resources: &'h [Touched<'h>],
}

/// One resource before and after a message.
#[derive(Clone, Debug)]
pub struct Touched<'h> {
    /// `Patient`, ...
    pub resource_type: Cow<'h, str>,
    /// The resource in JSON before the message, if it was there.
    pub before: Option<Cow<'h, str>>,
    /// The resource in JSON now.
    pub now: Cow<'h, str>,
}

#[derive(Debug)]
struct Topic {
    name: String,
    events: Vec<(String, String)>,
    resources: Vec<ResourceTrigger>,
}

#[derive(Debug)]
struct ResourceTrigger {
    resource: String,
    on_create: bool,
    on_update: bool,
    previous: Option<Vec<Criterion>>,
    current: Option<Vec<Criterion>>,
    passes_for_create: bool,
    require_both: bool,
}

/// `element=value,value` or, negated, `element:not=value`.
#[derive(Debug)]
struct Criterion {
    element: String,
    negated: bool,
    values: Vec<String>,
}

impl Topic {
    fn matches(&self, happening: &Happening<'_>) -> bool {
        match happening.event {
            Some(event) if !self.events.is_empty() => self.events.iter().any(|(code, resource)| {
                code == event && happening.resources.iter().any(|r| r.resource_type == *resource)
            }),
            _ => self.resources.iter().any(|trigger| happening.resources.iter().any(|r| trigger.matches(r))),
        }
    }

    fn read(name: &str, text: &str) -> Result<Topic, String> {
        let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if file.url != format!("urn:pons:topic:{name}") {
            return Err(format!("the url of topic {name} should end in its file's name"));
        }
        let events = file.event_trigger.iter().flat_map(|trigger| {
            trigger.event.coding.iter().map(|coding| (coding.code.clone(), trigger.resource.clone()))
        });
        let resources = file.resource_trigger.iter().map(|trigger| {
            let has =
                |word: &str| trigger.supported_interaction.iter().any(|interaction| interaction == word);
            let criteria = trigger.query_criteria.as_ref();
            let read = |text: Option<&String>| text.map(|text| criteria_of(text)).transpose();
            Ok(ResourceTrigger {
                resource: trigger.resource.clone(),
                on_create: has("create"),
                on_update: has("update"),
                previous: read(criteria.and_then(|c| c.previous.as_ref()))?,
                current: read(criteria.and_then(|c| c.current.as_ref()))?,
                passes_for_create: criteria
                    .is_none_or(|c| c.result_for_create.as_deref() != Some("test-fails")),
                require_both: criteria.is_some_and(|c| c.require_both),
            })
        });
        Ok(Topic {
            name: name.to_owned(),
            events: events.collect(),
            resources: resources.collect::<Result<_, String>>()?,
        })
    }
}

impl ResourceTrigger {
    fn matches(&self, touched: &Touched<'_>) -> bool {
        if touched.resource_type != self.resource {
            return false;
        }
        let created = touched.before.is_none();
        if if created { !self.on_create } else { !self.on_update } {
            return false;
        }
        let holds =
            |criteria: &[Criterion], json: &str| criteria.iter().all(|criterion| criterion.holds(json));
        let current = self.current.as_ref().map(|criteria| holds(criteria, &touched.now));
        let previous = self.previous.as_ref().map(|criteria| match &touched.before {
            Some(before) => holds(criteria, before),
            None => self.passes_for_create,
        });
        match (previous, current) {
            (None, None) => true,
            (Some(one), None) | (None, Some(one)) => one,
            (Some(previous), Some(current)) if self.require_both => previous && current,
            (Some(previous), Some(current)) => previous || current,
        }
    }
}

impl Criterion {
    fn holds(&self, json: &str) -> bool {
        let elements: BTreeMap<Cow<'_, str>, &RawValue> = match serde_json::from_str(json) {
            Ok(elements) => elements,
            Err(_) => return false,
        };
        let raw = elements.get(self.element.as_str()).map_or("", |raw| raw.get());
        let value = raw.trim_matches('"');
        self.values.iter().any(|wanted| wanted == value) != self.negated
    }
}

fn criteria_of(text: &str) -> Result<Vec<Criterion>, String> {
    text.split('&')
        .map(|part| {
            let (left, values) =
                part.split_once('=').ok_or_else(|| format!("criterion `{part}` has no `=`"))?;
            let (element, negated) = match left.split_once(':') {
                None => (left, false),
                Some((element, "not")) => (element, true),
                Some((_, modifier)) => return Err(format!("modifier `{modifier}` is not one of: not")),
            };
            let values = values.split(',').map(str::to_owned).collect();
            Ok(Criterion { element: element.to_owned(), negated, values })
        })
        .collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(rename = "resourceType")]
    _resource_type: String,
    url: String,
    #[serde(rename = "title")]
    _title: String,
    #[serde(rename = "status")]
    _status: String,
    #[serde(default)]
    resource_trigger: Vec<FileResourceTrigger>,
    #[serde(default)]
    event_trigger: Vec<FileEventTrigger>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileResourceTrigger {
    #[serde(rename = "description")]
    _description: String,
    resource: String,
    supported_interaction: Vec<String>,
    query_criteria: Option<FileCriteria>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileCriteria {
    previous: Option<String>,
    current: Option<String>,
    result_for_create: Option<String>,
    #[serde(default)]
    require_both: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEventTrigger {
    #[serde(rename = "description")]
    _description: String,
    resource: String,
    event: FileConcept,
}

#[derive(Deserialize)]
struct FileConcept {
    coding: Vec<FileCoding>,
}

#[derive(Deserialize)]
struct FileCoding {
    code: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched<'h>(resource_type: &'h str, before: Option<&'h str>, now: &'h str) -> Touched<'h> {
        Touched {
            resource_type: Cow::Borrowed(resource_type),
            before: before.map(Cow::Borrowed),
            now: Cow::Borrowed(now),
        }
    }

    fn check(event: Option<&str>, resources: &[Touched<'_>], expected: &[&str]) {
        assert_eq!(matching(&Happening { event, resources }), expected);
    }

    const BEGUN: &str = r#"{"resourceType":"Encounter","status":"in-progress"}"#;
    const ENDED: &str = r#"{"resourceType":"Encounter","status":"finished"}"#;

    #[test]
    fn every_shipped_topic_is_valid() {
        assert!(names().contains(&"encounter-start"), "{:?}", names());
        for (name, text) in FILES {
            Topic::read(name, text).expect(name);
        }
    }

    #[test]
    fn an_hl7_v2_event_decides_where_the_topic_names_events() {
        check(Some("A01"), &[touched("Encounter", None, BEGUN)], &["encounter-start"]);
        check(Some("A01"), &[touched("Encounter", Some(BEGUN), BEGUN)], &["encounter-start"]);
        check(Some("A03"), &[touched("Encounter", Some(BEGUN), ENDED)], &["encounter-end"]);
        check(Some("A08"), &[touched("Encounter", Some(BEGUN), ENDED)], &[]);
        check(Some("A01"), &[touched("Patient", None, "{}")], &[]);
        check(
            Some("O21"),
            &[touched("ServiceRequest", Some("{}"), r#"{"intent":"order"}"#)],
            &["order-placed"],
        );
        check(Some("R01"), &[touched("ServiceRequest", None, r#"{"intent":"order"}"#)], &[]);
    }

    #[test]
    fn a_resource_decides_otherwise() {
        check(None, &[touched("Encounter", None, BEGUN)], &["encounter-start"]);
        check(None, &[touched("Encounter", Some(BEGUN), BEGUN)], &[]);
        check(None, &[touched("Encounter", Some(BEGUN), ENDED)], &["encounter-end"]);
        for (status, told) in [("final", true), ("corrected", true), ("preliminary", false)] {
            let report = format!(r#"{{"status":"{status}","code":{{"text":"final"}}}}"#);
            let expected: &[&str] = if told { &["result-final"] } else { &[] };
            check(Some("R01"), &[touched("DiagnosticReport", Some(&report), &report)], expected);
        }
    }

    #[test]
    fn what_a_topic_file_says_beyond_this_is_refused_at_load() {
        let (_, file) = FILES.iter().find(|(name, _)| *name == "encounter-start").expect("shipped");
        assert!(Topic::read("encounter-start", &file.replace("previous", "fhirPath")).is_err());
        assert!(Topic::read("encounter-start", &file.replace("status:not=", "status:above=")).is_err());
        assert!(Topic::read("another-name", file).is_err());
    }
}
