//! Earlier versions: what a resource was when a message had been recorded, as the Bundle of that result has it.
//!
//! A version that retention let go of is not kept; the newest always is. What may not be shown now is not shown of earlier versions
//! either: each is judged by the labels that it had.

use super::outcome::away;
use super::read::{PAGE, PAGE_MAX, Shown, lenient, received_at};
use super::{Answer, outcome};
use crate::route::policy::{self, Decision};
use crate::store::{Held, Store, Version};
use hyper::http::request::Parts;
use hyper::{StatusCode, header};
use jiff::Timestamp;
use schemas::message::MessageId;
use serde_json::{Value, json};
use std::collections::HashMap;
use uuid::Uuid;

/// The parameter of our own links to the next page: the version before which it begins.
const BEFORE: &str = "_before";

/// `GET /fhir/[type]/[id]/_history/[version]`
pub(super) async fn version(
    store: &dyn Store,
    kind: &str,
    id: &str,
    version: &str,
) -> Result<Answer, Answer> {
    let unknown = || {
        let text = "no such version is known here, or it is not kept any more";
        outcome::answer(StatusCode::NOT_FOUND, "not-found", text)
    };
    let held = held(store, kind, id).await?;
    let number: i64 = version.parse().map_err(|_| unknown())?;
    let newest = Shown::of(&held)?;
    let shown = if number == held.resource.version || matches!(newest, Shown::Withheld(_)) {
        newest
    } else {
        let below = number.checked_add(1).ok_or_else(unknown)?;
        let found = store.versions(held.resource.id, Some(below), 1).await.map_err(away)?;
        let found: Vec<Version> = found.into_iter().filter(|found| found.version == number).collect();
        let mut then = then(store, &held, &found).await?;
        then.remove(&number).ok_or_else(unknown)?
    };
    let mut answer = outcome::resource(StatusCode::OK, &shown.json(kind)?);
    let etag = header::HeaderValue::from_str(&format!("W/\"{number}\"")).expect("a number in quotes");
    answer.headers_mut().insert(header::ETAG, etag);
    Ok(answer)
}

/// `GET /fhir/[type]/[id]/_history`
pub(super) async fn history(
    store: &dyn Store,
    head: &Parts,
    base: &str,
    kind: &str,
    id: &str,
) -> Result<Answer, Answer> {
    let asked = Asked::read(head)?;
    let held = held(store, kind, id).await?;
    let current = held.resource.version;
    let newest = Shown::of(&held)?;
    if let Shown::Withheld(why) = newest {
        return Err(outcome::answer(StatusCode::FORBIDDEN, "suppressed", &why));
    }
    let mut newest = Some(newest);
    let more = asked.count + 1;
    let found = store.versions(held.resource.id, asked.before, more).await.map_err(away)?;
    let mut versions: Vec<i64> = found.iter().map(|found| found.version).collect();
    // The newest is kept whatever became of the result that made it.
    if asked.before.is_none_or(|before| before > current) && versions.first() != Some(&current) {
        versions.insert(0, current);
    }
    let next = (versions.len() > asked.count).then(|| versions[asked.count - 1]);
    versions.truncate(asked.count);
    let mut then = then(store, &held, &found).await?;
    let url = format!("{base}/{kind}/{}", held.resource.id);
    let made_by: HashMap<i64, MessageId> = found.iter().map(|one| (one.version, one.message)).collect();
    let mut entries = Vec::with_capacity(versions.len());
    for version in versions {
        let by = made_by.get(&version).copied().unwrap_or(held.changed_by);
        let at = received_at(by);
        if asked.since.zip(at).is_some_and(|(since, at)| at < since) {
            continue;
        }
        let shown = if version == current { newest.take() } else { then.remove(&version) };
        let (method, path, status) = match version {
            1 => ("POST", kind.to_owned(), "201 Created"),
            _ => ("PUT", format!("{kind}/{}", held.resource.id), "200 OK"),
        };
        let mut entry = json!({
            "fullUrl": url,
            "request": {"method": method, "url": path},
            "response": {"status": status, "etag": format!("W/\"{version}\"")},
        });
        if let Some(at) = at {
            entry["response"]["lastModified"] = at.to_string().into();
        }
        match shown {
            Some(Shown::Resource(json)) => entry["resource"] = json,
            // That there was a version is no secret; what it said is.
            Some(Shown::Withheld(_)) => entry["response"]["status"] = "403 Forbidden".into(),
            Some(Shown::Incomplete(_)) | None => entry["response"]["status"] = "404 Not Found".into(),
        }
        entries.push(entry);
    }
    let link = |before: Option<i64>| {
        let mut text = form_urlencoded::Serializer::new(String::new());
        text.append_pair("_count", &asked.count.to_string());
        if let Some(since) = asked.since {
            text.append_pair("_since", &since.to_string());
        }
        if let Some(before) = before {
            text.append_pair(BEFORE, &before.to_string());
        }
        format!("{base}/{kind}/{}/_history?{}", held.resource.id, text.finish())
    };
    let mut links = vec![json!({"relation": "self", "url": link(asked.before)})];
    links.extend(next.map(|next| json!({"relation": "next", "url": link(Some(next))})));
    let mut bundle = json!({"resourceType": "Bundle", "type": "history", "link": links});
    if !entries.is_empty() {
        bundle["entry"] = entries.into();
    }
    Ok(outcome::resource(StatusCode::OK, &bundle))
}

