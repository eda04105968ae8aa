//! Intake: a batch in one transaction of three round trips, and the reading of what waits.

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

/// Inserts what no earlier row resembles; answers the earlier rows of the others, whose bytes then decide. `OFFSET 0` keeps the lookup a
/// lookup for each row: turned into a join it reads all of the week once it is planned on an empty day.
const INSERT: &str = "
WITH new AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::smallint[], $6::boolean[], $7::text[], $8::text[],
        $9::text[], $10::text[], $11::text[], $12::bytea[], $13::text[], $14::text[], $15::text[], $16::bytea[], $17::bigint[],
        $18::integer[])
    AS u(id, seq, received_us, repeat_hash, format, reused, sender, source, control_id, message_type, version, keys, patient_hashes,
         rejected, context, bytes, lanes, size)
), earlier AS MATERIALIZED (
    SELECT new.seq AS new_seq, m.id, m.received_us, m.sender, m.control_id, m.rejected, m.bytes
    FROM new CROSS JOIN LATERAL (
        SELECT * FROM message WHERE message.repeat_hash = new.repeat_hash AND message.id >= $19 OFFSET 0
    ) AS m
), written AS (
    INSERT INTO message (id, seq, received_us, repeat_hash, format, reused, sender, source, control_id, message_type, version, keys,
        patient_hashes, rejected, context, bytes)
    SELECT id, seq, received_us, repeat_hash, format, reused, sender, source, control_id, message_type, version, keys,
        patient_hashes::bigint[], rejected, context, bytes
    FROM new WHERE NOT EXISTS (SELECT 1 FROM earlier WHERE earlier.new_seq = new.seq)
), waiting AS (
    INSERT INTO inbox (seq, id, lanes, revision, size, keys)
    SELECT seq, id, lanes, 0, size, keys
    FROM new WHERE rejected IS NULL AND NOT EXISTS (SELECT 1 FROM earlier WHERE earlier.new_seq = new.seq)
)
SELECT id, received_us, sender, control_id, rejected, bytes, new_seq FROM earlier ORDER BY new_seq, received_us, id";

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
        // If this fails or is given up, the connection is dropped with its open transaction.
        append(&mut conn, batch, &self.senders).await?;
        *place = Some(conn);
        Ok(())
    }

    async fn meet_itself(&self, batch: &mut intake::Batch) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = batch.rows.iter().map(|row| row.message.id.0).collect();
        let rows = sqlx::query(
            "SELECT id, received_us, sender, control_id, rejected, bytes FROM message WHERE id = ANY($1)",
        )
        .bind(ids)
        .fetch_all(&self.path)
        .await?;
        for row in &rows {
            let id = MessageId(row.try_get(0)?);
            if let Some(new_seq) = batch.rows.iter().find(|row| row.message.id == id).map(|row| row.seq) {
                batch.met(&earlier(row, new_seq)?)?;
            }
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
    // One round trip: the row's lock is what keeps sequence order and commit order the same. The number is ours, not input.
    let places = batch.rows.len();
    let begin = format!("BEGIN; UPDATE intake SET last_seq = last_seq + {places} RETURNING last_seq");
    let last: i64 = sqlx::raw_sql(AssertSqlSafe(begin)).fetch_one(&mut *conn).await?.try_get(0)?;
    batch.number(last - i64::try_from(places).expect("a batch is small"));

    let rows: Vec<&intake::Row> = batch.to_write().collect();
    let unknown = senders.unknown(&rows);
    let met = insert(conn, &rows, batch.repeat_floor()).await?;
    for row in &met {
        batch.met(&earlier(row, row.try_get(6)?)?)?;
    }
    let late: Vec<&intake::Row> = batch.met_but_new().collect();
    if !met.is_empty() && !late.is_empty() {
        // Nothing is earlier than the highest id: this time they are written.
        insert(conn, &late, Uuid::max()).await?;
    }
    if !unknown.is_empty() {
        sqlx::query("INSERT INTO sender SELECT name FROM unnest($1::text[]) AS u(name) ORDER BY name ON CONFLICT DO NOTHING")
            .bind(unknown.iter().map(|name| pack::text(name)).collect::<Vec<_>>())
            .execute(&mut *conn)
            .await?;
    }
    sqlx::raw_sql("COMMIT").execute(&mut *conn).await?;
    senders.learn(unknown);
    Ok(())
}

async fn insert(
    conn: &mut PgConnection,
    rows: &[&intake::Row],
    repeat_floor: Uuid,
) -> Result<Vec<PgRow>, StoreError> {
    let each = || rows.iter();
    let texts = |text: fn(&NewMessage) -> &str| -> Vec<Cow<'_, str>> {
        each().map(|row| pack::text(text(&row.message))).collect()
    };
    let rows = sqlx::query(INSERT)
        .bind(each().map(|row| row.message.id.0).collect::<Vec<_>>())
        .bind(each().map(|row| row.seq).collect::<Vec<_>>())
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
        .fetch_all(conn)
        .await?;
    Ok(rows)
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

fn earlier(row: &PgRow, new_seq: i64) -> Result<intake::Earlier, StoreError> {
    Ok(intake::Earlier {
        new_seq,
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
