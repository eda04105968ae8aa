//! Who a message is from: a certificate or token where there is one, bound to MSH-3 and MSH-4.

use crate::config::{Sender, SourceConfig, Subscribes, Zone};
use adapters::Received;
use serde_json::Value;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// The member of a message's context that names the source of a document.
pub const SOURCE: &str = "source";
/// The one that holds what the wire said beside a document.
const WIRE: &str = "wire";

/// The senders and sources of the configuration, ready to be asked.
#[derive(Debug, Clone)]
pub struct Senders {
    senders: Vec<Sender>,
    sources: Vec<SourceConfig>,
}

/// A recognised sender on one source.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it sends production messages (MSH-11 `P`).
    pub production: bool,
    zone: Option<Zone>,
    types: Vec<String>,
    reads: Vec<String>,
}

/// Why a sender was not recognised. What it claimed is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stranger {
    /// Nobody of that application and facility is configured.
    Unlisted,
    /// The application and facility belong to a sender that proves itself by another certificate.
    Certificate,
    /// The sender may not use this source.
    Source,
}

impl Stranger {
    /// ERR-2.
    pub fn location(self) -> &'static str {
        match self {
            Stranger::Unlisted | Stranger::Certificate => "MSH-3",
            Stranger::Source => "",
        }
    }

    /// The sentence for the sender.
    pub fn text(self) -> &'static str {
        match self {
            Stranger::Unlisted => "this sending application and facility are not known here",
            Stranger::Certificate => "this sending application and facility go with another certificate",
            Stranger::Source => "this sender may not use this port",
        }
    }
}

impl Senders {
    /// From the configuration.
    pub fn new(senders: Vec<Sender>, sources: Vec<SourceConfig>) -> Self {
        Senders { senders, sources }
    }

    /// Finds the sender of a message by what the wire proved and by MSH-3.1 and MSH-4.1.
    ///
    /// Without configured senders anybody on loopback is taken under its own name; off loopback nobody is.
    ///
    /// # Errors
    /// [`Stranger`] when the claim and the proof do not fit any one sender.
    pub fn recognise(
        &self,
        received: &Received,
        application: &str,
        facility: &str,
    ) -> Result<Known, Stranger> {
        let source = self.sources.iter().find(|source| source.name == received.source);
        let production = source.is_none_or(|source| source.production);
        let source_zone = source.and_then(|source| source.zone.clone());
        if self.senders.is_empty() {
            let loopback = received.peer.is_none_or(|peer| peer.ip().to_canonical().is_loopback());
            if !loopback {
                return Err(Stranger::Unlisted);
            }
            return Ok(Known {
                name: own_name(application, facility),
                production,
                zone: source_zone,
                types: Vec::new(),
                reads: Vec::new(),
            });
        }
        let mut nearest = Stranger::Unlisted;
        for sender in &self.senders {
            let named =
                |list: &[String], claim: &str| list.is_empty() || list.iter().any(|name| name == claim);
            let by_token_only = sender.applications.is_empty()
                && sender.facilities.is_empty()
                && sender.certificates.is_empty();
            if by_token_only
                || !named(&sender.applications, application)
                || !named(&sender.facilities, facility)
            {
                continue;
            }
            let proven = sender.certificates.is_empty()
                || sender.certificates.iter().any(|name| received.certificate_names.contains(name));
            if !proven {
                nearest = Stranger::Certificate;
                continue;
            }
            if !sender.sources.is_empty() && !sender.sources.iter().any(|name| **name == *received.source) {
                nearest = Stranger::Source;
                continue;
            }
            return Ok(Known {
                name: sender.name.clone(),
                production,
                zone: sender.zone.clone().or(source_zone),
                types: sender.types.clone(),
                reads: sender.reads.clone(),
            });
        }
        Err(nearest)
    }

    /// What the configuration lets a sender subscribe to by itself.
    pub fn subscribes(&self, sender: &str) -> Option<&Subscribes> {
        self.senders.iter().find(|known| *known.name == *sender)?.subscribes.as_deref()
    }

