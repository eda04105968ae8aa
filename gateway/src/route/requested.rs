//! What a FHIR Subscription asks for, as its owner wrote it: read whole, or refused with each fault at its place.
//!
//! Invariant: an element that changes what is sent, and that is not understood, is never passed over.
//!
//! # Source
//! HL7 FHIR Subscriptions R5 Backport 1.1.0, profile of the R4 Subscription and its extensions.

mod channel;

pub use channel::{CHANNELS, Channel, PAYLOAD, queue_of};

use super::notification::{Notifies, PROFILES, TOPIC};
use super::topics::{self, Filter};
use crate::config::{Subscribes, Subscription};
use jiff::Timestamp;
use schemas::issue::{Issue, Severity};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// How long an endpoint may take to answer: what is asked for, and what holds without.
const TIMEOUT: std::ops::RangeInclusive<u64> = 1..=600;
const TIMEOUT_DEFAULT: u64 = 60;
/// How often a heartbeat may be wanted, in seconds.
const HEARTBEAT: std::ops::RangeInclusive<u64> = 1..=604_800;
/// Attempts before an event is a dead letter: a day, when every one is answered by an error.
const ATTEMPTS_MAX: u32 = 300;

/// What a Subscription asks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// As if it stood in the configuration.
    pub subscription: Arc<Subscription>,
    /// After how long without a notification its endpoint is told that all is well.
    pub heartbeat: Option<Duration>,
    /// When it ends.
    pub end: Option<Timestamp>,
    /// Whether its owner wants it to rest.
    pub is_off: bool,
}

/// Reads it for its owner, whose subscriptions are bound by `allowed`. `id` is its name, `base` where `/fhir` lies.
///
/// # Errors
/// Each fault: where it stands, what is wrong, and what would be right. No value of the resource is in them.
pub fn read(
    resource: &Value,
    (id, owner): (&str, &Arc<str>),
    allowed: &Subscribes,
    base: &str,
) -> Result<Wanted, Vec<Issue>> {
    let mut faults = Faults(Vec::new());
    let is_off = match resource["status"].as_str() {
        // A client that writes back what it has read means that it shall go on.
        Some("requested" | "active") => false,
        Some("off") => true,
        _ => {
            faults.add(
                "Subscription.status",
                "`requested` is wanted, or `off`; the others are set by the server",
            );
            false
        }
    };
    let end = resource["end"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    faults.extensions(resource, "Subscription", &[]);
    let topic = topic(resource, allowed, &mut faults);
    let filters = filters(resource, topic, &mut faults);
    let channel = &resource["channel"];
    faults.extensions(
        channel,
        "Subscription.channel",
        &["backport-heartbeat-period", "backport-timeout", "backport-max-count"],
    );
    let asked = channel::read(resource, allowed, &mut faults);
    let seconds = |name: &'static str, range: &std::ops::RangeInclusive<u64>, faults: &mut Faults| {
        let value = number(channel, name)?;
        let known = value.as_u64().filter(|seconds| range.contains(seconds));
        if known.is_none() {
            let text = format!("{name}: {} to {} seconds are supported", range.start(), range.end());
            faults.add("Subscription.channel.extension", text);
        }
        known
    };
    let heartbeat = seconds("backport-heartbeat-period", &HEARTBEAT, &mut faults).map(Duration::from_secs);
    let timeout = seconds("backport-timeout", &TIMEOUT, &mut faults).unwrap_or(TIMEOUT_DEFAULT);
    let timeout = Duration::from_secs(timeout);
    if number(channel, "backport-max-count")
        .is_some_and(|count| count.as_u64().is_none_or(|count| count == 0))
    {
        faults.add("Subscription.channel.extension", "backport-max-count: 1 or more is wanted");
    }
    let way = match (asked, topic) {
        (Some(asked), Some(topic)) if faults.0.is_empty() => {
            let notifies = asked.is_notified().then(|| Notifies::new(base, asked.payload));
            asked.way((id, topic), timeout, allowed, base, &mut faults).map(|way| (way, notifies, topic))
        }
        _ => None,
    };
    let Some((way, notifies, topic)) = way.filter(|_| faults.0.is_empty()) else {
        return Err(faults.0);
    };
    let subscription = Subscription {
        name: id.into(),
        topics: vec![topic.to_owned()],
        filters,
        senders: allowed.senders.clone(),
        notifies,
        owner: Some(Arc::clone(owner)),
        to: way.to,
        channel: way.named,
        writes: way.writes,
        block_for: None,
        attempts_max: ATTEMPTS_MAX,
        retry_base: Duration::from_millis(500),
        retry_cap: Duration::from_secs(300),
        in_flight_max: 64,
        attempt_timeout: timeout + Duration::from_secs(10),
    };
    Ok(Wanted { subscription: Arc::new(subscription), heartbeat, end, is_off })
}

