//! The states of a message and of a delivery, as two pure functions `step(state, event) -> (state, effects)`.
//!
//! It stands beside the path: normalize, route and deliver ask it what an event means, the store executes it. Invariants: no
//! clock, no I/O, no randomness of its own; a final state never changes; what an old fence says changes nothing; every
//! state that is not final has an [`Owner`] which finds it by one scan, so recovery is the normal poll.
//!
//! ```text
//! message    received ──► (normalized) ──► routed          normalized is passed within one transaction, never stored
//!               ▲  └────────────────────► quarantined      rejected: final from the start
//!               └── a person's replay ──── routed, quarantined
//! delivery   pending ──► published ──► claimed ──► delivered
//!               ▲            └───────────┤──────► suppressed
//!               ├────── retry_wait ◄─────┤
//!               └─ a person ─ parked ◄───┘         a person: parked ──► skipped
//! ```

use crate::store::DeliveryState;
use std::time::Duration;

/// Who moves a state on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The holder of the message's lane, by `Store::open_messages`.
    Normalizer,
    /// The holder of the subscription's lease, by `Store::open_deliveries`.
    Deliverer,
    /// A person, by `pons search --state` and `pons replay`.
    Person,
}

/// The state of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Durable, waits to be normalized. `fence` is the newest one of its lane's lease that was seen.
    Received {
        /// Which revision its next result will be.
        revision: u32,
        /// The newest fence of its lane.
        fence: i64,
    },
    /// Its result and its deliveries are recorded; final once they are.
    Routed {
        /// The revision of the result.
        revision: u32,
    },
    /// Accepted, and cannot be mapped as things stand.
    Quarantined {
        /// The revision of the result.
        revision: u32,
    },
    /// The sender was told to keep it.
    Rejected,
}

/// What happens to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageEvent {
    /// Its lane has a new owner.
    Leased {
        /// The new owner's token.
        fence: i64,
    },
    /// The mapping and the routing gave a result.
    Normalized {
        /// The token of the lease under which it was made.
        fence: i64,
    },
    /// The mapping gave none.
    Failed {
        /// The token of the lease under which it was tried.
        fence: i64,
    },
    /// A person wants it normalized again.
    Replay,
}

/// What has to be done about a message, in one transaction with its new state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageEffect {
    /// Write the result, the resources and every delivery; close the message.
    Record,
    /// Write why, close the message; its later ones go on, with a flag.
    Quarantine,
    /// Open it again at its original place.
    Reopen,
}

impl Message {
    /// Who moves it on; `None` for what is final or hangs on its deliveries alone.
    pub fn owner(self) -> Option<Owner> {
        match self {
            Message::Received { .. } => Some(Owner::Normalizer),
            Message::Quarantined { .. } => Some(Owner::Person),
            Message::Routed { .. } | Message::Rejected => None,
        }
    }

    /// What an event makes of it, and what is to be done.
    pub fn step(self, event: MessageEvent) -> (Message, Option<MessageEffect>) {
        match (self, event) {
            (Message::Received { revision, fence: old }, MessageEvent::Leased { fence }) => {
                (Message::Received { revision, fence: old.max(fence) }, None)
            }
            (Message::Received { revision, fence: newest }, MessageEvent::Normalized { fence })
                if fence >= newest =>
            {
                (Message::Routed { revision }, Some(MessageEffect::Record))
            }
            (Message::Received { revision, fence: newest }, MessageEvent::Failed { fence })
                if fence >= newest =>
            {
                (Message::Quarantined { revision }, Some(MessageEffect::Quarantine))
            }
            (Message::Routed { revision } | Message::Quarantined { revision }, MessageEvent::Replay) => {
                (Message::Received { revision: revision + 1, fence: 0 }, Some(MessageEffect::Reopen))
            }
            (
                state,
                MessageEvent::Leased { .. }
                | MessageEvent::Normalized { .. }
                | MessageEvent::Failed { .. }
                | MessageEvent::Replay,
            ) => (state, None),
        }
    }
}

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Waits to be published.
    Pending,
    /// The bus has it.
    Published,
    /// Being tried, under the subscription's lease. Never stored: when the lease is lost it counts as published.
    Claimed,
    /// Failed, rests before its next attempt.
    RetryWait,
    /// The destination said yes. Final.
    Delivered,
    /// Policy withheld it. Final.
    Suppressed,
    /// A dead letter, which only a person moves.
    Parked,
    /// A person left it. Final.
    Skipped,
}

