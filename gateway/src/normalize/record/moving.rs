//! What goes along when a visit or an account moves to another patient.
//!
//! That is all of the patient's that refers to what moves, and all that refers to that; and a specimen, which has no visit of its own
//! in R4, when everything moves that refers to it. What is about nobody (a ward, a doctor) stays.

use super::{Changed, Current, Merge, Prepared, Taken};
use crate::route::topics::{Touched, watches};
use crate::store::{RecordTx, StoreError, StoredResource};
use mappings::Effect;
use mappings::resource::State;
use schemas::issue::{Issue, Severity};
use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use uuid::Uuid;

/// What refers to no visit in R4, and goes where everything goes that refers to it.
const HAS_NO_VISIT: [&str; 1] = ["Specimen"];

/// How many resources of the patient are looked at together: their text is not kept.
const LOOKED_AT: usize = 500;

/// More than this is moved by a person.
const MOVED_MAX: usize = 10_000;

/// A visit or an account that a message of the batch moves to another patient.
pub(super) struct Moving {
    what: Uuid,
    from: Uuid,
    into: Uuid,
    /// The resources that go along, and the types of what they refer to and leave behind; `None` if they are too many.
    along: Option<(Vec<Uuid>, BTreeSet<String>)>,
}

impl Moving {
    /// Whether it moves this resource.
    pub(super) fn is_of(&self, id: Uuid) -> bool {
        self.what == id
    }
}

impl Merge {
    /// Reads what goes along with what a message moves.
    pub(super) async fn find_moves(
        &mut self,
        tx: &mut dyn RecordTx,
        prepared: &Prepared,
    ) -> Result<(), StoreError> {
        let Ok(facts) = &prepared.facts else { return Ok(()) };
        let known = |id: Uuid| {
            let contribution = facts.contributions().find(|contribution| contribution.id == id);
            contribution.map_or(id, |contribution| self.id_of(contribution, false, &mut Vec::new()))
        };
        let moves: Vec<(Uuid, Uuid, Uuid)> = facts
            .effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Move { what, from, into } => Some((known(*what), known(*from), known(*into))),
                Effect::Merge { .. } => None,
            })
            .collect();
        for (what, from, into) in moves {
            let along = match along(tx, what, from).await? {
                None => None,
                Some(Along { resources, left_behind }) => {
                    let mut ids = Vec::with_capacity(resources.len());
                    for resource in resources {
                        ids.push(resource.id);
                        if let Entry::Vacant(place) = self.resources.entry(resource.id) {
                            place.insert(Current::try_from(resource)?);
                        }
                    }
                    Some((ids, left_behind))
                }
            };
            self.moves.push(Moving { what, from, into, along });
        }
        Ok(())
    }

    /// Of each move whether it moves something that is known, from the patient whom the message says. What is known to be somebody
    /// else's waits for a person, and so does too much.
    pub(super) fn whose_moves(&self) -> Result<Vec<bool>, String> {
        let mut whose = Vec::with_capacity(self.moves.len());
        for Moving { what, from, into, along } in &self.moves {
            let Some(known) = self.resources.get(what) else {
                whose.push(false);
                continue;
            };
            let patient = known.state.patient().map(|patient| self.survivor(patient));
            let is_from = patient == Some(self.survivor(*from));
            if !is_from && patient.is_some_and(|patient| patient != self.survivor(*into)) {
                return Err(format!(
                    "{} {what}: it moves from a patient whose it is not",
                    known.resource_type
                ));
            }
            if is_from && along.is_none() {
                return Err(format!("{} {what}: too much of the patient's goes along", known.resource_type));
            }
            whose.push(is_from);
        }
        Ok(whose)
    }

    /// Turns what goes along with a visit or an account to the patient to whom it has moved; nothing, if what is known of that is newer.
    pub(super) fn move_along(
        &mut self,
        prepared: &Prepared,
        moving: Moving,
        ids: &mut Vec<Uuid>,
        taken: &mut Taken,
    ) {
        let Moving { what, from, into, along } = moving;
        let (from, into) = (self.survivor(from), self.survivor(into));
        let now = self.resources.get(&what).and_then(|current| current.state.patient());
        if now.map(|patient| self.survivor(patient)) != Some(into) {
            return;
        }
        let (along, left_behind) = along.unwrap_or_default();
        let mut count = 0usize;
        for id in along {
            let patient = self.resources.get(&id).and_then(|current| current.state.patient());
            let Some(patient) = patient.filter(|patient| self.survivor(*patient) == from) else { continue };
            let Some(current) = self.resources.get_mut(&id) else { continue };
            let watched = watches(&current.resource_type);
            let before = watched.then(|| current.state.render(&current.resource_type, id).json);
            if !current.state.relink(&[(patient, into)]) {
                continue;
            }
            count += 1;
            if current.changed_by.is_none() {
                self.order.push(id);
            }
            current.changed_by = Some(prepared.open.id);
            current.version = current.stored + 1;
            taken.changed.push(Changed {
                resource_type: current.resource_type.clone(),
                id,
                version: Some(current.version),
                created: false,
            });
            if let Some(before) = before {
                taken.touched.push(Touched {
                    resource_type: Cow::Owned(current.resource_type.clone()),
                    before: Some(Cow::Owned(before)),
                    now: Cow::Owned(current.state.render(&current.resource_type, id).json),
                });
            }
            ids.push(id);
        }
        if count > 0 {
            let text = format!("{count} resources that belong to it have moved to the other patient with it");
            taken.issues.push(Issue::new(Severity::Information, "moved", "MRG", text));
        }
        if !left_behind.is_empty() {
            let types = left_behind.into_iter().collect::<Vec<_>>().join(", ");
            let text = format!("what moved still refers to something of the patient whose it was: {types}");
            taken.issues.push(Issue::new(Severity::Warning, "left-behind", "MRG", text));
        }
    }
}

