//! What a subscription's deliverer holds in memory, and what may happen to it next: the rules of `deliver` without I/O.
//!
//! Invariants: the first deliveries of a key go out in the order of their event numbers, one at a time; entries are
//! bounded in number, contents in bytes; what is forgotten here is found again in the store.

use super::circuit::Circuit;
use super::feed::Ahead;
use super::{Counters, OnParked, Routed, Settings};
use crate::bus::{BusError, Envelope, Taken, Ticket};
use crate::lifecycle::{Delivery, DeliveryEffect, DeliveryEvent, Outcome, Phase};
use crate::route::notification::Notifies;
use crate::route::publish::{Event, Told, envelope};
use crate::store::{Attempt, Content, DeadLetter, DeliveryChange, DeliveryState, Matched, OpenDelivery};
use bytes::Bytes;
use jiff::Timestamp;
use schemas::message::{DeliveryId, MessageId, OrderKey};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Everything a deliverer knows about the open deliveries that it works on.
pub(super) struct Window {
    settings: Settings,
    counters: Arc<Counters>,
    names: Names,
    needs_original: bool,
    fence: i64,
    /// By event number.
    entries: BTreeMap<i64, Entry>,
    numbers: HashMap<DeliveryId, i64>,
    keys: HashMap<OrderKey, Line>,
    /// Dead letters of each key by event number, as far as known.
    parked: HashMap<OrderKey, BTreeMap<i64, Instant>>,
    /// Everything open up to this number has been seen.
    cursor: i64,
    /// Routed ones beyond the cursor, until those between are read.
    ahead: Ahead,
    unpublished: BTreeSet<i64>,
    /// The first of their keys, at hand, nothing of their key in flight.
    startable: BTreeSet<i64>,
    resting: BTreeSet<(Instant, i64)>,
    /// Their content has to be read from the store.
    wanting: BTreeSet<i64>,
    /// On the bus by its word, oldest first; to be marked in the store if they stay long.
    confirmed: VecDeque<(Instant, i64)>,
    /// Their beginning is written: they may be tried.
    begun: Vec<i64>,
    in_flight: usize,
    content_bytes: usize,
    circuit: Circuit,
    /// How often the destination has answered: whoever finds it away while others get through is refused himself.
    answers: u64,
    changes: Vec<Change>,
    /// To be settled now: nothing has to be written first.
    settle: Vec<Ticket>,
    /// Ended here, and perhaps still open in what is being read from the store.
    ended: HashSet<DeliveryId>,
    /// Of those, written: forgotten once no reading from before is under way.
    forgettable: Vec<DeliveryId>,
}

/// The names that go into every event.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) installation: Arc<str>,
    pub(super) subscription: Arc<str>,
    /// How its notifications are written; `None` if it gets whole messages.
    pub(super) notifies: Option<Notifies>,
}

struct Entry {
    id: DeliveryId,
    message: MessageId,
    revision: u32,
    key: OrderKey,
    matched: Matched,
    machine: Delivery,
    place: Place,
    /// To make the event from; dropped once the bus has it.
    content: Option<Content>,
    /// The event as it came off the bus; not kept when memory is short, then made from the content.
    event: Option<Bytes>,
    original: Option<Bytes>,
    traceparent: Option<String>,
    ticket: Option<(Ticket, Instant)>,
    /// Whether the store knows that it is published.
    marked: bool,
    /// Was open before this deliverer came: the one before may have died of it.
    suspect: bool,
    /// How often in a row it found the destination away.
    aways: u32,
    /// What [`Window::answers`] was when it last found the destination away, or when its first attempt began.
    answers: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Has to be published.
    Unpublished,
    /// The bus has not confirmed it yet.
    Publishing,
    /// The bus has it; since then it should come.
    OnBus { since: Instant },
    /// At hand.
    Ready,
    /// Rests until then.
    Resting { until: Instant },
    /// That it begins is being written.
    Beginning,
    /// Being tried.
    Attempting,
}

/// The deliveries of one key.
#[derive(Default)]
struct Line {
    numbers: BTreeSet<i64>,
    /// Whether one is in flight.
    busy: bool,
    startable: Option<i64>,
}

