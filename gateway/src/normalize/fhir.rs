//! FHIR messages: what a client wrote becomes facts without a mapping; only ids and references are made ours.
//!
//! A client's own ids (`PUT Patient/123`) are identifiers of that client: two clients may use the same ones. A resource is
//! known by them and by its own identifiers, so what an HL7 v2 sender said of the same patient is the same resource.
//! An update replaces the resource; a create never changes one that exists (its identifiers name it already), so that a thin
//! Patient beside a result cannot wipe a rich one.

use super::{Facts, Mapped, What};
use crate::store::OpenMessage;
use mappings::id_of;
use mappings::resource::{Contribution, Existing, Stamp};
use serde_json::Value;
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

/// One write of a message.
struct Write {
    full_url: Option<String>,
    update: bool,
    none_exist: Option<(String, String)>,
    resource: Value,
}

impl Reader<'_> {
    fn read(&self) -> Result<Facts, String> {
        let body: Value =
            serde_json::from_slice(&self.open.bytes).map_err(|_| "the body is not JSON".to_owned())?;
        let labels = labels(&body);
        let writes = match body["resourceType"].as_str() {
            Some("Bundle") if self.open.message_type.starts_with("Bundle") => bundle(body)?,
            Some(_) => {
                let update = self.open.message_type.starts_with("PUT");
                vec![Write { full_url: None, update, none_exist: None, resource: body }]
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
                Ok(What::Whole(contribution.clone(), elements(resource)))
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
        let mut aliases = Vec::new();
        let mut id = None;
        if write.update {
            let own = write.resource["id"].as_str().unwrap_or_default();
            match own.parse::<Uuid>() {
                Ok(ours) => id = Some(ours),
                Err(_) => aliases.push((self.own_ids(), own.to_owned())),
            }
        }
        aliases.extend(write.none_exist.clone());
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
        let on_existing = if write.update { Existing::Merge } else { Existing::Keep };
        Contribution { resource_type: kind.to_owned().into(), id, aliases, on_existing, slots: Vec::new() }
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

fn bundle(mut body: Value) -> Result<Vec<Write>, String> {
    let message = body["type"] == "message";
    let entries = match body["entry"].take() {
        Value::Array(entries) => entries,
        _ => Vec::new(),
    };
    entries
        .into_iter()
        .enumerate()
        .map(|(index, mut entry)| {
            let place = format!("Bundle.entry[{index}]");
            let resource = entry["resource"].take();
            if resource["resourceType"].as_str().is_none() {
                return Err(format!("{place}: expected a resource"));
            }
            let update = match entry["request"]["method"].as_str() {
                Some("PUT") => true,
                Some("POST") => false,
                None if message => resource["id"].is_string(),
                _ => return Err(format!("{place}.request.method: expected POST or PUT")),
            };
            let none_exist = match entry["request"]["ifNoneExist"].as_str() {
                None => None,
                Some(search) => Some(by_identifier(search).ok_or_else(|| {
                    format!("{place}.request.ifNoneExist: expected identifier=system|value")
                })?),
            };
            if entry["request"]["url"].as_str().is_some_and(|url| url.contains('?')) {
                return Err(format!("{place}.request.url: a conditional update is not taken"));
            }
            let full_url = entry["fullUrl"].as_str().map(str::to_owned);
            Ok(Write { full_url, update, none_exist, resource })
        })
        .collect()
}

/// Reads `identifier=system|value`, percent-encoded or not.
fn by_identifier(search: &str) -> Option<(String, String)> {
    let token = search.strip_prefix("identifier=")?;
    let token = token
        .replace("%7C", "|")
        .replace("%7c", "|")
        .replace("%3A", ":")
        .replace("%3a", ":")
        .replace("%2F", "/")
        .replace("%2f", "/");
    let (system, value) = token.split_once('|')?;
    let plain = !system.is_empty() && !value.is_empty() && !token.contains(['&', '%', ',']);
    plain.then(|| (system.to_owned(), value.to_owned()))
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
                What::Whole(contribution, elements) => {
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
                json!({"request": {"method": "POST", "ifNoneExist": "name=x"}, "resource": patient}),
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
