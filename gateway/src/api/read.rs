//! FHIR out: what a client reads of what is known now, one resource or a page of a search.
//!
//! Who may read what is decided here before the store is asked, and again by the labels of each resource. A search names whom it is
//! about: there is no way to leaf through everybody's records.

use super::everything::everything;
use super::outcome::away;
use super::{Answer, history, outcome};
use crate::ingest::senders::Known;
use crate::route::policy::{self, Decision};
use crate::store::{Alias, Store, StoredResource};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode, header};
use jiff::Timestamp;
use mappings::resource::State;
use schemas::fhir::r4;
use schemas::fhir::search::{self, Query, Refused, parameter};
use serde_json::{Value, json};
use uuid::Uuid;

/// How many resources a page has unless `_count` says otherwise, and at most.
pub(super) const PAGE: usize = 50;
pub(super) const PAGE_MAX: usize = 500;
/// How many resources are looked at for one page; what lies beyond is on the next.
pub(super) const LOOKED_AT_MAX: usize = 2_000;
/// The parameter of our own links to the next page: the id after which it begins.
pub(super) const AFTER: &str = "_after";

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// `GET /fhir/[type]/[id]`
    Read(String, String),
    /// `GET /fhir/[type]/[id]/_history/[version]`
    Version(String, String, String),
    /// `GET /fhir/[type]/[id]/_history`
    History(String, String),
    /// `GET /fhir/[type]?...`, or `POST /fhir/[type]/_search` ([`into_query`]).
    Search(String),
    /// `GET /fhir/Patient/[id]/$everything`
    Everything(String),
}

/// Reads what is asked from a method and a path below `/fhir`.
pub fn ask(method: &Method, path: &str) -> Option<Ask> {
    // Some clients write the `$` of an operation as a URL may have it.
    let path = path.replace("%24", "$");
    let parts: Vec<&str> = path.trim_end_matches('/').split('/').skip(2).collect();
    Some(match (method, parts.as_slice()) {
        (&Method::GET, [kind]) => Ask::Search((*kind).to_owned()),
        // Subscriptions are not among what the store holds: their owners ask for them by GET.
        (&Method::POST, [kind, "_search"]) if *kind != "Subscription" => Ask::Search((*kind).to_owned()),
        (&Method::GET, [kind, id]) => Ask::Read((*kind).to_owned(), (*id).to_owned()),
        (&Method::GET, [kind, id, "_history"]) => Ask::History((*kind).to_owned(), (*id).to_owned()),
        (&Method::GET, [kind, id, "_history", version]) => {
            Ask::Version((*kind).to_owned(), (*id).to_owned(), (*version).to_owned())
        }
        (&Method::GET, ["Patient", id, "$everything"]) => Ask::Everything((*id).to_owned()),
        _ => return None,
    })
}

/// Makes of a search that came as a form one that came in its address: so what is asked for stays out of the address of the request, and
/// of the logs of whatever lies between. The links to further pages do name it.
///
/// # Errors
/// The answer to give: 415 for what is no form, 400 for one that does not read.
pub fn into_query(head: &mut Parts, form: &[u8]) -> Result<(), Answer> {
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") && !form.is_empty() {
        let text = "expected Content-Type: application/x-www-form-urlencoded";
        return Err(outcome::answer(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-supported", text));
    }
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes()));
    query.extend_pairs(form_urlencoded::parse(form));
    let uri = format!("{}?{}", head.uri.path(), query.finish()).parse();
    let long = |_| {
        outcome::answer(StatusCode::BAD_REQUEST, "too-long", "a search has at most some 60,000 characters")
    };
    head.uri = uri.map_err(long)?;
    Ok(())
}

