//! The truth: every message, resource version and delivery is a row, committed before anything is promised.
//!
//! On the path this stands under every stage. One trait, two stores: SQLite (embedded) and PostgreSQL. Invariant: this
//! folder is the only place that names sqlx, and no wall clock of ours decides an order or a lease; the database's does.
//! Everything works in batches: one commit costs far more than one message.

mod changes;
mod error;
mod intake;
mod migrate;
#[cfg(test)]
mod model;
mod pack;
mod postgres;
mod recent;
mod recording;
mod requested;
mod sqlite;
#[cfg(test)]
mod suite;

pub use requested::{Changes, Requested, SocketToken, Standing};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use mappings::{SiteCode, SiteCodes};
use schemas::issue::Issue;
use schemas::message::{DeliveryId, LaneSet, MessageId, OrderKey, Seq};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// What the time is, in whole microseconds as it will be read back: what is made of a message is the same before and after.
pub fn now() -> Timestamp {
    Timestamp::from_microsecond(Timestamp::now().as_microsecond()).expect("it is one already")
}

/// What a message is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// HL7 v2, in the encoding in which it came.
    Hl7v2,
    /// A FHIR R4 resource or Bundle in JSON.
    FhirJson,
    /// A document of a feed in JSON.
    Json,
    /// Records of a feed in CSV.
    Csv,
}

/// A message on its way into the store. Bounded by the limits of its source.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// The id that it will have unless it is a repeat.
    pub id: MessageId,
    /// When it was received, by our clock, as [`now`] gives it; shown and stamped, never used to order.
    pub received_at: Timestamp,
    /// The sender's name in the configuration.
    pub sender: Arc<str>,
    /// The source that received it.
    pub source: Arc<str>,
    /// What it is written in.
    pub format: Format,
    /// MSH-10, or what a request named as its idempotency key; empty if none was given.
    pub control_id: String,
    /// Of a wire that uses its control ids anew by and by: whether this one may be a repeat; else it is new, whatever it holds.
    pub handed_again: Option<bool>,
    /// MSH-9.1 and MSH-9.2 as `ADT^A01`; for FHIR `Bundle transaction` or `PUT Patient`; for a feed the mapping that reads it; empty
    /// if unreadable.
    pub message_type: String,
    /// MSH-12, such as `2.5.1`.
    pub version: String,
    /// The bytes as received.
    pub bytes: Bytes,
    /// The order keys: each patient named, else the sender. The first is its home. Empty only for rejected ones.
    pub keys: Vec<OrderKey>,
    /// Hashes ([`OrderKey::of`] over the bare identifier value) by which `pons search --patient` finds it.
    pub patient_hashes: Vec<OrderKey>,
    /// Set when the sender is told to keep it; such a row is final.
    pub rejected: Option<Refused>,
    /// What the mapping may know beside the message (zone of the source, options): JSON, kept so that a replay gives
    /// the same bytes. The `traceparent` beside it is for traces and no part of what is mapped.
    pub context: String,
}

/// Why a message was not taken, as shown by `pons show`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Refused {
    /// What was answered, such as `AR`; empty if the connection was closed without an answer.
    pub answer: String,
    /// ERR-3.
    pub code: u16,
    /// ERR-2.
    pub location: String,
    /// The sentence.
    pub text: String,
}

/// What became of one [`NewMessage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// Durable under the id that it brought.
    New {
        /// Its place in the order.
        seq: Seq,
        /// Whether the control id had been used before by this sender with other bytes (within seven days).
        control_id_reused: bool,
    },
    /// The same sender, control id and bytes are there already; nothing was written.
    Repeat {
        /// The first one's id.
        id: MessageId,
        /// When the first one was received.
        received_at: Timestamp,
        /// What the first one was answered, if it was rejected.
        rejected: Option<Refused>,
    },
}

