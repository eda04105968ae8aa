//! What people ask: search, one message's timeline, requests, the books, the room left.

use super::deliver::{delivery_columns, open_delivery};
use super::{Postgres, REQUESTS_LOCK, clock};
use crate::store::recording::beside_from;
use crate::store::{
    Attempt, Books, DeliveryState, DeliveryTimeline, MessageResult, Query, Reopened, Request, StoreError,
    Summary, Timeline, intake, pack,
};
use schemas::message::{LaneSet, MessageId, Seq};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{QueryBuilder, Row};
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// A message's state in a word, and the columns of [`summary`].
const SUMMARY: &str = "
SELECT m.id, m.seq, m.received_us, m.sender, m.control_id, m.message_type,
    CASE WHEN m.rejected IS NOT NULL THEN 'rejected'
        WHEN EXISTS (SELECT 1 FROM inbox i WHERE i.seq = m.seq) THEN 'received'
        WHEN EXISTS (SELECT 1 FROM quarantine q WHERE q.message = m.id) THEN 'quarantined'
        ELSE 'routed' END
FROM message m WHERE true";

const MESSAGE: &str = "
SELECT m.id, m.seq, m.received_us, m.sender, m.control_id, m.message_type,
    CASE WHEN m.rejected IS NOT NULL THEN 'rejected'
        WHEN EXISTS (SELECT 1 FROM inbox i WHERE i.seq = m.seq) THEN 'received'
        WHEN EXISTS (SELECT 1 FROM quarantine q WHERE q.message = m.id) THEN 'quarantined'
        ELSE 'routed' END,
    m.source, m.version, m.bytes, m.reused, m.rejected, m.context
FROM message m WHERE m.id = $1";

const BOOKS: &str = "
SELECT coalesce(b.sender, l.sender),
    coalesce(b.received, 0) + coalesce(l.routed, 0) + coalesce(l.rejected, 0), coalesce(b.routed_final, 0) + coalesce(l.routed, 0),
    coalesce(b.routed_open, 0), coalesce(b.quarantined, 0), coalesce(b.rejected, 0) + coalesce(l.rejected, 0), coalesce(b.waiting, 0)
FROM (
    SELECT m.sender, count(*) AS received,
        count(*) FILTER (WHERE m.rejected IS NOT NULL) AS rejected,
        count(*) FILTER (WHERE i.id IS NOT NULL) AS waiting,
        count(*) FILTER (WHERE m.rejected IS NULL AND i.id IS NULL AND q.message IS NOT NULL) AS quarantined,
        count(*) FILTER (WHERE i.id IS NULL AND q.message IS NULL AND r.message IS NOT NULL AND d.message IS NOT NULL) AS routed_open,
        count(*) FILTER (WHERE i.id IS NULL AND q.message IS NULL AND r.message IS NOT NULL AND d.message IS NULL) AS routed_final
    FROM message m
    LEFT JOIN (SELECT DISTINCT id FROM inbox) i ON i.id = m.id
    LEFT JOIN (SELECT DISTINCT message FROM quarantine) q ON q.message = m.id
    LEFT JOIN (SELECT DISTINCT message FROM result) r ON r.message = m.id
    LEFT JOIN (SELECT DISTINCT message FROM delivery WHERE state IN (0, 1, 2, 5)) d ON d.message = m.id
    GROUP BY m.sender
) AS b FULL JOIN let_go l ON l.sender = b.sender
ORDER BY 1";