struct Change {
    change: DeliveryChange,
    ticket: Option<Ticket>,
    after: AfterCommit,
}

enum AfterCommit {
    Nothing,
    Forget(DeliveryId),
    Begin(i64),
}

/// A batch to write, and what it allows once it is written.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) changes: Vec<DeliveryChange>,
    tickets: Vec<Ticket>,
    forget: Vec<DeliveryId>,
    begin: Vec<i64>,
}

impl Batch {
    /// Whether nothing waits for it and few outcomes are in it, so that the next ones may gather.
    pub(super) fn is_small(&self, below: usize) -> bool {
        self.changes.len() < below && self.begin.is_empty()
    }
}

/// A delivery to try.
pub(super) struct ToTry {
    pub(super) number: i64,
    pub(super) id: DeliveryId,
    pub(super) message: MessageId,
    pub(super) attempt: u32,
    /// The CloudEvents envelope.
    pub(super) event: Bytes,
    pub(super) original: Bytes,
    pub(super) traceparent: Option<String>,
    /// The event number of a dead letter of the same key that this one passes.
    pub(super) passes: Option<i64>,
}

/// How an attempt ended.
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) began_at: Timestamp,
    pub(super) took: Duration,
    pub(super) answer: String,
}

impl Window {
    pub(super) fn new(
        settings: Settings,
        counters: Arc<Counters>,
        names: Names,
        needs_original: bool,
        fence: i64,
    ) -> Self {
        Window {
            circuit: Circuit::new(
                settings.circuit_failures,
                settings.circuit_rest_min,
                settings.circuit_rest_max,
            ),
            settings,
            counters,
            names,
            needs_original,
            fence,
            entries: BTreeMap::new(),
            numbers: HashMap::new(),
            keys: HashMap::new(),
            parked: HashMap::new(),
            cursor: 0,
            ahead: Ahead::default(),
            unpublished: BTreeSet::new(),
            startable: BTreeSet::new(),
            resting: BTreeSet::new(),
            wanting: BTreeSet::new(),
            confirmed: VecDeque::new(),
            begun: Vec::new(),
            in_flight: 0,
            content_bytes: 0,
            answers: 0,
            changes: Vec::new(),
            settle: Vec::new(),
            ended: HashSet::new(),
            forgettable: Vec::new(),
        }
    }

    // ---- what is open ----

    /// Where to read on from.
    pub(super) fn cursor(&self) -> i64 {
        self.cursor
    }

    /// How many deliveries it knows.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many more deliveries fit.
    pub(super) fn room(&self) -> usize {
        if self.content_bytes > self.settings.window_bytes {
            return 0;
        }
        self.settings.window.saturating_sub(self.entries.len())
    }

    /// Whether more would be of use. Not while a slow destination has its hands full and as many again wait for it: what is read one by
    /// one, as each makes room, is fetched, published and taken off the bus for nothing, and beside others who are in a hurry.
    pub(super) fn is_hungry(&self) -> bool {
        let at_once = self.settings.in_flight_max;
        let is_busy = self.in_flight >= at_once && self.startable.len() >= at_once;
        let is_half_empty =
            self.room() >= self.settings.window / 2 && self.content_bytes <= self.settings.window_bytes / 2;
        !is_busy || is_half_empty
    }

