//! FHIR over HTTP as a client sees it: what is taken and with which answer, what is shown, what is refused and how it says so.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::gateway::{Gateway, Setup, Subscription};
use tests::generate::Run;
use tests::rest::{self, Answer};
use tests::sender::Connection;
use tests::services::Services;
use tests::webhook::Webhook;
use tokio::net::TcpListener;

const WAIT: Duration = Duration::from_secs(20);
const JSON: (&str, &str) = ("content-type", "application/fhir+json");
/// What may stand in no log.
const NAME: &str = "TESTKANARI";
const TOKEN: &str = "t0ken-of-the-portal";

async fn exchange(
    gateway: &Gateway,
    request: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    length: usize,
) -> Answer {
    let answer = rest::exchange(gateway, request, headers, body, length).await.unwrap();
    let is_outcome = answer.status >= 400 && answer.body.contains("OperationOutcome");
    assert!(!is_outcome || !answer.body.contains(NAME), "a value in an outcome");
    answer
}

async fn ask(gateway: &Gateway, request: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let authorization = format!("Bearer {TOKEN}");
    let headers = [&[("authorization", authorization.as_str())], headers].concat();
    exchange(gateway, request, &headers, body, body.len()).await
}

async fn post(gateway: &Gateway, request: &str, resource: &Value) -> Answer {
    ask(gateway, request, &[JSON], resource.to_string().as_bytes()).await
}

/// A gateway that knows a client by its token, and one HL7 v2 sender.
async fn start(setup: &Setup) -> Gateway {
    let mut gateway = Gateway::configure(setup).unwrap();
    let yaml = std::fs::read_to_string(gateway.config()).unwrap();
    let portal = "senders:\n  - {name: portal, token: {file: portal.token}, reads: [Patient, Encounter]}\n";
    let yaml = yaml.replacen("senders:\n", portal, 1).replace("senders: [genhosp]", "senders: [portal]");
    std::fs::write(gateway.config(), yaml).unwrap();
    std::fs::write(gateway.config().with_file_name("portal.token"), TOKEN).unwrap();
    gateway.spawn().await.unwrap();
    gateway.ready(Duration::from_secs(60)).await.unwrap();
    gateway
}

fn patient(value: &str) -> Value {
    json!({
        "resourceType": "Patient", "identifier": [{"system": "urn:oid:2.999.1", "value": value}],
        "name": [{"family": NAME, "given": ["JANE"]}], "birthDate": "1970-01-01",
    })
}

fn transaction(kind: &str) -> Value {
    json!({"resourceType": "Bundle", "type": kind, "entry": [
        {"fullUrl": "urn:uuid:0d4e1a3c-8a52-4f53-9a55-0e5d3b3b9a01", "resource": patient("T1"),
         "request": {"method": "POST", "url": "Patient"}},
        {"fullUrl": "urn:uuid:0d4e1a3c-8a52-4f53-9a55-0e5d3b3b9a02",
         "resource": {"resourceType": "Encounter", "status": "in-progress",
            "identifier": [{"system": "urn:oid:2.999.2", "value": "V1"}],
            "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
            "subject": {"reference": "urn:uuid:0d4e1a3c-8a52-4f53-9a55-0e5d3b3b9a01"}},
         "request": {"method": "POST", "url": "Encounter"}},
    ]})
}

