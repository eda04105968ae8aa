//! A store in memory that has only what a deliverer needs, with faults to order, and a destination that does as told.

use crate::store::*;
use adapters::{DeliverError, Destination, Outgoing, Receipt};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use schemas::message::{DeliveryId, LaneSet, MessageId, OrderKey, Seq};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

/// Long enough in the paused time of the tests.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

pub(super) const SUBSCRIPTION: &str = "deliverer-under-test";

#[derive(Default)]
pub(super) struct FakeStore {
    state: Mutex<StoreState>,
    changed: Notify,
}

#[derive(Default)]
pub(super) struct StoreState {
    pub(super) rows: BTreeMap<i64, Row>,
    lease: Option<(Uuid, i64, Instant)>,
    epoch: Option<String>,
    pub(super) away: bool,
    pub(super) readings: usize,
    pub(super) contents_read: usize,
    pub(super) unpublished: usize,
    pub(super) released: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) open: OpenDelivery,
    due: Option<Instant>,
    /// Every state written, with the fence of who wrote it.
    pub(super) history: Vec<(DeliveryState, i64)>,
    pub(super) attempts: Vec<Attempt>,
}

fn away() -> StoreError {
    StoreError::Away("it was sent away".into())
}

impl FakeStore {
    pub(super) fn state(&self) -> MutexGuard<'_, StoreState> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    fn reach(&self) -> Result<MutexGuard<'_, StoreState>, StoreError> {
        let state = self.state();
        if state.away { Err(away()) } else { Ok(state) }
    }

    /// Adds a pending delivery of this key; its event number is the next one.
    pub(super) fn add(&self, key: i64) -> OpenDelivery {
        let mut state = self.state();
        let number = state.rows.last_key_value().map_or(1, |(last, _)| last + 1);
        let message = MessageId(Uuid::from_u128(number.unsigned_abs().into()));
        let open = OpenDelivery {
            id: DeliveryId::of(Uuid::NAMESPACE_OID, message, SUBSCRIPTION, 0),
            message,
            revision: 0,
            number,
            key: OrderKey(key),
            matched: vec!["result-final".to_owned()].into(),
            state: DeliveryState::Pending,
            attempts: 0,
            rest: Duration::ZERO,
        };
        let row = Row { open: open.clone(), due: None, history: Vec::new(), attempts: Vec::new() };
        state.rows.insert(number, row);
        open
    }

