//! The WebSocket of FHIR Subscriptions: a token from `$get-ws-binding-token` binds it to subscriptions, and their notifications follow.
//!
//! Nobody is asked who he is when it is opened, as browsers could not say; without a token nothing is sent on it. A binding ends with
//! its token: the client asks for a new one before and binds with that. What a client says, as text: `bind-with-token: TOKEN` and
//! `unbind-from-token: TOKEN`, or the same as `{"type": "bind-with-token", "payload": {"token": "TOKEN"}}`.
//!
//! # Source
//! HL7 FHIR Subscriptions R5 Backport 1.1.0, channel websocket, which draws the first form; RFC 6455.

use super::{Answer, Api, outcome};
use crate::config::To;
use crate::deliver::{Line, Push};
use crate::ingest::senders::Known;
use crate::route::notification::About;
use crate::route::roster::{Enrolled, Enrolment};
use crate::store::{self, SocketToken, Standing, Store, StoreError};
use futures_util::{SinkExt, StreamExt};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::http::request::Parts;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WireError, Utf8Bytes};
use uuid::Uuid;

/// Where it lies.
pub const PATH: &str = "/fhir/websocket";
/// How long a token binds.
const TOKEN_TTL: Duration = Duration::from_secs(3_600);
/// How long a client may take to bind something.
const BIND_MAX: Duration = Duration::from_secs(15);
/// How long the other side may take to read what it is sent.
const SEND_MAX: Duration = Duration::from_secs(60);
/// How long the other side may take to be told that it is over, and to agree.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// After how long without a word it is asked for one, and after how long it counts as gone.
const QUIET: Duration = Duration::from_secs(15);
const SILENT_MAX: Duration = Duration::from_secs(40);
/// How often time is looked at.
const TICK: Duration = Duration::from_secs(1);
/// And after how many frames at the latest.
const HEARD_BETWEEN: u32 = 64;
/// The most sockets at once.
pub const SOCKETS_MAX: usize = 1_024;
/// What a client says is short.
const HEARD_MAX: usize = 8 << 10;

/// The address of the WebSocket, by that of `/fhir`.
pub fn address(base: &str) -> String {
    let base = base.trim_end_matches('/');
    format!("ws{}/websocket", base.strip_prefix("http").unwrap_or(base))
}

/// A new token for these subscriptions: the answer to `$get-ws-binding-token`.
pub async fn token(
    store: &dyn Store,
    client: &Known,
    base: &str,
    subscriptions: Vec<Uuid>,
) -> Result<Answer, StoreError> {
    // Two ids, as there is no other source of what nobody can guess: 244 bits of the system's.
    let token = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    let now = store::now();
    let kept = SocketToken {
        hash: Sha256::digest(&token).into(),
        owner: Arc::clone(&client.name),
        subscriptions,
        until: now + TOKEN_TTL,
    };
    store.keep_token(&kept, now).await?;
    let mut parameters = vec![
        json!({"name": "token", "valueString": token}),
        json!({"name": "expiration", "valueDateTime": kept.until.to_string()}),
    ];
    let ids = kept.subscriptions.iter();
    parameters.extend(ids.map(|id| json!({"name": "subscription", "valueString": id.to_string()})));
    parameters.push(json!({"name": "websocket-url", "valueUrl": address(base)}));
    Ok(outcome::resource(StatusCode::OK, &json!({"resourceType": "Parameters", "parameter": parameters})))
}

/// Whether a requested subscription is told over a WebSocket, and by whom it may be bound.
pub fn is_bindable(one: &Enrolment, owner: &str) -> bool {
    let is_socket = one.wanted.as_ref().is_ok_and(|wanted| matches!(wanted.subscription.to, To::Socket));
    is_socket
        && *one.stored.owner == *owner
        && !matches!(one.stored.standing, Standing::Off | Standing::Removed | Standing::Refused)
}