impl Phase {
    /// Whether nothing can happen to it any more.
    pub fn is_final(self) -> bool {
        match self {
            Phase::Delivered | Phase::Suppressed | Phase::Skipped => true,
            Phase::Pending | Phase::Published | Phase::Claimed | Phase::RetryWait | Phase::Parked => false,
        }
    }

    /// As the store knows it.
    pub fn stored(self) -> DeliveryState {
        match self {
            Phase::Pending => DeliveryState::Pending,
            Phase::Published | Phase::Claimed => DeliveryState::Published,
            Phase::RetryWait => DeliveryState::RetryWait,
            Phase::Delivered => DeliveryState::Delivered,
            Phase::Suppressed => DeliveryState::Suppressed,
            Phase::Parked => DeliveryState::Parked,
            Phase::Skipped => DeliveryState::Skipped,
        }
    }
}

impl From<DeliveryState> for Phase {
    fn from(state: DeliveryState) -> Phase {
        match state {
            DeliveryState::Pending => Phase::Pending,
            DeliveryState::Published => Phase::Published,
            DeliveryState::RetryWait => Phase::RetryWait,
            DeliveryState::Delivered => Phase::Delivered,
            DeliveryState::Suppressed => Phase::Suppressed,
            DeliveryState::Parked => Phase::Parked,
            DeliveryState::Skipped => Phase::Skipped,
        }
    }
}

/// The state of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Where it stands.
    pub phase: Phase,
    /// How often the destination was reached and did not take it. A try that found the destination away is not counted:
    /// it says nothing about this delivery.
    pub attempts: u32,
    /// The newest fence of the subscription's lease that was seen.
    pub fence: i64,
}

/// How one attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The destination took it.
    Accepted,
    /// Refused for now.
    Again {
        /// When the destination asked to be left alone for a while.
        after: Option<Duration>,
    },
    /// The destination as a whole could not be reached. Whoever sees that others get through says [`Outcome::Again`],
    /// so that a delivery which breaks its destination's connection ends as a dead letter.
    Away {
        /// When the destination asked to be left alone for a while.
        after: Option<Duration>,
    },
    /// Refused for good.
    Never,
    /// Policy, asked again at the last moment, withholds it.
    Withheld,
}

/// What happens to a delivery.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DeliveryEvent {
    /// The subscription has a new owner.
    Leased {
        /// The new owner's token.
        fence: i64,
    },
    /// The bus confirmed it, and did not return it.
    Confirmed {
        /// The publisher's token.
        fence: i64,
    },
    /// The broker lost its queues.
    BusWiped,
    /// Its rest is over, or it came off its queue: it is tried now.
    Claim {
        /// The deliverer's token.
        fence: i64,
    },
    /// An attempt ended.
    Ended {
        /// The token under which it was tried.
        fence: i64,
        /// How.
        outcome: Outcome,
        /// A random number in `0.0..1.0`, drawn by the caller, for the jitter.
        random: f64,
    },
    /// A person wants it tried again.
    Replay,
    /// A person leaves it.
    Skip,
}

/// What has to be done about a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryEffect {
    /// Hand it to the bus.
    Publish,
    /// Try the destination; which attempt this is, from 1.
    Attempt(u32),
    /// Write the new state, with the attempt that led to it.
    Save,
    /// Write the new state when convenient: losing it only means publishing again with the same id.
    SaveLazily,
    /// Tell the bus that it is done, after the state is written.
    Settle,
    /// Leave it alone for so long, then claim it again.
    Rest(Duration),
    /// A person should know: it is a dead letter.
    Alert,
}

/// When to try again, and when to give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The longest rest after the first attempt; it doubles with each further one.
    pub base: Duration,
    /// The longest rest of all.
    pub cap: Duration,
    /// After so many refusals it is a dead letter. At least 1.
    pub attempts_max: u32,
}

impl Default for RetryPolicy {
    /// One second doubling up to five minutes, twelve attempts: some forty minutes.
    fn default() -> Self {
        RetryPolicy { base: Duration::from_secs(1), cap: Duration::from_secs(300), attempts_max: 12 }
    }
}

impl RetryPolicy {
    /// The rest after attempt `attempt` (from 1): full jitter, so that what failed together does not come back
    /// together. `random` is in `0.0..1.0`; anything else counts as the nearest of it. What the destination asked for is
    /// the least, up to the cap.
    pub fn rest(&self, attempt: u32, after: Option<Duration>, random: f64) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        let longest = self.base.saturating_mul(1 << doublings).min(self.cap);
        let random = if random.is_nan() { 1.0 } else { random.clamp(0.0, 1.0) };
        longest.mul_f64(random).max(after.unwrap_or_default()).min(self.cap)
    }
}

