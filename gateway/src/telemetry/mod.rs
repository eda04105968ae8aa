//! How the gateway is seen from outside: log lines, metrics, health.

use crate::bus::{Bus, LOG_FILTER};
use crate::deliver::Counters;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Telemetry at work; stop it last, so that nothing is left unsaid.
#[derive(Debug)]
pub struct Telemetry {}

/// Why telemetry did not start.
#[derive(Debug, thiserror::Error)]
#[error("telemetry: {0}")]
pub struct TelemetryError(String);

/// Starts logging to standard error. `RUST_LOG` chooses what is told, `info` without it.
///
/// # Errors
/// When `RUST_LOG` cannot be read, or logging runs already.
pub fn start(json: bool, _otlp: Option<&str>) -> Result<Telemetry, TelemetryError> {
    let wanted = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(format!("{wanted},{LOG_FILTER}"))
        .map_err(|error| TelemetryError(format!("RUST_LOG: {error}")))?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let started = if json { registry.with(lines.json()).try_init() } else { registry.with(lines).try_init() };
    started.map_err(|error| TelemetryError(error.to_string()))?;
    Ok(Telemetry {})
}

impl Telemetry {
    /// Says what is left to say.
    pub fn stop(self) {}
}

/// Why the gateway is not ready, if it is not.
///
/// # Errors
/// The reason, in a few words. A broker that is away is no reason: messages are taken and wait.
pub fn ready(room: &AtomicBool, _bus: &dyn Bus) -> Result<(), String> {
    if room.load(Ordering::Relaxed) { Ok(()) } else { Err("the disk reserve is reached".to_owned()) }
}

/// One counter of a deliverer: its name, what it tells, and where it is.
type Row = (&'static str, &'static str, &'static str, fn(&Counters) -> &AtomicU64);

const ROWS: &[Row] = &[
    ("pons_deliver_published_total", "counter", "confirmed by the bus", |c| &c.published),
    ("pons_deliver_attempts_total", "counter", "attempts begun", |c| &c.attempts),
    ("pons_deliver_delivered_total", "counter", "taken by the destination", |c| &c.delivered),
    ("pons_deliver_retried_total", "counter", "attempts that failed and will be repeated", |c| &c.retried),
    ("pons_deliver_parked_total", "counter", "dead letters", |c| &c.parked),
    ("pons_deliver_suppressed_total", "counter", "withheld by policy", |c| &c.suppressed),
    ("pons_deliver_circuit_open", "gauge", "whether the destination is left alone for a while", |c| {
        &c.circuit_open
    }),
    ("pons_deliver_window", "gauge", "deliveries in memory", |c| &c.in_window),
    ("pons_deliver_in_flight", "gauge", "attempts under way", |c| &c.in_flight),
    ("pons_deliver_leading", "gauge", "whether this replica delivers the subscription", |c| &c.leading),
];

/// The metrics in the text format of Prometheus.
pub fn metrics(deliverers: &[(Arc<str>, Arc<Counters>)]) -> String {
    let mut text = String::new();
    for (name, kind, help, counter) in ROWS {
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        for (subscription, counters) in deliverers {
            let value = counter(counters).load(Ordering::Relaxed);
            text.push_str(&format!("{name}{{subscription=\"{subscription}\"}} {value}\n"));
        }
    }
    text
}
