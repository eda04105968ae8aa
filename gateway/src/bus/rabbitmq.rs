//! The bus on RabbitMQ 3.10 to 4.x: a durable topic exchange, a quorum queue a subscription, publisher confirms.
//!
//! Two connections, one to publish and one to consume, so that a broker which blocks publishers does not stop
//! deliveries. Invariant: an error on a channel ends its connection, and whatever was not confirmed counts as not
//! published; nothing is repaired in place.

mod consume;
mod keys;
mod link;
mod publish;
mod queues;

use super::{Bus, BusError, Consumer, Envelope, Health, word};
use async_trait::async_trait;
use consume::QueueConsumer;
pub use keys::{Key, KeyError, Keys};
use lapin::uri::{AMQPScheme, AMQPUri};
use link::Link;
use publish::{HandOver, Outbound, publish};
use queues::{Begun, Queues};
use std::sync::Arc;
use std::time::Duration;

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
    queues: Arc<Queues>,
    hand_over: HandOver,
    window: usize,
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
        let queues = Arc::new(Queues {
            publishing: Link::new("publish", uri.clone(), &settings),
            consuming: Link::new("consume", uri, &settings),
            beginning: tokio::sync::Mutex::new(()),
            consume_wait_max: settings.consume_wait_max,
            own_queue_bytes_max: settings.own_queue_bytes_max,
        });
        Ok(RabbitMq {
            hand_over: HandOver::new(Arc::clone(&queues), settings.window),
            queues,
            window: settings.window,
        })
    }

    /// Deletes what a test declared under this name.
    #[cfg(test)]
    pub(crate) async fn forget(&self, name: &str) {
        let session = self.queues.publishing.session().await.expect("the broker is there");
        let channel = session.channel().await.expect("the broker is there");
        let made = mark_queue(&queues::made(name));
        for queue in [subscription_queue(name), mark_queue(name), name.to_owned(), made] {
            let options = lapin::options::QueueDeleteOptions::default();
            channel
                .queue_delete(queue.into(), options)
                .await
                .expect("a queue that is not there counts as deleted");
        }
    }
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
        self.queues.of_subscription(subscription).await
    }

    async fn remove(&self, subscription: &str) -> Result<(), BusError> {
        self.queues.remove(subscription).await
    }

    async fn remove_own(&self, subscription: &str, queue: &str) -> Result<(), BusError> {
        self.queues.remove_own(subscription, queue).await
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
            results.extend(publish(&self.queues.publishing, &outbound).await);
        }
        results
    }

    async fn consume(&self, subscription: &str, window: u16) -> Result<Box<dyn Consumer>, BusError> {
        match self.queues.begin(&subscription_queue(subscription), window).await? {
            Begun::Consuming(session, channel, stream) => {
                Ok(Box::new(QueueConsumer::new(session, channel, *stream)))
            }
            // Nothing is wrong with the connection.
            Begun::NotThere => Err(BusError::away("the queue is not there")),
            Begun::NotForUs => Err(BusError::away("the broker does not let us consume from the queue")),
        }
    }

    async fn marked(&self, mark: &str) -> Result<bool, BusError> {
        self.queues.has_mark(mark).await
    }

    async fn mark(&self, mark: &str) -> Result<(), BusError> {
        self.queues.mark(mark).await
    }

    async fn hand_over(&self, queue: &str, envelope: Envelope) -> Result<(), BusError> {
        self.hand_over.put(queue, envelope).await
    }

    fn health(&self) -> Health {
        match (self.queues.publishing.health(), self.queues.consuming.health()) {
            (Some(Health::Away) | None, _) | (_, Some(Health::Away)) => Health::Away,
            (Some(Health::Blocked), _) => Health::Blocked,
            // Only publishers are blocked: a consuming connection goes on.
            (Some(Health::Connected), _) => Health::Connected,
        }
    }
}
