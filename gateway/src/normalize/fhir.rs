//! FHIR messages: what a client wrote becomes facts without a mapping; only ids and references are made ours.
//!
//! A client's own ids (`PUT Patient/123`) are identifiers of that client: two clients may use the same ones. A resource is
//! known by them and by its own identifiers, so what an HL7 v2 sender said of the same patient is the same resource.
//! Whatever the client says of a write besides its resource (which version it changes, what must not be there, what it searches for)
//! is read here, and judged where it is recorded, so that nothing comes in between.
//! An update replaces the resource; a create never changes one that exists (its identifiers name it already), so that a thin
//! Patient beside a result cannot wipe a rich one.

use super::{Called, Expects, Facts, Mapped, What, Whole};
use crate::store::OpenMessage;
use mappings::id_of;
use mappings::resource::{Contribution, Existing, Stamp};
use schemas::fhir::search;
use serde_json::{Map, Value};
use std::collections::HashMap;
use uuid::Uuid;

/// Reads the facts of a FHIR message. Pure.
pub(super) fn facts(open: &OpenMessage, namespace: Uuid) -> Mapped {
    Mapped {
        event: None,
        mapping: format!("fhir {}", env!("CARGO_PKG_VERSION")),
        issues: Vec::new(),
        unmapped: super::Unmapped::default(),
        facts: Reader { open, namespace }.read(),
    }
}

struct Reader<'o> {
    open: &'o OpenMessage,
    namespace: Uuid,
}

/// Where and why a message is not as it has to be.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// FHIRPath; empty for a write that came by itself.
    pub place: String,
    /// What was expected.
    pub text: String,
}

impl Fault {
    fn at(place: &str, member: &str, text: impl Into<String>) -> Self {
        let place = match (place, member) {
            ("", member) => member.to_owned(),
            (place, "") => place.to_owned(),
            (place, member) => format!("{place}.{member}"),
        };
        Fault { place, text: text.into() }
    }

    fn sentence(self) -> String {
        format!("{}: {}", self.place, self.text)
    }
}

/// One write of a message.
struct Write {
    full_url: Option<String>,
    asked: Asked,
    resource: Value,
}

/// What a write asks for besides its resource, as `Bundle.entry.request` says it.
#[derive(Default)]
struct Asked {
    update: bool,
    /// The identifier that it searches for: a create that is one only if nobody has it, or an update of whoever has it.
    criterion: Option<(String, String)>,
    expects: Expects,
}

/// The member of a message's context under which a write that came by itself says what an entry of a Bundle says in its `request`.
const REQUEST: &str = "request";
/// The members of a `request`: a header of that name each, and what stands in the address behind the type.
pub const IF_MATCH: &str = "ifMatch";
/// See [`IF_MATCH`].
pub const IF_NONE_MATCH: &str = "ifNoneMatch";
/// See [`IF_MATCH`].
pub const IF_NONE_EXIST: &str = "ifNoneExist";
/// See [`IF_MATCH`].
pub const URL: &str = "url";

/// The context of a message with what its request asked for in it.
pub fn into_context(context: &str, request: &Map<String, Value>) -> String {
    if request.is_empty() {
        return context.to_owned();
    }
    let mut object: Map<String, Value> = serde_json::from_str(context).unwrap_or_default();
    object.insert(REQUEST.to_owned(), request.clone().into());
    Value::Object(object).to_string()
}

/// What the request of a message asked for, by its context.
pub fn asked_in(context: &str) -> Map<String, Value> {
    let mut context: Value = serde_json::from_str(context).unwrap_or_default();
    match context[REQUEST].take() {
        Value::Object(request) => request,
        _ => Map::new(),
    }
}

