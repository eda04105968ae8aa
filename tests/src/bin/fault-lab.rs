//! The long fault run as a command: `cargo run --release -p tests --bin fault-lab -- --kills 100 --messages 100000`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for people")]

use anyhow::Result;
use clap::Parser;
use std::process::ExitCode;
use std::time::Duration;
use tests::lab::{self, Plan};

/// Kills the gateway, PostgreSQL and RabbitMQ under load and checks that nothing was lost.
///
/// Starts everything that it needs and leaves nothing running. Exit 0: nothing lost, out of order, duplicated without its
/// id, or unaccounted for; 1: something was.
#[derive(Parser)]
struct Arguments {
    /// SIGKILLs: seven in ten at a gateway, the others at the database and the broker alike
    #[arg(long, default_value_t = 100)]
    kills: u32,
    /// How often the broker's data are thrown away
    #[arg(long, default_value_t = 1)]
    wipes: u32,
    /// At least so many messages; sending goes on until the kills are done
    #[arg(long, default_value_t = 20_000)]
    messages: u64,
    /// Messages a second at most, so that every station is at work when it is killed; 0 sends as fast as it is answered, which mostly
    /// builds a backlog
    #[arg(long, default_value_t = 1_500.0)]
    rate: f64,
    /// Patients
    #[arg(long, default_value_t = 1_000)]
    patients: u32,
    /// Connections of the sender
    #[arg(long, default_value_t = 32)]
    connections: u32,
    /// Gateways that share the database and the broker
    #[arg(long, default_value_t = 1)]
    replicas: u32,
    /// Subscribers that ask for their subscriptions over /fhir, over every channel in turn
    #[arg(long, default_value_t = 0)]
    requested: u32,
    /// Spoil the sender's connections too: cut, reset, slow, sliced, swallowed
    #[arg(long)]
    network: bool,
    /// The mean pause between two faults, in milliseconds
    #[arg(long, default_value_t = 800)]
    pause: u64,
    /// Decides messages, moments and targets
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let plan = Plan {
        seed: arguments.seed,
        kills: arguments.kills,
        wipes: arguments.wipes,
        messages: arguments.messages,
        rate: (arguments.rate > 0.0).then_some(arguments.rate),
        patients: arguments.patients,
        connections: arguments.connections.min(arguments.patients),
        replicas: arguments.replicas,
        requested: arguments.requested,
        network: arguments.network,
        pause: Duration::from_millis(arguments.pause),
    };
    let report = lab::run(&plan, &|line| eprintln!("{line}")).await?;
    println!("{report}");
    Ok(if report.good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
