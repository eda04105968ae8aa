//! The second station of the path: open messages are mapped and recorded, in order per key, at our own pace.
//!
//! ```text
//! store: open messages ─► plan ─► map (pure, on all cores) ─► record (one transaction a batch, routing included)
//! ```
//! Invariant: a message is recorded when it is the lowest in sequence on all its keys. Whatever is not recorded stays
//! open in the store, so recovery is the normal poll.

mod courtesy;
pub mod fhir;
pub mod lanes;
pub mod plan;
mod record;
pub mod reload;
#[cfg(test)]
mod tests;
pub mod waiters;

pub use record::Recorded;

use crate::ingest::Takes;
use crate::ingest::pressure::Pressure;
use crate::route::Router;
use crate::store::{Format, OpenMessage, Store, StoreError};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::{self, Verb};
use courtesy::Courtesy;
use futures_util::future;
use lanes::Held;
use mappings::resource::{Contributed, Contribution, Stamp};
use mappings::{Catalog, Context, Effect, SiteCodes, UnmappedCode};
use plan::{Keyed, Plan, plan};
use schemas::hl7v2::time::Zone;
use schemas::hl7v2::{Limits, Message, charset};
use schemas::issue::{Issue, Severity};
use schemas::message::{LaneSet, OrderKey, Seq};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use waiters::Waiters;

/// How many open messages are looked at, at most.
const WINDOW: usize = 1024;
/// How many bytes of them are held, beyond the first.
const WINDOW_BYTES: usize = 8 << 20;
/// How many messages are recorded in one transaction.
const BATCH: usize = 128;
/// How many bytes of messages are recorded in one transaction, beyond the first; their resources take many times as much memory.
const BATCH_BYTES: usize = 128 << 10;
/// How many batches are recorded at a time: while one merges, another waits for the store. No two of them share a key.
const RECORDERS: usize = 2;
/// Fewer messages than this go in one batch rather than in several.
const COLUMN_MIN: usize = 32;
/// How often a batch is recorded again after another wrote the same shared resource, such as a ward, before it.
const CONFLICTS_MAX: usize = 5;
/// A batch of fewer messages than this is soon followed by another: then the next ones gather for a moment, because a
/// transaction costs more than a message.
const GATHER_BELOW: usize = 24;
/// How long they gather.
const GATHER: Duration = Duration::from_millis(8);
/// How often the store is asked although nobody called: other replicas and replays write there too.
const POLL_EVERY: Duration = Duration::from_millis(200);

/// One message, mapped and not yet recorded.
#[derive(Debug)]
pub struct Prepared {
    /// The message.
    pub open: OpenMessage,
    /// Its HL7 v2 trigger event.
    pub event: Option<String>,
    /// The mapping and its version.
    pub mapping: String,
    /// What reading and mapping had to say.
    pub issues: Vec<Issue>,
    /// Its codes that no table translates.
    pub unmapped: Unmapped,
    /// What it says, or why it goes into quarantine.
    pub facts: Result<Facts, String>,
    /// While somebody traces: normalizing, under way.
    pub verb: Option<Verb>,
}

/// What one message says.
#[derive(Debug)]
pub struct Facts {
    /// What it says about the Bundle, as JSON members.
    pub bundle: String,
    /// In the order of the message.
    pub what: Vec<What>,
    /// What it does beyond that.
    pub effects: Vec<Effect>,
    /// When it says so.
    pub stamp: Stamp,
}

/// What a message says about one resource.
#[derive(Debug)]
pub enum What {
    /// Slots, by a mapping.
    Slots(Contributed),
    /// The whole resource, by a FHIR update: its identity, and its elements as (name, JSON text).
    Whole(Contribution, Vec<(String, String)>),
}

impl What {
    fn contribution(&self) -> &Contribution {
        match self {
            What::Slots(contribution) => contribution,
            What::Whole(contribution, _) => contribution,
        }
    }
}

impl Facts {
    fn contributions(&self) -> impl Iterator<Item = &Contribution> {
        self.what.iter().map(What::contribution)
    }
}

