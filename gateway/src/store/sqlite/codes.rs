//! Codes that no table translates, and what people have said of them.

use super::rows::Rows;
use super::{Sqlite, clock};
use crate::store::{MessageResult, StoreError, UnmappedSeen, WaitingCode, pack};
use mappings::{SiteCode, SiteCodes};
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

/// Writes down the codes of messages; those of an earlier revision are no longer waited for.
pub(super) async fn write(
    conn: &mut SqliteConnection,
    results: &[MessageResult],
    codes: &[WaitingCode],
    version: i64,
) -> Result<(), StoreError> {
    let again: Vec<&MessageResult> = results.iter().filter(|result| result.revision > 0).collect();
    Rows::new(&again)
        .one_each(conn, "DELETE FROM unmapped_code WHERE message IN (", ")", |query, result| {
            query.bind(result.id.0)
        })
        .await?;
    let head = "INSERT OR IGNORE INTO unmapped_code (sender, code_table, code, message) VALUES ";
    Rows::new(codes)
        .tuples(conn, head, 4, "", |query, code| {
            query
                .bind(pack::text(&code.sender))
                .bind(pack::text(&code.table))
                .bind(pack::text(&code.code))
                .bind(code.message.0)
        })
        .await?;
    if codes.is_empty() || now_at(&mut *conn).await? == version {
        return Ok(());
    }
    // Somebody translated a code while these messages were on their way: those that have it go again.
    let again = concat!(
        "INSERT INTO request (who, kind, message, delivery, why, asked_us)
         SELECT min(s.who), ?, u.message, NULL, NULL, ",
        clock!(),
        " FROM unmapped_code u JOIN site_code s USING (sender, code_table, code)
          WHERE u.message = ? GROUP BY u.message"
    );
    let mut messages: Vec<Uuid> = codes.iter().map(|code| code.message.0).collect();
    messages.dedup();
    for message in messages {
        sqlx::query(again).bind(pack::NORMALIZE).bind(message).execute(&mut *conn).await?;
    }
    Ok(())
}

/// How often a translation changed.
async fn now_at(conn: impl sqlx::SqliteExecutor<'_>) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT version FROM site_codes").fetch_one(conn).await?)
}

impl Sqlite {
    pub(super) async fn list_codes(
        &self,
        sender: Option<&str>,
        table: Option<&str>,
        limit: usize,
    ) -> Result<Vec<UnmappedSeen>, StoreError> {
        let rows = sqlx::query_as(
            "SELECT sender, code_table, code, count(*), min(message), max(message) FROM unmapped_code
             WHERE (?1 IS NULL OR sender = ?1) AND (?2 IS NULL OR code_table = ?2)
             GROUP BY sender, code_table, code ORDER BY count(*) DESC, sender, code_table, code LIMIT ?3",
        )
        .bind(sender)
        .bind(table)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().map(pack::unmapped_from).collect())
    }

    pub(super) async fn say_code(&self, who: &str, code: &SiteCode) -> Result<usize, StoreError> {
        let mut tx = self.write().await?;
        let conn = &mut tx.conn;
        sqlx::query(concat!(
            "INSERT OR REPLACE INTO site_code (sender, code_table, code, system, target, display, who, said_us)
             VALUES (?, ?, ?, ?, ?, ?, ?, ",
            clock!(),
            ")"
        ))
        .bind(pack::text(&code.sender))
        .bind(pack::text(&code.table))
        .bind(pack::text(&code.code))
        .bind(pack::text(&code.system))
        .bind(pack::text(&code.target))
        .bind(code.display.as_deref().map(pack::text))
        .bind(pack::text(who))
        .execute(&mut *conn)
        .await?;
        sqlx::query("UPDATE site_codes SET version = version + 1").execute(&mut *conn).await?;
        let asked = sqlx::query(concat!(
            "INSERT INTO request (who, kind, message, delivery, why, asked_us)
             SELECT ?, ?, message, NULL, NULL, ",
            clock!(),
            " FROM unmapped_code WHERE sender = ? AND code_table = ? AND code = ? ORDER BY message"
        ))
        .bind(pack::text(who))
        .bind(pack::NORMALIZE)
        .bind(pack::text(&code.sender))
        .bind(pack::text(&code.table))
        .bind(pack::text(&code.code))
        .execute(&mut *conn)
        .await?
        .rows_affected();
        tx.commit().await?;
        Ok(usize::try_from(asked).unwrap_or(usize::MAX))
    }

    pub(super) async fn read_codes(&self, known: i64) -> Result<Option<SiteCodes>, StoreError> {
        if now_at(&self.readers).await? == known {
            return Ok(None);
        }
        let mut tx = self.readers.begin().await?;
        let now = now_at(&mut *tx).await?;
        let rows = sqlx::query_as("SELECT sender, code_table, code, system, target, display FROM site_code")
            .fetch_all(&mut *tx)
            .await?;
        Ok(Some(SiteCodes::new(now, rows.into_iter().map(pack::site_code_from))))
    }
}
