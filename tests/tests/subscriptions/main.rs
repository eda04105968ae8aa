//! Subscriptions that their owners make over `/fhir`.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod channels;
mod life;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tests::gateway::{Gateway, Setup};
use tests::rest::{self, Answer};
use tests::sender::Connection;
use tokio::net::{TcpListener, TcpStream};

const WAIT: Duration = Duration::from_secs(30);
const BACKPORT: &str = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/";
/// How much of an event is told.
const CONTENTS: [&str; 3] = ["empty", "id-only", "full-resource"];
/// What may stand in no log.
const SECRET: &str = "s3cret-of-the-payer";

/// What came: to which path, with which headers, what.
#[derive(Clone, Debug)]
struct Came {
    path: String,
    headers: HeaderMap,
    body: Value,
}

impl Came {
    /// A value of its status.
    fn says(&self, name: &str) -> &str {
        let parameters = self.body["entry"][0]["resource"]["parameter"].as_array().unwrap();
        let one = parameters.iter().find(|one| one["name"] == name).unwrap();
        let (_, value) = one.as_object().unwrap().iter().find(|(key, _)| key.starts_with("value")).unwrap();
        value["reference"].as_str().or(value.as_str()).unwrap()
    }

    fn number(&self) -> Option<u64> {
        let parameters = self.body["entry"][0]["resource"]["parameter"].as_array().unwrap();
        let event = parameters.iter().find(|one| one["name"] == "notification-event")?;
        event["part"][0]["valueString"].as_str().unwrap().parse().ok()
    }
}

/// An endpoint that answers 200, or what it is told to answer.
#[derive(Clone)]
struct Endpoint {
    at: SocketAddr,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    came: Vec<Came>,
    /// What is always answered.
    always: Option<u16>,
    /// What type of notification is refused for good.
    refused: Option<&'static str>,
}

impl Endpoint {
    async fn start() -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint { at: listener.local_addr().unwrap(), inner: Arc::default() };
        let serving = endpoint.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let one = serving.clone();
                let service = service_fn(move |request| {
                    let one = one.clone();
                    async move { one.answer(request).await }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        endpoint
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
        let (path, headers) = (request.uri().path().to_owned(), request.headers().clone());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let came = Came { path, headers, body: serde_json::from_slice(&body).unwrap() };
        let mut inner = self.lock();
        let refused = inner.refused.filter(|kind| came.says("type") == *kind).map(|_| 422);
        let status = refused.or(inner.always).unwrap_or(200);
        inner.came.push(came);
        let mut answer = Response::new(Empty::new());
        *answer.status_mut() = status.try_into().unwrap();
        Ok(answer)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at)
    }

