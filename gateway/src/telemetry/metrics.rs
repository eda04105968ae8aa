//! The instruments of one gateway: defined once, read at `/metrics` in Prometheus' text and pushed by OTLP.
//!
//! Invariants: on the path a count is an atomic addition, what takes longer is done when somebody reads; a label's value
//! comes from the configuration or from this file, never from a message.

use super::otlp;
use crate::bus::{Bus, Health};
use crate::deliver::{Counters, Deliverers};
use crate::store::Books;
use adapters::Verdict;
use opentelemetry::KeyValue;
use opentelemetry::metrics::noop::NoopMeterProvider;
use opentelemetry::metrics::{Counter, Histogram, Meter, MeterProvider};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use prometheus::{Registry, TextEncoder};
use schemas::issue::Issue;
use schemas::message::MessageId;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the metrics go out by OTLP.
const PUSHED_EVERY: Duration = Duration::from_secs(15);
/// Upper bounds, in seconds, for what waits for a disk or a network.
const WAITS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0];
/// Upper bounds, in seconds, for what only computes.
const COMPUTES: [f64; 11] =
    [0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.1, 1.0];
/// Upper bounds for the messages of a batch.
const BATCHES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
/// How many codes of issues are told apart; the rest is `other`.
const CODES_MAX: usize = 200;
/// The label of whatever the configuration does not name.
const OTHER: &str = "other";

/// What becomes of a message at intake, in the order in which it is counted.
const INTAKE: [&str; 5] = ["stored", "repeat", "rejected", "unavailable", "unreadable"];
/// What becomes of a message when it is normalized.
const NORMALIZED: [&str; 2] = ["normalized", "quarantined"];

/// One counter of a deliverer: its name, what it tells, and where it is.
type Row = (&'static str, &'static str, fn(&Counters) -> &AtomicU64);

const DELIVER_COUNTERS: &[Row] = &[
    ("pons_deliver_published_total", "deliveries confirmed by the bus", |c| &c.published),
    ("pons_deliver_unpublished_total", "deliveries the bus did not take, so published again", |c| {
        &c.unpublished
    }),
    ("pons_deliver_attempts_total", "attempts begun", |c| &c.attempts),
    ("pons_deliver_delivered_total", "deliveries taken by the destination", |c| &c.delivered),
    ("pons_deliver_retried_total", "attempts that failed and will be repeated", |c| &c.retried),
    ("pons_deliver_parked_total", "dead letters", |c| &c.parked),
    ("pons_deliver_suppressed_total", "deliveries withheld by policy at the last moment", |c| &c.suppressed),
    ("pons_deliver_circuits_opened_total", "how often the destination was given up for a while", |c| {
        &c.circuits_opened
    }),
];

const DELIVER_GAUGES: &[Row] = &[
    ("pons_deliver_circuit_open", "1 while the destination is left alone", |c| &c.circuit_open),
    ("pons_deliver_window", "deliveries in memory", |c| &c.in_window),
    ("pons_deliver_in_flight", "attempts under way", |c| &c.in_flight),
    ("pons_deliver_leading", "1 while this replica delivers the subscription", |c| &c.leading),
];

/// One gauge over the books of a sender: its name, what it tells, and how it is read.
type Book = (&'static str, &'static str, fn(&Books) -> i64);

const BOOKS: &[Book] = &[
    ("pons_store_messages_received", "messages in the store", |b| b.received),
    ("pons_store_messages_final", "messages routed, every delivery of theirs at its end", |b| b.routed_final),
    ("pons_store_messages_open", "messages that still need somebody", Books::open),
    ("pons_store_messages_quarantined", "messages that wait in quarantine", |b| b.quarantined),
    ("pons_store_messages_rejected", "messages whose sender was told to keep them", |b| b.rejected),
    (
        "pons_store_messages_unaccounted",
        "messages in no state at all; anything but 0 is a defect",
        Books::unaccounted,
    ),
];

/// The instruments of one gateway.
pub struct Metrics {
    counts: Arc<Counts>,
    meter: Meter,
    provider: SdkMeterProvider,
    registry: Registry,
    batch_messages: Histogram<u64>,
    commit_seconds: Histogram<f64>,
    map_seconds: Histogram<f64>,
    record_seconds: Histogram<f64>,
    attempt_seconds: Histogram<f64>,
    latency_seconds: Histogram<f64>,
    gave_way_seconds: Counter<f64>,
    mappings_read: Counter<u64>,
    issues: Counter<u64>,
    codes: Mutex<HashSet<String>>,
}

