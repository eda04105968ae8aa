//! Notifications of the FHIR Subscriptions backport: what a subscriber gets who asked for events, not for messages.
//!
//! Invariant: written from what was recorded with the event alone, so that every attempt sends the same bytes, and `$events` tells
//! later what was sent then.
//!
//! # Source
//! HL7 FHIR Subscriptions R5 Backport 1.1.0, R4 notification Bundle and R4 subscription status (CC0).

use super::publish::{Event, Told};
use jiff::Timestamp;
use memchr::memmem;
use schemas::message::DeliveryId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// What the backport's profiles and extensions begin with.
pub const PROFILES: &str = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/";
/// What a topic's canonical URL begins with.
pub const TOPIC: &str = "urn:pons:topic:";
/// How a resource of the Bundle is referred to within it.
const WITHIN: &str = "\"reference\":\"urn:uuid:";
/// How long an id is in text.
const ID_LENGTH: usize = uuid::fmt::Hyphenated::LENGTH;
/// The resources of how many messages are kept, and how large those are at most that are, in bytes.
const LATELY_MAX: usize = 16;
const KEPT_MAX: usize = 256 << 10;

/// How much a notification says; the later, the more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Payload {
    /// That something happened.
    Empty,
    /// What it is about, by reference.
    IdOnly,
    /// The resources themselves.
    FullResource,
}

impl Payload {
    /// Its code.
    pub fn code(self) -> &'static str {
        Payload::ALL.iter().find(|(_, known)| *known == self).map_or("", |(code, _)| code)
    }

    /// Each with its code.
    pub const ALL: [(&'static str, Payload); 3] =
        [("empty", Payload::Empty), ("id-only", Payload::IdOnly), ("full-resource", Payload::FullResource)];
}

/// How the notifications of a subscription are written.
#[derive(Clone, Debug)]
pub struct Notifies {
    /// Under what address `/fhir` is reached, without a slash at its end.
    pub base: Arc<str>,
    /// How much they say.
    pub payload: Payload,
}

/// What was told of last. A message is told to many subscriptions at about the same time, out of the same memory: its resources are
/// found once for all of them.
static LATELY: Mutex<VecDeque<Arc<Texts>>> = Mutex::new(VecDeque::new());

/// One event of a subscription, as it was recorded.
#[derive(Clone, Copy, Debug)]
pub struct Occurrence<'o> {
    /// Its delivery.
    pub delivery: DeliveryId,
    /// Its number in the subscription.
    pub number: i64,
    /// When its message was received.
    pub received_at: Timestamp,
    /// What it is about, then what goes along.
    pub references: &'o [String],
    /// The resources.
    pub texts: &'o Texts,
}

/// What a Bundle says of its subscription.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The Bundle's id.
    pub id: Uuid,
    /// When it is made, or was.
    pub at: Timestamp,
    /// `event-notification`, `handshake`, `heartbeat`, `query-status`, `query-event`.
    pub kind: &'static str,
    /// How the subscription stands: `requested`, `active`, `error`, `off`.
    pub status: &'static str,
    /// The subscription's id.
    pub subscription: &'a str,
    /// The topic's name.
    pub topic: Option<&'a str>,
    /// The number of its last event.
    pub last: i64,
}

impl Notifies {
    /// Notifications that name resources under an address, without a slash at its end.
    pub fn new(base: impl Into<Arc<str>>, payload: Payload) -> Notifies {
        Notifies { base: base.into(), payload }
    }

    /// Writes the notification of an event: a Bundle in JSON.
    pub(super) fn write(&self, into: &mut Vec<u8>, event: &Event<'_>, references: &[String]) {
        let about = About {
            id: event.delivery.0,
            at: event.received_at,
            kind: "event-notification",
            // Whatever has become of it since: every attempt says the same.
            status: "active",
            subscription: event.subscription,
            topic: event.matched.topics.first().map(String::as_str),
            last: event.number,
        };
        let texts = match self.payload {
            Payload::FullResource => Texts::lately(event.told),
            Payload::Empty | Payload::IdOnly => Arc::default(),
        };
        let occurrence = Occurrence {
            delivery: event.delivery,
            number: event.number,
            received_at: event.received_at,
            references,
            texts: &texts,
        };
        serde_json::to_writer(into, &self.bundle(&about, &[occurrence])).expect("memory takes all");
    }