/// A stored message that waits to be normalized.
#[derive(Clone, Debug)]
pub struct OpenMessage {
    /// Its place in the order.
    pub seq: Seq,
    /// Its id.
    pub id: MessageId,
    /// When it was received.
    pub received_at: Timestamp,
    /// The sender's name.
    pub sender: Arc<str>,
    /// What it is written in.
    pub format: Format,
    /// `ADT^A01`, ...
    pub message_type: String,
    /// The bytes as received.
    pub bytes: Bytes,
    /// Its order keys.
    pub keys: Vec<OrderKey>,
    /// The context stored at intake.
    pub context: String,
    /// Which revision of its result this will be: 0 at first, one more with each replay.
    pub revision: u32,
}

/// Proof that a replica holds a lease: the name and the token that makes a stale worker harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// `lane:7`, `subscription:lab`.
    pub name: String,
    /// Grows with each change of owner.
    pub fence: i64,
}

/// An identifier by which a resource is known: (type, system, value), canonical as the mapping made it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Alias {
    /// The resource type.
    pub resource_type: String,
    /// The system, never empty.
    pub system: String,
    /// The value.
    pub value: String,
}

/// The current version of a resource.
#[derive(Clone, Debug)]
pub struct StoredResource {
    /// The resource's id.
    pub id: Uuid,
    /// `Patient`, ...
    pub resource_type: String,
    /// Grows by one with each change.
    pub version: i64,
    /// Its slots as the crate `mappings` encodes them; opaque here.
    pub state: Vec<u8>,
    /// Where a merge sent its readers.
    pub replaced_by: Option<Uuid>,
    /// The message that changed it last.
    pub changed_by: MessageId,
    /// When that was recorded; `None` for what an earlier version of Pons wrote.
    pub recorded_at: Option<Timestamp>,
}

/// A new current version of a resource.
#[derive(Clone, Debug)]
pub struct ResourceWrite {
    /// The resource's id.
    pub id: Uuid,
    /// `Patient`, ...
    pub resource_type: String,
    /// The version this one follows; 0 for a new resource. The commit fails with [`StoreError::Conflict`] if another came first.
    pub follows: i64,
    /// The version that it is now: several messages of a recording may have made one each.
    pub version: i64,
    /// Its slots.
    pub state: Vec<u8>,
    /// Where a merge sends its readers.
    pub replaced_by: Option<Uuid>,
    /// The patient whom it is about.
    pub patient: Option<Uuid>,
    /// The encounter in which it was.
    pub encounter: Option<Uuid>,
    /// The message that made it.
    pub message: MessageId,
}

/// What one result of a message made.
#[derive(Clone, Debug)]
pub struct MadeBy {
    /// The revision of the result.
    pub revision: u32,
    /// When it was recorded.
    pub recorded_at: Timestamp,
    /// The versions.
    pub made: Vec<Made>,
}

/// A version of a resource that a result made: what it was then stands in that result's Bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// The resource.
    pub resource: Uuid,
    /// 1 for the first.
    pub version: i64,
    /// The message that made the version before, if that is known.
    pub before: Option<MessageId>,
}

/// How normalizing one message ended.
#[derive(Clone, Debug)]
pub struct MessageResult {
    /// The message.
    pub seq: Seq,
    /// The message.
    pub id: MessageId,
    /// Which revision of its result.
    pub revision: u32,
    /// `routed`, or why it is in quarantine.
    pub quarantined: Option<String>,
    /// The mapping and its version, such as `oru_r01 1.0.0`; empty if none was found.
    pub mapping: String,
    /// What the reader and the mapping had to say.
    pub issues: Vec<Issue>,
    /// The normalized transaction Bundle in JSON; the store compresses it. Empty in quarantine.
    pub bundle: Bytes,
    /// What notifications bring along beside the Bundle, as it stood then: a JSON array of resources, or empty.
    pub beside: Bytes,
    /// Which versions it made.
    pub made: Vec<Made>,
}