impl Postgres {
    pub(super) async fn find(&self, query: &Query) -> Result<Vec<Summary>, StoreError> {
        let mut conn = self.desk.acquire().await?;
        let mut sql = QueryBuilder::new(SUMMARY);
        let mut hashes: Vec<i64> = query.patient_hashes.iter().map(|hash| hash.0).collect();
        if let Some(patient) = &query.patient {
            hashes.push(pack::value_hash(patient));
            hashes.extend(other_names(&mut conn, patient).await?);
        }
        if !query.patient_hashes.is_empty() || query.patient.is_some() {
            sql.push(" AND m.patient_hashes && ").push_bind(hashes);
        }
        if let Some(control_id) = &query.control_id {
            let senders = sqlx::query("SELECT name FROM sender").fetch_all(&mut *conn).await?;
            let mut repeat_hashes = Vec::with_capacity(senders.len());
            for sender in &senders {
                repeat_hashes.extend(pack::repeat_hash(sender.try_get(0)?, control_id));
            }
            sql.push(" AND m.repeat_hash = ANY(").push_bind(repeat_hashes).push(")");
            sql.push(" AND m.control_id = ").push_bind(pack::text(control_id).into_owned());
        }
        if let Some(message_type) = &query.message_type {
            sql.push(" AND (m.message_type = ").push_bind(message_type.clone());
            sql.push(" OR starts_with(m.message_type, ").push_bind(format!("{message_type}^")).push("))");
        }
        if let Some(sender) = &query.sender {
            sql.push(" AND m.sender = ").push_bind(sender.clone());
        }
        if let Some(since) = query.since {
            // The time in an id is about that of receiving: a day's margin, so that only whole days are left out.
            sql.push(" AND m.received_us >= ").push_bind(pack::micros(since));
            sql.push(" AND m.id >= ").push_bind(pack::id_floor(since.as_millisecond() - 86_400_000));
        }
        if let Some(state) = &query.state {
            match state.as_str() {
                "rejected" => sql.push(" AND m.rejected IS NOT NULL"),
                "received" => sql.push(" AND m.id IN (SELECT id FROM inbox)"),
                "quarantined" => {
                    sql.push(" AND m.id IN (SELECT message FROM quarantine) AND m.id NOT IN (SELECT id FROM inbox)")
                }
                "routed" => sql.push(
                    " AND m.rejected IS NULL AND m.id NOT IN (SELECT id FROM inbox) AND m.id NOT IN (SELECT message FROM quarantine)",
                ),
                word => match pack::state_named(word) {
                    Some(state @ (DeliveryState::Parked | DeliveryState::RetryWait)) => sql
                        .push(" AND m.id IN (SELECT message FROM delivery WHERE held AND state = ")
                        .push_bind(pack::state_to(state))
                        .push(")"),
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
        let ids = summaries.iter().map(|summary| summary.id.0).collect();
        let mut counts = delivery_counts(&mut conn, ids).await?;
        for summary in &mut summaries {
            summary.deliveries = counts.remove(&summary.id).unwrap_or_default();
        }
        Ok(summaries)
    }

    pub(super) async fn read_timeline(&self, id: MessageId) -> Result<Option<Timeline>, StoreError> {
        let mut tx = self.desk.begin().await?;
        let Some(row) = sqlx::query(MESSAGE).bind(id.0).fetch_optional(&mut *tx).await? else {
            return Ok(None);
        };
        let mut summary = summary(&row)?;
        summary.deliveries = delivery_counts(&mut tx, vec![id.0]).await?.remove(&id).unwrap_or_default();
        let results = sqlx::query(
            "SELECT recorded_us, revision, quarantined, mapping, issues, bundle, beside, made FROM result WHERE message = $1 ORDER BY revision",
        )
        .bind(id.0)
        .fetch_all(&mut *tx)
        .await?;
        let result = |row: &PgRow| {
            let issues: Option<&str> = row.try_get(4)?;
            let result = MessageResult {
                seq: summary.seq,
                id,
                revision: pack::count(row.try_get(1)?),
                quarantined: row.try_get(2)?,
                mapping: row.try_get(3)?,
                issues: pack::issues_from(issues)?,
                bundle: pack::expand(row.try_get(5)?)?,
                beside: beside_from(row.try_get(6)?)?,
                made: row.try_get::<Option<&[u8]>, _>(7)?.map_or(Ok(Vec::new()), pack::made_from)?,
            };
            Ok::<_, StoreError>((pack::time(row.try_get(0)?)?, result))
        };
        let results = results.iter().map(result).collect::<Result<Vec<_>, _>>()?;
        let mut attempts: HashMap<Uuid, Vec<Attempt>> = HashMap::new();
        let tried = sqlx::query(
            "SELECT DISTINCT delivery, number, began_us, took_us, answer FROM attempt WHERE message = $1 ORDER BY began_us, number",
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
              FROM delivery d JOIN subscription s ON s.id = d.subscription WHERE d.message = $1 ORDER BY s.name, d.revision, d.number"
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
        sqlx::query(concat!(
            "INSERT INTO request (asked_us, who, kind, message, delivery, why) SELECT ",
            clock!(),
            ", $1, u.* FROM unnest($2::smallint[], $3::uuid[], $4::uuid[], $5::text[]) AS u"
        ))
        .bind(pack::text(who))
        .bind(rows.iter().map(|row| row.kind).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.message.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.delivery.map(|delivery| delivery.0)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.why.as_deref().map(pack::text)).collect::<Vec<_>>())
        .execute(&self.desk)
        .await?;
        Ok(())
    }

    pub(super) async fn carry_out(&self, limit: usize) -> Result<usize, StoreError> {
        let mut tx = self.desk.begin().await?;
        // One replica at a time, so that they are carried out in their order.
        let alone: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)")
            .bind(REQUESTS_LOCK)
            .fetch_one(&mut *tx)
            .await?;
        if !alone {
            return Ok(0);
        }
        let rows = sqlx::query(
            "SELECT id, kind, message, delivery, who, why FROM request WHERE done_us IS NULL ORDER BY id LIMIT $1
             FOR UPDATE",
        )
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *tx)
        .await?;
        let mut carried_out = 0;
        let mut opened: HashSet<MessageId> = HashSet::new();
        for row in &rows {
            let request =
                pack::request_from(row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(5)?)?;
            let done = match request {
                Request::Normalize(message) => match reopen(&mut tx, message).await? {
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
                        " WHERE message = $1 AND id = $2 AND state = 5"
                    ))
                    .bind(message.0)
                    .bind(delivery.0)
                    .execute(&mut *tx)
                    .await?
                    .rows_affected()
                        > 0
                }
                Request::Skip(delivery, message, why) => {
                    let who: &str = row.try_get(4)?;
                    sqlx::query(concat!(
                        "UPDATE delivery SET state = 6, held = NULL, reason = $3, changed_us = ",
                        clock!(),
                        " WHERE message = $1 AND id = $2 AND state = 5"
                    ))
                    .bind(message.0)
                    .bind(delivery.0)
                    .bind(pack::text(&format!("{who}: {why}")))
                    .execute(&mut *tx)
                    .await?
                    .rows_affected()
                        > 0
                }
            };
            carried_out += usize::from(done);
            sqlx::query(concat!("UPDATE request SET done = $2, done_us = ", clock!(), " WHERE id = $1"))
                .bind(row.try_get::<i64, _>(0)?)
                .bind(done)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(carried_out)
    }