    /// What a delivery carries.
    pub(super) fn content(message: MessageId) -> Content {
        Content {
            original: Bytes::from(format!("MSH of {message}")),
            format: Format::Hl7v2,
            sender: "TESTLAB".into(),
            message_type: "ORU^R01".to_owned(),
            received_at: Timestamp::UNIX_EPOCH,
            bundle: Bytes::from(format!(r#"{{"resourceType":"Bundle","id":"{message}"}}"#)),
            beside: Bytes::new(),
        }
    }

    /// Another replica takes the lease, whoever has it.
    pub(super) fn take_lease_away(&self) {
        let mut state = self.state();
        let fence = state.lease.map_or(1, |(_, fence, _)| fence + 1);
        state.lease = Some((Uuid::from_u128(u128::MAX), fence, Instant::now() + PATIENCE));
    }

    /// A person wants a dead letter tried again.
    pub(super) fn replay(&self, number: i64) {
        let mut state = self.state();
        let row = state.rows.get_mut(&number).expect("it was added");
        assert_eq!(row.open.state, DeliveryState::Parked);
        (row.open.state, row.open.attempts) = (DeliveryState::Pending, 0);
    }

    /// Waits until the rows are as wanted.
    pub(super) async fn until(&self, what: &str, wanted: impl Fn(&StoreState) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if wanted(&self.state()) {
                    return;
                }
                changed.await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("in a whole day not: {what}"));
    }

    pub(super) async fn until_all(&self, wanted: DeliveryState) {
        self.until(&format!("{wanted:?}"), |state| state.rows.values().all(|row| row.open.state == wanted))
            .await;
    }
}

fn is_open(state: DeliveryState) -> bool {
    matches!(state, DeliveryState::Pending | DeliveryState::Published | DeliveryState::RetryWait)
}

macro_rules! not_a_delivery {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for FakeStore {
            $(async fn $name(&self, $($argument: $kind),*) -> Result<$answer, StoreError> {
                let _ = ($($argument,)*);
                Err(StoreError::Bug("a deliverer has no business with this".into()))
            })*

            async fn lease(
                &self,
                replica: Uuid,
                names: &[String],
                ttl: Duration,
            ) -> Result<Vec<Lease>, StoreError> {
                let mut state = self.reach()?;
                let now = Instant::now();
                let fence = match state.lease {
                    None => 1,
                    Some((holder, fence, _)) if holder == replica => fence,
                    Some((_, fence, until)) if until <= now => fence + 1,
                    Some(_) => return Ok(Vec::new()),
                };
                state.lease = Some((replica, fence, now + ttl));
                Ok(vec![Lease { name: names[0].clone(), fence }])
            }

            async fn release(&self, replica: Uuid, _: &[String]) -> Result<(), StoreError> {
                let mut state = self.reach()?;
                if let Some((holder, _, until)) = &mut state.lease
                    && *holder == replica
                {
                    *until = Instant::now();
                    // The next holder must be told from this one.
                    *holder = Uuid::nil();
                    state.released += 1;
                }
                Ok(())
            }

            async fn open_deliveries(
                &self,
                subscription: &str,
                after: i64,
                limit: usize,
            ) -> Result<Vec<OpenDelivery>, StoreError> {
                assert_eq!(subscription, SUBSCRIPTION);
                let mut state = self.reach()?;
                state.readings += 1;
                let now = Instant::now();
                let open = state.rows.range(after + 1..).map(|(_, row)| row);
                let open = open.filter(|row| is_open(row.open.state)).take(limit);
                Ok(open
                    .map(|row| {
                        let rest = row.due.map_or(Duration::ZERO, |due| due.duration_since(now));
                        OpenDelivery { rest, ..row.open.clone() }
                    })
                    .collect())
            }

            async fn parked_deliveries(
                &self,
                _: &str,
                limit: usize,
            ) -> Result<Vec<DeadLetter>, StoreError> {
                let state = self.reach()?;
                let parked = state.rows.values().filter(|row| row.open.state == DeliveryState::Parked);
                let letter = |row: &Row| DeadLetter {
                    number: row.open.number,
                    key: row.open.key,
                    age: row.due.map_or(Duration::ZERO, |due| due.elapsed()),
                };
                Ok(parked.map(letter).take(limit).collect())
            }

            async fn delivered_lately(
                &self,
                _: &str,
                within: Duration,
                after: i64,
                limit: usize,
            ) -> Result<Vec<OpenDelivery>, StoreError> {
                let state = self.reach()?;
                let rows = state.rows.range(after + 1..).map(|(_, row)| row);
                let lately = rows.filter(|row| {
                    row.open.state == DeliveryState::Delivered && row.due.is_some_and(|due| due.elapsed() <= within)
                });
                Ok(lately.map(|row| row.open.clone()).take(limit).collect())
            }

            async fn contents(
                &self,
                of: &[(MessageId, u32)],
            ) -> Result<HashMap<(MessageId, u32), Content>, StoreError> {
                self.reach()?.contents_read += of.len();
                Ok(of.iter().map(|of| (*of, FakeStore::content(of.0))).collect())
            }

            async fn change_deliveries(
                &self,
                lease: &Lease,
                changes: Vec<DeliveryChange>,
            ) -> Result<(), StoreError> {
                // Time to be overtaken by something else, as a real commit has.
                tokio::task::yield_now().await;
                let mut state = self.reach()?;
                let held = state.lease.map(|(_, fence, _)| fence);
                if held != Some(lease.fence) {
                    return Err(StoreError::Fenced);
                }
                let now = Instant::now();
                for change in changes {
                    let row = state.rows.values_mut().find(|row| row.open.id == change.id);
                    let row = row.expect("nobody invents a delivery");
                    if !is_open(row.open.state) {
                        continue;
                    }
                    row.open.state = change.state;
                    row.open.attempts = change.attempts;
                    row.due = Some(now + change.rest);
                    row.history.push((change.state, lease.fence));
                    row.attempts.extend(change.attempt);
                }
                self.changed.notify_waiters();
                Ok(())
            }

            async fn unpublish_all(&self) -> Result<u64, StoreError> {
                let mut state = self.reach()?;
                state.unpublished += 1;
                let published = state.rows.values_mut().filter(|row| row.open.state == DeliveryState::Published);
                Ok(published.map(|row| row.open.state = DeliveryState::Pending).count() as u64)
            }

            async fn bus_epoch(&self) -> Result<Option<String>, StoreError> {
                Ok(self.reach()?.epoch.clone())
            }

            async fn set_bus_epoch(&self, epoch: &str) -> Result<(), StoreError> {
                self.reach()?.epoch = Some(epoch.to_owned());
                Ok(())
            }
        }
    };
}

