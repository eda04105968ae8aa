//! The worker over the lanes of this replica: takes what is open in batches, several under way at a time.
//!
//! Invariants: no two batches under way share an order key; a batch that the store did not take leaves its messages open,
//! so they are found there again.

use super::courtesy::{self, Courtesy};
use super::lanes::Held;
use super::plan::{Keyed, Plan, plan};
use super::record::Reads;
use super::waiters::{UNMET, Waiters};
use super::{Judged, Mapper, Prepared, Recorded, record};
use crate::ingest::pressure::Pressure;
use crate::route::roster::{Enrolled, Roster};
use crate::store::{Lease, OpenMessage, RecordTx, Store, StoreError};
use crate::telemetry::metrics::Metrics;
use schemas::message::{LaneSet, OrderKey, Seq};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How many open messages are looked at, at most.
const WINDOW: usize = 1024;
/// How many bytes of them are held, beyond the first.
const WINDOW_BYTES: usize = 6 << 20;
/// How many messages are recorded in one transaction.
const BATCH: usize = 128;
/// So many open messages are a backlog. No more than a batch of them: where senders wait for each answer, normalizing that takes
/// its full share of the processor holds them back just so far that it keeps up with them, and no larger backlog ever comes.
const BACKLOG: usize = BATCH;
/// How many bytes of messages are recorded in one transaction, beyond the first; their resources take many times as much memory.
const BATCH_BYTES: usize = 160 << 10;
/// How many batches are under way at a time: while one is mapped or merged, another waits for the store.
const UNDER_WAY: usize = 3;
/// How often a batch is recorded again after another wrote the same shared resource, such as a ward, before it.
const CONFLICTS_MAX: usize = 5;
/// And how often a message is, recorded alone.
const CONFLICTS_ALONE_MAX: usize = 20;
/// A batch of fewer messages than this is soon followed by another: then the next ones gather for a moment, because a
/// transaction costs more than a message.
const GATHER_BELOW: usize = 24;
/// How long they gather.
const GATHER: Duration = Duration::from_millis(8);
/// How often the store is asked although nobody called: other replicas and replays write there too.
const POLL_EVERY: Duration = Duration::from_millis(200);
/// The pause after the store did not take a batch.
const PAUSE: Duration = Duration::from_millis(500);
/// The pause after two wrote the same, which is over soon.
const PAUSE_AT_CONFLICT: Duration = Duration::from_millis(50);

impl Keyed for OpenMessage {
    fn seq(&self) -> Seq {
        self.seq
    }
    fn keys(&self) -> &[OrderKey] {
        &self.keys
    }
}

/// What one turn of the worker came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// A batch of so many messages was begun.
    Began(usize),
    /// Nothing may go now.
    Nothing,
    /// There is something, but intake goes first.
    GaveWay,
}

/// What the worker knows of the open messages.
struct Desk {
    /// Those that were read and not begun, in sequence.
    open: Vec<OpenMessage>,
    /// What is read next comes after this one.
    after: Seq,
    batches: JoinSet<Result<(), StoreError>>,
    /// The messages of each batch under way, with their keys.
    under_way: HashMap<Id, Vec<(Seq, Vec<OrderKey>)>>,
}

impl Desk {
    fn new() -> Self {
        Desk { open: Vec::new(), after: Seq(i64::MIN), batches: JoinSet::new(), under_way: HashMap::new() }
    }

    /// Forgets what was read, so that all of it is read again.
    fn clear(&mut self) {
        self.open.clear();
        self.after = Seq(i64::MIN);
    }

    /// Takes in what was read. A batch that ended meanwhile is still known here, so nothing of it comes a second time.
    fn add(&mut self, more: Vec<OpenMessage>) {
        self.after = more.last().map_or(self.after, |last| last.seq);
        let begun: HashSet<Seq> = self.under_way.values().flatten().map(|(seq, _)| *seq).collect();
        self.open.extend(more.into_iter().filter(|message| !begun.contains(&message.seq)));
    }

    /// The keys of what is under way.
    fn busy(&self) -> HashSet<OrderKey> {
        self.under_way.values().flatten().flat_map(|(_, keys)| keys).copied().collect()
    }

