//! The bus on RabbitMQ 3.10 to 4.x: a durable topic exchange, a quorum queue a subscription, publisher confirms.
//!
//! Two connections, one to publish and one to consume, so that a broker which blocks publishers does not stop
//! deliveries. Invariant: an error on a channel ends its connection, and whatever was not confirmed counts as not
//! published; nothing is repaired in place.

mod consume;
mod link;
mod publish;

use super::{Bus, BusError, Consumer, Envelope, Health, word};
use async_trait::async_trait;
use consume::QueueConsumer;
use lapin::ExchangeKind;
use lapin::options::{
    BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPScheme, AMQPUri};
use link::{Link, Session, away};
use publish::{HandOver, Outbound, publish};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// The content encoding of what is compressed: zstd with Pons's first dictionary. Every event in Pons's own queues is, as each node of
/// the broker writes it to disk and Pons alone reads it; what goes into a subscriber's own queue never is.
const ENCODING: &str = "x-pons-zstd-1";

/// The topic exchange that carries every event.
const EXCHANGE: &str = "pons.events";

/// How RabbitMQ is reached and used.
#[derive(Clone)]
pub struct RabbitMqSettings {
    /// `amqp://` or `amqps://` with user, password and virtual host; `?auth_mechanism=external` for a client certificate
    /// instead of a password. A secret.
    pub url: String,
    /// For `amqps://`; without it the host's own roots decide.
    pub tls: Option<TlsSettings>,
    /// How many confirms are outstanding at most on one channel. Default 500.
    pub window: usize,
    /// How long a confirm may take while the broker does not block publishers, before the connection counts as broken.
    /// Default 30 s.
    pub confirm_wait_max: Duration,
    /// How long a queue may take to begin handing out, before it counts as dead while its broker answers. Default 15 s.
    pub consume_wait_max: Duration,
    /// How long connecting may take. Default 10 s.
    pub connect_wait_max: Duration,
    /// The longest pause between attempts to connect. Default 10 s.
    pub reconnect_pause_max: Duration,
    /// `max-length-bytes` of a subscriber's own queue that Pons declares, in bytes. Default 256 MiB.
    pub own_queue_bytes_max: u64,
}

/// Which certificates to trust and to show. PEM.
#[derive(Clone)]
pub struct TlsSettings {
    /// Authorities to trust beside the host's own.
    pub ca: Option<String>,
    /// Our certificate chain and its private key (PKCS #8).
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl RabbitMqSettings {
    /// The defaults for a broker at this address.
    pub fn new(url: impl Into<String>) -> Self {
        RabbitMqSettings {
            url: url.into(),
            tls: None,
            window: 500,
            confirm_wait_max: Duration::from_secs(30),
            consume_wait_max: Duration::from_secs(15),
            connect_wait_max: Duration::from_secs(10),
            reconnect_pause_max: Duration::from_secs(10),
            own_queue_bytes_max: 256 << 20,
        }
    }
}

/// What may be wrong with the settings. Never repeats the address: it holds a password.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// It cannot be read.
    #[error("the broker's address is not an amqp:// or amqps:// URL")]
    Url,
    /// Certificates without TLS would not be used.
    #[error("certificates are set, but the broker's address is not amqps://")]
    TlsUnused,
    /// At least one.
    #[error("the window of confirms is 0")]
    Window,
}

/// RabbitMQ. Connects when first used, and again whenever that is needed.
pub struct RabbitMq {
    publishing: Arc<Link>,
    consuming: Link,
    /// Held by whoever begins to consume.
    beginning: tokio::sync::Mutex<()>,
    hand_over: HandOver,
    window: usize,
    consume_wait_max: Duration,
    own_queue_bytes_max: u64,
}

impl RabbitMq {
    /// Checks the settings; connects only when first used. Must be used within a tokio runtime.
    ///
    /// # Errors
    /// When the settings cannot work.
    pub fn new(settings: RabbitMqSettings) -> Result<Self, SettingsError> {
        let mut uri: AMQPUri = settings.url.parse().map_err(|_| SettingsError::Url)?;
        if settings.tls.is_some() && uri.scheme != AMQPScheme::AMQPS {
            return Err(SettingsError::TlsUnused);
        }
        if settings.window == 0 {
            return Err(SettingsError::Window);
        }
        // A broker that vanishes without a word is noticed after two of these seconds, not after two minutes.
        uri.query.heartbeat.get_or_insert(10);
        // The client keeps two buffers of 32 frames a connection: 64 KiB make 4 MiB of them, the broker's 128 KiB twice that.
        uri.query.frame_max.get_or_insert(64 << 10);
        if tracing::enabled!(target: "lapin::returned_messages", tracing::Level::WARN) {
            tracing::error!(
                directive = super::LOG_FILTER,
                "the log filter lets through what may print patients"
            );
        }
        let publishing = Arc::new(Link::new("publish", uri.clone(), &settings));
        Ok(RabbitMq {
            hand_over: HandOver::new(Arc::clone(&publishing), settings.window),
            publishing,
            consuming: Link::new("consume", uri, &settings),
            beginning: tokio::sync::Mutex::new(()),
            window: settings.window,
            consume_wait_max: settings.consume_wait_max,
            own_queue_bytes_max: settings.own_queue_bytes_max,
        })
    }

