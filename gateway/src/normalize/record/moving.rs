//! What goes along when a visit or an account moves to another patient.
//!
//! That is all of the patient's that refers to what moves, and all that refers to that, unless it is of another visit; and a specimen,
//! which has no visit of its own in R4, when everything moves that refers to it. What is about nobody (a ward, a doctor) stays.

use super::{Changed, Current, Merge, Prepared, Taken};
use crate::store::{RecordTx, StoreError, StoredResource};
use mappings::Effect;
use mappings::resource::State;
use schemas::issue::{Issue, Severity};
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use uuid::Uuid;

/// What refers to no visit in R4, and goes where everything goes that refers to it.
const HAS_NO_VISIT: [&str; 1] = ["Specimen"];

/// How many resources of the patient are looked at together: their text is not kept.
const LOOKED_AT: usize = 500;

/// More than this is moved by a person.
const MOVED_MAX: usize = 10_000;

/// The visits or the accounts that a message moves from one patient to another.
pub(super) struct Moving {
    what: Vec<Uuid>,
    from: Uuid,
    into: Uuid,
    /// The resources that go along.
    along: Vec<Uuid>,
    /// The types of what they refer to and leave behind, and of what stays and refers to them.
    left_behind: BTreeSet<String>,
    /// Why it waits for a person.
    doubt: Option<&'static str>,
}

impl Moving {
    /// Whether it moves this resource.
    pub(super) fn is_of(&self, id: Uuid) -> bool {
        self.what.contains(&id)
    }
}

impl Merge<'_> {
    /// Reads what goes along with what a message moves.
    pub(super) async fn find_moves(
        &mut self,
        tx: &mut dyn RecordTx,
        prepared: &Prepared,
    ) -> Result<(), StoreError> {
        let Ok(facts) = &prepared.facts else { return Ok(()) };
        let known = |id: Uuid| {
            let mut issues = Vec::new();
            let contribution = facts.contributions().find(|contribution| contribution.id == id);
            let known = contribution.map_or(id, |contribution| self.id_of(contribution, false, &mut issues));
            (known, !issues.is_empty())
        };
        let mut moves: Vec<Moving> = Vec::new();
        for effect in &facts.effects {
            let Effect::Move { what, from, into } = effect else { continue };
            let ((what, two), (from, _), (into, _)) = (known(*what), known(*from), known(*into));
            let doubt = two.then_some("its numbers name two resources");
            match moves.iter_mut().find(|moving| (moving.from, moving.into) == (from, into)) {
                Some(moving) => {
                    moving.what.push(what);
                    moving.doubt = moving.doubt.or(doubt);
                }
                None => {
                    let (along, left_behind) = (Vec::new(), BTreeSet::new());
                    moves.push(Moving { what: vec![what], from, into, along, left_behind, doubt });
                }
            }
        }
        for mut moving in moves {
            match along(tx, &moving.what, self.survivor(moving.from)).await? {
                None => moving.doubt = moving.doubt.or(Some("too much of the patient's goes along")),
                Some(Along { resources, left_behind }) => {
                    moving.left_behind = left_behind;
                    for resource in resources {
                        moving.along.push(resource.id);
                        if let Entry::Vacant(place) = self.resources.entry(resource.id) {
                            place.insert(Current::try_from(resource)?);
                        }
                    }
                }
            }
            self.moves.push(moving);
        }
        Ok(())
    }

    /// Of each move whether it moves something that is known, from the patient whom the message says. What is known to be somebody
    /// else's waits for a person, and so does what is in doubt.
    pub(super) fn whose_moves(&self) -> Result<Vec<bool>, String> {
        let mut whose = Vec::with_capacity(self.moves.len());
        for Moving { what, from, into, doubt, .. } in &self.moves {
            let mut moves = false;
            for id in what {
                let Some(known) = self.resources.get(id) else { continue };
                let refuse = |why: &str| Err(format!("{} {id}: {why}", known.resource_type));
                let patient = known.state.patient().map(|patient| self.survivor(patient));
                let is_from = patient == Some(self.survivor(*from));
                if !is_from && patient.is_some_and(|patient| patient != self.survivor(*into)) {
                    return refuse("it moves from a patient whose it is not");
                }
                if let Some(doubt) = doubt {
                    return refuse(doubt);
                }
                moves |= is_from;
            }
            whose.push(moves);
        }
        Ok(whose)
    }

    /// Turns what goes along with visits or accounts to the patient to whom they have moved; nothing, if what is known of them is newer.
    pub(super) fn move_along(
        &mut self,
        prepared: &Prepared,
        moving: Moving,
        ids: &mut Vec<Uuid>,
        taken: &mut Taken,
    ) {
        let Moving { what, into, along, left_behind, .. } = moving;
        let into = self.survivor(into);
        let has_moved = |id: &Uuid| {
            let patient = self.resources.get(id).and_then(|current| current.state.patient());
            patient.map(|patient| self.survivor(patient)) == Some(into)
        };
        if !what.iter().all(has_moved) {
            return;
        }
        let mut count = 0usize;
        for id in along {
            // All of it was found under the patient or somebody who was merged into this one.
            let Some(current) = self.resources.get_mut(&id) else { continue };
            let Some(patient) = current.state.patient().filter(|patient| *patient != into) else { continue };
            let watched = self.router.watches(&current.resource_type);
            let facts = prepared.facts.as_ref().ok().filter(|_| watched);
            let before = facts.and_then(|facts| current.open(id, facts));
            if !current.state.relink(&[(patient, into)]) {
                continue;
            }
            count += 1;
            self.changes.note(id, current, &prepared.open);
            taken.changed.push(Changed {
                resource_type: current.resource_type.clone(),
                id,
                version: Some(current.version),
                created: false,
            });
            if let Some(now) = facts.and_then(|facts| current.open(id, facts)) {
                let of = current.resource_type.clone();
                taken.touch(id, &of, before, now);
            }
            ids.push(id);
        }
        if count > 0 {
            let text = format!("{count} resources that belong to it have moved to the other patient with it");
            taken.issues.push(Issue::new(Severity::Information, "moved", "MRG", text));
        }
        if !left_behind.is_empty() {
            let types = left_behind.into_iter().collect::<Vec<_>>().join(", ");
            let text = format!(
                "what moved and what remains with the patient whose it was still refer to one another: {types}"
            );
            taken.issues.push(Issue::new(Severity::Warning, "left-behind", "MRG", text));
        }
    }
}

