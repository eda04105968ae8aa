//! Publishing with confirms in a window.
//!
//! A channel carries one batch at a time. So the frames of two tasks never mix, a message that comes back unroutable can
//! only belong to the batch at hand, and which one it is says its message id, never the order of the confirms.

use super::super::{BusError, Envelope};
use super::ENCODING;
use super::link::{Link, Session, away};
use super::queues::Queues;
use crate::squeeze::squeeze;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, PublisherConfirm};
use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use tokio::sync::oneshot;

/// Persistent, by AMQP 0-9-1.
const PERSISTENT: u8 = 2;

/// One message and where it goes.
pub(super) struct Outbound<'a> {
    pub(super) exchange: &'a str,
    pub(super) key: &'a str,
    pub(super) envelope: &'a Envelope,
}

/// Publishes a batch on a channel of its own, and answers once all of it is settled.
pub(super) async fn publish(link: &Link, batch: &[Outbound<'_>]) -> Vec<Result<(), BusError>> {
    match try_publish(link, batch).await {
        Ok(results) => results,
        Err(error) => {
            let reason = reason(&error);
            batch.iter().map(|_| Err(BusError::Away(reason.clone().into()))).collect()
        }
    }
}

async fn try_publish(link: &Link, batch: &[Outbound<'_>]) -> Result<Vec<Result<(), BusError>>, BusError> {
    let session = link.session().await?;
    let channel = match session.take_spare() {
        Some(channel) => channel,
        None => {
            let channel = session.channel().await?;
            let selected = channel.confirm_select(ConfirmSelectOptions::default());
            session.reply(selected).await?.map_err(|error| session.broken(away(error)))?;
            channel
        }
    };
    // Dropped half way through (the caller gave up), the channel is closed with what it carries.
    let results = send(&session, &channel, batch).await?;
    session.put_spare(channel);
    Ok(results)
}

/// A message whose frames are queued.
enum Sent<F> {
    /// Not yet all written to the socket.
    Writing(Pin<Box<F>>),
    Written(PublisherConfirm),
}

async fn send(
    session: &Session,
    channel: &Channel,
    batch: &[Outbound<'_>],
) -> Result<Vec<Result<(), BusError>>, BusError> {
    let broken = |error| session.broken(away(error));
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let bodies: Vec<Cow<'_, [u8]>> = batch.iter().map(body_of).collect();
    let mut sent = Vec::with_capacity(batch.len());
    for (Outbound { exchange, key, envelope }, body) in batch.iter().zip(&bodies) {
        let mut writing = Box::pin(channel.basic_publish(
            (*exchange).into(),
            (*key).into(),
            options,
            body,
            properties(envelope, matches!(body, Cow::Owned(_))),
        ));
        // The first poll queues the frames, so they leave in order, and nothing waits for the socket in between.
        match writing.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(written) => sent.push(Sent::Written(written.map_err(broken)?)),
            Poll::Pending => sent.push(Sent::Writing(writing)),
        }
    }
    let mut refused = vec![false; sent.len()];
    let mut returned: HashSet<ShortString> = HashSet::new();
    for (sent, refused) in sent.into_iter().zip(&mut refused) {
        let confirm = match sent {
            Sent::Writing(writing) => session.reply(writing).await?.map_err(broken)?,
            Sent::Written(confirm) => confirm,
        };
        let confirmation = session.reply(confirm).await?.map_err(broken)?;
        *refused = !confirmation.is_ack();
        // The client hands what came back to whichever confirm is next.
        if let Some(message) = confirmation.take_message()
            && let Some(id) = message.properties.message_id()
        {
            returned.insert(id.clone());
        }
    }
    let result = |(outbound, refused): (&Outbound<'_>, bool)| {
        if !returned.is_empty() && returned.contains(&message_id(outbound.envelope)) {
            let envelope = outbound.envelope;
            tracing::warn!(delivery = %envelope.delivery, subscription = %envelope.subscription, "no queue took an event");
            // For our own queues the key's first word finds it; a subscriber's own queue is the key itself.
            session.doubt(outbound.key);
            session.doubt(&super::subscription_queue(&envelope.subscription));
            Err(BusError::Returned)
        } else if refused {
            Err(BusError::Refused)
        } else {
            Ok(())
        }
    };
    Ok(batch.iter().zip(refused).map(result).collect())
}

/// What is written: compressed on the way to Pons's own queues, plain into a subscriber's own.
fn body_of<'e>(outbound: &Outbound<'e>) -> Cow<'e, [u8]> {
    match outbound.exchange {
        "" => Cow::Borrowed(&outbound.envelope.body[..]),
        _ => {
            let body = &outbound.envelope.body[..];
            squeeze(body).map_or(Cow::Borrowed(body), Cow::Owned)
        }
    }
}