/// What is wrong with a resource.
struct Faults(Vec<Issue>);

impl Faults {
    fn add(&mut self, place: &str, text: impl Into<String>) {
        self.0.push(Issue::new(Severity::Error, "not-supported", place, text));
    }

    /// Refuses each extension that is not one of the backport's that are known at this place.
    fn extensions(&mut self, element: &Value, place: &str, known: &[&str]) {
        // Only filters may be several; of anything else the first would be kept and the others passed over.
        let urls: Vec<&Value> = items(&element["extension"]).map(|one| &one["url"]).collect();
        for (index, url) in urls.iter().enumerate() {
            let is_filter = url.as_str().is_some_and(|url| url.ends_with("backport-filter-criteria"));
            if !is_filter && urls[..index].contains(url) {
                self.add(&format!("{place}.extension[{index}]"), "it stands there twice");
            }
        }
        for (index, one) in items(&element["extension"]).enumerate() {
            let name = one["url"].as_str().and_then(|url| url.strip_prefix(PROFILES));
            if !name.is_some_and(|name| known.contains(&name)) {
                let known: Vec<String> = known.iter().map(|name| format!("{PROFILES}{name}")).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                self.add(
                    &format!("{place}.extension[{index}]"),
                    format!("not supported; extensions here are: {known}"),
                );
            }
        }
        if items(&element["modifierExtension"]).next().is_some() {
            self.add(&format!("{place}.modifierExtension"), "not supported; none is");
        }
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// The value of an extension of an element.
fn extension<'v>(element: &'v Value, name: &str) -> Option<&'v serde_json::Map<String, Value>> {
    let is_it = |one: &&Value| one["url"].as_str().and_then(|url| url.strip_prefix(PROFILES)) == Some(name);
    items(&element["extension"]).find(is_it)?.as_object()
}

/// A number in an extension, whichever kind of integer it is written as.
fn number<'v>(element: &'v Value, name: &str) -> Option<&'v Value> {
    let value = extension(element, name)?;
    Some(value.iter().find(|(key, _)| key.starts_with("value")).map_or(&Value::Null, |(_, value)| value))
}

/// The topic that the criteria name.
fn topic(resource: &Value, allowed: &Subscribes, faults: &mut Faults) -> Option<&'static str> {
    let open = |topic: &&&str| allowed.topics.iter().any(|listed| listed == "*" || listed == **topic);
    let names = topics::names();
    let criteria = resource["criteria"].as_str().unwrap_or_default();
    let found = names.iter().filter(open).find(|topic| criteria.strip_prefix(TOPIC) == Some(**topic));
    if found.is_none() {
        let open: Vec<String> = names.iter().filter(open).map(|topic| format!("{TOPIC}{topic}")).collect();
        faults.add(
            "Subscription.criteria",
            format!("no topic that this client may subscribe to; these are: {}", open.join(", ")),
        );
    }
    found.copied()
}

