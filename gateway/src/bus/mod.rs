//! The fan-out: one queue a subscription, filled by the publisher, emptied by the deliverer.
//!
//! One trait, two buses: in process (embedded) and RabbitMQ. Invariants: this folder is the only place that names lapin;
//! the bus is disposable, whatever is not delivered is published again from the store.

mod embedded;
mod rabbitmq;
#[cfg(test)]
mod tests;

pub use embedded::Embedded;
pub use rabbitmq::{Key, KeyError, Keys, RabbitMq, RabbitMqSettings, SettingsError, TlsSettings};

use async_trait::async_trait;
use bytes::Bytes;
use schemas::message::DeliveryId;
use std::sync::Arc;

/// A directive that every log filter must carry: lapin prints the whole body of a message that comes back unroutable,
/// and a body is a patient's. `lapin::returned_messages` says nothing else; the bus itself reports such messages by id.
pub const LOG_FILTER: &str = "lapin::returned_messages=off";

/// One delivery as the bus carries it: a CloudEvents 1.0 envelope in JSON, no patient data outside of the body.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The delivery, also the AMQP message id.
    pub delivery: DeliveryId,
    /// The subscription whose queue it is for.
    pub subscription: Arc<str>,
    /// `<subscription>.<topic>.<organization>`, made by [`routing_key`].
    pub routing_key: String,
    /// W3C trace context, if traced.
    pub traceparent: Option<String>,
    /// The CloudEvents envelope in structured JSON, its `data` the FHIR Bundle.
    pub body: Bytes,
}

/// Why the bus did not do something.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// Not connected, or the connection broke: everything unconfirmed stays pending; try again.
    #[error("the bus is away")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No queue took it: it counts as not published.
    #[error("no queue took the message")]
    Returned,
    /// The queue is full or could not keep it: it counts as not published.
    #[error("the queue refused the message")]
    Refused,
}

impl BusError {
    /// [`BusError::Away`] for a reason that is a sentence of ours.
    pub(crate) fn away(reason: &'static str) -> Self {
        BusError::Away(reason.into())
    }
}

/// What the bus can do at the moment, for `/readyz` and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Connected, takes everything.
    Connected,
    /// Connected, but the broker has stopped publishers (memory or disk alarm): what is published waits.
    Blocked,
    /// Not connected; it is tried again and again.
    Away,
}

/// What the deliverer takes off a queue.
#[derive(Debug)]
pub struct Taken {
    /// Which delivery.
    pub delivery: DeliveryId,
    /// W3C trace context, if traced.
    pub traceparent: Option<String>,
    /// [`Envelope::body`].
    pub body: Bytes,
    /// Whether the bus had handed it out before.
    pub redelivered: bool,
    /// To settle it with; dropped unsettled it comes back.
    pub ticket: Ticket,
}

/// Settles one [`Taken`], after its outcome is committed in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Which consumer handed it out; tickets of an older one are void, as their messages come back by themselves.
    pub session: u64,
    /// The bus's own tag.
    pub tag: u64,
}

/// The bus.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Makes sure that the queue of a subscription is there and bound.
    async fn declare(&self, subscription: &str) -> Result<(), BusError>;

    /// Makes sure that the queue of a subscription is gone, with what lies in it.
    async fn remove(&self, subscription: &str) -> Result<(), BusError>;

    /// Makes sure that a subscriber's own queue ([`Bus::hand_over`]) is gone, with what lies in it and what is known of it.
    async fn remove_own(&self, subscription: &str, queue: &str) -> Result<(), BusError>;

    /// Publishes a batch with confirms in a window, in order; answers one result each once all are settled. While the
    /// broker blocks publishers it waits, for as long as that takes.
    async fn publish(&self, batch: Vec<Envelope>) -> Vec<Result<(), BusError>>;

    /// Begins to take from a subscription's queue, at most `window` unsettled at a time.
    async fn consume(&self, subscription: &str, window: u16) -> Result<Box<dyn Consumer>, BusError>;

    /// Whether a mark is there. A mark lives exactly as long as the broker's data: when one that was set is missing,
    /// the broker has lost its queues.
    async fn marked(&self, mark: &str) -> Result<bool, BusError>;

    /// Sets a mark; setting it again changes nothing.
    async fn mark(&self, mark: &str) -> Result<(), BusError>;

    /// Puts an event into a subscriber's own queue and waits for the confirm. Many at once share one window of confirms.
    async fn hand_over(&self, queue: &str, envelope: Envelope) -> Result<(), BusError>;

    /// What the bus can do at the moment.
    fn health(&self) -> Health;
}

/// One subscription's open end.
#[async_trait]
pub trait Consumer: Send {
    /// The next one; an error means that this consumer is over: consume again. Safe to cancel.
    async fn next(&mut self) -> Result<Taken, BusError>;

    /// Settles many at once: they will not come again. The bus may hold some back to settle them together with later
    /// ones; an empty list settles everything held back. Void tickets are passed over.
    async fn settle(&mut self, tickets: &[Ticket]) -> Result<(), BusError>;
}

/// The mark of a subscription whose own queue has everything that it should.
pub fn handed(subscription: &str) -> String {
    format!("handed.{subscription}")
}

/// The routing key `<subscription>.<topic>.<organization>`. A word's `.`, `*`, `#`, `%`, controls and what is not ASCII
/// are written as `%` and two hex digits a byte, so that a name cannot reach into another subscription's queue; the key is cut at
/// the 255 bytes that AMQP allows.
pub fn routing_key(subscription: &str, topic: &str, organization: &str) -> String {
    let mut key = [word(subscription), word(topic), word(organization)].join(".");
    key.truncate(255);
    key
}

/// One word of a routing key or of a queue's name.
fn word(name: &str) -> String {
    use std::fmt::Write;
    let mut word = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'.' | b'*' | b'#' | b'%' | 0..=0x20 | 0x7f.. => {
                write!(word, "%{byte:02X}").expect("a String takes all that is written");
            }
            _ => word.push(char::from(byte)),
        }
    }
    word
}

/// A number in `0.0..1.0`, for jitter: not for secrets.
pub(crate) fn random() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let bits = RandomState::new().hash_one(0) >> 11;
    bits as f64 / (1u64 << 53) as f64
}
