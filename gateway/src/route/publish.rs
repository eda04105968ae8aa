//! Onto the bus: the CloudEvents envelope of a delivery, and the watch over the broker's data.
//!
//! Invariant: no patient data outside of the envelope's `data`; the same delivery has the same bytes however often it is
//! published.

use crate::bus::{Bus, BusError, Envelope, routing_key};
use crate::route::notification::{About, Notifies};
use crate::store::{Content, Matched, Store, StoreError};
use bytes::Bytes;
use jiff::Timestamp;
use schemas::message::{DeliveryId, MessageId};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::Mutex;
use uuid::Uuid;

/// What stands before the Bundle in an envelope; no attribute before it is an object, so its first occurrence is the one.
const DATA: &[u8] = b",\"data\":";
/// The extension of a Bundle's meta that holds the identifier of its message.
const MESSAGE_IDENTIFIER: &str = "urn:pons:message-identifier";
/// How every Bundle of ours begins.
const BUNDLE: &[u8] = b"{\"resourceType\":\"Bundle\"";

/// A delivery as an event, ready to be written.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// The installation, as its events name their source: `urn:pons:<installation>`.
    pub installation: &'a str,
    /// The delivery; the event's id.
    pub delivery: DeliveryId,
    /// Its message.
    pub message: MessageId,
    /// The revision of the message's result.
    pub revision: u32,
    /// The event number in the subscription.
    pub number: i64,
    /// The subscription's name.
    pub subscription: &'a Arc<str>,
    /// What it tells of; the first topic is the event's type.
    pub matched: &'a Matched,
    /// Who sent the message.
    pub sender: &'a str,
    /// When it was received.
    pub received_at: Timestamp,
    /// W3C trace context, if traced.
    pub traceparent: Option<String>,
    /// What there is to tell.
    pub told: &'a Told,
    /// How a notification of it is written.
    pub notifies: Option<&'a Notifies>,
}

/// What a message made known.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The normalized Bundle in JSON.
    pub bundle: Bytes,
    /// The resources that notifications bring along beside it: a JSON array, or nothing.
    pub beside: Bytes,
}

impl Told {
    /// Whether it is the very same, in the same memory.
    pub(super) fn is(&self, other: &Told) -> bool {
        let same = |one: &Bytes, other: &Bytes| one.as_ptr() == other.as_ptr() && one.len() == other.len();
        same(&self.bundle, &other.bundle) && same(&self.beside, &other.beside)
    }

    /// That of a delivery's content.
    pub fn of(content: &Content) -> Told {
        Told { bundle: content.bundle.clone(), beside: content.beside.clone() }
    }
}

/// Writes the CloudEvents 1.0 envelope in structured JSON. The Bundle goes in with the delivery's id as its identifier; that of its
/// message, if it has one, stands as an extension of its meta. Its entries are not read again. A delivery that is a notification has
/// that in its place.
///
/// # Source
/// CloudEvents 1.0.2, JSON event format 3; extension attributes `messageid`, `number`, `revision`, `traceparent`.
pub fn envelope(event: &Event<'_>) -> Envelope {
    let topic = event.matched.topics.first().map_or("event", String::as_str);
    let mut body = Vec::with_capacity(event.told.bundle.len() + 640);
    write_head(&mut body, event.installation, (event.delivery.0, topic, event.received_at));
    write!(body, ",\"messageid\":\"{}\",\"number\":\"{}\"", event.message, event.number)
        .expect("memory takes all");
    write!(body, ",\"revision\":{}", event.revision).expect("memory takes all");
    if let Some(traceparent) = &event.traceparent {
        body.extend_from_slice(b",\"traceparent\":");
        write_json(&mut body, traceparent);
    }
    body.extend_from_slice(b",\"datacontenttype\":\"application/fhir+json\"");
    body.extend_from_slice(DATA);
    match (event.notifies, &event.matched.references) {
        (Some(notifies), Some(references)) => notifies.write(&mut body, event, references),
        _ => write_bundle(&mut body, event.delivery, &event.told.bundle),
    }
    body.push(b'}');
    Envelope {
        delivery: event.delivery,
        subscription: Arc::clone(event.subscription),
        routing_key: routing_key(event.subscription, topic, event.sender),
        traceparent: event.traceparent.clone(),
        body: Bytes::from(body),
    }
}