/// What narrows the topic.
fn filters(resource: &Value, topic: Option<&str>, faults: &mut Faults) -> Vec<Filter> {
    let place = "Subscription.criteria.extension";
    let criteria = &resource["_criteria"];
    faults.extensions(criteria, "Subscription.criteria", &["backport-filter-criteria"]);
    let Some(topic) = topic.and_then(topics::find) else { return Vec::new() };
    let mut filters = Vec::new();
    for (index, one) in items(&criteria["extension"]).enumerate() {
        let Some(text) = one["valueString"].as_str() else {
            faults.add(&format!("{place}[{index}]"), "backport-filter-criteria: a valueString is wanted");
            continue;
        };
        match Filter::read(text, &[topic]) {
            Ok(filter) => filters.push(filter),
            Err(why) => faults.add(&format!("{place}[{index}].value"), why),
        }
    }
    // What no filter is about would be sent to everybody, or to nobody: neither is what was meant.
    for of in topic.types().filter(|_| !filters.is_empty()) {
        if !filters.iter().any(|filter: &Filter| filter.resource() == of) {
            faults.add(place, format!("topic {} is about {of} too: filter these as well", topic.name()));
        }
    }
    filters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Writes;
    use crate::config::subscribes::Endpoints;
    use crate::route::notification::Payload;
    use serde_json::json;

    fn allowed() -> Subscribes {
        Subscribes {
            topics: vec!["encounter-end".to_owned(), "result-final".to_owned()],
            senders: vec!["GENHOSP".to_owned()],
            endpoints: vec![Endpoints::Under("https://payer.test/events".parse().expect("a URL"))],
            channels: vec![Channel::RestHook],
            content: Payload::IdOnly,
            subscriptions_max: 3,
            mllp: None,
            tls: None,
        }
    }

    fn sample() -> Value {
        json!({
            "resourceType": "Subscription", "status": "requested", "reason": "to pay", "criteria": "urn:pons:topic:encounter-end",
            "_criteria": {"extension": [{"url": format!("{PROFILES}backport-filter-criteria"), "valueString": "Encounter?class=IMP"}]},
            "end": "2100-01-01T00:00:00Z",
            "channel": {
                "extension": [
                    {"url": format!("{PROFILES}backport-heartbeat-period"), "valueUnsignedInt": 60},
                    {"url": format!("{PROFILES}backport-timeout"), "valueUnsignedInt": 20},
                    {"url": format!("{PROFILES}backport-max-count"), "valuePositiveInt": 10},
                ],
                "type": "rest-hook", "endpoint": "https://payer.test/events/1", "payload": "application/fhir+json",
                "_payload": {"extension": [{"url": format!("{PROFILES}backport-payload-content"), "valueCode": "id-only"}]},
                "header": ["Authorization: Bearer s3cret"],
            },
        })
    }

    fn read_it(resource: &Value) -> Result<Wanted, Vec<Issue>> {
        read(resource, ("1", &"payer".into()), &allowed(), "https://pons.test/fhir")
    }

    #[test]
    fn what_is_asked_for_is_read() {
        let wanted = read_it(&sample()).expect("all is supported");
        let subscription = &wanted.subscription;
        assert_eq!((&*subscription.name, &subscription.topics[..]), ("1", &["encounter-end".to_owned()][..]));
        assert_eq!(subscription.senders, ["GENHOSP"], "of whom it learns is not for it to say");
        assert_eq!(subscription.filters[0].to_string(), "Encounter?class=IMP");
        assert_eq!(subscription.notifies.as_ref().map(|notifies| notifies.payload), Some(Payload::IdOnly));
        assert_eq!(
            (wanted.heartbeat, subscription.attempt_timeout),
            (Some(Duration::from_secs(60)), Duration::from_secs(30))
        );
        assert!(wanted.end.is_some() && !wanted.is_off);
        assert!(!format!("{wanted:?}").contains("s3cret"), "secrets are not shown");
    }

    /// Of everything on every channel.
    fn open_to_all() -> Subscribes {
        let writes = Writes { mappings: vec![(None, "write_adt_a03".to_owned())], ..Writes::default() };
        let lies = ["https://payer.test/events", "mllp://ward.test:2600"];
        Subscribes {
            channels: Channel::ALL.map(|(_, channel)| channel).to_vec(),
            endpoints: lies.map(|url| Endpoints::Under(url.parse().expect("a URL"))).to_vec(),
            content: Payload::FullResource,
            mllp: Some(writes),
            ..allowed()
        }
    }

    /// One of a channel that R4 does not have.
    fn extended(code: &str) -> Value {
        let mut resource = sample();
        let coding = json!({"system": CHANNELS, "code": code});
        let channel = &mut resource["channel"];
        channel["type"] = Value::Null;
        channel["_type"] = json!({"extension": [{"url": format!("{PROFILES}backport-channel-type"), "valueCoding": coding}]});
        channel["header"] = Value::Null;
        channel["endpoint"] = Value::Null;
        resource
    }

    #[test]
    fn each_channel_is_told_apart_and_has_what_belongs_to_it() {
        let read = |resource: &Value| {
            read(resource, ("7", &"payer".into()), &open_to_all(), "https://pons.test/fhir")
        };
        let mut message = sample();
        message["channel"]["type"] = json!("message");
        let mut websocket = sample();
        websocket["channel"] =
            json!({"type": "websocket", "payload": PAYLOAD, "_payload": sample()["channel"]["_payload"]});
        let amqp = extended("amqp");
        let mut mllp = extended("mllp");
        mllp["channel"]["endpoint"] = json!("mllp://ward.test:2600");
        mllp["channel"]["payload"] = json!("x-application/hl7-v2+er7");
        mllp["channel"]["_payload"]["extension"][0]["valueCode"] = json!("full-resource");
        for (resource, channel, reached, is_notified) in [
            (&sample(), "rest-hook", "https://payer.test/events/1", true),
            (&message, "message", "https://payer.test/events/1", true),
            (&websocket, "websocket", "", true),
            (&amqp, "amqp", "pons.own.7", true),
            (&mllp, "mllp", "mllp://ward.test:2600/", false),
        ] {
            let wanted = read(resource).unwrap_or_else(|faults| panic!("{channel}: {faults:?}"));
            let subscription = wanted.subscription;
            assert_eq!(subscription.channel, (channel.to_owned(), reached.to_owned()));
            assert_eq!(
                (subscription.notifies.is_some(), subscription.writes.is_some()),
                (is_notified, !is_notified)
            );
            assert_eq!(Channel::of(resource).map(Channel::code), Some(channel));
        }
        // Who cannot leave the code out.
        let mut coded = amqp.clone();
        coded["channel"]["type"] = json!("message");
        assert!(read(&coded).is_ok());

        let header = json!(["a: 1"]);
        for (resource, pointer, value, place, expected) in [
            (&websocket, "endpoint", json!("wss://payer.test"), "endpoint", "$get-ws-binding-token"),
            (&amqp, "endpoint", json!("amqps://payer.test"), "endpoint", "$get-amqp-credentials"),
            (&amqp, "header", header.clone(), "header", "amqp has no headers"),
            (
                &amqp,
                "type",
                json!("rest-hook"),
                "type",
                "channels are: rest-hook, message, websocket, amqp (by",
            ),
            (
                &amqp,
                "_type",
                json!({"extension": [{"url": format!("{PROFILES}backport-channel-type"), "valueCoding": {"code": "amqp"}}]}),
                "type",
                "system urn:pons:channel",
            ),
            (&sample(), "type", json!("amqp"), "type", "by backport-channel-type"),
            (&mllp, "endpoint", json!("mllp://ward.test:2601"), "endpoint", "`endpoints`"),
            (&mllp, "endpoint", json!("https://payer.test/events"), "endpoint", "mllp://host:port"),
            (&mllp, "endpoint", json!("mllp://ward.test:2600/x"), "endpoint", "mllp://host:port"),
            (&sample(), "endpoint", json!("mllp://ward.test:2600"), "endpoint", "an http: or https: URL"),
            (&mllp, "payload", json!(PAYLOAD), "payload", "x-application/hl7-v2+er7"),
            (
                &mllp,
                "_payload",
                sample()["channel"]["_payload"].clone(),
                "payload.extension",
                "for mllp: full-resource",
            ),
        ] {
            let mut resource = resource.clone();
            resource["channel"][pointer] = value;
            let faults = read(&resource).expect_err(expected);
            let place = format!("Subscription.channel.{place}");
            let told = faults.iter().any(|fault| fault.path == place && fault.text.contains(expected));
            assert!(told, "{pointer} {expected}: {faults:?}");
        }
        let only = Subscribes {
            mllp: Some(Writes {
                mappings: vec![(Some("result-final".to_owned()), "write_oru_r01".to_owned())],
                ..Writes::default()
            }),
            ..open_to_all()
        };
        let faults = super::read(&mllp, ("7", &"payer".into()), &only, "https://pons.test/fhir")
            .expect_err("not written");
        assert!(faults[0].text.contains("no mapping that writes topic encounter-end"), "{faults:?}");
    }

    #[test]
    fn what_is_not_supported_is_refused_at_its_place_and_told_what_is() {
        let content = |code: &str| json!({"extension": [{"url": format!("{PROFILES}backport-payload-content"), "valueCode": code}]});
        let filter = |text: &str| json!({"extension": [{"url": format!("{PROFILES}backport-filter-criteria"), "valueString": text}]});
        for (pointer, value, place, expected) in [
            ("/status", json!("error"), "Subscription.status", "`requested` is wanted"),
            (
                "/criteria",
                json!("urn:pons:topic:order-placed"),
                "Subscription.criteria",
                "urn:pons:topic:encounter-end",
            ),
            ("/criteria", json!("Encounter?status=finished"), "Subscription.criteria", "these are:"),
            (
                "/_criteria",
                filter("Encounter?color=red"),
                "Subscription.criteria.extension[0].value",
                "takes filters by",
            ),
            (
                "/_criteria",
                json!({"extension": [{"url": format!("{PROFILES}backport-filter-criteria"), "valueUri": "Encounter?class=IMP"}]}),
                "Subscription.criteria.extension[0]",
                "a valueString is wanted",
            ),
            (
                "/channel/extension/1/url",
                json!(format!("{PROFILES}backport-heartbeat-period")),
                "Subscription.channel.extension[1]",
                "twice",
            ),
            (
                "/_criteria",
                filter("Patient?name=x"),
                "Subscription.criteria.extension[0].value",
                "takes filters by",
            ),
            (
                "/extension",
                json!([{"url": "urn:x", "valueCode": "y"}]),
                "Subscription.extension[0]",
                "extensions here are: none",
            ),
            (
                "/_criteria",
                json!({"extension": [{"url": "http://hl7.org/fhir/5.0/StructureDefinition/extension-Subscription.filterBy"}]}),
                "Subscription.criteria.extension[0]",
                "backport-filter-criteria",
            ),
            (
                "/modifierExtension",
                json!([{"url": "urn:x", "valueCode": "y"}]),
                "Subscription.modifierExtension",
                "none is",
            ),
            ("/channel/type", json!("email"), "Subscription.channel.type", "channels are: rest-hook"),
            (
                "/channel/endpoint",
                json!("https://evil.test/events"),
                "Subscription.channel.endpoint",
                "`endpoints`",
            ),
            ("/channel/endpoint", json!("mailto:x@y.test"), "Subscription.channel.endpoint", "URL is wanted"),
            (
                "/channel/payload",
                json!("application/fhir+xml"),
                "Subscription.channel.payload",
                "application/fhir+json",
            ),
            ("/channel/_payload", Value::Null, "Subscription.channel.payload.extension", "empty, id-only"),
            (
                "/channel/_payload",
                content("full-resource"),
                "Subscription.channel.payload.extension",
                "for rest-hook: empty, id-only",
            ),
            ("/channel/header", json!(["no header"]), "Subscription.channel.header[0]", "`Name: value`"),
            (
                "/channel/header",
                json!(["a: 1", "Host: x"]),
                "Subscription.channel.header[1]",
                "set by the gateway",
            ),
            (
                "/channel/header",
                json!(["a: 1\r\nHost: x"]),
                "Subscription.channel.header[0]",
                "`Name: value`",
            ),
            (
                "/channel/header",
                json!([format!("a: {}", "x".repeat(9_000))]),
                "Subscription.channel.header",
                "at most",
            ),
            (
                "/channel/extension/0/valueUnsignedInt",
                json!(0),
                "Subscription.channel.extension",
                "1 to 604800",
            ),
            (
                "/channel/extension/1/valueUnsignedInt",
                json!(100_000),
                "Subscription.channel.extension",
                "1 to 600",
            ),
            (
                "/channel/extension/2/valuePositiveInt",
                json!(0),
                "Subscription.channel.extension",
                "1 or more",
            ),
        ] {
            let mut resource = sample();
            match resource.pointer_mut(pointer) {
                Some(place) => *place = value,
                None => resource[pointer.trim_start_matches('/')] = value,
            }
            let faults = read_it(&resource).expect_err(pointer);
            let told = faults.iter().any(|fault| fault.path == place && fault.text.contains(expected));
            assert!(told, "{pointer}: {faults:?}");
            assert!(!format!("{faults:?}").contains("s3cret"));
        }
        let mut many = sample();
        (many["status"], many["criteria"], many["channel"]["type"]) = (json!("x"), json!("y"), json!("z"));
        assert_eq!(read_it(&many).expect_err("three").len(), 3, "all are told at once");
    }
}
