//! Start and memory of the embedded default.

use anyhow::{Result, bail};
use std::time::Duration;
use tests::gateway::{Gateway, Setup, Usage};
use tests::generate::{Population, Run};
use tests::lab::percentiles;
use tests::sender::{self, Connection, Load, Stop};

/// Prints how long it takes from start to ready: on an empty folder, and on one with messages after a SIGKILL.
///
/// # Errors
/// When it does not start.
pub(crate) async fn start() -> Result<()> {
    let mut fresh = Vec::new();
    for _ in 0..9 {
        fresh.push(Gateway::start(&Setup::default()).await?.started_in);
    }
    let [median, _, longest] = percentiles(fresh);
    println!("start to ready, embedded, empty: median {median:.0?}, longest {longest:.0?}");
    let mut gateway = Gateway::start(&Setup::default()).await?;
    send(&gateway, 2_000).await;
    let mut again = Vec::new();
    for _ in 0..9 {
        gateway.kill_and_start().await?;
        gateway.ready(Duration::from_secs(60)).await?;
        again.push(gateway.started_in);
    }
    let [median, _, longest] = percentiles(again);
    println!(
        "start to ready, embedded, 2,000 messages, after SIGKILL: median {median:.0?}, longest {longest:.0?}"
    );
    Ok(())
}

async fn send(gateway: &Gateway, messages: u64) {
    let population = Population::new(Run::fresh(), 1, 160);
    let load = Load {
        to: vec![gateway.mllp],
        connections: 32,
        patients: 160,
        rate: None,
        kind: None,
        patience: Duration::from_secs(30),
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(300);
    sender::run(load, &population, Stop::after(messages), deadline).await;
}

/// Prints the gateway's memory at rest, after a load, and after input that wants to use it up.
///
/// # Errors
/// When the gateway ends.
pub(crate) async fn memory() -> Result<()> {
    let gateway = Gateway::start(&Setup::default()).await?;
    println!("memory, embedded: at rest {} MiB", gateway.usage()?.memory >> 20);
    send(&gateway, 20_000).await;
    let used = rested(&gateway).await?;
    println!(
        "memory, embedded, after 20,000 messages: {} MiB, at most {} MiB",
        used.memory >> 20,
        used.memory_peak >> 20
    );
    let mut connections = Vec::new();
    for _ in 0..8 {
        let Ok(mut connection) = Connection::open(gateway.mllp).await else { break };
        // A frame that never ends, 100 MB of it or as much as is taken.
        connections.push(tokio::spawn(async move {
            let _ = connection
                .raw(b"\x0BMSH|^~\\&|ADT1|GENHOSP|PONS|HIE|20260101||ADT^A01|X|P|2.5.1\rZZZ|")
                .await;
            for _ in 0..100 {
                if connection.raw(&[b'^'; 1 << 20]).await.is_err() {
                    return;
                }
            }
        }));
    }
    for connection in connections {
        connection.await?;
    }
    let used = rested(&gateway).await?;
    println!(
        "memory, embedded, after 8 connections of 100 MiB without an end: {} MiB, at most {} MiB",
        used.memory >> 20,
        used.memory_peak >> 20
    );
    Ok(())
}

/// What the gateway uses once it has done all that it was given: it takes almost no processor time any more.
async fn rested(gateway: &Gateway) -> Result<Usage> {
    let mut last = gateway.usage()?;
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = gateway.usage()?;
        if now.processor - last.processor <= Duration::from_millis(50) {
            return Ok(now);
        }
        last = now;
    }
    bail!("the gateway does not come to rest");
}