/// The states of a delivery that the store distinguishes. See `lifecycle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeliveryState {
    /// Waits to be published.
    Pending,
    /// The bus has it.
    Published,
    /// Failed, and will be tried again at its time.
    RetryWait,
    /// The destination said yes. Final.
    Delivered,
    /// Policy withheld it. Final.
    Suppressed,
    /// Given up: a dead letter that waits for a person.
    Parked,
    /// A person decided to leave it. Final.
    Skipped,
}

/// What a delivery tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    /// The topics that matched, such as `encounter-start`.
    pub topics: Vec<String>,
    /// What a notification names, as `Type/id`: first what it is about, then what goes along; nothing if policy withholds that. `None`
    /// for a delivery that is the whole message.
    pub references: Option<Vec<String>>,
}

impl From<Vec<String>> for Matched {
    fn from(topics: Vec<String>) -> Self {
        Matched { topics, references: None }
    }
}

/// A delivery made by routing, in the same transaction as its message's result.
#[derive(Clone, Debug)]
pub struct NewDelivery {
    /// Its id.
    pub id: DeliveryId,
    /// The message.
    pub message: MessageId,
    /// The message's place.
    pub seq: Seq,
    /// The revision of the message's result.
    pub revision: u32,
    /// The subscription's name.
    pub subscription: Arc<str>,
    /// Whose order it keeps: the first key of its message.
    pub key: OrderKey,
    /// What it tells of.
    pub matched: Matched,
    /// Why policy withholds it; `None` makes it pending.
    pub suppressed: Option<String>,
}

impl NewDelivery {
    /// Whether there is nothing to send. A notification is sent even when what it is about is withheld, so that its subscriber
    /// misses no event number.
    pub fn is_final(&self) -> bool {
        self.suppressed.is_some() && self.matched.references.is_none()
    }
}

/// Everything that one recording transaction writes.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// One for each message of the batch.
    pub results: Vec<MessageResult>,
    /// Resources in the order in which they were read.
    pub resources: Vec<ResourceWrite>,
    /// Identifiers that now name a resource.
    pub aliases: Vec<(Alias, Uuid)>,
    /// In the order of their messages.
    pub deliveries: Vec<NewDelivery>,
    /// Codes of these messages that no table translates.
    pub codes: Vec<WaitingCode>,
    /// Which version of [`SiteCodes`] they were mapped with, where one has a code.
    pub codes_version: i64,
}

/// A code that no table translates, in one message.
#[derive(Clone, PartialEq, Eq)]
pub struct WaitingCode {
    /// Who sent it.
    pub sender: Arc<str>,
    /// The table that does not know it.
    pub table: String,
    /// The code.
    pub code: String,
    /// In which message.
    pub message: MessageId,
}

/// Shows where; the code is a patient's.
impl std::fmt::Debug for WaitingCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WaitingCode")
            .field("sender", &self.sender)
            .field("table", &self.table)
            .field("message", &self.message)
            .finish_non_exhaustive()
    }
}

/// A code that no table translates, over all messages of its sender that wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnmappedSeen {
    /// Who sends it.
    pub sender: String,
    /// The table that does not know it.
    pub table: String,
    /// The code.
    pub code: String,
    /// In how many messages.
    pub messages: i64,
    /// The first of them; its id says when.
    pub first: MessageId,
    /// The last of them.
    pub last: MessageId,
}

/// The recording transaction: opened with the fences of the lanes it works for, read from, then committed as a whole or dropped.
#[async_trait]
pub trait RecordTx: Send {
    /// Which version of the requested subscriptions ([`Store::requested`]) these messages are routed by: they are in the store, so
    /// every subscription that was active when one was received counts.
    fn requested_version(&self) -> i64;

    /// Which resources these identifiers name. Nothing is locked: the commit fails with [`StoreError::Conflict`] if what
    /// it writes was changed meanwhile.
    async fn resolve(&mut self, aliases: &[Alias]) -> Result<HashMap<Alias, Uuid>, StoreError>;