/// Whether what a write asks for besides its resource can be done: of a Bundle what its entries say, else what `request` does, of an
/// update or a create.
///
/// # Errors
/// The first thing that cannot, and its place.
pub fn check(resource: &Value, update: bool, request: &Map<String, Value>) -> Result<(), Fault> {
    if resource["resourceType"] != "Bundle" {
        return Asked::read(&Value::Object(request.clone()), resource, "", update).map(drop);
    }
    if let Some(member) = request.keys().next() {
        return Err(Fault::at(
            "",
            member,
            "a Bundle as a whole has no conditions: its entries have, in their request",
        ));
    }
    let entries = resource["entry"].as_array().map_or(&[][..], Vec::as_slice);
    let is_message = resource["type"] == "message";
    entries.iter().enumerate().try_for_each(|(index, entry)| {
        let place = format!("Bundle.entry[{index}]");
        Asked::of_entry(entry, &entry["resource"], &place, is_message).map(drop)
    })
}

impl Asked {
    fn of_entry(entry: &Value, resource: &Value, place: &str, is_message: bool) -> Result<Asked, Fault> {
        let Some(kind) = resource["resourceType"].as_str() else {
            return Err(Fault::at(place, "", "expected a resource"));
        };
        let request = &entry["request"];
        if is_message && request["method"].is_null() {
            return Ok(Asked { update: resource["id"].is_string(), ..Asked::default() });
        }
        let is_update = match request["method"].as_str() {
            Some("PUT") => true,
            Some("POST") => false,
            _ => return Err(Fault::at(place, "request.method", "expected POST or PUT")),
        };
        // What the address names is the resource that was sent.
        let (path, has_condition) = match request[URL].as_str().unwrap_or_default().split_once('?') {
            Some((path, _)) => (path, true),
            None => (request[URL].as_str().unwrap_or_default(), false),
        };
        let mut parts = path.trim_end_matches('/').rsplit('/');
        if is_update && !has_condition && parts.next() != resource["id"].as_str() {
            return Err(Fault::at(place, "request.url", "expected the type and the id of the resource"));
        }
        if parts.next() != Some(kind) {
            return Err(Fault::at(place, "request.url", "expected the type of the resource"));
        }
        Asked::read(request, resource, &format!("{place}.request"), false)
    }

    /// Reads a request; one without a method is what `update` says.
    fn read(request: &Value, resource: &Value, place: &str, update: bool) -> Result<Asked, Fault> {
        let update = request["method"].as_str().map_or(update, |method| method == "PUT");
        let mut asked = Asked { update, ..Asked::default() };
        let fault = |member: &str, text: &str| Err(Fault::at(place, member, text));
        const CRITERION: &str =
            "expected one condition, identifier=system|value, and that the resource has this identifier";
        // One that the resource does not have would name it from then on, though nobody ever said so.
        let criterion = |text: &str| {
            let found = by_identifier(text)?;
            let has = |one: &Value| one["system"] == found.0.as_str() && one["value"] == found.1.as_str();
            identifiers(resource).into_iter().any(has).then_some(found)
        };
        if let Some(text) = request[IF_NONE_EXIST].as_str() {
            if update {
                return fault(IF_NONE_EXIST, "is of a create (POST)");
            }
            asked.criterion = match criterion(text) {
                None => return fault(IF_NONE_EXIST, CRITERION),
                found => found,
            };
        }
        if let Some((_, text)) = request[URL].as_str().and_then(|url| url.split_once('?')) {
            if !update {
                return fault(URL, "a create has no conditions in its address: ifNoneExist says them");
            }
            asked.criterion = match criterion(text) {
                None => return fault(URL, CRITERION),
                found => found,
            };
        }
        if let Some(text) = request[IF_MATCH].as_str() {
            match version(text) {
                _ if !update => return fault(IF_MATCH, "is of an update (PUT)"),
                Some(Some(version)) => asked.expects.version = Some(version),
                Some(None) => asked.expects.exists = Some(true),
                None => return fault(IF_MATCH, "expected one version, as in W/\"3\", or *"),
            }
        }
        if let Some(text) = request[IF_NONE_MATCH].as_str() {
            match text.trim() {
                "*" if update => asked.expects.exists = Some(false),
                _ => {
                    return fault(IF_NONE_MATCH, "expected *, of an update (PUT): only if there is none yet");
                }
            }
        }
        Ok(asked)
    }
}