/// What is counted on the path itself.
struct Counts {
    /// By source; the last is [`OTHER`].
    ingested: Vec<(Arc<str>, [AtomicU64; INTAKE.len()])>,
    normalized: [AtomicU64; NORMALIZED.len()],
    room_bytes: AtomicU64,
    /// Sources that fetch, and whether they reach the other side.
    reaching: Mutex<BTreeMap<Arc<str>, bool>>,
    /// As they were read last, senders that nobody configured taken together.
    books: Mutex<Vec<Books>>,
    senders: HashSet<Arc<str>>,
}

impl Metrics {
    /// The instruments for these sources and senders, as the configuration names them. With `otlp`, the address of a
    /// collector, they are pushed too; then this must be called within a runtime.
    ///
    /// # Errors
    /// When the address is none.
    pub fn new(
        sources: impl IntoIterator<Item = Arc<str>>,
        senders: impl IntoIterator<Item = Arc<str>>,
        otlp: Option<&str>,
    ) -> Result<Self, super::TelemetryError> {
        let registry = Registry::new();
        let text = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_units()
            .without_counter_suffixes()
            .without_target_info()
            .scope_info_enabled(false)
            .build()?;
        let mut builder = SdkMeterProvider::builder().with_resource(resource()).with_reader(text);
        if let Some(url) = otlp {
            let exporter = otlp::metrics(url)?;
            builder =
                builder.with_reader(PeriodicReader::builder(exporter).with_interval(PUSHED_EVERY).build());
        }
        let provider = builder.build();
        let meter = provider.meter("pons");
        let names = sources.into_iter().chain([Arc::from("http"), Arc::from(OTHER)]);
        let counts = Arc::new(Counts {
            ingested: names.map(|name| (name, Default::default())).collect(),
            normalized: Default::default(),
            room_bytes: AtomicU64::new(0),
            reaching: Mutex::default(),
            books: Mutex::default(),
            senders: senders.into_iter().chain([crate::ingest::UNKNOWN.into(), "local".into()]).collect(),
        });
        observe(&meter, &counts);
        let seconds = |name: &'static str, help: &'static str, bounds: &[f64]| {
            let builder = meter.f64_histogram(name).with_unit("s").with_description(help);
            builder.with_boundaries(bounds.to_vec()).build()
        };
        let batch_messages = meter
            .u64_histogram("pons_ingest_batch_messages")
            .with_description("messages made durable in one transaction")
            .with_boundaries(BATCHES.to_vec())
            .build();
        let issues = meter
            .u64_counter("pons_normalize_issues_total")
            .with_description("findings about messages, by their code")
            .build();
        let gave_way_seconds = meter
            .f64_counter("pons_normalize_gave_way_seconds_total")
            .with_description("how long normalizing waited so that intake could take in a burst")
            .build();
        let mappings_read = meter
            .u64_counter("pons_mappings_read_total")
            .with_description(
                "changes of the mappings while running, by whether they are used or were refused",
            )
            .build();
        let waits = |name, help| seconds(name, help, &WAITS);
        Ok(Metrics {
            batch_messages,
            commit_seconds: waits("pons_ingest_commit_seconds", "how long making a batch durable took"),
            map_seconds: seconds(
                "pons_normalize_map_seconds",
                "how long mapping one message took",
                &COMPUTES,
            ),
            record_seconds: waits("pons_normalize_record_seconds", "how long recording a batch took"),
            attempt_seconds: waits("pons_deliver_attempt_seconds", "how long one attempt to deliver took"),
            latency_seconds: waits("pons_deliver_latency_seconds", "from receipt to delivery"),
            gave_way_seconds,
            mappings_read,
            issues,
            codes: Mutex::default(),
            counts,
            provider,
            registry,
            meter: meter.clone(),
        })
    }

    /// Counts what became of a message at intake.
    pub fn ingested(&self, source: &str, verdict: &Verdict) {
        let outcome = match verdict {
            Verdict::Stored(stored) if !stored.repeat => 0,
            Verdict::Stored(_) => 1,
            Verdict::Rejected(_) => 2,
            Verdict::Unavailable { .. } => 3,
            Verdict::Unreadable { .. } => 4,
        };
        self.count_intake(source, outcome);
    }

    /// Counts a message that was refused and kept.
    pub fn refused(&self, source: &str) {
        self.count_intake(source, 2);
    }

