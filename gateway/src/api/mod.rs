//! The HTTP listener: FHIR in and out, feeds in, metrics and health. Pure HTTP here; what a request means lies below.
//!
//! Invariant: who asks is decided from the head alone, before a byte of any body is read, in one place ([`auth`]). Only what proves its
//! sender by a signature over its body is read before that is known, and no more than a little of it ([`feeds`]).

pub mod auth;
mod everything;
pub mod feeds;
pub mod fhir;
pub mod history;
pub mod outcome;
pub mod read;
pub mod subscribe;
pub mod subscriptions;
pub mod websocket;

use crate::bus::Keys;
use crate::config::Http;
use crate::deliver::Sockets;
use crate::ingest::Ingest;
use crate::normalize::waiters::Waiters;
use crate::route::roster::Roster;
use crate::store::Store;
use adapters::tls::{ServerTls, client_names};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a connection may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The most connections at once; beyond that they wait to be accepted.
const CONNECTIONS_MAX: usize = 512;

/// What the HTTP listener serves from.
pub struct Api {
    /// The intake, which also knows the clients.
    pub ingest: Arc<Ingest>,
    /// Those who wait for a result.
    pub waiters: Arc<Waiters>,
    /// What readers are answered from.
    pub store: Arc<dyn Store>,
    /// Who is subscribed.
    pub roster: Arc<Roster>,
    /// Who may take from subscribers' own queues.
    pub keys: Option<Arc<Keys>>,
    /// The WebSockets of this process.
    pub sockets: Arc<Sockets>,
    /// One permit a WebSocket: [`websocket::SOCKETS_MAX`].
    pub socket_places: Arc<tokio::sync::Semaphore>,
    /// The sources that take requests, by name.
    pub feeds: HashMap<Arc<str>, Arc<dyn adapters::Feed>>,
    /// Settings.
    pub http: Http,
    /// The text of `/metrics`.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// Whether the gateway is ready, and the text of `/readyz`.
    pub ready: Box<dyn Fn() -> (bool, String) + Send + Sync>,
}

/// An answer, whole in memory.
pub type Answer = Response<Full<Bytes>>;

/// Serves until `stop`; then finishes what is under way.
pub async fn serve(
    api: Arc<Api>,
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    stop: CancellationToken,
) {
    let tracker = TaskTracker::new();
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => break,
            place = places.clone().acquire_owned() => place.expect("the semaphore is never closed"),
        };
        let (stream, peer) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: others will close.
                    tracing::warn!(%error, "an HTTP connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (api, tls, stop) = (api.clone(), tls.clone(), stop.clone());
        tracker.spawn(async move {
            let _place = place;
            // Small answers must not wait for the peer's delayed acknowledgement.
            let _ = stream.set_nodelay(true);
            match tls {
                None => connection(api, TokioIo::new(stream), peer, Arc::new([]), stop).await,
                Some(tls) => match tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        let names = client_names(&stream);
                        connection(api, TokioIo::new(stream), peer, names, stop).await;
                    }
                    Ok(Err(error)) => tracing::info!(%peer, %error, "a TLS handshake failed"),
                    Err(_) => tracing::info!(%peer, "a TLS handshake took too long"),
                },
            }
        });
    }
    tracker.close();
    tracker.wait().await;
    api.sockets.closed().await;
}

async fn connection<S>(
    api: Arc<Api>,
    stream: TokioIo<S>,
    peer: SocketAddr,
    certificate_names: Arc<[String]>,
    stop: CancellationToken,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (api, names) = (api.clone(), certificate_names.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(&api, request, peer, names).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(64 << 10)
        .serve_connection(stream, service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "an HTTP connection ended early");
    }
}