/// Turns stored bytes into facts. Pure but for the catalog, which may be exchanged while running.
#[derive(Debug)]
pub struct Mapper {
    catalog: RwLock<Arc<Catalog>>,
    codes: RwLock<Arc<SiteCodes>>,
    namespace: Uuid,
    systems: crate::ingest::senders::Senders,
    limits: Limits,
}

impl Takes for Mapper {
    fn takes(&self, code: &str, trigger: &str, structure: &str, version: &str) -> Result<(), u16> {
        let catalog = self.catalog();
        if catalog.program_for(code, trigger, structure, version).is_some() {
            // A version between or after the published ones of HL7 v2 is read by the nearest; anything else is not HL7 v2.
            let version = version.trim();
            let known = version.is_empty() || version.split('.').next() == Some("2");
            return if known { Ok(()) } else { Err(203) };
        }
        let of_type = || catalog.programs().iter().filter(|program| program.takes().0 == code);
        Err(match () {
            () if of_type().next().is_none() => 200,
            () if of_type().any(|program| program.takes().1.iter().any(|event| event == trigger)) => 203,
            () => 201,
        })
    }
}

impl Mapper {
    /// A mapper over a catalog; `namespace` is the installation's, `senders` know their assigning authorities.
    pub fn new(
        catalog: Arc<Catalog>,
        namespace: Uuid,
        senders: crate::ingest::senders::Senders,
        limits: Limits,
    ) -> Self {
        Mapper {
            catalog: RwLock::new(catalog),
            codes: RwLock::default(),
            namespace,
            systems: senders,
            limits,
        }
    }

