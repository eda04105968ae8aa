//! Subscriptions as their owners see them: what they are, how they stand (`$status`), and their events once more (`$events`).
//!
//! Nobody sees another's: to whom it does not belong, it is not there.
//!
//! # Source
//! HL7 FHIR Subscriptions R5 Backport 1.1.0: R4 Subscription profile, operations `$status` and `$events`.

use super::outcome::away;
use super::{Answer, Api, outcome, websocket};
use crate::bus::KeyError;
use crate::config::{Subscription, To};
use crate::ingest::senders::Known;
use crate::route::notification::{About, Notifies, Occurrence, PROFILES, Payload, TOPIC, Texts};
use crate::route::policy::{self, Decision};
use crate::route::publish::Told;
use crate::route::requested::{CHANNELS, PAYLOAD};
use crate::route::roster::{Enrolment, Roster};
use crate::store::{self, OpenDelivery, Requested, Standing, Store};
use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::{Method, StatusCode, header};
use jiff::Timestamp;
use schemas::fhir::search::Query;
use serde_json::{Value, json};
use std::sync::Arc;
use uuid::Uuid;

/// How many events one answer has at most; the reader asks again for what comes after.
const EVENTS_MAX: usize = 100;
/// Beyond so many bytes an answer has no further event.
const BYTES_MAX: usize = 8 << 20;

/// What an owner asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// `GET /fhir/Subscription?...`
    Search,
    /// `GET /fhir/Subscription/[id]`
    Read(String),
    /// `$status` of one, or of those that the parameters name.
    Status(Option<String>),
    /// `$events` of one.
    Events(String),
    /// `$get-ws-binding-token` for one, or for those that the parameters name.
    Token(Option<String>),
    /// `POST $get-amqp-credentials` of one.
    Credentials(String),
}

/// Reads what is asked from a method and a path below `/fhir`.
pub fn ask(method: &Method, path: &str) -> Option<Ask> {
    // Some clients write the `$` of an operation as a URL may have it.
    let path = path.replace("%24", "$");
    let parts: Vec<&str> = path.trim_end_matches('/').split('/').skip(2).collect();
    let is_get = *method == Method::GET;
    if !is_get && *method != Method::POST {
        return None;
    }
    Some(match parts.as_slice() {
        ["Subscription"] if is_get => Ask::Search,
        ["Subscription", "$status"] => Ask::Status(None),
        ["Subscription", id, "$status"] => Ask::Status(Some((*id).to_owned())),
        ["Subscription", id, "$events"] => Ask::Events((*id).to_owned()),
        ["Subscription", "$get-ws-binding-token"] => Ask::Token(None),
        ["Subscription", id, "$get-ws-binding-token"] => Ask::Token(Some((*id).to_owned())),
        // It changes something, so it is not for GET.
        ["Subscription", id, "$get-amqp-credentials"] if !is_get => Ask::Credentials((*id).to_owned()),
        ["Subscription", id] if is_get => Ask::Read((*id).to_owned()),
        _ => return None,
    })
}