not_a_delivery! {
    migrate() -> ();
    check_schema() -> ();
    quarantined(keys: &[OrderKey]) -> Vec<OrderKey>;
    check_durable() -> ();
    namespace() -> Uuid;
    append(batch: Vec<NewMessage>) -> Vec<Appended>;
    open_messages(lanes: LaneSet, after: Seq, limit: usize, bytes_max: usize) -> Vec<OpenMessage>;
    still_open(seqs: &[Seq]) -> Vec<Seq>;
    open_before(seq: Seq, keys: &[OrderKey]) -> bool;
    begin_record(leases: &[Lease]) -> Box<dyn RecordTx>;
    heartbeat(replica: Uuid, ttl: Duration) -> u32;
    search(query: &Query) -> Vec<Summary>;
    named(aliases: &[Alias]) -> Vec<Uuid>;
    held(ids: &[Uuid]) -> Vec<StoredResource>;
    held_of_patient(patient: Uuid, resource_type: Option<&str>, after: Option<Uuid>, limit: usize) -> Vec<StoredResource>;
    timeline(id: MessageId) -> Option<Timeline>;
    request(who: &str, requests: &[Request]) -> ();
    carry_out_requests(limit: usize) -> usize;
    books() -> Vec<Books>;
    unmapped_codes(sender: Option<&str>, table: Option<&str>, limit: usize) -> Vec<UnmappedSeen>;
    translate_code(who: &str, code: &mappings::SiteCode) -> usize;
    site_codes(known: i64) -> Option<mappings::SiteCodes>;
    housekeeping(retention: &Retention, now: Timestamp) -> u64;
    events(subscription: &str, after: i64, until: i64, limit: usize) -> Vec<OpenDelivery>;
    last_event(subscription: &str) -> i64;
    requested(known: i64) -> Option<crate::store::Changes>;
    write_requested(one: &crate::store::Requested) -> ();
    take_up_again(subscription: &str) -> u64;
    give_up(subscription: &str, why: &str, limit: usize) -> u64;
    forget(id: Uuid) -> ();
    unfinished() -> Vec<String>;
    rest(subscription: &str) -> ();
    seize(replica: Uuid, name: &str, ttl: Duration) -> Lease;
    keep_token(token: &SocketToken, now: Timestamp) -> ();
    token(hash: &[u8; 32]) -> Option<SocketToken>;
    made(message: MessageId) -> Vec<MadeBy>;
    room() -> Option<u64>;
}

/// What the destination does with one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    Accept,
    Refuse,
    Away,
    Never,
    Hang,
    Panic,
}

type Script = Box<dyn Fn(i64, u32) -> Reaction + Send + Sync>;

/// Asked with the event number and the how many-th attempt on it this is.
pub(super) struct FakeDestination {
    script: Mutex<Script>,
    state: Mutex<Received>,
    pub(super) arrived: Notify,
    /// Holds every attempt until it is opened.
    pub(super) gate: tokio::sync::Semaphore,
    gated: bool,
}

#[derive(Default)]
pub(super) struct Received {
    /// Event numbers in the order in which they were accepted.
    pub(super) accepted: Vec<i64>,
    /// Event numbers in the order in which attempts began.
    pub(super) tried: Vec<i64>,
    pub(super) passes: HashMap<i64, Option<i64>>,
    pub(super) originals: HashMap<i64, Bytes>,
    tries: HashMap<i64, u32>,
    under_way: HashSet<i64>,
    pub(super) under_way_max: usize,
}