/// Answers it; `base` is where this server's resources lie.
pub async fn answer(store: &dyn Store, client: &Known, head: &Parts, base: &str, ask: Ask) -> Answer {
    let kind = match &ask {
        Ask::Read(kind, _) | Ask::Version(kind, ..) | Ask::History(kind, _) | Ask::Search(kind) => kind,
        Ask::Everything(_) => "Patient",
    };
    if !r4().is_resource(kind) {
        return outcome::answer(StatusCode::NOT_FOUND, "not-supported", "R4 has no such resource type");
    }
    let answered = match &ask {
        _ if !client.may_read(kind) => {
            let text = "this client may not read resources of this type: `reads` of the sender in the configuration lists them";
            Err(outcome::answer(StatusCode::FORBIDDEN, "forbidden", text))
        }
        Ask::Read(kind, id) => read(store, head, kind, id).await,
        Ask::Version(kind, id, version) => history::version(store, kind, id, version).await,
        Ask::History(kind, id) => history::history(store, head, base, kind, id).await,
        Ask::Search(kind) => search(store, head, base, kind).await,
        Ask::Everything(id) => everything(store, client, head, base, id).await,
    };
    let answer = answered.unwrap_or_else(|refused| refused);
    let status = answer.status().as_u16();
    match ask {
        Ask::Read(kind, id) | Ask::Version(kind, id, _) | Ask::History(kind, id) => {
            // The id is shown only if it is one of ours: anything may stand in a path.
            let id = id.parse::<Uuid>().ok();
            tracing::info!(client = %client.name, resource_type = kind, ?id, status, "a reading of one resource was answered");
        }
        Ask::Search(kind) => {
            tracing::info!(client = %client.name, resource_type = kind, status, "a search was answered")
        }
        Ask::Everything(id) => {
            let id = id.parse::<Uuid>().ok();
            tracing::info!(client = %client.name, ?id, status, "what is known of a patient was answered");
        }
    }
    answer
}

async fn read(store: &dyn Store, head: &Parts, kind: &str, id: &str) -> Result<Answer, Answer> {
    let unknown = || outcome::answer(StatusCode::NOT_FOUND, "not-found", "no such resource is known here");
    let id: Uuid = id.parse().map_err(|_| unknown())?;
    let held = store.held(&[id]).await.map_err(away)?;
    let held = held.into_iter().find(|held| held.resource_type == kind).ok_or_else(unknown)?;
    let json = Shown::of(&held)?.json(kind)?;
    let etag = format!("W/\"{}\"", held.version);
    let known = head.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let same = known.is_some_and(|known| known.split(',').any(|known| known.trim() == etag));
    let mut answer = outcome::resource(if same { StatusCode::NOT_MODIFIED } else { StatusCode::OK }, &json);
    if same {
        *answer.body_mut() = http_body_util::Full::default();
    }
    let etag = header::HeaderValue::from_str(&etag).expect("a number in quotes");
    answer.headers_mut().insert(header::ETAG, etag);
    Ok(answer)
}

/// A resource as it may be shown.
pub(super) enum Shown {
    Resource(Value),
    /// Its labels forbid it.
    Withheld(String),
    /// It lacks a required element.
    Incomplete(&'static str),
}

impl Shown {
    /// The resource.
    ///
    /// # Errors
    /// The answer to give if there is none.
    pub(super) fn json(self, kind: &str) -> Result<Value, Answer> {
        match self {
            Shown::Resource(json) => Ok(json),
            Shown::Withheld(why) => Err(outcome::answer(StatusCode::FORBIDDEN, "suppressed", &why)),
            Shown::Incomplete(element) => {
                let text = format!(
                    "what is known of it is no valid {kind} yet: {element} is required and has no value"
                );
                Err(outcome::answer(StatusCode::NOT_FOUND, "incomplete", &text))
            }
        }
    }

    pub(super) fn of(held: &StoredResource) -> Result<Shown, Answer> {
        let bug = || {
            outcome::answer(StatusCode::INTERNAL_SERVER_ERROR, "exception", "what is stored does not read")
        };
        let stored = held;
        let state = State::decode(&stored.state).map_err(|_| bug())?;
        let Some(rendered) = state.render_open(&stored.resource_type, stored.id, policy::is_open) else {
            return Ok(Shown::Withheld("it is known from restricted messages only".to_owned()));
        };
        if let Some(element) = rendered.lacks() {
            return Ok(Shown::Incomplete(element));
        }
        if let Decision::Suppress(why) = policy::at_reading(rendered.json.as_bytes()) {
            return Ok(Shown::Withheld(why));
        }
        let mut json: Value = serde_json::from_str(&rendered.json).map_err(|_| bug())?;
        json["meta"]["versionId"] = stored.version.to_string().into();
        if let Some(at) = recorded_at(held) {
            json["meta"]["lastUpdated"] = at.to_string().into();
        }
        Ok(Shown::Resource(json))
    }
}

/// When the newest version was recorded: whoever asks for what is new since then misses nothing that waited. Where that is not written
/// down, its message was received then at the earliest, as its id tells.
pub(super) fn recorded_at(held: &StoredResource) -> Option<Timestamp> {
    held.recorded_at.or_else(|| {
        let (seconds, nanos) = held.changed_by.0.get_timestamp()?.to_unix();
        Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanos).ok()?).ok()
    })
}