/// What moves, besides the visit or the account itself.
struct Along {
    /// In order of ids.
    resources: Vec<StoredResource>,
    /// The types of what is referred to by something that moves, and remains the patient's.
    left_behind: BTreeSet<String>,
}

/// A resource of the patient.
struct Known {
    resource_type: String,
    refers_to: Vec<Uuid>,
}

/// Finds what goes along with `what`, which is recorded for the patient `from`; `None` if that is too much.
///
/// # Errors
/// As [`RecordTx`].
async fn along(tx: &mut dyn RecordTx, what: Uuid, from: Uuid) -> Result<Option<Along>, StoreError> {
    let mut known = HashMap::new();
    for ids in tx.about(from).await?.chunks(LOOKED_AT) {
        for resource in tx.load(ids).await? {
            let state = State::decode(&resource.state).map_err(|error| StoreError::Bug(error.into()))?;
            let refers_to = state.references().collect();
            known.insert(resource.id, Known { resource_type: resource.resource_type, refers_to });
        }
    }
    let moves = closure(&known, what);
    let stays = |id: &Uuid| known.get(id).filter(|_| !moves.contains(id));
    let referred_to = moves.iter().filter_map(|id| known.get(id)).flat_map(|one| &one.refers_to);
    let left_behind = referred_to.filter_map(stays).map(|one| one.resource_type.clone()).collect();
    let mut ids: Vec<Uuid> = moves.into_iter().filter(|id| *id != what).collect();
    if ids.len() > MOVED_MAX {
        return Ok(None);
    }
    ids.sort();
    Ok(Some(Along { resources: tx.load(&ids).await?, left_behind }))
}

/// `what` and everything that goes along with it.
fn closure(known: &HashMap<Uuid, Known>, what: Uuid) -> HashSet<Uuid> {
    let mut referring: HashMap<Uuid, Vec<Uuid>> = HashMap::new();
    for (id, one) in known {
        for target in &one.refers_to {
            referring.entry(*target).or_default().push(*id);
        }
    }
    let mut moves = HashSet::from([what]);
    let mut new = vec![what];
    while let Some(id) = new.pop() {
        let referring_to = |id: &Uuid| referring.get(id).into_iter().flatten().copied();
        let follows = |id: &Uuid| {
            let of_kind = known.get(id).is_some_and(|one| HAS_NO_VISIT.contains(&&*one.resource_type));
            of_kind && referring_to(id).all(|other| moves.contains(&other))
        };
        let referred_to = known.get(&id).into_iter().flat_map(|one| one.refers_to.iter().copied());
        let more: Vec<Uuid> = referring_to(&id).chain(referred_to.filter(follows)).collect();
        new.extend(more.into_iter().filter(|id| moves.insert(*id)));
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn moved(known: &[(u128, &str, &[u128])]) -> Vec<u128> {
        let known = known.iter().map(|(number, kind, refers_to)| {
            let refers_to = refers_to.iter().copied().map(id).collect();
            (id(*number), Known { resource_type: (*kind).to_owned(), refers_to })
        });
        let mut moved: Vec<u128> = closure(&known.collect(), id(1)).iter().map(Uuid::as_u128).collect();
        moved.sort_unstable();
        moved
    }

    #[test]
    fn what_refers_to_it_goes_along_and_so_does_what_refers_to_that() {
        let known: &[(u128, &str, &[u128])] = &[
            (1, "Encounter", &[9]),
            (2, "Observation", &[1, 100]),
            (3, "DiagnosticReport", &[2]),
            (4, "Observation", &[5]),
            (5, "Encounter", &[]),
            (9, "Account", &[]),
        ];
        assert_eq!(moved(known), [1, 2, 3], "not another visit, its results, or the account of both");
    }

    #[test]
    fn a_specimen_goes_with_the_last_of_what_was_made_of_it() {
        let shared: &[(u128, &str, &[u128])] = &[
            (1, "Encounter", &[]),
            (2, "Observation", &[1, 7]),
            (3, "Observation", &[1, 7, 8]),
            (7, "Specimen", &[]),
            (8, "Specimen", &[]),
        ];
        assert_eq!(moved(shared), [1, 2, 3, 7, 8]);
        let also_elsewhere = [shared, &[(4, "Observation", &[7])]].concat();
        assert_eq!(moved(&also_elsewhere), [1, 2, 3, 8]);
    }

    #[test]
    fn a_circle_ends() {
        assert_eq!(moved(&[(1, "Encounter", &[2]), (2, "Encounter", &[1, 2])]), [1, 2]);
    }
}
