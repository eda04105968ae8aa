//! Intake: a batch in one call of one transaction, and the reading of what waits.

use super::Postgres;
use crate::store::recent::{Arrived, Waiting};
use crate::store::{Appended, NewMessage, OpenMessage, StoreError, intake, pack};
use schemas::message::{LaneSet, MessageId, OrderKey, Seq};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};
use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// How often a batch is compared with earlier messages before it is tried anew: each time, another replica took in one of its messages.
const COMPARED_MAX: usize = 5;

/// Takes in the whole batch and answers its last number, or NULL: it has to be compared first. The function lies in the schema, so that
/// the whole transaction is one round trip.
const APPEND: &str = "SELECT append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)";

/// The newest number, and which control ids are in use. Sequence order is commit order, so every row up to that number is seen.
const IN_USE: &str = "
SELECT last_seq, ARRAY(
    SELECT new.hash FROM unnest($1::bigint[]) AS new(hash) CROSS JOIN LATERAL (
        SELECT FROM message AS m WHERE m.repeat_hash = new.hash AND m.id >= $2 LIMIT 1
    ) AS earlier)
FROM intake";

const ALIKE: &str = "
SELECT m.id, m.received_us, m.sender, m.control_id, m.rejected, m.bytes
FROM unnest($1::bigint[], $2::bigint[]) AS new(hash, content) CROSS JOIN LATERAL (
    SELECT * FROM message WHERE message.repeat_hash = new.hash AND message.content_hash = new.content AND message.id >= $3 OFFSET 0
) AS m ORDER BY m.received_us, m.id";

const BY_ID: &str =
    "SELECT id, received_us, sender, control_id, rejected, bytes FROM message WHERE id = ANY($1)";

const READ_OPEN: &str = "
SELECT seq, id, revision, keys FROM (
    SELECT seq, id, revision, keys, sum(size) OVER (ORDER BY seq) AS bytes_so_far, row_number() OVER (ORDER BY seq) AS place
    FROM (
        SELECT seq, id, revision, keys, size FROM inbox
        WHERE seq > $1 AND lanes & $2 <> 0 ORDER BY seq LIMIT $3
    ) AS next
) AS i
WHERE place = 1 OR bytes_so_far <= $4 ORDER BY seq";

const READ_MESSAGES: &str = "
SELECT m.id, m.received_us, m.format, m.sender, m.message_type, m.context, m.bytes
FROM unnest($1::uuid[]) AS u(id) JOIN message m ON m.id = u.id";

