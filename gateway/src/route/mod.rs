//! The third station of the path: which subscriptions a normalized message concerns, and what each may see.
//!
//! Pure: it decides, and `normalize` writes what it decided in the same transaction as the message's result, so that
//! recovery never invents a destination.

pub mod notification;
pub mod policy;
pub mod publish;
pub mod requested;
pub mod roster;
pub mod topics;

use crate::config::Subscription;
use crate::store::{Matched, NewDelivery};
use policy::Decision;
use schemas::message::{DeliveryId, MessageId, OrderKey, Seq};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use topics::{Filter, Happening, Topic, Touched};
use uuid::Uuid;

/// The subscriptions, ready to be asked.
#[derive(Debug)]
pub struct Router {
    subscriptions: Vec<Arc<Subscription>>,
    /// Where each stands, by its name.
    by_name: HashMap<Arc<str>, usize>,
    /// Where those stand that subscribe to a topic.
    by_topic: HashMap<&'static str, Vec<usize>>,
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
    /// A router over these subscriptions; `namespace` is the installation's.
    pub fn new(subscriptions: Vec<Arc<Subscription>>, namespace: Uuid) -> Self {
        let mut topics: Vec<&'static Topic> = Vec::new();
        let mut by_topic: HashMap<&'static str, Vec<usize>> = HashMap::new();
        for (index, subscription) in subscriptions.iter().enumerate() {
            for topic in subscription.topics.iter().filter_map(|name| topics::find(name)) {
                let of_topic = by_topic.entry(topic.name()).or_insert_with(|| {
                    topics.push(topic);
                    Vec::new()
                });
                of_topic.push(index);
            }
        }
        let by_name = subscriptions.iter().enumerate().map(|(index, s)| (s.name.clone(), index)).collect();
        let watched = topics.iter().flat_map(|topic| topic.types()).map(str::to_owned).collect();
        Router { subscriptions, by_name, by_topic, namespace, topics, watched }
    }

    /// Whether anybody's topic looks at resources of a type.
    pub fn watches(&self, resource_type: &str) -> bool {
        self.watched.contains(resource_type)
    }

    /// Whether a subscription may know what a sender says.
    pub fn hears(&self, subscription: &str, sender: &str) -> bool {
        let known = self.by_name.get(subscription).map(|index| &self.subscriptions[*index]);
        known.is_some_and(|known| policy::listens(known, sender))
    }

    /// One delivery for each subscription that a topic of the message concerns, or one for each event where it is notified of events;
    /// withheld ones included. A notification's references are what it is about; what goes along is still to be added.
    pub fn deliveries(&self, message: &Routable<'_>) -> Vec<NewDelivery> {
        let found = self.topics.iter().map(|topic| (topic.name(), topic.focus(&message.happening)));
        let found: Vec<(&str, Vec<&Touched<'_>>)> = found.filter(|(_, focus)| !focus.is_empty()).collect();
        if found.is_empty() {
            return Vec::new();
        }
        let mut decision = None;
        let concerned: BTreeSet<usize> =
            found.iter().filter_map(|(topic, _)| self.by_topic.get(topic)).flatten().copied().collect();
        let concerned = concerned.into_iter().map(|index| &self.subscriptions[index]);
        let listening = concerned.filter(|s| policy::listens(s, message.sender));
        let mut deliveries = Vec::new();
        for subscription in listening {
            let passes =
                |touched: &&&Touched<'_>| Filter::pass(&subscription.filters, touched, message.happening.now);
            let asked = found
                .iter()
                .filter(|(topic, _)| subscription.topics.iter().any(|listed| listed == topic))
                .map(|(topic, focus)| (*topic, focus.iter().filter(passes).copied().collect::<Vec<_>>()))
                .filter(|(_, focus)| !focus.is_empty());
            let asked: Vec<(&str, Vec<&Touched<'_>>)> = asked.collect();
            if asked.is_empty() {
                continue;
            }
            let suppressed = match decision.get_or_insert_with(|| policy::at_routing(message.bundle)) {
                Decision::Allow => None,
                Decision::Suppress(why) => Some(why.clone()),
            };
            let delivery = |name: &str, matched: Matched| NewDelivery {
                id: DeliveryId::of(self.namespace, message.id, name, message.revision),
                message: message.id,
                seq: message.seq,
                revision: message.revision,
                subscription: subscription.name.clone(),
                key: message.key,
                matched,
                suppressed: suppressed.clone(),
            };
            if subscription.notifies.is_none() {
                let topics: Vec<String> = asked.iter().map(|(topic, _)| (*topic).to_owned()).collect();
                deliveries.push(delivery(&subscription.name, topics.into()));
                continue;
            }
            // Each event is one notification, with a number of its own.
            for (topic, focus) in asked {
                for reference in focus.into_iter().filter_map(Touched::reference) {
                    let name = format!("{}/{topic}/{reference}", subscription.name);
                    let references = if suppressed.is_some() { Vec::new() } else { vec![reference] };
                    let matched = Matched { topics: vec![topic.to_owned()], references: Some(references) };
                    deliveries.push(delivery(&name, matched));
                }
            }
        }
        deliveries
    }
}
