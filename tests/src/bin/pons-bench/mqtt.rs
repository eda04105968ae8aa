//! Readings by MQTT: published to Mosquitto by several devices, made durable and recorded as Observations.

use crate::cost::Meters;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use tests::gateway::{Gateway, Setup};
use tests::mqtt::{add_source, connected, publish, reading};
use tests::services::{OwnServices, connect};
use tokio::task::JoinSet;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Readings in all
    #[arg(long, default_value_t = 100_000)]
    readings: u64,
    /// Clients that publish
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    publishers: u64,
    /// Devices that the readings are from
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    devices: u64,
    /// Readings a second, all publishers together
    #[arg(long, default_value_t = 5_000.0)]
    rate: f64,
    /// How often the gateway is killed while they publish
    #[arg(long, default_value_t = 0)]
    kills: u32,
    /// The version of MQTT
    #[arg(long, default_value = "5")]
    version: String,
}

/// Prints what became of them, and how fast.
///
/// # Errors
/// When a server does not start, or a reading is lost or taken twice.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let services = OwnServices::start(folder.path()).await?;
    let database = services.urls.new_database("mqtt").await?;
    let setup =
        Setup { store: Some(database.clone()), bus: Some(services.urls.amqp.clone()), ..Setup::default() };
    let mut gateway = Gateway::configure(&setup)?;
    let session = add_source(&gateway, &services.urls.mqtt, &arguments.version)?;
    gateway.spawn().await?;
    gateway.ready(Duration::from_secs(60)).await?;
    connected(&gateway).await?;

    let before = Meters::read(Some(&gateway), &services, &database).await?;
    let began = Instant::now();
    let mut publishing = JoinSet::new();
    for publisher in 0..arguments.publishers {
        let (broker, session) = (services.urls.mqtt.clone(), session.clone());
        let (step, devices) = (usize::try_from(arguments.publishers)?, arguments.devices);
        let numbers = (publisher..arguments.readings).step_by(step);
        let rate = arguments.rate / arguments.publishers as f64;
        publishing.spawn(async move {
            let readings = numbers.map(move |number| reading(&session, number, devices));
            publish(&broker, &format!("devices{publisher}"), readings, Some(rate)).await
        });
    }
    let planned = Duration::from_secs_f64(arguments.readings as f64 / arguments.rate);
    for kill in 1..=arguments.kills {
        tokio::time::sleep_until((began + planned * kill / (arguments.kills + 1)).into()).await;
        gateway.kill_and_start().await?;
        gateway.ready(Duration::from_secs(60)).await?;
    }
    let mut published = 0;
    while let Some(one) = publishing.join_next().await {
        published += one??;
    }
    let published_in = began.elapsed();
    let client = connect(&database).await?;
    let count = async |sql: &str| -> Result<u64> {
        Ok(u64::try_from(client.query_one(sql, &[]).await?.get::<_, i64>(0))?)
    };
    let messages = "SELECT count(*) FROM message";
    let durable_in = until(began, async || Ok(count(messages).await? >= published)).await?;
    let recorded_in = until(began, async || Ok(count("SELECT count(*) FROM inbox").await? == 0)).await?;
    let kept = count(messages).await?;
    let observations = count("SELECT count(*) FROM resource WHERE resource_type = 'Observation'").await?;
    let again =
        count("SELECT count(*) FROM resource WHERE resource_type = 'Observation' AND version > 1").await?;
    let used = gateway.usage()?;
    let rate = |time: Duration| published as f64 / time.as_secs_f64();
    println!(
        "mqtt {}, {} publishers, {} devices, {} kills: {published} readings published in {published_in:.1?} ({:.0}/s), durable in \
         {durable_in:.1?} ({:.0}/s), recorded in {recorded_in:.1?} ({:.0}/s); memory at most {} MiB",
        arguments.version,
        arguments.publishers,
        arguments.devices,
        arguments.kills,
        rate(published_in),
        rate(durable_in),
        rate(recorded_in),
        used.memory_peak >> 20,
    );
    println!(
        "  {kept} messages, {observations} Observations: {} lost, {} taken twice, {again} with another version",
        published.saturating_sub(observations),
        kept.saturating_sub(published),
    );
    Meters::read(Some(&gateway), &services, &database).await?.print_since(&before, published);
    ensure!(
        kept == published && observations == published && again == 0,
        "readings were lost or taken twice"
    );
    Ok(())
}

/// How long it took since `began` until something was so; given up when nothing has changed for ten minutes.
async fn until(began: Instant, is_so: impl AsyncFn() -> Result<bool>) -> Result<Duration> {
    let since = Instant::now();
    while !is_so().await? {
        ensure!(since.elapsed() < Duration::from_secs(600), "not done within ten minutes");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(began.elapsed())
}
