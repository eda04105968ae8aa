//! What people ask, and keeping house: search, one message's timeline, requests, the books, retention.

use super::deliver::{delivery_columns, open_delivery};
use super::rows::Rows;
use super::{Sqlite, clock};
use crate::store::recording::beside_from;
use crate::store::{
    Attempt, Books, DeliveryState, DeliveryTimeline, MessageResult, Query, Reopened, Request, Retention,
    StoreError, Summary, Timeline, intake, pack,
};
use jiff::Timestamp;
use schemas::message::{LaneSet, MessageId, Seq};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{QueryBuilder, Row};
use std::collections::{BTreeSet, HashMap, HashSet};
use uuid::Uuid;

/// A message's state in a word, and the columns of [`summary`].
macro_rules! summary_columns {
    () => {
        "m.id, m.seq, m.received_us, m.sender, m.control_id, m.message_type,
         CASE WHEN m.rejected IS NOT NULL THEN 'rejected'
             WHEN EXISTS (SELECT 1 FROM inbox i WHERE i.seq = m.seq) THEN 'received'
             WHEN EXISTS (SELECT 1 FROM quarantine q WHERE q.message = m.id) THEN 'quarantined'
             ELSE 'routed' END"
    };
}

const BOOKS: &str = "
WITH b AS (
    SELECT m.sender, m.rejected IS NOT NULL AS rejected,
        EXISTS (SELECT 1 FROM inbox i WHERE i.seq = m.seq) AS waiting,
        EXISTS (SELECT 1 FROM quarantine q WHERE q.message = m.id) AS quarantined,
        EXISTS (SELECT 1 FROM result r WHERE r.message = m.id) AS routed,
        EXISTS (SELECT 1 FROM delivery d WHERE d.message = m.id AND d.state IN (0, 1, 2, 5)) AS open
    FROM message m
), counted AS (
    SELECT sender, count(*) AS received,
        sum(NOT waiting AND NOT quarantined AND routed AND NOT open) AS routed_final,
        sum(NOT waiting AND NOT quarantined AND routed AND open) AS routed_open,
        sum(NOT rejected AND NOT waiting AND quarantined) AS quarantined,
        sum(rejected) AS rejected, sum(waiting) AS waiting
    FROM b GROUP BY sender
    UNION ALL SELECT sender, routed + rejected, routed, 0, 0, rejected, 0 FROM let_go
)
SELECT sender, sum(received), sum(routed_final), sum(routed_open), sum(quarantined), sum(rejected), sum(waiting)
FROM counted GROUP BY sender ORDER BY sender";

/// How many messages one transaction lets go.
const LET_GO_AT_ONCE: i64 = 500;
/// How many pages are given back to the system at a time.
const PAGES_GIVEN_BACK: &str = "PRAGMA incremental_vacuum(2000)";

