//! A subscriber's HTTP endpoint: logs what it accepts, and fails, hangs or is slow when told to.

use crate::checker::{Arrival, Seen};
use crate::generate::Run;
use anyhow::{Context, Result};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// How the endpoint treats a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// 200 at once.
    #[default]
    Accept,
    /// This status at once; the request does not count as seen.
    Refuse(u16),
    /// 200 after a while.
    Slow(Duration),
    /// 200, one at a time, each so long after the one before.
    Paced(Duration),
    /// No answer ever; the request does not count as seen.
    Hang,
    /// Every so manyth request is refused with 503, beginning with the first.
    Flaky(u64),
}

#[derive(Debug)]
struct Shared {
    run: Run,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    behaviour: Behaviour,
    requests: u64,
    arrivals: Vec<Arrival>,
    at: Vec<Instant>,
    /// When the next of a paced endpoint has its turn.
    turn: Option<Instant>,
    bytes: u64,
    last_body: Bytes,
}

/// A running endpoint; it ends when this is dropped.
#[derive(Debug)]
pub struct Webhook {
    at: SocketAddr,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Webhook {
    /// Starts on a free port of loopback.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(run: Run) -> Result<Webhook> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("bind")?;
        let at = listener.local_addr()?;
        let shared = Arc::new(Shared { run, state: Mutex::default() });
        let server = tokio::spawn(serve(listener, shared.clone()));
        Ok(Webhook { at, shared, server })
    }

    /// Where to post to.
    pub fn url(&self) -> String {
        format!("http://{}/hook", self.at)
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.at
    }

    /// From now on it behaves like this.
    pub fn behave(&self, behaviour: Behaviour) {
        self.shared.state().behaviour = behaviour;
    }

    /// How many requests it accepted, handshakes and heartbeats aside.
    pub fn accepted(&self) -> usize {
        self.shared.state().arrivals.len()
    }

    /// How many requests came, refused ones included.
    pub fn requests(&self) -> u64 {
        self.shared.state().requests
    }

    /// Bytes of the accepted bodies.
    pub fn bytes(&self) -> u64 {
        self.shared.state().bytes
    }

    /// The body accepted last.
    pub fn last_body(&self) -> Bytes {
        self.shared.state().last_body.clone()
    }

    /// What it saw, as the checker reads it.
    pub fn seen(&self, subscription: &str, topics: &[&str]) -> Seen {
        Seen {
            subscription: subscription.to_owned(),
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            arrivals: self.shared.state().arrivals.clone(),
        }
    }

    /// When each accepted request came, beside what came.
    pub fn times(&self) -> Vec<(Arrival, Instant)> {
        let state = self.shared.state();
        state.arrivals.iter().cloned().zip(state.at.iter().copied()).collect()
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| handle(request, shared.clone()));
            // A connection that the gateway breaks off in mid-request is part of the game.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn handle(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let answer = |status: StatusCode| {
        let mut response = Response::new(Empty::new());
        *response.status_mut() = status;
        response
    };
    let delivery = request
        .headers()
        .get("idempotency-key")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .trim_matches('"')
        .to_owned();
    let Ok(body) = request.into_body().collect().await.map(http_body_util::Collected::to_bytes) else {
        return Ok(answer(StatusCode::BAD_REQUEST));
    };
    let behaviour = {
        let mut state = shared.state();
        state.requests += 1;
        match state.behaviour {
            Behaviour::Flaky(every) if (state.requests - 1).is_multiple_of(every) => Behaviour::Refuse(503),
            Behaviour::Flaky(_) => Behaviour::Accept,
            ref other => other.clone(),
        }
    };
    match behaviour {
        Behaviour::Accept | Behaviour::Flaky(_) => {}
        Behaviour::Refuse(status) => {
            return Ok(answer(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)));
        }
        Behaviour::Slow(by) => tokio::time::sleep(by).await,
        Behaviour::Paced(by) => {
            let turn = {
                let mut state = shared.state();
                let turn = state.turn.unwrap_or_else(Instant::now).max(Instant::now()) + by;
                state.turn = Some(turn);
                turn
            };
            tokio::time::sleep_until(turn.into()).await;
        }
        Behaviour::Hang => std::future::pending().await,
    }
    let arrival = Arrival::of_event(&shared.run, &body, delivery);
    let mut state = shared.state();
    if let Some(arrival) = arrival {
        state.arrivals.push(arrival);
        state.at.push(Instant::now());
    }
    state.bytes += body.len() as u64;
    state.last_body = body;
    drop(state);
    Ok(answer(StatusCode::OK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Marker;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn post(hook: &Webhook, id: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(hook.address()).await.unwrap();
        let request = format!(
            "POST /hook HTTP/1.1\r\nhost: x\r\nconnection: close\r\nidempotency-key: {id}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.lines().next().unwrap().to_owned()
    }

    #[tokio::test]
    async fn what_is_accepted_is_logged_with_its_marker_and_id() {
        let run = Run::new(1);
        let hook = Webhook::start(run).await.unwrap();
        let marker = Marker { patient: 3, sequence: 7 };
        assert_eq!(
            post(&hook, "id-1", &format!("{{\"x\": \"{}\"}}", run.mark(marker))).await,
            "HTTP/1.1 200 OK"
        );
        post(&hook, "id-2", "{}").await;
        let seen = hook.seen("a", &["t"]);
        assert_eq!(seen.arrivals[0].marker, Some(marker));
        assert_eq!(seen.arrivals[0].delivery, "id-1");
        assert_eq!(seen.arrivals[1].marker, None);
    }

    #[tokio::test]
    async fn what_is_refused_is_not_seen() {
        let hook = Webhook::start(Run::new(1)).await.unwrap();
        hook.behave(Behaviour::Refuse(500));
        assert!(post(&hook, "id", "{}").await.contains("500"));
        hook.behave(Behaviour::Flaky(2));
        let mut answers = [post(&hook, "id", "{}").await, post(&hook, "id", "{}").await];
        answers.sort();
        assert!(answers[0].contains("200") && answers[1].contains("503"));
        assert_eq!((hook.accepted(), hook.requests()), (1, 3));
    }
}