    /// The Bundle of some events.
    pub fn bundle<'t>(&self, about: &About<'_>, occurrences: &[Occurrence<'t>]) -> Notification<'t> {
        let mut entry = vec![self.status_entry(about, occurrences)];
        for occurrence in occurrences {
            self.add(&mut entry, occurrence);
        }
        Notification {
            resource_type: "Bundle",
            id: about.id,
            meta: Meta { profile: [format!("{PROFILES}backport-subscription-notification-r4")] },
            kind: "history",
            timestamp: about.at.to_string(),
            entry,
        }
    }

    /// Adds the entries of an event.
    fn add<'t>(&self, entries: &mut Vec<Entry<'t>>, occurrence: &Occurrence<'t>) {
        for (index, reference) in self.named(occurrence.references).iter().enumerate() {
            let text = occurrence.texts.of.get(reference).filter(|_| self.payload == Payload::FullResource);
            entries.push(Entry {
                full_url: self.url(reference),
                resource: text.map(|text| Resource::Text(text)),
                // What the message wrote, and what was known before.
                request: Request { method: if index == 0 { "PUT" } else { "GET" }, url: reference.clone() },
                response: Response { status: "200" },
            });
        }
    }

    /// The first entry of a notification: which events of which subscription these are.
    fn status_entry<'t>(&self, about: &About<'_>, occurrences: &[Occurrence<'t>]) -> Entry<'t> {
        let status = self.status(about, occurrences);
        let subscription = self.url(&format!("Subscription/{}", about.subscription));
        Entry {
            full_url: format!("urn:uuid:{}", status["id"].as_str().unwrap_or_default()),
            resource: Some(Resource::Status(status)),
            request: Request { method: "GET", url: format!("{subscription}/$status") },
            response: Response { status: "200" },
        }
    }

    /// How a subscription stands, and some of its events.
    pub fn status(&self, about: &About<'_>, occurrences: &[Occurrence<'_>]) -> Value {
        let id = Uuid::new_v5(&about.id, b"status");
        let subscription = self.url(&format!("Subscription/{}", about.subscription));
        let mut parameters =
            vec![json!({"name": "subscription", "valueReference": {"reference": subscription}})];
        // Who asked to be told nothing is not told on which topic either.
        if let (Some(topic), false) = (about.topic, self.payload == Payload::Empty) {
            parameters.push(json!({"name": "topic", "valueCanonical": format!("{TOPIC}{topic}")}));
        }
        parameters.extend([
            json!({"name": "status", "valueCode": about.status}),
            json!({"name": "type", "valueCode": about.kind}),
            json!({"name": "events-since-subscription-start", "valueString": about.last.to_string()}),
        ]);
        for occurrence in occurrences {
            let mut parts = vec![
                json!({"name": "event-number", "valueString": occurrence.number.to_string()}),
                json!({"name": "timestamp", "valueInstant": occurrence.received_at.to_string()}),
            ];
            for (index, reference) in self.named(occurrence.references).iter().enumerate() {
                let name = if index == 0 { "focus" } else { "additional-context" };
                parts.push(json!({"name": name, "valueReference": {"reference": self.url(reference)}}));
            }
            parameters.push(json!({"name": "notification-event", "part": parts}));
        }
        json!({
            "resourceType": "Parameters",
            "id": id.to_string(),
            "meta": {"profile": [format!("{PROFILES}backport-subscription-status-r4")]},
            "parameter": parameters,
        })
    }

    /// What may be named of an event.
    fn named<'r>(&self, references: &'r [String]) -> &'r [String] {
        if self.payload == Payload::Empty { &[] } else { references }
    }

    /// The address of something under `/fhir`.
    pub fn url(&self, reference: &str) -> String {
        format!("{}/{reference}", self.base)
    }
}

/// A Bundle of events, to be written as JSON.
#[derive(Debug, Serialize)]
pub struct Notification<'t> {
    #[serde(rename = "resourceType")]
    resource_type: &'static str,
    id: Uuid,
    meta: Meta,
    #[serde(rename = "type")]
    kind: &'static str,
    timestamp: String,
    entry: Vec<Entry<'t>>,
}

