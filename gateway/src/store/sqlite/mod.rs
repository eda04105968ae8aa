//! The embedded store: one SQLite file in WAL mode, `synchronous=FULL`.
//!
//! Invariants: one connection writes, others only read; one gateway has the file, by a lock beside it; a second process reads, and
//! writes nothing but requests and translations of codes. sqlx hops to a thread for each statement, so a batch is few statements of many rows.

mod append;
mod codes;
mod deliver;
mod desk;
mod record;
mod requested;
mod resources;
mod rows;

use crate::store::migrate::{self, Applied};
use crate::store::recent::Recent;
use crate::store::{
    Alias, Appended, Books, Changes, Content, DeadLetter, DeliveryChange, Lease, MadeBy, NewMessage,
    OpenDelivery, OpenMessage, Query, RecordTx, Request, Requested, Retention, Role, SocketToken, Store,
    StoreError, StoredResource, Summary, Timeline, UnmappedSeen, pack,
};
use async_trait::async_trait;
use jiff::Timestamp;
use mappings::{SiteCode, SiteCodes};
use rows::Rows;
use schemas::message::{LaneSet, MessageId, OrderKey, Seq};
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool,
    SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection, Row};
use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};
use uuid::Uuid;

/// The clock in microseconds, in SQL: this process's own is the database's here.
macro_rules! clock {
    () => {
        "CAST(unixepoch('subsec') * 1000000 AS INTEGER)"
    };
}
use clock;

/// Connections that read.
const READERS: u32 = 4;
/// How long a statement waits for another process that writes a request.
const BUSY: Duration = Duration::from_secs(5);
/// The pages that a connection keeps, in KiB as SQLite wants it; the system keeps the file's pages anyway.
const WRITER_CACHE: &str = "-8000";
const READER_CACHE: &str = "-1000";
/// Pages of the log after which it is copied into the file.
const CHECKPOINT_PAGES: &str = "4000";

/// An SQLite file.
pub(super) struct Sqlite {
    path: PathBuf,
    options: SqliteConnectOptions,
    /// The connection that writes. Taken out while in use, so that work given up half way closes it.
    writer: Arc<Mutex<Option<SqliteConnection>>>,
    readers: SqlitePool,
    recent: Arc<Recent>,
    /// Locked as long as this gateway has the file; unlocked by the system, however the process ends.
    lock: Option<File>,
}

/// The writer within a transaction; dropped without a commit, it is rolled back.
struct Writing {
    place: OwnedMutexGuard<Option<SqliteConnection>>,
    conn: SqliteConnection,
}

impl Writing {
    async fn commit(mut self) -> Result<(), StoreError> {
        sqlx::raw_sql("COMMIT").execute(&mut self.conn).await?;
        *self.place = Some(self.conn);
        Ok(())
    }

    /// Ends a transaction that wrote nothing.
    async fn leave(mut self) -> Result<(), StoreError> {
        sqlx::raw_sql("ROLLBACK").execute(&mut self.conn).await?;
        *self.place = Some(self.conn);
        Ok(())
    }
}

impl Sqlite {
    /// Opens the file; a gateway makes it, and its folder, if it is not there.
    ///
    /// # Errors
    /// [`StoreError::Setup`] when another gateway has it, or it cannot be opened.
    pub(super) async fn open(path: &Path, role: Role) -> Result<Self, StoreError> {
        let at = path.display();
        let lock = match role {
            Role::Gateway => Some(lock(path)?),
            Role::Tool if path.exists() => None,
            Role::Tool => {
                return Err(StoreError::Setup(format!("there is no store at {at}: start `pons run` first")));
            }
        };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(role == Role::Gateway)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .page_size(8192)
            .busy_timeout(BUSY)
            .foreign_keys(false)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
            .pragma("temp_store", "memory")
            .pragma("cache_size", WRITER_CACHE)
            .statement_cache_capacity(200);
        let unreadable = |error: sqlx::Error| match StoreError::from(error) {
            StoreError::Full => StoreError::Full,
            error => StoreError::Setup(format!("{at}: {}", chain(&error))),
        };
        // Opening it once here makes the file and the log, and finds out what is wrong with them.
        let writer = SqliteConnection::connect_with(&options).await.map_err(unreadable)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .test_before_acquire(false)
            .connect_lazy_with(options.clone().pragma("query_only", "on").pragma("cache_size", READER_CACHE));
        Ok(Sqlite {
            path: path.to_owned(),
            options,
            writer: Arc::new(Mutex::new(Some(writer))),
            readers,
            recent: Arc::default(),
            lock,
        })
    }

