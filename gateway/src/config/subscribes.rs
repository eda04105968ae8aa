//! What a sender may subscribe to over `/fhir` by itself: the key `subscribes` of a sender.

use super::{Writes, hint, place_of, row, writes};
use crate::route::notification::Payload;
use crate::route::requested::Channel;
use adapters::settings::{Fallback, Kind, Setting, SettingsReader};
use adapters::tls::{CLIENT_SETTINGS, ClientTls};
use hyper::Uri;
use schemas::yaml::{Fields, Mistake, Node};
use std::path::Path;

/// The keys of `subscribes`.
pub const SUBSCRIBES: &[Setting] = &[
    row(
        "topics",
        Kind::Text,
        Fallback::Required,
        "the topics that it may subscribe to, one or a list; `*` for any",
    ),
    row("senders", Kind::Text, Fallback::Required, "of whom it may learn, one or a list; `*` for any"),
    row(
        "channels",
        Kind::Text,
        Fallback::Value("rest-hook, message, websocket"),
        "how it may be told, one or a list: rest-hook, message, websocket, amqp (a queue of its own; needs `bus_management`), mllp \
         (needs `mllp`)",
    ),
    row(
        "endpoints",
        Kind::Text,
        Fallback::Absent,
        "where rest-hook, message and mllp may go, one or a list: what a URL begins with, such as https://payer.example/events or \
         mllps://ward.example:2575; `*` for any https: URL on the public internet",
    ),
    row(
        "content",
        Kind::Choice(&["full-resource", "id-only", "empty"]),
        Fallback::Value("full-resource"),
        "how much its notifications may say at most",
    ),
    row(
        "subscriptions_max",
        Kind::Count(1, 1_000),
        Fallback::Value("20"),
        "how many subscriptions it may have at once",
    ),
    row(
        "mllp",
        Kind::Text,
        Fallback::Absent,
        "how events are written as HL7 v2: a map of `write` (a mapping, or a map from topics to mappings), `systems` and the four \
         parties of MSH, as in a subscription",
    ),
    row(
        "tls",
        Kind::Map(CLIENT_SETTINGS),
        Fallback::Absent,
        "for https: and mllps: endpoints, which authorities are trusted and which certificate is shown (mTLS)",
    ),
];

/// The channels of one who lists none.
const CHANNELS: [Channel; 3] = [Channel::RestHook, Channel::Message, Channel::Websocket];

/// What a sender may subscribe to.
#[derive(Clone, Debug)]
pub struct Subscribes {
    /// Topics by name; `*` for any.
    pub topics: Vec<String>,
    /// Senders by name; `*` for any.
    pub senders: Vec<String>,
    /// How it may be told.
    pub channels: Vec<Channel>,
    /// Where notifications may go.
    pub endpoints: Vec<Endpoints>,
    /// How much they may say at most.
    pub content: Payload,
    /// How many subscriptions it may have.
    pub subscriptions_max: usize,
    /// How events are written for it as HL7 v2.
    pub mllp: Option<Writes>,
    /// How its `https:` and `mllps:` endpoints are reached; `None` trusts what the system trusts.
    pub tls: Option<ClientTls>,
}

/// Endpoints that are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// Any `https:` URL on the public internet.
    Public,
    /// What begins so: the same scheme, host and port, and the same first parts of the path.
    Under(Uri),
}

impl Endpoints {
    fn read(text: &str) -> Option<Endpoints> {
        if text == "*" {
            return Some(Endpoints::Public);
        }
        url(text).filter(|url| url.query().is_none()).map(Endpoints::Under)
    }

