//! Figures, each beside a floor that is measured in the same run: the least that the same machine needs for the same job.
//!
//! `cargo run --release -p tests --bin pons-bench -- parse|map|ack|creates|mqtt|end-to-end|subscriptions|memory|start|all`. Wall time moves with whatever
//! else the machine does, so processor time, rows and WAL bytes a message stand beside it; `count-allocations` counts allocations.

#![expect(clippy::print_stdout, reason = "a command for people")]

mod ack;
mod cost;
mod creates;
mod disk;
mod end_to_end;
mod floor;
mod micro;
mod mqtt;
mod start;
mod subscriptions;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use tests::generate::Kind;

/// The gateway's, as its memory is part of what is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Benchmarks of Pons.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Reading HL7 v2; floor: one pass of memchr that visits every separator
    Parse,
    /// Mapping to FHIR; floor: reading the message and serializing the same Bundle with serde_json
    Map,
    /// Durable acknowledgements; floor: an MLLP echo that group-commits one row a message into the same database
    Ack(ack::Arguments),
    /// Observations created over /fhir, recorded before they are answered; floor: an HTTP server that group-commits one row a body
    Creates(creates::Arguments),
    /// Readings published to Mosquitto, made durable and recorded, while the gateway is killed if asked for; none may be lost or taken twice
    Mqtt(mqtt::Arguments),
    /// MLLP to PostgreSQL to RabbitMQ to a webhook: rate, latencies, cost; nothing may be lost
    EndToEnd(end_to_end::Arguments),
    /// Ten full-resource rest-hooks told of each message, alone and beside thousands of idle ones; floor: the same ten alone
    Subscriptions(subscriptions::Arguments),
    /// Memory at rest, under load and after hostile input
    Memory,
    /// From start to ready on the embedded default
    Start,
    /// All of them, the timed ones for some seconds each
    All,
}

/// The kinds of message that the figures are about.
#[derive(Clone, Copy, ValueEnum)]
enum Sort {
    /// ADT^A01, some 1 KB.
    Admit,
    /// ORU^R01, 3.5 KB, 20 OBX.
    Result,
}

impl Sort {
    fn kind(self) -> Kind {
        match self {
            Sort::Admit => Kind::Admit,
            Sort::Result => Kind::Result,
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Parse => micro::parse(),
        What::Map => micro::map()?,
        What::Ack(arguments) => ack::run(&arguments).await?,
        What::Creates(arguments) => creates::run(&arguments).await?,
        What::Mqtt(arguments) => mqtt::run(&arguments).await?,
        What::EndToEnd(arguments) => end_to_end::run(&arguments).await?,
        What::Subscriptions(arguments) => subscriptions::run(&arguments).await?,
        What::Memory => start::memory().await?,
        What::Start => start::start().await?,
        What::All => {
            micro::parse();
            micro::map()?;
            start::start().await?;
            start::memory().await?;
            ack::run(&ack::Arguments::default()).await?;
            for sort in [Sort::Admit, Sort::Result] {
                end_to_end::run(&end_to_end::Arguments::of(sort)).await?;
            }
        }
    }
    Ok(())
}
