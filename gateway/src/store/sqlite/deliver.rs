//! Deliveries: what is open, what they carry, what became of them.

use super::rows::Rows;
use super::{Sqlite, clock, hold};
use crate::store::recording::{beside_from, matched_from};
use crate::store::{
    Content, DeadLetter, DeliveryChange, DeliveryState, Lease, OpenDelivery, StoreError, changes, intake,
    pack,
};
use schemas::message::{DeliveryId, MessageId, OrderKey};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use std::collections::HashMap;
use std::time::Duration;
use uuid::Uuid;

/// How much older than its delivery a message may be for [`Store::delivered_lately`](crate::store::Store::delivered_lately).
const A_DAY: Duration = Duration::from_secs(24 * 3600);

/// What open deliveries are read with: the columns of [`open_delivery`].
macro_rules! delivery_columns {
    () => {
        "d.id, d.message, d.revision, d.number, d.key, d.topics, d.state, d.attempts, d.due_us"
    };
}
pub(super) use delivery_columns;

impl Sqlite {
    pub(super) async fn read_open_deliveries(
        &self,
        subscription: &str,
        after: i64,
        limit: usize,
    ) -> Result<Vec<OpenDelivery>, StoreError> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            delivery_columns!(),
            ", ",
            clock!(),
            " FROM delivery d WHERE d.subscription = (SELECT id FROM subscription WHERE name = ?) AND d.number > ?
                AND d.state IN (0, 1, 2) ORDER BY d.number LIMIT ?"
        ))
        .bind(subscription)
        .bind(after)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(open_delivery).collect()
    }

    pub(super) async fn read_parked(
        &self,
        subscription: &str,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let rows = sqlx::query(concat!(
            "SELECT d.number, d.key, max(0, ",
            clock!(),
            " - d.changed_us) FROM delivery d WHERE d.subscription = (SELECT id FROM subscription WHERE name = ?)
                 AND d.state = 5 ORDER BY d.number LIMIT ?"
        ))
        .bind(subscription)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        let letter = |row: &SqliteRow| {
            let (number, key) = (row.try_get(0)?, OrderKey(row.try_get(1)?));
            Ok(DeadLetter { number, key, age: pack::span_from(row.try_get(2)?) })
        };
        rows.iter().map(letter).collect()
    }

    pub(super) async fn read_delivered(
        &self,
        subscription: &str,
        within: Duration,
        after: i64,
        limit: usize,
    ) -> Result<Vec<OpenDelivery>, StoreError> {
        let reach = i64::try_from((within + A_DAY).as_millis()).unwrap_or(i64::MAX);
        let oldest = pack::id_floor(jiff::Timestamp::now().as_millisecond().saturating_sub(reach).max(0));
        let rows = sqlx::query(concat!(
            "SELECT ",
            delivery_columns!(),
            ", ",
            clock!(),
            " FROM delivery d WHERE d.subscription = (SELECT id FROM subscription WHERE name = ?) AND d.number > ?
                 AND d.state = 3 AND d.message >= ? AND d.changed_us >= ",
            clock!(),
            " - ? ORDER BY d.number LIMIT ?"
        ))
        .bind(subscription)
        .bind(after)
        .bind(oldest)
        .bind(pack::span(within))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(open_delivery).collect()
    }

    pub(super) async fn read_events(
        &self,
        subscription: &str,
        after: i64,
        until: i64,
        limit: usize,
    ) -> Result<Vec<OpenDelivery>, StoreError> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            delivery_columns!(),
            ", ",
            clock!(),
            " FROM delivery d WHERE d.subscription = (SELECT id FROM subscription WHERE name = ?) AND d.number > ?
                 AND d.number <= ? AND instr(d.topics, '>') > 0 ORDER BY d.number LIMIT ?"
        ))
        .bind(subscription)
        .bind(after)
        .bind(until)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(open_delivery).collect()
    }

    pub(super) async fn read_last_event(&self, subscription: &str) -> Result<i64, StoreError> {
        let last = sqlx::query_scalar("SELECT last FROM subscription WHERE name = ?").bind(subscription);
        Ok(last.fetch_optional(&self.readers).await?.unwrap_or(0))
    }

    pub(super) async fn read_contents(
        &self,
        of: &[(MessageId, u32)],
    ) -> Result<HashMap<(MessageId, u32), Content>, StoreError> {
        let mut contents = self.recent.contents(of);
        let absent: Vec<&(MessageId, u32)> = of.iter().filter(|of| !contents.contains_key(of)).collect();
        if absent.is_empty() {
            return Ok(contents);
        }
        let mut conn = self.readers.acquire().await?;
        let head = "WITH u (message, revision) AS (VALUES ";
        let tail = ") SELECT r.message, r.revision, r.bundle, m.bytes, m.format, m.sender, m.message_type, m.received_us, r.beside
            FROM u CROSS JOIN result r ON r.message = u.message AND r.revision = u.revision CROSS JOIN message m ON m.id = u.message";
        let rows = Rows::new(&absent)
            .tuples_found(&mut conn, head, 2, tail, |query, (message, revision)| {
                query.bind(message.0).bind(revision)
            })
            .await?;
        for row in &rows {
            let content = Content {
                bundle: pack::expand(row.try_get(2)?)?,
                beside: beside_from(row.try_get(8)?)?,
                original: pack::expand(row.try_get(3)?)?,
                format: intake::format_from(row.try_get(4)?)?,
                sender: row.try_get::<&str, _>(5)?.into(),
                message_type: row.try_get(6)?,
                received_at: pack::time(row.try_get(7)?)?,
            };
            contents.insert((MessageId(row.try_get(0)?), pack::count(row.try_get(1)?)), content);
        }
        Ok(contents)
    }

    pub(super) async fn write_changes(
        &self,
        lease: &Lease,
        changes: Vec<DeliveryChange>,
    ) -> Result<(), StoreError> {
        let (rows, tried) = changes::fold(changes);
        let mut tx = self.write().await?;
        hold(&mut tx.conn, std::slice::from_ref(lease)).await?;
        let head =
            "WITH u (message, id, state, attempts, rest_us, began_us, took_us, answer, reason) AS (VALUES ";
        let tail = concat!(
            ") UPDATE delivery SET state = u.state, attempts = u.attempts, due_us = clock.now + u.rest_us, changed_us = clock.now,
                 began_us = u.began_us, took_us = u.took_us, answer = u.answer, reason = coalesce(u.reason, delivery.reason)
               FROM u, (SELECT ",
            clock!(),
            " AS now) AS clock
               WHERE delivery.message = u.message AND delivery.id = u.id AND delivery.state IN (0, 1, 2)"
        );
        Rows::new(&rows)
            .tuples(&mut tx.conn, head, 9, tail, |query, change| {
                let done = change.attempt.as_ref().filter(|_| change.state == DeliveryState::Delivered);
                query
                    .bind(change.message.0)
                    .bind(change.id.0)
                    .bind(pack::state_to(change.state))
                    .bind(change.attempts)
                    .bind(pack::span(change.rest))
                    .bind(done.map(|done| pack::micros(done.began_at)))
                    .bind(done.map(|done| pack::span(done.took)))
                    .bind(done.map(|done| pack::text(&done.answer)))
                    .bind(change.reason.as_deref().map(pack::text))
            })
            .await?;
        let head = "INSERT INTO attempt (message, delivery, number, began_us, took_us, answer) VALUES ";
        Rows::new(&tried)
            .tuples(&mut tx.conn, head, 6, "", |query, tried| {
                query
                    .bind(tried.message.0)
                    .bind(tried.delivery.0)
                    .bind(tried.attempt.number)
                    .bind(pack::micros(tried.attempt.began_at))
                    .bind(pack::span(tried.attempt.took))
                    .bind(pack::text(&tried.attempt.answer))
            })
            .await?;
        tx.commit().await
    }
}

/// Reads the columns of `delivery_columns` and the clock behind them.
pub(super) fn open_delivery(row: &SqliteRow) -> Result<OpenDelivery, StoreError> {
    let (due, now): (i64, i64) = (row.try_get(8)?, row.try_get(9)?);
    let state = pack::state_from(row.try_get(6)?)?;
    Ok(OpenDelivery {
        id: DeliveryId(row.try_get::<Uuid, _>(0)?),
        message: MessageId(row.try_get(1)?),
        revision: pack::count(row.try_get(2)?),
        number: row.try_get(3)?,
        key: OrderKey(row.try_get(4)?),
        matched: matched_from(row.try_get(5)?),
        state,
        attempts: pack::count(row.try_get(7)?),
        rest: if state == DeliveryState::RetryWait { pack::span_from(due - now) } else { Default::default() },
    })
}
