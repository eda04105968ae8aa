//! The first station of the path: accept, recognise the sender, make durable, answer.
//!
//! Invariant (custody): a positive verdict is made after the row is committed, and only here. Nothing is mapped here:
//! the sender waits for the disk and for nothing else.

pub mod commit;
pub mod keys;
pub mod pressure;
pub mod senders;
pub mod turns;

use crate::normalize::fhir;
use crate::normalize::waiters::{Changed, Done, UNMET, Waiters};
use crate::store::{self, Appended, Format, MessageResult, NewMessage, Refused, Store};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::{self, Verb};
use adapters::{Document, Intake, Outcome, Reads, Received, Rejection, RejectionKind, Stored, Verdict};
use async_trait::async_trait;
use commit::{Committer, Written};
use keys::Keys;
use schemas::hl7v2::{Answer, Header, Limits, Message, Unreadable, charset};
use schemas::message::MessageId;
use senders::{Known, Senders};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use uuid::Uuid;

/// Says whether there is a mapping for a message, so that what cannot be used is refused while its sender listens.
pub trait Takes: Send + Sync {
    /// `Ok`, or the code of table 0357 (200 type, 201 event, 203 version) that says what is not taken.
    fn takes(&self, code: &str, trigger: &str, structure: &str, version: &str) -> Result<(), u16>;

    /// How a mapping reads documents, as a sender has it; `None` if there is no such mapping now.
    fn reads(&self, sender: &str, mapping: &str) -> Option<Reads>;
}

/// A message that is being written.
struct Begun {
    id: MessageId,
    received_at: jiff::Timestamp,
    /// While somebody traces.
    verb: Option<Verb>,
}

impl Begun {
    fn of(message: &mut NewMessage) -> Begun {
        let (id, received_at) = (message.id, message.received_at);
        let mut verb = Verb::begin("ingest", trace::in_context(&message.context), received_at);
        if let Some(verb) = &mut verb {
            message.context = trace::into_context(&message.context, &verb.traceparent());
            verb.note("message_id", id.to_string());
            verb.note("source", message.source.clone());
        }
        Begun { id, received_at, verb }
    }

    /// What became of it.
    fn ended(self, written: Written) -> Verdict {
        let Begun { id, received_at, verb } = self;
        let verdict = match written {
            Ok(Appended::New { control_id_reused, .. }) => {
                if control_id_reused {
                    tracing::warn!(message_id = %id, "a control id came again with other content; taken as a new message");
                }
                Verdict::Stored(Stored { message: id, received_at, repeat: false })
            }
            Ok(Appended::Repeat { id, received_at, rejected: None }) => {
                tracing::info!(message_id = %id, "a repeat; its first answer is given again");
                Verdict::Stored(Stored { message: id, received_at, repeat: true })
            }
            Ok(Appended::Repeat { rejected: Some(refused), received_at, .. }) => {
                Verdict::Rejected(Rejection { received_at: Some(received_at), ..refused.into_rejection() })
            }
            Err(reason) => Verdict::Unavailable { reason },
        };
        let Some(mut verb) = verb else { return verdict };
        match &verdict {
            Verdict::Stored(stored) => {
                verb.note("message_id", stored.message.to_string());
                verb.note("repeat", stored.repeat);
            }
            Verdict::Rejected(rejection) => verb.note("code", i64::from(rejection.code)),
            Verdict::Unavailable { .. } => verb.fail("not stored"),
            Verdict::Unreadable { .. } => verb.fail("unreadable"),
        }
        verdict
    }
}

/// By which way documents come in.
#[derive(Clone, Copy, Debug)]
pub struct Feeding<'f> {
    /// The source.
    pub source: &'f str,
    /// The mapping that will read them.
    pub mapping: &'f str,
    /// Who sends them.
    pub sender: &'f Known,
    /// What the sender calls its request; empty if nothing.
    pub key: &'f str,
    /// The trace of the request.
    pub traceparent: &'f str,
    /// What the sender is told of what is refused and kept.
    pub refusal: &'static str,
}

