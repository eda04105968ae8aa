//! One folder for each kind of outside system, its source and its destination side together.
//!
//! A source hands whole messages to an [`Intake`] and answers its sender with the [`Verdict`]; a destination takes one
//! delivery at a time and says what became of it. Invariant: an adapter knows its wire and nothing of mappings, store
//! or bus.

#[cfg(test)]
mod authority;
mod connect;
mod documents;
pub mod http;
mod http_client;
pub mod mllp;
pub mod mqtt;
pub mod rest_hook;
pub mod settings;
#[cfg(test)]
mod tests;
pub mod tls;

use async_trait::async_trait;
use schemas::message::{DeliveryId, MessageId};
use schemas::yaml::Fields;
use settings::Setting;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Every adapter. One row makes it exist: the configuration, `pons check` and the documentation derive from it.
pub const ADAPTERS: &[AdapterSpec] = &[http::SPEC, mllp::SPEC, mqtt::SPEC, rest_hook::SPEC];

/// One kind of outside system.
#[derive(Debug)]
pub struct AdapterSpec {
    /// What a configuration calls it, such as `mllp`.
    pub name: &'static str,
    /// One line for lists.
    pub summary: &'static str,
    /// Its inbound side, if it has one.
    pub source: Option<SourceSpec>,
    /// Its outbound side, if it has one.
    pub destination: Option<DestinationSpec>,
}

/// The inbound side of an adapter, as data.
#[derive(Debug)]
pub struct SourceSpec {
    /// The keys that it reads beside the common ones.
    pub settings: &'static [Setting],
    /// Reads them. Every mistake goes to `fields`; `None` if there was one. The caller has taken the common keys and calls
    /// [`Fields::finish`] afterwards. Opens no socket.
    pub read: fn(&mut Fields, &SourceContext) -> Option<Arc<dyn Source>>,
    /// Whether it hands over documents, JSON or CSV, that a mapping named by the source reads; else HL7 v2, which says itself what it is.
    pub reads_documents: bool,
    /// Whether it fetches what it hands over, so that the configuration says whose it is, and one replica does so at a time.
    pub fetches: bool,
    /// The smallest configuration that works, in YAML, without the common keys.
    pub example: &'static str,
}

/// The outbound side of an adapter, as data.
#[derive(Debug)]
pub struct DestinationSpec {
    /// The keys that it reads beside the common ones.
    pub settings: &'static [Setting],
    /// Reads them, as [`SourceSpec::read`] does. Opens no socket.
    pub read: fn(&mut Fields, &Path) -> Option<Arc<dyn Destination>>,
    /// The smallest configuration that works, in YAML, without the common keys.
    pub example: &'static str,
}

/// What a source is told beside its own keys.
#[derive(Clone, Debug)]
pub struct SourceContext {
    /// The name of the source in the configuration; goes into every [`Received`].
    pub name: Arc<str>,
    /// The folder from which relative file names count: that of the configuration file.
    pub folder: Arc<Path>,
}

/// The row of an adapter.
pub fn adapter(name: &str) -> Option<&'static AdapterSpec> {
    ADAPTERS.iter().find(|spec| spec.name == name)
}

/// A configured source that does not listen yet.
#[async_trait]
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Takes its address and begins to hand messages to `intake`. When `stop` is cancelled it takes nothing new, answers
    /// what it has handed over, closes, and its task ends. One that fetches may be started again then.
    ///
    /// # Errors
    /// When the address cannot be had, such as a port in use.
    async fn start(
        self: Arc<Self>,
        intake: Arc<dyn Intake>,
        stop: CancellationToken,
    ) -> std::io::Result<RunningSource>;

    /// The side that reads what is posted to the gateway's own HTTP port at `/feeds/NAME`, if the source is such a one.
    fn feed(&self) -> Option<Arc<dyn Feed>> {
        None
    }
}

/// The side of a source that reads requests. The gateway has them from its HTTP port, bounded, and makes durable what is in them.
pub trait Feed: Send + Sync + std::fmt::Debug {
    /// Who sends, if requests prove it by a signature over their body and not by a token or certificate.
    fn signer(&self) -> Option<&Arc<str>>;

    /// Whether the head of a request can be taken for a mapping at all; its body is not read before.
    ///
    /// # Errors
    /// [`Unopened::Unsigned`], [`Unopened::Media`], [`Unopened::Encoded`].
    fn admits(&self, head: &hyper::http::request::Parts, reads: Reads) -> Result<(), Unopened>;

    /// Takes a request apart for a mapping that reads what is written so.
    ///
    /// # Errors
    /// [`Unopened`] when nothing of it can be taken.
    fn open(
        &self,
        head: &hyper::http::request::Parts,
        body: &bytes::Bytes,
        reads: Reads,
    ) -> Result<Vec<Document>, Unopened>;
}

/// What a mapping reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// JSON.
    Json,
    /// Records of CSV, written in this way.
    Csv(schemas::records::Csv),
}