    /// A source that fetches has reached the other side, or does not any more.
    pub fn source_reaches(&self, source: &str, is_reached: bool) {
        let mut reaching = self.counts.reaching.lock().unwrap_or_else(PoisonError::into_inner);
        reaching.insert(source.into(), is_reached);
    }

    fn count_intake(&self, source: &str, outcome: usize) {
        let known = self.counts.ingested.iter().find(|(name, _)| **name == *source);
        if let Some((_, counts)) = known.or(self.counts.ingested.last()) {
            counts[outcome].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A batch of messages is durable.
    pub fn committed(&self, messages: usize, took: Duration) {
        self.batch_messages.record(messages as u64, &[]);
        self.commit_seconds.record(took.as_secs_f64(), &[]);
    }

    /// One message is mapped.
    pub fn mapped(&self, took: Duration) {
        self.map_seconds.record(took.as_secs_f64(), &[]);
    }

    /// A batch of messages is recorded; `quarantined` of them went into quarantine.
    pub fn recorded(&self, messages: usize, quarantined: usize, took: Duration) {
        self.record_seconds.record(took.as_secs_f64(), &[]);
        for (count, add) in self.counts.normalized.iter().zip([messages - quarantined, quarantined]) {
            count.fetch_add(add as u64, Ordering::Relaxed);
        }
    }

    /// Normalizing gave way to intake.
    pub fn gave_way(&self, time: Duration) {
        self.gave_way_seconds.add(time.as_secs_f64(), &[]);
    }

    /// The mappings changed while running: they are used now, or were refused.
    pub fn mappings_read(&self, used: bool) {
        let result = if used { "used" } else { "refused" };
        self.mappings_read.add(1, &[KeyValue::new("result", result)]);
    }

    /// What a batch of messages gave rise to say.
    pub fn issues<'a>(&self, issues: impl Iterator<Item = &'a Issue>) {
        let mut by_code: BTreeMap<&str, u64> = BTreeMap::new();
        for issue in issues {
            *by_code.entry(&issue.code).or_default() += 1;
        }
        let mut known = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        for (code, count) in by_code {
            if !known.contains(code) && known.len() < CODES_MAX && is_word(code) {
                known.insert(code.to_owned());
            }
            let label = if known.contains(code) { code } else { OTHER };
            self.issues.add(count, &[KeyValue::new("code", label.to_owned())]);
        }
    }

    /// What times a subscription's deliveries.
    pub fn timings(&self, subscription: &Arc<str>) -> DeliverTimings {
        DeliverTimings {
            attempt: self.attempt_seconds.clone(),
            latency: self.latency_seconds.clone(),
            labels: [KeyValue::new("subscription", Arc::clone(subscription))],
        }
    }

    /// The books as they were just read.
    pub fn books(&self, books: &[Books]) {
        let mut by_label: BTreeMap<&str, Books> = BTreeMap::new();
        for one in books {
            let label = if self.counts.senders.contains(&*one.sender) { &*one.sender } else { OTHER };
            let sum = by_label.entry(label).or_insert_with(|| Books {
                sender: label.to_owned(),
                received: 0,
                routed_final: 0,
                routed_open: 0,
                quarantined: 0,
                rejected: 0,
                waiting: 0,
            });
            sum.received += one.received;
            sum.routed_final += one.routed_final;
            sum.routed_open += one.routed_open;
            sum.quarantined += one.quarantined;
            sum.rejected += one.rejected;
            sum.waiting += one.waiting;
        }
        let books = by_label.into_values().collect();
        *self.counts.books.lock().unwrap_or_else(PoisonError::into_inner) = books;
    }

    /// How many bytes are free under the store; only told where the store is on this machine.
    pub fn room(&self, bytes: u64) {
        self.counts.room_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Shows what the deliverers count, each under its subscription.
    pub fn watch_deliverers(&self, deliverers: &Arc<Deliverers>) {
        for (name, help, counter) in DELIVER_COUNTERS {
            let deliverers = Arc::downgrade(deliverers);
            let builder = self.meter.u64_observable_counter(*name).with_description(*help);
            builder
                .with_callback(move |to| observe_each(&deliverers, *counter, |n, l| to.observe(n, l)))
                .build();
        }
        for (name, help, counter) in DELIVER_GAUGES {
            let deliverers = Arc::downgrade(deliverers);
            let builder = self.meter.u64_observable_gauge(*name).with_description(*help);
            builder
                .with_callback(move |to| observe_each(&deliverers, *counter, |n, l| to.observe(n, l)))
                .build();
        }
    }

    /// Shows how the bus stands.
    pub fn watch_bus(&self, bus: &Arc<dyn Bus>) {
        let gauge = |name: &'static str, help: &'static str, is: fn(Health) -> bool| {
            let bus = bus.clone();
            let builder = self.meter.u64_observable_gauge(name).with_description(help);
            builder.with_callback(move |to| to.observe(u64::from(is(bus.health())), &[])).build();
        };
        gauge("pons_bus_connected", "1 while the broker is connected", |health| health != Health::Away);
        gauge("pons_bus_blocked", "1 while the broker stops publishers", |health| health == Health::Blocked);
    }

    /// Everything, in the text format of Prometheus.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "the metrics could not be written as text");
        }
        text
    }

