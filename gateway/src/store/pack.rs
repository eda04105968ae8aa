//! How values lie in a row: compressed bytes, keys side by side, times in microseconds.
//!
//! Both stores write the same forms. Invariant: `expand(squeeze(x)) == x` for all bytes, and a row that does not read back is
//! an error, never a panic.

use crate::squeeze;
use crate::store::{DeliveryState, Made, Request, StoreError, UnmappedSeen};
use bytes::Bytes;
use crc::{CRC_64_XZ, Crc, Table};
use jiff::Timestamp;
use mappings::SiteCode;
use schemas::issue::Issue;
use schemas::message::{DeliveryId, MessageId, OrderKey};
use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// The first byte of what is not compressed; no compressed form begins with it.
const PLAIN: u8 = 0;

/// A row that this program did not write.
#[derive(Debug, thiserror::Error)]
#[error("a stored value does not read back: {0}")]
struct Damaged(&'static str);

pub(super) fn damaged(what: &'static str) -> StoreError {
    StoreError::Bug(Box::new(Damaged(what)))
}

/// Compresses where it pays; what is not compressed follows a byte that says so.
pub(super) fn squeeze(bytes: &[u8]) -> Vec<u8> {
    squeeze::squeeze(bytes).unwrap_or_else(|| [&[PLAIN], bytes].concat())
}

/// What [`squeeze()`] was given. An empty value reads as empty.
pub(super) fn expand(packed: &[u8]) -> Result<Bytes, StoreError> {
    match packed {
        [] => Ok(Bytes::new()),
        [PLAIN, bytes @ ..] => Ok(Bytes::copy_from_slice(bytes)),
        frame => squeeze::expand(frame).map(Bytes::from).ok_or_else(|| damaged("compressed bytes")),
    }
}

/// Keys side by side, eight bytes each.
pub(super) fn keys_to_bytes(keys: &[OrderKey]) -> Vec<u8> {
    keys.iter().flat_map(|key| key.0.to_be_bytes()).collect()
}

/// What [`keys_to_bytes`] was given.
pub(super) fn keys_from_bytes(bytes: &[u8]) -> Result<Vec<OrderKey>, StoreError> {
    let (keys, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(damaged("order keys"));
    }
    Ok(keys.iter().map(|key| OrderKey(i64::from_be_bytes(*key))).collect())
}

/// Text as a database takes it: PostgreSQL knows no NUL, so it becomes U+FFFD in both stores. The message's own bytes
/// are never touched.
pub(super) fn text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{FFFD}")) } else { Cow::Borrowed(text) }
}

/// Microseconds since 1970, as every time lies in a row.
pub(super) fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

/// What [`micros`] was given.
pub(super) fn time(micros: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(micros).map_err(|_| damaged("time"))
}

/// A count from a row; never negative as this program writes it.
pub(super) fn count(stored: i32) -> u32 {
    u32::try_from(stored).unwrap_or_default()
}

