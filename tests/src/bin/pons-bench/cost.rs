//! What a run cost beside wall time: processor time by process, rows and WAL bytes of the database.

use anyhow::{Context, Result};
use std::time::Duration;
use tests::gateway::{Gateway, usage};
use tests::services::{OwnServices, Part, connect};

/// A reading of all meters; two of them make a bill.
pub(crate) struct Meters {
    gateway: Duration,
    postgres: Duration,
    rabbitmq: Duration,
    ourselves: Duration,
    wal: i64,
    rows: i64,
    commits: i64,
    images: i64,
    syncs: i64,
    sync_ms: f64,
}

impl Meters {
    /// Reads all meters.
    ///
    /// # Errors
    /// When a process or the database is away.
    pub(crate) async fn read(
        gateway: Option<&Gateway>,
        services: &OwnServices,
        database: &str,
    ) -> Result<Meters> {
        let client = connect(database).await?;
        // Statistics of a session are flushed at its end or once a second.
        let row = client
            .query_one(
                "select (pg_current_wal_insert_lsn() - '0/0')::bigint, tup_inserted + tup_updated + tup_deleted, xact_commit, \
                 wal_fpi, wal_sync, wal_sync_time \
                 from pg_stat_database, pg_stat_wal where datname = current_database()",
                &[],
            )
            .await
            .context("the database's statistics")?;
        Ok(Meters {
            gateway: gateway.map(Gateway::processor).unwrap_or_default(),
            postgres: family(services.pid(Part::Postgres)?)?,
            rabbitmq: family(services.pid(Part::Rabbitmq)?)?,
            ourselves: usage(std::process::id())?.processor,
            wal: row.get(0),
            rows: row.get(1),
            commits: row.get(2),
            images: row.get(3),
            syncs: row.get(4),
            sync_ms: row.get(5),
        })
    }

    /// Prints what lies between an earlier reading and this one, by message.
    pub(crate) fn print_since(&self, before: &Meters, messages: u64) {
        let each = |now: Duration, then: Duration| (now - then).as_secs_f64() * 1e6 / messages as f64;
        let per = |now: i64, then: i64| (now - then) as f64 / messages as f64;
        println!(
            "  processor us a message: gateway {:.0}, PostgreSQL {:.0}, RabbitMQ {:.0}, sender and webhook {:.0}; \
             rows written {:.2}, WAL bytes {:.0}, commits {:.3} a message",
            each(self.gateway, before.gateway),
            each(self.postgres, before.postgres),
            each(self.rabbitmq, before.rabbitmq),
            each(self.ourselves, before.ourselves),
            per(self.rows, before.rows),
            per(self.wal, before.wal),
            per(self.commits, before.commits),
        );
        let syncs = self.syncs - before.syncs;
        println!(
            "  PostgreSQL's log: synchronized {:.3} times a message, {:.1} ms each; {:.2} whole pages a message",
            syncs as f64 / messages as f64,
            (self.sync_ms - before.sync_ms) / syncs as f64,
            per(self.images, before.images),
        );
    }
}

/// Processor time of a process, of those it began and of those of them that have ended.
fn family(root: u32) -> Result<Duration> {
    let mut ticks = 0;
    let mut parents = vec![root];
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, fields)) = stat.rsplit_once(')') else { continue };
        let fields: Vec<u64> =
            fields.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect();
        // Parent, then, ten further on, time in user and system mode, its own and that of its ended children.
        all.push((pid, fields[0] as u32, fields[10..14].iter().sum::<u64>()));
    }
    while let Some(parent) = parents.pop() {
        ticks += all.iter().filter(|(pid, ..)| *pid == parent).map(|(.., ticks)| ticks).sum::<u64>();
        parents.extend(all.iter().filter(|(_, of, _)| *of == parent).map(|(pid, ..)| *pid));
    }
    Ok(Duration::from_millis(ticks * 10))
}