/// Reads the version in an ETag; `Some(None)` is any, `*`.
fn version(text: &str) -> Option<Option<i64>> {
    let text = text.trim();
    if text == "*" {
        return Some(None);
    }
    let number = text.strip_prefix("W/").unwrap_or(text).strip_prefix('"')?.strip_suffix('"')?;
    Some(Some(number.parse().ok().filter(|number| *number > 0)?))
}

impl Reader<'_> {
    fn read(&self) -> Result<Facts, String> {
        let body: Value =
            serde_json::from_slice(&self.open.bytes).map_err(|_| "the body is not JSON".to_owned())?;
        let labels = labels(&body);
        let writes = match body["resourceType"].as_str() {
            Some("Bundle") if self.open.message_type.starts_with("Bundle") => {
                bundle(body).map_err(Fault::sentence)?
            }
            Some(_) => {
                let update = self.open.message_type.starts_with("PUT");
                let request = asked_in(&self.open.context).into();
                let asked = Asked::read(&request, &body, "", update).map_err(Fault::sentence)?;
                vec![Write { full_url: None, asked, resource: body }]
            }
            None => return Err("resourceType is missing".to_owned()),
        };
        let contributions: Vec<Contribution> =
            writes.iter().enumerate().map(|(index, write)| self.contribution(index, write)).collect();
        let links: HashMap<&str, String> = writes
            .iter()
            .zip(&contributions)
            .filter_map(|(write, one)| {
                Some((write.full_url.as_deref()?, format!("{}/{}", one.resource_type, one.id)))
            })
            .collect();
        let what = writes
            .iter()
            .zip(&contributions)
            .map(|(write, contribution)| {
                let mut resource = write.resource.clone();
                self.link(&mut resource, &links)?;
                let elements = elements(resource);
                let mut expects = write.asked.expects.clone();
                if write.asked.update {
                    expects.called = self.called(&write.resource);
                    expects.criterion = write.asked.criterion.clone();
                }
                Ok(What::Whole(Box::new(Whole { contribution: contribution.clone(), elements, expects })))
            })
            .collect::<Result<_, String>>()?;
        let sender = self.open.sender.clone();
        let bundle = labels.as_ref().map_or(String::new(), |labels| format!("\"meta\":{labels}"));
        let labels = labels.map(|labels| labels.to_string().into());
        let stamp = Stamp { sender, at: None, number: None, seq: self.open.seq.0, labels };
        Ok(Facts { bundle, what, effects: Vec::new(), stamp })
    }

    fn contribution(&self, index: usize, write: &Write) -> Contribution {
        let kind = write.resource["resourceType"].as_str().unwrap_or_default();
        let mut aliases: Vec<(String, String)> = write.asked.criterion.iter().cloned().collect();
        let mut id = None;
        match self.called(&write.resource).filter(|_| write.asked.update) {
            Some(Called::Ours(ours)) => id = Some(ours),
            Some(Called::Theirs(system, value)) => aliases.push((system, value)),
            None => {}
        }
        for identifier in identifiers(&write.resource) {
            if let (Some(system), Some(value)) = (identifier["system"].as_str(), identifier["value"].as_str())
                && !aliases.iter().any(|(s, v)| s == system && v == value)
            {
                aliases.push((system.to_owned(), value.to_owned()));
            }
        }
        let id = id.unwrap_or_else(|| match aliases.first() {
            Some((system, value)) => id_of(self.namespace, kind, system, value),
            None => id_of(self.namespace, kind, "urn:pons:message", &format!("{}#{index}", self.open.id)),
        });
        let on_existing = if write.asked.update { Existing::Merge } else { Existing::Keep };
        Contribution {
            resource_type: kind.to_owned().into(),
            id,
            aliases,
            within: None,
            on_existing,
            slots: Vec::new(),
        }
    }

    /// What a client calls a resource, if it says so.
    fn called(&self, resource: &Value) -> Option<Called> {
        let own = resource["id"].as_str()?;
        Some(match own.parse::<Uuid>() {
            Ok(ours) => Called::Ours(ours),
            Err(_) => Called::Theirs(self.own_ids(), own.to_owned()),
        })
    }

    /// The system under which a client's own ids are kept apart from everybody else's.
    fn own_ids(&self) -> String {
        format!("urn:pons:client:{}", self.open.sender)
    }

    /// Makes every reference point at our ids.
    fn link(&self, value: &mut Value, links: &HashMap<&str, String>) -> Result<(), String> {
        match value {
            Value::Array(items) => items.iter_mut().try_for_each(|item| self.link(item, links)),
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get_mut("reference") {
                    if let Some(ours) = links.get(reference.as_str()) {
                        reference.clone_from(ours);
                    } else if reference.contains('?') {
                        return Err(
                            "a conditional reference (Type?search) is not taken: send the resource or its id"
                                .to_owned(),
                        );
                    } else if let Some((kind, id)) = relative(reference)
                        && id.parse::<Uuid>().is_err()
                    {
                        *reference = format!("{kind}/{}", id_of(self.namespace, kind, &self.own_ids(), id));
                    }
                }
                members.values_mut().try_for_each(|member| self.link(member, links))
            }
            _ => Ok(()),
        }
    }
}

