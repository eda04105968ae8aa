//! What goes on beside the path: carrying out what a person asked for, letting old days go, watching the room on the disk,
//! and checking the books.

use crate::store::{Retention, Store};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use schemas::message::Seq;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often requests of a person are looked for, and how many are carried out at once.
const REQUESTS_EVERY: Duration = Duration::from_millis(500);
const REQUESTS_MAX: usize = 500;
/// How often the room on the disk is measured.
const ROOM_EVERY: Duration = Duration::from_secs(2);
/// How often partitions are made and old days dropped.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(600);
/// How often the books are checked: it reads every message.
const BOOKS_EVERY: Duration = Duration::from_secs(900);

/// What upkeep goes by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Days after which final days are dropped.
    pub retention_days: Option<u32>,
    /// Bytes that intake leaves free.
    pub reserve_bytes: u64,
}

/// Works until `stop`. `health` is told whether there is room and whether the store answers; `wake` calls the normalizer for what was opened again.
pub async fn run(
    store: Arc<dyn Store>,
    settings: Settings,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    wake: watch::Sender<Seq>,
    stop: CancellationToken,
) {
    let mut tick = interval(REQUESTS_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let long_ago = Instant::now().checked_sub(HOUSEKEEPING_EVERY);
    // The room was measured before the doors opened.
    let (mut kept, mut measured, mut audited) = (long_ago, Some(Instant::now()), long_ago);
    let due = |last: Option<Instant>, every| last.is_none_or(|last| last.elapsed() >= every);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        give_memory_back();
        requests(&*store, &wake, &health).await;
        if due(measured, ROOM_EVERY) {
            measured = Some(Instant::now());
            watch_room(&*store, settings.reserve_bytes, &health, &metrics).await;
        }
        if due(kept, HOUSEKEEPING_EVERY) {
            kept = Some(Instant::now());
            match store
                .housekeeping(&Retention { days: settings.retention_days }, jiff::Timestamp::now())
                .await
            {
                Ok(0) => {}
                Ok(messages) => tracing::info!(messages, "old messages, all of them final, were let go"),
                Err(error) => {
                    tracing::warn!(error = %crate::chain(&error), "housekeeping failed; it is tried again")
                }
            }
        }
        if due(audited, BOOKS_EVERY) {
            audited = Some(Instant::now());
            audit(&*store, &metrics).await;
        }
    }
}

/// Our allocator returns freed memory to the system a while later, but only when other memory is freed; at rest nothing is. So
/// something is: never touched, it costs no memory itself.
fn give_memory_back() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
}

async fn requests(store: &dyn Store, wake: &watch::Sender<Seq>, health: &Health) {
    health.store_asked();
    let carried_out = store.carry_out_requests(REQUESTS_MAX).await;
    health.store_answered(carried_out.is_ok());
    match carried_out {
        Ok(0) => {}
        Ok(count) => {
            tracing::info!(count, "requests of a person carried out");
            wake.send_modify(|_| {});
        }
        Err(error) => tracing::warn!(error = %crate::chain(&error), "requests could not be carried out"),
    }
}

/// Measures the room of the store and tells `health` whether more than `reserve` bytes are free.
pub async fn watch_room(store: &dyn Store, reserve: u64, health: &Health, metrics: &Metrics) {
    let free = match store.room().await {
        Ok(Some(free)) => {
            metrics.room(free);
            free
        }
        // A store on another machine keeps its own watch.
        Ok(None) => u64::MAX,
        Err(error) => {
            tracing::warn!(error = %crate::chain(&error), "the room of the store could not be measured");
            return;
        }
    };
    let enough = free >= reserve;
    if health.room.swap(enough, Ordering::Relaxed) != enough {
        if enough {
            tracing::info!(free, "there is room again; messages are taken");
        } else {
            tracing::error!(
                free,
                reserve,
                "the disk reserve is reached; no message is taken until there is room"
            );
        }
    }
}

/// Everything received is final or open; anything else is a defect and said loudly.
async fn audit(store: &dyn Store, metrics: &Metrics) {
    match store.books().await {
        Ok(books) => {
            metrics.books(&books);
            for one in books {
                let accounted =
                    one.routed_final + one.routed_open + one.quarantined + one.rejected + one.waiting;
                if one.received != accounted {
                    let missing = one.received - accounted;
                    tracing::error!(
                        sender = one.sender,
                        missing,
                        "the books do not balance: a defect of Pons"
                    );
                }
            }
        }
        Err(error) => tracing::warn!(error = %crate::chain(&error), "the books could not be read"),
    }
}
