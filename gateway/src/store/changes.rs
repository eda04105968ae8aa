//! What both stores know about a batch of delivery changes: one change for each delivery, and the attempts to keep.

use crate::store::{Attempt, DeliveryChange, DeliveryState};
use schemas::message::{DeliveryId, MessageId};
use std::collections::HashMap;

/// An attempt that gets a row of its own: every one but the one that succeeded, which lies in its delivery's row.
pub(super) struct Tried {
    pub(super) message: MessageId,
    pub(super) delivery: DeliveryId,
    pub(super) attempt: Attempt,
}

/// Keeps the last change of each delivery up to its first final one, and every attempt that failed.
pub(super) fn fold(changes: Vec<DeliveryChange>) -> (Vec<DeliveryChange>, Vec<Tried>) {
    let mut rows: Vec<DeliveryChange> = Vec::with_capacity(changes.len());
    let mut places: HashMap<DeliveryId, usize> = HashMap::with_capacity(changes.len());
    let mut tried = Vec::new();
    for change in changes {
        if let Some(attempt) = &change.attempt
            && change.state != DeliveryState::Delivered
        {
            let attempt = attempt.clone();
            tried.push(Tried { message: change.message, delivery: change.id, attempt });
        }
        match places.get(&change.id) {
            Some(place) if over(rows[*place].state) => {}
            Some(place) => rows[*place] = change,
            None => {
                places.insert(change.id, rows.len());
                rows.push(change);
            }
        }
    }
    (rows, tried)
}

/// Whether the deliverer cannot change it any more.
fn over(state: DeliveryState) -> bool {
    match state {
        DeliveryState::Delivered
        | DeliveryState::Suppressed
        | DeliveryState::Parked
        | DeliveryState::Skipped => true,
        DeliveryState::Pending | DeliveryState::Published | DeliveryState::RetryWait => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use std::time::Duration;
    use uuid::Uuid;

    #[test]
    fn the_last_change_stands_and_no_failed_attempt_is_lost() {
        let change = |id: u128, state, number: Option<u32>| DeliveryChange {
            id: DeliveryId(Uuid::from_u128(id)),
            message: MessageId(Uuid::nil()),
            state,
            attempts: number.unwrap_or_default(),
            rest: Duration::ZERO,
            attempt: number.map(|number| Attempt {
                number,
                began_at: Timestamp::UNIX_EPOCH,
                took: Duration::ZERO,
                answer: "HTTP 503".to_owned(),
            }),
            reason: None,
        };
        let (rows, tried) = fold(vec![
            change(1, DeliveryState::Published, None),
            change(2, DeliveryState::Published, None),
            change(1, DeliveryState::RetryWait, Some(1)),
            change(1, DeliveryState::Delivered, Some(2)),
            change(1, DeliveryState::RetryWait, Some(3)),
        ]);
        let states: Vec<_> = rows.iter().map(|row| (row.id.0.as_u128(), row.state)).collect();
        assert_eq!(states, [(1, DeliveryState::Delivered), (2, DeliveryState::Published)]);
        let numbers: Vec<_> = tried.iter().map(|tried| tried.attempt.number).collect();
        assert_eq!(numbers, [1, 3]);
    }
}