/// The identifiers of a resource; some types have one, others a list.
fn identifiers(resource: &Value) -> Vec<&Value> {
    match &resource["identifier"] {
        Value::Array(list) => list.iter().collect(),
        Value::Object(_) => vec![&resource["identifier"]],
        _ => Vec::new(),
    }
}

/// A relative reference in its two parts.
fn relative(reference: &str) -> Option<(&str, &str)> {
    let (kind, id) = reference.split_once('/')?;
    let plain =
        kind.chars().all(|c| c.is_ascii_alphabetic()) && kind.starts_with(|c: char| c.is_ascii_uppercase());
    (plain && !id.is_empty() && !id.contains('/')).then_some((kind, id))
}

fn bundle(mut body: Value) -> Result<Vec<Write>, Fault> {
    let is_message = body["type"] == "message";
    let entries = match body["entry"].take() {
        Value::Array(entries) => entries,
        _ => Vec::new(),
    };
    entries
        .into_iter()
        .enumerate()
        .map(|(index, mut entry)| {
            let resource = entry["resource"].take();
            let asked = Asked::of_entry(&entry, &resource, &format!("Bundle.entry[{index}]"), is_message)?;
            Ok(Write { full_url: entry["fullUrl"].as_str().map(str::to_owned), asked, resource })
        })
        .collect()
}

/// Reads `identifier=system|value`, as it stands in an address.
fn by_identifier(text: &str) -> Option<(String, String)> {
    let mut pairs = form_urlencoded::parse(text.as_bytes());
    let (name, token) = pairs.next()?;
    if name != "identifier" || pairs.next().is_some() {
        return None;
    }
    search::identifier(&token)
}

/// The tags and security labels of a Bundle: they are those of everything in it.
fn labels(body: &Value) -> Option<Value> {
    let mut meta = body["meta"].as_object().filter(|_| body["resourceType"] == "Bundle")?.clone();
    meta.retain(|name, _| name == "tag" || name == "security");
    (!meta.is_empty()).then_some(Value::Object(meta))
}

