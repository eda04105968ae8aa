//! The WebSockets to which subscriptions are bound in this process, and the destination that pushes into them.
//!
//! Invariants: of all sockets that are bound to a subscription the one bound last is sent its events, over all replicas; something
//! pushed counts as delivered when the other side's pong to the ping behind it has come, so it was read.

use adapters::{DeliverError, Destination, Outgoing, Receipt};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long an attempt waits for somebody to bind the subscription.
const BOUND_WAIT_MAX: Duration = Duration::from_secs(20);

/// What is bound in this process.
pub struct Sockets {
    bound: Mutex<HashMap<Arc<str>, Bound>>,
    /// Counts bindings, so that whoever waits for one looks again.
    bindings: watch::Sender<u64>,
    open: TaskTracker,
    stop: CancellationToken,
}

struct Bound {
    line: Line,
    /// Whether the lease of the subscription may still be another replica's.
    is_new: bool,
    bound_at: Instant,
}

/// The way into an open WebSocket.
#[derive(Clone, Debug)]
pub struct Line {
    number: u64,
    pushes: mpsc::UnboundedSender<Push>,
}

/// What an open WebSocket is told.
pub enum Push {
    /// To send a notification, and to say so once the other side has read it.
    Notification {
        /// Whose.
        subscription: Arc<str>,
        /// It, in JSON.
        text: Bytes,
        /// Who waits for that.
        read: oneshot::Sender<()>,
    },
    /// That it has no longer a subscription.
    Unbound {
        /// Which.
        subscription: Arc<str>,
        /// Whether another WebSocket has bound it; otherwise it is to be bound anew.
        is_elsewhere: bool,
    },
}

impl Line {
    /// A way, and its other end. `number` is that of no other line of the process.
    pub fn new(number: u64) -> (Line, mpsc::UnboundedReceiver<Push>) {
        let (pushes, pushed) = mpsc::unbounded_channel();
        (Line { number, pushes }, pushed)
    }

    /// Pushes a notification; returns once the other side has read it.
    async fn push(&self, outgoing: &Outgoing) -> Result<Receipt, DeliverError> {
        let (read, has_read) = oneshot::channel();
        let (subscription, text) = (Arc::clone(&outgoing.subscription), outgoing.bundle.clone());
        let pushed = self.pushes.send(Push::Notification { subscription, text, read }).is_ok();
        if pushed && has_read.await.is_ok() {
            return Ok(Receipt { answer: "read over the WebSocket".to_owned() });
        }
        Err(away("the WebSocket closed"))
    }
}

impl Sockets {
    /// None yet. Nobody waits for one any more after `stop`.
    pub fn new(stop: CancellationToken) -> Sockets {
        Sockets { bound: Mutex::default(), bindings: watch::Sender::new(0), open: TaskTracker::new(), stop }
    }

    /// Runs what serves an open WebSocket.
    pub fn spawn(&self, serves: impl Future<Output = ()> + Send + 'static) {
        self.open.spawn(serves);
    }

    /// Returns once none is open any more, after the stop.
    pub async fn closed(&self) {
        self.open.close();
        self.open.wait().await;
    }

    /// Cancelled when sockets are to be closed.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Binds a subscription to a line; the line that had it is told.
    pub fn bind(&self, subscription: &Arc<str>, line: &Line) {
        let bound = Bound { line: line.clone(), is_new: true, bound_at: Instant::now() };
        let before = self.bound().insert(Arc::clone(subscription), bound);
        if let Some(before) = before.filter(|before| before.line.number != line.number) {
            let subscription = Arc::clone(subscription);
            let _ = before.line.pushes.send(Push::Unbound { subscription, is_elsewhere: true });
        }
        self.bindings.send_modify(|count| *count += 1);
    }

    /// A line gives a subscription back, if it still has it.
    pub fn unbind(&self, subscription: &str, line: &Line) {
        let mut bound = self.bound();
        if bound.get(subscription).is_some_and(|one| one.line.number == line.number) {
            bound.remove(subscription);
        }
    }

    /// Whether a line has a subscription.
    pub fn has(&self, subscription: &str, line: &Line) -> bool {
        self.bound().get(subscription).is_some_and(|one| one.line.number == line.number)
    }

    /// Whoever has bound a subscription here has to bind it anew: this replica delivers it no longer. Who has bound it just now is about
    /// to be delivered to.
    pub(super) fn let_go(&self, subscription: &Arc<str>) {
        let mut bound = self.bound();
        if bound.get(subscription).is_none_or(|one| one.is_new) {
            return;
        }
        if let Some(one) = bound.remove(subscription) {
            let subscription = Arc::clone(subscription);
            let _ = one.line.pushes.send(Push::Unbound { subscription, is_elsewhere: false });
        }
    }

    /// Whether a subscription is bound here.
    pub(super) fn is_bound(&self, subscription: &str) -> bool {
        self.bound().contains_key(subscription)
    }

    /// Whether a subscription is bound here, and another replica may still have its lease.
    pub(super) fn is_newly_bound(&self, subscription: &str) -> bool {
        self.bound().get(subscription).is_some_and(|one| one.is_new)
    }

