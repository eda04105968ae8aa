//! The bus in process: the same promises as the broker's, without one.
//!
//! Nothing here is durable: after a restart its marks are gone, and so everything not delivered is published again.

use super::{Bus, BusError, Consumer, Envelope, Health, Taken, Ticket, handed, word};
use async_trait::async_trait;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;

/// The embedded bus. Every queue is bounded in bytes; a full one refuses.
#[derive(Clone)]
pub struct Embedded {
    shared: Arc<Shared>,
}

struct Shared {
    queue_bytes_max: usize,
    sessions: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queues: HashMap<String, Queue>,
    marks: HashSet<String>,
    /// Grows when the bus goes away or loses its data (tests do both): consumers from before are over.
    generation: u64,
    /// Grows when the data is lost: what consumers from before hold does not come back.
    wipes: u64,
    away: bool,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    arrived: Arc<Notify>,
}

struct Waiting {
    envelope: Envelope,
    redelivered: bool,
}

impl Queue {
    fn push(&mut self, envelope: Envelope, bytes_max: usize) -> Result<(), BusError> {
        if self.bytes + envelope.body.len() > bytes_max && !self.waiting.is_empty() {
            return Err(BusError::Refused);
        }
        self.bytes += envelope.body.len();
        self.waiting.push_back(Waiting { envelope, redelivered: false });
        self.arrived.notify_waiters();
        Ok(())
    }

    fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.waiting.pop_front()?;
        self.bytes -= waiting.envelope.body.len();
        Some(waiting)
    }
}

impl Embedded {
    /// A bus whose queues hold at most so many bytes each; one message always fits.
    pub fn new(queue_bytes_max: usize) -> Self {
        let shared = Shared { queue_bytes_max, sessions: AtomicU64::new(0), state: Mutex::default() };
        Embedded { shared: Arc::new(shared) }
    }

    /// Takes the next event out of a subscriber's own queue (see [`Bus::hand_over`]), waiting for it: the
    /// embedded stand-in for a subscriber that consumes from the broker.
    pub async fn receive(&self, queue: &str) -> Envelope {
        loop {
            let arrived = {
                let mut state = self.shared.lock();
                let queue = state.queues.entry(handed_over(queue)).or_default();
                if let Some(waiting) = queue.pop() {
                    return waiting.envelope;
                }
                Arc::clone(&queue.arrived).notified_owned()
            };
            arrived.await;
        }
    }

    /// Loses everything, as a broker whose data was wiped.
    #[cfg(test)]
    pub(crate) fn wipe(&self) {
        let mut state = self.shared.lock();
        state.generation += 1;
        state.wipes += 1;
        state.marks.clear();
        for (_, queue) in state.queues.drain() {
            queue.arrived.notify_waiters();
        }
    }

    /// Goes away, as a broker that cannot be reached, or comes back with all that it had.
    #[cfg(test)]
    pub(crate) fn set_away(&self, away: bool) {
        let mut state = self.shared.lock();
        state.away = away;
        state.generation += 1;
        for queue in state.queues.values() {
            queue.arrived.notify_waiters();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    fn reach(&self) -> Result<MutexGuard<'_, State>, BusError> {
        let state = self.lock();
        if state.away { Err(BusError::away("it was sent away")) } else { Ok(state) }
    }
}

fn subscribed(subscription: &str) -> String {
    format!("pons.sub.{}", word(subscription))
}

fn handed_over(queue: &str) -> String {
    format!("own.{queue}")
}

#[async_trait]
impl Bus for Embedded {
    async fn declare(&self, subscription: &str) -> Result<(), BusError> {
        self.shared.reach()?.queues.entry(subscribed(subscription)).or_default();
        Ok(())
    }

    async fn remove(&self, subscription: &str) -> Result<(), BusError> {
        if let Some(queue) = self.shared.reach()?.queues.remove(&subscribed(subscription)) {
            queue.arrived.notify_waiters();
        }
        Ok(())
    }

