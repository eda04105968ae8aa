//! What can go wrong between the store, the bus and a subscriber. Time is paused: it passes when nothing else happens.

mod fake;

use super::*;
use crate::bus::{Embedded, RabbitMq, RabbitMqSettings};
use crate::deliver::feed::{Feed, feed};
use crate::store::DeliveryState;
use fake::{FakeDestination, FakeStore, Reaction, SUBSCRIPTION};
use proptest::prelude::*;
use std::collections::HashMap;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// A deliverer at work, and everything around it.
struct Bench {
    store: Arc<FakeStore>,
    bus: Embedded,
    destination: Arc<FakeDestination>,
    settings: Settings,
    counters: Arc<Counters>,
}

/// One run of the deliverer.
struct Running {
    feed: Feed,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Bench {
    fn new(destination: Arc<FakeDestination>) -> Self {
        Bench {
            store: Arc::default(),
            bus: Embedded::new(64 << 20),
            destination,
            settings: Settings::default(),
            counters: Arc::default(),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    fn add(&self, keys: impl IntoIterator<Item = i64>) -> &Self {
        for key in keys {
            self.store.add(key);
        }
        self
    }

    fn start(&self) -> Running {
        self.start_as(1)
    }

    fn start_as(&self, replica: u128) -> Running {
        self.start_to(replica, self.destination.clone())
    }

    fn start_to(&self, replica: u128, destination: Arc<dyn Destination>) -> Running {
        self.start_on(Arc::new(self.bus.clone()), replica, destination)
    }

    fn start_on(&self, bus: Arc<dyn Bus>, replica: u128, destination: Arc<dyn Destination>) -> Running {
        let (feed, fed) = feed();
        let stop = CancellationToken::new();
        let services = Services {
            watch: Arc::new(EpochWatch::new(self.store.clone(), Arc::clone(&bus))),
            store: self.store.clone(),
            bus,
            keys: None,
            sockets: Arc::new(Sockets::new(stop.clone())),
            replica: Uuid::from_u128(replica),
            installation: "test".into(),
        };
        let subscription = Subscription {
            notifies: None,
            topic: None,
            life: None,
            name: SUBSCRIPTION.into(),
            settings: self.settings.clone(),
            destination,
            is_bound: false,
            counters: self.counters.clone(),
            timings: DeliverTimings::default(),
        };
        let task = tokio::spawn(run(subscription, services, fed, stop.clone()));
        Running { feed, stop, task }
    }

    fn accepted(&self) -> Vec<i64> {
        self.destination.received().accepted.clone()
    }

    /// First acceptances in order of the event numbers, for each key.
    fn assert_order(&self) {
        let mut last: HashMap<i64, i64> = HashMap::new();
        let mut seen = std::collections::HashSet::new();
        let state = self.store.state();
        for number in self.accepted() {
            if seen.insert(number) {
                let last = last.entry(state.rows[&number].open.key.0).or_insert(0);
                assert!(*last < number, "{number} came after {last}");
                *last = number;
            }
        }
    }

    fn states(&self) -> Vec<DeliveryState> {
        self.store.state().rows.values().map(|row| row.open.state).collect()
    }
}

impl Running {
    /// Stops as the process does, and waits for the end.
    async fn stop(self) {
        self.stop.cancel();
        timeout(Duration::from_secs(60), self.task).await.expect("it ends soon").expect("it does not panic");
    }

    /// Ends as a process that is killed.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.expect_err("it was aborted").is_cancelled());
    }
}

/// Lets so much of the paused time pass.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

fn accept(_: i64, _: u32) -> Reaction {
    Reaction::Accept
}

#[tokio::test(start_paused = true)]
async fn what_is_in_the_store_goes_out_once_and_in_order() {
    let bench = Bench::new(FakeDestination::new(accept));
    bench.add((0..5000).map(|n| n % 70));
    let running = bench.start();
    bench.store.until_all(DeliveryState::Delivered).await;
    bench.assert_order();
    assert_eq!(bench.accepted().len(), 5000);
    assert!(bench.destination.received().under_way_max <= bench.settings.in_flight_max);
    assert!(bench.destination.received().under_way_max > 1, "keys do not wait for each other");
    running.stop().await;
    assert_eq!(bench.store.state().released, 1);
}

fn routed(row: &crate::store::OpenDelivery) -> Routed {
    Routed {
        id: row.id,
        message: row.message,
        revision: row.revision,
        number: row.number,
        key: row.key,
        matched: row.matched.clone(),
        content: FakeStore::content(row.message),
        traceparent: None,
    }
}

/// Hands a delivery over, once there is room for it.
async fn hand_over(feed: &Feed, routed: Routed) {
    while !feed.offer(routed.clone()) {
        pass(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_router_hands_over_is_not_read_back_and_written_once() {
    let bench = Bench::new(FakeDestination::new(accept));
    let running = bench.start();
    pass(Duration::from_secs(1)).await;
    for n in 0..1000 {
        let row = bench.store.add(n % 10);
        hand_over(&running.feed, routed(&row)).await;
    }
    bench.store.until_all(DeliveryState::Delivered).await;
    bench.assert_order();
    let state = bench.store.state();
    // A reading may find one before the router has handed it over.
    assert!(state.contents_read < 50, "{} of 1000 were read back", state.contents_read);
    assert!(state.rows.values().all(|row| row.history.len() == 1), "one write a delivery");
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_loses_and_mixes_costs_nothing_but_time() {
    let bench = Bench::new(FakeDestination::new(accept));
    let running = bench.start();
    let rows: Vec<_> = (0..500).map(|n| bench.store.add(n % 7)).collect();
    for chunk in rows.chunks(5) {
        // The third is lost, the others come backwards, the last one twice.
        for row in [&chunk[4], &chunk[3], &chunk[1], &chunk[0], &chunk[4]] {
            hand_over(&running.feed, routed(row)).await;
        }
    }
    bench.store.until_all(DeliveryState::Delivered).await;
    bench.assert_order();
    assert_eq!(bench.accepted().len(), 500);
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_rests_holds_back_its_own_key_only() {
    let bench = Bench::new(FakeDestination::new(|number, tries| {
        if number == 1 && tries < 4 { Reaction::Refuse } else { Reaction::Accept }
    }));
    bench.add([1, 1, 2, 2, 1]);
    let _running = bench.start();
    bench.store.until_all(DeliveryState::Delivered).await;
    bench.assert_order();
    assert_eq!(bench.accepted(), [3, 4, 1, 2, 5]);
    assert_eq!(bench.store.state().rows[&1].attempts.len(), 4);
    let history: Vec<_> = bench.store.state().rows[&1].history.iter().map(|(state, _)| *state).collect();
    assert_eq!(history.last(), Some(&DeliveryState::Delivered));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_is_passed_with_a_marker() {
    let bench =
        Bench::new(FakeDestination::new(
            |number, _| {
                if number == 2 { Reaction::Never } else { Reaction::Accept }
            },
        ));
    bench.add([1, 1, 1, 2]);
    let _running = bench.start();
    bench
        .store
        .until("three delivered", |state| {
            state.rows.values().filter(|row| row.open.state == DeliveryState::Delivered).count() == 3
        })
        .await;
    assert_eq!(bench.store.state().rows[&2].open.state, DeliveryState::Parked);
    assert_eq!(bench.store.state().rows[&2].attempts[0].answer, "HTTP 422");
    let passes = bench.destination.received().passes.clone();
    assert_eq!((passes[&1], passes[&3], passes[&4]), (None, Some(2), None));
    // A person takes it up again: it goes out, and then nothing is missing any more.
    bench.destination.set(accept);
    bench.store.replay(2);
    bench.store.until_all(DeliveryState::Delivered).await;
    bench.add([1]);
    bench.store.until_all(DeliveryState::Delivered).await;
    assert_eq!(bench.destination.received().passes[&5], None);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_blocks_its_own_key_for_as_long_as_set() {
    let age_max = Duration::from_secs(3600);
    let bench =
        Bench::new(FakeDestination::new(
            |number, _| {
                if number == 1 { Reaction::Never } else { Reaction::Accept }
            },
        ))
        .with(|settings| settings.on_parked = OnParked::Block { age_max });
    let began = Instant::now();
    bench.add([1, 1, 2]);
    let _running = bench.start();
    bench.store.until("the other key", |state| state.rows[&3].open.state == DeliveryState::Delivered).await;
    bench.store.until("the one behind", |state| state.rows[&2].open.state == DeliveryState::Delivered).await;
    assert!(began.elapsed() >= age_max);
    assert_eq!(bench.store.state().rows[&1].open.state, DeliveryState::Parked);
}

#[tokio::test(start_paused = true)]
async fn a_blocked_key_goes_on_in_order_once_a_person_replays() {
    let bench =
        Bench::new(FakeDestination::new(
            |number, _| {
                if number == 1 { Reaction::Never } else { Reaction::Accept }
            },
        ))
        .with(|settings| settings.on_parked = OnParked::Block { age_max: Duration::from_secs(1 << 20) });
    bench.add([1, 1, 2]);
    let _running = bench.start();
    bench
        .store
        .until("parked", |state| {
            state.rows[&1].open.state == DeliveryState::Parked
                && state.rows[&3].open.state == DeliveryState::Delivered
        })
        .await;
    bench.destination.set(accept);
    bench.store.replay(1);
    bench.store.until_all(DeliveryState::Delivered).await;
    assert_eq!(bench.accepted(), [3, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_is_away_is_left_alone_and_burns_no_attempts() {
    let bench = Bench::new(FakeDestination::new(|_, _| Reaction::Away));
    bench.add(0..500);
    let _running = bench.start();
    pass(Duration::from_secs(3600)).await;
    let tried = bench.destination.received().tried.len();
    // In flight when it was found away, then one probe every 15 to 30 seconds.
    assert!(tried < 64 + 300, "{tried} attempts in an hour");
    assert_eq!(bench.counters.circuit_open.load(Ordering::Relaxed), 1);
    let mut probes = bench.destination.received().tried[64..].to_vec();
    probes.sort_unstable();
    probes.dedup();
    assert!(probes.len() > 5, "always the same ask: {probes:?}");
    assert!(bench.store.state().rows.values().all(|row| row.open.attempts == 0 && row.attempts.len() <= 1));
    bench.destination.set(accept);
    let back = Instant::now();
    bench.store.until_all(DeliveryState::Delivered).await;
    assert!(back.elapsed() < Duration::from_secs(35), "all goes on after one probe");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_had_failed_before_others_got_through_does_not_end_the_probing() {
    let bench = Bench::new(FakeDestination::new(
        |number, _| {
            if number == 2 { Reaction::Accept } else { Reaction::Away }
        },
    ))
    .with(|settings| settings.circuit_failures = 2);
    let running = bench.start();
    pass(Duration::from_secs(1)).await;
    // The first finds it away, then the second gets through, then nobody does: the circuit opens.
    for (key, tried) in [(1, 1), (2, 2), (3, 3), (4, 4)] {
        let row = bench.store.add(key);
        hand_over(&running.feed, routed(&row)).await;
        bench.destination.until("tried", |received| received.tried.len() >= tried).await;
    }
    pass(Duration::from_secs(3600)).await;
    let probes = bench.destination.received().tried[4..].to_vec();
    for number in [1, 3, 4] {
        assert!(probes.contains(&number), "{number} never asked again: {probes:?}");
    }
    assert!(
        bench.store.state().rows.values().all(|row| row.open.attempts <= u32::from(row.open.number == 2))
    );
    bench.destination.set(accept);
    bench.store.until_all(DeliveryState::Delivered).await;
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_breaks_its_connection_is_a_dead_letter_and_holds_up_nobody() {
    let bench = Bench::new(FakeDestination::new(
        |number, _| {
            if number == 1 { Reaction::Away } else { Reaction::Accept }
        },
    ));
    bench.add([1]);
    let _running = bench.start();
    let mut key = 2;
    while bench.states()[0] != DeliveryState::Parked {
        bench.add([key]);
        let number = key;
        bench
            .store
            .until("the others", |state| state.rows[&number].open.state == DeliveryState::Delivered)
            .await;
        key += 1;
        pass(Duration::from_secs(60)).await;
        assert!(key < 200, "it is never given up");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_or_panics_ends() {
    let bench = Bench::new(FakeDestination::new(|number, tries| match (number, tries) {
        (1, 1) => Reaction::Hang,
        (2, 1) => Reaction::Panic,
        _ => Reaction::Accept,
    }));
    bench.add([1, 2]);
    let _running = bench.start();
    bench.store.until_all(DeliveryState::Delivered).await;
    assert_eq!(bench.store.state().rows[&1].attempts[0].answer, "no answer within 60 s");
    assert_eq!(bench.store.state().rows[&2].attempts.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn one_who_lost_the_lease_writes_nothing_more() {
    let bench = Bench::new(FakeDestination::gated());
    bench.add(0..10);
    let _running = bench.start();
    bench.destination.until("all under way", |received| received.tried.len() == 10).await;
    let before: Vec<_> = bench.store.state().rows.values().map(|row| row.history.clone()).collect();
    bench.store.take_lease_away();
    bench.destination.gate.add_permits(10);
    pass(Duration::from_secs(60)).await;
    assert_eq!(bench.accepted().len(), 10);
    let state = bench.store.state();
    assert!(state.rows.values().all(|row| row.open.state != DeliveryState::Delivered));
    let written: Vec<_> = state.rows.values().map(|row| row.history.clone()).collect();
    assert_eq!(written, before);
}

#[tokio::test(start_paused = true)]
async fn two_replicas_one_delivers_and_the_other_takes_over() {
    let bench = Bench::new(FakeDestination::new(accept));
    let first = bench.start_as(1);
    bench.add((0..1000).map(|n| n % 9));
    bench.store.until("some", |state| state.rows[&100].open.state == DeliveryState::Delivered).await;
    let _second = bench.start_as(2);
    first.kill().await;
    bench.add((0..1000).map(|n| n % 9));
    bench.store.until_all(DeliveryState::Delivered).await;
    bench.assert_order();
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_is_away_is_waited_for() {
    let bench = Bench::new(FakeDestination::new(accept));
    bench.bus.set_away(true);
    bench.add((0..100).map(|n| n % 3));
    let _running = bench.start();
    pass(Duration::from_secs(60)).await;
    assert!(bench.accepted().is_empty());
    bench.bus.set_away(false);
    bench.store.until_all(DeliveryState::Delivered).await;
    bench.bus.set_away(true);
    bench.add((0..100).map(|n| n % 3));
    bench.bus.set_away(false);
    bench.store.until_all(DeliveryState::Delivered).await;
    bench.assert_order();
    assert_eq!(bench.store.state().unpublished, 1, "only the first epoch was new");
}

#[tokio::test(start_paused = true)]
async fn a_wiped_bus_loses_nothing() {
    let bench = Bench::new(FakeDestination::gated());
    bench.add((0..300).map(|n| n % 100));
    let _running = bench.start();
    for wipe in 1..=3 {
        bench.destination.until("some under way", |received| received.tried.len() >= wipe * 64).await;
        bench.bus.wipe();
        bench.destination.gate.add_permits(64);
    }
    bench.destination.gate.add_permits(1000);
    bench.store.until_all(DeliveryState::Delivered).await;
    bench.assert_order();
    assert_eq!(bench.store.state().unpublished, 4, "the first epoch, and one after each wipe");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_at_the_wrong_time_brings_no_second_attempt() {
    let bench =
        Bench::new(FakeDestination::gated()).with(|settings| settings.lease_ttl = Duration::from_secs(60));
    bench.add(0..50);
    let _running = bench.start();
    bench.destination.until("all under way", |received| received.tried.len() == 50).await;
    bench.store.state().away = true;
    bench.destination.gate.add_permits(50);
    bench.destination.until("all accepted", |received| received.accepted.len() == 50).await;
    pass(Duration::from_secs(5)).await;
    bench.store.state().away = false;
    bench.store.until_all(DeliveryState::Delivered).await;
    assert_eq!(bench.destination.received().tried.len(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_kills_the_process_again_and_again_is_a_dead_letter() {
    let bench = Bench::new(FakeDestination::new(
        |number, _| {
            if number == 1 { Reaction::Hang } else { Reaction::Accept }
        },
    ))
    .with(|settings| settings.retry.attempts_max = 4);
    bench.add([1]);
    for death in 1.. {
        let running = bench.start_as(death);
        let before = bench.destination.received().tried.len();
        let died = tokio::select! {
            () = bench.destination.until("another try", |received| received.tried.len() > before) => true,
            () = bench.store.until("given up", |state| state.rows[&1].open.state == DeliveryState::Parked) => false,
        };
        running.kill().await;
        if !died {
            break;
        }
        assert!(death < 10, "it is never given up");
    }
    let tries = bench.destination.received().tried.len();
    assert!((4..=5).contains(&tries), "{tries} tries");
    bench.add([1]);
    let _running = bench.start_as(99);
    bench.store.until("the next one", |state| state.rows[&2].open.state == DeliveryState::Delivered).await;
}

#[tokio::test(start_paused = true)]
async fn stopping_finishes_and_writes_what_is_under_way() {
    let bench = Bench::new(FakeDestination::gated());
    bench.add(0..100);
    let running = bench.start();
    bench.destination.until("under way", |received| received.tried.len() == 64).await;
    running.stop.cancel();
    bench.destination.gate.add_permits(64);
    running.stop().await;
    let delivered = bench.states().iter().filter(|state| **state == DeliveryState::Delivered).count();
    assert_eq!(delivered, 64, "what was under way is written, and nothing new began");
    assert_eq!(bench.destination.received().tried.len(), 64);
    assert_eq!(bench.store.state().released, 1);
}

#[tokio::test(start_paused = true)]
async fn stopping_does_not_wait_for_ever() {
    let bench = Bench::new(FakeDestination::new(|_, _| Reaction::Hang));
    bench.add([1]);
    let running = bench.start();
    bench.destination.until("under way", |received| received.tried.len() == 1).await;
    let began = Instant::now();
    running.stop().await;
    assert!(began.elapsed() <= bench.settings.grace + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn memory_is_bounded_whatever_the_backlog() {
    let bench = Bench::new(FakeDestination::gated()).with(|settings| settings.window = 100);
    bench.add(0..5000);
    let running = bench.start();
    bench.destination.until("under way", |received| received.tried.len() == 64).await;
    pass(Duration::from_secs(60)).await;
    assert!(bench.counters.in_window.load(Ordering::Relaxed) <= 200);
    bench.destination.gate.add_permits(5000);
    bench.store.until_all(DeliveryState::Delivered).await;
    assert_eq!(bench.accepted().len(), 5000);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn little_memory_for_contents_only_slows_it() {
    let bench = Bench::new(FakeDestination::new(|number, tries| {
        if number % 5 == 0 && tries == 1 { Reaction::Refuse } else { Reaction::Accept }
    }))
    .with(|settings| settings.window_bytes = 500);
    bench.add((0..300).map(|n| n % 20));
    let _running = bench.start();
    bench.store.until_all(DeliveryState::Delivered).await;
    bench.assert_order();
    let received = bench.destination.received();
    assert!(received.originals.values().all(|original| original.starts_with(b"MSH of ")));
}

#[tokio::test(start_paused = true)]
async fn a_slow_destination_is_not_read_for_one_by_one() {
    let bench = Bench::new(FakeDestination::gated()).with(|settings| {
        (settings.window, settings.window_bytes) = (1000, 80_000);
        settings.rescan = Duration::from_secs(10);
    });
    bench.add(0..200);
    let running = bench.start();
    bench.destination.until("under way", |received| received.tried.len() == 64).await;
    pass(Duration::from_secs(60)).await;
    let so_far = || {
        let state = bench.store.state();
        (state.readings, state.contents_read)
    };
    let (read, contents) = so_far();
    for second in 0..1000 {
        for n in 0..5 {
            let row = bench.store.add(200 + second * 5 + n);
            running.feed.offer(routed(&row));
        }
        bench.destination.gate.add_permits(1);
        pass(Duration::from_secs(1)).await;
    }
    let (read, contents) = (so_far().0 - read, so_far().1 - contents);
    // What is known is looked at again every ten seconds.
    assert!(read <= 120, "{read} times read");
    assert!(contents <= 1500, "{contents} contents read for 1000 deliveries");
    bench.destination.gate.add_permits(10_000);
    bench.store.until_all(DeliveryState::Delivered).await;
    bench.assert_order();
    assert_eq!(bench.accepted().len(), 5200);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_subscribers_own_queue_gets_the_event() {
    let bench = Bench::new(FakeDestination::new(accept));
    bench.add([1, 1]);
    let bus: Arc<dyn Bus> = Arc::new(bench.bus.clone());
    let _running = bench.start_to(1, Arc::new(AmqpQueue::new(bus, "own")));
    for number in ["1", "2"] {
        let received = bench.bus.receive("own").await;
        let event: serde_json::Value = serde_json::from_slice(&received.body).expect("an event is JSON");
        assert_eq!(event["number"], number);
        assert_eq!(event["id"], received.delivery.to_string());
    }
    bench.store.until_all(DeliveryState::Delivered).await;
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_reads_slowly_makes_no_dead_letters() {
    let mut bench = Bench::new(FakeDestination::new(accept));
    // Room for some four events.
    bench.bus = Embedded::new(2000);
    bench.add(0..200);
    let bus: Arc<dyn Bus> = Arc::new(bench.bus.clone());
    let _running = bench.start_to(1, Arc::new(AmqpQueue::new(bus, "own")));
    for _ in 0..200 {
        bench.bus.receive("own").await;
        pass(Duration::from_secs(20)).await;
    }
    bench.store.until_all(DeliveryState::Delivered).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_wiped_broker_lost_is_handed_over_again_before_anything_new() {
    let bench = Bench::new(FakeDestination::new(accept))
        .with(|settings| settings.again_after_wipe = Some(Duration::from_secs(600)));
    let bus: Arc<dyn Bus> = Arc::new(bench.bus.clone());
    let own: Arc<dyn Destination> = Arc::new(AmqpQueue::new(bus, "own"));
    bench.add([1]);
    let running = bench.start_to(1, own.clone());
    bench.store.until_all(DeliveryState::Delivered).await;
    pass(Duration::from_secs(3600)).await;
    bench.add([1, 1, 2]);
    bench.store.until_all(DeliveryState::Delivered).await;
    bench.bus.wipe();
    bench.add([1, 2]);
    bench.store.until_all(DeliveryState::Delivered).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(bench.bus.receive("own").await.delivery);
    }
    let known: Vec<_> = (2..=6).map(|number| bench.store.state().rows[&number].open.id).collect();
    assert_eq!(ids[..3], known[..3], "what was lost comes first, the first one is too old");
    assert_eq!(ids[3..].iter().collect::<std::collections::HashSet<_>>(), known[3..].iter().collect());
    // Another replica finds it done.
    running.stop().await;
    let _next = bench.start_to(2, own);
    bench.add([3]);
    bench.store.until_all(DeliveryState::Delivered).await;
    assert_eq!(bench.bus.receive("own").await.delivery, bench.store.state().rows[&7].open.id);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_is_remembered_over_a_restart() {
    let never_one = |number, _| if number == 1 { Reaction::Never } else { Reaction::Accept };
    let bench = Bench::new(FakeDestination::new(never_one));
    bench.add([1, 2]);
    let running = bench.start_as(1);
    bench.store.until("parked", |state| state.rows[&1].open.state == DeliveryState::Parked).await;
    running.stop().await;
    bench.add([1]);
    let running = bench.start_as(2);
    bench.store.until("the next", |state| state.rows[&3].open.state == DeliveryState::Delivered).await;
    assert_eq!(bench.destination.received().passes[&3], Some(1));
    running.stop().await;
    // And with `block` it holds up its key after a restart too.
    let bench =
        bench.with(|settings| settings.on_parked = OnParked::Block { age_max: Duration::from_secs(3600) });
    bench.add([1]);
    let began = Instant::now();
    let _running = bench.start_as(3);
    bench.store.until("the last", |state| state.rows[&4].open.state == DeliveryState::Delivered).await;
    assert!(began.elapsed() > Duration::from_secs(3000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: tests/run starts it"]
async fn over_rabbitmq_it_is_the_same() {
    let url = std::env::var("PONS_TEST_AMQP").expect("tests/run sets PONS_TEST_AMQP");
    let rabbitmq = Arc::new(RabbitMq::new(RabbitMqSettings::new(url)).expect("the settings are right"));
    let bus: Arc<dyn Bus> = rabbitmq.clone();
    let bench = Bench::new(FakeDestination::new(|number, tries| {
        if number % 50 == 7 && tries == 1 { Reaction::Refuse } else { Reaction::Accept }
    }))
    .with(|settings| settings.retry.base = Duration::from_millis(20));
    let running = bench.start_on(bus.clone(), 1, bench.destination.clone());
    for n in 0..3000 {
        let row = bench.store.add(n % 40);
        // Half of them by the router's hand, half found in the store.
        if n % 2 == 0 {
            hand_over(&running.feed, routed(&row)).await;
        }
    }
    bench.store.until_all(DeliveryState::Delivered).await;
    bench.assert_order();
    running.kill().await;
    let running = bench.start_on(bus, 2, bench.destination.clone());
    bench.add((0..500).map(|n| n % 40));
    bench.store.until_all(DeliveryState::Delivered).await;
    bench.assert_order();
    running.stop().await;
    rabbitmq.forget(SUBSCRIPTION).await;
}

/// A run under faults: keys of the deliveries, and what the destination does, by number and try.
fn faults() -> impl Strategy<Value = (Vec<i64>, Vec<u8>, Vec<u16>)> {
    (
        proptest::collection::vec(0i64..6, 1..60),
        proptest::collection::vec(0u8..10, 1..64),
        proptest::collection::vec(0u16..200, 0..4),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 60, ..ProptestConfig::default() })]

    #[test]
    fn order_holds_and_nothing_is_lost_under_random_faults((keys, reactions, breaks) in faults()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime can be made");
        runtime.block_on(under_faults(keys, reactions, breaks));
    }
}

async fn under_faults(keys: Vec<i64>, reactions: Vec<u8>, breaks: Vec<u16>) {
    let destination = FakeDestination::new(move |number, tries| {
        if tries > 5 {
            return Reaction::Accept;
        }
        let at = usize::try_from(number).unwrap_or(0) * 7 + tries as usize * 13;
        match reactions[at % reactions.len()] {
            0 | 1 => Reaction::Refuse,
            2 => Reaction::Away,
            3 if number % 4 == 0 => Reaction::Never,
            4 => Reaction::Hang,
            5 => Reaction::Panic,
            _ => Reaction::Accept,
        }
    });
    let bench = Bench::new(destination);
    bench.add(keys);
    let mut running = bench.start_as(1);
    for (n, after) in breaks.into_iter().enumerate() {
        pass(Duration::from_millis(u64::from(after) * 50)).await;
        match n % 3 {
            0 => bench.bus.wipe(),
            1 => {
                running.kill().await;
                running = bench.start_as(n as u128 + 2);
            }
            _ => {
                bench.bus.set_away(true);
                bench.bus.set_away(false);
            }
        }
    }
    bench
        .store
        .until("everything settled", |state| {
            state
                .rows
                .values()
                .all(|row| matches!(row.open.state, DeliveryState::Delivered | DeliveryState::Parked))
        })
        .await;
    bench.assert_order();
    let accepted = bench.accepted();
    for (number, row) in &bench.store.state().rows {
        if row.open.state == DeliveryState::Delivered {
            assert!(accepted.contains(number), "{number} is written as delivered, and is not");
        }
    }
    running.stop().await;
}