    /// Takes the first of those that may go, as many as one batch holds.
    fn take(&mut self, go: Vec<usize>) -> Vec<OpenMessage> {
        let mut bytes = 0;
        let fits = |(count, index): (usize, &usize)| {
            bytes += self.open[*index].bytes.len();
            count == 0 || (count < BATCH && bytes <= BATCH_BYTES)
        };
        let count = go.iter().enumerate().map(fits).take_while(|fits| *fits).count();
        let chosen: HashSet<usize> = go.into_iter().take(count).collect();
        let mut index = 0..;
        self.open.extract_if(.., |_| index.next().is_some_and(|index| chosen.contains(&index))).collect()
    }

    fn begin(
        &mut self,
        messages: Vec<(Seq, Vec<OrderKey>)>,
        work: impl Future<Output = Result<(), StoreError>> + Send + 'static,
    ) {
        let id = self.batches.spawn(work).id();
        self.under_way.insert(id, messages);
    }

    /// A batch was not recorded: says so, and answers when to try again.
    fn failed(&mut self, error: &StoreError) -> Instant {
        tracing::warn!(error = %crate::chain(error), "a batch could not be recorded; it stays open");
        self.clear();
        let conflict = matches!(error, StoreError::Conflict);
        Instant::now() + if conflict { PAUSE_AT_CONFLICT } else { PAUSE }
    }

    fn has_room(&self) -> bool {
        self.batches.len() < UNDER_WAY
    }

    /// Waits for a batch to end; for ever, if none is under way.
    async fn ended(&mut self) -> Result<(), StoreError> {
        let Some(ended) = self.batches.join_next_with_id().await else { return std::future::pending().await };
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        self.under_way.remove(&id);
        match ended {
            Ok((_, result)) => result,
            // Not in its own words: they may hold what it stumbled over.
            Err(_) => Err(StoreError::Bug("a batch broke off".into())),
        }
    }
}

/// One worker over the lanes that this replica holds.
pub struct Normalizer {
    /// Where messages are open.
    pub store: Arc<dyn Store>,
    /// How they are mapped.
    pub mapper: Arc<Mapper>,
    /// Whom they concern.
    pub roster: Arc<Roster>,
    /// Those who wait for a result.
    pub waiters: Arc<Waiters>,
    /// How hard intake works.
    pub pressure: Arc<Pressure>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where what was recorded goes next; what does not fit is found in the store.
    pub hand_on: Arc<dyn Fn(Vec<Recorded>) + Send + Sync>,
}

impl Normalizer {
    /// Works until `stop`; what is under way then is finished. `wake` says that intake has written something, `held` which lanes are ours.
    pub async fn run(
        self,
        mut wake: watch::Receiver<Seq>,
        mut held: watch::Receiver<Held>,
        stop: CancellationToken,
    ) {
        let worker = Arc::new(self);
        let mut desk = Desk::new();
        let mut not_before = Instant::now();
        let mut polled = Instant::now();
        let mut courtesy = Courtesy::default();
        let mut codes_read = false;
        let mut ours = Held::default();
        while !stop.is_cancelled() {
            // By what they are, not by whether anybody was told: the wait below takes that away. Lanes that came and were not noticed
            // would be worked without what they hold from before.
            let held_now = held.borrow_and_update().clone();
            let lanes_changed = held_now != ours;
            ours = held_now;
            if !codes_read || lanes_changed || polled.elapsed() >= POLL_EVERY {
                codes_read = match worker.mapper.refresh_codes(&*worker.store).await {
                    Ok(()) => true,
                    Err(error) => {
                        tracing::warn!(error = %crate::chain(&error), "translated codes could not be read");
                        false
                    }
                };
                // Look at everything anew: lanes came or went, or a replay opened an old message again.
                desk.clear();
                polled = Instant::now();
            }
            let gathers = Instant::now() < not_before;
            let turn = match desk.has_room() && !gathers {
                true => worker.turn(&ours, &mut desk, &mut courtesy).await,
                false => Ok(Turn::Nothing),
            };
            match turn {
                Ok(Turn::Began(messages)) => {
                    if messages < GATHER_BELOW {
                        not_before = Instant::now() + GATHER;
                    }
                    continue;
                }
                Ok(Turn::GaveWay) => {
                    let began = Instant::now();
                    pause(courtesy::GIVE_WAY, &stop).await;
                    let took = began.elapsed();
                    courtesy.shown(took);
                    worker.metrics.gave_way(took);
                    polled += took;
                    continue;
                }
                Ok(Turn::Nothing) => {}
                Err(error) => not_before = desk.failed(&error),
            }
            let idle = desk.has_room() && !gathers;
            tokio::select! {
                () = stop.cancelled() => {}
                ended = desk.ended() => if let Err(error) = ended {
                    not_before = desk.failed(&error);
                },
                _ = wake.changed(), if idle => {}
                _ = held.changed(), if idle => {}
                () = tokio::time::sleep(POLL_EVERY), if idle => {}
                () = tokio::time::sleep_until(not_before), if gathers => {}
            }
        }
        while !desk.batches.is_empty() {
            if let Err(error) = desk.ended().await {
                desk.failed(&error);
            }
        }
    }

