//! The whole way: MLLP, PostgreSQL, RabbitMQ, a webhook.

use crate::Sort;
use crate::ack::latencies;
use crate::cost::Meters;
use crate::disk::Disk;
use anyhow::{Result, bail};
use clap::Args;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};
use tests::checker::{self, Sent};
use tests::gateway::{Gateway, Setup, Subscription};
use tests::generate::{Population, Run};
use tests::lab::percentiles;
use tests::sender::{self, Load, Stop};
use tests::services::OwnServices;
use tests::webhook::Webhook;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Which message
    #[arg(long = "kind", value_enum, default_value = "admit")]
    sort: Sort,
    /// Seconds of sending, for each of the two parts: as fast as it goes, then at half that rate for the latencies
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Messages a second for the first part; 0 sends as fast as it is answered
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Connections of the sender
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// Patients
    #[arg(long, default_value_t = 5_000)]
    patients: u32,
}

impl Arguments {
    /// The defaults, for one kind of message.
    pub(crate) fn of(sort: Sort) -> Arguments {
        Arguments { sort, seconds: 30, rate: 0.0, connections: 64, patients: 5_000 }
    }
}

/// Prints rates, latencies and costs.
///
/// # Errors
/// When something is lost, or does not start.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let services = OwnServices::start(folder.path()).await?;
    let log = services.age().await?;
    println!("PostgreSQL has {} MiB of log to use again, as a server has that runs for long", log >> 20);
    let full = (arguments.rate > 0.0).then_some(arguments.rate);
    let sustained = part(arguments, &services, folder.path(), full).await?;
    services.settle().await?;
    part(arguments, &services, folder.path(), Some(sustained / 2.0)).await?;
    Ok(())
}

