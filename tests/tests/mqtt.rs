//! Devices that publish to Mosquitto, by a client that is not ours: what they say is durable before it is acknowledged, and none of it
//! is lost or taken twice, whatever becomes of the gateway.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

use serde_json::Value;
use std::time::{Duration, Instant};
use tests::gateway::{Gateway, Setup, Subscription};
use tests::generate::Run;
use tests::mqtt::{add_source, connected, publish, reading};
use tests::services::{self, Services};
use tests::webhook::Webhook;

const WAIT: Duration = Duration::from_secs(60);
const DEVICES: u64 = 20;

/// A gateway that has subscribed, the services, and with what its topics begin.
async fn start(setup: &Setup, version: &str) -> (Gateway, Services, String) {
    let services = Services::from_environment().unwrap();
    let mut gateway = Gateway::configure(setup).unwrap();
    let session = add_source(&gateway, &services.mqtt, version).unwrap();
    gateway.spawn().await.unwrap();
    gateway.ready(WAIT).await.unwrap();
    connected(&gateway).await.unwrap();
    (gateway, services, session)
}

async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < WAIT, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn found(gateway: &Gateway, options: &[&str]) -> Vec<Value> {
    let (code, found) = gateway.pons(&[&["search", "--format", "json"], options].concat()).await.unwrap();
    assert_eq!(code, Some(0), "{found}");
    found.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
#[ignore = "needs the services of tests/run"]
async fn a_reading_reaches_its_subscriber_and_what_cannot_be_used_waits_for_a_person() {
    for version in ["5", "3.1.1"] {
        let hook = Webhook::start(Run::new(1)).await.unwrap();
        let subscription = Subscription::webhook("ward", &["device-observation"], &hook.url());
        let setup = Setup { subscriptions: vec![subscription], ..Setup::default() };
        let (gateway, services, session) = start(&setup, version).await;
        let (topic, payload) = reading(&session, 7, DEVICES);
        let readings = [
            (topic.clone(), payload.clone()),
            (topic.clone(), "{\"patient\": \"TESTMQTT7\", ".to_owned()),
            (topic.clone(), "{\"at\": \"2026-03-01T07:30:00Z\", \"bpm\": 60}".to_owned()),
            (topic, String::new()),
        ];
        publish(&services.mqtt, "device", readings.into_iter(), None).await.unwrap();
        until("all are done", async || {
            found(&gateway, &["--state", "quarantined"]).await.len() == 2 && hook.accepted() == 1
        })
        .await;
        let told: Value = serde_json::from_slice(&hook.last_body()).unwrap();
        assert_eq!(schemas::fhir::validate(&told), []);
        let resources = told["entry"].as_array().unwrap().iter().map(|entry| &entry["resource"]);
        let resources: Vec<&Value> = resources.collect();
        let of = |kind| resources.iter().find(|one| one["resourceType"] == kind).unwrap();
        assert_eq!(of("Device")["identifier"][0]["value"], "DEV7", "a level of the topic");
        assert_eq!(of("Observation")["valueQuantity"]["value"], 57);
        assert_eq!(found(&gateway, &["--patient", "TESTMQTT7"]).await.len(), 1);
        let refused = found(&gateway, &["--state", "rejected"]).await;
        let (code, shown) = gateway.pons(&["show", refused[0]["id"].as_str().unwrap()]).await.unwrap();
        assert_eq!(code, Some(0));
        assert!(shown.contains("an empty payload") && shown.contains("acknowledged"), "{shown}");
        assert!(!shown.contains("DEV7"), "the topic is not shown without being asked for");
        assert!(!gateway.log().contains("TESTMQTT") && !gateway.log().contains("DEV7"));
    }
}

#[tokio::test]
#[ignore = "needs the services of tests/run"]
async fn while_the_gateway_is_killed_no_reading_is_lost_and_none_is_taken_twice() {
    const READINGS: u64 = 3000;
    let database = Services::from_environment().unwrap().new_database("mqtt").await.unwrap();
    let setup = Setup { store: Some(database.clone()), ..Setup::default() };
    let (mut gateway, services, session) = start(&setup, "5").await;
    let publishing = tokio::spawn(async move {
        let readings = (0..READINGS).map(move |number| reading(&session, number, DEVICES));
        publish(&services.mqtt, "devices", readings, Some(300.0)).await.unwrap()
    });
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        gateway.kill_and_start().await.unwrap();
        gateway.ready(WAIT).await.unwrap();
        connected(&gateway).await.unwrap();
    }
    assert_eq!(publishing.await.unwrap(), READINGS);
    let client = services::connect(&database).await.unwrap();
    let count = async |sql: &str| client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
    let readings = i64::try_from(READINGS).unwrap();
    until("all are normalized", async || {
        count("SELECT count(*) FROM message").await >= readings
            && count("SELECT count(*) FROM inbox").await == 0
    })
    .await;
    assert_eq!(count("SELECT count(*) FROM message").await, readings, "none is taken twice");
    assert_eq!(
        count("SELECT count(*) FROM resource WHERE resource_type = 'Observation' AND version = 1").await,
        readings
    );
}