impl Postgres {
    pub(super) async fn append_batch(&self, batch: Vec<NewMessage>) -> Result<Vec<Appended>, StoreError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let mut batch = intake::Batch::new(batch);
        match self.append_rows(&mut batch).await {
            // A batch that is appended again because its answer was lost, with messages that no control id betrays.
            Err(StoreError::Conflict) => {
                self.meet_itself(&mut batch).await?;
                self.append_rows(&mut batch).await?;
            }
            done => done?,
        }
        self.recent.arrived(batch.to_write().map(|row| &row.message));
        Ok(batch.answers())
    }

    async fn append_rows(&self, batch: &mut intake::Batch) -> Result<(), StoreError> {
        let mut place = self.appender.lock().await;
        let mut conn = match place.take() {
            Some(conn) => conn,
            None => self.connect_appender().await?,
        };
        // If this fails or is given up, the connection is dropped: nobody knows whether it has committed, as after a lost answer.
        append(&mut conn, batch, &self.senders).await?;
        *place = Some(conn);
        Ok(())
    }

    async fn connect_appender(&self) -> Result<PgConnection, StoreError> {
        let mut conn = PgConnection::connect_with(&self.tuned).await?;
        // A batch whose connection broke while it waits for its turn is given up by the server too. Where its system cannot tell, the
        // batch may come late, as after any lost answer.
        let notice = sqlx::raw_sql("SET client_connection_check_interval = '1s'").execute(&mut conn).await;
        if let Err(error @ sqlx::Error::Io(_)) = notice {
            return Err(error.into());
        }
        Ok(conn)
    }

    async fn meet_itself(&self, batch: &mut intake::Batch) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = batch.rows.iter().map(|row| row.message.id.0).collect();
        for row in &sqlx::query(BY_ID).bind(ids).fetch_all(&self.path).await? {
            batch.met(&earlier(row)?)?;
        }
        Ok(())
    }

    pub(super) async fn read_open_messages(
        &self,
        lanes: LaneSet,
        after: Seq,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<OpenMessage>, StoreError> {
        let rows = sqlx::query(READ_OPEN)
            .bind(after.0)
            .bind(lanes.0)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .bind(i64::try_from(bytes_max).unwrap_or(i64::MAX))
            .fetch_all(&self.path)
            .await?;
        let waiting = rows.iter().map(waiting).collect::<Result<Vec<_>, _>>()?;
        let mut arrived = self.recent.messages(waiting.iter().map(|each| each.id));
        let absent: Vec<Uuid> =
            waiting.iter().filter(|each| !arrived.contains_key(&each.id)).map(|each| each.id.0).collect();
        if !absent.is_empty() {
            let rows = sqlx::query(READ_MESSAGES).bind(absent).fetch_all(&self.path).await?;
            for row in &rows {
                arrived.insert(MessageId(row.try_get(0)?), arrived_from(row)?);
            }
        }
        let open = waiting.into_iter().filter_map(|each| {
            let arrived = arrived.remove(&each.id)?;
            Some(each.with(arrived))
        });
        Ok(open.collect())
    }

    pub(super) async fn is_open_before(&self, seq: Seq, keys: &[OrderKey]) -> Result<bool, StoreError> {
        let each: Vec<Vec<u8>> = keys.iter().map(|key| pack::keys_to_bytes(&[*key])).collect();
        let row = sqlx::query(
            "SELECT EXISTS (
                 SELECT 1 FROM inbox WHERE seq < $1 AND lanes & $2 <> 0
                 AND EXISTS (SELECT 1 FROM unnest($3::bytea[]) AS k(key) WHERE position(k.key IN inbox.keys) % 8 = 1))",
        )
        .bind(seq.0)
        .bind(LaneSet::of(keys).0)
        .bind(each)
        .fetch_one(&self.path)
        .await?;
        Ok(row.try_get(0)?)
    }
}

fn waiting(row: &PgRow) -> Result<Waiting, StoreError> {
    Ok(Waiting {
        seq: Seq(row.try_get(0)?),
        id: MessageId(row.try_get(1)?),
        revision: pack::count(row.try_get(2)?),
        keys: pack::keys_from_bytes(row.try_get(3)?)?,
    })
}

fn arrived_from(row: &PgRow) -> Result<Arrived, StoreError> {
    Ok(Arrived {
        received_at: pack::time(row.try_get(1)?)?,
        format: intake::format_from(row.try_get(2)?)?,
        sender: row.try_get::<&str, _>(3)?.into(),
        message_type: row.try_get(4)?,
        context: row.try_get(5)?,
        bytes: pack::expand(row.try_get(6)?)?,
    })
}

async fn append(
    conn: &mut PgConnection,
    batch: &mut intake::Batch,
    senders: &Senders,
) -> Result<(), StoreError> {
    let mut compared_to = None;
    for _ in 0..=COMPARED_MAX {
        let rows: Vec<&intake::Row> = batch.to_write().collect();
        if rows.is_empty() {
            return Ok(());
        }
        let unknown = senders.unknown(&rows);
        if let Some(last) = write(conn, &rows, batch.repeat_floor(), compared_to, &unknown).await? {
            let written = i64::try_from(rows.len()).expect("a batch is small");
            batch.number(last - written);
            senders.learn(unknown);
            return Ok(());
        }
        compared_to = Some(compare(conn, batch).await?);
    }
    Err(StoreError::Conflict)
}