    /// Finds the HTTP client that owns a bearer token. Every token is compared, each in constant time.
    pub fn by_token(&self, token: &str) -> Option<Known> {
        let mut found = None;
        for sender in &self.senders {
            let Some(own) = &sender.token else { continue };
            match own.value() {
                Ok(own) if bool::from(own.as_bytes().ct_eq(token.as_bytes())) => {
                    found = Some(Known::of(sender))
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(sender = %sender.name, %error, "a sender's token cannot be read")
                }
            }
        }
        found
    }

    /// Finds the HTTP client that owns a verified client certificate.
    pub fn by_certificate(&self, names: &[String]) -> Option<Known> {
        self.senders
            .iter()
            .find(|sender| sender.certificates.iter().any(|name| names.contains(name)))
            .map(Known::of)
    }

    /// A sender by its name.
    pub fn named(&self, name: &str) -> Option<Known> {
        self.senders.iter().find(|sender| *sender.name == *name).map(Known::of)
    }

    /// A client on a source, in the zone of the source where it has none of its own. `None` if it may not use it.
    pub fn on(&self, client: Known, source: &str) -> Option<Known> {
        let may_use =
            |sender: &Sender| sender.sources.is_empty() || sender.sources.iter().any(|name| name == source);
        let configured = self.senders.iter().find(|sender| sender.name == client.name);
        if !configured.is_none_or(may_use) {
            return None;
        }
        let zone =
            self.sources.iter().find(|known| *known.name == *source).and_then(|known| known.zone.clone());
        Some(Known { zone: client.zone.or(zone), ..client })
    }

    /// The mapping that reads what a source hands over, if it hands over documents.
    pub fn mapping_of(&self, source: &str) -> Option<&str> {
        self.sources.iter().find(|known| *known.name == *source)?.mapping.as_deref()
    }

    /// Whose documents a source fetches, if it does.
    pub fn sender_of(&self, source: &str) -> Option<&str> {
        self.sources.iter().find(|known| *known.name == *source)?.sender.as_deref()
    }

    /// Whether anybody is configured.
    pub fn is_empty(&self) -> bool {
        self.senders.is_empty()
    }

    /// The assigning authorities of a sender, as the configuration has them.
    pub fn systems(&self, name: &str) -> &[(String, String)] {
        self.senders.iter().find(|sender| &*sender.name == name).map_or(&[], |sender| &sender.systems)
    }
}

impl Known {
    fn of(sender: &Sender) -> Self {
        Known {
            name: sender.name.clone(),
            production: true,
            zone: sender.zone.clone(),
            types: sender.types.clone(),
            reads: sender.reads.clone(),
        }
    }

    /// A client on loopback of a gateway without configured senders.
    pub fn local() -> Self {
        Known { name: "local".into(), production: true, zone: None, types: Vec::new(), reads: Vec::new() }
    }

    /// Whether the configuration lets it read resources of this type.
    pub fn may_read(&self, resource_type: &str) -> bool {
        self.reads.iter().any(|listed| listed == "*" || listed == resource_type)
    }

    /// Whether the configuration lets it send this type.
    pub fn may_send(&self, code: &str, trigger: &str) -> bool {
        self.types.is_empty()
            || self.types.iter().any(|listed| match listed.split_once('^') {
                Some((listed_code, listed_trigger)) => listed_code == code && listed_trigger == trigger,
                None => listed == code,
            })
    }

    /// What the mapping may know beside the message, stored with it so that a replay gives the same bytes.
    pub fn context(&self) -> String {
        match &self.zone {
            Some(zone) => serde_json::json!({ "zone": zone.name }).to_string(),
            None => "{}".to_owned(),
        }
    }

    /// The same for a document, whose source says how it is read.
    pub fn context_on(&self, source: &str) -> String {
        match &self.zone {
            Some(zone) => serde_json::json!({ "zone": zone.name, SOURCE: source }).to_string(),
            None => serde_json::json!({ SOURCE: source }).to_string(),
        }
    }
}

/// A context with what the wire said beside a document.
pub fn with_wire(context: &str, wire: &[(Arc<str>, String)]) -> String {
    if wire.is_empty() {
        return context.to_owned();
    }
    let mut whole: serde_json::Map<String, Value> = serde_json::from_str(context).unwrap_or_default();
    let said = wire.iter().map(|(name, value)| (name.to_string(), Value::String(value.clone())));
    whole.insert(WIRE.to_owned(), Value::Object(said.collect()));
    Value::Object(whole).to_string()
}

