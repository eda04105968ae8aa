//! Feeds in: what others post to `/feeds/NAME` is taken apart, made durable and answered at once; nobody waits for its mapping.

use super::{Answer, Api, auth, fhir, outcome, whole};
use crate::ingest::{self, Feeding};
use adapters::{Document, Unopened, Verdict};
use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode, header};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// Where feeds lie; the name of the source follows.
pub const PATH: &str = "/feeds/";

/// Takes one request.
pub async fn answer(
    api: &Api,
    head: &Parts,
    body: Incoming,
    peer: SocketAddr,
    certificate_names: &[String],
) -> Answer {
    match try_answer(api, head, body, peer, certificate_names).await {
        Ok(answer) | Err(answer) => answer,
    }
}

async fn try_answer(
    api: &Api,
    head: &Parts,
    body: Incoming,
    peer: SocketAddr,
    certificate_names: &[String],
) -> Result<Answer, Answer> {
    let name = head.uri.path().strip_prefix(PATH).unwrap_or_default();
    let feed = api.feeds.get(name);
    let senders = api.ingest.senders();
    // Who is known by a signature shows no token; whether it is right is seen once the body is there.
    let client = match feed.and_then(|feed| feed.signer()) {
        Some(signer) => senders.named(signer).ok_or_else(|| refused(&Unopened::Unsigned))?,
        None => auth::client(senders, head, peer, certificate_names)?,
    };
    let (Some(feed), Some(mapping)) = (feed, senders.mapping_of(name)) else {
        let text = "no source of this name takes requests here";
        return Err(outcome::answer(StatusCode::NOT_FOUND, "not-found", text));
    };
    if head.method != Method::POST {
        let mut answer =
            outcome::answer(StatusCode::METHOD_NOT_ALLOWED, "not-supported", "a feed takes POST");
        answer.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("POST"));
        return Err(answer);
    }
    let client = senders.on(client, name).filter(|client| client.may_send(mapping, ""));
    let client = client.ok_or_else(|| {
        outcome::answer(StatusCode::FORBIDDEN, "forbidden", "this sender may not use this source")
    })?;
    feed.admits(head).map_err(|why| refused(&why))?;
    let body = whole(api, body).await?;
    let feeding = Feeding { source: name, mapping, sender: &client };
    let documents = match feed.open(head, &body) {
        Ok(documents) => documents,
        Err(why) => {
            tracing::warn!(source = name, reason = %why, "a request to a feed was refused");
            if let Unopened::Malformed(text) = &why {
                keep_refused(api, &feeding, head, body, text).await;
            }
            return Err(refused(&why));
        }
    };
    taken(api, &feeding, head, documents).await
}

/// Makes documents durable and says what became of each.
async fn taken(
    api: &Api,
    feeding: &Feeding<'_>,
    head: &Parts,
    documents: Vec<Document>,
) -> Result<Answer, Answer> {
    let told = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (key, traceparent) = (told("idempotency-key"), told("traceparent"));
    let of_many = documents.len() > 1;
    let faults: Vec<Option<String>> = documents.iter().map(|document| document.fault.clone()).collect();
    let kept = documents.into_iter().enumerate().map(|(index, document)| {
        // The same key with the same documents is the same request.
        let key = match (key, of_many) {
            ("", _) => String::new(),
            (key, false) => key.to_owned(),
            (key, true) => format!("{}#{index}", key.chars().take(ingest::KEY_MAX - 8).collect::<String>()),
        };
        api.ingest.feed(feeding, document, key, traceparent)
    });
    let verdicts = join_all(kept).await;
    let mut durable = 0;
    let results: Vec<Value> = verdicts
        .iter()
        .zip(&faults)
        .map(|(verdict, fault)| {
            durable += usize::from(matches!(verdict, Verdict::Stored(_)) || fault.is_some());
            match (verdict, fault) {
                (_, Some(fault)) => json!({"refused": fault}),
                (Verdict::Stored(stored), None) if stored.repeat => {
                    json!({"message": stored.message.to_string(), "repeat": true})
                }
                (Verdict::Stored(stored), None) => json!({"message": stored.message.to_string()}),
                (Verdict::Rejected(rejection), None) => json!({"refused": rejection.text}),
                (Verdict::Unavailable { .. } | Verdict::Unreadable { .. }, None) => json!(null),
            }
        })
        .collect();
    if results.iter().any(Value::is_null) {
        let text = format!(
            "{durable} of {} documents are durable, the store cannot take the others now: post all of them again, with the same Idempotency-Key",
            results.len()
        );
        return Err(fhir::later(&text));
    }
    let is_refused = |result: &Value| result.get("refused").is_some();
    let status = match (results.iter().any(is_refused), results.iter().all(is_refused)) {
        (true, true) => StatusCode::BAD_REQUEST,
        (true, false) => StatusCode::MULTI_STATUS,
        (false, _) => StatusCode::ACCEPTED,
    };
    let answer = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CACHE_CONTROL, "no-store")
        .body(Full::new(Bytes::from(json!({ "documents": results }).to_string())));
    Ok(answer.expect("these headers are valid"))
}

/// Keeps a body that could not be taken apart as a final row, for the operator.
async fn keep_refused(api: &Api, feeding: &Feeding<'_>, head: &Parts, body: Bytes, text: &str) {
    let is_csv =
        head.headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/"));
    let whole = Document { bytes: body, is_csv, patient: None, fault: Some(text.to_owned()) };
    if let Verdict::Unavailable { reason } = api.ingest.feed(feeding, whole, String::new(), "").await {
        tracing::error!(error = %reason, "a refused request could not be kept");
    }
}

fn refused(why: &Unopened) -> Answer {
    let (status, code) = match why {
        Unopened::Unsigned => (StatusCode::UNAUTHORIZED, "login"),
        Unopened::Media => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-supported"),
        Unopened::Malformed(_) => (StatusCode::BAD_REQUEST, "structure"),
        Unopened::TooMany(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too-costly"),
    };
    outcome::answer(status, code, &why.to_string())
}
