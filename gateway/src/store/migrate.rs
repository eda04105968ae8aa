//! The schema's versions: SQL embedded in the binary, applied in order, each once.

use crate::store::StoreError;
use std::collections::BTreeSet;

/// One step of the schema. Never changed once released: a new step is added instead.
pub(super) struct Migration {
    pub(super) version: i32,
    pub(super) sql: &'static str,
}

/// The versions that a database has.
pub(super) type Applied = BTreeSet<i32>;

pub(super) const POSTGRES: &[Migration] = &[
    Migration { version: 1, sql: include_str!("migrations/postgres/0001_start.sql") },
    Migration { version: 2, sql: include_str!("migrations/postgres/0002_codes.sql") },
    Migration { version: 3, sql: include_str!("migrations/postgres/0003_notifications.sql") },
    Migration { version: 4, sql: include_str!("migrations/postgres/0004_requested.sql") },
    Migration { version: 5, sql: include_str!("migrations/postgres/0005_channels.sql") },
    Migration { version: 6, sql: include_str!("migrations/postgres/0006_history.sql") },
    Migration { version: 7, sql: include_str!("migrations/postgres/0007_whose_and_when.sql") },
];

pub(super) const SQLITE: &[Migration] = &[
    Migration { version: 1, sql: include_str!("migrations/sqlite/0001_start.sql") },
    Migration { version: 2, sql: include_str!("migrations/sqlite/0002_codes.sql") },
    Migration { version: 3, sql: include_str!("migrations/sqlite/0003_notifications.sql") },
    Migration { version: 4, sql: include_str!("migrations/sqlite/0004_requested.sql") },
    Migration { version: 5, sql: include_str!("migrations/sqlite/0005_channels.sql") },
    Migration { version: 6, sql: include_str!("migrations/sqlite/0006_history.sql") },
    Migration { version: 7, sql: include_str!("migrations/sqlite/0007_whose_and_when.sql") },
];

/// What is still to be applied, in order.
///
/// # Errors
/// [`StoreError::Schema`] when the database has a version that this program does not know: a newer one was here.
pub(super) fn pending<'a>(all: &'a [Migration], applied: &Applied) -> Result<Vec<&'a Migration>, StoreError> {
    if let Some(newer) = applied.iter().find(|version| all.iter().all(|known| known.version != **version)) {
        return Err(StoreError::Schema(format!(
            "it has version {newer}, which this version of Pons does not know"
        )));
    }
    Ok(all.iter().filter(|migration| !applied.contains(&migration.version)).collect())
}

/// Refuses a database that lacks something.
pub(super) fn check(all: &[Migration], applied: &Applied) -> Result<(), StoreError> {
    match pending(all, applied)?.first() {
        Some(missing) => {
            Err(StoreError::Schema(format!("version {} is missing: run `pons migrate`", missing.version)))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[Migration] = &[Migration { version: 1, sql: "" }, Migration { version: 2, sql: "" }];

    #[test]
    fn only_what_is_missing_is_applied_and_a_newer_schema_is_refused() {
        let versions = |applied: &[i32]| {
            pending(ALL, &applied.iter().copied().collect())
                .map(|all| all.iter().map(|migration| migration.version).collect::<Vec<_>>())
                .map_err(|error| error.to_string())
        };
        assert_eq!(versions(&[]), Ok(vec![1, 2]));
        assert_eq!(versions(&[1]), Ok(vec![2]));
        assert_eq!(versions(&[1, 2]), Ok(vec![]));
        assert!(versions(&[1, 2, 3]).unwrap_err().contains("version 3"));
        assert!(check(ALL, &Applied::from([1])).is_err());
        assert!(check(ALL, &Applied::from([1, 2])).is_ok());
    }

    #[test]
    fn versions_count_up_from_one() {
        for all in [POSTGRES, SQLITE] {
            for (index, migration) in all.iter().enumerate() {
                assert_eq!(usize::try_from(migration.version), Ok(index + 1));
            }
        }
    }
}
