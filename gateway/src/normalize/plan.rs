//! Which open messages may be normalized now: each that is the lowest in sequence on all its keys.
//!
//! A batch is recorded in sequence, so messages of one patient may share one. What holds a message back is an earlier one on its
//! keys that is under way in another batch, or homed on the lanes of another worker (a merge over two patients).

use schemas::message::{LaneSet, OrderKey, Seq};
use std::collections::HashSet;

/// What the plan looks at of an open message.
pub trait Keyed {
    /// Its place in the order.
    fn seq(&self) -> Seq;
    /// Its order keys, the home first.
    fn keys(&self) -> &[OrderKey];
}

/// What to do with the open messages, as indexes into them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// May go now, in sequence.
    pub go: Vec<usize>,
    /// Ours, but on lanes of others too: may go once the store knows of no earlier message on its keys.
    pub ask: Vec<usize>,
    /// Homed on another worker: the later ones on its keys wait until the store says it is done.
    pub foreign: Vec<usize>,
}

/// Plans over `open`, which is in sequence. `lanes` are ours; `busy` are the keys of messages that went and are not recorded yet;
/// `cleared` are those of `ask` that the store has cleared.
pub fn plan<M: Keyed>(open: &[M], lanes: LaneSet, busy: &HashSet<OrderKey>, cleared: &HashSet<Seq>) -> Plan {
    let mut plan = Plan::default();
    let mut held = busy.clone();
    for (index, message) in open.iter().enumerate() {
        let keys = message.keys();
        let home = keys.first().copied().map_or(LaneSet::default(), |key| LaneSet::of(&[key]));
        let blocked = keys.iter().any(|key| held.contains(key));
        if !lanes.contains(home) {
            plan.foreign.push(index);
        } else if blocked {
            // Neither goes nor is asked about: what it waits for comes first.
        } else if lanes.contains(LaneSet::of(keys)) || cleared.contains(&message.seq()) {
            plan.go.push(index);
            continue;
        } else {
            plan.ask.push(index);
        }
        held.extend(keys);
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    struct Open(i64, Vec<OrderKey>);

    impl Keyed for Open {
        fn seq(&self) -> Seq {
            Seq(self.0)
        }
        fn keys(&self) -> &[OrderKey] {
            &self.1
        }
    }

    /// A key that lies on a lane.
    fn on(lane: i64, patient: i64) -> OrderKey {
        OrderKey(lane + patient * i64::from(schemas::message::LANES))
    }

    fn lanes(list: &[i64]) -> LaneSet {
        LaneSet(list.iter().fold(0, |set, lane| set | 1 << lane))
    }

    #[test]
    fn everything_goes_when_every_lane_is_ours() {
        let open = [Open(1, vec![on(0, 1)]), Open(2, vec![on(0, 1), on(5, 2)]), Open(3, vec![on(5, 2)])];
        let plan = plan(&open, LaneSet::ALL, &HashSet::new(), &HashSet::new());
        assert_eq!(plan, Plan { go: vec![0, 1, 2], ..Plan::default() });
    }

    #[test]
    fn what_is_under_way_holds_back_its_patients_and_whoever_waits_for_them() {
        let open = [
            Open(2, vec![on(0, 1)]),
            Open(3, vec![on(5, 2), on(0, 1)]),
            Open(4, vec![on(5, 2)]),
            Open(5, vec![on(0, 9)]),
        ];
        let plan = plan(&open, LaneSet::ALL, &HashSet::from([on(0, 1)]), &HashSet::new());
        assert_eq!(plan, Plan { go: vec![3], ..Plan::default() });
    }

    #[test]
    fn a_merge_homed_elsewhere_holds_back_both_its_patients_and_nobody_else() {
        let open = [
            Open(1, vec![on(0, 1)]),
            Open(2, vec![on(5, 2), on(0, 1)]),
            Open(3, vec![on(0, 1)]),
            Open(4, vec![on(0, 9)]),
        ];
        let plan = plan(&open, lanes(&[0]), &HashSet::new(), &HashSet::new());
        assert_eq!(plan, Plan { go: vec![0, 3], ask: vec![], foreign: vec![1] });
    }

    #[test]
    fn our_merge_over_a_lane_of_another_is_asked_about_first() {
        let open = [Open(1, vec![on(0, 1), on(5, 2)]), Open(2, vec![on(0, 1)])];
        let idle = HashSet::new();
        let asked = plan(&open, lanes(&[0]), &idle, &HashSet::new());
        assert_eq!(asked, Plan { ask: vec![0], ..Plan::default() });
        let cleared = HashSet::from([Seq(1)]);
        assert_eq!(plan(&open, lanes(&[0]), &idle, &cleared), Plan { go: vec![0, 1], ..Plan::default() });
    }

    proptest! {
        #[test]
        fn nothing_overtakes_on_any_of_its_keys(
            messages in proptest::collection::vec(proptest::collection::vec((0i64..4, 0i64..3), 1..4), 0..30),
            ours in 0i64..16,
            busy in proptest::collection::hash_set((0i64..4, 0i64..3), 0..3),
        ) {
            let busy: HashSet<OrderKey> = busy.into_iter().map(|(lane, patient)| on(lane, patient)).collect();
            let open: Vec<Open> = messages
                .iter()
                .enumerate()
                .map(|(n, keys)| Open(n as i64, keys.iter().map(|(lane, patient)| on(*lane, *patient)).collect()))
                .collect();
            let plan = plan(&open, LaneSet(ours), &busy, &HashSet::new());
            for went in &plan.go {
                let under_way = open[*went].1.iter().any(|key| busy.contains(key));
                prop_assert!(!under_way, "message {} overtook a batch under way", went);
                for earlier in (0..*went).filter(|index| !plan.go.contains(index)) {
                    let shared = open[earlier].1.iter().any(|key| open[*went].1.contains(key));
                    prop_assert!(!shared, "message {} overtook {}", went, earlier);
                }
            }
            prop_assert!(plan.go.is_sorted());
            let all = plan.go.len() + plan.ask.len() + plan.foreign.len();
            prop_assert!(all <= open.len());
            if ours == 15 && busy.is_empty() {
                prop_assert_eq!(plan.go.len(), open.len(), "lanes 0 to 3 are all there are here");
            }
        }
    }
}