/// Sends for a while, waits until everything has arrived, and prints; answers the rate from the first message sent to the
/// last one delivered.
async fn part(
    arguments: &Arguments,
    services: &OwnServices,
    folder: &Path,
    rate: Option<f64>,
) -> Result<f64> {
    let run = Run::fresh();
    let hook = Webhook::start(run).await?;
    let database = services.urls.new_database("bench").await?;
    let kind = arguments.sort.kind();
    let topics = [kind.topic().expect("the kinds of a benchmark have a topic")];
    let mut subscription = Subscription::webhook(&format!("bench{}", run.name()), &topics, &hook.url());
    subscription.settings.push("in_flight_max: 256".to_owned());
    let setup = Setup {
        store: Some(database.clone()),
        bus: Some(services.urls.amqp.clone()),
        subscriptions: vec![subscription],
        ..Setup::default()
    };
    let gateway = Gateway::start(&setup).await?;
    let population = Population::new(run, 1, arguments.patients);
    let load = Load {
        to: vec![gateway.mllp],
        connections: arguments.connections,
        patients: arguments.patients,
        rate,
        kind: Some(kind),
        patience: Duration::from_secs(30),
    };
    let stop = Stop::after(u64::MAX);
    let disk = Disk::watch(folder)?;
    let before = Meters::read(Some(&gateway), services, &database).await?;
    let began = Instant::now();
    let asked = stop.clone();
    let seconds = Duration::from_secs(arguments.seconds);
    tokio::spawn(async move {
        tokio::time::sleep(seconds).await;
        asked.ask();
    });
    let log = sender::run(load, &population, stop, began + seconds + Duration::from_secs(120)).await;
    let sending = began.elapsed();
    let floor = disk.took()?;
    let (mut last, mut since) = (0, Instant::now());
    while hook.accepted() < log.len() && since.elapsed() < Duration::from_secs(60) {
        if hook.accepted() > last {
            (last, since) = (hook.accepted(), Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let whole = began.elapsed();
    // The statistics of the database's sessions are a second late.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let after = Meters::read(Some(&gateway), services, &database).await?;
    let messages = log.len() as u64;
    let sustained = messages as f64 / whole.as_secs_f64();
    let asked = rate.map_or_else(|| "as fast as it goes".to_owned(), |rate| format!("at {rate:.0}/s"));
    println!(
        "end to end {kind:?}, {asked}: {messages} messages, acknowledged {:.0}/s, delivered {sustained:.0}/s (drained {:.1} s \
         after the last), {}, to the webhook {}; {:.0} bytes a delivery",
        messages as f64 / sending.as_secs_f64(),
        (whole - sending).as_secs_f64(),
        latencies(&log),
        arrivals(&log, &hook),
        hook.bytes() as f64 / messages as f64,
    );
    println!(
        "  by tenths of the time, p99: ACK {}; webhook {}; floor {}",
        tenths(began, acknowledged(&log)),
        tenths(began, arrived(&log, &hook)),
        tenths(began, floor.clone()),
    );
    let [p50, p99, longest] = percentiles(floor.into_iter().map(|(_, took)| took).collect());
    println!(
        "  floor, a page written and synchronized beside it: p50 {p50:.1?}, p99 {p99:.1?}, longest {longest:.1?}"
    );
    after.print_since(&before, messages);
    let metrics = gateway.metrics().await?;
    for (station, histogram) in STATIONS {
        println!("  {station}: {}", shares(&metrics, histogram));
    }
    let used = gateway.usage()?;
    println!("  gateway memory {} MiB, at most {} MiB", used.memory >> 20, used.memory_peak >> 20);
    let verdict = checker::check(&log, &[hook.seen("bench", &topics)], Some(&gateway.account(run).await?));
    println!("  {verdict}");
    if !verdict.findings.is_empty() {
        bail!("a benchmark in which something is lost is none");
    }
    drop(gateway);
    // PostgreSQL would go on to look after it during the next part.
    services.urls.drop_database(&database).await?;
    Ok(sustained)
}

/// The stations of the path, and the histogram of the gateway that tells how long each took.
const STATIONS: [(&str, &str); 4] = [
    ("a batch made durable", "pons_ingest_commit_seconds"),
    ("a batch recorded", "pons_normalize_record_seconds"),
    ("an attempt to deliver", "pons_deliver_attempt_seconds"),
    ("from receipt to delivery", "pons_deliver_latency_seconds"),
];

/// How often something was timed, its mean, and how often it took longer than some bounds.
fn shares(metrics: &BTreeMap<String, f64>, histogram: &str) -> String {
    let sum = |part: &str, label: &str| -> f64 {
        let of = |name: &str| name.strip_prefix(histogram).is_some_and(|rest| rest.starts_with(part));
        metrics.iter().filter(|(name, _)| of(name) && name.contains(label)).map(|(_, value)| value).sum()
    };
    let count = sum("_count", "");
    let over = |bound: &str| 100.0 * (1.0 - sum("_bucket", &format!("le=\"{bound}\"")) / count);
    format!(
        "{count:.0} times, mean {:.1} ms, longer than 10 ms {:.2} %, 25 ms {:.2} %, 50 ms {:.2} %, 100 ms {:.2} %",
        1e3 * sum("_sum", "") / count,
        over("0.01"),
        over("0.025"),
        over("0.05"),
        over("0.1"),
    )
}

/// When each message was begun, and how long its acknowledgement took.
fn acknowledged(log: &[Sent]) -> Vec<(Instant, Duration)> {
    log.iter().filter_map(|sent| Some((sent.began, sent.acknowledged?))).collect()
}

/// When each message was begun, and how long it took from its first byte sent to its first arrival.
fn arrived(log: &[Sent], hook: &Webhook) -> Vec<(Instant, Duration)> {
    let began: HashMap<_, _> = log.iter().map(|sent| (sent.marker, sent.began)).collect();
    let mut first = HashMap::new();
    for (arrival, at) in hook.times() {
        if let Some(marker) = arrival.marker {
            first.entry(marker).or_insert(at);
        }
    }
    first.iter().filter_map(|(marker, at)| began.get(marker).map(|began| (*began, *at - *began))).collect()
}

/// The percentiles from the first byte sent to the first arrival.
fn arrivals(log: &[Sent], hook: &Webhook) -> String {
    let [p50, p99, longest] = percentiles(arrived(log, hook).into_iter().map(|(_, took)| took).collect());
    format!("p50 {p50:.1?}, p99 {p99:.1?}, longest {longest:.1?}")
}

/// The 99th percentile in each tenth of a run, in milliseconds.
fn tenths(began: Instant, times: Vec<(Instant, Duration)>) -> String {
    let whole = times.iter().map(|(at, _)| *at - began).max().unwrap_or_default();
    let mut parts = vec![Vec::new(); 10];
    for (at, took) in times {
        let part = 10.0 * (at - began).as_secs_f64() / whole.as_secs_f64();
        parts[(part as usize).min(9)].push(took);
    }
    let each = parts.into_iter().map(|times| format!("{:.0}", 1e3 * percentiles(times)[1].as_secs_f64()));
    each.collect::<Vec<_>>().join(" ")
}
