//! The short fault runs: everything is killed under load, and nothing is lost. `fault-lab` is the long one.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may fail anywhere, and says what it does"
)]

use std::time::{Duration, Instant};
use tests::checker;
use tests::disk::SmallDisk;
use tests::gateway::{Gateway, Setup, Subscription};
use tests::generate::{Kind, Population, Run};
use tests::lab::{self, Plan};
use tests::sender::{self, Load, Stop};
use tests::services::{OwnServices, Part, Services};
use tests::webhook::{Behaviour, Webhook};
use tokio::sync::Mutex;

/// One run at a time: each wants the machine for itself, and has servers of its own.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn judged(plan: Plan) {
    let _alone = ALONE.lock().await;
    let report = lab::run(&plan, &|line| println!("{line}")).await.unwrap();
    assert!(report.good(), "{report}");
    assert_eq!(report.gateway_kills + report.database_kills + report.broker_kills, plan.kills);
    println!("{report}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and RabbitMQ: tests/run installs them"]
async fn kills_of_everything_and_a_wiped_broker_lose_nothing() {
    judged(Plan { seed: 11, kills: 20, wipes: 1, ..Plan::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and RabbitMQ: tests/run installs them"]
async fn two_replicas_keep_the_order_while_either_is_killed() {
    judged(Plan { seed: 12, kills: 8, wipes: 0, replicas: 2, ..Plan::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and RabbitMQ: tests/run installs them"]
async fn subscribers_over_every_channel_lose_nothing_to_kills_and_a_wiped_broker() {
    let plan =
        Plan { seed: 14, kills: 8, wipes: 1, replicas: 2, requested: 5, messages: 600, ..Plan::default() };
    judged(Plan { rate: Some(40.0), patients: 60, pause: Duration::from_secs(1), ..plan }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and RabbitMQ: tests/run installs them"]
async fn a_spoiled_wire_between_sender_and_gateway_loses_nothing() {
    judged(Plan { seed: 13, kills: 7, wipes: 0, network: true, ..Plan::default() }).await;
}

/// A load of admissions over some connections.
fn load(gateway: &Gateway, population: &Population, rate: f64) -> Load {
    Load {
        to: vec![gateway.mllp],
        connections: 8,
        patients: population.patients(),
        rate: Some(rate),
        kind: Some(Kind::Admit),
        patience: Duration::from_secs(12),
    }
}

/// Waits until a count is reached.
async fn until(what: &str, within: Duration, mut reached: impl FnMut() -> bool) {
    let began = Instant::now();
    while !reached() {
        assert!(began.elapsed() < within, "{what} within {within:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, for a small disk: tests/run has it"]
async fn a_full_disk_is_never_acknowledged_and_a_freed_one_goes_on() {
    let disk = SmallDisk::mount(64).unwrap();
    let _alone = ALONE.lock().await;
    let run = Run::fresh();
    let hook = Webhook::start(run).await.unwrap();
    let population = Population::new(run, 3, 80);
    let setup = Setup {
        data_dir: Some(disk.path().join("data")),
        subscriptions: vec![Subscription::webhook("insurer", &["encounter-start"], &hook.url())],
        settings: vec!["storage: {reserve: 1MiB}".to_owned(), "store_hold: 1s".to_owned()],
        ..Setup::default()
    };
    let mut gateway = Gateway::start(&setup).await.unwrap();
    let stop = Stop::after(u64::MAX);
    let deadline = Instant::now() + Duration::from_secs(120);
    let sending = tokio::spawn({
        let (load, population, stop) = (load(&gateway, &population, 200.0), population.clone(), stop.clone());
        async move { sender::run(load, &population, stop, deadline).await }
    });
    until("the first messages", Duration::from_secs(30), || stop.acknowledged() > 100).await;
    disk.fill().unwrap();
    // What is under way may still be answered; then nothing is.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let when_full = stop.acknowledged();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let later = stop.acknowledged();
    assert!(!gateway.ended().unwrap(), "a full disk does not end the process");
    // A crash while the disk is full makes no difference to what was acknowledged.
    gateway.kill().await.unwrap();
    disk.free().unwrap();
    gateway.spawn().await.unwrap();
    gateway.ready(Duration::from_secs(30)).await.unwrap();
    until("going on after the disk is freed", Duration::from_secs(30), || stop.acknowledged() > later + 100)
        .await;
    stop.ask();
    let log = sending.await.unwrap();
    until("everything arrives", Duration::from_secs(60), || {
        checker::check(&log, &[hook.seen("insurer", &["encounter-start"])], None).counts()[0].1 == 0
    })
    .await;
    gateway.terminate(Duration::from_secs(30)).await.unwrap();
    gateway.spawn().await.unwrap();
    gateway.ready(Duration::from_secs(30)).await.unwrap();
    let account = gateway.account(run).await.unwrap();
    let verdict = checker::check(&log, &[hook.seen("insurer", &["encounter-start"])], Some(&account));
    assert_eq!(verdict.findings, [], "{verdict}");
    assert_eq!(when_full, later, "nothing is acknowledged on a full disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn not_even_the_first_message_is_taken_without_the_reserve() {
    let _alone = ALONE.lock().await;
    let setup = Setup {
        settings: vec!["storage: {reserve: 1000000GiB}".to_owned(), "store_hold: 200ms".to_owned()],
        ..Setup::default()
    };
    let mut gateway = Gateway::configure(&setup).unwrap();
    gateway.spawn().await.unwrap();
    until("the MLLP port opens", Duration::from_secs(30), || {
        std::net::TcpStream::connect(gateway.mllp).is_ok()
    })
    .await;
    let population = Population::new(Run::fresh(), 9, 1);
    let deadline = Instant::now() + Duration::from_secs(3);
    let log = sender::run(load(&gateway, &population, 10.0), &population, Stop::after(1), deadline).await;
    assert!(!log.is_empty() && log.iter().all(|sent| sent.acknowledged.is_none()));
    assert!(gateway.ready(Duration::from_secs(1)).await.is_err(), "it says that it takes nothing");
    assert!(gateway.log().contains("the disk reserve is reached"), "and why");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and RabbitMQ, and root for a small disk: tests/run has them"]
async fn a_full_disk_under_postgresql_and_rabbitmq_loses_nothing() {
    let disk = SmallDisk::mount(700).unwrap();
    let _alone = ALONE.lock().await;
    let run = Run::fresh();
    let topics = ["encounter-start"];
    let hook = Webhook::start(run).await.unwrap();
    let services = OwnServices::start(&disk.path().join("services")).await.unwrap();
    let setup = Setup {
        store: Some(services.urls.new_database("full").await.unwrap()),
        bus: Some(services.urls.amqp.clone()),
        subscriptions: vec![Subscription::webhook("insurer", &topics, &hook.url())],
        settings: vec!["store_hold: 1s".to_owned()],
        ..Setup::default()
    };
    let gateway = Gateway::start(&setup).await.unwrap();
    let population = Population::new(run, 8, 80);
    let stop = Stop::after(u64::MAX);
    let deadline = Instant::now() + Duration::from_secs(300);
    let sending = tokio::spawn({
        let (load, population, stop) = (load(&gateway, &population, 200.0), population.clone(), stop.clone());
        async move { sender::run(load, &population, stop, deadline).await }
    });
    until("the first messages", Duration::from_secs(30), || stop.acknowledged() > 200).await;
    disk.fill().unwrap();
    // PostgreSQL writes on into its last segment, then it stops; RabbitMQ raises its alarm. Neither ends the gateway.
    tokio::time::sleep(Duration::from_secs(10)).await;
    disk.free().unwrap();
    for part in [Part::Postgres, Part::Rabbitmq] {
        services.restart(part).await.unwrap();
    }
    let when_freed = stop.acknowledged();
    until("going on after the disk is freed", Duration::from_secs(150), || {
        stop.acknowledged() > when_freed + 200
    })
    .await;
    stop.ask();
    let log = sending.await.unwrap();
    let seen = || [hook.seen("insurer", &topics)];
    let arrived = || checker::check(&log, &seen(), None).counts()[0].1 == 0;
    let patience = Instant::now() + Duration::from_secs(30);
    while !arrived() && Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    if !arrived() {
        // RabbitMQ 3.10 may come back from a full disk without its quorum queues (`cluster_not_formed`) and stay so. Then its
        // data is wiped, as the operator would: everything is still in the store.
        println!("the broker did not recover by itself; its data is wiped");
        services.wipe_broker().await.unwrap();
        services.restart(Part::Rabbitmq).await.unwrap();
    }
    until("everything arrives", Duration::from_secs(150), arrived).await;
    let verdict = checker::check(&log, &seen(), None);
    assert_eq!(verdict.findings, [], "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and RabbitMQ: tests/run starts them"]
async fn a_failing_subscriber_holds_up_no_other_and_gets_everything_in_the_end() {
    let _alone = ALONE.lock().await;
    let services = Services::from_environment().unwrap();
    let run = Run::fresh();
    let (well, ill) = (Webhook::start(run).await.unwrap(), Webhook::start(run).await.unwrap());
    let topics = ["encounter-start"];
    let name = |what: &str| format!("{what}{}", run.name());
    let setup = Setup {
        store: Some(services.new_database("faults").await.unwrap()),
        bus: Some(services.amqp.clone()),
        subscriptions: vec![
            Subscription::webhook(&name("well"), &topics, &well.url()),
            Subscription::webhook(&name("ill"), &topics, &ill.url()),
        ],
        ..Setup::default()
    };
    let gateway = Gateway::start(&setup).await.unwrap();
    let population = Population::new(run, 4, 40);
    ill.behave(Behaviour::Refuse(500));
    let deadline = Instant::now() + Duration::from_secs(60);
    let log = sender::run(load(&gateway, &population, 200.0), &population, Stop::after(400), deadline).await;
    until("the well one has everything", Duration::from_secs(30), || well.accepted() >= 400).await;
    assert_eq!(ill.accepted(), 0);
    ill.behave(Behaviour::Hang);
    tokio::time::sleep(Duration::from_secs(1)).await;
    ill.behave(Behaviour::Flaky(3));
    let missing = |hook: &Webhook| checker::check(&log, &[hook.seen("a", &topics)], None).counts()[0].1;
    until("the ill one has everything", Duration::from_secs(120), || missing(&ill) == 0).await;
    for hook in [&well, &ill] {
        let verdict = checker::check(&log, &[hook.seen("a", &topics)], None);
        assert_eq!(verdict.findings, [], "{verdict}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_delivery_is_parked_found_and_replayed() {
    let _alone = ALONE.lock().await;
    let run = Run::fresh();
    let hook = Webhook::start(run).await.unwrap();
    let setup = Setup {
        subscriptions: vec![Subscription::webhook("insurer", &["encounter-start"], &hook.url())],
        ..Setup::default()
    };
    let gateway = Gateway::start(&setup).await.unwrap();
    let population = Population::new(run, 5, 8);
    hook.behave(Behaviour::Refuse(422));
    let deadline = Instant::now() + Duration::from_secs(60);
    let log = sender::run(load(&gateway, &population, 100.0), &population, Stop::after(8), deadline).await;
    let parked = async || {
        let (code, found) = gateway.pons(&["search", "--state", "parked", "--format", "json"]).await.unwrap();
        assert_eq!(code, Some(0));
        found.lines().count()
    };
    let began = Instant::now();
    while parked().await < 8 {
        assert!(began.elapsed() < Duration::from_secs(30), "each refused delivery is a dead letter");
    }
    let seen = || [hook.seen("insurer", &["encounter-start"])];
    let account = gateway.account(run).await.unwrap();
    assert_eq!(checker::check(&log, &seen(), Some(&account)).findings, [], "a dead letter is accounted for");
    hook.behave(Behaviour::Accept);
    let (code, _) = gateway.pons(&["replay", "--state", "parked"]).await.unwrap();
    assert_eq!((code, hook.accepted()), (Some(0), 0), "a dry run sends nothing");
    let (code, _) = gateway.pons(&["replay", "--state", "parked", "--yes"]).await.unwrap();
    assert_eq!(code, Some(0));
    until("the dead letters arrive", Duration::from_secs(30), || hook.accepted() >= 8).await;
    assert_eq!(checker::check(&log, &seen(), None).findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_good_order_ends_with_zero_and_leaves_nothing_behind() {
    let _alone = ALONE.lock().await;
    let run = Run::fresh();
    let hook = Webhook::start(run).await.unwrap();
    let setup = Setup {
        subscriptions: vec![Subscription::webhook("insurer", &["encounter-start"], &hook.url())],
        ..Setup::default()
    };
    let mut gateway = Gateway::start(&setup).await.unwrap();
    let population = Population::new(run, 6, 40);
    let stop = Stop::after(1_000);
    let deadline = Instant::now() + Duration::from_secs(90);
    let sending = tokio::spawn({
        let (load, population, stop) = (load(&gateway, &population, 400.0), population.clone(), stop.clone());
        async move { sender::run(load, &population, stop, deadline).await }
    });
    for part in 1..=3 {
        until("more messages", Duration::from_secs(30), || stop.acknowledged() >= part * 200).await;
        assert_eq!(gateway.terminate(Duration::from_secs(30)).await.unwrap(), Some(0));
        gateway.spawn().await.unwrap();
        gateway.ready(Duration::from_secs(30)).await.unwrap();
    }
    let log = sending.await.unwrap();
    let seen = || [hook.seen("insurer", &["encounter-start"])];
    until("everything arrives", Duration::from_secs(30), || {
        checker::check(&log, &seen(), None).counts()[0].1 == 0
    })
    .await;
    let verdict = checker::check(&log, &seen(), None);
    assert_eq!((verdict.findings.as_slice(), verdict.acknowledged), ([].as_slice(), 1_000), "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and RabbitMQ: tests/run installs them"]
async fn servers_that_are_away_are_waited_for_and_one_that_is_not_durable_is_refused() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let services = OwnServices::start(folder.path()).await.unwrap();
    let setup = Setup {
        store: Some(services.urls.new_database("away").await.unwrap()),
        bus: Some(services.urls.amqp.clone()),
        settings: vec!["store_hold: 1s".to_owned()],
        ..Setup::default()
    };
    for part in [Part::Postgres, Part::Rabbitmq] {
        services.kill(part).await.unwrap();
    }
    let mut gateway = Gateway::configure(&setup).unwrap();
    gateway.spawn().await.unwrap();
    assert!(gateway.ready(Duration::from_secs(3)).await.is_err(), "not ready without its database");
    assert!(!gateway.ended().unwrap(), "it keeps trying");
    for part in [Part::Postgres, Part::Rabbitmq] {
        services.restart(part).await.unwrap();
    }
    gateway.ready(Duration::from_secs(30)).await.unwrap();
    gateway.kill().await.unwrap();
    let client = tests::services::connect(&services.urls.postgres).await.unwrap();
    for setting in ["fsync", "full_page_writes", "synchronous_commit"] {
        client.batch_execute(&format!("alter system set {setting} = off")).await.unwrap();
        client.batch_execute("select pg_reload_conf()").await.unwrap();
        gateway.spawn().await.unwrap();
        let began = Instant::now();
        while !gateway.ended().unwrap() {
            assert!(began.elapsed() < Duration::from_secs(20), "{setting} off is refused");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(gateway.log().contains(setting), "the log names {setting}");
        client.batch_execute(&format!("alter system reset {setting}")).await.unwrap();
        client.batch_execute("select pg_reload_conf()").await.unwrap();
    }
}
