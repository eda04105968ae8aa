//! What a subscriber sees who asked for events: each its number and what goes along, by the FHIR Subscriptions backport.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tests::gateway::{Gateway, Setup, Subscription};
use tests::sender::Connection;
use tokio::net::{TcpListener, TcpStream};

const WAIT: Duration = Duration::from_secs(20);

/// What came: the path that it was posted to, its content type, its bytes.
type Came = (String, String, Bytes);

/// An endpoint that refuses every body once, and takes it when it comes again.
struct Endpoint {
    at: SocketAddr,
    came: Arc<Mutex<Vec<Came>>>,
}

impl Endpoint {
    async fn start() -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (at, came) = (listener.local_addr().unwrap(), Arc::default());
        let log: Arc<Mutex<Vec<Came>>> = Arc::clone(&came);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let log = log.clone();
                let service = service_fn(move |request| answer(request, log.clone()));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Endpoint { at, came }
    }

    fn subscription(&self, name: &str, topics: &[&'static str], content: &str) -> Subscription {
        let url = format!("http://{}/{name}", self.at);
        let mut subscription = Subscription::webhook(name, topics, &url);
        subscription.settings =
            vec![format!("content: {content}"), "retry_base: 50ms".to_owned(), "owner: genhosp".to_owned()];
        subscription
    }

    /// What was taken on a path so far, in the order in which it came; each came twice, with the same bytes.
    fn taken(&self, name: &str) -> Vec<Value> {
        let came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        let own: Vec<&Bytes> = came
            .iter()
            .filter(|(path, ..)| path.strip_prefix('/') == Some(name))
            .map(|(_, of, body)| {
                assert_eq!(of, "application/fhir+json");
                body
            })
            .collect();
        let twice =
            own.iter().enumerate().filter(|(at, body)| own[..*at].contains(body)).map(|(_, body)| *body);
        twice.map(|body| serde_json::from_slice(body).unwrap()).collect()
    }

    async fn until(&self, name: &str, count: usize) -> Vec<Value> {
        let began = Instant::now();
        loop {
            let taken = self.taken(name);
            if taken.len() >= count {
                return taken;
            }
            assert!(began.elapsed() < WAIT, "{name} has {} of {count}", taken.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    log: Arc<Mutex<Vec<Came>>>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let of = request.headers()["content-type"].to_str().unwrap().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    let again = log.iter().any(|(known, _, other)| *known == path && *other == body);
    log.push((path, of, body));
    let mut answer = Response::new(Empty::new());
    *answer.status_mut() = if again { 200 } else { 503 }.try_into().unwrap();
    Ok(answer)
}

async fn send(gateway: &Gateway, messages: &[String]) {
    let mut connection: Connection<TcpStream> = Connection::open(gateway.mllp).await.unwrap();
    for message in messages {
        connection.send(message.as_bytes()).await.unwrap();
        let answer = connection.receive(WAIT).await.unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("MSA|AA|"));
    }
}

/// One message; `label` is its MSH-26.
fn message(event: &str, number: u32, label: &str, rest: &str) -> String {
    format!(
        "MSH|^~\\&|ADT1|GENHOSP|||202603010{number}00||{event}|C{number}|P|2.8.2||||||||||||||{label}\r{}\
         PID|1||1001^^^GENHOSP^MR||TEST^JANE\r{rest}",
        if event.starts_with("ADT") { format!("EVN||202603010{number}00\r") } else { String::new() }
    )
}

const VISIT: &str = "PV1|1|I|WEST^1^1^GENHOSP||||77^HOUSE^GREG||||||||||||V1^^^GENHOSP^VN";

/// The parameters of the first entry, by name; those of the event as `event.`.
fn status(bundle: &Value) -> Vec<(String, String)> {
    fn add(list: &Value, before: &str, found: &mut Vec<(String, String)>) {
        for one in list.as_array().unwrap() {
            let name = format!("{before}{}", one["name"].as_str().unwrap());
            if one["part"].is_array() {
                add(&one["part"], "event.", found);
                continue;
            }
            let (_, value) =
                one.as_object().unwrap().iter().find(|(key, _)| key.starts_with("value")).unwrap();
            let value = value["reference"].as_str().or(value.as_str()).unwrap();
            found.push((name, value.to_owned()));
        }
    }
    let mut found = Vec::new();
    add(&bundle["entry"][0]["resource"]["parameter"], "", &mut found);
    found
}

fn values<'s>(status: &'s [(String, String)], name: &str) -> Vec<&'s str> {
    status.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
}

fn types(bundle: &Value) -> Vec<&str> {
    let entries = bundle["entry"].as_array().unwrap().iter();
    entries.filter_map(|entry| entry["resource"]["resourceType"].as_str()).collect()
}

