//! The recording transaction. Reading comes before it, from a reader; it then checks that what it writes has not
//! changed, so that the one writer is not held while the caller thinks.

use super::rows::Rows;
use super::{Sqlite, Writing, begin, clock, hold};
use crate::store::recent::Recent;
use crate::store::recording::{self, AliasRows, Resolved, ResourceRow};
use crate::store::{
    Alias, Lease, MessageResult, NewDelivery, RecordTx, Recording, StoreError, StoredResource, pack,
};
use async_trait::async_trait;
use schemas::message::MessageId;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{Row, Sqlite as Db};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Mutex;
use uuid::Uuid;

pub(super) const WITHIN: &str = recording::within!("?1", "?2", "?3", "?4");

pub(super) struct Recorder {
    reader: PoolConnection<Db>,
    writer: Arc<Mutex<Option<SqliteConnection>>>,
    options: SqliteConnectOptions,
    leases: Vec<Lease>,
    resolved: Resolved,
    recent: Arc<Recent>,
    requested: i64,
}

impl Recorder {
    pub(super) async fn begin(store: &Sqlite, leases: &[Lease]) -> Result<Self, StoreError> {
        let mut reader = store.readers.acquire().await?;
        hold(&mut reader, leases).await?;
        let requested = super::requested::version(&mut *reader).await?;
        Ok(Recorder {
            reader,
            requested,
            writer: Arc::clone(&store.writer),
            options: store.options.clone(),
            leases: leases.to_vec(),
            resolved: Resolved::new(),
            recent: Arc::clone(&store.recent),
        })
    }
}

#[async_trait]
impl RecordTx for Recorder {
    fn requested_version(&self) -> i64 {
        self.requested
    }

    async fn resolve(&mut self, aliases: &[Alias]) -> Result<HashMap<Alias, Uuid>, StoreError> {
        let ids: Vec<Uuid> = aliases.iter().map(recording::alias_id).collect();
        let found = named(&mut self.reader, &ids).await?;
        let mut named = HashMap::with_capacity(found.len());
        for (alias, id) in aliases.iter().zip(ids) {
            let resource = found.get(&id).copied();
            self.resolved.insert(id, resource);
            if let Some(resource) = resource {
                named.insert(alias.clone(), resource);
            }
        }
        Ok(named)
    }

    async fn load(&mut self, ids: &[Uuid]) -> Result<Vec<StoredResource>, StoreError> {
        let head = "SELECT id, resource_type, version, state, replaced_by, message, recorded_us FROM resource WHERE id IN (";
        let rows = Rows::new(ids).one_each(&mut self.reader, head, ")", |query, id| query.bind(id)).await?;
        let mut resources = rows.iter().map(stored).collect::<Result<Vec<_>, StoreError>>()?;
        resources.sort_by_key(|resource| resource.id);
        resources.dedup_by_key(|resource| resource.id);
        Ok(resources)
    }

    async fn about(&mut self, patient: Uuid) -> Result<Vec<Uuid>, StoreError> {
        let found = sqlx::query_scalar(recording::about!("?")).bind(patient).fetch_all(&mut *self.reader);
        Ok(found.await?)
    }

    async fn about_of(
        &mut self,
        patient: Uuid,
        resource_type: &str,
        limit: usize,
    ) -> Result<Vec<Uuid>, StoreError> {
        let found = sqlx::query_scalar(recording::about_of!("?", "?", "?"))
            .bind(patient)
            .bind(resource_type)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&mut *self.reader);
        Ok(found.await?)
    }

    async fn within(
        &mut self,
        encounter: Uuid,
        patient: Uuid,
        resource_type: &str,
        limit: usize,
    ) -> Result<Vec<Uuid>, StoreError> {
        let found = sqlx::query_scalar(WITHIN)
            .bind(encounter)
            .bind(patient)
            .bind(resource_type)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&mut *self.reader);
        Ok(found.await?)
    }

    async fn commit(mut self: Box<Self>, recording: Recording) -> Result<Vec<i64>, StoreError> {
        let Recording { results, resources, aliases, deliveries, codes, codes_version } = recording;
        let resources = recording::fold(resources)?;
        let unasked: Vec<Uuid> = aliases
            .iter()
            .map(|(alias, _)| recording::alias_id(alias))
            .filter(|id| !self.resolved.contains_key(id))
            .collect();
        let found = named(&mut self.reader, &unasked).await?;
        self.resolved.extend(found.into_iter().map(|(id, resource)| (id, Some(resource))));
        let aliases = recording::alias_rows(aliases, &self.resolved);
        let packed: Vec<Vec<u8>> = results.iter().map(|result| pack::squeeze(&result.bundle)).collect();
        let mut tx = begin(&self.writer, &self.options).await?;
        hold(&mut tx.conn, &self.leases).await?;
        let recorded_us = close(&mut tx, &results, &packed).await?;
        super::codes::write(&mut tx.conn, &results, &codes, codes_version).await?;
        write_resources(&mut tx, &resources, recorded_us).await?;
        write_aliases(&mut tx, &aliases).await?;
        let numbers = write_deliveries(&mut tx, &deliveries).await?;
        tx.commit().await?;
        self.recent.recorded(&results, packed);
        Ok(numbers)
    }
}