    /// The catalog in use.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What people have said of single codes, as far as it was read.
    pub fn codes(&self) -> Arc<SiteCodes> {
        self.codes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads what people have said of codes since.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn refresh_codes(&self, store: &dyn Store) -> Result<(), StoreError> {
        if let Some(codes) = store.site_codes(self.codes().version()).await? {
            tracing::info!(version = codes.version(), "translated codes read");
            *self.codes.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(codes);
        }
        Ok(())
    }

    /// Uses another catalog from the next message on.
    pub fn exchange(&self, catalog: Arc<Catalog>) {
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = catalog;
    }

    /// Maps one message. A panic in here is a mistake of ours: the message goes into quarantine, the others go on.
    pub fn prepare(&self, open: OpenMessage) -> Prepared {
        let verb = Verb::begin("normalize", trace::in_context(&open.context), SystemTime::now());
        let mapped = catch_unwind(AssertUnwindSafe(|| match open.format {
            Format::Hl7v2 => self.map_hl7v2(&open),
            Format::FhirJson => fhir::facts(&open, self.namespace),
        }));
        mapped
            .unwrap_or_else(|_| Mapped {
                event: None,
                mapping: String::new(),
                issues: Vec::new(),
                unmapped: Unmapped::default(),
                facts: Err("the mapping broke off: a defect of Pons".to_owned()),
            })
            .of(open, verb)
    }

    fn map_hl7v2(&self, open: &OpenMessage) -> Mapped {
        let quarantine = |why: String, issues| Mapped {
            event: None,
            mapping: String::new(),
            issues,
            unmapped: Unmapped::default(),
            facts: Err(why),
        };
        let decoded = charset::decode(&open.bytes, None);
        let mut issues = decoded.issues;
        let message = match Message::parse(&decoded.text, &self.limits) {
            Ok(message) => message,
            Err(error) => return quarantine(error.to_string(), issues),
        };
        issues.extend_from_slice(message.issues());
        // A part of a message must not pass for the whole.
        if let Some(issue) = message.issues().iter().find(|issue| issue.severity == Severity::Error) {
            return quarantine(issue.text.clone(), issues);
        }
        let trigger = message.header().trigger().unwrap_or_default().into_owned();
        let catalog = self.catalog();
        let codes = self.codes();
        let Some(program) = catalog.program_of(&open.sender, &message) else {
            return quarantine("there is no mapping for its type (MSH-9)".to_owned(), issues);
        };
        let context = Context {
            message_id: open.id.0,
            received_at: open.received_at,
            seq: open.seq.0,
            sender: open.sender.clone(),
            authority: open.sender.clone(),
            zone: zone_of(&open.context),
            namespace: self.namespace,
            systems: self.systems.systems(&open.sender),
            options: &[],
            codes: Some(&codes),
        };
        let mapping = program.stamp().to_owned();
        let event = Some(trigger);
        let unmapped = |all| Unmapped { version: codes.version(), codes: all };
        match program.run(&message, &context) {
            Ok(mapped) => {
                issues.extend(mapped.issues);
                let what = mapped.contributions.into_iter().map(What::Slots).collect();
                let facts =
                    Ok(Facts { bundle: mapped.bundle, what, effects: mapped.effects, stamp: mapped.stamp });
                Mapped { event, mapping, issues, unmapped: unmapped(mapped.unmapped_codes), facts }
            }
            Err(quarantined) => {
                issues.extend(quarantined.issues);
                let unmapped = unmapped(quarantined.unmapped_codes);
                Mapped { event, mapping, issues, unmapped, facts: Err(quarantined.reason) }
            }
        }
    }
}

/// What mapping makes, before it is put beside its message.
struct Mapped {
    event: Option<String>,
    mapping: String,
    issues: Vec<Issue>,
    unmapped: Unmapped,
    facts: Result<Facts, String>,
}

/// Codes that no table translates.
#[derive(Debug, Default)]
pub struct Unmapped {
    /// Which version of [`SiteCodes`] does not know them either.
    pub version: i64,
    /// One for each place of the message.
    pub codes: Vec<UnmappedCode>,
}

impl Mapped {
    fn of(self, open: OpenMessage, verb: Option<Verb>) -> Prepared {
        let Mapped { event, mapping, issues, unmapped, facts } = self;
        Prepared { open, event, mapping, issues, unmapped, facts, verb }
    }
}

/// The zone that was stored with a message; UTC, and flagged, without one.
fn zone_of(context: &str) -> Zone {
    let context: serde_json::Value = serde_json::from_str(context).unwrap_or_default();
    context["zone"].as_str().and_then(|name| Zone::named(name).ok()).unwrap_or(Zone::UNSTATED)
}

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
enum Worked {
    /// So many messages were recorded.
    On(usize),
    /// Nothing may go now.
    Nothing,
    /// There is something, but intake goes first.
    GaveWay,
    /// The store did not take it; it stays open.
    Failed,
}

/// One worker over the lanes that this replica holds.
pub struct Normalizer {
    /// Where messages are open.
    pub store: Arc<dyn Store>,
    /// How they are mapped.
    pub mapper: Arc<Mapper>,
    /// Whom they concern.
    pub router: Arc<Router>,
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
    /// Works until `stop`. `wake` says that intake has written something, `held` which lanes are ours.
    pub async fn run(
        self,
        mut wake: watch::Receiver<Seq>,
        mut held: watch::Receiver<Held>,
        stop: CancellationToken,
    ) {
        let mut open: Vec<OpenMessage> = Vec::new();
        let mut after = Seq(i64::MIN);
        let mut polled = tokio::time::Instant::now();
        let mut courtesy = Courtesy::default();
        let mut codes_read = false;
        let mut ours = Held::default();
        loop {
            // By what they are, not by whether anybody was told: the wait below takes that away. Lanes that came and were not noticed
            // would be worked without what they hold from before.
            let held_now = held.borrow_and_update().clone();
            let lanes_changed = held_now != ours;
            ours = held_now;
            if !codes_read || lanes_changed || polled.elapsed() >= POLL_EVERY {
                codes_read = match self.mapper.refresh_codes(&*self.store).await {
                    Ok(()) => true,
                    Err(error) => {
                        tracing::warn!(error = %crate::chain(&error), "translated codes could not be read");
                        false
                    }
                };
                // Look at everything anew: lanes came or went, or a replay opened an old message again.
                after = Seq(i64::MIN);
                open.clear();
                polled = tokio::time::Instant::now();
            }
            let worked = match self.work(&ours, &mut open, &mut after, &mut courtesy).await {
                Ok(worked) => worked,
                Err(error) => {
                    tracing::warn!(error = %crate::chain(&error), "a batch could not be recorded; it stays open");
                    (open, after) = (Vec::new(), Seq(i64::MIN));
                    // What two do at a time is over soon.
                    let briefly = matches!(error, StoreError::Conflict);
                    pause(Duration::from_millis(if briefly { 50 } else { 500 }), &stop).await;
                    Worked::Failed
                }
            };
            if stop.is_cancelled() {
                return;
            }
            match worked {
                Worked::Nothing => tokio::select! {
                    () = stop.cancelled() => return,
                    _ = wake.changed() => {}
                    _ = held.changed() => {}
                    () = tokio::time::sleep(POLL_EVERY) => {}
                },
                Worked::GaveWay => {
                    let began = Instant::now();
                    pause(courtesy::GIVE_WAY, &stop).await;
                    let took = began.elapsed();
                    courtesy.shown(took);
                    self.metrics.gave_way(took);
                    polled += took;
                }
                Worked::On(messages) if messages < GATHER_BELOW => pause(GATHER, &stop).await,
                Worked::On(_) | Worked::Failed => {}
            }
        }
    }

