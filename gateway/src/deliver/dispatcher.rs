//! The deliverer of one subscription: carries out what the window says, with the store, the bus and the destination.
//!
//! One loop owns the window; everything that takes time is a task whose end comes back to the loop. Invariant: after the
//! lease is lost, or may be, no attempt begins, and whatever is still written carries the old fence.

use super::again::hand_over_again;
use super::feed::Fed;
use super::life::{Life, Pulse, Voice};
use super::window::{Batch, Ended, Names, ToTry, Window};
use super::{Counters, Services, Settings, Subscription};
use crate::bus::{BusError, Consumer, Taken, random};
use crate::chain;
use crate::lifecycle::Outcome;
use crate::route::policy::{self, Decision};
use crate::route::publish::bundle_in;
use crate::store::{Content, DeadLetter, DeliveryChange, Lease, OpenDelivery, StoreError};
use crate::telemetry::trace::Verb;
use adapters::{DeliverError, Destination, Outgoing};
use futures_util::FutureExt;
use jiff::Timestamp;
use schemas::message::MessageId;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// How often time is looked at when nothing else happens.
const TICK: Duration = Duration::from_millis(250);
/// The pause after the store or the bus was found away.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause before the bus is tried again; it doubles from the one above.
const CONNECT_PAUSE_MAX: Duration = Duration::from_secs(5);
/// The shortest pause between two readings of what is open.
const READ_PAUSE_MIN: Duration = Duration::from_millis(5);
/// After fewer outcomes than this in one transaction the next ones gather for a moment: nobody waits for them, and a transaction
/// costs more than an outcome.
const GATHER_BELOW: usize = 64;
/// How long they gather.
const GATHER: Duration = Duration::from_millis(20);
/// After how long without anything to deliver the store is told so.
const REST_AFTER: Duration = Duration::from_secs(10);
/// Batches at the bus at once.
const PUBLISHING_MAX: usize = 2;
/// How many dead letters are known at most; beyond, the newest are not, and are passed without a marker.
const PARKED_MAX: usize = 10_000;
/// How many events are taken in before the next steps are decided.
const TAKEN_MAX: usize = 256;

/// Delivers a subscription for as long as the process runs: waits for its lease, works, waits again when it is lost.
/// Ends soon after `stop` is cancelled, with the attempts under way finished and written, and the lease given back.
pub(super) async fn run(
    subscription: Subscription,
    services: Services,
    mut feed: Fed,
    stop: CancellationToken,
) {
    let name = format!("subscription:{}", subscription.name);
    let names = [name];
    while let Some((lease, held_at)) = acquire(&subscription, &services, &names, &mut feed, &stop).await {
        tracing::info!(subscription = %subscription.name, fence = lease.fence, "deliverer begins");
        Counters::set(&subscription.counters.leading, 1);
        let end = match greeted(&subscription, &services, (&lease, held_at), &stop).await {
            Ok(held_at) => Tenure::new(&subscription, &services, lease, held_at).work(&mut feed, &stop).await,
            Err(end) => end,
        };
        Counters::set(&subscription.counters.leading, 0);
        tracing::info!(subscription = %subscription.name, end = ?end, "deliverer ends");
        if subscription.is_bound {
            services.sockets.let_go(&subscription.name);
        }
        if end == End::Stopped {
            if let Err(error) = services.store.rest(&subscription.name).await {
                tracing::debug!(%error, "not told to rest, it is looked at once more");
            }
            if let Err(error) = services.store.release(services.replica, &names).await {
                tracing::debug!(%error, "lease not given back, it runs out by itself");
            }
            return;
        }
    }
}

/// Shakes hands where that is still to be done, keeping the lease meanwhile. Answers since when that is held, if notifications may be
/// sent.
async fn greeted(
    subscription: &Subscription,
    services: &Services,
    (lease, held_at): (&Lease, Instant),
    stop: &CancellationToken,
) -> Result<Instant, End> {
    let Some(life) = &subscription.life else { return Ok(held_at) };
    let mut held_at = held_at;
    let mut greeting = std::pin::pin!(life.greet(subscription, services));
    loop {
        tokio::select! {
            () = stop.cancelled() => return Err(End::Stopped),
            may_begin = &mut greeting => return if may_begin { Ok(held_at) } else { Err(End::Stopped) },
            () = sleep(subscription.settings.lease_ttl / 3) => {}
        }
        let (names, asked_at) = (std::slice::from_ref(&lease.name), Instant::now());
        match services.store.lease(services.replica, names, subscription.settings.lease_ttl).await {
            Ok(held) if held.contains(lease) => held_at = asked_at,
            Ok(_) => return Err(End::Lost),
            Err(error) => {
                tracing::warn!(%error, "lease not to be had");
                return Err(End::Lost);
            }
        }
    }
}

