//! Taking events off one subscription's queue.

use super::super::{BusError, Consumer, Taken, Ticket};
use super::ENCODING;
use super::link::{Session, away, next_number};
use crate::squeeze::expand;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicRejectOptions};
use lapin::types::AMQPValue;
use std::collections::BTreeSet;
use std::sync::Arc;

/// How many settled ones may wait for an older one, so as to be settled together. A quorum queue takes many at once
/// five times as cheaply as one by one.
const HELD_BACK_MAX: usize = 64;

/// One consumer on a channel of its own; dropped, its channel closes and the unsettled come back.
pub(super) struct QueueConsumer {
    session: Arc<Session>,
    channel: Channel,
    /// There until it is dropped.
    stream: Option<lapin::Consumer>,
    number: u64,
    /// Handed out, not settled.
    open: BTreeSet<u64>,
    /// Settled here, not yet told to the broker.
    held_back: BTreeSet<u64>,
}

impl QueueConsumer {
    pub(super) fn new(session: Arc<Session>, channel: Channel, stream: lapin::Consumer) -> Self {
        QueueConsumer {
            session,
            channel,
            stream: Some(stream),
            number: next_number(),
            open: BTreeSet::new(),
            held_back: BTreeSet::new(),
        }
    }

    async fn ack(&self, tag: u64, multiple: bool) -> Result<(), BusError> {
        let acked = self.channel.basic_ack(tag, BasicAckOptions { multiple });
        self.session.reply(acked).await?.map_err(|error| self.session.broken(away(error)))
    }
}

/// The client keeps a channel open for as long as it remembers a consumer on it, so it is closed by name.
impl Drop for QueueConsumer {
    fn drop(&mut self) {
        let (channel, stream) = (self.channel.clone(), self.stream.take());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // If it cannot be closed, the connection is over, and everything comes back just as well.
                let _ = channel.close(200, "done".into()).await;
                // Dropped before, it would be cancelled beside the closing; a cancel that comes after ends the whole connection.
                drop(stream);
            });
        }
    }
}

#[async_trait]
impl Consumer for QueueConsumer {
    async fn next(&mut self) -> Result<Taken, BusError> {
        loop {
            let Some(stream) = &mut self.stream else {
                return Err(BusError::away("this consumer is over"));
            };
            let delivery = match stream.next().await {
                Some(Ok(delivery)) => delivery,
                Some(Err(error)) => return Err(self.session.broken(away(error))),
                // The queue was deleted, or its leader moved.
                None => return Err(BusError::away("the broker ended this consumer")),
            };
            let tag = delivery.delivery_tag;
            let ticket = Ticket { session: self.number, tag };
            match taken(delivery, ticket) {
                Some(taken) => {
                    self.open.insert(tag);
                    return Ok(taken);
                }
                None => {
                    tracing::warn!(
                        "threw away a message on our queue that is not ours: its id is no delivery's, or its body does not read"
                    );
                    let rejected = self.channel.basic_reject(tag, BasicRejectOptions { requeue: false });
                    self.session.reply(rejected).await?.map_err(|error| self.session.broken(away(error)))?;
                }
            }
        }
    }

    async fn settle(&mut self, tickets: &[Ticket]) -> Result<(), BusError> {
        for ticket in tickets.iter().filter(|ticket| ticket.session == self.number) {
            if self.open.remove(&ticket.tag) {
                self.held_back.insert(ticket.tag);
            }
        }
        let oldest_open = self.open.first().copied().unwrap_or(u64::MAX);
        let later = self.held_back.split_off(&oldest_open);
        if let Some(last) = self.held_back.last().copied() {
            self.ack(last, true).await?;
        }
        self.held_back = later;
        if tickets.is_empty() || self.held_back.len() > HELD_BACK_MAX {
            for tag in std::mem::take(&mut self.held_back) {
                self.ack(tag, false).await?;
            }
        }
        Ok(())
    }
}

/// What was delivered, if it is one of ours.
fn taken(delivery: Delivery, ticket: Ticket) -> Option<Taken> {
    let body = match delivery.properties.content_encoding() {
        None => Bytes::from(delivery.data),
        Some(encoding) if encoding.as_str() == ENCODING => expand(&delivery.data)?.into(),
        Some(_) => return None,
    };
    let id = delivery.properties.message_id().as_ref()?.as_str().parse().ok()?;
    let traceparent =
        delivery.properties.headers().as_ref().and_then(|headers| match headers.inner().get("traceparent") {
            Some(AMQPValue::LongString(text)) => std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned),
            Some(_) | None => None,
        });
    Some(Taken { delivery: id, traceparent, redelivered: delivery.redelivered, body, ticket })
}