    /// Whether a URL is one of these.
    pub fn hold(&self, url: &Uri) -> bool {
        match self {
            Endpoints::Public => url.scheme_str() == Some("https"),
            Endpoints::Under(listed) => {
                let port = |url: &Uri| {
                    url.port_u16().or(match url.scheme_str() {
                        Some("https") => Some(443),
                        Some("http") => Some(80),
                        _ => Some(2575),
                    })
                };
                let host = |url: &Uri| url.host().map(str::to_ascii_lowercase);
                let begin = listed.path().trim_end_matches('/');
                let below = url.path().strip_prefix(begin);
                listed.scheme_str() == url.scheme_str()
                    && host(listed) == host(url)
                    && port(listed) == port(url)
                    && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }
}

/// An `http:`, `https:`, `mllp:` or `mllps:` URL with a host, without user, and whose path is read by every server as it stands: none that climbs, and
/// nothing that some decode or cut away first.
pub fn url(text: &str) -> Option<Uri> {
    let url: Uri = text.parse().ok()?;
    let is_known = match url.scheme_str() {
        Some("http" | "https") => true,
        Some("mllp" | "mllps") => matches!(url.path(), "" | "/") && url.query().is_none(),
        _ => false,
    };
    let authority = url.authority()?;
    let climbs = url.path().split('/').any(|part| {
        let part = part.to_ascii_lowercase().replace("%2e", ".");
        part == ".." || part == "."
    });
    let path = url.path().to_ascii_lowercase();
    let is_odd = [";", "\\", "%2f", "%5c", "%25", "%00"].iter().any(|odd| path.contains(odd));
    (is_known
        && !is_odd
        && !authority.host().is_empty()
        && !authority.as_str().contains('@')
        && !climbs
        && !text.contains('#'))
    .then_some(url)
}

/// Reads it, where it is given.
pub(super) fn read(
    node: &Node,
    path: &str,
    folder: &Path,
    mistakes: &mut Vec<Mistake>,
) -> Option<Subscribes> {
    let mut fields = Fields::new(node, path, mistakes);
    for key in ["topics", "senders"] {
        fields.take_required(key);
    }
    let topics = fields.take_texts("topics");
    let known = crate::route::topics::names();
    for topic in topics.iter().filter(|topic| **topic != "*" && !known.contains(topic)) {
        let place = place_of(node.get("topics"), topic).unwrap_or(fields.place());
        fields.wrong(place, "topics", format!("unknown topic; {}", hint(topic, &known)));
    }
    let senders = fields.take_texts("senders");
    let mut channels = Vec::new();
    for text in fields.take_texts("channels") {
        match Channel::find(text) {
            Some(channel) => channels.push(channel),
            None => {
                let place = place_of(node.get("channels"), text).unwrap_or(fields.place());
                let known = Channel::ALL.map(|(code, _)| code);
                fields.wrong(place, "channels", format!("unknown channel; {}", hint(text, &known)));
            }
        }
    }
    if node.get("channels").is_none() {
        channels = CHANNELS.to_vec();
    }
    let mllp = mllp(&mut fields, &topics);
    if mllp.is_none() && channels.contains(&Channel::Mllp) {
        let text = "is missing: how events are written as HL7 v2, such as `mllp: {write: write_oru_r01}`";
        fields.wrong(node.place, "mllp", text);
    }
    if let Some(given) = node.get("mllp").filter(|_| !channels.contains(&Channel::Mllp)) {
        fields.wrong(given.place, "mllp", "is of no use: `channels` does not list mllp");
    }
    if channels.iter().any(|channel| channel.has_endpoint()) {
        fields.take_required("endpoints");
    }
    let mut endpoints = Vec::new();
    for text in fields.take_texts("endpoints") {
        match Endpoints::read(text) {
            Some(one) => endpoints.push(one),
            None => {
                let place = place_of(node.get("endpoints"), text).unwrap_or(fields.place());
                fields.wrong(
                    place,
                    "endpoints",
                    "expected what an http:, https:, mllp: or mllps: URL begins with, or `*`",
                );
            }
        }
    }
    let is_mllp = |one: &Endpoints| matches!(one, Endpoints::Under(url) if url.scheme_str().is_some_and(|scheme| scheme.starts_with("mllp")));
    if channels.contains(&Channel::Mllp) && !endpoints.iter().any(is_mllp) {
        let place = node.get("endpoints").map_or(node.place, |node| node.place);
        fields.wrong(
            place,
            "endpoints",
            "mllp is listed, and no receiver: mllp://host:port or mllps://host:port",
        );
    }
    let mut reader = SettingsReader::new(&mut fields, SUBSCRIBES, folder);
    let content = reader.choice("content");
    let subscriptions_max = reader.count("subscriptions_max");
    let tls = reader.map("tls", ClientTls::read);
    fields.finish();
    let (_, content) = *Payload::ALL.iter().find(|(code, _)| *code == content)?;
    let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
    Some(Subscribes {
        topics: owned(topics),
        senders: owned(senders),
        channels,
        endpoints,
        content,
        subscriptions_max,
        mllp,
        tls,
    })
}

/// How events are written as HL7 v2, where it is given.
fn mllp(fields: &mut Fields<'_, '_>, topics: &[&str]) -> Option<Writes> {
    let node = fields.take("mllp")?;
    let path = fields.path_of("mllp");
    let known = crate::route::topics::names();
    let topics = if topics.contains(&"*") { &known } else { topics };
    let mut fields = Fields::new(node, &path, fields.mistakes());
    fields.take_required("write");
    let writes = writes::read(&mut fields, node, topics, false);
    fields.finish();
    writes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_allowed_by_what_its_url_begins_with() {
        let check = |listed: &str, asked: &str, expected: bool| {
            let listed = Endpoints::read(listed).expect("it is one");
            assert_eq!(url(asked).is_some_and(|url| listed.hold(&url)), expected, "{asked}");
        };
        let listed = "https://payer.example/events";
        for right in ["https://payer.example/events", "https://PAYER.example:443/events/a?b=c"] {
            check(listed, right, true);
        }
        for wrong in [
            "https://payer.example/events2",
            "https://payer.example/",
            "https://payer.example/events/../admin",
            "https://payer.example/events/%2e%2E/admin",
            "https://payer.example/events/..;/admin",
            "https://payer.example/events/x%2F..%2f..%2Fadmin",
            "https://payer.example/events/..%5cadmin",
            "https://payer.example/events/%252e%252e/admin",
            "http://payer.example/events",
            "https://payer.example:8443/events",
            "https://payer.example.evil.example/events",
            "https://payer.example@evil.example/events",
            "https://evil.example/?https://payer.example/events",
            "ftp://payer.example/events",
        ] {
            check(listed, wrong, false);
            check(
                "*",
                wrong,
                wrong.starts_with("https:")
                    && !wrong.contains("..")
                    && !wrong.contains('%')
                    && !wrong.contains('@'),
            );
        }
        check("http://10.0.0.7:8080", "http://10.0.0.7:8080/any", true);
        assert_eq!(Endpoints::read("payer.example"), None);
    }
}