/// Waits for the lease; answers when it was asked for. `None` when the process stops.
async fn acquire(
    subscription: &Subscription,
    services: &Services,
    names: &[String],
    feed: &mut Fed,
    stop: &CancellationToken,
) -> Option<(Lease, Instant)> {
    let settings = &subscription.settings;
    let mut fed = true;
    loop {
        let asked_at = Instant::now();
        // Whoever has bound it is connected to this replica, and to no other.
        let is_newly_bound = subscription.is_bound && services.sockets.is_newly_bound(&subscription.name);
        let leases = match names {
            [name] if is_newly_bound => {
                let seized = services.store.seize(services.replica, name, settings.lease_ttl);
                seized.await.map(|lease| vec![lease])
            }
            _ => services.store.lease(services.replica, names, settings.lease_ttl).await,
        };
        match leases {
            Ok(leases) => {
                if let Some(lease) = leases.into_iter().next() {
                    services.sockets.leads(&subscription.name, asked_at);
                    return (!stop.is_cancelled()).then_some((lease, asked_at));
                }
            }
            Err(error) => tracing::warn!(%error, "lease not to be had"),
        }
        let mut pause = std::pin::pin!(sleep(settings.lease_ttl / 4));
        loop {
            tokio::select! {
                () = stop.cancelled() => return None,
                () = &mut pause => break,
                () = services.sockets.next_binding(), if subscription.is_bound => break,
                // Whoever holds the lease reads it from the store.
                routed = feed.recv(), if fed => fed = routed.is_some(),
            }
        }
    }
}

/// Why a tenure ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The process stops; everything is written.
    Stopped,
    /// The lease is another's, or nobody can say.
    Lost,
}

/// What a task of the loop came back with.
enum Done {
    Connected(Result<(Box<dyn Consumer>, String), String>),
    Published(Vec<(i64, Result<(), BusError>)>),
    Tried(i64, Ended),
    Wrote(Batch, Result<(), StoreError>),
    Read {
        rows: Result<Vec<OpenDelivery>, StoreError>,
        parked: Option<Vec<DeadLetter>>,
        limit: usize,
    },
    Fetched {
        wanted: Vec<i64>,
        contents: Result<HashMap<(MessageId, u32), Content>, StoreError>,
    },
    Renewed(Instant, Result<bool, StoreError>),
    /// A heartbeat.
    Beat(Result<(), String>),
    /// A word to the owner.
    Told(Result<bool, StoreError>),
    /// The store knows that there is nothing to do.
    Rested(Result<(), StoreError>),
}

/// From taking the lease to losing it.
struct Tenure<'a> {
    subscription: &'a Subscription,
    services: &'a Services,
    settings: &'a Settings,
    names: Names,
    lease: Arc<Lease>,
    window: Window,
    tasks: JoinSet<Done>,
    consumer: Option<Box<dyn Consumer>>,
    epoch: Option<String>,
    connecting: bool,
    connect_at: Instant,
    connect_pause: Duration,
    publishing: usize,
    publish_at: Instant,
    writing: bool,
    write_at: Instant,
    /// A batch that the store did not take, to be written again before anything else.
    unwritten: Option<Batch>,
    reading: bool,
    read_at: Instant,
    read_pause: Duration,
    /// Whether the first reading, of what was open before, is done.
    taken_over: bool,
    rescan_at: Instant,
    fetching: bool,
    fetch_at: Instant,
    renewing: bool,
    renew_at: Instant,
    /// Until when the lease is certainly ours.
    ours_until: Instant,
    /// How the endpoint of a requested subscription takes what it is sent.
    pulse: Pulse,
    beating: bool,
    telling: bool,
    tell_at: Instant,
    /// Since when there is nothing to deliver, and whether the store has been told.
    empty_since: Option<Instant>,
    rested: bool,
    stopping: Option<Instant>,
    end: Option<End>,
}