/// Compares a batch with the earlier messages; answers the number up to which it was.
async fn compare(conn: &mut PgConnection, batch: &mut intake::Batch) -> Result<i64, StoreError> {
    let floor = batch.repeat_floor();
    let hashes = |of: fn(&intake::Row) -> Option<i64>| batch.to_write().filter_map(of).collect::<Vec<i64>>();
    let (repeats, contents) = (hashes(|row| row.repeat_hash), hashes(|row| row.content_hash));
    let row = sqlx::query(IN_USE).bind(&repeats).bind(floor).fetch_one(&mut *conn).await?;
    let in_use: Vec<i64> = row.try_get(1)?;
    batch.reused(&in_use.into_iter().collect());
    let alike = sqlx::query(ALIKE).bind(repeats).bind(contents).bind(floor).fetch_all(conn).await?;
    for row in &alike {
        batch.met(&earlier(row)?)?;
    }
    Ok(row.try_get(0)?)
}

async fn write(
    conn: &mut PgConnection,
    rows: &[&intake::Row],
    repeat_floor: Uuid,
    compared_to: Option<i64>,
    unknown: &BTreeSet<Arc<str>>,
) -> Result<Option<i64>, StoreError> {
    let each = || rows.iter();
    let texts = |text: fn(&NewMessage) -> &str| -> Vec<Cow<'_, str>> {
        each().map(|row| pack::text(text(&row.message))).collect()
    };
    let row = sqlx::query(APPEND)
        .bind(each().map(|row| row.message.id.0).collect::<Vec<_>>())
        .bind(each().map(|row| pack::micros(row.message.received_at)).collect::<Vec<_>>())
        .bind(each().map(|row| row.repeat_hash).collect::<Vec<_>>())
        .bind(each().map(|row| row.content_hash).collect::<Vec<_>>())
        .bind(each().map(|row| intake::format_to(row.message.format)).collect::<Vec<_>>())
        .bind(each().map(|row| row.reused).collect::<Vec<_>>())
        .bind(texts(|message| &message.sender))
        .bind(texts(|message| &message.source))
        .bind(texts(|message| &message.control_id))
        .bind(texts(|message| &message.message_type))
        .bind(texts(|message| &message.version))
        .bind(each().map(|row| pack::keys_to_bytes(&row.message.keys)).collect::<Vec<_>>())
        .bind(each().map(|row| array(&row.message.patient_hashes)).collect::<Vec<_>>())
        .bind(each().map(|row| row.rejected()).collect::<Vec<_>>())
        .bind(texts(|message| &message.context))
        .bind(each().map(|row| row.packed.as_slice()).collect::<Vec<_>>())
        .bind(each().map(|row| row.lanes()).collect::<Vec<_>>())
        .bind(each().map(|row| row.size()).collect::<Vec<_>>())
        .bind(repeat_floor)
        .bind(compared_to)
        .bind(unknown.iter().map(|name| pack::text(name)).collect::<Vec<_>>())
        .fetch_one(conn)
        .await?;
    Ok(row.try_get(0)?)
}

/// Several numbers as the text of one array: PostgreSQL has no arrays of arrays of different lengths.
fn array(keys: &[OrderKey]) -> String {
    let mut text = String::from("{");
    for key in keys {
        let comma = if text.len() > 1 { "," } else { "" };
        write!(text, "{comma}{}", key.0).expect("a string takes everything");
    }
    text.push('}');
    text
}

fn earlier(row: &PgRow) -> Result<intake::Earlier, StoreError> {
    Ok(intake::Earlier {
        id: MessageId(row.try_get(0)?),
        received_us: row.try_get(1)?,
        sender: row.try_get(2)?,
        control_id: row.try_get(3)?,
        rejected: intake::refused_from(row.try_get(4)?)?,
        bytes: row.try_get(5)?,
    })
}

/// The senders that are known to have a row.
#[derive(Default)]
pub(super) struct Senders(Mutex<HashSet<Arc<str>>>);

impl Senders {
    fn unknown(&self, rows: &[&intake::Row]) -> BTreeSet<Arc<str>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let senders = rows.iter().map(|row| &row.message.sender);
        senders.filter(|sender| !known.contains(*sender)).cloned().collect()
    }

    fn learn(&self, senders: BTreeSet<Arc<str>>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(senders);
    }
}
