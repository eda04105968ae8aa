//! Days: their partitions, and letting go of those that are over.
//!
//! Invariant: a day goes only as a whole, once every row of it is final; rows that wait for a person move to the partition
//! of the rest, and what went is added to the books in the same transaction.

use super::{HOUSEKEEPING_LOCK, Postgres, clock};
use crate::store::{Retention, StoreError, pack};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Row};
use uuid::Uuid;

const DAY_MILLIS: i64 = 86_400_000;
/// How many days ahead partitions are made.
const DAYS_AHEAD: i64 = 3;
/// How long dropping a day may wait for the path, which waits behind it meanwhile.
const LOCK_WAIT: &str = "SET LOCAL lock_timeout = '2s'";

/// The tables with days, their columns of the message's id, and how their partitions keep rows.
const TABLES: [(&str, &str, &str); 4] = [
    ("message", "id", "toast_tuple_target = 8160"),
    ("result", "message", "toast_tuple_target = 8160"),
    ("delivery", "message", "fillfactor = 50"),
    ("attempt", "message", "fillfactor = 100"),
];

/// A day, counted from 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Day(i64);

impl Day {
    fn of(millis: i64) -> Self {
        Day(millis.div_euclid(DAY_MILLIS))
    }

    /// As the partitions are called: `d20260131`.
    fn name(self) -> String {
        let start = Timestamp::from_millisecond(self.0 * DAY_MILLIS).unwrap_or_default();
        start.to_zoned(TimeZone::UTC).strftime("d%Y%m%d").to_string()
    }

    fn named(name: &str) -> Option<Self> {
        let date: jiff::civil::Date = name.strip_prefix('d')?.parse().ok()?;
        let start = date.to_zoned(TimeZone::UTC).ok()?.timestamp();
        Some(Day::of(start.as_millisecond()))
    }

    fn bounds(self) -> (Uuid, Uuid) {
        (pack::id_floor(self.0 * DAY_MILLIS), pack::id_floor((self.0 + 1) * DAY_MILLIS))
    }
}

/// Makes the partitions of yesterday, today and the coming days by the database's clock.
pub(super) async fn make_coming(conn: &mut PgConnection) -> Result<(), StoreError> {
    let now = now_millis(conn).await?;
    make(conn, now).await
}

async fn now_millis(conn: &mut PgConnection) -> Result<i64, StoreError> {
    let row = sqlx::query(concat!("SELECT ", clock!(), " / 1000")).fetch_one(conn).await?;
    Ok(row.try_get(0)?)
}

async fn make(conn: &mut PgConnection, now: i64) -> Result<(), StoreError> {
    let there = days(conn).await?;
    let today = Day::of(now);
    for day in (today.0 - 1..=today.0 + DAYS_AHEAD).map(Day) {
        if there.contains(&day) {
            continue;
        }
        let (from, to) = day.bounds();
        // A row of that day may have come before its partition: then it stays in the rest, and so does its day.
        let row = sqlx::query(
            "SELECT EXISTS (SELECT 1 FROM message_rest WHERE id >= $1 AND id < $2) OR EXISTS (SELECT 1 FROM result_rest WHERE
                message >= $1 AND message < $2) OR EXISTS (SELECT 1 FROM delivery_rest WHERE message >= $1 AND message < $2)
                OR EXISTS (SELECT 1 FROM attempt_rest WHERE message >= $1 AND message < $2)",
        )
        .bind(from)
        .bind(to)
        .fetch_one(&mut *conn)
        .await?;
        if row.try_get(0)? {
            continue;
        }
        for (table, _, storage) in TABLES {
            let name = day.name();
            let sql = format!(
                "CREATE TABLE {table}_{name} PARTITION OF {table} FOR VALUES FROM ('{from}') TO ('{to}') WITH ({storage})"
            );
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *conn).await?;
        }
    }
    Ok(())
}

/// The days that have partitions, oldest first.
async fn days(conn: &mut PgConnection) -> Result<Vec<Day>, StoreError> {
    let rows = sqlx::query(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'message'::regclass
         ORDER BY c.relname",
    )
    .fetch_all(conn)
    .await?;
    let mut days = Vec::with_capacity(rows.len());
    for row in &rows {
        let name: &str = row.try_get(0)?;
        days.extend(name.strip_prefix("message_").and_then(Day::named));
    }
    Ok(days)
}

impl Postgres {
    pub(super) async fn keep_house(&self, retention: &Retention, now: Timestamp) -> Result<u64, StoreError> {
        let mut conn = self.desk.acquire().await?;
        let mut tx = conn.begin().await?;
        // One replica does it; the others have nothing to do.
        let row = sqlx::query("SELECT pg_try_advisory_xact_lock($1)")
            .bind(HOUSEKEEPING_LOCK)
            .fetch_one(&mut *tx)
            .await?;
        if !row.try_get::<bool, _>(0)? {
            return Ok(0);
        }
        let now = now.as_millisecond().min(now_millis(&mut tx).await?);
        sqlx::raw_sql(LOCK_WAIT).execute(&mut *tx).await?;
        make(&mut tx, now).await?;
        let there = days(&mut tx).await?;
        tx.commit().await?;

        let names = sqlx::query("SELECT name FROM subscription").fetch_all(&mut *conn).await?;
        for row in &names {
            self.raise_floor(row.try_get(0)?).await?;
        }
        let Some(days) = retention.days else {
            return Ok(0);
        };
        let first_kept = Day(Day::of(now).0 - i64::from(days));
        let mut gone = 0;
        for day in there.into_iter().filter(|day| *day < first_kept) {
            let mut tx = conn.begin().await?;
            sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(HOUSEKEEPING_LOCK).execute(&mut *tx).await?;
            sqlx::raw_sql(LOCK_WAIT).execute(&mut *tx).await?;
            if let Some(count) = let_day_go(&mut tx, day).await? {
                tx.commit().await?;
                gone += count;
            }
        }
        gone += self.let_rest_go(first_kept).await?;
        // The codes of what was let go: nobody can map those messages again.
        sqlx::query(
            "DELETE FROM unmapped_code u WHERE u.message < $1 AND NOT EXISTS (SELECT 1 FROM message m WHERE m.id = u.message)",
        )
        .bind(first_kept.bounds().0)
        .execute(&self.desk)
        .await?;
        Ok(gone)
    }

