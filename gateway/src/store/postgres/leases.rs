//! Leases with fences, and the heartbeats of replicas, all by the database's clock.

use super::clock;
use crate::store::{Lease, StoreError, pack};
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgPool};
use std::time::Duration;
use uuid::Uuid;

/// A lease changes hands only when it is over or given back; each change of hands makes the fence grow.
const TAKE: &str = concat!(
    "INSERT INTO lease AS held (name, replica, fence, until_us)
     SELECT name, $1, 1, ",
    clock!(),
    " + $3 FROM unnest($2::text[]) AS u(name) ORDER BY name
     ON CONFLICT (name) DO UPDATE SET
         replica = excluded.replica,
         fence = CASE WHEN held.replica = excluded.replica THEN held.fence ELSE held.fence + 1 END,
         until_us = excluded.until_us
     WHERE held.replica = excluded.replica OR held.replica IS NULL OR held.until_us < ",
    clock!(),
    " RETURNING name, fence"
);

pub(super) async fn take(
    pool: &PgPool,
    replica: Uuid,
    names: &[String],
    ttl: Duration,
) -> Result<Vec<Lease>, StoreError> {
    let mut names = names.to_vec();
    names.sort();
    names.dedup();
    let rows = sqlx::query(TAKE).bind(replica).bind(names).bind(pack::span(ttl)).fetch_all(pool).await?;
    rows.iter().map(|row| Ok(Lease { name: row.try_get(0)?, fence: row.try_get(1)? })).collect()
}

pub(super) async fn seize(
    pool: &PgPool,
    replica: Uuid,
    name: &str,
    ttl: Duration,
) -> Result<Lease, StoreError> {
    let sql = concat!(
        "INSERT INTO lease AS held (name, replica, fence, until_us) VALUES ($1, $2, 1, ",
        clock!(),
        " + $3) ON CONFLICT (name) DO UPDATE SET
             replica = excluded.replica,
             fence = CASE WHEN held.replica = excluded.replica THEN held.fence ELSE held.fence + 1 END,
             until_us = excluded.until_us
         RETURNING fence"
    );
    let fence =
        sqlx::query_scalar(sql).bind(name).bind(replica).bind(pack::span(ttl)).fetch_one(pool).await?;
    Ok(Lease { name: name.to_owned(), fence })
}

pub(super) async fn release(pool: &PgPool, replica: Uuid, names: &[String]) -> Result<(), StoreError> {
    sqlx::query("UPDATE lease SET replica = NULL, until_us = 0 WHERE name = ANY($1) AND replica = $2")
        .bind(names)
        .bind(replica)
        .execute(pool)
        .await?;
    Ok(())
}

pub(super) async fn heartbeat(pool: &PgPool, replica: Uuid, ttl: Duration) -> Result<u32, StoreError> {
    let mut tx = pool.begin().await?;
    sqlx::query(concat!(
        "INSERT INTO replica (id, until_us) VALUES ($1, ",
        clock!(),
        " + $2) ON CONFLICT (id) DO UPDATE SET until_us = excluded.until_us"
    ))
    .bind(replica)
    .bind(pack::span(ttl))
    .execute(&mut *tx)
    .await?;
    // Those long gone are forgotten; a day is far beyond any lease.
    sqlx::query(concat!("DELETE FROM replica WHERE until_us < ", clock!(), " - 86400000000"))
        .execute(&mut *tx)
        .await?;
    let row = sqlx::query(concat!("SELECT count(*) FROM replica WHERE until_us >= ", clock!()))
        .fetch_one(&mut *tx)
        .await?;
    let living: i64 = row.try_get(0)?;
    tx.commit().await?;
    Ok(u32::try_from(living).unwrap_or(u32::MAX))
}

/// Whether all of these are held under these fences; with `lock`, they stay so until the transaction ends.
pub(super) async fn hold(conn: &mut PgConnection, leases: &[Lease], lock: bool) -> Result<(), StoreError> {
    let names: Vec<&str> = leases.iter().map(|lease| lease.name.as_str()).collect();
    let fences: Vec<i64> = leases.iter().map(|lease| lease.fence).collect();
    let sql = if lock {
        "SELECT name FROM lease JOIN unnest($1::text[], $2::bigint[]) AS u(n, f) ON name = n AND fence = f ORDER BY name FOR SHARE OF lease"
    } else {
        "SELECT name FROM lease JOIN unnest($1::text[], $2::bigint[]) AS u(n, f) ON name = n AND fence = f"
    };
    let held = sqlx::query(sql).bind(names).bind(fences).fetch_all(conn).await?;
    if held.len() == leases.len() { Ok(()) } else { Err(StoreError::Fenced) }
}
