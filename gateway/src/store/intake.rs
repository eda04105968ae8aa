//! What both stores know about a batch of new messages: its rows, and which of them are repeats.
//!
//! Invariant: a row is a repeat only of a message of the same sender with the same control id and the same bytes, compared byte by
//! byte; hashes only find candidates.

use crate::store::{Appended, Format, NewMessage, Refused, StoreError, pack};
use jiff::Timestamp;
use schemas::message::{LaneSet, MessageId, OrderKey, Seq};
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// How far back a control id is remembered.
const REPEAT_DAYS: i64 = 7;

/// One message as it will lie in the store.
pub(super) struct Row {
    pub(super) message: NewMessage,
    pub(super) seq: i64,
    pub(super) repeat_hash: Option<i64>,
    /// Of a row with a `repeat_hash`.
    pub(super) content_hash: Option<i64>,
    pub(super) reused: bool,
    pub(super) packed: Vec<u8>,
    repeats: Option<First>,
}

/// The message that another one repeats.
#[derive(Clone)]
struct First {
    id: MessageId,
    received_at: Timestamp,
    rejected: Option<Refused>,
}

/// A stored message whose hashes, or whose id, are those of a new one.
pub(super) struct Earlier {
    pub(super) id: MessageId,
    pub(super) received_us: i64,
    pub(super) sender: String,
    pub(super) control_id: String,
    pub(super) rejected: Option<Refused>,
    pub(super) bytes: Vec<u8>,
}

/// A batch on its way in.
pub(super) struct Batch {
    pub(super) rows: Vec<Row>,
    /// For each message given: its row, and whether it is that row or repeats it within the batch.
    places: Vec<(usize, bool)>,
}

impl Batch {
    pub(super) fn new(messages: Vec<NewMessage>) -> Self {
        let mut batch = Batch { rows: Vec::with_capacity(messages.len()), places: Vec::new() };
        let mut by_hash: HashMap<i64, Vec<usize>> = HashMap::new();
        for mut message in messages {
            if message.keys.is_empty() && message.rejected.is_none() {
                // Without a lane nobody would find it.
                message.keys.push(OrderKey::of(&[&message.sender]));
            }
            let mut repeat_hash = pack::repeat_hash(&message.sender, &message.control_id);
            if message.handed_again.is_some() {
                // Only one with the same content is of interest, so the others need not be compared.
                repeat_hash = repeat_hash.map(|hash| hash ^ pack::content_hash(&message.bytes));
            }
            let alike = repeat_hash.map(|hash| by_hash.entry(hash).or_default());
            let mut reused = false;
            if let Some(alike) = alike {
                let same_id = |place: &&usize| {
                    let row = &batch.rows[**place].message;
                    row.sender == message.sender && row.control_id == message.control_id
                };
                let same = alike
                    .iter()
                    .filter(same_id)
                    .find(|place| batch.rows[**place].message.bytes == message.bytes)
                    .filter(|_| message.handed_again != Some(false));
                if let Some(same) = same {
                    batch.places.push((*same, true));
                    continue;
                }
                reused = message.handed_again.is_none() && alike.iter().any(|place| same_id(&place));
                alike.push(batch.rows.len());
            }
            batch.places.push((batch.rows.len(), false));
            let packed = pack::squeeze(&message.bytes);
            let content_hash = repeat_hash.map(|_| pack::content_hash(&message.bytes));
            batch.rows.push(Row {
                message,
                seq: 0,
                repeat_hash,
                content_hash,
                reused,
                packed,
                repeats: None,
            });
        }
        batch
    }

    /// Numbers the rows that are to be written upwards from the number after `last`.
    pub(super) fn number(&mut self, last: i64) {
        let to_write = self.rows.iter_mut().filter(|row| row.repeats.is_none());
        for (row, seq) in to_write.zip(last + 1..) {
            row.seq = seq;
        }
    }