#[derive(Debug, Serialize)]
struct Meta {
    profile: [String; 1],
}

#[derive(Debug, Serialize)]
struct Entry<'t> {
    #[serde(rename = "fullUrl")]
    full_url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<Resource<'t>>,
    request: Request,
    response: Response,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Resource<'t> {
    Status(Value),
    Text(&'t RawValue),
}

#[derive(Debug, Serialize)]
struct Request {
    method: &'static str,
    url: String,
}

#[derive(Debug, Serialize)]
struct Response {
    status: &'static str,
}

impl std::fmt::Display for Notification<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| std::fmt::Error)?)
    }
}

/// The resources of a message, and those beside them, as they are sent.
#[derive(Debug, Default)]
pub struct Texts {
    told: Told,
    /// By `Type/id`.
    of: HashMap<String, Box<RawValue>>,
}

impl Texts {
    /// Finds what was told.
    pub fn of(told: &Told) -> Texts {
        let bundle: Entries<'_> = serde_json::from_slice(&told.bundle).unwrap_or_default();
        let beside: Vec<&RawValue> = serde_json::from_slice(&told.beside).unwrap_or_default();
        let bundled: Vec<(&RawValue, String, String)> = bundle
            .entry
            .into_iter()
            .filter_map(|entry| {
                let resource = entry.resource?;
                let (reference, id) = name(resource)?;
                Some((resource, reference, id))
            })
            .collect();
        let within: HashMap<&str, &str> =
            bundled.iter().map(|(_, reference, id)| (id.as_str(), reference.as_str())).collect();
        let mut of = HashMap::with_capacity(bundled.len() + beside.len());
        for resource in beside {
            of.extend(name(resource).map(|(reference, _)| (reference, relinked(resource, &within))));
        }
        // What the message says itself goes before what was known.
        for (resource, reference, _) in &bundled {
            of.insert(reference.clone(), relinked(resource, &within));
        }
        Texts { told: told.clone(), of }
    }

    /// The same, found only once while the message is told of.
    fn lately(told: &Told) -> Arc<Texts> {
        if told.bundle.len() + told.beside.len() > KEPT_MAX {
            return Arc::new(Texts::of(told));
        }
        let mut lately = LATELY.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lately.iter().find(|known| known.told.is(told)) {
            return Arc::clone(known);
        }
        let texts = Arc::new(Texts::of(told));
        lately.truncate(LATELY_MAX - 1);
        lately.push_front(Arc::clone(&texts));
        texts
    }
}

/// A resource as it is sent: what it refers to within the Bundle of its message stands as `Type/id`.
fn relinked(resource: &RawValue, within: &HashMap<&str, &str>) -> Box<RawValue> {
    let mut rest = resource.get();
    let mut out = String::with_capacity(rest.len() + 64);
    while let Some(at) = memmem::find(rest.as_bytes(), WITHIN.as_bytes()) {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let id = after.get(WITHIN.len()..WITHIN.len() + ID_LENGTH);
        match id.and_then(|id| within.get(id)) {
            Some(reference) => {
                out.push_str("\"reference\":\"");
                out.push_str(reference);
                rest = &after[WITHIN.len() + ID_LENGTH..];
            }
            None => {
                out.push_str(WITHIN);
                rest = &after[WITHIN.len()..];
            }
        }
    }
    out.push_str(rest);
    RawValue::from_string(out).unwrap_or_else(|_| resource.to_owned())
}

/// `Type/id` of a resource, and its id.
fn name(resource: &RawValue) -> Option<(String, String)> {
    let head: Head = serde_json::from_str(resource.get()).ok()?;
    Some((format!("{}/{}", head.resource_type, head.id), head.id))
}

#[derive(Default, Deserialize)]
struct Entries<'t> {
    #[serde(borrow, default)]
    entry: Vec<OneEntry<'t>>,
}