impl Feeding<'_> {
    /// The longest key: with the source and a number it is the control id of a message.
    pub fn key_max(source: &str) -> usize {
        CONTROL_ID_MAX.saturating_sub(source.chars().count() + 8)
    }

    fn message(&self, source: &Arc<str>, context: &str, index: usize, document: Document) -> NewMessage {
        let mut keys = Keys { order: Vec::new(), patients: Vec::new() };
        if let Some((assigner, value)) = &document.patient {
            keys.add(assigner.as_deref().unwrap_or(&self.sender.name), value);
        }
        if let Some(device) = &document.device {
            keys.add_device(&self.sender.name, device);
        }
        let keys = keys.or_sender(&self.sender.name);
        let kept = if document.fault.is_some() { KEPT_MAX } else { usize::MAX };
        // The same key at another source is another request.
        let control_id = match (&document.handed, self.key) {
            (Some(handed), _) => format!("{source}/{}", handed.number),
            (None, "") => String::new(),
            (None, key) => format!("{source}/{key}#{index}"),
        };
        NewMessage {
            id: MessageId(Uuid::now_v7()),
            received_at: store::now(),
            sender: self.sender.name.clone(),
            source: source.clone(),
            format: if document.is_csv { Format::Csv } else { Format::Json },
            control_id: bounded(&control_id),
            handed_again: document.handed.as_ref().map(|handed| handed.again),
            message_type: bounded(self.mapping),
            version: String::new(),
            bytes: document.bytes.slice(..document.bytes.len().min(kept)),
            keys: keys.order,
            patient_hashes: keys.patients,
            rejected: document.fault.map(|text| Refused {
                answer: self.refusal.to_owned(),
                code: 0,
                location: String::new(),
                text,
            }),
            context: senders::with_wire(context, &document.wire),
        }
    }
}

/// The intake of one gateway.
pub struct Ingest {
    senders: Senders,
    committer: Committer,
    store: Arc<dyn Store>,
    waiters: Arc<Waiters>,
    takes: Arc<dyn Takes>,
    limits: Limits,
    metrics: Arc<Metrics>,
}

impl Ingest {
    /// `takes` says which messages have a mapping.
    pub fn new(
        senders: Senders,
        committer: Committer,
        store: Arc<dyn Store>,
        waiters: Arc<Waiters>,
        takes: Arc<dyn Takes>,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> Self {
        Ingest { senders, committer, store, waiters, takes, limits, metrics }
    }

    /// Who is known; the HTTP listener asks it for its clients.
    pub fn senders(&self) -> &Senders {
        &self.senders
    }

    /// Writes a message that is ready and turns what the store says into a verdict.
    pub async fn keep(&self, message: NewMessage) -> Verdict {
        let (source, refused) = (message.source.clone(), message.rejected.is_some());
        let verdict = self.write(message).await;
        match &verdict {
            Verdict::Stored(_) if refused => self.metrics.refused(&source),
            verdict => self.metrics.ingested(&source, verdict),
        }
        verdict
    }

    /// The same for the messages of one request, in their order. When one cannot be written, none after it is.
    async fn keep_all(&self, messages: Vec<NewMessage>) -> Vec<Verdict> {
        let mut begun = Vec::with_capacity(messages.len());
        let messages: Vec<NewMessage> = messages
            .into_iter()
            .map(|mut message| {
                begun.push((Begun::of(&mut message), message.source.clone(), message.rejected.is_some()));
                message
            })
            .collect();
        let written = self.committer.write_all(messages).await;
        let told = written.into_iter().zip(begun).map(|(written, (begun, source, refused))| {
            let verdict = begun.ended(written);
            match &verdict {
                Verdict::Stored(_) if refused => self.metrics.refused(&source),
                verdict => self.metrics.ingested(&source, verdict),
            }
            verdict
        });
        told.collect()
    }

    async fn write(&self, mut message: NewMessage) -> Verdict {
        let begun = Begun::of(&mut message);
        begun.ended(self.committer.write(message).await)
    }

    /// Waits until a stored message has been normalized; the caller bounds its wait. `None` if it is not known here.
    pub async fn result(&self, message: MessageId) -> Option<Done> {
        let waiting = self.waiters.register(message);
        // It may have been done before we began to wait.
        match self.recorded(message).await? {
            Some(done) => Some(done),
            None => self.told(message, waiting).await,
        }
    }

    /// As [`Ingest::result`], for somebody who registered before the message was stored.
    pub async fn told(&self, message: MessageId, mut waiting: oneshot::Receiver<Done>) -> Option<Done> {
        let mut look = LOOK;
        loop {
            match tokio::time::timeout(look, &mut waiting).await {
                Ok(told) => return told.ok(),
                // Another replica may have done it.
                Err(_) => match self.recorded(message).await? {
                    Some(done) => return Some(done),
                    None => look *= 2,
                },
            }
        }
    }

    /// The result in the store, if there is one yet. `None` if the message is not known.
    async fn recorded(&self, message: MessageId) -> Option<Option<Done>> {
        match self.store.timeline(message).await {
            Ok(Some(timeline)) => {
                let Some((_, result)) = timeline.results.into_iter().next_back() else { return Some(None) };
                if let Some(why) = result.quarantined {
                    return Some(Some(Done::quarantined(why)));
                }
                let resources = resources_of(&result);
                match result.issues.into_iter().find(|issue| UNMET.contains(&&*issue.code)) {
                    Some(issue) => Some(Some(Done::unmet(issue))),
                    None => Some(Some(Done::taken(resources))),
                }
            }
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(message_id = %message, error = %crate::chain(&error), "a result could not be looked up");
                Some(None)
            }
        }
    }

