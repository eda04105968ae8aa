//! Sources that fetch: one replica at a time does so, the one that holds the lease of the source.

use crate::store::{Lease, Store, StoreError};
use adapters::{Intake, Source};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long a lease lasts unless it is renewed; after a crash another replica fetches then.
const LEASE_TTL: Duration = Duration::from_secs(10);
/// How often it is renewed, and asked for while another replica has it.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// For how long after it was asked for it is certainly ours.
const SURE: Duration = Duration::from_secs(8);

/// What a source that fetches needs.
pub struct Turn {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// The source.
    pub source: Arc<dyn Source>,
    /// Where it hands in what it fetches.
    pub intake: Arc<dyn Intake>,
    /// Who holds the leases.
    pub store: Arc<dyn Store>,
    /// Which replica this is.
    pub replica: Uuid,
}

impl Turn {
    /// Fetches whenever it is this replica's turn, until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let names = [format!("source:{}", self.name)];
        self.intake.reaches(&self.name, false);
        while !stop.is_cancelled() {
            let asked_at = Instant::now();
            if self.lease(&names).await.is_ok_and(|lease| lease.is_some()) {
                tracing::info!(source = %self.name, "this replica fetches");
                self.fetch(&names, asked_at, &stop).await;
                if let Err(error) = self.store.release(self.replica, &names).await {
                    tracing::debug!(error = %crate::chain(&error), "lease not given back, it runs out by itself");
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(RENEW_EVERY) => {}
            }
        }
    }

    /// Fetches until `stop` is cancelled or the lease may be another's.
    async fn fetch(&self, names: &[String], mut held_at: Instant, stop: &CancellationToken) {
        let ours = stop.child_token();
        let started = self.source.clone().start(self.intake.clone(), ours.clone()).await;
        let mut running = match started {
            Ok(running) => running.task,
            Err(error) => {
                tracing::error!(source = %self.name, %error, "a source cannot start");
                return;
            }
        };
        let mut is_lost = false;
        loop {
            tokio::select! {
                ended = &mut running => {
                    if let Err(error) = ended {
                        tracing::error!(source = %self.name, %error, "a source ended by itself: a defect of Pons; it starts again");
                    }
                    return;
                }
                () = tokio::time::sleep(RENEW_EVERY) => {}
            }
            if ours.is_cancelled() {
                continue;
            }
            let asked_at = Instant::now();
            // While the store is away nobody else can have it either; but once it may have run out, it is not ours.
            match tokio::time::timeout(RENEW_EVERY, self.lease(names)).await {
                Ok(Ok(Some(_))) => held_at = asked_at,
                Ok(Ok(None)) => is_lost = true,
                Ok(Err(_)) | Err(_) => {}
            }
            if is_lost || held_at.elapsed() >= SURE {
                tracing::warn!(source = %self.name, "another replica may fetch now");
                ours.cancel();
            }
        }
    }

    async fn lease(&self, names: &[String]) -> Result<Option<Lease>, StoreError> {
        let leases = self.store.lease(self.replica, names, LEASE_TTL).await;
        if let Err(error) = &leases {
            tracing::warn!(source = %self.name, error = %crate::chain(error), "the lease of a source could not be had");
        }
        leases.map(|leases| leases.into_iter().next())
    }
}
