//! What went through lately: messages and their Bundles, so that the usual way reads none of them back.
//!
//! Invariants: bounded in bytes; everything here is committed, or was given with a batch whose rows are only asked for once
//! they are seen in the database. A message and a result never change, so nothing here can be out of date.

use crate::store::{Content, Format, MessageResult, NewMessage, OpenMessage, pack};
use bytes::Bytes;
use jiff::Timestamp;
use schemas::message::{MessageId, OrderKey, Seq};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// How many bytes are kept at most.
const BYTES_MAX: usize = 5 << 20;
/// What an entry costs beside its bytes, about.
const OVERHEAD_BYTES: usize = 400;

/// The parts of a message that are asked for again.
#[derive(Clone)]
pub(super) struct Arrived {
    pub(super) bytes: Bytes,
    pub(super) format: Format,
    pub(super) sender: Arc<str>,
    pub(super) message_type: String,
    pub(super) received_at: Timestamp,
    pub(super) context: String,
}

/// An open message as the inbox has it.
pub(super) struct Waiting {
    pub(super) seq: Seq,
    pub(super) id: MessageId,
    pub(super) revision: u32,
    pub(super) keys: Vec<OrderKey>,
}

impl Waiting {
    /// The open message, with its content.
    pub(super) fn with(self, arrived: Arrived) -> OpenMessage {
        let Waiting { seq, id, revision, keys } = self;
        let Arrived { bytes, format, sender, message_type, received_at, context } = arrived;
        OpenMessage { seq, id, received_at, sender, format, message_type, bytes, keys, context, revision }
    }
}

/// The latest messages and Bundles.
#[derive(Default)]
pub(super) struct Recent(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    messages: HashMap<MessageId, Arrived>,
    /// As they lie in their rows, a fraction of what they are.
    bundles: HashMap<(MessageId, u32), Bytes>,
    /// Oldest first, each with its size.
    order: VecDeque<(Key, usize)>,
    bytes: usize,
}

enum Key {
    Message(MessageId),
    Bundle(MessageId, u32),
}