    /// Whether any dead letter is known.
    pub(super) fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Whether something routed lies beyond what has been read.
    pub(super) fn has_gap(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// A delivery handed over by the router. Out of order, or without room, it waits or is left to the store.
    pub(super) fn routed(&mut self, routed: Routed) {
        if routed.number > self.cursor && self.room() > 0 {
            self.ahead.keep(routed);
            self.close_ranks();
        }
    }

    /// Takes over what follows the cursor without a gap.
    fn close_ranks(&mut self) {
        while self.room() > 0
            && let Some(number) = self.ahead.first().filter(|first| *first <= self.cursor + 1)
            && let Some(routed) = self.ahead.take(number)
        {
            if number <= self.cursor {
                continue;
            }
            self.cursor = number;
            if !self.numbers.contains_key(&routed.id) && !self.ended.contains(&routed.id) {
                let machine = Delivery { phase: Phase::Pending, attempts: 0, fence: self.fence };
                self.insert(number, Entry::routed(routed, machine));
            }
        }
    }

    /// Open deliveries read from the store in number order. `suspect`: they were open before this deliverer came.
    pub(super) fn loaded(&mut self, rows: Vec<OpenDelivery>, now: Instant, suspect: bool) {
        for row in rows {
            self.cursor = self.cursor.max(row.number);
            if self.numbers.contains_key(&row.id) || self.ended.contains(&row.id) {
                continue;
            }
            let number = row.number;
            let routed = self.ahead.take(number).filter(|routed| routed.id == row.id);
            let mut entry = Entry::stored(row, self.fence, now);
            entry.suspect = suspect;
            if let Some(routed) = routed {
                entry.content = Some(routed.content);
                entry.traceparent = routed.traceparent;
            }
            self.insert(number, entry);
        }
        self.ahead.drop_to(self.cursor);
        self.close_ranks();
        for id in std::mem::take(&mut self.forgettable) {
            self.ended.remove(&id);
        }
    }

    /// The dead letters of the subscription, read from the store.
    pub(super) fn set_parked(&mut self, parked: Vec<DeadLetter>, now: Instant) {
        let old = std::mem::take(&mut self.parked);
        for DeadLetter { number, key, age } in parked {
            let at = now.checked_sub(age).unwrap_or(now);
            self.parked.entry(key).or_default().insert(number, at);
        }
        for (key, numbers) in old {
            for (number, at) in numbers {
                // Parked here a moment ago, and perhaps not yet written when this was read.
                if now.duration_since(at) < PARKED_HERE {
                    self.parked.entry(key).or_default().entry(number).or_insert(at);
                }
            }
        }
        for number in self.numbers.values() {
            if let Some(entry) = self.entries.get(number)
                && let Some(numbers) = self.parked.get_mut(&entry.key)
            {
                numbers.remove(number);
            }
        }
        self.parked.retain(|_, numbers| !numbers.is_empty());
        self.refresh_blocked(now);
    }

    fn insert(&mut self, number: i64, mut entry: Entry) {
        let (id, key) = (entry.id, entry.key);
        if let Some(content) = &mut entry.content {
            let original = std::mem::take(&mut content.original);
            entry.original = self.needs_original.then_some(original);
        }
        match entry.place {
            Place::Resting { until } => {
                self.resting.insert((until, number));
            }
            _ => {
                self.unpublished.insert(number);
            }
        }
        self.content_bytes += entry.held_bytes();
        let worn_out = entry.machine.attempts >= self.settings.retry.attempts_max;
        self.numbers.insert(id, number);
        self.keys.entry(key).or_default().numbers.insert(number);
        self.entries.insert(number, entry);
        // A person has taken it up again.
        if let Some(numbers) = self.parked.get_mut(&key) {
            numbers.remove(&number);
        }
        if worn_out {
            // Refusals park it when they happen, so its last attempts ended with the process that made them.
            self.park_untried(number, "its attempts ended with the process that made them");
        } else {
            self.refresh(key, Instant::now());
        }
    }

    /// Takes an entry out for good; its outcome is to be written.
    fn remove(&mut self, number: i64, now: Instant) -> Option<Entry> {
        let entry = self.entries.remove(&number)?;
        self.content_bytes -= entry.held_bytes();
        self.numbers.remove(&entry.id);
        self.unpublished.remove(&number);
        self.wanting.remove(&number);
        if let Place::Resting { until } = entry.place {
            self.resting.remove(&(until, number));
        }
        if let Some(line) = self.keys.get_mut(&entry.key) {
            line.numbers.remove(&number);
        }
        self.ended.insert(entry.id);
        self.refresh(entry.key, now);
        Some(entry)
    }

    // ---- publishing ----

    /// The next ones to publish, lowest first, at most `limit`. Those whose content is missing are asked for.
    pub(super) fn publishable(&mut self, limit: usize) -> Vec<(i64, Envelope)> {
        let mut batch = Vec::new();
        let mut complete = true;
        for number in self.unpublished.iter().copied().take(limit) {
            let Some(entry) = self.entries.get_mut(&number) else { continue };
            // In order: what lacks its content holds up those behind it until it is read.
            if entry.content.is_none() {
                complete = false;
                self.wanting.insert(number);
            } else if complete && let Some(envelope) = entry.envelope(number, &self.names) {
                entry.place = Place::Publishing;
                batch.push((number, envelope));
            }
        }
        for (number, _) in &batch {
            self.unpublished.remove(number);
        }
        batch
    }

    /// What the bus said about them. Whether all of them are on it.
    pub(super) fn published(&mut self, results: Vec<(i64, Result<(), BusError>)>, now: Instant) -> bool {
        let mut all = true;
        for (number, result) in results {
            all &= result.is_ok();
            let Some(entry) = self.entries.get_mut(&number) else { continue };
            if result.is_ok() {
                Counters::add(&self.counters.published, 1);
                let fence = self.fence;
                entry.machine =
                    entry.machine.step(DeliveryEvent::Confirmed { fence }, &self.settings.retry).0;
                self.confirmed.push_back((now, number));
                // One that came off the bus before it was confirmed may have been read again for its attempt.
                if entry.place == Place::Publishing {
                    entry.place = Place::OnBus { since: now };
                    let before = entry.held_bytes();
                    entry.content = None;
                    self.content_bytes = self.content_bytes + entry.held_bytes() - before;
                }
            } else if entry.place == Place::Publishing {
                entry.place = Place::Unpublished;
                self.unpublished.insert(number);
            }
        }
        all
    }

    /// Content read from the store.
    pub(super) fn fetched(
        &mut self,
        wanted: &[i64],
        contents: &HashMap<(MessageId, u32), Content>,
        now: Instant,
    ) {
        for number in wanted {
            self.wanting.remove(number);
            let Some(entry) = self.entries.get_mut(number) else { continue };
            let Some(content) = contents.get(&(entry.message, entry.revision)) else {
                self.park_untried(*number, "its content is not in the store any more");
                continue;
            };
            let before = entry.held_bytes();
            if self.needs_original {
                entry.original = Some(content.original.clone());
            }
            entry.content = Some(Content { original: Bytes::new(), ..content.clone() });
            self.content_bytes = self.content_bytes + entry.held_bytes() - before;
            let key = entry.key;
            self.refresh(key, now);
        }
    }

    /// Whose content has to be read, at most `limit`.
    pub(super) fn wanted(&self, limit: usize) -> Vec<(i64, MessageId, u32)> {
        let wanted = self.wanting.iter().take(limit);
        wanted
            .filter_map(|number| {
                self.entries.get(number).map(|entry| (*number, entry.message, entry.revision))
            })
            .collect()
    }

    /// Something came off the queue.
    pub(super) fn taken(&mut self, taken: Taken, now: Instant) {
        let number = self.numbers.get(&taken.delivery).copied();
        let Some((number, entry)) = number.and_then(|n| self.entries.get_mut(&n).map(|entry| (n, entry)))
        else {
            // Delivered before, or still far ahead: then it is published when its time comes.
            self.settle.push(taken.ticket);
            return;
        };
        if entry.ticket.is_some_and(|(ticket, _)| ticket.session == taken.ticket.session) {
            self.settle.push(taken.ticket);
            return;
        }
        entry.ticket = Some((taken.ticket, now));
        if matches!(entry.place, Place::Unpublished | Place::Publishing | Place::OnBus { .. }) {
            self.unpublished.remove(&number);
            self.wanting.remove(&number);
            entry.place = Place::Ready;
            entry.traceparent = entry.traceparent.take().or(taken.traceparent);
            let before = entry.held_bytes();
            entry.content = None;
            // Short of memory, it is read again from the store when its turn comes.
            if self.content_bytes <= self.settings.window_bytes {
                entry.event = Some(taken.body);
            }
            self.content_bytes = self.content_bytes + entry.held_bytes() - before;
            let key = entry.key;
            self.refresh(key, now);
        }
    }

    /// The consumer is a new one: the tickets of the one before are void, their messages come again.
    pub(super) fn reconnected(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            entry.ticket = None;
            if let Place::OnBus { since } = &mut entry.place {
                *since = now;
            }
        }
    }

