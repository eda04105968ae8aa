//! One deliverer for each subscription: started, and stopped, as subscriptions come and go.

use super::feed::{Feed, feed};
use super::life::Life;
use super::sockets::Socket;
use super::{AmqpQueue, Counters, OnParked, Services, Settings, Subscription, Written};
use crate::bus::{Bus, Keys};
use crate::config::{self, To};
use crate::lifecycle::RetryPolicy;
use crate::normalize::Mapper;
use crate::route::requested::{Channel, queue_of};
use crate::route::roster::{Enrolment, Roster};
use crate::store::{Standing, StoreError};
use crate::telemetry::metrics::Metrics;
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// What had gone into a subscriber's own queue within this time is handed over again when the broker was wiped.
const AGAIN_AFTER_WIPE: Duration = Duration::from_secs(3_600);
/// How often it is looked who is subscribed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After how long what is off or deleted gives up its events: every recording and every attempt that still knew it is over then.
const REST: Duration = Duration::from_secs(90);
/// After how long without anything to do a subscription has no deliverer.
const IDLE: Duration = Duration::from_secs(60);
/// After how long in error it is switched off.
const ERROR_MAX: Duration = Duration::from_secs(30 * 86_400);

/// The deliverers of this process.
pub struct Deliverers {
    services: Services,
    mapper: Arc<Mapper>,
    metrics: Arc<Metrics>,
    at_work: TaskTracker,
    stop: CancellationToken,
    running: RwLock<HashMap<Arc<str>, One>>,
    /// Those for whom something was recorded while they had no deliverer.
    woken: Mutex<HashSet<Arc<str>>>,
    wake: Notify,
    /// Those, by id and version, whose own queue nobody may read any more.
    revoked: Mutex<HashSet<(Uuid, i64)>>,
}

/// A deliverer at work.
struct One {
    feed: Feed,
    counters: Arc<Counters>,
    /// The version of what was requested; 0 for what is configured.
    written: i64,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Deliverers {
    /// None yet. They are tracked by `at_work`, and end soon after `stop`.
    pub fn new(
        services: Services,
        mapper: Arc<Mapper>,
        metrics: Arc<Metrics>,
        at_work: TaskTracker,
        stop: CancellationToken,
    ) -> Deliverers {
        Deliverers {
            services,
            mapper,
            metrics,
            at_work,
            stop,
            running: RwLock::default(),
            woken: Mutex::default(),
            wake: Notify::new(),
            revoked: Mutex::default(),
        }
    }

    /// Starts the deliverer of a subscription.
    pub fn start(&self, subscription: &config::Subscription, life: Option<Life>) {
        let (feed, fed) = feed();
        let counters = Arc::new(Counters::default());
        let written = life.as_ref().map_or(0, |life| life.written);
        let stop = self.stop.child_token();
        let one = self.one(subscription, counters.clone(), life);
        let task = self.at_work.spawn(super::run(one, self.services.clone(), fed, stop.clone()));
        let one = One { feed, counters, written, stop, task };
        let mut running = self.running.write().unwrap_or_else(PoisonError::into_inner);
        running.insert(subscription.name.clone(), one);
    }

    /// The way to the deliverer of a subscription.
    pub fn feed(&self, subscription: &str) -> Option<Feed> {
        let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        running.get(subscription).map(|one| one.feed.clone())
    }

    /// Something was recorded for a subscription that has no deliverer: it gets one.
    pub fn wake(&self, subscription: &Arc<str>) {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(subscription));
        self.wake.notify_one();
    }

