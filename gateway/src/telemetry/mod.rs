//! How the gateway is seen from outside: log lines, metrics, traces, health.

pub mod health;
pub mod metrics;
mod otlp;
pub mod trace;

use crate::bus::LOG_FILTER;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Telemetry at work; stop it last, so that nothing is left unsaid.
#[derive(Debug)]
pub struct Telemetry {
    otlp: Option<(SdkTracerProvider, SdkLoggerProvider)>,
}

/// Why telemetry did not start.
#[derive(Debug, thiserror::Error)]
#[error("telemetry: {0}")]
pub struct TelemetryError(String);

impl From<OTelSdkError> for TelemetryError {
    fn from(error: OTelSdkError) -> Self {
        TelemetryError(error.to_string())
    }
}

impl From<ExporterBuildError> for TelemetryError {
    fn from(error: ExporterBuildError) -> Self {
        TelemetryError(error.to_string())
    }
}

/// Starts logging to standard error, and with `otlp`, the address of a collector, pushing log records and spans to it.
/// `RUST_LOG` chooses what is told, `info` without it. With `otlp` it must be called within a runtime. A panic is told by its place
/// from then on.
///
/// # Errors
/// When `RUST_LOG` or the address cannot be read, or logging runs already.
pub fn start(json: bool, otlp: Option<&str>) -> Result<Telemetry, TelemetryError> {
    let otlp = otlp.map(otlp::traces_and_logs).transpose()?;
    let wanted = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    // What the exporters have to say is said by us, once and in our words.
    let filter = EnvFilter::try_new(format!("opentelemetry=off,{wanted},{LOG_FILTER}"))
        .map_err(|error| TelemetryError(format!("RUST_LOG: {error}")))?;
    let records = otlp.as_ref().map(|(_, logger)| {
        // Pushing must not give rise to more to push.
        let others = |metadata: &tracing::Metadata<'_>| {
            !["opentelemetry", "hyper"].iter().any(|ours| metadata.target().starts_with(ours))
        };
        OpenTelemetryTracingBridge::new(logger).with_filter(filter_fn(others))
    });
    let registry = tracing_subscriber::registry().with(filter).with(records);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let started = if json { registry.with(lines.json()).try_init() } else { registry.with(lines).try_init() };
    started.map_err(|error| TelemetryError(error.to_string()))?;
    if let Some((tracer, _)) = &otlp {
        trace::begin_tracing(tracer);
    }
    std::panic::set_hook(Box::new(tell_panic));
    Ok(Telemetry { otlp })
}

/// Tells where a panic was, and with `RUST_BACKTRACE` by which way; not its message, which may hold what it stumbled over: a
/// text that is cut in the middle of a letter is in it.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    let way = Backtrace::capture();
    let way = (way.status() == BacktraceStatus::Captured).then(|| way.to_string());
    tracing::error!(at, way, "a part of the gateway broke off: a defect of Pons");
}

impl Telemetry {
    /// Pushes what is left to push, for some seconds at most.
    pub async fn stop(self) {
        let Some((tracer, logger)) = self.otlp else { return };
        // It waits for the collector, so not on a thread that others need.
        let stopped = tokio::task::spawn_blocking(move || (tracer.shutdown(), logger.shutdown()));
        if let Ok((Err(error), _) | (_, Err(error))) = stopped.await {
            tracing::warn!(%error, "the last spans or log records did not go out");
        }
    }
}
