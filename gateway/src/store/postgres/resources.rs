//! Resources as clients read them: by id, by identifier, of a patient.

use super::Postgres;
use super::record::{named, stored};
use crate::store::{Alias, MadeBy, StoreError, StoredResource, pack, recording};
use schemas::message::MessageId;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

const BY_ID: &str = "SELECT id, resource_type, version, state, replaced_by, message, recorded_us FROM resource WHERE id = ANY($1) ORDER BY id";

const OF_PATIENT: &str = concat!(
    recording::same!("$1"),
    " SELECT resource.id, resource_type, version, state, resource.replaced_by, message, recorded_us
     FROM same CROSS JOIN resource
     WHERE resource.patient = same.id AND ($2::text IS NULL OR resource_type = $2) AND ($3::uuid IS NULL OR resource.id > $3) ORDER BY resource.id LIMIT $4"
);

const MADE: &str = "SELECT revision, recorded_us, made FROM result WHERE message = $1 AND made IS NOT NULL ORDER BY revision";

impl Postgres {
    pub(super) async fn read_named(&self, aliases: &[Alias]) -> Result<Vec<Uuid>, StoreError> {
        let mut conn = self.desk.acquire().await?;
        let found = named(&mut conn, aliases.iter().map(recording::alias_id).collect()).await?;
        Ok(found.into_values().collect())
    }

    pub(super) async fn read_held(&self, ids: &[Uuid]) -> Result<Vec<StoredResource>, StoreError> {
        let rows = sqlx::query(BY_ID).bind(ids).fetch_all(&self.desk).await?;
        rows.iter().map(stored).collect()
    }

    pub(super) async fn read_of_patient(
        &self,
        patient: Uuid,
        resource_type: Option<&str>,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<StoredResource>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let query = sqlx::query(OF_PATIENT).bind(patient).bind(resource_type).bind(after).bind(limit);
        query.fetch_all(&self.desk).await?.iter().map(stored).collect()
    }

    pub(super) async fn read_made(&self, message: MessageId) -> Result<Vec<MadeBy>, StoreError> {
        let rows = sqlx::query(MADE).bind(message.0).fetch_all(&self.desk).await?;
        let made = |row: &PgRow| {
            Ok(MadeBy {
                revision: pack::count(row.try_get(0)?),
                recorded_at: pack::time(row.try_get(1)?)?,
                made: pack::made_from(row.try_get(2)?)?,
            })
        };
        rows.iter().map(made).collect()
    }
}