    /// Whether a message that came again asks for the same as the first one did, beside its bytes. True if nobody can tell.
    pub async fn asked_alike(&self, first: MessageId, request: &Map<String, Value>) -> bool {
        match self.store.timeline(first).await {
            Ok(Some(timeline)) => fhir::asked_in(&timeline.context) == *request,
            Ok(None) | Err(_) => true,
        }
    }

    /// Accepts the documents of one request to a feed, in their order; what is no document at all is kept as refused. Nothing is stored
    /// behind one that could not be.
    pub async fn feed(&self, feeding: &Feeding<'_>, documents: Vec<Document>) -> Vec<Verdict> {
        let context = feeding.sender.context_on(feeding.source);
        let context = match trace::read(feeding.traceparent) {
            Some(_) => trace::into_context(&context, feeding.traceparent),
            None => context,
        };
        let source: Arc<str> = feeding.source.into();
        let documents = documents.into_iter().enumerate();
        let messages = documents.map(|(index, document)| feeding.message(&source, &context, index, document));
        self.keep_all(messages.collect()).await
    }

    /// How a mapping reads documents of a sender, while there is such a one.
    pub fn mapping_reads(&self, sender: &str, mapping: &str) -> Option<Reads> {
        self.takes.reads(sender, mapping)
    }

    /// Whose documents a source fetches, and which mapping reads them.
    fn fetched(&self, source: &str) -> Option<(Known, &str)> {
        let sender = self.senders.named(self.senders.sender_of(source)?)?;
        Some((self.senders.on(sender, source)?, self.senders.mapping_of(source)?))
    }

    async fn accept_hl7v2(&self, received: Received) -> Verdict {
        let decoded = charset::decode(&received.bytes, None);
        let message = match Message::parse(&decoded.text, &self.limits) {
            Ok(message) => message,
            Err(unreadable) => return self.refuse_unreadable(&received, &unreadable).await,
        };
        let header = message.header();
        let known = match self.check(&received, &header) {
            Ok(known) => known,
            Err(rejection) => {
                let new = self.new_message(&received, &header, "", String::new());
                return self.refuse(new, rejection).await;
            }
        };
        let keys = keys::of_hl7v2(&message, &known.name);
        let mut new = self.new_message(&received, &header, &known.name, known.context());
        (new.keys, new.patient_hashes) = (keys.order, keys.patients);
        self.write(new).await
    }

