//! The channel by which a Subscription wants to be told: which it is, and what of it may be asked for.

use super::{Faults, extension, items};
use crate::config::subscribes::{Endpoints, Subscribes, url};
use crate::config::{To, Writes};
use crate::route::notification::Payload;
use adapters::mllp::{self, Receiver};
use adapters::rest_hook::{self, Hook};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use std::time::Duration;

/// The system of the channels that R4 does not have.
pub const CHANNELS: &str = "urn:pons:channel";
/// The media type of notifications.
pub const PAYLOAD: &str = "application/fhir+json";
/// The media type of HL7 v2 as it travels by MLLP.
const ER7: &str = "x-application/hl7-v2+er7";
/// Headers that are ours to set, or belong to the connection.
const OUR_HEADERS: [&str; 14] = [
    "user-agent",
    "expect",
    "host",
    "content-type",
    "content-length",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "idempotency-key",
    "traceparent",
];
/// How many headers there may be, and how long all of them together, in bytes.
const HEADERS_MAX: usize = 20;
const HEADERS_BYTES_MAX: usize = 8 << 10;

/// How a subscriber is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Notifications by HTTP POST.
    RestHook,
    /// Notifications as FHIR messages to a FHIR server.
    Message,
    /// Notifications over a WebSocket that the subscriber opens.
    Websocket,
    /// Notifications in a queue of the subscriber's own on our broker.
    Amqp,
    /// Messages of HL7 v2, written by the mappings that the configuration names.
    Mllp,
}

impl Channel {
    /// Each with its code.
    pub const ALL: [(&'static str, Channel); 5] = [
        ("rest-hook", Channel::RestHook),
        ("message", Channel::Message),
        ("websocket", Channel::Websocket),
        ("amqp", Channel::Amqp),
        ("mllp", Channel::Mllp),
    ];

    /// Its code.
    pub fn code(self) -> &'static str {
        Channel::ALL.iter().find(|(_, known)| *known == self).map_or("", |(code, _)| code)
    }

    /// The one of this code.
    pub fn find(code: &str) -> Option<Channel> {
        Channel::ALL.iter().find(|(known, _)| *known == code).map(|(_, channel)| *channel)
    }

    /// That of a Subscription; `None` if it names none of these, or does so ambiguously.
    pub fn of(resource: &Value) -> Option<Channel> {
        let channel = &resource["channel"];
        let code = channel["type"].as_str();
        let Some(extended) = extension(&channel["_type"], "backport-channel-type") else {
            return Channel::find(code?).filter(|channel| !channel.is_extended());
        };
        let coding = extended.get("valueCoding")?;
        let named = Channel::find(coding["code"].as_str()?).filter(|_| coding["system"] == CHANNELS)?;
        // R4 has no code for it; who cannot leave the code out writes the nearest one.
        (named.is_extended() && matches!(code, None | Some("message"))).then_some(named)
    }

    /// Whether R4 has no code for it.
    pub fn is_extended(self) -> bool {
        matches!(self, Channel::Amqp | Channel::Mllp)
    }

    /// Whether the subscriber names where it is to be reached.
    pub fn has_endpoint(self) -> bool {
        matches!(self, Channel::RestHook | Channel::Message | Channel::Mllp)
    }

    /// The media type of what it carries.
    fn payload(self) -> &'static str {
        if self == Channel::Mllp { ER7 } else { PAYLOAD }
    }
}

/// What a Subscription says of its channel, as far as it can be said without opening anything.
pub(super) struct Asked {
    channel: Channel,
    endpoint: Option<(hyper::Uri, bool)>,
    headers: HeaderMap,
    pub(super) payload: Payload,
}

