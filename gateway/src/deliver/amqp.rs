//! The `amqp` destination: the event goes into the subscriber's own queue on the broker.

use crate::bus::{Bus, BusError, Envelope};
use adapters::{DeliverError, Destination, Outgoing, Receipt};
use async_trait::async_trait;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How long a full queue is left alone.
const FULL_REST: Duration = Duration::from_secs(1);

/// A subscriber's own queue. Delivered means that the broker has confirmed it; the subscriber consumes at its own pace.
pub struct AmqpQueue {
    bus: Arc<dyn Bus>,
    queue: String,
}

impl AmqpQueue {
    /// The queue of this name, declared when first needed unless the subscriber has done so.
    pub fn new(bus: Arc<dyn Bus>, queue: impl Into<String>) -> Self {
        AmqpQueue { bus, queue: queue.into() }
    }
}

impl fmt::Debug for AmqpQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpQueue").field("queue", &self.queue).finish_non_exhaustive()
    }
}

#[async_trait]
impl Destination for AmqpQueue {
    async fn deliver(&self, outgoing: &Outgoing) -> Result<Receipt, DeliverError> {
        let envelope = Envelope {
            delivery: outgoing.delivery,
            subscription: Arc::clone(&outgoing.subscription),
            routing_key: self.queue.clone(),
            traceparent: outgoing.traceparent.clone(),
            body: outgoing.event.clone(),
        };
        match self.bus.hand_over(&self.queue, envelope).await {
            Ok(()) => Ok(Receipt { answer: "confirmed by the broker".to_owned() }),
            Err(error) => {
                let (answer, after) = match error {
                    BusError::Away(_) => ("the broker is away", None),
                    BusError::Refused => ("the subscriber's queue is full", Some(FULL_REST)),
                    BusError::Returned => ("the subscriber's queue is not there", None),
                };
                Err(DeliverError::Again { answer: answer.to_owned(), after, away: true })
            }
        }
    }
}