impl<'a> Tenure<'a> {
    fn new(subscription: &'a Subscription, services: &'a Services, lease: Lease, held_at: Instant) -> Self {
        let now = Instant::now();
        let settings = &subscription.settings;
        let names = Names {
            installation: Arc::clone(&services.installation),
            subscription: Arc::clone(&subscription.name),
            notifies: subscription.notifies.clone(),
        };
        Tenure {
            window: Window::new(
                settings.clone(),
                Arc::clone(&subscription.counters),
                names.clone(),
                subscription.destination.needs_original(),
                lease.fence,
            ),
            subscription,
            services,
            settings,
            names,
            lease: Arc::new(lease),
            tasks: JoinSet::new(),
            consumer: None,
            epoch: None,
            connecting: false,
            connect_at: now,
            connect_pause: PAUSE,
            publishing: 0,
            publish_at: now,
            writing: false,
            write_at: now,
            unwritten: None,
            reading: false,
            read_at: now,
            read_pause: READ_PAUSE_MIN,
            taken_over: false,
            rescan_at: now + settings.rescan,
            fetching: false,
            fetch_at: now,
            renewing: false,
            renew_at: held_at + settings.lease_ttl / 3,
            ours_until: held_at + settings.lease_ttl.mul_f64(0.8),
            pulse: Pulse::new(now),
            beating: false,
            telling: false,
            tell_at: now,
            empty_since: None,
            rested: false,
            stopping: None,
            end: None,
        }
    }