/// Reads it; every fault is added.
pub(super) fn read(resource: &Value, allowed: &Subscribes, faults: &mut Faults) -> Option<Asked> {
    let channel = &resource["channel"];
    faults.extensions(&channel["_type"], "Subscription.channel.type", &["backport-channel-type"]);
    faults.extensions(&channel["_endpoint"], "Subscription.channel.endpoint", &[]);
    faults.extensions(&channel["_payload"], "Subscription.channel.payload", &["backport-payload-content"]);
    let asked = Channel::of(resource).filter(|channel| allowed.channels.contains(channel));
    let Some(asked) = asked else {
        let known = allowed.channels.iter().map(|channel| match channel.is_extended() {
            true => format!("{} (by backport-channel-type, system {CHANNELS})", channel.code()),
            false => channel.code().to_owned(),
        });
        let known: Vec<String> = known.collect();
        faults.add("Subscription.channel.type", format!("not supported; channels are: {}", known.join(", ")));
        return None;
    };
    let payload = payload(channel, asked, allowed, faults);
    let headers = headers(channel, faults);
    if !headers.is_empty() && !matches!(asked, Channel::RestHook | Channel::Message) {
        faults.add("Subscription.channel.header", format!("{} has no headers", asked.code()));
    }
    let endpoint = match (asked.has_endpoint(), &channel["endpoint"]) {
        (true, _) => Some(endpoint(channel, asked, allowed, faults)?),
        (false, Value::Null) => None,
        (false, _) => {
            let text = match asked {
                Channel::Amqp => "left out for amqp: `$get-amqp-credentials` says where the queue is",
                _ => "left out for websocket: `$get-ws-binding-token` says where to connect",
            };
            faults.add("Subscription.channel.endpoint", text);
            None
        }
    };
    Some(Asked { channel: asked, endpoint, headers, payload: payload? })
}

/// How it is told, ready to be used.
pub(super) struct Way {
    pub(super) to: To,
    pub(super) writes: Option<Writes>,
    /// The channel's code, and what is reached by it.
    pub(super) named: (String, String),
}

impl Asked {
    /// Makes it ready for the subscription `id` on `topic`; `None` if that is not possible, which is added.
    pub(super) fn way(
        self,
        (id, topic): (&str, &str),
        timeout: Duration,
        allowed: &Subscribes,
        base: &str,
        faults: &mut Faults,
    ) -> Option<Way> {
        let place = "Subscription.channel.endpoint";
        let channel = self.channel;
        let reached = self.endpoint.as_ref().map(|(url, _)| url.to_string()).unwrap_or_default();
        let adapter = |made: Result<_, String>, faults: &mut Faults| {
            made.map(To::Adapter).map_err(|why| faults.add(place, why)).ok()
        };
        let mut writes = None;
        let (to, reached) = match (channel, self.endpoint) {
            (Channel::Websocket, _) => (To::Socket, reached),
            (Channel::Amqp, _) => {
                let queue = queue_of(id);
                (To::Queue(queue.clone()), queue)
            }
            (_, None) => return None,
            (Channel::Mllp, Some((url, _))) => {
                // What the configuration does not say how to write cannot be sent.
                writes = allowed.mllp.clone().filter(|writes| writes.mapping_for(topic).is_some());
                if writes.is_none() {
                    let text = format!("mllp: the configuration names no mapping that writes topic {topic}");
                    faults.add("Subscription.channel.type", text);
                }
                let receiver = Receiver { url, answer_timeout: timeout, tls: allowed.tls.clone() };
                (adapter(mllp::receiver(receiver), faults)?, reached)
            }
            (Channel::RestHook | Channel::Message, Some((url, is_public))) => {
                let message_from = (channel == Channel::Message).then(|| base.to_owned());
                let (headers, tls) = (self.headers, allowed.tls.clone());
                let hook = Hook { url, headers, answer_timeout: timeout, tls, is_public, message_from };
                (adapter(rest_hook::hook(hook), faults)?, reached)
            }
        };
        Some(Way { to, writes, named: (channel.code().to_owned(), reached) })
    }

    /// Whether events go as notifications, not as whole messages.
    pub(super) fn is_notified(&self) -> bool {
        self.channel != Channel::Mllp
    }
}

