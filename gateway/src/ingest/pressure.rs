//! Whether intake works as hard as it can while messages pile up at its door. The stations after it give way then, for a while: a
//! sender waits for its acknowledgement, and many send nothing else meanwhile.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Over how long transactions are judged together.
const WINDOW: Duration = Duration::from_millis(50);
/// A judgement holds this long; without messages none follows it.
const HOLDS: Duration = Duration::from_millis(100);
/// The least share of the window, in hundredths, in which a transaction was under way. Senders that wait for each answer keep
/// it higher than this; one whose messages come at their own pace leaves pauses for as long as intake keeps up.
const BUSY_SHARE: u32 = 75;
/// The least number of messages in a transaction, on average: fewer do not wait for one another.
const CROWD: u32 = 8;

/// Intake's load, as the committer notes it.
#[derive(Debug)]
pub struct Pressure(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    since: Instant,
    busy: Duration,
    transactions: u32,
    messages: u32,
    high_until: Option<Instant>,
}

impl Default for Pressure {
    fn default() -> Self {
        Pressure(Mutex::new(Inner {
            since: Instant::now(),
            busy: Duration::ZERO,
            transactions: 0,
            messages: 0,
            high_until: None,
        }))
    }
}

impl Pressure {
    /// A transaction of so many messages ended.
    pub(super) fn note(&self, messages: usize, took: Duration, now: Instant) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.busy += took;
        inner.transactions += 1;
        inner.messages = inner.messages.saturating_add(u32::try_from(messages).unwrap_or(u32::MAX));
        let window = now.saturating_duration_since(inner.since);
        if window < WINDOW {
            return;
        }
        let high = inner.busy * 100 >= window * BUSY_SHARE && inner.messages / inner.transactions >= CROWD;
        let high_until = high.then(|| now + HOLDS);
        *inner = Inner { since: now, busy: Duration::ZERO, transactions: 0, messages: 0, high_until };
    }

    /// Whether the others should give way.
    pub fn is_high(&self, now: Instant) -> bool {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.high_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pressure after transactions of so many messages that took `took` and began `every` after one another.
    fn after(messages: usize, took: Duration, every: Duration) -> (Pressure, Instant) {
        let pressure = Pressure::default();
        let mut now = Instant::now();
        for _ in 0..200 {
            now += every;
            pressure.note(messages, took, now);
        }
        (pressure, now)
    }

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn a_crowd_at_a_busy_door_is_pressure_until_it_is_gone() {
        let (pressure, now) = after(16, MILLISECOND, MILLISECOND);
        assert!(pressure.is_high(now));
        assert!(!pressure.is_high(now + HOLDS), "nothing came since");
    }

    #[test]
    fn one_sender_at_full_speed_is_none() {
        let (pressure, now) = after(1, MILLISECOND, MILLISECOND);
        assert!(!pressure.is_high(now));
    }

    #[test]
    fn large_transactions_with_pauses_are_none() {
        for every in [MILLISECOND * 2, MILLISECOND * 5] {
            let (pressure, now) = after(64, MILLISECOND, every);
            assert!(!pressure.is_high(now), "every {every:?}");
        }
    }
}
