//! The mappings change while the gateway runs: all of them or none.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};
use tests::gateway::{Gateway, Setup, Subscription};
use tests::generate::Run;
use tests::sender::{Connection, acknowledgement};
use tests::webhook::Webhook;

const WAIT: Duration = Duration::from_secs(20);

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Admits somebody, and answers the gender that the subscriber receives and the mapping that made it.
async fn admit(gateway: &Gateway, webhook: &Webhook, number: usize) -> (String, String) {
    let message = format!(
        "MSH|^~\\&|ADT1|GENHOSP|||20250301083000||ADT^A01^ADT_A01|RELOAD{number}|P|2.5.1\rEVN|A01|20250301083000\r\
         PID|||TEST{number}^^^TESTHOSP^MR||TEST^JANE||19800304|F\rPV1||I|||||||||||||||||VISIT{number}\r"
    );
    let before = webhook.requests();
    let mut connection = Connection::open(gateway.mllp).await.unwrap();
    connection.send(message.as_bytes()).await.unwrap();
    let answer = acknowledgement(&connection.receive(WAIT).await.unwrap()).unwrap();
    assert_eq!(answer.code, "AA", "{}", gateway.log());
    let deadline = Instant::now() + WAIT;
    while webhook.requests() == before {
        assert!(Instant::now() < deadline, "{}", gateway.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let event: Value = serde_json::from_slice(&webhook.last_body()).unwrap();
    let bundle = if event["data"].is_object() { &event["data"] } else { &event };
    let entries = bundle["entry"].as_array().unwrap();
    let of = |kind: &str| {
        entries.iter().map(|one| &one["resource"]).find(|one| one["resourceType"] == kind).unwrap()
    };
    (of("Patient")["gender"].as_str().unwrap().to_owned(), of("Provenance").to_string())
}

async fn told_so_often(gateway: &Gateway, what: &str, count: usize) {
    let deadline = Instant::now() + WAIT;
    while gateway.log().matches(what).count() < count {
        assert!(Instant::now() < deadline, "never so often: {what}: {}", gateway.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mappings_are_exchanged_while_running_and_a_mistake_or_a_failing_test_changes_nothing() {
    const OVERLAY: &str = "site/genhosp/sex.yaml";
    let folder = tempfile::tempdir().unwrap();
    let webhook = Webhook::start(Run::new(81)).await.unwrap();
    let setup = Setup {
        subscriptions: vec![Subscription::webhook("insurer", &["encounter-start"], &webhook.url())],
        settings: vec![format!("mappings_dir: {}", folder.path().display())],
        ..Setup::default()
    };
    let gateway = Gateway::start(&setup).await.unwrap();
    let (gender, first) = admit(&gateway, &webhook, 1).await;
    assert_eq!(gender, "female");

    // A mistake: it is told with its place, and the mappings in use stay.
    write(folder.path(), OVERLAY, "overlay: sex\npatch: {pid_patient/gendre: {replace: {const: other}}}\n");
    told_so_often(&gateway, "the mappings in use stay", 1).await;
    assert!(gateway.log().contains("site/genhosp/sex.yaml:2:9"), "{}", gateway.log());
    assert_eq!(admit(&gateway, &webhook, 2).await.0, "female");

    // What is right, with a test that fails: the same.
    let right = "overlay: sex\npatch: {pid_patient/gender: {replace: {const: other}}}\n";
    let test = |expected: &str| {
        format!(
            "tests_for: adt_visit\ntests:\n  - name: the site's own\n    sender: genhosp\n    \
             given: \"MSH|^~\\\\&|A|B|||20250301||ADT^A01^ADT_A01|1|P|2.5.1\\rEVN|A01\\rPID|||1^^^B||C\\rPV1||I\"\n    \
             expect: {{Patient.gender: {expected}}}\n"
        )
    };
    write(folder.path(), OVERLAY, &format!("{right}---\n{}", test("male")));
    told_so_often(&gateway, "the mappings in use stay", 2).await;
    assert!(gateway.log().contains("test `the site's own`"), "{}", gateway.log());
    assert_eq!(admit(&gateway, &webhook, 3).await.0, "female");

    // With a test that holds it is used, and every message says by which mappings it was mapped.
    write(folder.path(), OVERLAY, &format!("{right}---\n{}", test("other")));
    told_so_often(&gateway, "mappings exchanged", 1).await;
    let (gender, last) = admit(&gateway, &webhook, 4).await;
    assert_eq!(gender, "other");
    let stamp = |provenance: &str| {
        let at = provenance.find("adt_visit 1.0.0+").expect("it names the mapping");
        provenance[at..at + 24].to_owned()
    };
    assert_ne!(stamp(&first), stamp(&last), "the digest of the mappings is another");
}