    /// Pushes what is left to push. Blocks, so not for a thread of the runtime.
    pub fn stop(&self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "the last metrics did not go out");
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Times the deliveries of one subscription.
#[derive(Clone, Debug)]
pub struct DeliverTimings {
    attempt: Histogram<f64>,
    latency: Histogram<f64>,
    labels: [KeyValue; 1],
}

impl DeliverTimings {
    /// An attempt has ended.
    pub fn attempted(&self, took: Duration) {
        self.attempt.record(took.as_secs_f64(), &self.labels);
    }

    /// A message has reached its destination. Its id knows when it was received.
    pub fn delivered(&self, message: MessageId) {
        let Some(received) = message.0.get_timestamp() else { return };
        let (seconds, nanos) = received.to_unix();
        let latency = SystemTime::now().duration_since(UNIX_EPOCH + Duration::new(seconds, nanos));
        self.latency.record(latency.unwrap_or_default().as_secs_f64(), &self.labels);
    }
}

impl Default for DeliverTimings {
    /// Times nothing.
    fn default() -> Self {
        let off = NoopMeterProvider::new().meter("off");
        DeliverTimings {
            attempt: off.f64_histogram("off").build(),
            latency: off.f64_histogram("off").build(),
            labels: [KeyValue::new("subscription", OTHER)],
        }
    }
}

/// Who tells, for every signal.
pub(super) fn resource() -> Resource {
    Resource::builder()
        .with_service_name("pons")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}

/// Whether a code is a word in kebab case, as every code of ours is.
fn is_word(code: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !code.is_empty() && code.len() <= 48 && code.bytes().all(plain)
}

fn observe_each(
    deliverers: &Weak<Deliverers>,
    counter: fn(&Counters) -> &AtomicU64,
    mut observe: impl FnMut(u64, &[KeyValue]),
) {
    for (name, counters) in deliverers.upgrade().map(|all| all.counters()).unwrap_or_default() {
        observe(counter(&counters).load(Ordering::Relaxed), &[KeyValue::new("subscription", name)]);
    }
}

/// Shows what is counted on the path and in the store.
fn observe(meter: &Meter, counts: &Arc<Counts>) {
    let shown = counts.clone();
    meter
        .u64_observable_counter("pons_ingest_messages_total")
        .with_description("messages by source and by what became of them")
        .with_callback(move |to| {
            for (source, counts) in &shown.ingested {
                for (outcome, count) in INTAKE.iter().zip(counts) {
                    let labels =
                        [KeyValue::new("source", Arc::clone(source)), KeyValue::new("outcome", *outcome)];
                    to.observe(count.load(Ordering::Relaxed), &labels);
                }
            }
        })
        .build();
    let shown = counts.clone();
    meter
        .u64_observable_counter("pons_normalize_messages_total")
        .with_description("messages by what normalizing made of them")
        .with_callback(move |to| {
            for (outcome, count) in NORMALIZED.iter().zip(&shown.normalized) {
                to.observe(count.load(Ordering::Relaxed), &[KeyValue::new("outcome", *outcome)]);
            }
        })
        .build();
    let shown = counts.clone();
    meter
        .u64_observable_gauge("pons_store_room_bytes")
        .with_description("bytes free under the store, where it is on this machine")
        .with_callback(move |to| match shown.room_bytes.load(Ordering::Relaxed) {
            0 => {}
            bytes => to.observe(bytes, &[]),
        })
        .build();
    let shown = counts.clone();
    meter
        .u64_observable_gauge("pons_ingest_source_connected")
        .with_description("1 while this replica reaches what the source fetches from")
        .with_callback(move |to| {
            for (source, reaches) in shown.reaching.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                to.observe(u64::from(*reaches), &[KeyValue::new("source", Arc::clone(source))]);
            }
        })
        .build();
    for (name, help, read) in BOOKS {
        let shown = counts.clone();
        meter
            .i64_observable_gauge(*name)
            .with_description(*help)
            .with_callback(move |to| {
                for one in shown.books.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                    to.observe(read(one), &[KeyValue::new("sender", one.sender.clone())]);
                }
            })
            .build();
    }
    for (signal, queue) in otlp::QUEUES {
        meter
            .u64_observable_counter(format!("pons_telemetry_dropped_{signal}_total"))
            .with_description("what was left out because the collector was away or slow")
            .with_callback(move |to| to.observe(queue.dropped(), &[]))
            .build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adapters::Stored;
    use schemas::issue::Severity;
    use uuid::Uuid;

    fn metrics() -> Metrics {
        Metrics::new(["lab".into()], ["HOSP".into()], None).expect("no address is needed")
    }

    fn check(metrics: &Metrics, line: &str) {
        let text = metrics.text();
        assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
    }

    #[test]
    fn counts_are_shown_by_source_and_outcome() {
        let metrics = metrics();
        let stored = |repeat| {
            Verdict::Stored(Stored {
                message: MessageId(Uuid::nil()),
                received_at: jiff::Timestamp::UNIX_EPOCH,
                repeat,
            })
        };
        metrics.ingested("lab", &stored(false));
        metrics.ingested("lab", &stored(false));
        metrics.ingested("lab", &stored(true));
        metrics.ingested("TEST^JANE", &Verdict::Unreadable { reason: String::new() });
        metrics.refused("http");
        metrics.committed(3, Duration::from_millis(4));
        metrics.recorded(3, 1, Duration::from_millis(40));
        check(&metrics, r#"pons_ingest_messages_total{outcome="stored",source="lab"} 2"#);
        check(&metrics, r#"pons_ingest_messages_total{outcome="repeat",source="lab"} 1"#);
        check(&metrics, r#"pons_ingest_messages_total{outcome="unreadable",source="other"} 1"#);
        check(&metrics, r#"pons_ingest_messages_total{outcome="rejected",source="http"} 1"#);
        check(&metrics, r#"pons_ingest_commit_seconds_bucket{le="0.0025"} 0"#);
        check(&metrics, r#"pons_ingest_commit_seconds_bucket{le="0.005"} 1"#);
        check(&metrics, "pons_ingest_batch_messages_sum 3");
        check(&metrics, r#"pons_normalize_messages_total{outcome="quarantined"} 1"#);
        check(&metrics, r#"pons_normalize_messages_total{outcome="normalized"} 2"#);
        assert!(!metrics.text().contains("JANE"));
    }

    #[test]
    fn a_code_that_is_no_word_and_codes_without_end_are_other() {
        let metrics = metrics();
        let issue = |code: &str| Issue::new(Severity::Warning, code, "", "");
        metrics.issues([issue("TEST^JANE"), issue("unmapped-field"), issue("unmapped-field")].iter());
        for number in 0..2 * CODES_MAX {
            metrics.issues([issue(&format!("code-{number}"))].iter());
        }
        check(&metrics, r#"pons_normalize_issues_total{code="unmapped-field"} 2"#);
        let text = metrics.text();
        assert!(!text.contains("JANE"));
        let series = text.lines().filter(|line| line.starts_with("pons_normalize_issues_total{")).count();
        assert_eq!(series, CODES_MAX + 1);
    }

    #[test]
    fn senders_that_nobody_configured_share_a_label() {
        let metrics = metrics();
        let of = |sender: &str, received| Books {
            sender: sender.to_owned(),
            received,
            routed_final: received - 1,
            routed_open: 0,
            quarantined: 0,
            rejected: 0,
            waiting: 1,
        };
        metrics.books(&[of("HOSP", 5), of("TEST@JANE", 3), of("TEST@JOHN", 4)]);
        check(&metrics, r#"pons_store_messages_received{sender="HOSP"} 5"#);
        check(&metrics, r#"pons_store_messages_received{sender="other"} 7"#);
        check(&metrics, r#"pons_store_messages_open{sender="other"} 2"#);
        check(&metrics, r#"pons_store_messages_unaccounted{sender="HOSP"} 0"#);
        assert!(!metrics.text().contains("JANE"));
    }
}
