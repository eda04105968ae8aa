//! Who gets what, in which order, and what becomes of what a subscriber does not take.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tests::checker;
use tests::gateway::{Gateway, Setup, Subscription};
use tests::generate::{Generated, Kind, Marker, Population, Run};
use tests::sender::{self, Connection, Load, Stop, acknowledgement};
use tests::webhook::Webhook;
use tokio::net::TcpListener;

const WAIT: Duration = Duration::from_secs(20);

/// One request as a subscriber saw it: its marker, its `Idempotency-Key`, what it was answered.
type Call = (Marker, String, u16);

/// Decides what a message is answered, by its marker and by how often it came before.
type Decide = dyn Fn(Marker, usize) -> u16 + Send + Sync;

/// A webhook that decides for each message by itself. It ends when dropped.
struct Hook {
    at: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    decide: Arc<Mutex<Box<Decide>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Hook {
    async fn start(run: Run, decide: impl Fn(Marker, usize) -> u16 + Send + Sync + 'static) -> Hook {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let decide: Arc<Mutex<Box<Decide>>> = Arc::new(Mutex::new(Box::new(decide)));
        let (log, decider) = (calls.clone(), decide.clone());
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, decider) = (log.clone(), decider.clone());
                let service = service_fn(move |request| answer(request, run, log.clone(), decider.clone()));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Hook { at, calls, decide, server }
    }