    /// Everything that can be said about a message before it is mapped, as design section 6 has it.
    fn check(&self, received: &Received, header: &Header<'_>) -> Result<Known, Rejection> {
        let reject = |kind, code, location: &str, text: &str| Rejection {
            kind,
            code,
            location: location.to_owned(),
            text: text.to_owned(),
            close: false,
            received_at: None,
        };
        if header.control_id().is_none_or(|id| id.trim().is_empty() || id == "\"\"") {
            return Err(reject(RejectionKind::Error, 101, "MSH-10", "a message control id is required"));
        }
        let or_empty = |value: Option<Cow<'_, str>>| value.unwrap_or_default().into_owned();
        let (application, facility) =
            (or_empty(header.sending_application()), or_empty(header.sending_facility()));
        let known = self
            .senders
            .recognise(received, &application, &facility)
            .map_err(|why| reject(RejectionKind::Reject, 103, why.location(), why.text()))?;
        let (code, trigger) = (or_empty(header.message_code()), or_empty(header.trigger()));
        let (structure, version) = (or_empty(header.structure()), or_empty(header.version()));
        let not_taken = |code: u16| {
            let (location, text) = match code {
                200 => ("MSH-9.1", "this message type is not taken here"),
                201 => ("MSH-9.2", "this trigger event is not taken here"),
                _ => ("MSH-12", "this version is not taken here"),
            };
            reject(RejectionKind::Reject, code, location, text)
        };
        if !known.may_send(&code, &trigger) {
            return Err(not_taken(200));
        }
        self.takes.takes(&code, &trigger, &structure, &version).map_err(not_taken)?;
        // Table 0103: P alone is production; a message that does not say is one.
        let processing_id = or_empty(header.processing_id());
        let training = !matches!(processing_id.trim(), "" | "P");
        if training == known.production {
            return Err(reject(
                RejectionKind::Reject,
                202,
                "MSH-11",
                if training {
                    "test messages are not taken on a production source"
                } else {
                    "only test messages are taken here"
                },
            ));
        }
        Ok(known)
    }

    fn new_message(
        &self,
        received: &Received,
        header: &Header<'_>,
        sender: &str,
        context: String,
    ) -> NewMessage {
        NewMessage {
            id: MessageId(Uuid::now_v7()),
            received_at: store::now(),
            sender: if sender.is_empty() { UNKNOWN.into() } else { sender.into() },
            source: received.source.clone(),
            format: Format::Hl7v2,
            control_id: bounded(&header.control_id().unwrap_or_default()),
            handed_again: None,
            message_type: bounded(&message_type(header)),
            version: bounded(&header.version().unwrap_or_default()),
            bytes: received.bytes.clone(),
            keys: Vec::new(),
            patient_hashes: Vec::new(),
            rejected: None,
            context,
        }
    }

    /// Keeps a refused message as a final row, then refuses it. If even that cannot be written, the sender gets no
    /// answer and sends again.
    async fn refuse(&self, mut new: NewMessage, rejection: Rejection) -> Verdict {
        tracing::warn!(message_id = %new.id, code = rejection.code, location = %rejection.location, "message refused");
        new.rejected = Some(Refused::from_rejection(&rejection));
        match self.write(new).await {
            Verdict::Stored(stored) => {
                Verdict::Rejected(Rejection { received_at: Some(stored.received_at), ..rejection })
            }
            other => other,
        }
    }

    async fn refuse_unreadable(&self, received: &Received, unreadable: &Unreadable) -> Verdict {
        let rejection = Rejection {
            kind: if unreadable.answer() == Answer::Error {
                RejectionKind::Error
            } else {
                RejectionKind::Reject
            },
            code: unreadable.code(),
            location: unreadable.location(),
            text: unreadable.to_string(),
            close: unreadable.answer() != Answer::Error,
            received_at: None,
        };
        let answered = unreadable.answer() != Answer::Close;
        match self.write(unnamed(received, &rejection, answered)).await {
            Verdict::Unavailable { reason } => Verdict::Unavailable { reason },
            _ if !answered => Verdict::Unreadable { reason: unreadable.to_string() },
            Verdict::Stored(stored) => {
                Verdict::Rejected(Rejection { received_at: Some(stored.received_at), ..rejection })
            }
            other => other,
        }
    }
}

#[async_trait]
impl Intake for Ingest {
    async fn accept(&self, received: Received) -> Verdict {
        let source = received.source.clone();
        let verdict = self.accept_hl7v2(received).await;
        self.metrics.ingested(&source, &verdict);
        verdict
    }

    async fn outcome(&self, message: MessageId) -> Outcome {
        match self.result(message).await {
            None => Outcome::Unknown,
            Some(Done { quarantined: None, .. }) => Outcome::Normalized,
            Some(Done { quarantined: Some(why), .. }) => Outcome::Quarantined(Rejection {
                kind: RejectionKind::Error,
                code: 207,
                location: String::new(),
                text: why,
                close: false,
                received_at: None,
            }),
        }
    }

    fn reads(&self, source: &str) -> Option<Reads> {
        let (sender, mapping) = self.fetched(source)?;
        self.mapping_reads(&sender.name, mapping)
    }