    async fn work(mut self, feed: &mut Fed, stop: &CancellationToken) -> End {
        let mut next_tick = Instant::now() + TICK;
        let mut fed = true;
        loop {
            self.step(Instant::now()).await;
            if let Some(end) = self.end {
                return end;
            }
            let mut wake = self.window.wakes_at().map_or(next_tick, |at| at.min(next_tick));
            if self.window.has_changes() && !self.writing {
                wake = wake.min(self.write_at);
            }
            tokio::select! {
                () = stop.cancelled(), if self.stopping.is_none() => {
                    self.stopping = Some(Instant::now() + self.settings.grace);
                }
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    self.done(done);
                    while let Some(done) = self.tasks.try_join_next() {
                        self.done(done);
                    }
                }
                taken = next(&mut self.consumer) => self.taken(taken),
                routed = feed.recv(), if fed => match routed {
                    Some(routed) => {
                        self.window.routed(routed);
                        while let Some(routed) = feed.try_recv() {
                            self.window.routed(routed);
                        }
                    }
                    None => fed = false,
                },
                () = self.services.sockets.next_binding(), if self.subscription.is_bound => {
                    self.window.wake_away(Instant::now());
                }
                () = sleep_until(wake) => {}
            }
            let now = Instant::now();
            if now >= next_tick {
                self.window.tick(now);
                self.beat(now);
                self.tell_owner(now);
                self.rest(now);
                self.window.report();
                self.flush().await;
                next_tick = now + TICK;
            }
        }
    }

    /// Decides what happens next, and sets it off.
    async fn step(&mut self, now: Instant) {
        if now >= self.ours_until {
            self.end = Some(End::Lost);
            return;
        }
        self.renew(now);
        self.window.wake(now);
        match self.stopping {
            None => {
                self.connect(now);
                // What lives on the bus takes nothing new before it has back what it lost.
                if self.consumer.is_some() || self.settings.again_after_wipe.is_none() {
                    for trying in self.window.startable_now(now) {
                        self.attempt(trying);
                    }
                }
                self.read(now);
                self.fetch(now);
                self.publish(now);
            }
            Some(until) => {
                let written = !self.writing && self.unwritten.is_none() && !self.window.has_changes();
                if (self.window.in_flight() == 0 && written) || now >= until {
                    self.settle().await;
                    self.flush().await;
                    self.end = Some(End::Stopped);
                    return;
                }
            }
        }
        self.write(now);
        self.settle().await;
    }

    // ---- setting off ----

    fn renew(&mut self, now: Instant) {
        if self.renewing || now < self.renew_at {
            return;
        }
        self.renewing = true;
        let (store, replica) = (Arc::clone(&self.services.store), self.services.replica);
        let (lease, ttl) = (Arc::clone(&self.lease), self.settings.lease_ttl);
        self.tasks.spawn(async move {
            let held = store.lease(replica, std::slice::from_ref(&lease.name), ttl).await;
            Done::Renewed(now, held.map(|held| held.contains(&lease)))
        });
    }

    fn connect(&mut self, now: Instant) {
        if self.consumer.is_some() || self.connecting || now < self.connect_at {
            return;
        }
        // A queue is made when it is first needed, for those that may be thousands.
        let is_first_needed = self.subscription.life.is_none() || !self.window.is_empty();
        if !is_first_needed && self.settings.again_after_wipe.is_none() {
            return;
        }
        self.connecting = true;
        let (bus, watch) = (Arc::clone(&self.services.bus), Arc::clone(&self.services.watch));
        let name = Arc::clone(&self.subscription.name);
        let window = u16::try_from(self.settings.window).unwrap_or(u16::MAX);
        let (store, again) = (Arc::clone(&self.services.store), self.settings.again_after_wipe);
        let (destination, names) = (Arc::clone(&self.subscription.destination), self.names.clone());
        self.tasks.spawn(async move {
            let connected = async {
                let epoch = watch.look().await.map_err(|error| chain(&error))?;
                if let Some(within) = again {
                    hand_over_again(&*store, &*bus, &*destination, &names, within).await?;
                }
                bus.declare(&name).await.map_err(|error| chain(&error))?;
                let consumer = bus.consume(&name, window).await.map_err(|error| chain(&error))?;
                Ok((consumer, epoch))
            };
            Done::Connected(connected.await)
        });
    }

    fn read(&mut self, now: Instant) {
        if self.reading || now < self.read_at {
            return;
        }
        let rescan = now >= self.rescan_at;
        // Those of before this tenure, and whether a person has dealt with any.
        let parked = !self.taken_over || (rescan && self.window.has_parked());
        let is_wanted = self.window.room() > 0 && self.window.is_hungry();
        let (after, limit) = if rescan {
            self.rescan_at = now + self.settings.rescan;
            (0, self.settings.window)
        } else {
            let limit = self.window.room();
            let due = self.window.has_gap() || limit >= self.settings.window / 2;
            if !is_wanted || !due {
                return;
            }
            (self.window.cursor(), limit)
        };
        // Who has enough looks again at what it knows, and for what a person has taken up again since.
        let (until, limit) = match is_wanted {
            true => (i64::MAX, limit),
            false => (self.window.cursor(), limit.min(self.window.len() + self.settings.batch)),
        };
        self.reading = true;
        let (store, name) = (Arc::clone(&self.services.store), Arc::clone(&self.subscription.name));
        self.tasks.spawn(async move {
            let read = async {
                let parked = match parked {
                    true => Some(store.parked_deliveries(&name, PARKED_MAX).await?),
                    false => None,
                };
                let mut rows = store.open_deliveries(&name, after, limit).await?;
                rows.retain(|row| row.number <= until);
                Ok((rows, parked))
            };
            match read.await {
                Ok((rows, parked)) => Done::Read { rows: Ok(rows), parked, limit },
                Err(error) => Done::Read { rows: Err(error), parked: None, limit },
            }
        });
    }

    fn fetch(&mut self, now: Instant) {
        if self.fetching || now < self.fetch_at {
            return;
        }
        let wanted = self.window.wanted(self.settings.batch);
        if wanted.is_empty() {
            return;
        }
        self.fetching = true;
        let store = Arc::clone(&self.services.store);
        self.tasks.spawn(async move {
            let of: Vec<(MessageId, u32)> =
                wanted.iter().map(|(_, message, revision)| (*message, *revision)).collect();
            let contents = store.contents(&of).await;
            Done::Fetched { wanted: wanted.into_iter().map(|(number, ..)| number).collect(), contents }
        });
    }

    fn publish(&mut self, now: Instant) {
        while self.consumer.is_some() && self.publishing < PUBLISHING_MAX && now >= self.publish_at {
            let batch = self.window.publishable(self.settings.batch);
            if batch.is_empty() {
                return;
            }
            self.publishing += 1;
            let bus = Arc::clone(&self.services.bus);
            let (numbers, envelopes): (Vec<i64>, Vec<_>) = batch.into_iter().unzip();
            self.tasks.spawn(async move {
                let results = bus.publish(envelopes).await;
                Done::Published(numbers.into_iter().zip(results).collect())
            });
        }
    }

    fn attempt(&mut self, mut trying: ToTry) {
        Counters::add(&self.subscription.counters.attempts, 1);
        let destination = Arc::clone(&self.subscription.destination);
        let name = Arc::clone(&self.subscription.name);
        let (wait_max, timings) = (self.settings.attempt_wait_max, self.subscription.timings.clone());
        self.tasks.spawn(async move {
            let (number, message) = (trying.number, trying.message);
            let verb = Verb::begin("deliver", trying.traceparent.as_deref(), SystemTime::now());
            let verb = verb.map(|mut verb| {
                verb.note("message_id", message.to_string());
                verb.note("delivery_id", trying.id.to_string());
                verb.note("subscription", Arc::clone(&name));
                verb.note("attempt", i64::from(trying.attempt));
                trying.traceparent = Some(verb.traceparent());
                verb
            });
            let ended = attempt(&*destination, name, trying, wait_max).await;
            timings.attempted(ended.took);
            if ended.outcome == Outcome::Accepted {
                timings.delivered(message);
            }
            let failed = match ended.outcome {
                Outcome::Accepted => None,
                Outcome::Withheld => Some("withheld by policy"),
                Outcome::Again { .. } => Some("to be repeated"),
                Outcome::Away { .. } => Some("destination away"),
                Outcome::Never => Some("refused for good"),
            };
            if let (Some(mut verb), Some(why)) = (verb, failed) {
                verb.fail(why);
            }
            Done::Tried(number, ended)
        });
    }

    /// Sends a heartbeat when one is due.
    fn beat(&mut self, now: Instant) {
        let Some(life) = &self.subscription.life else { return };
        // Nobody is there to hear it, and nothing is wrong with that.
        if self.subscription.is_bound && !self.services.sockets.is_bound(&self.subscription.name) {
            return;
        }
        // One at a time: an endpoint that hangs is not to be filled with them.
        if self.stopping.is_some() || self.beating || !self.pulse.beats(life.heartbeat, now) {
            return;
        }
        let voice = Voice::of(self.subscription, self.services);
        self.beating = true;
        let (life, store) = (life.clone(), Arc::clone(&self.services.store));
        self.tasks.spawn(async move { Done::Beat(life.say("heartbeat", &voice, &*store).await) });
    }

    /// Lets the store know when there has been nothing to deliver for a while, so that nobody looks for it.
    fn rest(&mut self, now: Instant) {
        if self.subscription.life.is_none() || !self.window.is_empty() {
            (self.empty_since, self.rested) = (None, false);
            return;
        }
        let since = *self.empty_since.get_or_insert(now);
        if self.rested || now.duration_since(since) < REST_AFTER {
            return;
        }
        self.rested = true;
        let (store, name) = (Arc::clone(&self.services.store), Arc::clone(&self.subscription.name));
        self.tasks.spawn(async move { Done::Rested(store.rest(&name).await) });
    }

    /// Lets the owner know how the endpoint takes what it is sent, where that has changed: one word after the other.
    fn tell_owner(&mut self, now: Instant) {
        let Some(life) = &self.subscription.life else { return };
        if self.telling || now < self.tell_at {
            return;
        }
        let Some(word) = self.pulse.word(life.is_failing()) else { return };
        self.telling = true;
        let life: Life = life.clone();
        self.tasks.spawn(async move { Done::Told(life.tell(&word).await) });
    }

    fn write(&mut self, now: Instant) {
        if self.writing || now < self.write_at {
            return;
        }
        let batch = match self.unwritten.take() {
            Some(batch) => batch,
            None => self.window.take_changes(self.settings.batch * 4, now),
        };
        if batch.changes.is_empty() {
            return;
        }
        self.writing = true;
        let (store, lease) = (Arc::clone(&self.services.store), Arc::clone(&self.lease));
        self.tasks.spawn(async move {
            let changes: Vec<DeliveryChange> = batch.changes.clone();
            let result = store.change_deliveries(&lease, changes).await;
            Done::Wrote(batch, result)
        });
    }

    async fn settle(&mut self) {
        let tickets = self.window.take_settled();
        if !tickets.is_empty() {
            self.tell(&tickets).await;
        }
    }

    /// Settles on the bus what it holds back.
    async fn flush(&mut self) {
        self.tell(&[]).await;
    }

    async fn tell(&mut self, tickets: &[crate::bus::Ticket]) {
        if let Some(consumer) = &mut self.consumer
            && let Err(error) = consumer.settle(tickets).await
        {
            self.disconnected(&error);
        }
    }

    // ---- coming back ----

    fn done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let now = Instant::now();
        match done {
            Ok(Done::Connected(connected)) => self.connected(connected, now),
            Ok(Done::Published(results)) => {
                self.publishing -= 1;
                let count = results.iter().filter(|(_, result)| result.is_err()).count();
                Counters::add(&self.subscription.counters.unpublished, count as u64);
                let away = results.iter().any(|(_, result)| matches!(result, Err(BusError::Away(_))));
                if !self.window.published(results, now) {
                    self.publish_at = now + PAUSE;
                }
                if away {
                    self.disconnected(&BusError::away("publishing failed"));
                }
            }
            Ok(Done::Tried(number, ended)) => {
                self.pulse.tried(&ended.outcome, now);
                self.window.ended(number, ended, now, random());
            }
            Ok(Done::Beat(said)) => {
                self.beating = false;
                self.pulse.beaten(said.is_ok(), now);
            }
            Ok(Done::Told(told)) => {
                self.telling = false;
                if let Err(error) = told {
                    self.tell_at = now + PAUSE;
                    self.store_failed(&error);
                }
            }
            Ok(Done::Rested(rested)) => {
                if let Err(error) = rested {
                    self.rested = false;
                    self.store_failed(&error);
                }
            }
            Ok(Done::Wrote(batch, result)) => self.wrote(batch, result, now),
            Ok(Done::Read { rows, parked, limit }) => {
                if let Some(parked) = parked {
                    self.window.set_parked(parked, now);
                }
                self.has_read(rows, limit, now);
            }
            Ok(Done::Fetched { wanted, contents }) => {
                self.fetching = false;
                match contents {
                    Ok(contents) => self.window.fetched(&wanted, &contents, now),
                    Err(error) => {
                        self.fetch_at = now + PAUSE;
                        self.store_failed(&error);
                    }
                }
            }
            Ok(Done::Renewed(asked_at, held)) => {
                self.renewing = false;
                self.renew_at = now + self.settings.lease_ttl / 3;
                match held {
                    Ok(true) => {
                        self.ours_until = asked_at + self.settings.lease_ttl.mul_f64(0.8);
                        self.services.sockets.leads(&self.subscription.name, asked_at);
                    }
                    Ok(false) => self.end = Some(End::Lost),
                    Err(error) => {
                        self.renew_at = now + PAUSE;
                        self.store_failed(&error);
                    }
                }
            }
            // A task of ours panicked: what it was about is taken up anew from the store.
            Err(error) => {
                tracing::error!(subscription = %self.subscription.name, %error, "a step of the deliverer failed");
                self.end = Some(End::Lost);
            }
        }
    }

    fn connected(&mut self, connected: Result<(Box<dyn Consumer>, String), String>, now: Instant) {
        self.connecting = false;
        match connected {
            Ok((consumer, epoch)) => {
                self.connect_pause = PAUSE;
                self.window.reconnected(now);
                if self.epoch.as_ref().is_some_and(|known| *known != epoch) {
                    self.window.wiped();
                }
                self.epoch = Some(epoch);
                self.consumer = Some(consumer);
                self.publish_at = now;
            }
            Err(cause) => {
                tracing::warn!(subscription = %self.subscription.name, cause, "deliverer waits for the bus");
                self.connect_at = now + self.connect_pause;
                self.connect_pause = (self.connect_pause * 2).min(CONNECT_PAUSE_MAX);
            }
        }
    }

    fn disconnected(&mut self, error: &BusError) {
        if self.consumer.take().is_some() {
            let cause = chain(error);
            tracing::warn!(subscription = %self.subscription.name, cause, "deliverer lost the bus");
            self.connect_at = Instant::now();
        }
    }

    fn taken(&mut self, taken: Result<Taken, BusError>) {
        let now = Instant::now();
        let mut next_taken = Some(taken);
        let mut count = 0;
        while let Some(taken) = next_taken {
            match taken {
                Ok(taken) => self.window.taken(taken, now),
                Err(error) => {
                    self.disconnected(&error);
                    return;
                }
            }
            count += 1;
            if count >= TAKEN_MAX {
                return;
            }
            next_taken = self.consumer.as_mut().and_then(|consumer| consumer.next().now_or_never());
        }
    }

    fn wrote(&mut self, batch: Batch, result: Result<(), StoreError>, now: Instant) {
        self.writing = false;
        match result {
            Ok(()) => {
                // An attempt that has to be written down before it begins is waited for.
                if batch.is_small(GATHER_BELOW) {
                    self.write_at = now + GATHER;
                }
                self.window.written(batch, self.reading);
            }
            Err(error) => {
                self.store_failed(&error);
                self.unwritten = Some(batch);
                self.write_at = now + PAUSE;
            }
        }
    }

    fn has_read(&mut self, rows: Result<Vec<OpenDelivery>, StoreError>, limit: usize, now: Instant) {
        self.reading = false;
        match rows {
            Ok(rows) => {
                // A full page has more behind it; an empty one may wait longer each time.
                let full = rows.len() >= limit;
                self.read_pause = if rows.is_empty() {
                    (self.read_pause * 2).min(self.settings.poll_max)
                } else {
                    READ_PAUSE_MIN
                };
                self.read_at = now + if full { Duration::ZERO } else { self.read_pause };
                self.window.loaded(rows, now, !self.taken_over);
                self.taken_over = true;
            }
            Err(error) => {
                self.read_at = now + PAUSE;
                self.store_failed(&error);
            }
        }
    }

    fn store_failed(&mut self, error: &StoreError) {
        if matches!(error, StoreError::Fenced) {
            self.end = Some(End::Lost);
        } else {
            tracing::warn!(subscription = %self.subscription.name, cause = chain(error), "deliverer waits for the store");
        }
    }
}

