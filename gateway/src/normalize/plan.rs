//! Which open messages may be normalized now: each that is the lowest in sequence on all its keys.
//!
//! One worker records its batches one after another, in sequence, so messages of one patient may share a batch. What holds a
//! message back is only another worker: an earlier message that is homed on its lanes (a merge over two patients).

use schemas::message::{LaneSet, OrderKey, Seq};
use std::collections::{HashMap, HashSet};

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

/// Plans over `open`, which is in sequence. `lanes` are ours; `cleared` are those of `ask` that the store has cleared.
pub fn plan<M: Keyed>(open: &[M], lanes: LaneSet, cleared: &HashSet<Seq>) -> Plan {
    let mut plan = Plan::default();
    let mut held: HashSet<OrderKey> = HashSet::new();
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

/// Deals messages into columns that share no key, so that they can be recorded side by side; each column stays in sequence.
/// `least` is how many messages a column is worth.
pub fn columns<M: Keyed>(messages: Vec<M>, most: usize, least: usize) -> Vec<Vec<M>> {
    let wanted = most.min(messages.len() / least.max(1)).max(1);
    if wanted == 1 {
        return vec![messages];
    }
    // Each key leads to the first message of its group; a message with several keys joins their groups.
    let mut group: Vec<usize> = (0..messages.len()).collect();
    fn first(group: &mut [usize], mut at: usize) -> usize {
        while group[at] != at {
            group[at] = group[group[at]];
            at = group[at];
        }
        at
    }
    let mut of_key: HashMap<OrderKey, usize> = HashMap::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        for key in message.keys() {
            let known = *of_key.entry(*key).or_insert(index);
            let (a, b) = (first(&mut group, known), first(&mut group, index));
            group[a.max(b)] = a.min(b);
        }
    }
    let mut size = vec![0_usize; messages.len()];
    for index in 0..messages.len() {
        size[first(&mut group, index)] += 1;
    }
    let mut columns: Vec<Vec<M>> = (0..wanted).map(|_| Vec::new()).collect();
    let mut load = vec![0_usize; wanted];
    let mut column_of: Vec<Option<usize>> = vec![None; messages.len()];
    for (index, message) in messages.into_iter().enumerate() {
        let group = first(&mut group, index);
        let column = *column_of[group].get_or_insert_with(|| {
            let lightest = (0..wanted).min_by_key(|column| load[*column]).unwrap_or_default();
            load[lightest] += size[group];
            lightest
        });
        columns[column].push(message);
    }
    columns
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
        let plan = plan(&open, LaneSet::ALL, &HashSet::new());
        assert_eq!(plan, Plan { go: vec![0, 1, 2], ..Plan::default() });
    }

    #[test]
    fn a_merge_homed_elsewhere_holds_back_both_its_patients_and_nobody_else() {
        let open = [
            Open(1, vec![on(0, 1)]),
            Open(2, vec![on(5, 2), on(0, 1)]),
            Open(3, vec![on(0, 1)]),
            Open(4, vec![on(0, 9)]),
        ];
        let plan = plan(&open, lanes(&[0]), &HashSet::new());
        assert_eq!(plan, Plan { go: vec![0, 3], ask: vec![], foreign: vec![1] });
    }

    #[test]
    fn our_merge_over_a_lane_of_another_is_asked_about_first() {
        let open = [Open(1, vec![on(0, 1), on(5, 2)]), Open(2, vec![on(0, 1)])];
        assert_eq!(plan(&open, lanes(&[0]), &HashSet::new()), Plan { ask: vec![0], ..Plan::default() });
        let cleared = HashSet::from([Seq(1)]);
        assert_eq!(plan(&open, lanes(&[0]), &cleared), Plan { go: vec![0, 1], ..Plan::default() });
    }

    proptest! {
        #[test]
        fn nothing_overtakes_on_any_of_its_keys(
            messages in proptest::collection::vec(proptest::collection::vec((0i64..4, 0i64..3), 1..4), 0..30),
            ours in 0i64..16,
        ) {
            let open: Vec<Open> = messages
                .iter()
                .enumerate()
                .map(|(n, keys)| Open(n as i64, keys.iter().map(|(lane, patient)| on(*lane, *patient)).collect()))
                .collect();
            let plan = plan(&open, LaneSet(ours), &HashSet::new());
            for went in &plan.go {
                for earlier in (0..*went).filter(|index| !plan.go.contains(index)) {
                    let shared = open[earlier].1.iter().any(|key| open[*went].1.contains(key));
                    prop_assert!(!shared, "message {} overtook {}", went, earlier);
                }
            }
            prop_assert!(plan.go.is_sorted());
            let all = plan.go.len() + plan.ask.len() + plan.foreign.len();
            prop_assert!(all <= open.len());
            if ours == 15 {
                prop_assert_eq!(plan.go.len(), open.len(), "lanes 0 to 3 are all there are here");
            }
        }
    }

    #[test]
    fn messages_that_share_a_patient_stay_in_one_column() {
        let open: Vec<Open> = (0..40).map(|n| Open(n, vec![on(0, n % 8)])).collect();
        let columns = columns(open, 2, 10);
        assert_eq!(columns.iter().map(Vec::len).collect::<Vec<_>>(), [20, 20]);
    }

    #[test]
    fn few_messages_are_one_column() {
        let open: Vec<Open> = (0..19).map(|n| Open(n, vec![on(0, n)])).collect();
        assert_eq!(columns(open, 2, 10).len(), 1);
        assert_eq!(columns(Vec::<Open>::new(), 2, 10).len(), 1);
    }

    proptest! {
        #[test]
        fn columns_share_no_key_and_keep_the_sequence(
            keys in prop::collection::vec(prop::collection::vec((0_i64..4, 0_i64..6), 0..3), 0..60),
            most in 1_usize..5,
        ) {
            let open: Vec<Open> = keys
                .iter()
                .enumerate()
                .map(|(n, keys)| Open(n as i64, keys.iter().map(|(lane, patient)| on(*lane, *patient)).collect()))
                .collect();
            let columns = columns(open, most, 1);
            prop_assert_eq!(columns.iter().map(Vec::len).sum::<usize>(), keys.len());
            prop_assert!(columns.len() <= most);
            let mut seen: HashMap<OrderKey, usize> = HashMap::new();
            for (number, column) in columns.iter().enumerate() {
                prop_assert!(column.is_sorted_by_key(|message| message.0));
                for key in column.iter().flat_map(|message| &message.1) {
                    prop_assert_eq!(*seen.entry(*key).or_insert(number), number);
                }
            }
        }
    }
}
