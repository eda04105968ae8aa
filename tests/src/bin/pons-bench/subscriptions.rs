//! Subscriptions over `/fhir`: what it takes to tell ten of each message, what one of them costs the others that is slow, and what
//! thousands of others cost that are not concerned.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tests::checker::Sent;
use tests::gateway::{Gateway, Setup, Usage};
use tests::generate::{Kind, Marker, Population, Run};
use tests::lab::percentiles;
use tests::rest;
use tests::sender::{self, Load, Stop};
use tests::services::OwnServices;
use tests::webhook::{Behaviour, Webhook};

/// How many of them a client may have.
const EACH: usize = 1_000;
/// How many are told of each message.
const CONCERNED: usize = 10;
/// A topic of which nothing is sent here.
const ELSEWHERE: &str = "immunization-given";
const BACKPORT: &str = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many others there are
    #[arg(long, default_value_t = 9_990)]
    idle: usize,
    /// Messages a second; each is told to ten
    #[arg(long, default_value_t = 139.0)]
    rate: f64,
    /// For how long, each time
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// How often the nine are measured beside one that is well and one that takes a message a second, in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
}

/// How much faster each attempt at the highest rate is than the one before.
const FASTER: f64 = 1.25;
/// The p99 up to which a rate is sustained.
const BOUND: Duration = Duration::from_millis(250);

/// Prints latency, processor time and memory with ten subscriptions; with one of them slow; the highest rate sustained; then the first
/// again with thousands of others beside them.
///
/// # Errors
/// When something is lost, or the laboratory itself does not work.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let services = OwnServices::start(folder.path()).await?;
    let (run, mut hooks) = (Run::fresh(), Vec::new());
    for _ in 0..CONCERNED {
        hooks.push(Webhook::start(run).await?);
    }
    let aside = Webhook::start(run).await?;
    let endpoints: Vec<String> = hooks.iter().chain([&aside]).map(Webhook::url).collect();
    let clients = arguments.idle / EACH + 2;
    let senders = (0..clients).map(|n| {
        let token = folder.path().join(format!("client{n}.token"));
        std::fs::write(&token, format!("t0ken-of-client-{n}"))?;
        Ok(format!(
            "{{name: client{n}, token: {{file: '{}'}}, subscribes: {{topics: '*', senders: [genhosp], subscriptions_max: {EACH}, \
             channels: rest-hook, endpoints: [{}]}}}}",
            token.display(),
            endpoints.join(", ")
        ))
    });
    let setup = Setup {
        store: Some(services.urls.new_database("bench").await?),
        bus: Some(services.urls.amqp.clone()),
        senders: senders.collect::<Result<_>>()?,
        ..Setup::default()
    };
    let mut gateway = Gateway::start(&setup).await?;
    for hook in &hooks {
        create(&gateway, 0, "encounter-start", &hook.url()).await?;
    }
    active(&gateway, 0, CONCERNED).await?;
    let mut population = Population::new(run, 1, 200);
    measure(&gateway, arguments, &mut population, &hooks, "warm-up").await?;
    let few = measure(&gateway, arguments, &mut population, &hooks, "10 subscriptions").await?;
    slow(&gateway, arguments, &mut population, &hooks).await?;
    highest(&gateway, arguments, &mut population, &hooks).await?;

    let began = Instant::now();
    for n in 0..arguments.idle {
        create(&gateway, 1 + n / EACH, ELSEWHERE, &aside.url()).await?;
    }
    for client in 0..clients - 1 {
        let count = arguments.idle.saturating_sub(client * EACH).min(EACH);
        active(&gateway, 1 + client, count).await?;
    }
    println!("{} more created and active in {:.1} s", arguments.idle, began.elapsed().as_secs_f64());
    // Their deliverers go to rest.
    tokio::time::sleep(Duration::from_secs(70)).await;
    let before = gateway.usage()?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let rest = gateway.usage()?.processor - before.processor;
    println!(
        "at rest they take {:.1} % of a processor, memory {} MiB",
        rest.as_secs_f64() * 10.0,
        before.memory >> 20
    );
    let name = format!("{} subscriptions", CONCERNED + arguments.idle);
    let many = measure(&gateway, arguments, &mut population, &hooks, &name).await?;
    let (with, without) = (percentiles(many.waited), percentiles(few.waited));
    println!(
        "with {} others: p50 {:.2} times, p99 {:.2} times, processor time {:.2} times",
        arguments.idle,
        with[0].as_secs_f64() / without[0].as_secs_f64(),
        with[1].as_secs_f64() / without[1].as_secs_f64(),
        many.processor.as_secs_f64() / few.processor.as_secs_f64(),
    );
    let first = gateway.started_in;
    gateway.kill_and_start().await?;
    gateway.ready(Duration::from_secs(120)).await?;
    println!("start to ready: {first:.0?} without them, {:.0?} with them after SIGKILL", gateway.started_in);
    Ok(())
}

