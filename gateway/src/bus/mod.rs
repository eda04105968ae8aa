//! The fan-out: one queue a subscription, filled by the publisher, emptied by the deliverer.
//!
//! One trait, two buses: in process (embedded) and RabbitMQ. Invariants: this folder is the only place that names lapin;
//! the bus is disposable, whatever is not delivered is published again from the store.

use async_trait::async_trait;
use bytes::Bytes;
use schemas::message::{DeliveryId, MessageId};
use std::sync::Arc;

/// One delivery as the bus carries it: a CloudEvents 1.0 envelope in JSON, no patient data outside of the body.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The delivery, also the AMQP message id.
    pub delivery: DeliveryId,
    /// Its message.
    pub message: MessageId,
    /// The subscription whose queue it is for.
    pub subscription: Arc<str>,
    /// `<subscription>.<topic>.<organization>`.
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
    /// The broker asked publishers to stop (memory or disk alarm).
    #[error("the broker has blocked publishers")]
    Blocked,
    /// No queue took it: it counts as not published.
    #[error("no queue took the message")]
    Returned,
}

/// What the deliverer takes off a queue.
#[derive(Debug)]
pub struct Taken {
    /// What was published.
    pub envelope: Envelope,
    /// Whether the bus had handed it out before.
    pub redelivered: bool,
    /// To settle it with; dropped unsettled it comes back.
    pub ticket: Ticket,
}

/// Settles one [`Taken`], after its outcome is committed in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Which connection handed it out; tickets of an older one are void, as their messages come back by themselves.
    pub session: u64,
    /// The bus's own tag.
    pub tag: u64,
}

/// The bus.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Makes sure that the queue of a subscription is there and bound.
    async fn declare(&self, subscription: &str) -> Result<(), BusError>;

    /// Publishes a batch with confirms in a window, in order; answers one result each once all are settled.
    async fn publish(&self, batch: Vec<Envelope>) -> Vec<Result<(), BusError>>;

    /// Begins to take from a subscription's queue, at most `window` unsettled at a time.
    async fn consume(&self, subscription: &str, window: u16) -> Result<Box<dyn Consumer>, BusError>;

    /// The epoch of the broker's data: absent or another one than before when the broker was wiped.
    /// Writes `fresh` as the new epoch if there is none, and answers which one holds now.
    async fn epoch(&self, fresh: &str) -> Result<String, BusError>;

    /// Puts an event into a subscriber's own queue and waits for the confirm.
    async fn hand_over(&self, queue: &str, envelope: &Envelope) -> Result<(), BusError>;
}

/// One subscription's open end.
#[async_trait]
pub trait Consumer: Send {
    /// The next one; an error means that the connection is gone: consume again.
    async fn next(&mut self) -> Result<Taken, BusError>;

    /// Settles many at once: they will not come again.
    async fn settle(&mut self, tickets: &[Ticket]) -> Result<(), BusError>;
}
