//! Devices that publish to a broker of MQTT, by a client that is not ours, and the mapping that reads what they say.

use crate::gateway::Gateway;
use anyhow::{Context, Result, ensure};
use rumqttc::{AsyncClient, Event, Incoming, MqttOptions, QoS};
use serde_json::json;
use std::time::{Duration, Instant};

/// The source, as a row of `sources:`.
const SOURCE: &str = "{name: vitals, adapter: mqtt, broker: BROKER, version: VERSION, client_id: 'SESSION', topics: 'SESSION/{ward}/{device}/readings', mapping: vitals, sender: ward, patient: {at: /patient}, device: {level: device}}";

/// The mapping that the source names: the device by its topic, the patient by its number.
const MAPPING: &str = "
record: Vital
members: {patient: text, at: text, bpm: number}
---
record_map: vital_patient
from: Vital
to: Patient
rules:
  identifier: {all: [{id: number, set: {system: {value: sender.system}, value: {value: Vital.patient}}}]}
---
record_map: vital_device
from: Vital
to: Device
rules:
  identifier: {all: [{id: topic, set: {value: {value: wire.device}}}]}
---
record_map: vital_rate
from: Vital
to: Observation
rules:
  status: {const: final}
  code: {concept: 'loinc#8867-4'}
  effective[x]: {as: dateTime, value: 'datetime(Vital.at)'}
  value[x]: {as: Quantity, set: {value: {value: Vital.bpm}, unit: {const: /min}, system: {const: 'http://unitsofmeasure.org'}, code: {const: /min}}}
---
mapping: vitals
version: 1.0.0
source: {format: json, record: Vital}
resources:
- {id: patient, type: Patient, from: Vital, on_existing: fill, identity: {keys: [{value: Vital.patient}], else: quarantine}, parts: [{use: vital_patient, from: Vital}]}
- {id: device, type: Device, from: Vital, identity: {keys: [{value: wire.device}], else: quarantine}, parts: [{use: vital_device, from: Vital}]}
- {id: rate, type: Observation, from: Vital, identity: {keys: [{value: [wire.device, Vital.at]}], else: quarantine}, parts: [{use: vital_rate, from: Vital}], set: {subject: {ref: patient}, device: {ref: device}}}
";

/// The bearer token of the sender `ward`, whose readings they are.
pub const TOKEN: &str = "t0ken-of-the-ward";

/// Gives a gateway that is configured and not started yet the source `vitals`. Answers with what its topics begin, which no other gateway
/// subscribes to.
///
/// # Errors
/// When its folder cannot be written to.
pub fn add_source(gateway: &Gateway, broker: &str, version: &str) -> Result<String> {
    let session = uuid::Uuid::now_v7().simple().to_string();
    let source = SOURCE.replace("BROKER", broker).replace("VERSION", version).replace("SESSION", &session);
    let yaml = std::fs::read_to_string(gateway.config())?;
    let yaml = yaml.replacen("sources:\n", &format!("sources:\n  - {source}\n"), 1);
    let sender = "{name: ward, token: {file: ward.token}, reads: [Observation]}";
    let yaml = yaml.replacen("senders:\n", &format!("senders:\n  - {sender}\n"), 1);
    let yaml = yaml.replace("senders: [genhosp]", "senders: [ward]");
    std::fs::write(gateway.config(), format!("mappings_dir: own\n{yaml}"))?;
    let beside = |name: &str| gateway.config().with_file_name(name);
    std::fs::create_dir(beside("own"))?;
    std::fs::write(beside("own").join("vitals.yaml"), MAPPING)?;
    std::fs::write(beside("ward.token"), TOKEN)?;
    Ok(session)
}

/// Waits until the gateway has subscribed.
///
/// # Errors
/// When it has not within a minute, or has ended.
pub async fn connected(gateway: &Gateway) -> Result<()> {
    let began = Instant::now();
    while gateway.metrics().await?.get("pons_ingest_source_connected{source=\"vitals\"}") != Some(&1.0) {
        ensure!(began.elapsed() < Duration::from_secs(60), "the source is not connected");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The subscription follows at once.
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(())
}

/// One reading on its way: the topic and the payload. Readings of other numbers are other readings.
pub fn reading(session: &str, number: u64, devices: u64) -> (String, String) {
    let device = number % devices;
    // A device measures every second.
    let at = jiff::Timestamp::new(1_750_000_000 + i64::try_from(number / devices).unwrap_or_default(), 0);
    let at = at.map(|at| at.to_string()).unwrap_or_default();
    let payload = json!({"patient": format!("TESTMQTT{device}"), "at": at, "bpm": 50 + number % 100});
    (format!("{session}/ward{}/DEV{device}/readings", device % 8), payload.to_string())
}

/// Publishes with quality of service 1, so many a second if that is given; returns once the broker has acknowledged all.
///
/// # Errors
/// When the broker cannot be reached, or goes away.
pub async fn publish(
    broker: &str,
    client_id: &str,
    readings: impl Iterator<Item = (String, String)> + Send + 'static,
    rate: Option<f64>,
) -> Result<u64> {
    let (host, port) = broker.rsplit_once(':').context("HOST:PORT")?;
    let mut options = MqttOptions::new(client_id, host, port.parse()?);
    options.set_inflight(1000);
    let (client, mut events) = AsyncClient::new(options, 1000);
    // While there is a client, the connection stays.
    let handing_in = client.clone();
    let began = Instant::now();
    let mut handing = std::pin::pin!(async move {
        let mut count = 0_u64;
        for (topic, payload) in readings {
            if let Some(rate) = rate {
                let due = began + Duration::from_secs_f64(count as f64 / rate);
                // The timer counts in milliseconds.
                if due > Instant::now() + Duration::from_millis(1) {
                    tokio::time::sleep_until(due.into()).await;
                }
            }
            handing_in.publish(topic, QoS::AtLeastOnce, false, payload).await?;
            count += 1;
        }
        Ok::<_, rumqttc::ClientError>(count)
    });
    let (mut acknowledged, mut expected) = (0, None);
    while expected != Some(acknowledged) {
        tokio::select! {
            count = &mut handing, if expected.is_none() => expected = Some(count?),
            event = events.poll() => {
                if let Event::Incoming(Incoming::PubAck(_)) = event.context("the broker")? {
                    acknowledged += 1;
                }
            }
        }
    }
    drop(client);
    Ok(acknowledged)
}
