//! `Patient/[id]/$everything`: what is known of one patient, and what is needed to read it, page by page.
//!
//! # Source
//! FHIR R4, operation Patient/everything.

use super::outcome::away;
use super::read::{AFTER, Found, LOOKED_AT_MAX, PAGE, PAGE_MAX, Shown, instant, page, page_size, survivor};
use super::{Answer, outcome};
use crate::ingest::senders::Known;
use crate::store::{Store, StoredResource};
use hyper::StatusCode;
use hyper::http::request::Parts;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};
use uuid::Uuid;

/// Types that tell who, where and with what: they come along where something refers to them, unless they are themselves a patient's.
const ALONG: [&str; 7] = [
    "Practitioner",
    "PractitionerRole",
    "Organization",
    "Location",
    "HealthcareService",
    "Medication",
    "Device",
];

/// What is asked for.
struct Asked {
    types: Vec<String>,
    since: Option<Timestamp>,
    count: usize,
    after: Option<Uuid>,
    /// As they came, without our own.
    pairs: Vec<(String, String)>,
}

impl Asked {
    fn read(head: &Parts) -> Result<Asked, Answer> {
        let refuse = |text: &str| outcome::answer(StatusCode::BAD_REQUEST, "invalid", text);
        let mut asked = Asked { types: Vec::new(), since: None, count: PAGE, after: None, pairs: Vec::new() };
        for (name, value) in form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes()) {
            match &*name {
                "_count" => asked.count = page_size(&value, PAGE_MAX)?,
                AFTER => {
                    asked.after = Some(value.parse().map_err(|_| refuse("_after: an id is wanted"))?);
                }
                "_format" if value.contains("json") => {}
                "_type" => {
                    let types: Vec<String> = value.split(',').map(str::to_owned).collect();
                    if !types.iter().all(|of| schemas::fhir::r4().is_resource(of)) {
                        return Err(refuse("_type: resource types of R4 are wanted, parted by commas"));
                    }
                    asked.types.extend(types);
                    asked.pairs.push((name.into_owned(), value.into_owned()));
                }
                "_since" => {
                    asked.since = Some(instant(&value)?);
                    asked.pairs.push((name.into_owned(), value.into_owned()));
                }
                _ => return Err(refuse("parameters are: _type, _since, _count")),
            }
        }
        Ok(asked)
    }

    fn wants(&self, of: &str) -> bool {
        self.types.is_empty() || self.types.iter().any(|listed| listed == of)
    }
}

/// Answers it; `base` is where this server's resources lie.
///
/// # Errors
/// The answer to give instead.
pub(super) async fn everything(
    store: &dyn Store,
    client: &Known,
    head: &Parts,
    base: &str,
    id: &str,
) -> Result<Answer, Answer> {
    let asked = Asked::read(head)?;
    let unknown = || outcome::answer(StatusCode::NOT_FOUND, "not-found", "no such resource is known here");
    let named: Uuid = id.parse().map_err(|_| unknown())?;
    let held = store.held(&[named]).await.map_err(away)?;
    let own = held.into_iter().find(|held| held.resource_type == "Patient").ok_or_else(unknown)?;
    if let Shown::Withheld(why) = Shown::of(&own)? {
        return Err(outcome::answer(StatusCode::FORBIDDEN, "suppressed", &why));
    }
    let patient = survivor(store, named).await?;
    let mut tally = Tally { client, asked: &asked, found: Found::default(), unread: BTreeSet::new() };
    if asked.after.is_none() {
        let ids = if patient == named { vec![named] } else { vec![patient, named] };
        for held in store.held(&ids).await.map_err(away)? {
            tally.take(&held)?;
        }
    }
    let first = tally.found.matches.len();
    let mut after = asked.after;
    let mut looked_at = 0;
    let next = 'all: loop {
        let rows = store.held_of_patient(patient, None, after, PAGE_MAX).await.map_err(away)?;
        let is_full = rows.len() == PAGE_MAX;
        for held in &rows {
            if tally.found.matches.len() - first >= asked.count || looked_at == LOOKED_AT_MAX {
                break 'all after;
            }
            looked_at += 1;
            after = Some(held.id);
            if held.resource_type != "Patient" {
                tally.take(held)?;
            }
        }
        if !is_full {
            break None;
        }
    };
    let referred = tally.referred();
    for held in store.held(&referred).await.map_err(away)? {
        tally.along(&held)?;
    }
    let Tally { mut found, unread, .. } = tally;
    if !unread.is_empty() {
        let unread: Vec<&str> = unread.iter().map(String::as_str).collect();
        found.said.push(format!(
            "this client may not read: {}; what there is of these is left out",
            unread.join(", ")
        ));
    }
    Ok(page(
        base,
        &format!("Patient/{id}/$everything"),
        &asked.pairs,
        asked.count,
        (asked.after, next),
        found,
    ))
}