/// What a search asks for.
struct Asked {
    whom: Whom,
    query: Query,
    count: usize,
    after: Option<Uuid>,
    /// How many parameters were left out because the client asked for that.
    ignored: usize,
    /// The parameters as they came, without our own.
    pairs: Vec<(String, String)>,
}

/// What bounds a search.
enum Whom {
    Ids(Vec<Uuid>),
    /// Resources that are known by an identifier themselves.
    Identifier(Alias),
    Patient(Uuid),
    /// What is about the patient who is known by an identifier.
    PatientOf(Alias),
}

async fn search(store: &dyn Store, head: &Parts, base: &str, kind: &str) -> Result<Answer, Answer> {
    let asked = Asked::read(head, kind)?;
    let patient = match &asked.whom {
        Whom::Patient(id) => Some(*id),
        Whom::PatientOf(alias) => openly_named(store, alias).await?.first().copied(),
        Whom::Ids(_) | Whom::Identifier(_) => None,
    };
    let patient = match patient {
        Some(patient) => Some(survivor(store, patient).await?),
        None => None,
    };
    let mut found = Found::default();
    let mut after = asked.after;
    let mut looked_at = 0;
    let next = loop {
        let mut page = match (&asked.whom, patient) {
            (Whom::Ids(ids), _) => store.held(ids).await,
            (Whom::Identifier(alias), _) => {
                let ids = openly_named(store, alias).await?;
                store.held(&ids).await
            }
            (_, Some(patient)) => store.held_of_patient(patient, Some(kind), after, PAGE_MAX).await,
            (_, None) => Ok(Vec::new()),
        }
        .map_err(away)?;
        let full = patient.is_some() && page.len() == PAGE_MAX;
        page.retain(|held| held.resource_type == kind && after.is_none_or(|after| held.id > after));
        let mut more = None;
        for held in &page {
            if found.matches.len() == asked.count || looked_at == LOOKED_AT_MAX {
                more = after;
                break;
            }
            looked_at += 1;
            after = Some(held.id);
            match Shown::of(held)? {
                Shown::Resource(json) if asked.holds(&json) => found.matches.push(json),
                Shown::Resource(_) => {}
                Shown::Withheld(_) => found.withheld += 1,
                Shown::Incomplete(_) => found.incomplete += 1,
            }
        }
        if more.is_some() || !full {
            break more;
        }
    };
    if asked.ignored > 0 {
        found.said.push(format!("{} parameters that are not known were left out", asked.ignored));
    }
    Ok(page(base, kind, &asked.pairs, asked.count, (asked.after, next), found))
}

/// Whom an identifier names. Who has been spoken of in restricted messages too is found by what is shown of them alone: the number
/// may come from there, even if nothing shows it any more.
async fn openly_named(store: &dyn Store, alias: &Alias) -> Result<Vec<Uuid>, Answer> {
    let ids = store.named(std::slice::from_ref(alias)).await.map_err(away)?;
    let held = store.held(&ids).await.map_err(away)?;
    let value = format!("\"value\":{}", Value::from(alias.value.as_str()));
    let is_open = |held: &&StoredResource| {
        let Ok(state) = State::decode(&held.state) else { return false };
        let open = state.render_open(&held.resource_type, held.id, policy::is_open);
        open.is_some_and(|open| !open.is_redacted() || open.json.contains(&value))
    };
    Ok(held.iter().filter(is_open).map(|held| held.id).collect())
}

/// The patient whom a merge left.
pub(super) async fn survivor(store: &dyn Store, patient: Uuid) -> Result<Uuid, Answer> {
    let mut patient = patient;
    for _ in 0..16 {
        let held = store.held(&[patient]).await.map_err(away)?;
        match held.first().and_then(|held| held.replaced_by) {
            Some(next) => patient = next,
            None => break,
        }
    }
    Ok(patient)
}