    fn url(&self) -> String {
        format!("http://{}/hook", self.at)
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn accepted(&self) -> Vec<Marker> {
        self.calls().into_iter().filter(|(_, _, status)| *status == 200).map(|(marker, ..)| marker).collect()
    }

    fn now_decides(&self, decide: impl Fn(Marker, usize) -> u16 + Send + Sync + 'static) {
        *self.decide.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(decide);
    }
}

async fn answer(
    request: Request<Incoming>,
    run: Run,
    log: Arc<Mutex<Vec<Call>>>,
    decide: Arc<Mutex<Box<Decide>>>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let key = request.headers()["idempotency-key"].to_str().unwrap().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let marker = run.newest(&body).unwrap();
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    let before = log.iter().filter(|(earlier, ..)| *earlier == marker).count();
    let status = (decide.lock().unwrap_or_else(PoisonError::into_inner))(marker, before);
    log.push((marker, key, status));
    Ok(Response::builder().status(status).body(Empty::new()).unwrap())
}

/// Sends messages one after the other; each must be taken.
async fn send(gateway: &Gateway, messages: &[Generated]) {
    let mut connection = Connection::open(gateway.mllp).await.unwrap();
    for message in messages {
        connection.send(&message.bytes).await.unwrap();
        let answer = acknowledgement(&connection.receive(WAIT).await.unwrap()).unwrap();
        assert_eq!((answer.code.as_str(), &answer.control_id), ("CA", &message.control_id));
    }
}

async fn search(gateway: &Gateway, options: &[&str]) -> Vec<Value> {
    let arguments = [&["search", "--format", "json"], options].concat();
    let (code, out) = gateway.pons(&arguments).await.unwrap();
    assert_eq!(code, Some(0), "{options:?}");
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn until(what: &str, reached: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !reached().await {
        assert!(began.elapsed() < WAIT, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until every message is routed and no delivery is open.
async fn at_rest(gateway: &Gateway, messages: usize) {
    until("everything is at rest", async || {
        let rows = search(gateway, &[]).await;
        let open = rows.iter().any(|row| {
            row["state"] == "received"
                || row["deliveries"].as_object().is_some_and(|states| {
                    states
                        .keys()
                        .any(|state| !["delivered", "parked", "suppressed"].contains(&state.as_str()))
                })
        });
        rows.len() == messages && !open
    })
    .await;
}

/// Configures a gateway and changes its file before it starts.
async fn start(setup: &Setup, change: impl Fn(String) -> String) -> Gateway {
    let mut gateway = Gateway::configure(setup).unwrap();
    let yaml = std::fs::read_to_string(gateway.config()).unwrap();
    std::fs::write(gateway.config(), change(yaml)).unwrap();
    gateway.spawn().await.unwrap();
    gateway.ready(Duration::from_secs(60)).await.unwrap();
    gateway
}

#[tokio::test]
async fn who_lists_a_topic_and_a_sender_is_told_and_nobody_else() {
    let run = Run::fresh();
    let mut hooks = Vec::new();
    for _ in 0..7 {
        hooks.push(Hook::start(run, |_, _| 200).await);
    }
    let to = |name, topics: &[&'static str], at: usize| Subscription::webhook(name, topics, &hooks[at].url());
    let filtered = |name, filter: &str, at: usize| {
        let mut subscription = to(name, &["encounter-start"], at);
        subscription.settings.push(format!("filters: ['{filter}']"));
        subscription
    };
    let setup = Setup {
        subscriptions: vec![
            to("starts", &["encounter-start"], 0),
            to("ends", &["encounter-end", "result-final"], 1),
            to("other", &["encounter-start"], 2),
            to("merges", &["patient-merged"], 3),
            to("patients", &["patient-updated"], 4),
            filtered("inpatients", "Encounter?class=IMP", 5),
            filtered("outpatients", "Encounter?class:not=IMP", 6),
        ],
        ..Setup::default()
    };
    let gateway = start(&setup, |yaml| {
        let (sources, subscriptions) = yaml.split_once("subscriptions:").unwrap();
        let (before, other) = subscriptions.split_once("name: other").unwrap();
        let other = other.replacen("senders: [genhosp]", "senders: [otherhosp]", 1);
        let sender = "  - {name: otherhosp, application: ADT2, facility: OTHER}\n";
        format!("{sources}{sender}subscriptions:{before}name: other{other}")
    })
    .await;
    let mut population = Population::new(run, 1, 3);
    let mut of_other = population.message(Kind::Admit, 1);
    let text = String::from_utf8(of_other.bytes).unwrap();
    of_other.bytes = text.replace("|ADT1|GENHOSP|", "|ADT2|OTHER|").into_bytes();
    let admitted = population.message(Kind::Admit, 0);
    let mut moved_house = population.message(Kind::Update, 0);
    let text = String::from_utf8(moved_house.bytes).unwrap();
    moved_house.bytes = text.replace("Testville", "Newville").into_bytes();
    let messages = [
        admitted,
        of_other,
        moved_house,
        population.message(Kind::Result, 0),
        population.message(Kind::Discharge, 0),
    ];
    send(&gateway, &messages).await;
    at_rest(&gateway, 5).await;
    let of = |at: usize| messages[at].marker;
    assert_eq!(hooks[0].accepted(), [of(0)]);
    assert_eq!(hooks[1].accepted(), [of(3), of(4)], "in the order of the patient");
    assert_eq!(hooks[2].accepted(), [of(1)]);
    assert_eq!(hooks[3].accepted(), []);
    // The update moves house, and the discharge tells the former address again; a result only fills in what is not known.
    assert_eq!(hooks[4].accepted(), [of(2), of(4)]);
    assert_eq!(hooks[5].accepted(), [of(0)]);
    assert_eq!(hooks[6].accepted(), []);
    let keys: BTreeSet<String> = hooks.iter().flat_map(Hook::calls).map(|(_, key, _)| key).collect();
    assert_eq!(keys.len(), 7, "each delivery has an id of its own");
    gateway.no_canary_logged(&population.canaries()).unwrap();
}

#[tokio::test]
async fn a_failed_delivery_comes_again_under_its_id_while_other_patients_pass() {
    let run = Run::fresh();
    // The first patient's admission fails until the others have everything.
    let hook = Hook::start(run, |marker, _| if marker.patient == 0 { 503 } else { 200 }).await;
    let setup = Setup {
        subscriptions: vec![Subscription::webhook(
            "insurer",
            &["encounter-start", "encounter-end"],
            &hook.url(),
        )],
        ..Setup::default()
    };
    let gateway = Gateway::start(&setup).await.unwrap();
    let mut population = Population::new(run, 2, 4);
    let mut messages = Vec::new();
    for kind in [Kind::Admit, Kind::Discharge] {
        messages.extend((0..4).map(|patient| population.message(kind, patient)));
    }
    send(&gateway, &messages).await;
    let first = messages[0].marker;
    let tries = || hook.calls().into_iter().filter(|(marker, ..)| *marker == first).count();
    until("the other patients pass", async || hook.accepted().len() == 6 && tries() >= 3).await;
    assert!(hook.accepted().iter().all(|marker| marker.patient != 0));
    assert!(!hook.calls().iter().any(|(marker, ..)| *marker == messages[4].marker), "its discharge waits");
    hook.now_decides(|_, _| 200);
    at_rest(&gateway, 8).await;
    let of_first: Vec<Marker> = hook.accepted().into_iter().filter(|marker| marker.patient == 0).collect();
    assert_eq!(of_first, [first, messages[4].marker]);
    let keys: BTreeSet<String> =
        hook.calls().into_iter().filter(|(marker, ..)| *marker == first).map(|(_, key, _)| key).collect();
    assert_eq!(keys.len(), 1, "every attempt bears the same id");
    gateway.no_canary_logged(&population.canaries()).unwrap();
}

#[tokio::test]
async fn a_refused_delivery_is_a_dead_letter_and_a_replay_brings_it_under_the_same_id() {
    let run = Run::fresh();
    let hook = Hook::start(run, |marker, _| if marker.patient == 1 { 422 } else { 200 }).await;
    let setup = Setup {
        subscriptions: vec![Subscription::webhook("insurer", &["encounter-start"], &hook.url())],
        ..Setup::default()
    };
    let gateway = Gateway::start(&setup).await.unwrap();
    let mut population = Population::new(run, 3, 3);
    let messages: Vec<Generated> = (0..3).map(|patient| population.message(Kind::Admit, patient)).collect();
    send(&gateway, &messages).await;
    at_rest(&gateway, 3).await;
    let parked = search(&gateway, &["--state", "parked"]).await;
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0]["control_id"], messages[1].control_id.as_str());
    assert_eq!(hook.calls().iter().filter(|(marker, ..)| marker.patient == 1).count(), 1, "tried once");
    let id = parked[0]["id"].as_str().unwrap();
    hook.now_decides(|_, _| 200);
    let (code, _) = gateway.pons(&["replay", id]).await.unwrap();
    assert_eq!((code, hook.calls().len()), (Some(0), 3), "a dry run sends nothing");
    let (code, _) = gateway.pons(&["replay", id, "--yes"]).await.unwrap();
    assert_eq!(code, Some(0));
    until("the dead letter arrives", async || hook.accepted().len() == 3).await;
    let keys: Vec<String> =
        hook.calls().into_iter().filter(|(marker, ..)| marker.patient == 1).map(|(_, key, _)| key).collect();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], keys[1], "the same delivery");
    at_rest(&gateway, 3).await;
    assert_eq!(search(&gateway, &["--state", "parked"]).await, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_gateway_loses_nothing_and_keeps_the_order() {
    let run = Run::fresh();
    let hook = Webhook::start(run).await.unwrap();
    let topics = ["encounter-start", "encounter-end", "result-final"];
    let setup = Setup {
        subscriptions: vec![Subscription::webhook("insurer", &topics, &hook.url())],
        ..Setup::default()
    };
    let mut gateway = Gateway::start(&setup).await.unwrap();
    let population = Population::new(run, 4, 12);
    let load = Load {
        to: vec![gateway.mllp],
        connections: 4,
        patients: 12,
        rate: None,
        kind: None,
        patience: Duration::from_secs(5),
    };
    let stop = Stop::after(160);
    let deadline = Instant::now() + Duration::from_secs(60);
    let running = tokio::spawn({
        let (population, stop) = (population.clone(), stop.clone());
        async move { sender::run(load, &population, stop, deadline).await }
    });
    for kill in 1..=3 {
        until("some are acknowledged", async || stop.acknowledged() >= kill * 40).await;
        gateway.kill_and_start().await.unwrap();
        gateway.ready(WAIT).await.unwrap();
    }
    let log = running.await.unwrap();
    assert!(log.len() == 160 && log.iter().all(|sent| sent.acknowledged.is_some()));
    let seen = || [hook.seen("insurer", &topics)];
    until("everything has arrived", async || checker::check(&log, &seen(), None).findings.is_empty()).await;
    at_rest_of(&gateway, run).await;
    let account = gateway.account(run).await.unwrap();
    let verdict = checker::check(&log, &seen(), Some(&account));
    assert_eq!(verdict.findings, [], "{verdict}");
    gateway.no_canary_logged(&population.canaries()).unwrap();
}

/// Waits until nothing of a run is open in the store.
async fn at_rest_of(gateway: &Gateway, run: Run) {
    until("the books are closed", async || {
        let account = gateway.account(run).await.unwrap();
        account.open.is_empty() && account.messages.iter().all(|(_, state)| state != "received")
    })
    .await;
}

#[tokio::test]
async fn another_person_under_a_known_identifier_waits_in_quarantine_at_its_place() {
    let run = Run::fresh();
    let hook = Hook::start(run, |_, _| 200).await;
    let setup = Setup {
        subscriptions: vec![Subscription::webhook(
            "insurer",
            &["encounter-start", "encounter-end"],
            &hook.url(),
        )],
        ..Setup::default()
    };
    let gateway = Gateway::start(&setup).await.unwrap();
    let mut population = Population::new(run, 5, 2);
    let first = population.message(Kind::Admit, 0);
    let mut stranger = population.message(Kind::Admit, 0);
    let mut text = String::from_utf8(stranger.bytes.clone()).unwrap();
    let pid = text.split('\r').find(|line| line.starts_with("PID|")).unwrap().to_owned();
    let mut fields: Vec<&str> = pid.split('|').collect();
    (fields[5], fields[7]) = ("TESTOTHER^JOHN", "19010203");
    text = text.replace(&pid, &fields.join("|"));
    stranger.bytes = text.into_bytes();
    let last = population.message(Kind::Discharge, 0);
    send(&gateway, &[first.clone(), stranger.clone(), last.clone()]).await;
    at_rest(&gateway, 3).await;
    assert_eq!(hook.accepted(), [first.marker, last.marker], "it holds up nobody");

    let quarantined = search(&gateway, &["--state", "quarantined"]).await;
    assert_eq!(quarantined.len(), 1);
    assert_eq!(quarantined[0]["control_id"], stranger.control_id.as_str());
    let id = quarantined[0]["id"].as_str().unwrap();
    let (_, shown) = gateway.pons(&["show", id]).await.unwrap();
    assert!(shown.contains("put into quarantine"), "{shown}");
    assert!(!shown.contains("TESTOTHER") && !shown.contains("19010203"), "without a value");
    assert_eq!(gateway.pons(&["replay", id, "--yes"]).await.unwrap().0, Some(0));
    until("it is looked at again", async || {
        gateway.pons(&["show", id]).await.unwrap().1.contains("replay 1")
    })
    .await;
    until("it waits again", async || search(&gateway, &["--state", "quarantined"]).await.len() == 1).await;
    assert_eq!(search(&gateway, &["--state", "quarantined"]).await, quarantined, "at its place");
    assert_eq!(hook.accepted().len(), 2);
    assert!(!gateway.log().contains("TESTOTHER"));
}
