//! Codes that no table translates, and what people have said of them.

use super::{Postgres, clock};
use crate::store::{MessageResult, StoreError, UnmappedSeen, WaitingCode, pack};
use mappings::{SiteCode, SiteCodes};
use sqlx::PgConnection;
use uuid::Uuid;

/// Writes down the codes of messages; those of an earlier revision are no longer waited for.
pub(super) async fn write(
    conn: &mut PgConnection,
    results: &[MessageResult],
    codes: &[WaitingCode],
    version: i64,
) -> Result<(), StoreError> {
    let again: Vec<Uuid> =
        results.iter().filter(|result| result.revision > 0).map(|result| result.id.0).collect();
    if !again.is_empty() {
        sqlx::query("DELETE FROM unmapped_code WHERE message = ANY($1)")
            .bind(again)
            .execute(&mut *conn)
            .await?;
    }
    if codes.is_empty() {
        return Ok(());
    }
    // In one order in every transaction, so that two replicas do not wait for each other in a circle.
    let mut codes: Vec<&WaitingCode> = codes.iter().collect();
    codes.sort_by(|a, b| {
        (&a.sender, &a.table, &a.code, a.message.0).cmp(&(&b.sender, &b.table, &b.code, b.message.0))
    });
    let texts = |text: fn(&WaitingCode) -> &str| {
        codes.iter().map(|code| pack::text(text(code)).into_owned()).collect::<Vec<String>>()
    };
    sqlx::query(
        "INSERT INTO unmapped_code (sender, code_table, code, message)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::uuid[]) ON CONFLICT DO NOTHING",
    )
    .bind(texts(|code| &code.sender))
    .bind(texts(|code| &code.table))
    .bind(texts(|code| &code.code))
    .bind(codes.iter().map(|code| code.message.0).collect::<Vec<_>>())
    .execute(&mut *conn)
    .await?;
    if locked_version(&mut *conn).await? == version {
        return Ok(());
    }
    // Somebody translated a code while these messages were on their way: those that have it go again.
    let mut messages: Vec<Uuid> = codes.iter().map(|code| code.message.0).collect();
    messages.sort_unstable();
    messages.dedup();
    sqlx::query(concat!(
        "INSERT INTO request (asked_us, who, kind, message) SELECT ",
        clock!(),
        ", waiting.who, $1, waiting.message FROM (
            SELECT min(s.who) AS who, u.message FROM unmapped_code u JOIN site_code s USING (sender, code_table, code)
            WHERE u.message = ANY($2) GROUP BY u.message ORDER BY u.message
         ) AS waiting"
    ))
    .bind(pack::NORMALIZE)
    .bind(messages)
    .execute(conn)
    .await?;
    Ok(())
}

/// How often a translation changed; until the transaction ends it does not change again.
async fn locked_version(conn: &mut PgConnection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT version FROM site_codes FOR SHARE").fetch_one(conn).await?)
}

impl Postgres {
    pub(super) async fn list_codes(
        &self,
        sender: Option<&str>,
        table: Option<&str>,
        limit: usize,
    ) -> Result<Vec<UnmappedSeen>, StoreError> {
        // PostgreSQL has no smallest uuid before version 18, but their texts have the same order.
        let rows = sqlx::query_as(
            "SELECT sender, code_table, code, count(*), min(message::text)::uuid, max(message::text)::uuid FROM unmapped_code
             WHERE ($1 IS NULL OR sender = $1) AND ($2 IS NULL OR code_table = $2)
             GROUP BY sender, code_table, code ORDER BY count(*) DESC, sender, code_table, code LIMIT $3",
        )
        .bind(sender)
        .bind(table)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.desk)
        .await?;
        Ok(rows.into_iter().map(pack::unmapped_from).collect())
    }

    pub(super) async fn say_code(&self, who: &str, code: &SiteCode) -> Result<usize, StoreError> {
        let mut tx = self.desk.begin().await?;
        // The row of the version is locked first: one change after the other.
        sqlx::query("UPDATE site_codes SET version = version + 1").execute(&mut *tx).await?;
        sqlx::query(concat!(
            "INSERT INTO site_code AS known (sender, code_table, code, system, target, display, who, said_us)
             VALUES ($1, $2, $3, $4, $5, $6, $7, ",
            clock!(),
            ") ON CONFLICT (sender, code_table, code) DO UPDATE SET system = excluded.system, target = excluded.target,
             display = excluded.display, who = excluded.who, said_us = excluded.said_us"
        ))
        .bind(pack::text(&code.sender))
        .bind(pack::text(&code.table))
        .bind(pack::text(&code.code))
        .bind(pack::text(&code.system))
        .bind(pack::text(&code.target))
        .bind(code.display.as_deref().map(pack::text))
        .bind(pack::text(who))
        .execute(&mut *tx)
        .await?;
        let asked = sqlx::query(concat!(
            "INSERT INTO request (asked_us, who, kind, message) SELECT ",
            clock!(),
            ", $1, $2, waiting.message FROM (
                SELECT message FROM unmapped_code WHERE sender = $3 AND code_table = $4 AND code = $5 ORDER BY message
             ) AS waiting"
        ))
        .bind(pack::text(who))
        .bind(pack::NORMALIZE)
        .bind(pack::text(&code.sender))
        .bind(pack::text(&code.table))
        .bind(pack::text(&code.code))
        .execute(&mut *tx)
        .await?
        .rows_affected();
        tx.commit().await?;
        Ok(usize::try_from(asked).unwrap_or(usize::MAX))
    }

    pub(super) async fn read_codes(&self, known: i64) -> Result<Option<SiteCodes>, StoreError> {
        let now: i64 = sqlx::query_scalar("SELECT version FROM site_codes").fetch_one(&self.desk).await?;
        if now == known {
            return Ok(None);
        }
        let mut tx = self.desk.begin().await?;
        // Locked, so that no change comes between the two readings.
        let now = locked_version(&mut tx).await?;
        let rows = sqlx::query_as("SELECT sender, code_table, code, system, target, display FROM site_code")
            .fetch_all(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Some(SiteCodes::new(now, rows.into_iter().map(pack::site_code_from))))
    }
}