    fn revoked(&self) -> MutexGuard<'_, HashSet<(Uuid, i64)>> {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_revoked(&self, one: &Enrolment) -> bool {
        self.revoked().contains(&(one.stored.id, one.stored.version))
    }

    /// What each has counted.
    pub fn counters(&self) -> Vec<(Arc<str>, Arc<Counters>)> {
        let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> =
            running.iter().map(|(name, one)| (name.clone(), one.counters.clone())).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    fn one(
        &self,
        subscription: &config::Subscription,
        counters: Arc<Counters>,
        life: Option<Life>,
    ) -> Subscription {
        let destination: Arc<dyn adapters::Destination> = match &subscription.to {
            To::Adapter(destination) => destination.clone(),
            To::Queue(queue) => Arc::new(AmqpQueue::new(self.services.bus.clone(), queue.as_str())),
            To::Socket => {
                Arc::new(Socket::new(self.services.sockets.clone(), Arc::clone(&subscription.name)))
            }
        };
        let destination = match &subscription.writes {
            Some(writes) => Arc::new(Written::new(destination, self.mapper.clone(), writes.clone())),
            None => destination,
        };
        let is_bound = matches!(subscription.to, To::Socket);
        let defaults = Settings::default();
        let settings = Settings {
            // An attempt waits for somebody to come, and must be there when somebody does.
            circuit_rest_max: if is_bound { defaults.circuit_rest_min } else { defaults.circuit_rest_max },
            in_flight_max: subscription.in_flight_max,
            retry: RetryPolicy {
                base: subscription.retry_base,
                cap: subscription.retry_cap,
                attempts_max: subscription.attempts_max,
            },
            attempt_wait_max: subscription.attempt_timeout,
            on_parked: match subscription.block_for {
                None => OnParked::Pass,
                Some(age_max) => OnParked::Block { age_max },
            },
            // Nobody but the subscriber knows what it took from its own queue before the broker was wiped.
            again_after_wipe: matches!(subscription.to, To::Queue(_)).then_some(AGAIN_AFTER_WIPE),
            ..defaults
        };
        Subscription {
            name: subscription.name.clone(),
            settings,
            notifies: subscription.notifies.clone(),
            topic: subscription.topics.first().cloned(),
            life,
            destination,
            is_bound,
            counters,
            timings: self.metrics.timings(&subscription.name),
        }
    }

    /// Starts and stops what the roster asks for. Whoever is to stop is waited for before its successor begins: both would hold the same
    /// lease. Whoever has had nothing to do for a while has no deliverer: a thousand idle ones cost nothing.
    fn follow(&self, roster: &Arc<Roster>, busy: &mut Busy) {
        let now = roster.now();
        busy.note(std::mem::take(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner)));
        let mut running = self.running.write().unwrap_or_else(PoisonError::into_inner);
        let at_work = running.iter().filter(|(_, one)| one.counters.in_window.load(Ordering::Relaxed) > 0);
        busy.note(at_work.map(|(name, _)| Arc::clone(name)));
        let wanted: HashMap<String, &Enrolment> = now
            .requested
            .iter()
            .filter(|one| {
                matches!(one.stored.standing, Standing::Requested | Standing::Active | Standing::Failing)
            })
            .map(|one| (one.stored.id.to_string(), &**one))
            .filter(|(name, one)| self.is_awake(name, one, busy))
            .collect();
        for (name, one) in running.iter().filter(|(_, one)| one.written > 0) {
            let is_wanted = wanted.get(&**name).is_some_and(|asked| {
                asked.wanted.is_ok() && asked.stored.written == one.written && !one.task.is_finished()
            });
            if !is_wanted {
                one.stop.cancel();
            }
        }
        running.retain(|_, one| one.written == 0 || !one.task.is_finished());
        let missing: Vec<_> = wanted.into_iter().filter(|(name, _)| !running.contains_key(&**name)).collect();
        drop(running);
        for (_, one) in missing {
            let Ok(asked) = &one.wanted else { continue };
            let life = Life {
                roster: Arc::clone(roster),
                id: one.stored.id,
                written: one.stored.written,
                heartbeat: asked.heartbeat,
            };
            self.start(&asked.subscription, Some(life));
        }
    }

    /// Whether a subscription needs a deliverer.
    fn is_awake(&self, name: &str, one: &Enrolment, busy: &Busy) -> bool {
        let Ok(wanted) = &one.wanted else { return false };
        let is_told_by_itself = one.stored.standing == Standing::Requested || wanted.heartbeat.is_some();
        // What lies in its own queue is handed over again when the broker was wiped; what is bound is bound here.
        let is_tied = match &wanted.subscription.to {
            To::Queue(_) => true,
            To::Socket => self.services.sockets.is_bound(name),
            To::Adapter(_) => false,
        };
        is_told_by_itself || is_tied || busy.has(name)
    }
}

/// Which subscriptions had something to deliver, and when that was seen last.
#[derive(Debug, Default)]
struct Busy(HashMap<Arc<str>, Instant>);

impl Busy {
    fn note(&mut self, names: impl IntoIterator<Item = Arc<str>>) {
        let now = Instant::now();
        self.0.extend(names.into_iter().map(|name| (name, now)));
    }

    fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|seen| seen.elapsed() < IDLE)
    }

    fn forget_idle(&mut self) {
        self.0.retain(|_, seen| seen.elapsed() < IDLE);
    }
}