/// A count for a row.
pub(super) fn count_to(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// What a result made, as it lies in its column: of each the id of the resource, the version (seven bits a byte, lowest first), whether the
/// message before is known, and its id. Frozen: stored rows depend on it.
pub(super) fn made_to(made: &[Made]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(made.len() * 24);
    for one in made {
        packed.extend_from_slice(one.resource.as_bytes());
        let mut version = one.version.unsigned_abs();
        while version >= 0x80 {
            packed.push((version & 0x7f) as u8 | 0x80);
            version >>= 7;
        }
        packed.push(version as u8);
        packed.push(u8::from(one.before.is_some()));
        packed.extend(one.before.iter().flat_map(|before| *before.0.as_bytes()));
    }
    packed
}

/// What [`made_to`] was given.
pub(super) fn made_from(packed: &[u8]) -> Result<Vec<Made>, StoreError> {
    let mut rest = packed;
    let mut made = Vec::new();
    while !rest.is_empty() {
        let (one, after) = one_made(rest).ok_or_else(|| damaged("list of versions"))?;
        made.push(one);
        rest = after;
    }
    Ok(made)
}

fn one_made(packed: &[u8]) -> Option<(Made, &[u8])> {
    let (resource, rest) = packed.split_first_chunk::<16>()?;
    let end = rest.iter().take(9).position(|byte| byte & 0x80 == 0)?;
    let digits = rest[..=end].iter().rev();
    let version = digits.fold(0, |version, byte| version << 7 | i64::from(byte & 0x7f));
    let (known, rest) = rest[end + 1..].split_first()?;
    let (before, rest) = match known {
        0 => (None, rest),
        _ => {
            let (before, rest) = rest.split_first_chunk::<16>()?;
            (Some(MessageId(Uuid::from_bytes(*before))), rest)
        }
    };
    Some((Made { resource: Uuid::from_bytes(*resource), version, before }, rest))
}

/// A duration in microseconds.
pub(super) fn span(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// What [`span`] was given; a time that has passed is no time at all.
pub(super) fn span_from(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

/// A delivery's state as a number. Frozen: rows, and the SQL of both stores, depend on it.
pub(super) fn state_to(state: DeliveryState) -> i16 {
    match state {
        DeliveryState::Pending => 0,
        DeliveryState::Published => 1,
        DeliveryState::RetryWait => 2,
        DeliveryState::Delivered => 3,
        DeliveryState::Suppressed => 4,
        DeliveryState::Parked => 5,
        DeliveryState::Skipped => 6,
    }
}

/// What [`state_to`] was given.
pub(super) fn state_from(stored: i16) -> Result<DeliveryState, StoreError> {
    Ok(match stored {
        0 => DeliveryState::Pending,
        1 => DeliveryState::Published,
        2 => DeliveryState::RetryWait,
        3 => DeliveryState::Delivered,
        4 => DeliveryState::Suppressed,
        5 => DeliveryState::Parked,
        6 => DeliveryState::Skipped,
        _ => return Err(damaged("delivery state")),
    })
}

/// The state of a delivery by its word, as a person types it.
pub(super) fn state_named(word: &str) -> Option<DeliveryState> {
    Some(match word {
        "pending" => DeliveryState::Pending,
        "published" => DeliveryState::Published,
        "retry_wait" => DeliveryState::RetryWait,
        "delivered" => DeliveryState::Delivered,
        "suppressed" => DeliveryState::Suppressed,
        "parked" => DeliveryState::Parked,
        "skipped" => DeliveryState::Skipped,
        _ => return None,
    })
}

/// By which repeats are found: sender and control id. `None` without a control id: such a message is never a repeat.
pub(super) fn repeat_hash(sender: &str, control_id: &str) -> Option<i64> {
    (!control_id.is_empty()).then(|| OrderKey::of(&[sender, control_id]).0)
}

/// By which the repeats of a message are told from others with its control id: CRC-64/XZ of its bytes. Frozen: stored rows depend on it.
pub(super) fn content_hash(bytes: &[u8]) -> i64 {
    static CRC: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_XZ);
    CRC.checksum(bytes).cast_signed()
}

/// By which an identifier's bare value is found, the same as a message's patient hashes.
pub(super) fn value_hash(value: &str) -> i64 {
    OrderKey::of(&[value]).0
}

/// The lowest message id of a moment, in milliseconds since 1970 (UUIDv7: its first 48 bits).
pub(super) fn id_floor(millis: i64) -> Uuid {
    let millis = u128::try_from(millis.max(0)).unwrap_or_default();
    Uuid::from_u128((millis & 0xFFFF_FFFF_FFFF) << 80)
}

/// The moment in a message id, in milliseconds since 1970.
pub(super) fn id_millis(id: MessageId) -> i64 {
    i64::try_from(id.0.as_u128() >> 80).expect("48 bits fit")
}

/// Issues from a row.
pub(super) fn issues_from(text: Option<&str>) -> Result<Vec<Issue>, StoreError> {
    text.map_or(Ok(Vec::new()), serde_json::from_str).map_err(|error| StoreError::Bug(Box::new(error)))
}

/// Issues for a row; none at all for none.
pub(super) fn issues_to(issues: &[Issue]) -> Option<String> {
    (!issues.is_empty()).then(|| serde_json::to_string(issues).expect("an issue is plain text"))
}

/// A person's request as a row.
pub(super) struct RequestRow {
    pub(super) kind: i16,
    pub(super) message: MessageId,
    pub(super) delivery: Option<DeliveryId>,
    pub(super) why: Option<String>,
}

/// The kind of a request to normalize a message again.
pub(super) const NORMALIZE: i16 = 1;

pub(super) fn request_to(request: &Request) -> RequestRow {
    match request {
        Request::Normalize(message) => {
            RequestRow { kind: NORMALIZE, message: *message, delivery: None, why: None }
        }
        Request::Deliver(delivery, message) => {
            RequestRow { kind: 2, message: *message, delivery: Some(*delivery), why: None }
        }
        Request::Skip(delivery, message, why) => {
            RequestRow { kind: 3, message: *message, delivery: Some(*delivery), why: Some(why.clone()) }
        }
    }
}

/// A code that waits for a translation: sender, table, code, how many messages have it, and the first and the last of them.
pub(super) fn unmapped_from(row: (String, String, String, i64, Uuid, Uuid)) -> UnmappedSeen {
    let (sender, table, code, messages, first, last) = row;
    UnmappedSeen { sender, table, code, messages, first: MessageId(first), last: MessageId(last) }
}

/// A translation: sender, table, code, system, target, display.
pub(super) fn site_code_from(row: (String, String, String, String, String, Option<String>)) -> SiteCode {
    let (sender, table, code, system, target, display) = row;
    SiteCode { sender, table, code, system, target, display }
}

/// What [`request_to`] was given.
pub(super) fn request_from(
    kind: i16,
    message: Uuid,
    delivery: Option<Uuid>,
    why: Option<String>,
) -> Result<Request, StoreError> {
    let message = MessageId(message);
    match (kind, delivery.map(DeliveryId)) {
        (1, _) => Ok(Request::Normalize(message)),
        (2, Some(delivery)) => Ok(Request::Deliver(delivery, message)),
        (3, Some(delivery)) => Ok(Request::Skip(delivery, message, why.unwrap_or_default())),
        _ => Err(damaged("request")),
    }
}

/// Bytes that an ordinary user may still write on the disk of a folder; `None` if it cannot be seen.
pub(super) fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_result_made_is_packed_and_read_again() {
        let of = |id: u128, version: i64, before: Option<u128>| Made {
            resource: Uuid::from_u128(id),
            version,
            before: before.map(|id| MessageId(Uuid::from_u128(id))),
        };
        let made = [of(1, 1, None), of(2, 127, Some(7)), of(3, 128, Some(8)), of(4, i64::MAX, None)];
        let packed = made_to(&made);
        assert_eq!(made_from(&packed).unwrap(), made);
        assert_eq!(made_from(&[]).unwrap(), []);
        assert!((1..18).all(|end| made_from(&packed[..end]).is_err()));
    }

    proptest! {
        #[test]
        fn squeezed_bytes_expand_to_what_they_were(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..2000),
                "[A-C|^]{0,3000}".prop_map(String::into_bytes),
            ],
        ) {
            prop_assert_eq!(expand(&squeeze(&bytes)).unwrap(), bytes);
        }

        #[test]
        fn damaged_rows_are_errors_and_not_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = expand(&bytes);
            let _ = keys_from_bytes(&bytes);
        }

        #[test]
        fn keys_read_back(keys in proptest::collection::vec(any::<i64>(), 0..9)) {
            let keys: Vec<OrderKey> = keys.into_iter().map(OrderKey).collect();
            prop_assert_eq!(keys_from_bytes(&keys_to_bytes(&keys)).unwrap(), keys);
        }
    }

    #[test]
    fn an_id_keeps_its_moment() {
        let id = MessageId(Uuid::new_v7(uuid::Timestamp::from_unix_time(1_700_000_000, 5_000_000, 0, 0)));
        assert_eq!(id_millis(id), 1_700_000_000_005);
        assert!(id_floor(1_700_000_000_005) <= id.0 && id.0 < id_floor(1_700_000_000_006));
    }
}
