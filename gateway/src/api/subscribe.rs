//! Subscriptions as their owners make, change and end them. Durable once they are answered, and routed by from then on.

use super::subscriptions::{etag, resource_of};
use super::{Answer, fhir, outcome};
use crate::config::Subscribes;
use crate::ingest::senders::Known;
use crate::route::requested::{self, Channel};
use crate::route::roster::{Enrolled, Roster};
use crate::store::{Requested, Standing, StoreError};
use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::{Method, StatusCode, header};
use jiff::Timestamp;
use schemas::issue::Severity;
use serde_json::Value;
use std::sync::Arc;
use uuid::Uuid;

/// How large a Subscription may be, in bytes: all of them are kept in memory.
const BODY_MAX: usize = 64 << 10;
/// How often a change is tried when the server changes the same subscription.
const TRIES_MAX: usize = 10;
/// How many subscriptions of a client may be about to be forgotten.
const REMOVED_MAX: usize = 200;

/// What an owner wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// `POST /fhir/Subscription`
    Create,
    /// `PUT /fhir/Subscription/[id]`
    Update(String),
    /// `DELETE /fhir/Subscription/[id]`
    Delete(String),
}

/// Reads what is asked from a method and a path below `/fhir`.
pub fn ask(method: &Method, path: &str) -> Option<Ask> {
    let parts: Vec<&str> = path.trim_end_matches('/').split('/').skip(2).collect();
    Some(match (method, parts.as_slice()) {
        (&Method::POST, ["Subscription"]) => Ask::Create,
        (&Method::PUT, ["Subscription", id]) => Ask::Update((*id).to_owned()),
        (&Method::DELETE, ["Subscription", id]) => Ask::Delete((*id).to_owned()),
        _ => return None,
    })
}

/// Answers it.
pub async fn answer(roster: &Roster, client: &Known, head: &Parts, body: &Bytes, ask: Ask) -> Answer {
    let answered = match &ask {
        Ask::Create => create(roster, client, head, body).await,
        Ask::Update(id) => update(roster, client, head, body, id).await,
        Ask::Delete(id) => delete(roster, client, head, id).await,
    };
    let what = match &ask {
        Ask::Create => "create",
        Ask::Update(_) => "update",
        Ask::Delete(_) => "delete",
    };
    // The id is shown only if it is one of the client's: anything may stand in a path.
    let id = answered.as_ref().ok().map(|(id, _)| *id);
    let refused = answered.as_ref().err().map(|answer| answer.status().as_u16());
    tracing::info!(client = %client.name, what, subscription = ?id, ?refused, "an owner asked to change a subscription");
    answered.map_or_else(|refused| refused, |(_, answer)| answer)
}

async fn create(
    roster: &Roster,
    client: &Known,
    head: &Parts,
    body: &Bytes,
) -> Result<(Uuid, Answer), Answer> {
    let (allowed, base) = allowed(roster, client)?;
    if head.headers.contains_key("if-none-exist") {
        let text = "If-None-Exist is not supported for a Subscription";
        return Err(outcome::answer(StatusCode::PRECONDITION_FAILED, "not-supported", text));
    }
    let resource = parse(body)?;
    let id = Uuid::new_v4();
    let is_off = check(&resource, (id, client), allowed, base)?;
    let now = roster.refresh().await.map_err(away)?;
    let (removed, others) = own(&now, client);
    if removed >= REMOVED_MAX {
        let text = "this client has deleted too many subscriptions within two minutes: try again then";
        return Err(outcome::answer(StatusCode::TOO_MANY_REQUESTS, "throttled", text));
    }
    if others >= allowed.subscriptions_max {
        return Err(too_many(allowed));
    }
    let one = Requested {
        id,
        owner: Arc::clone(&client.name),
        version: 1,
        written: 1,
        standing: if is_off { Standing::Off } else { Standing::Requested },
        is_live: false,
        error: String::new(),
        resource: kept(resource),
        changed_at: Timestamp::now(),
    };
    roster.write(&one).await.map_err(away)?;
    // Others may have been made at the same time.
    if own(&roster.now(), client).1 > allowed.subscriptions_max {
        let gone = Requested { version: 2, standing: Standing::Removed, ..one };
        roster.write(&gone).await.map_err(away)?;
        return Err(too_many(allowed));
    }
    let mut answer = shown(&one, StatusCode::CREATED);
    let place = header::HeaderValue::from_str(&format!("{base}/Subscription/{id}/_history/1"));
    if let Ok(place) = place {
        answer.headers_mut().insert(header::LOCATION, place);
    }
    Ok((id, answer))
}

