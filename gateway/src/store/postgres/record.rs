//! The recording transaction: results, resources, aliases and deliveries of a batch of messages.
//!
//! Reading comes before the transaction, which then checks that what it writes has not changed: no lock is held while the
//! caller thinks, and only two batches that really write the same row wait for one another.

use super::{clock, leases};
use crate::store::recent::Recent;
use crate::store::recording::{self, AliasRows, Resolved, ResourceRow};
use crate::store::{
    Alias, Lease, MessageResult, NewDelivery, RecordTx, Recording, StoreError, StoredResource, pack,
};
use async_trait::async_trait;
use schemas::message::MessageId;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool, PgRow};
use sqlx::{Connection, Postgres, Row};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use uuid::Uuid;

/// Closes messages that are open in the revision given, and says when.
const CLOSE: &str = concat!(
    "DELETE FROM inbox USING unnest($1::bigint[], $2::integer[]) AS closed(seq, revision)
     WHERE inbox.seq = closed.seq AND inbox.revision = closed.revision
     RETURNING inbox.id, inbox.keys, ",
    clock!()
);

/// Not COPY: its end follows its rows as a second small packet, which TCP holds back until the first is acknowledged, and the
/// client does not set TCP_NODELAY. That costs some 40 ms each time.
const WRITE_RESULTS: &str = "
INSERT INTO result (seq, message, revision, mapping, quarantined, issues, bundle, beside, made, recorded_us)
SELECT *, $10 FROM unnest($1::bigint[], $2::uuid[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::bytea[], $8::bytea[], $9::bytea[])";

const WRITE_RESOURCES: &str = "
INSERT INTO resource (id, resource_type, version, state, replaced_by, patient, message, encounter, recorded_us)
SELECT *, $9 FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bytea[], $5::uuid[], $6::uuid[], $7::uuid[], $8::uuid[])";

const CHANGE_RESOURCES: &str = "
UPDATE resource SET version = u.version, state = u.state, replaced_by = u.replaced_by, patient = u.patient, message = u.message,
    encounter = u.encounter, recorded_us = $9
FROM unnest($1::uuid[], $2::bigint[], $3::bytea[], $4::uuid[], $5::uuid[], $6::uuid[], $7::bigint[], $8::uuid[])
    AS u(id, version, state, replaced_by, patient, message, follows, encounter)
WHERE resource.id = u.id AND resource.version = u.follows";

const WRITE_ALIASES: &str = "
INSERT INTO alias (id, resource, value_hash, resource_type, system, value)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::text[])";

const MOVE_ALIASES: &str = "
UPDATE alias SET resource = u.after FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS u(id, before, after)
WHERE alias.id = u.id AND alias.resource = u.before";

const TAKE_NUMBERS: &str = "
UPDATE subscription SET last = last + u.wanted FROM unnest($1::text[], $2::bigint[]) AS u(name, wanted)
WHERE subscription.name = u.name RETURNING subscription.name, id, last";

const WRITE_DELIVERIES: &str = concat!(
    "INSERT INTO delivery (message, id, number, key, subscription, revision, state, topics, reason, attempts, due_us, changed_us)
     SELECT u.*, 0, clock.now, clock.now FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::integer[], $6::integer[],
         $7::smallint[], $8::text[], $9::text[]) AS u, (SELECT ",
    clock!(),
    " AS now) AS clock"
);

const WITHIN: &str = recording::within!("$1", "$2", "$3", "$4");

pub(super) struct Recorder {
    conn: PoolConnection<Postgres>,
    leases: Vec<Lease>,
    resolved: Resolved,
    recent: Arc<Recent>,
    requested: i64,
}

impl Recorder {
    pub(super) async fn begin(
        pool: &PgPool,
        leases: &[Lease],
        recent: Arc<Recent>,
    ) -> Result<Self, StoreError> {
        let mut conn = pool.acquire().await?;
        leases::hold(&mut conn, leases, false).await?;
        let requested = super::requested::version(&mut *conn).await?;
        Ok(Recorder { conn, leases: leases.to_vec(), resolved: Resolved::new(), recent, requested })
    }
}

#[async_trait]
impl RecordTx for Recorder {
    fn requested_version(&self) -> i64 {
        self.requested
    }