impl Sqlite {
    pub(super) async fn find(&self, query: &Query) -> Result<Vec<Summary>, StoreError> {
        let mut conn = self.readers.acquire().await?;
        let mut sql = QueryBuilder::new(concat!("SELECT ", summary_columns!(), " FROM message m WHERE true"));
        if !query.patient_hashes.is_empty() || query.patient.is_some() {
            let mut hashes: BTreeSet<i64> = query.patient_hashes.iter().map(|hash| hash.0).collect();
            if let Some(patient) = &query.patient {
                hashes.insert(pack::value_hash(patient));
                hashes.extend(other_names(&mut conn, patient).await?);
            }
            sql.push(" AND m.seq IN (SELECT seq FROM message_patient WHERE hash IN (");
            let mut list = sql.separated(",");
            for hash in hashes {
                list.push_bind(hash);
            }
            sql.push("))");
        }
        if let Some(control_id) = &query.control_id {
            let senders = sqlx::query("SELECT name FROM sender").fetch_all(&mut *conn).await?;
            sql.push(" AND m.repeat_hash IN (");
            let mut list = sql.separated(",");
            for sender in &senders {
                list.push_bind(pack::repeat_hash(sender.try_get(0)?, control_id));
            }
            sql.push(") AND m.control_id = ").push_bind(pack::text(control_id).into_owned());
        }
        if let Some(message_type) = &query.message_type {
            let prefix = format!("{message_type}^");
            sql.push(" AND (m.message_type = ").push_bind(message_type.clone());
            sql.push(" OR substr(m.message_type, 1, ")
                .push_bind(i64::try_from(prefix.chars().count()).unwrap_or(i64::MAX));
            sql.push(") = ").push_bind(prefix).push(")");
        }
        if let Some(sender) = &query.sender {
            sql.push(" AND m.sender = ").push_bind(sender.clone());
        }
        if let Some(since) = query.since {
            sql.push(" AND m.received_us >= ").push_bind(pack::micros(since));
        }
        if let Some(state) = &query.state {
            match state.as_str() {
                "rejected" => sql.push(" AND m.rejected IS NOT NULL"),
                "received" => sql.push(" AND m.seq IN (SELECT seq FROM inbox)"),
                "quarantined" => {
                    sql.push(" AND m.id IN (SELECT message FROM quarantine) AND m.seq NOT IN (SELECT seq FROM inbox)")
                }
                "routed" => sql.push(
                    " AND m.rejected IS NULL AND m.seq NOT IN (SELECT seq FROM inbox) AND m.id NOT IN (SELECT message FROM quarantine)",
                ),
                word => match pack::state_named(word) {
                    Some(state) => sql
                        .push(" AND EXISTS (SELECT 1 FROM delivery d WHERE d.message = m.id AND d.state = ")
                        .push_bind(pack::state_to(state))
                        .push(")"),
                    None => return Ok(Vec::new()),
                },
            };
        }
        sql.push(" ORDER BY m.id DESC LIMIT ").push_bind(i64::try_from(query.limit).unwrap_or(i64::MAX));
        let rows = sql.build().persistent(false).fetch_all(&mut *conn).await?;
        let mut summaries = rows.iter().map(summary).collect::<Result<Vec<_>, _>>()?;
        let ids: Vec<MessageId> = summaries.iter().map(|summary| summary.id).collect();
        let mut counts = delivery_counts(&mut conn, &ids).await?;
        for summary in &mut summaries {
            summary.deliveries = counts.remove(&summary.id).unwrap_or_default();
        }
        Ok(summaries)
    }

