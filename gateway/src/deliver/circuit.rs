//! A destination that is away is left alone for a while, then asked by one delivery alone.

use std::time::Duration;
use tokio::time::Instant;

/// Whether a destination may be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Circuit {
    threshold: u32,
    rest_min: Duration,
    rest_max: Duration,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Goes through; so many in a row found the destination away.
    Closed { failures: u32 },
    /// Nothing is tried until then; `opened` times in a row.
    Open { until: Instant, opened: u32 },
    /// One delivery asks.
    Probing { opened: u32 },
}

impl Circuit {
    /// Opens after `threshold` failures in a row; rests between `rest_min` and `rest_max`, doubling.
    pub(super) fn new(threshold: u32, rest_min: Duration, rest_max: Duration) -> Self {
        Circuit { threshold: threshold.max(1), rest_min, rest_max, state: State::Closed { failures: 0 } }
    }

    /// Whether one more may be tried now. When the rest is over, the first to ask becomes the probe.
    pub(super) fn admit(&mut self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until, opened } if now >= until => {
                self.state = State::Probing { opened };
                true
            }
            State::Open { .. } | State::Probing { .. } => false,
        }
    }

    /// The destination answered, whatever it said. Whether it had been given up.
    pub(super) fn reached(&mut self) -> bool {
        let was_open = self.is_open();
        self.state = State::Closed { failures: 0 };
        was_open
    }

    /// The destination was away. `after`: for how long it asked to be left alone. Whether that opened the circuit.
    pub(super) fn away(&mut self, now: Instant, after: Option<Duration>, random: f64) -> bool {
        match self.state {
            State::Closed { failures } if failures + 1 < self.threshold && after.is_none() => {
                self.state = State::Closed { failures: failures + 1 };
                false
            }
            State::Closed { .. } => {
                self.open(now, 0, after, random);
                true
            }
            State::Probing { opened } => {
                self.open(now, opened + 1, after, random);
                false
            }
            // One that had begun before it opened.
            State::Open { .. } => false,
        }
    }

    /// The probe did not come about: the next one may be it.
    pub(super) fn unused(&mut self, now: Instant) {
        if let State::Probing { opened } = self.state {
            self.state = State::Open { until: now, opened };
        }
    }

    /// Whether the destination counts as away.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    /// When the next probe is due.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        match self.state {
            State::Open { until, .. } => Some(until),
            State::Closed { .. } | State::Probing { .. } => None,
        }
    }

    /// Between half of the rest and all of it, so that replicas do not come together.
    fn open(&mut self, now: Instant, opened: u32, after: Option<Duration>, random: f64) {
        let rest = self.rest_min.saturating_mul(1 << opened.min(16)).min(self.rest_max);
        let rest = rest.mul_f64(0.5 + 0.5 * random).max(after.unwrap_or_default().min(self.rest_max));
        self.state = State::Open { until: now + rest, opened };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn circuit() -> Circuit {
        Circuit::new(3, SECOND, 4 * SECOND)
    }

    #[test]
    fn it_opens_after_failures_in_a_row_only() {
        let (mut circuit, now) = (circuit(), Instant::now());
        for _ in 0..10 {
            assert!(!circuit.away(now, None, 1.0));
            assert!(!circuit.away(now, None, 1.0));
            assert!(!circuit.reached());
        }
        circuit.away(now, None, 1.0);
        circuit.away(now, None, 1.0);
        assert!(circuit.admit(now));
        assert!(circuit.away(now, None, 1.0));
        assert!(!circuit.admit(now) && circuit.is_open());
        assert!(!circuit.away(now, None, 1.0), "it opens once");
    }

    #[test]
    fn one_probe_at_a_time_and_a_longer_rest_after_each() {
        let (mut circuit, mut now) = (circuit(), Instant::now());
        for _ in 0..3 {
            circuit.away(now, None, 1.0);
        }
        for rest in [1, 2, 4, 4] {
            assert_eq!(circuit.wakes_at(), Some(now + rest * SECOND));
            now += rest * SECOND - Duration::from_nanos(1);
            assert!(!circuit.admit(now));
            now += Duration::from_nanos(1);
            assert!(circuit.admit(now));
            assert!(!circuit.admit(now), "one probe at a time");
            circuit.away(now, None, 1.0);
        }
        now += 4 * SECOND;
        assert!(circuit.admit(now));
        circuit.unused(now);
        assert!(circuit.admit(now), "a probe that did not come about gives its place to the next");
        assert!(circuit.reached());
        assert!(circuit.admit(now) && !circuit.is_open());
    }

    #[test]
    fn a_destination_that_asks_to_be_left_alone_is_up_to_the_bound() {
        let (mut circuit, now) = (circuit(), Instant::now());
        assert!(circuit.away(now, Some(3 * SECOND), 0.0));
        assert_eq!(circuit.wakes_at(), Some(now + 3 * SECOND));
        let mut circuit = Circuit::new(1, SECOND, 4 * SECOND);
        assert!(circuit.away(now, Some(3600 * SECOND), 0.0));
        assert_eq!(circuit.wakes_at(), Some(now + 4 * SECOND));
    }
}