#[tokio::test]
async fn an_event_brings_what_its_reader_needs_and_says_no_more_than_was_asked_for() {
    let endpoint = Endpoint::start().await;
    let setup = Setup {
        subscriptions: vec![
            endpoint.subscription("full", &["encounter-end"], "full-resource"),
            endpoint.subscription("ids", &["encounter-end"], "id-only"),
            endpoint.subscription("nothing", &["encounter-end"], "empty"),
        ],
        ..Setup::default()
    };
    let gateway = Gateway::start(&setup).await.unwrap();
    let insured = format!("{VISIT}\rIN1|1|PLAN1|PAYER1^^^GENHOSP|TEST INSURANCE||||||||20260101\r");
    let diagnosed = format!("{VISIT}\rDG1|1||J18.9^Pneumonia^I10||20260301|A\r");
    send(
        &gateway,
        &[
            message("ADT^A01", 1, "", &insured),
            message("ADT^A08", 2, "", &diagnosed),
            message("ADT^A03", 3, "", &format!("{VISIT}|||||||||||||||||||||||||20260301|20260304\r")),
            // A result says that the visit is over once more, under a label; and again without.
            message("ADT^A03", 4, "R", &format!("{VISIT}|||||||||||||||||||||||||20260301|20260305\r")),
            message("ADT^A03", 5, "", &format!("{VISIT}|||||||||||||||||||||||||20260301|20260306\r")),
        ],
    )
    .await;
    let base = format!("http://{}/fhir", gateway.http);
    for (name, with_resources) in [("full", true), ("ids", false), ("nothing", false)] {
        let taken = endpoint.until(name, 3).await;
        assert_eq!(taken.len(), 3);
        for (index, bundle) in taken.iter().enumerate() {
            assert_eq!(schemas::fhir::validate(bundle), [], "{name}: {bundle:#}");
            let status = status(bundle);
            let number = (index + 1).to_string();
            assert_eq!(values(&status, "event.event-number"), [&number], "without a gap");
            assert_eq!(values(&status, "events-since-subscription-start"), [&number]);
            assert_eq!(values(&status, "subscription"), [format!("{base}/Subscription/{name}")]);
            assert_eq!(values(&status, "type"), ["event-notification"]);
            let entries = bundle["entry"].as_array().unwrap();
            assert!(entries[0]["request"]["url"].as_str().unwrap().ends_with(&format!("{name}/$status")));
            assert!(
                entries.iter().all(|entry| entry["request"].is_object() && entry["response"].is_object())
            );
            let (focus, along) =
                (values(&status, "event.focus"), values(&status, "event.additional-context"));
            // The second one is restricted: that it happened is told, and nothing else.
            if name == "nothing" || index == 1 {
                assert_eq!((focus.len(), along.len(), entries.len()), (0, 0, 1));
                assert_eq!(values(&status, "topic").len(), usize::from(name != "nothing"));
                continue;
            }
            assert_eq!(values(&status, "topic"), ["urn:pons:topic:encounter-end"]);
            let named: Vec<&str> = focus.iter().chain(&along).copied().collect();
            let urls: Vec<&str> =
                entries[1..].iter().map(|entry| entry["fullUrl"].as_str().unwrap()).collect();
            assert_eq!(urls, named);
            assert!(named[0].starts_with(&format!("{base}/Encounter/")));
            if !with_resources {
                assert_eq!(types(bundle), ["Parameters"]);
                continue;
            }
            let types = types(bundle);
            assert_eq!(&types[..2], ["Parameters", "Encounter"]);
            for expected in ["Patient", "Practitioner", "Location", "Condition", "Coverage", "Organization"] {
                assert!(types.contains(&expected), "{expected} goes along: {types:?}");
            }
            assert_eq!(entries[1]["resource"]["status"], "finished");
            let text = bundle.to_string();
            assert!(!text.contains("urn:uuid:") || text.matches("urn:uuid:").count() == 1, "{bundle:#}");
            let subject = entries[1]["resource"]["subject"]["reference"].as_str().unwrap();
            assert!(named.contains(&format!("{base}/{subject}").as_str()), "{subject} is in the Bundle");
        }
    }
    owners_ask(&gateway, &endpoint.taken("full")).await;
    let (code, found) = gateway.pons(&["search", "--control-id", "C4", "--format", "json"]).await.unwrap();
    assert_eq!(code, Some(0));
    let found: Value = serde_json::from_str(found.lines().next().unwrap()).unwrap();
    let (_, shown) = gateway.pons(&["show", found["id"].as_str().unwrap()]).await.unwrap();
    assert!(shown.contains("about nothing that may be told") && shown.contains("is labelled R"), "{shown}");
}