    pub(super) async fn read_timeline(&self, id: MessageId) -> Result<Option<Timeline>, StoreError> {
        let mut tx = self.readers.begin().await?;
        let row = sqlx::query(concat!(
            "SELECT ",
            summary_columns!(),
            ", m.source, m.version, m.bytes, m.reused, m.rejected, m.context FROM message m WHERE m.id = ?"
        ))
        .bind(id.0)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let mut summary = summary(&row)?;
        summary.deliveries = delivery_counts(&mut tx, &[id]).await?.remove(&id).unwrap_or_default();
        let results = sqlx::query(
            "SELECT recorded_us, revision, quarantined, mapping, issues, bundle, beside, made FROM result WHERE message = ? ORDER BY revision",
        )
        .bind(id.0)
        .fetch_all(&mut *tx)
        .await?;
        let result = |row: &SqliteRow| {
            let result = MessageResult {
                seq: summary.seq,
                id,
                revision: pack::count(row.try_get(1)?),
                quarantined: row.try_get(2)?,
                mapping: row.try_get(3)?,
                issues: pack::issues_from(row.try_get(4)?)?,
                bundle: pack::expand(row.try_get(5)?)?,
                beside: beside_from(row.try_get(6)?)?,
                made: row.try_get::<Option<&[u8]>, _>(7)?.map_or(Ok(Vec::new()), pack::made_from)?,
            };
            Ok::<_, StoreError>((pack::time(row.try_get(0)?)?, result))
        };
        let results = results.iter().map(result).collect::<Result<Vec<_>, _>>()?;
        let mut attempts: HashMap<Uuid, Vec<Attempt>> = HashMap::new();
        let tried = sqlx::query(
            "SELECT DISTINCT delivery, number, began_us, took_us, answer FROM attempt WHERE message = ? ORDER BY began_us, number",
        )
        .bind(id.0)
        .fetch_all(&mut *tx)
        .await?;
        for row in &tried {
            attempts.entry(row.try_get(0)?).or_default().push(Attempt {
                number: pack::count(row.try_get(1)?),
                began_at: pack::time(row.try_get(2)?)?,
                took: pack::span_from(row.try_get(3)?),
                answer: row.try_get(4)?,
            });
        }
        let rows = sqlx::query(concat!(
            "SELECT ",
            delivery_columns!(),
            ", ",
            clock!(),
            ", s.name, d.reason, d.changed_us, d.began_us, d.took_us, d.answer
              FROM delivery d JOIN subscription s ON s.id = d.subscription WHERE d.message = ? ORDER BY s.name, d.revision, d.number"
        ))
        .bind(id.0)
        .fetch_all(&mut *tx)
        .await?;
        let mut deliveries = Vec::with_capacity(rows.len());
        for row in &rows {
            let delivery = open_delivery(row)?;
            let mut attempts = attempts.remove(&delivery.id.0).unwrap_or_default();
            if let Some(began) = row.try_get::<Option<i64>, _>(13)? {
                attempts.push(Attempt {
                    number: delivery.attempts,
                    began_at: pack::time(began)?,
                    took: pack::span_from(row.try_get::<Option<i64>, _>(14)?.unwrap_or_default()),
                    answer: row.try_get::<Option<String>, _>(15)?.unwrap_or_default(),
                });
            }
            deliveries.push(DeliveryTimeline {
                delivery,
                subscription: row.try_get(10)?,
                reason: row.try_get(11)?,
                changed_at: pack::time(row.try_get(12)?)?,
                attempts,
            });
        }
        Ok(Some(Timeline {
            summary,
            source: row.try_get(7)?,
            version: row.try_get(8)?,
            bytes: pack::expand(row.try_get(9)?)?,
            context: row.try_get(12)?,
            control_id_reused: row.try_get(10)?,
            rejected: intake::refused_from(row.try_get(11)?)?,
            results,
            deliveries,
        }))
    }

    pub(super) async fn write_requests(&self, who: &str, requests: &[Request]) -> Result<(), StoreError> {
        let rows: Vec<_> = requests.iter().map(pack::request_to).collect();
        let mut tx = self.write().await?;
        let head = "INSERT INTO request (who, kind, message, delivery, why, asked_us) SELECT u.*, clock.now FROM (VALUES ";
        let tail = concat!(") AS u, (SELECT ", clock!(), " AS now) AS clock");
        Rows::new(&rows)
            .tuples(&mut tx.conn, head, 5, tail, |query, row| {
                query
                    .bind(pack::text(who).into_owned())
                    .bind(row.kind)
                    .bind(row.message.0)
                    .bind(row.delivery.map(|delivery| delivery.0))
                    .bind(row.why.as_deref().map(pack::text))
            })
            .await?;
        tx.commit().await
    }

