//! One connection to the broker, made again when it is over.
//!
//! Whoever needs it asks for the session; the first to find it broken connects anew, with growing pauses between attempts.

use super::super::{BusError, Health};
use super::RabbitMqSettings;
use super::queues::{UNLIMITED, quorum_arguments};
use lapin::options::{
    BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Connect, Connection, ConnectionProperties};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Numbers sessions and consumers over the whole process.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// The next number, never given before in this process.
pub(super) fn next_number() -> u64 {
    NUMBERS.fetch_add(1, Ordering::Relaxed)
}

/// Wraps the client's error.
pub(super) fn away(error: lapin::Error) -> BusError {
    BusError::Away(Box::new(error))
}

/// The way to the broker for one purpose.
pub(super) struct Link {
    purpose: &'static str,
    uri: AMQPUri,
    tls: OwnedTLSConfig,
    connect_wait_max: Duration,
    confirm_wait_max: Duration,
    pause_max: Duration,
    attempts: tokio::sync::Mutex<Attempts>,
    /// Whether anybody has asked for it.
    used: AtomicBool,
    current: Mutex<Option<Arc<Session>>>,
}

/// The attempts to connect since the last success.
#[derive(Default)]
struct Attempts {
    failed: u32,
    not_before: Option<Instant>,
}

impl Link {
    pub(super) fn new(purpose: &'static str, uri: AMQPUri, settings: &RabbitMqSettings) -> Self {
        let tls = settings.tls.as_ref().map_or_else(OwnedTLSConfig::default, |tls| OwnedTLSConfig {
            cert_chain: tls.ca.clone(),
            identity: tls
                .identity
                .clone()
                .map(|(certificate, key)| OwnedIdentity::PKCS8 { pem: certificate, key }),
        });
        Link {
            purpose,
            uri,
            tls,
            connect_wait_max: settings.connect_wait_max,
            confirm_wait_max: settings.confirm_wait_max,
            pause_max: settings.reconnect_pause_max,
            attempts: tokio::sync::Mutex::default(),
            used: AtomicBool::new(false),
            current: Mutex::default(),
        }
    }

