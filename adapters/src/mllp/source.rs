//! The MLLP listener: takes connections, within its bounds, and gives each a task of its own.
//!
//! Invariant: what one connection sends can end that connection and nothing else.

use super::config::SourceConfig;
use super::connection::Connection;
use crate::{Intake, Received, Rejection, RejectionKind, RunningSource, Source, SourceContext, tls};
use async_trait::async_trait;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a TLS handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How long connections may take to answer what they have taken, once told to stop.
const DRAIN_MAX: Duration = Duration::from_secs(15);

/// How many refused pieces are kept for the operator in a burst, and how many a second beyond it: a port scanner must not
/// fill the store.
const KEPT_BURST: f64 = 60.0;
const KEPT_PER_SECOND: f64 = 1.0;

/// The unit in which `buffered_max` is shared out.
pub(super) const MEMORY_UNIT: usize = 64 * 1024;

/// An MLLP source that does not listen yet.
#[derive(Clone, Debug)]
pub(super) struct MllpSource {
    pub(super) context: SourceContext,
    pub(super) config: SourceConfig,
}

/// What all connections of a source share.
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) config: SourceConfig,
    pub(super) intake: Arc<dyn Intake>,
    pub(super) stop: CancellationToken,
    /// Units of [`MEMORY_UNIT`] for large messages.
    pub(super) memory: Arc<Semaphore>,
    /// Calls of `keep_refused` under way.
    keeping: TaskTracker,
    kept: Mutex<Allowance>,
    open: Mutex<HashMap<IpAddr, usize>>,
}

#[async_trait]
impl Source for MllpSource {
    async fn start(
        self: Arc<Self>,
        intake: Arc<dyn Intake>,
        stop: CancellationToken,
    ) -> io::Result<RunningSource> {
        let MllpSource { context, config } = Arc::unwrap_or_clone(self);
        let listener = listen(config.listen)?;
        let address = listener.local_addr()?;
        let name = context.name;
        if let Some(why) = &config.plain_text_waiver {
            tracing::warn!(source = %name, %address, why, "messages travel without TLS here, as the configuration says");
        }
        tracing::info!(source = %name, %address, tls = config.tls.is_some(), "MLLP source listens");
        let shared = Arc::new(Shared {
            memory: Arc::new(Semaphore::new(config.buffered_max / MEMORY_UNIT)),
            name,
            config,
            intake,
            stop,
            keeping: TaskTracker::new(),
            kept: Mutex::new(Allowance { left: KEPT_BURST, since: Instant::now() }),
            open: Mutex::new(HashMap::new()),
        });
        Ok(RunningSource { address: Some(address), task: tokio::spawn(serve(listener, shared)) })
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for the connections of the process before it; and connections whose peer vanished without a word
    // are found by keepalive, which accepted sockets inherit.
    socket.set_reuseaddr(true)?;
    socket.set_keepalive(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => note_panic(&shared, ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                    if let Some(guard) = admit(&shared, peer.ip()) {
                        connections.spawn(connection(stream, peer, guard));
                    }
                }
                Err(error) => {
                    // Out of file descriptors, most likely: connections that end will free some.
                    tracing::warn!(source = %shared.name, %error, "a connection could not be taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            note_panic(&shared, ended);
        }
        shared.keeping.close();
        shared.keeping.wait().await;
    };
    if tokio::time::timeout(DRAIN_MAX, drained).await.is_err() {
        tracing::warn!(source = %shared.name, "connections were cut that did not end in time");
    }
}

fn note_panic(shared: &Shared, ended: Result<(), tokio::task::JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        tracing::error!(source = %shared.name, "a connection ended by a fault of ours; the others go on");
    }
}

/// Counts a connection while it is open.
struct OpenGuard {
    shared: Arc<Shared>,
    peer: IpAddr,
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        let mut open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.peer);
            }
        }
    }
}

/// Whether a peer may have one more connection.
fn admit(shared: &Arc<Shared>, peer: IpAddr) -> Option<OpenGuard> {
    let config = &shared.config;
    if !config.allow.is_empty() && !config.allow.iter().any(|network| network.contains(&peer)) {
        tracing::warn!(source = %shared.name, %peer, "connection refused: its network is not allowed");
        return None;
    }
    let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
    let all: usize = open.values().sum();
    let of_peer = open.get(&peer).copied().unwrap_or(0);
    if of_peer >= config.connections_per_peer_max || all >= config.connections_max {
        tracing::warn!(source = %shared.name, %peer, of_peer, all, "connection refused: too many are open");
        return None;
    }
    open.insert(peer, of_peer + 1);
    Some(OpenGuard { shared: Arc::clone(shared), peer })
}

async fn connection(stream: TcpStream, peer: SocketAddr, guard: OpenGuard) {
    let shared = &guard.shared;
    let ended = async {
        stream.set_nodelay(true)?;
        match &shared.config.tls {
            None => Connection::new(shared, peer, Arc::new([]), stream).run().await,
            Some(tls) => {
                let shaken = tokio::time::timeout(HANDSHAKE_MAX, tls.accept(stream)).await;
                let stream = shaken.map_err(|_| io::ErrorKind::TimedOut)??;
                let names = tls::client_names(&stream);
                Connection::new(shared, peer, names, stream).run().await
            }
        }
    };
    match ended.await {
        Ok(()) => tracing::debug!(source = %shared.name, %peer, "connection ended"),
        // Load balancers probe so, every few seconds.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) =>
        {
            tracing::debug!(source = %shared.name, %peer, %error, "connection broke");
        }
        Err(error) => tracing::info!(source = %shared.name, %peer, %error, "connection broke"),
    }
}

impl Shared {
    /// Hands what is no message to the intake, in the background and within an allowance.
    pub(super) fn keep_refused(&self, received: Received, text: String) {
        let allowed = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        tracing::warn!(source = %self.name, peer = ?received.peer, kept = allowed, reason = text, "bytes refused");
        if allowed {
            let (intake, rejection) = (Arc::clone(&self.intake), refusal(text));
            self.keeping.spawn(async move { intake.keep_refused(received, rejection).await });
        }
    }
}

/// The rejection of what the source itself does not take: ERR-3 207, which covers everything that table 0357 has no
/// word for.
pub(super) fn refusal(text: String) -> Rejection {
    Rejection {
        kind: RejectionKind::Reject,
        code: 207,
        location: String::new(),
        text,
        close: true,
        received_at: None,
    }
}

/// A token bucket.
struct Allowance {
    left: f64,
    since: Instant,
}

impl Allowance {
    fn take(&mut self, now: Instant) -> bool {
        let grown = now.duration_since(self.since).as_secs_f64() * KEPT_PER_SECOND;
        self.left = (self.left + grown).min(KEPT_BURST);
        self.since = now;
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }
}
