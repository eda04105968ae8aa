//! An HTTP/1.1 client for destinations: one target, a few kept connections, every bound in sight.
//!
//! Invariant: a request whose fate is unknown is never sent again here; whether to is the delivery's decision.

use crate::DeliverError;
use crate::connect::Connector;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// A kept connection older than this since its last use is closed: the other side is likely about to.
const IDLE_MAX: Duration = Duration::from_secs(45);

/// How much of an answer's body is read. Past it the connection is closed.
const BODY_MAX: usize = 64 * 1024;

/// A client of one target.
pub(crate) struct HttpClient {
    connector: Connector,
    /// For a request and its answer together.
    answer_timeout: Duration,
    /// One permit a connection.
    permits: Semaphore,
    idle: Mutex<Vec<Kept>>,
}

struct Kept {
    sender: SendRequest<Full<Bytes>>,
    since: Instant,
}

/// An answer.
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// `None` if it is longer than is read, or broke off.
    pub(crate) body: Option<Vec<u8>>,
}

impl HttpClient {
    pub(crate) fn new(connector: Connector, answer_timeout: Duration, connections: usize) -> Self {
        HttpClient {
            connector,
            answer_timeout,
            permits: Semaphore::new(connections),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Sends a request (in origin form, with its `Host`) and reads the answer.
    ///
    /// # Errors
    /// [`DeliverError::Again`] when there is no connection (`away`) or no answer.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answered, DeliverError> {
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let mut request = request;
        loop {
            let (mut sender, reused) = self.connection().await?;
            match tokio::time::timeout(self.answer_timeout, exchange(&mut sender, request)).await {
                Ok(Ok((answered, reusable))) => {
                    if reusable {
                        self.keep(sender);
                    }
                    return Ok(answered);
                }
                // The other side had closed the kept connection before anything of the request went out.
                Ok(Err((_, Some(unsent)))) if reused => request = unsent,
                Ok(Err((error, _))) => {
                    return Err(again(format!("no answer: {}", innermost(&error)), false));
                }
                Err(_) => return Err(again(format!("no answer within {:?}", self.answer_timeout), true)),
            }
        }
    }

    /// A kept connection, or a new one.
    async fn connection(&self) -> Result<(SendRequest<Full<Bytes>>, bool), DeliverError> {
        // Lets the runtime look at its sockets, so that connections which were closed are seen to be.
        tokio::task::yield_now().await;
        loop {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match kept {
                None => break,
                Some(kept) if kept.since.elapsed() < IDLE_MAX && kept.sender.is_ready() => {
                    return Ok((kept.sender, true));
                }
                Some(_) => {}
            }
        }
        let wire = self.connector.connect().await?;
        let (sender, connection) = handshake(TokioIo::new(wire))
            .await
            .map_err(|error| again(format!("no connection: {}", innermost(&error)), true))?;
        // Ends when the sender is dropped or the other side closes; its error reaches whoever waits for the answer.
        tokio::spawn(connection);
        Ok((sender, false))
    }

    fn keep(&self, sender: SendRequest<Full<Bytes>>) {
        let kept = Kept { sender, since: Instant::now() };
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
    }
}

impl std::fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpClient").field("target", &self.connector.target).finish_non_exhaustive()
    }
}

/// Sends one request; gives the head of the answer and whether the connection can be used again, or the error and the
/// request if nothing of it was sent.
async fn exchange(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<(Answered, bool), (hyper::Error, Option<Request<Full<Bytes>>>)> {
    let response = match sender.try_send_request(request).await {
        Ok(response) => response,
        Err(mut error) => {
            let unsent = error.take_message();
            return Err((error.into_error(), unsent));
        }
    };
    let (head, body) = Response::into_parts(response);
    let body = read(body).await;
    let reusable = body.is_some() && sender.ready().await.is_ok();
    Ok((Answered { status: head.status, headers: head.headers, body }, reusable))
}

/// Reads a body to its end, if that is near.
async fn read(mut body: Incoming) -> Option<Vec<u8>> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        read.extend_from_slice(&data);
        if read.len() > BODY_MAX {
            return None;
        }
    }
    Some(read)
}

fn again(answer: String, away: bool) -> DeliverError {
    DeliverError::Again { answer, after: None, away }
}

/// The cause that says most.
fn innermost(error: &hyper::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