impl Delivery {
    /// A delivery read from the store by the holder of `fence`.
    pub fn stored(state: DeliveryState, attempts: u32, fence: i64) -> Self {
        Delivery { phase: Phase::from(state), attempts, fence }
    }

    /// Who moves it on; `None` for what is final.
    pub fn owner(self) -> Option<Owner> {
        match self.phase {
            Phase::Pending | Phase::Published | Phase::Claimed | Phase::RetryWait => Some(Owner::Deliverer),
            Phase::Parked => Some(Owner::Person),
            Phase::Delivered | Phase::Suppressed | Phase::Skipped => None,
        }
    }

    /// What an event makes of it, and what is to be done, in that order.
    pub fn step(self, event: DeliveryEvent, policy: &RetryPolicy) -> (Delivery, Vec<DeliveryEffect>) {
        use DeliveryEffect::{Attempt, Publish, Save, SaveLazily, Settle};
        let nothing = (self, Vec::new());
        if self.phase.is_final() {
            return nothing;
        }
        match event {
            DeliveryEvent::Leased { fence } if fence > self.fence => {
                // The attempt of the owner before us has lost its fence: whatever it says will not count.
                let phase = if self.phase == Phase::Claimed { Phase::Published } else { self.phase };
                (Delivery { phase, fence, ..self }, Vec::new())
            }
            DeliveryEvent::Confirmed { fence } if fence >= self.fence && self.phase == Phase::Pending => {
                (self.at(Phase::Published), vec![SaveLazily])
            }
            DeliveryEvent::BusWiped => match self.phase {
                Phase::Published => (self.at(Phase::Pending), vec![Save, Publish]),
                // A claimed one ends by its outcome; what rests or is parked is not on the bus.
                Phase::Claimed | Phase::Pending | Phase::RetryWait | Phase::Parked => nothing,
                Phase::Delivered | Phase::Suppressed | Phase::Skipped => nothing,
            },
            DeliveryEvent::Claim { fence } if fence >= self.fence => match self.phase {
                Phase::Pending | Phase::Published | Phase::RetryWait => {
                    (self.at(Phase::Claimed), vec![Attempt(self.attempts + 1)])
                }
                Phase::Claimed | Phase::Parked => nothing,
                Phase::Delivered | Phase::Suppressed | Phase::Skipped => nothing,
            },
            DeliveryEvent::Ended { fence, outcome, random }
                if fence >= self.fence && self.phase == Phase::Claimed =>
            {
                self.ended(outcome, random, policy)
            }
            DeliveryEvent::Replay if self.phase == Phase::Parked => {
                (Delivery { phase: Phase::Pending, attempts: 0, ..self }, vec![Save, Publish])
            }
            DeliveryEvent::Skip if self.phase == Phase::Parked => {
                (self.at(Phase::Skipped), vec![Save, Settle])
            }
            DeliveryEvent::Leased { .. }
            | DeliveryEvent::Confirmed { .. }
            | DeliveryEvent::Claim { .. }
            | DeliveryEvent::Ended { .. }
            | DeliveryEvent::Replay
            | DeliveryEvent::Skip => nothing,
        }
    }

    fn ended(self, outcome: Outcome, random: f64, policy: &RetryPolicy) -> (Delivery, Vec<DeliveryEffect>) {
        use DeliveryEffect::{Alert, Rest, Save, Settle};
        let tried = Delivery { attempts: self.attempts.saturating_add(1), ..self };
        match outcome {
            Outcome::Accepted => (tried.at(Phase::Delivered), vec![Save, Settle]),
            Outcome::Withheld => (self.at(Phase::Suppressed), vec![Save, Settle]),
            Outcome::Never => (tried.at(Phase::Parked), vec![Save, Settle, Alert]),
            Outcome::Again { .. } if tried.attempts >= policy.attempts_max => {
                (tried.at(Phase::Parked), vec![Save, Settle, Alert])
            }
            Outcome::Again { after } => {
                let rest = policy.rest(tried.attempts, after, random);
                (tried.at(Phase::RetryWait), vec![Save, Rest(rest)])
            }
            Outcome::Away { after } => {
                let rest = policy.rest(tried.attempts, after, random);
                (self.at(Phase::RetryWait), vec![Save, Rest(rest)])
            }
        }
    }