/// The elements of a resource as the store keeps them; what the server gives (id, version, time) is left out.
fn elements(resource: Value) -> Vec<(String, String)> {
    let Value::Object(members) = resource else { return Vec::new() };
    members
        .into_iter()
        .filter(|(name, _)| name != "resourceType" && name != "id")
        .filter_map(|(name, mut value)| {
            if name == "meta"
                && let Value::Object(meta) = &mut value
            {
                meta.remove("versionId");
                meta.remove("lastUpdated");
                if meta.is_empty() {
                    return None;
                }
            }
            Some((name, value.to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Format;
    use schemas::message::{MessageId, Seq};
    use serde_json::json;

    fn open(message_type: &str, body: &Value) -> OpenMessage {
        OpenMessage {
            seq: Seq(1),
            id: MessageId(Uuid::from_u128(1)),
            received_at: jiff::Timestamp::UNIX_EPOCH,
            sender: "portal".into(),
            format: Format::FhirJson,
            message_type: message_type.to_owned(),
            bytes: body.to_string().into(),
            keys: Vec::new(),
            context: String::new(),
            revision: 0,
        }
    }

    fn read(message_type: &str, body: &Value) -> Result<Vec<(Contribution, Value)>, String> {
        let facts = facts(&open(message_type, body), Uuid::from_u128(9)).facts?;
        Ok(facts
            .what
            .into_iter()
            .map(|what| match what {
                What::Whole(whole) => {
                    let Whole { contribution, elements, .. } = *whole;
                    let elements = elements
                        .into_iter()
                        .map(|(name, json)| (name, serde_json::from_str(&json).expect("JSON")));
                    (contribution, Value::Object(elements.collect()))
                }
                What::Slots(_) => unreachable!("FHIR is taken whole"),
            })
            .collect())
    }

    #[test]
    fn references_within_a_transaction_point_at_our_ids() {
        let body = json!({"resourceType": "Bundle", "type": "transaction", "entry": [
            {"fullUrl": "urn:uuid:a", "request": {"method": "POST", "url": "Patient"},
             "resource": {"resourceType": "Patient", "identifier": [{"system": "urn:oid:1", "value": "T1"}]}},
            {"request": {"method": "POST", "url": "Observation"},
             "resource": {"resourceType": "Observation", "subject": {"reference": "urn:uuid:a"}, "valueQuantity": {"value": 0}}},
        ]});
        let mut body = body;
        body["entry"][1]["resource"]["valueQuantity"]["value"] =
            serde_json::from_str("1.50").expect("a number");
        let read = read("Bundle transaction", &body).expect("taken");
        let patient = &read[0].0;
        assert_eq!(patient.aliases, [("urn:oid:1".to_owned(), "T1".to_owned())]);
        assert_eq!(patient.on_existing, Existing::Keep);
        assert_eq!(read[1].1["subject"]["reference"], json!(format!("Patient/{}", patient.id)));
        assert_eq!(read[1].1["valueQuantity"]["value"].to_string(), "1.50", "every digit is kept");
    }

    #[test]
    fn a_clients_own_id_is_its_own_and_is_found_again_by_reference() {
        let put = read("PUT Patient", &json!({"resourceType": "Patient", "id": "123", "gender": "other"}))
            .expect("taken");
        assert_eq!(put[0].0.aliases, [("urn:pons:client:portal".to_owned(), "123".to_owned())]);
        assert_eq!(put[0].0.on_existing, Existing::Merge);
        let about = read(
            "POST Observation",
            &json!({"resourceType": "Observation", "subject": {"reference": "Patient/123"}}),
        );
        assert_eq!(
            about.expect("taken")[0].1["subject"]["reference"],
            json!(format!("Patient/{}", put[0].0.id))
        );
    }

    #[test]
    fn what_cannot_be_kept_is_refused_with_its_place() {
        let bundle =
            |entry: Value| json!({"resourceType": "Bundle", "type": "transaction", "entry": [entry]});
        let patient = json!({"resourceType": "Patient"});
        for (entry, place) in [
            (
                json!({"request": {"method": "DELETE", "url": "Patient/1"}, "resource": patient}),
                "entry[0].request.method",
            ),
            (json!({"request": {"method": "POST", "url": "Patient"}}), "entry[0]: expected a resource"),
            (
                json!({"request": {"method": "POST", "url": "Patient", "ifNoneExist": "name=x"}, "resource": patient}),
                "ifNoneExist",
            ),
            (
                json!({"request": {"method": "PUT", "url": "Patient?identifier=x"}, "resource": patient}),
                "request.url",
            ),
        ] {
            let error = read("Bundle transaction", &bundle(entry)).expect_err(place);
            assert!(error.contains(place), "{error}");
        }
        let conditional =
            json!({"resourceType": "Observation", "subject": {"reference": "Patient?identifier=a|b"}});
        assert!(read("POST Observation", &conditional).is_err());
    }

    #[test]
    fn what_the_server_gives_is_left_out() {
        let body = json!({"resourceType": "Patient", "id": "1", "meta": {"versionId": "7", "lastUpdated": "2026-01-01T00:00:00Z"}, "active": true});
        assert_eq!(read("PUT Patient", &body).expect("taken")[0].1, json!({"active": true}));
    }
}