    /// The current versions of these resources, in order of their ids.
    async fn load(&mut self, ids: &[Uuid]) -> Result<Vec<StoredResource>, StoreError>;

    /// The ids of what is about a patient, and about those who were merged into this one, in order.
    async fn about(&mut self, patient: Uuid) -> Result<Vec<Uuid>, StoreError>;

    /// The ids of what of a type is about a patient, and about those who were merged into this one, in order; at most `limit`.
    async fn about_of(
        &mut self,
        patient: Uuid,
        resource_type: &str,
        limit: usize,
    ) -> Result<Vec<Uuid>, StoreError>;

    /// The ids of what of a type is about a patient and was in an encounter, or is about or was in those that were merged into these, in
    /// order; at most `limit`. What an earlier version of Pons wrote about the patient, whose encounter it did not ask, is among them.
    async fn within(
        &mut self,
        encounter: Uuid,
        patient: Uuid,
        resource_type: &str,
        limit: usize,
    ) -> Result<Vec<Uuid>, StoreError>;

    /// Writes everything and commits. Fails with [`StoreError::Fenced`], and nothing written, if a lease was lost or one of the messages
    /// is not open any more in that revision (a commit whose answer was lost had closed it). An alias that named
    /// something else when it was resolved is moved; one that was moved meanwhile is a conflict. Answers the event number of each delivery, in the order given: dense for each
    /// subscription, and in the order of commits.
    async fn commit(self: Box<Self>, recording: Recording) -> Result<Vec<i64>, StoreError>;
}

/// A delivery that is not final yet.
#[derive(Clone, Debug)]
pub struct OpenDelivery {
    /// Its id.
    pub id: DeliveryId,
    /// Its message.
    pub message: MessageId,
    /// The revision of the message's result.
    pub revision: u32,
    /// Its event number in the subscription.
    pub number: i64,
    /// Whose order it keeps.
    pub key: OrderKey,
    /// What it tells of.
    pub matched: Matched,
    /// Its state.
    pub state: DeliveryState,
    /// How often it was tried.
    pub attempts: u32,
    /// How long from now (by the database's clock) it should rest before the next attempt.
    pub rest: Duration,
}

/// A delivery that was given up and waits for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its event number in the subscription.
    pub number: i64,
    /// Whose order it keeps.
    pub key: OrderKey,
    /// How long ago it was given up, by the database's clock.
    pub age: Duration,
}

/// What a delivery carries, read back for publishing.
#[derive(Clone, Debug)]
pub struct Content {
    /// The message as received.
    pub original: Bytes,
    /// What it is written in.
    pub format: Format,
    /// The sender's name.
    pub sender: Arc<str>,
    /// `ADT^A01`, ...
    pub message_type: String,
    /// When it was received.
    pub received_at: Timestamp,
    /// The normalized Bundle.
    pub bundle: Bytes,
    /// See [`MessageResult::beside`].
    pub beside: Bytes,
}

/// One change of a delivery, written in batches.
#[derive(Clone, Debug)]
pub struct DeliveryChange {
    /// Which.
    pub id: DeliveryId,
    /// Its message (the key of its partition).
    pub message: MessageId,
    /// Its new state.
    pub state: DeliveryState,
    /// Attempts so far.
    pub attempts: u32,
    /// How long to rest before the next attempt, for [`DeliveryState::RetryWait`].
    pub rest: Duration,
    /// The attempt that led here, kept for the timeline; none for [`DeliveryState::Published`].
    pub attempt: Option<Attempt>,
    /// Why, for [`DeliveryState::Suppressed`] and [`DeliveryState::Parked`].
    pub reason: Option<String>,
}

/// One try of a delivery, as the timeline shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Which, from 1.
    pub number: u32,
    /// When it began.
    pub began_at: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// What was answered, or why it failed. Never a body.
    pub answer: String,
}