/// One document of a feed: a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// As it came; a record of CSV with the header of its file before it.
    pub bytes: bytes::Bytes,
    /// Whether it is CSV, and not JSON.
    pub is_csv: bool,
    /// The patient that it names: who assigned the identifier, and the identifier.
    pub patient: Option<(Option<Arc<str>>, String)>,
    /// The device that it names: what is from one device stays in order.
    pub device: Option<String>,
    /// What the wire said beside it, by name, such as a level of its topic; its mapping reads it as `wire.NAME`.
    pub wire: Vec<(Arc<str>, String)>,
    /// How a wire that hands over again what was not acknowledged tells it from what is new.
    pub handed: Option<Handed>,
    /// Why it is no document at all: it is refused, the others of its request are not.
    pub fault: Option<String>,
}

/// The number under which a wire hands a document over. Acknowledged, it is given to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// The number, within its source.
    pub number: String,
    /// Whether it may have been handed over before; else it is new, whatever it holds.
    pub again: bool,
}

/// Why a request was not taken apart. No value of it is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    /// Nothing proves its sender.
    #[error("a valid signature is required")]
    Unsigned,
    /// It is of none of these media types, which are what its mapping reads.
    #[error("expected Content-Type: {0}")]
    Media(&'static str),
    /// Its body is compressed.
    #[error("a body without Content-Encoding is expected")]
    Encoded,
    /// It is not written as its media type says; where, is told.
    #[error("{0}")]
    Malformed(String),
    /// It holds more documents than are taken at once.
    #[error("{0}")]
    TooMany(String),
}

/// A source at work.
#[derive(Debug)]
pub struct RunningSource {
    /// Where it listens; the port is the real one even if the configuration said 0.
    pub address: Option<SocketAddr>,
    /// Ends once everything taken has been answered.
    pub task: JoinHandle<()>,
}

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
    /// When the message was first received, so that a repeat gets the same answer; `None` when it was not kept, then
    /// the answer carries the time at which it is given.
    pub received_at: Option<jiff::Timestamp>,
}

/// The two kinds of refusal that HL7 v2 knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectionKind {
    /// `AE`, in enhanced mode `CE`: an error in the content.
    Error,
    /// `AR`, in enhanced mode `CR`: type, version, processing id or sender not taken here.
    Reject,
}

/// What normalizing made of a stored message; an application acknowledgement says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was mapped and recorded.
    Normalized,
    /// It waits in quarantine for a person. The rejection says why, in the sender's terms.
    Quarantined(Rejection),
    /// Nobody can say: the gateway stops, or the message is not known here.
    Unknown,
}

/// The gateway's side of a source: accepts messages and makes them durable.
#[async_trait]
pub trait Intake: Send + Sync {
    /// Accepts one message. Returns once it is durable or refused; the caller bounds its own wait and may drop the
    /// call, which promises nothing to anybody.
    ///
    /// Order: a connection may have several calls under way. Each is polled for the first time in the order in which its
    /// message arrived, so the intake takes its place in line before its first await. When it answers
    /// [`Verdict::Unavailable`] to one, it must not store a later one of the same connection that was handed in before
    /// that answer.
    async fn accept(&self, received: Received) -> Verdict;

    /// Waits until a stored message has been normalized or quarantined. The caller bounds its own wait.
    async fn outcome(&self, message: MessageId) -> Outcome;

    /// How the mapping of a source reads documents; `None` while there is no such mapping, as where none are taken at all.
    fn reads(&self, _source: &str) -> Option<Reads> {
        None
    }

    /// Accepts what a source has fetched, in its order: behind one that answers [`Verdict::Unavailable`] nothing is stored.
    async fn accept_documents(&self, _source: &str, documents: Vec<Document>) -> Vec<Verdict> {
        vec![Verdict::Unavailable { reason: "no documents are taken here".to_owned() }; documents.len()]
    }

    /// Takes notice that a source which fetches has reached the other side, or not any more.
    fn reaches(&self, _source: &str, _is_reached: bool) {}

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
    /// The whole event as a CloudEvents 1.0 envelope in JSON, its `data` the Bundle.
    pub event: bytes::Bytes,
    /// The event number of an earlier delivery of the same patient that was given up and is passed by this one.
    pub passes: Option<i64>,
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
pub trait Destination: Send + Sync + std::fmt::Debug {
    /// Tries once. Must be safe to cancel and to repeat: the delivery id lets the other side recognise a repeat.
    async fn deliver(&self, outgoing: &Outgoing) -> Result<Receipt, DeliverError>;

    /// Says what is no event: a handshake or a heartbeat. What takes nothing but events shows that it can be reached.
    async fn greet(&self, outgoing: &Outgoing) -> Result<Receipt, DeliverError> {
        self.deliver(outgoing).await
    }

    /// Whether it passes on [`Outgoing::original`]; only then is that read back from the store.
    fn needs_original(&self) -> bool {
        false
    }
}
