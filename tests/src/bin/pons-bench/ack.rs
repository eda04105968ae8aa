//! Durable acknowledgements, over many connections, against a bare server that does nothing but make them durable.

use crate::cost::Meters;
use crate::floor::Floor;
use anyhow::Result;
use clap::Args;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tests::checker::Sent;
use tests::gateway::{Gateway, Setup};
use tests::generate::{Kind, Population, Run};
use tests::lab::percentiles;
use tests::sender::{self, Connection, Load, Stop};
use tests::services::{OwnServices, connect};
use tokio::net::TcpListener;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Connections, each stopping for its acknowledgement
    #[arg(long, default_value_t = 32)]
    connections: u32,
    /// Seconds for each measurement
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How often floor and gateway are measured in turn
    #[arg(long, default_value_t = 3)]
    rounds: u32,
}

impl Default for Arguments {
    fn default() -> Arguments {
        Arguments { connections: 32, seconds: 10, rounds: 3 }
    }
}

/// Prints both rates and their ratio.
///
/// # Errors
/// When a server does not start.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let services = OwnServices::start(folder.path()).await?;
    let floor_database = services.urls.new_database("floor").await?;
    let floor = floor(&floor_database).await?;
    let database = services.urls.new_database("ack").await?;
    let setup =
        Setup { store: Some(database.clone()), bus: Some(services.urls.amqp.clone()), ..Setup::default() };
    let gateway = Gateway::start(&setup).await?;
    let mut ratios = Vec::new();
    for round in 1..=arguments.rounds {
        let (floor_rate, floor_log) = measure(floor, arguments, u64::from(round)).await;
        let before = Meters::read(Some(&gateway), &services, &database).await?;
        let (rate, log) = measure(gateway.mllp, arguments, u64::from(round) + 1000).await;
        println!(
            "ack, {} connections, ADT^A01: {rate:.0} messages/s, {}; floor {floor_rate:.0} messages/s, {}; ratio {:.2}",
            arguments.connections,
            latencies(&log),
            latencies(&floor_log),
            rate / floor_rate
        );
        rest(&database).await?;
        Meters::read(Some(&gateway), &services, &database).await?.print_since(&before, log.len() as u64);
        ratios.push(rate / floor_rate);
    }
    ratios.sort_by(f64::total_cmp);
    println!("ack: median ratio {:.2} of the floor (of {} rounds)", ratios[ratios.len() / 2], ratios.len());
    Ok(())
}

/// The percentiles of the acknowledgements in a log.
pub(crate) fn latencies(log: &[Sent]) -> String {
    let [p50, p99, longest] = percentiles(log.iter().filter_map(|sent| sent.acknowledged).collect());
    format!("ACK p50 {p50:.1?}, p99 {p99:.1?}, longest {longest:.1?}")
}

async fn measure(to: SocketAddr, arguments: &Arguments, seed: u64) -> (f64, Vec<Sent>) {
    let patients = arguments.connections * 50;
    let population = Population::new(Run::fresh(), seed, patients);
    let load = Load {
        to: vec![to],
        connections: arguments.connections,
        patients,
        rate: None,
        kind: Some(Kind::Admit),
        patience: Duration::from_secs(30),
    };
    let stop = Stop::after(u64::MAX);
    let began = Instant::now();
    let asked = stop.clone();
    let seconds = Duration::from_secs(arguments.seconds);
    tokio::spawn(async move {
        tokio::time::sleep(seconds).await;
        asked.ask();
    });
    let log = sender::run(load, &population, stop, began + seconds * 3).await;
    (
        log.iter().filter(|sent| sent.acknowledged.is_some()).count() as f64 / began.elapsed().as_secs_f64(),
        log,
    )
}

/// Waits until nothing more is written, so that the next measurement has the machine to itself.
///
/// # Errors
/// When the database is away.
pub(crate) async fn rest(database: &str) -> Result<()> {
    let client = connect(database).await?;
    let mut last = -1;
    for _ in 0..600 {
        let row = client.query_one("select (pg_current_wal_insert_lsn() - '0/0')::bigint", &[]).await?;
        let now: i64 = row.get(0);
        if now - last < 64 * 1024 {
            return Ok(());
        }
        last = now;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// A server that stores each message as one row, many rows a commit, and acknowledges after the commit; nothing else.
async fn floor(database: &str) -> Result<SocketAddr> {
    let floor = Floor::open(database).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let floor = floor.clone();
            tokio::spawn(async move {
                let mut connection = Connection::over(stream);
                while let Ok(message) = connection.receive(Duration::from_secs(60)).await {
                    let answer = answer(&message);
                    if !floor.keep(message).await || connection.send(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(at)
}

fn answer(message: &[u8]) -> Vec<u8> {
    let control_id = message.split(|byte| *byte == b'|').nth(9).unwrap_or_default();
    let mut answer = b"MSH|^~\\&|PONS|HIE|ADT1|GENHOSP|20260101000000||ACK|A1|P|2.5.1\rMSA|AA|".to_vec();
    answer.extend_from_slice(control_id);
    answer.push(b'\r');
    answer
}