/// The envelope of a notification without events: a handshake, a heartbeat.
pub fn greeting(installation: &str, about: &About<'_>, bundle: &[u8]) -> Bytes {
    let mut body = Vec::with_capacity(bundle.len() + 320);
    write_head(&mut body, installation, (about.id, about.kind, about.at));
    write!(body, ",\"number\":\"{}\"", about.last).expect("memory takes all");
    body.extend_from_slice(b",\"datacontenttype\":\"application/fhir+json\"");
    body.extend_from_slice(DATA);
    body.extend_from_slice(if bundle.is_empty() { b"null" } else { bundle });
    body.push(b'}');
    Bytes::from(body)
}

/// Begins an envelope: whose it is, of what kind, and when it happened.
fn write_head(into: &mut Vec<u8>, installation: &str, (id, kind, at): (Uuid, &str, Timestamp)) {
    into.extend_from_slice(b"{\"specversion\":\"1.0\",\"id\":");
    write_json(into, &id.to_string());
    into.extend_from_slice(b",\"source\":");
    write_json(into, &format!("urn:pons:{installation}"));
    into.extend_from_slice(b",\"type\":");
    write_json(into, &format!("pons.{kind}"));
    into.extend_from_slice(b",\"time\":");
    write_json(into, &at.to_string());
}

/// The Bundle within an envelope's body, sharing its memory; `None` if it is not an envelope of ours.
pub fn bundle_in(body: &Bytes) -> Option<Bytes> {
    let end = body.len().checked_sub(1)?;
    let at = memchr::memmem::find(body, DATA)? + DATA.len();
    (at < end && body[end] == b'}').then(|| body.slice(at..end))
}

fn write_bundle(into: &mut Vec<u8>, delivery: DeliveryId, bundle: &[u8]) {
    let Some(rest) = bundle.strip_prefix(BUNDLE) else {
        into.extend_from_slice(bundle);
        return;
    };
    into.extend_from_slice(BUNDLE);
    let identifier = ",\"identifier\":{\"system\":\"urn:ietf:rfc:3986\",\"value\":\"urn:uuid:";
    write!(into, "{identifier}{delivery}\"}}").expect("memory takes all");
    let head = Head::of(rest);
    let Some(own) = head.identifier else {
        into.extend_from_slice(rest);
        return;
    };
    // A Bundle has one identifier: that of its message goes into its meta.
    let value = |of: &Member| serde_json::from_slice(&rest[of.value.clone()]).unwrap_or(Value::Null);
    let mut meta = head.meta.as_ref().map_or_else(|| json!({}), value);
    let extension = json!({"url": MESSAGE_IDENTIFIER, "valueIdentifier": value(&own)});
    match meta["extension"].as_array_mut() {
        Some(extensions) => extensions.push(extension),
        None => meta["extension"] = json!([extension]),
    }
    into.extend_from_slice(b",\"meta\":");
    serde_json::to_writer(&mut *into, &meta).expect("memory takes all");
    let mut left: Vec<Range<usize>> = head.meta.into_iter().chain([own]).map(|member| member.whole).collect();
    left.sort_by_key(|range| range.start);
    let mut at = 0;
    for range in left {
        into.extend_from_slice(&rest[at..range.start]);
        at = range.end;
    }
    into.extend_from_slice(&rest[at..]);
}

/// What stands before the entries of a Bundle and is of interest, where it stands.
#[derive(Debug, Default)]
struct Head {
    identifier: Option<Member>,
    meta: Option<Member>,
}

/// A member of an object, in its text.
#[derive(Clone, Debug)]
struct Member {
    /// With the comma before it.
    whole: Range<usize>,
    value: Range<usize>,
}