/// What `pons search` looks for; every part given must hold.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Any of these patient hashes.
    pub patient_hashes: Vec<OrderKey>,
    /// The bare identifier value, to find what other identifiers of the same patient name.
    pub patient: Option<String>,
    /// MSH-10.
    pub control_id: Option<String>,
    /// `ADT`, `ADT^A01`.
    pub message_type: Option<String>,
    /// `received`, `routed`, `quarantined`, `rejected`, or a delivery state such as `parked`.
    pub state: Option<String>,
    /// The sender's name.
    pub sender: Option<String>,
    /// Not received before.
    pub since: Option<Timestamp>,
    /// At most so many, newest first.
    pub limit: usize,
}

/// One line of `pons search`.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The message.
    pub id: MessageId,
    /// Its place.
    pub seq: Seq,
    /// When it was received.
    pub received_at: Timestamp,
    /// The sender's name.
    pub sender: String,
    /// MSH-10.
    pub control_id: String,
    /// `ADT^A01`, ...
    pub message_type: String,
    /// The message's state in a word.
    pub state: String,
    /// How many deliveries it has in each state.
    pub deliveries: Vec<(DeliveryState, i64)>,
}

/// Everything known about one message, for `pons show`.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// What `pons search` says of it.
    pub summary: Summary,
    /// The source that received it.
    pub source: String,
    /// MSH-12.
    pub version: String,
    /// The bytes as received. PHI: shown only when asked for.
    pub bytes: Bytes,
    /// What was known beside them: [`NewMessage::context`].
    pub context: String,
    /// Whether its control id had been used with other bytes.
    pub control_id_reused: bool,
    /// Why it was refused, if it was.
    pub rejected: Option<Refused>,
    /// Its results, oldest revision first, with the time of recording.
    pub results: Vec<(Timestamp, MessageResult)>,
    /// Its deliveries with their attempts.
    pub deliveries: Vec<DeliveryTimeline>,
}

/// One delivery of a [`Timeline`].
#[derive(Clone, Debug)]
pub struct DeliveryTimeline {
    /// The delivery as it stands.
    pub delivery: OpenDelivery,
    /// The subscription's name.
    pub subscription: String,
    /// Why it was suppressed or skipped.
    pub reason: Option<String>,
    /// When the row was last changed.
    pub changed_at: Timestamp,
    /// Its attempts, oldest first.
    pub attempts: Vec<Attempt>,
}

/// What a person asked for by `pons replay`; carried out by the running gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Normalize a message again, at its original place in sequence.
    Normalize(MessageId),
    /// Try a parked delivery again.
    Deliver(DeliveryId, MessageId),
    /// Leave a parked delivery for good, and why.
    Skip(DeliveryId, MessageId, String),
}

/// What became of the wish to normalize a message again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reopened {
    /// It is open now.
    Now,
    /// It had been opened again before, and is not done yet.
    IsAgain,
    /// It waits for its first time, or never had one.
    Not,
}

impl Reopened {
    /// Of a message that is open for this revision.
    fn is_open(revision: i64) -> Reopened {
        if revision > 0 { Reopened::IsAgain } else { Reopened::Not }
    }
}

/// The books of one sender: `received = routed_final + routed_open + quarantined + rejected + waiting`, always.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Books {
    /// The sender's name.
    pub sender: String,
    /// Messages in the store or dropped by retention after they were final.
    pub received: i64,
    /// Routed, every delivery final.
    pub routed_final: i64,
    /// Routed, some delivery open or parked.
    pub routed_open: i64,
    /// In quarantine.
    pub quarantined: i64,
    /// Refused.
    pub rejected: i64,
    /// Not yet normalized.
    pub waiting: i64,
}

