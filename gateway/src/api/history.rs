//! Earlier versions: what a resource was when a message had been recorded, as the Bundle of that result has it.
//!
//! A version that retention let go of is not kept; the newest always is. Each is judged by the labels that it had; and where something
//! of the newest is withheld, earlier versions are too.

use super::outcome::away;
use super::read::{Shown, instant, lenient, page_size, recorded_at};
use super::{Answer, outcome};
use crate::route::policy::{self, Decision};
use crate::store::{Made, Store, StoredResource};
use hyper::http::request::Parts;
use hyper::{StatusCode, header};
use jiff::Timestamp;
use schemas::message::MessageId;
use serde_json::{Value, json};
use uuid::Uuid;

/// The parameter of our own links to the next page: the version with which it begins, and the message that made it.
const FROM: &str = "_from";
/// How many versions are looked at for one answer.
const STEPS_MAX: usize = 2_000;

/// How many versions a page has unless `_count` says otherwise, and at most.
const PAGE: usize = 20;
const PAGE_MAX: usize = 100;
/// After how many bytes of Bundles that were read a page ends.
const BYTES_MAX: usize = 16 << 20;

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
    let newest = Newest::of(&held)?;
    let shown = if number == held.version || matches!(newest.shown, Shown::Withheld(_)) {
        newest.shown
    } else {
        let mut walk = Walk::from(&held);
        let found = loop {
            match walk.next(store).await? {
                Some(found) if found.version == number => break found,
                Some(found) if found.version > number && walk.steps < STEPS_MAX => {}
                Some(_) | None => return Err(unknown()),
            }
        };
        match newest.is_redacted {
            true => redacted(),
            false => then(store, &found).await?.0.ok_or_else(unknown)?,
        }
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
    let current = held.version;
    let newest = Newest::of(&held)?;
    if let Shown::Withheld(why) = newest.shown {
        return Err(outcome::answer(StatusCode::FORBIDDEN, "suppressed", &why));
    }
    let mut walk = match asked.from {
        Some((version, message)) => Walk { resource: held.id, version, message: Some(message), steps: 0 },
        None => Walk::from(&held),
    };
    let url = format!("{base}/{kind}/{}", held.id);
    let (mut entries, mut next, mut bytes) = (Vec::new(), None, 0);
    let mut newest_shown = Some(newest.shown);
    loop {
        if entries.len() == asked.count || bytes > BYTES_MAX || walk.steps == STEPS_MAX {
            next = walk.message.map(|message| (walk.version, message));
            break;
        }
        let of_newest = walk.version == current;
        let version = match walk.next(store).await? {
            Some(version) => version,
            // The newest is kept whatever became of the result that made it.
            None if of_newest => {
                let (message, at) = (held.changed_by, recorded_at(&held));
                Found { version: current, resource: held.id, message, revision: 0, at }
            }
            None => break,
        };
        if asked.since.zip(version.at).is_some_and(|(since, at)| at < since) {
            continue;
        }
        let shown = match newest.is_redacted {
            _ if of_newest => newest_shown.take(),
            true => Some(redacted()),
            // One at a time, so that a page takes no more memory than it may.
            false => {
                let (shown, read) = then(store, &version).await?;
                bytes += read;
                shown
            }
        };
        entries.push(entry(kind, &url, &version, shown));
    }
    let link = |from: Option<(i64, MessageId)>| {
        let mut text = form_urlencoded::Serializer::new(String::new());
        text.append_pair("_count", &asked.count.to_string());
        if let Some(since) = asked.since {
            text.append_pair("_since", &since.to_string());
        }
        if let Some((version, message)) = from {
            text.append_pair(FROM, &format!("{version}.{message}"));
        }
        format!("{url}/_history?{}", text.finish())
    };
    let mut links = vec![json!({"relation": "self", "url": link(asked.from)})];
    links.extend(next.map(|next| json!({"relation": "next", "url": link(Some(next))})));
    let mut bundle = json!({"resourceType": "Bundle", "type": "history", "link": links});
    if !entries.is_empty() {
        bundle["entry"] = entries.into();
    }
    Ok(outcome::resource(StatusCode::OK, &bundle))
}

/// The entry of a version, with what may be shown of it.
fn entry(kind: &str, url: &str, version: &Found, shown: Option<Shown>) -> Value {
    let (method, path, status) = match version.version {
        1 => ("POST", kind.to_owned(), "201 Created"),
        _ => ("PUT", format!("{kind}/{}", version.resource), "200 OK"),
    };
    let mut entry = json!({
        "fullUrl": url,
        "request": {"method": method, "url": path},
        "response": {"status": status, "etag": format!("W/\"{}\"", version.version)},
    });
    if let Some(at) = version.at {
        entry["response"]["lastModified"] = at.to_string().into();
    }
    match shown {
        Some(Shown::Resource(json)) => entry["resource"] = json,
        // That there was a version is no secret; what it said is.
        Some(Shown::Withheld(_)) => entry["response"]["status"] = "403 Forbidden".into(),
        Some(Shown::Incomplete(_)) | None => entry["response"]["status"] = "404 Not Found".into(),
    }
    entry
}

