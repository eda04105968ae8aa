//! The judge of a run: compares what the sender was told, what the subscribers saw and what the store says.
//!
//! Once a sender has its acknowledgement, the message reaches every subscriber that is entitled to it at least once, in
//! order per patient, each duplicate under the same delivery id; and the store's books are even. Anything else is a
//! [`Finding`].

use crate::generate::{Kind, Marker, Run};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

/// What a sender knows about one message.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Which.
    pub marker: Marker,
    /// Its kind.
    pub kind: Kind,
    /// When its first attempt began.
    pub began: Instant,
    /// How often it was put on the wire.
    pub attempts: u32,
    /// How long the last attempt waited for its positive acknowledgement; `None` if there never was one.
    pub acknowledged: Option<Duration>,
}

/// What a subscriber saw once and answered positively, in the order in which it came.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Which message it was about; `None` if the content bore no marker.
    pub marker: Option<Marker>,
    /// The delivery id that it came under; empty if it bore none.
    pub delivery: String,
    /// The event number, if it bore one.
    pub number: Option<u64>,
}

impl Arrival {
    /// What a body tells.
    pub fn of(run: &Run, body: &[u8], delivery: String) -> Arrival {
        Arrival { marker: run.newest(body), delivery, number: number(body) }
    }

    /// What a body tells, if it is not a handshake or a heartbeat.
    pub fn of_event(run: &Run, body: &[u8], delivery: String) -> Option<Arrival> {
        let says =
            |kind: &str| memchr::memmem::find(body, format!("\"valueCode\":\"{kind}\"").as_bytes()).is_some();
        (!says("handshake") && !says("heartbeat")).then(|| Arrival::of(run, body, delivery))
    }
}

/// The event number in a notification.
fn number(body: &[u8]) -> Option<u64> {
    let start = b"\"name\":\"event-number\",\"valueString\":\"";
    let rest = &body[memchr::memmem::find(body, start)? + start.len()..];
    let end = rest.iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}

/// A subscriber's log.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The subscription's name.
    pub subscription: String,
    /// The topics that it is entitled to.
    pub topics: Vec<String>,
    /// Everything that it answered positively.
    pub arrivals: Vec<Arrival>,
}

/// What the store says.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Every message of the run in the store, with the state of the message in a word. One entry per row.
    pub messages: Vec<(Marker, String)>,
    /// How many deliveries of a message are given up, withheld or passed over: so many subscribers need not have seen it.
    pub excused: BTreeMap<Marker, i64>,
    /// Deliveries that are not final: count by state.
    pub open: BTreeMap<String, i64>,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// Acknowledged, and never seen by a subscriber that is entitled to it.
    Lost(String, Marker),
    /// First seen after a later message of the same patient.
    OutOfOrder(String, Marker, Marker),
    /// Seen again under another delivery id.
    Unmarked(String, Marker),
    /// One delivery id for two messages.
    SharedId(String, Marker, Marker),
    /// Seen without a delivery id or without a marker.
    Nameless(String),
    /// Seen by a subscriber that is not entitled to its topic, or never sent.
    Uninvited(String, Marker),
    /// An event number of which there are two deliveries, or none.
    Misnumbered(String, u64),
    /// Acknowledged, and not in the store.
    NotStored(Marker),
    /// Twice in the store.
    StoredTwice(Marker),
    /// In a state that a healthy run does not end in.
    Unfinished(Marker, String),
    /// Deliveries left in a state that is not final.
    Open(String, i64),
}

