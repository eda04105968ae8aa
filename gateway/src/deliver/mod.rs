//! The last stage of the path: off the bus and out to the subscriber, in order per patient.
//!
//! One deliverer a subscription, run by the replica that holds its lease; those requested over `/fhir` come and go. Invariants: an outcome is written before its
//! event is settled on the bus; what is not final is found again by reading the store, so starting, taking over and
//! recovering are the same; memory is bounded whatever the backlog.

mod again;
mod amqp;
mod circuit;
mod deliverers;
mod dispatcher;
mod feed;
mod life;
mod sockets;
#[cfg(test)]
mod tests;
mod window;
mod written;

pub use amqp::AmqpQueue;
pub use deliverers::{Deliverers, keep, revoke};
pub use sockets::{Line, Push, Sockets};
pub use written::Written;

use dispatcher::run;
use life::Life;

use crate::bus::{Bus, Keys};
use crate::lifecycle::RetryPolicy;
use crate::route::notification::Notifies;
use crate::route::publish::EpochWatch;
use crate::store::{Content, Matched, Store};
use crate::telemetry::metrics::DeliverTimings;
use adapters::Destination;
use schemas::message::{DeliveryId, MessageId, OrderKey};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// What happens to a patient's later deliveries when one of theirs becomes a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnParked {
    /// They go on, and say that one is missing before them: one bad message never withholds the next result.
    Pass,
    /// They wait until a person has dealt with it, but no longer than this.
    Block {
        /// The longest wait.
        age_max: Duration,
    },
}

/// How a subscription is delivered. Every bound has its default beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Deliveries in memory at most: 2,000.
    pub window: usize,
    /// Bytes of content in memory beyond which no more deliveries are taken up: 6 MiB. One may exceed it.
    pub window_bytes: usize,
    /// Attempts at once, each of another key: 64.
    pub in_flight_max: usize,
    /// Deliveries in one publishing, reading or writing: 128.
    pub batch: usize,
    /// Rests between attempts, and when to give up: `RetryPolicy::default()`.
    pub retry: RetryPolicy,
    /// How long one attempt may take: 60 s.
    pub attempt_wait_max: Duration,
    /// How many attempts in a row find the destination away before it is left alone: 5.
    pub circuit_failures: u32,
    /// How long it is left alone at first: 1 s; doubles with each probe that fails.
    pub circuit_rest_min: Duration,
    /// And at most: 30 s.
    pub circuit_rest_max: Duration,
    /// [`OnParked::Pass`].
    pub on_parked: OnParked,
    /// How long the lease holds without being renewed: 5 s.
    pub lease_ttl: Duration,
    /// The longest pause between two looks for what others have routed: 1 s.
    pub poll_max: Duration,
    /// How often everything open is looked through again, for what a person has taken up: 5 s.
    pub rescan: Duration,
    /// After how long on the bus a delivery is marked as published in the store: 1 s.
    pub mark_after: Duration,
    /// After how long on the bus without having come a delivery is published again: 15 s.
    pub lost_after: Duration,
    /// How long something taken off the bus stays unsettled: 10 min (a broker allows 30).
    pub ticket_age_max: Duration,
    /// For a destination that lives on the bus: when the broker has lost its data, what was delivered within this time
    /// is handed over again, with the same ids. `None` for any other destination.
    pub again_after_wipe: Option<Duration>,
    /// How long attempts under way may take at a shutdown: 10 s.
    pub grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            window: 2_000,
            window_bytes: 6 << 20,
            in_flight_max: 64,
            batch: 128,
            retry: RetryPolicy::default(),
            attempt_wait_max: Duration::from_secs(60),
            circuit_failures: 5,
            circuit_rest_min: Duration::from_secs(1),
            circuit_rest_max: Duration::from_secs(30),
            on_parked: OnParked::Pass,
            lease_ttl: Duration::from_secs(5),
            poll_max: Duration::from_secs(1),
            rescan: Duration::from_secs(5),
            mark_after: Duration::from_secs(1),
            lost_after: Duration::from_secs(15),
            ticket_age_max: Duration::from_secs(600),
            again_after_wipe: None,
            grace: Duration::from_secs(10),
        }
    }
}

/// One subscription to deliver.
pub struct Subscription {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// How.
    pub settings: Settings,
    /// Its topic, if it is notified.
    pub topic: Option<String>,
    /// What is to be done for it beside delivering, if it was requested over `/fhir`.
    pub life: Option<Life>,
    /// How its notifications are written; `None` if it gets whole messages.
    pub notifies: Option<Notifies>,
    /// To whom.
    pub destination: Arc<dyn Destination>,
    /// Whether that is whoever has bound it to a WebSocket, on this replica or another.
    pub is_bound: bool,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// What is timed.
    pub timings: DeliverTimings,
}

/// What every deliverer of the process shares.
#[derive(Clone)]
pub struct Services {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// Who may take from subscribers' own queues.
    pub keys: Option<Arc<Keys>>,
    /// Notices when the broker loses its data.
    pub watch: Arc<EpochWatch>,
    /// The WebSockets of this process.
    pub sockets: Arc<Sockets>,
    /// This process among the replicas.
    pub replica: Uuid,
    /// The installation's name in the source of its events.
    pub installation: Arc<str>,
}

/// A delivery just recorded, handed over by the router so that nobody has to read it back. Losing one costs nothing but
/// time: it is in the store.
#[derive(Clone, Debug)]
pub struct Routed {
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
    /// What it carries.
    pub content: Content,
    /// W3C trace context, if traced.
    pub traceparent: Option<String>,
}

impl Routed {
    /// Bytes of content that it keeps in memory.
    fn bytes(&self) -> usize {
        self.content.original.len() + self.content.bundle.len() + self.content.beside.len()
    }
}

/// What a deliverer has done and how it stands, for telemetry. Relaxed: each number is right by itself.
#[derive(Debug, Default)]
pub struct Counters {
    /// Confirmed by the bus.
    pub published: AtomicU64,
    /// Not taken by the bus, so published again.
    pub unpublished: AtomicU64,
    /// Attempts begun.
    pub attempts: AtomicU64,
    /// Taken by the destination.
    pub delivered: AtomicU64,
    /// Attempts that failed and will be repeated.
    pub retried: AtomicU64,
    /// Dead letters.
    pub parked: AtomicU64,
    /// Withheld by policy at the last moment.
    pub suppressed: AtomicU64,
    /// How often the destination was given up for a while.
    pub circuits_opened: AtomicU64,
    /// Whether it is at the moment: 0 or 1.
    pub circuit_open: AtomicU64,
    /// Deliveries in memory.
    pub in_window: AtomicU64,
    /// Attempts under way.
    pub in_flight: AtomicU64,
    /// Whether this replica holds the lease: 0 or 1.
    pub leading: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    fn set(gauge: &AtomicU64, value: usize) {
        gauge.store(value as u64, Ordering::Relaxed);
    }
}