    /// Deletes a queue that hands out nothing while its broker answers, so that it is declared anew. A broker that is killed
    /// within a second of a quorum queue's making may have lost the queue's log: the queue is listed for ever, and whoever
    /// asks it for a message is cut off after a minute, or at once. What it should have held is still in the store.
    async fn give_up_dead(&self, queue: &str) -> Result<(), BusError> {
        // First of all: whatever comes of this, the queue is declared before it is used again.
        self.publishing.doubt(queue);
        // Not the publishing connection: the broker may have stopped that one.
        let session = self.consuming.session().await?;
        if is_listed(&session, queue).await? {
            tracing::warn!(queue, "queue hands out nothing while the broker answers: it is made anew");
            let channel = session.channel().await?;
            let deleted = channel.queue_delete(queue.into(), QueueDeleteOptions::default());
            session.reply(deleted).await?.map_err(|error| session.broken(away(error)))?;
        }
        Ok(())
    }

    async fn own_queue(&self, queue: &str) -> Result<(), BusError> {
        let session = self.publishing.session().await?;
        let Some(_right) = session.declaring(queue).await else { return Ok(()) };
        let bytes = i64::try_from(self.own_queue_bytes_max).unwrap_or(i64::MAX);
        let arguments = [
            ("x-max-length-bytes", AMQPValue::LongLongInt(bytes)),
            ("x-overflow", AMQPValue::LongString("reject-publish".into())),
        ];
        declare_quorum(&session, queue, &arguments).await?;
        session.know(queue);
        Ok(())
    }

    /// Deletes what a test declared under this name.
    #[cfg(test)]
    pub(crate) async fn forget(&self, name: &str) {
        let session = self.publishing.session().await.expect("the broker is there");
        let channel = session.channel().await.expect("the broker is there");
        for queue in [subscription_queue(name), mark_queue(name), name.to_owned()] {
            let options = QueueDeleteOptions::default();
            channel
                .queue_delete(queue.into(), options)
                .await
                .expect("a queue that is not there counts as deleted");
        }
    }
}

/// Declares a durable quorum queue without a delivery limit. A queue that is there with other arguments is taken as it
/// is.
async fn declare_quorum(
    session: &Session,
    queue: &str,
    arguments: &[(&str, AMQPValue)],
) -> Result<(), BusError> {
    let listed = is_listed(session, queue).await?;
    let mut table = quorum_arguments();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    if session.says_unlimited().await? {
        table.insert("x-delivery-limit".into(), UNLIMITED);
    }
    // A channel of its own, as a refusal closes it.
    let channel = session.channel().await?;
    let declared = channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), table);
    match session.reply(declared).await? {
        Ok(_) if listed => Ok(()),
        // RabbitMQ keeps where a new queue's log lies in memory for up to a second, or until the next queue is made: one that was
        // the last before a kill comes back empty and dead.
        Ok(_) => session.make_and_delete().await,
        Err(error) => match refusal(&error) {
            Some((AMQPSoftError::PRECONDITIONFAILED, reason)) if reason.contains("inequivalent") => {
                tracing::warn!(queue, reason, "queue has other arguments than ours, taken as it is");
                Ok(())
            }
            Some(_) | None => Err(session.broken(away(error))),
        },
    }
}

/// Whether the broker knows a queue.
async fn is_listed(session: &Session, queue: &str) -> Result<bool, BusError> {
    // A channel of its own, as a refusal closes it.
    let channel = session.channel().await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let asked = channel.queue_declare(queue.into(), options, FieldTable::default());
    match session.reply(asked).await? {
        Ok(_) => Ok(true),
        Err(error) if matches!(refusal(&error), Some((AMQPSoftError::NOTFOUND, _))) => Ok(false),
        Err(error) => Err(session.broken(away(error))),
    }
}

/// `x-delivery-limit` without a limit, on 4.x.
const UNLIMITED: AMQPValue = AMQPValue::LongInt(-1);

fn quorum_arguments() -> FieldTable {
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    table
}