impl Finding {
    /// Which of the kinds of [`Verdict::counts`] it is.
    fn kind(&self) -> usize {
        match self {
            Finding::Lost(..) => 0,
            Finding::OutOfOrder(..) => 1,
            Finding::Unmarked(..) | Finding::SharedId(..) | Finding::Nameless(..) => 2,
            Finding::Misnumbered(..) => 4,
            Finding::Uninvited(..)
            | Finding::NotStored(..)
            | Finding::StoredTwice(..)
            | Finding::Unfinished(..)
            | Finding::Open(..) => 3,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |marker: &Marker| format!("patient {} message {}", marker.patient, marker.sequence);
        match self {
            Finding::Lost(who, marker) => write!(f, "lost: {} never reached {who}", at(marker)),
            Finding::OutOfOrder(who, marker, later) => {
                write!(f, "out of order: {who} saw {} only after {}", at(marker), at(later))
            }
            Finding::Unmarked(who, marker) => {
                write!(f, "unmarked duplicate: {who} saw {} under two delivery ids", at(marker))
            }
            Finding::SharedId(who, one, other) => {
                write!(f, "shared id: {who} saw {} and {} under one delivery id", at(one), at(other))
            }
            Finding::Nameless(who) => {
                write!(f, "nameless: {who} saw something without delivery id or marker")
            }
            Finding::Uninvited(who, marker) => write!(f, "uninvited: {who} saw {}", at(marker)),
            Finding::Misnumbered(who, number) => {
                write!(f, "misnumbered: event {number} of {who} is not one delivery")
            }
            Finding::NotStored(marker) => {
                write!(f, "unaccounted: {} was acknowledged and is not stored", at(marker))
            }
            Finding::StoredTwice(marker) => write!(f, "unaccounted: {} is stored twice", at(marker)),
            Finding::Unfinished(marker, state) => write!(f, "unaccounted: {} is {state}", at(marker)),
            Finding::Open(state, count) => write!(f, "unaccounted: {count} deliveries are {state}"),
        }
    }
}

/// How many kinds of findings there are.
const KINDS: usize = 5;
/// How many findings of a kind a report shows.
const SHOWN_MAX: usize = 12;

/// The verdict on a run.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// What must not be, sorted.
    pub findings: Vec<Finding>,
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// First arrivals, over all subscribers.
    pub delivered: u64,
    /// Arrivals beyond the first, under the same delivery id.
    pub duplicates: u64,
}

impl Verdict {
    /// How many findings of each of the kinds that a run is judged by.
    pub fn counts(&self) -> [(&'static str, usize); KINDS] {
        let mut counts = [
            ("lost", 0),
            ("out of order", 0),
            ("unmarked duplicates", 0),
            ("unaccounted", 0),
            ("misnumbered", 0),
        ];
        for finding in &self.findings {
            counts[finding.kind()].1 += 1;
        }
        counts
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} acknowledged, {} delivered, {} duplicates",
            self.acknowledged, self.delivered, self.duplicates
        )?;
        for (what, count) in self.counts() {
            write!(f, ", {count} {what}")?;
        }
        // Some of each kind: what the store says of the rest tells why so many of one kind are missing.
        for kind in 0..KINDS {
            let of_kind: Vec<_> = self.findings.iter().filter(|finding| finding.kind() == kind).collect();
            for finding in of_kind.iter().take(SHOWN_MAX) {
                write!(f, "\n  {finding}")?;
            }
            if of_kind.len() > SHOWN_MAX {
                write!(f, "\n  and {} more like that", of_kind.len() - SHOWN_MAX)?;
            }
        }
        Ok(())
    }
}

/// Judges a run that has come to rest. Without an account of the store only the two logs are compared.
pub fn check(sent: &[Sent], seen: &[Seen], account: Option<&Account>) -> Verdict {
    let mut verdict = Verdict::default();
    let by_marker: HashMap<Marker, &Sent> = sent.iter().map(|sent| (sent.marker, sent)).collect();
    verdict.acknowledged = sent.iter().filter(|sent| sent.acknowledged.is_some()).count() as u64;
    let mut excused = account.map(|account| account.excused.clone()).unwrap_or_default();
    for subscriber in seen {
        check_subscriber(subscriber, &by_marker, &mut excused, &mut verdict);
    }
    if let Some(account) = account {
        check_store(account, sent, &mut verdict);
    }
    verdict.findings.sort();
    verdict
}