    /// Begins a batch of what may go now.
    async fn turn(
        self: &Arc<Self>,
        ours: &Held,
        desk: &mut Desk,
        courtesy: &mut Courtesy,
    ) -> Result<Turn, StoreError> {
        if ours.leases.is_empty() {
            return Ok(Turn::Nothing);
        }
        if desk.open.len() < WINDOW / 2 {
            let room = WINDOW - desk.open.len();
            desk.add(self.store.open_messages(ours.lanes, desk.after, room, WINDOW_BYTES).await?);
        }
        // Somebody who waits for a result must not wait for others' acknowledgements.
        let pressed = self.pressure.is_high(std::time::Instant::now()) && !self.waiters.anybody();
        if courtesy.gives_way(desk.open.len() >= BACKLOG, pressed) {
            return Ok(Turn::GaveWay);
        }
        let busy = desk.busy();
        let mut planned = plan(&desk.open, ours.lanes, &busy, &HashSet::new());
        if !planned.foreign.is_empty() || !planned.ask.is_empty() {
            planned = self.look_across(ours, &mut desk.open, &busy, planned).await?;
        }
        if planned.go.is_empty() {
            return Ok(Turn::Nothing);
        }
        let batch = desk.take(planned.go);
        if batch.iter().any(|message| message.revision > 0) {
            // It may go again because somebody has translated a code of it just now.
            self.mapper.refresh_codes(&*self.store).await?;
        }
        let count = batch.len();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = cores.div_ceil(desk.batches.len() + 1);
        let messages = batch.iter().map(|message| (message.seq, message.keys.clone())).collect();
        let (worker, ours) = (Arc::clone(self), ours.clone());
        desk.begin(messages, async move {
            for batch in record::batches(worker.map(batch, threads).await) {
                worker.record(&ours, batch).await?;
            }
            Ok(())
        });
        Ok(Turn::Began(count))
    }

    /// Asks the store about messages that share their keys with other workers.
    async fn look_across(
        &self,
        ours: &Held,
        open: &mut Vec<OpenMessage>,
        busy: &HashSet<OrderKey>,
        planned: Plan,
    ) -> Result<Plan, StoreError> {
        let mut cleared = HashSet::new();
        let seqs = |indexes: &[usize]| -> Vec<Seq> { indexes.iter().map(|index| open[*index].seq).collect() };
        let (foreign, asked) = (seqs(&planned.foreign), seqs(&planned.ask));
        if !foreign.is_empty() {
            let still: HashSet<Seq> = self.store.still_open(&foreign).await?.into_iter().collect();
            open.retain(|message| !foreign.contains(&message.seq) || still.contains(&message.seq));
        }
        for message in open.iter().filter(|message| asked.contains(&message.seq)) {
            if !self.store.open_before(message.seq, &message.keys).await? {
                cleared.insert(message.seq);
            }
        }
        Ok(plan(open, ours.lanes, busy, &cleared))
    }

    /// Maps a batch on so many of the threads for blocking work.
    fn map(&self, batch: Vec<OpenMessage>, threads: usize) -> impl Future<Output = Vec<Prepared>> + use<> {
        let share = batch.len().div_ceil(threads).max(1);
        let mut parts = Vec::with_capacity(threads);
        let mut rest = batch.into_iter().peekable();
        while rest.peek().is_some() {
            let part: Vec<OpenMessage> = rest.by_ref().take(share).collect();
            let (mapper, metrics) = (self.mapper.clone(), self.metrics.clone());
            parts.push(tokio::task::spawn_blocking(move || {
                let prepare = |open| {
                    let began = std::time::Instant::now();
                    let prepared = mapper.prepare(open);
                    metrics.mapped(began.elapsed());
                    prepared
                };
                part.into_iter().map(prepare).collect::<Vec<_>>()
            }));
        }
        async move {
            let mut prepared = Vec::new();
            for part in parts {
                prepared.extend(part.await.expect("mapping catches its panics and is never cancelled"));
            }
            prepared
        }
    }

