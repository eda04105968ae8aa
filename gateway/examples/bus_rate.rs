//! How fast the bus carries deliveries: publish with confirms, take, settle, over RabbitMQ and in process.
//!
//! `cargo run --release -p gateway --example bus_rate -- amqp://guest:guest@127.0.0.1:5672/%2f`

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use bytes::Bytes;
use gateway::bus::{Bus, Embedded, Envelope, RabbitMq, RabbitMqSettings, routing_key};
use schemas::message::{DeliveryId, MessageId};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

const WINDOW: usize = 500;
const COUNT: usize = 40_000;
const BODY_BYTES: usize = 8 * 1024;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    println!("{COUNT} deliveries of {BODY_BYTES} bytes, window {WINDOW}");
    measure("in process", Arc::new(Embedded::new(1 << 30))).await?;
    if let Some(url) = std::env::args().nth(1) {
        measure("RabbitMQ", Arc::new(RabbitMq::new(RabbitMqSettings::new(url))?)).await?;
    }
    Ok(())
}

async fn measure(what: &str, bus: Arc<dyn Bus>) -> anyhow::Result<()> {
    let name: Arc<str> = format!("rate-{}", Uuid::now_v7().simple()).into();
    bus.declare(&name).await?;
    let (began, cpu) = (Instant::now(), cpu_time()?);
    let publishing = tokio::spawn({
        let (bus, name) = (Arc::clone(&bus), Arc::clone(&name));
        async move {
            let body = Bytes::from(vec![b'x'; BODY_BYTES]);
            // Two halves of the window under way, as a deliverer has them.
            let mut under_way = tokio::task::JoinSet::new();
            for batch in 0..COUNT / (WINDOW / 2) {
                let envelopes = (0..WINDOW / 2).map(|n| envelope(&name, batch * WINDOW + n, &body)).collect();
                let bus = Arc::clone(&bus);
                under_way.spawn(async move { bus.publish(envelopes).await });
                if under_way.len() == 2 {
                    let results = under_way.join_next().await.expect("two are under way")?;
                    results.into_iter().collect::<Result<Vec<()>, _>>()?;
                }
            }
            while let Some(results) = under_way.join_next().await {
                results?.into_iter().collect::<Result<Vec<()>, _>>()?;
            }
            anyhow::Ok(began.elapsed())
        }
    });
    let mut consumer = bus.consume(&name, u16::try_from(2 * WINDOW)?).await?;
    let mut tickets = Vec::with_capacity(WINDOW);
    for taken in 1..=COUNT {
        tickets.push(consumer.next().await?.ticket);
        if tickets.len() == 100 || taken == COUNT {
            consumer.settle(&tickets).await?;
            tickets.clear();
        }
    }
    consumer.settle(&[]).await?;
    let (took, cpu) = (began.elapsed(), cpu_time()? - cpu);
    let published = publishing.await??;
    let rate = |time: Duration| COUNT as f64 / time.as_secs_f64();
    println!(
        "{what}: published {:.0}/s; published, taken and settled {:.0}/s; {:.1} us CPU of this process each",
        rate(published),
        rate(took),
        cpu.as_secs_f64() * 1e6 / COUNT as f64
    );
    Ok(())
}

fn envelope(name: &Arc<str>, number: usize, body: &Bytes) -> Envelope {
    let message = MessageId(Uuid::from_u128(number as u128));
    Envelope {
        delivery: DeliveryId::of(Uuid::NAMESPACE_OID, message, name, 0),
        subscription: Arc::clone(name),
        routing_key: routing_key(name, "result-final", "TESTLAB"),
        traceparent: None,
        body: body.clone(),
    }
}

/// CPU time of this process so far, user and system.
fn cpu_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // A tick is 10 ms on Linux.
    Ok(Duration::from_millis(ticks * 10))
}