/// How many a page shall have: `_count`, within what is possible.
pub(super) fn page_size(value: &str, max: usize) -> Result<usize, Answer> {
    let wanted = |_| outcome::answer(StatusCode::BAD_REQUEST, "invalid", "_count: a whole number is wanted");
    Ok(value.parse::<usize>().map_err(wanted)?.clamp(1, max))
}

/// Since when: `_since`.
pub(super) fn instant(value: &str) -> Result<Timestamp, Answer> {
    let text = "_since: a time with its offset is wanted";
    value.parse().map_err(|_| outcome::answer(StatusCode::BAD_REQUEST, "invalid", text))
}

/// Whether a client wants parameters that are not known to be left out.
pub(super) fn lenient(head: &Parts) -> bool {
    let values = head.headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split([',', ';'])).any(|part| part.trim() == "handling=lenient")
}

impl Asked {
    fn read(head: &Parts, kind: &str) -> Result<Asked, Answer> {
        let refuse = |text: &str| outcome::answer(StatusCode::BAD_REQUEST, "invalid", text);
        let (mut whom, mut count, mut after) = (None, PAGE, None);
        let (mut ignored, mut pairs, mut conditions) = (0, Vec::new(), Vec::new());
        let text = head.uri.query().unwrap_or_default();
        for (name, value) in
            form_urlencoded::parse(text.as_bytes()).map(|(n, v)| (n.into_owned(), v.into_owned()))
        {
            match name.as_str() {
                "_count" => count = page_size(&value, PAGE_MAX)?,
                AFTER => after = Some(value.parse().map_err(|_| refuse("_after: an id is wanted"))?),
                "_format"
                    if matches!(value.as_str(), "json" | "application/json" | "application/fhir+json") => {}
                "_format" => return Err(refuse("_format: only json is written")),
                _ => {
                    let bound = bounded(kind, &name, &value).transpose().map_err(refuse)?;
                    match bound {
                        // What bounds the search is found by the store, with what was merged: it is not asked of each resource again.
                        Some(bound) if whom.is_none() => whom = Some(bound),
                        _ => match Query::of_pairs(kind, std::iter::once((name.as_str(), value.as_str()))) {
                            Ok(query) => conditions.push(query),
                            Err(Refused::Unknown { .. }) if lenient(head) => {
                                ignored += 1;
                                continue;
                            }
                            Err(refused) => return Err(refuse(&refused.to_string())),
                        },
                    }
                    pairs.push((name, value));
                }
            }
        }
        let Some(whom) = whom else {
            let text = "a search names whom it is about: _id; patient or subject, and patient.identifier as system|value, where the type \
                 says whose it is; of a Patient its identifier as system|value";
            return Err(outcome::answer(StatusCode::BAD_REQUEST, "too-costly", text));
        };
        let query = Query::all(conditions);
        Ok(Asked { whom, query, count, after, ignored, pairs })
    }

    fn holds(&self, json: &Value) -> bool {
        // What cannot be asked of a resource is no reason to keep it back from a search that is about it.
        self.query.holds(json, Timestamp::now()).unwrap_or(true)
    }
}

/// What bounds a search, if a parameter does.
fn bounded(kind: &str, name: &str, value: &str) -> Option<Result<Whom, &'static str>> {
    let alias = |of: &str| {
        let (system, value) = search::identifier(value)?;
        Some(Alias { resource_type: of.to_owned(), system, value })
    };
    // The elements by which the store knows whose a resource is.
    let about = |name: &str| {
        parameter(kind, name).is_some_and(|parameter| {
            parameter.targets.contains(&"Patient")
                && matches!(parameter.element(), "subject" | "patient" | "beneficiary" | "for")
        })
    };
    match name {
        "_id" => {
            // What is no id of ours names nothing.
            Some(Ok(Whom::Ids(value.split(',').filter_map(|id| id.parse().ok()).collect())))
        }
        "identifier" if kind == "Patient" => {
            Some(alias("Patient").map(Whom::Identifier).ok_or("identifier: one system|value is wanted"))
        }
        "patient" | "subject" | "subject:Patient" | "beneficiary"
            if about(name.split(':').next().unwrap_or(name)) =>
        {
            if value.contains(',') {
                return Some(Err("a search is about one patient"));
            }
            // `Patient/1`, `1`, or the address under which it was read.
            let id = value.rsplit_once("Patient/").map_or(value, |(_, id)| id).parse();
            Some(Ok(id.map_or_else(|_| Whom::Ids(Vec::new()), Whom::Patient)))
        }
        "patient.identifier" | "subject.identifier" | "subject:Patient.identifier"
            if about(name.split([':', '.']).next().unwrap_or(name)) =>
        {
            Some(
                alias("Patient").map(Whom::PatientOf).ok_or("patient.identifier: one system|value is wanted"),
            )
        }
        _ => None,
    }
}