fn message_id(envelope: &Envelope) -> ShortString {
    envelope.delivery.to_string().into()
}

fn properties(envelope: &Envelope, squeezed: bool) -> BasicProperties {
    let mut properties = BasicProperties::default()
        .with_content_type("application/cloudevents+json".into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(message_id(envelope));
    if squeezed {
        properties = properties.with_content_encoding(ENCODING.into());
    }
    match &envelope.traceparent {
        None => properties,
        Some(traceparent) => {
            let mut headers = FieldTable::default();
            headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.as_str().into()));
            properties.with_headers(headers)
        }
    }
}

/// Collects what many attempts hand over at once into batches: while one is under way, the next one gathers.
pub(super) struct HandOver {
    queues: Arc<Queues>,
    window: usize,
    line: Arc<Mutex<Line>>,
}

#[derive(Default)]
struct Line {
    waiting: Vec<Waiting>,
    /// Whether a task is at work on the line.
    served: bool,
}

struct Waiting {
    queue: String,
    envelope: Envelope,
    done: oneshot::Sender<Result<(), BusError>>,
}

impl HandOver {
    pub(super) fn new(queues: Arc<Queues>, window: usize) -> Self {
        HandOver { queues, window, line: Arc::default() }
    }

    /// Puts one event into a queue and waits for its confirm.
    pub(super) async fn put(&self, queue: &str, envelope: Envelope) -> Result<(), BusError> {
        let (done, answer) = oneshot::channel();
        let idle = {
            let mut line = lock(&self.line);
            line.waiting.push(Waiting { queue: queue.to_owned(), envelope, done });
            !std::mem::replace(&mut line.served, true)
        };
        if idle {
            // A task of its own, as this call may be given up while others wait on the same batch.
            tokio::spawn(serve(Arc::clone(&self.queues), self.window, Arc::clone(&self.line)));
        }
        answer.await.unwrap_or_else(|_| Err(BusError::away("the gateway stops")))
    }
}

/// Works on the line until it is empty.
async fn serve(queues: Arc<Queues>, window: usize, line: Arc<Mutex<Line>>) {
    loop {
        let mut batch: Vec<Waiting> = {
            let mut line = lock(&line);
            let batch = line.waiting.len().min(window);
            line.served = batch > 0;
            line.waiting.drain(..batch).collect()
        };
        if batch.is_empty() {
            return;
        }
        let names: BTreeSet<String> = batch.iter().map(|waiting| waiting.queue.clone()).collect();
        for name in names {
            if let Err(error) = queues.of_subscriber(&name).await {
                let reason = reason(&error);
                for waiting in batch.extract_if(.., |waiting| waiting.queue == name) {
                    let _ = waiting.done.send(Err(BusError::Away(reason.clone().into())));
                }
            }
        }
        // The default exchange: the key is the queue's name.
        let outbound: Vec<Outbound<'_>> = batch
            .iter()
            .map(|waiting| Outbound { exchange: "", key: &waiting.queue, envelope: &waiting.envelope })
            .collect();
        let results = publish(&queues.publishing, &outbound).await;
        drop(outbound);
        for (waiting, result) in batch.into_iter().zip(results) {
            // Whoever gave up does not listen any more; a repeat has the same id.
            let _ = waiting.done.send(result);
        }
    }
}

/// Why the bus is away, in the words of whatever failed.
fn reason(error: &BusError) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

fn lock(line: &Mutex<Line>) -> MutexGuard<'_, Line> {
    line.lock().expect("nothing panics while it holds this lock")
}