    async fn resolve(&mut self, aliases: &[Alias]) -> Result<HashMap<Alias, Uuid>, StoreError> {
        if aliases.is_empty() {
            return Ok(HashMap::new());
        }
        let found = named(&mut self.conn, aliases.iter().map(recording::alias_id).collect()).await?;
        let mut named = HashMap::with_capacity(found.len());
        for alias in aliases {
            let id = recording::alias_id(alias);
            let resource = found.get(&id).copied();
            self.resolved.insert(id, resource);
            if let Some(resource) = resource {
                named.insert(alias.clone(), resource);
            }
        }
        Ok(named)
    }

    async fn load(&mut self, ids: &[Uuid]) -> Result<Vec<StoredResource>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(
            "SELECT id, resource_type, version, state, replaced_by, message, recorded_us FROM resource WHERE id = ANY($1) ORDER BY id",
        )
        .bind(ids)
        .fetch_all(&mut *self.conn)
        .await?;
        rows.iter().map(stored).collect()
    }

    async fn about(&mut self, patient: Uuid) -> Result<Vec<Uuid>, StoreError> {
        let found = sqlx::query_scalar(recording::about!("$1")).bind(patient).fetch_all(&mut *self.conn);
        Ok(found.await?)
    }

    async fn about_of(
        &mut self,
        patient: Uuid,
        resource_type: &str,
        limit: usize,
    ) -> Result<Vec<Uuid>, StoreError> {
        let found = sqlx::query_scalar(recording::about_of!("$1", "$2", "$3"))
            .bind(patient)
            .bind(resource_type)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&mut *self.conn);
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
            .fetch_all(&mut *self.conn);
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
        if !unasked.is_empty() {
            let found = named(&mut self.conn, unasked).await?;
            self.resolved.extend(found.into_iter().map(|(id, resource)| (id, Some(resource))));
        }
        let aliases = recording::alias_rows(aliases, &self.resolved);
        let packed: Vec<Vec<u8>> = results.iter().map(|result| pack::squeeze(&result.bundle)).collect();
        // Dropped without a commit, the transaction is rolled back.
        let mut tx = self.conn.begin().await?;
        leases::hold(&mut tx, &self.leases, true).await?;
        let recorded_us = close(&mut tx, &results, &packed).await?;
        super::codes::write(&mut tx, &results, &codes, codes_version).await?;
        write_resources(&mut tx, &resources, recorded_us).await?;
        write_aliases(&mut tx, &aliases).await?;
        let numbers = write_deliveries(&mut tx, &deliveries).await?;
        tx.commit().await?;
        self.recent.recorded(&results, packed);
        Ok(numbers)
    }
}

