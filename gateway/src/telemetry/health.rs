//! Whether the gateway is ready to take messages, and if not, why.

use crate::bus::{Bus, Health as BusHealth};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long the store may take to answer before it counts as away. It is asked every half second.
const STORE_SILENT_MAX: Duration = Duration::from_secs(5);

/// What readiness depends on, set by those who know.
#[derive(Debug)]
pub struct Health {
    /// Whether there is room above the disk reserve.
    pub room: Arc<AtomicBool>,
    started: AtomicBool,
    stopping: CancellationToken,
    since: Instant,
    /// Milliseconds after `since` at which the store was asked what it has not answered yet; [`ANSWERED`], or [`AWAY`].
    store_asked_ms: AtomicU64,
}

const ANSWERED: u64 = u64::MAX;
const AWAY: u64 = u64::MAX - 1;

impl Health {
    /// Of a gateway that starts; `stopping` is cancelled when it takes nothing new.
    pub fn new(stopping: CancellationToken) -> Self {
        Health {
            room: Arc::new(AtomicBool::new(true)),
            started: AtomicBool::new(false),
            stopping,
            since: Instant::now(),
            store_asked_ms: AtomicU64::new(ANSWERED),
        }
    }

    /// Every door is open.
    pub fn started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// The store is asked something that it answers quickly; one that is away stays so until it answers.
    pub fn store_asked(&self) {
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(AWAY - 1);
        let _ = self.store_asked_ms.compare_exchange(ANSWERED, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// What came of [`Health::store_asked`].
    pub fn store_answered(&self, well: bool) {
        self.store_asked_ms.store(if well { ANSWERED } else { AWAY }, Ordering::Relaxed);
    }

    /// Why the gateway is not ready, if it is not; several reasons stand in a row.
    ///
    /// # Errors
    /// The reasons, in a few words. A broker that is away is none: messages are taken and wait.
    pub fn ready(&self) -> Result<(), String> {
        let silent = match self.store_asked_ms.load(Ordering::Relaxed) {
            ANSWERED => false,
            AWAY => true,
            asked => self.since.elapsed().saturating_sub(Duration::from_millis(asked)) > STORE_SILENT_MAX,
        };
        let reasons = [
            (self.stopping.is_cancelled(), "the gateway is stopping"),
            (!self.started.load(Ordering::Relaxed), "the gateway is starting"),
            (!self.room.load(Ordering::Relaxed), "the disk reserve is reached"),
            (silent, "the store is away"),
        ];
        let reasons: Vec<&str> =
            reasons.into_iter().filter(|(holds, _)| *holds).map(|(_, reason)| reason).collect();
        if reasons.is_empty() { Ok(()) } else { Err(reasons.join("; ")) }
    }

    /// The answer of `/readyz`: whether it is ready, and its lines.
    pub fn readyz(&self, bus: &dyn Bus) -> (bool, String) {
        let bus = match bus.health() {
            BusHealth::Connected => "bus: connected",
            BusHealth::Blocked => "bus: connected, but the broker stops publishers; deliveries wait",
            BusHealth::Away => "bus: away; messages are taken, deliveries wait",
        };
        match self.ready() {
            Ok(()) => (true, format!("ready\n{bus}\n")),
            Err(why) => (false, format!("not ready: {why}\n{bus}\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Embedded;

    #[test]
    fn every_reason_is_said_and_the_bus_is_none() {
        let stopping = CancellationToken::new();
        let health = Health::new(stopping.clone());
        assert_eq!(health.ready(), Err("the gateway is starting".to_owned()));
        health.started();
        assert_eq!(health.ready(), Ok(()));
        health.room.store(false, Ordering::Relaxed);
        health.store_answered(false);
        health.store_asked();
        assert_eq!(health.ready(), Err("the disk reserve is reached; the store is away".to_owned()));
        health.room.store(true, Ordering::Relaxed);
        health.store_answered(true);
        health.store_asked();
        let bus = Embedded::new(1 << 20);
        assert_eq!(health.readyz(&bus), (true, "ready\nbus: connected\n".to_owned()));
        stopping.cancel();
        assert_eq!(
            health.readyz(&bus),
            (false, "not ready: the gateway is stopping\nbus: connected\n".to_owned())
        );
    }
}