    /// The first so many of what came to a path.
    async fn all(&self, path: &str, count: usize) -> Vec<Came> {
        let began = Instant::now();
        loop {
            let came: Vec<Came> = self.lock().came.iter().filter(|came| came.path == path).cloned().collect();
            if came.len() >= count {
                return came;
            }
            assert!(began.elapsed() < WAIT, "{path}: {} of {count}", came.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What came to a path of a type.
    fn of(&self, path: &str, kind: &str) -> Vec<Came> {
        let inner = self.lock();
        inner.came.iter().filter(|came| came.path == path && came.says("type") == kind).cloned().collect()
    }

    async fn until(&self, path: &str, kind: &str, count: usize) -> Vec<Came> {
        let began = Instant::now();
        loop {
            let came = self.of(path, kind);
            if came.len() >= count {
                return came;
            }
            assert!(began.elapsed() < WAIT, "{path}: {} of {count} {kind}", came.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A gateway that knows the clients `payer` and `other`.
async fn start(setup: &Setup, endpoint: &Endpoint) -> Gateway {
    let subscribes = format!("endpoints: ['http://{}/events'], subscriptions_max: 3", endpoint.at);
    start_with(setup, &subscribes).await
}

/// A gateway that lets the client `payer` have what `subscribes` says beside topics and senders.
async fn start_with(setup: &Setup, subscribes: &str) -> Gateway {
    let clients = [
        format!(
            "{{name: payer, token: {{file: payer.token}}, subscribes: {{topics: [encounter-end, encounter-start], \
             senders: [genhosp], {subscribes}}}}}"
        ),
        "{name: other, token: {file: other.token}}".to_owned(),
    ];
    let mut gateway = Gateway::configure(&Setup { senders: clients.to_vec(), ..setup.clone() }).unwrap();
    for name in ["payer", "other"] {
        let token = gateway.config().with_file_name(format!("{name}.token"));
        std::fs::write(token, format!("{name}-t0ken")).unwrap();
    }
    gateway.spawn().await.unwrap();
    gateway.ready(Duration::from_secs(60)).await.unwrap();
    gateway
}

async fn ask_as(
    gateway: &Gateway,
    client: &str,
    request: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> Answer {
    let authorization = format!("Bearer {client}-t0ken");
    let json = [("content-type", "application/fhir+json")];
    let headers =
        [&[("authorization", authorization.as_str())], &json[..usize::from(body.is_some())], headers]
            .concat();
    let body = body.map(Value::to_string).unwrap_or_default();
    rest::exchange(gateway, request, &headers, body.as_bytes(), body.len()).await.unwrap()
}

async fn ask(gateway: &Gateway, request: &str, body: Option<&Value>) -> Answer {
    ask_as(gateway, "payer", request, &[], body).await
}

fn sample(endpoint: &Endpoint, path: &str) -> Value {
    json!({
        "resourceType": "Subscription", "status": "requested", "reason": "to pay",
        "criteria": "urn:pons:topic:encounter-end",
        "channel": {
            "type": "rest-hook", "endpoint": endpoint.url(path), "payload": "application/fhir+json",
            "_payload": {"extension": [{"url": format!("{BACKPORT}backport-payload-content"), "valueCode": "full-resource"}]},
            "header": [format!("X-Key: {SECRET}")],
        },
    })
}

/// Creates a subscription; answers its id.
async fn create(gateway: &Gateway, resource: &Value) -> String {
    let made = ask(gateway, "POST /fhir/Subscription", Some(resource)).await;
    assert_eq!(made.status, 201, "{}", made.body);
    made.json()["id"].as_str().unwrap().to_owned()
}

async fn status_of(gateway: &Gateway, id: &str) -> String {
    let read = ask(gateway, &format!("GET /fhir/Subscription/{id}"), None).await;
    assert_eq!(read.status, 200, "{}", read.body);
    assert_eq!(schemas::fhir::validate(&read.json()), []);
    read.json()["status"].as_str().unwrap().to_owned()
}

async fn becomes(gateway: &Gateway, id: &str, status: &str) {
    let began = Instant::now();
    loop {
        let now = status_of(gateway, id).await;
        if now == status {
            return;
        }
        assert!(began.elapsed() < WAIT, "{id} becomes {status}, and is {now}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A new version of it, as its owner writes it back.
async fn change(gateway: &Gateway, id: &str, change: impl Fn(&mut Value)) -> Answer {
    let mut resource = ask(gateway, &format!("GET /fhir/Subscription/{id}"), None).await.json();
    change(&mut resource);
    ask(gateway, &format!("PUT /fhir/Subscription/{id}"), Some(&resource)).await
}

/// Visits that end, one message each; `label` is MSH-26.
async fn discharge(gateway: &Gateway, visits: std::ops::Range<u32>) {
    let mut sender: Connection<TcpStream> = Connection::open(gateway.mllp).await.unwrap();
    for n in visits {
        let message = format!(
            "MSH|^~\\&|ADT1|GENHOSP|||20260301100000||ADT^A03|C{n}|P|2.8.2\rEVN||20260301100000\r\
             PID|1||P{}^^^GENHOSP^MR||TEST^JANE\rPV1|1|I|WEST^1^1||||||||||||||||V{n}^^^GENHOSP^VN\r",
            n % 3
        );
        sender.send(message.as_bytes()).await.unwrap();
        let answer = sender.receive(WAIT).await.unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("MSA|AA|"));
    }
}

/// What the suites that test servers for the backport look at in a handshake and in an event of a subscription, whatever brought them.
fn conforms(id: &str, content: &str, handshake: &Came, event: &Came) {
    assert_eq!((handshake.says("type"), event.says("type")), ("handshake", "event-notification"));
    for came in [handshake, event] {
        assert_eq!(schemas::fhir::validate(&came.body), []);
        assert_eq!(came.body["type"], "history");
        let profile = &came.body["meta"]["profile"][0];
        assert_eq!(profile, &json!(format!("{BACKPORT}backport-subscription-notification-r4")));
        let entries = came.body["entry"].as_array().unwrap();
        assert!(entries.iter().all(|entry| entry["request"].is_object() && entry["response"].is_object()));
        assert!(entries.iter().all(|entry| entry["fullUrl"].is_string()));
        let status = &entries[0]["resource"];
        assert_eq!(status["meta"]["profile"][0], format!("{BACKPORT}backport-subscription-status-r4"));
        let asked = entries[0]["request"]["url"].as_str().unwrap();
        assert!(asked.ends_with(&format!("Subscription/{id}/$status")), "{asked}");
        assert!(came.says("subscription").ends_with(&format!("Subscription/{id}")));
        let has_topic = status["parameter"].as_array().unwrap().iter().any(|one| one["name"] == "topic");
        assert_eq!(has_topic, content != "empty");
    }
    assert_eq!(handshake.body["entry"].as_array().unwrap().len(), 1, "a handshake has no events");
    assert_eq!((event.number(), event.says("events-since-subscription-start")), (Some(1), "1"));
    let text = event.body.to_string();
    let entries = event.body["entry"].as_array().unwrap();
    let parameters = entries[0]["resource"]["parameter"].as_array().unwrap();
    let told = parameters.iter().find(|one| one["name"] == "notification-event").unwrap();
    let focus = told["part"].as_array().unwrap().iter().find(|part| part["name"] == "focus");
    if content == "empty" {
        assert!(entries.len() == 1 && focus.is_none() && !text.contains("additional-context"));
        return;
    }
    let focus = focus.unwrap()["valueReference"]["reference"].as_str().unwrap();
    let found = entries.iter().find(|entry| entry["fullUrl"] == focus).unwrap();
    assert_eq!(found["resource"]["resourceType"] == "Encounter", content == "full-resource");
    let with_resource = entries[1..].iter().filter(|entry| entry["resource"].is_object()).count();
    assert_eq!(with_resource, if content == "full-resource" { entries.len() - 1 } else { 0 });
}

/// The numbers of the events that were taken, each once, in the order in which they came first.
fn numbers(came: &[Came]) -> Vec<u64> {
    let mut seen = Vec::new();
    for number in came.iter().filter_map(Came::number) {
        if !seen.contains(&number) {
            seen.push(number);
        }
    }
    seen
}
