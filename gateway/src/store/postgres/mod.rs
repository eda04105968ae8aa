//! The store on PostgreSQL 15 and later, shared by many replicas.
//!
//! Invariants: an append holds the row of `intake` until its commit, so sequence order is commit order over all replicas; whatever
//! is written under a lease locks the lease's row in the same transaction. Cost is the rows and the index entries, so the path
//! writes few of both: a message is inserted once and never changed, a delivery changes within its page.

mod append;
mod codes;
mod days;
mod deliver;
mod desk;
mod leases;
mod record;
mod requested;
mod resources;

use crate::store::migrate::{self, Applied};
use crate::store::recent::Recent;
use crate::store::{
    Alias, Appended, Books, Changes, Content, DeadLetter, DeliveryChange, Lease, MadeBy, NewMessage,
    OpenDelivery, OpenMessage, Query, RecordTx, Request, Requested, Retention, SocketToken, Store,
    StoreError, StoredResource, Summary, Timeline, UnmappedSeen,
};
use async_trait::async_trait;
use jiff::Timestamp;
use mappings::{SiteCode, SiteCodes};
use schemas::message::{LaneSet, MessageId, OrderKey, Seq};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection, Row};
use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OnceCell};
use uuid::Uuid;

/// The database's clock in microseconds, in SQL. Not `now()`, which stands still within a transaction.
macro_rules! clock {
    () => {
        "(extract(epoch from clock_timestamp()) * 1000000)::bigint"
    };
}
use clock;

/// Serialize migrations and housekeeping over all replicas; any numbers that nobody else uses.
const MIGRATION_LOCK: i64 = 0x506F_6E73_0001;
const HOUSEKEEPING_LOCK: i64 = 0x506F_6E73_0002;
const REQUESTS_LOCK: i64 = 0x506F_6E73_0003;
/// Connections of the path, beside the one that appends.
const PATH_CONNECTIONS: u32 = 8;
/// Connections of search, books and housekeeping.
const DESK_CONNECTIONS: u32 = 3;
/// How long a statement may wait for a connection.
const ACQUIRE_SECONDS: u64 = 5;

/// A PostgreSQL database.
pub(super) struct Postgres {
    /// As the server is for anybody.
    plain: PgConnectOptions,
    /// For statements on the path.
    tuned: PgConnectOptions,
    /// Statements on the path: short, by index, with plans made once.
    path: PgPool,
    /// Everything else, planned by the values at hand.
    desk: PgPool,
    /// The one connection that appends. Taken out while in use, so that an append given up half way closes it.
    appender: Mutex<Option<PgConnection>>,
    senders: append::Senders,
    recent: Arc<Recent>,
    subscriptions: deliver::Subscriptions,
    namespace: OnceCell<Uuid>,
}

impl Postgres {
    /// Connects to nothing yet: a database that is away is no reason not to start.
    ///
    /// # Errors
    /// A URL that cannot be read.
    pub(super) fn open(url: &str) -> Result<Self, StoreError> {
        let plain = PgConnectOptions::from_str(url)
            .map_err(|_| StoreError::Setup("the PostgreSQL URL cannot be read".to_owned()))?
            .application_name("pons");
        let desk = plain.clone().options([
            // What was confirmed is on disk, whatever the server's default.
            ("synchronous_commit", "on"),
            // A replica that hangs in a transaction must not hold the others up.
            ("idle_in_transaction_session_timeout", "30s"),
            ("tcp_keepalives_idle", "10"),
            ("tcp_keepalives_interval", "5"),
            ("tcp_keepalives_count", "3"),
            ("jit", "off"),
        ]);
        // Fresh partitions have no statistics: a plan that reads whole tables looks cheap on them, and would be kept.
        let tuned = desk.clone().options([
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("enable_bitmapscan", "off"),
            ("enable_material", "off"),
            ("statement_timeout", "60s"),
        ]);
        let pool = |connections| {
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(Duration::from_secs(ACQUIRE_SECONDS))
                .test_before_acquire(false)
        };
        Ok(Postgres {
            path: pool(PATH_CONNECTIONS).connect_lazy_with(tuned.clone()),
            desk: pool(DESK_CONNECTIONS).connect_lazy_with(desk),
            plain,
            tuned,
            appender: Mutex::new(None),
            senders: append::Senders::default(),
            recent: Arc::default(),
            subscriptions: deliver::Subscriptions::default(),
            namespace: OnceCell::new(),
        })
    }
}

/// The versions that are there; none in an empty database.
async fn applied(conn: &mut PgConnection) -> Result<Applied, StoreError> {
    let there: bool = sqlx::query("SELECT to_regclass('schema_version') IS NOT NULL")
        .persistent(false)
        .fetch_one(&mut *conn)
        .await?
        .try_get(0)?;
    if !there {
        return Ok(Applied::default());
    }
    let rows = sqlx::query("SELECT version FROM schema_version").persistent(false).fetch_all(conn).await?;
    rows.iter().map(|row| Ok(row.try_get::<i32, _>(0)?)).collect()
}