/// Opens one, if that is what is asked for.
pub fn open(api: &Arc<Api>, head: &mut Parts, peer: SocketAddr) -> Answer {
    let has = |name: header::HeaderName, wanted: &str| {
        let values = head.headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(wanted))
    };
    let is_asked = has(header::CONNECTION, "upgrade")
        && has(header::UPGRADE, "websocket")
        && has(header::SEC_WEBSOCKET_VERSION, "13");
    let is_key = |key: &&header::HeaderValue| {
        data_encoding::BASE64.decode(key.as_bytes()).is_ok_and(|nonce| nonce.len() == 16)
    };
    let key = head.headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| is_asked).filter(is_key);
    let accept = key.map(|key| derive_accept_key(key.as_bytes()));
    let (Some(accept), Some(upgrade)) = (accept, head.extensions.remove::<OnUpgrade>()) else {
        let text = "this is a WebSocket (RFC 6455, version 13): $get-ws-binding-token of a Subscription says how to use it";
        let mut answer = outcome::answer(StatusCode::UPGRADE_REQUIRED, "not-supported", text);
        answer.headers_mut().insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
        answer.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
        answer.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, header::HeaderValue::from_static("13"));
        return answer;
    };
    let Ok(place) = Arc::clone(&api.socket_places).try_acquire_owned() else {
        let text = "too many WebSockets are open; try again later";
        return outcome::answer(StatusCode::SERVICE_UNAVAILABLE, "throttled", text);
    };
    let shared = Arc::clone(api);
    api.sockets.spawn(async move {
        let _place = place;
        match upgrade.await {
            Ok(upgraded) => serve(&shared, upgraded, peer).await,
            Err(error) => tracing::debug!(%peer, %error, "a WebSocket did not open"),
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept)
        .body(Full::default())
        .expect("these headers are valid")
}

type Wire = WebSocketStream<TokioIo<Upgraded>>;

/// Why a socket ends: what the other side is told, or nothing if it cannot be told any more.
type End = Option<(CloseCode, &'static str)>;

async fn serve(api: &Arc<Api>, upgraded: Upgraded, peer: SocketAddr) {
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    let settings =
        WebSocketConfig::default().max_message_size(Some(HEARD_MAX)).max_frame_size(Some(HEARD_MAX));
    let wire = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(settings)).await;
    let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
    let (line, pushed) = Line::new(number);
    let now = Instant::now();
    let mut session = Session {
        api: Arc::clone(api),
        wire,
        line,
        bound: HashMap::new(),
        unread: VecDeque::new(),
        pings: 0,
        heard_at: now,
        idle_since: Some(now),
    };
    tracing::info!(socket = number, %peer, "a WebSocket opened");
    let end = session.run(pushed).await;
    for subscription in session.bound.keys() {
        api.sockets.unbind(subscription, &session.line);
    }
    let why = end.map(|(_, why)| why);
    if let Some((code, reason)) = end {
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
        let closing = async {
            session.wire.close(Some(frame)).await?;
            // Whoever is cut off while it still says something, a pong for one, never reads why.
            while let Some(said) = session.wire.next().await {
                said?;
            }
            Ok::<_, WireError>(())
        };
        // It may be gone.
        let _ = timeout(CLOSE_MAX, closing).await;
    }
    tracing::info!(socket = number, why, "a WebSocket closed");
}

/// An open WebSocket.
struct Session {
    api: Arc<Api>,
    wire: Wire,
    line: Line,
    /// The subscriptions, each with the token by which it is bound and until when.
    bound: HashMap<Arc<str>, ([u8; 32], Timestamp)>,
    /// What was sent and is not known to be read, each with the ping behind it.
    unread: VecDeque<Unread>,
    pings: u64,
    heard_at: Instant,
    /// Since when nothing is bound.
    idle_since: Option<Instant>,
}

/// Something that was sent.
struct Unread {
    ping: u64,
    sent_at: Instant,
    /// Who waits for it to be read.
    read: oneshot::Sender<()>,
}

impl Session {
    async fn run(&mut self, mut pushed: mpsc::UnboundedReceiver<Push>) -> End {
        let stop = self.api.sockets.stopping().clone();
        let mut roster = self.api.roster.watch();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = 0;
        loop {
            // Whoever never pauses does not outlive its token.
            if heard >= HEARD_BETWEEN {
                heard = 0;
                if let Err(end) = self.ticked().await {
                    return end;
                }
            }
            let went_on = tokio::select! {
                // What was heard comes before the time that it took.
                biased;
                () = stop.cancelled() => Err(Some((CloseCode::Away, "the gateway stops"))),
                _ = roster.changed() => {
                    let now = roster.borrow_and_update().clone();
                    self.keep_allowed(&now)
                }
                frame = self.wire.next() => {
                    heard += 1;
                    self.heard(frame).await
                }
                push = pushed.recv() => match push {
                    Some(push) => self.pushed(push).await,
                    None => Ok(()),
                },
                _ = tick.tick() => {
                    heard = 0;
                    self.ticked().await
                }
            };
            if let Err(end) = went_on {
                return end;
            }
        }
    }

    async fn send(&mut self, messages: Vec<Message>) -> Result<(), End> {
        let sending = async {
            for message in messages {
                self.wire.feed(message).await?;
            }
            self.wire.flush().await
        };
        let stop = self.api.sockets.stopping().clone();
        tokio::select! {
            sent = timeout(SEND_MAX, sending) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) | Err(_) => Err(None),
            },
            // Whoever reads slowly holds up no stop.
            () = stop.cancelled() => Err(None),
        }
    }

    fn ping(&mut self) -> Message {
        self.pings += 1;
        Message::Ping(Bytes::copy_from_slice(&self.pings.to_be_bytes()))
    }

    async fn pushed(&mut self, push: Push) -> Result<(), End> {
        match push {
            // What is not its own any more is not sent; whoever waits is told that it closed.
            Push::Notification { subscription, .. } if !self.bound.contains_key(&subscription) => Ok(()),
            Push::Notification { text, read, .. } => {
                // A notification of ours is JSON.
                let Ok(text) = Utf8Bytes::try_from(text) else { return Ok(()) };
                let ping = self.ping();
                self.send(vec![Message::Text(text), ping]).await?;
                self.unread.push_back(Unread { ping: self.pings, sent_at: Instant::now(), read });
                Ok(())
            }
            // It has bound it anew since.
            Push::Unbound { subscription, .. } if self.api.sockets.has(&subscription, &self.line) => Ok(()),
            // Whoever is bound to several is told too, by the only word there is.
            Push::Unbound { is_elsewhere: true, .. } => {
                Err(Some((CloseCode::Policy, "a subscription is bound elsewhere")))
            }
            Push::Unbound { .. } => Err(Some((CloseCode::Again, "a subscription is to be bound anew"))),
        }
    }

    async fn heard(&mut self, frame: Option<Result<Message, WireError>>) -> Result<(), End> {
        self.heard_at = Instant::now();
        match frame {
            Some(Ok(Message::Text(text))) => match Said::read(&text) {
                Some(Said::Bind(token)) => self.bind(&token).await,
                Some(Said::Unbind(token)) => self.unbind(&token),
                None => {
                    let text = "expected `bind-with-token: TOKEN` or `unbind-from-token: TOKEN`";
                    self.refuse("structure", text).await
                }
            },
            Some(Ok(Message::Pong(payload))) => {
                let number = payload[..].try_into().map_or(0, u64::from_be_bytes);
                while let Some(one) = self.unread.pop_front_if(|one| one.ping <= number) {
                    // Whoever waited may have given up.
                    let _ = one.read.send(());
                }
                Ok(())
            }
            // Answered by the library, with the next thing that is sent.
            Some(Ok(Message::Ping(_))) => self.send(Vec::new()).await,
            Some(Ok(Message::Binary(_) | Message::Frame(_))) => {
                Err(Some((CloseCode::Unsupported, "text is wanted")))
            }
            Some(Ok(Message::Close(_))) => {
                // The answer to it is ready, and goes out with this.
                let _ = timeout(CLOSE_MAX, self.wire.flush()).await;
                Err(None)
            }
            Some(Err(WireError::Capacity(_))) => Err(Some((CloseCode::Size, "what a client says is short"))),
            Some(Err(_)) | None => Err(None),
        }
    }

    async fn ticked(&mut self) -> Result<(), End> {
        let (now, at) = (Instant::now(), store::now());
        if self.bound.values().any(|(_, until)| *until <= at) {
            return Err(Some((CloseCode::Normal, "a token is over; ask for a new one before")));
        }
        if self.idle_since.is_some_and(|since| now.duration_since(since) >= BIND_MAX) {
            return Err(Some((CloseCode::Policy, "nothing was bound")));
        }
        let quiet = now.duration_since(self.heard_at);
        if self.unread.front().is_some_and(|one| now.duration_since(one.sent_at) >= SILENT_MAX) {
            return Err(Some((CloseCode::Policy, "pings are not answered")));
        }
        if quiet >= SILENT_MAX {
            return Err(Some((CloseCode::Policy, "nothing was heard for too long")));
        }
        if quiet >= QUIET {
            let ping = self.ping();
            self.send(vec![ping]).await?;
        }
        Ok(())
    }

    /// Ends with the first subscription that its owner may not have any more.
    fn keep_allowed(&self, now: &Enrolled) -> Result<(), End> {
        let is_allowed = |name: &str| {
            let one = name.parse().ok().and_then(|id| now.find(id));
            one.is_some_and(|one| is_bindable(one, &one.stored.owner))
        };
        match self.bound.keys().all(|name| is_allowed(name)) {
            true => Ok(()),
            false => Err(Some((CloseCode::Normal, "a subscription is over"))),
        }
    }

    async fn bind(&mut self, token: &str) -> Result<(), End> {
        let away = Some((CloseCode::Again, "the store is away"));
        let failed = |error: StoreError| {
            tracing::warn!(error = %crate::chain(&error), "a WebSocket could not be bound");
            away
        };
        let hash = Sha256::digest(token).into();
        let found = self.api.store.token(&hash).await.map_err(failed)?;
        let Some(found) = found.filter(|found| found.until > store::now()) else {
            self.refuse(
                "security",
                "the token is not known, or is over: ask $get-ws-binding-token for another",
            )
            .await?;
            return Err(Some((CloseCode::Policy, "the token is not known, or is over")));
        };
        let enrolled = self.api.roster.refresh().await.map_err(failed)?;
        for one in found.subscriptions.iter().filter_map(|id| enrolled.find(*id)) {
            let Some(wanted) = one.wanted.as_ref().ok().filter(|_| is_bindable(one, &found.owner)) else {
                continue;
            };
            let subscription = &wanted.subscription;
            let Some(notifies) = &subscription.notifies else { continue };
            let about = About {
                id: Uuid::now_v7(),
                at: store::now(),
                kind: "handshake",
                status: one.stored.standing.code(),
                subscription: &subscription.name,
                topic: subscription.topics.first().map(String::as_str),
                last: self.api.store.last_event(&subscription.name).await.map_err(failed)?,
            };
            let handshake = notifies.bundle(&about, &[]).to_string();
            // Before anything else of it.
            self.send(vec![Message::text(handshake)]).await?;
            self.bound.insert(Arc::clone(&subscription.name), (hash, found.until));
            self.idle_since = None;
            self.api.sockets.bind(&subscription.name, &self.line);
            tracing::info!(client = %found.owner, subscription = %subscription.name, "a WebSocket is bound to a subscription");
        }
        if self.bound.is_empty() {
            let text = "none of the token's subscriptions can be bound any more";
            self.refuse("not-found", text).await?;
            return Err(Some((CloseCode::Policy, text)));
        }
        Ok(())
    }

    fn unbind(&mut self, token: &str) -> Result<(), End> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let of: Vec<Arc<str>> =
            self.bound.iter().filter(|(_, (by, _))| *by == hash).map(|(name, _)| name.clone()).collect();
        for subscription in of {
            self.api.sockets.unbind(&subscription, &self.line);
            self.bound.remove(&subscription);
        }
        if self.bound.is_empty() && self.idle_since.is_none() {
            self.idle_since = Some(Instant::now());
        }
        Ok(())
    }

    /// Says what is wrong.
    async fn refuse(&mut self, code: &str, text: &str) -> Result<(), End> {
        let outcome = json!({
            "resourceType": "OperationOutcome",
            "issue": [{"severity": "error", "code": code, "diagnostics": text}],
        });
        self.send(vec![Message::text(outcome.to_string())]).await
    }
}