/// How many of the client's are about to be forgotten, and how many others it has.
fn own(now: &Enrolled, client: &Known) -> (usize, usize) {
    let own = now.requested.iter().filter(|one| one.stored.owner == client.name);
    let (removed, others): (Vec<_>, Vec<_>) = own.partition(|one| one.stored.standing == Standing::Removed);
    (removed.len(), others.len())
}

fn too_many(allowed: &Subscribes) -> Answer {
    let text = format!(
        "this client has {} subscriptions, as many as the configuration allows (`subscribes`, `subscriptions_max`)",
        allowed.subscriptions_max
    );
    outcome::answer(StatusCode::UNPROCESSABLE_ENTITY, "too-costly", &text)
}

async fn update(
    roster: &Roster,
    client: &Known,
    head: &Parts,
    body: &Bytes,
    id: &str,
) -> Result<(Uuid, Answer), Answer> {
    let known = meant(roster, client, head, id).await?;
    let (allowed, base) = allowed(roster, client)?;
    let resource = parse(body)?;
    if resource["id"].as_str() != Some(id) {
        let text = "the id of the resource is not that of the address";
        return Err(outcome::answer(StatusCode::BAD_REQUEST, "invalid", text));
    }
    let is_off = check(&resource, (known.id, client), allowed, base)?;
    keeps_queue(&known, &resource)?;
    let resource = kept(resource);
    let next = follow(roster, client, head, known, |known| Requested {
        written: known.version + 1,
        standing: if is_off { Standing::Off } else { Standing::Requested },
        is_live: known.is_live && !is_off,
        error: String::new(),
        resource: resource.clone(),
        ..known
    });
    let next = next.await?;
    Ok((next.id, shown(&next, StatusCode::OK)))
}

/// Refuses to change from a queue of its own to another channel, or back: what lies there would be lost with it.
fn keeps_queue(known: &Requested, resource: &Value) -> Result<(), Answer> {
    let before = serde_json::from_str(&known.resource).ok().and_then(|known| Channel::of(&known));
    let is_queue = |channel: Option<Channel>| channel == Some(Channel::Amqp);
    if is_queue(before) != is_queue(Channel::of(resource)) {
        let text = "Subscription.channel.type: amqp is not changed to or from; create another subscription, and delete this one";
        return Err(outcome::answer(StatusCode::UNPROCESSABLE_ENTITY, "business-rule", text));
    }
    Ok(())
}

async fn delete(roster: &Roster, client: &Known, head: &Parts, id: &str) -> Result<(Uuid, Answer), Answer> {
    let known = meant(roster, client, head, id).await?;
    let removed = |known: Requested| Requested { standing: Standing::Removed, is_live: false, ..known };
    let gone = follow(roster, client, head, known, removed).await?;
    let mut answer = Answer::default();
    *answer.status_mut() = StatusCode::NO_CONTENT;
    Ok((gone.id, answer))
}

/// Writes the next version. What the server itself said of it meanwhile (that it is active, say) is no reason to ask the client again.
async fn follow(
    roster: &Roster,
    client: &Known,
    head: &Parts,
    known: Requested,
    next: impl Fn(Requested) -> Requested,
) -> Result<Requested, Answer> {
    let (id, mut known) = (known.id.to_string(), known);
    for _ in 0..TRIES_MAX {
        let version = known.version + 1;
        let one = Requested { version, changed_at: Timestamp::now(), ..next(known) };
        match roster.write(&one).await {
            Ok(()) => return Ok(one),
            Err(StoreError::Conflict) => known = meant(roster, client, head, &id).await?,
            Err(error) => return Err(away(error)),
        }
    }
    Err(away(StoreError::Conflict))
}

/// What the client may subscribe to, and where `/fhir` lies.
fn allowed<'r>(roster: &'r Roster, client: &Known) -> Result<(&'r Subscribes, &'r str), Answer> {
    let allowed = roster.senders().subscribes(&client.name).zip(roster.base());
    allowed.ok_or_else(|| {
        let text = "this client may not subscribe by itself: `subscribes` of the sender in the configuration says to what one may";
        outcome::answer(StatusCode::FORBIDDEN, "forbidden", text)
    })
}