/// What a page shows, and what it says of what it does not show.
#[derive(Default)]
pub(super) struct Found {
    pub(super) matches: Vec<Value>,
    /// What these refer to.
    pub(super) included: Vec<Value>,
    /// How many their labels forbid to show.
    pub(super) withheld: usize,
    /// How many lack a required element.
    pub(super) incomplete: usize,
    /// What else there is to say.
    pub(super) said: Vec<String>,
}

/// One page of an answer; `base` is where this server's resources lie, `path` what was asked there. It begins after one id and, if
/// there is more, goes on after another.
pub(super) fn page(
    base: &str,
    path: &str,
    pairs: &[(String, String)],
    count: usize,
    (after, next): (Option<Uuid>, Option<Uuid>),
    found: Found,
) -> Answer {
    let link = |after: Option<Uuid>| {
        let mut text = form_urlencoded::Serializer::new(String::new());
        text.extend_pairs(pairs).append_pair("_count", &count.to_string());
        if let Some(after) = after {
            text.append_pair(AFTER, &after.to_string());
        }
        format!("/fhir/{path}?{}", text.finish())
    };
    let mut links = vec![json!({"relation": "self", "url": link(after)})];
    if let Some(next) = next {
        links.push(json!({"relation": "next", "url": link(Some(next))}));
    }
    let modes = found.matches.iter().map(|one| (one, "match"));
    let shown = modes.chain(found.included.iter().map(|one| (one, "include")));
    let mut entries: Vec<Value> = shown
        .map(|(resource, mode)| {
            let kind = resource["resourceType"].as_str().unwrap_or_default();
            let url = format!("{base}/{kind}/{}", resource["id"].as_str().unwrap_or_default());
            json!({"fullUrl": url, "resource": resource, "search": {"mode": mode}})
        })
        .collect();
    let mut said = found.said;
    if found.withheld > 0 {
        said.push(format!("{} that are labelled restricted or very restricted are withheld", found.withheld));
    }
    if found.incomplete > 0 {
        said.push(format!("{} that lack a required element are left out", found.incomplete));
    }
    if !said.is_empty() {
        let issue =
            |text: &String| json!({"severity": "warning", "code": "informational", "diagnostics": text});
        let issues: Vec<Value> = said.iter().map(issue).collect();
        let outcome = json!({"resourceType": "OperationOutcome", "issue": issues});
        entries.push(json!({"resource": outcome, "search": {"mode": "outcome"}}));
    }
    let mut bundle = json!({"resourceType": "Bundle", "type": "searchset", "link": links});
    if !entries.is_empty() {
        bundle["entry"] = entries.into();
    }
    outcome::resource(StatusCode::OK, &bundle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(uri: &str) -> Parts {
        let request = hyper::Request::builder().uri(uri).header("host", "pons.test").body(());
        request.expect("valid").into_parts().0
    }

    #[test]
    fn what_is_asked_is_read_from_method_and_path() {
        let read = |path| ask(&Method::GET, path);
        assert_eq!(read("/fhir/Patient/1"), Some(Ask::Read("Patient".to_owned(), "1".to_owned())));
        assert_eq!(read("/fhir/Patient"), Some(Ask::Search("Patient".to_owned())));
        assert_eq!(read("/fhir"), None);
        let (patient, one) = ("Patient".to_owned(), "1".to_owned());
        assert_eq!(read("/fhir/Patient/1/_history"), Some(Ask::History(patient.clone(), one.clone())));
        let second = Ask::Version(patient, one, "2".to_owned());
        assert_eq!(read("/fhir/Patient/1/_history/2"), Some(second));
        assert_eq!(read("/fhir/Patient/1/_history/2/3"), None);
        for path in ["/fhir/Patient/1/$everything", "/fhir/Patient/1/%24everything"] {
            assert_eq!(read(path), Some(Ask::Everything("1".to_owned())));
        }
        assert_eq!(read("/fhir/Encounter/1/$everything"), None);
        assert_eq!(ask(&Method::DELETE, "/fhir/Patient/1"), None);
        let search = Some(Ask::Search("Patient".to_owned()));
        assert_eq!(ask(&Method::POST, "/fhir/Patient/_search"), search);
        assert_eq!(ask(&Method::POST, "/fhir/Patient/1"), None);
    }

    #[test]
    fn a_version_is_as_old_as_its_recording_or_else_as_its_message() {
        let message = "01a207b9-dc9e-7490-ac30-7a9f32740c6d".parse().expect("a UUIDv7");
        let recorded = "2026-11-23T12:00:00.5Z".parse().ok();
        let held = |recorded_at| StoredResource {
            id: Uuid::nil(),
            resource_type: "Patient".to_owned(),
            version: 1,
            state: Vec::new(),
            replaced_by: None,
            changed_by: message,
            recorded_at,
        };
        assert_eq!(super::recorded_at(&held(recorded)), recorded);
        assert_eq!(super::recorded_at(&held(None)), "2026-11-23T09:25:50.878Z".parse().ok());
    }

    #[test]
    fn whom_a_search_is_about_is_read_from_its_parameters() {
        let id = Uuid::from_u128(7);
        for value in [id.to_string(), format!("Patient/{id}"), format!("https://pons.test/fhir/Patient/{id}")]
        {
            let Some(Ok(Whom::Patient(found))) = bounded("Encounter", "patient", &value) else {
                panic!("{value}")
            };
            assert_eq!(found, id);
        }
        let ids = format!("nothing,{id}");
        assert!(matches!(bounded("Encounter", "_id", &ids), Some(Ok(Whom::Ids(found))) if found == [id]));
    }

    #[test]
    fn a_search_names_whom_it_is_about() {
        for (uri, expected) in [
            ("/fhir/Observation?status=final", "too-costly"),
            ("/fhir/Observation?identifier=urn:x%7C1", "too-costly"),
            ("/fhir/Observation", "too-costly"),
            ("/fhir/Appointment?patient=00000000-0000-0000-0000-000000000001", "too-costly"),
            ("/fhir/Patient?identifier=1", "system|value is wanted"),
            ("/fhir/Patient?identifier=urn:x%7C1,urn:x%7C2", "one system|value is wanted"),
            ("/fhir/Observation?patient=1,2", "a search is about one patient"),
            ("/fhir/Observation?patient=1&_after=x", "_after: an id is wanted"),
            ("/fhir/Observation?patient.identifier=1", "system|value is wanted"),
            ("/fhir/Observation?patient=1&colour=red", "Observation has no search parameter colour"),
            ("/fhir/Observation?patient=1&date=yesterday", "date: a date or a time"),
            ("/fhir/Observation?patient=1&_count=many", "_count"),
            ("/fhir/Observation?patient=1&_format=xml", "only json"),
        ] {
            let kind = uri.split(['/', '?']).nth(2).expect("a type");
            let Err(refused) = Asked::read(&head(uri), kind) else { panic!("{uri} is refused") };
            assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
            let text = format!("{:?}", refused.body());
            assert!(text.contains(expected), "{uri}: {text}");
        }
        for (uri, kind) in [
            (
                "/fhir/Observation?patient=Patient/00000000-0000-0000-0000-000000000001&status=final",
                "Observation",
            ),
            ("/fhir/Observation?subject=1", "Observation"),
            ("/fhir/Coverage?patient=1", "Coverage"),
            ("/fhir/Observation?patient.identifier=urn:x%7C1&code=a", "Observation"),
            ("/fhir/Patient?identifier=urn:x%7C1&gender=male", "Patient"),
            ("/fhir/Patient?_id=1,2", "Patient"),
        ] {
            assert!(Asked::read(&head(uri), kind).is_ok(), "{uri}");
        }
    }
}