/// A resource from the columns id, resource_type, version, state, replaced_by, message, recorded_us.
pub(super) fn stored(row: &PgRow) -> Result<StoredResource, StoreError> {
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
    conn: &mut PgConnection,
    ids: Vec<Uuid>,
) -> Result<HashMap<Uuid, Uuid>, StoreError> {
    let rows =
        sqlx::query("SELECT id, resource FROM alias WHERE id = ANY($1)").bind(ids).fetch_all(conn).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Closes the messages and writes their results. Answers when that was, by the database's clock; `None` if there are none.
async fn close(
    conn: &mut PgConnection,
    results: &[MessageResult],
    packed: &[Vec<u8>],
) -> Result<Option<i64>, StoreError> {
    if results.is_empty() {
        return Ok(None);
    }
    let closed = sqlx::query(CLOSE)
        .bind(results.iter().map(|result| result.seq.0).collect::<Vec<_>>())
        .bind(results.iter().map(|result| pack::count_to(result.revision)).collect::<Vec<_>>())
        .fetch_all(&mut *conn)
        .await?;
    if closed.len() != results.len() {
        return Err(StoreError::Fenced);
    }
    let recorded_us: i64 = closed.last().ok_or(StoreError::Fenced)?.try_get(2)?;
    let each = || results.iter();
    sqlx::query(WRITE_RESULTS)
        .bind(each().map(|result| result.seq.0).collect::<Vec<_>>())
        .bind(each().map(|result| result.id.0).collect::<Vec<_>>())
        .bind(each().map(|result| pack::count_to(result.revision)).collect::<Vec<_>>())
        .bind(each().map(|result| pack::text(&result.mapping)).collect::<Vec<_>>())
        .bind(each().map(|result| result.quarantined.as_deref().map(pack::text)).collect::<Vec<_>>())
        .bind(each().map(|result| pack::issues_to(&result.issues)).collect::<Vec<_>>())
        .bind(packed)
        .bind(each().map(|result| recording::beside_to(&result.beside)).collect::<Vec<_>>())
        .bind(each().map(|result| pack::made_to(&result.made)).collect::<Vec<_>>())
        .bind(recorded_us)
        .execute(&mut *conn)
        .await?;
    keep_quarantine(conn, results, &closed).await?;
    Ok(Some(recorded_us))
}

/// Writes down the keys of what is in quarantine now, and lets go of what was.
async fn keep_quarantine(
    conn: &mut PgConnection,
    results: &[MessageResult],
    closed: &[PgRow],
) -> Result<(), StoreError> {
    let replayed: Vec<Uuid> =
        results.iter().filter(|result| result.revision > 0).map(|result| result.id.0).collect();
    if !replayed.is_empty() {
        sqlx::query("DELETE FROM quarantine WHERE message = ANY($1)")
            .bind(replayed)
            .execute(&mut *conn)
            .await?;
    }
    let quarantined: HashSet<Uuid> =
        results.iter().filter(|result| result.quarantined.is_some()).map(|result| result.id.0).collect();
    if quarantined.is_empty() {
        return Ok(());
    }
    let (mut keys, mut messages) = (Vec::new(), Vec::new());
    for row in closed {
        let message: Uuid = row.try_get(0)?;
        if quarantined.contains(&message) {
            for key in pack::keys_from_bytes(row.try_get(1)?)? {
                keys.push(key.0);
                messages.push(message);
            }
        }
    }
    sqlx::query(
        "INSERT INTO quarantine (key, message) SELECT * FROM unnest($1::bigint[], $2::uuid[]) ON CONFLICT DO NOTHING",
    )
    .bind(keys)
    .bind(messages)
    .execute(conn)
    .await?;
    Ok(())
}

async fn write_resources(
    conn: &mut PgConnection,
    rows: &[ResourceRow],
    recorded_us: Option<i64>,
) -> Result<(), StoreError> {
    let (new, changed): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.follows == 0);
    if !new.is_empty() {
        let each = || new.iter();
        sqlx::query(WRITE_RESOURCES)
            .bind(each().map(|row| row.id).collect::<Vec<_>>())
            .bind(each().map(|row| row.resource_type.as_str()).collect::<Vec<_>>())
            .bind(each().map(|row| row.version).collect::<Vec<_>>())
            .bind(each().map(|row| row.packed.as_slice()).collect::<Vec<_>>())
            .bind(each().map(|row| row.replaced_by).collect::<Vec<_>>())
            .bind(each().map(|row| row.patient).collect::<Vec<_>>())
            .bind(each().map(|row| row.message.0).collect::<Vec<_>>())
            .bind(each().map(|row| row.encounter).collect::<Vec<_>>())
            .bind(recorded_us)
            .execute(&mut *conn)
            .await?;
    }
    if changed.is_empty() {
        return Ok(());
    }
    let each = || changed.iter();
    let written = sqlx::query(CHANGE_RESOURCES)
        .bind(each().map(|row| row.id).collect::<Vec<_>>())
        .bind(each().map(|row| row.version).collect::<Vec<_>>())
        .bind(each().map(|row| row.packed.as_slice()).collect::<Vec<_>>())
        .bind(each().map(|row| row.replaced_by).collect::<Vec<_>>())
        .bind(each().map(|row| row.patient).collect::<Vec<_>>())
        .bind(each().map(|row| row.message.0).collect::<Vec<_>>())
        .bind(each().map(|row| row.follows).collect::<Vec<_>>())
        .bind(each().map(|row| row.encounter).collect::<Vec<_>>())
        .bind(recorded_us)
        .execute(conn)
        .await?
        .rows_affected();
    if written == changed.len() as u64 { Ok(()) } else { Err(StoreError::Conflict) }
}