    /// This replica had the lease of a subscription when it asked for it.
    pub(super) fn leads(&self, subscription: &str, asked_at: Instant) {
        if let Some(one) = self.bound().get_mut(subscription).filter(|one| one.bound_at <= asked_at) {
            one.is_new = false;
        }
    }

    /// Returns when something is bound.
    pub(super) async fn next_binding(&self) {
        // The sender lives in self.
        let _ = self.bindings.subscribe().changed().await;
    }

    fn line(&self, subscription: &str) -> Option<Line> {
        self.bound().get(subscription).map(|one| one.line.clone())
    }

    /// The line of a subscription, as soon as there is one.
    async fn wait(&self, subscription: &str) -> Option<Line> {
        let mut bindings = self.bindings.subscribe();
        loop {
            if let Some(line) = self.line(subscription) {
                return Some(line);
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                changed = bindings.changed() => changed.ok()?,
            }
        }
    }

    fn bound(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Bound>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sockets").field("bound", &self.bound().len()).finish_non_exhaustive()
    }
}

fn away(answer: &str) -> DeliverError {
    DeliverError::Again { answer: answer.to_owned(), after: None, away: true }
}

/// The WebSocket that a subscription is bound to.
#[derive(Debug)]
pub(super) struct Socket {
    sockets: Arc<Sockets>,
    subscription: Arc<str>,
}

impl Socket {
    pub(super) fn new(sockets: Arc<Sockets>, subscription: Arc<str>) -> Socket {
        Socket { sockets, subscription }
    }
}

#[async_trait]
impl Destination for Socket {
    async fn deliver(&self, outgoing: &Outgoing) -> Result<Receipt, DeliverError> {
        match timeout(BOUND_WAIT_MAX, self.sockets.wait(&self.subscription)).await {
            Ok(Some(line)) => line.push(outgoing).await,
            Ok(None) | Err(_) => Err(away("no WebSocket is bound to the subscription")),
        }
    }

    async fn greet(&self, outgoing: &Outgoing) -> Result<Receipt, DeliverError> {
        match self.sockets.line(&self.subscription) {
            Some(line) => line.push(outgoing).await,
            None => Err(away("no WebSocket is bound to the subscription")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::message::DeliveryId;
    use uuid::Uuid;

    fn outgoing() -> Outgoing {
        Outgoing {
            delivery: DeliveryId(Uuid::from_u128(7)),
            subscription: "ward".into(),
            attempt: 1,
            bundle: Bytes::from_static(b"told"),
            event: Bytes::new(),
            passes: None,
            original: Bytes::new(),
            traceparent: None,
        }
    }

    #[tokio::test]
    async fn what_is_pushed_is_delivered_once_it_was_read_and_the_last_one_bound_has_it() {
        let sockets = Arc::new(Sockets::new(CancellationToken::new()));
        let name: Arc<str> = "ward".into();
        let socket = Socket::new(sockets.clone(), name.clone());
        assert!(socket.greet(&outgoing()).await.is_err(), "nobody is there");
        let (first, mut told_first) = Line::new(1);
        let waiting = tokio::spawn(async move { (socket.deliver(&outgoing()).await, socket) });
        tokio::task::yield_now().await;
        sockets.bind(&name, &first);
        assert!(sockets.is_newly_bound("ward") && sockets.is_newly_bound("ward"), "until it leads");
        sockets.let_go(&name);
        assert!(sockets.has("ward", &first), "who has just come is not sent away");
        sockets.leads("ward", Instant::now());
        assert!(!sockets.is_newly_bound("ward"));
        let Some(Push::Notification { text, read, .. }) = told_first.recv().await else {
            panic!("a notification")
        };
        assert_eq!(text, "told");
        assert!(!waiting.is_finished(), "it is not known to be read");
        read.send(()).expect("it is waited for");
        let (delivered, socket) = waiting.await.expect("no panic");
        assert!(delivered.is_ok());

        let (second, mut told_second) = Line::new(2);
        sockets.bind(&name, &second);
        assert!(matches!(told_first.recv().await, Some(Push::Unbound { is_elsewhere: true, .. })));
        sockets.unbind("ward", &first);
        assert!(sockets.line("ward").is_some(), "it is the second one's");
        let waiting = tokio::spawn(async move { (socket.deliver(&outgoing()).await, socket) });
        let Some(Push::Notification { read: unread, .. }) = told_second.recv().await else {
            panic!("a notification")
        };
        drop((unread, told_second));
        let (delivered, socket) = waiting.await.expect("no panic");
        assert!(matches!(delivered, Err(DeliverError::Again { away: true, .. })), "it closed: {delivered:?}");
        sockets.leads("ward", Instant::now());
        sockets.let_go(&name);
        let waiting = tokio::spawn(async move { socket.deliver(&outgoing()).await });
        tokio::task::yield_now().await;
        sockets.stopping().cancel();
        assert!(waiting.await.expect("no panic").is_err(), "nobody waits at the end");
    }
}