    /// The lowest id in which an earlier message still counts for a repeat.
    pub(super) fn repeat_floor(&self) -> Uuid {
        let oldest = self.rows.iter().map(|row| pack::id_millis(row.message.id)).min().unwrap_or_default();
        pack::id_floor(oldest - REPEAT_DAYS * 86_400_000)
    }

    /// Takes notice that earlier messages have these hashes of sender and control id.
    pub(super) fn reused(&mut self, repeat_hashes: &HashSet<i64>) {
        for row in &mut self.rows {
            let is_unique = row.message.handed_again.is_none();
            row.reused |= is_unique && row.repeat_hash.is_some_and(|hash| repeat_hashes.contains(&hash));
        }
    }

    /// Takes notice of an earlier message. One with the id of a row is that row, appended by a batch whose answer was lost.
    pub(super) fn met(&mut self, earlier: &Earlier) -> Result<(), StoreError> {
        let floor = self.repeat_floor();
        for row in self.rows.iter_mut().filter(|row| row.repeats.is_none()) {
            let repeats = |row: &Row| {
                let same_id = earlier.id.0 >= floor
                    && !row.message.control_id.is_empty()
                    && row.message.handed_again != Some(false)
                    && *row.message.sender == *earlier.sender
                    && *pack::text(&row.message.control_id) == *earlier.control_id;
                Ok::<_, StoreError>(same_id && pack::expand(&earlier.bytes)? == row.message.bytes)
            };
            if row.message.id == earlier.id || repeats(row)? {
                row.repeats = Some(First {
                    id: earlier.id,
                    received_at: pack::time(earlier.received_us)?,
                    rejected: earlier.rejected.clone(),
                });
            }
        }
        Ok(())
    }

    /// Every row that is to be written.
    pub(super) fn to_write(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.repeats.is_none())
    }

    /// What to tell of each message, in the order given.
    pub(super) fn answers(self) -> Vec<Appended> {
        let answer = |(place, within): &(usize, bool)| {
            let row = &self.rows[*place];
            match &row.repeats {
                Some(first) => {
                    let First { id, received_at, rejected } = first.clone();
                    Appended::Repeat { id, received_at, rejected }
                }
                None if *within => Appended::Repeat {
                    id: row.message.id,
                    received_at: row.message.received_at,
                    rejected: row.message.rejected.clone(),
                },
                None => Appended::New { seq: Seq(row.seq), control_id_reused: row.reused },
            }
        };
        self.places.iter().map(answer).collect()
    }
}

impl Row {
    pub(super) fn lanes(&self) -> i64 {
        LaneSet::of(&self.message.keys).0
    }

    /// Bytes as received, for the bound on what is read at once.
    pub(super) fn size(&self) -> i32 {
        i32::try_from(self.message.bytes.len()).unwrap_or(i32::MAX)
    }

    pub(super) fn rejected(&self) -> Option<String> {
        self.message.rejected.as_ref().map(refused_to)
    }
}

/// A refusal as it lies in a row.
fn refused_to(refused: &Refused) -> String {
    serde_json::to_string(refused).expect("a refusal is plain text and a number")
}

/// A refusal from a row.
pub(super) fn refused_from(text: Option<&str>) -> Result<Option<Refused>, StoreError> {
    text.map(serde_json::from_str).transpose().map_err(|error| StoreError::Bug(Box::new(error)))
}

pub(super) fn format_to(format: Format) -> i16 {
    match format {
        Format::Hl7v2 => 1,
        Format::FhirJson => 2,
        Format::Json => 3,
        Format::Csv => 4,
    }
}

pub(super) fn format_from(stored: i16) -> Result<Format, StoreError> {
    match stored {
        1 => Ok(Format::Hl7v2),
        2 => Ok(Format::FhirJson),
        3 => Ok(Format::Json),
        4 => Ok(Format::Csv),
        _ => Err(pack::damaged("message format")),
    }
}