    pub(super) async fn count_books(&self) -> Result<Vec<Books>, StoreError> {
        let rows = sqlx::query(BOOKS).fetch_all(&self.desk).await?;
        let books = |row: &PgRow| {
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

    /// Only a server on this machine, whose folder it may tell us, has a disk that we can look at.
    pub(super) async fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        let local = self.plain.get_socket().is_some()
            || matches!(self.plain.get_host(), "localhost" | "127.0.0.1" | "::1")
            || self.plain.get_host().starts_with('/');
        if !local {
            return Ok(None);
        }
        let row = sqlx::query("SELECT setting FROM pg_settings WHERE name = 'data_directory'")
            .fetch_optional(&self.desk)
            .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let folder: String = row.try_get(0)?;
        Ok(pack::free_bytes(folder.as_ref()))
    }
}

fn summary(row: &PgRow) -> Result<Summary, StoreError> {
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
async fn other_names(conn: &mut PgConnection, value: &str) -> Result<HashSet<i64>, StoreError> {
    let rows = sqlx::query(
        "SELECT DISTINCT other.value_hash FROM alias named JOIN alias other ON other.resource = named.resource
         WHERE named.value_hash = $1 AND named.value = $2 AND named.resource_type = 'Patient'",
    )
    .bind(pack::value_hash(value))
    .bind(pack::text(value))
    .fetch_all(conn)
    .await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

type Counts = HashMap<MessageId, Vec<(DeliveryState, i64)>>;

async fn delivery_counts(conn: &mut PgConnection, ids: Vec<Uuid>) -> Result<Counts, StoreError> {
    let rows = sqlx::query(
        "SELECT message, state, count(*) FROM delivery WHERE message = ANY($1) GROUP BY message, state ORDER BY message, state",
    )
    .bind(ids)
    .fetch_all(conn)
    .await?;
    let mut counts = Counts::new();
    for row in &rows {
        let count = (pack::state_from(row.try_get(1)?)?, row.try_get(2)?);
        counts.entry(MessageId(row.try_get(0)?)).or_default().push(count);
    }
    Ok(counts)
}

/// Puts a message back into the inbox at its place. Not one that is there already, and not one that was refused.
async fn reopen(conn: &mut PgConnection, message: MessageId) -> Result<Reopened, StoreError> {
    let row = sqlx::query("SELECT seq, keys, bytes FROM message WHERE id = $1 AND rejected IS NULL")
        .bind(message.0)
        .fetch_optional(&mut *conn)
        .await?;
    let Some(row) = row else {
        return Ok(Reopened::Not);
    };
    // Where its result is being recorded at this moment this waits for the end of that, so that the next statement sees which
    // revision is the next.
    let open: Option<i32> = sqlx::query_scalar("SELECT revision FROM inbox WHERE seq = $1 FOR UPDATE")
        .bind(row.try_get::<i64, _>(0)?)
        .fetch_optional(&mut *conn)
        .await?;
    if let Some(revision) = open {
        return Ok(Reopened::is_open(revision.into()));
    }
    let keys: &[u8] = row.try_get(1)?;
    let lanes = LaneSet::of(&pack::keys_from_bytes(keys)?);
    let size = pack::expand(row.try_get(2)?)?.len();
    let opened = sqlx::query(
        "INSERT INTO inbox (seq, id, lanes, revision, size, keys)
         SELECT $1, $2, $3, 1 + (SELECT max(revision) FROM result WHERE message = $2), $4, $5
         WHERE EXISTS (SELECT 1 FROM result WHERE message = $2) ON CONFLICT DO NOTHING",
    )
    .bind(row.try_get::<i64, _>(0)?)
    .bind(message.0)
    .bind(lanes.0)
    .bind(i32::try_from(size).unwrap_or(i32::MAX))
    .bind(keys)
    .execute(conn)
    .await?;
    Ok(if opened.rows_affected() > 0 { Reopened::Now } else { Reopened::Not })
}