#[derive(Deserialize)]
struct OneEntry<'t> {
    #[serde(borrow)]
    resource: Option<&'t RawValue>,
}

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "resourceType")]
    resource_type: String,
    id: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Matched;
    use schemas::message::MessageId;

    const BUNDLE: &str = r#"{"resourceType":"Bundle","type":"transaction","entry":[
        {"fullUrl":"urn:uuid:00000000-0000-0000-0000-000000000001","resource":{"resourceType":"Patient","id":"00000000-0000-0000-0000-000000000001"}},
        {"fullUrl":"urn:uuid:00000000-0000-0000-0000-000000000002","resource":{"resourceType":"Encounter","id":"00000000-0000-0000-0000-000000000002",
            "length":{"value":1.50},"subject":{"reference":"urn:uuid:00000000-0000-0000-0000-000000000001"},
            "partOf":{"reference":"urn:uuid:00000000-0000-0000-0000-000000000009","display":"\"reference\":\"urn:uuid:x"}}}]}"#;
    const BESIDE: &str =
        r#"[{"resourceType":"Coverage","id":"00000000-0000-0000-0000-000000000003","status":"active"}]"#;

    fn written(payload: Payload, references: &[&str]) -> Value {
        let subscription: Arc<str> = "insurer".into();
        let references: Vec<String> = references
            .iter()
            .map(|reference| reference.replace('#', "00000000-0000-0000-0000-00000000000"))
            .collect();
        let matched = Matched { topics: vec!["encounter-end".to_owned()], references: None };
        let notifies = Notifies::new("https://pons.test/fhir", payload);
        let told = Told { bundle: BUNDLE.into(), beside: BESIDE.into() };
        let event = Event {
            installation: "test",
            delivery: DeliveryId(Uuid::from_u128(5)),
            message: MessageId(Uuid::from_u128(7)),
            revision: 0,
            number: 42,
            subscription: &subscription,
            matched: &matched,
            sender: "TEST",
            received_at: "2026-01-02T03:04:05.678Z".parse().expect("a time"),
            traceparent: None,
            told: &told,
            notifies: None,
        };
        let (mut one, mut other) = (Vec::new(), Vec::new());
        notifies.write(&mut one, &event, &references);
        notifies.write(&mut other, &event, &references);
        assert_eq!(one, other);
        let bundle: Value = serde_json::from_slice(&one).expect("JSON");
        assert_eq!(bundle["entry"][0]["resource"]["parameter"][0]["name"], "subscription");
        bundle
    }

    #[test]
    fn resources_are_those_of_the_message_and_beside_it_and_refer_to_one_another_by_type_and_id() {
        let bundle =
            written(Payload::FullResource, &["Encounter/#2", "Patient/#1", "Coverage/#3", "Account/#4"]);
        let entry = |index: usize| &bundle["entry"][index];
        assert_eq!(
            entry(1)["fullUrl"],
            "https://pons.test/fhir/Encounter/00000000-0000-0000-0000-000000000002"
        );
        let encounter = &entry(1)["resource"];
        assert_eq!(encounter["subject"]["reference"], "Patient/00000000-0000-0000-0000-000000000001");
        assert_eq!(
            encounter["partOf"]["reference"], "urn:uuid:00000000-0000-0000-0000-000000000009",
            "what is not of the Bundle stays as it is"
        );
        assert_eq!(encounter["partOf"]["display"], "\"reference\":\"urn:uuid:x");
        assert_eq!(encounter["length"]["value"].to_string(), "1.50", "every digit is kept");
        assert_eq!(
            [entry(2), entry(3)].map(|entry| &entry["resource"]["resourceType"]),
            ["Patient", "Coverage"]
        );
        assert_eq!(
            (&entry(4)["request"]["url"], entry(4).get("resource")),
            (&json!("Account/00000000-0000-0000-0000-000000000004"), None),
            "what is gone by now is named"
        );
    }

    #[test]
    fn less_is_said_where_less_was_asked_for() {
        let ids = written(Payload::IdOnly, &["Encounter/#2", "Patient/#1"]);
        let entries = ids["entry"].as_array().expect("entries");
        assert!(entries[1..].iter().all(|entry| entry.get("resource").is_none()));
        assert_eq!((entries.len(), ids.to_string().matches("additional-context").count()), (3, 1));
        for nothing in [written(Payload::Empty, &["Encounter/#2"]), written(Payload::FullResource, &[])] {
            let text = nothing.to_string();
            assert_eq!(nothing["entry"].as_array().map(Vec::len), Some(1));
            assert!(!text.contains("focus") && !text.contains("Encounter"), "{text}");
        }
    }
}
