//! Deliveries: what is open, what they carry, what became of them.

use super::{Postgres, clock};
use crate::store::recording::{beside_from, matched_from};
use crate::store::{
    Content, DeadLetter, DeliveryChange, DeliveryState, Lease, OpenDelivery, StoreError, changes, intake,
    pack,
};
use schemas::message::{DeliveryId, MessageId, OrderKey};
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// After so many changes the floor below which nothing usual is open is looked for anew.
const FLOOR_EVERY_CHANGES: usize = 4096;

/// How much older than its delivery a message may be for [`Store::delivered_lately`](crate::store::Store::delivered_lately).
const A_DAY: Duration = Duration::from_secs(24 * 3600);

/// What open deliveries are read with: the columns of [`open_delivery`].
macro_rules! delivery_columns {
    () => {
        "d.id, d.message, d.revision, d.number, d.key, d.topics, d.state, d.attempts, d.due_us"
    };
}
pub(super) use delivery_columns;

/// The usual ones lie at or above the floor; the held ones anywhere.
const READ_OPEN: &str = concat!(
    "(SELECT ",
    delivery_columns!(),
    ", ",
    clock!(),
    " FROM delivery d WHERE d.subscription = $1 AND d.number > $2 AND d.number >= $4 AND d.held IS NULL AND d.state IN (0, 1)
       ORDER BY d.number LIMIT $3)
     UNION ALL
     (SELECT ",
    delivery_columns!(),
    ", ",
    clock!(),
    " FROM delivery d WHERE d.subscription = $1 AND d.number > $2 AND d.held AND d.state IN (0, 1, 2)
       ORDER BY d.number LIMIT $3)
     ORDER BY number LIMIT $3"
);

/// Nothing is written unless the lease is still held; its row stays locked until the commit.
const CHANGE: &str = concat!(
    "WITH lease_held AS MATERIALIZED (
         SELECT 1 FROM lease WHERE name = $1 AND fence = $2 FOR SHARE
     ), changed AS (
         UPDATE delivery d SET
             state = u.state, attempts = u.attempts, due_us = clock.now + u.rest_us, changed_us = clock.now,
             held = CASE WHEN u.state IN (2, 5) THEN true WHEN u.state IN (3, 4, 6) THEN NULL ELSE d.held END,
             began_us = u.began_us, took_us = u.took_us, answer = u.answer, reason = coalesce(u.reason, d.reason)
         FROM lease_held, (SELECT ",
    clock!(),
    " AS now) AS clock,
             unnest($3::uuid[], $4::uuid[], $5::smallint[], $6::integer[], $7::bigint[], $8::bigint[], $9::bigint[], $10::text[], $11::text[])
             AS u(message, id, state, attempts, rest_us, began_us, took_us, answer, reason)
         WHERE d.message = u.message AND d.id = u.id AND d.state IN (0, 1, 2)
     ), tried AS (
         INSERT INTO attempt (message, delivery, number, began_us, took_us, answer)
         SELECT u.* FROM lease_held,
             unnest($12::uuid[], $13::uuid[], $14::integer[], $15::bigint[], $16::bigint[], $17::text[])
             AS u(message, delivery, number, began_us, took_us, answer)
     )
     SELECT count(*) FROM lease_held"
);

const READ_CONTENTS: &str = "
SELECT r.message, r.revision, r.bundle, m.bytes, m.format, m.sender, m.message_type, m.received_us, r.beside
FROM unnest($1::uuid[], $2::integer[]) AS u(message, revision)
JOIN result r ON r.message = u.message AND r.revision = u.revision
JOIN message m ON m.id = u.message";

/// What is known of each subscription.
#[derive(Default)]
pub(super) struct Subscriptions(Mutex<HashMap<String, Known>>);

#[derive(Clone, Copy)]
struct Known {
    id: i32,
    floor: i64,
    changes: usize,
}