/// What a history is asked for.
struct Asked {
    count: usize,
    since: Option<Timestamp>,
    before: Option<i64>,
}

impl Asked {
    fn read(head: &Parts) -> Result<Asked, Answer> {
        let refuse = |text: &str| outcome::answer(StatusCode::BAD_REQUEST, "invalid", text);
        let mut asked = Asked { count: PAGE, since: None, before: None };
        for (name, value) in form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes()) {
            match &*name {
                "_count" => {
                    let count: usize =
                        value.parse().map_err(|_| refuse("_count: a whole number is wanted"))?;
                    asked.count = count.clamp(1, PAGE_MAX);
                }
                "_since" => {
                    let since =
                        value.parse().map_err(|_| refuse("_since: a time with its offset is wanted"))?;
                    asked.since = Some(since);
                }
                BEFORE => {
                    let before = value.parse().map_err(|_| refuse("_before: a version is wanted"))?;
                    asked.before = Some(before);
                }
                "_format" | "_pretty" => {}
                _ if lenient(head) => {}
                _ => return Err(refuse("a history takes _count and _since")),
            }
        }
        Ok(asked)
    }
}

async fn held(store: &dyn Store, kind: &str, id: &str) -> Result<Held, Answer> {
    let unknown = || outcome::answer(StatusCode::NOT_FOUND, "not-found", "no such resource is known here");
    let id: Uuid = id.parse().map_err(|_| unknown())?;
    let held = store.held(&[id]).await.map_err(away)?;
    held.into_iter().find(|held| held.resource.resource_type == kind).ok_or_else(unknown)
}

/// What the results that made them say of these versions; nothing of those that left the resource out.
async fn then(store: &dyn Store, held: &Held, versions: &[Version]) -> Result<HashMap<i64, Shown>, Answer> {
    let of: Vec<(MessageId, u32)> = versions.iter().map(|one| (one.message, one.revision)).collect();
    let contents = store.contents(&of).await.map_err(away)?;
    let id = held.resource.id.to_string();
    let mut then = HashMap::with_capacity(versions.len());
    for one in versions {
        let Some(content) = contents.get(&(one.message, one.revision)) else { continue };
        let mut bundle: Value = serde_json::from_slice(&content.bundle).unwrap_or_default();
        let mut entries = bundle["entry"].as_array_mut().into_iter().flatten();
        let Some(entry) = entries.find(|entry| entry["resource"]["id"] == *id) else { continue };
        let mut json = entry["resource"].take();
        let shown = match policy::at_reading(json.to_string().as_bytes()) {
            Decision::Suppress(why) => Shown::Withheld(why),
            Decision::Allow => {
                json["meta"]["versionId"] = one.version.to_string().into();
                json["meta"]["lastUpdated"] = content.received_at.to_string().into();
                Shown::Resource(json)
            }
        };
        then.insert(one.version, shown);
    }
    Ok(then)
}