/// The queue that belongs to a requested subscription.
pub fn queue_of(id: &str) -> String {
    format!("pons.own.{id}")
}

/// How much a notification says.
fn payload(channel: &Value, asked: Channel, allowed: &Subscribes, faults: &mut Faults) -> Option<Payload> {
    let (wanted, code) = (asked.payload(), asked.code());
    if channel["payload"] != wanted {
        faults
            .add("Subscription.channel.payload", format!("not supported; payloads of {code} are: {wanted}"));
    }
    let said = extension(&channel["_payload"], "backport-payload-content");
    let said = said.and_then(|one| one.get("valueCode")?.as_str());
    let open = Payload::ALL.iter().filter(|(_, payload)| *payload <= allowed.content);
    // A message of HL7 v2 says everything.
    let open = open.filter(|(_, payload)| asked != Channel::Mllp || *payload == Payload::FullResource);
    let found = open.clone().find(|(known, _)| Some(*known) == said);
    if found.is_none() {
        let open: Vec<&str> = open.map(|(code, _)| *code).collect();
        let open =
            if open.is_empty() { "none that this client may have".to_owned() } else { open.join(", ") };
        let place = "Subscription.channel.payload.extension";
        faults.add(place, format!("backport-payload-content is wanted, and of it for {code}: {open}"));
    }
    found.map(|(_, payload)| *payload)
}

/// What goes along with each notification.
fn headers(channel: &Value, faults: &mut Faults) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let (mut count, mut bytes) = (0, 0);
    for (index, one) in items(&channel["header"]).enumerate() {
        let place = format!("Subscription.channel.header[{index}]");
        let text = one.as_str().unwrap_or_default();
        (count, bytes) = (count + 1, bytes + text.len());
        let parts = text.split_once(':').and_then(|(name, value)| {
            let name: HeaderName = name.trim().parse().ok()?;
            Some((name, HeaderValue::from_str(value.trim()).ok()?))
        });
        match parts {
            None => faults.add(&place, "`Name: value` is wanted, as in a request of HTTP"),
            Some((name, _)) if OUR_HEADERS.contains(&name.as_str()) => {
                faults.add(&place, format!("{name} is set by the gateway"));
            }
            Some((name, mut value)) => {
                value.set_sensitive(true);
                headers.append(name, value);
            }
        }
    }
    if count > HEADERS_MAX || bytes > HEADERS_BYTES_MAX {
        let text = format!("at most {HEADERS_MAX} headers of {HEADERS_BYTES_MAX} bytes together are sent");
        faults.add("Subscription.channel.header", text);
    }
    headers
}

/// Where notifications go, and whether that must be on the public internet.
fn endpoint(
    channel: &Value,
    asked: Channel,
    allowed: &Subscribes,
    faults: &mut Faults,
) -> Option<(hyper::Uri, bool)> {
    let place = "Subscription.channel.endpoint";
    let (schemes, wanted) = match asked {
        Channel::Mllp => (["mllp", "mllps"], "a URL mllp://host:port or mllps://host:port is wanted"),
        _ => (["http", "https"], "an http: or https: URL is wanted"),
    };
    let url = channel["endpoint"].as_str().and_then(url);
    let Some(url) = url.filter(|url| url.scheme_str().is_some_and(|scheme| schemes.contains(&scheme))) else {
        faults.add(place, wanted);
        return None;
    };
    let holding: Vec<&Endpoints> = allowed.endpoints.iter().filter(|listed| listed.hold(&url)).collect();
    if holding.is_empty() {
        let text =
            "not one of the endpoints that the configuration allows this client (`subscribes`, `endpoints`)";
        faults.add(place, text);
        return None;
    }
    // Whoever listed it by name knows where it lies.
    let is_public = holding.iter().all(|listed| **listed == Endpoints::Public);
    Some((url, is_public))
}