    /// Rows of the rest that became final after their day had gone, or that never had a day.
    async fn let_rest_go(&self, first_kept: Day) -> Result<u64, StoreError> {
        let mut tx = self.desk.begin().await?;
        let row = sqlx::query(
            "WITH old AS MATERIALIZED (
                 SELECT m.id, m.sender, m.rejected IS NOT NULL AS rejected FROM message_rest m
                 WHERE m.id < $1 AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.id = m.id)
                     AND NOT EXISTS (SELECT 1 FROM quarantine q WHERE q.message = m.id)
                     AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.message = m.id AND d.state IN (0, 1, 2, 5))
                 LIMIT 10000
             ), messages AS (DELETE FROM message_rest USING old WHERE message_rest.id = old.id
             ), results AS (DELETE FROM result_rest USING old WHERE result_rest.message = old.id
             ), deliveries AS (DELETE FROM delivery_rest USING old WHERE delivery_rest.message = old.id
             ), attempts AS (DELETE FROM attempt_rest USING old WHERE attempt_rest.message = old.id
             ), counted AS (
                 INSERT INTO let_go AS l (sender, routed, rejected)
                 SELECT sender, count(*) FILTER (WHERE NOT rejected), count(*) FILTER (WHERE rejected) FROM old GROUP BY sender
                 ON CONFLICT (sender) DO UPDATE SET routed = l.routed + excluded.routed, rejected = l.rejected + excluded.rejected
             )
             SELECT count(*) FROM old",
        )
        .bind(first_kept.bounds().0)
        .fetch_one(&mut *tx)
        .await?;
        let gone: i64 = row.try_get(0)?;
        tx.commit().await?;
        Ok(gone.unsigned_abs())
    }
}

/// Drops a day if every row of it is final or waits for a person; `None` leaves it as it is.
async fn let_day_go(conn: &mut PgConnection, day: Day) -> Result<Option<u64>, StoreError> {
    let (from, to) = day.bounds();
    let name = day.name();
    // Nothing new comes into this day while it is looked at, and no replay opens any of it.
    let lock =
        format!("LOCK TABLE message_{name} IN SHARE MODE; LOCK TABLE request IN SHARE ROW EXCLUSIVE MODE");
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *conn).await?;
    let open = format!(
        "SELECT EXISTS (SELECT 1 FROM inbox WHERE id >= '{from}' AND id < '{to}')
             OR EXISTS (SELECT 1 FROM delivery_{name} WHERE state IN (0, 1, 2))
             OR EXISTS (SELECT 1 FROM message_{name} m WHERE m.rejected IS NULL
                 AND NOT EXISTS (SELECT 1 FROM result_{name} r WHERE r.message = m.id))"
    );
    if sqlx::query(AssertSqlSafe(open)).persistent(false).fetch_one(&mut *conn).await?.try_get(0)? {
        return Ok(None);
    }
    let keep = format!(
        "CREATE TEMPORARY TABLE kept ON COMMIT DROP AS
             SELECT message FROM quarantine WHERE message >= '{from}' AND message < '{to}'
             UNION SELECT message FROM delivery_{name} WHERE state = 5"
    );
    sqlx::raw_sql(AssertSqlSafe(keep)).execute(&mut *conn).await?;
    let count = format!(
        "WITH gone AS (
             SELECT sender, count(*) FILTER (WHERE rejected IS NULL) AS routed, count(*) FILTER (WHERE rejected IS NOT NULL) AS rejected
             FROM message_{name} m WHERE NOT EXISTS (SELECT 1 FROM kept WHERE kept.message = m.id) GROUP BY sender
         ), counted AS (
             INSERT INTO let_go AS l (sender, routed, rejected) SELECT * FROM gone
             ON CONFLICT (sender) DO UPDATE SET routed = l.routed + excluded.routed, rejected = l.rejected + excluded.rejected
         )
         SELECT coalesce(sum(routed + rejected), 0)::bigint FROM gone"
    );
    let gone: i64 =
        sqlx::query(AssertSqlSafe(count)).persistent(false).fetch_one(&mut *conn).await?.try_get(0)?;
    for (table, id, _) in TABLES {
        let drop = format!(
            "ALTER TABLE {table} DETACH PARTITION {table}_{name};
             INSERT INTO {table} SELECT day.* FROM {table}_{name} day JOIN kept ON kept.message = day.{id};
             DROP TABLE {table}_{name}"
        );
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *conn).await?;
    }
    Ok(Some(gone.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_a_name_and_bounds() {
        let day = Day::of(1_769_817_600_000);
        assert_eq!(day.name(), "d20260131");
        assert_eq!(Day::named("d20260131"), Some(day));
        assert_eq!(Day::named("rest"), None);
        let (from, to) = day.bounds();
        assert_eq!(from, pack::id_floor(1_769_817_600_000));
        assert!(from < to && to == Day(day.0 + 1).bounds().0);
    }
}