/// What moves, besides the visits or the accounts themselves.
struct Along {
    /// In order of ids.
    resources: Vec<StoredResource>,
    /// The types of what remains the patient's, and refers to something that moves or is referred to by it.
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
async fn along(tx: &mut dyn RecordTx, what: &[Uuid], from: Uuid) -> Result<Option<Along>, StoreError> {
    let mut known = HashMap::new();
    for ids in tx.about(from).await?.chunks(LOOKED_AT) {
        for resource in tx.load(ids).await? {
            let state = State::decode(&resource.state).map_err(|error| StoreError::Bug(error.into()))?;
            let refers_to = state.references().collect();
            known.insert(resource.id, Known { resource_type: resource.resource_type, refers_to });
        }
    }
    let Some(moves) = closure(&known, what) else { return Ok(None) };
    let moving = known.iter().filter(|(id, _)| moves.contains(*id));
    let referred_to = moving.flat_map(|(_, one)| &one.refers_to).filter(|id| !moves.contains(*id));
    let staying = known.iter().filter(|(id, _)| !moves.contains(*id)).map(|(_, one)| one);
    let referring = staying.filter(|one| one.refers_to.iter().any(|id| moves.contains(id)));
    let both = referred_to.filter_map(|id| known.get(id)).chain(referring);
    let left_behind = both.map(|one| one.resource_type.clone()).collect();
    let mut ids: Vec<Uuid> = moves.iter().copied().filter(|id| !what.contains(id)).collect();
    ids.sort();
    Ok(Some(Along { resources: tx.load(&ids).await?, left_behind }))
}

/// `what` and everything that goes along with it; `None` if that is more than [`MOVED_MAX`].
///
/// The visits go first: those on an account, and those that are part of one. What refers to a visit that stays, stays with it.
fn closure(known: &HashMap<Uuid, Known>, what: &[Uuid]) -> Option<HashSet<Uuid>> {
    let mut referring: HashMap<Uuid, Vec<Uuid>> = HashMap::new();
    for (id, one) in known {
        for target in &one.refers_to {
            referring.entry(*target).or_default().push(*id);
        }
    }
    let referring_to = |id: &Uuid| referring.get(id).into_iter().flatten().copied();
    let is = |id: &Uuid, kind: &str| known.get(id).is_some_and(|one| one.resource_type == kind);
    let mut moves: HashSet<Uuid> = what.iter().copied().collect();
    let mut new = what.to_vec();
    while let Some(id) = new.pop() {
        let visits: Vec<Uuid> = referring_to(&id).filter(|id| is(id, "Encounter")).collect();
        new.extend(visits.into_iter().filter(|id| moves.insert(*id)));
    }
    let visits = moves.clone();
    let of_another_visit = |id: &Uuid| {
        let refers_to = known.get(id).into_iter().flat_map(|one| &one.refers_to);
        refers_to.into_iter().any(|id| is(id, "Encounter") && !visits.contains(id))
    };
    let mut new: Vec<Uuid> = moves.iter().copied().collect();
    while let Some(id) = new.pop() {
        let follows = |id: &Uuid| {
            let of_kind = HAS_NO_VISIT.iter().any(|kind| is(id, kind));
            of_kind && !moves.contains(id) && referring_to(id).all(|other| moves.contains(&other))
        };
        let referred_to = known.get(&id).into_iter().flat_map(|one| one.refers_to.iter().copied());
        let more: Vec<Uuid> = referring_to(&id)
            .filter(|id| !is(id, "Encounter") && !of_another_visit(id))
            .chain(referred_to.filter(follows))
            .collect();
        new.extend(more.into_iter().filter(|id| moves.insert(*id)));
        if moves.len() > MOVED_MAX {
            return None;
        }
    }
    Some(moves)
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
        let mut moved: Vec<u128> =
            closure(&known.collect(), &[id(1)]).expect("few").iter().map(Uuid::as_u128).collect();
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
    fn what_is_of_another_visit_stays_though_it_refers_to_what_moves() {
        let known: &[(u128, &str, &[u128])] = &[
            (1, "Encounter", &[]),
            (2, "ServiceRequest", &[1]),
            (3, "DiagnosticReport", &[2, 5]),
            (4, "Observation", &[5]),
            (5, "Encounter", &[]),
            (6, "DiagnosticReport", &[2]),
        ];
        assert_eq!(moved(known), [1, 2, 6]);
    }

    #[test]
    fn an_account_takes_its_visits_along_and_a_visit_its_parts() {
        let known: &[(u128, &str, &[u128])] = &[
            (1, "Account", &[]),
            (2, "Encounter", &[1]),
            (3, "Encounter", &[2]),
            (4, "Observation", &[3]),
            (5, "Encounter", &[]),
        ];
        assert_eq!(moved(known), [1, 2, 3, 4]);
    }

    #[test]
    fn a_circle_ends() {
        assert_eq!(moved(&[(1, "Encounter", &[2]), (2, "Encounter", &[1, 2])]), [1, 2]);
    }
}