    async fn accept_documents(&self, source: &str, documents: Vec<Document>) -> Vec<Verdict> {
        let Some((sender, mapping)) = self.fetched(source) else {
            let away = Verdict::Unavailable { reason: "nobody is configured as its sender".to_owned() };
            return vec![away; documents.len()];
        };
        let feeding =
            Feeding { source, mapping, sender: &sender, key: "", traceparent: "", refusal: "acknowledged" };
        self.feed(&feeding, documents).await
    }

    fn reaches(&self, source: &str, is_reached: bool) {
        self.metrics.source_reaches(source, is_reached);
    }

    async fn keep_refused(&self, received: Received, rejection: Rejection) {
        let new = unnamed(&received, &rejection, true);
        let id = new.id;
        match self.keep(new).await {
            Verdict::Unavailable { reason } => {
                tracing::error!(source = %received.source, error = %reason, "refused bytes could not be kept");
            }
            _ => {
                tracing::warn!(message_id = %id, source = %received.source, text = %rejection.text, "bytes refused and kept")
            }
        }
    }
}

/// The resources of a recorded Bundle, but for the Provenance that Pons adds, and which version of each its message made.
fn resources_of(result: &MessageResult) -> Vec<Changed> {
    let bundle: Value = serde_json::from_slice(&result.bundle).unwrap_or_default();
    let made: HashMap<Uuid, i64> = result.made.iter().map(|made| (made.resource, made.version)).collect();
    let resources = bundle["entry"].as_array().into_iter().flatten().map(|entry| &entry["resource"]);
    resources
        .filter(|resource| resource["resourceType"] != "Provenance")
        .filter_map(|resource| {
            let id = resource["id"].as_str()?.parse().ok()?;
            let version = made.get(&id).copied();
            let resource_type = resource["resourceType"].as_str()?.to_owned();
            Some(Changed { resource_type, id, version, created: version == Some(1) })
        })
        .collect()
}

/// The sender's name of what could not be attributed to anybody.
pub const UNKNOWN: &str = "unknown";

/// A row for bytes that never became a message.
fn unnamed(received: &Received, rejection: &Rejection, answered: bool) -> NewMessage {
    let mut refused = Refused::from_rejection(rejection);
    if !answered {
        refused.answer = String::new();
    }
    NewMessage {
        id: MessageId(Uuid::now_v7()),
        received_at: store::now(),
        sender: UNKNOWN.into(),
        source: received.source.clone(),
        format: Format::Hl7v2,
        control_id: String::new(),
        handed_again: None,
        message_type: String::new(),
        version: String::new(),
        bytes: received.bytes.slice(..received.bytes.len().min(KEPT_MAX)),
        keys: Vec::new(),
        patient_hashes: Vec::new(),
        rejected: Some(refused),
        context: String::new(),
    }
}

/// How long a result may stay untold before it is looked for in the store; then twice as long, and so on.
const LOOK: Duration = Duration::from_millis(250);
/// How much of what never became a message is kept, in bytes.
const KEPT_MAX: usize = 64 << 10;

/// MSH-9.1 and MSH-9.2 as `ADT^A01`, or what there is of it.
fn message_type(header: &Header<'_>) -> String {
    match (header.message_code(), header.trigger()) {
        (Some(code), Some(trigger)) => format!("{code}^{trigger}"),
        (code, _) => code.unwrap_or_default().into_owned(),
    }
}

/// How many characters of a control id or of what stands in its place are kept: the standard's bound.
const CONTROL_ID_MAX: usize = 199;

/// A header field as it goes into a row.
fn bounded(text: &str) -> String {
    text.chars().take(CONTROL_ID_MAX).collect()
}

impl Refused {
    fn from_rejection(rejection: &Rejection) -> Self {
        let answer = match rejection.kind {
            RejectionKind::Error => "AE",
            RejectionKind::Reject => "AR",
        };
        Refused {
            answer: answer.to_owned(),
            code: rejection.code,
            location: rejection.location.clone(),
            text: rejection.text.clone(),
        }
    }

    fn into_rejection(self) -> Rejection {
        Rejection {
            kind: if self.answer == "AR" { RejectionKind::Reject } else { RejectionKind::Error },
            code: self.code,
            location: self.location,
            text: self.text,
            close: self.answer.is_empty(),
            received_at: None,
        }
    }
}