impl Recent {
    /// Keeps a message that was appended.
    pub(super) fn arrived<'m>(&self, messages: impl Iterator<Item = &'m NewMessage>) {
        let mut inner = self.inner();
        for message in messages.filter(|message| message.rejected.is_none()) {
            let arrived = Arrived {
                // A copy: the bytes may be a small part of a large buffer, which would be kept whole.
                bytes: Bytes::copy_from_slice(&message.bytes),
                format: message.format,
                sender: Arc::clone(&message.sender),
                message_type: pack::text(&message.message_type).into_owned(),
                received_at: message.received_at,
                context: pack::text(&message.context).into_owned(),
            };
            let size = arrived.bytes.len() + arrived.context.len() + OVERHEAD_BYTES;
            if inner.messages.insert(message.id, arrived).is_none() {
                inner.keep(Key::Message(message.id), size);
            }
        }
    }

    /// Keeps the Bundles of results that were committed, each as [`pack::squeeze`] made it; a message in quarantine has none.
    pub(super) fn recorded(&self, results: &[MessageResult], packed: Vec<Vec<u8>>) {
        let mut inner = self.inner();
        // What more a notification brings along is rare, and read from its row.
        let whole = |result: &MessageResult| result.quarantined.is_none() && result.beside.is_empty();
        let routed = results.iter().zip(packed).filter(|(result, _)| whole(result));
        for (MessageResult { id: message, revision, .. }, bundle) in routed {
            let (message, revision) = (*message, *revision);
            let size = bundle.len() + OVERHEAD_BYTES;
            if inner.bundles.insert((message, revision), bundle.into()).is_none() {
                inner.keep(Key::Bundle(message, revision), size);
            }
        }
    }

    /// Those of some messages that are still here.
    pub(super) fn messages(&self, ids: impl Iterator<Item = MessageId>) -> HashMap<MessageId, Arrived> {
        let inner = self.inner();
        ids.filter_map(|id| Some((id, inner.messages.get(&id)?.clone()))).collect()
    }

    /// What some deliveries carry, of those of which both parts are still here.
    pub(super) fn contents(&self, of: &[(MessageId, u32)]) -> HashMap<(MessageId, u32), Content> {
        let found: Vec<_> = {
            let inner = self.inner();
            let both = |of: &(MessageId, u32)| {
                Some((*of, inner.messages.get(&of.0)?.clone(), inner.bundles.get(of)?.clone()))
            };
            of.iter().filter_map(both).collect()
        };
        let content = |(of, arrived, packed): ((MessageId, u32), Arrived, Bytes)| {
            let content = Content {
                original: arrived.bytes,
                format: arrived.format,
                sender: arrived.sender,
                message_type: arrived.message_type,
                received_at: arrived.received_at,
                bundle: pack::expand(&packed).ok()?,
                beside: Bytes::new(),
            };
            Some((of, content))
        };
        found.into_iter().filter_map(content).collect()
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Counts a new entry, and lets the oldest go until there is room.
    fn keep(&mut self, key: Key, size: usize) {
        self.order.push_back((key, size));
        self.bytes += size;
        while self.bytes > BYTES_MAX {
            let Some((key, size)) = self.order.pop_front() else {
                return;
            };
            self.bytes -= size;
            match key {
                Key::Message(id) => drop(self.messages.remove(&id)),
                Key::Bundle(message, revision) => drop(self.bundles.remove(&(message, revision))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::suite;
    use uuid::Uuid;

    fn id(n: u128) -> MessageId {
        MessageId(Uuid::from_u128(n))
    }

    fn result(n: u128, quarantined: Option<&str>) -> MessageResult {
        MessageResult {
            seq: Seq(1),
            id: id(n),
            revision: 0,
            quarantined: quarantined.map(str::to_owned),
            mapping: String::new(),
            issues: Vec::new(),
            bundle: Bytes::new(),
            beside: Bytes::new(),
            made: Vec::new(),
        }
    }

    #[test]
    fn the_oldest_go_first_and_the_bound_holds() {
        let recent = Recent::default();
        for n in 0..10 {
            recent.recorded(&[result(n, None)], vec![vec![0; BYTES_MAX / 4]]);
            let inner = recent.inner();
            assert!(inner.bytes <= BYTES_MAX);
            assert_eq!(inner.bundles.len(), inner.order.len());
        }
        let left: Vec<bool> = (0..10).map(|n| recent.inner().bundles.contains_key(&(id(n), 0))).collect();
        assert_eq!(left, [false, false, false, false, false, false, false, true, true, true]);
        recent.recorded(&[result(99, None)], vec![vec![0; BYTES_MAX + 1]]);
        let inner = recent.inner();
        assert_eq!((inner.bytes, inner.bundles.len()), (0, 0), "too large to be kept at all");
    }

    #[test]
    fn a_bundle_comes_back_as_it_was_given() {
        let recent = Recent::default();
        let message = |n| NewMessage { id: id(n), ..suite::at(Timestamp::now(), "C1", "P1") };
        recent.arrived([message(1), message(2)].iter());
        let bundle = b"{\"resourceType\":\"Bundle\"}".repeat(100);
        let results = [result(1, None), result(2, Some("no mapping")), result(3, None)];
        recent.recorded(&results, vec![pack::squeeze(&bundle); 3]);
        let found = recent.contents(&[(id(1), 0), (id(2), 0), (id(3), 0), (id(1), 1)]);
        let found: Vec<_> = found.iter().map(|(of, content)| (*of, &content.bundle[..])).collect();
        assert_eq!(
            found,
            [((id(1), 0), &bundle[..])],
            "one in quarantine has none, and one without its message is not whole"
        );
    }
}