    /// Takes what may go now and records it.
    async fn work(
        &self,
        ours: &Held,
        open: &mut Vec<OpenMessage>,
        after: &mut Seq,
        courtesy: &mut Courtesy,
    ) -> Result<Worked, StoreError> {
        if ours.leases.is_empty() {
            return Ok(Worked::Nothing);
        }
        if open.len() < WINDOW / 2 {
            let more =
                self.store.open_messages(ours.lanes, *after, WINDOW - open.len(), WINDOW_BYTES).await?;
            *after = more.last().map_or(*after, |last| last.seq);
            open.extend(more);
        }
        // Somebody who waits for a result must not wait for others' acknowledgements.
        let pressed = self.pressure.is_high(Instant::now()) && !self.waiters.anybody();
        if courtesy.gives_way(open.len() >= WINDOW / 2, pressed) {
            return Ok(Worked::GaveWay);
        }
        let mut cleared = HashSet::new();
        let mut planned = plan(open, ours.lanes, &cleared);
        if !planned.foreign.is_empty() || !planned.ask.is_empty() {
            planned = self.look_across(ours, open, planned, &mut cleared).await?;
        }
        let worked = planned.go.len();
        if worked == 0 {
            return Ok(Worked::Nothing);
        }
        let mut going: Vec<OpenMessage> = Vec::with_capacity(planned.go.len());
        let chosen: HashSet<usize> = planned.go.into_iter().collect();
        let mut index = 0;
        open.retain(|message| {
            let goes = chosen.contains(&index);
            index += 1;
            if goes {
                going.push(message.clone());
            }
            !goes
        });
        if going.iter().any(|message| message.revision > 0) {
            // It may go again because somebody has translated a code of it just now.
            self.mapper.refresh_codes(&*self.store).await?;
        }
        let columns = plan::columns(going, RECORDERS, COLUMN_MIN);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / columns.len().max(1)).max(1);
        let recorded =
            future::join_all(columns.into_iter().map(|column| self.record_all(ours, column, threads))).await;
        recorded.into_iter().collect::<Result<(), StoreError>>()?;
        Ok(Worked::On(worked))
    }

