//! What devices publish to a broker of MQTT, 3.1.1 or 5: a client with a session that the broker keeps.
//!
//! Invariant: a packet of QoS 1 is acknowledged once what is in it is durable, and never before. What cannot be kept now is not
//! acknowledged: the connection is given up, and the broker hands it over again in the next one. What cannot be used at all is kept for
//! a person and acknowledged, so that it holds up nobody.

mod config;
mod session;
mod source;
#[cfg(test)]
mod tests;
mod topic;
mod wire;

use crate::settings::SettingsReader;
use crate::{AdapterSpec, Source, SourceSpec};
use config::MqttConfig;
use std::sync::Arc;

/// The row of this adapter.
pub const SPEC: AdapterSpec = AdapterSpec {
    name: "mqtt",
    summary: "JSON and CSV published to a broker of MQTT 3.1.1 or 5, acknowledged once durable",
    source: Some(SourceSpec {
        settings: config::SETTINGS,
        read: |fields, context| {
            let mut settings = SettingsReader::new(fields, config::SETTINGS, &context.folder);
            let config = MqttConfig::read(&mut settings, &context.name)?;
            Some(Arc::new(source::Client { name: context.name.clone(), config }) as Arc<dyn Source>)
        },
        reads_documents: true,
        fetches: true,
        example: "broker: 127.0.0.1:1883\ntopics: 'devices/{device}/readings'",
    }),
    destination: None,
};