    /// Begins a writing transaction: one at a time.
    async fn write(&self) -> Result<Writing, StoreError> {
        begin(&self.writer, &self.options).await
    }
}

async fn begin(
    writer: &Arc<Mutex<Option<SqliteConnection>>>,
    options: &SqliteConnectOptions,
) -> Result<Writing, StoreError> {
    let mut place = Arc::clone(writer).lock_owned().await;
    let mut conn = match place.take() {
        Some(conn) => conn,
        None => SqliteConnection::connect_with(options).await?,
    };
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut conn).await?;
    Ok(Writing { place, conn })
}

/// Makes this process the one gateway of the file.
fn lock(path: &Path) -> Result<File, StoreError> {
    let setup =
        |what: &str, error: std::io::Error| StoreError::Setup(format!("{}: {what}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| setup("its folder cannot be made", error))?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&name)
        .map_err(|error| setup("its lock cannot be made", error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Setup(format!(
            "{} is in use by another `pons run`: one gateway for each SQLite file; use PostgreSQL for several",
            path.display()
        ))),
        Err(TryLockError::Error(error)) => Err(setup("it cannot be locked", error)),
    }
}

/// An error with its sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

async fn applied(conn: &mut SqliteConnection) -> Result<Applied, StoreError> {
    let there = sqlx::query("SELECT 1 FROM sqlite_master WHERE name = 'schema_version'")
        .fetch_optional(&mut *conn)
        .await?
        .is_some();
    if !there {
        return Ok(Applied::default());
    }
    let rows = sqlx::query("SELECT version FROM schema_version").fetch_all(conn).await?;
    rows.iter().map(|row| Ok(row.try_get::<i32, _>(0)?)).collect()
}

#[async_trait]
impl Store for Sqlite {
    async fn migrate(&self) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        sqlx::raw_sql(
            "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, applied_us INTEGER NOT NULL)",
        )
        .execute(&mut tx.conn)
        .await?;
        for migration in migrate::pending(migrate::SQLITE, &applied(&mut tx.conn).await?)? {
            sqlx::raw_sql(migration.sql).execute(&mut tx.conn).await?;
            sqlx::query(concat!("INSERT INTO schema_version VALUES (?, ", clock!(), ")"))
                .bind(migration.version)
                .execute(&mut tx.conn)
                .await?;
        }
        sqlx::query("INSERT OR IGNORE INTO installation (one, namespace) VALUES (1, ?)")
            .bind(Uuid::new_v4())
            .execute(&mut tx.conn)
            .await?;
        if self.lock.is_some() {
            // The lock on the file proves that whoever held a lease is gone: nobody waits for it to run out. Fences go on
            // growing.
            sqlx::query("UPDATE lease SET replica = NULL").execute(&mut tx.conn).await?;
        }
        tx.commit().await
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        let mut conn = self.readers.acquire().await?;
        migrate::check(migrate::SQLITE, &applied(&mut conn).await?)
    }

    async fn check_durable(&self) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let mode: String = sqlx::query("PRAGMA journal_mode").fetch_one(&mut tx.conn).await?.try_get(0)?;
        let synchronous: i64 = sqlx::query("PRAGMA synchronous").fetch_one(&mut tx.conn).await?.try_get(0)?;
        tx.leave().await?;
        if mode != "wal" {
            return Err(StoreError::NotDurable(format!("SQLite runs with journal_mode = {mode}")));
        }
        if synchronous < 2 {
            return Err(StoreError::NotDurable(format!("SQLite runs with synchronous = {synchronous}")));
        }
        Ok(())
    }

    async fn namespace(&self) -> Result<Uuid, StoreError> {
        let row = sqlx::query("SELECT namespace FROM installation").fetch_one(&self.readers).await?;
        Ok(row.try_get(0)?)
    }

    async fn append(&self, batch: Vec<NewMessage>) -> Result<Vec<Appended>, StoreError> {
        self.append_batch(batch).await
    }

    async fn open_messages(
        &self,
        lanes: LaneSet,
        after: Seq,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<OpenMessage>, StoreError> {
        self.read_open_messages(lanes, after, limit, bytes_max).await
    }

    async fn still_open(&self, seqs: &[Seq]) -> Result<Vec<Seq>, StoreError> {
        let mut conn = self.readers.acquire().await?;
        let head = "SELECT seq FROM inbox WHERE seq IN (";
        let rows = Rows::new(seqs).one_each(&mut conn, head, ")", |query, seq| query.bind(seq.0)).await?;
        let mut open =
            rows.iter().map(|row| Ok(Seq(row.try_get(0)?))).collect::<Result<Vec<_>, StoreError>>()?;
        open.sort();
        Ok(open)
    }

    async fn open_before(&self, seq: Seq, keys: &[OrderKey]) -> Result<bool, StoreError> {
        let rows = sqlx::query("SELECT keys FROM inbox WHERE seq < ? AND lanes & ? <> 0")
            .bind(seq.0)
            .bind(LaneSet::of(keys).0)
            .fetch_all(&self.readers)
            .await?;
        for row in &rows {
            if pack::keys_from_bytes(row.try_get(0)?)?.iter().any(|key| keys.contains(key)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn quarantined(&self, keys: &[OrderKey]) -> Result<Vec<OrderKey>, StoreError> {
        let mut conn = self.readers.acquire().await?;
        let head = "SELECT DISTINCT key FROM quarantine WHERE key IN (";
        let rows = Rows::new(keys).one_each(&mut conn, head, ")", |query, key| query.bind(key.0)).await?;
        let mut keys =
            rows.iter().map(|row| Ok(OrderKey(row.try_get(0)?))).collect::<Result<Vec<_>, StoreError>>()?;
        keys.sort();
        keys.dedup();
        Ok(keys)
    }

    async fn begin_record(&self, leases: &[Lease]) -> Result<Box<dyn RecordTx>, StoreError> {
        Ok(Box::new(record::Recorder::begin(self, leases).await?))
    }

    async fn lease(&self, replica: Uuid, names: &[String], ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        let mut names = names.to_vec();
        names.sort();
        names.dedup();
        let mut tx = self.write().await?;
        let mut held = Vec::with_capacity(names.len());
        for name in names {
            let row = sqlx::query(concat!(
                "INSERT INTO lease AS held (name, replica, fence, until_us) VALUES (?1, ?2, 1, ",
                clock!(),
                " + ?3) ON CONFLICT (name) DO UPDATE SET
                     replica = excluded.replica,
                     fence = CASE WHEN held.replica = excluded.replica THEN held.fence ELSE held.fence + 1 END,
                     until_us = excluded.until_us
                 WHERE held.replica = excluded.replica OR held.replica IS NULL OR held.until_us < ",
                clock!(),
                " RETURNING fence"
            ))
            .bind(&name)
            .bind(replica)
            .bind(pack::span(ttl))
            .fetch_optional(&mut tx.conn)
            .await?;
            if let Some(row) = row {
                held.push(Lease { name, fence: row.try_get(0)? });
            }
        }
        tx.commit().await?;
        Ok(held)
    }

    async fn seize(&self, replica: Uuid, name: &str, ttl: Duration) -> Result<Lease, StoreError> {
        let mut tx = self.write().await?;
        let sql = concat!(
            "INSERT INTO lease AS held (name, replica, fence, until_us) VALUES (?1, ?2, 1, ",
            clock!(),
            " + ?3) ON CONFLICT (name) DO UPDATE SET
                 replica = excluded.replica,
                 fence = CASE WHEN held.replica = excluded.replica THEN held.fence ELSE held.fence + 1 END,
                 until_us = excluded.until_us
             RETURNING fence"
        );
        let fence = sqlx::query_scalar(sql).bind(name).bind(replica).bind(pack::span(ttl));
        let fence = fence.fetch_one(&mut tx.conn).await?;
        tx.commit().await?;
        Ok(Lease { name: name.to_owned(), fence })
    }

    async fn release(&self, replica: Uuid, names: &[String]) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        for name in names {
            sqlx::query("UPDATE lease SET replica = NULL, until_us = 0 WHERE name = ? AND replica = ?")
                .bind(name)
                .bind(replica)
                .execute(&mut tx.conn)
                .await?;
        }
        tx.commit().await
    }

    async fn heartbeat(&self, replica: Uuid, ttl: Duration) -> Result<u32, StoreError> {
        let mut tx = self.write().await?;
        sqlx::query(concat!(
            "INSERT INTO replica (id, until_us) VALUES (?, ",
            clock!(),
            " + ?) ON CONFLICT (id) DO UPDATE SET until_us = excluded.until_us"
        ))
        .bind(replica)
        .bind(pack::span(ttl))
        .execute(&mut tx.conn)
        .await?;
        sqlx::raw_sql(concat!("DELETE FROM replica WHERE until_us < ", clock!(), " - 86400000000"))
            .execute(&mut tx.conn)
            .await?;
        let row = sqlx::query(concat!("SELECT count(*) FROM replica WHERE until_us >= ", clock!()))
            .fetch_one(&mut tx.conn)
            .await?;
        let living: i64 = row.try_get(0)?;
        tx.commit().await?;
        Ok(u32::try_from(living).unwrap_or(u32::MAX))
    }

    async fn open_deliveries(
        &self,
        subscription: &str,
        after: i64,
        limit: usize,
    ) -> Result<Vec<OpenDelivery>, StoreError> {
        self.read_open_deliveries(subscription, after, limit).await
    }

    async fn parked_deliveries(
        &self,
        subscription: &str,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.read_parked(subscription, limit).await
    }

    async fn delivered_lately(
        &self,
        subscription: &str,
        within: Duration,
        after: i64,
        limit: usize,
    ) -> Result<Vec<OpenDelivery>, StoreError> {
        self.read_delivered(subscription, within, after, limit).await
    }

    async fn events(
        &self,
        subscription: &str,
        after: i64,
        until: i64,
        limit: usize,
    ) -> Result<Vec<OpenDelivery>, StoreError> {
        self.read_events(subscription, after, until, limit).await
    }

    async fn last_event(&self, subscription: &str) -> Result<i64, StoreError> {
        self.read_last_event(subscription).await
    }

    async fn contents(
        &self,
        of: &[(MessageId, u32)],
    ) -> Result<HashMap<(MessageId, u32), Content>, StoreError> {
        self.read_contents(of).await
    }

    async fn change_deliveries(&self, lease: &Lease, changes: Vec<DeliveryChange>) -> Result<(), StoreError> {
        self.write_changes(lease, changes).await
    }

    async fn unpublish_all(&self) -> Result<u64, StoreError> {
        let mut tx = self.write().await?;
        let done = sqlx::query("UPDATE delivery SET state = 0 WHERE state = 1").execute(&mut tx.conn).await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }

    async fn bus_epoch(&self) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT bus_epoch FROM installation").fetch_one(&self.readers).await?;
        Ok(row.try_get(0)?)
    }

    async fn set_bus_epoch(&self, epoch: &str) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        sqlx::query("UPDATE installation SET bus_epoch = ?").bind(epoch).execute(&mut tx.conn).await?;
        tx.commit().await
    }

    async fn search(&self, query: &Query) -> Result<Vec<Summary>, StoreError> {
        self.find(query).await
    }

    async fn named(&self, aliases: &[Alias]) -> Result<Vec<Uuid>, StoreError> {
        self.read_named(aliases).await
    }

    async fn held(&self, ids: &[Uuid]) -> Result<Vec<StoredResource>, StoreError> {
        self.read_held(ids).await
    }

    async fn held_of_patient(
        &self,
        patient: Uuid,
        resource_type: Option<&str>,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<StoredResource>, StoreError> {
        self.read_of_patient(patient, resource_type, after, limit).await
    }

    async fn made(&self, message: MessageId) -> Result<Vec<MadeBy>, StoreError> {
        self.read_made(message).await
    }

    async fn timeline(&self, id: MessageId) -> Result<Option<Timeline>, StoreError> {
        self.read_timeline(id).await
    }

    async fn request(&self, who: &str, requests: &[Request]) -> Result<(), StoreError> {
        self.write_requests(who, requests).await
    }

    async fn carry_out_requests(&self, limit: usize) -> Result<usize, StoreError> {
        self.carry_out(limit).await
    }

    async fn unmapped_codes(
        &self,
        sender: Option<&str>,
        table: Option<&str>,
        limit: usize,
    ) -> Result<Vec<UnmappedSeen>, StoreError> {
        self.list_codes(sender, table, limit).await
    }

    async fn translate_code(&self, who: &str, code: &SiteCode) -> Result<usize, StoreError> {
        self.say_code(who, code).await
    }

    async fn site_codes(&self, known: i64) -> Result<Option<SiteCodes>, StoreError> {
        self.read_codes(known).await
    }

    async fn books(&self) -> Result<Vec<Books>, StoreError> {
        self.count_books().await
    }

    async fn requested(&self, known: i64) -> Result<Option<Changes>, StoreError> {
        self.read_requested(known).await
    }

    async fn write_requested(&self, one: &Requested) -> Result<(), StoreError> {
        self.write_requested(one).await
    }

    async fn take_up_again(&self, subscription: &str) -> Result<u64, StoreError> {
        self.take_up_again(subscription).await
    }

    async fn give_up(&self, subscription: &str, why: &str, limit: usize) -> Result<u64, StoreError> {
        self.give_up(subscription, why, limit).await
    }

    async fn forget(&self, id: Uuid) -> Result<(), StoreError> {
        self.forget(id).await
    }

    async fn unfinished(&self) -> Result<Vec<String>, StoreError> {
        self.read_unfinished().await
    }

    async fn rest(&self, _subscription: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn keep_token(&self, token: &SocketToken, now: Timestamp) -> Result<(), StoreError> {
        self.write_token(token, now).await
    }

    async fn token(&self, hash: &[u8; 32]) -> Result<Option<SocketToken>, StoreError> {
        self.read_token(hash).await
    }

    async fn housekeeping(&self, retention: &Retention, now: Timestamp) -> Result<u64, StoreError> {
        self.keep_house(retention, now).await
    }

    async fn room(&self) -> Result<Option<u64>, StoreError> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        Ok(pack::free_bytes(folder.unwrap_or(Path::new("."))))
    }
}

/// Whether all of these are held under these fences.
async fn hold(conn: &mut SqliteConnection, leases: &[Lease]) -> Result<(), StoreError> {
    for lease in leases {
        let held = sqlx::query("SELECT 1 FROM lease WHERE name = ? AND fence = ?")
            .bind(&lease.name)
            .bind(lease.fence)
            .fetch_optional(&mut *conn)
            .await?;
        if held.is_none() {
            return Err(StoreError::Fenced);
        }
    }
    Ok(())
}