/// Follows the roster until `stop`: what was requested begins, ends at its time, and is forgotten once it was deleted.
pub async fn keep(deliverers: Arc<Deliverers>, roster: Arc<Roster>, stop: CancellationToken) {
    let mut changes = roster.watch();
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut settled = HashSet::new();
    let mut busy = Busy::default();
    loop {
        deliverers.follow(&roster, &mut busy);
        tokio::select! {
            () = stop.cancelled() => return,
            _ = changes.changed() => continue,
            () = deliverers.wake.notified() => continue,
            () = deliverers.services.sockets.next_binding() => continue,
            _ = look.tick() => {}
        }
        let looked = async {
            if !roster.refresh().await?.requested.is_empty() {
                let unfinished = deliverers.services.store.unfinished().await?;
                busy.forget_idle();
                busy.note(unfinished.into_iter().map(Into::into));
            }
            end(&roster, &mut settled, Timestamp::now()).await?;
            let is_free = |one: &Enrolment| {
                one.channel() != Some(Channel::Amqp)
                    || deliverers.services.keys.is_none()
                    || deliverers.is_revoked(one)
            };
            forget(&roster, &*deliverers.services.bus, Timestamp::now(), &is_free).await
        };
        if let Err(error) = looked.await {
            tracing::warn!(error = %crate::chain(&error), "the subscriptions could not be read");
        }
    }
}

/// Takes the queues of their own away, until `stop`, from those who may not have them any more: at once, whatever still lies there.
pub async fn revoke(
    deliverers: Arc<Deliverers>,
    roster: Arc<Roster>,
    keys: Arc<Keys>,
    stop: CancellationToken,
) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = look.tick() => {}
        }
        let now = roster.now();
        let over = now
            .requested
            .iter()
            .filter(|one| one.stored.standing == Standing::Removed || one.wanted.is_err());
        for one in over.filter(|one| one.channel() == Some(Channel::Amqp) && !deliverers.is_revoked(one)) {
            let id = one.stored.id;
            let queue = queue_of(&id.to_string());
            let revoked = tokio::select! {
                () = stop.cancelled() => return,
                revoked = keys.revoke(&queue) => revoked,
            };
            match revoked {
                Ok(()) => {
                    deliverers.revoked().insert((id, one.stored.version));
                    tracing::info!(subscription = %id, "nobody may read the subscription's own queue any more");
                }
                // It is tried again, when the broker may be back.
                Err(error) => {
                    tracing::warn!(subscription = %id, error = %crate::chain(&error), "a subscriber's own queue could not be taken away");
                    break;
                }
            }
        }
    }
}

/// Switches off what has come to its end, or has been in error for too long, and gives up what those that are off still had to be
/// sent: nobody would ever send it, and retention would wait for it. `settled` are those versions of which that is done.
async fn end(roster: &Roster, settled: &mut HashSet<(Uuid, i64)>, now: Timestamp) -> Result<(), StoreError> {
    for one in &roster.now().requested {
        let (id, version) = (one.stored.id, one.stored.version);
        let ended = one.wanted.as_ref().is_ok_and(|wanted| wanted.end.is_some_and(|end| end <= now));
        let why = match one.stored.standing {
            Standing::Off => {
                if age(one, now) >= REST && !settled.contains(&(id, version)) {
                    let given_up = roster.give_up(id, "its subscription was switched off").await?;
                    settled.insert((id, version));
                    if given_up > 0 {
                        tracing::info!(subscription = %id, given_up, "a subscription that is off gave up its events");
                    }
                }
                continue;
            }
            Standing::Removed => continue,
            _ if ended => String::new(),
            Standing::Refused | Standing::Failing if age(one, now) >= ERROR_MAX => {
                format!("in error for {} days: {}", ERROR_MAX.as_secs() / 86_400, one.stored.error)
            }
            Standing::Requested | Standing::Active | Standing::Refused | Standing::Failing => continue,
        };
        // Its owner may have prolonged it just now.
        let switched = roster.change(id, |one| {
            let is_same = one.version == version;
            (one.standing, one.is_live, one.error) = (Standing::Off, false, why.clone());
            is_same
        });
        if switched.await? {
            tracing::info!(subscription = %id, why, "the subscription is switched off");
        }
    }
    Ok(())
}

/// Forgets what was deleted, as soon as nobody can read what is left of it (`is_free`).
async fn forget(
    roster: &Roster,
    bus: &dyn Bus,
    now: Timestamp,
    is_free: &(dyn Fn(&Enrolment) -> bool + Sync),
) -> Result<(), StoreError> {
    let enrolled = roster.now();
    let gone = enrolled.requested.iter().filter(|one| one.stored.standing == Standing::Removed);
    for one in gone.filter(|one| age(one, now) >= REST && is_free(one)) {
        let id = one.stored.id;
        let removed = async {
            bus.remove(&id.to_string()).await?;
            match one.channel() {
                Some(Channel::Amqp) => bus.remove_own(&id.to_string(), &queue_of(&id.to_string())).await,
                _ => Ok(()),
            }
        };
        if let Err(error) = removed.await {
            // It is tried again: a queue that nobody empties would stay for ever.
            tracing::warn!(subscription = %id, error = %crate::chain(&error), "the queue of a deleted subscription could not be deleted");
            continue;
        }
        let given_up = roster.give_up(id, "its subscription was deleted").await?;
        roster.forget(id).await?;
        tracing::info!(subscription = %id, given_up, "a deleted subscription was forgotten");
    }
    Ok(())
}

