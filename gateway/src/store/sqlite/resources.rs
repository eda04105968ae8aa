//! Resources as clients read them: by id, by identifier, of a patient.

use super::Sqlite;
use super::record::{named, stored};
use super::rows::Rows;
use crate::store::{Alias, MadeBy, StoreError, StoredResource, pack, recording};
use schemas::message::MessageId;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

const OF_PATIENT: &str = concat!(
    recording::same!("?1"),
    " SELECT resource.id, resource_type, version, state, resource.replaced_by, message, recorded_us
     FROM same CROSS JOIN resource
     WHERE resource.patient = same.id AND (?2 IS NULL OR resource_type = ?2) AND (?3 IS NULL OR resource.id > ?3) ORDER BY resource.id LIMIT ?4"
);

const MADE: &str = "SELECT revision, recorded_us, made FROM result WHERE message = ?1 AND made IS NOT NULL ORDER BY revision";

impl Sqlite {
    pub(super) async fn read_named(&self, aliases: &[Alias]) -> Result<Vec<Uuid>, StoreError> {
        let mut conn = self.readers.acquire().await?;
        let ids: Vec<Uuid> = aliases.iter().map(recording::alias_id).collect();
        Ok(named(&mut conn, &ids).await?.into_values().collect())
    }

    pub(super) async fn read_held(&self, ids: &[Uuid]) -> Result<Vec<StoredResource>, StoreError> {
        let mut conn = self.readers.acquire().await?;
        let head = "SELECT id, resource_type, version, state, replaced_by, message, recorded_us FROM resource WHERE id IN (";
        let rows = Rows::new(ids).one_each(&mut conn, head, ")", |query, id| query.bind(id)).await?;
        let mut found = rows.iter().map(stored).collect::<Result<Vec<_>, _>>()?;
        found.sort_by_key(|held| held.id);
        found.dedup_by_key(|held| held.id);
        Ok(found)
    }

    pub(super) async fn read_of_patient(
        &self,
        patient: Uuid,
        resource_type: Option<&str>,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<StoredResource>, StoreError> {
        let mut conn = self.readers.acquire().await?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let query = sqlx::query(OF_PATIENT).bind(patient).bind(resource_type).bind(after).bind(limit);
        query.fetch_all(&mut *conn).await?.iter().map(stored).collect()
    }

    pub(super) async fn read_made(&self, message: MessageId) -> Result<Vec<MadeBy>, StoreError> {
        let mut conn = self.readers.acquire().await?;
        let rows = sqlx::query(MADE).bind(message.0).fetch_all(&mut *conn).await?;
        let made = |row: &SqliteRow| {
            Ok(MadeBy {
                revision: row.try_get(0)?,
                recorded_at: pack::time(row.try_get(1)?)?,
                made: pack::made_from(row.try_get(2)?)?,
            })
        };
        rows.iter().map(made).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::record::WITHIN;
    use crate::store::suite::Place;
    use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

    #[tokio::test]
    async fn no_reading_looks_at_every_resource() {
        let place = Place::sqlite();
        place.open().await;
        let Place::Sqlite(folder) = &place else { panic!("it is SQLite") };
        let url = format!("sqlite:{}", folder.path().join("pons.db").display());
        let mut conn = SqliteConnection::connect(&url).await.unwrap();
        for sql in [recording::about!("?1"), recording::about_of!("?1", "?2", "?3"), WITHIN, OF_PATIENT] {
            let plan = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}")));
            let plan: Vec<String> =
                plan.fetch_all(&mut conn).await.unwrap().iter().map(|row| row.get("detail")).collect();
            assert!(plan.iter().any(|step| step.starts_with("SEARCH resource")), "{sql}: {plan:?}");
            assert!(!plan.iter().any(|step| step.starts_with("SCAN resource")), "{sql}: {plan:?}");
        }
    }
}