    pub(super) async fn carry_out(&self, limit: usize) -> Result<usize, StoreError> {
        // Mostly there are none: then the writer is left alone.
        let waiting = sqlx::query("SELECT 1 FROM request WHERE done_us IS NULL LIMIT 1")
            .fetch_optional(&self.readers)
            .await?;
        if waiting.is_none() {
            return Ok(0);
        }
        let mut tx = self.write().await?;
        let conn = &mut tx.conn;
        let rows = sqlx::query(
            "SELECT id, kind, message, delivery, who, why FROM request WHERE done_us IS NULL ORDER BY id LIMIT ?",
        )
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *conn)
        .await?;
        let mut carried_out = 0;
        let mut opened: HashSet<MessageId> = HashSet::new();
        for row in &rows {
            let request =
                pack::request_from(row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(5)?)?;
            let done = match request {
                Request::Normalize(message) => match reopen(conn, message).await? {
                    Reopened::Now => {
                        opened.insert(message);
                        true
                    }
                    // It may have been mapped already without what the request is about: it goes again after that.
                    Reopened::IsAgain if !opened.contains(&message) => continue,
                    Reopened::IsAgain | Reopened::Not => false,
                },
                Request::Deliver(delivery, message) => {
                    sqlx::query(concat!(
                        "UPDATE delivery SET state = 0, attempts = 0, changed_us = ",
                        clock!(),
                        " WHERE message = ? AND id = ? AND state = 5"
                    ))
                    .bind(message.0)
                    .bind(delivery.0)
                    .execute(&mut *conn)
                    .await?
                    .rows_affected()
                        > 0
                }
                Request::Skip(delivery, message, why) => {
                    let who: &str = row.try_get(4)?;
                    sqlx::query(concat!(
                        "UPDATE delivery SET state = 6, reason = ?, changed_us = ",
                        clock!(),
                        " WHERE message = ? AND id = ? AND state = 5"
                    ))
                    .bind(format!("{who}: {why}"))
                    .bind(message.0)
                    .bind(delivery.0)
                    .execute(&mut *conn)
                    .await?
                    .rows_affected()
                        > 0
                }
            };
            carried_out += usize::from(done);
            sqlx::query(concat!("UPDATE request SET done = ?, done_us = ", clock!(), " WHERE id = ?"))
                .bind(done)
                .bind(row.try_get::<i64, _>(0)?)
                .execute(&mut *conn)
                .await?;
        }
        tx.commit().await?;
        Ok(carried_out)
    }

    pub(super) async fn count_books(&self) -> Result<Vec<Books>, StoreError> {
        let rows = sqlx::query(BOOKS).fetch_all(&self.readers).await?;
        let books = |row: &SqliteRow| {
            Ok(Books {
                sender: row.try_get(0)?,
                received: row.try_get(1)?,
                routed_final: row.try_get(2)?,
                routed_open: row.try_get(3)?,
                quarantined: row.try_get(4)?,
                rejected: row.try_get(5)?,
                waiting: row.try_get(6)?,
            })
        };
        rows.iter().map(books).collect()
    }

    /// Lets go of every message that is final and older than the days kept, a few at a time, so that intake goes on.
    pub(super) async fn keep_house(&self, retention: &Retention, now: Timestamp) -> Result<u64, StoreError> {
        let Some(days) = retention.days else {
            return Ok(0);
        };
        let now = now.min(Timestamp::now()).as_millisecond();
        let midnight = now - now.rem_euclid(86_400_000) - i64::from(days) * 86_400_000;
        let mut gone = 0;
        loop {
            let count = self.let_go(pack::id_floor(midnight)).await?;
            gone += count;
            if count < LET_GO_AT_ONCE.unsigned_abs() {
                return Ok(gone);
            }
        }
    }

    async fn let_go(&self, below: Uuid) -> Result<u64, StoreError> {
        let mut tx = self.write().await?;
        let conn = &mut tx.conn;
        let rows = sqlx::query(
            "SELECT m.id, m.seq, m.sender, m.rejected IS NOT NULL FROM message m
             WHERE m.id < ? AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.seq = m.seq)
                 AND NOT EXISTS (SELECT 1 FROM quarantine q WHERE q.message = m.id)
                 AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.message = m.id AND d.state IN (0, 1, 2, 5))
                 AND (m.rejected IS NOT NULL OR EXISTS (SELECT 1 FROM result r WHERE r.message = m.id))
             ORDER BY m.id LIMIT ?",
        )
        .bind(below)
        .bind(LET_GO_AT_ONCE)
        .fetch_all(&mut *conn)
        .await?;
        let mut ids: Vec<Uuid> = Vec::with_capacity(rows.len());
        let mut seqs: Vec<i64> = Vec::with_capacity(rows.len());
        let mut counts: HashMap<String, (i64, i64)> = HashMap::new();
        for row in &rows {
            ids.push(row.try_get(0)?);
            seqs.push(row.try_get(1)?);
            let (routed, rejected) = counts.entry(row.try_get(2)?).or_default();
            *(if row.try_get(3)? { rejected } else { routed }) += 1;
        }
        for (table, column) in [
            ("message", "id"),
            ("result", "message"),
            ("delivery", "message"),
            ("attempt", "message"),
            ("unmapped_code", "message"),
        ] {
            let head = format!("DELETE FROM {table} WHERE {column} IN (");
            Rows::new(&ids).one_each(conn, &head, ")", |query, id| query.bind(id)).await?;
        }
        let head = "DELETE FROM message_patient WHERE seq IN (";
        Rows::new(&seqs).one_each(conn, head, ")", |query, seq| query.bind(seq)).await?;
        for (sender, (routed, rejected)) in counts {
            sqlx::query(
                "INSERT INTO let_go (sender, routed, rejected) VALUES (?, ?, ?)
                 ON CONFLICT (sender) DO UPDATE SET routed = routed + excluded.routed, rejected = rejected + excluded.rejected",
            )
            .bind(sender)
            .bind(routed)
            .bind(rejected)
            .execute(&mut *conn)
            .await?;
        }
        sqlx::raw_sql(PAGES_GIVEN_BACK).execute(&mut *conn).await?;
        tx.commit().await?;
        Ok(ids.len() as u64)
    }
}