impl Books {
    /// Messages that are in no state at all. Anything but 0 is a lost or doubled message: the metric
    /// `pons_store_messages_unaccounted` and every whole-system test watch it.
    pub fn unaccounted(&self) -> i64 {
        self.received
            - (self.routed_final + self.routed_open + self.quarantined + self.rejected + self.waiting)
    }

    /// Messages that still need somebody: to be normalized, delivered, or looked at by a person.
    pub fn open(&self) -> i64 {
        self.waiting + self.routed_open + self.quarantined
    }
}

/// How long things are kept and how much room is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Days after which a day whose every row is final is dropped; `None` keeps everything.
    pub days: Option<u32>,
}

/// Why the store did not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached or broke off: try again.
    #[error("the store is away")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The disk is full or the reserve is reached: intake stops, the rest goes on.
    #[error("the store has no room left")]
    Full,
    /// A lease was lost: the work is somebody else's now; nothing was written.
    #[error("the lease was lost")]
    Fenced,
    /// Another transaction changed the same resource first: do the batch again.
    #[error("another transaction came first")]
    Conflict,
    /// The database would not keep what it confirms; the text names the setting.
    #[error("the store is not durable: {0}")]
    NotDurable(String),
    /// The store cannot be opened as configured; the text says what to do.
    #[error("the store cannot be opened: {0}")]
    Setup(String),
    /// The schema is of another version of Pons.
    #[error("the store's schema is not this version's: {0}")]
    Schema(String),
    /// A mistake of ours.
    #[error("the store refused a statement")]
    Bug(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What a process does with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `pons run` and `pons migrate`: at most one process for each SQLite file.
    Gateway,
    /// `pons search`, `show`, `replay`: reads, and writes requests, beside a gateway.
    Tool,
}

/// Opens a store by its URL: `sqlite:PATH`, or `postgres://...` with the parameters of libpq (`sslmode`, `sslrootcert`, ...). A PostgreSQL
/// that is away is found out by the first statement, not here.
///
/// # Errors
/// [`StoreError::Setup`] for a URL that cannot be read, and for an SQLite file that cannot be opened or that another
/// gateway has open.
pub async fn open(url: &str, role: Role) -> Result<Arc<dyn Store>, StoreError> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return Ok(Arc::new(sqlite::Sqlite::open(std::path::Path::new(path), role).await?));
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return Ok(Arc::new(postgres::Postgres::open(url)?));
    }
    Err(StoreError::Setup("a store is `sqlite:PATH` or `postgres://...`".to_owned()))
}