/// The next one off the queue; never without a consumer.
async fn next(consumer: &mut Option<Box<dyn Consumer>>) -> Result<Taken, BusError> {
    match consumer {
        Some(consumer) => consumer.next().await,
        None => std::future::pending().await,
    }
}

/// Tries once: asks policy, then the destination.
async fn attempt(destination: &dyn Destination, name: Arc<str>, trying: ToTry, wait_max: Duration) -> Ended {
    let began_at = Timestamp::now();
    let began = Instant::now();
    let ended = |outcome, answer| Ended { outcome, began_at, took: began.elapsed(), answer };
    let Some(bundle) = bundle_in(&trying.event) else {
        return ended(Outcome::Never, "the event on the bus cannot be read".to_owned());
    };
    match policy::at_delivery(&bundle) {
        Decision::Allow => {}
        Decision::Suppress(reason) => return ended(Outcome::Withheld, reason),
    }
    let outgoing = Outgoing {
        delivery: trying.id,
        subscription: name,
        attempt: trying.attempt,
        bundle,
        event: trying.event,
        passes: trying.passes,
        original: trying.original,
        traceparent: trying.traceparent,
    };
    let delivering = AssertUnwindSafe(destination.deliver(&outgoing)).catch_unwind();
    match timeout(wait_max, delivering).await {
        Ok(Ok(Ok(receipt))) => ended(Outcome::Accepted, receipt.answer),
        Ok(Ok(Err(DeliverError::Never { answer }))) => ended(Outcome::Never, answer),
        Ok(Ok(Err(DeliverError::Again { answer, after, away: false }))) => {
            ended(Outcome::Again { after }, answer)
        }
        Ok(Ok(Err(DeliverError::Again { answer, after, away: true }))) => {
            ended(Outcome::Away { after }, answer)
        }
        Ok(Err(_panic)) => {
            ended(Outcome::Again { after: None }, "the attempt ended in a mistake of ours".to_owned())
        }
        Err(_) => {
            let answer = format!("no answer within {} s", wait_max.as_secs());
            ended(Outcome::Away { after: None }, answer)
        }
    }
}