/// How long ago it changed.
fn age(one: &Enrolment, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(one.stored.changed_at)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::life::tests::{requested, roster};
    use super::super::sockets::Sockets;
    use super::*;
    use crate::bus::Embedded;
    use crate::ingest::senders::Senders;
    use crate::route::publish::EpochWatch;
    use mappings::Catalog;
    use schemas::hl7v2::Limits;

    async fn standing(roster: &Roster, id: u128) -> Option<Standing> {
        let now = roster.refresh().await.expect("read");
        now.find(Uuid::from_u128(id)).map(|one| one.stored.standing)
    }

    #[tokio::test]
    async fn what_ends_is_switched_off_and_what_is_deleted_is_forgotten_in_its_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, roster) = roster(folder.path()).await;
        let at = |seconds: u64| Timestamp::now() + Duration::from_secs(seconds);
        for one in [
            requested(1, Standing::Active, Some(at(3_600))),
            requested(2, Standing::Active, None),
            requested(3, Standing::Failing, None),
            requested(4, Standing::Refused, None),
            requested(5, Standing::Removed, None),
        ] {
            roster.write(&one).await.expect("written");
        }
        let mut settled = HashSet::new();
        let bus = Embedded::new(1 << 20);
        let mut check = async |now: Timestamp, expected: [Standing; 4]| {
            end(&roster, &mut settled, now).await.expect("looked");
            for (id, expected) in (1..).zip(expected) {
                assert_eq!(standing(&roster, id).await, Some(expected), "{id} at {now}");
            }
        };
        use Standing::{Active, Failing, Off, Refused};
        check(at(60), [Active, Active, Failing, Refused]).await;
        check(at(3_601), [Off, Active, Failing, Refused]).await;
        check(at(29 * 86_400), [Off, Active, Failing, Refused]).await;
        check(at(31 * 86_400), [Off, Active, Off, Off]).await;
        let now = roster.now();
        let failed = now.find(Uuid::from_u128(3)).expect("it is there");
        assert!(failed.stored.error.contains("in error for 30 days") && !failed.stored.is_live);

        forget(&roster, &bus, at(60), &|_| true).await.expect("looked");
        let rows = async || store.requested(-1).await.expect("read").expect("all of them").rows.len();
        assert_eq!(rows().await, 5, "a recording may still know it");
        forget(&roster, &bus, at(91), &|_| false).await.expect("looked");
        assert_eq!(rows().await, 5, "somebody may still read its queue");
        forget(&roster, &bus, at(91), &|_| true).await.expect("looked");
        assert_eq!(rows().await, 4);
    }

    #[tokio::test]
    async fn who_has_nothing_to_do_has_no_deliverer_until_something_is_recorded() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, roster) = roster(folder.path()).await;
        let bus: Arc<dyn Bus> = Arc::new(Embedded::new(1 << 20));
        let stop = CancellationToken::new();
        let services = Services {
            store: store.clone(),
            bus: bus.clone(),
            keys: None,
            watch: Arc::new(EpochWatch::new(store, bus)),
            sockets: Arc::new(Sockets::new(stop.clone())),
            replica: Uuid::from_u128(9),
            installation: "test".into(),
        };
        let senders = Senders::new(Vec::new(), Vec::new());
        let mapper = Mapper::new(Arc::new(Catalog::builtin()), Uuid::nil(), senders, Limits::default());
        let metrics = Metrics::new([], [], None).expect("no collector");
        let tracker = TaskTracker::new();
        let deliverers =
            Deliverers::new(services, Arc::new(mapper), Arc::new(metrics), tracker.clone(), stop.clone());
        for one in [requested(1, Standing::Active, None), requested(2, Standing::Failing, None)] {
            roster.write(&one).await.expect("written");
        }
        let name = |id: u128| -> Arc<str> { Uuid::from_u128(id).to_string().into() };
        let running = || [1, 2].map(|id| deliverers.feed(&name(id)).is_some());
        let mut busy = Busy::default();
        deliverers.follow(&roster, &mut busy);
        assert_eq!(running(), [false, false]);
        deliverers.wake(&name(1));
        deliverers.follow(&roster, &mut busy);
        assert_eq!(running(), [true, false]);
        deliverers.follow(&roster, &mut busy);
        assert_eq!(running(), [true, false], "for a while");
        busy = Busy::default();
        deliverers.follow(&roster, &mut busy);
        while running() != [false, false] {
            tokio::time::sleep(Duration::from_millis(10)).await;
            deliverers.follow(&roster, &mut Busy::default());
        }
        stop.cancel();
        tracker.close();
        tracker.wait().await;
    }
}