/// Answers it. `body` is that of a POST: empty, or Parameters.
pub async fn answer(api: &Api, client: &Known, head: &Parts, body: &Bytes, ask: Ask) -> Answer {
    let (store, roster) = (&*api.store, &*api.roster);
    // What a replica has just changed is seen by whoever asks another.
    let enrolled = match roster.refresh().await {
        Ok(enrolled) => enrolled,
        Err(error) => return away(error),
    };
    let configured = (roster.configured().iter())
        .filter(|subscription| subscription.owner.as_ref() == Some(&client.name))
        .filter_map(|of| Some(Own::Configured(of, of.notifies.as_ref()?)));
    let requested = (enrolled.requested.iter())
        .filter(|one| one.stored.owner == client.name && one.stored.standing != Standing::Removed)
        .map(|one| Own::Requested(one, roster.base().unwrap_or_default()));
    let own: Vec<Own<'_>> = configured.chain(requested).collect();
    let one = |id: &str| {
        let missing = || {
            let text = "this client owns no subscription of this id: who created one owns it, or `owner` in the configuration";
            outcome::answer(StatusCode::NOT_FOUND, "not-found", text)
        };
        own.iter().find(|one| one.name() == id).ok_or_else(missing)
    };
    let answered = match (Given::read(head, body), &ask) {
        (Err(refused), _) => Err(refused),
        (Ok(_), Ask::Read(id)) => one(id).map(Own::answer),
        (Ok(given), Ask::Search) => search(&own, &given),
        (Ok(given), Ask::Status(Some(id))) => match one(id) {
            Ok(one) => status(store, std::slice::from_ref(one), &given).await,
            Err(missing) => Err(missing),
        },
        (Ok(given), Ask::Status(None)) => status(store, &own, &given).await,
        (Ok(given), Ask::Events(id)) => match one(id) {
            Ok(one) => events(store, one, &given).await,
            Err(missing) => Err(missing),
        },
        (Ok(given), Ask::Token(Some(id))) => match one(id) {
            Ok(one) => token(store, roster, client, std::slice::from_ref(one), &given).await,
            Err(missing) => Err(missing),
        },
        (Ok(given), Ask::Credentials(id)) => match one(id) {
            Ok(one) => credentials(api, one, &given).await,
            Err(missing) => Err(missing),
        },
        (Ok(given), Ask::Token(None)) => {
            let named: Result<Vec<Own<'_>>, Answer> = given.all("id").map(|id| one(id).copied()).collect();
            match named {
                Ok(named) if named.is_empty() => token(store, roster, client, &own, &given).await,
                Ok(named) => token(store, roster, client, &named, &given).await,
                Err(missing) => Err(missing),
            }
        }
    };
    let answer = answered.unwrap_or_else(|refused| refused);
    // The id is shown only if it is one of ours: anything may stand in a path.
    let named = match &ask {
        Ask::Read(id)
        | Ask::Status(Some(id))
        | Ask::Events(id)
        | Ask::Token(Some(id))
        | Ask::Credentials(id) => own.iter().find(|one| one.name() == *id),
        Ask::Search | Ask::Status(None) | Ask::Token(None) => None,
    };
    let status = answer.status().as_u16();
    let events = matches!(ask, Ask::Events(_));
    tracing::info!(client = %client.name, subscription = ?named.map(Own::name), events, status, "an owner asked for subscriptions");
    answer
}

/// A subscription of the client that asks.
#[derive(Clone, Copy)]
enum Own<'s> {
    /// It stands in the configuration, and is notified so.
    Configured(&'s Subscription, &'s Notifies),
    /// It was created over `/fhir`, which lies there.
    Requested(&'s Enrolment, &'s str),
}

impl Own<'_> {
    fn name(&self) -> String {
        match self {
            Own::Configured(of, _) => of.name.to_string(),
            Own::Requested(one, _) => one.stored.id.to_string(),
        }
    }

    fn topic(&self) -> Option<&str> {
        match self {
            Own::Configured(of, _) => of.topics.first().map(String::as_str),
            Own::Requested(one, _) => {
                one.wanted.as_ref().ok()?.subscription.topics.first().map(String::as_str)
            }
        }
    }

    /// How it is notified; as little as can be where the configuration does not allow it any more.
    fn notifies(&self) -> Notifies {
        match self {
            Own::Configured(_, notifies) => (*notifies).clone(),
            Own::Requested(one, base) => {
                let wanted = one.wanted.as_ref().ok().and_then(|wanted| wanted.subscription.notifies.clone());
                wanted.unwrap_or_else(|| Notifies::new(*base, Payload::Empty))
            }
        }
    }

    /// Its status, of the value set subscription-status.
    fn status(&self) -> &'static str {
        match self {
            Own::Configured(..) => Standing::Active.code(),
            Own::Requested(one, _) if one.wanted.is_err() => Standing::Refused.code(),
            Own::Requested(one, _) => one.stored.standing.code(),
        }
    }

    /// It as a FHIR resource.
    fn resource(&self) -> Value {
        match self {
            Own::Configured(of, notifies) => written(of, notifies),
            Own::Requested(one, _) => resource_of(&one.stored, one.wanted.as_ref().err().map(|why| &**why)),
        }
    }

    fn answer(&self) -> Answer {
        let mut answer = outcome::resource(StatusCode::OK, &self.resource());
        if let Own::Requested(one, _) = self {
            answer.headers_mut().insert(header::ETAG, etag(&one.stored));
        }
        answer
    }
}

/// Its version, as an entity tag.
pub(super) fn etag(stored: &Requested) -> header::HeaderValue {
    let tag = format!("W/\"{}\"", stored.version);
    header::HeaderValue::from_str(&tag).expect("a number in quotes")
}

