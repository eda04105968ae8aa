//! One folder for each kind of outside system, its source and its destination side together.
//!
//! A source hands whole messages to an [`Intake`] and answers its sender with the [`Verdict`]; a destination takes one
//! delivery at a time and says what became of it. Invariant: an adapter knows its wire and nothing of mappings, store
//! or bus.

use async_trait::async_trait;
use schemas::message::{DeliveryId, MessageId};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What a source received: the bytes of one message and what the wire knows about its sender.
#[derive(Clone, Debug)]
pub struct Received {
    /// The name of the source in the configuration.
    pub source: Arc<str>,
    /// The message as it came, without its frame.
    pub bytes: bytes::Bytes,
    /// Where it came from.
    pub peer: Option<SocketAddr>,
    /// Who the wire proved the sender to be: the names in a verified client certificate (DNS and URI names, then the
    /// common name), empty without one.
    pub certificate_names: Arc<[String]>,
}

/// What became of a received message. Only [`Verdict::Stored`] allows a positive answer, and only the intake makes it,
/// after the row is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Durable. The answer is a function of the message and of this, so that a repeat gets the same answer again.
    Stored(Stored),
    /// Not taken; kept as `rejected` for the operator. The sender keeps the message.
    Rejected(Rejection),
    /// Not HL7 at all, nothing to answer to: close the connection. The bytes are kept as `rejected`.
    Unreadable {
        /// Why, for the log.
        reason: String,
    },
    /// Cannot be stored now. The adapter holds, closes or refuses as its settings say; it never answers positively.
    Unavailable {
        /// What is away, for the log.
        reason: String,
    },
}

/// The receipt of a durable message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The id that the store gave, also found with `pons show`.
    pub message: MessageId,
    /// When it was first received; a repeat carries the time of the first, so its answer is the same.
    pub received_at: jiff::Timestamp,
    /// Whether the same bytes with the same control id had been stored before.
    pub repeat: bool,
}

/// Why a message was refused, in the terms of HL7 v2 (ERR segment) and of FHIR (OperationOutcome) alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Whether the content is at fault (`AE`) or the message cannot be taken here (`AR`).
    pub kind: RejectionKind,
    /// ERR-3, a code of table 0357 such as 101 or 200.
    pub code: u16,
    /// ERR-2, a path such as `MSH-10`; empty when it is about the whole message.
    pub location: String,
    /// For the sender: one sentence, no value of the message.
    pub text: String,
    /// Whether the connection should be closed after the answer.
    pub close: bool,
}

/// The two kinds of refusal that HL7 v2 knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectionKind {
    /// `AE`, in enhanced mode `CE`: an error in the content.
    Error,
    /// `AR`, in enhanced mode `CR`: type, version, processing id or sender not taken here.
    Reject,
}

/// The gateway's side of a source: accepts messages and makes them durable.
#[async_trait]
pub trait Intake: Send + Sync {
    /// Accepts one message. Returns once it is durable or refused; the caller bounds its own wait.
    async fn accept(&self, received: Received) -> Verdict;

    /// Keeps what never became a message (a frame over its limit, bytes outside of any frame) for the operator.
    /// `head` is at most its first 64 KiB.
    async fn keep_refused(&self, received: Received, rejection: Rejection);
}

/// One event on its way out.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The delivery; constant over every attempt.
    pub delivery: DeliveryId,
    /// The subscription's name in the configuration.
    pub subscription: Arc<str>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The event as FHIR: a Bundle in JSON, its identifier the delivery id.
    pub bundle: bytes::Bytes,
    /// The message as it was received, for destinations that pass it on unchanged.
    pub original: bytes::Bytes,
    /// W3C trace context of the delivery, if it is traced.
    pub traceparent: Option<String>,
}

/// What a destination's answer means for the delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// What was answered, such as `HTTP 200` or `MSA-1 AA`; shown in the timeline, never a body.
    pub answer: String,
}

/// Why a delivery did not go through, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliverError {
    /// Worth another attempt: a timeout, a refused connection, HTTP 5xx, 408, 429, `AR` and `CR`.
    #[error("{answer}")]
    Again {
        /// What happened, such as `HTTP 503` or `no answer within 30 s`.
        answer: String,
        /// When the other side asked to be left alone for a while.
        after: Option<Duration>,
        /// Whether the destination as a whole is away (it feeds the circuit), not just this delivery refused.
        away: bool,
    },
    /// Will not go through however often: HTTP 4xx, `AE` and `CE`. The delivery is parked.
    #[error("{answer}")]
    Never {
        /// What happened, such as `HTTP 422`.
        answer: String,
    },
}

/// The outbound side of an adapter: one instance a subscription, kept for its life.
#[async_trait]
pub trait Destination: Send + Sync {
    /// Tries once. Must be safe to cancel and to repeat: the delivery id lets the other side recognise a repeat.
    async fn deliver(&self, outgoing: &Outgoing) -> Result<Receipt, DeliverError>;
}