/// What the wire said beside a document, by name.
pub fn wire_of(context: &Value) -> Vec<(String, String)> {
    let said = context[WIRE].as_object().into_iter().flatten();
    said.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// The name of a sender that nobody configured: `ADT1@GENHOSP`, cut to letters, digits and a few signs.
pub fn own_name(application: &str, facility: &str) -> Arc<str> {
    let plain = |text: &str| -> String {
        text.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')).take(32).collect()
    };
    match (plain(application), plain(facility)) {
        (a, f) if a.is_empty() && f.is_empty() => super::UNKNOWN.into(),
        (a, f) if f.is_empty() => a.into(),
        (a, f) => format!("{a}@{f}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(peer: &str, certificates: &[&str]) -> Received {
        Received {
            source: "main".into(),
            bytes: bytes::Bytes::new(),
            peer: Some(peer.parse().expect("an address")),
            certificate_names: certificates.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn sender(name: &str, facility: &str, certificate: Option<&str>) -> Sender {
        Sender {
            name: name.into(),
            facilities: vec![facility.to_owned()],
            certificates: certificate.iter().map(|name| (*name).to_owned()).collect(),
            ..Sender::default()
        }
    }

    #[test]
    fn a_certificate_of_one_sender_cannot_speak_for_another() {
        let senders = Senders::new(
            vec![sender("a", "HOSPA", Some("a.test")), sender("b", "HOSPB", Some("b.test"))],
            Vec::new(),
        );
        let claim = |facility, certificate: &[&str]| {
            senders
                .recognise(&received("192.0.2.1:9", certificate), "X", facility)
                .map(|known| known.name.to_string())
        };
        assert_eq!(claim("HOSPA", &["a.test"]), Ok("a".to_owned()));
        assert_eq!(claim("HOSPB", &["a.test"]), Err(Stranger::Certificate));
        assert_eq!(claim("HOSPA", &[]), Err(Stranger::Certificate));
        assert_eq!(claim("HOSPC", &["a.test"]), Err(Stranger::Unlisted));
    }

    #[test]
    fn without_configured_senders_only_loopback_is_taken() {
        let senders = Senders::new(Vec::new(), Vec::new());
        let known = senders.recognise(&received("127.0.0.1:9", &[]), "ADT1", "GEN HOSP\n").expect("loopback");
        assert_eq!(&*known.name, "ADT1@GENHOSP");
        assert!(senders.recognise(&received("192.0.2.1:9", &[]), "ADT1", "GENHOSP").is_err());
        assert!(senders.recognise(&received("[::ffff:127.0.0.1]:9", &[]), "A", "B").is_ok());
    }

    #[test]
    fn a_sender_with_a_token_alone_cannot_be_claimed_on_mllp() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "t0ken\n").expect("written");
        let token = Some(adapters::settings::Secret::File(file.path().to_owned()));
        let portal = Sender { name: "portal".into(), token, ..Sender::default() };
        let senders = Senders::new(vec![portal], Vec::new());
        assert!(senders.recognise(&received("127.0.0.1:9", &[]), "", "").is_err());
        assert_eq!(senders.by_token("t0ken").map(|known| known.name.to_string()), Some("portal".to_owned()));
        assert!(senders.by_token("t0ke").is_none());
        assert!(senders.by_token("").is_none());
    }

    #[test]
    fn a_sender_may_be_bound_to_sources_and_types() {
        let mut one = sender("a", "HOSPA", None);
        one.sources = vec!["other".to_owned()];
        one.types = vec!["ADT".to_owned(), "ORU^R01".to_owned()];
        let senders = Senders::new(vec![one.clone()], Vec::new());
        assert_eq!(
            senders.recognise(&received("127.0.0.1:9", &[]), "", "HOSPA").err(),
            Some(Stranger::Source)
        );
        let known = Known::of(&one);
        assert!(
            known.may_send("ADT", "A01") && known.may_send("ORU", "R01") && !known.may_send("ORU", "R32")
        );
    }
}
