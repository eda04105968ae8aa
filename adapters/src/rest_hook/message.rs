//! A notification as a FHIR message, and what the receiver says of it.
//!
//! # Source
//! FHIR R4 messaging, `$process-message`; HL7 FHIR Subscriptions R5 Backport 1.1.0, channel `message`.

use super::config::Parties;
use crate::{DeliverError, Outgoing, Receipt};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

/// The system of our message events; neither R4 nor the backport has a code for this one.
const EVENTS: &str = "urn:pons:message-event";

/// A Bundle of type `message` whose focus is the notification. The same delivery gives the same bytes.
pub(super) fn wrap(outgoing: &Outgoing, parties: &Parties) -> Bytes {
    let of = |name: &[u8]| Uuid::new_v5(&outgoing.delivery.0, name);
    let (message, header, notification) = (of(b"message"), of(b"header"), outgoing.delivery);
    let head = json!({
        "resourceType": "MessageHeader",
        "id": header,
        "eventCoding": {"system": EVENTS, "code": "subscription-notification"},
        "destination": [{"endpoint": parties.destination}],
        "source": {"name": "Pons", "endpoint": parties.source},
        "focus": [{"reference": format!("urn:uuid:{notification}")}],
    });
    let before = format!(
        "{{\"resourceType\":\"Bundle\",\"id\":\"{message}\",\"type\":\"message\",\"entry\":[\
         {{\"fullUrl\":\"urn:uuid:{header}\",\"resource\":{head}}},\
         {{\"fullUrl\":\"urn:uuid:{notification}\",\"resource\":"
    );
    Bytes::from([before.as_bytes(), &outgoing.bundle, b"}]}"].concat())
}

/// What a server that has answered with success says in its answer: MessageHeader.response.code. An answer without one is a success; one
/// that could not be read to its end is none.
pub(super) fn settled(receipt: Receipt, body: Option<&[u8]>) -> Result<Receipt, DeliverError> {
    let Some(body) = body else {
        let answer = format!("{}, a response that could not be read to its end", receipt.answer);
        return Err(DeliverError::Again { answer, after: None, away: false });
    };
    let answer: Answer = serde_json::from_slice(body).unwrap_or_default();
    let header = answer.entry.into_iter().next().and_then(|entry| entry.resource);
    let code =
        header.filter(|header| header.resource_type == "MessageHeader").and_then(|header| header.response);
    let said = |code: &str| format!("{}, response {code}", receipt.answer);
    match code.as_ref().map(|response| response.code.as_str()) {
        Some(code @ "fatal-error") => Err(DeliverError::Never { answer: said(code) }),
        Some(code @ "transient-error") => {
            Err(DeliverError::Again { answer: said(code), after: None, away: false })
        }
        Some("ok") => Ok(Receipt { answer: said("ok") }),
        Some(_) | None => Ok(receipt),
    }
}

#[derive(Default, Deserialize)]
struct Answer {
    #[serde(default)]
    entry: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    resource: Option<Header>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "resourceType")]
    resource_type: String,
    response: Option<Response>,
}

#[derive(Deserialize)]
struct Response {
    #[serde(default)]
    code: String,
}
