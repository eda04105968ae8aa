//! Posts the Bundle of a delivery and reads what the status means.
//!
//! Invariant: the delivery id goes along as `Idempotency-Key`, the same on every attempt; nothing of the answer but its status
//! and `Retry-After` is looked at, and of the answer to a FHIR message its response code.

use super::config::RestHookConfig;
use super::message;
use crate::http_client::{Answered, HttpClient};
use crate::{DeliverError, Destination, Outgoing, Receipt};
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use jiff::Timestamp;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a token that was read is used before it is read again.
const TOKEN_FRESH: Duration = Duration::from_secs(5);

/// A destination that takes Bundles by HTTP POST.
#[derive(Debug)]
pub(super) struct RestHook {
    config: RestHookConfig,
    client: HttpClient,
    token: Mutex<Option<(Instant, HeaderValue)>>,
}

impl RestHook {
    /// A destination as configured. Connects with its first delivery.
    pub(super) fn new(config: RestHookConfig) -> Self {
        let client = HttpClient::new(config.connector.clone(), config.answer_timeout, config.connections);
        RestHook { config, client, token: Mutex::new(None) }
    }

    fn request(&self, outgoing: &Outgoing) -> Result<Request<Full<Bytes>>, DeliverError> {
        let url = &self.config.url;
        let host = url.authority().map_or("", |authority| authority.as_str());
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(HOST, host)
            .header(CONTENT_TYPE, "application/fhir+json")
            .header(USER_AGENT, concat!("pons/", env!("CARGO_PKG_VERSION")))
            .header("idempotency-key", outgoing.delivery.to_string());
        for (name, value) in &self.config.headers {
            request = request.header(name, value);
        }
        if let Some(traceparent) = &outgoing.traceparent {
            request = request.header("traceparent", traceparent);
        }
        if let Some(authorization) = self.authorization()? {
            request = request.header(AUTHORIZATION, authorization);
        }
        request
            .body(Full::new(match &self.config.message {
                Some(parties) => message::wrap(outgoing, parties),
                None => outgoing.bundle.clone(),
            }))
            .map_err(|error| DeliverError::Never { answer: format!("not sent: {error}") })
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, DeliverError> {
        let Some(secret) = &self.config.bearer else { return Ok(None) };
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, value)) = &*token
            && read.elapsed() < TOKEN_FRESH
        {
            return Ok(Some(value.clone()));
        }
        let away = |answer: String| DeliverError::Again { answer, after: None, away: true };
        let text = secret.value().map_err(|error| away(format!("not sent: {error}")))?;
        let mut value = HeaderValue::try_from(format!("Bearer {text}")).map_err(|_| {
            away("not sent: the bearer token holds characters that a header cannot".to_owned())
        })?;
        value.set_sensitive(true);
        *token = Some((Instant::now(), value.clone()));
        Ok(Some(value))
    }
}

#[async_trait]
impl Destination for RestHook {
    async fn deliver(&self, outgoing: &Outgoing) -> Result<Receipt, DeliverError> {
        let answered = self.client.send(self.request(outgoing)?).await?;
        let receipt = meaning(&answered, Timestamp::now(), self.config.retry_after_max)?;
        match self.config.message {
            Some(_) => message::settled(receipt, answered.body.as_deref()),
            None => Ok(receipt),
        }
    }
}

/// What a status means for the delivery.
fn meaning(answered: &Answered, now: Timestamp, retry_after_max: Duration) -> Result<Receipt, DeliverError> {
    let status = answered.status;
    let answer = format!("HTTP {}", status.as_u16());
    let after = answered.headers.get(RETRY_AFTER).and_then(|value| retry_after(value, now));
    let after = after.map(|after| after.min(retry_after_max));
    match status {
        _ if status.is_success() => Ok(Receipt { answer }),
        // Not about this delivery: the token is wrong or has run out, or the other side as a whole wants a pause.
        StatusCode::UNAUTHORIZED
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Err(DeliverError::Again { answer, after, away: true }),
        StatusCode::REQUEST_TIMEOUT => Err(DeliverError::Again { answer, after, away: false }),
        _ if status.is_server_error() => Err(DeliverError::Again { answer, after, away: false }),
        _ if status.is_redirection() => Err(DeliverError::Never {
            answer: format!("{answer}: redirects are not followed, name the right URL"),
        }),
        _ => Err(DeliverError::Never { answer }),
    }
}

/// `Retry-After`: seconds or an HTTP date (RFC 9110 section 10.2.3).
fn retry_after(value: &HeaderValue, now: Timestamp) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO))
}