    /// Records messages in batches, one after the other; while one is recorded, the next is mapped on so many threads.
    async fn record_all(
        &self,
        ours: &Held,
        messages: Vec<OpenMessage>,
        threads: usize,
    ) -> Result<(), StoreError> {
        let mut messages = messages.into_iter().peekable();
        let mut next = || {
            let mut batch: Vec<OpenMessage> = Vec::new();
            let mut bytes = 0;
            while let Some(message) = messages.next_if(|message| {
                bytes += message.bytes.len();
                batch.is_empty() || (batch.len() < BATCH && bytes <= BATCH_BYTES)
            }) {
                batch.push(message);
            }
            (!batch.is_empty()).then(|| self.map(batch, threads))
        };
        let mut mapping = next();
        while let Some(mapped) = mapping {
            let batch = mapped.await;
            mapping = next();
            self.record(ours, batch).await?;
        }
        Ok(())
    }

    /// Asks the store about messages that share their keys with other workers.
    async fn look_across(
        &self,
        ours: &Held,
        open: &mut Vec<OpenMessage>,
        planned: Plan,
        cleared: &mut HashSet<Seq>,
    ) -> Result<Plan, StoreError> {
        let foreign: Vec<Seq> = planned.foreign.iter().map(|index| open[*index].seq).collect();
        if !foreign.is_empty() {
            let still: HashSet<Seq> = self.store.still_open(&foreign).await?.into_iter().collect();
            let done: HashSet<Seq> = foreign.into_iter().filter(|seq| !still.contains(seq)).collect();
            // Indexes are void after this; the plan is made anew below.
            let asked: Vec<Seq> = planned.ask.iter().map(|index| open[*index].seq).collect();
            open.retain(|message| !done.contains(&message.seq));
            for message in open.iter().filter(|message| asked.contains(&message.seq)) {
                if !self.store.open_before(message.seq, &message.keys).await? {
                    cleared.insert(message.seq);
                }
            }
        } else {
            for index in &planned.ask {
                let message = &open[*index];
                if !self.store.open_before(message.seq, &message.keys).await? {
                    cleared.insert(message.seq);
                }
            }
        }
        Ok(plan(open, ours.lanes, cleared))
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
                    let began = Instant::now();
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

    /// Records a batch. Where the store refuses it as a whole for a reason of its own, each message is recorded alone, and one
    /// that is refused even so goes into quarantine: it must not stop the others.
    async fn record(&self, ours: &Held, mut batch: Vec<Prepared>) -> Result<(), StoreError> {
        let lanes =
            LaneSet::of(&batch.iter().flat_map(|prepared| prepared.open.keys.clone()).collect::<Vec<_>>());
        let leases = ours.of(lanes);
        let mut conflicts = 0;
        let error = loop {
            let began = Instant::now();
            let tx = self.store.begin_record(&leases).await?;
            let (refused, error) = match record::record(tx, batch, &self.router).await {
                Ok(recorded) => {
                    self.tell(recorded, began.elapsed());
                    return Ok(());
                }
                Err(failed) => failed,
            };
            batch = refused;
            if !matches!(error, StoreError::Conflict) || conflicts == CONFLICTS_MAX {
                break error;
            }
            conflicts += 1;
        };
        if !matches!(error, StoreError::Bug(_)) {
            return Err(error);
        }
        tracing::error!(error = %crate::chain(&error), messages = batch.len(), "the store refused a batch; recording its messages one by one");
        for prepared in batch {
            let began = Instant::now();
            let tx = self.store.begin_record(&leases).await?;
            let (refused, error) = match record::record(tx, vec![prepared], &self.router).await {
                Ok(recorded) => {
                    self.tell(recorded, began.elapsed());
                    continue;
                }
                Err((refused, error @ StoreError::Bug(_))) => (refused, error),
                Err((_, error)) => return Err(error),
            };
            tracing::error!(error = %crate::chain(&error), "the store refused a message; it goes into quarantine");
            let quarantined = refused
                .into_iter()
                .map(|prepared| Prepared {
                    facts: Err("the store refused it: a defect of Pons".to_owned()),
                    ..prepared
                })
                .collect();
            let tx = self.store.begin_record(&leases).await?;
            let recorded = record::record(tx, quarantined, &self.router).await.map_err(|(_, error)| error)?;
            self.tell(recorded, began.elapsed());
        }
        Ok(())
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
