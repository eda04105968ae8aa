//! After the broker has lost its data: what lay in a subscriber's own queue is handed over again.
//!
//! Invariant: nothing new goes into the queue before, so what the subscriber sees first is in order. A mark on the bus
//! says that a queue has everything; it is set last, so a process that dies half way begins again.

use super::window::Names;
use crate::bus::{Bus, handed};
use crate::chain;
use crate::route::publish::{Event, Told, bundle_in, envelope};
use crate::store::Store;
use adapters::{Destination, Outgoing};
use futures_util::future::join_all;
use std::sync::Arc;
use std::time::Duration;

/// How many are handed over at once.
const PAGE: usize = 250;

/// Hands over again what was delivered within the last `within`, unless the bus still has it. An error is a sentence
/// for the log; then nothing is marked, and it is done anew.
pub(super) async fn hand_over_again(
    store: &dyn Store,
    bus: &dyn Bus,
    destination: &dyn Destination,
    names: &Names,
    within: Duration,
) -> Result<(), String> {
    let mark = handed(&names.subscription);
    if bus.marked(&mark).await.map_err(|error| chain(&error))? {
        return Ok(());
    }
    let (mut after, mut count) = (0, 0);
    loop {
        let page = store.delivered_lately(&names.subscription, within, after, PAGE).await;
        let page = page.map_err(|error| chain(&error))?;
        let Some(last) = page.last() else { break };
        after = last.number;
        let of: Vec<_> = page.iter().map(|row| (row.message, row.revision)).collect();
        let contents = store.contents(&of).await.map_err(|error| chain(&error))?;
        let mut outgoing = Vec::with_capacity(page.len());
        for row in &page {
            // Without content retention has let it go.
            let Some(content) = contents.get(&(row.message, row.revision)) else { continue };
            let event = envelope(&Event {
                installation: &names.installation,
                delivery: row.id,
                message: row.message,
                revision: row.revision,
                number: row.number,
                subscription: &names.subscription,
                matched: &row.matched,
                sender: &content.sender,
                received_at: content.received_at,
                traceparent: None,
                told: &Told::of(content),
                notifies: names.notifies.as_ref(),
            })
            .body;
            outgoing.push(Outgoing {
                delivery: row.id,
                subscription: Arc::clone(&names.subscription),
                attempt: row.attempts,
                bundle: bundle_in(&event).unwrap_or_default(),
                event,
                passes: None,
                original: content.original.clone(),
                traceparent: None,
            });
        }
        // They are polled in order, and a queue takes them in that order.
        for result in join_all(outgoing.iter().map(|outgoing| destination.deliver(outgoing))).await {
            result.map_err(|error| error.to_string())?;
            count += 1;
        }
    }
    bus.mark(&mark).await.map_err(|error| chain(&error))?;
    if count > 0 {
        tracing::warn!(subscription = %names.subscription, count, "handed over again what the broker had lost");
    }
    Ok(())
}