/// What one measurement gave.
struct Figures {
    /// Messages a second, as they were sent.
    rate: f64,
    /// Of each message, from the first byte sent to the last of them that was told.
    waited: Vec<Duration>,
    /// The gateway's, a message.
    processor: Duration,
}

async fn measure(
    gateway: &Gateway,
    arguments: &Arguments,
    population: &mut Population,
    hooks: &[Webhook],
    name: &str,
) -> Result<Figures> {
    measure_at(arguments.rate, gateway, arguments, population, hooks, name).await
}

/// What the nine of ten wait beside one that takes a message a second, against what they wait beside one that is well. Which of
/// the two comes first changes from round to round, and the waits of all rounds are compared together: a machine that is loud for
/// some seconds would else decide.
async fn slow(
    gateway: &Gateway,
    arguments: &Arguments,
    population: &mut Population,
    hooks: &[Webhook],
) -> Result<()> {
    let (nine, last) = (&hooks[..CONCERNED - 1], &hooks[CONCERNED - 1]);
    let (mut well, mut slow) = (Vec::new(), Vec::new());
    let mut pairs = Vec::new();
    for round in 0..arguments.rounds {
        let mut pair = [Duration::ZERO; 2];
        for is_slow in [round % 2 == 1, round % 2 == 0] {
            let waited = match is_slow {
                false => {
                    measure(gateway, arguments, population, nine, "nine beside one that is well")
                        .await?
                        .waited
                }
                true => beside_slow(gateway, arguments, population, nine, last).await?,
            };
            pair[usize::from(is_slow)] = percentiles(waited.clone())[1];
            if is_slow { &mut slow } else { &mut well }.extend(waited);
        }
        pairs.push(pair[1].as_secs_f64() / pair[0].as_secs_f64());
    }
    let mean = (pairs.iter().map(|ratio| ratio.ln()).sum::<f64>() / pairs.len() as f64).exp();
    let (count, [well, slow]) = (well.len(), [well, slow].map(percentiles));
    println!(
        "one of ten that takes a message a second, over {count} messages beside it well and as many beside it slow: the other nine's p50 \
         {:.2} times ({:.1?} to {:.1?}), p99 {:.2} times ({:.1?} to {:.1?}); p99 of the pairs {pairs:.2?}, geometric mean {mean:.2}",
        slow[0].as_secs_f64() / well[0].as_secs_f64(),
        well[0],
        slow[0],
        slow[1].as_secs_f64() / well[1].as_secs_f64(),
        well[1],
        slow[1],
    );
    Ok(())
}