#[tokio::test]
async fn a_transaction_is_applied_answered_and_sent_on() {
    let hook = Webhook::start(Run::new(1)).await.unwrap();
    let setup = Setup {
        subscriptions: vec![Subscription::webhook("insurer", &["encounter-start"], &hook.url())],
        ..Setup::default()
    };
    let gateway = start(&setup).await;
    let answer = post(&gateway, "POST /fhir", &transaction("transaction")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.header("content-type").unwrap().starts_with("application/fhir+json"));
    let bundle = answer.json();
    assert_eq!(schemas::fhir::validate(&bundle), []);
    assert_eq!(bundle["type"], "transaction-response");
    let entries: Vec<(&str, &str)> = bundle["entry"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["response"])
        .map(|one| (one["status"].as_str().unwrap(), one["location"].as_str().unwrap()))
        .collect();
    assert_eq!(entries.len(), 2);
    for ((status, location), kind) in entries.iter().zip(["Patient/", "Encounter/"]) {
        assert_eq!(*status, "201 Created");
        assert!(location.starts_with(kind) && location.ends_with("/_history/1"), "{location}");
    }
    let began = Instant::now();
    while hook.accepted() < 1 {
        assert!(began.elapsed() < WAIT, "the subscriber is told");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let told: Value = serde_json::from_slice(&hook.last_body()).unwrap();
    let id = entries[0].1.split('/').nth(1).unwrap();
    assert!(told.to_string().contains(id) && told.to_string().contains(NAME));
    // Half of a transaction is none: the second entry is wrong, so the first is not made.
    let mut wrong = transaction("transaction");
    wrong["entry"][0]["resource"] = patient("T2");
    wrong["entry"][1]["resource"]["status"] = json!("begun");
    let place = post(&gateway, "POST /fhir", &wrong).await.outcome(422);
    assert!(place.contains("Bundle.entry[1].resource.status"), "{place}");
    let again = post(&gateway, "POST /fhir/Patient", &patient("T2")).await;
    assert_eq!(again.status, 201, "it was not there");
    assert!(!gateway.log().contains(NAME) && !gateway.log().contains(TOKEN));
}

#[tokio::test]
async fn a_subscriber_that_takes_hl7_v2_alone_gets_it_written_and_its_answer_counts() {
    let hospital = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let destination = format!("{{adapter: mllp, connect: '{}'}}", hospital.local_addr().unwrap());
    let settings = [
        "write: write_adt_a01",
        "receiving_application: EHR",
        "systems: {HUB: 'urn:oid:2.999.1'}",
        "retry_base: 50ms",
    ];
    let old = Subscription {
        name: "old".to_owned(),
        topics: vec!["encounter-start"],
        destination,
        settings: settings.map(str::to_owned).to_vec(),
    };
    let gateway = start(&Setup { subscriptions: vec![old], ..Setup::default() }).await;
    let answer = post(&gateway, "POST /fhir", &transaction("transaction")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    // The first attempt meets a hospital that does not take it now, and the second sends the same again.
    let mut sent = Vec::new();
    let (stream, _) = tokio::time::timeout(WAIT, hospital.accept()).await.expect("it connects").unwrap();
    let mut connection = Connection::over(stream);
    for code in ["AR", "AA"] {
        let message = String::from_utf8(connection.receive(WAIT).await.unwrap()).unwrap();
        let control_id = message.split('|').nth(9).unwrap().to_owned();
        let answer = format!("MSH|^~\\&|EHR||PONS||20260101000000||ACK|1|P|2.5.1\rMSA|{code}|{control_id}\r");
        connection.send(answer.as_bytes()).await.unwrap();
        sent.push(message);
    }
    assert_eq!(sent[0], sent[1]);
    let lines: Vec<&str> = sent[0].split('\r').collect();
    assert!(
        lines[0].starts_with("MSH|^~\\&|PONS||EHR||") && lines[0].contains("|ADT^A01^ADT_A01|"),
        "{}",
        lines[0]
    );
    assert!(lines[1].starts_with("EVN|A01|"));
    assert_eq!(lines[2], format!("PID|1||T1^^^HUB&2.999.1&ISO||{NAME}^JANE^^^^^L||19700101"));
    assert!(lines[3].starts_with("PV1||I|"), "{}", lines[3]);
    let began = Instant::now();
    loop {
        let (_, found) = gateway.pons(&["search", "--state", "delivered", "--format", "json"]).await.unwrap();
        if found.lines().any(|line| line.contains("\"old\"") || line.contains("delivered")) {
            break;
        }
        assert!(began.elapsed() < WAIT, "it is delivered: {found}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!gateway.log().contains(NAME));
}

#[tokio::test]
async fn a_batch_answers_each_entry_by_itself() {
    let gateway = start(&Setup::default()).await;
    let mut batch = transaction("batch");
    let mut update = patient("T9");
    update["id"] = json!("abc");
    let entry = |resource: Value, method: &str, url: &str| json!({"resource": resource, "request": {"method": method, "url": url}});
    let wrong = json!({"resourceType": "Patient", "birthDate": "yesterday"});
    batch["entry"] = json!([
        entry(patient("T1"), "POST", "Patient"),
        entry(wrong, "POST", "Patient"),
        {"request": {"method": "DELETE", "url": "Patient/1"}},
        entry(update, "PUT", "Patient/abc"),
    ]);
    let answer = post(&gateway, "POST /fhir", &batch).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let bundle = answer.json();
    assert_eq!(bundle["type"], "batch-response");
    let statuses: Vec<&str> = bundle["entry"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["response"]["status"].as_str().unwrap()[..3])
        .collect();
    assert_eq!(statuses, ["201", "422", "405", "201"]);
    assert_eq!(bundle["entry"][1]["response"]["outcome"]["resourceType"], "OperationOutcome");
}

#[tokio::test]
async fn a_create_and_an_update_are_answered_with_the_resource() {
    let gateway = start(&Setup::default()).await;
    let created = post(&gateway, "POST /fhir/Patient", &patient("C1")).await;
    assert_eq!(created.status, 201, "{}", created.body);
    let resource = created.json();
    assert_eq!(schemas::fhir::validate(&resource), []);
    let id = resource["id"].as_str().unwrap();
    assert_eq!(created.header("location"), Some(format!("/fhir/Patient/{id}/_history/1").as_str()));
    assert_eq!(created.header("etag"), Some("W/\"1\""));
    assert_eq!(resource["meta"]["versionId"], "1");
    assert_eq!(resource["name"][0]["family"], NAME);

    let mut update = patient("C2");
    update["id"] = json!("own-id");
    let put = async |resource: &Value| post(&gateway, "PUT /fhir/Patient/own-id", resource).await;
    let first = put(&update).await;
    update["gender"] = json!("female");
    let second = put(&update).await;
    assert_eq!((first.status, second.status), (201, 200));
    assert_eq!(first.json()["id"], second.json()["id"], "the same resource");
    assert_eq!(second.header("etag"), Some("W/\"2\""));
    post(&gateway, "PUT /fhir/Patient/another", &update).await.outcome(400);
    post(&gateway, "POST /fhir/Observation", &update).await.outcome(400);
    assert!(!gateway.log().contains(NAME));
}

#[tokio::test]
async fn a_write_that_depends_on_something_is_done_only_if_it_is_so() {
    let gateway = start(&Setup::default()).await;
    let write = async |request: &str, header: Option<(&str, &str)>, resource: &Value| {
        let headers: Vec<(&str, &str)> = [JSON].into_iter().chain(header).collect();
        ask(&gateway, request, &headers, resource.to_string().as_bytes()).await
    };
    // A patient who has a second number.
    let with = |value: &str, number: &str| {
        let mut resource = patient(value);
        let second = json!({"system": "urn:oid:2.999.7", "value": number});
        resource["identifier"].as_array_mut().unwrap().push(second);
        resource
    };
    let none_exist = Some(("if-none-exist", "identifier=urn:oid:2.999.7%7CN1"));
    let mut resource = with("C1", "N1");
    let created = write("POST /fhir/Patient", none_exist, &resource).await;
    assert_eq!(created.status, 201, "{}", created.body);
    let again = write("POST /fhir/Patient", none_exist, &with("C2", "N1")).await;
    assert_eq!((again.status, again.header("location")), (200, created.header("location")));
    // A number that the resource does not have would name it from then on.
    write("POST /fhir/Patient", none_exist, &patient("C3")).await.outcome(400);
    let id = created.json()["id"].as_str().unwrap().to_owned();

    // An update of a version.
    let put = format!("PUT /fhir/Patient/{id}");
    resource["id"] = json!(id);
    resource["gender"] = json!("female");
    let updated = write(&put, Some(("if-match", "W/\"1\"")), &resource).await;
    assert_eq!((updated.status, updated.header("etag")), (200, Some("W/\"2\"")), "{}", updated.body);
    resource["gender"] = json!("male");
    for stale in ["W/\"1\"", "W/\"7\""] {
        let refused = write(&put, Some(("if-match", stale)), &resource).await.outcome(412);
        assert!(refused.contains("it is of version 2 by now"), "{refused}");
    }
    let absent = "PUT /fhir/Patient/nobody";
    let mut nobody = patient("C9");
    nobody["id"] = json!("nobody");
    write(absent, Some(("if-match", "W/\"1\"")), &nobody).await.outcome(412);
    write(absent, Some(("if-match", "*")), &nobody).await.outcome(412);
    assert_eq!(write(absent, Some(("if-none-match", "*")), &nobody).await.status, 201);
    write(absent, Some(("if-none-match", "*")), &nobody).await.outcome(412);
    // A refusal is what a repeat of it gets, too.
    let key = ("idempotency-key", "stale-1");
    for _ in 0..2 {
        let headers = [JSON, key, ("if-match", "W/\"1\"")];
        ask(&gateway, &put, &headers, resource.to_string().as_bytes()).await.outcome(412);
    }
    let headers = [JSON, key, ("if-match", "W/\"2\"")];
    let other = ask(&gateway, &put, &headers, resource.to_string().as_bytes()).await.outcome(422);
    assert!(other.contains("other conditions"), "{other}");
    let read = ask(&gateway, &format!("GET /fhir/Patient/{id}"), &[], b"").await;
    assert_eq!((&read.json()["gender"], read.header("etag")), (&json!("female"), Some("W/\"2\"")));

    // An update of whoever has a number.
    let by_number = "PUT /fhir/Patient?identifier=urn:oid:2.999.7%7CN1";
    let mut whoever = with("C1", "N1");
    whoever["gender"] = json!("other");
    let found = write(by_number, None, &whoever).await;
    assert_eq!((found.status, &found.json()["id"]), (200, &json!(id)), "{}", found.body);
    let made = write("PUT /fhir/Patient?identifier=urn:oid:2.999.7%7CN5", None, &with("C5", "N5")).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let by_other = write("PUT /fhir/Patient?identifier=urn:oid:2.999.7%7CN6", None, &with("C5", "N6")).await;
    assert!(by_other.outcome(412).contains("searched for names nobody"), "{}", by_other.body);
    let unnamed = ask(&gateway, "GET /fhir/Patient?identifier=urn:oid:2.999.7%7CN6", &[], b"").await.json();
    assert_eq!(unnamed["entry"], Value::Null, "nothing of it was taken");
    // What an update names by its id is not somebody else by an identifier.
    let mut stolen = patient("C5");
    stolen["id"] = json!(id);
    let told = write(&put, None, &stolen).await.outcome(422);
    assert!(told.contains("name two resources"), "{told}");
    write(&put, Some(("if-match", "W/\"3\"")), &stolen).await.outcome(412);
    // With its own number too, and in whatever way it is asked for: the other's number is not taken along.
    let other_number = stolen["identifier"][0].clone();
    stolen = with("C1", "N1");
    stolen["id"] = json!(id);
    stolen["identifier"].as_array_mut().unwrap().push(other_number);
    for (target, condition) in [
        (&*put, None),
        (&put, Some(("if-match", "W/\"3\""))),
        (&put, Some(("if-match", "*"))),
        (by_number, None),
    ] {
        let told = write(target, condition, &stolen).await.outcome(422);
        assert!(told.contains("name two resources"), "{target} {condition:?}: {told}");
    }
    whoever["id"] = json!("nobody");
    let other = write(by_number, None, &whoever).await.outcome(400);
    assert!(other.contains("another id"), "{other}");

    // In a transaction all of it stands or falls; in a batch each by itself.
    let entry = |request: Value, value: &str| json!({"resource": patient(value), "request": request});
    let mut bundle = json!({"resourceType": "Bundle", "type": "transaction", "entry": [
        entry(json!({"method": "POST", "url": "Patient"}), "C6"),
        entry(json!({"method": "PUT", "url": format!("Patient/{id}"), "ifMatch": "W/\"1\""}), "C1"),
    ]});
    bundle["entry"][1]["resource"]["id"] = json!(id);
    post(&gateway, "POST /fhir", &bundle).await.outcome(412);
    bundle["type"] = json!("batch");
    let answers = post(&gateway, "POST /fhir", &bundle).await.json();
    let status = |at: usize| answers["entry"][at]["response"]["status"].as_str().unwrap()[..3].to_owned();
    assert_eq!([status(0), status(1)], ["201", "412"], "it was not there: the transaction had made nothing");
    bundle["type"] = json!("transaction");
    bundle["entry"][1]["request"]["ifMatch"] = json!("newest");
    let refused = post(&gateway, "POST /fhir", &bundle).await.outcome(400);
    assert!(refused.contains("Bundle.entry[1].request.ifMatch"), "{refused}");
    bundle["entry"][1]["request"]["ifMatch"] = json!("W/\"3\"");
    for url in ["Patient/nobody", "Person/1", "Patient"] {
        bundle["entry"][1]["request"]["url"] = json!(url);
        let refused = post(&gateway, "POST /fhir", &bundle).await.outcome(400);
        assert!(refused.contains("Bundle.entry[1].request.url"), "{url}: {refused}");
    }
    bundle["entry"][1]["request"]["url"] = json!(format!("Patient/{id}"));
    write("POST /fhir", Some(("if-match", "W/\"1\"")), &bundle).await.outcome(400);
    let twice = json!([bundle["entry"][1], bundle["entry"][1]]);
    let twice = json!({"resourceType": "Bundle", "type": "transaction", "entry": twice});
    let refused = post(&gateway, "POST /fhir", &twice).await;
    assert!(refused.outcome(412).contains("another write of the same transaction"));
    // A person has to look at those that named two, and at nothing else.
    let (_, quarantined) =
        gateway.pons(&["search", "--state", "quarantined", "--format", "json"]).await.unwrap();
    assert_eq!(quarantined.lines().count(), 5, "{quarantined}");
    let log = gateway.log();
    assert!(!log.contains(NAME) && !log.contains("2.999.7"), "{log}");
}

#[tokio::test]
async fn a_replay_judges_no_condition_anew() {
    let hook = Webhook::start(Run::new(1)).await.unwrap();
    let setup = Setup {
        subscriptions: vec![Subscription::webhook("insurer", &["patient-updated"], &hook.url())],
        ..Setup::default()
    };
    let gateway = start(&setup).await;
    let created = post(&gateway, "POST /fhir/Patient", &patient("B1")).await.json();
    let put = format!("PUT /fhir/Patient/{}", created["id"].as_str().unwrap());
    let write = async |gender: &str, version: &str, key: &str| {
        let mut resource = patient("B1");
        (resource["id"], resource["gender"]) = (created["id"].clone(), json!(gender));
        let headers = [JSON, ("if-match", version), ("idempotency-key", key)];
        ask(&gateway, &put, &headers, resource.to_string().as_bytes()).await
    };
    assert_eq!(write("female", "W/\"1\"", "k-taken").await.status, 200);
    write("male", "W/\"1\"", "k-left").await.outcome(412);
    for key in ["k-taken", "k-left"] {
        let (_, found) = gateway.pons(&["search", "--control-id", key, "--format", "json"]).await.unwrap();
        let found: Value = serde_json::from_str(found.lines().next().unwrap()).unwrap();
        let id = found["id"].as_str().unwrap();
        assert_eq!(gateway.pons(&["replay", id, "--yes"]).await.unwrap().0, Some(0));
        let began = Instant::now();
        while !gateway.pons(&["show", id]).await.unwrap().1.contains("replay 1") {
            assert!(began.elapsed() < WAIT, "it is normalized again");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    assert_eq!(write("female", "W/\"1\"", "k-taken").await.status, 200, "what was done stays done");
    write("male", "W/\"1\"", "k-left").await.outcome(412);
    let read = ask(&gateway, &put.replacen("PUT", "GET", 1), &[], b"").await.json();
    assert_eq!(read["gender"], "female");
}

#[tokio::test]
async fn of_writes_that_depend_on_the_same_version_one_is_done() {
    let gateway = start(&Setup::default()).await;
    let created = post(&gateway, "POST /fhir/Patient", &patient("V1")).await.json();
    let id = created["id"].as_str().unwrap();
    let mut resource = patient("V1");
    resource["id"] = json!(id);
    for version in 1..=5 {
        let writes = (0..8).map(|n| {
            let mut resource = resource.clone();
            resource["address"] = json!([{"city": format!("City {version}-{n}")}]);
            let (gateway, etag) = (&gateway, format!("W/\"{version}\""));
            async move {
                let headers = [JSON, ("if-match", etag.as_str())];
                let put = format!("PUT /fhir/Patient/{id}");
                ask(gateway, &put, &headers, resource.to_string().as_bytes()).await.status
            }
        });
        let mut statuses = futures_util::future::join_all(writes).await;
        statuses.sort();
        assert_eq!(statuses, [200, 412, 412, 412, 412, 412, 412, 412]);
    }
}

#[tokio::test]
async fn every_version_is_read_again_and_the_history_tells_of_all() {
    let gateway = start(&Setup::default()).await;
    let mut resource = patient("H1");
    let created = post(&gateway, "POST /fhir/Patient", &resource).await.json();
    let id = created["id"].as_str().unwrap().to_owned();
    resource["id"] = json!(id);
    for gender in ["female", "male", "other"] {
        resource["gender"] = json!(gender);
        assert_eq!(post(&gateway, &format!("PUT /fhir/Patient/{id}"), &resource).await.status, 200);
    }
    let get = async |what: &str| ask(&gateway, &format!("GET /fhir/Patient/{what}"), &[], b"").await;
    for (version, gender) in [(1, Value::Null), (2, json!("female")), (3, json!("male")), (4, json!("other"))]
    {
        let read = get(&format!("{id}/_history/{version}")).await;
        assert_eq!(read.status, 200, "{}", read.body);
        let etag = format!("W/\"{version}\"");
        assert_eq!(read.header("etag"), Some(etag.as_str()));
        let json = read.json();
        assert_eq!(schemas::fhir::validate(&json), []);
        assert_eq!((&json["gender"], &json["id"]), (&gender, &json!(id)));
        assert_eq!(json["meta"]["versionId"], json!(version.to_string()));
    }
    for wrong in ["0", "5", "-1", "x", "9223372036854775807"] {
        get(&format!("{id}/_history/{wrong}")).await.outcome(404);
    }
    let versions = |bundle: &Value| -> Vec<String> {
        assert_eq!(schemas::fhir::validate(bundle), []);
        let entries = bundle["entry"].as_array().cloned().unwrap_or_default();
        entries
            .iter()
            .map(|entry| entry["resource"]["meta"]["versionId"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = get(&format!("{id}/_history")).await.json();
    assert_eq!(
        (&all["type"], versions(&all)),
        (&json!("history"), ["4", "3", "2", "1"].map(str::to_owned).to_vec())
    );
    assert_eq!(all["entry"][3]["request"]["method"], "POST");
    let first = get(&format!("{id}/_history?_count=3")).await.json();
    assert_eq!(versions(&first), ["4", "3", "2"]);
    let next = first["link"][1]["url"].as_str().unwrap().split_once("/fhir/").unwrap().1.to_owned();
    let second = ask(&gateway, &format!("GET /fhir/{next}"), &[], b"").await.json();
    assert_eq!((versions(&second), &second["link"][1]), (vec!["1".to_owned()], &Value::Null));
    assert_eq!(versions(&get(&format!("{id}/_history?_since=2999-01-01T00:00:00Z")).await.json()), [""; 0]);
    get(&format!("{id}/_history?_sort=x")).await.outcome(400);
    get("00000000-0000-0000-0000-000000000000/_history").await.outcome(404);
    ask(&gateway, &format!("GET /fhir/Observation/{id}/_history"), &[], b"").await.outcome(403);
    exchange(&gateway, &format!("GET /fhir/Patient/{id}/_history"), &[], b"", 0).await.outcome(401);
}

#[tokio::test]
async fn a_create_never_changes_what_its_identifiers_name_already() {
    let gateway = start(&Setup::default()).await;
    let first = post(&gateway, "POST /fhir/Patient", &patient("T9")).await;
    assert_eq!(first.status, 201, "{}", first.body);
    let mut thin = patient("T9");
    thin["birthDate"] = json!("1999-09-09");
    let second = post(&gateway, "POST /fhir/Patient", &thin).await;
    assert_eq!(second.status, 200, "{}", second.body);
    assert_eq!(second.json()["resourceType"], "OperationOutcome");
    assert_eq!(
        second.header("location"),
        first.header("location"),
        "the resource and its version are the same"
    );
}

#[tokio::test]
async fn a_key_that_comes_again_gets_what_was_done_and_does_nothing() {
    let gateway = start(&Setup::default()).await;
    let key = ("idempotency-key", "\"k-1\"");
    for (request, body) in [("POST /fhir/Patient", patient("I1")), ("POST /fhir", transaction("transaction"))]
    {
        let body = body.to_string();
        let first = ask(&gateway, request, &[JSON, key], body.as_bytes()).await;
        let again = ask(&gateway, request, &[JSON, key], body.as_bytes()).await;
        assert!(
            first.status < 202 && again.status == first.status,
            "{request}: {} {}",
            again.status,
            again.body
        );
        let place = |answer: &Answer| match answer.json()["entry"].as_array() {
            None => answer.json()["id"].to_string(),
            Some(entries) => entries
                .iter()
                .map(|entry| {
                    entry["response"]["location"].as_str().unwrap().split("/_history").next().unwrap()
                })
                .collect(),
        };
        assert_eq!(place(&first), place(&again), "{request}");
    }
    let (_, found) = gateway.pons(&["search", "--control-id", "\"k-1\"", "--format", "json"]).await.unwrap();
    assert_eq!(found.lines().count(), 2, "two writes, each once");
}

#[tokio::test]
async fn what_is_refused_says_why_in_an_operation_outcome() {
    let gateway = start(&Setup::default()).await;
    let good = patient("R1").to_string();
    let good = good.as_bytes();
    // 401 by the head alone: the body is promised and never comes.
    for headers in
        [&[JSON][..], &[JSON, ("authorization", "Bearer wrong")], &[JSON, ("authorization", "Basic x")]]
    {
        let refused = exchange(&gateway, "POST /fhir/Patient", headers, b"", 1_000_000).await;
        refused.outcome(401);
        assert!(refused.header("www-authenticate").unwrap().starts_with("Bearer"));
    }
    ask(&gateway, "POST /fhir/Patient", &[("content-type", "text/plain")], good).await.outcome(415);
    ask(&gateway, "POST /fhir/Patient", &[], good).await.outcome(415);
    for (request, allowed) in [
        ("DELETE /fhir/Patient/1", "GET, PUT"),
        ("PATCH /fhir/Patient/1", "GET, PUT"),
        ("PATCH /fhir/Patient", "GET, POST, PUT"),
        ("PUT /fhir/Patient/1/_history/1", "GET"),
        ("GET /fhir", "POST"),
    ] {
        let refused = ask(&gateway, request, &[JSON], good).await;
        refused.outcome(405);
        assert_eq!(refused.header("allow"), Some(allowed), "{request}");
    }
    for (request, header, place) in [
        ("POST /fhir/Patient", ("if-none-exist", "identifier=x"), "identifier=system|value"),
        ("POST /fhir/Patient", ("if-none-exist", "name=TESTKANARI"), "identifier=system|value"),
        ("POST /fhir/Patient", ("if-match", "W/\"1\""), "of an update"),
        ("POST /fhir/Patient?name=TESTKANARI", ("accept", "*/*"), "ifNoneExist"),
        ("PUT /fhir/Patient?name=TESTKANARI", ("accept", "*/*"), "identifier=system|value"),
        ("PUT /fhir/Patient", ("accept", "*/*"), "names an id, or one identifier"),
        ("PUT /fhir/Patient?identifier=urn:x%7C1", ("accept", "*/*"), "the resource has this identifier"),
        ("PUT /fhir/Patient?identifier=urn:oid:2.999.1%7CR1", ("if-match", "latest"), "one version"),
        ("PUT /fhir/Patient?identifier=urn:oid:2.999.1%7CR1", ("if-none-match", "W/\"1\""), "expected *"),
    ] {
        let told = ask(&gateway, request, &[JSON, header], good).await.outcome(400);
        assert!(told.contains(place), "{request}: {told}");
    }
    let large = [&good[..good.len() - 1], &vec![b' '; 17 << 20], b"}"].concat();
    ask(&gateway, "POST /fhir/Patient", &[JSON], &large).await.outcome(413);
    for (wrong, status, place) in [
        (&b"{"[..], 400, "line 1"),
        (b"", 400, "JSON"),
        (b"[]", 400, "resourceType"),
        (&[b'['; 5000], 400, "levels"),
        (br#"{"resourceType":"Patient","birthDate":"TESTKANARI"}"#, 422, "Patient.birthDate"),
        (br#"{"resourceType":"Patient","nmae":[]}"#, 422, "Patient"),
        (br#"{"resourceType":"Patient","gender":"TESTKANARI"}"#, 422, "Patient.gender"),
        (b"{\"resourceType\":\"Patient\",\"language\":\"\xFF\"}", 400, "line"),
    ] {
        let told = ask(&gateway, "POST /fhir/Patient", &[JSON], wrong).await.outcome(status);
        assert!(told.contains(place), "{place}: {told}");
    }
    post(&gateway, "POST /fhir", &json!({"resourceType": "Bundle", "type": "searchset"})).await.outcome(400);
    // Every body that was read and refused is found again, and none of it ended anything.
    let (_, found) = gateway.pons(&["search", "--state", "rejected", "--format", "json"]).await.unwrap();
    assert_eq!(found.lines().count(), 18);
    assert!(!found.contains(NAME));
    assert_eq!(post(&gateway, "POST /fhir/Patient", &patient("R1")).await.status, 201);
    let log = gateway.log();
    assert!(!log.contains(NAME) && !log.contains("TESTKANARI") && !log.contains(TOKEN));
}

#[tokio::test]
async fn the_capability_statement_tells_the_truth() {
    let gateway = start(&Setup::default()).await;
    let answer = exchange(&gateway, "GET /fhir/metadata", &[], b"", 0).await;
    assert_eq!(answer.status, 200);
    let statement = answer.json();
    assert_eq!(schemas::fhir::validate(&statement), []);
    assert_eq!(statement["fhirVersion"], "4.0.1");
    let rest = &statement["rest"][0];
    let codes = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|one| one["code"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(codes(&rest["interaction"]), ["transaction", "batch"]);
    let patient = rest["resource"].as_array().unwrap().iter().find(|one| one["type"] == "Patient").unwrap();
    assert_eq!(
        codes(&patient["interaction"]),
        ["create", "update", "read", "vread", "history-instance", "search-type"]
    );
    let declared =
        ["versioning", "readHistory", "conditionalCreate", "conditionalUpdate"].map(|of| &patient[of]);
    assert_eq!(declared, [&json!("versioned-update"), &json!(true), &json!(true), &json!(true)]);
    assert_eq!(patient["operation"][0]["name"], "everything");
    let names: Vec<&str> =
        patient["searchParam"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"birthdate") && names.contains(&"_lastUpdated"), "{names:?}");
    let all = rest["resource"].as_array().unwrap();
    let subscriptions = all.iter().find(|one| one["type"] == "Subscription").unwrap();
    assert_eq!(codes(&subscriptions["interaction"]), ["create", "update", "delete", "read", "search-type"]);
    let topics: Vec<&Value> = subscriptions["extension"].as_array().unwrap().iter().collect();
    assert!(topics.iter().any(|topic| topic["valueCanonical"] == "urn:pons:topic:encounter-end"));
    // A Subscription is made by those who may, and not as a part of a Bundle.
    let wish = json!({"resourceType": "Subscription", "status": "requested", "reason": "test", "criteria": "x",
        "channel": {"type": "rest-hook"}});
    let refused = post(&gateway, "POST /fhir/Subscription", &wish).await.outcome(403);
    assert!(refused.contains("may not subscribe by itself"), "{refused}");
    let bundle = json!({"resourceType": "Bundle", "type": "transaction",
        "entry": [{"resource": wish, "request": {"method": "POST", "url": "Subscription"}}]});
    let refused = post(&gateway, "POST /fhir", &bundle).await.outcome(422);
    assert!(refused.contains("Bundle.entry[0].resource"), "{refused}");
    // What it does not name is not there.
    for request in [
        "GET /fhir/Patient/1/_history/1/2",
        "GET /fhir",
        "DELETE /fhir/Patient/1",
        "POST /fhir/Patient/1/_search",
    ] {
        ask(&gateway, request, &[JSON], b"").await.outcome(405);
    }
}

#[tokio::test]
async fn what_is_known_can_be_read_and_searched() {
    let gateway = start(&Setup::default()).await;
    let made = post(&gateway, "POST /fhir", &transaction("transaction")).await.json();
    let id = |index: usize| {
        let location = made["entry"][index]["response"]["location"].as_str().unwrap();
        location.split('/').nth(1).unwrap().to_owned()
    };
    let (patient_id, encounter_id) = (id(0), id(1));
    let get = async |what: &str| ask(&gateway, &format!("GET /fhir/{what}"), &[], b"").await;

    let read = get(&format!("Patient/{patient_id}")).await;
    assert_eq!((read.status, read.header("etag")), (200, Some("W/\"1\"")));
    let resource = read.json();
    assert_eq!(schemas::fhir::validate(&resource), []);
    assert_eq!((&resource["name"][0]["family"], &resource["meta"]["versionId"]), (&json!(NAME), &json!("1")));
    let updated: jiff::Timestamp = resource["meta"]["lastUpdated"].as_str().unwrap().parse().unwrap();
    assert!(jiff::Timestamp::now().duration_since(updated).abs() < jiff::SignedDuration::from_mins(5));
    let same = [("if-none-match", "W/\"1\"")];
    let unchanged = ask(&gateway, &format!("GET /fhir/Patient/{patient_id}"), &same, b"").await;
    assert_eq!((unchanged.status, unchanged.body.as_str()), (304, ""));
    get(&format!("Encounter/{patient_id}")).await.outcome(404);
    get("Patient/T1").await.outcome(404);
    get("Patient/00000000-0000-0000-0000-000000000000").await.outcome(404);

    let found = async |what: &str| -> Vec<String> {
        let bundle = get(what).await.json();
        assert_eq!(schemas::fhir::validate(&bundle), [], "{what}: {bundle}");
        assert_eq!(bundle["type"], "searchset", "{what}: {bundle}");
        let entries = bundle["entry"].as_array().cloned().unwrap_or_default();
        entries.iter().map(|entry| entry["resource"]["id"].as_str().unwrap().to_owned()).collect()
    };
    for (what, expected) in [
        (format!("Patient?_id={patient_id}"), Some(&patient_id)),
        ("Patient?identifier=urn:oid:2.999.1|T1".to_owned(), Some(&patient_id)),
        ("Patient?identifier=urn:oid:2.999.1%7CT1&birthdate=1970".to_owned(), Some(&patient_id)),
        ("Patient?identifier=urn:oid:2.999.1|T1&birthdate=1971".to_owned(), None),
        ("Patient?identifier=urn:oid:2.999.1|T2".to_owned(), None),
        (format!("Encounter?patient={patient_id}"), Some(&encounter_id)),
        (format!("Encounter?subject=Patient/{patient_id}&status=in-progress&class=IMP"), Some(&encounter_id)),
        (format!("Encounter?patient={patient_id}&status=finished"), None),
        (format!("Encounter?patient={encounter_id}"), None),
        ("Encounter?patient.identifier=urn:oid:2.999.1|T1".to_owned(), Some(&encounter_id)),
        ("Encounter?patient.identifier=urn:oid:2.999.1|T9".to_owned(), None),
        (format!("Encounter?patient={patient_id}&_lastUpdated=gt2020-01-01"), Some(&encounter_id)),
        (format!("Encounter?patient={patient_id}&_lastUpdated=lt2020-01-01"), None),
    ] {
        assert_eq!(found(&what).await, expected.into_iter().cloned().collect::<Vec<_>>(), "{what}");
    }

    // As a form, so that no number stands in an address.
    let form = [("content-type", "application/x-www-form-urlencoded; charset=utf-8")];
    let search = async |what: &str, body: &str| {
        ask(&gateway, &format!("POST /fhir/{what}"), &form, body.as_bytes()).await
    };
    let by_form = search("Patient/_search", "identifier=urn%3Aoid%3A2.999.1%7CT1&birthdate=1970").await;
    assert_eq!(by_form.json()["entry"][0]["resource"]["id"], json!(patient_id), "{}", by_form.body);
    let both = search("Encounter/_search?status=in-progress", &format!("patient={patient_id}")).await;
    assert_eq!(both.json()["entry"][0]["resource"]["id"], json!(encounter_id), "{}", both.body);
    search("Encounter/_search?status=finished", "").await.outcome(400);
    search("Observation/_search", &format!("patient={patient_id}")).await.outcome(403);
    ask(&gateway, "POST /fhir/Patient/_search", &[JSON], b"{}").await.outcome(415);
    search("Patient/_search", &format!("identifier=a|{}", "x".repeat(70_000))).await.outcome(400);

    // Nothing is shown to who may not see it, nor to who does not say whom he asks about.
    let all = get("Encounter?status=in-progress").await.outcome(400);
    assert!(all.contains("a search names whom it is about"), "{all}");
    let unknown = get(&format!("Encounter?patient={patient_id}&colour=red")).await.outcome(400);
    assert!(unknown.contains("no search parameter colour"), "{unknown}");
    let lenient = [("prefer", "handling=lenient")];
    let lenient =
        ask(&gateway, &format!("GET /fhir/Encounter?patient={patient_id}&colour=red"), &lenient, b"").await;
    assert_eq!(lenient.json()["entry"][1]["search"]["mode"], "outcome", "{}", lenient.body);
    get(&format!("Observation?patient={patient_id}")).await.outcome(403);
    get("Nobody/1").await.outcome(404);
    exchange(&gateway, &format!("GET /fhir/Patient/{patient_id}"), &[], b"", 0).await.outcome(401);
    let log = gateway.log();
    assert!(!log.contains(NAME) && !log.contains(TOKEN) && !log.contains("2.999.1"), "{log}");
    assert!(log.contains("a reading of one resource was answered") && log.contains(&patient_id), "{log}");
    let refused = log.lines().any(|line| line.contains("Observation") && line.contains("403"));
    assert!(refused, "who may not read leaves a trace too");
}

#[tokio::test]
async fn what_came_under_a_merged_number_is_found_under_both() {
    let gateway = start(&Setup::default()).await;
    let mut connection = Connection::open(gateway.mllp).await.unwrap();
    let head = |event: &str, number: u8| {
        format!(
            "MSH|^~\\&|ADT1|GENHOSP|PONS|HUB|20260301100{number}00||ADT^{event}|M{number}|P|2.5.1\rEVN||20260301100{number}00\r"
        )
    };
    let admitted = |number: u8, patient: &str| {
        let head = head("A01^ADT_A01", number);
        format!(
            "{head}PID|1||{patient}^^^&2.999.7&ISO^MR||{NAME}^JANE\rPV1|1|I||||||||||||||||||V{number}^^^&2.999.8&ISO\r"
        )
    };
    let merged = head("A40^ADT_A39", 3)
        + &format!("PID|1||A1^^^&2.999.7&ISO^MR||{NAME}^JANE\rMRG|A2^^^&2.999.7&ISO^MR\r");
    let found = async |what: &str| -> Vec<Value> {
        let answer = ask(&gateway, &format!("GET /fhir/{what}"), &[], b"").await;
        assert_eq!(answer.status, 200, "{what}: {}", answer.body);
        answer.json()["entry"].as_array().cloned().unwrap_or_default()
    };
    let known = async |what: &str, count: usize| {
        let began = Instant::now();
        while found(what).await.len() != count {
            assert!(began.elapsed() < WAIT, "{what} finds {count}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    for message in [admitted(1, "A1"), admitted(2, "A2")] {
        connection.send(message.as_bytes()).await.unwrap();
        connection.receive(WAIT).await.unwrap();
    }
    known("Encounter?patient.identifier=urn:oid:2.999.7|A1", 1).await;
    known("Encounter?patient.identifier=urn:oid:2.999.7|A2", 1).await;
    let of_a2 = found("Patient?identifier=urn:oid:2.999.7|A2").await;
    let old = of_a2[0]["resource"]["id"].as_str().unwrap().to_owned();
    connection.send(merged.as_bytes()).await.unwrap();
    connection.receive(WAIT).await.unwrap();
    known("Encounter?patient.identifier=urn:oid:2.999.7|A1", 2).await;
    known("Encounter?patient.identifier=urn:oid:2.999.7|A2", 2).await;
    known(&format!("Encounter?patient={old}"), 2).await;
    known(&format!("Encounter?patient={old}&status=in-progress"), 2).await;
    assert_eq!(found("Patient?identifier=urn:oid:2.999.7|A2").await.len(), 1);
    let answer = ask(&gateway, &format!("GET /fhir/Patient/{old}"), &[], b"").await.json();
    assert_eq!((&answer["active"], &answer["link"][0]["type"]), (&json!(false), &json!("replaced-by")));
}

#[tokio::test]
async fn what_is_labelled_is_not_shown_and_pages_are_followed() {
    let gateway = start(&Setup::default()).await;
    let made = post(&gateway, "POST /fhir/Patient", &patient("T1")).await;
    let patient_id = made.json()["id"].as_str().unwrap().to_owned();
    let encounter = |index: usize, code: &str| {
        let visit = format!("V{index}");
        json!({
            "resourceType": "Encounter", "status": "finished", "identifier": [{"system": "urn:oid:2.999.2", "value": visit}],
            "meta": {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": code}]},
            "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
            "subject": {"reference": format!("Patient/{patient_id}")},
        })
    };
    let mut restricted = String::new();
    for (index, code) in ["N", "N", "R", "N", "N", "N"].into_iter().enumerate() {
        let made = post(&gateway, "POST /fhir/Encounter", &encounter(index, code)).await;
        assert_eq!(made.status, 201, "{}", made.body);
        if code == "R" {
            restricted = made.json()["id"].as_str().unwrap().to_owned();
        }
    }
    let withheld = ask(&gateway, &format!("GET /fhir/Encounter/{restricted}"), &[], b"").await.outcome(403);
    assert!(withheld.contains("labelled R"), "{withheld}");
    let (mut seen, mut said) = (Vec::new(), 0);
    let mut next = Some(format!("/fhir/Encounter?patient={patient_id}&_count=2"));
    while let Some(url) = next {
        let page = ask(&gateway, &format!("GET {url}"), &[], b"").await.json();
        assert_eq!(schemas::fhir::validate(&page), [], "{page}");
        for entry in page["entry"].as_array().unwrap() {
            match entry["search"]["mode"].as_str().unwrap() {
                "match" => seen.push(entry["resource"]["id"].as_str().unwrap().to_owned()),
                _ => said += 1,
            }
        }
        let links = page["link"].as_array().unwrap();
        next = links
            .iter()
            .find(|link| link["relation"] == "next")
            .map(|link| link["url"].as_str().unwrap().to_owned());
    }
    assert_eq!((seen.len(), said), (5, 1), "each once, and one is said to be withheld");
    assert!(!seen.contains(&restricted));
    seen.dedup();
    assert_eq!(seen.len(), 5);
}

#[tokio::test]
async fn everything_of_a_patient_is_what_the_client_may_read_page_by_page() {
    let gateway = start(&Setup::default()).await;
    let made = post(&gateway, "POST /fhir/Patient", &patient("T1")).await;
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let hospital = json!({"resourceType": "Organization", "name": "GENERAL", "identifier": [{"system": "urn:oid:2.999.3", "value": "G"}]});
    let hospital =
        post(&gateway, "POST /fhir/Organization", &hospital).await.json()["id"].as_str().unwrap().to_owned();
    for visit in 0..5 {
        let encounter = json!({
            "resourceType": "Encounter", "status": "finished",
            "identifier": [{"system": "urn:oid:2.999.2", "value": format!("V{visit}")}],
            "meta": {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": if visit == 4 { "R" } else { "N" }}]},
            "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
            "subject": {"reference": format!("Patient/{id}")},
            "serviceProvider": {"reference": format!("Organization/{hospital}")},
        });
        assert_eq!(post(&gateway, "POST /fhir/Encounter", &encounter).await.status, 201);
    }
    let observation = json!({
        "resourceType": "Observation", "status": "final", "code": {"text": "weight"},
        "identifier": [{"system": "urn:oid:2.999.4", "value": "O1"}], "subject": {"reference": format!("Patient/{id}")},
    });
    assert_eq!(post(&gateway, "POST /fhir/Observation", &observation).await.status, 201);
    let (mut seen, mut said) = (Vec::new(), String::new());
    let mut next = Some(format!("/fhir/Patient/{id}/$everything?_count=2"));
    let mut pages = 0;
    while let Some(url) = next {
        let page = ask(&gateway, &format!("GET {url}"), &[], b"").await.json();
        assert_eq!(schemas::fhir::validate(&page), [], "{page}");
        pages += 1;
        for entry in page["entry"].as_array().into_iter().flatten() {
            let resource = &entry["resource"];
            match entry["search"]["mode"].as_str().unwrap() {
                "outcome" => said.push_str(&resource.to_string()),
                mode => seen.push((mode.to_owned(), resource["resourceType"].as_str().unwrap().to_owned())),
            }
        }
        let links = page["link"].as_array().unwrap();
        next = links
            .iter()
            .find(|link| link["relation"] == "next")
            .map(|link| link["url"].as_str().unwrap().to_owned());
    }
    let count = |of: &str| seen.iter().filter(|(_, known)| known == of).count();
    assert_eq!(
        (count("Patient"), count("Encounter"), count("Observation"), count("Organization")),
        (1, 4, 0, 0)
    );
    assert_eq!(seen[0], ("match".to_owned(), "Patient".to_owned()), "whose it is comes first");
    assert!(pages > 1 && seen.len() == 5, "each once: {seen:?}");
    for expected in ["1 that are labelled", "may not read: Observation", "may not read: Organization"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let some = ask(
        &gateway,
        &format!("GET /fhir/Patient/{id}/$everything?_type=Encounter&_since=2020-01-01T00:00:00Z"),
        &[],
        b"",
    )
    .await;
    assert_eq!(
        some.json()["entry"].as_array().unwrap().len(),
        5,
        "four, and what is said of the fifth: {}",
        some.body
    );
    let none = ask(
        &gateway,
        &format!("GET /fhir/Patient/{id}/$everything?_since=2100-01-01T00:00:00Z&_type=Patient"),
        &[],
        b"",
    )
    .await;
    assert_eq!(none.json()["entry"], Value::Null);
    for (wrong, status) in [
        (format!("{id}/$everything?start=2020"), 400),
        (format!("{hospital}/$everything"), 404),
        ("x/$everything".to_owned(), 404),
    ] {
        ask(&gateway, &format!("GET /fhir/Patient/{wrong}"), &[], b"").await.outcome(status);
    }
}

#[tokio::test]
async fn what_only_restricted_messages_said_is_shown_to_nobody() {
    let gateway = start(&Setup::default()).await;
    let mut sender = Connection::open(gateway.mllp).await.unwrap();
    // MSH-26 is how confidential the whole message is.
    for (control_id, label, birth) in [("C1", "R", "19700101"), ("C2", "", "")] {
        let message = format!(
            "MSH|^~\\&|ADT1|GENHOSP|||20260301||ADT^A08|{control_id}|P|2.8.2||||||||||||||{label}\rEVN||20260301\r\
             PID|1||{control_id}^^^GENHOSP^MR~T1^^^GENHOSP^PI||{NAME}^JANE||{birth}\r"
        );
        sender.send(message.as_bytes()).await.unwrap();
        sender.receive(WAIT).await.unwrap();
    }
    let known_by =
        |number: &str| format!("GET /fhir/Patient?identifier=urn:pons:sender:genhosp:GENHOSP%7C{number}");
    let began = Instant::now();
    let entries = loop {
        let found = ask(&gateway, &known_by("C2"), &[], b"").await.json();
        match found["entry"].as_array() {
            Some(entries) => break entries.clone(),
            None => assert!(began.elapsed() < WAIT, "the second message is applied"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let shown = &entries[0]["resource"];
    assert_eq!(entries.len(), 1);
    assert_eq!((&shown["name"][0]["family"], &shown["birthDate"]), (&json!(NAME), &Value::Null));
    assert_eq!(shown["meta"]["security"][0]["code"], "REDACTED");
    assert_eq!(schemas::fhir::validate(shown), []);
    // Both messages are of one patient: the first was applied before, and nobody finds by what it alone said.
    let by_restricted = ask(&gateway, &known_by("C1"), &[], b"").await.json();
    assert_eq!((&by_restricted["type"], &by_restricted["entry"]), (&json!("searchset"), &Value::Null));
    let id = shown["id"].as_str().unwrap();
    // The version that only the restricted message had made is told of, and not shown.
    let history = ask(&gateway, &format!("GET /fhir/Patient/{id}/_history"), &[], b"").await.json();
    assert_eq!(schemas::fhir::validate(&history), []);
    let first = history["entry"].as_array().unwrap().last().unwrap();
    assert_eq!((&first["response"]["status"], &first["resource"]), (&json!("403 Forbidden"), &Value::Null));
    ask(&gateway, &format!("GET /fhir/Patient/{id}/_history/1"), &[], b"").await.outcome(403);
    let (put, body) = (format!("PUT /fhir/Patient/{id}"), shown.to_string());
    let refused = ask(&gateway, &put, &[JSON], body.as_bytes()).await.outcome(422);
    assert!(refused.contains("written back it would be lost"), "{refused}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL and RabbitMQ: tests/run starts them"]
async fn a_write_is_answered_whichever_replica_applies_it() {
    let services = Services::from_environment().unwrap();
    let setup = Setup {
        store: Some(services.new_database("fhir").await.unwrap()),
        bus: Some(services.amqp.clone()),
        ..Setup::default()
    };
    let replicas = [start(&setup).await, start(&setup).await];
    // Until each has given half of the lanes to the other, one of them applies everything.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for n in 0..12 {
        for (number, gateway) in replicas.iter().enumerate() {
            let answer = post(gateway, "POST /fhir/Patient", &patient(&format!("R{number}-{n}"))).await;
            assert_eq!(answer.status, 201, "{}", answer.body);
        }
    }
}