/// What has been found so far.
struct Tally<'t> {
    client: &'t Known,
    asked: &'t Asked,
    found: Found,
    /// Types of which there is something that the client may not read.
    unread: BTreeSet<String>,
}

impl Tally<'_> {
    /// Takes in something of the patient's.
    fn take(&mut self, held: &StoredResource) -> Result<(), Answer> {
        if let Some(json) = self.shown(held)? {
            self.found.matches.push(json);
        }
        Ok(())
    }

    /// Takes in what is referred to. What is a patient's stands among the matches if it is this one's, and is nobody's business here if
    /// it is another's: a device that has been handed on, say.
    fn along(&mut self, held: &StoredResource) -> Result<(), Answer> {
        if ALONG.contains(&held.resource_type.as_str())
            && let Some(json) = self.shown(held)?
            && is_nobodys(&json)
        {
            self.found.included.push(json);
        }
        Ok(())
    }

    fn shown(&mut self, held: &StoredResource) -> Result<Option<Value>, Answer> {
        let of = held.resource_type.as_str();
        if !self.asked.wants(of) {
            return Ok(None);
        }
        if !self.client.may_read(of) {
            self.unread.insert(of.to_owned());
            return Ok(None);
        }
        Ok(match Shown::of(held)? {
            Shown::Resource(json) => {
                let changed =
                    json["meta"]["lastUpdated"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
                let is_old = self.asked.since.zip(changed).is_some_and(|(since, changed)| changed < since);
                (!is_old).then_some(json)
            }
            Shown::Withheld(_) => {
                self.found.withheld += 1;
                None
            }
            Shown::Incomplete(_) => {
                self.found.incomplete += 1;
                None
            }
        })
    }

    /// The ids of what the page refers to and does not hold.
    fn referred(&self) -> Vec<Uuid> {
        let ids = |json: &Value| json["id"].as_str().and_then(|id| id.parse().ok());
        let here: HashSet<Uuid> = self.found.matches.iter().filter_map(ids).collect();
        let mut referred = BTreeSet::new();
        for json in &self.found.matches {
            references(json, &mut referred);
        }
        referred.into_iter().filter(|id| !here.contains(id)).collect()
    }
}

/// Whether a resource says of no patient that it is theirs.
fn is_nobodys(json: &Value) -> bool {
    json["patient"].is_null() && json["subject"].is_null()
}

/// The ids in the references of a resource to what may come along.
fn references(json: &Value, found: &mut BTreeSet<Uuid>) {
    match json {
        Value::Object(members) => {
            let reference = members.get("reference").and_then(Value::as_str);
            let parts = reference.and_then(|reference| reference.split_once('/'));
            if let Some((of, id)) = parts
                && ALONG.contains(&of)
                && let Ok(id) = id.parse()
            {
                found.insert(id);
            }
            members.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_resource_refers_to_is_found_wherever_it_stands() {
        let (a, b, c) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let resource = json!({
            "subject": {"reference": format!("Patient/{c}")},
            "participant": [{"individual": {"reference": format!("Practitioner/{a}")}}],
            "contained": [{"managingOrganization": {"reference": format!("Organization/{b}")}}],
            "serviceProvider": {"reference": "Organization/none"},
            "note": [{"text": format!("Practitioner/{c}")}],
        });
        let mut found = BTreeSet::new();
        references(&resource, &mut found);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [a, b]);
    }

    #[test]
    fn what_is_another_patients_does_not_come_along() {
        assert!(is_nobodys(&json!({"resourceType": "Device", "owner": {"reference": "Organization/1"}})));
        assert!(!is_nobodys(&json!({"resourceType": "Device", "patient": {"reference": "Patient/1"}})));
        assert!(!ALONG.contains(&"RelatedPerson") && !ALONG.contains(&"Patient"));
    }

    #[test]
    fn what_is_no_parameter_of_it_is_refused() {
        let asked = |query: &str| {
            let uri = format!("/fhir/Patient/1/$everything?{query}");
            let request = hyper::Request::builder().uri(uri).body(()).expect("valid");
            Asked::read(&request.into_parts().0)
        };
        for wrong in ["_type=Nothing", "_since=yesterday", "_count=x", "start=2020-01-01", "_after=x"] {
            assert!(asked(wrong).is_err(), "{wrong}");
        }
        let right = asked("_type=Encounter,Observation&_since=2026-01-01T00:00:00Z&_count=0&_format=json");
        let Ok(right) = right else { panic!("they are all right") };
        assert!(right.wants("Encounter") && !right.wants("Patient") && right.count == 1);
    }
}
