//! Subscriptions that their owners asked for.

use super::{Sqlite, clock};
use crate::store::requested::{COLUMNS, Changes, Requested, SocketToken, TOKENS_MAX, from_row};
use crate::store::{StoreError, pack};
use jiff::Timestamp;
use uuid::Uuid;

/// How often one of them changed.
pub(super) async fn version(conn: impl sqlx::SqliteExecutor<'_>) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT version FROM requested_subscriptions").fetch_one(conn).await?)
}

impl Sqlite {
    pub(super) async fn read_requested(&self, known: i64) -> Result<Option<Changes>, StoreError> {
        if version(&self.readers).await? == known {
            return Ok(None);
        }
        let mut tx = self.readers.begin().await?;
        let now = sqlx::query_as("SELECT version, forgotten FROM requested_subscriptions");
        let (version, forgotten): (i64, i64) = now.fetch_one(&mut *tx).await?;
        let is_whole = known < forgotten;
        let since = if is_whole { -1 } else { known };
        let sql = format!("SELECT {COLUMNS} FROM requested_subscription WHERE changed > ? ORDER BY id");
        let rows = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(since).fetch_all(&mut *tx).await?;
        let rows = rows.into_iter().map(from_row).collect::<Result<_, _>>()?;
        Ok(Some(Changes { version, is_whole, rows }))
    }

    pub(super) async fn write_requested(&self, one: &Requested) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let changed = changed(&mut tx.conn).await?;
        let sql = if one.version == 1 {
            concat!(
                "INSERT INTO requested_subscription (id, owner, version, written, standing, live, error, resource, changed, changed_us)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ",
                clock!(),
                ")"
            )
        } else {
            concat!(
                "UPDATE requested_subscription SET owner = ?2, version = ?3, written = ?4, standing = ?5, live = ?6, error = ?7,
                 resource = ?8, changed = ?9, changed_us = ",
                clock!(),
                " WHERE id = ?1 AND version = ?3 - 1"
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
            .bind(changed)
            .execute(&mut tx.conn)
            .await?;
        if written.rows_affected() == 0 {
            return Err(StoreError::Conflict);
        }
        tx.commit().await
    }

    pub(super) async fn take_up_again(&self, subscription: &str) -> Result<u64, StoreError> {
        let mut tx = self.write().await?;
        let mut again = 0;
        // Each by the index that holds its states.
        for states in ["IN (0, 1, 2) AND state = 1", "= 5"] {
            let sql = format!(
                "UPDATE delivery SET state = 0, attempts = CASE WHEN state = 5 THEN 0 ELSE attempts END, changed_us = {}
                 WHERE subscription = (SELECT id FROM subscription WHERE name = ?) AND state {states}",
                clock!()
            );
            let done = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(subscription).execute(&mut tx.conn).await?;
            again += done.rows_affected();
        }
        tx.commit().await?;
        Ok(again)
    }

    pub(super) async fn give_up(
        &self,
        subscription: &str,
        why: &str,
        limit: usize,
    ) -> Result<u64, StoreError> {
        let of = sqlx::query_scalar("SELECT id FROM subscription WHERE name = ?").bind(subscription);
        let Some(of): Option<i64> = of.fetch_optional(&self.readers).await? else { return Ok(0) };
        let mut tx = self.write().await?;
        let mut left = 0;
        // Each by the index that holds its states.
        for states in ["IN (0, 1, 2)", "= 5"] {
            let sql = format!(
                "UPDATE delivery SET state = 6, reason = ?, changed_us = {} WHERE (message, id) IN
                     (SELECT message, id FROM delivery WHERE subscription = ? AND state {states} ORDER BY number LIMIT ?)",
                clock!()
            );
            let given_up = sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(why)
                .bind(of)
                .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                .execute(&mut tx.conn)
                .await?;
            left += given_up.rows_affected();
        }
        tx.commit().await?;
        Ok(left)
    }

    pub(super) async fn forget(&self, id: Uuid) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        sqlx::query("DELETE FROM requested_subscription WHERE id = ?").bind(id).execute(&mut tx.conn).await?;
        sqlx::query("UPDATE requested_subscriptions SET version = version + 1, forgotten = version + 1")
            .execute(&mut tx.conn)
            .await?;
        tx.commit().await
    }

    pub(super) async fn read_unfinished(&self) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT name FROM subscription s WHERE EXISTS
             (SELECT 1 FROM delivery d WHERE d.subscription = s.id AND d.state IN (0, 1, 2))";
        Ok(sqlx::query_scalar(sql).fetch_all(&self.readers).await?)
    }

    pub(super) async fn write_token(&self, token: &SocketToken, now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        sqlx::query(
            "INSERT INTO socket_token (hash, owner, subscriptions, until_us) VALUES (?1, ?2, ?3, ?4)",
        )
        .bind(&token.hash[..])
        .bind(&*token.owner)
        .bind(token.listed())
        .bind(token.until.as_microsecond())
        .execute(&mut tx.conn)
        .await?;
        let sql = "DELETE FROM socket_token WHERE until_us < ?1 OR (owner = ?2 AND hash NOT IN
            (SELECT hash FROM socket_token WHERE owner = ?2 ORDER BY until_us DESC LIMIT ?3))";
        sqlx::query(sql)
            .bind(now.as_microsecond())
            .bind(&*token.owner)
            .bind(TOKENS_MAX)
            .execute(&mut tx.conn)
            .await?;
        tx.commit().await
    }

    pub(super) async fn read_token(&self, hash: &[u8; 32]) -> Result<Option<SocketToken>, StoreError> {
        let sql = "SELECT owner, subscriptions, until_us FROM socket_token WHERE hash = ?1";
        let row = sqlx::query_as(sql).bind(&hash[..]).fetch_optional(&self.readers).await?;
        row.map(|row| SocketToken::from_row(*hash, row)).transpose()
    }
}

/// Counts a change; answers the version that it makes.
async fn changed(conn: impl sqlx::SqliteExecutor<'_>) -> Result<i64, StoreError> {
    let sql = "UPDATE requested_subscriptions SET version = version + 1 RETURNING version";
    Ok(sqlx::query_scalar(sql).fetch_one(conn).await?)
}