impl Head {
    /// Reads on behind the first member, in JSON without blanks, as we write it.
    fn of(rest: &[u8]) -> Head {
        let mut head = Head::default();
        let mut at = 0;
        while let Some((name, member)) = member(rest, at) {
            at = member.whole.end;
            match name {
                "identifier" => head.identifier = Some(member),
                "meta" => head.meta = Some(member),
                "entry" => break,
                _ => {}
            }
        }
        head
    }
}

/// The member that begins with a comma there.
fn member(text: &[u8], at: usize) -> Option<(&str, Member)> {
    let raw = |at: usize| -> Option<&RawValue> {
        let mut reader = serde_json::Deserializer::from_slice(text.get(at..)?);
        <&RawValue>::deserialize(&mut reader).ok()
    };
    if *text.get(at)? != b',' {
        return None;
    }
    let name = raw(at + 1)?.get();
    let colon = at + 1 + name.len();
    if *text.get(colon)? != b':' {
        return None;
    }
    let name = name.trim_matches('"');
    // The entries are long, and of no interest here.
    let end = if name == "entry" { colon + 1 } else { colon + 1 + raw(colon + 1)?.get().len() };
    Some((name, Member { whole: at..end, value: colon + 1..end }))
}

fn write_json(into: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(into, text).expect("a text can be written as JSON into memory");
}