async fn answer(
    api: &Arc<Api>,
    request: Request<Incoming>,
    peer: SocketAddr,
    names: Arc<[String]>,
) -> Answer {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path();
    match (&head.method, path) {
        (&Method::GET, "/livez") => return text(StatusCode::OK, "alive\n"),
        (&Method::GET, "/readyz") => {
            let (ready, lines) = (api.ready)();
            return text(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &lines);
        }
        (&Method::GET, "/fhir/metadata") => return fhir::metadata(api.http.base_url.as_deref()),
        (&Method::GET, websocket::PATH) => return websocket::open(api, &mut head, peer),
        (_, path) if path.starts_with(feeds::PATH) => {
            return feeds::answer(api, &head, body, peer, &names).await;
        }
        _ => {}
    }
    let client = match auth::client(api.ingest.senders(), &head, peer, &names) {
        Ok(client) => client,
        Err(refused) => return refused,
    };
    match (&head.method, path) {
        (&Method::GET, "/metrics") => text(StatusCode::OK, &(api.metrics)()),
        (_, path) if path == "/fhir" || path.starts_with("/fhir/") => {
            if let Some(ask) = subscriptions::ask(&head.method, path) {
                let body = match whole(api, body, api.http.body_max).await {
                    Ok(body) => body,
                    Err(refused) => return refused,
                };
                return subscriptions::answer(api, &client, &head, &body, ask).await;
            }
            if let Some(ask) = subscribe::ask(&head.method, path) {
                let acceptable = match head.method {
                    Method::DELETE => Ok(()),
                    _ => fhir::acceptable(&head),
                };
                let body = match acceptable {
                    Ok(()) => whole(api, body, api.http.body_max).await,
                    Err(refused) => Err(refused),
                };
                let body = match body {
                    Ok(body) => body,
                    Err(refused) => return refused,
                };
                return subscribe::answer(&api.roster, &client, &head, &body, ask).await;
            }
            if let Some(ask) = read::ask(&head.method, path) {
                if head.method == Method::POST {
                    let read = whole(api, body, api.http.body_max)
                        .await
                        .and_then(|form| read::into_query(&mut head, &form));
                    if let Err(refused) = read {
                        return refused;
                    }
                }
                return read::answer(&*api.store, &client, &head, &base(api, &head), ask).await;
            }
            let request = fhir::request(&head);
            let Some(interaction) = fhir::interaction(&head.method, path) else {
                let mut answer = outcome::answer(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "not-supported",
                    "this server takes POST /fhir, POST /fhir/[type], PUT /fhir/[type]?identifier=system|value, PUT and GET /fhir/[type]/[id], GET /fhir/[type]/[id]/_history and GET /fhir/[type]?...",
                );
                // RFC 9110, section 15.5.6: a 405 names what is allowed there.
                let allowed = match path.trim_end_matches('/').matches('/').count() {
                    0 | 1 => "POST",
                    2 => "GET, POST, PUT",
                    _ if path.contains("/_history") => "GET",
                    _ if path.ends_with("/_search") => "POST",
                    _ if path.starts_with("/fhir/Subscription/") => "GET, PUT, DELETE",
                    _ => "GET, PUT",
                };
                answer.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allowed));
                return answer;
            };
            if let Err(refused) = fhir::acceptable(&head) {
                return refused;
            }
            let body = match whole(api, body, api.http.body_max).await {
                Ok(body) => body,
                Err(refused) => return refused,
            };
            fhir::write(api, &client, &head, interaction, &request, body, peer).await
        }
        _ => text(StatusCode::NOT_FOUND, "nothing is here; FHIR lies at /fhir, feeds at /feeds/NAME\n"),
    }
}

/// Where resources lie: as configured, else as the client addressed this server.
fn base(api: &Api, head: &Parts) -> String {
    let asked = || {
        let scheme = if api.http.tls.is_some() { "https" } else { "http" };
        let host = head.headers.get(header::HOST).and_then(|value| value.to_str().ok());
        format!("{scheme}://{}/fhir", host.unwrap_or("localhost"))
    };
    api.http.base_url.clone().unwrap_or_else(asked)
}

/// The whole body of a request, if it has at most so many bytes.
///
/// # Errors
/// The answer to give: it is too large, ended early, or took too long.
async fn whole(api: &Api, body: Incoming, bytes_max: usize) -> Result<Bytes, Answer> {
    let read = Limited::new(body, bytes_max).collect();
    match tokio::time::timeout(api.http.timeout, read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(outcome::answer(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-long",
            &format!("the body is larger than {bytes_max} bytes"),
        )),
        Ok(Err(_)) => Err(outcome::answer(StatusCode::BAD_REQUEST, "incomplete", "the body ended early")),
        Err(_) => Err(outcome::answer(StatusCode::REQUEST_TIMEOUT, "timeout", "the body took too long")),
    }
}

fn text(status: StatusCode, body: &str) -> Answer {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "text/plain; charset=utf-8")
        .header(header::CACHE_CONTROL, "no-store")
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .expect("these headers are valid")
}
