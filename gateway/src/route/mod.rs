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
use std::collections::HashSet;
use topics::{Filter, Happening, Topic, Touched};
use uuid::Uuid;

/// The subscriptions, ready to be asked.
#[derive(Debug)]
pub struct Router {
    subscriptions: Vec<Subscription>,
    namespace: Uuid,
    /// The topics that somebody subscribes to: no other is looked at.
    topics: Vec<&'static Topic>,
    /// The resource types that one of them looks at.
    watched: HashSet<String>,
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
        let mut topics: Vec<&'static Topic> = Vec::new();
        for topic in subscriptions.iter().flat_map(|s| &s.topics).filter_map(|name| topics::find(name)) {
            if !topics.iter().any(|known| known.name() == topic.name()) {
                topics.push(topic);
            }
        }
        let watched = topics.iter().flat_map(|topic| topic.types()).map(str::to_owned).collect();
        Router { subscriptions, namespace, topics, watched }
    }

    /// Whether anybody's topic looks at resources of a type.
    pub fn watches(&self, resource_type: &str) -> bool {
        self.watched.contains(resource_type)
    }

    /// Whether anybody subscribes to anything.
    pub fn is_idle(&self) -> bool {
        self.subscriptions.is_empty()
    }

    /// One delivery for each subscription that a topic of the message concerns, withheld ones included.
    pub fn deliveries(&self, message: &Routable<'_>) -> Vec<NewDelivery> {
        let found = self.topics.iter().map(|topic| (topic.name(), topic.focus(&message.happening)));
        let found: Vec<(&str, Vec<&Touched<'_>>)> = found.filter(|(_, focus)| !focus.is_empty()).collect();
        if found.is_empty() {
            return Vec::new();
        }
        let mut decision = None;
        let listening = self.subscriptions.iter().filter(|s| policy::listens(s, message.sender));
        listening
            .filter_map(|subscription| {
                let asked = found
                    .iter()
                    .filter(|(topic, _)| subscription.topics.iter().any(|listed| listed == topic));
                let now = message.happening.now;
                let passes = |focus: &[&Touched<'_>]| {
                    focus.iter().any(|touched| Filter::pass(&subscription.filters, touched, now))
                };
                let matched: Vec<String> =
                    asked.filter(|(_, focus)| passes(focus)).map(|(topic, _)| (*topic).to_owned()).collect();
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
