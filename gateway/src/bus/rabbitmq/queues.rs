//! The queues on the broker: how they are made, found, and given up when a kill of the broker left them dead.
//!
//! RabbitMQ keeps where a new quorum queue's log lies in memory for up to a second, or until the next queue is made. A queue that
//! was the last before a kill comes back dead: it is listed for ever, hands out nothing, and confirms nothing. So whatever is
//! made here is followed by another at once, and what somebody else has made is tried before it is used.

use super::super::{BusError, handed};
use super::link::{Link, Session, away};
use super::{EXCHANGE, mark_queue, subscription_queue, word};
use lapin::options::{
    BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer, ExchangeKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// `x-delivery-limit` without a limit, on 4.x.
pub(super) const UNLIMITED: AMQPValue = AMQPValue::LongInt(-1);

/// The queues, by the connections that make them and read from them.
pub(super) struct Queues {
    pub(super) publishing: Link,
    pub(super) consuming: Link,
    /// Held by whoever begins to consume.
    pub(super) beginning: tokio::sync::Mutex<()>,
    pub(super) consume_wait_max: Duration,
    pub(super) own_queue_bytes_max: u64,
}

/// What came of beginning to consume.
pub(super) enum Begun {
    /// It hands out.
    Consuming(Arc<Session>, Channel, Box<Consumer>),
    /// There is no such queue.
    NotThere,
    /// Our user may not read it, or somebody else alone may.
    NotForUs,
}

impl Queues {
    /// Makes a subscription's queue and binds it, unless that is known to be done.
    pub(super) async fn of_subscription(&self, subscription: &str) -> Result<(), BusError> {
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

    /// Deletes a subscription's queue; one that is not there is none.
    pub(super) async fn remove(&self, subscription: &str) -> Result<(), BusError> {
        let session = self.publishing.session().await?;
        let queue = subscription_queue(subscription);
        self.publishing.doubt(&queue);
        delete(&session, &queue).await
    }

    /// Deletes a subscriber's own queue, with what lies in it and its marks.
    pub(super) async fn remove_own(&self, subscription: &str, queue: &str) -> Result<(), BusError> {
        let session = self.publishing.session().await?;
        self.publishing.doubt(queue);
        for name in [queue.to_owned(), mark_queue(&made(queue)), mark_queue(&handed(subscription))] {
            delete(&session, &name).await?;
        }
        Ok(())
    }

    /// Makes a subscriber's own queue, unless it is there. One that was never seen to work is tried first, whoever made it: a
    /// dead one never held anything, so it is made anew. A mark tells those that have been seen to work; they are left alone for
    /// ever, as only their subscriber knows what lies in them.
    pub(super) async fn of_subscriber(&self, queue: &str) -> Result<(), BusError> {
        let session = self.publishing.session().await?;
        let Some(_right) = session.declaring(queue).await else { return Ok(()) };
        let mark = mark_queue(&made(queue));
        let listed = is_listed(&session, queue).await?;
        let mut works = is_listed(&session, &mark).await?;
        if works && !listed {
            delete(&session, &mark).await?;
            works = false;
        }
        if listed && !works {
            self.try_out(queue).await?;
        }
        let bytes = i64::try_from(self.own_queue_bytes_max).unwrap_or(i64::MAX);
        let arguments = [
            ("x-max-length-bytes", AMQPValue::LongLongInt(bytes)),
            ("x-overflow", AMQPValue::LongString("reject-publish".into())),
        ];
        declare_quorum(&session, queue, &arguments).await?;
        if !works {
            declare_quorum(&session, &mark, &[]).await?;
        }
        session.know(queue);
        Ok(())
    }

    /// Begins to consume and leaves it at that: what was handed out goes back to where it was.
    async fn try_out(&self, queue: &str) -> Result<(), BusError> {
        if let Begun::Consuming(session, channel, stream) = self.begin(queue, 1).await? {
            let closed = channel.close(200, "seen to work".into());
            session.reply(closed).await?.map_err(|error| session.broken(away(error)))?;
            // Not before: see the end of a `QueueConsumer`.
            drop(stream);
        }
        Ok(())
    }

    /// Begins to consume, at most `window` unsettled at a time. A queue that turns out to be dead is deleted.
    pub(super) async fn begin(&self, queue: &str, window: u16) -> Result<Begun, BusError> {
        // One after the other: what breaks the connection is laid to the one queue that was asked.
        let _turn = self.beginning.lock().await;
        let session = self.consuming.session().await?;
        let channel = session.channel().await?;
        let begun = async {
            channel.basic_qos(window, BasicQosOptions::default()).await?;
            let options = BasicConsumeOptions::default();
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await
        };
        let Ok(begun) = timeout(self.consume_wait_max, session.reply(begun)).await else {
            let error = session.broken(BusError::away("the queue did not answer in time"));
            self.give_up_dead(queue).await?;
            return Err(error);
        };
        match begun? {
            Ok(stream) => Ok(Begun::Consuming(session, channel, Box::new(stream))),
            Err(error) => match refusal(&error) {
                Some((AMQPSoftError::NOTFOUND, _)) => {
                    self.publishing.doubt(queue);
                    Ok(Begun::NotThere)
                }
                Some((AMQPSoftError::ACCESSREFUSED | AMQPSoftError::RESOURCELOCKED, _)) => {
                    Ok(Begun::NotForUs)
                }
                _ => {
                    let of_the_queue = is_internal(&error);
                    let error = session.broken(away(error));
                    if of_the_queue {
                        self.give_up_dead(queue).await?;
                    }
                    Err(error)
                }
            },
        }
    }

    /// Deletes a queue that hands out nothing while its broker answers, so that it is declared anew. Whoever asks it for a message
    /// is cut off after a minute, or at once. What it should have held is still in the store. Where only some nodes of the broker
    /// are away, it refuses to delete.
    async fn give_up_dead(&self, queue: &str) -> Result<(), BusError> {
        // First of all: whatever comes of this, the queue is declared before it is used again.
        self.publishing.doubt(queue);
        // Not the publishing connection: the broker may have stopped that one.
        let session = self.consuming.session().await?;
        if is_listed(&session, queue).await? {
            tracing::warn!(queue, "queue hands out nothing while the broker answers: it is made anew");
            delete(&session, queue).await?;
        }
        Ok(())
    }

    /// Whether a mark is there.
    pub(super) async fn has_mark(&self, mark: &str) -> Result<bool, BusError> {
        let session = self.publishing.session().await?;
        is_listed(&session, &mark_queue(mark)).await
    }

    /// Sets a mark: a queue that nothing goes into, and that lives as long as the broker's data.
    pub(super) async fn mark(&self, mark: &str) -> Result<(), BusError> {
        let session = self.publishing.session().await?;
        declare_quorum(&session, &mark_queue(mark), &[]).await
    }
}

/// The mark of a subscriber's own queue that was seen to work.
pub(super) fn made(queue: &str) -> String {
    format!("made.{queue}")
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

async fn delete(session: &Session, queue: &str) -> Result<(), BusError> {
    let channel = session.channel().await?;
    let deleted = channel.queue_delete(queue.into(), QueueDeleteOptions::default());
    session.reply(deleted).await?.map_err(|error| session.broken(away(error)))?;
    Ok(())
}

pub(super) fn quorum_arguments() -> FieldTable {
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
