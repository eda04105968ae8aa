//! The short way to a deliverer: what was recorded just now, bounded in number and in bytes. What does not fit is found in the store.

use super::Routed;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc;

/// How many deliveries wait for their deliverer at most.
const WAITING_MAX: usize = 256;
/// How many came before their time at most.
const AHEAD_MAX: usize = 500;
/// How many bytes of content either holds at most. One delivery may exceed it.
const BYTES_MAX: usize = 2 << 20;

/// The end that hands over.
#[derive(Clone, Debug)]
pub struct Feed {
    sender: mpsc::Sender<Routed>,
    bytes: Arc<AtomicUsize>,
}

/// The end that takes.
#[derive(Debug)]
pub(super) struct Fed {
    receiver: mpsc::Receiver<Routed>,
    bytes: Arc<AtomicUsize>,
}

/// Makes one.
pub(super) fn feed() -> (Feed, Fed) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let bytes = Arc::new(AtomicUsize::new(0));
    (Feed { sender, bytes: bytes.clone() }, Fed { receiver, bytes })
}

impl Feed {
    /// Hands a delivery over; `false` without room, or when nobody takes any more.
    pub fn offer(&self, routed: Routed) -> bool {
        let size = routed.bytes();
        let before = self.bytes.fetch_add(size, Ordering::Relaxed);
        let fits = before == 0 || before.saturating_add(size) <= BYTES_MAX;
        let taken = fits && self.sender.try_send(routed).is_ok();
        if !taken {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
        }
        taken
    }
}

impl Fed {
    /// Waits for the next one; `None` when no more will come.
    pub(super) async fn recv(&mut self) -> Option<Routed> {
        let routed = self.receiver.recv().await?;
        Some(self.took(routed))
    }

    /// The next one, if it is there.
    pub(super) fn try_recv(&mut self) -> Option<Routed> {
        let routed = self.receiver.try_recv().ok()?;
        Some(self.took(routed))
    }

    fn took(&self, routed: Routed) -> Routed {
        self.bytes.fetch_sub(routed.bytes(), Ordering::Relaxed);
        routed
    }
}

/// What came before its time, by event number, until those between are read.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    routed: BTreeMap<i64, Routed>,
    bytes: usize,
}

impl Ahead {
    /// Keeps one; what is farthest ahead gives way.
    pub(super) fn keep(&mut self, routed: Routed) {
        self.bytes += routed.bytes();
        if let Some(same) = self.routed.insert(routed.number, routed) {
            self.bytes -= same.bytes();
        }
        while self.routed.len() > AHEAD_MAX || (self.bytes > BYTES_MAX && self.routed.len() > 1) {
            let Some((_, last)) = self.routed.pop_last() else { break };
            self.bytes -= last.bytes();
        }
    }

    /// Takes the one of a number.
    pub(super) fn take(&mut self, number: i64) -> Option<Routed> {
        let routed = self.routed.remove(&number)?;
        self.bytes -= routed.bytes();
        Some(routed)
    }

    /// The lowest number.
    pub(super) fn first(&self) -> Option<i64> {
        self.routed.first_key_value().map(|(number, _)| *number)
    }

    /// Drops everything up to a number.
    pub(super) fn drop_to(&mut self, number: i64) {
        while self.first().is_some_and(|first| first <= number) {
            self.first().and_then(|first| self.take(first));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.routed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Content, Format};
    use bytes::Bytes;
    use jiff::Timestamp;
    use schemas::message::{DeliveryId, MessageId, OrderKey};
    use uuid::Uuid;

    fn routed(number: i64, size: usize) -> Routed {
        Routed {
            id: DeliveryId(Uuid::from_u128(number as u128)),
            message: MessageId(Uuid::nil()),
            revision: 0,
            number,
            key: OrderKey(0),
            matched: Vec::new().into(),
            content: Content {
                original: Bytes::new(),
                format: Format::Hl7v2,
                sender: "LAB".into(),
                message_type: "ORU^R01".to_owned(),
                received_at: Timestamp::UNIX_EPOCH,
                bundle: Bytes::from(vec![0; size]),
                beside: Bytes::new(),
            },
            traceparent: None,
        }
    }

    #[tokio::test]
    async fn a_feed_is_bounded_in_bytes_and_in_number() {
        let (feed, mut fed) = feed();
        assert!(feed.offer(routed(1, BYTES_MAX * 2)), "one may exceed the bound");
        assert!(!feed.offer(routed(2, 1)), "then nothing more fits");
        assert_eq!(fed.recv().await.map(|routed| routed.number), Some(1));
        assert!(feed.offer(routed(3, BYTES_MAX / 2)) && feed.offer(routed(4, BYTES_MAX / 2)));
        assert!(!feed.offer(routed(5, 1)));
        assert_eq!(fed.try_recv().map(|routed| routed.number), Some(3));
        assert_eq!(fed.try_recv().map(|routed| routed.number), Some(4));
        assert!(fed.try_recv().is_none());
        let taken = (0..1_000).filter(|number| feed.offer(routed(*number, 1))).count();
        assert_eq!(taken, WAITING_MAX);
        drop(fed);
        assert!(!feed.offer(routed(9, 1)), "nobody takes it");
    }

    #[test]
    fn what_is_ahead_is_bounded_and_the_farthest_gives_way() {
        let mut ahead = Ahead::default();
        ahead.keep(routed(7, BYTES_MAX * 2));
        assert_eq!(ahead.first(), Some(7), "one may exceed the bound");
        ahead.keep(routed(5, 10));
        assert_eq!((ahead.take(7).is_none(), ahead.bytes), (true, 10), "the farthest went");
        ahead.keep(routed(5, 20));
        assert_eq!(ahead.bytes, 20, "the same one stands once");
        (10..2_000).for_each(|number| ahead.keep(routed(number, 1)));
        assert_eq!(ahead.routed.len(), AHEAD_MAX);
        ahead.drop_to(11);
        assert_eq!(ahead.first(), Some(12));
        ahead.drop_to(i64::MAX);
        assert!(ahead.is_empty() && ahead.bytes == 0);
    }
}