/// What the nine wait while the last takes a message a second; it has caught up again when this returns.
async fn beside_slow(
    gateway: &Gateway,
    arguments: &Arguments,
    population: &mut Population,
    nine: &[Webhook],
    last: &Webhook,
) -> Result<Vec<Duration>> {
    last.behave(Behaviour::Paced(Duration::from_secs(1)));
    let taken = last.accepted();
    let figures = measure(gateway, arguments, population, nine, "nine beside one that is slow").await?;
    println!("it has taken {} in that time, and is well again", last.accepted() - taken);
    last.behave(Behaviour::Accept);
    let began = Instant::now();
    while last.accepted() < nine[0].accepted() {
        ensure!(began.elapsed() < Duration::from_secs(300), "the one that was slow does not catch up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("it has caught up within {:.1} s", began.elapsed().as_secs_f64());
    Ok(figures.waited)
}

/// Raises the rate until the ten are not told in time any more.
async fn highest(
    gateway: &Gateway,
    arguments: &Arguments,
    population: &mut Population,
    hooks: &[Webhook],
) -> Result<()> {
    let (mut rate, mut sustained) = (arguments.rate, None);
    loop {
        let figures = measure_at(rate, gateway, arguments, population, hooks, "rising").await?;
        let [_, p99, _] = percentiles(figures.waited);
        if p99 > BOUND || figures.rate < rate * 0.95 {
            break;
        }
        sustained = Some((figures.rate, p99));
        rate *= FASTER;
    }
    match sustained {
        Some((rate, p99)) => println!(
            "highest rate sustained, each told to ten within {BOUND:.0?} by p99: {rate:.0} messages/s, {:.0} deliveries/s, p99 {p99:.1?}",
            rate * CONCERNED as f64
        ),
        None => println!("{rate:.0} messages/s are not sustained with a p99 within {BOUND:.0?}"),
    }
    Ok(())
}

async fn measure_at(
    rate: f64,
    gateway: &Gateway,
    arguments: &Arguments,
    population: &mut Population,
    hooks: &[Webhook],
    name: &str,
) -> Result<Figures> {
    let count = (rate * arguments.seconds as f64) as u64;
    let load = Load {
        to: vec![gateway.mllp],
        connections: 16,
        patients: population.patients(),
        rate: Some(rate),
        kind: Some(Kind::Admit),
        patience: Duration::from_secs(30),
    };
    let before: (Usage, Vec<usize>) = (gateway.usage()?, hooks.iter().map(Webhook::accepted).collect());
    let began = Instant::now();
    let log = sender::run(load, population, Stop::after(count), began + Duration::from_secs(600)).await;
    let sending = began.elapsed();
    for sent in &log {
        population.pass(sent.marker);
    }
    let told = || hooks.iter().zip(&before.1).all(|(hook, before)| hook.accepted() >= before + log.len());
    while !told() {
        ensure!(began.elapsed() < sending + Duration::from_secs(120), "something is missing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let all = began.elapsed();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = gateway.usage()?;
    let mut last: HashMap<Marker, (usize, Instant)> = HashMap::new();
    for hook in hooks {
        for (arrival, at) in hook.times() {
            let Some(marker) = arrival.marker else { continue };
            let entry = last.entry(marker).or_insert((0, at));
            *entry = (entry.0 + 1, entry.1.max(at));
        }
    }
    let waited = log.iter().map(|sent: &Sent| {
        let (count, at) = last.get(&sent.marker).context("it was told")?;
        ensure!(*count >= hooks.len(), "one was not told");
        Ok(at.duration_since(sent.began))
    });
    let waited = waited.collect::<Result<Vec<_>>>()?;
    let [p50, p99, longest] = percentiles(waited.clone());
    let processor = (after.processor - before.0.processor) / u32::try_from(log.len())?;
    println!(
        "{name}: {:.0} messages/s, {:.0} deliveries/s; from sent to told to all of them p50 {p50:.1?}, p99 {p99:.1?}, longest {longest:.1?}; \
         {processor:.1?} of processor time a message, memory {} MiB",
        log.len() as f64 / all.as_secs_f64(),
        (log.len() * hooks.len()) as f64 / all.as_secs_f64(),
        after.memory >> 20,
    );
    Ok(Figures { rate: log.len() as f64 / sending.as_secs_f64(), waited, processor })
}

async fn ask(gateway: &Gateway, client: usize, request: &str, body: &str) -> Result<rest::Answer> {
    let authorization = format!("Bearer t0ken-of-client-{client}");
    let headers = [("authorization", authorization.as_str()), ("content-type", "application/fhir+json")];
    rest::exchange(gateway, request, &headers, body.as_bytes(), body.len()).await
}

async fn create(gateway: &Gateway, client: usize, topic: &str, url: &str) -> Result<()> {
    let resource = json!({
        "resourceType": "Subscription", "status": "requested", "reason": "to be measured",
        "criteria": format!("urn:pons:topic:{topic}"),
        "channel": {
            "type": "rest-hook", "endpoint": url, "payload": "application/fhir+json",
            "_payload": {"extension": [{"url": format!("{BACKPORT}backport-payload-content"), "valueCode": "full-resource"}]},
        },
    });
    let made = ask(gateway, client, "POST /fhir/Subscription", &resource.to_string()).await?;
    ensure!(made.status == 201, "{}", made.body);
    Ok(())
}

/// Waits until so many of a client's are active.
async fn active(gateway: &Gateway, client: usize, count: usize) -> Result<()> {
    let began = Instant::now();
    loop {
        let found = ask(gateway, client, "GET /fhir/Subscription?status=active", "").await?.json();
        if found["total"] == count {
            return Ok(());
        }
        ensure!(began.elapsed() < Duration::from_secs(300), "{} of {count} are active", found["total"]);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