/// Why the watch could not look.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The bus did not answer.
    #[error("the bus could not be asked for its epoch")]
    Bus(#[from] BusError),
    /// The store did not answer.
    #[error("the store could not be asked for the broker's epoch")]
    Store(#[from] StoreError),
}

/// Notices that the broker has lost its data: the epoch that the store knows is a mark on the bus, and a mark lives as
/// long as the data. One for the process.
pub struct EpochWatch {
    store: Arc<dyn Store>,
    bus: Arc<dyn Bus>,
    /// One look at a time, so that all who look after one wipe see one new epoch.
    looking: Mutex<()>,
}

impl EpochWatch {
    /// A watch over this bus.
    pub fn new(store: Arc<dyn Store>, bus: Arc<dyn Bus>) -> Self {
        EpochWatch { store, bus, looking: Mutex::new(()) }
    }

    /// The epoch of the broker's data. When the known one is gone, every published delivery counts as pending again, and
    /// a new epoch begins. Whoever saw another epoch before has to publish again what the bus had.
    ///
    /// # Errors
    /// When the bus or the store is away; then nothing is known, and it is safe to ask again.
    pub async fn look(&self) -> Result<String, WatchError> {
        let _one = self.looking.lock().await;
        if let Some(known) = self.store.bus_epoch().await? {
            if self.bus.marked(&known).await? {
                return Ok(known);
            }
            tracing::warn!(epoch = known, "the broker has lost its data: what it had is published again");
        }
        let fresh = Uuid::now_v7().simple().to_string();
        self.bus.mark(&fresh).await?;
        let pending_again = self.store.unpublish_all().await?;
        // Last: until the store knows the new epoch, the next look begins anew.
        self.store.set_bus_epoch(&fresh).await?;
        tracing::info!(epoch = fresh, pending_again, "a new epoch of the bus begins");
        Ok(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(bundle: &[u8]) -> Envelope {
        let message = MessageId(Uuid::from_u128(7));
        let subscription: Arc<str> = "lab.\"x\"".into();
        envelope(&Event {
            installation: "test",
            delivery: DeliveryId::of(Uuid::NAMESPACE_OID, message, &subscription, 1),
            message,
            revision: 1,
            number: 42,
            subscription: &subscription,
            matched: &vec!["result-final".to_owned(), "order-placed".to_owned()].into(),
            sender: "TEST,\"data\":LAB",
            received_at: "2026-01-02T03:04:05.678Z".parse().expect("a time"),
            traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
            told: &Told { bundle: Bytes::copy_from_slice(bundle), beside: Bytes::new() },
            notifies: None,
        })
    }

    #[test]
    fn an_envelope_is_a_cloud_event_with_the_bundle_as_it_is() {
        let envelope = sample(br#"{"resourceType":"Bundle","type":"transaction","entry":[{"a":1.50}]}"#);
        let value: serde_json::Value = serde_json::from_slice(&envelope.body).expect("it is JSON");
        assert_eq!(value["specversion"], "1.0");
        assert_eq!(value["id"], envelope.delivery.to_string());
        assert_eq!(value["source"], "urn:pons:test");
        assert_eq!(value["type"], "pons.result-final");
        assert_eq!(value["time"], "2026-01-02T03:04:05.678Z");
        assert_eq!(
            value["number"], "42",
            "an integer attribute of CloudEvents has 32 bits, a number may have more"
        );
        assert_eq!(value["revision"], 1);
        assert_eq!(value["data"]["identifier"]["value"], format!("urn:uuid:{}", envelope.delivery));
        assert_eq!(value["data"]["entry"][0]["a"].to_string(), "1.50", "every digit is kept");
        assert!(value.get("subject").is_none());
        assert_eq!(envelope.routing_key, "lab%2E\"x\".result-final.TEST,\"data\":LAB");
    }

    #[test]
    fn a_bundle_has_one_identifier_and_that_of_its_message_is_kept() {
        let own = r#""identifier":{"system":"urn:x","value":"C,\"1"}"#;
        let kept =
            r#"{"url":"urn:pons:message-identifier","valueIdentifier":{"system":"urn:x","value":"C,\"1"}}"#;
        for (head, meta) in [
            (format!(r#","id":"1",{own},"timestamp":"2026""#), format!(r#"{{"extension":[{kept}]}}"#)),
            (
                format!(r#","meta":{{"security":[{{"code":"R"}}]}},"total":1,{own}"#),
                format!(r#"{{"security":[{{"code":"R"}}],"extension":[{kept}]}}"#),
            ),
            (
                format!(r#",{own},"meta":{{"extension":[{{"url":"urn:y"}}]}}"#),
                format!(r#"{{"extension":[{{"url":"urn:y"}},{kept}]}}"#),
            ),
        ] {
            let entry = r#","entry":[{"resource":{"identifier":[{"value":"1.50"}],"meta":{}}}]}"#;
            let envelope = sample(format!(r#"{{"resourceType":"Bundle"{head}{entry}"#).as_bytes());
            let found = bundle_in(&envelope.body).expect("it is one of ours");
            let text = std::str::from_utf8(&found).expect("JSON");
            assert!(text.ends_with(entry), "{text}");
            assert_eq!(text.matches("\"identifier\"").count(), 2, "that of the entry is not touched: {text}");
            let value: Value = serde_json::from_str(text).expect("JSON");
            assert_eq!(value["identifier"]["value"], format!("urn:uuid:{}", envelope.delivery));
            assert_eq!(value["meta"].to_string(), meta);
        }
        let without = sample(br#"{"resourceType":"Bundle","type":"batch","meta":{"a":1}}"#);
        assert!(without.body.ends_with(br#""type":"batch","meta":{"a":1}}}"#), "nothing else is touched");
    }

    #[test]
    fn the_bundle_is_found_again_without_reading_the_json() {
        for bundle in
            [r#"{"resourceType":"Bundle","entry":[{"x":",\"data\":"}]}"#, "{}", r#"{"data":{"data":1}}"#]
        {
            let envelope = sample(bundle.as_bytes());
            let found = bundle_in(&envelope.body).expect("it is one of ours");
            let identifier = format!(
                r#","identifier":{{"system":"urn:ietf:rfc:3986","value":"urn:uuid:{}"}}"#,
                envelope.delivery
            );
            let expected = bundle.replacen(r#""Bundle""#, &format!(r#""Bundle"{identifier}"#), 1);
            assert_eq!(found, expected.as_bytes());
        }
        for other in ["", "}", "{}", ",\"data\":", ",\"data\":}"] {
            assert_eq!(bundle_in(&Bytes::from_static(other.as_bytes())), None, "{other}");
        }
    }
}