/// The newest version.
struct Newest {
    shown: Shown,
    /// Whether some of it is not shown: what an earlier version says may be just that.
    is_redacted: bool,
}

impl Newest {
    fn of(held: &StoredResource) -> Result<Newest, Answer> {
        let shown = Shown::of(held)?;
        let is_redacted = match &shown {
            Shown::Resource(json) => {
                let mut labels = json["meta"]["security"].as_array().into_iter().flatten();
                labels.any(|label| label["code"] == "REDACTED")
            }
            Shown::Withheld(_) | Shown::Incomplete(_) => false,
        };
        Ok(Newest { shown, is_redacted })
    }
}

fn redacted() -> Shown {
    Shown::Withheld(
        "some of what is known of it is withheld, and its earlier versions may say just that".to_owned(),
    )
}

/// What a history is asked for.
struct Asked {
    count: usize,
    since: Option<Timestamp>,
    from: Option<(i64, MessageId)>,
}

impl Asked {
    fn read(head: &Parts) -> Result<Asked, Answer> {
        let refuse = |text: &str| outcome::answer(StatusCode::BAD_REQUEST, "invalid", text);
        let mut asked = Asked { count: PAGE, since: None, from: None };
        for (name, value) in form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes()) {
            match &*name {
                "_count" => asked.count = page_size(&value, PAGE_MAX)?,
                "_since" => asked.since = Some(instant(&value)?),
                FROM => {
                    let from = value.split_once('.').and_then(|(version, message)| {
                        Some((version.parse().ok()?, MessageId(message.parse().ok()?)))
                    });
                    asked.from =
                        Some(from.ok_or_else(|| refuse("_from: what a link of ours says is wanted"))?);
                }
                "_format" if value.contains("json") => {}
                "_pretty" => {}
                _ if lenient(head) => {}
                _ => return Err(refuse("a history takes _count and _since")),
            }
        }
        Ok(asked)
    }
}

/// A version, and the result that made it.
struct Found {
    resource: Uuid,
    version: i64,
    message: MessageId,
    revision: u32,
    /// When it was recorded, as far as that is known.
    at: Option<Timestamp>,
}

/// The way from one version of a resource to the one before: each result knows which message made that.
struct Walk {
    resource: Uuid,
    version: i64,
    message: Option<MessageId>,
    steps: usize,
}

impl Walk {
    fn from(held: &StoredResource) -> Walk {
        Walk { resource: held.id, version: held.version, message: Some(held.changed_by), steps: 0 }
    }

    /// The next version downwards; `None` if there is none, or if its message is not kept any more.
    async fn next(&mut self, store: &dyn Store) -> Result<Option<Found>, Answer> {
        self.steps += 1;
        let Some(message) = self.message.take() else { return Ok(None) };
        let made = store.made(message).await.map_err(away)?;
        let mut all = made.iter().flat_map(|by| by.made.iter().map(move |made| (by, made)));
        let is_it = |made: &Made| made.resource == self.resource && made.version == self.version;
        let Some((by, made)) = all.find(|(_, made)| is_it(made)) else { return Ok(None) };
        let found = Found {
            resource: self.resource,
            version: self.version,
            message,
            revision: by.revision,
            at: Some(by.recorded_at),
        };
        (self.version, self.message) = (self.version - 1, made.before);
        Ok(Some(found))
    }
}

async fn held(store: &dyn Store, kind: &str, id: &str) -> Result<StoredResource, Answer> {
    let unknown = || outcome::answer(StatusCode::NOT_FOUND, "not-found", "no such resource is known here");
    let id: Uuid = id.parse().map_err(|_| unknown())?;
    let held = store.held(&[id]).await.map_err(away)?;
    held.into_iter().find(|held| held.resource_type == kind).ok_or_else(unknown)
}

/// What the result that made it says of a version, if it has the resource and is still kept; and how many bytes were read for that.
async fn then(store: &dyn Store, version: &Found) -> Result<(Option<Shown>, usize), Answer> {
    let of = (version.message, version.revision);
    let Some(content) = store.contents(&[of]).await.map_err(away)?.remove(&of) else { return Ok((None, 0)) };
    let id = version.resource.to_string();
    let mut bundle: Value = serde_json::from_slice(&content.bundle).unwrap_or_default();
    let mut entries = bundle["entry"].as_array_mut().into_iter().flatten();
    let found = entries.find(|entry| entry["resource"]["id"] == *id).map(|entry| entry["resource"].take());
    let shown = found.map(|mut json| match policy::at_reading(json.to_string().as_bytes()) {
        Decision::Suppress(why) => Shown::Withheld(why),
        Decision::Allow => {
            json["meta"]["versionId"] = version.version.to_string().into();
            if let Some(at) = version.at {
                json["meta"]["lastUpdated"] = at.to_string().into();
            }
            Shown::Resource(json)
        }
    });
    Ok((shown, content.bundle.len()))
}