/// A requested subscription as a FHIR resource: as its owner wrote it, and how it stands; `barred` is why the configuration does not
/// allow it any more.
pub(super) fn resource_of(stored: &Requested, barred: Option<&str>) -> Value {
    let mut resource: Value = serde_json::from_str(&stored.resource).unwrap_or_default();
    resource["id"] = stored.id.to_string().into();
    resource["meta"]["versionId"] = stored.version.to_string().into();
    resource["meta"]["lastUpdated"] = stored.changed_at.to_string().into();
    resource["status"] = barred.map_or(stored.standing, |_| Standing::Refused).code().into();
    let error = barred.unwrap_or(&stored.error);
    if !error.is_empty() {
        resource["error"] = error.into();
    }
    resource
}

/// A subscription of the configuration as a FHIR resource.
fn written(of: &Subscription, notifies: &Notifies) -> Value {
    let extension =
        |name: &str, (kind, value): (&str, Value)| json!({"url": format!("{PROFILES}{name}"), kind: value});
    let (adapter, endpoint) = &of.channel;
    let payload = ("valueCode", json!(notifies.payload.code()));
    let mut channel = json!({
        "type": "rest-hook",
        "endpoint": endpoint,
        "payload": PAYLOAD,
        "_payload": {"extension": [extension("backport-payload-content", payload)]},
    });
    if adapter != "rest-hook" {
        let kind = ("valueCoding", json!({"system": CHANNELS, "code": adapter}));
        channel["type"] = "message".into();
        channel["_type"] = json!({"extension": [extension("backport-channel-type", kind)]});
        channel["endpoint"] = format!("{adapter}:{endpoint}").into();
    }
    let topic = of.topics.first().map(String::as_str).unwrap_or_default();
    let mut resource = json!({
        "resourceType": "Subscription",
        "id": &*of.name,
        "meta": {"profile": [format!("{PROFILES}backport-subscription")]},
        "status": "active",
        "reason": "written in the configuration of this gateway",
        "criteria": format!("{TOPIC}{topic}"),
        "channel": channel,
    });
    let filters: Vec<Value> = (of.filters.iter())
        .map(|filter| extension("backport-filter-criteria", ("valueString", json!(filter.to_string()))))
        .collect();
    if !filters.is_empty() {
        resource["_criteria"] = json!({"extension": filters});
    }
    resource
}

/// The parameters of a request, from its address and from the Parameters in its body.
struct Given(Vec<(String, String)>);

impl Given {
    fn read(head: &Parts, body: &Bytes) -> Result<Given, Answer> {
        let text = head.uri.query().unwrap_or_default();
        let mut given: Vec<(String, String)> =
            form_urlencoded::parse(text.as_bytes()).map(|(n, v)| (n.into_owned(), v.into_owned())).collect();
        // JSON is what there is.
        given.retain(|(name, value)| name != "_format" || !value.contains("json"));
        if body.is_empty() {
            return Ok(Given(given));
        }
        let wrong = || refuse("expected an empty body, or Parameters with a name and a value each");
        let parameters: Value = serde_json::from_slice(body).map_err(|_| wrong())?;
        if parameters["resourceType"] != "Parameters" {
            return Err(wrong());
        }
        for one in parameters["parameter"].as_array().into_iter().flatten() {
            let name = one["name"].as_str().ok_or_else(wrong)?;
            let values = one.as_object().into_iter().flatten().filter(|(key, _)| key.starts_with("value"));
            let value = values.map(|(_, value)| value).next().ok_or_else(wrong)?;
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            given.push((name.to_owned(), value));
        }
        Ok(Given(given))
    }

    /// The values of a parameter; each may name several, parted by commas.
    fn all<'g>(&'g self, name: &'g str) -> impl Iterator<Item = &'g str> {
        let own = self.0.iter().filter(move |(known, _)| known == name);
        own.flat_map(|(_, value)| value.split(',')).filter(|value| !value.is_empty())
    }

    /// An event number, if one is given.
    fn number(&self, name: &str) -> Result<Option<i64>, Answer> {
        let wrong = |_| refuse(&format!("{name}: an event number is wanted"));
        self.all(name).next().map(str::parse).transpose().map_err(wrong)
    }

    /// Refuses what is none of these.
    fn only(&self, known: &[&str]) -> Result<(), Answer> {
        match self.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some(_) => Err(refuse(&format!("parameters are: {}", known.join(", ")))),
            None => Ok(()),
        }
    }
}

fn refuse(text: &str) -> Answer {
    outcome::answer(StatusCode::BAD_REQUEST, "invalid", text)
}

