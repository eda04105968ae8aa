//! What goes along with an event: by the shapes of its topic, as it is known at that moment.
//!
//! Invariant: nothing goes along that policy withholds, that a sender said of a patient to whom the subscription does not listen, or that
//! lacks a required element.

use super::{Current, Merge};
use crate::route::policy::{self, Decision};
use crate::route::topics::{self, Topic};
use crate::store::{NewDelivery, RecordTx, StoreError};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// How many resources that the message itself does not say go along with one event at most.
const ALONG_MAX: usize = 200;
/// How many of a patient's resources of one type are looked through for those that refer to something.
const LOOKED_AT: usize = 2_000;

/// What is nobody's: who works where.
const NO_SECRET: [&str; 5] =
    ["Practitioner", "PractitionerRole", "Organization", "Location", "HealthcareService"];

/// A resource that goes along.
#[derive(Clone)]
struct Along {
    id: Uuid,
    reference: String,
}

impl Merge<'_> {
    /// Adds to each notification what goes along with what it is about. Answers the resources of these that are not in the Bundle of the
    /// message, as a JSON array; nothing if there are none.
    pub(super) async fn bring_along(
        &mut self,
        tx: &mut dyn RecordTx,
        deliveries: &mut [NewDelivery],
        bundled: &HashSet<Uuid>,
        now: Timestamp,
    ) -> Result<Bytes, StoreError> {
        let mut known: HashMap<(String, String), Vec<Along>> = HashMap::new();
        let mut beside = Vec::new();
        let mut taken: HashSet<Uuid> = HashSet::new();
        for delivery in deliveries {
            let (Some(topic), Some(references)) =
                (delivery.matched.topics.first(), &mut delivery.matched.references)
            else {
                continue;
            };
            let (Some(topic), Some(focus)) = (topics::find(topic), references.first().cloned()) else {
                continue;
            };
            let place = (topic.name().to_owned(), focus.clone());
            if !known.contains_key(&place) {
                let along = self.along(tx, topic, &focus, bundled, now).await?;
                known.insert(place.clone(), along);
            }
            for along in &known[&place] {
                // What is in the Bundle of the message is the subscriber's to know.
                if !bundled.contains(&along.id) && !self.may_know(&delivery.subscription, along.id) {
                    continue;
                }
                references.push(along.reference.clone());
                if !bundled.contains(&along.id) && taken.insert(along.id) {
                    beside.extend(self.shown(along.id));
                }
            }
        }
        Ok(match beside.is_empty() {
            true => Bytes::new(),
            false => format!("[{}]", beside.join(",")).into(),
        })
    }

    /// What goes along with a resource, and with that again, in the order in which it is found.
    async fn along(
        &mut self,
        tx: &mut dyn RecordTx,
        topic: &Topic,
        focus: &str,
        bundled: &HashSet<Uuid>,
        now: Timestamp,
    ) -> Result<Vec<Along>, StoreError> {
        let Some(focus) = id_in(focus) else { return Ok(Vec::new()) };
        let mut found: Vec<Along> = Vec::new();
        let (mut queue, mut at) = (vec![focus], 0);
        let (mut seen, mut from_before) = (HashSet::from([focus]), 0_usize);
        while let Some(&id) = queue.get(at) {
            at += 1;
            let Some(current) = self.resources.get(&id) else { continue };
            let (of, patient) = (current.resource_type.clone(), current.state.patient());
            let Some(json) = self.shown(id).and_then(|text| serde_json::from_str::<Value>(&text).ok()) else {
                continue;
            };
            for shape in topic.shapes(&of) {
                let mut ids = Vec::new();
                for parameter in &shape.include {
                    let references = parameter.references(&json, now).unwrap_or_default();
                    ids.extend(references.iter().filter_map(|reference| id_in(reference)));
                }
                let whose = if of == "Patient" { Some(id) } else { patient };
                for (kind, parameter) in &shape.rev_include {
                    let Some(whose) = whose.map(|whose| self.survivor(whose)) else { continue };
                    // What of a patient was in one encounter is found without a look at all the others.
                    let by_encounter = of == "Encounter" && parameter.element() == "encounter";
                    let about = if by_encounter {
                        let mut about = Vec::new();
                        let patients = self.same(whose);
                        for encounter in self.same(id) {
                            for patient in &patients {
                                about.extend(tx.within(encounter, *patient, kind, LOOKED_AT).await?);
                            }
                        }
                        about
                    } else {
                        tx.about_of(whose, kind, LOOKED_AT).await?
                    };
                    if about.len() >= LOOKED_AT {
                        tracing::warn!(
                            topic = topic.name(),
                            resource = %id,
                            resource_type = kind,
                            "a patient has more than can be looked through: not all of it may go along with an event"
                        );
                    }
                    self.load(tx, &about).await?;
                    // Those under whose numbers they came, and the visits, which were merged into this one since.
                    let states = about.iter().filter_map(|id| Some(&self.resources.get(id)?.state));
                    let theirs = states.flat_map(|state| [state.patient(), state.encounter()]).flatten();
                    let theirs: Vec<Uuid> = theirs.collect();
                    self.load(tx, &theirs).await?;
                    let is_theirs = |current: &Current| {
                        let patient = current.state.patient().map(|patient| self.survivor(patient));
                        current.resource_type == *kind && patient == Some(whose)
                    };
                    let own = self.resources.iter().filter(|(_, current)| is_theirs(current));
                    let mut own: Vec<Uuid> = own.map(|(id, _)| *id).collect();
                    own.sort();
                    let refers = |other: &Uuid| {
                        let json: Value = serde_json::from_str(&self.shown(*other)?).ok()?;
                        let references = parameter.references(&json, now).ok()?;
                        let mut referred = references.iter().filter_map(|reference| id_in(reference));
                        let same = |other: Uuid| self.survivor(other) == self.survivor(id);
                        referred.any(same).then_some(())
                    };
                    ids.extend(own.into_iter().filter(|other| refers(other).is_some()));
                }
                self.load(tx, &ids).await?;
                for id in ids {
                    if !seen.insert(id) || self.shown(id).is_none() {
                        continue;
                    }
                    // What the message itself says goes along whatever it is.
                    if !bundled.contains(&id) {
                        from_before += 1;
                        if from_before > ALONG_MAX {
                            continue;
                        }
                    }
                    let reference = format!("{}/{id}", self.resources[&id].resource_type);
                    found.push(Along { id, reference });
                    queue.push(id);
                }
            }
        }
        if from_before > ALONG_MAX {
            let left = from_before - ALONG_MAX;
            tracing::warn!(topic = topic.name(), %focus, left, "more is known than goes along with an event");
        }
        Ok(found)
    }

    /// A resource and what this batch merges into the same: the store does not know of that yet.
    fn same(&self, id: Uuid) -> Vec<Uuid> {
        let survivor = self.survivor(id);
        let others =
            self.resources.keys().filter(|other| **other != id && self.survivor(**other) == survivor);
        std::iter::once(id).chain(others.copied()).collect()
    }

    /// Whether a subscription listens to everybody who said something of a resource. What is nobody's, everybody may.
    fn may_know(&self, subscription: &str, id: Uuid) -> bool {
        let Some(current) = self.resources.get(&id) else { return false };
        NO_SECRET.contains(&&*current.resource_type)
            || current.state.senders().all(|sender| self.router.hears(subscription, sender))
    }

    /// Reads those that are not known to the batch yet.
    async fn load(&mut self, tx: &mut dyn RecordTx, ids: &[Uuid]) -> Result<(), StoreError> {
        let mut missing: Vec<Uuid> =
            ids.iter().copied().filter(|id| !self.resources.contains_key(id)).collect();
        missing.sort();
        missing.dedup();
        for stored in tx.load(&missing).await? {
            self.resources.insert(stored.id, Current::try_from(stored)?);
        }
        Ok(())
    }

    /// A resource in JSON as it may go along, if it may.
    fn shown(&self, id: Uuid) -> Option<String> {
        let current = self.resources.get(&id)?;
        let rendered = current.state.render_open(&current.resource_type, id, policy::is_open)?;
        let may =
            rendered.lacks().is_none() && policy::at_reading(rendered.json.as_bytes()) == Decision::Allow;
        may.then_some(rendered.json)
    }
}

/// The id in a reference of ours.
fn id_in(reference: &str) -> Option<Uuid> {
    reference.rsplit(['/', ':']).next()?.parse().ok()
}