    fn at(self, phase: Phase) -> Delivery {
        Delivery { phase, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn outcome() -> impl Strategy<Value = Outcome> {
        let after = proptest::option::of((0u64..1000).prop_map(Duration::from_secs));
        prop_oneof![
            Just(Outcome::Accepted),
            after.clone().prop_map(|after| Outcome::Again { after }),
            after.prop_map(|after| Outcome::Away { after }),
            Just(Outcome::Never),
            Just(Outcome::Withheld),
        ]
    }

    fn delivery_event() -> impl Strategy<Value = DeliveryEvent> {
        prop_oneof![
            (0i64..4).prop_map(|fence| DeliveryEvent::Leased { fence }),
            (0i64..4).prop_map(|fence| DeliveryEvent::Confirmed { fence }),
            Just(DeliveryEvent::BusWiped),
            (0i64..4).prop_map(|fence| DeliveryEvent::Claim { fence }),
            (0i64..4, outcome(), -1.0f64..2.0).prop_map(|(fence, outcome, random)| DeliveryEvent::Ended {
                fence,
                outcome,
                random
            }),
            Just(DeliveryEvent::Replay),
            Just(DeliveryEvent::Skip),
        ]
    }

    fn delivery() -> impl Strategy<Value = Delivery> {
        let phase = proptest::sample::select(vec![
            Phase::Pending,
            Phase::Published,
            Phase::Claimed,
            Phase::RetryWait,
            Phase::Delivered,
            Phase::Suppressed,
            Phase::Parked,
            Phase::Skipped,
        ]);
        (phase, 0u32..5, 0i64..4).prop_map(|(phase, attempts, fence)| Delivery { phase, attempts, fence })
    }

    fn policy() -> RetryPolicy {
        RetryPolicy { base: Duration::from_secs(1), cap: Duration::from_secs(60), attempts_max: 3 }
    }

    fn fence_of(event: DeliveryEvent) -> Option<i64> {
        match event {
            DeliveryEvent::Leased { fence }
            | DeliveryEvent::Confirmed { fence }
            | DeliveryEvent::Claim { fence }
            | DeliveryEvent::Ended { fence, .. } => Some(fence),
            DeliveryEvent::BusWiped | DeliveryEvent::Replay | DeliveryEvent::Skip => None,
        }
    }

    proptest! {
        #[test]
        fn a_final_delivery_never_changes(state in delivery(), event in delivery_event()) {
            let (after, effects) = state.step(event, &policy());
            if state.phase.is_final() {
                prop_assert_eq!(after, state);
                prop_assert!(effects.is_empty());
            }
        }

        #[test]
        fn an_old_fence_changes_nothing(state in delivery(), event in delivery_event()) {
            let (after, effects) = state.step(event, &policy());
            if fence_of(event).is_some_and(|fence| fence < state.fence) {
                prop_assert_eq!(after, state);
                prop_assert!(effects.is_empty());
            }
            prop_assert!(after.fence >= state.fence);
        }

        #[test]
        fn exactly_what_is_not_final_has_an_owner(state in delivery(), event in delivery_event()) {
            let (after, _) = state.step(event, &policy());
            prop_assert_eq!(after.owner().is_none(), after.phase.is_final());
        }

        #[test]
        fn only_a_person_moves_a_dead_letter(state in delivery(), event in delivery_event()) {
            let (after, _) = state.step(event, &policy());
            if state.phase == Phase::Parked && after.phase != Phase::Parked {
                prop_assert!(matches!(event, DeliveryEvent::Replay | DeliveryEvent::Skip));
            }
        }

        #[test]
        fn attempts_only_grow_until_a_person_starts_afresh(state in delivery(), event in delivery_event()) {
            let (after, _) = state.step(event, &policy());
            prop_assert!(after.attempts >= state.attempts || matches!(event, DeliveryEvent::Replay));
            prop_assert!(after.attempts <= state.attempts + 1);
        }

        #[test]
        fn what_changes_in_the_store_is_saved(state in delivery(), event in delivery_event()) {
            let (after, effects) = state.step(event, &policy());
            let saved = effects.contains(&DeliveryEffect::Save) || effects.contains(&DeliveryEffect::SaveLazily);
            if after.phase.stored() != state.phase.stored() && after.phase != Phase::Claimed {
                prop_assert!(saved);
            }
            // Nothing is settled on the bus before it is written, and only what is over for the bus is settled.
            let settled = effects.iter().position(|effect| *effect == DeliveryEffect::Settle);
            if let Some(settled) = settled {
                prop_assert!(effects[..settled].contains(&DeliveryEffect::Save));
                prop_assert!(after.phase.is_final() || after.phase == Phase::Parked);
            }
        }

        #[test]
        fn from_every_open_state_an_end_is_reached(state in delivery(), random in 0.0f64..1.0) {
            let mut state = state;
            let fence = state.fence;
            for _ in 0..=policy().attempts_max {
                state = state.step(DeliveryEvent::Claim { fence }, &policy()).0;
                let refused = DeliveryEvent::Ended { fence, outcome: Outcome::Again { after: None }, random };
                state = state.step(refused, &policy()).0;
            }
            prop_assert!(state.phase == Phase::Parked || state.phase.is_final());
        }

        #[test]
        fn a_rest_stays_within_its_bounds(
            attempt in 0u32..100,
            after in proptest::option::of(0u64..1000),
            random in proptest::num::f64::ANY,
        ) {
            let policy = policy();
            let after = after.map(Duration::from_secs);
            let rest = policy.rest(attempt, after, random);
            prop_assert!(rest <= policy.cap);
            prop_assert!(rest >= after.unwrap_or_default().min(policy.cap));
        }

        #[test]
        fn a_message_keeps_its_laws(
            start in 0usize..4,
            newest in 0i64..4,
            fence in 0i64..4,
            kind in 0usize..4,
        ) {
            let revision = 2;
            let state = [
                Message::Received { revision, fence: newest },
                Message::Routed { revision },
                Message::Quarantined { revision },
                Message::Rejected,
            ][start];
            let event = [
                MessageEvent::Leased { fence },
                MessageEvent::Normalized { fence },
                MessageEvent::Failed { fence },
                MessageEvent::Replay,
            ][kind];
            let (after, effect) = state.step(event);
            if state == Message::Rejected {
                prop_assert_eq!(after, state);
            }
            if fence < newest && event != MessageEvent::Replay {
                prop_assert_eq!(after, state);
            }
            if let (Message::Quarantined { .. }, false) = (state, event == MessageEvent::Replay) {
                prop_assert_eq!(after, state, "only a person takes it out of quarantine");
            }
            if let (Message::Received { .. }, MessageEvent::Replay) = (state, event) {
                prop_assert_eq!(after, state, "an open message is normalized once, not twice");
            }
            prop_assert_eq!(effect.is_some(), std::mem::discriminant(&after) != std::mem::discriminant(&state));
        }
    }

    #[test]
    fn the_usual_way() {
        let fence = 1;
        let new = Delivery::stored(DeliveryState::Pending, 0, fence);
        let (published, effects) = new.step(DeliveryEvent::Confirmed { fence }, &policy());
        assert_eq!((published.phase, effects), (Phase::Published, vec![DeliveryEffect::SaveLazily]));
        let (claimed, effects) = published.step(DeliveryEvent::Claim { fence }, &policy());
        assert_eq!(effects, vec![DeliveryEffect::Attempt(1)]);
        let refused = DeliveryEvent::Ended { fence, outcome: Outcome::Again { after: None }, random: 0.5 };
        let (waiting, effects) = claimed.step(refused, &policy());
        assert_eq!(waiting.phase, Phase::RetryWait);
        assert_eq!(effects, [DeliveryEffect::Save, DeliveryEffect::Rest(Duration::from_millis(500))]);
        let (claimed, effects) = waiting.step(DeliveryEvent::Claim { fence }, &policy());
        assert_eq!(effects, vec![DeliveryEffect::Attempt(2)]);
        let accepted = DeliveryEvent::Ended { fence, outcome: Outcome::Accepted, random: 0.5 };
        let (delivered, effects) = claimed.step(accepted, &policy());
        assert_eq!((delivered.phase, delivered.attempts), (Phase::Delivered, 2));
        assert_eq!(effects, [DeliveryEffect::Save, DeliveryEffect::Settle]);
    }

    #[test]
    fn a_destination_that_is_away_for_long_makes_no_dead_letters() {
        let fence = 1;
        let mut state = Delivery::stored(DeliveryState::Published, 0, fence);
        for _ in 0..100 {
            state = state.step(DeliveryEvent::Claim { fence }, &policy()).0;
            let away = DeliveryEvent::Ended { fence, outcome: Outcome::Away { after: None }, random: 0.9 };
            state = state.step(away, &policy()).0;
        }
        assert_eq!(state.phase, Phase::RetryWait);
    }
}