/// The store. Every function is one transaction unless it says otherwise, and is safe to repeat.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Brings the schema up to date.
    async fn migrate(&self) -> Result<(), StoreError>;

    /// Refuses a schema that is not this version's, without changing it.
    async fn check_schema(&self) -> Result<(), StoreError>;

    /// Refuses a database that would lose what it confirmed.
    async fn check_durable(&self) -> Result<(), StoreError>;

    /// The installation's secret namespace of ids: made at the first migration, constant ever after.
    async fn namespace(&self) -> Result<Uuid, StoreError>;

    /// Writes a batch in order and commits. Sequence order is commit order, over all replicas: a message committed
    /// before another transaction began has the lower [`Seq`], and no lower one can appear later. Equal messages of one batch
    /// count as repeats too.
    async fn append(&self, batch: Vec<NewMessage>) -> Result<Vec<Appended>, StoreError>;

    /// The next open messages that touch these lanes, lowest first (a replayed one is at its original place, so below an
    /// `after` that has gone by: read from the start now and then): at most `limit`, and beyond the first at most
    /// `bytes_max` bytes, so that a backlog of large messages stays within memory.
    async fn open_messages(
        &self,
        lanes: LaneSet,
        after: Seq,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<OpenMessage>, StoreError>;

    /// Which of these messages are still open; asked for those that another replica works.
    async fn still_open(&self, seqs: &[Seq]) -> Result<Vec<Seq>, StoreError>;

    /// Whether an open message with a lower sequence shares one of the keys; asked for messages whose lanes are not all
    /// ours (a merge over two patients).
    async fn open_before(&self, seq: Seq, keys: &[OrderKey]) -> Result<bool, StoreError>;

    /// Which of these keys have a message in quarantine: their later messages carry a flag.
    async fn quarantined(&self, keys: &[OrderKey]) -> Result<Vec<OrderKey>, StoreError>;

    /// Opens the recording transaction. Fails with [`StoreError::Fenced`] if a lease is no longer held.
    async fn begin_record(&self, leases: &[Lease]) -> Result<Box<dyn RecordTx>, StoreError>;

    /// Takes or renews leases for a replica; answers those it now holds. The database's clock decides.
    async fn lease(&self, replica: Uuid, names: &[String], ttl: Duration) -> Result<Vec<Lease>, StoreError>;

    /// Takes a lease, whoever has it: what it is for can be done by this replica alone.
    async fn seize(&self, replica: Uuid, name: &str, ttl: Duration) -> Result<Lease, StoreError>;

    /// Gives leases back, at shutdown or to even out the load.
    async fn release(&self, replica: Uuid, names: &[String]) -> Result<(), StoreError>;

    /// Notes that a replica lives; answers how many live now, itself included.
    async fn heartbeat(&self, replica: Uuid, ttl: Duration) -> Result<u32, StoreError>;

    /// The next open deliveries of a subscription with an event number above `after`, lowest first. Parked ones are not among them.
    async fn open_deliveries(
        &self,
        subscription: &str,
        after: i64,
        limit: usize,
    ) -> Result<Vec<OpenDelivery>, StoreError>;

    /// The dead letters of a subscription, lowest event number first.
    async fn parked_deliveries(
        &self,
        subscription: &str,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError>;

    /// The next deliveries of a subscription with an event number above `after` that were delivered within the last `within`,
    /// lowest first; of messages that are older than that by more than a day, none. For a destination that lost them.
    async fn delivered_lately(
        &self,
        subscription: &str,
        within: Duration,
        after: i64,
        limit: usize,
    ) -> Result<Vec<OpenDelivery>, StoreError>;

    /// The notifications of a subscription with an event number above `after` and not above `until`, whatever became of them: lowest
    /// first, without those that retention has let go.
    async fn events(
        &self,
        subscription: &str,
        after: i64,
        until: i64,
        limit: usize,
    ) -> Result<Vec<OpenDelivery>, StoreError>;

    /// The last event number that a subscription was given; 0 before the first.
    async fn last_event(&self, subscription: &str) -> Result<i64, StoreError>;

    /// What these deliveries carry, by (message, revision).
    async fn contents(
        &self,
        of: &[(MessageId, u32)],
    ) -> Result<HashMap<(MessageId, u32), Content>, StoreError>;

    /// Writes a batch of changes under a subscription's lease. A final delivery never changes again: such a change
    /// is passed over.
    async fn change_deliveries(&self, lease: &Lease, changes: Vec<DeliveryChange>) -> Result<(), StoreError>;

    /// Sets every published delivery back to pending: the broker lost its queues.
    async fn unpublish_all(&self) -> Result<u64, StoreError>;

    /// The broker's epoch that the published rows belong to.
    async fn bus_epoch(&self) -> Result<Option<String>, StoreError>;

    /// Sets the broker's epoch.
    async fn set_bus_epoch(&self, epoch: &str) -> Result<(), StoreError>;

    /// Finds messages.
    async fn search(&self, query: &Query) -> Result<Vec<Summary>, StoreError>;

    /// The resources that identifiers name, in no order.
    async fn named(&self, aliases: &[Alias]) -> Result<Vec<Uuid>, StoreError>;

    /// The current versions of these resources, in order of their ids.
    async fn held(&self, ids: &[Uuid]) -> Result<Vec<StoredResource>, StoreError>;

    /// What of a type, or of any, is about a patient, or about those who were merged into this one: in order of ids, beyond `after`.
    async fn held_of_patient(
        &self,
        patient: Uuid,
        resource_type: Option<&str>,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<StoredResource>, StoreError>;

    /// What the results of a message made, in order of their revisions. Nothing of those that an earlier version of Pons recorded.
    async fn made(&self, message: MessageId) -> Result<Vec<MadeBy>, StoreError>;

    /// Everything about one message.
    async fn timeline(&self, id: MessageId) -> Result<Option<Timeline>, StoreError>;

    /// Writes down what a person asked for.
    async fn request(&self, who: &str, requests: &[Request]) -> Result<(), StoreError>;

    /// Carries out requests: quarantined or routed messages become open again at their place, parked deliveries become
    /// pending. A message that is open again already may have been mapped without what the request is about, so the request waits
    /// until that is recorded. Answers how many.
    async fn carry_out_requests(&self, limit: usize) -> Result<usize, StoreError>;

    /// The books, by sender.
    async fn books(&self) -> Result<Vec<Books>, StoreError>;

    /// Codes that no table translates, of one sender or one table where that is said, the most frequent first.
    async fn unmapped_codes(
        &self,
        sender: Option<&str>,
        table: Option<&str>,
        limit: usize,
    ) -> Result<Vec<UnmappedSeen>, StoreError>;

    /// Takes in what somebody says of one code, and asks for every message that waits for it to be normalized again, in their order.
    /// Answers how many these are.
    async fn translate_code(&self, who: &str, code: &SiteCode) -> Result<usize, StoreError>;

    /// What people have said of codes; `None` if that is still the version that is known.
    async fn site_codes(&self, known: i64) -> Result<Option<SiteCodes>, StoreError>;

    /// What was requested over FHIR in the way of subscriptions, or what has changed of it since the version that is known (-1: none);
    /// `None` if that is still the version.
    async fn requested(&self, known: i64) -> Result<Option<Changes>, StoreError>;

    /// Writes a requested subscription: version 1 is new, any other follows the one before, or is a [`StoreError::Conflict`].
    async fn write_requested(&self, one: &Requested) -> Result<(), StoreError>;

    /// Sets what of a subscription is a dead letter, or lies on the bus, back to pending. Answers how many. Nobody may be delivering it.
    async fn take_up_again(&self, subscription: &str) -> Result<u64, StoreError>;

    /// Gives up what a subscription still had to be sent, dead letters included: of each at most so many at once. Answers how many.
    async fn give_up(&self, subscription: &str, why: &str, limit: usize) -> Result<u64, StoreError>;

    /// Forgets a requested subscription; its numbers stay used.
    async fn forget(&self, id: Uuid) -> Result<(), StoreError>;

    /// Subscriptions that may have something to deliver: all that have, and those that have not come to [`Store::rest`] since they had.
    async fn unfinished(&self) -> Result<Vec<String>, StoreError>;

    /// A subscription has nothing to deliver for now, as far as its deliverer knows.
    async fn rest(&self, subscription: &str) -> Result<(), StoreError>;

    /// Keeps a token; lets go of those of before `now`, and of the oldest where its owner has too many.
    async fn keep_token(&self, token: &SocketToken, now: Timestamp) -> Result<(), StoreError>;

    /// The token of this hash, if there is one.
    async fn token(&self, hash: &[u8; 32]) -> Result<Option<SocketToken>, StoreError>;

    /// Makes the coming days' partitions and lets go of days that are final and old, counted back from `now` or from
    /// the database's clock, whichever is earlier. Answers how many messages went.
    async fn housekeeping(&self, retention: &Retention, now: Timestamp) -> Result<u64, StoreError>;

    /// Bytes free where the store lies, if it can tell.
    async fn room(&self) -> Result<Option<u64>, StoreError>;
}