impl Postgres {
    pub(super) async fn read_open_deliveries(
        &self,
        subscription: &str,
        after: i64,
        limit: usize,
    ) -> Result<Vec<OpenDelivery>, StoreError> {
        let Some(known) = self.subscription(subscription).await? else {
            return Ok(Vec::new());
        };
        let rows = sqlx::query(READ_OPEN)
            .bind(known.id)
            .bind(after)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .bind(known.floor)
            .fetch_all(&self.path)
            .await?;
        rows.iter().map(open_delivery).collect()
    }

    pub(super) async fn read_parked(
        &self,
        subscription: &str,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let rows = sqlx::query(concat!(
            "SELECT d.number, d.key, greatest(0, ",
            clock!(),
            " - d.changed_us) FROM delivery d WHERE d.subscription = (SELECT id FROM subscription WHERE name = $1)
                 AND d.held AND d.state = 5 ORDER BY d.number LIMIT $2"
        ))
        .bind(subscription)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.path)
        .await?;
        let letter = |row: &PgRow| {
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
            " FROM delivery d WHERE d.subscription = (SELECT id FROM subscription WHERE name = $1) AND d.number > $2
                 AND d.state = 3 AND d.message >= $3 AND d.changed_us >= ",
            clock!(),
            " - $4 ORDER BY d.number LIMIT $5"
        ))
        .bind(subscription)
        .bind(after)
        .bind(oldest)
        .bind(pack::span(within))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.path)
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
            " FROM delivery d WHERE d.subscription = (SELECT id FROM subscription WHERE name = $1) AND d.number > $2
                 AND d.number <= $3 AND strpos(d.topics, '>') > 0 ORDER BY d.number LIMIT $4"
        ))
        .bind(subscription)
        .bind(after)
        .bind(until)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.path)
        .await?;
        rows.iter().map(open_delivery).collect()
    }

    pub(super) async fn read_last_event(&self, subscription: &str) -> Result<i64, StoreError> {
        let last = sqlx::query_scalar("SELECT last FROM subscription WHERE name = $1").bind(subscription);
        Ok(last.fetch_optional(&self.path).await?.unwrap_or(0))
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
        let rows = sqlx::query(READ_CONTENTS)
            .bind(absent.iter().map(|(message, _)| message.0).collect::<Vec<_>>())
            .bind(absent.iter().map(|(_, revision)| pack::count_to(*revision)).collect::<Vec<_>>())
            .fetch_all(&self.path)
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
        let each = || rows.iter();
        let of_attempt = |change: &DeliveryChange| {
            change.attempt.as_ref().filter(|_| change.state == DeliveryState::Delivered).cloned()
        };
        let done: Vec<_> = each().map(of_attempt).collect();
        let row = sqlx::query(CHANGE)
            .bind(&lease.name)
            .bind(lease.fence)
            .bind(each().map(|change| change.message.0).collect::<Vec<_>>())
            .bind(each().map(|change| change.id.0).collect::<Vec<_>>())
            .bind(each().map(|change| pack::state_to(change.state)).collect::<Vec<_>>())
            .bind(each().map(|change| pack::count_to(change.attempts)).collect::<Vec<_>>())
            .bind(each().map(|change| pack::span(change.rest)).collect::<Vec<_>>())
            .bind(
                done.iter()
                    .map(|done| done.as_ref().map(|done| pack::micros(done.began_at)))
                    .collect::<Vec<_>>(),
            )
            .bind(done.iter().map(|done| done.as_ref().map(|done| pack::span(done.took))).collect::<Vec<_>>())
            .bind(
                done.iter()
                    .map(|done| done.as_ref().map(|done| pack::text(&done.answer)))
                    .collect::<Vec<_>>(),
            )
            .bind(each().map(|change| change.reason.as_deref().map(pack::text)).collect::<Vec<_>>())
            .bind(tried.iter().map(|tried| tried.message.0).collect::<Vec<_>>())
            .bind(tried.iter().map(|tried| tried.delivery.0).collect::<Vec<_>>())
            .bind(tried.iter().map(|tried| pack::count_to(tried.attempt.number)).collect::<Vec<_>>())
            .bind(tried.iter().map(|tried| pack::micros(tried.attempt.began_at)).collect::<Vec<_>>())
            .bind(tried.iter().map(|tried| pack::span(tried.attempt.took)).collect::<Vec<_>>())
            .bind(tried.iter().map(|tried| pack::text(&tried.attempt.answer)).collect::<Vec<_>>())
            .fetch_one(&self.path)
            .await?;
        let held: i64 = row.try_get(0)?;
        if held == 0 {
            return Err(StoreError::Fenced);
        }
        if let Some(subscription) = lease.name.strip_prefix("subscription:")
            && self.subscriptions.changed(subscription, rows.len())
        {
            self.raise_floor(subscription).await?;
        }
        Ok(())
    }

    pub(super) async fn unpublish(&self) -> Result<u64, StoreError> {
        let usual = sqlx::query(
            "UPDATE delivery d SET state = 0 FROM subscription s
             WHERE d.subscription = s.id AND d.number >= s.floor AND d.state = 1 AND d.held IS NULL",
        )
        .execute(&self.path)
        .await?;
        let held = sqlx::query(
            "UPDATE delivery d SET state = 0 FROM subscription s WHERE d.subscription = s.id AND d.state = 1 AND d.held",
        )
        .execute(&self.path)
        .await?;
        Ok(usual.rows_affected() + held.rows_affected())
    }

    /// Moves a subscription's floor up to its lowest usual open delivery. The numbers are read in one snapshot, so
    /// that none can appear below the new floor.
    pub(super) async fn raise_floor(&self, subscription: &str) -> Result<(), StoreError> {
        let row = sqlx::query(
            "UPDATE subscription s SET floor = greatest(s.floor, seen.floor)
             FROM (SELECT id, coalesce(
                       (SELECT d.number FROM delivery d WHERE d.subscription = t.id AND d.number >= t.floor
                            AND d.held IS NULL AND d.state IN (0, 1) ORDER BY d.number LIMIT 1),
                       t.last + 1) AS floor
                   FROM subscription t WHERE t.name = $1 OFFSET 0) AS seen
             WHERE s.id = seen.id RETURNING s.floor",
        )
        .bind(subscription)
        .fetch_optional(&self.path)
        .await?;
        if let Some(row) = row {
            self.subscriptions.raised(subscription, row.try_get(0)?);
        }
        Ok(())
    }

    async fn subscription(&self, name: &str) -> Result<Option<Known>, StoreError> {
        if let Some(known) = self.subscriptions.get(name) {
            return Ok(Some(known));
        }
        let row = sqlx::query("SELECT id, floor FROM subscription WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.path)
            .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let known = Known { id: row.try_get(0)?, floor: row.try_get(1)?, changes: 0 };
        self.subscriptions.put(name, known);
        Ok(Some(known))
    }
}

impl Subscriptions {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<String, Known>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn get(&self, name: &str) -> Option<Known> {
        self.with(|all| all.get(name).copied())
    }

    fn put(&self, name: &str, known: Known) {
        self.with(|all| all.insert(name.to_owned(), known));
    }

    /// Counts changes; says when it is time to look for the floor.
    fn changed(&self, name: &str, changes: usize) -> bool {
        self.with(|all| {
            all.get_mut(name).is_some_and(|known| {
                known.changes += changes;
                known.changes >= FLOOR_EVERY_CHANGES
            })
        })
    }

    fn raised(&self, name: &str, floor: i64) {
        self.with(|all| {
            if let Some(known) = all.get_mut(name) {
                *known = Known { floor: known.floor.max(floor), changes: 0, ..*known };
            }
        });
    }
}

/// Reads the columns of `delivery_columns` and the clock behind them.
pub(super) fn open_delivery(row: &PgRow) -> Result<OpenDelivery, StoreError> {
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
