//! To a collector by OTLP over HTTP, in protobuf, over the one HTTP and TLS stack.
//!
//! Invariant: a collector that is away or slow costs memory up to a bound and what it would have been told, which is
//! counted; it never makes anybody wait.

use super::{TelemetryError, metrics};
use crate::http::Server;
use async_trait::async_trait;
use bytes::Bytes;
use hyper::{Request, Response, Uri};
use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{LogExporter, MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{BatchLogProcessor, LogBatch, LogProcessor, SdkLogRecord, SdkLoggerProvider};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanProcessor};
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;

/// How long one push may take, from the connection to the answer.
const PUSH_MAX: Duration = Duration::from_secs(5);
/// How many spans, and how many log records, wait for the collector at most; beyond, they are left out and counted.
const WAITING_MAX: usize = 16 << 10;
/// How many go out in one push.
const PUSHED_AT_ONCE: usize = 2048;
/// How long they gather.
const GATHERED_FOR: Duration = Duration::from_secs(1);

/// What waits for the collector, and how much was left out.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: AtomicUsize,
    dropped: AtomicU64,
}

static SPANS: Queue = Queue { waiting: AtomicUsize::new(0), dropped: AtomicU64::new(0) };
static RECORDS: Queue = Queue { waiting: AtomicUsize::new(0), dropped: AtomicU64::new(0) };
/// The queues of the process by what they hold.
pub(super) static QUEUES: [(&str, &Queue); 2] = [("spans", &SPANS), ("logs", &RECORDS)];

impl Queue {
    /// How many were left out.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Whether there is room for one more, which is then taken.
    fn enter(&self) -> bool {
        let room = self.waiting.fetch_add(1, Ordering::Relaxed) < WAITING_MAX;
        if !room {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        room
    }

    /// So many have gone out, or were left out because they could not.
    fn left(&self, count: usize, taken: bool) {
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        if !taken {
            self.dropped.fetch_add(count as u64, Ordering::Relaxed);
        }
    }
}

/// Pushes metrics. They are sums since the start, so one push that fails loses nothing.
pub(super) fn metrics(url: &str) -> Result<MetricExporter, TelemetryError> {
    let client: Arc<dyn HttpClient> = Arc::new(Client::new(url)?);
    let exporter = MetricExporter::builder().with_http().with_shared_http_client(client);
    Ok(exporter.with_endpoint(endpoint(url, "metrics")).with_timeout(PUSH_MAX).build()?)
}

/// Pushes spans and log records.
pub(super) fn traces_and_logs(url: &str) -> Result<(SdkTracerProvider, SdkLoggerProvider), TelemetryError> {
    let client: Arc<dyn HttpClient> = Arc::new(Client::new(url)?);
    let spans = SpanExporter::builder().with_http().with_shared_http_client(client.clone());
    let spans = spans.with_endpoint(endpoint(url, "traces")).with_timeout(PUSH_MAX).build()?;
    let gathered = opentelemetry_sdk::trace::BatchConfigBuilder::default()
        .with_max_queue_size(2 * WAITING_MAX)
        .with_max_export_batch_size(PUSHED_AT_ONCE)
        .with_scheduled_delay(GATHERED_FOR)
        .build();
    let spans = BatchSpanProcessor::builder(Counted(spans)).with_batch_config(gathered).build();
    let tracer = SdkTracerProvider::builder()
        .with_resource(metrics::resource())
        .with_span_processor(Bounded(spans))
        .build();

    let records = LogExporter::builder().with_http().with_shared_http_client(client);
    let records = records.with_endpoint(endpoint(url, "logs")).with_timeout(PUSH_MAX).build()?;
    let gathered = opentelemetry_sdk::logs::BatchConfigBuilder::default()
        .with_max_queue_size(2 * WAITING_MAX)
        .with_max_export_batch_size(PUSHED_AT_ONCE)
        .with_scheduled_delay(GATHERED_FOR)
        .build();
    let records = BatchLogProcessor::builder(Counted(records)).with_batch_config(gathered).build();
    let logger = SdkLoggerProvider::builder()
        .with_resource(metrics::resource())
        .with_log_processor(Bounded(records))
        .build();
    Ok((tracer, logger))
}

fn endpoint(url: &str, signal: &str) -> String {
    format!("{}/v1/{signal}", url.trim_end_matches('/'))
}

/// A processor that takes no more than its queue may hold.
#[derive(Debug)]
struct Bounded<P>(P);

/// An exporter that tells its queue what has gone out.
#[derive(Debug)]
struct Counted<E>(E);

impl SpanProcessor for Bounded<BatchSpanProcessor> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.0.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if SPANS.enter() {
            self.0.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

impl opentelemetry_sdk::trace::SpanExporter for Counted<SpanExporter> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let result = self.0.export(batch).await;
        SPANS.left(count, result.is_ok());
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

impl LogProcessor for Bounded<BatchLogProcessor> {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if RECORDS.enter() {
            self.0.emit(record, scope);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

impl opentelemetry_sdk::logs::LogExporter for Counted<LogExporter> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let count = batch.iter().count();
        let result = self.0.export(batch).await;
        RECORDS.left(count, result.is_ok());
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

/// Speaks HTTP with the collector: a connection for each push, as there is one in a second or less.
///
/// The exporters have threads of their own, so what it does is done by the runtime in which it was made.
#[derive(Debug)]
struct Client {
    runtime: Handle,
    server: Server,
    /// Whether the last push failed, so that it is said once.
    away: AtomicBool,
}

impl Client {
    fn new(url: &str) -> Result<Self, TelemetryError> {
        let wrong = |why: &str| TelemetryError(format!("otlp: {url}: {why}"));
        let uri: Uri = url.parse().map_err(|_| wrong("not an address"))?;
        let server = Server::of(&uri).map_err(|why| wrong(&why))?;
        let runtime = Handle::try_current().map_err(|error| wrong(&error.to_string()))?;
        Ok(Client { runtime, server, away: AtomicBool::new(false) })
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let server = self.server.clone();
        let pushed = self.runtime.spawn(async move { server.ask(request, PUSH_MAX).await });
        let pushed = pushed.await.unwrap_or_else(|error| Err(error.into()));
        let away = !pushed.as_ref().is_ok_and(|answer| answer.status().is_success());
        if self.away.swap(away, Ordering::Relaxed) != away {
            match &pushed {
                Ok(answer) if away => {
                    tracing::warn!(
                        status = answer.status().as_u16(),
                        "the OTLP collector refuses what it is sent"
                    );
                }
                Ok(_) => tracing::info!("the OTLP collector is back"),
                Err(error) => {
                    let error = crate::chain(&**error);
                    tracing::warn!(%error, "the OTLP collector is away; what it misses is counted");
                }
            }
        }
        pushed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_takes_what_it_holds_and_counts_the_rest() {
        let queue = Queue { waiting: AtomicUsize::new(0), dropped: AtomicU64::new(0) };
        let entered = (0..WAITING_MAX + 3).filter(|_| queue.enter()).count();
        assert_eq!((entered, queue.dropped()), (WAITING_MAX, 3));
        queue.left(10, true);
        assert!(queue.enter());
        queue.left(5, false);
        assert_eq!(queue.dropped(), 8);
    }

    #[test]
    fn an_address_may_end_in_a_slash() {
        assert_eq!(endpoint("http://c:4318", "logs"), "http://c:4318/v1/logs");
        assert_eq!(endpoint("http://c:4318/", "logs"), "http://c:4318/v1/logs");
    }
}