/// A subscription that the client created, in the version that it means.
async fn meant(roster: &Roster, client: &Known, head: &Parts, id: &str) -> Result<Requested, Answer> {
    let now = roster.refresh().await.map_err(away)?;
    let known = id.parse().ok().and_then(|id| now.find(id)).filter(|one| one.stored.owner == client.name);
    let Some(known) = known else {
        let configured = roster.configured().iter();
        let is_own =
            configured.filter(|one| one.owner.as_ref() == Some(&client.name)).any(|one| *one.name == *id);
        return Err(if is_own {
            let text = "this subscription stands in the configuration of the gateway: it is changed there";
            outcome::answer(StatusCode::METHOD_NOT_ALLOWED, "not-supported", text)
        } else {
            let text = "this client owns no subscription of this id; the server gives a new one its id: POST /fhir/Subscription";
            outcome::answer(StatusCode::NOT_FOUND, "not-found", text)
        });
    };
    let meant = head.headers.get(header::IF_MATCH);
    if meant.is_some_and(|meant| meant != "*" && *meant != etag(&known.stored)) {
        let text = "the subscription has changed meanwhile: read it again";
        return Err(outcome::answer(StatusCode::PRECONDITION_FAILED, "conflict", text));
    }
    Ok(known.stored.clone())
}

/// Reads a Subscription, valid as R4 wants it.
fn parse(body: &[u8]) -> Result<Value, Answer> {
    if body.len() > BODY_MAX {
        let text = format!("a Subscription has at most {BODY_MAX} bytes");
        return Err(outcome::answer(StatusCode::PAYLOAD_TOO_LARGE, "too-long", &text));
    }
    let resource = fhir::parse(body).map_err(|refusal| refusal.answer())?;
    if resource["resourceType"] != "Subscription" {
        let text = "the resource is of another type than the address says";
        return Err(outcome::answer(StatusCode::BAD_REQUEST, "invalid", text));
    }
    let mut issues = schemas::fhir::validate(&resource);
    issues.retain(|issue| issue.severity == Severity::Error);
    if !issues.is_empty() {
        return Err(outcome::of_issues(StatusCode::UNPROCESSABLE_ENTITY, "invalid", &issues));
    }
    Ok(resource)
}

/// Refuses what is not supported. Answers whether the subscription is to rest.
fn check(
    resource: &Value,
    (id, client): (Uuid, &Known),
    allowed: &Subscribes,
    base: &str,
) -> Result<bool, Answer> {
    let id = id.to_string();
    let wanted = requested::read(resource, (&id, &client.name), allowed, base);
    let wanted = wanted
        .map_err(|faults| outcome::of_issues(StatusCode::UNPROCESSABLE_ENTITY, "not-supported", &faults))?;
    if !wanted.is_off && wanted.end.is_some_and(|end| end <= Timestamp::now()) {
        let text = "Subscription.end: it has passed";
        return Err(outcome::answer(StatusCode::UNPROCESSABLE_ENTITY, "business-rule", text));
    }
    Ok(wanted.is_off)
}

/// As it is kept: what the server says of it is not its owner's.
fn kept(mut resource: Value) -> String {
    if let Some(members) = resource.as_object_mut() {
        members.remove("id");
        members.remove("error");
        // How it is read again; how it stands is kept beside it.
        if members.get("status").is_some_and(|status| status != "off") {
            members.insert("status".to_owned(), "requested".into());
        }
    }
    if let Some(meta) = resource.get_mut("meta").and_then(Value::as_object_mut) {
        meta.remove("versionId");
        meta.remove("lastUpdated");
    }
    resource.to_string()
}

/// The answer that carries it as it was just written.
fn shown(one: &Requested, status: StatusCode) -> Answer {
    let mut answer = outcome::resource(status, &resource_of(one, None));
    answer.headers_mut().insert(header::ETAG, etag(one));
    answer
}

fn away(error: StoreError) -> Answer {
    if matches!(error, StoreError::Conflict) {
        let text = "another change came first: read it again";
        return outcome::answer(StatusCode::CONFLICT, "conflict", text);
    }
    outcome::away(error)
}
