//! PostgreSQL, RabbitMQ and Mosquitto as the tests have them: those that `tests/run` started, or some of one's own to kill.

use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The database.
    Postgres,
    /// The broker.
    Rabbitmq,
    /// The broker of MQTT.
    Mosquitto,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Postgres => "postgres",
            Part::Rabbitmq => "rabbitmq",
            Part::Mosquitto => "mosquitto",
        }
    }
}

/// The servers, by their URLs.
#[derive(Clone, Debug, Default)]
pub struct Services {
    /// A URL of a PostgreSQL where databases may be created.
    pub postgres: String,
    /// A URL of a RabbitMQ.
    pub amqp: String,
    /// A URL of its management API.
    pub management: String,
    /// Where a Mosquitto listens, `HOST:PORT`.
    pub mqtt: String,
}

impl Services {
    /// Those that `tests/run` started.
    ///
    /// # Errors
    /// When one of `PONS_TEST_POSTGRES`, `PONS_TEST_AMQP`, `PONS_TEST_MANAGEMENT` and `PONS_TEST_MQTT` is not set.
    pub fn from_environment() -> Result<Services> {
        let read =
            |name: &str| std::env::var(name).with_context(|| format!("{name} is not set: tests/run sets it"));
        Ok(Services {
            postgres: read("PONS_TEST_POSTGRES")?,
            amqp: read("PONS_TEST_AMQP")?,
            management: read("PONS_TEST_MANAGEMENT")?,
            mqtt: read("PONS_TEST_MQTT")?,
        })
    }

    /// A new, empty database, named by `prefix`; answers its URL.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn new_database(&self, prefix: &str) -> Result<String> {
        let name = format!("{prefix}_{}", uuid::Uuid::now_v7().simple());
        let client = connect(&self.postgres).await?;
        client.batch_execute(&format!("create database {name}")).await.context("create a database")?;
        let (server, _) = self.postgres.rsplit_once('/').context("a URL with a database")?;
        Ok(format!("{server}/{name}"))
    }

    /// Drops a database of [`Services::new_database`], whoever is connected to it.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn drop_database(&self, url: &str) -> Result<()> {
        let (_, name) = url.rsplit_once('/').context("a URL with a database")?;
        let client = connect(&self.postgres).await?;
        client.batch_execute(&format!("drop database {name} with (force)")).await.context("drop a database")
    }
}

/// Connects to PostgreSQL.
///
/// # Errors
/// When it cannot be reached.
pub async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) =
        tokio_postgres::connect(url, tokio_postgres::NoTls).await.context("PostgreSQL")?;
    // The client's own calls report what goes wrong on the connection.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

/// A PostgreSQL, a RabbitMQ and a Mosquitto of one's own, to be killed, wiped and started again. They end with this value.
#[derive(Debug)]
pub struct OwnServices {
    folder: PathBuf,
    /// Where they are.
    pub urls: Services,
}

impl OwnServices {
    /// Starts them in a folder, which `tests/services` makes if it is not there.
    ///
    /// # Errors
    /// When one does not start, most likely because it is not installed.
    pub async fn start(folder: &Path) -> Result<OwnServices> {
        let mut started = OwnServices { folder: folder.to_owned(), urls: Services::default() };
        started.script(&["start"], None).await?;
        let env = tokio::fs::read_to_string(folder.join("env")).await.context("the services' addresses")?;
        let mut values: HashMap<&str, &str> = env.lines().filter_map(|line| line.split_once('=')).collect();
        let mut take =
            |name| values.remove(name).map(str::to_owned).with_context(|| format!("{name} in env"));
        started.urls = Services {
            postgres: take("PONS_TEST_POSTGRES")?,
            amqp: take("PONS_TEST_AMQP")?,
            management: take("PONS_TEST_MANAGEMENT")?,
            mqtt: take("PONS_TEST_MQTT")?,
        };
        Ok(started)
    }

    /// Ends one with SIGKILL.
    ///
    /// # Errors
    /// When the script cannot be run.
    pub async fn kill(&self, part: Part) -> Result<()> {
        self.script(&["kill"], Some(part)).await
    }

    /// Starts one again.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&self, part: Part) -> Result<()> {
        self.script(&["start"], Some(part)).await
    }

    /// Ends the broker with SIGKILL and throws its data away.
    ///
    /// # Errors
    /// When the script cannot be run.
    pub async fn wipe_broker(&self) -> Result<()> {
        self.script(&["wipe"], Some(Part::Rabbitmq)).await
    }

    /// Gives PostgreSQL the log of a server that has run for a day: a new segment of it is 16 MB of zeros, written and
    /// synchronized while every commit waits, and a server that has been through a few checkpoints takes used ones again.
    /// Answers how many bytes of log there are.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn age(&self) -> Result<u64> {
        let client = connect(&self.urls.postgres).await?;
        // Each by itself: neither of the first two may be part of a transaction.
        client.batch_execute("alter system set min_wal_size = '8GB'").await.context("min_wal_size")?;
        client.batch_execute("select pg_reload_conf()").await.context("the settings, read anew")?;
        for _ in 0..8 * 1024 / 16 {
            let segment = "select pg_logical_emit_message(false, '', ''), pg_switch_wal()";
            client.batch_execute(segment).await.context("a segment of the log")?;
        }
        self.settle().await?;
        let held = "select sum(size)::bigint from pg_ls_waldir()";
        let bytes: i64 = client.query_one(held, &[]).await.context("the size of the log")?.get(0);
        Ok(bytes.unsigned_abs())
    }

    /// Has PostgreSQL write what it holds back, so that what is measured next does not pay for what came before.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn settle(&self) -> Result<()> {
        let client = connect(&self.urls.postgres).await?;
        client.batch_execute("checkpoint").await.context("a checkpoint")
    }

    /// The process that stands for one of them: the postmaster, or the shell that runs the broker.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pid(&self, part: Part) -> Result<u32> {
        let file = self.folder.join(part.name()).with_extension("pid");
        std::fs::read_to_string(file).context("not running")?.trim().parse().context("a process id")
    }

    async fn script(&self, verb: &[&str], part: Option<Part>) -> Result<()> {
        let output = Command::new(script())
            .args(verb)
            .arg(&self.folder)
            .args(part.map(Part::name))
            .stdin(Stdio::null())
            // Not a pipe: the servers would keep its other end open.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await
            .context("tests/services")?;
        if !output.success() {
            bail!("tests/services {verb:?} {part:?} failed; see {}/log", self.folder.display());
        }
        Ok(())
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("services")
}

impl Drop for OwnServices {
    fn drop(&mut self) {
        let _ = std::process::Command::new(script()).arg("stop").arg(&self.folder).status();
    }
}
