//! Group commit: while one transaction commits, the next batch gathers. Where a few senders send at once, transactions begin some
//! milliseconds apart; a sender that waits for each acknowledgement is not held up by that.

use super::pressure::Pressure;
use crate::store::{Appended, NewMessage, Store, StoreError};
use crate::telemetry::metrics::Metrics;
use schemas::message::Seq;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// The most messages of one transaction.
const BATCH_MESSAGES: usize = 256;
/// The most bytes of one transaction, beyond its first message.
const BATCH_BYTES: usize = 8 << 20;
/// How many messages may wait for their transaction; senders beyond that wait unread.
const WAITING_MAX: usize = 1024;

/// How many messages of one request are handed in together; others come in between.
const AT_A_TIME: usize = BATCH_MESSAGES;

/// How far apart transactions begin while more than one message gathers in that time: a transaction costs more than a message.
const APART: Duration = Duration::from_millis(5);
/// So many are enough to begin without waiting.
const ENOUGH: usize = 8;
/// After a message that gathered no others, so many transactions begin at once.
const AT_ONCE: u32 = 64;

/// What became of one message, or why it could not be written in time.
pub type Written = Result<Appended, String>;

struct Waiting {
    message: NewMessage,
    since: Instant,
    answer: oneshot::Sender<Written>,
}

/// The writing end, shared by every source.
#[derive(Clone, Debug)]
pub struct Committer {
    queue: mpsc::Sender<Waiting>,
}

impl Committer {
    /// Starts the one task that writes. `hold` is how long a message waits for a store that is away; `wake` tells the
    /// next station that there is something new.
    /// `room` is false while the disk reserve is reached: nothing is written then.
    pub fn start(
        store: Arc<dyn Store>,
        room: Arc<AtomicBool>,
        hold: Duration,
        wake: watch::Sender<Seq>,
        pressure: Arc<Pressure>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(run(Batches { store, room, hold, wake, pressure, metrics }, waiting));
        Committer { queue }
    }

    /// Writes one message; returns once it is durable, or once it is known that it is not.
    pub async fn write(&self, message: NewMessage) -> Written {
        let (answer, written) = oneshot::channel();
        let gone = || GONE.to_owned();
        self.queue.send(Waiting { message, since: Instant::now(), answer }).await.map_err(|_| gone())?;
        written.await.map_err(|_| gone())?
    }

    /// Writes the messages of one request in their order. When one was not taken, nothing after it is handed in.
    pub async fn write_all(&self, messages: Vec<NewMessage>) -> Vec<Written> {
        let mut written: Vec<Written> = Vec::with_capacity(messages.len());
        let mut messages = messages.into_iter();
        while messages.len() > 0 && written.iter().all(Result::is_ok) {
            // Their places are next to each other, so that what refuses one refuses those after it.
            let Ok(places) = self.queue.reserve_many(messages.len().min(AT_A_TIME)).await else { break };
            let handed_in: Vec<_> = places
                .zip(&mut messages)
                .map(|(place, message)| {
                    let (answer, written) = oneshot::channel();
                    place.send(Waiting { message, since: Instant::now(), answer });
                    written
                })
                .collect();
            for one in handed_in {
                written.push(one.await.unwrap_or_else(|_| Err(GONE.to_owned())));
            }
        }
        let reason =
            written.iter().find_map(|one| one.as_ref().err().cloned()).unwrap_or_else(|| GONE.to_owned());
        written.extend(messages.map(|_| Err(reason.clone())));
        written
    }
}

/// Why nothing is written any more.
const GONE: &str = "the gateway is stopping";

/// What a batch needs.
struct Batches {
    store: Arc<dyn Store>,
    room: Arc<AtomicBool>,
    hold: Duration,
    wake: watch::Sender<Seq>,
    pressure: Arc<Pressure>,
    metrics: Arc<Metrics>,
}

/// When transactions begin.
struct Pace {
    /// The earliest moment for the next one, if it waits for more messages.
    next: Instant,
    /// How many of the next ones do not wait.
    at_once: u32,
}

impl Pace {
    fn new(now: Instant) -> Pace {
        Pace { next: now, at_once: 0 }
    }