/// The broker's soft refusal, if the error is one.
fn refusal(error: &lapin::Error) -> Option<(AMQPSoftError, &str)> {
    let lapin::ErrorKind::ProtocolError(error) = error.kind() else { return None };
    match error.kind() {
        AMQPErrorKind::Soft(soft) => Some((soft.clone(), error.get_message().as_str())),
        AMQPErrorKind::Hard(_) => None,
    }
}

/// Whether the broker failed within itself.
fn is_internal(error: &lapin::Error) -> bool {
    let lapin::ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(error.kind(), AMQPErrorKind::Hard(AMQPHardError::INTERNALERROR))
}

fn subscription_queue(subscription: &str) -> String {
    format!("pons.sub.{}", word(subscription))
}

fn mark_queue(mark: &str) -> String {
    format!("pons.mark.{}", word(mark))
}

#[async_trait]
impl Bus for RabbitMq {
    async fn declare(&self, subscription: &str) -> Result<(), BusError> {
        let session = self.publishing.session().await?;
        let queue = subscription_queue(subscription);
        let Some(_right) = session.declaring(&queue).await else { return Ok(()) };
        let channel = session.channel().await?;
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared =
            channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, options, FieldTable::default());
        session.reply(declared).await?.map_err(|error| session.broken(away(error)))?;
        declare_quorum(&session, &queue, &[]).await?;
        let key = format!("{}.#", word(subscription));
        let bound = channel.queue_bind(
            queue.as_str().into(),
            EXCHANGE.into(),
            key.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        session.reply(bound).await?.map_err(|error| session.broken(away(error)))?;
        session.know(&queue);
        Ok(())
    }

    async fn publish(&self, batch: Vec<Envelope>) -> Vec<Result<(), BusError>> {
        // What came back had no queue, or one that nothing leads to. Where this fails, publishing says so.
        if let Some(first) = batch.first() {
            let _ = self.declare(&first.subscription).await;
        }
        let mut results = Vec::with_capacity(batch.len());
        for chunk in batch.chunks(self.window) {
            let outbound: Vec<Outbound<'_>> = chunk
                .iter()
                .map(|envelope| Outbound { exchange: EXCHANGE, key: &envelope.routing_key, envelope })
                .collect();
            results.extend(publish(&self.publishing, &outbound).await);
        }
        results
    }

    async fn consume(&self, subscription: &str, window: u16) -> Result<Box<dyn Consumer>, BusError> {
        // One after the other: what breaks the connection is laid to the one queue that was asked.
        let _turn = self.beginning.lock().await;
        let session = self.consuming.session().await?;
        let channel = session.channel().await?;
        let begun = async {
            channel.basic_qos(window, BasicQosOptions::default()).await?;
            let queue = subscription_queue(subscription);
            let options = BasicConsumeOptions::default();
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await
        };
        let Ok(begun) = timeout(self.consume_wait_max, session.reply(begun)).await else {
            let error = session.broken(BusError::away("the queue did not answer in time"));
            self.give_up_dead(&subscription_queue(subscription)).await?;
            return Err(error);
        };
        match begun? {
            Ok(stream) => Ok(Box::new(QueueConsumer::new(session, channel, stream))),
            // The queue is not there: nothing is wrong with the connection.
            Err(error) if matches!(refusal(&error), Some((AMQPSoftError::NOTFOUND, _))) => {
                self.publishing.doubt(&subscription_queue(subscription));
                Err(away(error))
            }
            Err(error) => {
                let of_the_queue = is_internal(&error);
                let error = session.broken(away(error));
                if of_the_queue {
                    self.give_up_dead(&subscription_queue(subscription)).await?;
                }
                Err(error)
            }
        }
    }

    async fn marked(&self, mark: &str) -> Result<bool, BusError> {
        let session = self.publishing.session().await?;
        is_listed(&session, &mark_queue(mark)).await
    }

    async fn mark(&self, mark: &str) -> Result<(), BusError> {
        let session = self.publishing.session().await?;
        declare_quorum(&session, &mark_queue(mark), &[]).await
    }

    async fn hand_over(&self, queue: &str, envelope: Envelope) -> Result<(), BusError> {
        self.own_queue(queue).await?;
        self.hand_over.put(queue, envelope).await
    }

    fn health(&self) -> Health {
        match (self.publishing.health(), self.consuming.health()) {
            (Some(Health::Away) | None, _) | (_, Some(Health::Away)) => Health::Away,
            (Some(Health::Blocked), _) => Health::Blocked,
            // Only publishers are blocked: a consuming connection goes on.
            (Some(Health::Connected), _) => Health::Connected,
        }
    }
}