/// What a client says.
#[cfg_attr(test, derive(Debug))]
#[derive(PartialEq, Eq)]
enum Said {
    Bind(String),
    Unbind(String),
}

impl Said {
    fn read(text: &str) -> Option<Said> {
        let text = text.trim();
        let (what, token) = match serde_json::from_str::<Value>(text) {
            Ok(said) => {
                let token = said["payload"]["token"].as_str()?.to_owned();
                (said["type"].as_str()?.to_owned(), token)
            }
            Err(_) => {
                let (what, token) = text.split_once([':', ' '])?;
                (what.to_owned(), token.trim_start_matches(':').trim().to_owned())
            }
        };
        match what.as_str() {
            "bind-with-token" => Some(Said::Bind(token)),
            "unbind-from-token" => Some(Said::Unbind(token)),
            _ => None,
        }
        .filter(|_| !text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_says_is_read_in_each_of_its_forms() {
        let bind = || Some(Said::Bind("t-1".to_owned()));
        for text in [
            "bind-with-token: t-1",
            "bind-with-token t-1",
            " bind-with-token:t-1\n",
            r#"{"type": "bind-with-token", "payload": {"token": "t-1"}}"#,
        ] {
            assert_eq!(Said::read(text), bind(), "{text}");
        }
        assert_eq!(Said::read("unbind-from-token: t-1"), Some(Said::Unbind("t-1".to_owned())));
        for text in ["", "bind-with-token", "ping", "{}", r#"{"type": "ping"}"#, "subscribe: t-1"] {
            assert_eq!(Said::read(text), None, "{text}");
        }
    }

    #[test]
    fn the_address_follows_that_of_fhir() {
        assert_eq!(address("https://pons.test/fhir"), "wss://pons.test/fhir/websocket");
        assert_eq!(address("http://127.0.0.1:8080/fhir/"), "ws://127.0.0.1:8080/fhir/websocket");
    }
}