    /// A write that depended on something was judged when it was recorded first, and its writer was told: normalized again it is taken,
    /// or not taken, as it was then.
    async fn recall(&self, prepared: &mut Prepared) -> Result<(), StoreError> {
        let Ok(facts) = &mut prepared.facts else { return Ok(()) };
        if facts.conditions().next().is_none() {
            return Ok(());
        }
        let timeline = self.store.timeline(prepared.open.id).await?;
        let mut results =
            timeline.into_iter().flat_map(|timeline| timeline.results).map(|(_, result)| result);
        let Some(first) = results.find(|result| result.quarantined.is_none()) else { return Ok(()) };
        let unmet = first.issues.into_iter().find(|issue| UNMET.contains(&&*issue.code));
        let judged = unmet.map_or(Judged::Met, Judged::Unmet);
        for expects in facts.conditions() {
            expects.judged = Some(judged.clone());
        }
        Ok(())
    }

    /// Records a batch. Where that fails as a whole by a mistake of ours, or comes into conflict again and again, each message is
    /// recorded alone, and one that fails even so goes into quarantine: it must not stop the others.
    async fn record(&self, ours: &Held, mut batch: Vec<Prepared>) -> Result<(), StoreError> {
        for prepared in batch.iter_mut().filter(|prepared| prepared.open.revision > 0) {
            self.recall(prepared).await?;
        }
        let lanes =
            LaneSet::of(&batch.iter().flat_map(|prepared| prepared.open.keys.clone()).collect::<Vec<_>>());
        let leases = ours.of(lanes);
        let mut conflicts = 0;
        let error = loop {
            let began = Instant::now();
            let (tx, enrolled) = self.begin(&leases).await?;
            let reads = if conflicts == 0 { Reads::Probable } else { Reads::All };
            let error = match record::record(tx, &mut batch, &enrolled.router, reads).await {
                Ok(recorded) => {
                    self.tell(recorded, began.elapsed());
                    return Ok(());
                }
                Err(error) => error,
            };
            if !matches!(error, StoreError::Conflict) || conflicts == CONFLICTS_MAX {
                break error;
            }
            conflicts += 1;
        };
        if !matches!(error, StoreError::Bug(_) | StoreError::Conflict) {
            return Err(error);
        }
        tracing::error!(error = %crate::chain(&error), messages = batch.len(), "a batch was refused; recording its messages one by one");
        for prepared in batch {
            let began = Instant::now();
            let mut alone = vec![prepared];
            let mut conflicts = 0;
            let recorded = loop {
                let (tx, enrolled) = self.begin(&leases).await?;
                match record::record(tx, &mut alone, &enrolled.router, Reads::All).await {
                    // Alone it conflicts with others for a moment at most; with itself it would for ever.
                    Err(StoreError::Conflict) if conflicts < CONFLICTS_ALONE_MAX => {
                        conflicts += 1;
                        tokio::time::sleep(PAUSE_AT_CONFLICT).await;
                    }
                    recorded => break recorded,
                }
            };
            let recorded = match recorded {
                Err(error @ (StoreError::Bug(_) | StoreError::Conflict)) => {
                    tracing::error!(error = %crate::chain(&error), "a message was refused; it goes into quarantine");
                    for prepared in &mut alone {
                        prepared.facts = Err("it could not be recorded: a defect of Pons".to_owned());
                    }
                    let (tx, enrolled) = self.begin(&leases).await?;
                    record::record(tx, &mut alone, &enrolled.router, Reads::All).await?
                }
                recorded => recorded?,
            };
            self.tell(recorded, began.elapsed());
        }
        Ok(())
    }

    /// The recording transaction, and who is subscribed by then.
    async fn begin(&self, leases: &[Lease]) -> Result<(Box<dyn RecordTx>, Arc<Enrolled>), StoreError> {
        let tx = self.store.begin_record(leases).await?;
        let enrolled = self.roster.at_least(tx.requested_version()).await?;
        Ok((tx, enrolled))
    }

    fn tell(&self, recorded: Vec<Recorded>, took: Duration) {
        let quarantined = recorded.iter().filter(|one| one.done.quarantined.is_some()).count();
        self.metrics.recorded(recorded.len(), quarantined, took);
        self.metrics.issues(recorded.iter().flat_map(|one| &one.issues));
        for one in &recorded {
            self.waiters.tell(one.message.id, &one.done);
        }
        (self.hand_on)(recorded);
    }
}

async fn pause(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(time) => {}
    }
}