    /// The broker has lost its data: what it had is published again.
    pub(super) fn wiped(&mut self) {
        self.republish(|_| true);
    }

    fn republish(&mut self, which: impl Fn(Instant) -> bool) {
        for (number, entry) in &mut self.entries {
            if let Place::OnBus { since } = entry.place
                && which(since)
            {
                entry.place = Place::Unpublished;
                entry.machine = entry.machine.step(DeliveryEvent::BusWiped, &self.settings.retry).0;
                entry.marked = false;
                self.unpublished.insert(*number);
            }
        }
    }

    // ---- trying ----

    /// What may be tried now.
    pub(super) fn startable_now(&mut self, now: Instant) -> Vec<ToTry> {
        let mut starting = Vec::new();
        for number in std::mem::take(&mut self.begun) {
            starting.extend(self.start(number));
        }
        while self.in_flight < self.settings.in_flight_max
            && let Some(number) = self.startable.first().copied()
        {
            let Some(entry) = self.entries.get_mut(&number) else {
                self.startable.remove(&number);
                continue;
            };
            let at_hand = entry.event.is_some() || entry.content.is_some();
            if !at_hand || (self.needs_original && entry.original.is_none()) {
                // Whatever else was left in the store waits there for its turn.
                if self.wanting.len() >= self.settings.in_flight_max.max(self.settings.batch) {
                    break;
                }
                self.wanting.insert(number);
                self.unstartable(number);
                continue;
            }
            if !self.circuit.admit(now) {
                break;
            }
            let key = entry.key;
            let suspect = std::mem::take(&mut entry.suspect);
            self.in_flight += 1;
            self.unstartable(number);
            if let Some(line) = self.keys.get_mut(&key) {
                line.busy = true;
            }
            if suspect {
                self.begin(number);
            } else {
                starting.extend(self.start(number));
            }
        }
        starting
    }

