//! Subscriptions that their owners asked for.

use super::{Postgres, clock};
use crate::store::requested::{COLUMNS, Requested, from_row};
use crate::store::{StoreError, pack};
use uuid::Uuid;

/// How often one of them changed.
pub(super) async fn version(conn: impl sqlx::PgExecutor<'_>) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT version FROM requested_subscriptions").fetch_one(conn).await?)
}

impl Postgres {
    pub(super) async fn read_requested(
        &self,
        known: i64,
    ) -> Result<Option<(i64, Vec<Requested>)>, StoreError> {
        if version(&self.desk).await? == known {
            return Ok(None);
        }
        let mut tx = self.desk.begin().await?;
        // Locked, so that no change comes between the two readings.
        let now = sqlx::query_scalar("SELECT version FROM requested_subscriptions FOR SHARE");
        let now: i64 = now.fetch_one(&mut *tx).await?;
        let sql = format!("SELECT {COLUMNS} FROM requested_subscription ORDER BY id");
        let rows = sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(&mut *tx).await?;
        tx.commit().await?;
        Ok(Some((now, rows.into_iter().map(from_row).collect::<Result<_, _>>()?)))
    }

    pub(super) async fn write_requested(&self, one: &Requested) -> Result<(), StoreError> {
        let mut tx = self.desk.begin().await?;
        // The row of the version is locked first: one change after the other.
        changed(&mut *tx).await?;
        let sql = if one.version == 1 {
            concat!(
                "INSERT INTO requested_subscription (id, owner, version, written, standing, live, error, resource, changed_us)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, ",
                clock!(),
                ")"
            )
        } else {
            concat!(
                "UPDATE requested_subscription SET owner = $2, version = $3, written = $4, standing = $5, live = $6, error = $7,
                 resource = $8, changed_us = ",
                clock!(),
                " WHERE id = $1 AND version = $3 - 1"
            )
        };
        let written = sqlx::query(sql)
            .bind(one.id)
            .bind(&*one.owner)
            .bind(one.version)
            .bind(one.written)
            .bind(one.standing.to_row())
            .bind(one.is_live)
            .bind(pack::text(&one.error))
            .bind(pack::text(&one.resource))
            .execute(&mut *tx)
            .await?;
        if written.rows_affected() == 0 {
            return Err(StoreError::Conflict);
        }
        tx.commit().await?;
        Ok(())
    }

    pub(super) async fn unpark(&self, subscription: &str) -> Result<u64, StoreError> {
        let unparked = sqlx::query(concat!(
            "UPDATE delivery SET state = 0, attempts = 0, changed_us = ",
            clock!(),
            " WHERE subscription = (SELECT id FROM subscription WHERE name = $1) AND held AND state = 5"
        ));
        Ok(unparked.bind(subscription).execute(&self.desk).await?.rows_affected())
    }

    pub(super) async fn forget(&self, id: Uuid, why: &str) -> Result<u64, StoreError> {
        let mut tx = self.desk.begin().await?;
        changed(&mut *tx).await?;
        let left = sqlx::query(concat!(
            "UPDATE delivery SET state = 6, held = NULL, reason = $2, changed_us = ",
            clock!(),
            " WHERE subscription = (SELECT id FROM subscription WHERE name = $1) AND state IN (0, 1, 2, 5)"
        ))
        .bind(id.to_string())
        .bind(why)
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM requested_subscription WHERE id = $1").bind(id).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(left.rows_affected())
    }
}

async fn changed(conn: impl sqlx::PgExecutor<'_>) -> Result<(), StoreError> {
    sqlx::query("UPDATE requested_subscriptions SET version = version + 1").execute(conn).await?;
    Ok(())
}
