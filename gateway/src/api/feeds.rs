//! Feeds in: what others post to `/feeds/NAME` is taken apart, made durable and answered at once; nobody waits for its mapping.

use super::{Answer, Api, auth, fhir, outcome, whole};
use crate::ingest::Feeding;
use adapters::{Document, Reads, Unopened, Verdict};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode, header};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// Where feeds lie; the name of the source follows.
pub const PATH: &str = "/feeds/";
/// The largest body of a request that has still to prove whose it is, in bytes.
const UNPROVEN_MAX: usize = 1 << 20;

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
    let signer = feed.and_then(|feed| feed.signer());
    let client = match signer {
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
    let reads = api.ingest.mapping_reads(&client.name, mapping);
    let reads = reads.ok_or_else(|| fhir::later("the mapping of this source is not there now"))?;
    feed.admits(head, reads).map_err(|why| refused(&why))?;
    let key = key(head, Feeding::key_max(name))?;
    let body_max = if signer.is_some() { UNPROVEN_MAX.min(api.http.body_max) } else { api.http.body_max };
    let body = whole(api, body, body_max).await?;
    let told = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let traceparent = told("traceparent");
    let refusal = "HTTP 400";
    let feeding = Feeding { source: name, mapping, sender: &client, key, traceparent, refusal };
    let documents = match feed.open(head, &body, reads) {
        Ok(documents) => documents,
        Err(why) => {
            tracing::warn!(source = name, reason = %why, "a request to a feed was refused");
            if let Unopened::Malformed(text) = &why {
                keep_refused(api, &feeding, reads, body, text).await;
            }
            return Err(refused(&why));
        }
    };
    taken(api, &feeding, documents).await
}

/// What the sender calls its request.
fn key(head: &Parts, max: usize) -> Result<&str, Answer> {
    let Some(key) = head.headers.get("idempotency-key") else { return Ok("") };
    key.to_str().ok().filter(|key| key.len() <= max).ok_or_else(|| {
        let text = format!("an Idempotency-Key has at most {max} characters, all of them ASCII");
        outcome::answer(StatusCode::BAD_REQUEST, "invalid", &text)
    })
}

/// Makes documents durable and says what became of each.
async fn taken(api: &Api, feeding: &Feeding<'_>, documents: Vec<Document>) -> Result<Answer, Answer> {
    let faults: Vec<Option<String>> = documents.iter().map(|document| document.fault.clone()).collect();
    let verdicts = api.ingest.feed(feeding, documents).await;
    let is_kept = |verdict: &Verdict| !matches!(verdict, Verdict::Unavailable { .. });
    let durable = verdicts.iter().filter(|verdict| is_kept(verdict)).count();
    if durable < verdicts.len() {
        let text = format!(
            "{durable} of {} documents are kept, the store cannot take the others now: post all of them again, with the same Idempotency-Key",
            verdicts.len()
        );
        return Err(fhir::later(&text));
    }
    let result = |(verdict, fault): (&Verdict, &Option<String>)| match (verdict, fault) {
        (_, Some(fault)) => json!({"refused": fault}),
        (Verdict::Stored(stored), None) => match stored.repeat {
            true => json!({"message": stored.message.to_string(), "repeat": true}),
            false => json!({"message": stored.message.to_string()}),
        },
        (Verdict::Rejected(rejection), None) => json!({"refused": rejection.text}),
        (Verdict::Unavailable { reason } | Verdict::Unreadable { reason }, None) => {
            json!({"refused": reason})
        }
    };
    let results: Vec<Value> = verdicts.iter().zip(&faults).map(result).collect();
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
async fn keep_refused(api: &Api, feeding: &Feeding<'_>, reads: Reads, body: Bytes, text: &str) {
    let is_csv = matches!(reads, Reads::Csv(_));
    let whole = Document { bytes: body, is_csv, fault: Some(text.to_owned()), ..Document::default() };
    let unnamed = Feeding { key: "", ..*feeding };
    for verdict in api.ingest.feed(&unnamed, vec![whole]).await {
        if let Verdict::Unavailable { reason } = verdict {
            tracing::error!(error = %reason, "a refused request could not be kept");
        }
    }
}

fn refused(why: &Unopened) -> Answer {
    let (status, code) = match why {
        Unopened::Unsigned => (StatusCode::UNAUTHORIZED, "login"),
        Unopened::Media(_) | Unopened::Encoded => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-supported"),
        Unopened::Malformed(_) => (StatusCode::BAD_REQUEST, "structure"),
        Unopened::TooMany(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too-costly"),
    };
    let mut answer = outcome::answer(status, code, &why.to_string());
    if *why == Unopened::Unsigned {
        let scheme = header::HeaderValue::from_static("Signature realm=\"pons\"");
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        // The body was not read, mostly: the connection cannot be used again.
        answer.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    }
    answer
}