    /// Writes first that an attempt begins: if the process ends with it, it counts as one that failed, so that a
    /// delivery which kills its deliverer rests longer each time, and is a dead letter in the end.
    fn begin(&mut self, number: i64) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        entry.place = Place::Beginning;
        let attempts = entry.machine.attempts + 1;
        let change = DeliveryChange {
            id: entry.id,
            message: entry.message,
            state: DeliveryState::RetryWait,
            attempts,
            rest: self.settings.retry.rest(attempts, None, 1.0),
            attempt: None,
            reason: None,
        };
        self.changes.push(Change { change, ticket: None, after: AfterCommit::Begin(number) });
    }

    fn start(&mut self, number: i64) -> Option<ToTry> {
        let entry = self.entries.get_mut(&number)?;
        let event = match &entry.event {
            Some(event) => event.clone(),
            None => entry.envelope(number, &self.names)?.body,
        };
        let claim = DeliveryEvent::Claim { fence: self.fence };
        let (machine, effects) = entry.machine.step(claim, &self.settings.retry);
        let attempt = effects.iter().find_map(|effect| match effect {
            DeliveryEffect::Attempt(attempt) => Some(*attempt),
            _ => None,
        })?;
        entry.machine = machine;
        entry.place = Place::Attempting;
        entry.answers.get_or_insert(self.answers);
        let earlier = self.parked.get(&entry.key).and_then(|numbers| numbers.keys().next().copied());
        Some(ToTry {
            number,
            id: entry.id,
            message: entry.message,
            attempt,
            event,
            original: entry.original.clone().unwrap_or_default(),
            traceparent: entry.traceparent.clone(),
            passes: earlier.filter(|earlier| *earlier < number),
        })
    }

    /// An attempt ended. `random` in `0.0..1.0`.
    pub(super) fn ended(&mut self, number: i64, ended: Ended, now: Instant, random: f64) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        if entry.place != Place::Attempting {
            return;
        }
        let key = entry.key;
        let answers = entry.answers.replace(self.answers).unwrap_or_default();
        self.in_flight -= 1;
        if let Some(line) = self.keys.get_mut(&key) {
            line.busy = false;
        }
        let outcome = self.judge(ended.outcome, answers, now, random);
        let Some(entry) = self.entries.get_mut(&number) else { return };
        let attempt = Attempt {
            number: entry.machine.attempts + 1,
            began_at: ended.began_at,
            took: ended.took,
            answer: ended.answer,
        };
        let away = matches!(outcome, Outcome::Away { .. });
        // Counted up, so that one that always finds it away gives way to others as the probe.
        let random = if away { random.max(0.5) } else { random };
        let event = DeliveryEvent::Ended { fence: self.fence, outcome, random };
        let (machine, effects) = entry.machine.step(event, &self.settings.retry);
        entry.machine = machine;
        let mut change = DeliveryChange {
            id: entry.id,
            message: entry.message,
            state: machine.phase.stored(),
            attempts: machine.attempts,
            rest: Duration::ZERO,
            reason: matches!(machine.phase, Phase::Parked | Phase::Suppressed)
                .then(|| attempt.answer.clone()),
            // What policy withholds never reached the destination.
            attempt: (machine.phase != Phase::Suppressed).then_some(attempt),
        };
        let ticket = entry.ticket.take().map(|(ticket, _)| ticket);
        if machine.phase != Phase::RetryWait {
            self.count_end(machine.phase);
            if machine.phase == Phase::Parked {
                self.parked.entry(key).or_default().insert(number, now);
            }
            if let Some(entry) = self.remove(number, now) {
                let after = AfterCommit::Forget(entry.id);
                self.changes.push(Change { change, ticket, after });
            }
            return;
        }
        Counters::add(&self.counters.retried, 1);
        let mut rest = effects
            .iter()
            .find_map(|effect| match effect {
                DeliveryEffect::Rest(rest) => Some(*rest),
                _ => None,
            })
            .unwrap_or_default();
        let first_away = entry.aways == 0;
        if away {
            rest = rest.max(self.settings.retry.rest(entry.aways + 1, None, random));
            entry.aways += 1;
        } else {
            entry.aways = 0;
        }
        let until = now + rest;
        entry.place = Place::Resting { until };
        self.resting.insert((until, number));
        change.rest = rest;
        // A destination that is away for long is written down once for each delivery, not at every probe.
        if !away || first_away {
            self.changes.push(Change { change, ticket, after: AfterCommit::Nothing });
        } else {
            self.settle.extend(ticket);
        }
        self.refresh(key, now);
    }

    /// What an outcome says about the destination, and what the destination says about the outcome.
    fn judge(&mut self, outcome: Outcome, answers: u64, now: Instant, random: f64) -> Outcome {
        match outcome {
            Outcome::Withheld => {
                self.circuit.unused(now);
                outcome
            }
            Outcome::Accepted | Outcome::Again { .. } | Outcome::Never => {
                self.answers += 1;
                if self.circuit.reached() {
                    tracing::info!(subscription = %self.names.subscription, "destination is back");
                    self.wake_away(now);
                }
                outcome
            }
            // Others got through since: it is this delivery. Not so if the destination asks for time: it is full or busy; nor
            // while it is left alone: nobody has got through since then.
            Outcome::Away { after: None } if self.answers > answers && !self.circuit.is_open() => {
                Outcome::Again { after: None }
            }
            Outcome::Away { after } => {
                if self.circuit.away(now, after, random) {
                    Counters::add(&self.counters.circuits_opened, 1);
                    tracing::warn!(subscription = %self.names.subscription, "destination is away: left alone for a while");
                }
                outcome
            }
        }
    }

    fn count_end(&self, phase: Phase) {
        match phase {
            Phase::Delivered => Counters::add(&self.counters.delivered, 1),
            Phase::Parked => Counters::add(&self.counters.parked, 1),
            Phase::Suppressed => Counters::add(&self.counters.suppressed, 1),
            Phase::Pending | Phase::Published | Phase::Claimed | Phase::RetryWait | Phase::Skipped => {}
        }
    }

    /// The destination is back: what rests only because it was away need not wait.
    pub(super) fn wake_away(&mut self, now: Instant) {
        let mut keys = Vec::new();
        for (number, entry) in &mut self.entries {
            if entry.aways > 0
                && let Place::Resting { until } = entry.place
            {
                self.resting.remove(&(until, *number));
                entry.place = Place::Ready;
                entry.aways = 0;
                keys.push(entry.key);
            }
        }
        for key in keys {
            self.refresh(key, now);
        }
    }

    fn park_untried(&mut self, number: i64, why: &str) {
        let now = Instant::now();
        let Some(entry) = self.remove(number, now) else { return };
        self.count_end(Phase::Parked);
        self.parked.entry(entry.key).or_default().insert(number, now);
        let change = DeliveryChange {
            id: entry.id,
            message: entry.message,
            state: DeliveryState::Parked,
            attempts: entry.machine.attempts,
            rest: Duration::ZERO,
            attempt: None,
            reason: Some(why.to_owned()),
        };
        let ticket = entry.ticket.map(|(ticket, _)| ticket);
        self.changes.push(Change { change, ticket, after: AfterCommit::Forget(entry.id) });
    }

    // ---- the line of a key ----

    /// Puts the first of a key where it may be started, if it may.
    fn refresh(&mut self, key: OrderKey, now: Instant) {
        let Some(line) = self.keys.get_mut(&key) else { return };
        let first = line.numbers.first().copied();
        let startable = first.filter(|number| {
            let ready = self.entries.get(number).is_some_and(|entry| entry.place == Place::Ready);
            ready && !line.busy && !self.wanting.contains(number)
        });
        let startable = startable.filter(|number| match self.settings.on_parked {
            OnParked::Pass => true,
            OnParked::Block { age_max } => !self.parked.get(&key).is_some_and(|parked| {
                parked.range(..*number).any(|(_, at)| now.duration_since(*at) < age_max)
            }),
        });
        if line.startable != startable {
            if let Some(old) = line.startable.take() {
                self.startable.remove(&old);
            }
            self.startable.extend(startable);
            line.startable = startable;
        }
        if line.numbers.is_empty() && !line.busy {
            self.keys.remove(&key);
        }
    }

    fn unstartable(&mut self, number: i64) {
        self.startable.remove(&number);
        if let Some(entry) = self.entries.get(&number)
            && let Some(line) = self.keys.get_mut(&entry.key)
        {
            line.startable = None;
        }
    }

    fn refresh_blocked(&mut self, now: Instant) {
        if matches!(self.settings.on_parked, OnParked::Block { .. }) {
            let keys: Vec<OrderKey> = self.keys.keys().copied().collect();
            for key in keys {
                self.refresh(key, now);
            }
        }
    }

    // ---- writing and settling ----

    /// The next batch to write: outcomes, and marks for what has been on the bus for a while.
    pub(super) fn take_changes(&mut self, limit: usize, now: Instant) -> Batch {
        let mut batch = Batch::default();
        for Change { change, ticket, after } in self.changes.drain(..self.changes.len().min(limit)) {
            batch.changes.push(change);
            batch.tickets.extend(ticket);
            match after {
                AfterCommit::Nothing => {}
                AfterCommit::Forget(id) => batch.forget.push(id),
                AfterCommit::Begin(number) => batch.begin.push(number),
            }
        }
        while batch.changes.len() < limit
            && let Some((at, number)) = self.confirmed.front().copied()
            && now.duration_since(at) >= self.settings.mark_after
        {
            self.confirmed.pop_front();
            if let Some(entry) = self.entries.get_mut(&number)
                && entry.machine.phase == Phase::Published
                && entry.place != Place::Beginning
                && !entry.marked
            {
                entry.marked = true;
                batch.changes.push(DeliveryChange {
                    id: entry.id,
                    message: entry.message,
                    state: DeliveryState::Published,
                    attempts: entry.machine.attempts,
                    rest: Duration::ZERO,
                    attempt: None,
                    reason: None,
                });
            }
        }
        batch
    }

    /// A batch is written. `reading`: whether a reading of open deliveries that began before is under way.
    pub(super) fn written(&mut self, batch: Batch, reading: bool) {
        self.settle.extend(batch.tickets);
        self.begun.extend(batch.begin);
        if reading {
            self.forgettable.extend(batch.forget);
        } else {
            for id in batch.forget {
                self.ended.remove(&id);
            }
        }
    }

    /// What may be settled on the bus.
    pub(super) fn take_settled(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.settle)
    }

    // ---- time ----

    /// What time brings: rests that are over, tickets that the bus would take back, events that never came.
    pub(super) fn tick(&mut self, now: Instant) {
        self.wake(now);
        self.refresh_blocked(now);
        let (lost_after, ticket_age_max) = (self.settings.lost_after, self.settings.ticket_age_max);
        self.republish(|since| now.duration_since(since) >= lost_after);
        for entry in self.entries.values_mut() {
            if let Some((ticket, at)) = entry.ticket
                && now.duration_since(at) >= ticket_age_max
            {
                entry.ticket = None;
                self.settle.push(ticket);
            }
        }
    }

    /// Ends the rests that are over.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some((until, number)) = self.resting.first().copied()
            && until <= now
        {
            self.resting.pop_first();
            if let Some(entry) = self.entries.get_mut(&number) {
                entry.place = Place::Ready;
                let key = entry.key;
                self.refresh(key, now);
            }
        }
    }

    /// When the next rest ends, or the destination may be asked again.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let rest = self.resting.first().map(|(until, _)| *until);
        let probe = self.circuit.wakes_at().filter(|_| !self.startable.is_empty());
        rest.into_iter().chain(probe).min()
    }

    /// Whether nothing is to be delivered, as far as is known.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many are being tried.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether something waits to be written.
    pub(super) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Tells the counters how things stand.
    pub(super) fn report(&self) {
        Counters::set(&self.counters.in_window, self.entries.len());
        Counters::set(&self.counters.in_flight, self.in_flight);
        Counters::set(&self.counters.circuit_open, usize::from(self.circuit.is_open()));
    }
}

