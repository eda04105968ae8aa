//! What both stores know about a recording: one row for each resource that it changes, what its aliases expect.

use crate::store::{Alias, DeliveryState, Matched, NewDelivery, ResourceWrite, StoreError, pack};
use bytes::Bytes;
use schemas::message::MessageId;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use uuid::Uuid;

/// One resource as it will lie in the store. The Bundles of the results hold what it was in between.
pub(super) struct ResourceRow {
    pub(super) id: Uuid,
    pub(super) resource_type: String,
    /// The version that must be there; 0 for none.
    pub(super) follows: i64,
    pub(super) version: i64,
    pub(super) packed: Vec<u8>,
    pub(super) replaced_by: Option<Uuid>,
    pub(super) patient: Option<Uuid>,
    /// The nil UUID for none.
    pub(super) encounter: Uuid,
    pub(super) message: MessageId,
}

/// Folds several versions of a resource within one recording into the last one. In order of ids, so that two
/// recordings lock in the same order.
///
/// # Errors
/// [`StoreError::Conflict`] when versions of one resource do not follow one another.
pub(super) fn fold(writes: Vec<ResourceWrite>) -> Result<Vec<ResourceRow>, StoreError> {
    let mut last: BTreeMap<Uuid, (i64, ResourceWrite)> = BTreeMap::new();
    for write in writes {
        let first = match last.get(&write.id) {
            Some((_, before)) if before.version != write.follows => return Err(StoreError::Conflict),
            Some((first, _)) => *first,
            None => write.follows,
        };
        last.insert(write.id, (first, write));
    }
    let row = |(id, (follows, write)): (Uuid, (i64, ResourceWrite))| ResourceRow {
        id,
        resource_type: write.resource_type,
        follows,
        version: write.version,
        packed: pack::squeeze(&write.state),
        replaced_by: write.replaced_by,
        patient: write.patient,
        encounter: write.encounter.unwrap_or_default(),
        message: write.message,
    };
    Ok(last.into_iter().map(row).collect())
}

/// The id of an alias: a UUIDv5 of its three parts. Frozen: stored rows depend on it.
pub(super) fn alias_id(alias: &Alias) -> Uuid {
    let mut name = Vec::with_capacity(96);
    for part in [&alias.resource_type, &alias.system, &alias.value] {
        name.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        name.extend_from_slice(part.as_bytes());
    }
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &name)
}

/// Everybody who was merged into the patient given, and the patient, as the table `same`.
macro_rules! same {
    ($patient:literal) => {
        concat!(
            "WITH RECURSIVE same (id) AS (SELECT ",
            $patient,
            " UNION SELECT merged.id FROM resource AS merged JOIN same ON merged.replaced_by = same.id)"
        )
    };
}
pub(super) use same;

/// What is about one of those. `CROSS JOIN` says in which order SQLite is to look: it would else look at every resource there is.
macro_rules! about {
    ($patient:literal) => {
        concat!(
            crate::store::recording::same!($patient),
            " SELECT resource.id FROM same CROSS JOIN resource WHERE resource.patient = same.id ORDER BY resource.id"
        )
    };
}
pub(super) use about;

/// What of a type is about one of those.
macro_rules! about_of {
    ($patient:literal, $type:literal, $limit:literal) => {
        concat!(
            crate::store::recording::same!($patient),
            " SELECT resource.id FROM same CROSS JOIN resource WHERE resource.patient = same.id AND resource.resource_type = ",
            $type,
            " ORDER BY resource.id LIMIT ",
            $limit
        )
    };
}
pub(super) use about_of;