fn summary(row: &SqliteRow) -> Result<Summary, StoreError> {
    Ok(Summary {
        id: MessageId(row.try_get(0)?),
        seq: Seq(row.try_get(1)?),
        received_at: pack::time(row.try_get(2)?)?,
        sender: row.try_get(3)?,
        control_id: row.try_get(4)?,
        message_type: row.try_get(5)?,
        state: row.try_get(6)?,
        deliveries: Vec::new(),
    })
}

/// The hashes of all identifiers of the patients that one identifier names.
async fn other_names(conn: &mut SqliteConnection, value: &str) -> Result<Vec<i64>, StoreError> {
    let rows = sqlx::query(
        "SELECT DISTINCT other.value_hash FROM alias named JOIN alias other ON other.resource = named.resource
         WHERE named.value_hash = ? AND named.value = ? AND named.resource_type = 'Patient'",
    )
    .bind(pack::value_hash(value))
    .bind(pack::text(value))
    .fetch_all(conn)
    .await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

type Counts = HashMap<MessageId, Vec<(DeliveryState, i64)>>;

async fn delivery_counts(conn: &mut SqliteConnection, ids: &[MessageId]) -> Result<Counts, StoreError> {
    let head = "SELECT message, state, count(*) FROM delivery WHERE message IN (";
    let tail = ") GROUP BY message, state ORDER BY message, state";
    let rows = Rows::new(ids).one_each(conn, head, tail, |query, id| query.bind(id.0)).await?;
    let mut counts = Counts::new();
    for row in &rows {
        let count = (pack::state_from(row.try_get(1)?)?, row.try_get(2)?);
        counts.entry(MessageId(row.try_get(0)?)).or_default().push(count);
    }
    Ok(counts)
}

/// Puts a message back into the inbox at its place. Not one that is there already, and not one that was refused.
async fn reopen(conn: &mut SqliteConnection, message: MessageId) -> Result<Reopened, StoreError> {
    let row = sqlx::query("SELECT seq, keys, bytes FROM message WHERE id = ? AND rejected IS NULL")
        .bind(message.0)
        .fetch_optional(&mut *conn)
        .await?;
    let Some(row) = row else {
        return Ok(Reopened::Not);
    };
    let open: Option<i64> = sqlx::query_scalar("SELECT revision FROM inbox WHERE seq = ?")
        .bind(row.try_get::<i64, _>(0)?)
        .fetch_optional(&mut *conn)
        .await?;
    if let Some(revision) = open {
        return Ok(Reopened::is_open(revision));
    }
    let keys: &[u8] = row.try_get(1)?;
    let lanes = LaneSet::of(&pack::keys_from_bytes(keys)?);
    let size = pack::expand(row.try_get(2)?)?.len();
    let opened = sqlx::query(
        "INSERT OR IGNORE INTO inbox (seq, id, lanes, revision, size, keys)
         SELECT ?1, ?2, ?3, 1 + max(revision), ?4, ?5 FROM result WHERE message = ?2 HAVING count(*) > 0",
    )
    .bind(row.try_get::<i64, _>(0)?)
    .bind(message.0)
    .bind(lanes.0)
    .bind(i64::try_from(size).unwrap_or(i64::MAX))
    .bind(keys)
    .execute(conn)
    .await?;
    Ok(if opened.rows_affected() > 0 { Reopened::Now } else { Reopened::Not })
}