async fn write_aliases(conn: &mut PgConnection, rows: &AliasRows) -> Result<(), StoreError> {
    if !rows.new.is_empty() {
        let each = || rows.new.iter();
        let texts = |text: fn(&Alias) -> &str| {
            each().map(|(_, (alias, _))| pack::text(text(alias))).collect::<Vec<_>>()
        };
        sqlx::query(WRITE_ALIASES)
            .bind(each().map(|(id, _)| *id).collect::<Vec<_>>())
            .bind(each().map(|(_, (_, resource))| *resource).collect::<Vec<_>>())
            .bind(each().map(|(_, (alias, _))| pack::value_hash(&alias.value)).collect::<Vec<_>>())
            .bind(texts(|alias| &alias.resource_type))
            .bind(texts(|alias| &alias.system))
            .bind(texts(|alias| &alias.value))
            .execute(&mut *conn)
            .await?;
    }
    if !rows.moved.is_empty() {
        let each = || rows.moved.iter();
        let moved = sqlx::query(MOVE_ALIASES)
            .bind(each().map(|(id, _)| *id).collect::<Vec<_>>())
            .bind(each().map(|(_, (before, _))| *before).collect::<Vec<_>>())
            .bind(each().map(|(_, (_, after))| *after).collect::<Vec<_>>())
            .execute(conn)
            .await?
            .rows_affected();
        if moved != rows.moved.len() as u64 {
            return Err(StoreError::Conflict);
        }
    }
    Ok(())
}

/// Takes the event numbers and writes the deliveries. The lock on a subscription's row lasts until the commit, so
/// numbers are in the order of commits.
async fn write_deliveries(
    conn: &mut PgConnection,
    deliveries: &[NewDelivery],
) -> Result<Vec<i64>, StoreError> {
    if deliveries.is_empty() {
        return Ok(Vec::new());
    }
    let demand = recording::demand(deliveries);
    let mut next = take_numbers(conn, &demand).await?;
    if next.len() < demand.len() {
        let missing: BTreeMap<Arc<str>, i64> =
            demand.into_iter().filter(|(name, _)| !next.contains_key(&**name)).collect();
        sqlx::query(
            "INSERT INTO subscription (name, last) SELECT name, 0 FROM unnest($1::text[]) AS u(name) ON CONFLICT DO NOTHING",
        )
        .bind(missing.keys().map(|name| &**name).collect::<Vec<_>>())
        .execute(&mut *conn)
        .await?;
        next.extend(take_numbers(conn, &missing).await?);
    }
    let mut numbers = Vec::with_capacity(deliveries.len());
    let mut subscriptions = Vec::with_capacity(deliveries.len());
    for delivery in deliveries {
        let (id, next) = next.get_mut(&*delivery.subscription).ok_or(StoreError::Conflict)?;
        subscriptions.push(*id);
        numbers.push(*next);
        *next += 1;
    }
    let each = || deliveries.iter();
    sqlx::query(WRITE_DELIVERIES)
        .bind(each().map(|delivery| delivery.message.0).collect::<Vec<_>>())
        .bind(each().map(|delivery| delivery.id.0).collect::<Vec<_>>())
        .bind(&numbers)
        .bind(each().map(|delivery| delivery.key.0).collect::<Vec<_>>())
        .bind(subscriptions)
        .bind(each().map(|delivery| pack::count_to(delivery.revision)).collect::<Vec<_>>())
        .bind(each().map(|delivery| pack::state_to(recording::first_state(delivery))).collect::<Vec<_>>())
        .bind(each().map(|delivery| recording::matched_to(&delivery.matched)).collect::<Vec<_>>())
        .bind(each().map(|delivery| delivery.suppressed.as_deref()).collect::<Vec<_>>())
        .execute(conn)
        .await?;
    Ok(numbers)
}

/// The id of each subscription and the first of the numbers taken for it; those that are not there yet are left out.
async fn take_numbers(
    conn: &mut PgConnection,
    demand: &BTreeMap<Arc<str>, i64>,
) -> Result<HashMap<String, (i32, i64)>, StoreError> {
    let rows = sqlx::query(TAKE_NUMBERS)
        .bind(demand.keys().map(|name| &**name).collect::<Vec<_>>())
        .bind(demand.values().copied().collect::<Vec<_>>())
        .fetch_all(conn)
        .await?;
    let mut next = HashMap::with_capacity(rows.len());
    for row in &rows {
        let name: String = row.try_get(0)?;
        let last: i64 = row.try_get(2)?;
        let wanted = demand.get(name.as_str()).copied().unwrap_or_default();
        next.insert(name, (row.try_get(1)?, last - wanted + 1));
    }
    Ok(next)
}