    /// The session that works, connecting if there is none.
    pub(super) async fn session(&self) -> Result<Arc<Session>, BusError> {
        if let Some(session) = self.alive() {
            return Ok(session);
        }
        self.used.store(true, Ordering::Relaxed);
        let mut attempts = self.attempts.lock().await;
        if let Some(session) = self.alive() {
            return Ok(session);
        }
        if attempts.not_before.is_some_and(|at| Instant::now() < at) {
            return Err(BusError::away("it pauses before the next attempt to connect"));
        }
        // Drops the old one with all its channels: what it did not confirm was not published.
        self.lock().take();
        match self.connect().await {
            Ok(session) => {
                *attempts = Attempts::default();
                tracing::info!(purpose = self.purpose, session = session.number, "connected to the broker");
                *self.lock() = Some(Arc::clone(&session));
                Ok(session)
            }
            Err(error) => {
                let pause = Duration::from_millis(100)
                    .saturating_mul(1 << attempts.failed.min(16))
                    .min(self.pause_max);
                // Between half of it and all of it, so that replicas do not come together.
                let pause = pause.mul_f64(0.5 + 0.5 * super::super::random());
                attempts.failed += 1;
                attempts.not_before = Some(Instant::now() + pause);
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                tracing::warn!(purpose = self.purpose, cause, "no connection to the broker");
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Arc<Session>, BusError> {
        let name = format!("pons {} {}", self.purpose, std::process::id());
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let runtime = lapin::runtime::default_runtime().map_err(away)?;
        let connecting = self.uri.clone().connect_with_config(properties, self.tls.clone(), runtime);
        let connection = timeout(self.connect_wait_max, connecting)
            .await
            .map_err(|_| BusError::away("connecting took too long"))?
            .map_err(away)?;
        Ok(Arc::new(Session {
            number: next_number(),
            purpose: self.purpose,
            connection,
            confirm_wait_max: self.confirm_wait_max,
            over: AtomicBool::new(false),
            told_blocked: AtomicBool::new(false),
            known: Mutex::default(),
            declaring: tokio::sync::Mutex::default(),
            unlimited: tokio::sync::OnceCell::new(),
            spare: Mutex::default(),
        }))
    }

    /// `None` until it is first used.
    pub(super) fn health(&self) -> Option<Health> {
        match self.alive() {
            Some(session) if session.connection.status().blocked() => Some(Health::Blocked),
            Some(_) => Some(Health::Connected),
            None => self.used.load(Ordering::Relaxed).then_some(Health::Away),
        }
    }

    /// Notes that a queue may be gone.
    pub(super) fn doubt(&self, queue: &str) {
        if let Some(session) = self.alive() {
            session.doubt(queue);
        }
    }

    fn alive(&self) -> Option<Arc<Session>> {
        self.lock().as_ref().filter(|session| session.is_alive()).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        self.current.lock().expect("nothing panics while it holds this lock")
    }
}

/// One connection from its beginning to its end.
pub(super) struct Session {
    number: u64,
    purpose: &'static str,
    connection: Connection,
    confirm_wait_max: Duration,
    over: AtomicBool,
    /// Whether it was told that the broker stops publishers.
    told_blocked: AtomicBool,
    /// The queues that are known to be there.
    known: Mutex<HashSet<String>>,
    /// Held while a queue is declared: a broker that is told to make one twice at the same time may fail.
    declaring: tokio::sync::Mutex<()>,
    /// See [`Session::says_unlimited`].
    unlimited: tokio::sync::OnceCell<bool>,
    /// Channels in confirm mode on which nothing is outstanding.
    spare: Mutex<Vec<Channel>>,
}

impl Session {
    fn is_alive(&self) -> bool {
        !self.over.load(Ordering::Relaxed) && self.connection.status().connected()
    }

    /// Ends this session: the next one who asks connects anew. Answers the error that it was given.
    pub(super) fn broken(&self, error: BusError) -> BusError {
        if !self.over.swap(true, Ordering::Relaxed) {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            tracing::warn!(
                purpose = self.purpose,
                session = self.number,
                cause,
                "connection to the broker is over"
            );
        }
        error
    }

    /// A new channel.
    pub(super) async fn channel(&self) -> Result<Channel, BusError> {
        self.reply(self.connection.create_channel()).await?.map_err(|error| self.broken(away(error)))
    }

    /// Waits for an answer of the broker: for as long as it blocks publishers, else up to the bound.
    pub(super) async fn reply<T>(
        &self,
        answer: impl Future<Output = lapin::Result<T>>,
    ) -> Result<lapin::Result<T>, BusError> {
        let mut answer = std::pin::pin!(answer);
        loop {
            match timeout(self.confirm_wait_max, answer.as_mut()).await {
                Ok(answer) => {
                    self.told_blocked.store(false, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(_) if self.connection.status().blocked() && self.is_alive() => {
                    if !self.told_blocked.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            purpose = self.purpose,
                            session = self.number,
                            "the broker stops publishers, as it does when it is short of memory or disk: waiting"
                        );
                    }
                }
                Err(_) => return Err(self.broken(BusError::away("the broker did not answer in time"))),
            }
        }
    }

    /// Whether a quorum queue has to say `x-delivery-limit: -1` to have no limit. On 4.x it has to, or it throws away what
    /// came back twenty times; 3.x takes -1 as well, and throws away what comes back once. The client does not tell
    /// the broker's version, so this looks at what a queue with -1 does.
    pub(super) async fn says_unlimited(&self) -> Result<bool, BusError> {
        self.unlimited.get_or_try_init(|| self.probe()).await.copied()
    }

    /// Makes a queue and deletes it: then the broker has written down what it knows of the one that was made before.
    pub(super) async fn make_and_delete(&self) -> Result<(), BusError> {
        let (queue, table) = passing_queue();
        let channel = self.channel().await?;
        let made = async {
            channel.queue_declare(queue.clone(), QueueDeclareOptions::durable(), table).await?;
            channel.queue_delete(queue, QueueDeleteOptions::default()).await
        };
        self.reply(made).await?.map_err(|error| self.broken(away(error)))?;
        Ok(())
    }

    async fn probe(&self) -> Result<bool, BusError> {
        let (queue, mut table) = passing_queue();
        table.insert("x-delivery-limit".into(), UNLIMITED);
        let channel = self.channel().await?;
        let looked = async {
            channel.queue_declare(queue.clone(), QueueDeclareOptions::durable(), table).await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let options = BasicPublishOptions::default();
            channel
                .basic_publish("".into(), queue.clone(), options, b"", BasicProperties::default())
                .await?
                .await?;
            if let Some(message) = channel.basic_get(queue.clone(), BasicGetOptions::default()).await? {
                let back = BasicNackOptions { requeue: true, multiple: false };
                channel.basic_nack(message.delivery_tag, back).await?;
            }
            let kept = channel.basic_get(queue.clone(), BasicGetOptions { no_ack: true }).await?.is_some();
            channel.queue_delete(queue.clone(), QueueDeleteOptions::default()).await?;
            Ok(kept)
        };
        self.reply(looked).await?.map_err(|error| self.broken(away(error)))
    }

    /// The right to declare a queue, unless it is known to be there.
    pub(super) async fn declaring(&self, queue: &str) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if self.knows(queue) {
            return None;
        }
        let right = self.declaring.lock().await;
        (!self.knows(queue)).then_some(right)
    }

    fn knows(&self, queue: &str) -> bool {
        lock(&self.known).contains(queue)
    }

    /// Notes that a queue is there.
    pub(super) fn know(&self, queue: &str) {
        lock(&self.known).insert(queue.to_owned());
    }

    /// Notes that a queue may be gone.
    pub(super) fn doubt(&self, queue: &str) {
        lock(&self.known).remove(queue);
    }

    /// Takes a channel in confirm mode that nobody else uses.
    pub(super) fn take_spare(&self) -> Option<Channel> {
        lock(&self.spare).pop()
    }

    /// Gives such a channel back, once nothing is outstanding on it.
    pub(super) fn put_spare(&self, channel: Channel) {
        lock(&self.spare).push(channel);
    }
}

/// A quorum queue of a moment: its name and its arguments.
fn passing_queue() -> (ShortString, FieldTable) {
    let mut table = quorum_arguments();
    // Milliseconds: should this process die meanwhile, the queue goes by itself.
    table.insert("x-expires".into(), AMQPValue::LongInt(60_000));
    (format!("pons.probe.{}", uuid::Uuid::now_v7().simple()).into(), table)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}