#[async_trait]
impl Store for Postgres {
    async fn migrate(&self) -> Result<(), StoreError> {
        let mut tx = self.desk.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK).execute(&mut *tx).await?;
        sqlx::raw_sql(
            "CREATE TABLE IF NOT EXISTS schema_version (version integer PRIMARY KEY, applied_us bigint NOT NULL)",
        )
        .execute(&mut *tx)
        .await?;
        for migration in migrate::pending(migrate::POSTGRES, &applied(&mut tx).await?)? {
            sqlx::raw_sql(migration.sql).execute(&mut *tx).await?;
            sqlx::query(concat!("INSERT INTO schema_version VALUES ($1, ", clock!(), ")"))
                .bind(migration.version)
                .execute(&mut *tx)
                .await?;
        }
        sqlx::query("INSERT INTO installation (namespace) VALUES ($1) ON CONFLICT DO NOTHING")
            .bind(Uuid::new_v4())
            .execute(&mut *tx)
            .await?;
        days::make_coming(&mut tx).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        let mut conn = self.desk.acquire().await?;
        migrate::check(migrate::POSTGRES, &applied(&mut conn).await?)
    }

    async fn check_durable(&self) -> Result<(), StoreError> {
        // Without our own options: a server whose default is not durable was not set up to keep things.
        let mut conn = PgConnection::connect_with(&self.plain).await?;
        let row = sqlx::query(
            "SELECT current_setting('server_version_num')::integer, current_setting('fsync'),
                    current_setting('full_page_writes'), current_setting('synchronous_commit')",
        )
        .fetch_one(&mut conn)
        .await?;
        conn.close().await?;
        for (column, setting) in [(1, "fsync"), (2, "full_page_writes"), (3, "synchronous_commit")] {
            if row.try_get::<String, _>(column)? == "off" {
                return Err(StoreError::NotDurable(format!("PostgreSQL runs with {setting} = off")));
            }
        }
        let version: i32 = row.try_get(0)?;
        if version < 150_000 {
            let text = format!("PostgreSQL 15 or later is needed, this is {}", version / 10_000);
            return Err(StoreError::Setup(text));
        }
        Ok(())
    }

    async fn namespace(&self) -> Result<Uuid, StoreError> {
        let read = async || {
            let row = sqlx::query("SELECT namespace FROM installation").fetch_one(&self.desk).await?;
            Ok::<Uuid, StoreError>(row.try_get(0)?)
        };
        self.namespace.get_or_try_init(read).await.copied()
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
        let seqs: Vec<i64> = seqs.iter().map(|seq| seq.0).collect();
        let rows = sqlx::query("SELECT seq FROM inbox WHERE seq = ANY($1) ORDER BY seq")
            .bind(seqs)
            .fetch_all(&self.path)
            .await?;
        rows.iter().map(|row| Ok(Seq(row.try_get(0)?))).collect()
    }

    async fn open_before(&self, seq: Seq, keys: &[OrderKey]) -> Result<bool, StoreError> {
        self.is_open_before(seq, keys).await
    }

    async fn quarantined(&self, keys: &[OrderKey]) -> Result<Vec<OrderKey>, StoreError> {
        let keys: Vec<i64> = keys.iter().map(|key| key.0).collect();
        let rows = sqlx::query("SELECT DISTINCT key FROM quarantine WHERE key = ANY($1) ORDER BY key")
            .bind(keys)
            .fetch_all(&self.path)
            .await?;
        rows.iter().map(|row| Ok(OrderKey(row.try_get(0)?))).collect()
    }

    async fn begin_record(&self, leases: &[Lease]) -> Result<Box<dyn RecordTx>, StoreError> {
        Ok(Box::new(record::Recorder::begin(&self.path, leases, Arc::clone(&self.recent)).await?))
    }

    async fn lease(&self, replica: Uuid, names: &[String], ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        leases::take(&self.path, replica, names, ttl).await
    }

    async fn seize(&self, replica: Uuid, name: &str, ttl: Duration) -> Result<Lease, StoreError> {
        leases::seize(&self.path, replica, name, ttl).await
    }

    async fn release(&self, replica: Uuid, names: &[String]) -> Result<(), StoreError> {
        leases::release(&self.path, replica, names).await
    }

    async fn heartbeat(&self, replica: Uuid, ttl: Duration) -> Result<u32, StoreError> {
        leases::heartbeat(&self.path, replica, ttl).await
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
        self.unpublish().await
    }

    async fn bus_epoch(&self) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT bus_epoch FROM installation").fetch_one(&self.desk).await?;
        Ok(row.try_get(0)?)
    }

    async fn set_bus_epoch(&self, epoch: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE installation SET bus_epoch = $1").bind(epoch).execute(&self.desk).await?;
        Ok(())
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

    async fn rest(&self, subscription: &str) -> Result<(), StoreError> {
        self.raise_floor(subscription).await
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
        self.free_bytes().await
    }
}