fn check_subscriber(
    subscriber: &Seen,
    sent: &HashMap<Marker, &Sent>,
    excused: &mut BTreeMap<Marker, i64>,
    verdict: &mut Verdict,
) {
    let who = &subscriber.subscription;
    let entitled =
        |kind: Kind| kind.topic().is_some_and(|topic| subscriber.topics.iter().any(|listed| listed == topic));
    let mut ids: HashMap<Marker, &str> = HashMap::new();
    let mut of_id: HashMap<&str, Marker> = HashMap::new();
    let mut newest: HashMap<u32, Marker> = HashMap::new();
    for arrival in &subscriber.arrivals {
        let (Some(marker), false) = (arrival.marker, arrival.delivery.is_empty()) else {
            verdict.findings.push(Finding::Nameless(who.clone()));
            continue;
        };
        if !sent.get(&marker).is_some_and(|sent| entitled(sent.kind)) {
            verdict.findings.push(Finding::Uninvited(who.clone(), marker));
        }
        let owner = *of_id.entry(&arrival.delivery).or_insert(marker);
        if owner != marker {
            verdict.findings.push(Finding::SharedId(who.clone(), owner, marker));
        }
        if let Some(first) = ids.get(&marker) {
            if *first == arrival.delivery {
                verdict.duplicates += 1;
            } else {
                verdict.findings.push(Finding::Unmarked(who.clone(), marker));
            }
            continue;
        }
        ids.insert(marker, &arrival.delivery);
        verdict.delivered += 1;
        match newest.get(&marker.patient) {
            Some(later) if later.sequence > marker.sequence => {
                verdict.findings.push(Finding::OutOfOrder(who.clone(), marker, *later));
            }
            _ => {
                newest.insert(marker.patient, marker);
            }
        }
    }
    check_numbers(subscriber, verdict);
    for (marker, sent) in sent {
        let owed = sent.acknowledged.is_some() && entitled(sent.kind);
        if !owed || ids.contains_key(marker) {
            continue;
        }
        match excused.get_mut(marker) {
            Some(left) if *left > 0 => *left -= 1,
            _ => verdict.findings.push(Finding::Lost(who.clone(), *marker)),
        }
    }
}

/// Each event number from the first to the last belongs to one delivery, and each delivery has one.
fn check_numbers(subscriber: &Seen, verdict: &mut Verdict) {
    let numbered = subscriber.arrivals.iter().filter_map(|one| Some((one.number?, one.delivery.as_str())));
    let all: BTreeSet<(u64, &str)> = numbered.collect();
    let deliveries: BTreeSet<&str> = all.iter().map(|(_, delivery)| *delivery).collect();
    let numbers: BTreeSet<u64> = all.iter().map(|(number, _)| *number).collect();
    let last = numbers.last().copied().unwrap_or_default();
    let mut wrong: BTreeSet<u64> = (1..=last).filter(|number| !numbers.contains(number)).collect();
    if numbers.len() != all.len() || deliveries.len() != all.len() {
        let twice = |of: &dyn Fn(&(u64, &str)) -> bool| all.iter().filter(|one| of(one)).count() > 1;
        let is_wrong = |(number, delivery): &(u64, &str)| {
            twice(&|one| one.0 == *number) || twice(&|one| one.1 == *delivery)
        };
        wrong.extend(all.iter().filter(|one| is_wrong(one)).map(|(number, _)| *number));
    }
    let who = &subscriber.subscription;
    verdict.findings.extend(wrong.into_iter().map(|number| Finding::Misnumbered(who.clone(), number)));
}