/// What an owner is told of the subscriptions of the test above; `taken` is what one of them was sent.
async fn owners_ask(gateway: &Gateway, taken: &[Value]) {
    let get = async |path: &str| {
        let (status, body) = gateway.get(&format!("/fhir/{path}")).await.unwrap();
        let json: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(schemas::fhir::validate(&json), [], "{path}: {json:#}");
        (status, json)
    };
    let (_, all) = get("Subscription").await;
    assert_eq!(all["total"], 3);
    let (code, one) = get("Subscription/ids").await;
    assert_eq!((code, &one["criteria"]), (200, &Value::from("urn:pons:topic:encounter-end")));
    assert_eq!(one["channel"]["_payload"]["extension"][0]["valueCode"], "id-only");
    assert_eq!(get("Subscription?criteria=urn:pons:topic:encounter-end&status=active").await.1["total"], 3);
    assert_eq!(get("Subscription?colour=red").await.0, 400);
    // What stands in the configuration is changed there.
    let authorization = format!("Bearer {}", tests::gateway::TOKEN);
    let headers = [("authorization", authorization.as_str())];
    let delete =
        tests::rest::exchange(gateway, "DELETE /fhir/Subscription/ids", &headers, b"", 0).await.unwrap();
    assert!(delete.outcome(405).contains("stands in the configuration"));
    for path in ["Subscription/other", "Subscription/other/$status", "Subscription/other/$events"] {
        assert_eq!(get(path).await.0, 404, "{path}");
    }
    let (_, stand) = get("Subscription/$status?id=full,ids").await;
    assert_eq!(stand["total"], 2);
    let parameters = stand["entry"][0]["resource"]["parameter"].as_array().unwrap();
    let last = parameters.iter().find(|one| one["name"] == "events-since-subscription-start").unwrap();
    assert_eq!(last["valueString"], "3");

    // The events are those that were sent, in one Bundle.
    let (_, events) = get("Subscription/full/$events").await;
    let told = status(&events);
    assert_eq!(values(&told, "type"), ["query-event"]);
    assert_eq!(values(&told, "event.event-number"), ["1", "2", "3"]);
    let entries = |bundle: &Value| bundle["entry"].as_array().unwrap()[1..].to_vec();
    assert_eq!(entries(&events), taken.iter().flat_map(entries).collect::<Vec<_>>());
    let (_, some) = get("Subscription/full/$events?eventsSinceNumber=2&eventsUntilNumber=2").await;
    assert_eq!(values(&status(&some), "event.event-number"), ["2"]);
    let (_, less) = get("Subscription/full/$events?content=id-only").await;
    assert_eq!(types(&less), ["Parameters"]);
    assert_eq!(get("Subscription/ids/$events?content=full-resource").await.0, 403, "no more than was agreed");
    assert_eq!(get("Subscription/full/$events?eventsSinceNumber=x").await.0, 400);
    assert_eq!(get("Subscription/full/$events?since=1").await.0, 400);
}

#[tokio::test]
async fn an_event_that_is_sent_again_after_a_crash_has_the_same_bytes() {
    let endpoint = Endpoint::start().await;
    let mut subscription = endpoint.subscription("full", &["encounter-start"], "full-resource");
    subscription.settings[1] = "retry_base: 2s".to_owned();
    let setup = Setup { subscriptions: vec![subscription], ..Setup::default() };
    let mut gateway = Gateway::start(&setup).await.unwrap();
    send(&gateway, &[message("ADT^A01", 1, "", &format!("{VISIT}\r"))]).await;
    let began = Instant::now();
    while endpoint.came.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
        assert!(began.elapsed() < WAIT, "it is sent");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    gateway.kill_and_start().await.unwrap();
    assert_eq!(endpoint.until("full", 1).await.len(), 1);
    let came = endpoint.came.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(
        came.iter().all(|(_, _, body)| *body == came[0].2),
        "what is made of the store is what was made of memory"
    );
}

#[tokio::test]
async fn each_report_of_a_message_is_an_event_of_its_own() {
    let endpoint = Endpoint::start().await;
    let subscription = endpoint.subscription("lab", &["result-final"], "full-resource");
    let setup = Setup { subscriptions: vec![subscription], ..Setup::default() };
    let gateway = Gateway::start(&setup).await.unwrap();
    let report = |set: u32, code: &str| {
        format!(
            "OBR|{set}||F{set}^GENHOSP|{code}^Test^LN|||20260301|||||||||||||||20260301|||F\r\
             OBX|1|NM|{code}^Test^LN||4.10|mmol/L|||||F|||20260301\r"
        )
    };
    let both = format!("{VISIT}\r{}{}", report(1, "2823-3"), report(2, "2951-2"));
    send(&gateway, &[message("ORU^R01^ORU_R01", 1, "", &both)]).await;
    let taken = endpoint.until("lab", 2).await;
    let mut focus = Vec::new();
    for (index, bundle) in taken.iter().enumerate() {
        assert_eq!(schemas::fhir::validate(bundle), [], "{bundle:#}");
        let status = status(bundle);
        assert_eq!(values(&status, "event.event-number"), [(index + 1).to_string()]);
        focus.extend(values(&status, "event.focus").iter().map(|focus| (*focus).to_owned()));
        let results = types(bundle).iter().filter(|of| **of == "Observation").count();
        assert_eq!(results, 1, "each report with its own result: {:?}", types(bundle));
        assert!(bundle.to_string().contains("4.10"), "every digit is kept");
    }
    focus.dedup();
    assert_eq!(focus.len(), 2);
}
