//! The third station of the path: which subscriptions a normalized message concerns, and what each may see.
//!
//! Pure: it decides, and `normalize` writes what it decided in the same transaction as the message's result, so that
//! recovery never invents a destination.

pub mod policy;
pub mod publish;
pub mod topics;

use crate::config::Subscription;
use crate::store::NewDelivery;
use policy::Decision;
use schemas::message::{DeliveryId, MessageId, OrderKey, Seq};
use topics::Happening;
use uuid::Uuid;

/// The subscriptions, ready to be asked.
#[derive(Debug)]
pub struct Router {
    subscriptions: Vec<Subscription>,
    namespace: Uuid,
}

/// One normalized message, as routing sees it.
#[derive(Debug)]
pub struct Routable<'r> {
    /// The message.
    pub id: MessageId,
    /// Its place.
    pub seq: Seq,
    /// Which revision of its result.
    pub revision: u32,
    /// The sender's name.
    pub sender: &'r str,
    /// Its home key.
    pub key: OrderKey,
    /// What it did.
    pub happening: Happening<'r>,
    /// What would be sent.
    pub bundle: &'r [u8],
}

impl Router {
    /// A router over the configured subscriptions; `namespace` is the installation's.
    pub fn new(subscriptions: Vec<Subscription>, namespace: Uuid) -> Self {
        Router { subscriptions, namespace }
    }

    /// Whether anybody subscribes to anything.
    pub fn is_idle(&self) -> bool {
        self.subscriptions.is_empty()
    }

    /// One delivery for each subscription that a topic of the message concerns, withheld ones included.
    pub fn deliveries(&self, message: &Routable<'_>) -> Vec<NewDelivery> {
        let topics = topics::matching(&message.happening);
        if topics.is_empty() {
            return Vec::new();
        }
        let mut decision = None;
        let listening = self.subscriptions.iter().filter(|s| policy::listens(s, message.sender));
        listening
            .filter_map(|subscription| {
                let matched: Vec<String> = topics
                    .iter()
                    .filter(|topic| subscription.topics.iter().any(|listed| listed == *topic))
                    .map(|topic| (*topic).to_owned())
                    .collect();
                if matched.is_empty() {
                    return None;
                }
                let suppressed = match decision.get_or_insert_with(|| policy::at_routing(message.bundle)) {
                    Decision::Allow => None,
                    Decision::Suppress(why) => Some(why.clone()),
                };
                Some(NewDelivery {
                    id: DeliveryId::of(self.namespace, message.id, &subscription.name, message.revision),
                    message: message.id,
                    seq: message.seq,
                    revision: message.revision,
                    subscription: subscription.name.clone(),
                    key: message.key,
                    topics: matched,
                    suppressed,
                })
            })
            .collect()
    }
}