/// A resource from the columns id, resource_type, version, state, replaced_by, message, recorded_us.
pub(super) fn stored(row: &SqliteRow) -> Result<StoredResource, StoreError> {
    Ok(StoredResource {
        id: row.try_get(0)?,
        resource_type: row.try_get(1)?,
        version: row.try_get(2)?,
        state: pack::expand(row.try_get(3)?)?.into(),
        replaced_by: row.try_get(4)?,
        changed_by: MessageId(row.try_get(5)?),
        recorded_at: row.try_get::<Option<i64>, _>(6)?.map(pack::time).transpose()?,
    })
}

pub(super) async fn named(
    conn: &mut SqliteConnection,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, Uuid>, StoreError> {
    let head = "SELECT id, resource FROM alias WHERE id IN (";
    let rows = Rows::new(ids).one_each(conn, head, ")", |query, id| query.bind(id)).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Closes messages that are open in the revision given and writes their results. Answers when that was; `None` if there are none.
async fn close(
    tx: &mut Writing,
    results: &[MessageResult],
    packed: &[Vec<u8>],
) -> Result<Option<i64>, StoreError> {
    let conn = &mut tx.conn;
    let head = "DELETE FROM inbox WHERE (seq, revision) IN (VALUES ";
    let closed = Rows::new(results)
        .tuples_found(conn, head, 2, concat!(") RETURNING seq, keys, ", clock!()), |query, result| {
            query.bind(result.seq.0).bind(result.revision)
        })
        .await?;
    if closed.len() != results.len() {
        return Err(StoreError::Fenced);
    }
    let recorded_us: Option<i64> = closed.last().map(|row| row.try_get(2)).transpose()?;
    let rows: Vec<(&MessageResult, &Vec<u8>)> = results.iter().zip(packed).collect();
    let head = "INSERT INTO result (seq, message, revision, mapping, quarantined, issues, bundle, beside, made, recorded_us) VALUES ";
    Rows::new(&rows)
        .tuples(conn, head, 10, "", |query, (result, packed)| {
            query
                .bind(result.seq.0)
                .bind(result.id.0)
                .bind(result.revision)
                .bind(pack::text(&result.mapping))
                .bind(result.quarantined.as_deref().map(pack::text))
                .bind(pack::issues_to(&result.issues))
                .bind(packed.as_slice())
                .bind(recording::beside_to(&result.beside))
                .bind(pack::made_to(&result.made))
                .bind(recorded_us)
        })
        .await?;
    let replayed: Vec<&MessageResult> = results.iter().filter(|result| result.revision > 0).collect();
    Rows::new(&replayed)
        .one_each(conn, "DELETE FROM quarantine WHERE message IN (", ")", |query, result| {
            query.bind(result.id.0)
        })
        .await?;
    let quarantined: HashMap<i64, Uuid> = results
        .iter()
        .filter(|result| result.quarantined.is_some())
        .map(|result| (result.seq.0, result.id.0))
        .collect();
    let mut keys = Vec::new();
    for row in &closed {
        if let Some(message) = quarantined.get(&row.try_get(0)?) {
            keys.extend(pack::keys_from_bytes(row.try_get(1)?)?.into_iter().map(|key| (key, *message)));
        }
    }
    let head = "INSERT OR IGNORE INTO quarantine (key, message) VALUES ";
    Rows::new(&keys)
        .tuples(conn, head, 2, "", |query, (key, message)| query.bind(key.0).bind(message))
        .await?;
    Ok(recorded_us)
}

async fn write_resources(
    tx: &mut Writing,
    rows: &[ResourceRow],
    recorded_us: Option<i64>,
) -> Result<(), StoreError> {
    let (new, changed): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.follows == 0);
    let head = "INSERT INTO resource (id, resource_type, version, state, replaced_by, patient, message, encounter, recorded_us) VALUES ";
    Rows::new(&new)
        .tuples(&mut tx.conn, head, 9, "", |query, row| {
            query
                .bind(row.id)
                .bind(row.resource_type.as_str())
                .bind(row.version)
                .bind(row.packed.as_slice())
                .bind(row.replaced_by)
                .bind(row.patient)
                .bind(row.message.0)
                .bind(row.encounter)
                .bind(recorded_us)
        })
        .await?;
    let head = "WITH u (id, follows, version, state, replaced_by, patient, message, encounter, recorded_us) AS (VALUES ";
    let tail = ") UPDATE resource SET version = u.version, state = u.state, replaced_by = u.replaced_by, patient = u.patient, message = u.message,
        encounter = u.encounter, recorded_us = u.recorded_us
        FROM u WHERE resource.id = u.id AND resource.version = u.follows";
    let written = Rows::new(&changed)
        .tuples(&mut tx.conn, head, 9, tail, |query, row| {
            query
                .bind(row.id)
                .bind(row.follows)
                .bind(row.version)
                .bind(row.packed.as_slice())
                .bind(row.replaced_by)
                .bind(row.patient)
                .bind(row.message.0)
                .bind(row.encounter)
                .bind(recorded_us)
        })
        .await?;
    if written == changed.len() as u64 { Ok(()) } else { Err(StoreError::Conflict) }
}

async fn write_aliases(tx: &mut Writing, rows: &AliasRows) -> Result<(), StoreError> {
    let new: Vec<(&Uuid, &(Alias, Uuid))> = rows.new.iter().collect();
    let head = "INSERT INTO alias (id, resource, value_hash, resource_type, system, value) VALUES ";
    Rows::new(&new)
        .tuples(&mut tx.conn, head, 6, "", |query, (id, (alias, resource))| {
            query
                .bind(*id)
                .bind(resource)
                .bind(pack::value_hash(&alias.value))
                .bind(pack::text(&alias.resource_type))
                .bind(pack::text(&alias.system))
                .bind(pack::text(&alias.value))
        })
        .await?;
    for (id, (before, after)) in &rows.moved {
        let moved = sqlx::query("UPDATE alias SET resource = ? WHERE id = ? AND resource = ?")
            .bind(after)
            .bind(id)
            .bind(before)
            .execute(&mut tx.conn)
            .await?;
        if moved.rows_affected() != 1 {
            return Err(StoreError::Conflict);
        }
    }
    Ok(())
}

async fn write_deliveries(tx: &mut Writing, deliveries: &[NewDelivery]) -> Result<Vec<i64>, StoreError> {
    let conn = &mut tx.conn;
    let mut next: HashMap<Arc<str>, (i64, i64)> = HashMap::new();
    for (name, wanted) in recording::demand(deliveries) {
        let row = sqlx::query(
            "INSERT INTO subscription (name, last) VALUES (?, ?)
             ON CONFLICT (name) DO UPDATE SET last = last + excluded.last RETURNING id, last",
        )
        .bind(&*name)
        .bind(wanted)
        .fetch_one(&mut *conn)
        .await?;
        next.insert(name, (row.try_get(0)?, row.try_get::<i64, _>(1)? - wanted + 1));
    }
    let mut rows = Vec::with_capacity(deliveries.len());
    for delivery in deliveries {
        let (id, next) =
            next.get_mut(&delivery.subscription).expect("a number was taken for each subscription");
        rows.push((delivery, *id, *next));
        *next += 1;
    }
    let head = "INSERT INTO delivery (message, id, number, key, subscription, revision, state, topics, reason, attempts, due_us, changed_us)
        SELECT u.*, 0, clock.now, clock.now FROM (VALUES ";
    let tail = concat!(") AS u, (SELECT ", clock!(), " AS now) AS clock");
    Rows::new(&rows)
        .tuples(conn, head, 9, tail, |query, (delivery, subscription, number)| {
            query
                .bind(delivery.message.0)
                .bind(delivery.id.0)
                .bind(number)
                .bind(delivery.key.0)
                .bind(subscription)
                .bind(delivery.revision)
                .bind(pack::state_to(recording::first_state(delivery)))
                .bind(recording::matched_to(&delivery.matched))
                .bind(delivery.suppressed.as_deref().map(pack::text))
        })
        .await?;
    Ok(rows.into_iter().map(|(_, _, number)| number).collect())
}