fn search(own: &[Own<'_>], given: &Given) -> Result<Answer, Answer> {
    let pairs = given.0.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let query = Query::of_pairs("Subscription", pairs).map_err(|refused| refuse(&refused.to_string()))?;
    let mut entries = Vec::new();
    for one in own {
        let resource = one.resource();
        if query.holds(&resource, store::now()).unwrap_or(true) {
            let url = one.notifies().url(&format!("Subscription/{}", one.name()));
            entries.push(json!({"fullUrl": url, "resource": resource, "search": {"mode": "match"}}));
        }
    }
    Ok(outcome::resource(StatusCode::OK, &searchset(entries)))
}

fn searchset(entries: Vec<Value>) -> Value {
    let mut bundle = json!({"resourceType": "Bundle", "type": "searchset", "total": entries.len()});
    if !entries.is_empty() {
        bundle["entry"] = entries.into();
    }
    bundle
}

async fn status(store: &dyn Store, own: &[Own<'_>], given: &Given) -> Result<Answer, Answer> {
    given.only(&["id", "status"])?;
    let (ids, states): (Vec<&str>, Vec<&str>) = (given.all("id").collect(), given.all("status").collect());
    let mut entries = Vec::new();
    for one in own {
        let (name, notifies) = (one.name(), one.notifies());
        let is_asked = ids.is_empty() || ids.contains(&name.as_str());
        if !is_asked || !(states.is_empty() || states.contains(&one.status())) {
            continue;
        }
        let about = About {
            id: Uuid::now_v7(),
            at: store::now(),
            kind: "query-status",
            status: one.status(),
            subscription: &name,
            topic: one.topic(),
            last: store.last_event(&name).await.map_err(away)?,
        };
        let status = notifies.status(&about, &[]);
        let url = format!("urn:uuid:{}", status["id"].as_str().unwrap_or_default());
        entries.push(json!({"fullUrl": url, "resource": status, "search": {"mode": "match"}}));
    }
    Ok(outcome::resource(StatusCode::OK, &searchset(entries)))
}

/// A token that binds a WebSocket to these, as far as they are told so.
async fn token(
    store: &dyn Store,
    roster: &Roster,
    client: &Known,
    own: &[Own<'_>],
    given: &Given,
) -> Result<Answer, Answer> {
    given.only(&["id"])?;
    let bindable = own.iter().filter_map(|one| match one {
        Own::Requested(one, _) if websocket::is_bindable(one, &client.name) => Some(one.stored.id),
        Own::Requested(..) | Own::Configured(..) => None,
    });
    let bindable: Vec<Uuid> = bindable.collect();
    if bindable.is_empty() {
        let text = "none of these subscriptions is notified over a websocket, or none that is not off";
        return Err(outcome::answer(StatusCode::UNPROCESSABLE_ENTITY, "business-rule", text));
    }
    let base = roster.base().unwrap_or_default();
    websocket::token(store, client, base, bindable).await.map_err(away)
}

/// A user of the broker who may read the subscription's own queue, with a new password.
async fn credentials(api: &Api, one: &Own<'_>, given: &Given) -> Result<Answer, Answer> {
    given.only(&[])?;
    let queue = match one {
        Own::Requested(one, _) if one.stored.standing != Standing::Off => {
            one.wanted.as_ref().ok().and_then(|wanted| match &wanted.subscription.to {
                To::Queue(queue) => Some(queue),
                To::Adapter(_) | To::Socket => None,
            })
        }
        Own::Requested(..) | Own::Configured(..) => None,
    };
    let (Some(queue), Some(keys), Own::Requested(asked, _)) = (queue, &api.keys, one) else {
        let text = "this subscription has no queue of its own, or is off";
        return Err(outcome::answer(StatusCode::UNPROCESSABLE_ENTITY, "business-rule", text));
    };
    let failed = |error: KeyError| {
        tracing::warn!(error = %crate::chain(&error), "no credentials for a subscriber's own queue");
        let text = "the broker gives no credentials now; try again";
        outcome::answer(StatusCode::SERVICE_UNAVAILABLE, "transient", text)
    };
    let key = keys.issue(queue).await.map_err(failed)?;
    // It may have been deleted meanwhile: then nobody else takes away what was just given.
    let now = api.roster.refresh().await.map_err(away)?;
    if now.find(asked.stored.id).is_none_or(|one| one.wanted.is_err()) {
        keys.revoke(queue).await.map_err(failed)?;
        return Err(outcome::answer(
            StatusCode::NOT_FOUND,
            "not-found",
            "the subscription was deleted meanwhile",
        ));
    }
    let parameters = json!([
        {"name": "url", "valueUrl": key.url},
        {"name": "queue", "valueString": queue},
        {"name": "user", "valueString": key.user},
        {"name": "password", "valueString": key.password},
    ]);
    Ok(outcome::resource(StatusCode::OK, &json!({"resourceType": "Parameters", "parameter": parameters})))
}

/// Events once more, as they were recorded; what policy withholds by now is told by its number alone.
async fn events(store: &dyn Store, one: &Own<'_>, given: &Given) -> Result<Answer, Answer> {
    given.only(&["eventsSinceNumber", "eventsUntilNumber", "content"])?;
    let name = &*one.name();
    let since = given.number("eventsSinceNumber")?.unwrap_or(1).max(1);
    let until = given.number("eventsUntilNumber")?.unwrap_or(i64::MAX);
    let mut notifies = one.notifies();
    if let Some(asked) = given.all("content").next() {
        let found = Payload::ALL.iter().find(|(code, _)| *code == asked);
        let (_, payload) =
            found.ok_or_else(|| refuse("content: empty, id-only or full-resource is wanted"))?;
        // It may ask for less than it is sent, never for more.
        if *payload > notifies.payload {
            let text = "content: this subscription is not sent as much";
            return Err(outcome::answer(StatusCode::FORBIDDEN, "forbidden", text));
        }
        notifies.payload = *payload;
    }
    let last = store.last_event(name).await.map_err(away)?;
    let rows = store.events(name, since - 1, until, EVENTS_MAX).await.map_err(away)?;
    // One message at a time, so that an answer takes no more memory than it may; the events of one stand together.
    let mut told: Vec<(&OpenDelivery, Timestamp, Arc<Texts>)> = Vec::with_capacity(rows.len());
    let mut bytes = 0;
    for row in &rows {
        let of = (row.message, row.revision);
        let before = told.last().filter(|(before, ..)| (before.message, before.revision) == of);
        if let Some((_, at, texts)) = before {
            told.push((row, *at, texts.clone()));
            continue;
        }
        if bytes > BYTES_MAX {
            break;
        }
        // Without content retention is letting it go at this moment.
        let Some(content) = store.contents(&[of]).await.map_err(away)?.remove(&of) else { continue };
        bytes += content.bundle.len() + content.beside.len();
        told.push((row, content.received_at, Arc::new(Texts::of(&Told::of(&content)))));
    }
    let mut occurrences = Vec::with_capacity(told.len());
    for (row, at, texts) in &told {
        let occurrence = Occurrence {
            delivery: row.id,
            number: row.number,
            received_at: *at,
            references: row.matched.references.as_deref().unwrap_or_default(),
            texts,
        };
        let about = About {
            id: row.id.0,
            at: *at,
            kind: "query-event",
            status: one.status(),
            subscription: name,
            topic: one.topic(),
            last,
        };
        let alone = notifies.bundle(&about, &[occurrence]).to_string();
        occurrences.push(match policy::at_delivery(alone.as_bytes()) {
            Decision::Allow => occurrence,
            Decision::Suppress(_) => Occurrence { references: &[], ..occurrence },
        });
    }
    let about = About {
        id: Uuid::now_v7(),
        at: store::now(),
        kind: "query-event",
        status: one.status(),
        subscription: name,
        topic: one.topic(),
        last,
    };
    Ok(outcome::resource(StatusCode::OK, &notifies.bundle(&about, &occurrences)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_read_from_method_and_path() {
        let check = |method: Method, path: &str, expected: Option<Ask>| {
            assert_eq!(ask(&method, path), expected, "{method} {path}");
        };
        let id = || "lab".to_owned();
        check(Method::GET, "/fhir/Subscription", Some(Ask::Search));
        check(Method::GET, "/fhir/Subscription/lab", Some(Ask::Read(id())));
        check(Method::GET, "/fhir/Subscription/$status", Some(Ask::Status(None)));
        for method in [Method::GET, Method::POST] {
            check(method.clone(), "/fhir/Subscription/lab/$status", Some(Ask::Status(Some(id()))));
            check(method.clone(), "/fhir/Subscription/lab/$events", Some(Ask::Events(id())));
            check(method, "/fhir/Subscription/lab/%24events", Some(Ask::Events(id())));
        }
        check(Method::POST, "/fhir/Subscription", None);
        check(Method::DELETE, "/fhir/Subscription/lab", None);
        check(Method::GET, "/fhir/Patient/lab/$status", None);
        check(Method::GET, "/fhir/Subscription/lab/$else", None);
    }
}