impl std::fmt::Debug for FakeDestination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeDestination")
    }
}

impl FakeDestination {
    pub(super) fn new(script: impl Fn(i64, u32) -> Reaction + Send + Sync + 'static) -> Arc<Self> {
        Self::make(script, false)
    }

    /// One that accepts, each attempt only when a permit is given.
    pub(super) fn gated() -> Arc<Self> {
        Self::make(|_, _| Reaction::Accept, true)
    }

    fn make(script: impl Fn(i64, u32) -> Reaction + Send + Sync + 'static, gated: bool) -> Arc<Self> {
        Arc::new(FakeDestination {
            script: Mutex::new(Box::new(script)),
            state: Mutex::default(),
            arrived: Notify::new(),
            gate: tokio::sync::Semaphore::new(0),
            gated,
        })
    }

    pub(super) fn set(&self, script: impl Fn(i64, u32) -> Reaction + Send + Sync + 'static) {
        *self.script.lock().expect("nothing panics while it holds this lock") = Box::new(script);
    }

    pub(super) fn received(&self) -> MutexGuard<'_, Received> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    pub(super) async fn until(&self, what: &str, wanted: impl Fn(&Received) -> bool) {
        let waiting = async {
            loop {
                let arrived = self.arrived.notified();
                if wanted(&self.received()) {
                    return;
                }
                arrived.await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("in a whole day not: {what}"));
    }
}

/// Leaves the attempt even when it is cancelled or panics.
struct UnderWay<'a>(&'a FakeDestination, i64);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.received().under_way.remove(&self.1);
    }
}

#[async_trait]
impl Destination for FakeDestination {
    fn needs_original(&self) -> bool {
        true
    }

    async fn deliver(&self, outgoing: &Outgoing) -> Result<Receipt, DeliverError> {
        let event: serde_json::Value = serde_json::from_slice(&outgoing.event).expect("an event is JSON");
        assert_eq!(event["id"], outgoing.delivery.to_string());
        assert_eq!(event["data"].to_string().as_bytes(), &outgoing.bundle[..]);
        let number: i64 = event["number"].as_str().and_then(|n| n.parse().ok()).expect("it has a number");
        let message = MessageId(Uuid::from_u128(number.unsigned_abs().into()));
        assert_eq!(
            outgoing.delivery,
            DeliveryId::of(Uuid::NAMESPACE_OID, message, SUBSCRIPTION, 0),
            "a repeat has the same id"
        );
        let tries = {
            let mut received = self.received();
            received.tried.push(number);
            received.passes.insert(number, outgoing.passes);
            received.originals.insert(number, outgoing.original.clone());
            assert!(received.under_way.insert(number), "one attempt at a time");
            received.under_way_max = received.under_way_max.max(received.under_way.len());
            let tries = received.tries.entry(number).or_insert(0);
            *tries += 1;
            *tries
        };
        let _under_way = UnderWay(self, number);
        self.arrived.notify_waiters();
        if self.gated {
            self.gate.acquire().await.expect("the gate is not closed").forget();
        } else {
            tokio::task::yield_now().await;
        }
        let reaction = (self.script.lock().expect("nothing panics while it holds this lock"))(number, tries);
        match reaction {
            Reaction::Accept => {
                self.received().accepted.push(number);
                self.arrived.notify_waiters();
                Ok(Receipt { answer: "HTTP 200".to_owned() })
            }
            Reaction::Refuse => {
                Err(DeliverError::Again { answer: "HTTP 503".to_owned(), after: None, away: false })
            }
            Reaction::Away => {
                Err(DeliverError::Again { answer: "refused".to_owned(), after: None, away: true })
            }
            Reaction::Never => Err(DeliverError::Never { answer: "HTTP 422".to_owned() }),
            Reaction::Hang => std::future::pending().await,
            // As a panic, without its text on the screen.
            Reaction::Panic => std::panic::resume_unwind(Box::new("as the test wants it")),
        }
    }
}