/// How long a dead letter of ours may be missing from what is read from the store.
const PARKED_HERE: Duration = Duration::from_secs(60);

impl Entry {
    fn routed(routed: Routed, machine: Delivery) -> Self {
        Entry {
            id: routed.id,
            message: routed.message,
            revision: routed.revision,
            key: routed.key,
            matched: routed.matched,
            machine,
            place: Place::Unpublished,
            original: None,
            content: Some(routed.content),
            event: None,
            traceparent: routed.traceparent,
            ticket: None,
            marked: false,
            suspect: false,
            aways: 0,
            answers: None,
        }
    }

    fn stored(row: OpenDelivery, fence: i64, now: Instant) -> Self {
        let mut machine = Delivery::stored(row.state, row.attempts, fence);
        let place = match machine.phase {
            Phase::RetryWait => Place::Resting { until: now + row.rest },
            _ => Place::Unpublished,
        };
        // What the bus had when its deliverer went is published again: what is left on the queue comes first, and the
        // second copy is known by its id.
        let marked = machine.phase == Phase::Published;
        if marked {
            machine.phase = Phase::Pending;
        }
        Entry {
            id: row.id,
            message: row.message,
            revision: row.revision,
            key: row.key,
            matched: row.matched,
            machine,
            place,
            content: None,
            event: None,
            original: None,
            traceparent: None,
            ticket: None,
            marked,
            suspect: false,
            aways: 0,
            answers: None,
        }
    }

    /// The delivery as an event, if its content is at hand.
    fn envelope(&self, number: i64, names: &Names) -> Option<Envelope> {
        let content = self.content.as_ref()?;
        Some(envelope(&Event {
            installation: &names.installation,
            delivery: self.id,
            message: self.message,
            revision: self.revision,
            number,
            subscription: &names.subscription,
            matched: &self.matched,
            sender: &content.sender,
            received_at: content.received_at,
            traceparent: self.traceparent.clone(),
            told: &Told::of(content),
            notifies: names.notifies.as_ref(),
        }))
    }

    /// Bytes of content that it keeps in memory.
    fn held_bytes(&self) -> usize {
        let content = self
            .content
            .as_ref()
            .map_or(0, |content| content.original.len() + content.bundle.len() + content.beside.len());
        content + self.event.as_ref().map_or(0, Bytes::len) + self.original.as_ref().map_or(0, Bytes::len)
    }
}

#[cfg(test)]
mod tests;