fn check_store(account: &Account, sent: &[Sent], verdict: &mut Verdict) {
    let mut stored = BTreeSet::new();
    for (marker, state) in &account.messages {
        if !stored.insert(*marker) {
            verdict.findings.push(Finding::StoredTwice(*marker));
        }
        if state != "routed" {
            verdict.findings.push(Finding::Unfinished(*marker, state.clone()));
        }
    }
    for sent in sent {
        if sent.acknowledged.is_some() && !stored.contains(&sent.marker) {
            verdict.findings.push(Finding::NotStored(sent.marker));
        }
    }
    for (state, count) in account.open.iter().filter(|(_, count)| **count > 0) {
        verdict.findings.push(Finding::Open(state.clone(), *count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "a";

    fn marker(patient: u32, sequence: u32) -> Marker {
        Marker { patient, sequence }
    }

    /// Two patients, three admissions each, all acknowledged, seen once and in order, stored and routed.
    fn good() -> (Vec<Sent>, Seen, Account) {
        let markers: Vec<Marker> = (1..=3).flat_map(|n| [marker(0, n), marker(1, n)]).collect();
        let sent = markers
            .iter()
            .map(|marker| Sent {
                marker: *marker,
                kind: Kind::Admit,
                began: Instant::now(),
                attempts: 1,
                acknowledged: Some(Duration::ZERO),
            })
            .collect();
        let arrivals = markers
            .iter()
            .map(|marker| Arrival {
                marker: Some(*marker),
                delivery: format!("d{}-{}", marker.patient, marker.sequence),
                number: None,
            })
            .collect();
        let seen = Seen { subscription: A.into(), topics: vec!["encounter-start".into()], arrivals };
        let messages = markers.iter().map(|marker| (*marker, "routed".to_owned())).collect();
        (sent, seen, Account { messages, ..Account::default() })
    }

    /// Plants a fault into a good run and answers what the checker finds.
    fn planted(fault: impl FnOnce(&mut Vec<Sent>, &mut Seen, &mut Account)) -> Vec<Finding> {
        let (mut sent, mut seen, mut account) = good();
        fault(&mut sent, &mut seen, &mut account);
        check(&sent, &[seen], Some(&account)).findings
    }

    #[test]
    fn a_good_run_has_no_findings() {
        let (sent, seen, account) = good();
        let verdict = check(&sent, &[seen], Some(&account));
        assert_eq!(verdict.findings, []);
        assert_eq!((verdict.acknowledged, verdict.delivered, verdict.duplicates), (6, 6, 0));
    }

    #[test]
    fn a_message_that_never_arrived_is_lost() {
        let lost = planted(|_, seen, _| {
            seen.arrivals.remove(2);
        });
        assert_eq!(lost, [Finding::Lost(A.into(), marker(0, 2))]);
    }

    #[test]
    fn what_was_never_acknowledged_may_be_missing_or_not() {
        assert_eq!(
            planted(|sent, seen, _| {
                sent[2].acknowledged = None;
                seen.arrivals.remove(2);
            }),
            []
        );
        assert_eq!(planted(|sent, _, _| sent[2].acknowledged = None), []);
    }

    #[test]
    fn a_parked_delivery_is_no_loss() {
        let excused = planted(|_, seen, account| {
            seen.arrivals.remove(2);
            account.excused.insert(marker(0, 2), 1);
        });
        assert_eq!(excused, []);
    }

    #[test]
    fn a_late_first_arrival_is_out_of_order() {
        let swapped = planted(|_, seen, _| seen.arrivals.swap(0, 2));
        assert_eq!(swapped, [Finding::OutOfOrder(A.into(), marker(0, 1), marker(0, 2))]);
        assert_eq!(
            planted(|_, seen, _| seen.arrivals.swap(0, 1)),
            [],
            "two patients have no order between them"
        );
    }

    #[test]
    fn a_duplicate_is_fine_under_the_same_delivery_id_only() {
        let (sent, mut seen, account) = good();
        let again = seen.arrivals[0].clone();
        seen.arrivals.push(again);
        let verdict = check(&sent, &[seen], Some(&account));
        assert_eq!((verdict.findings.len(), verdict.duplicates), (0, 1));
        let renamed = planted(|_, seen, _| {
            let mut again = seen.arrivals[0].clone();
            again.delivery = "other".into();
            seen.arrivals.push(again);
        });
        assert_eq!(renamed, [Finding::Unmarked(A.into(), marker(0, 1))]);
    }

    #[test]
    fn a_delivery_id_belongs_to_one_message() {
        let shared = planted(|_, seen, _| seen.arrivals[1].delivery = seen.arrivals[0].delivery.clone());
        assert_eq!(shared, [Finding::SharedId(A.into(), marker(0, 1), marker(1, 1))]);
    }

    #[test]
    fn event_numbers_are_dense_and_each_is_one_delivery() {
        let numbered = |numbers: [u64; 6]| {
            planted(|_, seen, _| {
                for (arrival, number) in seen.arrivals.iter_mut().zip(numbers) {
                    arrival.number = Some(number);
                }
            })
        };
        let wrong = |numbers: &[u64]| -> Vec<Finding> {
            numbers.iter().map(|number| Finding::Misnumbered(A.into(), *number)).collect()
        };
        assert_eq!(numbered([1, 2, 3, 4, 5, 6]), []);
        assert_eq!(numbered([2, 1, 3, 4, 6, 5]), [], "in order per patient is enough");
        assert_eq!(numbered([1, 2, 4, 5, 6, 7]), wrong(&[3]));
        assert_eq!(numbered([1, 2, 3, 3, 4, 5]), wrong(&[3]));
        let two = planted(|_, seen, _| {
            let again = Arrival { number: Some(2), ..seen.arrivals[0].clone() };
            seen.arrivals[0].number = Some(1);
            seen.arrivals.push(again);
        });
        assert_eq!(two, wrong(&[1, 2]), "one delivery under two numbers");
        let run = Run::new(1);
        let body = br#"{"part":[{"name":"event-number","valueString":"42"}]}"#;
        assert_eq!(Arrival::of(&run, body, String::new()).number, Some(42));
        assert!(
            Arrival::of_event(&run, br#"{"name":"type","valueCode":"handshake"}"#, String::new()).is_none()
        );
    }

    #[test]
    fn an_arrival_needs_an_id_and_a_marker() {
        let nameless = |fault: fn(&mut Arrival)| planted(|_, seen, _| fault(&mut seen.arrivals[5]));
        assert!(nameless(|arrival| arrival.delivery.clear()).contains(&Finding::Nameless(A.into())));
        assert!(nameless(|arrival| arrival.marker = None).contains(&Finding::Nameless(A.into())));
    }

    #[test]
    fn nobody_sees_what_was_not_sent_or_is_not_theirs() {
        let invented = planted(|_, seen, _| {
            seen.arrivals.push(Arrival { marker: Some(marker(9, 1)), delivery: "d".into(), number: None });
        });
        assert_eq!(invented, [Finding::Uninvited(A.into(), marker(9, 1))]);
        let foreign = planted(|sent, _, _| sent[0].kind = Kind::Result);
        assert_eq!(foreign, [Finding::Uninvited(A.into(), marker(0, 1))]);
    }

    #[test]
    fn the_store_must_hold_each_acknowledged_message_once_and_finished() {
        assert_eq!(
            planted(|_, _, account| {
                account.messages.remove(0);
            }),
            [Finding::NotStored(marker(0, 1))]
        );
        assert_eq!(
            planted(|_, _, account| {
                let row = account.messages[0].clone();
                account.messages.push(row);
            }),
            [Finding::StoredTwice(marker(0, 1))]
        );
        assert_eq!(
            planted(|_, _, account| account.messages[0].1 = "received".into()),
            [Finding::Unfinished(marker(0, 1), "received".into())]
        );
        assert_eq!(
            planted(|_, _, account| {
                account.open.insert("pending".into(), 2);
            }),
            [Finding::Open("pending".into(), 2)]
        );
    }

    #[test]
    fn every_finding_counts_in_one_of_the_kinds() {
        let (sent, mut seen, mut account) = good();
        seen.arrivals.swap(0, 2);
        seen.arrivals.pop();
        seen.arrivals.push(Arrival { marker: Some(marker(0, 1)), delivery: "other".into(), number: Some(2) });
        account.open.insert("retry_wait".into(), 1);
        let verdict = check(&sent, &[seen], Some(&account));
        assert_eq!(verdict.counts().map(|(_, count)| count), [1; KINDS], "{verdict}");
    }
}