    async fn remove_own(&self, subscription: &str, queue: &str) -> Result<(), BusError> {
        let mut state = self.shared.reach()?;
        state.queues.remove(&handed_over(queue));
        state.marks.remove(&handed(subscription));
        Ok(())
    }

    async fn publish(&self, batch: Vec<Envelope>) -> Vec<Result<(), BusError>> {
        let publish_one = |envelope: Envelope| {
            let mut state = self.shared.reach()?;
            let queue =
                state.queues.get_mut(&subscribed(&envelope.subscription)).ok_or(BusError::Returned)?;
            queue.push(envelope, self.shared.queue_bytes_max)
        };
        batch.into_iter().map(publish_one).collect()
    }

    async fn consume(&self, subscription: &str, window: u16) -> Result<Box<dyn Consumer>, BusError> {
        let queue = subscribed(subscription);
        let mut state = self.shared.reach()?;
        state.queues.entry(queue.clone()).or_default();
        Ok(Box::new(EmbeddedConsumer {
            shared: Arc::clone(&self.shared),
            generation: state.generation,
            wipes: state.wipes,
            session: self.shared.sessions.fetch_add(1, Ordering::Relaxed),
            queue,
            window: usize::from(window),
            next_tag: 1,
            held: BTreeMap::new(),
        }))
    }

    async fn marked(&self, mark: &str) -> Result<bool, BusError> {
        Ok(self.shared.reach()?.marks.contains(mark))
    }

    async fn mark(&self, mark: &str) -> Result<(), BusError> {
        self.shared.reach()?.marks.insert(mark.to_owned());
        Ok(())
    }

    async fn hand_over(&self, queue: &str, envelope: Envelope) -> Result<(), BusError> {
        let mut state = self.shared.reach()?;
        state.queues.entry(handed_over(queue)).or_default().push(envelope, self.shared.queue_bytes_max)
    }

    fn health(&self) -> Health {
        if self.shared.lock().away { Health::Away } else { Health::Connected }
    }
}

struct EmbeddedConsumer {
    shared: Arc<Shared>,
    generation: u64,
    wipes: u64,
    session: u64,
    queue: String,
    window: usize,
    next_tag: u64,
    held: BTreeMap<u64, Envelope>,
}

#[async_trait]
impl Consumer for EmbeddedConsumer {
    async fn next(&mut self) -> Result<Taken, BusError> {
        loop {
            let arrived = {
                let mut state = self.shared.reach()?;
                if state.generation != self.generation {
                    return Err(BusError::away("its data was wiped"));
                }
                let queue = state.queues.entry(self.queue.clone()).or_default();
                if self.held.len() < self.window
                    && let Some(Waiting { envelope, redelivered }) = queue.pop()
                {
                    let tag = self.next_tag;
                    self.next_tag += 1;
                    let taken = Taken {
                        delivery: envelope.delivery,
                        traceparent: envelope.traceparent.clone(),
                        body: envelope.body.clone(),
                        redelivered,
                        ticket: Ticket { session: self.session, tag },
                    };
                    self.held.insert(tag, envelope);
                    return Ok(taken);
                }
                Arc::clone(&queue.arrived).notified_owned()
            };
            arrived.await;
        }
    }

    async fn settle(&mut self, tickets: &[Ticket]) -> Result<(), BusError> {
        for ticket in tickets.iter().filter(|ticket| ticket.session == self.session) {
            self.held.remove(&ticket.tag);
        }
        Ok(())
    }
}

/// What was not settled goes back to the front, in its old order.
impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.wipes == self.wipes
            && let Some(queue) = state.queues.get_mut(&self.queue)
        {
            while let Some((_, envelope)) = self.held.pop_last() {
                queue.bytes += envelope.body.len();
                queue.waiting.push_front(Waiting { envelope, redelivered: true });
            }
            queue.arrived.notify_waiters();
        }
    }
}
