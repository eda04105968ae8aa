//! Feeds as their senders see them: what is posted to `/feeds/NAME` is durable, answered one by one, mapped, and told to subscribers.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::gateway::{Gateway, Setup, Subscription, binary};
use tests::generate::Run;
use tests::rest::{self, Answer};
use tests::webhook::Webhook;

const WAIT: Duration = Duration::from_secs(20);
const JSON: (&str, &str) = ("content-type", "application/json");
const LINES: (&str, &str) = ("content-type", "application/x-ndjson");
/// The wearer; may stand in no log.
const WEARER: &str = "TESTWEARER0815";
const TOKEN: &str = "t0ken-of-the-app";
const SECRET: &str = "s3cret-of-the-cloud";

const SOURCES: &str = "sources:
  - {name: sensors, adapter: http, mapping: dexcom_egvs, patient: {at: /userId}, documents_max: 3}
  - {name: cloud, adapter: http, mapping: dexcom_egvs, signature: {sender: cloudco, secret: {file: cloud.secret}, prefix: 'sha256='}}
  - {name: scales, adapter: http, mapping: scales, zone: Europe/Berlin, patient: {at: mrn, assigner: GENHOSP}}
  - {name: bulk, adapter: http, mapping: dexcom_egvs, patient: {at: userId}}
";
const SENDERS: &str = "senders:
  - {name: app, token: {file: app.token}, reads: [Patient, Observation, Device]}
  - {name: mail, token: {file: mail.token}, sources: [scales]}
  - {name: cloudco}
";
const SCALES: &str = "
record: ScaleFile
members: {lines: [ScaleLine]}
---
record: ScaleLine
members: {mrn: text, at: text, kg: number}
---
record_map: scale_patient
from: ScaleLine
to: Patient
rules:
  identifier: {all: [{id: mrn, set: {value: {value: ScaleLine.mrn}}}]}
---
record_map: scale_weight
from: ScaleLine
to: Observation
rules:
  status: {const: final}
  code: {concept: 'loinc#29463-7'}
  effective[x]: {as: dateTime, value: 'datetime(ScaleLine.at)'}
  value[x]: {as: Quantity, set: {value: {value: ScaleLine.kg}, unit: {const: kg}, system: {const: 'http://unitsofmeasure.org'}, code: {const: kg}}}
---
mapping: scales
version: 1.0.0
source: {format: csv, record: ScaleFile, separator: ';'}
resources:
- {id: patient, type: Patient, each: ScaleFile.lines, identity: {keys: [{value: ScaleLine.mrn}], else: quarantine}, parts: [{use: scale_patient, from: ScaleLine}]}
- {id: weight, type: Observation, each: ScaleFile.lines, identity: {keys: [{value: [ScaleLine.mrn, ScaleLine.at]}], else: quarantine}, parts: [{use: scale_weight, from: ScaleLine}], set: {subject: {ref: patient}}}
";

async fn start(setup: &Setup) -> Gateway {
    let mut gateway = Gateway::configure(setup).unwrap();
    let yaml = std::fs::read_to_string(gateway.config()).unwrap();
    let yaml = yaml.replacen("sources:\n", SOURCES, 1).replacen("senders:\n", SENDERS, 1);
    let yaml = yaml.replace("senders: [genhosp]", "senders: [app, cloudco, mail]");
    std::fs::write(gateway.config(), format!("mappings_dir: own\n{yaml}")).unwrap();
    let beside = |name: &str| gateway.config().with_file_name(name);
    std::fs::create_dir(beside("own")).unwrap();
    std::fs::write(beside("own").join("scales.yaml"), SCALES).unwrap();
    std::fs::write(beside("app.token"), TOKEN).unwrap();
    std::fs::write(beside("mail.token"), "another").unwrap();
    std::fs::write(beside("cloud.secret"), SECRET).unwrap();
    gateway.spawn().await.unwrap();
    gateway.ready(Duration::from_secs(60)).await.unwrap();
    gateway
}