/// What of a type was in one of those encounters, and what of the patient nobody asked that of.
macro_rules! within {
    ($encounter:literal, $patient:literal, $type:literal, $limit:literal) => {
        concat!(
            "WITH RECURSIVE same (id) AS (SELECT ",
            $encounter,
            " UNION SELECT merged.id FROM resource AS merged JOIN same ON merged.replaced_by = same.id),
             who (id) AS (SELECT ",
            $patient,
            " UNION SELECT merged.id FROM resource AS merged JOIN who ON merged.replaced_by = who.id)
             SELECT resource.id FROM who CROSS JOIN same CROSS JOIN resource
             WHERE resource.patient = who.id AND resource.encounter = same.id AND resource_type = ",
            $type,
            " UNION SELECT resource.id FROM who CROSS JOIN resource
             WHERE resource.patient = who.id AND resource.encounter IS NULL AND resource_type = ",
            $type,
            " ORDER BY 1 LIMIT ",
            $limit
        )
    };
}
pub(super) use within;

/// What aliases were found to name, by their ids; `None` when they named nothing.
pub(super) type Resolved = HashMap<Uuid, Option<Uuid>>;

/// What has to happen to aliases.
#[derive(Default)]
pub(super) struct AliasRows {
    /// In order of ids.
    pub(super) new: BTreeMap<Uuid, (Alias, Uuid)>,
    /// What each named before and names now, in order of ids.
    pub(super) moved: BTreeMap<Uuid, (Uuid, Uuid)>,
}

/// Sorts aliases by what was found when they were resolved. One given twice names what it names last.
pub(super) fn alias_rows(aliases: Vec<(Alias, Uuid)>, resolved: &Resolved) -> AliasRows {
    let mut rows = AliasRows::default();
    for (alias, resource) in aliases {
        let id = alias_id(&alias);
        match resolved.get(&id).copied().flatten() {
            Some(before) if before == resource => {
                rows.moved.remove(&id);
            }
            Some(before) => {
                rows.moved.insert(id, (before, resource));
            }
            None => {
                rows.new.insert(id, (alias, resource));
            }
        }
    }
    rows
}

/// How many numbers each subscription needs, in order of names.
pub(super) fn demand(deliveries: &[NewDelivery]) -> BTreeMap<Arc<str>, i64> {
    let mut demand = BTreeMap::new();
    for delivery in deliveries {
        *demand.entry(Arc::clone(&delivery.subscription)).or_insert(0) += 1;
    }
    demand
}

/// The state in which a delivery begins.
pub(super) fn first_state(delivery: &NewDelivery) -> DeliveryState {
    if delivery.is_final() { DeliveryState::Suppressed } else { DeliveryState::Pending }
}

/// What notifications bring along, as it lies in its column.
pub(super) fn beside_to(beside: &Bytes) -> Option<Vec<u8>> {
    (!beside.is_empty()).then(|| pack::squeeze(beside))
}

/// What [`beside_to`] was given.
pub(super) fn beside_from(packed: Option<&[u8]>) -> Result<Bytes, StoreError> {
    packed.map_or(Ok(Bytes::new()), pack::expand)
}

/// What a delivery tells of as one text: a line for each topic; then, if it is a notification, one that begins with `>` and names its
/// references. Neither a topic's name nor a reference has a space in it.
pub(super) fn matched_to(matched: &Matched) -> String {
    let mut text = matched.topics.join("\n");
    if let Some(references) = &matched.references {
        text.push_str("\n>");
        text.push_str(&references.join(" "));
    }
    text
}

/// What [`matched_to`] was given.
pub(super) fn matched_from(text: &str) -> Matched {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    Matched {
        topics: text.lines().filter(|line| !line.starts_with('>')).map(str::to_owned).collect(),
        references: text.lines().find_map(|line| line.strip_prefix('>')).map(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(id: u128, follows: i64) -> ResourceWrite {
        ResourceWrite {
            id: Uuid::from_u128(id),
            resource_type: "Patient".to_owned(),
            follows,
            version: follows + 1,
            state: follows.to_string().into_bytes(),
            replaced_by: None,
            patient: None,
            encounter: None,
            message: MessageId(Uuid::nil()),
        }
    }

    #[test]
    fn several_versions_fold_into_the_last() {
        let rows = fold(vec![write(2, 0), write(1, 7), write(2, 1), write(2, 2)]).unwrap();
        let seen: Vec<_> = rows.iter().map(|row| (row.id.as_u128(), row.follows, row.version)).collect();
        assert_eq!(seen, [(1, 7, 8), (2, 0, 3)]);
        assert!(matches!(fold(vec![write(1, 0), write(1, 0)]), Err(StoreError::Conflict)));
    }

    #[test]
    fn aliases_are_new_moved_or_left_alone() {
        let alias = |value: &str| Alias {
            resource_type: "Patient".to_owned(),
            system: "urn:test".to_owned(),
            value: value.to_owned(),
        };
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let resolved = Resolved::from([
            (alias_id(&alias("same")), Some(a)),
            (alias_id(&alias("moved")), Some(a)),
            (alias_id(&alias("absent")), None),
        ]);
        let given = ["same", "moved", "absent", "unasked"];
        let given = given.into_iter().zip([a, b, b, b]).map(|(value, to)| (alias(value), to)).collect();
        let rows = alias_rows(given, &resolved);
        assert_eq!(rows.moved.into_values().collect::<Vec<_>>(), [(a, b)]);
        let mut new: Vec<_> = rows.new.into_values().map(|(alias, _)| alias.value).collect();
        new.sort();
        assert_eq!(new, ["absent", "unasked"]);
    }

    #[test]
    fn what_a_delivery_tells_of_comes_back_as_it_was_given() {
        let texts = |of: &[&str]| of.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        for references in [None, Some(texts(&[])), Some(texts(&["Encounter/1", "Patient/2"]))] {
            let matched = Matched { topics: texts(&["encounter-end", "result-final"]), references };
            assert_eq!(matched_from(&matched_to(&matched)), matched);
        }
        assert_eq!(matched_from("encounter-end"), texts(&["encounter-end"]).into());
    }

    #[test]
    fn an_alias_keeps_the_borders_of_its_parts() {
        let alias = |system: &str, value: &str| {
            alias_id(&Alias {
                resource_type: "Patient".to_owned(),
                system: system.to_owned(),
                value: value.to_owned(),
            })
        };
        assert_ne!(alias("AB", "C"), alias("A", "BC"));
    }
}
