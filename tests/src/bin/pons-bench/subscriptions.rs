//! Subscriptions over `/fhir`: what it takes to tell ten of each message, and what thousands of others cost that are not concerned.

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
use tests::webhook::Webhook;

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
}

/// Prints latency, processor time and memory with ten subscriptions, then the same with thousands of others beside them.
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
    println!(
        "with {} others: p50 {:.2} times, p99 {:.2} times, processor time {:.2} times",
        arguments.idle,
        many.waited[0].as_secs_f64() / few.waited[0].as_secs_f64(),
        many.waited[1].as_secs_f64() / few.waited[1].as_secs_f64(),
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
    /// From the first byte sent to the last of the ten that were told.
    waited: [Duration; 3],
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
    let count = (arguments.rate * arguments.seconds as f64) as u64;
    let load = Load {
        to: vec![gateway.mllp],
        connections: 16,
        patients: population.patients(),
        rate: Some(arguments.rate),
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
        ensure!(*count >= CONCERNED, "one was not told");
        Ok(at.duration_since(sent.began))
    });
    let waited = percentiles(waited.collect::<Result<_>>()?);
    let processor = (after.processor - before.0.processor) / u32::try_from(log.len())?;
    println!(
        "{name}: {:.0} messages/s, {:.0} deliveries/s; from sent to told to all ten p50 {:.1?}, p99 {:.1?}, longest {:.1?}; \
         {processor:.1?} of processor time a message, memory {} MiB",
        log.len() as f64 / all.as_secs_f64(),
        (log.len() * CONCERNED) as f64 / all.as_secs_f64(),
        waited[0],
        waited[1],
        waited[2],
        after.memory >> 20,
    );
    Ok(Figures { waited, processor })
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