async fn ask(gateway: &Gateway, request: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let answer = rest::exchange(gateway, request, headers, body.as_bytes(), body.len()).await.unwrap();
    assert!(answer.status == 200 || !answer.body.contains(WEARER), "a value in an answer");
    answer
}

async fn post(gateway: &Gateway, feed: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let authorization = format!("Bearer {TOKEN}");
    let headers = [&[("authorization", authorization.as_str())], headers].concat();
    ask(gateway, &format!("POST /feeds/{feed}"), &headers, body).await
}

fn readings(user: &str, records: &[(&str, &str, f64)]) -> String {
    let records: Vec<Value> = records
        .iter()
        .map(|(id, time, value)| {
            json!({"recordId": id, "systemTime": time, "value": value, "unit": "mg/dL", "transmitterId": "TX1", "status": "ok"})
        })
        .collect();
    json!({"recordType": "egv", "recordVersion": "3.0", "userId": user, "records": records}).to_string()
}

/// What became of each document of a request.
fn documents(answer: &Answer, status: u16) -> Vec<Value> {
    assert_eq!(answer.status, status, "{}", answer.body);
    answer.json()["documents"].as_array().unwrap().clone()
}

async fn found(gateway: &Gateway, options: &[&str]) -> Vec<Value> {
    let (code, found) = gateway.pons(&[&["search", "--format", "json"], options].concat()).await.unwrap();
    assert_eq!(code, Some(0), "{found}");
    found.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Asks until so many are found.
async fn until(gateway: &Gateway, options: &[&str], count: usize) -> Vec<Value> {
    let began = Instant::now();
    loop {
        let found = found(gateway, options).await;
        if found.len() >= count {
            return found;
        }
        assert!(began.elapsed() < WAIT, "{count} are found with {options:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_reading_reaches_its_subscriber_and_what_is_sent_again_is_known_again() {
    let hook = Webhook::start(Run::new(1)).await.unwrap();
    let subscription = Subscription::webhook("diabetes", &["device-observation"], &hook.url());
    let gateway = start(&Setup { subscriptions: vec![subscription], ..Setup::default() }).await;
    let body =
        readings(WEARER, &[("r1", "2026-03-01T07:30:00Z", 119.0), ("r2", "2026-03-01T07:35:00Z", 39.0)]);
    let first = documents(&post(&gateway, "sensors", &[JSON, ("idempotency-key", "K1")], &body).await, 202);
    let again = documents(&post(&gateway, "sensors", &[JSON, ("idempotency-key", "K1")], &body).await, 202);
    assert_eq!((first.len(), again.len()), (1, 1));
    assert_eq!(again[0]["message"], first[0]["message"]);
    assert_eq!((first[0].get("repeat"), again[0]["repeat"].as_bool()), (None, Some(true)));
    let began = Instant::now();
    while hook.accepted() < 1 {
        assert!(began.elapsed() < WAIT, "the subscriber is told");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let told: Value = serde_json::from_slice(&hook.last_body()).unwrap();
    assert_eq!(schemas::fhir::validate(&told), []);
    let resources = told["entry"].as_array().unwrap().iter().map(|entry| &entry["resource"]);
    let values: Vec<String> = resources
        .filter(|resource| resource["resourceType"] == "Observation")
        .map(|one| {
            format!(
                "{}{}",
                one["valueQuantity"]["comparator"].as_str().unwrap_or_default(),
                one["valueQuantity"]["value"]
            )
        })
        .collect();
    assert_eq!(values, ["119.0", "<40"]);
    // One reading by another request is the same reading: what is unchanged makes no version, what is changed makes one.
    let changed =
        readings(WEARER, &[("r1", "2026-03-01T07:30:00Z", 119.0), ("r2", "2026-03-01T07:35:00Z", 40.0)]);
    documents(&post(&gateway, "sensors", &[JSON], &changed).await, 202);
    let options = ["--patient", WEARER, "--state", "routed"];
    assert_eq!(
        until(&gateway, &options, 2).await.len(),
        2,
        "found by whom it is about, and the repeat is none"
    );
    let authorization = format!("Bearer {TOKEN}");
    let headers = [("authorization", authorization.as_str())];
    let search = format!("GET /fhir/Observation?patient.identifier=urn:pons:sender:app%7C{WEARER}");
    let answer = ask(&gateway, &search, &headers, "").await;
    let bundle = answer.json();
    let found = bundle["entry"].as_array().unwrap_or_else(|| panic!("{}", answer.body)).iter();
    let mut versions: Vec<(String, String)> = found
        .map(|entry| &entry["resource"])
        .map(|one| {
            (one["valueQuantity"]["value"].to_string(), one["meta"]["versionId"].as_str().unwrap().to_owned())
        })
        .collect();
    versions.sort();
    assert_eq!(versions.len(), 2, "two readings: {versions:?}");
    assert_eq!(versions[1].0, "40.0", "the changed one has its new value");
    assert!(!gateway.log().contains(WEARER) && !gateway.log().contains(TOKEN));
}

#[tokio::test]
async fn each_document_has_its_own_outcome_and_none_blocks_the_others() {
    let gateway = start(&Setup::default()).await;
    let good = readings(WEARER, &[("r1", "2026-03-01T07:30:00Z", 119.0)]);
    let nobody = good.replace(&format!("\"userId\":\"{WEARER}\""), "\"userId\":\"\"");
    let body = format!("{good}\n{{\"userId\":\"{WEARER}\",}}\n{nobody}\n");
    let results = documents(&post(&gateway, "sensors", &[LINES], &body).await, 207);
    assert!(results[0]["message"].is_string() && results[2]["message"].is_string());
    assert_eq!(results[1], json!({"refused": "not JSON: line 2, column 28"}));
    // What nobody can be found for waits for a person.
    let waiting = until(&gateway, &["--state", "quarantined"], 1).await;
    assert_eq!(waiting[0]["id"], results[2]["message"]);
    assert_eq!(waiting[0]["type"], "dexcom_egvs");
    assert_eq!(until(&gateway, &["--state", "routed"], 1).await[0]["id"], results[0]["message"]);
    assert_eq!(until(&gateway, &["--state", "rejected"], 1).await.len(), 1, "what was refused is kept");
    // What is no document at all, and what is too much at once, is refused as a whole.
    let place = post(&gateway, "sensors", &[JSON], "{\"userId\":").await.outcome(400);
    assert!(place.contains("line 1, column 10"), "{place}");
    until(&gateway, &["--state", "rejected"], 2).await;
    post(&gateway, "sensors", &[JSON], "[{},{},{},{}]").await.outcome(413);
    post(&gateway, "sensors", &[("content-type", "text/html")], "{}").await.outcome(415);
    post(&gateway, "sensors", &[("content-type", "text/csv")], "a\n1\n").await.outcome(415);
    post(&gateway, "sensors", &[JSON, ("content-encoding", "gzip")], "{}").await.outcome(415);
    assert_eq!(documents(&post(&gateway, "sensors", &[JSON], "[]").await, 202), [Value::Null; 0]);
    assert_eq!(documents(&post(&gateway, "sensors", &[LINES], "no\n").await, 400).len(), 1);
    let told = until(&gateway, &[], 5).await;
    assert_eq!(told.len(), 5);
    assert!(!gateway.log().contains(WEARER));
}

#[tokio::test]
async fn many_documents_of_one_request_are_taken_in_their_order_and_a_key_belongs_to_its_feed() {
    let gateway = start(&Setup::default()).await;
    let lines: Vec<String> = (0..700)
        .map(|value| readings(WEARER, &[("r1", "2026-03-01T07:30:00Z", 41.0 + f64::from(value % 300))]))
        .collect();
    let keyed = [LINES, ("idempotency-key", "B1")];
    let results = documents(&post(&gateway, "bulk", &keyed, &lines.join("\n")).await, 202);
    assert_eq!(results.len(), 700);
    let (first, last) = (&results[0]["message"], &results[699]["message"]);
    let began = Instant::now();
    while found(&gateway, &["--state", "routed", "--limit", "1000"]).await.len() < 700 {
        assert!(began.elapsed() < WAIT * 3, "all are recorded");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let newest_first = found(&gateway, &["--limit", "1000"]).await;
    let order: Vec<&Value> = newest_first.iter().rev().map(|one| &one["id"]).collect();
    let given: Vec<&Value> = results.iter().map(|one| &one["message"]).collect();
    assert_eq!(order, given);
    assert_ne!(first, last);
    let authorization = format!("Bearer {TOKEN}");
    let headers = [("authorization", authorization.as_str())];
    let search = format!("GET /fhir/Observation?patient.identifier=urn:pons:sender:app%7C{WEARER}");
    let bundle = ask(&gateway, &search, &headers, "").await.json();
    let value = bundle["entry"][0]["resource"]["valueQuantity"]["value"].to_string();
    assert_eq!(value, "140.0", "the last one says what holds");
    let again =
        documents(&post(&gateway, "sensors", &[LINES, ("idempotency-key", "B1")], &lines[0]).await, 202);
    assert_eq!(again[0].get("repeat"), None, "at another feed it is another request");
    let long = "k".repeat(199);
    post(&gateway, "bulk", &[LINES, ("idempotency-key", &long)], &lines[0]).await.outcome(400);
}

#[tokio::test]
async fn whoever_may_not_is_refused_and_a_signature_proves_the_sender() {
    let gateway = start(&Setup::default()).await;
    let body = readings(WEARER, &[("r1", "2026-03-01T07:30:00Z", 119.0)]);
    ask(&gateway, "POST /feeds/sensors", &[JSON], &body).await.outcome(401);
    ask(&gateway, "POST /feeds/nowhere", &[JSON], &body).await.outcome(401);
    post(&gateway, "nowhere", &[JSON], &body).await.outcome(404);
    post(&gateway, "main", &[JSON], &body).await.outcome(404);
    let mail = [("authorization", "Bearer another"), JSON];
    ask(&gateway, "POST /feeds/sensors", &mail, &body).await.outcome(403);
    let authorization = format!("Bearer {TOKEN}");
    let answer = ask(&gateway, "GET /feeds/sensors", &[("authorization", authorization.as_str())], "").await;
    answer.outcome(405);
    assert_eq!(answer.header("allow"), Some("POST"));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = format!("sha256={}", HEXLOWER.encode(hmac::sign(&key, body.as_bytes()).as_ref()));
    let signed = [JSON, ("x-signature-256", signature.as_str())];
    assert_eq!(documents(&ask(&gateway, "POST /feeds/cloud", &signed, &body).await, 202).len(), 1);
    ask(&gateway, "POST /feeds/cloud", &signed, &body.replace("119", "219")).await.outcome(401);
    ask(&gateway, "POST /feeds/cloud", &[JSON], &body).await.outcome(401);
    let long = " ".repeat((1 << 20) + 1);
    ask(&gateway, "POST /feeds/cloud", &signed, &long).await.outcome(413);
    let with_token = [JSON, ("authorization", authorization.as_str())];
    ask(&gateway, "POST /feeds/cloud", &with_token, &body).await.outcome(401);
    let found = until(&gateway, &[], 1).await;
    assert_eq!(found.len(), 1, "what nobody proved is not kept");
    assert_eq!(found[0]["sender"], "cloudco");
}

#[tokio::test]
async fn each_line_of_csv_is_a_message_and_one_comes_back_after_the_mapping_was_put_right() {
    let gateway = start(&Setup::default()).await;
    let csv = ("content-type", "text/csv; charset=utf-8");
    let body = format!("mrn;at;kg\r\n{WEARER};2026-03-01 08:00:00;81.50\r\n;2026-03-01 08:05:00;90\r\n");
    let results = documents(&post(&gateway, "scales", &[csv, ("idempotency-key", "F1")], &body).await, 202);
    assert_eq!(results.len(), 2);
    let again = documents(&post(&gateway, "scales", &[csv, ("idempotency-key", "F1")], &body).await, 202);
    assert!(again.iter().zip(&results).all(|(again, first)| again["message"] == first["message"]));
    let routed = until(&gateway, &["--state", "routed"], 1).await;
    assert_eq!(routed[0]["id"], results[0]["message"]);
    let waiting = until(&gateway, &["--state", "quarantined"], 1).await;
    assert_eq!(waiting[0]["id"], results[1]["message"]);
    let authorization = format!("Bearer {TOKEN}");
    let headers = [("authorization", authorization.as_str())];
    let search = format!("GET /fhir/Observation?patient.identifier=urn:pons:sender:app%7C{WEARER}");
    let bundle = ask(&gateway, &search, &headers, "").await.json();
    let weight = &bundle["entry"][0]["resource"];
    assert_eq!(weight["valueQuantity"]["value"].to_string(), "81.50");
    assert_eq!(weight["effectiveDateTime"], "2026-03-01T08:00:00+01:00", "in the zone of its source");
    let own = gateway.config().with_file_name("own").join("scales.yaml");
    let mended = SCALES.replace("else: quarantine", "else: message");
    std::fs::write(own, mended).unwrap();
    let began = Instant::now();
    while !gateway.log().contains("mappings exchanged") {
        assert!(began.elapsed() < WAIT, "the mapping is taken");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let id = results[1]["message"].as_str().unwrap();
    let (code, told) = gateway.pons(&["replay", id, "--yes"]).await.unwrap();
    assert_eq!(code, Some(0), "{told}");
    until(&gateway, &["--state", "routed"], 2).await;
}

#[tokio::test]
async fn a_source_names_a_mapping_that_can_read_it() {
    for (from, to, expected) in [
        ("mapping: dexcom_egvs, patient", "mapping: dexcom_egv, patient", "did you mean `dexcom_egvs`?"),
        (
            "mapping: dexcom_egvs, patient",
            "mapping: oru_r01, patient",
            "no mapping `oru_r01` reads documents",
        ),
        ("mapping: dexcom_egvs, patient", "patient", "mapping: is missing"),
        ("sender: cloudco", "sender: cloudo", "there is no sender `cloudo`"),
        ("adapter: mllp,", "adapter: mllp, mapping: dexcom_egvs,", "says itself what it is"),
        (
            "mapping: dexcom_egvs, patient",
            "production: false, mapping: dexcom_egvs, patient",
            "documents have none",
        ),
        ("http: {", "http: {enabled: false, ", "HTTP is switched off"),
    ] {
        let gateway = Gateway::configure(&Setup::default()).unwrap();
        let yaml = std::fs::read_to_string(gateway.config()).unwrap();
        let yaml = yaml.replacen("sources:\n", SOURCES, 1).replacen("senders:\n", SENDERS, 1);
        let beside = |name: &str| gateway.config().with_file_name(name);
        std::fs::create_dir(beside("own")).unwrap();
        std::fs::write(beside("own").join("scales.yaml"), SCALES).unwrap();
        for file in ["app.token", "mail.token", "cloud.secret"] {
            std::fs::write(beside(file), "x").unwrap();
        }
        let yaml = format!("mappings_dir: own\n{yaml}").replacen(from, to, 1);
        std::fs::write(gateway.config(), yaml).unwrap();
        let mut check = std::process::Command::new(binary().await.unwrap());
        let checked = check.arg("check").arg("--config").arg(gateway.config()).output().unwrap();
        let told = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert_eq!(checked.status.code(), Some(78), "{told}");
        assert!(told.contains(expected), "{expected}: {told}");
    }
}
