//! Which lanes this replica works: a fair share of them, held by leases that the database's clock decides.

use crate::store::{Lease, Store};
use schemas::message::{LANES, LaneSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long a lease lasts unless it is renewed; a crashed replica's lanes are free after this.
pub const LEASE_TTL: Duration = Duration::from_secs(5);
/// How often leases are renewed.
const RENEW_EVERY: Duration = Duration::from_millis(1_500);

/// The lanes that are ours now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// As a set.
    pub lanes: LaneSet,
    /// The proof, one lease a lane.
    pub leases: Vec<Lease>,
}

impl Held {
    /// The leases of some lanes: what a batch on them has to prove.
    pub fn of(&self, lanes: LaneSet) -> Vec<Lease> {
        let wanted = |lease: &&Lease| lane(lease).is_some_and(|lane| lanes.contains(LaneSet(1 << lane)));
        self.leases.iter().filter(wanted).cloned().collect()
    }
}

fn lane(lease: &Lease) -> Option<u32> {
    lease.name.strip_prefix("lane:")?.parse().ok()
}

fn name(lane: u32) -> String {
    format!("lane:{lane}")
}

/// Makes the task that holds this replica's share of the lanes, and the place where it publishes which they are. The task ends
/// once `shutdown` is cancelled and nobody works the lanes any more; then they are given back.
pub fn hold(
    store: Arc<dyn Store>,
    replica: Uuid,
    shutdown: CancellationToken,
) -> (impl Future<Output = ()> + Send + 'static, watch::Receiver<Held>) {
    let (publish, held) = watch::channel(Held::default());
    let task = async move {
        let mut ours: Vec<u32> = Vec::new();
        while !shutdown.is_cancelled() {
            match share(&*store, replica, &ours).await {
                Ok(held) => {
                    ours = held.leases.iter().filter_map(lane).collect();
                    if *publish.borrow() != held {
                        tracing::info!(lanes = ours.len(), "lanes held");
                        publish.send_replace(held);
                    }
                }
                Err(error) => tracing::warn!(error = %crate::chain(&error), "leases could not be renewed"),
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(RENEW_EVERY) => {}
                () = publish.closed() => break,
            }
        }
        publish.closed().await;
        let names: Vec<String> = ours.into_iter().map(name).collect();
        if let Err(error) = store.release(replica, &names).await {
            tracing::warn!(error = %crate::chain(&error), "leases could not be given back; they run out by themselves");
        }
    };
    (task, held)
}

/// Renews what is ours, gives back what is more than our share, takes what is free up to it.
async fn share(store: &dyn Store, replica: Uuid, ours: &[u32]) -> Result<Held, crate::store::StoreError> {
    let replicas = store.heartbeat(replica, LEASE_TTL).await?.max(1);
    let fair = LANES.div_ceil(replicas) as usize;
    let mut keep: Vec<u32> = ours.to_vec();
    if keep.len() > fair {
        let surplus: Vec<String> = keep.split_off(fair).into_iter().map(name).collect();
        store.release(replica, &surplus).await?;
    }
    let renew: Vec<String> = keep.iter().copied().map(name).collect();
    let mut leases =
        if renew.is_empty() { Vec::new() } else { store.lease(replica, &renew, LEASE_TTL).await? };
    // Which ones are free is only known by asking; ask for no more than our share at a time.
    for lane in (0..LANES).filter(|lane| !keep.contains(lane)) {
        if leases.len() >= fair {
            break;
        }
        leases.extend(store.lease(replica, &[name(lane)], LEASE_TTL).await?);
    }
    let lanes = leases.iter().filter_map(lane);
    let lanes = LaneSet(lanes.fold(0, |set, lane| set | 1 << lane));
    Ok(Held { lanes, leases })
}
