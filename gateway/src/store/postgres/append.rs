//! Intake: a batch in one call of one transaction, and the reading of what waits.

use super::Postgres;
use crate::store::recent::{Arrived, Waiting};
use crate::store::{Appended, NewMessage, OpenMessage, StoreError, intake, pack};
use schemas::message::{LaneSet, MessageId, OrderKey, Seq};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection, Row};
use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// How often a batch is compared with earlier messages before it is given up: each time, another replica wrote one meanwhile.
const COMPARED_MAX: usize = 5;

/// Writes all of it, and answers the last number; or writes nothing, because an earlier message has the hash of one of them and is
/// not among those that it was compared with. The function lies in the schema, so that the whole transaction is one round trip.
const APPEND: &str = "SELECT append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)";

const EARLIER: &str = "SELECT id, received_us, sender, control_id, rejected, bytes, repeat_hash FROM message";

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
            None => PgConnection::connect_with(&self.tuned).await?,
        };
        // If this fails or is given up, the connection is dropped: nobody knows whether it has committed, as after a lost answer.
        append(&mut conn, batch, &self.senders).await?;
        *place = Some(conn);
        Ok(())
    }

    async fn meet_itself(&self, batch: &mut intake::Batch) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = batch.rows.iter().map(|row| row.message.id.0).collect();
        let query = sqlx::query(AssertSqlSafe(format!("{EARLIER} WHERE id = ANY($1)"))).bind(ids);
        for row in &query.fetch_all(&self.path).await? {
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
    let mut compared: Vec<Uuid> = Vec::new();
    for _ in 0..=COMPARED_MAX {
        let rows: Vec<&intake::Row> = batch.to_write().collect();
        if rows.is_empty() {
            return Ok(());
        }
        let unknown = senders.unknown(&rows);
        if let Some(last) = write(conn, &rows, batch.repeat_floor(), &compared, &unknown).await? {
            let written = i64::try_from(rows.len()).expect("a batch is small");
            batch.number(last - written);
            senders.learn(unknown);
            return Ok(());
        }
        let hashes: Vec<i64> = rows.iter().filter_map(|row| row.repeat_hash).collect();
        let query = format!("{EARLIER} WHERE repeat_hash = ANY($1) AND id >= $2 ORDER BY received_us, id");
        let query = sqlx::query(AssertSqlSafe(query)).bind(hashes).bind(batch.repeat_floor());
        for row in &query.fetch_all(&mut *conn).await? {
            let earlier = earlier(row)?;
            compared.push(earlier.id.0);
            batch.met(&earlier)?;
        }
    }
    Err(StoreError::Conflict)
}

async fn write(
    conn: &mut PgConnection,
    rows: &[&intake::Row],
    repeat_floor: Uuid,
    compared: &[Uuid],
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
        .bind(compared)
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
        repeat_hash: row.try_get(6)?,
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