    /// Until when the messages that come are gathered into one transaction; `None`: it begins now.
    fn gathers_until(&self, now: Instant) -> Option<Instant> {
        (self.at_once == 0 && now < self.next).then_some(self.next)
    }

    /// A transaction of so many messages begins.
    fn begins(&mut self, messages: usize, gathered: bool, now: Instant) {
        self.next = now + APART;
        self.at_once = match gathered {
            true if messages == 1 => AT_ONCE,
            _ => self.at_once.saturating_sub(1),
        };
    }
}

async fn run(batches: Batches, mut waiting: mpsc::Receiver<Waiting>) {
    let mut pending = Vec::new();
    let mut pace = Pace::new(Instant::now());
    while let Some(first) = waiting.recv().await {
        let mut bytes = 0;
        pending.push(first);
        let until = pace.gathers_until(Instant::now());
        while pending.len() < BATCH_MESSAGES && bytes < BATCH_BYTES {
            let next = match (waiting.try_recv(), until) {
                (Ok(next), _) => next,
                (Err(_), Some(until)) if pending.len() < ENOUGH => {
                    match tokio::time::timeout_at(until.into(), waiting.recv()).await {
                        Ok(Some(next)) => next,
                        Ok(None) | Err(_) => break,
                    }
                }
                (Err(_), _) => break,
            };
            bytes += next.message.bytes.len();
            pending.push(next);
        }
        pace.begins(pending.len(), until.is_some(), Instant::now());
        commit(&batches, &mut pending, &mut waiting).await;
    }
}

/// Writes one batch, trying again while the store is away, and answers each once it is decided.
async fn commit(batches: &Batches, pending: &mut Vec<Waiting>, waiting: &mut mpsc::Receiver<Waiting>) {
    let Batches { store, room, hold, wake, pressure, metrics } = batches;
    let mut pause = Duration::from_millis(20);
    loop {
        let batch = pending.iter().map(|waiting| waiting.message.clone()).collect();
        let began = Instant::now();
        let written = match room.load(Ordering::Relaxed) {
            true => store.append(batch).await,
            false => Err(StoreError::Full),
        };
        match written {
            Ok(appended) => {
                let ended = Instant::now();
                metrics.committed(appended.len(), ended - began);
                pressure.note(appended.len(), ended - began, ended);
                let newest = appended.iter().filter_map(|one| match one {
                    Appended::New { seq, .. } => Some(*seq),
                    Appended::Repeat { .. } => None,
                });
                if let Some(newest) = newest.max() {
                    wake.send_replace(newest);
                }
                for (waiting, one) in pending.drain(..).zip(appended) {
                    // A source that stopped waiting has closed its connection: the sender will send it again.
                    let _ = waiting.answer.send(Ok(one));
                }
                return;
            }
            Err(error) => {
                let reason = crate::chain(&error);
                tracing::warn!(error = %reason, messages = pending.len(), "the store did not take a batch");
                let again = matches!(error, StoreError::Away(_) | StoreError::Conflict | StoreError::Full);
                if !again || pending.iter().any(|waiting| waiting.since.elapsed() >= *hold) {
                    // Refused together with everything that was handed in before this answer: a later message must not
                    // be stored when an earlier one of the same connection was not.
                    while let Ok(later) = waiting.try_recv() {
                        pending.push(later);
                    }
                    for waiting in pending.drain(..) {
                        let _ = waiting.answer.send(Err(reason.clone()));
                    }
                    return;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many transactions waited, when each began some time after the one before and found some messages.
    fn waits(transactions: u32, every: Duration, messages: usize) -> u32 {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut waited = 0;
        for _ in 0..transactions {
            let until = pace.gathers_until(now);
            now = until.unwrap_or(now);
            waited += u32::from(until.is_some());
            pace.begins(messages, until.is_some(), now);
            now += every;
        }
        waited
    }

    #[test]
    fn a_sender_that_waits_for_each_acknowledgement_is_not_held_up() {
        let waited = waits(1000, APART / 5, 1);
        assert!((1..=1000 / AT_ONCE + 1).contains(&waited), "{waited} of 1000");
    }

    #[test]
    fn messages_of_several_senders_gather() {
        assert_eq!(waits(1000, APART / 5, 3), 999, "but for the first");
        assert_eq!(waits(1000, APART, 3), 0, "nothing waits where they come slowly");
    }
}
