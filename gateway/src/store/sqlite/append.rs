//! Intake, and the reading of what waits.

use super::rows::Rows;
use super::{Sqlite, Writing};
use crate::store::recent::{Arrived, Waiting};
use crate::store::{Appended, NewMessage, OpenMessage, StoreError, intake, pack};
use schemas::message::{LaneSet, MessageId, OrderKey, Seq};
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use std::collections::BTreeSet;
use std::sync::Arc;

const READ_OPEN: &str = "
SELECT seq, id, revision, keys FROM (
    SELECT seq, id, revision, keys, sum(size) OVER (ORDER BY seq) AS bytes_so_far, row_number() OVER (ORDER BY seq) AS place
    FROM (SELECT seq, id, revision, keys, size FROM inbox WHERE seq > ? AND lanes & ? <> 0 ORDER BY seq LIMIT ?)
) AS i
WHERE place = 1 OR bytes_so_far <= ? ORDER BY seq";

impl Sqlite {
    pub(super) async fn append_batch(&self, batch: Vec<NewMessage>) -> Result<Vec<Appended>, StoreError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let mut batch = intake::Batch::new(batch);
        let mut tx = self.write().await?;
        append(&mut tx, &mut batch).await?;
        tx.commit().await?;
        self.recent.arrived(batch.to_write().map(|row| &row.message));
        Ok(batch.answers())
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
            .fetch_all(&self.readers)
            .await?;
        let waiting = rows.iter().map(waiting).collect::<Result<Vec<_>, _>>()?;
        let mut arrived = self.recent.messages(waiting.iter().map(|each| each.id));
        let absent: Vec<Seq> =
            waiting.iter().filter(|each| !arrived.contains_key(&each.id)).map(|each| each.seq).collect();
        if !absent.is_empty() {
            let mut conn = self.readers.acquire().await?;
            let head = "SELECT id, received_us, format, sender, message_type, context, bytes FROM message WHERE seq IN (";
            let rows =
                Rows::new(&absent).one_each(&mut conn, head, ")", |query, seq| query.bind(seq.0)).await?;
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
}

fn waiting(row: &SqliteRow) -> Result<Waiting, StoreError> {
    Ok(Waiting {
        seq: Seq(row.try_get(0)?),
        id: MessageId(row.try_get(1)?),
        revision: pack::count(row.try_get(2)?),
        keys: pack::keys_from_bytes(row.try_get(3)?)?,
    })
}

fn arrived_from(row: &SqliteRow) -> Result<Arrived, StoreError> {
    Ok(Arrived {
        received_at: pack::time(row.try_get(1)?)?,
        format: intake::format_from(row.try_get(2)?)?,
        sender: row.try_get::<&str, _>(3)?.into(),
        message_type: row.try_get(4)?,
        context: row.try_get(5)?,
        bytes: pack::expand(row.try_get(6)?)?,
    })
}

async fn append(tx: &mut Writing, batch: &mut intake::Batch) -> Result<(), StoreError> {
    let conn = &mut tx.conn;
    meet_earlier(conn, batch).await?;
    let places = i64::try_from(batch.to_write().count()).expect("a batch is small");
    let last: i64 = sqlx::query("UPDATE intake SET last_seq = last_seq + ? RETURNING last_seq")
        .bind(places)
        .fetch_one(&mut *conn)
        .await?
        .try_get(0)?;
    batch.number(last - places);

    let rows: Vec<&intake::Row> = batch.to_write().collect();
    let head = "INSERT INTO message (seq, id, received_us, repeat_hash, content_hash, format, reused, sender, source, control_id, message_type, version, keys, rejected, context, bytes) VALUES ";
    Rows::new(&rows)
        .tuples(conn, head, 16, "", |query, row| {
            let message = &row.message;
            query
                .bind(row.seq)
                .bind(message.id.0)
                .bind(pack::micros(message.received_at))
                .bind(row.repeat_hash)
                .bind(row.content_hash)
                .bind(intake::format_to(message.format))
                .bind(row.reused)
                .bind(pack::text(&message.sender))
                .bind(pack::text(&message.source))
                .bind(pack::text(&message.control_id))
                .bind(pack::text(&message.message_type))
                .bind(pack::text(&message.version))
                .bind(pack::keys_to_bytes(&message.keys))
                .bind(row.rejected())
                .bind(pack::text(&message.context))
                .bind(row.packed.as_slice())
        })
        .await?;
    let hashes: Vec<(OrderKey, i64)> =
        rows.iter().flat_map(|row| row.message.patient_hashes.iter().map(|hash| (*hash, row.seq))).collect();
    Rows::new(&hashes)
        .tuples(
            conn,
            "INSERT OR IGNORE INTO message_patient (hash, seq) VALUES ",
            2,
            "",
            |query, (hash, seq)| query.bind(hash.0).bind(seq),
        )
        .await?;
    let waiting: Vec<&intake::Row> =
        rows.iter().copied().filter(|row| row.message.rejected.is_none()).collect();
    let head = "INSERT INTO inbox (seq, id, lanes, revision, size, keys) VALUES ";
    Rows::new(&waiting)
        .tuples(conn, head, 6, "", |query, row| {
            query
                .bind(row.seq)
                .bind(row.message.id.0)
                .bind(row.lanes())
                .bind(0)
                .bind(row.size())
                .bind(pack::keys_to_bytes(&row.message.keys))
        })
        .await?;
    let senders: BTreeSet<Arc<str>> = rows.iter().map(|row| Arc::clone(&row.message.sender)).collect();
    let senders: Vec<Arc<str>> = senders.into_iter().collect();
    Rows::new(&senders)
        .tuples(conn, "INSERT OR IGNORE INTO sender (name) VALUES ", 1, "", |query, name| {
            query.bind(pack::text(name))
        })
        .await?;
    Ok(())
}

/// Finds the earlier messages that some of these repeat, by control id and content, or by their own id (a batch that is
/// appended again because its answer was lost), and the control ids that are in use.
async fn meet_earlier(conn: &mut SqliteConnection, batch: &mut intake::Batch) -> Result<(), StoreError> {
    const COLUMNS: &str = "m.id, m.received_us, m.sender, m.control_id, m.rejected, m.bytes";
    let floor = batch.repeat_floor();
    let hashes: Vec<(i64, i64)> =
        batch.rows.iter().filter_map(|row| Some((row.repeat_hash?, row.content_hash?))).collect();
    let in_use = Rows::new(&hashes)
        .tuples_found(
            conn,
            "WITH new (hash, floor) AS (VALUES ",
            2,
            ") SELECT hash FROM new WHERE EXISTS (SELECT 1 FROM message AS m WHERE m.repeat_hash = new.hash AND m.id >= new.floor)",
            |query, (hash, _)| query.bind(hash).bind(floor),
        )
        .await?;
    let in_use = in_use.iter().map(|row| Ok(row.try_get(0)?)).collect::<Result<_, StoreError>>()?;
    let mut found = Rows::new(&hashes)
        .tuples_found(
            conn,
            "WITH new (hash, content) AS (VALUES ",
            2,
            &format!(
                ") SELECT {COLUMNS} FROM new CROSS JOIN message AS m ON m.repeat_hash = new.hash AND m.content_hash = new.content \
                 ORDER BY m.seq"
            ),
            |query, (hash, content)| query.bind(hash).bind(content),
        )
        .await?;
    let ids: Vec<MessageId> = batch.rows.iter().map(|row| row.message.id).collect();
    let head = format!("SELECT {COLUMNS} FROM message AS m WHERE m.id IN (");
    found.extend(Rows::new(&ids).one_each(conn, &head, ")", |query, id| query.bind(id.0)).await?);
    batch.reused(&in_use);
    for row in &found {
        batch.met(&intake::Earlier {
            id: MessageId(row.try_get(0)?),
            received_us: row.try_get(1)?,
            sender: row.try_get(2)?,
            control_id: row.try_get(3)?,
            rejected: intake::refused_from(row.try_get(4)?)?,
            bytes: row.try_get(5)?,
        })?;
    }
    Ok(())
}
